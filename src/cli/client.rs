//! The command line's HTTP client: plain requests to a running service, its problems as errors.

use anyhow::{Context, anyhow};
use serde_json::Value as Json;
use std::time::Duration;

/// Where the service is.
#[derive(clap::Args, Clone)]
pub struct Target {
    /// Address of the running service.
    #[arg(long, env = "RUVECTOR_URL", default_value = "http://127.0.0.1:8480")]
    pub url: String,
}

/// A client of one running service.
pub struct Client {
    base: String,
    agent: ureq::Agent,
}

impl Client {
    /// A client of the service at `url`.
    pub fn new(url: &str) -> Client {
        let settings = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(Duration::from_secs(600)));
        Client { base: url.trim_end_matches('/').to_owned(), agent: settings.build().new_agent() }
    }

    /// GET, as JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<Json> {
        let response = self.agent.get(format!("{}{path}", self.base)).call();
        self.read(response)
    }

    /// POST of JSON, as JSON.
    pub fn post(&self, path: &str, body: &Json) -> anyhow::Result<Json> {
        let request = self.agent.post(format!("{}{path}", self.base)).header("content-type", "application/json");
        let response = request.send(body.to_string());
        self.read(response)
    }

    /// GET, as text.
    pub fn text(&self, path: &str) -> anyhow::Result<String> {
        let mut response = self.agent.get(format!("{}{path}", self.base)).call().with_context(|| self.unreachable())?;
        Ok(response.body_mut().read_to_string()?)
    }

    fn unreachable(&self) -> String {
        format!("no service answers at {}; start one with `ruvector serve`, or say where with --url", self.base)
    }

    fn read(&self, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<Json> {
        let mut response = response.with_context(|| self.unreachable())?;
        let status = response.status();
        let text = response.body_mut().with_config().limit(256 << 20).read_to_string()?;
        let json: Json =
            serde_json::from_str(&text).with_context(|| format!("{} answered no JSON ({status})", self.base))?;
        if status.is_success() || json.get("code").is_none() {
            return Ok(json);
        }
        let field = |name: &str| json[name].as_str().unwrap_or_default();
        let hint = json["hint"].as_str().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        Err(anyhow!("{} {}: {}{hint}", field("code"), field("title"), field("detail")))
    }
}

/// A name as one segment of a path.
pub fn segment(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    name.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}
