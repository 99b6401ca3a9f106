//! Tiers: how rows are kept in memory by how long nobody has found them. Their original vectors are on disk in every tier.

use crate::model::encoding::Encoding;
use crate::model::spec::by_name;
use serde::{Deserialize, Serialize};

/// How much memory rows get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Full vectors, and codes for walks.
    Hot,
    /// Codes.
    Warm,
    /// Smaller codes.
    Cool,
    /// The smallest codes.
    Cold,
}

impl Tier {
    /// Every tier, hottest first.
    pub const ALL: [Tier; 4] = [Tier::Hot, Tier::Warm, Tier::Cool, Tier::Cold];

    /// The name used in configuration and reports.
    pub fn name(self) -> &'static str {
        ["hot", "warm", "cool", "cold"][self as usize]
    }
}

/// When rows change their tier, and what each tier keeps. Ages are since a search last gave the row, or since it came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TierPolicy {
    /// Hours after which a hot row is warm.
    pub warm_after_h: f64,
    /// Hours after which it is cool.
    pub cool_after_h: f64,
    /// Hours after which it is cold.
    pub cold_after_h: f64,
    /// Codes of warm rows.
    #[serde(deserialize_with = "by_name")]
    pub warm: Encoding,
    /// Codes of cool rows.
    #[serde(deserialize_with = "by_name")]
    pub cool: Encoding,
    /// Codes of cold rows.
    #[serde(deserialize_with = "by_name")]
    pub cold: Encoding,
    /// A row that searches gave so often, the count halving every day, is hot again. One search, or one reader of
    /// everything, changes nothing.
    pub promote_hits: u8,
    /// Hours for which a row stays where it was moved.
    pub residence_h: f64,
    /// Rows are moved when at least so many of a segment, and a tenth of it, belong elsewhere.
    pub least_rows: usize,
    /// Seconds between two looks.
    pub check_s: u64,
}

impl Default for TierPolicy {
    fn default() -> TierPolicy {
        TierPolicy {
            warm_after_h: 24.0,
            cool_after_h: 168.0,
            cold_after_h: 720.0,
            warm: Encoding::Sq8,
            cool: Encoding::Pq16,
            cold: Encoding::Bq,
            promote_hits: 3,
            residence_h: 1.0,
            least_rows: 1_000,
            check_s: 3_600,
        }
    }
}

impl TierPolicy {
    /// What walks compare in a tier; `hot` is what the column is configured with.
    pub fn encoding(&self, tier: Tier, hot: Encoding) -> Encoding {
        match tier {
            Tier::Hot => hot,
            Tier::Warm => self.warm,
            Tier::Cool => self.cool,
            Tier::Cold => self.cold,
        }
    }

    /// The tier of a row that nobody has found for so many minutes.
    pub fn by_age(&self, minutes: u32) -> Tier {
        let hours = f64::from(minutes) / 60.0;
        let after = [self.warm_after_h, self.cool_after_h, self.cold_after_h];
        Tier::ALL[after.iter().filter(|&&after| hours >= after).count()]
    }

    /// What is wrong with it, if anything.
    pub fn refuse(&self) -> Option<String> {
        let hours = [self.warm_after_h, self.cool_after_h, self.cold_after_h];
        if !hours.is_sorted() || hours.iter().chain([&self.residence_h]).any(|hours| !(0.0..=1e6).contains(hours)) {
            return Some("hours are 0 to 1000000, and warm_after_h <= cool_after_h <= cold_after_h".into());
        }
        if self.promote_hits == 0 || self.least_rows == 0 || self.check_s == 0 {
            return Some("promote_hits, least_rows and check_s are at least 1".into());
        }
        None
    }
}
