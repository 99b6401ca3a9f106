//! The certificate and the key that connections are encrypted with, read again when their files change.

use crate::server::pg::OpenError;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// When both files were written; none where one cannot be looked at.
type Written = [Option<SystemTime>; 2];

/// What is in the files, as last read.
pub struct Files {
    paths: Option<(PathBuf, PathBuf)>,
    read: Mutex<Option<(Written, Arc<ServerConfig>)>>,
}

impl Files {
    /// Reads the files, where there are any.
    pub fn new(paths: Option<(PathBuf, PathBuf)>) -> Result<Files, OpenError> {
        let read = match &paths {
            Some((certificate, key)) => Some((written(certificate, key), Arc::new(read(certificate, key)?))),
            None => None,
        };
        Ok(Files { paths, read: Mutex::new(read) })
    }

    /// How to encrypt: with renewed files as soon as they are whole, with the last good ones until then.
    pub fn current(&self) -> Option<Arc<ServerConfig>> {
        let (certificate, key) = self.paths.as_ref()?;
        let now = written(certificate, key);
        let mut last = self.read.lock();
        let (seen, config) = last.as_mut()?;
        if *seen != now {
            *seen = now;
            match read(certificate, key) {
                Ok(renewed) => *config = Arc::new(renewed),
                Err(error) => tracing::warn!(%error, "SQL: the renewed certificate is not used; the last one is"),
            }
        }
        Some(config.clone())
    }
}

fn written(certificate: &Path, key: &Path) -> Written {
    [certificate, key].map(|path| path.metadata().and_then(|metadata| metadata.modified()).ok())
}

fn read(certificate: &Path, key: &Path) -> Result<ServerConfig, OpenError> {
    let at = |path: &Path, error: String| OpenError::Tls(format!("{}: {error}", path.display()));
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| at(certificate, error.to_string()))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| at(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| OpenError::Tls(error.to_string()))?.with_no_client_auth();
    let mut config = builder.with_single_cert(chain, secret).map_err(|error| at(certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
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
        let files = Files::new(Some((cert.clone(), key.clone()))).expect("they are good");
        let one = files.current().expect("encrypted");
        assert!(Arc::ptr_eq(&one, &files.current().expect("encrypted")), "nothing changed");
        write("", "");
        assert!(Arc::ptr_eq(&one, &files.current().expect("encrypted")), "the last good one");
        write(&second.cert.pem(), &second.signing_key.serialize_pem());
        assert!(!Arc::ptr_eq(&one, &files.current().expect("encrypted")), "the renewed one");
        write("", "");
        assert!(Files::new(Some((cert.clone(), key.clone()))).is_err(), "at the start they have to be good");
    }
}
