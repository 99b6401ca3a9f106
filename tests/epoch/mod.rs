//! An epoch's folder without PostgreSQL: made from copied rows, opened after any kind of end, as the node does both.

#![allow(dead_code, reason = "each test program uses its part")]

use ruvector::consistency::frontier::{Frontier, Serving};
use ruvector::engine::{Engine, Logs, NewCollection, Options, damage_mark};
use ruvector::model::{CollectionDef, LogRecord, Lsn, RowImage};
use ruvector::replication::progress::Progress;
use ruvector::storage::changelog::{self, ChangeLog};
use ruvector::storage::state::{CollectionState, Identity, State};
use ruvector::storage::{StorageError, files};
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
        Epoch::try_create(dir, tables, at, options).expect("a new epoch")
    }

    /// The same on a disk that may fail.
    pub fn try_create(
        dir: &Path,
        tables: Vec<(CollectionDef, Vec<RowImage>)>,
        at: Lsn,
        options: Options,
    ) -> Result<Epoch, Failure> {
        let identity = Identity {
            system_id: "7".into(),
            timeline: 1,
            database: "app".into(),
            slot: "ruvector".into(),
            consistent_point: at,
        };
        let state = Arc::new(State::create(&dir.join("state.redb"), &identity)?);
        let new: Vec<_> = tables
            .iter()
            .map(|(def, rows)| NewCollection {
                def: def.clone(),
                from: changelog::START,
                expected_rows: rows.len() as u64,
                fingerprint: String::new(),
            })
            .collect();
        state.write(true, |batch| {
            new.iter().try_for_each(|new| {
                batch.set_last_collection(new.def.id)?;
                batch.put_collection(&new.record())
            })
        })?;
        let log_dir = dir.join("log");
        let log = ChangeLog::create(&log_dir, at)?;
        let copy_dir = |def: &CollectionDef| dir.join(format!("copy-{}", def.id.0));
        let mut copies = Vec::new();
        for (def, rows) in &tables {
            let mut copy = ChangeLog::create(&copy_dir(def), Lsn::ZERO)?;
            let begun = LogRecord::CopyStart { at, filenode: 1 };
            let chunks = rows.chunks(COPY_CHUNK).map(|rows| LogRecord::Copied(rows.to_vec()));
            let chunks = [begun].into_iter().chain(chunks);
            let end = LogRecord::CopyEnd { at, rows: rows.len() as u64 };
            chunks.chain([end]).try_for_each(|record| copy.append(&record))?;
            copy.sync()?;
            copies.push((def.id, copy.reader(changelog::START)));
        }
        let logs = Logs { changes: log.reader(changelog::START), dir: log_dir, copies };
        let engine = Engine::start(dir, state.clone(), options, logs)?;
        let epoch = Epoch::joined(state, engine, log);
        epoch.try_wait_until("the copies are taken in", |epoch| {
            epoch.engine.view().collections.values().all(|collection| collection.state == CollectionState::Live)
        })?;
        tables.iter().try_for_each(|(def, _)| files::remove_dir(&copy_dir(def)))?;
        Ok(epoch)
    }

    /// An epoch after any kind of end.
    pub fn open(dir: &Path, options: Options) -> Epoch {
        Epoch::try_open(dir, options).expect("an epoch that opens")
    }

    /// An epoch after any kind of end, on a disk that may fail or be damaged.
    pub fn try_open(dir: &Path, options: Options) -> Result<Epoch, Failure> {
        if let Some(what) = files::read_if_there(&damage_mark(dir))? {
            return Err(damaged(dir, String::from_utf8_lossy(&what)));
        }
        let state = Arc::new(State::open(&dir.join("state.redb"))?);
        let log_dir = dir.join("log");
        let log = ChangeLog::open(&log_dir)?;
        let applied = state.applied()?;
        if applied.position > log.tail().durable().position {
            return Err(damaged(dir, "the change log ends before what was applied from it"));
        }
        let logs = Logs { changes: log.reader(applied.position), dir: log_dir, copies: Vec::new() };
        let engine = Engine::start(dir, state.clone(), options, logs)?;
        Ok(Epoch::joined(state, engine, log))
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
            indexes().all(|index| index.segments.iter().all(|segment| segment.is_linked()))
        });
    }

    /// Waits for anything, as long as the engine lives.
    pub fn wait_until(&self, what: &str, done: impl Fn(&Epoch) -> bool) {
        self.try_wait_until(what, done).expect("the engine lives");
    }

    /// Waits for anything, or until the engine has failed.
    pub fn try_wait_until(&self, what: &str, done: impl Fn(&Epoch) -> bool) -> Result<(), Failure> {
        let started = Instant::now();
        while !done(self) {
            if let Some(why) = self.failure() {
                return Err(Failure::Engine(format!("waiting until {what}: {why}")));
            }
            let applied = self.engine.view().applied;
            assert!(started.elapsed() < PATIENCE, "not in time: {what}; applied {applied}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Why the engine stopped, once it did.
    pub fn failure(&self) -> Option<String> {
        self.engine.failure().borrow().clone()
    }
}

/// Why an epoch is not at work.
#[derive(Debug)]
pub enum Failure {
    /// It could not be made or opened.
    Storage(StorageError),
    /// Its engine stopped.
    Engine(String),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Failure {
        Failure::Storage(error)
    }
}

fn damaged(dir: &Path, what: impl Into<String>) -> Failure {
    Failure::Storage(StorageError::Damaged { path: dir.to_owned(), what: what.into() })
}
