//! Linking: a stored slot gets its neighbours on every level it has, and they get it.

use std::sync::atomic::{AtomicU32, Ordering};

use super::search::{Scratch, distance_of, key, slot_of};
use super::table::Table;
use super::{Graph, STRIPES};
use crate::engine::codes::Coded;
use crate::model::{Encoding, IndexKind, Metric};

/// Slots linked by one thread first, so that several threads do not begin on an empty graph.
const SEED_SLOTS: u32 = 256;
/// Slots between two calls of `progress`.
const REPORT_EVERY: usize = 256;

impl Graph {
    /// Links up to `max` of the next stored slots, in order, and returns how many. Linkers exclude each other.
    pub fn link_next(&self, max: usize) -> usize {
        let _alone = self.linker.lock();
        self.settle_codes();
        if self.params.index != IndexKind::Hnsw {
            return 0;
        }
        let (from, len) = (self.linked(), self.len());
        let to = from + (len - from).min(u32::try_from(max).unwrap_or(u32::MAX));
        self.link_in_order(from, to);
        (to - from) as usize
    }

    /// Links every stored slot with several threads, then moves the watermark. `progress` is called by all of them, with
    /// the number of slots linked since its last call.
    pub fn build(&self, threads: usize, progress: &(dyn Fn(usize) + Sync)) {
        let _alone = self.linker.lock();
        self.settle_codes();
        let (from, len) = (self.linked(), self.len());
        if self.params.index != IndexKind::Hnsw {
            return progress(len as usize);
        }
        let seeded = len.min(from.max(SEED_SLOTS));
        self.link_in_order(from, seeded);
        progress((seeded - from) as usize);
        let next = AtomicU32::new(seeded);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| self.link_shared(&next, len, progress));
            }
            self.link_shared(&next, len, progress);
        });
        self.linked.store(len, Ordering::Release);
    }

    fn link_in_order(&self, from: u32, to: u32) {
        let mut scratch = self.lease();
        for slot in from..to {
            self.link(slot, &mut scratch);
            self.linked.store(slot + 1, Ordering::Release);
        }
        self.release(scratch);
    }

    /// One thread's share of a build.
    fn link_shared(&self, next: &AtomicU32, end: u32, progress: &(dyn Fn(usize) + Sync)) {
        let mut scratch = self.lease();
        let mut unreported = 0;
        loop {
            let slot = next.fetch_add(1, Ordering::Relaxed);
            if slot >= end {
                break;
            }
            self.link(slot, &mut scratch);
            unreported += 1;
            if unreported == REPORT_EVERY {
                progress(std::mem::take(&mut unreported));
            }
        }
        progress(unreported);
        self.release(scratch);
    }

    /// Links one slot: its own lists on all levels first, and only then the links that make it reachable, so that a walk
    /// that arrives here can always go on.
    fn link(&self, slot: u32, s: &mut Scratch) {
        if self.kernel.is_directionless(self.row(slot)) {
            return;
        }
        let table = self.compared();
        let mut query = std::mem::take(&mut s.query);
        // SAFETY: the slot is published.
        unsafe { table.row_as_query(slot, &mut query) };
        self.link_by(slot, table, &query, s);
        s.query = query;
    }

    fn link_by(&self, slot: u32, table: &Table, query: &Coded, s: &mut Scratch) {
        let level = self.level(slot);
        let Some((mut start, top)) = self.first_or_entry(slot, level, table, query, s) else { return };
        s.chosen.clear();
        for at in (0..=level.min(top)).rev() {
            self.beam(table, query, start, at, self.params.ef_construction, s);
            if at == 0
                && let Some(twin) = self.twin(table, slot, s.pool.keys())
            {
                self.chain(twin, slot);
                return;
            }
            start = s.pool.keys()[0];
            self.choose(table, slot, at, s);
        }
        for i in 0..s.chosen.len() {
            let (at, neighbour) = s.chosen[i];
            self.link_back(table, slot_of(neighbour), at, key(distance_of(neighbour), slot), s);
        }
        if level > top {
            self.entry.fetch_max(u64::from(level) << 32 | u64::from(slot + 1), Ordering::Release);
        }
    }

    /// Where to begin searching on the slot's top level, and the graph's top; the very first slot becomes the entry.
    fn first_or_entry(
        &self,
        slot: u32,
        level: u32,
        table: &Table,
        query: &Coded,
        s: &mut Scratch,
    ) -> Option<(u64, u32)> {
        let first = u64::from(level) << 32 | u64::from(slot + 1);
        if self.entry.compare_exchange(0, first, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return None;
        }
        // The entry may rise between the two reads; then `top` is the lower one, and only levels up to it are linked.
        let (_, top) = self.entry()?;
        let (start, _) = self.descend(table, query, level.min(top), s)?;
        Some((start, top))
    }

    /// A linked slot that cannot be told apart: its compared row is the same, bit for bit.
    fn twin(&self, table: &Table, slot: u32, nearest: &[u64]) -> Option<u32> {
        // A product says nothing about equality, nor does Jaccard where no bit is set, and codes are not of unit length; the
        // others put equal rows first, but for rounding.
        let reach = match self.metric() {
            Metric::L2 | Metric::L1 | Metric::Hamming | Metric::Poincare | Metric::Lorentz => 0.0,
            Metric::Cosine if table.encoding() == Encoding::F32 => 1e-5,
            Metric::Cosine | Metric::Ip | Metric::Jaccard => f32::INFINITY,
        };
        // SAFETY: every slot in a pool is published, and so is this one.
        let row = |slot| unsafe { table.row(slot) };
        let near = nearest.iter().take_while(|&&key| distance_of(key) <= reach);
        near.map(|&key| slot_of(key)).find(|&other| row(other) == row(slot))
    }

    /// Puts a slot into the chain of those equal to `twin`.
    fn chain(&self, twin: u32, slot: u32) {
        let same = self.same.words();
        let _guard = self.stripes[twin as usize % STRIPES].lock();
        let rest = same[twin as usize].load(Ordering::Relaxed);
        same[slot as usize].store(rest, Ordering::Relaxed);
        same[twin as usize].store(slot + 1, Ordering::Release);
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    /// Chooses the slot's neighbours among the pool, writes its list, and notes them for the way back.
    fn choose(&self, table: &Table, slot: u32, level: u32, s: &mut Scratch) {
        select(table, s.pool.keys(), self.params.m, &mut s.other, &mut s.kept);
        write(self.words(level, slot), s.kept.iter().map(|&key| slot_of(key)));
        s.chosen.extend(s.kept.iter().map(|&key| (level, key)));
    }

    /// Adds `new` to a neighbour's list; a full list is chosen anew.
    fn link_back(&self, table: &Table, slot: u32, level: u32, new: u64, s: &mut Scratch) {
        let _guard = self.stripes[slot as usize % STRIPES].lock();
        let list = self.words(level, slot);
        s.ids.clear();
        s.ids.extend(self.list(level, slot).slots());
        if let Some(free) = list.get(s.ids.len()) {
            free.store(slot_of(new) + 1, Ordering::Release);
            return;
        }
        // SAFETY: the neighbour and what it links to are published.
        unsafe {
            table.row_as_query(slot, &mut s.other);
            table.gather(&s.other, &s.ids, &mut s.measured);
        }
        s.weighed.clear();
        s.weighed.push(new);
        s.weighed.extend(s.ids.iter().zip(&s.measured).map(|(&id, &distance)| key(distance, id)));
        s.weighed.sort_unstable();
        select(table, &s.weighed, list.len(), &mut s.other, &mut s.kept);
        write(list, s.kept.iter().map(|&key| slot_of(key)));
    }
}

/// The diversity heuristic (algorithm 4 of the paper): nearest first, a candidate is kept unless one kept before it is
/// nearer to it than the node is; that one leads there.
fn select(table: &Table, candidates: &[u64], room: usize, query: &mut Coded, kept: &mut Vec<u64>) {
    kept.clear();
    for &candidate in candidates {
        if kept.len() == room {
            break;
        }
        let distance = distance_of(candidate);
        // SAFETY: candidates are published slots.
        let is_nearer = |query: &Coded, other: u64| unsafe { table.one(query, slot_of(other)) } < distance;
        if !kept.is_empty() {
            // SAFETY: as above.
            unsafe { table.row_as_query(slot_of(candidate), query) };
        }
        if !kept.iter().any(|&other| is_nearer(query, other)) {
            kept.push(candidate);
        }
    }
}

/// Replaces a list. Readers see old and new neighbours mixed for a moment, never a gap before the end.
fn write(list: &[AtomicU32], slots: impl ExactSizeIterator<Item = u32>) {
    let count = slots.len();
    for (link, slot) in list.iter().zip(slots) {
        link.store(slot + 1, Ordering::Release);
    }
    list[count..].iter().for_each(|link| link.store(0, Ordering::Release));
}
