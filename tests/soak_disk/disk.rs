//! A disk in memory that fails on order, and knows what was written from what was synced.

use crate::random::Random;
use ruvector::storage::files::{File, Files, Handle, Mode};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a disk loses or keeps at once when power fails.
const SECTOR: usize = 512;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A write fails, and nothing of it was done.
    Write,
    /// A write fails half-way.
    ShortWrite,
    /// A sync fails, and the system forgets what was to be synced: it may show it, and will not write it.
    Sync,
    /// For some operations there is no room.
    Full,
    /// A read fails.
    Read,
    /// A file cannot be made, renamed or removed.
    Name,
    /// Of what was not synced, any part survives; the machine is off from then on.
    Power,
    /// A bit of a file changes.
    Flip,
}

pub const FAULTS: [Fault; 8] =
    [Fault::Write, Fault::ShortWrite, Fault::Sync, Fault::Full, Fault::Read, Fault::Name, Fault::Power, Fault::Flip];

#[derive(Debug, Clone)]
enum Change {
    Bytes { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Bytes { offset, bytes } => {
                content.resize(content.len().max(offset + bytes.len()), 0);
                content[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Change::Length(length) => content.resize(*length, 0),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Content {
    /// What a read gives.
    now: Vec<u8>,
    /// What is on the disk.
    durable: Vec<u8>,
    /// What the system still has to write, in order.
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(usize),
    Dir,
}

type Names = BTreeMap<PathBuf, Entry>;

/// Names that change together, and the directories that make it durable.
#[derive(Debug, Clone)]
struct NameChange {
    dir: PathBuf,
    entries: Vec<(PathBuf, Option<Entry>)>,
}

fn set(names: &mut Names, entries: &[(PathBuf, Option<Entry>)]) {
    for (path, entry) in entries {
        match entry {
            Some(entry) => drop(names.insert(path.clone(), *entry)),
            None => drop(names.remove(path)),
        }
    }
}

/// All that is on it.
#[derive(Debug, Clone, Default)]
pub struct Image {
    contents: Vec<Content>,
    names: Names,
    durable_names: Names,
    unsynced_names: Vec<NameChange>,
}

/// How much of what was not synced survives a power cut.
#[derive(Clone, Copy)]
enum Survives {
    Nothing,
    Everything,
    /// What came first.
    Beginning,
    Anything,
}

impl Image {
    /// What is there when power is back.
    fn after_power_loss(&self, random: &mut Random) -> Image {
        let modes = [Survives::Nothing, Survives::Everything, Survives::Beginning, Survives::Anything];
        let mode = *random.pick(&[modes[0], modes[1], modes[2], modes[3], modes[3]]);
        let mut survived = Image::default();
        for content in &self.contents {
            let mut durable = content.durable.clone();
            let first = random.below(content.unsynced.len() as u64 + 1) as usize;
            for (number, change) in content.unsynced.iter().enumerate() {
                match (mode, change) {
                    (Survives::Nothing, _) => {}
                    (Survives::Beginning, _) if number > first => {}
                    (Survives::Anything, Change::Length(_)) => {
                        if random.once_in(2) {
                            change.apply(&mut durable);
                        }
                    }
                    (Survives::Anything, Change::Bytes { offset, bytes }) => tear(&mut durable, *offset, bytes, random),
                    (Survives::Beginning, Change::Bytes { offset, bytes }) if number == first => {
                        tear(&mut durable, *offset, bytes, random);
                    }
                    _ => change.apply(&mut durable),
                }
            }
            survived.contents.push(Content { now: durable.clone(), durable, unsynced: Vec::new() });
        }
        let mut names = self.durable_names.clone();
        let first = random.below(self.unsynced_names.len() as u64 + 1) as usize;
        for (number, change) in self.unsynced_names.iter().enumerate() {
            let kept = match mode {
                Survives::Nothing => false,
                Survives::Everything => true,
                Survives::Beginning => number < first,
                Survives::Anything => random.once_in(2),
            };
            if kept {
                set(&mut names, &change.entries);
            }
        }
        // What lies in a directory that was lost is lost.
        let dirs: Vec<_> =
            names.iter().filter(|(_, entry)| **entry == Entry::Dir).map(|(dir, _)| dir.clone()).collect();
        names.retain(|path, _| {
            path.ancestors().skip(1).all(|dir| dir.as_os_str().is_empty() || dirs.contains(&dir.into()))
        });
        survived.names = names.clone();
        survived.durable_names = names;
        survived
    }

    /// What the next process finds when the machine stays on. What the system forgot after a failed sync may be evicted.
    fn after_restart(&self, random: &mut Random) -> Image {
        let mut image = self.clone();
        for content in &mut image.contents {
            if random.once_in(2) {
                content.now = content.durable.clone();
                content.unsynced.iter().for_each(|change| change.apply(&mut content.now));
            }
        }
        image
    }

    /// Flips a bit of some file; its kind.
    fn flip(&mut self, random: &mut Random) -> Option<String> {
        let mut kinds: BTreeMap<String, Vec<(PathBuf, usize)>> = BTreeMap::new();
        for (path, entry) in &self.names {
            if let Entry::File(file) = entry
                && !self.contents[*file].now.is_empty()
            {
                kinds.entry(kind_of(path)).or_default().push((path.clone(), *file));
            }
        }
        let kinds: Vec<_> = kinds.into_iter().collect();
        let (kind, files) = kinds.get(random.below(kinds.len().max(1) as u64) as usize)?;
        let (_, file) = random.pick(files);
        let content = &mut self.contents[*file];
        let length = content.now.len() as u64;
        let at = match random.below(5) {
            0 => random.below(length.min(400)),
            1 => length - 1 - random.below(length.min(400)),
            // redb's file is mostly empty.
            2 | 3 => {
                let used: Vec<u64> = (0..length).filter(|at| content.now[*at as usize] != 0).collect();
                *random.pick(&used)
            }
            _ => random.below(length),
        } as usize;
        let bit = 1 << random.below(8);
        content.now[at] ^= bit;
        if let Some(byte) = content.durable.get_mut(at) {
            *byte ^= bit;
        }
        Some(kind.clone())
    }
}

/// The kinds of files there are.
fn kind_of(path: &Path) -> String {
    let text = path.to_string_lossy();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match path.extension() {
        Some(_) if text.contains("copy-") => "copy log".into(),
        Some(extension) => extension.to_string_lossy().into_owned(),
        None => name.into_owned(),
    }
}

fn tear(content: &mut Vec<u8>, offset: usize, bytes: &[u8], random: &mut Random) {
    let mut at = 0;
    while at < bytes.len() {
        let end = ((offset + at) / SECTOR * SECTOR + SECTOR - offset).min(bytes.len());
        if random.once_in(2) {
            Change::Bytes { offset: offset + at, bytes: bytes[at..end].to_vec() }.apply(content);
        }
        at = end;
    }
}

struct State {
    image: Image,
    random: Random,
    /// What goes wrong next, after so many operations that it can happen to.
    armed: Option<(Fault, u64)>,
    /// So many operations find no room.
    full_for: u64,
    /// As it was when power failed.
    lost: Option<Image>,
    happened: Option<String>,
}

/// The disk.
pub struct Disk {
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Grow,
    Sync,
    Name,
}

/// What an operation meets.
enum Met {
    Nothing,
    Half,
    Forget,
}

fn failed() -> io::Error {
    io::Error::from_raw_os_error(5)
}

fn no_room() -> io::Error {
    io::Error::from_raw_os_error(28)
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl State {
    fn meet(&mut self, operation: Operation) -> io::Result<Met> {
        if self.lost.is_some() {
            return Err(failed());
        }
        let needs_room = matches!(operation, Operation::Grow | Operation::Name);
        if self.full_for > 0 && needs_room {
            self.full_for -= 1;
            return Err(no_room());
        }
        let Some((fault, after)) = &mut self.armed else { return Ok(Met::Nothing) };
        let writes = matches!(operation, Operation::Write | Operation::Grow);
        let meets = match fault {
            Fault::Write | Fault::ShortWrite => writes,
            Fault::Sync => operation == Operation::Sync,
            Fault::Full => needs_room,
            Fault::Read => operation == Operation::Read,
            Fault::Name => operation == Operation::Name,
            Fault::Power | Fault::Flip => true,
        };
        if !meets {
            return Ok(Met::Nothing);
        }
        if *after > 0 {
            *after -= 1;
            return Ok(Met::Nothing);
        }
        let fault = *fault;
        self.armed = None;
        self.happened = Some(format!("{fault:?}"));
        match fault {
            Fault::Write | Fault::Read | Fault::Name => Err(failed()),
            Fault::ShortWrite => Ok(Met::Half),
            Fault::Sync => Ok(Met::Forget),
            Fault::Full => {
                self.full_for = self.random.below(4);
                Err(no_room())
            }
            Fault::Power => {
                self.lost = Some(self.image.clone());
                Err(failed())
            }
            Fault::Flip => {
                self.happened = self.image.flip(&mut self.random);
                Ok(Met::Nothing)
            }
        }
    }

    /// Names that fit no directory cannot be made.
    fn change(&mut self, dir: &Path, entries: Vec<(PathBuf, Option<Entry>)>) {
        set(&mut self.image.names, &entries);
        self.image.unsynced_names.push(NameChange { dir: dir.to_owned(), entries });
    }

    fn is_dir(&self, dir: &Path) -> bool {
        dir.as_os_str().is_empty() || self.image.names.get(dir) == Some(&Entry::Dir)
    }
}

/// Which image the next process works on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The process ended, the machine did not.
    Restart,
    /// Power failed.
    PowerLoss,
}

impl Disk {
    /// A disk with this on it, seen below `root`.
    pub fn new(root: &Path, image: Image, seed: u64) -> Disk {
        let random = Random::new(seed);
        let state = State { image, random, armed: None, full_for: 0, lost: None, happened: None };
        Disk { root: root.to_owned(), state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no operation panics")
    }

    /// The same disk to be mounted.
    pub fn handle(&self) -> Arc<Disk> {
        Arc::new(Disk { root: self.root.clone(), state: self.state.clone() })
    }

    /// This goes wrong at an operation that comes after so many that it could have happened to.
    pub fn arm(&self, fault: Fault, after: u64) {
        self.state().armed = Some((fault, after));
    }

    /// There is no room until it is disarmed.
    pub fn fill(&self) {
        self.state().full_for = u64::MAX;
    }

    /// Everything written so far is on disk.
    pub fn sync_all(&self) {
        let mut state = self.state();
        let Image { contents, names, durable_names, unsynced_names } = &mut state.image;
        for Content { now, durable, unsynced } in contents {
            unsynced.clear();
            durable.clone_from(now);
        }
        unsynced_names.clear();
        durable_names.clone_from(names);
    }

    /// What went wrong, if it did; nothing does any more.
    pub fn disarm(&self) -> Option<String> {
        let mut state = self.state();
        (state.armed, state.full_for) = (None, 0);
        state.happened.clone()
    }

    /// What went wrong, if it did.
    pub fn happened(&self) -> Option<String> {
        self.state().happened.clone()
    }

    /// Flips a bit of some file; its kind.
    pub fn flip(&self) -> Option<String> {
        let mut state = self.state();
        let State { image, random, .. } = &mut *state;
        image.flip(random)
    }

    /// What the next process finds.
    pub fn after(&self, end: End) -> Image {
        let mut state = self.state();
        let State { image, random, lost, .. } = &mut *state;
        match (lost, end) {
            (Some(lost), _) => lost.after_power_loss(random),
            (None, End::PowerLoss) => image.after_power_loss(random),
            (None, End::Restart) => image.after_restart(random),
        }
    }

    fn inside(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).expect("below the root").to_owned()
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

impl Files for Disk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Handle> {
        let path = self.inside(path);
        let mut state = self.state();
        let found = match state.image.names.get(&path) {
            Some(Entry::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Entry::File(file)) => Some(*file),
            None => None,
        };
        let file = match (found, mode) {
            (None, Mode::Read) => return Err(missing()),
            (Some(file), _) => file,
            (None, _) => {
                state.meet(Operation::Name)?;
                if !state.is_dir(&parent(&path)) {
                    return Err(missing());
                }
                state.image.contents.push(Content::default());
                let file = state.image.contents.len() - 1;
                state.change(&parent(&path), vec![(path.clone(), Some(Entry::File(file)))]);
                file
            }
        };
        let handle = Open { file, state: self.state.clone() };
        drop(state);
        if mode == Mode::Fresh && handle.length()? > 0 {
            handle.set_length(0)?;
        }
        Ok(Arc::new(handle))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.inside(from), self.inside(to));
        let mut state = self.state();
        state.meet(Operation::Name)?;
        let entry = *state.image.names.get(&from).ok_or_else(missing)?;
        assert_eq!(parent(&from), parent(&to), "nothing moves between directories");
        state.change(&parent(&to), vec![(from, None), (to, Some(entry))]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let path = self.inside(path);
        let mut state = self.state();
        state.meet(Operation::Name)?;
        if !matches!(state.image.names.get(&path), Some(Entry::File(_))) {
            return Err(missing());
        }
        state.change(&parent(&path), vec![(path, None)]);
        Ok(())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = self.inside(dir);
        let mut state = self.state();
        let mut above: Vec<_> = dir.ancestors().filter(|dir| !state.is_dir(dir)).map(Path::to_owned).collect();
        above.reverse();
        for dir in above {
            state.meet(Operation::Name)?;
            state.change(&parent(&dir), vec![(dir, Some(Entry::Dir))]);
        }
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = self.inside(dir);
        let mut state = self.state();
        if !state.is_dir(&dir) {
            return Err(missing());
        }
        // From the leaves on, one by one.
        let inside: Vec<_> = state.image.names.keys().filter(|path| path.starts_with(&dir)).rev().cloned().collect();
        for path in inside {
            state.meet(Operation::Name)?;
            state.change(&parent(&path), vec![(path, None)]);
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let dir = self.inside(dir);
        let mut state = self.state();
        state.meet(Operation::Read)?;
        if !state.is_dir(&dir) {
            return Err(missing());
        }
        let inside = state.image.names.keys().filter(|path| path.parent() == Some(&dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = self.inside(dir);
        let mut state = self.state();
        let met = state.meet(Operation::Sync)?;
        if !state.is_dir(&dir) {
            return Err(missing());
        }
        // Names are in a journal, which is not forgotten: a later sync may succeed.
        if matches!(met, Met::Forget) {
            return Err(failed());
        }
        let State { image: Image { durable_names, unsynced_names, .. }, .. } = &mut *state;
        let (synced, rest): (Vec<_>, _) = std::mem::take(unsynced_names).into_iter().partition(|c| c.dir == dir);
        *unsynced_names = rest;
        synced.iter().for_each(|change| set(durable_names, &change.entries));
        Ok(())
    }
}

struct Open {
    file: usize,
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "file {}", self.file)
    }
}

impl Open {
    fn change(&self, operation: Operation, change: Change) -> io::Result<()> {
        let mut state = self.state.lock().expect("no operation panics");
        let met = state.meet(operation)?;
        let content = &mut state.image.contents[self.file];
        let change = match (&met, change) {
            (Met::Half, Change::Bytes { offset, mut bytes }) => {
                bytes.truncate(bytes.len() / 2);
                Change::Bytes { offset, bytes }
            }
            (_, change) => change,
        };
        change.apply(&mut content.now);
        content.unsynced.push(change);
        if matches!(met, Met::Half) { Err(failed()) } else { Ok(()) }
    }
}

impl File for Open {
    fn length(&self) -> io::Result<u64> {
        let state = self.state.lock().expect("no operation panics");
        Ok(state.image.contents[self.file].now.len() as u64)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock().expect("no operation panics");
        state.meet(Operation::Read)?;
        let offset = offset as usize;
        let found = state.image.contents[self.file].now.get(offset..offset + into.len());
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let grows = self.length()? < offset + bytes.len() as u64;
        let operation = if grows { Operation::Grow } else { Operation::Write };
        self.change(operation, Change::Bytes { offset: offset as usize, bytes: bytes.to_vec() })
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let operation = if self.length()? < length { Operation::Grow } else { Operation::Write };
        self.change(operation, Change::Length(length as usize))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock().expect("no operation panics");
        let met = state.meet(Operation::Sync)?;
        let Content { durable, unsynced, .. } = &mut state.image.contents[self.file];
        let changes = std::mem::take(unsynced);
        if matches!(met, Met::Forget) {
            return Err(failed());
        }
        changes.iter().for_each(|change| change.apply(durable));
        Ok(())
    }
}
