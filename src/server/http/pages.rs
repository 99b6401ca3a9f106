//! What explains the service: the document of its routes, for programs and for people, and what the codes of errors mean.

use crate::server::http::{Name, html, routes};
use crate::server::problem::{self, Kind, Problem};
use axum::Json;
use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use std::sync::LazyLock;

/// As JSON and as a page. They never change.
static DOCUMENT: LazyLock<(Bytes, Bytes)> = LazyLock::new(|| {
    let document = routes::document();
    (Bytes::from(document.to_string()), Bytes::from(html::docs(&document)))
});

/// `GET /openapi.json`
pub async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.0.clone()).into_response()
}

/// `GET /docs`
pub async fn docs() -> Response {
    html::response(DOCUMENT.1.clone())
}

/// What the code of an error means.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ErrorMeaning")]
pub struct Meaning {
    code: &'static str,
    title: &'static str,
    /// HTTP status.
    status: u16,
    /// Over SQL.
    sqlstate: &'static str,
    /// May the same request work later?
    retryable: bool,
    /// What to do, where the answer itself does not say more.
    hint: &'static str,
}

/// `GET /errors/{code}`
pub async fn error(Name(code): Name, headers: HeaderMap) -> Result<Response, Problem> {
    let kind = problem::ALL.iter().find(|kind| kind.code == code);
    let kind = kind.ok_or_else(|| Problem::new(problem::UNKNOWN_ROUTE, format!("there is no error {code}")));
    let kind = kind.map_err(|problem| problem.hint("docs/troubleshooting.md lists the codes: RV and four digits"))?;
    if prefers_html(&headers) {
        return Ok(html::response(html::error(kind).into()));
    }
    let Kind { code, title, status, sqlstate, retryable, hint } = **kind;
    Ok(Json(Meaning { code, title, status, sqlstate, retryable, hint }).into_response())
}

/// Does the client want to be shown a page: does it name HTML, and no form of JSON before it?
fn prefers_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut forms = accepted.flat_map(|value| value.split(',')).filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let form = parts.next()?;
        let refused = parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)));
        (!refused).then_some(form)
    });
    forms.find(|form| form.ends_with("json") || *form == "text/html") == Some("text/html")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_for_those_who_ask_for_them() {
        for (accept, expected) in [
            ("", false),
            ("*/*", false),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("application/json, text/html", false),
            ("application/problem+json", false),
            ("text/html;q=0, */*", false),
            ("image/png, text/html ;q=0.5", true),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().expect("a header"))]);
            assert_eq!(prefers_html(&headers), expected, "{accept}");
        }
        assert!(!prefers_html(&HeaderMap::new()));
    }
}
