//! `POST /v1/collections/{name}/search`: bytes -> `SearchRequest`, `Answer` -> bytes.

use crate::model::{Answer, CollectionDef, Consistency, Hit, Lsn, Recheck, RowKey, SearchBy, SearchRequest, pgtype};
use crate::query::filter;
use crate::server::http::{App, Name, Shared, vector};
use crate::server::problem::{self, Problem};
use crate::telemetry::names;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use serde_json::value::RawValue;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    query: Query,
    #[serde(default)]
    filter: Option<String>,
    #[serde(default)]
    params: Vec<Json>,
    #[serde(default = "ten")]
    limit: usize,
    #[serde(default)]
    columns: Vec<String>,
    #[serde(default)]
    search: Tuning,
    #[serde(default)]
    consistency: Freshness,
    #[serde(default)]
    recheck: Recheck,
}

fn ten() -> usize {
    10
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    #[serde(default)]
    vector: Option<Box<RawValue>>,
    #[serde(default)]
    id: Option<Json>,
    #[serde(default)]
    using: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Tuning {
    #[serde(default)]
    ef: Option<usize>,
    #[serde(default)]
    exact: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Freshness {
    #[serde(default)]
    at_least: Option<String>,
    #[serde(default)]
    timeout_ms: Option<u64>,
}

/// Longest a request may ask to wait.
const MAX_WAIT_MS: u64 = 60_000;

/// As many as a table of PostgreSQL can have; a row of the answer cannot have many more.
const MAX_COLUMNS: usize = 1600;

#[derive(Serialize)]
struct Reply {
    hits: Vec<Found>,
    complete: bool,
    applied_lsn: Lsn,
    staleness_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale: Option<String>,
    recheck: crate::model::RecheckReport,
    stats: crate::model::SearchStats,
}

#[derive(Serialize)]
struct Found {
    id: Json,
    /// NaN (a zero vector under cosine) is null in JSON.
    distance: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    columns: Option<Box<RawValue>>,
    vector_lsn: Lsn,
}

/// The handler.
pub async fn search(
    State(app): Shared,
    Name(name): Name,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let result = answer(&app, name.clone(), body).await;
    let code = result.as_ref().err().map_or("ok", |problem| problem.kind.code);
    // Only names that exist become label values: anybody can ask for any name.
    let collection = if app.query.definition(&name).is_ok() { name } else { "unknown".into() };
    metrics::counter!(names::SEARCHES, "collection" => collection, "code" => code).increment(1);
    result
}

async fn answer(app: &App, name: String, body: Result<Bytes, BytesRejection>) -> Result<Response, Problem> {
    let body = body.map_err(too_large)?;
    let def = app.query.definition(&name)?;
    let request = parse(&def, name, &body)?;
    // Waiting for a position takes nobody's turn.
    app.query.frontier.view(&request.consistency).await?;
    let turn = tokio::time::timeout(app.options.max_queue, app.turns.acquire()).await;
    let _turn = turn.map_err(|_| {
        let detail = format!("waited {:?} for a turn", app.options.max_queue);
        Problem::new(problem::OVERLOADED, detail).hint("slow down, or raise http.max_concurrent")
    })?;
    let answer = app.query.search(&request).await?;
    Ok(render(&def, answer))
}

fn too_large(rejection: BytesRejection) -> Problem {
    Problem::new(problem::TOO_LARGE, rejection.to_string()).hint("http.max_body_bytes is the limit")
}

fn parse(def: &CollectionDef, collection: String, bytes: &[u8]) -> Result<SearchRequest, Problem> {
    let body: Body = serde_json::from_slice(bytes).map_err(malformed)?;
    let by = match (body.query.vector, body.query.id) {
        (Some(json), None) => SearchBy::Vector(vector::parse(def, body.query.using.as_deref(), &json)?),
        (None, Some(id)) => SearchBy::Row(parse_id(def, &id)?),
        _ => {
            let hint = r#"send {"query": {"vector": [...]}} or {"query": {"id": ...}}"#;
            return Err(Problem::new(problem::MALFORMED, "query needs exactly one of `vector` and `id`").hint(hint));
        }
    };
    let filter = match (&body.filter, body.params.is_empty()) {
        (Some(text), _) => Some(filter::parse(text, &body.params, &def.filters)?),
        (None, true) => None,
        (None, false) => return Err(Problem::new(problem::MALFORMED, "`params` without `filter`")),
    };
    check_columns(&body.columns)?;
    let at_least = body.consistency.at_least.map(|text| text.parse()).transpose();
    let at_least = at_least.map_err(|error: crate::model::BadLsn| Problem::new(problem::BAD_LSN, error.to_string()))?;
    let timeout = body.consistency.timeout_ms;
    if timeout.is_some_and(|ms| ms > MAX_WAIT_MS) {
        return Err(Problem::new(problem::MALFORMED, format!("consistency.timeout_ms is more than {MAX_WAIT_MS}")));
    }
    Ok(SearchRequest {
        collection,
        using: body.query.using,
        by,
        limit: body.limit,
        filter,
        columns: body.columns,
        ef: body.search.ef,
        exact: body.search.exact,
        consistency: Consistency { at_least, timeout: timeout.map(Duration::from_millis) },
        recheck: body.recheck,
    })
}

/// What the source could not even be asked.
fn check_columns(columns: &[String]) -> Result<(), Problem> {
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

/// Serde words an unknown field in its message alone; its class is "data" like every other wrong value.
fn malformed(error: serde_json::Error) -> Problem {
    let text = error.to_string();
    let hint = "the fields are query {vector|id, using}, filter, params, limit, columns, search {ef, exact}, \
                consistency {at_least, timeout_ms}, recheck";
    if text.starts_with("unknown field") {
        return Problem::new(problem::UNKNOWN_FIELD, text).hint(hint);
    }
    Problem::new(problem::MALFORMED, text).hint(hint)
}

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

fn id_hint(def: &CollectionDef) -> String {
    let columns: Vec<_> = def.key.iter().map(|column| format!("{} {}", column.name, column.kind)).collect();
    match columns.len() {
        1 => format!("the key is {}", columns[0]),
        _ => format!("the key is an object of {}", columns.join(", ")),
    }
}

/// A key as JSON: the inverse of [`parse_id`].
pub fn render_id(def: &CollectionDef, key: &RowKey) -> Json {
    let values = key.decode().unwrap_or_default();
    match (&def.key[..], &values[..]) {
        ([column], [value]) => pgtype::to_json_as(column.kind, value),
        (columns, values) => {
            let fields = columns
                .iter()
                .zip(values)
                .map(|(column, value)| (column.name.clone(), pgtype::to_json_as(column.kind, value)));
            Json::Object(fields.collect())
        }
    }
}

fn render(def: &CollectionDef, answer: Answer) -> Response {
    let found = |hit: Hit| Found {
        id: render_id(def, &hit.key),
        distance: Some(hit.distance).filter(|distance| distance.is_finite()),
        columns: hit.columns,
        vector_lsn: Lsn(hit.version.commit.0),
    };
    let reply = Reply {
        hits: answer.hits.into_iter().map(found).collect(),
        complete: answer.complete,
        applied_lsn: answer.applied_lsn,
        staleness_ms: answer.staleness.map(|age| (age.as_secs_f64() * 1e5).round() / 100.0),
        stale: answer.stale,
        recheck: answer.recheck,
        stats: answer.stats,
    };
    let lsn = [("x-ruvector-applied-lsn", answer.applied_lsn.to_string())];
    let json = [(header::CONTENT_TYPE, "application/json")];
    match serde_json::to_vec(&reply) {
        Ok(bytes) => (lsn, json, bytes).into_response(),
        Err(error) => Problem::new(problem::INTERNAL, error.to_string()).into_response(),
    }
}
