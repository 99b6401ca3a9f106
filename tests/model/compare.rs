//! Compares what the engine shows, stores and answers with its naive twin.

use crate::epoch::Epoch;
use crate::random::Random;
use crate::twin::{Table, Twin, differs, same};
use ruvector::consistency::recheck::{Seen, Visibility};
use ruvector::engine::candidates::{Candidates, Method};
use ruvector::engine::segment::Segment;
use ruvector::engine::view::{IndexView, View};
use ruvector::model::{
    CollectionDef, Comparison, Consistency, Embedding, Filter, Recheck, RowKey, SearchBy, SearchRequest, Shape, Value,
};
use ruvector::query::{QueryError, QueryService};
use ruvector::source::SourceError;
use ruvector::source::rows::Ask;
use ruvector::storage::{self, StorageError};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Rows of an answer.
const LIMIT: usize = 10;
/// Width of the walks.
const EF: usize = 64;

/// How many of the true neighbours were found.
#[derive(Default)]
pub struct Recall {
    pub found: usize,
    pub wanted: usize,
}

/// A query near to something or anywhere.
fn query(table: &Table, column: usize, dimensions: usize, random: &mut Random) -> Vec<f32> {
    let nth = random.below(table.rows.len().max(1) as u64) as usize;
    let stored = table.rows.values().nth(nth).and_then(|row| row.vectors[column].clone());
    stored.filter(|_| random.once_in(2)).unwrap_or_else(|| random.vector(dimensions))
}

/// None, wide, narrow, or passed by nothing.
fn filter(random: &mut Random) -> Option<Filter> {
    let group = |op, value| Filter::Compare { column: 0, op, value: Some(Value::Int(value)) };
    let tag = |tag: &str| Filter::Compare { column: 1, op: Comparison::Eq, value: Some(Value::Text(tag.into())) };
    match random.below(6) {
        0 => Some(group(Comparison::Lt, 10)),
        1 => Some(group(Comparison::Eq, random.below(20) as i64)),
        2 => Some(Filter::And(vec![tag("red"), Filter::Not(Box::new(Filter::IsNull { column: 0 }))])),
        3 => Some(group(Comparison::Eq, 99)),
        _ => None,
    }
}

pub fn candidates(
    index: &IndexView,
    query: &[f32],
    filter: Option<&Filter>,
    method: Method,
    want: usize,
) -> storage::Result<Vec<(RowKey, f64)>> {
    let Some(prepared) = index.prepare(query) else { return Ok(Vec::new()) };
    let mut open = Candidates::open(index, &prepared, filter, method);
    Ok(open.next_page(want)?.into_iter().map(|candidate| (candidate.key, candidate.distance)).collect())
}

/// What a view shows. An error is no answer, and so not a wrong one.
pub fn compare_view(view: &View, twin: &Twin, random: &mut Random, recall: &mut Recall) -> storage::Result<()> {
    assert_eq!(view.applied, twin.position);
    for table in &twin.tables {
        let name = &table.def.name;
        let found = &view.collections[name];
        assert_eq!(found.rows, table.rows.len() as u64, "rows of {name}");
        assert_eq!(found.dead_letters, table.dead(), "dead letters of {name}");
        for (column, index) in found.indexes.iter().enumerate() {
            assert_eq!(index.live, table.live(column), "vectors of {name} {column}");
            assert_eq!(index.column.dimensions, table.dimensions[column], "dimensions of {name} {column}");
            let Some(dimensions) = table.dimensions[column] else { continue };
            for _ in 0..4 {
                let (query, filter) = (query(table, column, dimensions, random), filter(random));
                let wanted = table.search(column, &query, filter.as_ref(), None);
                compare_search(index, &query, filter.as_ref(), &wanted, recall)?;
            }
            compare_drained(index, table, column, &query(table, column, dimensions, random), filter(random))?;
        }
    }
    Ok(())
}

/// Is there a segment whose full vectors are not in memory?
pub fn is_lean(index: &IndexView) -> bool {
    index.segments.iter().any(|segment| !segment.graph.holds_rows())
}

/// Is there a segment that was made of others? It comes after newer ones.
pub fn is_merged(index: &IndexView) -> bool {
    let first = |segment: &Arc<Segment>| (!segment.graph.is_empty()).then(|| segment.node(0));
    let firsts: Vec<_> = index.segments.iter().filter_map(first).collect();
    !firsts.is_sorted()
}

/// A proof is exact; a walk, or a scan of codes, finds nearly all, and nothing that does not belong.
fn compare_search(
    index: &IndexView,
    query: &[f32],
    filter: Option<&Filter>,
    wanted: &[(RowKey, f64)],
    recall: &mut Recall,
) -> storage::Result<()> {
    let exact = candidates(index, query, filter, Method::Exact, LIMIT)?;
    if let Some(difference) = differs(&exact, wanted, LIMIT) {
        panic!("proof with {filter:?}: {difference}");
    }
    let expected = wanted.len().min(LIMIT);
    for method in [Method::Walk { ef: EF }, Method::Scan] {
        let found = candidates(index, query, filter, method, LIMIT)?;
        assert_eq!(found.len(), expected, "{method:?} is dry only when there is no more; filter {filter:?}");
        for (key, distance) in &found {
            let own = wanted.iter().find(|(wanted, _)| wanted == key);
            let (_, own) = own.unwrap_or_else(|| panic!("{method:?} with {filter:?}: row {key} does not belong"));
            assert!(same(*distance, *own), "{method:?}: row {key} at {distance} instead of {own}");
        }
        // A row as near as the last one wanted is as good.
        if let Some((_, bound)) = wanted.get(expected.wrapping_sub(1)) {
            let near = found.iter().filter(|(_, distance)| bound.is_nan() || *distance <= bound + 1e-5);
            recall.found += near.count();
            recall.wanted += expected;
        }
    }
    Ok(())
}

/// A walk that is asked for everything gives every row once.
fn compare_drained(
    index: &IndexView,
    table: &Table,
    column: usize,
    query: &[f32],
    filter: Option<Filter>,
) -> storage::Result<()> {
    let walked = candidates(index, query, filter.as_ref(), Method::Walk { ef: EF }, 10_000)?;
    let keys: BTreeSet<_> = walked.iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), walked.len(), "a row comes twice");
    let wanted = table.search(column, query, filter.as_ref(), None);
    let wanted: BTreeSet<_> = wanted.iter().map(|(key, _)| key).collect();
    let missing: Vec<_> = wanted.difference(&keys).collect();
    assert!(missing.is_empty() && keys.len() == wanted.len(), "missing {missing:?}, {} found", keys.len());
    Ok(())
}

/// What is stored, row by row. An error is no answer, and so not a wrong one.
pub fn compare_rows(epoch: &Epoch, twin: &Twin) -> storage::Result<()> {
    for table in &twin.tables {
        let mut rows = 0;
        let compare = |key: RowKey, vectors: &[Option<Embedding>], stored: &ruvector::storage::state::StoredRow| {
            let row = table.rows.get(&key).unwrap_or_else(|| panic!("row {key} of {} is gone", table.def.name));
            let vectors: Vec<_> = vectors.iter().map(|vector| vector.as_ref().and_then(Embedding::dense)).collect();
            let wanted: Vec<_> = row.vectors.iter().map(Option::as_deref).collect();
            assert_eq!(vectors, wanted, "vectors of {key}");
            assert_eq!((stored.version, &stored.filters), (row.version, &row.filters), "row {key}");
            rows += 1;
        };
        epoch.engine.each_row(table.def.id, compare)?;
        assert_eq!(rows, table.rows.len());
        let letters = epoch.engine.dead_letters(table.def.id, usize::MAX)?;
        assert_eq!(letters.len() as u64, table.dead());
    }
    Ok(())
}

/// Nobody asks it.
struct Unasked;

impl Visibility for Unasked {
    async fn visible(&self, _: &CollectionDef, _: &[RowKey], _: Ask<'_>) -> Result<Seen, SourceError> {
        panic!("a search without recheck asked the source")
    }
}

/// A search for the nearest rows as the index has them.
pub fn nearest(def: &CollectionDef, using: &str, by: SearchBy) -> SearchRequest {
    SearchRequest {
        collection: def.name.clone(),
        using: Some(using.to_owned()),
        by,
        limit: LIMIT,
        filter: None,
        columns: vec!["grp".into()],
        ef: None,
        exact: false,
        consistency: Consistency::default(),
        recheck: Recheck::None,
        viewer: None,
        after: None,
        shape: Shape::default(),
    }
}

/// Answers searches by what an epoch has.
pub fn service(epoch: &Epoch) -> QueryService<impl Visibility> {
    QueryService::new(epoch.frontier(Arc::default()), Unasked, ruvector::query::Options { default_ef: EF })
}

/// Line two: exact answers by vector and by row.
pub fn compare_answers(epoch: &Epoch, twin: &Twin, random: &mut Random) -> Result<(), StorageError> {
    let service = service(epoch);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for table in &twin.tables {
        for (column, definition) in table.def.vectors.iter().enumerate() {
            let Some(dimensions) = table.dimensions[column] else { continue };
            let filter = filter(random);
            let row = table.rows.keys().nth(random.below(table.rows.len().max(1) as u64) as usize);
            let mut searches = vec![SearchBy::Vector(query(table, column, dimensions, random).into())];
            searches.extend(row.cloned().map(SearchBy::Row));
            for by in searches {
                let consistency = Consistency { at_least: Some(twin.position), ..Consistency::default() };
                let nearest = nearest(&table.def, &definition.name, by.clone());
                let request = SearchRequest { filter: filter.clone(), exact: true, consistency, ..nearest };
                let answer = match runtime.block_on(service.search(&request)) {
                    Err(QueryError::Storage(error)) => return Err(error),
                    answer => answer,
                };
                let (query, except) = match &by {
                    SearchBy::Vector(vector) => (vector.dense().expect("it was made of one").to_vec(), None),
                    SearchBy::Examples { .. } => unreachable!("none is made"),
                    SearchBy::Row(key) => match &table.rows[key].vectors[column] {
                        Some(vector) => (vector.clone(), Some(key)),
                        None => {
                            assert!(matches!(answer, Err(QueryError::NoVector(_))), "{answer:?}");
                            continue;
                        }
                    },
                };
                let answer = answer.expect("an answer");
                assert_eq!((answer.applied_lsn, answer.complete), (twin.position, true));
                let found: Vec<_> = answer.hits.iter().map(|hit| (hit.key.clone(), hit.distance)).collect();
                let wanted = table.search(column, &query, filter.as_ref(), except);
                if let Some(difference) = differs(&found, &wanted, LIMIT) {
                    panic!("{by:?} with {filter:?}: {difference}");
                }
                let ordered = |pair: &[(RowKey, f64)]| pair[0].1 != pair[1].1 || pair[0].0 < pair[1].0;
                assert!(found.windows(2).all(ordered), "ties are in the order of keys");
                for hit in &answer.hits {
                    assert_eq!(hit.version, table.rows[&hit.key].version, "version of {}", hit.key);
                }
            }
        }
    }
    Ok(())
}
