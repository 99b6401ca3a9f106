//! The graph against brute force, under concurrency, and from doubtful bytes.

use std::collections::HashSet;

use super::*;

/// A small generator of our own, so that a failure replays.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Roughly normal.
    fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.unit() - 0.5).sum::<f32>() * 1.7
    }
}

/// Points around `n / 50` centres.
fn clustered(seed: u64, n: usize, dim: usize) -> Vec<Vec<f32>> {
    let mut rng = Rng(seed | 1);
    let centres: Vec<Vec<f32>> = (0..n / 50 + 1).map(|_| (0..dim).map(|_| rng.normal()).collect()).collect();
    (0..n)
        .map(|_| {
            let centre = &centres[rng.next() as usize % centres.len()];
            centre.iter().map(|x| x + 0.4 * rng.normal()).collect()
        })
        .collect()
}

fn graph_of(metric: Metric, rows: &[Vec<f32>], threads: usize) -> Graph {
    encoded(Encoding::default(), metric, rows, threads)
}

fn encoded(encoding: Encoding, metric: Metric, rows: &[Vec<f32>], threads: usize) -> Graph {
    let params = Params { m: 8, ef_construction: 80, seed: 7, encoding, ..Params::default() };
    let graph = Graph::new(metric, rows[0].len(), rows.len() + 10, params);
    rows.iter().for_each(|row| _ = graph.push(row));
    graph.build(threads, &|_| {});
    graph
}

fn page(walk: &mut Walk<'_>, want: usize) -> Vec<(f32, u32)> {
    let mut out = Vec::new();
    walk.next_page(want, &mut |_| true, &mut out).expect("held");
    out
}

/// The exact answer, by the graph's own distances.
fn exact(graph: &Graph, query: &Query, k: usize) -> Vec<u32> {
    let mut all = Vec::new();
    graph.scan(query, 0..graph.len(), &mut |slot, inner| all.push((inner, slot))).expect("held");
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all.into_iter().take(k).map(|(_, slot)| slot).collect()
}

fn distance_at(graph: &Graph, query: &Query, slot: u32) -> f32 {
    let mut found = None;
    graph.measure(query, &[slot], &mut |_, inner| found = Some(inner)).expect("held");
    found.expect("one slot")
}

fn recall(graph: &Graph, queries: &[Vec<f32>], k: usize, ef: usize) -> f64 {
    let mut hits = 0;
    for vector in queries {
        let query = graph.prepare(vector);
        let truth: HashSet<u32> = exact(graph, &query, k).into_iter().collect();
        hits += page(&mut graph.walk(&query, ef), k).iter().filter(|(_, slot)| truth.contains(slot)).count();
    }
    hits as f64 / (k * queries.len()) as f64
}

#[test]
fn recall_is_high_and_parallel_builds_lose_nothing() {
    let rows = clustered(1, 4000, 24);
    let queries = clustered(1, 4100, 24).split_off(4000);
    for metric in [Metric::L2, Metric::Cosine, Metric::L1] {
        let serial = recall(&graph_of(metric, &rows, 1), &queries, 10, 64);
        let parallel = recall(&graph_of(metric, &rows, 3), &queries, 10, 64);
        assert!(serial > 0.95 && (serial - parallel).abs() < 0.02, "{metric}: {serial} {parallel}");
    }
    let ip = recall(&graph_of(Metric::Ip, &rows, 2), &queries, 10, 128);
    assert!(ip > 0.9, "inner product: {ip}");
}

#[test]
fn codes_lose_no_recall_and_order_nothing() {
    let rows = clustered(2, 6000, 96);
    let queries = clustered(2, 6060, 96).split_off(6000);
    for metric in [Metric::L2, Metric::Cosine, Metric::Ip] {
        let floats = recall(&encoded(Encoding::F32, metric, &rows, 2), &queries, 10, 64);
        for encoding in [Encoding::F16, Encoding::Sq8, Encoding::Sq4] {
            let graph = encoded(encoding, metric, &rows, 2);
            assert_ne!(graph.compared().encoding(), Encoding::F32);
            let coded = recall(&graph, &queries, 10, 64);
            let lost = if encoding == Encoding::Sq4 { 0.05 } else { 0.02 };
            assert!(coded > floats - lost, "{metric} {encoding:?}: {coded} with codes, {floats} with floats");
            let query = graph.prepare(&queries[0]);
            for (inner, slot) in page(&mut graph.walk(&query, 64), 10) {
                assert_eq!(inner, distance_at(&graph, &query, slot), "{metric} {encoding:?}: distances are exact");
            }
        }
    }
}

#[test]
fn rows_that_codes_do_not_tell_apart_keep_their_floats() {
    // Far clusters: on a grid that spans them, all rows of one look the same.
    let far = |slot: usize, row: &mut Vec<f32>| row[0] += 1000.0 * (slot % 10) as f32;
    let mut rows = clustered(31, 3000, 4);
    rows.iter_mut().enumerate().for_each(|(slot, row)| far(slot, row));
    for encoding in [Encoding::Sq8, Encoding::Sq4] {
        let graph = encoded(encoding, Metric::L2, &rows, 2);
        assert_eq!(graph.compared().encoding(), Encoding::F32);
        assert!(recall(&graph, &rows[..50], 10, 64) > 0.95);
    }
    let near = clustered(31, 3000, 4);
    assert_eq!(encoded(Encoding::Sq8, Metric::L2, &near, 2).compared().encoding(), Encoding::Sq8);
}

#[test]
fn rows_out_of_the_range_of_half_floats_keep_their_floats() {
    let plain = clustered(33, 3000, 8);
    let scaled = |by: f32| plain.iter().map(|row| row.iter().map(|x| x * by).collect()).collect::<Vec<Vec<f32>>>();
    for (by, serves) in [(1.0, true), (1e3, true), (1e6, false), (1e-9, false), (1e-7, false)] {
        for metric in [Metric::L2, Metric::Ip] {
            let rows = scaled(by);
            let graph = encoded(Encoding::F16, metric, &rows, 2);
            let expected = if serves { Encoding::F16 } else { Encoding::F32 };
            assert_eq!(graph.encoding(), expected, "{metric} {by}");
            assert!(metric == Metric::Ip || recall(&graph, &rows[..50], 10, 64) > 0.95, "{metric} {by}");
        }
    }
    // One such row among many is enough, at once.
    let graph = Graph::new(Metric::L2, 8, 3_001, Params { encoding: Encoding::F16, ..Params::default() });
    plain.iter().for_each(|row| _ = graph.push(row));
    graph.build(2, &|_| {});
    assert_eq!(graph.encoding(), Encoding::F16);
    graph.push(&[1e5; 8]);
    assert_eq!(graph.encoding(), Encoding::F32);
    while graph.link_next(64) > 0 {}
    let query = graph.prepare(&[2e5; 8]);
    assert_eq!(page(&mut graph.walk(&query, 64), 1)[0].1, 3_000);
}

#[test]
fn rows_that_say_nothing_choose_no_codes() {
    // Placeholders first, the real rows later: no grid is learned of the former.
    for (metric, placeholder) in [(Metric::Cosine, 0.0), (Metric::L2, 0.0), (Metric::L2, 7.0), (Metric::Ip, 1.0)] {
        let real = clustered(41, 3000, 24);
        let params = Params { m: 8, ef_construction: 80, seed: 9, encoding: Encoding::Sq8, ..Params::default() };
        let graph = Graph::new(metric, 24, 9000, params);
        (0..1500).for_each(|_| _ = graph.push(&[placeholder; 24]));
        while graph.link_next(64) > 0 {}
        assert_eq!(graph.encoding(), Encoding::F32, "{metric} {placeholder}");
        for row in &real {
            graph.push(row);
            graph.link_next(1);
        }
        while graph.link_next(64) > 0 {}
        let found = recall(&graph, &real[..40], 10, 100);
        assert!(found > 0.9 || metric == Metric::Ip, "{metric} {placeholder}: {found}");
    }
}

#[test]
fn codes_that_fit_the_first_rows_only_are_refused_later() {
    // The first rows lie in a corner that the grid is made for; the others are far outside it.
    let rows = clustered(43, 6000, 12);
    let params = Params { m: 8, ef_construction: 80, seed: 9, encoding: Encoding::Sq8, ..Params::default() };
    let graph = Graph::new(Metric::L2, 12, rows.len(), params);
    for (slot, row) in rows.iter().enumerate() {
        let scale = if slot < 1000 { 0.001 } else { 1.0 };
        graph.push(&row.iter().map(|x| x * scale).collect::<Vec<_>>());
        if slot % 50 == 49 {
            while graph.link_next(64) > 0 {}
        }
    }
    while graph.link_next(64) > 0 {}
    assert_eq!(graph.encoding(), Encoding::F32);
}

#[test]
fn a_row_chained_by_codes_keeps_its_own_distance() {
    // Under coarse codes rows of one cell are chained. Read back without them, the graph compares floats.
    let mut rows = clustered(47, 2000, 3);
    let near: Vec<_> = rows[..200].iter().map(|row| row.iter().map(|x| x + 1e-4).collect::<Vec<f32>>()).collect();
    rows.extend(near);
    let coded = encoded(Encoding::Sq8, Metric::L2, &rows, 1);
    let mut bytes = Vec::new();
    coded.save(&mut bytes).expect("memory");
    let codes = 1 + 4 + 4 + 3 * 4 + 4 + rows.len() * coded.codes.get().expect("codes").bytes_of(1);
    bytes.truncate(bytes.len() - codes);
    bytes.push(0);
    let params = Params { encoding: Encoding::F32, ..coded.params() };
    let read = load(Metric::L2, &rows, params, &bytes, false).expect("just saved");
    assert_eq!(read.encoding(), Encoding::F32);
    for (slot, row) in rows.iter().enumerate().step_by(7) {
        let query = read.prepare(row);
        for (inner, found) in page(&mut read.walk(&query, 30), 10) {
            // But for the order of its sum.
            let exact = distance_at(&read, &query, found);
            assert!((inner - exact).abs() <= 1e-6 * exact, "{slot} {found}: {inner} for {exact}");
        }
    }
}

#[test]
fn codes_come_while_rows_are_pushed_and_searched() {
    let rows = clustered(21, 3000, 16);
    let params = Params { m: 8, ef_construction: 60, seed: 5, encoding: Encoding::Sq4, ..Params::default() };
    let graph = Graph::new(Metric::L2, 16, rows.len(), params);
    let pushed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            rows.iter().for_each(|row| _ = graph.push(row));
            pushed.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            while !pushed.load(Ordering::Acquire) || graph.linked() < graph.len() {
                graph.link_next(50);
            }
        });
        while graph.linked() < 3000 {
            let query = graph.prepare(&rows[7]);
            let mut walk = graph.walk(&query, 30);
            let limit = walk.limit();
            let found = page(&mut walk, 5);
            assert!(found.len() == 5.min(limit as usize) && found.iter().all(|&(_, slot)| slot < limit));
        }
    });
    assert_eq!(graph.compared().encoding(), Encoding::Sq4);
    let every_row_finds_itself = rows.iter().enumerate().filter(|(slot, row)| {
        let query = graph.prepare(row);
        page(&mut graph.walk(&query, 40), 1)[0] == (0.0, *slot as u32)
    });
    assert!(every_row_finds_itself.count() > 2990);
}

#[test]
fn distances_are_the_models() {
    let rows = clustered(3, 50, 7);
    for metric in Metric::PLAIN {
        let graph = graph_of(metric, &rows, 1);
        let query = graph.prepare(&rows[3]);
        for (slot, row) in rows.iter().enumerate() {
            let got = f64::from(graph.public_distance(distance_at(&graph, &query, slot as u32)));
            assert!((got - metric.distance(&rows[3], row)).abs() < 1e-3, "{metric} {slot}");
        }
    }
}

#[test]
fn pages_are_a_permutation_and_ascending_within() {
    let rows = clustered(5, 1500, 12);
    for metric in Metric::PLAIN {
        let graph = graph_of(metric, &rows, 2);
        for (ef, want) in [(1, 1), (10, 3), (40, 40), (64, 7), (5, 100), (2000, 11), (16, 5000)] {
            let query = graph.prepare(&rows[17]);
            let mut walk = graph.walk(&query, ef);
            let (mut found, mut pages) = (Vec::new(), 0);
            while !walk.is_dry() {
                let next = page(&mut walk, want);
                assert!(next.is_sorted_by(|a, b| a.0 <= b.0));
                assert!(next.len() == want || walk.is_dry(), "short only when dry");
                found.extend(next.into_iter().map(|(_, slot)| slot));
                pages += 1;
            }
            assert!(pages >= rows.len() / want);
            let distinct: HashSet<u32> = found.iter().copied().collect();
            assert_eq!((found.len(), distinct.len()), (rows.len(), rows.len()), "{metric} ef {ef} want {want}");
        }
    }
}

#[test]
fn later_pages_are_nearly_in_order() {
    let rows = clustered(6, 3000, 16);
    let graph = graph_of(Metric::L2, &rows, 1);
    let query = graph.prepare(&rows[5]);
    let mut walk = graph.walk(&query, 50);
    let found: Vec<u32> = (0..30).flat_map(|_| page(&mut walk, 10)).map(|(_, slot)| slot).collect();
    let truth: HashSet<u32> = exact(&graph, &query, 300).into_iter().collect();
    let hits = found.iter().filter(|slot| truth.contains(slot)).count();
    assert!(hits > 285, "{hits} of 300");
}

#[test]
fn filters_are_walked_through() {
    let rows = clustered(8, 3000, 16);
    let graph = graph_of(Metric::Cosine, &rows, 2);
    for modulus in [2, 10, 100, 1000] {
        let query = graph.prepare(&rows[1]);
        let mut walk = graph.walk(&query, 40);
        let mut found = Vec::new();
        walk.next_page(10, &mut |slot| slot % modulus == 0, &mut found).expect("held");
        let passing = rows.len().div_ceil(modulus as usize);
        assert_eq!(found.len(), passing.min(10));
        let mut truth = Vec::new();
        graph
            .scan(&query, (0..3000).filter(|slot| slot % modulus == 0), &mut |slot, inner| truth.push((inner, slot)))
            .expect("held");
        truth.sort_by(|a, b| a.partial_cmp(b).expect("never NaN"));
        let hits = found.iter().filter(|pair| truth[..found.len()].contains(pair)).count();
        assert!(hits * 10 >= found.len() * 8, "{hits} of {}", found.len());
        while !walk.is_dry() {
            walk.next_page(7, &mut |slot| slot % modulus == 0, &mut found).expect("held");
        }
        assert_eq!(found.len(), passing, "nothing lost, nothing twice");
    }
    let query = graph.prepare(&rows[1]);
    let mut walk = graph.walk(&query, 40);
    let mut none = Vec::new();
    walk.next_page(10, &mut |_| false, &mut none).expect("held");
    assert!(none.is_empty() && walk.is_dry());
}

#[test]
fn a_budget_ends_a_page_early_and_can_be_raised() {
    let rows = clustered(9, 2000, 8);
    let graph = graph_of(Metric::L2, &rows, 1);
    let query = graph.prepare(&rows[1]);
    let mut walk = graph.walk(&query, 40);
    walk.set_budget(200);
    let mut found = Vec::new();
    walk.next_page(10, &mut |slot| slot == 1999, &mut found).expect("held");
    assert!(found.is_empty() && !walk.is_dry() && walk.visited() < 300);
    walk.set_budget(usize::MAX);
    walk.next_page(10, &mut |slot| slot == 1999, &mut found).expect("held");
    assert!(found.len() == 1 && walk.is_dry());
}

#[test]
fn small_and_empty() {
    let empty = Graph::new(Metric::L2, 1, 0, Params::default());
    let query = empty.prepare(&[1.0]);
    let mut walk = empty.walk(&query, 10);
    assert!(page(&mut walk, 5).is_empty() && walk.is_dry());

    let rows: Vec<Vec<f32>> = (0..300).map(|i| vec![(i * 7 % 300) as f32]).collect();
    let graph = graph_of(Metric::L2, &rows, 1);
    let query = graph.prepare(&[150.2]);
    let mut walk = graph.walk(&query, 10);
    let found = page(&mut walk, 1000);
    assert_eq!(found.len(), 300);
    assert_eq!(rows[found[0].1 as usize][0], 150.0);
    assert!(walk.is_dry() || page(&mut walk, 1).is_empty());
}

#[test]
fn equal_rows_are_all_found() {
    for metric in Metric::PLAIN {
        let mut rows = clustered(11, 500, 6);
        rows.extend(std::iter::repeat_n(vec![0.5f32; 6], 10_000));
        rows.extend(clustered(12, 500, 6));
        let graph = graph_of(metric, &rows, 2);
        let query = graph.prepare(&[0.5; 6]);
        let mut walk = graph.walk(&query, 20);
        let mut found = Vec::new();
        while !walk.is_dry() {
            found.extend(page(&mut walk, 500).into_iter().map(|(_, slot)| slot));
        }
        assert_eq!(found.iter().copied().collect::<HashSet<_>>().len(), 11_000);
        assert_eq!(found.len(), 11_000, "{metric}");
        if metric != Metric::Ip {
            let equal = found[..10_000].iter().filter(|&&slot| (500..10_500).contains(&slot)).count();
            assert!(equal > 9_990, "{metric}: the equal ones come first, {equal}");
        }
        // The rest is still reached without help.
        let others = clustered(13, 20, 6);
        assert!(recall(&graph, &others, 5, 50) > 0.9 || metric == Metric::Ip);
    }
}

#[test]
fn directionless_rows_and_queries() {
    for encoding in Encoding::ALL {
        // Compared by floats, and, where there are rows enough, by codes.
        directionless(400, encoding);
        directionless(1400, encoding);
    }
}

fn directionless(count: usize, encoding: Encoding) {
    let mut rows = clustered(15, count, 5);
    rows.insert(0, vec![0.0; 5]);
    rows.push(vec![0.0; 5]);
    let graph = encoded(encoding, Metric::Cosine, &rows, 1);
    assert_eq!(graph.compared().encoding() != Encoding::F32, count >= 1000 && encoding != Encoding::F32);
    let query = graph.prepare(&rows[3]);
    let mut walk = graph.walk(&query, 10);
    let found: Vec<(f32, u32)> = std::iter::from_fn(|| page(&mut walk, 50).into()).take(40).flatten().collect();
    assert_eq!(found.len(), count + 2);
    let last: Vec<u32> = found[count..].iter().map(|&(_, slot)| slot).collect();
    assert_eq!(last, [0, count as u32 + 1]);
    assert!(found[count..].iter().all(|&(inner, _)| graph.public_distance(inner).is_nan()));
    let zero = graph.prepare(&[0.0; 5]);
    let mut walk = graph.walk(&zero, 10);
    let all = page(&mut walk, 10_000);
    assert!(all.len() == count + 2 && all.iter().all(|&(inner, _)| graph.public_distance(inner).is_nan()));
}

#[test]
fn searching_while_linking() {
    let rows = clustered(21, 4000, 16);
    let graph =
        Graph::new(Metric::L2, 16, rows.len(), Params { m: 6, ef_construction: 40, seed: 3, ..Params::default() });
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| rows.iter().for_each(|row| _ = graph.push(row)));
        scope.spawn(|| {
            while (graph.linked() as usize) < rows.len() {
                graph.link_next(10);
            }
            done.store(true, Ordering::Release);
        });
        for reader in 0..2u64 {
            let (graph, rows, done) = (&graph, &rows, &done);
            scope.spawn(move || {
                let mut rng = Rng(reader + 1);
                while !done.load(Ordering::Acquire) {
                    let query = graph.prepare(&rows[rng.next() as usize % rows.len()]);
                    let mut walk = graph.walk(&query, 30);
                    let limit = walk.limit();
                    let mut found: Vec<u32> = Vec::new();
                    for _ in 0..4 {
                        found.extend(page(&mut walk, 20).into_iter().map(|(_, slot)| slot));
                    }
                    assert_eq!(found.len(), (limit as usize).min(80));
                    assert!(found.iter().all(|&slot| slot < limit));
                    assert_eq!(found.iter().collect::<HashSet<_>>().len(), found.len());
                }
            });
        }
    });
    assert!(recall(&graph, &rows[..100], 10, 100) > 0.95);
    assert!(graph.tail().is_empty());
}

#[test]
fn levels_depend_on_seed_and_slot_only() {
    let levels = |seed| (0..10_000).map(|slot| level_of(16, seed, slot)).collect::<Vec<_>>();
    assert_eq!(levels(1), levels(1));
    assert_ne!(levels(1), levels(2));
    let above = levels(1).iter().filter(|&&level| level > 0).count();
    assert!((500..750).contains(&above), "{above} of 10,000 above level 0 at m 16");
}

fn saved(count: usize) -> (Vec<Vec<f32>>, Graph, Vec<u8>) {
    saved_as(Encoding::default(), count)
}

fn saved_as(encoding: Encoding, count: usize) -> (Vec<Vec<f32>>, Graph, Vec<u8>) {
    let mut rows = clustered(31, count, 6);
    rows.extend(std::iter::repeat_n(vec![0.25f32; 6], 20));
    let graph = encoded(encoding, Metric::L2, &rows, 1);
    let mut bytes = Vec::new();
    graph.save(&mut bytes).expect("writing to memory");
    (rows, graph, bytes)
}

impl FullRows for Vec<Vec<f32>> {
    fn count(&self) -> usize {
        self.len()
    }

    fn read(&self, slot: u32, row: &mut [f32]) -> Result<()> {
        row.copy_from_slice(&self[slot as usize % self.len()]);
        Ok(())
    }
}

fn load(metric: Metric, rows: &[Vec<f32>], params: Params, mut bytes: &[u8], hold: bool) -> io::Result<Graph> {
    Graph::load(metric, rows[0].len(), params, &mut bytes, Box::new(rows.to_vec()), hold)
}

#[test]
fn save_and_load() {
    for (count, hold) in [(600, false), (1_200, false), (1_200, true)] {
        let (rows, graph, bytes) = saved(count);
        let params = graph.params();
        let loaded = load(Metric::L2, &rows, params, &bytes, hold).expect("what was saved");
        assert_eq!(loaded.holds_rows(), hold || count < TRAIN_ROWS as usize);
        assert_eq!(loaded.encoding(), graph.encoding());
        let mut again = Vec::new();
        loaded.save(&mut again).expect("writing to memory");
        assert_eq!(bytes, again);
        for row in &rows[..50] {
            let (a, b) = (graph.prepare(row), loaded.prepare(row));
            assert_eq!(page(&mut graph.walk(&a, 30), 20), page(&mut loaded.walk(&b, 30), 20));
            assert_eq!(exact(&graph, &a, 20), exact(&loaded, &b, 20));
        }
        assert_eq!(loaded.link_next(5), 0);
        let other =
            load(Metric::L2, &rows, Params { seed: 8, ..params }, &bytes, hold).expect("the seed is the file's");
        assert_eq!(other.params(), params);
        assert!(load(Metric::L2, &rows, Params { m: params.m + 1, ..params }, &bytes, hold).is_err());
        assert!(load(Metric::L2, &rows, params, &bytes[..bytes.len() - 1], hold).is_err());
    }
}

#[test]
fn rows_read_elsewhere_are_compared_as_they_were_pushed() {
    let mut rows = clustered(53, 2_000, 12);
    rows.extend([vec![0.0; 12], vec![1e-30; 12]]);
    for metric in [Metric::L2, Metric::Cosine, Metric::Ip] {
        for encoding in [Encoding::F16, Encoding::Sq8, Encoding::Sq4] {
            let graph = encoded(encoding, metric, &rows, 1);
            let mut bytes = Vec::new();
            graph.save(&mut bytes).expect("memory");
            let loaded = load(metric, &rows, graph.params(), &bytes, false).expect("just saved");
            assert_ne!(loaded.encoding(), Encoding::F32);
            assert!(loaded.memory_bytes() < graph.memory_bytes() - rows.len() * 12 * 4);
            let (mut a, mut b) = ([0.0; 12], [0.0; 12]);
            for slot in (0..rows.len() as u32).step_by(17).chain([2_000, 2_001]) {
                graph.read_row(slot, &mut a).expect("held");
                loaded.read_row(slot, &mut b).expect("read");
                assert_eq!(a.map(f32::to_bits), b.map(f32::to_bits));
                let (query, other) = (graph.prepare(&rows[slot as usize]), loaded.prepare(&rows[slot as usize]));
                assert_eq!(page(&mut graph.walk(&query, 40), 10), page(&mut loaded.walk(&other, 40), 10), "{metric}");
            }
        }
    }
}

#[test]
fn a_graph_sealed_with_coarse_codes_finds_nearly_all_in_a_fraction_of_the_memory() {
    let rows = clustered(59, 3_000, 128);
    let queries = clustered(59, 3_050, 128).split_off(3_000);
    // The floors of cold, cool and hot rows, at an effort that links alone allow.
    let codes =
        [(Encoding::Bq, 32, 0.93), (Encoding::Pq32, 32, 0.93), (Encoding::Pq16, 16, 0.96), (Encoding::Pq8, 8, 0.98)];
    for metric in [Metric::L2, Metric::Cosine, Metric::Ip] {
        let graph = encoded(Encoding::Sq8, metric, &rows, 2);
        let mut linked = Vec::new();
        graph.save(&mut linked).expect("memory");
        // Learning is slow in builds for tests: all of them by one metric, those that tiers use by the others.
        let tried =
            |code: &(Encoding, usize, f64)| metric == Metric::L2 || matches!(code.0, Encoding::Bq | Encoding::Pq16);
        for (encoding, ratio, least) in codes.into_iter().filter(tried) {
            let params = Params { encoding, ..graph.params() };
            let sealed = || {
                let mut bytes = Vec::new();
                let growing = load(metric, &rows, params, &linked, true).expect("just saved");
                assert_eq!(growing.encoding(), Encoding::Sq8, "while it grows");
                growing.save(&mut bytes).expect("memory");
                bytes
            };
            let bytes = sealed();
            let sealed_graph = load(metric, &rows, params, &bytes, false).expect("just saved");
            assert_eq!(sealed_graph.encoding(), encoding);
            let found = recall(&sealed_graph, &queries, 10, 100);
            let least = if metric == Metric::Ip { 0.93 } else { least };
            assert!(found > least, "{encoding:?} {metric}: {found}");
            // Binary rows have eight bytes beside their bits; centroids cost what 256 rows of floats do, and their squares.
            let codes = sealed_graph.codes.get().expect("codes").bytes_of(3_000);
            assert!(codes <= 3_000 * (128 * 4 / ratio + 8), "{encoding:?}: {codes}");
            let learned = (256 + 256 * 4 / ratio) * 128 * 4 + 3_000 * 8;
            let links = 3_000 * (2 * 8 + 1) * 4;
            assert!(sealed_graph.memory_bytes() < links + codes + learned, "{}", sealed_graph.memory_bytes());
            let again = metric == Metric::L2 && encoding == Encoding::Pq16;
            assert!(!again || bytes == sealed(), "{encoding:?}: the same rows give the same codes");
        }
    }
}

/// Cannot be read from some slot on.
struct Failing(u32, usize);

impl FullRows for Failing {
    fn count(&self) -> usize {
        self.1
    }

    fn read(&self, slot: u32, row: &mut [f32]) -> Result<()> {
        if slot >= self.0 {
            return Err(crate::storage::damaged(std::path::Path::new("originals"), "a flipped bit"));
        }
        row.fill(slot as f32);
        Ok(())
    }
}

#[test]
fn a_row_that_cannot_be_read_fails_the_search() {
    let (rows, graph, bytes) = saved(1_200);
    let failing =
        |from| Graph::load(Metric::L2, 6, graph.params(), &mut &bytes[..], Box::new(Failing(from, rows.len())), false);
    let loaded = failing(0).expect("nothing is read yet");
    let query = loaded.prepare(&rows[0]);
    let mut walk = loaded.walk(&query, 30);
    assert!(walk.next_page(10, &mut |_| true, &mut Vec::new()).is_err());
    assert!(loaded.scan(&query, 0..10, &mut |_, _| ()).is_err());
    let held = Graph::load(Metric::L2, 6, graph.params(), &mut &bytes[..], Box::new(Failing(7, rows.len())), true);
    let error = held.err().expect("a row cannot be read");
    assert!(error.downcast::<crate::storage::StorageError>().is_ok_and(|error| error.is_damage()));
}

#[test]
fn corrupt_files_never_panic() {
    let mut rng = Rng(77);
    for count in [600, 1_200] {
        corrupt(&mut rng, saved(count));
    }
    for encoding in [Encoding::F16, Encoding::Pq8] {
        let saved = saved_as(encoding, 1_200);
        let sealed = load(Metric::L2, &saved.0, saved.1.params(), &saved.2, false).expect("just saved");
        assert_eq!(sealed.encoding(), encoding);
        corrupt(&mut rng, saved);
    }
}

fn corrupt(rng: &mut Rng, (rows, graph, bytes): (Vec<Vec<f32>>, Graph, Vec<u8>)) {
    let mut survivors = 0;
    for _ in 0..1000 {
        let mut bad = bytes.clone();
        for _ in 0..=rng.next() % 4 {
            let at = rng.next() as usize % bad.len();
            bad[at] = rng.next() as u8;
        }
        if rng.next().is_multiple_of(8) {
            bad.truncate(rng.next() as usize % bad.len());
        }
        let Ok(loaded) = load(Metric::L2, &rows, graph.params(), &bad, false) else { continue };
        survivors += 1;
        let query = loaded.prepare(&rows[3]);
        let mut walk = loaded.walk(&query, 10);
        assert_eq!(page(&mut walk, 5000).len(), loaded.linked() as usize);
        loaded.save(&mut Vec::new()).expect("writing to memory");
    }
    assert!(survivors > 50, "{survivors} of 1000 were consistent enough to be used");
}

fn through_bytes(metric: Metric, rows: &[Vec<f32>], params: Params) -> (Graph, Vec<u8>) {
    let graph = Graph::new(metric, rows[0].len(), rows.len(), params);
    rows.iter().for_each(|row| _ = graph.push(row));
    graph.build(1, &|_| ());
    assert!(graph.is_settled() && graph.linked() == 0, "there is nothing to link");
    let mut bytes = Vec::new();
    graph.save(&mut bytes).expect("memory");
    (load(metric, rows, params, &bytes, false).expect("what was saved"), bytes)
}

#[test]
fn lists_find_what_graphs_find() {
    let mut rows = clustered(61, 6_000, 24);
    let queries = rows.split_off(5_900);
    rows.extend([vec![0.0; 24], rows[7].clone(), rows[7].clone()]);
    for metric in Metric::PLAIN {
        for encoding in [Encoding::Sq8, Encoding::F32] {
            let params = Params { m: 8, encoding, index: IndexKind::Ivfflat, ..Params::default() };
            let (graph, bytes) = through_bytes(metric, &rows, params);
            assert_eq!(graph.holds_rows(), encoding.for_metric(metric) == Encoding::F32);
            let found = recall(&graph, &queries, 10, 30);
            assert!(found > 0.95, "{metric} {encoding:?}: {found}");
            let mut again = Vec::new();
            graph.save(&mut again).expect("memory");
            assert_eq!(bytes, again);
            // Page after page every row comes once, and each page ascends.
            let query = graph.prepare(&queries[0]);
            let (mut walk, mut seen) = (graph.walk(&query, 20), HashSet::new());
            while !walk.is_dry() {
                let page = page(&mut walk, 700);
                assert!(page.is_sorted_by(|a, b| a.0 <= b.0) && !page.is_empty());
                assert!(page.iter().all(|(_, slot)| seen.insert(*slot)), "{metric}: a row came twice");
            }
            assert_eq!(seen.len(), rows.len());
            // Few that may be returned are found as well, however far away their lists are.
            let mut rare = Vec::new();
            graph.walk(&query, 20).next_page(30, &mut |slot| slot % 200 == 3, &mut rare).expect("held");
            assert_eq!(rare.len(), 30);
            // A budget ends it early.
            let mut short = graph.walk(&query, 1_000);
            short.set_budget(500);
            page(&mut short, 10);
            assert!((500..3_000).contains(&short.visited()), "{}", short.visited());
        }
    }
}

#[test]
fn lists_come_back_from_any_bytes_or_are_refused() {
    let rows = clustered(67, 1_200, 6);
    let params = Params { m: 4, index: IndexKind::Ivfflat, lists: Some(9), ..Params::default() };
    let (graph, bytes) = through_bytes(Metric::L2, &rows, params);
    assert_eq!(graph.lists.get().expect("lists").len(), 9);
    for end in (bytes.len() - 5_200..bytes.len()).step_by(97) {
        assert!(load(Metric::L2, &rows, params, &bytes[..end], false).is_err());
    }
    let lists = bytes.len() - 4 * rows.len() - 4 * 9 * 6 - 4;
    for (at, value) in [(lists, 0u32), (lists, 1_201), (lists, u32::MAX), (bytes.len() - 4, 9)] {
        let mut wrong = bytes.clone();
        wrong[at..][..4].copy_from_slice(&value.to_le_bytes());
        assert!(load(Metric::L2, &rows, params, &wrong, false).is_err(), "{at} {value}");
    }
    // More lists than rows, one row, none with a direction.
    for rows in [vec![vec![1.0, 2.0]], vec![vec![0.0, 0.0]; 3]] {
        let params = Params { lists: Some(100), ..params };
        let (graph, _) = through_bytes(Metric::Cosine, &rows, params);
        let query = graph.prepare(&[1.0, 1.0]);
        assert_eq!(page(&mut graph.walk(&query, 10), 10).len(), rows.len());
    }
}

#[test]
fn flat_rows_are_for_scans() {
    let rows = clustered(71, 1_500, 6);
    let params = Params { m: 4, index: IndexKind::Flat, ..Params::default() };
    let (graph, _) = through_bytes(Metric::L2, &rows, params);
    assert_eq!((graph.linked(), graph.tail(), graph.encoding()), (0, 0..1_500, Encoding::Sq8));
    let query = graph.prepare(&rows[3]);
    assert!(graph.walk(&query, 10).is_dry());
    assert_eq!(exact(&graph, &query, 1), [3]);
}
