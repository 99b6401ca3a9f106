//! Tokens of somebody else: JWTs (RFC 7519) signed by EdDSA or RS256 with a key that is configured. Each key has its one
//! algorithm, and a token does not choose: so neither `none` nor an HMAC with the public key as its secret is ever tried.

use crate::server::http::access::{Principal, Scope};
use crate::server::http::rate::Buckets;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// Longest token.
const LONGEST: usize = 16 << 10;
/// Longest subject.
const LONGEST_SUBJECT: usize = 256;

/// Why a token is not taken. Nothing of the token is in it.
pub struct Refused(pub String);

/// Somebody's public key.
pub struct TokenKey {
    /// What tokens call it.
    pub kid: String,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl TokenKey {
    /// An Ed25519 key in PEM.
    pub fn ed25519(kid: String, pem: &str) -> Result<TokenKey, String> {
        Ok(TokenKey { kid, algorithm: Algorithm::EdDSA, key: DecodingKey::from_ed_der(&public_key(pem, &ED25519)?) })
    }

    /// An RSA key in PEM, of 2048 bits at least.
    pub fn rsa(kid: String, pem: &str) -> Result<TokenKey, String> {
        Ok(TokenKey { kid, algorithm: Algorithm::RS256, key: DecodingKey::from_rsa_der(&public_key(pem, &RSA)?) })
    }
}

/// The object identifiers of the keys' algorithms, in DER (RFC 8410, RFC 8017).
const ED25519: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];
const RSA: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// `BEGIN PUBLIC KEY`, of this algorithm.
fn public_key(pem: &str, algorithm: &[u8]) -> Result<Vec<u8>, String> {
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes());
    let der = der.map_err(|error| format!("no public key in PEM (BEGIN PUBLIC KEY): {error}"))?;
    // The identifier is at the beginning, behind the heads of two sequences.
    let head = &der[..der.len().min(32)];
    match head.windows(algorithm.len()).any(|window| window == algorithm) {
        true => Ok(der.to_vec()),
        false => Err("a public key of another algorithm".to_owned()),
    }
}

/// Which tokens are taken.
pub struct Tokens {
    keys: Vec<TokenKey>,
    validation: Validation,
    buckets: Option<Buckets>,
}

/// What a token says, beside what [`Validation`] looks at. What is there and has another type refuses the token: a filter
/// that is not understood must not be none.
#[derive(Deserialize)]
struct Claims {
    #[serde(default, deserialize_with = "there")]
    sub: Option<String>,
    #[serde(default, deserialize_with = "there")]
    scope: Option<String>,
    #[serde(default, deserialize_with = "there")]
    collections: Option<BTreeSet<String>>,
    #[serde(default, deserialize_with = "there")]
    filter: Option<String>,
}

fn there<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl Tokens {
    /// Tokens of this issuer, for this audience, by these keys; `leeway_s` between two clocks; at most `rate` requests a
    /// second of each subject.
    pub fn new(keys: Vec<TokenKey>, issuer: &str, audience: &str, leeway_s: u64, rate: Option<f64>) -> Tokens {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = leeway_s;
        Tokens { keys, validation, buckets: rate.map(Buckets::new) }
    }

    /// Whom a token speaks for.
    pub fn principal(&self, token: &str) -> Result<Arc<Principal>, Refused> {
        let refused = |why: &str| Refused(format!("the token is not taken: {why}"));
        if token.len() > LONGEST {
            return Err(refused("it is too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| refused("it is no JWT of a known algorithm"))?;
        // What must be understood and is not (RFC 7515, 4.1.11).
        if header.crit.is_some() {
            return Err(refused("it has critical extensions"));
        }
        let key = self.key(header.kid.as_deref()).ok_or_else(|| refused("its key is not known here"))?;
        let validation = Validation { algorithms: vec![key.algorithm], ..self.validation.clone() };
        let token = jsonwebtoken::decode::<Claims>(token, &key.key, &validation);
        let claims = token.map_err(|error| refused(reason(error.kind())))?.claims;
        let subject = claims.sub.unwrap_or_default();
        if subject.len() > LONGEST_SUBJECT {
            return Err(refused("its subject is too long"));
        }
        let granted = claims.scope.unwrap_or_default();
        let has = |scope: &Scope| granted.split_ascii_whitespace().any(|word| word == scope.name());
        Ok(Arc::new(Principal {
            scopes: Scope::ALL.into_iter().filter(has).collect(),
            collections: claims.collections,
            filter: claims.filter,
            bucket: self.buckets.as_ref().map(|buckets| buckets.of(&subject, Instant::now())),
            name: format!("subject {subject:?}"),
        }))
    }

    /// The key of this name; a token that names none can only mean the only one.
    fn key(&self, kid: Option<&str>) -> Option<&TokenKey> {
        match (kid, &self.keys[..]) {
            (Some(kid), keys) => keys.iter().find(|key| key.kid == kid),
            (None, [only]) => Some(only),
            (None, _) => None,
        }
    }
}

/// Of a signed token it may be said what is wrong; of any other only that it is not signed.
fn reason(error: &jsonwebtoken::errors::ErrorKind) -> &'static str {
    use jsonwebtoken::errors::ErrorKind;
    match error {
        ErrorKind::ExpiredSignature => "it has expired",
        ErrorKind::ImmatureSignature => "it is not valid yet",
        ErrorKind::InvalidAudience => "it is for another audience",
        ErrorKind::InvalidIssuer => "it is of another issuer",
        ErrorKind::MissingRequiredClaim(_) => "it needs the claims exp, iss and aud",
        ErrorKind::InvalidAlgorithm => "its algorithm is not that of its key",
        ErrorKind::InvalidSignature => "its signature is wrong",
        _ => "it is not well formed",
    }
}

#[cfg(test)]
mod tests;
