//! How a graph keeps its rows for walks.

use crate::model::metric::Metric;
use crate::model::search::Exactness;
use serde::{Deserialize, Serialize};

/// What walks and linking compare. Answers are ordered by full floats in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Full floats, four bytes an element.
    F32,
    /// One byte an element.
    #[default]
    Sq8,
    /// Half a byte an element.
    Sq4,
    /// A bit an element, in sealed segments; growing ones have `Sq8`.
    Bq,
}

impl Encoding {
    /// Every encoding, largest first.
    pub const ALL: [Encoding; 4] = [Encoding::F32, Encoding::Sq8, Encoding::Sq4, Encoding::Bq];

    /// The name used in configuration and reports.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::F32 => "f32",
            Encoding::Sq8 => "sq8",
            Encoding::Sq4 => "sq4",
            Encoding::Bq => "bq",
        }
    }

    /// What serves a metric: codes add up products and squares only.
    pub fn for_metric(self, metric: Metric) -> Encoding {
        match metric {
            Metric::L2 | Metric::Cosine | Metric::Ip => self,
            _ => Encoding::F32,
        }
    }

    /// How many found by codes are compared by full vectors to return `want` of them, of `kept` that there are.
    pub fn compared(self, exactness: Exactness, want: usize, kept: usize) -> usize {
        match exactness {
            Exactness::Fast => want,
            // Coarse codes order little: what was kept is what they choose.
            Exactness::Balanced if self == Encoding::Bq => self.overfetch(want).max(kept),
            Exactness::Balanced => self.overfetch(want),
            Exactness::Exact => self.overfetch(want).max(3 * want).max(kept),
        }
    }

    /// How many found by codes are compared by floats to return `want` of them. Measured on sentence embeddings: the ten
    /// nearest are among the fifteen nearest by `Sq8` and the thirty nearest by `Sq4` (recall above 0.999).
    pub fn overfetch(self, want: usize) -> usize {
        match self {
            Encoding::F32 => want,
            Encoding::Sq8 => want + (want / 2).clamp(6, 256),
            Encoding::Sq4 => want + want.clamp(20, 512),
            Encoding::Bq => want + (5 * want).clamp(50, 4096),
        }
    }
}
