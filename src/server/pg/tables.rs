//! The tables that the endpoint shows: two that are really functions, one for each collection, and two about the service.

use crate::model::{CollectionDef, ColumnType};
use crate::query::Pinned;
use crate::server::pg::User;
use crate::server::pg::types::Form;
use crate::server::problem::{self, Problem};
use std::sync::Arc;

/// Where all tables are. A collection whose name one of the fixed tables has is in [`COLLECTIONS`] as well.
pub const SCHEMA: &str = "ruvector";
/// Where collections are alone.
pub const COLLECTIONS: &str = "collections";

/// A table.
#[derive(Debug, Clone)]
pub enum Table {
    /// One search with a number of rows.
    Search,
    /// A search without an end, nearest first.
    Stream,
    /// The rows of a collection that have a vector.
    Collection(Arc<CollectionDef>),
    /// The collections.
    Collections,
    /// How far the service is.
    Status,
    /// The index of each vector column.
    Indexes,
    /// What each tier of it holds.
    Tiers,
    /// What rechecks found.
    Visibility,
    /// What became of the collections registered by SQL.
    Registrations,
}

/// What a column means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Given by equality, and shown as it was given.
    Input(Input),
    /// The whole key as text.
    KeyText,
    /// A column of the key.
    Key(usize),
    /// A filter column.
    Filter(usize),
    /// A vector column.
    Vector(usize),
    /// Distance to the query.
    Distance,
    /// The columns asked for in the options.
    Shown,
    /// What the answer says of itself.
    Answer(AboutAnswer),
    /// A value of a fixed row.
    Fixed(usize),
}

/// What a table that is a function takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Input {
    /// The collection's name.
    Collection,
    /// The vector.
    Query,
    /// Rows wanted.
    K,
    /// A condition in SQL, or a JSON object of equalities.
    Filter,
    /// Everything else a search over HTTP takes, as JSON.
    Options,
}

/// What an answer says of itself, the same in each row: warnings do not reach who asks through a foreign table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AboutAnswer {
    /// Is every row that belongs here here?
    Complete,
    /// The position it is exact for.
    AppliedLsn,
    /// How old that position may be.
    StalenessMs,
    /// Why it is of the past.
    Stale,
    /// How it was searched.
    Plan,
}

/// A column.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ColumnType,
    /// As what it is shown.
    pub form: Form,
    /// What it means.
    pub role: Role,
    /// Is it left out by `*`?
    pub hidden: bool,
}

fn column(name: &str, kind: ColumnType, role: Role) -> Column {
    Column { name: name.to_owned(), kind, form: Form::Own, role, hidden: false }
}

/// A position of the source: a number that is shown as one.
fn lsn(name: &str, role: Role) -> Column {
    Column { form: Form::Lsn, ..column(name, ColumnType::Int8, role) }
}

fn fixed(names: &[(&str, ColumnType)]) -> Vec<Column> {
    names.iter().enumerate().map(|(at, (name, kind))| column(name, *kind, Role::Fixed(at))).collect()
}

impl Table {
    /// The names of the tables that are always there.
    pub const FIXED: [&str; 8] = [
        "search",
        "stream",
        "collection_list",
        "status",
        "index_list",
        "tier_list",
        "visibility_list",
        "registration_list",
    ];

    /// The table of this name, which is in pieces as written; quoted ones are exact already.
    pub fn find(name: &[String], view: Option<&Pinned>, user: &User) -> Result<Table, Problem> {
        let (schema, table) = match name {
            [table] => (None, table),
            [schema, table] => (Some(schema.as_str()), table),
            _ => return Err(unknown(&name.join("."), view, user)),
        };
        let fixed = match table.as_str() {
            "search" => Some(Table::Search),
            "stream" => Some(Table::Stream),
            "collection_list" => Some(Table::Collections),
            "status" => Some(Table::Status),
            "index_list" => Some(Table::Indexes),
            "tier_list" => Some(Table::Tiers),
            "visibility_list" => Some(Table::Visibility),
            "registration_list" => Some(Table::Registrations),
            _ => None,
        };
        match (schema, fixed) {
            (None | Some(SCHEMA), Some(table)) => Ok(table),
            (None | Some(SCHEMA | COLLECTIONS), _) => {
                let view = view.ok_or_else(|| Problem::from(crate::consistency::frontier::NoView::NotLoaded))?;
                let def = view.definition(table).ok().filter(|_| user.may_see(table));
                def.map(Table::Collection).ok_or_else(|| unknown(table, Some(view), user))
            }
            // `public.docs` is what a collection is called that has no name of its own.
            (Some(schema), _) => Table::find(&[format!("{schema}.{table}")], view, user),
        }
    }

    /// Its columns, in their order.
    pub fn columns(&self) -> Vec<Column> {
        use ColumnType::{Bool, Float4Array, Float8, Int4, Int8, Jsonb, Text};
        match self {
            Table::Search => vec![
                column("collection", Text, Role::Input(Input::Collection)),
                column("query", Float4Array, Role::Input(Input::Query)),
                column("k", Int4, Role::Input(Input::K)),
                column("filter", Text, Role::Input(Input::Filter)),
                column("options", Jsonb, Role::Input(Input::Options)),
                column("key", Text, Role::KeyText),
                column("distance", Float8, Role::Distance),
                column("columns", Jsonb, Role::Shown),
                column("complete", Bool, Role::Answer(AboutAnswer::Complete)),
                lsn("applied_lsn", Role::Answer(AboutAnswer::AppliedLsn)),
                column("staleness_ms", Float8, Role::Answer(AboutAnswer::StalenessMs)),
                column("stale", Text, Role::Answer(AboutAnswer::Stale)),
                column("plan", Text, Role::Answer(AboutAnswer::Plan)),
            ],
            Table::Stream => vec![
                column("collection", Text, Role::Input(Input::Collection)),
                column("query", Float4Array, Role::Input(Input::Query)),
                column("filter", Text, Role::Input(Input::Filter)),
                column("options", Jsonb, Role::Input(Input::Options)),
                column("key", Text, Role::KeyText),
                column("distance", Float8, Role::Distance),
            ],
            Table::Collection(def) => of_collection(def),
            Table::Collections => fixed(&[
                ("name", Text),
                ("table_schema", Text),
                ("table_name", Text),
                ("column_name", Text),
                ("type", Text),
                ("distance_metric", Text),
                ("dimensions", Int4),
                ("index_type", Text),
                ("vector_count", Int8),
                ("row_count", Int8),
                ("dead_letters", Int8),
                ("state", Text),
            ]),
            Table::Status => vec![
                column("version", Text, Role::Fixed(0)),
                lsn("applied_lsn", Role::Fixed(1)),
                lsn("durable_lsn", Role::Fixed(2)),
                lsn("received_lsn", Role::Fixed(3)),
                lsn("source_lsn", Role::Fixed(4)),
                column("staleness_ms", Float8, Role::Fixed(5)),
                column("stale", Text, Role::Fixed(6)),
                column("simd", Text, Role::Fixed(7)),
            ],
            Table::Indexes => fixed(&[
                ("collection", Text),
                ("column_name", Text),
                ("type", Text),
                ("distance_metric", Text),
                ("dimensions", Int4),
                ("index_type", Text),
                ("vector_count", Int8),
                ("node_count", Int8),
                ("linked_count", Int8),
                ("segment_count", Int8),
                ("memory_bytes", Int8),
                ("state", Text),
            ]),
            Table::Tiers => fixed(&[
                ("collection", Text),
                ("column_name", Text),
                ("tier", Text),
                ("vector_count", Int8),
                ("memory_bytes", Int8),
                ("compression_ratio", Float8),
                ("compression", Text),
                ("mean_age_h", Float8),
            ]),
            Table::Visibility => {
                fixed(&[("collection", Text), ("searches", Int8), ("rechecked", Int8), ("invisible", Int8)])
            }
            Table::Registrations => {
                fixed(&[("service", Text), ("name", Text), ("seen", Text), ("state", Text), ("reason", Text)])
            }
        }
    }
}

/// Key, filter and vector columns under their own names, and what a search needs beside them. A real column keeps its name.
fn of_collection(def: &CollectionDef) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    let mut add = |one: Column| {
        if columns.iter().all(|other| other.name != one.name) {
            columns.push(one);
        }
    };
    def.key.iter().enumerate().for_each(|(at, key)| add(column(&key.name, key.kind, Role::Key(at))));
    def.filters.iter().enumerate().for_each(|(at, filter)| add(column(&filter.name, filter.kind, Role::Filter(at))));
    def.vectors.iter().enumerate().for_each(|(at, vector)| add(column(&vector.name, vector.kind, Role::Vector(at))));
    for (name, kind, role) in [
        ("_distance", ColumnType::Float8, Role::Distance),
        ("_query", ColumnType::Float4Array, Role::Input(Input::Query)),
        ("_filter", ColumnType::Text, Role::Input(Input::Filter)),
        ("_options", ColumnType::Jsonb, Role::Input(Input::Options)),
    ] {
        add(Column { hidden: true, ..column(name, kind, role) });
    }
    columns
}

fn unknown(name: &str, view: Option<&Pinned>, user: &User) -> Problem {
    let collections = view.into_iter().flat_map(Pinned::collections).map(|(name, _)| name);
    let known: Vec<_> = Table::FIXED.into_iter().chain(collections.filter(|name| user.may_see(name))).collect();
    let detail = format!("relation \"{name}\" does not exist");
    Problem::new(problem::UNKNOWN_COLLECTION, detail).hint(format!("there are {}", known.join(", ")))
}
