//! The recheck: which of the candidates the source shows now. A miss never removes anything from the index: a commit can
//! reach us before other sessions see it; only the stream deletes.

use crate::consistency::trips::Trips;
use crate::model::{Candidate, Cell, CollectionDef, Embedding, Hit, Metric, Recheck, RowKey, Viewer};
use crate::source::SourceError;
use crate::source::connect::Pool;
use crate::source::rows::{Ask, HeapRow};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;

/// Who can say which rows are visible. The second implementation is the tests'.
pub trait Visibility: Send + Sync {
    /// The rows of these keys that are visible now, in no order.
    fn visible(
        &self,
        def: &CollectionDef,
        keys: &[RowKey],
        ask: Ask<'_>,
    ) -> impl Future<Output = Result<Seen, SourceError>> + Send;

    /// May somebody ask with these eyes? The reason why not.
    fn allows(&self, viewer: &Viewer) -> Result<(), String> {
        Err(format!("nobody may ask as role {:?} here", viewer.role))
    }
}

/// What the source shows.
#[derive(Debug, Default)]
pub struct Seen {
    /// The rows.
    pub rows: Vec<HeapRow>,
    /// Requests that the same round trip answered, this one included.
    pub together: usize,
}

/// Whom a caller may ask as; nobody by default.
#[derive(Debug, Clone, Default)]
pub struct Viewers {
    /// Roles.
    pub roles: BTreeSet<String>,
    /// Settings that may be given a value for the question.
    pub settings: BTreeSet<String>,
}

impl Viewers {
    /// With the settings that were not given as empty texts: that is what PostgreSQL leaves of one that had a value in an
    /// earlier transaction of the connection, and a policy must not see a difference.
    fn with_all_settings(&self, viewer: &Viewer) -> Viewer {
        let none = self.settings.iter().map(|name| (name.clone(), String::new()));
        Viewer { role: viewer.role.clone(), settings: none.chain(viewer.settings.clone()).collect() }
    }

    fn allows(&self, viewer: &Viewer) -> Result<(), String> {
        if !self.roles.contains(&viewer.role) {
            return Err(format!("role {:?} is not one that may be asked for", viewer.role));
        }
        match viewer.settings.keys().find(|name| !self.settings.contains(*name)) {
            Some(name) => Err(format!("setting {name:?} is not one that may be set")),
            None => Ok(()),
        }
    }
}

/// The source's heap, asked over pooled connections.
#[derive(Clone)]
pub struct SourceHeap {
    /// The connections.
    pub pool: Pool,
    /// Longest wait for a connection, and then for the answer.
    pub timeout: Duration,
    /// Whom a caller may ask as.
    pub viewers: Arc<Viewers>,
    /// Questions that wait for a connection.
    pub trips: Arc<Trips>,
}

impl SourceHeap {
    /// The heap behind these connections.
    pub fn new(pool: Pool, timeout: Duration, viewers: Viewers) -> SourceHeap {
        SourceHeap { pool, timeout, viewers: Arc::new(viewers), trips: Arc::default() }
    }
}

impl Visibility for SourceHeap {
    async fn visible(&self, def: &CollectionDef, keys: &[RowKey], ask: Ask<'_>) -> Result<Seen, SourceError> {
        let viewer = ask.viewer.map(|viewer| self.viewers.with_all_settings(viewer));
        let span = tracing::debug_span!("recheck", collection = def.name, rows = keys.len());
        self.ask(def, keys, Ask { viewer: viewer.as_ref(), ..ask }).instrument(span).await
    }

    fn allows(&self, viewer: &Viewer) -> Result<(), String> {
        self.viewers.allows(viewer)
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
    /// With whose eyes.
    pub viewer: Option<&'a Viewer>,
}

impl<'a> Checking<'a> {
    fn ask(&self) -> Ask<'a> {
        let exact = self.level == Recheck::Exact;
        Ask {
            columns: self.columns,
            vector: exact.then_some(self.vector),
            condition: self.condition.filter(|_| exact),
            viewer: self.viewer,
        }
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
        Some(Hit { distance, ..candidate.hit(row.columns.clone()) })
    }
}

/// Keys one statement may carry.
const MAX_KEYS: usize = 10_000;

/// What came of a recheck.
#[derive(Debug, Default)]
pub struct Checked {
    /// The candidates of each page that pass, in their order.
    pub pages: Vec<Vec<Hit>>,
    /// Requests that were answered together, in the largest round trip.
    pub together: usize,
}

/// Asks about each page. Pages that ask the same of their rows share one statement.
pub async fn check<V: Visibility>(
    visibility: &V,
    def: &CollectionDef,
    pages: Vec<(Checking<'_>, Vec<Candidate>)>,
) -> Result<Checked, SourceError> {
    let asks: Vec<_> = pages.iter().map(|(checking, _)| checking.ask()).collect();
    let mut together = 0;
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
        // Of no rows a role is asked all the same: what it may not read at all is an error, whatever the index has.
        let none = (keys.is_empty() && ask.viewer.is_some()).then_some(&[][..]);
        for keys in keys.chunks(MAX_KEYS).chain(none) {
            let found = visibility.visible(def, keys, *ask).await?;
            together = together.max(found.together);
            rows.extend(found.rows.into_iter().map(|row| (row.key.clone(), row)));
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
    Ok(Checked { pages: pages.into_iter().zip(&asks).map(of_page).collect(), together })
}
