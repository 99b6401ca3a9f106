//! The choice of a plan: pure, with its reason.

use crate::engine::candidates::{Method, WALK_COST};
use crate::engine::hnsw::{ROWS_PER_EF, usual_lists};
use crate::model::IndexKind;

/// Distances of a walk: so many on its way down, and so many for each candidate it keeps or rejects. Measured with `bench
/// filtered` on 50,000 texts, within a tenth from 64 to 640 candidates; a walk that turns out worse is given up.
const DESCENT: f64 = 300.0;
const PER_CANDIDATE: f64 = 10.0;

/// What the choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct PlanFacts {
    /// Rows whose vectors can be found.
    pub live: usize,
    /// How many of them pass the filter; `None` without a filter.
    pub passing: Option<usize>,
    /// Graphs to walk.
    pub segments: usize,
    /// Rows wanted.
    pub limit: usize,
    /// Search width to use.
    pub ef: usize,
    /// There are codes to compare.
    pub coded: bool,
    /// All within a distance are wanted: a scan is to be a proof.
    pub ranged: bool,
    /// The caller asked for the exact answer.
    pub exact: bool,
    /// The way to the rows.
    pub index: IndexKind,
}

/// The choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How the index is searched.
    pub method: Method,
    /// Its name in answers and metrics.
    pub name: &'static str,
    /// Why.
    pub reason: String,
}

/// Chooses what costs less: comparing with every row that passes, or a walk through the others too.
pub fn choose(facts: PlanFacts) -> Plan {
    let PlanFacts { live, passing, segments, limit, ef, coded, ranged, exact, index } = facts;
    let proof = |reason: String| Plan { method: Method::Exact, name: "exact", reason };
    if exact {
        return proof("asked for".into());
    }
    let passes = passing.unwrap_or(live);
    let rows = if passing.is_some() { format!("{passes} of {live} rows pass") } else { format!("{live} rows") };
    let ef = ef.max(limit);
    // To keep `ef` candidates that pass, a walk sees as many more as the filter is selective.
    let kept = ef as f64 * live as f64 / passes.max(1) as f64;
    let segments = segments.max(1) as f64;
    let walk = match index {
        IndexKind::Hnsw => (DESCENT + PER_CANDIDATE * kept) * segments * WALK_COST,
        // Of the rows of a list only those that pass are compared, until enough were met and enough of them pass.
        IndexKind::Ivfflat => {
            let compared = (ef * ROWS_PER_EF) as f64 * passes as f64 / live.max(1) as f64;
            (usual_lists(live) as f64 + compared.max(ef as f64)) * segments
        }
        IndexKind::Flat => f64::INFINITY,
    };
    if passes as f64 <= walk {
        return if coded && !ranged { Plan { method: Method::Scan, name: "scan", reason: rows } } else { proof(rows) };
    }
    let name = match (index, passing.is_some()) {
        (IndexKind::Ivfflat, false) => "ivfflat",
        (IndexKind::Ivfflat, true) => "ivfflat+filter",
        (_, false) => "hnsw",
        (_, true) => "hnsw+filter",
    };
    Plan { method: Method::Walk { ef }, name, reason: format!("ef {ef}, {rows}") }
}

/// The plan of a column that has no graph and no codes.
pub fn flat(live: usize, passing: Option<usize>) -> Plan {
    let rows = passing.map_or(format!("{live} rows"), |passes| format!("{passes} of {live} rows pass"));
    Plan { method: Method::Exact, name: "exact", reason: format!("sparse vectors are all compared, {rows}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_follows_from_counts() {
        let facts = PlanFacts {
            live: 1_000_000,
            passing: None,
            segments: 1,
            limit: 10,
            ef: 100,
            coded: true,
            ranged: false,
            exact: false,
            index: IndexKind::Hnsw,
        };
        let name = |change: fn(&mut PlanFacts)| {
            let mut facts = facts;
            change(&mut facts);
            choose(facts).name
        };
        assert_eq!(name(|_| ()), "hnsw");
        assert_eq!(name(|f| f.exact = true), "exact");
        assert_eq!(name(|f| f.live = 2_000), "scan");
        assert_eq!(name(|f| (f.live, f.coded) = (2_000, false)), "exact", "there is nothing else to compare");
        assert_eq!(name(|f| (f.live, f.ranged) = (2_000, true)), "exact", "that no row is within needs a proof");
        assert_eq!(name(|f| f.live = 0), "scan");
        assert_eq!(name(|f| f.limit = 300_000), "scan");
        assert_eq!(name(|f| f.passing = Some(500_000)), "hnsw+filter");
        assert_eq!(name(|f| f.passing = Some(100_000)), "hnsw+filter");
        assert_eq!(name(|f| f.passing = Some(10_000)), "scan");
        assert_eq!(name(|f| f.passing = Some(0)), "scan");
        assert_eq!(name(|f| (f.live, f.passing) = (50_000, Some(5_000))), "scan");
        assert_eq!(name(|f| (f.passing, f.segments) = (Some(100_000), 8)), "scan", "every graph is walked");
        assert_eq!(choose(PlanFacts { limit: 500, ..facts }).method, Method::Walk { ef: 500 });
    }
}
