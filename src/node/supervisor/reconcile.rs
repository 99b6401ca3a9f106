//! Keeps the collections in step with the configuration and the source's tables.

use super::Supervisor;
use crate::engine::apply::Command;
use crate::engine::view::View;
use crate::model::{CollectionDef, CollectionId, CollectionSpec, Metric};
use crate::node::collections::{Answering, Arriving, Step, Wanted, plan};
use crate::node::epoch::{Epoch, NewTable};
use crate::node::{NodeError, repair};
use crate::replication::ReplicationError;
use crate::replication::progress::Progress;
use crate::source::catalog::{self, Table};
use crate::source::{SourceError, publication};
use crate::storage::state::CollectionState;
use crate::telemetry::names;
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::Client;

/// A configured collection as the source has it now.
pub(super) struct Looked {
    pub(super) wanted: Wanted,
    pub(super) table: Option<Table>,
    /// Why it cannot be followed, as an error.
    pub(super) refused: Option<SourceError>,
}

impl Supervisor {
    /// Looks at every configured collection's table, and has the publication send it. Every one whose table does not fit
    /// says so; only what concerns all is an error.
    pub(super) async fn look(&mut self, client: &Client) -> Result<Vec<Looked>, NodeError> {
        self.look_at_registered(client).await?;
        let looked = self.look_at_tables(client).await.map_err(ReplicationError::from)?;
        self.have_registered_sent(client).await.map_err(ReplicationError::from)?;
        Ok(looked)
    }

    async fn look_at_tables(&mut self, client: &Client) -> Result<Vec<Looked>, SourceError> {
        let mut looked = Vec::new();
        for (number, spec) in self.options.collections.iter().enumerate() {
            let (def, table, refused) = match catalog::resolve(client, CollectionId(number as u32), spec).await {
                Ok((def, table)) => (Ok(def), Some(table), None),
                Err(error @ SourceError::Refused { .. }) => (Err(error.to_string()), None, Some(error)),
                Err(error) => return Err(error),
            };
            let rebuild = self.rebuild.contains(spec.name());
            let name = spec.name().to_owned();
            let wanted = Wanted { name, def, fingerprint: String::new(), unpublished: false, rebuild };
            looked.push(Looked { wanted, table, refused });
        }
        let fit: Vec<_> = looked.iter().filter_map(|looked| looked.wanted.def.clone().ok()).collect();
        let name = &self.options.publication;
        if looked.is_empty() {
            publication::begin(client, name, self.options.create_publication).await?;
        }
        let ensured = publication::ensure(client, name, &fit, self.options.create_publication).await?;
        let fitting = looked.iter_mut().filter(|looked| looked.wanted.def.is_ok());
        for ((looked, def), ensured) in fitting.zip(&fit).zip(ensured) {
            match ensured {
                Ok(was_missing) => {
                    looked.wanted.unpublished = was_missing;
                    looked.wanted.fingerprint = publication::fingerprint(client, name, def).await?.to_text();
                }
                Err(error @ SourceError::Refused { .. }) => {
                    looked.wanted.def = Err(error.to_string());
                    looked.refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(looked)
    }

    /// Compares what there is with what is configured and what the source has, and does what follows.
    pub(super) async fn reconcile(&mut self) -> Result<(), NodeError> {
        let client = self.options.dsn.connect().await.map_err(ReplicationError::from)?;
        let mut looked = self.look(&client).await?;
        let making = self.making.is_some();
        let Some(epoch) = self.making.as_mut().or(self.current.as_mut()) else { return Ok(()) };
        let view = epoch.view();
        let (answering, arriving) = what_is_here(epoch, &view)?;
        self.unfit = bear_unfit(&mut looked, &answering, &self.unfit);
        let (wanted, tables): (Vec<_>, Vec<_>) = looked.into_iter().map(|looked| (looked.wanted, looked.table)).unzip();
        let refused = wanted.iter().filter(|want| answering.iter().all(|have| have.def.name != want.name));
        let refused = refused.filter_map(|want| Some((want.name.clone(), want.def.as_ref().err()?.clone())));
        refuse_collections(&self.progress, refused.collect());
        let estimate = |table: &Option<Table>| u64::try_from(table.as_ref()?.estimated_rows).ok();
        let estimates =
            wanted.iter().zip(&tables).filter_map(|(want, table)| Some((want.name.clone(), estimate(table)?)));
        self.progress.set_source_rows(estimates.collect());
        self.impossible = wanted.iter().filter(|want| want.def.is_err()).map(|want| want.name.clone()).collect();
        for step in plan(&wanted, &answering, &arriving) {
            match step {
                Step::Remove(id) => {
                    tracing::info!(collection = id.0, "forgetting a collection's data");
                    epoch.remove(id).await?;
                }
                Step::Pause(id, reason) => {
                    epoch.serving.engine.order(Command::Pause(id, reason)).await?;
                }
                Step::Copy { wanted: number, reason } => {
                    let (wanted, Some(table)) = (&wanted[number], &tables[number]) else { continue };
                    let Ok(mut def) = wanted.def.clone() else { continue };
                    catalog::learn_dimensions(&client, &mut def).await.map_err(ReplicationError::from)?;
                    tracing::info!(collection = wanted.name, reason, "copying a collection");
                    metrics::counter!(names::COPIES).increment(1);
                    let (table, fingerprint) = (Ok(table.clone()), wanted.fingerprint.clone());
                    epoch.add(NewTable { def, table, fingerprint }, &self.progress).await?;
                    self.rebuild.remove(&wanted.name);
                }
                Step::Compare(id, fingerprint) => {
                    // One at a time, and of what answers.
                    let busy = self.comparing.as_ref().is_some_and(|comparing| !comparing.is_finished());
                    if busy || making {
                        continue;
                    }
                    let Some(found) = view.collections.values().find(|found| found.def.id == id) else { continue };
                    tracing::info!(
                        collection = found.def.name,
                        "comparing with the source: partitions or publication changed"
                    );
                    self.comparing = Some(tokio::spawn(repair::compare(
                        self.frontier.clone(),
                        epoch.serving.engine.clone(),
                        self.options.dsn.clone(),
                        self.pool.clone(),
                        (id, found.def.name.clone()),
                        fingerprint,
                    )));
                }
            }
        }
        // What nobody can copy is not asked for for ever, and what is being copied not again.
        if view.incoming.is_empty() && self.rebuild.is_empty() {
            self.progress.set_copy_trouble(None);
        }
        let possible = |name: &String| wanted.iter().any(|want| want.name == *name && want.def.is_ok());
        let under_way = |name: &String| arriving.iter().any(|have| have.def.name == *name);
        self.rebuild.retain(|name| possible(name) && !under_way(name));
        Ok(())
    }

    /// The configured collections were read again. What can be seen to be wrong at once is not taken over: it would stop a
    /// collection that follows.
    pub(super) fn take_over(&mut self, specs: Vec<CollectionSpec>) -> Result<(), NodeError> {
        let unfit = self.newest().and_then(|epoch| {
            let view = epoch.view();
            specs.iter().find_map(|spec| unfit_metric(spec, &view.collections.get(spec.name())?.def))
        });
        if let Some(reason) = unfit {
            tracing::error!(reason, "the configuration's collections are not taken over; those of before go on");
            return Ok(());
        }
        for gone in self.configured.iter().filter(|old| specs.iter().all(|new| new.table != old.table)) {
            let (publication, table) = (&self.options.publication, &gone.table);
            tracing::info!(table, publication, "no collection has this table any more; it stays in the publication");
        }
        self.configured = specs;
        self.reconcile_now = true;
        self.adopt()
    }
}

/// What an epoch has of collections: those that answer, and those on their way.
fn what_is_here(epoch: &Epoch, view: &View) -> Result<(Vec<Answering>, Vec<Arriving>), NodeError> {
    let mut answering = Vec::new();
    for found in view.collections.values().filter(|found| found.state != CollectionState::Copying) {
        let fingerprint = epoch.serving.engine.record(found.def.id)?.map(|record| record.fingerprint);
        let paused = matches!(found.state, CollectionState::Paused { .. });
        let def = CollectionDef::clone(&found.def);
        answering.push(Answering { def, paused, fingerprint: fingerprint.unwrap_or_default() });
    }
    let arriving = view.incoming.values().map(|arriving| Arriving {
        def: CollectionDef::clone(&arriving.def),
        failed: arriving.failed.is_some() || epoch.is_spoiled(arriving.def.id),
    });
    Ok((answering, arriving.collect()))
}

/// Takes a table that does not fit, where its collection follows, for one that does until the next look. The collections
/// of which that is so; those of the look `before` are borne no longer.
fn bear_unfit(looked: &mut [Looked], answering: &[Answering], before: &BTreeSet<String>) -> BTreeSet<String> {
    let mut unfit = BTreeSet::new();
    for Looked { wanted, .. } in looked {
        let follows = answering.iter().find(|have| have.def.name == wanted.name && !have.paused);
        let (Err(reason), Some(follows)) = (&wanted.def, follows) else { continue };
        unfit.insert(wanted.name.clone());
        if !before.contains(&wanted.name) {
            let collection = &wanted.name;
            tracing::warn!(collection, reason, "a collection does not fit its table; if it stays so, it is paused");
            (wanted.def, wanted.fingerprint) = (Ok(follows.def.clone()), follows.fingerprint.clone());
        }
    }
    unfit
}

/// Shows and logs which configured collections nothing answers for.
pub(super) fn refuse_collections(progress: &Progress, refusals: BTreeMap<String, String>) {
    let before = progress.refused();
    for (collection, reason) in refusals.iter().filter(|(name, reason)| before.get(*name) != Some(reason)) {
        tracing::warn!(collection, reason, "a collection cannot be copied; looking at its table again and again");
    }
    progress.set_refused(refusals);
}

/// What is wrong with a configured metric, where the type of the column is known.
pub(super) fn unfit_metric(spec: &CollectionSpec, def: &CollectionDef) -> Option<String> {
    spec.vectors.iter().find_map(|wanted| {
        let column = def.vectors.iter().find(|column| column.name == wanted.column)?;
        let fitting = Metric::of_type(column.kind);
        let names = || fitting.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", ");
        (!fitting.contains(&wanted.metric)).then(|| {
            let (name, kind) = (&def.name, column.kind);
            format!("collection {name}: {} does not compare {kind}; set metric to one of {}", wanted.metric, names())
        })
    })
}

/// Does a collection of it not follow its table?
pub(super) fn is_troubled(epoch: &Epoch) -> bool {
    let view = epoch.view();
    let paused = view.collections.values().any(|found| matches!(found.state, CollectionState::Paused { .. }));
    paused || view.incoming.values().any(|arriving| arriving.failed.is_some())
}
