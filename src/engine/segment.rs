//! A segment: one graph over some nodes of a vector column. The growing one takes new nodes; sealed ones are files.

use crate::engine::hnsw::{Graph, Params};
use crate::model::VectorColumn;
use crate::storage::originals::Originals;
use crate::storage::{Result, StorageError, graph_file};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Which node a slot of the graph holds.
enum Nodes {
    /// Slot `s` holds node `first + s`.
    From(u32),
    /// As listed, ascending.
    Listed(Box<[u32]>),
}

/// One graph and the nodes in its slots.
pub struct Segment {
    /// Number of the segment, never used twice in an epoch.
    pub id: u64,
    /// The graph.
    pub graph: Graph,
    nodes: Nodes,
    capacity: usize,
    saved: AtomicBool,
    saving: Mutex<()>,
}

fn params(column: &VectorColumn, id: u64) -> Params {
    Params { m: column.m, ef_construction: column.ef_construction, seed: id, encoding: column.encoding }
}

impl Segment {
    fn new(id: u64, graph: Graph, nodes: Nodes, capacity: usize, saved: bool) -> Segment {
        Segment { id, graph, nodes, capacity, saved: AtomicBool::new(saved), saving: Mutex::default() }
    }

    /// An empty segment that takes the nodes from `first` on, at most `capacity` of them.
    pub fn growing(id: u64, column: &VectorColumn, dimensions: usize, first: u32, capacity: usize) -> Segment {
        let graph = Graph::new(column.metric, dimensions, capacity, params(column, id));
        Segment::new(id, graph, Nodes::From(first), capacity, false)
    }

    /// A new segment over what is still alive in `old`, linked with `threads` threads.
    pub fn merged(
        id: u64,
        column: &VectorColumn,
        dimensions: usize,
        old: &[&Segment],
        alive: &dyn Fn(u32) -> bool,
        threads: usize,
    ) -> Segment {
        let mut found: Vec<(u32, &Segment, u32)> = Vec::new();
        for segment in old {
            let slots = (0..segment.graph.len()).map(|slot| (segment.node(slot), *segment, slot));
            found.extend(slots.filter(|(node, ..)| alive(*node)));
        }
        found.sort_unstable_by_key(|(node, ..)| *node);
        let graph = Graph::new(column.metric, dimensions, found.len().max(1), params(column, id));
        for (_, segment, slot) in &found {
            graph.push(segment.graph.vector(*slot));
        }
        graph.build(threads, &|_| ());
        let nodes: Box<[u32]> = found.iter().map(|(node, ..)| *node).collect();
        let capacity = nodes.len();
        Segment::new(id, graph, Nodes::Listed(nodes), capacity, false)
    }

    /// A full segment over these nodes, ascending, not linked yet.
    pub fn of_nodes(
        id: u64,
        column: &VectorColumn,
        dimensions: usize,
        nodes: Vec<u32>,
        mut vector: impl FnMut(u32) -> Result<Vec<f32>>,
    ) -> Result<Segment> {
        let graph = Graph::new(column.metric, dimensions, nodes.len().max(1), params(column, id));
        for &node in &nodes {
            graph.push(&vector(node)?);
        }
        let capacity = nodes.len();
        Ok(Segment::new(id, graph, Nodes::Listed(nodes.into()), capacity, false))
    }

    /// Reads a sealed segment; the vectors come from the originals.
    pub fn open(
        path: &Path,
        id: u64,
        column: &VectorColumn,
        dimensions: usize,
        originals: &Originals,
    ) -> Result<Segment> {
        let (nodes, bytes) = graph_file::read(path)?;
        let damage = |what: String| StorageError::Damaged { path: path.to_owned(), what };
        let (mut scratch, mut failed) = (Vec::new(), None);
        let mut vector = |slot: u32, into: &mut [f32]| {
            let Some(&node) = nodes.get(slot as usize) else {
                failed.get_or_insert(damage(format!("has no node for slot {slot}")));
                return;
            };
            if let Err(error) = originals.read_into(node, &mut scratch, into) {
                failed.get_or_insert(error);
            }
        };
        let graph = Graph::load(column.metric, dimensions, 0, params(column, id), &mut &bytes[..], &mut vector);
        if let Some(error) = failed {
            return Err(error);
        }
        let graph = graph.map_err(|error| damage(error.to_string()))?;
        if graph.len() as usize != nodes.len() {
            return Err(damage(format!("has {} nodes for {} slots", nodes.len(), graph.len())));
        }
        let capacity = nodes.len();
        Ok(Segment::new(id, graph, Nodes::Listed(nodes.into()), capacity, true))
    }

    /// Writes the segment's file unless it has one; it must be fully linked and take no more nodes.
    pub fn save(&self, path: &Path) -> Result<()> {
        // The linker and a stopping applier may come together.
        let _alone = self.saving.lock();
        if self.is_saved() {
            return Ok(());
        }
        let nodes: Vec<u32> = (0..self.graph.len()).map(|slot| self.node(slot)).collect();
        let mut bytes = Vec::new();
        self.graph.save(&mut bytes).expect("writing to memory");
        crate::failpoint!("segment.before_save");
        graph_file::write(path, &nodes, &bytes)?;
        self.saved.store(true, Ordering::Release);
        Ok(())
    }

    /// Has it a file?
    pub fn is_saved(&self) -> bool {
        self.saved.load(Ordering::Acquire)
    }

    /// The node in a slot.
    #[inline]
    pub fn node(&self, slot: u32) -> u32 {
        match &self.nodes {
            Nodes::From(first) => first + slot,
            Nodes::Listed(nodes) => nodes[slot as usize],
        }
    }

    /// The newest node; `None` when there is none.
    pub fn last_node(&self) -> Option<u32> {
        Some(self.node(self.graph.len().checked_sub(1)?))
    }

    /// Takes no more nodes?
    pub fn is_full(&self) -> bool {
        self.graph.len() as usize >= self.capacity
    }

    /// Reachable by walks in all its slots?
    pub fn is_linked(&self) -> bool {
        self.graph.linked() == self.graph.len()
    }

    /// Name of its file.
    pub fn file_name(collection: u32, vector: usize, id: u64) -> String {
        format!("{collection}-{vector}-{id}.graph")
    }
}
