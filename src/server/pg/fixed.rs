//! The rows of the tables about the service itself.

use crate::consistency::frontier::Frontier;
use crate::engine::distance::Isa;
use crate::model::{Lsn, Value};
use crate::query::Pinned;
use crate::server::pg::User;
use crate::server::pg::rows::{Row, state};

fn text(text: &str) -> Option<Value> {
    Some(Value::Text(text.into()))
}

/// A position, as rows have it.
pub fn lsn(lsn: Lsn) -> Option<Value> {
    Some(Value::Int(lsn.0 as i64))
}

/// One for each vector column of each collection that the user may see.
pub fn collections(view: Option<&Pinned>, user: &User) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, found) in view.into_iter().flat_map(Pinned::collections).filter(|(name, _)| user.may_see(name)) {
        for (vector, index) in found.def.vectors.iter().zip(&found.indexes) {
            let number = |number: usize| Some(Value::Int(number as i64));
            rows.push(vec![
                text(name),
                text(&found.def.schema),
                text(&found.def.table),
                text(&vector.name),
                text(vector.kind.sql_name()),
                text(vector.metric.name()),
                index.column.dimensions.and_then(number),
                text("hnsw"),
                number(index.live),
                number(found.rows as usize),
                number(found.dead_letters as usize),
                text(&state(&found.state)),
            ]);
        }
    }
    rows
}

/// How far the service is.
pub fn status(frontier: &Frontier) -> Row {
    let positions = frontier.positions();
    vec![
        text(env!("CARGO_PKG_VERSION")),
        lsn(positions.applied),
        lsn(positions.durable),
        lsn(positions.received),
        lsn(positions.source),
        positions.staleness_ms.map(Value::Float),
        frontier.progress.stale().as_deref().and_then(text),
        text(&format!("{:?}", Isa::detect()).to_lowercase()),
    ]
}
