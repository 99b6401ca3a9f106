//! Change log -> indexes -> candidates. Synchronous: threads of its own, no async.

pub mod apply;
pub mod arena;
pub mod background;
pub mod candidates;
pub mod codes;
pub mod collection;
pub mod distance;
pub mod hnsw;
pub mod incoming;
pub mod index;
pub mod rows;
pub mod segment;
pub mod sparse;
pub mod tiers;
pub mod view;

use crate::engine::apply::{Applier, Command, Gathered, Inbox, Ordered};
use crate::engine::collection::CollectionWriter;
use crate::engine::incoming::Incoming;
use crate::engine::index::IndexWriter;
use crate::engine::sparse::SparseRows;
use crate::engine::tiers::Clock;
use crate::engine::view::{CollectionView, IndexView, View};
use crate::model::{Cell, CollectionDef, CollectionId, ColumnType, Embedding, Lsn, RowKey, TierPolicy};
use crate::storage::changelog::{LogPosition, LogReader};
use crate::storage::originals::{Element, Originals};
use crate::storage::snapshot::Making;
use crate::storage::state::{CollectionRecord, CollectionState, DeadLetter, State, StoredRow};
use crate::storage::{Result, StorageError, damaged, files};
use arc_swap::ArcSwap;
use futures_util::FutureExt;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{Bound, ControlFlow};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rows of a growing segment; a full one is sealed.
    pub segment_rows: usize,
    /// Threads that link the rows of a copy.
    pub build_threads: usize,
    /// On a graceful stop, growing segments of at least this many rows get a file.
    pub seal_rows_on_stop: usize,
    /// How rows are kept by how they are used, by collection; the others are kept all alike.
    pub tiers: BTreeMap<String, TierPolicy>,
    /// What ages are measured with.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        let build_threads = std::thread::available_parallelism().map_or(2, usize::from);
        let (tiers, clock) = (BTreeMap::new(), Clock::default());
        Options { segment_rows: 65_536, build_threads, seal_rows_on_stop: 1_000, tiers, clock }
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
    epoch: PathBuf,
    view: ArcSwap<View>,
    applied: watch::Sender<Lsn>,
    progress: Mutex<HashMap<CollectionId, Arc<CopyProgress>>>,
    stop: AtomicBool,
    stopped: (Mutex<()>, Condvar),
    failure: watch::Sender<Option<String>>,
    wanted: Mutex<HashMap<CollectionId, HashSet<RowKey>>>,
    /// Files of the change log from here on stay.
    held: Mutex<Option<LogPosition>>,
    /// As in the options, and as changed since.
    tiers: ArcSwap<BTreeMap<String, TierPolicy>>,
    /// Somebody wants tiers looked at now.
    look: AtomicBool,
    /// Collections whose segments somebody wants to be one.
    /// with the number that segments made later have, by vector column.
    compact: Mutex<HashMap<CollectionId, Vec<u64>>>,
}

/// Keeps the change log from being shortened while a collection is on its way to the applier.
pub struct HeldLog(Arc<Shared>);

impl Drop for HeldLog {
    fn drop(&mut self) {
        *self.0.held.lock() = None;
    }
}

impl Shared {
    /// Runs work of the engine on a thread of its own; a panic is the engine's failure.
    fn thread(
        self: Arc<Self>,
        name: &str,
        work: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<JoinHandle<()>> {
        let path = self.epoch.clone();
        let run = move || match std::panic::catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                if error.is_damage() {
                    remember_damage(&self.epoch, &error);
                }
                self.fail(&error);
            }
            Err(_) => self.fail(&"an engine thread panicked; see the log"),
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        thread.map_err(|source| StorageError::Io { action: "start a thread for", path, source })
    }

    /// Opens an empty collection that a copy fills.
    fn open_incoming(&self, state: &State, record: CollectionRecord) -> Result<CollectionWriter> {
        // One segment for all of the copy, so that it becomes one graph.
        let rows = self.options.segment_rows.max(record.expected_rows.min(LARGEST_COPY_SEGMENT) as usize);
        CollectionWriter::open(&self.epoch, state, record, rows, &self.options.clock)
    }

    /// These rows have values that must be read again from the source.
    fn want(&self, collection: CollectionId, keys: Vec<RowKey>) {
        if !keys.is_empty() {
            self.wanted.lock().entry(collection).or_default().extend(keys);
        }
    }

    fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Removes what was made for a collection that is gone.
    fn remove_files_of(&self, done: &background::Done) {
        let background::Done::Replaced { collection, index, new, .. } = done else { return };
        for segment in new {
            let name = segment::Segment::file_name(collection.0, *index, segment.id);
            if let Err(error) = files::remove(&self.epoch.join("vectors").join(name)) {
                tracing::debug!(%error, "the file of a collection that is gone");
            }
        }
    }

    /// Writes down when searches gave the nodes of all collections.
    fn keep_touches(&self) {
        let view = self.view();
        view.collections.values().for_each(|found| background::keep_touches(&self.epoch, found.def.id, &found.indexes));
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
    commands: mpsc::Sender<Ordered>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A collection that is to be copied.
pub struct NewCollection {
    /// What it is.
    pub def: CollectionDef,
    /// From here on its changes are in the change log.
    pub from: LogPosition,
    /// About how many rows it has, for sizing.
    pub expected_rows: u64,
    /// What has no event in the stream when it changes, as it was before the copy.
    pub fingerprint: String,
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
    /// Opens the engine on an epoch's state: loads rows and sealed segments, starts its threads. A collection whose copy
    /// was not taken in whole is taken in again from its copy log.
    pub fn start(epoch: &Path, state: Arc<State>, options: Options, logs: Logs) -> Result<Engine> {
        let shared = Arc::new(Shared {
            tiers: ArcSwap::from_pointee(options.tiers.clone()),
            look: AtomicBool::new(false),
            compact: Mutex::default(),
            options,
            epoch: epoch.to_owned(),
            view: ArcSwap::default(),
            applied: watch::channel(Lsn::ZERO).0,
            progress: Mutex::default(),
            stop: AtomicBool::new(false),
            stopped: Default::default(),
            failure: watch::channel(None).0,
            wanted: Mutex::default(),
            held: Mutex::default(),
        });
        let (mut collections, mut incoming) = (Vec::new(), Vec::new());
        let mut copies: HashMap<_, _> = logs.copies.into_iter().collect();
        for record in state.collections()? {
            if record.state == CollectionState::Copying {
                let id = record.def.id;
                let copy = copies.remove(&id).ok_or_else(|| damaged(epoch, format!("no copy log of {}", id.0)))?;
                state.write(true, |batch| batch.remove_all_rows(id))?;
                let collection = shared.open_incoming(&state, record)?;
                collection.indexes.iter().try_for_each(IndexWriter::remove_orphans)?;
                incoming.push(Incoming::new(collection, copy));
                continue;
            }
            let Options { segment_rows, clock, .. } = &shared.options;
            let collection = CollectionWriter::open(epoch, &state, record, *segment_rows, clock)?;
            collection.indexes.iter().try_for_each(IndexWriter::remove_orphans)?;
            collections.push(collection);
        }
        let known: HashSet<_> =
            collections.iter().chain(incoming.iter().map(|one| &one.collection)).map(|c| c.id()).collect();
        index::remove_strangers(epoch, &known)?;
        let (commands, commanded) = mpsc::channel();
        let (done, background) = mpsc::channel();
        let engine = Engine { shared: shared.clone(), state: state.clone(), commands, threads: Mutex::default() };
        let inbox = Inbox { background, commands: commanded };
        let tail = logs.changes.tail().clone();
        let mut applier = Applier::new(shared.clone(), state, collections, incoming, logs.dir, logs.changes, inbox)?;
        // What the state holds, before anything new is applied.
        applier.publish_all();
        engine.spawn("apply", |_| applier.run())?;
        let link_done = done.clone();
        engine.spawn("link", move |shared| background::link(shared, &shared.epoch, &tail, &link_done))?;
        engine.spawn("merge", move |shared| background::merge(shared, &shared.epoch, &done))?;
        crate::failpoint!("engine.started");
        Ok(engine)
    }

    fn spawn(&self, name: &str, work: impl FnOnce(&Shared) -> Result<()> + Send + 'static) -> Result<()> {
        let shared = self.shared.clone();
        let thread = self.shared.clone().thread(name, move || work(&shared))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Hands a command to the applier; resolves when it is carried out and durable. A [`Command::Fill`] is only taken
    /// note of.
    pub fn order(&self, command: Command) -> impl Future<Output = Result<()>> + Send + use<> {
        let (done, carried_out) = oneshot::channel();
        let epoch = self.shared.epoch.clone();
        // An applier that has ended drops it, and who waits is told.
        let _ = self.commands.send((command, done));
        carried_out.map(move |done| done.map_err(|_| damaged(&epoch, "the applier has ended")))
    }

    /// Gathers what a snapshot is made of, between two batches. `None` while a collection is being copied.
    pub fn freeze(&self, making: Making) -> impl Future<Output = Result<Gathered>> + Send + use<> {
        let (sender, gathered) = oneshot::channel();
        drop(self.order(Command::Freeze(making, sender)));
        let epoch = self.shared.epoch.clone();
        gathered.map(move |gathered| gathered.map_err(|_| damaged(&epoch, "the applier has ended")))
    }

    /// The directory of its files.
    pub fn dir(&self) -> &Path {
        &self.shared.epoch
    }

    /// From now on no file of the change log is removed that may be needed later. One at a time.
    pub fn hold_log(&self) -> Result<HeldLog> {
        *self.shared.held.lock() = Some(self.state.applied()?.position);
        Ok(HeldLog(self.shared.clone()))
    }

    /// A number for a collection that none had in this epoch.
    pub fn next_collection(&self) -> Result<CollectionId> {
        let given = self.state.last_collection()?;
        let stored = self.state.collections()?.into_iter().map(|record| record.def.id).max();
        Ok(given.max(stored).map_or(CollectionId(0), |last| CollectionId(last.0 + 1)))
    }

    /// What is stored of a collection.
    pub fn record(&self, collection: CollectionId) -> Result<Option<CollectionRecord>> {
        Ok(self.state.collections()?.into_iter().find(|record| record.def.id == collection))
    }

    /// Rows with values that must be read again from the source, at most `limit` of each collection. They are given once.
    pub fn take_wanted(&self, limit: usize) -> Vec<(CollectionId, Vec<RowKey>)> {
        let mut wanted = self.shared.wanted.lock();
        let taken = wanted.iter_mut().map(|(id, keys)| (*id, keys.extract_if(|_| true).take(limit).collect()));
        let taken = taken.collect();
        wanted.retain(|_, keys| !keys.is_empty());
        taken
    }

    /// Gives back what [`Engine::take_wanted`] gave and could not be read.
    pub fn want(&self, collection: CollectionId, keys: Vec<RowKey>) {
        self.shared.want(collection, keys);
    }

    /// The newest view.
    pub fn view(&self) -> Arc<View> {
        self.shared.view()
    }

    /// How rows are kept by how they are used, by collection, from the next look on.
    pub fn set_tiers(&self, tiers: BTreeMap<String, TierPolicy>) {
        if **self.shared.tiers.load() != tiers {
            self.shared.tiers.store(Arc::new(tiers));
            self.shared.look.store(true, Ordering::Release);
        }
    }

    /// Looks now for rows that belong in another tier, instead of when it is time.
    pub fn look_at_tiers(&self) {
        self.shared.look.store(true, Ordering::Release);
    }

    /// Counts a row as used so much that it belongs among the hot ones, and looks soon; of all vector columns. False when
    /// there is no such row, or its use is not followed: there are no tiers, or it is too new.
    pub fn promote(&self, view: &CollectionView, key: &RowKey) -> Result<bool> {
        let tiered = self.shared.tiers.load().contains_key(&view.def.name);
        let Some(row) = self.state.row(view.def.id, key)?.filter(|_| tiered) else { return Ok(false) };
        let nodes = view.indexes.iter().zip(row.nodes).filter_map(|(index, node)| Some((index, node?)));
        let promoted = nodes.filter(|(index, node)| index.touches.promote(*node)).count();
        self.look_at_tiers();
        Ok(promoted > 0)
    }

    /// Makes one segment, for each tier, of a collection's sealed ones, without what is dead in them; in the background.
    pub fn compact(&self, collection: &CollectionView) {
        let made = collection.indexes.iter().map(|index| index.ids.load(Ordering::Relaxed)).collect();
        self.shared.compact.lock().insert(collection.def.id, made);
    }

    /// Is that still to be done?
    pub fn is_compacting(&self, collection: CollectionId) -> bool {
        self.shared.compact.lock().contains_key(&collection)
    }

    /// The applied position, to wait on.
    pub fn applied(&self) -> watch::Receiver<Lsn> {
        self.shared.applied.subscribe()
    }

    /// Why the engine stopped, once it did.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared.failure.subscribe()
    }

    /// A search met this. Damage ends the engine: what is stored cannot be trusted, and the next start copies it again.
    pub fn report(&self, error: &StorageError) {
        if error.is_damage() && self.shared.failure.borrow().is_none() {
            remember_damage(&self.shared.epoch, error);
            self.shared.fail(error);
        }
    }

    /// How far a collection's copy has come here.
    pub fn copy_progress(&self, collection: CollectionId) -> Arc<CopyProgress> {
        self.shared.progress(collection)
    }

    /// The original vector of a row, as last committed: `None` when there is no such row, `Some(None)` when it has no
    /// usable vector.
    pub fn vector_of(&self, view: &CollectionView, column: usize, key: &RowKey) -> Result<Option<Option<Embedding>>> {
        let before = SparseBeside::of(&view.indexes[column]);
        let Some(row) = self.state.row(view.def.id, key)? else { return Ok(None) };
        let node = row.nodes.get(column).copied().flatten();
        let Some(node) = node else { return Ok(Some(None)) };
        if let Some(sparse) = before {
            return Ok(Some(sparse.get(node)));
        }
        if let Some(originals) = &view.indexes[column].originals {
            return Ok(Some(Some(originals.read(node)?.into())));
        }
        // The column's first vector came after the view.
        let originals = self.originals(view.def.id, column)?;
        originals.map(|originals| originals.read(node).map(Embedding::from)).transpose().map(Some)
    }

    /// The filter columns of a row, as last committed; `None` when there is no such row.
    pub fn cells_of(&self, view: &CollectionView, key: &RowKey) -> Result<Option<Vec<Cell>>> {
        Ok(self.state.row(view.def.id, key)?.map(|row| row.filters))
    }

    /// The original vectors of nodes that rows of this view have, in their order: nodes are written once.
    pub fn vectors_at(&self, view: &CollectionView, column: usize, nodes: &[u32]) -> Result<Vec<Embedding>> {
        let (index, gone) = (&view.indexes[column], || damaged(&self.shared.epoch, "a row's vector is gone"));
        if index.is_sparse() {
            let vector = |node: &u32| index.sparse.rows.get(*node).map(Embedding::from).ok_or_else(gone);
            return nodes.iter().map(vector).collect();
        }
        match &index.originals {
            Some(originals) => nodes.iter().map(|node| originals.read(*node).map(Embedding::from)).collect(),
            None if nodes.is_empty() => Ok(Vec::new()),
            None => Err(damaged(&self.shared.epoch, "rows have vectors, and there is no file of them")),
        }
    }

    /// Visits the rows of a collection behind a key, as last committed, in key order, until `visit` breaks off. The position
    /// that is exact for: this view's or a later one. `None` when its new copy has taken the collection's place.
    pub fn rows_after(
        &self,
        view: &CollectionView,
        after: Option<&RowKey>,
        visit: impl FnMut(RowKey, StoredRow) -> ControlFlow<()>,
    ) -> Result<Option<Lsn>> {
        self.state.rows_after(view.def.id, after, visit)
    }

    /// One row as last committed, and the position of that; `None` when there is no such collection any more.
    pub fn row(&self, view: &CollectionView, key: &RowKey) -> Result<Option<(Option<StoredRow>, Lsn)>> {
        let mut found = None;
        let at = self.state.rows_from(view.def.id, Bound::Included(key), |other, row| {
            found = (other == *key).then_some(row);
            ControlFlow::Break(())
        })?;
        Ok(at.map(|at| (found, at)))
    }

    /// Visits every row of a collection as last committed: key, original vectors, filter columns, version.
    pub fn each_row(
        &self,
        collection: CollectionId,
        mut visit: impl FnMut(RowKey, &[Option<Embedding>], &StoredRow),
    ) -> Result<()> {
        let view = self.view();
        let found = view.collections.values().find(|found| found.def.id == collection);
        let sparse: Vec<_> =
            found.map_or(Vec::new(), |found| found.indexes.iter().map(|one| SparseBeside::of(one)).collect());
        let columns = self.state.collections()?.into_iter().find(|record| record.def.id == collection);
        let columns = columns.map_or(0, |record| record.def.vectors.len());
        let originals: Vec<_> = (0..columns).map(|column| self.originals(collection, column)).collect::<Result<_>>()?;
        self.state.each_row(collection, |key, row| {
            let vector = |(column, node): (usize, &Option<u32>)| match (node, &originals[column], sparse.get(column)) {
                (Some(node), _, Some(Some(sparse))) => Ok(sparse.get(*node)),
                (Some(node), Some(originals), _) => originals.read(*node).map(|vector| Some(vector.into())),
                _ => Ok(None),
            };
            let vectors: Vec<_> = row.nodes.iter().enumerate().map(vector).collect::<Result<_>>()?;
            visit(key, &vectors, &row);
            Ok(())
        })
    }

    /// A reader of one vector column's originals; `None` while it has no vector.
    fn originals(&self, collection: CollectionId, column: usize) -> Result<Option<Originals>> {
        let record = self.state.collections()?.into_iter().find(|record| record.def.id == collection);
        let Some(record) = record else { return Ok(None) };
        let vectors = &record.def.vectors[column];
        let Some(dimensions) = vectors.dimensions.filter(|_| vectors.kind != ColumnType::Sparsevec) else {
            return Ok(None);
        };
        let path = self.shared.epoch.join("vectors").join(format!("{}-{column}.f32", collection.0));
        if !files::exists(&path) {
            return Ok(None);
        }
        Originals::open_for_reading(&path, dimensions, Element::of(vectors.kind)).map(Some)
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

/// Reads the vectors of a sparse column's rows as they are committed, which may be later than a view.
///
/// A vector of a row that is committed is in the newest of what was handed over, before it was committed; one that no row
/// has any more may be gone from there, and is in what was there earlier.
struct SparseBeside<'v> {
    index: &'v IndexView,
    before: Arc<SparseRows>,
}

impl<'v> SparseBeside<'v> {
    /// `None` where the column is no sparse one. To be made before rows are read.
    fn of(index: &'v IndexView) -> Option<SparseBeside<'v>> {
        index.is_sparse().then(|| SparseBeside { index, before: index.sparse.latest() })
    }

    fn get(&self, node: u32) -> Option<Embedding> {
        self.before.get(node).or_else(|| self.index.sparse.latest().get(node)).map(Embedding::Sparse)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
