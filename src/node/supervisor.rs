//! Follows the source for as long as the node lives: connects, decides, streams, copies, reconciles, backs off.

use crate::consistency::frontier::Frontier;
use crate::engine::apply::Command;
use crate::model::{CollectionDef, CollectionId, CollectionSpec, Metric};
use crate::node::collections::{Answering, Arriving, Step, Wanted, plan};
use crate::node::epoch::{Epoch, NewTable};
use crate::node::guard::{self, Watch};
use crate::node::{NodeError, Options, repair};
use crate::replication::copy::{self, Exported};
use crate::replication::guard::{Holding, Verdict};
use crate::replication::poison::{self, Poison};
use crate::replication::progress::{Phase, Progress};
use crate::replication::start::{Cause, Decision, SlotFacts, SourceFacts, decide};
use crate::replication::transport::{PgWalSource, SlotKind, SystemFacts};
use crate::replication::{ReplicationError, follow};
use crate::source::catalog::{self, Table};
use crate::source::connect::Pool;
use crate::source::policy::{Backoff, Policy};
use crate::source::{SourceError, publication, slots};
use crate::storage::data_dir::{DataDir, EpochId, Pending};
use crate::storage::ownership;
use crate::storage::state::{CollectionState, Identity};
use crate::telemetry::names;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// A connection that lasted so long was a good one: pauses begin anew.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// How often somebody looks after copies and collections.
const TEND: Duration = Duration::from_millis(50);
/// While a collection cannot be followed, the source is looked at again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Between two tries to begin what somebody asked for.
const ASKED_AGAIN: Duration = Duration::from_secs(1);
/// A sender of ours that was ended leaves the slot within this time.
const FREE: Duration = Duration::from_secs(5);

/// What comes before streaming asks little of the source: after so long, and the wait for the slot, the connection is dead.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);

/// A configured collection as the source has it now.
struct Looked {
    wanted: Wanted,
    table: Option<Table>,
    /// Why it cannot be followed, as an error.
    refused: Option<SourceError>,
}

/// Owns the epochs.
pub struct Supervisor {
    options: Options,
    data: DataDir,
    frontier: Arc<Frontier>,
    progress: Arc<Progress>,
    pool: Pool,
    /// What is configured; changes while the service runs.
    specs: watch::Receiver<Vec<CollectionSpec>>,
    stop: CancellationToken,
    /// What answers.
    current: Option<Epoch>,
    /// What will: its copies are under way.
    making: Option<Epoch>,
    /// Why the slot cannot be read on, although it is there.
    unreadable: Option<String>,
    /// Collections whose table did not fit when it was last looked at: between two statements of a migration it may not.
    unfit: BTreeSet<String>,
    /// Streaming began then, and it is not proven yet that what is here is what the source had.
    unproven: Option<Instant>,
    /// Collections that could not be copied when last looked at.
    impossible: BTreeSet<String>,
    /// Collections that somebody wants copied again.
    rebuild: BTreeSet<String>,
    reconciled: Instant,
    /// A collection could not be followed when last looked at.
    troubled: bool,
    reconcile_now: bool,
    comparing: Option<JoinHandle<()>>,
    poison: Poison,
    copy_backoff: Backoff,
    copy_from: Instant,
    /// What the guard says.
    guard: Watch,
    /// What our sessions carry.
    instance: String,
}

impl Supervisor {
    /// A supervisor of an opened data directory.
    pub fn new(
        options: Options,
        data: DataDir,
        frontier: Arc<Frontier>,
        pool: Pool,
        specs: watch::Receiver<Vec<CollectionSpec>>,
        (guard, instance): (Watch, String),
        stop: CancellationToken,
    ) -> Supervisor {
        let progress = frontier.progress.clone();
        let now = Instant::now();
        Supervisor {
            options,
            data,
            frontier,
            progress,
            pool,
            specs,
            stop,
            current: None,
            making: None,
            unreadable: None,
            unfit: BTreeSet::new(),
            unproven: None,
            impossible: BTreeSet::new(),
            rebuild: BTreeSet::new(),
            reconciled: now,
            troubled: false,
            reconcile_now: true,
            comparing: None,
            poison: Poison::default(),
            copy_backoff: Backoff::default(),
            copy_from: now,
            guard,
            instance,
        }
    }

    /// Runs until stopped (`Ok`) or until something must not go on.
    pub async fn run(&mut self) -> Result<(), NodeError> {
        self.open()?;
        let refetch = repair::refetch(self.frontier.clone(), self.options.dsn.clone(), self.stop.clone());
        let refetch = tokio::spawn(refetch);
        let result = self.follow_always().await;
        refetch.abort();
        result
    }

    async fn follow_always(&mut self) -> Result<(), NodeError> {
        let mut backoff = Backoff::default();
        let mut connected_once = false;
        while !self.stop.is_cancelled() {
            let started = Instant::now();
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
            let mut pause = backoff.next(error.policy());
            if matches!(error, ReplicationError::Protocol(_)) {
                pause = self.judge_poison(&error.to_string(), pause);
            }
            tracing::warn!(%error, ?pause, "not following the source; trying again");
            self.progress.set_phase(Phase::Retrying { error: error.to_string() });
            metrics::counter!(names::RECONNECTS, "reason" => error.label()).increment(1);
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

    /// What is not understood comes back with every connection: then all is copied again, behind it, or somebody must look.
    fn judge_poison(&mut self, error: &str, pause: Duration) -> Duration {
        let durable = self.newest().map(|epoch| epoch.serving.log.durable().lsn).unwrap_or_default();
        match self.poison.note(durable, error, Instant::now()) {
            poison::Step::Retry => pause,
            poison::Step::CopyAgain { failures } => {
                tracing::error!(failures, %durable, "the stream cannot be read on from here; copying everything again behind it");
                self.unreadable = Some(format!("the stream cannot be read: {error}"));
                pause
            }
            poison::Step::Wait { failures } => {
                tracing::error!(failures, %durable, error, "the stream cannot be read, and a new copy did not help: a person must look");
                poison::LONG_PAUSE
            }
        }
    }

    /// A refusal at the first start is told at once; later what we have goes on answering while somebody looks.
    fn may_go_on(&self, error: &ReplicationError, connected_once: bool) -> bool {
        error.is_transient()
            || (matches!(error, ReplicationError::Source(_)) && (connected_once || self.current.is_some()))
    }

    /// Opens what is there, so that it answers before the source does. Damage means copying again, not failing.
    fn open(&mut self) -> Result<(), NodeError> {
        let current = self.data.current()?.map(|current| current.epoch);
        // Nobody knows yet whether the source can be followed from here.
        self.progress.set_stale(Some("not compared with the source since the start".into()));
        if let Some(id) = current {
            match self.open_epoch(id) {
                Ok(epoch) => {
                    epoch.serving.kept.store(true, Ordering::Relaxed);
                    self.frontier.serve(Some(epoch.serving.clone()));
                    self.current = Some(epoch);
                }
                Err(NodeError::Storage(error)) if error.is_damage() => {
                    tracing::error!(%error, epoch = id.0, "the data is damaged; everything is copied again");
                }
                Err(other) => return Err(other),
            }
        }
        let Some(pending) = self.data.pending()?.filter(|pending| Some(pending.epoch) != current) else {
            return Ok(());
        };
        match self.open_epoch(pending.epoch) {
            Ok(epoch) => {
                if self.current.is_none() {
                    self.frontier.serve(Some(epoch.serving.clone()));
                }
                self.making = Some(epoch);
            }
            // Its slot and files go at the next connection. Mostly it had not begun.
            Err(error) => {
                tracing::debug!(%error, "an unfinished epoch");
                tracing::info!(epoch = pending.epoch.0, "an unfinished copy cannot be continued; it is removed");
            }
        }
        Ok(())
    }

    fn open_epoch(&self, id: EpochId) -> Result<Epoch, NodeError> {
        let epoch = Epoch::open(&self.data, id, self.options.engine.clone(), &self.progress)?;
        tracing::info!(epoch = id.0, at = %epoch.checkpoint().durable, "opened the data directory");
        Ok(epoch)
    }

    /// Connects, decides and follows until something ends it. `Ok` when told to stop.
    async fn follow_once(&mut self) -> Result<(), NodeError> {
        let stop = self.stop.clone();
        // Whatever the preparation had begun is found and undone at the next start.
        let limit = self.options.slot_lock_timeout + PREPARE_LIMIT;
        let (wal, system) = tokio::select! {
            prepared = tokio::time::timeout(limit, self.prepare()) => match prepared {
                Ok(prepared) => prepared?,
                // Another service may hold the slot for days: ask again on a new connection.
                Err(_) if matches!(self.progress.phase(), Phase::Waiting { .. }) => {
                    return Err(ReplicationError::Stopped.into());
                }
                Err(_) => return Err(ReplicationError::Transport(format!("not prepared within {limit:?}")).into()),
            },
            () = stop.cancelled() => return Ok(()),
        };
        self.stream(wal, &system).await
    }

    /// Connects and decides; makes an epoch where that was decided.
    async fn prepare(&mut self) -> Result<(PgWalSource, SystemFacts), NodeError> {
        self.clearance().await?;
        if self.making.is_none() {
            self.progress.set_phase(Phase::Starting);
        }
        let client = self.options.dsn.connect().await.map_err(ReplicationError::from)?;
        self.only_one(&client).await?;
        let mut wal = PgWalSource::connect(&self.options.dsn).await?;
        let system = wal.identify().await?;
        // In another cluster slots of the same names are somebody else's.
        let same = self.newest().is_none_or(|epoch| epoch.identity.system_id == system.system_id);
        if self.making.is_none() && same {
            self.clear_pending(&client).await?;
            guard::reap(&client, self.data.root()).await;
        }
        let facts = self.source_facts(&client, &mut wal, &system).await?;
        let checkpoint = self.newest().map(|epoch| epoch.checkpoint());
        let mut decision = decide(checkpoint.as_ref(), &facts);
        if self.current.is_none() && self.making.is_none() && self.data.current()?.is_some() && facts.slot.is_some() {
            // Damaged data: the slot is ours, but what belongs to it is gone.
            decision = Decision::Resync { cause: Cause::Damaged, reason: "the data directory is damaged".into() };
        }
        if let Decision::Stop { reason } = decision {
            // Before anything is changed at what may be somebody else's.
            return Err(NodeError::Stopped(reason));
        }
        *self.guard.cluster.lock() = Some(system.system_id.clone());
        if self.making.is_some() {
            if !matches!(decision, Decision::Stream { .. }) {
                self.discard_making();
                let why = format!("the copy under way cannot be continued, a new one is made: {decision:?}");
                return Err(ReplicationError::Transport(why).into());
            }
            return Ok((wal, system));
        }
        // Before anything is made there: this needs a restart of the server, so waiting does not help.
        catalog::check_wal_level(&client).await.map_err(ReplicationError::from)?;
        if let (Decision::Stream { .. }, Some(reason)) = (&decision, &self.unreadable) {
            decision = Decision::Resync { cause: Cause::Publication, reason: reason.clone() };
        }
        let again = match decision {
            Decision::Stop { reason } => return Err(NodeError::Stopped(reason)),
            Decision::Stream { from } => {
                tracing::info!(%from, "going on from our checkpoint");
                return Ok((wal, system));
            }
            Decision::Fresh => None,
            Decision::Resync { cause, reason } => {
                tracing::warn!(reason, "copying everything again; what is here goes on answering, marked stale");
                self.progress.set_stale(Some(reason));
                Some(cause)
            }
        };
        self.make_epoch(&client, wal, &system, again.is_some()).await?;
        // Only now: until a copy has begun, the next connection needs the reason as well.
        self.unreadable = None;
        if let Some(cause) = again {
            metrics::counter!(names::RESYNCS, "reason" => cause.label()).increment(1);
        }
        // That connection holds the exported snapshot; streaming starts on a fresh one.
        Ok((PgWalSource::connect(&self.options.dsn).await?, system))
    }

    /// Waits while the guard wants no slot of ours on the source. A copy that was under way is over.
    async fn clearance(&mut self) -> Result<(), NodeError> {
        loop {
            let against = self.guard.verdict.borrow_and_update().against().map(str::to_owned);
            let Some(reason) = against else { return Ok(()) };
            self.discard_making();
            self.wait_because(reason);
            self.guard.verdict.changed().await.map_err(|_| ReplicationError::Stopped)?;
        }
    }

    fn wait_because(&self, reason: String) {
        if self.current.is_some() {
            self.progress.set_stale(Some(reason.clone()));
        }
        self.progress.set_phase(Phase::Waiting { reason });
    }

    /// Waits until the slot is ours to use: no other service has its lock, and nobody streams from it. A sender that we
    /// left behind is ended, so that a crash is not followed by a minute of waiting.
    async fn only_one(&mut self, client: &Client) -> Result<(), NodeError> {
        self.guard.wake.notify_one();
        let (started, mut waited) = (Instant::now(), false);
        loop {
            let holding = self.guard.holding.borrow_and_update().clone();
            match holding {
                Holding::Ours => break,
                Holding::Unknown { error } if started.elapsed() > GOOD_CONNECTION => {
                    return Err(ReplicationError::from(SourceError::Unavailable(error)).into());
                }
                Holding::Unknown { .. } => {}
                Holding::HeldBy { holder } => {
                    waited = true;
                    self.wait_because(format!("waiting for the slot: held by {holder}"));
                }
            }
            let changed = tokio::time::timeout(Duration::from_secs(1), self.guard.holding.changed()).await;
            if let Ok(Err(_)) = changed {
                return Err(ReplicationError::Stopped.into());
            }
        }
        if let Some(name) = self.newest().map(|epoch| epoch.identity.slot.clone()) {
            while let Some(holder) =
                slots::freed(client, &name, Some(&self.instance), FREE).await.map_err(ReplicationError::from)?
            {
                waited = true;
                self.wait_because(format!("waiting for the slot: held by {holder}"));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        match waited {
            // Much may have changed meanwhile: begin anew.
            true => Err(ReplicationError::Stopped.into()),
            false => Ok(()),
        }
    }

    async fn source_facts(
        &self,
        client: &Client,
        wal: &mut PgWalSource,
        system: &SystemFacts,
    ) -> Result<SourceFacts, NodeError> {
        let ours = self.newest();
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

    /// Looks at every configured collection's table, and has the publication send it. Every one whose table does not fit
    /// says so; only what concerns all is an error.
    async fn look(&mut self, client: &Client) -> Result<Vec<Looked>, SourceError> {
        let mut looked = Vec::new();
        for (number, spec) in self.options.collections.iter().enumerate() {
            let (def, table, refused) = match catalog::resolve(client, CollectionId(number as u32), spec).await {
                Ok((def, table)) => (Ok(def), Some(table), None),
                Err(error @ SourceError::Refused { .. }) => (Err(error.to_string()), None, Some(error)),
                Err(error) => return Err(error),
            };
            let rebuild = self.rebuild.contains(spec.name());
            let name = spec.name().to_owned();
            let wanted = Wanted { name, def, fingerprint: String::new(), unpublished: false, rebuild };
            looked.push(Looked { wanted, table, refused });
        }
        let fit: Vec<_> = looked.iter().filter_map(|looked| looked.wanted.def.clone().ok()).collect();
        let name = &self.options.publication;
        let ensured = publication::ensure(client, name, &fit, self.options.create_publication).await?;
        let fitting = looked.iter_mut().filter(|looked| looked.wanted.def.is_ok());
        for ((looked, def), ensured) in fitting.zip(&fit).zip(ensured) {
            match ensured {
                Ok(was_missing) => {
                    looked.wanted.unpublished = was_missing;
                    looked.wanted.fingerprint = publication::fingerprint(client, name, def).await?.to_text();
                }
                Err(error @ SourceError::Refused { .. }) => {
                    looked.wanted.def = Err(error.to_string());
                    looked.refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(looked)
    }

    /// Makes a slot and an epoch on it, and starts the copies. `again`: beside what there is, or was.
    async fn make_epoch(
        &mut self,
        client: &Client,
        mut wal: PgWalSource,
        system: &SystemFacts,
        again: bool,
    ) -> Result<(), NodeError> {
        let (mut tables, mut refusals) = (Vec::new(), BTreeMap::new());
        for Looked { wanted, table, refused } in self.look(client).await.map_err(ReplicationError::from)? {
            let id = CollectionId(tables.len() as u32);
            let stored = || {
                let view = self.current.as_ref()?.view();
                view.collections.get(&wanted.name).map(|found| CollectionDef::clone(&found.def))
            };
            let (mut def, table) = match (wanted.def, table, refused) {
                (Ok(mut def), Some(table), None) => {
                    catalog::learn_dimensions(client, &mut def).await.map_err(ReplicationError::from)?;
                    (def, Ok(table))
                }
                // At the first start somebody is there who can do something about it.
                (_, _, Some(error)) if !again => return Err(ReplicationError::from(error).into()),
                (def, ..) => match stored() {
                    Some(stored) => (stored, Err(def.err().unwrap_or_default())),
                    None => {
                        refusals.insert(wanted.name, def.err().unwrap_or_default());
                        continue;
                    }
                },
            };
            def.id = id;
            tables.push(NewTable { def, table, fingerprint: wanted.fingerprint });
        }
        refuse_collections(&self.progress, refusals);
        let before = self.data.current()?;
        let id = before.as_ref().map_or(EpochId(1), |current| current.epoch.next());
        let slot = match again {
            false => self.options.slot.clone(),
            true => self.free_slot(client, id).await?,
        };
        let old_slot = before.map(|current| current.slot);
        crate::failpoint!("node.copy_decided");
        let dir = self.data.prepare_epoch(id)?;
        self.data.set_pending(Some(&Pending {
            epoch: id,
            slot: slot.clone(),
            old_slot: old_slot.filter(|old| *old != slot),
        }))?;
        ownership::remember_slot(self.data.root(), &slot)?;
        let version = catalog::server_version(client).await.map_err(ReplicationError::from)?;
        let database = client_database(client).await?;
        tracing::info!(slot, "making a replication slot; this waits for open transactions");
        let failover = self.options.failover && !client_in_recovery(client).await?;
        let kind = SlotKind::Kept { failover };
        let new = wal.create_slot(&slot, kind, version, self.options.slot_lock_timeout).await?;
        let identity = Identity {
            system_id: system.system_id.clone(),
            timeline: system.timeline,
            database,
            slot,
            consistent_point: new.consistent_point,
        };
        tracing::info!(at = %new.consistent_point, "a new epoch begins");
        let mut epoch = Epoch::create(&dir, id, identity, tables, self.options.engine.clone(), &self.progress)?;
        if self.current.is_none() {
            // Nothing else answers: let this one say how far it is.
            self.frontier.serve(Some(epoch.serving.clone()));
        }
        let exported = Exported { held_by: wal, slot: new };
        epoch.copy(&self.options.dsn, &self.copy_options(), Some(exported), &self.progress);
        self.making = Some(epoch);
        crate::failpoint!("node.copy_started");
        Ok(())
    }

    fn copy_options(&self) -> copy::Options {
        copy::Options {
            connections: self.options.copy_connections,
            lock_timeout: self.options.slot_lock_timeout,
            slot: self.options.slot.clone(),
        }
    }

    /// Streams into the newest epoch's log; meanwhile looks after copies and collections.
    async fn stream(&mut self, mut wal: PgWalSource, system: &SystemFacts) -> Result<(), NodeError> {
        let Some(epoch) = self.newest_mut() else {
            return Err(NodeError::Stopped("there is nothing to stream into".into()));
        };
        let from = epoch.serving.log.durable().lsn;
        if epoch.identity.timeline != system.timeline {
            epoch.identity.timeline = system.timeline;
            epoch.state.set_identity(&epoch.identity)?;
        }
        let (slot, definitions) = (epoch.identity.slot.clone(), epoch.definitions.clone());
        if self.options.failover {
            wal.keep_in_step(&slot).await;
        }
        wal.start_with(&slot, &self.options.publication, from, self.options.streaming).await?;
        let (id, log) = match self.newest_mut().and_then(|epoch| Some((epoch.id, epoch.log.take()?))) {
            Some(taken) => taken,
            None => return Err(NodeError::Stopped("the change log is in use".into())),
        };
        self.progress.set_phase(Phase::Streaming);
        // That the server takes the order proves nothing: it may fail at the next change.
        self.unproven = Some(Instant::now());
        tracing::info!(%from, "streaming");
        // What happened to the tables while nobody looked has no event in the stream.
        self.reconcile_now = true;
        let stop = self.stop.child_token();
        let mut following = {
            let (intake, progress, stop) = (self.options.intake, self.progress.clone(), stop.clone());
            tokio::spawn(async move { follow(wal, intake, definitions, log, &progress, &stop).await })
        };
        let mut tended = Ok(());
        let mut verdict = self.guard.verdict.clone();
        let ended = loop {
            let tending = async {
                tokio::time::sleep(TEND).await;
                self.tend().await
            };
            tokio::select! {
                ended = &mut following => break ended,
                // The stream ends in order; the next connection waits for clearance.
                () = given_up(&mut verdict), if !stop.is_cancelled() => stop.cancel(),
                result = tending => if result.is_err() {
                    tended = result;
                    stop.cancel();
                    break (&mut following).await;
                },
            }
        };
        let (log, ended) = match ended {
            Ok(ended) => ended,
            Err(panic) => return Err(NodeError::Engine(format!("following the source ended: {panic}"))),
        };
        // One that was discarded meanwhile needs it no more.
        if let Some(epoch) = self.newest_mut().filter(|epoch| epoch.id == id) {
            epoch.log = Some(log);
        }
        tended?;
        if ended.sqlstate() == Some("42704") {
            // The catalog is read as of the change: a publication that was missing then is missing for ever.
            self.unreadable = Some(format!("changes were written while the publication was missing: {ended}"));
        }
        match ended {
            ReplicationError::Stopped if self.stop.is_cancelled() => Ok(()),
            ended => Err(ended.into()),
        }
    }

    /// One look at what goes on beside the stream. An error ends the stream.
    async fn tend(&mut self) -> Result<(), NodeError> {
        self.check_engines()?;
        self.tend_copies().await?;
        if self.making_is_whole() {
            self.promote().await?;
        }
        self.no_longer_stale();
        self.rebuild.extend(self.progress.take_rebuilds());
        if self.specs.has_changed().unwrap_or(false) {
            let specs = self.specs.borrow_and_update().clone();
            self.take_over(specs);
        }
        let troubled = self.newest().is_some_and(is_troubled);
        let every = if self.troubled || !self.unfit.is_empty() { LOOK_AGAIN } else { self.options.reconcile_every };
        let due = self.reconcile_now || self.reconciled.elapsed() >= every;
        let asked = !self.rebuild.is_empty() && self.reconciled.elapsed() >= ASKED_AGAIN;
        if due || (troubled && !self.troubled) || asked {
            self.reconcile_now = false;
            let reconciled = self.reconcile().await;
            (self.reconciled, self.troubled) = (Instant::now(), troubled);
            match reconciled {
                Err(NodeError::Replication(error @ (ReplicationError::Source(_) | ReplicationError::Transport(_)))) => {
                    tracing::warn!(%error, "cannot compare the collections with the source's tables; trying again");
                    self.progress.set_copy_trouble(Some(error.to_string()));
                    // Soon, but not at once.
                    self.troubled = true;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// What answers is known to be what the source had at some moment since streaming began: no reason to doubt it is left.
    fn no_longer_stale(&mut self) {
        let (Some(since), Some(current), None) = (self.unproven, &self.current, &self.making) else { return };
        if self.progress.fresh_as_of(current.view().applied).is_some_and(|at| at >= since) {
            self.unproven = None;
            self.progress.set_stale(None);
        }
    }

    /// The configured collections were read again. What can be seen to be wrong at once is not taken over: it would stop a
    /// collection that follows.
    fn take_over(&mut self, specs: Vec<CollectionSpec>) {
        let unfit = self.newest().and_then(|epoch| {
            let view = epoch.view();
            specs.iter().find_map(|spec| unfit_metric(spec, &view.collections.get(spec.name())?.def))
        });
        if let Some(reason) = unfit {
            tracing::error!(reason, "the configuration's collections are not taken over; those of before go on");
            return;
        }
        for gone in self.options.collections.iter().filter(|old| specs.iter().all(|new| new.table != old.table)) {
            let (publication, table) = (&self.options.publication, &gone.table);
            tracing::info!(table, publication, "no collection has this table any more; it stays in the publication");
        }
        self.options.engine.tiers = CollectionSpec::tiers(&specs);
        for epoch in self.making.iter().chain(&self.current) {
            epoch.serving.engine.set_tiers(self.options.engine.tiers.clone());
        }
        self.options.collections = specs;
        self.reconcile_now = true;
    }

    /// Has the new epoch all that answers now, as far as it can be had?
    fn making_is_whole(&self) -> bool {
        let Some(making) = self.making.as_ref().filter(|making| making.is_live()) else { return false };
        let (new, old) = (making.view(), self.current.as_ref().map(Epoch::view));
        let answers = |name: &str| old.as_ref().is_none_or(|old| old.collections.contains_key(name));
        let mut wanted = self.options.collections.iter().map(CollectionSpec::name).filter(|name| answers(name));
        wanted.all(|name| new.collections.contains_key(name) || self.impossible.contains(name))
    }

    fn check_engines(&mut self) -> Result<(), NodeError> {
        let failure = |epoch: &Epoch| epoch.serving.engine.failure().borrow().clone();
        if let Some(reason) = self.current.as_ref().and_then(failure) {
            return Err(NodeError::Engine(reason));
        }
        let Some(reason) = self.making.as_ref().and_then(failure) else { return Ok(()) };
        if self.current.is_none() {
            return Err(NodeError::Engine(reason));
        }
        // What answers is another engine: it goes on, and the copy is tried again.
        self.discard_making();
        Err(ReplicationError::Transport(format!("the engine of the new copy failed: {reason}")).into())
    }

    async fn tend_copies(&mut self) -> Result<(), NodeError> {
        let (dsn, options) = (self.options.dsn.clone(), self.copy_options());
        let Some(epoch) = self.making.as_mut().or(self.current.as_mut()) else { return Ok(()) };
        epoch.tidy();
        match epoch.copy_ended().await {
            Some(Ok(())) => {
                self.copy_backoff.reset();
                self.progress.set_copy_trouble(None);
            }
            // Whatever is wrong with one table, the others follow theirs.
            Some(Err(NodeError::Replication(error))) if !matches!(error, ReplicationError::Storage(_)) => {
                let pause = self.copy_backoff.next(error.policy());
                tracing::warn!(%error, ?pause, "a copy ended; looking at its table again");
                self.progress.set_copy_trouble(Some(error.to_string()));
                self.copy_from = Instant::now() + pause;
                self.reconcile_now = true;
                return Ok(());
            }
            Some(Err(other)) => return Err(other),
            None => {}
        }
        if Instant::now() >= self.copy_from && !self.reconcile_now {
            epoch.copy(&dsn, &options, None, &self.progress);
        }
        Ok(())
    }

    /// Compares what there is with what is configured and what the source has, and does what follows.
    async fn reconcile(&mut self) -> Result<(), NodeError> {
        let client = self.options.dsn.connect().await.map_err(ReplicationError::from)?;
        let mut looked = self.look(&client).await.map_err(ReplicationError::from)?;
        let making = self.making.is_some();
        let Some(epoch) = self.making.as_mut().or(self.current.as_mut()) else { return Ok(()) };
        let view = epoch.view();
        let mut answering = Vec::new();
        for found in view.collections.values().filter(|found| found.state != CollectionState::Copying) {
            let fingerprint = epoch.serving.engine.record(found.def.id)?.map(|record| record.fingerprint);
            let paused = matches!(found.state, CollectionState::Paused { .. });
            let def = CollectionDef::clone(&found.def);
            answering.push(Answering { def, paused, fingerprint: fingerprint.unwrap_or_default() });
        }
        let arriving = view.incoming.values().map(|arriving| Arriving {
            def: CollectionDef::clone(&arriving.def),
            failed: arriving.failed.is_some() || epoch.is_spoiled(arriving.def.id),
        });
        let arriving: Vec<_> = arriving.collect();
        let before = std::mem::take(&mut self.unfit);
        for Looked { wanted, .. } in &mut looked {
            let follows = answering.iter().find(|have| have.def.name == wanted.name && !have.paused);
            if let (Err(_), Some(follows)) = (&wanted.def, follows) {
                self.unfit.insert(wanted.name.clone());
                if !before.contains(&wanted.name) {
                    let (collection, reason) = (&wanted.name, wanted.def.as_ref().err());
                    tracing::warn!(
                        collection,
                        reason,
                        "a collection does not fit its table; if it stays so, it is paused"
                    );
                    (wanted.def, wanted.fingerprint) = (Ok(follows.def.clone()), follows.fingerprint.clone());
                }
            }
        }
        let (wanted, tables): (Vec<_>, Vec<_>) = looked.into_iter().map(|looked| (looked.wanted, looked.table)).unzip();
        let refused = wanted.iter().filter(|want| answering.iter().all(|have| have.def.name != want.name));
        let refused = refused.filter_map(|want| Some((want.name.clone(), want.def.as_ref().err()?.clone())));
        refuse_collections(&self.progress, refused.collect());
        self.impossible = wanted.iter().filter(|want| want.def.is_err()).map(|want| want.name.clone()).collect();
        for step in plan(&wanted, &answering, &arriving) {
            match step {
                Step::Remove(id) => {
                    tracing::info!(collection = id.0, "forgetting a collection's data");
                    epoch.remove(id).await?;
                }
                Step::Pause(id, reason) => {
                    epoch.serving.engine.order(Command::Pause(id, reason)).await?;
                }
                Step::Copy { wanted: number, reason } => {
                    let (wanted, Some(table)) = (&wanted[number], &tables[number]) else { continue };
                    let Ok(mut def) = wanted.def.clone() else { continue };
                    catalog::learn_dimensions(&client, &mut def).await.map_err(ReplicationError::from)?;
                    tracing::info!(collection = wanted.name, reason, "copying a collection");
                    metrics::counter!(names::COPIES).increment(1);
                    let (table, fingerprint) = (Ok(table.clone()), wanted.fingerprint.clone());
                    epoch.add(NewTable { def, table, fingerprint }, &self.progress).await?;
                    self.rebuild.remove(&wanted.name);
                }
                Step::Compare(id, fingerprint) => {
                    // One at a time, and of what answers.
                    let busy = self.comparing.as_ref().is_some_and(|comparing| !comparing.is_finished());
                    if busy || making {
                        continue;
                    }
                    let Some(found) = view.collections.values().find(|found| found.def.id == id) else { continue };
                    tracing::info!(
                        collection = found.def.name,
                        "comparing with the source: partitions or publication changed"
                    );
                    self.comparing = Some(tokio::spawn(repair::compare(
                        self.frontier.clone(),
                        epoch.serving.engine.clone(),
                        self.options.dsn.clone(),
                        self.pool.clone(),
                        (id, found.def.name.clone()),
                        fingerprint,
                    )));
                }
            }
        }
        // What nobody can copy is not asked for for ever, and what is being copied not again.
        if view.incoming.is_empty() && self.rebuild.is_empty() {
            self.progress.set_copy_trouble(None);
        }
        let possible = |name: &String| wanted.iter().any(|want| want.name == *name && want.def.is_ok());
        let under_way = |name: &String| arriving.iter().any(|have| have.def.name == *name);
        self.rebuild.retain(|name| possible(name) && !under_way(name));
        Ok(())
    }

    fn newest(&self) -> Option<&Epoch> {
        self.making.as_ref().or(self.current.as_ref())
    }

    fn newest_mut(&mut self) -> Option<&mut Epoch> {
        self.making.as_mut().or(self.current.as_mut())
    }

    /// The new epoch is whole: from now on it answers.
    async fn promote(&mut self) -> Result<(), NodeError> {
        let Some(mut epoch) = self.making.take() else { return Ok(()) };
        self.frontier.serve(Some(epoch.serving.clone()));
        if let Some(mut old) = self.current.take() {
            old.stop();
        }
        crate::failpoint!("node.old_stopped");
        // The old epoch's files go with its slot: nothing works on them any more.
        self.data.make_current(epoch.id, &epoch.identity.slot)?;
        epoch.serving.kept.store(true, Ordering::Relaxed);
        epoch.tidy();
        self.progress.forget();
        crate::failpoint!("node.promoted");
        self.unproven = None;
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

    /// The new epoch cannot be continued: its engine ends, its slot and files go at the next connection.
    fn discard_making(&mut self) {
        if let Some(mut epoch) = self.making.take() {
            if self.current.is_none() {
                self.frontier.serve(None);
            }
            epoch.stop();
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
            drop_slot(client, &pending.slot, &self.instance).await?;
            self.data.prepare_epoch(pending.epoch)?;
            return Ok(self.data.set_pending(None)?);
        }
        self.data.remove_other_epochs(pending.epoch)?;
        let Some(old) = &pending.old_slot else { return Ok(self.data.set_pending(None)?) };
        match drop_slot(client, old, &self.instance).await {
            Ok(()) => self.data.set_pending(None)?,
            // It holds WAL on the source until it goes, but following must not wait for that.
            Err(error) => tracing::warn!(slot = old, %error, "the replaced slot cannot be dropped yet"),
        }
        Ok(())
    }

    /// Ends the engines, after what they applied is durable.
    pub async fn close(&mut self) {
        self.comparing.take().iter().for_each(JoinHandle::abort);
        for mut epoch in self.making.take().into_iter().chain(self.current.take()) {
            epoch.stop();
        }
    }
}

/// Shows and logs which configured collections nothing answers for.
fn refuse_collections(progress: &Progress, refusals: BTreeMap<String, String>) {
    let before = progress.refused();
    for (collection, reason) in refusals.iter().filter(|(name, reason)| before.get(*name) != Some(reason)) {
        tracing::warn!(collection, reason, "a collection cannot be copied; looking at its table again and again");
    }
    progress.set_refused(refusals);
}

/// What is wrong with a configured metric, where the type of the column is known.
fn unfit_metric(spec: &CollectionSpec, def: &CollectionDef) -> Option<String> {
    spec.vectors.iter().find_map(|wanted| {
        let column = def.vectors.iter().find(|column| column.name == wanted.column)?;
        let fitting = Metric::of_type(column.kind);
        let names = || fitting.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", ");
        (!fitting.contains(&wanted.metric)).then(|| {
            let (name, kind) = (&def.name, column.kind);
            format!("collection {name}: {} does not compare {kind}; set metric to one of {}", wanted.metric, names())
        })
    })
}

/// Does a collection of it not follow its table?
fn is_troubled(epoch: &Epoch) -> bool {
    let view = epoch.view();
    let paused = view.collections.values().any(|found| matches!(found.state, CollectionState::Paused { .. }));
    paused || view.incoming.values().any(|arriving| arriving.failed.is_some())
}

/// Resolves when the guard wants no slot of ours on the source.
async fn given_up(verdict: &mut watch::Receiver<Verdict>) {
    if verdict.wait_for(|verdict| verdict.against().is_some()).await.is_err() {
        std::future::pending().await
    }
}

async fn client_in_recovery(client: &Client) -> Result<bool, NodeError> {
    let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await;
    Ok(row.map_err(|error| ReplicationError::from(SourceError::from(error)))?.get(0))
}

async fn client_database(client: &Client) -> Result<String, NodeError> {
    let row = client.query_one("SELECT current_database()::text", &[]).await;
    Ok(row.map_err(|error| ReplicationError::from(SourceError::from(error)))?.get(0))
}

/// Drops a slot of ours if it is there. One that is still in use is tried again later.
async fn drop_slot(client: &Client, name: &str, instance: &str) -> Result<(), NodeError> {
    slots::freed(client, name, Some(instance), FREE).await.map_err(ReplicationError::from)?;
    let found = catalog::slot(client, name).await.map_err(ReplicationError::from)?;
    if found.is_some_and(|slot| slot.plugin.as_deref() == Some("pgoutput")) {
        let dropped = client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await;
        dropped.map_err(|error| ReplicationError::from(SourceError::from(error)))?;
        crate::failpoint!("node.slot_dropped");
        tracing::info!(slot = name, "dropped a slot of ours that nothing uses any more");
    }
    Ok(())
}
