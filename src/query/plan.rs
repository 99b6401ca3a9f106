//! The choice of a plan: pure, with its reason.

use crate::engine::candidates::Method;

/// Up to so many rows are compared one by one: faster than a walk, and exact.
const SCAN_ROWS: f64 = 2_000.0;
/// With a filter, a scan compares only the rows that pass; a walk also visits those that do not.
const FILTERED_SCAN_ROWS: f64 = 10_000.0;
/// Below this share of passing rows a walk visits twenty rows for each it may return.
const FILTERED_SCAN_SHARE: f64 = 0.05;

/// What the choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct PlanFacts {
    /// Rows whose vectors can be found.
    pub live: usize,
    /// Estimated share of them that pass the filter; `None` without a filter.
    pub passing: Option<f64>,
    /// Rows wanted.
    pub limit: usize,
    /// Search width to use.
    pub ef: usize,
    /// The caller asked for the exact answer.
    pub exact: bool,
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

/// Chooses.
pub fn choose(facts: PlanFacts) -> Plan {
    let scan = |reason: String| Plan { method: Method::Scan, name: "exact", reason };
    let live = facts.live as f64;
    if facts.exact {
        return scan("asked for".into());
    }
    if live <= SCAN_ROWS {
        return scan(format!("{} rows", facts.live));
    }
    // A walk that has to return a large part of all rows visits nearly all of them.
    if facts.limit as f64 > live / 4.0 {
        return scan(format!("{} of {} rows wanted", facts.limit, facts.live));
    }
    let ef = facts.ef.max(facts.limit);
    let walk = |name, reason| Plan { method: Method::Walk { ef }, name, reason };
    match facts.passing {
        None => walk("hnsw", format!("ef {ef} over {} rows", facts.live)),
        Some(share) if share * live <= FILTERED_SCAN_ROWS || share < FILTERED_SCAN_SHARE => {
            scan(format!("about {:.0} of {} rows pass the filter", share * live, facts.live))
        }
        Some(share) => {
            walk("hnsw+filter", format!("ef {ef}, about {:.0} % of {} rows pass", share * 100.0, facts.live))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_follows_from_counts() {
        let facts = PlanFacts { live: 1_000_000, passing: None, limit: 10, ef: 100, exact: false };
        let name = |change: fn(&mut PlanFacts)| {
            let mut facts = facts;
            change(&mut facts);
            choose(facts).name
        };
        assert_eq!(name(|_| ()), "hnsw");
        assert_eq!(name(|f| f.exact = true), "exact");
        assert_eq!(name(|f| f.live = 2_000), "exact");
        assert_eq!(name(|f| f.live = 0), "exact");
        assert_eq!(name(|f| f.limit = 300_000), "exact");
        assert_eq!(name(|f| f.passing = Some(0.5)), "hnsw+filter");
        assert_eq!(name(|f| f.passing = Some(0.01)), "exact");
        assert_eq!(name(|f| (f.live, f.passing) = (50_000, Some(0.1))), "exact");
        assert_eq!(choose(PlanFacts { limit: 500, ..facts }).method, Method::Walk { ef: 500 });
    }
}
