//! Collections registered by SQL: looks at them when the stream says that they changed, and at every comparison with the
//! source; what was taken last is written down, so that it is known before the source answers.

use super::Supervisor;
use super::reconcile::unfit_metric;
use crate::model::CollectionSpec;
use crate::model::registration::{Outcomes, Registration};
use crate::node::NodeError;
use crate::node::registrations::{beside, merge};
use crate::source::SourceError;
use crate::source::registrations::{Found, ensure_sent, read};
use std::collections::BTreeSet;
use tokio_postgres::Client;

/// What is known of what is registered.
#[derive(Default)]
pub(super) struct Registered {
    /// As taken last; on disk.
    taken: Vec<CollectionSpec>,
    /// As read last; none: not since the start.
    rows: Option<Vec<Registration>>,
    /// Why they cannot be read, if so.
    hidden: Option<String>,
    /// Why the stream does not tell of them, if so.
    unsent: Option<String>,
    /// Transactions that changed them and that no reading saw yet.
    unseen: BTreeSet<u32>,
}

impl Registered {
    /// Is there something that the stream told of and that nobody looked at?
    pub(super) fn is_due(&self) -> bool {
        !self.unseen.is_empty()
    }

    /// Must somebody look often, because the stream does not tell?
    pub(super) fn is_unsent(&self) -> bool {
        self.unsent.is_some()
    }
}

impl Supervisor {
    /// What was taken when the service last looked.
    pub(super) fn recall_registered(&mut self) -> Result<(), NodeError> {
        match self.data.registered() {
            Ok(taken) => self.registered.taken = taken.unwrap_or_default(),
            // It is read again from the source.
            Err(error) if error.is_damage() => tracing::warn!(%error, "what is registered by SQL is not known yet"),
            Err(other) => return Err(other.into()),
        }
        self.adopt()
    }

    /// The stream may have told of changes.
    pub(super) fn hear_registered(&mut self) {
        let heard = self.newest().map(|epoch| epoch.definitions.take_registered());
        self.registered.unseen.extend(heard.unwrap_or_default());
    }

    /// Looks at the table.
    pub(super) async fn look_at_registered(&mut self, client: &Client) -> Result<(), NodeError> {
        if !self.options.registrations {
            self.registered.unseen.clear();
            return Ok(());
        }
        self.registered.hidden = None;
        match read(client).await.map_err(crate::replication::ReplicationError::from)? {
            Found::Rows { rows, snapshot } => {
                self.registered.rows = Some(rows);
                self.registered.unseen.retain(|xid| !snapshot.sees(*xid));
            }
            Found::Nothing => {
                self.registered.rows = None;
                self.registered.unseen.clear();
                let left = !self.registered.taken.is_empty();
                let why = "the table ruvector.registrations is gone: what was registered goes on as it was; install the SQL pack again to change it, or set source.registrations = false to end it";
                self.registered.hidden = left.then(|| why.to_owned());
            }
            Found::Hidden(why) => {
                self.registered.unseen.clear();
                self.registered.hidden = Some(why);
            }
        }
        self.adopt()
    }

    /// Has the publication send the table, where it is there.
    pub(super) async fn have_registered_sent(&mut self, client: &Client) -> Result<(), SourceError> {
        self.registered.unsent = match self.registered.rows {
            Some(_) if self.options.registrations => {
                ensure_sent(client, &self.options.publication, self.options.create_publication).await?
            }
            _ => None,
        };
        self.tell_registered();
        Ok(())
    }

    /// Joins what is registered to what is configured.
    pub(super) fn adopt(&mut self) -> Result<(), NodeError> {
        let before = &self.registered.taken;
        let (taken, outcomes) = match &self.registered.rows {
            _ if !self.options.registrations => (Vec::new(), Vec::new()),
            None => (beside(&self.configured, before), Vec::new()),
            Some(rows) => {
                let view = self.newest().map(super::Epoch::view);
                let unfit =
                    |spec: &CollectionSpec| unfit_metric(spec, &view.as_ref()?.collections.get(spec.name())?.def);
                let merged = merge(&self.configured, rows, before, &self.options.slot, &unfit);
                (merged.taken, merged.outcomes)
            }
        };
        let known = self.progress.registrations();
        for refused in outcomes.iter().filter(|outcome| outcome.refused.is_some() && !known.rows.contains(outcome)) {
            let (collection, reason) = (&refused.name, refused.refused.as_deref());
            tracing::warn!(collection, reason, "a collection that is registered by SQL is not taken");
        }
        self.progress.set_registrations(Outcomes { rows: outcomes, trouble: known.trouble.clone() });
        self.tell_registered();
        if taken != self.registered.taken {
            self.data.set_registered(&taken)?;
            let names: Vec<_> = taken.iter().map(CollectionSpec::name).collect();
            tracing::info!(collections = names.join(", "), "the collections registered by SQL changed");
        }
        self.registered.taken = taken;
        let all: Vec<_> = self.configured.iter().chain(&self.registered.taken).cloned().collect();
        if all != self.options.collections {
            self.options.engine.tiers = CollectionSpec::tiers(&all);
            for epoch in self.making.iter().chain(&self.current) {
                epoch.serving.engine.set_tiers(self.options.engine.tiers.clone());
            }
            self.followed.send_replace(all.clone());
            self.options.collections = all;
        }
        Ok(())
    }

    /// Is it in the configuration file?
    pub(super) fn is_configured(&self, name: &str) -> bool {
        self.configured.iter().any(|spec| spec.name() == name)
    }

    fn tell_registered(&self) {
        let trouble = self.registered.hidden.clone().or_else(|| self.registered.unsent.clone());
        let known = self.progress.registrations();
        if trouble != known.trouble {
            if let Some(reason) = &trouble {
                tracing::warn!(reason, "collections registered by SQL");
            }
            self.progress.set_registrations(Outcomes { rows: known.rows.clone(), trouble });
        }
    }
}
