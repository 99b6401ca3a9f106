//! `POST /v1/collections/{name}/search`: bytes -> `SearchRequest`.

use crate::model::{
    CollectionDef, ColumnType, Consistency, Embedding, Exactness, Example, Filter, GroupBy, MAX_LIMIT,
    MAX_MMR_CANDIDATES, Mmr, RowKey, SearchBy, SearchRequest, Shape, pgtype,
};
use crate::query::filter::{self, Written};
use crate::server::http::access::{Principal, Who};
use crate::server::http::admission::Class;
use crate::server::http::recheck::Asked;
use crate::server::http::{App, Name, Shared, answers, cursor, json, vector};
use crate::server::problem::{self, Problem};
use crate::telemetry::names;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use serde_json::value::RawValue;
use std::time::Duration;

/// One search; or, with `searches`, several of them on one view.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Search")]
pub struct Body {
    /// What to search by.
    #[serde(default, deserialize_with = "json::maybe")]
    query: Option<Query>,
    /// Only rows that pass.
    #[serde(default)]
    filter: Option<Written>,
    /// Values of the parameters of a filter in SQL.
    #[serde(default)]
    params: Vec<Json>,
    /// Rows, or groups, wanted; 10 when left out. With `max_distance` a cap, 10,000 when left out.
    #[serde(default, deserialize_with = "there")]
    #[schemars(with = "usize", range(min = 1, max = 10_000))]
    limit: Option<usize>,
    /// Columns of the table to show.
    #[serde(default)]
    columns: Vec<String>,
    /// How hard to search.
    #[serde(default, deserialize_with = "json::object")]
    search: Tuning,
    /// How new the answer has to be.
    #[serde(default, deserialize_with = "json::there")]
    #[schemars(with = "Freshness")]
    consistency: Option<Freshness>,
    /// How sure rows are to be visible in the source; `exists` when left out.
    #[serde(default, deserialize_with = "there")]
    #[schemars(with = "Asked")]
    recheck: Option<Asked>,
    /// All rows at this distance or nearer.
    #[serde(default, deserialize_with = "there")]
    #[schemars(with = "f64")]
    max_distance: Option<f64>,
    /// The nearest groups of rows that share the value of this filter column.
    #[serde(default, deserialize_with = "there")]
    #[schemars(with = "String")]
    group_by: Option<String>,
    /// Rows of each group; 1 when left out.
    #[serde(default, deserialize_with = "there")]
    #[schemars(with = "usize", range(min = 1, max = 100))]
    group_size: Option<usize>,
    /// Rows that differ among themselves.
    #[serde(default, deserialize_with = "json::there")]
    #[schemars(with = "Diversity")]
    mmr: Option<Diversity>,
    /// Tell how the answer came about.
    #[serde(default, deserialize_with = "there")]
    #[schemars(with = "bool")]
    explain: Option<bool>,
    /// `next` of an answer to the same request, but for `limit`, `columns` and `consistency`: the rows behind that page.
    #[serde(default)]
    after: Option<String>,
    /// A batch: several searches on one view. Beside it there can be `consistency` only.
    #[serde(default, deserialize_with = "json::list")]
    #[schemars(with = "Vec<Body>", length(min = 1, max = 256))]
    searches: Option<Vec<Body>>,
}

/// A field that is not null where it is there at all.
fn there<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Rows, or groups, where the request does not say how many.
const DEFAULT_LIMIT: usize = 10;
/// Weight of nearness against difference where the request does not say.
const DEFAULT_LAMBDA: f64 = 0.5;

/// What to search by: exactly one of `vector`, `id` and `recommend`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Query {
    /// In the form that the column's type takes.
    #[serde(default)]
    #[schemars(with = "Option<vector::Forms>")]
    vector: Option<Box<RawValue>>,
    /// The key of a row whose neighbours are wanted: the value of its column, or an object of all of them.
    #[serde(default)]
    id: Option<Json>,
    /// Rows like some and unlike others.
    #[serde(default, deserialize_with = "json::maybe")]
    recommend: Option<Examples>,
    /// The vector column; the first one when left out.
    #[serde(default)]
    using: Option<String>,
}

/// Each a key, or an array of numbers.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Examples {
    /// What rows shall be like.
    #[schemars(length(min = 1, max = 256))]
    positive: Vec<Json>,
    /// What they shall be unlike.
    #[serde(default)]
    #[schemars(length(max = 256))]
    negative: Vec<Json>,
}

/// Rows that differ among themselves (maximal marginal relevance).
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Diversity {
    /// 1 is nearness alone, 0 difference alone; 0.5 when left out.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1))]
    lambda: Option<f64>,
    /// The nearest so many are weighed; four times the limit, at least 50, when left out.
    #[serde(default)]
    #[schemars(range(max = 1000))]
    candidates: Option<usize>,
}

/// How hard to search.
#[derive(Deserialize, Default, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tuning {
    /// Search width: more finds more, and takes longer.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100_000))]
    ef: Option<usize>,
    /// Compare with every row.
    #[serde(default)]
    exact: bool,
    /// How much is compared by full vectors.
    #[serde(default)]
    exactness: Option<Exactness>,
}

/// How new an answer has to be.
#[derive(Deserialize, Default, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Consistency")]
pub struct Freshness {
    /// An LSN, as `pg_current_wal_lsn()` gives after a COMMIT: the answer reflects everything up to there, or is an error.
    #[serde(default)]
    pub(super) at_least: Option<String>,
    /// The answer is not older than this, or is an error: what the source had so long ago is in it.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(super) max_staleness_ms: Option<u64>,
    /// How long to wait for either.
    #[serde(default)]
    #[schemars(range(max = 60_000))]
    pub(super) timeout_ms: Option<u64>,
}

/// Longest a request may ask to wait.
const MAX_WAIT_MS: u64 = 60_000;

/// As many as a table of PostgreSQL can have; a row of the answer cannot have many more.
const MAX_COLUMNS: usize = 1600;

/// The handler.
pub async fn search(
    State(app): Shared,
    Who(who): Who,
    Name(name): Name,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let result = answer(&app, &who, name.clone(), body).await;
    let code = result.as_ref().err().map_or("ok", |problem| problem.kind.code);
    // Only names that exist become label values: anybody can ask for any name.
    let collection = if app.query.definition(&name).is_ok() { name } else { "unknown".into() };
    metrics::counter!(names::SEARCHES, "collection" => collection, "code" => code).increment(1);
    result
}

async fn answer(
    app: &App,
    who: &Principal,
    name: String,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let body = body.map_err(too_large)?;
    let def = app.query.definition(&name)?;
    let confined = who.confined(&def)?;
    let Parsed { consistency, mut requests, cursors, batch } = parse(&def, &name, &body)?;
    confined.searches(&mut requests)?;
    // A cursor belongs to the request as it is answered, with the filter of whoever asks.
    requests.iter_mut().zip(&cursors).try_for_each(|(request, cursor)| place(request, cursor.as_deref()))?;
    // Waiting takes nobody's turn, and what it ends with is what answers.
    let class = if batch { Class::Batch } else { Class::Search };
    let (pinned, _turn) = app.admitted(&consistency, class).await?;
    confined.examples(&app.query, &requests)?;
    let answer = match (&requests[..], batch) {
        ([request], false) => {
            answers::one(&def, request, confined.answer(app.query.search_on(&pinned, request).await?))
        }
        _ => {
            let answers = app.query.search_all(&pinned, &name, &consistency, &requests).await?.into_iter();
            answers::several(&def, &requests, answers.map(|answer| confined.answer(answer)).collect())
        }
    };
    confined.examples(&app.query, &requests)?;
    app.query.check_same(&def)?;
    Ok(answer)
}

pub fn too_large(rejection: BytesRejection) -> Problem {
    Problem::new(problem::TOO_LARGE, rejection.to_string()).hint("http.max_body_bytes is the limit")
}

/// What a body asks for.
struct Parsed {
    consistency: Consistency,
    requests: Vec<SearchRequest>,
    /// Where each goes on.
    cursors: Vec<Option<String>>,
    /// Asked for as several, even if it is one.
    batch: bool,
}

fn parse(def: &CollectionDef, collection: &str, bytes: &[u8]) -> Result<Parsed, Problem> {
    let mut body: Body = json::read(bytes, FIELDS)?;
    let consistency = freshness(body.consistency.take())?;
    let Some(searches) = body.searches.take() else {
        let (request, cursor) = one(def, collection, &consistency, body, None)?;
        return Ok(Parsed { consistency, requests: vec![request], cursors: vec![cursor], batch: false });
    };
    if !body.is_empty() {
        let problem = Problem::new(problem::MALFORMED, "beside `searches` there can be `consistency` only");
        return Err(problem.hint("put everything else into each of the searches"));
    }
    let each = searches.into_iter().enumerate().map(|(at, body)| {
        let of_all = || Problem::new(problem::MALFORMED, "a search of a batch has no `consistency` and no `searches`");
        let request = match body.consistency.is_some() || body.searches.is_some() {
            true => Err(of_all().hint("all searches of a batch are answered from one view: say it beside `searches`")),
            false => one(def, collection, &consistency, body, None),
        };
        request.map_err(|problem| Problem { detail: format!("searches[{at}]: {}", problem.detail), ..problem })
    });
    let (requests, cursors) = each.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    Ok(Parsed { consistency, requests, cursors, batch: true })
}

/// Has the request go on behind a cursor of its own.
fn place(request: &mut SearchRequest, cursor: Option<&str>) -> Result<(), Problem> {
    request.after = cursor.map(|text| cursor::decode(request, text)).transpose()?;
    Ok(())
}

impl Body {
    /// Does it ask for nothing itself?
    fn is_empty(&self) -> bool {
        let lists = self.params.is_empty() && self.columns.is_empty();
        let Tuning { ef, exact, exactness } = &self.search;
        let searched = ef.is_none() && !exact && exactness.is_none();
        let tuning = searched && self.explain.is_none() && self.recheck.is_none();
        let what = self.query.is_none() && self.filter.is_none() && self.limit.is_none();
        let shape = self.max_distance.is_none() && self.group_by.is_none() && self.group_size.is_none();
        lists && tuning && what && shape && self.mmr.is_none() && self.after.is_none()
    }
}

/// How new an answer has to be.
pub fn freshness(body: Option<Freshness>) -> Result<Consistency, Problem> {
    let Freshness { at_least, max_staleness_ms, timeout_ms } = body.unwrap_or_default();
    let at_least = at_least.map(|text| text.parse()).transpose();
    let at_least = at_least.map_err(|error: crate::model::BadLsn| Problem::new(problem::BAD_LSN, error.to_string()))?;
    if timeout_ms.is_some_and(|ms| ms > MAX_WAIT_MS) {
        let problem = Problem::new(problem::MALFORMED, format!("consistency.timeout_ms is more than {MAX_WAIT_MS}"));
        return Err(problem.hint("wait for less, and ask again"));
    }
    if max_staleness_ms == Some(0) {
        let problem = Problem::new(
            problem::MALFORMED,
            "consistency.max_staleness_ms is 0: nothing is proven of this very moment",
        );
        return Err(problem.hint("at least 1; what a source that is near can meet is some 10"));
    }
    let ms = |ms: Option<u64>| ms.map(Duration::from_millis);
    Ok(Consistency { at_least, max_staleness: ms(max_staleness_ms), timeout: ms(timeout_ms) })
}

/// A search as a body tells it, by a vector that came by another way.
pub(in crate::server) fn parse_beside(
    def: &CollectionDef,
    body: &Json,
    vector: Option<Embedding>,
) -> Result<SearchRequest, Problem> {
    let mut body: Body = json::read(body.to_string().as_bytes(), FIELDS)?;
    if body.searches.is_some() {
        return Err(Problem::new(problem::MALFORMED, "`searches` is for HTTP").hint("join with LATERAL"));
    }
    let consistency = freshness(body.consistency.take())?;
    let (mut request, cursor) = one(def, &def.name, &consistency, body, vector)?;
    place(&mut request, cursor.as_deref())?;
    Ok(request)
}

/// With its cursor, which is read when the request is whole.
fn one(
    def: &CollectionDef,
    collection: &str,
    consistency: &Consistency,
    body: Body,
    beside: Option<Embedding>,
) -> Result<(SearchRequest, Option<String>), Problem> {
    let shape = shape(&body)?;
    let hint = r#"send {"query": {"vector": [...]}}, {"query": {"id": ...}} or {"query": {"recommend": {...}}}"#;
    let query = body.query.ok_or_else(|| Problem::new(problem::MALFORMED, "`query` is missing").hint(hint))?;
    let using = query.using.as_deref();
    let by = match (query.vector, query.id, query.recommend, beside) {
        (None, None, None, Some(beside)) => SearchBy::Vector(vector::checked(def, using, beside)?),
        (Some(json), None, None, None) => SearchBy::Vector(vector::parse(def, using, &json)?),
        (None, Some(id), None, None) => SearchBy::Row(parse_id(def, &id)?),
        (None, None, Some(examples), None) => SearchBy::Examples {
            positive: examples.positive.iter().map(|one| example(def, using, one)).collect::<Result<_, _>>()?,
            negative: examples.negative.iter().map(|one| example(def, using, one)).collect::<Result<_, _>>()?,
        },
        _ => {
            let detail = "query needs exactly one of `vector`, `id` and `recommend`";
            return Err(Problem::new(problem::MALFORMED, detail).hint(hint));
        }
    };
    check_columns(&body.columns)?;
    let recheck = body.recheck.unwrap_or_default();
    // All rows within a distance are wanted unless the request says how many.
    let all = shape.max_distance.is_some() && shape.group.is_none() && shape.mmr.is_none();
    let request = SearchRequest {
        collection: collection.to_owned(),
        using: query.using,
        by,
        limit: body.limit.unwrap_or(if all { MAX_LIMIT } else { DEFAULT_LIMIT }),
        filter: parse_filter(def, body.filter.as_ref(), &body.params)?,
        columns: body.columns,
        ef: body.search.ef,
        exact: body.search.exact,
        consistency: consistency.clone(),
        recheck: recheck.level,
        viewer: recheck.viewer,
        after: None,
        shape,
    };
    Ok((request, body.after))
}

fn shape(body: &Body) -> Result<Shape, Problem> {
    let group = match (&body.group_by, body.group_size) {
        (Some(column), size) => Some(GroupBy { column: column.clone(), size: size.unwrap_or(1) }),
        (None, Some(_)) => {
            let hint = "name the column whose values make the groups in `group_by`";
            return Err(Problem::new(problem::MALFORMED, "`group_size` without `group_by`").hint(hint));
        }
        (None, None) => None,
    };
    let limit = body.limit.unwrap_or(DEFAULT_LIMIT);
    let candidates = limit.saturating_mul(4).clamp(50, MAX_MMR_CANDIDATES);
    let mmr = body.mmr.as_ref().map(|mmr| Mmr {
        lambda: mmr.lambda.unwrap_or(DEFAULT_LAMBDA),
        candidates: mmr.candidates.unwrap_or(candidates),
    });
    let (explain, exactness) = (body.explain.unwrap_or(false), body.search.exactness.unwrap_or_default());
    Ok(Shape { max_distance: body.max_distance, group, mmr, explain, exactness })
}

/// A filter with its parameters, where there is one.
pub fn parse_filter(def: &CollectionDef, filter: Option<&Written>, params: &[Json]) -> Result<Option<Filter>, Problem> {
    match (filter, params.is_empty()) {
        (Some(written), _) => Ok(Some(filter::read(written, params, &def.filters)?)),
        (None, true) => Ok(None),
        (None, false) => {
            let hint = "write a filter in SQL that uses $1, or leave out `params`";
            Err(Problem::new(problem::MALFORMED, "`params` without `filter`").hint(hint))
        }
    }
}

fn unwritten(error: serde_json::Error) -> Problem {
    Problem::new(problem::MALFORMED, error.to_string())
}

/// No key is an array, and none is an object with the field that every sparse vector has, unless a column is called so.
fn example(def: &CollectionDef, using: Option<&str>, json: &Json) -> Result<Example, Problem> {
    let is_sparse = def.vector(using).is_some_and(|(_, column)| column.kind == ColumnType::Sparsevec);
    let is_key = def.key.iter().any(|column| column.name == "indices");
    match json {
        Json::Object(fields) if is_sparse && !is_key && fields.contains_key("indices") => {
            let raw = serde_json::value::to_raw_value(json).map_err(unwritten)?;
            Ok(Example::Vector(vector::parse(def, using, &raw)?))
        }
        Json::Array(_) => {
            let raw = serde_json::value::to_raw_value(json).map_err(unwritten)?;
            Ok(Example::Vector(vector::parse(def, using, &raw)?))
        }
        id => Ok(Example::Row(parse_id(def, id)?)),
    }
}

/// What the source could not even be asked.
pub fn check_columns(columns: &[String]) -> Result<(), Problem> {
    if columns.len() > MAX_COLUMNS {
        let detail = format!("{} columns; at most {MAX_COLUMNS} are shown", columns.len());
        return Err(Problem::new(problem::MALFORMED, detail).hint("name each column once"));
    }
    match columns.iter().find(|name| name.is_empty() || name.contains('\0')) {
        Some(name) => {
            let detail = format!("there is no column {name:?}");
            Err(Problem::new(problem::UNKNOWN_COLUMN, detail).hint("check `columns`; names are taken literally"))
        }
        None => Ok(()),
    }
}

/// What a body can have.
const FIELDS: &str = "query {vector|id|recommend {positive, negative}, using}, filter, params, limit, columns, search {ef, exact, exactness}, \
                      recheck {mode, as_role, settings}, max_distance, group_by, group_size, mmr {lambda, candidates}, explain, after, \
                      consistency {at_least, max_staleness_ms, timeout_ms}; or searches, a list of such, and consistency";

/// A key from JSON: the value of a single key column, or an object of all of them.
pub fn parse_id(def: &CollectionDef, id: &Json) -> Result<RowKey, Problem> {
    let bad = |detail: String| Problem::new(problem::BAD_ID, detail).hint(id_hint(def));
    let values = def.key.iter().map(|column| {
        let json = match (id, &def.key[..]) {
            (Json::Object(fields), _) => fields.get(&column.name),
            (json, [_]) => Some(json),
            _ => None,
        };
        let json = json.ok_or_else(|| bad(format!("the id has no `{}`", column.name)))?;
        let value = pgtype::from_json(column.kind, json).map_err(|error| bad(format!("`{}`: {error}", column.name)))?;
        value.ok_or_else(|| bad(format!("`{}` is null", column.name)))
    });
    let values = values.collect::<Result<Vec<_>, _>>()?;
    let unknown = |name: &&String| def.key.iter().all(|column| column.name != **name);
    if let Some(name) = id.as_object().and_then(|fields| fields.keys().find(unknown)) {
        return Err(bad(format!("`{name}` is no key column")));
    }
    RowKey::encode(&values).ok_or_else(|| bad("not a key".into()))
}

pub(super) fn id_hint(def: &CollectionDef) -> String {
    let columns: Vec<_> = def.key.iter().map(|column| format!("{} {}", column.name, column.kind)).collect();
    match columns.len() {
        1 => format!("the key is {}", columns[0]),
        _ => format!("the key is an object of {}", columns.join(", ")),
    }
}
