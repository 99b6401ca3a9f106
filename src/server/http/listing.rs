//! `POST /v1/collections/{name}/scroll` and `/count`: rows in the order of their keys, and their number.

use crate::model::{AsOf, CollectionDef, CountRequest, Listed, Lsn, Page, Recheck, RecheckReport, ScrollRequest};
use crate::server::http::access::Who;
use crate::server::http::answers::{milliseconds, render_id, rendered};
use crate::server::http::search::{Freshness, check_columns, freshness, parse_filter, parse_id, too_large};
use crate::server::http::{Name, Shared};
use crate::server::problem::{self, Problem};
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use serde_json::value::RawValue;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scroll {
    #[serde(default)]
    filter: Option<String>,
    #[serde(default)]
    params: Vec<Json>,
    #[serde(default)]
    after: Option<Json>,
    #[serde(default = "hundred")]
    limit: usize,
    #[serde(default)]
    columns: Vec<String>,
    #[serde(default)]
    consistency: Freshness,
    #[serde(default)]
    recheck: Recheck,
}

fn hundred() -> usize {
    100
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Count {
    #[serde(default)]
    filter: Option<String>,
    #[serde(default)]
    params: Vec<Json>,
    #[serde(default)]
    consistency: Freshness,
}

#[derive(Serialize)]
struct Moment {
    complete: bool,
    applied_lsn: Lsn,
    staleness_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale: Option<String>,
}

#[derive(Serialize)]
struct Rows {
    rows: Vec<Row>,
    /// The next page's `after`.
    next: Option<Json>,
    #[serde(flatten)]
    moment: Moment,
    recheck: RecheckReport,
}

#[derive(Serialize)]
struct Row {
    id: Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    columns: Option<Box<RawValue>>,
    vector_lsn: Lsn,
}

#[derive(Serialize)]
struct Counted {
    count: u64,
    #[serde(flatten)]
    moment: Moment,
}

/// A page of rows.
pub async fn scroll(
    State(app): Shared,
    Who(who): Who,
    Name(collection): Name,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let def = app.query.definition(&collection)?;
    let confined = who.confined(&def)?;
    let body: Scroll =
        parse(body, "filter, params, after, limit, columns, recheck, consistency {at_least, timeout_ms}")?;
    check_columns(&body.columns)?;
    let request = ScrollRequest {
        collection,
        filter: confined.filter(parse_filter(&def, body.filter.as_deref(), &body.params)?),
        recheck: confined.recheck(body.recheck, &body.columns),
        after: body.after.map(|id| parse_id(&def, &id)).transpose()?,
        limit: body.limit,
        columns: body.columns,
        consistency: freshness(Some(body.consistency))?,
    };
    app.query.frontier.view(&request.consistency).await?;
    let _turn = app.turn().await?;
    let page = app.query.scroll(&request).await?;
    app.query.check_same(&def)?;
    let lsn = page.as_of.applied_lsn;
    Ok(rendered(&rows(&def, page), lsn))
}

/// The number of rows.
pub async fn count(
    State(app): Shared,
    Who(who): Who,
    Name(collection): Name,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let def = app.query.definition(&collection)?;
    let confined = who.confined(&def)?;
    let body: Count = parse(body, "filter, params, consistency {at_least, timeout_ms}")?;
    let filter = confined.filter(parse_filter(&def, body.filter.as_deref(), &body.params)?);
    let request = CountRequest { collection, filter, consistency: freshness(Some(body.consistency))? };
    app.query.frontier.view(&request.consistency).await?;
    let _turn = app.turn().await?;
    let (count, as_of) = app.query.count(&request).await?;
    app.query.check_same(&def)?;
    let lsn = as_of.applied_lsn;
    Ok(rendered(&Counted { count, moment: moment(as_of) }, lsn))
}

pub(super) fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>, fields: &str) -> Result<T, Problem> {
    let malformed = |error: serde_json::Error| {
        let text = error.to_string();
        let unknown = text.starts_with("unknown field");
        let kind = if unknown { problem::UNKNOWN_FIELD } else { problem::MALFORMED };
        Problem::new(kind, text).hint(format!("the fields are {fields}"))
    };
    serde_json::from_slice(&body.map_err(too_large)?).map_err(malformed)
}

fn moment(as_of: AsOf) -> Moment {
    Moment {
        complete: as_of.complete,
        applied_lsn: as_of.applied_lsn,
        staleness_ms: as_of.staleness.map(milliseconds),
        stale: as_of.stale,
    }
}

fn rows(def: &CollectionDef, page: Page) -> Rows {
    let row =
        |row: Listed| Row { id: render_id(def, &row.key), columns: row.columns, vector_lsn: Lsn(row.version.commit.0) };
    Rows {
        rows: page.rows.into_iter().map(row).collect(),
        next: page.next.map(|key| render_id(def, &key)),
        moment: moment(page.as_of),
        recheck: page.recheck,
    }
}
