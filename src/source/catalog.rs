//! Facts of the source's catalog: what a table looks like, where a slot stands, where the WAL ends.

use crate::model::{
    CollectionDef, CollectionId, CollectionSpec, ColumnType, FilterColumn, IndexKind, KeyColumn, Lsn, MAX_COLUMNS,
    Metric, TierPolicy, VectorColumn, VectorSpec, quote_ident,
};
use crate::source::{Result, SourceError};
use tokio_postgres::Client;

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// As `format_type` writes it.
    pub type_name: String,
    /// One of ours, if it is.
    pub kind: Option<ColumnType>,
    /// Type modifier.
    pub typmod: i32,
    /// Place in the replica identity, from 0.
    pub key_place: Option<usize>,
    /// Stored or virtual generated column: not in the stream before version 18.
    pub generated: bool,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its OID.
    pub oid: u32,
    /// `r` ordinary, `p` partitioned, others.
    pub kind: char,
    /// `d` default, `n` nothing, `f` full, `i` index.
    pub replica_identity: char,
    /// Does row security apply to our role?
    pub row_security_active: bool,
    /// `p` where its changes are in the WAL.
    pub persistence: char,
    /// Our role, as SQL names it.
    pub role: String,
    /// May we read it?
    pub can_select: bool,
    /// An estimate of its rows like the planner's; -1 when never analysed.
    pub estimated_rows: i64,
    /// Number of the file that holds its rows now; a rewrite gives it another one.
    pub filenode: Option<u32>,
    /// Number of pages the heap has now.
    pub pages: i64,
    /// Its columns, dropped ones left out.
    pub columns: Vec<Column>,
}

const TABLE: &str = "
    SELECT c.oid, c.relkind::text, c.relreplident::text, row_security_active(c.oid),
           has_table_privilege(c.oid, 'SELECT'),
           -- As the planner does: as dense as it was when it was last looked at, and as long as it is now.
           (CASE WHEN c.relkind = 'r' AND c.relpages > 0 AND c.reltuples > 0
                 THEN c.reltuples::float8 * pg_relation_size(c.oid) / current_setting('block_size')::float8 / c.relpages
                 ELSE c.reltuples END)::bigint,
           pg_relation_filenode(c.oid),
           (CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) / current_setting('block_size')::bigint ELSE 0 END)::bigint,
           c.relpersistence::text, current_user::text
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')";

// The replica identity is the index marked so, or the primary key; for FULL and NOTHING the primary key is what we
// would key by. A deferrable primary key is no replica identity: once published, the table's UPDATEs would fail.
const COLUMNS: &str = "
    WITH identity AS (
        SELECT i.indkey::int2[] AS columns, i.indnkeyatts AS size FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
         WHERE i.indrelid = $1::oid AND i.indisvalid AND (i.indimmediate OR c.relreplident = 'f')
           AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END)
    SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), n.nspname::text, t.typname::text, a.atttypmod,
           (SELECT array_position(columns[0:size - 1], a.attnum) FROM identity), a.attgenerated <> ''
      FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace
     WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// Looks a table up; `None` when there is none of that name.
pub async fn table(client: &Client, schema: &str, name: &str) -> Result<Option<Table>> {
    let Some(row) = client.query_opt(TABLE, &[&schema, &name]).await? else { return Ok(None) };
    let letter = |at: usize| row.get::<_, String>(at).chars().next().unwrap_or('?');
    let oid: u32 = row.get(0);
    let columns = client.query(COLUMNS, &[&oid]).await?;
    let column = |row: &tokio_postgres::Row| {
        let (schema, name): (String, String) = (row.get(2), row.get(3));
        Column {
            name: row.get(0),
            type_name: row.get(1),
            kind: ColumnType::from_catalog(&schema, &name),
            typmod: row.get(4),
            // Only the order counts: slices of arrays count from 1, whole `indkey`s from 0.
            key_place: row.get::<_, Option<i32>>(5).map(|place| place as usize),
            generated: row.get(6),
        }
    };
    Ok(Some(Table {
        oid,
        kind: letter(1),
        replica_identity: letter(2),
        row_security_active: row.get(3),
        can_select: row.get(4),
        estimated_rows: row.get(5),
        filenode: row.get(6),
        pages: row.get(7),
        persistence: letter(8),
        role: quote_ident(row.get(9)),
        columns: columns.iter().map(column).collect(),
    }))
}

/// Resolves what the operator asked for against the catalog. Every refusal carries its remedy.
pub async fn resolve(client: &Client, id: CollectionId, spec: &CollectionSpec) -> Result<(CollectionDef, Table)> {
    let (schema, name) = spec.schema_and_table();
    let found = table(client, schema, name).await?;
    let table = found.ok_or_else(|| {
        SourceError::refused(
            format!("table {}.{} does not exist or is not visible", quote_ident(schema), quote_ident(name)),
            "check collections.table; names are taken literally, without quotes or case folding",
        )
    })?;
    Ok((define(id, spec, &table)?, table))
}

/// Learns the dimensions that neither the type nor the operator tells, from what most of a sample of rows has. Only for a
/// new copy: one odd row must not change what an index has.
pub async fn learn_dimensions(client: &Client, def: &mut CollectionDef) -> Result<()> {
    let from = def.from_clause();
    for column in &mut def.vectors {
        let name = quote_ident(&column.name);
        let length = match column.kind {
            ColumnType::Float4Array | ColumnType::Float8Array => {
                format!("CASE WHEN array_ndims({name}) = 1 THEN cardinality({name}) END")
            }
            ColumnType::Varbit => format!("length({name})"),
            ColumnType::Jsonb => {
                format!("CASE WHEN jsonb_typeof({name}) = 'array' THEN jsonb_array_length({name}) END")
            }
            _ => continue,
        };
        if column.dimensions.is_none() {
            let sql = format!(
                "SELECT length FROM (SELECT {length} AS length FROM {from} WHERE {length} > 0 LIMIT 1000) s
                  GROUP BY 1 ORDER BY count(*) DESC, 1 DESC LIMIT 1"
            );
            let row = client.query_opt(&sql, &[]).await?;
            column.dimensions = row.map(|row| row.get::<_, i32>(0) as usize);
        }
    }
    Ok(())
}

/// The pure part of [`resolve`].
pub fn define(id: CollectionId, spec: &CollectionSpec, table: &Table) -> Result<CollectionDef> {
    let (schema, name) = spec.schema_and_table();
    let quoted = format!("{}.{}", quote_ident(schema), quote_ident(name));
    check_table(table, &quoted)?;
    let mut key: Vec<_> = table.columns.iter().filter_map(|column| Some((column.key_place?, column))).collect();
    key.sort_by_key(|(place, _)| *place);
    let key = key.into_iter().map(|(_, column)| {
        if column.generated {
            let problem = format!(
                "key column {} of {quoted} is generated, and generated columns are not in the stream",
                quote_ident(&column.name)
            );
            return Err(SourceError::refused(
                problem,
                "choose another replica identity: ALTER TABLE ... REPLICA IDENTITY USING INDEX ...",
            ));
        }
        let kind = column.kind.filter(|kind| kind.is_key()).ok_or_else(|| {
            SourceError::refused(
                format!("key column {} of {quoted} is {}", quote_ident(&column.name), column.type_name),
                "keys can be smallint, integer, bigint, text, character varying or uuid; choose another replica \
                 identity: ALTER TABLE ... REPLICA IDENTITY USING INDEX ...",
            )
        })?;
        Ok(KeyColumn { name: column.name.clone(), kind })
    });
    let vectors = spec.vectors.iter().map(|wanted| {
        let column = find(table, &wanted.column, &quoted)?;
        let kind = column.kind.filter(|kind| kind.is_vector()).ok_or_else(|| {
            SourceError::refused(
                format!("column {} of {quoted} is {}", quote_ident(&column.name), column.type_name),
                "a vector column is pgvector's vector, halfvec or sparsevec, real[], double precision[], bit, \
                 bit varying or jsonb",
            )
        })?;
        check_metric(column, kind, wanted, &quoted)?;
        let from_type = usize::try_from(column.typmod).ok().filter(|_| kind.has_dimensions());
        if let (Some(ours), Some(theirs)) = (wanted.dimensions, from_type)
            && ours != theirs
        {
            let problem =
                format!("column {} has {theirs} dimensions, configured are {ours}", quote_ident(&column.name));
            return Err(SourceError::refused(problem, "correct collections.vectors.dimensions"));
        }
        Ok(VectorColumn {
            name: column.name.clone(),
            kind,
            metric: wanted.metric,
            dimensions: from_type.or(wanted.dimensions),
            m: wanted.m,
            ef_construction: wanted.ef_construction,
            encoding: wanted.encoding,
            index: wanted.index,
            lists: wanted.lists,
        })
    });
    let filters = spec.filter_columns.iter().map(|wanted| {
        let column = find(table, wanted, &quoted)?;
        let kind = column.kind.filter(|kind| !kind.is_vector()).ok_or_else(|| {
            SourceError::refused(
                format!("filter column {} of {quoted} is {}", quote_ident(&column.name), column.type_name),
                "filter columns can be boolean, integers, real, double precision, text, character varying, uuid, date or timestamps",
            )
        })?;
        Ok(FilterColumn { name: column.name.clone(), kind })
    });
    Ok(CollectionDef {
        id,
        name: spec.name().to_owned(),
        schema: schema.to_owned(),
        table: name.to_owned(),
        oid: table.oid,
        partitioned: table.kind == 'p',
        key: key.collect::<Result<_>>()?,
        vectors: vectors.collect::<Result<_>>()?,
        filters: filters.collect::<Result<_>>()?,
    })
}

fn check_table(table: &Table, quoted: &str) -> Result<()> {
    let refuse = |problem: String, remedy: String| Err(SourceError::refused(problem, remedy));
    if !matches!(table.kind, 'r' | 'p') {
        return refuse(format!("{quoted} is not a table"), "views and foreign tables have no WAL".into());
    }
    if table.columns.iter().all(|column| column.key_place.is_none()) || table.replica_identity == 'n' {
        return refuse(
            format!("{quoted} has no usable replica identity: its UPDATEs and DELETEs would fail once it is published"),
            format!(
                "add a primary key, or: ALTER TABLE {quoted} REPLICA IDENTITY USING INDEX <unique not null index>;"
            ),
        );
    }
    if table.persistence != 'p' {
        return refuse(
            format!("{quoted} is unlogged or temporary: it has no WAL"),
            format!("ALTER TABLE {quoted} SET LOGGED;"),
        );
    }
    if !table.can_select {
        return refuse(
            format!("our role may not read {quoted}"),
            format!("GRANT SELECT ON {quoted} TO {};", table.role),
        );
    }
    if table.row_security_active {
        return refuse(
            format!("row security hides rows of {quoted} from our role: the copy would miss what the stream shows"),
            format!("ALTER ROLE {} BYPASSRLS;", table.role),
        );
    }
    Ok(())
}

/// The metric must be one of the type's, and the dimensions must be as many as the type may have here.
fn check_metric(column: &Column, kind: ColumnType, wanted: &VectorSpec, quoted: &str) -> Result<()> {
    let name = quote_ident(&column.name);
    let fitting = Metric::of_type(kind);
    if !fitting.contains(&wanted.metric) {
        let names: Vec<_> = fitting.iter().map(|metric| metric.name()).collect();
        return Err(SourceError::refused(
            format!("column {name} of {quoted} is {}, which {} does not compare", column.type_name, wanted.metric),
            format!("set collections.vectors.metric to one of {}", names.join(", ")),
        ));
    }
    if kind == ColumnType::Sparsevec && wanted.index == IndexKind::Ivfflat {
        return Err(SourceError::refused(
            format!("column {name} of {quoted} is {}, which has no ivfflat", column.type_name),
            "leave collections.vectors.index out: sparse vectors are all compared",
        ));
    }
    let dimensions = wanted.dimensions.or(usize::try_from(column.typmod).ok().filter(|_| kind.has_dimensions()));
    match dimensions.filter(|dimensions| !(1..=kind.max_dimensions()).contains(dimensions)) {
        Some(dimensions) => Err(SourceError::refused(
            format!("column {name} of {quoted} has {dimensions} dimensions"),
            format!("vectors of type {kind} can have 1 to {} dimensions", kind.max_dimensions()),
        )),
        None => Ok(()),
    }
}

fn find<'t>(table: &'t Table, name: &str, quoted: &str) -> Result<&'t Column> {
    let column = table.columns.iter().find(|column| column.name == name).ok_or_else(|| {
        let names: Vec<_> = table.columns.iter().map(|column| column.name.as_str()).collect();
        let problem = format!("{quoted} has no column {}", quote_ident(name));
        SourceError::refused(problem, format!("its columns are {}", names.join(", ")))
    })?;
    if column.generated {
        let problem = format!("column {} of {quoted} is generated", quote_ident(name));
        return Err(SourceError::refused(problem, "generated columns are not in the stream; name a stored column"));
    }
    Ok(column)
}

/// Checks of a specification that need no source.
pub fn check_spec(spec: &CollectionSpec) -> std::result::Result<(), String> {
    let name = spec.name();
    let bad_char = |c: char| c.is_control() || c == '/' || c == '?' || c == '#';
    if name.is_empty() || name.len() > 200 || name.chars().any(bad_char) {
        return Err(format!("collection name {name:?} must be 1 to 200 characters without /, ? and #"));
    }
    if spec.vectors.is_empty() {
        return Err(format!("collection {name}: no vector column; name one in [[collections.vectors]]"));
    }
    let columns = spec.vectors.len() + spec.filter_columns.len();
    if columns > MAX_COLUMNS {
        return Err(format!("collection {name}: {columns} vector and filter columns, at most {MAX_COLUMNS} can be"));
    }
    for vector in &spec.vectors {
        let column = &vector.column;
        if !(2..=100).contains(&vector.m) {
            return Err(format!("collection {name}, column {column}: m is {}, not 2 to 100", vector.m));
        }
        if !(4..=4000).contains(&vector.ef_construction) {
            return Err(format!(
                "collection {name}, column {column}: ef_construction is {}, not 4 to 4000",
                vector.ef_construction
            ));
        }
        if !vector.index.serves(vector.metric) {
            let (index, metric) = (vector.index.name(), vector.metric);
            return Err(format!(
                "collection {name}, column {column}: {index} does not serve {metric}; use hnsw or flat"
            ));
        }
        if vector.lists.is_some_and(|lists| !(1..=65_536).contains(&lists)) {
            return Err(format!("collection {name}, column {column}: lists are 1 to 65536"));
        }
        // How many they may be depends on the column's type, which the source knows.
        if vector.dimensions == Some(0) {
            return Err(format!("collection {name}, column {column}: dimensions must be at least 1"));
        }
    }
    if let Some(why) = spec.tiers.as_ref().and_then(TierPolicy::refuse) {
        return Err(format!("collection {name}, tiers: {why}"));
    }
    let mut names: Vec<_> = spec.vectors.iter().map(|vector| &vector.column).chain(&spec.filter_columns).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("collection {name}: column {} is named twice", pair[0])),
        None => Ok(()),
    }
}

/// A replication slot as `pg_replication_slots` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// `pgoutput` if it is one of ours.
    pub plugin: Option<String>,
    /// Its database.
    pub database: Option<String>,
    /// Is somebody streaming from it?
    pub active: bool,
    /// Everything before was confirmed.
    pub confirmed: Option<Lsn>,
    /// WAL from here on is kept for it.
    pub restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Does it send transactions when they are prepared? We could not keep these until somebody ends them.
    pub two_phase: bool,
}

impl Slot {
    /// Can it be streamed from?
    pub fn is_usable(&self) -> bool {
        self.wal_status.as_deref() != Some("lost") && self.confirmed.is_some() && !self.two_phase
    }
}

fn lsn(row: &tokio_postgres::Row, at: usize) -> Option<Lsn> {
    row.get::<_, Option<String>>(at)?.parse().ok()
}

/// Looks a slot up.
pub async fn slot(client: &Client, name: &str) -> Result<Option<Slot>> {
    let sql = "SELECT plugin::text, database::text, active, confirmed_flush_lsn::text, restart_lsn::text, wal_status,
                      COALESCE((to_jsonb(s) ->> 'two_phase')::bool, false)
                 FROM pg_replication_slots s WHERE slot_name = $1";
    let row = client.query_opt(sql, &[&name]).await?;
    Ok(row.map(|row| Slot {
        plugin: row.get(0),
        database: row.get(1),
        active: row.get(2),
        confirmed: lsn(&row, 3),
        restart: lsn(&row, 4),
        wal_status: row.get(5),
        two_phase: row.get(6),
    }))
}

/// Where the source's WAL ends, and how far its sender for a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderFacts {
    /// End of the flushed WAL.
    pub flushed: Lsn,
    /// Somebody streams from the slot there: where that is us, it is the server that we follow.
    pub followed: bool,
    /// When the slot's sender waits for more WAL: the position up to which it has sent everything.
    pub waiting_at: Option<Lsn>,
}

/// Asks, without writing anything. Wait events are named so since version 10; capitals changed in 17.
pub async fn sender(client: &Client, slot: &str) -> Result<SenderFacts> {
    let sql = "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)::text,
                      (SELECT r.sent_lsn::text FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
                         JOIN pg_stat_activity a ON a.pid = s.active_pid
                        WHERE s.slot_name = $1 AND lower(a.wait_event) = 'walsenderwaitforwal'),
                      EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)";
    let row = client.query_one(sql, &[&slot]).await?;
    let flushed =
        lsn(&row, 0).ok_or_else(|| SourceError::Unavailable("the source does not tell its WAL position".into()))?;
    Ok(SenderFacts { flushed, followed: row.get(2), waiting_at: lsn(&row, 1) })
}

/// A position at or behind the end of everything visible now, and one that the source comes to send by itself.
///
/// The end of the WAL alone is not: a flush may stop at a page's end in the middle of a record (of a vacuum, of a pruned
/// page, of a transaction still open), and the walsender does not pass that record until somebody commits. So we do, with
/// a message that nobody subscribes to. Where that is refused (a standby, a role without the right), the flushed end
/// has to do. Not inside a transaction.
pub async fn reachable_lsn(client: &Client) -> Result<Lsn> {
    let sql = "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)::text,
                      (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END)::text,
                      pg_is_in_recovery()";
    let row = client.query_one(sql, &[]).await?;
    let standby: bool = row.get(2);
    // Flushed by us here, whatever the role's default is, and not waiting for other servers.
    let message =
        "SELECT set_config('synchronous_commit', 'local', true), pg_logical_emit_message(true, 'ruvector', '')";
    let column = match !standby && client.query_one(message, &[]).await.is_ok() {
        true => 1,
        false => 0,
    };
    lsn(&row, column).ok_or_else(|| SourceError::Unavailable("the source does not tell its WAL position".into()))
}

/// Refuses a source whose WAL cannot be decoded.
pub async fn check_wal_level(client: &Client) -> Result<()> {
    let level: String = client.query_one("SELECT current_setting('wal_level')", &[]).await?.get(0);
    if level == "logical" {
        return Ok(());
    }
    let remedy = "ALTER SYSTEM SET wal_level = 'logical'; then restart the server; `ruvector doctor` says how with your provider";
    Err(SourceError::refused(format!("wal_level of the source is {level}"), remedy))
}

/// Version number of the server, `150004` for 15.4.
pub async fn server_version(client: &Client) -> Result<i32> {
    let row = client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?;
    Ok(row.get(0))
}

/// The database of a connection.
pub async fn database(client: &Client) -> Result<String> {
    Ok(client.query_one("SELECT current_database()::text", &[]).await?.get(0))
}

/// Is the server a standby?
pub async fn in_recovery(client: &Client) -> Result<bool> {
    Ok(client.query_one("SELECT pg_is_in_recovery()", &[]).await?.get(0))
}
