//! The HNSW graph (Malkov and Yashunin, 2016): rows and their links in fixed memory, searched while it is being linked.
//!
//! Reading order: this file (what is stored, and who may touch it when), `build.rs` (a slot gets its links), `search.rs`
//! (a walk), `file.rs` (links as bytes). `lists.rs` is another way to the rows than links; what has neither is scanned.
//!
//! - One writer pushes rows; a row never changes once `len` covers it.
//! - One linker links slots in order behind it; `linked` is the prefix that walks are bound to find.
//! - Any number of walks run meanwhile, without locks: a list caught half rewritten mixes old and new neighbours, and all
//!   of them are rows that may be visited.
//! - Rows that repeat an earlier row bit for bit are chained to it instead of being linked: thousands of equal rows would
//!   fill each other's lists and cut themselves off from the rest.

mod build;
mod file;
mod links;
mod lists;
mod search;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::engine::arena::Arena;
use crate::engine::codes::{Codec, Coded};
use crate::engine::distance::{Kernel, prefetch};
use crate::model::{Encoding, IndexKind, Metric};
use crate::storage::Result;

use links::{Base, List};
use lists::Lists;
pub use lists::{ROWS_PER_EF, usual as usual_lists};
use search::Scratch;
pub use search::Walk;
use table::Table;

/// Slots are below this, so that a distance, a slot and two state bits fit one 64-bit key.
pub const MAX_SLOTS: usize = 1 << 30;
/// Locks of link lists; a list's lock is that of its slot modulo this.
const STRIPES: usize = 4096;
/// Rows to choose a grid of codes by; smaller graphs compare floats.
const TRAIN_ROWS: u32 = 1_000;
/// At most so many of them are looked at.
const TRAIN_SAMPLE: u32 = 10_000;
/// Rows that are queries when codes are judged, the rows they are searched among, and how many each of them is to find.
const PROBES: usize = 32;
const PROBED_ROWS: u32 = 200_000;
const PROBED_FOR: usize = 10;
/// The share of them that codes must find.
const PROBED_RECALL: f64 = 0.95;
/// Full rows that are on their way from memory while one is compared.
const READ_AHEAD: usize = 4;
/// No level is above this, whatever the generator draws.
const MAX_LEVEL: u32 = 15;

/// How a graph is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// Links per slot on the upper levels; twice as many on level 0. 2 to 100.
    pub m: usize,
    /// Size of the candidate pool while linking.
    pub ef_construction: usize,
    /// Decides every slot's level.
    pub seed: u64,
    /// What walks and linking compare, once there are rows enough to choose codes by.
    pub encoding: Encoding,
    /// The way to the rows; all that is said of links is of `Hnsw`.
    pub index: IndexKind,
    /// Lists of an `Ivfflat`; the square root of its rows when absent.
    pub lists: Option<usize>,
}

impl Default for Params {
    fn default() -> Params {
        let (index, lists) = (IndexKind::Hnsw, None);
        Params { m: 16, ef_construction: 200, seed: 1, encoding: Encoding::Sq8, index, lists }
    }
}

/// What is found of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fit,
    Refused,
    /// The rows do not show it.
    Unknown,
}

/// Where a graph reads full rows that it does not hold.
pub trait FullRows: Send + Sync {
    /// How many there are.
    fn count(&self) -> usize;
    /// Writes a slot's original vector into `row`.
    fn read(&self, slot: u32, row: &mut [f32]) -> Result<()>;
    /// Asks for it from memory, where it is there.
    fn prefetch(&self, _slot: u32) {}
}

/// Full rows: what is exact.
enum Full {
    /// In memory, as the kernel prepares them.
    Held(Table),
    /// Read when they are needed, of a graph that has codes and takes no more rows.
    Elsewhere(Box<dyn FullRows>),
}

/// A fixed-capacity graph over rows of one metric and dimension.
pub struct Graph {
    kernel: Kernel,
    params: Params,
    dim: usize,
    capacity: usize,
    full: Full,
    /// The same rows as codes, from the moment there are rows enough: what walks and linking compare.
    codes: OnceLock<Table>,
    /// Codes are judged, or tried again, when there are so many rows.
    judged_at: AtomicU32,
    /// The codes stopped telling rows apart: floats are compared again.
    refused: AtomicBool,
    /// The way to the rows where there are no links.
    lists: OnceLock<Lists>,
    /// Level 0: lists of at most `2 m` links.
    base: Base,
    /// Levels 1 and up: blocks of `m` words, a slot's blocks one after the other.
    upper: Arena<AtomicU32>,
    /// Number of a slot's first block in `upper`.
    upper_at: Arena<AtomicU32>,
    /// Next row equal to this one, as slot + 1. Untouched, and so without memory, while no two rows are equal.
    same: Arena<AtomicU32>,
    /// Rows chained in `same`.
    repeated: AtomicU32,
    /// Where walks enter: level in the high half, slot + 1 in the low half; zero while nothing is linked.
    entry: AtomicU64,
    len: AtomicU32,
    linked: AtomicU32,
    /// The block of `upper` the next pushed row gets; held while pushing.
    writer: Mutex<u32>,
    linker: Mutex<()>,
    stripes: Box<[Mutex<()>]>,
    #[expect(clippy::vec_box, reason = "moves between here and walks as one pointer")]
    scratches: Mutex<Vec<Box<Scratch>>>,
}

/// A query as its graph prepares it: of unit length for cosine.
pub struct Query {
    row: Box<[f32]>,
}

impl Query {
    fn row(&self) -> &[f32] {
        &self.row
    }
}

impl Graph {
    /// An empty graph with room for `capacity` rows; memory is taken as rows come.
    pub fn new(metric: Metric, dim: usize, capacity: usize, params: Params) -> Graph {
        Graph::try_new(metric, dim, capacity, params).expect("address space for the graph")
    }

    /// Like [`Graph::new`]; an error when the system refuses the address space or an argument is out of range.
    pub fn try_new(metric: Metric, dim: usize, capacity: usize, params: Params) -> io::Result<Graph> {
        Graph::with_base(metric, dim, capacity, params, Base::growing(capacity, 2 * params.m)?)
    }

    /// A graph whose level-0 links are there already: its rows are not.
    fn with_base(metric: Metric, dim: usize, capacity: usize, params: Params, base: Base) -> io::Result<Graph> {
        if dim == 0 || capacity >= MAX_SLOTS || !(2..=100).contains(&params.m) || params.ef_construction == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "dimension, capacity or parameters out of range"));
        }
        let kernel = Kernel::new(metric);
        let blocks: usize = (0..capacity as u32).map(|slot| level_of(params.m, params.seed, slot) as usize).sum();
        Ok(Graph {
            kernel,
            params: Params { encoding: params.encoding.for_metric(metric), ..params },
            dim,
            capacity,
            full: Full::Held(Table::try_new(Codec::floats(kernel, dim), capacity)?),
            codes: OnceLock::new(),
            judged_at: AtomicU32::new(crate::failpoint::size("TRAIN_ROWS", u64::from(TRAIN_ROWS)) as u32),
            refused: AtomicBool::new(false),
            lists: OnceLock::new(),
            base,
            upper: Arena::try_new(blocks * params.m)?,
            upper_at: Arena::try_new(capacity)?,
            same: Arena::try_new(capacity)?,
            repeated: AtomicU32::new(0),
            entry: AtomicU64::new(0),
            len: AtomicU32::new(0),
            linked: AtomicU32::new(0),
            writer: Mutex::new(0),
            linker: Mutex::new(()),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            scratches: Mutex::new(Vec::new()),
        })
    }

    /// Stores a row and returns its slot; it may be scanned at once and is found by walks when it is linked.
    ///
    /// The vector must be finite and of the graph's dimension, and there must be room (`len() < capacity()`): a breach is a
    /// bug of the caller and panics. Pushes exclude each other.
    pub fn push(&self, vector: &[f32]) -> u32 {
        assert_eq!(vector.len(), self.dim, "vectors of one collection have one length");
        let mut next_block = self.writer.lock();
        let slot = self.len.load(Ordering::Relaxed);
        assert!((slot as usize) < self.capacity, "the graph has room");
        // SAFETY: the slot is inside the table, not yet covered by `len`, and the lock keeps other writers out.
        let row = &mut unsafe { self.held().floats_mut(slot) }[..self.dim];
        row.copy_from_slice(vector);
        self.kernel.prepare(row);
        if let Some(codes) = self.codes.get() {
            // SAFETY: as above.
            unsafe { codes.encode(slot, row, self.kernel.is_directionless(row)) };
            if !codes.holds(row) {
                self.refuse("a row is out of their range");
            }
        }
        self.publish(slot, &mut next_block);
        slot
    }

    /// A slot's place among the upper levels; with it the slot is there.
    fn publish(&self, slot: u32, next_block: &mut u32) {
        self.upper_at.words()[slot as usize].store(*next_block, Ordering::Relaxed);
        *next_block += self.level(slot);
        self.len.store(slot + 1, Ordering::Release);
    }

    /// Writes a stored row into `row`, which has the graph's dimension, as it is compared: of unit length for cosine.
    pub fn read_row(&self, slot: u32, row: &mut [f32]) -> Result<()> {
        assert!(slot < self.len(), "the slot holds a row");
        match &self.full {
            Full::Held(_) => row.copy_from_slice(&self.row(slot)[..self.dim]),
            Full::Elsewhere(rows) => {
                rows.read(slot, row)?;
                self.kernel.prepare(row);
            }
        }
        Ok(())
    }

    /// Rows stored; all of them may be scanned.
    pub fn len(&self) -> u32 {
        self.len.load(Ordering::Acquire)
    }

    /// Whether no row is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Walks find the slots below this; the others, up to `len`, are to be scanned.
    pub fn linked(&self) -> u32 {
        self.linked.load(Ordering::Acquire)
    }

    /// Is nothing left to be done for searches until it is sealed?
    pub fn is_settled(&self) -> bool {
        self.params.index != IndexKind::Hnsw || self.linked() == self.len()
    }

    /// The slots that walks do not promise to find: to be scanned.
    pub fn tail(&self) -> Range<u32> {
        let linked = self.linked();
        linked..self.len().max(linked)
    }

    /// Rows there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Floats a vector has.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How the graph compares vectors.
    pub fn metric(&self) -> Metric {
        self.kernel.metric()
    }

    /// What walks compare at this moment: codes once there are rows enough, and only where they serve.
    pub fn encoding(&self) -> Encoding {
        self.compared().encoding()
    }

    /// Are full rows in memory? Else they are read when they are needed.
    pub fn holds_rows(&self) -> bool {
        matches!(self.full, Full::Held(_))
    }

    /// How the graph is built.
    pub fn params(&self) -> Params {
        self.params
    }

    /// Makes a query of a finite vector of the graph's dimension.
    pub fn prepare(&self, vector: &[f32]) -> Query {
        assert_eq!(vector.len(), self.dim, "vectors of one collection have one length");
        let mut row: Box<[f32]> = vector.into();
        self.kernel.prepare(&mut row);
        Query { row }
    }

    /// Exact inner values of stored rows, in their order: smaller is nearer, never NaN. `public_distance` makes users'
    /// distances of them.
    pub fn measure(&self, query: &Query, slots: &[u32], each: &mut dyn FnMut(u32, f32)) -> Result<()> {
        let len = self.len();
        assert!(slots.iter().all(|&slot| slot < len), "the slots hold rows");
        match &self.full {
            Full::Held(_) => {
                slots.iter().for_each(|&slot| prefetch(self.row(slot)));
                slots.iter().for_each(|&slot| each(slot, self.kernel.inner(&query.row, &self.row(slot)[..self.dim])));
            }
            Full::Elsewhere(rows) => {
                let mut row = vec![0.0; self.dim];
                slots[..slots.len().min(READ_AHEAD)].iter().for_each(|&slot| rows.prefetch(slot));
                for (at, &slot) in slots.iter().enumerate() {
                    slots.get(at + READ_AHEAD).into_iter().for_each(|&next| rows.prefetch(next));
                    rows.read(slot, &mut row)?;
                    self.kernel.prepare(&mut row);
                    each(slot, self.kernel.inner(&query.row, &row));
                }
            }
        }
        Ok(())
    }

    /// Exact inner values of many stored rows.
    pub fn scan(
        &self,
        query: &Query,
        slots: impl IntoIterator<Item = u32>,
        each: &mut dyn FnMut(u32, f32),
    ) -> Result<()> {
        match &self.full {
            Full::Held(table) => self.compare(table, query, slots, each),
            Full::Elsewhere(_) => {
                let slots: Vec<u32> = slots.into_iter().collect();
                return self.measure(query, &slots, each);
            }
        }
        Ok(())
    }

    /// Inner values of many stored rows as walks see them: exact where [`Graph::encoding`] is `F32`.
    pub fn scan_compared(&self, query: &Query, slots: impl IntoIterator<Item = u32>, each: &mut dyn FnMut(u32, f32)) {
        self.compare(self.compared(), query, slots, each);
    }

    /// Inner values of many rows of a table, the next ones being fetched meanwhile.
    fn compare(
        &self,
        table: &Table,
        query: &Query,
        slots: impl IntoIterator<Item = u32>,
        each: &mut dyn FnMut(u32, f32),
    ) {
        const BATCH: usize = 64;
        let (len, mut slots) = (self.len(), slots.into_iter().peekable());
        if slots.peek().is_none() {
            return;
        }
        let mut coded = Coded::default();
        table.query(&query.row, &mut coded);
        let (mut batch, mut values) = ([0u32; BATCH], [0.0f32; BATCH]);
        while slots.peek().is_some() {
            let mut count = 0;
            for slot in slots.by_ref().take(BATCH) {
                assert!(slot < len, "the slot holds a row");
                batch[count] = slot;
                count += 1;
            }
            // SAFETY: the slots were checked just now.
            unsafe { table.gather(&coded, &batch[..count], &mut values) };
            batch[..count].iter().zip(&values).for_each(|(&slot, &value)| each(slot, value));
        }
    }

    /// The distance users see.
    pub fn public_distance(&self, inner: f32) -> f32 {
        self.kernel.public(inner)
    }

    /// Memory in use by rows as floats and as codes.
    pub fn row_bytes(&self) -> usize {
        let len = self.len() as usize;
        let held = if let Full::Held(table) = &self.full { table.bytes_of(len) } else { 0 };
        held + self.codes.get().map_or(0, |codes| codes.memory_bytes(len))
    }

    /// Memory in use by rows, links and idle search state; untouched capacity is not counted.
    pub fn memory_bytes(&self) -> usize {
        let len = self.len() as usize;
        let upper = *self.writer.lock() as usize * self.params.m;
        let repeated = if self.repeated.load(Ordering::Relaxed) > 0 { len } else { 0 };
        let words = len + upper + repeated;
        let scratches: usize = self.scratches.lock().iter().map(|scratch| scratch.memory_bytes()).sum();
        let lists = self.lists.get().map_or(0, Lists::memory_bytes);
        self.base.bytes_of(len) + lists + words * 4 + self.row_bytes() + STRIPES + scratches
    }

    fn level(&self, slot: u32) -> u32 {
        level_of(self.params.m, self.params.seed, slot)
    }

    /// A published row that is held, padding included.
    #[inline]
    fn row(&self, slot: u32) -> &[f32] {
        debug_assert!(slot < self.len());
        // SAFETY: callers name slots below `len` (checked at the public functions, and every id in a link list is one):
        // whole rows that nobody writes any more.
        unsafe { self.held().floats(slot) }
    }

    /// The full rows of a graph that holds them: one that takes rows, or compares them.
    #[inline]
    fn held(&self) -> &Table {
        match &self.full {
            Full::Held(table) => table,
            Full::Elsewhere(_) => unreachable!("what takes rows or has no codes holds its rows"),
        }
    }

    /// What walks and linking compare at this moment.
    #[inline]
    fn compared(&self) -> &Table {
        self.codes.get().filter(|_| !self.refused.load(Ordering::Relaxed)).unwrap_or_else(|| self.held())
    }

    /// Chooses codes once there are rows enough, and judges them again whenever there are twice as many: the first rows
    /// need not look like those that follow, and more rows stand closer.
    fn settle_codes(&self) {
        let len = self.len();
        let settled = self.params.encoding == Encoding::F32 || !self.holds_rows();
        if settled || len < self.judged_at.load(Ordering::Relaxed) {
            return;
        }
        self.judged_at.store(len.saturating_mul(2), Ordering::Relaxed);
        match self.codes.get() {
            None => self.choose_codes(),
            Some(_) if self.refused.load(Ordering::Relaxed) => {}
            Some(codes) => {
                if self.judge(codes, len) == Verdict::Refused {
                    self.refuse("they do not tell these rows apart any more");
                }
            }
        }
    }

    /// Compares floats from now on.
    fn refuse(&self, why: &str) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::info!(rows = self.len(), "codes are given up, floats are compared: {why}");
        }
    }

    /// The smallest codes wanted that serve, if any do.
    fn choose_codes(&self) {
        // No row comes meanwhile: one that came without codes would never get them.
        let _alone = self.writer.lock();
        let len = self.len();
        let tried: &[Encoding] = match self.params.encoding {
            Encoding::F16 => &[Encoding::F16],
            Encoding::Sq4 => &[Encoding::Sq4, Encoding::Sq8],
            _ => &[Encoding::Sq8],
        };
        for &encoding in tried {
            // Without memory for codes floats serve as well.
            let Ok(codes) = self.encoded(encoding, len, self.capacity) else { return };
            match self.judge(&codes, len) {
                Verdict::Fit => {
                    let _ = self.codes.set(codes);
                    return;
                }
                Verdict::Unknown => return,
                Verdict::Refused => tracing::info!(rows = len, "{} does not tell these rows apart", encoding.name()),
            }
        }
    }

    /// The first `len` rows in another encoding, with room for more.
    fn encoded(&self, encoding: Encoding, len: u32, capacity: usize) -> io::Result<Table> {
        let row = |slot| &self.row(slot)[..self.dim];
        let every = len.div_ceil(TRAIN_SAMPLE).max(1) as usize;
        let codec = Codec::train(encoding, self.kernel, self.dim, (0..len).step_by(every).map(row));
        let codes = Table::try_new(codec, capacity)?;
        for slot in 0..len {
            // SAFETY: nobody else knows the table yet.
            unsafe { codes.encode(slot, row(slot), self.kernel.is_directionless(row(slot))) };
        }
        Ok(codes)
    }

    /// Codes of the first `len` rows, where others are wanted than it was linked by and serve: it answers from them when it
    /// is sealed.
    fn sealed_codes(&self, len: u32) -> io::Result<Option<Table>> {
        let (wanted, compared) = (self.params.encoding, self.encoding());
        let settled = wanted == compared || [wanted, compared].contains(&Encoding::F32);
        if settled || !self.holds_rows() {
            return Ok(None);
        }
        let codes = self.encoded(wanted, len, len as usize)?;
        let fit = self.judge(&codes, len) == Verdict::Fit;
        if !fit {
            tracing::info!(rows = len, "{} does not tell these rows apart; keeping {}", wanted.name(), compared.name());
        }
        Ok(fit.then_some(codes))
    }

    /// What codes the next file of the graph is to have.
    pub fn want_encoding(&mut self, encoding: Encoding) {
        self.params.encoding = encoding.for_metric(self.metric());
    }

    /// Do codes find what floats find? Judged by some of the rows as queries against all, or very many, of them: the grid is
    /// one for all elements, and rows that differ in a small element beside a large one look the same on it. Rows of which
    /// most are equal, or have no direction, tell nothing.
    fn judge(&self, codes: &Table, len: u32) -> Verdict {
        if !(0..len).all(|slot| codes.holds(&self.row(slot)[..self.dim])) {
            return Verdict::Refused;
        }
        let slots: Vec<u32> = (0..len).step_by(len.div_ceil(PROBED_ROWS) as usize).collect();
        let (mut found, mut wanted) = (0, 0);
        for &probe in slots.iter().step_by(slots.len().div_ceil(PROBES)) {
            if self.kernel.is_directionless(self.row(probe)) {
                continue;
            }
            let row = &self.row(probe)[..self.dim];
            // SAFETY: every slot below `len` is published, and has its code: codes are written with the row, or before.
            let (exact, coded) = unsafe { (self.held().nearest(row, &slots), codes.nearest(row, &slots)) };
            let farther = exact[exact.len() / 2].0;
            if !(exact[0].0 < farther && farther.is_finite()) {
                continue;
            }
            let mut chosen: Vec<f32> = coded[..codes.encoding().overfetch(PROBED_FOR).min(coded.len())]
                .iter()
                .map(|&(_, slot)| self.kernel.inner(self.row(probe), self.row(slot)))
                .collect();
            chosen.sort_by(f32::total_cmp);
            // By distance, not by slot: rows at one distance may stand for each other.
            let pairs = chosen.iter().zip(&exact).take(PROBED_FOR);
            found += pairs.filter(|(chosen, (exact, _))| *chosen <= exact).count();
            wanted += PROBED_FOR;
        }
        if wanted < PROBES * PROBED_FOR / 2 {
            Verdict::Unknown
        } else if found as f64 >= PROBED_RECALL * wanted as f64 {
            Verdict::Fit
        } else {
            Verdict::Refused
        }
    }

    /// A slot's list on a level it has.
    #[inline]
    fn list(&self, level: u32, slot: u32) -> List<'_> {
        if level == 0 { self.base.list(slot) } else { List::Words(self.block(level, slot)) }
    }

    /// The words of such a list, to be written.
    fn words(&self, level: u32, slot: u32) -> &[AtomicU32] {
        if level == 0 { self.base.words(slot) } else { self.block(level, slot) }
    }

    /// A list of an upper level.
    fn block(&self, level: u32, slot: u32) -> &[AtomicU32] {
        let m = self.params.m;
        let block = self.upper_at.words()[slot as usize].load(Ordering::Relaxed) + level - 1;
        &self.upper.words()[block as usize * m..][..m]
    }

    /// Where walks enter: the slot and its level.
    fn entry(&self) -> Option<(u32, u32)> {
        match self.entry.load(Ordering::Acquire) {
            0 => None,
            entry => Some((entry as u32 - 1, (entry >> 32) as u32)),
        }
    }

    /// Search state from the pool, or a new one.
    fn lease(&self) -> Box<Scratch> {
        self.scratches.lock().pop().unwrap_or_else(|| Box::new(Scratch::new(self.capacity, 2 * self.params.m)))
    }

    /// Gives search state back.
    fn release(&self, mut scratch: Box<Scratch>) {
        scratch.clear();
        self.scratches.lock().push(scratch);
    }
}

/// The level of a slot: geometric with ratio `1 / m`, a pure function of seed and slot.
fn level_of(m: usize, seed: u64, slot: u32) -> u32 {
    // SplitMix64's finaliser over a Weyl sequence.
    let mut z = seed.wrapping_add((u64::from(slot) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    // How often `z` falls into the lowest m-th of the range that is left: no logarithm, the same on every platform.
    let (mut level, mut bar) = (0, u64::MAX / m as u64);
    while z < bar && level < MAX_LEVEL {
        level += 1;
        bar /= m as u64;
    }
    level
}
