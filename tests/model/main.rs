//! The engine against a naive twin: random transactions, searches at random moments, restarts and kills at random points.
//!
//! `RUVECTOR_TEST_SEED` repeats the transactions and the choices of a run, not the timing of threads and kills: repeat a
//! failing seed some times. `RUVECTOR_TEST_ROUNDS` makes it longer.

mod compare;
#[path = "../epoch/mod.rs"]
mod epoch;
mod random;
mod stream;
mod tiers;
mod twin;

use compare::{Recall, candidates, compare_answers, compare_rows, compare_view, is_lean, is_merged, nearest, service};
use epoch::Epoch;
use random::Random;
use ruvector::engine::Options;
use ruvector::engine::candidates::Method;
use ruvector::engine::tiers::Clock;
use ruvector::model::{
    Cell, Change, CollectionDef, CommitLsn, LogRecord, Lsn, Metric, Op, RowImage, RowKey, SearchBy, TransactionHead,
    Value,
};
use ruvector::query::QueryError;
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use stream::{COPIED_AT, Stream};
use twin::{Step, Twin};

const ROUNDS: u64 = 30;
/// Share of the true neighbours that walks find on average.
const RECALL: f64 = 0.9;
/// Set in the process that a test starts in order to kill it: folder, seed, steps done, choices.
const VICTIM: &str = "RUVECTOR_TEST_MODEL_VICTIM";
/// Steps a victim takes unless it is killed before.
const VICTIM_STEPS: u64 = 600;

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
    lean: usize,
    tiered: usize,
    kills: usize,
    restarts: usize,
    clock: Clock,
}

fn options(random: &mut Random) -> Options {
    Options {
        segment_rows: random.between(64, 256) as usize,
        build_threads: random.between(1, 2) as usize,
        seal_rows_on_stop: *random.pick(&[1, 50, 1_000]),
        tiers: if random.once_in(3) { BTreeMap::new() } else { tiers::policies(random) },
        ..Options::default()
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
            lean: 0,
            tiered: 0,
            kills: 0,
            restarts: 0,
            clock: Clock::default(),
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
            if self.random.once_in(80) {
                self.pass_time();
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

    /// Days go by, or somebody has segments merged; rows move in the background.
    fn pass_time(&mut self) {
        let epoch = self.epoch.as_ref().expect("open between restarts");
        if self.random.once_in(3) {
            let view = epoch.engine.view();
            view.collections.values().for_each(|found| epoch.engine.compact(found));
        } else {
            self.clock.advance(60 * self.random.below(24 * 20) as u32);
            epoch.engine.look_at_tiers();
        }
    }

    /// Whatever came of it before, in the end every sealed segment gets a tier, and none again.
    fn move_all(&mut self) {
        for tiers in [tiers::policies(&mut self.random), BTreeMap::new()] {
            let wanted = !tiers.is_empty();
            self.epoch().engine.set_tiers(tiers);
            self.epoch().wait_until("sealed segments have their tiers", |epoch| {
                let view = epoch.engine.view();
                let mut indexes = view.collections.values().flat_map(|found| &found.indexes);
                indexes.all(|index| tiers::are_tiered(index, wanted))
            });
            self.compare_at_rest();
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
        self.lean += usize::from(view.collections.values().any(|found| found.indexes.iter().any(|i| is_lean(i))));
        self.tiered +=
            usize::from(view.collections.values().any(|found| found.indexes.iter().any(|i| tiers::is_tiered(i))));
        self.advance(view.applied);
        compare_view(&view, &self.twin, &mut self.random, &mut self.recall).expect("the disk is well");
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
        compare_rows(epoch, &self.twin).expect("rows can be read");
        compare_answers(epoch, &self.twin, &mut self.random).expect("rows can be read");
    }

    fn restart(&mut self) {
        // Also when much is not applied, not linked, not merged.
        self.epoch().engine.stop();
        self.epoch = None;
        self.reopen();
        self.restarts += 1;
    }

    /// The clock goes on through restarts.
    fn options(&mut self) -> Options {
        Options { clock: self.clock.clone(), ..options(&mut self.random) }
    }

    fn reopen(&mut self) {
        self.epoch = Some(Epoch::open(self.dir, self.options()));
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
        let epoch = Epoch::open(self.dir, self.options());
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

/// The last segment is small and linked first; those before it are not linked yet when the engine stops.
#[test]
fn a_stop_before_all_is_linked_loses_no_row() {
    const ROWS: i64 = 2_100;
    let dir = tempfile::tempdir().expect("a folder");
    let (_, copied) = Stream::new(1);
    let mut def = copied[1].0.clone();
    (def.vectors[0].metric, def.vectors[0].ef_construction) = (Metric::L2, 400);
    let options = Options { segment_rows: 512, build_threads: 1, seal_rows_on_stop: 1, ..Options::default() };
    let mut epoch = Epoch::create(dir.path(), vec![(def.clone(), Vec::new())], COPIED_AT, options.clone());
    fill(&mut epoch, &def, ROWS);
    // Long enough for the last segment, too short for the others.
    epoch.wait_until("the last segment is linked", |epoch| {
        epoch.engine.view().collections[&def.name].indexes[0].segments.last().is_some_and(|last| last.is_linked())
    });
    epoch.engine.stop();
    drop(epoch);
    let epoch = Epoch::open(dir.path(), options);
    let found =
        candidates(&epoch.engine.view().collections[&def.name].indexes[0], &[0.0; 64], None, Method::Scan, 10_000);
    assert_eq!(found.expect("rows").len(), ROWS as usize);
}

/// Rows of one transaction, numbered from 0, with random vectors.
fn fill(epoch: &mut Epoch, def: &CollectionDef, rows: i64) -> Lsn {
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
    let changes = LogRecord::Changes((0..rows).map(&mut upsert).collect());
    for record in [LogRecord::Begin(head), changes, LogRecord::Commit { end }] {
        log.append(&record).expect("append");
    }
    log.sync().expect("sync");
    epoch.wait(end);
    end
}

/// A sealed segment's vectors are read when they are needed, so their damage is met by a search: it has no answer, and
/// the engine ends so that the next start copies again.
#[test]
fn a_search_that_meets_a_damaged_vector_tells_and_ends_the_engine() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_, copied) = Stream::new(1);
    let mut def = copied[1].0.clone();
    (def.vectors[0].metric, def.vectors[0].ef_construction) = (Metric::L2, 40);
    let options = Options { segment_rows: 2_000, build_threads: 1, seal_rows_on_stop: 1, ..Options::default() };
    let mut epoch = Epoch::create(dir.path(), vec![(def.clone(), Vec::new())], COPIED_AT, options);
    fill(&mut epoch, &def, 2_000);
    epoch.wait_until("the segment answers from its file", |epoch| {
        is_lean(&epoch.engine.view().collections[&def.name].indexes[0])
    });
    let files = std::fs::read_dir(dir.path().join("vectors")).expect("a folder").flatten().map(|file| file.path());
    let path = files.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "f32")).expect("originals");
    let mut bytes = std::fs::read(&path).expect("bytes");
    bytes[64..].iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(&path, &bytes).expect("write");
    let request = nearest(&def, &def.vectors[0].name, SearchBy::Vector(vec![0.1; 64].into()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let told = runtime.block_on(service(&epoch).search(&request)).expect_err("no answer from damaged vectors");
    assert!(matches!(&told, QueryError::Storage(error) if error.is_damage()), "{told:?}");
    assert!(epoch.failure().expect("the engine ended").contains("damaged"));
    assert!(ruvector::engine::damage_mark(dir.path()).exists(), "the next start knows");
}

#[test]
fn the_engine_is_its_naive_twin_through_restarts_and_kills() {
    // Codes for small segments too.
    // SAFETY: nothing reads the environment by other means than Rust's.
    unsafe { std::env::set_var("RUVECTOR_TEST_TRAIN_ROWS", "48") };
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
        trial.move_all();
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
        "seed {}: {} steps, {} views compared ({} behind, {} with merged segments, {} with lean ones, {} with tiers), {} kills, {} restarts, recall {recall:.4}",
        trial.seed,
        trial.steps,
        trial.compared,
        trial.mid_stream,
        trial.merged,
        trial.lean,
        trial.tiered,
        trial.kills,
        trial.restarts
    );
    assert!(recall >= RECALL, "recall {recall}");
    if rounds >= ROUNDS {
        assert!(trial.kills > 0 && trial.restarts > 0 && trial.mid_stream > 0, "all of them happened");
        assert!(trial.merged > 0, "segments were sealed and merged");
        assert!(trial.lean > 0, "full vectors were read from disk");
    }
}
