//! Positions in the source's WAL and names of transactions: two types, so that the compiler refuses to mix them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A position in the WAL: everything that *ended* at or before it. Received, durable, applied and confirmed
/// progress, keepalives and a client's read-your-writes token are positions. A transaction moves a position to its
/// end LSN. Written as Postgres does, `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// No position yet; before everything.
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes from `earlier` to here; zero when `earlier` is ahead.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

/// What is wrong with a text that should be an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an LSN; expected two hexadecimal numbers as in 16/B374D848")]
pub struct BadLsn(pub String);

impl FromStr for Lsn {
    type Err = BadLsn;

    fn from_str(text: &str) -> Result<Self, BadLsn> {
        let bad = || BadLsn(text.chars().take(64).collect());
        let half = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten().ok_or_else(bad)
        };
        let (high, low) = text.trim().split_once('/').ok_or_else(bad)?;
        Ok(Lsn(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl schemars::JsonSchema for Lsn {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Lsn".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A position in the source's WAL, as PostgreSQL writes it.",
            "pattern": "^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$",
            "examples": ["16/B374D848"],
        })
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The name of a transaction: where its commit record *starts*. It orders row versions and nothing else. The next
/// transaction's name may equal the position of the keepalive before it, so the two types are never compared;
/// [`CommitLsn::is_covered_by`] is the only bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CommitLsn(pub u64);

impl CommitLsn {
    /// Is this transaction part of everything that ended at or before `position`? A commit record that starts at the
    /// position has not ended there, so the comparison is strict (PostgreSQL's own rule in `SnapBuildXactNeedsSkip`).
    pub fn is_covered_by(self, position: Lsn) -> bool {
        self.0 < position.0
    }
}

impl fmt::Display for CommitLsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Lsn(self.0).fmt(f)
    }
}

/// The version of a row: the transaction that wrote it and the change's place in that transaction. Newer wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    /// The writing transaction. For copied rows: the consistent point of the copy.
    pub commit: CommitLsn,
    /// One-based place of the change in its transaction; 0 for copied rows, so that every streamed change is newer.
    pub ordinal: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsns_are_written_as_postgres_writes_them() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "0/16B6C50"] {
            assert_eq!(text.parse::<Lsn>().expect(text).to_string(), text);
        }
        for text in ["", "/", "1", "1/", "/1", "g/1", "1/100000000", "+1/1", "1/-1", "1/2/3"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_commit_that_starts_at_the_keepalives_position_is_not_covered() {
        assert!(!CommitLsn(100).is_covered_by(Lsn(100)));
        assert!(CommitLsn(99).is_covered_by(Lsn(100)));
    }
}
