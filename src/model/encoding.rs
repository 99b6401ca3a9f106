//! How a graph keeps its rows for walks.

use crate::model::metric::Metric;
use crate::model::search::Exactness;
use serde::{Deserialize, Serialize};

/// What walks and linking compare. Answers are ordered by full floats unless a search asks for codes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Full floats, four bytes an element.
    F32,
    /// Half-precision floats, two bytes an element.
    F16,
    /// One byte an element.
    #[default]
    Sq8,
    /// Half a byte an element.
    Sq4,
    /// Product codes of an eighth of the floats' bytes, in sealed segments; growing ones have `Sq8`.
    Pq8,
    /// Of a sixteenth.
    Pq16,
    /// Of a thirty-second.
    Pq32,
    /// A bit an element, in sealed segments; growing ones have `Sq8`.
    Bq,
}

impl Encoding {
    /// Every encoding, largest first.
    pub const ALL: [Encoding; 8] = [
        Encoding::F32,
        Encoding::F16,
        Encoding::Sq8,
        Encoding::Sq4,
        Encoding::Pq8,
        Encoding::Pq16,
        Encoding::Pq32,
        Encoding::Bq,
    ];

    /// The name used in configuration and reports.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::F32 => "f32",
            Encoding::F16 => "f16",
            Encoding::Sq8 => "sq8",
            Encoding::Sq4 => "sq4",
            Encoding::Pq8 => "pq8",
            Encoding::Pq16 => "pq16",
            Encoding::Pq32 => "pq32",
            Encoding::Bq => "bq",
        }
    }

    /// Of product codes: how many bytes of floats become one.
    pub fn ratio(self) -> Option<usize> {
        match self {
            Encoding::Pq8 => Some(8),
            Encoding::Pq16 => Some(16),
            Encoding::Pq32 => Some(32),
            _ => None,
        }
    }

    /// Only for sealed segments: graphs are linked by `Sq8`.
    pub fn is_sealed(self) -> bool {
        self == Encoding::Bq || self.ratio().is_some()
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
            Exactness::Balanced if self.is_coarse() => self.overfetch(want).max(kept),
            Exactness::Balanced => self.overfetch(want),
            Exactness::Exact => self.overfetch(want).max(3 * want).max(kept),
        }
    }

    /// Orders so little that all of a walk's pool is compared by floats: who asks for more effort gets better order, too.
    pub fn is_coarse(self) -> bool {
        matches!(self, Encoding::Pq32 | Encoding::Bq)
    }

    /// How many found by codes are compared by floats to return `want` of them. Measured on sentence embeddings: the ten
    /// nearest are the ten nearest by `F16`, among the fifteen nearest by `Sq8`, the thirty nearest by `Sq4` and `Pq8` (recall
    /// above 0.999) and the forty nearest by `Pq16` (0.998). Of the sixty nearest by `Pq32` and `Bq` they are at 0.98; a
    /// hundred would have 0.993.
    pub fn overfetch(self, want: usize) -> usize {
        match self {
            Encoding::F32 => want,
            Encoding::F16 => want + (want / 8).clamp(2, 64),
            Encoding::Sq8 => want + (want / 2).clamp(6, 256),
            Encoding::Sq4 | Encoding::Pq8 => want + want.clamp(20, 512),
            Encoding::Pq16 => want + (2 * want).clamp(30, 1024),
            Encoding::Pq32 | Encoding::Bq => want + (5 * want).clamp(50, 4096),
        }
    }
}
