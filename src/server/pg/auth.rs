//! SCRAM-SHA-256 (RFC 5802, RFC 7677) from the server's side. Without channel binding: it is not offered.

use aws_lc_rs::{constant_time, digest, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The mechanism's name.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// PostgreSQL's own number.
const ITERATIONS: u32 = 4096;
const SALT: usize = 16;
const NONCE: usize = 18;
const KEY: usize = 32;

/// What is kept of a password: enough to know it again, not to say it.
#[derive(Clone)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl Verifier {
    /// From a password, or from what `pg_authid.rolpassword` has in its place. `None` where that is broken.
    pub fn new(secret: &str) -> Option<Verifier> {
        match secret.starts_with("SCRAM-SHA-256$") {
            true => Verifier::parse(secret),
            false => Verifier::parse(&postgres_protocol::password::scram_sha_256(secret.as_bytes())),
        }
    }

    /// `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`
    fn parse(text: &str) -> Option<Verifier> {
        let (how, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let ((iterations, salt), (stored, server)) = (how.split_once(':')?, keys.split_once(':')?);
        let bytes = |text| BASE64.decode(text).ok();
        let verifier = Verifier {
            iterations: iterations.parse().ok().filter(|count| *count > 0)?,
            salt: bytes(salt)?,
            stored_key: bytes(stored)?,
            server_key: bytes(server)?,
        };
        (verifier.stored_key.len() == KEY && verifier.server_key.len() == KEY).then_some(verifier)
    }
}

/// Who may come in. Who asks under a name that does not exist is asked for a password like anybody else.
pub struct Users<U> {
    users: BTreeMap<String, (Verifier, Arc<U>)>,
    decoy: hmac::Key,
}

impl<U> Users<U> {
    /// These users.
    pub fn new(users: BTreeMap<String, (Verifier, Arc<U>)>) -> Users<U> {
        let mut secret = [0; KEY];
        fill(&mut secret);
        Users { users, decoy: hmac::Key::new(hmac::HMAC_SHA256, &secret) }
    }

    /// The questions for a user of this name.
    pub fn exchange(&self, name: &str) -> Exchange<U> {
        let (verifier, user) = match self.users.get(name) {
            Some((verifier, user)) => (verifier.clone(), Some(user.clone())),
            None => {
                // The same salt each time, as a real user has it.
                let salt = hmac::sign(&self.decoy, name.as_bytes()).as_ref()[..SALT].to_vec();
                let nothing = vec![0; KEY];
                let verifier =
                    Verifier { iterations: ITERATIONS, salt, stored_key: nothing.clone(), server_key: nothing };
                (verifier, None)
            }
        };
        Exchange { verifier, user, said: None }
    }
}

/// One authentication under way.
pub struct Exchange<U> {
    verifier: Verifier,
    user: Option<Arc<U>>,
    /// The client's GS2 header, its first message without that, and ours.
    said: Option<(String, String, String)>,
}

impl<U> Exchange<U> {
    /// The client's first message -> ours; `None` where it is not understood.
    pub fn first(&mut self, message: &str) -> Option<String> {
        // `n`: no channel binding; `y`: it would, and believes that we do not. `p` asks for what was not offered.
        let header = ["n,,", "y,,"].into_iter().find(|header| message.starts_with(header))?;
        let bare = &message[header.len()..];
        // The name says nothing: that of the start-up message counts.
        let nonce = bare.split_once(',').filter(|(name, _)| name.starts_with("n="))?.1.strip_prefix("r=")?;
        let nonce = nonce.split(',').next().filter(|nonce| !nonce.is_empty())?;
        let mut ours = [0; NONCE];
        fill(&mut ours);
        let (ours, salt) = (BASE64.encode(ours), BASE64.encode(&self.verifier.salt));
        let answer = format!("r={nonce}{ours},s={salt},i={}", self.verifier.iterations);
        self.said = Some((header.to_owned(), bare.to_owned(), answer.clone()));
        Some(answer)
    }

    /// The client's second message -> our last one and who it is; `None` where it does not prove the password.
    pub fn last(&mut self, message: &str) -> Option<(String, Arc<U>)> {
        let (header, bare, ours) = self.said.take()?;
        let (unproven, proof) = message.rsplit_once(",p=")?;
        let nonce = ours.split(',').next()?;
        let expected = format!("c={},{nonce}", BASE64.encode(header));
        if unproven != expected {
            return None;
        }
        let talk = format!("{bare},{ours},{unproven}");
        let sign = |key: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), talk.as_bytes());
        let (signature, proof) = (sign(&self.verifier.stored_key), BASE64.decode(proof).ok()?);
        if proof.len() != KEY {
            return None;
        }
        let client_key: Vec<_> = proof.iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let stored = digest::digest(&digest::SHA256, &client_key);
        let proven = constant_time::verify_slices_are_equal(stored.as_ref(), &self.verifier.stored_key).is_ok();
        let user = self.user.clone().filter(|_| proven)?;
        Some((format!("v={}", BASE64.encode(sign(&self.verifier.server_key))), user))
    }
}

/// Random bytes.
pub fn fill(bytes: &mut [u8]) {
    rand::fill(bytes).expect("the system has random numbers");
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

    fn users(password: &str) -> Users<()> {
        let verifier = Verifier::new(password).expect("a password");
        Users::new(BTreeMap::from([("app".to_owned(), (verifier, Arc::new(())))]))
    }

    /// What a real client makes of it.
    fn attempt(users: &Users<()>, name: &str, password: &str) -> Result<(), &'static str> {
        let mut client = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        let mut server = users.exchange(name);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let first = server.first(&text(client.message())).ok_or("first")?;
        client.update(first.as_bytes()).map_err(|_| "update")?;
        let (last, ()) = server.last(&text(client.message())).map(|(last, _)| (last, ())).ok_or("refused")?;
        client.finish(last.as_bytes()).map_err(|_| "the server does not know the password")
    }

    #[test]
    fn a_real_client_comes_in_with_the_password_only() {
        let users = users("pä ss");
        assert_eq!(attempt(&users, "app", "pä ss"), Ok(()));
        assert_eq!(attempt(&users, "app", "pass"), Err("refused"));
        assert_eq!(attempt(&users, "nobody", "pä ss"), Err("refused"));
    }

    #[test]
    fn a_stored_verifier_is_as_good_as_the_password() {
        let stored = postgres_protocol::password::scram_sha_256(b"secret");
        assert_eq!(attempt(&users(&stored), "app", "secret"), Ok(()));
        assert!(Verifier::new("SCRAM-SHA-256$4096:c2FsdA==$short:short").is_none());
    }

    #[test]
    fn other_words_are_refused() {
        let users = users("secret");
        for first in ["", "p=tls-server-end-point,,n=,r=x", "n,a=other,n=,r=x", "n,,n=", "n,,n=,r=", "n,,m=x,n=,r=x"] {
            assert!(users.exchange("app").first(first).is_none(), "{first}");
        }
        let mut exchange = users.exchange("app");
        assert!(exchange.last("c=biws,r=x,p=eA==").is_none(), "nothing was asked");
        let ours = exchange.first("n,,n=,r=x").expect("understood");
        let nonce = ours.split(',').next().expect("a nonce").to_owned();
        for last in [format!("c=eSws,{nonce},p=eA=="), format!("c=biws,{nonce}"), format!("c=biws,{nonce},p=eA==")] {
            let _ = exchange.first("n,,n=,r=x");
            assert!(exchange.last(&last).is_none(), "{last}");
        }
    }
}
