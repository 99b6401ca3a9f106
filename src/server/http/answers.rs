//! `Answer` -> bytes.

use crate::model::{
    Answer, CollectionDef, Explain, Group, Hit, Lsn, RecheckReport, RowKey, SearchRequest, SearchStats, pgtype,
};
use crate::server::http::cursor;
use crate::server::problem::{self, Problem};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::value::RawValue;

/// The answer to one search.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Answer")]
pub struct Reply {
    /// Nearest first, ties by key; with `mmr` in the order chosen. Empty where groups were asked for.
    hits: Vec<Found>,
    /// The next page's `after`; not there where there is none, and for answers that have no pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// Nearest first by their best row.
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<FoundGroup>>,
    /// False where something that belongs in the answer may be missing.
    complete: bool,
    /// The position this answer is exact for.
    applied_lsn: Lsn,
    /// Everything the source had that long ago is in the answer. Null: it has not been heard of yet.
    staleness_ms: Option<f64>,
    /// Why changes may be missing, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    stale: Option<String>,
    recheck: RecheckReport,
    stats: SearchStats,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Explain>,
}

/// The answers to the searches of a batch, in their order.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Answers")]
pub struct Replies {
    answers: Vec<Reply>,
}

/// What a search is answered with: one answer, or those of a batch.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub enum Replied {
    One(Box<Reply>),
    Several(Replies),
}

/// Rows that share a value.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Group")]
struct FoundGroup {
    /// As indexed.
    value: Json,
    /// Nearest first.
    hits: Vec<Found>,
}

/// One row of an answer.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Hit")]
struct Found {
    /// The key: the value of its column, or an object of all of them.
    id: Json,
    /// NaN (a zero vector under cosine) is null in JSON.
    distance: Option<f64>,
    /// The columns asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<std::collections::BTreeMap<String, Json>>")]
    columns: Option<Box<RawValue>>,
    /// The transaction that wrote the version of the row that was found.
    vector_lsn: Lsn,
}

/// The answer to one search.
pub fn one(def: &CollectionDef, request: &SearchRequest, answer: Answer) -> Response {
    let lsn = answer.applied_lsn;
    rendered(&reply(def, request, answer), lsn)
}

/// The answers to the searches of a batch, in their order.
pub fn several(def: &CollectionDef, requests: &[SearchRequest], answers: Vec<Answer>) -> Response {
    let lsn = answers.first().map_or(Lsn::ZERO, |answer| answer.applied_lsn);
    let each = requests.iter().zip(answers);
    rendered(&Replies { answers: each.map(|(request, answer)| reply(def, request, answer)).collect() }, lsn)
}

/// JSON with the position it is exact for.
pub fn rendered(reply: &impl Serialize, applied: Lsn) -> Response {
    let lsn = [("x-ruvector-applied-lsn", applied.to_string())];
    let json = [(header::CONTENT_TYPE, "application/json")];
    match serde_json::to_vec(reply) {
        Ok(bytes) => (lsn, json, bytes).into_response(),
        Err(error) => Problem::new(problem::INTERNAL, error.to_string()).into_response(),
    }
}

/// Milliseconds with two places.
pub fn milliseconds(age: std::time::Duration) -> f64 {
    (age.as_secs_f64() * 1e5).round() / 100.0
}

fn reply(def: &CollectionDef, request: &SearchRequest, answer: Answer) -> Reply {
    let found = |hit: Hit| Found {
        id: render_id(def, &hit.key),
        distance: Some(hit.distance).filter(|distance| distance.is_finite()),
        columns: hit.columns,
        vector_lsn: Lsn(hit.version.commit.0),
    };
    let group = |Group { value, hits }| FoundGroup { value, hits: hits.into_iter().map(found).collect() };
    Reply {
        next: answer.next.as_ref().map(|next| cursor::encode(request, next)),
        hits: answer.hits.into_iter().map(found).collect(),
        groups: answer.groups.map(|groups| groups.into_iter().map(group).collect()),
        complete: answer.complete,
        applied_lsn: answer.applied_lsn,
        staleness_ms: answer.staleness.map(milliseconds),
        stale: answer.stale,
        recheck: answer.recheck,
        stats: answer.stats,
        explain: answer.explain,
    }
}

/// A key as JSON: the inverse of [`super::search::parse_id`].
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
