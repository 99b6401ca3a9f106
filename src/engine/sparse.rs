//! The index of a sparse vector column: flat. All vectors are in memory and those that pass are compared one by one, so
//! answers are exact. There are no segments: nothing is linked, sealed or merged.
//!
//! Vectors lie in blocks in the order of their nodes. A block that is full changes only when most of it is dead; the last
//! one is copied when it is written after a snapshot. One writer, immutable snapshots.

use crate::model::{Metric, SparseVector};
use crate::storage::Result;
use crate::storage::sparse_originals::SparseOriginals;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Vectors and elements of a block: what a snapshot may cost the writer is 256 KiB.
const BLOCK_ROWS: usize = 1 << 12;
const BLOCK_ELEMENTS: usize = 1 << 15;

/// Indices, ascending, and values of a vector.
type Row<'b> = (&'b [u32], &'b [f32]);

/// Vectors of consecutive nodes.
#[derive(Clone, Default)]
struct Block {
    /// The node of the first one.
    first: u32,
    /// Where the elements of each end.
    ends: Vec<u32>,
    indices: Vec<u32>,
    values: Vec<f32>,
    /// How many have their elements here.
    held: usize,
}

impl Block {
    fn end(&self) -> u32 {
        self.first + self.ends.len() as u32
    }

    fn is_full(&self, more: usize) -> bool {
        self.ends.len() >= BLOCK_ROWS || !self.ends.is_empty() && self.indices.len() + more > BLOCK_ELEMENTS
    }

    fn push(&mut self, (indices, values): Row<'_>) {
        self.indices.extend_from_slice(indices);
        self.values.extend_from_slice(values);
        self.ends.push(self.indices.len() as u32);
        self.held += 1;
    }

    fn row(&self, node: u32) -> Option<Row<'_>> {
        let at = node.checked_sub(self.first)? as usize;
        let end = *self.ends.get(at)? as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        Some((&self.indices[start..end], &self.values[start..end]))
    }

    /// The same nodes, with the vectors of those only that some row has.
    fn living(&self, alive: impl Fn(u32) -> bool) -> Block {
        let mut block = Block { first: self.first, ..Block::default() };
        for node in self.first..self.end() {
            match self.row(node).filter(|_| alive(node)) {
                Some(row) => block.push(row),
                None => block.ends.push(block.indices.len() as u32),
            }
        }
        block.indices.shrink_to_fit();
        block.values.shrink_to_fit();
        block
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Block>() + 4 * (self.ends.capacity() + self.indices.capacity() + self.values.capacity())
    }
}

/// The vectors by node; `clone` is a snapshot.
#[derive(Clone, Default)]
pub struct SparseRows {
    /// By node; none of nodes that are all dead.
    blocks: Arc<Vec<Arc<Block>>>,
    dimensions: usize,
    len: u32,
}

impl SparseRows {
    /// Nodes, with or without a vector.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// No nodes at all?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Which block a node is in, if in any.
    fn place(&self, node: u32) -> Option<usize> {
        let place = self.blocks.partition_point(|block| block.first <= node).checked_sub(1)?;
        (node < self.blocks[place].end()).then_some(place)
    }

    fn row(&self, node: u32) -> Option<Row<'_>> {
        self.blocks[self.place(node)?].row(node)
    }

    /// The vector of a node that some row has in this snapshot.
    pub fn get(&self, node: u32) -> Option<SparseVector> {
        let (indices, values) = self.row(node)?;
        let elements = indices.iter().copied().zip(values.iter().copied()).collect();
        Some(SparseVector::new(self.dimensions, elements).expect("it was one before"))
    }

    fn push(&mut self, vector: &SparseVector) -> u32 {
        self.dimensions = vector.dimensions();
        let (blocks, node) = (Arc::make_mut(&mut self.blocks), self.len);
        let follows = |block: &Arc<Block>| block.end() == node && !block.is_full(vector.indices().len());
        if !blocks.last().is_some_and(follows) {
            // A copy has no room to spare.
            blocks.last_mut().into_iter().for_each(|full| *full = Arc::new(Block::clone(full)));
            blocks.push(Arc::new(Block { first: node, ..Block::default() }));
        }
        let last = blocks.last_mut().expect("pushed above where none took it");
        Arc::make_mut(last).push((vector.indices(), vector.values()));
        self.len += 1;
        node
    }

    /// The block anew, with the vectors of those nodes only that some row has.
    fn tidy(&mut self, place: usize, alive: impl Fn(u32) -> bool) {
        let blocks = Arc::make_mut(&mut self.blocks);
        let living = blocks[place].living(alive);
        match living.held {
            0 => drop(blocks.remove(place)),
            _ => blocks[place] = Arc::new(living),
        }
    }

    /// Compares the query with the vectors of these nodes, which ascend and are some rows'. `each` gets a node and its
    /// distance, NaN where it is undefined.
    pub fn scan(&self, query: &SparseQuery, nodes: impl Iterator<Item = u32>, mut each: impl FnMut(u32, f32)) {
        let (mut blocks, mut block) = (self.blocks.iter(), None::<&Arc<Block>>);
        for node in nodes {
            while block.is_none_or(|block| block.end() <= node) {
                block = blocks.next();
                if block.is_none() {
                    return;
                }
            }
            if let Some(row) = block.and_then(|block| block.row(node)) {
                each(node, query.distance(row));
            }
        }
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.memory_bytes() + size_of::<Arc<Block>>()).sum()
    }

    /// Elements of a vector, on average.
    pub fn mean_elements(&self) -> usize {
        let sum = |count: fn(&Block) -> usize| self.blocks.iter().map(|block| count(block)).sum::<usize>();
        sum(|block| block.indices.len()) / sum(|block| block.held).max(1)
    }
}

/// A query made ready.
pub struct SparseQuery {
    metric: Metric,
    vector: SparseVector,
    /// Sum of its squares.
    square: f64,
}

impl SparseQuery {
    /// By one of [`Metric::PLAIN`].
    pub fn new(metric: Metric, vector: SparseVector) -> SparseQuery {
        let square = squares(vector.values());
        SparseQuery { metric, vector, square }
    }

    /// Sums are in double precision. NaN is always the same one, which sorts last.
    fn distance(&self, row: Row<'_>) -> f32 {
        let query = (self.vector.indices(), self.vector.values());
        let distance = match self.metric {
            // Not negated: the distance of what has nothing in common is no negative zero.
            Metric::Ip => 0.0 - dot(query, row),
            Metric::Cosine => 1.0 - (dot(query, row) / (self.square * squares(row.1)).sqrt()).clamp(-1.0, 1.0),
            Metric::L1 => merged(query, row, |x, y| (x - y).abs()),
            _ => merged(query, row, |x, y| (x - y) * (x - y)).sqrt(),
        };
        if distance.is_nan() { f32::NAN } else { distance as f32 }
    }
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

/// Sum of products. Where one has many more elements than the other, they are looked for, not passed by.
fn dot(a: Row<'_>, b: Row<'_>) -> f64 {
    let (few, many) = if a.0.len() <= b.0.len() { (a, b) } else { (b, a) };
    let (mut sum, mut at) = (0.0, 0);
    let far = many.0.len() / few.0.len().max(1) > 16;
    for (&index, &value) in few.0.iter().zip(few.1) {
        match far {
            true => at += many.0[at..].partition_point(|&other| other < index),
            false => at += many.0[at..].iter().take_while(|&&other| other < index).count(),
        }
        match many.0.get(at) {
            Some(&other) if other == index => sum += f64::from(value) * f64::from(many.1[at]),
            Some(_) => {}
            None => break,
        }
    }
    sum
}

/// Sum over all indices where one of the two is not zero.
#[inline(always)]
fn merged(a: Row<'_>, b: Row<'_>, of: impl Fn(f64, f64) -> f64) -> f64 {
    let (mut at, mut other, mut sum) = (0, 0, 0.0);
    while at < a.0.len() && other < b.0.len() {
        let order = a.0[at].cmp(&b.0[other]);
        let x = if order.is_le() { f64::from(a.1[at]) } else { 0.0 };
        let y = if order.is_ge() { f64::from(b.1[other]) } else { 0.0 };
        sum += of(x, y);
        at += usize::from(order.is_le());
        other += usize::from(order.is_ge());
    }
    sum += a.1[at..].iter().map(|&x| of(f64::from(x), 0.0)).sum::<f64>();
    sum + b.1[other..].iter().map(|&y| of(0.0, f64::from(y))).sum::<f64>()
}

/// What queries see of a sparse column.
#[derive(Clone, Default)]
pub struct SparseView {
    /// As of the view.
    pub rows: SparseRows,
    latest: Arc<ArcSwap<SparseRows>>,
}

impl SparseView {
    /// The vectors as they were last handed over, for rows that are committed and in no view yet.
    pub fn latest(&self) -> Arc<SparseRows> {
        self.latest.load_full()
    }
}

/// The writing side of a sparse column.
#[derive(Default)]
pub struct SparseColumn {
    originals: Option<SparseOriginals>,
    rows: SparseRows,
    latest: Arc<ArcSwap<SparseRows>>,
    /// By a block's first node: how many of its vectors no row has any more.
    dead: HashMap<u32, usize>,
}

impl SparseColumn {
    /// Opens the column's file with the vectors of the first `nodes` nodes, or makes it.
    pub fn open(&mut self, path: &Path, dimensions: usize, nodes: u32) -> Result<()> {
        let rows = &mut self.rows;
        self.originals = Some(SparseOriginals::open(path, dimensions, nodes, |vector| {
            rows.push(&vector);
        })?);
        Ok(())
    }

    /// Has it a file?
    pub fn is_open(&self) -> bool {
        self.originals.is_some()
    }

    /// Stores a vector as a new node and returns its number. The column is open.
    pub fn add(&mut self, vector: &SparseVector) -> Result<u32> {
        let originals = self.originals.as_mut().expect("the caller opened it");
        let node = originals.push(vector)?;
        let pushed = self.rows.push(vector);
        debug_assert_eq!(node, pushed);
        Ok(node)
    }

    /// Does the node hold exactly this vector?
    pub fn holds(&self, node: u32, vector: &SparseVector) -> bool {
        self.rows.row(node) == Some((vector.indices(), vector.values()))
    }

    /// No row has the node's vector any more; `alive` tells which nodes rows have. When most of a block is dead, its
    /// memory is given back.
    pub fn forget(&mut self, node: u32, alive: impl Fn(u32) -> bool) {
        let Some(place) = self.rows.place(node) else { return };
        let (first, held) = (self.rows.blocks[place].first, self.rows.blocks[place].held);
        let dead = self.dead.entry(first).or_default();
        *dead += 1;
        if 2 * *dead > held {
            self.dead.remove(&first);
            self.rows.tidy(place, alive);
        }
    }

    /// Forgets all but the nodes that rows have.
    pub fn retain(&mut self, alive: impl Fn(u32) -> bool) {
        self.dead.clear();
        for place in (0..self.rows.blocks.len()).rev() {
            let block = &self.rows.blocks[place];
            if (block.first..block.end()).any(|node| !alive(node)) {
                self.rows.tidy(place, &alive);
            }
        }
    }

    /// Hands everything to the operating system, and to readers of what is committed next.
    pub fn flush(&mut self) -> Result<()> {
        let Some(originals) = &mut self.originals else { return Ok(()) };
        originals.flush()?;
        self.latest.store(Arc::new(self.rows.clone()));
        Ok(())
    }

    /// Makes everything durable.
    pub fn sync(&mut self) -> Result<()> {
        self.originals.as_mut().map_or(Ok(()), SparseOriginals::sync)
    }

    /// What queries see from now on.
    pub fn view(&self) -> SparseView {
        SparseView { rows: self.rows.clone(), latest: self.latest.clone() }
    }
}

#[cfg(test)]
mod tests;
