//! One source, one service behind a proxy, a writer that never tires and a reader who believes nothing: what an answer
//! says of its own age is held against what was committed when.

use super::proxy::Proxy;
use super::support::soak::Random;
use super::support::{DEADLINE, DOCS, Database, Service, Sql, cluster, wait_until};
use ruvector::cli::client::Client;
use ruvector::cli::private_postgres::{PrivatePostgres, Settings};
use ruvector::model::Lsn;
use serde_json::{Value as Json, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Beside [`DOCS`]: one row whose stamp is raised by every transaction of the writer.
pub const BEACON: &str = "[[collections]]
table = \"public.beacon\"
name = \"beacon\"
filter_columns = [\"stamp\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
";

/// Stamps of one history of the source; the next one starts higher.
const HISTORY: i64 = 1_000_000_000;

struct Commit {
    at: Instant,
    stamp: i64,
    lsn: Lsn,
}

/// What the source contains, as far as the writer was told.
struct History {
    number: i64,
    /// None while the source is between two histories: nobody can say what is right.
    since: Option<Instant>,
    /// The stamp it began with.
    base: i64,
    commits: Vec<Commit>,
}

pub struct Shared {
    dsn: Mutex<String>,
    url: Mutex<Option<String>>,
    history: Mutex<History>,
    stop: AtomicBool,
    rest: AtomicBool,
    resting: AtomicBool,
    pub transactions: AtomicU64,
    pub answers: AtomicU64,
    pub flagged: AtomicU64,
    pub refused: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a world differs from the usual one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Usual,
    /// The service is a role of its own whose password comes from a command; the publication is the DBA's.
    Role,
}

pub struct World {
    pub shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    pub service: Service,
    pub proxy: Proxy,
    pub database: Database,
    pub postgres: PrivatePostgres,
    /// What is out of use and must not end before the service.
    kept: Vec<(PrivatePostgres, Proxy)>,
    pub random: Random,
}

impl World {
    pub fn new(kind: Kind, seed: u64) -> World {
        let mut random = Random(seed);
        let settings = Settings::default().with("wal_sender_timeout", "3s").with("max_wal_size", "1GB");
        let mut postgres = cluster(settings);
        let database = Database::of(&postgres);
        database.docs(300);
        database.sql.run(
            "CREATE TABLE beacon (id int PRIMARY KEY, stamp bigint, embedding real[]);
             INSERT INTO beacon VALUES (1, 0, '{1,2,3,4}')",
        );
        let proxy = Proxy::start(postgres.port(), random.next());
        let mut dsn = database.dsn.replace(&postgres.port().to_string(), &proxy.port().to_string());
        let mut source = String::from("silence_limit_s = 2\n");
        dsn.push_str("?connect_timeout=2");
        let mut service = Service::configured(&database, "", "");
        if kind == Kind::Role {
            dsn = dsn.replace("postgres@", "follower@");
            set_password(&database.sql, &service, "first");
            database.sql.run(&format!(
                "ALTER ROLE follower LOGIN REPLICATION; GRANT SELECT ON docs, beacon TO follower;
                 CREATE PUBLICATION {} FOR TABLE docs, beacon WITH (publish_via_partition_root = true)",
                database.name
            ));
            let rules = postgres.data_dir().join("pg_hba.conf");
            let text = std::fs::read_to_string(&rules).expect("readable");
            let text = format!("host all follower 127.0.0.1/32 scram-sha-256\n{text}");
            std::fs::write(&rules, text).expect("writable");
            postgres.reload().expect("it runs");
            let command = format!("cat {}", password_file(&service).display());
            source.push_str(&format!("create_publication = false\npassword_command = \"{command}\"\n"));
        }
        service.configure(&dsn, &source, &format!("{DOCS}{BEACON}"));
        let shared = Arc::new(Shared {
            dsn: Mutex::new(database.dsn.clone()),
            url: Mutex::new(None),
            history: Mutex::new(History { number: 0, since: Some(Instant::now()), base: 0, commits: Vec::new() }),
            stop: AtomicBool::new(false),
            rest: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            transactions: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            flagged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            wrong: Mutex::default(),
        });
        service.start();
        service.wait_ready();
        let mut world =
            World { shared, threads: Vec::new(), service, proxy, database, postgres, kept: Vec::new(), random };
        world.tell_url();
        let (shared, seed) = (world.shared.clone(), world.random.next());
        world.threads.push(std::thread::spawn(move || write(&shared, &mut Random(seed))));
        let shared = world.shared.clone();
        world.threads.push(std::thread::spawn(move || read(&shared)));
        world.pause(200, 600);
        world
    }

    /// The service listens somewhere else, or nowhere.
    pub fn tell_url(&mut self) {
        let url = (!self.service.has_ended()).then(|| self.service.url().to_owned());
        *lock(&self.shared.url) = url;
    }

    pub fn stop_service(&mut self) {
        *lock(&self.shared.url) = None;
        self.service.terminate();
    }

    pub fn start_service(&mut self) {
        self.service.start();
        self.tell_url();
    }

    /// Keeps what is out of use until the end.
    pub fn keep(&mut self, old: (PrivatePostgres, Proxy)) {
        self.kept.push(old);
    }

    /// Some time passes.
    pub fn pause(&mut self, least: u64, most: u64) {
        std::thread::sleep(Duration::from_millis(least + self.random.below(most - least + 1)));
    }

    /// The writer rests, and waits for nothing.
    pub fn rest(&self) {
        self.shared.rest.store(true, Ordering::SeqCst);
        wait_until("the writer rests", || self.shared.resting.load(Ordering::SeqCst));
    }

    /// The source becomes another one: what was committed so far may be gone.
    pub fn between_histories(&self) {
        lock(&self.shared.history).since = None;
    }

    /// From now on this is the source. A connection to it.
    pub fn new_history(&mut self, dsn: &str) {
        *lock(&self.shared.dsn) = dsn.to_owned();
        self.database.sql = Sql::connect(dsn);
        let base = self.database.sql.one("SELECT stamp FROM beacon").parse().expect("a number");
        let history = &mut *lock(&self.shared.history);
        *history = History { number: history.number + 1, since: Some(Instant::now()), base, commits: Vec::new() };
    }

    /// After a restart of the same server.
    pub fn connect_again(&mut self) {
        self.database.sql = self.database.connect();
    }

    /// The service's slot as it says.
    pub fn slot(&self) -> String {
        self.service.status()["slot"].as_str().expect("a slot").to_owned()
    }

    /// Waits until the service says that it does not follow.
    pub fn wait_for_trouble(&mut self) {
        self.service.wait_for("it notices", |service| service.status()["replication"]["phase"] != "streaming");
    }

    /// Drops the slot under the service's feet.
    pub fn drop_slot(&self, slot: &str) {
        let drop = format!(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active;
             SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        let gone = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
        wait_until("the slot is dropped", || {
            let _ = self.database.sql.try_run(&drop);
            self.database.sql.one(&gone) == "0"
        });
    }

    /// Waits until the service follows again and has everything; the time since the fault was mended.
    pub fn heals(&mut self, mended: Instant) -> Duration {
        self.tell_url();
        let end = self.database.sql.lsn();
        let fresh = |service: &Service| {
            let Ok(status) = service.client().get("/v1/status") else { return false };
            let age = status["positions"]["staleness_ms"].as_f64();
            let applied = status["positions"]["applied"].as_str().and_then(|lsn| lsn.parse::<Lsn>().ok());
            status["replication"]["phase"] == "streaming"
                && status["stale"].is_null()
                && service.is_ready()
                && age.is_some_and(|age| age < 1500.0)
                && applied >= Some(end)
        };
        let started = Instant::now();
        while !fresh(&self.service) {
            let status = self.service.client().get("/v1/status");
            assert!(started.elapsed() < DEADLINE, "it does not heal: {status:?}\n{}", self.service.log_tail());
            assert!(!self.service.has_ended(), "it ended instead of healing:\n{}", self.service.log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
        mended.elapsed()
    }

    /// Some more writing, then everything must be as in the source: rows, slots, and nothing wrong was ever said.
    pub fn judge(mut self) -> Arc<Shared> {
        self.pause(200, 400);
        self.rest();
        self.service.catch_up(&self.database.sql);
        let rows = ["docs", "beacon"].map(|name| self.service.verify_clean(name));
        let count = |table: &str| self.database.sql.one(&format!("SELECT count(*) FROM {table}"));
        assert_eq!(rows.map(|rows| rows.to_string()), ["docs", "beacon"].map(count));
        let slots = "SELECT coalesce(string_agg(slot_name, ','), '') FROM pg_replication_slots";
        let slot = self.slot();
        let started = Instant::now();
        while self.database.sql.one(slots) != slot {
            assert!(started.elapsed() < DEADLINE, "slots {}, used {slot}", self.database.sql.one(slots));
            std::thread::sleep(Duration::from_millis(50));
        }
        self.end();
        let wrong = std::mem::take(&mut *lock(&self.shared.wrong));
        assert!(
            wrong.is_empty(),
            "{} wrong answers:\n{}\n{}",
            wrong.len(),
            wrong[..wrong.len().min(5)].join("\n"),
            self.service.log_tail()
        );
        self.shared.clone()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join()
                && !std::thread::panicking()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end();
    }
}

fn password_file(service: &Service) -> std::path::PathBuf {
    service.data_dir().with_file_name("password")
}

/// Only for what the source takes; the service's side is [`tell_password`].
pub fn change_password(sql: &Sql, password: &str) {
    sql.run(&format!(
        "SET password_encryption = 'scram-sha-256';
         DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'follower') THEN CREATE ROLE follower; END IF; END $$;
         ALTER ROLE follower PASSWORD '{password}'"
    ));
}

/// What the service's password command says.
pub fn tell_password(service: &Service, password: &str) {
    std::fs::write(password_file(service), password).expect("writable");
}

fn set_password(sql: &Sql, service: &Service, password: &str) {
    change_password(sql, password);
    tell_password(service, password);
}

/// Writes random transactions wherever the source is at the moment, and takes note of what was committed.
fn write(shared: &Shared, random: &mut Random) {
    let mut connection: Option<(String, Sql)> = None;
    let mut number = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.rest.load(Ordering::SeqCst) {
            shared.resting.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            continue;
        }
        let dsn = lock(&shared.dsn).clone();
        if connection.as_ref().is_none_or(|(to, _)| *to != dsn) {
            connection = Sql::try_connect(&dsn).ok().map(|sql| (dsn, sql));
        }
        let Some((_, sql)) = &connection else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        number += 1;
        let stamp = lock(&shared.history).number * HISTORY + number;
        let text = transaction(random, stamp);
        let committed = sql.try_run(&text).is_ok();
        let lsn = committed.then(|| sql.try_text("SELECT pg_current_wal_flush_lsn()")).flatten();
        match lsn.and_then(|lsn| lsn.parse().ok()) {
            Some(lsn) => {
                shared.transactions.fetch_add(1, Ordering::Relaxed);
                let history = &mut *lock(&shared.history);
                if stamp / HISTORY == history.number {
                    history.commits.push(Commit { at: Instant::now(), stamp, lsn });
                }
            }
            // Perhaps it was committed, perhaps not: no promise was made.
            None => connection = None,
        }
        std::thread::sleep(Duration::from_millis(random.below(8)));
    }
    shared.resting.store(true, Ordering::SeqCst);
}

fn transaction(random: &mut Random, stamp: i64) -> String {
    let mut text = String::from("BEGIN;");
    for _ in 0..1 + random.below(3) {
        let (id, other, seed) = (1 + random.below(400), 1 + random.below(400), random.below(1 << 30));
        text.push_str(&match random.below(8) {
            0..=2 => format!(
                "INSERT INTO docs VALUES ({id}, 's{}', 'b', vec({seed}, 4)) ON CONFLICT (id) DO UPDATE SET embedding = excluded.embedding;",
                seed % 5
            ),
            3 | 4 => format!("UPDATE docs SET section = 's{}' WHERE id = {id};", seed % 5),
            5 => format!("DELETE FROM docs WHERE id = {id};"),
            6 if id != other => format!("DELETE FROM docs WHERE id = {other}; UPDATE docs SET id = {other} WHERE id = {id};"),
            _ => format!("UPDATE docs SET embedding = vec({seed}, 4) WHERE id BETWEEN {id} AND {id} + 5;"),
        });
    }
    text + &format!("UPDATE beacon SET stamp = {stamp}; COMMIT;")
}

/// Searches all the time. An answer that is not marked stale must contain everything that was committed before the age it
/// admits, nothing of a history that is gone, and one that was asked for a position everything up to it.
fn read(shared: &Shared) {
    let mut client: Option<(String, Client)> = None;
    while !shared.stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(10));
        let Some(url) = lock(&shared.url).clone() else { continue };
        if client.as_ref().is_none_or(|(to, _)| *to != url) {
            client = Some((url.clone(), Client::new(&url)));
        }
        let Some((_, client)) = &client else { continue };
        for token in [false, true] {
            if let Some(wrong) = ask(shared, client, token) {
                lock(&shared.wrong).push(wrong);
            }
        }
    }
}

fn ask(shared: &Shared, client: &Client, token: bool) -> Option<String> {
    let mut body = json!({ "query": { "vector": [1, 2, 3, 4] }, "limit": 1, "recheck": "none", "columns": ["stamp"] });
    let (number, since, base, wanted) = {
        let history = lock(&shared.history);
        let last = history.commits.last().filter(|_| token).map(|commit| (commit.stamp, commit.lsn));
        (history.number, history.since?, history.base, last)
    };
    match wanted {
        Some((_, lsn)) => body["consistency"] = json!({ "at_least": lsn.to_string(), "timeout_ms": 100 }),
        None if token => return None,
        None => {}
    }
    let asked = Instant::now();
    let answer = client.post("/v1/collections/beacon/search", &body);
    let history = lock(&shared.history);
    if history.since.is_none() || history.number != number {
        return None;
    }
    let Ok(answer) = answer else {
        shared.refused.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    shared.answers.fetch_add(1, Ordering::Relaxed);
    let age = answer["staleness_ms"].as_f64().filter(|_| answer["stale"].is_null());
    let Some(age) = age else {
        shared.flagged.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    let found: Option<i64> = stamp(&answer);
    // Rounded to hundredths of a millisecond.
    let as_of = asked.checked_sub(Duration::from_secs_f64((age + 0.1) / 1000.0))?;
    // It says itself that it may be of the history before, whose positions mean nothing here.
    if as_of < since {
        return None;
    }
    if let Some((stamp, lsn)) = wanted
        && found.is_none_or(|found| found < stamp)
    {
        return Some(format!("asked for {lsn} with stamp {stamp}, found {found:?} in {answer}"));
    }
    let known = history.commits.partition_point(|commit| commit.at <= as_of);
    let least = known.checked_sub(1).map_or(base, |at| history.commits[at].stamp);
    let of_this_history = found.is_some_and(|found| found == base || found / HISTORY == number);
    if !of_this_history || found < Some(least) {
        return Some(format!(
            "{age} ms old, so at least stamp {least} of history {number}, found {found:?} in {answer}"
        ));
    }
    None
}

fn stamp(answer: &Json) -> Option<i64> {
    answer["hits"][0]["columns"]["stamp"].as_i64()
}
