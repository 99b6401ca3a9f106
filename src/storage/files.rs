//! The seam between this floor and the file system: everything in a data directory but its lock goes through it, so that
//! tests can put a disk beneath that fails, loses power or flips bits.

use crate::storage::{IoContext, Result};
use memmap2::Mmap;
use parking_lot::RwLock;
use std::fmt::Debug;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// To read what is there.
    Read,
    /// To read and write what is there, or a new file.
    Write,
    /// To read and write a new file; what was there is cut off.
    Fresh,
}

/// An open file.
pub trait File: Debug + Send + Sync {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Fills `into`; the file ending before that is an error.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or extends it, with zeros.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Makes its content survive a power cut.
    fn sync(&self) -> io::Result<()>;
    /// Its bytes in memory, to be read at random, also those that are written later; `None` where that cannot be had.
    /// Nothing beyond the end of the file may be touched.
    fn map(&self, _length: usize) -> Option<Mmap> {
        None
    }
}

/// A handle of an open file.
pub type Handle = Arc<dyn File>;

/// What can be done with names.
pub trait Files: Send + Sync {
    /// Opens or makes a file.
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Handle>;
    /// Gives a file another name, in place of what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file that is never written again a second name. Not every file system can, nor across two of them.
    fn link(&self, _path: &Path, _second: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory and those above it, unless they are there.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Removes a directory and all in it.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes the names in a directory survive a power cut.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// The operating system's.
struct System;

impl File for std::fs::File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        // Also flushes the length, and leaves out times only.
        self.sync_data()
    }

    fn map(&self, length: usize) -> Option<Mmap> {
        // SAFETY: what is mapped belongs to this process alone, which holds the directory's lock, and is never cut short
        // or written twice.
        let map = unsafe { memmap2::MmapOptions::new().len(length).map(self) }.ok()?;
        // Advice only: without it the system reads ahead what nobody wants.
        #[cfg(unix)]
        let _ = map.advise(memmap2::Advice::Random);
        Some(map)
    }
}

impl Files for System {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Handle> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true);
        if mode != Mode::Read {
            options.write(true).create(true).truncate(mode == Mode::Fresh);
        }
        Ok(Arc::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn link(&self, path: &Path, second: &Path) -> io::Result<()> {
        std::fs::hard_link(path, second)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        // Every name of ours is ASCII; others are nobody's.
        let name = |entry: io::Result<std::fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        std::fs::read_dir(dir)?.map(name).collect()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::File::open(dir)?.sync_all()
    }
}

/// Always empty outside tests.
static MOUNTED: RwLock<Vec<(PathBuf, Arc<dyn Files>)>> = RwLock::new(Vec::new());

/// Everything below `dir` is kept by `files` from now on, until the guard is dropped. This is how tests get at a data
/// directory's disk without every part of the service knowing of it.
pub fn mount(dir: &Path, files: Arc<dyn Files>) -> Mounted {
    MOUNTED.write().push((dir.to_owned(), files));
    Mounted(dir.to_owned())
}

/// Files of somebody else's making are mounted as long as this lives.
pub struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        MOUNTED.write().retain(|(dir, _)| *dir != self.0);
    }
}

fn on<T>(path: &Path, act: impl FnOnce(&dyn Files) -> T) -> T {
    let mounted = MOUNTED.read().iter().find(|(dir, _)| path.starts_with(dir)).map(|(_, files)| files.clone());
    act(mounted.as_deref().unwrap_or(&System))
}

/// Opens or makes a file.
pub fn open(path: &Path, mode: Mode) -> Result<Handle> {
    on(path, |files| files.open(path, mode)).context("open", path)
}

/// Reads a whole file; `None` when there is none.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match on(path, |files| files.open(path, Mode::Read)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.context("open", path)?,
    };
    let mut bytes = vec![0; file.length().context("stat", path)? as usize];
    file.read_at(&mut bytes, 0).context("read", path)?;
    Ok(Some(bytes))
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_if_there(path)?.ok_or_else(|| io::ErrorKind::NotFound.into()).context("open", path)
}

/// Is there a file of this name?
pub fn exists(path: &Path) -> bool {
    on(path, |files| files.open(path, Mode::Read)).is_ok()
}

/// Replaces a file whole or not at all.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    put_under_name(path, bytes).map(|_| ())
}

/// Makes a file that has its name only when all of it is on disk, and leaves it open.
pub fn put_under_name(path: &Path, bytes: &[u8]) -> Result<Handle> {
    let unnamed = Unnamed::create(path)?;
    unnamed.write_at(bytes, 0)?;
    unnamed.name()
}

/// A file that is written in parts and gets its name when it is whole.
pub struct Unnamed {
    path: PathBuf,
    fresh: PathBuf,
    file: Handle,
}

impl Unnamed {
    /// An empty file that is going to be `path`.
    pub fn create(path: &Path) -> Result<Unnamed> {
        let fresh = path.with_extension("new");
        let file = open(&fresh, Mode::Fresh)?;
        Ok(Unnamed { path: path.to_owned(), fresh, file })
    }

    /// Writes all of `bytes`.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_at(bytes, offset).context("write", &self.fresh)
    }

    /// Makes it durable and gives it its name.
    pub fn name(self) -> Result<Handle> {
        let Unnamed { path, fresh, file } = self;
        file.sync().context("write", &fresh)?;
        crate::failpoint!("atomic.written");
        on(&path, |files| files.rename(&fresh, &path)).context("rename", &fresh)?;
        crate::failpoint!("atomic.renamed");
        sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        Ok(file)
    }
}

/// Gives a file that is never written again a second name, where that can be had.
pub fn link(path: &Path, second: &Path) -> io::Result<()> {
    on(path, |files| files.link(path, second))
}

/// Gives a directory another name, in place of an empty one that had it.
pub fn rename_dir(dir: &Path, to: &Path) -> Result<()> {
    on(to, |files| files.rename(dir, to)).context("rename", dir)?;
    sync_dir(to.parent().unwrap_or(Path::new("/")))
}

/// A directory's path without links; it must be there, on the system's own disk.
pub fn real(dir: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(dir).context("find", dir)
}

/// The names in a directory, in no order; `None` when there is no such directory.
pub fn list_if_there(dir: &Path) -> Result<Option<Vec<String>>> {
    match on(dir, |files| files.list(dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        names => names.map(Some).context("list", dir),
    }
}

/// Removes a file, unless there is none.
pub fn remove(path: &Path) -> Result<()> {
    unless_missing(on(path, |files| files.remove(path))).context("remove", path)
}

/// Removes a directory and all in it, unless there is none.
pub fn remove_dir(dir: &Path) -> Result<()> {
    unless_missing(on(dir, |files| files.remove_dir(dir))).context("remove", dir)
}

/// Makes a directory and those above it, unless they are there.
pub fn create_dir(dir: &Path) -> Result<()> {
    on(dir, |files| files.create_dir(dir)).context("create", dir)
}

/// The names in a directory, in no order.
pub fn list(dir: &Path) -> Result<Vec<String>> {
    on(dir, |files| files.list(dir)).context("list", dir)
}

/// Makes new, renamed and removed names in `dir` survive a power cut.
pub fn sync_dir(dir: &Path) -> Result<()> {
    on(dir, |files| files.sync_dir(dir)).context("sync", dir)
}

fn unless_missing(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
