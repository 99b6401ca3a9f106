//! A source that never was: transactions that could have happened, decided by a seed.

use crate::random::Random;
use crate::twin::{Row, Step, Table, Twin};
use ruvector::model::{
    Cell, Change, CollectionDef, CollectionId, ColumnType, CommitLsn, FilterColumn, IndexKind, KeyColumn, LogRecord,
    Lsn, Metric, Op, RowImage, RowKey, TransactionHead, Value, VectorColumn, Version,
};

/// Dimensions of valid vectors, by collection and vector column.
const DIMENSIONS: [&[usize]; 2] = [&[8, 5], &[3]];
/// Changes in one record of the log.
const CHUNK: usize = 512;
/// Where the copy ends and the stream starts.
pub const COPIED_AT: Lsn = Lsn(1_000);

/// Makes one transaction after the other; a clone goes on in the same way.
#[derive(Clone)]
pub struct Stream {
    random: Random,
    /// How everything is after the last step.
    pub head: Twin,
}

/// A value from a few, so that equal ones meet, or any.
fn vector(random: &mut Random, dimensions: usize) -> Vec<f32> {
    match random.below(10) {
        0 => vec![0.25 * random.below(3) as f32; dimensions],
        1 => (0..dimensions).map(|_| random.below(2) as f32).collect(),
        _ => random.vector(dimensions),
    }
}

fn invalid(random: &mut Random, dimensions: usize) -> Cell {
    let mut vector = random.vector(dimensions);
    match random.below(4) {
        0 => vector.push(0.0),
        1 => vector[dimensions / 2] = f32::NAN,
        2 => vector[0] = f32::INFINITY,
        _ => return Cell::Invalid("a NULL element".into()),
    }
    Cell::Value(Value::Vector(vector.into()))
}

fn key(number: u64) -> RowKey {
    RowKey::encode(&[Value::Int(number as i64)]).expect("an integer can be a key")
}

/// Half of all on few keys, so that much happens to one row.
fn any_key(random: &mut Random) -> RowKey {
    key(if random.once_in(2) { random.below(24) } else { random.between(1_000, 2_500) })
}

fn group(random: &mut Random) -> Cell {
    if random.once_in(8) { Cell::Null } else { Cell::Value(Value::Int(random.below(20) as i64)) }
}

fn tag(random: &mut Random) -> Cell {
    Cell::Value(Value::Text((*random.pick(&["red", "green", "blue"])).into()))
}

fn new_row(random: &mut Random, collection: usize, key: RowKey) -> RowImage {
    let mut cell = |&dimensions: &usize| match random.below(20) {
        0 => Cell::Null,
        1 => invalid(random, dimensions),
        _ => Cell::Value(Value::Vector(vector(random, dimensions).into())),
    };
    let vectors = DIMENSIONS[collection].iter().map(&mut cell).collect();
    RowImage { key, vectors, filters: vec![group(random), tag(random)] }
}

fn changed_row(random: &mut Random, collection: usize, key: RowKey, before: &Row) -> RowImage {
    let mut cell = |(column, &dimensions): (usize, &usize)| {
        let stored = before.vectors[column].as_ref();
        // NULL is never sent as unchanged.
        let can_be_unchanged = stored.is_some() || before.dead[column];
        match random.below(20) {
            0 => Cell::Null,
            1 => invalid(random, dimensions),
            2..=12 if can_be_unchanged => Cell::Unchanged,
            13 | 14 => stored.map_or(Cell::Null, |vector| Cell::Value(Value::Vector(vector.clone().into()))),
            _ => Cell::Value(Value::Vector(vector(random, dimensions).into())),
        }
    };
    let vectors = DIMENSIONS[collection].iter().enumerate().map(&mut cell).collect();
    let tag = if random.once_in(2) { Cell::Unchanged } else { tag(random) };
    RowImage { key, vectors, filters: vec![group(random), tag] }
}

impl Stream {
    /// The stream of this seed, and the rows that were copied before it.
    pub fn new(seed: u64) -> (Stream, Vec<(CollectionDef, Vec<RowImage>)>) {
        let mut random = Random::new(seed);
        let mut tables = Vec::new();
        let mut copied = Vec::new();
        for (collection, def) in definitions(seed).into_iter().enumerate() {
            let mut table = Table::new(def.clone());
            let mut rows = Vec::new();
            for number in 0..300 {
                let row = new_row(&mut random, collection, key(number * 9));
                let version = Version { commit: CommitLsn(COPIED_AT.0), ordinal: 0 };
                table.change(version, &Op::Upsert { old_key: None, row: row.clone() });
                rows.push(row);
            }
            tables.push(table);
            copied.push((def, rows));
        }
        (Stream { random, head: Twin { tables, position: COPIED_AT } }, copied)
    }

    /// What happens next.
    pub fn next_step(&mut self) -> Step {
        // The next transaction's name may be the position of the progress before it.
        let start = self.head.position.0 + if self.random.once_in(2) { 0 } else { self.random.between(1, 500) };
        if self.random.once_in(10) {
            let upto = Lsn(start + self.random.between(1, 100));
            let step = Step { records: vec![LogRecord::Progress { upto }], end: upto };
            self.head.apply(&step);
            return step;
        }
        let commit = CommitLsn(start);
        let end = Lsn(start + self.random.between(8, 200));
        let count = match self.random.below(50) {
            0 => self.random.between(520, 700),
            1..=5 => self.random.between(20, 60),
            _ => self.random.between(1, 8),
        };
        let mut changes = Vec::new();
        for ordinal in 1..=count as u32 {
            let collection = usize::from(self.random.once_in(5));
            let op = self.operation(collection);
            let change = Change { collection: CollectionId(collection as u32), ordinal, op };
            self.head.change(commit, &change);
            changes.push(change);
        }
        self.head.position = end;
        let mut records = vec![LogRecord::Begin(TransactionHead { commit, commit_time: start as i64 })];
        records.extend(changes.chunks(CHUNK).map(|changes| LogRecord::Changes(changes.to_vec())));
        records.push(LogRecord::Commit { end });
        Step { records, end }
    }

    fn operation(&mut self, collection: usize) -> Op {
        let random = &mut self.random;
        if random.once_in(4_000) {
            return Op::Truncate;
        }
        let rows = &self.head.tables[collection].rows;
        let key = any_key(random);
        let Some(before) = rows.get(&key) else {
            return Op::Upsert { old_key: None, row: new_row(random, collection, key) };
        };
        match random.below(20) {
            0..=4 => Op::Delete { key },
            5..=7 => {
                let to = any_key(random);
                // Nearly always a free one; deferred constraints allow the other for a moment.
                let free = !rows.contains_key(&to) || random.once_in(10);
                let to = if free && to != key { to } else { key.clone() };
                let row = changed_row(random, collection, to, before);
                Op::Upsert { old_key: (row.key != key).then_some(key), row }
            }
            _ => Op::Upsert { old_key: None, row: changed_row(random, collection, key, before) },
        }
    }
}

/// Two collections: two vector columns, one of a length yet to be learned; and a small one. The second column is indexed as
/// the seed says.
fn definitions(seed: u64) -> Vec<CollectionDef> {
    let kind = |name: &str| IndexKind::ALL[if name == "title" { seed as usize % 3 } else { 0 }];
    let column = |name: &str, metric, dimensions| VectorColumn {
        name: name.into(),
        kind: ColumnType::Vector,
        metric,
        dimensions,
        m: 8,
        ef_construction: 48,
        encoding: Default::default(),
        index: kind(name),
        lists: None,
    };
    let def = |id, name: &str, vectors| CollectionDef {
        id: CollectionId(id),
        name: name.into(),
        schema: "public".into(),
        table: name.into(),
        oid: 100 + id,
        partitioned: false,
        key: vec![KeyColumn { name: "id".into(), kind: ColumnType::Int8 }],
        vectors,
        filters: vec![
            FilterColumn { name: "grp".into(), kind: ColumnType::Int4 },
            FilterColumn { name: "tag".into(), kind: ColumnType::Text },
        ],
    };
    vec![
        def(0, "docs", vec![column("body", Metric::L2, Some(8)), column("title", Metric::Cosine, None)]),
        def(1, "notes", vec![column("text", Metric::Ip, None)]),
    ]
}
