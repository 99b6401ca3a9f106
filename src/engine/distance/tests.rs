//! Every kernel against plain f64 arithmetic.

use proptest::prelude::*;

use super::*;

/// The inner value in f64, and its positive and negative parts: what the rounding of a sum is measured by.
fn reference(metric: Metric, a: &[f32], b: &[f32]) -> (f64, f64, f64) {
    let term = |(&x, &y): (&f32, &f32)| match metric {
        Metric::L2 => (f64::from(x) - f64::from(y)).powi(2),
        Metric::L1 => (f64::from(x) - f64::from(y)).abs(),
        _ => -f64::from(x) * f64::from(y),
    };
    let one = if metric == Metric::Cosine { 1.0 } else { 0.0 };
    let terms = || a.iter().zip(b).map(term);
    let (plus, minus) = (terms().map(|t| t.max(0.0)).sum::<f64>() + one, terms().map(|t| -t.min(0.0)).sum::<f64>());
    (terms().sum::<f64>() + one, plus, minus)
}

fn check(metric: Metric, a: &[f32], b: &[f32]) {
    let (want, plus, minus) = reference(metric, a, b);
    let limit = f64::from(f32::MAX);
    for isa in Isa::available() {
        let got = f64::from(Kernel::with(metric, isa).inner(a, b));
        let context = format!("{metric} {isa:?} len {}: {got} for {want}", a.len());
        if plus + minus < limit / 2.0 {
            // Terms below the smallest normal number may be lost or rounded to the next denormal.
            let slack = (plus + minus) * 1e-5 + a.len() as f64 * 2e-38;
            assert!((got - want).abs() <= slack, "{context}");
        } else if want.abs() > limit * 2.0 && plus.min(minus) < limit / 2.0 {
            // Only one side can overflow, and does in any order of summation.
            assert_eq!(got, f64::INFINITY.copysign(want), "{context}");
        }
        assert!(!got.is_nan(), "{context}");
    }
}

fn noise(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn every_length_agrees_also_unaligned() {
    for len in 1..=2100usize {
        let (a, b) = (noise(len as u64, len + 3, 1.0), noise(!(len as u64), len + 3, 1.0));
        for metric in Metric::PLAIN {
            let (x, y) = (len % 4, (len / 4) % 4);
            check(metric, &a[x..][..len], &b[y..][..len]);
        }
    }
}

#[test]
fn extremes_agree() {
    for len in [1, 7, 16, 63, 64, 65, 300] {
        for scale in [1e-45, 1e-39, 1e-20, 1e18, 1e19, 2e19, 1e30, f32::MAX / 2.0] {
            let (a, b) = (noise(1, len, scale), noise(2, len, scale));
            let positive: Vec<f32> = a.iter().map(|x| x.abs()).collect();
            let negative: Vec<f32> = positive.iter().map(|x| -x).collect();
            for metric in Metric::PLAIN {
                check(metric, &a, &b);
                check(metric, &positive, &positive);
                check(metric, &positive, &negative);
            }
        }
    }
}

#[test]
fn zero_vectors_sort_last_under_cosine() {
    for isa in Isa::available() {
        let kernel = Kernel::with(Metric::Cosine, isa);
        let (mut zero, mut other, mut opposite) = (vec![0.0; 40], vec![1e-44; 40], vec![-3e38; 40]);
        [&mut zero, &mut other, &mut opposite].into_iter().for_each(|row| kernel.prepare(row));
        assert!(kernel.is_directionless(&zero) && !kernel.is_directionless(&other));
        assert_eq!(kernel.inner(&zero, &other), f32::INFINITY);
        assert_eq!(kernel.inner(&zero, &zero), f32::INFINITY);
        assert!(kernel.public(f32::INFINITY).is_nan());
        assert!((kernel.public(kernel.inner(&other, &opposite)) - 2.0).abs() < 1e-6);
        assert_eq!(kernel.public(-1e-7), 0.0);
    }
}

#[test]
fn unit_vectors_have_the_same_bits_on_every_cpu() {
    for len in [1, 15, 16, 17, 100, 384, 1_537] {
        for scale in [1e-44, 1e-20, 1.0, 1e30] {
            let row = noise(5, len, scale);
            let prepared = |isa| {
                let mut row = row.clone();
                Kernel::with(Metric::Cosine, isa).prepare(&mut row);
                row.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            let expected = prepared(Isa::Scalar);
            Isa::available().into_iter().for_each(|isa| assert_eq!(prepared(isa), expected, "{isa:?} {len} {scale}"));
        }
    }
}

#[test]
fn gather_equals_one_by_one() {
    for metric in Metric::PLAIN {
        for isa in Isa::available() {
            let kernel = Kernel::with(metric, isa);
            let (query, table) = (noise(1, 48, 1.0), noise(2, 48 * 20, 1.0));
            for count in 0..10 {
                let slots: Vec<u32> = (0..count).map(|i| (i * 7 + 3) % 20).collect();
                let mut out = [0.0; 10];
                // SAFETY: the table has 20 rows of 48.
                unsafe { kernel.gather(&query, table.as_ptr(), &slots, &mut out) };
                for (i, &slot) in slots.iter().enumerate() {
                    assert_eq!(out[i], kernel.inner(&query, &table[slot as usize * 48..][..48]));
                }
            }
        }
    }
}

/// A vector that the metric has distances from.
fn inside(metric: Metric, seed: u64, len: usize) -> Vec<f32> {
    let mut row = noise(seed, len, 1.0);
    match metric {
        Metric::Hamming | Metric::Jaccard => row.iter_mut().for_each(|x| *x = f32::from(*x > 0.3)),
        Metric::Poincare => {
            // Norms up to 1 - 1e-5, where rounding counts.
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
            let wanted = 1.0 - [0.9, 0.5, 0.01, 1e-5][seed as usize % 4];
            row.iter_mut().for_each(|x| *x *= wanted / norm);
        }
        Metric::Lorentz => {
            let space: f64 = row[1..].iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            row[0] = (1.0 + space).sqrt() as f32;
        }
        _ => {}
    }
    assert_eq!(metric.outside(&row), None);
    row
}

#[test]
fn metrics_of_their_own_domain_agree_with_the_reference() {
    for metric in [Metric::Hamming, Metric::Jaccard, Metric::Poincare, Metric::Lorentz] {
        for len in (1..70).chain([127, 384, 1000, 2050]) {
            let (a, b) = (inside(metric, len as u64, len), inside(metric, !(len as u64), len));
            let near: Vec<f32> = match metric {
                Metric::Poincare => a.iter().map(|x| x * 0.99999).collect(),
                _ => a.clone(),
            };
            for isa in Isa::available() {
                let kernel = Kernel::with(metric, isa);
                for (x, y) in [(&a, &b), (&b, &a), (&a, &near), (&a, &a)] {
                    let (want, got) = (metric.distance(x, y), f64::from(kernel.public(kernel.inner(x, y))));
                    assert!((got - want).abs() <= 1e-5 * (1e-3 + want), "{metric} {isa:?} len {len}: {got} for {want}");
                }
                // Rows are padded with zeros.
                let pad = |row: &[f32]| [row, &[0.0; LINE]].concat();
                let (plain, padded) = (kernel.inner(&a, &b), kernel.inner(&pad(&a), &pad(&b)));
                assert!((plain - padded).abs() <= 1e-5 * plain.abs(), "{metric} {isa:?} len {len}: {plain} {padded}");
            }
        }
    }
}

#[test]
fn bits_that_are_all_zero_are_far_from_everything_under_jaccard() {
    let kernel = Kernel::new(Metric::Jaccard);
    assert_eq!(kernel.inner(&[0.0; 16], &[0.0; 16]), 1.0);
    assert_eq!(kernel.inner(&[0.0; 16], &[1.0; 16]), 1.0);
    assert_eq!(kernel.inner(&[1.0; 16], &[1.0; 16]), 0.0);
}

proptest! {
    #[test]
    fn any_finite_vectors_agree(pairs in prop::collection::vec((any::<f32>(), any::<f32>()), 1..2100)) {
        let finite = |x: f32| if x.is_finite() { x } else { 1.0 };
        let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().map(|(x, y)| (finite(x), finite(y))).unzip();
        for metric in Metric::PLAIN {
            check(metric, &a, &b);
        }
    }
}
