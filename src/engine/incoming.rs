//! Collections on their way in: rows from the copy log, links by all threads, then the changes that waited in the change
//! log meanwhile. The others go on; when one has caught up, it takes the place of what answered under its name.

use crate::engine::collection::CollectionWriter;
use crate::engine::index::IndexWriter;
use crate::engine::segment::Segment;
use crate::engine::{Shared, background};
use crate::model::{CollectionId, CommitLsn, LogRecord, Lsn, Version};
use crate::storage::changelog::{LogPosition, LogReader};
use crate::storage::state::{CollectionState, State};
use crate::storage::{Result, damaged};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::{Arc, atomic::Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A collection that is being filled.
pub struct Incoming {
    /// The collection.
    pub collection: CollectionWriter,
    stage: Stage,
    /// Consistent point of the copy's last attempt: from there on it equals the source at one position.
    newest_copy: Lsn,
    attempts: u32,
}

/// Segments that have their files, by vector column.
type Sealed = Arc<Mutex<Vec<(usize, Arc<Segment>)>>>;

enum Stage {
    /// Rows come from the copy log.
    Loading(LogReader),
    /// Its graphs are linked and sealed by a thread of its own, which leaves here what is done, by vector column.
    Linking(JoinHandle<()>, Sealed),
    /// Its changes come from the change log, read a second time.
    CatchingUp(LogReader),
    /// It stopped: its table changed while it was copied.
    Failed,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There was nothing to do now.
    Waiting,
    /// Something was committed.
    Worked,
    /// It is where the others are.
    Arrived,
}

impl Incoming {
    /// A collection whose rows come from this copy log.
    pub fn new(collection: CollectionWriter, copy: LogReader) -> Incoming {
        Incoming { collection, stage: Stage::Loading(copy), newest_copy: Lsn::ZERO, attempts: 0 }
    }

    /// Its number.
    pub fn id(&self) -> CollectionId {
        self.collection.id()
    }

    /// Why it will not arrive, if so.
    pub fn failed(&self) -> Option<&str> {
        match (&self.stage, self.collection.state()) {
            (Stage::Failed, CollectionState::Paused { reason }) => Some(reason),
            _ => None,
        }
    }

    /// Goes on for about `time`. `changes` is the applier's reader: how far the others are in the change log, and up to
    /// which position of the source's history (`applied`).
    pub fn step(
        &mut self,
        shared: &Arc<Shared>,
        state: &State,
        changes: &LogReader,
        applied: Lsn,
        time: Duration,
    ) -> Result<Step> {
        match &mut self.stage {
            Stage::Loading(_) => self.load(shared, state, time),
            Stage::Linking(thread, _) if !thread.is_finished() => Ok(Step::Waiting),
            Stage::Linking(_, sealed) => {
                crate::failpoint!("incoming.linked");
                // What was copied is linked once, not again after every crash.
                for (number, segment) in sealed.lock().drain(..) {
                    self.collection.indexes[number].sealed(segment);
                    crate::failpoint!("apply.segment_sealed");
                }
                crate::failpoint!("incoming.sealed");
                self.collection.use_segments_of(shared.options.segment_rows);
                self.stage = Stage::CatchingUp(changes.again_from(self.collection.from()));
                Ok(Step::Worked)
            }
            Stage::CatchingUp(reader) if reader.position() < changes.position() => {
                self.catch_up(state, changes.position(), time)
            }
            // A copy shows the source at its consistent point; before that position it would be of the future.
            Stage::CatchingUp(_) if applied >= self.newest_copy => Ok(Step::Arrived),
            Stage::CatchingUp(_) | Stage::Failed => Ok(Step::Waiting),
        }
    }

    fn load(&mut self, shared: &Arc<Shared>, state: &State, time: Duration) -> Result<Step> {
        let Incoming { collection, stage, newest_copy, attempts } = self;
        let Stage::Loading(copy) = stage else { return Ok(Step::Waiting) };
        if !copy.wait(Duration::ZERO) {
            return Ok(Step::Waiting);
        }
        let progress = shared.progress(collection.id());
        let started = Instant::now();
        let whole = state.write(false, |batch| {
            while started.elapsed() < time
                && let Some(record) = copy.next_record()?
            {
                match record {
                    LogRecord::CopyStart { at, .. } => {
                        *attempts += 1;
                        if *attempts == 1 {
                            collection.set_copied_at(at);
                        }
                        *newest_copy = at;
                    }
                    LogRecord::Copied(rows) => {
                        progress.loaded.fetch_add(rows.len() as u64, Ordering::Relaxed);
                        let version = Version { commit: CommitLsn(newest_copy.0), ordinal: 0 };
                        for row in rows {
                            collection.load(batch, version, row, *attempts > 1)?;
                        }
                    }
                    LogRecord::RangeCopied(_) => {}
                    LogRecord::CopyEnd { .. } => return Ok(true),
                    other => return Err(damaged(Path::new(collection.name()), format!("in a copy log: {other:?}"))),
                }
            }
            collection.flush()?;
            Ok(false)
        })?;
        if whole {
            crate::failpoint!("incoming.loaded");
            self.link(shared)?;
        }
        Ok(Step::Worked)
    }

    /// Links what the copy brought with all threads, so that the first searches need no long scan.
    fn link(&mut self, shared: &Arc<Shared>) -> Result<()> {
        self.collection.flush()?;
        let indexes: Vec<_> = self.collection.indexes.iter().map(IndexWriter::view).collect();
        let (shared, progress, id) = (shared.clone(), shared.progress(self.id()), self.id());
        let sealed = Sealed::default();
        let (threads, done) = (shared.options.build_threads, sealed.clone());
        let thread = shared.clone().thread("build", move || {
            for (number, index) in indexes.iter().enumerate() {
                // Whoever stops does not wait for this; the directory may be another's by then.
                let unwanted = || shared.stopping() || index.gone.load(Ordering::Acquire);
                for segment in index.segments.iter().filter(|segment| !segment.graph.is_empty()) {
                    if unwanted() {
                        return Ok(());
                    }
                    segment.graph.build(threads, &|linked| {
                        progress.linked.fetch_add(linked as u64, Ordering::Relaxed);
                    });
                    if unwanted() {
                        return Ok(());
                    }
                    let one = background::seal(&shared.epoch, id, number, index, segment)?;
                    done.lock().extend(one.map(|segment| (number, segment)));
                }
            }
            Ok(())
        })?;
        self.stage = Stage::Linking(thread, sealed);
        Ok(())
    }

    /// Applies the changes that waited, up to where the others are.
    fn catch_up(&mut self, state: &State, upto: LogPosition, time: Duration) -> Result<Step> {
        let Incoming { collection, stage, .. } = self;
        let Stage::CatchingUp(reader) = stage else { return Ok(Step::Waiting) };
        let started = Instant::now();
        state.write(false, |batch| {
            let mut commit = None;
            // Only between transactions: what is committed here is a state the source had.
            while commit.is_some() || (reader.position() < upto && started.elapsed() < time) {
                match reader.next_record()? {
                    Some(LogRecord::Begin(head)) => commit = Some(head.commit),
                    Some(LogRecord::Changes(changes)) => {
                        let commit =
                            commit.ok_or_else(|| damaged(Path::new("log"), "changes outside a transaction"))?;
                        let id = collection.id();
                        for change in changes.into_iter().filter(|change| change.collection == id) {
                            if !matches!(collection.state(), CollectionState::Paused { .. }) {
                                collection.apply(batch, change.version(commit), change.op)?;
                            }
                        }
                    }
                    Some(LogRecord::Commit { .. }) => commit = None,
                    Some(LogRecord::Progress { .. }) => {}
                    // A new file of the log that has no record yet.
                    None if commit.is_none() => break,
                    other => return Err(damaged(Path::new("log"), format!("cut short by {other:?}"))),
                }
            }
            collection.flush()
        })?;
        crate::failpoint!("incoming.caught_up");
        if matches!(self.collection.state(), CollectionState::Paused { .. }) {
            self.stage = Stage::Failed;
        }
        Ok(Step::Worked)
    }
}
