//! A segment: one graph over some nodes of a vector column. The growing one takes new nodes; sealed ones are files.

use crate::engine::distance::prefetch;
use crate::engine::hnsw::{FullRows, Graph, Params};
use crate::engine::tiers::Keeping;
use crate::model::{Encoding, IndexKind, VectorColumn};
use crate::storage::originals::Originals;
use crate::storage::{Result, StorageError, damaged, graph_file};
use parking_lot::Mutex;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Which node a slot of the graph holds.
enum Nodes {
    /// Slot `s` holds node `first + s`.
    From(u32),
    /// As listed, ascending.
    Listed(Box<[u32]>),
}

impl Nodes {
    /// These nodes, ascending.
    fn of(nodes: Vec<u32>) -> Nodes {
        match (nodes.first(), nodes.last()) {
            (Some(&first), Some(&last)) if (last - first) as usize == nodes.len() - 1 => Nodes::From(first),
            _ => Nodes::Listed(nodes.into()),
        }
    }

    #[inline]
    fn node(&self, slot: u32) -> u32 {
        match self {
            Nodes::From(first) => first + slot,
            Nodes::Listed(nodes) => nodes[slot as usize],
        }
    }
}

/// The full rows of a sealed segment: the originals of its nodes.
struct Stored {
    nodes: Arc<Nodes>,
    count: usize,
    originals: Arc<Originals>,
}

impl FullRows for Stored {
    fn count(&self) -> usize {
        self.count
    }

    fn read(&self, slot: u32, row: &mut [f32]) -> Result<()> {
        self.originals.read_into(self.nodes.node(slot), &mut Vec::new(), row)
    }

    fn prefetch(&self, slot: u32) {
        self.originals.mapped(self.nodes.node(slot)).into_iter().for_each(prefetch);
    }
}

/// One graph and the nodes in its slots.
pub struct Segment {
    /// Number of the segment, never used twice in an epoch.
    pub id: u64,
    /// The graph.
    pub graph: Graph,
    nodes: Arc<Nodes>,
    capacity: usize,
    keeping: Keeping,
    saved: AtomicBool,
    saving: Mutex<()>,
}

fn params(column: &VectorColumn, id: u64, encoding: Encoding) -> Params {
    let VectorColumn { m, ef_construction, index, lists, .. } = *column;
    Params { m, ef_construction, seed: id, encoding, index, lists }
}

impl Segment {
    fn new(id: u64, graph: Graph, nodes: Nodes, capacity: usize, keeping: Keeping) -> Segment {
        let (nodes, saved) = (Arc::new(nodes), AtomicBool::new(false));
        Segment { id, graph, nodes, capacity, keeping, saved, saving: Mutex::default() }
    }

    /// An empty segment that takes the nodes from `first` on, at most `capacity` of them.
    pub fn growing(id: u64, column: &VectorColumn, dimensions: usize, first: u32, capacity: usize) -> Segment {
        let graph = Graph::new(column.metric, dimensions, capacity, params(column, id, column.encoding));
        Segment::new(id, graph, Nodes::From(first), capacity, Keeping::plain(column.encoding))
    }

    /// A new segment over what is still alive in `old`, linked with `threads` threads, and to be kept so.
    pub fn merged(
        id: u64,
        column: &VectorColumn,
        (dimensions, keeping): (usize, Keeping),
        old: &[&Segment],
        alive: &dyn Fn(u32) -> bool,
        threads: usize,
    ) -> Result<Segment> {
        let mut found: Vec<(u32, &Segment, u32)> = Vec::new();
        for segment in old {
            let slots = (0..segment.graph.len()).map(|slot| (segment.node(slot), *segment, slot));
            found.extend(slots.filter(|(node, ..)| alive(*node)));
        }
        found.sort_unstable_by_key(|(node, ..)| *node);
        let params = params(column, id, keeping.encoding);
        let graph = Graph::new(column.metric, dimensions, found.len().max(1), params);
        let mut row = vec![0.0; dimensions];
        for (_, segment, slot) in &found {
            segment.graph.read_row(*slot, &mut row)?;
            graph.push(&row);
        }
        graph.build(threads, &|_| ());
        let nodes: Vec<u32> = found.iter().map(|(node, ..)| *node).collect();
        let capacity = nodes.len();
        Ok(Segment::new(id, graph, Nodes::of(nodes), capacity, keeping))
    }

    /// A full segment over these nodes, ascending, not linked yet.
    pub fn of_nodes(
        id: u64,
        column: &VectorColumn,
        dimensions: usize,
        nodes: Vec<u32>,
        mut vector: impl FnMut(u32) -> Result<Vec<f32>>,
    ) -> Result<Segment> {
        let params = params(column, id, column.encoding);
        let graph = Graph::new(column.metric, dimensions, nodes.len().max(1), params);
        for &node in &nodes {
            graph.push(&vector(node)?);
        }
        let capacity = nodes.len();
        Ok(Segment::new(id, graph, Nodes::of(nodes), capacity, Keeping::plain(column.encoding)))
    }

    /// Reads a sealed segment of nodes below `known`. Its full rows stay in the originals where it has codes and is not to
    /// hold them.
    pub fn open(
        path: &Path,
        id: u64,
        column: &VectorColumn,
        (dimensions, keeping): (usize, Keeping),
        originals: &Arc<Originals>,
        known: u32,
    ) -> Result<Segment> {
        let segment = Segment::read(path, id, column, (dimensions, keeping), originals, (known, keeping.holds_rows()))?;
        segment.saved.store(true, Ordering::Release);
        Ok(segment)
    }

    /// The same nodes and links as in the file of a sealed segment, to be kept differently: it has no file yet.
    pub fn to_keep(
        path: &Path,
        id: u64,
        column: &VectorColumn,
        (dimensions, keeping): (usize, Keeping),
        originals: &Arc<Originals>,
        known: u32,
    ) -> Result<Segment> {
        let mut segment = Segment::read(path, id, column, (dimensions, keeping), originals, (known, true))?;
        segment.graph.want_encoding(keeping.encoding);
        Ok(segment)
    }

    fn read(
        path: &Path,
        id: u64,
        column: &VectorColumn,
        (dimensions, keeping): (usize, Keeping),
        originals: &Arc<Originals>,
        (known, hold): (u32, bool),
    ) -> Result<Segment> {
        let (nodes, mut reader) = graph_file::Reader::open(path)?;
        let capacity = nodes.len();
        if !nodes.is_sorted_by(|a, b| a < b) {
            return Err(damaged(path, "its nodes do not ascend"));
        }
        // Before any row is read: nothing lies behind the last one.
        if nodes.last().is_some_and(|&last| last >= known) {
            return Err(damaged(path, "names nodes that there are not"));
        }
        let nodes = Arc::new(Nodes::of(nodes));
        let rows = Box::new(Stored { nodes: nodes.clone(), count: capacity, originals: originals.clone() });
        let params = params(column, id, keeping.encoding);
        let graph = Graph::load(column.metric, dimensions, params, &mut reader, rows, hold);
        // An error that the originals gave is theirs.
        let graph = graph.map_err(|error| match error.downcast::<StorageError>() {
            Ok(error) => error,
            Err(error) if error.kind() == ErrorKind::InvalidData => damaged(path, error.to_string()),
            Err(source) => StorageError::Io { action: "read", path: path.to_owned(), source },
        })?;
        reader.finish()?;
        Ok(Segment { id, graph, nodes, capacity, keeping, saved: AtomicBool::default(), saving: Mutex::default() })
    }

    /// Writes the segment's file unless it has one; it must be fully linked and take no more nodes.
    pub fn save(&self, path: &Path) -> Result<()> {
        // The linker and a stopping applier may come together.
        let _alone = self.saving.lock();
        if self.is_saved() {
            return Ok(());
        }
        let nodes: Vec<u32> = (0..self.graph.len()).map(|slot| self.node(slot)).collect();
        crate::failpoint!("segment.before_save");
        graph_file::write(path, &nodes, |out| self.graph.save(out))?;
        self.saved.store(true, Ordering::Release);
        Ok(())
    }

    /// The saved segment as it is read from its file: of one with codes, without full rows in memory unless it is to hold
    /// them.
    pub fn reopened(
        self: &Arc<Segment>,
        path: &Path,
        column: &VectorColumn,
        originals: Option<&Arc<Originals>>,
        keeping: Keeping,
    ) -> Result<Arc<Segment>> {
        match originals {
            Some(originals)
                if self.graph.encoding() != Encoding::F32
                    || keeping != self.keeping
                    || column.index == IndexKind::Ivfflat =>
            {
                let known = self.last_node().map_or(0, |last| last + 1);
                let how = (self.graph.dim(), keeping);
                Ok(Arc::new(Segment::open(path, self.id, column, how, originals, known)?))
            }
            _ => Ok(self.clone()),
        }
    }

    /// How it keeps its rows.
    pub fn keeping(&self) -> Keeping {
        self.keeping
    }

    /// Has it a file?
    pub fn is_saved(&self) -> bool {
        self.saved.load(Ordering::Acquire)
    }

    /// The node in a slot.
    #[inline]
    pub fn node(&self, slot: u32) -> u32 {
        self.nodes.node(slot)
    }

    /// The newest node; `None` when there is none.
    pub fn last_node(&self) -> Option<u32> {
        Some(self.node(self.graph.len().checked_sub(1)?))
    }

    /// Takes no more nodes?
    pub fn is_full(&self) -> bool {
        self.graph.len() as usize >= self.capacity
    }

    /// Reachable in all its slots as well as it will be?
    pub fn is_linked(&self) -> bool {
        self.graph.is_settled()
    }

    /// Name of its file.
    pub fn file_name(collection: u32, vector: usize, id: u64) -> String {
        format!("{collection}-{vector}-{id}.graph")
    }
}
