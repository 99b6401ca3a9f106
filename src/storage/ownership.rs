//! What proves that something on the source is ours: the names of the slots we made, and the identity of this very
//! directory. Both stand in small files beside `CURRENT`, each replaced whole.

use crate::storage::data_dir::{Current, Pending, read_json, write_json};
use crate::storage::{IoContext, Result, files};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Who works in a directory, and in which one: a copy of the directory is somebody else.
#[derive(serde::Serialize, serde::Deserialize)]
struct Instance {
    id: String,
    home: String,
}

/// The identity of a locked data directory: sessions on the source that carry it belong to this process or to a dead one
/// that worked in the same directory before. A directory that was copied, moved to another disk or machine, or found
/// after a reboot gets a new identity: then nothing proves that the old sessions are dead, and time must tell.
pub fn instance(root: &Path) -> Result<String> {
    let path = root.join("INSTANCE");
    let meta = std::fs::metadata(root).context("look at", root)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let home = format!("{} {} {}", boot.trim(), meta.dev(), meta.ino());
    // What cannot be read proves nothing either.
    if let Ok(Some(found)) = read_json::<Instance>(&path)
        && found.home == home
        && !boot.is_empty()
    {
        return Ok(found.id);
    }
    let id = fresh_instance();
    write_json(&path, &Instance { id: id.clone(), home })?;
    Ok(id)
}

/// An identity that nobody has had.
pub fn fresh_instance() -> String {
    // A hasher's keys are the system's random numbers.
    format!("{:012x}", RandomState::new().hash_one(0) >> 16)
}

fn remembered(root: &Path) -> Result<Vec<String>> {
    Ok(read_json(&root.join("SLOTS"))?.unwrap_or_default())
}

fn write(root: &Path, names: &[String]) -> Result<()> {
    write_json(&root.join("SLOTS"), &names)
}

/// The directory of the epoch that answers, if there is one.
pub fn current_epoch(root: &Path) -> Result<Option<PathBuf>> {
    let current = read_json::<Current>(&root.join("CURRENT"))?;
    Ok(current.map(|current| root.join(format!("epoch-{}", current.epoch.0))))
}

/// Removes what this program wrote into a data directory, and the directory where nothing else is in it.
pub fn remove_data(root: &Path) -> Result<()> {
    for name in files::list(root)? {
        let path = root.join(&name);
        let file = name.strip_suffix(".new").unwrap_or(&name);
        if name.strip_prefix("epoch-").is_some_and(|number| number.parse::<u32>().is_ok()) {
            files::remove_dir(&path)?;
        } else if ["CURRENT", "PENDING", "REGISTERED", "RETAINED", "SLOTS", "INSTANCE", "LOCK"].contains(&file) {
            files::remove(&path)?;
        }
    }
    match std::fs::remove_dir(root) {
        Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => Err(error).context("remove", root),
        _ => Ok(()),
    }
}

/// Writes down a slot that is about to be made, so that it is found as long as it is there.
pub fn remember_slot(root: &Path, name: &str) -> Result<()> {
    let mut names = remembered(root)?;
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    names.push(name.to_owned());
    write(root, &names)
}

/// It is there no more.
pub fn forget_slot(root: &Path, name: &str) -> Result<()> {
    let mut names = remembered(root)?;
    let before = names.len();
    names.retain(|known| known != name);
    if names.len() < before { write(root, &names) } else { Ok(()) }
}

/// The slots in use: the current epoch's, that of one being made, and the one it replaces.
pub fn slots_in_use(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    if let Some(current) = read_json::<Current>(&root.join("CURRENT"))? {
        names.push(current.slot);
    }
    if let Some(pending) = read_json::<Pending>(&root.join("PENDING"))? {
        for name in [pending.slot].into_iter().chain(pending.old_slot) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

/// The slot that is streamed from, or will be: of the epoch that is being made if one is, else of the current one.
pub fn slot_followed(root: &Path) -> Result<Option<String>> {
    let current = read_json::<Current>(&root.join("CURRENT"))?;
    let pending = read_json::<Pending>(&root.join("PENDING"))?;
    let making = pending.filter(|pending| current.as_ref().is_none_or(|current| current.epoch != pending.epoch));
    Ok(making.map(|pending| pending.slot).or(current.map(|current| current.slot)))
}

/// Every slot that this directory's service made and that may still be there.
pub fn slots(root: &Path) -> Result<Vec<String>> {
    let mut names = slots_in_use(root)?;
    for name in remembered(root)? {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::data_dir::{DataDir, EpochId};

    #[test]
    fn a_copied_directory_is_somebody_else() {
        let root = tempfile::tempdir().expect("dir");
        let copy = tempfile::tempdir().expect("dir");
        let id = instance(root.path()).expect("an identity");
        assert_eq!(instance(root.path()).expect("the same"), id);
        std::fs::copy(root.path().join("INSTANCE"), copy.path().join("INSTANCE")).expect("copied");
        assert_ne!(instance(copy.path()).expect("another"), id);
        std::fs::write(root.path().join("INSTANCE"), "{").expect("write");
        assert_ne!(instance(root.path()).expect("a new one"), id);
    }

    #[test]
    fn slots_are_known_until_they_are_gone() {
        let root = tempfile::tempdir().expect("dir");
        let dir = DataDir::open(root.path()).expect("open");
        assert!(slots(root.path()).expect("none").is_empty());
        for name in ["s", "s_2", "s"] {
            remember_slot(root.path(), name).expect("written");
        }
        dir.prepare_epoch(EpochId(2)).expect("prepare");
        dir.make_current(EpochId(2), "s_2").expect("current");
        assert_eq!(slots_in_use(root.path()).expect("one"), ["s_2"]);
        let pending = Pending { epoch: EpochId(3), slot: "s_3".into(), old_slot: Some("s_2".into()) };
        dir.set_pending(Some(&pending)).expect("pending");
        assert_eq!(slots_in_use(root.path()).expect("two"), ["s_2", "s_3"]);
        assert_eq!(slot_followed(root.path()).expect("new"), Some("s_3".into()));
        dir.set_pending(Some(&Pending { epoch: EpochId(2), ..pending })).expect("pending");
        assert_eq!(slot_followed(root.path()).expect("current"), Some("s_2".into()));
        dir.set_pending(None).expect("none");
        assert_eq!(slots(root.path()).expect("both"), ["s_2", "s"]);
        forget_slot(root.path(), "s").expect("written");
        forget_slot(root.path(), "s").expect("again");
        assert_eq!(slots(root.path()).expect("one"), ["s_2"]);
    }
}
