//! `GET /v1/lsn`: the positions, once the one asked for is applied.

use crate::consistency::frontier::Positions;
use crate::model::Lsn;
use crate::server::http::Shared;
use crate::server::http::answers::{milliseconds, rendered};
use crate::server::http::search::{Freshness, freshness};
use crate::server::problem::{self, Problem};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use std::time::Instant;

/// Where the index is.
#[derive(Serialize, JsonSchema)]
pub struct Reached {
    /// The position that searches answer from now.
    applied_lsn: Lsn,
    /// Everything the source had that long ago is applied. Null: it has not been heard of yet.
    staleness_ms: Option<f64>,
    /// What waiting took.
    waited_ms: f64,
    positions: Positions,
}

/// Waits for `at_least`, for at most `timeout_ms`.
pub async fn lsn(State(app): Shared, wanted: Result<Query<Freshness>, QueryRejection>) -> Result<Response, Problem> {
    let Query(wanted) = wanted.map_err(|error| {
        Problem::new(problem::MALFORMED, error.body_text())
            .hint("after ? there can be at_least, max_staleness_ms and timeout_ms")
    })?;
    let (consistency, started) = (freshness(Some(wanted))?, Instant::now());
    let current = app.query.frontier.current(&consistency).await?;
    let positions = app.query.frontier.positions();
    let reached = Reached {
        // Others may have gone on since.
        applied_lsn: current.view.applied,
        staleness_ms: current.fresh_as_of.map(|moment| milliseconds(moment.elapsed())),
        waited_ms: milliseconds(started.elapsed()),
        positions,
    };
    Ok(rendered(&reached, current.view.applied))
}
