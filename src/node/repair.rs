//! Brings in what the stream did not: rows whose values are missing here are read again by key; a collection is compared
//! with its table where something happened to it that has no event.

use crate::consistency::frontier::Frontier;
use crate::consistency::verify;
use crate::engine::Engine;
use crate::engine::apply::Command;
use crate::model::{CollectionDef, CollectionId, RowKey};
use crate::source::connect::{Dsn, Pool};
use crate::source::policy::Backoff;
use crate::source::{SourceError, catalog, rows};
use crate::storage::state::CollectionState;
use crate::telemetry::names;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often somebody looks whether rows are missing.
const LOOK: Duration = Duration::from_millis(100);
/// Rows asked for at once.
const ROWS: usize = 500;
/// A row the source does not show is asked for so often, with this pause: its commit may be streamed before other sessions
/// see it.
const TIMES: usize = 8;
const PAUSE: Duration = Duration::from_millis(400);
/// More rows than this share that differ are copied, not read one by one.
const MOST: u64 = 5;
const ALWAYS: u64 = 10_000;

/// Reads missing rows again until stopped.
pub async fn refetch(frontier: Arc<Frontier>, dsn: Dsn, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    while !stop.is_cancelled() {
        let pause = match refetch_some(&frontier, &dsn).await {
            Ok(()) => {
                backoff.reset();
                LOOK
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read missing rows; trying again");
                backoff.next(error.policy())
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn refetch_some(frontier: &Frontier, dsn: &Dsn) -> Result<(), SourceError> {
    let Some(serving) = frontier.serving() else { return Ok(()) };
    let mut failed = None;
    for (id, keys) in serving.engine.take_wanted(ROWS) {
        // What is gone meanwhile needs no rows, and what stands still is copied when it goes on.
        let Ok(Some(record)) = serving.engine.record(id) else { continue };
        if matches!(record.state, CollectionState::Paused { .. }) {
            continue;
        }
        match fetch(dsn, &record.def, &keys).await {
            Ok((rows, at)) => {
                // Those that it does not show are asked for again and again, and are nothing that was read.
                let shown = rows.iter().filter(|(_, found)| found.is_some()).count();
                if shown > 0 {
                    let collection = record.def.name;
                    tracing::info!(collection, rows = shown, "read rows again that were missing here");
                }
                metrics::counter!(names::ROWS_REFETCHED).increment(shown as u64);
                let _ = serving.engine.order(Command::Fill(id, rows, at)).await;
            }
            Err(error) => {
                serving.engine.want(id, keys);
                failed = Some(error);
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

type Fetched = (Vec<(RowKey, crate::engine::collection::Found)>, crate::model::Lsn);

async fn fetch(dsn: &Dsn, def: &CollectionDef, keys: &[RowKey]) -> Result<Fetched, SourceError> {
    let client = dsn.connect().await?;
    let mut found = HashMap::new();
    let mut left: HashSet<RowKey> = keys.iter().cloned().collect();
    for time in 0..TIMES {
        if time > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let asked: Vec<_> = left.iter().cloned().collect();
        for (key, vectors, filters) in rows::fetch_all(&client, def, &asked).await? {
            left.remove(&key);
            found.insert(key, (vectors, filters));
        }
        if left.is_empty() {
            break;
        }
    }
    // Everything these rows show ended at or before this.
    let at = catalog::reachable_lsn(&client).await?;
    Ok((keys.iter().map(|key| (key.clone(), found.remove(key))).collect(), at))
}

/// Compares a collection with its table and has the rows that differ read again; all of it, when they are too many.
pub async fn compare(
    frontier: Arc<Frontier>,
    engine: Arc<Engine>,
    dsn: Dsn,
    pool: Pool,
    collection: (CollectionId, String),
    fingerprint: String,
) {
    let (id, name) = collection;
    let (report, keys) = match verify::compare(&frontier, &dsn, &pool, &name).await {
        Ok(Some(compared)) => compared,
        Ok(None) => return,
        // The fingerprint stays what it was, so it is tried again.
        Err(error) => return tracing::warn!(collection = name, %error, "cannot compare with the source"),
    };
    if keys.len() as u64 > ALWAYS.max(report.source_rows / MOST) {
        tracing::warn!(
            collection = name,
            differ = keys.len(),
            "much of it differs from the source; it is copied again"
        );
        // The copy brings its own fingerprint; this one stays different until then.
        return frontier.ask_rebuild(&name);
    }
    if !keys.is_empty() {
        tracing::warn!(collection = name, differ = keys.len(), "rows differ from the source; they are read again");
        metrics::counter!(names::ROWS_REPAIRED).increment(keys.len() as u64);
        if engine.order(Command::Mark(id, keys)).await.is_err() {
            return;
        }
    }
    let _ = engine.order(Command::Fingerprint(id, fingerprint)).await;
}
