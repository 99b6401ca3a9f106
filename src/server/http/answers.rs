//! `Answer` -> bytes.

use crate::model::{
    Answer, CollectionDef, Explain, Group, Hit, Lsn, RecheckReport, RowKey, SearchRequest, SearchStats, pgtype,
};
use crate::server::http::cursor;
use crate::server::problem::{self, Problem};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::value::RawValue;

#[derive(Serialize)]
struct Reply {
    hits: Vec<Found>,
    /// The next page's `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<FoundGroup>>,
    complete: bool,
    applied_lsn: Lsn,
    staleness_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale: Option<String>,
    recheck: RecheckReport,
    stats: SearchStats,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Explain>,
}

#[derive(Serialize)]
struct Replies {
    answers: Vec<Reply>,
}

#[derive(Serialize)]
struct FoundGroup {
    value: Json,
    hits: Vec<Found>,
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
