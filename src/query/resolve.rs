//! A request made ready on one view: checked, its column, vector and plan found.

use crate::consistency::frontier::Serving;
use crate::consistency::recheck::Checking;
use crate::engine::candidates::{Candidates, Method};
use crate::engine::view::{CollectionView, IndexView, Prepared, View};
use crate::model::{
    Candidate, CollectionDef, ColumnType, Consistency, Embedding, Encoding, Exactness, Example, Filter, Hit, MAX_BATCH,
    MAX_BATCH_ROWS, MAX_EF, MAX_EXAMPLES, MAX_GROUP_SIZE, MAX_LIMIT, MAX_MMR_CANDIDATES, Metric, Recheck, RowKey,
    SearchBy, SearchRequest, Value, VectorColumn, pgtype,
};
use crate::query::error::QueryError;
use crate::query::groups::Grouping;
use crate::query::plan::{self, Plan, PlanFacts};
use crate::query::stream::{Bound, MAX_SKIPPED, Stream};
use crate::query::{filter, recommend};
use crate::storage::state::CollectionState;
use serde_json::value::RawValue;
use std::sync::OnceLock;

/// A distance recomputed in double precision may be smaller than the index's by this share.
const ROUNDING: f64 = 1e-5;

/// One search, ready to be opened.
pub struct Resolved<'v> {
    /// As asked.
    pub request: &'v SearchRequest,
    /// The collection.
    pub found: &'v CollectionView,
    /// Number of the vector column.
    pub column: usize,
    /// Its index.
    pub index: &'v IndexView,
    /// How it is searched.
    pub plan: Plan,
    /// Place of the column to group by.
    pub group: Option<usize>,
    vector: Embedding,
    /// `None` while the index has no vector at all.
    prepared: Option<Prepared>,
    except: Vec<RowKey>,
    condition: Option<(String, Vec<String>)>,
    /// The filter of a second search, which lives as long as that.
    rest: OnceLock<Filter>,
}

impl<'v> Resolved<'v> {
    /// Makes a request ready; `default_ef` where it names no width.
    pub fn new(
        serving: &Serving,
        found: &'v CollectionView,
        request: &'v SearchRequest,
        default_ef: usize,
    ) -> Result<Resolved<'v>, QueryError> {
        let (column, index) = vector_column(found, request.using.as_deref())?;
        if request.after.as_ref().is_some_and(|after| after.copy != copy(serving, found)) {
            return Err(QueryError::Cursor("`after` is of an earlier copy of the collection".into()));
        }
        check_columns(&found.def, &request.columns, request.recheck)?;
        let group = request.shape.group.as_ref().map(|group| group_column(&found.def, &group.column)).transpose()?;
        let (vector, except) = query_vector(serving, found, column, index, request)?;
        let filter = request.filter.as_ref().filter(|_| request.recheck == Recheck::Exact);
        let condition = filter.map(|filter| {
            let mut params = Vec::new();
            (filter::to_sql(filter, &found.def.filters, 1, &mut params), params)
        });
        let plan = choose(index, request, default_ef);
        let (prepared, rest) = (index.prepare_any(&vector), OnceLock::new());
        Ok(Resolved { request, found, column, index, plan, group, vector, prepared, except, condition, rest })
    }

    /// Opens the search; `None` where there is nothing to search.
    pub fn open(&self) -> Option<Stream<'_, Candidates<'_>>> {
        let filter = self.request.filter.as_ref();
        let candidates = Candidates::open(self.index, self.prepared.as_ref()?, filter, self.plan.method);
        let candidates = candidates.compared(self.exactness());
        let bound = self.request.shape.max_distance.map(|max| Bound {
            max: if self.request.recheck == Recheck::Exact { max + ROUNDING * (1.0 + max.abs()) } else { max },
            margin: self.ef(),
        });
        Some(Stream::new(candidates, &self.except, bound).behind(self.request.after.as_ref()))
    }

    /// How much is compared with full vectors.
    pub fn exactness(&self) -> Exactness {
        exactness(self.request)
    }

    /// Rows that are not in the answer.
    pub fn except(&self) -> &[RowKey] {
        &self.except
    }

    /// Is every row that passes compared?
    pub fn is_scan(&self) -> bool {
        !matches!(self.plan.method, Method::Walk { .. })
    }

    /// Search width of a walk.
    pub fn ef(&self) -> Option<usize> {
        match self.plan.method {
            Method::Exact | Method::Scan => None,
            Method::Walk { ef } => Some(ef),
        }
    }

    /// What the recheck needs to know of it.
    pub fn checking(&self) -> Checking<'_> {
        Checking {
            level: self.request.recheck,
            columns: &self.request.columns,
            vector: self.column,
            metric: self.index.column.metric,
            query: &self.vector,
            condition: self.condition.as_ref().map(|(sql, params)| (&sql[..], &params[..])),
            viewer: self.request.viewer.as_ref(),
        }
    }

    /// A candidate as it is, with replicated columns as the view has them.
    pub fn as_indexed(&self, candidate: Candidate) -> Hit {
        let cell = |at| cell(self.index, candidate.node, at);
        let columns = replicated(&self.found.def, &self.request.columns, &candidate.key, cell);
        candidate.hit(columns)
    }

    /// A group's value as JSON.
    pub fn group_value(&self, value: Option<&Value>) -> serde_json::Value {
        let kind = self.group.map(|at| self.found.def.filters[at].kind);
        kind.zip(value).map(|(kind, value)| pgtype::to_json_as(kind, value)).unwrap_or_default()
    }
}

/// Columns as they are here, as a JSON object: those of the key and those that filters use.
pub fn replicated(
    def: &CollectionDef,
    columns: &[String],
    key: &RowKey,
    cell: impl Fn(usize) -> Option<Value>,
) -> Option<Box<RawValue>> {
    if columns.is_empty() {
        return None;
    }
    let mut object = serde_json::Map::new();
    let keys = key.decode().unwrap_or_default();
    for name in columns {
        let of_key = def.key.iter().zip(&keys).find(|(column, _)| column.name == *name);
        let of_key = of_key.map(|(column, value)| pgtype::to_json_as(column.kind, value));
        let of_row = || {
            let at = def.filters.iter().position(|column| column.name == *name)?;
            Some(pgtype::to_json_as(def.filters[at].kind, &cell(at)?))
        };
        object.insert(name.clone(), of_key.or_else(of_row).unwrap_or_default());
    }
    serde_json::value::to_raw_value(&object).ok()
}

/// The value of a filter column of a live row; `None` is NULL.
fn cell(index: &IndexView, node: u32, column: usize) -> Option<Value> {
    index.row(node)?.cell(column)
}

/// Groups of rows by a filter column.
pub struct ByColumn<'r> {
    /// The search.
    pub resolved: &'r Resolved<'r>,
    /// Place of the column.
    pub column: usize,
}

impl<'r> Grouping for ByColumn<'r> {
    type Pages = Candidates<'r>;

    fn value(&self, candidate: &Candidate) -> Option<Value> {
        cell(self.resolved.index, candidate.node, self.column)
    }

    fn scan(&self, condition: Filter, exact: bool) -> Candidates<'r> {
        let resolved = self.resolved;
        let filter = resolved.rest.get_or_init(|| match &resolved.request.filter {
            Some(filter) => Filter::And(vec![filter.clone(), condition]),
            None => condition,
        });
        let query = resolved.prepared.as_ref().expect("only a search that was opened is continued");
        let method = if exact { Method::Exact } else { Method::Scan };
        Candidates::open(resolved.index, query, Some(filter), method).compared(resolved.exactness())
    }
}

fn choose(index: &IndexView, request: &SearchRequest, default_ef: usize) -> Plan {
    let shape = &request.shape;
    let limit = match (&shape.group, &shape.mmr) {
        (Some(group), _) => request.limit * group.size,
        (_, Some(mmr)) => mmr.candidates,
        // What came before is met again.
        _ => request.limit + request.after.as_ref().map_or(0, |after| after.given.min(MAX_SKIPPED)),
    };
    let ef = request.ef.unwrap_or(default_ef);
    let passing = request.filter.as_ref().map(|filter| index.rows.passing(Some(filter)).count());
    if index.is_sparse() {
        return plan::flat(index.live, passing);
    }
    let segments = index.segments.len();
    let ranged = shape.max_distance.is_some();
    let coded = index.segments.iter().any(|segment| segment.graph.encoding() != Encoding::F32);
    let (live, exact, kind) = (index.live, request.exact, index.column.index);
    let facts = PlanFacts { live, passing, segments, limit, ef, coded, ranged, exact, index: kind };
    let plan = plan::choose(facts);
    match plan.method {
        // Nobody knows how many rows are within the distance: the limit is a cap and no width to begin with.
        Method::Walk { .. } if ranged => plan::choose(PlanFacts { limit: limit.min(ef), ..facts }),
        _ => plan,
    }
}

/// The collection, by name.
pub fn collection<'v>(view: &'v View, name: &str) -> Result<&'v CollectionView, QueryError> {
    let found = view.collections.get(name).map(|found| &**found);
    found.ok_or_else(|| QueryError::UnknownCollection(name.to_owned()))
}

/// What can be said of a request without any data.
pub fn check_numbers(request: &SearchRequest) -> Result<(), QueryError> {
    if !(1..=MAX_LIMIT).contains(&request.limit) {
        return Err(QueryError::Limit(request.limit));
    }
    if let Some(ef) = request.ef.filter(|ef| !(1..=MAX_EF).contains(ef)) {
        return Err(QueryError::Ef(ef));
    }
    check_shape(request)?;
    let finite = |vector: &Embedding| match vector.not_finite() {
        Some(at) => Err(QueryError::NotFinite { at }),
        None => Ok(()),
    };
    match &request.by {
        SearchBy::Vector(vector) => finite(vector),
        SearchBy::Row(_) => Ok(()),
        SearchBy::Examples { positive, negative } => {
            if positive.is_empty() {
                return Err(QueryError::Examples("recommend.positive is empty".into()));
            }
            if let Some(count) = [positive.len(), negative.len()].into_iter().find(|&count| count > MAX_EXAMPLES) {
                let message = format!("{count} examples; at most {MAX_EXAMPLES} of each sign are taken");
                return Err(QueryError::Examples(message));
            }
            positive.iter().chain(negative).try_for_each(|example| match example {
                Example::Vector(vector) => finite(vector),
                Example::Row(_) => Ok(()),
            })
        }
    }
}

fn check_shape(request: &SearchRequest) -> Result<(), QueryError> {
    let shape = &request.shape;
    if shape.max_distance.is_some_and(|max| !max.is_finite()) {
        return Err(QueryError::MaxDistance);
    }
    if request.after.is_some() && !has_pages(request) {
        let reason = "groups, diverse rows and searches by codes alone (`exactness` `fast`) have no pages";
        return Err(QueryError::Cursor(reason.into()));
    }
    if let Some(group) = &shape.group {
        if shape.mmr.is_some() {
            return Err(QueryError::GroupsOfDiverse);
        }
        if !(1..=MAX_GROUP_SIZE).contains(&group.size) || request.limit * group.size > MAX_LIMIT {
            return Err(QueryError::GroupSize { size: group.size });
        }
    }
    match &shape.mmr {
        Some(mmr) if !(0.0..=1.0).contains(&mmr.lambda) => Err(QueryError::Lambda(mmr.lambda)),
        Some(mmr) if mmr.candidates < request.limit || mmr.candidates > MAX_MMR_CANDIDATES => {
            Err(QueryError::MmrCandidates(mmr.candidates))
        }
        _ => Ok(()),
    }
}

/// Does it have pages? Places are distances of vectors: those of codes change when a segment is written anew.
pub fn has_pages(request: &SearchRequest) -> bool {
    let shape = &request.shape;
    shape.group.is_none() && shape.mmr.is_none() && exactness(request) != Exactness::Fast
}

/// How much is compared with full vectors; a bound is one of true distances.
fn exactness(request: &SearchRequest) -> Exactness {
    match request.shape.exactness {
        Exactness::Fast if request.shape.max_distance.is_some() => Exactness::Balanced,
        exactness => exactness,
    }
}

/// What all searches of a batch cost together is bounded, too.
pub fn check_batch(requests: &[SearchRequest]) -> Result<(), QueryError> {
    if !(1..=MAX_BATCH).contains(&requests.len()) {
        return Err(QueryError::Batch(format!("{} searches; a batch has 1 to {MAX_BATCH}", requests.len())));
    }
    let rows = |request: &SearchRequest| {
        let wide = request.shape.mmr.map_or(0, |mmr| mmr.candidates);
        let size = request.shape.group.as_ref().map_or(1, |group| group.size);
        (request.limit.saturating_mul(size)).max(wide)
    };
    let sum = requests.iter().map(rows).fold(0, usize::saturating_add);
    if requests.len() > 1 && sum > MAX_BATCH_ROWS {
        let message = format!("the searches want up to {sum} rows together; at most {MAX_BATCH_ROWS} are given");
        return Err(QueryError::Batch(message));
    }
    // All walks of a batch are open at once. Whoever writes a cursor says what was given before.
    let width = |request: &SearchRequest| {
        let before = request.after.as_ref().map_or(0, |after| after.given.min(MAX_SKIPPED));
        rows(request).saturating_add(before).max(request.ef.unwrap_or(0))
    };
    let sum = requests.iter().map(width).fold(0, usize::saturating_add);
    if requests.len() > 1 && sum > MAX_BATCH_WIDTH {
        let message =
            format!("the searches are {sum} wide together, with what cursors leave behind; at most {MAX_BATCH_WIDTH}");
        return Err(QueryError::Batch(message));
    }
    Ok(())
}

/// Rows that the walks of a batch may hold together.
const MAX_BATCH_WIDTH: usize = 1_000_000;
/// Rows that the scans of a batch may compare together: each holds what it found until it is filled.
const MAX_BATCH_SCANNED: usize = 20_000_000;
/// Products of elements that ordering by diversity may cost a request: seconds.
const MAX_DIVERSITY_WORK: usize = 4_000_000_000;

/// What can be said once every search is planned.
pub fn check_work(searches: &[Resolved<'_>]) -> Result<(), QueryError> {
    let passing = |one: &Resolved<'_>| one.index.rows.passing(one.request.filter.as_ref()).count();
    let sum = searches.iter().filter(|one| one.is_scan()).map(passing).sum::<usize>();
    if searches.len() > 1 && sum > MAX_BATCH_SCANNED {
        let message = format!("the searches compare {sum} rows together; at most {MAX_BATCH_SCANNED} in one batch");
        return Err(QueryError::Batch(message));
    }
    let diversity = |one: &Resolved<'_>| {
        let wide = one.request.shape.mmr.map_or(0, |mmr| mmr.candidates);
        let elements = one.vector.elements().max(one.index.sparse.rows.mean_elements());
        wide.saturating_mul(one.request.limit).saturating_mul(elements)
    };
    let work = searches.iter().map(diversity).fold(0, usize::saturating_add);
    if work > MAX_DIVERSITY_WORK {
        let message = format!("candidates x limit x dimensions is {work}; at most {MAX_DIVERSITY_WORK} for a request");
        return Err(QueryError::Diversity(message));
    }
    Ok(())
}

/// Why answers are of the past, if so. Who asks for a position gets none of a collection that stands still.
pub fn check_state(found: &CollectionView, consistency: &Consistency) -> Result<Option<String>, QueryError> {
    match &found.state {
        CollectionState::Live => Ok(None),
        CollectionState::Copying => Err(QueryError::Copying(found.def.name.clone())),
        CollectionState::Paused { reason }
            if consistency.at_least.is_some() || consistency.max_staleness.is_some() || found.rows == 0 =>
        {
            Err(QueryError::Paused { name: found.def.name.clone(), reason: reason.clone() })
        }
        CollectionState::Paused { reason } => Ok(Some(format!("the collection is paused: {reason}"))),
    }
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Names the copy that answers: of another one places mean nothing.
pub fn copy(serving: &Serving, found: &CollectionView) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(serving.slot.as_bytes(), u64::from(found.def.id.0))
}

/// The column to search, and its index.
pub fn vector_column<'v>(found: &'v CollectionView, using: Option<&str>) -> Result<(usize, &'v IndexView), QueryError> {
    let (column, _) = found.def.vector(using).ok_or_else(|| QueryError::UnknownVector {
        collection: found.def.name.clone(),
        column: using.unwrap_or_default().to_owned(),
        known: names(found.def.vectors.iter().map(|column| &column.name)),
    })?;
    Ok((column, &found.indexes[column]))
}

/// The place of a filter column.
pub fn group_column(def: &CollectionDef, name: &str) -> Result<usize, QueryError> {
    let known = || names(def.filters.iter().map(|column| &column.name));
    let place = def.filters.iter().position(|column| column.name == name);
    place.ok_or_else(|| QueryError::UnknownGroup { column: name.to_owned(), known: known() })
}

/// With a recheck the source shows any column and says itself when there is none; without, only what is replicated.
pub fn check_columns(def: &CollectionDef, columns: &[String], recheck: Recheck) -> Result<(), QueryError> {
    if recheck != Recheck::None {
        return Ok(());
    }
    let known = || def.key.iter().map(|c| &c.name).chain(def.filters.iter().map(|c| &c.name));
    match columns.iter().find(|column| known().all(|name| name != *column)) {
        Some(column) => Err(QueryError::UnknownColumn { column: column.clone(), known: names(known()) }),
        None => Ok(()),
    }
}

/// The vector to search by, and the rows it was made of.
fn query_vector(
    serving: &Serving,
    found: &CollectionView,
    column: usize,
    index: &IndexView,
    request: &SearchRequest,
) -> Result<(Embedding, Vec<RowKey>), QueryError> {
    let stored = |key: &RowKey| match serving.engine.vector_of(found, column, key)? {
        Some(Some(vector)) => Ok(vector),
        Some(None) => Err(QueryError::NoVector(key.to_string())),
        None => Err(QueryError::NoRow(key.to_string())),
    };
    let (positive, negative) = match &request.by {
        SearchBy::Vector(vector) => {
            check_vector(&index.column, vector, index.column.dimensions)?;
            return Ok((vector.clone(), Vec::new()));
        }
        SearchBy::Row(key) => return Ok((stored(key)?, vec![key.clone()])),
        SearchBy::Examples { positive, negative } => (positive, negative),
    };
    let metric = index.column.metric;
    if !Metric::PLAIN.contains(&metric) {
        // The mean of bits is none, and the mean of points of a curved space is not where it seems to be.
        let message = format!("examples cannot be averaged under {metric}; search by one vector or row");
        return Err(QueryError::Examples(message));
    }
    let vectors = |examples: &[Example]| -> Result<Vec<Embedding>, QueryError> {
        let vector = |example: &Example| match example {
            Example::Vector(vector) => Ok(vector.clone()),
            Example::Row(key) => stored(key),
        };
        examples.iter().map(vector).collect()
    };
    let (liked, disliked) = (vectors(positive)?, vectors(negative)?);
    let expected = index.column.dimensions.or(liked.first().map(Embedding::dimensions));
    liked.iter().chain(&disliked).try_for_each(|vector| check_vector(&index.column, vector, expected))?;
    let except = positive.iter().chain(negative).filter_map(|example| match example {
        Example::Row(key) => Some(key.clone()),
        Example::Vector(_) => None,
    });
    Ok((recommend::target(metric, liked, disliked).map_err(QueryError::Examples)?, except.collect()))
}

/// Is it a vector that the column's vectors can be compared with?
fn check_vector(column: &VectorColumn, vector: &Embedding, expected: Option<usize>) -> Result<(), QueryError> {
    if matches!(vector, Embedding::Sparse(_)) != (column.kind == ColumnType::Sparsevec) {
        return Err(QueryError::Kind { column: column.name.clone(), kind: column.kind });
    }
    match expected.filter(|expected| *expected != vector.dimensions()) {
        Some(expected) => {
            Err(QueryError::Dimensions { column: column.name.clone(), found: vector.dimensions(), expected })
        }
        None => Ok(()),
    }
}
