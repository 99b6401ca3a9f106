//! The writing side of one collection: a change becomes row and index mutations. Newer versions win, so a replay changes
//! nothing; updates that leave the vector alone do no graph work.

use crate::engine::index::IndexWriter;
use crate::engine::rows::NewRow;
use crate::engine::segment::Segment;
use crate::engine::tiers::Clock;
use crate::engine::view::CollectionView;
use crate::model::{Cell, CollectionId, CommitLsn, Lsn, MAX_COLUMNS, Op, RowImage, RowKey, Version};
use crate::storage::Result;
use crate::storage::changelog::LogPosition;
use crate::storage::state::{Batch, CollectionRecord, CollectionState, DeadLetter, State, StoredRow};
use std::path::Path;
use std::sync::Arc;

/// Why a value is a dead letter while it is read again from the source.
const MISSING: &str = "the stream does not carry the value and none is stored; it is read again from the source";
/// In [`StoredRow::missing`], where every column has a bit: all of them, and that the row itself is in doubt.
const ALL: u64 = u64::MAX;
const IN_DOUBT: u64 = 1 << MAX_COLUMNS;

/// A row as the source shows it: its vector columns and its filter columns; `None` when it shows none.
pub type Found = Option<(Vec<Cell>, Vec<Cell>)>;

/// A collection, as the applier changes it.
pub struct CollectionWriter {
    /// What is stored of it; the indexes' parts are brought up to date by [`CollectionWriter::record`].
    record: CollectionRecord,
    /// One per vector column.
    pub indexes: Vec<IndexWriter>,
    rows: u64,
    dead: u64,
    graph_writes: u64,
    changed: bool,
    /// Rows with values that must be read again from the source.
    missing: Vec<RowKey>,
}

impl CollectionWriter {
    /// Opens a collection as the state knows it and loads its rows.
    pub fn open(
        epoch: &Path,
        state: &State,
        record: CollectionRecord,
        segment_rows: usize,
        clock: &Clock,
    ) -> Result<CollectionWriter> {
        let id = record.def.id;
        let mut indexes = Vec::new();
        for (number, column) in record.def.vectors.iter().enumerate() {
            let stored = record.indexes[number].clone();
            indexes.push(IndexWriter::open(epoch, id, number, column.clone(), stored, segment_rows, clock)?);
        }
        let mut collection =
            CollectionWriter { record, indexes, rows: 0, dead: 0, graph_writes: 0, changed: true, missing: Vec::new() };
        state.each_row(id, |key, stored| {
            collection.rows += 1;
            collection.dead += u64::from(stored.dead);
            let row = NewRow { key: &key, version: stored.version, filters: &stored.filters };
            for (index, node) in collection.indexes.iter_mut().zip(stored.nodes) {
                if let Some(node) = node {
                    index.attach(node, row);
                }
            }
            if stored.missing != 0 {
                collection.missing.push(key);
            }
            Ok(())
        })?;
        for index in &mut collection.indexes {
            index.cover_holes()?;
        }
        Ok(collection)
    }

    /// Its number.
    pub fn id(&self) -> CollectionId {
        self.record.def.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.def.name
    }

    /// Its state.
    pub fn state(&self) -> &CollectionState {
        &self.record.state
    }

    /// Consistent point of its copy.
    pub fn copied_at(&self) -> Lsn {
        self.record.copied_at
    }

    /// Sets the consistent point of its copy.
    pub fn set_copied_at(&mut self, at: Lsn) {
        self.record.copied_at = at;
    }

    /// Where its changes begin in the change log.
    pub fn from(&self) -> LogPosition {
        self.record.from
    }

    /// Notes what has no event in the stream when it changes.
    pub fn set_fingerprint(&mut self, fingerprint: String) {
        self.record.fingerprint = fingerprint;
        self.changed = true;
    }

    /// The rows that came to have missing values since the last call.
    pub fn take_missing(&mut self) -> Vec<RowKey> {
        std::mem::take(&mut self.missing)
    }

    /// Changes its state.
    pub fn set_state(&mut self, state: CollectionState) {
        self.record.state = state;
        self.changed = true;
    }

    /// Notes that something a view shows has changed.
    pub fn touch(&mut self) {
        self.changed = true;
    }

    /// Applies one streamed change.
    pub fn apply(&mut self, batch: &mut Batch<'_>, version: Version, op: Op) -> Result<()> {
        if version.commit.is_covered_by(self.record.copied_at) {
            return Ok(());
        }
        match op {
            Op::Upsert { old_key, row } => self.upsert(batch, version, old_key, row),
            Op::Delete { key } => self.delete(batch, version, &key),
            Op::Truncate => self.truncate(batch),
            Op::Drift { reason } => {
                tracing::error!(collection = self.name(), reason, "the table no longer fits the collection");
                self.set_state(CollectionState::Paused { reason });
                Ok(())
            }
        }
    }

    /// Takes a row of the copy; copied rows come before any streamed change. Within one attempt keys are unique. When the
    /// copy was `resumed`, a row may have been read before, at another place in the heap.
    pub fn load(&mut self, batch: &mut Batch<'_>, version: Version, row: RowImage, resumed: bool) -> Result<()> {
        let stored = if resumed { batch.row(self.id(), &row.key)? } else { None };
        match stored {
            Some(stored) if stored.version >= version => Ok(()),
            stored => {
                let is_new = stored.is_none();
                self.put(batch, version, stored, row, is_new)
            }
        }
    }

    /// The row differs from the source's: all its values are read again. Until then it stays what it is; one that is not
    /// here gets its place, so that a delete that is streamed meanwhile is not lost.
    pub fn mark(&mut self, batch: &mut Batch<'_>, key: &RowKey, at: Lsn) -> Result<()> {
        let stored = batch.row(self.id(), key)?.map(|stored| StoredRow { missing: ALL, ..stored });
        let version = stored.as_ref().map_or(Version { commit: CommitLsn(at.0), ordinal: 0 }, |stored| stored.version);
        let is_new = stored.is_none();
        let vectors = vec![Cell::Unchanged; self.record.def.vectors.len()];
        let filters = vec![Cell::Unchanged; self.record.def.filters.len()];
        self.put(batch, version, stored, RowImage { key: key.clone(), vectors, filters }, is_new)?;
        match batch.row(self.id(), key)? {
            Some(stored) => {
                let missing = stored.missing | IN_DOUBT;
                batch.put_row(self.id(), key, &StoredRow { missing, ..stored })
            }
            None => Ok(()),
        }
    }

    /// Takes the missing values of a row from what the source showed. What was streamed meanwhile is newer and stays.
    pub fn fill(&mut self, batch: &mut Batch<'_>, key: &RowKey, found: Found) -> Result<()> {
        let Some(stored) = batch.row(self.id(), key)?.filter(|stored| stored.missing != 0) else { return Ok(()) };
        let Some((mut vectors, mut filters)) = found else {
            if stored.missing & IN_DOUBT != 0 {
                return self.forget(batch, key, &stored);
            }
            // Streamed, and not visible to others yet: asked for again.
            self.missing.push(key.clone());
            return Ok(());
        };
        for (column, cell) in vectors.iter_mut().chain(&mut filters).enumerate() {
            // A NULL has no node that could stay.
            let is_null = *cell == Cell::Null && stored.nodes.get(column).is_some_and(Option::is_none);
            if stored.missing & (1 << column) == 0 && !is_null {
                *cell = Cell::Unchanged;
            }
        }
        let image = RowImage { key: key.clone(), vectors, filters };
        self.put(batch, stored.version, Some(StoredRow { missing: 0, ..stored }), image, false)
    }

    fn upsert(
        &mut self,
        batch: &mut Batch<'_>,
        version: Version,
        old_key: Option<RowKey>,
        row: RowImage,
    ) -> Result<()> {
        let id = self.id();
        let target = batch.row(id, &row.key)?;
        if target.as_ref().is_some_and(|stored| stored.version >= version) {
            // A later attempt of the copy has read the row under its new key, an earlier one under the old key.
            return match old_key {
                Some(old_key) if old_key != row.key => self.delete(batch, version, &old_key),
                _ => Ok(()),
            };
        }
        let Some(old_key) = old_key.filter(|old_key| *old_key != row.key) else {
            let is_new = target.is_none();
            return self.put(batch, version, target, row, is_new);
        };
        // The row moved to a new key. Whoever still stands there is gone in the source.
        if let Some(stored) = target {
            self.forget(batch, &row.key, &stored)?;
        }
        let moved = batch.row(id, &old_key)?.filter(|stored| stored.version < version);
        if let Some(stored) = &moved {
            batch.remove_row(id, &old_key)?;
            self.rows -= 1;
            if stored.dead > 0 {
                let before = batch.set_dead_letters(id, &old_key, &[])?;
                self.dead -= before as u64;
            }
        }
        crate::failpoint!("collection.moved");
        self.put(batch, version, moved, row, true)
    }

    /// Writes a row over `stored`, which has been taken out of its old key's place if that was another. `is_new`: no row
    /// stands at the key.
    fn put(
        &mut self,
        batch: &mut Batch<'_>,
        version: Version,
        stored: Option<StoredRow>,
        image: RowImage,
        is_new: bool,
    ) -> Result<()> {
        let id = self.id();
        let unplaced = match &stored {
            Some(stored) if stored.dead > 0 => "still the value that could not be indexed",
            _ => "the update does not carry the value and none is stored",
        };
        let (old_nodes, old_filters, old_dead, old_missing) = match stored {
            Some(stored) => (stored.nodes, stored.filters, stored.dead, stored.missing),
            None => (vec![None; self.indexes.len()], Vec::new(), 0, ALL),
        };
        let letter = |column: &str, reason: String| DeadLetter {
            key: image.key.to_string(),
            column: column.to_owned(),
            reason,
            lsn: Lsn(version.commit.0),
        };
        let (mut letters, mut missing) = (Vec::new(), 0);
        let mut filters = Vec::with_capacity(image.filters.len());
        for (number, cell) in image.filters.into_iter().enumerate() {
            let bit = 1 << (self.indexes.len() + number);
            filters.push(match cell {
                Cell::Unchanged if old_missing & bit != 0 => {
                    missing |= bit;
                    letters.push(letter(&self.record.def.filters[number].name, MISSING.into()));
                    old_filters.get(number).cloned().unwrap_or(Cell::Null)
                }
                Cell::Unchanged => old_filters.get(number).cloned().unwrap_or(Cell::Null),
                cell => cell,
            });
        }
        let row = NewRow { key: &image.key, version, filters: &filters };
        let mut nodes = Vec::with_capacity(self.indexes.len());
        for (number, cell) in image.vectors.into_iter().enumerate() {
            let old = old_nodes.get(number).copied().flatten();
            let index = &mut self.indexes[number];
            let is_missing = cell == Cell::Unchanged && old_missing & (1 << number) != 0;
            let (node, reason) = place(index, old, cell, unplaced, row, &mut self.graph_writes)?;
            let reason = if is_missing { Some(MISSING.into()) } else { reason };
            letters.extend(reason.map(|reason| letter(&index.column.name, reason)));
            missing |= u64::from(is_missing) << number;
            nodes.push(node);
        }
        if old_dead > 0 || !letters.is_empty() {
            let before = batch.set_dead_letters(id, &image.key, &letters)?;
            self.dead = self.dead + letters.len() as u64 - before as u64;
        }
        self.rows += u64::from(is_new);
        batch.put_row(id, &image.key, &StoredRow { version, nodes, filters, dead: letters.len() as u8, missing })?;
        if missing != 0 {
            self.missing.push(image.key);
        }
        self.changed = true;
        Ok(())
    }

    fn delete(&mut self, batch: &mut Batch<'_>, version: Version, key: &RowKey) -> Result<()> {
        match batch.row(self.id(), key)? {
            Some(stored) if stored.version < version => self.forget(batch, key, &stored),
            _ => Ok(()),
        }
    }

    fn forget(&mut self, batch: &mut Batch<'_>, key: &RowKey, stored: &StoredRow) -> Result<()> {
        for (index, node) in self.indexes.iter_mut().zip(&stored.nodes) {
            if let Some(node) = node {
                index.detach(*node);
            }
        }
        if stored.dead > 0 {
            self.dead -= batch.set_dead_letters(self.id(), key, &[])? as u64;
        }
        batch.remove_row(self.id(), key)?;
        self.rows -= 1;
        self.changed = true;
        Ok(())
    }

    fn truncate(&mut self, batch: &mut Batch<'_>) -> Result<()> {
        batch.remove_all_rows(self.id())?;
        crate::failpoint!("collection.truncated");
        self.indexes.iter_mut().for_each(IndexWriter::detach_all);
        (self.rows, self.dead, self.changed) = (0, 0, true);
        Ok(())
    }

    /// Hands what it wrote to the operating system, so that readers of the next view find it.
    pub fn flush(&mut self) -> Result<()> {
        self.indexes.iter_mut().try_for_each(IndexWriter::flush)
    }

    /// Makes its vectors durable; must come before the transaction that counts them.
    pub fn sync(&mut self) -> Result<()> {
        self.indexes.iter_mut().try_for_each(IndexWriter::sync)
    }

    /// How many nodes the next segments take.
    pub fn use_segments_of(&mut self, rows: usize) {
        self.indexes.iter_mut().for_each(|index| index.set_segment_rows(rows));
    }

    /// Gives the linked segments that are chosen their files; they grow no more.
    pub fn seal(&mut self, choose: impl Fn(&Segment) -> bool) -> Result<()> {
        for index in &mut self.indexes {
            // In the order of their nodes: a restart links again what lies behind the last sealed one.
            for segment in index.unsealed() {
                if !segment.is_linked() || !choose(&segment) {
                    break;
                }
                segment.save(&index.segment_path(segment.id))?;
                index.sealed(segment);
                crate::failpoint!("apply.segment_sealed");
            }
        }
        Ok(())
    }

    /// Removes the files of its indexes; no record names them any more.
    pub fn remove_files(&self) {
        self.indexes.iter().for_each(IndexWriter::remove_files);
    }

    /// What is to be stored of the collection, if anything changed since the last call.
    pub fn record(&mut self) -> &CollectionRecord {
        for (number, index) in self.indexes.iter().enumerate() {
            self.record.def.vectors[number].dimensions = index.column.dimensions;
            self.record.indexes[number] = index.record();
        }
        &self.record
    }

    /// Did anything change since the last view?
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What queries see from now on.
    pub fn view(&mut self) -> CollectionView {
        let def = Arc::new(self.record().def.clone());
        CollectionView {
            def,
            state: self.record.state.clone(),
            copied_at: self.record.copied_at,
            rows: self.rows,
            dead_letters: self.dead,
            graph_writes: self.graph_writes,
            indexes: self.indexes.iter().map(|index| Arc::new(index.view())).collect(),
        }
    }
}

/// Where the row's vector of one column is afterwards, and why nowhere if it should be somewhere.
fn place(
    index: &mut IndexWriter,
    old: Option<u32>,
    cell: Cell,
    unplaced: &str,
    row: NewRow<'_>,
    graph_writes: &mut u64,
) -> Result<(Option<u32>, Option<String>)> {
    let mut reason = None;
    let node = match cell {
        Cell::Unchanged if old.is_none() => {
            reason = Some(unplaced.to_owned());
            None
        }
        Cell::Unchanged => old,
        Cell::Null => None,
        Cell::Invalid(why) => {
            reason = Some(why.into_string());
            None
        }
        Cell::Value(value) => {
            reason = index.column.refuse_value(&value);
            match old {
                _ if reason.is_some() => None,
                Some(node) if index.holds(node, &value)? => Some(node),
                _ => {
                    *graph_writes += 1;
                    Some(index.add(&value, row)?)
                }
            }
        }
    };
    if let Some(node) = node.filter(|_| node == old) {
        index.attach(node, row);
    } else if let Some(old) = old {
        index.detach(old);
    }
    Ok((node, reason))
}
