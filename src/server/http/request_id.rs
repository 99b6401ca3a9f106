//! What a request is called: in its answer, in its problem, in the log.

use crate::telemetry::traces;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;
use tracing::field::Empty;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name that is taken over.
const LONGEST: usize = 128;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What a request is called here, and by those who trace it.
#[derive(Clone)]
struct Names {
    id: String,
    trace: Option<String>,
}

tokio::task_local! {
    static NAMES: Names;
}

/// The name of the request that is worked on.
pub fn current() -> Option<String> {
    NAMES.try_with(|names| names.id.clone()).ok()
}

/// The name of the trace it belongs to: the client's, or one of ours where traces are sent.
pub fn trace() -> Option<String> {
    NAMES.try_with(|names| names.trace.clone()).ok().flatten()
}

/// Takes over the client's name for its request, or makes one, and says it in the answer.
pub async fn layer(request: Request, next: Next) -> Response {
    let id = given(request.headers()).unwrap_or_else(fresh);
    let span = tracing::error_span!("request", %id, trace_id = Empty);
    let parent = request.headers().get(TRACEPARENT).and_then(|value| traces::parent(value.to_str().ok()?));
    let trace = traces::join(&span, parent.as_ref());
    if let Some(trace) = &trace {
        span.record("trace_id", trace.as_str());
    }
    let what = operation(&request);
    let value = HeaderValue::from_str(&id);
    let mut response = NAMES.scope(Names { id, trace }, next.run(request)).instrument(span.clone()).await;
    traces::tell(&span, what, response.status().as_u16());
    if let Ok(value) = value {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

/// Method and route: not the path, of which there are as many as rows.
fn operation(request: &Request) -> (String, String) {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str);
    (request.method().to_string(), route.to_owned())
}

/// Printable and not long: it goes into logs.
fn given(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(HEADER)?.to_str().ok()?;
    let fit = (1..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    fit.then(|| text.to_owned())
}

fn fresh() -> String {
    let mut bytes = [0; 16];
    crate::server::http::keys::fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_stand_in_a_log_is_taken_over() {
        let read = |text: &[u8]| {
            let value = HeaderValue::from_bytes(text).expect("a header");
            given(&HeaderMap::from_iter([(HEADER, value)]))
        };
        assert_eq!(read(b"Root=1-67891233-abcdef"), Some("Root=1-67891233-abcdef".to_owned()));
        assert_eq!(read(&[b'a'; LONGEST]).map(|name| name.len()), Some(LONGEST));
        for bad in [&b""[..], b"a b", b"a\tb", &[b'a'; LONGEST + 1], "\u{e4}".as_bytes(), b"\x80"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(given(&HeaderMap::new()), None);
        assert!(fresh().len() == 32 && fresh() != fresh());
    }
}
