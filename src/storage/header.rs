//! The first bytes of every binary file of ours: a magic, the number of its format, and a checksum over both and what
//! else stands in the header. They keep this shape in all formats, so that a file of another version is told from damage.

use crate::storage::{Result, StorageError, damaged};
use std::path::Path;

/// magic 8, format 4, CRC-32 of all but itself 4.
pub const LENGTH: usize = 16;
/// Where the checksum stands.
const SUM: usize = 12;

/// What a kind of file begins with.
pub struct Kind {
    /// Its magic.
    pub magic: &'static [u8; 8],
    /// The format this version writes and reads.
    pub format: u32,
    /// For people: "is not a ...".
    pub name: &'static str,
}

fn sum(bytes: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&bytes[..SUM]);
    sum.update(&bytes[LENGTH..]);
    sum.finalize()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl Kind {
    /// Fills in the first [`LENGTH`] bytes; what follows them is covered by the checksum.
    pub fn seal(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(self.magic);
        bytes[8..12].copy_from_slice(&self.format.to_le_bytes());
        let sum = sum(bytes);
        bytes[SUM..LENGTH].copy_from_slice(&sum.to_le_bytes());
    }

    /// The head before its checksum, and the checksum so far: for a file that is written in parts.
    pub fn begin(&self) -> ([u8; LENGTH], crc32fast::Hasher) {
        let mut head = [0; LENGTH];
        head[..8].copy_from_slice(self.magic);
        head[8..SUM].copy_from_slice(&self.format.to_le_bytes());
        let mut sum = crc32fast::Hasher::new();
        sum.update(&head[..SUM]);
        (head, sum)
    }

    /// Fills in the checksum of a file that was written in parts.
    pub fn end(head: &mut [u8; LENGTH], sum: crc32fast::Hasher) {
        head[SUM..].copy_from_slice(&sum.finalize().to_le_bytes());
    }

    /// Is this what [`Kind::seal`] left?
    pub fn check(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        if bytes.len() < LENGTH || &bytes[..8] != self.magic {
            return Err(damaged(path, format!("is not a {}", self.name)));
        }
        let (found, whole) = (word(bytes, 8), sum(bytes) == word(bytes, SUM));
        // Format 1 had another checksum, or none.
        if found != self.format && (whole || found == 1) {
            return Err(StorageError::Format { path: path.to_owned(), found, expected: self.format });
        }
        if whole { Ok(()) } else { Err(damaged(path, "checksum of the header does not match")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { magic: b"RVTEST\0\0", format: 3, name: "test file" };

    #[test]
    fn other_versions_are_told_from_damage() {
        let path = Path::new("x");
        let mut good = [7; 40];
        KIND.seal(&mut good);
        KIND.check(path, &good).expect("good");
        for bit in 0..good.len() * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = KIND.check(path, &bytes).expect_err("a flipped bit");
            assert!(error.is_damage(), "bit {bit}: {error}");
        }
        for (format, copied_again) in [(2, true), (4, false)] {
            let mut other = good;
            Kind { format, ..KIND }.seal(&mut other);
            let error = KIND.check(path, &other).expect_err("another format");
            assert!(matches!(error, StorageError::Format { found, expected: 3, .. } if found == format));
            assert_eq!(error.is_damage(), copied_again);
        }
    }
}
