//! `bench http`: top-k over HTTP, by connections that are kept open and by kind of recheck, beside the bare round trip to the heap
//! that a recheck makes: a SELECT of as many keys over a pool like the service's. A private PostgreSQL and a service of its own;
//! nothing is left of them.

use crate::cli::bench_ann::round;
use crate::cli::bench_sql::{Data, connect, load};
use crate::cli::demo::service::Service;
use crate::cli::npy::Matrix;
use crate::cli::private_postgres::{PrivatePostgres, Settings};
use crate::source::connect::{Dsn, Pool};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value as Json, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// Longest wait for the service to have all rows in its graph.
const FILLED: Duration = Duration::from_secs(3600);
/// The service's own default.
const POOL: usize = 4;

/// Arguments of `bench http`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    data: Data,
    /// Folder with `postgres`; found as for the demo when absent.
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Connections that ask at once.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    connections: Vec<usize>,
    /// Neighbours asked for.
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// Search width.
    #[arg(long, default_value_t = 64)]
    ef: usize,
    /// How long each way is asked in each round.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rounds: all ways one after the other, so that what else the machine does falls on all of them.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// What is measured.
const WAYS: [&str; 4] = ["none", "exists", "exact", "heap"];

/// What one way took with so many connections.
struct Point {
    way: &'static str,
    connections: usize,
    waits: Vec<Duration>,
    seconds: f64,
}

impl Point {
    fn at(&self, share: f64) -> f64 {
        let place = ((self.waits.len() as f64 * share) as usize).min(self.waits.len() - 1);
        self.waits[place].as_secs_f64() * 1e3
    }

    fn qps(&self) -> f64 {
        self.waits.len() as f64 / self.seconds
    }

    fn json(&self) -> Json {
        let what = if self.way == "heap" { "heap" } else { "http" };
        json!({
            "what": what, "recheck": self.way, "connections": self.connections, "p50_ms": round(self.at(0.5), 3),
            "p99_ms": round(self.at(0.99), 3), "qps": round(self.qps(), 1),
        })
    }
}

/// With so many connections: what a recheck adds to the median of a search, as a multiple of the bare round trip's median, and
/// the share of the rate that is left.
fn compared(points: &[Point]) -> Json {
    let of = |way: &str| points.iter().find(|point| point.way == way);
    let mut found = json!({ "what": "compared", "connections": points.first().map(|point| point.connections) });
    let (Some(none), Some(heap)) = (of("none"), of("heap")) else { return found };
    for way in ["exists", "exact"] {
        let Some(point) = of(way) else { continue };
        found[format!("{way}_extra_to_heap_p50")] = json!(round((point.at(0.5) - none.at(0.5)) / heap.at(0.5), 2));
        found[format!("{way}_to_none_qps")] = json!(round(point.qps() / none.qps(), 2));
    }
    found
}

struct Bench {
    runtime: Runtime,
    queries: Matrix<f32>,
    rows: usize,
    pool: Pool,
    // In this order: what follows the server goes before it.
    service: Service,
    _postgres: PrivatePostgres,
}

/// Fills a service, asks in every way, and compares.
pub fn run(args: &Args) -> Result<()> {
    let all = args.connections.iter().all(|&connections| connections > 0);
    ensure!(args.k > 0 && args.rounds > 0 && args.seconds > 0.0, "--k, --rounds and --seconds: more than nothing");
    ensure!(all && !args.connections.is_empty(), "--connections: at least one");
    let bench = Bench::prepare(args)?;
    for &connections in &args.connections {
        let points = bench.points(args, connections)?;
        points.iter().for_each(|point| print(args.json, &point.json()));
        print(args.json, &compared(&points));
    }
    Ok(())
}

impl Bench {
    fn prepare(args: &Args) -> Result<Bench> {
        let (base, queries) = args.data.read(args.k)?;
        let settings = Settings { bin_dir: args.pg_bin.clone(), ..Settings::default() };
        let settings = settings.with("shared_buffers", "512MB").with("maintenance_work_mem", "512MB");
        let postgres = PrivatePostgres::start(settings.with("max_wal_size", "8GB"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let source = postgres.dsn();
        runtime.block_on(async {
            load(&source, &base).await?;
            connect(&source).await?.batch_execute("VACUUM docs").await.context("VACUUM")
        })?;
        let config = format!(
            "[search]\nrecheck_connections = {POOL}\n[[collections]]\ntable = \"public.docs\"\nname = \"docs\"\n\
             [[collections.vectors]]\ncolumn = \"embedding\"\nmetric = \"cosine\"\n"
        );
        let service = Service::start(&source, &config)?;
        service.wait_ready(FILLED, |_| {})?;
        let started = Instant::now();
        while service.collection()?["vectors"][0]["linked"] != base.rows {
            ensure!(started.elapsed() < FILLED, "not linked after {FILLED:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        let dsn = Dsn::parse(&source).map_err(|error| anyhow::anyhow!("{error}"))?;
        let pool = dsn.pool(POOL, Duration::from_secs(30));
        Ok(Bench { runtime, queries, rows: base.rows, pool, service, _postgres: postgres })
    }

    /// Each way with so many connections.
    fn points(&self, args: &Args, connections: usize) -> Result<Vec<Point>> {
        let empty = |way| Point { way, connections, waits: Vec::new(), seconds: 0.0 };
        let mut points = WAYS.map(empty);
        for number in 0..=args.rounds {
            for point in &mut points {
                // A first short round for nothing: connections, plans and caches.
                let seconds = if number == 0 { args.seconds.min(0.5) } else { args.seconds };
                let (waits, took) = self
                    .runtime
                    .block_on(self.together(args, point.way, connections, seconds))
                    .with_context(|| format!("{} over {connections} connections", point.way))?;
                if number > 0 {
                    point.waits.extend(waits);
                    point.seconds += took;
                }
            }
        }
        for point in &mut points {
            point.waits.sort_unstable();
            ensure!(!point.waits.is_empty(), "nothing was answered in {} seconds", args.seconds);
        }
        Ok(points.into())
    }

    /// How long each of the answers took that came in so many seconds, and the seconds it were.
    async fn together(
        &self,
        args: &Args,
        way: &'static str,
        connections: usize,
        seconds: f64,
    ) -> Result<(Vec<Duration>, f64)> {
        let mut askers = Vec::new();
        for _ in 0..connections {
            askers.push(self.asker(args, way).await?);
        }
        let (started, limit) = (Instant::now(), Duration::from_secs_f64(seconds));
        let each = askers.into_iter().enumerate().map(|(number, mut asker)| async move {
            let mut waits = Vec::new();
            while started.elapsed() < limit {
                let asked = Instant::now();
                asker.ask(number * 37 + waits.len()).await?;
                waits.push(asked.elapsed());
            }
            anyhow::Ok(waits)
        });
        let waits = futures_util::future::try_join_all(each).await?.concat();
        Ok((waits, started.elapsed().as_secs_f64()))
    }

    async fn asker(&self, args: &Args, way: &'static str) -> Result<Asker> {
        if way == "heap" {
            return Ok(Asker::Heap { pool: self.pool.clone(), rows: self.rows, k: args.k });
        }
        let address = self.service.url.strip_prefix("http://").context("plain HTTP")?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let request = |at| {
            let search = json!({ "ef": args.ef });
            let query = json!({ "vector": self.queries.row(at) });
            let body = json!({ "query": query, "limit": args.k, "recheck": way, "search": search }).to_string();
            let length = body.len();
            format!(
                "POST /v1/collections/docs/search HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n{body}"
            )
        };
        let requests = (0..self.queries.rows).map(request).collect();
        Ok(Asker::Http { stream: BufReader::new(stream), requests, k: args.k })
    }
}

/// Who asks, one request after the other.
enum Asker {
    Http { stream: BufReader<TcpStream>, requests: Vec<String>, k: usize },
    Heap { pool: Pool, rows: usize, k: usize },
}

impl Asker {
    async fn ask(&mut self, number: usize) -> Result<()> {
        match self {
            Asker::Http { stream, requests, k } => {
                stream.write_all(requests[number % requests.len()].as_bytes()).await?;
                let body = answer(stream).await?;
                // Every hit has one.
                let hits = String::from_utf8_lossy(&body).matches("\"distance\"").count();
                ensure!(hits == *k, "{hits} hits instead of {k}");
            }
            Asker::Heap { pool, rows, k } => {
                let keys: Vec<i64> = (0..*k).map(|at| ((number * 7919 + at * 104_729) % *rows) as i64).collect();
                let client = pool.get().await.map_err(|error| anyhow::anyhow!("{error}"))?;
                let statement = client.prepare_cached("SELECT id FROM public.docs WHERE id = ANY ($1)").await?;
                let found = client.query(&statement, &[&keys]).await?.len();
                ensure!(found > 0 && found <= *k, "{found} rows");
            }
        }
        Ok(())
    }
}

/// The body of the next answer on this connection.
async fn answer(stream: &mut BufReader<TcpStream>) -> Result<Vec<u8>> {
    let (mut line, mut length, mut status) = (String::new(), 0, String::new());
    loop {
        line.clear();
        ensure!(stream.read_line(&mut line).await? > 0, "the service closed the connection");
        match line.trim_end() {
            "" => break,
            first if status.is_empty() => status = first.to_owned(),
            header => {
                if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse()?;
                }
            }
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    if !status.contains(" 200 ") {
        bail!("{status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}

fn print(json: bool, line: &Json) {
    if json {
        say!("{line}");
    } else if let Some(fields) = line.as_object() {
        let field = |(name, value): (&String, &Json)| format!("{name} {value}");
        say!("{}", fields.iter().map(field).collect::<Vec<_>>().join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_recheck_adds_is_a_multiple_of_the_round_trip() {
        let point = |way, ms: u64, count| Point {
            way,
            connections: 8,
            waits: vec![Duration::from_millis(ms); count],
            seconds: 1.0,
        };
        let points = [point("none", 2, 400), point("exists", 5, 200), point("exact", 6, 100), point("heap", 2, 1000)];
        let found = compared(&points);
        assert_eq!((&found["exists_extra_to_heap_p50"], &found["exact_extra_to_heap_p50"]), (&json!(1.5), &json!(2.0)));
        assert_eq!((&found["exists_to_none_qps"], &found["connections"]), (&json!(0.5), &json!(8)));
        assert_eq!(points[0].json()["qps"], 400.0);
        assert!(compared(&points[..2]).get("exists_to_none_qps").is_none(), "nothing to compare with");
    }
}
