//! The initial copy: every row visible at the slot's consistent point, read by several connections in ctid ranges.

use crate::model::{
    Cell, CollectionDef, ColumnType, LogRecord, Lsn, RowImage, RowKey, pgtype, quote_ident, quote_literal,
};
use crate::replication::ReplicationError;
use crate::replication::copy_rows::{CopyError, CopyRows};
use crate::replication::progress::{CopyStatus, Progress};
use crate::source::SourceError;
use crate::source::catalog::Table;
use crate::source::connect::Dsn;
use crate::storage::changelog::ChangeLog;
use futures_util::{StreamExt, pin_mut};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// Heap pages of one range: 16 MiB.
const RANGE_PAGES: i64 = 2048;
const BATCH_ROWS: usize = 512;
const SYNC_EVERY: Duration = Duration::from_millis(500);

/// A table to copy and where its rows go.
pub struct CopyTable {
    /// The collection.
    pub def: CollectionDef,
    /// Its table.
    pub table: Table,
    /// Its copy log.
    pub log: ChangeLog,
}

struct Target {
    def: CollectionDef,
    log: Mutex<(ChangeLog, Instant)>,
    status: Arc<CopyStatus>,
}

/// Some pages of one table; `None` for all of a table that has no pages of its own.
struct Range {
    target: Arc<Target>,
    pages: Option<(i64, Option<i64>)>,
    count: i64,
}

/// Connections that see the exported snapshot. They must exist before the snapshot's connection does anything else.
///
/// They lock the tables against changes of their definition: a table rewritten after the snapshot would look empty to it.
pub async fn open_sessions(
    dsn: &Dsn,
    snapshot: &str,
    tables: &[(CollectionDef, Table)],
    count: usize,
) -> Result<Vec<Client>, ReplicationError> {
    let names: Vec<_> = tables.iter().map(|(def, _)| def.from_clause()).collect();
    let mut sessions = Vec::new();
    for _ in 0..count {
        let client = dsn.connect().await?;
        let sql = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; SET LOCAL statement_timeout = 0; \
             SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE {} IN ACCESS SHARE MODE",
            quote_literal(snapshot),
            names.join(", ")
        );
        client.batch_execute(&sql).await.map_err(SourceError::from)?;
        for (def, table) in tables {
            let row = client.query_one("SELECT pg_relation_filenode($1::oid)", &[&def.oid]).await;
            if row.map_err(SourceError::from)?.get::<_, Option<u32>>(0) != table.filenode {
                let why = format!("{} was rewritten while its copy began", def.quoted_table());
                return Err(SourceError::Unavailable(why).into());
            }
        }
        sessions.push(client);
    }
    Ok(sessions)
}

/// Copies all tables into their logs. The logs end with `CopyEnd` only when every row is durable there.
pub async fn run(
    sessions: Vec<Client>,
    tables: Vec<CopyTable>,
    at: Lsn,
    progress: &Progress,
) -> Result<(), ReplicationError> {
    let mut targets = Vec::new();
    let mut ranges = VecDeque::new();
    for CopyTable { def, table, log } in tables {
        let status = progress.copy(def.id);
        status.begin();
        let target = Arc::new(Target { def, log: Mutex::new((log, Instant::now())), status });
        ranges.extend(split(&target, &table));
        targets.push(target);
    }
    let ranges = Mutex::new(ranges);
    let workers = sessions.iter().map(|session| work(session, &ranges));
    futures_util::future::try_join_all(workers).await?;
    for target in targets {
        let log = &mut target.log.lock().0;
        log.append(&LogRecord::CopyEnd { at, rows: target.status.rows.load(Ordering::Relaxed) })?;
        log.sync()?;
    }
    Ok(())
}

fn split(target: &Arc<Target>, table: &Table) -> Vec<Range> {
    let range = |pages, count| Range { target: target.clone(), pages, count };
    if table.kind != 'r' {
        // A partitioned table has no pages of its own, and ctids of its parts are not unique.
        target.status.pages_total.store(1, Ordering::Relaxed);
        return vec![range(None, 1)];
    }
    let total = table.pages.max(1);
    target.status.pages_total.store(total as u64, Ordering::Relaxed);
    let starts = (0..total).step_by(RANGE_PAGES as usize);
    starts
        .map(|start| {
            let end = start + RANGE_PAGES;
            // The last range is open: the heap may have grown since it was measured.
            range(Some((start, (end < total).then_some(end))), RANGE_PAGES.min(total - start))
        })
        .collect()
}

async fn work(session: &Client, ranges: &Mutex<VecDeque<Range>>) -> Result<(), ReplicationError> {
    loop {
        let next = ranges.lock().pop_front();
        let Some(range) = next else { return Ok(()) };
        copy_range(session, &range).await?;
        range.target.status.pages_done.fetch_add(range.count as u64, Ordering::Relaxed);
    }
}

fn statement(range: &Range) -> (String, Vec<ColumnType>) {
    let def = &range.target.def;
    let key = def.key.iter().map(|column| (&column.name, column.kind));
    let vectors = def.vectors.iter().map(|column| (&column.name, column.kind));
    let filters = def.filters.iter().map(|column| (&column.name, column.kind));
    let (names, kinds): (Vec<_>, Vec<_>) = key.chain(vectors).chain(filters).unzip();
    let names: Vec<_> = names.into_iter().map(|name| quote_ident(name)).collect();
    let from = match range.pages {
        None => def.from_clause(),
        Some((start, None)) => format!("{} WHERE ctid >= '({start},0)'", def.from_clause()),
        Some((start, Some(end))) => {
            format!("{} WHERE ctid >= '({start},0)' AND ctid < '({end},0)'", def.from_clause())
        }
    };
    (format!("COPY (SELECT {} FROM {from}) TO STDOUT (FORMAT binary)", names.join(", ")), kinds)
}

/// Any trouble of one row or chunk.
#[derive(Debug)]
enum Trouble {
    Copy(CopyError),
    Replication(ReplicationError),
}

impl From<CopyError> for Trouble {
    fn from(error: CopyError) -> Self {
        Trouble::Copy(error)
    }
}

impl From<Trouble> for ReplicationError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Copy(error) => ReplicationError::Protocol(error.to_string()),
            Trouble::Replication(error) => error,
        }
    }
}

async fn copy_range(session: &Client, range: &Range) -> Result<(), ReplicationError> {
    let (sql, kinds) = statement(range);
    let target = &range.target;
    let stream = session.copy_out(&sql).await.map_err(SourceError::from)?;
    pin_mut!(stream);
    let mut rows = CopyRows::new(kinds.len());
    let mut batch = Vec::with_capacity(BATCH_ROWS);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(SourceError::from)?;
        rows.feed::<Trouble>(&chunk, &mut |fields| {
            batch.push(image(&target.def, &kinds, fields).map_err(Trouble::Replication)?);
            if batch.len() == BATCH_ROWS {
                target.write(std::mem::take(&mut batch)).map_err(Trouble::Replication)?;
            }
            Ok(())
        })?;
    }
    rows.finish().map_err(Trouble::Copy)?;
    target.write(batch)
}

impl Target {
    fn write(&self, rows: Vec<RowImage>) -> Result<(), ReplicationError> {
        if rows.is_empty() {
            return Ok(());
        }
        let count = rows.len() as u64;
        let (log, synced) = &mut *self.log.lock();
        log.append(&LogRecord::Copied(rows))?;
        if synced.elapsed() >= SYNC_EVERY {
            log.sync()?;
            *synced = Instant::now();
        }
        self.status.rows.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
}

fn image(def: &CollectionDef, kinds: &[ColumnType], fields: &[Option<&[u8]>]) -> Result<RowImage, ReplicationError> {
    let cells = kinds.iter().zip(fields).map(|(kind, field)| match field {
        Some(bytes) => pgtype::decode_binary(*kind, bytes),
        None => Cell::Null,
    });
    let mut cells: Vec<_> = cells.collect();
    let filters = cells.split_off(def.key.len() + def.vectors.len());
    let vectors = cells.split_off(def.key.len());
    let values = cells.into_iter().map(|cell| match cell {
        Cell::Value(value) => Ok(value),
        other => Err(ReplicationError::Protocol(format!("a copied row of {} has the key {other:?}", def.name))),
    });
    let key = RowKey::encode(&values.collect::<Result<Vec<_>, _>>()?);
    let key = key.ok_or_else(|| ReplicationError::Protocol(format!("a copied row of {} has no key", def.name)))?;
    Ok(RowImage { key, vectors, filters })
}
