//! Rows in the order of their keys, and their number.

use crate::model::filter::Filter;
use crate::model::key::RowKey;
use crate::model::lsn::{Lsn, Version};
use crate::model::search::{Consistency, Recheck, RecheckReport};
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
