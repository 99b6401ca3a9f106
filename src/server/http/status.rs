//! `GET /v1/status`: everything an operator asks first.

use crate::consistency::frontier::Positions;
use crate::model::registration::Outcome;
use crate::replication::guard::Shown as Slots;
use crate::replication::progress::Phase;
use crate::server::http::{App, Shared, probes};
use crate::source::preflight::{Finding, Severity};
use crate::storage::state::CollectionState;
use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

/// What the service is doing.
#[derive(Serialize, JsonSchema)]
pub struct Status {
    version: &'static str,
    uptime_s: u64,
    /// The source, without secrets.
    source: String,
    /// The slot that is followed; null while there is no data.
    slot: Option<String>,
    /// What the replication is doing.
    replication: Phase,
    /// Why answers may miss changes, if so.
    stale: Option<String>,
    /// Why a copy does not go on, if so.
    copy_trouble: Option<String>,
    positions: Positions,
    protection: Protection,
    doctor: Doctor,
    /// Null while there is no data.
    collections: Option<Vec<Line>>,
    /// Collections that are registered by SQL; null where there are none.
    registrations: Option<Registrations>,
    /// Everything that stands in the way of being ready; null when it is.
    not_ready: Option<String>,
}

/// A collection in brief.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CollectionStatus")]
struct Line {
    name: String,
    rows: u64,
    /// Rows that could not be indexed.
    dead_letters: u64,
    state: LineState,
}

/// Its state.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "CollectionStateOrRefusal")]
enum LineState {
    Here(CollectionState),
    Refused(Refusal),
}

/// It is configured and cannot be copied.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "state", rename_all = "lowercase")]
enum Refusal {
    Refused {
        /// Why.
        reason: String,
    },
}

/// What became of what is registered by SQL.
#[derive(Serialize, JsonSchema)]
struct Registrations {
    rows: Vec<Registration>,
    /// Why what is registered cannot be looked at, if so.
    trouble: Option<String>,
}

/// A collection that is registered.
#[derive(Serialize, JsonSchema)]
struct Registration {
    name: String,
    taken: bool,
    /// Why not.
    reason: Option<String>,
}

/// Our slots on the source.
#[derive(Serialize, JsonSchema)]
struct Protection {
    #[serde(flatten)]
    slots: Slots,
    /// Null: not yet.
    measured_s_ago: Option<u64>,
}

/// What the doctor found at its last visit.
#[derive(Serialize, JsonSchema)]
struct Doctor {
    /// Null: not yet.
    checked_s_ago: Option<u64>,
    ok: usize,
    warnings: usize,
    errors: usize,
    /// What is not as it should be.
    findings: Vec<Finding>,
}

/// `GET /v1/status`
pub async fn status(State(app): Shared) -> Json<Status> {
    let frontier = &app.query.frontier;
    let serving = frontier.serving();
    Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: app.started.elapsed().as_secs(),
        source: app.dsn.to_string(),
        slot: serving.as_ref().map(|serving| serving.slot.clone()),
        replication: frontier.progress.phase(),
        stale: frontier.progress.stale(),
        copy_trouble: frontier.progress.copy_trouble(),
        positions: frontier.positions(),
        protection: protection(&app),
        doctor: doctor(&app),
        collections: collections(&app),
        registrations: registrations(&app),
        not_ready: probes::not_ready(&app),
    })
}

fn collections(app: &App) -> Option<Vec<Line>> {
    let view = app.query.frontier.serving()?.engine.view();
    let here = view.collections.iter().map(|(name, found)| Line {
        name: name.clone(),
        rows: found.rows,
        dead_letters: found.dead_letters,
        state: LineState::Here(found.state.clone()),
    });
    let refused = |(name, reason)| Line {
        name,
        rows: 0,
        dead_letters: 0,
        state: LineState::Refused(Refusal::Refused { reason }),
    };
    Some(here.chain(app.query.frontier.progress.refused().into_iter().map(refused)).collect())
}

fn registrations(app: &App) -> Option<Registrations> {
    let outcomes = app.query.frontier.progress.registrations();
    let row = |row: &Outcome| Registration {
        name: row.name.clone(),
        taken: row.refused.is_none(),
        reason: row.refused.clone(),
    };
    let rows: Vec<_> = outcomes.rows.iter().map(row).collect();
    (!rows.is_empty() || outcomes.trouble.is_some())
        .then_some(Registrations { rows, trouble: outcomes.trouble.clone() })
}

fn protection(app: &App) -> Protection {
    let slots = app.health.protection.shown();
    Protection { measured_s_ago: slots.measured.map(|at| at.elapsed().as_secs()), slots }
}

fn doctor(app: &App) -> Doctor {
    let findings = app.health.findings.findings();
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    Doctor {
        checked_s_ago: app.health.findings.age().map(|age| age.as_secs()),
        ok: count(Severity::Ok),
        warnings: count(Severity::Warning),
        errors: count(Severity::Error),
        findings: findings.iter().filter(|finding| finding.severity != Severity::Ok).cloned().collect(),
    }
}
