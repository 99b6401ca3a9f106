//! How searches find their way to the rows of a vector column.

use crate::model::metric::Metric;
use serde::{Deserialize, Serialize};

/// The way to the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IndexKind {
    /// A graph of near neighbours: the fastest.
    #[default]
    Hnsw,
    /// Lists of rows by their nearest centroid, in sealed segments: quicker to build and smaller.
    Ivfflat,
    /// None: every row is compared.
    Flat,
}

impl IndexKind {
    /// Every kind.
    pub const ALL: [IndexKind; 3] = [IndexKind::Hnsw, IndexKind::Ivfflat, IndexKind::Flat];

    /// The name used in configuration, plans and reports.
    pub fn name(self) -> &'static str {
        match self {
            IndexKind::Hnsw => "hnsw",
            IndexKind::Ivfflat => "ivfflat",
            IndexKind::Flat => "flat",
        }
    }

    /// Can rows be compared so? Centroids are means.
    pub fn serves(self, metric: Metric) -> bool {
        self != IndexKind::Ivfflat || Metric::PLAIN.contains(&metric)
    }
}
