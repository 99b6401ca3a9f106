//! Where streamed transactions wait until they end: messages of protocol 2 in, messages of whole committed transactions out.
//!
//! The source sends pieces of unfinished transactions, interleaved, and later says what became of each. Until then the
//! messages are kept as they came, in memory up to a budget that all transactions share, behind that in a file each. Such
//! a file is unlinked as soon as it is open: it goes with the connection, whatever way that ends, and needs no recovery,
//! because the source sends a transaction again, whole, until its commit is confirmed.

use crate::model::{CommitLsn, Lsn};
use crate::replication::ReplicationError;
use crate::replication::pgoutput::{self, Message};
use crate::telemetry::names;
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An entry in memory and in the file: length of the payload u32, number of the (sub)transaction u32, payload.
const ENTRY_HEAD: usize = 8;
/// Read at once from a file.
const READ_BUFFER: usize = 1 << 18;
/// A commit message needs no flags of ours.
const NO_FLAGS: u8 = 0;

/// Takes the messages of whole transactions.
type Push<'p> = dyn FnMut(Message<'_>) -> Result<(), ReplicationError> + 'p;

/// The streamed transactions of one connection that have not ended.
pub struct Spool {
    dir: PathBuf,
    budget: usize,
    in_memory: usize,
    on_disk: u64,
    /// The transaction whose block is open.
    block: Option<u32>,
    open: HashMap<u32, Streamed>,
    /// Descriptions of tables that no kept change has needed yet, by OID.
    ///
    /// What a rolled back subtransaction said of a table may be undone with it, and then the source says it anew before
    /// the next change; or it may hold on, and the source will not repeat it. So it counts when a change needs it.
    undelivered: HashMap<u32, Vec<u8>>,
}

/// One transaction, as far as it came.
#[derive(Default)]
struct Streamed {
    /// The newest entries; what is older is in the file.
    memory: Vec<u8>,
    file: Option<File>,
    in_file: u64,
    /// Subtransactions that were rolled back. Their numbers never come again.
    aborted: HashSet<u32>,
}

impl Spool {
    /// An empty one that keeps at most `budget` bytes in memory, and the rest in `dir`.
    pub fn new(dir: &Path, budget: usize) -> Spool {
        Spool {
            dir: dir.to_owned(),
            budget,
            in_memory: 0,
            on_disk: 0,
            block: None,
            open: HashMap::new(),
            undelivered: HashMap::new(),
        }
    }

    /// Is a block of a streamed transaction half received? Then a keepalive's position says nothing.
    ///
    /// Between blocks it counts, although transactions are open: it says that all that *committed* up to there was sent,
    /// and that is what our positions mean. The server keeps the WAL of an open transaction whatever we confirm (its
    /// restart position stays before the transaction's first record), and sends the transaction again from its beginning
    /// to whoever has not confirmed its commit.
    pub fn in_block(&self) -> bool {
        self.block.is_some()
    }

    /// Bytes kept in memory and in files.
    pub fn sizes(&self) -> (usize, u64) {
        (self.in_memory, self.on_disk)
    }

    /// Takes a message. What is not streamed is handed on at once, a streamed transaction when it commits: in commit
    /// order, as protocol 1 has it.
    pub fn take(&mut self, payload: &[u8], push: &mut Push<'_>) -> Result<(), ReplicationError> {
        if let Some(top) = self.block {
            return self.take_in_block(top, payload);
        }
        match decode(payload, false)? {
            Message::StreamStart { xid, first_segment } => {
                if first_segment {
                    self.forget(xid);
                    self.open.insert(xid, Streamed::default());
                } else if !self.open.contains_key(&xid) {
                    return Err(out_of_place("a streamed block without the first of its transaction"));
                }
                self.block = Some(xid);
                Ok(())
            }
            Message::StreamStop => Err(out_of_place("STREAM STOP without STREAM START")),
            Message::StreamCommit { xid, commit, end, time, .. } => self.commit(xid, commit, end, time, push),
            // Newer servers say it also to clients that never asked for streaming: then there is nothing to forget.
            Message::StreamAbort { xid, subxid, .. } => {
                self.abort(xid, subxid);
                Ok(())
            }
            Message::StreamPrepare(_) | Message::BeginPrepare(_) | Message::Prepare(_) => Err(two_phase()),
            Message::CommitPrepared { .. } | Message::RollbackPrepared { .. } => Err(two_phase()),
            message => {
                if !self.undelivered.is_empty() {
                    self.deliver_before(&message, push)?;
                }
                push(message)
            }
        }
    }

    fn take_in_block(&mut self, top: u32, payload: &[u8]) -> Result<(), ReplicationError> {
        match payload.first() {
            Some(b'E') => {
                decode(payload, true)?;
                self.block = None;
                self.report();
                Ok(())
            }
            Some(b'R' | b'Y' | b'I' | b'U' | b'D' | b'T') => {
                let sub = payload.get(1..5).and_then(|xid| xid.first_chunk());
                let sub = sub.ok_or_else(|| out_of_place("a change without its transaction"))?;
                self.keep(top, u32::from_be_bytes(*sub), payload)
            }
            // What is written for other consumers, and where a transaction came from, concern nobody here.
            Some(b'M' | b'O') => decode(payload, true).map(drop),
            _ => Err(out_of_place("a message inside a streamed block")),
        }
    }

    fn keep(&mut self, top: u32, sub: u32, payload: &[u8]) -> Result<(), ReplicationError> {
        let Some(streamed) = self.open.get_mut(&top) else { return Ok(()) };
        let before = streamed.memory.capacity();
        streamed.memory.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        streamed.memory.extend_from_slice(&sub.to_le_bytes());
        streamed.memory.extend_from_slice(payload);
        self.in_memory += streamed.memory.capacity() - before;
        while self.in_memory > self.budget {
            self.spill()?;
        }
        Ok(())
    }

    /// Moves the largest transaction's entries to its file.
    fn spill(&mut self) -> Result<(), ReplicationError> {
        let largest = self.open.values_mut().max_by_key(|streamed| streamed.memory.capacity());
        let Some(streamed) = largest else { return Ok(()) };
        let memory = std::mem::take(&mut streamed.memory);
        self.in_memory -= memory.capacity();
        self.on_disk += memory.len() as u64;
        streamed.in_file += memory.len() as u64;
        let file = match &mut streamed.file {
            Some(file) => file,
            none => none.insert(unnamed_file(&self.dir).map_err(broken)?),
        };
        file.write_all(&memory).map_err(broken)
    }

    fn abort(&mut self, top: u32, sub: u32) {
        if top == sub {
            self.forget(top);
        } else if let Some(streamed) = self.open.get_mut(&top) {
            streamed.aborted.insert(sub);
        }
    }

    fn forget(&mut self, top: u32) -> Option<Streamed> {
        let streamed = self.open.remove(&top)?;
        self.in_memory -= streamed.memory.capacity();
        self.on_disk -= streamed.in_file;
        self.report();
        Some(streamed)
    }

    /// Hands a transaction on as protocol 1 would have sent it.
    fn commit(
        &mut self,
        xid: u32,
        commit: CommitLsn,
        end: Lsn,
        time: i64,
        push: &mut Push<'_>,
    ) -> Result<(), ReplicationError> {
        let streamed = self.forget(xid).ok_or_else(|| out_of_place("STREAM COMMIT of an unknown transaction"))?;
        push(Message::Begin { final_lsn: commit, commit_time: time, xid })?;
        streamed.replay(|aborted, payload| self.replay(aborted, payload, push))?;
        push(Message::Commit { flags: NO_FLAGS, commit, end, time })
    }

    fn replay(&mut self, aborted: bool, payload: &[u8], push: &mut Push<'_>) -> Result<(), ReplicationError> {
        match payload.first() {
            Some(b'R') => {
                if let Message::Relation { relation, .. } = decode(payload, true)? {
                    self.undelivered.insert(relation.oid, payload.to_vec());
                }
                Ok(())
            }
            Some(b'Y') => push(decode(payload, true)?),
            _ if aborted => Ok(()),
            _ => {
                let message = decode(payload, true)?;
                self.deliver_before(&message, push)?;
                push(message)
            }
        }
    }

    /// Hands on the descriptions that this message needs.
    fn deliver_before(&mut self, message: &Message<'_>, push: &mut Push<'_>) -> Result<(), ReplicationError> {
        let mut deliver = |oid: &u32| match self.undelivered.remove(oid) {
            Some(payload) => push(decode(&payload, true)?),
            None => Ok(()),
        };
        match message {
            Message::Insert { relation, .. } | Message::Update { relation, .. } | Message::Delete { relation, .. } => {
                deliver(relation)
            }
            Message::Truncate { relations, .. } => relations.iter().try_for_each(deliver),
            Message::Relation { relation, .. } => {
                self.undelivered.remove(&relation.oid);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn report(&self) {
        metrics::gauge!(names::SPOOL_BYTES, "place" => "memory").set(self.in_memory as f64);
        metrics::gauge!(names::SPOOL_BYTES, "place" => "disk").set(self.on_disk as f64);
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        (self.in_memory, self.on_disk) = (0, 0);
        self.report();
    }
}

impl Streamed {
    /// Every entry in the order it came: was it rolled back, and its payload.
    fn replay(
        mut self,
        mut each: impl FnMut(bool, &[u8]) -> Result<(), ReplicationError>,
    ) -> Result<(), ReplicationError> {
        let mut payload = Vec::new();
        if let Some(mut file) = self.file.take() {
            file.seek(SeekFrom::Start(0)).map_err(broken)?;
            let file = BufReader::with_capacity(READ_BUFFER, file);
            self.entries(file, &mut payload, &mut each)?;
        }
        self.entries(&self.memory[..], &mut payload, &mut each)
    }

    fn entries(
        &self,
        mut from: impl Read,
        payload: &mut Vec<u8>,
        each: &mut impl FnMut(bool, &[u8]) -> Result<(), ReplicationError>,
    ) -> Result<(), ReplicationError> {
        let mut head = [0; ENTRY_HEAD];
        while read_whole(&mut from, &mut head).map_err(broken)? {
            let [l0, l1, l2, l3, s0, s1, s2, s3] = head;
            payload.resize(u32::from_le_bytes([l0, l1, l2, l3]) as usize, 0);
            from.read_exact(payload).map_err(broken)?;
            each(self.aborted.contains(&u32::from_le_bytes([s0, s1, s2, s3])), payload)?;
        }
        Ok(())
    }
}

/// Fills the buffer; false at the end.
fn read_whole(from: &mut impl Read, buffer: &mut [u8; ENTRY_HEAD]) -> io::Result<bool> {
    let first = loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    if first > 0 {
        from.read_exact(&mut buffer[first..])?;
    }
    Ok(first > 0)
}

/// A file that is gone when it is closed.
fn unnamed_file(dir: &Path) -> io::Result<File> {
    let path = dir.join("spool");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn decode(payload: &[u8], in_stream: bool) -> Result<Message<'_>, ReplicationError> {
    pgoutput::decode(payload, in_stream).map_err(|error| ReplicationError::Protocol(error.to_string()))
}

fn out_of_place(what: &str) -> ReplicationError {
    ReplicationError::Protocol(format!("{what} is out of place in the stream"))
}

fn two_phase() -> ReplicationError {
    ReplicationError::Protocol("the slot sends prepared transactions: make it without two_phase".into())
}

/// Nothing is lost with it: the source sends the transaction again when we have connected again.
fn broken(error: io::Error) -> ReplicationError {
    ReplicationError::Transport(format!("a streamed transaction cannot be kept: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: u32 = 5;

    fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        [&[tag][..], &parts.concat()].concat()
    }

    fn start(xid: u32, first: bool) -> Vec<u8> {
        message(b'S', &[&xid.to_be_bytes(), &[u8::from(first)]])
    }

    fn stop() -> Vec<u8> {
        message(b'E', &[])
    }

    fn abort(top: u32, sub: u32) -> Vec<u8> {
        message(b'A', &[&top.to_be_bytes(), &sub.to_be_bytes()])
    }

    fn commit(xid: u32, at: u64) -> Vec<u8> {
        message(b'c', &[&xid.to_be_bytes(), &[0], &at.to_be_bytes(), &(at + 8).to_be_bytes(), &[0; 8]])
    }

    /// A table of one column of this name.
    fn relation(xid: Option<u32>, column: &str) -> Vec<u8> {
        let xid = xid.map(u32::to_be_bytes);
        let xid = xid.as_ref().map_or(&[][..], |xid| &xid[..]);
        let table = [&TABLE.to_be_bytes()[..], b"s\0t\0d\0\x01\x01", column.as_bytes(), &[0], &[0; 8]].concat();
        message(b'R', &[xid, &table])
    }

    fn insert(xid: Option<u32>, text: &str) -> Vec<u8> {
        let xid = xid.map(u32::to_be_bytes);
        let xid = xid.as_ref().map_or(&[][..], |xid| &xid[..]);
        let length = (text.len() as u32).to_be_bytes();
        message(b'I', &[xid, &TABLE.to_be_bytes(), b"N\0\x01t", &length, text.as_bytes()])
    }

    /// What comes out, in words.
    fn feed(spool: &mut Spool, messages: &[Vec<u8>]) -> Result<Vec<String>, ReplicationError> {
        let mut out = Vec::new();
        for payload in messages {
            spool.take(payload, &mut |message| {
                out.push(match message {
                    Message::Begin { final_lsn, .. } => format!("begin {}", final_lsn.0),
                    Message::Commit { commit, end, .. } => format!("commit {} {}", commit.0, end.0),
                    Message::Relation { relation, .. } => format!("table {}", relation.columns[0].name),
                    Message::Insert { new, .. } => match new[0] {
                        pgoutput::TupleCell::Text(text) => String::from_utf8_lossy(text).into_owned(),
                        _ => "?".into(),
                    },
                    other => format!("{other:?}"),
                });
                Ok(())
            })?;
        }
        Ok(out)
    }

    fn spool(budget: usize) -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().expect("dir");
        let spool = Spool::new(dir.path(), budget);
        (dir, spool)
    }

    #[test]
    fn transactions_come_out_whole_and_in_commit_order_whatever_the_budget() {
        for budget in [0, 40, 100, 1 << 20] {
            let (dir, mut spool) = spool(budget);
            let blocks = [
                vec![start(7, true), relation(Some(7), "a"), insert(Some(7), "7-1"), stop()],
                vec![start(9, true), relation(Some(9), "a"), insert(Some(9), "9-1"), stop()],
                vec![start(7, false), insert(Some(8), "7-2"), stop()],
            ];
            assert_eq!(feed(&mut spool, &blocks.concat()).expect("kept"), [""; 0]);
            let (memory, disk) = spool.sizes();
            assert!(memory <= budget && (disk > 0) == (budget < 200), "{budget}: {memory} {disk}");
            assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 0, "files have no names");
            let begin = message(b'B', &[&50u64.to_be_bytes(), &[0; 8], &[0; 4]]);
            let end = message(b'C', &[&[0], &50u64.to_be_bytes(), &58u64.to_be_bytes(), &[0; 8]]);
            let plain = [begin, relation(None, "a"), insert(None, "plain"), end];
            let out = feed(&mut spool, &plain).expect("handed on");
            assert_eq!(out, ["begin 50", "table a", "plain", "commit 50 58"]);
            let out = feed(&mut spool, &[commit(9, 60), commit(7, 70)]).expect("replayed");
            let nine = ["begin 60", "table a", "9-1", "commit 60 68"];
            let seven = ["begin 70", "table a", "7-1", "7-2", "commit 70 78"];
            assert_eq!(out, [&nine[..], &seven[..]].concat());
            assert_eq!(spool.sizes(), (0, 0));
        }
    }

    #[test]
    fn what_a_subtransaction_did_goes_with_it_and_what_it_described_stays() {
        for budget in [0, 1 << 20] {
            let (_dir, mut spool) = spool(budget);
            let out = feed(
                &mut spool,
                &[
                    start(7, true),
                    relation(Some(8), "a"),
                    insert(Some(8), "rolled back"),
                    insert(Some(9), "kept"),
                    stop(),
                    abort(7, 8),
                    start(7, false),
                    insert(Some(7), "later"),
                    stop(),
                    commit(7, 70),
                ],
            );
            assert_eq!(out.expect("replayed"), ["begin 70", "table a", "kept", "later", "commit 70 78"]);
        }
    }

    #[test]
    fn a_description_that_was_rolled_back_is_never_used_and_one_that_was_not_is_used_later() {
        let (_dir, mut spool) = spool(1 << 20);
        let altered = [
            start(7, true),
            relation(Some(7), "good"),
            insert(Some(7), "1"),
            relation(Some(8), "dropped"),
            insert(Some(8), "2"),
            stop(),
            abort(7, 8),
            start(7, false),
            relation(Some(7), "good"),
            insert(Some(7), "3"),
            stop(),
            commit(7, 70),
        ];
        let out = feed(&mut spool, &altered).expect("replayed");
        assert_eq!(out, ["begin 70", "table good", "1", "table good", "3", "commit 70 78"]);
        // The source believes that it described the table: nothing of this transaction is left but that.
        let only =
            [start(9, true), relation(Some(10), "a"), insert(Some(10), "x"), stop(), abort(9, 10), commit(9, 80)];
        assert_eq!(feed(&mut spool, &only).expect("replayed"), ["begin 80", "commit 80 88"]);
        assert_eq!(feed(&mut spool, &[insert(None, "plain")]).expect("handed on"), ["table a", "plain"]);
    }

    #[test]
    fn an_abort_of_all_leaves_nothing_and_one_that_is_unknown_is_ignored() {
        let (_dir, mut spool) = spool(0);
        let block = [start(7, true), relation(Some(7), "a"), insert(Some(7), "x"), stop()];
        assert!(feed(&mut spool, &block).expect("kept").is_empty());
        assert!(spool.sizes().1 > 0);
        assert!(feed(&mut spool, &[abort(7, 7), abort(7, 8), abort(1, 1)]).expect("ignored").is_empty());
        assert_eq!(spool.sizes(), (0, 0));
        assert!(feed(&mut spool, &[commit(7, 70)]).is_err(), "nothing to commit");
        assert!(feed(&mut spool, &[insert(None, "x")]).expect("handed on") == ["x"], "its description is gone too");
    }

    #[test]
    fn what_cannot_come_is_refused() {
        let begin_prepare = message(b'b', &[&[0; 28], b"gid\0"]);
        for messages in [
            vec![stop()],
            vec![start(7, false)],
            vec![start(7, true), start(8, true)],
            vec![start(7, true), commit(7, 70)],
            vec![start(7, true), message(b'I', &[&[1]])],
            vec![begin_prepare],
        ] {
            let (_dir, mut spool) = spool(0);
            let ended = feed(&mut spool, &messages);
            assert!(matches!(ended, Err(ReplicationError::Protocol(_))), "{messages:?}: {ended:?}");
        }
    }
}
