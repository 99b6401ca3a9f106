//! All that touches our disk: logs, the transactional state, original vectors, sealed graphs. `FORMAT.md` describes
//! every byte and argues each crash case.

pub mod changelog;
pub mod data_dir;
pub mod graph_file;
pub mod originals;
pub mod ownership;
pub mod record;
pub mod state;

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
    #[error("{path} has format {found}, this version reads format {expected}")]
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
                _ => true,
            },
            StorageError::Format { .. } | StorageError::Busy(_) => false,
        }
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

/// Makes a new or renamed name in `dir` survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).context("sync", dir)
}

/// Replaces a small file whole or not at all.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    let mut file = std::fs::File::create(&fresh).context("create", &fresh)?;
    io::Write::write_all(&mut file, bytes).and_then(|()| file.sync_all()).context("write", &fresh)?;
    std::fs::rename(&fresh, path).context("rename", path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}
