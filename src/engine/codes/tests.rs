//! Codes against the floats they stand for, and every instruction set against plain Rust.

use super::*;
use crate::engine::distance::Isa;

fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut unit = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| (0..4).map(|_| unit()).sum::<f32>()).collect()
}

fn rows(metric: Metric, isa: Isa, count: u64, dim: usize) -> (Kernel, Vec<Vec<f32>>) {
    let kernel = Kernel::with(metric, isa);
    let row = |seed| {
        let mut row = noise(seed + 1, dim);
        kernel.prepare(&mut row);
        row
    };
    (kernel, (0..count).map(row).collect())
}

const CODED: [Encoding; 2] = [Encoding::Sq8, Encoding::Sq4];
const METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::Ip];

fn encoded(codec: &Codec, rows: &[Vec<f32>]) -> Vec<u8> {
    let mut table = vec![0; rows.len() * codec.stride()];
    table.chunks_exact_mut(codec.stride()).zip(rows).for_each(|(bytes, row)| codec.encode(row, bytes));
    table
}

/// The vector that a query stands for.
fn rebuilt(codec: &Codec, query: &Coded) -> Vec<f32> {
    let unit = if codec.kernel.metric() == Metric::L2 { codec.step } else { -query.scale / codec.step };
    (0..codec.dim).map(|at| codec.offset(at) + unit * f32::from(query.ints[at])).collect()
}

#[test]
fn coded_distances_are_near_the_true_ones() {
    for (encoding, metric) in CODED.into_iter().flat_map(|e| METRICS.map(|m| (e, m))) {
        for dim in [1, 3, 17, 64, 65, 384, 1000] {
            let (kernel, rows) = rows(metric, Isa::detect(), 60, dim);
            let codec = Codec::train(encoding, kernel, dim, rows.iter().map(Vec::as_slice));
            let table = encoded(&codec, &rows);
            let mut query = Coded::default();
            codec.query(&rows[0], &mut query);
            let slots: Vec<u32> = (0..60).collect();
            let mut values = vec![0.0; 60];
            // SAFETY: the table has sixty rows.
            unsafe { codec.gather(&query, table.as_ptr(), &slots, &mut values) };
            let near = rebuilt(&codec, &query);
            let lost = |row: &[f32], other: &[f32]| Metric::L2.distance(row, other) as f32;
            let size = |row: &[f32]| Metric::L2.distance(row, &vec![0.0; dim]) as f32;
            let mut as_query = Coded::default();
            for (at, (row, &value)) in rows.iter().zip(&values).enumerate() {
                codec.row_as_query(&table[at * codec.stride()..][..codec.stride()], &mut as_query);
                let decoded = rebuilt(&codec, &as_query);
                let (missing, of_query) = (lost(row, &decoded), lost(&rows[0], &near));
                let share = if encoding == Encoding::Sq4 { 0.25 } else { 0.03 };
                assert!(dim < 17 || missing <= share * size(row), "{encoding:?} {metric} {dim}: {missing} is lost");
                // Cauchy and Schwarz, and the rounding of the sums themselves.
                let exact = kernel.inner(&rows[0], row);
                let both = missing + of_query;
                let bound = match metric {
                    Metric::L2 => 2.0 * both * exact.max(0.0).sqrt() + both * both,
                    _ => size(&rows[0]) * missing + of_query * size(&decoded),
                };
                let rounding = 1e-5 * (1.0 + size(row) * size(&rows[0]) + exact.abs());
                assert!(
                    (exact - value).abs() <= bound * 1.001 + rounding,
                    "{encoding:?} {metric} {dim}: {value} for {exact}"
                );
            }
        }
    }
}

#[test]
fn a_row_as_query_equals_its_decoded_self() {
    for (encoding, metric) in CODED.into_iter().flat_map(|e| METRICS.map(|m| (e, m))) {
        for dim in [5, 64, 100, 384] {
            let (kernel, rows) = rows(metric, Isa::detect(), 40, dim);
            let codec = Codec::train(encoding, kernel, dim, rows.iter().map(Vec::as_slice));
            let table = encoded(&codec, &rows);
            let row = |at: usize| &table[at * codec.stride()..][..codec.stride()];
            let (mut first, mut second) = (Coded::default(), Coded::default());
            for at in 1..40 {
                codec.row_as_query(row(0), &mut first);
                codec.row_as_query(row(at), &mut second);
                assert_eq!(codec.one(&first, row(at)), codec.one(&second, row(0)), "{encoding:?} {metric} {dim}");
            }
            if metric == Metric::L2 {
                assert_eq!(codec.one(&first, row(0)), 0.0, "{encoding:?} {dim}: equal rows are at distance zero");
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for (encoding, metric) in CODED.into_iter().chain([Encoding::Bq]).flat_map(|e| METRICS.map(|m| (e, m))) {
        for dim in (1..200).step_by(7).chain([384, 768, 2048]) {
            let mut seen: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let (_, rows) = rows(metric, Isa::Scalar, 20, dim);
                let kernel = Kernel::with(metric, isa);
                let codec = Codec::train(encoding, kernel, dim, rows.iter().map(Vec::as_slice));
                let table = encoded(&codec, &rows);
                let mut query = Coded::default();
                codec.query(&rows[3], &mut query);
                let slots: Vec<u32> = (0..20).rev().collect();
                let mut values = vec![0.0; 20];
                // SAFETY: the table has twenty rows.
                unsafe { codec.gather(&query, table.as_ptr(), &slots, &mut values) };
                assert_eq!(*seen.get_or_insert_with(|| values.clone()), values, "{encoding:?} {metric} {dim} {isa:?}");
            }
        }
    }
}

#[test]
fn no_sum_overflows_however_far_the_query_is() {
    for (encoding, metric) in CODED.into_iter().flat_map(|e| METRICS.map(|m| (e, m))) {
        for dim in [1, 384, 16_000] {
            let kernel = Kernel::new(metric);
            let row = |x: f32| vec![x; dim];
            let sample = [row(1.0), row(-1.0), row(0.5)];
            let codec = Codec::train(encoding, kernel, dim, sample.iter().map(Vec::as_slice));
            let table = encoded(&codec, &sample);
            let mut query = Coded::default();
            codec.query(&row(1e30), &mut query);
            let value = |at: usize| codec.one(&query, &table[at * codec.stride()..][..codec.stride()]);
            // Nearest first: the row on the query's side.
            assert!(value(0) <= value(2) && value(2) <= value(1), "{encoding:?} {metric} {dim}");
            assert!(value(0).is_finite() && value(0) < value(1), "{encoding:?} {metric} {dim}");
        }
    }
}

#[test]
fn binary_codes_put_the_nearest_among_the_first() {
    for metric in METRICS {
        for (dim, least) in [(17, 0.5), (100, 0.7), (384, 0.85)] {
            let (kernel, mut rows) = rows(metric, Isa::detect(), 600, dim);
            // Not around the origin, and each element of another width.
            for row in &mut rows {
                row.iter_mut().enumerate().for_each(|(at, x)| *x = 0.2 + *x * (1.0 + (at % 5) as f32));
                kernel.prepare(row);
            }
            let codec = Codec::train(Encoding::Bq, kernel, dim, rows.iter().map(Vec::as_slice));
            let table = encoded(&codec, &rows);
            let slots: Vec<u32> = (0..600).collect();
            let (mut found, mut error, mut query) = (0, 0.0, Coded::default());
            for from in &rows[..30] {
                codec.query(from, &mut query);
                let mut values = vec![0.0; 600];
                // SAFETY: the table has six hundred rows.
                unsafe { codec.gather(&query, table.as_ptr(), &slots, &mut values) };
                let exact: Vec<f32> = rows.iter().map(|row| kernel.inner(from, row)).collect();
                let order = |values: &[f32]| {
                    let mut order = slots.clone();
                    order.sort_by(|&a, &b| values[a as usize].total_cmp(&values[b as usize]));
                    order
                };
                let first = order(&values)[..Encoding::Bq.overfetch(10)].to_vec();
                found += order(&exact)[..10].iter().filter(|slot| first.contains(slot)).count();
                let spread = exact.iter().copied().fold(0.0f32, |most, x| most.max(x.abs()));
                error +=
                    values.iter().zip(&exact).map(|(a, b)| f64::from((a - b) / spread)).sum::<f64>() / 600.0 / 30.0;
            }
            assert!(f64::from(found as u32) >= least * 300.0, "{metric} {dim}: {found} of 300");
            assert!(error.abs() < 0.02, "{metric} {dim}: estimates are off by {error} on average");
        }
    }
}

#[test]
fn binary_estimates_are_numbers_however_far_the_query_is() {
    for metric in METRICS {
        let kernel = Kernel::new(metric);
        let sample = [vec![1.0; 70], vec![-1.0; 70], vec![0.0; 70]];
        let codec = Codec::train(Encoding::Bq, kernel, 70, sample.iter().map(Vec::as_slice));
        let table = encoded(&codec, &sample);
        let mut query = Coded::default();
        for far in [1e30, -3e38, 1e-40, 0.0] {
            codec.query(&[far; 70], &mut query);
            for row in table.chunks_exact(codec.stride()) {
                assert!(!codec.one(&query, row).is_nan(), "{metric} {far}");
            }
        }
    }
}
