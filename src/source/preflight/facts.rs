//! What the checks look at, read from the server in a few statements. Every fact is optional where a role may not see it.

use crate::model::{CollectionDef, ColumnType, quote_ident};
use crate::source::catalog::{self, Slot};
use crate::source::preflight::provider::Provider;
use crate::source::{Result, SourceError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_postgres::{Client, Row};

/// What the checks of the server look at.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerFacts {
    /// Who runs it.
    pub provider: Provider,
    /// `server_version_num`.
    pub version: i32,
    /// Is it a standby?
    pub in_recovery: bool,
    /// `wal_level`.
    pub wal_level: String,
    /// `max_replication_slots` and how many are taken.
    pub slots: (i32, i32),
    /// `max_wal_senders` and how many are taken.
    pub senders: (i32, i32),
    /// Our role, unquoted.
    pub role: String,
    /// May it replicate: superuser, REPLICATION, or a member of `rds_replication`.
    pub can_replicate: bool,
    /// Is this connection encrypted?
    pub encrypted: bool,
    /// Does it stay on this machine?
    pub local: bool,
    /// `max_slot_wal_keep_size` in MB; -1 is without limit.
    pub keep_size_mb: i64,
    /// `idle_replication_slot_timeout` in seconds; `None` before version 18, 0 is never.
    pub idle_timeout_s: Option<i64>,
    /// WAL written per second since the statistics were reset, bytes; `None` where they cover less than an hour.
    pub wal_rate: Option<f64>,
    /// Our slot.
    pub slot: Option<Slot>,
    /// Name of our slot.
    pub slot_name: String,
    /// What it is made from: the name of the configuration.
    pub slot_base: String,
    /// The data directory was looked into, and does not know it.
    pub slot_unknown: bool,
    /// WAL kept for our slot, bytes.
    pub retained: Option<i64>,
    /// `sync_replication_slots`-like: can slots be made to survive a failover (version 17), and is a standby there?
    pub failover: Failover,
    /// Seconds the oldest transaction is open, and whose it is.
    pub oldest_transaction: Option<(i64, String)>,
    /// Prepared transactions left open.
    pub prepared: i64,
    /// May we call `pg_logical_emit_message`?
    pub can_heartbeat: bool,
    /// Bytes our slot's decoding spilled to disk, and `logical_decoding_work_mem` in kB.
    pub spilled: Option<i64>,
    /// `logical_decoding_work_mem` in kB.
    pub decoding_memory_kb: i64,
    /// Version of `postgres_fdw` that can be installed, and of `vector` that is installed.
    pub fdw: Option<String>,
    /// Installed version of pgvector.
    pub pgvector: Option<String>,
    /// Their clock minus ours, seconds; half the round trip is taken off.
    pub clock_skew_s: f64,
    /// Inactive slots of others with the WAL they hold, bytes.
    pub idle_slots: Vec<(String, i64)>,
}

/// What protects slots from a failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failover {
    /// Physical standbys streaming now.
    pub standbys: i64,
    /// `failover` flag of our slot; `None` before version 17 or without a slot.
    pub slot_flag: Option<bool>,
    /// Does a standby keep slots in step? Its worker is a session on our side that other roles may not see: then `None`.
    pub synced: Option<bool>,
}

const SERVER: &str = "
    SELECT current_setting('server_version_num')::int4, pg_is_in_recovery(), current_setting('wal_level'),
           current_setting('max_replication_slots')::int4, (SELECT count(*)::int4 FROM pg_replication_slots WHERE NOT temporary),
           current_setting('max_wal_senders')::int4, (SELECT count(*)::int4 FROM pg_stat_replication),
           current_user::text,
           (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user)
             OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication' AND pg_has_role(current_user, oid, 'MEMBER')),
           COALESCE((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false),
           COALESCE(inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1', true),
           COALESCE((SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), -1),
           (SELECT setting::int8 FROM pg_settings WHERE name = 'idle_replication_slot_timeout'),
           (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()),
           (SELECT setting::int8 FROM pg_settings WHERE name = 'logical_decoding_work_mem'),
           (SELECT default_version::text FROM pg_available_extensions WHERE name = 'postgres_fdw'),
           (SELECT extversion::text FROM pg_extension WHERE extname = 'vector'),
           extract(epoch FROM clock_timestamp())::float8,
           (SELECT count(*) FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
             WHERE COALESCE(s.slot_type, 'physical') = 'physical' AND r.state IN ('streaming', 'catchup')),
           COALESCE((SELECT bool_and(has_function_privilege(oid, 'EXECUTE')) FROM pg_proc
                      WHERE proname = 'pg_logical_emit_message' AND proargtypes[2] = 'text'::regtype), false)";

const OLDEST: &str = "
    SELECT extract(epoch FROM now() - xact_start)::int8, COALESCE(application_name, '') || ' pid ' || pid
      FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
     ORDER BY xact_start LIMIT 1";

const HELD: &str = "
    SELECT slot_name::text, active, pg_wal_lsn_diff(
             CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, restart_lsn)::int8
      FROM pg_replication_slots";

/// Reads the facts of the server.
pub async fn server(client: &Client, slot: &str, host: &str) -> Result<ServerFacts> {
    let names = |rows: Vec<Row>| rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>();
    let settings =
        names(client.query("SELECT name FROM pg_settings WHERE name LIKE '%.%' OR name LIKE 'aurora%'", &[]).await?);
    let roles = names(client.query("SELECT rolname::text FROM pg_roles", &[]).await?);
    let asked = SystemTime::now();
    let row = client.query_one(SERVER, &[]).await?;
    let clock_skew_s = skew(asked, SystemTime::now(), row.get(17));
    let version: i32 = row.get(0);
    let held = client.query(HELD, &[]).await?;
    let held = held.iter().map(|row| (row.get::<_, String>(0), row.get::<_, bool>(1), row.get::<_, Option<i64>>(2)));
    let held: Vec<_> = held.collect();
    let oldest = client.query_opt(OLDEST, &[]).await?;
    let idle = held.iter().filter(|(name, active, _)| !active && name != slot);
    Ok(ServerFacts {
        provider: Provider::recognise(&settings, &roles, host),
        version,
        in_recovery: row.get(1),
        wal_level: row.get(2),
        slots: (row.get(3), row.get(4)),
        senders: (row.get(5), row.get(6)),
        role: row.get(7),
        can_replicate: row.get(8),
        encrypted: row.get(9),
        local: row.get(10),
        keep_size_mb: row.get(11),
        idle_timeout_s: row.get(12),
        wal_rate: optional(
            client,
            "SELECT (wal_bytes / extract(epoch FROM now() - stats_reset))::float8 FROM pg_stat_wal WHERE now() - stats_reset > interval '1 hour'",
        )
        .await,
        slot: catalog::slot(client, slot).await?,
        slot_name: slot.to_owned(),
        slot_base: slot.to_owned(),
        slot_unknown: false,
        retained: held.iter().find(|(name, ..)| name == slot).and_then(|(.., bytes)| *bytes),
        failover: Failover {
            standbys: row.get(18),
            slot_flag: match version {
                170_000.. => flag(client, slot).await,
                _ => None,
            },
            synced: synced(client, version).await,
        },
        oldest_transaction: oldest.map(|row| (row.get(0), row.get(1))),
        prepared: row.get(13),
        can_heartbeat: row.get(19),
        spilled: optional(
            client,
            &format!("SELECT spill_bytes FROM pg_stat_replication_slots WHERE slot_name = '{slot}'"),
        )
        .await,
        decoding_memory_kb: row.get::<_, Option<i64>>(14).unwrap_or(65_536),
        fdw: row.get(15),
        pgvector: row.get(16),
        clock_skew_s,
        idle_slots: idle.map(|(name, _, bytes)| (name.clone(), bytes.unwrap_or(0))).collect(),
    })
}

/// A value some versions and roles have not; absent then. Slot names hold no quotes, so they can stand in a literal.
async fn optional<T: for<'a> tokio_postgres::types::FromSql<'a>>(client: &Client, sql: &str) -> Option<T> {
    let row = client.query_opt(sql, &[]).await.ok()??;
    row.try_get::<_, Option<T>>(0).ok()?
}

async fn flag(client: &Client, slot: &str) -> Option<bool> {
    optional(client, &format!("SELECT failover FROM pg_replication_slots WHERE slot_name = '{slot}'")).await
}

/// The worker that keeps slots in step calls itself so, with its cluster's name before it; it asks again and again.
async fn synced(client: &Client, version: i32) -> Option<bool> {
    if version < 170_000 {
        return None;
    }
    optional(
        client,
        "SELECT CASE WHEN bool_or(application_name LIKE '%slotsync worker%') THEN true
                     WHEN bool_and(application_name IS NOT NULL AND query <> '<insufficient privilege>') THEN false END
           FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender')",
    )
    .await
}

fn skew(asked: SystemTime, answered: SystemTime, theirs: f64) -> f64 {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
    theirs - (seconds(asked) + seconds(answered)) / 2.0
}

/// What the checks of one collection's content look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContentFacts {
    /// Rows looked at.
    pub sampled: i64,
    /// Of them, per vector column: name, NULL, other length than most, holding NaN or an infinity.
    pub columns: Vec<(String, i64, i64, i64)>,
    /// `p` permanent, `u` unlogged, `t` temporary.
    pub persistence: char,
    /// Is it a partition of another table?
    pub is_partition: bool,
    /// Microseconds one page of the heap took to read and send.
    pub page_us: Option<u64>,
    /// Pages of the heap.
    pub pages: i64,
    /// Rows the planner believes in.
    pub estimated_rows: i64,
}

/// Rows of the sample that judges a table's vectors.
const SAMPLE: i64 = 1000;

/// Looks at a table, and with `sample` at some of its rows.
pub async fn content(
    client: &Client,
    def: &CollectionDef,
    table: &catalog::Table,
    sample: bool,
) -> Result<ContentFacts> {
    let head = client
        .query_one("SELECT relpersistence::text, relispartition FROM pg_class WHERE oid = $1", &[&def.oid])
        .await?;
    let mut facts = ContentFacts {
        persistence: head.get::<_, String>(0).chars().next().unwrap_or('?'),
        is_partition: head.get(1),
        pages: table.pages,
        estimated_rows: table.estimated_rows,
        ..ContentFacts::default()
    };
    if !sample {
        return Ok(facts);
    }
    for column in &def.vectors {
        let name = quote_ident(&column.name);
        let (length, odd) = match column.kind {
            // Their functions are in a schema we do not know; their text form is not. They hold finite elements only.
            ColumnType::Vector | ColumnType::Halfvec => {
                (format!("1 + length({name}::text) - length(replace({name}::text, ',', ''))"), "false".to_owned())
            }
            ColumnType::Bit | ColumnType::Varbit => (format!("length({name})"), "false".to_owned()),
            ColumnType::Jsonb => {
                let items = format!("CASE WHEN jsonb_typeof({name}) = 'array' THEN {name} ELSE '[null]' END");
                (
                    format!("jsonb_array_length({items})"),
                    format!(
                        "EXISTS (SELECT FROM jsonb_array_elements({items}) AS item(value)
                                  WHERE jsonb_typeof(item.value) <> 'number')"
                    ),
                )
            }
            _ => (
                format!("cardinality({name})"),
                format!(
                    "EXISTS (SELECT FROM unnest({name}) e WHERE e IS NULL OR e::text IN ('NaN', 'Infinity', '-Infinity'))"
                ),
            ),
        };
        let sql = format!(
            "WITH s AS (SELECT {name} IS NULL AS missing, {length} AS length, CASE WHEN {name} IS NULL THEN false ELSE {odd} END AS odd
                          FROM {} LIMIT {SAMPLE})
             SELECT count(*), count(*) FILTER (WHERE missing),
                    count(*) FILTER (WHERE NOT missing AND length IS DISTINCT FROM (SELECT mode() WITHIN GROUP (ORDER BY length) FROM s WHERE NOT missing)),
                    count(*) FILTER (WHERE odd) FROM s",
            def.quoted_table()
        );
        let row = client.query_one(&sql, &[]).await.map_err(SourceError::from)?;
        facts.sampled = row.get(0);
        facts.columns.push((column.name.clone(), row.get(1), row.get(2), row.get(3)));
    }
    if let Some(first) = def.vectors.first() {
        let pages = table.pages.clamp(1, 64);
        let sql = format!(
            "SELECT sum(pg_column_size({0}))::int8 FROM {1} WHERE ctid < '({pages},0)'",
            quote_ident(&first.name),
            def.quoted_table()
        );
        let timed = std::time::Instant::now();
        if table.kind == 'r' && client.query_one(&sql, &[]).await.is_ok() {
            facts.page_us = Some(timed.elapsed().as_micros() as u64 / pages as u64);
        }
    }
    Ok(facts)
}
