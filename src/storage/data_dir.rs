//! The data directory: one lock, one current epoch. An epoch is all that was derived from one slot since one copy.

use crate::storage::{IoContext, Result, StorageError, damaged, write_atomically};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// The locked data directory of a running service.
pub struct DataDir {
    root: PathBuf,
    _lock: File,
}

/// Number of an epoch, from 1; a new copy of everything starts a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct EpochId(pub u32);

impl EpochId {
    /// The one after this.
    pub fn next(self) -> EpochId {
        EpochId(self.0 + 1)
    }
}

/// An epoch that is being made; written down before its slot is, so that no crash leaves a slot nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pending {
    /// Its number.
    pub epoch: EpochId,
    /// Its slot.
    pub slot: String,
    /// The slot it will replace.
    pub old_slot: Option<String>,
}

/// The epoch that answers. Its slot stands here too: when the rest is damaged, this is what there is to clean up by.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Current {
    /// Its number.
    pub epoch: EpochId,
    /// Its slot.
    pub slot: String,
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(path, error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("read", path),
    }
}

impl DataDir {
    /// Creates the directory if need be and locks it against other processes. The lock goes with the process.
    pub fn open(root: &Path) -> Result<DataDir> {
        std::fs::create_dir_all(root).context("create", root)?;
        let path = root.join("LOCK");
        let lock = File::create(&path).context("create", &path)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StorageError::Busy(root.to_owned()),
            TryLockError::Error(source) => StorageError::Io { action: "lock", path, source },
        })?;
        Ok(DataDir { root: root.to_owned(), _lock: lock })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn current_file(&self) -> PathBuf {
        self.root.join("CURRENT")
    }

    /// The epoch that answers, if there is one.
    pub fn current(&self) -> Result<Option<Current>> {
        read_json(&self.current_file())
    }

    /// Where an epoch lives.
    pub fn epoch_dir(&self, epoch: EpochId) -> PathBuf {
        self.root.join(format!("epoch-{}", epoch.0))
    }

    /// Makes an empty directory for the next epoch. What an unfinished attempt left there is removed.
    pub fn prepare_epoch(&self, epoch: EpochId) -> Result<PathBuf> {
        let dir = self.epoch_dir(epoch);
        remove_dir(&dir)?;
        std::fs::create_dir_all(&dir).context("create", &dir)?;
        crate::storage::sync_dir(&self.root)?;
        Ok(dir)
    }

    fn pending_file(&self) -> PathBuf {
        self.root.join("PENDING")
    }

    /// The epoch that was being made when the service last ended, if one was.
    pub fn pending(&self) -> Result<Option<Pending>> {
        read_json(&self.pending_file())
    }

    /// Writes down that an epoch is being made, or that none is any more.
    pub fn set_pending(&self, pending: Option<&Pending>) -> Result<()> {
        let path = self.pending_file();
        match pending {
            Some(pending) => write_atomically(&path, &serde_json::to_vec(pending).expect("plain data")),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove", &path),
                _ => crate::storage::sync_dir(&self.root),
            },
        }
    }

    /// From now on this epoch answers.
    pub fn make_current(&self, epoch: EpochId, slot: &str) -> Result<()> {
        crate::storage::sync_dir(&self.epoch_dir(epoch))?;
        let current = Current { epoch, slot: slot.to_owned() };
        write_atomically(&self.current_file(), &serde_json::to_vec(&current).expect("plain data"))
    }

    /// Removes what no engine works on any more: every epoch but this one.
    pub fn remove_other_epochs(&self, keep: EpochId) -> Result<()> {
        for entry in std::fs::read_dir(&self.root).context("read", &self.root)? {
            let name = entry.context("read", &self.root)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("epoch-")?.parse().ok());
            if number.is_some_and(|number: u32| number != keep.0) {
                remove_dir(&self.root.join(name))?;
            }
        }
        Ok(())
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove", dir),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_one_current_epoch() {
        let root = tempfile::tempdir().expect("dir");
        let dir = DataDir::open(root.path()).expect("open");
        assert!(matches!(DataDir::open(root.path()), Err(StorageError::Busy(_))));
        assert_eq!(dir.current().expect("read"), None);
        let first = dir.prepare_epoch(EpochId(1)).expect("prepare");
        dir.make_current(EpochId(1), "s").expect("current");
        let second = dir.prepare_epoch(EpochId(2)).expect("prepare");
        assert!(first.exists() && second.exists());
        dir.make_current(EpochId(2), "s_2").expect("current");
        assert!(first.exists() && second.exists());
        dir.remove_other_epochs(EpochId(2)).expect("remove");
        assert!(!first.exists() && second.exists());
        assert_eq!(dir.current().expect("read"), Some(Current { epoch: EpochId(2), slot: "s_2".into() }));
        drop(dir);
        std::fs::write(root.path().join("CURRENT"), "epoch two").expect("write");
        assert!(matches!(DataDir::open(root.path()).expect("open").current(), Err(StorageError::Damaged { .. })));
    }
}
