//! Searches of an index of several segments against a plain sort of its rows.

use super::*;
use crate::engine::rows::{NewRow, Rows};
use crate::model::{Cell, ColumnType, Comparison, Metric, RowKey, Value, VectorColumn, Version};
use std::sync::{Arc, atomic::AtomicU64};

const NODES: u32 = 12_000;
const CLUSTERS: u32 = 10;

fn column() -> VectorColumn {
    VectorColumn {
        name: "e".into(),
        kind: ColumnType::Vector,
        metric: Metric::L2,
        dimensions: Some(4),
        m: 8,
        ef_construction: 50,
        encoding: Default::default(),
        index: Default::default(),
        lists: None,
    }
}

/// Ten far clusters; inside each the nodes lie on a curve, no two at one place.
fn vector(node: u32) -> Vec<f32> {
    let (cluster, place) = (f64::from(node % CLUSTERS), f64::from(node / CLUSTERS));
    let wave = |step: f64| (place * step).sin();
    vec![(cluster * 20.0 + wave(0.7)) as f32, wave(1.3) as f32, wave(2.9) as f32, (place * 0.01) as f32]
}

fn key(node: u32) -> RowKey {
    RowKey::encode(&[Value::Int(node.into())]).expect("key type")
}

/// Three segments: contiguous nodes, a list with holes, and one of which only a part is linked. Every seventh node has no
/// row. Column 0 is the cluster, column 1 counts without regard to it.
fn index() -> IndexView {
    let (mut rows, column) = (Rows::default(), column());
    for node in 0..NODES {
        rows.grow(node as usize + 1);
        let cell = |number: u32| Cell::Value(Value::Int(number.into()));
        if node % 7 != 3 {
            let filters = [cell(node % CLUSTERS), cell(node / CLUSTERS % 100)];
            rows.set(node, NewRow { key: &key(node), version: Version::default(), filters: &filters });
        }
    }
    let sealed = Segment::growing(1, &column, 4, 0, 4_000);
    (0..4_000).for_each(|node| _ = sealed.graph.push(&vector(node)));
    // Dead nodes were left out when it was merged, most of them.
    let alive: Vec<u32> = (4_000..8_000).filter(|node| node % 7 != 3 || node % 5 == 0).collect();
    let merged = Segment::of_nodes(2, &column, 4, alive, |node| Ok(vector(node))).expect("no file is read");
    let growing = Segment::growing(3, &column, 4, 8_000, 5_000);
    (8_000..NODES).for_each(|node| _ = growing.graph.push(&vector(node)));
    for segment in [&sealed, &merged] {
        while segment.graph.link_next(1_000) > 0 {}
    }
    growing.graph.link_next(2_400);
    let segments = vec![Arc::new(sealed), Arc::new(merged), Arc::new(growing)];
    let live = rows.live();
    let (ids, gone, touches) = (Arc::new(AtomicU64::new(4)), Arc::default(), Arc::default());
    IndexView { column, rows, segments, live, ids, originals: None, sparse: Default::default(), gone, touches }
}

fn compare(column: usize, op: Comparison, number: i64) -> Filter {
    Filter::Compare { column, op, value: Some(Value::Int(number)) }
}

/// From none to all of the rows, tied to the place and not.
fn filters() -> Vec<Option<Filter>> {
    let mut filters = vec![None, Some(compare(0, Comparison::Lt, 0))];
    filters.extend([0, 4, 9].map(|cluster| Some(compare(0, Comparison::Eq, cluster))));
    filters.extend([1, 10, 50, 100].map(|share| Some(compare(1, Comparison::Lt, share))));
    filters
}

/// The nodes that may be returned, nearest first.
fn expected(index: &IndexView, query: &[f32], filter: Option<&Filter>) -> Vec<u32> {
    let mut nodes = Vec::new();
    for (node, row) in index.rows.iter() {
        let cells: Vec<_> = (0..2).map(|at| row.cell(at).map_or(Cell::Null, Cell::Value)).collect();
        if filter.is_none_or(|filter| filter.passes(&cells)) {
            nodes.push(node);
        }
    }
    nodes.sort_by(|a, b| {
        let distance = |node: &u32| Metric::L2.distance(query, &vector(*node));
        distance(a).total_cmp(&distance(b))
    });
    nodes
}

fn nodes(page: &[Candidate]) -> Vec<u32> {
    page.iter().map(|candidate| candidate.node).collect()
}

#[test]
fn every_plan_finds_the_nearest_rows_that_pass_and_all_of_them_once_when_it_goes_on() {
    let index = index();
    for filter in &filters() {
        for node in [0, 14, 4_007, 6_504, 11_900] {
            let query = vector(node);
            let prepared = index.prepare(&query).expect("there are vectors");
            let filter = filter.as_ref();
            let expected = expected(&index, &query, filter);
            for method in [Method::Scan, Method::Walk { ef: 100 }, Method::Walk { ef: 5 }] {
                let context = format!("{method:?} of {filter:?} near {node}");
                let mut candidates = Candidates::open(&index, &prepared, filter, method);
                let first = candidates.next_page(10).expect("no file is read");
                let right = nodes(&first).iter().filter(|node| expected[..first.len()].contains(node)).count();
                assert_eq!(first.len(), expected.len().min(10), "{context}");
                if method != (Method::Walk { ef: 5 }) {
                    assert!(right * 10 >= first.len() * 9, "{right} of {}: {context}", first.len());
                }
                let mut all = nodes(&first);
                for want in [1, 7, 50, 300, 20_000] {
                    all.extend(nodes(&candidates.next_page(want).expect("no file is read")));
                }
                assert!(candidates.next_page(1).expect("no file is read").is_empty(), "{context}");
                let mut sorted = expected.clone();
                all.sort_unstable();
                sorted.sort_unstable();
                assert_eq!(all, sorted, "{context}");
            }
        }
    }
}

#[test]
fn a_walk_that_its_filter_leads_away_is_given_up_for_the_exact_answer() {
    let index = index();
    // The rows that pass are far from the query: a walk would look at nearly everything that is nearer first.
    let (filter, query) = (compare(0, Comparison::Eq, 9), vector(0));
    let prepared = index.prepare(&query).expect("there are vectors");
    let filter = Some(&filter);
    let expected = expected(&index, &query, filter);
    let mut candidates = Candidates::open(&index, &prepared, filter, Method::Walk { ef: 20 });
    assert_eq!(nodes(&candidates.next_page(10).expect("no file is read")), expected[..10]);
    let walked = candidates.given_up().expect("given up");
    assert!(candidates.visited() - walked >= expected.len(), "every row that passes was compared");
    // The last list of links that was followed may go over the budget, in each segment.
    let budget = ((expected.len() as f64 / WALK_COST) as usize).max(LEAST_BUDGET);
    assert!((budget..budget + 200).contains(&walked), "{walked} distances for a budget of {budget}");
    let rest = candidates.next_page(5_000).expect("no file is read");
    assert!(rest.is_sorted_by(|a, b| a.distance <= b.distance));
    let (mut rest, mut missing) = (nodes(&rest), expected[10..].to_vec());
    rest.sort_unstable();
    missing.sort_unstable();
    assert_eq!(rest, missing, "nothing twice, nothing missing");
}

#[test]
fn what_walks_returned_before_they_were_given_up_does_not_come_again() {
    let index = index();
    let query = vector(0);
    let prepared = index.prepare(&query).expect("there are vectors");
    let expected = expected(&index, &query, None);
    let mut candidates = Candidates::open(&index, &prepared, None, Method::Walk { ef: 10 });
    let mut all = nodes(&candidates.next_page(10).expect("no file is read"));
    assert_eq!(candidates.given_up(), None);
    let mut pages = 0;
    while candidates.given_up().is_none() {
        all.extend(nodes(&candidates.next_page(100).expect("no file is read")));
        pages += 1;
        assert!(pages < 30, "a walk through everything costs more than the scan");
    }
    all.extend(nodes(&candidates.next_page(20_000).expect("no file is read")));
    let mut sorted = expected;
    all.sort_unstable();
    sorted.sort_unstable();
    assert_eq!(all, sorted);
}

#[test]
fn the_slots_of_nodes_that_pass_are_found_in_every_kind_of_segment() {
    let index = index();
    for filter in &filters() {
        let passing = index.rows.passing(filter.as_ref());
        for segment in &index.segments {
            let len = segment.graph.len();
            for from in [0, 1, 63, 500, len - 1, len, len + 1] {
                let expected: Vec<_> = (from..len).filter(|slot| passing.contains(segment.node(*slot))).collect();
                assert_eq!(slots(&passing, segment, from).collect::<Vec<_>>(), expected, "{filter:?} from {from}");
            }
        }
    }
}
