//! Decoder of pgoutput, protocol versions 1 to 4 (PostgreSQL manual, "Logical Replication Message Formats"). Total: any
//! bytes give a message or an error that says where; nothing is allocated by a count that the bytes do not back.

mod reader;
#[cfg(test)]
mod tests;

use crate::model::{CommitLsn, Lsn, Relation, RelationColumn};
use reader::Reader;

/// One column of a row. Borrows from the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TupleCell<'a> {
    /// SQL NULL; in a key tuple also a column that is not part of the key and was not sent.
    Null,
    /// A TOASTed value the UPDATE did not touch; it was not sent.
    Unchanged,
    /// By the type's output function.
    Text(&'a [u8]),
    /// By the type's send function.
    Binary(&'a [u8]),
}

/// The columns of a row, in the order of the Relation in force.
pub type Tuple<'a> = Vec<TupleCell<'a>>;

/// The row before an UPDATE or DELETE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// `K`: only the columns of the replica identity; all others are `Null` for "not sent".
    Key(Tuple<'a>),
    /// `O`: every column (REPLICA IDENTITY FULL).
    Full(Tuple<'a>),
}

/// One message. Times are microseconds since 2000-01-01 UTC by the source's clock. `xid` is there inside a streamed
/// block only, and may name a subtransaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// `B`: a transaction that committed starts.
    Begin {
        /// Where its commit record starts: its name.
        final_lsn: CommitLsn,
        /// When it committed.
        commit_time: i64,
        /// Its number.
        xid: u32,
    },
    /// `C`: it ends.
    Commit {
        /// Unused by PostgreSQL so far.
        flags: u8,
        /// Where its commit record starts: its name.
        commit: CommitLsn,
        /// Where its commit record ends.
        end: Lsn,
        /// When it committed.
        time: i64,
    },
    /// `O`: the transaction came to the source from elsewhere.
    Origin {
        /// Its commit on the origin.
        commit: CommitLsn,
        /// Name of the origin.
        name: &'a str,
    },
    /// `R`: the columns of a table for the rows that follow.
    Relation {
        /// Who declared it.
        xid: Option<u32>,
        /// The table.
        relation: Relation,
    },
    /// `Y`: the name of a type that is not built in.
    Type {
        /// Who declared it.
        xid: Option<u32>,
        /// The type.
        oid: u32,
        /// Its schema.
        schema: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// `I`
    Insert {
        /// Who did it.
        xid: Option<u32>,
        /// OID of the table.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// `U`
    Update {
        /// Who did it.
        xid: Option<u32>,
        /// OID of the table.
        relation: u32,
        /// The row before: when the key changed, or with REPLICA IDENTITY FULL.
        old: Option<OldTuple<'a>>,
        /// The row after.
        new: Tuple<'a>,
    },
    /// `D`
    Delete {
        /// Who did it.
        xid: Option<u32>,
        /// OID of the table.
        relation: u32,
        /// The row before.
        old: OldTuple<'a>,
    },
    /// `T`
    Truncate {
        /// Who did it.
        xid: Option<u32>,
        /// OIDs of the tables, all emptied at once.
        relations: Vec<u32>,
        /// `CASCADE` was said.
        cascade: bool,
        /// `RESTART IDENTITY` was said.
        restart_identity: bool,
    },
    /// `M`: written by `pg_logical_emit_message`.
    Message {
        /// Who wrote it.
        xid: Option<u32>,
        /// Part of a transaction; otherwise sent at once, between transactions.
        transactional: bool,
        /// Where it is.
        lsn: Lsn,
        /// For whom.
        prefix: &'a str,
        /// What.
        content: &'a [u8],
    },
    /// `S`: changes of an unfinished transaction follow.
    StreamStart {
        /// The transaction.
        xid: u32,
        /// The first block of it.
        first_segment: bool,
    },
    /// `E`: the block ends.
    StreamStop,
    /// `c`: a streamed transaction committed.
    StreamCommit {
        /// The transaction.
        xid: u32,
        /// Unused by PostgreSQL so far.
        flags: u8,
        /// Where its commit record starts: its name.
        commit: CommitLsn,
        /// Where its commit record ends.
        end: Lsn,
        /// When it committed.
        time: i64,
    },
    /// `A`: a streamed transaction or one of its subtransactions was rolled back.
    StreamAbort {
        /// The transaction.
        xid: u32,
        /// What was rolled back of it; the same number when it is all.
        subxid: u32,
        /// Where and when, which only parallel streaming says.
        at: Option<(Lsn, i64)>,
    },
    /// `b`: a prepared transaction starts.
    BeginPrepare(Prepared<'a>),
    /// `P`: it is prepared.
    Prepare(Prepared<'a>),
    /// `p`: a streamed transaction is prepared.
    StreamPrepare(Prepared<'a>),
    /// `K`: a prepared transaction committed.
    CommitPrepared {
        /// Where its commit record starts: its name.
        commit: CommitLsn,
        /// Where its commit record ends.
        end: Lsn,
        /// When it committed.
        time: i64,
        /// Its number.
        xid: u32,
        /// What the client named it.
        gid: &'a str,
    },
    /// `r`: a prepared transaction was rolled back.
    RollbackPrepared {
        /// Where its PREPARE ended.
        prepare_end: Lsn,
        /// Where its rollback ended.
        rollback_end: Lsn,
        /// When it was prepared.
        prepare_time: i64,
        /// When it was rolled back.
        rollback_time: i64,
        /// Its number.
        xid: u32,
        /// What the client named it.
        gid: &'a str,
    },
}

/// A transaction that was prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared<'a> {
    /// Where its PREPARE record starts.
    pub prepare: Lsn,
    /// Where its PREPARE record ends.
    pub end: Lsn,
    /// When it was prepared.
    pub time: i64,
    /// Its number.
    pub xid: u32,
    /// What the client named it.
    pub gid: &'a str,
}

/// A message that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pgoutput message {message:?}, field `{field}` at byte {offset}: {problem}")]
pub struct DecodeError {
    /// First byte of the message; a space when there is none.
    pub message: char,
    /// Which field, as the PostgreSQL manual has them.
    pub field: &'static str,
    /// Where the field starts.
    pub offset: usize,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The message ends inside the field.
    #[error("the message is cut short")]
    CutShort,
    /// A count or length below zero.
    #[error("negative count")]
    Negative,
    /// A count that the rest of the message cannot hold.
    #[error("count {0} is more than the message holds")]
    TooMany(usize),
    /// A name that is not UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// A tag that is not in the manual.
    #[error("unknown tag {0:#04x}")]
    UnknownTag(u8),
    /// Bytes after the last field.
    #[error("{0} bytes are left over")]
    Trailing(usize),
}

/// The message in one XLogData payload. `in_stream`: between StreamStart and StreamStop, where changes carry the number
/// of their (sub)transaction.
pub fn decode(bytes: &[u8], in_stream: bool) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let tag = reader.u8("tag")?;
    let message = match tag {
        b'B' => begin(&mut reader)?,
        b'C' => commit(&mut reader)?,
        b'O' => Message::Origin { commit: reader.commit_lsn("commit LSN")?, name: reader.name("origin")? },
        b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' => change(tag, &mut reader, in_stream)?,
        b'S' => Message::StreamStart { xid: reader.u32("xid")?, first_segment: reader.u8("first segment")? != 0 },
        b'E' => Message::StreamStop,
        b'c' => stream_commit(&mut reader)?,
        b'A' => stream_abort(&mut reader)?,
        b'b' => Message::BeginPrepare(prepared(&mut reader, false)?),
        b'P' => Message::Prepare(prepared(&mut reader, true)?),
        b'p' => Message::StreamPrepare(prepared(&mut reader, true)?),
        b'K' => commit_prepared(&mut reader)?,
        b'r' => rollback_prepared(&mut reader)?,
        _ => return Err(reader.error_at(0, "tag", Problem::UnknownTag(tag))),
    };
    reader.end()?;
    Ok(message)
}

/// The messages that carry the number of their (sub)transaction inside a streamed block.
fn change<'a>(tag: u8, reader: &mut Reader<'a>, in_stream: bool) -> Result<Message<'a>, DecodeError> {
    let xid = if in_stream { Some(reader.u32("xid")?) } else { None };
    Ok(match tag {
        b'R' => Message::Relation { xid, relation: relation(reader)? },
        b'Y' => type_name(xid, reader)?,
        b'I' => insert(xid, reader)?,
        b'U' => update(xid, reader)?,
        b'D' => delete(xid, reader)?,
        b'T' => truncate(xid, reader)?,
        _ => logical_message(xid, reader)?,
    })
}

fn begin<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Begin {
        final_lsn: reader.commit_lsn("final LSN")?,
        commit_time: reader.i64("commit time")?,
        xid: reader.u32("xid")?,
    })
}

fn commit<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Commit {
        flags: reader.u8("flags")?,
        commit: reader.commit_lsn("commit LSN")?,
        end: reader.lsn("end LSN")?,
        time: reader.i64("commit time")?,
    })
}

fn relation(reader: &mut Reader<'_>) -> Result<Relation, DecodeError> {
    /// Flags, the shortest name, type and modifier.
    const LEAST_COLUMN: usize = 1 + 1 + 4 + 4;
    let oid = reader.u32("relation")?;
    let schema = schema_name(reader)?.to_owned();
    let name = reader.name("relation name")?.to_owned();
    let replica_identity = reader.u8("replica identity")?;
    let count = reader.count16("number of columns", LEAST_COLUMN)?;
    let columns = (0..count).map(|_| relation_column(reader)).collect::<Result<_, _>>()?;
    Ok(Relation { oid, schema, name, replica_identity, columns })
}

/// Empty stands for `pg_catalog`.
fn schema_name<'a>(reader: &mut Reader<'a>) -> Result<&'a str, DecodeError> {
    let schema = reader.name("namespace")?;
    Ok(if schema.is_empty() { "pg_catalog" } else { schema })
}

fn relation_column(reader: &mut Reader<'_>) -> Result<RelationColumn, DecodeError> {
    Ok(RelationColumn {
        is_key: reader.u8("column flags")? & 1 != 0,
        name: reader.name("column name")?.to_owned(),
        type_oid: reader.u32("column type")?,
        typmod: reader.u32("type modifier")? as i32,
    })
}

fn type_name<'a>(xid: Option<u32>, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Type { xid, oid: reader.u32("type")?, schema: schema_name(reader)?, name: reader.name("type name")? })
}

fn insert<'a>(xid: Option<u32>, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = reader.u32("relation")?;
    Ok(Message::Insert { xid, relation, new: new_tuple(reader)? })
}

fn update<'a>(xid: Option<u32>, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = reader.u32("relation")?;
    let old = if reader.peek() == Some(b'N') { None } else { Some(old_tuple(reader)?) };
    Ok(Message::Update { xid, relation, old, new: new_tuple(reader)? })
}

fn delete<'a>(xid: Option<u32>, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = reader.u32("relation")?;
    Ok(Message::Delete { xid, relation, old: old_tuple(reader)? })
}

fn truncate<'a>(xid: Option<u32>, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let (at, count) = (reader.offset(), reader.i32("number of relations")?);
    let options = reader.u8("options")?;
    let count = reader.bounded(at, "number of relations", count.into(), 4)?;
    let relations = (0..count).map(|_| reader.u32("relation")).collect::<Result<_, _>>()?;
    Ok(Message::Truncate { xid, relations, cascade: options & 1 != 0, restart_identity: options & 2 != 0 })
}

fn logical_message<'a>(xid: Option<u32>, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Message {
        xid,
        transactional: reader.u8("flags")? & 1 != 0,
        lsn: reader.lsn("message LSN")?,
        prefix: reader.name("prefix")?,
        content: reader.counted_bytes("content")?,
    })
}

fn new_tuple<'a>(reader: &mut Reader<'a>) -> Result<Tuple<'a>, DecodeError> {
    let (at, tag) = (reader.offset(), reader.u8("tuple tag")?);
    if tag == b'N' { tuple(reader) } else { Err(reader.error_at(at, "tuple tag", Problem::UnknownTag(tag))) }
}

fn old_tuple<'a>(reader: &mut Reader<'a>) -> Result<OldTuple<'a>, DecodeError> {
    let (at, tag) = (reader.offset(), reader.u8("tuple tag")?);
    match tag {
        b'K' => tuple(reader).map(OldTuple::Key),
        b'O' => tuple(reader).map(OldTuple::Full),
        _ => Err(reader.error_at(at, "tuple tag", Problem::UnknownTag(tag))),
    }
}

fn tuple<'a>(reader: &mut Reader<'a>) -> Result<Tuple<'a>, DecodeError> {
    let count = reader.count16("number of columns", 1)?;
    let mut cells = Vec::with_capacity(count);
    for _ in 0..count {
        cells.push(tuple_cell(reader)?);
    }
    Ok(cells)
}

fn tuple_cell<'a>(reader: &mut Reader<'a>) -> Result<TupleCell<'a>, DecodeError> {
    let (at, tag) = (reader.offset(), reader.u8("column tag")?);
    Ok(match tag {
        b'n' => TupleCell::Null,
        b'u' => TupleCell::Unchanged,
        b't' => TupleCell::Text(reader.counted_bytes("column text")?),
        b'b' => TupleCell::Binary(reader.counted_bytes("column binary")?),
        _ => return Err(reader.error_at(at, "column tag", Problem::UnknownTag(tag))),
    })
}

fn stream_commit<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::StreamCommit {
        xid: reader.u32("xid")?,
        flags: reader.u8("flags")?,
        commit: reader.commit_lsn("commit LSN")?,
        end: reader.lsn("end LSN")?,
        time: reader.i64("commit time")?,
    })
}

fn stream_abort<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let (xid, subxid) = (reader.u32("xid")?, reader.u32("subtransaction xid")?);
    let at = if reader.is_empty() { None } else { Some((reader.lsn("abort LSN")?, reader.i64("abort time")?)) };
    Ok(Message::StreamAbort { xid, subxid, at })
}

fn prepared<'a>(reader: &mut Reader<'a>, has_flags: bool) -> Result<Prepared<'a>, DecodeError> {
    if has_flags {
        reader.u8("flags")?;
    }
    Ok(Prepared {
        prepare: reader.lsn("prepare LSN")?,
        end: reader.lsn("end LSN")?,
        time: reader.i64("prepare time")?,
        xid: reader.u32("xid")?,
        gid: reader.name("gid")?,
    })
}

fn commit_prepared<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.u8("flags")?;
    Ok(Message::CommitPrepared {
        commit: reader.commit_lsn("commit LSN")?,
        end: reader.lsn("end LSN")?,
        time: reader.i64("commit time")?,
        xid: reader.u32("xid")?,
        gid: reader.name("gid")?,
    })
}

fn rollback_prepared<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    reader.u8("flags")?;
    Ok(Message::RollbackPrepared {
        prepare_end: reader.lsn("prepare end LSN")?,
        rollback_end: reader.lsn("rollback end LSN")?,
        prepare_time: reader.i64("prepare time")?,
        rollback_time: reader.i64("rollback time")?,
        xid: reader.u32("xid")?,
        gid: reader.name("gid")?,
    })
}
