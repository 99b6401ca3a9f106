//! A search of one index at one view: candidates nearest first, resumable, complete when asked to the end.

use crate::engine::hnsw::{Query, Walk};
use crate::engine::segment::Segment;
use crate::engine::view::{IndexView, Row};
use crate::model::{Candidate, Filter, RowKey};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Which rows may be returned.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accept<'a> {
    /// Only rows that pass.
    pub filter: Option<&'a Filter>,
    /// Not this row.
    pub except: Option<&'a RowKey>,
}

impl Accept<'_> {
    fn takes(&self, row: &Row) -> bool {
        self.except.is_none_or(|key| row.key != *key) && self.filter.is_none_or(|filter| filter.passes(&row.filters))
    }
}

/// How an index is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Compare with every row that may be returned.
    Scan,
    /// Walk the graphs with this width; scan what is not linked yet.
    Walk {
        /// Candidates kept while walking.
        ef: usize,
    },
}

/// A place found: distance, segment, slot.
#[derive(Clone, Copy, PartialEq)]
struct Found {
    inner: f32,
    segment: u32,
    slot: u32,
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
    accept: Accept<'v>,
    /// One per segment, or none at all.
    walks: Vec<Walk<'v>>,
    /// Found and not returned yet.
    found: BinaryHeap<Found>,
    scanned: usize,
}

impl<'v> Candidates<'v> {
    /// Opens a search.
    pub fn open(index: &'v IndexView, query: &'v Query, accept: Accept<'v>, method: Method) -> Candidates<'v> {
        let mut open = Candidates { index, accept, walks: Vec::new(), found: BinaryHeap::new(), scanned: 0 };
        for (number, segment) in index.segments.iter().enumerate() {
            let mut reached = 0;
            if let Method::Walk { ef } = method {
                let walk = segment.graph.walk(query, ef);
                // The walk never returns slots linked from now on: they stay in the scanned tail, so none comes twice.
                reached = walk.limit();
                open.walks.push(walk);
            }
            open.scan(query, number, segment, reached);
        }
        open
    }

    /// Compares the query with every acceptable slot of a segment from `from` on.
    fn scan(&mut self, query: &Query, number: usize, segment: &Segment, from: u32) {
        let (index, accept) = (self.index, self.accept);
        let takes = |slot: &u32| index.row(segment.node(*slot)).is_some_and(|row| accept.takes(row));
        segment.graph.scan(query, (from..segment.graph.len()).filter(takes), &mut |slot, inner| {
            self.found.push(Found { inner, segment: number as u32, slot });
            self.scanned += 1;
        });
    }

    /// At most `want` further candidates, nearest first. Fewer only when there are no more.
    pub fn next_page(&mut self, want: usize) -> Vec<Candidate> {
        self.walk_on(want);
        let mut page = Vec::with_capacity(want.min(self.found.len()));
        while page.len() < want {
            let Some(Found { inner, segment, slot }) = self.found.pop() else { break };
            let segment = &self.index.segments[segment as usize];
            let node = segment.node(slot);
            if let Some(row) = self.index.row(node) {
                let distance = f64::from(segment.graph.public_distance(inner));
                page.push(Candidate { key: row.key.clone(), distance, version: row.version, node });
            }
        }
        page
    }

    fn walk_on(&mut self, want: usize) {
        let (index, accept) = (self.index, self.accept);
        let mut out = Vec::with_capacity(want);
        for (number, (walk, segment)) in self.walks.iter_mut().zip(&index.segments).enumerate() {
            let mut takes = |slot| index.row(segment.node(slot)).is_some_and(|row| accept.takes(row));
            walk.next_page(want, &mut takes, &mut out);
            self.found.extend(out.drain(..).map(|(inner, slot)| Found { inner, segment: number as u32, slot }));
        }
    }

    /// Distances computed so far.
    pub fn visited(&self) -> usize {
        self.scanned + self.walks.iter().map(Walk::visited).sum::<usize>()
    }
}

/// The share of live rows that pass, judged from about `samples` of them; `None` when nothing is live.
pub fn estimate_passing(index: &IndexView, filter: &Filter, samples: usize) -> Option<f64> {
    let nodes = index.rows.len() as u64;
    let (mut live, mut passing) = (0usize, 0usize);
    for sample in 0..samples.min(nodes as usize) as u64 {
        // Spread by the golden ratio: a fixed step would fall in with rows that were written in a pattern.
        let spread = sample.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        if let Some(row) = index.row(((spread * nodes) >> 32) as u32) {
            live += 1;
            passing += usize::from(filter.passes(&row.filters));
        }
    }
    (live > 0).then(|| passing as f64 / live as f64)
}
