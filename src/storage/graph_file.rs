//! Files of sealed segments: which nodes, then the graph's own bytes, under one checksum. Written and read in parts, for
//! they are as large as the codes of all their rows.

use crate::storage::files::{self, Handle, Mode, Unnamed};
use crate::storage::header::{self, Kind};
use crate::storage::{IoContext, Result, StorageError, damaged};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const KIND: Kind = Kind { magic: b"RVGRF\0\0\0", format: 3, name: "segment file" };
/// head 16, whose checksum covers all that follows, count of nodes 4, zero 4.
const HEADER: usize = 24;
/// Bytes handed over at a time.
const PART: usize = 1 << 20;

/// A sealed segment being written.
struct Writer {
    file: Unnamed,
    sum: crc32fast::Hasher,
    part: Vec<u8>,
    /// Where the part begins.
    at: u64,
    failed: Option<StorageError>,
}

impl Writer {
    fn hand_over(&mut self) -> Result<()> {
        self.sum.update(&self.part);
        self.file.write_at(&self.part, self.at)?;
        self.at += self.part.len() as u64;
        self.part.clear();
        Ok(())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART
            && let Err(error) = self.hand_over()
        {
            self.failed = Some(error);
            return Err(io::ErrorKind::Other.into());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a sealed segment whole or not at all: its nodes in slot order and the graph's bytes, which `graph` writes.
pub fn write(path: &Path, nodes: &[u32], graph: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let (mut head, sum) = KIND.begin();
    let file = Unnamed::create(path)?;
    let mut out = Writer { file, sum, part: Vec::with_capacity(PART), at: header::LENGTH as u64, failed: None };
    let put = || {
        out.write_all(&(nodes.len() as u32).to_le_bytes())?;
        out.write_all(&[0; 4])?;
        nodes.iter().try_for_each(|node| out.write_all(&node.to_le_bytes()))?;
        graph(&mut out)
    };
    let written = put();
    match (written, out.failed.take()) {
        (_, Some(error)) => return Err(error),
        (written, None) => written.context("write", path)?,
    }
    out.hand_over()?;
    Kind::end(&mut head, out.sum);
    out.file.write_at(&head, 0)?;
    out.file.name().map(|_| ())
}

/// A sealed segment being read: the bytes of its graph. Nothing of them is to be trusted before [`Reader::finish`].
pub struct Reader {
    path: PathBuf,
    file: Handle,
    length: u64,
    head: [u8; header::LENGTH],
    sum: crc32fast::Hasher,
    part: Vec<u8>,
    /// What has been read of the part.
    taken: usize,
    /// Where the next part begins.
    at: u64,
}

impl Reader {
    /// Opens a sealed segment: its nodes, and what reads its graph.
    pub fn open(path: &Path) -> Result<(Vec<u32>, Reader)> {
        let file = files::open(path, Mode::Read)?;
        let length = file.length().context("stat", path)?;
        let (expected, sum) = KIND.begin();
        let mut head = [0; header::LENGTH];
        if length < HEADER as u64 {
            return Err(damaged(path, "ends early"));
        }
        file.read_at(&mut head, 0).context("read", path)?;
        if head[..12] != expected[..12] {
            // Another version's, or damage: the whole file tells.
            KIND.check(path, &files::read(path)?)?;
            return Err(damaged(path, "changed while it was read"));
        }
        let (part, at) = (Vec::new(), header::LENGTH as u64);
        let mut reader = Reader { path: path.to_owned(), file, length, head, sum, part, taken: 0, at };
        let mut counts = [0; 8];
        reader.read_exact(&mut counts).context("read", path)?;
        let count = u32::from_le_bytes([counts[0], counts[1], counts[2], counts[3]]);
        if u64::from(count) * 4 > length {
            return Err(damaged(path, "ends early"));
        }
        let mut nodes = vec![0; count as usize];
        for node in &mut nodes {
            let mut bytes = [0; 4];
            reader.read_exact(&mut bytes).context("read", path)?;
            *node = u32::from_le_bytes(bytes);
        }
        Ok((nodes, reader))
    }

    /// Reads what is left, and compares the checksum of all.
    pub fn finish(mut self) -> Result<()> {
        while self.next_part().context("read", &self.path)? {}
        let mut head = self.head;
        Kind::end(&mut head, self.sum);
        if head == self.head { Ok(()) } else { Err(damaged(&self.path, "checksum does not match")) }
    }

    /// Takes the next part; false at the end.
    fn next_part(&mut self) -> io::Result<bool> {
        let size = (self.length - self.at).min(PART as u64) as usize;
        self.part.resize(size, 0);
        self.taken = 0;
        self.file.read_at(&mut self.part, self.at)?;
        self.sum.update(&self.part);
        self.at += size as u64;
        Ok(size > 0)
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.part.len() && !self.next_part()? {
            return Ok(0);
        }
        let count = into.len().min(self.part.len() - self.taken);
        into[..count].copy_from_slice(&self.part[self.taken..][..count]);
        self.taken += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Result<(Vec<u32>, Vec<u8>)> {
        let (nodes, mut reader) = Reader::open(path)?;
        let mut graph = Vec::new();
        reader.read_to_end(&mut graph).context("read", path)?;
        reader.finish()?;
        Ok((nodes, graph))
    }

    #[test]
    fn segments_survive_the_round_trip_and_every_flip_is_found() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("1.graph");
        write(&path, &[1, 5, 9], |out| out.write_all(b"graph")).expect("write");
        assert_eq!(read(&path).expect("read"), (vec![1, 5, 9], b"graph".to_vec()));
        let good = std::fs::read(&path).expect("bytes");
        KIND.check(&path, &good).expect("written in parts as if at once");
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).expect("write");
            assert!(read(&path).is_err(), "flip at {at}");
            std::fs::write(&path, &good[..at]).expect("write");
            assert!(read(&path).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn files_of_many_parts_are_read_whole_and_a_graph_that_cannot_be_written_leaves_none() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("2.graph");
        let nodes: Vec<u32> = (0..300_000).collect();
        let graph: Vec<u8> = (0..3 * PART + 7).map(|at| (at % 251) as u8).collect();
        write(&path, &nodes, |out| graph.chunks(999).try_for_each(|chunk| out.write_all(chunk))).expect("write");
        assert!(read(&path).expect("read") == (nodes, graph));
        let unwritten = dir.path().join("3.graph");
        assert!(write(&unwritten, &[], |_| Err(io::ErrorKind::OutOfMemory.into())).is_err());
        assert!(!unwritten.exists());
    }
}
