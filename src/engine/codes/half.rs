//! Rows of half-precision floats (IEEE 754 binary16) against a query of full ones, gathered by slot.
//!
//! A row is `padded` elements of two bytes, little-endian, zeros behind the last. What is beyond the format's range is cut
//! off at its ends, so no row holds an infinity; whether that happens to a row is asked before (`holds`).

use super::kernels::Table;
use super::{Codec, Coded, Line};
use crate::engine::distance::{Isa, LINE, prefetch, rows_ahead};
use crate::model::Metric;
use half::f16;

/// Elements a row is padded to: a cache line of them.
pub const UNIT: usize = 32;

/// Is a row within the format's range?
pub fn holds(row: &[f32]) -> bool {
    row.iter().all(|x| x.abs() <= f16::MAX.to_f32())
}

/// Writes a prepared row's code.
pub fn encode(row: &[f32], out: &mut [u8]) {
    let most = f16::MAX.to_f32();
    for (bytes, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(row) {
        *bytes = f16::from_f32(x.clamp(-most, most)).to_le_bytes();
    }
}

/// Makes a query of elements, and pads it.
pub fn query(codec: &Codec, row: impl Iterator<Item = f32>, into: &mut Coded) {
    into.floats.clear();
    into.floats.resize(codec.padded / LINE, Line([0.0; LINE]));
    into.floats.iter_mut().flat_map(|line| &mut line.0).zip(row).for_each(|(to, x)| *to = x);
    (into.bias, into.scale) = match codec.kernel.metric() {
        Metric::L2 => (0.0, 1.0),
        Metric::Cosine => (1.0, -1.0),
        _ => (0.0, -1.0),
    };
}

/// The elements of a row.
pub fn decode(row: &[u8]) -> impl Iterator<Item = f32> {
    row.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32())
}

/// # Safety
/// Every slot names a whole row of the table.
#[inline(always)]
unsafe fn gather_with(query: &Coded, table: Table, slots: &[u32], out: &mut [f32], sum: impl Fn(&[f32], &[u8]) -> f32) {
    let Table { start, stride } = table;
    let ahead = rows_ahead(stride);
    // SAFETY: by contract the slot names a row of `stride` bytes inside the table.
    let row = |slot: u32| unsafe { std::slice::from_raw_parts(start.add(slot as usize * stride), stride) };
    slots[..slots.len().min(ahead)].iter().for_each(|&slot| prefetch(row(slot)));
    for (i, (&slot, value)) in slots.iter().zip(out).enumerate() {
        slots.get(i + ahead).into_iter().for_each(|&next| prefetch(row(next)));
        let inner = query.bias + query.scale * sum(query.row(), row(slot));
        // `min` returns the other operand when one is NaN: of infinities.
        *value = f32::min(inner, f32::INFINITY);
    }
}

/// Plain Rust, the reference.
///
/// # Safety
/// Every slot names a whole row of the table.
unsafe fn plain<const L2: bool>(query: &Coded, table: Table, slots: &[u32], out: &mut [f32]) {
    let sum = |query: &[f32], row: &[u8]| {
        let pairs = query.iter().zip(decode(row));
        if L2 { pairs.map(|(q, x)| (q - x) * (q - x)).sum() } else { pairs.map(|(q, x)| q * x).sum() }
    };
    // SAFETY: by contract.
    unsafe { gather_with(query, table, slots, out, sum) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn reduce(sums: [__m256; 4]) -> f32 {
        let v = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
        let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
    }

    /// # Safety
    /// Every slot names a whole row of the table, with the query's elements.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn avx2<const L2: bool>(query: &Coded, table: Table, slots: &[u32], out: &mut [f32]) {
        let sum = |query: &[f32], row: &[u8]| {
            let mut sums = [_mm256_setzero_ps(); 4];
            for (query, row) in query.as_chunks::<UNIT>().0.iter().zip(row.as_chunks::<{ 2 * UNIT }>().0) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: eight of the 32 elements of either.
                    let (q, x) = unsafe {
                        let halves = _mm_loadu_si128(row.as_ptr().add(16 * i).cast());
                        (_mm256_loadu_ps(query.as_ptr().add(8 * i)), _mm256_cvtph_ps(halves))
                    };
                    let d = _mm256_sub_ps(q, x);
                    *sum = if L2 { _mm256_fmadd_ps(d, d, *sum) } else { _mm256_fmadd_ps(q, x, *sum) };
                }
            }
            reduce(sums)
        };
        // SAFETY: by contract.
        unsafe { gather_with(query, table, slots, out, sum) }
    }

    /// # Safety
    /// Every slot names a whole row of the table, with the query's elements.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512<const L2: bool>(query: &Coded, table: Table, slots: &[u32], out: &mut [f32]) {
        let sum = |query: &[f32], row: &[u8]| {
            let mut sums = [_mm512_setzero_ps(); 2];
            for (query, row) in query.as_chunks::<UNIT>().0.iter().zip(row.as_chunks::<{ 2 * UNIT }>().0) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: sixteen of the 32 elements of either.
                    let (q, x) = unsafe {
                        let halves = _mm256_loadu_si256(row.as_ptr().add(32 * i).cast());
                        (_mm512_loadu_ps(query.as_ptr().add(16 * i)), _mm512_cvtph_ps(halves))
                    };
                    let d = _mm512_sub_ps(q, x);
                    *sum = if L2 { _mm512_fmadd_ps(d, d, *sum) } else { _mm512_fmadd_ps(q, x, *sum) };
                }
            }
            _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
        };
        // SAFETY: by contract.
        unsafe { gather_with(query, table, slots, out, sum) }
    }
}

/// Inner values of a query against rows.
///
/// # Safety
/// Every slot names a whole row of the table.
pub unsafe fn gather(codec: &Codec, query: &Coded, table: Table, slots: &[u32], out: &mut [f32]) {
    debug_assert_eq!(query.row().len(), codec.padded);
    let gather = match (codec.kernel.isa(), codec.kernel.metric() == Metric::L2) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, true) => x86::avx512::<true>,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, false) => x86::avx512::<false>,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, true) => x86::avx2::<true>,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, false) => x86::avx2::<false>,
        (_, true) => plain::<true>,
        (_, false) => plain::<false>,
    } as unsafe fn(&Coded, Table, &[u32], &mut [f32]);
    // SAFETY: the instruction set was detected, the rows are the caller's.
    unsafe { gather(query, table, slots, out) }
}
