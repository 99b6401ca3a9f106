//! The applier: drains the logs into the collections. Rows, tombstones, statistics and the applied position move in one
//! storage transaction; then one view is published.

mod freeze;

use crate::engine::background::Done;
use crate::engine::collection::{CollectionWriter, Found};
use crate::engine::incoming::{Incoming, Step};
use crate::engine::view::{Arriving, View};
use crate::engine::{NewCollection, Shared};
use crate::model::{Change, CollectionId, CommitLsn, LogRecord, Lsn, RowKey, TransactionHead};
use crate::storage::changelog::{self, LogPosition, LogReader};
use crate::storage::snapshot::Making;
use crate::storage::state::{Applied, Batch, CollectionRecord, CollectionState, IndexRecord, State};
use crate::storage::{Result, damaged};
use crate::telemetry::names;
use crate::telemetry::traces::{self, Stage};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

pub use freeze::Gathered;

/// Changes after which a batch is published even when more are waiting.
const BATCH_CHANGES: usize = 4_000;
/// Time after which a batch is published even when more are waiting.
const BATCH_TIME: Duration = Duration::from_millis(50);
/// A non-durable commit becomes durable after this long; until then a crash replays it from the log.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How long one wait for new records lasts; bounds the answer to a stop, to commands and to background results.
const WAIT: Duration = Duration::from_millis(25);

/// What the applier is asked to do between two batches.
pub enum Command {
    /// Take a collection in. Its rows come from this copy log; it answers when it has caught up.
    Add(Box<NewCollection>, LogReader),
    /// Forget a collection and all its data.
    Remove(CollectionId),
    /// Stop following a collection.
    Pause(CollectionId, String),
    /// Note what was compared with the source.
    Fingerprint(CollectionId, String),
    /// These rows differ from the source: read them again.
    Mark(CollectionId, Vec<RowKey>),
    /// What the source showed of rows with missing values, at a position that ended at or before this one.
    Fill(CollectionId, Vec<(RowKey, Found)>, Lsn),
    /// Nothing: carried out when views show all that was committed before.
    Settle,
    /// Gather what a snapshot is made of.
    Freeze(Making, oneshot::Sender<Gathered>),
}

/// A command, and who waits for it to be durable.
pub type Ordered = (Command, oneshot::Sender<()>);

/// Rows read again from the source, to be taken in when everything up to `at` is applied: what is missing then was not
/// written meanwhile.
struct Fill {
    collection: CollectionId,
    rows: Vec<(RowKey, Found)>,
    at: Lsn,
}

/// What comes to an applier from outside.
pub struct Inbox {
    /// Results of the background threads.
    pub background: Receiver<Done>,
    /// Commands.
    pub commands: Receiver<Ordered>,
}

/// Owns all state of the engine that changes.
pub struct Applier {
    shared: Arc<Shared>,
    state: Arc<State>,
    collections: Vec<CollectionWriter>,
    incoming: Vec<Incoming>,
    log_dir: PathBuf,
    reader: LogReader,
    applied: Applied,
    inbox: Inbox,
    fills: Vec<Fill>,
    /// When the first commit since the last durable one was made.
    undurable_since: Option<Instant>,
}

impl Applier {
    /// An applier that goes on where the state ends.
    pub fn new(
        shared: Arc<Shared>,
        state: Arc<State>,
        collections: Vec<CollectionWriter>,
        incoming: Vec<Incoming>,
        log_dir: PathBuf,
        reader: LogReader,
        inbox: Inbox,
    ) -> Result<Applier> {
        let applied = state.applied()?;
        let (fills, undurable_since) = (Vec::new(), None);
        let applier =
            Applier { shared, state, collections, incoming, log_dir, reader, applied, inbox, fills, undurable_since };
        Ok(applier)
    }

    /// Runs until told to stop. Any error is fatal: what is in memory may be half a transaction.
    pub fn run(mut self) -> Result<()> {
        self.publish();
        while !self.shared.stopping() {
            self.take_commands()?;
            self.take_background()?;
            let worked = self.take_in()?;
            if self.reader.wait(if worked { Duration::ZERO } else { WAIT }) {
                self.apply_batch()?;
            }
            self.fill()?;
            if self.undurable_since.is_some_and(|since| since.elapsed() >= CHECKPOINT_EVERY) {
                self.checkpoint()?;
            }
        }
        self.take_background()?;
        self.seal_all()?;
        crate::failpoint!("apply.stop_sealed");
        self.checkpoint()?;
        self.shared.keep_touches();
        Ok(())
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
        let (mut count, began) = (0, traces::moment());
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
                    traces::transaction(Stage::Apply, head.commit.0, began, count);
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
            // Nobody's any more, or of one that reads it when its copy is whole.
            None => Ok(()),
        }
    }

    /// Puts positions and records of what changed into the open transaction.
    fn store(&mut self, batch: &mut Batch<'_>) -> Result<()> {
        self.applied.position = self.reader.position();
        for collection in &mut self.collections {
            collection.flush()?;
            batch.put_collection(collection.record())?;
        }
        batch.set_applied(&self.applied)
    }

    /// Makes everything applied durable, and lets go of what the log no longer needs.
    fn checkpoint(&mut self) -> Result<()> {
        crate::failpoint!("apply.checkpoint_begun");
        self.write_durably(|_| Ok(()))?;
        crate::failpoint!("apply.checkpoint_committed");
        for collection in &mut self.collections {
            collection.indexes.iter_mut().for_each(|index| index.remove_retired());
        }
        changelog::remove_before(&self.log_dir, self.needed_from())?;
        crate::failpoint!("apply.checkpoint_done");
        Ok(())
    }

    /// Makes everything applied durable, with something on top of it. Vectors first: the state counts them.
    fn write_durably(&mut self, more: impl FnOnce(&mut Batch<'_>) -> Result<()>) -> Result<()> {
        let incoming = self.incoming.iter_mut().map(|incoming| &mut incoming.collection);
        self.collections.iter_mut().chain(incoming).try_for_each(CollectionWriter::sync)?;
        crate::failpoint!("apply.checkpoint_originals");
        let state = self.state.clone();
        state.write(true, |batch| {
            self.store(batch)?;
            more(batch)
        })?;
        self.undurable_since = None;
        Ok(())
    }

    /// The first position of the change log that somebody still reads.
    fn needed_from(&self) -> LogPosition {
        let waiting = self.incoming.iter().map(|incoming| incoming.collection.from());
        let held = *self.shared.held.lock();
        waiting.chain(held).fold(self.applied.position, LogPosition::min)
    }

    fn publish(&mut self) {
        let mut view = View::clone(&self.shared.view());
        view.applied = self.applied.lsn;
        view.commit_time = self.applied.commit_time;
        for collection in &mut self.collections {
            self.shared.want(collection.id(), collection.take_missing());
            if collection.take_changed() {
                view.collections.insert(collection.name().to_owned(), Arc::new(collection.view()));
            }
        }
        self.shared.publish(view);
    }

    /// Publishes a view made from nothing: collections came or went.
    pub fn publish_all(&mut self) {
        let mut view = View::clone(&self.shared.view());
        view.collections.clear();
        view.incoming.clear();
        for incoming in &mut self.incoming {
            let (name, seen) = (incoming.collection.name().to_owned(), incoming.collection.view());
            let failed = incoming.failed().map(str::to_owned);
            view.incoming.insert(name.clone(), Arriving { def: seen.def.clone(), failed });
            view.collections.insert(name, Arc::new(seen));
        }
        for collection in &mut self.collections {
            view.collections.insert(collection.name().to_owned(), Arc::new(collection.view()));
        }
        self.shared.publish(view);
        self.publish();
    }

    /// Lets the collections on their way in go on for a while. True when there is more to do at once.
    fn take_in(&mut self) -> Result<bool> {
        let mut worked = false;
        // Those that answer must not wait long for their changes.
        let time = if self.collections.is_empty() { CHECKPOINT_EVERY } else { BATCH_TIME };
        let mut at = 0;
        while at < self.incoming.len() {
            let started = Instant::now();
            let incoming = &mut self.incoming[at];
            let failed = incoming.failed().is_some();
            match incoming.step(&self.shared, &self.state, &self.reader, self.applied.lsn, time)? {
                Step::Waiting => {}
                Step::Worked => {
                    worked = true;
                    self.undurable_since.get_or_insert(started);
                }
                Step::Arrived => {
                    self.arrive(at)?;
                    continue;
                }
            }
            if self.incoming[at].failed().is_some() != failed {
                self.publish_all();
            }
            at += 1;
        }
        Ok(worked)
    }

    /// A collection has caught up: from now on it answers, and what answered under its name is forgotten.
    fn arrive(&mut self, at: usize) -> Result<()> {
        let mut collection = self.incoming.remove(at).collection;
        collection.set_state(CollectionState::Live);
        let name = collection.name().to_owned();
        let rows = collection.view().rows;
        let before = self.collections.iter().position(|old| old.name() == name).map(|at| self.collections.remove(at));
        self.collections.push(collection);
        self.write_durably(|batch| before.as_ref().map_or(Ok(()), |old| batch.remove_collection(old.id())))?;
        crate::failpoint!("apply.arrived");
        self.publish_all();
        if let Some(old) = before {
            old.remove_files();
        }
        crate::failpoint!("apply.copy_live");
        tracing::info!(collection = name, rows, "collection is live");
        self.checkpoint()
    }

    fn take_commands(&mut self) -> Result<()> {
        while let Ok((command, done)) = self.inbox.commands.try_recv() {
            self.obey(command)?;
            let _ = done.send(());
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Add(new, copy) => {
                let record = new.record();
                self.write_durably(|batch| {
                    batch.set_last_collection(record.def.id)?;
                    batch.put_collection(&record)
                })?;
                crate::failpoint!("apply.collection_added");
                let collection = self.shared.open_incoming(&self.state, record)?;
                self.incoming.push(Incoming::new(collection, copy));
            }
            Command::Remove(id) => self.remove(id)?,
            Command::Pause(id, reason) => {
                let found = self.collections.iter_mut().find(|collection| collection.id() == id);
                if let Some(collection) = found {
                    tracing::error!(collection = collection.name(), reason, "the collection is paused");
                    collection.set_state(CollectionState::Paused { reason });
                }
                self.checkpoint()?;
            }
            Command::Fingerprint(id, fingerprint) => {
                let found = self.collections.iter_mut().find(|collection| collection.id() == id);
                if let Some(collection) = found {
                    collection.set_fingerprint(fingerprint);
                }
                self.checkpoint()?;
            }
            Command::Mark(id, keys) => {
                let found = self.collections.iter_mut().find(|collection| collection.id() == id);
                if let Some(collection) = found {
                    let at = self.applied.lsn;
                    let state = self.state.clone();
                    state.write(false, |batch| keys.iter().try_for_each(|key| collection.mark(batch, key, at)))?;
                }
                self.checkpoint()?;
            }
            // What was committed before is published by now.
            Command::Settle => return Ok(()),
            Command::Freeze(making, gathered) => {
                let _ = gathered.send(self.freeze(&making)?);
                return Ok(());
            }
            Command::Fill(collection, rows, at) => {
                self.fills.push(Fill { collection, rows, at });
                return Ok(());
            }
        }
        self.publish_all();
        Ok(())
    }

    fn remove(&mut self, id: CollectionId) -> Result<()> {
        let arriving = self.incoming.extract_if(.., |incoming| incoming.id() == id);
        let mut gone: Vec<_> = arriving.map(|incoming| incoming.collection).collect();
        gone.extend(self.collections.extract_if(.., |collection| collection.id() == id));
        self.write_durably(|batch| batch.remove_collection(id))?;
        crate::failpoint!("apply.collection_removed");
        gone.iter().for_each(CollectionWriter::remove_files);
        Ok(())
    }

    /// Takes in rows that were read again from the source, as soon as everything they may show is applied.
    fn fill(&mut self) -> Result<()> {
        let applied = self.applied.lsn;
        let incoming = |id: CollectionId| self.incoming.iter().any(|incoming| incoming.id() == id);
        let due: Vec<_> = self.fills.extract_if(.., |fill| fill.at <= applied && !incoming(fill.collection)).collect();
        for Fill { collection, rows, .. } in due {
            let Some(found) = self.collections.iter_mut().find(|found| found.id() == collection) else { continue };
            let (state, started) = (self.state.clone(), Instant::now());
            state.write(false, |batch| {
                rows.into_iter().try_for_each(|(key, row)| found.fill(batch, &key, row))?;
                found.flush()?;
                batch.put_collection(found.record())
            })?;
            self.undurable_since.get_or_insert(started);
            self.publish();
        }
        Ok(())
    }

    /// On a graceful stop the growing segments get files too, so that the next start need not link them again.
    fn seal_all(&mut self) -> Result<()> {
        let least = self.shared.options.seal_rows_on_stop;
        let large = |segment: &crate::engine::segment::Segment| segment.graph.len() as usize >= least;
        self.collections.iter_mut().try_for_each(|collection| collection.seal(large))
    }

    /// Takes in what the background threads finished.
    fn take_background(&mut self) -> Result<()> {
        let mut any = false;
        while let Ok(done) = self.inbox.background.try_recv() {
            any = true;
            let Some(collection) = self.collections.iter_mut().find(|c| c.id() == done.collection()) else {
                self.shared.remove_files_of(&done);
                continue;
            };
            match done {
                Done::Sealed { index, segment, .. } => collection.indexes[index].sealed(segment),
                Done::Replaced { index, old, new, .. } => {
                    if !collection.indexes[index].replace(&old, new) {
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

impl NewCollection {
    /// What is stored of it before its copy begins.
    pub fn record(&self) -> CollectionRecord {
        let NewCollection { def, from, expected_rows, fingerprint } = self;
        CollectionRecord {
            def: def.clone(),
            state: CollectionState::Copying,
            copied_at: Lsn::ZERO,
            from: *from,
            expected_rows: *expected_rows,
            fingerprint: fingerprint.clone(),
            indexes: vec![IndexRecord::default(); def.vectors.len()],
        }
    }
}
