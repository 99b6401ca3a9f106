//! The other end of the WAL stream, scripted: pgoutput's bytes written by hand, and what was confirmed.

use bytes::Bytes;
use ruvector::model::{CommitLsn, Lsn};
use ruvector::replication::ReplicationError;
use ruvector::replication::frame::Frame;
use ruvector::replication::stream::WalSource;
use ruvector::storage::changelog::{ChangeLog, LogTail};
use ruvector::storage::files;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc::UnboundedReceiver;

/// OIDs of the table and of pgvector's type in it.
pub const ITEMS: u32 = 16_400;
const VECTOR: u32 = 17_000;
const OTHER: u32 = 16_500;

/// A column of a row on the wire.
#[derive(Clone)]
pub enum Col {
    Null,
    Unchanged,
    Binary(Vec<u8>),
    Text(String),
}

pub fn id(id: i64) -> Col {
    Col::Binary(id.to_be_bytes().to_vec())
}

pub fn group(group: i32) -> Col {
    Col::Binary(group.to_be_bytes().to_vec())
}

/// As `vector_send` writes it.
pub fn vector(elements: &[f32]) -> Col {
    let mut bytes = (elements.len() as i16).to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    elements.iter().for_each(|element| bytes.extend(element.to_be_bytes()));
    Col::Binary(bytes)
}

/// A row of `items (id bigint, payload text, embedding vector(3), grp integer)`.
pub fn row(number: i64, embedding: Col, grp: Col) -> Vec<Col> {
    vec![id(number), Col::Text("payload".into()), embedding, grp]
}

/// The key as a DELETE or a key-changing UPDATE sends it.
fn key(number: i64) -> Vec<Col> {
    vec![id(number), Col::Null, Col::Null, Col::Null]
}

#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn new(tag: u8) -> Message {
        Message(vec![tag])
    }
    fn u8(mut self, v: u8) -> Message {
        self.0.push(v);
        self
    }
    fn i16(mut self, v: usize) -> Message {
        self.0.extend((v as i16).to_be_bytes());
        self
    }
    fn u32(mut self, v: u32) -> Message {
        self.0.extend(v.to_be_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Message {
        self.0.extend(v.to_be_bytes());
        self
    }
    fn text(mut self, v: &str) -> Message {
        self.0.extend(v.as_bytes());
        self.u8(0)
    }
    fn tuple(mut self, columns: &[Col]) -> Message {
        self = self.i16(columns.len());
        for column in columns {
            let (tag, bytes) = match column {
                Col::Null => (b'n', None),
                Col::Unchanged => (b'u', None),
                Col::Binary(bytes) => (b'b', Some(&bytes[..])),
                Col::Text(text) => (b't', Some(text.as_bytes())),
            };
            self = self.u8(tag);
            if let Some(bytes) = bytes {
                self = self.u32(bytes.len() as u32);
                self.0.extend(bytes);
            }
        }
        self
    }
}

fn frame(start: u64, message: Message) -> Frame {
    Frame::XLogData { start: Lsn(start), wal_end: Lsn(start), server_time: 0, payload: Bytes::from(message.0) }
}

pub fn keepalive(wal_end: u64) -> Frame {
    Frame::Keepalive { wal_end: Lsn(wal_end), server_time: 0, reply_requested: false }
}

pub fn keepalive_that_asks(wal_end: u64) -> Frame {
    Frame::Keepalive { wal_end: Lsn(wal_end), server_time: 0, reply_requested: true }
}

pub fn garbage() -> Frame {
    frame(0, Message::new(b'?'))
}

/// As some servers send it to clients that never asked for streaming.
pub fn stream_abort(transaction: u32) -> Frame {
    frame(0, Message::new(b'A').u32(transaction).u32(transaction))
}

/// A transaction's frames, one call a message.
pub struct Tx {
    commit: CommitLsn,
    pub frames: Vec<Frame>,
}

impl Tx {
    /// BEGIN of the transaction whose commit record starts at `commit`; its tables are described every time.
    pub fn new(commit: u64) -> Tx {
        let begin = Message::new(b'B').u64(commit).u64(commit).u32(7);
        let tx = Tx { commit: CommitLsn(commit), frames: vec![frame(commit.saturating_sub(1), begin)] };
        tx.describe(&["id", "payload", "embedding", "grp"])
    }

    /// Relation and Type, with these columns.
    pub fn describe(self, columns: &[&str]) -> Tx {
        let kind = Message::new(b'Y').u32(VECTOR).text("public").text("vector");
        let mut items = Message::new(b'R').u32(ITEMS).text("public").text("items").u8(b'd').i16(columns.len());
        for column in columns {
            let (oid, typmod) = match *column {
                "id" => (20, u32::MAX),
                "embedding" => (VECTOR, 3),
                "grp" => (23, u32::MAX),
                _ => (25, u32::MAX),
            };
            items = items.u8(u8::from(*column == "id")).text(column).u32(oid).u32(typmod);
        }
        let other = Message::new(b'R').u32(OTHER).text("public").text("other").u8(b'd').i16(1);
        let other = other.u8(1).text("id").u32(20).u32(u32::MAX);
        self.with(kind).with(items).with(other)
    }

    fn with(mut self, message: Message) -> Tx {
        self.frames.push(frame(self.commit.0.saturating_sub(1), message));
        self
    }

    pub fn insert(self, row: Vec<Col>) -> Tx {
        self.with(Message::new(b'I').u32(ITEMS).u8(b'N').tuple(&row))
    }

    pub fn update(self, row: Vec<Col>) -> Tx {
        self.with(Message::new(b'U').u32(ITEMS).u8(b'N').tuple(&row))
    }

    /// An UPDATE that changes the key.
    pub fn rekey(self, old: i64, row: Vec<Col>) -> Tx {
        self.with(Message::new(b'U').u32(ITEMS).u8(b'K').tuple(&key(old)).u8(b'N').tuple(&row))
    }

    pub fn delete(self, number: i64) -> Tx {
        self.with(Message::new(b'D').u32(ITEMS).u8(b'K').tuple(&key(number)))
    }

    pub fn truncate(self) -> Tx {
        self.with(Message::new(b'T').u32(1).u8(0).u32(ITEMS))
    }

    /// A row of a table that feeds no collection.
    pub fn insert_elsewhere(self, number: i64) -> Tx {
        self.with(Message::new(b'I').u32(OTHER).u8(b'N').tuple(&[id(number)]))
    }

    /// A keepalive between its messages.
    pub fn keepalive(mut self, wal_end: u64) -> Tx {
        self.frames.push(keepalive(wal_end));
        self
    }

    /// COMMIT; the record ends at `end`.
    pub fn commit(self, end: u64) -> Vec<Frame> {
        let commit = self.commit.0;
        self.with(Message::new(b'C').u8(0).u64(commit).u64(end).u64(commit)).frames
    }
}

/// What was said to the source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Status {
    pub received: Lsn,
    pub flushed: Lsn,
}

/// A source of frames that a test writes; every status is checked against the log's files when it comes.
pub struct Script {
    pub frames: UnboundedReceiver<Result<Frame, ReplicationError>>,
    pub statuses: Arc<Mutex<Vec<Status>>>,
    pub log: Arc<LogTail>,
    pub log_dir: PathBuf,
}

impl WalSource for Script {
    async fn next_frame(&mut self) -> Result<Frame, ReplicationError> {
        let closed = || ReplicationError::Transport("the script is over".into());
        self.frames.recv().await.unwrap_or_else(|| Err(closed()))
    }

    async fn send_status(&mut self, received: Lsn, flushed: Lsn, _: bool) -> Result<(), ReplicationError> {
        assert!(flushed <= self.log.durable().lsn, "confirmed {flushed} before it was durable");
        assert!(flushed <= received, "confirmed {flushed} of {received} received");
        // As a restart after a kill would find it.
        let copy = tempfile::tempdir().expect("a folder");
        for name in files::list(&self.log_dir).expect("the log's folder") {
            let bytes = files::read(&self.log_dir.join(&name)).expect("a file of the log");
            std::fs::write(copy.path().join(name), bytes).expect("a copy");
        }
        let found = ChangeLog::open(copy.path()).expect("the copy opens").durable();
        assert!(flushed <= found, "confirmed {flushed}, the files hold {found}");
        self.statuses.lock().expect("not poisoned").push(Status { received, flushed });
        Ok(())
    }
}
