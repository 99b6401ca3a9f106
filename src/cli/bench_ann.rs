//! `bench ann`: build speed, memory, and recall against speed of the HNSW graph on a data set of `.npy` files.
//!
//! CPU time is the steadier clock on a shared machine: compare `qps_cpu` and `vectors_per_cpu_second`, and compare them with
//! what peers reach in the same minutes.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::cli::npy::{self, Matrix};
use crate::engine::hnsw::{Graph, Params, Query};
use crate::model::{Encoding, IndexKind, Metric};

/// How a graph is built.
#[derive(clap::Args, Debug, Clone)]
pub struct GraphArgs {
    /// l2, cosine, ip or l1.
    #[arg(long, default_value = "cosine", value_parser = parse_metric)]
    pub(super) metric: Metric,
    /// Threads that build; searching is always one.
    #[arg(long, default_value_t = 1)]
    pub(super) threads: usize,
    /// Links per row on the upper levels, twice as many on the lowest.
    #[arg(long, default_value_t = 16)]
    pub(super) m: usize,
    /// Pool size while building.
    #[arg(long, default_value_t = 200)]
    pub(super) ef_construction: usize,
    /// What walks compare: f32, f16, sq8, sq4, or in sealed segments pq8, pq16, pq32, bq. The answer is ordered by full
    /// floats in any case.
    #[arg(long, default_value = "sq8", value_parser = parse_encoding)]
    pub(super) encoding: Encoding,
    /// hnsw, ivfflat (in sealed segments) or flat; `bench ann` is of hnsw in any case.
    #[arg(long, default_value = "hnsw", value_parser = parse_index)]
    pub(super) index: IndexKind,
}

/// What is searched for what, and how well: shared by benches that know the true neighbours.
#[derive(clap::Args, Debug, Clone)]
pub(super) struct TaskArgs {
    /// Vectors to index: .npy, two-dimensional, f16 or f32.
    #[arg(long, value_name = "FILE")]
    pub(super) base: PathBuf,
    /// Query vectors: .npy, f16 or f32.
    #[arg(long, value_name = "FILE")]
    pub(super) queries: PathBuf,
    /// True nearest neighbours of each query, best first: .npy, i32 or i64.
    #[arg(long, value_name = "FILE")]
    pub(super) truth: PathBuf,
    /// Neighbours asked for.
    #[arg(long, default_value_t = 10)]
    pub(super) k: usize,
}

/// Arguments of `bench ann`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    task: TaskArgs,
    /// Pool sizes to measure.
    #[arg(long, value_delimiter = ',', default_value = "16,32,64,128")]
    ef: Vec<usize>,
    /// Recalls to find the smallest pool size for.
    #[arg(long, value_delimiter = ',')]
    targets: Vec<f64>,
    #[command(flatten)]
    graph: GraphArgs,
    /// Passes over the queries; the best counts.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// No pool is larger when a recall is to be reached.
const LARGEST_EF: usize = 4096;

fn parse_metric(name: &str) -> Result<Metric, String> {
    let known = Metric::PLAIN.into_iter().find(|metric| metric.name() == name);
    known.ok_or_else(|| format!("one of {}", Metric::PLAIN.map(Metric::name).join(", ")))
}

fn parse_index(name: &str) -> Result<IndexKind, String> {
    let known = IndexKind::ALL.into_iter().find(|kind| kind.name() == name);
    known.ok_or_else(|| format!("one of {}", IndexKind::ALL.map(IndexKind::name).join(", ")))
}

fn parse_encoding(name: &str) -> Result<Encoding, String> {
    let known = Encoding::ALL.into_iter().find(|encoding| encoding.name() == name);
    known.ok_or_else(|| format!("one of {}", Encoding::ALL.map(Encoding::name).join(", ")))
}

/// Builds the graph, then searches it at every pool size.
pub fn run(args: &Args) -> Result<()> {
    let base = npy::read_f32(&args.task.base)?;
    let queries = npy::read_f32(&args.task.queries)?;
    let truth = npy::read_ids(&args.task.truth)?;
    check(args, &base, &queries, &truth)?;
    let before = rss_bytes();
    let graph = build(args, &base);
    let rss = rss_bytes().saturating_sub(before);
    let raw = base.values.len() * 4;
    report(args, json!({"what": "memory", "rss_bytes": rss, "index_bytes": graph.memory_bytes(), "raw_bytes": raw}));
    drop(base);
    for &ef in &args.ef {
        report(args, point(args, &graph, &queries, &truth, ef));
    }
    for &target in &args.targets {
        if let Some(ef) = smallest_ef(args, &graph, &queries, &truth, target) {
            let mut line = point(args, &graph, &queries, &truth, ef);
            line["what"] = "target".into();
            line["target"] = target.into();
            report(args, line);
        }
    }
    Ok(())
}

/// The smallest pool that reaches a recall; `None` when the largest does not.
fn smallest_ef(args: &Args, graph: &Graph, queries: &Matrix<f32>, truth: &Matrix<i64>, target: f64) -> Option<usize> {
    let reaches = |ef: usize| {
        let found = |at: usize| search(graph, &graph.prepare(queries.row(at)), args.task.k, ef).0;
        let hits: usize = (0..queries.rows).map(|at| hits(&found(at), &truth.row(at)[..args.task.k])).sum();
        Ok(hits as f64 >= target * (queries.rows * args.task.k) as f64)
    };
    smallest_pool(reaches).expect("a graph in memory can be read")
}

/// The smallest pool that reaches something which larger ones reach as well; `None` when the largest does not.
pub(super) fn smallest_pool(reaches: impl Fn(usize) -> Result<bool>) -> Result<Option<usize>> {
    let (mut low, mut high) = (1, LARGEST_EF);
    if !reaches(high)? {
        return Ok(None);
    }
    while low < high {
        let middle = usize::midpoint(low, high);
        if reaches(middle)? { high = middle } else { low = middle + 1 }
    }
    Ok(Some(high))
}

fn hits(found: &[(f32, u32)], wanted: &[i64]) -> usize {
    found.iter().filter(|(_, slot)| wanted.contains(&i64::from(*slot))).count()
}

fn check(args: &Args, base: &Matrix<f32>, queries: &Matrix<f32>, truth: &Matrix<i64>) -> Result<()> {
    ensure!(base.rows > 0 && base.columns > 0, "the base is empty");
    ensure!(base.columns == queries.columns, "base has {} dimensions, queries {}", base.columns, queries.columns);
    ensure!(truth.rows == queries.rows, "truth has {} rows for {} queries", truth.rows, queries.rows);
    ensure!((1..=truth.columns).contains(&args.task.k), "k is 1 to {}, what truth holds", truth.columns);
    ensure!((2..=100).contains(&args.graph.m) && args.graph.ef_construction > 0 && args.repeats > 0, "m is 2 to 100");
    if base.values.iter().chain(&queries.values).any(|x| !x.is_finite()) {
        bail!("a vector holds NaN or infinity");
    }
    Ok(())
}

fn build(args: &Args, base: &Matrix<f32>) -> Graph {
    let params = Params {
        m: args.graph.m,
        ef_construction: args.graph.ef_construction,
        encoding: args.graph.encoding,
        ..Params::default()
    };
    let (wall, cpu) = (Instant::now(), cpu_seconds(libc::CLOCK_PROCESS_CPUTIME_ID));
    let graph = Graph::new(args.graph.metric, base.columns, base.rows, params);
    (0..base.rows).for_each(|row| _ = graph.push(base.row(row)));
    graph.build(args.graph.threads, &|_| {});
    let (wall, cpu) = (wall.elapsed().as_secs_f64(), cpu_seconds(libc::CLOCK_PROCESS_CPUTIME_ID) - cpu);
    report(
        args,
        json!({
            "what": "build", "seconds": round(wall, 3), "cpu_seconds": round(cpu, 3),
            "vectors_per_second": (base.rows as f64 / wall).round(),
            "vectors_per_cpu_second": (base.rows as f64 / cpu).round(),
            "threads": args.graph.threads, "vectors": base.rows, "dim": base.columns, "metric": args.graph.metric.name(),
            "encoding": args.graph.encoding.name(), "m": args.graph.m, "ef_construction": args.graph.ef_construction,
        }),
    );
    graph
}

/// Searches all queries at one pool size.
fn point(args: &Args, graph: &Graph, queries: &Matrix<f32>, truth: &Matrix<i64>, ef: usize) -> Value {
    let count = queries.rows;
    let mut latencies = vec![f64::INFINITY; count];
    let (mut wall, mut cpu) = (f64::INFINITY, f64::INFINITY);
    let (mut hits, mut visited) = (0, 0);
    for _ in 0..args.repeats {
        (hits, visited) = (0, 0);
        let (wall_start, cpu_start) = (Instant::now(), cpu_seconds(libc::CLOCK_THREAD_CPUTIME_ID));
        for (at, latency) in latencies.iter_mut().enumerate() {
            let start = Instant::now();
            let query = graph.prepare(queries.row(at));
            let (found, distances) = search(graph, &query, args.task.k, ef);
            *latency = latency.min(start.elapsed().as_secs_f64());
            visited += distances;
            let wanted = &truth.row(at)[..args.task.k];
            hits += self::hits(&found, wanted);
        }
        wall = wall.min(wall_start.elapsed().as_secs_f64());
        cpu = cpu.min(cpu_seconds(libc::CLOCK_THREAD_CPUTIME_ID) - cpu_start);
    }
    latencies.sort_by(f64::total_cmp);
    let microseconds = |share: f64| round(latencies[((count - 1) as f64 * share).round() as usize] * 1e6, 1);
    let recall = round(hits as f64 / (count * args.task.k) as f64, 4);
    json!({
        "what": "point", "ef": ef, "k": args.task.k, "recall": recall, format!("recall@{}", args.task.k): recall,
        "qps": (count as f64 / wall).round(), "qps_cpu": (count as f64 / cpu).round(),
        "p50_us": microseconds(0.5), "p99_us": microseconds(0.99),
        "distances": round(visited as f64 / count as f64, 1),
    })
}

fn search(graph: &Graph, query: &Query, k: usize, ef: usize) -> (Vec<(f32, u32)>, usize) {
    let mut found = Vec::with_capacity(k);
    let mut walk = graph.walk(query, ef);
    walk.next_page(k, &mut |_| true, &mut found).expect("no file is read");
    let visited = walk.visited();
    (found, visited)
}

/// Prints one measurement.
fn report(args: &Args, line: Value) {
    if args.json {
        say!("{line}");
        return;
    }
    let number = |key: &str| line[key].as_f64().unwrap_or(0.0);
    match line["what"].as_str() {
        Some("build") => say!(
            "build   {:.0} vectors x {:.0} with {:.0} threads: {:.1} s wall, {:.1} s CPU, {:.0} vectors/s, {:.0} per CPU second",
            number("vectors"),
            number("dim"),
            number("threads"),
            number("seconds"),
            number("cpu_seconds"),
            number("vectors_per_second"),
            number("vectors_per_cpu_second"),
        ),
        Some("memory") => say!(
            "memory  {:.1} MB resident, {:.1} MB in use by the graph, vectors {:.1} MB\n\n{:>6} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}",
            number("rss_bytes") / 1e6,
            number("index_bytes") / 1e6,
            number("raw_bytes") / 1e6,
            "ef",
            "recall",
            "QPS",
            "QPS/CPU",
            "p50 us",
            "p99 us",
            "distances",
        ),
        _ => say!(
            "{:>6} {:>8.4} {:>9} {:>9} {:>9.1} {:>9.1} {:>9.0}",
            number("ef"),
            number("recall"),
            number("qps"),
            number("qps_cpu"),
            number("p50_us"),
            number("p99_us"),
            number("distances"),
        ),
    }
}

pub(super) fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

pub(super) fn cpu_seconds(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid timespec, which is all the call writes.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Resident memory of this process; 0 where the system does not say.
fn rss_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|line| line.split(' ').nth(1)?.parse::<usize>().ok()).unwrap_or(0);
    // SAFETY: sysconf only reads.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages * usize::try_from(page).unwrap_or(4096)
}
