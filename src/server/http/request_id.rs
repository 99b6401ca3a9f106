//! What a request is called: in its answer, in its problem, in the log.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name that is taken over.
const LONGEST: usize = 128;

tokio::task_local! {
    static NAME: String;
}

/// The name of the request that is worked on.
pub fn current() -> Option<String> {
    NAME.try_with(String::clone).ok()
}

/// Takes over the client's name for its request, or makes one, and says it in the answer.
pub async fn layer(request: Request, next: Next) -> Response {
    let name = given(request.headers()).unwrap_or_else(fresh);
    let span = tracing::error_span!("request", id = %name);
    let value = HeaderValue::from_str(&name);
    let mut response = NAME.scope(name, next.run(request)).instrument(span).await;
    if let Ok(value) = value {
        response.headers_mut().insert(HEADER, value);
    }
    response
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
