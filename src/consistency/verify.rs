//! Verification: index against source, row by row, also while both change.

use crate::consistency::blocking;
use crate::consistency::frontier::{Frontier, NoView, Serving};
use crate::engine::apply::Command;
use crate::engine::view::CollectionView;
use crate::model::{Cell, CollectionDef, Consistency, Lsn, RowKey, Value, Version};
use crate::source::SourceError;
use crate::source::connect::{Dsn, Pool, without_limits};
use crate::source::{catalog, rows};
use crate::storage::StorageError;
use crate::storage::record::put_cell;
use crate::telemetry::names;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_128;

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Difference")]
pub enum Kind {
    /// In the source, not here.
    Missing,
    /// Here, not in the source.
    Phantom,
    /// In both, with other content.
    Different,
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Mismatch {
    /// Its key, for people.
    pub key: String,
    /// How.
    pub kind: Kind,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "Verification")]
pub struct Report {
    /// The collection.
    pub collection: String,
    /// Rows in the source.
    pub source_rows: u64,
    /// Rows here.
    pub index_rows: u64,
    /// Rows whose vectors can be found, by vector column.
    pub indexed: Vec<u64>,
    /// Sum over rows of a hash of key, vectors and filter columns, in the source.
    pub source_checksum: String,
    /// The same here.
    pub index_checksum: String,
    /// Rows that differ and are not just in flight; at most 100 are listed.
    pub mismatches: Vec<Mismatch>,
    /// How many differ.
    pub mismatch_count: u64,
    /// Position up to which both were compared.
    pub at: Lsn,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The source cannot be asked.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Our own files cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The index does not come up to the source's position.
    #[error("the index does not catch up: {0}")]
    Behind(#[from] NoView),
}

/// The hash of a row, and here the version that gave it.
type Rows = HashMap<RowKey, (u128, Version)>;

/// Rounds in which rows that changed while they were compared are looked at again.
const ROUNDS: usize = 30;
/// Rounds a row must stay different without being written here, with growing pauses: about three seconds in all.
const SAME_ROUNDS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(100);
const CATCH_UP: Duration = Duration::from_secs(30);

/// Compares a collection with its table.
pub async fn verify(
    frontier: &Frontier,
    dsn: &Dsn,
    pool: &Pool,
    collection: &str,
) -> Result<Option<Report>, VerifyError> {
    Ok(compare(frontier, dsn, pool, collection).await?.map(|(report, _)| report))
}

/// Compares a collection with its table; also gives the keys of all rows that differ.
pub async fn compare(
    frontier: &Frontier,
    dsn: &Dsn,
    pool: &Pool,
    collection: &str,
) -> Result<Option<(Report, Vec<RowKey>)>, VerifyError> {
    let client = dsn.connect().await?;
    let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}", without_limits(true));
    client.batch_execute(&begin).await.map_err(SourceError::from)?;
    let (_, view) = frontier.view(&Consistency::default()).await?;
    let Some(def) = view.collections.get(collection).map(|found| found.def.clone()) else { return Ok(None) };
    let mut source = Rows::new();
    let scanned = rows::scan(&client, &def, |key, vectors, filters| {
        let hash = hash(&key, usable(&def, vectors), &filters);
        source.insert(key, (hash, Version::default()));
    });
    scanned.await?;
    client.batch_execute("COMMIT").await.map_err(SourceError::from)?;
    // Everything the snapshot shows ended at or before this.
    let mut at = catalog::reachable_lsn(&client).await?;
    drop(client);
    let (serving, view) = catch_up(frontier, at).await?;
    let Some(found) = view.collections.get(collection) else { return Ok(None) };
    let mut index = blocking(|| scan_index(&serving, found))?;
    let mut suspects = differing(&source, &index);
    let (mut mismatches, mut same) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        if suspects.is_empty() {
            break;
        }
        at = look_again(frontier, pool, &def, &suspects, &mut source, &mut index).await?;
        let still = differing_of(&source, &index, &suspects);
        // A row that was not written in between is not in flight here. It may be there: a commit is streamed before other
        // sessions see it, and how long before is up to the source's scheduler. So it has to stay different for a while.
        same = if still == suspects { same + 1 } else { 0 };
        if same == SAME_ROUNDS || round + 1 == ROUNDS {
            mismatches = still.into_keys().collect();
            break;
        }
        suspects = still;
        tokio::time::sleep(PAUSE * same).await;
    }
    // What was read again from the source is committed a moment before answers show it. Whoever hears that all is well may
    // ask at once.
    serving.engine.order(Command::Settle).await?;
    mismatches.sort();
    metrics::counter!(names::VERIFY_MISMATCHES).increment(mismatches.len() as u64);
    let report = report(collection, found, &source, &index, &mismatches, at);
    Ok(Some((report, mismatches)))
}

async fn catch_up(frontier: &Frontier, at: Lsn) -> Result<(Arc<Serving>, Arc<crate::engine::view::View>), VerifyError> {
    Ok(frontier.view(&Consistency { at_least: Some(at), timeout: Some(CATCH_UP), ..Consistency::default() }).await?)
}

fn scan_index(serving: &Serving, found: &CollectionView) -> Result<Rows, StorageError> {
    let mut index = Rows::new();
    serving.engine.each_row(found.def.id, |key, vectors, row| {
        let hash = hash(&key, vectors.iter().cloned().map(|vector| vector.map(Value::from)), &row.filters);
        index.insert(key, (hash, row.version));
    })?;
    Ok(index)
}

/// The suspects, with the version they had here.
type Suspects = HashMap<RowKey, Option<Version>>;

fn differing(source: &Rows, index: &Rows) -> Suspects {
    let keys = source.keys().chain(index.keys().filter(|key| !source.contains_key(*key)));
    suspects(source, index, keys)
}

fn differing_of(source: &Rows, index: &Rows, among: &Suspects) -> Suspects {
    suspects(source, index, among.keys())
}

fn suspects<'k>(source: &Rows, index: &Rows, keys: impl Iterator<Item = &'k RowKey>) -> Suspects {
    let hash = |rows: &Rows, key: &RowKey| rows.get(key).map(|(hash, _)| *hash);
    let differ = keys.filter(|key| hash(source, key) != hash(index, key));
    differ.map(|key| (key.clone(), index.get(key).map(|(_, version)| *version))).collect()
}

/// Reads the suspects again on both sides and puts what it finds into the maps.
async fn look_again(
    frontier: &Frontier,
    pool: &Pool,
    def: &CollectionDef,
    suspects: &Suspects,
    source: &mut Rows,
    index: &mut Rows,
) -> Result<Lsn, VerifyError> {
    let client = pool.get().await.map_err(SourceError::from)?;
    let fresh: HashMap<RowKey, u128> = rows::fetch_all(&client, def, &suspects.keys().cloned().collect::<Vec<_>>())
        .await?
        .into_iter()
        .map(|(key, vectors, filters)| {
            let hash = hash(&key, usable(def, vectors), &filters);
            (key, hash)
        })
        .collect();
    let at = catalog::reachable_lsn(&client).await?;
    drop(client);
    let (serving, view) = catch_up(frontier, at).await?;
    let now = match view.collections.get(&def.name) {
        Some(found) => blocking(|| scan_index(&serving, found))?,
        None => Rows::new(),
    };
    for key in suspects.keys() {
        let put = |rows: &mut Rows, value: Option<(u128, Version)>| match value {
            Some(value) => drop(rows.insert(key.clone(), value)),
            None => drop(rows.remove(key)),
        };
        put(source, fresh.get(key).map(|hash| (*hash, Version::default())));
        put(index, now.get(key).copied());
    }
    Ok(at)
}

/// The vectors of a source row that this service would index.
fn usable(def: &CollectionDef, vectors: Vec<Cell>) -> impl Iterator<Item = Option<Value>> {
    let usable = |(cell, column): (Cell, &crate::model::VectorColumn)| match cell {
        Cell::Value(value) if column.refuse_value(&value).is_none() => Some(value),
        _ => None,
    };
    vectors.into_iter().zip(&def.vectors).map(usable)
}

fn hash(key: &RowKey, vectors: impl Iterator<Item = Option<Value>>, filters: &[Cell]) -> u128 {
    let mut bytes = key.as_bytes().to_vec();
    vectors.for_each(|vector| put_cell(&mut bytes, &vector.map_or(Cell::Null, Cell::Value)));
    filters.iter().for_each(|cell| put_cell(&mut bytes, cell));
    xxh3_128(&bytes)
}

fn checksum(rows: &Rows) -> String {
    format!("{:032x}", rows.values().fold(0u128, |sum, (hash, _)| sum.wrapping_add(*hash)))
}

fn report(name: &str, found: &CollectionView, source: &Rows, index: &Rows, keys: &[RowKey], at: Lsn) -> Report {
    let kind = |key: &RowKey| match (source.contains_key(key), index.contains_key(key)) {
        (true, false) => Kind::Missing,
        (false, _) => Kind::Phantom,
        (true, true) => Kind::Different,
    };
    Report {
        collection: name.to_owned(),
        source_rows: source.len() as u64,
        index_rows: index.len() as u64,
        indexed: found.indexes.iter().map(|index| index.live as u64).collect(),
        source_checksum: checksum(source),
        index_checksum: checksum(index),
        mismatch_count: keys.len() as u64,
        mismatches: keys.iter().take(100).map(|key| Mismatch { key: key.to_string(), kind: kind(key) }).collect(),
        at,
    }
}
