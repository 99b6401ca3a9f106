//! How far the replication has come: what the frontier, status and metrics read.

use crate::model::registration::Outcomes;
use crate::model::{CollectionId, Lsn};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, watch};

/// What the replication is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(tag = "phase", rename_all = "lowercase")]
pub enum Phase {
    /// Looking at the source.
    Starting,
    /// Following the stream.
    Streaming,
    /// Something of ours or of others has to come first; goes on by itself.
    Waiting {
        /// For what.
        reason: String,
    },
    /// The source is away; tried again by itself.
    Retrying {
        /// What went wrong last.
        error: String,
    },
    /// A person must look.
    Stopped {
        /// Why.
        reason: String,
    },
}

/// How far one collection's copy has come.
#[derive(Debug, Default)]
pub struct CopyStatus {
    /// Rows read.
    pub rows: AtomicU64,
    /// Heap pages read.
    pub pages_done: AtomicU64,
    /// Heap pages there are.
    pub pages_total: AtomicU64,
    began: Mutex<Option<Instant>>,
}

impl CopyStatus {
    /// A copy begins; an earlier one of this process counted here too.
    pub fn begin(&self) {
        self.rows.store(0, Ordering::Relaxed);
        self.pages_done.store(0, Ordering::Relaxed);
        *self.began.lock() = Some(Instant::now());
    }

    /// How many rows it will be, by what was read so far.
    pub fn rows_expected(&self) -> Option<f64> {
        let share = self.share();
        (share > 0.0).then(|| self.rows.load(Ordering::Relaxed) as f64 / share)
    }

    /// Seconds until all is read, at the speed so far.
    pub fn eta_s(&self) -> Option<f64> {
        let (share, began) = (self.share(), (*self.began.lock())?);
        (share > 0.0).then(|| began.elapsed().as_secs_f64() * (1.0 - share) / share)
    }

    /// The share that is read, 0 to 1.
    pub fn share(&self) -> f64 {
        let total = self.pages_total.load(Ordering::Relaxed).max(1);
        (self.pages_done.load(Ordering::Relaxed) as f64 / total as f64).min(1.0)
    }
}

/// A time at which the end of the source's WAL was known.
#[derive(Debug, Clone, Copy)]
struct Heard {
    wal_end: Lsn,
    at: Instant,
}

/// Samples kept; older ones are thinned out, which only makes staleness look larger.
const HEARD: usize = 64;

/// What was asked of the source is asked again after so long without an answer.
pub const ASK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Freshness {
    heard: VecDeque<Heard>,
    /// Everything the source had at this moment is applied.
    proven: Option<Instant>,
    /// The sender had sent everything there was at this moment, up to this position.
    caught_up: Option<Heard>,
}

/// Shared by the replication's tasks (writers) and everybody who reports.
#[derive(Debug)]
pub struct Progress {
    received: AtomicU64,
    source_end: AtomicU64,
    confirmed: AtomicU64,
    phase: Mutex<Phase>,
    stale: Mutex<Option<String>>,
    copies: Mutex<BTreeMap<CollectionId, Arc<CopyStatus>>>,
    freshness: Mutex<Freshness>,
    nudge: Notify,
    ask: Notify,
    /// When the source was asked because somebody waits, and nothing was heard since.
    asked: Mutex<Option<Instant>>,
    /// Counts what is heard.
    heard: watch::Sender<u64>,
    /// Collections somebody wants copied again.
    rebuilds: Mutex<BTreeSet<String>>,
    /// Configured collections that nothing answers for, with the reason.
    refused: Mutex<BTreeMap<String, String>>,
    /// Rows of the collections' tables by the source's own estimate.
    source_rows: Mutex<BTreeMap<String, u64>>,
    /// What became of what is registered by SQL.
    registrations: Mutex<Arc<Outcomes>>,
    /// Why no copy can be begun or continued, if so.
    copy_trouble: Mutex<Option<String>>,
    /// How often streaming began.
    streams: watch::Sender<u64>,
    /// A snapshot needs the slot to stay where it is.
    retained: Mutex<Option<Retention>>,
    /// The slot that is streamed from.
    slot: Mutex<String>,
}

/// The source must be able to send everything behind a position again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The slot that keeps it; others go on.
    pub slot: String,
    /// The position, and until when. Absent while a snapshot is made: nothing is confirmed.
    pub at: Option<(Lsn, SystemTime)>,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            received: AtomicU64::new(0),
            source_end: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            phase: Mutex::new(Phase::Starting),
            stale: Mutex::new(None),
            copies: Mutex::default(),
            freshness: Mutex::new(Freshness { heard: VecDeque::new(), proven: None, caught_up: None }),
            nudge: Notify::new(),
            ask: Notify::new(),
            asked: Mutex::new(None),
            heard: watch::Sender::new(0),
            rebuilds: Mutex::default(),
            refused: Mutex::default(),
            source_rows: Mutex::default(),
            registrations: Mutex::default(),
            copy_trouble: Mutex::default(),
            streams: watch::Sender::new(0),
            retained: Mutex::default(),
            slot: Mutex::default(),
        }
    }
}

impl Progress {
    /// Everything up to here was received.
    pub fn received(&self) -> Lsn {
        Lsn(self.received.load(Ordering::Relaxed))
    }

    pub(crate) fn set_received(&self, lsn: Lsn) {
        self.received.fetch_max(lsn.0, Ordering::Relaxed);
    }

    /// What the slot has confirmed: as it was when streaming began, or as was sent since.
    pub fn confirmed(&self) -> Lsn {
        Lsn(self.confirmed.load(Ordering::Relaxed))
    }

    pub(crate) fn set_confirmed(&self, lsn: Lsn) {
        self.confirmed.store(lsn.0, Ordering::Relaxed);
    }

    /// Streaming begins from this slot, which has confirmed so much.
    pub(crate) fn begin_slot(&self, slot: &str, confirmed: Lsn) {
        slot.clone_into(&mut self.slot.lock());
        self.set_confirmed(confirmed);
    }

    /// The slot that is streamed from, or was last.
    pub fn slot(&self) -> String {
        self.slot.lock().clone()
    }

    /// From now on this. What it was.
    pub fn retain(&self, retention: Option<Retention>) -> Option<Retention> {
        std::mem::replace(&mut *self.retained.lock(), retention)
    }

    /// What may be confirmed of `durable`. Zero is no position, and confirms nothing: a sender that is told of one that it
    /// sent long ago would wait for the rest when its server stops. Never less than the slot has confirmed: some versions of
    /// the server would take it, and then leave out changes at the next start.
    pub(crate) fn may_confirm(&self, durable: Lsn) -> Lsn {
        let confirmed = self.confirmed();
        let mut retained = self.retained.lock();
        // What is confirmed beyond a position cannot be kept for it any more.
        let over = |lsn: Lsn, until: SystemTime| until <= SystemTime::now() || lsn < confirmed;
        retained.take_if(|retained| retained.at.is_some_and(|(lsn, until)| over(lsn, until)));
        let ours = retained.as_ref().filter(|retained| retained.slot == *self.slot.lock());
        let most = match ours.map(|retained| retained.at) {
            None => durable,
            Some(None) => Lsn::ZERO,
            Some(Some((lsn, _))) if lsn <= durable && lsn > confirmed => lsn,
            Some(Some(_)) => Lsn::ZERO,
        };
        if most < confirmed { Lsn::ZERO } else { most }
    }

    /// The end of the source's WAL as last heard.
    pub fn source_end(&self) -> Lsn {
        Lsn(self.source_end.load(Ordering::Relaxed))
    }

    /// What the replication is doing.
    pub fn phase(&self) -> Phase {
        self.phase.lock().clone()
    }

    /// Says what the replication is doing.
    pub fn set_phase(&self, phase: Phase) {
        let streams = phase == Phase::Streaming;
        *self.phase.lock() = phase;
        if streams {
            self.streams.send_modify(|count| *count += 1);
        }
    }

    /// Changes each time that streaming begins: the source is back.
    pub fn streams(&self) -> watch::Receiver<u64> {
        self.streams.subscribe()
    }

    /// Configured collections that nothing answers for, because they cannot be copied: by name, with the reason.
    pub fn refused(&self) -> BTreeMap<String, String> {
        self.refused.lock().clone()
    }

    /// From now on these.
    pub fn set_refused(&self, refused: BTreeMap<String, String>) {
        *self.refused.lock() = refused;
    }

    /// How many rows a collection's table has, by the source's own estimate when its tables were last looked at. `None` where
    /// it was never analysed.
    pub fn source_rows(&self, collection: &str) -> Option<u64> {
        self.source_rows.lock().get(collection).copied()
    }

    /// Replaces all of them.
    pub fn set_source_rows(&self, rows: BTreeMap<String, u64>) {
        *self.source_rows.lock() = rows;
    }

    /// What became of the collections that are registered by SQL, as last looked at.
    pub fn registrations(&self) -> Arc<Outcomes> {
        self.registrations.lock().clone()
    }

    /// From now on this.
    pub fn set_registrations(&self, outcomes: Outcomes) {
        *self.registrations.lock() = Arc::new(outcomes);
    }

    /// Why no copy of a collection can be begun or continued, if so.
    pub fn copy_trouble(&self) -> Option<String> {
        self.copy_trouble.lock().clone()
    }

    /// Says so.
    pub fn set_copy_trouble(&self, trouble: Option<String>) {
        *self.copy_trouble.lock() = trouble;
    }

    /// When the end of the source's WAL was heard of last.
    pub fn last_heard(&self) -> Option<Instant> {
        self.freshness.lock().heard.back().map(|heard| heard.at)
    }

    /// Why answers may miss changes for longer than usual, if so.
    pub fn stale(&self) -> Option<String> {
        self.stale.lock().clone()
    }

    /// Says why answers may miss changes.
    pub fn set_stale(&self, reason: Option<String>) {
        *self.stale.lock() = reason;
    }

    /// A collection's copy.
    pub fn copy(&self, collection: CollectionId) -> Arc<CopyStatus> {
        self.copies.lock().entry(collection).or_default().clone()
    }

    /// The source's WAL ended at `wal_end` at the moment `at`.
    pub fn hear(&self, wal_end: Lsn, at: Instant) {
        self.source_end.fetch_max(wal_end.0, Ordering::Relaxed);
        let heard = &mut self.freshness.lock().heard;
        match heard.back_mut() {
            Some(last) if last.wal_end >= wal_end => last.at = at,
            _ => {
                if heard.len() == HEARD {
                    heard.remove(HEARD / 2);
                }
                heard.push_back(Heard { wal_end, at });
            }
        }
    }

    /// All there was to hear at one look at the source was heard: those who wait look again.
    pub(crate) fn tell_heard(&self) {
        *self.asked.lock() = None;
        self.heard.send_modify(|count| *count += 1);
    }

    /// Changes each time that the source was heard of.
    pub fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }

    /// The latest moment of which it is proven that everything the source had then is at or before `applied`.
    pub fn fresh_as_of(&self, applied: Lsn) -> Option<Instant> {
        let freshness = &mut *self.freshness.lock();
        while let Some(first) = freshness.heard.front().filter(|first| first.wal_end <= applied) {
            freshness.proven = freshness.proven.max(Some(first.at));
            if freshness.heard.len() == 1 {
                // Kept: the next keepalive at the same position renews its time.
                break;
            }
            freshness.heard.pop_front();
        }
        let caught_up = freshness.caught_up.filter(|caught_up| caught_up.wal_end <= applied);
        freshness.proven = freshness.proven.max(caught_up.map(|caught_up| caught_up.at));
        freshness.proven
    }

    /// The source's sender had sent all there was at the moment `at`, up to `sent`. That may be before the flushed end: a
    /// flush can stop in the middle of a record that no commit is behind, and stay there for as long as the source is idle.
    pub fn hear_caught_up(&self, sent: Lsn, at: Instant) {
        self.freshness.lock().caught_up = Some(Heard { wal_end: sent, at });
    }

    /// What was heard of the source so far is nothing to what answers from now on: positions may have begun anew.
    pub fn forget(&self) {
        *self.freshness.lock() = Freshness { heard: VecDeque::new(), proven: None, caught_up: None };
        self.source_end.store(0, Ordering::Relaxed);
        self.received.store(0, Ordering::Relaxed);
    }

    /// Somebody waits for a position or for news: the source is asked now instead of at the next tick, once for all who wait
    /// until it was heard of, or until it should have been.
    pub fn nudge(&self) {
        let mut asked = self.asked.lock();
        if asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
            *asked = Some(Instant::now());
            self.nudge.notify_one();
            self.ask.notify_one();
        }
    }

    /// Asks for a new copy of a collection; what it has answers until then.
    pub fn ask_rebuild(&self, collection: &str) {
        self.rebuilds.lock().insert(collection.to_owned());
    }

    /// The collections that were asked to be copied again since the last call.
    pub fn take_rebuilds(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.rebuilds.lock())
    }

    /// The stream is to send its status and to ask for one. Cancel-safe.
    pub(crate) async fn nudged(&self) {
        self.nudge.notified().await;
    }

    /// The source is to be asked for its position. Cancel-safe.
    pub(crate) async fn asked(&self) {
        self.ask.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn who_waits_together_asks_once_until_something_was_heard() {
        let progress = Progress::default();
        let asked = || (progress.nudged().now_or_never().is_some(), progress.asked().now_or_never().is_some());
        (0..1_000).for_each(|_| progress.nudge());
        assert_eq!((asked(), asked()), ((true, true), (false, false)));
        progress.nudge();
        assert_eq!(asked(), (false, false), "nothing was heard since");
        let mut heard = progress.heard();
        progress.tell_heard();
        assert!(heard.changed().now_or_never().is_some());
        progress.nudge();
        assert_eq!(asked(), (true, true));
        *progress.asked.lock() = Instant::now().checked_sub(ASK_AGAIN);
        progress.nudge();
        assert_eq!(asked(), (true, true), "what was asked is lost");
    }

    #[test]
    fn what_is_retained_is_confirmed_up_to_there_and_no_further() {
        let progress = Progress::default();
        let until = SystemTime::now() + Duration::from_secs(100);
        let retention = |slot: &str, at| Some(Retention { slot: slot.to_owned(), at });
        progress.begin_slot("ours", Lsn(5));
        assert_eq!(progress.may_confirm(Lsn(10)), Lsn(10));
        progress.set_confirmed(Lsn(10));
        assert_eq!(progress.may_confirm(Lsn(9)), Lsn::ZERO, "a slot is never told less than it has confirmed");
        progress.retain(retention("ours", None));
        assert_eq!(progress.may_confirm(Lsn(20)), Lsn::ZERO);
        progress.retain(retention("another", None));
        assert_eq!(progress.may_confirm(Lsn(20)), Lsn(20), "not of this slot");
        progress.retain(retention("ours", Some((Lsn(20), until))));
        assert_eq!(progress.may_confirm(Lsn(15)), Lsn::ZERO, "not durable yet");
        assert_eq!(progress.may_confirm(Lsn(30)), Lsn(20));
        progress.set_confirmed(Lsn(20));
        assert_eq!(progress.may_confirm(Lsn(30)), Lsn::ZERO);
        progress.retain(retention("ours", Some((Lsn(20), SystemTime::now()))));
        assert_eq!(progress.may_confirm(Lsn(30)), Lsn(30), "the time is over");
        progress.set_confirmed(Lsn(30));
        progress.retain(retention("ours", Some((Lsn(20), until))));
        assert_eq!(progress.may_confirm(Lsn(40)), Lsn(40), "what an earlier run promised is gone");
    }

    #[test]
    fn freshness_is_proven_by_what_was_heard_and_applied() {
        let progress = Progress::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(progress.fresh_as_of(Lsn(5)), None);
        progress.hear(Lsn(10), at(0));
        assert_eq!(progress.fresh_as_of(Lsn(5)), None, "nothing heard of is applied yet");
        progress.hear(Lsn(20), at(10));
        assert_eq!(progress.fresh_as_of(Lsn(15)), Some(at(0)));
        assert_eq!(progress.fresh_as_of(Lsn(20)), Some(at(10)));
        progress.hear(Lsn(20), at(30));
        assert_eq!(progress.fresh_as_of(Lsn(20)), Some(at(30)), "an idle source renews the proof");
        progress.hear(Lsn(30), at(40));
        assert_eq!(progress.fresh_as_of(Lsn(20)), Some(at(30)), "behind: the proof ages");
        progress.hear_caught_up(Lsn(21), at(50));
        assert_eq!(progress.fresh_as_of(Lsn(20)), Some(at(30)), "what was sent is not applied yet");
        assert_eq!(progress.fresh_as_of(Lsn(21)), Some(at(50)), "the flushed end is in the middle of a record");
        progress.forget();
        assert_eq!(progress.fresh_as_of(Lsn(21)), None);
        progress.hear(Lsn(7), at(60));
        assert_eq!(progress.fresh_as_of(Lsn(7)), Some(at(60)), "of a source that was put back");
    }
}
