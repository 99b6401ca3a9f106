//! The recheck: which of the candidates the source shows now. A miss never removes anything from the index: a commit can
//! reach us before other sessions see it; only the stream deletes.

use crate::model::{Candidate, Cell, CollectionDef, Hit, Metric, Recheck, RowKey, Value};
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
    pub query: &'a [f32],
    /// The filter as SQL with its parameters, for `exact`.
    pub condition: Option<(&'a str, &'a [String])>,
}

/// The candidates that pass, in their order.
pub async fn check<V: Visibility>(
    visibility: &V,
    def: &CollectionDef,
    checking: Checking<'_>,
    candidates: Vec<Candidate>,
) -> Result<Vec<Hit>, SourceError> {
    let exact = checking.level == Recheck::Exact;
    let ask = Ask {
        columns: checking.columns,
        vector: exact.then_some(checking.vector),
        condition: checking.condition.filter(|_| exact),
    };
    let keys: Vec<_> = candidates.iter().map(|candidate| candidate.key.clone()).collect();
    let started = Instant::now();
    let rows = visibility.visible(def, &keys, ask).await?;
    metrics::histogram!(names::RECHECK_SECONDS).record(started.elapsed().as_secs_f64());
    let mut rows: HashMap<_, _> = rows.into_iter().map(|row| (row.key, (row.columns, row.vector))).collect();
    let hit = |candidate: Candidate| {
        let (columns, vector) = rows.remove(&candidate.key)?;
        let distance = match vector {
            None => candidate.distance,
            // A row that has no usable vector any more is no neighbour.
            Some(Cell::Value(Value::Vector(vector)))
                if vector.len() == checking.query.len() && def.vectors[checking.vector].refuse(&vector).is_none() =>
            {
                checking.metric.distance(checking.query, &vector)
            }
            Some(_) => return None,
        };
        Some(Hit { key: candidate.key, distance, version: candidate.version, columns })
    };
    Ok(candidates.into_iter().filter_map(hit).collect())
}
