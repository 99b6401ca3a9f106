//! API keys. What is kept of one is its SHA-256: a key is 32 random bytes, so there is nothing that a slow hash, which is
//! for passwords that people think up, would make harder to guess.

use crate::server::http::access::Principal;
use aws_lc_rs::{constant_time, digest, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use std::sync::Arc;

/// What every key begins with, so that it is known where it was lost.
pub const PREFIX: &str = "rvk_";
const BYTES: usize = 32;
const HASH: usize = digest::SHA256_OUTPUT_LEN;

/// The hash of a key, as `sha256:` and 64 hexadecimal digits. It has no `==`.
#[derive(Clone)]
pub struct Hash([u8; HASH]);

impl Hash {
    /// Of a key.
    pub fn of(key: &str) -> Hash {
        let mut hash = [0; HASH];
        hash.copy_from_slice(digest::digest(&digest::SHA256, key.as_bytes()).as_ref());
        Hash(hash)
    }

    /// The same? In a time that says nothing of where they differ.
    fn matches(&self, other: &Hash) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl std::str::FromStr for Hash {
    type Err = String;

    fn from_str(text: &str) -> Result<Hash, String> {
        let digits = text.strip_prefix("sha256:").filter(|digits| is_whole(digits));
        let digits = digits.ok_or("a hash is sha256: and 64 hexadecimal digits")?;
        let mut hash = [0; HASH];
        for (at, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|error| error.to_string())?;
        }
        Ok(Hash(hash))
    }
}

fn is_whole(digits: &str) -> bool {
    digits.len() == 2 * HASH && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A key that is known.
pub struct Key {
    /// Any of them: while a key is replaced there are two.
    pub hashes: Vec<Hash>,
    /// From when on it is none any more.
    pub expires: Option<Timestamp>,
    /// Whose it is.
    pub principal: Arc<Principal>,
}

/// What a presented key is.
pub enum Found {
    /// Somebody's.
    Principal(Arc<Principal>),
    /// It was somebody's.
    Expired,
    /// Nobody's.
    Unknown,
}

/// Whose key this is. Every hash is compared, wherever the right one stands.
pub fn find(keys: &[Key], presented: &str, now: Timestamp) -> Found {
    let presented = Hash::of(presented);
    let mut found = Found::Unknown;
    for key in keys {
        let matches = key.hashes.iter().fold(false, |any, hash| hash.matches(&presented) | any);
        if matches {
            let expired = key.expires.is_some_and(|end| end <= now);
            found = if expired { Found::Expired } else { Found::Principal(key.principal.clone()) };
        }
    }
    found
}

/// A new key.
pub fn generate() -> String {
    let mut bytes = [0; BYTES];
    fill(&mut bytes);
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Random bytes.
pub fn fill(bytes: &mut [u8]) {
    rand::fill(bytes).expect("the system has random numbers");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, keys: &[&str], expires: Option<&str>) -> Key {
        let principal = Principal { name: name.to_owned(), ..Principal::anybody() };
        Key {
            hashes: keys.iter().map(|key| Hash::of(key)).collect(),
            expires: expires.map(|text| text.parse().expect("a time")),
            principal: Arc::new(principal),
        }
    }

    #[test]
    fn keys_are_found_by_any_of_their_hashes_until_they_expire() {
        let keys = [
            key("one", &["rvk_old", "rvk_new"], None),
            key("two", &["rvk_two"], Some("2026-01-01T00:00:00Z")),
            key("none", &[], None),
        ];
        let find = |presented: &str, now: &str| match find(&keys, presented, now.parse().expect("a time")) {
            Found::Principal(principal) => principal.name.clone(),
            Found::Expired => "expired".to_owned(),
            Found::Unknown => "unknown".to_owned(),
        };
        let (before, after) = ("2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z");
        for (presented, now, wanted) in [
            ("rvk_old", after, "one"),
            ("rvk_new", after, "one"),
            ("rvk_two", before, "two"),
            ("rvk_two", after, "expired"),
            ("rvk_tw", before, "unknown"),
            ("rvk_two ", before, "unknown"),
            ("", before, "unknown"),
            // What the file says is no key.
            (&Hash::of("rvk_old").to_string(), before, "unknown"),
        ] {
            assert_eq!(find(presented, now), wanted, "{presented:?}");
        }
    }

    #[test]
    fn new_keys_are_long_and_never_the_same() {
        let (one, two) = (generate(), generate());
        let bytes = URL_SAFE_NO_PAD.decode(one.strip_prefix(PREFIX).expect("a key")).expect("base64");
        assert!(bytes.len() == BYTES && one != two);
        let read = Hash::of(&one).to_string().parse::<Hash>().expect("whole");
        assert!(read.matches(&Hash::of(&one)) && !read.matches(&Hash::of(&two)));
        // As `printf %s rvk_test | sha256sum` has it.
        let known = "sha256:ddc73612d629140e88bd831a11dfd6e33b5131356744351b766d4a498787d2e8";
        assert_eq!(Hash::of("rvk_test").to_string(), known);
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        let whole = Hash::of("x").to_string();
        for bad in ["", "sha256:", &whole[..whole.len() - 1], &whole.replace("sha256:", "md5:"), &format!("{whole}0")] {
            assert!(bad.parse::<Hash>().is_err(), "{bad}");
        }
        assert!(format!("sha256:{}", "zz".repeat(32)).parse::<Hash>().is_err());
        assert!(format!("sha256:{}", "+f".repeat(32)).parse::<Hash>().is_err());
    }

    /// That keys are compared in constant time cannot be measured reliably; that no other comparison is there can be read.
    #[test]
    fn hashes_are_compared_in_constant_time_only() {
        let code = include_str!("keys.rs").split("#[cfg(test)]").next().expect("code");
        assert_eq!(code.matches("constant_time::verify_slices_are_equal(&self.0, &other.0)").count(), 1);
        let finding = &code[code.find("pub fn find").expect("there")..code.find("/// A new key").expect("there")];
        assert!(finding.contains("hash.matches(&presented) | any"), "no comparison is left out");
        for other in ["==", "!=", "any(", "position(", "contains(", "return", "break", "||"] {
            assert!(!finding.contains(other), "{other} in {finding}");
        }
    }
}
