//! IS TRUE, IS FALSE and IS UNKNOWN of a whole condition, in terms of the tree that has none of them.

use crate::model::{Filter, Value};

/// Neither NULL nor false ever passes.
pub(super) fn never() -> Filter {
    Filter::Or(Vec::new())
}

/// Every row passes.
pub(super) fn always() -> Filter {
    Filter::And(Vec::new())
}

pub(super) fn not(filter: Filter) -> Filter {
    Filter::Not(Box::new(filter))
}

/// True where the condition is true, false where it is false or unknown.
pub(super) fn is_true(filter: &Filter) -> Filter {
    match filter {
        Filter::And(parts) => Filter::And(parts.iter().map(is_true).collect()),
        Filter::Or(parts) => Filter::Or(parts.iter().map(is_true).collect()),
        Filter::Not(part) => is_false(part),
        Filter::Compare { value: None, .. } => never(),
        Filter::Compare { column, .. } => known(*column, filter.clone()),
        Filter::In { column, values } => known(*column, Filter::In { column: *column, values: without_nulls(values) }),
        Filter::IsNull { .. } => filter.clone(),
    }
}

/// True where the condition is false, false where it is true or unknown.
pub(super) fn is_false(filter: &Filter) -> Filter {
    match filter {
        Filter::And(parts) => Filter::Or(parts.iter().map(is_false).collect()),
        Filter::Or(parts) => Filter::And(parts.iter().map(is_false).collect()),
        Filter::Not(part) => is_true(part),
        Filter::Compare { value: None, .. } => never(),
        Filter::In { values, .. } if values.contains(&None) => never(),
        Filter::Compare { column, .. } | Filter::In { column, .. } => known(*column, not(filter.clone())),
        Filter::IsNull { .. } => not(filter.clone()),
    }
}

/// True where the condition is neither.
pub(super) fn is_unknown(filter: &Filter) -> Filter {
    Filter::And(vec![not(is_true(filter)), not(is_false(filter))])
}

/// Conditions and list elements in the tree.
pub(super) fn size(filter: &Filter) -> usize {
    match filter {
        Filter::And(parts) | Filter::Or(parts) => 1 + parts.iter().map(size).sum::<usize>(),
        Filter::Not(part) => 1 + size(part),
        Filter::In { values, .. } => 1 + values.len(),
        Filter::Compare { .. } | Filter::IsNull { .. } => 1,
    }
}

fn known(column: usize, filter: Filter) -> Filter {
    Filter::And(vec![not(Filter::IsNull { column }), filter])
}

fn without_nulls(values: &[Option<Value>]) -> Vec<Option<Value>> {
    values.iter().filter(|value| value.is_some()).cloned().collect()
}
