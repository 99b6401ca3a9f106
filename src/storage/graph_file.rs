//! Files of sealed segments: which nodes, then the graph's own bytes, under one checksum.

use crate::storage::{IoContext, Result, StorageError, damaged, write_atomically};
use std::path::Path;

const MAGIC: &[u8; 8] = b"RVGRF\0\0\0";
const FORMAT: u32 = 1;
/// magic 8, format 4, CRC-32 of all that follows 4, count of nodes 4, zero 4.
const HEADER: usize = 24;

/// Writes a sealed segment whole or not at all: its nodes in slot order and the graph's bytes.
pub fn write(path: &Path, nodes: &[u32], graph: &[u8]) -> Result<()> {
    let mut bytes = Vec::with_capacity(HEADER + nodes.len() * 4 + graph.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(nodes.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    nodes.iter().for_each(|node| bytes.extend_from_slice(&node.to_le_bytes()));
    bytes.extend_from_slice(graph);
    let crc = crc32fast::hash(&bytes[16..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    write_atomically(path, &bytes)
}

/// Reads a sealed segment: its nodes and the graph's bytes.
pub fn read(path: &Path) -> Result<(Vec<u32>, Vec<u8>)> {
    let bytes = std::fs::read(path).context("read", path)?;
    let word = |at: usize| {
        let word = bytes.get(at..at + 4).ok_or_else(|| damaged(path, "ends early"))?;
        Ok::<_, StorageError>(u32::from_le_bytes(word.try_into().expect("four bytes")))
    };
    if bytes.get(..8) != Some(MAGIC) {
        return Err(damaged(path, "is not a segment file"));
    }
    if word(8)? != FORMAT {
        return Err(StorageError::Format { path: path.to_owned(), found: word(8)?, expected: FORMAT });
    }
    let (crc, count) = (word(12)?, word(16)? as usize);
    if crc32fast::hash(&bytes[16..]) != crc {
        return Err(damaged(path, "checksum does not match"));
    }
    let graph = bytes.get(HEADER + count * 4..).ok_or_else(|| damaged(path, "ends early"))?;
    let nodes = bytes[HEADER..HEADER + count * 4].chunks_exact(4);
    let nodes = nodes.map(|node| u32::from_le_bytes(node.try_into().expect("four bytes"))).collect();
    Ok((nodes, graph.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_round_trip_and_every_flip_is_found() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("1.graph");
        write(&path, &[1, 5, 9], b"graph").expect("write");
        assert_eq!(read(&path).expect("read"), (vec![1, 5, 9], b"graph".to_vec()));
        let good = std::fs::read(&path).expect("bytes");
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).expect("write");
            assert!(read(&path).is_err(), "flip at {at}");
            std::fs::write(&path, &good[..at]).expect("write");
            assert!(read(&path).is_err(), "cut at {at}");
        }
    }
}
