//! Filters as callers write them, the WHERE subset of SQL or JSON: read into a tree of conditions and written back for the
//! source. Tokens are PostgreSQL's, by `sqlparser`; the grammar over them is our own, because it can bound depth and
//! size before it builds anything and say for each thing it does not take why.

mod constant;
mod json;
mod lexer;
mod parser;
mod sql;
#[cfg(test)]
mod tests;
mod truth;

use crate::model::{Filter, FilterColumn};

pub use json::Written;
pub use sql::to_sql;

/// Longest filter, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;
/// Deepest nesting of parentheses and NOT.
pub const MAX_DEPTH: usize = 100;
/// Most conditions and list elements.
pub const MAX_NODES: usize = 10_000;

/// A filter this service does not take. It is small, because every level of a deep filter has room for one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FilterError {
    /// What is wrong.
    pub message: Box<str>,
    /// What to write instead.
    pub hint: Option<Box<str>>,
    /// Where in SQL: one-based, in characters, as Postgres counts.
    pub position: Option<usize>,
    /// Where in JSON: `$or[1].price.$lt`.
    pub path: Option<Box<str>>,
}

impl FilterError {
    fn new(message: impl Into<Box<str>>) -> FilterError {
        FilterError { message: message.into(), hint: None, position: None, path: None }
    }

    fn hint(mut self, hint: impl Into<Box<str>>) -> FilterError {
        self.hint = Some(hint.into());
        self
    }

    /// The innermost place wins.
    fn at(mut self, position: usize) -> FilterError {
        self.position.get_or_insert(position);
        self
    }

    /// In this field, or element, of an object.
    fn under(self, name: &str) -> FilterError {
        let rest = self.path.unwrap_or_default();
        let dot = if rest.is_empty() || rest.starts_with('[') { "" } else { "." };
        let path = format!("{}{dot}{rest}", parser::shortened(name)).into();
        FilterError { path: Some(path), position: None, ..self }
    }
}

/// Reads a filter in either form. JSON has its constants in it and takes no parameters.
pub fn read(written: &Written, params: &[serde_json::Value], columns: &[FilterColumn]) -> Result<Filter, FilterError> {
    match written {
        Written::Sql(sql) => parse(sql, params, columns),
        Written::Json(fields) if params.is_empty() => json::Reader::new(columns).object(fields, 0),
        Written::Json(_) => {
            let error = FilterError::new("`params` beside a filter that is a JSON object");
            Err(error.hint("write the constants into the object; parameters are for SQL"))
        }
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
