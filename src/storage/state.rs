//! The transactional state of an epoch (redb): identity, collections, rows, dead letters and the applied position, all
//! moved in one transaction.

use crate::model::{Cell, CollectionDef, CollectionId, CommitLsn, Lsn, RowKey, Tier, Version};
use crate::storage::changelog::{self, LogPosition};
use crate::storage::files::{self, Mode};
use crate::storage::record::{BadRecord, Reader, get_cell, put_cell};
use crate::storage::steady::SteadyFile;
use crate::storage::{IoContext, Result, StorageError, damaged};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::HashMap;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

mod frozen;

pub use frozen::FrozenState;

const FORMAT: u32 = 1;
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const COLLECTIONS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("collections");
const DEAD: TableDefinition<'_, (u32, &[u8]), &[u8]> = TableDefinition::new("dead_letters");

/// Memory redb may keep pages in; its own default is a gigabyte. What is read again and again fits, the rest the system keeps.
pub const CACHE_BYTES: usize = 24 << 20;

/// The database in a file, and the switch by which the file is left as it is.
fn database(file: files::Handle) -> Result<(Database, Arc<AtomicBool>)> {
    let file = SteadyFile::new(file);
    let left = file.left();
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    Ok((builder.create_with_backend(file)?, left))
}

/// Opens a file that may be damaged. Every page of the last durable commit is compared with its checksum here: later on
/// redb does not look at them.
fn checked_database(file: files::Handle) -> Result<(Database, Arc<AtomicBool>)> {
    let (mut database, left) = database(file)?;
    if !database.check_integrity()? {
        tracing::warn!("the state was not closed in order; its last whole commit is taken");
    }
    Ok((database, left))
}

fn rows_table(collection: CollectionId) -> String {
    format!("rows:{}", collection.0)
}

/// What an epoch was derived from. Progress means nothing without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `system_identifier` of the cluster.
    pub system_id: String,
    /// Timeline when the slot was made.
    pub timeline: u32,
    /// Database name.
    pub database: String,
    /// The slot.
    pub slot: String,
    /// Where the slot and the copy start.
    pub consistent_point: Lsn,
}

/// How far the engine has applied the change log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Applied {
    /// Everything that ended at or before it is applied.
    pub lsn: Lsn,
    /// Commit time of the last transaction applied, microseconds since 2000-01-01 UTC; 0 when none was.
    pub commit_time: i64,
    /// Where to go on reading.
    pub position: LogPosition,
}

/// Is a collection fit to answer?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum CollectionState {
    /// The initial copy is not whole yet.
    Copying,
    /// It follows the source.
    Live,
    /// It stopped following; what it has is old.
    Paused {
        /// Why.
        reason: String,
    },
}

/// A sealed segment of one vector column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedRecord {
    /// Number of the segment, never used twice in an epoch.
    pub id: u64,
    /// Name of its file.
    pub file: String,
    /// Its tier and since when, where there are tiers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<(Tier, u32)>,
}

/// What is known of one vector column's index.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IndexRecord {
    /// Rows of the originals' file that count.
    pub nodes: u32,
    /// The sealed segments, in no order.
    pub sealed: Vec<SealedRecord>,
    /// Nodes before this one that no sealed segment holds are dead.
    pub first: u32,
    /// Number of the next segment.
    pub next_segment: u64,
}

/// A collection as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionRecord {
    /// Its definition.
    pub def: CollectionDef,
    /// Its state.
    #[serde(flatten)]
    pub state: CollectionState,
    /// Consistent point of its copy: earlier transactions are in the copied rows already.
    pub copied_at: Lsn,
    /// Where its changes begin in the change log. While it is copied they wait there.
    #[serde(default)]
    pub from: LogPosition,
    /// About how many rows the copy brings, for sizing.
    #[serde(default)]
    pub expected_rows: u64,
    /// What has no event in the stream when it changes: partitions, membership of the publication. As last compared.
    #[serde(default)]
    pub fingerprint: String,
    /// One per vector column.
    pub indexes: Vec<IndexRecord>,
}

/// A row as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRow {
    /// Who wrote it.
    pub version: Version,
    /// Per vector column the node that holds its vector; `None` when it has none.
    pub nodes: Vec<Option<u32>>,
    /// The filter columns.
    pub filters: Vec<Cell>,
    /// How many dead letters it has.
    pub dead: u8,
    /// One bit per column, vectors first, then filter columns: the value is not known here and is read again from the
    /// source. The highest bit: so is whether there is such a row.
    pub missing: u64,
}

const NO_NODE: u32 = u32::MAX;
/// In the byte of `dead`: a mask of missing columns follows.
const HAS_MISSING: u8 = 0x80;

impl StoredRow {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.filters.len() * 12);
        out.extend_from_slice(&self.version.commit.0.to_le_bytes());
        out.extend_from_slice(&self.version.ordinal.to_le_bytes());
        let has_missing = if self.missing == 0 { 0 } else { HAS_MISSING };
        out.extend_from_slice(&[self.dead | has_missing, self.nodes.len() as u8]);
        if self.missing != 0 {
            out.extend_from_slice(&self.missing.to_le_bytes());
        }
        for node in &self.nodes {
            out.extend_from_slice(&node.unwrap_or(NO_NODE).to_le_bytes());
        }
        self.filters.iter().for_each(|cell| put_cell(&mut out, cell));
        out
    }

    fn decode(bytes: &[u8]) -> std::result::Result<StoredRow, BadRecord> {
        let mut from = Reader(bytes);
        let version = Version { commit: CommitLsn(from.u64()?), ordinal: from.u32()? };
        let (dead, count) = (from.u8()?, from.u8()?);
        let missing = if dead & HAS_MISSING == 0 { 0 } else { from.u64()? };
        let mut nodes = Vec::new();
        for _ in 0..count {
            nodes.push(Some(from.u32()?).filter(|&node| node != NO_NODE));
        }
        let mut filters = Vec::new();
        while from.end().is_err() {
            filters.push(get_cell(&mut from)?);
        }
        Ok(StoredRow { version, nodes, filters, dead: dead & !HAS_MISSING, missing })
    }
}

/// A row that could not be indexed, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DeadLetter {
    /// The row's key, for people.
    pub key: String,
    /// The vector column.
    pub column: String,
    /// What is wrong with the value.
    pub reason: String,
    /// The transaction that wrote it.
    pub lsn: Lsn,
}

/// The transactional state of one epoch.
pub struct State {
    path: PathBuf,
    database: Database,
    /// There are commits that a crash would undo.
    undurable: AtomicBool,
    left: Arc<AtomicBool>,
}

impl Drop for State {
    /// redb makes everything durable when it is dropped. What was not made durable by us may name vectors that are not on
    /// disk: it is left to the change log.
    fn drop(&mut self) {
        if self.undurable.load(Ordering::Relaxed) {
            self.left.store(true, Ordering::Relaxed);
        }
    }
}

impl State {
    /// Makes the state of a new epoch.
    pub fn create(path: &Path, identity: &Identity) -> Result<State> {
        let state = State::new(path, database(files::open(path, Mode::Fresh)?)?);
        state.write(true, |batch| {
            batch.put_meta("format", &FORMAT)?;
            batch.put_meta("identity", identity)?;
            // Everything up to the consistent point is in the copies.
            let applied = Applied { lsn: identity.consistent_point, commit_time: 0, position: changelog::START };
            batch.put_meta("applied", &applied)
        })?;
        crate::failpoint!("state.created");
        Ok(state)
    }

    fn new(path: &Path, (database, left): (Database, Arc<AtomicBool>)) -> State {
        State { path: path.to_owned(), database, undurable: AtomicBool::new(false), left }
    }

    /// Opens an epoch's state after any kind of end.
    pub fn open(path: &Path) -> Result<State> {
        if !files::exists(path) {
            return Err(damaged(path, "is missing"));
        }
        let file = files::open(path, Mode::Write)?;
        if file.length().context("stat", path)? == 0 {
            return Err(damaged(path, "is empty"));
        }
        // What redb reads before it has compared the checksums can be anything, and some of it makes it panic.
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| checked_database(file)));
        let opened = opened.unwrap_or_else(|_| Err(damaged(path, "cannot be read as a database")))?;
        let state = State::new(path, opened);
        let found: u32 = state.meta("format")?;
        if found != FORMAT {
            return Err(StorageError::Format { path: path.to_owned(), found, expected: FORMAT });
        }
        crate::failpoint!("state.opened");
        Ok(state)
    }

    fn parse<T: DeserializeOwned>(&self, what: &str, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| damaged(&self.path, format!("{what}: {error}")))
    }

    fn meta<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let table = self.database.begin_read()?.open_table(META)?;
        let bytes = table.get(name)?.ok_or_else(|| damaged(&self.path, format!("has no {name}")))?;
        self.parse(name, bytes.value())
    }

    /// What the epoch was derived from.
    pub fn identity(&self) -> Result<Identity> {
        self.meta("identity")
    }

    /// Moves the epoch to the timeline of a promoted standby it can go on with.
    pub fn set_identity(&self, identity: &Identity) -> Result<()> {
        // The applier makes it durable: what it has committed may name vectors that are not on disk yet.
        self.write(false, |batch| batch.put_meta("identity", identity))
    }

    /// How far the change log is applied.
    pub fn applied(&self) -> Result<Applied> {
        self.meta("applied")
    }

    /// The last number that was given to a collection: none is given twice in an epoch.
    pub fn last_collection(&self) -> Result<Option<CollectionId>> {
        let table = self.database.begin_read()?.open_table(META)?;
        table.get("last_collection")?.map(|bytes| self.parse("last_collection", bytes.value())).transpose()
    }

    /// Every collection, by number.
    pub fn collections(&self) -> Result<Vec<CollectionRecord>> {
        let table = match self.database.begin_read()?.open_table(COLLECTIONS) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            table => table?,
        };
        table.iter()?.map(|entry| self.parse("collection", entry?.1.value())).collect()
    }

    /// Visits every row of a collection in key order.
    pub fn each_row(
        &self,
        collection: CollectionId,
        mut visit: impl FnMut(RowKey, StoredRow) -> Result<()>,
    ) -> Result<()> {
        let name = rows_table(collection);
        let table = match self.database.begin_read()?.open_table(TableDefinition::<&[u8], &[u8]>::new(&name)) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
            table => table?,
        };
        for entry in table.iter()? {
            let (key, row) = entry?;
            let row = StoredRow::decode(row.value()).map_err(|bad| damaged(&self.path, bad.to_string()))?;
            visit(RowKey::from_bytes(key.value()), row)?;
        }
        Ok(())
    }

    /// Visits the rows of a collection behind a key, in key order, until `visit` breaks off. The position applied in the
    /// state that was visited; `None` when there is no such collection any more.
    pub fn rows_after(
        &self,
        collection: CollectionId,
        after: Option<&RowKey>,
        visit: impl FnMut(RowKey, StoredRow) -> ControlFlow<()>,
    ) -> Result<Option<Lsn>> {
        self.rows_from(collection, after.map_or(Bound::Unbounded, Bound::Excluded), visit)
    }

    /// The same from a bound on.
    pub fn rows_from(
        &self,
        collection: CollectionId,
        from: Bound<&RowKey>,
        mut visit: impl FnMut(RowKey, StoredRow) -> ControlFlow<()>,
    ) -> Result<Option<Lsn>> {
        let transaction = self.database.begin_read()?;
        let known = match transaction.open_table(COLLECTIONS) {
            Err(redb::TableError::TableDoesNotExist(_)) => false,
            table => table?.get(collection.0)?.is_some(),
        };
        if !known {
            return Ok(None);
        }
        let meta = transaction.open_table(META)?;
        let applied = meta.get("applied")?.ok_or_else(|| damaged(&self.path, "has no applied"))?;
        let applied: Applied = self.parse("applied", applied.value())?;
        let name = rows_table(collection);
        let table = match transaction.open_table(TableDefinition::<&[u8], &[u8]>::new(&name)) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Some(applied.lsn)),
            table => table?,
        };
        let from = from.map(RowKey::as_bytes);
        for entry in table.range::<&[u8]>((from, Bound::Unbounded))? {
            let (key, row) = entry?;
            let row = StoredRow::decode(row.value()).map_err(|bad| damaged(&self.path, bad.to_string()))?;
            if visit(RowKey::from_bytes(key.value()), row).is_break() {
                break;
            }
        }
        Ok(Some(applied.lsn))
    }

    /// One row.
    pub fn row(&self, collection: CollectionId, key: &RowKey) -> Result<Option<StoredRow>> {
        let name = rows_table(collection);
        let table = match self.database.begin_read()?.open_table(TableDefinition::<&[u8], &[u8]>::new(&name)) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        let bytes = table.get(key.as_bytes())?;
        bytes.map(|row| StoredRow::decode(row.value())).transpose().map_err(|bad| damaged(&self.path, bad.to_string()))
    }

    /// The rows of a collection that could not be indexed, at most `limit`.
    pub fn dead_letters(&self, collection: CollectionId, limit: usize) -> Result<Vec<DeadLetter>> {
        let table = match self.database.begin_read()?.open_table(DEAD) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            table => table?,
        };
        let range = table.range((collection.0, &[][..])..(collection.0 + 1, &[][..]))?;
        let mut letters = Vec::new();
        for entry in range {
            if letters.len() >= limit {
                break;
            }
            letters.extend(self.parse::<Vec<DeadLetter>>("dead letter", entry?.1.value())?);
        }
        letters.truncate(limit);
        Ok(letters)
    }

    /// Runs `change` in one transaction. When not `durable`, a crash may undo it (and everything after the last durable
    /// one) as a whole; the change log then brings it back.
    pub fn write<T>(&self, durable: bool, change: impl FnOnce(&mut Batch<'_>) -> Result<T>) -> Result<T> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(if durable { Durability::Immediate } else { Durability::None })?;
        // Recovery after a kill then reads no more than the header.
        transaction.set_quick_repair(durable);
        let result = change(&mut Batch { path: &self.path, transaction: &transaction, rows: HashMap::new() })?;
        self.undurable.fetch_or(!durable, Ordering::Relaxed);
        if durable {
            crate::failpoint!("state.before_durable_commit");
            transaction.commit()?;
            crate::failpoint!("state.durably_committed");
        } else {
            crate::failpoint!("state.before_commit");
            transaction.commit()?;
            crate::failpoint!("state.committed");
        }
        self.undurable.fetch_and(!durable, Ordering::Relaxed);
        Ok(result)
    }
}

/// One open transaction on the state.
pub struct Batch<'t> {
    path: &'t Path,
    transaction: &'t WriteTransaction,
    rows: HashMap<CollectionId, Table<'t, &'static [u8], &'static [u8]>>,
}

impl<'t> Batch<'t> {
    fn put_meta(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value).expect("plain data");
        self.transaction.open_table(META)?.insert(name, &bytes[..])?;
        Ok(())
    }

    /// Moves the applied position.
    pub fn set_applied(&mut self, applied: &Applied) -> Result<()> {
        self.put_meta("applied", applied)
    }

    /// Numbers up to this one were given to collections.
    pub fn set_last_collection(&mut self, last: CollectionId) -> Result<()> {
        self.put_meta("last_collection", &last)
    }

    /// Removes a collection with all that is stored of it.
    pub fn remove_collection(&mut self, collection: CollectionId) -> Result<()> {
        self.remove_all_rows(collection)?;
        self.transaction.open_table(COLLECTIONS)?.remove(collection.0)?;
        Ok(())
    }

    /// Stores a collection's record.
    pub fn put_collection(&mut self, record: &CollectionRecord) -> Result<()> {
        let bytes = serde_json::to_vec(record).expect("plain data");
        self.transaction.open_table(COLLECTIONS)?.insert(record.def.id.0, &bytes[..])?;
        Ok(())
    }

    fn rows(&mut self, collection: CollectionId) -> Result<&mut Table<'t, &'static [u8], &'static [u8]>> {
        Ok(match self.rows.entry(collection) {
            std::collections::hash_map::Entry::Occupied(table) => table.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let name = rows_table(collection);
                place.insert(self.transaction.open_table(TableDefinition::new(&name))?)
            }
        })
    }

    /// One row, as this transaction sees it.
    pub fn row(&mut self, collection: CollectionId, key: &RowKey) -> Result<Option<StoredRow>> {
        let path = self.path;
        let bytes = self.rows(collection)?.get(key.as_bytes())?;
        bytes.map(|row| StoredRow::decode(row.value())).transpose().map_err(|bad| damaged(path, bad.to_string()))
    }

    /// Stores a row.
    pub fn put_row(&mut self, collection: CollectionId, key: &RowKey, row: &StoredRow) -> Result<()> {
        self.rows(collection)?.insert(key.as_bytes(), &row.encode()[..])?;
        Ok(())
    }

    /// Removes a row.
    pub fn remove_row(&mut self, collection: CollectionId, key: &RowKey) -> Result<()> {
        self.rows(collection)?.remove(key.as_bytes())?;
        Ok(())
    }

    /// Removes every row and dead letter of a collection.
    pub fn remove_all_rows(&mut self, collection: CollectionId) -> Result<()> {
        self.rows.remove(&collection);
        let name = rows_table(collection);
        self.transaction.delete_table(TableDefinition::<&[u8], &[u8]>::new(&name))?;
        let mut dead = self.transaction.open_table(DEAD)?;
        dead.retain_in((collection.0, &[][..])..(collection.0 + 1, &[][..]), |_, _| false)?;
        Ok(())
    }

    /// Sets what is wrong with a row; nothing when `letters` is empty. Returns how many letters it had before.
    pub fn set_dead_letters(
        &mut self,
        collection: CollectionId,
        key: &RowKey,
        letters: &[DeadLetter],
    ) -> Result<usize> {
        let mut table = self.transaction.open_table(DEAD)?;
        let place = (collection.0, key.as_bytes());
        let before = if letters.is_empty() {
            table.remove(place)?
        } else {
            let bytes = serde_json::to_vec(letters).expect("plain data");
            table.insert(place, &bytes[..])?
        };
        let before = before.map(|bytes| serde_json::from_slice::<Vec<DeadLetter>>(bytes.value()));
        Ok(before
            .transpose()
            .map_err(|error| damaged(self.path, format!("dead letter: {error}")))?
            .map_or(0, |v| v.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Value;

    fn identity() -> Identity {
        Identity {
            system_id: "7".into(),
            timeline: 1,
            database: "app".into(),
            slot: "ruvector".into(),
            consistent_point: Lsn(9),
        }
    }

    fn key(n: i64) -> RowKey {
        RowKey::encode(&[Value::Int(n)]).expect("key")
    }

    #[test]
    fn what_was_not_made_durable_is_not_when_the_state_is_dropped() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.redb");
        let state = State::create(&path, &identity()).expect("create");
        let at = |lsn| Applied { lsn: Lsn(lsn), ..Applied::default() };
        state.write(true, |batch| batch.set_applied(&at(1))).expect("commit");
        state.write(false, |batch| batch.set_applied(&at(2))).expect("commit");
        drop(state);
        let state = State::open(&path).expect("open");
        assert_eq!(state.applied().expect("applied"), at(1));
        state.write(false, |batch| batch.set_applied(&at(3))).expect("commit");
        state.write(true, |batch| batch.set_applied(&at(4))).expect("commit");
        drop(state);
        assert_eq!(State::open(&path).expect("open").applied().expect("applied"), at(4));
    }

    #[test]
    fn a_flipped_bit_is_found_when_the_state_is_opened() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.redb");
        let state = State::create(&path, &identity()).expect("create");
        let id = CollectionId(4);
        let row = |n: i64| StoredRow {
            version: Version { commit: CommitLsn(1), ordinal: 2 },
            nodes: vec![Some(n as u32)],
            filters: vec![Cell::Value(Value::Text(format!("{n}").repeat(20).into()))],
            missing: 0,
            dead: 0,
        };
        state.write(true, |batch| (0..100).try_for_each(|n| batch.put_row(id, &key(n), &row(n)))).expect("commit");
        drop(state);
        let good = std::fs::read(&path).expect("bytes");
        let (mut told, mut used) = (0, (0..good.len()).filter(|at| good[*at] != 0));
        while let Some(at) = used.nth(37) {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, bytes).expect("write");
            match State::open(&path) {
                Ok(state) => {
                    for n in 0..100 {
                        assert_eq!(state.row(id, &key(n)).expect("row"), Some(row(n)), "flip at {at}");
                    }
                }
                Err(error) => {
                    assert!(error.is_damage(), "flip at {at}: {error}");
                    told += 1;
                }
            }
        }
        assert!(told > 50, "{told} told");
    }

    #[test]
    fn rows_of_a_collection_that_is_gone_are_not_mistaken_for_none() {
        let dir = tempfile::tempdir().expect("dir");
        let state = State::create(&dir.path().join("state.redb"), &identity()).expect("create");
        let listed = || state.rows_after(CollectionId(4), None, |_, _| ControlFlow::Continue(())).expect("read");
        assert_eq!(listed(), None);
        state.write(true, |batch| batch.set_applied(&Applied::default())).expect("commit");
        assert_eq!(listed(), None);
    }

    #[test]
    fn a_transaction_is_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.redb");
        let state = State::create(&path, &identity()).expect("create");
        let id = CollectionId(4);
        let row = StoredRow {
            version: Version { commit: CommitLsn(1), ordinal: 2 },
            nodes: vec![Some(3), None],
            filters: vec![Cell::Null, Cell::Value(Value::Text("x".into()))],
            dead: 1,
            missing: 0,
        };
        let patchy = StoredRow { missing: 0b101, ..row.clone() };
        let applied = Applied { lsn: Lsn(11), commit_time: 5, position: LogPosition { file: 1, offset: 32 } };
        let letter = DeadLetter { key: "1".into(), column: "e".into(), reason: "NaN".into(), lsn: Lsn(1) };
        state
            .write(true, |batch| {
                batch.put_row(id, &key(1), &row)?;
                batch.put_row(id, &key(2), &patchy)?;
                assert_eq!(batch.set_dead_letters(id, &key(1), std::slice::from_ref(&letter))?, 0);
                batch.set_applied(&applied)
            })
            .expect("commit");
        let failed: Result<()> = state.write(true, |batch| {
            batch.remove_row(id, &key(1))?;
            batch.set_applied(&Applied::default())?;
            Err(damaged(&path, "on purpose"))
        });
        assert!(failed.is_err());
        drop(state);
        let state = State::open(&path).expect("open");
        assert_eq!(state.identity().expect("identity"), identity());
        assert_eq!(state.applied().expect("applied"), applied);
        assert_eq!(state.row(id, &key(1)).expect("row"), Some(row));
        assert_eq!(state.row(id, &key(2)).expect("row"), Some(patchy));
        assert_eq!(state.dead_letters(id, 10).expect("letters"), [letter]);
        state
            .write(false, |batch| {
                batch.remove_all_rows(id)?;
                assert_eq!(batch.row(id, &key(1))?, None);
                Ok(())
            })
            .expect("truncate");
        assert_eq!(state.row(id, &key(1)).expect("row"), None);
        assert!(state.dead_letters(id, 10).expect("letters").is_empty());
    }
}
