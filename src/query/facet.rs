//! Facets: how many rows that pass have each value of a filter column, from the transactional state like counts.

use crate::consistency::blocking;
use crate::consistency::recheck::Visibility;
use crate::model::pgtype;
use crate::model::{Facet, FacetRequest, Facets, MAX_LIMIT};
use crate::query::groups::Same;
use crate::query::resolve::{collection, group_column};
use crate::query::{Pinned, QueryError, QueryService};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Different values that are counted at once: each is kept until the end.
const MAX_VALUES: usize = 100_000;

impl<V: Visibility> QueryService<V> {
    /// The most frequent values of a column among the rows that pass, with or without a vector.
    pub fn facet(&self, pinned: &Pinned, request: &FacetRequest) -> Result<Facets, QueryError> {
        if !(1..=MAX_LIMIT).contains(&request.limit) {
            return Err(QueryError::Limit(request.limit));
        }
        let Pinned { serving, view, .. } = pinned;
        let found = collection(view, &request.collection)?;
        let column = group_column(&found.def, &request.column)?;
        let mut as_of = self.as_of(pinned, found, &request.consistency)?;
        let mut counts: BTreeMap<Same, u64> = BTreeMap::new();
        let mut too_many = false;
        let read = blocking(|| {
            serving.engine.rows_after(found, None, |_, row| {
                as_of.complete &= row.missing == 0;
                if request.filter.as_ref().is_none_or(|filter| filter.passes(&row.filters)) {
                    let value = super::listing::value(&row, column);
                    *counts.entry(Same(value)).or_default() += 1;
                    too_many = counts.len() > MAX_VALUES;
                }
                if too_many { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        })?;
        if too_many {
            return Err(QueryError::Facet { column: request.column.clone(), most: MAX_VALUES });
        }
        as_of.applied_lsn = read.ok_or_else(|| QueryError::Replaced(request.collection.clone()))?;
        let (distinct, total) = (counts.len(), counts.values().sum());
        let mut counts: Vec<_> = counts.into_iter().collect();
        // Stable: among equals the order of the values, NULL first.
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let kind = found.def.filters[column].kind;
        let facet = |(Same(value), count): (Same, u64)| Facet {
            value: value.map(|value| pgtype::to_json_as(kind, &value)).unwrap_or_default(),
            count,
        };
        Ok(Facets { facets: counts.into_iter().take(request.limit).map(facet).collect(), distinct, total, as_of })
    }
}
