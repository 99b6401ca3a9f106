//! Why a search has no answer.

use crate::consistency::frontier::NoView;
use crate::consistency::paging::FillError;
use crate::model::{ColumnType, MAX_EF, MAX_GROUP_SIZE, MAX_LIMIT, MAX_MMR_CANDIDATES};
use crate::source::SourceError;
use crate::storage::StorageError;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// No such collection. Which there are is not for everybody to know.
    #[error("there is no collection {0:?}")]
    UnknownCollection(String),
    /// It is configured, and nothing answers for it.
    #[error("collection {name:?} cannot be copied: {reason}")]
    Refused {
        /// The collection.
        name: String,
        /// Why.
        reason: String,
    },
    /// No such vector column.
    #[error("collection {collection:?} has no vector column {column:?}; it has {known}")]
    UnknownVector {
        /// The collection.
        collection: String,
        /// As asked.
        column: String,
        /// Those there are.
        known: String,
    },
    /// Wrong length.
    #[error("the query has {found} dimensions, {column:?} has {expected}")]
    Dimensions {
        /// The vector column.
        column: String,
        /// As asked.
        found: usize,
        /// As indexed.
        expected: usize,
    },
    /// A sparse vector for a column of others, or the other way round.
    #[error("{column:?} is of type {kind}, and the query vector is not")]
    Kind {
        /// The vector column.
        column: String,
        /// Its type.
        kind: ColumnType,
    },
    /// NaN or an infinity.
    #[error("element {} of the query vector is not a finite number", .at + 1)]
    NotFinite {
        /// Which element, from 0.
        at: usize,
    },
    /// Too many or too few rows asked for.
    #[error("limit is {0}; it must be 1 to {MAX_LIMIT}")]
    Limit(usize),
    /// Too wide or too narrow a search.
    #[error("search.ef is {0}; it must be 1 to {MAX_EF}")]
    Ef(usize),
    /// No such column to show.
    #[error("there is no column {column:?} to show without asking the source; there are {known}")]
    UnknownColumn {
        /// As asked.
        column: String,
        /// Those there are.
        known: String,
    },
    /// No such column to group by.
    #[error("there is no replicated column {column:?} to group by; there are: {known}")]
    UnknownGroup {
        /// As asked.
        column: String,
        /// Those there are.
        known: String,
    },
    /// Groups of no or too many rows.
    #[error("group_size is {size}; it must be 1 to {MAX_GROUP_SIZE}, and limit x group_size at most {MAX_LIMIT}")]
    GroupSize {
        /// As asked.
        size: usize,
    },
    /// Groups of rows that differ are not made.
    #[error("group_by and mmr do not go together")]
    GroupsOfDiverse,
    /// No weight.
    #[error("mmr.lambda is {0}; it must be 0 to 1")]
    Lambda(f64),
    /// Too few or too many candidates.
    #[error("mmr.candidates is {0}; it must be `limit` to {MAX_MMR_CANDIDATES}")]
    MmrCandidates(usize),
    /// Too much to compare.
    #[error("mmr: {0}")]
    Diversity(String),
    /// Not a number.
    #[error("max_distance is not a finite number")]
    MaxDistance,
    /// Nothing to recommend by.
    #[error("{0}")]
    Examples(String),
    /// Too many searches at once, or none.
    #[error("{0}")]
    Batch(String),
    /// One search of a batch cannot be answered.
    #[error("searches[{at}]: {error}")]
    InBatch {
        /// Which, from 0.
        at: usize,
        /// Why.
        error: Box<QueryError>,
    },
    /// Nobody may ask with these eyes.
    #[error("recheck: {0}")]
    Viewer(String),
    /// A place in no order, or in another one.
    #[error("{0}")]
    Cursor(String),
    /// Too many different values to count.
    #[error("column {column:?} has more than {most} different values among the rows that pass")]
    Facet {
        /// The column.
        column: String,
        /// As many are counted.
        most: usize,
    },
    /// Nothing, or too much, to measure.
    #[error("{0}")]
    Recall(String),
    /// The row to search by does not exist.
    #[error("there is no row {0}")]
    NoRow(String),
    /// The row to search by has no vector.
    #[error("row {0} has no usable vector")]
    NoVector(String),
    /// The initial copy is not whole.
    #[error("collection {0:?} is being copied")]
    Copying(String),
    /// Its new copy took its place in the middle of the answer.
    #[error("collection {0:?} was replaced by its new copy meanwhile")]
    Replaced(String),
    /// The collection stopped following its table.
    #[error("collection {name:?} is paused: {reason}")]
    Paused {
        /// The collection.
        name: String,
        /// Why.
        reason: String,
    },
    /// No data, or too old.
    #[error(transparent)]
    NoView(#[from] NoView),
    /// The recheck failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Our files failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<FillError> for QueryError {
    fn from(error: FillError) -> QueryError {
        match error {
            FillError::Source(error) => error.into(),
            FillError::Storage(error) => error.into(),
        }
    }
}
