//! Follows the source for as long as the node lives: connects, decides, streams, copies again, backs off.

use crate::consistency::frontier::Frontier;
use crate::model::{CollectionDef, CollectionId};
use crate::node::epoch::Epoch;
use crate::node::{NodeError, Options};
use crate::replication::progress::{Phase, Progress};
use crate::replication::start::{Decision, SlotFacts, SourceFacts, decide};
use crate::replication::transport::{PgWalSource, SystemFacts};
use crate::replication::{ReplicationError, copy, follow};
use crate::source::catalog::{self, Table};
use crate::source::policy::{Backoff, Policy};
use crate::source::{SourceError, publication};
use crate::storage::data_dir::{DataDir, EpochId, Pending};
use crate::storage::state::Identity;
use crate::telemetry::names;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// A connection that lasted so long was a good one: pauses begin anew.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);

/// What comes before streaming asks little of the source: after so long, and the wait for the slot, the connection is dead.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);

/// An epoch whose copy is under way.
struct Making {
    epoch: Epoch,
    /// Until its result was taken.
    copy: Option<JoinHandle<Result<(), ReplicationError>>>,
}

/// Definitions, with their tables where those still fit.
type Resolved = Vec<(CollectionDef, Option<Table>)>;

/// Owns the epochs.
pub struct Supervisor {
    options: Options,
    data: DataDir,
    frontier: Arc<Frontier>,
    progress: Arc<Progress>,
    stop: CancellationToken,
    /// What answers.
    current: Option<Epoch>,
    /// What will.
    making: Option<Making>,
    /// Why the slot cannot be read on, although it is there.
    unreadable: Option<String>,
}

impl Supervisor {
    /// A supervisor of an opened data directory.
    pub fn new(options: Options, data: DataDir, frontier: Arc<Frontier>, stop: CancellationToken) -> Supervisor {
        let progress = frontier.progress.clone();
        Supervisor { options, data, frontier, progress, stop, current: None, making: None, unreadable: None }
    }

    /// Runs until stopped (`Ok`) or until something must not go on.
    pub async fn run(&mut self) -> Result<(), NodeError> {
        self.open_current()?;
        let mut backoff = Backoff::default();
        let mut connected_once = false;
        while !self.stop.is_cancelled() {
            let started = std::time::Instant::now();
            let Err(error) = self.follow_once().await else { return Ok(()) };
            let error = match error {
                NodeError::Stopped(reason) if connected_once && self.current.is_some() => {
                    self.refuse(reason, &mut backoff).await;
                    continue;
                }
                NodeError::Replication(ReplicationError::Stopped) if self.stop.is_cancelled() => return Ok(()),
                NodeError::Replication(ReplicationError::Stopped) => continue,
                NodeError::Replication(error) if self.may_go_on(&error, connected_once) => error,
                fatal => return Err(fatal),
            };
            connected_once |= self.current.is_some();
            if started.elapsed() > GOOD_CONNECTION {
                backoff.reset();
            }
            let pause = backoff.next(error.policy());
            tracing::warn!(%error, ?pause, "not following the source; trying again");
            self.progress.set_phase(Phase::Retrying { error: error.to_string() });
            metrics::counter!(names::RECONNECTS).increment(1);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
        }
        Ok(())
    }

    /// What answers now is not what we follow, perhaps for a moment only: what is here goes on answering, marked stale.
    async fn refuse(&mut self, reason: String, backoff: &mut Backoff) {
        let pause = backoff.next(Policy::Refuse { remedy: "" });
        tracing::error!(reason, ?pause, "refusing to follow; what is here goes on answering, marked stale");
        self.progress.set_stale(Some(reason.clone()));
        self.progress.set_phase(Phase::Stopped { reason });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// A refusal at the first start is told at once; later what we have goes on answering while somebody looks.
    fn may_go_on(&self, error: &ReplicationError, connected_once: bool) -> bool {
        error.is_transient()
            || (matches!(error, ReplicationError::Source(_)) && (connected_once || self.current.is_some()))
    }

    /// Opens what is there, so that it answers before the source does. Damage means copying again, not failing.
    fn open_current(&mut self) -> Result<(), NodeError> {
        let Some(id) = self.data.current()?.map(|current| current.epoch) else { return Ok(()) };
        match Epoch::open(&self.data, id, self.options.engine.clone()) {
            Ok(epoch) => {
                tracing::info!(epoch = id.0, at = %epoch.checkpoint().durable, "opened the data directory");
                // Nobody knows yet whether the source can be followed from here.
                self.progress.set_stale(Some("not compared with the source since the start".into()));
                epoch.remove_copy_logs(&self.data.epoch_dir(id));
                self.frontier.serve(Some(epoch.serving.clone()));
                self.current = Some(epoch);
                Ok(())
            }
            Err(error) if error.is_damage() => {
                tracing::error!(%error, epoch = id.0, "the data is damaged; everything is copied again");
                Ok(())
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Connects, decides and follows until something ends it. `Ok` when told to stop.
    async fn follow_once(&mut self) -> Result<(), NodeError> {
        let stop = self.stop.clone();
        // Whatever the preparation had begun is found and undone at the next start.
        let limit = self.options.slot_lock_timeout + PREPARE_LIMIT;
        let (wal, system) = tokio::select! {
            prepared = tokio::time::timeout(limit, self.prepare()) => match prepared {
                Ok(prepared) => prepared?,
                Err(_) => return Err(ReplicationError::Transport(format!("not prepared within {limit:?}")).into()),
            },
            () = stop.cancelled() => return Ok(()),
        };
        self.stream(wal, &system).await
    }

    /// Connects and decides; starts a copy where that was decided.
    async fn prepare(&mut self) -> Result<(PgWalSource, SystemFacts), NodeError> {
        if self.making.is_none() {
            self.progress.set_phase(Phase::Starting);
        }
        let client = self.options.dsn.connect().await.map_err(ReplicationError::from)?;
        if self.making.is_none() {
            self.clear_pending(&client).await?;
        }
        let mut wal = PgWalSource::connect(&self.options.dsn).await?;
        let system = wal.identify().await?;
        let facts = self.source_facts(&client, &mut wal, &system).await?;
        let checkpoint = self.newest().map(|epoch| epoch.checkpoint());
        let mut decision = decide(checkpoint.as_ref(), &facts);
        if self.making.is_some() {
            if !matches!(decision, Decision::Stream { .. }) {
                self.discard_making().await;
                let why = format!("the copy under way cannot be continued, a new one is made: {decision:?}");
                return Err(ReplicationError::Transport(why).into());
            }
        } else {
            if self.current.is_none() && self.data.current()?.is_some() && facts.slot.is_some() {
                // Damaged data: the slot is ours, but what belongs to it is gone.
                decision = Decision::Resync { reason: "the data directory is damaged".into() };
            }
            if let Decision::Stop { reason } = decision {
                // Before anything is changed at what may be somebody else's.
                return Err(NodeError::Stopped(reason));
            }
            // Before anything is made there: this needs a restart of the server, so waiting does not help.
            catalog::check_wal_level(&client).await.map_err(ReplicationError::from)?;
            let streams = matches!(decision, Decision::Stream { .. });
            let (tables, published) = self.resolve(&client, streams).await?;
            if streams && let Some(reason) = self.definitions_changed(&tables) {
                decision = Decision::Resync { reason };
            } else if streams && let Some(reason) = self.unreadable.take() {
                decision = Decision::Resync { reason };
            } else if streams && published {
                // What was written while it was missing was never sent.
                let reason = "the publication, or a table of it, was missing".into();
                decision = Decision::Resync { reason };
            }
            let tables = tables.into_iter().filter_map(|(def, table)| Some((def, table?))).collect();
            match decision {
                Decision::Stop { reason } => return Err(NodeError::Stopped(reason)),
                Decision::Stream { from } => tracing::info!(%from, "going on from our checkpoint"),
                Decision::Fresh => self.make_epoch(&client, &mut wal, &system, tables, None).await?,
                Decision::Resync { reason } => {
                    tracing::warn!(reason, "copying everything again; what is here goes on answering, marked stale");
                    metrics::counter!(names::RESYNCS).increment(1);
                    self.progress.set_stale(Some(reason.clone()));
                    self.make_epoch(&client, &mut wal, &system, tables, Some(reason)).await?;
                }
            }
            if self.making.is_some() {
                // That connection held the exported snapshot; streaming starts on a fresh one.
                wal = PgWalSource::connect(&self.options.dsn).await?;
            }
        }
        Ok((wal, system))
    }

    async fn source_facts(
        &self,
        client: &Client,
        wal: &mut PgWalSource,
        system: &SystemFacts,
    ) -> Result<SourceFacts, NodeError> {
        let ours = self.making.as_ref().map(|making| &making.epoch).or(self.current.as_ref());
        let name = match ours {
            Some(epoch) => epoch.identity.slot.clone(),
            None => self.slot_without_data()?,
        };
        let slot = catalog::slot(client, &name).await.map_err(ReplicationError::from)?;
        let database = client_database(client).await?;
        let slot = slot.map(|slot| SlotFacts {
            name,
            usable: slot.is_usable()
                && slot.plugin.as_deref() == Some("pgoutput")
                && slot.database.as_deref() == Some(&database),
            confirmed: slot.confirmed.unwrap_or_default(),
        });
        let forked_at = match ours.map(|epoch| epoch.identity.timeline) {
            Some(timeline) if timeline < system.timeline => wal.forked_at(timeline, system.timeline).await?,
            // The same, or an earlier one: that has no history of ours.
            _ => None,
        };
        let current = system.current;
        Ok(SourceFacts { system_id: system.system_id.clone(), timeline: system.timeline, forked_at, current, slot })
    }

    /// The slot that is ours where no readable data says so: the one of the epoch that was current, or the configured one.
    fn slot_without_data(&self) -> Result<String, NodeError> {
        Ok(self.data.current()?.map_or_else(|| self.options.slot.clone(), |current| current.slot))
    }

    /// A name for the slot of a later copy that nobody has: slots are the whole cluster's.
    async fn free_slot(&self, client: &Client, epoch: EpochId) -> Result<String, NodeError> {
        let mut number = epoch.0;
        loop {
            let name = format!("{}_{number}", self.options.slot);
            if catalog::slot(client, &name).await.map_err(ReplicationError::from)?.is_none() {
                return Ok(name);
            }
            number += 1;
        }
    }

    /// The configured collections against the catalog, and the publication that must send them. With `going_on` a table
    /// that fits no more keeps its stored definition: the stream pauses its collection, and the others follow theirs. True
    /// when something was missing in the publication.
    async fn resolve(&self, client: &Client, going_on: bool) -> Result<(Resolved, bool), NodeError> {
        let stored = |name: &str| {
            let current = self.current.as_ref().filter(|_| going_on)?;
            current.defs.iter().find(|def| def.name == name).cloned()
        };
        let mut tables = Vec::new();
        for (number, spec) in self.options.collections.iter().enumerate() {
            match catalog::resolve(client, CollectionId(number as u32), spec).await {
                Ok((def, table)) => tables.push((def, Some(table))),
                Err(error @ SourceError::Refused { .. }) => match stored(spec.name()) {
                    Some(def) => {
                        tracing::warn!(collection = spec.name(), %error, "the table no longer fits the collection");
                        tables.push((def, None));
                    }
                    None => return Err(ReplicationError::from(error).into()),
                },
                Err(error) => return Err(ReplicationError::from(error).into()),
            }
        }
        let defs: Vec<_> = tables.iter().filter(|(_, table)| table.is_some()).map(|(def, _)| def.clone()).collect();
        let ensured =
            publication::ensure(client, &self.options.publication, &defs, self.options.create_publication).await;
        Ok((tables, ensured.map_err(ReplicationError::from)?))
    }

    /// Why what we have does not serve what is configured now, if so.
    fn definitions_changed(&self, tables: &Resolved) -> Option<String> {
        let current = self.current.as_ref()?;
        for (def, _) in tables {
            match current.defs.iter().find(|stored| stored.name == def.name) {
                None => return Some(format!("collection {} is new", def.name)),
                Some(stored) if !stored.serves(def) => {
                    return Some(format!("collection {} or its table is defined differently now", def.name));
                }
                Some(_) => {}
            }
        }
        let gone = current.defs.iter().find(|stored| tables.iter().all(|(def, _)| def.name != stored.name));
        gone.map(|stored| format!("collection {} is no longer configured", stored.name))
    }

    /// Makes a slot and an epoch on it, and starts the copy.
    async fn make_epoch(
        &mut self,
        client: &Client,
        wal: &mut PgWalSource,
        system: &SystemFacts,
        mut tables: Vec<(CollectionDef, Table)>,
        reason: Option<String>,
    ) -> Result<(), NodeError> {
        for (def, _) in &mut tables {
            catalog::learn_dimensions(client, def).await.map_err(ReplicationError::from)?;
        }
        let before = self.data.current()?;
        let id = before.as_ref().map_or(EpochId(1), |current| current.epoch.next());
        let slot = match reason {
            None => self.options.slot.clone(),
            Some(_) => self.free_slot(client, id).await?,
        };
        let old_slot = before.map(|current| current.slot);
        let dir = self.data.prepare_epoch(id)?;
        self.data.set_pending(Some(&Pending {
            epoch: id,
            slot: slot.clone(),
            old_slot: old_slot.filter(|old| *old != slot),
        }))?;
        let version = catalog::server_version(client).await.map_err(ReplicationError::from)?;
        let database = client_database(client).await?;
        tracing::info!(slot, "making a replication slot; this waits for open transactions");
        let lock_timeout = self.options.slot_lock_timeout;
        let new = wal.create_slot(&slot, version, lock_timeout).await?;
        let sessions =
            copy::open_sessions(&self.options.dsn, &new.snapshot, &tables, self.options.copy_connections).await?;
        let identity = Identity {
            system_id: system.system_id.clone(),
            timeline: system.timeline,
            database,
            slot,
            consistent_point: new.consistent_point,
        };
        tracing::info!(at = %new.consistent_point, "copying");
        let (epoch, copy_tables) = Epoch::create(&dir, id, identity, tables, self.options.engine.clone())?;
        if self.current.is_none() {
            // Nothing else answers: let this one say how far it is.
            self.frontier.serve(Some(epoch.serving.clone()));
        }
        let progress = self.progress.clone();
        let at = new.consistent_point;
        let copy = tokio::spawn(async move { copy::run(sessions, copy_tables, at, &progress).await });
        self.making = Some(Making { epoch, copy: Some(copy) });
        Ok(())
    }

    /// Streams into the newest epoch's log; meanwhile finishes its copy if it has one.
    async fn stream(&mut self, mut wal: PgWalSource, system: &SystemFacts) -> Result<(), NodeError> {
        let epoch = match (&mut self.making, &mut self.current) {
            (Some(making), _) => &mut making.epoch,
            (None, Some(current)) => current,
            (None, None) => return Err(NodeError::Stopped("there is nothing to stream into".into())),
        };
        let from = epoch.serving.log.durable().lsn;
        if epoch.identity.timeline != system.timeline {
            epoch.identity.timeline = system.timeline;
            epoch.state.set_identity(&epoch.identity)?;
        }
        wal.start(&epoch.identity.slot, &self.options.publication, from).await?;
        let log = match epoch.log.take() {
            Some(log) => log,
            None => return Err(NodeError::Stopped("the change log is in use".into())),
        };
        self.progress.set_phase(Phase::Streaming);
        if self.making.is_none() {
            self.progress.set_stale(None);
        }
        tracing::info!(%from, "streaming");
        let defs = self.newest().map(|epoch| epoch.defs.clone()).unwrap_or_default();
        let mut failure = self.newest().map(|epoch| epoch.serving.engine.failure());
        let old = self.current.as_ref().filter(|_| self.making.is_some());
        let mut old_failure = old.map(|epoch| epoch.serving.engine.failure());
        let stop = self.stop.child_token();
        let (intake, progress) = (self.options.intake, self.progress.clone());
        let mut following = pin!(follow(wal, intake, &defs, log, &progress, &stop));
        let mut making_failed = None;
        let (log, ended) = loop {
            tokio::select! {
                ended = &mut following => break ended,
                made = finish(&mut self.making), if self.making.is_some() && making_failed.is_none() => {
                    match made {
                        Ok(()) => {
                            old_failure = None;
                            self.promote().await?;
                        }
                        Err(error) => {
                            making_failed = Some(error);
                            stop.cancel();
                        }
                    }
                }
                reason = failed(&mut failure), if making_failed.is_none() => {
                    stop.cancel();
                    if self.making.is_some() && self.current.is_some() {
                        // What answers is another engine: it goes on, and the copy is tried again.
                        let why = format!("the engine of the new copy failed: {reason}");
                        making_failed = Some(ReplicationError::Transport(why).into());
                        continue;
                    }
                    let _ = (&mut following).await;
                    return Err(NodeError::Engine(reason));
                }
                reason = failed(&mut old_failure) => {
                    stop.cancel();
                    let _ = (&mut following).await;
                    return Err(NodeError::Engine(reason));
                }
            }
        };
        if let Some(error) = making_failed {
            drop(log);
            self.discard_making().await;
            return Err(error);
        }
        if let Some(epoch) = self.newest() {
            epoch.log = Some(log);
        }
        if ended.sqlstate() == Some("42704") {
            // The catalog is read as of the change: a publication that was missing then is missing for ever.
            self.unreadable = Some(format!("changes were written while the publication was missing: {ended}"));
        }
        match ended {
            ReplicationError::Stopped if self.stop.is_cancelled() => Ok(()),
            ended => Err(ended.into()),
        }
    }

    fn newest(&mut self) -> Option<&mut Epoch> {
        self.making.as_mut().map(|making| &mut making.epoch).or(self.current.as_mut())
    }

    /// The new epoch is whole: from now on it answers.
    async fn promote(&mut self) -> Result<(), NodeError> {
        let Some(Making { epoch, .. }) = self.making.take() else { return Ok(()) };
        self.frontier.serve(Some(epoch.serving.clone()));
        if let Some(old) = self.current.take() {
            tokio::task::block_in_place(|| old.serving.engine.stop());
        }
        // The old epoch's files go with its slot: nothing works on them any more.
        self.data.make_current(epoch.id, &epoch.identity.slot)?;
        epoch.serving.kept.store(true, Ordering::Relaxed);
        epoch.remove_copy_logs(&self.data.epoch_dir(epoch.id));
        self.progress.forget();
        self.progress.set_stale(None);
        tracing::info!(epoch = epoch.id.0, slot = epoch.identity.slot, "the copy is whole and answers");
        self.current = Some(epoch);
        // What cannot be cleared now stays in PENDING and is looked at again at the next connection.
        let cleared = match self.options.dsn.connect().await {
            Ok(client) => self.clear_pending(&client).await,
            Err(error) => Err(ReplicationError::from(error).into()),
        };
        if let Err(error) = cleared {
            tracing::warn!(%error, "the replaced slot cannot be dropped yet");
        }
        Ok(())
    }

    /// The copy failed: its engine ends, its slot and files go at the next connection.
    async fn discard_making(&mut self) {
        if let Some(Making { epoch, copy }) = self.making.take() {
            copy.iter().for_each(JoinHandle::abort);
            if self.current.is_none() {
                self.frontier.serve(None);
            }
            tokio::task::block_in_place(|| epoch.serving.engine.stop());
        }
    }

    /// Removes what an unfinished or a finished copy left behind: its slot or the one it replaced, its files or theirs.
    async fn clear_pending(&mut self, client: &Client) -> Result<(), NodeError> {
        let current = self.data.current()?.map(|current| current.epoch);
        let Some(pending) = self.data.pending()? else {
            if let (Some(current), true) = (current, self.current.is_some()) {
                self.data.remove_other_epochs(current)?;
            }
            return Ok(());
        };
        if current != Some(pending.epoch) {
            drop_slot(client, &pending.slot).await?;
            self.data.prepare_epoch(pending.epoch)?;
            return Ok(self.data.set_pending(None)?);
        }
        self.data.remove_other_epochs(pending.epoch)?;
        let Some(old) = &pending.old_slot else { return Ok(self.data.set_pending(None)?) };
        match drop_slot(client, old).await {
            Ok(()) => self.data.set_pending(None)?,
            // It holds WAL on the source until it goes, but following must not wait for that.
            Err(error) => tracing::warn!(slot = old, %error, "the replaced slot cannot be dropped yet"),
        }
        Ok(())
    }

    /// Ends the engines, after what they applied is durable.
    pub async fn close(&mut self) {
        if let Some(Making { epoch, copy }) = self.making.take() {
            copy.iter().for_each(JoinHandle::abort);
            tokio::task::block_in_place(|| epoch.serving.engine.stop());
        }
        if let Some(epoch) = self.current.take() {
            tokio::task::block_in_place(|| epoch.serving.engine.stop());
        }
    }
}

/// Resolves when the copy is in its log and the engine has taken it in.
async fn finish(making: &mut Option<Making>) -> Result<(), NodeError> {
    let Some(making) = making else { return std::future::pending().await };
    // Asked until it was told: a copy that fails while the stream is away must not be forgotten.
    if let Some(copy) = &mut making.copy {
        match copy.await {
            Ok(copied) => copied?,
            Err(panic) => return Err(NodeError::Engine(format!("the copy ended: {panic}"))),
        }
        making.copy = None;
    }
    while !making.epoch.is_live() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn failed(failure: &mut Option<tokio::sync::watch::Receiver<Option<String>>>) -> String {
    let Some(failure) = failure else { return std::future::pending().await };
    let reason = match failure.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone(),
        Err(_) => None,
    };
    reason.unwrap_or_else(|| "it is gone".into())
}

async fn client_database(client: &Client) -> Result<String, NodeError> {
    let row = client.query_one("SELECT current_database()::text", &[]).await;
    Ok(row.map_err(|error| ReplicationError::from(SourceError::from(error)))?.get(0))
}

/// Drops a slot of ours if it is there. One that is still in use is tried again later.
async fn drop_slot(client: &Client, name: &str) -> Result<(), NodeError> {
    let found = catalog::slot(client, name).await.map_err(ReplicationError::from)?;
    if found.is_some_and(|slot| slot.plugin.as_deref() == Some("pgoutput")) {
        let dropped = client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await;
        dropped.map_err(|error| ReplicationError::from(SourceError::from(error)))?;
        tracing::info!(slot = name, "dropped a slot of ours that nothing uses any more");
    }
    Ok(())
}
