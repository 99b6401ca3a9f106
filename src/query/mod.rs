//! The line of a query: request -> view -> plan -> candidates -> recheck -> answer. Nothing else decides order.

pub mod filter;
pub mod plan;

use crate::consistency::blocking;
use crate::consistency::frontier::{Frontier, NoView, Serving};
use crate::consistency::paging::{self, Filled};
use crate::consistency::recheck::{Checking, Visibility};
use crate::engine::candidates::{Accept, Candidates};
use crate::engine::view::{CollectionView, IndexView};
use crate::model::{
    Answer, Candidate, CollectionDef, Hit, MAX_EF, MAX_LIMIT, Recheck, RecheckReport, SearchBy, SearchRequest,
    SearchStats, pgtype,
};
use crate::query::plan::{Plan, PlanFacts};
use crate::source::SourceError;
use crate::storage::StorageError;
use crate::storage::state::CollectionState;
use crate::telemetry::names;
use std::sync::Arc;
use std::time::Instant;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// No such collection.
    #[error("there is no collection {name:?}; there are {known}")]
    UnknownCollection {
        /// As asked.
        name: String,
        /// Those there are.
        known: String,
    },
    /// No such vector column.
    #[error("collection {collection:?} has no vector column {column:?}; it has {known}")]
    UnknownVector {
        /// The collection.
        collection: String,
        /// As asked.
        column: String,
        /// Those there are.
        known: String,
    },
    /// Wrong length.
    #[error("the query has {found} dimensions, {column:?} has {expected}")]
    Dimensions {
        /// The vector column.
        column: String,
        /// As asked.
        found: usize,
        /// As indexed.
        expected: usize,
    },
    /// NaN or an infinity.
    #[error("element {} of the query vector is not a finite number", .at + 1)]
    NotFinite {
        /// Which element, from 0.
        at: usize,
    },
    /// Too many or too few rows asked for.
    #[error("limit is {0}; it must be 1 to {MAX_LIMIT}")]
    Limit(usize),
    /// Too wide or too narrow a search.
    #[error("search.ef is {0}; it must be 1 to {MAX_EF}")]
    Ef(usize),
    /// No such column to show.
    #[error("there is no column {column:?} to show without asking the source; there are {known}")]
    UnknownColumn {
        /// As asked.
        column: String,
        /// Those there are.
        known: String,
    },
    /// The row to search by does not exist.
    #[error("there is no row {0}")]
    NoRow(String),
    /// The row to search by has no vector.
    #[error("row {0} has no usable vector")]
    NoVector(String),
    /// The initial copy is not whole.
    #[error("collection {0:?} is being copied")]
    Copying(String),
    /// The collection stopped following its table.
    #[error("collection {name:?} is paused: {reason}")]
    Paused {
        /// The collection.
        name: String,
        /// Why.
        reason: String,
    },
    /// No data, or too old.
    #[error(transparent)]
    NoView(#[from] NoView),
    /// The recheck failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Our files failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Settings of searches.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Search width where the request does not say.
    pub default_ef: usize,
}

/// Answers searches.
pub struct QueryService<V> {
    /// As of when.
    pub frontier: Arc<Frontier>,
    visibility: V,
    options: Options,
}

impl<V: Visibility> QueryService<V> {
    /// A service that rechecks with `visibility`.
    pub fn new(frontier: Arc<Frontier>, visibility: V, options: Options) -> QueryService<V> {
        QueryService { frontier, visibility, options }
    }

    /// The definition of a collection, for those who must parse a request against it.
    pub fn definition(&self, collection: &str) -> Result<Arc<CollectionDef>, QueryError> {
        let serving = self.frontier.serving().ok_or(NoView::NotLoaded)?;
        let view = serving.engine.view();
        let found = view.collections.get(collection).ok_or_else(|| unknown_collection(&view, collection))?;
        Ok(found.def.clone())
    }

    /// Line two.
    pub async fn search(&self, request: &SearchRequest) -> Result<Answer, QueryError> {
        let started = Instant::now();
        let result = self.answer(request, started).await;
        if let Ok(answer) = &result {
            let labels = [("collection", request.collection.clone()), ("plan", answer.stats.plan.to_owned())];
            metrics::histogram!(names::SEARCH_SECONDS, &labels).record(started.elapsed().as_secs_f64());
            metrics::histogram!(names::SEARCH_VISITED).record(answer.stats.visited as f64);
            metrics::counter!(names::SEARCH_INCOMPLETE).increment(u64::from(!answer.complete));
            metrics::counter!(names::RECHECK_DROPPED).increment(answer.recheck.dropped as u64);
        }
        result
    }

    async fn answer(&self, request: &SearchRequest, started: Instant) -> Result<Answer, QueryError> {
        check_numbers(request)?;
        // Before and after: what answers may be replaced in between.
        let stale = self.frontier.progress.stale();
        let (serving, view) = self.frontier.view(&request.consistency).await?;
        let found = view.collections.get(&request.collection);
        let found = found.ok_or_else(|| unknown_collection(&view, &request.collection))?;
        let paused = check_state(found, request)?;
        let (column, index) = vector_column(found, request)?;
        check_columns(&found.def, request)?;
        let query = query_vector(&serving, found, column, index, request)?;
        let plan = blocking(|| self.plan(index, request));
        let mut answer = Answer {
            hits: Vec::new(),
            complete: true,
            applied_lsn: view.applied,
            staleness: self.frontier.staleness(view.applied),
            stale: stale.or_else(|| self.frontier.progress.stale()).or(paused),
            recheck: RecheckReport { mode: request.recheck, ..RecheckReport::default() },
            stats: SearchStats { took_us: 0, visited: 0, plan: plan.name, reason: plan.reason.clone() },
        };
        // An index that never saw a vector has nothing to prepare the query for, and nothing to find.
        if let Some(prepared) = index.prepare(&query) {
            let except = match &request.by {
                SearchBy::Row(key) => Some(key),
                SearchBy::Vector(_) => None,
            };
            let accept = Accept { filter: request.filter.as_ref(), except };
            let mut candidates = blocking(|| Candidates::open(index, &prepared, accept, plan.method));
            if request.recheck == Recheck::None {
                let page = blocking(|| candidates.next_page(request.limit));
                answer.hits = page.into_iter().map(|c| as_indexed(&found.def, index, &request.columns, c)).collect();
                answer.hits.sort_by(paging::nearest_first);
            } else {
                let filled = self.recheck(&mut candidates, request, found, column, &query).await?;
                (answer.hits, answer.complete, answer.recheck) = (filled.hits, filled.complete, filled.report);
            }
            answer.stats.visited = candidates.visited();
            if let Some(walked) = candidates.given_up() {
                answer.stats.reason += &format!("; given up after {walked} distances for all rows that pass");
            }
        }
        // What the index cannot follow may be missing from any answer.
        answer.complete &= answer.stale.is_none();
        answer.stats.took_us = started.elapsed().as_micros() as u64;
        Ok(answer)
    }

    async fn recheck(
        &self,
        candidates: &mut Candidates<'_>,
        request: &SearchRequest,
        found: &CollectionView,
        column: usize,
        query: &[f32],
    ) -> Result<Filled, QueryError> {
        let mut params = Vec::new();
        let filter = request.filter.as_ref().filter(|_| request.recheck == Recheck::Exact);
        let condition = filter.map(|filter| filter::to_sql(filter, &found.def.filters, 1, &mut params));
        let checking = Checking {
            level: request.recheck,
            columns: &request.columns,
            vector: column,
            metric: found.indexes[column].column.metric,
            query,
            condition: condition.as_deref().map(|sql| (sql, &params[..])),
        };
        Ok(paging::fill(candidates, &self.visibility, &found.def, checking, request.limit).await?)
    }

    fn plan(&self, index: &IndexView, request: &SearchRequest) -> Plan {
        let passing = request.filter.as_ref().map(|filter| index.rows.passing(Some(filter)).count());
        plan::choose(PlanFacts {
            live: index.live,
            passing,
            segments: index.segments.len(),
            limit: request.limit,
            ef: request.ef.unwrap_or(self.options.default_ef),
            exact: request.exact,
        })
    }
}

fn unknown_collection(view: &crate::engine::view::View, name: &str) -> QueryError {
    let known = view.collections.keys().cloned().collect::<Vec<_>>().join(", ");
    QueryError::UnknownCollection { name: name.to_owned(), known }
}

fn check_numbers(request: &SearchRequest) -> Result<(), QueryError> {
    if !(1..=MAX_LIMIT).contains(&request.limit) {
        return Err(QueryError::Limit(request.limit));
    }
    if let Some(ef) = request.ef.filter(|ef| !(1..=MAX_EF).contains(ef)) {
        return Err(QueryError::Ef(ef));
    }
    match &request.by {
        SearchBy::Vector(vector) => match vector.iter().position(|element| !element.is_finite()) {
            Some(at) => Err(QueryError::NotFinite { at }),
            None => Ok(()),
        },
        SearchBy::Row(_) => Ok(()),
    }
}

/// Why answers are of the past, if so. Who asks for a position gets none of a collection that stands still.
fn check_state(found: &CollectionView, request: &SearchRequest) -> Result<Option<String>, QueryError> {
    match &found.state {
        CollectionState::Live => Ok(None),
        CollectionState::Copying => Err(QueryError::Copying(found.def.name.clone())),
        CollectionState::Paused { reason } if request.consistency.at_least.is_some() || found.rows == 0 => {
            Err(QueryError::Paused { name: found.def.name.clone(), reason: reason.clone() })
        }
        CollectionState::Paused { reason } => Ok(Some(format!("the collection is paused: {reason}"))),
    }
}

fn vector_column<'v>(found: &'v CollectionView, request: &SearchRequest) -> Result<(usize, &'v IndexView), QueryError> {
    let using = request.using.as_deref();
    let (column, _) = found.def.vector(using).ok_or_else(|| QueryError::UnknownVector {
        collection: found.def.name.clone(),
        column: using.unwrap_or_default().to_owned(),
        known: found.def.vectors.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", "),
    })?;
    Ok((column, &found.indexes[column]))
}

/// With a recheck the source shows any column and says itself when there is none; without, only what is replicated.
fn check_columns(def: &CollectionDef, request: &SearchRequest) -> Result<(), QueryError> {
    if request.recheck != Recheck::None {
        return Ok(());
    }
    let known: Vec<_> =
        def.key.iter().map(|c| c.name.as_str()).chain(def.filters.iter().map(|c| c.name.as_str())).collect();
    match request.columns.iter().find(|column| !known.contains(&column.as_str())) {
        Some(column) => Err(QueryError::UnknownColumn { column: column.clone(), known: known.join(", ") }),
        None => Ok(()),
    }
}

fn query_vector(
    serving: &Serving,
    found: &CollectionView,
    column: usize,
    index: &IndexView,
    request: &SearchRequest,
) -> Result<Vec<f32>, QueryError> {
    let vector = match &request.by {
        SearchBy::Vector(vector) => vector.clone(),
        SearchBy::Row(key) => match serving.engine.vector_of(found, column, key)? {
            Some(Some(vector)) => vector,
            Some(None) => return Err(QueryError::NoVector(key.to_string())),
            None => return Err(QueryError::NoRow(key.to_string())),
        },
    };
    match index.column.dimensions {
        Some(expected) if expected != vector.len() => {
            Err(QueryError::Dimensions { column: index.column.name.clone(), found: vector.len(), expected })
        }
        _ => Ok(vector),
    }
}

/// A candidate as it is, with replicated columns as the view has them.
fn as_indexed(def: &CollectionDef, index: &IndexView, columns: &[String], candidate: Candidate) -> Hit {
    let Candidate { key, distance, version, node } = candidate;
    let mut object = serde_json::Map::new();
    let keys = key.decode().unwrap_or_default();
    for name in columns {
        let key = def.key.iter().zip(&keys).find(|(column, _)| column.name == *name);
        let key = key.map(|(column, value)| (column.kind, value.clone()));
        let filter = || {
            let at = def.filters.iter().position(|column| column.name == *name)?;
            Some((def.filters[at].kind, index.row(node)?.cell(at)?))
        };
        let json = key.or_else(filter).map(|(kind, value)| pgtype::to_json_as(kind, &value));
        object.insert(name.clone(), json.unwrap_or_default());
    }
    let columns = (!columns.is_empty()).then(|| serde_json::value::to_raw_value(&object).ok());
    Hit { key, distance, version, columns: columns.flatten() }
}
