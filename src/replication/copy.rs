//! The copy: every row of a table that is visible at a consistent point, read by several connections in ctid ranges into a
//! copy log. Interrupted, it goes on with the ranges that are left, under a later snapshot: the changes between wait in the
//! change log, and the newer version of a row wins.

use crate::model::{
    Cell, CollectionDef, ColumnType, LogRecord, Lsn, PageRange, RowImage, RowKey, pgtype, quote_ident, quote_literal,
};
use crate::replication::ReplicationError;
use crate::replication::copy_rows::{CopyError, CopyRows};
use crate::replication::progress::{CopyStatus, Progress};
use crate::replication::transport::{NewSlot, PgWalSource, SlotKind};
use crate::source::connect::{Dsn, without_limits};
use crate::source::policy::Backoff;
use crate::source::{SourceError, catalog};
use crate::storage::changelog::{self, ChangeLog, LogReader};
use futures_util::{StreamExt, pin_mut};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// Heap pages of one range: 16 MiB.
const RANGE_PAGES: usize = 2048;
const BATCH_ROWS: usize = 512;
const SYNC_EVERY: Duration = Duration::from_millis(500);

/// How tables are copied.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections that read.
    pub connections: usize,
    /// Longest wait for older transactions when a snapshot is made.
    pub lock_timeout: Duration,
    /// Temporary slots have this name with something behind it.
    pub slot: String,
}

/// A table to copy, and how far that is.
pub struct CopyTarget {
    /// The collection.
    pub def: CollectionDef,
    copied: Mutex<Copied>,
    status: Arc<CopyStatus>,
    /// The table's rows are in another file now: the ranges that were read mean nothing any more.
    spoiled: AtomicBool,
}

/// What is in the copy log.
struct Copied {
    log: ChangeLog,
    synced: Instant,
    /// Consistent point and file of the last attempt.
    last: Option<(Lsn, u32)>,
    ranges: Vec<PageRange>,
    rows: u64,
    whole: bool,
}

impl CopyTarget {
    /// A copy that begins, with its log in `dir`.
    pub fn create(def: CollectionDef, dir: &Path, progress: &Progress) -> Result<CopyTarget, ReplicationError> {
        let log = ChangeLog::create(dir, Lsn::ZERO)?;
        Ok(CopyTarget::with(def, log, progress))
    }

    /// A copy that was interrupted.
    pub fn open(def: CollectionDef, dir: &Path, progress: &Progress) -> Result<CopyTarget, ReplicationError> {
        let target = CopyTarget::with(def, ChangeLog::open(dir)?, progress);
        let mut reader = target.reader();
        let mut copied = target.copied.lock();
        while let Some(record) = reader.next_record()? {
            match record {
                LogRecord::CopyStart { at, filenode } => copied.last = Some((at, filenode)),
                LogRecord::Copied(rows) => copied.rows += rows.len() as u64,
                LogRecord::RangeCopied(range) => copied.ranges.push(range),
                LogRecord::CopyEnd { .. } => copied.whole = true,
                _ => {}
            }
        }
        target.status.rows.store(copied.rows, Ordering::Relaxed);
        drop(copied);
        Ok(target)
    }

    fn with(def: CollectionDef, log: ChangeLog, progress: &Progress) -> CopyTarget {
        let status = progress.copy(def.id);
        status.begin();
        let copied = Copied { log, synced: Instant::now(), last: None, ranges: Vec::new(), rows: 0, whole: false };
        CopyTarget { def, copied: Mutex::new(copied), status, spoiled: AtomicBool::new(false) }
    }

    /// A reader of the copy log, from its start.
    pub fn reader(&self) -> LogReader {
        self.copied.lock().log.reader(changelog::START)
    }

    /// Is every row in the log?
    pub fn is_whole(&self) -> bool {
        self.copied.lock().whole
    }

    /// Must it begin anew, in another log?
    pub fn is_spoiled(&self) -> bool {
        self.spoiled.load(Ordering::Relaxed)
    }

    fn write(&self, rows: Vec<RowImage>) -> Result<(), ReplicationError> {
        if rows.is_empty() {
            return Ok(());
        }
        let copied = &mut *self.copied.lock();
        let count = rows.len() as u64;
        copied.log.append(&LogRecord::Copied(rows))?;
        crate::failpoint!("copy.batch_appended");
        copied.rows += count;
        if copied.synced.elapsed() >= SYNC_EVERY {
            copied.log.sync()?;
            copied.synced = Instant::now();
        }
        self.status.rows.store(copied.rows, Ordering::Relaxed);
        Ok(())
    }

    /// A new attempt, under a snapshot that shows what is covered by `at`.
    fn begin(&self, at: Lsn, filenode: u32) -> Result<(), ReplicationError> {
        let copied = &mut *self.copied.lock();
        if copied.last.is_some_and(|(_, before)| before != filenode) {
            self.spoiled.store(true, Ordering::Relaxed);
            let why = format!("{} was rewritten while it was copied", self.def.quoted_table());
            return Err(SourceError::Unavailable(why).into());
        }
        if copied.last.is_some() {
            tracing::info!(collection = self.def.name, %at, rows = copied.rows, "going on with the copy");
        }
        copied.last = Some((at, filenode));
        crate::failpoint!("copy.begun");
        Ok(copied.log.append(&LogRecord::CopyStart { at, filenode })?)
    }

    /// The ranges that are not in the log yet.
    fn ranges_left(&self, pages: usize) -> Vec<PageRange> {
        let copied = self.copied.lock();
        let read = |range: &PageRange| {
            // What lies behind an open range was written later: its rows are in the change log.
            let holds = |had: &PageRange| {
                had.first <= range.first && had.end.is_none_or(|had_end| range.end.is_some_and(|end| end <= had_end))
            };
            copied.ranges.iter().any(holds)
        };
        let pages = if self.def.partitioned { 1 } else { pages.max(1) };
        self.status.pages_total.store(pages as u64, Ordering::Relaxed);
        let (left, done): (Vec<_>, Vec<_>) = split(pages).into_iter().partition(|range| !read(range));
        let done = done.iter().map(|range| pages_of(range, pages)).sum();
        self.status.pages_done.store(done, Ordering::Relaxed);
        left
    }

    fn range_copied(&self, range: PageRange) -> Result<(), ReplicationError> {
        let copied = &mut *self.copied.lock();
        copied.log.append(&LogRecord::RangeCopied(range))?;
        // What is durable need not be read again after a crash.
        copied.log.sync()?;
        copied.synced = Instant::now();
        copied.ranges.push(range);
        let pages = pages_of(&range, self.status.pages_total.load(Ordering::Relaxed) as usize);
        self.status.pages_done.fetch_add(pages, Ordering::Relaxed);
        Ok(())
    }

    fn end(&self) -> Result<(), ReplicationError> {
        let copied = &mut *self.copied.lock();
        let at = copied.last.map_or(Lsn::ZERO, |(at, _)| at);
        copied.log.append(&LogRecord::CopyEnd { at, rows: copied.rows })?;
        copied.log.sync()?;
        copied.whole = true;
        crate::failpoint!("copy.ended");
        tracing::info!(collection = self.def.name, rows = copied.rows, "every row is copied");
        Ok(())
    }
}

fn split(pages: usize) -> Vec<PageRange> {
    let range = |first: usize| {
        let end = first + RANGE_PAGES;
        // The last range is open: the heap may have grown since it was measured.
        PageRange { first: first as u32, end: (end < pages).then_some(end as u32) }
    };
    (0..pages).step_by(RANGE_PAGES).map(range).collect()
}

fn pages_of(range: &PageRange, pages: usize) -> u64 {
    u64::from(range.end.unwrap_or(pages as u32).saturating_sub(range.first))
}

/// A consistent point and the snapshot that shows it, held by the connection that made them.
pub struct Exported {
    /// The connection. The snapshot can be taken up as long as it does nothing else.
    pub held_by: PgWalSource,
    /// The point and the snapshot's name.
    pub slot: NewSlot,
}

impl Exported {
    /// Makes one, by a slot that is gone as soon as it is used.
    async fn make(dsn: &Dsn, options: &Options) -> Result<Exported, ReplicationError> {
        let version = catalog::server_version(&dsn.connect().await?).await?;
        let mut wal = PgWalSource::connect(dsn).await?;
        let name: String = options.slot.chars().take(40).collect();
        // A session that was cut off may still hold an earlier one's name.
        let chance = RandomState::new().hash_one(0) as u32;
        let name = format!("{name}_copy_{chance:08x}");
        let slot = wal.create_slot(&name, SlotKind::Temporary, version, options.lock_timeout).await?;
        Ok(Exported { held_by: wal, slot })
    }
}

/// Copies what is left of the targets into their logs; tries again whatever may pass. `first` is a snapshot that exists
/// already. An error is for somebody else to judge: tables may have changed. `progress` is told why it does not go on.
pub async fn run(
    dsn: Dsn,
    options: Options,
    targets: Vec<Arc<CopyTarget>>,
    mut first: Option<Exported>,
    progress: Arc<Progress>,
) -> Result<(), ReplicationError> {
    let mut backoff = Backoff::default();
    let mut done = 0;
    loop {
        let error = match attempt(&dsn, &options, &targets, first.take(), &progress).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !error.is_transient() || targets.iter().any(|target| target.is_spoiled()) {
            return Err(error);
        }
        // Whatever got further was worth it.
        let ranges = targets.iter().map(|target| target.copied.lock().ranges.len()).sum();
        if ranges > std::mem::replace(&mut done, ranges) {
            backoff.reset();
        }
        let pause = backoff.next(error.policy());
        progress.set_copy_trouble(Some(error.to_string()));
        tracing::warn!(%error, ?pause, "the copy was interrupted; it goes on with what is left");
        tokio::time::sleep(pause).await;
    }
}

async fn attempt(
    dsn: &Dsn,
    options: &Options,
    targets: &[Arc<CopyTarget>],
    first: Option<Exported>,
    progress: &Progress,
) -> Result<(), ReplicationError> {
    let targets: Vec<_> = targets.iter().filter(|target| !target.is_whole()).cloned().collect();
    if targets.is_empty() {
        return Ok(());
    }
    let exported = match first {
        Some(exported) => exported,
        None => Exported::make(dsn, options).await?,
    };
    let (sessions, sizes) = open_sessions(dsn, &exported.slot.snapshot, &targets, options.connections).await?;
    // Every session has its snapshot: the slot of this one may go.
    drop(exported.held_by);
    progress.set_copy_trouble(None);
    let mut ranges = VecDeque::new();
    for (target, size) in targets.iter().zip(sizes) {
        target.begin(exported.slot.consistent_point, size.filenode)?;
        ranges.extend(target.ranges_left(size.pages).into_iter().map(|range| (target.clone(), range)));
    }
    let ranges = Mutex::new(ranges);
    let workers = sessions.iter().map(|session| work(session, &ranges));
    futures_util::future::try_join_all(workers).await?;
    crate::failpoint!("copy.before_end");
    targets.iter().try_for_each(|target| target.end())
}

/// Where a table's rows are, and how many pages that is.
struct Size {
    filenode: u32,
    pages: usize,
}

/// Connections that see the exported snapshot. They must exist before the snapshot's connection does anything else.
///
/// They lock the tables against changes of their definition: a table rewritten after the snapshot would look empty to it.
async fn open_sessions(
    dsn: &Dsn,
    snapshot: &str,
    targets: &[Arc<CopyTarget>],
    count: usize,
) -> Result<(Vec<Client>, Vec<Size>), ReplicationError> {
    let names: Vec<_> = targets.iter().map(|target| target.def.from_clause()).collect();
    let mut sessions = Vec::new();
    let mut sizes: Vec<Size> = Vec::new();
    for _ in 0..count {
        let client = dsn.connect().await?;
        let sql = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; {}; \
             LOCK TABLE {} IN ACCESS SHARE MODE",
            quote_literal(snapshot),
            without_limits(true),
            names.join(", ")
        );
        client.batch_execute(&sql).await.map_err(SourceError::from)?;
        if sizes.is_empty() {
            for target in targets {
                sizes.push(size_of(&client, target).await?);
            }
        }
        sessions.push(client);
        crate::failpoint!("copy.session_open");
    }
    Ok((sessions, sizes))
}

/// Looks at a locked table. By its OID: the name may be another table's by now.
async fn size_of(client: &Client, target: &CopyTarget) -> Result<Size, ReplicationError> {
    // The catalog as the snapshot shows it against the files as they are: a rewrite between the two would look empty.
    let sql = "SELECT coalesce(pg_relation_filenode(c.oid), 0), c.relfilenode,
                      (CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) / current_setting('block_size')::bigint
                            ELSE 0 END)::bigint
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE c.oid = $1::oid AND n.nspname = $2 AND c.relname = $3";
    let def = &target.def;
    let row = client.query_opt(sql, &[&def.oid, &def.schema, &def.table]).await.map_err(SourceError::from)?;
    let Some(row) = row else {
        target.spoiled.store(true, Ordering::Relaxed);
        return Err(SourceError::Unavailable(format!("{} is another table now", def.quoted_table())).into());
    };
    let (filenode, then, pages): (u32, u32, i64) = (row.get(0), row.get(1), row.get(2));
    if filenode != then {
        let why = format!("{} was rewritten while its copy began", def.quoted_table());
        return Err(SourceError::Unavailable(why).into());
    }
    let Some(table) = catalog::table(client, &def.schema, &def.table).await? else {
        return Err(SourceError::Unavailable(format!("{} is gone", def.quoted_table())).into());
    };
    let key = def.key.iter().map(|column| (&column.name, column.kind));
    let vectors = def.vectors.iter().map(|column| (&column.name, column.kind));
    let filters = def.filters.iter().map(|column| (&column.name, column.kind));
    let fits = |(name, kind): (&String, ColumnType)| {
        table.columns.iter().any(|column| column.name == *name && column.kind == Some(kind))
    };
    if !key.chain(vectors).chain(filters).all(fits) {
        // It is locked: what was looked at before it was is no more.
        target.spoiled.store(true, Ordering::Relaxed);
        return Err(SourceError::Unavailable(format!("{} changed before its copy began", def.quoted_table())).into());
    }
    Ok(Size { filenode, pages: pages as usize })
}

type Ranges = Mutex<VecDeque<(Arc<CopyTarget>, PageRange)>>;

async fn work(session: &Client, ranges: &Ranges) -> Result<(), ReplicationError> {
    loop {
        let next = ranges.lock().pop_front();
        let Some((target, range)) = next else { return Ok(()) };
        crate::failpoint!("copy.range_begun");
        copy_range(session, &target, range).await?;
        crate::failpoint!("copy.range_done");
        target.range_copied(range)?;
    }
}

fn statement(def: &CollectionDef, range: PageRange) -> (String, Vec<ColumnType>) {
    let key = def.key.iter().map(|column| (&column.name, column.kind));
    let vectors = def.vectors.iter().map(|column| (&column.name, column.kind));
    let filters = def.filters.iter().map(|column| (&column.name, column.kind));
    let (names, kinds): (Vec<_>, Vec<_>) = key.chain(vectors).chain(filters).unzip();
    let names: Vec<_> = names.into_iter().map(|name| quote_ident(name)).collect();
    let from = match (def.partitioned, range) {
        // A partitioned table has no pages of its own, and ctids of its parts are not unique.
        (true, _) => def.from_clause(),
        (false, PageRange { first, end: None }) => format!("{} WHERE ctid >= '({first},0)'", def.from_clause()),
        (false, PageRange { first, end: Some(end) }) => {
            format!("{} WHERE ctid >= '({first},0)' AND ctid < '({end},0)'", def.from_clause())
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

async fn copy_range(session: &Client, target: &CopyTarget, range: PageRange) -> Result<(), ReplicationError> {
    let (sql, kinds) = statement(&target.def, range);
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
