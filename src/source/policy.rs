//! What to do after an error: one table from SQLSTATE to policy, one place for pauses. Never decided by message text.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// What follows an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The same again, after a pause: it passes by itself.
    Retry,
    /// What we believed of slot, publication or server no longer holds: connect and ask the start decision.
    AskAgain,
    /// A person must change something.
    Refuse {
        /// What.
        remedy: &'static str,
    },
}

/// The table. A code of five characters first, then its class, the first two.
const TABLE: &[(&str, Policy)] = &[
    // The connection, and a server that is starting, stopping or full.
    ("08", Policy::Retry),
    ("53", Policy::Retry),
    ("57", Policy::Retry),
    ("57P04", Policy::Refuse { remedy: "the database was dropped: correct source.dsn" }),
    // Conflicts, lock time-outs, a slot that another walsender still holds, idle time-outs.
    ("40", Policy::Retry),
    ("55", Policy::Retry),
    ("25", Policy::Retry),
    // Trouble inside the server, and what poolers and proxies say while they wake one up.
    ("58", Policy::Retry),
    ("XX", Policy::Retry),
    ("XX001", Policy::Refuse { remedy: "the source reports damaged data: see its log" }),
    ("XX002", Policy::Refuse { remedy: "the source reports a damaged index: see its log" }),
    // The slot is lost or was invalidated; the slot or the publication is missing; the server is a standby by now.
    ("55000", Policy::AskAgain),
    ("42704", Policy::AskAgain),
    ("0A000", Policy::AskAgain),
    (
        "28",
        Policy::Refuse {
            remedy: "check user and password in source.dsn (or the password file, or source.password_command), and that \
                     pg_hba.conf lets this role in from here, with this kind of encryption, also for replication",
        },
    ),
    ("3D000", Policy::Refuse { remedy: "correct the database in source.dsn" }),
    (
        "42501",
        Policy::Refuse {
            remedy: "give the role what it needs: ALTER ROLE ... REPLICATION (on RDS and Aurora GRANT rds_replication \
                     TO ...), GRANT SELECT on the tables, GRANT USAGE on their schemas; `ruvector doctor` prints the SQL",
        },
    ),
];

const OTHER: Policy = Policy::Refuse { remedy: "see the source's log" };

/// The policy for an error with this SQLSTATE.
pub fn of_sqlstate(code: &str) -> Policy {
    let find = |wanted: &str| TABLE.iter().find(|(key, _)| *key == wanted).map(|(_, policy)| *policy);
    find(code).or_else(|| find(code.get(..2)?)).unwrap_or(OTHER)
}

impl Policy {
    /// May the same thing work later without anybody's help?
    pub fn is_transient(self) -> bool {
        !matches!(self, Policy::Refuse { .. })
    }

    /// The first and the longest pause before another attempt, where there is one.
    fn pauses(self) -> (Duration, Duration) {
        match self {
            Policy::Retry => (Duration::from_millis(100), Duration::from_secs(10)),
            Policy::AskAgain => (Duration::from_millis(100), Duration::from_secs(5)),
            // Somebody is at it meanwhile; a server counts wrong passwords.
            Policy::Refuse { .. } => (Duration::from_secs(1), Duration::from_secs(30)),
        }
    }
}

/// Pauses between attempts: they double, each with its share of chance.
#[derive(Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The pause after one more failure: half to all of the step, so that many services do not come back at once.
    pub fn next(&mut self, policy: Policy) -> Duration {
        let step = step(policy, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        // A hasher's keys are the system's random numbers.
        let chance = RandomState::new().hash_one(self.attempts) as f64 / u64::MAX as f64;
        step.mul_f64(0.5 + chance / 2.0)
    }

    /// It worked for a while: begin anew.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

fn step(policy: Policy, attempts: u32) -> Duration {
    let (first, longest) = policy.pauses();
    first.saturating_mul(1 << attempts.min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_of_each_class() {
        let name = |policy| match policy {
            Policy::Retry => "retry",
            Policy::AskAgain => "ask",
            Policy::Refuse { .. } => "refuse",
        };
        let cases = [
            ("08006", "connection failure", "retry"),
            ("08P01", "protocol violation", "retry"),
            ("53300", "too many connections", "retry"),
            ("53100", "disk full", "retry"),
            ("57P01", "admin shutdown", "retry"),
            ("57P02", "crash shutdown", "retry"),
            ("57P03", "cannot connect now", "retry"),
            ("57P04", "database dropped", "refuse"),
            ("57014", "query cancelled", "retry"),
            ("40001", "serialization failure", "retry"),
            ("55006", "slot in use", "retry"),
            ("55P03", "lock not available", "retry"),
            ("25P03", "idle in transaction", "retry"),
            ("25006", "read-only transaction", "retry"),
            ("58P01", "a WAL file is missing", "retry"),
            ("XX000", "internal error", "retry"),
            ("XX001", "data corrupted", "refuse"),
            ("55000", "slot lost or invalidated", "ask"),
            ("42704", "slot or publication missing", "ask"),
            ("0A000", "not on a standby", "ask"),
            ("28000", "no line in pg_hba.conf", "refuse"),
            ("28P01", "wrong password", "refuse"),
            ("3D000", "no such database", "refuse"),
            ("42501", "no privilege", "refuse"),
            ("42601", "syntax error", "refuse"),
            ("22P02", "bad value", "refuse"),
            ("", "nothing", "refuse"),
            ("ü", "nonsense", "refuse"),
        ];
        for (code, what, expected) in cases {
            assert_eq!(name(of_sqlstate(code)), expected, "{code} {what}");
        }
    }

    #[test]
    fn every_refusal_has_a_remedy() {
        for (code, policy) in TABLE {
            if let Policy::Refuse { remedy } = policy {
                assert!(!remedy.is_empty(), "{code}");
            }
        }
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_differ() {
        let mut backoff = Backoff::default();
        for attempt in 0..40 {
            let pause = backoff.next(Policy::Retry);
            let step = step(Policy::Retry, attempt);
            assert!(pause >= step / 2 && pause <= step, "{attempt}: {pause:?} of {step:?}");
        }
        assert_eq!(step(Policy::Retry, 0), Duration::from_millis(100));
        assert_eq!(step(Policy::Retry, 3), Duration::from_millis(800));
        assert_eq!(step(Policy::Retry, u32::MAX), Duration::from_secs(10));
        assert_eq!(step(OTHER, 0), Duration::from_secs(1));
        backoff.reset();
        assert!(backoff.next(Policy::AskAgain) <= Duration::from_millis(100));
        let pauses: Vec<_> = (0..8).map(|_| Backoff::default().next(Policy::Retry)).collect();
        assert!(pauses.windows(2).any(|pair| pair[0] != pair[1]), "{pauses:?}");
    }
}
