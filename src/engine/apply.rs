//! The applier: drains the logs into the collections. Rows, tombstones, statistics and the applied position move in one
//! storage transaction; then one view is published.

use crate::engine::Shared;
use crate::engine::background::Done;
use crate::engine::collection::CollectionWriter;
use crate::engine::view::View;
use crate::model::{Change, CommitLsn, LogRecord, TransactionHead, Version};
use crate::storage::changelog::{self, LogReader};
use crate::storage::state::{Applied, Batch, CollectionState, State};
use crate::storage::{Result, damaged};
use crate::telemetry::names;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, atomic::Ordering};
use std::time::{Duration, Instant};

/// Changes after which a batch is published even when more are waiting.
const BATCH_CHANGES: usize = 4_000;
/// Time after which a batch is published even when more are waiting.
const BATCH_TIME: Duration = Duration::from_millis(50);
/// A non-durable commit becomes durable after this long; until then a crash replays it from the log.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How long one wait for new records lasts; bounds the answer to a stop and to background results.
const WAIT: Duration = Duration::from_millis(25);

/// Owns all state of the engine that changes.
pub struct Applier {
    shared: Arc<Shared>,
    state: Arc<State>,
    collections: Vec<CollectionWriter>,
    log_dir: PathBuf,
    reader: LogReader,
    applied: Applied,
    background: Receiver<Done>,
    /// When the first commit since the last durable one was made.
    undurable_since: Option<Instant>,
}

impl Applier {
    /// An applier that goes on where the state ends.
    pub fn new(
        shared: Arc<Shared>,
        state: Arc<State>,
        collections: Vec<CollectionWriter>,
        log_dir: PathBuf,
        reader: LogReader,
        background: Receiver<Done>,
    ) -> Result<Applier> {
        let applied = state.applied()?;
        Ok(Applier { shared, state, collections, log_dir, reader, applied, background, undurable_since: None })
    }

    /// Runs until told to stop. Any error is fatal: what is in memory may be half a transaction.
    pub fn run(mut self, copies: Vec<(usize, LogReader)>) -> Result<()> {
        self.publish();
        for (number, copy) in copies {
            if !self.load_copy(number, copy)? {
                return Ok(());
            }
        }
        while !self.shared.stopping() {
            self.take_background()?;
            if self.reader.wait(WAIT) {
                self.apply_batch()?;
            }
            if self.undurable_since.is_some_and(|since| since.elapsed() >= CHECKPOINT_EVERY) {
                self.checkpoint()?;
            }
        }
        self.take_background()?;
        self.seal_all()?;
        crate::failpoint!("apply.stop_sealed");
        self.checkpoint()
    }

    /// Applies waiting transactions in one commit and publishes them as one view.
    fn apply_batch(&mut self) -> Result<()> {
        let started = Instant::now();
        let state = self.state.clone();
        let changes = state.write(false, |batch| {
            crate::failpoint!("apply.batch_begun");
            let mut changes = 0;
            while let Some(record) = self.reader.next_record()? {
                changes += self.apply_record(batch, record)?;
                if changes >= BATCH_CHANGES || started.elapsed() >= BATCH_TIME {
                    break;
                }
            }
            self.store(batch)?;
            crate::failpoint!("apply.before_commit");
            Ok(changes)
        })?;
        crate::failpoint!("apply.committed");
        self.undurable_since.get_or_insert(started);
        self.publish();
        crate::failpoint!("apply.published");
        metrics::counter!(names::CHANGES_APPLIED).increment(changes as u64);
        metrics::histogram!(names::APPLY_SECONDS).record(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Applies one transaction, or takes note of progress. Returns the number of changes.
    fn apply_record(&mut self, batch: &mut Batch<'_>, record: LogRecord) -> Result<usize> {
        match record {
            LogRecord::Progress { upto } => {
                self.applied.lsn = self.applied.lsn.max(upto);
                Ok(0)
            }
            LogRecord::Begin(head) => self.apply_transaction(batch, head),
            other => Err(damaged(&self.log_dir, format!("unexpected record outside a transaction: {other:?}"))),
        }
    }

    fn apply_transaction(&mut self, batch: &mut Batch<'_>, head: TransactionHead) -> Result<usize> {
        let mut count = 0;
        loop {
            // The durable end lies behind a whole transaction, so its records are all there.
            match self.reader.next_record()? {
                Some(LogRecord::Changes(changes)) => {
                    count += changes.len();
                    for change in changes {
                        self.apply_change(batch, head.commit, change)?;
                        crate::failpoint!("apply.change_applied");
                    }
                }
                Some(LogRecord::Commit { end }) => {
                    self.applied.lsn = self.applied.lsn.max(end);
                    self.applied.commit_time = head.commit_time;
                    return Ok(count);
                }
                other => return Err(damaged(&self.log_dir, format!("a transaction is cut short by {other:?}"))),
            }
        }
    }

    fn apply_change(&mut self, batch: &mut Batch<'_>, commit: CommitLsn, change: Change) -> Result<()> {
        let version = change.version(commit);
        match self.collections.iter_mut().find(|collection| collection.id() == change.collection) {
            // A paused collection keeps what it has: following half of the changes would be worse.
            Some(collection) if matches!(collection.state(), CollectionState::Paused { .. }) => Ok(()),
            Some(collection) => collection.apply(batch, version, change.op),
            None => Ok(()),
        }
    }

    /// Puts positions and records of what changed into the open transaction.
    fn store(&mut self, batch: &mut Batch<'_>) -> Result<()> {
        self.applied.position = self.reader.position();
        for collection in &mut self.collections {
            for index in &mut collection.indexes {
                index.flush()?;
            }
            batch.put_collection(collection.record())?;
        }
        batch.set_applied(&self.applied)
    }

    /// Makes everything applied durable, and lets go of what the log no longer needs.
    fn checkpoint(&mut self) -> Result<()> {
        crate::failpoint!("apply.checkpoint_begun");
        for collection in &mut self.collections {
            for index in &mut collection.indexes {
                index.sync()?;
            }
        }
        crate::failpoint!("apply.checkpoint_originals");
        let state = self.state.clone();
        state.write(true, |batch| self.store(batch))?;
        crate::failpoint!("apply.checkpoint_committed");
        self.undurable_since = None;
        for collection in &mut self.collections {
            collection.indexes.iter_mut().for_each(|index| index.remove_retired());
        }
        changelog::remove_before(&self.log_dir, self.applied.position)?;
        crate::failpoint!("apply.checkpoint_done");
        Ok(())
    }

    fn publish(&mut self) {
        let mut view = View::clone(&self.shared.view());
        view.applied = self.applied.lsn;
        view.commit_time = self.applied.commit_time;
        for collection in &mut self.collections {
            if collection.take_changed() {
                view.collections.insert(collection.name().to_owned(), Arc::new(collection.view()));
            }
        }
        self.shared.publish(view);
    }

    /// Loads a collection's copy to its end, links it and makes it live. False when told to stop.
    fn load_copy(&mut self, number: usize, mut copy: LogReader) -> Result<bool> {
        let id = self.collections[number].id();
        let name = self.collections[number].name().to_owned();
        let progress = self.shared.progress(id);
        let mut total = None;
        while total.is_none() {
            if self.shared.stopping() {
                return Ok(false);
            }
            if !copy.wait(WAIT) {
                continue;
            }
            let state = self.state.clone();
            let started = Instant::now();
            total = state.write(false, |batch| {
                let collection = &mut self.collections[number];
                let version = Version { commit: CommitLsn(collection.copied_at().0), ordinal: 0 };
                while let Some(record) = copy.next_record()? {
                    match record {
                        LogRecord::Copied(rows) => {
                            progress.loaded.fetch_add(rows.len() as u64, Ordering::Relaxed);
                            for row in rows {
                                collection.load(batch, version, row)?;
                            }
                        }
                        LogRecord::CopyEnd { rows, .. } => return Ok(Some(rows)),
                        other => return Err(damaged(&self.log_dir, format!("unexpected in a copy: {other:?}"))),
                    }
                    if started.elapsed() > CHECKPOINT_EVERY {
                        break;
                    }
                }
                Ok(None)
            })?;
        }
        crate::failpoint!("apply.copy_loaded");
        self.link_copied(number);
        crate::failpoint!("apply.copy_linked");
        // What was copied is linked once, not again after every crash.
        self.seal(|segment| !segment.graph.is_empty())?;
        crate::failpoint!("apply.copy_sealed");
        for index in &mut self.collections[number].indexes {
            index.set_segment_rows(self.shared.options.segment_rows);
        }
        self.collections[number].set_state(CollectionState::Live);
        // A copy sees everything up to its consistent point.
        self.applied.lsn = self.applied.lsn.max(self.collections[number].copied_at());
        self.checkpoint()?;
        self.publish();
        crate::failpoint!("apply.copy_live");
        tracing::info!(collection = name, rows = total, "collection is live");
        Ok(true)
    }

    /// Links what the copy brought with all threads, so that the first searches need no long scan.
    fn link_copied(&mut self, number: usize) {
        let collection = &mut self.collections[number];
        let progress = self.shared.progress(collection.id());
        for index in &collection.indexes {
            for segment in index.view().segments {
                segment.graph.build(self.shared.options.build_threads, &|linked| {
                    progress.linked.fetch_add(linked as u64, Ordering::Relaxed);
                });
            }
        }
    }

    /// On a graceful stop the growing segments get files too, so that the next start need not link them again.
    fn seal_all(&mut self) -> Result<()> {
        let least = self.shared.options.seal_rows_on_stop;
        self.seal(|segment| segment.graph.len() as usize >= least)
    }

    /// Gives the linked segments that are chosen their files; they grow no more.
    fn seal(&mut self, choose: impl Fn(&crate::engine::segment::Segment) -> bool) -> Result<()> {
        for collection in &mut self.collections {
            for index in &mut collection.indexes {
                // In the order of their nodes: a restart links again what lies behind the last sealed one.
                for segment in index.unsealed() {
                    if !segment.is_linked() || !choose(&segment) {
                        break;
                    }
                    segment.save(&index.segment_path(segment.id))?;
                    index.sealed(segment.id);
                    crate::failpoint!("apply.segment_sealed");
                }
            }
        }
        Ok(())
    }

    /// Takes in what the background threads finished.
    fn take_background(&mut self) -> Result<()> {
        let mut any = false;
        while let Ok(done) = self.background.try_recv() {
            any = true;
            let Some(collection) = self.collections.iter_mut().find(|c| c.id() == done.collection()) else { continue };
            match done {
                Done::Sealed { index, id, .. } => collection.indexes[index].sealed(id),
                Done::Merged { index, old, segment, .. } => {
                    if !collection.indexes[index].replace(&old, segment) {
                        tracing::info!(collection = collection.name(), "a merge was overtaken by a truncate");
                    }
                }
            }
            collection.touch();
        }
        if any {
            self.checkpoint()?;
            self.publish();
        }
        Ok(())
    }
}
