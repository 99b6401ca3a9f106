//! The state's file as redb sees it: a block that was read or written once reads the same ever after, or not at all. redb
//! checks its pages when a file is opened and trusts them from then on.

use crate::storage::files::Handle;
use parking_lot::RwLock;
use redb::StorageBackend;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that have one checksum; redb's page.
const BLOCK: u64 = 4096;

/// A file whose blocks' checksums are kept in memory: 8 bytes for 4 KiB.
#[derive(Debug)]
pub struct SteadyFile {
    file: Handle,
    /// `None`: not seen yet.
    sums: RwLock<Vec<Option<u32>>>,
    left: Arc<AtomicBool>,
}

impl SteadyFile {
    /// What is in the file now counts as right; it is for redb to check.
    pub fn new(file: Handle) -> SteadyFile {
        SteadyFile { file, sums: RwLock::default(), left: Arc::default() }
    }

    /// Once true, the file is left as it is: every write fails.
    pub fn left(&self) -> Arc<AtomicBool> {
        self.left.clone()
    }

    fn refuse_if_left(&self) -> io::Result<()> {
        if self.left.load(Ordering::Relaxed) { Err(io::Error::other("the file is left as it is")) } else { Ok(()) }
    }

    /// Reads whole blocks, as far as the file goes, and checks those that were seen before.
    fn read_blocks(&self, first: u64, end: u64, sums: &[Option<u32>]) -> io::Result<Vec<u8>> {
        let end = (end * BLOCK).min(self.file.length()?);
        let mut bytes = vec![0; end.saturating_sub(first * BLOCK) as usize];
        self.file.read_at(&mut bytes, first * BLOCK)?;
        for (block, bytes) in (first..).zip(bytes.chunks(BLOCK as usize)) {
            let known = sums.get(block as usize).copied().flatten();
            if known.is_some_and(|known| known != crc32fast::hash(bytes)) {
                let what = format!("block {block} has changed by itself");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
        Ok(bytes)
    }
}

fn blocks(offset: u64, length: usize) -> (u64, u64) {
    (offset / BLOCK, (offset + length as u64).div_ceil(BLOCK))
}

fn set(sums: &mut Vec<Option<u32>>, block: u64, sum: Option<u32>) {
    let block = block as usize;
    if sums.len() <= block {
        sums.resize(block + 1, None);
    }
    sums[block] = sum;
}

impl StorageBackend for SteadyFile {
    fn len(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (first, end) = blocks(offset, out.len());
        let sums = self.sums.read();
        let bytes = self.read_blocks(first, end, &sums)?;
        let start = (offset - first * BLOCK) as usize;
        let wanted = bytes.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(wanted);
        let all_seen = (first..end).all(|block| sums.get(block as usize).is_some_and(Option::is_some));
        drop(sums);
        if !all_seen {
            let mut sums = self.sums.write();
            for (block, bytes) in (first..).zip(bytes.chunks(BLOCK as usize)) {
                // Unless it was written meanwhile.
                if sums.get(block as usize).copied().flatten().is_none() {
                    set(&mut sums, block, Some(crc32fast::hash(bytes)));
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.refuse_if_left()?;
        let mut sums = self.sums.write();
        // A block that is cut or extended is not what it was.
        sums.truncate((length.min(self.file.length()?) / BLOCK) as usize);
        self.file.set_length(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.refuse_if_left()?;
        let mut sums = self.sums.write();
        let (first, end) = blocks(offset, data.len());
        let whole = offset.is_multiple_of(BLOCK) && (data.len() as u64).is_multiple_of(BLOCK);
        let patched = if whole {
            None
        } else {
            let mut bytes = self.read_blocks(first, end, &sums)?;
            let start = (offset - first * BLOCK) as usize;
            bytes.resize(bytes.len().max(start + data.len()), 0);
            bytes[start..start + data.len()].copy_from_slice(data);
            Some(bytes)
        };
        // After a failed write nobody knows what is there.
        (first..end).for_each(|block| set(&mut sums, block, None));
        self.file.write_at(data, offset)?;
        for (block, bytes) in (first..).zip(patched.as_deref().unwrap_or(data).chunks(BLOCK as usize)) {
            set(&mut sums, block, Some(crc32fast::hash(bytes)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::files::{self, Mode};

    #[test]
    fn what_changes_by_itself_is_not_read() {
        let dir = tempfile::tempdir().expect("dir");
        let file = files::open(&dir.path().join("f"), Mode::Write).expect("open");
        let steady = SteadyFile::new(file.clone());
        steady.set_len(3 * BLOCK).expect("grow");
        steady.write(0, &[1; 2 * BLOCK as usize]).expect("write");
        steady.write(10, &[2; 100]).expect("write a part");
        let mut out = [0; 200];
        steady.read(50, &mut out).expect("read");
        assert_eq!((out[59], out[60]), (2, 1));
        // Not seen yet: whatever is there.
        file.write_at(&[9], 2 * BLOCK).expect("write");
        steady.read(2 * BLOCK, &mut out).expect("read");
        for at in [0, BLOCK - 1, BLOCK, 2 * BLOCK] {
            let mut byte = [0];
            file.read_at(&mut byte, at).expect("read");
            file.write_at(&[byte[0] ^ 4], at).expect("flip");
            let block = at / BLOCK * BLOCK;
            let error = steady.read(block, &mut out).expect_err("a flipped bit");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(steady.write(block + 8, &[0]).is_err(), "a flip is not written back as right");
            file.write_at(&byte, at).expect("flip back");
            steady.read(block, &mut out).expect("right again");
        }
        steady.set_len(BLOCK + 5).expect("cut");
        steady.set_len(3 * BLOCK).expect("grow");
        steady.read(BLOCK, &mut out).expect("zeros are right");
        assert_eq!((out[4], out[5]), (1, 0));
    }
}
