//! Portable kernels: the reference the others are tested against, and what runs where nothing better is known.

/// Lanes summed apart, so that the compiler may use whatever vector unit there is.
const LANES: usize = 16;

#[inline(always)]
fn sum(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks_a, chunks_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = chunks_a.remainder().iter().zip(chunks_b.remainder()).map(|(&x, &y)| term(x, y)).sum();
    for (x, y) in chunks_a.zip(chunks_b) {
        for lane in 0..LANES {
            lanes[lane] += term(x[lane], y[lane]);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Sum of products.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |x, y| x * y)
}

/// Sum of squared differences.
pub fn l2(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |x, y| (x - y) * (x - y))
}

/// Sum of absolute differences.
pub fn l1(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |x, y| (x - y).abs())
}

/// Dot product by simsimd, which knows the vector units of CPUs we have not tuned for.
pub fn simsimd_dot(a: &[f32], b: &[f32]) -> f32 {
    simsimd::SpatialSimilarity::dot(a, b).map_or(f32::NAN, |d| d as f32)
}

/// Squared Euclidean distance by simsimd.
pub fn simsimd_l2(a: &[f32], b: &[f32]) -> f32 {
    simsimd::SpatialSimilarity::l2sq(a, b).map_or(f32::NAN, |d| d as f32)
}
