//! Sums over coded rows: a query of 16-bit integers against rows of 8-bit or 4-bit codes, gathered by slot.
//!
//! Integers add up exactly, so every instruction set gives the same sum, bit for bit. The caller bounds the query so that
//! no sum leaves 32 bits (`Codec::reach`).

use crate::engine::distance::{prefetch, rows_ahead};

/// Values of a 4-bit code, the reconstruction levels of the Lloyd-Max quantiser for a normal distribution (Max, 1960),
/// scaled so that the outermost is 120.
pub const LEVELS: [i8; 16] = [-120, -91, -71, -55, -41, -29, -17, -6, 6, 17, 29, 41, 55, 71, 91, 120];

/// Elements a row is padded to, for every width: 32 bytes of 4-bit codes.
pub const BLOCK: usize = 64;

/// A coded table and how wide its rows are.
#[derive(Clone, Copy)]
pub struct Table {
    /// The first row.
    pub start: *const u8,
    /// Bytes from one row to the next.
    pub stride: usize,
}

/// Sums of a query against rows; `out[i]` is of row `slots[i]`. The query has whole blocks, a row as many elements.
pub type Sums = unsafe fn(query: &[i16], table: Table, slots: &[u32], out: *mut i32);

macro_rules! gather {
    ($(#[$feature:meta])? $name:ident, $one:path) => {
        /// # Safety
        /// Every slot names a whole row of the table, and `out` has room for `slots.len()` sums.
        $(#[$feature])?
        pub unsafe fn $name(query: &[i16], table: Table, slots: &[u32], out: *mut i32) {
            let ahead = rows_ahead(table.stride);
            // SAFETY: by contract the slot names a row of `stride` bytes inside the table.
            let row = |slot: u32| unsafe { std::slice::from_raw_parts(table.start.add(slot as usize * table.stride), table.stride) };
            for &slot in &slots[..slots.len().min(ahead)] {
                prefetch(row(slot));
            }
            for (i, &slot) in slots.iter().enumerate() {
                if let Some(&next) = slots.get(i + ahead) {
                    prefetch(row(next));
                }
                // SAFETY: `i` is below `slots.len()`; the row has the query's elements.
                unsafe { *out.add(i) = $one(query, row(slot)) };
            }
        }
    };
}

/// Plain Rust, the reference.
pub mod plain {
    use super::*;

    #[inline(always)]
    fn bytes(query: &[i16], row: &[u8], term: impl Fn(i32, i32) -> i32) -> i32 {
        query.iter().zip(row).map(|(&q, &c)| term(q.into(), (c as i8).into())).sum()
    }

    #[inline(always)]
    fn nibbles(query: &[i16], row: &[u8], term: impl Fn(i32, i32) -> i32) -> i32 {
        let level = |nibble: u8| i32::from(LEVELS[usize::from(nibble & 15)]);
        let blocks = query.chunks_exact(BLOCK).zip(row.chunks_exact(BLOCK / 2));
        let block = |(query, row): (&[i16], &[u8])| {
            let (low, high) = query.split_at(BLOCK / 2);
            let low: i32 = low.iter().zip(row).map(|(&q, &c)| term(q.into(), level(c))).sum();
            low + high.iter().zip(row).map(|(&q, &c)| term(q.into(), level(c >> 4))).sum::<i32>()
        };
        blocks.map(block).sum()
    }

    fn dot8(query: &[i16], row: &[u8]) -> i32 {
        bytes(query, row, |q, c| q * c)
    }
    fn l2_8(query: &[i16], row: &[u8]) -> i32 {
        bytes(query, row, |q, c| (q - c) * (q - c))
    }
    fn dot4(query: &[i16], row: &[u8]) -> i32 {
        nibbles(query, row, |q, c| q * c)
    }
    fn l2_4(query: &[i16], row: &[u8]) -> i32 {
        nibbles(query, row, |q, c| (q - c) * (q - c))
    }
    gather!(dots8, dot8);
    gather!(l2s_8, l2_8);
    gather!(dots4, dot4);
    gather!(l2s_4, l2_4);
}

/// AVX2: 16 elements a step, widened to 16 bits, products added in pairs.
#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    use super::*;
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx2")]
    fn reduce(a: __m256i, b: __m256i) -> i32 {
        let sum = _mm256_add_epi32(a, b);
        let half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
        let pair = _mm_add_epi32(half, _mm_shuffle_epi32::<0b01_00_11_10>(half));
        _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32::<0b10_11_00_01>(pair)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn dot(acc: __m256i, q: __m256i, c: __m256i) -> __m256i {
        _mm256_add_epi32(acc, _mm256_madd_epi16(q, c))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn l2(acc: __m256i, q: __m256i, c: __m256i) -> __m256i {
        let d = _mm256_sub_epi16(q, c);
        _mm256_add_epi32(acc, _mm256_madd_epi16(d, d))
    }

    macro_rules! bytes {
        ($name:ident, $step:ident) => {
            /// # Safety
            /// Query and row have whole blocks, and as many elements.
            #[inline]
            #[target_feature(enable = "avx2")]
            unsafe fn $name(query: &[i16], row: &[u8]) -> i32 {
                let mut sums = [_mm256_setzero_si256(); 2];
                for at in (0..query.len()).step_by(32) {
                    // SAFETY: query and row have whole blocks of 64 elements, so 32 from `at` on are there.
                    unsafe {
                        let (q, c) = (query.as_ptr().add(at).cast::<__m256i>(), row.as_ptr().add(at).cast::<__m128i>());
                        let low = _mm256_cvtepi8_epi16(_mm_loadu_si128(c));
                        let high = _mm256_cvtepi8_epi16(_mm_loadu_si128(c.add(1)));
                        sums[0] = $step(sums[0], _mm256_loadu_si256(q), low);
                        sums[1] = $step(sums[1], _mm256_loadu_si256(q.add(1)), high);
                    }
                }
                reduce(sums[0], sums[1])
            }
        };
    }

    macro_rules! nibbles {
        ($name:ident, $step:ident) => {
            /// # Safety
            /// Query and row have whole blocks, and as many elements.
            #[inline]
            #[target_feature(enable = "avx2")]
            unsafe fn $name(query: &[i16], row: &[u8]) -> i32 {
                // SAFETY: sixteen bytes.
                let levels = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(LEVELS.as_ptr().cast())) };
                let mask = _mm256_set1_epi8(15);
                let mut sums = [_mm256_setzero_si256(); 2];
                for at in (0..query.len()).step_by(BLOCK) {
                    // SAFETY: query and row have whole blocks: 64 elements of the query, 32 bytes of the row.
                    unsafe {
                        let q = query.as_ptr().add(at).cast::<__m256i>();
                        let packed = _mm256_loadu_si256(row.as_ptr().add(at / 2).cast());
                        let low = _mm256_shuffle_epi8(levels, _mm256_and_si256(packed, mask));
                        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
                        let high = _mm256_shuffle_epi8(levels, high);
                        for (i, codes) in [low, high].into_iter().enumerate() {
                            let first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(codes));
                            let second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(codes));
                            sums[0] = $step(sums[0], _mm256_loadu_si256(q.add(2 * i)), first);
                            sums[1] = $step(sums[1], _mm256_loadu_si256(q.add(2 * i + 1)), second);
                        }
                    }
                }
                reduce(sums[0], sums[1])
            }
        };
    }

    bytes!(dot8, dot);
    bytes!(l2_8, l2);
    nibbles!(dot4, dot);
    nibbles!(l2_4, l2);
    gather!(
        #[target_feature(enable = "avx2")]
        dots8,
        dot8
    );
    gather!(
        #[target_feature(enable = "avx2")]
        l2s_8,
        l2_8
    );
    gather!(
        #[target_feature(enable = "avx2")]
        dots4,
        dot4
    );
    gather!(
        #[target_feature(enable = "avx2")]
        l2s_4,
        l2_4
    );
}
