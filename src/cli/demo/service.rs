//! The real `ruvector serve` as a process of its own, in a directory of its own: started, killed, removed at the end.

use crate::cli::client::Client;
use crate::cli::private_postgres::{JANITOR, Shell, last_lines};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Owns one run of the service, as the private PostgreSQL's keeper does: each line it reads is the name of a signal, and
/// the end of its input, which every way of dying of the demo brings about, is a SIGKILL.
/// Arguments: ruvector, configuration file, log file.
const KEEPER: &str = r#"
exec 3<&0 </dev/null
"$1" serve --config "$2" 3<&- 2>>"$3" &
pid=$!
trap '' PIPE
{
  while read -r word <&3; do kill -s "$word" "$pid"; done
  kill -s KILL "$pid"
} >/dev/null 2>&1 &
watcher=$!
wait "$pid"
kill -s KILL "$watcher" 2>/dev/null
"#;

const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// The service, running or killed.
pub struct Service {
    /// Where it answers.
    pub url: String,
    /// Requests to it.
    pub client: Client,
    // Fields are dropped in this order: the service is gone before its directory is removed.
    keeper: Shell,
    home: Home,
}

struct Home {
    root: PathBuf,
    janitor: Shell,
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.janitor.end(STOP_DEADLINE) || self.root.exists() {
            tracing::warn!(directory = %self.root.display(), "the demo left its directory behind");
        }
    }
}

impl Service {
    /// Starts it beside a source. `collections` is the rest of its configuration.
    pub fn start(dsn: &str, collections: &str) -> Result<Service> {
        let home = Home::make()?;
        let data = home.root.join("data");
        let config = format!(
            "[source]\ndsn = {dsn:?}\n\n[storage]\ndir = {:?}\n\n[http]\nlisten = \"127.0.0.1:0\"\n\n{collections}",
            data.display().to_string()
        );
        std::fs::write(home.config(), config)?;
        let (keeper, url) = home.run()?;
        Ok(Service { client: Client::new(&url), url, keeper, home })
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.home.config()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.home.log_tail()
    }

    /// `kill -9`; returns when it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.keeper.tell("KILL")?;
        ensure!(self.keeper.wait(STOP_DEADLINE), "the service outlives kill -9");
        Ok(())
    }

    /// Starts it again on the same data.
    pub fn start_again(&mut self) -> Result<()> {
        let (keeper, url) = self.home.run()?;
        (self.keeper, self.client, self.url) = (keeper, Client::new(&url), url);
        Ok(())
    }

    /// Waits until `/readyz` says yes, and shows each answer to `see`.
    pub fn wait_ready(&self, limit: Duration, mut see: impl FnMut(&Client)) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.client.get("/readyz")?;
            if answer["ready"] == true {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not ready after {limit:?}: {}", answer["reason"].as_str().unwrap_or("it does not say why"));
            }
            see(&self.client);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The collection as `GET` shows it.
    pub fn collection(&self) -> Result<Json> {
        self.client.get("/v1/collections/docs")
    }

    /// A search of the collection.
    pub fn search(&self, body: &Json) -> Result<Json> {
        self.client.post("/v1/collections/docs/search", body)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A killed service's keeper is gone as well, and then there is nobody to tell.
        let _ = self.keeper.tell("TERM");
        if !self.keeper.wait(STOP_DEADLINE) {
            tracing::warn!("the service does not stop; it is killed");
        }
        self.keeper.end(STOP_DEADLINE);
    }
}

impl Home {
    fn make() -> Result<Home> {
        let mut command = Command::new("sh");
        command.args(["-c", JANITOR, "ruvector-demo-janitor"]).stderr(Stdio::null());
        command.arg(std::env::temp_dir().join("ruvector-demo-XXXXXXXX"));
        let (janitor, root) = Shell::start(command)?;
        ensure!(!root.is_empty(), "cannot make a directory in {}", std::env::temp_dir().display());
        Ok(Home { root: PathBuf::from(root), janitor })
    }

    fn config(&self) -> PathBuf {
        self.root.join("ruvector.toml")
    }

    fn log(&self) -> PathBuf {
        self.root.join("ruvector.log")
    }

    fn log_tail(&self) -> String {
        last_lines(&std::fs::read_to_string(self.log()).unwrap_or_default(), 20)
    }

    /// The keeper of a new run, and where the service says it listens.
    fn run(&self) -> Result<(Shell, String)> {
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "ruvector-demo-keeper"]);
        command.arg(ours()?).arg(self.config()).arg(self.log()).stderr(Stdio::null());
        forget_settings(&mut command);
        let (keeper, line) = Shell::start_saying(command, "listening on ")?;
        let Some(url) = line.strip_prefix("listening on ") else {
            bail!("the service did not start; its log ends with\n{}", self.log_tail());
        };
        Ok((keeper, url.to_owned()))
    }
}

/// A run of this very program beside the service.
pub fn command(config: &Path) -> Result<Command> {
    let mut command = Command::new(ours()?);
    forget_settings(&mut command);
    command.env("RUVECTOR_CONFIG", config).stdin(Stdio::null());
    Ok(command)
}

fn ours() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

/// What is set for another service must not steer this one.
fn forget_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RUVECTOR_") {
            command.env_remove(name);
        }
    }
}
