//! The certificate and the key that connections are encrypted with, and whose certificates clients must show: read again
//! when their files change. Both endpoints use it.

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Why there is no encryption.
#[derive(Debug, Clone, thiserror::Error)]
#[error("TLS: {0}")]
pub struct TlsError(pub String);

/// Files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who signs the certificates that clients must show; none: they need none.
    pub client_ca: Option<PathBuf>,
}

/// When each file was written, and its length; none where one cannot be looked at.
type Written = Vec<Option<(SystemTime, u64)>>;

/// What is in the files, as last read.
pub struct Files {
    paths: Paths,
    protocol: &'static [u8],
    read: Mutex<(Written, Arc<ServerConfig>)>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.paths.fmt(f)
    }
}

impl Files {
    /// Reads the files. `protocol` is what is spoken inside, as ALPN has it.
    pub fn new(paths: Paths, protocol: &'static [u8]) -> Result<Files, TlsError> {
        // Looked at first: what is written meanwhile is read again.
        let written = paths.written();
        let config = Arc::new(paths.read(protocol)?);
        Ok(Files { paths, protocol, read: Mutex::new((written, config)) })
    }

    /// How to encrypt: with renewed files as soon as they are whole, with the last good ones until then.
    pub fn current(&self) -> Arc<ServerConfig> {
        let now = self.paths.written();
        let (seen, config) = &mut *self.read.lock();
        if *seen != now {
            *seen = now;
            self.take(config);
        }
        config.clone()
    }

    /// Reads the files again, whether they look changed or not.
    pub fn reload(&self) {
        let now = self.paths.written();
        let (seen, config) = &mut *self.read.lock();
        *seen = now;
        self.take(config);
    }

    fn take(&self, config: &mut Arc<ServerConfig>) {
        match self.paths.read(self.protocol) {
            Ok(renewed) => *config = Arc::new(renewed),
            Err(error) => tracing::warn!(%error, "the renewed certificate is not used; the last one is"),
        }
    }
}

impl Paths {
    fn written(&self) -> Written {
        let look = |path: &PathBuf| {
            let metadata = path.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        [&self.certificate, &self.key].into_iter().chain(&self.client_ca).map(look).collect()
    }

    fn read(&self, protocol: &[u8]) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&self.certificate)?;
        let secret = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| at(&self.key, error))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| TlsError(error.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| at(path, error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| at(path, error))?)
            }
        };
        let mut config = builder.with_single_cert(chain, secret).map_err(|error| at(&self.certificate, error))?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }
}

fn at(path: &Path, error: impl std::fmt::Display) -> TlsError {
    TlsError(format!("{}: {error}", path.display()))
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|error| at(path, error))?;
    if all.is_empty() {
        return Err(at(path, "there is no certificate in it"));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewed_files_are_taken_and_broken_ones_are_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let mut age = 100;
        let mut write = |cert_text: &str, key_text: &str| {
            age -= 10;
            for (path, text) in [(&cert, cert_text), (&key, key_text)] {
                std::fs::write(path, text).expect("a file");
                let file = std::fs::File::options().append(true).open(path).expect("a file");
                file.set_modified(SystemTime::now() - std::time::Duration::from_secs(age)).expect("a time");
            }
        };
        let made = || rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let (first, second) = (made(), made());
        write(&first.cert.pem(), &first.signing_key.serialize_pem());
        let paths = Paths { certificate: cert.clone(), key: key.clone(), client_ca: None };
        let files = || Files::new(paths.clone(), b"postgresql");
        let read = files().expect("they are good");
        let one = read.current();
        assert!(Arc::ptr_eq(&one, &read.current()), "nothing changed");
        write("", "");
        assert!(Arc::ptr_eq(&one, &read.current()), "the last good one");
        write(&second.cert.pem(), &second.signing_key.serialize_pem());
        assert!(!Arc::ptr_eq(&one, &read.current()), "the renewed one");
        // Of two others: a key that does not belong to its certificate is as bad as none.
        write(&first.cert.pem(), &second.signing_key.serialize_pem());
        assert!(files().is_err(), "at the start they have to be good");
        write("", "");
        assert!(files().is_err(), "at the start they have to be good");
    }
}
