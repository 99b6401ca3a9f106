//! The original vectors of one vector column: an append-only file, one fixed-size checksummed row per node. Updates that
//! leave an embedding untouched do not carry it, so it must be kept here.

use crate::storage::files::{self, Handle, Mode};
use crate::storage::header::{self, Kind};
use crate::storage::record::floats;
use crate::storage::{IoContext, Result, damaged};
use std::path::{Path, PathBuf};

const KIND: Kind = Kind { magic: b"RVVEC\0\0\0", format: 2, name: "vector file" };
/// head 16, dimensions 4, zeros.
const HEADER: u64 = 64;
const WRITE_BUFFER: usize = 1 << 20;

/// The original vectors of one vector column.
pub struct Originals {
    path: PathBuf,
    file: Handle,
    dimensions: usize,
    /// Rows handed to the operating system.
    written: u32,
    buffer: Vec<u8>,
}

impl Originals {
    /// Opens the file, or makes it. `rows` is how many the transactional state knows of: later ones were never
    /// committed and are overwritten; fewer is damage.
    pub fn open(path: &Path, dimensions: usize, rows: u32) -> Result<Originals> {
        let file = files::open(path, Mode::Write)?;
        // Before the first row is committed nothing in the file counts: its header may not have reached the disk.
        if rows == 0 {
            write_header(path, &file, dimensions)?;
            crate::failpoint!("originals.created");
        } else {
            check_header(path, &file, dimensions)?;
        }
        let originals = Originals { path: path.to_owned(), file, dimensions, written: rows, buffer: Vec::new() };
        let length = originals.file.length().context("stat", path)?;
        if length < originals.offset(rows) {
            return Err(damaged(path, format!("has fewer than the {rows} rows it should have")));
        }
        Ok(originals)
    }

    /// Opens the file for reading while another handle writes: every row that a committed row names is there.
    pub fn open_for_reading(path: &Path, dimensions: usize) -> Result<Originals> {
        let file = files::open(path, Mode::Read)?;
        check_header(path, &file, dimensions)?;
        Ok(Originals { path: path.to_owned(), file, dimensions, written: u32::MAX, buffer: Vec::new() })
    }

    /// Rows are `dimensions` little-endian f32s and the CRC-32 of their bytes.
    fn stride(&self) -> usize {
        self.dimensions * 4 + 4
    }

    fn offset(&self, row: u32) -> u64 {
        HEADER + u64::from(row) * self.stride() as u64
    }

    /// How many rows there are.
    pub fn len(&self) -> u32 {
        self.written + (self.buffer.len() / self.stride()) as u32
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a row and returns its number. Durable only after [`Originals::sync`].
    pub fn push(&mut self, vector: &[f32]) -> Result<u32> {
        debug_assert_eq!(vector.len(), self.dimensions);
        let row = self.len();
        let start = self.buffer.len();
        vector.iter().for_each(|element| self.buffer.extend_from_slice(&element.to_le_bytes()));
        let crc = crc32fast::hash(&self.buffer[start..]);
        self.buffer.extend_from_slice(&crc.to_le_bytes());
        if self.buffer.len() >= WRITE_BUFFER {
            self.flush()?;
        }
        Ok(row)
    }

    /// Hands everything to the operating system: what a reader of the file sees.
    pub fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            crate::failpoint!("originals.before_write");
            self.file.write_at(&self.buffer, self.offset(self.written)).context("write", &self.path)?;
            crate::failpoint!("originals.written");
            self.written = self.len();
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

    /// Reads one row.
    pub fn read(&self, row: u32) -> Result<Vec<f32>> {
        let mut vector = vec![0.0; self.dimensions];
        self.read_into(row, &mut Vec::new(), &mut vector)?;
        Ok(vector)
    }

    /// Does the row hold exactly these bits?
    pub fn equals(&self, row: u32, vector: &[f32]) -> Result<bool> {
        let stored = self.read(row)?;
        Ok(stored.len() == vector.len() && stored.iter().zip(vector).all(|(a, b)| a.to_bits() == b.to_bits()))
    }

    /// Reads one row into `vector`; `scratch` saves an allocation when many are read.
    pub fn read_into(&self, row: u32, scratch: &mut Vec<u8>, vector: &mut [f32]) -> Result<()> {
        let stride = self.stride();
        scratch.resize(stride, 0);
        if row >= self.written {
            let start = (row - self.written) as usize * stride;
            let pending = self.buffer.get(start..start + stride);
            scratch.copy_from_slice(pending.ok_or_else(|| damaged(&self.path, format!("has no row {row}")))?);
        } else {
            self.file.read_at(scratch, self.offset(row)).context("read", &self.path)?;
        }
        let (body, crc) = scratch.split_at(stride - 4);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(damaged(&self.path, format!("checksum of row {row} does not match")));
        }
        vector.iter_mut().zip(floats(body)).for_each(|(to, from)| *to = from);
        Ok(())
    }
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

    #[test]
    fn uncommitted_rows_are_overwritten_and_committed_ones_stay() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("v.f32");
        let mut originals = Originals::open(&path, 3, 0).expect("create");
        for n in 0..5 {
            assert_eq!(originals.push(&[n as f32, f32::MIN_POSITIVE, -0.0]).expect("push"), n);
        }
        assert!(originals.equals(4, &[4.0, f32::MIN_POSITIVE, -0.0]).expect("buffered rows can be read"));
        originals.sync().expect("sync");
        drop(originals);
        let mut originals = Originals::open(&path, 3, 2).expect("open");
        assert_eq!(originals.push(&[9.0, 9.0, 9.0]).expect("push"), 2);
        originals.flush().expect("flush");
        assert_eq!(originals.read(2).expect("read"), [9.0; 3]);
        assert_eq!(originals.read(1).expect("read")[0], 1.0);
        assert!(matches!(Originals::open(&path, 3, 6), Err(StorageError::Damaged { .. })));
        assert!(matches!(Originals::open(&path, 4, 1), Err(StorageError::Damaged { .. })));
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("v.f32");
        let mut originals = Originals::open(&path, 2, 0).expect("create");
        originals.push(&[1.0, 2.0]).expect("push");
        originals.sync().expect("sync");
        let mut bytes = std::fs::read(&path).expect("bytes");
        bytes[HEADER as usize + 1] ^= 4;
        std::fs::write(&path, bytes).expect("write");
        assert!(matches!(originals.read(0), Err(StorageError::Damaged { .. })));
    }
}
