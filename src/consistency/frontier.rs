//! The positions of the whole pipeline, and the one place that hands out views: as of when a query answers.

use crate::engine::Engine;
use crate::engine::view::View;
use crate::model::{Consistency, Lsn};
use crate::replication::progress::Progress;
use crate::storage::changelog::LogTail;
use crate::telemetry::names;
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The engine that answers and the log it drains.
pub struct Serving {
    /// The engine.
    pub engine: Arc<Engine>,
    /// Durable end of its change log.
    pub log: Arc<LogTail>,
    /// Slot it follows.
    pub slot: String,
    /// Its copy is whole and a restart finds it. Until then a restart copies again.
    pub kept: AtomicBool,
}

/// Why there is no view to answer from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoView {
    /// The service has no data yet.
    #[error("nothing was copied from the source so far")]
    NotLoaded,
    /// The position asked for was not reached in time.
    #[error("applied {applied}, asked {asked}, waited {waited:?}")]
    TimedOut {
        /// Where the index is.
        applied: Lsn,
        /// What was asked for.
        asked: Lsn,
        /// How long.
        waited: Duration,
    },
    /// What there is stayed older than was asked for.
    #[error("what is applied {}, asked for at most {} ms, waited {waited:?}", age.map_or("is of unknown age".to_owned(), |age| format!("may be {} ms old", age.as_millis())), asked.as_millis())]
    TooOld {
        /// Upper bound of its age; `None` where nothing is proven, or nothing follows the source.
        age: Option<Duration>,
        /// What was asked for.
        asked: Duration,
        /// How long.
        waited: Duration,
    },
}

/// Age is looked at so often while somebody waits for a younger state.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Received, durable, applied: shared by everybody who asks "as of when".
pub struct Frontier {
    serving: ArcSwapOption<Serving>,
    /// Counts what has answered so far: who waits for a position goes on with what answers next.
    replaced: watch::Sender<u64>,
    /// How far the replication is.
    pub progress: Arc<Progress>,
    default_timeout: Duration,
    tallies: Mutex<BTreeMap<String, Tally>>,
}

/// What searches of a collection had rechecked since the service began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Searches.
    pub searches: u64,
    /// Rows that the source was asked about.
    pub rechecked: u64,
    /// Of those: the source did not show them.
    pub invisible: u64,
}

/// One reading of all positions.
#[derive(Debug, Clone, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Positions {
    /// End of the source's WAL as last heard.
    pub source: Lsn,
    /// Received from the socket.
    pub received: Lsn,
    /// Durable in the change log.
    pub durable: Lsn,
    /// Confirmed to the source.
    pub confirmed: Lsn,
    /// What searches see.
    pub applied: Lsn,
    /// Upper bound of the age of what searches see, milliseconds; absent while unknown.
    pub staleness_ms: Option<f64>,
}

impl Frontier {
    /// A frontier without data; waits last `default_timeout` where the request does not say.
    pub fn new(progress: Arc<Progress>, default_timeout: Duration) -> Frontier {
        let replaced = watch::Sender::new(0);
        let tallies = Mutex::default();
        Frontier { serving: ArcSwapOption::empty(), replaced, progress, default_timeout, tallies }
    }

    /// Counts a search of a collection that exists.
    pub fn tally(&self, collection: &str, checked: usize, dropped: usize) {
        let mut tallies = self.tallies.lock();
        let tally = tallies.entry(collection.to_owned()).or_default();
        tally.searches += 1;
        tally.rechecked += checked as u64;
        tally.invisible += dropped as u64;
    }

    /// What was counted, by collection.
    pub fn tallies(&self) -> BTreeMap<String, Tally> {
        self.tallies.lock().clone()
    }

    /// From now on this engine answers.
    pub fn serve(&self, serving: Option<Arc<Serving>>) {
        self.serving.store(serving);
        self.replaced.send_modify(|count| *count += 1);
    }

    /// The engine that answers.
    pub fn serving(&self) -> Option<Arc<Serving>> {
        self.serving.load_full()
    }

    /// Asks for a new copy of a collection; what it has answers until then. One that is under way, or waits for its turn,
    /// is that copy: asked for twice, it is made once.
    pub fn ask_rebuild(&self, collection: &str) {
        let under_way = |serving: Arc<Serving>| {
            serving.engine.view().incoming.get(collection).is_some_and(|arriving| arriving.failed.is_none())
        };
        if !self.serving().is_some_and(under_way) {
            self.progress.ask_rebuild(collection);
        }
    }

    /// A view that reflects at least what was asked for, and the engine it is of.
    pub async fn view(&self, consistency: &Consistency) -> Result<(Arc<Serving>, Arc<View>), NoView> {
        let mut serving = self.serving().ok_or(NoView::NotLoaded)?;
        if let Some(asked) = consistency.at_least {
            serving = self.wait(serving, asked, consistency.timeout.unwrap_or(self.default_timeout)).await?;
        }
        if let Some(asked) = consistency.max_staleness {
            serving = self.fresh(asked, consistency.timeout.unwrap_or(self.default_timeout)).await?;
        }
        let view = serving.engine.view();
        Ok((serving, view))
    }

    /// Waits until what answers is proven to be no older than this.
    async fn fresh(&self, asked: Duration, limit: Duration) -> Result<Arc<Serving>, NoView> {
        let started = Instant::now();
        loop {
            let serving = self.serving().ok_or(NoView::NotLoaded)?;
            let follows = self.progress.stale().is_none();
            let age = self.staleness(serving.engine.view().applied).filter(|_| follows);
            if age.is_some_and(|age| age <= asked) {
                return Ok(serving);
            }
            if started.elapsed() >= limit {
                metrics::counter!(names::LSN_WAIT_TIMEOUTS).increment(1);
                return Err(NoView::TooOld { age, asked, waited: started.elapsed() });
            }
            self.progress.nudge();
            tokio::time::sleep(LOOK_AGAIN.min(limit)).await;
        }
    }

    /// What has reached the position: the engine that answered at first, or one that replaced it meanwhile.
    async fn wait(&self, serving: Arc<Serving>, asked: Lsn, limit: Duration) -> Result<Arc<Serving>, NoView> {
        if *serving.engine.applied().borrow() >= asked {
            return Ok(serving);
        }
        let started = Instant::now();
        self.progress.nudge();
        let reached = tokio::time::timeout(limit, self.reached(asked)).await;
        metrics::histogram!(names::LSN_WAIT_SECONDS).record(started.elapsed().as_secs_f64());
        reached.map_err(|_| {
            metrics::counter!(names::LSN_WAIT_TIMEOUTS).increment(1);
            let applied = self.serving().map_or(Lsn::ZERO, |serving| *serving.engine.applied().borrow());
            NoView::TimedOut { applied, asked, waited: started.elapsed() }
        })
    }

    /// Ends when something that answers has applied this. Cancel-safe.
    async fn reached(&self, asked: Lsn) -> Arc<Serving> {
        let mut replaced = self.replaced.subscribe();
        loop {
            // Seen before the look: a replacement after it wakes us.
            replaced.borrow_and_update();
            if let Some(serving) = self.serving() {
                let mut applied = serving.engine.applied();
                tokio::select! {
                    reached = applied.wait_for(|applied| *applied >= asked) => {
                        if reached.is_ok() {
                            return serving;
                        }
                    }
                    _ = replaced.changed() => continue,
                }
            }
            // The sender is ours: it outlives this.
            let _ = replaced.changed().await;
        }
    }

    /// Upper bound of the age of a position; `None` while nothing is proven.
    pub fn staleness(&self, applied: Lsn) -> Option<Duration> {
        self.progress.fresh_as_of(applied).map(|moment| moment.elapsed())
    }

    /// All positions now.
    pub fn positions(&self) -> Positions {
        let serving = self.serving();
        let applied = serving.as_ref().map_or(Lsn::ZERO, |serving| serving.engine.view().applied);
        Positions {
            source: self.progress.source_end(),
            received: self.progress.received(),
            durable: serving.map_or(Lsn::ZERO, |serving| serving.log.durable().lsn),
            confirmed: self.progress.confirmed(),
            applied,
            staleness_ms: self.staleness(applied).map(|age| age.as_secs_f64() * 1000.0),
        }
    }
}
