//! Bytes that others write, broken in every way: whatever comes, every decoder gives a value or an error, in bounded time
//! and with bounded memory. `scripts/soak.sh fuzz` runs it for long.

mod support;

use pg_walstream::{ColumnData, LogicalReplicationMessage as Theirs, StreamingReplicationMessage, TupleData};
use ruvector::engine::segment::Segment;
use ruvector::model::{
    Cell, Change, CollectionDef, CollectionId, ColumnType, CommitLsn, FilterColumn, KeyColumn, LogRecord, Lsn, Metric,
    Op, RowImage, RowKey, TransactionHead, Value, VectorColumn, pgtype,
};
use ruvector::replication::ReplicationError;
use ruvector::replication::assemble::Assembler;
use ruvector::replication::copy_rows::{CopyError, CopyRows};
use ruvector::replication::frame::Frame;
use ruvector::replication::pgoutput;
use ruvector::replication::spool::Spool;
use ruvector::server::pg::{statement, wire};
use ruvector::storage::changelog::{self, ChangeLog};
use ruvector::storage::originals::{Element, Originals};
use ruvector::storage::record::{get_record, put_record};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::soak::{Random, Soak};

/// Memory that an input may cost at once: so many times its length, and so much whatever its length.
const PER_BYTE: usize = 64;
const AT_LEAST: usize = 256 << 10;
/// Longest time for one input, on a machine that does ten other things.
const SLOW: Duration = Duration::from_secs(5);
/// No input gets so far. One that would is cut.
const LONGEST: usize = 1 << 16;
/// Each target's share of the short form. A round is all targets, one after the other.
const SHORT: Duration = Duration::from_secs(3);

/// Counts what lives and what lived at once at most.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn more(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came; what is added counts only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        more(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An input: the messages, chunks or files that a target takes one after the other.
type Input = Vec<Vec<u8>>;

/// Something that reads bytes of others.
trait Target {
    fn name(&self) -> &'static str;
    /// Valid inputs.
    fn seeds(&self) -> Vec<Input>;
    /// Makes the checksums of a broken input right, so that what lies behind them is reached.
    fn seal(&self, _input: &mut Input) {}
    /// Reads it; a panic in here is a bug. True when it was taken for valid.
    fn read(&mut self, input: &Input) -> bool;
    /// Why it was not valid, where that is known.
    fn refused(&self) -> &str {
        "no reason given"
    }
    /// Bytes of memory that any input may cost.
    fn at_least(&self) -> usize {
        AT_LEAST
    }
}

/// Numbers that lengths and counts get wrong by.
fn interesting(random: &mut Random, length: usize) -> u64 {
    let near = [0, 1, 2, 4, length as u64, length as u64 + 1, (length as u64).wrapping_sub(1), 1600, 16_000, 16_001];
    let edges = [7, 8, 15, 16, 31, 32, 63].map(|bit| 1u64 << bit);
    match random.below(5) {
        0 => *random.pick(&near),
        4 => random.below(128),
        1 => *random.pick(&edges),
        2 => random.pick(&edges).wrapping_sub(1),
        _ => u64::MAX - random.below(4),
    }
}

/// Writes a number over the bytes, in one of the widths and orders that formats have.
fn overwrite(random: &mut Random, piece: &mut [u8]) {
    let number = interesting(random, piece.len());
    let width = *random.pick(&[1, 2, 4, 8]);
    if piece.len() < width {
        return;
    }
    let last = piece.len() - width;
    let at = match random.below(4) {
        // Heads and tails hold more counts than the middle.
        0 => random.below(last.min(48) as u64 + 1) as usize,
        1 => last - random.below(last.min(48) as u64 + 1) as usize,
        _ => random.below(last as u64 + 1) as usize,
    };
    let bytes = if random.below(2) == 0 {
        number.to_be_bytes()[8 - width..].to_vec()
    } else {
        number.to_le_bytes()[..width].to_vec()
    };
    piece[at..at + width].copy_from_slice(&bytes);
}

/// A range inside the bytes.
fn range(random: &mut Random, length: usize) -> std::ops::Range<usize> {
    let (a, b) = (random.below(length as u64 + 1) as usize, random.below(length as u64 + 1) as usize);
    a.min(b)..a.max(b)
}

/// Breaks one piece.
fn break_piece(random: &mut Random, piece: &mut Vec<u8>, donor: &[u8]) {
    let length = piece.len();
    match random.below(9) {
        0 if length > 0 => {
            let at = random.below(length as u64) as usize;
            piece[at] ^= 1 << random.below(8);
        }
        1 if length > 0 => {
            let at = random.below(length as u64) as usize;
            piece[at] = random.next() as u8;
        }
        2 => piece.truncate(random.below(length as u64 + 1) as usize),
        3 => piece.extend((0..random.below(16)).map(|_| 0u8)),
        4 => {
            let taken = donor[range(random, donor.len())].to_vec();
            let over = range(random, length);
            piece.splice(over, taken);
        }
        5 if length > 0 && random.below(8) == 0 => {
            // Long: what is allocated by a count is seen.
            let again = piece.clone();
            (0..LONGEST / length).for_each(|_| piece.extend(&again));
            overwrite(random, &mut piece[..length]);
        }
        6 => {
            let again = piece[range(random, length)].to_vec();
            let at = random.below(length as u64 + 1) as usize;
            piece.splice(at..at, again);
        }
        _ => overwrite(random, piece),
    }
}

/// Breaks an input: its pieces, their order, their number.
fn break_input(random: &mut Random, input: &mut Input, seeds: &[Input]) {
    let donor = random.pick(seeds).clone();
    for _ in 0..1 + random.below(4) {
        let at = random.below(input.len().max(1) as u64) as usize;
        let from = random.below(donor.len().max(1) as u64) as usize;
        let given = donor.get(from).map_or(&[][..], Vec::as_slice);
        match random.below(10) {
            0 if input.len() > 1 => drop(input.remove(at)),
            1 if !input.is_empty() => input.insert(at, input[at].clone()),
            2 if !input.is_empty() => {
                let other = random.below(input.len() as u64) as usize;
                input.swap(at, other);
            }
            3 => input.insert(at.min(input.len()), given.to_vec()),
            _ => {
                if let Some(piece) = input.get_mut(at) {
                    break_piece(random, piece, given);
                }
            }
        }
    }
    input.truncate(256);
    input.iter_mut().for_each(|piece| piece.truncate(LONGEST));
}

/// What is being read now, for the watchdog, which is the only way out of an endless loop.
static UNDER_WAY: Mutex<Option<(Instant, String)>> = Mutex::new(None);
static OVER: AtomicBool = AtomicBool::new(false);

fn watch() {
    while !OVER.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(500));
        let Some((since, what)) = UNDER_WAY.lock().expect("not poisoned").clone() else { continue };
        if since.elapsed() > 4 * SLOW {
            println!("HANGS: {what}");
            std::process::exit(101);
        }
    }
}

/// Breaks valid inputs of a target for a while. How many were read, and how many of them were taken for valid.
fn fuzz(target: &mut dyn Target, seed: u64, time: Duration) -> (u64, u64) {
    let seeds = target.seeds();
    for input in &seeds {
        assert!(target.read(input), "{}: a seed is not valid: {}", target.name(), target.refused());
    }
    let mut random = Random(seed);
    let (started, mut executions, mut valid) = (Instant::now(), 0, 0);
    while started.elapsed() < time {
        // An input follows from its own seed alone, which is enough to make it again.
        let own = random.next();
        let mut dice = Random(own);
        let mut input = dice.pick(&seeds).clone();
        break_input(&mut dice, &mut input, &seeds);
        if dice.below(4) > 0 {
            target.seal(&mut input);
        }
        let length: usize = input.iter().map(Vec::len).sum();
        let what = || format!("{}, input {own}, {length} bytes", target.name());
        let limit = target.at_least() + length * PER_BYTE;
        let described = what();
        *UNDER_WAY.lock().expect("not poisoned") = Some((Instant::now(), described.clone()));
        let (before, read) = (LIVE.load(Ordering::Relaxed), Instant::now());
        PEAK.store(before, Ordering::Relaxed);
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target.read(&input)));
        let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
        let slow = read.elapsed();
        *UNDER_WAY.lock().expect("not poisoned") = None;
        let taken = taken.unwrap_or_else(|_| panic!("{described} panics: {}", hex(&input)));
        assert!(peak <= limit, "{described} took {peak} bytes at once, at most {limit}: {}", hex(&input));
        assert!(slow < SLOW, "{described} took {slow:?}: {}", hex(&input));
        executions += 1;
        valid += u64::from(taken);
    }
    (executions, valid)
}

fn hex(input: &Input) -> String {
    let piece = |bytes: &Vec<u8>| bytes.iter().take(4096).map(|byte| format!("{byte:02x}")).collect::<String>();
    input.iter().map(piece).collect::<Vec<_>>().join(" ")
}

fn unhex(text: &str) -> Input {
    let byte = |line: &str, at: usize| u8::from_str_radix(&line[at..at + 2], 16).expect("hex");
    text.lines().map(|line| (0..line.len()).step_by(2).map(|at| byte(line, at)).collect()).collect()
}

// What the source writes.

/// One table as a real PostgreSQL 15 described and filled it, by protocol 1, and by protocol 2 with a rolled back savepoint.
const CAPTURED: [&str; 2] = [include_str!("fuzz/pgoutput_15_v1.hex"), include_str!("fuzz/pgoutput_15_v2.hex")];
const ITEMS: u32 = 16_384;

fn items() -> CollectionDef {
    CollectionDef {
        id: CollectionId(0),
        name: "items".into(),
        schema: "public".into(),
        table: "items".into(),
        oid: ITEMS,
        partitioned: false,
        key: vec![KeyColumn { name: "id".into(), kind: ColumnType::Int8 }],
        vectors: vec![column(ColumnType::Float4Array)],
        filters: vec![
            FilterColumn { name: "payload".into(), kind: ColumnType::Text },
            FilterColumn { name: "grp".into(), kind: ColumnType::Int4 },
        ],
    }
}

fn column(kind: ColumnType) -> VectorColumn {
    VectorColumn {
        name: "embedding".into(),
        kind,
        metric: Metric::L2,
        dimensions: Some(3),
        m: 4,
        ef_construction: 16,
        encoding: Default::default(),
        index: Default::default(),
        lists: None,
    }
}

/// Messages of every kind by another encoder, in an order that makes sense.
fn encoded() -> Vec<Input> {
    let tuple = || {
        let cells = [
            ColumnData::binary(vec![0, 0, 0, 0, 0, 0, 0, 9]),
            ColumnData::text(b"payload".to_vec()),
            ColumnData::unchanged(),
            ColumnData::null(),
        ];
        TupleData::new(cells.into_iter().collect())
    };
    let relation_id = ITEMS;
    let changes = || {
        vec![
            Theirs::Type { type_id: 17_000, namespace: "public".into(), type_name: "vector".into() },
            Theirs::Insert { relation_id, tuple: tuple() },
            Theirs::Update { relation_id, old_tuple: None, new_tuple: tuple(), key_type: None },
            Theirs::Update { relation_id, old_tuple: Some(tuple()), new_tuple: tuple(), key_type: Some('K') },
            Theirs::Update { relation_id, old_tuple: Some(tuple()), new_tuple: tuple(), key_type: Some('O') },
            Theirs::Delete { relation_id, old_tuple: tuple(), key_type: 'K' },
            Theirs::Truncate { relation_ids: vec![relation_id], flags: 1 },
            Theirs::Message { flags: 0, lsn: 1, prefix: "p".into(), content: b"c".to_vec().into() },
        ]
    };
    let plain = |message: &Theirs| pg_walstream::encode_message_to_bytes(message, 4).to_vec();
    let streamed = |message: Theirs, xid| {
        pg_walstream::encode_streaming_message_to_bytes(&StreamingReplicationMessage::new_streaming(message, xid), 4)
            .to_vec()
    };
    let described = unhex(CAPTURED[0]).into_iter().find(|message| message[0] == b'R').expect("a description");
    let mut one = vec![
        plain(&Theirs::Begin { final_lsn: 1 << 40, timestamp: 2, xid: 3 }),
        plain(&Theirs::Origin { origin_lsn: 1, origin_name: "o".into() }),
        described.clone(),
    ];
    one.extend(changes().iter().map(plain));
    one.push(plain(&Theirs::Commit { flags: 0, commit_lsn: 1 << 40, end_lsn: (1 << 40) + 8, timestamp: 3 }));
    let mut two = vec![plain(&Theirs::StreamStart { xid: 31, first_segment: true })];
    two.push([b"R", &31u32.to_be_bytes()[..], &described[1..]].concat());
    two.extend(changes().into_iter().enumerate().map(|(at, message)| streamed(message, 31 + at as u32 % 3)));
    two.push(plain(&Theirs::StreamStop));
    let (subtransaction_xid, xid) = (32, 31);
    two.push(plain(&Theirs::StreamAbort { xid, subtransaction_xid, abort_lsn: Some(3), abort_timestamp: Some(4) }));
    two.push(plain(&Theirs::StreamCommit { xid, flags: 0, commit_lsn: 1 << 41, end_lsn: (1 << 41) + 8, timestamp: 4 }));
    vec![one, two]
}

/// Two-phase messages: every one is decoded, none is taken.
fn prepared() -> Input {
    let gid = || "gid".into();
    [
        Theirs::BeginPrepare { prepare_lsn: 1, end_lsn: 2, timestamp: 3, xid: 4, gid: gid() },
        Theirs::Prepare { flags: 0, prepare_lsn: 1, end_lsn: 2, timestamp: 3, xid: 4, gid: gid() },
        Theirs::CommitPrepared { flags: 0, commit_lsn: 1, end_lsn: 2, timestamp: 3, xid: 4, gid: gid() },
        Theirs::StreamPrepare { flags: 0, prepare_lsn: 1, end_lsn: 2, timestamp: 3, xid: 4, gid: gid() },
    ]
    .iter()
    .map(|message| pg_walstream::encode_message_to_bytes(message, 4).to_vec())
    .collect()
}

/// Messages one by one.
struct Messages;

impl Target for Messages {
    fn name(&self) -> &'static str {
        "pgoutput messages"
    }
    fn seeds(&self) -> Vec<Input> {
        let mut seeds: Vec<Input> = CAPTURED.map(unhex).into();
        seeds.extend(encoded());
        seeds.push(prepared());
        seeds.into_iter().flatten().map(|message| vec![message]).collect()
    }
    fn read(&mut self, input: &Input) -> bool {
        input.iter().all(|message| {
            let [plain, streamed] = [false, true].map(|in_stream| pgoutput::decode(message, in_stream).is_ok());
            plain || streamed
        })
    }
}

/// A connection's messages through decoder, spool and assembler.
struct Stream {
    dir: tempfile::TempDir,
    refused: String,
}

impl Target for Stream {
    fn name(&self) -> &'static str {
        "pgoutput stream"
    }
    fn seeds(&self) -> Vec<Input> {
        let mut seeds: Vec<Input> = CAPTURED.map(unhex).into();
        seeds.extend(encoded());
        seeds
    }
    fn read(&mut self, input: &Input) -> bool {
        // By its length an input chooses whether it fits in memory.
        let budget = if input.len().is_multiple_of(8) { 256 } else { 1 << 20 };
        let mut spool = Spool::new(self.dir.path(), budget);
        let mut assembler = Assembler::new(&[items()], Lsn(1));
        let mut order = Order::default();
        let mut good = true;
        for message in input {
            let taken: Result<(), ReplicationError> = spool.take(message, &mut |message| {
                assembler.push(message, &mut |record| {
                    order.check(&record);
                    Ok::<_, ReplicationError>(())
                })
            });
            let (memory, _) = spool.sizes();
            assert!(memory <= budget, "{memory} bytes in memory, {budget} allowed");
            if let Err(error) = taken {
                self.refused = error.to_string();
                good = false;
                break;
            }
        }
        good
    }
    fn refused(&self) -> &str {
        &self.refused
    }
}

/// What a log must look like, whatever came: whole transactions, changes numbered from one.
#[derive(Default)]
struct Order {
    open: bool,
    last: u32,
}

impl Order {
    fn check(&mut self, record: &LogRecord) {
        match record {
            LogRecord::Begin(_) => {
                assert!(!self.open, "a transaction inside another one");
                (self.open, self.last) = (true, 0);
            }
            LogRecord::Changes(changes) => {
                assert!(self.open && !changes.is_empty());
                for change in changes {
                    assert_eq!(change.ordinal, self.last + 1);
                    self.last = change.ordinal;
                }
            }
            LogRecord::Commit { .. } => assert!(std::mem::take(&mut self.open), "an end without a beginning"),
            LogRecord::Progress { .. } => assert!(!self.open, "progress inside a transaction"),
            other => panic!("{other:?} in a change log"),
        }
    }
}

/// The outer frames.
struct Frames;

impl Target for Frames {
    fn name(&self) -> &'static str {
        "frames"
    }
    fn seeds(&self) -> Vec<Input> {
        let keepalive = [&b"k"[..], &7u64.to_be_bytes(), &8u64.to_be_bytes(), &[1]].concat();
        let data = |message: &Vec<u8>| [&b"w"[..], &[0; 24], message].concat();
        let mut seeds: Vec<Input> = unhex(CAPTURED[0]).iter().map(|message| vec![data(message)]).collect();
        seeds.push(vec![keepalive]);
        seeds
    }
    fn read(&mut self, input: &Input) -> bool {
        input.iter().all(|frame| Frame::decode(&bytes::Bytes::from(frame.clone())).is_ok())
    }
}

/// Values of every type, in binary and in text. The first two bytes choose.
struct Values;

const KINDS: [ColumnType; 19] = [
    ColumnType::Bool,
    ColumnType::Int2,
    ColumnType::Int4,
    ColumnType::Int8,
    ColumnType::Float4,
    ColumnType::Float8,
    ColumnType::Text,
    ColumnType::Varchar,
    ColumnType::Uuid,
    ColumnType::Date,
    ColumnType::Timestamp,
    ColumnType::Timestamptz,
    ColumnType::Vector,
    ColumnType::Float4Array,
    ColumnType::Float8Array,
    ColumnType::Halfvec,
    ColumnType::Bit,
    ColumnType::Varbit,
    ColumnType::Jsonb,
];

/// A one-dimensional array as `array_send` writes it.
fn array(element: u32, width: u32, count: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = [1, 0, element, count, 1].iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
    for _ in 0..count {
        bytes.extend(width.to_be_bytes());
        bytes.extend(&1.5f64.to_be_bytes()[..width as usize]);
    }
    bytes
}

impl Target for Values {
    fn name(&self) -> &'static str {
        "values"
    }
    fn seeds(&self) -> Vec<Input> {
        let texts = [
            "t",
            "-32768",
            "2147483647",
            "-9223372036854775808",
            "1.5e-30",
            "NaN",
            "text",
            "é\u{1F600}",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "4714-11-24 BC",
            "294276-12-31 23:59:59.999999",
            "2024-02-29 12:00:00.5+05:30",
            "[1,2.5,-3e10]",
            "{1,2.5,-3e10}",
            "[0:2]={1,\"2.5\",Infinity}",
            "[1,0.1,-65504]",
            "010110111",
            "xF0",
            "[1, 2.5, -3e10]",
        ];
        let mut seeds: Vec<Input> = Vec::new();
        for (kind, text) in texts.iter().enumerate() {
            seeds.push(vec![[&[kind as u8, 1], text.as_bytes()].concat()]);
        }
        let pgvector = [&[0, 2, 0, 0][..], &1f32.to_be_bytes(), &2f32.to_be_bytes()].concat();
        let widths = [1, 2, 4, 8, 4, 8, 5, 5, 16, 4, 8, 8];
        let mut binaries: Vec<Vec<u8>> = widths.iter().map(|&width| vec![0x31; width]).collect();
        binaries[0] = vec![1];
        binaries.extend([pgvector, array(700, 4, 3), array(701, 8, 3)]);
        binaries.push(vec![0, 2, 0, 0, 0x3c, 0, 0xfb, 0xff]);
        binaries.extend([vec![0, 0, 0, 9, 0xa5, 0x80], vec![0, 0, 0, 1, 0x80]]);
        binaries.push(b"\x01[1, 2.5]".to_vec());
        for (kind, bytes) in binaries.iter().enumerate() {
            seeds.push(vec![[&[kind as u8, 0], &bytes[..]].concat()]);
        }
        seeds
    }
    fn read(&mut self, input: &Input) -> bool {
        input.iter().all(|piece| {
            let [kind, form, bytes @ ..] = &piece[..] else { return false };
            let kind = KINDS[usize::from(*kind) % KINDS.len()];
            let cell = match form % 2 {
                0 => pgtype::decode_binary(kind, bytes),
                _ => pgtype::decode_text(kind, bytes),
            };
            // What was understood can be said again and is then understood as the same.
            if let Cell::Value(value) = &cell {
                let again = pgtype::parse_literal(kind, &pgtype::to_text_as(kind, value));
                assert_eq!(format!("{again:?}"), format!("{:?}", Ok::<_, String>(value)), "{kind}");
            }
            !matches!(cell, Cell::Invalid(_))
        })
    }
}

/// The chunks of a binary copy.
struct Copies;

impl Target for Copies {
    fn name(&self) -> &'static str {
        "copy rows"
    }
    fn seeds(&self) -> Vec<Input> {
        let mut bytes = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
        for id in 0..4u64 {
            bytes.extend(3u16.to_be_bytes());
            for field in [&id.to_be_bytes()[..], b"payload", &array(700, 4, 3)] {
                bytes.extend((field.len() as u32).to_be_bytes());
                bytes.extend(field);
            }
        }
        bytes.extend([0xff, 0xff]);
        let split = |size: usize| bytes.chunks(size).map(<[u8]>::to_vec).collect();
        vec![split(bytes.len()), split(7), split(40), split(1)]
    }
    fn read(&mut self, input: &Input) -> bool {
        let mut rows = CopyRows::new(3);
        let mut seen = 0;
        for chunk in input {
            let fed = rows.feed::<CopyError>(chunk, &mut |fields| {
                assert_eq!(fields.len(), 3);
                for (field, kind) in fields.iter().zip([ColumnType::Int8, ColumnType::Text, ColumnType::Float4Array]) {
                    let _ = field.map(|bytes| pgtype::decode_binary(kind, bytes));
                }
                seen += 1;
                Ok(())
            });
            if fed.is_err() {
                return false;
            }
        }
        assert_eq!(rows.rows(), seen);
        rows.finish().is_ok()
    }
}

// What we write ourselves, and a disk may change.

fn row(number: i64) -> RowImage {
    RowImage {
        key: RowKey::encode(&[Value::Int(number), Value::Text("a\0é".into())]).expect("a key"),
        vectors: vec![Cell::Value(Value::Vector(vec![number as f32, 0.5, -1.0].into())), Cell::Unchanged],
        filters: vec![
            Cell::Null,
            Cell::Invalid("why".into()),
            Cell::Value(Value::Bool(true)),
            Cell::Value(Value::Float(1.5)),
            Cell::Value(Value::Uuid([9; 16])),
            Cell::Value(Value::Date(-3)),
            Cell::Value(Value::Timestamp(i64::MAX)),
        ],
    }
}

fn transaction(number: u64) -> Vec<LogRecord> {
    let change = |ordinal, op| Change { collection: CollectionId(3), ordinal, op };
    let key = || row(5).key;
    vec![
        LogRecord::Begin(TransactionHead { commit: CommitLsn(number * 10), commit_time: -1 }),
        LogRecord::Changes(vec![
            change(1, Op::Upsert { old_key: None, row: row(1) }),
            change(2, Op::Upsert { old_key: Some(key()), row: row(2) }),
            change(3, Op::Delete { key: key() }),
            change(4, Op::Truncate),
            change(5, Op::Drift { reason: "gone".into() }),
        ]),
        LogRecord::Commit { end: Lsn(number * 10 + 8) },
        LogRecord::Progress { upto: Lsn(number * 10 + 9) },
    ]
}

fn bytes_of(record: &LogRecord) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_record(&mut bytes, record);
    bytes
}

/// Bodies of log records.
struct Records;

impl Target for Records {
    fn name(&self) -> &'static str {
        "log records"
    }
    fn seeds(&self) -> Vec<Input> {
        let mut records = transaction(1);
        records.extend([LogRecord::Copied(vec![row(1), row(2)]), LogRecord::CopyEnd { at: Lsn(7), rows: 2 }]);
        records.iter().map(|record| vec![bytes_of(record)]).collect()
    }
    fn read(&mut self, input: &Input) -> bool {
        input.iter().all(|body| match get_record(body) {
            Ok(record) => {
                // NaN is not equal to itself: compare what people would read.
                let again = get_record(&bytes_of(&record)).expect("what was written can be read");
                assert_eq!(format!("{again:?}"), format!("{record:?}"));
                true
            }
            Err(_) => false,
        })
    }
}

/// A directory that costs no disk where there is such a thing.
fn scratch() -> tempfile::TempDir {
    let shared = PathBuf::from("/dev/shm");
    let dir = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
    dir.expect("a directory")
}

/// The files of a change log.
struct LogFiles {
    dir: tempfile::TempDir,
}

const LOG_HEADER: usize = 32;

impl Target for LogFiles {
    fn name(&self) -> &'static str {
        "log files"
    }
    fn seeds(&self) -> Vec<Input> {
        let dir = scratch();
        let mut log = ChangeLog::create(dir.path(), Lsn(0)).expect("a log");
        (1..=4).flat_map(transaction).for_each(|record| log.append(&record).expect("append"));
        log.sync().expect("sync");
        let file = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read(entry.expect("an entry").path());
        std::fs::read_dir(dir.path()).expect("a directory").map(|entry| vec![file(entry).expect("a file")]).collect()
    }
    fn seal(&self, input: &mut Input) {
        for file in input {
            let mut at = LOG_HEADER;
            while let Some(head) = file.get(at..at + 8) {
                let length = u32::from_le_bytes(head[..4].try_into().expect("four bytes")) as usize;
                let Some(body) = file.get(at + 8..).and_then(|rest| rest.get(..length)) else { break };
                let crc = crc32fast::hash(body);
                file[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
                at += 8 + length;
            }
        }
    }
    fn read(&mut self, input: &Input) -> bool {
        let Some(file) = input.first() else { return false };
        std::fs::write(self.dir.path().join("0000000000000001.log"), file).expect("write");
        let Ok(log) = ChangeLog::open(self.dir.path()) else { return false };
        let mut reader = log.reader(changelog::start_of(self.dir.path()).expect("a start"));
        // Whatever was opened can be read to its end: nothing behind the last boundary is shown.
        let (mut last, mut any) = (None, false);
        while let Some(record) = reader.next_record().expect("what was opened can be read") {
            any = true;
            last = Some(record);
        }
        assert!(!matches!(last, Some(LogRecord::Begin(_) | LogRecord::Changes(_))), "it ends inside a transaction");
        any
    }
    fn at_least(&self) -> usize {
        // Its buffers.
        4 << 20
    }
}

/// Files of sealed segments, and walks through what they gave.
struct Segments {
    dir: tempfile::TempDir,
    originals: Arc<Originals>,
}

/// Enough for codes.
const ROWS: u32 = 1_200;

fn vector(node: u32) -> Vec<f32> {
    // Every tenth repeats another one: the graph chains those.
    let node = if node.is_multiple_of(10) { 5 } else { node };
    vec![(node % 7) as f32, (node % 13) as f32, (node % 120) as f32 + (node / 120) as f32 * 0.01]
}

impl Segments {
    fn new() -> Segments {
        let dir = scratch();
        let mut originals = Originals::open(&dir.path().join("o.f32"), 3, Element::F32, 0).expect("originals");
        (0..ROWS).for_each(|node| assert_eq!(originals.push(&vector(node)).expect("push"), node));
        originals.flush().expect("flush");
        Segments { dir, originals: Arc::new(originals) }
    }
}

impl Target for Segments {
    fn name(&self) -> &'static str {
        "segment files"
    }
    fn seeds(&self) -> Vec<Input> {
        let path = self.dir.path().join("seed.graph");
        let segments = [0..ROWS, 0..120, 3..60, 7..8].map(|nodes| {
            let vector = |node| Ok(vector(node));
            let segment = Segment::of_nodes(9, &column(ColumnType::Vector), 3, nodes.collect(), vector).expect("made");
            while segment.graph.link_next(64) > 0 {}
            segment.save(&path).expect("saved");
            vec![std::fs::read(&path).expect("a file")]
        });
        segments.into()
    }
    fn seal(&self, input: &mut Input) {
        for file in input.iter_mut().filter(|file| file.len() > 16) {
            let mut sum = crc32fast::Hasher::new();
            sum.update(&file[..12]);
            sum.update(&file[16..]);
            let crc = sum.finalize();
            file[12..16].copy_from_slice(&crc.to_le_bytes());
        }
    }
    fn read(&mut self, input: &Input) -> bool {
        let Some(file) = input.first() else { return false };
        let path = self.dir.path().join("f.graph");
        std::fs::write(&path, file).expect("write");
        let keeping = ruvector::engine::tiers::Keeping::plain(Default::default());
        let Ok(segment) = Segment::open(&path, 9, &column(ColumnType::Vector), (3, keeping), &self.originals, ROWS)
        else {
            return false;
        };
        let query = segment.graph.prepare(&[3.0, 4.0, 50.0]);
        let mut walk = segment.graph.walk(&query, 16);
        let mut found = Vec::new();
        while !walk.is_dry() {
            // Of nodes that there are not no vector can be read.
            let Ok(()) = walk.next_page(10, &mut |slot| !slot.is_multiple_of(5), &mut found) else { return false };
            assert!(found.len() <= segment.graph.len() as usize, "a row is found twice");
        }
        found.iter().for_each(|(_, slot)| assert!(segment.node(*slot) < ROWS));
        true
    }
}

/// What an SQL client says: the type of a message, then its body.
struct Frontend;

impl Target for Frontend {
    fn name(&self) -> &'static str {
        "sql messages"
    }
    fn seeds(&self) -> Vec<Input> {
        let bodies: [(u8, &[u8]); 7] = [
            (b'Q', b"SELECT 1\0"),
            (b'P', b"s\0SELECT $1\0\0\x02\0\0\0\x17\0\0\0\0"),
            (b'B', b"p\0s\0\0\x01\0\x01\0\x02\xff\xff\xff\xff\0\0\0\x02ab\0\x01\0\x01"),
            (b'D', b"Ss\0"),
            (b'E', b"p\0\0\0\0\x05"),
            (b'C', b"Pp\0"),
            (b'S', b""),
        ];
        let one = |(tag, body): &(u8, &[u8])| [&[*tag], *body].concat();
        vec![bodies.iter().map(one).collect(), bodies.iter().rev().map(one).collect()]
    }
    fn read(&mut self, input: &Input) -> bool {
        input.iter().all(|piece| {
            let Some((tag, body)) = piece.split_first() else { return false };
            wire::decode(*tag, bytes::Bytes::copy_from_slice(body)).is_ok()
        })
    }
}

/// Statements as text.
struct Statements;

impl Target for Statements {
    fn name(&self) -> &'static str {
        "sql statements"
    }
    fn seeds(&self) -> Vec<Input> {
        let texts = [
            "DECLARE c1 CURSOR FOR\nSELECT id, distance FROM ruvector.search WHERE ((query = $1::real[])) AND ((k = 10))",
            "SELECT id FROM t WHERE a IN (1, 2) ORDER BY (e OPERATOR(public.<->) '[1,2]') ASC NULLS LAST LIMIT 10::bigint",
            "ROLLBACK TO SAVEPOINT s2; RELEASE SAVEPOINT s2",
            "MOVE BACKWARD ALL IN c1",
            "EXPLAIN SELECT 1 - (e <+> ARRAY[1, -2.5]) FROM \"a b\".c AS d FOR UPDATE",
            "SET LOCAL a.b = 'x'; SHOW a.b; RESET ALL; FETCH FORWARD 3 FROM \"c\"",
        ];
        texts.iter().map(|text| vec![text.as_bytes().to_vec()]).collect()
    }
    fn read(&mut self, input: &Input) -> bool {
        // The parser is built without optimisation here: long texts would leave no time for many.
        let cut = |piece: &'_ Vec<u8>| piece.iter().take(1_000).copied().collect::<Vec<_>>();
        input.iter().all(|piece| String::from_utf8(cut(piece)).is_ok_and(|text| statement::parse(&text).is_ok()))
    }
    /// A token is larger than its text, and so is a node of the tree.
    fn at_least(&self) -> usize {
        128 << 20
    }
}

#[test]
fn whatever_comes_is_a_value_or_an_error() {
    std::thread::spawn(watch);
    let mut soak = Soak::new("fuzz", 1);
    let only = std::env::var("RUVECTOR_FUZZ_TARGET").ok();
    let mut totals: Vec<(&'static str, u64, u64)> = Vec::new();
    while let Some(seed) = soak.next_round() {
        let targets: [Box<dyn Target>; 10] = [
            Box::new(Frames),
            Box::new(Messages),
            Box::new(Stream { dir: scratch(), refused: String::new() }),
            Box::new(Values),
            Box::new(Copies),
            Box::new(Records),
            Box::new(LogFiles { dir: scratch() }),
            Box::new(Segments::new()),
            Box::new(Frontend),
            Box::new(Statements),
        ];
        for mut target in targets {
            let name = target.name();
            if only.as_ref().is_some_and(|only| only != name) {
                continue;
            }
            soak.run(seed, name, || {
                let (executions, valid) = fuzz(&mut *target, seed, SHORT);
                match totals.iter_mut().find(|(known, ..)| *known == name) {
                    Some((_, all, good)) => (*all, *good) = (*all + executions, *good + valid),
                    None => totals.push((name, executions, valid)),
                }
            });
        }
    }
    OVER.store(true, Ordering::Relaxed);
    for (name, executions, valid) in totals {
        println!("{name}: {executions} inputs, {valid} of them valid");
        assert!(executions > 100, "{name}: {executions} inputs are too few to say anything");
        assert!(valid > executions / 1_000, "{name}: {valid} of {executions} inputs got beyond what guards the door");
        soak.fact(name, executions);
    }
    soak.finish();
}
