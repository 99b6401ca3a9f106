//! A search and its answer.

use crate::model::embedding::Embedding;
use crate::model::encoding::Encoding;
use crate::model::filter::Filter;
use crate::model::key::RowKey;
use crate::model::lsn::{Lsn, Version};
use crate::model::place::Place;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Largest `limit` of one search.
pub const MAX_LIMIT: usize = 10_000;
/// Largest search width.
pub const MAX_EF: usize = 100_000;
/// Most hits of one group.
pub const MAX_GROUP_SIZE: usize = 100;
/// Most candidates that are weighed for diversity.
pub const MAX_MMR_CANDIDATES: usize = 1_000;
/// Most examples of each sign in one recommendation.
pub const MAX_EXAMPLES: usize = 256;
/// Most searches of one batch.
pub const MAX_BATCH: usize = 256;
/// Most rows that the searches of one batch may want together.
pub const MAX_BATCH_ROWS: usize = 100_000;

/// What to search by.
#[derive(Debug, Clone, PartialEq)]
pub enum SearchBy {
    /// This vector.
    Vector(Embedding),
    /// The stored vector of the row with this key; the row itself is not in the answer.
    Row(RowKey),
    /// What is like the positive examples and unlike the negative ones; rows given as examples are not in the answer.
    Examples {
        /// At least one.
        positive: Vec<Example>,
        /// Any number.
        negative: Vec<Example>,
    },
}

/// One example of a recommendation.
#[derive(Debug, Clone, PartialEq)]
pub enum Example {
    /// This vector.
    Vector(Embedding),
    /// The stored vector of the row with this key.
    Row(RowKey),
}

/// How sure the answer's rows are to be visible in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recheck {
    /// As indexed; the answer says so.
    None,
    /// Each row is still visible in the source.
    #[default]
    Exists,
    /// Visible, the filter re-evaluated by the source, and the distance recomputed from the row's current vector.
    Exact,
}

/// With whose eyes the source is asked: its row security and grants for this role decide.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Viewer {
    /// A role of the source.
    pub role: String,
    /// Settings that hold for the question, for policies that read them.
    pub settings: BTreeMap<String, String>,
}

/// How new the answer has to be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Consistency {
    /// The answer must reflect everything that ended at or before this position.
    pub at_least: Option<Lsn>,
    /// The answer must not be older than this, nor of the past for any other reason.
    pub max_staleness: Option<Duration>,
    /// How long to wait for either; the server's default when absent.
    pub timeout: Option<Duration>,
}

/// A search of one collection.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchRequest {
    /// Name of the collection.
    pub collection: String,
    /// Vector column; the first one when absent.
    pub using: Option<String>,
    /// What to search by.
    pub by: SearchBy,
    /// Rows wanted, 1 to [`MAX_LIMIT`].
    pub limit: usize,
    /// Only rows that pass.
    pub filter: Option<Filter>,
    /// Columns to show beside key and distance.
    pub columns: Vec<String>,
    /// Search width; the server's default when absent.
    pub ef: Option<usize>,
    /// Compare with every row instead of walking the graph.
    pub exact: bool,
    /// How new.
    pub consistency: Consistency,
    /// How sure.
    pub recheck: Recheck,
    /// With whose eyes, where not with our own; the recheck is not `None` then.
    pub viewer: Option<Viewer>,
    /// Only rows behind this place.
    pub after: Option<Place>,
    /// Which rows beside the nearest, and in what form.
    pub shape: Shape,
}

/// What an answer holds beside "the nearest rows"; nothing of it by default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shape {
    /// All rows at this distance or nearer, of which `limit` is only a cap.
    pub max_distance: Option<f64>,
    /// The nearest `limit` groups instead of rows.
    pub group: Option<GroupBy>,
    /// Rows that differ among themselves.
    pub mmr: Option<Mmr>,
    /// Tell how the answer came about.
    pub explain: bool,
    /// What distances are compared with.
    pub exactness: Exactness,
}

/// How much of a search is done with full vectors, where rows are found by codes. Another thing than `exact`, which
/// compares every row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Exactness {
    /// Nothing: order and distances are those of codes, in memory alone.
    Fast,
    /// So many of the nearest by codes are compared as it takes to order the answer.
    #[default]
    Balanced,
    /// Everything a walk kept is compared, and at least three times as many as are wanted.
    Exact,
}

/// Grouped search: the groups nearest by their best row, each with its best rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupBy {
    /// A filter column. Rows where it is NULL are a group, as in SQL.
    pub column: String,
    /// Rows of each group, 1 to [`MAX_GROUP_SIZE`].
    pub size: usize,
}

/// Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mmr {
    /// 1 is nearness alone, 0 difference alone.
    pub lambda: f64,
    /// The nearest so many are weighed, `limit` to [`MAX_MMR_CANDIDATES`].
    pub candidates: usize,
}

/// One row found by the engine, before the source was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its key.
    pub key: RowKey,
    /// Distance to the query by the indexed vector.
    pub distance: f64,
    /// Which version of the row was compared.
    pub version: Version,
    /// Where the engine keeps its vector in the view that was searched.
    pub node: u32,
}

impl Candidate {
    /// As a row of an answer.
    pub fn hit(self, columns: Option<Box<serde_json::value::RawValue>>) -> Hit {
        let Candidate { key, distance, version, node } = self;
        Hit { key, distance, indexed: distance, version, node, columns }
    }
}

/// One row of an answer.
#[derive(Debug, Clone)]
pub struct Hit {
    /// Its key.
    pub key: RowKey,
    /// Distance to the query; from the source's current vector when the recheck is `exact`. NaN when undefined.
    pub distance: f64,
    /// Distance by the indexed vector.
    pub indexed: f64,
    /// Which version of the row was found.
    pub version: Version,
    /// Where the engine keeps its vector in the view that was searched.
    pub node: u32,
    /// The columns asked for, as a JSON object.
    pub columns: Option<Box<serde_json::value::RawValue>>,
}

/// What the recheck did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, schemars::JsonSchema)]
pub struct RecheckReport {
    /// Which level.
    pub mode: Recheck,
    /// Rows asked about.
    pub checked: usize,
    /// Rows the source does not show (or that fail the filter there).
    pub dropped: usize,
    /// Rows found by continuing the search in their place.
    pub refilled: usize,
    /// What waiting for the source took, microseconds; the searches of a batch share it.
    pub took_us: u64,
    /// Requests that the source answered in the same round trip, this one included, at most; 0 where it was not asked.
    pub batched: usize,
}

/// What the search did.
#[derive(Debug, Clone, PartialEq, Default, Serialize, schemars::JsonSchema)]
pub struct SearchStats {
    /// Wall time inside the service, microseconds.
    pub took_us: u64,
    /// Distances computed.
    pub visited: usize,
    /// `exact`, `hnsw` or `hnsw+filter`; empty, as the reason, where it would tell of rows that are not for whoever asks.
    pub plan: &'static str,
    /// Why that plan.
    pub reason: String,
    /// Why the search ended.
    pub ended: Ended,
    /// How much was compared with full vectors.
    pub exactness: Exactness,
}

impl SearchStats {
    /// Without what follows from how many rows there are, of everybody's: figures, and the plan that was chosen by them.
    pub fn tell_nothing(&mut self) {
        (self.visited, self.plan) = (0, "");
        self.reason.clear();
    }
}

/// Why a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// It had as many rows, or full groups, as were asked for.
    #[default]
    Limit,
    /// There are no more: every other row was compared, or is proven to be farther.
    Dry,
    /// The walk was well beyond `max_distance`. Not a proof: a walk's order is approximate.
    Margin,
    /// It cost as much as one search may.
    Budget,
}

/// One group of an answer.
#[derive(Debug, Clone)]
pub struct Group {
    /// The value that its rows share, as indexed.
    pub value: serde_json::Value,
    /// Nearest first; ties by key.
    pub hits: Vec<Hit>,
}

/// How an answer came about.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Explain {
    /// As in the stats.
    pub plan: &'static str,
    /// As in the stats.
    pub reason: String,
    /// Search width of a walk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ef: Option<usize>,
    /// The parts of the index that were searched.
    pub segments: Vec<ExplainSegment>,
    /// Vectors that can be found.
    pub live: usize,
    /// Distances computed.
    pub visited: usize,
    /// Candidates taken from the index.
    pub candidates: usize,
    /// Pages of candidates that were rechecked.
    pub pages: usize,
    /// Where the time of the whole request went; the searches of a batch share it.
    pub timings_us: Timings,
}

/// One part of an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct ExplainSegment {
    /// Vectors in it.
    pub vectors: u32,
    /// How many of them a walk can reach; the rest is scanned.
    pub linked: u32,
    /// What a walk compares in it.
    pub encoding: Encoding,
}

/// Wall time by stage, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, schemars::JsonSchema)]
pub struct Timings {
    /// Until the position asked for was there.
    pub wait: u64,
    /// Checking, reading examples, planning.
    pub prepare: u64,
    /// Scans and walks.
    pub search: u64,
    /// Round trips to the source.
    pub recheck: u64,
    /// Ordering by diversity, sorting.
    pub rerank: u64,
    /// All of it.
    pub total: u64,
}

/// The answer to a search.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Nearest first, ties by key; with `mmr` in the order chosen. Empty when groups were asked for.
    pub hits: Vec<Hit>,
    /// The groups asked for, nearest first by their best row.
    pub groups: Option<Vec<Group>>,
    /// Where the next page begins; `None` where there is none, and for answers that have no pages.
    pub next: Option<Place>,
    /// False when there may be more rows that belong here than were returned: with `max_distance` all within it belong.
    pub complete: bool,
    /// The position this answer is exact for.
    pub applied_lsn: Lsn,
    /// How old that position may be; `None` when the source has not been heard of yet.
    pub staleness: Option<Duration>,
    /// The index is being rebuilt or cannot follow the source: changes may be missing.
    pub stale: Option<String>,
    /// What the recheck did.
    pub recheck: RecheckReport,
    /// What the search did.
    pub stats: SearchStats,
    /// How it came about, where asked for.
    pub explain: Option<Explain>,
}
