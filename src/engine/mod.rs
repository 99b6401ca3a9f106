//! Change log -> indexes -> candidates. Synchronous: threads of its own, no async.

pub mod apply;
pub mod arena;
pub mod background;
pub mod candidates;
pub mod collection;
pub mod distance;
pub mod hnsw;
pub mod index;
pub mod paged;
pub mod segment;
pub mod view;

use crate::engine::apply::Applier;
use crate::engine::collection::CollectionWriter;
use crate::engine::view::{CollectionView, View};
use crate::model::{CollectionDef, CollectionId, Lsn, RowKey};
use crate::storage::changelog::LogReader;
use crate::storage::state::{CollectionRecord, CollectionState, DeadLetter, IndexRecord, State, StoredRow};
use crate::storage::{Result, StorageError, files, originals::Originals};
use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rows of a growing segment; a full one is sealed.
    pub segment_rows: usize,
    /// Threads that link the rows of a copy.
    pub build_threads: usize,
    /// On a graceful stop, growing segments of at least this many rows get a file.
    pub seal_rows_on_stop: usize,
}

impl Default for Options {
    fn default() -> Self {
        let build_threads = std::thread::available_parallelism().map_or(2, usize::from);
        Options { segment_rows: 65_536, build_threads, seal_rows_on_stop: 1_000 }
    }
}

/// Longest wait for the engine's threads to end.
const STOP_WAIT: Duration = Duration::from_secs(20);

/// Marks an epoch so that the next start copies again instead of failing at the same place.
fn remember_damage(epoch: &Path, error: &StorageError) {
    if let Err(failed) = files::write_atomically(&damage_mark(epoch), error.to_string().as_bytes()) {
        tracing::warn!(error = %failed, "cannot write down that the data is damaged");
    }
}

/// The file that says that an epoch is damaged.
pub fn damage_mark(epoch: &Path) -> PathBuf {
    epoch.join("DAMAGED")
}

/// A copy of fewer rows becomes one graph.
const LARGEST_COPY_SEGMENT: u64 = 1 << 22;

/// How far a copy has come in the engine.
#[derive(Debug, Default)]
pub struct CopyProgress {
    /// Rows taken from the copy log.
    pub loaded: AtomicU64,
    /// Rows linked into the graph.
    pub linked: AtomicU64,
}

/// What the engine's threads and its readers share.
pub struct Shared {
    /// The settings.
    pub options: Options,
    view: ArcSwap<View>,
    applied: watch::Sender<Lsn>,
    progress: Mutex<HashMap<CollectionId, Arc<CopyProgress>>>,
    stop: AtomicBool,
    stopped: (Mutex<()>, Condvar),
    failure: watch::Sender<Option<String>>,
}

impl Shared {
    fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    fn publish(&self, view: View) {
        let applied = view.applied;
        self.view.store(Arc::new(view));
        self.applied.send_replace(applied);
    }

    fn progress(&self, collection: CollectionId) -> Arc<CopyProgress> {
        self.progress.lock().entry(collection).or_default().clone()
    }

    fn is_copying(&self, view: &View, id: CollectionId) -> bool {
        view.collections.values().any(|c| c.def.id == id && c.state == CollectionState::Copying)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let _guard = self.stopped.0.lock();
        self.stopped.1.notify_all();
    }

    /// True when told to stop before the time was over.
    fn sleep_unless_stopping(&self, time: Duration) -> bool {
        let mut guard = self.stopped.0.lock();
        if !self.stopping() {
            self.stopped.1.wait_for(&mut guard, time);
        }
        self.stopping()
    }

    fn wait_for_another(&self, view: &Arc<View>) {
        for _ in 0..100 {
            if !Arc::ptr_eq(view, &self.view()) || self.sleep_unless_stopping(Duration::from_millis(20)) {
                return;
            }
        }
    }

    fn fail(&self, error: &dyn std::fmt::Display) {
        tracing::error!(%error, "the engine stopped");
        self.failure.send_replace(Some(error.to_string()));
    }
}

/// The engine of one epoch: owns its threads, hands out views.
pub struct Engine {
    shared: Arc<Shared>,
    state: Arc<State>,
    epoch: PathBuf,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A collection that is to be copied: its definition, the copy's consistent point, about how many rows.
pub struct NewCollection {
    /// What it is.
    pub def: CollectionDef,
    /// Consistent point of its copy.
    pub copied_at: Lsn,
    /// Estimate, for sizing.
    pub expected_rows: u64,
}

/// Where the engine reads from.
pub struct Logs {
    /// The change log, from the applied position on.
    pub changes: LogReader,
    /// Its directory, for removing what is applied.
    pub dir: PathBuf,
    /// The copy log of every collection that is being copied.
    pub copies: Vec<(CollectionId, LogReader)>,
}

impl Engine {
    /// Adds collections to the state; their rows will come from copy logs.
    pub fn register(state: &State, new: &[NewCollection]) -> Result<()> {
        state.write(true, |batch| {
            for NewCollection { def, copied_at, .. } in new {
                batch.put_collection(&CollectionRecord {
                    def: def.clone(),
                    state: CollectionState::Copying,
                    copied_at: *copied_at,
                    indexes: vec![IndexRecord::default(); def.vectors.len()],
                })?;
            }
            Ok(())
        })
    }

    /// Opens the engine on an epoch's state: loads rows and sealed segments, starts its threads.
    pub fn start(
        epoch: &Path,
        state: Arc<State>,
        options: Options,
        logs: Logs,
        expected: &[(CollectionId, u64)],
    ) -> Result<Engine> {
        let mut collections = Vec::new();
        for record in state.collections()? {
            let mut collection = CollectionWriter::open(epoch, &state, record, options.segment_rows)?;
            let id = collection.id();
            for index in &mut collection.indexes {
                index.remove_orphans()?;
                if let Some((_, rows)) = expected.iter().find(|(new, _)| *new == id) {
                    index.set_segment_rows(options.segment_rows.max((*rows).min(LARGEST_COPY_SEGMENT) as usize));
                }
            }
            collections.push(collection);
        }
        let shared = Arc::new(Shared {
            options,
            view: ArcSwap::default(),
            applied: watch::channel(Lsn::ZERO).0,
            progress: Mutex::default(),
            stop: AtomicBool::new(false),
            stopped: Default::default(),
            failure: watch::channel(None).0,
        });
        let engine = Engine { shared, state: state.clone(), epoch: epoch.to_owned(), threads: Mutex::default() };
        engine.publish_opened(&mut collections)?;
        let (done, finished) = mpsc::channel();
        let number = |id| collections.iter().position(|collection| collection.id() == id);
        let copies = logs.copies.into_iter().filter_map(|(id, copy)| Some((number(id)?, copy))).collect();
        let applier = Applier::new(engine.shared.clone(), state, collections, logs.dir, logs.changes, finished)?;
        engine.spawn("apply", move |_, _| applier.run(copies))?;
        let link_done = done.clone();
        engine.spawn("link", move |shared, epoch| background::link(shared, epoch, &link_done))?;
        engine.spawn("merge", move |shared, epoch| background::merge(shared, epoch, &done))?;
        Ok(engine)
    }

    /// The first view: what the state holds, before anything new is applied.
    fn publish_opened(&self, collections: &mut [CollectionWriter]) -> Result<()> {
        let applied = self.state.applied()?;
        let views = collections.iter_mut().map(|c| (c.name().to_owned(), Arc::new(c.view()))).collect();
        self.shared.publish(View { applied: applied.lsn, commit_time: applied.commit_time, collections: views });
        Ok(())
    }

    fn spawn(&self, name: &str, work: impl FnOnce(&Shared, &Path) -> Result<()> + Send + 'static) -> Result<()> {
        let (shared, epoch) = (self.shared.clone(), self.epoch.clone());
        let run = move || {
            let worked = std::panic::catch_unwind(AssertUnwindSafe(|| work(&shared, &epoch)));
            match worked {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    if error.is_damage() {
                        remember_damage(&epoch, &error);
                    }
                    shared.fail(&error);
                }
                Err(_) => shared.fail(&"an engine thread panicked; see the log"),
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = thread.map_err(|source| StorageError::Io {
            action: "start a thread for",
            path: self.epoch.clone(),
            source,
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// The newest view.
    pub fn view(&self) -> Arc<View> {
        self.shared.view()
    }

    /// The applied position, to wait on.
    pub fn applied(&self) -> watch::Receiver<Lsn> {
        self.shared.applied.subscribe()
    }

    /// Why the engine stopped, once it did.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared.failure.subscribe()
    }

    /// How far a collection's copy has come here.
    pub fn copy_progress(&self, collection: CollectionId) -> Arc<CopyProgress> {
        self.shared.progress(collection)
    }

    /// The original vector of a row, as last committed: `None` when there is no such row, `Some(None)` when it has no
    /// usable vector.
    pub fn vector_of(&self, view: &CollectionView, column: usize, key: &RowKey) -> Result<Option<Option<Vec<f32>>>> {
        let Some(row) = self.state.row(view.def.id, key)? else { return Ok(None) };
        let node = row.nodes.get(column).copied().flatten();
        let originals = self.originals(view.def.id, column)?;
        Ok(Some(match (node, originals) {
            (Some(node), Some(originals)) => Some(originals.read(node)?),
            _ => None,
        }))
    }

    /// Visits every row of a collection as last committed: key, original vectors, filter columns, version.
    pub fn each_row(
        &self,
        collection: CollectionId,
        mut visit: impl FnMut(RowKey, &[Option<Vec<f32>>], &StoredRow),
    ) -> Result<()> {
        let columns = self.state.collections()?.into_iter().find(|record| record.def.id == collection);
        let columns = columns.map_or(0, |record| record.def.vectors.len());
        let originals: Vec<_> = (0..columns).map(|column| self.originals(collection, column)).collect::<Result<_>>()?;
        self.state.each_row(collection, |key, row| {
            let vector = |(node, originals): (&Option<u32>, &Option<Originals>)| match (node, originals) {
                (Some(node), Some(originals)) => originals.read(*node).map(Some),
                _ => Ok(None),
            };
            let vectors: Vec<_> = row.nodes.iter().zip(&originals).map(vector).collect::<Result<_>>()?;
            visit(key, &vectors, &row);
            Ok(())
        })
    }

    /// A reader of one vector column's originals; `None` while it has no vector.
    fn originals(&self, collection: CollectionId, column: usize) -> Result<Option<Originals>> {
        let record = self.state.collections()?.into_iter().find(|record| record.def.id == collection);
        let Some(record) = record else { return Ok(None) };
        let Some(dimensions) = record.def.vectors[column].dimensions else { return Ok(None) };
        let path = self.epoch.join("vectors").join(format!("{}-{column}.f32", collection.0));
        if !files::exists(&path) {
            return Ok(None);
        }
        Originals::open_for_reading(&path, dimensions).map(Some)
    }

    /// The rows of a collection that could not be indexed.
    pub fn dead_letters(&self, collection: CollectionId, limit: usize) -> Result<Vec<DeadLetter>> {
        self.state.dead_letters(collection, limit)
    }

    /// Stops the threads, after what is applied is durable. One that is in the middle of building a graph is not waited
    /// for longer than [`STOP_WAIT`]: nothing it does is needed, and it only writes files that no record names.
    pub fn stop(&self) {
        self.shared.stop();
        let deadline = Instant::now() + STOP_WAIT;
        for thread in self.threads.lock().drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
