//! `POST /v1/collections/{name}/recall`: how much of the nearest rows searches find, measured now.

use crate::model::{Exactness, RecallRequest, SearchBy};
use crate::query::filter::Written;
use crate::server::http::admission::Class;
use crate::server::http::answers::rendered;
use crate::server::http::json::{self, parse};
use crate::server::http::search::{Freshness, freshness, parse_filter};
use crate::server::http::{Name, Shared, vector};
use crate::server::problem::Problem;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value as Json;
use serde_json::value::RawValue;

/// What to measure.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Recall")]
pub struct Body {
    /// Vectors to search by, in the form that the column's type takes.
    #[serde(default)]
    #[schemars(with = "Vec<vector::Forms>", length(max = 1000))]
    queries: Vec<Box<RawValue>>,
    /// Without `queries`: so many rows, drawn by chance, are searched by.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 1000))]
    sample: usize,
    /// Rows each search wants.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 1000))]
    limit: usize,
    /// The vector column; the first one when left out.
    #[serde(default)]
    using: Option<String>,
    /// Only rows that pass.
    #[serde(default)]
    filter: Option<Written>,
    /// Values of the parameters of a filter in SQL.
    #[serde(default)]
    params: Vec<Json>,
    /// How hard to search.
    #[serde(default, deserialize_with = "json::object")]
    search: Tuning,
    #[serde(default, deserialize_with = "json::object")]
    consistency: Freshness,
}

/// How hard to search.
#[derive(Deserialize, Default, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RecallTuning")]
struct Tuning {
    /// Search width: more finds more, and takes longer.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100_000))]
    ef: Option<usize>,
    /// How much is compared by full vectors.
    #[serde(default)]
    exactness: Exactness,
}

fn hundred() -> usize {
    100
}

fn ten() -> usize {
    10
}

/// Measures.
pub async fn recall(
    State(app): Shared,
    Name(collection): Name,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let def = app.query.definition(&collection)?;
    let fields = "queries, sample, limit, using, filter, params, search {ef, exactness}, consistency";
    let body: Body = parse(body, fields)?;
    let using = body.using.as_deref();
    let query = |json: &RawValue| vector::parse(&def, using, json).map(SearchBy::Vector);
    let request = RecallRequest {
        queries: body.queries.iter().map(|json| query(json)).collect::<Result<_, _>>()?,
        sample: body.sample,
        limit: body.limit,
        filter: parse_filter(&def, body.filter.as_ref(), &body.params)?,
        ef: body.search.ef,
        exactness: body.search.exactness,
        consistency: freshness(Some(body.consistency))?,
        using: body.using,
        collection,
    };
    // Waiting for the view holds nobody up.
    app.query.pin(&request.consistency).await?;
    // It is long work: one at a time, beside others' searches.
    let _one = app.measuring.lock().await;
    let (pinned, _turn) = app.admitted(&request.consistency, Class::Batch).await?;
    let report = app.query.recall(&pinned, &request).await?;
    app.query.check_same(&def)?;
    let lsn = report.applied_lsn;
    Ok(rendered(&report, lsn))
}
