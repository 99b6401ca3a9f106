//! A filter column of one page: values of one type side by side, texts through a dictionary.

use super::{Bits, PAGE, WORDS, bit, set_bit};
use crate::model::{Cell, Comparison, Value};
use std::cmp::Ordering;
use xxhash_rust::xxh3::xxh3_64;

/// For each row of a page: true, false, or (in neither) unknown.
#[derive(Clone)]
pub(super) struct Truth {
    pub(super) yes: Bits,
    pub(super) no: Bits,
}

impl Truth {
    /// Unknown for every row.
    pub(super) const UNKNOWN: Truth = Truth { yes: [0; WORDS], no: [0; WORDS] };
}

/// Values of one type and one size.
#[derive(Clone)]
pub(super) struct Fixed<T> {
    has: Bits,
    values: Box<[T]>,
}

impl<T: Copy> Fixed<T> {
    fn new(value: T) -> Fixed<T> {
        Fixed { has: [0; WORDS], values: vec![value; PAGE].into() }
    }

    fn put(&mut self, at: usize, value: T) {
        self.values[at] = value;
        set_bit(&mut self.has, at, true);
    }

    fn get(&self, at: usize) -> Option<T> {
        bit(&self.has, at).then(|| self.values[at])
    }

    /// Where the test holds and where it does not. Evaluated for rows without a value too: that has no branches.
    #[inline(always)]
    pub(super) fn test(&self, holds: impl Fn(T) -> bool) -> Truth {
        let mut truth = Truth::UNKNOWN;
        let (chunks, _) = self.values.as_chunks::<64>();
        for (word, values) in chunks.iter().enumerate() {
            let mut bits = 0;
            for (at, &value) in values.iter().enumerate() {
                bits |= u64::from(holds(value)) << at;
            }
            truth.yes[word] = bits & self.has[word];
            truth.no[word] = !bits & self.has[word];
        }
        truth
    }

    /// `column op constant` by the type's own order, which must be that of [`Value::compare`].
    fn compare(&self, op: Comparison, constant: T) -> Truth
    where
        T: PartialOrd,
    {
        match op {
            Comparison::Eq => self.test(|value| value == constant),
            Comparison::Ne => self.test(|value| value != constant),
            Comparison::Lt => self.test(|value| value < constant),
            Comparison::Le => self.test(|value| value <= constant),
            Comparison::Gt => self.test(|value| value > constant),
            Comparison::Ge => self.test(|value| value >= constant),
        }
    }

    fn each(&self, mut judge: impl FnMut(Seen<'_>) -> Option<bool>, of: impl Fn(T) -> Value) -> Truth {
        each(|at| judge(Seen::Value(&of(self.get(at)?))))
    }
}

fn each(mut judge: impl FnMut(usize) -> Option<bool>) -> Truth {
    let mut truth = Truth::UNKNOWN;
    for at in 0..PAGE {
        if let Some(holds) = judge(at) {
            set_bit(if holds { &mut truth.yes } else { &mut truth.no }, at, true);
        }
    }
    truth
}

/// In `codes`: no text.
const NONE: u16 = u16::MAX;
/// So many texts are looked through for one that is there already. A column of few values is then two bytes a row.
const LOOKED_THROUGH: usize = 64;
/// More texts than this hold some that no row has any more.
const MOST_TEXTS: usize = 2 * PAGE;

/// Byte strings of any length: each row has the number of one.
#[derive(Clone)]
pub(super) struct Texts {
    codes: Box<[u16]>,
    /// Where each string ends in `heap`.
    ends: Vec<u64>,
    heap: Vec<u8>,
    /// A byte of the hash of each of the first strings.
    tags: Vec<u8>,
}

fn tag(text: &[u8]) -> u8 {
    xxh3_64(text) as u8
}

impl Default for Texts {
    fn default() -> Texts {
        Texts { codes: vec![NONE; PAGE].into(), ends: Vec::new(), heap: Vec::new(), tags: Vec::new() }
    }
}

impl Texts {
    fn text(&self, code: usize) -> &[u8] {
        let start = code.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.heap[start as usize..self.ends[code] as usize]
    }

    /// The string of a row.
    pub(super) fn get(&self, at: usize) -> Option<&[u8]> {
        let code = self.codes[at];
        (code != NONE).then(|| self.text(code.into()))
    }

    /// Gives a row a string that may be another row's too.
    fn put(&mut self, at: usize, text: &[u8]) {
        let own = tag(text);
        let known = (0..self.tags.len()).find(|&code| self.tags[code] == own && self.text(code) == text);
        if let Some(code) = known {
            self.codes[at] = code as u16;
            return;
        }
        self.add(at, text);
        let code = usize::from(self.codes[at]);
        if code < LOOKED_THROUGH && code == self.tags.len() {
            self.tags.push(own);
        }
    }

    /// Gives a row a string that no other row has.
    pub(super) fn add(&mut self, at: usize, text: &[u8]) {
        self.codes[at] = NONE;
        if self.ends.len() == MOST_TEXTS {
            self.let_go();
        }
        self.codes[at] = self.ends.len() as u16;
        self.heap.extend_from_slice(text);
        self.ends.push(self.heap.len() as u64);
    }

    /// Keeps only the strings that rows have.
    fn let_go(&mut self) {
        let old = std::mem::take(self);
        let mut moved = vec![NONE; old.ends.len()];
        for (at, &code) in old.codes.iter().enumerate().filter(|(_, code)| **code != NONE) {
            let code = usize::from(code);
            if moved[code] == NONE {
                self.add(at, old.text(code));
                moved[code] = self.codes[at];
            }
            self.codes[at] = moved[code];
        }
        self.tags = (0..self.ends.len().min(LOOKED_THROUGH)).map(|code| tag(self.text(code))).collect();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&self.codes[..]) + 8 * self.ends.capacity() + self.heap.capacity() + self.tags.capacity()
    }

    fn each(&self, mut judge: impl FnMut(Seen<'_>) -> Option<bool>) -> Truth {
        let verdicts: Vec<_> = (0..self.ends.len()).map(|code| judge(Seen::Text(self.text(code)))).collect();
        each(|at| *verdicts.get(usize::from(self.codes[at]))?)
    }
}

/// A value where it lies.
#[derive(Clone, Copy)]
pub(super) enum Seen<'a> {
    Text(&'a [u8]),
    Value(&'a Value),
}

impl Seen<'_> {
    /// As [`Value::compare`].
    pub(super) fn compare(self, constant: &Value) -> Option<Ordering> {
        match (self, constant) {
            (Seen::Text(text), Value::Text(constant)) => Some(text.cmp(constant.as_bytes())),
            (Seen::Text(_), _) => None,
            (Seen::Value(value), constant) => value.compare(constant),
        }
    }
}

/// The values that the rows of a page have in one filter column. Its type is that of the first value.
#[derive(Clone)]
pub(super) enum Column {
    /// None of them ever had one.
    Empty,
    Bool(Fixed<bool>),
    Int(Fixed<i64>),
    Float(Fixed<f64>),
    Uuid(Fixed<[u8; 16]>),
    Date(Fixed<i32>),
    Timestamp(Fixed<i64>),
    Text(Texts),
    /// Values of several types, or of one that has no form of its own here.
    Mixed(Box<[Option<Value>]>),
}

impl Column {
    fn of(value: &Value) -> Column {
        match value {
            Value::Bool(v) => Column::Bool(Fixed::new(*v)),
            Value::Int(v) => Column::Int(Fixed::new(*v)),
            Value::Float(v) => Column::Float(Fixed::new(*v)),
            Value::Uuid(v) => Column::Uuid(Fixed::new(*v)),
            Value::Date(v) => Column::Date(Fixed::new(*v)),
            Value::Timestamp(v) => Column::Timestamp(Fixed::new(*v)),
            Value::Text(_) => Column::Text(Texts::default()),
            _ => Column::Mixed(vec![None; PAGE].into()),
        }
    }

    /// The value of a row.
    pub(super) fn get(&self, at: usize) -> Option<Value> {
        match self {
            Column::Empty => None,
            Column::Bool(column) => column.get(at).map(Value::Bool),
            Column::Int(column) => column.get(at).map(Value::Int),
            Column::Float(column) => column.get(at).map(Value::Float),
            Column::Uuid(column) => column.get(at).map(Value::Uuid),
            Column::Date(column) => column.get(at).map(Value::Date),
            Column::Timestamp(column) => column.get(at).map(Value::Timestamp),
            Column::Text(texts) => {
                let text = std::str::from_utf8(texts.get(at)?).expect("texts go in as such");
                Some(Value::Text(text.into()))
            }
            Column::Mixed(values) => values[at].clone(),
        }
    }

    /// Gives a row a value, or none.
    pub(super) fn set(&mut self, at: usize, cell: &Cell) {
        let Cell::Value(value) = cell else { return self.unset(at) };
        if matches!(self, Column::Empty) {
            *self = Column::of(value);
        }
        match (&mut *self, value) {
            (Column::Bool(column), Value::Bool(v)) => column.put(at, *v),
            (Column::Int(column), Value::Int(v)) => column.put(at, *v),
            (Column::Float(column), Value::Float(v)) => column.put(at, *v),
            (Column::Uuid(column), Value::Uuid(v)) => column.put(at, *v),
            (Column::Date(column), Value::Date(v)) => column.put(at, *v),
            (Column::Timestamp(column), Value::Timestamp(v)) => column.put(at, *v),
            (Column::Text(texts), Value::Text(v)) => texts.put(at, v.as_bytes()),
            (Column::Mixed(values), value) => values[at] = Some(value.clone()),
            (other, value) => {
                let mut values: Box<[_]> = (0..PAGE).map(|at| other.get(at)).collect();
                values[at] = Some(value.clone());
                *self = Column::Mixed(values);
            }
        }
    }

    fn unset(&mut self, at: usize) {
        match self {
            Column::Empty => {}
            Column::Bool(Fixed { has, .. })
            | Column::Int(Fixed { has, .. })
            | Column::Float(Fixed { has, .. })
            | Column::Uuid(Fixed { has, .. })
            | Column::Date(Fixed { has, .. })
            | Column::Timestamp(Fixed { has, .. }) => set_bit(has, at, false),
            Column::Text(texts) => texts.codes[at] = NONE,
            Column::Mixed(values) => values[at] = None,
        }
    }

    /// Which rows have a value.
    pub(super) fn has(&self) -> Bits {
        match self {
            Column::Empty => [0; WORDS],
            Column::Bool(Fixed { has, .. })
            | Column::Int(Fixed { has, .. })
            | Column::Float(Fixed { has, .. })
            | Column::Uuid(Fixed { has, .. })
            | Column::Date(Fixed { has, .. })
            | Column::Timestamp(Fixed { has, .. }) => *has,
            Column::Text(texts) => each(|at| (texts.codes[at] != NONE).then_some(true)).yes,
            Column::Mixed(values) => each(|at| values[at].is_some().then_some(true)).yes,
        }
    }

    /// `column op constant` in every row.
    pub(super) fn compare(&self, op: Comparison, constant: &Value) -> Truth {
        match (self, constant) {
            (Column::Bool(column), Value::Bool(constant)) => column.compare(op, *constant),
            (Column::Int(column), Value::Int(constant)) => column.compare(op, *constant),
            (Column::Uuid(column), Value::Uuid(constant)) => column.compare(op, *constant),
            (Column::Date(column), Value::Date(constant)) => column.compare(op, *constant),
            (Column::Timestamp(column), Value::Timestamp(constant)) => column.compare(op, *constant),
            _ => self.each(|value| value.compare(constant).map(|ordering| op.holds(ordering))),
        }
    }

    /// The values where they lie, if they are integers.
    pub(super) fn ints(&self) -> Option<&Fixed<i64>> {
        match self {
            Column::Int(column) => Some(column),
            _ => None,
        }
    }

    /// A test of every value; what has none is unknown.
    pub(super) fn each(&self, mut judge: impl FnMut(Seen<'_>) -> Option<bool>) -> Truth {
        match self {
            Column::Empty => Truth::UNKNOWN,
            Column::Bool(column) => column.each(judge, Value::Bool),
            Column::Int(column) => column.each(judge, Value::Int),
            Column::Float(column) => column.each(judge, Value::Float),
            Column::Uuid(column) => column.each(judge, Value::Uuid),
            Column::Date(column) => column.each(judge, Value::Date),
            Column::Timestamp(column) => column.each(judge, Value::Timestamp),
            Column::Text(texts) => texts.each(judge),
            Column::Mixed(values) => each(|at| judge(Seen::Value(values[at].as_ref()?))),
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Column::Empty => 0,
            Column::Bool(column) => size_of_val(&column.values[..]),
            Column::Int(column) | Column::Timestamp(column) => size_of_val(&column.values[..]),
            Column::Float(column) => size_of_val(&column.values[..]),
            Column::Uuid(column) => size_of_val(&column.values[..]),
            Column::Date(column) => size_of_val(&column.values[..]),
            Column::Text(texts) => texts.memory_bytes(),
            Column::Mixed(values) => {
                let text = |value: &Option<Value>| match value {
                    Some(Value::Text(text)) => text.len(),
                    _ => 0,
                };
                size_of_val(&values[..]) + values.iter().map(text).sum::<usize>()
            }
        }
    }
}
