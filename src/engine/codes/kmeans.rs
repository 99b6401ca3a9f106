//! 256 centroids of points, by Lloyd's algorithm, and how points are compared with them. Centroids are kept an element a
//! column, so that all 256 are compared at once; the compiler makes vectors of the loops, without fused operations: every
//! instruction set gives the same bits.

use crate::engine::distance::Isa;

/// Centroids of a run: what a byte can name.
pub const CENTROIDS: usize = 256;
/// Centroids compared at once.
const LANES: usize = 16;
/// One element of all centroids, or one number for each.
pub type Column = [[f32; LANES]; CENTROIDS / LANES];
/// Nothing for each.
pub const BLANK: Column = [[0.0; LANES]; CENTROIDS / LANES];

/// Passes over the points at most, and the gain of a pass that ends them early.
const PASSES: usize = 20;
const GAIN: f64 = 1e-3;
/// What a float of this size and up to 16 bits more has the latter as its lowest bits.
const WHOLE: f32 = (1 << 23) as f32;

/// Half the squared length of each centroid.
pub fn halves(columns: &[Column]) -> Column {
    let half = |k: usize| columns.iter().map(|column| column.as_flattened()[k].powi(2)).sum::<f32>() / 2.0;
    let mut halves = BLANK;
    halves.as_flattened_mut().iter_mut().enumerate().for_each(|(k, x)| *x = half(k));
    halves
}

/// `base - point centroid` for a block of centroids.
#[inline(always)]
fn scores(point: &[f32], columns: &[Column], base: &Column, block: usize) -> [f32; LANES] {
    let mut scores = base[block];
    for (x, column) in point.iter().zip(columns) {
        let column = &column[block];
        for lane in 0..LANES {
            scores[lane] -= x * column[lane];
        }
    }
    scores
}

/// The nearest of two, the first of equals; numbers are floats, so that they are chosen as the scores are, in vectors.
#[inline(always)]
fn nearer(one: (f32, f32), other: (f32, f32)) -> (f32, f32) {
    let other_is = (other.0 < one.0) | ((other.0 == one.0) & (other.1 < one.1));
    (if other_is { other.0 } else { one.0 }, if other_is { other.1 } else { one.1 })
}

#[inline(always)]
fn assign_with(points: &[f32], columns: &[Column], base: &Column, mut each: impl FnMut(usize, u8, f32)) {
    for (number, point) in points.chunks_exact(columns.len()).enumerate() {
        let (mut best, mut at): ([f32; LANES], [f32; LANES]) =
            ([f32::INFINITY; LANES], std::array::from_fn(|lane| lane as f32));
        for block in 0..base.len() {
            let scores = scores(point, columns, base, block);
            for lane in 0..LANES {
                let number = (block * LANES + lane) as f32;
                let is_nearer = scores[lane] < best[lane];
                best[lane] = if is_nearer { scores[lane] } else { best[lane] };
                at[lane] = if is_nearer { number } else { at[lane] };
            }
        }
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                (best[lane], at[lane]) = nearer((best[lane], at[lane]), (best[lane + width], at[lane + width]));
            }
        }
        each(number, at[0] as u8, best[0]);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn assign_avx2(points: &[f32], columns: &[Column], base: &Column, each: impl FnMut(usize, u8, f32)) {
    assign_with(points, columns, base, each);
}

/// Tells each point's number, its nearest centroid, the first of equals, and the score: half the squared distance, less half
/// the point's own square. `base` is half of each centroid's square.
#[inline]
pub fn assign(isa: Isa, points: &[f32], columns: &[Column], base: &Column, each: impl FnMut(usize, u8, f32)) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx2 | Isa::Avx512) {
        // SAFETY: the instruction set was detected.
        return unsafe { assign_avx2(points, columns, base, each) };
    }
    let _ = isa;
    assign_with(points, columns, base, each);
}

#[inline(always)]
fn tabulate_with(point: &[f32], columns: &[Column], base: &Column, grid: (f32, f32), out: &mut [u16; CENTROIDS]) {
    for (block, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let scores = scores(point, columns, base, block);
        for lane in 0..LANES {
            out[lane] = ((scores[lane] - grid.0) * grid.1 + WHOLE).to_bits() as u16;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn tabulate_avx2(point: &[f32], columns: &[Column], base: &Column, grid: (f32, f32), out: &mut [u16; CENTROIDS]) {
    tabulate_with(point, columns, base, grid, out);
}

/// A point's score with every centroid, as multiples of a unit: `grid` is the lowest and the inverse unit.
pub fn tabulate(
    isa: Isa,
    point: &[f32],
    columns: &[Column],
    base: &Column,
    grid: (f32, f32),
    out: &mut [u16; CENTROIDS],
) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx2 | Isa::Avx512) {
        // SAFETY: the instruction set was detected.
        return unsafe { tabulate_avx2(point, columns, base, grid, out) };
    }
    let _ = isa;
    tabulate_with(point, columns, base, grid, out);
}

/// Learns centroids of points, from `reserved` on; those before it become the first that was learned. The same points give
/// the same centroids. A centroid that no point is nearest to takes the place of the point that is worst off.
pub fn learn(isa: Isa, points: &[f32], reserved: usize, columns: &mut [Column]) {
    let dim = columns.len();
    let count = points.len() / dim;
    if count == 0 {
        return;
    }
    for (k, at) in (reserved..CENTROIDS).zip(drawn(count).into_iter().cycle()) {
        place(columns, k, &points[at * dim..][..dim]);
    }
    let squares: Vec<f32> =
        points.chunks_exact(dim).map(|point| point.iter().map(|x| x * x).sum::<f32>() / 2.0).collect();
    let (mut nearest, mut lost, mut before) = (vec![0u8; count], vec![0f32; count], f64::INFINITY);
    for _ in 0..PASSES {
        let mut base = halves(columns);
        base.as_flattened_mut()[..reserved].fill(f32::INFINITY);
        assign(isa, points, columns, &base, |at, centroid, score| {
            (nearest[at], lost[at]) = (centroid, squares[at] + score);
        });
        let all: f64 = lost.iter().map(|&lost| f64::from(lost)).sum();
        let split = settle(points, &nearest, &mut lost, reserved, columns);
        if !split && before - all <= GAIN * all {
            break;
        }
        before = all;
    }
    for column in columns.iter_mut().map(|column| column.as_flattened_mut()) {
        let first = column[reserved];
        column[..reserved].fill(first);
    }
}

/// Moves every centroid to the mean of its points, and those that have none. Were there any such?
fn settle(points: &[f32], nearest: &[u8], lost: &mut [f32], reserved: usize, columns: &mut [Column]) -> bool {
    let dim = columns.len();
    let (mut counts, mut sums) = ([0u32; CENTROIDS], vec![0f64; CENTROIDS * dim]);
    for (point, &k) in points.chunks_exact(dim).zip(nearest) {
        let k = usize::from(k);
        counts[k] += 1;
        sums[k * dim..][..dim].iter_mut().zip(point).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let mut split = false;
    for k in reserved..CENTROIDS {
        if counts[k] > 0 {
            let mean: Vec<f32> = sums[k * dim..][..dim].iter().map(|sum| (sum / f64::from(counts[k])) as f32).collect();
            place(columns, k, &mean);
            continue;
        }
        let worst = (0..lost.len()).max_by(|&a, &b| lost[a].total_cmp(&lost[b]));
        let Some(worst) = worst.filter(|&at| lost[at] > 0.0) else { continue };
        lost[worst] = 0.0;
        split = true;
        place(columns, k, &points[worst * dim..][..dim]);
    }
    split
}

fn place(columns: &mut [Column], k: usize, point: &[f32]) {
    columns.iter_mut().zip(point).for_each(|(column, &x)| column.as_flattened_mut()[k] = x);
}

/// Numbers below `count`, each once, at most as many as there are centroids, by a fixed seed.
fn drawn(count: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..count).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let most = count.min(CENTROIDS);
    for at in 0..most {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        all.swap(at, at + (state >> 33) as usize % (count - at));
    }
    all.truncate(most);
    all
}
