//! Everything a node needs to know, made from the configuration: every module's own options.

use crate::config::{self, Config, ConfigError, Failover};
use crate::consistency::recheck::Viewers;
use crate::engine;
use crate::model::{CollectionSpec, Viewer};
use crate::node::guard;
use crate::query;
use crate::replication::guard::Budget;
use crate::replication::stream::Intake;
use crate::replication::transport::Streaming;
use crate::server::http::{self, admission, listener};
use crate::server::{pg, tls};
use crate::source::connect::Dsn;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Everything a node needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The source.
    pub dsn: Dsn,
    /// Name of the slot.
    pub slot: String,
    /// Name of the publication.
    pub publication: String,
    /// May we create and extend it?
    pub create_publication: bool,
    /// Connections of the initial copy.
    pub copy_connections: usize,
    /// Longest wait for older transactions when the slot is made.
    pub slot_lock_timeout: Duration,
    /// Are collections registered by SQL taken as well?
    pub registrations: bool,
    /// How often tables and publication are compared with the collections.
    pub reconcile_every: Duration,
    /// How transactions come that have not ended.
    pub streaming: Streaming,
    /// Make slots that are kept in step on standbys where the server can.
    pub failover: bool,
    /// Protection of the source.
    pub guard: guard::Options,
    /// How often the source is checked while it is followed; none: only at the start.
    pub doctor_interval: Option<Duration>,
    /// The WAL intake.
    pub intake: Intake,
    /// Where our files are.
    pub data_dir: PathBuf,
    /// The engine.
    pub engine: engine::Options,
    /// Searches.
    pub query: query::Options,
    /// Default wait for a position.
    pub wait: Duration,
    /// Connections for rechecks.
    pub recheck_connections: usize,
    /// Longest recheck.
    pub recheck_timeout: Duration,
    /// Whom a recheck may be asked for as.
    pub viewers: Viewers,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where `/v1/admin/` is instead, where it has a place of its own.
    pub admin_listen: Option<SocketAddr>,
    /// The HTTP surface.
    pub http: http::Options,
    /// The SQL endpoint, where there is one.
    pub sql: Option<pg::Options>,
    /// What to serve.
    pub collections: Vec<CollectionSpec>,
}

impl TryFrom<&Config> for Options {
    type Error = ConfigError;

    /// A service without collections has nothing to do, unless some may be registered by SQL.
    fn try_from(config: &Config) -> Result<Options, ConfigError> {
        let none_come = !config.source.registrations || config.sql.listen.trim().is_empty();
        if config.collections.is_empty() && none_come {
            return Err(ConfigError(
                "no [[collections]], and none can be registered by SQL without sql.listen and source.registrations: \
                 see the example at the end of `ruvector config default`"
                    .into(),
            ));
        }
        let ms = Duration::from_millis;
        let s = Duration::from_secs;
        let some = |amount: u64| Some(amount).filter(|amount| *amount > 0);
        let engine_defaults = engine::Options::default();
        Ok(Options {
            dsn: config.dsn()?,
            slot: config.source.slot.clone(),
            publication: config.source.publication.clone(),
            create_publication: config.source.create_publication,
            copy_connections: config.source.copy_connections,
            slot_lock_timeout: s(config.source.slot_lock_timeout_s),
            registrations: config.source.registrations,
            reconcile_every: some(config.source.reconcile_s).map_or(Duration::MAX, s),
            streaming: config.source.streaming,
            failover: config.source.failover == Failover::Auto,
            guard: guard::Options {
                budget: Budget {
                    bytes: some(config.source.max_retained_wal_mib).map(|mib| mib << 20),
                    time: some(config.source.max_retained_s).map(s),
                },
                heartbeat: some(config.source.heartbeat_s).map(s),
            },
            doctor_interval: some(config.doctor.interval_s).map(s),
            intake: Intake {
                status_interval: ms(config.source.status_interval_ms),
                silence_limit: s(config.source.silence_limit_s),
                queue_bytes: config.source.queue_mib << 20,
                spool_bytes: config.source.spool_mib << 20,
            },
            data_dir: config.storage.dir.clone(),
            engine: engine::Options {
                segment_rows: config.engine.segment_rows,
                build_threads: match config.engine.build_threads {
                    0 => engine_defaults.build_threads,
                    threads => threads,
                },
                tiers: CollectionSpec::tiers(&config.collections),
                ..engine_defaults
            },
            query: query::Options { default_ef: config.search.default_ef },
            wait: ms(config.search.wait_ms),
            recheck_connections: config.search.recheck_connections,
            recheck_timeout: ms(config.search.recheck_timeout_ms),
            viewers: Viewers {
                roles: config.search.recheck_roles.iter().cloned().collect(),
                settings: config.search.recheck_settings.iter().cloned().collect(),
            },
            listen: config.http.listen,
            admin_listen: config.http.admin_address()?,
            http: http::Options {
                limits: listener::Limits {
                    max_connections: config.http.max_connections,
                    first: s(config.http.first_head_timeout_s),
                    head: s(config.http.head_timeout_s),
                    write: s(config.http.write_timeout_s),
                    rate: config.http.min_rate_kib_s.saturating_mul(1024),
                },
                tls: http_tls(&config.http)?,
                access: config.http.access()?,
                max_request: some(config.http.request_timeout_s).map(s),
                admission: admission::Limits {
                    max_concurrent: config.http.max_concurrent,
                    max_waiting: config.http.max_waiting,
                    patience: ms(config.http.max_queue_ms),
                    max_body_bytes: config.http.max_body_bytes,
                    body_time: s(config.http.body_timeout_s),
                    max_buffered_bytes: config.http.max_buffered_mb.saturating_mul(1 << 20),
                },
                ready_staleness: s(config.http.ready_staleness_s),
                loopback: config.http.is_loopback()?,
                hosts: config.http.hosts.clone(),
                snapshot_dir: Some(config.storage.snapshot_dir.clone()).filter(|dir| !dir.as_os_str().is_empty()),
            },
            sql: sql(&config.sql)?,
            collections: config.collections.clone(),
        })
    }
}

fn sql(config: &config::Sql) -> Result<Option<pg::Options>, ConfigError> {
    let Some(listen) = config.address()? else { return Ok(None) };
    let some = |amount: u64| Some(amount).filter(|amount| *amount > 0);
    let tls = tls_paths(&config.tls_cert, &config.tls_key, Path::new(""));
    // Read again by the endpoint; what is wrong with them is told here, before anything is started.
    let read = tls.clone().map(|paths| tls::Files::new(paths, b"postgresql")).transpose();
    read.map_err(|error| ConfigError(format!("sql.tls_cert, sql.tls_key: {error}; each is a file in PEM")))?;
    let users = config.users.iter().map(|(name, user)| {
        let secret = user.secret(name)?;
        let tie = |role: &String| Viewer { role: role.clone(), settings: user.recheck_settings.clone() };
        let (collections, tie) = (user.collections.clone(), user.recheck_role.as_ref().map(tie));
        Ok(pg::Login { name: name.clone(), secret, collections, tie })
    });
    Ok(Some(pg::Options {
        listen,
        tls,
        require_tls: config.require_tls,
        max_connections: config.max_connections,
        statement_timeout: some(config.statement_timeout_ms).map(Duration::from_millis),
        idle_timeout: some(config.idle_timeout_s).map(Duration::from_secs),
        idle_in_transaction_timeout: some(config.idle_in_transaction_timeout_s).map(Duration::from_secs),
        users: users.collect::<Result<_, ConfigError>>()?,
    }))
}

fn http_tls(config: &config::Http) -> Result<Option<Arc<tls::Files>>, ConfigError> {
    let paths = tls_paths(&config.tls_cert, &config.tls_key, &config.client_ca);
    let files = paths.map(|paths| tls::Files::new(paths, b"http/1.1")).transpose();
    Ok(files
        .map_err(|error| {
            ConfigError(format!("http.tls_cert, http.tls_key, http.client_ca: {error}; each is a file in PEM"))
        })?
        .map(Arc::new))
}

/// An empty path is none.
fn tls_paths(certificate: &Path, key: &Path, client_ca: &Path) -> Option<tls::Paths> {
    let some = |path: &Path| Some(path.to_owned()).filter(|path| !path.as_os_str().is_empty());
    Some(tls::Paths { certificate: some(certificate)?, key: some(key)?, client_ca: some(client_ca) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_collections_has_nothing_to_do() {
        let mut config = Config::load(None).expect("the defaults are valid");
        config.source.dsn = "postgresql://u@h/d".into();
        let error = Options::try_from(&config).expect_err("no collections").to_string();
        assert!(error.contains("[[collections]]") && error.contains("sql.listen"), "{error}");
    }
}
