//! Searches with the eyes of another role: whom one may ask as, and that nothing is told of rows which that role does not see.

use crate::consistency::recheck::Visibility;
use crate::engine::view::CollectionView;
use crate::model::{Example, RowKey, SearchBy, SearchRequest, Viewer};
use crate::query::{QueryError, QueryService};
use crate::source::rows::Ask;
use std::collections::BTreeMap;

impl<V: Visibility> QueryService<V> {
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
