//! Rows by filter in the order of their keys, and their number: from the transactional state, which has rows without a
//! usable vector as well.

use crate::consistency::blocking;
use crate::consistency::frontier::Serving;
use crate::consistency::recheck::Visibility;
use crate::engine::view::CollectionView;
use crate::model::{
    AsOf, Cell, Consistency, CountRequest, Filter, Listed, Lsn, MAX_LIMIT, Page, Recheck, RecheckReport, RowKey,
    ScrollRequest, Value,
};
use crate::query::resolve::{check_columns, check_state, collection, replicated};
use crate::query::{Pinned, QueryError, QueryService, filter};
use crate::source::rows::Ask;
use crate::storage::state::StoredRow;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// Round trips to the source one page may cost.
const MAX_ROUNDS: usize = 16;

/// Rows read at one position of the state.
struct Read {
    rows: Vec<(RowKey, StoredRow)>,
    /// There are no more.
    dry: bool,
    /// Some rows are being read again from the source.
    doubtful: bool,
    at: Lsn,
}

impl<V: Visibility> QueryService<V> {
    /// The number of rows that pass, with or without a vector.
    pub fn count(&self, pinned: &Pinned, request: &CountRequest) -> Result<(u64, AsOf), QueryError> {
        let Pinned { serving, view, .. } = pinned;
        let found = collection(view, &request.collection)?;
        let mut as_of = self.as_of(pinned, found, &request.consistency)?;
        let mut count = 0;
        let read = blocking(|| {
            serving.engine.rows_after(found, None, |_, row| {
                as_of.complete &= row.missing == 0;
                count += u64::from(request.filter.as_ref().is_none_or(|filter| filter.passes(&row.filters)));
                ControlFlow::Continue(())
            })
        })?;
        as_of.applied_lsn = read.ok_or_else(|| QueryError::Replaced(request.collection.clone()))?;
        Ok((count, as_of))
    }

    /// A page of rows that pass, in the order of their keys.
    pub async fn scroll(&self, pinned: &Pinned, request: &ScrollRequest) -> Result<Page, QueryError> {
        if !(1..=MAX_LIMIT).contains(&request.limit) {
            return Err(QueryError::Limit(request.limit));
        }
        let Pinned { serving, view, .. } = pinned;
        let found = collection(view, &request.collection)?;
        let mut as_of = self.as_of(pinned, found, &request.consistency)?;
        check_columns(&found.def, &request.columns, request.recheck)?;
        if let Some(viewer) = &request.viewer {
            self.visibility.allows(viewer).map_err(QueryError::Viewer)?;
        }
        let recheck = RecheckReport { mode: request.recheck, ..RecheckReport::default() };
        let mut page = Page { rows: Vec::new(), next: request.after.clone(), as_of: as_of.clone(), recheck };
        let (mut dry, mut at) = (false, None);
        // Nothing but a row that a viewer sees may tell it of more: one beyond the limit is looked for.
        let sought = request.limit + usize::from(request.viewer.is_some());
        for _ in 0..MAX_ROUNDS {
            let missing = sought.saturating_sub(page.rows.len());
            if dry || missing == 0 {
                break;
            }
            // Rows that are not shown come in runs.
            let want = missing.max(page.recheck.checked.min(MAX_LIMIT));
            let read = blocking(|| read(serving, found, page.next.as_ref(), want, request.filter.as_ref()))?;
            // What a later one finds is at least as new.
            as_of.applied_lsn = *at.get_or_insert(read.at);
            as_of.complete &= !read.doubtful;
            dry = read.dry;
            if let Some((last, _)) = read.rows.last() {
                page.next = Some(last.clone());
            }
            self.show(request, found, read.rows, &mut page).await?;
        }
        if page.rows.len() > request.limit {
            page.rows.truncate(request.limit);
            page.next = page.rows.last().map(|last| last.key.clone());
            dry = false;
        }
        if request.viewer.is_some() {
            page.next = page.rows.last().map(|last| last.key.clone());
            let (mode, checked) = (request.recheck, page.rows.len());
            page.recheck = RecheckReport { mode, checked, ..RecheckReport::default() };
            // Where it saw nothing there is no place to go on from.
            as_of.complete &= dry || page.next.is_some();
        }
        // A page that came short without the end being reached says by its `next` that there is more.
        page.next = page.next.filter(|_| !dry);
        page.as_of = as_of;
        Ok(page)
    }

    /// As of when an answer of this collection is.
    pub(super) fn as_of(
        &self,
        pinned: &Pinned,
        found: &CollectionView,
        consistency: &Consistency,
    ) -> Result<AsOf, QueryError> {
        let paused = check_state(found, consistency)?;
        // What stands still is not as fresh as what the others apply.
        let staleness = pinned.age().filter(|_| paused.is_none());
        let stale = pinned.stale.clone().or_else(|| self.frontier.progress.stale()).or(paused);
        Ok(AsOf { complete: stale.is_none(), applied_lsn: Lsn::ZERO, staleness, stale })
    }

    /// Adds those rows to the page that the source shows.
    async fn show(
        &self,
        request: &ScrollRequest,
        found: &CollectionView,
        rows: Vec<(RowKey, StoredRow)>,
        page: &mut Page,
    ) -> Result<(), QueryError> {
        let def = &found.def;
        if request.recheck == Recheck::None {
            let listed = |(key, row): (RowKey, StoredRow)| Listed {
                columns: replicated(def, &request.columns, &key, |at| value(&row, at)),
                version: row.version,
                key,
            };
            page.rows.extend(rows.into_iter().map(listed));
            return Ok(());
        }
        // What a role may not read at all is an error, whatever the index has.
        if rows.is_empty() && request.viewer.is_none() {
            return Ok(());
        }
        let mut params = Vec::new();
        let filter = request.filter.as_ref().filter(|_| request.recheck == Recheck::Exact);
        let condition = filter.map(|filter| filter::to_sql(filter, &def.filters, 1, &mut params));
        let condition = condition.as_deref().map(|sql| (sql, &params[..]));
        let keys: Vec<_> = rows.iter().map(|(key, _)| key.clone()).collect();
        let ask = Ask { columns: &request.columns, vector: None, condition, viewer: request.viewer.as_ref() };
        let started = Instant::now();
        let seen = self.visibility.visible(def, &keys, ask).await?;
        page.recheck.took_us += started.elapsed().as_micros() as u64;
        page.recheck.batched = page.recheck.batched.max(seen.together);
        let mut shown: HashMap<_, _> = seen.rows.into_iter().map(|row| (row.key, row.columns)).collect();
        page.recheck.checked += rows.len();
        page.recheck.dropped += rows.len() - shown.len();
        let listed = |(key, row): (RowKey, StoredRow)| {
            let columns = shown.remove(&key)?;
            Some(Listed { key, version: row.version, columns })
        };
        page.rows.extend(rows.into_iter().filter_map(listed));
        Ok(())
    }
}

/// The value of a filter column.
pub(super) fn value(row: &StoredRow, at: usize) -> Option<Value> {
    match row.filters.get(at)? {
        Cell::Value(value) => Some(value.clone()),
        _ => None,
    }
}

/// The next rows that pass.
fn read(
    serving: &Arc<Serving>,
    found: &CollectionView,
    after: Option<&RowKey>,
    want: usize,
    filter: Option<&Filter>,
) -> Result<Read, QueryError> {
    let mut read = Read { rows: Vec::new(), dry: true, doubtful: false, at: Lsn::ZERO };
    let at = serving.engine.rows_after(found, after, |key, row| {
        read.doubtful |= row.missing != 0;
        if filter.is_some_and(|filter| !filter.passes(&row.filters)) {
            return ControlFlow::Continue(());
        }
        // One more than wanted is seen, so that the last page knows that it is the last.
        if read.rows.len() == want {
            read.dry = false;
            return ControlFlow::Break(());
        }
        read.rows.push((key, row));
        ControlFlow::Continue(())
    })?;
    read.at = at.ok_or_else(|| QueryError::Replaced(found.def.name.clone()))?;
    Ok(read)
}
