//! The naive twin of the engine: maps of rows, searched by comparing with every one.

use ruvector::model::{
    Cell, Change, CollectionDef, CommitLsn, Filter, LogRecord, Lsn, Op, RowImage, RowKey, Value, Version,
};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A row as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub version: Version,
    pub vectors: Vec<Option<Vec<f32>>>,
    /// By vector column: the source has a value that cannot be indexed.
    pub dead: Vec<bool>,
    pub filters: Vec<Cell>,
}

/// A collection as it should be.
#[derive(Clone)]
pub struct Table {
    pub def: CollectionDef,
    pub dimensions: Vec<Option<usize>>,
    pub rows: BTreeMap<RowKey, Row>,
}

/// All collections as they should be at one position.
#[derive(Clone)]
pub struct Twin {
    pub tables: Vec<Table>,
    pub position: Lsn,
}

/// What comes into the log at once, and the position afterwards.
#[derive(Debug, Clone)]
pub struct Step {
    pub records: Vec<LogRecord>,
    pub end: Lsn,
}

impl Twin {
    pub fn apply(&mut self, step: &Step) {
        let mut commit = CommitLsn::default();
        for record in &step.records {
            match record {
                LogRecord::Begin(head) => commit = head.commit,
                LogRecord::Changes(changes) => changes.iter().for_each(|change| self.change(commit, change)),
                _ => {}
            }
        }
        self.position = step.end;
    }

    pub fn change(&mut self, commit: CommitLsn, change: &Change) {
        let table = self.tables.iter_mut().find(|table| table.def.id == change.collection);
        table.expect("a known collection").change(change.version(commit), &change.op);
    }
}

impl Table {
    pub fn new(def: CollectionDef) -> Table {
        let dimensions = def.vectors.iter().map(|column| column.dimensions).collect();
        Table { def, dimensions, rows: BTreeMap::new() }
    }

    pub fn change(&mut self, version: Version, op: &Op) {
        match op {
            Op::Upsert { old_key, row } => {
                let stood = self.rows.remove(&row.key);
                let before = match old_key {
                    Some(old_key) => self.rows.remove(old_key),
                    None => stood,
                };
                let row_after = self.image(version, before, row);
                self.rows.insert(row.key.clone(), row_after);
            }
            Op::Delete { key } => {
                self.rows.remove(key);
            }
            Op::Truncate => self.rows.clear(),
            Op::Drift { .. } => unreachable!("not made here"),
        }
    }

    fn image(&mut self, version: Version, before: Option<Row>, image: &RowImage) -> Row {
        let mut row = Row { version, vectors: Vec::new(), dead: Vec::new(), filters: Vec::new() };
        for (column, cell) in image.vectors.iter().enumerate() {
            let old = before.as_ref().and_then(|row| row.vectors[column].clone());
            let (vector, dead) = match cell {
                Cell::Null => (None, false),
                Cell::Unchanged => (old.clone(), old.is_none()),
                Cell::Value(Value::Vector(vector)) if self.takes(column, vector) => (Some(vector.to_vec()), false),
                _ => (None, true),
            };
            row.vectors.push(vector);
            row.dead.push(dead);
        }
        for (column, cell) in image.filters.iter().enumerate() {
            let old = before.as_ref().map_or(Cell::Null, |row| row.filters[column].clone());
            row.filters.push(if *cell == Cell::Unchanged { old } else { cell.clone() });
        }
        row
    }

    /// Can it be indexed? The first one that can decides the length of all.
    fn takes(&mut self, column: usize, vector: &[f32]) -> bool {
        let fits = self.dimensions[column].is_none_or(|wanted| wanted == vector.len());
        let takes = fits && !vector.is_empty() && vector.iter().all(|element| element.is_finite());
        if takes {
            self.dimensions[column] = Some(vector.len());
        }
        takes
    }

    pub fn dead(&self) -> u64 {
        self.rows.values().flat_map(|row| &row.dead).filter(|dead| **dead).count() as u64
    }

    pub fn live(&self, column: usize) -> usize {
        self.rows.values().filter(|row| row.vectors[column].is_some()).count()
    }

    /// Every row that may be returned, nearest first, ties by key.
    pub fn search(
        &self,
        column: usize,
        query: &[f32],
        filter: Option<&Filter>,
        except: Option<&RowKey>,
    ) -> Vec<(RowKey, f64)> {
        let metric = self.def.vectors[column].metric;
        let mut found: Vec<_> = self
            .rows
            .iter()
            .filter(|(key, row)| except != Some(key) && filter.is_none_or(|filter| filter.passes(&row.filters)))
            .filter_map(|(key, row)| Some((key.clone(), metric.distance(query, row.vectors[column].as_ref()?))))
            .collect();
        found.sort_by(|a, b| nearer(a.1, b.1).then_with(|| a.0.cmp(&b.0)));
        found
    }
}

/// Undefined distances come last.
fn nearer(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Are these the same distance, as far as f32 can say?
pub fn same(a: f64, b: f64) -> bool {
    (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-5
}

/// What is wrong with an exact answer of at most `limit` rows. Rows at equal distances may stand for each other where
/// the limit cuts between them.
pub fn differs(found: &[(RowKey, f64)], wanted: &[(RowKey, f64)], limit: usize) -> Option<String> {
    if found.len() != wanted.len().min(limit) {
        return Some(format!("{} rows instead of {}", found.len(), wanted.len().min(limit)));
    }
    let wanted_by_key: BTreeMap<_, _> = wanted.iter().map(|(key, distance)| (key, *distance)).collect();
    let mut seen = std::collections::BTreeSet::new();
    for (at, ((key, distance), (_, expected))) in found.iter().zip(wanted).enumerate() {
        if !same(*distance, *expected) {
            return Some(format!("place {at}: distance {distance} instead of {expected}"));
        }
        match wanted_by_key.get(key) {
            None => return Some(format!("place {at}: row {key} does not belong here")),
            Some(own) if !same(*distance, *own) => return Some(format!("row {key}: {distance} instead of {own}")),
            Some(_) => {}
        }
        if !seen.insert(key) {
            return Some(format!("row {key} comes twice"));
        }
    }
    None
}
