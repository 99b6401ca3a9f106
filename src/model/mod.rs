//! Values everyone talks about: no I/O, locks or async.

pub mod pgtype;

mod change;
mod collection;
mod filter;
mod key;
mod lsn;
mod metric;
mod relation;
mod search;
mod sparse;
mod spec;
mod value;

pub use change::{Change, CollectionId, LogRecord, Op, PageRange, RowImage, TransactionHead};
pub use collection::{CollectionDef, FilterColumn, MAX_COLUMNS, VectorColumn, quote_ident, quote_literal};
pub use filter::{Comparison, Filter};
pub use key::{KeyColumn, RowKey};
pub use lsn::{BadLsn, CommitLsn, Lsn, Version};
pub use metric::Metric;
pub use relation::{Relation, RelationColumn};
pub use search::{
    Answer, Candidate, Consistency, Hit, MAX_EF, MAX_LIMIT, Recheck, RecheckReport, SearchBy, SearchRequest,
    SearchStats,
};
pub use sparse::{MAX_NONZERO, MAX_SPARSE_DIMENSIONS, SparseVector};
pub use spec::{CollectionSpec, VectorSpec};
pub use value::{Cell, ColumnType, MAX_BITS, MAX_DIMENSIONS, Value};
