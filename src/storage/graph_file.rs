//! Files of sealed segments: which nodes, then the graph's own bytes, under one checksum.

use crate::storage::files;
use crate::storage::header::{self, Kind};
use crate::storage::{Result, damaged};
use std::path::Path;

const KIND: Kind = Kind { magic: b"RVGRF\0\0\0", format: 2, name: "segment file" };
/// head 16, whose checksum covers all that follows, count of nodes 4, zero 4.
const HEADER: usize = 24;

/// Writes a sealed segment whole or not at all: its nodes in slot order and the graph's bytes.
pub fn write(path: &Path, nodes: &[u32], graph: &[u8]) -> Result<()> {
    let mut bytes = Vec::with_capacity(HEADER + nodes.len() * 4 + graph.len());
    bytes.extend_from_slice(&[0; header::LENGTH]);
    bytes.extend_from_slice(&(nodes.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    nodes.iter().for_each(|node| bytes.extend_from_slice(&node.to_le_bytes()));
    bytes.extend_from_slice(graph);
    KIND.seal(&mut bytes);
    files::write_atomically(path, &bytes)
}

/// Reads a sealed segment: its nodes and the graph's bytes.
pub fn read(path: &Path) -> Result<(Vec<u32>, Vec<u8>)> {
    let bytes = files::read(path)?;
    KIND.check(path, &bytes)?;
    let ends_early = || damaged(path, "ends early");
    let count = bytes.get(header::LENGTH..header::LENGTH + 4).ok_or_else(ends_early)?;
    let count = u32::from_le_bytes(count.try_into().expect("four bytes")) as usize;
    let graph = bytes.get(HEADER + count * 4..).ok_or_else(ends_early)?;
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
