//! A search and its answer.

use crate::model::filter::Filter;
use crate::model::key::RowKey;
use crate::model::lsn::{Lsn, Version};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Largest `limit` of one search.
pub const MAX_LIMIT: usize = 10_000;
/// Largest search width.
pub const MAX_EF: usize = 100_000;

/// What to search by.
#[derive(Debug, Clone, PartialEq)]
pub enum SearchBy {
    /// This vector.
    Vector(Vec<f32>),
    /// The stored vector of the row with this key; the row itself is not in the answer.
    Row(RowKey),
}

/// How sure the answer's rows are to be visible in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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

/// How new the answer has to be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Consistency {
    /// The answer must reflect everything that ended at or before this position.
    pub at_least: Option<Lsn>,
    /// How long to wait for it; the server's default when absent.
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

/// One row of an answer.
#[derive(Debug, Clone)]
pub struct Hit {
    /// Its key.
    pub key: RowKey,
    /// Distance to the query; from the source's current vector when the recheck is `exact`. NaN when undefined.
    pub distance: f64,
    /// Which version of the row was found.
    pub version: Version,
    /// The columns asked for, as a JSON object.
    pub columns: Option<Box<serde_json::value::RawValue>>,
}

/// What the recheck did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct RecheckReport {
    /// Which level.
    pub mode: Recheck,
    /// Rows asked about.
    pub checked: usize,
    /// Rows the source does not show (or that fail the filter there).
    pub dropped: usize,
    /// Rows found by continuing the search in their place.
    pub refilled: usize,
}

/// What the search did.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct SearchStats {
    /// Wall time inside the service, microseconds.
    pub took_us: u64,
    /// Distances computed.
    pub visited: usize,
    /// `exact`, `hnsw` or `hnsw+filter`.
    pub plan: &'static str,
    /// Why that plan.
    pub reason: String,
}

/// The answer to a search.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Nearest first; ties by key.
    pub hits: Vec<Hit>,
    /// False when there may be more rows that belong here than were returned.
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
}
