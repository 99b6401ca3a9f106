//! Paging: searches are continued until each has the visible rows it wants, its candidates are dry, or the budget is
//! spent. The searches of a batch go in step, so that one round trip serves all of them.

use crate::consistency::blocking;
use crate::consistency::recheck::{Checking, Visibility, check};
use crate::model::{Candidate, CollectionDef, Hit, nearer};
use crate::source::SourceError;
use crate::storage::{self, StorageError};
use std::time::{Duration, Instant};

/// Rounds one search may cost.
pub const MAX_ROUNDS: usize = 16;

/// Why a search cannot be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The source could not be asked.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Our files failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// One search that is being filled.
pub trait Leg: Send {
    /// Candidates to ask about next; none when it has what it wants or there are no more.
    fn next_page(&mut self) -> storage::Result<Vec<Candidate>>;
    /// What the recheck needs to know of it.
    fn checking(&self) -> Checking<'_>;
    /// Those of the last page that are visible, in their order.
    fn take(&mut self, visible: Vec<Hit>);
    /// There will be no further round.
    fn give_up(&mut self) -> storage::Result<()>;
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// In scans and walks.
    pub search: Duration,
    /// Waiting for the source.
    pub recheck: Duration,
    /// Requests that the source answered together, in the largest round trip.
    pub together: usize,
}

/// Fills searches of one collection.
pub async fn fill<V: Visibility, L: Leg>(
    legs: &mut [L],
    visibility: &V,
    def: &CollectionDef,
) -> Result<Spent, FillError> {
    let mut spent = Spent::default();
    for round in 0..MAX_ROUNDS {
        let started = Instant::now();
        let pages: Vec<_> = blocking(|| legs.iter_mut().map(Leg::next_page).collect::<storage::Result<_>>())?;
        spent.search += started.elapsed();
        // What a role may not read at all is an error, whatever is found: it is asked at least once.
        let asks = |leg: &usize| !pages[*leg].is_empty() || round == 0 && legs[*leg].checking().viewer.is_some();
        let asking: Vec<_> = (0..legs.len()).filter(asks).collect();
        let found: Vec<_> = pages.iter().map(|page| !page.is_empty()).collect();
        if asking.is_empty() {
            return Ok(spent);
        }
        let started = Instant::now();
        let asked = legs.iter().zip(pages).enumerate().filter(|(leg, _)| asking.contains(leg));
        let asked = asked.map(|(_, (leg, page))| (leg.checking(), page)).collect();
        let checked = check(visibility, def, asked).await?;
        spent.recheck += started.elapsed();
        spent.together = spent.together.max(checked.together);
        let shown = asking.into_iter().zip(checked.pages).filter(|(leg, _)| found[*leg]);
        shown.for_each(|(leg, visible)| legs[leg].take(visible));
    }
    blocking(|| legs.iter_mut().try_for_each(Leg::give_up))?;
    Ok(spent)
}

/// Fills one search with what the index has, asking nobody.
pub fn fill_as_indexed(leg: &mut impl Leg, mut hit: impl FnMut(Candidate) -> Hit) -> storage::Result<()> {
    loop {
        let page = leg.next_page()?;
        if page.is_empty() {
            return Ok(());
        }
        leg.take(page.into_iter().map(&mut hit).collect());
    }
}

/// By distance, undefined last; ties by key.
pub fn nearest_first(a: &Hit, b: &Hit) -> std::cmp::Ordering {
    nearer((a.distance, &a.key), (b.distance, &b.key))
}
