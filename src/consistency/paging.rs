//! Paging: the same search is continued until k rows are visible, the candidates are dry, or the budget is spent.

use crate::consistency::blocking;
use crate::consistency::recheck::{Checking, Visibility, check};
use crate::engine::candidates::Candidates;
use crate::model::{Candidate, CollectionDef, Hit, RecheckReport};
use crate::source::SourceError;

/// Round trips to the source one search may cost.
const MAX_PAGES: usize = 16;
/// A refill asks for at least so many, so that a run of invisible rows costs few round trips.
const MIN_REFILL: usize = 16;

/// Keys one round trip may carry.
const MAX_PAGE: usize = 10_000;

/// What came of it.
pub struct Filled {
    /// At most as many as wanted, nearest first, ties by key.
    pub hits: Vec<Hit>,
    /// False when there may be more rows that belong here.
    pub complete: bool,
    /// What the recheck did.
    pub report: RecheckReport,
}

/// Where candidates come from; the second implementation is the tests'.
pub trait Pages: Send {
    /// At most `want` further ones, nearest first; fewer only when there are no more.
    fn next_page(&mut self, want: usize) -> Vec<Candidate>;
}

impl Pages for Candidates<'_> {
    fn next_page(&mut self, want: usize) -> Vec<Candidate> {
        blocking(|| Candidates::next_page(self, want))
    }
}

/// Fills an answer of `limit` rows.
pub async fn fill<V: Visibility>(
    candidates: &mut impl Pages,
    visibility: &V,
    def: &CollectionDef,
    checking: Checking<'_>,
    limit: usize,
) -> Result<Filled, SourceError> {
    let mut filled = Filled { hits: Vec::new(), complete: false, report: RecheckReport::default() };
    filled.report.mode = checking.level;
    for page_number in 0..MAX_PAGES {
        let missing = limit - filled.hits.len();
        let want =
            if page_number == 0 { missing } else { missing.max(MIN_REFILL).max(filled.report.checked).min(MAX_PAGE) };
        let page = candidates.next_page(want);
        let (asked, dry) = (page.len(), page.len() < want);
        if asked > 0 {
            let visible = check(visibility, def, checking, page).await?;
            filled.report.checked += asked;
            filled.report.dropped += asked - visible.len();
            filled.report.refilled += if page_number == 0 { 0 } else { visible.len().min(missing) };
            filled.hits.extend(visible.into_iter().take(missing));
        }
        filled.complete = dry || filled.hits.len() == limit;
        if filled.complete {
            break;
        }
    }
    filled.hits.sort_by(nearest_first);
    Ok(filled)
}

/// By distance, undefined last; ties by key.
pub fn nearest_first(a: &Hit, b: &Hit) -> std::cmp::Ordering {
    let by_distance = a.distance.partial_cmp(&b.distance);
    by_distance.unwrap_or_else(|| a.distance.is_nan().cmp(&b.distance.is_nan())).then_with(|| a.key.cmp(&b.key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CollectionId, Metric, Recheck, RowKey, Value, Version};
    use crate::source::rows::{Ask, HeapRow};

    /// Candidates 0, 1, 2 ... at distance n.
    struct Numbers(std::ops::Range<i64>);

    impl Pages for Numbers {
        fn next_page(&mut self, want: usize) -> Vec<Candidate> {
            let candidate = |n| Candidate { key: key(n), distance: n as f64, version: Version::default(), node: 0 };
            self.0.by_ref().take(want).map(candidate).collect()
        }
    }

    fn key(n: i64) -> RowKey {
        RowKey::encode(&[Value::Int(n)]).expect("key")
    }

    /// Shows only every `.0`th row.
    struct Every(i64);

    impl Visibility for Every {
        async fn visible(&self, _: &CollectionDef, keys: &[RowKey], _: Ask<'_>) -> Result<Vec<HeapRow>, SourceError> {
            let shown = |key: &&RowKey| match key.decode().as_deref() {
                Some([Value::Int(n)]) => n % self.0 == 0,
                _ => false,
            };
            let row = |key: &RowKey| HeapRow { key: key.clone(), columns: None, vector: None };
            Ok(keys.iter().filter(shown).map(row).rev().collect())
        }
    }

    async fn filled(rows: i64, every: i64, limit: usize) -> Filled {
        let def = CollectionDef {
            id: CollectionId(1),
            name: "c".into(),
            schema: "s".into(),
            table: "t".into(),
            oid: 1,
            partitioned: false,
            key: vec![],
            vectors: vec![],
            filters: vec![],
        };
        let checking = Checking {
            level: Recheck::Exists,
            columns: &[],
            vector: 0,
            metric: Metric::L2,
            query: &[],
            condition: None,
        };
        fill(&mut Numbers(0..rows), &Every(every), &def, checking, limit).await.expect("visible")
    }

    #[tokio::test]
    async fn the_search_goes_on_until_k_rows_are_visible() {
        let filled = filled(100_000, 50, 10).await;
        assert!(filled.complete);
        let keys: Vec<_> = filled.hits.iter().map(|hit| hit.distance as i64).collect();
        assert_eq!(keys, (0..10).map(|n| n * 50).collect::<Vec<_>>());
        assert_eq!(filled.report.refilled, 9);
    }

    #[tokio::test]
    async fn fewer_rows_than_asked_for_are_complete_when_there_are_no_more() {
        let filled = filled(100, 50, 10).await;
        assert_eq!((filled.hits.len(), filled.complete), (2, true));
        assert_eq!((filled.report.checked, filled.report.dropped), (100, 98));
    }

    #[tokio::test]
    async fn a_spent_budget_is_told() {
        let filled = filled(i64::MAX, 1 << 40, 10).await;
        assert_eq!((filled.hits.len(), filled.complete), (1, false));
    }
}
