//! Opening and making epochs: one slot, one change log, one engine that belong together, and the copies under way in it.

use crate::consistency::frontier::Serving;
use crate::engine::apply::Command;
use crate::engine::view::View;
use crate::engine::{self, Engine, Logs, NewCollection, damage_mark};
use crate::model::{CollectionDef, CollectionId};
use crate::node::NodeError;
use crate::replication::ReplicationError;
use crate::replication::copy::{self, CopyTarget, Exported};
use crate::replication::definitions::Definitions;
use crate::replication::progress::Progress;
use crate::replication::start::Checkpoint;
use crate::source::catalog::Table;
use crate::source::connect::Dsn;
use crate::storage::changelog::{self, ChangeLog};
use crate::storage::data_dir::{DataDir, EpochId};
use crate::storage::state::{CollectionState, Identity, State};
use crate::storage::{Result, damaged, files};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::task::JoinHandle;

/// A flowing stream takes new definitions in between two transactions.
const DEFINED_WITHIN: Duration = Duration::from_secs(60);

/// One epoch at work.
pub struct Epoch {
    /// Its number.
    pub id: EpochId,
    /// What it was derived from.
    pub identity: Identity,
    /// Its transactional state.
    pub state: Arc<State>,
    /// What answers.
    pub serving: Arc<Serving>,
    /// What its stream feeds.
    pub definitions: Arc<Definitions>,
    /// The writing end of its change log; away while a stream writes to it.
    pub log: Option<ChangeLog>,
    dir: PathBuf,
    copies: HashMap<CollectionId, Arc<CopyTarget>>,
    copier: Option<JoinHandle<std::result::Result<(), ReplicationError>>>,
}

/// A collection to be, with its table: as it is in the catalog, and what has no event when it changes.
pub struct NewTable {
    /// The collection.
    pub def: CollectionDef,
    /// Its table; without one the collection is paused for this reason.
    pub table: std::result::Result<Table, String>,
    /// What has no event in the stream when it changes.
    pub fingerprint: String,
}

fn copy_dir(epoch: &Path, id: CollectionId) -> PathBuf {
    epoch.join(format!("copy-{}", id.0))
}

impl Epoch {
    /// Opens an epoch after any kind of end. Damage is an error: everything can be copied again.
    pub fn open(
        data: &DataDir,
        id: EpochId,
        options: engine::Options,
        progress: &Progress,
    ) -> std::result::Result<Epoch, NodeError> {
        let dir = data.epoch_dir(id);
        if let Some(what) = files::read_if_there(&damage_mark(&dir))? {
            return Err(damaged(&dir, String::from_utf8_lossy(&what)).into());
        }
        let state = Arc::new(State::open(&dir.join("state.redb"))?);
        let (identity, applied) = (state.identity()?, state.applied()?);
        let log_dir = dir.join("log");
        let log = ChangeLog::open(&log_dir)?;
        if applied.position > log.tail().durable().position {
            return Err(damaged(&log_dir, "the change log ends before what was applied from it").into());
        }
        let mut copies = HashMap::new();
        for record in state.collections()? {
            if record.state != CollectionState::Copying {
                continue;
            }
            let id = record.def.id;
            match CopyTarget::open(record.def, &copy_dir(&dir, id), progress) {
                Ok(target) => drop(copies.insert(id, Arc::new(target))),
                Err(error) => {
                    // It was never whole: nothing is lost but time.
                    tracing::warn!(%error, "a copy log cannot be read; the copy begins anew");
                    state.write(true, |batch| batch.remove_collection(id))?;
                }
            }
        }
        Ok(Epoch::join(id, dir, identity, state, log, copies, options)?)
    }

    /// Makes an epoch whose rows will come through copies.
    pub fn create(
        dir: &Path,
        id: EpochId,
        identity: Identity,
        tables: Vec<NewTable>,
        options: engine::Options,
        progress: &Progress,
    ) -> std::result::Result<Epoch, NodeError> {
        let state = Arc::new(State::create(&dir.join("state.redb"), &identity)?);
        let log = ChangeLog::create(&dir.join("log"), identity.consistent_point)?;
        crate::failpoint!("epoch.log_made");
        let (mut copies, mut records) = (HashMap::new(), Vec::new());
        for NewTable { def, table, fingerprint } in tables {
            let id = def.id;
            let expected_rows = table.as_ref().map_or(0, expected_rows);
            let new = NewCollection { def: def.clone(), from: changelog::START, expected_rows, fingerprint };
            let mut record = new.record();
            match table {
                Ok(_) => {
                    let target = CopyTarget::create(def, &copy_dir(dir, id), progress)?;
                    copies.insert(id, Arc::new(target));
                }
                Err(reason) => record.state = CollectionState::Paused { reason },
            }
            records.push(record);
        }
        state.write(true, |batch| {
            records.iter().try_for_each(|record| {
                batch.set_last_collection(record.def.id)?;
                batch.put_collection(record)
            })
        })?;
        crate::failpoint!("epoch.registered");
        Ok(Epoch::join(id, dir.to_owned(), identity, state, log, copies, options)?)
    }

    fn join(
        id: EpochId,
        dir: PathBuf,
        identity: Identity,
        state: Arc<State>,
        log: ChangeLog,
        copies: HashMap<CollectionId, Arc<CopyTarget>>,
        options: engine::Options,
    ) -> Result<Epoch> {
        let defs = state.collections()?.into_iter().map(|record| record.def).collect();
        let copy_logs = copies.iter().map(|(id, target)| (*id, target.reader())).collect();
        let changes = log.reader(state.applied()?.position);
        let logs = Logs { changes, dir: dir.join("log"), copies: copy_logs };
        let engine = Arc::new(Engine::start(&dir, state.clone(), options, logs)?);
        let serving = Serving { engine, log: log.tail(), slot: identity.slot.clone(), kept: AtomicBool::new(false) };
        let definitions = Arc::new(Definitions::new(defs));
        let (serving, log, copier) = (Arc::new(serving), Some(log), None);
        let epoch = Epoch { id, identity, state, serving, definitions, log, dir, copies, copier };
        epoch.remove_stray_copies()?;
        Ok(epoch)
    }

    /// What the start decision needs to know of us.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            system_id: self.identity.system_id.clone(),
            timeline: self.identity.timeline,
            durable: self.serving.log.durable().lsn,
        }
    }

    /// Its newest view.
    pub fn view(&self) -> Arc<View> {
        self.serving.engine.view()
    }

    /// Are all its collections copied and linked?
    pub fn is_live(&self) -> bool {
        self.view().incoming.is_empty()
    }

    /// Copies what is not copied yet, unless that is under way.
    pub fn copy(&mut self, dsn: &Dsn, options: &copy::Options, first: Option<Exported>, progress: &Arc<Progress>) {
        let left: Vec<_> = self.copies.values().filter(|target| !target.is_whole()).cloned().collect();
        if self.copier.is_none() && !left.is_empty() {
            let names: Vec<_> = left.iter().map(|target| target.def.name.as_str()).collect();
            tracing::info!(collections = names.join(", "), "copying");
            self.copier = Some(tokio::spawn(copy::run(dsn.clone(), options.clone(), left, first, progress.clone())));
        }
    }

    /// The result of a copy that has ended since the last call.
    pub async fn copy_ended(&mut self) -> Option<std::result::Result<(), NodeError>> {
        let ended = self.copier.take_if(|copier| copier.is_finished())?;
        Some(match ended.await {
            Ok(result) => result.map_err(NodeError::from),
            Err(panic) => Err(NodeError::Engine(format!("the copy ended: {panic}"))),
        })
    }

    /// Must the copy of this collection begin anew, under another number?
    pub fn is_spoiled(&self, id: CollectionId) -> bool {
        self.copies.get(&id).is_none_or(|target| target.is_spoiled())
    }

    /// Takes a collection in while the stream flows: from now on its changes go to the log, and its rows are copied.
    pub async fn add(&mut self, new: NewTable, progress: &Progress) -> std::result::Result<(), NodeError> {
        let engine = self.serving.engine.clone();
        let mut def = new.def;
        def.id = engine.next_collection()?;
        let id = def.id;
        let dir = copy_dir(&self.dir, id);
        // What an earlier attempt left that no record names.
        files::remove_dir(&dir)?;
        let _held = engine.hold_log()?;
        let mut defs = self.definitions.get();
        defs.push(def.clone());
        let effective = tokio::time::timeout(DEFINED_WITHIN, self.definitions.set(defs));
        let from = effective.await.ok().and_then(std::result::Result::ok);
        let from = from.ok_or_else(|| ReplicationError::Transport("the stream took no new definitions in".into()))?;
        crate::failpoint!("epoch.defined");
        let target = CopyTarget::create(def.clone(), &dir, progress)?;
        let expected_rows = new.table.as_ref().map_or(0, expected_rows);
        let collection = Box::new(NewCollection { def, from, expected_rows, fingerprint: new.fingerprint });
        engine.order(Command::Add(collection, target.reader())).await?;
        self.copies.insert(id, Arc::new(target));
        Ok(())
    }

    /// Forgets a collection.
    pub async fn remove(&mut self, id: CollectionId) -> std::result::Result<(), NodeError> {
        self.stop_copying().await;
        self.serving.engine.order(Command::Remove(id)).await?;
        self.tidy();
        Ok(())
    }

    /// Lets go of copy logs that were taken in and of definitions nothing has any more.
    pub fn tidy(&mut self) {
        let view = self.view();
        let arriving = |id: CollectionId| view.incoming.values().any(|arriving| arriving.def.id == id);
        let gone: Vec<_> = self.copies.keys().copied().filter(|id| !arriving(*id)).collect();
        for id in &gone {
            self.copies.remove(id);
            remove_copy_log(&copy_dir(&self.dir, *id));
        }
        let known = |id: CollectionId| arriving(id) || view.collections.values().any(|found| found.def.id == id);
        let mut defs = self.definitions.get();
        let before = defs.len();
        defs.retain(|def| known(def.id));
        if defs.len() != before {
            drop(self.definitions.set(defs));
        }
    }

    fn remove_stray_copies(&self) -> Result<()> {
        for name in files::list(&self.dir)? {
            let number = name.strip_prefix("copy-").and_then(|number| number.parse().ok());
            if number.is_some_and(|number| !self.copies.contains_key(&CollectionId(number))) {
                remove_copy_log(&self.dir.join(name));
            }
        }
        Ok(())
    }

    /// Ends a copy that is under way; what it has read stays in its log.
    async fn stop_copying(&mut self) {
        if let Some(copier) = self.copier.take() {
            copier.abort();
            // Until then it may still write to the logs that the next one goes on with.
            let _ = copier.await;
        }
    }

    /// Ends its work, after what is applied is durable.
    pub fn stop(&mut self) {
        self.copier.take().iter().for_each(JoinHandle::abort);
        tokio::task::block_in_place(|| self.serving.engine.stop());
    }
}

fn remove_copy_log(dir: &Path) {
    if let Err(error) = files::remove_dir(dir) {
        tracing::warn!(%error, "cannot remove a copy log");
    }
}

/// About how many rows a table has, with room to grow while it is copied.
fn expected_rows(table: &Table) -> u64 {
    // Without statistics: rows with an embedding are rarely narrower than 200 bytes, 40 to a page.
    let rows = if table.estimated_rows > 0 { table.estimated_rows } else { table.pages * 40 };
    rows as u64 + rows as u64 / 5 + 1000
}
