//! `[http]`: what is in it, and what of it does not go together.

use crate::config::ConfigError;
use crate::server::http::access::{Access, Credentials, Principal, Scope};
use crate::server::http::jwt::{TokenKey, Tokens};
use crate::server::http::keys::{Hash, Key};
use crate::server::http::rate::Bucket;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// `[http]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct Http {
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    pub admin_listen: String,
    pub insecure: bool,
    pub hosts: Vec<String>,
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    pub client_ca: PathBuf,
    pub max_connections: usize,
    pub first_head_timeout_s: u64,
    pub head_timeout_s: u64,
    pub write_timeout_s: u64,
    pub min_rate_kib_s: u64,
    pub request_timeout_s: u64,
    pub max_body_bytes: usize,
    pub max_concurrent: usize,
    pub max_waiting: usize,
    pub max_queue_ms: u64,
    pub body_timeout_s: u64,
    pub max_buffered_mb: usize,
    pub ready_staleness_s: u64,
    #[serde(default)]
    pub keys: BTreeMap<String, HttpKey>,
    #[serde(default)]
    pub jwt: Option<HttpJwt>,
}

/// `[http.keys.NAME]`
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct HttpKey {
    #[serde(deserialize_with = "one_or_many")]
    pub hash: Vec<String>,
    #[serde(deserialize_with = "scopes")]
    pub scopes: BTreeSet<Scope>,
    #[serde(default)]
    pub collections: Option<BTreeSet<String>>,
    #[serde(default)]
    pub filter: Option<String>,
    #[serde(default)]
    pub requests_per_second: Option<f64>,
    #[serde(default)]
    pub expires: Option<String>,
}

/// Without the hash.
impl std::fmt::Debug for HttpKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpKey").field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

/// `[http.jwt]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct HttpJwt {
    pub issuer: String,
    pub audience: String,
    #[serde(default = "thirty")]
    pub leeway_s: u64,
    #[serde(default)]
    pub requests_per_second: Option<f64>,
    pub keys: Vec<HttpJwtKey>,
}

/// `[[http.jwt.keys]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct HttpJwtKey {
    pub kid: String,
    #[serde(default)]
    pub ed25519_public_key: String,
    #[serde(default)]
    pub rsa_public_key: String,
}

fn thirty() -> u64 {
    30
}

/// A list; from the environment, words.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_any(Words)
}

struct Words;

impl<'de> Visitor<'de> for Words {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of texts, or one text")
    }

    fn visit_str<E>(self, words: &str) -> Result<Vec<String>, E> {
        Ok(words.split([',', ' ']).filter(|word| !word.is_empty()).map(str::to_owned).collect())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<String>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}

/// Errors of addresses say nothing by themselves.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bad = |_| serde::de::Error::custom(format!("{text:?} is no address and port; write 127.0.0.1:8480"));
    text.trim().parse().map_err(bad)
}

fn scopes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<Scope>, D::Error> {
    let scope = |word: String| {
        let named = Scope::ALL.into_iter().find(|scope| scope.name() == word);
        named.ok_or_else(|| {
            serde::de::Error::custom(format!("there is no scope {word:?}; there are read, admin, metrics"))
        })
    };
    one_or_many(deserializer)?.into_iter().map(scope).collect()
}

impl Http {
    /// Where `/v1/admin/` listens, if it has a place of its own.
    pub fn admin_address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let listen = self.admin_listen.trim();
        if listen.is_empty() {
            return Ok(None);
        }
        let bad =
            |error| ConfigError(format!("http.admin_listen {listen:?}: {error}; an address and a port are needed"));
        listen.parse().map(Some).map_err(bad)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |text: &str| Err(ConfigError(text.to_owned()));
        let (certificate, key) = (self.tls_cert.as_os_str(), self.tls_key.as_os_str());
        match self {
            _ if certificate.is_empty() != key.is_empty() => {
                refuse("http.tls_cert and http.tls_key go together; set both, or neither")
            }
            _ if certificate.is_empty() && !self.client_ca.as_os_str().is_empty() => {
                refuse("http.client_ca needs http.tls_cert and http.tls_key")
            }
            Http { max_concurrent: 0, .. } => refuse("http.max_concurrent is 0; at least 1"),
            Http { max_connections: 0, .. } => refuse("http.max_connections is 0; at least 1"),
            Http { head_timeout_s: 0, .. } => refuse("http.head_timeout_s is 0; at least 1"),
            Http { first_head_timeout_s: 0, .. } => refuse("http.first_head_timeout_s is 0; at least 1"),
            Http { body_timeout_s: 0, .. } => refuse("http.body_timeout_s is 0; at least 1"),
            Http { max_buffered_mb: 0, .. } => refuse("http.max_buffered_mb is 0; at least 1"),
            Http { write_timeout_s: 0, .. } => refuse("http.write_timeout_s is 0; at least 1"),
            _ => {
                self.keys.iter().try_for_each(|(name, key)| key.check(name))?;
                self.check_hashes()?;
                match self.exposed()? {
                    Some(why) if !self.insecure => Err(ConfigError(format!(
                        "{why}, or http.insecure = true where something else guards the network; see docs/security.md"
                    ))),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Two keys of one hash would be one key with two rights.
    fn check_hashes(&self) -> Result<(), ConfigError> {
        let mut known = BTreeMap::new();
        for (name, key) in &self.keys {
            for hash in &key.hash {
                if let Some(other) = known.insert(hash.to_ascii_lowercase(), name) {
                    let how = "each key is another one; `ruvector key new` makes one";
                    return Err(ConfigError(format!("http.keys.{name}.hash is that of http.keys.{other} too: {how}")));
                }
            }
        }
        Ok(())
    }

    /// Does only this machine reach it?
    pub fn is_loopback(&self) -> Result<bool, ConfigError> {
        let loopback = |address: SocketAddr| address.ip().to_canonical().is_loopback();
        Ok(loopback(self.listen) && self.admin_address()?.is_none_or(loopback))
    }

    /// What is open to others than this machine and should not be, if anything, and what would help.
    pub fn exposed(&self) -> Result<Option<String>, ConfigError> {
        let addresses = [("http.listen", Some(self.listen)), ("http.admin_listen", self.admin_address()?)];
        let beyond = |address: &SocketAddr| !address.ip().to_canonical().is_loopback();
        let found = addresses.into_iter().find_map(|(name, address)| Some((name, address.filter(beyond)?)));
        let Some((name, address)) = found else { return Ok(None) };
        let known = !self.keys.is_empty() || self.jwt.is_some() || !self.client_ca.as_os_str().is_empty();
        Ok(if !known {
            let how = "add [http.keys.NAME] (`ruvector key new` makes one), [http.jwt] or http.client_ca";
            Some(format!("{name} is {address}, which others reach, and there is no authentication: {how}"))
        } else if self.tls_cert.as_os_str().is_empty() {
            let how = "set http.tls_cert and http.tls_key";
            Some(format!("{name} is {address}, which others reach, and keys would pass unencrypted: {how}"))
        } else {
            None
        })
    }

    /// Who may come in. Reads the files of public keys.
    pub fn access(&self) -> Result<Arc<Access>, ConfigError> {
        let keys = self.keys.iter().map(|(name, key)| key.key(name)).collect::<Result<_, _>>()?;
        let tokens = self.jwt.as_ref().map(HttpJwt::tokens).transpose()?;
        Ok(Arc::new(Access::new(Credentials { keys, tokens })))
    }
}

fn check_rate(name: &str, rate: Option<f64>) -> Result<(), ConfigError> {
    match rate {
        Some(rate) if !(0.001..=1e9).contains(&rate) => Err(ConfigError(format!(
            "{name}.requests_per_second is {rate}; from 0.001 on, or leave it out for no limit"
        ))),
        _ => Ok(()),
    }
}

impl HttpKey {
    fn check(&self, name: &str) -> Result<(), ConfigError> {
        self.key(name).map(drop)
    }

    fn key(&self, name: &str) -> Result<Key, ConfigError> {
        let at = format!("http.keys.{name}");
        let refuse = |text: &str| Err(ConfigError(format!("{at}{text}")));
        check_rate(&at, self.requests_per_second)?;
        let some = self.collections.is_some() || self.filter.is_some();
        match self {
            HttpKey { hash, .. } if hash.is_empty() => return refuse(".hash is empty; `ruvector key new` makes one"),
            HttpKey { scopes, .. } if scopes.is_empty() => return refuse(".scopes is empty; read, admin or metrics"),
            HttpKey { scopes, .. } if scopes.contains(&Scope::Metrics) && some => {
                return refuse(": the scope metrics shows all collections; make another key for it");
            }
            HttpKey { scopes, filter: Some(_), .. } if scopes.contains(&Scope::Admin) => {
                return refuse(": the scope admin concerns all rows, and filter allows some only");
            }
            _ => {}
        }
        let bad = |error: String| ConfigError(format!("{at}.hash: {error}; `ruvector key new` prints one"));
        let hashes = self.hash.iter().map(|text| text.parse::<Hash>().map_err(bad)).collect::<Result<_, _>>()?;
        let expires = self.expires.as_ref().map(|text| {
            let bad = |error| ConfigError(format!("{at}.expires: {error}; write 2027-01-31T00:00:00Z"));
            text.parse().map_err(bad)
        });
        let principal = Principal {
            name: format!("key {name:?}"),
            scopes: self.scopes.clone(),
            collections: self.collections.clone(),
            filter: self.filter.clone(),
            bucket: self.requests_per_second.map(|rate| Arc::new(Bucket::new(rate))),
        };
        Ok(Key { hashes, expires: expires.transpose()?, principal: Arc::new(principal) })
    }
}

impl HttpJwt {
    fn tokens(&self) -> Result<Tokens, ConfigError> {
        let refuse = |text: &str| Err(ConfigError(text.to_owned()));
        check_rate("http.jwt", self.requests_per_second)?;
        match self {
            HttpJwt { issuer, .. } if issuer.is_empty() => {
                return refuse("http.jwt.issuer is empty; write what tokens have as `iss`");
            }
            HttpJwt { audience, .. } if audience.is_empty() => {
                return refuse("http.jwt.audience is empty; write what tokens have as `aud`");
            }
            HttpJwt { keys, .. } if keys.is_empty() => {
                return refuse("http.jwt has no [[http.jwt.keys]]; each has a kid and a public key");
            }
            _ => {}
        }
        let kids: BTreeSet<_> = self.keys.iter().map(|key| &key.kid).collect();
        if kids.len() < self.keys.len() {
            return refuse("http.jwt.keys: a kid is there twice; tokens name their key by it");
        }
        let keys = self.keys.iter().map(HttpJwtKey::key).collect::<Result<_, _>>()?;
        Ok(Tokens::new(keys, &self.issuer, &self.audience, self.leeway_s, self.requests_per_second))
    }
}

impl HttpJwtKey {
    fn key(&self) -> Result<TokenKey, ConfigError> {
        let HttpJwtKey { kid, ed25519_public_key, rsa_public_key } = self;
        let made = match (ed25519_public_key.is_empty(), rsa_public_key.is_empty()) {
            (false, true) => pem(ed25519_public_key).and_then(|pem| TokenKey::ed25519(kid.clone(), &pem)),
            (true, false) => pem(rsa_public_key).and_then(|pem| TokenKey::rsa(kid.clone(), &pem)),
            _ => Err("exactly one of ed25519_public_key and rsa_public_key is needed".to_owned()),
        };
        made.map_err(|error| ConfigError(format!("http.jwt.keys, kid {kid:?}: {error}")))
    }
}

/// The text itself, or that of the file of this name.
fn pem(text: &str) -> Result<String, String> {
    match text.contains("-----BEGIN") {
        true => Ok(text.to_owned()),
        false => super::read(std::path::Path::new(text)),
    }
}

#[cfg(test)]
mod tests;
