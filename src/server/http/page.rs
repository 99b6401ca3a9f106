//! The page at `/`: one document, put together from the files beside it, that shows what the JSON API says.
//!
//! Nothing of it comes from elsewhere and nothing in it may be run but its own script: the policy names both by their
//! hashes, and has the browser refuse text that is put in as markup.

use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::sync::LazyLock;

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str =
    concat!(include_str!("page/figures.js"), include_str!("page/page.js"), include_str!("page/search.js"));

static PAGE: LazyLock<String> =
    LazyLock::new(|| include_str!("page/index.html").replace("{{style}}", STYLE).replace("{{script}}", SCRIPT));

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        format!("'sha256-{}'", STANDARD.encode(digest))
    };
    let (script, style) = (hash(SCRIPT), hash(STYLE));
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
});

/// `GET /` and `GET /dashboard`
pub async fn page() -> impl IntoResponse {
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, &POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The page belongs to this build; another one may run behind this address tomorrow.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_whole_and_needs_nobody_else() {
        let page = PAGE.as_str();
        assert!(page.len() < 60_000, "{} bytes", page.len());
        assert!(!page.contains("{{") && page.contains(STYLE) && page.contains(SCRIPT));
        let own = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!own.contains("http://") && !own.contains("https://"), "an address of somebody else");
        // A script that ended within its own text would be cut there, and its hash would not fit.
        assert_eq!((page.matches("</script").count(), page.matches("</style").count()), (1, 1));
    }

    #[test]
    fn text_is_never_put_in_as_markup() {
        for word in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "localStorage"]
        {
            assert!(!SCRIPT.contains(word), "{word}");
        }
        let page = include_str!("page/index.html");
        assert!(!page.contains(" style=") && !page.contains(" onclick=") && !page.contains(" onload="), "inline");
    }

    #[test]
    fn metrics_that_the_page_reads_exist() {
        use crate::telemetry::names;
        let words = SCRIPT.split('"').filter(|word| word.starts_with("ruvector_"));
        let names: Vec<_> = words.map(|word| word.trim_end_matches("_bucket")).collect();
        assert!(names.len() >= 9, "{names:?}");
        for name in names {
            assert!(names::ALL.iter().any(|(known, ..)| *known == name), "{name}");
        }
    }
}
