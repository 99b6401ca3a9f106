//! The plain answer: the nearest rows, or all rows within a distance.

use crate::consistency::paging::{Leg, nearest_first};
use crate::consistency::recheck::Checking;
use crate::model::{Candidate, Ended, Hit, Recheck, RecheckReport, RowKey, nearer};
use crate::query::stream::{Pages, Stream};
use crate::storage::Result;

/// A refill asks for at least so many, so that a run of invisible rows costs few round trips.
const MIN_REFILL: usize = 16;
/// Keys one page may carry.
const MAX_PAGE: usize = 10_000;

/// A search for rows that is being filled.
pub struct Rows<'v, P> {
    stream: Stream<'v, P>,
    checking: Checking<'v>,
    wanted: usize,
    /// Rows looked for: for a viewer one more than wanted, because nothing but a row that it sees may tell of more.
    limit: usize,
    max_distance: Option<f64>,
    hits: Vec<Hit>,
    /// More were found than were wanted.
    cut: bool,
    asked: usize,
    /// The last candidate of the last page, and the last row before which nothing was left out.
    page_end: Option<(f64, RowKey)>,
    passed: Option<(f64, RowKey)>,
    pages: usize,
    report: RecheckReport,
    ended: Option<Ended>,
}

/// What came of a search.
pub struct Outcome<H> {
    /// The rows or groups, nearest first.
    pub hits: Vec<H>,
    /// Why there are no more.
    pub ended: Ended,
    /// What the recheck did.
    pub report: RecheckReport,
    /// Rows that belong before those of this page may never have been in one.
    pub doubtful: bool,
    /// And so it may be of the next page.
    pub cut: bool,
    /// Behind which row there may be more.
    pub next: Option<(f64, RowKey)>,
    /// Rounds it took.
    pub pages: usize,
    /// Candidates taken from the index.
    pub taken: usize,
    /// Distances computed.
    pub visited: usize,
    /// Distances of walks that were given up for a scan, if they were.
    pub given_up: Option<usize>,
}

impl<'v, P: Pages> Rows<'v, P> {
    /// A search for the first `limit` rows of the stream that are visible, and as near as `max_distance`.
    pub fn new(stream: Stream<'v, P>, checking: Checking<'v>, limit: usize, max_distance: Option<f64>) -> Rows<'v, P> {
        let report = RecheckReport { mode: checking.level, ..RecheckReport::default() };
        let hits = Vec::with_capacity(limit.min(MIN_REFILL));
        let looked_for = limit + usize::from(checking.viewer.is_some());
        Rows {
            stream,
            checking,
            wanted: limit,
            limit: looked_for,
            max_distance,
            hits,
            cut: false,
            asked: 0,
            page_end: None,
            passed: None,
            pages: 0,
            report,
            ended: None,
        }
    }

    fn missing(&self) -> usize {
        self.limit - self.hits.len()
    }

    /// Its state with as many rows as were wanted: with a bound it matters whether there are more.
    fn full(&mut self) -> Result<Ended> {
        Ok(match self.max_distance {
            Some(_) if !self.cut && self.checking.viewer.is_none() => self.stream.ended()?.unwrap_or(Ended::Limit),
            _ => Ended::Limit,
        })
    }

    /// Leaves as many rows as were wanted, and the place of the last one: a viewer must not hear of others. Was there one
    /// more?
    fn for_viewer(&mut self) -> bool {
        self.hits.sort_by(|a, b| nearer((a.indexed, &a.key), (b.indexed, &b.key)));
        let more = self.hits.len() > self.wanted;
        self.hits.truncate(self.wanted);
        self.passed = self.hits.last().map(|hit| (hit.indexed, hit.key.clone()));
        more
    }

    /// What came of it.
    pub fn finish(mut self) -> Outcome<Hit> {
        let ended = self.ended.unwrap_or(Ended::Budget);
        let more = match self.checking.viewer {
            None => self.cut || !self.stream.is_exhausted(),
            Some(_) => self.for_viewer() || ended == Ended::Budget,
        };
        self.hits.sort_by(nearest_first);
        Outcome {
            doubtful: self.stream.begins_in_doubt(),
            cut: self.passed.as_ref().is_some_and(|passed| self.stream.is_doubtful(passed.0)),
            hits: self.hits,
            ended,
            report: self.report,
            next: self.passed.filter(|_| more),
            pages: self.pages,
            taken: self.stream.taken(),
            visited: self.stream.visited(),
            given_up: self.stream.given_up(),
        }
    }
}

impl<P: Pages> Leg for Rows<'_, P> {
    fn next_page(&mut self) -> Result<Vec<Candidate>> {
        if self.ended.is_some() {
            return Ok(Vec::new());
        }
        let missing = self.missing();
        if missing == 0 {
            self.ended = Some(self.full()?);
            return Ok(Vec::new());
        }
        let more = missing.max(MIN_REFILL).max(self.report.checked).min(MAX_PAGE);
        let page = self.stream.next(if self.pages == 0 { missing } else { more })?;
        if page.is_empty() {
            self.ended = self.stream.ended()?;
        }
        self.asked = page.len();
        self.page_end = page.last().map(|last| (last.distance, last.key.clone()));
        Ok(page)
    }

    fn checking(&self) -> Checking<'_> {
        self.checking
    }

    fn take(&mut self, visible: Vec<Hit>) {
        let missing = self.missing();
        self.pages += 1;
        if self.checking.level != Recheck::None {
            self.report.checked += self.asked;
            self.report.dropped += self.asked - visible.len();
            self.report.refilled += if self.pages == 1 { 0 } else { visible.len().min(missing) };
        }
        // By their current vectors rows may be farther than by the indexed ones.
        let within = |hit: &Hit| self.max_distance.is_none_or(|max| hit.distance <= max);
        let mut within = visible.into_iter().filter(within);
        let before = self.hits.len();
        self.hits.extend(within.by_ref().take(missing));
        self.cut |= within.next().is_some();
        // Of a page that did not suffice everything was looked at.
        let ends = if self.cut {
            self.hits[before..].last().map(|hit| (hit.indexed, hit.key.clone()))
        } else {
            self.page_end.take()
        };
        self.passed = self.passed.take().into_iter().chain(ends).max_by(|a, b| nearer((a.0, &a.1), (b.0, &b.1)));
    }

    fn give_up(&mut self) -> Result<()> {
        if self.ended.is_none() {
            // Whether the last page was all there was or all that was wanted is found out without asking anybody.
            self.ended = Some(match self.missing() {
                0 => self.full()?,
                _ => self.stream.ended()?.unwrap_or(Ended::Budget),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consistency::paging::{fill, fill_as_indexed};
    use crate::consistency::recheck::{Seen, Visibility};
    use crate::model::{CollectionDef, CollectionId, Embedding, Metric};
    use crate::query::stream::Bound;
    use crate::query::stream::tests::{Script, number};
    use crate::source::SourceError;
    use crate::source::rows::{Ask, HeapRow};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Shows only every `.0`th row, and counts what it is asked.
    struct Every(i64, AtomicUsize);

    impl Visibility for Every {
        async fn visible(
            &self,
            _: &CollectionDef,
            keys: &[RowKey],
            _: Ask<'_>,
        ) -> std::result::Result<Seen, SourceError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            let shown = |key: &&RowKey| number(key) % self.0 == 0;
            let row = |key: &RowKey| HeapRow { key: key.clone(), columns: None, vector: None };
            Ok(Seen { rows: keys.iter().filter(shown).map(row).rev().collect(), together: 1 })
        }
    }

    fn def() -> CollectionDef {
        CollectionDef {
            id: CollectionId(1),
            name: "c".into(),
            schema: "s".into(),
            table: "t".into(),
            oid: 1,
            partitioned: false,
            key: vec![],
            vectors: vec![],
            filters: vec![],
        }
    }

    fn checking(level: Recheck) -> Checking<'static> {
        Checking {
            level,
            columns: &[],
            vector: 0,
            metric: Metric::L2,
            query: const { &Embedding::Dense(Vec::new()) },
            condition: None,
            viewer: None,
        }
    }

    /// A search in rows 0, 1, 2 ... at distance n.
    fn leg(rows: i64, limit: usize, max_distance: Option<f64>, margin: Option<usize>) -> Rows<'static, Script> {
        let bound = max_distance.map(|max| Bound { max, margin });
        let stream = Stream::new(Script::new((0..rows).map(|n| (n, n as f64))), &[], bound);
        Rows::new(stream, checking(Recheck::Exists), limit, max_distance)
    }

    async fn filled(leg: Rows<'static, Script>, every: i64) -> Outcome<Hit> {
        let mut legs = [leg];
        fill(&mut legs, &Every(every, AtomicUsize::new(0)), &def()).await.expect("visible");
        let [leg] = legs;
        leg.finish()
    }

    fn numbers(outcome: &Outcome<Hit>) -> Vec<i64> {
        outcome.hits.iter().map(|hit| number(&hit.key)).collect()
    }

    #[tokio::test]
    async fn the_search_goes_on_until_k_rows_are_visible() {
        let filled = filled(leg(100_000, 10, None, None), 50).await;
        assert_eq!(filled.ended, Ended::Limit);
        assert_eq!(numbers(&filled), (0..10).map(|n| n * 50).collect::<Vec<_>>());
        assert_eq!(filled.report.refilled, 9);
    }

    #[tokio::test]
    async fn fewer_rows_than_asked_for_are_all_when_there_are_no_more() {
        let filled = filled(leg(100, 10, None, None), 50).await;
        assert_eq!((filled.hits.len(), filled.ended), (2, Ended::Dry));
        assert_eq!((filled.report.checked, filled.report.dropped), (100, 98));
    }

    #[tokio::test]
    async fn a_spent_budget_is_told() {
        let filled = filled(leg(1_000_000, 10, None, None), 1 << 40).await;
        assert_eq!((filled.hits.len(), filled.ended), (1, Ended::Budget));
    }

    #[tokio::test]
    async fn within_a_distance_all_rows_are_found_and_a_cap_is_told() {
        let all = filled(leg(5_000, 10_000, Some(1_000.0), None), 10).await;
        assert_eq!(numbers(&all), (0..=100).map(|n| n * 10).collect::<Vec<_>>());
        assert_eq!((all.ended, all.report.checked), (Ended::Dry, 1_001), "nothing beyond the bound is asked about");
        assert_eq!(filled(leg(5_000, 10_000, Some(1_000.0), Some(64)), 10).await.ended, Ended::Margin);
        assert_eq!(filled(leg(900, 10_000, Some(1_000.0), Some(64)), 10).await.ended, Ended::Dry);
        let capped = filled(leg(5_000, 50, Some(1_000.0), None), 10).await;
        assert_eq!((capped.hits.len(), capped.ended), (50, Ended::Limit));
        let exactly = filled(leg(5_000, 11, Some(10.0), None), 1).await;
        assert_eq!((exactly.hits.len(), exactly.ended), (11, Ended::Dry), "the cap hides nothing");
        let none = filled(leg(5_000, 10, Some(-1.0), None), 1).await;
        assert_eq!((none.hits.len(), none.ended), (0, Ended::Dry));
    }

    #[tokio::test]
    async fn searches_that_go_in_step_share_their_round_trips() {
        let mut legs: Vec<_> = (1..=20).map(|limit| leg(100_000, limit, None, None)).collect();
        let every = Every(50, AtomicUsize::new(0));
        fill(&mut legs, &every, &def()).await.expect("visible");
        let outcomes: Vec<_> = legs.into_iter().map(Rows::finish).collect();
        assert!(outcomes.iter().all(|outcome| outcome.ended == Ended::Limit));
        let rounds = outcomes.iter().map(|outcome| outcome.pages).max().expect("there are some");
        assert_eq!(every.1.into_inner(), rounds);
        for (limit, outcome) in (1..).zip(&outcomes) {
            assert_eq!(numbers(outcome), (0..limit).map(|n| n * 50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn as_indexed_nothing_is_checked() {
        let stream = Stream::new(Script::new((0..100).map(|n| (n, n as f64))), &[], None);
        let mut leg = Rows::new(stream, checking(Recheck::None), 10, None);
        fill_as_indexed(&mut leg, |candidate| candidate.hit(None)).expect("no file is read");
        let outcome = leg.finish();
        assert_eq!((outcome.hits.len(), outcome.ended, outcome.report.checked), (10, Ended::Limit, 0));
    }
}
