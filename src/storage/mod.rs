//! All that touches our disk: logs, the transactional state, original vectors, sealed graphs. `FORMAT.md` describes
//! every byte and argues each crash case.

pub mod changelog;
pub mod data_dir;
pub mod files;
pub mod graph_file;
pub mod header;
pub mod originals;
pub mod ownership;
pub mod record;
pub mod snapshot;
pub mod sparse_originals;
pub mod state;
pub mod steady;

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with our own files.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what we wrote. The data can be rebuilt from the source.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What does not hold.
        what: String,
    },
    /// Written by another version of this program.
    #[error("{path} has format {found}, this version reads format {expected}: {}", format_remedy(*found, *expected))]
    Format {
        /// Which file.
        path: PathBuf,
        /// The number in the file.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// Another process works in this directory.
    #[error("{0} is in use by another process")]
    Busy(PathBuf),
    /// The transactional store failed.
    #[error("state store: {0}")]
    State(Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for StorageError {
    fn from(error: E) -> Self {
        StorageError::State(Box::new(error.into()))
    }
}

impl StorageError {
    /// Is the data itself not what it should be, so that it has to be copied again? A disk that is full or fails is not:
    /// copying again would fail the same way.
    pub fn is_damage(&self) -> bool {
        match self {
            StorageError::Damaged { .. } => true,
            StorageError::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
            }
            // redb words a file that is none of its own, or cut short, as an I/O error.
            StorageError::State(error) => match &**error {
                redb::Error::Io(source) => {
                    matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
                }
                // What follows an error that was reported, or has nothing to do with the file.
                redb::Error::PreviousIo
                | redb::Error::DatabaseClosed
                | redb::Error::LockPoisoned(_)
                | redb::Error::ValueTooLarge(_)
                | redb::Error::Unsupported => false,
                _ => true,
            },
            // What an older version wrote is not converted but derived anew; what a newer one wrote is not thrown away.
            StorageError::Format { found, expected, .. } => found < expected,
            StorageError::Busy(_) => false,
        }
    }
}

fn format_remedy(found: u32, expected: u32) -> &'static str {
    if found < expected {
        "everything is copied again"
    } else {
        "start the version that wrote it, or remove the data directory and drop its slot to have everything copied again"
    }
}

/// A result of this floor.
pub type Result<T> = std::result::Result<T, StorageError>;

/// Adds what was tried on which path to an I/O error.
pub(crate) trait IoContext<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| StorageError::Io { action, path: path.to_owned(), source })
    }
}

pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> StorageError {
    StorageError::Damaged { path: path.to_owned(), what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_is_not_damage() {
        let io =
            |code| StorageError::Io { action: "write", path: "x".into(), source: io::Error::from_raw_os_error(code) };
        let (no_room, failed) = (28, 5);
        assert!(!io(no_room).is_damage() && !io(failed).is_damage());
        let state = |error: redb::Error| StorageError::State(Box::new(error));
        assert!(!state(redb::Error::Io(io::Error::from_raw_os_error(no_room))).is_damage());
        // What every call gives after the first error.
        assert!(!state(redb::Error::PreviousIo).is_damage());
        assert!(state(redb::Error::Corrupted("page".into())).is_damage());
        assert!(damaged(Path::new("x"), "checksum").is_damage());
    }
}
