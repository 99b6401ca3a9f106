//! `bench sql`: top-k over SQL, straight to the endpoint and through postgres_fdw with the rows joined, beside pgvector's HNSW on
//! the same server, data and queries in the same run. A private PostgreSQL and a service of its own; nothing is left of them.

use crate::cli::bench_ann::round;
use crate::cli::demo::service::{self, Service};
use crate::cli::demo::source::Embedding;
use crate::cli::npy::{self, Matrix};
use crate::cli::private_postgres::{PrivatePostgres, Settings};
use crate::engine::distance::Kernel;
use crate::model::Metric;
use anyhow::{Context, Result, ensure};
use postgres_types::ToSql;
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, NoTls, Statement};

/// Longest wait for the service to have all rows in its graph.
const FILLED: Duration = Duration::from_secs(3600);
const PASSWORD: &str = "bench";

/// Arguments of `bench sql`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    data: Data,
    /// Folder with `postgres`, best one with pgvector; found as for the demo when absent.
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Pool sizes to measure.
    #[arg(long, value_delimiter = ',', default_value = "20,40,80,160")]
    ef: Vec<usize>,
    /// Neighbours asked for.
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// The recall at which the ways are compared.
    #[arg(long, default_value_t = 0.95)]
    target: f64,
    /// Sessions that ask at once, for the queries a second.
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// How long they ask, for each way and pool size.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// Rows and queries.
#[derive(clap::Args, Debug)]
pub(super) struct Data {
    /// Vectors to index: .npy, two-dimensional, f16 or f32. Made up when absent.
    #[arg(long, value_name = "FILE", requires = "queries")]
    base: Option<PathBuf>,
    /// Query vectors: .npy, f16 or f32.
    #[arg(long, value_name = "FILE", requires = "base")]
    queries: Option<PathBuf>,
    /// Rows that are made up.
    #[arg(long, default_value_t = 10_000)]
    rows: usize,
    /// Their dimensions.
    #[arg(long, default_value_t = 128)]
    dim: usize,
    /// Queries that are used, at most.
    #[arg(long, default_value_t = 200)]
    most_queries: usize,
}

/// A way to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A session of the endpoint; answers are checked to exist in the source.
    Direct,
    /// The same without that check.
    DirectUnchecked,
    /// postgres_fdw: `<collection>_nearest`, a stream, joined to the table.
    Nearest,
    /// postgres_fdw: `ruvector_search` with its k, joined to the table.
    Search,
    /// pgvector's index in the table itself.
    Pgvector,
}

const WAYS: [Way; 5] = [Way::Direct, Way::DirectUnchecked, Way::Nearest, Way::Search, Way::Pgvector];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Direct => "direct",
            Way::DirectUnchecked => "direct_unchecked",
            Way::Nearest => "fdw_nearest_join",
            Way::Search => "fdw_search_join",
            Way::Pgvector => "pgvector",
        }
    }

    /// What is set for the session.
    fn settings(self, ef: usize) -> String {
        match self {
            Way::Direct => format!("SET hnsw.ef_search = {ef}"),
            Way::DirectUnchecked => format!("SET hnsw.ef_search = {ef}; SET ruvector.recheck = 'none'"),
            Way::Nearest | Way::Search => "SET plan_cache_mode = force_generic_plan".to_owned(),
            Way::Pgvector => format!("SET hnsw.ef_search = {ef}; SET enable_seqscan = off"),
        }
    }

    fn statement(self, ef: usize, k: usize) -> String {
        match self {
            Way::Direct | Way::DirectUnchecked => {
                format!("SELECT id, embedding <=> $1::real[] FROM docs ORDER BY embedding <=> $1::real[] LIMIT {k}")
            }
            Way::Nearest => format!(
                "SELECT d.id, d.body, s.distance FROM ruvector.docs_nearest($1, NULL, '{{\"search\": {{\"ef\": {ef}}}}}') s \
                 JOIN public.docs d USING (id) ORDER BY s.distance LIMIT {k}"
            ),
            Way::Search => format!(
                "SELECT d.id, d.body, s.distance FROM ruvector.ruvector_search('docs', $1, {k}, {ef}, \
                 options => '{{\"recheck\": \"none\"}}') s JOIN public.docs d ON d.id = s.id::bigint ORDER BY s.distance LIMIT {k}"
            ),
            Way::Pgvector => {
                format!("SELECT id, body, embedding <=> $1 AS distance FROM docs ORDER BY embedding <=> $1 LIMIT {k}")
            }
        }
    }
}

/// What one way reached with one pool size.
struct Point {
    way: Way,
    ef: usize,
    recall: f64,
    p50: Duration,
    p99: Duration,
    qps: f64,
}

impl Point {
    fn json(&self) -> Json {
        let ms = |time: Duration| round(time.as_secs_f64() * 1e3, 3);
        json!({
            "what": "sql", "way": self.way.name(), "ef": self.ef, "recall": round(self.recall, 4), "p50_ms": ms(self.p50),
            "p99_ms": ms(self.p99), "qps": round(self.qps, 1),
        })
    }
}

struct Bench<'a> {
    args: &'a Args,
    runtime: Runtime,
    queries: Matrix<f32>,
    truth: Vec<BTreeSet<i64>>,
    endpoint: String,
    source: String,
    has_pgvector: bool,
    // In this order: what follows the server goes before it.
    _service: Service,
    _postgres: PrivatePostgres,
}

/// Fills both, asks in every way, and compares.
pub fn run(args: &Args) -> Result<()> {
    ensure!(args.k > 0 && args.clients > 0 && !args.ef.is_empty(), "--k, --clients and --ef: at least one");
    let bench = Bench::prepare(args)?;
    let mut points = Vec::new();
    for way in WAYS {
        if way == Way::Pgvector && !bench.has_pgvector {
            let why = "this server has no pgvector; --pg-bin names another";
            bench.print(&json!({"what": "left_out", "way": way.name(), "why": why}));
            continue;
        }
        for &ef in &args.ef {
            let point = bench.point(way, ef.max(args.k)).with_context(|| format!("{} with ef {ef}", way.name()))?;
            bench.print(&point.json());
            points.push(point);
        }
    }
    bench.print(&compared(&points, args.target));
    Ok(())
}

/// Each way with the fastest pool size that reaches the recall, and the queries a second through postgres_fdw as a multiple of
/// pgvector's.
fn compared(points: &[Point], target: f64) -> Json {
    let best = |way: Way| {
        let enough = points.iter().filter(|point| point.way == way && point.recall >= target);
        enough.max_by(|a, b| a.qps.total_cmp(&b.qps))
    };
    let mut found = json!({"what": "compared", "target_recall": target});
    for way in WAYS {
        found[way.name()] = best(way).map_or(Json::Null, Point::json);
    }
    let joined = [Way::Nearest, Way::Search].into_iter().filter_map(best).map(|point| point.qps).reduce(f64::max);
    let ratio = joined.zip(best(Way::Pgvector)).map(|(joined, pgvector)| round(joined / pgvector.qps, 2));
    found["fdw_join_to_pgvector_qps"] = json!(ratio);
    found
}

impl<'a> Bench<'a> {
    fn prepare(args: &'a Args) -> Result<Bench<'a>> {
        let (base, queries) = args.data.read(args.k)?;
        let truth = truth(&base, &queries, args.k);
        let settings = Settings { bin_dir: args.pg_bin.clone(), ..Settings::default() };
        let settings = settings.with("shared_buffers", "512MB").with("maintenance_work_mem", "512MB");
        let postgres = PrivatePostgres::start(settings.with("max_wal_size", "8GB"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let source = postgres.dsn();
        let has_pgvector = runtime.block_on(load(&source, &base))?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let config = format!(
            "[sql]\nlisten = \"127.0.0.1:{port}\"\n[sql.users.app]\npassword = \"{PASSWORD}\"\n[[collections]]\n\
             table = \"public.docs\"\nname = \"docs\"\n[[collections.vectors]]\ncolumn = \"embedding\"\nmetric = \"cosine\"\n"
        );
        let service = Service::start(&source, &config)?;
        service.wait_ready(FILLED, |_| {})?;
        let started = Instant::now();
        while service.collection()?["vectors"][0]["linked"] != base.rows {
            ensure!(started.elapsed() < FILLED, "not linked after {FILLED:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        let installed = service::command(&service.config())?
            .args(["sqlpack", "install", "--host", "127.0.0.1"])
            .output()
            .context("the SQL pack")?;
        ensure!(installed.status.success(), "the SQL pack: {}", String::from_utf8_lossy(&installed.stderr));
        let endpoint = format!("postgresql://app:{PASSWORD}@127.0.0.1:{port}/ruvector");
        Ok(Bench {
            args,
            runtime,
            queries,
            truth,
            endpoint,
            source,
            has_pgvector,
            _service: service,
            _postgres: postgres,
        })
    }

    async fn session(&self, way: Way, ef: usize) -> Result<(Client, Statement)> {
        let address = if matches!(way, Way::Direct | Way::DirectUnchecked) { &self.endpoint } else { &self.source };
        let client = connect(address).await?;
        client.batch_execute(&way.settings(ef)).await?;
        let statement = client.prepare(&way.statement(ef, self.args.k)).await?;
        Ok((client, statement))
    }

    fn point(&self, way: Way, ef: usize) -> Result<Point> {
        self.runtime.block_on(async {
            let (client, statement) = self.session(way, ef).await?;
            let mut waits = Vec::with_capacity(self.queries.rows);
            let mut found = 0;
            // Once for nothing: connections, plans and caches.
            for measured in [false, true] {
                for at in 0..self.queries.rows {
                    let asked = Instant::now();
                    let ids = ask(&client, &statement, self.queries.row(at)).await?;
                    if measured {
                        waits.push(asked.elapsed());
                        found += ids.iter().filter(|id| self.truth[at].contains(id)).count();
                    }
                }
            }
            waits.sort_unstable();
            let recall = found as f64 / (self.queries.rows * self.args.k) as f64;
            let qps = self.together(way, ef).await?;
            Ok(Point { way, ef, recall, p50: waits[waits.len() / 2], p99: waits[waits.len() * 99 / 100], qps })
        })
    }

    /// Queries a second of several sessions at once.
    async fn together(&self, way: Way, ef: usize) -> Result<f64> {
        let mut sessions = Vec::new();
        for _ in 0..self.args.clients {
            let session = self.session(way, ef).await?;
            ask(&session.0, &session.1, self.queries.row(0)).await?;
            sessions.push(session);
        }
        let (started, limit) = (Instant::now(), Duration::from_secs_f64(self.args.seconds));
        let each = sessions.iter().enumerate().map(|(number, (client, statement))| async move {
            let mut done = 0;
            while started.elapsed() < limit {
                let at = (number * 37 + done) % self.queries.rows;
                ask(client, statement, self.queries.row(at)).await?;
                done += 1;
            }
            anyhow::Ok(done)
        });
        let done: usize = futures_util::future::try_join_all(each).await?.into_iter().sum();
        Ok(done as f64 / started.elapsed().as_secs_f64())
    }

    fn print(&self, line: &Json) {
        if self.args.json {
            say!("{line}");
        } else if let Some(fields) = line.as_object() {
            let field = |(name, value): (&String, &Json)| match value {
                Json::Object(of) => format!("{name} {} queries/s", of.get("qps").unwrap_or(&Json::Null)),
                value => format!("{name} {value}"),
            };
            say!("{}", fields.iter().map(field).collect::<Vec<_>>().join(", "));
        }
    }
}

pub(super) async fn connect(address: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The keys of an answer; all of its columns are read from the socket.
async fn ask(client: &Client, statement: &Statement, query: &[f32]) -> Result<Vec<i64>> {
    let wide: Vec<f64>;
    let (small, own) = (query, Embedding(query));
    let param: &(dyn ToSql + Sync) = match &statement.params()[0] {
        kind if *kind == Type::FLOAT8_ARRAY => {
            wide = query.iter().map(|x| f64::from(*x)).collect();
            &wide
        }
        kind if *kind == Type::FLOAT4_ARRAY => &small,
        _ => &own,
    };
    let rows = client.query(statement, &[param]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The table with its rows, and pgvector's index where there is pgvector.
pub(super) async fn load(source: &str, base: &Matrix<f32>) -> Result<bool> {
    let client = connect(source).await?;
    let has_pgvector = client.batch_execute("CREATE EXTENSION vector").await.is_ok();
    let kind = if has_pgvector { format!("vector({})", base.columns) } else { "real[]".to_owned() };
    client
        .batch_execute(&format!(
            "CREATE EXTENSION postgres_fdw; CREATE TABLE docs (id bigint PRIMARY KEY, body text, embedding {kind})"
        ))
        .await
        .context("postgres_fdw and the table")?;
    let empty = client.prepare("SELECT id, body, embedding FROM docs").await?;
    let types: Vec<Type> = empty.columns().iter().map(|column| column.type_().clone()).collect();
    let sink = client.copy_in("COPY docs FROM STDIN BINARY").await?;
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &types));
    for row in 0..base.rows {
        let body = format!("the text of row {row}");
        writer.as_mut().write(&[&(row as i64), &body, &Embedding(base.row(row))]).await?;
    }
    writer.finish().await?;
    if has_pgvector {
        client.batch_execute("CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops)").await?;
    }
    client.batch_execute("ANALYZE docs").await?;
    Ok(has_pgvector)
}

impl Data {
    /// Base and queries: from files, or made up around some hundred places, the same ones every time.
    pub(super) fn read(&self, k: usize) -> Result<(Matrix<f32>, Matrix<f32>)> {
        if let (Some(base), Some(queries)) = (&self.base, &self.queries) {
            let (base, mut queries) = (npy::read_f32(base)?, npy::read_f32(queries)?);
            ensure!(base.columns == queries.columns, "base and queries differ in their dimensions");
            queries.rows = queries.rows.min(self.most_queries);
            ensure!(base.rows >= k && queries.rows > 0, "there are fewer than k rows, or no queries");
            return Ok((base, queries));
        }
        ensure!(self.rows >= k && self.dim > 0 && self.most_queries > 0, "--rows at least --k, --dim at least 1");
        let mut state = 20_u64;
        let mut random = move || {
            // splitmix64
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let places: Vec<f32> = (0..100 * self.dim).map(|_| random()).collect();
        let mut matrix = |rows: usize| {
            let mut values = Vec::with_capacity(rows * self.dim);
            for row in 0..rows {
                let place = &places[row * 7 % 100 * self.dim..][..self.dim];
                values.extend(place.iter().map(|x| x + random()));
            }
            Matrix { rows, columns: self.dim, values }
        };
        Ok((matrix(self.rows), matrix(self.most_queries)))
    }
}

/// The k nearest of each query, by comparing all.
fn truth(base: &Matrix<f32>, queries: &Matrix<f32>, k: usize) -> Vec<BTreeSet<i64>> {
    let kernel = Kernel::new(Metric::Cosine);
    let prepared = |matrix: &Matrix<f32>| {
        let mut values = matrix.values.clone();
        values.chunks_mut(matrix.columns).for_each(|row| kernel.prepare(row));
        values
    };
    let (rows, asked) = (prepared(base), prepared(queries));
    let nearest = |query: &[f32]| {
        let distance = |row: &[f32]| kernel.public(kernel.inner(query, row));
        let mut all: Vec<_> = rows.chunks(base.columns).map(distance).zip(0_i64..).collect();
        all.select_nth_unstable_by(k - 1, |a, b| a.0.total_cmp(&b.0));
        all[..k].iter().map(|(_, id)| *id).collect()
    };
    asked.chunks(base.columns).take(queries.rows).map(nearest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(way: Way, ef: usize, recall: f64, qps: f64) -> Point {
        Point { way, ef, recall, p50: Duration::from_micros(1500), p99: Duration::from_millis(2), qps }
    }

    #[test]
    fn ways_are_compared_at_the_recall_that_both_reach() {
        let points = [
            point(Way::Nearest, 20, 0.90, 900.0),
            point(Way::Nearest, 40, 0.96, 600.0),
            point(Way::Search, 40, 0.97, 500.0),
            point(Way::Pgvector, 40, 0.94, 800.0),
            point(Way::Pgvector, 80, 0.98, 400.0),
        ];
        let found = compared(&points, 0.95);
        assert_eq!((found["fdw_nearest_join"]["ef"].as_u64(), found["pgvector"]["ef"].as_u64()), (Some(40), Some(80)));
        assert_eq!(found["fdw_join_to_pgvector_qps"], 1.5);
        assert_eq!((&found["direct"], &found["fdw_nearest_join"]["p50_ms"]), (&Json::Null, &json!(1.5)));
        assert_eq!(compared(&points[..3], 0.95)["fdw_join_to_pgvector_qps"], Json::Null, "nothing to compare with");
    }

    #[test]
    fn the_truth_is_by_angle() {
        let base = Matrix { rows: 3, columns: 2, values: vec![1.0, 0.0, 0.0, 5.0, 3.0, 3.0] };
        let queries = Matrix { rows: 1, columns: 2, values: vec![0.1, 1.0] };
        assert_eq!(truth(&base, &queries, 1), [BTreeSet::from([1])]);
        assert_eq!(truth(&base, &queries, 2), [BTreeSet::from([1, 2])]);
    }
}
