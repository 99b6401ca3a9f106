//! A search of one index at one view: candidates nearest first, resumable, complete when asked to the end.

use crate::engine::hnsw::Walk;
use crate::engine::rows::Passing;
use crate::engine::segment::Segment;
use crate::engine::view::{IndexView, Prepared};
use crate::model::{Candidate, Encoding, Exactness, Filter};
use crate::storage::Result;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet};

/// A distance in a walk costs so many of a scan, which fetches rows long before it needs them and keeps no queue: measured
/// with `bench filtered`, 1.3 where the scanned rows come from memory, 3 where they stay in the cache.
pub const WALK_COST: f64 = 2.0;
/// A segment has its share of the neighbours only, give or take, and is walked with this power of it of the width: measured
/// with `bench churn` on sentence embeddings, the recall of six segments is that of one within a hundredth.
const SHARE: f64 = 0.4;
/// Rows that came together may be neighbours: a small segment is walked with so much of the width all the same.
const LEAST_SHARE: f64 = 0.35;
/// Of rows at one distance so many are compared by their full vectors at once.
const SETTLED: usize = 4_096;
/// So many distances a walk may always compute: a tenth of a millisecond or two.
const LEAST_BUDGET: usize = 2_000;

/// How an index is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Compare with the full vector of every row that may be returned: a proof.
    Exact,
    /// Compare with every row that may be returned as walks see it, and with the full vectors of the nearest. Exact where
    /// rows have no codes.
    Scan,
    /// Walk the graphs with this width; scan what is not linked yet. A walk that has cost as much as the scan is given up
    /// for the scan: what it costs is at most twice the better of both, whatever the filter has to do with the query.
    Walk {
        /// Candidates kept while walking.
        ef: usize,
    },
}

/// Number of the segment where there is none: the vectors of a sparse column, whose slots are nodes.
const SPARSE: usize = u32::MAX as usize;

/// A place found: distance, segment, slot.
#[derive(Clone, Copy, PartialEq)]
struct Found {
    inner: f32,
    segment: u32,
    slot: u32,
    /// Compared by its code only.
    coded: bool,
}

impl Eq for Found {}

impl Ord for Found {
    /// Reversed, so that the largest of a heap is the nearest.
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |found: &Found| (found.segment, found.slot);
        other.inner.total_cmp(&self.inner).then_with(|| place(other).cmp(&place(self)))
    }
}

impl PartialOrd for Found {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// An open search. Each page continues where the last one ended.
pub struct Candidates<'v> {
    index: &'v IndexView,
    query: &'v Prepared,
    passing: Passing<'v>,
    /// One per segment, or none at all.
    walks: Vec<Walk<'v>>,
    /// Distances the walks may compute, all together.
    budget: usize,
    /// Compare full vectors only.
    exact: bool,
    exactness: Exactness,
    /// Scans that are still to be done: segment and first slot.
    unscanned: Vec<(usize, u32)>,
    /// Found and not returned yet.
    found: BinaryHeap<Found>,
    /// Segment and slot of what was returned while there were walks.
    returned: HashSet<(u32, u32)>,
    scanned: usize,
    given_up: Option<usize>,
}

impl<'v> Candidates<'v> {
    /// Opens a search for the rows that pass the filter. Sparse vectors are all compared, whatever the method.
    pub fn open(
        index: &'v IndexView,
        query: &'v Prepared,
        filter: Option<&'v Filter>,
        method: Method,
    ) -> Candidates<'v> {
        let passing = index.rows.passing(filter);
        let mut open = Candidates {
            index,
            query,
            walks: Vec::new(),
            budget: ((passing.count() as f64 / WALK_COST) as usize).max(LEAST_BUDGET),
            passing,
            exact: method == Method::Exact,
            exactness: Exactness::default(),
            unscanned: Vec::new(),
            found: BinaryHeap::new(),
            returned: HashSet::new(),
            scanned: 0,
            given_up: None,
        };
        let Prepared::Graph(query) = query else {
            open.unscanned.push((SPARSE, 0));
            return open;
        };
        let linked = |segment: &Segment| f64::from(segment.graph.linked());
        // Rows that are wanted together are together in a tier.
        let tiered = index.segments.iter().any(|segment| segment.keeping().tier.is_some());
        let all = index.segments.iter().map(|segment| linked(segment)).sum::<f64>().max(1.0);
        for (number, segment) in index.segments.iter().enumerate() {
            let mut reached = 0;
            if let Method::Walk { ef } = method {
                let share = if tiered { 1.0 } else { (linked(segment) / all).powf(SHARE).max(LEAST_SHARE) };
                let width = ef as f64 * share;
                let walk = segment.graph.walk(query, width.ceil() as usize);
                // The walk never returns slots linked from now on: they stay in the scanned tail, so none comes twice.
                reached = walk.limit();
                open.walks.push(walk);
            }
            open.unscanned.push((number, reached));
        }
        open
    }

    /// The same search, before its first page, comparing as much with full vectors.
    pub fn compared(mut self, exactness: Exactness) -> Candidates<'v> {
        self.exactness = exactness;
        self.walks.iter_mut().for_each(|walk| walk.set_exactness(exactness));
        self
    }

    /// Compares the query with every acceptable slot of a segment from `from` on that was not returned.
    fn scan(&mut self, number: usize, from: u32) -> Result<()> {
        let query = match self.query {
            Prepared::Graph(query) => query,
            Prepared::Sparse(query) => {
                let rows = &self.index.sparse.rows;
                let mut found = Vec::new();
                rows.scan(query, self.passing.ones(0, rows.len()), |slot, inner| {
                    found.push(Found { inner, segment: SPARSE as u32, slot, coded: false });
                });
                self.scanned += found.len();
                self.found.append(&mut BinaryHeap::from(found));
                return Ok(());
            }
        };
        let (segment, number) = (&self.index.segments[number], number as u32);
        let slots = slots(&self.passing, segment, from);
        let new = slots.filter(|slot| self.returned.is_empty() || !self.returned.contains(&(number, *slot)));
        let coded = !self.exact && segment.graph.encoding() != Encoding::F32;
        let mut found = Vec::new();
        let mut each = |slot, inner| found.push(Found { inner, segment: number, slot, coded });
        if coded {
            segment.graph.scan_compared(query, new, &mut each);
        } else {
            segment.graph.scan(query, new, &mut each)?;
        }
        self.scanned += found.len();
        self.found.append(&mut BinaryHeap::from(found));
        Ok(())
    }

    /// Compares by their full vectors what is among the nearest by codes.
    fn settle(&mut self, want: usize) -> Result<()> {
        // Sparse vectors have no codes.
        let Prepared::Graph(query) = self.query else { return Ok(()) };
        let encodings = self.index.segments.iter().map(|segment| segment.graph.encoding());
        let most = encodings.map(|encoding| encoding.compared(self.exactness, want, 0)).max().unwrap_or(want);
        let (mut nearest, mut coded) = (Vec::new(), Vec::new());
        while nearest.len() + coded.len() < most
            && let Some(found) = self.found.pop()
        {
            if found.coded { &mut coded } else { &mut nearest }.push(found);
        }
        coded.sort_unstable_by_key(|found| (found.segment, found.slot));
        for one in coded.chunk_by(|a, b| a.segment == b.segment) {
            let (segment, slots) = (one[0].segment, one.iter().map(|found| found.slot).collect::<Vec<_>>());
            let graph = &self.index.segments[segment as usize].graph;
            graph.measure(query, &slots, &mut |slot, inner| {
                nearest.push(Found { inner, segment, slot, coded: false });
            })?;
        }
        self.found.extend(nearest);
        Ok(())
    }

    /// At most `want` further candidates, nearest first. Fewer only when there are no more. An error is one of reading full
    /// vectors; the search is of no use after it.
    pub fn next_page(&mut self, want: usize) -> Result<Vec<Candidate>> {
        for (segment, from) in std::mem::take(&mut self.unscanned) {
            self.scan(segment, from)?;
        }
        self.walk_on(want)?;
        let settles = self.exactness != Exactness::Fast;
        if settles {
            self.settle(want)?;
        }
        let mut page = Vec::with_capacity(want.min(self.found.len()));
        while page.len() < want {
            // By their full vectors those may all be farther than it seemed.
            while settles && self.found.peek().is_some_and(|found| found.coded) {
                self.settle(want - page.len())?;
            }
            let Some(found) = self.found.pop() else { break };
            let (node, distance) = self.place(found);
            let Some(candidate) = self.candidate(node, distance) else { continue };
            page.push(candidate);
            if !self.walks.is_empty() {
                self.returned.insert((found.segment, found.slot));
            }
        }
        Ok(page)
    }

    /// All further ones at this distance, by node, in no order. `None` while there are walks: what they will find is not
    /// known. An error is one of reading full vectors; the search is of no use after it.
    pub fn tied(&mut self, distance: f64) -> Result<Option<Vec<u32>>> {
        if !self.walks.is_empty() {
            return Ok(None);
        }
        for (segment, from) in std::mem::take(&mut self.unscanned) {
            self.scan(segment, from)?;
        }
        let settles = self.exactness != Exactness::Fast;
        let mut nodes = Vec::new();
        loop {
            while settles && self.found.peek().is_some_and(|found| found.coded) {
                self.settle(SETTLED)?;
            }
            let Some(found) = self.found.peek() else { break };
            let (node, at) = self.place(*found);
            if at != distance && !(at.is_nan() && distance.is_nan()) {
                break;
            }
            self.found.pop();
            nodes.push(node);
        }
        Ok(Some(nodes))
    }

    /// A row at a distance that was found; `None` where the node has none.
    pub fn candidate(&self, node: u32, distance: f64) -> Option<Candidate> {
        let row = self.index.row(node)?;
        Some(Candidate { key: row.key(), distance, version: row.version(), node })
    }

    /// Node and distance of what was found.
    fn place(&self, Found { inner, segment, slot, .. }: Found) -> (u32, f64) {
        match self.index.segments.get(segment as usize) {
            Some(segment) => (segment.node(slot), f64::from(segment.graph.public_distance(inner))),
            None => (slot, f64::from(inner)),
        }
    }

    fn walk_on(&mut self, want: usize) -> Result<()> {
        let (index, passing) = (self.index, &self.passing);
        let mut out = Vec::with_capacity(want);
        let mut spent: usize = self.walks.iter().map(Walk::visited).sum();
        for (number, (walk, segment)) in self.walks.iter_mut().zip(&index.segments).enumerate() {
            let mut takes = |slot| passing.contains(segment.node(slot));
            let before = walk.visited();
            walk.set_budget(before + self.budget.saturating_sub(spent));
            walk.next_page(want, &mut takes, &mut out)?;
            spent += walk.visited() - before;
            if spent >= self.budget {
                return self.give_up(spent);
            }
            let found = |(inner, slot)| Found { inner, segment: number as u32, slot, coded: false };
            self.found.extend(out.drain(..).map(found));
        }
        Ok(())
    }

    /// The walks have cost as much as comparing with every row that passes: this is done instead.
    fn give_up(&mut self, spent: usize) -> Result<()> {
        self.given_up = Some(spent);
        self.walks.clear();
        self.found.clear();
        for number in 0..self.index.segments.len() {
            self.scan(number, 0)?;
        }
        self.returned.clear();
        Ok(())
    }

    /// Distances computed so far.
    pub fn visited(&self) -> usize {
        self.scanned + self.given_up.unwrap_or_else(|| self.walks.iter().map(Walk::visited).sum())
    }

    /// How many distances walks had computed when they were given up for a scan, if they were.
    pub fn given_up(&self) -> Option<usize> {
        self.given_up
    }
}

/// The slots of a segment from `from` on whose nodes pass, ascending.
fn slots<'a>(passing: &'a Passing<'_>, segment: &'a Segment, from: u32) -> impl Iterator<Item = u32> + 'a {
    let len = segment.graph.len();
    let span = if from < len { (segment.node(from), segment.node(len - 1) + 1) } else { (0, 0) };
    let mut slot = from;
    passing.ones(span.0, span.1).filter_map(move |node| {
        // Nodes ascend with their slots: this one is at most as far on as the numbers differ, and mostly just there.
        let ahead = node.checked_sub(segment.node(slot))?;
        let (mut low, mut high) = (slot, slot.saturating_add(ahead).min(len - 1));
        if segment.node(high) != node {
            while low < high {
                let middle = low + (high - low) / 2;
                (low, high) = if segment.node(middle) < node { (middle + 1, high) } else { (low, middle) };
            }
        }
        slot = high;
        (segment.node(slot) == node).then_some(slot)
    })
}

#[cfg(test)]
mod tests;
