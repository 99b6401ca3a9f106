//! The customer's Postgres seen as a client: connections, catalog facts, publication, rows by key, preflight checks.

pub mod catalog;
pub mod connect;
pub mod preflight;
pub mod publication;
pub mod rows;
pub mod setup;

use tokio_postgres::error::SqlState;

/// What can go wrong with the source, named for what must happen.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Try again: the server is away, restarting or busy.
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
    /// The server refused a statement.
    #[error("the source answered: {message} (SQLSTATE {code})")]
    Sql {
        /// SQLSTATE.
        code: String,
        /// The server's words.
        message: String,
    },
}

impl SourceError {
    /// A refusal with its remedy.
    pub fn refused(problem: impl Into<String>, remedy: impl Into<String>) -> SourceError {
        SourceError::Refused { problem: problem.into(), remedy: remedy.into() }
    }

    /// May the same thing work later without anybody's help?
    pub fn is_transient(&self) -> bool {
        matches!(self, SourceError::Unavailable(_))
    }
}

/// SQLSTATEs after which the same statement may work later: connection trouble, shutdown, start-up, too many clients,
/// conflicts, lock time-outs. Decided by code, never by message text.
fn is_transient(state: &SqlState) -> bool {
    let class = &state.code()[..2];
    matches!(class, "08" | "53" | "40")
        || matches!(state.code(), "57P01" | "57P02" | "57P03" | "55006" | "55P03" | "57014")
}

impl From<tokio_postgres::Error> for SourceError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) if is_transient(db.code()) => SourceError::Unavailable(db.to_string()),
            Some(db) => SourceError::Sql { code: db.code().code().to_owned(), message: db.message().to_owned() },
            None => SourceError::Unavailable(chain(&error)),
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
