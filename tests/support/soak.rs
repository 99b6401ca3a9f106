//! The frame of the long suites: seed and length from the environment, rounds with a seed each, one JSON report in the end.

use serde_json::{Map, Value as Json, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Random numbers that a seed gives again (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len() as u64) as usize]
    }
}

/// A long suite under way.
pub struct Soak {
    suite: &'static str,
    seed: u64,
    rounds: u64,
    until: Option<Instant>,
    done: u64,
    failures: Vec<String>,
    facts: Map<String, Json>,
    started: Instant,
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

impl Soak {
    /// A suite of `rounds` rounds unless RUVECTOR_SOAK_ROUNDS or RUVECTOR_SOAK_MINUTES say otherwise; every round has a
    /// seed of its own that follows from RUVECTOR_SOAK_SEED, which is printed.
    pub fn new(suite: &'static str, rounds: u64) -> Soak {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
        let seed = number("RUVECTOR_SOAK_SEED").unwrap_or_else(now);
        let minutes = number("RUVECTOR_SOAK_MINUTES");
        println!("{suite}: --seed {seed}");
        Soak {
            suite,
            seed,
            rounds: number("RUVECTOR_SOAK_ROUNDS").unwrap_or(if minutes.is_some() { u64::MAX } else { rounds }),
            until: minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes)),
            done: 0,
            failures: Vec::new(),
            facts: Map::new(),
            started: Instant::now(),
        }
    }

    /// The seed of the next round; `None` when it was enough. The first round has the suite's own seed, so that a failed
    /// round is run again by `--rounds 1 --seed` and what was printed for it.
    pub fn next_round(&mut self) -> Option<u64> {
        if self.done >= self.rounds || self.until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        let seed = if self.done == 0 { self.seed } else { Random(self.seed.wrapping_add(self.done)).next() };
        self.done += 1;
        Some(seed)
    }

    /// Number of the round under way, from 1.
    pub fn round(&self) -> u64 {
        self.done
    }

    /// Runs a round; a panic in it is a failure that is printed with the seed, and the suite goes on.
    pub fn run(&mut self, seed: u64, what: &str, round: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(round)).is_err() {
            let again = format!("{what}: scripts/soak.sh {} --rounds 1 --seed {seed}", self.suite);
            println!("FAILED {again}");
            self.failures.push(again);
        }
    }

    /// Something the report also tells.
    pub fn fact(&mut self, name: &str, value: impl Into<Json>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// Prints the report, as one line of JSON, and fails the test if a round failed.
    pub fn finish(self) {
        let mut report = json!({
            "suite": self.suite,
            "rounds": self.done,
            "failed": self.failures.len(),
            "seed": self.seed,
            "seconds": self.started.elapsed().as_secs(),
        });
        report.as_object_mut().expect("an object").extend(self.facts);
        if !self.failures.is_empty() {
            report["failures"] = json!(self.failures);
        }
        println!("{report}");
        if let Ok(path) = std::env::var("RUVECTOR_SOAK_REPORT") {
            std::fs::write(&path, format!("{report}\n")).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        assert!(self.failures.is_empty(), "{} of {} rounds failed", self.failures.len(), self.done);
    }
}
