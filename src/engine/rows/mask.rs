//! Which rows pass a filter: evaluated column by column and page by page into bits, and kept there.

use super::column::{Column, Seen, Truth};
use super::{Bits, Rows, WORDS};
use crate::model::{Comparison, Filter, Value};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::mem::Discriminant;
use std::sync::Arc;

/// Filters that are known by a number at a time.
const NUMBERS: usize = 32;
/// Masks a page keeps, and a snapshot over all of its pages: an eighth of a byte a row each.
const KEPT_BY_PAGE: usize = 8;
const KEPT: usize = 16;

/// The nodes that pass, one bit each.
pub struct Mask {
    pub(super) words: Vec<u64>,
    pub(super) count: usize,
}

impl Mask {
    pub(super) fn new(words: Vec<u64>) -> Mask {
        let count = words.iter().map(|word| word.count_ones() as usize).sum();
        Mask { words, count }
    }
}

/// The nodes of a snapshot that pass.
#[derive(Clone)]
pub enum Passing<'r> {
    /// All that have a row.
    Live(&'r Rows),
    /// Those of the mask.
    Mask(Arc<Mask>),
}

impl Passing<'_> {
    #[inline]
    fn word(&self, at: usize) -> u64 {
        match self {
            Passing::Live(rows) => rows.live_word(at),
            Passing::Mask(mask) => mask.words.get(at).copied().unwrap_or(0),
        }
    }

    /// Does a node pass?
    #[inline]
    pub fn contains(&self, node: u32) -> bool {
        self.word(node as usize / 64) >> (node % 64) & 1 == 1
    }

    /// How many pass.
    pub fn count(&self) -> usize {
        match self {
            Passing::Live(rows) => rows.live(),
            Passing::Mask(mask) => mask.count,
        }
    }

    /// Those from `first` up to, not including, `end`, ascending.
    pub fn ones(&self, first: u32, end: u32) -> impl Iterator<Item = u32> + '_ {
        let (mut at, last) = (first as usize / 64, (end as usize).div_ceil(64));
        let mut word = if first < end { self.word(at) & u64::MAX << (first % 64) } else { 0 };
        std::iter::from_fn(move || {
            while word == 0 {
                at += 1;
                if at >= last {
                    return None;
                }
                word = self.word(at);
            }
            let node = at as u32 * 64 + word.trailing_zeros();
            word &= word - 1;
            (node < end).then_some(node)
        })
    }
}

/// Filters by number, so that a thousand pages need not compare trees; the last used first. No number is given twice.
#[derive(Default)]
pub(super) struct Numbers(Mutex<(u64, VecDeque<(Filter, u64)>)>);

impl Numbers {
    /// The number of a filter, or a new one.
    pub(super) fn of(&self, filter: &Filter) -> u64 {
        let (last, known) = &mut *self.0.lock();
        if let Some(at) = known.iter().position(|(other, _)| other == filter) {
            let found = known.remove(at).expect("found there");
            let number = found.1;
            known.push_front(found);
            return number;
        }
        *last += 1;
        known.truncate(NUMBERS - 1);
        known.push_front((filter.clone(), *last));
        *last
    }
}

/// Masks over all pages of one state, newest first.
#[derive(Default)]
pub(super) struct Kept(Mutex<VecDeque<(u64, Arc<Mask>)>>);

impl Kept {
    pub(super) fn get(&self, number: u64) -> Option<Arc<Mask>> {
        self.0.lock().iter().find(|(other, _)| *other == number).map(|(_, mask)| mask.clone())
    }

    pub(super) fn put(&self, number: u64, mask: &Arc<Mask>) {
        let mut kept = self.0.lock();
        kept.truncate(KEPT - 1);
        kept.push_front((number, mask.clone()));
    }

    pub(super) fn clear(&mut self) {
        self.0.get_mut().clear();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.0.lock().iter().map(|(_, mask)| size_of_val(&mask.words[..])).sum()
    }
}

/// Masks of one page. A copy of a page, made to be changed, starts without.
#[derive(Default)]
pub(super) struct PageMasks(Mutex<Vec<(u64, Bits)>>);

impl Clone for PageMasks {
    fn clone(&self) -> PageMasks {
        PageMasks::default()
    }
}

impl PageMasks {
    /// The mask of a filter, evaluated unless it is kept.
    pub(super) fn get_or(&self, number: u64, evaluate: impl FnOnce() -> Bits) -> Bits {
        let mut kept = self.0.lock();
        if let Some((_, bits)) = kept.iter().find(|(other, _)| *other == number) {
            return *bits;
        }
        let bits = evaluate();
        if kept.len() == KEPT_BY_PAGE {
            kept.remove(0);
        }
        kept.reserve_exact(1);
        kept.push((number, bits));
        bits
    }

    pub(super) fn clear(&mut self) {
        self.0.get_mut().clear();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.0.lock().capacity() * size_of::<(u64, Bits)>()
    }
}

/// A filter made ready for many pages.
pub(super) enum Test<'f> {
    And(Vec<Test<'f>>),
    Or(Vec<Test<'f>>),
    Not(Box<Test<'f>>),
    Compare { column: usize, op: Comparison, constant: Option<&'f Value> },
    In { column: usize, list: List<'f> },
    IsNull { column: usize },
}

impl<'f> Test<'f> {
    pub(super) fn new(filter: &'f Filter) -> Test<'f> {
        match filter {
            Filter::And(parts) => Test::And(parts.iter().map(Test::new).collect()),
            Filter::Or(parts) => Test::Or(parts.iter().map(Test::new).collect()),
            Filter::Not(part) => Test::Not(Box::new(Test::new(part))),
            Filter::Compare { column, op, value } => {
                Test::Compare { column: *column, op: *op, constant: value.as_ref() }
            }
            Filter::In { column, values } => Test::In { column: *column, list: List::new(values) },
            Filter::IsNull { column } => Test::IsNull { column: *column },
        }
    }

    /// The live rows of a page that pass: as [`Filter::passes`], only what is true does.
    pub(super) fn passing(&self, live: &Bits, columns: &[Column]) -> Bits {
        let yes = self.truth(columns).yes;
        std::array::from_fn(|word| yes[word] & live[word])
    }

    fn truth(&self, columns: &[Column]) -> Truth {
        match self {
            Test::And(parts) => fold(parts, columns, |all, part| {
                for word in 0..WORDS {
                    all.yes[word] &= part.yes[word];
                    all.no[word] |= part.no[word];
                }
            }),
            Test::Or(parts) => not(fold(parts, columns, |all, part| {
                for word in 0..WORDS {
                    all.yes[word] &= part.no[word];
                    all.no[word] |= part.yes[word];
                }
            })),
            Test::Not(part) => not(part.truth(columns)),
            Test::Compare { column, op, constant } => match (columns.get(*column), constant) {
                (Some(column), Some(constant)) => column.compare(*op, constant),
                _ => Truth::UNKNOWN,
            },
            Test::In { column, list } => columns.get(*column).map_or(Truth::UNKNOWN, |column| list.truth(column)),
            Test::IsNull { column } => {
                let no = columns.get(*column).map_or([0; WORDS], Column::has);
                Truth { yes: no.map(|word| !word), no }
            }
        }
    }
}

/// From true everywhere, part by part.
fn fold(parts: &[Test<'_>], columns: &[Column], join: impl Fn(&mut Truth, Truth)) -> Truth {
    let mut all = Truth { yes: [u64::MAX; WORDS], no: [0; WORDS] };
    parts.iter().for_each(|part| join(&mut all, part.truth(columns)));
    all
}

fn not(truth: Truth) -> Truth {
    Truth { yes: truth.no, no: truth.yes }
}

/// The list of IN, sorted by kind and value.
pub(super) struct List<'f> {
    /// Values that compare with each other, ascending, and what kind they are.
    groups: Vec<(Discriminant<Value>, Vec<&'f Value>)>,
    /// When all elements are integers, these, ascending.
    ints: Option<Vec<i64>>,
    /// Elements, NULLs included.
    len: usize,
}

/// Values of one kind compare with each other: integers and floats are of one.
fn kind(value: &Value) -> Discriminant<Value> {
    let kind = std::mem::discriminant(value);
    let int = std::mem::discriminant(&Value::Int(0));
    if kind == std::mem::discriminant(&Value::Float(0.0)) { int } else { kind }
}

impl<'f> List<'f> {
    fn new(values: &'f [Option<Value>]) -> List<'f> {
        let mut groups: Vec<(Discriminant<Value>, Vec<&Value>)> = Vec::new();
        // What does not even compare with itself compares with nothing.
        for value in values.iter().flatten().filter(|value| value.compare(value).is_some()) {
            match groups.iter_mut().find(|(other, _)| *other == kind(value)) {
                Some((_, group)) => group.push(value),
                None => groups.push((kind(value), vec![value])),
            }
        }
        for (_, group) in &mut groups {
            group.sort_by(|a, b| a.compare(b).expect("values of one kind compare"));
        }
        let int = |value: &Option<Value>| match value {
            Some(Value::Int(int)) => Some(*int),
            _ => None,
        };
        let mut ints: Option<Vec<i64>> = values.iter().map(int).collect();
        ints.iter_mut().for_each(|ints| ints.sort_unstable());
        List { groups, ints, len: values.len() }
    }

    fn truth(&self, column: &Column) -> Truth {
        match (column.ints(), &self.ints) {
            (Some(column), Some(ints)) => column.test(|value| ints.binary_search(&value).is_ok()),
            _ => column.each(|value| self.holds(value)),
        }
    }

    fn holds(&self, value: Seen<'_>) -> Option<bool> {
        let kind = match value {
            Seen::Text(_) => std::mem::discriminant(&Value::Text(Box::default())),
            Seen::Value(value) => kind(value),
        };
        let group = self.groups.iter().find(|(other, _)| *other == kind).map_or(&[][..], |(_, group)| group);
        let order = |other: &&Value| value.compare(other).expect("values of one kind compare").reverse();
        match group.binary_search_by(order) {
            Ok(_) => Some(true),
            Err(_) => (group.len() == self.len).then_some(false),
        }
    }
}
