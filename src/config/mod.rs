//! One file and the environment -> one checked value; `node` makes every module's own options of it. The default file is compiled in and is the documentation.

mod http;
mod strict;

use crate::model::{CollectionSpec, by_name};
use crate::replication::transport::Streaming;
use crate::source::catalog::check_spec;
use crate::source::connect::Dsn;
use crate::telemetry::{self, LogFormat, traces};
use config::{Value, ValueKind};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use strict::{Mistake, Strict};

pub use http::{Http, HttpJwt, HttpJwtKey, HttpKey};

/// The default file.
pub const DEFAULTS: &str = include_str!("../../config/ruvector.toml");

/// What SIGHUP takes over; everything else holds from the next start on. `docs/operations.md` has the table of all.
pub const LIVE: [&str; 4] = ["collections", "http.keys", "http.jwt", "log.level"];

/// What is wrong with the configuration, with where.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {0}")]
pub struct ConfigError(pub String);

/// The whole configuration as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[source]`
    pub source: Source,
    /// `[doctor]`
    pub doctor: Doctor,
    /// `[storage]`
    pub storage: Storage,
    /// `[engine]`
    pub engine: Engine,
    /// `[search]`
    pub search: Search,
    /// `[http]`
    pub http: Http,
    /// `[sql]`
    pub sql: Sql,
    /// `[log]`
    pub log: Log,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[[collections]]`
    #[serde(default)]
    pub collections: Vec<CollectionSpec>,
    #[serde(skip)]
    written: Written,
}

/// Every setting as written, by its name.
#[derive(Clone, Default)]
struct Written(BTreeMap<String, String>);

/// Some of them are secrets.
impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} settings", self.0.len())
    }
}

impl Written {
    fn of(sections: config::Map<String, config::Value>) -> Written {
        let mut written = Written::default();
        let settings = sections.into_iter().filter(|(section, _)| section != "collections");
        settings.for_each(|(section, value)| written.put(section, value));
        written
    }

    /// What is inside of another by names of its own: the text of a whole table has no order.
    fn put(&mut self, name: String, value: Value) {
        match value.kind {
            ValueKind::Table(inner) => {
                inner.into_iter().for_each(|(key, value)| self.put(format!("{name}.{key}"), value))
            }
            ValueKind::Array(items) => {
                items.into_iter().enumerate().for_each(|(at, item)| self.put(format!("{name}[{at}]"), item));
            }
            _ => drop(self.0.insert(name, value.to_string())),
        }
    }
}

/// `[source]`; the meaning of each key is in the default file.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct Source {
    pub dsn: String,
    pub dsn_file: String,
    pub password_command: String,
    pub slot: String,
    pub publication: String,
    pub create_publication: bool,
    pub copy_connections: usize,
    pub slot_lock_timeout_s: u64,
    pub registrations: bool,
    pub reconcile_s: u64,
    pub status_interval_ms: u64,
    pub silence_limit_s: u64,
    pub queue_mib: usize,
    #[serde(deserialize_with = "by_name")]
    pub streaming: Streaming,
    pub spool_mib: usize,
    pub max_retained_wal_mib: u64,
    pub max_retained_s: u64,
    pub heartbeat_s: u64,
    #[serde(deserialize_with = "by_name")]
    pub failover: Failover,
}

/// `source.failover`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failover {
    /// Where the server can.
    Auto,
    /// Never.
    Off,
}

/// Without the password.
impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("slot", &self.slot)
            .field("publication", &self.publication)
            .finish_non_exhaustive()
    }
}

/// `[doctor]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct Doctor {
    pub interval_s: u64,
}

/// `[storage]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct Storage {
    pub dir: PathBuf,
    pub snapshot_dir: PathBuf,
}

/// `[engine]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct Engine {
    pub segment_rows: usize,
    pub build_threads: usize,
}

/// `[search]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct Search {
    pub default_ef: usize,
    pub wait_ms: u64,
    pub recheck_connections: usize,
    pub recheck_timeout_ms: u64,
    pub recheck_roles: Vec<String>,
    pub recheck_settings: Vec<String>,
}

impl Search {
    /// Of roles NONE is no name but our own role, and a setting without a point is one of the server's: `role` among them.
    fn check(&self) -> Result<(), ConfigError> {
        if let Some(role) = self.recheck_roles.iter().find(|role| role.is_empty() || role.eq_ignore_ascii_case("none"))
        {
            return Err(ConfigError(format!("search.recheck_roles: {role:?} is no role; name roles of the source")));
        }
        match self.recheck_settings.iter().find(|name| !name.contains('.')) {
            Some(name) => {
                let reason = "only settings of applications can be set, which have a point in their names";
                Err(ConfigError(format!("search.recheck_settings: {name:?}: {reason}")))
            }
            None => Ok(()),
        }
    }
}

/// `[sql]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct Sql {
    pub listen: String,
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    pub require_tls: bool,
    pub max_connections: usize,
    pub statement_timeout_ms: u64,
    pub idle_timeout_s: u64,
    pub idle_in_transaction_timeout_s: u64,
    #[serde(default)]
    pub users: BTreeMap<String, SqlUser>,
}

/// `[sql.users.NAME]`
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct SqlUser {
    #[serde(default)]
    pub password: String,
    #[serde(default)]
    pub password_file: String,
    #[serde(default)]
    pub collections: Option<BTreeSet<String>>,
    #[serde(default)]
    pub recheck_role: Option<String>,
    #[serde(default)]
    pub recheck_settings: BTreeMap<String, String>,
}

/// Without the password.
impl std::fmt::Debug for SqlUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlUser")
            .field("collections", &self.collections)
            .field("recheck_role", &self.recheck_role)
            .finish_non_exhaustive()
    }
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct Log {
    pub level: String,
    #[serde(deserialize_with = "by_name")]
    pub format: LogFormat,
}

/// `[telemetry]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct Telemetry {
    pub otlp_endpoint: String,
    pub sampling_ratio: f64,
}

impl Telemetry {
    fn check(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.sampling_ratio) {
            return Err(ConfigError(format!("telemetry.sampling_ratio is {}; from 0 to 1", self.sampling_ratio)));
        }
        match self.otlp_endpoint.is_empty() {
            true => Ok(()),
            false => traces::check(&self.otlp_endpoint).map_err(ConfigError),
        }
    }
}

impl Sql {
    /// Where to listen, if anywhere.
    pub fn address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let listen = self.listen.trim();
        if listen.is_empty() {
            return Ok(None);
        }
        let bad = |error| ConfigError(format!("sql.listen {listen:?}: {error}; an address and a port are needed"));
        listen.parse().map(Some).map_err(bad)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |text: &str| Err(ConfigError(text.to_owned()));
        let (certificate, key) = (self.tls_cert.as_os_str(), self.tls_key.as_os_str());
        match self.address()? {
            _ if certificate.is_empty() != key.is_empty() => {
                refuse("sql.tls_cert and sql.tls_key go together; set both, or neither")
            }
            _ if self.require_tls && certificate.is_empty() => {
                refuse("sql.require_tls needs sql.tls_cert and sql.tls_key")
            }
            Some(_) if self.max_connections == 0 => refuse("sql.max_connections is 0; at least 1"),
            Some(_) if self.users.is_empty() => {
                refuse("sql.listen without users: add [sql.users.NAME], postgres_fdw needs a password")
            }
            _ => Ok(()),
        }
    }
}

impl SqlUser {
    /// A user is tied to what may be asked for.
    fn check(&self, name: &str, search: &Search) -> Result<(), ConfigError> {
        let refuse = |text: String| Err(ConfigError(format!("sql.users.{name}: {text}")));
        match &self.recheck_role {
            Some(role) if !search.recheck_roles.contains(role) => {
                refuse(format!("recheck_role {role:?} is not in search.recheck_roles"))
            }
            None if !self.recheck_settings.is_empty() => refuse("recheck_settings without recheck_role".into()),
            _ => match self.recheck_settings.keys().find(|setting| !search.recheck_settings.contains(setting)) {
                Some(setting) => refuse(format!("recheck_settings: {setting:?} is not in search.recheck_settings")),
                None => Ok(()),
            },
        }
    }

    /// The password, or its verifier.
    pub fn secret(&self, name: &str) -> Result<String, ConfigError> {
        let file = &self.password_file;
        let secret = match (self.password.is_empty(), file.is_empty()) {
            (false, _) => self.password.clone(),
            (true, false) => read(Path::new(file))
                .map_err(|error| ConfigError(format!("sql.users.{name}.password_file: {error}")))?
                .trim_end_matches(['\r', '\n'])
                .to_owned(),
            (true, true) => String::new(),
        };
        match secret.is_empty() {
            true => Err(ConfigError(format!("sql.users.{name} has no password: set password or password_file"))),
            false => Ok(secret),
        }
    }
}

impl Config {
    /// Defaults, then the file if one is given, then the environment.
    pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
        let mut layers =
            config::Config::builder().add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        if let Some(path) = file {
            let text = read(path).map_err(|error| ConfigError(format!("{error} (--config, RUVECTOR_CONFIG)")))?;
            layers = layers.add_source(config::File::from_str(&text, config::FileFormat::Toml));
        }
        let environment = config::Environment::with_prefix("RUVECTOR").prefix_separator("__").separator("__");
        let sections = layers.add_source(environment).build().and_then(|built| config::Source::collect(&built));
        let sections = sections.map_err(|error| unread(error, file))?;
        let written = Written::of(sections.clone());
        let loaded = Config::deserialize(Strict(Value::new(None, ValueKind::Table(sections))));
        let loaded = Config { written, ..loaded.map_err(|mistake| placed(&mistake, file))? };
        loaded.check()?;
        Ok(loaded)
    }

    /// The settings that are others than in `before`, by name, without those that are taken over while the service runs
    /// ([`LIVE`]).
    pub fn changed_since(&self, before: &Config) -> Vec<String> {
        let (now, before) = (&self.written.0, &before.written.0);
        let within = |name: &str, live: &str| {
            name.strip_prefix(live).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let live = |name: &str| LIVE.iter().any(|live| within(name, live));
        let others = |name: &String| before.get(name) != now.get(name) && !live(name);
        let all: BTreeSet<_> = now.keys().chain(before.keys()).collect();
        all.into_iter().filter(|name| others(name)).cloned().collect()
    }

    /// What can be said without the source.
    fn check(&self) -> Result<(), ConfigError> {
        let least = |name: &str, value: usize, least: usize| match value >= least {
            true => Ok(()),
            false => Err(ConfigError(format!("{name} is {value}; at least {least}"))),
        };
        least("source.copy_connections", self.source.copy_connections, 1)?;
        least("source.status_interval_ms", self.source.status_interval_ms as usize, 10)?;
        least("source.silence_limit_s", self.source.silence_limit_s as usize, 1)?;
        least("source.queue_mib", self.source.queue_mib, 1)?;
        least("source.spool_mib", self.source.spool_mib, 1)?;
        least("engine.segment_rows", self.engine.segment_rows, 64)?;
        least("search.default_ef", self.search.default_ef, 1)?;
        least("search.recheck_connections", self.search.recheck_connections, 1)?;
        least("search.recheck_timeout_ms", self.search.recheck_timeout_ms as usize, 1)?;
        least("http.max_body_bytes", self.http.max_body_bytes, 1024)?;
        self.search.check()?;
        self.sql.users.iter().try_for_each(|(name, user)| user.check(name, &self.search))?;
        self.http.check()?;
        self.sql.check()?;
        self.telemetry.check()?;
        self.check_addresses()?;
        telemetry::filter(&self.log.level).map_err(ConfigError)?;
        // Bytes in 64 bits.
        if self.source.max_retained_wal_mib > 1 << 40 {
            return Err(ConfigError("source.max_retained_wal_mib is more than there are; 0 is without limit".into()));
        }
        if self.storage.dir.as_os_str().is_empty() {
            return Err(ConfigError("storage.dir is empty; name the data directory".into()));
        }
        let snapshots = &self.storage.snapshot_dir;
        if !snapshots.as_os_str().is_empty() && !snapshots.is_absolute() {
            return Err(ConfigError("storage.snapshot_dir must be an absolute path, or empty".into()));
        }
        if self.storage.dir.exists() && !self.storage.dir.is_dir() {
            let dir = self.storage.dir.display();
            return Err(ConfigError(format!("storage.dir: {dir} is no directory; name one, or one that can be made")));
        }
        check_slot(&self.source.slot)?;
        if self.source.publication.is_empty() || self.source.publication.len() > 63 {
            return Err(ConfigError("source.publication must be 1 to 63 bytes".into()));
        }
        for (at, spec) in self.collections.iter().enumerate() {
            check_spec(spec).map_err(ConfigError)?;
            let before = &self.collections[..at];
            if before.iter().any(|other| other.name() == spec.name()) {
                return Err(ConfigError(format!("collection {} is named twice; give one another `name`", spec.name())));
            }
            if before.iter().any(|other| other.schema_and_table() == spec.schema_and_table()) {
                return Err(ConfigError(format!(
                    "table {} is in two collections; put all its vectors into one collection",
                    spec.table
                )));
            }
        }
        Ok(())
    }

    /// Where traces go, if anywhere.
    pub fn traces(&self) -> Option<traces::Options> {
        let Telemetry { otlp_endpoint, sampling_ratio } = &self.telemetry;
        let (endpoint, instance) = (otlp_endpoint.clone(), self.source.slot.clone());
        let options = traces::Options { endpoint, ratio: *sampling_ratio, instance };
        (!otlp_endpoint.is_empty()).then_some(options)
    }

    /// Nothing listens where something else of ours does.
    fn check_addresses(&self) -> Result<(), ConfigError> {
        let all = [
            ("http.listen", Some(self.http.listen)),
            ("http.admin_listen", self.http.admin_address()?),
            ("sql.listen", self.sql.address()?),
        ];
        let mut taken: Vec<(&str, SocketAddr)> = Vec::new();
        for (name, address) in all.into_iter().filter_map(|(name, address)| Some((name, address?))) {
            if let Some((other, _)) = taken.iter().find(|(_, other)| *other == address && address.port() != 0) {
                return Err(ConfigError(format!("{other} and {name} are both {address}; give each a port of its own")));
            }
            taken.push((name, address));
        }
        Ok(())
    }

    /// The source's address, from `dsn` or `dsn_file`.
    pub fn dsn(&self) -> Result<Dsn, ConfigError> {
        let file = &self.source.dsn_file;
        let text = match (self.source.dsn.is_empty(), file.is_empty()) {
            (false, _) => self.source.dsn.clone(),
            (true, false) => {
                let text = read(Path::new(file)).map_err(|error| ConfigError(format!("source.dsn_file: {error}")))?;
                if text.trim().is_empty() {
                    return Err(ConfigError(format!("source.dsn_file: {file} is empty; write the DSN into it")));
                }
                text.trim().to_owned()
            }
            (true, true) => {
                let how = "set source.dsn in the file, or RUVECTOR__SOURCE__DSN in the environment";
                return Err(ConfigError(format!("source.dsn is missing: {how}")));
            }
        };
        let dsn = Dsn::parse(&text).and_then(|dsn| dsn.with_password_command(&self.source.password_command));
        dsn.map_err(|error| ConfigError(error.to_string()))
    }
}

/// The text of a file, or why not and what to do.
fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::NotFound => "name a file that is there",
            ErrorKind::PermissionDenied => "let the user that runs this read it",
            ErrorKind::IsADirectory => "name a file in it",
            ErrorKind::InvalidData => "save it as UTF-8",
            _ => "see whether the disk is there and well",
        };
        format!("cannot read {}: {error}; {remedy}", path.display())
    })
}

/// The parser shows the line, which may have a secret in it: its place is enough.
fn unread(error: config::ConfigError, file: Option<&Path>) -> ConfigError {
    let (config::ConfigError::FileParse { cause, .. }, Some(file)) = (&error, file) else {
        return ConfigError(error.to_string());
    };
    let text = cause.to_string();
    let mut lines = text.lines().filter(|line| !line.contains(" | ") && !line.trim_end().ends_with('|'));
    let place = lines.next().unwrap_or_default().trim_start_matches("TOML parse error at ");
    let what = lines.filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join(", ");
    let how = "text stands in quotes, sections in [...]: `ruvector config default` has examples of all";
    ConfigError(format!("{} is no TOML: {place}: {what}; {how}", file.display()))
}

fn placed(mistake: &Mistake, file: Option<&Path>) -> ConfigError {
    let place = match (mistake.of_environment, file) {
        (true, _) => " (in the environment)".to_owned(),
        (false, Some(file)) => format!(" (in {})", file.display()),
        (false, None) => String::new(),
    };
    ConfigError(format!("{mistake}{place}"))
}

/// Postgres' own rule for slot names, with room for the number of a later copy.
fn check_slot(name: &str) -> Result<(), ConfigError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    match !name.is_empty() && name.len() <= 52 && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(ConfigError(format!("source.slot {name:?} must be 1 to 52 of a-z, 0-9 and _"))),
    }
}

#[cfg(test)]
mod tests;
