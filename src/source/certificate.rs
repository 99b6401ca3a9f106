//! The few things of an X.509 certificate that no library hands out: its key, its end, and the hash that channel binding
//! takes of it (RFC 5929). Total: any bytes give a value or nothing.

use aws_lc_rs::digest::{self, Algorithm};

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;

/// One DER value.
struct Value<'a> {
    tag: u8,
    content: &'a [u8],
}

/// DER values one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<Value<'a>> {
        let (tag, first) = (*self.0.first()?, *self.0.get(1)?);
        let (header, length) = match first {
            ..=0x7f => (2, usize::from(first)),
            0x81..=0x84 => {
                let count = usize::from(first & 0x7f);
                let bytes = self.0.get(2..2 + count)?;
                (2 + count, bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
            }
            _ => return None,
        };
        let end = header.checked_add(length)?;
        let (whole, rest) = self.0.split_at_checked(end)?;
        self.0 = rest;
        Some(Value { tag, content: &whole[header..] })
    }

    fn expect(&mut self, tag: u8) -> Option<Value<'a>> {
        self.next().filter(|value| value.tag == tag)
    }
}

/// What follows the serial number of a certificate: signature algorithm, issuer, validity, subject, key.
fn after_serial(certificate: &[u8]) -> Option<Reader<'_>> {
    let mut outer = Reader(Reader(certificate).expect(SEQUENCE)?.content);
    let mut fields = Reader(outer.expect(SEQUENCE)?.content);
    if fields.next()?.tag == VERSION {
        fields.next()?;
    }
    Some(fields)
}

/// The public key: the identifier of its algorithm without the outer tag and length, and its bits.
pub(super) fn public_key(certificate: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut fields = after_serial(certificate)?;
    (0..4).try_for_each(|_| fields.next().map(drop))?;
    let mut key = Reader(fields.expect(SEQUENCE)?.content);
    let algorithm = key.expect(SEQUENCE)?.content;
    // The first byte says how many bits of the last are unused; keys use all.
    Some((algorithm, key.expect(BIT_STRING)?.content.strip_prefix(&[0])?))
}

/// Up to when it is valid, as `YYYYMMDDHHMMSSZ`, which compares like the time it means.
pub(super) fn not_after(certificate: &[u8]) -> Option<String> {
    let mut fields = after_serial(certificate)?;
    (0..2).try_for_each(|_| fields.next().map(drop))?;
    let mut validity = Reader(fields.expect(SEQUENCE)?.content);
    validity.next()?;
    let end = validity.next()?;
    let text = std::str::from_utf8(end.content).ok()?;
    match end.tag {
        GENERALIZED_TIME => Some(text.to_owned()),
        UTC_TIME => Some(format!("{}{text}", if text < "50" { "20" } else { "19" })),
        _ => None,
    }
}

/// `tls-server-end-point`: the certificate hashed as its signature hashes, but never with less than SHA-256. Nothing
/// for signatures that have no hash of their own (Ed25519): channel binding is not defined for them.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let mut outer = Reader(Reader(certificate).expect(SEQUENCE)?.content);
    outer.next()?;
    let mut algorithm = Reader(outer.expect(SEQUENCE)?.content);
    let oid = algorithm.expect(OID)?.content;
    let hash = if oid == RSA_PSS { pss_hash(algorithm.next()?) } else { hash_of(oid) };
    Some(digest::digest(hash?, certificate).as_ref().to_vec())
}

/// 1.2.840.113549.1.1.10
const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];

/// Object identifiers of signatures and of hashes -> the hash.
fn hash_of(oid: &[u8]) -> Option<&'static Algorithm> {
    // 1.2.840.113549.1.1.*: RSA with MD5, SHA-1, the SHA-2 family.
    if let Some([last]) = oid.strip_prefix(&RSA_PSS[..8]) {
        return match last {
            4 | 5 | 11 => Some(&digest::SHA256),
            12 => Some(&digest::SHA384),
            13 => Some(&digest::SHA512),
            _ => None,
        };
    }
    // 1.2.840.10045.4.*: ECDSA with SHA-1, the SHA-2 family.
    if let Some(rest) = oid.strip_prefix(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4]) {
        return match rest {
            [1] | [3, 2] => Some(&digest::SHA256),
            [3, 3] => Some(&digest::SHA384),
            [3, 4] => Some(&digest::SHA512),
            _ => None,
        };
    }
    // 2.16.840.1.101.3.4.2.*: the hashes themselves.
    match oid.strip_prefix(&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2])? {
        [1] => Some(&digest::SHA256),
        [2] => Some(&digest::SHA384),
        [3] => Some(&digest::SHA512),
        _ => None,
    }
}

/// The hash of RSASSA-PSS is in its parameters; SHA-1 where it is not.
fn pss_hash(parameters: Value<'_>) -> Option<&'static Algorithm> {
    let mut parameters = Reader(parameters.content);
    match parameters.next() {
        Some(value) if value.tag == 0xa0 => {
            let oid = Reader(Reader(value.content).expect(SEQUENCE)?.content).expect(OID)?.content;
            hash_of(oid)
        }
        _ => Some(&digest::SHA256),
    }
}

/// PKCS#8 wraps the older forms of a key; tests unwrap them.
#[cfg(test)]
pub(super) fn inner_key(pkcs8: &[u8]) -> Option<&[u8]> {
    let mut fields = Reader(Reader(pkcs8).expect(SEQUENCE)?.content);
    (0..2).try_for_each(|_| fields.next().map(drop))?;
    Some(fields.expect(0x04)?.content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};

    fn certificate(algorithm: &'static SignatureAlgorithm) -> (Vec<u8>, KeyPair) {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let mut params = CertificateParams::new(vec!["db.example".to_owned()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        (params.self_signed(&key).expect("a certificate").der().to_vec(), key)
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let cases = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Some(32)),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Some(48)),
            (&rcgen::PKCS_ECDSA_P521_SHA512, Some(64)),
            (&rcgen::PKCS_RSA_SHA256, Some(32)),
            (&rcgen::PKCS_RSA_SHA512, Some(64)),
            (&rcgen::PKCS_ED25519, None),
        ];
        for (algorithm, length) in cases {
            let (der, key) = certificate(algorithm);
            assert_eq!(end_point(&der).map(|hash| hash.len()), length, "{algorithm:?}");
            let (_, bits) = public_key(&der).expect("a key");
            assert_eq!(bits, rcgen::PublicKeyData::der_bytes(&key), "{algorithm:?}");
            assert_eq!(not_after(&der).as_deref(), Some("20310203000000Z"));
        }
    }

    proptest! {
        #[test]
        fn any_damage(at in 0usize..400, byte in any::<u8>(), length in 0usize..400) {
            let (mut der, _) = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
            let at = at % der.len();
            der[at] = byte;
            der.truncate(length);
            let _ = (end_point(&der), public_key(&der), not_after(&der));
        }
    }
}
