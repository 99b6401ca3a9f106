//! The original vectors of one sparse vector column: an append-only file, one checksummed row of its own length per node.
//! It is read once, at the start: all rows are in memory besides.

use crate::model::{MAX_NONZERO, SparseVector};
use crate::storage::files::{self, Handle, Mode};
use crate::storage::header::{self, Kind};
use crate::storage::record::floats;
use crate::storage::{IoContext, Result, damaged};
use std::path::{Path, PathBuf};

const KIND: Kind = Kind { magic: b"RVSPV\0\0\0", format: 1, name: "file of sparse vectors" };
/// head 16, dimensions 4, zeros.
const HEADER: u64 = 64;
const WRITE_BUFFER: usize = 1 << 20;
/// Read at once.
const CHUNK: usize = 1 << 20;

/// The original vectors of one sparse vector column, to be written.
pub struct SparseOriginals {
    path: PathBuf,
    file: Handle,
    rows: u32,
    /// Bytes handed to the operating system.
    written: u64,
    buffer: Vec<u8>,
}

impl SparseOriginals {
    /// Opens the file, or makes it, and hands its rows over in order. `rows` is how many the transactional state knows of:
    /// later ones were never committed and are overwritten; fewer is damage.
    pub fn open(path: &Path, dimensions: usize, rows: u32, each: impl FnMut(SparseVector)) -> Result<SparseOriginals> {
        let file = files::open(path, Mode::Write)?;
        let path = path.to_owned();
        // Before the first row is committed nothing in the file counts: its header may not have reached the disk.
        let written = if rows == 0 {
            write_header(&path, &file, dimensions)?;
            crate::failpoint!("originals.created");
            HEADER
        } else {
            check_header(&path, &file, dimensions)?;
            read_rows(&path, &file, dimensions, rows, each)?
        };
        Ok(SparseOriginals { path, file, rows, written, buffer: Vec::new() })
    }

    /// Adds a row and returns its number. Durable only after [`SparseOriginals::sync`].
    pub fn push(&mut self, vector: &SparseVector) -> Result<u32> {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&(vector.indices().len() as u32).to_le_bytes());
        vector.indices().iter().for_each(|index| self.buffer.extend_from_slice(&index.to_le_bytes()));
        vector.values().iter().for_each(|value| self.buffer.extend_from_slice(&value.to_le_bytes()));
        let crc = crc32fast::hash(&self.buffer[start..]);
        self.buffer.extend_from_slice(&crc.to_le_bytes());
        self.rows += 1;
        if self.buffer.len() >= WRITE_BUFFER {
            self.flush()?;
        }
        Ok(self.rows - 1)
    }

    /// Hands everything to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            crate::failpoint!("originals.before_write");
            self.file.write_at(&self.buffer, self.written).context("write", &self.path)?;
            crate::failpoint!("originals.written");
            self.written += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Makes everything durable.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        crate::failpoint!("originals.before_sync");
        self.file.sync().context("sync", &self.path)?;
        crate::failpoint!("originals.synced");
        Ok(())
    }
}

/// A file that is read from its beginning on.
struct Ahead<'f> {
    path: &'f Path,
    file: &'f Handle,
    /// What was read and not taken, from `at` on.
    buffer: Vec<u8>,
    at: usize,
    /// Where in the file the buffer ends, and where the file does.
    end: u64,
    length: u64,
}

impl Ahead<'_> {
    /// The next so many bytes.
    fn take(&mut self, count: usize) -> Result<&[u8]> {
        if self.buffer.len() - self.at < count {
            self.buffer.drain(..self.at);
            self.at = 0;
            let kept = self.buffer.len();
            let more = (self.length - self.end).min((count - kept).max(CHUNK) as u64) as usize;
            if kept + more < count {
                return Err(damaged(self.path, "has fewer rows than it should have"));
            }
            self.buffer.resize(kept + more, 0);
            self.file.read_at(&mut self.buffer[kept..], self.end).context("read", self.path)?;
            self.end += more as u64;
        }
        self.at += count;
        Ok(&self.buffer[self.at - count..self.at])
    }

    fn word(&mut self) -> Result<u32> {
        let word = self.take(4)?;
        Ok(u32::from_le_bytes(word.try_into().expect("four bytes")))
    }
}

/// Reads the first rows; where the last of them ends.
fn read_rows(
    path: &Path,
    file: &Handle,
    dimensions: usize,
    rows: u32,
    mut each: impl FnMut(SparseVector),
) -> Result<u64> {
    let length = file.length().context("stat", path)?.max(HEADER);
    let mut ahead = Ahead { path, file, buffer: Vec::new(), at: 0, end: HEADER, length };
    for row in 0..rows {
        let wrong = || damaged(path, format!("checksum of row {row} does not match"));
        let count = ahead.word()?;
        if count as usize > MAX_NONZERO {
            return Err(wrong());
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&count.to_le_bytes());
        let body = ahead.take(8 * count as usize)?;
        crc.update(body);
        let (indices, values) = body.split_at(4 * count as usize);
        let indices = indices.as_chunks::<4>().0.iter().map(|index| u32::from_le_bytes(*index));
        let elements = indices.zip(floats(values)).collect();
        if ahead.word()? != crc.finalize() {
            return Err(wrong());
        }
        each(SparseVector::new(dimensions, elements).map_err(|reason| damaged(path, format!("row {row}: {reason}")))?);
    }
    Ok(ahead.end - (ahead.buffer.len() - ahead.at) as u64)
}

fn write_header(path: &Path, file: &Handle, dimensions: usize) -> Result<()> {
    let mut header = [0; HEADER as usize];
    header[header::LENGTH..][..4].copy_from_slice(&(dimensions as u32).to_le_bytes());
    KIND.seal(&mut header);
    file.write_at(&header, 0).and_then(|()| file.sync()).context("write", path)?;
    files::sync_dir(path.parent().unwrap_or(Path::new(".")))
}

fn check_header(path: &Path, file: &Handle, dimensions: usize) -> Result<()> {
    let mut header = [0; HEADER as usize];
    file.read_at(&mut header, 0).context("read the header of", path)?;
    KIND.check(path, &header)?;
    let found = u32::from_le_bytes(header[header::LENGTH..][..4].try_into().expect("four bytes"));
    if found as usize != dimensions {
        return Err(damaged(path, format!("has {found} dimensions, not {dimensions}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::StorageError;

    fn vector(row: u32) -> SparseVector {
        // Some rows are so long that parts of a file which are read at once end in the middle of them.
        let count = if row % 50 == 7 { 16_000 } else { row % 4 };
        let elements = (0..count).map(|at| (at * 3 + row % 3, (row + 1) as f32 / (at + 1) as f32)).collect();
        SparseVector::new(100_000, elements).expect("a vector")
    }

    fn open(path: &Path, dimensions: usize, rows: u32) -> Result<(SparseOriginals, Vec<SparseVector>)> {
        let mut found = Vec::new();
        let originals = SparseOriginals::open(path, dimensions, rows, |vector| found.push(vector))?;
        Ok((originals, found))
    }

    #[test]
    fn uncommitted_rows_are_overwritten_and_committed_ones_come_back() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("v.sparse");
        let (mut originals, found) = open(&path, 100_000, 0).expect("create");
        assert!(found.is_empty());
        for row in 0..900 {
            assert_eq!(originals.push(&vector(row)).expect("push"), row);
        }
        originals.sync().expect("sync");
        assert!(std::fs::metadata(&path).expect("a file").len() as usize > 2 * CHUNK);
        let (mut originals, found) = open(&path, 100_000, 800).expect("open");
        assert!(found == (0..800).map(vector).collect::<Vec<_>>());
        assert_eq!(originals.push(&vector(3)).expect("push"), 800);
        originals.flush().expect("flush");
        let (_, found) = open(&path, 100_000, 801).expect("open");
        assert!(found[800] == vector(3));
        assert!(matches!(open(&path, 100_001, 1), Err(StorageError::Damaged { .. })));
        assert!(matches!(open(&path, 100_000, 100_000), Err(StorageError::Damaged { .. })));
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("v.sparse");
        let (mut originals, _) = open(&path, 100_000, 0).expect("create");
        for row in 1..4 {
            originals.push(&vector(row)).expect("push");
        }
        originals.sync().expect("sync");
        let good = std::fs::read(&path).expect("bytes");
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, bytes).expect("write");
            let opened = open(&path, 100_000, 3);
            let told = matches!(opened, Err(StorageError::Damaged { .. } | StorageError::Format { .. }));
            assert!(told, "byte {at}: {:?}", opened.map(|(_, found)| found));
        }
    }
}
