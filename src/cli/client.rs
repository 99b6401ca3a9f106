//! The command line's HTTP client: plain requests to a running service, its problems as errors.

use anyhow::{Context, anyhow, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// Where the service is, and who asks it.
#[derive(clap::Args, Clone)]
pub struct Target {
    /// Address of the running service.
    #[arg(long, env = "RUVECTOR_URL", default_value = "http://127.0.0.1:8480")]
    pub url: String,
    /// API key, or token, where the service asks for one. Others on this machine may see arguments: the variable is safer.
    #[arg(long, env = "RUVECTOR_KEY", hide_env_values = true)]
    pub key: Option<String>,
    /// Certificates in PEM that the service's must be signed by; those of the system when absent.
    #[arg(long, env = "RUVECTOR_CA")]
    pub ca: Option<PathBuf>,
    /// Certificate in PEM to show to the service, where it asks for one.
    #[arg(long, env = "RUVECTOR_CERT", requires = "cert_key")]
    pub cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, env = "RUVECTOR_CERT_KEY", requires = "cert")]
    pub cert_key: Option<PathBuf>,
}

/// A client of one running service.
pub struct Client {
    base: String,
    agent: ureq::Agent,
    authorization: Option<String>,
}

impl Client {
    /// A client of the service at `url` that asks nobody who they are.
    pub fn new(url: &str) -> Client {
        Client::with(url, None, None)
    }

    /// A client of this service.
    pub fn of(target: &Target) -> anyhow::Result<Client> {
        let host = target.url.strip_prefix("http://").or_else(|| target.url.strip_prefix("https://"));
        if host.is_none_or(|host| host.is_empty() || host.starts_with(['/', ':'])) {
            bail!("--url {:?} is no address; write http://host:port (or RUVECTOR_URL)", target.url);
        }
        let tls = target.url.starts_with("https:").then(|| target.tls()).transpose()?;
        Ok(Client::with(&target.url, target.key.as_deref(), tls))
    }

    fn with(url: &str, key: Option<&str>, tls: Option<TlsConfig>) -> Client {
        let mut settings = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(Duration::from_secs(600)))
            // Nobody else is told the key.
            .max_redirects(0);
        if let Some(tls) = tls {
            settings = settings.tls_config(tls);
        }
        let authorization = key.map(|key| format!("Bearer {key}"));
        Client { base: url.trim_end_matches('/').to_owned(), agent: settings.build().new_agent(), authorization }
    }

    /// GET, as JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<Json> {
        let response = self.authorized(self.agent.get(format!("{}{path}", self.base))).call();
        self.read(response)
    }

    /// POST of JSON, as JSON.
    pub fn post(&self, path: &str, body: &Json) -> anyhow::Result<Json> {
        let request = self.authorized(self.agent.post(format!("{}{path}", self.base)));
        let response = request.header("content-type", "application/json").send(body.to_string());
        self.read(response)
    }

    /// The same of what may take as long as it takes.
    pub fn post_for_long(&self, path: &str, body: &Json) -> anyhow::Result<Json> {
        let request = self.authorized(self.agent.post(format!("{}{path}", self.base)));
        let request = request.config().timeout_global(None).build();
        self.read(request.header("content-type", "application/json").send(body.to_string()))
    }

    /// GET, as text.
    pub fn text(&self, path: &str) -> anyhow::Result<String> {
        let request = self.authorized(self.agent.get(format!("{}{path}", self.base)));
        let mut response = request.call().with_context(|| self.unreachable())?;
        Ok(response.body_mut().read_to_string()?)
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.authorization {
            Some(value) => request.header("authorization", value),
            None => request,
        }
    }

    fn unreachable(&self) -> String {
        format!("no service answers at {}; start one with `ruvector serve`, or say where with --url", self.base)
    }

    fn read(&self, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<Json> {
        let mut response = response.with_context(|| self.unreachable())?;
        let status = response.status();
        let text = response.body_mut().with_config().limit(256 << 20).read_to_string()?;
        let json: Json = serde_json::from_str(&text).with_context(|| {
            format!("what answers at {} ({status}) is no ruvector, or a proxy; say where it is with --url", self.base)
        })?;
        if status.is_success() || json.get("code").is_none() {
            return Ok(json);
        }
        let field = |name: &str| json[name].as_str().unwrap_or_default();
        let hint = json["hint"].as_str().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        Err(anyhow!("{} {}: {}{hint}", field("code"), field("title"), field("detail")))
    }
}

impl Target {
    fn tls(&self) -> anyhow::Result<TlsConfig> {
        let read = |path: &Path| {
            std::fs::read(path).with_context(|| {
                format!("cannot read {}: name a file in PEM that is there and readable", path.display())
            })
        };
        let chain = |path: &Path| -> anyhow::Result<Vec<Certificate<'static>>> {
            let all = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
            let all = all.map_err(|error| anyhow!("{} is no PEM: {error}", path.display()))?;
            if all.is_empty() {
                bail!(
                    "{} has no certificate in it; in PEM one begins with -----BEGIN CERTIFICATE-----",
                    path.display()
                );
            }
            Ok(all.iter().map(|one| Certificate::from_der(one).to_owned()).collect())
        };
        let roots = match &self.ca {
            Some(path) => chain(path)?,
            None => {
                let system = rustls_native_certs::load_native_certs().certs;
                system.iter().map(|one| Certificate::from_der(one).to_owned()).collect()
            }
        };
        let shown = match (&self.cert, &self.cert_key) {
            (Some(cert), Some(key)) => {
                let key = PrivateKey::from_pem(&read(key)?).with_context(|| format!("{}", key.display()))?;
                Some(ClientCert::new_with_certs(&chain(cert)?, key))
            }
            _ => None,
        };
        Ok(TlsConfig::builder()
            .root_certs(RootCerts::from(roots))
            .client_cert(shown)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .build())
    }
}

/// A name as one segment of a path.
pub fn segment(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    name.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}
