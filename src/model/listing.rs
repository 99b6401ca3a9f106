//! What is asked of a collection beside searches: rows by key, numbers of rows, figures.

use crate::model::filter::Filter;
use crate::model::key::RowKey;
use crate::model::lsn::{Lsn, Version};
use crate::model::search::{Consistency, Exactness, Recheck, RecheckReport, SearchBy, Viewer};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Rows of one collection, page by page.
#[derive(Debug, Clone, PartialEq)]
pub struct ScrollRequest {
    /// Name of the collection.
    pub collection: String,
    /// Only rows that pass.
    pub filter: Option<Filter>,
    /// Only rows behind this key, which need not exist.
    pub after: Option<RowKey>,
    /// Rows wanted, 1 to [`crate::model::MAX_LIMIT`].
    pub limit: usize,
    /// Columns to show beside the key.
    pub columns: Vec<String>,
    /// How new.
    pub consistency: Consistency,
    /// How sure.
    pub recheck: Recheck,
    /// With whose eyes, where not with our own.
    pub viewer: Option<Viewer>,
}

/// The number of rows of one collection.
#[derive(Debug, Clone, PartialEq)]
pub struct CountRequest {
    /// Name of the collection.
    pub collection: String,
    /// Only rows that pass.
    pub filter: Option<Filter>,
    /// How new.
    pub consistency: Consistency,
}

/// One row of a page.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its key.
    pub key: RowKey,
    /// Which version of the row was found.
    pub version: Version,
    /// The columns asked for, as a JSON object.
    pub columns: Option<Box<serde_json::value::RawValue>>,
}

/// As of when an answer is.
#[derive(Debug, Clone)]
pub struct AsOf {
    /// False when rows may be missing or too many: the answer is of the past, or a row is being read again.
    pub complete: bool,
    /// The position the answer is exact for.
    pub applied_lsn: Lsn,
    /// How old that position may be; `None` when the source has not been heard of yet.
    pub staleness: Option<Duration>,
    /// Why changes may be missing.
    pub stale: Option<String>,
}

/// A page of rows.
#[derive(Debug, Clone)]
pub struct Page {
    /// In the order of their keys.
    pub rows: Vec<Listed>,
    /// Behind which key the next page starts; `None` when there is none.
    pub next: Option<RowKey>,
    /// As of when.
    pub as_of: AsOf,
    /// What the recheck did.
    pub recheck: RecheckReport,
}

/// One row of one collection.
#[derive(Debug, Clone, PartialEq)]
pub struct RowRequest {
    /// Name of the collection.
    pub collection: String,
    /// Which row.
    pub key: RowKey,
    /// Only if it passes.
    pub filter: Option<Filter>,
    /// Columns to show beside the key.
    pub columns: Vec<String>,
    /// How new.
    pub consistency: Consistency,
    /// How sure.
    pub recheck: Recheck,
    /// With whose eyes, where not with our own.
    pub viewer: Option<Viewer>,
}

/// The most frequent values of a column.
#[derive(Debug, Clone, PartialEq)]
pub struct FacetRequest {
    /// Name of the collection.
    pub collection: String,
    /// A filter column.
    pub column: String,
    /// Only rows that pass.
    pub filter: Option<Filter>,
    /// Values wanted, 1 to [`crate::model::MAX_LIMIT`].
    pub limit: usize,
    /// How new.
    pub consistency: Consistency,
}

/// One value and the number of rows that have it.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Facet {
    /// The value; null is NULL.
    pub value: serde_json::Value,
    /// Rows.
    pub count: u64,
}

/// The most frequent values.
#[derive(Debug, Clone)]
pub struct Facets {
    /// Most rows first; ties by value.
    pub facets: Vec<Facet>,
    /// Different values there are, NULL included.
    pub distinct: usize,
    /// Rows that pass.
    pub total: u64,
    /// As of when.
    pub as_of: AsOf,
}

/// How much of the nearest rows searches find.
#[derive(Debug, Clone, PartialEq)]
pub struct RecallRequest {
    /// Name of the collection.
    pub collection: String,
    /// Vector column; the first one when absent.
    pub using: Option<String>,
    /// What to search by; where there is nothing, rows drawn by chance.
    pub queries: Vec<SearchBy>,
    /// How many of those.
    pub sample: usize,
    /// Rows each search wants.
    pub limit: usize,
    /// Only rows that pass.
    pub filter: Option<Filter>,
    /// Search width; the server's default when absent.
    pub ef: Option<usize>,
    /// As for searches.
    pub exactness: Exactness,
    /// How new.
    pub consistency: Consistency,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema)]
pub struct RecallReport {
    /// The share of the nearest rows that the search found, on the mean of all queries.
    pub recall: f64,
    /// The share of the query for which it was least.
    pub worst: f64,
    /// Queries.
    pub queries: u64,
    /// Rows each wanted.
    pub limit: usize,
    /// Rows that pass and can be found.
    pub rows: usize,
    /// Searches by plan.
    pub plans: BTreeMap<&'static str, u64>,
    /// What a search took on the mean, microseconds.
    pub search_us: u64,
    /// What the comparison with every row took on the mean, microseconds.
    pub exact_us: u64,
    /// The position this is exact for.
    pub applied_lsn: Lsn,
}
