//! Rows against a plain vector of them, masks against `Filter::passes` row by row.

use super::*;
use crate::model::Comparison;
use std::hash::{BuildHasher, RandomState};

/// SplitMix64. A failure prints the seed; `RUVECTOR_TEST_SEED` sets it.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let given = std::env::var("RUVECTOR_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0));
        println!("RUVECTOR_TEST_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// A value of the column's type, of few different ones, so that comparisons meet equal ones and the edges.
    fn value(&mut self, column: usize) -> Value {
        match column {
            0 => Value::Bool(self.chance(2)),
            1 => Value::Int(self.of(&[i64::MIN, -1, 0, 1, 2, 1 << 53, (1 << 53) + 1, i64::MAX])),
            2 => Value::Float(self.of(&[f64::NAN, f64::NEG_INFINITY, -0.0, 0.0, 1.0, 1.5, 9_007_199_254_740_992.0])),
            3 => Value::Text(self.of(&["", "a", "A", "ab", "b", "ä", "a\0"]).into()),
            4 => Value::Uuid([self.below(3) as u8; 16]),
            5 => Value::Date(self.of(&[i32::MIN, -1, 0, 1, i32::MAX])),
            6 => Value::Timestamp(self.of(&[i64::MIN, -1, 0, 1, i64::MAX])),
            7 => Value::Text(format!("text {}", self.below(5_000)).into()),
            8 => Value::Vector([1.0].into()),
            // Of any type.
            _ => {
                let other = self.below(MIXED);
                self.value(other)
            }
        }
    }

    fn cell(&mut self, column: usize) -> Cell {
        match self.below(8) {
            0 => Cell::Null,
            1 => Cell::Invalid("no date".into()),
            _ => Cell::Value(self.value(column)),
        }
    }

    /// Of any type, or NULL.
    fn constant(&mut self, column: usize) -> Option<Value> {
        let column = if self.chance(6) { MIXED } else { column };
        (!self.chance(12)).then(|| self.value(column))
    }

    fn filter(&mut self, depth: usize) -> Filter {
        let column = self.below(COLUMNS + 1);
        let parts = |random: &mut Random| (0..random.below(4)).map(|_| random.filter(depth - 1)).collect();
        match self.below(if depth == 0 { 3 } else { 6 }) {
            0 => {
                use Comparison::*;
                Filter::Compare { column, op: self.of(&[Eq, Ne, Lt, Le, Gt, Ge]), value: self.constant(column) }
            }
            1 => Filter::In { column, values: (0..self.below(6)).map(|_| self.constant(column)).collect() },
            2 => Filter::IsNull { column },
            3 => Filter::And(parts(self)),
            4 => Filter::Or(parts(self)),
            _ => Filter::Not(Box::new(self.filter(depth - 1))),
        }
    }

    fn key(&mut self, fixed: bool) -> RowKey {
        let id = Value::Int(self.below(1 << 40) as i64);
        let key = if fixed { vec![id] } else { vec![id, Value::Text("k".repeat(self.below(20)).into())] };
        RowKey::encode(&key).expect("key types")
    }
}

const MIXED: usize = 9;
const COLUMNS: usize = 10;

#[derive(Clone)]
struct Plain {
    key: RowKey,
    version: Version,
    filters: Vec<Cell>,
}

impl Plain {
    fn random(random: &mut Random, fixed_keys: bool) -> Plain {
        let version = Version { commit: CommitLsn(random.below(3) as u64), ordinal: random.below(2) as u32 };
        let filters = (0..COLUMNS).map(|column| random.cell(column)).collect();
        Plain { key: random.key(fixed_keys), version, filters }
    }

    fn new_row(&self) -> NewRow<'_> {
        NewRow { key: &self.key, version: self.version, filters: &self.filters }
    }
}

/// Numbers as they are, so that NaN is equal to itself.
fn readable(value: Option<Value>) -> String {
    format!("{value:?}")
}

fn assert_same(rows: &Rows, model: &[Option<Plain>]) {
    assert_eq!((rows.len(), rows.live()), (model.len(), model.iter().flatten().count()));
    assert!(rows.get(model.len() as u32).is_none());
    for (node, plain) in model.iter().enumerate() {
        let row = rows.get(node as u32);
        assert_eq!(row.is_some(), plain.is_some(), "node {node}");
        let (Some(row), Some(plain)) = (row, plain) else { continue };
        assert_eq!((row.key(), row.version()), (plain.key.clone(), plain.version), "node {node}");
        for (column, cell) in plain.filters.iter().enumerate() {
            let value = match cell {
                Cell::Value(value) => Some(value.clone()),
                _ => None,
            };
            assert_eq!(readable(row.cell(column)), readable(value), "node {node}, column {column}");
        }
        assert_eq!(row.cell(plain.filters.len()), None);
    }
    let nodes: Vec<_> = rows.iter().map(|(node, _)| node).collect();
    assert_eq!(nodes, Passing::Live(rows).ones(0, model.len() as u32).collect::<Vec<_>>());
}

/// One random change to both.
fn change(random: &mut Random, rows: &mut Rows, model: &mut Vec<Option<Plain>>, fixed_keys: bool) {
    let node = random.below(model.len().max(1));
    match random.below(20) {
        0..8 if node < model.len() => {
            let row = Plain::random(random, fixed_keys);
            rows.set(node as u32, row.new_row());
            model[node] = Some(row);
        }
        8..11 if node < model.len() => {
            rows.clear(node as u32);
            model[node] = None;
        }
        11 if random.chance(200) => {
            rows.grow(model.len() + PAGE / 2);
            model.resize(model.len() + PAGE / 2, None);
        }
        12 if random.chance(4_000) => {
            rows.clear_all();
            model.iter_mut().for_each(|row| *row = None);
        }
        _ => {
            let row = Plain::random(random, fixed_keys);
            rows.push(row.new_row());
            model.push(Some(row));
        }
    }
}

#[test]
fn rows_are_what_a_plain_list_of_them_is_and_snapshots_do_not_change() {
    let mut random = Random::new();
    let (mut rows, mut model, mut snapshots) = (Rows::default(), Vec::new(), Vec::new());
    for step in 0..30_000 {
        // Keys of one length first, then of any.
        change(&mut random, &mut rows, &mut model, step < 10_000);
        if step % 6_000 == 3_000 {
            snapshots.push((rows.clone(), model.clone()));
        }
    }
    snapshots.push((rows, model));
    snapshots.iter().for_each(|(rows, model)| assert_same(rows, model));
}

#[test]
fn masks_are_what_the_filter_says_row_by_row() {
    let mut random = Random::new();
    let (mut rows, mut model) = (Rows::default(), Vec::new());
    let mut filters: Vec<Filter> = (0..200).map(|_| random.filter(3)).collect();
    for round in 0..12 {
        for _ in 0..400 {
            change(&mut random, &mut rows, &mut model, round < 6);
        }
        filters.truncate(180);
        filters.extend((0..20).map(|_| random.filter(2)));
        // Some of them twice, so that kept masks are used, of this state and of pages that have not changed since.
        for at in 0..250 {
            let filter = if at < 200 { &filters[at] } else { &filters[random.below(4)] };
            let snapshot = rows.clone();
            let passing = snapshot.passing(Some(filter));
            let passes = |row: &Option<Plain>| row.as_ref().is_some_and(|row| filter.passes(&row.filters));
            let expected: Vec<u32> = (0..).zip(&model).filter(|(_, row)| passes(row)).map(|(node, _)| node).collect();
            let end = model.len() as u32;
            assert_eq!(passing.ones(0, end).collect::<Vec<_>>(), expected, "{filter:?}");
            assert_eq!(passing.count(), expected.len());
            assert!((0..end + 100).all(|node| passing.contains(node) == expected.binary_search(&node).is_ok()));
            let (from, to) = (random.below(model.len()) as u32, random.below(model.len()) as u32);
            let within: Vec<_> = expected.into_iter().filter(|node| (from..to).contains(node)).collect();
            assert_eq!(passing.ones(from, to).collect::<Vec<_>>(), within, "{from}..{to} of {filter:?}");
        }
    }
}

fn numbered(count: i64, filters: impl Fn(i64) -> Vec<Cell>, version: impl Fn(i64) -> Version) -> Rows {
    let mut rows = Rows::default();
    for n in 0..count {
        let key = RowKey::encode(&[Value::Int(n)]).expect("key type");
        rows.push(NewRow { key: &key, version: version(n), filters: &filters(n) });
    }
    rows
}

#[test]
fn rows_are_small() {
    let count = 20 * PAGE as i64;
    let bytes = |rows: Rows| rows.memory_bytes() as f64 / count as f64;
    let copied = bytes(numbered(count, |_| Vec::new(), |_| Version::default()));
    assert!(copied < 10.0, "{copied} bytes a copied row with a bigint key");
    let streamed = |n| Version { commit: CommitLsn(n as u64), ordinal: n as u32 };
    let streamed = bytes(numbered(count, |_| Vec::new(), streamed));
    assert!(streamed < 22.0, "{streamed} bytes a streamed one");
    let section = |n| vec![Cell::Value(Value::Text(format!("section {}", n % 40).into()))];
    let texts = bytes(numbered(count, section, |_| Version::default()));
    assert!(texts < 14.0, "{texts} bytes with a text column of few values");
}

#[test]
fn a_page_is_copied_once_for_all_changes_between_two_snapshots() {
    let mut rows = numbered(3 * PAGE as i64, |_| Vec::new(), |_| Version::default());
    let before = rows.clone();
    let key = RowKey::encode(&[Value::Int(-1)]).expect("key type");
    let new = NewRow { key: &key, version: Version::default(), filters: &[] };
    rows.set(PAGE as u32, new);
    let copied = Arc::as_ptr(&rows.pages[1]);
    (0..PAGE as u32).for_each(|at| rows.set(PAGE as u32 + at, new));
    assert_eq!(Arc::as_ptr(&rows.pages[1]), copied);
    let shared = |page: usize| Arc::ptr_eq(&rows.pages[page], &before.pages[page]);
    assert_eq!([shared(0), shared(1), shared(2)], [true, false, true]);
}

#[test]
fn a_filter_that_comes_again_is_evaluated_on_changed_pages_only() {
    let value = |n: i64| vec![Cell::Value(Value::Int(n % 10))];
    let mut rows = numbered(3 * PAGE as i64, value, |_| Version::default());
    let filter = Filter::Compare { column: 0, op: Comparison::Eq, value: Some(Value::Int(3)) };
    let mask = |rows: &Rows| match rows.passing(Some(&filter)) {
        Passing::Mask(mask) => mask,
        Passing::Live(_) => panic!("a filter has a mask"),
    };
    let first = mask(&rows);
    assert!(Arc::ptr_eq(&first, &mask(&rows.clone())), "snapshots of one state share it");
    rows.clear(3);
    assert_eq!(mask(&rows).count, first.count - 1);
    // A mask that is kept by a page is not evaluated again: one that was put there by hand comes out.
    let number = rows.numbers.of(&filter);
    for page in [0, 2] {
        Arc::make_mut(&mut Arc::make_mut(&mut rows.pages)[page]).masks = PageMasks::default();
        rows.pages[page].masks.get_or(number, || [0; WORDS]);
    }
    rows.clear(PAGE as u32);
    let kept = mask(&rows);
    let middle: usize = kept.words[WORDS..2 * WORDS].iter().map(|word| word.count_ones() as usize).sum();
    assert_eq!((kept.count, middle), (middle, PAGE / 10), "only the changed page was looked at");
}

#[test]
fn texts_that_no_row_has_any_more_are_let_go() {
    let mut texts = Texts::default();
    for n in 0..100 * PAGE {
        texts.add(n % 7, format!("text {n}").as_bytes());
    }
    assert_eq!(texts.get(3), Some(format!("text {}", (100 * PAGE - 1 - 3) / 7 * 7 + 3).as_bytes()));
    assert!(texts.memory_bytes() < 100 * PAGE, "{} bytes", texts.memory_bytes());
}
