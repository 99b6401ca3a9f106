//! Statements that are kept, and what runs of them: portals of the protocol and cursors of SQL are the same thing.

use crate::model::{ColumnType, Value};
use crate::query::Pinned;
use crate::server::pg::plan::Plan;
use crate::server::pg::rows::{Row, Rows};
use crate::server::pg::select::Output;
use crate::server::pg::statement::Statement;
use crate::server::pg::types::Param;
use crate::server::pg::wire::Field;
use crate::server::problem::Problem;
use std::collections::VecDeque;
use std::sync::Arc;

/// A prepared statement.
pub struct Prepared {
    /// What it is; none for an empty text.
    pub statement: Option<Statement>,
    /// Types of its parameters.
    pub types: Vec<u32>,
}

/// A statement with values.
pub struct Portal {
    /// The statement.
    pub prepared: Arc<Prepared>,
    /// The values.
    pub params: Vec<Param>,
    /// Formats of the answer's columns.
    pub formats: Vec<i16>,
    /// What runs of it.
    pub running: Option<Running>,
    /// Savepoints that there were when it was made.
    pub level: usize,
    /// Was it declared in SQL?
    pub is_cursor: bool,
}

/// Rows under way.
pub struct Running {
    /// Columns of the answer.
    pub outputs: Vec<Output>,
    rows: Feed,
    /// First word of the tag that ends it.
    tag: &'static str,
    /// To start again from.
    origin: Option<(Plan, Option<Pinned>)>,
    sent: u64,
}

enum Feed {
    Lazy(Box<Rows>),
    Ready(VecDeque<Row>),
}

impl Running {
    /// The rows of a plan.
    pub fn lazy(plan: Plan, view: Option<Pinned>, make: impl FnOnce(Plan, Option<Pinned>) -> Rows) -> Running {
        let (outputs, origin) = (plan.outputs.clone(), Some((plan.clone(), view.clone())));
        Running { outputs, rows: Feed::Lazy(Box::new(make(plan, view))), tag: "SELECT", origin, sent: 0 }
    }

    /// Rows that are there.
    pub fn ready(tag: &'static str, outputs: Vec<Output>, rows: Vec<Row>) -> Running {
        Running { outputs, rows: Feed::Ready(rows.into()), tag, origin: None, sent: 0 }
    }

    /// Lines of text under one name.
    pub fn lines(tag: &'static str, name: &str, lines: Vec<String>) -> Running {
        let rows = lines.into_iter().map(|line| vec![Some(Value::Text(line.into()))]).collect();
        Running::ready(tag, vec![Output::constant(name, ColumnType::Text, None)], rows)
    }

    /// At most `want` further rows; fewer only when there are no more.
    pub async fn next(&mut self, want: usize) -> Result<Vec<Row>, Problem> {
        let rows = match &mut self.rows {
            Feed::Lazy(rows) => rows.next(want).await?,
            Feed::Ready(rows) => rows.drain(..want.min(rows.len())).collect(),
        };
        self.sent += rows.len() as u64;
        Ok(rows)
    }

    /// Back to the first row; how many were given.
    pub fn rewind(&mut self, make: impl FnOnce(Plan, Option<Pinned>) -> Rows) -> u64 {
        if let Some((plan, view)) = &self.origin {
            self.rows = Feed::Lazy(Box::new(make(plan.clone(), view.clone())));
        }
        std::mem::take(&mut self.sent)
    }

    /// What it ends with after so many rows.
    pub fn tag(&self, rows: u64) -> String {
        match self.tag {
            "SELECT" | "FETCH" => format!("{} {rows}", self.tag),
            tag => tag.to_owned(),
        }
    }
}

/// The columns of an answer as the client is told of them.
pub fn fields(outputs: &[Output], formats: &[i16]) -> Vec<Field> {
    let field = |(at, output): (usize, &Output)| {
        let (oid, size) = output.form.shown(output.kind);
        Field { name: output.name.clone(), oid, size, format: format(formats, at) }
    };
    outputs.iter().enumerate().map(field).collect()
}

/// The format of a column: one holds for all, none is text.
pub fn format(formats: &[i16], at: usize) -> i16 {
    match formats {
        [] => 0,
        [one] => *one,
        several => several.get(at).copied().unwrap_or(0),
    }
}
