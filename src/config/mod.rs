//! One file and the environment -> one checked value; `node` makes every module's own options of it. The default file is compiled in and is the documentation.

mod http;

use crate::model::{CollectionSpec, by_name};
use crate::replication::transport::Streaming;
use crate::source::catalog::check_spec;
use crate::source::connect::Dsn;
use crate::telemetry::{LogFormat, traces};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

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
        let settings =
            sections.into_iter().filter(|(section, _)| section != "collections").flat_map(|(section, keys)| {
                let keys = keys.into_table().unwrap_or_default().into_iter();
                keys.map(move |(key, value)| (format!("{section}.{key}"), value.to_string()))
            });
        Written(settings.collect())
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
            return Err(ConfigError(format!("search.recheck_roles: {role:?} is no role")));
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
            _ if certificate.is_empty() != key.is_empty() => refuse("sql.tls_cert and sql.tls_key go together"),
            _ if self.require_tls && certificate.is_empty() => refuse("sql.require_tls needs sql.tls_cert"),
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
            (true, false) => std::fs::read_to_string(file)
                .map_err(|error| ConfigError(format!("sql.users.{name}.password_file: cannot read {file}: {error}")))?
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
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|error| ConfigError(format!("cannot read {}: {error}", path.display())))?;
            layers = layers.add_source(config::File::from_str(&text, config::FileFormat::Toml));
        }
        let environment =
            config::Environment::with_prefix("RUVECTOR").prefix_separator("__").separator("__").try_parsing(true);
        let loaded = layers.add_source(environment).build().and_then(|built| {
            let written = Written::of(config::Source::collect(&built)?);
            Ok(Config { written, ..built.try_deserialize::<Config>()? })
        });
        let loaded = loaded.map_err(|error| ConfigError(error.to_string()))?;
        loaded.check()?;
        Ok(loaded)
    }

    /// The settings that are others than in `before`, by name, without those that are taken over while the service runs
    /// ([`LIVE`]).
    pub fn changed_since(&self, before: &Config) -> Vec<String> {
        let (now, before) = (&self.written.0, &before.written.0);
        let others = |name: &String| before.get(name) != now.get(name) && !LIVE.contains(&&name[..]);
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
        self.search.check()?;
        self.sql.users.iter().try_for_each(|(name, user)| user.check(name, &self.search))?;
        self.http.check()?;
        self.sql.check()?;
        self.telemetry.check()?;
        // Bytes in 64 bits.
        if self.source.max_retained_wal_mib > 1 << 40 {
            return Err(ConfigError("source.max_retained_wal_mib is more than there are".into()));
        }
        if self.storage.dir.as_os_str().is_empty() {
            return Err(ConfigError("storage.dir is empty; name the data directory".into()));
        }
        let snapshots = &self.storage.snapshot_dir;
        if !snapshots.as_os_str().is_empty() && !snapshots.is_absolute() {
            return Err(ConfigError("storage.snapshot_dir must be an absolute path, or empty".into()));
        }
        check_slot(&self.source.slot)?;
        if self.source.publication.is_empty() || self.source.publication.len() > 63 {
            return Err(ConfigError("source.publication must be 1 to 63 bytes".into()));
        }
        for (at, spec) in self.collections.iter().enumerate() {
            check_spec(spec).map_err(ConfigError)?;
            let before = &self.collections[..at];
            if before.iter().any(|other| other.name() == spec.name()) {
                return Err(ConfigError(format!("collection {} is named twice", spec.name())));
            }
            if before.iter().any(|other| other.schema_and_table() == spec.schema_and_table()) {
                return Err(ConfigError(format!("table {} is in two collections", spec.table)));
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

    /// The source's address, from `dsn` or `dsn_file`.
    pub fn dsn(&self) -> Result<Dsn, ConfigError> {
        let file = &self.source.dsn_file;
        let text = match (self.source.dsn.is_empty(), file.is_empty()) {
            (false, _) => self.source.dsn.clone(),
            (true, false) => std::fs::read_to_string(file)
                .map_err(|error| ConfigError(format!("source.dsn_file: cannot read {file}: {error}")))?
                .trim()
                .to_owned(),
            (true, true) => {
                let how = "set source.dsn in the file, or RUVECTOR__SOURCE__DSN in the environment";
                return Err(ConfigError(format!("source.dsn is missing: {how}")));
            }
        };
        let dsn = Dsn::parse(&text).and_then(|dsn| dsn.with_password_command(&self.source.password_command));
        dsn.map_err(|error| ConfigError(error.to_string()))
    }
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
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).expect("write");
        Config::load(Some(&path))
    }

    const COLLECTION: &str = "[[collections]]\ntable = 'docs'\n[[collections.vectors]]\ncolumn = 'e'\n";

    #[test]
    fn the_defaults_are_a_valid_file_and_a_small_file_is_enough() {
        assert!(Config::load(None).is_ok());
        let config = load(&format!("[source]\ndsn = 'postgresql://u@h/d'\n{COLLECTION}")).expect("valid");
        assert_eq!(config.collections[0].name(), "docs");
        assert_eq!(config.collections[0].schema_and_table(), ("public", "docs"));
        assert_eq!(config.http.listen.port(), 8480);
    }

    /// The rows of the table in docs/operations.md: setting, and whether it is taken over.
    fn table() -> BTreeMap<String, bool> {
        let text = include_str!("../../docs/operations.md");
        let table = text.split("<!-- reload -->").nth(1).expect("a table");
        let row = |line: &str| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let name = cells.next()?.strip_suffix('`')?.to_owned();
            Some((name, cells.next()?))
        };
        let rows: Vec<_> = table.lines().filter_map(row).collect();
        for (name, how) in &rows {
            assert!(["at once", "next start"].contains(how), "{name}: {how}");
        }
        let all: BTreeMap<_, _> = rows.iter().map(|(name, how)| (name.clone(), *how == "at once")).collect();
        assert_eq!(all.len(), rows.len(), "one row for each");
        all
    }

    #[test]
    fn the_table_of_what_a_reload_takes_over_has_every_setting_and_is_right() {
        let defaults = load("").expect("valid");
        // What has no default stands in the default file as an example.
        let sections = ["http.keys", "http.jwt", "sql.users", "collections"];
        sections.iter().for_each(|name| assert!(DEFAULTS.contains(&format!("[{name}")), "{name}"));
        let known: BTreeSet<_> = defaults.written.0.keys().cloned().chain(sections.map(str::to_owned)).collect();
        let table = table();
        assert_eq!(table.keys().cloned().collect::<BTreeSet<_>>(), known);
        for (name, live) in &table {
            let mut changed = defaults.clone();
            changed.written.0.insert(name.clone(), "another value".into());
            let left = changed.changed_since(&defaults);
            assert_eq!(left.is_empty(), *live, "{name}: {left:?}");
            assert!(*live || left == [name.clone()], "{name}: {left:?}");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        let cases = [
            ("[source]\nslott = 'x'\n", "slott"),
            ("[sauce]\n", "sauce"),
            ("[telemetry]\notlp_endpoint = 'collector:4318'\n", "telemetry.otlp_endpoint"),
            ("[telemetry]\nsampling_ratio = 1.5\n", "telemetry.sampling_ratio"),
            ("[storage]\nsnapshot_dir = 'here'\n", "storage.snapshot_dir"),
            ("[source]\nslot = 'Bad-Name'\n", "source.slot"),
            ("[source]\nstreaming = 'parallel'\n", "unknown variant `parallel`, expected `off` or `on`"),
            ("[storage]\ndir = ''\n", "storage.dir"),
            ("[engine]\nsegment_rows = 1\n", "engine.segment_rows"),
            ("[source]\nfailover = 'always'\n", "unknown variant `always`, expected `auto` or `off`"),
            ("[log]\nformat = 'xml'\n", "expected `text` or `json`"),
            ("[source]\nmax_retained_wal_mib = 10000000000000\n", "source.max_retained_wal_mib"),
            ("[http]\nlisten = 'nowhere'\n", "listen"),
            ("[[collections]]\ntable = 'docs'\nvectors = []\n", "no vector column"),
            (&format!("{COLLECTION}{COLLECTION}"), "named twice"),
            (
                "[[collections]]\ntable = 'd'\n[[collections.vectors]]\ncolumn = 'e'\nmetric = 'far'\n",
                "unknown variant `far`, expected one of `l2`, `cosine`",
            ),
            ("[[collections]]\ntable = 'd'\n[[collections.vectors]]\ncolumn = 'e'\nencoding = 'sq9'\n", "`sq8`"),
            ("[[collections]]\ntable = 'd'\n[[collections.vectors]]\ncolumn = 'e'\nm = 1\n", "m is 1"),
            ("[sql]\nlisten = 'nowhere'\n[sql.users.a]\npassword = 'x'\n", "sql.listen"),
            ("[sql]\nlisten = '127.0.0.1:5480'\n", "without users"),
            ("[sql]\ntls_cert = 'c.pem'\n", "go together"),
            ("[sql]\nrequire_tls = true\n", "sql.require_tls"),
            ("[sql.users.a]\npasswort = 'x'\n", "passwort"),
            ("[sql.users.a]\npassword = 'x'\nrecheck_role = 'r'\n", "not in search.recheck_roles"),
            ("[sql.users.a]\npassword = 'x'\nrecheck_settings = { 'a.b' = '1' }\n", "without recheck_role"),
            (
                "[search]\nrecheck_roles = ['r']\n[sql.users.a]\npassword = 'x'\nrecheck_role = 'r'\n\
                 recheck_settings = { 'a.b' = '1' }\n",
                "not in search.recheck_settings",
            ),
            ("not toml", "TOML"),
        ];
        for (text, expected) in cases {
            let error = load(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn what_changed_beside_the_collections_is_named() {
        let before = load("[source]\ndsn = 'postgresql://u:a@h/d'\n").expect("valid");
        let after = format!("[source]\ndsn = 'postgresql://u:b@h/d'\n[search]\nwait_ms = 5\n{COLLECTION}");
        let after = load(&after).expect("valid");
        assert_eq!(after.changed_since(&before), ["search.wait_ms", "source.dsn"]);
        assert!(before.changed_since(&before).is_empty() && !format!("{before:?}").contains("u:a@"));
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = load("[source]\ndsn = 'postgresql://u:secret@h/d'\n").expect("valid");
        assert!(!format!("{config:?}").contains("secret"));
        let config = load("[sql.users.a]\npassword = 'secret'\n").expect("valid");
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!(config.sql.users["a"].secret("a").expect("there"), "secret");
        let tied = "[search]\nrecheck_roles = ['r']\nrecheck_settings = ['a.b']\n[sql.users.a]\npassword = 'x'\n\
                    recheck_role = 'r'\nrecheck_settings = { 'a.b' = '1' }\n";
        let user = &load(tied).expect("valid").sql.users["a"];
        let settings: Vec<_> = user.recheck_settings.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!((user.recheck_role.as_deref(), &settings[..]), (Some("r"), &[("a.b", "1")][..]));
    }
}
