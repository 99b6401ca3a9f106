//! Recall measured on the data itself: what the usual search finds of what a comparison with every row finds.

use crate::consistency::blocking;
use crate::consistency::recheck::Visibility;
use crate::model::{Hit, RecallReport, RecallRequest, Recheck, RowKey, SearchBy, SearchRequest, Shape};
use crate::query::resolve::{Resolved, check_numbers, check_state, collection, vector_column};
use crate::query::{Filling, Pinned, QueryError, QueryService};
use crate::telemetry::names;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Queries of one measurement.
const MAX_QUERIES: usize = 1_000;
/// Rows that each is to find.
const MAX_NEAREST: usize = 1_000;
/// Distances that the comparisons with every row may cost together.
const MAX_COMPARED: usize = 100_000_000;

impl<V: Visibility> QueryService<V> {
    /// Searches by each query twice on one view, and compares.
    pub async fn recall(&self, pinned: &Pinned, request: &RecallRequest) -> Result<RecallReport, QueryError> {
        let bad = |message: String| Err(QueryError::Recall(message));
        let asked = if request.queries.is_empty() { request.sample } else { request.queries.len() };
        if !(1..=MAX_QUERIES).contains(&asked) || !(1..=MAX_NEAREST).contains(&request.limit) {
            return bad(format!("1 to {MAX_QUERIES} queries for the 1 to {MAX_NEAREST} nearest rows are possible"));
        }
        let found = collection(&pinned.view, &request.collection)?;
        check_state(found, &request.consistency)?;
        let (column, index) = vector_column(found, request.using.as_deref())?;
        let (_, passing) = pinned.count(&request.collection, column, request.filter.as_ref())?;
        if passing.saturating_mul(asked) > MAX_COMPARED {
            return bad(format!(
                "{asked} queries x {passing} rows is more than {MAX_COMPARED} distances; ask for {} queries",
                MAX_COMPARED / passing
            ));
        }
        let queries = match request.queries.is_empty() {
            false => request.queries.clone(),
            true => {
                sample(pinned, request, column, index.rows.len(), passing)?.into_iter().map(SearchBy::Row).collect()
            }
        };
        let mut sums = Sums::default();
        for by in queries {
            let approximate = search(request, by.clone(), false);
            let exact = search(request, by, true);
            check_numbers(&approximate)?;
            let (hits, plan, took) = self.nearest(pinned, &approximate)?;
            let (truth, _, took_exact) = self.nearest(pinned, &exact)?;
            sums.add(&hits, &truth);
            *sums.plans.entry(plan).or_default() += 1;
            (sums.took, sums.took_exact) = (sums.took + took, sums.took_exact + took_exact);
            tokio::task::yield_now().await;
        }
        let Some(recall) = sums.recall() else {
            return bad("there are no rows to search by, or none to find".into());
        };
        if request.filter.is_none() {
            let labels = [("collection", request.collection.clone()), ("column", index.column.name.clone())];
            metrics::gauge!(names::RECALL_ESTIMATE, &labels).set(recall);
        }
        let each_us = |all: Duration| all.as_micros() as u64 / sums.queries.max(1);
        Ok(RecallReport {
            recall,
            worst: sums.worst,
            queries: sums.queries,
            limit: request.limit,
            rows: passing,
            plans: sums.plans.clone(),
            search_us: each_us(sums.took),
            exact_us: each_us(sums.took_exact),
            applied_lsn: pinned.applied(),
        })
    }

    /// The rows as indexed. Nobody uses them: they are not counted as found.
    fn nearest(
        &self,
        pinned: &Pinned,
        request: &SearchRequest,
    ) -> Result<(Vec<Hit>, &'static str, Duration), QueryError> {
        let started = Instant::now();
        let found = collection(&pinned.view, &request.collection)?;
        let answer = blocking(|| {
            let resolved = Resolved::new(&pinned.serving, found, request, self.options.default_ef)?;
            Filling::open(&resolved)?.finish(&resolved, &pinned.serving)
        });
        let answer = answer.inspect_err(|error| pinned.report(error))?;
        Ok((answer.hits, answer.stats.plan, started.elapsed()))
    }
}

fn search(request: &RecallRequest, by: SearchBy, exact: bool) -> SearchRequest {
    SearchRequest {
        collection: request.collection.clone(),
        using: request.using.clone(),
        by,
        limit: request.limit,
        filter: request.filter.clone(),
        columns: Vec::new(),
        ef: request.ef,
        exact,
        consistency: request.consistency.clone(),
        recheck: Recheck::None,
        viewer: None,
        after: None,
        shape: Shape { exactness: request.exactness, ..Shape::default() },
    }
}

/// Rows drawn by chance, each once; all of them where there are no more.
fn sample(
    pinned: &Pinned,
    request: &RecallRequest,
    column: usize,
    places: usize,
    passing: usize,
) -> Result<Vec<RowKey>, QueryError> {
    let row_at = |from: u32, want| pinned.every(&request.collection, column, request.filter.as_ref(), from, want);
    if passing <= request.sample {
        return Ok(row_at(0, request.sample)?.0.into_iter().map(|hit| hit.key).collect());
    }
    let random = RandomState::new();
    let mut drawn: BTreeSet<RowKey> = BTreeSet::new();
    // Behind gaps rows come more often than others: good enough for an estimate, and it ends.
    for turn in 0..8 * request.sample as u64 {
        if drawn.len() == request.sample {
            break;
        }
        let from = random.hash_one(turn) % places.max(1) as u64;
        drawn.extend(row_at(from as u32, 1)?.0.into_iter().map(|hit| hit.key));
    }
    Ok(drawn.into_iter().collect())
}

/// What was found so far of what was to be found.
#[derive(Default)]
struct Sums {
    queries: u64,
    shares: f64,
    worst: f64,
    plans: BTreeMap<&'static str, u64>,
    took: Duration,
    took_exact: Duration,
}

impl Sums {
    /// A row as near as the farthest that was to be found is as good as that one.
    fn add(&mut self, hits: &[Hit], truth: &[Hit]) {
        let Some(last) = truth.last() else { return };
        let keys: BTreeSet<_> = truth.iter().map(|hit| &hit.key).collect();
        let good = hits.iter().filter(|hit| keys.contains(&hit.key) || hit.distance <= last.distance).count();
        let share = good.min(truth.len()) as f64 / truth.len() as f64;
        self.worst = if self.queries == 0 { share } else { self.worst.min(share) };
        self.queries += 1;
        self.shares += share;
    }

    fn recall(&self) -> Option<f64> {
        (self.queries > 0).then(|| self.shares / self.queries as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Candidate, Value, Version};

    fn hits(rows: &[(i64, f64)]) -> Vec<Hit> {
        let hit = |&(key, distance): &(i64, f64)| {
            let key = RowKey::encode(&[Value::Int(key)]).expect("a key");
            Candidate { key, distance, version: Version::default(), node: 0 }.hit(None)
        };
        rows.iter().map(hit).collect()
    }

    #[test]
    fn recall_is_the_share_of_the_nearest_that_was_found_and_ties_are_as_good() {
        let mut sums = Sums::default();
        assert_eq!(sums.recall(), None);
        let truth = hits(&[(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.3)]);
        sums.add(&truth, &truth);
        assert_eq!((sums.recall(), sums.worst), (Some(1.0), 1.0));
        sums.add(&hits(&[(1, 0.1), (2, 0.2), (3, 0.3), (9, 0.3)]), &truth);
        assert_eq!(sums.recall(), Some(1.0), "as near as the last one");
        sums.add(&hits(&[(1, 0.1), (8, 0.4)]), &truth);
        assert_eq!((sums.recall(), sums.worst), (Some(0.75), 0.25));
        sums.add(&[], &[]);
        assert_eq!(sums.queries, 3, "where nothing is to be found nothing is missed");
    }
}
