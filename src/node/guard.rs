//! Guards the source against us: holds the lock that makes us the only one on our slot, measures what the slot keeps,
//! writes a heartbeat where keepalives do not suffice, and drops the slot before the source's disk is full.

use crate::replication::guard::{
    Budget, Cause, Holding, Level, Pauses, Protection, Stuck, Trend, Verdict, heartbeat_due, judge, server_limit_near,
};
use crate::source::connect::Dsn;
use crate::source::policy::Backoff;
use crate::source::slots::{self, Measured, Transaction};
use crate::source::{Result, SourceError, catalog};
use crate::storage::{StorageError, ownership};
use crate::telemetry::names;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// How often it is measured.
const MEASURE: Duration = Duration::from_secs(2);
/// How often the lock is asked for while another has it.
const ASK: Duration = Duration::from_secs(1);
/// An answer that does not come in this time will not come.
const ANSWER: Duration = Duration::from_secs(20);
/// A session of ours that says nothing for so long is ended by the server, and its lock is free.
const SILENCE: Duration = Duration::from_secs(60);
/// Our own stream may take so long to end in order before its sender is ended.
const LEAVE: Duration = Duration::from_secs(3);
/// And the slot so long to be free then.
const FREE: Duration = Duration::from_secs(10);
/// The first pause after a slot was given up.
const FIRST_PAUSE: Duration = Duration::from_secs(60);

/// Settings of the guard.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// What slots may cost.
    pub budget: Budget,
    /// Without progress for so long a heartbeat is written.
    pub heartbeat: Option<Duration>,
}

/// What the supervisor sees of the guard.
#[derive(Clone)]
pub struct Watch {
    /// What it may do.
    pub verdict: watch::Receiver<Verdict>,
    /// Whether the slot is ours to use.
    pub holding: watch::Receiver<Holding>,
    /// The source answers: no reason to wait for it any longer.
    pub wake: Arc<Notify>,
    /// Of which cluster our slots are, once that is known. In any other, slots of the same names are not ours.
    pub cluster: Arc<Mutex<Option<String>>>,
}

/// The guard itself.
pub struct Guard {
    dsn: Dsn,
    /// The data directory, which says what is ours.
    root: PathBuf,
    /// The configured slot: the lock's name.
    slot: String,
    instance: String,
    options: Options,
    protection: Arc<Protection>,
    verdict: watch::Sender<Verdict>,
    holding: watch::Sender<Holding>,
    wake: Arc<Notify>,
    cluster: Arc<Mutex<Option<String>>>,
    state: State,
}

/// What it remembers between looks.
struct State {
    trend: Trend,
    stuck: BTreeMap<String, Stuck>,
    pauses: Pauses,
    /// Why the slot was given up, while there is a pause for it.
    paused: Option<Cause>,
    warned: bool,
    /// Told that the server may give a slot up.
    warned_of_server: bool,
    beaten: Option<Instant>,
}

impl Guard {
    /// A guard of what this data directory's service has made, and what the supervisor sees of it.
    pub fn new(
        dsn: Dsn,
        root: &Path,
        slot: &str,
        instance: &str,
        options: Options,
        protection: Arc<Protection>,
    ) -> (Guard, Watch) {
        let (verdict, verdict_seen) = watch::channel(Verdict::Follow);
        let (holding, holding_seen) = watch::channel(Holding::Unknown { error: "not asked yet".into() });
        let (wake, cluster) = (Arc::new(Notify::new()), Arc::<Mutex<Option<String>>>::default());
        protection.change(|shown| {
            shown.budget_bytes = options.budget.bytes.unwrap_or(0);
            shown.heartbeat.after_s = options.heartbeat.map_or(0, |after| after.as_secs());
        });
        let state = State {
            trend: Trend::default(),
            stuck: BTreeMap::new(),
            pauses: Pauses::new(FIRST_PAUSE),
            paused: None,
            warned: false,
            warned_of_server: false,
            beaten: None,
        };
        let (wake_too, cluster_too) = (wake.clone(), cluster.clone());
        let watch = Watch { verdict: verdict_seen, holding: holding_seen, wake: wake_too, cluster: cluster_too };
        let (root, slot, instance) = (root.to_owned(), slot.to_owned(), instance.to_owned());
        (Guard { dsn, root, slot, instance, options, protection, verdict, holding, wake, cluster, state }, watch)
    }

    /// Guards until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let ended = tokio::select! {
                ended = self.watch(&mut backoff) => ended,
                () = stop.cancelled() => return,
            };
            let Err(error) = ended else { return };
            tracing::debug!(%error, "cannot guard the source now");
            let pause = backoff.next(error.policy());
            self.hold(Holding::Unknown { error: error.to_string() });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wake.notified() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn hold(&self, holding: Holding) {
        self.protection.change(|shown| shown.holder = holding.clone());
        self.holding.send_if_modified(|now| {
            let changed = *now != holding;
            *now = holding;
            changed
        });
    }

    /// One connection: the lock lives as long as it does.
    async fn watch(&mut self, backoff: &mut Backoff) -> Result<()> {
        let client = self.dsn.connect().await?;
        let version = in_time(catalog::server_version(&client)).await?;
        in_time(slots::short_lived(&client, version, SILENCE)).await?;
        // Not every role may ask.
        let cluster = in_time(slots::cluster(&client)).await.ok();
        backoff.reset();
        let mut waits_for = None;
        while !in_time(slots::try_hold(&client, &self.slot)).await? {
            let holder = in_time(slots::holder(&client, &self.slot)).await?;
            if let Some(holder) = holder {
                if in_time(slots::end_own(&client, &holder, &self.instance)).await? {
                    // It worked in this very directory, which is locked by this process.
                    tracing::info!(session = %holder, "ended what an earlier run of this service left on the source");
                    continue;
                }
                if waits_for != Some(holder.pid) {
                    waits_for = Some(holder.pid);
                    tracing::warn!(slot = self.slot, %holder, "another service has the slot; waiting for it");
                }
                self.hold(Holding::HeldBy { holder });
            }
            // A stream that outlived the connection that had the lock is guarded all the same.
            self.look(&client, cluster.as_deref(), true).await?;
            tokio::time::sleep(ASK).await;
        }
        self.hold(Holding::Ours);
        loop {
            self.look(&client, cluster.as_deref(), false).await?;
            tokio::time::sleep(MEASURE).await;
        }
    }

    /// Measures, judges, acts. `streaming`: only of slots that we stream from.
    async fn look(&mut self, client: &Client, cluster: Option<&str>, streaming: bool) -> Result<()> {
        let ours = self.cluster.lock().clone();
        if ours.is_none() || cluster.is_some_and(|cluster| Some(cluster) != ours.as_deref()) {
            return Ok(());
        }
        let in_use = ownership::slots_in_use(&self.root).map_err(unreadable)?;
        let followed = ownership::slot_followed(&self.root).map_err(unreadable)?;
        let mut found = in_time(slots::measure(client, &in_use)).await?;
        found.retain(|slot| !streaming || slot.holder.as_ref().is_some_and(|holder| holder.is_of(&self.instance)));
        let oldest = in_time(slots::oldest_writer(client)).await?;
        let now = Instant::now();
        self.show(now, &found, oldest.as_ref());
        if self.state.paused.is_some() {
            return self.wait(client, now, &found, oldest.as_ref()).await;
        }
        self.state.stuck.retain(|name, _| found.iter().any(|slot| slot.name == *name));
        let mut half = None;
        for slot in &found {
            let stuck = self.state.stuck.entry(slot.name.clone()).or_default().look(now, slot);
            let retained = u64::try_from(slot.retained_wal_bytes.unwrap_or(0)).unwrap_or(0);
            let is_followed = followed.as_ref() == Some(&slot.name);
            match judge(&self.options.budget, &slot.name, retained, stuck) {
                Level::Spent { which, what } if is_followed => {
                    let cause = Cause::of(slot, oldest.as_ref());
                    return self.give_up(client, &in_use, which, format!("{what}: {cause}"), cause).await;
                }
                Level::Spent { what, .. } => {
                    tracing::warn!(what, "dropping a slot that is being replaced");
                    in_time(slots::drop_idle(client, &slot.name)).await?;
                }
                Level::Half { what } => half = Some(what),
                Level::Well => {}
            }
            if is_followed {
                self.beat(client, now, slot, stuck).await;
            }
        }
        if let Some(what) = half.as_ref().filter(|_| !self.state.warned) {
            tracing::warn!(what, "half of the budget is spent; at all of it the slot is dropped and copied anew later");
        } else if self.state.warned && half.is_none() {
            tracing::info!("less than half of the budget for kept WAL is spent again");
        }
        self.state.warned = half.is_some();
        let near = found.iter().find_map(server_limit_near);
        if let Some(what) = near.as_ref().filter(|_| !self.state.warned_of_server) {
            tracing::warn!(what, "the server may give our slot up soon; then everything is copied anew");
        }
        self.state.warned_of_server = near.is_some();
        self.protection.change(|shown| shown.warning = half.or(near));
        Ok(())
    }

    fn show(&mut self, now: Instant, found: &[Measured], oldest: Option<&Transaction>) {
        let most = found.iter().filter_map(|slot| slot.retained_wal_bytes).max().unwrap_or(0).max(0) as u64;
        self.state.trend.add(now, most);
        let budget = self.options.budget.bytes.filter(|_| !found.is_empty());
        let spent_in = budget.and_then(|budget| self.state.trend.seconds_until(budget));
        self.protection.change(|shown| {
            shown.slots = found.to_vec();
            shown.measured = Some(now);
            shown.budget_left_bytes = budget.map(|budget| budget.saturating_sub(most));
            shown.budget_spent_in_s = spent_in;
            shown.oldest_transaction = oldest.cloned();
        });
    }

    /// Only where the position does not advance although the WAL grows: usually keepalives do it.
    async fn beat(&mut self, client: &Client, now: Instant, slot: &Measured, stuck: Duration) {
        let Some(after) = self.options.heartbeat else { return };
        let streaming = slot.holder.as_ref().is_some_and(|holder| holder.is_of(&self.instance));
        let since_last = self.state.beaten.map(|beaten| now.duration_since(beaten));
        if !streaming || !heartbeat_due(after, slot.confirmed_lag_bytes.unwrap_or(0), stuck, since_last) {
            return;
        }
        self.state.beaten = Some(now);
        let written = in_time(slots::heartbeat(client)).await;
        tracing::debug!(slot = slot.name, ?written, "heartbeat");
        self.protection.change(|shown| match written {
            Ok(()) => {
                shown.heartbeat.written += 1;
                shown.heartbeat.refused = None;
            }
            Err(error) => shown.heartbeat.refused = Some(error.to_string()),
        });
    }

    /// Drops every slot of ours. Our stream is told first, and ended by its sender where it does not listen.
    async fn give_up(
        &mut self,
        client: &Client,
        in_use: &[String],
        which: &'static str,
        what: String,
        cause: Cause,
    ) -> Result<()> {
        let reason = format!("the slot was given up to protect the source: {what}");
        tracing::error!(what, "dropping our replication slot to protect the source; what is here goes on answering");
        metrics::counter!(names::SLOTS_GIVEN_UP, "budget" => which).increment(1);
        self.state.pauses.give_up(Instant::now());
        self.state.paused = Some(cause);
        self.state.warned = false;
        self.protection.change(|shown| {
            shown.warning = None;
            shown.given_up += 1;
            shown.given_up_reason = Some(reason.clone());
        });
        self.verdict.send_replace(Verdict::GiveUp { reason: reason.clone() });
        let dropped = async {
            for name in in_use {
                if timeout(ANSWER, slots::freed(client, name, None, LEAVE)).await.map_err(|_| late())??.is_some() {
                    timeout(ANSWER, slots::freed(client, name, Some(&self.instance), FREE))
                        .await
                        .map_err(|_| late())??;
                }
                if !in_time(slots::drop_idle(client, name)).await? {
                    tracing::warn!(slot = name, "it is in use by somebody else; dropping it is tried again");
                }
            }
            Ok(())
        };
        let dropped: Result<()> = dropped.await;
        if dropped.is_ok() {
            self.show(Instant::now(), &[], None);
        }
        self.verdict.send_replace(Verdict::Pause { reason });
        dropped
    }

    /// The pause after that.
    async fn wait(
        &mut self,
        client: &Client,
        now: Instant,
        found: &[Measured],
        oldest: Option<&Transaction>,
    ) -> Result<()> {
        for slot in found {
            slots::freed(client, &slot.name, Some(&self.instance), Duration::ZERO).await?;
            in_time(slots::drop_idle(client, &slot.name)).await?;
        }
        let gone = match &self.state.paused {
            Some(Cause::Transaction { transaction }) => oldest.is_none_or(|oldest| oldest.xid != transaction.xid),
            _ => false,
        };
        let left = self.state.pauses.left(now, gone);
        self.protection.change(|shown| shown.pause_left_s = Some(left.as_secs()));
        if left.is_zero() {
            tracing::info!(gone, "a new copy may begin");
            self.state.paused = None;
            self.state.stuck.clear();
            self.protection.change(|shown| (shown.pause_left_s, shown.given_up_reason) = (None, None));
            self.verdict.send_replace(Verdict::Follow);
        }
        Ok(())
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(ANSWER, answer).await.unwrap_or_else(|_| Err(late()))
}

fn late() -> SourceError {
    SourceError::Unavailable("no answer to a question about our slots".into())
}

fn unreadable(error: StorageError) -> SourceError {
    SourceError::Unavailable(format!("cannot read which slots are ours: {error}"))
}

/// Drops slots of ours that an earlier copy left because somebody was using them then.
pub async fn reap(client: &Client, root: &Path) {
    let reaped = async {
        let in_use = ownership::slots_in_use(root).map_err(unreadable)?;
        for name in ownership::slots(root).map_err(unreadable)? {
            if in_use.contains(&name) {
                continue;
            }
            // One that was written down and could never be made is only forgotten.
            let was_there = !slots::measure(client, std::slice::from_ref(&name)).await?.is_empty();
            if slots::drop_idle(client, &name).await? {
                if was_there {
                    tracing::info!(slot = name, "dropped a slot of ours that nothing uses any more");
                }
                ownership::forget_slot(root, &name).map_err(unreadable)?;
            }
        }
        Ok(())
    };
    let reaped: Result<()> = reaped.await;
    if let Err(error) = reaped {
        tracing::warn!(%error, "cannot look for slots of ours that nothing uses any more");
    }
}
