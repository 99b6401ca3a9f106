//! Names of metrics: base units, `_total` for counters, bounded labels. `docs/metrics.md` and `/metrics` derive from here; a test
//! compares.

macro_rules! metric_names {
    ($($(#[doc = $doc:literal])+ $constant:ident = $kind:ident $name:literal;)+) => {
        $($(#[doc = $doc])+ pub const $constant: &str = $name;)+
        /// Every metric: name, kind, meaning.
        pub const ALL: &[(&str, Kind, &str)] = &[$(($name, Kind::$kind, concat!($($doc),+))),+];
    };
}

/// What can come of reading the configuration again.
pub const RELOAD_RESULTS: [&str; 3] = ["taken", "partly", "refused"];

/// What kind of metric it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

metric_names! {
    /// 1, with the version as a label.
    BUILD_INFO = Gauge "ruvector_build_info";
    /// 1 when searches can be answered from what follows the source; single collections are in ruvector_collection_follows.
    READY = Gauge "ruvector_ready";
    /// Upper bound of the age of what searches see, in seconds; about the interval of source.status_interval_ms when caught up.
    STALENESS = Gauge "ruvector_replication_staleness_seconds";
    /// WAL position received from the source, as a number.
    RECEIVED_LSN = Gauge "ruvector_replication_received_lsn_bytes";
    /// WAL position up to which the change log is durable.
    DURABLE_LSN = Gauge "ruvector_replication_durable_lsn_bytes";
    /// WAL position searches see.
    APPLIED_LSN = Gauge "ruvector_replication_applied_lsn_bytes";
    /// WAL position confirmed to the source; never beyond the durable one.
    CONFIRMED_LSN = Gauge "ruvector_replication_confirmed_flush_lsn_bytes";
    /// WAL bytes between the source's end and a stage (label stage: received, durable, applied).
    LAG_BYTES = Gauge "ruvector_replication_lag_bytes";
    /// Seconds since the server that is followed last said where its WAL ends; lag and positions are as old as this.
    HEARD_AGE = Gauge "ruvector_replication_heard_age_seconds";
    /// Transactions received.
    TRANSACTIONS = Counter "ruvector_replication_transactions_total";
    /// Changes received, by op.
    CHANGES_RECEIVED = Counter "ruvector_replication_changes_total";
    /// Bytes of streamed transactions that have not ended (label place: memory, disk).
    SPOOL_BYTES = Gauge "ruvector_replication_spool_bytes";
    /// Changes applied to collections.
    CHANGES_APPLIED = Counter "ruvector_apply_changes_total";
    /// WAL that the source keeps for our slot; where there are two during a new copy, for the one that keeps more.
    SLOT_RETAINED = Gauge "ruvector_source_slot_retained_wal_bytes";
    /// WAL that may still be written before the source may give the slot up; +Inf without max_slot_wal_keep_size.
    SLOT_SAFE = Gauge "ruvector_source_slot_safe_wal_bytes";
    /// 1 for the slot's status (label status: reserved, extended, unreserved, lost, missing), 0 for the others.
    SLOT_STATUS = Gauge "ruvector_source_slot_status";
    /// source.max_retained_wal_mib in bytes; 0 is without limit.
    SLOT_BUDGET = Gauge "ruvector_source_slot_wal_budget_bytes";
    /// The share of that which is spent; at 1 the slot is dropped.
    SLOT_BUDGET_SHARE = Gauge "ruvector_source_slot_wal_budget_ratio";
    /// Seconds since our slots were last measured; what is said of them is as old as this.
    SLOT_MEASURED_AGE = Gauge "ruvector_source_slot_measured_age_seconds";
    /// Slots dropped to protect the source (label budget: bytes or time).
    SLOTS_GIVEN_UP = Counter "ruvector_source_slot_given_up_total";
    /// 1 while this service is the one that may use the slot, 0 while it waits for another.
    SLOT_HELD = Gauge "ruvector_source_slot_held";
    /// Heartbeats written because keepalives did not suffice.
    HEARTBEATS = Counter "ruvector_source_heartbeats_total";
    /// Findings of the doctor that are not ok (labels code and severity).
    DOCTOR_FINDINGS = Gauge "ruvector_doctor_findings";
    /// Connections to the source that had to be made again (label reason).
    RECONNECTS = Counter "ruvector_replication_reconnects_total";
    /// Complete new copies of the source (label reason).
    RESYNCS = Counter "ruvector_replication_resyncs_total";
    /// Copies of single collections begun while the others went on.
    COPIES = Counter "ruvector_replication_collection_copies_total";
    /// Rows read again by key because the stream did not carry a value.
    ROWS_REFETCHED = Counter "ruvector_replication_rows_refetched_total";
    /// Rows that differed from the source in a comparison and were read again.
    ROWS_REPAIRED = Counter "ruvector_replication_rows_repaired_total";
    /// Time to apply one batch and publish its view.
    APPLY_SECONDS = Histogram "ruvector_apply_seconds";
    /// Rows copied by the initial copy.
    COPY_ROWS = Gauge "ruvector_copy_rows";
    /// Rows that the copy will have read, by what it has read so far.
    COPY_ROWS_EXPECTED = Gauge "ruvector_copy_rows_expected";
    /// Seconds until the copy has read everything, at its speed so far.
    COPY_ETA = Gauge "ruvector_copy_eta_seconds";
    /// Searches by collection, plan and code (`ok` or the error's code).
    SEARCHES = Counter "ruvector_search_requests_total";
    /// Time of a search inside the service.
    SEARCH_SECONDS = Histogram "ruvector_search_duration_seconds";
    /// Distances computed by a search.
    SEARCH_VISITED = Histogram "ruvector_search_visited_nodes";
    /// Answers that may be short.
    SEARCH_INCOMPLETE = Counter "ruvector_search_incomplete_total";
    /// Rows dropped because the source does not show them.
    RECHECK_DROPPED = Counter "ruvector_search_recheck_dropped_total";
    /// Round trips of the recheck.
    RECHECK_SECONDS = Histogram "ruvector_search_recheck_seconds";
    /// Searches whose recheck went along with one that was waiting for a connection.
    RECHECK_JOINED = Counter "ruvector_search_recheck_joined_total";
    /// Recall as measured last by a request without a filter (labels collection and column); absent before the first.
    RECALL_ESTIMATE = Gauge "ruvector_recall_estimate";
    /// Time spent waiting for a position.
    LSN_WAIT_SECONDS = Histogram "ruvector_lsn_wait_seconds";
    /// Waits for a position that timed out.
    LSN_WAIT_TIMEOUTS = Counter "ruvector_lsn_wait_timeouts_total";
    /// SQL statements, by code ("ok" where there was an answer).
    SQL_STATEMENTS = Counter "ruvector_sql_statements_total";
    /// SQL sessions.
    SQL_SESSIONS = Gauge "ruvector_sql_sessions";
    /// States of the index that statements, cursors and transactions hold on to; none when nobody asks for anything.
    HELD_VIEWS = Gauge "ruvector_held_views";
    /// Cancellations asked for over SQL.
    SQL_CANCELS = Counter "ruvector_sql_cancel_requests_total";
    /// 1 while a configured collection follows its table, 0 while it is paused or cannot be copied (label collection).
    COLLECTION_FOLLOWS = Gauge "ruvector_collection_follows";
    /// Rows of a collection.
    COLLECTION_ROWS = Gauge "ruvector_collection_rows";
    /// Vectors that can be found.
    INDEX_VECTORS = Gauge "ruvector_index_vectors";
    /// Nodes of a vector column in a tier, dead ones included: `growing`, `hot`, `warm`, `cool`, `cold`, or `none` without
    /// tiers.
    INDEX_TIER_VECTORS = Gauge "ruvector_index_tier_vectors";
    /// Bytes in memory of a tier's codes, links and full vectors.
    INDEX_TIER_BYTES = Gauge "ruvector_index_tier_bytes";
    /// Nodes of the index whose vector is no row's any more.
    INDEX_TOMBSTONES = Gauge "ruvector_index_tombstones";
    /// Bytes of vectors and links in memory.
    INDEX_BYTES = Gauge "ruvector_index_bytes";
    /// Segments of the index.
    INDEX_SEGMENTS = Gauge "ruvector_index_segments";
    /// Vectors written to the index since start.
    GRAPH_WRITES = Counter "ruvector_index_graph_writes_total";
    /// Vectors that could not be indexed now.
    DEAD_LETTERS = Gauge "ruvector_dead_letters";
    /// Rows that differed between index and source in a verification.
    VERIFY_MISMATCHES = Counter "ruvector_verify_mismatches_total";
    /// Times that SIGHUP had the configuration read again (label result: taken; partly, where settings changed that hold from the
    /// next start on only; refused, where nothing of it was taken).
    CONFIG_RELOADS = Counter "ruvector_config_reloads_total";
    /// HTTP requests by route and status.
    HTTP_REQUESTS = Counter "ruvector_http_requests_total";
    /// HTTP requests refused because of too much work, by what was refused: `batch`, `search`, `cheap` (rows, counts), `body` or
    /// `answer` (no memory left for it).
    HTTP_SHED = Counter "ruvector_http_shed_total";
    /// HTTP requests that wait for a turn.
    HTTP_WAITING = Gauge "ruvector_http_waiting_requests";
}
