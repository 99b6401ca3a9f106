//! Searches with the eyes of another role: whom one may ask as, and that nothing is told of rows which that role does not see.

use crate::consistency::recheck::Visibility;
use crate::engine::view::CollectionView;
use crate::model::{Answer, Example, Filter, Hit, Recheck, RecheckReport, RowKey, SearchBy, SearchRequest, Viewer};
use crate::query::{Pinned, QueryError, QueryService, filter};
use crate::source::rows::Ask;
use std::collections::{BTreeMap, HashMap};

/// How rows are looked at that were not searched for.
pub struct Look<'a> {
    /// The collection they are of.
    pub collection: &'a str,
    /// What they passed as indexed.
    pub filter: Option<&'a Filter>,
    /// Columns to bring.
    pub columns: &'a [String],
    /// With `exact` the source applies the filter, too.
    pub recheck: Recheck,
    /// With whose eyes.
    pub viewer: &'a Viewer,
}

impl<V: Visibility> QueryService<V> {
    /// Those of these rows that a viewer sees, in their order, with columns as the source has them.
    pub async fn seen(&self, pinned: &Pinned, look: Look<'_>, hits: Vec<Hit>) -> Result<Vec<Hit>, QueryError> {
        let Look { columns, viewer, .. } = look;
        // Of no rows, too: what the role may not read at all is an error whatever the index has.
        self.visibility.allows(viewer).map_err(QueryError::Viewer)?;
        let def = pinned.definition(look.collection)?;
        let mut params = Vec::new();
        let filter = look.filter.filter(|_| look.recheck == Recheck::Exact);
        let condition = filter.map(|filter| filter::to_sql(filter, &def.filters, 1, &mut params));
        let condition = condition.as_deref().map(|sql| (sql, &params[..]));
        let keys: Vec<_> = hits.iter().map(|hit| hit.key.clone()).collect();
        let ask = Ask { columns, vector: None, condition, viewer: Some(viewer) };
        let seen = self.visibility.visible(&def, &keys, ask).await?.rows;
        let mut seen: HashMap<_, _> = seen.into_iter().map(|row| (row.key, row.columns)).collect();
        let shown = |hit: Hit| seen.remove(&hit.key).map(|columns| Hit { columns, ..hit });
        Ok(hits.into_iter().filter_map(shown).collect())
    }

    /// Refuses viewers that nobody may be, and rows to search by that theirs do not show: distances to a row tell of it.
    pub(super) async fn check_viewers(
        &self,
        found: &CollectionView,
        requests: &[SearchRequest],
    ) -> Result<(), QueryError> {
        let mut keys: BTreeMap<&Viewer, Vec<RowKey>> = BTreeMap::new();
        for request in requests {
            let Some(viewer) = &request.viewer else { continue };
            self.visibility.allows(viewer).map_err(QueryError::Viewer)?;
            if request.shape.explain {
                return Err(QueryError::Viewer("explain tells of all rows: ask for it without a role".into()));
            }
            keys.entry(viewer).or_default().extend(searched_by(request).cloned());
        }
        for (viewer, mut keys) in keys {
            keys.sort_unstable();
            keys.dedup();
            if keys.is_empty() {
                continue;
            }
            let ask = Ask { viewer: Some(viewer), ..Ask::default() };
            let seen = self.visibility.visible(&found.def, &keys, ask).await?.rows;
            if let Some(hidden) = keys.iter().find(|key| seen.iter().all(|row| row.key != **key)) {
                return Err(QueryError::NoRow(hidden.to_string()));
            }
        }
        Ok(())
    }
}

/// Takes out of an answer what it tells of rows that its viewer does not see.
pub(super) fn untell(answer: &mut Answer) {
    let in_groups = answer.groups.iter().flatten().map(|group| group.hits.len()).sum::<usize>();
    let (mode, checked) = (answer.recheck.mode, answer.hits.len() + in_groups);
    answer.recheck = RecheckReport { mode, checked, ..RecheckReport::default() };
    answer.stats.tell_nothing();
}

/// The rows whose vectors a search is made of.
fn searched_by(request: &SearchRequest) -> impl Iterator<Item = &RowKey> {
    let (row, positive, negative): (_, &[Example], &[Example]) = match &request.by {
        SearchBy::Vector(_) => (None, &[], &[]),
        SearchBy::Row(key) => (Some(key), &[], &[]),
        SearchBy::Examples { positive, negative } => (None, positive, negative),
    };
    let examples = positive.iter().chain(negative).filter_map(|example| match example {
        Example::Row(key) => Some(key),
        Example::Vector(_) => None,
    });
    row.into_iter().chain(examples)
}
