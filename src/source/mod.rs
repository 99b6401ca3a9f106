//! The customer's Postgres seen as a client: connections, catalog facts, publication, rows by key, preflight checks.

pub mod catalog;
mod certificate;
pub mod connect;
pub mod conninfo;
mod password;
pub mod policy;
pub mod preflight;
mod protocol;
pub mod publication;
pub mod registrations;
pub mod rows;
pub mod session;
pub mod setup;
pub mod slots;
mod socket;
pub mod sqlpack;
mod tls;

use crate::source::policy::Policy;
use deadpool::managed::{PoolError, TimeoutType};

/// What can go wrong with the source, named for what must happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// Try again: the server cannot be reached, or the connection broke.
    #[error("the source is not reachable: {0}")]
    Unavailable(String),
    /// An operator must change something; with the remedy.
    #[error("{problem}. {remedy}")]
    Refused {
        /// What is wrong.
        problem: String,
        /// What to do, with SQL to paste where there is some.
        remedy: String,
    },
    /// The server answered with an error; its code decides what follows ([`SourceError::policy`]).
    #[error("the source answered: {message} (SQLSTATE {code}){}", advice(code))]
    Sql {
        /// SQLSTATE.
        code: String,
        /// The server's words.
        message: String,
    },
}

/// The remedy, where the code alone tells one.
fn advice(code: &str) -> String {
    match policy::of_sqlstate(code) {
        Policy::Refuse { remedy } => format!(". {remedy}"),
        _ => String::new(),
    }
}

impl SourceError {
    /// A refusal with its remedy.
    pub fn refused(problem: impl Into<String>, remedy: impl Into<String>) -> SourceError {
        SourceError::Refused { problem: problem.into(), remedy: remedy.into() }
    }

    /// What follows it.
    pub fn policy(&self) -> Policy {
        match self {
            SourceError::Unavailable(_) => Policy::Retry,
            SourceError::Refused { .. } => Policy::Refuse { remedy: "see the error" },
            SourceError::Sql { code, .. } => policy::of_sqlstate(code),
        }
    }

    /// May the same thing work later without anybody's help?
    pub fn is_transient(&self) -> bool {
        self.policy().is_transient()
    }

    /// The server's code, where it was the server that answered.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            SourceError::Sql { code, .. } => Some(code),
            _ => None,
        }
    }
}

impl From<tokio_postgres::Error> for SourceError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => SourceError::Sql { code: db.code().code().to_owned(), message: db.message().to_owned() },
            None if tls::cause(&error).is_some() => tls::explain(&error, None),
            None => SourceError::Unavailable(chain(&error)),
        }
    }
}

impl From<PoolError<SourceError>> for SourceError {
    fn from(error: PoolError<SourceError>) -> Self {
        match error {
            PoolError::Backend(error) => error,
            PoolError::Timeout(TimeoutType::Wait) => SourceError::Unavailable(
                "all connections to it are in use; raise search.recheck_connections or search.recheck_timeout_ms"
                    .into(),
            ),
            other => SourceError::Unavailable(chain(&other)),
        }
    }
}

/// An error with its causes: the transport's own message alone says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A result of this floor.
pub type Result<T> = std::result::Result<T, SourceError>;
