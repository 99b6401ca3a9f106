//! Failures that come back: what the source sends is not understood, at the same position, again and again.
//!
//! Connecting again helps against a broken connection and against a fault that has passed, not against a message that is
//! sent again every time. Reading on behind it would lose what it said; so either everything is copied again, on a slot that
//! starts after it, or somebody has to look, and meanwhile the source is not asked for the same bytes ten times a minute.

use crate::model::Lsn;
use std::time::{Duration, Instant};

/// Identical failures after which connecting again is not believed in any more.
const BELIEVED: u32 = 5;
/// A copy is ordered at most so often: what comes back after one is in every transaction, and a copy does not mend it.
const COPY_EVERY: Duration = Duration::from_secs(6 * 60 * 60);
/// Pause between attempts when neither helps.
pub const LONG_PAUSE: Duration = Duration::from_secs(300);

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Connect again, after the usual pause.
    Retry,
    /// Copy everything again: the new slot starts behind what cannot be read.
    CopyAgain {
        /// Identical failures so far.
        failures: u32,
    },
    /// Say loudly that a person must look, and try again after [`LONG_PAUSE`].
    Wait {
        /// Identical failures so far.
        failures: u32,
    },
}

/// Counts them.
#[derive(Debug, Default)]
pub struct Poison {
    last: Option<(Lsn, String)>,
    failures: u32,
    copied: Option<Instant>,
}

impl Poison {
    /// Notes that following from `durable` ended in something that is not understood, and says what follows.
    pub fn note(&mut self, durable: Lsn, error: &str, now: Instant) -> Step {
        match &self.last {
            Some((at, text)) if *at == durable && text == error => self.failures += 1,
            _ => {
                self.last = Some((durable, error.to_owned()));
                self.failures = 1;
            }
        }
        let failures = self.failures;
        if failures < BELIEVED {
            return Step::Retry;
        }
        if self.copied.is_none_or(|at| now.saturating_duration_since(at) >= COPY_EVERY) {
            self.copied = Some(now);
            return Step::CopyAgain { failures };
        }
        Step::Wait { failures }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_at_the_same_position_is_not_retried_for_ever() {
        let (mut poison, now) = (Poison::default(), Instant::now());
        for _ in 1..BELIEVED {
            assert_eq!(poison.note(Lsn(7), "bad tag", now), Step::Retry);
        }
        assert_eq!(poison.note(Lsn(7), "bad tag", now), Step::CopyAgain { failures: BELIEVED });
        assert_eq!(poison.note(Lsn(7), "bad tag", now), Step::Wait { failures: BELIEVED + 1 }, "ordered already");
    }

    #[test]
    fn progress_and_other_failures_begin_anew() {
        let (mut poison, now) = (Poison::default(), Instant::now());
        for round in 0..20 {
            assert_eq!(poison.note(Lsn(round), "bad tag", now), Step::Retry, "the position moves");
        }
        for round in 0..20 {
            assert_eq!(poison.note(Lsn(7), &round.to_string(), now), Step::Retry, "it is another one each time");
        }
    }

    #[test]
    fn what_comes_back_after_a_copy_waits_for_somebody_and_not_for_ever() {
        let (mut poison, start) = (Poison::default(), Instant::now());
        let mut fail = |at: u64, now| (0..BELIEVED).map(|_| poison.note(Lsn(at), "bad tag", now)).last();
        assert_eq!(fail(7, start), Some(Step::CopyAgain { failures: BELIEVED }));
        let soon = start + COPY_EVERY / 2;
        assert_eq!(fail(900, soon), Some(Step::Wait { failures: BELIEVED }), "the new slot sends it as well");
        assert_eq!(fail(950, start + COPY_EVERY), Some(Step::CopyAgain { failures: BELIEVED }));
    }
}
