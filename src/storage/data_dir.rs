//! The data directory: one lock, one current epoch. An epoch is all that was derived from one slot since one copy.

use crate::model::CollectionSpec;
use crate::storage::{IoContext, Result, StorageError, damaged, files};
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

/// What the small files begin with; then the number of their format, the CRC-32 of the JSON in the second line, and that.
const MAGIC: &str = "ruvector";
const FORMAT: u32 = 2;

pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_string(value).expect("plain data");
    let text = format!("{MAGIC} {FORMAT} {:08x}\n{json}\n", crc32fast::hash(json.as_bytes()));
    files::write_atomically(path, text.as_bytes())
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = files::read_if_there(path)? else { return Ok(None) };
    // Whoever has to act must know by what.
    let broken = |what: &str| {
        let remedy = "remove the data directory and drop the slot it used to have everything copied again";
        damaged(path, format!("{what}; {remedy}"))
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| broken("not a text"))?;
    let json = match text.split_once('\n') {
        Some((head, rest)) if head.starts_with(MAGIC) => {
            let json = rest.strip_suffix('\n').ok_or_else(|| broken("ends early"))?;
            let mut head = head.split(' ').skip(1);
            let format = head.next().and_then(|format| format.parse().ok()).ok_or_else(|| broken("has no format"))?;
            let whole = head.next() == Some(&*format!("{:08x}", crc32fast::hash(json.as_bytes())));
            match (format, whole) {
                (_, false) => return Err(broken("its checksum does not match")),
                (FORMAT, true) => json,
                (found, true) => {
                    return Err(StorageError::Format { path: path.to_owned(), found, expected: FORMAT });
                }
            }
        }
        // Format 1 was the JSON alone. It names the slot by which an older version's data is replaced.
        _ if text.starts_with('{') => text,
        _ => return Err(broken("is not what was written")),
    };
    serde_json::from_str(json).map(Some).map_err(|error| broken(&error.to_string()))
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
        crate::failpoint!("data_dir.locked");
        // What is read from here on is also what a power cut leaves: an earlier process may have ended in between.
        files::sync_dir(root)?;
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
        files::remove_dir(&dir)?;
        crate::failpoint!("data_dir.emptied");
        files::create_dir(&dir)?;
        files::sync_dir(&self.root)?;
        crate::failpoint!("data_dir.epoch_made");
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
        crate::failpoint!("data_dir.before_pending");
        match pending {
            Some(pending) => write_json(&path, pending)?,
            None => files::remove(&path).and_then(|()| files::sync_dir(&self.root))?,
        }
        crate::failpoint!("data_dir.pending_changed");
        Ok(())
    }

    fn registered_file(&self) -> PathBuf {
        self.root.join("REGISTERED")
    }

    /// The collections that were registered by SQL when last looked at.
    pub fn registered(&self) -> Result<Option<Vec<CollectionSpec>>> {
        read_json(&self.registered_file())
    }

    /// Writes down which are.
    pub fn set_registered(&self, specs: &[CollectionSpec]) -> Result<()> {
        write_json(&self.registered_file(), &specs)
    }

    /// From now on this epoch answers.
    pub fn make_current(&self, epoch: EpochId, slot: &str) -> Result<()> {
        files::sync_dir(&self.epoch_dir(epoch))?;
        crate::failpoint!("data_dir.before_current");
        write_json(&self.current_file(), &Current { epoch, slot: slot.to_owned() })?;
        crate::failpoint!("data_dir.current_written");
        Ok(())
    }

    /// Removes what no engine works on any more: every epoch but this one.
    pub fn remove_other_epochs(&self, keep: EpochId) -> Result<()> {
        for name in files::list(&self.root)? {
            let number = name.strip_prefix("epoch-").and_then(|number| number.parse().ok());
            if number.is_some_and(|number: u32| number != keep.0) {
                files::remove_dir(&self.root.join(name))?;
                crate::failpoint!("data_dir.epoch_removed");
            }
        }
        Ok(())
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

    #[test]
    fn what_is_current_has_a_checksum() {
        let root = tempfile::tempdir().expect("dir");
        let dir = DataDir::open(root.path()).expect("open");
        dir.prepare_epoch(EpochId(1)).expect("prepare");
        dir.make_current(EpochId(1), "slot").expect("current");
        let path = root.path().join("CURRENT");
        let good = std::fs::read(&path).expect("bytes");
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).expect("write");
            assert!(dir.current().is_err(), "bit {bit}: {}", String::from_utf8_lossy(&bytes));
        }
        for end in 0..good.len() {
            std::fs::write(&path, &good[..end]).expect("write");
            assert!(dir.current().is_err(), "cut at {end}");
        }
        let newer = String::from_utf8(good).expect("text").replacen(" 2 ", " 3 ", 1);
        std::fs::write(&path, newer).expect("write");
        assert!(matches!(dir.current(), Err(StorageError::Format { found: 3, expected: FORMAT, .. })));
    }
}
