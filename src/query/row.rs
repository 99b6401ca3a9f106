//! One row by its key: as indexed, or as the source shows it.

use crate::consistency::blocking;
use crate::consistency::recheck::Visibility;
use crate::model::{AsOf, Listed, Recheck, RecheckReport, RowRequest};
use crate::query::listing::value;
use crate::query::resolve::{check_columns, collection, replicated};
use crate::query::{Pinned, QueryError, QueryService, filter};
use crate::source::rows::Ask;
use crate::storage::state::StoredRow;
use std::time::Instant;

impl<V: Visibility> QueryService<V> {
    /// The row, as of when, and what the recheck did.
    pub async fn row(
        &self,
        pinned: &Pinned,
        request: &RowRequest,
    ) -> Result<(Listed, AsOf, RecheckReport), QueryError> {
        let Pinned { serving, view, .. } = pinned;
        let found = collection(view, &request.collection)?;
        let mut as_of = self.as_of(pinned, found, &request.consistency)?;
        check_columns(&found.def, &request.columns, request.recheck)?;
        if let Some(viewer) = &request.viewer {
            self.visibility.allows(viewer).map_err(QueryError::Viewer)?;
        }
        let no_row = || QueryError::NoRow(request.key.to_string());
        let read = blocking(|| serving.engine.row(found, &request.key))?;
        let (row, at) = read.ok_or_else(|| QueryError::Replaced(request.collection.clone()))?;
        as_of.applied_lsn = at;
        let passes = |row: &StoredRow| request.filter.as_ref().is_none_or(|filter| filter.passes(&row.filters));
        let row = row.filter(passes);
        // A viewer must not hear, by the time it takes either, whether a row that it does not see is here.
        if row.is_none() && request.viewer.is_none() {
            return Err(no_row());
        }
        let mut report = RecheckReport { mode: request.recheck, ..RecheckReport::default() };
        let columns = if request.recheck == Recheck::None {
            let row = row.as_ref().ok_or_else(no_row)?;
            replicated(&found.def, &request.columns, &request.key, |place| value(row, place))
        } else {
            // The row may have changed hands since: the source applies the filter, too.
            let mut params = Vec::new();
            let filter = request.filter.as_ref().filter(|_| request.recheck == Recheck::Exact);
            let condition = filter.map(|filter| filter::to_sql(filter, &found.def.filters, 1, &mut params));
            let condition = condition.as_deref().map(|sql| (sql, &params[..]));
            let viewer = request.viewer.as_ref();
            let ask = Ask { columns: &request.columns, condition, viewer, ..Ask::default() };
            let started = Instant::now();
            let seen = self.visibility.visible(&found.def, std::slice::from_ref(&request.key), ask).await?;
            report = RecheckReport {
                checked: 1,
                took_us: started.elapsed().as_micros() as u64,
                batched: seen.together,
                ..report
            };
            seen.rows.into_iter().next().ok_or_else(no_row)?.columns
        };
        let row = row.ok_or_else(no_row)?;
        as_of.complete &= row.missing == 0;
        Ok((Listed { key: request.key.clone(), version: row.version, columns }, as_of, report))
    }
}
