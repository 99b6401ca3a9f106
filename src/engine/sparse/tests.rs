//! Kernels against the written reference; vectors that come and go, beside a plain list of them.

use super::*;

/// Reproducible noise (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    /// At most `most` elements; of any size, with some indices that many have.
    fn vector(&mut self, dimensions: u32, most: u64) -> SparseVector {
        let mut elements = std::collections::BTreeMap::new();
        for _ in 0..self.below(most + 1) {
            let near = if self.below(2) == 0 { 40.min(dimensions) } else { dimensions };
            let value = (self.below(2001) as f32 - 1000.0) * 10f32.powi(self.below(9) as i32 - 6);
            elements.insert(self.below(near.into()) as u32, value);
        }
        SparseVector::new(dimensions as usize, elements.into_iter().collect()).expect("a vector")
    }
}

fn row(vector: &SparseVector) -> Row<'_> {
    (vector.indices(), vector.values())
}

fn near(ours: f32, reference: f64, context: &str) {
    let close = (f64::from(ours) - reference).abs() <= 1e-6 * reference.abs().max(1e-6);
    assert!(close || (ours.is_nan() && reference.is_nan()), "{context}: {ours}, by the reference {reference}");
}

#[test]
fn kernels_give_what_the_reference_gives() {
    let mut random = Random(1);
    for round in 0..4000 {
        let dimensions = [1, 50, 1000, 1_000_000_000][random.below(4) as usize];
        let lengths = [3, 20, 700];
        let vector = |random: &mut Random| {
            let most = lengths[random.below(3) as usize];
            random.vector(dimensions, most)
        };
        let (a, b) = (vector(&mut random), vector(&mut random));
        // Also with itself, where L2 and L1 are nothing at all.
        for (a, b) in [(&a, &b), (&b, &a), (&a, &a)] {
            for metric in Metric::PLAIN {
                let ours = SparseQuery::new(metric, a.clone()).distance(row(b));
                let context = format!("{round} {metric} {a:?} {b:?}");
                near(ours, metric.sparse_distance(a, b), &context);
                assert!(!(ours.is_sign_negative() && (ours == 0.0 || ours.is_nan())), "{context}: {ours}");
            }
        }
    }
}

#[test]
fn sums_beyond_a_real_are_no_undefined_distances() {
    let vector = |value: f32| SparseVector::new(9, vec![(3, value)]).expect("a vector");
    let (large, small, zero) = (vector(f32::MAX), vector(f32::MIN_POSITIVE), vector(0.0));
    let distance = |metric, a: &SparseVector, b| SparseQuery::new(metric, a.clone()).distance(row(b));
    assert_eq!(distance(Metric::Ip, &large, &large), f32::NEG_INFINITY);
    assert_eq!(distance(Metric::Cosine, &large, &small), 0.0);
    assert_eq!(distance(Metric::L2, &large, &zero), f32::MAX);
    for (a, b) in [(&zero, &large), (&large, &zero), (&zero, &zero)] {
        assert!(distance(Metric::Cosine, a, b).is_nan());
    }
}

/// A column beside a list of its vectors, with the nodes that rows have.
fn check(column: &SparseColumn, wanted: &[Option<SparseVector>], random: &mut Random) {
    let rows = column.view().rows;
    assert_eq!(rows.len() as usize, wanted.len());
    let nodes: Vec<u32> = (0..rows.len()).filter(|node| wanted[*node as usize].is_some()).collect();
    for &node in &nodes {
        assert_eq!(rows.get(node), wanted[node as usize], "node {node}");
    }
    let query = random.vector(5000, 30);
    let metric = Metric::PLAIN[random.below(4) as usize];
    let passing: Vec<u32> = nodes.iter().copied().filter(|_| random.below(3) > 0).collect();
    let mut found = Vec::new();
    let ready = SparseQuery::new(metric, query.clone());
    rows.scan(&ready, passing.iter().copied(), |node, distance| found.push((node, distance)));
    assert_eq!(found.iter().map(|(node, _)| *node).collect::<Vec<_>>(), passing);
    for (node, distance) in found {
        let vector = wanted[node as usize].as_ref().expect("a vector");
        near(distance, metric.sparse_distance(&query, vector), &format!("{metric} node {node}"));
    }
}

#[test]
fn vectors_come_and_go_and_views_keep_theirs() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("v.sparse");
    let mut random = Random(2);
    let mut column = SparseColumn::default();
    column.open(&path, 5000, 0).expect("create");
    let mut wanted: Vec<Option<SparseVector>> = Vec::new();
    let mut views: Vec<(SparseView, Vec<Option<SparseVector>>)> = Vec::new();
    for round in 0..60 {
        for _ in 0..random.below(1500) {
            let vector = random.vector(5000, 12);
            assert_eq!(column.add(&vector).expect("add") as usize, wanted.len());
            wanted.push(Some(vector));
        }
        for _ in 0..random.below(if round % 10 == 9 { 40_000 } else { 2_000 }) {
            let node = random.below(wanted.len().max(1) as u64) as usize;
            if wanted.get_mut(node).is_some_and(|vector| vector.take().is_some()) {
                column.forget(node as u32, |node| wanted[node as usize].is_some());
            }
        }
        column.flush().expect("flush");
        check(&column, &wanted, &mut random);
        assert_eq!(column.view().latest().len() as usize, wanted.len());
        if round % 6 == 0 {
            views.push((column.view(), wanted.clone()));
        }
    }
    for (view, wanted) in &views {
        for (node, vector) in wanted.iter().enumerate().filter(|(_, vector)| vector.is_some()) {
            assert_eq!(view.rows.get(node as u32), *vector, "node {node} of an earlier view");
        }
    }
    let held = |column: &SparseColumn| column.rows.blocks.iter().map(|block| block.held).sum::<usize>();
    let living = wanted.iter().flatten().count();
    assert!(held(&column) <= 2 * living + 1, "{} of {living} are held", held(&column));
    column.sync().expect("sync");
    // All come back from the file, and the dead are let go.
    let mut again = SparseColumn::default();
    again.open(&path, 5000, wanted.len() as u32).expect("open");
    again.retain(|node| wanted[node as usize].is_some());
    check(&again, &wanted, &mut random);
    assert_eq!(held(&again), living);
    assert!(again.view().rows.memory_bytes() <= column.view().rows.memory_bytes());
    again.retain(|_| false);
    assert_eq!((again.rows.blocks.len(), again.rows.len() as usize), (0, wanted.len()));
    let last = random.vector(5000, 12);
    assert_eq!(again.add(&last).expect("add") as usize, wanted.len(), "nodes are given once");
    assert_eq!(again.rows.get(wanted.len() as u32), Some(last));
}
