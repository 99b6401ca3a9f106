//! Requests that a web page makes its visitor's browser send: to a service that only this machine reaches, or that asks for
//! nothing but the browser's certificate, they look like its own. Browsers say whose they are, and that is looked at here.

use crate::server::http::Shared;
use crate::server::problem::{self, Problem};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;

/// The layer.
pub async fn layer(State(app): Shared, request: Request, next: Next) -> Response {
    let open = app.options.loopback && !app.options.access.are_needed();
    let hosts = open.then_some(&app.options.hosts[..]);
    match check(request.method(), request.headers(), hosts) {
        Ok(()) => next.run(request).await,
        Err(detail) => {
            tracing::debug!(detail, "a request of another site was refused");
            Problem::new(problem::CROSS_SITE, detail)
                .hint("call the service by its address, and from programs or its own page only")
                .into_response()
        }
    }
}

/// Why this is not answered, if so. `hosts`: whoever reaches the service is answered, and that is only this machine and whoever
/// is behind these names.
fn check(method: &Method, headers: &HeaderMap, hosts: Option<&[String]>) -> Result<(), String> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text("host").unwrap_or_default();
    // A name that somebody points at this machine makes his page one of ours.
    let foreign =
        |hosts: &[String]| !is_of_this_machine(host) && !hosts.iter().any(|name| name.eq_ignore_ascii_case(host));
    if headers.contains_key(header::HOST) && hosts.is_some_and(foreign) {
        return Err(format!("the request is for host {host:?}, and without keys only this machine is answered"));
    }
    if method.is_safe() {
        return Ok(());
    }
    match (text("sec-fetch-site"), text("origin")) {
        // Browsers only say so, and pages cannot.
        (Some("same-origin" | "none"), _) => Ok(()),
        (Some(site), _) => Err(format!("a page of another site sent it (Sec-Fetch-Site: {site})")),
        (None, Some(origin)) if authority(origin).is_none_or(|ours| !ours.eq_ignore_ascii_case(host)) => {
            Err(format!("a page of {origin} sent it"))
        }
        _ => Ok(()),
    }
}

/// Host and port of an origin.
fn authority(origin: &str) -> Option<&str> {
    origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))
}

/// An address, or a name that no name server is asked for.
fn is_of_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn refused(method: Method, headers: &[(&str, &str)], open: bool) -> bool {
        let hosts = ["search.internal".to_owned()];
        let pair = |(name, value): &(&str, &str)| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            (name, HeaderValue::from_str(value).expect("a value"))
        };
        check(&method, &headers.iter().map(pair).collect(), open.then_some(&hosts[..])).is_err()
    }

    #[test]
    fn what_another_site_has_a_browser_send_is_refused() {
        let host = ("host", "127.0.0.1:8480");
        for (headers, wanted) in [
            (&[host][..], false),
            (&[host, ("origin", "http://127.0.0.1:8480")], false),
            (&[host, ("origin", "https://127.0.0.1:8480")], false),
            (&[host, ("origin", "http://127.0.0.1:3000")], true),
            (&[host, ("origin", "http://evil.example")], true),
            (&[host, ("origin", "null")], true),
            (&[("origin", "http://evil.example")], true),
            (&[host, ("sec-fetch-site", "cross-site")], true),
            (&[host, ("sec-fetch-site", "same-site")], true),
            (&[host, ("sec-fetch-site", "none")], false),
            // Behind a proxy that gives the host another name.
            (&[host, ("sec-fetch-site", "same-origin"), ("origin", "https://search.example")], false),
        ] {
            assert_eq!(refused(Method::POST, headers, false), wanted, "{headers:?}");
            assert!(!refused(Method::GET, headers, false), "what changes nothing is no matter: {headers:?}");
        }
    }

    #[test]
    fn without_keys_no_name_but_this_machines_own_is_answered() {
        for (host, ours) in [
            ("127.0.0.1", true),
            ("127.0.0.1:8480", true),
            ("[::1]:8480", true),
            ("localhost:8480", true),
            ("LOCALHOST", true),
            ("search.localhost", true),
            ("Search.internal", true),
            ("search.internal.evil.example", false),
            ("evil.example:8480", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            for method in [Method::GET, Method::POST] {
                assert_eq!(refused(method.clone(), &[("host", host)], true), !ours, "{host}");
                assert!(!refused(method, &[("host", host)], false), "with keys: {host}");
            }
        }
        assert!(!refused(Method::GET, &[], true), "no browser leaves it out");
    }
}
