//! The bytes of log records and row cells: fixed little-endian, total to read.

use crate::model::{
    Cell, Change, CollectionId, CommitLsn, LogRecord, Lsn, Op, PageRange, RowImage, RowKey, SparseVector,
    TransactionHead, Value,
};

/// Bytes that are not a record, with what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a record: {0}")]
pub struct BadRecord(pub &'static str);

type Read<T> = Result<T, BadRecord>;

/// A cursor over bytes that were checksummed, and are nevertheless not trusted.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Read<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(BadRecord("ends early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk().ok_or(BadRecord("ends early"))?;
        self.0 = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Read<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length, then so many bytes.
    pub fn blob(&mut self) -> Read<&'a [u8]> {
        let count = self.u32()? as usize;
        self.bytes(count)
    }

    fn text(&mut self) -> Read<&'a str> {
        std::str::from_utf8(self.blob()?).map_err(|_| BadRecord("text is not UTF-8"))
    }

    /// A count, then so many items of at least `least` bytes. Memory grows with what is really there, not with the count.
    fn list<T>(&mut self, least: usize, mut item: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let count = self.u32()? as usize;
        let mut items = Vec::with_capacity(count.min(self.0.len() / least));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// Nothing may be left.
    pub fn end(&self) -> Read<()> {
        if self.0.is_empty() { Ok(()) } else { Err(BadRecord("has bytes left over")) }
    }
}

/// The smallest forms: a tag; the lengths of key and of both lists; collection, ordinal and tag.
const LEAST_CELL: usize = 1;
const LEAST_ROW: usize = 12;
const LEAST_CHANGE: usize = 9;

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len() as u32);
    out.extend_from_slice(bytes);
}

const NULL: u8 = 0;
const UNCHANGED: u8 = 1;
const INVALID: u8 = 2;
const BOOL: u8 = 3;
const INT: u8 = 4;
const FLOAT: u8 = 5;
const TEXT: u8 = 6;
const UUID: u8 = 7;
const DATE: u8 = 8;
const TIMESTAMP: u8 = 9;
const VECTOR: u8 = 10;
const SPARSE: u8 = 11;

/// Appends a cell.
pub fn put_cell(out: &mut Vec<u8>, cell: &Cell) {
    match cell {
        Cell::Null => out.push(NULL),
        Cell::Unchanged => out.push(UNCHANGED),
        Cell::Invalid(reason) => {
            out.push(INVALID);
            put_blob(out, reason.as_bytes());
        }
        Cell::Value(value) => put_value(out, value),
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Bool(v) => out.extend_from_slice(&[BOOL, u8::from(*v)]),
        Value::Int(v) => {
            out.push(INT);
            put_u64(out, *v as u64);
        }
        Value::Float(v) => {
            out.push(FLOAT);
            put_u64(out, v.to_bits());
        }
        Value::Text(v) => {
            out.push(TEXT);
            put_blob(out, v.as_bytes());
        }
        Value::Uuid(v) => {
            out.push(UUID);
            out.extend_from_slice(v);
        }
        Value::Date(v) => {
            out.push(DATE);
            put_u32(out, *v as u32);
        }
        Value::Timestamp(v) => {
            out.push(TIMESTAMP);
            put_u64(out, *v as u64);
        }
        Value::Vector(v) => {
            out.push(VECTOR);
            put_u32(out, v.len() as u32);
            out.reserve(v.len() * 4);
            for element in v {
                out.extend_from_slice(&element.to_le_bytes());
            }
        }
        Value::Sparse(v) => {
            out.push(SPARSE);
            put_sparse(out, v);
        }
    }
}

/// Appends a sparse vector: dimensions, count, indices, values.
pub fn put_sparse(out: &mut Vec<u8>, vector: &SparseVector) {
    put_u32(out, vector.dimensions() as u32);
    put_u32(out, vector.indices().len() as u32);
    vector.indices().iter().for_each(|index| put_u32(out, *index));
    vector.values().iter().for_each(|value| put_u32(out, value.to_bits()));
}

/// Reads a sparse vector.
pub fn get_sparse(from: &mut Reader<'_>) -> Read<SparseVector> {
    let (dimensions, count) = (from.u32()? as usize, from.u32()? as usize);
    let length = count.checked_mul(4).ok_or(BadRecord("vector too long"))?;
    let indices = from.bytes(length)?.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let elements = indices.zip(floats(from.bytes(length)?)).collect();
    SparseVector::new(dimensions, elements).map_err(|_| BadRecord("not a sparse vector"))
}

/// Reads a cell.
pub fn get_cell(from: &mut Reader<'_>) -> Read<Cell> {
    Ok(Cell::Value(match from.u8()? {
        NULL => return Ok(Cell::Null),
        UNCHANGED => return Ok(Cell::Unchanged),
        INVALID => return Ok(Cell::Invalid(from.text()?.into())),
        BOOL => Value::Bool(from.u8()? != 0),
        INT => Value::Int(from.u64()? as i64),
        FLOAT => Value::Float(f64::from_bits(from.u64()?)),
        TEXT => Value::Text(from.text()?.into()),
        UUID => Value::Uuid(from.array()?),
        DATE => Value::Date(from.u32()? as i32),
        TIMESTAMP => Value::Timestamp(from.u64()? as i64),
        VECTOR => {
            let count = from.u32()? as usize;
            let bytes = from.bytes(count.checked_mul(4).ok_or(BadRecord("vector too long"))?)?;
            Value::Vector(floats(bytes).collect())
        }
        SPARSE => get_sparse(from)?.into(),
        _ => return Err(BadRecord("unknown kind of cell")),
    }))
}

/// Little-endian f32s; a rest of fewer than four bytes is ignored.
pub fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn put_row(out: &mut Vec<u8>, row: &RowImage) {
    put_blob(out, row.key.as_bytes());
    for cells in [&row.vectors, &row.filters] {
        put_u32(out, cells.len() as u32);
        cells.iter().for_each(|cell| put_cell(out, cell));
    }
}

fn get_row(from: &mut Reader<'_>) -> Read<RowImage> {
    Ok(RowImage {
        key: RowKey::from_bytes(from.blob()?),
        vectors: from.list(LEAST_CELL, get_cell)?,
        filters: from.list(LEAST_CELL, get_cell)?,
    })
}

const UPSERT: u8 = 1;
const REKEY: u8 = 2;
const DELETE: u8 = 3;
const TRUNCATE: u8 = 4;
const DRIFT: u8 = 5;

fn put_change(out: &mut Vec<u8>, change: &Change) {
    put_u32(out, change.collection.0);
    put_u32(out, change.ordinal);
    match &change.op {
        Op::Upsert { old_key: None, row } => {
            out.push(UPSERT);
            put_row(out, row);
        }
        Op::Upsert { old_key: Some(key), row } => {
            out.push(REKEY);
            put_blob(out, key.as_bytes());
            put_row(out, row);
        }
        Op::Delete { key } => {
            out.push(DELETE);
            put_blob(out, key.as_bytes());
        }
        Op::Truncate => out.push(TRUNCATE),
        Op::Drift { reason } => {
            out.push(DRIFT);
            put_blob(out, reason.as_bytes());
        }
    }
}

fn get_change(from: &mut Reader<'_>) -> Read<Change> {
    let collection = CollectionId(from.u32()?);
    let ordinal = from.u32()?;
    let op = match from.u8()? {
        UPSERT => Op::Upsert { old_key: None, row: get_row(from)? },
        REKEY => {
            let old_key = Some(RowKey::from_bytes(from.blob()?));
            Op::Upsert { old_key, row: get_row(from)? }
        }
        DELETE => Op::Delete { key: RowKey::from_bytes(from.blob()?) },
        TRUNCATE => Op::Truncate,
        DRIFT => Op::Drift { reason: from.text()?.to_owned() },
        _ => return Err(BadRecord("unknown kind of change")),
    };
    Ok(Change { collection, ordinal, op })
}

const BEGIN: u8 = 1;
const CHANGES: u8 = 2;
const COMMIT: u8 = 3;
const PROGRESS: u8 = 4;
const COPIED: u8 = 5;
const COPY_END: u8 = 6;
const COPY_START: u8 = 7;
const RANGE_COPIED: u8 = 8;

/// Appends a log record's body.
pub fn put_record(out: &mut Vec<u8>, record: &LogRecord) {
    match record {
        LogRecord::Begin(head) => {
            out.push(BEGIN);
            put_u64(out, head.commit.0);
            put_u64(out, head.commit_time as u64);
        }
        LogRecord::Changes(changes) => {
            out.push(CHANGES);
            put_u32(out, changes.len() as u32);
            changes.iter().for_each(|change| put_change(out, change));
        }
        LogRecord::Commit { end } => {
            out.push(COMMIT);
            put_u64(out, end.0);
        }
        LogRecord::Progress { upto } => {
            out.push(PROGRESS);
            put_u64(out, upto.0);
        }
        LogRecord::CopyStart { at, filenode } => {
            out.push(COPY_START);
            put_u64(out, at.0);
            put_u32(out, *filenode);
        }
        LogRecord::RangeCopied(PageRange { first, end }) => {
            out.push(RANGE_COPIED);
            put_u32(out, *first);
            out.push(u8::from(end.is_some()));
            put_u32(out, end.unwrap_or(0));
        }
        LogRecord::Copied(rows) => {
            out.push(COPIED);
            put_u32(out, rows.len() as u32);
            rows.iter().for_each(|row| put_row(out, row));
        }
        LogRecord::CopyEnd { at, rows } => {
            out.push(COPY_END);
            put_u64(out, at.0);
            put_u64(out, *rows);
        }
    }
}

/// Reads a log record's body.
pub fn get_record(bytes: &[u8]) -> Read<LogRecord> {
    let mut from = Reader(bytes);
    let record = match from.u8()? {
        BEGIN => LogRecord::Begin(TransactionHead { commit: CommitLsn(from.u64()?), commit_time: from.u64()? as i64 }),
        CHANGES => LogRecord::Changes(from.list(LEAST_CHANGE, get_change)?),
        COMMIT => LogRecord::Commit { end: Lsn(from.u64()?) },
        PROGRESS => LogRecord::Progress { upto: Lsn(from.u64()?) },
        COPIED => LogRecord::Copied(from.list(LEAST_ROW, get_row)?),
        COPY_START => LogRecord::CopyStart { at: Lsn(from.u64()?), filenode: from.u32()? },
        RANGE_COPIED => {
            let (first, bounded, end) = (from.u32()?, from.u8()? != 0, from.u32()?);
            LogRecord::RangeCopied(PageRange { first, end: bounded.then_some(end) })
        }
        COPY_END => LogRecord::CopyEnd { at: Lsn(from.u64()?), rows: from.u64()? },
        _ => return Err(BadRecord("unknown kind of record")),
    };
    from.end()?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row() -> RowImage {
        RowImage {
            key: RowKey::encode(&[Value::Int(-7), Value::Text("a\0é".into())]).expect("key"),
            vectors: vec![
                Cell::Value(Value::Vector([1.0, f32::NAN, -0.0].into())),
                Cell::Unchanged,
                Cell::Value(SparseVector::new(9, vec![(8, -0.5), (0, f32::NAN)]).expect("a vector").into()),
            ],
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

    fn every_record() -> Vec<LogRecord> {
        let change = |ordinal, op| Change { collection: CollectionId(3), ordinal, op };
        let key = || row().key;
        vec![
            LogRecord::Begin(TransactionHead { commit: CommitLsn(u64::MAX), commit_time: -1 }),
            LogRecord::Changes(vec![
                change(1, Op::Upsert { old_key: None, row: row() }),
                change(2, Op::Upsert { old_key: Some(key()), row: row() }),
                change(3, Op::Delete { key: key() }),
                change(4, Op::Truncate),
                change(5, Op::Drift { reason: "gone".into() }),
            ]),
            LogRecord::Commit { end: Lsn(5) },
            LogRecord::Progress { upto: Lsn(6) },
            LogRecord::CopyStart { at: Lsn(7), filenode: 9 },
            LogRecord::Copied(vec![row(), row()]),
            LogRecord::RangeCopied(PageRange { first: 1, end: None }),
            LogRecord::RangeCopied(PageRange { first: 1, end: Some(5) }),
            LogRecord::CopyEnd { at: Lsn(7), rows: 2 },
        ]
    }

    #[test]
    fn every_record_survives_the_round_trip_and_no_prefix_of_it_is_one() {
        for record in every_record() {
            let mut bytes = Vec::new();
            put_record(&mut bytes, &record);
            // NaN is not equal to itself: compare what people would read.
            assert_eq!(format!("{:?}", get_record(&bytes).expect("whole")), format!("{record:?}"));
            for end in 0..bytes.len() {
                assert!(get_record(&bytes[..end]).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 1u8..10) {
            let _ = get_record(&bytes);
            let mut tagged = vec![kind];
            tagged.extend(bytes);
            let _ = get_record(&tagged);
        }
    }
}
