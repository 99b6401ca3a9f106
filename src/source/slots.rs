//! Our slots on the source: what they hold back and who streams from them, the one holder's lock, the heartbeat, and
//! taking away what is provably ours.

use crate::model::Lsn;
use crate::source::{Result, SourceError};
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Row};

/// A session of the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Session {
    /// Its process.
    pub pid: i32,
    /// What it calls itself.
    pub application: String,
    /// Where it comes from; absent on a socket, and for those who may not see it.
    pub address: Option<String>,
    /// How long it is there, in seconds.
    pub for_s: Option<i64>,
}

impl Session {
    /// Does it carry this identity? Only a process that works in the same data directory does.
    pub fn is_of(&self, instance: &str) -> bool {
        self.application.split_whitespace().next_back() == Some(instance)
    }
}

impl std::fmt::Display for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PID {} ({})", self.pid, self.application)?;
        self.address.iter().try_for_each(|address| write!(f, " from {address}"))?;
        self.for_s.iter().try_for_each(|seconds| write!(f, ", connected for {seconds} s"))
    }
}

/// A slot, measured. What a version does not tell is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "Slot")]
pub struct Measured {
    /// Its name.
    pub name: String,
    /// Its decoder; a slot of ours has `pgoutput`.
    pub plugin: Option<String>,
    /// Its database.
    pub database: Option<String>,
    /// Who streams from it.
    pub holder: Option<Session>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes that may still be written before the server may give it up; absent without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// WAL kept for it, bytes.
    pub retained_wal_bytes: Option<i64>,
    /// WAL behind what it has confirmed, bytes.
    pub confirmed_lag_bytes: Option<i64>,
    /// What it has confirmed.
    pub confirmed: Option<Lsn>,
    /// Why it was invalidated (17 and up).
    pub invalidation_reason: Option<String>,
    /// Is it kept in step on standbys (17 and up)?
    pub failover: Option<bool>,
    /// How long nobody has streamed from it, seconds (17 and up).
    pub inactive_s: Option<i64>,
}

const END: &str = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END";

/// Columns that only newer versions have are looked for in the row's JSON form: absent is NULL.
fn measure_sql(which: &str) -> String {
    format!(
        "SELECT s.slot_name::text, s.plugin::text, s.database::text, s.active_pid, s.wal_status, s.safe_wal_size,
                pg_wal_lsn_diff(e.lsn, s.restart_lsn)::int8, pg_wal_lsn_diff(e.lsn, s.confirmed_flush_lsn)::int8,
                s.confirmed_flush_lsn::text, to_jsonb(s) ->> 'invalidation_reason', (to_jsonb(s) ->> 'failover')::bool,
                extract(epoch FROM clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::int8,
                a.application_name, a.client_addr::text, extract(epoch FROM clock_timestamp() - a.backend_start)::int8
           FROM (SELECT {END} AS lsn) e, pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
          WHERE {which} ORDER BY s.slot_name"
    )
}

fn measured(row: &Row) -> Measured {
    let holder = row.get::<_, Option<i32>>(3).map(|pid| Session {
        pid,
        application: row.get::<_, Option<String>>(12).unwrap_or_default(),
        address: row.get(13),
        for_s: row.get(14),
    });
    Measured {
        name: row.get(0),
        plugin: row.get(1),
        database: row.get(2),
        holder,
        wal_status: row.get(4),
        safe_wal_bytes: row.get(5),
        retained_wal_bytes: row.get(6),
        confirmed_lag_bytes: row.get(7),
        confirmed: row.get::<_, Option<String>>(8).and_then(|lsn| lsn.parse().ok()),
        invalidation_reason: row.get(9),
        failover: row.get(10),
        inactive_s: row.get(11),
    }
}

/// Measures the slots of these names, as far as they are there.
pub async fn measure(client: &Client, names: &[String]) -> Result<Vec<Measured>> {
    let rows = client.query(&measure_sql("s.slot_name::text = ANY ($1::text[])"), &[&names]).await?;
    Ok(rows.iter().map(measured).collect())
}

/// The pgoutput slots of this database that are called `base` or `base_<number>`: ours by name, which proves nothing.
pub async fn called(client: &Client, base: &str) -> Result<Vec<Measured>> {
    let sql = measure_sql("s.plugin = 'pgoutput' AND s.database = current_database()");
    let rows = client.query(&sql, &[]).await?;
    Ok(rows.iter().map(measured).filter(|slot| is_called(&slot.name, base)).collect())
}

/// Is it `base`, or `base_<number>` as later copies are?
pub fn is_called(name: &str, base: &str) -> bool {
    name.strip_prefix(base).is_some_and(|rest| {
        let digits = |number: &str| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        rest.is_empty() || rest.strip_prefix('_').is_some_and(digits)
    })
}

/// A transaction that keeps slots back: until it ends, no slot forgets WAL from before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Transaction {
    /// Its number, which no other gets.
    pub xid: String,
    /// Whose it is.
    pub whose: String,
    /// How long it is open, seconds, where we may see it.
    pub open_s: Option<i64>,
}

/// The oldest transaction that has written, prepared ones included, in whatever database.
pub async fn oldest_writer(client: &Client) -> Result<Option<Transaction>> {
    let sql = "SELECT xid::text, whose, open_s FROM (
                 SELECT backend_xid, age(backend_xid), 'PID ' || pid || ' (' || COALESCE(application_name, '') || ')',
                        extract(epoch FROM clock_timestamp() - xact_start)::int8
                   FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
                 UNION ALL
                 SELECT transaction, age(transaction), 'the prepared transaction ' || quote_literal(gid),
                        extract(epoch FROM clock_timestamp() - prepared)::int8 FROM pg_prepared_xacts
               ) t (xid, age, whose, open_s) ORDER BY age DESC LIMIT 1";
    let row = client.query_opt(sql, &[]).await?;
    Ok(row.map(|row| Transaction { xid: row.get(0), whose: row.get(1), open_s: row.get(2) }))
}

/// A transaction of a message that nobody subscribes to: the sender has something to send, and comes to confirm what is
/// before it. About 150 bytes of WAL. Not waiting for anything.
pub async fn heartbeat(client: &Client) -> Result<()> {
    let sql =
        "SELECT set_config('synchronous_commit', 'off', true), pg_logical_emit_message(true, 'ruvector', 'heartbeat')";
    client.query_one(sql, &[]).await?;
    Ok(())
}

/// The cluster's `system_identifier`.
pub async fn cluster(client: &Client) -> Result<String> {
    Ok(client.query_one("SELECT system_identifier::text FROM pg_control_system()", &[]).await?.get(0))
}

/// First key of our advisory locks.
const LOCK_CLASS: i32 = 0x7275_7665;

/// Second key: the CRC of the slot's name.
fn lock_key(slot: &str) -> i32 {
    // Any function that all versions of this service agree on.
    let fold = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    slot.bytes().fold(0x811c_9dc5, fold) as i32
}

/// Makes the server end this session soon after we have gone without a word, whatever stands in between.
pub async fn short_lived(client: &Client, version: i32, silence: Duration) -> Result<()> {
    let seconds = silence.as_secs().max(1);
    let probes = (seconds / 4).max(1);
    let mut sql = format!(
        "SET tcp_keepalives_idle = {probes}; SET tcp_keepalives_interval = {probes}; SET tcp_keepalives_count = 3"
    );
    if version >= 140_000 {
        sql.push_str(&format!("; SET idle_session_timeout = '{seconds}s'"));
    }
    Ok(client.batch_execute(&sql).await?)
}

/// Takes the lock that says who may use the slot of this name and its successors. It lives as long as the session.
pub async fn try_hold(client: &Client, slot: &str) -> Result<bool> {
    let row = client.query_one("SELECT pg_try_advisory_lock($1, $2)", &[&LOCK_CLASS, &lock_key(slot)]).await?;
    Ok(row.get(0))
}

/// Who holds that lock.
pub async fn holder(client: &Client, slot: &str) -> Result<Option<Session>> {
    let sql = "SELECT l.pid, a.application_name, a.client_addr::text, extract(epoch FROM clock_timestamp() - a.backend_start)::int8
                 FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
                WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
                  AND l.classid::int8 = $1 AND l.objid::int8 = $2
                  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    // The server shows both as unsigned.
    let keys = [LOCK_CLASS, lock_key(slot)].map(|key| i64::from(key as u32));
    let row = client.query_opt(sql, &[&keys[0], &keys[1]]).await?;
    Ok(row.map(|row| Session {
        pid: row.get(0),
        application: row.get::<_, Option<String>>(1).unwrap_or_default(),
        address: row.get(2),
        for_s: row.get(3),
    }))
}

/// Ends a session that carries this identity and still is the process it was. False where it was not.
pub async fn end_own(client: &Client, session: &Session, instance: &str) -> Result<bool> {
    if !session.is_of(instance) {
        return Ok(false);
    }
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE pid = $1 AND application_name = $2 AND usename = current_user AND pid <> pg_backend_pid()";
    let row = client.query_opt(sql, &[&session.pid, &session.application]).await?;
    Ok(row.is_some_and(|row| row.get(0)))
}

/// How often a slot is looked at that is about to be free.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until nobody streams from a slot, or for so long; ends senders of ours meanwhile when `end` says so. Who still
/// streams from it, if somebody does.
pub async fn freed(client: &Client, name: &str, instance: Option<&str>, limit: Duration) -> Result<Option<Session>> {
    let started = Instant::now();
    let mut ended = false;
    loop {
        let slots = measure(client, &[name.to_owned()]).await?;
        let Some(holder) = slots.into_iter().find_map(|slot| slot.holder) else { return Ok(None) };
        if let Some(instance) = instance
            && !ended
        {
            ended = end_own(client, &holder, instance).await?;
            if ended {
                tracing::info!(slot = name, session = %holder, "ended a sender of ours that nobody listens to any more");
            }
        }
        if started.elapsed() >= limit || (instance.is_some() && !ended) {
            return Ok(Some(holder));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Drops a pgoutput slot of this database if it is there and idle. True when it is gone.
pub async fn drop_idle(client: &Client, name: &str) -> Result<bool> {
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                WHERE slot_name = $1 AND plugin = 'pgoutput' AND database = current_database() AND NOT active";
    match client.query(sql, &[&name]).await.map_err(SourceError::from) {
        // In use by now, or gone by now.
        Err(error) if !matches!(error.sqlstate(), Some("55006" | "42704")) => return Err(error),
        _ => {}
    }
    Ok(measure(client, &[name.to_owned()]).await?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_we_give() {
        for (name, expected) in
            [("s", true), ("s_2", true), ("s_10", true), ("s_", false), ("s_x", false), ("s2", false), ("t", false)]
        {
            assert_eq!(is_called(name, "s"), expected, "{name}");
        }
    }

    #[test]
    fn only_the_same_identity_is_ours() {
        let of = |application: &str| {
            let session = Session { pid: 1, application: application.into(), address: None, for_s: None };
            session.is_of("0123456789ab")
        };
        assert!(of("ruvector 0123456789ab") && of("my app 0123456789ab"));
        assert!(!of("ruvector") && !of("ruvector 0123456789ac") && !of("") && !of("ruvector0123456789ab"));
    }
}
