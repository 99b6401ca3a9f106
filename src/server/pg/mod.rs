//! SQL: PostgreSQL's wire protocol for psql, drivers and, above all, an unmodified PostgreSQL with postgres_fdw. It parses
//! into a `SearchRequest` and shows what `query` answers; no search is decided here.
//!
//! The protocol is our own on the bytes, as the replication session is, and not `pgwire`: its portals consume their stream
//! (no MOVE BACKWARD, which PostgreSQL 14 sends for every rescan), only the start of a statement can be cancelled and not
//! its rows, its status after ROLLBACK TO SAVEPOINT stays failed, and with a certificate it offers SCRAM-PLUS on plain
//! connections, where libpq then refuses. What is left of it for us is a dozen messages, which `wire.rs` has.
//!
//! Reading order: this file (who comes in), `socket.rs`, `wire.rs` (bytes and messages), `auth.rs`, `session.rs` (what a
//! client says, in order), `extended.rs`, `execute.rs`, `portal.rs`; `statement.rs` (SQL text -> statement), `select.rs`,
//! `condition.rs`, `scalars.rs`, `written.rs`, `inputs.rs`, `viewer.rs`, `plan.rs`, `sources.rs` (query -> what is searched), `tables.rs`, `rows.rs` (lazy
//! rows), `types.rs`, `explain.rs`; `catalog/` (what clients ask of Postgres' own tables).

mod auth;
mod catalog;
mod condition;
mod execute;
mod explain;
mod extended;
mod fixed;
mod functions;
mod infer;
mod inputs;
mod plan;
mod portal;
mod rows;
mod scalars;
mod select;
mod session;
mod settings;
mod socket;
mod sources;
pub mod statement;
mod tables;
mod types;
mod viewer;
pub mod wire;
mod written;

use crate::consistency::recheck::SourceHeap;
use crate::model::Viewer;
use crate::query::QueryService;
use crate::server::pg::auth::{Users, Verifier};
use crate::server::pg::session::Session;
use crate::server::pg::socket::{Connection, Greeting};
use crate::server::pg::wire::Message;
use crate::server::problem::{self, Problem};
use crate::server::tls::{Files, Paths, TlsError};
use crate::telemetry::names;
use parking_lot::Mutex;
use rustls::ServerConfig;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What answers.
pub type Service = QueryService<SourceHeap>;

/// Longest a client may take to come in.
const GREETING: Duration = Duration::from_secs(20);
/// Longest that sessions may take to end when the service stops.
const LAST_STATEMENTS: Duration = Duration::from_secs(5);

/// Settings of the endpoint.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Certificates and key, where connections may be encrypted.
    pub tls: Option<Paths>,
    /// Must they be?
    pub require_tls: bool,
    /// Sessions at once.
    pub max_connections: usize,
    /// How long a statement may take where the client does not say; none: as long as it takes.
    pub statement_timeout: Option<Duration>,
    /// How long a session may say nothing.
    pub idle_timeout: Option<Duration>,
    /// How long in a transaction, which holds on to a state of the index.
    pub idle_in_transaction_timeout: Option<Duration>,
    /// Who may come in.
    pub users: Vec<Login>,
}

/// Somebody who may come in.
#[derive(Clone)]
pub struct Login {
    /// The name.
    pub name: String,
    /// The password, or a SCRAM verifier as PostgreSQL keeps it.
    pub secret: String,
    /// The collections that exist for this user; none: all of them.
    pub collections: Option<BTreeSet<String>>,
    /// With whose eyes all rows are checked that this user is shown.
    pub tie: Option<Viewer>,
}

/// Without the secret.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("name", &self.name)
            .field("collections", &self.collections)
            .field("tie", &self.tie)
            .finish_non_exhaustive()
    }
}

/// Who a session belongs to.
#[derive(Debug)]
pub struct User {
    /// The name.
    pub name: String,
    collections: Option<BTreeSet<String>>,
    /// The role that it cannot leave, with settings that hold whatever it says.
    tie: Option<Viewer>,
}

impl User {
    /// Does this collection exist for the user?
    pub fn may_see(&self, collection: &str) -> bool {
        self.collections.as_ref().is_none_or(|names| names.contains(collection))
    }

    /// May the user hear of figures of all rows?
    pub fn may_count(&self) -> bool {
        self.tie.is_none()
    }
}

/// Why the endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A secret is neither.
    #[error("sql.users.{0}: neither a password nor a whole SCRAM-SHA-256 verifier")]
    Secret(String),
    /// The certificate or the key.
    #[error("sql: {0}")]
    Tls(#[from] TlsError),
}

/// The endpoint: what all sessions share.
pub struct Endpoint {
    service: Arc<Service>,
    options: Options,
    users: Users<User>,
    places: Arc<Semaphore>,
    /// For those who are not in yet.
    greetings: Arc<Semaphore>,
    tls: Option<Files>,
    /// Sessions by process number: their secret, and what cancels the message that each works on.
    running: Mutex<HashMap<u32, (u32, CancellationToken)>>,
    next: AtomicU32,
}

impl Endpoint {
    /// An endpoint over this service.
    pub fn new(service: Arc<Service>, options: Options) -> Result<Endpoint, OpenError> {
        let mut users = BTreeMap::new();
        for Login { name, secret, collections, tie } in &options.users {
            let verifier = Verifier::new(secret).ok_or_else(|| OpenError::Secret(name.clone()))?;
            let user = User { name: name.clone(), collections: collections.clone(), tie: tie.clone() };
            users.insert(name.clone(), (verifier, Arc::new(user)));
        }
        let tls = options.tls.clone().map(|paths| Files::new(paths, b"postgresql")).transpose()?;
        let greetings = Arc::new(Semaphore::new(options.max_connections.saturating_mul(2)));
        let places = Arc::new(Semaphore::new(options.max_connections));
        let (users, running) = (Users::new(users), Mutex::default());
        Ok(Endpoint { service, options, users, places, greetings, tls, running, next: AtomicU32::new(1) })
    }

    /// Serves until `stop` is cancelled.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let sessions = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, from)) => {
                    let (endpoint, stop) = (self.clone(), stop.clone());
                    sessions.spawn(async move {
                        if let Err(error) = endpoint.receive(tcp, stop).await {
                            tracing::debug!(%error, %from, "an SQL session broke off");
                        }
                    });
                }
                Err(error) => {
                    // Out of file handles, most likely.
                    tracing::warn!(%error, "an SQL connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        sessions.close();
        if tokio::time::timeout(LAST_STATEMENTS, sessions.wait()).await.is_err() {
            tracing::warn!("SQL statements are still running; not waiting for them any longer");
        }
    }

    async fn receive(self: Arc<Self>, tcp: TcpStream, stop: CancellationToken) -> std::io::Result<()> {
        // Who is not in yet costs little, but not nothing.
        let Ok(greeting) = self.greetings.clone().try_acquire_owned() else {
            return Err(std::io::Error::other("too many clients that are not in yet"));
        };
        tcp.set_nodelay(true)?;
        // A client that vanished without a word is noticed.
        socket2::SockRef::from(&tcp).set_keepalive(true)?;
        let tls = self.tls.as_ref().map(Files::current);
        let came_in = tokio::time::timeout(GREETING, self.clone().come_in(tcp, tls, stop));
        let came_in = came_in.await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        drop(greeting);
        match came_in {
            Some(session) => session.run().await,
            None => Ok(()),
        }
    }

    async fn come_in(
        self: Arc<Self>,
        tcp: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        stop: CancellationToken,
    ) -> std::io::Result<Option<Session>> {
        let (mut connection, parameters) = match socket::greet(tcp, tls).await? {
            Greeting::Gone => return Ok(None),
            Greeting::Cancel(process, secret) => {
                self.cancel(process, secret);
                return Ok(None);
            }
            Greeting::Session(connection, parameters) => (connection, parameters),
        };
        let user = match self.authenticate(&mut connection, &parameters).await {
            Ok(Some(user)) => user,
            Ok(None) => return Ok(None),
            Err(problem) => {
                tracing::info!(code = problem.kind.code, detail = problem.detail, "an SQL client was refused");
                connection.output.error("FATAL", &problem);
                connection.flush().await?;
                return Ok(None);
            }
        };
        match Session::open(self, connection, user, &parameters, stop).await? {
            Ok(session) => Ok(Some(session)),
            Err((mut connection, problem)) => {
                connection.output.error("FATAL", &problem);
                connection.flush().await?;
                Ok(None)
            }
        }
    }

    /// Who it is; none when the client went away, as psql does to ask its user for a password.
    async fn authenticate(
        &self,
        connection: &mut Connection,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Option<Arc<User>>, Problem> {
        if self.options.require_tls && !connection.encrypted {
            return Err(Problem::new(problem::NEEDS_TLS, "this endpoint takes encrypted connections only")
                .hint("connect with sslmode=require or stricter"));
        }
        let Some(name) = parameters.get("user") else {
            return Err(Problem::new(problem::PROTOCOL, "the start-up message names no user"));
        };
        let lost = |_| Problem::new(problem::PROTOCOL, "the connection broke off during the authentication");
        let wrong =
            || Problem::new(problem::WRONG_PASSWORD, format!("password authentication failed for user {name:?}"));
        let mut exchange = self.users.exchange(name);
        connection.output.authentication(10, &[auth::MECHANISM.as_bytes(), b"\0\0"].concat());
        connection.flush().await.map_err(lost)?;
        let Some(first) = password(connection).await? else { return Ok(None) };
        let first = initial(&first).ok_or_else(|| {
            Problem::new(problem::PROTOCOL, "SCRAM-SHA-256 is the only authentication that is offered")
        })?;
        let challenge = exchange.first(first).ok_or_else(wrong)?;
        connection.output.authentication(11, challenge.as_bytes());
        connection.flush().await.map_err(lost)?;
        let Some(last) = password(connection).await? else { return Ok(None) };
        let last = std::str::from_utf8(&last).map_err(|_| wrong())?;
        let (proof, user) = exchange.last(last).ok_or_else(wrong)?;
        connection.output.authentication(12, proof.as_bytes());
        connection.output.authentication(0, b"");
        connection.trust();
        Ok(Some(user))
    }

    fn cancel(&self, process: u32, secret: u32) {
        // Of a session that works on nothing it is the token of its last message, which nobody looks at any more.
        let running = self.running.lock();
        running.get(&process).filter(|(own, _)| *own == secret).inspect(|(_, running)| running.cancel());
        metrics::counter!(names::SQL_CANCELS).increment(1);
    }
}

async fn password(connection: &mut Connection) -> Result<Option<bytes::Bytes>, Problem> {
    match connection.message().await {
        Ok(Some(Ok(Message::Password(body)))) => Ok(Some(body)),
        Ok(None) => Ok(None),
        _ => Err(Problem::new(problem::PROTOCOL, "another message than the answer to the authentication")),
    }
}

/// The client's first SCRAM message out of its SASLInitialResponse: mechanism, length, message.
fn initial(body: &[u8]) -> Option<&str> {
    let body = body.strip_prefix(auth::MECHANISM.as_bytes())?.strip_prefix(b"\0")?;
    let (length, message) = body.split_first_chunk::<4>()?;
    let whole = u32::from_be_bytes(*length) as usize == message.len();
    std::str::from_utf8(message).ok().filter(|_| whole)
}

/// A process number and a secret for a new session, until it is dropped.
pub struct Registered {
    endpoint: Arc<Endpoint>,
    process: u32,
    secret: u32,
}

impl Registered {
    fn new(endpoint: Arc<Endpoint>) -> Registered {
        let mut secret = [0; 4];
        auth::fill(&mut secret);
        let (process, secret) = (endpoint.next.fetch_add(1, Ordering::Relaxed), u32::from_be_bytes(secret));
        endpoint.running.lock().insert(process, (secret, CancellationToken::new()));
        metrics::gauge!(names::SQL_SESSIONS).increment(1);
        Registered { endpoint, process, secret }
    }

    /// What cancels the message that begins.
    fn message(&self) -> CancellationToken {
        let token = CancellationToken::new();
        self.endpoint.running.lock().insert(self.process, (self.secret, token.clone()));
        token
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.endpoint.running.lock().remove(&self.process);
        metrics::gauge!(names::SQL_SESSIONS).decrement(1);
    }
}
