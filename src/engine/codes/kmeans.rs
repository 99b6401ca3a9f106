//! 256 centroids of points, by Lloyd's algorithm, and how points are compared with them. Centroids are kept an element a
//! column, so that many are compared at once; without fused operations: every instruction set gives the same bits.

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

fn assign_plain(points: &[f32], columns: &[Column], base: &Column, mut each: impl FnMut(usize, u8, f32)) {
    for (number, point) in points.chunks_exact(columns.len()).enumerate() {
        let (mut best, mut nearest) = (f32::INFINITY, 0);
        for block in 0..base.len() {
            for (lane, score) in scores(point, columns, base, block).into_iter().enumerate() {
                if score < best {
                    (best, nearest) = (score, block * LANES + lane);
                }
            }
        }
        each(number, nearest as u8, best);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn assign_avx2(points: &[f32], columns: &[Column], base: &Column, mut each: impl FnMut(usize, u8, f32)) {
    use std::arch::x86_64::*;
    // SAFETY: half a block is eight floats.
    let load = |block: &[f32; LANES], half: usize| unsafe { _mm256_loadu_ps(block.as_ptr().add(8 * half)) };
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (number, point) in points.chunks_exact(columns.len()).enumerate() {
        let (mut best, mut at) =
            ([_mm256_set1_ps(f32::INFINITY); 2], [lanes, _mm256_add_epi32(lanes, _mm256_set1_epi32(8))]);
        let mut here = at;
        for (block, base) in base.iter().enumerate() {
            let mut scores = [load(base, 0), load(base, 1)];
            for (&x, column) in point.iter().zip(columns) {
                let x = _mm256_set1_ps(x);
                for (half, score) in scores.iter_mut().enumerate() {
                    *score = _mm256_sub_ps(*score, _mm256_mul_ps(x, load(&column[block], half)));
                }
            }
            for half in 0..2 {
                let nearer = _mm256_cmp_ps::<_CMP_LT_OQ>(scores[half], best[half]);
                best[half] = _mm256_blendv_ps(best[half], scores[half], nearer);
                at[half] = _mm256_blendv_epi8(at[half], here[half], _mm256_castps_si256(nearer));
                here[half] = _mm256_add_epi32(here[half], _mm256_set1_epi32(LANES as i32));
            }
        }
        // The smallest of all lanes, in every lane; then the smallest number that has it.
        let least = _mm256_min_ps(best[0], best[1]);
        let least = _mm256_min_ps(least, _mm256_permute2f128_ps::<1>(least, least));
        let least = _mm256_min_ps(least, _mm256_permute_ps::<0b01_00_11_10>(least));
        let least = _mm256_min_ps(least, _mm256_permute_ps::<0b10_11_00_01>(least));
        let others = |half: usize| _mm256_castps_si256(_mm256_cmp_ps::<_CMP_NEQ_OQ>(best[half], least));
        let first = _mm256_min_epu32(_mm256_or_si256(at[0], others(0)), _mm256_or_si256(at[1], others(1)));
        let first = _mm256_min_epu32(first, _mm256_permute2x128_si256::<1>(first, first));
        let first = _mm256_min_epu32(first, _mm256_shuffle_epi32::<0b01_00_11_10>(first));
        let first = _mm256_min_epu32(first, _mm256_shuffle_epi32::<0b10_11_00_01>(first));
        each(number, _mm256_cvtsi256_si32(first) as u8, _mm256_cvtss_f32(least));
    }
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
    assign_plain(points, columns, base, each);
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
