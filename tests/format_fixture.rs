//! A data directory that was written once and is opened ever after: whoever changes a format finds out here.
//!
//! A new format number gets a fixture of its own: `RUVECTOR_WRITE_FIXTURE=1 cargo test --test format_fixture` writes
//! `tests/fixtures/format-N`, N being the newest format in it. That of an earlier format stays as long as it can be opened.

mod epoch;

use epoch::{Epoch, Failure};
use ruvector::engine::Options;
use ruvector::model::{
    Cell, Change, CollectionDef, CollectionId, ColumnType, CommitLsn, FilterColumn, KeyColumn, LogRecord, Lsn, Metric,
    Op, RowImage, RowKey, TransactionHead, Value, VectorColumn,
};
use ruvector::storage::StorageError;
use ruvector::storage::changelog::ChangeLog;
use ruvector::storage::data_dir::{DataDir, EpochId, Pending};
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};

/// The format of the fixture.
/// The newest of the numbers in the files' headers: that of the originals.
const NEWEST: u32 = 3;
/// Directories of the formats that can be opened; the last one is written anew.
const FIXTURES: [u32; 2] = [2, NEWEST];
const COPIED_AT: Lsn = Lsn(1_000);
const BLOCK: usize = 4096;

fn options() -> Options {
    Options { segment_rows: 16, build_threads: 1, seal_rows_on_stop: 1, ..Options::default() }
}

fn definition() -> CollectionDef {
    let vector = |name: &str, metric, dimensions| VectorColumn {
        name: name.into(),
        kind: ColumnType::Vector,
        metric,
        dimensions,
        m: 4,
        ef_construction: 16,
        encoding: Default::default(),
        index: Default::default(),
        lists: None,
    };
    let filter = |name: &str, kind| FilterColumn { name: name.into(), kind };
    CollectionDef {
        id: CollectionId(0),
        name: "docs".into(),
        schema: "public".into(),
        table: "docs".into(),
        oid: 100,
        partitioned: false,
        key: vec![
            KeyColumn { name: "id".into(), kind: ColumnType::Int8 },
            KeyColumn { name: "lang".into(), kind: ColumnType::Text },
        ],
        vectors: vec![vector("body", Metric::L2, Some(4)), vector("title", Metric::Cosine, None)],
        filters: vec![
            filter("flag", ColumnType::Bool),
            filter("count", ColumnType::Int4),
            filter("price", ColumnType::Float8),
            filter("tag", ColumnType::Text),
            filter("owner", ColumnType::Uuid),
            filter("day", ColumnType::Date),
            filter("at", ColumnType::Timestamp),
        ],
    }
}

fn key(n: i64) -> RowKey {
    RowKey::encode(&[Value::Int(n), Value::Text("é\0".into())]).expect("a key")
}

fn vector(n: i64, dimensions: usize) -> Cell {
    let elements: Vec<f32> = (0..dimensions).map(|d| (n * 7 + d as i64 * 3) as f32 / 16.0 - 4.0).collect();
    Cell::Value(Value::Vector(elements.into()))
}

fn row(n: i64) -> RowImage {
    let filters = vec![
        Value::Bool(n % 2 == 0),
        Value::Int(n),
        Value::Float(n as f64 / 3.0),
        Value::Text(format!("tag {n}").into()),
        Value::Uuid([n as u8; 16]),
        Value::Date(n as i32 - 20),
        Value::Timestamp(n * 1_000_000_007),
    ];
    let mut filters: Vec<Cell> = filters.into_iter().map(Cell::Value).collect();
    filters[n as usize % 7] = Cell::Null;
    // One has no title, one a body of another length.
    let title = if n % 10 == 3 { Cell::Null } else { vector(n, 3) };
    let body = if n % 20 == 5 { vector(n, 2) } else { vector(n, 4) };
    RowImage { key: key(n), vectors: vec![body, title], filters }
}

/// Every kind of change, in a transaction that ends at `end`.
fn transaction(commit: u64, end: u64, first: i64) -> Vec<LogRecord> {
    let unchanged = RowImage { vectors: vec![Cell::Unchanged; 2], ..row(first + 1) };
    let ops = [
        Op::Upsert { old_key: None, row: row(first) },
        Op::Upsert { old_key: None, row: row(first + 1) },
        Op::Upsert { old_key: None, row: unchanged },
        Op::Upsert { old_key: Some(key(first)), row: RowImage { key: key(first + 500), ..row(first + 2) } },
        Op::Delete { key: key(first - 40) },
    ];
    let change = |(at, op)| Change { collection: CollectionId(0), ordinal: at as u32 + 1, op };
    vec![
        LogRecord::Begin(TransactionHead { commit: CommitLsn(commit), commit_time: 77 }),
        LogRecord::Changes(ops.into_iter().enumerate().map(change).collect()),
        LogRecord::Commit { end: Lsn(end) },
    ]
}

/// Makes a data directory with sealed segments, dead letters, more than one log file, and a transaction that is in the
/// log alone.
fn write(root: &Path) {
    let data = DataDir::open(root).expect("a new data directory");
    let id = EpochId(1);
    data.set_pending(Some(&Pending { epoch: id, slot: "s".into(), old_slot: None })).expect("written");
    let dir = data.prepare_epoch(id).expect("made");
    let mut epoch = Epoch::create(&dir, vec![(definition(), (0..40).map(row).collect())], COPIED_AT, options());
    data.make_current(id, "s").expect("written");
    let mut log = epoch.log.take().expect("new");
    log.set_roll_bytes(1_500);
    for n in 0..6 {
        let end = 2_010 + 10 * n;
        transaction(end - 5, end, 40 + 2 * n as i64).iter().for_each(|record| log.append(record).expect("append"));
        log.append(&LogRecord::Progress { upto: Lsn(end + 2) }).expect("append");
        log.sync().expect("sync");
    }
    let position = log.durable();
    epoch.wait(position);
    epoch.wait_until_linked();
    epoch.engine.stop();
    drop((epoch, log));
    let mut log = ChangeLog::open(&dir.join("log")).expect("opens");
    transaction(3_000, 3_010, 90).iter().for_each(|record| log.append(record).expect("append"));
    log.sync().expect("sync");
}

/// Everything that can be read from the epoch in a data directory, for people and for comparison.
fn read(root: &Path) -> Result<Json, Failure> {
    let data = DataDir::open(root)?;
    assert_eq!(data.pending()?.map(|pending| pending.slot).as_deref(), Some("s"));
    let current = data.current()?.expect("an epoch");
    let epoch = Epoch::try_open(&data.epoch_dir(current.epoch), options())?;
    let durable = epoch.durable();
    epoch.try_wait_until("all is applied", |epoch| epoch.engine.view().applied >= durable)?;
    let mut rows = Vec::new();
    epoch.engine.each_row(CollectionId(0), |key, vectors, row| {
        let vectors: Vec<_> = vectors.iter().map(|vector| vector.as_ref().and_then(|vector| vector.dense())).collect();
        rows.push(format!("{key} {:?} {vectors:?} {:?} {}", row.version, row.filters, row.dead));
    })?;
    let letters = epoch.engine.dead_letters(CollectionId(0), 100)?;
    let view = epoch.engine.view();
    let docs = &view.collections["docs"];
    Ok(json!({
        "current": { "epoch": current.epoch, "slot": current.slot },
        "identity": epoch.state.identity()?,
        "durable": durable,
        "applied": view.applied,
        "commit_time": view.commit_time,
        "collection": *docs.def,
        "state": docs.state,
        "dead_letters": letters,
        "vectors": docs.indexes.iter().map(|index| index.live).collect::<Vec<_>>(),
        "rows": rows,
    }))
}

fn fixture(number: u32) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-{number}"))
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path());
    let below = |path: PathBuf| if path.is_dir() { files_below(&path) } else { vec![path] };
    let mut files: Vec<_> = entries.flat_map(below).collect();
    files.sort();
    files
}

/// A file without its empty blocks, of which a database has many: its length, then the others with their numbers.
fn pack(bytes: &[u8]) -> Vec<u8> {
    let mut packed = (bytes.len() as u64).to_le_bytes().to_vec();
    for (number, block) in bytes.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0)) {
        packed.extend((number as u64).to_le_bytes());
        packed.extend(block);
    }
    packed
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut bytes = vec![0; number(packed)];
    for block in packed[8..].chunks(8 + BLOCK) {
        bytes[number(block) * BLOCK..][..block.len() - 8].copy_from_slice(&block[8..]);
    }
    bytes
}

fn save() {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path());
    let _ = std::fs::remove_dir_all(fixture(NEWEST));
    for file in files_below(dir.path()) {
        let to = fixture(NEWEST).join("data").join(file.strip_prefix(dir.path()).expect("below"));
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        std::fs::write(to, pack(&std::fs::read(&file).expect("a file"))).expect("written");
    }
    let found = read(dir.path()).expect("what was just written");
    let text = serde_json::to_string_pretty(&found).expect("plain data");
    std::fs::write(fixture(NEWEST).join("expected.json"), text + "\n").expect("written");
}

/// A copy to work on.
fn load(number: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let data = fixture(number).join("data");
    for file in files_below(&data) {
        let to = dir.path().join(file.strip_prefix(&data).expect("below"));
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        std::fs::write(to, unpack(&std::fs::read(&file).expect("a file"))).expect("written");
    }
    dir
}

#[test]
fn what_was_written_once_is_read_as_it_was() {
    // Codes for its few rows too.
    // SAFETY: nothing reads the environment by other means than Rust's.
    unsafe { std::env::set_var("RUVECTOR_TEST_TRAIN_ROWS", "16") };
    if std::env::var_os("RUVECTOR_WRITE_FIXTURE").is_some() {
        save();
    }
    for number in FIXTURES {
        let expected = std::fs::read_to_string(fixture(number).join("expected.json")).expect("the fixture");
        let expected: Json = serde_json::from_str(&expected).expect("JSON");
        let found = read(load(number).path()).expect("the fixture opens");
        for (name, value) in expected.as_object().expect("an object") {
            assert_eq!(found[name], *value, "{name}");
        }
        assert_eq!(found["rows"].as_array().map(Vec::len), Some(48));
        assert!(found["dead_letters"].as_array().is_some_and(|letters| letters.len() > 1));
        // The other way round: today's code writes the same content.
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path());
        assert_eq!(read(dir.path()).expect("what was just written"), found);
    }
}

/// Links are derived, from vectors that are here: nothing is copied for them.
#[test]
fn segments_of_an_older_format_are_linked_again() {
    let dir = load(NEWEST);
    for file in files_below(&dir.path().join("epoch-1/vectors")) {
        if file.extension().is_some_and(|kind| kind == "graph") {
            with_format(&file, 2, |bytes| bytes.len());
        }
    }
    assert_eq!(read(dir.path()).expect("opens"), read(load(NEWEST).path()).expect("opens"));
}

/// Puts another format's number into a file whose checksum covers so many bytes.
fn with_format(file: &Path, format: u32, header: impl Fn(&[u8]) -> usize) {
    let mut bytes = std::fs::read(file).expect("readable");
    bytes[8..12].copy_from_slice(&format.to_le_bytes());
    let mut sum = crc32fast::Hasher::new();
    sum.update(&bytes[..12]);
    sum.update(&bytes[16..header(&bytes)]);
    bytes[12..16].copy_from_slice(&sum.finalize().to_le_bytes());
    std::fs::write(file, bytes).expect("writable");
}

/// What an older version wrote is derived anew; what a newer one wrote is refused and kept.
#[test]
fn other_formats_are_told_with_what_to_do() {
    for (kind, extension) in [("log", "log"), ("vectors", "f32"), ("vectors", "graph")] {
        for (format, copied_again) in [(1, true), (NEWEST + 1, false)] {
            if extension == "graph" && copied_again {
                continue;
            }
            let dir = load(NEWEST);
            let files = files_below(&dir.path().join("epoch-1").join(kind));
            let file = files.iter().rfind(|file| file.extension().is_some_and(|found| found == extension));
            let file = file.expect("one of each kind");
            with_format(file, format, |bytes| match extension {
                "log" => 32,
                "f32" => 64,
                _ => bytes.len(),
            });
            let Err(Failure::Storage(error)) = read(dir.path()) else { panic!("{extension} of format {format} opens") };
            assert!(matches!(error, StorageError::Format { found, .. } if found == format), "{error}");
            assert_eq!(error.is_damage(), copied_again, "{error}");
            let remedy = if copied_again { "everything is copied again" } else { "start the version that wrote it" };
            assert!(error.to_string().contains(remedy), "{error}");
        }
    }
}

/// Before format 2 the small files were JSON alone. The slot in them is what an old copy is replaced by.
#[test]
fn the_slot_of_format_1_is_known() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("CURRENT"), r#"{"epoch":3,"slot":"old"}"#).expect("writable");
    let current = DataDir::open(dir.path()).expect("opens").current().expect("readable").expect("there");
    assert_eq!((current.epoch, &*current.slot), (EpochId(3), "old"));
}
