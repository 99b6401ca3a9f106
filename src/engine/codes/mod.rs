//! How rows are encoded for walks: full floats, half ones, or small codes, and how a query meets them.
//!
//! | encoding | bytes an element | a row element is about |
//! |---|---|---|
//! | `F32` | 4 | itself |
//! | `F16` | 2 | itself, to eleven bits (`half.rs`) |
//! | `Sq8` | 1 | centre + step x code, code in -127..=127 |
//! | `Sq4` | 1/2 | centre + step x level, one of 16 levels placed for a normal distribution |
//! | `Pq8`, `Pq16`, `Pq32` | 1/2, 1/4, 1/8 | centre + the nearest of 256 centroids of its run (`product.rs`) |
//! | `Bq` | 1/8, and 8 a row | centre + or - a factor of the row (`binary.rs`) |
//!
//! On a grid one step serves all elements, so the error is spread evenly over them, and products of codes are products of vectors:
//! a row can be the query without being decoded. The centre, per element, is used by L2, where it cancels out, and by binary and product codes. The
//! query keeps 16 bits an element. What a walk found by codes is ordered by the full floats afterwards (`hnsw/search.rs`).

mod binary;
mod half;
mod kernels;
mod kmeans;
mod product;
#[cfg(test)]
mod tests;

use crate::engine::distance::{Isa, Kernel, LINE};
use crate::model::{Encoding, Metric};
use kernels::{BLOCK, LEVELS, Sums, Table};
use std::io::{self, Read, Write};

/// Elements looked at to choose a step.
const TRAINED_ON: usize = 1 << 16;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// A query as rows of one codec are compared with it.
#[derive(Default)]
pub struct Coded {
    floats: Vec<Line>,
    ints: Vec<i16>,
    planes: binary::Planes,
    tables: Vec<product::Scores>,
    /// The inner value is `bias + scale * sum`.
    bias: f32,
    scale: f32,
}

impl Coded {
    fn row(&self) -> &[f32] {
        // SAFETY: `Line` is `repr(C)` around `LINE` floats and exactly 64 bytes, so lines are consecutive floats.
        unsafe { std::slice::from_raw_parts(self.floats.as_ptr().cast(), self.floats.len() * LINE) }
    }
}

/// Turns rows of one metric and dimension into bytes, and compares queries with them.
pub struct Codec {
    encoding: Encoding,
    kernel: Kernel,
    dim: usize,
    /// Elements of a row, padded.
    padded: usize,
    center: Box<[f32]>,
    step: f32,
    sums: Sums,
    /// Of product codes.
    books: Option<product::Books>,
}

impl Codec {
    /// Full floats.
    pub fn floats(kernel: Kernel, dim: usize) -> Codec {
        Codec::new(Encoding::F32, kernel, dim, Box::default(), 1.0)
    }

    fn new(encoding: Encoding, kernel: Kernel, dim: usize, center: Box<[f32]>, step: f32) -> Codec {
        let unit = match encoding {
            Encoding::F32 => LINE,
            Encoding::F16 => half::UNIT,
            _ => BLOCK,
        };
        let sums = sums(encoding, kernel.metric(), kernel.isa());
        Codec { encoding, kernel, dim, padded: dim.next_multiple_of(unit), center, step, sums, books: None }
    }

    /// Learns the grid, or the centroids, from rows as the kernel prepares them: at least one, a sample of all.
    pub fn train<'r>(encoding: Encoding, kernel: Kernel, dim: usize, rows: impl Iterator<Item = &'r [f32]>) -> Codec {
        let sample: Vec<&[f32]> = rows.filter(|row| row[0].is_finite()).collect();
        let center = if is_centered(encoding, kernel.metric()) { mean(dim, &sample) } else { Box::default() };
        if let Some(ratio) = encoding.ratio() {
            let books = product::Books::train(&kernel, product::runs(dim, ratio), &center, &sample);
            return Codec { books: Some(books), ..Codec::new(encoding, kernel, dim, center, 1.0) };
        }
        if matches!(encoding, Encoding::Bq | Encoding::F16) {
            return Codec::new(encoding, kernel, dim, center, 1.0);
        }
        let keep = (TRAINED_ON / dim).clamp(1, sample.len().max(1));
        let every = sample.len().div_ceil(keep).max(1);
        let residual = |row: &&'r [f32]| {
            let row = *row;
            let center = &center;
            (0..dim).map(move |at| row[at] - center.get(at).copied().unwrap_or(0.0)).collect::<Vec<f32>>()
        };
        let values: Vec<f32> = sample.iter().step_by(every).flat_map(residual).collect();
        let step = best_step(encoding, &values);
        Codec::new(encoding, kernel, dim, center, step)
    }

    /// Writes what was learned.
    pub fn save(&self, out: &mut dyn Write) -> io::Result<()> {
        let encoding = match self.encoding {
            Encoding::F32 => return out.write_all(&[0]),
            Encoding::Sq8 => 1,
            Encoding::Sq4 => 2,
            Encoding::Bq => 3,
            Encoding::F16 => 4,
            Encoding::Pq8 => 5,
            Encoding::Pq16 => 6,
            Encoding::Pq32 => 7,
        };
        out.write_all(&[encoding])?;
        out.write_all(&self.step.to_le_bytes())?;
        out.write_all(&(self.center.len() as u32).to_le_bytes())?;
        self.center.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))?;
        self.books.iter().try_for_each(|books| books.save(out))
    }

    /// Reads what [`Codec::save`] wrote; `None` where it is about full floats.
    pub fn load(kernel: Kernel, dim: usize, input: &mut dyn Read) -> io::Result<Option<Codec>> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("codes: {what}"));
        let mut encoding = [0];
        input.read_exact(&mut encoding)?;
        let mut word = || {
            let mut bytes = [0; 4];
            input.read_exact(&mut bytes).map(|()| bytes)
        };
        let encoding = match encoding[0] {
            0 => return Ok(None),
            1 => Encoding::Sq8,
            2 => Encoding::Sq4,
            3 => Encoding::Bq,
            4 => Encoding::F16,
            5 => Encoding::Pq8,
            6 => Encoding::Pq16,
            7 => Encoding::Pq32,
            _ => return Err(wrong("of an unknown kind")),
        };
        let step = f32::from_le_bytes(word()?);
        let centered = is_centered(encoding, kernel.metric());
        if u32::from_le_bytes(word()?) as usize != if centered { dim } else { 0 } || !(1e-18..1e18).contains(&step) {
            return Err(wrong("the grid is none"));
        }
        let center = (0..if centered { dim } else { 0 }).map(|_| word().map(f32::from_le_bytes));
        let center = center.collect::<io::Result<Box<[f32]>>>()?;
        let runs = encoding.ratio().map(|ratio| product::runs(dim, ratio));
        let books = runs.map(|runs| product::Books::load(runs, dim, input)).transpose()?;
        Ok(Some(Codec { books, ..Codec::new(encoding, kernel, dim, center, step) }))
    }

    /// How rows are encoded.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Bytes from one row to the next.
    pub fn stride(&self) -> usize {
        match self.encoding {
            Encoding::F32 => self.padded * 4,
            Encoding::F16 => self.padded * 2,
            Encoding::Sq8 => self.padded,
            Encoding::Sq4 => self.padded / 2,
            Encoding::Bq => 8 * binary::words(self.dim) + binary::TAIL,
            Encoding::Pq8 | Encoding::Pq16 | Encoding::Pq32 => product::runs(self.dim, self.ratio()),
        }
    }

    fn ratio(&self) -> usize {
        self.encoding.ratio().expect("asked of product codes")
    }

    fn books(&self) -> &product::Books {
        self.books.as_ref().expect("product codes have centroids")
    }

    /// Bytes in memory beside the rows.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.center) + self.books.as_ref().map_or(0, product::Books::memory_bytes)
    }

    /// Can the encoding say what a prepared row is, whatever was learned? Else its codes do not serve it.
    pub fn holds(&self, row: &[f32]) -> bool {
        self.encoding != Encoding::F16 || self.kernel.is_directionless(row) || half::holds(row)
    }

    fn offset(&self, at: usize) -> f32 {
        self.center.get(at).copied().unwrap_or(0.0)
    }

    /// Writes the codes of a prepared row: `stride` bytes, all zero before.
    pub fn encode(&self, row: &[f32], out: &mut [u8]) {
        debug_assert!(row.len() == self.dim && out.len() == self.stride());
        let scaled = |at: usize| (row[at] - self.offset(at)) / self.step;
        match self.encoding {
            Encoding::F32 => unreachable!("floats are written where they are kept"),
            Encoding::F16 => half::encode(row, out),
            Encoding::Bq => binary::encode(self, row, out),
            Encoding::Pq8 | Encoding::Pq16 | Encoding::Pq32 => product::encode(self, self.books(), row, out),
            Encoding::Sq8 => (0..self.dim).for_each(|at| out[at] = byte(scaled(at)) as u8),
            Encoding::Sq4 => {
                for at in 0..self.padded {
                    let nibble = if at < self.dim { level(scaled(at)) } else { PAD };
                    let (block, within) = (at / BLOCK, at % BLOCK);
                    let shift = if within < BLOCK / 2 { 0 } else { 4 };
                    out[block * (BLOCK / 2) + within % (BLOCK / 2)] |= nibble << shift;
                }
            }
        }
    }

    /// Largest integer a query's element may be, so that no sum over all elements leaves 32 bits.
    fn reach(&self) -> f32 {
        let elements = self.padded as f32;
        let all = i32::MAX as f32 * 0.99;
        let most = match self.kernel.metric() {
            Metric::L2 => (all / elements).sqrt() - 127.0,
            _ => all / (127.0 * elements),
        };
        most.min(f32::from(i16::MAX)).floor()
    }

    /// Makes a query of a prepared row.
    pub fn query(&self, row: &[f32], into: &mut Coded) {
        debug_assert_eq!(row.len(), self.dim);
        if self.encoding == Encoding::F32 {
            into.floats.clear();
            into.floats.resize(self.padded / LINE, Line([0.0; LINE]));
            for (line, chunk) in into.floats.iter_mut().zip(row.chunks(LINE)) {
                line.0[..chunk.len()].copy_from_slice(chunk);
            }
            return;
        }
        match self.encoding {
            Encoding::F16 => half::query(self, row.iter().copied(), into),
            Encoding::Bq => binary::query(self, row, into),
            Encoding::Pq8 | Encoding::Pq16 | Encoding::Pq32 => product::query(self, self.books(), row, into),
            _ => self.grid_query(row, into),
        }
        self.place(row, into);
    }

    fn grid_query(&self, row: &[f32], into: &mut Coded) {
        let reach = self.reach();
        into.ints.clear();
        if self.kernel.metric() == Metric::L2 {
            let scaled = |at: usize| ((row[at] - self.offset(at)) / self.step).round().clamp(-reach, reach) as i16;
            into.ints.extend((0..self.dim).map(scaled));
        } else {
            let largest = row.iter().fold(f32::MIN_POSITIVE, |most, x| most.max(x.abs()));
            let unit = largest / reach;
            into.ints.extend(row.iter().map(|x| (x / unit).round() as i16));
            into.scale = -unit * self.step;
        }
        self.finish(into);
    }

    /// A query without a direction is as far from everything as floats say.
    fn place(&self, row: &[f32], into: &mut Coded) {
        if self.kernel.is_directionless(row) {
            (into.bias, into.scale) = (f32::INFINITY, 0.0);
        }
    }

    /// Makes a query of a stored row.
    pub fn row_as_query(&self, row: &[u8], into: &mut Coded) {
        debug_assert_eq!(row.len(), self.stride());
        into.ints.clear();
        match self.encoding {
            Encoding::F32 => {
                into.floats.clear();
                into.floats.extend(row.chunks_exact(LINE * 4).map(|bytes| {
                    let float = |i: usize| f32::from_ne_bytes(std::array::from_fn(|b| bytes[4 * i + b]));
                    Line(std::array::from_fn(float))
                }));
                return;
            }
            Encoding::F16 => return half::query(self, half::decode(row), into),
            Encoding::Bq | Encoding::Pq8 | Encoding::Pq16 | Encoding::Pq32 => {
                unreachable!("graphs are not linked by these codes")
            }
            Encoding::Sq8 => into.ints.extend(row.iter().map(|&code| i16::from(code as i8))),
            Encoding::Sq4 => {
                for block in row.chunks_exact(BLOCK / 2) {
                    into.ints.extend(block.iter().map(|&pair| i16::from(LEVELS[usize::from(pair & 15)])));
                    into.ints.extend(block.iter().map(|&pair| i16::from(LEVELS[usize::from(pair >> 4)])));
                }
                into.ints.truncate(self.dim);
            }
        }
        into.scale = -self.step * self.step;
        self.finish(into);
    }

    /// Pads a query and sets what its sums become.
    fn finish(&self, into: &mut Coded) {
        let metric = self.kernel.metric();
        // What padding meets: equal under L2, nothing under a product.
        let pad =
            if metric == Metric::L2 && self.encoding == Encoding::Sq4 { LEVELS[usize::from(PAD)].into() } else { 0 };
        into.ints.resize(self.padded, pad);
        into.bias = if metric == Metric::Cosine { 1.0 } else { 0.0 };
        if metric == Metric::L2 {
            into.scale = self.step * self.step;
        }
    }

    /// Inner values of a query against rows of a table; smaller is nearer, never NaN.
    ///
    /// # Safety
    /// `table` holds rows of `stride` bytes made by [`Codec::encode`]; every slot names one that is not being written.
    #[inline]
    pub unsafe fn gather(&self, query: &Coded, table: *const u8, slots: &[u32], out: &mut [f32]) {
        if self.encoding == Encoding::F32 {
            // SAFETY: rows of this encoding are `padded` aligned floats, as many as the query has.
            return unsafe { self.kernel.gather(query.row(), table.cast(), slots, out) };
        }
        let out = &mut out[..slots.len()];
        match self.encoding {
            // SAFETY: by contract.
            Encoding::Bq => return unsafe { binary::gather(self, query, table, slots, out) },
            Encoding::Pq8 | Encoding::Pq16 | Encoding::Pq32 => {
                // SAFETY: by contract.
                return unsafe { product::gather(query, table, slots, out) };
            }
            _ => {}
        }
        let table = Table { start: table, stride: self.stride() };
        if self.encoding == Encoding::F16 {
            // SAFETY: by contract.
            return unsafe { half::gather(self, query, table, slots, out) };
        }
        debug_assert_eq!(query.ints.len(), self.padded);
        // SAFETY: `sums` was chosen for this CPU, the rows are the caller's, and an `f32` has room for an `i32`.
        unsafe { (self.sums)(&query.ints, table, slots, out.as_mut_ptr().cast()) };
        for value in out {
            let sum = value.to_bits() as i32;
            *value = query.bias + query.scale * sum as f32;
        }
    }

    /// Inner value of a query and one row.
    #[inline]
    pub fn one(&self, query: &Coded, row: &[u8]) -> f32 {
        debug_assert_eq!(row.len(), self.stride());
        let mut out = [0.0];
        // SAFETY: a table of one row.
        unsafe { self.gather(query, row.as_ptr(), &[0], &mut out) };
        out[0]
    }
}

/// The nibble that pads a row of 4-bit codes.
const PAD: u8 = 8;

fn byte(scaled: f32) -> i8 {
    scaled.round().clamp(-127.0, 127.0) as i8
}

/// The nearest of the sixteen levels.
fn level(scaled: f32) -> u8 {
    let below = |pair: &[i8]| (f32::from(pair[0]) + f32::from(pair[1])) / 2.0 < scaled;
    LEVELS.windows(2).filter(|pair| below(pair)).count() as u8
}

/// Do these codes count from a centre?
fn is_centered(encoding: Encoding, metric: Metric) -> bool {
    match encoding {
        Encoding::F32 | Encoding::F16 => false,
        Encoding::Sq8 | Encoding::Sq4 => metric == Metric::L2,
        Encoding::Bq | Encoding::Pq8 | Encoding::Pq16 | Encoding::Pq32 => true,
    }
}

fn mean(dim: usize, rows: &[&[f32]]) -> Box<[f32]> {
    let mut sums = vec![0.0f64; dim];
    for row in rows {
        sums.iter_mut().zip(*row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let count = rows.len().max(1) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// The step that leaves the smallest squared error: a fine one cuts outliers off, a coarse one rounds everything.
fn best_step(encoding: Encoding, values: &[f32]) -> f32 {
    let largest = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    if largest == 0.0 {
        return 1.0;
    }
    let rebuilt = |scaled: f32| match encoding {
        Encoding::Sq4 => f32::from(LEVELS[usize::from(level(scaled))]),
        _ => f32::from(byte(scaled)),
    };
    let error = |step: f32| {
        let square = |&x: &f32| f64::from(x - step * rebuilt(x / step)).powi(2);
        values.iter().map(square).sum::<f64>()
    };
    let steps = std::iter::successors(Some(largest / 120.0), |step| Some(step * 0.85)).take(16);
    let weighed = steps.map(|step| (error(step), step));
    weighed.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(1.0, |(_, step)| step)
}

fn sums(encoding: Encoding, metric: Metric, isa: Isa) -> Sums {
    let l2 = metric == Metric::L2;
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx2 | Isa::Avx512) {
        return match (encoding, l2) {
            (Encoding::Sq4, true) => kernels::avx2::l2s_4,
            (Encoding::Sq4, false) => kernels::avx2::dots4,
            (_, true) => kernels::avx2::l2s_8,
            (_, false) => kernels::avx2::dots8,
        };
    }
    let _ = isa;
    match (encoding, l2) {
        (Encoding::Sq4, true) => kernels::plain::l2s_4,
        (Encoding::Sq4, false) => kernels::plain::dots4,
        (_, true) => kernels::plain::l2s_8,
        (_, false) => kernels::plain::dots8,
    }
}
