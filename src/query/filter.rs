//! Filters as callers write them: the WHERE subset of SQL, read into a tree of conditions and written back for the
//! source. Tokens are PostgreSQL's, by `sqlparser`; the grammar over them is our own, because it can bound depth and
//! size before it builds anything and say for each thing it does not take why.

mod constant;
mod lexer;
mod parser;
mod sql;
#[cfg(test)]
mod tests;
mod truth;

use crate::model::{Filter, FilterColumn};

pub use sql::to_sql;

/// Longest filter, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;
/// Deepest nesting of parentheses and NOT.
pub const MAX_DEPTH: usize = 100;
/// Most conditions and list elements.
pub const MAX_NODES: usize = 10_000;

/// A filter this service does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FilterError {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
    /// Where: one-based, in characters, as Postgres counts.
    pub position: Option<usize>,
}

impl FilterError {
    fn new(message: impl Into<String>) -> FilterError {
        FilterError { message: message.into(), hint: None, position: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> FilterError {
        self.hint = Some(hint.into());
        self
    }

    /// The innermost place wins.
    fn at(mut self, position: usize) -> FilterError {
        self.position.get_or_insert(position);
        self
    }
}

/// Reads a WHERE condition on the replicated columns. `$1`, `$2`, ... stand for `params`, all of which must be used;
/// constants come out as values that compare with the column as Postgres would. Whoever means a zone in a
/// `timestamp with time zone` writes it: without one it is UTC.
pub fn parse(sql: &str, params: &[serde_json::Value], columns: &[FilterColumn]) -> Result<Filter, FilterError> {
    if sql.len() > MAX_TEXT {
        let message = format!("the filter has {} bytes; at most {MAX_TEXT} are taken", sql.len());
        return Err(FilterError::new(message).hint("send long lists as a parameter: column = ANY($1)"));
    }
    parser::Parser::new(lexer::tokens(sql)?, params, columns).filter()
}
