//! Who may do what over HTTP. A layer finds out who asks, checks that the route and the collection are theirs, and hands
//! the [`Principal`] to the handler, which confines it to its rows.

use crate::query::QueryError;
use crate::server::http::jwt::{self, Tokens};
use crate::server::http::keys::{self, Found, Key};
use crate::server::http::rate::{Bucket, Standing};
use crate::server::http::routes::{self, Route};
use crate::server::http::{App, keys::PREFIX};
use crate::server::problem::{self, Problem};
use arc_swap::ArcSwap;
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

/// The header that a key may come in beside `Authorization`.
const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// What somebody may be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Search, scroll, count, list and look at collections.
    Read,
    /// What changes the index: `/v1/admin/`.
    Admin,
    /// Status and metrics of the whole service.
    Metrics,
}

impl Scope {
    /// All of them.
    pub const ALL: [Scope; 3] = [Scope::Read, Scope::Admin, Scope::Metrics];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Admin => "admin",
            Scope::Metrics => "metrics",
        }
    }
}

/// Somebody who asks.
#[derive(Clone)]
pub struct Principal {
    /// What logs call it: `key NAME` or `subject NAME`.
    pub name: String,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// The collections that exist for it; none: all of them.
    pub collections: Option<BTreeSet<String>>,
    /// The rows that exist for it, as a condition in SQL; none: all of them.
    pub filter: Option<String>,
    /// How many requests it may make; none: any number.
    pub bucket: Option<Arc<Bucket>>,
}

impl Principal {
    /// Whoever asks where nobody is asked who they are.
    pub fn anybody() -> Principal {
        let scopes = Scope::ALL.into_iter().collect();
        Principal { name: "anybody".to_owned(), scopes, collections: None, filter: None, bucket: None }
    }

    /// Does this collection exist for it?
    pub fn may_see(&self, collection: &str) -> bool {
        self.collections.as_ref().is_none_or(|names| names.contains(collection))
    }

    /// May it come here?
    fn check(&self, route: &Route) -> Result<(), Problem> {
        let forbidden = |detail: String| Err(Problem::new(problem::FORBIDDEN, detail));
        match route.need {
            Some(need) if !self.scopes.contains(&need) => forbidden(format!("this needs the scope {:?}", need.name()))
                .map_err(|problem: Problem| problem.hint("use a key or a token that has it")),
            Some(Scope::Metrics) if self.collections.is_some() || self.filter.is_some() => {
                forbidden("this shows all collections, and not all of them are for this key or token".to_owned())
            }
            _ if self.filter.is_some() && !route.confined => {
                forbidden("this concerns all rows, and not all of them are for this key or token".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The answer to whoever asks for a collection that is not theirs: the same whether it exists or not.
    fn hidden(&self, collection: &str) -> Problem {
        Problem::new(problem::UNKNOWN_COLLECTION, format!("there is no collection {collection:?}"))
            .hint("GET /v1/collections lists them")
    }
}

/// The extractor of the principal.
pub struct Who(pub Arc<Principal>);

impl<S: Send + Sync> FromRequestParts<S> for Who {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Who, Problem> {
        let principal = parts.extensions.get::<Arc<Principal>>().cloned();
        // Only behind the layer is there one.
        principal.map(Who).ok_or_else(|| Problem::new(problem::INTERNAL, "a route asks for nobody's rights"))
    }
}

/// What is known of those who may come in. Without keys and tokens anybody may.
#[derive(Default)]
pub struct Credentials {
    /// API keys.
    pub keys: Vec<Key>,
    /// JWTs.
    pub tokens: Option<Tokens>,
}

impl Credentials {
    fn are_needed(&self) -> bool {
        !self.keys.is_empty() || self.tokens.is_some()
    }
}

/// The credentials that hold now.
#[derive(Default)]
pub struct Access {
    now: ArcSwap<Credentials>,
}

/// How many there are, not what they are.
impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let now = self.now.load();
        write!(f, "{} keys{}", now.keys.len(), if now.tokens.is_some() { " and tokens" } else { "" })
    }
}

impl Access {
    /// These hold.
    pub fn new(credentials: Credentials) -> Access {
        Access { now: ArcSwap::from_pointee(credentials) }
    }

    /// From now on those of `other` hold. What asked for credentials never opens: that takes a new start.
    pub fn replace(&self, other: &Access) -> Result<(), &'static str> {
        let new = other.now.load_full();
        if self.are_needed() && !new.are_needed() {
            return Err("http: there would be no keys and no [http.jwt] any more; those before still hold");
        }
        self.now.store(new);
        Ok(())
    }

    /// Must one say who one is?
    pub fn are_needed(&self) -> bool {
        self.now.load().are_needed()
    }

    /// Who asks.
    fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Principal>, Problem> {
        let credentials = self.now.load();
        if !credentials.are_needed() {
            static ANYBODY: LazyLock<Arc<Principal>> = LazyLock::new(|| Arc::new(Principal::anybody()));
            return Ok(ANYBODY.clone());
        }
        let presented = presented(headers)?;
        if presented.starts_with(PREFIX) {
            let wrong = |detail: &str| Err(Problem::new(problem::BAD_CREDENTIALS, detail));
            return match keys::find(&credentials.keys, presented, Timestamp::now()) {
                Found::Principal(principal) => Ok(principal),
                Found::Expired => wrong("the key has expired"),
                Found::Unknown => wrong("the key is not known here"),
            };
        }
        let tokens = credentials.tokens.as_ref();
        let no_tokens = || Problem::new(problem::BAD_CREDENTIALS, "this is no key, and tokens are not taken here");
        let tokens = tokens.ok_or_else(|| no_tokens().hint(format!("keys begin with {PREFIX}")))?;
        tokens.principal(presented).map_err(|jwt::Refused(why)| Problem::new(problem::BAD_CREDENTIALS, why))
    }
}

/// The one credential of a request.
fn presented(headers: &HeaderMap) -> Result<&str, Problem> {
    let missing = || {
        Problem::new(problem::UNAUTHENTICATED, "the request brings no key and no token")
            .hint("send Authorization: Bearer KEY, or api-key: KEY; `ruvector key new` makes one")
    };
    let bad = |detail: &str| Problem::new(problem::BAD_CREDENTIALS, detail);
    let mut all = headers.get_all(header::AUTHORIZATION).iter().chain(headers.get_all(API_KEY)).fuse();
    let first = all.next().ok_or_else(missing)?;
    if all.next().is_some() {
        return Err(bad("the request brings more than one key or token").hint("send one of them"));
    }
    let text = first.to_str().map_err(|_| bad("the key or token is no text"))?.trim();
    if !headers.contains_key(header::AUTHORIZATION) {
        return Ok(text);
    }
    let (scheme, credential) = text.split_once(' ').unwrap_or((text, ""));
    match scheme.eq_ignore_ascii_case("bearer") && !credential.trim().is_empty() {
        true => Ok(credential.trim()),
        false => Err(bad("Authorization is not understood").hint("send Authorization: Bearer KEY")),
    }
}

/// The layer.
pub async fn layer(
    State(app): State<Arc<App>>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    // What matches no route is answered with that.
    let Some(matched) = matched else { return next.run(request).await };
    let Some(route) = routes::of(matched.as_str()) else {
        return Problem::new(problem::FORBIDDEN, "nobody has said who may come here").into_response();
    };
    if route.need.is_none() {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let (principal, standing) = match admit(&app, route, &mut parts).await {
        Ok(admitted) => admitted,
        Err(refusal) => return *refusal,
    };
    parts.extensions.insert(principal);
    let mut response = next.run(Request::from_parts(parts, body)).await;
    standing.iter().for_each(|standing| standing.tell(response.headers_mut()));
    response
}

type Admitted = (Arc<Principal>, Option<Standing>);

async fn admit(app: &App, route: &Route, parts: &mut Parts) -> Result<Admitted, Box<Response>> {
    let refuse = |problem: Problem| {
        tracing::debug!(code = problem.kind.code, detail = problem.detail, "an HTTP client was refused");
        Box::new(problem.into_response())
    };
    let principal = app.options.access.authenticate(&parts.headers).map_err(refuse)?;
    let standing = principal.bucket.as_ref().map(|bucket| bucket.take(Instant::now()));
    if let Some(refusal) = standing.as_ref().and_then(Standing::refusal) {
        tracing::debug!(principal = principal.name, "an HTTP client asks too often");
        return Err(Box::new(refusal));
    }
    let checked = match principal.check(route) {
        Ok(()) => check_collection(app, &principal, parts).await,
        refused => refused,
    };
    let told = |mut refusal: Box<Response>| {
        standing.iter().for_each(|standing| standing.tell(refusal.headers_mut()));
        refusal
    };
    checked.map_err(refuse).map_err(told)?;
    Ok((principal, standing))
}

/// Is the collection of the path one that exists for it? The usual answer to one that is not there names all there are.
async fn check_collection(app: &App, principal: &Principal, parts: &mut Parts) -> Result<(), Problem> {
    if principal.collections.is_none() {
        return Ok(());
    }
    let Ok(params) = RawPathParams::from_request_parts(parts, &()).await else { return Err(principal.hidden("")) };
    match params.iter().find(|(param, _)| *param == "name") {
        Some((_, name)) if !principal.may_see(name) => Err(principal.hidden(name)),
        Some((_, name)) => match app.query.definition(name) {
            Err(QueryError::UnknownCollection { .. }) => Err(principal.hidden(name)),
            _ => Ok(()),
        },
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn read(headers: &[(HeaderName, &str)]) -> Result<String, &'static str> {
        let pairs = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).expect("a value")));
        let mut map = HeaderMap::new();
        pairs.for_each(|(name, value)| {
            map.append(name, value);
        });
        presented(&map).map(str::to_owned).map_err(|problem| problem.kind.code)
    }

    #[test]
    fn a_request_brings_one_credential() {
        let authorization = header::AUTHORIZATION;
        for text in ["Bearer rvk_x", "bearer  rvk_x ", "BEARER rvk_x"] {
            assert_eq!(read(&[(authorization.clone(), text)]), Ok("rvk_x".to_owned()), "{text}");
        }
        assert_eq!(read(&[(API_KEY, "rvk_x")]), Ok("rvk_x".to_owned()));
        assert_eq!(read(&[]), Err(problem::UNAUTHENTICATED.code));
        let bad = Err(problem::BAD_CREDENTIALS.code);
        for text in ["", "Bearer", "Bearer ", "Basic cnY6a2V5", "rvk_x"] {
            assert_eq!(read(&[(authorization.clone(), text)]), bad, "{text}");
        }
        assert_eq!(read(&[(authorization.clone(), "Bearer rvk_x"), (API_KEY, "rvk_x")]), bad);
        assert_eq!(read(&[(API_KEY, "rvk_x"), (API_KEY, "rvk_y")]), bad);
    }

    #[test]
    fn what_asked_for_credentials_never_opens() {
        let key = |name: &str| Key {
            hashes: Vec::new(),
            expires: None,
            principal: Arc::new(Principal { name: name.into(), ..Principal::anybody() }),
        };
        let with = |name: &str| Access::new(Credentials { keys: vec![key(name)], tokens: None });
        let access = Access::default();
        assert!(!access.are_needed() && access.authenticate(&HeaderMap::new()).is_ok());
        access.replace(&with("a")).expect("it may close");
        access.replace(&with("b")).expect("other keys");
        assert!(access.replace(&Access::default()).is_err() && access.are_needed());
        assert!(access.authenticate(&HeaderMap::new()).is_err());
    }

    #[test]
    fn rights_are_checked_by_route() {
        let principal =
            |scopes: &[Scope]| Principal { scopes: scopes.iter().copied().collect(), ..Principal::anybody() };
        for route in routes::ROUTES.iter() {
            for scope in Scope::ALL {
                let passes = principal(&[scope]).check(route).is_ok();
                assert_eq!(passes, route.need.is_none_or(|need| need == scope), "{} with {scope:?}", route.path);
            }
            assert!(principal(&[]).check(route).is_err() || route.need.is_none());
            let confined = Principal { filter: Some("true".into()), ..Principal::anybody() };
            assert_eq!(confined.check(route).is_ok(), route.confined, "{}", route.path);
            let some = Principal { collections: Some(BTreeSet::new()), ..Principal::anybody() };
            assert_eq!(some.check(route).is_ok(), route.need != Some(Scope::Metrics), "{}", route.path);
        }
    }
}
