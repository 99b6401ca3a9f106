//! Is it alive, is it ready, what are its figures.

use crate::engine::tiers;
use crate::engine::view::View;
use crate::model::Lsn;
use crate::replication::guard::Holding;
use crate::server::http::{App, Shared};
use crate::storage::state::CollectionState;
use crate::telemetry::names;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

/// `GET /livez`: the event loop answers. Never depends on Postgres.
pub async fn livez() -> &'static str {
    "ok\n"
}

/// Who answers.
#[derive(Serialize, JsonSchema)]
pub struct Version {
    name: &'static str,
    version: &'static str,
}

/// `GET /version`
pub async fn version() -> Json<Version> {
    Json(Version { name: "ruvector", version: env!("CARGO_PKG_VERSION") })
}

/// Can searches be answered from what follows the source?
#[derive(Serialize, JsonSchema)]
pub struct Readiness {
    ready: bool,
    /// Everything that stands in the way. Where keys are needed `/v1/status` has it, and the collections, instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Collections that do not follow their tables, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    not_following: BTreeMap<String, String>,
}

/// Why it is not ready, if so: everything that stands in the way. A collection that is paused while others follow is no
/// reason: those are asked for here too.
pub(super) fn not_ready(app: &App) -> Option<String> {
    let frontier = &app.query.frontier;
    let Some(serving) = frontier.serving() else { return Some("no data is loaded yet".into()) };
    let view = serving.engine.view();
    let mut reasons = Vec::new();
    if !serving.kept.load(Ordering::Relaxed) {
        reasons.push("the copy is being completed".into());
    }
    if view.collections.values().all(|found| found.state != CollectionState::Live) {
        let copying = view.collections.values().filter(|found| found.state == CollectionState::Copying);
        reasons.extend(copying.map(|found| format!("collection {} is being copied", found.def.name)));
        let unfit = unfit(app, &view);
        reasons.extend(unfit.iter().map(|(name, (word, reason))| format!("collection {name} {word}: {reason}")));
    }
    if let Some(reason) = frontier.progress.stale() {
        reasons.push(format!("stale: {reason}"));
    }
    match frontier.staleness(view.applied) {
        None => reasons.push("the source has not been heard of yet".into()),
        Some(age) if age > app.options.ready_staleness => {
            reasons.push(format!("staleness is {:.1} s", age.as_secs_f64()));
        }
        Some(_) => {}
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// The collections that do not follow their tables: by name, how that is called and why.
fn unfit(app: &App, view: &View) -> BTreeMap<String, (&'static str, String)> {
    let paused = view.collections.values().filter_map(|found| match &found.state {
        CollectionState::Paused { reason } => Some((found.def.name.clone(), ("is paused", reason.clone()))),
        CollectionState::Live | CollectionState::Copying => None,
    });
    let refused = app.query.frontier.progress.refused().into_iter();
    refused.map(|(name, reason)| (name, ("cannot be copied", reason))).chain(paused).collect()
}

/// `GET /readyz`: searches can be answered from what follows the source. Which collections do not follow is told beside,
/// and why, where nobody is asked who they are.
pub async fn readyz(State(app): Shared) -> Response {
    let view = app.query.frontier.serving().map(|serving| serving.engine.view()).unwrap_or_default();
    let not_following =
        unfit(&app, &view).into_iter().map(|(name, (word, reason))| (name, format!("{word}: {reason}"))).collect();
    let reason = not_ready(&app);
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let ready = reason.is_none();
    let told = match app.options.access.are_needed() {
        true => Readiness { ready, reason: None, not_following: BTreeMap::new() },
        false => Readiness { ready, reason, not_following },
    };
    (code, Json(told)).into_response()
}

/// `GET /metrics`
pub async fn metrics(State(app): Shared) -> Response {
    gauges(&app);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render()).into_response()
}

/// What `wal_status` can be, and what there is where there is no slot.
const SLOT_STATUSES: [&str; 5] = ["reserved", "extended", "unreserved", "lost", "missing"];

/// Of the slot that keeps most, which is the one that hurts.
fn slot_gauges(app: &App) {
    let shown = app.health.protection.shown();
    let Some(measured) = shown.measured else { return };
    metrics::gauge!(names::SLOT_MEASURED_AGE).set(measured.elapsed().as_secs_f64());
    let held = shown.holder == Holding::Ours;
    metrics::gauge!(names::SLOT_HELD).set(if held { 1.0 } else { 0.0 });
    metrics::gauge!(names::SLOT_BUDGET).set(shown.budget_bytes as f64);
    metrics::counter!(names::HEARTBEATS).absolute(shown.heartbeat.written);
    let most = shown.slots.iter().max_by_key(|slot| slot.retained_wal_bytes);
    let retained = most.and_then(|slot| slot.retained_wal_bytes).unwrap_or(0) as f64;
    metrics::gauge!(names::SLOT_RETAINED).set(retained);
    let share = if shown.budget_bytes > 0 { retained / shown.budget_bytes as f64 } else { 0.0 };
    metrics::gauge!(names::SLOT_BUDGET_SHARE).set(share);
    // Without a limit there is no end.
    let safe = most.and_then(|slot| slot.safe_wal_bytes).map_or(f64::INFINITY, |bytes| bytes as f64);
    metrics::gauge!(names::SLOT_SAFE).set(safe);
    let status = most.map_or("missing", |slot| slot.wal_status.as_deref().unwrap_or("lost"));
    for one in SLOT_STATUSES {
        metrics::gauge!(names::SLOT_STATUS, "status" => one).set(if one == status { 1.0 } else { 0.0 });
    }
}

/// Gauges are read when somebody looks.
fn gauges(app: &App) {
    slot_gauges(app);
    let frontier = &app.query.frontier;
    let positions = frontier.positions();
    metrics::gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics::gauge!(names::READY).set(if not_ready(app).is_none() { 1.0 } else { 0.0 });
    let position = |name, lsn: Lsn| metrics::gauge!(name).set(lsn.0 as f64);
    metrics::gauge!(names::HTTP_WAITING).set(app.admission.waiting() as f64);
    position(names::RECEIVED_LSN, positions.received);
    position(names::DURABLE_LSN, positions.durable);
    position(names::APPLIED_LSN, positions.applied);
    position(names::CONFIRMED_LSN, positions.confirmed);
    for (stage, lsn) in
        [("received", positions.received), ("durable", positions.durable), ("applied", positions.applied)]
    {
        metrics::gauge!(names::LAG_BYTES, "stage" => stage).set(positions.source.bytes_since(lsn) as f64);
    }
    if let Some(ms) = positions.staleness_ms {
        metrics::gauge!(names::STALENESS).set(ms / 1000.0);
    }
    if let Some(heard) = frontier.progress.last_heard() {
        metrics::gauge!(names::HEARD_AGE).set(heard.elapsed().as_secs_f64());
    }
    let Some(serving) = frontier.serving() else { return };
    let view = serving.engine.view();
    follows(app, &view);
    for (name, found) in &view.collections {
        let labels = [("collection", name.clone())];
        metrics::gauge!(names::COLLECTION_ROWS, &labels).set(found.rows as f64);
        metrics::gauge!(names::DEAD_LETTERS, &labels).set(found.dead_letters as f64);
        metrics::counter!(names::GRAPH_WRITES, &labels).absolute(found.graph_writes);
        let copy = frontier.progress.copy(found.def.id);
        metrics::gauge!(names::COPY_ROWS, &labels).set(copy.rows.load(Ordering::Relaxed) as f64);
        if let Some(expected) = copy.rows_expected() {
            metrics::gauge!(names::COPY_ROWS_EXPECTED, &labels).set(expected);
        }
        if let Some(eta) = copy.eta_s() {
            metrics::gauge!(names::COPY_ETA, &labels).set(eta);
        }
        for index in &found.indexes {
            let labels = [("collection", name.clone()), ("vector", index.column.name.clone())];
            let (nodes, _) = index.linked();
            metrics::gauge!(names::INDEX_VECTORS, &labels).set(index.live as f64);
            metrics::gauge!(names::INDEX_TOMBSTONES, &labels).set(nodes.saturating_sub(index.live) as f64);
            metrics::gauge!(names::INDEX_BYTES, &labels).set(index.memory_bytes() as f64);
            metrics::gauge!(names::INDEX_SEGMENTS, &labels).set(index.segments.len() as f64);
            for (tier, vectors, bytes) in tiers::sizes(index) {
                let [collection, vector] = labels.clone();
                let labels = [collection, vector, ("tier", tier.to_owned())];
                metrics::gauge!(names::INDEX_TIER_VECTORS, &labels).set(vectors as f64);
                metrics::gauge!(names::INDEX_TIER_BYTES, &labels).set(bytes as f64);
            }
        }
    }
}

/// Which collections follow their tables. One that is gone has no number any more, rather than its last.
fn follows(app: &App, view: &View) {
    let unfit = unfit(app, view);
    let told = &mut *app.told.lock();
    let now: BTreeSet<String> = view.collections.keys().chain(unfit.keys()).cloned().collect();
    for name in told.union(&now) {
        let value = match (now.contains(name), unfit.contains_key(name)) {
            (false, _) => f64::NAN,
            (true, true) => 0.0,
            (true, false) => 1.0,
        };
        metrics::gauge!(names::COLLECTION_FOLLOWS, "collection" => name.clone()).set(value);
    }
    *told = now;
}
