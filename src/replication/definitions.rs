//! The collections the stream feeds: changed while it flows, with the place in the change log from which on they hold.

use crate::model::CollectionDef;
use crate::replication::assemble::Assembler;
use crate::storage::changelog::LogPosition;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::oneshot;

/// Transactions remembered that changed what is registered.
const REMEMBERED: usize = 1_000;

/// Shared by whoever decides what is followed and by the stream.
#[derive(Default)]
pub struct Definitions {
    inner: Mutex<Inner>,
    /// Counts the changes, from 1, so that the stream sees one without a lock.
    generation: AtomicU64,
    /// Transactions that changed what is registered, until somebody looks.
    registered: Mutex<BTreeSet<u32>>,
}

#[derive(Default)]
struct Inner {
    defs: Vec<CollectionDef>,
    waiting: Vec<oneshot::Sender<LogPosition>>,
}

impl Definitions {
    /// The collections to begin with.
    pub fn new(defs: Vec<CollectionDef>) -> Definitions {
        let inner = Mutex::new(Inner { defs, waiting: Vec::new() });
        Definitions { inner, generation: AtomicU64::new(1), registered: Mutex::default() }
    }

    /// The collections now.
    pub fn get(&self) -> Vec<CollectionDef> {
        self.inner.lock().defs.clone()
    }

    /// Replaces the collections. What comes back resolves, between two transactions, to the place in the change log from
    /// which on their changes are in it; not before the stream flows.
    pub fn set(&self, defs: Vec<CollectionDef>) -> oneshot::Receiver<LogPosition> {
        let (effective, waits) = oneshot::channel();
        let mut inner = self.inner.lock();
        inner.defs = defs;
        inner.waiting.push(effective);
        self.generation.fetch_add(1, Ordering::Release);
        waits
    }

    /// A transaction of this number, which is committed, changed what is registered.
    pub(crate) fn note_registered(&self, xid: u32) {
        let mut registered = self.registered.lock();
        // Whoever sees the newest sees nearly always all; that it is many is no reason to keep them.
        if registered.len() >= REMEMBERED {
            registered.pop_first();
        }
        registered.insert(xid);
    }

    /// The transactions since the last call that changed what is registered.
    pub fn take_registered(&self) -> BTreeSet<u32> {
        std::mem::take(&mut self.registered.lock())
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// From here on the assembler knows them; everything before `position` is in the log. Returns their generation.
    pub(crate) fn take_effect(&self, assembler: &mut Assembler, position: LogPosition) -> u64 {
        let mut inner = self.inner.lock();
        assembler.define(&inner.defs);
        // One that no longer waits has found another way.
        for waiting in inner.waiting.drain(..) {
            let _ = waiting.send(position);
        }
        self.generation()
    }
}
