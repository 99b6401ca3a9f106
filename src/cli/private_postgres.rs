//! A private, throw-away PostgreSQL cluster: made, started, stopped and removed by this process, whatever way it ends.
//!
//! Two small shell processes hold a pipe from this one: the janitor, which owns the directory from its first moment, and
//! the keeper, which owns one run of the server and passes it signals. The pipes' end, which every way of dying brings
//! about (also `kill -9`), makes the keeper stop the server and then the janitor remove the directory. `Drop` does no more
//! than close the pipes, so the unusual end is the one that every test exercises.

use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::hash::BuildHasher;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};

/// What to run where a server is missing.
const INSTALL_HINT: &str = "sudo apt-get update && sudo apt-get install -y --no-install-recommends postgresql";
/// Longest wait for a server to accept connections; recovery after an immediate stop is part of it.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// An immediate stop gives children 5 s before they are killed; a fast one waits for a last checkpoint.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const START_ATTEMPTS: usize = 5;
/// Below Linux' ephemeral range (32768 and up): while a server is down, a client that keeps trying its port must not be
/// given that very port as its own source port, connect to itself and so occupy it.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
/// Temporary directories are swept file by file after days; a template is made anew long before.
const TEMPLATE_LIFE: Duration = Duration::from_secs(20 * 3600);
/// A socket's path must fit into `sockaddr_un` (108 bytes) with a directory's and the socket's name added.
const LONGEST_PARENT: usize = 60;

/// Owns the directory. Argument: the pattern of its name. Tells the name, and removes it when nothing is to be read any more.
///
/// Where the owner just died the server may need a moment, and removing files under its feet would fill logs with alarms;
/// whoever still makes files after that (a copy under way) makes the removal fail, so it is tried again.
pub(super) const JANITOR: &str = r#"
trap '' PIPE
root=$(mktemp -d "$1") || exit 1
echo "$root"
while read -r word; do :; done
waited=0
while [ $waited -lt 100 ] && kill -s 0 "$(head -n 1 "$root/data/postmaster.pid")"; do
  sleep 0.1
  waited=$((waited + 1))
done 2>/dev/null
for attempt in 1 2 3 4 5 6 7 8 9 10; do
  rm -rf "$root" 2>/dev/null && exit 0
  sleep 0.2
done
exit 1
"#;

/// Owns one run of the server, and ends with it. Arguments: postgres, data directory, port, log file.
///
/// Tells the server's process number. Every line it reads is the name of a signal for the server. The watcher is a second
/// process because a shell cannot wait for a child and read at the same time; its last signal is repeated because a shell
/// starts its background processes deaf to SIGQUIT, and the server listens only a few milliseconds later. SIGPIPE is
/// ignored because a parent that died must not take the shell along before the server.
const KEEPER: &str = r#"
exec 3<&0 </dev/null
"$1" -D "$2" -p "$3" 3<&- >>"$4" 2>&1 &
pid=$!
trap '' PIPE
echo "pid $pid"
{
  while read -r word <&3; do kill -s "$word" "$pid"; done
  while kill -s QUIT "$pid"; do sleep 0.1; done
} >/dev/null 2>&1 &
watcher=$!
wait "$pid"
kill -s KILL "$watcher" 2>/dev/null
"#;

/// How a cluster differs from the usual one.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Lines for `postgresql.conf`, after the usual ones: the last of a name wins. Values are quoted here.
    pub extra: Vec<(String, String)>,
    /// Write to disk for real. Off, a crash of the *machine* loses the cluster; a crash of the server loses nothing.
    pub fsync: bool,
    /// Run `initdb` instead of copying the template: half a second slower, and the only way to another system identifier.
    pub own_identity: bool,
    /// Where `initdb` and `postgres` are; none: [`PrivatePostgres::find_binaries`].
    pub bin_dir: Option<PathBuf>,
}

impl Settings {
    /// The same with one more line for `postgresql.conf`.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.extra.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// How a server is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Disconnect clients, let replication connections drain, write a checkpoint (SIGINT).
    Fast,
    /// Leave everything as it is; the next start recovers from the WAL (SIGQUIT).
    Immediate,
    /// The main process is killed with -9; its children notice and leave by themselves.
    Killed,
}

impl Stop {
    fn signal(self) -> &'static str {
        match self {
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
            Stop::Killed => "KILL",
        }
    }
}

/// A running (or stopped) private cluster. Dropping it stops the server and removes the directory.
#[derive(Debug)]
pub struct PrivatePostgres {
    bin_dir: PathBuf,
    port: u16,
    account: Option<Account>,
    // Fields are dropped in this order: the server is gone before its directory is removed.
    keeper: Option<Keeper>,
    janitor: Janitor,
}

impl PrivatePostgres {
    /// The folder that has both `initdb` and `postgres`: `RUVECTOR_PG_BIN`, else that of `pg_config` or `postgres` on the
    /// PATH, else the newest below `/usr/lib/postgresql`. The error says what to install.
    pub fn find_binaries() -> Result<PathBuf> {
        if let Some(named) = std::env::var_os("RUVECTOR_PG_BIN").filter(|named| !named.is_empty()) {
            let named = PathBuf::from(named);
            return if has_server(&named) {
                Ok(named)
            } else {
                bail!("RUVECTOR_PG_BIN is {}, where initdb and postgres are not both found", named.display())
            };
        }
        from_pg_config()
            .into_iter()
            .chain(from_path())
            .chain(from_debian(Path::new("/usr/lib/postgresql")))
            .find(|folder| has_server(folder))
            .ok_or_else(|| {
                anyhow!(
                    "no PostgreSQL server found (initdb and postgres in one folder); run\n  {INSTALL_HINT}\n\
                     or set RUVECTOR_PG_BIN to the folder of an existing one"
                )
            })
    }

    /// Makes a cluster in a temporary directory, starts it and waits until it accepts connections.
    ///
    /// Blocking: some 0.2 s, and half a second more for a machine's first cluster of the day, which makes the template.
    /// The super-user is `postgres`, without a password, on 127.0.0.1 and on a socket in the directory. Clusters share
    /// the template's system identifier unless [`Settings::own_identity`] is set.
    pub fn start(settings: Settings) -> Result<Self> {
        let bin_dir = match settings.bin_dir {
            Some(folder) => folder,
            None => Self::find_binaries()?,
        };
        let account = server_account()?;
        let maker = Maker { bin_dir: &bin_dir, account: account.as_ref() };
        let janitor = maker.temporary_directory()?;
        maker.make_cluster(&janitor.root, settings.own_identity)?;
        write_settings(&janitor.root, settings.fsync, &settings.extra)?;
        let (port, keeper) = maker.start_on_free_port(&janitor.root)?;
        Ok(Self { bin_dir, port, account, keeper: Some(keeper), janitor })
    }

    /// Where clients connect: database `postgres` as user `postgres`. The same after a restart.
    pub fn dsn(&self) -> String {
        self.dsn_of("postgres")
    }

    /// The same for another database, whose name needs no escaping in a URL.
    pub fn dsn_of(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of everything that belongs to this cluster; it is gone after the drop. Holds the unix socket too.
    pub fn root_dir(&self) -> &Path {
        &self.janitor.root
    }

    /// PostgreSQL's data directory.
    pub fn data_dir(&self) -> PathBuf {
        data_dir(self.root_dir())
    }

    /// Where `psql`, `pg_recvlogical` and `pgbench` are found if they are installed.
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// The process number of the main server process, if it runs.
    pub fn server_pid(&self) -> Option<u32> {
        self.keeper.as_ref().map(|keeper| keeper.server_pid)
    }

    /// The last `n` lines of the server's log, also where there are fewer.
    pub fn log_tail(&self, n: usize) -> String {
        log_tail(self.root_dir(), n)
    }

    /// Appends a setting to `postgresql.conf`; it holds from [`Self::reload`] or the next start on, as its kind wants.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        append_settings(self.root_dir(), [(name, value)])
    }

    /// Makes the server read its configuration again.
    pub fn reload(&mut self) -> Result<()> {
        match &mut self.keeper {
            Some(keeper) => keeper.signal("HUP").context("cannot reload the private PostgreSQL"),
            None => bail!("the private PostgreSQL is stopped"),
        }
    }

    /// Stops the server and waits until it is gone; the data stays. Nothing happens where it is stopped already.
    pub fn stop(&mut self, how: Stop) -> Result<()> {
        let Some(keeper) = &mut self.keeper else { return Ok(()) };
        // A server that died by itself took its keeper along, and then cannot be told.
        let told = keeper.signal(how.signal());
        if !keeper.wait(STOP_DEADLINE) {
            told.context("cannot stop the private PostgreSQL")?;
            bail!("the private PostgreSQL did not stop in {STOP_DEADLINE:?}; its log ends with\n{}", self.log_tail(20));
        }
        self.keeper = None;
        Ok(())
    }

    /// Starts a stopped server again on the same port and data; recovery runs if the stop was not a clean one.
    pub fn start_again(&mut self) -> Result<()> {
        if self.keeper.is_some() {
            bail!("the private PostgreSQL runs already");
        }
        let maker = Maker { bin_dir: &self.bin_dir, account: self.account.as_ref() };
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match maker.run(&self.janitor.root, self.port)? {
                Started::Ready(keeper) => {
                    self.keeper = Some(keeper);
                    return Ok(());
                }
                // After a kill -9 children of the old server may hold its memory and port for some moments.
                Started::Busy(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                Started::Busy(log) | Started::Failed(log) => bail!("PostgreSQL did not start again:\n{log}"),
            }
        }
    }

    /// [`Self::stop`] and [`Self::start_again`].
    pub fn restart(&mut self, how: Stop) -> Result<()> {
        self.stop(how)?;
        self.start_again()
    }
}

/// See [`JANITOR`].
#[derive(Debug)]
struct Janitor {
    root: PathBuf,
    shell: Shell,
}

impl Drop for Janitor {
    fn drop(&mut self) {
        if !self.shell.end(STOP_DEADLINE) || self.root.exists() {
            tracing::warn!(directory = %self.root.display(), "private PostgreSQL left its directory behind");
        }
    }
}

/// See [`KEEPER`].
#[derive(Debug)]
struct Keeper {
    server_pid: u32,
    shell: Shell,
}

impl Keeper {
    fn start(command: Command) -> Result<Self> {
        let (shell, line) = Shell::start(command)?;
        let pid = line.strip_prefix("pid ").and_then(|pid| pid.parse().ok());
        let server_pid =
            pid.ok_or_else(|| anyhow!("the keeper of the private PostgreSQL said {line:?}, not its pid"))?;
        Ok(Self { server_pid, shell })
    }

    fn signal(&mut self, name: &str) -> Result<()> {
        self.shell.tell(name)
    }

    /// Whether the server ended within the time.
    fn wait(&mut self, limit: Duration) -> bool {
        self.shell.wait(limit)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if !self.shell.end(STOP_DEADLINE) {
            tracing::warn!(pid = self.server_pid, "private PostgreSQL does not stop");
        }
    }
}

/// A shell process that does its duty when its standard input ends.
#[derive(Debug)]
pub(super) struct Shell {
    child: Child,
    /// None once it was told to end.
    pipe: Option<ChildStdin>,
}

impl Shell {
    /// Starts it and waits for the first line it has to say, empty where it ended without one.
    pub(super) fn start(command: Command) -> Result<(Self, String)> {
        Self::start_saying(command, "")
    }

    /// The same, but waits for the first line that begins like this.
    pub(super) fn start_saying(mut command: Command, begin: &str) -> Result<(Self, String)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Ctrl-C is for the foreground group: the owner decides what it means, not the server.
        command.process_group(0);
        let mut child = command.spawn().context("cannot start sh")?;
        let pipe = child.stdin.take();
        let (mut line, mut said) = (String::new(), BufReader::new(child.stdout.take().expect("stdout is piped")));
        while said.read_line(&mut line)? > 0 && !line.starts_with(begin) {
            line.clear();
        }
        Ok((Self { child, pipe }, line.trim_end().to_owned()))
    }

    /// Says a line to it.
    pub(super) fn tell(&mut self, line: &str) -> Result<()> {
        let pipe = self.pipe.as_mut().expect("the pipe is closed at the end only");
        Ok(writeln!(pipe, "{line}")?)
    }

    /// Whether it ended within the time.
    pub(super) fn wait(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) => return false,
                // An error says that the child is no longer ours to wait for.
                Ok(Some(_)) | Err(_) => return true,
            }
        }
    }

    /// Lets it do its duty. Whether it ended within the time.
    pub(super) fn end(&mut self, limit: Duration) -> bool {
        self.pipe = None;
        self.wait(limit)
    }
}

enum Started {
    Ready(Keeper),
    /// Port or shared memory belong to somebody else: try again or elsewhere.
    Busy(String),
    Failed(String),
}

/// Runs PostgreSQL's programs in the right account.
struct Maker<'a> {
    bin_dir: &'a Path,
    account: Option<&'a Account>,
}

impl Maker<'_> {
    /// A command in the server's account, away from our working directory, which that account may not enter.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").stdin(Stdio::null());
        // A stray variable of a client must not steer a server.
        for name in ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGSERVICE"] {
            command.env_remove(name);
        }
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    fn output(&self, command: &mut Command) -> Result<Output> {
        let program = command.get_program().to_owned();
        let shown = program.to_string_lossy();
        let output = command.output().with_context(|| match self.account {
            Some(account) => format!("cannot run {shown} as user {} (may that user read it?)", account.name),
            None => format!("cannot run {shown}"),
        })?;
        if !output.status.success() {
            bail!("{shown} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(output)
    }

    /// Made *by* the server's account: it owns the directory, and a parent it may not enter is found out here.
    fn temporary_directory(&self) -> Result<Janitor> {
        let wanted = std::env::temp_dir();
        let parents = [wanted.as_path(), Path::new("/tmp")];
        for parent in parents.into_iter().filter(|parent| parent.as_os_str().len() <= LONGEST_PARENT) {
            let mut command = self.command("sh");
            command.args(["-c", JANITOR, "ruvector-postgres-janitor"]).arg(parent.join("ruvector-pg-XXXXXXXX"));
            command.stderr(Stdio::null());
            let (shell, root) = Shell::start(command)?;
            if !root.is_empty() {
                return Ok(Janitor { root: PathBuf::from(root), shell });
            }
        }
        let who = self.account.map_or("this user", |account| account.name.as_str());
        bail!("no directory for a private PostgreSQL: {who} cannot make one in {} or /tmp", wanted.display())
    }

    fn make_cluster(&self, root: &Path, own_identity: bool) -> Result<()> {
        let data = data_dir(root);
        if own_identity {
            return self.initdb(&data);
        }
        let template = self.template_path(root)?;
        if !self.is_usable(&template) {
            self.make_template(root, &template)?;
        }
        let copied = self.output(self.command("cp").arg("-a").arg(&template).arg(&data));
        copied.map(drop).or_else(|error| {
            // Somebody may have replaced the template under our hands.
            tracing::warn!(error = format!("{error:#}"), "cannot copy the template of a private PostgreSQL");
            if data.exists() {
                std::fs::remove_dir_all(&data)?;
            }
            self.initdb(&data)
        })
    }

    fn initdb(&self, data: &Path) -> Result<()> {
        let mut command = self.command(self.bin_dir.join("initdb"));
        command.arg("-D").arg(data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]);
        command.args(["--locale", if has_utf8_locale() { "C.UTF-8" } else { "C" }]);
        self.output(&mut command).map(drop)
    }

    /// One per account, version and installation.
    fn template_path(&self, root: &Path) -> Result<PathBuf> {
        let version = self.output(self.command(self.bin_dir.join("postgres")).arg("--version"))?.stdout;
        let uid = std::fs::metadata(root)?.uid();
        let mut told_apart = version;
        told_apart.extend_from_slice(self.bin_dir.as_os_str().as_encoded_bytes());
        let name = format!("ruvector-pg-template-{uid}-{:016x}", xxhash_rust::xxh3::xxh3_64(&told_apart));
        Ok(root.with_file_name(name))
    }

    /// The name can be guessed and temporary directories are everybody's, so only what our account made is trusted.
    fn is_usable(&self, template: &Path) -> bool {
        let Ok(metadata) = template.symlink_metadata() else { return false };
        let ours = self.account.map_or_else(effective_uid, |account| Ok(account.uid));
        let age = metadata.modified().ok().and_then(|made| SystemTime::now().duration_since(made).ok());
        metadata.is_dir()
            && ours.is_ok_and(|uid| uid == metadata.uid())
            && metadata.mode() & 0o077 == 0
            && age.is_none_or(|age| age < TEMPLATE_LIFE)
    }

    /// Complete before it gets its name; of two processes that make it at once one wins, and both are content.
    fn make_template(&self, root: &Path, template: &Path) -> Result<()> {
        let fresh = root.join("template");
        self.initdb(&fresh)?;
        // Replaces a template that is too old; a directory cannot be renamed onto one that is not empty.
        let old = root.join("old-template");
        if template.symlink_metadata().is_ok() && std::fs::rename(template, &old).is_ok() {
            // What stays goes with the cluster's own directory.
            let _ = std::fs::remove_dir_all(&old);
        }
        if std::fs::rename(&fresh, template).is_err() {
            tracing::debug!(template = %template.display(), "template of private PostgreSQL was made by another");
            std::fs::remove_dir_all(&fresh)?;
        }
        Ok(())
    }

    /// A free port is only known to have been free, so that losing it to another process is no failure.
    fn start_on_free_port(&self, root: &Path) -> Result<(u16, Keeper)> {
        let mut last = String::new();
        for _ in 0..START_ATTEMPTS {
            let port = free_port()?;
            match self.run(root, port)? {
                Started::Ready(keeper) => return Ok((port, keeper)),
                Started::Busy(log) => last = log,
                Started::Failed(log) => bail!("PostgreSQL did not start; its log ends with\n{log}"),
            }
        }
        bail!("PostgreSQL did not start on any of {START_ATTEMPTS} ports; its log ends with\n{last}")
    }

    fn run(&self, root: &Path, port: u16) -> Result<Started> {
        let data = data_dir(root);
        let log_start = File::open(log_path(root)).and_then(|log| log.metadata()).map_or(0, |log| log.len());
        let mut command = self.command("sh");
        command.args(["-c", KEEPER, "ruvector-postgres-keeper"]);
        command.arg(self.bin_dir.join("postgres")).arg(&data).arg(port.to_string()).arg(log_path(root));
        command.stderr(Stdio::null());
        let mut keeper = Keeper::start(command)?;
        let deadline = Instant::now() + START_DEADLINE;
        while !is_ready(&data, keeper.server_pid) {
            if keeper.wait(Duration::from_millis(10)) {
                let log = log_since(root, log_start);
                let busy = ["Address already in use", "shared memory block", "lock file"];
                let busy = busy.iter().any(|sign| log.contains(sign));
                let log = last_lines(&log, 20);
                return Ok(if busy { Started::Busy(log) } else { Started::Failed(log) });
            }
            if Instant::now() > deadline {
                return Ok(Started::Failed(last_lines(&log_since(root, log_start), 20)));
            }
        }
        Ok(Started::Ready(keeper))
    }
}

/// Whom the server runs as when we are root, whom PostgreSQL refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

fn server_account() -> Result<Option<Account>> {
    if effective_uid()? != 0 {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let account = choose_account(&passwd);
    account
        .map(Some)
        .ok_or_else(|| anyhow!("PostgreSQL refuses to run as root, and there is no user postgres or nobody"))
}

fn choose_account(passwd: &str) -> Option<Account> {
    ["postgres", "nobody"].iter().find_map(|wanted| {
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let account = match fields.as_slice() {
                [name, _, uid, gid, ..] if name == wanted => {
                    Account { name: (*name).to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()? }
                }
                _ => return None,
            };
            (account.uid != 0).then_some(account)
        })
    })
}

fn effective_uid() -> Result<u32> {
    let output = Command::new("id").arg("-u").output().context("cannot run id")?;
    Ok(String::from_utf8(output.stdout)?.trim_end().parse()?)
}

fn has_server(folder: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file())
}

fn from_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(folder.trim_end()))
}

/// Symbolic links are followed: a server finds its own files from the folder it really is in.
fn from_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter_map(|folder| Some(folder.join("postgres").canonicalize().ok()?.parent()?.to_path_buf()))
        .collect()
}

/// Debian's layout, newest first; a package of the client alone has a folder as well.
fn from_debian(versions: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(versions)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, folder)| folder).collect()
}

fn has_utf8_locale() -> bool {
    let Ok(output) = Command::new("locale").arg("-a").stderr(Stdio::null()).output() else { return false };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .any(|name| name.eq_ignore_ascii_case("C.UTF-8") || name.eq_ignore_ascii_case("C.utf8"))
}

fn free_port() -> Result<u16> {
    let random = RandomState::new();
    let width = u64::from(PORTS.end - PORTS.start);
    (0..200_u32)
        .map(|attempt| PORTS.start + u16::try_from(random.hash_one(attempt) % width).expect("the width is a u16"))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| anyhow!("no free port in {PORTS:?} on 127.0.0.1"))
}

fn data_dir(root: &Path) -> PathBuf {
    root.join("data")
}

fn log_path(root: &Path) -> PathBuf {
    root.join("server.log")
}

/// What the server itself says in its lock file (PostgreSQL 10 and later, what `pg_ctl -w` reads): line 1 is its
/// process, line 8 its state. A connection would succeed while it still recovers, or reach somebody else's server.
fn is_ready(data: &Path, pid: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { return false };
    let mut lines = text.lines();
    lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid)
        && lines.nth(6).is_some_and(|state| state.trim_end() == "ready")
}

fn write_settings(root: &Path, fsync: bool, extra: &[(String, String)]) -> Result<()> {
    let sockets = root.to_string_lossy();
    let usual = [
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", sockets.as_ref()),
        ("wal_level", "logical"),
        ("max_replication_slots", "20"),
        ("max_wal_senders", "20"),
        ("max_prepared_transactions", "10"),
        ("fsync", if fsync { "on" } else { "off" }),
        ("logging_collector", "off"),
    ];
    append_settings(root, usual.into_iter().chain(extra.iter().map(|(name, value)| (name.as_str(), value.as_str()))))
}

fn append_settings<'a>(root: &Path, settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<()> {
    let path = data_dir(root).join("postgresql.conf");
    let mut file = OpenOptions::new().append(true).open(&path).with_context(|| path.display().to_string())?;
    let lines: String = settings.into_iter().map(|(name, value)| setting_line(name, value)).collect();
    Ok(file.write_all(lines.as_bytes())?)
}

fn setting_line(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''"))
}

fn log_since(root: &Path, start: u64) -> String {
    let mut text = Vec::new();
    let read = File::open(log_path(root)).and_then(|mut log| {
        log.seek(SeekFrom::Start(start))?;
        log.read_to_end(&mut text)
    });
    match read {
        Ok(_) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => format!("(cannot read the log: {error})"),
    }
}

fn log_tail(root: &Path, n: usize) -> String {
    last_lines(&log_since(root, 0), n)
}

pub(super) fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted() {
        assert_eq!(setting_line("a", "it's"), "a = 'it''s'\n");
        assert_eq!(setting_line("a", r"\n"), "a = '\\\\n'\n");
    }

    #[test]
    fn the_account_is_postgres_then_nobody_and_never_root() {
        let line = |name: &str, uid: u32| format!("{name}:x:{uid}:7:,,,:/:/bin/sh\n");
        let chosen = |passwd: String| choose_account(&passwd).map(|account| (account.name, account.uid, account.gid));
        assert_eq!(chosen(line("nobody", 9) + &line("postgres", 5)), Some(("postgres".into(), 5, 7)));
        assert_eq!(chosen(line("postgres2", 5) + &line("nobody", 9)), Some(("nobody".into(), 9, 7)));
        assert_eq!(chosen(line("root", 0) + &line("postgres", 0)), None);
    }

    #[test]
    fn the_newest_version_comes_first() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        for version in ["9.6", "15", "9", "17", "README"] {
            std::fs::create_dir(folder.path().join(version)).expect("a new directory");
        }
        let found = from_debian(folder.path());
        let expected: Vec<PathBuf> = ["17", "15", "9"].iter().map(|v| folder.path().join(v).join("bin")).collect();
        assert_eq!(found, expected);
        assert!(from_debian(&folder.path().join("missing")).is_empty());
    }

    #[test]
    fn last_lines_are_the_last() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 5), "a");
        assert_eq!(last_lines("", 5), "");
    }
}
