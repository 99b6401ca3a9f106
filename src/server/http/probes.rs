//! Is it alive, is it ready, what are its figures.

use crate::engine::tiers;
use crate::engine::view::View;
use crate::model::Lsn;
use crate::model::registration::Outcome;
use crate::replication::guard::Holding;
use crate::server::http::{App, Name, Shared};
use crate::server::problem::{self, Problem};
use crate::source::preflight::Severity;
use crate::storage::state::CollectionState;
use crate::telemetry::names;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

/// `GET /livez`: the event loop answers. Never depends on Postgres.
pub async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /version`
pub async fn version() -> Json<serde_json::Value> {
    Json(json!({ "name": "ruvector", "version": env!("CARGO_PKG_VERSION") }))
}

/// Why it is not ready, if so: everything that stands in the way. A collection that is paused while others follow is no
/// reason: those are asked for here too.
fn not_ready(app: &App) -> Option<String> {
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
    let unfit: BTreeMap<_, _> =
        unfit(&app, &view).into_iter().map(|(name, (word, reason))| (name, format!("{word}: {reason}"))).collect();
    let reason = not_ready(&app);
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = json!({ "ready": reason.is_none() });
    if app.options.access.are_needed() {
        return (code, Json(body)).into_response();
    }
    if let Some(reason) = reason {
        body["reason"] = reason.into();
    }
    if !unfit.is_empty() {
        body["not_following"] = json!(unfit);
    }
    (code, Json(body)).into_response()
}

/// `GET /v1/status`: everything an operator asks first.
pub async fn status(State(app): Shared) -> Json<serde_json::Value> {
    let frontier = &app.query.frontier;
    let serving = frontier.serving();
    let collections = serving.as_ref().map(|serving| {
        let view = serving.engine.view();
        let line = |(name, found): (&String, &std::sync::Arc<crate::engine::view::CollectionView>)| {
            json!({ "name": name, "rows": found.rows, "dead_letters": found.dead_letters, "state": found.state })
        };
        let refused = |(name, reason): (String, String)| {
            let state = json!({ "state": "refused", "reason": reason });
            json!({ "name": name, "rows": 0, "dead_letters": 0, "state": state })
        };
        let refused = frontier.progress.refused().into_iter().map(refused);
        view.collections.iter().map(line).chain(refused).collect::<Vec<_>>()
    });
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": app.started.elapsed().as_secs(),
        "source": app.dsn.to_string(),
        "slot": serving.as_ref().map(|serving| serving.slot.clone()),
        "replication": frontier.progress.phase(),
        "stale": frontier.progress.stale(),
        "copy_trouble": frontier.progress.copy_trouble(),
        "positions": frontier.positions(),
        "protection": protection(&app),
        "doctor": doctor(&app),
        "collections": collections,
        "registrations": registrations(&app),
        "not_ready": not_ready(&app),
    }))
}

/// What became of what is registered by SQL; null where nothing is.
fn registrations(app: &App) -> serde_json::Value {
    let outcomes = app.query.frontier.progress.registrations();
    let row = |row: &Outcome| json!({ "name": row.name, "taken": row.refused.is_none(), "reason": row.refused });
    let rows: Vec<_> = outcomes.rows.iter().map(row).collect();
    match rows.is_empty() && outcomes.trouble.is_none() {
        true => serde_json::Value::Null,
        false => json!({ "rows": rows, "trouble": outcomes.trouble }),
    }
}

/// Our slots on the source.
fn protection(app: &App) -> serde_json::Value {
    let shown = app.health.protection.shown();
    let mut json = serde_json::to_value(&shown).unwrap_or_default();
    json["measured_s_ago"] = shown.measured.map(|at| at.elapsed().as_secs()).into();
    json
}

/// What the doctor found at its last visit.
fn doctor(app: &App) -> serde_json::Value {
    let findings = app.health.findings.findings();
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    json!({
        "checked_s_ago": app.health.findings.age().map(|age| age.as_secs()),
        "ok": count(Severity::Ok),
        "warnings": count(Severity::Warning),
        "errors": count(Severity::Error),
        "findings": findings.iter().filter(|finding| finding.severity != Severity::Ok).collect::<Vec<_>>(),
    })
}

/// `GET /errors/{code}`
pub async fn error_page(Name(code): Name) -> Result<Json<serde_json::Value>, Problem> {
    let kind = problem::ALL.iter().find(|kind| kind.code == code);
    let kind = kind.ok_or_else(|| Problem::new(problem::UNKNOWN_ROUTE, format!("there is no error {code}")))?;
    Ok(Json(json!({
        "code": kind.code,
        "title": kind.title,
        "status": kind.status,
        "sqlstate": kind.sqlstate,
        "retryable": kind.retryable,
    })))
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
