//! The one table of routes: path, what one must be allowed to, who answers. The router is made of it and of nothing else,
//! so there is no route without a line here.

use crate::server::http::access::Scope;
use crate::server::http::{App, collections, listing, page, probes, search};
use axum::Router;
use axum::routing::{MethodRouter, get, post};
use std::sync::Arc;

/// A row of the table.
pub struct Route {
    /// As axum writes it. `{name}` under `/v1/` is a collection.
    pub path: &'static str,
    /// What one must be allowed to; none: it answers anybody.
    pub need: Option<Scope>,
    /// May those come here who are confined to rows by a filter? Then the handler sees to it that nothing of other rows is
    /// shown.
    pub confined: bool,
    handler: fn() -> MethodRouter<Arc<App>>,
}

macro_rules! routes {
    ($($path:literal, $need:expr, $confined:literal, $handler:expr;)+) => {
        &[$(Route { path: $path, need: $need, confined: $confined, handler: || $handler }),+]
    };
}

const READ: Option<Scope> = Some(Scope::Read);
const ADMIN: Option<Scope> = Some(Scope::Admin);
const METRICS: Option<Scope> = Some(Scope::Metrics);

/// The whole table.
pub const ROUTES: &[Route] = routes! {
    "/", None, true, get(page::page);
    "/dashboard", None, true, get(page::page);
    "/v1/collections", READ, true, get(collections::list);
    "/v1/collections/{name}", READ, true, get(collections::show);
    "/v1/collections/{name}/dead_letters", READ, false, get(collections::dead_letters);
    "/v1/collections/{name}/search", READ, true, post(search::search);
    "/v1/collections/{name}/scroll", READ, true, post(listing::scroll);
    "/v1/collections/{name}/count", READ, true, post(listing::count);
    "/v1/admin/collections/{name}/rebuild", ADMIN, false, post(collections::rebuild);
    "/v1/admin/collections/{name}/verify", ADMIN, false, post(collections::verify);
    "/v1/admin/collections/{name}/compact", ADMIN, false, post(collections::compact);
    "/v1/admin/collections/{name}/promote", ADMIN, false, post(collections::promote);
    "/v1/status", METRICS, false, get(probes::status);
    "/metrics", METRICS, false, get(probes::metrics);
    "/errors/{code}", None, true, get(probes::error_page);
    "/livez", None, true, get(probes::livez);
    "/readyz", None, true, get(probes::readyz);
    "/version", None, true, get(probes::version);
};

/// The row of a path as the router matched it.
pub fn of(path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| route.path == path)
}

/// The router of the whole table, or of all but `/v1/admin/`.
pub fn router(admin: bool) -> Router<Arc<App>> {
    let here = ROUTES.iter().filter(|route| admin || route.need != ADMIN);
    here.fold(Router::new(), |router, route| router.route(route.path, (route.handler)()))
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
        for route in ROUTES {
            assert_eq!(route.path.starts_with("/v1/admin/"), route.need == ADMIN, "{}", route.path);
            assert!(route.need.is_some() || !route.path.starts_with("/v1/"), "{} answers anybody", route.path);
            assert!(route.need == READ || route.need.is_none() || !route.confined, "{}", route.path);
            assert_eq!(of(route.path).map(|found| found.path), Some(route.path));
        }
        assert!(of("/v1/else").is_none());
    }
}
