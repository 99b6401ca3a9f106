//! What a transaction did to the collections: the currency between the replication and the engine.

use crate::model::key::RowKey;
use crate::model::lsn::{CommitLsn, Lsn, Version};
use crate::model::value::Cell;

/// Number of a collection inside one epoch of the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct CollectionId(pub u32);

/// The replicated part of a row: only the columns the collection asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct RowImage {
    /// Identity after the change.
    pub key: RowKey,
    /// One per vector column of the collection, in its order.
    pub vectors: Vec<Cell>,
    /// One per filter column of the collection, in its order.
    pub filters: Vec<Cell>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// INSERT or UPDATE: the row is now this. `old_key` when the UPDATE changed the key: `Unchanged` cells then come
    /// from the row with the old key, which is gone afterwards.
    Upsert {
        /// The key before, when it was another.
        old_key: Option<RowKey>,
        /// The row after.
        row: RowImage,
    },
    /// DELETE.
    Delete {
        /// The row that is gone.
        key: RowKey,
    },
    /// TRUNCATE: all rows are gone.
    Truncate,
    /// The table no longer fits the collection (column dropped, type changed): answers would be wrong from here on.
    Drift {
        /// For the operator.
        reason: String,
    },
}

/// One change of one collection.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Whose row it is.
    pub collection: CollectionId,
    /// One-based place in its transaction.
    pub ordinal: u32,
    /// What happened.
    pub op: Op,
}

impl Change {
    /// The version of the row this change writes, inside the transaction `commit`.
    pub fn version(&self, commit: CommitLsn) -> Version {
        Version { commit, ordinal: self.ordinal }
    }
}

/// The head of a transaction; its changes follow in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionHead {
    /// Its name.
    pub commit: CommitLsn,
    /// When it committed: microseconds since 2000-01-01 UTC, by the source's clock.
    pub commit_time: i64,
}

/// Some heap pages of one table, as the copy reads them: `[first, end)`, to the end of the heap when `end` is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// The first page.
    pub first: u32,
    /// The page behind the last one.
    pub end: Option<u32>,
}

/// What the logs hold. The change log has transactions in commit order: `Begin`, any number of `Changes`, `Commit`,
/// nothing between them; a tail without its `Commit` never happened. A copy log has one `CopyStart` per attempt, `Copied`
/// and `RangeCopied` behind it, and one `CopyEnd`.
#[derive(Debug, Clone, PartialEq)]
pub enum LogRecord {
    /// A transaction starts.
    Begin(TransactionHead),
    /// Some of its changes, in order.
    Changes(Vec<Change>),
    /// It is whole. The position moves to `end`.
    Commit {
        /// Where the transaction ended.
        end: Lsn,
    },
    /// Nothing for us up to this position (idle, or other tables only).
    Progress {
        /// The position.
        upto: Lsn,
    },
    /// A copy begins, or goes on after it was interrupted, under a snapshot that shows exactly what is covered by `at`.
    CopyStart {
        /// The consistent point.
        at: Lsn,
        /// The file that holds the table's rows; 0 when it has none of its own. Another one means other pages.
        filenode: u32,
    },
    /// Rows read by the copy, in no order.
    Copied(Vec<RowImage>),
    /// All rows of these pages are in the log, as the last `CopyStart` before saw them.
    RangeCopied(PageRange),
    /// The copy is whole.
    CopyEnd {
        /// The consistent point of its last attempt.
        at: Lsn,
        /// Rows copied.
        rows: u64,
    },
}
