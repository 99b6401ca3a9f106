//! The life of epochs: opens what is there, makes one with its slot and copies, promotes it when it is whole, and removes
//! what was replaced or broke off.

use super::reconcile::{Looked, refuse_collections};
use super::{FREE, Supervisor};
use crate::model::{CollectionDef, CollectionId, CollectionSpec};
use crate::node::NodeError;
use crate::node::epoch::{Epoch, NewTable};
use crate::replication::ReplicationError;
use crate::replication::copy::{self, Exported};
use crate::replication::progress::Retention;
use crate::replication::transport::{PgWalSource, SlotKind, SystemFacts};
use crate::source::{SourceError, catalog, slots};
use crate::storage::data_dir::{EpochId, Pending};
use crate::storage::ownership;
use crate::storage::snapshot::{self, Retained};
use crate::storage::state::Identity;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio_postgres::Client;

impl Supervisor {
    /// Opens what is there, so that it answers before the source does. Damage means copying again, not failing.
    pub(super) fn open(&mut self) -> Result<(), NodeError> {
        let current = self.data.current()?.map(|current| current.epoch);
        // Nobody knows yet whether the source can be followed from here.
        self.progress.set_stale(Some("not compared with the source since the start".into()));
        self.recall_registered()?;
        if let Some(id) = current {
            match self.open_epoch(id) {
                Ok(epoch) => {
                    epoch.serving.kept.store(true, Ordering::Relaxed);
                    self.frontier.serve(Some(epoch.serving.clone()));
                    self.recall_retained(&epoch.identity.slot)?;
                    self.current = Some(epoch);
                }
                Err(NodeError::Storage(error)) if error.is_damage() => {
                    tracing::error!(%error, epoch = id.0, "the data is damaged; everything is copied again");
                }
                Err(other) => return Err(other),
            }
        }
        let Some(pending) = self.data.pending()?.filter(|pending| Some(pending.epoch) != current) else {
            return Ok(());
        };
        match self.open_epoch(pending.epoch) {
            Ok(epoch) => {
                if self.current.is_none() {
                    self.frontier.serve(Some(epoch.serving.clone()));
                }
                self.making = Some(epoch);
            }
            // Its slot and files go at the next connection. Mostly it had not begun.
            Err(error) => {
                tracing::debug!(%error, "an unfinished epoch");
                tracing::info!(epoch = pending.epoch.0, "an unfinished copy cannot be continued; it is removed");
            }
        }
        Ok(())
    }

    /// What an earlier run promised to whoever restores a snapshot.
    fn recall_retained(&self, slot: &str) -> Result<(), NodeError> {
        let retained = snapshot::retained(self.data.root()).unwrap_or_else(|error| {
            tracing::warn!(%error, "it is not known until when the slot is kept for a snapshot; it goes on");
            None
        });
        match retained.filter(|retained| retained.slot == slot) {
            Some(Retained { slot, lsn, until }) => {
                let at = Some((lsn, UNIX_EPOCH + Duration::from_secs(until)));
                self.progress.retain(Some(Retention { slot, at }));
                Ok(())
            }
            None => self.retain_nothing(),
        }
    }

    /// The slot of the last snapshot is given up: nothing is kept for it any more.
    fn retain_nothing(&self) -> Result<(), NodeError> {
        self.progress.retain(None);
        Ok(snapshot::set_retained(self.data.root(), None)?)
    }

    fn open_epoch(&self, id: EpochId) -> Result<Epoch, NodeError> {
        let epoch = Epoch::open(&self.data, id, self.options.engine.clone(), &self.progress)?;
        tracing::info!(epoch = id.0, at = %epoch.checkpoint().durable, "opened the data directory");
        Ok(epoch)
    }

    /// Makes a slot and an epoch on it, and starts the copies. `again`: beside what there is, or was.
    pub(super) async fn make_epoch(
        &mut self,
        client: &Client,
        mut wal: PgWalSource,
        system: &SystemFacts,
        again: bool,
    ) -> Result<(), NodeError> {
        let (mut tables, mut refusals) = (Vec::new(), BTreeMap::new());
        for Looked { wanted, table, refused } in self.look(client).await? {
            let id = CollectionId(tables.len() as u32);
            let stored = || {
                let view = self.current.as_ref()?.view();
                view.collections.get(&wanted.name).map(|found| CollectionDef::clone(&found.def))
            };
            let (mut def, table) = match (wanted.def, table, refused) {
                (Ok(mut def), Some(table), None) => {
                    catalog::learn_dimensions(client, &mut def).await.map_err(ReplicationError::from)?;
                    (def, Ok(table))
                }
                // At the first start somebody is there who can do something about it.
                (_, _, Some(error)) if !again && self.is_configured(&wanted.name) => {
                    return Err(ReplicationError::from(error).into());
                }
                (def, ..) => match stored() {
                    Some(stored) => (stored, Err(def.err().unwrap_or_default())),
                    None => {
                        refusals.insert(wanted.name, def.err().unwrap_or_default());
                        continue;
                    }
                },
            };
            def.id = id;
            tables.push(NewTable { def, table, fingerprint: wanted.fingerprint });
        }
        refuse_collections(&self.progress, refusals);
        let before = self.data.current()?;
        let id = before.as_ref().map_or(EpochId(1), |current| current.epoch.next());
        let slot = match again {
            false => self.options.slot.clone(),
            true => self.free_slot(client, id).await?,
        };
        let old_slot = before.map(|current| current.slot);
        self.retain_nothing()?;
        crate::failpoint!("node.copy_decided");
        let dir = self.data.prepare_epoch(id)?;
        self.data.set_pending(Some(&Pending {
            epoch: id,
            slot: slot.clone(),
            old_slot: old_slot.filter(|old| *old != slot),
        }))?;
        ownership::remember_slot(self.data.root(), &slot)?;
        let version = catalog::server_version(client).await.map_err(ReplicationError::from)?;
        let database = catalog::database(client).await.map_err(ReplicationError::from)?;
        tracing::info!(slot, "making a replication slot; this waits for open transactions");
        let failover = self.options.failover && !catalog::in_recovery(client).await.map_err(ReplicationError::from)?;
        let kind = SlotKind::Kept { failover };
        let new = wal.create_slot(&slot, kind, version, self.options.slot_lock_timeout).await?;
        self.progress.begin_slot(&slot, new.consistent_point);
        let identity = Identity {
            system_id: system.system_id.clone(),
            timeline: system.timeline,
            database,
            slot,
            consistent_point: new.consistent_point,
        };
        tracing::info!(at = %new.consistent_point, "a new epoch begins");
        let mut epoch = Epoch::create(&dir, id, identity, tables, self.options.engine.clone(), &self.progress)?;
        if self.current.is_none() {
            // Nothing else answers: let this one say how far it is.
            self.frontier.serve(Some(epoch.serving.clone()));
        }
        let exported = Exported { held_by: wal, slot: new };
        epoch.copy(&self.options.dsn, &self.copy_options(), Some(exported), &self.progress);
        self.making = Some(epoch);
        crate::failpoint!("node.copy_started");
        Ok(())
    }

    /// A name for the slot of a later copy that nobody has: slots are the whole cluster's.
    async fn free_slot(&self, client: &Client, epoch: EpochId) -> Result<String, NodeError> {
        let mut number = epoch.0;
        loop {
            let name = format!("{}_{number}", self.options.slot);
            if catalog::slot(client, &name).await.map_err(ReplicationError::from)?.is_none() {
                return Ok(name);
            }
            number += 1;
        }
    }

    fn copy_options(&self) -> copy::Options {
        copy::Options {
            connections: self.options.copy_connections,
            lock_timeout: self.options.slot_lock_timeout,
            slot: self.options.slot.clone(),
        }
    }

    pub(super) async fn tend_copies(&mut self) -> Result<(), NodeError> {
        let (dsn, options) = (self.options.dsn.clone(), self.copy_options());
        let Some(epoch) = self.making.as_mut().or(self.current.as_mut()) else { return Ok(()) };
        epoch.tidy();
        match epoch.copy_ended().await {
            Some(Ok(())) => {
                self.copy_backoff.reset();
                self.progress.set_copy_trouble(None);
            }
            // Whatever is wrong with one table, the others follow theirs.
            Some(Err(NodeError::Replication(error))) if !matches!(error, ReplicationError::Storage(_)) => {
                let pause = self.copy_backoff.next(error.policy());
                tracing::warn!(%error, ?pause, "a copy ended; looking at its table again");
                self.progress.set_copy_trouble(Some(error.to_string()));
                self.copy_from = Instant::now() + pause;
                self.reconcile_now = true;
                return Ok(());
            }
            Some(Err(other)) => return Err(other),
            None => {}
        }
        if Instant::now() >= self.copy_from && !self.reconcile_now {
            epoch.copy(&dsn, &options, None, &self.progress);
        }
        Ok(())
    }

    pub(super) fn check_engines(&mut self) -> Result<(), NodeError> {
        let failure = |epoch: &Epoch| epoch.serving.engine.failure().borrow().clone();
        if let Some(reason) = self.current.as_ref().and_then(failure) {
            return Err(NodeError::Engine(reason));
        }
        let Some(reason) = self.making.as_ref().and_then(failure) else { return Ok(()) };
        if self.current.is_none() {
            return Err(NodeError::Engine(reason));
        }
        // What answers is another engine: it goes on, and the copy is tried again.
        self.discard_making();
        Err(ReplicationError::Transport(format!("the engine of the new copy failed: {reason}")).into())
    }

    /// Has the new epoch all that answers now, as far as it can be had?
    pub(super) fn making_is_whole(&self) -> bool {
        let Some(making) = self.making.as_ref().filter(|making| making.is_live()) else { return false };
        let (new, old) = (making.view(), self.current.as_ref().map(Epoch::view));
        let answers = |name: &str| old.as_ref().is_none_or(|old| old.collections.contains_key(name));
        let mut wanted = self.options.collections.iter().map(CollectionSpec::name).filter(|name| answers(name));
        wanted.all(|name| new.collections.contains_key(name) || self.impossible.contains(name))
    }

    /// The new epoch is whole: from now on it answers.
    pub(super) async fn promote(&mut self) -> Result<(), NodeError> {
        let Some(mut epoch) = self.making.take() else { return Ok(()) };
        self.frontier.serve(Some(epoch.serving.clone()));
        if let Some(mut old) = self.current.take() {
            old.stop();
        }
        crate::failpoint!("node.old_stopped");
        // The old epoch's files go with its slot: nothing works on them any more.
        self.data.make_current(epoch.id, &epoch.identity.slot)?;
        epoch.serving.kept.store(true, Ordering::Relaxed);
        epoch.tidy();
        self.progress.forget();
        crate::failpoint!("node.promoted");
        self.unproven = None;
        self.progress.set_stale(None);
        tracing::info!(epoch = epoch.id.0, slot = epoch.identity.slot, "the copy is whole and answers");
        self.current = Some(epoch);
        // What cannot be cleared now stays in PENDING and is looked at again at the next connection.
        let cleared = match self.options.dsn.connect().await {
            Ok(client) => self.clear_pending(&client).await,
            Err(error) => Err(ReplicationError::from(error).into()),
        };
        if let Err(error) = cleared {
            tracing::warn!(%error, "the replaced slot cannot be dropped yet");
        }
        Ok(())
    }

    /// The new epoch cannot be continued: its engine ends, its slot and files go at the next connection.
    pub(super) fn discard_making(&mut self) {
        if let Some(mut epoch) = self.making.take() {
            if self.current.is_none() {
                self.frontier.serve(None);
            }
            epoch.stop();
        }
    }

    /// Removes what an unfinished or a finished copy left behind: its slot or the one it replaced, its files or theirs.
    pub(super) async fn clear_pending(&mut self, client: &Client) -> Result<(), NodeError> {
        let current = self.data.current()?.map(|current| current.epoch);
        let Some(pending) = self.data.pending()? else {
            if let (Some(current), true) = (current, self.current.is_some()) {
                self.data.remove_other_epochs(current)?;
            }
            return Ok(());
        };
        if current != Some(pending.epoch) {
            drop_slot(client, &pending.slot, &self.instance).await?;
            self.data.prepare_epoch(pending.epoch)?;
            return Ok(self.data.set_pending(None)?);
        }
        self.data.remove_other_epochs(pending.epoch)?;
        let Some(old) = &pending.old_slot else { return Ok(self.data.set_pending(None)?) };
        match drop_slot(client, old, &self.instance).await {
            Ok(()) => self.data.set_pending(None)?,
            // It holds WAL on the source until it goes, but following must not wait for that.
            Err(error) => tracing::warn!(slot = old, %error, "the replaced slot cannot be dropped yet"),
        }
        Ok(())
    }
}

/// Drops a slot of ours if it is there. One that is still in use is tried again later.
async fn drop_slot(client: &Client, name: &str, instance: &str) -> Result<(), NodeError> {
    slots::freed(client, name, Some(instance), FREE).await.map_err(ReplicationError::from)?;
    let found = catalog::slot(client, name).await.map_err(ReplicationError::from)?;
    if found.is_some_and(|slot| slot.plugin.as_deref() == Some("pgoutput")) {
        let dropped = client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await;
        dropped.map_err(|error| ReplicationError::from(SourceError::from(error)))?;
        crate::failpoint!("node.slot_dropped");
        tracing::info!(slot = name, "dropped a slot of ours that nothing uses any more");
    }
    Ok(())
}
