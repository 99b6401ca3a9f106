//! Product codes (Jegou, Douze and Schmid, 2011): elements in runs, a byte a run, which names the nearest of 256 centroids
//! that were learned for it. A row is about the centre and the centroids behind one another; ratio r gives runs of at most
//! r / 4 elements, a byte for each, no longer than its fellows by more than one, so any dimension will do.
//!
//! A query becomes a table, its score against every centroid: `|c|² / 2 - q c`, whose sum over a row's centroids is half the
//! squared distance but for what all rows share. Scores are kept in 16 bits of one unit: a row is a sum of integers that
//! lie in the nearer caches, the same on every instruction set. What distances lose by it is far below what codes lose.
//!
//! Cosine is half the squared distance of unit vectors, and takes the same scores.

use super::kmeans::{self, BLANK, CENTROIDS, Column};
use super::{Codec, Coded};
use crate::engine::distance::{Kernel, prefetch, rows_ahead};
use crate::model::Metric;
use std::io::{self, Read, Write};

/// Scores of one run.
pub type Scores = [u16; CENTROIDS];

/// What a score is at most, and what is added to each so that rounding never goes below zero.
const TOP: f32 = 65_000.0;
const MARGIN: f32 = 4.0;

/// The centroids of every run.
pub struct Books {
    /// Where each run begins, and the end of the last.
    bounds: Box<[usize]>,
    /// An element a column.
    columns: Box<[Column]>,
    /// Half the squared length of each centroid, a column a run.
    halves: Box<[Column]>,
    /// The longest centroid's length of each run.
    reach: Box<[f32]>,
}

/// Bytes of a row, and so runs.
pub fn runs(dim: usize, ratio: usize) -> usize {
    (4 * dim).div_ceil(ratio)
}

impl Books {
    fn new(runs: usize, columns: Box<[Column]>) -> Books {
        let dim = columns.len();
        let bounds: Box<[usize]> = (0..=runs).map(|run| run * dim / runs).collect();
        let halves: Box<[Column]> = bounds.windows(2).map(|at| kmeans::halves(&columns[at[0]..at[1]])).collect();
        let longest =
            |halves: &Column| halves.as_flattened().iter().fold(0.0f32, |most, half| most.max((2.0 * half).sqrt()));
        let reach = halves.iter().map(longest).collect();
        Books { bounds, columns, halves, reach }
    }

    /// Learns centroids of rows around a centre.
    pub fn train(kernel: &Kernel, runs: usize, center: &[f32], rows: &[&[f32]]) -> Books {
        let mut books = Books::new(runs, vec![BLANK; center.len()].into());
        for run in 0..runs {
            let at = books.bounds[run]..books.bounds[run + 1];
            let points: Vec<f32> = rows.iter().flat_map(|row| at.clone().map(|i| row[i] - center[i])).collect();
            // No row's bytes are all zero (`hnsw/table.rs`): the first run's first centroid is another name of its second.
            let reserved = usize::from(run == 0);
            kmeans::learn(kernel.isa(), &points, reserved, &mut books.columns[at]);
        }
        Books::new(runs, books.columns)
    }

    /// Writes the centroids.
    pub fn save(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.reach.len() as u32).to_le_bytes())?;
        self.columns.iter().flatten().flatten().try_for_each(|x| out.write_all(&x.to_le_bytes()))
    }

    /// Reads them; an error where they are not of so many runs, or no numbers.
    pub fn load(runs: usize, dim: usize, input: &mut dyn Read) -> io::Result<Books> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("codes: {what}"));
        let mut word = [0; 4];
        input.read_exact(&mut word)?;
        if u32::from_le_bytes(word) as usize != runs {
            return Err(wrong("of another number of runs"));
        }
        let mut columns = vec![BLANK; dim];
        let mut bytes = [0; 4 * CENTROIDS];
        for column in &mut columns {
            input.read_exact(&mut bytes)?;
            column
                .as_flattened_mut()
                .iter_mut()
                .zip(bytes.as_chunks().0)
                .for_each(|(x, bytes)| *x = f32::from_le_bytes(*bytes));
            if !column.as_flattened().iter().all(|x| x.is_finite()) {
                return Err(wrong("a centroid is none"));
            }
        }
        Ok(Books::new(runs, columns.into()))
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.columns)
            + size_of_val(&*self.halves)
            + size_of_val(&*self.bounds)
            + size_of_val(&*self.reach)
    }

    fn run(&self, run: usize) -> (std::ops::Range<usize>, &[Column]) {
        let at = self.bounds[run]..self.bounds[run + 1];
        (at.clone(), &self.columns[at])
    }
}

/// Writes a prepared row's code.
pub fn encode(codec: &Codec, books: &Books, row: &[f32], out: &mut [u8]) {
    let around: Vec<f32> = row.iter().enumerate().map(|(at, x)| x - codec.offset(at)).collect();
    for (run, code) in out.iter_mut().enumerate() {
        let (at, columns) = books.run(run);
        let each = |_, nearest: u8, _| *code = nearest;
        kmeans::assign(codec.kernel.isa(), &around[at], columns, &books.halves[run], each);
    }
}

/// Makes a query of a prepared row.
pub fn query(codec: &Codec, books: &Books, row: &[f32], into: &mut Coded) {
    let metric = codec.kernel.metric();
    let around: Vec<f32> = match metric {
        Metric::Ip => row.to_vec(),
        _ => row.iter().enumerate().map(|(at, x)| x - codec.offset(at)).collect(),
    };
    // Between these a run's scores are, by Cauchy and Schwarz, and as no square is below zero.
    let between = |run: usize| {
        let square = around[books.run(run).0].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        let (both, reach) = (square.sqrt() * f64::from(books.reach[run]), f64::from(books.reach[run]));
        match metric {
            Metric::Ip => (-both, both),
            _ => (f64::max(-both, -square / 2.0), both + reach * reach / 2.0),
        }
    };
    let ranges: Vec<(f64, f64)> = (0..books.reach.len()).map(between).collect();
    let widest = ranges.iter().map(|(low, high)| high - low).fold(0.0, f64::max);
    let unit = (widest / f64::from(TOP)).max(1e-30);
    into.tables.resize(ranges.len(), [0; CENTROIDS]);
    let mut shared = 0.0;
    for (run, (low, _)) in ranges.into_iter().enumerate() {
        let low = low - f64::from(MARGIN) * unit;
        shared += low;
        let (at, columns) = books.run(run);
        let base = if metric == Metric::Ip { &BLANK } else { &books.halves[run] };
        let grid = (low as f32, (1.0 / unit) as f32);
        kmeans::tabulate(codec.kernel.isa(), &around[at], columns, base, grid, &mut into.tables[run]);
    }
    let square: f64 = around.iter().map(|&x| f64::from(x).powi(2)).sum();
    let along = || (0..codec.dim).map(|at| f64::from(codec.offset(at)) * f64::from(row[at])).sum::<f64>();
    let (bias, scale) = match metric {
        Metric::L2 => (square + 2.0 * shared, 2.0 * unit),
        Metric::Cosine => (square / 2.0 + shared, unit),
        _ => (shared - along(), unit),
    };
    (into.bias, into.scale) = (bias as f32, scale as f32);
}

/// A row's scores together.
#[inline(always)]
fn sum(tables: &[Scores], row: &[u8]) -> u32 {
    let mut sums = [0u32; 4];
    let ((tables, last), (row, rest)) = (tables.as_chunks::<4>(), row.as_chunks::<4>());
    for (tables, codes) in tables.iter().zip(row) {
        for i in 0..4 {
            sums[i] += u32::from(tables[i][usize::from(codes[i])]);
        }
    }
    let rest: u32 = last.iter().zip(rest).map(|(table, &code)| u32::from(table[usize::from(code)])).sum();
    sums.iter().sum::<u32>() + rest
}

/// Estimated inner values of a query against rows.
///
/// # Safety
/// Every slot names a whole row of the table.
pub unsafe fn gather(query: &Coded, table: *const u8, slots: &[u32], out: &mut [f32]) {
    let stride = query.tables.len();
    let ahead = rows_ahead(stride);
    // SAFETY: by contract the slot names a row of `stride` bytes inside the table.
    let row = |slot: u32| unsafe { std::slice::from_raw_parts(table.add(slot as usize * stride), stride) };
    let fetch = |slot: u32| {
        prefetch(row(slot));
        prefetch(&row(slot)[stride - 1..]);
    };
    slots[..slots.len().min(ahead)].iter().for_each(|&slot| fetch(slot));
    for (i, (&slot, value)) in slots.iter().zip(out).enumerate() {
        slots.get(i + ahead).into_iter().for_each(|&next| fetch(next));
        let estimate = query.bias + query.scale * sum(&query.tables, row(slot)) as f32;
        // `min` returns the other operand when one is NaN: of infinities.
        *value = f32::min(estimate, f32::INFINITY);
    }
}

/// The vector that a row's code stands for.
#[cfg(test)]
pub fn decode(codec: &Codec, books: &Books, row: &[u8]) -> Vec<f32> {
    let named = |run: usize| books.run(run).1.iter().map(move |column| column.as_flattened()[usize::from(row[run])]);
    (0..row.len()).flat_map(named).enumerate().map(|(at, x)| codec.offset(at) + x).collect()
}
