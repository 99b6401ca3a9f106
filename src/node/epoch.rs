//! Opening and making epochs: one slot, one change log, one engine that belong together.

use crate::consistency::frontier::Serving;
use crate::engine::{self, Engine, Logs, NewCollection, damage_mark};
use crate::model::{CollectionDef, CollectionId, Lsn};
use crate::replication::copy::CopyTable;
use crate::replication::start::Checkpoint;
use crate::source::catalog::Table;
use crate::storage::changelog::{self, ChangeLog};
use crate::storage::data_dir::{DataDir, EpochId};
use crate::storage::state::{CollectionState, Identity, State};
use crate::storage::{Result, damaged, files};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// One epoch at work.
pub struct Epoch {
    /// Its number.
    pub id: EpochId,
    /// What it was derived from.
    pub identity: Identity,
    /// Its collections.
    pub defs: Vec<CollectionDef>,
    /// Its transactional state.
    pub state: Arc<State>,
    /// What answers.
    pub serving: Arc<Serving>,
    /// The writing end of its change log; away while a stream writes to it.
    pub log: Option<ChangeLog>,
}

impl Epoch {
    /// Opens an epoch after any kind of end. Damage is an error: everything can be copied again.
    pub fn open(data: &DataDir, id: EpochId, options: engine::Options) -> Result<Epoch> {
        let dir = data.epoch_dir(id);
        if let Some(what) = files::read_if_there(&damage_mark(&dir))? {
            return Err(damaged(&dir, String::from_utf8_lossy(&what)));
        }
        let state = Arc::new(State::open(&dir.join("state.redb"))?);
        let (identity, applied) = (state.identity()?, state.applied()?);
        let log_dir = dir.join("log");
        let log = ChangeLog::open(&log_dir)?;
        if applied.position > log.tail().durable().position {
            return Err(damaged(&log_dir, "the change log ends before what was applied from it"));
        }
        let records = state.collections()?;
        if let Some(record) = records.iter().find(|record| record.state == CollectionState::Copying) {
            return Err(damaged(&dir, format!("the copy of {} is not whole", record.def.name)));
        }
        let defs = records.into_iter().map(|record| record.def).collect();
        let logs = Logs { changes: log.reader(applied.position), dir: log_dir, copies: Vec::new() };
        let engine = Engine::start(&dir, state.clone(), options, logs, &[])?;
        Ok(Epoch::joined(id, identity, defs, state, engine, log, true))
    }

    /// Makes an epoch whose rows will come through the copy logs that are returned.
    pub fn create(
        dir: &Path,
        id: EpochId,
        identity: Identity,
        tables: Vec<(CollectionDef, Table)>,
        options: engine::Options,
    ) -> Result<(Epoch, Vec<CopyTable>)> {
        let at: Lsn = identity.consistent_point;
        let state = Arc::new(State::create(&dir.join("state.redb"), &identity)?);
        let new: Vec<_> = tables
            .iter()
            .map(|(def, table)| NewCollection { def: def.clone(), copied_at: at, expected_rows: expected_rows(table) })
            .collect();
        Engine::register(&state, &new)?;
        let log_dir = dir.join("log");
        let log = ChangeLog::create(&log_dir, at)?;
        let start = changelog::start_of(&log_dir)?;
        let (mut copies, mut copy_tables) = (Vec::new(), Vec::new());
        for (def, table) in tables {
            let copy_dir = dir.join(format!("copy-{}", def.id.0));
            let copy_log = ChangeLog::create(&copy_dir, Lsn::ZERO)?;
            copies.push((def.id, copy_log.reader(changelog::start_of(&copy_dir)?)));
            copy_tables.push(CopyTable { def, table, log: copy_log });
        }
        let logs = Logs { changes: log.reader(start), dir: log_dir, copies };
        let expected: Vec<(CollectionId, u64)> = new.iter().map(|new| (new.def.id, new.expected_rows)).collect();
        let engine = Engine::start(dir, state.clone(), options, logs, &expected)?;
        let defs = new.into_iter().map(|new| new.def).collect();
        Ok((Epoch::joined(id, identity, defs, state, engine, log, false), copy_tables))
    }

    fn joined(
        id: EpochId,
        identity: Identity,
        defs: Vec<CollectionDef>,
        state: Arc<State>,
        engine: Engine,
        log: ChangeLog,
        kept: bool,
    ) -> Epoch {
        let (engine, slot) = (Arc::new(engine), identity.slot.clone());
        let serving = Serving { engine, log: log.tail(), slot, kept: AtomicBool::new(kept) };
        Epoch { id, identity, defs, state, serving: Arc::new(serving), log: Some(log) }
    }

    /// What the start decision needs to know of us.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            system_id: self.identity.system_id.clone(),
            timeline: self.identity.timeline,
            durable: self.serving.log.durable().lsn,
        }
    }

    /// Are all its collections copied and linked?
    pub fn is_live(&self) -> bool {
        let view = self.serving.engine.view();
        view.collections.values().all(|collection| collection.state != CollectionState::Copying)
    }

    /// The copy logs have been taken in; they are needed no more.
    pub fn remove_copy_logs(&self, dir: &Path) {
        for def in &self.defs {
            let copy = dir.join(format!("copy-{}", def.id.0));
            if let Err(error) = files::remove_dir(&copy) {
                tracing::warn!(%error, "cannot remove a copy log");
            }
        }
    }
}

/// About how many rows a table has, with room to grow while it is copied.
fn expected_rows(table: &Table) -> u64 {
    // Without statistics: rows with an embedding are rarely narrower than 200 bytes, 40 to a page.
    let rows = if table.estimated_rows > 0 { table.estimated_rows } else { table.pages * 40 };
    rows as u64 + rows as u64 / 5 + 1000
}
