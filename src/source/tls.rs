//! TLS to the source: one rustls configuration per connection, so that renewed files are taken, and what its errors mean.

use crate::source::certificate;
use crate::source::conninfo::{Roots, Ssl, SslMode, Target};
use crate::source::{Result, SourceError, chain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Once};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The handshake, on a socket whose server has agreed to it.
pub(super) async fn handshake(tcp: TcpStream, ssl: &Ssl, target: &Target) -> Result<TlsStream<TcpStream>> {
    let config = client_config(ssl)?;
    let name = server_name(ssl, target)?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    connecting.await.map_err(|error| explain(&error, Some(target)))
}

/// What channel binding needs to know of the server: a hash of its certificate.
pub(super) fn end_point(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    certificate::end_point(stream.get_ref().1.peer_certificates()?.first()?)
}

/// The name the certificate must be made out for, and that is sent to the server.
fn server_name(ssl: &Ssl, target: &Target) -> Result<ServerName<'static>> {
    let name = if target.host.is_empty() { target.address.as_deref().unwrap_or_default() } else { &target.host };
    if ssl.mode == SslMode::VerifyFull && target.host.is_empty() {
        let problem = "sslmode=verify-full without a host: there is no name to verify";
        return Err(SourceError::refused(problem, "add host= to hostaddr= in source.dsn"));
    }
    match ServerName::try_from(name.to_owned()) {
        Ok(name) => Ok(name),
        // A name that no certificate can have (with a zone, say) is no obstacle where none is verified.
        Err(_) if ssl.mode != SslMode::VerifyFull => Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()),
        Err(_) => Err(SourceError::refused(
            format!("no certificate can be made out for {name:?}"),
            "give the host in source.dsn the name that stands in the server's certificate",
        )),
    }
}

fn client_config(ssl: &Ssl) -> Result<ClientConfig> {
    let provider = provider();
    let verifier = Verifier {
        trust: match &ssl.roots {
            Some(roots) if ssl.mode >= SslMode::VerifyCa => Some(Trust::load(roots)?),
            _ => None,
        },
        name: ssl.mode == SslMode::VerifyFull,
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SourceError::refused(format!("TLS: {error}"), "report this"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match &ssl.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let (chain, secret) = (certificates(certificate, "sslcert")?, private_key(key)?);
            builder.with_client_auth_cert(chain, secret).map_err(|error| {
                let problem =
                    format!("sslcert {} and sslkey {} do not fit: {error}", certificate.display(), key.display());
                SourceError::refused(problem, "give the key that the certificate was made for")
            })
        }
    }
}

/// The process' only provider of cryptography.
fn provider() -> Arc<CryptoProvider> {
    static INSTALL: Once = Once::new();
    // Fails where a program that uses this crate has chosen already; its choice stands.
    INSTALL.call_once(|| drop(aws_lc_rs::default_provider().install_default()));
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()))
}

/// All certificates of a PEM file. At least one.
fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>> {
    let refuse = |what: String| {
        let remedy = format!("{key} must be a PEM file with BEGIN CERTIFICATE that this process can read");
        SourceError::refused(format!("{key} {}: {what}", path.display()), remedy)
    };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(refuse("no certificate in it".into())),
        Ok(found) => Ok(found),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// A key in PKCS#8, PKCS#1 or SEC1, not encrypted, and nobody else's to read, as libpq demands.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let refuse =
        |what: String, remedy: String| SourceError::refused(format!("sslkey {}: {what}", path.display()), remedy);
    let metadata = std::fs::metadata(path)
        .map_err(|error| refuse(error.to_string(), "sslkey must be a file that this process can read".into()))?;
    // Root's key may be readable by a group that the service is in.
    let forbidden = if metadata.uid() == 0 { 0o027 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(refuse("others can read it".into(), format!("chmod 600 {}", path.display())));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        let remedy = "a PEM file with BEGIN PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY is needed; an encrypted one is \
                      opened by: openssl pkey -in KEY -out PLAIN";
        refuse(error.to_string(), remedy.into())
    })
}

/// Whom we trust.
#[derive(Debug)]
struct Trust {
    authorities: RootCertStore,
    /// The same as they are: a server may show one of them itself, as the usual self-signed one does.
    themselves: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn load(roots: &Roots) -> Result<Trust> {
        let themselves = match roots {
            Roots::File(path) => certificates(path, "sslrootcert")?,
            Roots::System => rustls_native_certs::load_native_certs().certs,
        };
        let mut authorities = RootCertStore::empty();
        let (fit, _) = authorities.add_parsable_certificates(themselves.iter().cloned());
        if fit == 0 {
            let remedy = "install the operating system's certificates (ca-certificates), or name a file in sslrootcert";
            return Err(SourceError::refused("sslrootcert has no certificate that can be used", remedy));
        }
        Ok(Trust { authorities, themselves })
    }
}

/// Verifies what `sslmode` says, and always that the server has its certificate's key: channel binding stands on that.
#[derive(Debug)]
struct Verifier {
    trust: Option<Trust>,
    name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(shown)?;
        if trust.themselves.iter().any(|trusted| trusted == shown) {
            still_valid(shown, now)?;
        } else {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &trust.authorities, intermediates, now, algorithms)?;
        }
        if self.name {
            verify_server_name(&parsed, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Verifier {
    /// With the bare key: also where the certificate itself is of an age (version 1) that only unverified modes accept.
    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let (kind, key) = certificate::public_key(certificate).ok_or(CertificateError::BadEncoding)?;
        let mapped = self.algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme);
        let mut fitting =
            mapped.flat_map(|(_, algorithms)| *algorithms).filter(|a| a.public_key_alg_id().as_ref() == kind);
        match fitting.any(|algorithm| algorithm.verify_signature(key, message, signed.signature()).is_ok()) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }
}

fn still_valid(certificate: &[u8], now: UnixTime) -> std::result::Result<(), rustls::Error> {
    let end = certificate::not_after(certificate).ok_or(CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| jiff::Timestamp::from_second(now).ok());
    let now = now.ok_or(rustls::Error::FailedToGetCurrentTime)?;
    match now.strftime("%Y%m%d%H%M%SZ").to_string() <= end {
        true => Ok(()),
        false => Err(CertificateError::Expired.into()),
    }
}

/// The TLS error in a chain of causes, if there is one.
pub(super) fn cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error does not show the error it carries as its source.
        let carried = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = carried.and_then(|carried| carried.downcast_ref::<rustls::Error>()) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// A failure during or after a handshake: what certificates decide is for a person, all else may pass.
pub(super) fn explain(error: &(dyn std::error::Error + 'static), target: Option<&Target>) -> SourceError {
    let at = target.map_or(String::new(), |target| format!(" to {target}"));
    match cause(error).and_then(remedy) {
        Some(remedy) => SourceError::refused(format!("TLS{at}: {}", chain(error)), remedy),
        None => SourceError::Unavailable(format!("TLS{at}: {}", chain(error))),
    }
}

/// What a person must do, where it takes one.
fn remedy(error: &rustls::Error) -> Option<&'static str> {
    use rustls::Error as E;
    Some(match error {
        E::InvalidCertificate(reason) => match reason {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "use a host in source.dsn that the server's certificate names as a subjectAltName (its CN does not count), or \
                 sslmode=verify-ca"
            }
            CertificateError::UnknownIssuer => {
                "sslrootcert must hold the certificate of the authority that signed the server's; see who did: openssl \
                 s_client -starttls postgres -connect HOST:PORT"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "renew the server's certificate",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "check the clocks of this machine and of the server"
            }
            CertificateError::BadSignature => {
                "the server does not have the key of its certificate, or somebody is in between"
            }
            _ => {
                "the server's certificate must be of X.509 version 3 with a subjectAltName, signed by an authority in \
                   sslrootcert or be in that file itself"
            }
        },
        E::AlertReceived(alert) => match alert {
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError => {
                "the server does not accept our certificate: sslcert and sslkey must be of an authority in its ssl_ca_file"
            }
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity => "the server must offer TLS 1.2 or 1.3 with a modern cipher",
            AlertDescription::UnrecognisedName => "the server does not know the host name in source.dsn",
            _ => return None,
        },
        E::PeerIncompatible(_) => "the server must offer TLS 1.2 or 1.3 with a modern cipher",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::conninfo::ConnInfo;
    use std::os::unix::fs::PermissionsExt;

    fn pem(label: &str, der: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut body = String::new();
        for group in der.chunks(3) {
            let bits = group.iter().enumerate().fold(0u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
            let digit = |at: usize| char::from(DIGITS[(bits >> (18 - 6 * at)) as usize & 63]);
            body.extend((0..4).map(|at| if at <= group.len() { digit(at) } else { '=' }));
        }
        let lines: Vec<&str> =
            body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    #[test]
    fn keys_of_every_form_are_read_with_their_certificate() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let cases = [
            (&rcgen::PKCS_RSA_SHA256, "PKCS#1", "RSA PRIVATE KEY"),
            (&rcgen::PKCS_ECDSA_P256_SHA256, "SEC1", "EC PRIVATE KEY"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "SEC1", "EC PRIVATE KEY"),
            (&rcgen::PKCS_ED25519, "PKCS#8", "PRIVATE KEY"),
        ];
        for (algorithm, form, label) in cases {
            let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
            let params = rcgen::CertificateParams::new(vec!["me".to_owned()]).expect("a name");
            std::fs::write(path("cert"), params.self_signed(&key).expect("signed").pem()).expect("write");
            let inner = match form {
                "PKCS#8" => key.serialized_der(),
                _ => certificate::inner_key(key.serialized_der()).expect("a wrapped key"),
            };
            for text in [key.serialize_pem(), pem(label, inner)] {
                std::fs::write(path("key"), text).expect("write");
                std::fs::set_permissions(path("key"), std::fs::Permissions::from_mode(0o600)).expect("chmod");
                let identity = Some((path("cert"), path("key")));
                let config = client_config(&Ssl { mode: SslMode::Require, roots: None, identity });
                assert!(config.is_ok(), "{form} {label}: {:?}", config.err());
            }
        }
    }

    #[test]
    fn bad_files_are_named_with_a_remedy() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str, mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("write");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            path
        };
        let made = rcgen::generate_simple_self_signed(vec!["me".to_owned()]).expect("a certificate");
        let other = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        let key = made.signing_key.serialize_pem();
        let cert = write("cert", &made.cert.pem(), 0o644);
        let roots = |path| Ssl { mode: SslMode::VerifyCa, roots: Some(Roots::File(path)), identity: None };
        let ours = |cert, key| Ssl { mode: SslMode::Require, roots: None, identity: Some((cert, key)) };
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let missing = dir.path().join("missing");
        let cases = [
            (roots(missing.clone()), "sslrootcert"),
            (roots(write("empty", "nothing", 0o644)), "no certificate in it"),
            (
                roots(write("broken", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n", 0o644)),
                "sslrootcert",
            ),
            (ours(missing.clone(), write("key", &key, 0o600)), "sslcert"),
            (ours(cert.clone(), missing), "sslkey"),
            (ours(cert.clone(), write("open", &key, 0o644)), "chmod 600"),
            (ours(cert.clone(), write("encrypted", encrypted, 0o600)), "openssl pkey"),
            (ours(cert.clone(), write("other", &other, 0o600)), "do not fit"),
        ];
        for (ssl, expected) in cases {
            let error = client_config(&ssl).expect_err(expected);
            assert!(!error.is_transient() && error.to_string().contains(expected), "{expected}: {error}");
        }
        assert!(client_config(&roots(cert)).is_ok());
    }

    #[test]
    fn the_name_to_verify() {
        let name = |text: &str| {
            let info = ConnInfo::parse(&format!("{text} user=u")).expect(text);
            server_name(&info.ssl, &info.targets[0]).map(|name| name.to_str().into_owned())
        };
        let full = "sslmode=verify-full sslrootcert=/ca";
        assert_eq!(name("host=db.example").expect("a name"), "db.example");
        assert_eq!(name("host=under_score.example").expect("a name"), "under_score.example");
        assert_eq!(name(&format!("host=db.example hostaddr=::1 {full}")).expect("a name"), "db.example");
        assert_eq!(name(&format!("host=::1 {full}")).expect("a name"), "::1");
        assert!(name(&format!("hostaddr=::1 {full}")).is_err());
        assert!(name(&format!("host=fe80::1%eth0 {full}")).is_err());
        assert_eq!(name("host=fe80::1%eth0").expect("any"), "0.0.0.0");
    }
}
