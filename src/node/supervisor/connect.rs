//! One connection to the source: waits until the slot is ours to use, has it decided where to start, and streams into the
//! newest epoch's log.

use super::{FREE, GOOD_CONNECTION, Supervisor};
use crate::node::{NodeError, guard};
use crate::replication::guard::{Holding, Verdict};
use crate::replication::poison;
use crate::replication::progress::Phase;
use crate::replication::start::{Cause, Decision, SlotFacts, SourceFacts, decide};
use crate::replication::transport::{PgWalSource, SystemFacts};
use crate::replication::{ReplicationError, follow};
use crate::source::{SourceError, catalog, slots};
use crate::telemetry::names;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_postgres::Client;

/// How often somebody looks after copies and collections.
const TEND: Duration = Duration::from_millis(50);
/// What comes before streaming asks little of the source: after so long, and the wait for the slot, the connection is dead.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Connects, decides and follows until something ends it. `Ok` when told to stop.
    pub(super) async fn follow_once(&mut self) -> Result<(), NodeError> {
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
        if let Some(slot) = &facts.slot {
            self.progress.begin_slot(&slot.name, slot.confirmed);
        }
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
        let database = catalog::database(client).await.map_err(ReplicationError::from)?;
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

    /// What is not understood comes back with every connection: then all is copied again, behind it, or somebody must look.
    pub(super) fn judge_poison(&mut self, error: &str, pause: Duration) -> Duration {
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
}

/// Resolves when the guard wants no slot of ours on the source.
async fn given_up(verdict: &mut watch::Receiver<Verdict>) {
    if verdict.wait_for(|verdict| verdict.against().is_some()).await.is_err() {
        std::future::pending().await
    }
}
