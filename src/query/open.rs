//! Searches on a view that is kept: several statements of one transaction see the same rows, and a search without an end
//! gives as many of them as are asked for, when they are asked for.

use crate::consistency::blocking;
use crate::consistency::frontier::{Current, Serving};
use crate::consistency::recheck::{Visibility, check};
use crate::engine::tiers::TOUCHED;
use crate::engine::view::{CollectionView, View};
use crate::model::{
    Answer, Candidate, CollectionDef, Consistency, Embedding, Filter, Hit, Recheck, RowKey, SearchRequest, Value,
};
use crate::query::resolve::{self, Resolved, check_numbers, check_state};
use crate::query::{QueryError, QueryService};
use crate::telemetry::names;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::Instrument;

/// A recheck asks about at least so many rows at once.
const LEAST_PAGE: usize = 16;

/// The state of all collections at one position, kept for as long as this is.
#[derive(Clone)]
pub struct Pinned {
    pub(super) serving: Arc<Serving>,
    pub(super) view: Arc<View>,
    /// Everything that the source had then is in it.
    fresh_as_of: Option<Instant>,
    /// Why it was of the past already when it was taken.
    pub(super) stale: Option<String>,
    /// What waiting for it took.
    pub(super) waited: Duration,
    pub(super) _held: Held,
}

/// Counts those who hold on to a state.
pub(super) struct Held;

impl Held {
    fn new() -> Held {
        metrics::gauge!(names::HELD_VIEWS).increment(1);
        Held
    }
}

impl Clone for Held {
    fn clone(&self) -> Held {
        Held::new()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        metrics::gauge!(names::HELD_VIEWS).decrement(1);
    }
}

impl Pinned {
    /// The definition of a collection in it.
    pub fn definition(&self, collection: &str) -> Result<Arc<CollectionDef>, QueryError> {
        Ok(self.collection(collection)?.def.clone())
    }

    /// All collections in it, by name.
    pub fn collections(&self) -> impl Iterator<Item = (&str, &CollectionView)> {
        self.view.collections.iter().map(|(name, found)| (name.as_str(), &**found))
    }

    /// Is a copy of a collection on its way, beside what answers or not?
    pub fn is_arriving(&self, collection: &str) -> bool {
        self.view.incoming.contains_key(collection)
    }

    /// The position it is exact for.
    pub fn applied(&self) -> crate::model::Lsn {
        self.view.applied
    }

    /// Upper bound of its age; `None` while nothing is proven.
    pub fn age(&self) -> Option<Duration> {
        self.fresh_as_of.map(|moment| moment.elapsed())
    }

    /// Is it as new as asked for?
    pub fn meets(&self, consistency: &Consistency) -> bool {
        let young = |asked| self.stale.is_none() && self.age().is_some_and(|age| age <= asked);
        consistency.at_least.is_none_or(|asked| asked <= self.applied()) && consistency.max_staleness.is_none_or(young)
    }

    /// Tells the engine what was found wrong with its files.
    pub(super) fn report(&self, error: &QueryError) {
        match error {
            QueryError::Storage(error) => self.serving.engine.report(error),
            QueryError::InBatch { error, .. } => self.report(error),
            _ => {}
        }
    }

    fn collection(&self, name: &str) -> Result<&CollectionView, QueryError> {
        resolve::collection(&self.view, name)
    }

    /// Does the collection answer, as new as asked for?
    pub fn check(&self, collection: &str, consistency: &Consistency) -> Result<(), QueryError> {
        check_state(self.collection(collection)?, consistency).map(drop)
    }

    /// Rows of a collection whose vector in this column can be found, and how many of them pass.
    pub fn count(
        &self,
        collection: &str,
        column: usize,
        filter: Option<&Filter>,
    ) -> Result<(usize, usize), QueryError> {
        let index = &self.collection(collection)?.indexes[column];
        Ok((index.live, blocking(|| index.rows.passing(filter).count())))
    }

    /// Rows whose vector in this column can be found and that pass, in no order that means anything: at most `want`, from
    /// place `from` on, and the place behind them; `None` when there are no more. Their distance is NaN. Whether
    /// the collection answers is for [`Pinned::check`] to say.
    pub fn every(
        &self,
        collection: &str,
        column: usize,
        filter: Option<&Filter>,
        from: u32,
        want: usize,
    ) -> Result<(Vec<Hit>, Option<u32>), QueryError> {
        let index = &self.collection(collection)?.indexes[column];
        blocking(|| {
            let passing = index.rows.passing(filter);
            let end = u32::try_from(index.rows.len()).unwrap_or(u32::MAX);
            let row = |node| {
                let row = index.row(node)?;
                Some(Candidate { key: row.key(), distance: f64::NAN, version: row.version(), node }.hit(None))
            };
            let hits: Vec<_> = passing.ones(from, end).filter_map(row).take(want).collect();
            let next = hits.last().filter(|_| hits.len() == want).map(|last| last.node + 1);
            Ok((hits, next))
        })
    }

    /// The value of a filter column of a row that a search of this vector column gave; `None` is NULL.
    pub fn cell(&self, collection: &str, column: usize, node: u32, filter: usize) -> Option<Value> {
        self.collection(collection).ok()?.indexes.get(column)?.row(node)?.cell(filter)
    }

    /// The vector that a row has in a column which was not searched: as last committed.
    pub fn vector_of(&self, collection: &str, column: usize, key: &RowKey) -> Result<Option<Embedding>, QueryError> {
        let found = self.collection(collection)?;
        let vector = blocking(|| self.serving.engine.vector_of(found, column, key)).map_err(QueryError::from);
        Ok(vector.inspect_err(|error| self.report(error))?.flatten())
    }

    /// The vectors of rows that a search of this vector column gave, in their order.
    pub fn vectors(&self, collection: &str, column: usize, nodes: &[u32]) -> Result<Vec<Embedding>, QueryError> {
        let found = self.collection(collection)?;
        let vectors = blocking(|| self.serving.engine.vectors_at(found, column, nodes)).map_err(QueryError::from);
        vectors.inspect_err(|error| self.report(error))
    }
}

impl<V: Visibility> QueryService<V> {
    /// A view to keep, as new as asked for: what is answered on it waits no more.
    pub async fn pin(&self, consistency: &Consistency) -> Result<Pinned, QueryError> {
        // Before the view, and again after the answer: what answers may be replaced in between.
        let (stale, started) = (self.frontier.progress.stale(), Instant::now());
        let Current { serving, view, fresh_as_of } = self.frontier.current(consistency).await?;
        // Who asks for its age was told that it follows, at the end of the wait.
        let stale = stale.filter(|_| consistency.max_staleness.is_none());
        Ok(Pinned { serving, view, fresh_as_of, stale, waited: started.elapsed(), _held: Held::new() })
    }

    /// Line two, on a view that is kept. What the request says of how new the answer has to be was seen to with that.
    pub async fn search_on(&self, pinned: &Pinned, request: &SearchRequest) -> Result<Answer, QueryError> {
        let (started, requests) = (Instant::now(), std::slice::from_ref(request));
        check_numbers(request)?;
        let span = tracing::debug_span!("search", collection = request.collection, searches = 1);
        let answers = self.answers(pinned, &request.collection, &request.consistency, requests, started);
        let answers = answers.instrument(span).await;
        let mut answers = answers.inspect_err(|error| pinned.report(error)).map_err(|error| match error {
            QueryError::InBatch { error, .. } => *error,
            error => error,
        })?;
        self.measure(&request.collection, requests, &mut answers, started);
        Ok(answers.pop().expect("each search has an answer"))
    }
}

impl<V: Visibility + 'static> QueryService<V> {
    /// Opens a search whose end is not known: `limit` of the request is only what is probably wanted. Nothing is done
    /// before the first rows are asked for. It ends when the answer is dropped.
    pub fn open(self: &Arc<Self>, pinned: Pinned, request: SearchRequest) -> OpenSearch {
        let (ask, asks) = mpsc::channel(1);
        let (answer, pages) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            if let Err(error) = service.serve_open(&pinned, &request, asks, &answer).await {
                pinned.report(&error);
                // Nobody waits for it any more where that fails.
                let _ = answer.send(Err(error)).await;
            }
        });
        OpenSearch { ask, pages }
    }

    async fn serve_open(
        &self,
        pinned: &Pinned,
        request: &SearchRequest,
        mut asks: mpsc::Receiver<usize>,
        answer: &mpsc::Sender<Result<Vec<Hit>, QueryError>>,
    ) -> Result<(), QueryError> {
        let Some(mut want) = asks.recv().await else { return Ok(()) };
        check_numbers(request)?;
        let found = pinned.collection(&request.collection)?;
        check_state(found, &request.consistency)?;
        self.check_viewers(found, std::slice::from_ref(request)).await?;
        let resolved = blocking(|| Resolved::new(&pinned.serving, found, request, self.options.default_ef))?;
        let mut stream = blocking(|| resolved.open());
        let mut touched = 0;
        loop {
            let mut hits = Vec::new();
            while let Some(open) = &mut stream
                && hits.len() < want
            {
                let missing = want - hits.len();
                let ask = if request.recheck == Recheck::None { missing } else { missing.max(LEAST_PAGE) };
                let page = blocking(|| open.next(ask))?;
                let dry = page.len() < ask;
                hits.extend(self.shown(&resolved, page).await?);
                if dry {
                    stream = None;
                }
            }
            // Who reads on is no user of every row.
            let nearest = &hits[..hits.len().min(TOUCHED - touched)];
            resolved.index.touch(nearest.iter().map(|hit| hit.node));
            touched += nearest.len();
            if answer.send(Ok(hits)).await.is_err() {
                return Ok(());
            }
            want = match asks.recv().await {
                Some(want) => want,
                None => return Ok(()),
            };
        }
    }

    async fn shown(&self, resolved: &Resolved<'_>, page: Vec<Candidate>) -> Result<Vec<Hit>, QueryError> {
        if resolved.request.recheck == Recheck::None {
            return Ok(page.into_iter().map(|candidate| resolved.as_indexed(candidate)).collect());
        }
        // What a role may not read at all is an error, whatever the index has.
        if page.is_empty() && resolved.request.viewer.is_none() {
            return Ok(Vec::new());
        }
        let started = Instant::now();
        let checked = check(&self.visibility, &resolved.found.def, vec![(resolved.checking(), page)]).await?;
        tracing::trace!(took = ?started.elapsed(), "rechecked a page of an open search");
        Ok(checked.pages.into_iter().flatten().collect())
    }
}

/// A search that is continued as rows are wanted.
pub struct OpenSearch {
    ask: mpsc::Sender<usize>,
    pages: mpsc::Receiver<Result<Vec<Hit>, QueryError>>,
}

impl OpenSearch {
    /// The next rows, nearest first, about `want` of them: fewer only when there are no more. A recheck gives what it has
    /// asked about, which may be more.
    pub async fn next(&mut self, want: usize) -> Result<Vec<Hit>, QueryError> {
        if self.ask.send(want).await.is_err() {
            return Ok(Vec::new());
        }
        self.pages.recv().await.unwrap_or(Ok(Vec::new()))
    }
}
