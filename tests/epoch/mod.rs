//! An epoch's folder without PostgreSQL: made from copied rows, opened after any kind of end, as the node does both.

#![allow(dead_code, reason = "each test program uses its part")]

use ruvector::consistency::frontier::{Frontier, Serving};
use ruvector::engine::{Engine, Logs, NewCollection, Options};
use ruvector::model::{CollectionDef, LogRecord, Lsn, RowImage};
use ruvector::replication::progress::Progress;
use ruvector::storage::changelog::{self, ChangeLog};
use ruvector::storage::state::{CollectionState, Identity, State};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows in one record of a copy log.
const COPY_CHUNK: usize = 100;

/// One epoch at work.
pub struct Epoch {
    /// Its transactional state.
    pub state: Arc<State>,
    /// Its engine.
    pub engine: Arc<Engine>,
    /// The writing end of its change log; away while a stream writes to it.
    pub log: Option<ChangeLog>,
    serving: Arc<Serving>,
}

impl Epoch {
    /// An epoch whose collections were copied at `at` and are live.
    pub fn create(dir: &Path, tables: Vec<(CollectionDef, Vec<RowImage>)>, at: Lsn, options: Options) -> Epoch {
        let identity = Identity {
            system_id: "7".into(),
            timeline: 1,
            database: "app".into(),
            slot: "ruvector".into(),
            consistent_point: at,
        };
        let state = Arc::new(State::create(&dir.join("state.redb"), &identity).expect("a new state"));
        let new: Vec<_> = tables
            .iter()
            .map(|(def, rows)| NewCollection {
                def: def.clone(),
                from: changelog::START,
                expected_rows: rows.len() as u64,
                fingerprint: String::new(),
            })
            .collect();
        Engine::register(&state, &new).expect("new collections");
        let log_dir = dir.join("log");
        let log = ChangeLog::create(&log_dir, at).expect("a new log");
        let copy_dir = |def: &CollectionDef| dir.join(format!("copy-{}", def.id.0));
        let mut copies = Vec::new();
        for (def, rows) in &tables {
            let mut copy = ChangeLog::create(&copy_dir(def), Lsn::ZERO).expect("a new copy log");
            let begun = LogRecord::CopyStart { at, filenode: 1 };
            let chunks = rows.chunks(COPY_CHUNK).map(|rows| LogRecord::Copied(rows.to_vec()));
            let chunks = [begun].into_iter().chain(chunks);
            let end = LogRecord::CopyEnd { at, rows: rows.len() as u64 };
            chunks.chain([end]).for_each(|record| copy.append(&record).expect("append"));
            copy.sync().expect("sync");
            copies.push((def.id, copy.reader(changelog::START)));
        }
        let logs = Logs { changes: log.reader(changelog::START), dir: log_dir, copies };
        let engine = Engine::start(dir, state.clone(), options, logs).expect("the engine starts");
        let epoch = Epoch::joined(state, engine, log);
        epoch.wait_until("the copies are taken in", |epoch| {
            epoch.engine.view().collections.values().all(|collection| collection.state == CollectionState::Live)
        });
        tables.iter().for_each(|(def, _)| std::fs::remove_dir_all(copy_dir(def)).expect("a copy log goes"));
        epoch
    }

    /// An epoch after any kind of end.
    pub fn open(dir: &Path, options: Options) -> Epoch {
        let state = Arc::new(State::open(&dir.join("state.redb")).expect("the state opens"));
        let log_dir = dir.join("log");
        let log = ChangeLog::open(&log_dir).expect("the log opens");
        let applied = state.applied().expect("the applied position");
        assert!(applied.position <= log.tail().durable().position, "nothing is applied that the log lost");
        let logs = Logs { changes: log.reader(applied.position), dir: log_dir, copies: Vec::new() };
        let engine = Engine::start(dir, state.clone(), options, logs).expect("the engine starts");
        Epoch::joined(state, engine, log)
    }

    fn joined(state: Arc<State>, engine: Engine, log: ChangeLog) -> Epoch {
        let engine = Arc::new(engine);
        let serving = Serving { engine: engine.clone(), log: log.tail(), slot: "ruvector".into(), kept: true.into() };
        Epoch { state, engine, log: Some(log), serving: Arc::new(serving) }
    }

    /// A frontier that hands out this epoch's views.
    pub fn frontier(&self, progress: Arc<Progress>) -> Arc<Frontier> {
        let frontier = Frontier::new(progress, PATIENCE);
        frontier.serve(Some(self.serving.clone()));
        Arc::new(frontier)
    }

    /// Everything up to here is durable in the change log.
    pub fn durable(&self) -> Lsn {
        self.serving.log.durable().lsn
    }

    /// Waits until everything up to `position` is applied.
    pub fn wait(&self, position: Lsn) {
        self.wait_until(&format!("{position} is applied"), |epoch| epoch.engine.view().applied >= position);
    }

    /// Waits until walks find every vector without a scan.
    pub fn wait_until_linked(&self) {
        self.wait_until("all is linked", |epoch| {
            let view = epoch.engine.view();
            let indexes = || view.collections.values().flat_map(|collection| &collection.indexes);
            indexes().all(|index| index.linked().0 == index.linked().1)
        });
    }

    /// Waits for anything, as long as the engine lives.
    pub fn wait_until(&self, what: &str, done: impl Fn(&Epoch) -> bool) {
        let started = Instant::now();
        while !done(self) {
            let failure = self.engine.failure().borrow().clone();
            assert_eq!(failure, None, "the engine failed while waiting until {what}");
            let applied = self.engine.view().applied;
            assert!(started.elapsed() < PATIENCE, "not in time: {what}; applied {applied}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
