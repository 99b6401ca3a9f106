//! How much of the source's disk our slots may hold: the decision, pure, and what is shown of it. The measuring and the
//! doing are the node's.

use crate::source::slots::{Measured, Session, Transaction};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What our slots may cost the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// WAL kept for a slot, bytes.
    pub bytes: Option<u64>,
    /// How long a slot may hold WAL without anything being confirmed.
    pub time: Option<Duration>,
}

/// The budgets as metrics call them.
pub const BUDGETS: [&str; 2] = ["bytes", "time"];

/// What a budget says of one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Level {
    /// All is well.
    Well,
    /// Half is spent: somebody should know.
    Half {
        /// What is spent of what.
        what: String,
    },
    /// It is spent: the slot has to go before the source's disk does.
    Spent {
        /// Which budget: `bytes` or `time`.
        which: &'static str,
        /// What is spent of what.
        what: String,
    },
}

const MIB: f64 = 1024.0 * 1024.0;

/// Judges what a slot holds. `stuck` is for how long nothing was confirmed although there was something.
pub fn judge(budget: &Budget, slot: &str, retained: u64, stuck: Duration) -> Level {
    let bytes = budget.bytes.map(|most| {
        let what =
            format!("{:.1} of {:.1} MiB of WAL are kept for slot {slot}", retained as f64 / MIB, most as f64 / MIB);
        ("bytes", retained as f64 / most as f64, what)
    });
    let time = budget.time.map(|most| {
        let what = format!("slot {slot} has confirmed nothing for {} of {} s", stuck.as_secs(), most.as_secs());
        ("time", stuck.as_secs_f64() / most.as_secs_f64(), what)
    });
    let worst = [bytes, time].into_iter().flatten().max_by(|a, b| a.1.total_cmp(&b.1));
    match worst {
        Some((which, share, what)) if share >= 1.0 => Level::Spent { which, what },
        Some((_, share, what)) if share >= 0.5 => Level::Half { what },
        _ => Level::Well,
    }
}

/// Little is left before the server gives the slot up by itself (`max_slot_wal_keep_size`), if so: what is left of what.
pub fn server_limit_near(slot: &Measured) -> Option<String> {
    let (safe, kept) = (slot.safe_wal_bytes?.max(0), slot.retained_wal_bytes?.max(0));
    (safe < kept / 4).then(|| {
        let (safe, kept, name) = (safe as f64 / MIB, kept as f64 / MIB, &slot.name);
        format!("{safe:.1} MiB of WAL may be written before the server gives slot {name} up; it keeps {kept:.1} MiB")
    })
}

/// Why a slot keeps WAL, as far as it can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Cause {
    /// Somebody's transaction is open. Our slot is one of those that it keeps back.
    Transaction {
        /// Which.
        transaction: Transaction,
    },
    /// What is sent is not confirmed: our disk, our intake, or a transaction too large.
    Behind,
}

impl Cause {
    /// Most of what is kept was confirmed long ago: then it is not us.
    pub fn of(slot: &Measured, oldest: Option<&Transaction>) -> Cause {
        let (kept, lag) = (slot.retained_wal_bytes.unwrap_or(0), slot.confirmed_lag_bytes.unwrap_or(0));
        match oldest {
            Some(transaction) if lag < kept / 2 => Cause::Transaction { transaction: transaction.clone() },
            _ => Cause::Behind,
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cause::Transaction { transaction } => {
                write!(f, "a transaction of {} is open", transaction.whose)?;
                transaction.open_s.iter().try_for_each(|seconds| write!(f, " since {seconds} s"))
            }
            Cause::Behind => write!(f, "this service is behind"),
        }
    }
}

/// What the supervisor may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Follow, and copy where need be.
    Follow,
    /// Let go of the slot: it is being dropped.
    GiveUp {
        /// Why.
        reason: String,
    },
    /// The slot is dropped. Begin no new copy yet.
    Pause {
        /// Why it was dropped.
        reason: String,
    },
}

impl Verdict {
    /// Why nothing may be followed now, if so.
    pub fn against(&self) -> Option<&str> {
        match self {
            Verdict::Follow => None,
            Verdict::GiveUp { reason } | Verdict::Pause { reason } => Some(reason),
        }
    }
}

/// Pauses between a slot given up and the next copy: a budget that does not suffice must not mean copying for ever.
#[derive(Debug)]
pub struct Pauses {
    first: Duration,
    given_up: u32,
    last: Option<Instant>,
}

/// The longest of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);

impl Pauses {
    /// They begin with this one.
    pub fn new(first: Duration) -> Pauses {
        Pauses { first, given_up: 0, last: None }
    }

    fn step(&self) -> Duration {
        self.first.saturating_mul(1 << self.given_up.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
    }

    /// One more was given up. It was long ago that the last one was: then they begin anew.
    pub fn give_up(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now.duration_since(last) > LONGEST_PAUSE + self.step()) {
            self.given_up = 0;
        }
        (self.given_up, self.last) = (self.given_up.saturating_add(1), Some(now));
    }

    /// Slots given up without a long peace between.
    pub fn given_up(&self) -> u32 {
        self.given_up
    }

    /// When the next copy may begin: after the pause; a quarter of it is enough where the cause is known to be gone.
    pub fn left(&self, now: Instant, cause_gone: bool) -> Duration {
        let Some(last) = self.last else { return Duration::ZERO };
        let pause = if cause_gone { self.step() / 4 } else { self.step() };
        (last + pause).saturating_duration_since(now)
    }
}

/// How fast something grows, over the last minutes.
#[derive(Debug, Default)]
pub struct Trend {
    samples: VecDeque<(Instant, u64)>,
}

/// Looked at for the rate.
const TREND: Duration = Duration::from_secs(120);

impl Trend {
    /// One more sample.
    pub fn add(&mut self, at: Instant, value: u64) {
        while self.samples.front().is_some_and(|(first, _)| at.duration_since(*first) > TREND) {
            self.samples.pop_front();
        }
        // What fell starts anew: the slot moved on, and what was before says nothing of what comes.
        if self.samples.back().is_some_and(|(_, last)| *last > value) {
            self.samples.clear();
        }
        self.samples.push_back((at, value));
    }

    /// Seconds until it is at `limit`, where it grows.
    pub fn seconds_until(&self, limit: u64) -> Option<f64> {
        let ((from, low), (to, high)) = (self.samples.front()?, self.samples.back()?);
        let rate = high.saturating_sub(*low) as f64 / to.duration_since(*from).as_secs_f64();
        (rate.is_finite() && rate > 0.0).then(|| limit.saturating_sub(*high) as f64 / rate)
    }
}

/// For how long a slot has confirmed nothing although there was something to confirm.
#[derive(Debug, Default)]
pub struct Stuck {
    since: Option<(Option<crate::model::Lsn>, Instant)>,
}

impl Stuck {
    /// One more look at it.
    pub fn look(&mut self, at: Instant, slot: &Measured) -> Duration {
        let lag = slot.confirmed_lag_bytes.unwrap_or(0);
        match self.since {
            Some((confirmed, since)) if confirmed == slot.confirmed && lag > 0 => at.duration_since(since),
            _ => {
                self.since = Some((slot.confirmed, at));
                Duration::ZERO
            }
        }
    }
}

/// Less WAL than this is not worth a heartbeat.
const HEARTBEAT_BYTES: i64 = 1 << 20;

/// Is a heartbeat called for? Only where the position does not advance although the WAL grows, and not all the time.
pub fn heartbeat_due(after: Duration, lag: i64, stuck: Duration, since_last: Option<Duration>) -> bool {
    lag >= HEARTBEAT_BYTES && stuck >= after && since_last.is_none_or(|since| since >= after)
}

/// Who may use the slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Holding {
    /// Not asked yet, or the connection that would tell is away.
    Unknown {
        /// Why.
        error: String,
    },
    /// This service.
    Ours,
    /// Another one; this one waits.
    HeldBy {
        /// Who.
        holder: Session,
    },
}

/// The heartbeat, as shown.
#[derive(Debug, Clone, Default, Serialize, schemars::JsonSchema)]
pub struct Heartbeat {
    /// Seconds without progress after which one is written; 0 is never.
    pub after_s: u64,
    /// Written since the start. None is the usual case: keepalives suffice.
    pub written: u64,
    /// Why the last one could not be written.
    pub refused: Option<String>,
}

/// What is shown of our slots on the source.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
#[schemars(rename = "Slots")]
pub struct Shown {
    /// Who may use the slot.
    pub holder: Holding,
    /// Our slots as last measured.
    pub slots: Vec<Measured>,
    /// Seconds since then.
    #[serde(skip)]
    pub measured: Option<Instant>,
    /// WAL a slot may keep, bytes; 0 is without limit.
    pub budget_bytes: u64,
    /// What is left of it for the slot that keeps most.
    pub budget_left_bytes: Option<u64>,
    /// When it is spent at the rate of the last minutes, in seconds; absent where it does not grow.
    pub budget_spent_in_s: Option<f64>,
    /// The oldest transaction that writes: it keeps slots back.
    pub oldest_transaction: Option<Transaction>,
    /// Half of a budget is spent.
    pub warning: Option<String>,
    /// Slots given up since the start.
    pub given_up: u32,
    /// Why the last one was given up; until it is whole again.
    pub given_up_reason: Option<String>,
    /// Seconds until a new copy may begin.
    pub pause_left_s: Option<u64>,
    /// The heartbeat.
    pub heartbeat: Heartbeat,
}

/// Shared by the guard (writer) and everybody who reports.
#[derive(Debug)]
pub struct Protection(Mutex<Shown>);

impl Default for Protection {
    fn default() -> Self {
        Protection(Mutex::new(Shown {
            holder: Holding::Unknown { error: "not asked yet".into() },
            slots: Vec::new(),
            measured: None,
            budget_bytes: 0,
            budget_left_bytes: None,
            budget_spent_in_s: None,
            oldest_transaction: None,
            warning: None,
            given_up: 0,
            given_up_reason: None,
            pause_left_s: None,
            heartbeat: Heartbeat::default(),
        }))
    }
}

impl Protection {
    /// As it is now.
    pub fn shown(&self) -> Shown {
        self.0.lock().clone()
    }

    /// Changes what is shown.
    pub fn change(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.0.lock());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Lsn;

    fn slot(retained: i64, lag: i64, confirmed: u64) -> Measured {
        Measured {
            name: "s".into(),
            plugin: Some("pgoutput".into()),
            database: None,
            holder: None,
            wal_status: Some("reserved".into()),
            safe_wal_bytes: None,
            retained_wal_bytes: Some(retained),
            confirmed_lag_bytes: Some(lag),
            confirmed: Some(Lsn(confirmed)),
            invalidation_reason: None,
            failover: None,
            inactive_s: None,
        }
    }

    #[test]
    fn budgets_warn_at_half_and_are_spent_at_all() {
        let name = |level| match level {
            Level::Well => "well",
            Level::Half { .. } => "half",
            Level::Spent { which, .. } => which,
        };
        let s = Duration::from_secs;
        let both = Budget { bytes: Some(1000), time: Some(s(100)) };
        let bytes = Budget { time: None, ..both };
        let cases = [
            (both, 0, s(0), "well"),
            (both, 499, s(49), "well"),
            (both, 500, s(0), "half"),
            (both, 0, s(50), "half"),
            (both, 999, s(99), "half"),
            (both, 1000, s(0), "bytes"),
            (both, 0, s(100), "time"),
            (both, 2000, s(101), "bytes"),
            (bytes, 0, s(1_000_000), "well"),
            (Budget::default(), u64::MAX, s(1_000_000), "well"),
        ];
        for (budget, retained, stuck, expected) in cases {
            assert_eq!(name(judge(&budget, "s", retained, stuck)), expected, "{budget:?} {retained} {stuck:?}");
        }
    }

    #[test]
    fn the_servers_own_limit_is_near_where_less_than_a_fifth_is_left() {
        let near = |safe, kept| server_limit_near(&Measured { safe_wal_bytes: safe, ..slot(kept, 0, 1) });
        assert!(near(None, 1 << 40).is_none(), "without a limit");
        assert!(near(Some(100), 400).is_none() && near(Some(0), 0).is_none());
        assert!(near(Some(99), 400).is_some() && near(Some(-5), 400).is_some());
    }

    #[test]
    fn the_cause_is_a_transaction_only_where_we_have_kept_up() {
        let open = Transaction { xid: "7".into(), whose: "PID 1 (app)".into(), open_s: None };
        assert_eq!(Cause::of(&slot(1000, 900, 1), Some(&open)), Cause::Behind);
        assert_eq!(Cause::of(&slot(1000, 10, 1), None), Cause::Behind);
        let cause = Cause::of(&slot(1000, 10, 1), Some(&open));
        assert_eq!(cause.to_string(), "a transaction of PID 1 (app) is open");
    }

    #[test]
    fn pauses_grow_and_a_long_peace_ends_them() {
        let (start, s) = (Instant::now(), Duration::from_secs);
        let mut pauses = Pauses::new(s(60));
        assert_eq!(pauses.left(start, false), Duration::ZERO);
        for expected in [60, 120, 240] {
            pauses.give_up(start);
            assert_eq!(pauses.left(start, false), s(expected));
            assert_eq!(pauses.left(start, true), s(expected / 4));
        }
        assert_eq!(pauses.left(start + s(100), false), s(140));
        (0..40).for_each(|_| pauses.give_up(start));
        assert_eq!(pauses.left(start, false), LONGEST_PAUSE);
        pauses.give_up(start + 3 * LONGEST_PAUSE);
        assert_eq!((pauses.given_up(), pauses.left(start + 3 * LONGEST_PAUSE, false)), (1, s(60)));
    }

    #[test]
    fn what_grows_has_an_end_and_what_does_not_has_none() {
        let (start, s) = (Instant::now(), Duration::from_secs);
        let mut trend = Trend::default();
        assert_eq!(trend.seconds_until(100), None);
        trend.add(start, 10);
        assert_eq!(trend.seconds_until(100), None);
        trend.add(start + s(10), 20);
        assert_eq!(trend.seconds_until(100), Some(80.0));
        trend.add(start + s(20), 5);
        assert_eq!(trend.seconds_until(100), None, "it fell");
        trend.add(start + s(30), 5);
        assert_eq!(trend.seconds_until(100), None, "it stands");
    }

    #[test]
    fn a_heartbeat_is_for_what_does_not_move_by_itself() {
        let s = Duration::from_secs;
        let cases = [
            (HEARTBEAT_BYTES, s(10), None, true),
            (HEARTBEAT_BYTES - 1, s(1000), None, false),
            (HEARTBEAT_BYTES, s(9), None, false),
            (HEARTBEAT_BYTES, s(15), Some(s(5)), false),
            (HEARTBEAT_BYTES, s(20), Some(s(10)), true),
        ];
        for (lag, stuck, since_last, expected) in cases {
            assert_eq!(heartbeat_due(s(10), lag, stuck, since_last), expected, "{lag} {stuck:?} {since_last:?}");
        }
    }

    #[test]
    fn stuck_is_only_what_has_something_to_confirm() {
        let (start, s) = (Instant::now(), Duration::from_secs);
        let mut stuck = Stuck::default();
        assert_eq!(stuck.look(start, &slot(9, 9, 1)), Duration::ZERO);
        assert_eq!(stuck.look(start + s(5), &slot(9, 9, 1)), s(5));
        assert_eq!(stuck.look(start + s(6), &slot(9, 8, 2)), Duration::ZERO, "it moved");
        assert_eq!(stuck.look(start + s(16), &slot(9, 0, 2)), Duration::ZERO, "there is nothing");
        assert_eq!(stuck.look(start + s(20), &slot(9, 9, 2)), s(4));
    }
}
