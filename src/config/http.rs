//! `[http]`: what is in it, and what of it does not go together.

use crate::config::ConfigError;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// `[http]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented in config/ruvector.toml, once")]
pub struct Http {
    pub listen: SocketAddr,
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    pub client_ca: PathBuf,
    pub max_connections: usize,
    pub head_timeout_s: u64,
    pub write_timeout_s: u64,
    pub max_body_bytes: usize,
    pub max_concurrent: usize,
    pub max_queue_ms: u64,
    pub ready_staleness_s: u64,
}

impl Http {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |text: &str| Err(ConfigError(text.to_owned()));
        let (certificate, key) = (self.tls_cert.as_os_str(), self.tls_key.as_os_str());
        match self {
            _ if certificate.is_empty() != key.is_empty() => refuse("http.tls_cert and http.tls_key go together"),
            _ if certificate.is_empty() && !self.client_ca.as_os_str().is_empty() => {
                refuse("http.client_ca needs http.tls_cert")
            }
            Http { max_concurrent: 0, .. } => refuse("http.max_concurrent is 0; at least 1"),
            Http { max_connections: 0, .. } => refuse("http.max_connections is 0; at least 1"),
            Http { head_timeout_s: 0, .. } => refuse("http.head_timeout_s is 0; at least 1"),
            Http { write_timeout_s: 0, .. } => refuse("http.write_timeout_s is 0; at least 1"),
            _ => Ok(()),
        }
    }
}
