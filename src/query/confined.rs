//! For those who may see some rows only: are the rows that a search goes by among them?

use crate::consistency::blocking;
use crate::consistency::frontier::NoView;
use crate::consistency::recheck::Visibility;
use crate::model::{Example, Filter, RowKey, SearchBy, SearchRequest};
use crate::query::{QueryError, QueryService, resolve};

impl<V: Visibility> QueryService<V> {
    /// A row that does not pass is answered like one that does not exist. As last committed, as its vector is read.
    pub fn check_examples(&self, request: &SearchRequest, own: &Filter) -> Result<(), QueryError> {
        let keys: Vec<&RowKey> = match &request.by {
            SearchBy::Vector(_) => return Ok(()),
            SearchBy::Row(key) => vec![key],
            SearchBy::Examples { positive, negative } => {
                let keys = positive.iter().chain(negative).filter_map(|example| match example {
                    Example::Row(key) => Some(key),
                    Example::Vector(_) => None,
                });
                keys.collect()
            }
        };
        let serving = self.frontier.serving().ok_or(NoView::NotLoaded)?;
        let view = serving.engine.view();
        let found = resolve::collection(&view, &request.collection)?;
        for key in keys {
            let cells = blocking(|| serving.engine.cells_of(found, key))?;
            if !cells.is_some_and(|cells| own.passes(&cells)) {
                return Err(QueryError::NoRow(key.to_string()));
            }
        }
        Ok(())
    }
}
