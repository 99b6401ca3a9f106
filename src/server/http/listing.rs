//! `POST /v1/collections/{name}/scroll`, `/count` and `/facet`: rows in the order of their keys, their number, and their
//! number by value.

use crate::model::{
    AsOf, CollectionDef, CountRequest, Facet, FacetRequest, Facets, Listed, Lsn, Page, RecheckReport, ScrollRequest,
};
use crate::query::filter::Written;
use crate::server::http::access::Who;
use crate::server::http::admission::Class;
use crate::server::http::answers::{milliseconds, render_id, rendered};
use crate::server::http::json::{self, parse};
use crate::server::http::recheck::Asked;
use crate::server::http::search::{Freshness, check_columns, freshness, parse_filter, parse_id};
use crate::server::http::{Name, Shared};
use crate::server::problem::Problem;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use serde_json::value::RawValue;

/// Rows of a collection, page by page.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scroll {
    /// Only rows that pass.
    #[serde(default)]
    filter: Option<Written>,
    /// Values of the parameters of a filter in SQL.
    #[serde(default)]
    params: Vec<Json>,
    /// The key behind which the page starts.
    #[serde(default)]
    after: Option<Json>,
    /// Rows wanted.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 10_000))]
    limit: usize,
    /// Columns of the table to show.
    #[serde(default)]
    columns: Vec<String>,
    #[serde(default, deserialize_with = "json::object")]
    consistency: Freshness,
    #[serde(default)]
    recheck: Asked,
}

fn hundred() -> usize {
    100
}

/// Which rows to count.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// Only rows that pass.
    #[serde(default)]
    filter: Option<Written>,
    /// Values of the parameters of a filter in SQL.
    #[serde(default)]
    params: Vec<Json>,
    #[serde(default, deserialize_with = "json::object")]
    consistency: Freshness,
}

/// Rows by the values of a column.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "FacetRequest")]
pub struct ByValue {
    /// A filter column.
    column: String,
    /// Only rows that pass.
    #[serde(default)]
    filter: Option<Written>,
    /// Values of the parameters of a filter in SQL.
    #[serde(default)]
    params: Vec<Json>,
    /// Values wanted.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 10_000))]
    limit: usize,
    #[serde(default, deserialize_with = "json::object")]
    consistency: Freshness,
}

fn ten() -> usize {
    10
}

/// The most frequent values of a column, as indexed.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Facets")]
pub struct Counts {
    /// Most rows first; ties by value.
    facets: Vec<Facet>,
    /// Different values there are, NULL included.
    distinct: usize,
    /// Rows that pass.
    total: u64,
    #[serde(flatten)]
    moment: Moment,
}

/// As of when an answer is.
#[derive(Serialize, JsonSchema)]
pub(super) struct Moment {
    complete: bool,
    applied_lsn: Lsn,
    staleness_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale: Option<String>,
}

/// A page of rows in the order of their keys.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Page")]
pub struct Rows {
    rows: Vec<Row>,
    /// The next page's `after`; null on the last one.
    next: Option<Json>,
    #[serde(flatten)]
    moment: Moment,
    recheck: RecheckReport,
}

/// One row of a page.
#[derive(Serialize, JsonSchema)]
struct Row {
    id: Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<std::collections::BTreeMap<String, Json>>")]
    columns: Option<Box<RawValue>>,
    vector_lsn: Lsn,
}

/// The number of rows, as indexed.
#[derive(Serialize, JsonSchema)]
pub struct Counted {
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
    let body: Scroll = parse(
        body,
        "filter, params, after, limit, columns, recheck, consistency {at_least, max_staleness_ms, timeout_ms}",
    )?;
    check_columns(&body.columns)?;
    let request = ScrollRequest {
        collection,
        filter: confined.filter(parse_filter(&def, body.filter.as_ref(), &body.params)?),
        recheck: confined.recheck(body.recheck.level, &body.columns),
        viewer: body.recheck.viewer,
        after: body.after.map(|id| parse_id(&def, &id)).transpose()?,
        limit: body.limit,
        columns: body.columns,
        consistency: freshness(Some(body.consistency))?,
    };
    let (pinned, _turn) = app.admitted(&request.consistency, Class::Cheap).await?;
    let page = app.query.scroll(&pinned, &request).await?;
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
    let body: Count = parse(body, "filter, params, consistency {at_least, max_staleness_ms, timeout_ms}")?;
    let filter = confined.filter(parse_filter(&def, body.filter.as_ref(), &body.params)?);
    let request = CountRequest { collection, filter, consistency: freshness(Some(body.consistency))? };
    let (pinned, _turn) = app.admitted(&request.consistency, Class::Cheap).await?;
    let (count, as_of) = app.query.count(&pinned, &request)?;
    app.query.check_same(&def)?;
    let lsn = as_of.applied_lsn;
    Ok(rendered(&Counted { count, moment: moment(as_of) }, lsn))
}

/// The most frequent values.
pub async fn facet(
    State(app): Shared,
    Who(who): Who,
    Name(collection): Name,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let def = app.query.definition(&collection)?;
    let confined = who.confined(&def)?;
    let body: ByValue =
        parse(body, "column, filter, params, limit, consistency {at_least, max_staleness_ms, timeout_ms}")?;
    let request = FacetRequest {
        collection,
        column: body.column,
        filter: confined.filter(parse_filter(&def, body.filter.as_ref(), &body.params)?),
        limit: body.limit,
        consistency: freshness(Some(body.consistency))?,
    };
    let (pinned, _turn) = app.admitted(&request.consistency, Class::Cheap).await?;
    let Facets { facets, distinct, total, as_of } = app.query.facet(&pinned, &request)?;
    app.query.check_same(&def)?;
    let lsn = as_of.applied_lsn;
    Ok(rendered(&Counts { facets, distinct, total, moment: moment(as_of) }, lsn))
}

pub(super) fn moment(as_of: AsOf) -> Moment {
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
