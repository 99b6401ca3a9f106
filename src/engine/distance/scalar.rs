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

/// Sum of squares in f64, in an order that does not depend on the CPU.
#[inline(always)]
pub fn square(row: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let x = f64::from(chunk[lane]);
            lanes[lane] += x * x;
        }
    }
    lanes.iter().sum::<f64>() + tail.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
}

/// Multiplies every element, in f64.
#[inline(always)]
pub fn scale(row: &mut [f32], by: f64) {
    row.iter_mut().for_each(|x| *x = (f64::from(*x) * by) as f32);
}

/// Jaccard distance of bits as 0 and 1. Their sums are exact: there are fewer than 2^24.
pub fn jaccard(a: &[f32], b: &[f32]) -> f32 {
    let (both, either) = (dot(a, b), sum(a, b, f32::max));
    if both == 0.0 { 1.0 } else { 1.0 - both / either }
}

/// [`sum`] in f64, for what loses too much in f32.
#[inline(always)]
fn wide(a: &[f32], b: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    const WIDE: usize = 8;
    let mut lanes = [0.0f64; WIDE];
    let (chunks_a, chunks_b) = (a.chunks_exact(WIDE), b.chunks_exact(WIDE));
    let term = |(&x, &y): (&f32, &f32)| term(x.into(), y.into());
    let tail: f64 = chunks_a.remainder().iter().zip(chunks_b.remainder()).map(term).sum();
    for (x, y) in chunks_a.zip(chunks_b) {
        for (lane, pair) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += term(pair);
        }
    }
    lanes.iter().sum::<f64>() + tail
}

/// What the distance in the Poincaré ball is made of. Next to the boundary the room left is rounding alone, and must not
/// change sign.
pub fn poincare(a: &[f32], b: &[f32]) -> f32 {
    let room = |square: f64| (1.0 - square).max(1e-16);
    let (square_a, square_b) = (wide(a, b, |x, _| x * x), wide(a, b, |_, y| y * y));
    (wide(a, b, |x, y| (x - y) * (x - y)) / (room(square_a) * room(square_b))) as f32
}

/// What the distance on the hyperboloid is made of; the first element is the time.
pub fn lorentz(a: &[f32], b: &[f32]) -> f32 {
    let (Some(x), Some(y)) = (a.first(), b.first()) else { return 0.0 };
    let time = f64::from(*x) - f64::from(*y);
    (wide(a, b, |x, y| (x - y) * (x - y)) - 2.0 * time * time) as f32
}

/// Dot product by simsimd, which knows the vector units of CPUs we have not tuned for.
pub fn simsimd_dot(a: &[f32], b: &[f32]) -> f32 {
    simsimd::SpatialSimilarity::dot(a, b).map_or(f32::NAN, |d| d as f32)
}

/// Squared Euclidean distance by simsimd.
pub fn simsimd_l2(a: &[f32], b: &[f32]) -> f32 {
    simsimd::SpatialSimilarity::l2sq(a, b).map_or(f32::NAN, |d| d as f32)
}
