//! `bench churn` and `bench mixed`: recall and speed of an index whose rows change, through the engine's own change log.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value as Json, json};

use crate::cli::bench_ann::{cpu_seconds, round};
use crate::cli::bench_restart::{IndexArgs, collection, fill, is_filled, open_with_log, point, questions, wait};
use crate::cli::npy::{self, Matrix};
use crate::engine::{Engine, Options};
use crate::model::{
    Cell, Change, CollectionId, CommitLsn, Exactness, LogRecord, Lsn, Op, RowImage, RowKey, TransactionHead, Value,
};
use crate::storage::changelog::ChangeLog;
use crate::storage::files;

/// Rows of one transaction.
const TRANSACTION: usize = 100;
/// Segments that stay the same for so long are merged.
const SETTLED: Duration = Duration::from_secs(3);

/// Arguments of `bench churn`.
#[derive(clap::Args, Debug)]
pub struct ChurnArgs {
    #[command(flatten)]
    index: IndexArgs,
    /// Shares of the rows, in percent, that have been deleted and inserted again under another key when it is measured.
    #[arg(long, value_delimiter = ',', default_value = "10,50,100")]
    churned: Vec<usize>,
    /// Rows of a segment.
    #[arg(long, default_value_t = 65_536)]
    segment_rows: usize,
}

/// Arguments of `bench mixed`.
#[derive(clap::Args, Debug)]
pub struct MixedArgs {
    #[command(flatten)]
    index: IndexArgs,
    /// Rows inserted a second while searches go on.
    #[arg(long, default_value_t = 1_000)]
    rate: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Rows that are inserted, then as many written again without another vector, before that.
    #[arg(long, default_value_t = 10_000)]
    changes: usize,
    /// Rows of each transaction of these, which waits for the disk.
    #[arg(long, default_value_t = 10)]
    per_transaction: usize,
}

/// Who writes transactions into the change log, as the source's would be.
struct Writer {
    log: ChangeLog,
    lsn: u64,
}

impl Writer {
    fn commit(&mut self, ops: Vec<Op>) -> Result<Lsn> {
        let (commit, end) = (CommitLsn(self.lsn + 8), Lsn(self.lsn + 16));
        self.lsn = end.0;
        let change = |(at, op): (usize, Op)| Change { collection: CollectionId(0), ordinal: at as u32 + 1, op };
        self.log.append(&LogRecord::Begin(TransactionHead { commit, commit_time: 0 }))?;
        self.log.append(&LogRecord::Changes(ops.into_iter().enumerate().map(change).collect()))?;
        self.log.append(&LogRecord::Commit { end })?;
        Ok(end)
    }
}

fn key(number: usize) -> RowKey {
    RowKey::encode(&[Value::Int(number as i64)]).expect("integers are keys")
}

fn insert(base: &Matrix<f32>, number: usize) -> Op {
    let vectors = vec![Cell::Value(Value::Vector(base.row(number % base.rows).into()))];
    Op::Upsert { old_key: None, row: RowImage { key: key(number), vectors, filters: Vec::new() } }
}

/// A fresh index in the directory, which must not be there, and who changes it.
fn fresh(args: &IndexArgs, options: Options) -> Result<(Engine, Writer)> {
    if is_filled(args) {
        bail!("{} holds an index already; this bench changes its own and removes it", args.dir.display());
    }
    fill(args)?;
    let (engine, log) = open_with_log(&args.dir, options)?;
    let lsn = log.durable().0;
    Ok((engine, Writer { log, lsn }))
}

/// Replaces shares of the rows and measures the recall after each.
pub fn churn(args: &ChurnArgs) -> Result<()> {
    let index = &args.index;
    ensure!(args.churned.is_sorted() && args.churned.iter().all(|&share| share <= 100), "shares ascend, to 100");
    let (base, (queries, truth)) = (npy::read_f32(&index.task.base)?, questions(index)?);
    let (engine, mut writer) = fresh(index, Options { segment_rows: args.segment_rows, ..Options::default() })?;
    let measure = |churned: usize, seconds: f64| -> Result<()> {
        let view = engine.view();
        let found = collection(&view)?;
        for &ef in &index.ef {
            let mut line = point(index, found, (&queries, &truth), ef, Exactness::Balanced)?;
            line["what"] = "churn".into();
            line["churned_percent"] = churned.into();
            line["segments"] = found.indexes[0].segments.len().into();
            line["seconds"] = round(seconds, 1).into();
            report(index, &line);
        }
        Ok(())
    };
    if !index.json {
        say!(
            "{:>8} {:>9} {:>6} {:>8} {:>9} {:>9} {:>9}",
            "churned",
            "segments",
            "ef",
            "recall",
            "QPS/CPU",
            "p50 us",
            "s"
        );
    }
    measure(0, 0.0)?;
    // Every row once, in an order that has nothing to do with the first: the number of rows and this prime share no factor.
    const STRIDE: usize = 1_000_003;
    let shuffled = |at: usize| at.wrapping_mul(STRIDE) % base.rows;
    ensure!(base.rows % STRIDE != 0, "a multiple of {STRIDE} rows cannot be shuffled");
    let mut done = 0;
    for &share in &args.churned {
        let (started, until) = (Instant::now(), base.rows * share / 100);
        while done < until {
            let rows: Vec<usize> = (done..until.min(done + TRANSACTION)).map(shuffled).collect();
            done += rows.len();
            let replaced = |&row: &usize| [Op::Delete { key: key(row) }, insert(&base, row + base.rows)];
            writer.commit(rows.iter().flat_map(replaced).collect())?;
            writer.log.sync()?;
        }
        settle(&engine, Lsn(writer.lsn))?;
        measure(share, started.elapsed().as_secs_f64())?;
    }
    engine.stop();
    files::remove_dir(&index.dir)?;
    Ok(())
}

/// Waits until everything is applied and linked, and nothing is merged any more.
fn settle(engine: &Engine, applied: Lsn) -> Result<()> {
    wait(engine, |view| {
        let linked = |found: &crate::engine::view::CollectionView| {
            found.indexes[0]
                .segments
                .iter()
                .all(|segment| segment.is_linked() && (!segment.is_full() || segment.is_saved()))
        };
        view.applied >= applied && view.collections.values().all(|found| linked(found))
    })?;
    let ids = || -> Vec<u64> {
        let view = engine.view();
        view.collections.values().flat_map(|found| &found.indexes[0].segments).map(|segment| segment.id).collect()
    };
    let (mut since, mut before) = (Instant::now(), ids());
    while since.elapsed() < SETTLED {
        std::thread::sleep(Duration::from_millis(100));
        let now = ids();
        if now != before {
            (since, before) = (Instant::now(), now);
        }
    }
    Ok(())
}

/// What it costs to take changes in, of all threads, until they are durable, searchable and linked: rows inserted, and rows
/// written again with the vector they had.
fn taken_in(engine: &Engine, args: &MixedArgs, base: &Matrix<f32>, writer: &mut Writer) -> Result<()> {
    let nodes = || -> Result<usize> { Ok(collection(&engine.view())?.indexes[0].rows.len()) };
    for (what, first) in [("insert", base.rows), ("payload", 0)] {
        let before = nodes()?;
        let (started, cpu) = (Instant::now(), cpu_seconds(libc::CLOCK_PROCESS_CPUTIME_ID));
        for from in (0..args.changes).step_by(args.per_transaction) {
            let rows = from..args.changes.min(from + args.per_transaction);
            writer.commit(rows.map(|row| insert(base, first + row)).collect())?;
            writer.log.sync()?;
        }
        let end = Lsn(writer.lsn);
        wait(engine, |view| view.applied >= end)?;
        let searchable = started.elapsed().as_secs_f64();
        wait(engine, |view| {
            view.collections.values().all(|found| found.indexes[0].segments.iter().all(|one| one.is_linked()))
        })?;
        let (linked, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds(libc::CLOCK_PROCESS_CPUTIME_ID) - cpu);
        let (written, count) = (nodes()? - before, args.changes as f64);
        let line = json!({
            "what": what, "rows": args.changes, "per_transaction": args.per_transaction, "graph_writes": written,
            "searchable_per_s": (count / searchable).round(), "linked_per_s": (count / linked).round(),
            "per_cpu_second": (count / cpu).round(),
        });
        if args.index.json {
            say!("{line}");
        } else {
            say!(
                "{what}: {} rows, {} a transaction: {} graph writes, {}/s durable and searchable, {}/s linked, {} per CPU second",
                args.changes,
                args.per_transaction,
                written,
                line["searchable_per_s"],
                line["linked_per_s"],
                line["per_cpu_second"],
            );
        }
    }
    Ok(())
}

/// Takes changes in, then searches for some seconds, first with nothing else to do, then while rows come in.
pub fn mixed(args: &MixedArgs) -> Result<()> {
    let index = &args.index;
    ensure!(args.rate > 0 && args.seconds > 0 && args.per_transaction > 0, "rate, seconds and rows are at least 1");
    let (base, (queries, truth)) = (npy::read_f32(&index.task.base)?, questions(index)?);
    ensure!(args.changes <= base.rows, "the base has {} rows", base.rows);
    let (engine, mut writer) = fresh(index, Options::default())?;
    taken_in(&engine, args, &base, &mut writer)?;
    settle(&engine, Lsn(writer.lsn))?;
    if !index.json {
        say!(
            "{:>6} {:>8} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10}",
            "ef",
            "rows/s",
            "QPS",
            "QPS/CPU",
            "p50 us",
            "p99 us",
            "stale p50",
            "stale p99"
        );
    }
    let mut next = base.rows + args.changes;
    for &ef in &index.ef {
        let idle = searches(&engine, index, (&queries, &truth), ef, args.seconds, &AtomicBool::new(false))?;
        report_mixed(index, ef, 0.0, &idle, &[], None);
        let over = AtomicBool::new(false);
        let (busy, written) = std::thread::scope(|scope| -> Result<_> {
            let (engine, base, over) = (&engine, &base, &over);
            let (writer, next) = (&mut writer, &mut next);
            let writing = scope.spawn(move || write(engine, base, writer, next, args.rate, over));
            let busy = searches(engine, index, (&queries, &truth), ef, args.seconds, over);
            over.store(true, Ordering::Relaxed);
            let written = writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
            Ok((busy?, written))
        })?;
        let (rows, seconds, ages) = written;
        report_mixed(index, ef, rows as f64 / seconds, &busy, &ages, Some(&idle));
        settle(&engine, Lsn(writer.lsn))?;
    }
    engine.stop();
    files::remove_dir(&index.dir)?;
    Ok(())
}

/// Inserts rows at a rate until it is over: how many, in how many seconds, and how long each transaction took from its
/// sync to a view that shows it, in milliseconds.
fn write(
    engine: &Engine,
    base: &Matrix<f32>,
    writer: &mut Writer,
    next: &mut usize,
    rate: usize,
    over: &AtomicBool,
) -> Result<(usize, f64, Vec<f64>)> {
    let rows = (rate / 100).max(1);
    let (started, first, mut ages) = (Instant::now(), *next, Vec::new());
    while !over.load(Ordering::Relaxed) {
        let due = started + Duration::from_secs_f64((*next - first) as f64 / rate as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let end = writer.commit((*next..*next + rows).map(|number| insert(base, number)).collect())?;
        *next += rows;
        let begun = Instant::now();
        writer.log.sync()?;
        while engine.view().applied < end {
            ensure!(engine.failure().borrow().is_none() && begun.elapsed() < Duration::from_secs(60), "not applied");
            std::thread::sleep(Duration::from_micros(200));
        }
        ages.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok((*next - first, started.elapsed().as_secs_f64(), ages))
}

/// Searches again and again, of one thread.
fn searches(
    engine: &Engine,
    args: &IndexArgs,
    (queries, truth): (&Matrix<f32>, &Matrix<i64>),
    ef: usize,
    seconds: u64,
    over: &AtomicBool,
) -> Result<Vec<Json>> {
    let (started, mut lines) = (Instant::now(), Vec::new());
    while started.elapsed() < Duration::from_secs(seconds) && !over.load(Ordering::Relaxed) {
        let (view, begun) = (engine.view(), Instant::now());
        let once = IndexArgs { repeats: 1, ..args.clone() };
        let mut line = point(&once, collection(&view)?, (queries, truth), ef, Exactness::Balanced)?;
        line["qps"] = (queries.rows as f64 / begun.elapsed().as_secs_f64()).round().into();
        lines.push(line);
    }
    Ok(lines)
}

fn middle(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(((values.len().max(1) - 1) as f64 * share).round() as usize).copied().unwrap_or(0.0)
}

fn report_mixed(args: &IndexArgs, ef: usize, rate: f64, lines: &[Json], ages: &[f64], idle: Option<&Vec<Json>>) {
    let median = |lines: &[Json], key: &str| {
        middle(&mut lines.iter().filter_map(|line| line[key].as_f64()).collect::<Vec<_>>(), 0.5)
    };
    let mut ages = ages.to_vec();
    let mut line = json!({
        "what": "mixed", "ef": ef, "rows_per_s": round(rate, 1), "qps": median(lines, "qps"),
        "qps_cpu": median(lines, "qps_cpu"), "p50_us": median(lines, "p50_us"), "p99_us": median(lines, "p99_us"),
    });
    if let Some(idle) = idle {
        line["qps_of_idle"] = round(median(lines, "qps") / median(idle, "qps"), 3).into();
        line["qps_cpu_of_idle"] = round(median(lines, "qps_cpu") / median(idle, "qps_cpu"), 3).into();
        line["stale_p50_ms"] = round(middle(&mut ages, 0.5), 2).into();
        line["stale_p99_ms"] = round(middle(&mut ages, 0.99), 2).into();
    }
    if args.json {
        return say!("{line}");
    }
    let number = |key: &str| line[key].as_f64().unwrap_or(0.0);
    say!(
        "{:>6} {:>8.0} {:>9} {:>9} {:>9.1} {:>9.1} {:>10.2} {:>10.2}{}",
        ef,
        rate,
        number("qps"),
        number("qps_cpu"),
        number("p50_us"),
        number("p99_us"),
        number("stale_p50_ms"),
        number("stale_p99_ms"),
        idle.map(|_| format!("   {:.2} of idle", number("qps_of_idle"))).unwrap_or_default(),
    );
}

fn report(args: &IndexArgs, line: &Json) {
    if args.json {
        return say!("{line}");
    }
    let number = |key: &str| line[key].as_f64().unwrap_or(0.0);
    say!(
        "{:>7}% {:>9} {:>6} {:>8.4} {:>9} {:>9.1} {:>9.1}",
        number("churned_percent"),
        number("segments"),
        number("ef"),
        number("recall"),
        number("qps_cpu"),
        number("p50_us"),
        number("seconds"),
    );
}
