//! HTTP: routes, limits, errors as problem+json.

pub mod access;
pub mod admission;
mod answers;
mod collections;
mod confine;
mod cursor;
mod html;
mod json;
pub mod jwt;
pub mod keys;
pub mod listener;
mod listing;
mod openapi;
mod origin;
mod page;
mod pages;
mod position;
mod probes;
pub mod rate;
mod recall;
pub(in crate::server) mod recheck;
mod request_id;
pub mod routes;
mod rows;
pub(in crate::server) mod search;
mod snapshot;
mod status;
pub(in crate::server) mod vector;

use crate::consistency::recheck::SourceHeap;
use crate::model::Consistency;
use crate::query::{Pinned, QueryService};
use crate::replication::guard::Protection;
use crate::server::http::access::{Access, Scope};
use crate::server::http::admission::{Admission, Class};
use crate::server::http::listener::Limits;
use crate::server::problem::{self, Problem};
use crate::server::tls::Files;
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
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::SemaphorePermit;
use tokio_util::sync::CancellationToken;

/// Settings of the HTTP surface.
#[derive(Debug, Clone)]
pub struct Options {
    /// What its listener allows.
    pub limits: Limits,
    /// How connections are encrypted, where they are.
    pub tls: Option<Arc<Files>>,
    /// Who may come in.
    pub access: Arc<Access>,
    /// How long a request may take; none: as long as it takes. Those of `/v1/admin/` take as long as they take.
    pub max_request: Option<Duration>,
    /// Who is worked on, and what requests and answers may hold.
    pub admission: admission::Limits,
    /// Age of the index above which `/readyz` says no.
    pub ready_staleness: Duration,
    /// Only this machine reaches it.
    pub loopback: bool,
    /// Names by which it is called all the same, as in the header `Host`.
    pub hosts: Vec<String>,
    /// Where snapshots may be made; anywhere when absent.
    pub snapshot_dir: Option<PathBuf>,
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
    admission: Admission,
    /// A verification holds all rows' keys in memory: one at a time.
    verifying: tokio::sync::Mutex<()>,
    /// Recall is measured by one at a time.
    measuring: tokio::sync::Mutex<()>,
    /// One snapshot at a time.
    snapshotting: Arc<tokio::sync::Mutex<()>>,
    /// Collections of which the metrics have told.
    told: parking_lot::Mutex<BTreeSet<String>>,
    started: Instant,
}

/// How often a view is taken anew because it grew too old while its request waited for a turn.
const VIEWS: usize = 3;

impl App {
    /// A view as new as asked for, and leave to work on it. Waiting for the view takes nobody's turn; one that grew too old in
    /// the queue is given up with the turn, and is taken anew.
    async fn admitted(
        &self,
        consistency: &Consistency,
        class: Class,
    ) -> Result<(Pinned, SemaphorePermit<'_>), Problem> {
        for _ in 0..VIEWS {
            let pinned = self.query.pin(consistency).await?;
            let turn = self.admission.turn(class).await?;
            if pinned.meets(consistency) {
                return Ok((pinned, turn));
            }
        }
        let detail = format!("{VIEWS} views grew older than asked for while the request waited for its turn");
        Err(Problem::new(problem::TOO_OLD, detail).hint("raise consistency.max_staleness_ms, or ask less at once"))
    }
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
        let admission = Admission::new(options.admission);
        let (verifying, measuring) = (tokio::sync::Mutex::new(()), tokio::sync::Mutex::new(()));
        let snapshotting = Arc::default();
        let told = parking_lot::Mutex::default();
        let started = Instant::now();
        App { query, dsn, pool, metrics, health, options, admission, verifying, measuring, snapshotting, told, started }
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

/// A problem of one request.
#[derive(Serialize)]
struct Shown<'p> {
    #[serde(flatten)]
    problem: &'p Problem,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

/// How one says who one is (RFC 6750).
fn challenge(problem: &Problem) -> Option<&'static str> {
    match problem.kind {
        problem::UNAUTHENTICATED => Some("Bearer realm=\"ruvector\""),
        problem::BAD_CREDENTIALS => Some("Bearer realm=\"ruvector\", error=\"invalid_token\""),
        problem::FORBIDDEN => Some("Bearer realm=\"ruvector\", error=\"insufficient_scope\""),
        _ => None,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let shown = Shown { problem: &self, instance: request_id::current(), trace_id: request_id::trace() };
        let body = serde_json::to_vec(&shown).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if self.kind.retryable {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(challenge) = challenge(&self) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        // What there is too much of is counted; lines of it would be more of it.
        if status.is_server_error() && self.kind != problem::OVERLOADED {
            tracing::warn!(code = self.kind.code, detail = self.detail, "request failed");
        }
        response
    }
}

/// All routes; those under `/v1/admin/` only where they are wanted.
pub fn router(app: Arc<App>, admin: bool) -> Router {
    // Bodies are bounded by admission, which reads them.
    let limit = DefaultBodyLimit::disable();
    routes::router(admin)
        .fallback(async |request: Request| {
            Problem::new(problem::UNKNOWN_ROUTE, format!("{} {}", request.method(), request.uri().path()))
                .hint("GET /docs lists the routes")
        })
        .method_not_allowed_fallback(async |matched: Option<MatchedPath>, request: Request| {
            let problem = Problem::new(problem::METHOD, format!("{} {}", request.method(), request.uri().path()));
            match matched.and_then(|path| routes::of(path.as_str())) {
                Some(route) => {
                    problem.hint(format!("send {}; GET /docs lists the routes", route.method.to_uppercase()))
                }
                None => problem,
            }
        })
        .layer(limit)
        .layer(middleware::from_fn_with_state(app.clone(), admission::layer))
        .layer(middleware::from_fn_with_state(app.clone(), access::layer))
        .layer(middleware::from_fn_with_state(app.clone(), in_time))
        .layer(middleware::from_fn_with_state(app.clone(), origin::layer))
        .layer(middleware::from_fn(count))
        .layer(middleware::from_fn(request_id::layer))
        .with_state(app)
}

/// A request ends within the limit, except those that do something to whole collections.
async fn in_time(State(app): Shared, matched: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let route = matched.and_then(|matched| routes::of(matched.as_str()));
    let limit = app.options.max_request.filter(|_| route.is_none_or(|route| route.need != Some(Scope::Admin)));
    let Some(limit) = limit else { return next.run(request).await };
    let late = |_| {
        Problem::new(problem::TIME_LIMIT, format!("it was given up after {limit:?}"))
            .hint("ask for less at once; http.request_timeout_s is the limit")
            .into_response()
    };
    tokio::time::timeout(limit, next.run(request)).await.unwrap_or_else(late)
}

async fn count(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let code = response.status().as_u16().to_string();
    metrics::counter!(names::HTTP_REQUESTS, "route" => route, "code" => code).increment(1);
    response
}

/// Serves until `stop` is cancelled; requests under way are finished. With a listener for `/v1/admin/` those routes are
/// there only, and all others as well.
pub async fn serve(listener: TcpListener, admin: Option<TcpListener>, app: Arc<App>, stop: CancellationToken) {
    let Options { tls, limits, .. } = app.options.clone();
    let everything = admin.is_none();
    let on =
        |listener, routes| listener::serve(listener, router(app.clone(), routes), tls.clone(), limits, stop.clone());
    let beside = async {
        if let Some(admin) = admin {
            on(admin, true).await;
        }
    };
    tokio::join!(on(listener, everything), beside);
}
