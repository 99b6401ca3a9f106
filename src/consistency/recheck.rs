//! The recheck: which of the candidates the source shows now. A miss never removes anything from the index: a commit can
//! reach us before other sessions see it; only the stream deletes.

use crate::model::{Candidate, Cell, CollectionDef, Embedding, Hit, Metric, Recheck, RowKey};
use crate::source::SourceError;
use crate::source::connect::Pool;
use crate::source::rows::{self, Ask, HeapRow};
use crate::telemetry::names;
use deadpool::managed::Object;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Who can say which rows are visible. The second implementation is the tests'.
pub trait Visibility: Send + Sync {
    /// The rows of these keys that are visible now, in no order.
    fn visible(
        &self,
        def: &CollectionDef,
        keys: &[RowKey],
        ask: Ask<'_>,
    ) -> impl Future<Output = Result<Vec<HeapRow>, SourceError>> + Send;
}

/// The source's heap, asked over pooled connections.
pub struct SourceHeap {
    /// The connections.
    pub pool: Pool,
    /// Longest wait for a connection, and then for the answer.
    pub timeout: Duration,
}

impl Visibility for SourceHeap {
    async fn visible(&self, def: &CollectionDef, keys: &[RowKey], ask: Ask<'_>) -> Result<Vec<HeapRow>, SourceError> {
        let client = self.pool.get().await.map_err(SourceError::from)?;
        match tokio::time::timeout(self.timeout, rows::fetch(&client, def, keys, ask)).await {
            Ok(rows) => rows,
            Err(_) => {
                // Nobody knows when this connection answers: it does not go back to the pool.
                drop(Object::take(client));
                Err(SourceError::Unavailable(format!("the source did not answer within {:?}", self.timeout)))
            }
        }
    }
}

/// What a recheck needs to know of the search.
#[derive(Debug, Clone, Copy)]
pub struct Checking<'a> {
    /// How sure.
    pub level: Recheck,
    /// Columns to show.
    pub columns: &'a [String],
    /// Vector column searched.
    pub vector: usize,
    /// Its metric.
    pub metric: Metric,
    /// The query.
    pub query: &'a Embedding,
    /// The filter as SQL with its parameters, for `exact`.
    pub condition: Option<(&'a str, &'a [String])>,
}

impl<'a> Checking<'a> {
    fn ask(&self) -> Ask<'a> {
        let exact = self.level == Recheck::Exact;
        Ask { columns: self.columns, vector: exact.then_some(self.vector), condition: self.condition.filter(|_| exact) }
    }

    /// What the source shows of a candidate, if it passes.
    fn hit(&self, def: &CollectionDef, candidate: Candidate, row: &HeapRow) -> Option<Hit> {
        let distance = match &row.vector {
            None => candidate.distance,
            // A row that has no usable vector any more is no neighbour.
            Some(Cell::Value(value)) if def.vectors[self.vector].refuse_value(value).is_none() => {
                self.query.distance(self.metric, value)?
            }
            Some(_) => return None,
        };
        Some(Candidate { distance, ..candidate }.hit(row.columns.clone()))
    }
}

/// Keys one statement may carry.
const MAX_KEYS: usize = 10_000;

/// The candidates of each page that pass, in their order. Pages that ask the same of their rows share one statement.
pub async fn check<V: Visibility>(
    visibility: &V,
    def: &CollectionDef,
    pages: Vec<(Checking<'_>, Vec<Candidate>)>,
) -> Result<Vec<Vec<Hit>>, SourceError> {
    let asks: Vec<_> = pages.iter().map(|(checking, _)| checking.ask()).collect();
    let mut seen: Vec<(Ask<'_>, HashMap<RowKey, HeapRow>)> = Vec::new();
    for ask in &asks {
        if seen.iter().any(|(other, _)| other == ask) {
            continue;
        }
        let same = asks.iter().zip(&pages).filter(|(other, _)| *other == ask);
        let mut keys: Vec<_> = same.flat_map(|(_, (_, page))| page.iter().map(|c| c.key.clone())).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut rows = HashMap::with_capacity(keys.len());
        for keys in keys.chunks(MAX_KEYS) {
            let started = Instant::now();
            let found = visibility.visible(def, keys, *ask).await?;
            metrics::histogram!(names::RECHECK_SECONDS).record(started.elapsed().as_secs_f64());
            rows.extend(found.into_iter().map(|row| (row.key.clone(), row)));
        }
        seen.push((*ask, rows));
    }
    let of_page = |((checking, page), ask): ((Checking<'_>, Vec<Candidate>), &Ask<'_>)| {
        let rows = seen.iter().find(|(other, _)| other == ask).map(|(_, rows)| rows);
        let hit = |candidate: Candidate| {
            let row = rows?.get(&candidate.key)?;
            checking.hit(def, candidate, row)
        };
        page.into_iter().filter_map(hit).collect()
    };
    Ok(pages.into_iter().zip(&asks).map(of_page).collect())
}
