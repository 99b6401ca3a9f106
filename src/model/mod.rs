//! Values everyone talks about: no I/O, locks or async.

pub mod pgtype;
pub mod registration;

mod change;
mod collection;
mod embedding;
mod encoding;
mod filter;
mod index_kind;
mod key;
mod listing;
mod lsn;
mod metric;
mod nearest;
mod place;
mod relation;
mod search;
mod sparse;
mod spec;
mod tier;
mod value;

pub use change::{Change, CollectionId, LogRecord, Op, PageRange, RowImage, TransactionHead};
pub use collection::{CollectionDef, FilterColumn, MAX_COLUMNS, VectorColumn, quote_ident, quote_literal};
pub use embedding::Embedding;
pub use encoding::Encoding;
pub use filter::{Comparison, Filter};
pub use index_kind::IndexKind;
pub use key::{KeyColumn, RowKey};
pub use listing::{
    AsOf, CountRequest, Facet, FacetRequest, Facets, Listed, Page, RecallReport, RecallRequest, RowRequest,
    ScrollRequest,
};
pub use lsn::{BadLsn, CommitLsn, Lsn, Version};
pub use metric::Metric;
pub use nearest::nearest;
pub use place::{Place, nearer};
pub use relation::{Relation, RelationColumn};
pub use search::{
    Answer, Candidate, Consistency, Ended, Exactness, Example, Explain, ExplainSegment, Group, GroupBy, Hit, MAX_BATCH,
    MAX_BATCH_ROWS, MAX_EF, MAX_EXAMPLES, MAX_GROUP_SIZE, MAX_LIMIT, MAX_MMR_CANDIDATES, Mmr, Recheck, RecheckReport,
    SearchBy, SearchRequest, SearchStats, Shape, Timings, Viewer,
};
pub use sparse::{MAX_NONZERO, MAX_SPARSE_DIMENSIONS, SparseVector};
pub use spec::{CollectionSpec, VectorSpec, by_name};
pub use tier::{Tier, TierPolicy};
pub use value::{Cell, ColumnType, MAX_BITS, MAX_DIMENSIONS, Value};
