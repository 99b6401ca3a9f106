//! `bench restart`: how soon an index answers after a restart, in how much memory, and how well. It is filled as by a copy
//! when the directory is empty; measuring happens in a process of its own that has never seen the vectors.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value as Json, json};

use crate::cli::bench_ann::{GraphArgs, TaskArgs, cpu_seconds, round, smallest_pool};
use crate::cli::npy::{self, Matrix};
use crate::engine::candidates::{Candidates, Method};
use crate::engine::view::{CollectionView, View};
use crate::engine::{Engine, Logs, NewCollection, Options};
use crate::model::{
    Cell, CollectionDef, CollectionId, ColumnType, Exactness, KeyColumn, LogRecord, Lsn, RowImage, RowKey, Value,
    VectorColumn,
};
use crate::storage::changelog::{self, ChangeLog};
use crate::storage::files;
use crate::storage::state::{CollectionState, Identity, State};

/// Rows of one record of the copy.
const CHUNK: usize = 1_000;
/// Longest wait for the copy to be taken in and linked.
const FILLED: Duration = Duration::from_secs(4 * 3600);
const NAME: &str = "base";

/// An index in a directory, and how it is searched.
#[derive(clap::Args, Debug, Clone)]
pub(super) struct IndexArgs {
    #[command(flatten)]
    pub(super) task: TaskArgs,
    /// Where the index is kept; one that is there is used, whatever it was made with.
    #[arg(long, value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// Pool sizes to measure.
    #[arg(long, value_delimiter = ',', default_value = "16,32,64,128")]
    pub(super) ef: Vec<usize>,
    #[command(flatten)]
    pub(super) graph: GraphArgs,
    /// Passes over the queries; the best counts.
    #[arg(long, default_value_t = 3)]
    pub(super) repeats: usize,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    pub(super) json: bool,
}

/// Arguments of `bench restart`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    index: IndexArgs,
    /// Recalls to find the smallest pool size for.
    #[arg(long, value_delimiter = ',')]
    targets: Vec<f64>,
    /// Only measure, in this process: for a process with limits set from outside.
    #[arg(long)]
    reopen: bool,
}

/// Fills the directory unless it is, then measures a restart.
pub fn run(args: &Args) -> Result<()> {
    if args.reopen {
        return reopen(&args.index, &args.targets);
    }
    if !is_filled(&args.index) {
        report(&args.index, &fill(&args.index)?);
    }
    let own = std::env::current_exe().context("finding this program")?;
    let status = std::process::Command::new(own).args(std::env::args_os().skip(1)).arg("--reopen").status()?;
    ensure!(status.success(), "the measuring process ended with {status}");
    Ok(())
}

/// Is there an index?
pub(super) fn is_filled(args: &IndexArgs) -> bool {
    args.dir.join("state.redb").exists()
}

fn definition(args: &IndexArgs, base: &Matrix<f32>) -> CollectionDef {
    let vector = VectorColumn {
        name: "embedding".into(),
        kind: ColumnType::Vector,
        metric: args.graph.metric,
        dimensions: Some(base.columns),
        m: args.graph.m,
        ef_construction: args.graph.ef_construction,
        encoding: args.graph.encoding,
        index: args.graph.index,
        lists: None,
    };
    CollectionDef {
        id: CollectionId(0),
        name: NAME.into(),
        schema: "public".into(),
        table: NAME.into(),
        oid: 1,
        partitioned: false,
        key: vec![KeyColumn { name: "id".into(), kind: ColumnType::Int8 }],
        vectors: vec![vector],
        filters: Vec::new(),
    }
}

/// Copies the base in, and waits until it is linked and sealed. What that took.
pub(super) fn fill(args: &IndexArgs) -> Result<Json> {
    let base = npy::read_f32(&args.task.base)?;
    ensure!(base.rows > 0, "the base is empty");
    let (at, dir, started) = (Lsn(100), &args.dir, Instant::now());
    files::create_dir(dir)?;
    let def = definition(args, &base);
    let identity = Identity {
        system_id: "bench".into(),
        timeline: 1,
        database: "bench".into(),
        slot: "bench".into(),
        consistent_point: at,
    };
    let state = Arc::new(State::create(&dir.join("state.redb"), &identity)?);
    let expected_rows = base.rows as u64;
    let new = NewCollection { def: def.clone(), from: changelog::START, expected_rows, fingerprint: String::new() };
    state.write(true, |batch| {
        batch.set_last_collection(def.id)?;
        batch.put_collection(&new.record())
    })?;
    let log = ChangeLog::create(&dir.join("log"), at)?;
    let copied = dir.join("copy");
    let mut copy = ChangeLog::create(&copied, Lsn::ZERO)?;
    copy.append(&LogRecord::CopyStart { at, filenode: 1 })?;
    let image = |row: usize| RowImage {
        key: RowKey::encode(&[Value::Int(row as i64)]).expect("integers are keys"),
        vectors: vec![Cell::Value(Value::Vector(base.row(row).into()))],
        filters: Vec::new(),
    };
    for from in (0..base.rows).step_by(CHUNK) {
        copy.append(&LogRecord::Copied((from..base.rows.min(from + CHUNK)).map(image).collect()))?;
    }
    copy.append(&LogRecord::CopyEnd { at, rows: base.rows as u64 })?;
    copy.sync()?;
    let logs = Logs {
        changes: log.reader(changelog::START),
        dir: dir.join("log"),
        copies: vec![(def.id, copy.reader(changelog::START))],
    };
    let options = Options { build_threads: args.graph.threads, ..Options::default() };
    let (rows, columns) = (base.rows, base.columns);
    drop(base);
    let engine = Engine::start(dir, state, options, logs)?;
    wait(&engine, |view| view.collections.values().any(|collection| collection.state == CollectionState::Live))?;
    engine.stop();
    files::remove_dir(&copied)?;
    Ok(json!({
        "what": "fill", "seconds": round(started.elapsed().as_secs_f64(), 1), "vectors": rows, "dim": columns,
        "threads": args.graph.threads, "metric": args.graph.metric.name(), "m": args.graph.m,
        "ef_construction": args.graph.ef_construction, "peak_rss_bytes": memory("VmHWM"),
    }))
}

/// Waits for a view, as long as the engine lives.
pub(super) fn wait(engine: &Engine, done: impl Fn(&View) -> bool) -> Result<()> {
    let started = Instant::now();
    while !done(&engine.view()) {
        if let Some(why) = engine.failure().borrow().clone() {
            bail!("the engine failed: {why}");
        }
        ensure!(started.elapsed() < FILLED, "not filled after {FILLED:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Opens what is there and searches it.
fn reopen(args: &IndexArgs, targets: &[f64]) -> Result<()> {
    let (queries, truth) = questions(args)?;
    let started = Instant::now();
    let engine = open(&args.dir, Options::default())?;
    let view = engine.view();
    let found = collection(&view)?;
    let ready = started.elapsed();
    ensure!(!found.indexes[0].segments.is_empty(), "the index is empty");
    let first = Instant::now();
    search(found, queries.row(0), args.task.k, args.ef[0], Exactness::Balanced)?;
    let segment = &found.indexes[0].segments[0].graph;
    report(
        args,
        &json!({
            "what": "restart", "ready_ms": round(ready.as_secs_f64() * 1e3, 1),
            "first_search_ms": round(first.elapsed().as_secs_f64() * 1e3, 2), "vectors": found.rows,
            "dim": segment.dim(), "segments": found.indexes[0].segments.len(), "encoding": segment.encoding().name(),
            "index_bytes": found.indexes[0].memory_bytes(), "raw_bytes": found.rows as usize * segment.dim() * 4,
            "rss_bytes": memory("VmRSS"),
        }),
    );
    for &ef in &args.ef {
        report(args, &point(args, found, (&queries, &truth), ef, Exactness::Balanced)?);
    }
    for &target in targets {
        let once = IndexArgs { repeats: 1, ..args.clone() };
        let recall = |ef| point(&once, found, (&queries, &truth), ef, Exactness::Balanced);
        let reaches = |ef| Ok(recall(ef)?["recall"].as_f64().is_some_and(|recall| recall >= target));
        if let Some(ef) = smallest_pool(reaches)? {
            let mut line = point(args, found, (&queries, &truth), ef, Exactness::Balanced)?;
            line["what"] = "target".into();
            line["target"] = target.into();
            report(args, &line);
        }
    }
    report(args, &json!({"what": "memory", "rss_bytes": memory("VmRSS"), "peak_rss_bytes": memory("VmHWM")}));
    engine.stop();
    Ok(())
}

/// The queries and their true neighbours.
pub(super) fn questions(args: &IndexArgs) -> Result<(Matrix<f32>, Matrix<i64>)> {
    let queries = npy::read_f32(&args.task.queries)?;
    let truth = npy::read_ids(&args.task.truth)?;
    ensure!(truth.rows == queries.rows, "truth has {} rows for {} queries", truth.rows, queries.rows);
    ensure!((1..=truth.columns).contains(&args.task.k), "k is 1 to {}, what truth holds", truth.columns);
    Ok((queries, truth))
}

/// What is searched.
pub(super) fn collection(view: &View) -> Result<&CollectionView> {
    Ok(&**view.collections.get(NAME).context("the directory holds no index of this bench")?)
}

/// Opens the engine of a filled directory.
pub(super) fn open(dir: &Path, options: Options) -> Result<Engine> {
    open_with_log(dir, options).map(|(engine, _)| engine)
}

/// The same, with the writing end of its change log.
pub(super) fn open_with_log(dir: &Path, options: Options) -> Result<(Engine, ChangeLog)> {
    let state = Arc::new(State::open(&dir.join("state.redb"))?);
    let log = ChangeLog::open(&dir.join("log"))?;
    let logs = Logs { changes: log.reader(state.applied()?.position), dir: dir.join("log"), copies: Vec::new() };
    Ok((Engine::start(dir, state, options, logs)?, log))
}

/// The nearest rows, as places in the base: keys are those, plus a multiple of its rows.
fn search(found: &CollectionView, query: &[f32], k: usize, ef: usize, how: Exactness) -> Result<Vec<i64>> {
    let index = &found.indexes[0];
    let prepared = index.prepare(query).context("the index is empty")?;
    let mut candidates = Candidates::open(index, &prepared, None, Method::Walk { ef }).compared(how);
    let page = candidates.next_page(k)?;
    let number = |key: &RowKey| match key.decode().as_deref() {
        Some([Value::Int(number)]) => Ok(*number),
        _ => bail!("{key} is no key of this bench"),
    };
    page.iter().map(|candidate| number(&candidate.key)).collect()
}

/// Searches with one pool size.
pub(super) fn point(
    args: &IndexArgs,
    found: &CollectionView,
    (queries, truth): (&Matrix<f32>, &Matrix<i64>),
    ef: usize,
    how: Exactness,
) -> Result<Json> {
    let (mut best, mut hits) = (f64::INFINITY, 0);
    let rows = found.rows as i64;
    let mut latencies = vec![f64::INFINITY; queries.rows];
    for _ in 0..args.repeats.max(1) {
        hits = 0;
        let before = cpu_seconds(libc::CLOCK_THREAD_CPUTIME_ID);
        for (at, latency) in latencies.iter_mut().enumerate() {
            let started = Instant::now();
            let nodes = search(found, queries.row(at), args.task.k, ef, how)?;
            *latency = latency.min(started.elapsed().as_secs_f64());
            let found =
                |number: &&i64| truth.row(at)[..args.task.k].iter().any(|wanted| (**number - wanted) % rows == 0);
            hits += nodes.iter().filter(found).count();
        }
        best = best.min(cpu_seconds(libc::CLOCK_THREAD_CPUTIME_ID) - before);
    }
    latencies.sort_by(f64::total_cmp);
    let microseconds = |share: f64| round(latencies[((queries.rows - 1) as f64 * share).round() as usize] * 1e6, 1);
    Ok(json!({
        "what": "point", "ef": ef, "k": args.task.k, "recall": round(hits as f64 / (queries.rows * args.task.k) as f64, 4),
        "qps_cpu": (queries.rows as f64 / best).round(), "p50_us": microseconds(0.5), "p99_us": microseconds(0.99),
    }))
}

/// A figure of this process in bytes, as `/proc/self/status` names it; 0 where the system does not say.
pub(super) fn memory(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(0) * 1024
}

/// Prints one measurement.
fn report(args: &IndexArgs, line: &Json) {
    if args.json {
        say!("{line}");
        return;
    }
    let number = |key: &str| line[key].as_f64().unwrap_or(0.0);
    match line["what"].as_str() {
        Some("fill") => say!(
            "filled   {:.0} vectors x {:.0} in {:.0} s, at most {:.0} MB resident",
            number("vectors"),
            number("dim"),
            number("seconds"),
            number("peak_rss_bytes") / 1e6,
        ),
        Some("restart") => say!(
            "restart  ready after {:.0} ms, first answer {:.1} ms later; {:.0} vectors as {}: {:.0} MB of index ({:.0} MB raw)\n{:>6} {:>8} {:>9} {:>9} {:>9}",
            number("ready_ms"),
            number("first_search_ms"),
            number("vectors"),
            line["encoding"].as_str().unwrap_or_default(),
            number("index_bytes") / 1e6,
            number("raw_bytes") / 1e6,
            "ef",
            "recall",
            "QPS/CPU",
            "p50 us",
            "p99 us",
        ),
        Some("memory") => {
            say!(
                "memory   {:.0} MB resident, at most {:.0} MB",
                number("rss_bytes") / 1e6,
                number("peak_rss_bytes") / 1e6
            );
        }
        _ => say!(
            "{:>6} {:>8.4} {:>9} {:>9.1} {:>9.1}",
            number("ef"),
            number("recall"),
            number("qps_cpu"),
            number("p50_us"),
            number("p99_us"),
        ),
    }
}
