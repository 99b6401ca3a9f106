//! Connections to the source: every host and every kind of encryption that the connection string allows, in libpq's
//! order; one by one for set-up and replication, pooled for the recheck.

use crate::source::conninfo::{ChannelBinding, ConnInfo, Secret, SessionKind, SslMode, Target};
use crate::source::password::Password;
use crate::source::protocol::{Opened, Protocol, ServerState};
use crate::source::session::{Replication, Session, no_channel_binding};
use crate::source::socket::{Address, Secured, Socket};
use crate::source::{Result, SourceError, chain, tls};
use deadpool::Runtime;
use deadpool::managed::{self, Metrics, RecycleError, RecycleResult, Timeouts};
use deadpool_postgres::ClientWrapper;
use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::config::{self, Config, SslNegotiation};

/// Where the source is and who we are. Does not print its password.
#[derive(Clone)]
pub struct Dsn {
    info: Arc<ConnInfo>,
    command: Option<Arc<str>>,
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dsn({self})")
    }
}

/// Hosts, ports and database: enough to know which, no secrets.
impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets: Vec<String> = self.info.targets.iter().map(Target::to_string).collect();
        write!(f, "{}/{}", targets.join(","), self.info.database)
    }
}

impl Dsn {
    /// Parses `postgresql://user:password@host:port/database` or libpq's `key=value` form.
    pub fn parse(text: &str) -> Result<Dsn> {
        Ok(Dsn { info: Arc::new(ConnInfo::parse(text)?), command: None })
    }

    /// The first host, or the directory of its socket.
    pub fn host(&self) -> String {
        let first = &self.info.targets[0];
        if first.host.is_empty() { first.address.clone().unwrap_or_default() } else { first.host.clone() }
    }

    /// The same whose sessions carry this identity at the end of their application name.
    pub fn with_instance(self, id: &str) -> Dsn {
        let mut info = (*self.info).clone();
        // The server cuts names at 63 bytes: what is cut must not be the identity.
        let room = 62usize.saturating_sub(id.len());
        while info.application_name.len() > room {
            info.application_name.pop();
        }
        info.application_name = format!("{} {id}", info.application_name);
        Dsn { info: Arc::new(info), ..self }
    }

    /// As whom.
    pub fn user(&self) -> &str {
        &self.info.user
    }

    /// The first port.
    pub fn port(&self) -> u16 {
        self.info.targets[0].port
    }

    /// The same with a command that prints the password, run for every connection. An empty one is none.
    pub fn with_password_command(self, command: &str) -> Result<Dsn> {
        let command = Some(command.trim()).filter(|command| !command.is_empty()).map(Arc::from);
        if command.is_some() && self.info.password.is_some() {
            let problem = "both source.dsn and source.password_command give a password";
            return Err(SourceError::refused(problem, "take the password out of source.dsn"));
        }
        Ok(Dsn { command, ..self })
    }

    /// Opens one connection for SQL. It ends when the client is dropped.
    pub async fn connect(&self) -> Result<Client> {
        Ok(self.open(&Sql).await?.0)
    }

    /// Opens one connection for replication.
    pub async fn connect_replication(&self) -> Result<Session> {
        self.open(&Replication).await
    }

    /// A pool of at most `size` connections for short statements. Each is made with a password of its own.
    pub fn pool(&self, size: usize, wait: Duration) -> Pool {
        let timeouts = Timeouts { wait: Some(wait), create: Some(wait), recycle: Some(wait) };
        let builder =
            Pool::builder(Manager { dsn: self.clone(), late: Arc::default() }).max_size(size).timeouts(timeouts);
        builder.runtime(Runtime::Tokio1).build().expect("a runtime is given for the time-outs")
    }

    /// The first server that takes us and is of the kind that is wanted.
    async fn open<P: Protocol>(&self, protocol: &P) -> Result<P::Session> {
        let password = Password::obtain(&self.info, self.command.as_deref()).await?;
        let mut failures = Vec::new();
        let passes: &[SessionKind] = match self.info.session {
            SessionKind::PreferStandby => &[SessionKind::Standby, SessionKind::Any],
            ref wanted => std::slice::from_ref(wanted),
        };
        for wanted in passes {
            failures.clear();
            for target in &self.info.targets {
                let attempt = Attempt { info: &self.info, target, wanted: *wanted };
                match attempt.run(protocol, password.for_target(&self.info, target)).await {
                    Ok(session) => return Ok(session),
                    Err(error) if is_final(&error) => return Err(error),
                    Err(error) => failures.push(error),
                }
            }
        }
        Err(combined(failures))
    }
}

/// Another host would say the same: who we are is refused. As in libpq the remaining hosts are not tried.
fn is_final(error: &SourceError) -> bool {
    error.sqlstate().is_some_and(|code| code.starts_with("28"))
}

/// One error for many attempts: transient where any of them is.
fn combined(mut failures: Vec<SourceError>) -> SourceError {
    let Some(last) = failures.pop() else { return SourceError::Unavailable("no address to connect to".into()) };
    if failures.is_empty() || !failures.iter().chain([&last]).any(SourceError::is_transient) {
        return last;
    }
    let texts: Vec<String> = failures.iter().chain([&last]).map(SourceError::to_string).collect();
    SourceError::Unavailable(texts.join("; "))
}

/// How a connection may be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    /// TLS, or none where the server has none.
    TlsIfOffered,
    Tls,
}

/// The ways to try, in libpq's order; a further one only where the server itself refused the one before.
fn ways(mode: SslMode, binding: ChannelBinding, is_unix: bool) -> &'static [Way] {
    match mode {
        // The kernel is in between, nobody else; libpq does no TLS here either.
        _ if is_unix => &[Way::Plain],
        SslMode::Disable => &[Way::Plain],
        SslMode::Allow | SslMode::Prefer if binding == ChannelBinding::Require => &[Way::Tls],
        SslMode::Allow => &[Way::Plain, Way::Tls],
        SslMode::Prefer => &[Way::TlsIfOffered, Way::Plain],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Way::Tls],
    }
}

/// Does an error leave hope that the other way is let in? TLS that cannot be agreed on, and no line in `pg_hba.conf`. A
/// wrong password does not: it is not sent a second time, in the clear.
fn may_differ(error: &SourceError, way: Way) -> bool {
    match error {
        SourceError::Sql { code, .. } => code == "28000",
        _ => way == Way::TlsIfOffered,
    }
}

/// One server, all its addresses.
struct Attempt<'a> {
    info: &'a ConnInfo,
    target: &'a Target,
    wanted: SessionKind,
}

impl Attempt<'_> {
    async fn run<P: Protocol>(&self, protocol: &P, password: Option<Secret>) -> Result<P::Session> {
        if self.info.channel_binding == ChannelBinding::Require && self.target.is_unix() {
            return Err(no_channel_binding());
        }
        let mut failures = Vec::new();
        let found = tokio::time::timeout(self.info.connect_timeout, Address::of(self.target)).await;
        for address in found.map_err(|_| self.late())?? {
            match self.address(protocol, &address, password.as_ref()).await {
                Ok(session) => return Ok(session),
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => failures.push(error),
            }
        }
        Err(combined(failures))
    }

    async fn address<P: Protocol>(
        &self,
        protocol: &P,
        address: &Address,
        password: Option<&Secret>,
    ) -> Result<P::Session> {
        let mut last = SourceError::Unavailable(format!("no way to connect to {}", self.target));
        for way in ways(self.info.ssl.mode, self.info.channel_binding, self.target.is_unix()) {
            let attempt = async {
                let socket = Socket::open(address, &self.info.tcp).await;
                let socket = socket.map_err(|error| {
                    let problem = format!("cannot connect to {}: {error}", self.shown(address));
                    (SourceError::Unavailable(problem), false)
                })?;
                self.way(protocol, socket, *way, password).await.map_err(|error| {
                    let another = may_differ(&error, *way);
                    (error, another)
                })
            };
            let attempted = tokio::time::timeout(self.info.connect_timeout, attempt).await;
            match attempted.unwrap_or_else(|_| Err((self.late(), false))) {
                Ok(session) => return Ok(session),
                Err((error, true)) => last = error,
                Err((error, false)) => return Err(error),
            }
        }
        Err(last)
    }

    async fn way<P: Protocol>(
        &self,
        protocol: &P,
        socket: Socket,
        way: Way,
        password: Option<&Secret>,
    ) -> Result<P::Session> {
        let socket = match way {
            Way::Plain => socket,
            Way::Tls | Way::TlsIfOffered => socket.secure(&self.info.ssl, self.target).await?,
        };
        if way == Way::Tls && !socket.is_secure() {
            let problem = format!("{} does not do TLS, which source.dsn demands", self.target);
            return Err(SourceError::refused(problem, "set ssl = on at the source, or a weaker sslmode"));
        }
        let opened = protocol.open(socket, self.info, self.target, password.cloned()).await?;
        match opened.state.is(self.wanted) {
            true => Ok(opened.session),
            // Perhaps it becomes one: the next attempt may find it so.
            false => Err(SourceError::Unavailable(format!("{} is not {:?}", self.target, self.wanted))),
        }
    }

    fn shown(&self, address: &Address) -> String {
        match address {
            Address::Tcp(address) if address.to_string() != self.target.to_string() => {
                format!("{} ({address})", self.target)
            }
            _ => self.target.to_string(),
        }
    }

    fn late(&self) -> SourceError {
        SourceError::Unavailable(format!("{} did not answer within {:?}", self.target, self.info.connect_timeout))
    }
}

/// What our statements rely on, whatever the role's or the database's defaults are.
const SESSION: &str = "SET search_path = pg_catalog; SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; \
     SET IntervalStyle = 'iso_8601'; SET extra_float_digits = 1; SET bytea_output = 'hex'; \
     SET standard_conforming_strings = on; SET lock_timeout = '10s'";

/// Lifts the limits that the role or the database sets for statements and transactions, where the server knows them: for
/// the session, or for the transaction where that is `local`. For work that takes its time.
pub fn without_limits(local: bool) -> String {
    format!(
        "SELECT pg_catalog.set_config(name, '0', {local}) FROM pg_catalog.pg_settings
          WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')"
    )
}

/// A client for statements, and the task that serves it.
struct Sql;

impl Protocol for Sql {
    type Session = (Client, JoinHandle<()>);

    async fn open(
        &self,
        socket: Socket,
        info: &ConnInfo,
        _: &Target,
        password: Option<Secret>,
    ) -> Result<Opened<Self::Session>> {
        let config = client_config(info, &socket, password);
        let connected = config.connect_raw(socket, Secured).await;
        let (client, connection) = connected.map_err(|error| refused_or_away(error, info.channel_binding))?;
        let mut state = ServerState::default();
        for name in ["in_hot_standby", "default_transaction_read_only"] {
            state.learn(name, connection.parameter(name).unwrap_or_default());
        }
        let serving = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = chain(&error), "a connection to the source ended");
            }
        });
        client.batch_execute(SESSION).await?;
        Ok(Opened { session: (client, serving), state })
    }
}

fn client_config(info: &ConnInfo, socket: &Socket, password: Option<Secret>) -> Config {
    let mut config = Config::new();
    config.user(&info.user).dbname(&info.database).application_name(&info.application_name);
    // Without a password the server says so, with its SQLSTATE.
    config.password(password.as_ref().map_or("", Secret::expose));
    if let Some(options) = &info.options {
        config.options(options);
    }
    // The handshake is done: what is left of TLS is to say so.
    config.ssl_mode(if socket.is_secure() { config::SslMode::Require } else { config::SslMode::Disable });
    config.ssl_negotiation(SslNegotiation::Direct);
    config.channel_binding(match info.channel_binding {
        ChannelBinding::Disable => config::ChannelBinding::Disable,
        ChannelBinding::Prefer => config::ChannelBinding::Prefer,
        ChannelBinding::Require => config::ChannelBinding::Require,
    });
    config
}

/// Of a failed start-up: what neither the server nor the network caused is something that cannot be agreed on.
fn refused_or_away(error: tokio_postgres::Error, binding: ChannelBinding) -> SourceError {
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
    let from_network = cause.is_some_and(|cause| cause.kind() != io::ErrorKind::InvalidInput);
    if error.as_db_error().is_some() || tls::cause(&error).is_some() || from_network || error.is_closed() {
        return error.into();
    }
    match binding {
        ChannelBinding::Require => no_channel_binding(),
        _ => SourceError::refused(
            format!("the authentication failed: {}", chain(&error)),
            "give this role a line in pg_hba.conf with scram-sha-256, and check that source.dsn names the right server",
        ),
    }
}

/// A connection on its way.
type Opening = JoinHandle<Result<(Client, JoinHandle<()>)>>;

/// Makes the pool's connections.
pub struct Manager {
    dsn: Dsn,
    /// Those whose caller no longer waited: the next one gets them. A credential command may well take longer than a search
    /// waits, and begun anew each time it would never come to an end.
    late: Arc<Mutex<Vec<Opening>>>,
}

impl Manager {
    fn open(&self) -> Awaited {
        let waiting = self.late.lock().pop();
        let opening = waiting.unwrap_or_else(|| {
            let dsn = self.dsn.clone();
            tokio::spawn(async move { dsn.open(&Sql).await })
        });
        Awaited { opening: Some(opening), late: self.late.clone() }
    }
}

/// A connection on its way with somebody who waits for it.
struct Awaited {
    opening: Option<Opening>,
    late: Arc<Mutex<Vec<Opening>>>,
}

impl Awaited {
    async fn wait(mut self) -> Result<(Client, JoinHandle<()>)> {
        let Some(opening) = &mut self.opening else { return Err(ended("nothing was begun")) };
        let opened = opening.await;
        self.opening = None;
        opened.unwrap_or_else(|error| Err(ended(error)))
    }
}

/// Nobody waits any more.
impl Drop for Awaited {
    fn drop(&mut self) {
        self.late.lock().extend(self.opening.take());
    }
}

fn ended(error: impl fmt::Display) -> SourceError {
    SourceError::Unavailable(format!("opening a connection ended: {error}"))
}

/// Connections for short statements.
pub type Pool = managed::Pool<Manager>;

impl managed::Manager for Manager {
    type Type = ClientWrapper;
    type Error = SourceError;

    async fn create(&self) -> Result<ClientWrapper> {
        let (mut client, mut serving) = self.open().wait().await?;
        if client.is_closed() {
            // It was ready long ago.
            (client, serving) = self.open().wait().await?;
        }
        Ok(ClientWrapper::new(client, serving))
    }

    async fn recycle(&self, client: &mut ClientWrapper, _: &Metrics) -> RecycleResult<SourceError> {
        match client.is_closed() {
            true => Err(RecycleError::message("the connection ended")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_never_printed() {
        let dsn = Dsn::parse("postgresql://me:secret@db.example:5433,[::1]/app").expect("valid");
        assert_eq!(dsn.to_string(), "db.example:5433,[::1]:5432/app");
        assert!(!format!("{dsn:?}").contains("secret"));
        let named = Dsn::parse(&format!("host=h user=u application_name={}", "ü".repeat(40))).expect("valid");
        let name = named.with_instance("0123456789ab").info.application_name.clone();
        assert!(name.ends_with(" 0123456789ab") && name.len() <= 63, "{name}");
        let error = dsn.with_password_command("echo x").expect_err("two passwords").to_string();
        assert!(error.contains("source.password_command") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn the_ways_of_each_mode() {
        use ChannelBinding::{Prefer, Require};
        let cases: &[(SslMode, ChannelBinding, bool, &[Way])] = &[
            (SslMode::Disable, Prefer, false, &[Way::Plain]),
            (SslMode::Allow, Prefer, false, &[Way::Plain, Way::Tls]),
            (SslMode::Prefer, Prefer, false, &[Way::TlsIfOffered, Way::Plain]),
            (SslMode::Require, Prefer, false, &[Way::Tls]),
            (SslMode::VerifyCa, Prefer, false, &[Way::Tls]),
            (SslMode::VerifyFull, Prefer, false, &[Way::Tls]),
            (SslMode::Prefer, Require, false, &[Way::Tls]),
            (SslMode::VerifyFull, Prefer, true, &[Way::Plain]),
        ];
        for (mode, binding, is_unix, expected) in cases {
            assert_eq!(ways(*mode, *binding, *is_unix), *expected, "{mode:?} {binding:?} {is_unix}");
        }
        let sql = |code: &str| SourceError::Sql { code: code.into(), message: String::new() };
        assert!(may_differ(&sql("28000"), Way::Plain));
        assert!(!may_differ(&sql("28P01"), Way::TlsIfOffered));
        assert!(!may_differ(&sql("3D000"), Way::Plain));
        assert!(may_differ(&SourceError::refused("a certificate", ""), Way::TlsIfOffered));
        assert!(!may_differ(&SourceError::refused("a certificate", ""), Way::Tls));
    }

    #[test]
    fn the_kind_of_server() {
        use SessionKind::{Any, Primary, ReadOnly, ReadWrite, Standby};
        let state = |standby, read_only| ServerState { standby, read_only };
        let cases: &[(ServerState, &[SessionKind])] = &[
            (state(false, false), &[Any, Primary, ReadWrite]),
            (state(false, true), &[Any, Primary, ReadOnly]),
            (state(true, false), &[Any, Standby, ReadOnly]),
        ];
        for (state, fitting) in cases {
            for kind in [Any, Primary, Standby, ReadOnly, ReadWrite] {
                assert_eq!(state.is(kind), fitting.contains(&kind), "{state:?} {kind:?}");
            }
        }
    }

    #[test]
    fn many_failures_are_transient_if_one_is() {
        let away = || SourceError::Unavailable("away".into());
        let sql = |code: &str| SourceError::Sql { code: code.into(), message: "words".into() };
        assert!(combined(vec![away(), sql("3D000")]).is_transient());
        assert!(combined(vec![sql("3D000"), away()]).to_string().contains("away"));
        assert_eq!(combined(vec![sql("42501"), sql("3D000")]).sqlstate(), Some("3D000"));
        assert_eq!(combined(vec![sql("57P03")]).sqlstate(), Some("57P03"));
        assert!(combined(Vec::new()).is_transient());
    }
}
