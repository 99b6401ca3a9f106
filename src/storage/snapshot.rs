//! Snapshots: a directory with all that belongs to the epoch that answers, at one position, and the way back into an
//! empty data directory. `FORMAT.md` describes the directory.

use crate::model::Lsn;
use crate::storage::data_dir::{DataDir, EpochId, read_json, write_json};
use crate::storage::files::{self, Handle, Mode};
use crate::storage::state::{FrozenState, Identity};
use crate::storage::{IoContext, Result, StorageError};
use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use std::path::{Component, Path, PathBuf};

/// Of the snapshot's layout; what its files are is said by the files themselves.
const FORMAT: u32 = 1;
/// What makes a directory a snapshot. Written last.
const MANIFEST: &str = "MANIFEST";
/// The epoch's files in a snapshot.
const EPOCH: &str = "epoch";
/// Files of the data directory that go along where they are there.
const BESIDE: [&str; 1] = ["REGISTERED"];
/// A restore that is under way, in the data directory.
const RESTORING: &str = "restoring";
/// Says that a directory is a snapshot being made, and may be removed.
const MAKING: &str = "MAKING";
/// Read and written at once.
const PART: usize = 1 << 20;

/// Why a snapshot cannot be made or taken back.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The place is no good.
    #[error("{0}: {1}")]
    Place(PathBuf, &'static str),
    /// It is not what was written.
    #[error("{0} of the snapshot is damaged: {1}")]
    Damaged(PathBuf, String),
    /// It is none, or none for here.
    #[error("{0}: {1}")]
    Foreign(PathBuf, String),
    /// A disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What is in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the layout.
    pub format: u32,
    /// The program that made it.
    pub version: String,
    /// Number of the epoch.
    pub epoch: EpochId,
    /// What it was derived from: cluster, timeline, database, slot.
    pub identity: Identity,
    /// Everything that ended at or before it is in the snapshot: the slot must not have confirmed more.
    pub lsn: Lsn,
    /// What of that is applied; the rest is in the change log.
    pub applied: Lsn,
    /// Names of the collections.
    pub collections: Vec<String>,
    /// Every file but the manifest.
    pub files: Vec<FileSum>,
}

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Below the snapshot's directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
    /// It shares its content with the data directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub linked: bool,
}

/// What was gathered of an epoch while nothing was applied.
pub struct Frozen {
    /// Its state.
    pub state: FrozenState,
    /// What it was derived from.
    pub identity: Identity,
    /// Its change log is durable up to here.
    pub lsn: Lsn,
    /// What of that is applied.
    pub applied: Lsn,
    /// Names of its collections.
    pub collections: Vec<String>,
    /// All its other files.
    pub pieces: Vec<Piece>,
}

/// A file that belongs to a snapshot.
pub struct Piece {
    /// Below the epoch's directory.
    name: String,
    from: From,
}

enum From {
    /// It is there already, under a second name.
    Linked,
    /// So many bytes of it, which do not change any more. It stays readable when it is removed meanwhile.
    Open(Handle, u64),
}

impl Piece {
    /// A file that is never written again: given a second name, where that can be had.
    pub fn sealed(epoch: &Path, name: String, making: &Making) -> Result<Piece> {
        match files::link(&epoch.join(&name), &making.epoch().join(&name)) {
            Ok(()) => Ok(Piece { name, from: From::Linked }),
            Err(_) => Piece::growing(epoch, name, None),
        }
    }

    /// A file that is written on behind these bytes, or behind its end.
    pub fn growing(epoch: &Path, name: String, bytes: Option<u64>) -> Result<Piece> {
        let path = epoch.join(&name);
        let file = files::open(&path, Mode::Read)?;
        let length = file.length().context("stat", &path)?;
        Ok(Piece { name, from: From::Open(file, bytes.map_or(length, |bytes| bytes.min(length))) })
    }
}

/// A snapshot being made, beside where it is going to be: it has its name when it is whole.
#[derive(Debug, Clone)]
pub struct Making {
    to: PathBuf,
    dir: PathBuf,
}

impl Making {
    /// Begins one. `to` must be an absolute path of nothing, or of an empty directory, outside the data directory `root`.
    pub fn begin(to: &Path, root: &Path) -> std::result::Result<Making, SnapshotError> {
        let place = |why| SnapshotError::Place(to.to_owned(), why);
        let (Some(name), Some(above)) = (to.file_name(), to.parent()) else {
            return Err(place("names no directory"));
        };
        if !to.is_absolute() || to.components().any(|part| part == Component::ParentDir) {
            return Err(place("must be an absolute path without .."));
        }
        // Links may lead into the data directory: what is there decides, and nothing is made before.
        let (above, root) = (real_path(above)?, files::real(root)?);
        let apart = |dir: &Path| !dir.starts_with(&root) && !root.starts_with(dir);
        let mut making = name.to_owned();
        making.push(".making");
        let dir = above.join(making);
        if !apart(&above.join(name)) || !apart(&dir) {
            return Err(place("must not be inside the data directory, nor around it"));
        }
        if files::list_if_there(to)?.is_some_and(|names| !names.is_empty()) {
            return Err(place("is not empty"));
        }
        match files::list_if_there(&dir)? {
            // What an attempt left that did not end.
            Some(names) if names.is_empty() || names.iter().any(|name| name == MAKING) => files::remove_dir(&dir)?,
            Some(_) => {
                return Err(SnapshotError::Place(dir, "is there, and is no snapshot that did not end; remove it"));
            }
            None => {}
        }
        files::create_dir(&dir)?;
        files::write_atomically(&dir.join(MAKING), b"")?;
        let making = Making { to: above.join(name), dir };
        for part in ["log", "vectors"] {
            files::create_dir(&making.epoch().join(part))?;
        }
        crate::failpoint!("snapshot.begun");
        Ok(making)
    }

    /// Where the epoch's files go.
    fn epoch(&self) -> PathBuf {
        self.dir.join(EPOCH)
    }

    /// Copies what was gathered of epoch `epoch` of the data directory `root`, sums it up, and gives it its name.
    pub fn finish(self, frozen: Frozen, epoch: EpochId, root: &Path) -> Result<Manifest> {
        crate::failpoint!("snapshot.frozen");
        let state = format!("{EPOCH}/state.redb");
        frozen.state.write_to(&self.dir.join(&state))?;
        let mut sums = vec![self.sum_of(&state, false)?];
        for Piece { name, from } in &frozen.pieces {
            let name = format!("{EPOCH}/{name}");
            sums.push(match from {
                From::Linked => self.sum_of(&name, true)?,
                From::Open(file, bytes) => self.copy(&name, file, *bytes)?,
            });
        }
        for name in BESIDE {
            if let Some(bytes) = files::read_if_there(&root.join(name))? {
                files::write_atomically(&self.dir.join(name), &bytes)?;
                sums.push(self.sum_of(name, false)?);
            }
        }
        for dir in ["epoch/log", "epoch/vectors", "epoch", ""] {
            files::sync_dir(&self.dir.join(dir))?;
        }
        crate::failpoint!("snapshot.copied");
        let Frozen { identity, lsn, applied, collections, .. } = frozen;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let manifest = Manifest { format: FORMAT, version, epoch, identity, lsn, applied, collections, files: sums };
        write_json(&self.dir.join(MANIFEST), &manifest)?;
        crate::failpoint!("snapshot.manifest_written");
        files::remove(&self.dir.join(MAKING))?;
        files::rename_dir(&self.dir, &self.to)?;
        crate::failpoint!("snapshot.named");
        Ok(manifest)
    }

    /// Gives up.
    pub fn discard(&self) {
        if let Err(error) = files::remove_dir(&self.dir) {
            tracing::warn!(%error, "cannot remove a snapshot that was given up");
        }
    }

    fn copy(&self, name: &str, from: &Handle, bytes: u64) -> Result<FileSum> {
        let path = self.dir.join(name);
        let into = files::open(&path, Mode::Fresh)?;
        let sum = pour(from, bytes, &path, Some(&into))?;
        into.sync().context("sync", &path)?;
        Ok(FileSum { name: name.to_owned(), bytes, sha256: sum, linked: false })
    }

    fn sum_of(&self, name: &str, linked: bool) -> Result<FileSum> {
        let path = self.dir.join(name);
        let file = files::open(&path, Mode::Read)?;
        let bytes = file.length().context("stat", &path)?;
        Ok(FileSum { name: name.to_owned(), bytes, sha256: pour(&file, bytes, &path, None)?, linked })
    }
}

/// A path without links in what is there of it; the rest need not be there yet.
fn real_path(path: &Path) -> Result<PathBuf> {
    let there = path.ancestors().find(|above| files::exists(above)).unwrap_or(Path::new("/"));
    let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
    Ok(files::real(there)?.join(rest))
}

/// Reads so many bytes, writes them where that is wanted, and sums them up.
fn pour(from: &Handle, bytes: u64, path: &Path, into: Option<&Handle>) -> Result<String> {
    let (mut sum, mut part) = (Context::new(&SHA256), vec![0; PART]);
    for start in (0..bytes).step_by(PART) {
        let part = &mut part[..(bytes - start).min(PART as u64) as usize];
        from.read_at(part, start).context("read", path)?;
        sum.update(part);
        into.map_or(Ok(()), |into| into.write_at(part, start)).context("write", path)?;
    }
    Ok(sum.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Reads what a snapshot says of itself.
pub fn manifest(from: &Path) -> std::result::Result<Manifest, SnapshotError> {
    let path = from.join(MANIFEST);
    let foreign = |what: String| SnapshotError::Foreign(from.to_owned(), what);
    let damage = |what: String| SnapshotError::Damaged(path.clone(), what);
    let json = match read_json::<serde_json::Value>(&path) {
        Ok(Some(json)) => json,
        Ok(None) => return Err(foreign(format!("is no whole snapshot: it has no {MANIFEST}"))),
        Err(StorageError::Damaged { .. }) => return Err(damage("it is not what was written".into())),
        Err(other) => return Err(other.into()),
    };
    match json["format"].as_u64() {
        Some(1) => {}
        Some(found) => return Err(foreign(format!("has format {found}, this version reads format {FORMAT}"))),
        None => return Err(foreign(format!("its {MANIFEST} says no format"))),
    }
    let manifest: Manifest = serde_json::from_value(json).map_err(|error| damage(error.to_string()))?;
    let plain = |name: &str| Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    match manifest.files.iter().find(|file| !plain(&file.name)) {
        Some(file) => Err(damage(format!("it names {:?}", file.name))),
        None => Ok(manifest),
    }
}

/// Copies a snapshot into an empty data directory, and compares every file with its sum. The epoch answers from the next
/// start on; until all of it is there nothing does.
pub fn restore(from: &Path, data: &DataDir, slot: &str) -> std::result::Result<Manifest, SnapshotError> {
    let manifest = manifest(from)?;
    if !is_copy_of(&manifest.identity.slot, slot) {
        let what = format!(
            "follows slot {:?}, this configuration's source.slot is {slot:?}: it is another service's",
            manifest.identity.slot
        );
        return Err(SnapshotError::Foreign(from.to_owned(), what));
    }
    let root = data.root();
    // What a restore left that did not end: nothing answers from it before CURRENT is there.
    let (names, epoch) = (files::list(root)?, format!("epoch-{}", manifest.epoch.0));
    let begun = !names.iter().any(|name| ["CURRENT", "PENDING"].contains(&name.as_str()));
    let ours = |name: &str| ["LOCK", RESTORING].contains(&name) || begun && (BESIDE.contains(&name) || name == epoch);
    let stranger = |name: &&String| !ours(name);
    if names.iter().any(|name| stranger(&name)) {
        return Err(SnapshotError::Place(root.to_owned(), "is not empty; a snapshot is restored into an empty one"));
    }
    let restoring = root.join(RESTORING);
    files::remove_dir(&restoring)?;
    let result = fill(from, &restoring, &manifest);
    if let Err(error) = result {
        files::remove_dir(&restoring)?;
        return Err(error);
    }
    for name in BESIDE {
        if let Some(bytes) = files::read_if_there(&restoring.join(name))? {
            files::write_atomically(&root.join(name), &bytes)?;
        }
    }
    files::remove_dir(&data.epoch_dir(manifest.epoch))?;
    files::rename_dir(&restoring.join(EPOCH), &data.epoch_dir(manifest.epoch))?;
    files::remove_dir(&restoring)?;
    data.make_current(manifest.epoch, &manifest.identity.slot)?;
    Ok(manifest)
}

/// A later complete copy adds a number to the slot's name.
fn is_copy_of(slot: &str, configured: &str) -> bool {
    let number = |rest: &str| rest.strip_prefix('_').is_some_and(|number| number.parse::<u32>().is_ok());
    slot.strip_prefix(configured).is_some_and(|rest| rest.is_empty() || number(rest))
}

fn fill(from: &Path, into: &Path, manifest: &Manifest) -> std::result::Result<(), SnapshotError> {
    for dir in ["log", "vectors"] {
        files::create_dir(&into.join(EPOCH).join(dir))?;
    }
    for FileSum { name, bytes, sha256, .. } in &manifest.files {
        let (path, copy) = (from.join(name), into.join(name));
        let damaged = |what: String| SnapshotError::Damaged(path.clone(), what);
        let file = match files::open(&path, Mode::Read) {
            Err(StorageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged("it is missing".into()));
            }
            file => file?,
        };
        let length = file.length().context("stat", &path)?;
        if length != *bytes {
            return Err(damaged(format!("it has {length} bytes instead of {bytes}")));
        }
        let fresh = files::open(&copy, Mode::Fresh)?;
        if pour(&file, length, &path, Some(&fresh))? != *sha256 {
            return Err(damaged("its SHA-256 does not match".into()));
        }
        fresh.sync().context("sync", &copy)?;
    }
    for dir in ["epoch/log", "epoch/vectors", "epoch", ""] {
        files::sync_dir(&into.join(dir))?;
    }
    Ok(())
}

/// Until when the slot is kept at a snapshot's position, so that a restore of it goes on from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retained {
    /// The slot.
    pub slot: String,
    /// The snapshot's position.
    pub lsn: Lsn,
    /// Seconds since 1970.
    pub until: u64,
}

/// What is to be kept by a data directory's service, as written down by an earlier run of it.
pub fn retained(root: &Path) -> Result<Option<Retained>> {
    read_json(&root.join("RETAINED"))
}

/// Writes it down, or that nothing is.
pub fn set_retained(root: &Path, retained: Option<&Retained>) -> Result<()> {
    let path = root.join("RETAINED");
    match retained {
        Some(retained) => write_json(&path, retained),
        None => files::remove(&path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_with_a_number_is_the_same_services() {
        for (slot, same) in
            [("rv", true), ("rv_2", true), ("rv_", false), ("rv_x", false), ("rv2", false), ("r", false)]
        {
            assert_eq!(is_copy_of(slot, "rv"), same, "{slot}");
        }
    }

    #[test]
    fn a_snapshot_has_a_place_of_its_own() {
        let dir = tempfile::tempdir().expect("dir");
        let root = dir.path().join("data");
        std::fs::create_dir_all(root.join("epoch-1")).expect("dir");
        std::os::unix::fs::symlink(&root, dir.path().join("link")).expect("link");
        let begin = |to: PathBuf| Making::begin(&to, &root).map(|making| making.discard());
        for (to, why) in [
            (root.clone(), "data directory"),
            (root.join("s"), "data directory"),
            (dir.path().join("link/s"), "data directory"),
            (dir.path().to_owned(), "data directory"),
            (PathBuf::from("s"), "absolute"),
            (dir.path().join("a/../data/s"), "absolute"),
        ] {
            let error = begin(to.clone()).expect_err("refused").to_string();
            assert!(error.contains(why), "{}: {error}", to.display());
        }
        begin(dir.path().join("new/deep")).expect("made with what is above it");
        std::fs::write(dir.path().join("new/file"), "").expect("write");
        assert!(begin(dir.path().join("new")).is_err(), "not empty");
        assert!(!dir.path().join("new.making").exists());
    }
}
