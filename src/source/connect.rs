//! Connections to the source for SQL: one by one for set-up, pooled for the recheck.

use crate::source::{Result, SourceError};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts};
use std::fmt;
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};

/// Where the source is and who we are. Does not print its password.
#[derive(Clone)]
pub struct Dsn {
    text: String,
    config: Config,
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dsn({self})")
    }
}

/// Host, port and database: enough to know which, no secrets.
impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        write!(f, "{}:{port}/{}", self.host(), self.config.get_dbname().unwrap_or("?"))
    }
}

impl Dsn {
    /// Parses `postgresql://user:password@host:port/database` or libpq's `key=value` form.
    pub fn parse(text: &str) -> Result<Dsn> {
        let remedy = "expected postgresql://user:password@host:port/database or host=... user=... dbname=...";
        let mut config: Config = text
            .parse()
            .map_err(|error| SourceError::refused(format!("source.dsn: {}", super::chain(&error)), remedy))?;
        if config.get_hosts().is_empty() {
            return Err(SourceError::refused("source.dsn names no host", remedy));
        }
        if config.get_ssl_mode() == SslMode::Require {
            let problem = "source.dsn asks for TLS (sslmode=require), which this version cannot do yet";
            return Err(SourceError::refused(problem, "use sslmode=disable on a private network"));
        }
        config.ssl_mode(SslMode::Disable).application_name("ruvector");
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(10));
        }
        Ok(Dsn { text: text.to_owned(), config })
    }

    /// The first host, or the directory of its socket.
    pub fn host(&self) -> String {
        match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => String::new(),
        }
    }

    /// The connection string for the WAL transport, which is another client library.
    pub fn for_replication(&self) -> String {
        let (text, separator) = match self.text.contains("://") {
            true => (self.text.clone(), if self.text.contains('?') { "&" } else { "?" }),
            false => (self.text.clone(), " "),
        };
        let has = |key: &str| text.contains(&format!("{key}="));
        let mut out = text.clone();
        let mut add = |parameter: &str| {
            let first = out == text;
            out.push_str(if first || separator == " " { separator } else { "&" });
            out.push_str(parameter);
        };
        add("replication=database");
        if !has("sslmode") {
            add("sslmode=disable");
        }
        if !has("connect_timeout") {
            add("connect_timeout=10");
        }
        out
    }

    /// Opens one connection. It ends when the client is dropped.
    pub async fn connect(&self) -> Result<Client> {
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the source ended");
            }
        });
        client.batch_execute(SESSION).await?;
        Ok(client)
    }

    /// A pool of at most `size` connections for short statements.
    pub fn pool(&self, size: usize, wait: Duration) -> Pool {
        let recycling_method = RecyclingMethod::Fast;
        let manager = Manager::from_config(self.config.clone(), NoTls, ManagerConfig { recycling_method });
        let hook = deadpool_postgres::Hook::async_fn(|client, _| {
            Box::pin(async move { client.batch_execute(SESSION).await.map_err(deadpool_postgres::HookError::Backend) })
        });
        let timeouts = Timeouts { wait: Some(wait), create: Some(wait), recycle: Some(wait) };
        let built = Pool::builder(manager).max_size(size).timeouts(timeouts).runtime(Runtime::Tokio1).post_create(hook);
        built.build().expect("a runtime is given for the time-outs")
    }
}

/// What our statements rely on, whatever the role's or the database's defaults are.
const SESSION: &str = "SET search_path = pg_catalog; SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; \
     SET IntervalStyle = 'iso_8601'; SET extra_float_digits = 1; SET bytea_output = 'hex'; \
     SET standard_conforming_strings = on; SET lock_timeout = '10s'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_never_printed() {
        let dsn = Dsn::parse("postgresql://me:secret@db.example:5433/app").expect("valid");
        assert_eq!(dsn.to_string(), "db.example:5433/app");
        assert!(!format!("{dsn:?}").contains("secret"));
        assert_eq!(
            dsn.for_replication(),
            "postgresql://me:secret@db.example:5433/app?replication=database&sslmode=disable&connect_timeout=10"
        );
    }

    #[test]
    fn both_forms_reach_the_transport() {
        let dsn = Dsn::parse("host=/tmp dbname=app user=me connect_timeout=3").expect("valid");
        assert!(dsn.for_replication().ends_with("connect_timeout=3 replication=database sslmode=disable"));
        assert!(Dsn::parse("nonsense").is_err());
        assert!(Dsn::parse("postgresql://h/db?sslmode=require").is_err());
    }
}
