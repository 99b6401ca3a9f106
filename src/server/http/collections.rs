//! What there is: collections, their progress, rows that could not be indexed, verification.

use crate::consistency::{blocking, verify};
use crate::engine::tiers::{self, TierReport};
use crate::engine::view::{CollectionView, View};
use crate::model::{CollectionDef, VectorColumn};
use crate::query::QueryError;
use crate::replication::progress::Phase;
use crate::server::http::access::Who;
use crate::server::http::listing::parse;
use crate::server::http::search::parse_id;
use crate::server::http::{App, Name, Shared};
use crate::server::problem::Problem;
use crate::storage::state::{CollectionState, DeadLetter};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// How far a copy has come.
#[derive(Serialize)]
struct Copy {
    /// Rows read from the source.
    rows_read: u64,
    /// The share of the table's pages read, 0 to 1.
    share_read: f64,
    /// Seconds until all is read, at the speed so far.
    eta_s: Option<f64>,
    /// Rows taken into the index.
    rows_loaded: u64,
    /// Vectors linked into the graph.
    rows_linked: u64,
}

/// A vector column with its figures.
#[derive(Serialize)]
struct Vector<'a> {
    #[serde(flatten)]
    column: &'a VectorColumn,
    /// Vectors that can be found.
    vectors: usize,
    /// Nodes in segments, dead ones included.
    nodes: usize,
    /// Nodes reachable by walks; the others are scanned.
    linked: usize,
    /// Segments.
    segments: usize,
    /// Nodes by what walks compare.
    encodings: BTreeMap<&'static str, u32>,
    /// Vectors and links in memory.
    memory_bytes: usize,
    /// Nodes by how they are kept.
    tiers: Vec<TierReport>,
}

/// A collection as shown.
#[derive(Serialize)]
pub struct Shown {
    name: String,
    table: String,
    key: serde_json::Value,
    filter_columns: serde_json::Value,
    vectors: serde_json::Value,
    #[serde(flatten)]
    state: CollectionState,
    /// Consistent point of the copy it grew from; another one means that it was copied again.
    copied_at: String,
    rows: u64,
    dead_letters: u64,
    graph_writes: u64,
    /// Its segments are being made one, as somebody asked.
    compacting: bool,
    /// Of the copy that will answer when it is whole; until then this one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<Copy>,
    /// Why a copy that is asked for or under way does not go on, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
    applied_lsn: String,
    staleness_ms: Option<f64>,
}

fn shown(app: &App, view: &View, found: &CollectionView) -> Shown {
    let applied = view.applied;
    let CollectionDef { name, schema, table, key, filters, .. } = &*found.def;
    let vector = |index: &std::sync::Arc<crate::engine::view::IndexView>| {
        let (nodes, linked) = index.linked();
        let mut encodings = BTreeMap::new();
        for segment in &index.segments {
            *encodings.entry(segment.graph.encoding().name()).or_default() += segment.graph.len();
        }
        serde_json::to_value(Vector {
            column: &index.column,
            vectors: index.live,
            nodes,
            linked,
            segments: index.segments.len(),
            encodings,
            memory_bytes: index.memory_bytes(),
            tiers: tiers::report(index),
        })
        .unwrap_or_default()
    };
    let frontier = &app.query.frontier;
    let arriving = frontier.serving().zip(view.incoming.get(name));
    let failed = view.incoming.get(name).and_then(|arriving| arriving.failed.clone());
    let copy = arriving.map(|(serving, arriving)| {
        let id = arriving.def.id;
        let (read, taken) = (frontier.progress.copy(id), serving.engine.copy_progress(id));
        Copy {
            rows_read: read.rows.load(Ordering::Relaxed),
            share_read: read.share(),
            eta_s: read.eta_s(),
            rows_loaded: taken.loaded.load(Ordering::Relaxed),
            rows_linked: taken.linked.load(Ordering::Relaxed),
        }
    });
    let follows = found.state == CollectionState::Live;
    Shown {
        name: name.clone(),
        table: format!("{schema}.{table}"),
        key: serde_json::to_value(key).unwrap_or_default(),
        filter_columns: serde_json::to_value(filters).unwrap_or_default(),
        vectors: found.indexes.iter().map(vector).collect(),
        state: found.state.clone(),
        copied_at: found.copied_at.to_string(),
        rows: found.rows,
        dead_letters: found.dead_letters,
        graph_writes: found.graph_writes,
        compacting: frontier.serving().is_some_and(|serving| serving.engine.is_compacting(found.def.id)),
        copy,
        trouble: failed.or_else(|| trouble(app)),
        applied_lsn: applied.to_string(),
        staleness_ms: frontier.staleness(applied).filter(|_| follows).map(|age| age.as_secs_f64() * 1000.0),
    }
}

/// Why no copy goes on now, if so: the source is away, or refuses.
fn trouble(app: &App) -> Option<String> {
    let progress = &app.query.frontier.progress;
    match progress.phase() {
        Phase::Streaming => progress.copy_trouble(),
        Phase::Starting => None,
        Phase::Waiting { reason } | Phase::Stopped { reason } | Phase::Retrying { error: reason } => Some(reason),
    }
}

/// `GET /v1/collections`
pub async fn list(State(app): Shared, Who(who): Who) -> Result<Json<serde_json::Value>, Problem> {
    let (_, view) = app.query.frontier.view(&Default::default()).await?;
    let json = |found| serde_json::to_value(shown(&app, &view, found)).unwrap_or_default();
    let refused = |(name, reason): (String, String)| serde_json::json!({ "name": name, "state": "refused", "reason": reason, "rows": 0, "dead_letters": 0 });
    let refused = app.query.frontier.progress.refused().into_iter().filter(|(name, _)| who.may_see(name)).map(refused);
    let visible = view.collections.values().filter(|found| who.may_see(&found.def.name));
    // Tiers are counted row by row.
    let all: Vec<_> = blocking(|| visible.map(|found| json(found)).chain(refused).map(|one| who.shown(one)).collect());
    Ok(Json(serde_json::json!({ "collections": all })))
}

/// `GET /v1/collections/{name}`
pub async fn show(State(app): Shared, Who(who): Who, Name(name): Name) -> Result<Json<serde_json::Value>, Problem> {
    app.query.definition(&name)?;
    let (_, view) = app.query.frontier.view(&Default::default()).await?;
    let found = view.collections.get(&name).ok_or(QueryError::Copying(name))?;
    let shown = blocking(|| serde_json::to_value(shown(&app, &view, found)).unwrap_or_default());
    Ok(Json(who.shown(shown)))
}

/// Dead letters shown at once.
const LETTERS: usize = 1000;

/// `GET /v1/collections/{name}/dead_letters`
pub async fn dead_letters(State(app): Shared, Name(name): Name) -> Result<Json<serde_json::Value>, Problem> {
    let def = app.query.definition(&name)?;
    let (serving, view) = app.query.frontier.view(&Default::default()).await?;
    let letters: Vec<DeadLetter> = serving.engine.dead_letters(def.id, LETTERS).map_err(QueryError::Storage)?;
    let total = view.collections.get(&name).map_or(0, |found| found.dead_letters);
    Ok(Json(serde_json::json!({ "total": total, "dead_letters": letters })))
}

/// `POST /v1/admin/collections/{name}/rebuild`: a new copy; what there is answers until it is whole.
pub async fn rebuild(State(app): Shared, Name(name): Name) -> Result<(StatusCode, Json<serde_json::Value>), Problem> {
    let def = app.query.definition(&name)?;
    app.query.frontier.progress.ask_rebuild(&def.name);
    let body = serde_json::json!({ "collection": def.name, "follow": format!("/v1/collections/{name}") });
    Ok((StatusCode::ACCEPTED, Json(body)))
}

/// `POST /v1/admin/collections/{name}/compact`: one segment, for each tier, of the sealed ones, in the background; the
/// collection says `compacting` until that is done.
pub async fn compact(State(app): Shared, Name(name): Name) -> Result<(StatusCode, Json<serde_json::Value>), Problem> {
    let def = app.query.definition(&name)?;
    let (serving, view) = app.query.frontier.view(&Default::default()).await?;
    serving.engine.compact(view.collections.get(&name).ok_or(QueryError::Copying(name.clone()))?);
    let body = serde_json::json!({ "collection": def.name, "follow": format!("/v1/collections/{name}") });
    Ok((StatusCode::ACCEPTED, Json(body)))
}

/// What is promoted.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promoted {
    id: serde_json::Value,
}

/// `POST /v1/admin/collections/{name}/promote`: a row is counted as used so much that it becomes hot.
pub async fn promote(
    State(app): Shared,
    Name(name): Name,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<serde_json::Value>), Problem> {
    let def = app.query.definition(&name)?;
    let Promoted { id } = parse(body, "id")?;
    let key = parse_id(&def, &id)?;
    let (serving, view) = app.query.frontier.view(&Default::default()).await?;
    let found = view.collections.get(&name).ok_or(QueryError::Copying(name))?;
    let promoted = serving.engine.promote(found, &key).map_err(QueryError::Storage)?;
    Ok((StatusCode::ACCEPTED, Json(serde_json::json!({ "collection": def.name, "promoted": promoted }))))
}

/// `POST /v1/admin/collections/{name}/verify`
pub async fn verify(State(app): Shared, Name(name): Name) -> Result<Json<verify::Report>, Problem> {
    let def = app.query.definition(&name)?;
    let _turn = app.verifying.lock().await;
    let report = verify::verify(&app.query.frontier, &app.dsn, &app.pool, &def.name).await?;
    report.map(Json).ok_or_else(|| QueryError::Copying(name).into())
}
