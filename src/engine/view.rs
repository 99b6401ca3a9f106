//! What queries see: an immutable state of every collection at one position of the source's history.

use crate::engine::hnsw::Query;
use crate::engine::rows::{RowRef, Rows};
use crate::engine::segment::Segment;
use crate::engine::sparse::{SparseQuery, SparseView};
use crate::engine::tiers::Touches;
use crate::model::{CollectionDef, ColumnType, Embedding, Lsn, VectorColumn};
use crate::storage::originals::Originals;
use crate::storage::state::CollectionState;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// One vector column's index at one position.
#[derive(Clone)]
pub struct IndexView {
    /// The column, with its dimensions once known.
    pub column: VectorColumn,
    /// By node: the row whose vector it holds, if that is still so.
    pub rows: Rows,
    /// All segments; the last one grows.
    pub segments: Vec<Arc<Segment>>,
    /// Nodes that hold a live vector.
    pub live: usize,
    /// Numbers for new segments.
    pub ids: Arc<AtomicU64>,
    /// The original vectors by node; `None` while there is none.
    pub originals: Option<Arc<Originals>>,
    /// The vectors of a sparse column, which has neither segments nor such originals.
    pub sparse: SparseView,
    /// Its files are being removed.
    pub gone: Arc<AtomicBool>,
    /// When searches gave its nodes.
    pub touches: Arc<Touches>,
}

/// A query vector made ready.
pub enum Prepared {
    /// For graphs.
    Graph(Query),
    /// For the vectors of a sparse column.
    Sparse(SparseQuery),
}

impl IndexView {
    /// Is its column one of sparse vectors?
    pub fn is_sparse(&self) -> bool {
        self.column.kind == ColumnType::Sparsevec
    }

    /// The live row whose vector a node holds.
    #[inline]
    pub fn row(&self, node: u32) -> Option<RowRef<'_>> {
        self.rows.get(node)
    }

    /// A query vector made ready for this index; `None` while the index has no vector at all.
    pub fn prepare(&self, vector: &[f32]) -> Option<Prepared> {
        self.segments.first().map(|segment| Prepared::Graph(segment.graph.prepare(vector)))
    }

    /// As [`IndexView::prepare`], a vector of the column's kind.
    pub fn prepare_any(&self, vector: &Embedding) -> Option<Prepared> {
        match vector {
            Embedding::Dense(vector) => self.prepare(vector),
            Embedding::Sparse(vector) => Some(Prepared::Sparse(SparseQuery::new(self.column.metric, vector.clone()))),
        }
    }

    /// Bytes of vectors, links and rows in memory.
    pub fn memory_bytes(&self) -> usize {
        let graphs: usize = self.segments.iter().map(|segment| segment.graph.memory_bytes()).sum();
        graphs + self.sparse.rows.memory_bytes() + self.rows.memory_bytes() + self.touches.memory_bytes()
    }

    /// A search gave these nodes, nearest first.
    pub fn touch(&self, nodes: impl Iterator<Item = u32>) {
        self.touches.touch(nodes);
    }

    /// Nodes, and how many of them walks can reach; the rest is scanned. In a sparse column nothing is to be linked.
    pub fn linked(&self) -> (usize, usize) {
        if self.is_sparse() {
            return (self.live, self.live);
        }
        let sum = |count: fn(&Segment) -> u32| self.segments.iter().map(|segment| count(segment) as usize).sum();
        (sum(|segment| segment.graph.len()), sum(|segment| segment.graph.linked()))
    }
}

/// One collection at one position.
#[derive(Clone)]
pub struct CollectionView {
    /// Its definition.
    pub def: Arc<CollectionDef>,
    /// Fit to answer?
    pub state: CollectionState,
    /// Consistent point of its copy.
    pub copied_at: Lsn,
    /// Rows, with or without a usable vector.
    pub rows: u64,
    /// Vectors that could not be indexed.
    pub dead_letters: u64,
    /// Vectors written to graphs since the service started.
    pub graph_writes: u64,
    /// One per vector column.
    pub indexes: Vec<Arc<IndexView>>,
}

/// A collection on its way in.
#[derive(Clone)]
pub struct Arriving {
    /// Its definition.
    pub def: Arc<CollectionDef>,
    /// Why it will not arrive, if so.
    pub failed: Option<String>,
}

/// The engine's state at one position.
#[derive(Clone, Default)]
pub struct View {
    /// Everything that ended at or before it is here, nothing else is.
    pub applied: Lsn,
    /// Commit time of the last transaction, microseconds since 2000-01-01 UTC; 0 when there was none.
    pub commit_time: i64,
    /// By name.
    pub collections: BTreeMap<String, Arc<CollectionView>>,
    /// Those on their way in, by name: what stands above under the same name is what answers until they arrive.
    pub incoming: BTreeMap<String, Arriving>,
}
