//! Links and codes as bytes, and back with every byte doubted.
//!
//! Little-endian, without alignment. The full rows are stored elsewhere and the checksum is the caller's.
//!
//! ```text
//! magic      8 bytes "RVHNSW\0\2", the last one being the format's number
//! metric     u8      0 L2, 1 cosine, 2 inner product, 3 L1, 4 Hamming, 5 Jaccard, 6 Poincare, 7 Lorentz
//! dim        u32
//! m          u32
//! seed       u64     levels are a function of m, seed and slot, so they are not stored
//! count      u32     slots 0..count are linked
//! entry      u32     slot + 1 where walks enter, 0 when nothing is linked
//! level 0    count times:  u8 n (at most 2 m), n times u32 slot
//! upper      for each slot in order that has levels, for level 1 up to its own:  u8 n (at most m), n times u32 slot
//! repeats    u32 n, n times: u32 slot, u32 next slot with the same row
//! encoding   u8      0 full floats: nothing follows; 1 sq8; 2 sq4; 3 bq; 4 f16; 5 pq8; 6 pq16; 7 pq32
//! step       f32     of the grid; 1 where there is none
//! centre     u32 n (0 or dim), n times f32
//! centroids  pq only: u32 runs (4 dim / 8, / 16 or / 32, rounded up), dim times 256 f32: an element of all 256
//! nowhere    u32     rows without a direction under cosine: their codes are all zero bytes
//! codes      count times the bytes of a row, padded (`src/engine/codes/mod.rs`)
//! lists      of an `ivfflat` alone: u32 n, n times dim f32, count times u32 list
//! ```
//!
//! Slots at or above `count` (being linked while the file was written) appear nowhere.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};

use super::links::{Base, Packed};
use super::lists::Lists;
use super::table::Table;
use super::{Full, FullRows, Graph, MAX_SLOTS, Params};
use crate::engine::distance::Kernel;
use crate::model::{Encoding, IndexKind, Metric};

const MAGIC: [u8; 8] = *b"RVHNSW\0\x02";

fn code(metric: Metric) -> u8 {
    match metric {
        Metric::L2 => 0,
        Metric::Cosine => 1,
        Metric::Ip => 2,
        Metric::L1 => 3,
        Metric::Hamming => 4,
        Metric::Jaccard => 5,
        Metric::Poincare => 6,
        Metric::Lorentz => 7,
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("graph file: {what}"))
}

fn read_u32(input: &mut dyn Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Reads one list and returns its length; every slot must satisfy `valid`.
fn read_list(input: &mut dyn Read, list: &[AtomicU32], valid: impl Fn(u32) -> bool) -> io::Result<usize> {
    let mut count = [0];
    input.read_exact(&mut count)?;
    let mut bytes = [0; 4 * 255];
    let bytes = &mut bytes[..4 * usize::from(count[0])];
    let list = list.get(..usize::from(count[0])).ok_or_else(|| wrong("a list is too long"))?;
    input.read_exact(bytes)?;
    for (link, bytes) in list.iter().zip(bytes.chunks_exact(4)) {
        let slot = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if !valid(slot) {
            return Err(wrong("a link leads nowhere"));
        }
        link.store(slot + 1, Ordering::Relaxed);
    }
    Ok(list.len())
}

/// The fields before the lists.
struct Header {
    seed: u64,
    count: u32,
    entry: u32,
}

impl Header {
    fn write(&self, graph: &Graph, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&MAGIC)?;
        out.write_all(&[code(graph.metric())])?;
        out.write_all(&(graph.dim as u32).to_le_bytes())?;
        out.write_all(&(graph.params.m as u32).to_le_bytes())?;
        out.write_all(&self.seed.to_le_bytes())?;
        out.write_all(&self.count.to_le_bytes())?;
        out.write_all(&self.entry.to_le_bytes())
    }

    /// Reads and compares with what the caller knows.
    fn read(metric: Metric, dim: usize, params: Params, input: &mut dyn Read) -> io::Result<Header> {
        let mut magic = [0; 9];
        input.read_exact(&mut magic)?;
        if magic[..8] != MAGIC {
            return Err(wrong("not of this format"));
        }
        let (file_dim, m) = (read_u32(input)?, read_u32(input)?);
        let seed = u64::from(read_u32(input)?) | u64::from(read_u32(input)?) << 32;
        let header = Header { seed, count: read_u32(input)?, entry: read_u32(input)? };
        if magic[8] != code(metric) || file_dim as usize != dim || m as usize != params.m {
            return Err(wrong("of another metric, dimension or parameters"));
        }
        if header.count as usize >= MAX_SLOTS || header.entry > header.count {
            return Err(wrong("counts out of range"));
        }
        Ok(header)
    }
}

impl Graph {
    /// Writes the links of the slots below `linked` (format: the head of this file). Linking may go on meanwhile.
    pub fn save(&self, out: &mut dyn Write) -> io::Result<()> {
        let count = if self.params.index == IndexKind::Hnsw { self.linked() } else { self.len() };
        Header { seed: self.params.seed, count, entry: self.entry_below(count) }.write(self, out)?;
        for slot in 0..count {
            self.save_list(0, slot, count, out)?;
        }
        for slot in 0..count {
            for level in 1..=self.level(slot) {
                self.save_list(level, slot, count, out)?;
            }
        }
        let repeats: Vec<(u32, u32)> =
            (0..count).filter_map(|slot| self.same_below(slot, count).map(|next| (slot, next))).collect();
        out.write_all(&(repeats.len() as u32).to_le_bytes())?;
        for (slot, next) in repeats {
            out.write_all(&slot.to_le_bytes())?;
            out.write_all(&next.to_le_bytes())?;
        }
        let sealed = self.sealed_codes(count)?;
        let compared =
            || self.codes.get().filter(|_| ![self.encoding(), self.params.encoding].contains(&Encoding::F32));
        match sealed.as_ref().or_else(compared) {
            Some(codes) => codes.save(count, out)?,
            None => out.write_all(&[0])?,
        }
        if self.params.index != IndexKind::Ivfflat {
            return Ok(());
        }
        match self.lists.get() {
            Some(lists) => lists.save(out),
            None => {
                let Params { lists, seed, .. } = self.params;
                let row = |slot| &self.row(slot)[..self.dim];
                Lists::train(self.metric(), self.dim, count, lists, seed, row).save(out)
            }
        }
    }

    fn save_list(&self, level: u32, slot: u32, count: u32, out: &mut dyn Write) -> io::Result<()> {
        let mut bytes = vec![0];
        for link in self.list(level, slot).slots().filter(|&link| link < count) {
            bytes[0] += 1;
            bytes.extend_from_slice(&link.to_le_bytes());
        }
        out.write_all(&bytes)
    }

    /// The entry as slot + 1; when it is being linked only now, the highest slot that is.
    fn entry_below(&self, count: u32) -> u32 {
        match self.entry() {
            Some((slot, _)) if slot < count => slot + 1,
            Some(_) => (0..count).max_by_key(|&slot| self.level(slot)).map_or(0, |slot| slot + 1),
            None => 0,
        }
    }

    /// The next slot below `count` that has the same row.
    fn same_below(&self, slot: u32, count: u32) -> Option<u32> {
        let next = |slot: u32| self.same.words()[slot as usize].load(Ordering::Acquire).checked_sub(1);
        std::iter::successors(next(slot), |&slot| next(slot)).find(|&slot| slot < count)
    }

    /// Reads a graph that takes no more rows. `rows` has its full rows: they are read at once where the graph has no
    /// codes or is to `hold` them, else when they are needed. Of `params` the seed does not count, which the file has.
    ///
    /// Any bytes give a graph or an error: a corrupt file that happens to be consistent gives a graph of poor recall, so
    /// its checksum decides. An error of `rows` is inside the error.
    pub fn load(
        metric: Metric,
        dim: usize,
        params: Params,
        input: &mut dyn Read,
        rows: Box<dyn FullRows>,
        hold: bool,
    ) -> io::Result<Graph> {
        let Header { seed, count, entry } = Header::read(metric, dim, params, input)?;
        let params = Params { seed, ..params };
        let capacity = count as usize;
        if capacity != rows.count() {
            return Err(wrong("of another number of rows"));
        }
        let list = 2 * params.m;
        // Mapped lazily: a false count costs address space only, and ends with the input.
        let mut base = Packed::try_new(capacity, list)?;
        let words: Vec<AtomicU32> = (0..list).map(|_| AtomicU32::new(0)).collect();
        for slot in 0..count {
            let links = read_list(input, &words, |other| other < count && other != slot)?;
            base.push(words[..links].iter().map(|word| word.load(Ordering::Relaxed) - 1))?;
        }
        let mut graph = Graph::with_base(metric, dim, capacity, params, Base::Packed(base))?;
        graph.load_upper(count, input)?;
        graph.load_repeats(count, input)?;
        let codes = Table::load(Kernel::new(metric), dim, count, input)?;
        if codes.is_some() && !hold {
            graph.full = Full::Elsewhere(rows);
            let mut next_block = graph.writer.lock();
            (0..count).for_each(|slot| graph.publish(slot, &mut next_block));
        } else {
            let mut row = vec![0.0; dim];
            for slot in 0..count {
                rows.read(slot, &mut row).map_err(io::Error::other)?;
                graph.push(&row);
            }
        }
        if let Some(slot) = entry.checked_sub(1) {
            graph.entry.store(u64::from(graph.level(slot)) << 32 | u64::from(entry), Ordering::Relaxed);
        }
        if params.index != IndexKind::Flat {
            graph.linked.store(count, Ordering::Release);
        }
        if params.index == IndexKind::Ivfflat {
            _ = graph.lists.set(Lists::load(dim, count, input)?);
        }
        match codes {
            Some(codes) => _ = graph.codes.set(codes),
            None => graph.settle_codes(),
        }
        Ok(graph)
    }

    fn load_upper(&self, count: u32, input: &mut dyn Read) -> io::Result<()> {
        let mut block = 0;
        for slot in 0..count {
            for level in 1..=self.level(slot) {
                let list = &self.upper.words()[block * self.params.m..][..self.params.m];
                // A link to a slot without that level would be followed into another slot's blocks.
                read_list(input, list, |other| other < count && other != slot && self.level(other) >= level)?;
                block += 1;
            }
        }
        Ok(())
    }

    fn load_repeats(&self, count: u32, input: &mut dyn Read) -> io::Result<()> {
        let repeats = read_u32(input)?;
        for _ in 0..repeats {
            let (slot, next) = (read_u32(input)?, read_u32(input)?);
            if slot >= count || next >= count || slot == next {
                return Err(wrong("a repeat leads nowhere"));
            }
            self.same.words()[slot as usize].store(next + 1, Ordering::Relaxed);
        }
        self.repeated.store(repeats, Ordering::Relaxed);
        Ok(())
    }
}
