//! Rows out of `COPY ... TO STDOUT (FORMAT binary)`, whose bytes arrive in chunks that may end anywhere (PostgreSQL
//! manual, COPY, "Binary Format"). Memory is bounded by what was received of one row.

/// What is wrong with the bytes of a copy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// It does not begin as a binary copy does.
    #[error("the copy is not in binary format")]
    BadSignature,
    /// A flag that changes the meaning of what follows.
    #[error("the copy has unknown critical flags {0:#x}")]
    UnknownFlags(u32),
    /// A length that cannot be.
    #[error("row {row} of the copy has a length of {length}")]
    BadLength {
        /// One-based; 0 is the header.
        row: u64,
        /// The length.
        length: i64,
    },
    /// Another number of columns than was asked for.
    #[error("row {row} of the copy has {found} columns instead of {expected}")]
    ColumnCount {
        /// One-based.
        row: u64,
        /// How many.
        found: i16,
        /// How many were asked for.
        expected: usize,
    },
    /// Bytes after the trailer.
    #[error("the copy goes on after its end")]
    AfterEnd,
    /// The bytes ended before the trailer.
    #[error("the copy ended after {rows} rows without its trailer")]
    Incomplete {
        /// Rows that were whole.
        rows: u64,
    },
    /// It had failed before.
    #[error("the copy had failed before")]
    Failed,
}

/// Largest row, and with it largest field: PostgreSQL's own limit for one message.
pub const MAX_ROW: usize = 1 << 30;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// Signature, flags, length of the extension.
const HEADER: usize = SIGNATURE.len() + 4 + 4;
/// Takes one row: a field per column, `None` for NULL.
pub type RowSink<'a, E> = dyn FnMut(&[Option<&[u8]>]) -> Result<(), E> + 'a;

/// Buffers that a large row left behind are not kept.
const KEEP_CAPACITY: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Rows,
    End,
    Failed,
}

/// The decoder of one copy.
#[derive(Debug)]
pub struct CopyRows {
    columns: usize,
    state: State,
    rows: u64,
    /// The beginning of what is not whole yet.
    pending: Vec<u8>,
}

/// What stands at the beginning of some bytes.
enum Step {
    /// Not all of it is there yet.
    Incomplete,
    /// The header, of this length.
    Header(usize),
    /// A row of this length; its fields were handed over.
    Row(usize),
    /// The trailer, of this length.
    End(usize),
}

impl CopyRows {
    /// A copy with this many columns in each row.
    pub fn new(columns: usize) -> CopyRows {
        CopyRows { columns, state: State::Header, rows: 0, pending: Vec::new() }
    }

    /// Rows that were whole so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The next bytes. `row` gets every row that is whole now, one field per column, `None` for NULL. After an error,
    /// also one of `row`, the copy has failed for good.
    pub fn feed<E: From<CopyError>>(&mut self, chunk: &[u8], row: &mut RowSink<'_, E>) -> Result<(), E> {
        let mut buffer = std::mem::take(&mut self.pending);
        let result = if buffer.is_empty() {
            self.consume(chunk, row).map(|used| buffer.extend_from_slice(&chunk[used..]))
        } else {
            buffer.extend_from_slice(chunk);
            self.consume(&buffer, row).map(|used| drop(buffer.drain(..used)))
        };
        if result.is_err() {
            self.state = State::Failed;
        } else {
            self.keep(buffer);
        }
        result
    }

    /// The bytes have ended: how many rows there were, if that was all of them.
    pub fn finish(self) -> Result<u64, CopyError> {
        match self.state {
            State::End => Ok(self.rows),
            State::Failed => Err(CopyError::Failed),
            State::Header | State::Rows => Err(CopyError::Incomplete { rows: self.rows }),
        }
    }

    fn keep(&mut self, buffer: Vec<u8>) {
        if !buffer.is_empty() || buffer.capacity() <= KEEP_CAPACITY {
            self.pending = buffer;
        }
    }

    /// Takes everything that is whole; how many bytes that was.
    fn consume<E: From<CopyError>>(&mut self, data: &[u8], row: &mut RowSink<'_, E>) -> Result<usize, E> {
        let mut used = 0;
        let mut fields = Vec::with_capacity(self.columns);
        loop {
            match self.step(&data[used..], &mut fields)? {
                Step::Incomplete => return Ok(used),
                Step::Header(length) => {
                    self.state = State::Rows;
                    used += length;
                }
                Step::Row(length) => {
                    row(&fields)?;
                    self.rows += 1;
                    used += length;
                }
                Step::End(length) => {
                    self.state = State::End;
                    used += length;
                }
            }
        }
    }

    fn step<'d>(&self, data: &'d [u8], fields: &mut Vec<Option<&'d [u8]>>) -> Result<Step, CopyError> {
        match self.state {
            State::Header => header(data),
            State::Rows => self.row(data, fields),
            State::End if data.is_empty() => Ok(Step::Incomplete),
            State::End => Err(CopyError::AfterEnd),
            State::Failed => Err(CopyError::Failed),
        }
    }

    fn row<'d>(&self, data: &'d [u8], fields: &mut Vec<Option<&'d [u8]>>) -> Result<Step, CopyError> {
        let Some(found) = i16_at(data, 0) else { return Ok(Step::Incomplete) };
        if found == -1 {
            return Ok(Step::End(2));
        }
        let row = self.rows + 1;
        if usize::try_from(found) != Ok(self.columns) {
            return Err(CopyError::ColumnCount { row, found, expected: self.columns });
        }
        fields.clear();
        let mut at = 2;
        for _ in 0..self.columns {
            let Some(length) = i32_at(data, at) else { return Ok(Step::Incomplete) };
            at += 4;
            if length == -1 {
                fields.push(None);
                continue;
            }
            // Checked before waiting for the bytes, so that a wrong length is not waited for.
            let end = usize::try_from(length).ok().map(|length| at + length).filter(|end| *end <= MAX_ROW);
            let end = end.ok_or(CopyError::BadLength { row, length: length.into() })?;
            let Some(field) = data.get(at..end) else { return Ok(Step::Incomplete) };
            fields.push(Some(field));
            at = end;
        }
        Ok(Step::Row(at))
    }
}

/// The extension area is skipped, as the manual asks of readers that do not know it.
fn header(data: &[u8]) -> Result<Step, CopyError> {
    let shown = data.len().min(SIGNATURE.len());
    if data[..shown] != SIGNATURE[..shown] {
        return Err(CopyError::BadSignature);
    }
    let Some(flags) = i32_at(data, SIGNATURE.len()) else { return Ok(Step::Incomplete) };
    let critical = flags as u32 & 0xFFFF_0000;
    if critical != 0 {
        return Err(CopyError::UnknownFlags(critical));
    }
    let Some(length) = i32_at(data, SIGNATURE.len() + 4) else { return Ok(Step::Incomplete) };
    let end = usize::try_from(length).ok().map(|length| HEADER + length).filter(|end| *end <= MAX_ROW);
    let end = end.ok_or(CopyError::BadLength { row: 0, length: length.into() })?;
    Ok(if data.len() < end { Step::Incomplete } else { Step::Header(end) })
}

fn i16_at(data: &[u8], at: usize) -> Option<i16> {
    data.get(at..)?.first_chunk().map(|chunk| i16::from_be_bytes(*chunk))
}

fn i32_at(data: &[u8], at: usize) -> Option<i32> {
    data.get(at..)?.first_chunk().map(|chunk| i32::from_be_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Row = Vec<Option<Vec<u8>>>;

    fn copy_bytes(extension: &[u8], rows: &[Row]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend(0i32.to_be_bytes());
        bytes.extend((extension.len() as i32).to_be_bytes());
        bytes.extend(extension);
        for row in rows {
            bytes.extend((row.len() as i16).to_be_bytes());
            for field in row {
                bytes.extend(field.as_ref().map_or(-1, |field| field.len() as i32).to_be_bytes());
                bytes.extend(field.iter().flatten());
            }
        }
        bytes.extend((-1i16).to_be_bytes());
        bytes
    }

    fn collect(columns: usize, chunks: &[&[u8]]) -> Result<Vec<Row>, CopyError> {
        let mut decoder = CopyRows::new(columns);
        let mut rows = Vec::new();
        for chunk in chunks {
            decoder.feed(chunk, &mut |row| {
                rows.push(row.iter().map(|field| field.map(<[u8]>::to_vec)).collect());
                Ok::<(), CopyError>(())
            })?;
        }
        assert_eq!(decoder.finish()?, rows.len() as u64);
        Ok(rows)
    }

    fn sample() -> Vec<Row> {
        vec![
            vec![Some(vec![1, 2, 3]), None],
            vec![Some(vec![]), Some(b"PGCOPY".to_vec())],
            vec![None, None],
            vec![Some(vec![0xFF; 40]), Some(vec![0])],
        ]
    }

    #[test]
    fn every_split() {
        let bytes = copy_bytes(b"later", &sample());
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let chunks = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(collect(2, &chunks), Ok(sample()), "{first} {second}");
            }
        }
        let singles: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(collect(2, &singles), Ok(sample()));
    }

    #[test]
    fn a_copy_without_rows_or_columns() {
        assert_eq!(collect(3, &[&copy_bytes(b"", &[])]), Ok(vec![]));
        assert_eq!(collect(0, &[&copy_bytes(b"", &[vec![], vec![]])]), Ok(vec![vec![], vec![]]));
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = copy_bytes(b"x", &sample());
        for length in 0..bytes.len() {
            assert!(matches!(collect(2, &[&bytes[..length]]), Err(CopyError::Incomplete { .. })), "{length}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = copy_bytes(b"", &sample());
        let with = |at: usize, bytes: &[u8]| {
            let mut changed = good.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            collect(2, &[&changed])
        };
        assert_eq!(with(0, b"X"), Err(CopyError::BadSignature));
        assert_eq!(collect(2, &[b"1\t2\n"]), Err(CopyError::BadSignature));
        assert_eq!(with(11, &[0, 1, 0, 0]), Err(CopyError::UnknownFlags(0x10000)));
        assert_eq!(with(15, &[0xFF; 4]), Err(CopyError::BadLength { row: 0, length: -1 }));
        assert_eq!(with(19, &[0, 3]), Err(CopyError::ColumnCount { row: 1, found: 3, expected: 2 }));
        assert_eq!(with(19, &[0xFF, 0xFE]), Err(CopyError::ColumnCount { row: 1, found: -2, expected: 2 }));
        assert_eq!(with(21, &[0xFF, 0xFF, 0xFF, 0xFE]), Err(CopyError::BadLength { row: 1, length: -2 }));
        assert_eq!(with(21, &i32::MAX.to_be_bytes()), Err(CopyError::BadLength { row: 1, length: i32::MAX.into() }));
        assert_eq!(collect(2, &[&good, b"x"]), Err(CopyError::AfterEnd));
        assert_eq!(collect(2, &[&[&good[..], &[0]].concat()]), Err(CopyError::AfterEnd));
    }

    #[test]
    fn an_error_of_the_consumer_ends_the_copy() {
        let bytes = copy_bytes(b"", &sample());
        let mut decoder = CopyRows::new(2);
        assert_eq!(decoder.feed(&bytes, &mut |_| Err(CopyError::AfterEnd)), Err(CopyError::AfterEnd));
        assert_eq!(decoder.feed(&[], &mut |_| Ok(())), Err(CopyError::Failed));
        assert_eq!(decoder.finish(), Err(CopyError::Failed));
    }

    proptest! {
        #[test]
        fn any_bytes_after_the_header(bytes in proptest::collection::vec(any::<u8>(), 0..100), columns in 0usize..4) {
            let header = &copy_bytes(b"", &[])[..HEADER];
            let _ = collect(columns, &[&bytes]);
            let _ = collect(columns, &[header, &bytes]);
        }

        #[test]
        fn mutations(at in 0usize..100, byte: u8, split in 0usize..100) {
            let mut bytes = copy_bytes(b"x", &sample());
            let (at, split) = (at % bytes.len(), split % bytes.len());
            bytes[at] = byte;
            let whole = collect(2, &[&bytes]);
            prop_assert_eq!(collect(2, &[&bytes[..split], &bytes[split..]]), whole);
        }
    }
}
