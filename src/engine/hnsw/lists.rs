//! Rows by their nearest centroid (an inverted file, Sivic and Zisserman, 2003; pgvector's `ivfflat`): the way to the rows
//! of a sealed segment where no graph is wanted. Cheaper to build and smaller than links, and slower to search.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};

use super::search::key;
use super::{Graph, Query};
use crate::engine::codes::Coded;
use crate::engine::distance::Kernel;
use crate::model::Metric;

/// Passes of Lloyd's algorithm over the sample.
const PASSES: usize = 10;
/// Rows of the sample for each list, and at most.
const SAMPLE_EACH: usize = 50;
const SAMPLE: usize = 100_000;
/// So many rows are met for each candidate a graph's walk would keep. Lists are no graph: of 50,000 sentence embeddings a
/// twelfth must be met for a recall of 0.87.
pub const ROWS_PER_EF: usize = 100;
/// More lists are not made.
const MAX_LISTS: usize = 1 << 16;

/// Centroids, and the slots of each.
pub(super) struct Lists {
    dim: usize,
    /// As rows are prepared, one after the other.
    centroids: Box<[f32]>,
    /// Where each centroid's slots begin, and the end of the last.
    starts: Box<[u32]>,
    slots: Box<[u32]>,
}

/// How many lists are made of so many rows where nobody says.
pub fn usual(rows: usize) -> usize {
    ((rows as f64).sqrt().round() as usize).clamp(1, MAX_LISTS)
}

impl Lists {
    /// Learns `wanted` centroids, or the usual number, of prepared rows and puts every row to its nearest.
    pub(super) fn train<'r>(
        metric: Metric,
        dim: usize,
        rows: u32,
        wanted: Option<usize>,
        seed: u64,
        row: impl Fn(u32) -> &'r [f32],
    ) -> Lists {
        let count = wanted.unwrap_or_else(|| usual(rows as usize)).clamp(1, (rows as usize / 10).clamp(1, MAX_LISTS));
        // Of unit vectors the nearest by cosine is the nearest by L2; of others the mean is one of L2 in any case.
        let l2 = Kernel::new(Metric::L2);
        let directed = |slot: &u32| row(*slot)[0].is_finite();
        let every = (rows as usize).div_ceil((count * SAMPLE_EACH).min(SAMPLE)).max(1);
        let sample: Vec<u32> = (0..rows).step_by(every).filter(directed).collect();
        let mut centroids: Vec<f32> =
            (0..count).flat_map(|list| first(&sample, list, count, seed, dim, &row)).collect();
        for _ in 0..PASSES {
            let mut sums = vec![0.0f64; count * dim];
            let mut members = vec![0u32; count];
            for &slot in &sample {
                let list = nearest(&l2, &centroids, row(slot));
                members[list] += 1;
                sums[list * dim..][..dim].iter_mut().zip(row(slot)).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            for (list, &members) in members.iter().enumerate() {
                let centroid = &mut centroids[list * dim..][..dim];
                match members {
                    // Nobody's centroid becomes a row: mostly one of a crowd.
                    0 => centroid.copy_from_slice(&first(&sample, list, count, seed ^ members_seed(list), dim, &row)),
                    _ => {
                        let sums = &sums[list * dim..][..dim];
                        centroid.iter_mut().zip(sums).for_each(|(x, sum)| *x = (sum / f64::from(members)) as f32);
                    }
                }
            }
        }
        let assigned =
            (0..rows).map(|slot| if directed(&slot) { nearest(&l2, &centroids, row(slot)) as u32 } else { 0 });
        let assigned: Vec<u32> = assigned.collect();
        let kernel = Kernel::new(metric);
        centroids.chunks_exact_mut(dim).for_each(|centroid| kernel.prepare(centroid));
        Lists::of(dim, centroids.into(), &assigned)
    }

    fn of(dim: usize, centroids: Box<[f32]>, assigned: &[u32]) -> Lists {
        let count = centroids.len() / dim;
        let mut starts = vec![0u32; count + 1];
        assigned.iter().for_each(|&list| starts[list as usize + 1] += 1);
        (0..count).for_each(|list| starts[list + 1] += starts[list]);
        let (mut next, mut slots) = (starts.clone(), vec![0; assigned.len()]);
        for (slot, &list) in (0..).zip(assigned) {
            slots[next[list as usize] as usize] = slot;
            next[list as usize] += 1;
        }
        Lists { dim, centroids, starts: starts.into(), slots: slots.into() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    fn slots(&self, list: u32) -> &[u32] {
        let at = list as usize;
        &self.slots[self.starts[at] as usize..self.starts[at + 1] as usize]
    }

    /// Bytes in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.centroids) + size_of_val(&*self.starts) + size_of_val(&*self.slots)
    }

    /// Writes them: number of lists, centroids, the list of every slot.
    pub(super) fn save(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.len() as u32).to_le_bytes())?;
        self.centroids.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))?;
        let mut assigned = vec![0u32; self.slots.len()];
        for list in 0..self.len() as u32 {
            self.slots(list).iter().for_each(|&slot| assigned[slot as usize] = list);
        }
        assigned.iter().try_for_each(|list| out.write_all(&list.to_le_bytes()))
    }

    /// Reads those of `rows` rows, and doubts every byte.
    pub(super) fn load(dim: usize, rows: u32, input: &mut dyn Read) -> io::Result<Lists> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("lists: {what}"));
        let mut word = || {
            let mut bytes = [0; 4];
            input.read_exact(&mut bytes).map(|()| u32::from_le_bytes(bytes))
        };
        let count = word()? as usize;
        if !(1..=(rows as usize).clamp(1, MAX_LISTS)).contains(&count) {
            return Err(wrong("their number is none"));
        }
        let centroids = (0..count * dim).map(|_| word().map(f32::from_bits)).collect::<io::Result<Box<[f32]>>>()?;
        let assigned = (0..rows).map(|_| word()).collect::<io::Result<Vec<u32>>>()?;
        if assigned.iter().any(|&list| list as usize >= count) {
            return Err(wrong("a row is in none"));
        }
        Ok(Lists::of(dim, centroids, &assigned))
    }

    /// The lists, the one with the nearest centroid last.
    fn order(&self, kernel: &Kernel, query: &[f32]) -> Vec<u32> {
        let distance = |list: u32| kernel.inner(query, &self.centroids[list as usize * self.dim..][..self.dim]);
        let mut lists: Vec<(f32, u32)> = (0..self.len() as u32).map(|list| (distance(list), list)).collect();
        lists.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        lists.into_iter().map(|(_, list)| list).collect()
    }
}

fn members_seed(list: usize) -> u64 {
    (list as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A row of the sample to begin a list with: another for every list.
fn first<'r>(
    sample: &[u32],
    list: usize,
    lists: usize,
    seed: u64,
    dim: usize,
    row: &impl Fn(u32) -> &'r [f32],
) -> Vec<f32> {
    if sample.is_empty() {
        return vec![0.0; dim];
    }
    let stride = (sample.len() / lists).max(1);
    let within = (seed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) as usize % stride;
    row(sample[(list * stride + within) % sample.len()])[..dim].to_vec()
}

fn nearest(l2: &Kernel, centroids: &[f32], row: &[f32]) -> usize {
    let distances = centroids.chunks_exact(row.len()).map(|centroid| l2.inner(row, centroid)).enumerate();
    distances.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(list, _)| list)
}

/// A search through lists that can be continued.
pub(super) struct Probe {
    /// Those that were not looked at yet, the nearest last.
    left: Vec<u32>,
    query: Coded,
    /// Rows met, and those of them that may be returned.
    seen: usize,
    accepted: usize,
    /// Compared by codes, and not returned yet.
    found: BinaryHeap<Reverse<u64>>,
    ids: Vec<u32>,
    values: Vec<f32>,
}

impl Probe {
    pub(super) fn new(graph: &Graph, lists: &Lists, query: &Query) -> Probe {
        let mut coded = Coded::default();
        graph.compared().query(query.row(), &mut coded);
        let left = lists.order(&graph.kernel, query.row());
        let (found, ids, values) = (BinaryHeap::new(), Vec::new(), Vec::new());
        Probe { left, query: coded, seen: 0, accepted: 0, found, ids, values }
    }

    pub(super) fn is_dry(&self) -> bool {
        self.left.is_empty() && self.found.is_empty()
    }

    /// Looks at further lists until there are so many rows to choose from, and enough were met for the width. Returns the
    /// distances computed, which end it early beyond `budget`.
    pub(super) fn look(
        &mut self,
        (graph, lists): (&Graph, &Lists),
        (least, width): (usize, usize),
        budget: usize,
        accept: &mut dyn FnMut(u32) -> bool,
    ) -> usize {
        let (table, mut distances) = (graph.compared(), 0);
        let enough =
            |probe: &Probe| probe.found.len() >= least && probe.seen >= width * ROWS_PER_EF && probe.accepted >= width;
        while !enough(self) && distances < budget {
            let Some(list) = self.left.pop() else { break };
            let slots = lists.slots(list);
            self.ids.clear();
            self.ids.extend(slots.iter().copied().filter(|&slot| accept(slot)));
            self.values.resize(self.ids.len().max(self.values.len()), 0.0);
            // SAFETY: the slots of lists are those of the graph, all published.
            unsafe { table.gather(&self.query, &self.ids, &mut self.values) };
            let keys = self.ids.iter().zip(&self.values).map(|(&slot, &value)| Reverse(key(value, slot)));
            self.found.extend(keys);
            self.seen += slots.len();
            self.accepted += self.ids.len();
            distances += self.ids.len();
        }
        distances
    }

    /// Takes out the nearest by codes, at most so many.
    pub(super) fn take(&mut self, most: usize) -> impl Iterator<Item = u64> + '_ {
        (0..most).map_while(|_| self.found.pop()).map(|Reverse(key)| key)
    }
}
