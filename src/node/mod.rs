//! Opens every part, joins them, shuts down in order.

mod collections;
mod counters;
mod doctor;
mod epoch;
pub mod guard;
mod options;
mod registrations;
mod repair;
mod supervisor;

use crate::consistency::frontier::Frontier;
use crate::consistency::recheck::SourceHeap;
use crate::model::CollectionSpec;
use crate::node::guard::Guard;
use crate::node::supervisor::Supervisor;
use crate::query::QueryService;
use crate::replication::guard::Protection;
use crate::replication::progress::{Phase, Progress};
use crate::replication::{ReplicationError, watch_source};
use crate::server::http::{self, App, Health};
use crate::server::pg::{self, Endpoint};
use crate::storage::data_dir::DataDir;
use crate::storage::{StorageError, ownership};
use crate::telemetry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use options::Options;
pub use registrations::registered;

/// How often the metrics registry folds its samples.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long a stop waits for requests under way.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// Why a node ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {error}; name another address or port: http.listen, http.admin_listen or sql.listen"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        error: std::io::Error,
    },
    /// Our files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The source or the stream.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// A person must look before anything is done.
    #[error("{0}")]
    Stopped(String),
    /// The SQL endpoint.
    #[error(transparent)]
    Sql(#[from] pg::OpenError),
    /// The engine's threads ended.
    #[error("the engine failed: {0}")]
    Engine(String),
}

/// Where a node listens.
#[derive(Debug, Clone, Copy)]
pub struct Listening {
    /// HTTP.
    pub http: SocketAddr,
    /// Is HTTP encrypted?
    pub encrypted: bool,
    /// `/v1/admin/`, where it has a place of its own.
    pub admin: Option<SocketAddr>,
    /// SQL, where that is configured.
    pub sql: Option<SocketAddr>,
}

/// Runs until `stop` is cancelled or something must not go on. `specs` tells the configured collections anew when they
/// change; `listening` is called with the bound addresses.
pub async fn run(
    mut options: Options,
    specs: watch::Receiver<Vec<CollectionSpec>>,
    stop: CancellationToken,
    listening: impl FnOnce(Listening),
) -> Result<(), NodeError> {
    let metrics = telemetry::metrics();
    counters::begin();
    let data = DataDir::open(&options.data_dir)?;
    let instance = ownership::instance(data.root()).unwrap_or_else(|error| {
        tracing::warn!(%error, "sessions of an earlier run cannot be told from others'");
        ownership::fresh_instance()
    });
    options.dsn = options.dsn.with_instance(&instance);
    let progress = Arc::new(Progress::default());
    let frontier = Arc::new(Frontier::new(progress.clone(), options.wait));
    let pool = options.dsn.pool(options.recheck_connections, options.recheck_timeout);
    // One for HTTP and SQL: those who wait for the same connections can share them.
    let heap = SourceHeap::new(pool.clone(), options.recheck_timeout, options.viewers.clone());
    let query = QueryService::new(frontier.clone(), heap.clone(), options.query);
    let health = Health { protection: Arc::new(Protection::default()), findings: Arc::default() };
    let app =
        Arc::new(App::new(query, options.dsn.clone(), pool.clone(), metrics, health.clone(), options.http.clone()));
    let (listener, http_address) = bind(options.listen).await?;
    let (admin_listener, admin) = match options.admin_listen {
        Some(address) => Some(bind(address).await?).unzip(),
        None => (None, None),
    };
    let sql = match options.sql.clone() {
        None => None,
        Some(sql) => {
            let address = sql.listen;
            let service = Arc::new(QueryService::new(frontier.clone(), heap, options.query));
            let endpoint = Arc::new(Endpoint::new(service, sql)?);
            let (listener, address) = bind(address).await?;
            Some((address, tokio::spawn(endpoint.serve(listener, stop.clone()))))
        }
    };
    let encrypted = options.http.tls.is_some();
    listening(Listening { http: http_address, encrypted, admin, sql: sql.as_ref().map(|(address, _)| *address) });
    let server = tokio::spawn(http::serve(listener, admin_listener, app, stop.clone()));
    let upkeep = tokio::spawn(async move {
        // Without scrapes the registry would keep every sample.
        loop {
            tokio::time::sleep(UPKEEP).await;
            metrics.run_upkeep();
        }
    });
    let watch = {
        let (dsn, interval, stop) = (options.dsn.clone(), options.intake.status_interval, stop.clone());
        let frontier = frontier.clone();
        tokio::spawn(async move {
            let slot = || frontier.serving().map(|serving| serving.slot.clone());
            watch_source(&dsn, interval, slot, &frontier.progress, &stop).await;
        })
    };
    let (guard, guarded) =
        Guard::new(options.dsn.clone(), data.root(), &options.slot, &instance, options.guard, health.protection);
    let guard = tokio::spawn(guard.run(stop.clone()));
    let (root, findings) = (data.root().to_owned(), health.findings);
    let (followed, follows) = watch::channel(options.collections.clone());
    let checks = doctor::run(options.clone(), follows, progress.clone(), root, findings, stop.clone());
    let doctor = tokio::spawn(checks);
    let watched = (guarded, instance);
    let mut supervisor =
        Supervisor::new(options, data, frontier.clone(), pool, (specs, followed), watched, stop.clone());
    let result = supervisor.run().await;
    if let Err(error) = &result {
        tracing::error!(%error, "the service stops");
        progress.set_phase(Phase::Stopped { reason: error.to_string() });
    }
    // Readers first, then the engine: a request under way finds what it needs.
    stop.cancel();
    if tokio::time::timeout(LAST_REQUESTS, server).await.is_err() {
        tracing::warn!("requests are still open; not waiting for them any longer");
    }
    if let Some((_, sql)) = sql {
        let _ = sql.await;
    }
    upkeep.abort();
    let _ = tokio::join!(watch, guard, doctor);
    frontier.serve(None);
    crate::failpoint!("node.before_close");
    supervisor.close().await;
    crate::failpoint!("node.closed");
    result
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), NodeError> {
    let listen = |error| NodeError::Listen { address, error };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    Ok((listener, bound))
}
