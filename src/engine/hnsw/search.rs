//! Walks: the nearest accepted slots, page after page, and the beam search that linking shares with them.
//!
//! The pool is a sorted array of the nearest `room` results, each marked when its links have been followed; the nearest
//! unmarked one is followed next, and when none is left the pool is final. What lies beyond the pool's last entry costs
//! one push onto an unsorted list, `beyond`, and is looked at again only when the walk is continued with more room.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{Ordering, fence};

use super::links::{List, unpack};
use super::table::Table;
use super::{Graph, Query};
use crate::engine::codes::Coded;
use crate::model::Encoding;
use crate::storage::Result;

/// Distance (as an ordered integer), slot and state in one number: comparing keys compares distances, then slots.
type Key = u64;

/// The slot's links have been followed.
const FOLLOWED: Key = 1;
/// The slot may be returned.
const ACCEPTED: Key = 2;
/// With `FOLLOWED` unset: the slot may not be returned, only followed. Same bit pattern as `FOLLOWED`, which alone never
/// occurs: a slot that is followed and not accepted is forgotten.
const GUIDE: Key = 1;
const STATE: Key = 3;

#[inline]
fn ordered(distance: f32) -> u32 {
    let bits = distance.to_bits();
    bits ^ (((bits as i32) >> 31) as u32 | 0x8000_0000)
}

/// The key of a slot at a distance, state empty.
#[inline]
pub(super) fn key(distance: f32, slot: u32) -> Key {
    Key::from(ordered(distance)) << 32 | Key::from(slot) << 2
}

/// The slot of a key.
#[inline]
pub(super) fn slot_of(key: Key) -> u32 {
    key as u32 >> 2
}

/// The distance of a key.
#[inline]
pub(super) fn distance_of(key: Key) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered ^ 0x8000_0000 } else { !ordered })
}

/// The nearest results so far, sorted.
#[derive(Default)]
pub(super) struct Pool {
    keys: Vec<Key>,
    room: usize,
    /// Everything before this has been followed.
    next: usize,
}

impl Pool {
    fn reset(&mut self, room: usize) {
        self.keys.clear();
        self.room = room;
        self.next = 0;
    }

    /// All results, nearest first.
    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Keys at or above this do not get in.
    #[inline]
    fn bound(&self) -> Key {
        if self.keys.len() < self.room { Key::MAX } else { self.keys.last().map_or(0, |&key| key & !STATE) }
    }

    /// Puts in a key below the bound; returns its place and what had to leave.
    #[inline]
    fn insert(&mut self, key: Key) -> (usize, Option<Key>) {
        let out = if self.keys.len() == self.room { self.keys.pop() } else { None };
        self.next = self.next.min(self.keys.len());
        let at = self.keys.partition_point(|&other| other < key);
        self.keys.insert(at, key);
        if key & FOLLOWED == 0 {
            self.next = self.next.min(at);
        } else if at <= self.next {
            self.next += 1;
        }
        (at, out)
    }

    /// The nearest result whose links have not been followed.
    #[inline]
    fn peek(&mut self) -> Option<Key> {
        while let Some(&key) = self.keys.get(self.next) {
            if key & FOLLOWED == 0 {
                return Some(key);
            }
            self.next += 1;
        }
        None
    }

    /// Takes the nearest results out, at most `most`.
    fn taken(&mut self, most: usize) -> std::vec::Drain<'_, Key> {
        let count = most.min(self.keys.len());
        self.room -= count;
        self.next = self.next.saturating_sub(count);
        self.keys.drain(..count)
    }

    /// Marks what `peek` returned.
    #[inline]
    fn follow(&mut self) {
        self.keys[self.next] |= FOLLOWED;
        self.next += 1;
    }
}

/// Which slots were seen: one bit each, and the list of them for clearing.
struct Seen {
    bits: Vec<u64>,
    slots: Vec<u32>,
}

impl Seen {
    fn clear(&mut self) {
        if self.slots.len() * 4 > self.bits.len() {
            self.bits.fill(0);
        } else {
            self.slots.iter().for_each(|&slot| self.bits[slot as usize / 64] = 0);
        }
        self.slots.clear();
    }

    #[inline]
    fn contains(&self, slot: u32) -> bool {
        self.bits[slot as usize / 64] >> (slot % 64) & 1 == 1
    }

    #[inline]
    fn add(&mut self, slot: u32) -> bool {
        let fresh = !self.contains(slot);
        if fresh {
            self.bits[slot as usize / 64] |= 1 << (slot % 64);
            self.slots.push(slot);
        }
        fresh
    }

    /// Adds what a list links to; the new ones are `slots[result..]`. Without branches on what was seen: that is a coin toss.
    #[inline]
    fn add_links(&mut self, links: List<'_>) -> usize {
        let start = self.slots.len();
        self.slots.resize(start + links.room(), 0);
        let (bits, out) = (self.bits.as_mut_slice(), &mut self.slots[start..]);
        let mut count = 0;
        let mut add = |slot: u32| {
            let (word, bit) = (&mut bits[slot as usize / 64], 1 << (slot % 64));
            out[count] = slot;
            count += usize::from(*word & bit == 0);
            *word |= bit;
        };
        match links {
            List::Words(words) => {
                for link in words {
                    let Some(slot) = link.load(Ordering::Relaxed).checked_sub(1) else { break };
                    add(slot);
                }
                // A link is stored after the row it leads to was published.
                fence(Ordering::Acquire);
            }
            List::Packed(bytes, width, links) => (0..links).for_each(|at| add(unpack(bytes, width, at))),
        }
        self.slots.truncate(start + count);
        start
    }
}

/// What a search needs besides the graph; reused, because clearing is cheaper than making.
pub(super) struct Scratch {
    seen: Seen,
    pub(super) pool: Pool,
    /// The query of the walk or of the slot being linked.
    pub(super) query: Coded,
    values: Vec<f32>,
    /// Slots within the bound (when they came) that are not in the pool: rejected ones, and what continuing brought back.
    frontier: BinaryHeap<Reverse<Key>>,
    /// Everything met beyond the bound, and what the pool let go.
    beyond: Vec<Key>,
    /// For linking: chosen neighbours, and what is weighed when a list overflows.
    pub(super) chosen: Vec<(u32, Key)>,
    pub(super) weighed: Vec<Key>,
    pub(super) kept: Vec<Key>,
    pub(super) ids: Vec<u32>,
    pub(super) measured: Vec<f32>,
    /// For linking: a second query.
    pub(super) other: Coded,
}

impl Scratch {
    pub(super) fn new(capacity: usize, list: usize) -> Scratch {
        Scratch {
            seen: Seen { bits: vec![0; capacity.div_ceil(64)], slots: Vec::new() },
            pool: Pool::default(),
            query: Coded::default(),
            values: vec![0.0; list.max(SWEEP)],
            frontier: BinaryHeap::new(),
            beyond: Vec::new(),
            chosen: Vec::new(),
            weighed: Vec::new(),
            kept: Vec::new(),
            ids: Vec::new(),
            measured: vec![0.0; list],
            other: Coded::default(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.seen.clear();
        self.pool.reset(0);
        self.frontier.clear();
        self.beyond.clear();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let keys = self.pool.keys.capacity() + self.frontier.capacity() + self.beyond.capacity();
        8 * (self.seen.bits.len() + keys) + 4 * (self.seen.slots.capacity() + self.values.len())
    }
}

impl Graph {
    /// From the entry down to `level`, always to the nearest neighbour; returns where that ended and the distances taken.
    pub(super) fn descend(
        &self,
        table: &Table,
        query: &Coded,
        level: u32,
        scratch: &mut Scratch,
    ) -> Option<(Key, usize)> {
        let (entry, top) = self.entry()?;
        // SAFETY: the entry, like every link, is a published slot.
        let mut best = key(unsafe { table.one(query, entry) }, entry);
        let mut taken = 1;
        for level in (level + 1..=top).rev() {
            loop {
                scratch.ids.clear();
                scratch.ids.extend(self.list(level, slot_of(best)).slots());
                // SAFETY: links lead to published slots.
                unsafe { table.gather(query, &scratch.ids, &mut scratch.measured) };
                taken += scratch.ids.len();
                let keys = scratch.ids.iter().zip(&scratch.measured).map(|(&slot, &distance)| key(distance, slot));
                match keys.min() {
                    Some(nearer) if nearer < best => best = nearer,
                    _ => break,
                }
            }
        }
        Some((best, taken))
    }

    /// The `room` nearest slots of a level that are reachable from `start`, into the scratch's pool.
    pub(super) fn beam(
        &self,
        table: &Table,
        query: &Coded,
        start: Key,
        level: u32,
        room: usize,
        scratch: &mut Scratch,
    ) {
        let Scratch { seen, pool, values, .. } = scratch;
        seen.clear();
        pool.reset(room);
        seen.add(slot_of(start));
        pool.insert(start & !STATE);
        while let Some(key_here) = pool.peek() {
            pool.follow();
            let fresh = seen.add_links(self.list(level, slot_of(key_here)));
            if let Some(next) = pool.peek() {
                self.list(level, slot_of(next)).prefetch();
            }
            let fresh = &seen.slots[fresh..];
            // SAFETY: links lead to published slots.
            unsafe { table.gather(query, fresh, values) };
            for (&slot, &distance) in fresh.iter().zip(values.iter()) {
                let key = key(distance, slot);
                if key < pool.bound() && pool.insert(key).0 == pool.next {
                    self.list(level, slot).prefetch();
                }
            }
        }
    }

    /// Starts a walk to the slots nearest to a query; `ef` trades time for recall.
    ///
    /// A walk finds the slots below [`Walk::limit`], the graph's `linked` at this moment, and never returns others.
    pub fn walk<'g>(&'g self, query: &'g Query, ef: usize) -> Walk<'g> {
        let limit = self.linked();
        Walk {
            graph: self,
            table: self.compared(),
            query,
            scratch: Some(self.lease()),
            held: BinaryHeap::new(),
            ef: ef.max(1),
            limit,
            started: false,
            swept: false,
            exhausted: limit == 0,
            distances: 0,
            budget: usize::MAX,
        }
    }
}

/// Rows measured at a time when a walk looks for what no link led to.
const SWEEP: usize = 64;

/// A search that can be continued.
pub struct Walk<'g> {
    graph: &'g Graph,
    /// What is compared on the way.
    table: &'g Table,
    query: &'g Query,
    /// Always there until the walk is dropped.
    scratch: Option<Box<Scratch>>,
    /// Found, compared exactly, and not returned yet; empty where the way is exact itself.
    held: BinaryHeap<Reverse<Key>>,
    ef: usize,
    limit: u32,
    started: bool,
    swept: bool,
    exhausted: bool,
    distances: usize,
    budget: usize,
}

/// Decides which slots may be returned.
type Accept<'a> = &'a mut dyn FnMut(u32) -> bool;

impl Walk<'_> {
    /// The next nearest accepted slots, ascending by exact inner distance: `want` of them, or fewer when the walk is dry or
    /// its budget is spent. Rejected slots are walked through. Calling again goes on: nothing twice, and every accepted slot
    /// below the limit comes once before the walk is dry. An error is one of reading full rows.
    pub fn next_page(
        &mut self,
        want: usize,
        accept: &mut dyn FnMut(u32) -> bool,
        out: &mut Vec<(f32, u32)>,
    ) -> Result<()> {
        let mut scratch = self.scratch.take().expect("a walk holds its scratch until dropped");
        let s = &mut *scratch;
        let encoding = self.table.encoding();
        if encoding == Encoding::F32 {
            self.fetch(want, want, accept, s);
            out.extend(s.pool.taken(want).map(|key| (distance_of(key), slot_of(key))));
        } else {
            // Coarse codes order little: the pool itself is what they choose.
            let pool = if encoding.is_coarse() { self.ef } else { 0 };
            let more = encoding.overfetch(want).max(pool).saturating_sub(self.held.len());
            self.fetch(want.saturating_sub(self.held.len()), more, accept, s);
            let compared = self.compare_exactly(more, s);
            if compared.is_err() {
                self.scratch = Some(scratch);
                return compared;
            }
            let count = want.min(self.held.len());
            let nearest = (0..count).filter_map(|_| self.held.pop());
            out.extend(nearest.map(|Reverse(key)| (distance_of(key), slot_of(key))));
        }
        self.scratch = Some(scratch);
        Ok(())
    }

    /// Walks until the pool has `least` results; `most` of them may be taken out.
    fn fetch(&mut self, least: usize, most: usize, accept: Accept<'_>, s: &mut Scratch) {
        if self.started {
            self.make_room(most, s);
        } else {
            self.start(most, s);
        }
        self.run(s, accept);
        while s.pool.keys.len() < least && !self.exhausted && self.distances < self.budget {
            self.sweep(s);
            self.run(s, accept);
        }
    }

    /// Takes up to `most` results out of the pool and measures them by their full rows.
    fn compare_exactly(&mut self, most: usize, s: &mut Scratch) -> Result<()> {
        s.ids.clear();
        s.ids.extend(s.pool.taken(most).map(slot_of));
        let held = &mut self.held;
        self.graph.measure(self.query, &s.ids, &mut |slot, inner| held.push(Reverse(key(inner, slot))))
    }

    /// Whether every accepted slot has been returned.
    pub fn is_dry(&self) -> bool {
        let pool_is_empty = || self.scratch.as_ref().is_none_or(|scratch| scratch.pool.keys.is_empty());
        self.exhausted && self.held.is_empty() && pool_is_empty()
    }

    /// Distances computed so far.
    pub fn visited(&self) -> usize {
        self.distances
    }

    /// Only slots below this are returned; the caller scans from here to the graph's `len`.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Ends pages early, possibly short, once this many distances were computed in all; raise it to go on.
    pub fn set_budget(&mut self, distances: usize) {
        self.budget = distances;
    }

    fn start(&mut self, want: usize, s: &mut Scratch) {
        self.started = true;
        s.pool.reset(self.ef.max(want));
        let mut query = std::mem::take(&mut s.query);
        self.table.query(self.query.row(), &mut query);
        let entered = self.graph.descend(self.table, &query, 0, s);
        s.query = query;
        if let Some((start, taken)) = entered {
            self.distances += taken;
            s.seen.add(slot_of(start));
            s.frontier.push(Reverse(start));
        }
    }

    /// A page that leaves half of `ef` behind it has been searched well enough; else the pool grows and the rest comes back.
    fn make_room(&mut self, want: usize, s: &mut Scratch) {
        if want + self.ef / 2 > s.pool.room {
            s.pool.room = want + self.ef;
            s.frontier.extend(s.beyond.drain(..).map(Reverse));
        }
    }

    /// Follows the nearest candidate until none is within the bound.
    fn run(&mut self, s: &mut Scratch, accept: Accept<'_>) {
        while self.distances < self.budget {
            let in_pool = s.pool.peek();
            match s.frontier.peek() {
                Some(&Reverse(other)) if in_pool.is_none_or(|key| other < key) => {
                    if other >= s.pool.bound() {
                        return;
                    }
                    s.frontier.pop();
                    self.take(other, s, accept);
                }
                _ => match in_pool {
                    Some(key) => {
                        s.pool.follow();
                        self.follow(key, s, accept);
                    }
                    None => return,
                },
            }
        }
    }

    /// Deals with a slot from the frontier: into the pool, or followed at once.
    fn take(&mut self, key: Key, s: &mut Scratch, accept: Accept<'_>) {
        let slot = slot_of(key);
        if key & ACCEPTED != 0 {
            insert(s, key);
        } else if key & GUIDE == 0 && slot < self.limit && accept(slot) {
            insert(s, key | ACCEPTED);
        } else {
            self.follow(key, s, accept);
        }
    }

    /// Measures what a slot links to.
    #[inline]
    fn follow(&mut self, here: Key, s: &mut Scratch, accept: Accept<'_>) {
        let graph = self.graph;
        let first = s.seen.add_links(graph.list(0, slot_of(here)));
        if let Some(next) = s.pool.peek() {
            graph.list(0, slot_of(next)).prefetch();
        }
        let count = s.seen.slots.len() - first;
        // SAFETY: links lead to published slots.
        unsafe { self.table.gather(&s.query, &s.seen.slots[first..], &mut s.values) };
        self.distances += count;
        for i in 0..count {
            let slot = s.seen.slots[first + i];
            self.offer(key(s.values[i], slot), s, accept);
        }
        if graph.repeated.load(Ordering::Relaxed) > 0 {
            let twin = graph.same.words()[slot_of(here) as usize].load(Ordering::Acquire);
            if let Some(twin) = twin.checked_sub(1).filter(|&twin| s.seen.add(twin)) {
                // Measured, for it may only have been equal by the codes of another time.
                // SAFETY: a chain is of published slots.
                let distance = unsafe { self.table.one(&s.query, twin) };
                self.distances += 1;
                self.offer(key(distance, twin), s, accept);
            }
        }
    }

    /// A slot just measured finds its place.
    #[inline]
    fn offer(&mut self, key: Key, s: &mut Scratch, accept: Accept<'_>) {
        if key >= s.pool.bound() {
            s.beyond.push(key);
        } else if slot_of(key) < self.limit && accept(slot_of(key)) {
            if insert(s, key | ACCEPTED) == s.pool.next {
                self.graph.list(0, slot_of(key)).prefetch();
            }
        } else {
            s.frontier.push(Reverse(key | GUIDE));
        }
    }

    /// No candidate is left, and the pool has room: first what lay beyond, then, once, the slots no link led to.
    fn sweep(&mut self, s: &mut Scratch) {
        if !s.beyond.is_empty() {
            s.frontier.extend(s.beyond.drain(..).map(Reverse));
            return;
        }
        self.exhausted = self.swept;
        if self.swept {
            return;
        }
        self.swept = true;
        let mut from = 0;
        while from < self.limit {
            s.ids.clear();
            while from < self.limit && s.ids.len() < SWEEP {
                if s.seen.add(from) {
                    s.ids.push(from);
                }
                from += 1;
            }
            // SAFETY: slots below the limit are published.
            unsafe { self.table.gather(&s.query, &s.ids, &mut s.values) };
            self.distances += s.ids.len();
            let keys = s.ids.iter().zip(&s.values).map(|(&slot, &value)| key(value, slot));
            s.frontier.extend(keys.map(Reverse));
        }
    }
}

/// Puts an accepted slot into the pool; what leaves it lies beyond from now on.
#[inline]
fn insert(s: &mut Scratch, key: Key) -> usize {
    let (at, out) = s.pool.insert(key);
    s.beyond.extend(out);
    at
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        if let Some(scratch) = self.scratch.take() {
            self.graph.release(scratch);
        }
    }
}
