//! `bench filter`: recall and speed of searches with a filter, on a data set of `.npy` files, as the planner chooses and
//! by each plan. Compare CPU figures, and only with what peers reach in the same minutes (see `bench_ann.rs`).

use std::path::PathBuf;
use std::sync::{Arc, atomic::AtomicU64};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};

use crate::cli::bench_ann::{GraphArgs, cpu_seconds, round};
use crate::cli::npy::{self, Matrix};
use crate::engine::candidates::{Candidates, Method};
use crate::engine::rows::{NewRow, Rows};
use crate::engine::segment::Segment;
use crate::engine::view::{IndexView, Prepared};
use crate::model::{Cell, ColumnType, Comparison, Filter, RowKey, Value, VectorColumn, Version};
use crate::query::plan::{self, PlanFacts};

/// Arguments of `bench filter`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Vectors to index: .npy, two-dimensional, f16 or f32.
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// Query vectors: .npy, f16 or f32.
    #[arg(long, value_name = "FILE")]
    queries: PathBuf,
    /// So many of the queries, the first ones.
    #[arg(long, default_value_t = 300)]
    count: usize,
    /// Which rows pass: `modN` for each Nth row, or NAME=FILE for a mask (.npy, one bool or u8 a row).
    #[arg(long, value_delimiter = ',', default_value = "mod10,mod100,mod1000", value_name = "FILTER")]
    filters: Vec<String>,
    /// How to search: `auto` as the planner says, `walk` or `scan` by that plan, `graph` by the bare walk without a budget.
    #[arg(long, value_delimiter = ',', default_value = "auto")]
    plans: Vec<PlanName>,
    /// Neighbours asked for.
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// Search widths to measure.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    ef: Vec<usize>,
    #[command(flatten)]
    graph: GraphArgs,
    /// Passes over the queries; the best counts.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum PlanName {
    Auto,
    Walk,
    Scan,
    Graph,
}

/// A filter to measure: column `column` is true.
struct Filtered {
    name: String,
    rows: Vec<bool>,
    filter: Filter,
}

/// Builds the index, then searches it with every filter.
pub fn run(args: &Args) -> Result<()> {
    let base = npy::read_f32(&args.base)?;
    let queries = npy::read_f32(&args.queries)?;
    ensure!(base.rows > 0 && base.columns > 0, "the base is empty");
    ensure!(base.columns == queries.columns, "base has {} dimensions, queries {}", base.columns, queries.columns);
    ensure!(base.values.iter().chain(&queries.values).all(|x| x.is_finite()), "a vector holds NaN or infinity");
    ensure!(
        (2..=100).contains(&args.graph.m) && args.graph.ef_construction > 0,
        "m is 2 to 100, ef-construction at least 1"
    );
    ensure!(args.k > 0 && args.repeats > 0 && args.count > 0, "k, repeats and count are at least 1");
    let filters: Vec<_> = args.filters.iter().enumerate().map(|(at, text)| filter(at, text, base.rows)).collect();
    let filters = filters.into_iter().collect::<Result<Vec<_>>>()?;
    let index = build(args, &base, &filters);
    for filtered in &filters {
        report(args, &mask(&index, filtered));
        let count = args.count.min(queries.rows);
        let truth: Vec<_> = (0..count).map(|at| nearest(args, &base, filtered, queries.row(at))).collect();
        for plan in &args.plans {
            for &ef in &args.ef {
                report(args, &point(args, &index, filtered, &queries, &truth, *plan, ef)?);
            }
        }
    }
    Ok(())
}

fn filter(column: usize, text: &str, count: usize) -> Result<Filtered> {
    let (name, rows) = match text.split_once('=') {
        Some((name, path)) => (name, npy::read_mask(path.as_ref())?),
        None => {
            let step = text.strip_prefix("mod").and_then(|step| step.parse().ok()).filter(|&step: &usize| step > 0);
            let step = step.with_context(|| format!("{text:?} is neither modN nor NAME=FILE"))?;
            (text, (0..count).map(|row| row % step == 0).collect())
        }
    };
    ensure!(rows.len() == count, "mask {name} has {} rows, the base {count}", rows.len());
    let filter = Filter::Compare { column, op: Comparison::Eq, value: Some(Value::Bool(true)) };
    Ok(Filtered { name: name.to_owned(), rows, filter })
}

/// One linked segment; each filter is a column of its own.
fn build(args: &Args, base: &Matrix<f32>, filters: &[Filtered]) -> IndexView {
    let started = Instant::now();
    let column = VectorColumn {
        name: "base".into(),
        kind: ColumnType::Vector,
        metric: args.graph.metric,
        dimensions: Some(base.columns),
        m: args.graph.m,
        ef_construction: args.graph.ef_construction,
        encoding: args.graph.encoding,
        index: args.graph.index,
        lists: None,
    };
    let segment = Segment::growing(1, &column, base.columns, 0, base.rows);
    let mut rows = Rows::default();
    for row in 0..base.rows {
        segment.graph.push(base.row(row));
        let key = RowKey::encode(&[Value::Int(row as i64)]).expect("integers are keys");
        let cells: Vec<_> = filters.iter().map(|filtered| Cell::Value(Value::Bool(filtered.rows[row]))).collect();
        rows.push(NewRow { key: &key, version: Version::default(), filters: &cells });
    }
    segment.graph.build(args.graph.threads, &|_| {});
    let (live, bytes) = (rows.live(), rows.memory_bytes());
    report(
        args,
        &json!({
            "what": "build", "seconds": round(started.elapsed().as_secs_f64(), 3), "threads": args.graph.threads,
            "vectors": base.rows, "dim": base.columns, "metric": args.graph.metric.name(), "m": args.graph.m,
            "ef_construction": args.graph.ef_construction, "bytes_per_row": round(bytes as f64 / live as f64, 2),
        }),
    );
    let ids = Arc::new(AtomicU64::new(2));
    let (segments, gone, touches) = (vec![Arc::new(segment)], Arc::default(), Arc::default());
    let (originals, sparse) = (None, Default::default());
    IndexView { column, rows, segments, live, ids, originals, sparse, gone, touches }
}

/// What it costs to know which rows pass: at first, and when the filter comes again.
fn mask(index: &IndexView, filtered: &Filtered) -> Json {
    let timed = || {
        let started = Instant::now();
        let passing = index.rows.passing(Some(&filtered.filter)).count();
        (passing, round(started.elapsed().as_secs_f64() * 1e6, 1))
    };
    let ((passing, first), (_, again)) = (timed(), timed());
    json!({
        "what": "mask", "filter": filtered.name, "passing": passing,
        "selectivity": passing as f64 / index.live.max(1) as f64, "first_us": first, "again_us": again,
    })
}

/// The nearest rows that pass, by plain arithmetic.
fn nearest(args: &Args, base: &Matrix<f32>, filtered: &Filtered, query: &[f32]) -> Vec<u32> {
    let passing = (0..base.rows).filter(|&row| filtered.rows[row]);
    let mut all: Vec<_> = passing.map(|row| (args.graph.metric.distance(base.row(row), query), row as u32)).collect();
    // NaN, of a vector without direction, sorts last.
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all.into_iter().take(args.k).map(|(_, row)| row).collect()
}

/// What one search found and did.
struct Searched {
    nodes: Vec<u32>,
    distances: usize,
    plan: &'static str,
    given_up: bool,
}

/// Searches all queries.
fn point(
    args: &Args,
    index: &IndexView,
    filtered: &Filtered,
    queries: &Matrix<f32>,
    truth: &[Vec<u32>],
    plan: PlanName,
    ef: usize,
) -> Result<Json> {
    let count = truth.len();
    let mut latencies = vec![f64::INFINITY; count];
    let (mut wall, mut cpu) = (f64::INFINITY, f64::INFINITY);
    let (mut hits, mut short, mut distances, mut given_up, mut chosen) = (0, 0, 0, 0, "");
    for _ in 0..args.repeats {
        (hits, short, distances, given_up) = (0, 0, 0, 0);
        let (wall_start, cpu_start) = (Instant::now(), cpu_seconds(libc::CLOCK_THREAD_CPUTIME_ID));
        for (at, latency) in latencies.iter_mut().enumerate() {
            let start = Instant::now();
            let query = index.prepare(queries.row(at)).context("the index is empty")?;
            let found = search(args, index, filtered, &query, plan, ef);
            *latency = latency.min(start.elapsed().as_secs_f64());
            hits += found.nodes.iter().filter(|node| truth[at].contains(node)).count();
            short += usize::from(found.nodes.len() < truth[at].len());
            distances += found.distances;
            given_up += usize::from(found.given_up);
            chosen = found.plan;
        }
        wall = wall.min(wall_start.elapsed().as_secs_f64());
        cpu = cpu.min(cpu_seconds(libc::CLOCK_THREAD_CPUTIME_ID) - cpu_start);
    }
    latencies.sort_by(f64::total_cmp);
    let microseconds = |share: f64| round(latencies[((count - 1) as f64 * share).round() as usize] * 1e6, 1);
    let wanted: usize = truth.iter().map(Vec::len).sum();
    let passing = filtered.rows.iter().filter(|passes| **passes).count();
    Ok(json!({
        "what": "filter", "filter": filtered.name, "selectivity": passing as f64 / filtered.rows.len() as f64,
        "asked": format!("{plan:?}").to_lowercase(), "plan": chosen, "ef": ef, "k": args.k,
        "recall": round(hits as f64 / wanted.max(1) as f64, 4), "short": short, "given_up": given_up,
        "qps": (count as f64 / wall).round(), "qps_cpu": (count as f64 / cpu).round(),
        "p50_us": microseconds(0.5), "p99_us": microseconds(0.99),
        "distances": round(distances as f64 / count as f64, 1),
    }))
}

/// One search, with everything that a search costs: knowing which rows pass, and the plan.
fn search(
    args: &Args,
    index: &IndexView,
    filtered: &Filtered,
    query: &Prepared,
    plan: PlanName,
    ef: usize,
) -> Searched {
    let (method, plan) = match plan {
        PlanName::Graph => return walk_graph(args, index, filtered, query, ef),
        PlanName::Walk => (Method::Walk { ef }, "hnsw+filter"),
        PlanName::Scan => (Method::Scan, "scan"),
        PlanName::Auto => {
            let passing = index.rows.passing(Some(&filtered.filter)).count();
            let segments = index.segments.len();
            let coded = index.segments.iter().any(|segment| segment.graph.encoding() != crate::model::Encoding::F32);
            let (live, passing, limit) = (index.live, Some(passing), args.k);
            let index = args.graph.index;
            let facts = PlanFacts { live, passing, segments, limit, ef, coded, ranged: false, exact: false, index };
            let plan = plan::choose(facts);
            (plan.method, plan.name)
        }
    };
    let mut candidates = Candidates::open(index, query, Some(&filtered.filter), method);
    let nodes = candidates.next_page(args.k).expect("no file is read").iter().map(|candidate| candidate.node).collect();
    Searched { nodes, distances: candidates.visited(), plan, given_up: candidates.given_up().is_some() }
}

/// What a graph alone does with a filter: the walk goes on until it has found enough.
fn walk_graph(args: &Args, index: &IndexView, filtered: &Filtered, query: &Prepared, ef: usize) -> Searched {
    let passing = index.rows.passing(Some(&filtered.filter));
    let (mut nodes, mut found, mut distances) = (Vec::new(), Vec::new(), 0);
    let Prepared::Graph(query) = query else { unreachable!("the column has a graph") };
    for segment in &index.segments {
        let mut walk = segment.graph.walk(query, ef);
        walk.next_page(args.k, &mut |slot| passing.contains(segment.node(slot)), &mut found).expect("no file is read");
        nodes.extend(found.drain(..).map(|(_, slot)| segment.node(slot)));
        distances += walk.visited();
    }
    Searched { nodes, distances, plan: "graph", given_up: false }
}

/// Prints one measurement.
fn report(args: &Args, line: &Json) {
    if args.json {
        say!("{line}");
        return;
    }
    let number = |key: &str| line[key].as_f64().unwrap_or(0.0);
    let text = |key: &str| line[key].as_str().unwrap_or_default();
    match line["what"].as_str() {
        Some("build") => say!(
            "build   {:.0} vectors x {:.0} in {:.1} s, {} bytes a row beside vectors and links\n",
            number("vectors"),
            number("dim"),
            number("seconds"),
            number("bytes_per_row"),
        ),
        Some("mask") => say!(
            "{}: {:.0} rows pass, {:.3} %; known after {:.0} us, again {:.1} us\n{:>6} {:>12} {:>5} {:>8} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9}",
            text("filter"),
            number("passing"),
            number("selectivity") * 100.0,
            number("first_us"),
            number("again_us"),
            "asked",
            "plan",
            "ef",
            "recall",
            "short",
            "given up",
            "QPS/CPU",
            "p50 us",
            "p99 us",
            "distances",
        ),
        _ => say!(
            "{:>6} {:>12} {:>5} {:>8.4} {:>6} {:>9} {:>9} {:>9.1} {:>9.1} {:>9.0}",
            text("asked"),
            text("plan"),
            number("ef"),
            number("recall"),
            number("short"),
            number("given_up"),
            number("qps_cpu"),
            number("p50_us"),
            number("p99_us"),
            number("distances"),
        ),
    }
}
