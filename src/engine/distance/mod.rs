//! Distance kernels: chosen once, at run time, for a metric and this CPU.
//!
//! A walk compares *inner* values, cheaper than the public distance and in the same order:
//!
//! | metric | stored row | inner value | public distance |
//! |---|---|---|---|
//! | L2 | as given | squared distance | its root |
//! | cosine | scaled to unit length | 1 - dot | the same, clamped to 0..=2 |
//! | inner product | as given | -dot | the same |
//! | L1, Hamming | as given | distance | the same |
//! | Jaccard | as given | distance | the same |
//! | Poincare | as given | `u = |a - b|^2 / ((1 - |a|^2) (1 - |b|^2))` | `2 arsinh(sqrt(u))` |
//! | Lorentz | as given | `u = <a - b, a - b>` | `2 arsinh(sqrt(u) / 2)` |
//!
//! A zero vector has no direction. Under cosine its stored row (or prepared query) begins with NaN, which makes every dot
//! product NaN, and an inner value that is NaN becomes +infinity: such a row sorts last, costs the inner loop nothing and
//! is reported as NaN. Smaller inner values are nearer; none is ever NaN.

mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::model::Metric;

/// Rows are padded with zeros to a multiple of this many floats: one cache line, one AVX-512 register.
pub const LINE: usize = 16;

/// Bytes of rows fetched ahead of the one being computed. They go to the second-level cache, which has more misses in
/// flight than the first: measured on Zen 4 with rows of 1,536 bytes, a whole search is half again as fast as with
/// fetches to the first level, and 8 to 12 rows ahead beat 4.
const AHEAD_BYTES: usize = 16 << 10;

/// The same in rows of so many bytes.
#[inline(always)]
pub fn rows_ahead(bytes: usize) -> usize {
    (AHEAD_BYTES / bytes.max(1)).clamp(2, 32)
}

/// What the CPU offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX-512F.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// Anything else: simsimd where it has the function, else plain Rust.
    Simsimd,
    /// Plain Rust, the reference.
    Scalar,
}

impl Isa {
    /// The best of this CPU.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Isa::Avx512;
            }
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 && is_x86_feature_detected!("f16c") {
                return Isa::Avx2;
            }
        }
        Isa::Simsimd
    }

    /// Everything this CPU can run, best first.
    pub fn available() -> Vec<Isa> {
        let all = [Isa::Avx512, Isa::Avx2, Isa::Simsimd, Isa::Scalar];
        let best = all.iter().position(|&isa| isa == Isa::detect()).unwrap_or(all.len() - 1);
        all[best..].to_vec()
    }
}

/// One pair. Callable only where the instruction set it was compiled for was detected.
type One = unsafe fn(&[f32], &[f32]) -> f32;
/// A query against gathered rows: `out[i]` for row `slots[i]` of a table of rows of `query.len()` floats.
type Many = unsafe fn(query: &[f32], table: *const f32, slots: &[u32], out: *mut f32);

/// The inner values of one metric.
#[derive(Clone, Copy)]
pub struct Kernel {
    metric: Metric,
    isa: Isa,
    one: One,
    many: Many,
}

/// `one` and `many` for a raw sum and what makes an inner value of it.
macro_rules! pair {
    ($(#[$feature:meta])? $one:ident, $many:ident, $raw:path, |$sum:ident| $inner:expr) => {
        $(#[$feature])?
        fn $one(a: &[f32], b: &[f32]) -> f32 {
            let $sum = $raw(a, b);
            // `min` returns the other operand when one is NaN.
            f32::min($inner, f32::INFINITY)
        }

        /// # Safety
        /// Every slot names a whole row of `table`, and `out` has room for `slots.len()` values.
        $(#[$feature])?
        unsafe fn $many(query: &[f32], table: *const f32, slots: &[u32], out: *mut f32) {
            let len = query.len();
            let ahead = rows_ahead(4 * len);
            // SAFETY: by contract `slot` names a row of `len` floats inside the table.
            let row = |slot: u32| unsafe { std::slice::from_raw_parts(table.add(slot as usize * len), len) };
            for &slot in &slots[..slots.len().min(ahead)] {
                prefetch(row(slot));
            }
            for (i, &slot) in slots.iter().enumerate() {
                if let Some(&next) = slots.get(i + ahead) {
                    prefetch(row(next));
                }
                let $sum = $raw(query, row(slot));
                // SAFETY: `i` is below `slots.len()`.
                unsafe { *out.add(i) = f32::min($inner, f32::INFINITY) };
            }
        }
    };
}

mod simsimd {
    use super::{prefetch, rows_ahead, scalar};
    pair!(cosine, cosines, scalar::simsimd_dot, |dot| 1.0 - dot);
    pair!(ip, ips, scalar::simsimd_dot, |dot| -dot);
    pair!(l2, l2s, scalar::simsimd_l2, |sum| sum);
    pair!(l1, l1s, scalar::l1, |sum| sum);
    pub(super) const PAIRS: [(super::One, super::Many); 4] = [(l2, l2s), (cosine, cosines), (ip, ips), (l1, l1s)];
}

mod plain {
    use super::{prefetch, rows_ahead, scalar};
    pair!(cosine, cosines, scalar::dot, |dot| 1.0 - dot);
    pair!(ip, ips, scalar::dot, |dot| -dot);
    pair!(l2, l2s, scalar::l2, |sum| sum);
    pair!(l1, l1s, scalar::l1, |sum| sum);
    pub(super) const PAIRS: [(super::One, super::Many); 4] = [(l2, l2s), (cosine, cosines), (ip, ips), (l1, l1s)];
}

/// What has no vector code of its own.
mod portable {
    use super::{prefetch, rows_ahead, scalar};
    pair!(jaccard, jaccards, scalar::jaccard, |distance| distance);
    pair!(poincare, poincares, scalar::poincare, |u| u);
    pair!(lorentz, lorentzes, scalar::lorentz, |u| u);
    pub(super) const JACCARD: (super::One, super::Many) = (jaccard, jaccards);
    pub(super) const POINCARE: (super::One, super::Many) = (poincare, poincares);
    pub(super) const LORENTZ: (super::One, super::Many) = (lorentz, lorentzes);
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{prefetch, rows_ahead, x86::avx512 as raw};
    pair!(
        #[target_feature(enable = "avx512f")]
        cosine,
        cosines,
        raw::dot,
        |dot| 1.0 - dot
    );
    pair!(
        #[target_feature(enable = "avx512f")]
        ip,
        ips,
        raw::dot,
        |dot| -dot
    );
    pair!(
        #[target_feature(enable = "avx512f")]
        l2,
        l2s,
        raw::l2,
        |sum| sum
    );
    pair!(
        #[target_feature(enable = "avx512f")]
        l1,
        l1s,
        raw::l1,
        |sum| sum
    );
    pub(super) const PAIRS: [(super::One, super::Many); 4] = [(l2, l2s), (cosine, cosines), (ip, ips), (l1, l1s)];
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{prefetch, rows_ahead, x86::avx2 as raw};
    pair!(
        #[target_feature(enable = "avx2,fma")]
        cosine,
        cosines,
        raw::dot,
        |dot| 1.0 - dot
    );
    pair!(
        #[target_feature(enable = "avx2,fma")]
        ip,
        ips,
        raw::dot,
        |dot| -dot
    );
    pair!(
        #[target_feature(enable = "avx2,fma")]
        l2,
        l2s,
        raw::l2,
        |sum| sum
    );
    pair!(
        #[target_feature(enable = "avx2,fma")]
        l1,
        l1s,
        raw::l1,
        |sum| sum
    );
    pub(super) const PAIRS: [(super::One, super::Many); 4] = [(l2, l2s), (cosine, cosines), (ip, ips), (l1, l1s)];
}

/// Asks for every cache line of a row, into the second-level cache.
#[inline(always)]
pub fn prefetch<T>(row: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let (start, bytes) = (row.as_ptr().cast::<i8>(), size_of_val(row));
        for line in (0..bytes).step_by(64) {
            // SAFETY: a prefetch never faults, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(line)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

impl Kernel {
    /// The fastest kernel of this CPU.
    pub fn new(metric: Metric) -> Kernel {
        Kernel::with(metric, Isa::detect())
    }

    /// A chosen instruction set, or plain Rust where this CPU lacks it.
    pub fn with(metric: Metric, isa: Isa) -> Kernel {
        let isa = if Isa::available().contains(&isa) { isa } else { Isa::Scalar };
        let pairs = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::PAIRS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::PAIRS,
            Isa::Simsimd => simsimd::PAIRS,
            _ => plain::PAIRS,
        };
        let (one, many) = match metric {
            Metric::L2 => pairs[0],
            Metric::Cosine => pairs[1],
            Metric::Ip => pairs[2],
            Metric::L1 | Metric::Hamming => pairs[3],
            Metric::Jaccard => portable::JACCARD,
            Metric::Poincare => portable::POINCARE,
            Metric::Lorentz => portable::LORENTZ,
        };
        Kernel { metric, isa, one, many }
    }

    /// The metric this kernel serves.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Inner value of two rows of equal length, both as [`Kernel::prepare`] leaves them.
    #[inline]
    pub fn inner(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "vectors of one collection have one length");
        // SAFETY: `with` chose this function after detecting what it needs.
        unsafe { (self.one)(a, b) }
    }

    /// Inner values of a query against rows gathered from a table, the rows ahead being prefetched whole.
    ///
    /// # Safety
    /// `table` holds rows of `query.len()` floats; every slot names a whole one that is not being written.
    #[inline]
    pub unsafe fn gather(&self, query: &[f32], table: *const f32, slots: &[u32], out: &mut [f32]) {
        assert!(out.len() >= slots.len(), "room for every value");
        // SAFETY: the CPU was checked by `with`, the room just now, the rows by the caller.
        unsafe { (self.many)(query, table, slots, out.as_mut_ptr()) }
    }

    /// Makes a stored row or a query of a vector in place: unit length for cosine, marked when there is no direction.
    pub fn prepare(&self, row: &mut [f32]) {
        if self.metric != Metric::Cosine {
            return;
        }
        // In f64 neither the largest nor the smallest f32 squares out of range.
        let square = self.square(row);
        if square > 0.0 && square.is_finite() {
            self.scale(row, 1.0 / square.sqrt());
        } else {
            row.fill(0.0);
            row[0] = f32::NAN;
        }
    }

    /// Sealed rows are prepared whenever they are read, so this is compiled for the vector units too: with the same sums in
    /// the same order, and so with the same bits.
    fn square(&self, row: &[f32]) -> f64 {
        #[cfg(target_arch = "x86_64")]
        if matches!(self.isa, Isa::Avx2 | Isa::Avx512) {
            // SAFETY: the CPU has it.
            return unsafe { x86::prepare::square(row) };
        }
        scalar::square(row)
    }

    fn scale(&self, row: &mut [f32], by: f64) {
        #[cfg(target_arch = "x86_64")]
        if matches!(self.isa, Isa::Avx2 | Isa::Avx512) {
            // SAFETY: the CPU has it.
            return unsafe { x86::prepare::scale(row, by) };
        }
        scalar::scale(row, by);
    }

    /// Whether a prepared row has no direction and therefore no place in a graph.
    pub fn is_directionless(&self, row: &[f32]) -> bool {
        self.metric == Metric::Cosine && row[0].is_nan()
    }

    /// The distance users see.
    pub fn public(&self, inner: f32) -> f32 {
        match self.metric {
            // Codes may say less than nothing.
            Metric::L2 => inner.max(0.0).sqrt(),
            Metric::Cosine if inner == f32::INFINITY => f32::NAN,
            Metric::Cosine => inner.clamp(0.0, 2.0),
            Metric::Ip | Metric::L1 | Metric::Hamming | Metric::Jaccard => inner,
            Metric::Poincare => (2.0 * f64::from(inner).sqrt().asinh()) as f32,
            Metric::Lorentz => (2.0 * (f64::from(inner.max(0.0)).sqrt() / 2.0).asinh()) as f32,
        }
    }
}

#[cfg(test)]
mod tests;
