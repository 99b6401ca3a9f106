//! What there is: collections, their progress, rows that could not be indexed, verification.

use crate::consistency::{blocking, verify};
use crate::engine::tiers::{self, TierReport};
use crate::engine::view::{CollectionView, IndexView, View};
use crate::model::{CollectionDef, ColumnType, FilterColumn, KeyColumn, Lsn, Metric, VectorColumn};
use crate::query::QueryError;
use crate::replication::progress::Phase;
use crate::server::http::access::{Principal, Who};
use crate::server::http::json::parse;
use crate::server::http::search::parse_id;
use crate::server::http::{App, Name, Shared};
use crate::server::problem::Problem;
use crate::storage::state::{CollectionState, DeadLetter};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How far a copy has come.
#[derive(Serialize, JsonSchema)]
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
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "VectorIndex")]
struct Vector {
    #[serde(flatten)]
    column: VectorColumn,
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
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Collection")]
pub struct Shown {
    name: String,
    /// With its schema.
    table: String,
    /// The columns of the key.
    key: Vec<KeyColumn>,
    /// The columns that filters can use.
    filter_columns: Vec<FilterColumn>,
    /// The vector columns.
    vectors: Vec<Vector>,
    #[serde(flatten)]
    state: CollectionState,
    /// Consistent point of the copy it grew from; another one means that it was copied again.
    copied_at: Lsn,
    rows: u64,
    /// Rows of the table by the source's own estimate, as of `source.reconcile_s` ago at most; null where it was never
    /// analysed. `verify` counts.
    source_rows_estimate: Option<u64>,
    /// Rows that could not be indexed.
    dead_letters: u64,
    /// Changes of the graphs since the start.
    graph_writes: u64,
    /// Its segments are being made one, as somebody asked.
    compacting: bool,
    /// Of the copy that will answer when it is whole; until then this one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<Copy>,
    /// Why a copy that is asked for or under way does not go on, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
    /// Everything that ended at or before it is applied.
    applied_lsn: Lsn,
    /// How old that is at most; null where it does not follow, or the source has not been heard of yet.
    staleness_ms: Option<f64>,
}

/// A collection that is configured and cannot be copied.
#[derive(Serialize, JsonSchema)]
pub struct Refused {
    name: String,
    state: RefusedState,
    /// Why.
    reason: String,
    rows: u64,
    dead_letters: u64,
}

/// Its state's name.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum RefusedState {
    /// It is configured and cannot be copied.
    Refused,
}

/// A collection, or what should be one.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "KnownCollection")]
pub enum Known {
    /// All of it.
    Here(Box<Shown>),
    /// It should be one.
    Refused(Refused),
    /// To those who may see some rows only.
    InPart(InPart),
}

/// A collection as it is shown to those who may see some of its rows only: nothing that counts the others.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CollectionInPart", deny_unknown_fields)]
pub struct InPart {
    name: String,
    /// `live`, `copying`, `paused`, or `refused`: then only the name is there beside it.
    state: &'static str,
    #[serde(flatten)]
    parts: Option<Parts>,
}

/// What a collection is made of.
#[derive(Serialize, JsonSchema)]
struct Parts {
    /// With its schema.
    table: String,
    /// The columns of the key.
    key: Vec<KeyColumn>,
    /// The columns that filters can use.
    filter_columns: Vec<FilterColumn>,
    /// The vector columns.
    vectors: Vec<VectorInPart>,
    /// Everything that ended at or before it is applied.
    applied_lsn: Lsn,
    /// How old that is at most; null where it does not follow, or the source has not been heard of yet.
    staleness_ms: Option<f64>,
}

/// A vector column without figures.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct VectorInPart {
    name: String,
    kind: ColumnType,
    metric: Metric,
    /// Null until the first valid vector is seen.
    dimensions: Option<usize>,
}

impl Known {
    /// As this one may see it.
    fn to(self, who: &Principal) -> Known {
        match self {
            Known::Here(shown) if who.filter.is_some() => Known::InPart(shown.in_part()),
            Known::Refused(Refused { name, .. }) if who.filter.is_some() => {
                Known::InPart(InPart { name, state: "refused", parts: None })
            }
            whole => whole,
        }
    }
}

impl Shown {
    fn in_part(self) -> InPart {
        let state = match self.state {
            CollectionState::Copying => "copying",
            CollectionState::Live => "live",
            CollectionState::Paused { .. } => "paused",
        };
        let vector = |Vector { column: VectorColumn { name, kind, metric, dimensions, .. }, .. }| VectorInPart {
            name,
            kind,
            metric,
            dimensions,
        };
        let parts = Parts {
            table: self.table,
            key: self.key,
            filter_columns: self.filter_columns,
            vectors: self.vectors.into_iter().map(vector).collect(),
            applied_lsn: self.applied_lsn,
            staleness_ms: self.staleness_ms,
        };
        InPart { name: self.name, state, parts: Some(parts) }
    }
}

/// All that are configured or registered.
#[derive(Serialize, JsonSchema)]
pub struct Collections {
    collections: Vec<Known>,
}

/// Rows that could not be indexed.
#[derive(Serialize, JsonSchema)]
pub struct DeadLetters {
    /// How many there are.
    total: u64,
    /// The first of them.
    dead_letters: Vec<DeadLetter>,
}

/// What was asked for is under way.
#[derive(Serialize, JsonSchema)]
pub struct Accepted {
    collection: String,
    /// Where its progress is shown.
    follow: String,
}

/// What became of it.
#[derive(Serialize, JsonSchema)]
pub struct Promotion {
    collection: String,
    /// False: there is no such row, or its use is not followed.
    promoted: bool,
}

fn shown(app: &App, view: &View, found: &CollectionView) -> Shown {
    let applied = view.applied;
    let CollectionDef { name, schema, table, key, filters, .. } = &*found.def;
    let vector = |index: &Arc<IndexView>| {
        let (nodes, linked) = index.linked();
        let mut encodings = BTreeMap::new();
        for segment in &index.segments {
            *encodings.entry(segment.graph.encoding().name()).or_default() += segment.graph.len();
        }
        Vector {
            column: index.column.clone(),
            vectors: index.live,
            nodes,
            linked,
            segments: index.segments.len(),
            encodings,
            memory_bytes: index.memory_bytes(),
            tiers: tiers::report(index),
        }
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
        key: key.clone(),
        filter_columns: filters.clone(),
        vectors: found.indexes.iter().map(vector).collect(),
        state: found.state.clone(),
        copied_at: found.copied_at,
        rows: found.rows,
        source_rows_estimate: frontier.progress.source_rows(name),
        dead_letters: found.dead_letters,
        graph_writes: found.graph_writes,
        compacting: frontier.serving().is_some_and(|serving| serving.engine.is_compacting(found.def.id)),
        copy,
        trouble: failed.or_else(|| trouble(app)),
        applied_lsn: applied,
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
pub async fn list(State(app): Shared, Who(who): Who) -> Result<Json<Collections>, Problem> {
    let (_, view) = app.query.frontier.view(&Default::default()).await?;
    let refused = |(name, reason)| {
        Known::Refused(Refused { name, state: RefusedState::Refused, reason, rows: 0, dead_letters: 0 })
    };
    let refused = app.query.frontier.progress.refused().into_iter().filter(|(name, _)| who.may_see(name)).map(refused);
    let visible = view.collections.values().filter(|found| who.may_see(&found.def.name));
    let here = visible.map(|found| Known::Here(Box::new(shown(&app, &view, found))));
    // Tiers are counted row by row.
    let collections = blocking(|| here.chain(refused).map(|one| one.to(&who)).collect());
    Ok(Json(Collections { collections }))
}

/// `GET /v1/collections/{name}`
pub async fn show(State(app): Shared, Who(who): Who, Name(name): Name) -> Result<Json<Known>, Problem> {
    app.query.definition(&name)?;
    let (_, view) = app.query.frontier.view(&Default::default()).await?;
    let found = view.collections.get(&name).ok_or(QueryError::Copying(name))?;
    let shown = Known::Here(Box::new(blocking(|| shown(&app, &view, found))));
    Ok(Json(shown.to(&who)))
}

/// Dead letters shown at once.
const LETTERS: usize = 1000;

/// `GET /v1/collections/{name}/dead_letters`
pub async fn dead_letters(State(app): Shared, Name(name): Name) -> Result<Json<DeadLetters>, Problem> {
    let def = app.query.definition(&name)?;
    let (serving, view) = app.query.frontier.view(&Default::default()).await?;
    let dead_letters = serving.engine.dead_letters(def.id, LETTERS).map_err(QueryError::Storage)?;
    let total = view.collections.get(&name).map_or(0, |found| found.dead_letters);
    Ok(Json(DeadLetters { total, dead_letters }))
}

fn accepted(def: &CollectionDef) -> (StatusCode, Json<Accepted>) {
    let follow = format!("/v1/collections/{}", def.name);
    (StatusCode::ACCEPTED, Json(Accepted { collection: def.name.clone(), follow }))
}

/// `POST /v1/admin/collections/{name}/rebuild`: a new copy; what there is answers until it is whole.
pub async fn rebuild(State(app): Shared, Name(name): Name) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let def = app.query.definition(&name)?;
    app.query.frontier.ask_rebuild(&def.name);
    Ok(accepted(&def))
}

/// `POST /v1/admin/collections/{name}/compact`: one segment, for each tier, of the sealed ones, in the background; the
/// collection says `compacting` until that is done.
pub async fn compact(State(app): Shared, Name(name): Name) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let def = app.query.definition(&name)?;
    let (serving, view) = app.query.frontier.view(&Default::default()).await?;
    serving.engine.compact(view.collections.get(&name).ok_or(QueryError::Copying(name.clone()))?);
    Ok(accepted(&def))
}

/// What is promoted.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Promote")]
pub struct Promoted {
    /// The row's key.
    id: serde_json::Value,
}

/// `POST /v1/admin/collections/{name}/promote`: a row is counted as used so much that it becomes hot.
pub async fn promote(
    State(app): Shared,
    Name(name): Name,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Promotion>), Problem> {
    let def = app.query.definition(&name)?;
    let Promoted { id } = parse(body, "id")?;
    let key = parse_id(&def, &id)?;
    let (serving, view) = app.query.frontier.view(&Default::default()).await?;
    let found = view.collections.get(&name).ok_or(QueryError::Copying(name))?;
    let promoted = serving.engine.promote(found, &key).map_err(QueryError::Storage)?;
    Ok((StatusCode::ACCEPTED, Json(Promotion { collection: def.name.clone(), promoted })))
}

/// `POST /v1/admin/collections/{name}/verify`
pub async fn verify(State(app): Shared, Name(name): Name) -> Result<Json<verify::Report>, Problem> {
    let def = app.query.definition(&name)?;
    let _turn = app.verifying.lock().await;
    let report = verify::verify(&app.query.frontier, &app.dsn, &app.pool, &def.name).await?;
    report.map(Json).ok_or_else(|| QueryError::Copying(name).into())
}
