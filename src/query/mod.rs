//! The line of a query: request -> view -> plan -> candidates -> recheck -> answer. Nothing else decides order.

mod confined;
mod error;
mod facet;
pub mod filter;
mod groups;
mod listing;
mod mmr;
mod open;
pub mod plan;
mod recall;
mod recommend;
mod resolve;
mod row;
mod rows;
mod stream;
mod ties;
mod viewer;

use crate::consistency::blocking;
use crate::consistency::frontier::{Frontier, NoView, Serving};
use crate::consistency::paging::{self, Leg, Spent};
use crate::consistency::recheck::{Checking, Visibility};
use crate::engine::candidates::Candidates;
use crate::engine::segment::Segment;
use crate::model::{
    Answer, Candidate, CollectionDef, Consistency, Ended, Explain, ExplainSegment, Group, Hit, Place, Recheck,
    RecheckReport, SearchRequest, SearchStats, Timings,
};
use crate::query::groups::{Formed, Groups, Wanted};
use crate::query::resolve::{ByColumn, Resolved, check_batch, check_numbers, check_state};
use crate::query::rows::{Outcome, Rows};
use crate::storage;
use crate::telemetry::names;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::Instrument;

pub use error::QueryError;
pub use open::{OpenSearch, Pinned};
pub use viewer::Look;

/// Settings of searches.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Search width where the request does not say.
    pub default_ef: usize,
}

/// Answers searches.
pub struct QueryService<V> {
    /// As of when.
    pub frontier: Arc<Frontier>,
    visibility: V,
    options: Options,
}

impl<V: Visibility> QueryService<V> {
    /// A service that rechecks with `visibility`.
    pub fn new(frontier: Arc<Frontier>, visibility: V, options: Options) -> QueryService<V> {
        QueryService { frontier, visibility, options }
    }

    /// The definition of a collection, for those who must parse a request against it.
    pub fn definition(&self, collection: &str) -> Result<Arc<CollectionDef>, QueryError> {
        let serving = self.frontier.serving().ok_or(NoView::NotLoaded)?;
        let view = serving.engine.view();
        let found = resolve::collection(&view, collection).map(|found| found.def.clone());
        found.map_err(|error| match self.frontier.progress.refused().remove(collection) {
            Some(reason) => QueryError::Refused { name: collection.to_owned(), reason },
            None => error,
        })
    }

    /// For those who parsed a request against a definition, once it is answered: was it meant that way throughout? What
    /// answers only goes forward.
    pub fn check_same(&self, def: &CollectionDef) -> Result<(), QueryError> {
        let now = self.definition(&def.name)?;
        let same = now.id == def.id || (now.key == def.key && now.filters == def.filters);
        if same { Ok(()) } else { Err(QueryError::Replaced(def.name.clone())) }
    }

    /// Line two.
    pub async fn search(&self, request: &SearchRequest) -> Result<Answer, QueryError> {
        let pinned = self.pin(&request.consistency).await?;
        self.search_on(&pinned, request).await
    }

    /// Line two for several searches of one collection, all on one view, in as few round trips as one of them takes. How new
    /// that had to be `consistency` says for all of them.
    pub async fn search_all(
        &self,
        pinned: &Pinned,
        collection: &str,
        consistency: &Consistency,
        requests: &[SearchRequest],
    ) -> Result<Vec<Answer>, QueryError> {
        let started = Instant::now();
        let span = tracing::debug_span!("search", collection, searches = requests.len());
        let answers = self.answers(pinned, collection, consistency, requests, started).instrument(span).await;
        let mut answers = answers.inspect_err(|error| pinned.report(error))?;
        self.measure(collection, requests, &mut answers, started);
        Ok(answers)
    }

    /// Counts the answers, and leaves of them what may be told.
    fn measure(&self, collection: &str, requests: &[SearchRequest], answers: &mut [Answer], started: Instant) {
        for (request, answer) in requests.iter().zip(answers) {
            let labels = [("collection", collection.to_owned()), ("plan", answer.stats.plan.to_owned())];
            metrics::histogram!(names::SEARCH_SECONDS, &labels).record(started.elapsed().as_secs_f64());
            metrics::histogram!(names::SEARCH_VISITED).record(answer.stats.visited as f64);
            // What ended where the request said, or where a range may end, is nothing to be alarmed by.
            let as_asked = matches!(answer.stats.ended, Ended::Limit | Ended::Margin) && answer.stale.is_none();
            metrics::counter!(names::SEARCH_INCOMPLETE).increment(u64::from(!answer.complete && !as_asked));
            metrics::counter!(names::RECHECK_DROPPED).increment(answer.recheck.dropped as u64);
            if request.viewer.is_some() {
                viewer::untell(answer);
            }
            self.frontier.tally(collection, answer.recheck.checked, answer.recheck.dropped);
        }
    }

    async fn answers(
        &self,
        pinned: &Pinned,
        collection: &str,
        consistency: &Consistency,
        requests: &[SearchRequest],
        started: Instant,
    ) -> Result<Vec<Answer>, QueryError> {
        check_batch(requests)?;
        each(requests, check_numbers)?;
        let Pinned { serving, view, stale, .. } = pinned;
        let found = resolve::collection(view, collection)?;
        let paused = check_state(found, consistency)?;
        let follows = paused.is_none();
        let default_ef = self.options.default_ef;
        self.check_viewers(found, requests).await?;
        let searches = blocking(|| each(requests, |one| Resolved::new(serving, found, one, default_ef)))?;
        resolve::check_work(&searches)?;
        let prepared = started.elapsed();
        let mut legs = blocking(|| searches.iter().map(Filling::open).collect::<Result<Vec<_>, _>>())?;
        let opened = started.elapsed() - prepared;
        let Spent { search, recheck, together } = paging::fill(&mut legs, &self.visibility, &found.def).await?;
        let (reranked, stale) = (Instant::now(), stale.clone().or_else(|| self.frontier.progress.stale()).or(paused));
        let mut answers = Vec::with_capacity(searches.len());
        for (resolved, leg) in searches.iter().zip(legs) {
            let mut answer = blocking(|| leg.finish(resolved, serving))?;
            // Those that the recheck dropped nobody was given.
            let groups = answer.groups.iter().flatten().flat_map(|group| &group.hits);
            resolved.index.touch(answer.hits.iter().chain(groups).map(|hit| hit.node));
            answer.applied_lsn = view.applied;
            answer.next.iter_mut().for_each(|next| next.copy = resolve::copy(serving, found));
            // What stands still is not as fresh as what the others apply.
            answer.staleness = pinned.age().filter(|_| follows);
            answer.stale.clone_from(&stale);
            // What the index cannot follow may be missing from any answer.
            answer.complete &= stale.is_none();
            answers.push(answer);
        }
        let us = |duration: Duration| duration.as_micros() as u64;
        let timings = Timings {
            wait: us(pinned.waited),
            prepare: us(prepared),
            search: us(opened + search),
            recheck: us(recheck),
            rerank: us(reranked.elapsed()),
            total: us(pinned.waited + started.elapsed()),
        };
        for answer in &mut answers {
            answer.stats.took_us = timings.total;
            if answer.recheck.checked > 0 {
                (answer.recheck.took_us, answer.recheck.batched) = (timings.recheck, together);
            }
            answer.explain.iter_mut().for_each(|explain| explain.timings_us = timings);
        }
        Ok(answers)
    }
}

/// Does this for each search of a batch; an error says of which.
fn each<'r, T>(
    requests: &'r [SearchRequest],
    mut work: impl FnMut(&'r SearchRequest) -> Result<T, QueryError>,
) -> Result<Vec<T>, QueryError> {
    let in_batch = |at| move |error| QueryError::InBatch { at, error: Box::new(error) };
    requests.iter().enumerate().map(|(at, request)| work(request).map_err(in_batch(at))).collect()
}

/// A search of any kind that is being filled.
enum Filling<'v> {
    /// An index that never saw a vector has nothing to find.
    Nothing(Checking<'v>),
    Rows(Box<Rows<'v, Candidates<'v>>>),
    Groups(Box<Groups<'v, ByColumn<'v>>>),
}

impl<'v> Filling<'v> {
    /// Opens a search. One that asks nobody is filled at once.
    fn open(resolved: &'v Resolved<'v>) -> Result<Filling<'v>, QueryError> {
        let (request, checking) = (resolved.request, resolved.checking());
        let Some(stream) = resolved.open() else { return Ok(Filling::Nothing(checking)) };
        let max_distance = request.shape.max_distance;
        let mut leg = match (&request.shape.group, resolved.group) {
            (Some(group), Some(column)) => {
                let wanted = Wanted { groups: request.limit, size: group.size, max_distance, column };
                let grouping = ByColumn { resolved, column };
                let scan = resolved.is_scan();
                Filling::Groups(Box::new(Groups::new(grouping, stream, scan, resolved.except(), checking, wanted)))
            }
            _ => {
                let limit = request.shape.mmr.map_or(request.limit, |mmr| mmr.candidates);
                Filling::Rows(Box::new(Rows::new(stream, checking, limit, max_distance)))
            }
        };
        if request.recheck == Recheck::None {
            paging::fill_as_indexed(&mut leg, |candidate| resolved.as_indexed(candidate))?;
        }
        Ok(leg)
    }

    fn finish(self, resolved: &Resolved<'_>, serving: &Serving) -> Result<Answer, QueryError> {
        match self {
            Filling::Nothing(checking) => {
                let report = RecheckReport { mode: checking.level, ..RecheckReport::default() };
                let ended = Ended::Dry;
                let outcome = Outcome::<Hit> {
                    hits: Vec::new(),
                    ended,
                    report,
                    pages: 0,
                    taken: 0,
                    visited: 0,
                    given_up: None,
                    doubtful: false,
                    cut: false,
                    next: None,
                };
                let groups = resolved.group.map(|_| Vec::new());
                Ok(answer(resolved, Vec::new(), groups, true, &outcome))
            }
            Filling::Rows(leg) => {
                let mut outcome = leg.finish();
                let mut hits = std::mem::take(&mut outcome.hits);
                let complete = is_complete(resolved.request, hits.len(), outcome.ended) && !outcome.doubtful;
                if resolved.request.shape.mmr.is_some() {
                    hits = diverse(resolved, serving, hits)?;
                }
                Ok(answer(resolved, hits, None, complete, &outcome))
            }
            Filling::Groups(leg) => {
                let mut outcome = leg.finish();
                let group = |Formed { value, hits }| Group { value: resolved.group_value(value.as_ref()), hits };
                let groups = outcome.hits.drain(..).map(group).collect();
                let complete = matches!(outcome.ended, Ended::Limit | Ended::Dry);
                Ok(answer(resolved, Vec::new(), Some(groups), complete, &outcome))
            }
        }
    }
}

impl Leg for Filling<'_> {
    fn next_page(&mut self) -> storage::Result<Vec<Candidate>> {
        match self {
            Filling::Nothing(_) => Ok(Vec::new()),
            Filling::Rows(leg) => leg.next_page(),
            Filling::Groups(leg) => leg.next_page(),
        }
    }

    fn checking(&self) -> Checking<'_> {
        match self {
            Filling::Nothing(checking) => *checking,
            Filling::Rows(leg) => leg.checking(),
            Filling::Groups(leg) => leg.checking(),
        }
    }

    fn take(&mut self, visible: Vec<Hit>) {
        match self {
            Filling::Nothing(_) => {}
            Filling::Rows(leg) => leg.take(visible),
            Filling::Groups(leg) => leg.take(visible),
        }
    }

    fn give_up(&mut self) -> storage::Result<()> {
        match self {
            Filling::Nothing(_) => Ok(()),
            Filling::Rows(leg) => leg.give_up(),
            Filling::Groups(leg) => leg.give_up(),
        }
    }
}

/// Are all rows that belong in the answer in it? Of those within a distance all belong, up to the limit; a search that
/// ended at the limit has left some out, and one that ended beyond a margin has no proof that it did not.
fn is_complete(request: &SearchRequest, found: usize, ended: Ended) -> bool {
    match ended {
        Ended::Dry => true,
        Ended::Limit | Ended::Margin | Ended::Budget if request.shape.mmr.is_some() => found >= request.limit,
        Ended::Limit => request.shape.max_distance.is_none(),
        Ended::Margin | Ended::Budget => false,
    }
}

/// The rows in the order of their diversity, by the vectors that were searched.
fn diverse(resolved: &Resolved<'_>, serving: &Serving, hits: Vec<Hit>) -> Result<Vec<Hit>, QueryError> {
    let Some(mmr) = resolved.request.shape.mmr else { return Ok(hits) };
    let nodes: Vec<_> = hits.iter().map(|hit| hit.node).collect();
    let vectors = serving.engine.vectors_at(resolved.found, resolved.column, &nodes)?;
    let distances: Vec<_> = hits.iter().map(|hit| hit.distance).collect();
    let metric = resolved.index.column.metric;
    let apart = |a: usize, b: usize| vectors[a].apart(metric, &vectors[b]);
    let order = mmr::order(&distances, apart, mmr.lambda, resolved.request.limit);
    let mut hits: Vec<_> = hits.into_iter().map(Some).collect();
    Ok(order.into_iter().filter_map(|place| hits[place].take()).collect())
}

/// What a search says of itself; what all searches of a request share is filled in later.
fn answer<H>(
    resolved: &Resolved<'_>,
    hits: Vec<Hit>,
    groups: Option<Vec<Group>>,
    complete: bool,
    outcome: &Outcome<H>,
) -> Answer {
    let plan = &resolved.plan;
    let mut reason = plan.reason.clone();
    if let Some(walked) = outcome.given_up {
        reason += &format!("; given up after {walked} distances for all rows that pass");
    }
    let segment = |one: &Arc<Segment>| ExplainSegment {
        vectors: one.graph.len(),
        linked: one.graph.linked(),
        encoding: one.graph.encoding(),
    };
    let explain = resolved.request.shape.explain.then(|| Explain {
        plan: plan.name,
        reason: reason.clone(),
        ef: resolved.ef(),
        segments: resolved.index.segments.iter().map(segment).collect(),
        live: resolved.index.live,
        visited: outcome.visited,
        candidates: outcome.taken,
        pages: outcome.pages,
        timings_us: Timings::default(),
    });
    let given = resolved.request.after.as_ref().map_or(0, |after| after.given).saturating_add(hits.len());
    let pages = groups.is_none() && resolve::has_pages(resolved.request);
    let next = outcome.next.clone().filter(|_| pages);
    Answer {
        next: next.map(|(distance, key)| Place { distance, key, given, copy: 0, doubtful: outcome.cut }),
        hits,
        groups,
        complete,
        applied_lsn: Default::default(),
        staleness: None,
        stale: None,
        recheck: outcome.report,
        stats: SearchStats {
            took_us: 0,
            visited: outcome.visited,
            plan: plan.name,
            reason,
            ended: outcome.ended,
            exactness: resolved.exactness(),
        },
        explain,
    }
}
