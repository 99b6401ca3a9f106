//! The positions of the whole pipeline, and the one place that hands out views: as of when a query answers.

use crate::engine::Engine;
use crate::engine::view::View;
use crate::model::{Consistency, Lsn};
use crate::replication::progress::{ASK_AGAIN, Progress};
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

/// What there is to answer from at one moment.
pub struct Current {
    /// The engine.
    pub serving: Arc<Serving>,
    /// Its view.
    pub view: Arc<View>,
    /// Everything that the source had at this moment is in the view; `None` while nothing is proven.
    pub fresh_as_of: Option<Instant>,
}

impl Current {
    fn of(serving: Arc<Serving>, progress: &Progress) -> Current {
        // Before the view is taken: what is proven by now was published by now.
        let fresh_as_of = progress.fresh_as_of(serving.engine.view().applied);
        let view = serving.engine.view();
        Current { serving, view, fresh_as_of }
    }
}

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
        self.current(consistency).await.map(|current| (current.serving, current.view))
    }

    /// What there is to answer from, once it is as new as asked for in every respect.
    pub async fn current(&self, consistency: &Consistency) -> Result<Current, NoView> {
        let current = Current::of(self.serving().ok_or(NoView::NotLoaded)?, &self.progress);
        if self.is_met(consistency, &current) {
            return Ok(current);
        }
        let (started, limit) = (Instant::now(), consistency.timeout.unwrap_or(self.default_timeout));
        let met = tokio::time::timeout(limit, self.met(consistency)).await;
        metrics::histogram!(names::LSN_WAIT_SECONDS).record(started.elapsed().as_secs_f64());
        met.map_err(|_| {
            metrics::counter!(names::LSN_WAIT_TIMEOUTS).increment(1);
            self.unmet(consistency, started.elapsed())
        })
    }

    /// Is this as new as asked for?
    fn is_met(&self, consistency: &Consistency, current: &Current) -> bool {
        let young = |asked| current.fresh_as_of.is_some_and(|moment| moment.elapsed() <= asked);
        consistency.at_least.is_none_or(|asked| current.view.applied >= asked)
            && consistency.max_staleness.is_none_or(|asked| young(asked) && self.progress.stale().is_none())
    }

    /// Why there is no view, after waiting for one.
    fn unmet(&self, consistency: &Consistency, waited: Duration) -> NoView {
        let current = self.serving().map(|serving| Current::of(serving, &self.progress));
        let applied = current.as_ref().map_or(Lsn::ZERO, |current| current.view.applied);
        match (consistency.at_least, consistency.max_staleness) {
            (Some(asked), _) if applied < asked => NoView::TimedOut { applied, asked, waited },
            (_, Some(asked)) => {
                let follows = self.progress.stale().is_none();
                let moment = current.and_then(|current| current.fresh_as_of).filter(|_| follows);
                NoView::TooOld { age: moment.map(|moment| moment.elapsed()), asked, waited }
            }
            // It came at the last moment.
            (asked, None) => NoView::TimedOut { applied, asked: asked.unwrap_or_default(), waited },
        }
    }

    /// Ends when something that answers is as new as asked for. Cancel-safe.
    async fn met(&self, consistency: &Consistency) -> Current {
        let (mut replaced, mut heard) = (self.replaced.subscribe(), self.progress.heard());
        loop {
            // Seen before the look: what changes behind it wakes us.
            replaced.borrow_and_update();
            heard.borrow_and_update();
            let serving = self.serving();
            let mut applied = serving.as_ref().map(|serving| serving.engine.applied());
            applied.iter_mut().for_each(|applied| drop(applied.borrow_and_update()));
            let current = serving.map(|serving| Current::of(serving, &self.progress));
            if let Some(current) = current.filter(|current| self.is_met(consistency, current)) {
                return current;
            }
            self.progress.nudge();
            let went_on = async {
                // An engine that ends is replaced.
                let Some(applied) = &mut applied else { return std::future::pending().await };
                if applied.changed().await.is_err() {
                    std::future::pending().await
                }
            };
            tokio::select! {
                _ = replaced.changed() => {}
                _ = heard.changed() => {}
                () = went_on => {}
                // What was asked of the source may be lost.
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
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
