//! The durable change log: ordered, replayable, checksummed files. The only thing the two halves of the service share;
//! only its durable position is ever confirmed to Postgres.

use crate::model::{LogRecord, Lsn};
use crate::storage::files::{self, Handle, Mode};
use crate::storage::header::{self, Kind};
use crate::storage::record::{get_record, put_record};
use crate::storage::{IoContext, Result, damaged};
use parking_lot::{Condvar, Mutex};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const KIND: Kind = Kind { magic: b"RVLOG\0\0\0", format: 2, name: "log file" };
/// head 16, file number 8, base LSN 8.
const HEADER: u64 = 32;
/// length 4, CRC-32 of the body 4.
const RECORD_HEAD: usize = 8;
/// A longer record is damage; the writer chunks far below it.
const MAX_RECORD: usize = 1 << 30;
/// A file is closed at the first boundary past this size.
const ROLL_BYTES: u64 = 64 << 20;
const WRITE_BUFFER: usize = 1 << 20;

/// A place between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
pub struct LogPosition {
    /// Number of the file, from 1.
    pub file: u64,
    /// Byte in it.
    pub offset: u64,
}

/// Where every log starts.
pub const START: LogPosition = LogPosition { file: 1, offset: HEADER };

/// How far the log is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Durable {
    /// Everything that ended at or before it is in the log.
    pub lsn: Lsn,
    /// Where the durable records end.
    pub position: LogPosition,
}

/// The durable end of the log, shared by its writer, its readers and whoever confirms to Postgres.
#[derive(Debug, Default)]
pub struct LogTail {
    durable: Mutex<Durable>,
    moved: Condvar,
    behind: AtomicBool,
}

impl LogTail {
    /// How far the log is durable now.
    pub fn durable(&self) -> Durable {
        *self.durable.lock()
    }

    fn set(&self, durable: Durable) {
        *self.durable.lock() = durable;
        self.moved.notify_all();
    }

    /// Is much more waiting at the source than is here? Then what need not be done now is better done later.
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    /// Says so.
    pub fn set_behind(&self, behind: bool) {
        self.behind.store(behind, Ordering::Relaxed);
    }

    /// Waits until the durable end is past `position`, at most `timeout`; false when the time is over.
    pub fn wait_past(&self, position: LogPosition, timeout: Duration) -> bool {
        let mut durable = self.durable.lock();
        self.moved.wait_while_for(&mut durable, |durable| durable.position <= position, timeout);
        durable.position > position
    }
}

/// The writing end. One per log.
pub struct ChangeLog {
    dir: PathBuf,
    file: Handle,
    path: PathBuf,
    /// End of what was handed to the operating system.
    written: LogPosition,
    buffer: Vec<u8>,
    /// Position and LSN of the last record that ends a transaction or reports progress.
    boundary: Durable,
    tail: Arc<LogTail>,
    roll_bytes: u64,
    poisoned: bool,
}

impl ChangeLog {
    /// Starts a new log in an empty directory; everything up to `base` is known to be elsewhere.
    pub fn create(dir: &Path, base: Lsn) -> Result<ChangeLog> {
        files::create_dir(dir)?;
        let (file, path) = create_file(dir, 1, base)?;
        Ok(ChangeLog::at(dir, file, path, Durable { lsn: base, position: START }))
    }

    /// Opens a log after any kind of end. What follows the last boundary is cut off: it was never confirmed, so the
    /// source sends it again.
    pub fn open(dir: &Path) -> Result<ChangeLog> {
        let number = *file_numbers(dir)?.last().ok_or_else(|| damaged(dir, "has no log files"))?;
        let path = file_path(dir, number);
        let (base, boundary) = scan(&path, number)?;
        crate::failpoint!("changelog.scanned");
        let durable = boundary.unwrap_or(Durable { lsn: base, position: LogPosition { file: number, offset: HEADER } });
        let file = files::open(&path, Mode::Write)?;
        file.set_length(durable.position.offset).context("cut the tail of", &path)?;
        write_again(&file, durable.position.offset).and_then(|()| file.sync()).context("write again", &path)?;
        crate::failpoint!("changelog.tail_cut");
        // An earlier process may have ended between giving the file its name and making that durable.
        files::sync_dir(dir)?;
        Ok(ChangeLog::at(dir, file, path, durable))
    }

    fn at(dir: &Path, file: Handle, path: PathBuf, durable: Durable) -> ChangeLog {
        let tail = Arc::new(LogTail::default());
        tail.set(durable);
        ChangeLog {
            dir: dir.to_owned(),
            file,
            path,
            written: durable.position,
            buffer: Vec::with_capacity(WRITE_BUFFER * 2),
            boundary: durable,
            tail,
            poisoned: false,
            roll_bytes: crate::failpoint::size("ROLL_BYTES", ROLL_BYTES),
        }
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Begins a new file at the first boundary past so many bytes.
    pub fn set_roll_bytes(&mut self, bytes: u64) {
        self.roll_bytes = bytes;
    }

    /// The shared durable end.
    pub fn tail(&self) -> Arc<LogTail> {
        self.tail.clone()
    }

    /// Everything that ended at or before it is durable.
    pub fn durable(&self) -> Lsn {
        self.tail.durable().lsn
    }

    /// Adds a record; durable only after [`ChangeLog::sync`].
    pub fn append(&mut self, record: &LogRecord) -> Result<()> {
        self.refuse_if_poisoned()?;
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; RECORD_HEAD]);
        put_record(&mut self.buffer, record);
        let body = start + RECORD_HEAD;
        let crc = crc32fast::hash(&self.buffer[body..]);
        let length = (self.buffer.len() - body) as u32;
        self.buffer[start..start + 4].copy_from_slice(&length.to_le_bytes());
        self.buffer[start + 4..body].copy_from_slice(&crc.to_le_bytes());
        if let Some(lsn) = boundary_of(record) {
            let offset = self.written.offset + self.buffer.len() as u64;
            let lsn = lsn.max(self.boundary.lsn);
            self.boundary = Durable { lsn, position: LogPosition { file: self.written.file, offset } };
        }
        crate::failpoint!("changelog.appended");
        if self.buffer.len() >= WRITE_BUFFER { self.flush() } else { Ok(()) }
    }

    /// Makes everything appended durable and shows it to readers up to the last boundary.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        crate::failpoint!("changelog.before_sync");
        let synced = self.file.sync().context("sync", &self.path);
        self.poison_on_error(synced)?;
        crate::failpoint!("changelog.synced");
        self.tail.set(self.boundary);
        crate::failpoint!("changelog.shown");
        let at_boundary = self.boundary.position == self.written;
        if at_boundary && self.written.offset >= self.roll_bytes {
            // A new file that is half made would be taken for the last one: nothing may come after it in this one.
            let rolled = self.roll();
            self.poison_on_error(rolled)?;
        }
        Ok(())
    }

    /// Takes back what was appended behind the durable end: half a transaction whose connection broke. The source sends it
    /// again from its beginning.
    pub fn cut_to_durable(&mut self) -> Result<()> {
        self.refuse_if_poisoned()?;
        self.boundary = self.tail.durable();
        self.written = self.boundary.position;
        self.buffer.clear();
        crate::failpoint!("changelog.before_cut");
        let cut = self.file.set_length(self.written.offset).context("cut the tail of", &self.path);
        crate::failpoint!("changelog.cut");
        self.poison_on_error(cut)
    }

    fn flush(&mut self) -> Result<()> {
        self.refuse_if_poisoned()?;
        crate::failpoint!("changelog.before_write");
        let written = self.file.write_at(&self.buffer, self.written.offset).context("write", &self.path);
        self.poison_on_error(written)?;
        crate::failpoint!("changelog.written");
        self.written.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// After a failed write or sync nobody knows what is on disk (the kernel drops the dirty pages): only reopening
    /// may find out.
    fn poison_on_error(&mut self, result: Result<()>) -> Result<()> {
        self.poisoned |= result.is_err();
        result
    }

    fn refuse_if_poisoned(&self) -> Result<()> {
        if self.poisoned {
            Err(damaged(&self.path, "an earlier write failed; the log must be reopened"))
        } else {
            Ok(())
        }
    }

    fn roll(&mut self) -> Result<()> {
        crate::failpoint!("changelog.before_roll");
        let number = self.written.file + 1;
        (self.file, self.path) = create_file(&self.dir, number, self.boundary.lsn)?;
        self.written = LogPosition { file: number, offset: HEADER };
        self.boundary.position = self.written;
        self.tail.set(self.boundary);
        crate::failpoint!("changelog.rolled");
        Ok(())
    }

    /// A reader from this position on.
    pub fn reader(&self, from: LogPosition) -> LogReader {
        LogReader::new(&self.dir, self.tail.clone(), from)
    }
}

/// Removes the files that lie wholly before `position`. Returns how many.
pub fn remove_before(dir: &Path, position: LogPosition) -> Result<usize> {
    let old: Vec<_> = file_numbers(dir)?.into_iter().filter(|&number| number < position.file).collect();
    for &number in &old {
        crate::failpoint!("changelog.before_remove");
        files::remove(&file_path(dir, number))?;
        crate::failpoint!("changelog.one_removed");
    }
    Ok(old.len())
}

/// The files from a position on, in order, with their numbers.
pub fn files_from(dir: &Path, position: LogPosition) -> Result<Vec<(u64, PathBuf)>> {
    let numbers = file_numbers(dir)?.into_iter().filter(|&number| number >= position.file);
    Ok(numbers.map(|number| (number, file_path(dir, number))).collect())
}

/// Where a log starts.
pub fn start_of(dir: &Path) -> Result<LogPosition> {
    let number = *file_numbers(dir)?.first().ok_or_else(|| damaged(dir, "has no log files"))?;
    Ok(LogPosition { file: number, offset: HEADER })
}

fn boundary_of(record: &LogRecord) -> Option<Lsn> {
    match record {
        LogRecord::Commit { end } => Some(*end),
        LogRecord::Progress { upto } => Some(*upto),
        // In a copy log every record stands alone.
        LogRecord::Copied(_) | LogRecord::CopyStart { .. } | LogRecord::RangeCopied(_) => Some(Lsn::ZERO),
        LogRecord::CopyEnd { at, .. } => Some(*at),
        LogRecord::Begin(_) | LogRecord::Changes(_) => None,
    }
}

fn file_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.log"))
}

fn file_numbers(dir: &Path) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for name in files::list(dir)? {
        let number = name.strip_suffix(".log");
        numbers.extend(number.and_then(|number| u64::from_str_radix(number, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The file has its name only when its header is whole, so that a crash leaves no file that cannot be opened.
fn create_file(dir: &Path, number: u64, base: Lsn) -> Result<(Handle, PathBuf)> {
    let path = file_path(dir, number);
    let mut header = [0; HEADER as usize];
    header[header::LENGTH..][..8].copy_from_slice(&number.to_le_bytes());
    header[header::LENGTH + 8..].copy_from_slice(&base.0.to_le_bytes());
    KIND.seal(&mut header);
    let file = files::put_under_name(&path, &header)?;
    Ok((file, path))
}

fn check_header(path: &Path, file: &Handle, number: u64) -> Result<Lsn> {
    let mut header = [0; HEADER as usize];
    file.read_at(&mut header, 0).context("read the header of", path)?;
    KIND.check(path, &header)?;
    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    if word(header::LENGTH) != number {
        return Err(damaged(path, "holds another file's number"));
    }
    Ok(Lsn(word(header::LENGTH + 8)))
}

/// Writes what is there onto itself. When an earlier process died of a failed sync, the system may show bytes that never
/// reached the disk, call them clean, and report every later sync of them as good.
fn write_again(file: &Handle, end: u64) -> std::io::Result<()> {
    let mut bytes = vec![0; WRITE_BUFFER];
    for start in (0..end).step_by(WRITE_BUFFER) {
        let part = &mut bytes[..(end - start).min(WRITE_BUFFER as u64) as usize];
        file.read_at(part, start)?;
        file.write_at(part, start)?;
    }
    Ok(())
}

/// Reads the last file to its last good record: its base LSN and the last boundary in it.
fn scan(path: &Path, number: u64) -> Result<(Lsn, Option<Durable>)> {
    let file = files::open(path, Mode::Read)?;
    let length = file.length().context("stat", path)?;
    let base = check_header(path, &file, number)?;
    let mut records = Records::new(path.to_owned(), file);
    let (mut offset, mut lsn, mut boundary) = (HEADER, base, None);
    while let Ok(Some((record, next))) = records.read(offset, length) {
        offset = next;
        if let Some(at) = boundary_of(&record) {
            lsn = lsn.max(at);
            boundary = Some(Durable { lsn, position: LogPosition { file: number, offset } });
        }
    }
    if offset < length {
        tracing::info!(file = %path.display(), good = offset, length, "cut an unfinished tail off the log");
    }
    Ok((base, boundary))
}

/// Reads records of one file through a read-ahead buffer.
struct Records {
    path: PathBuf,
    file: Handle,
    buffer: Vec<u8>,
    start: u64,
}

impl Records {
    fn new(path: PathBuf, file: Handle) -> Records {
        Records { path, file, buffer: Vec::new(), start: 0 }
    }

    /// The record at `offset` and where the next one starts; `None` at `end`. `end` is a place between records.
    fn read(&mut self, offset: u64, end: u64) -> Result<Option<(LogRecord, u64)>> {
        if offset >= end {
            return Ok(None);
        }
        let head = self.bytes(offset, RECORD_HEAD, end)?;
        let length = u32::from_le_bytes(head[..4].try_into().expect("four bytes")) as usize;
        let crc = u32::from_le_bytes(head[4..8].try_into().expect("four bytes"));
        if length > MAX_RECORD {
            return Err(damaged(&self.path, format!("record at {offset} claims {length} bytes")));
        }
        let body = self.bytes(offset + RECORD_HEAD as u64, length, end)?;
        if crc32fast::hash(body) != crc {
            return Err(damaged(&self.path, format!("checksum of the record at {offset} does not match")));
        }
        let record = get_record(body).map_err(|bad| damaged(&self.path, format!("record at {offset}: {bad}")))?;
        Ok(Some((record, offset + (RECORD_HEAD + length) as u64)))
    }

    fn bytes(&mut self, offset: u64, count: usize, end: u64) -> Result<&[u8]> {
        if offset + count as u64 > end {
            return Err(damaged(&self.path, format!("record at {offset} ends early")));
        }
        let buffered = offset >= self.start && offset + count as u64 <= self.start + self.buffer.len() as u64;
        if !buffered {
            let ahead = count.max(WRITE_BUFFER).min((end - offset) as usize);
            self.buffer.resize(ahead, 0);
            self.start = offset;
            self.file.read_at(&mut self.buffer, offset).context("read", &self.path)?;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.buffer[from..from + count])
    }
}

/// The reading end: durable records in order.
pub struct LogReader {
    dir: PathBuf,
    tail: Arc<LogTail>,
    position: LogPosition,
    open: Option<Records>,
}

impl LogReader {
    fn new(dir: &Path, tail: Arc<LogTail>, position: LogPosition) -> LogReader {
        LogReader { dir: dir.to_owned(), tail, position, open: None }
    }

    /// The place after the last record returned.
    pub fn position(&self) -> LogPosition {
        self.position
    }

    /// The shared durable end.
    pub fn tail(&self) -> &Arc<LogTail> {
        &self.tail
    }

    /// Another reader of the same log.
    pub fn again_from(&self, position: LogPosition) -> LogReader {
        LogReader::new(&self.dir, self.tail.clone(), position)
    }

    /// Waits for more durable records, at most `timeout`.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.tail.wait_past(self.position, timeout)
    }

    /// The next durable record, if there is one now.
    pub fn next_record(&mut self) -> Result<Option<LogRecord>> {
        loop {
            let durable = self.tail.durable().position;
            if self.position >= durable {
                return Ok(None);
            }
            let number = self.position.file;
            let records = match &mut self.open {
                Some(records) => records,
                none => {
                    let path = file_path(&self.dir, number);
                    let file = files::open(&path, Mode::Read)?;
                    check_header(&path, &file, number)?;
                    none.insert(Records::new(path, file))
                }
            };
            let end = if number < durable.file {
                records.file.length().context("stat", &records.path)?
            } else {
                durable.offset
            };
            if let Some((record, next)) = records.read(self.position.offset, end)? {
                self.position.offset = next;
                return Ok(Some(record));
            }
            self.position = LogPosition { file: number + 1, offset: HEADER };
            self.open = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, CollectionId, CommitLsn, Op, RowKey, TransactionHead, Value};

    fn transaction(n: u64, changes: u32) -> Vec<LogRecord> {
        let change = |ordinal| Change {
            collection: CollectionId(1),
            ordinal,
            op: Op::Delete { key: RowKey::encode(&[Value::Int(n as i64)]).expect("key") },
        };
        vec![
            LogRecord::Begin(TransactionHead { commit: CommitLsn(n * 10), commit_time: 0 }),
            LogRecord::Changes((1..=changes).map(change).collect()),
            LogRecord::Commit { end: Lsn(n * 10 + 5) },
        ]
    }

    fn drain(reader: &mut LogReader) -> Vec<LogRecord> {
        std::iter::from_fn(|| reader.next_record().expect("readable")).collect()
    }

    #[test]
    fn readers_see_nothing_before_it_is_durable() {
        let dir = tempfile::tempdir().expect("dir");
        let mut log = ChangeLog::create(dir.path(), Lsn(7)).expect("create");
        let mut reader = log.reader(start_of(dir.path()).expect("start"));
        assert_eq!(log.durable(), Lsn(7));
        for record in transaction(1, 3) {
            log.append(&record).expect("append");
        }
        assert_eq!(drain(&mut reader), []);
        log.sync().expect("sync");
        assert_eq!(log.durable(), Lsn(15));
        assert_eq!(drain(&mut reader), transaction(1, 3));
    }

    #[test]
    fn a_transaction_without_its_commit_never_happened() {
        let dir = tempfile::tempdir().expect("dir");
        let mut log = ChangeLog::create(dir.path(), Lsn(0)).expect("create");
        transaction(1, 1).iter().chain(&transaction(2, 2)[..2]).for_each(|record| log.append(record).expect("append"));
        log.sync().expect("sync");
        assert_eq!(log.durable(), Lsn(15), "half a transaction moves nothing");
        drop(log);
        let log = ChangeLog::open(dir.path()).expect("open");
        assert_eq!(log.durable(), Lsn(15));
        let mut reader = log.reader(start_of(dir.path()).expect("start"));
        assert_eq!(drain(&mut reader), transaction(1, 1));
    }

    #[test]
    fn half_a_transaction_is_taken_back_before_it_comes_again() {
        let dir = tempfile::tempdir().expect("dir");
        let mut log = ChangeLog::create(dir.path(), Lsn(0)).expect("create");
        let mut reader = log.reader(start_of(dir.path()).expect("start"));
        let all: Vec<_> = transaction(1, 2).into_iter().chain(transaction(2, 3)).collect();
        for synced in [true, false] {
            all[..5].iter().for_each(|record| log.append(record).expect("append"));
            if synced {
                log.sync().expect("sync");
            }
            log.cut_to_durable().expect("cut");
        }
        all[3..].iter().for_each(|record| log.append(record).expect("append"));
        log.sync().expect("sync");
        assert_eq!(drain(&mut reader), all);
        drop(log);
        assert_eq!(ChangeLog::open(dir.path()).expect("open").durable(), Lsn(25));
    }

    #[test]
    fn any_cut_and_any_flip_leaves_a_prefix_of_whole_transactions() {
        let dir = tempfile::tempdir().expect("dir");
        let mut log = ChangeLog::create(dir.path(), Lsn(0)).expect("create");
        let all: Vec<_> = (1..=4).flat_map(|n| transaction(n, 2)).collect();
        all.iter().for_each(|record| log.append(record).expect("append"));
        log.sync().expect("sync");
        drop(log);
        let path = file_path(dir.path(), 1);
        let good = std::fs::read(&path).expect("bytes");
        let check = |bytes: &[u8], what: String| {
            std::fs::write(&path, bytes).expect("write");
            let log = ChangeLog::open(dir.path()).expect(&what);
            let found = drain(&mut log.reader(start_of(dir.path()).expect("start")));
            assert!(found.len().is_multiple_of(3) && all.starts_with(&found), "{what}");
        };
        for end in HEADER as usize..good.len() {
            check(&good[..end], format!("cut at {end}"));
        }
        for at in HEADER as usize..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            check(&bytes, format!("flip at {at}"));
        }
    }

    #[test]
    fn the_log_rolls_to_a_new_file_and_old_files_can_go() {
        let dir = tempfile::tempdir().expect("dir");
        let mut log = ChangeLog::create(dir.path(), Lsn(0)).expect("create");
        let mut reader = log.reader(start_of(dir.path()).expect("start"));
        let big = LogRecord::Changes(vec![Change {
            collection: CollectionId(1),
            ordinal: 1,
            op: Op::Drift { reason: "x".repeat(ROLL_BYTES as usize / 2) },
        }]);
        let mut expected = 0;
        for n in 1..=5 {
            let [begin, _, commit] = &transaction(n, 0)[..] else { unreachable!("three records") };
            for record in [begin, &big, commit] {
                log.append(record).expect("append");
            }
            log.sync().expect("sync");
            expected += 3;
        }
        assert_eq!(drain(&mut reader).len(), expected);
        assert!(reader.position().file > 1);
        assert!(remove_before(dir.path(), reader.position()).expect("remove") > 0);
        drop(log);
        let log = ChangeLog::open(dir.path()).expect("open");
        assert_eq!(log.durable(), Lsn(55));
        assert!(log.reader(reader.position()).next_record().expect("readable").is_none());
    }
}
