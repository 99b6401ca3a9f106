//! The row of every node, in compact pages: packed keys, versions, typed filter columns. Snapshots share pages, and a page
//! is copied once when it is written after a snapshot. One writer, immutable views.
//!
//! Reading order: this file (rows by node), `column.rs` (a column of a page), `mask.rs` (which rows pass a filter).

mod column;
mod mask;
#[cfg(test)]
mod tests;

use crate::model::{Cell, CommitLsn, Filter, RowKey, Value, Version};
use column::{Column, Texts};
use mask::{Kept, Numbers, PageMasks, Test};
pub use mask::{Mask, Passing};
use std::sync::Arc;

/// Rows of a page. A change copies one page, some 30 KB; a snapshot or a mask of a million rows touches a thousand of them.
pub const PAGE: usize = 1024;
const WORDS: usize = PAGE / 64;
/// One bit for each row of a page.
type Bits = [u64; WORDS];

fn bit(bits: &Bits, at: usize) -> bool {
    bits[at / 64] >> (at % 64) & 1 == 1
}

fn set_bit(bits: &mut Bits, at: usize, on: bool) {
    let word = &mut bits[at / 64];
    *word = *word & !(1 << (at % 64)) | u64::from(on) << (at % 64);
}

/// A row to be stored.
#[derive(Debug, Clone, Copy)]
pub struct NewRow<'a> {
    /// Its identity.
    pub key: &'a RowKey,
    /// Who wrote it.
    pub version: Version,
    /// The filter columns.
    pub filters: &'a [Cell],
}

/// A row as queries see it.
#[derive(Clone, Copy)]
pub struct RowRef<'r> {
    page: &'r Page,
    at: usize,
}

impl<'r> RowRef<'r> {
    /// Its identity.
    pub fn key(self) -> RowKey {
        RowKey::from_bytes(self.key_bytes())
    }

    /// The canonical bytes of its key.
    pub fn key_bytes(self) -> &'r [u8] {
        self.page.keys.get(self.at)
    }

    /// Who wrote it.
    pub fn version(self) -> Version {
        let (commit, ordinal) = (self.page.commits.get(self.at), self.page.ordinals.get(self.at));
        Version { commit: CommitLsn(commit), ordinal }
    }

    /// The value of a filter column; `None` when it is NULL, is none that can be used, or there is no such column.
    pub fn cell(self, column: usize) -> Option<Value> {
        self.page.columns.get(column)?.get(self.at)
    }
}

/// The keys of a page.
#[derive(Clone)]
enum Keys {
    /// All of one length, one after the other.
    Even { width: usize, bytes: Vec<u8> },
    /// Of any length.
    Odd(Texts),
}

impl Keys {
    fn get(&self, at: usize) -> &[u8] {
        match self {
            Keys::Even { width, bytes } => bytes.get(at * width..(at + 1) * width).unwrap_or_default(),
            Keys::Odd(texts) => texts.get(at).unwrap_or_default(),
        }
    }

    /// `others`: the rows whose keys matter.
    fn set(&mut self, at: usize, key: &[u8], others: &Bits) {
        match self {
            Keys::Even { width, bytes } if *width == key.len() => {
                bytes.resize(PAGE * *width, 0);
                bytes[at * *width..][..key.len()].copy_from_slice(key);
            }
            Keys::Even { width, bytes } if others.iter().all(|&word| word == 0) => {
                *width = key.len();
                bytes.clear();
                self.set(at, key, others);
            }
            Keys::Even { .. } => {
                let mut texts = Texts::default();
                (0..PAGE).filter(|&at| bit(others, at)).for_each(|at| texts.add(at, self.get(at)));
                texts.add(at, key);
                *self = Keys::Odd(texts);
            }
            Keys::Odd(texts) => texts.add(at, key),
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Keys::Even { bytes, .. } => bytes.capacity(),
            Keys::Odd(texts) => texts.memory_bytes(),
        }
    }
}

/// A number for every row of a page: a single one while all rows have the same, as after a copy.
#[derive(Clone)]
enum Shared<T> {
    One(T),
    Each(Box<[T]>),
}

impl<T: Copy + PartialEq> Shared<T> {
    fn get(&self, at: usize) -> T {
        match self {
            Shared::One(value) => *value,
            Shared::Each(values) => values[at],
        }
    }

    /// `alone`: no other row's number matters.
    fn set(&mut self, at: usize, value: T, alone: bool) {
        match self {
            Shared::One(one) if *one == value => {}
            Shared::One(one) if alone => *one = value,
            Shared::One(one) => {
                let mut values = vec![*one; PAGE];
                values[at] = value;
                *self = Shared::Each(values.into());
            }
            Shared::Each(values) => values[at] = value,
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Shared::One(_) => 0,
            Shared::Each(values) => size_of_val(&values[..]),
        }
    }
}

/// The rows of [`PAGE`] consecutive nodes.
#[derive(Clone)]
struct Page {
    /// Which nodes have a row.
    live: Bits,
    keys: Keys,
    commits: Shared<u64>,
    ordinals: Shared<u32>,
    /// The filter columns, as far as any row had them.
    columns: Vec<Column>,
    masks: PageMasks,
}

impl Default for Page {
    fn default() -> Page {
        Page {
            live: [0; WORDS],
            keys: Keys::Even { width: 0, bytes: Vec::new() },
            commits: Shared::One(0),
            ordinals: Shared::One(0),
            columns: Vec::new(),
            masks: PageMasks::default(),
        }
    }
}

impl Page {
    fn set(&mut self, at: usize, row: NewRow<'_>) {
        set_bit(&mut self.live, at, false);
        let alone = self.live.iter().all(|&word| word == 0);
        self.keys.set(at, row.key.as_bytes(), &self.live);
        self.commits.set(at, row.version.commit.0, alone);
        self.ordinals.set(at, row.version.ordinal, alone);
        if self.columns.len() < row.filters.len() {
            self.columns.resize(row.filters.len(), Column::Empty);
        }
        for (number, column) in self.columns.iter_mut().enumerate() {
            column.set(at, row.filters.get(number).unwrap_or(&Cell::Null));
        }
        set_bit(&mut self.live, at, true);
    }

    /// Columns let go of what they held; key and version are not looked at without the bit.
    fn clear(&mut self, at: usize) {
        set_bit(&mut self.live, at, false);
        self.columns.iter_mut().for_each(|column| column.set(at, &Cell::Null));
    }

    fn memory_bytes(&self) -> usize {
        let fixed = size_of::<Page>() + self.keys.memory_bytes();
        let columns: usize = self.columns.iter().map(|column| size_of::<Column>() + column.memory_bytes()).sum();
        fixed + self.commits.memory_bytes() + self.ordinals.memory_bytes() + columns + self.masks.memory_bytes()
    }
}

/// The rows of all nodes of one index; `clone` is a snapshot.
#[derive(Clone, Default)]
pub struct Rows {
    pages: Arc<Vec<Arc<Page>>>,
    len: usize,
    live: usize,
    /// Masks over all pages as they are now; snapshots of one state share them.
    kept: Arc<Kept>,
    /// Filters as numbers, the same in all snapshots.
    numbers: Arc<Numbers>,
}

impl Rows {
    /// Nodes, with or without a row.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No node at all?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Nodes that have a row.
    pub fn live(&self) -> usize {
        self.live
    }

    /// The row of a node, if it has one in this snapshot.
    #[inline]
    pub fn get(&self, node: u32) -> Option<RowRef<'_>> {
        let at = node as usize % PAGE;
        let page = self.pages.get(node as usize / PAGE).filter(|page| bit(&page.live, at))?;
        Some(RowRef { page, at })
    }

    /// Every row with its node, by node.
    pub fn iter(&self) -> impl Iterator<Item = (u32, RowRef<'_>)> {
        (0..self.len as u32).filter_map(|node| Some((node, self.get(node)?)))
    }

    /// Whether the nodes `64 * at ..` have rows, one bit each.
    #[inline]
    fn live_word(&self, at: usize) -> u64 {
        self.pages.get(at / WORDS).map_or(0, |page| page.live[at % WORDS])
    }

    /// Adds nodes without rows until there are `len`.
    pub fn grow(&mut self, len: usize) {
        self.len = self.len.max(len);
        let pages = self.len.div_ceil(PAGE);
        if pages > self.pages.len() {
            // One empty page for all of them: whoever is written first is copied.
            Arc::make_mut(&mut self.pages).resize(pages, Arc::default());
        }
    }

    /// Adds a node with its row.
    pub fn push(&mut self, row: NewRow<'_>) {
        let node = self.len;
        self.grow(node + 1);
        self.set(node as u32, row);
    }

    /// Gives a node, which must exist, another row.
    pub fn set(&mut self, node: u32, row: NewRow<'_>) {
        let new = self.get(node).is_none();
        let page = self.page_mut(node);
        page.set(node as usize % PAGE, row);
        self.live += usize::from(new);
    }

    /// Takes a node's row away, if it has one.
    pub fn clear(&mut self, node: u32) {
        if self.get(node).is_some() {
            self.page_mut(node).clear(node as usize % PAGE);
            self.live -= 1;
        }
    }

    /// Takes every row away; the nodes stay.
    pub fn clear_all(&mut self) {
        let cleared = Rows { numbers: self.numbers.clone(), ..Rows::default() };
        let len = std::mem::replace(self, cleared).len;
        self.grow(len);
    }

    fn page_mut(&mut self, node: u32) -> &mut Page {
        assert!((node as usize) < self.len, "node {node} of {}", self.len);
        match Arc::get_mut(&mut self.kept) {
            Some(kept) => kept.clear(),
            None => self.kept = Arc::default(),
        }
        let page = Arc::make_mut(&mut Arc::make_mut(&mut self.pages)[node as usize / PAGE]);
        page.masks.clear();
        page
    }

    /// The rows that pass a filter, all of them without one. Masks are kept by page, which snapshots share: a filter that
    /// comes again is evaluated on changed pages only.
    pub fn passing(&self, filter: Option<&Filter>) -> Passing<'_> {
        let Some(filter) = filter else { return Passing::Live(self) };
        let number = self.numbers.of(filter);
        if let Some(mask) = self.kept.get(number) {
            return Passing::Mask(mask);
        }
        let test = Test::new(filter);
        let mut words = Vec::with_capacity(self.pages.len() * WORDS);
        for page in self.pages.iter() {
            words.extend(page.masks.get_or(number, || test.passing(&page.live, &page.columns)));
        }
        let mask = Arc::new(Mask::new(words));
        self.kept.put(number, &mask);
        Passing::Mask(mask)
    }

    /// Memory in use, kept masks included.
    pub fn memory_bytes(&self) -> usize {
        let pages: usize = self.pages.iter().map(|page| page.memory_bytes()).sum();
        pages + self.pages.len() * size_of::<Arc<Page>>() + self.kept.memory_bytes()
    }
}
