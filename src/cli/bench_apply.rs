//! `ruvector bench apply`: how fast committed rows become durable here and searchable, beside `pg_recvlogical` draining
//! the same WAL.

use crate::cli::client::Client;
use crate::cli::private_postgres::{PrivatePostgres, Settings};
use crate::config::Config;
use crate::model::Lsn;
use crate::node;
use crate::storage::state;
use anyhow::{Context, anyhow, bail};
use serde_json::{Value as Json, json};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_postgres::{NoTls, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

/// Rows of one transaction where throughput is measured.
const BATCH: usize = 1_000;
/// Rows of one transaction where staleness is measured.
const SMALL: usize = 10;
/// How often positions are looked at; no figure here is finer.
const LOOK: Duration = Duration::from_millis(1);
/// While a backlog is drained, looking takes time from what is measured.
const LOOK_AT_BACKLOG: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(1800);

/// Arguments of `bench apply`.
#[derive(clap::Args)]
pub struct Args {
    /// Rows, inserted in transactions of 1,000.
    #[arg(long, default_value_t = 50_000)]
    rows: usize,
    /// Dimensions of their vectors.
    #[arg(long, default_value_t = 128)]
    dim: usize,
    /// Rows a second, in transactions of 10, while staleness is measured.
    #[arg(long, default_value_t = 1_000)]
    rate: usize,
    /// Seconds of that.
    #[arg(long, default_value_t = 10)]
    seconds: usize,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.rows == 0 || args.dim == 0 || args.rate < SMALL || args.seconds == 0 {
        bail!("--rows, --dim and --seconds must be at least 1, --rate at least {SMALL}");
    }
    let bench = Bench::prepare(args)?;
    bench.print(&bench.settings()?);
    let service = bench.serve()?;
    service.wait(|status| status["not_ready"].is_null())?;
    let empty = peak_rss()?;
    bench.print(&bench.live(&service)?);
    bench.print(&bench.staleness(&service)?);
    bench.end(service)?;
    let (theirs, ours) = bench.backlog(&empty)?;
    bench.print(&theirs);
    bench.print(&ours);
    Ok(())
}

struct Bench<'a> {
    args: &'a Args,
    runtime: Runtime,
    sql: tokio_postgres::Client,
    // The service's files go before the cluster does.
    dir: Scratch,
    postgres: PrivatePostgres,
}

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The service in this process: everything that `ruvector serve` runs.
struct Service {
    client: Client,
    stop: CancellationToken,
    thread: JoinHandle<Result<(), node::NodeError>>,
    /// How often its positions are looked at.
    look: Duration,
}

impl<'a> Bench<'a> {
    fn prepare(args: &'a Args) -> anyhow::Result<Bench<'a>> {
        // A large max_wal_size: no checkpoint of the server falls into a measurement.
        let settings = Settings { fsync: true, ..Settings::default() }.with("max_wal_size", "16GB");
        let postgres = PrivatePostgres::start(settings)?;
        let dir = Scratch(std::env::temp_dir().join(format!("ruvector-bench-{}", std::process::id())));
        std::fs::create_dir_all(&dir.0).with_context(|| dir.0.display().to_string())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (sql, connection) = runtime.block_on(tokio_postgres::connect(&postgres.dsn(), NoTls))?;
        runtime.spawn(connection);
        let bench = Bench { args, runtime, sql, dir, postgres };
        // What is inserted is made before, and where it leaves no WAL.
        bench.execute(&format!(
            "CREATE TABLE items (id bigint PRIMARY KEY, embedding real[]);
             ALTER TABLE items ALTER embedding SET STORAGE EXTERNAL;
             CREATE UNLOGGED TABLE made AS
               SELECT i AS id, (SELECT array_agg((random() - 0.5)::real) FROM generate_series(1, {}) j WHERE i = i) AS embedding
                 FROM generate_series(1, {}) i;
             ALTER TABLE made ADD PRIMARY KEY (id);
             ANALYZE made",
            args.dim, args.rows
        ))?;
        Ok(bench)
    }

    fn execute(&self, sql: &str) -> anyhow::Result<()> {
        Ok(self.runtime.block_on(self.sql.batch_execute(sql))?)
    }

    fn ask(&self, sql: &str) -> anyhow::Result<String> {
        let messages = self.runtime.block_on(self.sql.simple_query(sql))?;
        let value = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        value.ok_or_else(|| anyhow!("no answer: {sql}"))
    }

    /// End of the WAL that is on disk. There is one writer: right after its commit that is the commit's end.
    fn end_of_wal(&self) -> anyhow::Result<Lsn> {
        Ok(self.ask("SELECT pg_current_wal_flush_lsn()")?.parse()?)
    }

    fn settings(&self) -> anyhow::Result<Json> {
        Ok(json!({
            "phase": "settings",
            "postgres": self.ask("SHOW server_version")?,
            "fsync": self.ask("SHOW fsync")?,
            "synchronous_commit": self.ask("SHOW synchronous_commit")?,
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
            "debug_build": cfg!(debug_assertions),
            "rows": self.args.rows,
            "dim": self.args.dim,
            "rows_per_transaction": BATCH,
        }))
    }

    fn print(&self, line: &Json) {
        if self.args.json {
            say!("{line}");
            return;
        }
        let phase = line["phase"].as_str().unwrap_or("?");
        let mut text = format!("{phase}:");
        for (name, value) in line.as_object().into_iter().flatten().filter(|(name, _)| *name != "phase") {
            text.push_str(&format!(" {}={}", name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        }
        say!("{text}");
    }

    fn serve(&self) -> anyhow::Result<Service> {
        let file = self.dir.0.join("ruvector.toml");
        let text = format!(
            "[source]\ndsn = \"{}\"\n[storage]\ndir = {:?}\n[http]\nlisten = \"127.0.0.1:0\"\n\
             [[collections]]\ntable = \"items\"\nname = \"items\"\n\
             [[collections.vectors]]\ncolumn = \"embedding\"\nmetric = \"cosine\"\ndimensions = {}\n",
            self.postgres.dsn(),
            self.dir.0.join("data"),
            self.args.dim
        );
        std::fs::write(&file, text)?;
        let options = node::Options::try_from(&Config::load(Some(&file))?)?;
        let specs = tokio::sync::watch::channel(options.collections.clone()).1;
        let (listening, address) = mpsc::channel();
        let stop = CancellationToken::new();
        let (handle, token) = (self.runtime.handle().clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            handle.block_on(node::run(options, specs, token, move |at| {
                let _ = listening.send(at.http);
            }))
        });
        let Ok(address) = address.recv() else { return Err(ended(thread)) };
        Ok(Service { client: Client::new(&format!("http://{address}")), stop, thread, look: LOOK })
    }

    fn end(&self, service: Service) -> anyhow::Result<()> {
        service.stop.cancel();
        Ok(service.thread.join().map_err(|_| anyhow!("the service panicked"))??)
    }

    /// Inserts all rows, keys moved by `offset`, in transactions of [`BATCH`].
    fn insert(&self, offset: usize) -> anyhow::Result<()> {
        for start in (1..=self.args.rows).step_by(BATCH) {
            let end = (start + BATCH - 1).min(self.args.rows);
            self.execute(&format!(
                "INSERT INTO items SELECT id + {offset}, embedding FROM made WHERE id BETWEEN {start} AND {end}"
            ))?;
        }
        Ok(())
    }

    /// Rows a second from the first statement until the last row is durable here, and searchable; the writer is part of it.
    fn live(&self, service: &Service) -> anyhow::Result<Json> {
        let started = Instant::now();
        self.insert(0)?;
        let written = started.elapsed();
        let end = self.end_of_wal()?;
        let durable = service.reach("durable", end, started)?;
        let searchable = service.reach("applied", end, started)?;
        Ok(json!({
            "phase": "live",
            "committed_rows_per_s": self.per_second(written),
            "durable_rows_per_s": self.per_second(durable),
            "searchable_rows_per_s": self.per_second(searchable),
            "durable_after_last_commit_ms": millis(durable.saturating_sub(written)),
            "searchable_after_last_commit_ms": millis(searchable.saturating_sub(written)),
        }))
    }

    fn per_second(&self, time: Duration) -> u64 {
        (self.args.rows as f64 / time.as_secs_f64()) as u64
    }

    /// Time from a commit's return to its rows being searchable, at a steady rate.
    fn staleness(&self, service: &Service) -> anyhow::Result<Json> {
        let (commits, committed) = mpsc::channel::<(Lsn, Instant)>();
        let transactions = self.args.rate * self.args.seconds / SMALL;
        let pause = Duration::from_secs_f64(SMALL as f64 / self.args.rate as f64);
        std::thread::scope(|scope| {
            let watching = scope.spawn(move || watch(&service.client, &committed));
            let started = Instant::now();
            for number in 0..transactions {
                std::thread::sleep((started + pause * number as u32).saturating_duration_since(Instant::now()));
                let first = 1 + number * SMALL % self.args.rows;
                self.execute(&format!(
                    "INSERT INTO items SELECT {} + id, embedding FROM made WHERE id BETWEEN {first} AND {}",
                    self.args.rows * (2 + number * SMALL / self.args.rows),
                    first + SMALL - 1
                ))?;
                let returned = Instant::now();
                commits.send((self.end_of_wal()?, returned)).context("the watcher ended")?;
            }
            let took = started.elapsed();
            drop(commits);
            let mut times = watching.join().map_err(|_| anyhow!("the watcher panicked"))??;
            times.sort_unstable();
            let quantile = |share: f64| times.get(((times.len() - 1) as f64 * share) as usize).copied();
            Ok(json!({
                "phase": "staleness",
                "rows_per_s_wanted": self.args.rate,
                "rows_per_s": ((transactions * SMALL) as f64 / took.as_secs_f64()) as u64,
                "rows_per_transaction": SMALL,
                "transactions": times.len(),
                "p50_ms": quantile(0.5).map(millis),
                "p99_ms": quantile(0.99).map(millis),
                "max_ms": quantile(1.0).map(millis),
            }))
        })
    }

    /// The same WAL, written while nobody followed, drained by `pg_recvlogical` and then by a service that starts. `empty` is
    /// what a service without rows takes.
    fn backlog(&self, empty: &Rss) -> anyhow::Result<(Json, Json)> {
        self.execute("SELECT pg_create_logical_replication_slot('recvlogical', 'pgoutput')")?;
        self.insert(1 << 40)?;
        let end = self.end_of_wal()?;
        let started = Instant::now();
        let status = Command::new(self.postgres.bin_dir().join("pg_recvlogical"))
            .args([
                "--dbname",
                &self.postgres.dsn(),
                "--slot",
                "recvlogical",
                "--start",
                "--no-loop",
                "--file",
                "/dev/null",
            ])
            .args(["--option", "proto_version=1", "--option", "publication_names=ruvector", "--option", "binary=true"])
            .args(["--endpos", &end.to_string()])
            .stdin(Stdio::null())
            .status()
            .context("cannot run pg_recvlogical; it comes with PostgreSQL's client programs")?;
        let theirs = started.elapsed();
        if !status.success() {
            bail!("pg_recvlogical failed: {status}");
        }
        peak_rss()?;
        let started = Instant::now();
        let mut service = self.serve()?;
        service.look = LOOK_AT_BACKLOG;
        service.wait(|status| status["replication"]["phase"] == "streaming")?;
        let streaming = started.elapsed();
        let durable = service.reach("durable", end, started)?;
        let searchable = service.reach("applied", end, started)?;
        let peak = peak_rss()?;
        let index_mib = service.index_bytes()? >> 20;
        self.end(service)?;
        // What was freed may still be resident, so what stays is counted, not looked at.
        let beside = peak.peak_mib.saturating_sub(empty.now_mib + index_mib);
        // Frames that wait for the log, and the state's cache.
        let budget = Config::load(None)?.source.queue_mib as u64 + (state::CACHE_BYTES >> 20) as u64;
        let ratio = |ours: Duration| (theirs.as_secs_f64() / ours.as_secs_f64() * 1000.0).round() / 1000.0;
        let theirs_line = json!({
            "phase": "backlog",
            "who": "pg_recvlogical",
            "seconds": seconds(theirs),
            "rows_per_s": self.per_second(theirs),
        });
        let ours_line = json!({
            "phase": "backlog",
            "who": "ruvector",
            "start_ms": millis(streaming),
            "durable_rows_per_s_without_start": self.per_second(durable.saturating_sub(streaming).max(LOOK)),
            "durable_seconds": seconds(durable),
            "durable_rows_per_s": self.per_second(durable),
            "durable_to_pg_recvlogical": ratio(durable),
            "searchable_seconds": seconds(searchable),
            "searchable_rows_per_s": self.per_second(searchable),
            "searchable_to_pg_recvlogical": ratio(searchable),
            "rss_mib_empty": empty.now_mib,
            "rss_mib_peak": peak.peak_mib,
            "rss_mib_after": peak.now_mib,
            "index_mib": index_mib,
            "rss_mib_beside_the_index": beside,
            "rss_mib_budget": budget,
        });
        if beside > budget {
            bail!(
                "{beside} MiB were used beside the index, more than the {budget} MiB of queue and cache: {ours_line}"
            );
        }
        Ok((theirs_line, ours_line))
    }
}

impl Service {
    fn wait(&self, mut holds: impl FnMut(&Json) -> bool) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            if self.thread.is_finished() {
                bail!("the service ended");
            }
            if self.client.get("/v1/status").is_ok_and(|status| holds(&status)) {
                return Ok(());
            }
            std::thread::sleep(self.look);
        }
        bail!("not within {DEADLINE:?}")
    }

    /// Bytes that its index has in memory.
    fn index_bytes(&self) -> anyhow::Result<u64> {
        let found = self.client.get("/v1/collections/items")?;
        found["vectors"][0]["memory_bytes"].as_u64().with_context(|| format!("no size of the index: {found}"))
    }

    /// Time since `started` when a position is at `end`.
    fn reach(&self, name: &str, end: Lsn, started: Instant) -> anyhow::Result<Duration> {
        self.wait(|status| position(status, name) >= Some(end))?;
        Ok(started.elapsed())
    }
}

fn ended(thread: JoinHandle<Result<(), node::NodeError>>) -> anyhow::Error {
    match thread.join() {
        Ok(Err(error)) => error.into(),
        _ => anyhow!("the service ended before it listened"),
    }
}

fn position(status: &Json, name: &str) -> Option<Lsn> {
    status["positions"][name].as_str()?.parse().ok()
}

/// Looks at the applied position until every commit that is told of is reached; the time each took.
fn watch(client: &Client, committed: &mpsc::Receiver<(Lsn, Instant)>) -> anyhow::Result<Vec<Duration>> {
    let mut waiting: VecDeque<(Lsn, Instant)> = VecDeque::new();
    let mut times = Vec::new();
    let mut more = true;
    while more || !waiting.is_empty() {
        let applied = position(&client.get("/v1/status")?, "applied").context("no position")?;
        let now = Instant::now();
        loop {
            match committed.try_recv() {
                Ok(commit) => waiting.push_back(commit),
                Err(error) => {
                    more &= error != mpsc::TryRecvError::Disconnected;
                    break;
                }
            }
        }
        let reached = waiting.partition_point(|(lsn, _)| *lsn <= applied);
        times.extend(waiting.drain(..reached).map(|(_, at)| now.saturating_duration_since(at)));
        if waiting.front().is_some_and(|(_, at)| at.elapsed() > DEADLINE) {
            bail!("a commit did not become searchable within {DEADLINE:?}");
        }
        std::thread::sleep(LOOK);
    }
    Ok(times)
}

/// Memory of this process, in MiB.
struct Rss {
    now_mib: u64,
    /// Since the last call.
    peak_mib: u64,
}

/// Reads it, and begins a new peak. The service is in this process, and the bench itself holds next to nothing.
fn peak_rss() -> anyhow::Result<Rss> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) / 1024
    };
    // 5: the peak becomes what is used now (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").context("/proc/self/clear_refs")?;
    Ok(Rss { now_mib: mib("VmRSS:"), peak_mib: mib("VmHWM:") })
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
