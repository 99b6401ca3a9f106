//! The original vectors of one vector column: an append-only file, one fixed-size checksummed row per node, in the
//! source's precision. Updates that leave an embedding untouched do not carry it, so it must be kept here.

use crate::model::ColumnType;
use crate::storage::files::{self, Handle, Mode};
use crate::storage::header::{self, Kind};
use crate::storage::record::floats;
use crate::storage::{IoContext, Result, damaged};
use half::f16;
use memmap2::Mmap;
use std::path::{Path, PathBuf};

const KIND: Kind = Kind { magic: b"RVVEC\0\0\0", format: 3, name: "vector file" };
/// Had zeros in the element's place, which is what f32 is.
const BEFORE: Kind = Kind { format: 2, ..KIND };
/// head 16, dimensions 4, element 4, zeros.
const HEADER: u64 = 64;
const WRITE_BUFFER: usize = 1 << 20;
/// What is mapped of a file: more rows than one can have, but no more than this.
const MAPPED_ROWS: u64 = 1 << 32;
const MAPPED_BYTES: u64 = 1 << 42;

/// How an element of a vector is stored: as precise as the source has it, no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Element {
    /// Four bytes, little-endian.
    F32 = 0,
    /// Two bytes, little-endian.
    F16 = 1,
    /// A bit, the lowest of a byte first.
    Bit = 2,
}

impl Element {
    /// What vectors of this type are made of.
    pub fn of(kind: ColumnType) -> Element {
        match kind {
            ColumnType::Halfvec => Element::F16,
            ColumnType::Bit | ColumnType::Varbit => Element::Bit,
            _ => Element::F32,
        }
    }

    /// Bytes of a vector.
    fn bytes(self, dimensions: usize) -> usize {
        match self {
            Element::F32 => 4 * dimensions,
            Element::F16 => 2 * dimensions,
            Element::Bit => dimensions.div_ceil(8),
        }
    }

    /// Appends a vector whose elements are all of this kind.
    fn put(self, vector: &[f32], out: &mut Vec<u8>) {
        match self {
            Element::F32 => vector.iter().for_each(|element| out.extend_from_slice(&element.to_le_bytes())),
            Element::F16 => {
                vector.iter().for_each(|element| out.extend_from_slice(&f16::from_f32(*element).to_le_bytes()));
            }
            Element::Bit => {
                let byte = |bits: &[f32]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit != 0.0));
                out.extend(vector.chunks(8).map(byte));
            }
        }
    }

    /// Reads a vector back.
    fn get(self, bytes: &[u8], vector: &mut [f32]) {
        match self {
            Element::F32 => vector.iter_mut().zip(floats(bytes)).for_each(|(to, from)| *to = from),
            Element::F16 => {
                let (halves, _) = bytes.as_chunks::<2>();
                vector.iter_mut().zip(halves).for_each(|(to, from)| *to = f16::from_le_bytes(*from).to_f32());
            }
            Element::Bit => {
                let bits = vector.chunks_mut(8).zip(bytes);
                bits.for_each(|(to, byte)| (0..).zip(to).for_each(|(at, to)| *to = f32::from(byte >> at & 1)));
            }
        }
    }
}

/// The original vectors of one vector column.
pub struct Originals {
    path: PathBuf,
    file: Handle,
    dimensions: usize,
    element: Element,
    /// The file in memory, of one that is only read.
    map: Option<Mmap>,
    /// Rows handed to the operating system.
    written: u32,
    buffer: Vec<u8>,
}

impl Originals {
    /// Opens the file, or makes it. `rows` is how many the transactional state knows of: later ones were never
    /// committed and are overwritten; fewer is damage.
    pub fn open(path: &Path, dimensions: usize, element: Element, rows: u32) -> Result<Originals> {
        let file = files::open(path, Mode::Write)?;
        // Before the first row is committed nothing in the file counts: its header may not have reached the disk.
        if rows == 0 {
            write_header(path, &file, dimensions, element)?;
            crate::failpoint!("originals.created");
        } else {
            check_header(path, &file, dimensions, element)?;
        }
        let path = path.to_owned();
        let originals = Originals { path, file, dimensions, element, map: None, written: rows, buffer: Vec::new() };
        let length = originals.file.length().context("stat", &originals.path)?;
        if length < originals.offset(rows) {
            return Err(damaged(&originals.path, format!("has fewer than the {rows} rows it should have")));
        }
        Ok(originals)
    }

    /// Opens the file for reading while another handle writes: every row that a committed row names is there.
    pub fn open_for_reading(path: &Path, dimensions: usize, element: Element) -> Result<Originals> {
        let file = files::open(path, Mode::Read)?;
        check_header(path, &file, dimensions, element)?;
        let (path, map, written) = (path.to_owned(), None, u32::MAX);
        Ok(Originals { path, file, dimensions, element, map, written, buffer: Vec::new() })
    }

    /// Like [`Originals::open_for_reading`], for rows at random: through memory, where the system can do that. Then an
    /// error of the disk ends the process, instead of being told.
    pub fn open_mapped(path: &Path, dimensions: usize, element: Element) -> Result<Originals> {
        let mut originals = Originals::open_for_reading(path, dimensions, element)?;
        // Address space only: pages come when they are touched, and those beyond the end of the file never are.
        let length = HEADER.saturating_add(originals.stride() as u64 * MAPPED_ROWS).min(MAPPED_BYTES);
        originals.map = originals.file.map(length as usize);
        Ok(originals)
    }

    /// Rows are `dimensions` elements and the CRC-32 of their bytes.
    fn stride(&self) -> usize {
        self.element.bytes(self.dimensions) + 4
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
        self.element.put(vector, &mut self.buffer);
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
        if let Some(bytes) = self.mapped(row) {
            return self.checked(row, bytes, vector);
        }
        scratch.resize(stride, 0);
        if row >= self.written {
            let start = (row - self.written) as usize * stride;
            let pending = self.buffer.get(start..start + stride);
            scratch.copy_from_slice(pending.ok_or_else(|| damaged(&self.path, format!("has no row {row}")))?);
        } else {
            self.file.read_at(scratch, self.offset(row)).context("read", &self.path)?;
        }
        self.checked(row, scratch, vector)
    }

    /// A row's bytes in memory, where rows are read through it. The row must be there.
    pub fn mapped(&self, row: u32) -> Option<&[u8]> {
        let start = self.offset(row) as usize;
        self.map.as_ref()?.get(start..start + self.stride())
    }

    fn checked(&self, row: u32, bytes: &[u8], vector: &mut [f32]) -> Result<()> {
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(damaged(&self.path, format!("checksum of row {row} does not match")));
        }
        self.element.get(body, vector);
        Ok(())
    }
}

fn write_header(path: &Path, file: &Handle, dimensions: usize, element: Element) -> Result<()> {
    let mut header = [0; HEADER as usize];
    header[header::LENGTH..][..4].copy_from_slice(&(dimensions as u32).to_le_bytes());
    header[header::LENGTH + 4..][..4].copy_from_slice(&(element as u32).to_le_bytes());
    KIND.seal(&mut header);
    file.write_at(&header, 0).and_then(|()| file.sync()).context("write", path)?;
    files::sync_dir(path.parent().unwrap_or(Path::new(".")))
}

fn check_header(path: &Path, file: &Handle, dimensions: usize, element: Element) -> Result<()> {
    let mut header = [0; HEADER as usize];
    file.read_at(&mut header, 0).context("read the header of", path)?;
    KIND.check(path, &header).or_else(|error| BEFORE.check(path, &header).map_err(|_| error))?;
    let word = |at: usize| u32::from_le_bytes(header[header::LENGTH + at..][..4].try_into().expect("four bytes"));
    let (found, found_element) = (word(0), word(4));
    if found as usize != dimensions {
        return Err(damaged(path, format!("has {found} dimensions, not {dimensions}")));
    }
    if found_element != element as u32 {
        return Err(damaged(path, format!("has elements of kind {found_element}, not {element:?}")));
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
        let mut originals = Originals::open(&path, 3, Element::F32, 0).expect("create");
        for n in 0..5 {
            assert_eq!(originals.push(&[n as f32, f32::MIN_POSITIVE, -0.0]).expect("push"), n);
        }
        assert!(originals.equals(4, &[4.0, f32::MIN_POSITIVE, -0.0]).expect("buffered rows can be read"));
        originals.sync().expect("sync");
        drop(originals);
        let mut originals = Originals::open(&path, 3, Element::F32, 2).expect("open");
        let mapped = Originals::open_mapped(&path, 3, Element::F32).expect("open");
        assert_eq!(originals.push(&[9.0, 9.0, 9.0]).expect("push"), 2);
        originals.flush().expect("flush");
        (0..10_000).for_each(|_| _ = originals.push(&[7.0, 7.0, 7.0]).expect("push"));
        originals.flush().expect("flush");
        assert_eq!(mapped.read(2).expect("written after it was mapped"), [9.0; 3]);
        assert_eq!(mapped.read(10_002).expect("far beyond what the file was"), [7.0; 3]);
        assert_eq!(originals.read(2).expect("read"), [9.0; 3]);
        assert_eq!(originals.read(1).expect("read")[0], 1.0);
        assert!(matches!(Originals::open(&path, 3, Element::F32, 10_004), Err(StorageError::Damaged { .. })));
        assert!(matches!(Originals::open(&path, 4, Element::F32, 1), Err(StorageError::Damaged { .. })));
    }

    #[test]
    fn every_kind_of_element_comes_back_and_takes_the_room_it_needs() {
        let dir = tempfile::tempdir().expect("dir");
        for (element, bytes) in [(Element::F32, 76), (Element::F16, 38), (Element::Bit, 3)] {
            let path = dir.path().join(format!("{element:?}"));
            let mut originals = Originals::open(&path, 19, element, 0).expect("create");
            let rows: Vec<Vec<f32>> = match element {
                Element::Bit => (0..3).map(|row| (0..19).map(|at| f32::from((at * row) % 3 == 1)).collect()).collect(),
                // Halves, also the smallest, the largest and the one below zero.
                _ => {
                    vec![vec![-0.0; 19], vec![5.9604645e-8; 19], (0..19).map(|at| 65504.0 / (1 << at) as f32).collect()]
                }
            };
            for row in &rows {
                originals.push(row).expect("push");
            }
            originals.sync().expect("sync");
            assert_eq!(std::fs::metadata(&path).expect("a file").len(), HEADER + 3 * (bytes + 4));
            let originals = Originals::open(&path, 19, element, 3).expect("open");
            let mapped = Originals::open_mapped(&path, 19, element).expect("open");
            for (number, row) in (0..).zip(&rows) {
                assert!(mapped.mapped(number).is_some() && mapped.equals(number, row).expect("a row"));
                assert!(originals.equals(number, row).expect("a row"), "{element:?} {number}");
            }
            let other = if element == Element::Bit { Element::F16 } else { Element::Bit };
            assert!(matches!(Originals::open_for_reading(&path, 19, other), Err(StorageError::Damaged { .. })));
        }
    }

    #[test]
    fn a_file_of_the_format_before_is_read() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("v.f32");
        let mut originals = Originals::open(&path, 2, Element::F32, 0).expect("create");
        originals.push(&[1.0, 2.0]).expect("push");
        originals.sync().expect("sync");
        let mut bytes = std::fs::read(&path).expect("bytes");
        BEFORE.seal(&mut bytes[..HEADER as usize]);
        std::fs::write(&path, bytes).expect("write");
        let originals = Originals::open(&path, 2, Element::F32, 1).expect("opens");
        assert_eq!(originals.read(0).expect("a row"), [1.0, 2.0]);
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("v.f32");
        let mut originals = Originals::open(&path, 2, Element::F32, 0).expect("create");
        originals.push(&[1.0, 2.0]).expect("push");
        originals.sync().expect("sync");
        let mut bytes = std::fs::read(&path).expect("bytes");
        bytes[HEADER as usize + 1] ^= 4;
        std::fs::write(&path, bytes).expect("write");
        assert!(matches!(originals.read(0), Err(StorageError::Damaged { .. })));
    }
}
