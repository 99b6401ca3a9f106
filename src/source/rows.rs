//! Rows of the heap by key, as the source shows them now: the recheck's one round trip, and the verification's scan.

use crate::model::{Cell, CollectionDef, ColumnType, RowKey, Viewer, pgtype, quote_ident};
use crate::source::{Result, SourceError};
use deadpool_postgres::ClientWrapper;
use futures_util::{StreamExt, pin_mut};
use serde_json::value::RawValue;
use tokio_postgres::types::{FromSql, ToSql, Type};

/// A row the source shows.
#[derive(Debug, Clone)]
pub struct HeapRow {
    /// Its key.
    pub key: RowKey,
    /// The columns asked for, as a JSON object.
    pub columns: Option<Box<RawValue>>,
    /// Its current vector, where asked for.
    pub vector: Option<Cell>,
}

/// What to ask of each row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ask<'a> {
    /// Columns to bring, rendered by the source.
    pub columns: &'a [String],
    /// Vector column to bring.
    pub vector: Option<usize>,
    /// A condition with its text parameters, numbered from 1; rows that fail it are not shown.
    pub condition: Option<(&'a str, &'a [String])>,
    /// With whose eyes; absent: our own.
    pub viewer: Option<&'a Viewer>,
}

/// Statements kept prepared per connection.
const PREPARED: usize = 64;

/// Any value as the bytes the server sent.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn cell(row: &tokio_postgres::Row, at: usize, kind: ColumnType) -> Cell {
    // The table may have changed since the collection was defined: other bytes would be read as something they are not.
    let found = row.columns()[at].type_();
    let known = ColumnType::from_builtin_oid(found.oid());
    if known.or_else(|| ColumnType::from_catalog(found.schema(), found.name())) != Some(kind) {
        return Cell::Invalid(format!("of type {found}, not {kind}").into());
    }
    match row.try_get::<_, Option<Raw<'_>>>(at) {
        Ok(Some(Raw(bytes))) => pgtype::decode_binary(kind, bytes),
        Ok(None) => Cell::Null,
        Err(error) => Cell::Invalid(error.to_string().into()),
    }
}

fn key_of(def: &CollectionDef, row: &tokio_postgres::Row) -> Option<RowKey> {
    let values = def.key.iter().enumerate().map(|(at, column)| match cell(row, at, column.kind) {
        Cell::Value(value) => Some(value),
        _ => None,
    });
    RowKey::encode(&values.collect::<Option<Vec<_>>>()?)
}

/// In which state a connection is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// As it was.
    Clean,
    /// Perhaps in a transaction, with another role.
    Unclear,
}

/// Asks the source which of these rows it shows now, in no order: in one statement, with the eyes of another role in a
/// transaction around it. Whoever drops this before it ends must not use the connection any more.
pub async fn fetch(
    client: &ClientWrapper,
    def: &CollectionDef,
    keys: &[RowKey],
    ask: Ask<'_>,
) -> (Result<Vec<HeapRow>>, Left) {
    let Some(viewer) = ask.viewer else { return (select(client, def, keys, ask).await, Left::Clean) };
    let found = async {
        become_viewer(client, viewer).await?;
        select(client, def, keys, ask).await.map_err(|error| not_shown(error, viewer, def))
    };
    let found = found.await;
    let ended = client.batch_execute(if found.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
    (found, if ended.is_ok() { Left::Clean } else { Left::Unclear })
}

/// Begins a transaction with this role and its settings.
async fn become_viewer(client: &ClientWrapper, viewer: &Viewer) -> Result<()> {
    let role = quote_ident(&viewer.role);
    let set = client.batch_execute(&format!("BEGIN; SET LOCAL ROLE {role}")).await.map_err(SourceError::from);
    set.map_err(|error| match error.sqlstate() {
        // undefined_object, invalid_parameter_value.
        Some("42704" | "22023") => SourceError::refused(
            format!("there is no role {role} in the source"),
            "correct search.recheck_roles, or create the role",
        ),
        Some("42501") => SourceError::refused(
            format!("the service may not become role {role}"),
            format!("GRANT {role} TO the role that source.dsn names"),
        ),
        _ => error,
    })?;
    for (name, value) in &viewer.settings {
        let statement = client.prepare_cached("SELECT set_config($1, $2, true)").await?;
        client.query_one(&statement, &[name, value]).await?;
    }
    Ok(())
}

/// What a role may not see at all is said with the grant that is missing.
fn not_shown(error: SourceError, viewer: &Viewer, def: &CollectionDef) -> SourceError {
    match &error {
        SourceError::Sql { code, message } if code == "42501" => {
            let (role, table) = (quote_ident(&viewer.role), def.from_clause());
            let remedy = format!("GRANT SELECT ON {table} TO {role}; and USAGE on its schema");
            SourceError::refused(format!("role {role} may not read what was asked for: {message}"), remedy)
        }
        _ => error,
    }
}

async fn select(client: &ClientWrapper, def: &CollectionDef, keys: &[RowKey], ask: Ask<'_>) -> Result<Vec<HeapRow>> {
    let (mut sql, key_columns) = statement(def, keys, ask)?;
    let mut params: Vec<&(dyn ToSql + Sync)> = Vec::new();
    if let Some((condition, values)) = ask.condition {
        sql.push_str(&format!(" AND ({condition})"));
        params.extend(values.iter().map(|value| value as &(dyn ToSql + Sync)));
    }
    params.extend(key_columns.iter().map(|column| column as &(dyn ToSql + Sync)));
    // Conditions and column lists are the callers' text: only a bounded number of shapes is kept prepared.
    if client.statement_cache.size() > PREPARED {
        client.statement_cache.clear();
    }
    let statement = client.prepare_cached(&sql).await?;
    let rows = client.query(&statement, &params).await?;
    let heap_row = |row: &tokio_postgres::Row| {
        let mut at = def.key.len();
        let columns = (!ask.columns.is_empty()).then(|| {
            at += 1;
            row.try_get::<_, String>(at - 1).ok().and_then(|text| RawValue::from_string(text).ok())
        });
        let vector = ask.vector.map(|number| cell(row, at, def.vectors[number].kind));
        let key =
            key_of(def, row).ok_or_else(|| SourceError::Unavailable("the source sent a row without a key".into()))?;
        Ok(HeapRow { key, columns: columns.flatten(), vector })
    };
    rows.iter().map(heap_row).collect()
}

/// The statement up to its condition, and the key columns' values as text arrays.
fn statement(def: &CollectionDef, keys: &[RowKey], ask: Ask<'_>) -> Result<(String, Vec<Vec<String>>)> {
    let mut shown: Vec<_> = def.key.iter().map(|column| format!("t.{}", quote_ident(&column.name))).collect();
    if !ask.columns.is_empty() {
        let list: Vec<_> = ask.columns.iter().map(|name| format!("t.{}", quote_ident(name))).collect();
        shown.push(format!("(SELECT row_to_json(r)::text FROM (SELECT {}) r)", list.join(", ")));
    }
    shown.extend(ask.vector.map(|number| format!("t.{}", quote_ident(&def.vectors[number].name))));
    let first = ask.condition.map_or(0, |(_, values)| values.len());
    let (condition, columns) = by_key(def, keys, first)?;
    Ok((format!("SELECT {} FROM {} t WHERE {condition}", shown.join(", "), def.from_clause()), columns))
}

/// `key IN these`, with one text array per key column from parameter `first + 1` on.
fn by_key(def: &CollectionDef, keys: &[RowKey], first: usize) -> Result<(String, Vec<Vec<String>>)> {
    let mut columns = vec![Vec::with_capacity(keys.len()); def.key.len()];
    for key in keys {
        let values = key.decode().filter(|values| values.len() == def.key.len());
        let values = values.ok_or_else(|| {
            SourceError::refused(format!("{key} is not a key of {}", def.name), "rebuild the collection")
        })?;
        columns.iter_mut().zip(&values).for_each(|(column, value)| column.push(pgtype::to_text(value)));
    }
    let names: Vec<_> = def.key.iter().map(|column| format!("t.{}", quote_ident(&column.name))).collect();
    let arrays =
        def.key.iter().enumerate().map(|(at, column)| format!("${}::text[]::{}[]", first + at + 1, column.kind));
    let arrays: Vec<_> = arrays.collect();
    if let ([name], [array]) = (&names[..], &arrays[..]) {
        // Plans as one index scan whatever the planner thinks of `unnest`.
        return Ok((format!("{name} = ANY({array})"), columns));
    }
    Ok((format!("({}) IN (SELECT * FROM unnest({}))", names.join(", "), arrays.join(", ")), columns))
}

/// A row's replicated columns: key, vectors, filter columns.
pub type Replicated = (RowKey, Vec<Cell>, Vec<Cell>);

fn replicated_columns(def: &CollectionDef) -> String {
    let key = def.key.iter().map(|column| &column.name);
    let names =
        key.chain(def.vectors.iter().map(|column| &column.name)).chain(def.filters.iter().map(|column| &column.name));
    names.map(|name| format!("t.{}", quote_ident(name))).collect::<Vec<_>>().join(", ")
}

fn replicated(def: &CollectionDef, row: &tokio_postgres::Row) -> Option<Replicated> {
    let mut at = def.key.len();
    let mut next = |kind| {
        at += 1;
        cell(row, at - 1, kind)
    };
    let vectors = def.vectors.iter().map(|column| next(column.kind)).collect();
    let filters = def.filters.iter().map(|column| next(column.kind)).collect();
    Some((key_of(def, row)?, vectors, filters))
}

/// Reads every row's replicated columns in one statement.
pub async fn scan(
    client: &tokio_postgres::Client,
    def: &CollectionDef,
    mut each: impl FnMut(RowKey, Vec<Cell>, Vec<Cell>),
) -> Result<()> {
    let sql = format!("SELECT {} FROM {} t", replicated_columns(def), def.from_clause());
    let rows = client.query_raw(&sql, std::iter::empty::<&str>()).await?;
    pin_mut!(rows);
    while let Some(row) = rows.next().await {
        if let Some((key, vectors, filters)) = replicated(def, &row?) {
            each(key, vectors, filters);
        }
    }
    Ok(())
}

/// Keys of one statement: keeps parameters far below the protocol's limits.
const KEYS: usize = 1000;

/// Reads the replicated columns of the rows with these keys that exist now.
pub async fn fetch_all(
    client: &tokio_postgres::Client,
    def: &CollectionDef,
    keys: &[RowKey],
) -> Result<Vec<Replicated>> {
    let mut found = Vec::new();
    for keys in keys.chunks(KEYS) {
        let (condition, columns) = by_key(def, keys, 0)?;
        let sql = format!("SELECT {} FROM {} t WHERE {condition}", replicated_columns(def), def.from_clause());
        let params: Vec<_> = columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
        found.extend(client.query(&sql, &params).await?.iter().filter_map(|row| replicated(def, row)));
    }
    Ok(found)
}
