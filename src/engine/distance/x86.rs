//! Own kernels for x86-64: AVX-512F, and AVX2 with FMA.
//!
//! Four accumulators hide the latency of the fused multiply-add; a masked (AVX-512) or scalar (AVX2) tail takes what is
//! left. Nine tenths of a search is waiting for rows, so more unrolling buys nothing.

/// Kernels for CPUs with AVX-512F.
pub mod avx512 {
    use std::arch::x86_64::*;

    macro_rules! kernel {
        ($(#[$doc:meta])* $name:ident, |$acc:ident, $x:ident, $y:ident| $step:expr) => {
            $(#[$doc])*
            #[inline]
            #[target_feature(enable = "avx512f")]
            pub fn $name(a: &[f32], b: &[f32]) -> f32 {
                let len = a.len().min(b.len());
                let (a, b) = (a.as_ptr(), b.as_ptr());
                let step = |$acc: __m512, $x: __m512, $y: __m512| -> __m512 { $step };
                let mut sums = [_mm512_setzero_ps(); 4];
                let mut at = 0;
                // SAFETY: every load below starts at `at` and ends at or before `len`; masked-off lanes are not read.
                unsafe {
                    while at + 64 <= len {
                        for (i, sum) in sums.iter_mut().enumerate() {
                            let from = at + 16 * i;
                            *sum = step(*sum, _mm512_loadu_ps(a.add(from)), _mm512_loadu_ps(b.add(from)));
                        }
                        at += 64;
                    }
                    let mut lane = 0;
                    while at + 16 <= len {
                        sums[lane] = step(sums[lane], _mm512_loadu_ps(a.add(at)), _mm512_loadu_ps(b.add(at)));
                        lane += 1;
                        at += 16;
                    }
                    if at < len {
                        let mask = (1u16 << (len - at)) - 1;
                        let x = _mm512_maskz_loadu_ps(mask, a.add(at));
                        let y = _mm512_maskz_loadu_ps(mask, b.add(at));
                        sums[3] = step(sums[3], x, y);
                    }
                }
                let low = _mm512_add_ps(sums[0], sums[1]);
                let high = _mm512_add_ps(sums[2], sums[3]);
                _mm512_reduce_add_ps(_mm512_add_ps(low, high))
            }
        };
    }

    kernel!(
        /// Sum of products.
        dot, |acc, x, y| _mm512_fmadd_ps(x, y, acc)
    );
    kernel!(
        /// Sum of squared differences.
        l2, |acc, x, y| {
            let d = _mm512_sub_ps(x, y);
            _mm512_fmadd_ps(d, d, acc)
        }
    );
    kernel!(
        /// Sum of absolute differences.
        l1, |acc, x, y| _mm512_add_ps(acc, _mm512_abs_ps(_mm512_sub_ps(x, y)))
    );
}

/// Kernels for CPUs with AVX2 and FMA.
pub mod avx2 {
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn reduce(v: __m256) -> f32 {
        let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
    }

    macro_rules! kernel {
        ($(#[$doc:meta])* $name:ident, |$acc:ident, $x:ident, $y:ident| $step:expr, |$s:ident, $t:ident| $tail:expr) => {
            $(#[$doc])*
            #[inline]
            #[target_feature(enable = "avx2,fma")]
            pub fn $name(a: &[f32], b: &[f32]) -> f32 {
                let len = a.len().min(b.len());
                let step = |$acc: __m256, $x: __m256, $y: __m256| -> __m256 { $step };
                let mut sums = [_mm256_setzero_ps(); 4];
                let mut at = 0;
                // SAFETY: every load below starts at `at` and ends at or before `len`.
                unsafe {
                    while at + 32 <= len {
                        for (i, sum) in sums.iter_mut().enumerate() {
                            let from = at + 8 * i;
                            let (x, y) = (a.as_ptr().add(from), b.as_ptr().add(from));
                            *sum = step(*sum, _mm256_loadu_ps(x), _mm256_loadu_ps(y));
                        }
                        at += 32;
                    }
                    let mut lane = 0;
                    while at + 8 <= len {
                        let (x, y) = (a.as_ptr().add(at), b.as_ptr().add(at));
                        sums[lane] = step(sums[lane], _mm256_loadu_ps(x), _mm256_loadu_ps(y));
                        lane += 1;
                        at += 8;
                    }
                }
                let tail: f32 = a[at..len].iter().zip(&b[at..len]).map(|(&$s, &$t)| $tail).sum();
                let low = _mm256_add_ps(sums[0], sums[1]);
                let high = _mm256_add_ps(sums[2], sums[3]);
                reduce(_mm256_add_ps(low, high)) + tail
            }
        };
    }

    kernel!(
        /// Sum of products.
        dot, |acc, x, y| _mm256_fmadd_ps(x, y, acc), |s, t| s * t
    );
    kernel!(
        /// Sum of squared differences.
        l2, |acc, x, y| {
            let d = _mm256_sub_ps(x, y);
            _mm256_fmadd_ps(d, d, acc)
        }, |s, t| (s - t) * (s - t)
    );
    kernel!(
        /// Sum of absolute differences.
        l1, |acc, x, y| _mm256_add_ps(acc, _mm256_andnot_ps(_mm256_set1_ps(-0.0), _mm256_sub_ps(x, y))),
        |s, t| (s - t).abs()
    );
}

/// What makes unit vectors, in the operations and the order of plain Rust: nothing is fused.
pub mod prepare {
    use crate::engine::distance::scalar;

    /// Sum of squares.
    #[target_feature(enable = "avx2")]
    pub fn square(row: &[f32]) -> f64 {
        scalar::square(row)
    }

    /// Multiplies every element.
    #[target_feature(enable = "avx2")]
    pub fn scale(row: &mut [f32], by: f64) {
        scalar::scale(row, by);
    }
}
