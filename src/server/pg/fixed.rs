//! The rows of the tables about the service itself.

use crate::consistency::frontier::{Frontier, Tally};
use crate::engine::distance::Isa;
use crate::engine::tiers;
use crate::model::registration::Outcome;
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
            let known = |number: usize| Some(Value::Int(number as i64));
            let number = |number: usize| known(number).filter(|_| user.may_count());
            rows.push(vec![
                text(name),
                text(&found.def.schema),
                text(&found.def.table),
                text(&vector.name),
                text(vector.kind.sql_name()),
                text(vector.metric.name()),
                index.column.dimensions.and_then(known),
                text(vector.index.name()),
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

/// The index of each vector column that the user may see.
pub fn indexes(view: Option<&Pinned>, user: &User) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, found) in view.into_iter().flat_map(Pinned::collections).filter(|(name, _)| user.may_see(name)) {
        for index in &found.indexes {
            let known = |number: usize| Some(Value::Int(number as i64));
            let number = |number: usize| known(number).filter(|_| user.may_count());
            let (nodes, linked) = index.linked();
            let column = &index.column;
            rows.push(vec![
                text(name),
                text(&column.name),
                text(column.kind.sql_name()),
                text(column.metric.name()),
                column.dimensions.and_then(known),
                text(column.index.name()),
                number(index.live),
                number(nodes),
                number(linked),
                number(index.segments.len()),
                number(index.memory_bytes()),
                text(&state(&found.state)),
            ]);
        }
    }
    rows
}

/// What each tier of each index holds. Looks at every row.
pub fn tiers(view: Option<&Pinned>, user: &User) -> Vec<Row> {
    let view = view.filter(|_| user.may_count());
    let mut rows = Vec::new();
    for (name, found) in view.into_iter().flat_map(Pinned::collections).filter(|(name, _)| user.may_see(name)) {
        for index in &found.indexes {
            rows.extend(tiers::report(index).into_iter().map(|tier| {
                vec![
                    text(name),
                    text(&index.column.name),
                    text(tier.tier),
                    Some(Value::Int(tier.vectors as i64)),
                    Some(Value::Int(tier.memory_bytes as i64)),
                    Some(Value::Float(tier.compression_ratio)),
                    text(&tier.encodings.join(", ")),
                    tier.mean_age_h.map(Value::Float),
                ]
            }));
        }
    }
    rows
}

/// What rechecks found since the service began.
pub fn visibility(frontier: &Frontier, user: &User) -> Vec<Row> {
    let tallies = frontier.tallies().into_iter().filter(|(name, _)| user.may_see(name) && user.may_count());
    let number = |number: u64| Some(Value::Int(number as i64));
    let row = |(name, tally): (String, Tally)| {
        vec![text(&name), number(tally.searches), number(tally.rechecked), number(tally.invisible)]
    };
    tallies.map(row).collect()
}

/// What became of the collections registered by SQL.
pub fn registrations(frontier: &Frontier, view: Option<&Pinned>, user: &User) -> Vec<Row> {
    let (outcomes, refused) = (frontier.progress.registrations(), frontier.progress.refused());
    let found = |name: &str| view.into_iter().flat_map(Pinned::collections).find(|(other, _)| *other == name);
    let row = |row: &Outcome| {
        let follows = found(&row.name).map(|(_, found)| state(&found.state));
        let (state, reason) = match (&row.refused, refused.get(&row.name), follows) {
            (Some(reason), ..) | (None, Some(reason), _) => ("refused".to_owned(), Some(reason.clone())),
            (None, None, Some(follows)) => match follows.split_once(": ") {
                Some((state, reason)) => (state.to_owned(), Some(reason.to_owned())),
                None if view.is_some_and(|view| view.is_arriving(&row.name)) => {
                    (follows, Some("a new copy is on its way; what was there answers until it is whole".to_owned()))
                }
                None => (follows, None),
            },
            (None, None, None) => ("copying".to_owned(), None),
        };
        vec![text(&row.service), text(&row.name), text(&row.seen), text(&state), reason.as_deref().and_then(text)]
    };
    outcomes.rows.iter().filter(|row| user.may_see(&row.name)).map(row).collect()
}
