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
const PRODUCT: [Encoding; 3] = [Encoding::Pq8, Encoding::Pq16, Encoding::Pq32];
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
fn coarse_codes_put_the_nearest_among_the_first() {
    let least = |encoding, of_binary: f64| if encoding == Encoding::Pq8 { 0.9 } else { of_binary };
    for (encoding, metric) in PRODUCT.into_iter().chain([Encoding::Bq]).flat_map(|e| METRICS.map(|m| (e, m))) {
        for (dim, of_binary) in [(17, 0.5), (100, 0.7), (384, 0.85)] {
            let (kernel, mut rows) = rows(metric, Isa::detect(), 600, dim);
            // Not around the origin, and each element of another width.
            for row in &mut rows {
                row.iter_mut().enumerate().for_each(|(at, x)| *x = 0.2 + *x * (1.0 + (at % 5) as f32));
                kernel.prepare(row);
            }
            let codec = Codec::train(encoding, kernel, dim, rows.iter().map(Vec::as_slice));
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
                let first = order(&values)[..encoding.overfetch(10)].to_vec();
                found += order(&exact)[..10].iter().filter(|slot| first.contains(slot)).count();
                let spread = exact.iter().copied().fold(0.0f32, |most, x| most.max(x.abs()));
                error +=
                    values.iter().zip(&exact).map(|(a, b)| f64::from((a - b) / spread)).sum::<f64>() / 600.0 / 30.0;
            }
            let least = least(encoding, of_binary) * 300.0;
            assert!(f64::from(found as u32) >= least, "{encoding:?} {metric} {dim}: {found} of 300");
            // A centroid is nearer than what it stands for, on average by what the codes lose; the same for all rows.
            let error = if encoding == Encoding::Bq { error.abs() } else { error };
            assert!(error < 0.02, "{encoding:?} {metric} {dim}: estimates are off by {error} on average");
        }
    }
}

#[test]
fn estimates_are_numbers_however_far_the_query_is() {
    let encodings = PRODUCT.into_iter().chain([Encoding::Bq, Encoding::F16]);
    for (encoding, metric) in encodings.flat_map(|e| METRICS.map(|m| (e, m))) {
        let kernel = Kernel::new(metric);
        let sample = [vec![1.0; 70], vec![-1.0; 70], vec![0.0; 70]];
        let codec = Codec::train(encoding, kernel, 70, sample.iter().map(Vec::as_slice));
        let table = encoded(&codec, &sample);
        let mut query = Coded::default();
        for far in [1e30, -3e38, 1e-40, 0.0] {
            codec.query(&[far; 70], &mut query);
            for row in table.chunks_exact(codec.stride()) {
                assert!(!codec.one(&query, row).is_nan(), "{encoding:?} {metric} {far}");
            }
        }
    }
}

/// Inner values of the first row against all, from a table that begins at an odd address.
fn gathered(codec: &Codec, query: &Coded, table: &[u8]) -> Vec<f32> {
    let shifted: Vec<u8> = std::iter::once(0).chain(table.iter().copied()).collect();
    let slots: Vec<u32> = (0..(table.len() / codec.stride()) as u32).collect();
    let mut values = vec![0.0; slots.len()];
    // SAFETY: the rows are whole, one byte later.
    unsafe { codec.gather(query, shifted[1..].as_ptr(), &slots, &mut values) };
    values
}

#[test]
fn half_floats_are_compared_as_the_reference_says() {
    let (most, least) = (65_504.0f32, 6e-8f32);
    for (metric, isa) in METRICS.into_iter().flat_map(|m| Isa::available().into_iter().map(move |i| (m, i))) {
        for dim in (1..130).chain([384, 1000, 2049]) {
            let (_, mut rows) = rows(metric, isa, 9, dim);
            if metric != Metric::Cosine {
                rows.extend([vec![most; dim], vec![-most; dim], vec![least; dim], vec![0.0; dim], vec![1e30; dim]]);
                rows.push((0..dim).map(|at| [most, -least, 1.0][at % 3]).collect());
            }
            let codec = Codec::train(Encoding::F16, Kernel::with(metric, isa), dim, rows.iter().map(Vec::as_slice));
            let table = encoded(&codec, &rows);
            let (mut query, mut as_query) = (Coded::default(), Coded::default());
            codec.query(&rows[0], &mut query);
            for (row, (bytes, value)) in
                rows.iter().zip(table.chunks_exact(codec.stride()).zip(gathered(&codec, &query, &table)))
            {
                let near: Vec<f64> =
                    row.iter().map(|&x| ::half::f16::from_f32(x.clamp(-most, most)).to_f64()).collect();
                let terms = rows[0].iter().zip(&near).map(|(&q, x)| {
                    let q = f64::from(q);
                    if metric == Metric::L2 { (q - x) * (q - x) } else { -q * x }
                });
                let (sum, size) = terms.fold((0.0, 1.0), |(sum, size), x| (sum + x, size + x.abs()));
                let exact = if metric == Metric::Cosine { 1.0 + sum } else { sum };
                assert!((f64::from(value) - exact).abs() <= 1e-5 * size, "{metric} {isa:?} {dim}: {value} for {exact}");
                // A row as query is the query of what its code stands for.
                codec.row_as_query(bytes, &mut as_query);
                let decoded: Vec<f32> = near.iter().map(|&x| x as f32).collect();
                let mut other = Coded::default();
                codec.query(&decoded, &mut other);
                assert_eq!(gathered(&codec, &as_query, &table), gathered(&codec, &other, &table));
            }
        }
    }
}

#[test]
fn half_floats_say_which_rows_they_hold() {
    let codec = |metric| Codec::train(Encoding::F16, Kernel::new(metric), 3, std::iter::once(&[1.0; 3][..]));
    let l2 = codec(Metric::L2);
    for row in [[0.0; 3], [1.0, 0.0, 1e-30], [65_504.0, 1.0, -65_504.0]] {
        assert!(l2.holds(&row), "{row:?}");
    }
    for row in [[65_505.0, 0.0, 0.0], [1.0, -3e38, 1.0]] {
        assert!(!l2.holds(&row), "{row:?}");
    }
    assert!(codec(Metric::Cosine).holds(&[f32::NAN, 0.0, 0.0]), "without a direction");
}

#[test]
fn product_estimates_are_distances_to_what_codes_stand_for() {
    for (encoding, metric) in PRODUCT.into_iter().flat_map(|e| METRICS.map(|m| (e, m))) {
        for dim in (1..12).chain([33, 65, 384]) {
            let (kernel, rows) = rows(metric, Isa::detect(), 150, dim);
            let codec = Codec::train(encoding, kernel, dim, rows.iter().map(Vec::as_slice));
            assert_eq!(codec.stride(), (4 * dim).div_ceil(encoding.ratio().expect("product")));
            let table = encoded(&codec, &rows);
            let mut query = Coded::default();
            codec.query(&rows[0], &mut query);
            let values = gathered(&codec, &query, &table);
            for (bytes, value) in table.chunks_exact(codec.stride()).zip(values) {
                let near = product::decode(&codec, codec.books(), bytes);
                let pairs = || rows[0].iter().zip(&near).map(|(&q, &x)| (f64::from(q), f64::from(x)));
                let square = pairs().map(|(q, x)| (q - x) * (q - x)).sum::<f64>();
                let exact = match metric {
                    Metric::L2 => square,
                    Metric::Cosine => square / 2.0,
                    _ => -pairs().map(|(q, x)| q * x).sum::<f64>(),
                };
                let size = pairs().map(|(q, x)| q * q + x * x).sum::<f64>();
                // Half a unit a run at most, and rounding.
                let bound = f64::from(query.scale) * codec.stride() as f64 * 0.51 + 2e-6 * (1.0 + size);
                assert!((f64::from(value) - exact).abs() <= bound, "{encoding:?} {metric} {dim}: {value} for {exact}");
                assert!(bound < 0.002 * (1.0 + size), "{encoding:?} {metric} {dim}: {bound}");
            }
        }
    }
}

#[test]
fn product_codes_are_the_same_on_every_instruction_set() {
    for (encoding, metric) in PRODUCT.into_iter().flat_map(|e| METRICS.map(|m| (e, m))) {
        for dim in [1, 7, 33] {
            let mut seen: Option<(Vec<u8>, Vec<u8>, Vec<f32>)> = None;
            for isa in Isa::available() {
                let (_, rows) = rows(metric, Isa::Scalar, 300, dim);
                let codec = Codec::train(encoding, Kernel::with(metric, isa), dim, rows.iter().map(Vec::as_slice));
                let (mut learned, mut query) = (Vec::new(), Coded::default());
                codec.save(&mut learned).expect("memory");
                let table = encoded(&codec, &rows);
                codec.query(&rows[3], &mut query);
                let values = gathered(&codec, &query, &table);
                let all = (learned, table, values);
                assert!(*seen.get_or_insert_with(|| all.clone()) == all, "{encoding:?} {metric} {dim} {isa:?}");
            }
        }
    }
}

#[test]
fn centroids_without_points_go_where_they_are_wanted() {
    // Fewer places than centroids, most points in one of them: whoever is drawn there first leaves the others bare.
    let places = noise(5, 200 * 3);
    let place = |at: usize| &places[3 * at..][..3];
    let points: Vec<f32> =
        (0..9_000).flat_map(|at| place(if at % 10 == 0 { at / 10 % 200 } else { 0 }).to_vec()).collect();
    for reserved in [0, 1] {
        let mut columns = vec![kmeans::BLANK; 3];
        kmeans::learn(Isa::detect(), &points, reserved, &mut columns);
        for at in 0..200 {
            let same = |k: usize| (0..3).all(|i| (columns[i].as_flattened()[k] - place(at)[i]).abs() < 1e-6);
            assert!((0..kmeans::CENTROIDS).any(same), "place {at} is nobody's");
        }
        let first = |k: usize| columns.iter().map(|column| column.as_flattened()[k]).collect::<Vec<_>>();
        assert!(reserved == 0 || first(0) == first(1));
    }
}

#[test]
fn centroids_settle_for_less_than_a_grid_loses() {
    // Points of a normal distribution in two dimensions: 256 centroids lose less than 16 x 16 levels.
    let points = noise(17, 2 * 10_000);
    let mut columns = vec![kmeans::BLANK; 2];
    kmeans::learn(Isa::detect(), &points, 0, &mut columns);
    let mut lost = 0.0;
    kmeans::assign(Isa::detect(), &points, &columns, &kmeans::halves(&columns), |at, _, score| {
        let point = &points[2 * at..][..2];
        lost += f64::from(point[0] * point[0] + point[1] * point[1] + 2.0 * score);
    });
    let step = best_step(Encoding::Sq4, &points);
    let grid = |&x: &f32| f64::from(x - step * f32::from(LEVELS[usize::from(level(x / step))])).powi(2);
    let levels = points.iter().map(grid).sum::<f64>();
    assert!(lost < 0.95 * levels, "{lost} against {levels}");
}

#[test]
fn what_was_learned_is_read_back_and_damage_is_told() {
    for encoding in Encoding::ALL.into_iter().filter(|&encoding| encoding != Encoding::F32) {
        let (kernel, rows) = rows(Metric::L2, Isa::detect(), 300, 21);
        let codec = Codec::train(encoding, kernel, 21, rows.iter().map(Vec::as_slice));
        let mut bytes = Vec::new();
        codec.save(&mut bytes).expect("memory");
        let load = |mut bytes: &[u8]| Codec::load(kernel, 21, &mut bytes);
        let read = load(&bytes).expect("just saved").expect("codes");
        assert_eq!((read.encoding(), encoded(&read, &rows)), (encoding, encoded(&codec, &rows)));
        assert!((0..bytes.len()).step_by(7).chain([bytes.len() - 1]).all(|len| load(&bytes[..len]).is_err()));
        let spoiled = |at: usize, with: &[u8]| {
            let mut bad = bytes.clone();
            bad[at..at + with.len()].copy_from_slice(with);
            load(&bad).is_err()
        };
        assert!(spoiled(0, &[8]) && spoiled(1, &f32::NAN.to_le_bytes()) && spoiled(5, &[255; 4]), "{encoding:?}");
        if encoding.ratio().is_some() {
            let head = 9 + 4 * 21;
            assert!(spoiled(head, &[255; 4]) && spoiled(head, &[1, 0, 0, 0]), "{encoding:?}: runs");
            assert!(spoiled(head + 4 + 4 * 300, &f32::INFINITY.to_le_bytes()), "{encoding:?}: a centroid");
        }
        let dim = encoding == Encoding::F16 || Codec::load(kernel, 22, &mut &bytes[..]).is_err();
        assert!(dim, "{encoding:?}: of another dimension");
    }
}
