//! The one table of routes: method, path, what one must be allowed to, who answers, with what. The router and the document
//! that describes it (`GET /openapi.json`, `GET /docs`) are made of it and of nothing else, so there is no route without a
//! line here.

use crate::server::http::access::Scope;
use crate::server::http::openapi::{self, Document};
use crate::server::http::{
    App, answers, collections, listing, page, pages, position, probes, recall, rows, search, snapshot, status,
};
use crate::server::problem::{self as p, Kind};
use axum::Router;
use axum::routing::{self, MethodRouter};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use std::sync::{Arc, LazyLock};

/// The schema of a type, which comes to stand among the generator's definitions.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// The body that a route takes.
pub struct Takes {
    /// Its schema.
    pub schema: SchemaOf,
    /// A body that works, but for names and keys.
    pub example: &'static str,
}

/// One kind of success.
pub struct Gives {
    /// HTTP status.
    pub status: u16,
    /// Its form.
    pub media: &'static str,
    /// Of JSON; the others are text.
    pub schema: Option<SchemaOf>,
    /// What it is, where it is not its schema that says so.
    pub what: &'static str,
}

/// A row of the table.
pub struct Route {
    /// `get` or `post`.
    pub method: &'static str,
    /// As axum writes it. `{name}` under `/v1/` is a collection.
    pub path: &'static str,
    /// What one must be allowed to; none: it answers anybody.
    pub need: Option<Scope>,
    /// May those come here who are confined to rows by a filter? Then the handler sees to it that nothing of other rows is
    /// shown.
    pub confined: bool,
    /// What it is for.
    pub summary: &'static str,
    /// What can stand behind the question mark: the fields of this type.
    pub asks: Option<SchemaOf>,
    /// The body, where there is one.
    pub takes: Option<Takes>,
    /// What it answers with where all is well.
    pub gives: Vec<Gives>,
    /// What else it can answer with.
    pub problems: Vec<&'static Kind>,
    handler: MethodRouter<Arc<App>>,
}

impl Route {
    fn new(method: &'static str, path: &'static str, handler: MethodRouter<Arc<App>>, summary: &'static str) -> Route {
        let (need, confined) = (Some(Scope::Read), false);
        let (asks, takes, gives, problems) = (None, None, Vec::new(), Vec::new());
        Route { method, path, need, confined, summary, asks, takes, gives, problems, handler }
    }

    fn needs(self, scope: Scope) -> Route {
        Route { need: Some(scope), ..self }
    }

    /// It answers anybody.
    fn open(self) -> Route {
        Route { need: None, confined: true, ..self }
    }

    /// Its handler shows nothing of rows that are not for whoever asks.
    fn confined(self) -> Route {
        Route { confined: true, ..self }
    }

    fn asks<T: JsonSchema>(self) -> Route {
        Route { asks: Some(T::json_schema), ..self }.fails(&[p::MALFORMED])
    }

    fn takes<T: JsonSchema>(self, example: &'static str) -> Route {
        Route { takes: Some(Takes { schema: named::<T>, example }), ..self }.fails(&[
            p::MALFORMED,
            p::UNKNOWN_FIELD,
            p::TOO_LARGE,
            p::SLOW_BODY,
            p::OVERLOADED,
        ])
    }

    fn gives_with<T: JsonSchema>(mut self, status: u16, what: &'static str) -> Route {
        self.gives.push(Gives { status, media: "application/json", schema: Some(named::<T>), what });
        self
    }

    fn gives<T: JsonSchema>(self) -> Route {
        self.gives_with::<T>(200, "")
    }

    fn text(mut self, media: &'static str, what: &'static str) -> Route {
        self.gives.push(Gives { status: 200, media, schema: None, what });
        self
    }

    fn fails(mut self, kinds: &[&'static Kind]) -> Route {
        self.problems.extend_from_slice(kinds);
        self
    }

    /// It is about a collection.
    fn of_collection(self) -> Route {
        self.fails(&[p::MALFORMED, p::UNKNOWN_COLLECTION, p::NOT_LOADED, p::COPYING, p::UNFIT, p::INTERNAL])
    }

    /// It waits for a position, and for a turn.
    fn waits(self) -> Route {
        self.fails(&[p::BAD_LSN, p::TIMED_OUT, p::TOO_OLD, p::PAUSED, p::OVERLOADED])
    }

    /// It asks the source.
    fn asks_the_source(self) -> Route {
        self.fails(&[p::SOURCE_UNAVAILABLE, p::SOURCE_REFUSED])
    }

    /// It asks the source, with others' eyes where that is wanted.
    fn rechecks(self) -> Route {
        self.asks_the_source().fails(&[p::VIEWER])
    }

    /// What the layers around it can answer with.
    fn behind_the_layers(self) -> Route {
        let keys: &[_] = &[p::UNAUTHENTICATED, p::BAD_CREDENTIALS, p::FORBIDDEN, p::RATE];
        let filters = self.confined && self.path.contains("{name}");
        let mut route = self.fails(&[p::CROSS_SITE]);
        if route.need.is_some() {
            route = route.fails(keys).fails(if filters { &[p::UNFIT_FILTER] } else { &[] });
        }
        match route.need {
            Some(Scope::Admin) => route,
            _ => route.fails(&[p::TIME_LIMIT]),
        }
    }
}

fn named<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn get<H: axum::handler::Handler<T, Arc<App>>, T: 'static>(
    path: &'static str,
    handler: H,
    summary: &'static str,
) -> Route {
    Route::new("get", path, routing::get(handler), summary)
}

fn post<H: axum::handler::Handler<T, Arc<App>>, T: 'static>(
    path: &'static str,
    handler: H,
    summary: &'static str,
) -> Route {
    Route::new("post", path, routing::post(handler), summary)
}

/// What can be wrong with a search alone.
const OF_SEARCHES: [&Kind; 16] = [
    p::DIMENSIONS,
    p::NOT_FINITE,
    p::LIMIT,
    p::SEARCH_WIDTH,
    p::FILTER,
    p::UNKNOWN_COLUMN,
    p::BAD_ID,
    p::NO_ROW,
    p::NO_VECTOR,
    p::EXAMPLES,
    p::GROUPS,
    p::DIVERSITY,
    p::BATCH,
    p::DISTANCE,
    p::CURSOR,
    p::OUTSIDE,
];

/// The whole table.
pub static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let all = of_collections().into_iter().chain(of_rows()).chain(of_admins()).chain(of_the_service());
    all.map(Route::behind_the_layers).collect()
});

fn of_collections() -> Vec<Route> {
    vec![
        get("/v1/collections", collections::list, "All collections")
            .confined()
            .gives::<collections::Collections>()
            .fails(&[p::NOT_LOADED]),
        get("/v1/collections/{name}", collections::show, "A collection: state, rows, progress, memory")
            .confined()
            .gives::<collections::Known>()
            .of_collection(),
        get(
            "/v1/collections/{name}/dead_letters",
            collections::dead_letters,
            "Rows that could not be indexed, and why",
        )
        .gives::<collections::DeadLetters>()
        .of_collection(),
        post("/v1/collections/{name}/recall", recall::recall, "How much of the nearest rows is found, measured now")
            .takes::<recall::Body>(r#"{"sample": 100, "limit": 10}"#)
            .gives::<crate::model::RecallReport>()
            .of_collection()
            .waits()
            .fails(&[p::DIMENSIONS, p::NOT_FINITE, p::SEARCH_WIDTH, p::FILTER, p::UNKNOWN_COLUMN])
            .fails(&[p::RECALL, p::OUTSIDE]),
        get("/v1/lsn", position::lsn, "The positions, once the one asked for is applied")
            .confined()
            .asks::<search::Freshness>()
            .gives::<position::Reached>()
            .fails(&[p::BAD_LSN, p::NOT_LOADED, p::TIMED_OUT, p::TOO_OLD]),
    ]
}

/// What shows rows, or counts them.
fn of_rows() -> Vec<Route> {
    let all = vec![
        post("/v1/collections/{name}/search", search::search, "Search, of every kind, or a batch of searches")
            .takes::<search::Body>(r#"{"query": {"id": 42}, "limit": 5, "filter": "section = $1", "params": ["libs"]}"#)
            .gives::<answers::Replied>()
            .rechecks()
            .fails(&OF_SEARCHES),
        post("/v1/collections/{name}/scroll", listing::scroll, "Rows in the order of their keys, page by page")
            .takes::<listing::Scroll>(r#"{"filter": "section = 'libs'", "limit": 100}"#)
            .gives::<listing::Rows>()
            .rechecks()
            .fails(&[p::LIMIT, p::FILTER, p::UNKNOWN_COLUMN, p::BAD_ID]),
        post("/v1/collections/{name}/count", listing::count, "The number of rows")
            .takes::<listing::Count>(r#"{"filter": {"section": "libs"}}"#)
            .gives::<listing::Counted>()
            .fails(&[p::FILTER]),
        post("/v1/collections/{name}/facet", listing::facet, "The number of rows by the values of a column")
            .takes::<listing::ByValue>(r#"{"column": "section", "limit": 10}"#)
            .gives::<listing::Counts>()
            .fails(&[p::LIMIT, p::FILTER, p::UNKNOWN_COLUMN, p::FACET]),
        get("/v1/collections/{name}/rows/{key}", rows::row, "One row")
            .asks::<rows::Wanted>()
            .gives::<rows::One>()
            .rechecks()
            .fails(&[p::UNKNOWN_COLUMN, p::BAD_ID, p::NO_ROW]),
    ];
    all.into_iter().map(|route| route.of_collection().waits().confined()).collect()
}

fn of_admins() -> Vec<Route> {
    let all = vec![
        post("/v1/admin/collections/{name}/verify", collections::verify, "Index against table, row by row")
            .gives::<crate::consistency::verify::Report>()
            .asks_the_source()
            .fails(&[p::TIMED_OUT]),
        post("/v1/admin/collections/{name}/rebuild", collections::rebuild, "A new copy, beside what answers")
            .gives_with::<collections::Accepted>(202, "it is asked for"),
        post(
            "/v1/admin/collections/{name}/compact",
            collections::compact,
            "Its segments are merged, in the background",
        )
        .gives_with::<collections::Accepted>(202, "it is asked for"),
        post("/v1/admin/collections/{name}/promote", collections::promote, "A row becomes hot")
            .takes::<collections::Promoted>(r#"{"id": 42}"#)
            .gives_with::<collections::Promotion>(202, "it is counted")
            .fails(&[p::BAD_ID]),
    ];
    let of_all = post("/v1/admin/snapshots", snapshot::make, "What answers, as files in a directory of its machine")
        .takes::<snapshot::Body>(r#"{"to": "/var/backups/ruvector/monday", "retain_s": 0}"#)
        .gives::<snapshot::Made>()
        .fails(&[p::SNAPSHOT, p::COPYING, p::INTERNAL]);
    let all = all.into_iter().map(Route::of_collection).chain([of_all]);
    all.map(|route| route.needs(Scope::Admin)).collect()
}

fn of_the_service() -> Vec<Route> {
    let open = vec![
        get("/", page::page, "What the service does, and a search box").text("text/html", "a page"),
        get("/dashboard", page::page, "The same page").text("text/html", "a page"),
        get("/livez", probes::livez, "It is alive").text("text/plain", "`ok`"),
        get("/readyz", probes::readyz, "Can searches be answered from what follows the source?")
            .gives::<probes::Readiness>()
            .gives_with::<probes::Readiness>(503, "they cannot"),
        get("/version", probes::version, "Who answers").gives::<probes::Version>(),
        get("/openapi.json", pages::openapi, "This document").text("application/json", "OpenAPI 3.1"),
        get("/docs", pages::docs, "This document, for people").text("text/html", "a page"),
        get("/errors/{code}", pages::error, "What the code of an error means")
            .gives::<pages::Meaning>()
            .text("text/html", "the same for people, where the client prefers that")
            .fails(&[p::UNKNOWN_ROUTE, p::MALFORMED]),
    ];
    let of_operators = vec![
        get("/v1/status", status::status, "Positions, replication, slots, findings, what is not ready")
            .gives::<status::Status>(),
        get("/metrics", probes::metrics, "Figures").text("text/plain", "in Prometheus' text format"),
    ];
    let open = open.into_iter().map(Route::open);
    open.chain(of_operators.into_iter().map(|route| route.needs(Scope::Metrics))).collect()
}

/// The row of a path as the router matched it.
pub fn of(path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| route.path == path)
}

/// The router of the whole table, or of all but `/v1/admin/`.
pub fn router(admin: bool) -> Router<Arc<App>> {
    let here = ROUTES.iter().filter(|route| admin || route.need != Some(Scope::Admin));
    here.fold(Router::new(), |router, route| router.route(route.path, route.handler.clone()))
}

/// The document of the whole table.
pub fn document() -> Document {
    openapi::document(&ROUTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_route_is_made_elsewhere() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server/http");
        for entry in dir.read_dir().expect("the folder") {
            let path = entry.expect("an entry").path();
            let elsewhere = path.is_file() && !path.ends_with("routes.rs");
            let text = if elsewhere { std::fs::read_to_string(&path).expect("text") } else { String::new() };
            for call in [".route(", ".nest(", ".merge(", ".route_service(", ".nest_service("] {
                assert!(!text.contains(call), "{}: a route beside the table", path.display());
            }
        }
    }

    #[test]
    fn what_a_path_says_is_what_it_needs() {
        for route in ROUTES.iter() {
            let admin = route.need == Some(Scope::Admin);
            assert_eq!(route.path.starts_with("/v1/admin/"), admin, "{}", route.path);
            assert!(route.need.is_some() || !route.path.starts_with("/v1/"), "{} answers anybody", route.path);
            let read = route.need.is_none_or(|need| need == Scope::Read);
            assert!(read || !route.confined, "{}", route.path);
            assert_eq!(of(route.path).map(|found| found.path), Some(route.path));
        }
        assert!(of("/v1/else").is_none());
    }
}
