//! HTTP: routes, limits, errors as problem+json.

mod answers;
mod collections;
mod cursor;
mod listing;
mod position;
mod probes;
mod recall;
mod recheck;
mod rows;
pub(in crate::server) mod search;
pub(in crate::server) mod vector;

use crate::consistency::recheck::SourceHeap;
use crate::query::QueryService;
use crate::replication::guard::Protection;
use crate::server::problem::{self, Problem};
use crate::source::connect::{Dsn, Pool};
use crate::source::preflight;
use crate::telemetry::names;
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, MatchedPath, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Settings of the HTTP surface.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Largest request body.
    pub max_body_bytes: usize,
    /// Searches worked on at once; further ones wait.
    pub max_concurrent: usize,
    /// How long one waits for its turn before it is refused.
    pub max_queue: Duration,
    /// Age of the index above which `/readyz` says no.
    pub ready_staleness: Duration,
}

/// What is known of the source besides the stream.
#[derive(Clone)]
pub struct Health {
    /// Our slots there.
    pub protection: Arc<Protection>,
    /// What the doctor found.
    pub findings: Arc<preflight::Latest>,
}

/// What handlers work with.
pub struct App {
    /// Line two.
    pub query: QueryService<SourceHeap>,
    /// For verification.
    pub dsn: Dsn,
    /// For verification.
    pub pool: Pool,
    /// For `/metrics`.
    pub metrics: &'static PrometheusHandle,
    /// For status and metrics.
    pub health: Health,
    /// The settings.
    pub options: Options,
    turns: Semaphore,
    /// A verification holds all rows' keys in memory: one at a time.
    verifying: tokio::sync::Mutex<()>,
    /// Recall is measured by one at a time.
    measuring: tokio::sync::Mutex<()>,
    /// Collections of which the metrics have told.
    told: parking_lot::Mutex<BTreeSet<String>>,
    started: Instant,
}

impl App {
    /// An app over these parts.
    pub fn new(
        query: QueryService<SourceHeap>,
        dsn: Dsn,
        pool: Pool,
        metrics: &'static PrometheusHandle,
        health: Health,
        options: Options,
    ) -> App {
        let turns = Semaphore::new(options.max_concurrent);
        let (verifying, measuring) = (tokio::sync::Mutex::new(()), tokio::sync::Mutex::new(()));
        let told = parking_lot::Mutex::default();
        App { query, dsn, pool, metrics, health, options, turns, verifying, measuring, told, started: Instant::now() }
    }

    /// Leave to work on one request.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Problem> {
        let turn = tokio::time::timeout(self.options.max_queue, self.turns.acquire()).await;
        let too_many = || {
            let detail = format!("waited {:?} for a turn", self.options.max_queue);
            Problem::new(problem::OVERLOADED, detail).hint("slow down, or raise http.max_concurrent")
        };
        turn.ok().and_then(Result::ok).ok_or_else(too_many)
    }
}

type Shared = State<Arc<App>>;

/// The name in a path. One that is not UTF-8 is a name that nothing has.
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Name, Problem> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Name(name)).map_err(refused_path)
    }
}

fn refused_path(error: PathRejection) -> Problem {
    Problem::new(problem::MALFORMED, error.body_text()).hint("names in paths are UTF-8, escaped with %")
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if self.kind.retryable {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status.is_server_error() {
            tracing::warn!(code = self.kind.code, detail = self.detail, "request failed");
        }
        response
    }
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let limit = DefaultBodyLimit::max(app.options.max_body_bytes);
    Router::new()
        .route("/v1/collections", get(collections::list))
        .route("/v1/collections/{name}", get(collections::show))
        .route("/v1/collections/{name}/dead_letters", get(collections::dead_letters))
        .route("/v1/collections/{name}/search", post(search::search))
        .route("/v1/collections/{name}/scroll", post(listing::scroll))
        .route("/v1/collections/{name}/count", post(listing::count))
        .route("/v1/collections/{name}/facet", post(listing::facet))
        .route("/v1/collections/{name}/recall", post(recall::recall))
        .route("/v1/collections/{name}/rows/{key}", get(rows::row))
        .route("/v1/lsn", get(position::lsn))
        .route("/v1/admin/collections/{name}/rebuild", post(collections::rebuild))
        .route("/v1/admin/collections/{name}/verify", post(collections::verify))
        .route("/v1/admin/collections/{name}/compact", post(collections::compact))
        .route("/v1/admin/collections/{name}/promote", post(collections::promote))
        .route("/v1/status", get(probes::status))
        .route("/errors/{code}", get(probes::error_page))
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz))
        .route("/version", get(probes::version))
        .route("/metrics", get(probes::metrics))
        .fallback(async |request: Request| {
            Problem::new(problem::UNKNOWN_ROUTE, format!("{} {}", request.method(), request.uri().path()))
                .hint("the routes are in the README; collections are under /v1/collections")
        })
        .method_not_allowed_fallback(async |request: Request| {
            Problem::new(problem::METHOD, format!("{} {}", request.method(), request.uri().path()))
        })
        .layer(limit)
        .layer(middleware::from_fn(count))
        .with_state(app)
}

async fn count(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let code = response.status().as_u16().to_string();
    metrics::counter!(names::HTTP_REQUESTS, "route" => route, "code" => code).increment(1);
    response
}

/// Serves until `stop` resolves; requests under way are finished.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(app)).with_graceful_shutdown(stop).await
}
