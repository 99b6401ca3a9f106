//! Tests of tokens: good ones of both algorithms, and every kind of forged one.

use super::*;
use aws_lc_rs::{hmac, rand, signature};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use rcgen::KeyPair;
use serde_json::{Value as Json, json};

fn ed25519() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key")
}

fn part(json: &Json) -> String {
    BASE64.encode(json.to_string())
}

/// A token with whatever signature `sign` makes.
fn token(header: &Json, claims: &Json, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let signature = BASE64.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn by_ed25519(key: &KeyPair) -> impl Fn(&[u8]) -> Vec<u8> {
    let key = signature::Ed25519KeyPair::from_pkcs8(&key.serialize_der()).expect("a key");
    move |message| key.sign(message).as_ref().to_vec()
}

fn by_rsa(key: &KeyPair, how: &'static dyn signature::RsaEncoding) -> impl Fn(&[u8]) -> Vec<u8> {
    let key = signature::RsaKeyPair::from_pkcs8(&key.serialize_der()).expect("a key");
    move |message| {
        let mut made = vec![0; key.public_modulus_len()];
        key.sign(how, &rand::SystemRandom::new(), message, &mut made).expect("signed");
        made
    }
}

fn by_hmac(secret: &[u8]) -> impl Fn(&[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    move |message| hmac::sign(&key, message).as_ref().to_vec()
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn good() -> Json {
    json!({ "iss": "https://issuer", "aud": "ruvector", "exp": now() + 60, "sub": "anna", "scope": "openid read" })
}

fn with(name: &str, value: impl Into<Json>) -> Json {
    let mut claims = good();
    claims[name] = value.into();
    claims
}

fn without(name: &str) -> Json {
    let mut claims = good();
    claims.as_object_mut().expect("an object").remove(name);
    claims
}

fn tokens(keys: Vec<TokenKey>, rate: Option<f64>) -> Tokens {
    Tokens::new(keys, "https://issuer", "ruvector", 5, rate)
}

fn taken(tokens: &Tokens, token: &str) -> Result<Arc<Principal>, String> {
    tokens.principal(token).map_err(|refused| refused.0)
}

#[test]
fn tokens_of_both_algorithms_say_who_asks_and_what_for() {
    let (ed, rsa) = (ed25519(), KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key"));
    let keys = vec![
        TokenKey::ed25519("e".into(), &ed.public_key_pem()).expect("a key"),
        TokenKey::rsa("r".into(), &rsa.public_key_pem()).expect("a key"),
    ];
    let tokens = tokens(keys, None);
    let claims = json!({ "iss": "https://issuer", "aud": ["other", "ruvector"], "exp": now() + 60, "nbf": now() - 60,
        "sub": "anna", "scope": "read metrics else", "collections": ["docs"], "filter": "tenant = 1" });
    let ed_token = token(&json!({ "alg": "EdDSA", "kid": "e" }), &claims, by_ed25519(&ed));
    let rsa_token = token(&json!({ "alg": "RS256", "kid": "r" }), &claims, by_rsa(&rsa, &signature::RSA_PKCS1_SHA256));
    for token in [ed_token, rsa_token] {
        let found = taken(&tokens, &token).expect("good");
        assert_eq!(found.name, "subject \"anna\"");
        assert_eq!(found.scopes, BTreeSet::from([Scope::Read, Scope::Metrics]));
        assert_eq!(found.collections, Some(BTreeSet::from(["docs".to_owned()])));
        assert_eq!(found.filter.as_deref(), Some("tenant = 1"));
        assert!(found.bucket.is_none());
    }
    let pss = token(&json!({ "alg": "PS256", "kid": "r" }), &claims, by_rsa(&rsa, &signature::RSA_PSS_SHA256));
    assert!(taken(&tokens, &pss).is_err(), "an algorithm that is not offered");
    let crossed = token(&json!({ "alg": "EdDSA", "kid": "r" }), &claims, by_ed25519(&ed));
    assert!(taken(&tokens, &crossed).is_err(), "another key's algorithm");
    let unnamed = token(&json!({ "alg": "EdDSA" }), &claims, by_ed25519(&ed));
    assert!(taken(&tokens, &unnamed).is_err(), "which of the two is not said");
}

#[test]
fn forged_and_broken_tokens_are_refused() {
    let (key, other) = (ed25519(), ed25519());
    let pem = key.public_key_pem();
    let tokens = tokens(vec![TokenKey::ed25519("e".into(), &pem).expect("a key")], None);
    let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": "e" });
    let signed = |claims: &Json| token(&header, claims, by_ed25519(&key));
    let headed = |header: Json| token(&header, &good(), by_ed25519(&key));
    assert!(taken(&tokens, &signed(&good())).is_ok(), "the pattern of all of these is good");
    assert!(taken(&tokens, &headed(json!({ "alg": "EdDSA" }))).is_ok(), "the only key needs no name");
    let whole = signed(&good());
    let (message, mark) = whole.rsplit_once('.').expect("three parts");
    let none = |alg: &str| format!("{}.{}.", part(&json!({ "alg": alg, "kid": "e" })), part(&good()));
    let hs256 = json!({ "alg": "HS256", "kid": "e" });
    let raw = key.public_key_raw().to_vec();
    let swapped = format!("{}.{}.{mark}", part(&header), part(&with("scope", "admin")));
    for (what, forged) in [
        ("no algorithm", none("none")),
        ("no algorithm, in capitals", none("None")),
        ("no signature", format!("{message}.")),
        ("no third part", message.to_owned()),
        ("a fourth part", format!("{whole}.{mark}")),
        ("the public key in PEM as a secret", token(&hs256, &good(), by_hmac(pem.as_bytes()))),
        (
            "the public key in DER as a secret",
            token(&hs256, &good(), by_hmac(&public_key(&pem, &ED25519).expect("DER"))),
        ),
        ("the public key's bytes as a secret", token(&hs256, &good(), by_hmac(&raw))),
        ("an empty secret", token(&hs256, &good(), by_hmac(b""))),
        ("somebody else's key", token(&header, &good(), by_ed25519(&other))),
        (
            "a key that it brings",
            token(
                &json!({ "alg": "EdDSA", "kid": "e", "jwk": { "kty": "OKP", "crv": "Ed25519",
            "x": BASE64.encode(other.public_key_raw()) } }),
                &good(),
                by_ed25519(&other),
            ),
        ),
        ("another key's name", headed(json!({ "alg": "EdDSA", "kid": "f" }))),
        ("an empty name", headed(json!({ "alg": "EdDSA", "kid": "" }))),
        ("critical extensions", headed(json!({ "alg": "EdDSA", "kid": "e", "crit": ["exp"] }))),
        ("other claims under the same signature", swapped),
        ("expired", signed(&with("exp", now() - 6))),
        ("no exp", signed(&without("exp"))),
        ("an exp that is no number", signed(&with("exp", "never"))),
        ("an exp that is null", signed(&with("exp", Json::Null))),
        ("not valid yet", signed(&with("nbf", now() + 60))),
        ("an nbf that is no number", signed(&with("nbf", "now"))),
        ("another audience", signed(&with("aud", "else"))),
        ("other audiences", signed(&with("aud", json!(["else"])))),
        ("no audience", signed(&without("aud"))),
        ("another issuer", signed(&with("iss", "https://issuer.evil"))),
        ("no issuer", signed(&without("iss"))),
        ("a filter that is no text", signed(&with("filter", json!({ "tenant": 1 })))),
        ("a filter that is null", signed(&with("filter", Json::Null))),
        ("collections that are no list", signed(&with("collections", "docs"))),
        ("collections that are null", signed(&with("collections", Json::Null))),
        ("scopes in a list", signed(&with("scope", json!(["read"])))),
        ("no object", signed(&json!("anna"))),
        ("too long", signed(&with("sub", "x".repeat(LONGEST)))),
        ("a subject that is too long", signed(&with("sub", "x".repeat(LONGEST_SUBJECT + 1)))),
        ("dots", "..".to_owned()),
        ("nothing", String::new()),
    ] {
        let Err(why) = taken(&tokens, &forged) else { panic!("{what}: it is taken") };
        assert!(!why.contains("anna") && !why.contains("eyJ"), "{what}: the token is told: {why}");
    }
    let bare = taken(&tokens, &signed(&without("scope"))).expect("good");
    assert!(bare.scopes.is_empty(), "what is not granted is not allowed");
    assert!(taken(&tokens, &signed(&with("exp", now() - 3))).is_ok(), "within the leeway");
}

#[test]
fn keys_of_other_kinds_are_refused() {
    let (ed, rsa) = (ed25519(), KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key"));
    let ec = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let (ed, rsa, ec, private) = (ed.public_key_pem(), rsa.public_key_pem(), ec.public_key_pem(), ed.serialize_pem());
    for bad in [&rsa, &ec, &private, "", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
        assert!(TokenKey::ed25519("a".into(), bad).is_err(), "{bad}");
    }
    for bad in [&ed, &ec, &private, ""] {
        assert!(TokenKey::rsa("a".into(), bad).is_err(), "{bad}");
    }
}

#[test]
fn each_subject_has_a_rate_of_its_own() {
    let key = ed25519();
    let tokens = tokens(vec![TokenKey::ed25519("e".into(), &key.public_key_pem()).expect("a key")], Some(1.0));
    let take = |subject: &str| {
        let claims = with("sub", subject);
        let found = taken(&tokens, &token(&json!({ "alg": "EdDSA" }), &claims, by_ed25519(&key))).expect("good");
        found.bucket.as_ref().expect("a rate").take(Instant::now()).wait.is_none()
    };
    assert!(take("anna") && !take("anna") && take("bert"));
}
