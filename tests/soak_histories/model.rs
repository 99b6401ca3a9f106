//! What the tables contain, kept by those who write them: an independent account, never read from source or index.

use super::support::soak::Random;
use std::collections::{BTreeMap, BTreeSet};

/// The tables of this suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// 768 dimensions, always out of line.
    Wide,
    /// 64 dimensions, inline; a key of two columns.
    Small,
    /// 8 dimensions, partitioned by id.
    Parts,
    /// Groups of [`GROUP`] rows that every transaction changes together.
    Ledger,
}

/// All of them.
pub const TABLES: [Table; 4] = [Table::Wide, Table::Small, Table::Parts, Table::Ledger];
/// Rows of a ledger's group, always.
pub const GROUP: usize = 5;
/// Groups of the ledger.
pub const GROUPS: i64 = 9;
/// Ids are below this, but for the ledger's.
pub const IDS: u64 = 300;

impl Table {
    /// Its name, also that of its collection.
    pub fn name(self) -> &'static str {
        match self {
            Table::Wide => "wide",
            Table::Small => "small",
            Table::Parts => "parts",
            Table::Ledger => "ledger",
        }
    }

    /// Of its vectors.
    pub fn dimensions(self) -> usize {
        match self {
            Table::Wide => 768,
            Table::Small => 64,
            Table::Parts => 8,
            Table::Ledger => 4,
        }
    }
}

/// What a vector column holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Embedding {
    Null,
    Vector(Vec<f32>),
    /// Nothing that can be indexed: the array's text.
    Bad(String),
}

impl Embedding {
    /// A new one, of the right kind mostly.
    pub fn any(random: &mut Random, table: Table) -> Embedding {
        match random.below(16) {
            0 => Embedding::Null,
            1 => Embedding::Bad(
                (*random.pick(&["{}", "{1,2,3}", "{NaN,1,2,3,4,5,6,7}", "{1,NULL}", "{{1,2},{3,4}}", "{Infinity}"]))
                    .to_owned(),
            ),
            _ => Embedding::vector(random, table),
        }
    }

    /// One that nobody else has.
    pub fn vector(random: &mut Random, table: Table) -> Embedding {
        let element = |_| (random.below(200_001) as f32 - 100_000.0) / 1000.0;
        Embedding::Vector((0..table.dimensions()).map(element).collect())
    }

    /// As an array of PostgreSQL, without quotes; none for NULL.
    pub fn text(&self) -> Option<String> {
        match self {
            Embedding::Null => None,
            Embedding::Vector(vector) => {
                let elements: Vec<_> = vector.iter().map(|element| format!("{element}")).collect();
                Some(format!("{{{}}}", elements.join(",")))
            }
            Embedding::Bad(text) => Some(text.clone()),
        }
    }

    /// As SQL.
    pub fn sql(&self) -> String {
        self.text().map_or("NULL".into(), |text| format!("'{text}'"))
    }
}

/// A row without its key.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub tag: i64,
    pub price: i64,
    pub embedding: Embedding,
}

/// A row's place.
pub type Key = (Table, i64);
/// What is where.
pub type Rows = BTreeMap<Key, Row>;

/// A transaction under way.
#[derive(Default, Clone)]
pub struct Pending {
    /// New rows and removed ones.
    pub changes: BTreeMap<Key, Option<Row>>,
    /// Before each savepoint.
    pub savepoints: Vec<BTreeMap<Key, Option<Row>>>,
    /// Rows that are locked, also by what was rolled back to a savepoint.
    pub touched: BTreeSet<Key>,
    /// Tables are locked: nobody else can do anything until it ends.
    pub exclusive: bool,
    /// So many operations so far.
    pub statements: usize,
}

impl Pending {
    pub fn put(&mut self, key: Key, row: Row) {
        self.touched.insert(key);
        self.changes.insert(key, Some(row));
    }

    pub fn remove(&mut self, key: Key) {
        self.touched.insert(key);
        self.changes.insert(key, None);
    }

    /// What is there for those inside.
    pub fn get<'r>(&'r self, committed: &'r Rows, key: Key) -> Option<&'r Row> {
        match self.changes.get(&key) {
            Some(change) => change.as_ref(),
            None => committed.get(&key),
        }
    }

    /// The ids that are there for those inside.
    pub fn ids(&self, committed: &Rows, table: Table) -> Vec<i64> {
        let before = committed.range((table, i64::MIN)..=(table, i64::MAX)).map(|(key, _)| key.1);
        let mut ids: BTreeSet<i64> = before.collect();
        for ((_, id), change) in self.changes.range((table, i64::MIN)..=(table, i64::MAX)) {
            match change {
                Some(_) => ids.insert(*id),
                None => ids.remove(id),
            };
        }
        ids.into_iter().collect()
    }

    /// It is committed.
    pub fn apply(self, committed: &mut Rows) {
        for (key, change) in self.changes {
            match change {
                Some(row) => committed.insert(key, row),
                None => committed.remove(&key),
            };
        }
    }
}
