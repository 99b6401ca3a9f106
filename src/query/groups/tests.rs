//! Groups over scripted candidates, with invisible rows, against plain sorting.

use super::*;
use crate::consistency::paging::fill_as_indexed;
use crate::model::{Cell, Embedding, Metric};
use crate::query::stream::tests::{Script, number};
use std::sync::Mutex;

/// Row n has distance n; the group is given beside it.
struct Rows {
    groups: Vec<Option<i64>>,
    scans: Mutex<usize>,
}

impl Rows {
    fn of(groups: Vec<Option<i64>>) -> Rows {
        Rows { groups, scans: Mutex::new(0) }
    }

    fn value_of(&self, n: usize) -> Option<Value> {
        self.groups[n].map(Value::Int)
    }

    fn script(&self, passes: impl Fn(usize) -> bool) -> Script {
        Script::new((0..self.groups.len()).filter(|&n| passes(n)).map(|n| (n as i64, n as f64)))
    }
}

impl Grouping for &Rows {
    type Pages = Script;

    fn value(&self, candidate: &Candidate) -> Option<Value> {
        self.value_of(number(&candidate.key) as usize)
    }

    fn scan(&self, condition: Filter, _: bool) -> Script {
        *self.scans.lock().expect("one thread") += 1;
        let cell = |n: usize| self.value_of(n).map_or(Cell::Null, Cell::Value);
        self.script(|n| condition.passes(&[cell(n)]))
    }
}

/// Groups with their rows, by number; and how it ended.
type Found = (Vec<(Option<i64>, Vec<i64>)>, Ended);

fn search(rows: &Rows, groups: usize, size: usize, visible: impl Fn(i64) -> bool) -> Found {
    let wanted = Wanted { groups, size, max_distance: None, column: 0 };
    let checking = Checking {
        level: Recheck::Exists,
        columns: &[],
        vector: 0,
        metric: Metric::L2,
        query: const { &Embedding::Dense(Vec::new()) },
        condition: None,
        viewer: None,
    };
    let stream = Stream::new(rows.script(|_| true), &[], None);
    let mut leg = Groups::new(rows, stream, false, &[], checking, wanted);
    loop {
        let page = leg.next_page().expect("no file is read");
        if page.is_empty() {
            break;
        }
        let hit = |candidate: Candidate| candidate.hit(None);
        leg.take(page.into_iter().map(hit).filter(|hit| visible(number(&hit.key))).collect());
    }
    let outcome = leg.finish();
    let value = |value: Option<Value>| match value {
        Some(Value::Int(value)) => Some(value),
        None => None,
        other => panic!("{other:?}"),
    };
    let numbers = |hits: &[Hit]| hits.iter().map(|hit| number(&hit.key)).collect();
    let found = outcome.hits.into_iter().map(|group| (value(group.value), numbers(&group.hits))).collect();
    (found, outcome.ended)
}

/// The same by sorting everything.
fn expected(rows: &Rows, groups: usize, size: usize, visible: impl Fn(i64) -> bool) -> Vec<(Option<i64>, Vec<i64>)> {
    let mut found: Vec<(Option<i64>, Vec<i64>)> = Vec::new();
    for (n, group) in rows.groups.iter().enumerate().filter(|(n, _)| visible(*n as i64)) {
        let known = found.len();
        match found.iter_mut().find(|(value, _)| value == group) {
            Some((_, hits)) if hits.len() < size => hits.push(n as i64),
            Some(_) => {}
            None if known < groups => found.push((*group, vec![n as i64])),
            None => {}
        }
    }
    found
}

#[test]
fn groups_are_those_of_plain_sorting() {
    let all = |_| true;
    let cyclic = Rows::of((0..500).map(|n| Some(n % 7)).collect());
    for (groups, size) in [(1, 1), (3, 2), (7, 5), (10, 3), (7, 100)] {
        let (found, ended) = search(&cyclic, groups, size, all);
        assert_eq!(found, expected(&cyclic, groups, size, all), "{groups} x {size}");
        assert_eq!(ended, if groups <= 7 && size * 7 <= 497 { Ended::Limit } else { Ended::Dry });
    }
    assert_eq!(search(&Rows::of(vec![]), 3, 2, all), (vec![], Ended::Dry));
}

#[test]
fn a_group_behind_the_rows_of_full_groups_is_found_by_a_scan_of_the_rest() {
    // 50,000 rows of two groups, and at the far end one row of a third, and NULLs.
    let mut groups: Vec<_> = (0..50_000).map(|n| Some(n % 2)).collect();
    groups.extend([Some(9), None, None]);
    let rows = Rows::of(groups);
    let all = |_| true;
    let (found, ended) = search(&rows, 4, 2, all);
    assert_eq!(
        found,
        [(Some(0), vec![0, 2]), (Some(1), vec![1, 3]), (Some(9), vec![50_000]), (None, vec![50_001, 50_002])]
    );
    assert_eq!((ended, *rows.scans.lock().expect("one thread")), (Ended::Dry, 1));
    // All wanted groups are known and one of them is not full.
    let mut groups = vec![Some(5)];
    groups.extend((0..50_000).map(|n| Some(n % 2)));
    groups.extend([Some(5), Some(6)]);
    let rows = Rows::of(groups);
    let (found, ended) = search(&rows, 3, 2, all);
    assert_eq!((found, ended), (expected(&rows, 3, 2, all), Ended::Limit));
    let (found, ended) = search(&rows, 3, 3, all);
    assert_eq!((found, ended), (expected(&rows, 3, 3, all), Ended::Dry));
}

#[test]
fn rows_that_are_invisible_are_replaced_and_make_no_group() {
    let rows = Rows::of((0..3_000).map(|n| Some(n % 20)).collect());
    // Group 0 is invisible as a whole, every other one has its first rows invisible.
    let visible = |n: i64| n % 20 != 0 && n > 100;
    for (groups, size) in [(5, 2), (19, 3), (20, 3)] {
        let (mut found, ended) = search(&rows, groups, size, visible);
        let mut wanted = expected(&rows, groups, size, visible);
        assert!(matches!(ended, Ended::Limit | Ended::Dry), "{groups} x {size}: {ended:?}");
        if groups >= 19 {
            found.sort();
            wanted.sort();
            assert_eq!(found, wanted, "{groups} x {size}");
        } else {
            assert_eq!((found.len(), found.iter().all(|(_, hits)| hits.len() == size)), (groups, true));
        }
    }
}

#[test]
fn without_a_recheck_nothing_is_counted() {
    let rows = Rows::of((0..100).map(|n| Some(n % 3)).collect());
    let wanted = Wanted { groups: 2, size: 2, max_distance: Some(50.0), column: 0 };
    let checking = Checking {
        level: Recheck::None,
        columns: &[],
        vector: 0,
        metric: Metric::L2,
        query: const { &Embedding::Dense(Vec::new()) },
        condition: None,
        viewer: None,
    };
    let stream = Stream::new(rows.script(|_| true), &[], None);
    let mut leg = Groups::new(&rows, stream, true, &[], checking, wanted);
    fill_as_indexed(&mut leg, |candidate| candidate.hit(None)).expect("no file is read");
    let outcome = leg.finish();
    assert_eq!((outcome.hits.len(), outcome.report.checked, outcome.ended), (2, 0, Ended::Limit));
}
