//! Owns the epochs and follows the source with them for as long as the node lives: again and again, with pauses between.
//! How it connects and streams, makes epochs, and keeps collections in step stands in a module each.

mod connect;
mod epochs;
mod reconcile;
mod registered;

use crate::consistency::frontier::Frontier;
use crate::model::CollectionSpec;
use crate::node::epoch::Epoch;
use crate::node::guard::Watch;
use crate::node::{NodeError, Options, repair};
use crate::replication::ReplicationError;
use crate::replication::poison::Poison;
use crate::replication::progress::{Phase, Progress};
use crate::source::connect::Pool;
use crate::source::policy::{Backoff, Policy};
use crate::storage::data_dir::DataDir;
use crate::telemetry::names;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A connection that lasted so long was a good one: pauses begin anew.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// While a collection cannot be followed, the source is looked at again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Between two tries to begin what somebody asked for.
const ASKED_AGAIN: Duration = Duration::from_secs(1);
/// A sender of ours that was ended leaves the slot within this time.
const FREE: Duration = Duration::from_secs(5);

/// Owns the epochs.
pub struct Supervisor {
    options: Options,
    data: DataDir,
    frontier: Arc<Frontier>,
    progress: Arc<Progress>,
    pool: Pool,
    /// What is configured; changes while the service runs.
    specs: watch::Receiver<Vec<CollectionSpec>>,
    /// As taken over last. `options.collections` has what is registered by SQL as well.
    configured: Vec<CollectionSpec>,
    registered: registered::Registered,
    /// Tells all that is followed.
    followed: watch::Sender<Vec<CollectionSpec>>,
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
        (specs, followed): (watch::Receiver<Vec<CollectionSpec>>, watch::Sender<Vec<CollectionSpec>>),
        (guard, instance): (Watch, String),
        stop: CancellationToken,
    ) -> Supervisor {
        let progress = frontier.progress.clone();
        let (now, configured) = (Instant::now(), options.collections.clone());
        Supervisor {
            options,
            data,
            frontier,
            progress,
            pool,
            specs,
            configured,
            registered: Default::default(),
            followed,
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

    /// A refusal at the first start is told at once; later what we have goes on answering while somebody looks.
    fn may_go_on(&self, error: &ReplicationError, connected_once: bool) -> bool {
        error.is_transient()
            || (matches!(error, ReplicationError::Source(_)) && (connected_once || self.current.is_some()))
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
            self.take_over(specs)?;
        }
        self.hear_registered();
        let troubled = self.newest().is_some_and(reconcile::is_troubled);
        let often = self.troubled || !self.unfit.is_empty() || self.registered.is_unsent();
        let every = if often { LOOK_AGAIN } else { self.options.reconcile_every };
        let due = self.reconcile_now || self.reconciled.elapsed() >= every;
        let wanted = !self.rebuild.is_empty() || self.registered.is_due();
        let asked = wanted && self.reconciled.elapsed() >= ASKED_AGAIN;
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

    fn newest(&self) -> Option<&Epoch> {
        self.making.as_ref().or(self.current.as_ref())
    }

    fn newest_mut(&mut self) -> Option<&mut Epoch> {
        self.making.as_mut().or(self.current.as_mut())
    }

    /// Ends the engines, after what they applied is durable.
    pub async fn close(&mut self) {
        self.comparing.take().iter().for_each(JoinHandle::abort);
        for mut epoch in self.making.take().into_iter().chain(self.current.take()) {
            epoch.stop();
        }
    }
}
