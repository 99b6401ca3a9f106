//! The one table of errors: code, HTTP status, SQLSTATE, title, what to do. Every error any surface shows is in it.

use crate::consistency::frontier::NoView;
use crate::consistency::verify::VerifyError;
use crate::model::Lsn;
use crate::query::QueryError;
use crate::query::filter::FilterError;
use crate::source::SourceError;
use crate::source::policy::Policy;
use serde::Serialize;
use serde::ser::SerializeMap;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Stable code.
    pub code: &'static str,
    /// HTTP status.
    pub status: u16,
    /// SQLSTATE on the wire endpoint.
    pub sqlstate: &'static str,
    /// What it is.
    pub title: &'static str,
    /// May the same request work later?
    pub retryable: bool,
    /// What to do, where the one error does not say more.
    pub hint: &'static str,
}

macro_rules! kinds {
    ($($constant:ident = $code:literal, $status:literal, $sqlstate:literal, $retryable:literal, $title:literal, $hint:literal;)+) => {
        $(#[doc = $title] pub const $constant: &Kind =
            &Kind { code: $code, status: $status, sqlstate: $sqlstate, title: $title, retryable: $retryable, hint: $hint };)+
        /// The whole table.
        pub const ALL: &[&Kind] = &[$($constant),+];
    };
}

kinds! {
    MALFORMED = "RV1001", 400, "22023", false, "The request is not understood",
        "detail says which field is missing or of a wrong type; docs/search.md has the forms";
    UNKNOWN_FIELD = "RV1002", 400, "22023", false, "The request has a field that does not exist",
        "a misspelt field: what is not known is refused rather than ignored; docs/search.md has all fields";
    DIMENSIONS = "RV1003", 400, "22000", false, "The vector has the wrong number of dimensions",
        "embed the query with the model that made the column; GET /v1/collections/{name} says how many dimensions it has";
    NOT_FINITE = "RV1004", 400, "22003", false, "The vector has an element that is not a finite number",
        "replace NaN, infinities and numbers beyond the range of the column's type in the query";
    LIMIT = "RV1005", 400, "22023", false, "The limit is out of range",
        "ask for 1 to 10,000 rows; for more of them send `next` of an answer as `after`";
    SEARCH_WIDTH = "RV1006", 400, "22023", false, "The search width is out of range",
        "search.ef is 1 to 100,000; leave it out for search.default_ef of the configuration";
    FILTER = "RV1007", 400, "42601", false, "The filter is not understood",
        "position or path says where; only columns of the collection's filter_columns and the operators in docs/search.md are taken";
    UNKNOWN_COLUMN = "RV1008", 400, "42703", false, "There is no such column",
        "names are taken literally; with a recheck any column of the table can be shown, without it only filter columns";
    BAD_ID = "RV1009", 400, "22P02", false, "The id does not fit the collection's key",
        "a key is a JSON value of the key's type, for a key of several columns an object with all of them";
    BAD_LSN = "RV1010", 400, "22P02", false, "The LSN is not understood",
        "an LSN is written as pg_current_wal_lsn() prints it, as text: \"16/B374D848\"";
    NO_ROW = "RV1011", 404, "P0002", false, "There is no such row",
        "the row is not in the index; if it was just written, give its LSN as consistency.at_least";
    NO_VECTOR = "RV1012", 422, "P0002", false, "The row has no usable vector",
        "its vector is NULL, or it is a dead letter: GET /v1/collections/{name}/dead_letters says why";
    EXAMPLES = "RV1021", 400, "22023", false, "The examples give nothing to search by",
        "recommend.positive needs an example, and examples must not cancel each other out";
    GROUPS = "RV1022", 400, "22023", false, "The groups asked for cannot be made",
        "ask for fewer groups or fewer rows in each; group_by and mmr exclude each other";
    DIVERSITY = "RV1023", 400, "22023", false, "The diversity asked for is out of range",
        "lambda is 0 to 1, candidates at least the limit and at most 1,000";
    BATCH = "RV1024", 400, "22023", false, "The batch has too many searches, or none",
        "send 1 to 256 searches, and several requests for more";
    DISTANCE = "RV1025", 400, "22003", false, "The distance is not a finite number",
        "max_distance is a finite number; leave it out for no bound";
    VIEWER = "RV1026", 403, "42501", false, "The recheck may not be done with this role or setting",
        "list it in search.recheck_roles or search.recheck_settings, and GRANT the role to the service's own; it needs SELECT on the table";
    CURSOR = "RV1027", 400, "22023", false, "The cursor does not belong to this request",
        "send `next` of an answer as `after`, in the same request but for limit, columns and consistency";
    FACET = "RV1028", 400, "54000", false, "The column has too many different values",
        "facets are for columns with few values: narrow the filter, or count one value with count";
    RECALL = "RV1029", 400, "22023", false, "The recall cannot be measured as asked",
        "ask for fewer queries or rows, or for a column whose vectors can be compared; docs/search.md has the bounds";
    OUTSIDE = "RV1013", 400, "22003", false, "The metric has no distance from the vector",
        "the metric is not defined there, as Poincaré distance outside of the unit ball: check metric and model";
    UNKNOWN_COLLECTION = "RV1101", 404, "42P01", false, "There is no such collection",
        "GET /v1/collections lists them; a name that is not given in the configuration is schema.table";
    UNKNOWN_ROUTE = "RV1102", 404, "42P01", false, "There is no such route",
        "GET /docs lists the routes";
    METHOD = "RV1103", 405, "0A000", false, "The route does not take this method",
        "GET /docs lists the routes with their methods";
    SLOW_BODY = "RV1105", 408, "57014", true, "The request did not arrive in time",
        "a slow network or a client that stalls: send the body at once, or raise http.body_timeout_s";
    TOO_LARGE = "RV1104", 413, "54000", false, "The request is too large",
        "send less, or raise http.max_body_bytes";
    COPYING = "RV1201", 503, "57P03", true, "The collection is being copied",
        "wait: GET /v1/collections and the page show how far the copy is";
    PAUSED = "RV1202", 503, "55000", false, "The collection does not follow its table",
        "the reason is in detail: make the table fit again, or change the collection and send SIGHUP; it is copied again by itself. Without at_least it answers, marked stale";
    TIMED_OUT = "RV1203", 503, "57014", true, "The position asked for was not reached in time",
        "the index is behind, see docs/troubleshooting.md#answers-are-old; or wait longer by consistency.timeout_ms";
    SOURCE_UNAVAILABLE = "RV1204", 503, "08006", true, "The source cannot be asked",
        "the recheck cannot reach the source: try again, or ask with \"recheck\": \"none\"; see docs/troubleshooting.md#the-source-is-away";
    NOT_LOADED = "RV1205", 503, "57P03", true, "No data is loaded yet",
        "it is starting or making the first copy: GET /v1/status says under replication what it does";
    SOURCE_REFUSED = "RV1206", 502, "38000", false, "The source refused what was asked of it",
        "the source's own error is in detail: usually a missing GRANT SELECT, or row security that refuses";
    UNSUPPORTED = "RV1401", 400, "0A000", false, "This form of SQL is not taken",
        "docs/sql.md has the statements that are taken; let the source do the rest around a foreign table";
    SYNTAX = "RV1402", 400, "42601", false, "The statement is no SQL",
        "the position is in the message, where it is known; the text is no SQL for any PostgreSQL";
    MISSING_INPUT = "RV1403", 400, "HV000", false, "An input of the table is not given",
        "the foreign table search needs a query in its WHERE clause: docs/sql.md";
    BAD_PARAMETER = "RV1404", 400, "22P03", false, "A parameter is not understood",
        "the parameter's text or binary form does not fit its type: check what the driver sends";
    NO_STATEMENT = "RV1405", 400, "26000", false, "There is no prepared statement of this name",
        "prepare it in this session first; poolers in statement mode lose prepared statements";
    NO_CURSOR = "RV1406", 400, "34000", false, "There is no cursor of this name",
        "declare it in this transaction first; it may have been closed with its transaction";
    CURSOR_EXISTS = "RV1407", 400, "42P03", false, "There is a cursor of this name already",
        "close the cursor, or choose another name";
    NO_TRANSACTION = "RV1408", 400, "25P01", false, "There is no transaction",
        "BEGIN first: cursors and savepoints live in transactions";
    TRANSACTION_FAILED = "RV1409", 400, "25P02", false, "The transaction has failed",
        "ROLLBACK, or ROLLBACK TO a savepoint, as with any PostgreSQL";
    NO_SAVEPOINT = "RV1410", 400, "3B001", false, "There is no savepoint of this name",
        "the savepoint was released, rolled back past, or never made";
    CANCELLED = "RV1411", 400, "57014", false, "The statement was cancelled",
        "somebody asked for it, or sql.statement_timeout_ms or the session's statement_timeout passed";
    BAD_SETTING = "RV1412", 400, "22023", false, "The setting has no such value",
        "SHOW tells the present value; docs/sql.md lists the settings";
    PROTOCOL = "RV1413", 400, "08P01", false, "The message does not belong to the protocol",
        "the client does not speak the protocol in this order: another program on the port, or a driver's bug";
    WRONG_PASSWORD = "RV1414", 401, "28P01", false, "The password is wrong, or there is no such user",
        "check user and password of [sql.users]; the log has no more, on purpose";
    NEEDS_TLS = "RV1415", 403, "28000", false, "The connection is not encrypted",
        "connect with sslmode=require or better, or set sql.require_tls to false on a private network";
    STOPPING = "RV1416", 503, "57P01", true, "The service stops",
        "the service is being stopped: connect again";
    IDLE = "RV1417", 408, "57P05", true, "The session was idle for too long",
        "sql.idle_timeout_s or sql.idle_in_transaction_timeout_s passed: connect again";
    TOO_MANY_ROWS = "RV1418", 400, "54000", false, "The statement needs more memory than one may take",
        "use a cursor, or fewer columns and rows at once";
    STATEMENT_EXISTS = "RV1419", 400, "42P05", false, "There is a prepared statement of this name already",
        "DEALLOCATE it, or choose another name";
    DUPLICATE_TRANSACTION = "RV1420", 400, "25001", false, "There is a transaction already",
        "COMMIT or ROLLBACK the one that is open";
    NOT_ALLOWED = "RV1421", 403, "42501", false, "This may not be read over SQL",
        "the user's `collections` do not name it, or it is not for reading over SQL";
    TOO_COMPLEX = "RV1422", 400, "54001", false, "The statement is too complex",
        "simplify the statement; long lists are better given as an array parameter";
    UNFIT = "RV1207", 503, "55000", true, "The collection is configured and cannot be copied",
        "detail has reason and remedy; the table is looked at every source.reconcile_s, and the copy begins by itself";
    TOO_OLD = "RV1208", 503, "57014", true, "What there is is older than asked for",
        "the source was not heard of for longer than consistency.max_staleness_ms, see docs/troubleshooting.md#answers-are-old; or wait longer by consistency.timeout_ms";
    SNAPSHOT = "RV1211", 409, "55000", false, "The snapshot cannot be made there",
        "name a directory on the service's machine that is not there yet, writable for it, with room, outside of storage.dir; docs/operations.md has the rules";
    OVERLOADED = "RV1301", 503, "53300", true, "Too many requests at once",
        "ask less at once, or raise http.max_concurrent, http.max_waiting or http.max_buffered_mb: docs/http.md says what is refused first; see docs/troubleshooting.md#searches-are-slow";
    UNAUTHENTICATED = "RV1501", 401, "28000", false, "A key or a token is needed",
        "send Authorization: Bearer KEY or api-key: KEY; `ruvector key new` makes one, docs/security.md";
    BAD_CREDENTIALS = "RV1502", 401, "28P01", false, "The key or token is not valid",
        "it is unknown, expired, or not signed by a key of [http.jwt]; after a change of the file send SIGHUP";
    FORBIDDEN = "RV1503", 403, "42501", false, "The key or token is not for this",
        "it lacks a scope or is confined to some rows: see scopes, collections and filter of the key, or the token's claims";
    RATE = "RV1504", 429, "53400", true, "Too many requests of one key or token",
        "wait as long as Retry-After says, or raise requests_per_second of the key";
    TIME_LIMIT = "RV1505", 503, "57014", true, "The request took longer than one may",
        "ask for less, or raise http.request_timeout_s";
    UNFIT_FILTER = "RV1506", 403, "42501", false, "The filter of the key or token does not fit the collection",
        "the forced filter names columns that are not among the collection's filter_columns: correct one of them";
    CROSS_SITE = "RV1507", 403, "42501", false, "A page of another site had it sent",
        "call the service by its address, from a program or its own page: docs/security.md#other-sites";
    INTERNAL = "RV1901", 500, "XX000", false, "Internal error",
        "a bug or a failing disk: the service's log has the cause. Keep the data directory and report it";
}

/// One error as a caller sees it.
#[derive(Debug, Clone)]
pub struct Problem {
    /// What kind of problem.
    pub kind: &'static Kind,
    /// What is wrong with this request.
    pub detail: String,
    /// What to do, if more can be said than [`Kind::hint`] does.
    pub hint: Option<String>,
    /// Where in the filter, from 1.
    pub position: Option<usize>,
    /// Where in a filter that is JSON.
    pub path: Option<String>,
    /// Position of the index, where that matters.
    pub applied_lsn: Option<Lsn>,
}

/// The members of RFC 9457 and ours (`application/problem+json`).
impl Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(None)?;
        members.serialize_entry("type", &format_args!("/errors/{}", self.kind.code))?;
        members.serialize_entry("title", self.kind.title)?;
        members.serialize_entry("status", &self.kind.status)?;
        members.serialize_entry("code", self.kind.code)?;
        members.serialize_entry("detail", &self.detail)?;
        members.serialize_entry("retryable", &self.kind.retryable)?;
        members.serialize_entry("hint", self.what_to_do())?;
        if let Some(position) = self.position {
            members.serialize_entry("position", &position)?;
        }
        if let Some(path) = &self.path {
            members.serialize_entry("path", path)?;
        }
        if let Some(lsn) = self.applied_lsn {
            members.serialize_entry("applied_lsn", &lsn)?;
        }
        members.end()
    }
}

impl Problem {
    /// A problem of this kind.
    pub fn new(kind: &'static Kind, detail: impl Into<String>) -> Problem {
        Problem { kind, detail: detail.into(), hint: None, position: None, path: None, applied_lsn: None }
    }

    /// Its own hint, or that of its kind: there is always one.
    pub fn what_to_do(&self) -> &str {
        self.hint.as_deref().unwrap_or(self.kind.hint)
    }

    /// With what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }
}

impl From<NoView> for Problem {
    fn from(error: NoView) -> Self {
        let detail = error.to_string();
        match error {
            NoView::NotLoaded => {
                Problem::new(NOT_LOADED, detail).hint("GET /v1/status says under `replication` what it is doing")
            }
            NoView::TooOld { .. } => Problem::new(TOO_OLD, detail)
                .hint("raise consistency.max_staleness_ms or consistency.timeout_ms, or see GET /v1/status for what is behind"),
            NoView::TimedOut { applied, .. } => {
                let hint = "raise consistency.timeout_ms, or see GET /v1/status for what is behind";
                Problem { applied_lsn: Some(applied), ..Problem::new(TIMED_OUT, detail).hint(hint) }
            }
        }
    }
}

impl From<SourceError> for Problem {
    fn from(error: SourceError) -> Self {
        let detail = error.to_string();
        match error {
            _ if error.is_transient() => Problem::new(SOURCE_UNAVAILABLE, detail)
                .hint("try again, or ask with \"recheck\": \"none\" for the answer as indexed"),
            // undefined_column: only a caller's `columns` can name one we did not resolve.
            SourceError::Sql { code, message } if code == "42703" => {
                let detail = format!("the source answered: {message} (SQLSTATE {code})");
                Problem::new(UNKNOWN_COLUMN, detail).hint("check `columns`; names are taken literally")
            }
            SourceError::Refused { problem, remedy } => Problem::new(SOURCE_REFUSED, problem).hint(remedy),
            SourceError::Sql { ref code, ref message } => {
                let detail = format!("the source answered: {message} (SQLSTATE {code})");
                let hint = match error.policy() {
                    Policy::Refuse { remedy } => remedy,
                    Policy::Retry | Policy::AskAgain => "see the source's log",
                };
                Problem::new(SOURCE_REFUSED, detail).hint(hint)
            }
            SourceError::Unavailable(_) => Problem::new(SOURCE_REFUSED, detail).hint("see the source's log"),
        }
    }
}

impl From<FilterError> for Problem {
    fn from(error: FilterError) -> Self {
        let FilterError { message, hint, position, path } = error;
        let detail = path.iter().map(|path| format!("filter.{path}: ")).collect::<String>() + &message;
        let (hint, path) = (hint.map(String::from), path.map(String::from));
        Problem { hint, position, path, ..Problem::new(FILTER, detail) }
    }
}

impl From<VerifyError> for Problem {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Source(error) => error.into(),
            VerifyError::Behind(error) => error.into(),
            VerifyError::Storage(error) => Problem::new(INTERNAL, error.to_string()),
        }
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        let detail = error.to_string();
        match error {
            QueryError::UnknownCollection(_) => {
                Problem::new(UNKNOWN_COLLECTION, detail).hint("GET /v1/collections lists them")
            }
            QueryError::Refused { .. } => Problem::new(UNFIT, detail)
                .hint("its table is looked at again every few seconds: once it fits, the copy begins by itself"),
            QueryError::UnknownVector { .. } => Problem::new(UNKNOWN_COLUMN, detail).hint("correct query.using"),
            QueryError::Dimensions { .. } => {
                Problem::new(DIMENSIONS, detail).hint("embed the query with the model that made the column")
            }
            QueryError::Kind { .. } => Problem::new(MALFORMED, detail)
                .hint("a sparsevec is written {1:0.5,3:2}/5, any other vector is not"),
            QueryError::NotFinite { .. } => Problem::new(NOT_FINITE, detail),
            QueryError::Limit(_) => Problem::new(LIMIT, detail),
            QueryError::Ef(_) => Problem::new(SEARCH_WIDTH, detail),
            QueryError::UnknownColumn { .. } => Problem::new(UNKNOWN_COLUMN, detail)
                .hint("with \"recheck\": \"exists\" any column of the table can be shown"),
            QueryError::UnknownGroup { .. } => Problem::new(UNKNOWN_COLUMN, detail)
                .hint("name a column of the collection's filter_columns, or add it there"),
            QueryError::GroupSize { .. } => Problem::new(GROUPS, detail).hint("ask for fewer groups or fewer rows of each"),
            QueryError::GroupsOfDiverse => Problem::new(GROUPS, detail).hint("leave out one of them"),
            QueryError::Lambda(_) => {
                Problem::new(DIVERSITY, detail).hint("1 is nearness alone, 0 difference alone; 0.5 is usual")
            }
            QueryError::MmrCandidates(_) => {
                Problem::new(DIVERSITY, detail).hint("leave it out for four times the limit, at least 50")
            }
            QueryError::Diversity(_) => Problem::new(DIVERSITY, detail).hint("ask for fewer candidates or rows"),
            QueryError::MaxDistance => Problem::new(DISTANCE, detail).hint("leave it out for no bound"),
            QueryError::Examples(_) => Problem::new(EXAMPLES, detail)
                .hint("recommend.positive needs at least one example; examples must not cancel each other out"),
            QueryError::Batch(_) => Problem::new(BATCH, detail).hint("send several requests"),
            QueryError::InBatch { at, error } => {
                let problem = Problem::from(*error);
                Problem { detail: format!("searches[{at}]: {}", problem.detail), ..problem }
            }
            QueryError::Viewer(_) => Problem::new(VIEWER, detail)
                .hint("search.recheck_roles and search.recheck_settings of the service's configuration list what is possible"),
            QueryError::Cursor(_) => Problem::new(CURSOR, detail).hint("leave out `after` to begin with the first page"),
            QueryError::Facet { .. } => Problem::new(FACET, detail).hint("narrow the filter, or ask the source"),
            QueryError::Recall(_) => Problem::new(RECALL, detail).hint("lower `sample`, send fewer `queries`, or a filter"),
            QueryError::NoRow(_) => Problem::new(NO_ROW, detail),
            QueryError::NoVector(_) => {
                Problem::new(NO_VECTOR, detail).hint("its vector is NULL, or GET /v1/collections/{name}/dead_letters says why it cannot be indexed")
            }
            QueryError::Replaced(_) => Problem::new(COPYING, detail).hint("ask again: the new copy answers"),
            QueryError::Copying(_) => Problem::new(COPYING, detail).hint("GET /v1/collections shows its progress"),
            QueryError::Paused { .. } => Problem::new(PAUSED, detail)
                .hint("correct the table, or the collection in the file and send SIGHUP: it is looked at every few seconds, and this collection alone is copied again"),
            QueryError::NoView(error) => error.into(),
            QueryError::Source(error) => error.into(),
            QueryError::Storage(error) => Problem::new(INTERNAL, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let codes: HashSet<_> = ALL.iter().map(|kind| kind.code).collect();
        assert_eq!(codes.len(), ALL.len());
        for kind in ALL {
            assert!(kind.code.len() == 6 && kind.code.starts_with("RV"), "{kind:?}");
            assert!((400..600).contains(&kind.status) && kind.sqlstate.len() == 5, "{kind:?}");
            assert!(!kind.hint.is_empty() && !kind.hint.contains(['|', '\n']), "{kind:?}");
        }
    }
}
