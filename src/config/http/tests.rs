//! Tests of `[http]`: what may start, and which mistakes are named.

use crate::config::{Config, ConfigError};
use crate::server::http::keys::Hash;

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("c.toml");
    std::fs::write(&path, text).expect("a file");
    Config::load(Some(&path))
}

fn key(lines: &str) -> String {
    format!("[http.keys.app]\nhash = ['{}']\nscopes = ['read']\n{lines}", Hash::of("rvk_x"))
}

/// Whether it may start, by address, authentication and encryption.
#[test]
fn what_others_reach_is_authenticated_and_encrypted_or_said_to_be_insecure() {
    let (none, tls, ca) = ("", "tls_cert = 'c'\ntls_key = 'k'\n", "tls_cert = 'c'\ntls_key = 'k'\nclient_ca = 'a'\n");
    let (open, key, insecure) = (String::new(), key(""), "insecure = true\n");
    let jwt = "[http.jwt]\nissuer = 'i'\naudience = 'a'\nkeys = []\n".to_owned();
    for (listen, lines, sections, refused) in [
        ("listen = '127.0.0.1:1'", none, &open, None),
        ("listen = '127.8.0.1:1'", none, &open, None),
        ("listen = '[::1]:1'", none, &open, None),
        ("listen = '[::ffff:127.0.0.1]:1'", none, &open, None),
        (
            "listen = '0.0.0.0:1'",
            none,
            &open,
            Some("http.listen is 0.0.0.0:1, which others reach, and there is no auth"),
        ),
        ("listen = '[::]:1'", tls, &open, Some("no authentication")),
        ("listen = '10.0.0.1:1'", none, &key, Some("unencrypted")),
        ("listen = '10.0.0.1:1'", none, &jwt, Some("unencrypted")),
        ("listen = '10.0.0.1:1'", tls, &key, None),
        ("listen = '10.0.0.1:1'", tls, &jwt, None),
        ("listen = '10.0.0.1:1'", ca, &open, None),
        ("listen = '10.0.0.1:1'", insecure, &open, None),
        ("admin_listen = '10.0.0.1:1'", none, &open, Some("http.admin_listen is 10.0.0.1:1")),
        ("admin_listen = '10.0.0.1:1'", tls, &key, None),
        ("admin_listen = 'here'", none, &open, Some("http.admin_listen \"here\"")),
    ] {
        let text = format!("[http]\n{listen}\n{lines}{sections}");
        match (load(&text), refused) {
            (Ok(config), None) => {
                let exposed = config.http.exposed().expect("addresses");
                assert_eq!(exposed.is_some(), lines == insecure, "{text}: {exposed:?}");
            }
            (Err(error), Some(why)) => assert!(error.to_string().contains(why), "{text}: {error}"),
            (Ok(_), Some(_)) => panic!("it may start: {text}"),
            (Err(error), None) => panic!("{text}: {error}"),
        }
    }
}

#[test]
fn mistakes_of_keys_and_tokens_are_named() {
    let hash = Hash::of("rvk_x");
    let jwt = |lines: &str| format!("[http.jwt]\nissuer = 'i'\naudience = 'a'\n{lines}");
    for (text, why) in [
        ("[http.keys.a]\nhash = []\nscopes = ['read']\n", "http.keys.a.hash is empty"),
        ("[http.keys.a]\nhash = ['rvk_x']\nscopes = ['read']\n", "http.keys.a.hash: a hash is sha256:"),
        (&format!("[http.keys.a]\nhash = '{hash}'\nscopes = []\n"), "http.keys.a.scopes is empty"),
        (&format!("[http.keys.a]\nhash = '{hash}'\nscopes = ['write']\n"), "no scope \"write\""),
        (&format!("[http.keys.a]\nhash = '{hash}'\n"), "scopes"),
        (
            &format!("[http.keys.a]\nhash = '{hash}'\nscopes = ['metrics']\ncollections = ['d']\n"),
            "shows all collections",
        ),
        (&format!("[http.keys.a]\nhash = '{hash}'\nscopes = ['admin']\nfilter = 'a = 1'\n"), "concerns all rows"),
        (&format!("{}[http.keys.b]\nhash = ['{hash}']\nscopes = ['read']\n", key("")), "that of http.keys.app too"),
        (&format!("[http.keys.a]\nhash = ['{hash}', '{hash}']\nscopes = ['read']\n"), "that of http.keys.a too"),
        (&key("requests_per_second = 0\n"), "requests_per_second is 0"),
        (&key("expires = 'soon'\n"), "http.keys.app.expires"),
        (&key("filters = 'a = 1'\n"), "filters"),
        ("[http]\ntls_cert = 'c'\n", "go together"),
        ("[http]\nclient_ca = 'c'\n", "http.client_ca needs"),
        ("[http]\nmax_connections = 0\n", "http.max_connections"),
    ] {
        let error = load(text).expect_err(text).to_string();
        assert!(error.contains(why), "{text}: {error}");
        assert!(!error.contains("rvk_x"), "a key that was written in place of its hash is not told: {error}");
    }
    for (text, why) in [
        (jwt("keys = []\n"), "no [[http.jwt.keys]]"),
        (jwt("[[http.jwt.keys]]\nkid = 'a'\n"), "exactly one of"),
        (jwt("[[http.jwt.keys]]\nkid = 'a'\nrsa_public_key = '/nowhere'\n"), "cannot read /nowhere"),
        (jwt("[[http.jwt.keys]]\nkid = 'a'\nrsa_public_key = '-----BEGIN NOTHING'\n"), "no public key in PEM"),
        (jwt("[[http.jwt.keys]]\nkid = 'a'\n[[http.jwt.keys]]\nkid = 'a'\n"), "twice"),
        ("[http.jwt]\nissuer = ''\naudience = 'a'\nkeys = []\n".into(), "http.jwt.issuer"),
    ] {
        let error = load(&text).expect(&text).http.access().expect_err(&text).to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn who_may_come_in_changes_without_a_new_start() {
    let (none, one) = (load("").expect("valid"), load(&key("")).expect("valid"));
    assert!(one.changed_since(&none).is_empty() && none.changed_since(&one).is_empty());
    assert!(one.http.access().expect("made").are_needed() && !none.http.access().expect("made").are_needed());
    let other = load("[http]\nlisten = '127.0.0.1:1'\n").expect("valid");
    assert_eq!(other.changed_since(&one), ["http.listen"]);
    assert!(!format!("{one:?}").contains("sha256"), "hashes are not printed");
}
