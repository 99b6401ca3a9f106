//! The engine against a naive twin: random transactions, searches at random moments, restarts and kills at random points.
//!
//! `RUVECTOR_TEST_SEED` repeats the transactions and the choices of a run, not the timing of threads and kills: repeat a
//! failing seed some times. `RUVECTOR_TEST_ROUNDS` makes it longer.

#[path = "../epoch/mod.rs"]
mod epoch;
mod random;
mod stream;
mod twin;

use epoch::Epoch;
use random::Random;
use ruvector::consistency::recheck::Visibility;
use ruvector::engine::Options;
use ruvector::engine::candidates::{Accept, Candidates, Method};
use ruvector::engine::segment::Segment;
use ruvector::engine::view::{IndexView, View};
use ruvector::model::{
    Cell, Change, CollectionDef, CommitLsn, Comparison, Consistency, Filter, LogRecord, Lsn, Metric, Op, Recheck,
    RowImage, RowKey, SearchBy, SearchRequest, TransactionHead, Value,
};
use ruvector::query::{QueryError, QueryService};
use ruvector::source::SourceError;
use ruvector::source::rows::{Ask, HeapRow};
use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use stream::{COPIED_AT, Stream};
use twin::{Step, Table, Twin, differs, same};

const ROUNDS: u64 = 30;
/// Rows of an answer.
const LIMIT: usize = 10;
/// Width of the walks.
const EF: usize = 64;
/// Share of the true neighbours that walks find on average.
const RECALL: f64 = 0.9;
/// Set in the process that a test starts in order to kill it: folder, seed, steps done, choices.
const VICTIM: &str = "RUVECTOR_TEST_MODEL_VICTIM";
/// Steps a victim takes unless it is killed before.
const VICTIM_STEPS: u64 = 600;

/// How many of the true neighbours were found.
#[derive(Default)]
struct Recall {
    found: usize,
    wanted: usize,
}

/// The engine, its stream, and how it should be.
struct Trial<'d> {
    dir: &'d Path,
    seed: u64,
    random: Random,
    stream: Stream,
    /// Steps the stream has taken.
    steps: u64,
    epoch: Option<Epoch>,
    /// How everything was when it was last compared, and what was appended since.
    twin: Twin,
    pending: VecDeque<Step>,
    recall: Recall,
    compared: usize,
    mid_stream: usize,
    merged: usize,
    kills: usize,
    restarts: usize,
}

fn options(random: &mut Random) -> Options {
    Options {
        segment_rows: random.between(64, 256) as usize,
        build_threads: random.between(1, 2) as usize,
        seal_rows_on_stop: *random.pick(&[1, 50, 1_000]),
    }
}

impl<'d> Trial<'d> {
    fn new(dir: &'d Path, seed: u64) -> Trial<'d> {
        let mut random = Random::new(seed ^ 0x5eed);
        let (stream, copied) = Stream::new(seed);
        let epoch = Epoch::create(dir, copied, COPIED_AT, options(&mut random));
        let twin = stream.head.clone();
        Trial {
            dir,
            seed,
            random,
            stream,
            steps: 0,
            epoch: Some(epoch),
            twin,
            pending: VecDeque::new(),
            recall: Recall::default(),
            compared: 0,
            mid_stream: 0,
            merged: 0,
            kills: 0,
            restarts: 0,
        }
    }

    fn epoch(&self) -> &Epoch {
        self.epoch.as_ref().expect("open between restarts")
    }

    fn round(&mut self) {
        for _ in 0..self.random.between(150, 350) {
            let step = self.stream.next_step();
            self.steps += 1;
            let log = self.epoch.as_mut().and_then(|epoch| epoch.log.as_mut()).expect("open between restarts");
            step.records.iter().for_each(|record| log.append(record).expect("append"));
            self.pending.push_back(step);
            if self.random.once_in(8) {
                log.sync().expect("sync");
            }
            if self.random.once_in(60) {
                self.compare_now();
            }
        }
        let log = self.epoch.as_mut().and_then(|epoch| epoch.log.as_mut()).expect("open between restarts");
        log.sync().expect("sync");
        if !self.random.once_in(4) {
            self.compare_at_rest();
        }
        match self.random.below(5) {
            0 => {}
            1 | 2 => self.restart(),
            _ => self.kill(),
        }
    }

    /// The twin at this position; it only goes forward.
    fn advance(&mut self, position: Lsn) {
        while self.twin.position < position {
            let step = self.pending.pop_front().expect("a view shows what was appended");
            self.twin.apply(&step);
        }
        assert_eq!(self.twin.position, position, "a view is at the end of a transaction");
    }

    /// Whatever view there is, while the engine is at work.
    fn compare_now(&mut self) {
        let view = self.epoch().engine.view();
        self.mid_stream += usize::from(self.pending.back().is_some_and(|last| view.applied < last.end));
        self.merged += usize::from(view.collections.values().any(|found| found.indexes.iter().any(|i| is_merged(i))));
        self.advance(view.applied);
        compare_view(&view, &self.twin, &mut self.random, &mut self.recall);
        self.compared += 1;
    }

    /// Everything there is to compare, when all is applied.
    fn compare_at_rest(&mut self) {
        let position = self.stream.head.position;
        self.epoch().wait(position);
        if self.random.once_in(2) {
            self.epoch().wait_until_linked();
        }
        self.compare_now();
        assert_eq!(self.twin.position, position);
        let epoch = self.epoch.as_ref().expect("open between restarts");
        compare_rows(epoch, &self.twin);
        compare_answers(epoch, &self.twin, &mut self.random);
    }

    fn restart(&mut self) {
        // Also when much is not applied, not linked, not merged.
        self.epoch().engine.stop();
        self.epoch = None;
        self.reopen();
        self.restarts += 1;
    }

    fn reopen(&mut self) {
        self.epoch = Some(Epoch::open(self.dir, options(&mut self.random)));
        self.compare_now();
    }

    /// Lets another process go on with the stream and kills it.
    fn kill(&mut self) {
        self.epoch().engine.stop();
        self.epoch = None;
        let mut victim = Victim::start(self.dir, self.seed, self.steps, self.random.next());
        let patience = *self.random.pick(&[60, 250, 1_300]);
        std::thread::sleep(Duration::from_millis(self.random.below(patience)));
        let synced = victim.kill();
        self.kills += 1;
        let epoch = Epoch::open(self.dir, options(&mut self.random));
        let durable = epoch.durable();
        assert!(durable >= synced, "the log lost what was durable: {durable}, synced {synced}");
        while self.stream.head.position < durable {
            self.pending.push_back(self.stream.next_step());
            self.steps += 1;
        }
        assert_eq!(self.stream.head.position, durable, "the log ends at the end of a transaction");
        self.epoch = Some(epoch);
        self.compare_now();
        if self.random.once_in(2) {
            self.compare_at_rest();
        }
    }
}

/// A process that applies the stream until it is killed.
struct Victim {
    child: Child,
    synced: Arc<AtomicU64>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Victim {
    fn start(dir: &Path, seed: u64, steps: u64, choices: u64) -> Victim {
        let order = format!("{seed} {steps} {choices} {}", dir.display());
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "victim", "--nocapture"])
            .env(VICTIM, order)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let synced = Arc::new(AtomicU64::new(0));
        let seen = synced.clone();
        let reader = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(lsn) = line.strip_prefix("synced ").and_then(|lsn| lsn.parse().ok()) {
                    seen.fetch_max(lsn, Ordering::Relaxed);
                }
            }
        });
        Victim { child, synced, reader: Some(reader) }
    }

    /// Kills it; what it had said to be durable.
    fn kill(&mut self) -> Lsn {
        let ended = self.child.try_wait().expect("a child of ours");
        assert_eq!(ended, None, "the victim ended by itself");
        self.end();
        Lsn(self.synced.load(Ordering::Relaxed))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reads to the end");
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.end();
    }
}

/// Does nothing unless a test started it in order to kill it.
#[test]
fn victim() {
    let Ok(order) = std::env::var(VICTIM) else { return };
    // Not longer than whoever started it.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let [seed, steps, choices, dir] = order.splitn(4, ' ').collect::<Vec<_>>()[..] else { panic!("{order}") };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let (mut stream, _) = Stream::new(number(seed));
    (0..number(steps)).for_each(|_| drop(stream.next_step()));
    let mut random = Random::new(number(choices));
    let mut epoch = Epoch::open(Path::new(dir), options(&mut random));
    let pause = Duration::from_millis(random.below(4));
    let log = epoch.log.as_mut().expect("just opened");
    assert_eq!(log.durable(), stream.head.position, "the stream goes on where the log ends");
    for _ in 0..VICTIM_STEPS {
        let step = stream.next_step();
        step.records.iter().for_each(|record| log.append(record).expect("append"));
        if random.once_in(6) {
            log.sync().expect("sync");
            println!("synced {}", log.durable().0);
        }
        if random.once_in(3) {
            std::thread::sleep(pause);
        }
    }
    loop {
        let failure = epoch.engine.failure().borrow().clone();
        assert_eq!(failure, None);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A query near to something or anywhere.
fn query(table: &Table, column: usize, dimensions: usize, random: &mut Random) -> Vec<f32> {
    let nth = random.below(table.rows.len().max(1) as u64) as usize;
    let stored = table.rows.values().nth(nth).and_then(|row| row.vectors[column].clone());
    stored.filter(|_| random.once_in(2)).unwrap_or_else(|| random.vector(dimensions))
}

/// None, wide, narrow, or passed by nothing.
fn filter(random: &mut Random) -> Option<Filter> {
    let group = |op, value| Filter::Compare { column: 0, op, value: Some(Value::Int(value)) };
    let tag = |tag: &str| Filter::Compare { column: 1, op: Comparison::Eq, value: Some(Value::Text(tag.into())) };
    match random.below(6) {
        0 => Some(group(Comparison::Lt, 10)),
        1 => Some(group(Comparison::Eq, random.below(20) as i64)),
        2 => Some(Filter::And(vec![tag("red"), Filter::Not(Box::new(Filter::IsNull { column: 0 }))])),
        3 => Some(group(Comparison::Eq, 99)),
        _ => None,
    }
}

fn candidates(
    index: &IndexView,
    query: &[f32],
    filter: Option<&Filter>,
    method: Method,
    want: usize,
) -> Vec<(RowKey, f64)> {
    let Some(prepared) = index.prepare(query) else { return Vec::new() };
    let mut open = Candidates::open(index, &prepared, Accept { filter, except: None }, method);
    open.next_page(want).into_iter().map(|candidate| (candidate.key, candidate.distance)).collect()
}

fn compare_view(view: &View, twin: &Twin, random: &mut Random, recall: &mut Recall) {
    assert_eq!(view.applied, twin.position);
    for table in &twin.tables {
        let name = &table.def.name;
        let found = &view.collections[name];
        assert_eq!(found.rows, table.rows.len() as u64, "rows of {name}");
        assert_eq!(found.dead_letters, table.dead(), "dead letters of {name}");
        for (column, index) in found.indexes.iter().enumerate() {
            assert_eq!(index.live, table.live(column), "vectors of {name} {column}");
            assert_eq!(index.column.dimensions, table.dimensions[column], "dimensions of {name} {column}");
            let Some(dimensions) = table.dimensions[column] else { continue };
            for _ in 0..4 {
                let (query, filter) = (query(table, column, dimensions, random), filter(random));
                let wanted = table.search(column, &query, filter.as_ref(), None);
                compare_search(index, &query, filter.as_ref(), &wanted, recall);
            }
            compare_drained(index, table, column, &query(table, column, dimensions, random), filter(random));
        }
    }
}

/// Is there a segment that was made of others? It comes after newer ones.
fn is_merged(index: &IndexView) -> bool {
    let first = |segment: &Arc<Segment>| (!segment.graph.is_empty()).then(|| segment.node(0));
    let firsts: Vec<_> = index.segments.iter().filter_map(first).collect();
    !firsts.is_sorted()
}

/// A scan is exact; a walk finds nearly all, and nothing that does not belong.
fn compare_search(
    index: &IndexView,
    query: &[f32],
    filter: Option<&Filter>,
    wanted: &[(RowKey, f64)],
    recall: &mut Recall,
) {
    let scanned = candidates(index, query, filter, Method::Scan, LIMIT);
    if let Some(difference) = differs(&scanned, wanted, LIMIT) {
        panic!("scan with {filter:?}: {difference}");
    }
    let walked = candidates(index, query, filter, Method::Walk { ef: EF }, LIMIT);
    let expected = wanted.len().min(LIMIT);
    assert_eq!(walked.len(), expected, "a walk is dry only when there is no more; filter {filter:?}");
    for (key, distance) in &walked {
        let own = wanted.iter().find(|(wanted, _)| wanted == key);
        let (_, own) = own.unwrap_or_else(|| panic!("walk with {filter:?}: row {key} does not belong"));
        assert!(same(*distance, *own), "walk: row {key} at {distance} instead of {own}");
    }
    // A row as near as the last one wanted is as good.
    if let Some((_, bound)) = wanted.get(expected.wrapping_sub(1)) {
        let near = walked.iter().filter(|(_, distance)| bound.is_nan() || *distance <= bound + 1e-5);
        recall.found += near.count();
        recall.wanted += expected;
    }
}

/// A walk that is asked for everything gives every row once.
fn compare_drained(index: &IndexView, table: &Table, column: usize, query: &[f32], filter: Option<Filter>) {
    let walked = candidates(index, query, filter.as_ref(), Method::Walk { ef: EF }, 10_000);
    let keys: BTreeSet<_> = walked.iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), walked.len(), "a row comes twice");
    let wanted = table.search(column, query, filter.as_ref(), None);
    let wanted: BTreeSet<_> = wanted.iter().map(|(key, _)| key).collect();
    let missing: Vec<_> = wanted.difference(&keys).collect();
    assert!(missing.is_empty() && keys.len() == wanted.len(), "missing {missing:?}, {} found", keys.len());
}

/// What is stored, row by row.
fn compare_rows(epoch: &Epoch, twin: &Twin) {
    for table in &twin.tables {
        let mut rows = 0;
        let compare = |key: RowKey, vectors: &[Option<Vec<f32>>], stored: &ruvector::storage::state::StoredRow| {
            let row = table.rows.get(&key).unwrap_or_else(|| panic!("row {key} of {} is gone", table.def.name));
            assert_eq!(vectors, row.vectors, "vectors of {key}");
            assert_eq!((stored.version, &stored.filters), (row.version, &row.filters), "row {key}");
            rows += 1;
        };
        epoch.engine.each_row(table.def.id, compare).expect("rows can be read");
        assert_eq!(rows, table.rows.len());
        let letters = epoch.engine.dead_letters(table.def.id, usize::MAX).expect("dead letters can be read");
        assert_eq!(letters.len() as u64, table.dead());
    }
}

/// Nobody asks it.
struct Unasked;

impl Visibility for Unasked {
    async fn visible(&self, _: &CollectionDef, _: &[RowKey], _: Ask<'_>) -> Result<Vec<HeapRow>, SourceError> {
        panic!("a search without recheck asked the source")
    }
}

/// Line two: exact answers by vector and by row.
fn compare_answers(epoch: &Epoch, twin: &Twin, random: &mut Random) {
    let service =
        QueryService::new(epoch.frontier(Arc::default()), Unasked, ruvector::query::Options { default_ef: EF });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for table in &twin.tables {
        for (column, definition) in table.def.vectors.iter().enumerate() {
            let Some(dimensions) = table.dimensions[column] else { continue };
            let filter = filter(random);
            let row = table.rows.keys().nth(random.below(table.rows.len().max(1) as u64) as usize);
            let mut searches = vec![SearchBy::Vector(query(table, column, dimensions, random))];
            searches.extend(row.cloned().map(SearchBy::Row));
            for by in searches {
                let request = SearchRequest {
                    collection: table.def.name.clone(),
                    using: Some(definition.name.clone()),
                    by: by.clone(),
                    limit: LIMIT,
                    filter: filter.clone(),
                    columns: vec!["grp".into()],
                    ef: None,
                    exact: true,
                    consistency: Consistency { at_least: Some(twin.position), timeout: None },
                    recheck: Recheck::None,
                };
                let answer = runtime.block_on(service.search(&request));
                let (query, except) = match &by {
                    SearchBy::Vector(vector) => (vector.clone(), None),
                    SearchBy::Row(key) => match &table.rows[key].vectors[column] {
                        Some(vector) => (vector.clone(), Some(key)),
                        None => {
                            assert!(matches!(answer, Err(QueryError::NoVector(_))), "{answer:?}");
                            continue;
                        }
                    },
                };
                let answer = answer.expect("an answer");
                assert_eq!((answer.applied_lsn, answer.complete), (twin.position, true));
                let found: Vec<_> = answer.hits.iter().map(|hit| (hit.key.clone(), hit.distance)).collect();
                let wanted = table.search(column, &query, filter.as_ref(), except);
                if let Some(difference) = differs(&found, &wanted, LIMIT) {
                    panic!("{by:?} with {filter:?}: {difference}");
                }
                let ordered = |pair: &[(RowKey, f64)]| pair[0].1 != pair[1].1 || pair[0].0 < pair[1].0;
                assert!(found.windows(2).all(ordered), "ties are in the order of keys");
                for hit in &answer.hits {
                    assert_eq!(hit.version, table.rows[&hit.key].version, "version of {}", hit.key);
                }
            }
        }
    }
}

/// The last segment is small and linked first; those before it are not linked yet when the engine stops.
#[test]
fn a_stop_before_all_is_linked_loses_no_row() {
    const ROWS: i64 = 2_100;
    let dir = tempfile::tempdir().expect("a folder");
    let (_, copied) = Stream::new(1);
    let mut def = copied[1].0.clone();
    (def.vectors[0].metric, def.vectors[0].ef_construction) = (Metric::L2, 400);
    let options = Options { segment_rows: 512, build_threads: 1, seal_rows_on_stop: 1 };
    let mut epoch = Epoch::create(dir.path(), vec![(def.clone(), Vec::new())], COPIED_AT, options.clone());
    let mut random = Random::new(1);
    let mut upsert = |number: i64| Change {
        collection: def.id,
        ordinal: number as u32 + 1,
        op: Op::Upsert {
            old_key: None,
            row: RowImage {
                key: RowKey::encode(&[Value::Int(number)]).expect("an integer can be a key"),
                vectors: vec![Cell::Value(Value::Vector(random.vector(64).into()))],
                filters: vec![Cell::Null, Cell::Null],
            },
        },
    };
    let end = Lsn(2_010);
    let head = TransactionHead { commit: CommitLsn(2_000), commit_time: 0 };
    let log = epoch.log.as_mut().expect("just made");
    let changes = LogRecord::Changes((0..ROWS).map(&mut upsert).collect());
    for record in [LogRecord::Begin(head), changes, LogRecord::Commit { end }] {
        log.append(&record).expect("append");
    }
    log.sync().expect("sync");
    epoch.wait(end);
    // Long enough for the last segment, too short for the others.
    epoch.wait_until("the last segment is linked", |epoch| {
        epoch.engine.view().collections[&def.name].indexes[0].segments.last().is_some_and(|last| last.is_linked())
    });
    epoch.engine.stop();
    drop(epoch);
    let epoch = Epoch::open(dir.path(), options);
    let found =
        candidates(&epoch.engine.view().collections[&def.name].indexes[0], &[0.0; 64], None, Method::Scan, 10_000);
    assert_eq!(found.len(), ROWS as usize);
}

#[test]
fn the_engine_is_its_naive_twin_through_restarts_and_kills() {
    let setting = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let time = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64);
    let seed = setting("RUVECTOR_TEST_SEED").unwrap_or(time);
    let rounds = setting("RUVECTOR_TEST_ROUNDS").unwrap_or(ROUNDS);
    let dir = tempfile::tempdir().expect("a folder");
    let mut trial = Trial::new(dir.path(), seed);
    let mut round = 0;
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        while round < rounds {
            trial.round();
            round += 1;
        }
        trial.compare_at_rest();
        finish(&trial, rounds);
    }));
    if let Err(panic) = result {
        println!("round {round} after {} kills, {} restarts: RUVECTOR_TEST_SEED={seed}", trial.kills, trial.restarts);
        std::panic::resume_unwind(panic);
    }
}

/// Did the trial try what it is for?
fn finish(trial: &Trial<'_>, rounds: u64) {
    let recall = trial.recall.found as f64 / trial.recall.wanted as f64;
    println!(
        "seed {}: {} steps, {} views compared ({} behind, {} with merged segments), {} kills, {} restarts, recall {recall:.4}",
        trial.seed, trial.steps, trial.compared, trial.mid_stream, trial.merged, trial.kills, trial.restarts
    );
    assert!(recall >= RECALL, "recall {recall}");
    if rounds >= ROUNDS {
        assert!(trial.kills > 0 && trial.restarts > 0 && trial.mid_stream > 0, "all of them happened");
        assert!(trial.merged > 0, "segments were sealed and merged");
    }
}
