//! One session: what a client says, in order, and the answers. `execute.rs` does what statements ask for.

use crate::query::Pinned;
use crate::server::pg::condition::unsupported;
use crate::server::pg::portal::{Portal, Prepared, Running, fields, format};
use crate::server::pg::settings::{REPORTED, Settings};
use crate::server::pg::socket::{Connection, FULL};
use crate::server::pg::statement::{self, Statement};
use crate::server::pg::types;
use crate::server::pg::wire::{Message, Named};
use crate::server::pg::{Endpoint, Registered, User};
use crate::server::problem::{self, Problem};
use crate::telemetry::names;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Rows that are made and sent at once.
const CHUNK: usize = 500;
/// Most statements and portals that one session keeps.
pub(super) const MOST_KEPT: usize = 10_000;

/// Where a session is between statements.
#[derive(Default)]
pub(super) struct Transaction {
    /// Between BEGIN and its end.
    pub(super) open: bool,
    /// A statement failed in it.
    pub(super) failed: bool,
    /// Do all its statements see the same?
    pub(super) repeatable: bool,
    /// What they see, once the first has looked.
    pub(super) view: Option<Pinned>,
    /// Names of savepoints.
    pub(super) savepoints: Vec<String>,
}

/// A client that was let in.
pub struct Session {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) connection: Connection,
    pub(super) user: Arc<User>,
    pub(super) settings: Settings,
    pub(super) statements: HashMap<String, Arc<Prepared>>,
    pub(super) portals: HashMap<String, Portal>,
    pub(super) transaction: Transaction,
    /// Isolation of transactions that do not say theirs.
    pub(super) usually_repeatable: bool,
    /// What ends the work on the message that came last.
    pub(super) limits: Option<Limits>,
    /// The table that the next scan is a sample of.
    pub(super) analysed: Option<String>,
    /// After an error everything up to Sync is skipped.
    skipping: bool,
    registered: Registered,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// Why something was not done.
pub(super) enum Failure {
    /// The client is told.
    Problem(Problem),
    /// There is nobody to tell.
    Lost(io::Error),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Failure {
        Failure::Problem(problem)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Lost(error)
    }
}

/// What ends the work on one message.
#[derive(Clone)]
pub struct Limits {
    cancelled: CancellationToken,
    deadline: Option<Instant>,
}

impl Limits {
    /// Why the work has to end, if so: for work that does not wait for anything.
    pub fn ended(&self) -> Option<Problem> {
        match self.deadline {
            _ if self.cancelled.is_cancelled() => Some(cancelled()),
            Some(deadline) if Instant::now() >= deadline => Some(late()),
            _ => None,
        }
    }
}

fn cancelled() -> Problem {
    Problem::new(problem::CANCELLED, "canceling statement due to user request")
}

fn late() -> Problem {
    Problem::new(problem::CANCELLED, "canceling statement due to statement timeout")
        .hint("raise statement_timeout, or sql.statement_timeout_ms")
}

/// Does the work unless it is cancelled or takes too long.
pub(super) async fn guarded<T>(limits: &Limits, work: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let out_of_time = async {
        match &limits.deadline {
            Some(deadline) => tokio::time::sleep_until(*deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = limits.cancelled.cancelled() => Err(cancelled()),
        done = work => done,
        () = out_of_time => Err(late()),
    }
}

impl Session {
    /// Greets a client that was let in. Without a place for it, the connection comes back with the reason.
    pub async fn open(
        endpoint: Arc<Endpoint>,
        mut connection: Connection,
        user: Arc<User>,
        parameters: &BTreeMap<String, String>,
        stop: CancellationToken,
    ) -> io::Result<Result<Session, (Connection, Problem)>> {
        let Ok(place) = endpoint.places.clone().try_acquire_owned() else {
            let problem = Problem::new(problem::OVERLOADED, "sorry, too many clients already")
                .hint("close idle sessions, or raise sql.max_connections");
            return Ok(Err((connection, problem)));
        };
        let settings = match Settings::new(parameters) {
            Ok(settings) => settings,
            Err(problem) => return Ok(Err((connection, problem))),
        };
        let registered = Registered::new(endpoint.clone());
        REPORTED.iter().for_each(|(name, value)| connection.output.parameter_status(name, value));
        let application = parameters.get("application_name").map_or("", String::as_str);
        connection.output.parameter_status("application_name", application);
        connection.output.parameter_status("session_authorization", &user.name);
        connection.output.parameter_status("is_superuser", "off");
        connection.output.backend_key(registered.process, registered.secret);
        connection.output.ready(b'I');
        connection.flush().await?;
        connection.stall = endpoint.options.idle_in_transaction_timeout;
        tracing::debug!(user = user.name, process = registered.process, "an SQL session began");
        Ok(Ok(Session {
            endpoint,
            connection,
            user,
            settings,
            statements: HashMap::new(),
            portals: HashMap::new(),
            transaction: Transaction::default(),
            usually_repeatable: false,
            analysed: None,
            limits: None,
            skipping: false,
            registered,
            stop,
            _place: place,
        }))
    }

    /// Until the client goes, is idle for too long, or the service stops.
    pub async fn run(mut self) -> io::Result<()> {
        loop {
            let idle = self.idle_limit();
            let next = tokio::select! {
                biased;
                () = self.stop.clone().cancelled_owned() => {
                    let problem = Problem::new(problem::STOPPING, "terminating connection: the service stops");
                    return self.end(problem).await;
                }
                next = tokio::time::timeout(idle, self.connection.message()) => next,
            };
            let message = match next {
                Err(_) => {
                    let problem = Problem::new(problem::IDLE, format!("terminating connection: idle for {idle:?}"))
                        .hint("sql.idle_timeout_s and sql.idle_in_transaction_timeout_s are the limits");
                    return self.end(problem).await;
                }
                Ok(message) => message?,
            };
            let message = match message {
                None | Some(Ok(Message::Terminate)) => return Ok(()),
                Some(Ok(message)) => message,
                Some(Err(malformed)) => {
                    return self.end(Problem::new(problem::PROTOCOL, malformed.to_string())).await;
                }
            };
            self.handle(message).await?;
        }
    }

    fn idle_limit(&self) -> Duration {
        let options = &self.endpoint.options;
        // A portal that runs holds on to a state of the index as a transaction does.
        let holds = self.transaction.open || self.portals.values().any(|portal| portal.running.is_some());
        let limit = if holds { options.idle_in_transaction_timeout } else { options.idle_timeout };
        limit.unwrap_or(Duration::MAX)
    }

    /// The last word.
    async fn end(mut self, problem: Problem) -> io::Result<()> {
        self.connection.output.error("FATAL", &problem);
        self.connection.flush().await
    }

    async fn handle(&mut self, message: Message) -> io::Result<()> {
        let done = match message {
            Message::Query(sql) => {
                let limits = self.limits();
                let done = self.simple(&sql, &limits).await;
                self.report(done)?;
                self.drop_implicit();
                self.connection.output.ready(self.status());
                return self.connection.flush().await;
            }
            Message::Sync => {
                self.skipping = false;
                self.drop_implicit();
                self.connection.output.ready(self.status());
                return self.connection.flush().await;
            }
            Message::Flush => return self.connection.flush().await,
            // Left over from a COPY that was refused.
            Message::Other(b'd' | b'c' | b'f') => return Ok(()),
            _ if self.skipping => return Ok(()),
            Message::Parse { name, sql, types } => self.parse(name, &sql, types).await,
            Message::Bind { portal, statement, formats, values, results } => {
                self.bind(portal, &statement, &formats, values, results)
            }
            Message::Describe(Named::Statement(name)) => self.describe_statement(&name).await,
            Message::Describe(Named::Portal(name)) => self.describe_portal(&name).await,
            Message::Execute { portal, rows } => {
                let limits = self.limits();
                self.execute(portal, rows, &limits).await
            }
            Message::Close(named) => {
                match named {
                    Named::Statement(name) => drop(self.statements.remove(&name)),
                    Named::Portal(name) => drop(self.portals.remove(&name)),
                }
                self.connection.output.empty(b'3');
                Ok(())
            }
            Message::Other(_) => Err(unsupported("a function call message").into()),
            Message::Password(_) | Message::Terminate => {
                Err(Problem::new(problem::PROTOCOL, "a message that does not belong here").into())
            }
        };
        self.skipping = matches!(done, Err(Failure::Problem(_)));
        self.report(done)
    }

    /// Tells the client what went wrong; a transaction in which it did has failed.
    fn report(&mut self, done: Result<(), Failure>) -> io::Result<()> {
        match done {
            Ok(()) => Ok(()),
            Err(Failure::Lost(error)) => Err(error),
            Err(Failure::Problem(problem)) => {
                metrics::counter!(names::SQL_STATEMENTS, "code" => problem.kind.code).increment(1);
                if problem.kind.status >= 500 {
                    tracing::warn!(code = problem.kind.code, detail = problem.detail, "an SQL statement failed");
                }
                self.transaction.failed = self.transaction.open;
                self.connection.output.error("ERROR", &problem);
                Ok(())
            }
        }
    }

    fn status(&self) -> u8 {
        match (self.transaction.open, self.transaction.failed) {
            (false, _) => b'I',
            (true, false) => b'T',
            (true, true) => b'E',
        }
    }

    /// Outside of a transaction nothing outlives its statement.
    fn drop_implicit(&mut self) {
        if !self.transaction.open {
            self.portals.clear();
        }
    }

    fn limits(&mut self) -> Limits {
        let limit = self.settings.statement_timeout().or(self.endpoint.options.statement_timeout);
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let limits = Limits { cancelled: self.registered.message(), deadline };
        self.limits = Some(limits.clone());
        limits
    }

    pub(super) fn refuse_failed(&self, statement: Option<&Statement>) -> Result<(), Problem> {
        if !self.transaction.failed || statement.is_some_and(Statement::ends_failure) {
            return Ok(());
        }
        let detail = "current transaction is aborted, commands ignored until end of transaction block";
        Err(Problem::new(problem::TRANSACTION_FAILED, detail).hint("send ROLLBACK, or ROLLBACK TO SAVEPOINT"))
    }

    async fn simple(&mut self, sql: &str, limits: &Limits) -> Result<(), Failure> {
        let statements = match statement::parse(sql) {
            Err(problem) => {
                self.refuse_failed(None)?;
                return Err(problem.into());
            }
            Ok(statements) => statements,
        };
        if statements.is_empty() {
            self.connection.output.empty(b'I');
        }
        for statement in &statements {
            self.refuse_failed(Some(statement))?;
            let started = guarded(limits, self.start(statement, &[], true)).await?;
            match started {
                Started::Tag(tag) => self.complete(&tag),
                Started::Rows(mut running) => {
                    self.connection.output.fields(&fields(&running.outputs, &[]));
                    let (sent, _) = self.send(&mut running, &[], None, limits).await?;
                    self.complete(&running.tag(sent));
                }
            }
        }
        Ok(())
    }

    pub(super) fn complete(&mut self, tag: &str) {
        metrics::counter!(names::SQL_STATEMENTS, "code" => "ok").increment(1);
        self.connection.output.complete(tag);
    }

    /// Sends rows: how many, and whether there may be more.
    pub(super) async fn send(
        &mut self,
        running: &mut Running,
        formats: &[i16],
        most: Option<u64>,
        limits: &Limits,
    ) -> Result<(u64, bool), Failure> {
        let kinds: Vec<_> = running.outputs.iter().map(|output| (output.kind, output.form)).collect();
        let mut sent = 0;
        loop {
            let left = most.map_or(u64::MAX, |most| most - sent);
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            if want == 0 {
                return Ok((sent, true));
            }
            let rows = guarded(limits, running.next(want)).await?;
            for row in &rows {
                self.connection.output.row(kinds.len(), |at, out| match &row[at] {
                    Some(value) => {
                        let (kind, form) = kinds[at];
                        types::put(kind, form, value, format(formats, at), out);
                        true
                    }
                    None => false,
                });
            }
            sent += rows.len() as u64;
            if rows.len() < want {
                return Ok((sent, false));
            }
            if self.connection.output.0.len() > FULL {
                // Who does not read can be cancelled and runs out of time, too.
                guarded(limits, async { Ok(self.connection.flush().await) }).await??;
            }
        }
    }
}

/// What came of the beginning of a statement.
pub(super) enum Started {
    /// It is done.
    Tag(String),
    /// It has rows.
    Rows(Box<Running>),
}

pub(super) fn no_cursor(name: &str) -> Problem {
    Problem::new(problem::NO_CURSOR, format!("cursor \"{name}\" does not exist"))
        .hint("cursors end with their transaction")
}
