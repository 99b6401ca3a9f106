//! Messages -> transactions: only whole committed transactions leave; each change gets its ordinal.

use crate::model::{
    Cell, Change, CollectionDef, CollectionId, ColumnType, CommitLsn, LogRecord, Lsn, Op, Relation, RowImage, RowKey,
    TransactionHead, pgtype, registration,
};
use crate::replication::pgoutput::{Message, OldTuple, Tuple, TupleCell};
use crate::telemetry::traces::{self, Stage};
use std::collections::HashMap;
use std::time::SystemTime;

/// Changes written to the log in one record. The log is where a large transaction waits, not our memory.
const CHUNK_CHANGES: usize = 512;
const CHUNK_BYTES: usize = 1 << 20;

/// What the stream must not do. Reconnecting gives it a new chance; the position is safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A message that cannot come here.
    #[error("{0} is out of place in the stream")]
    OutOfPlace(&'static str),
    /// A row of a table that was not described.
    #[error("a row of relation {0}, which the stream did not describe")]
    UnknownRelation(u32),
    /// A row that does not fit its description.
    #[error("a row of relation {relation} with {found} columns instead of {expected}")]
    ColumnCount {
        /// OID.
        relation: u32,
        /// In the row.
        found: usize,
        /// In the description.
        expected: usize,
    },
    /// A row without a readable key: nothing of ours can be addressed by it.
    #[error("a row of relation {relation} whose key cannot be read: {reason}")]
    Key {
        /// OID.
        relation: u32,
        /// Why.
        reason: String,
    },
}

type Result<T> = std::result::Result<T, AssembleError>;

/// Where a collection's columns are in a relation's rows, with the type to read them as.
#[derive(Debug, Clone)]
struct Mapping {
    collection: CollectionId,
    columns: usize,
    key: Vec<(usize, ColumnType)>,
    vectors: Vec<(usize, ColumnType)>,
    filters: Vec<(usize, ColumnType)>,
}

/// What a relation's rows mean to one collection.
#[derive(Debug, Clone)]
enum Feed {
    /// They are its rows.
    Rows(Mapping),
    /// They no longer fit it: every transaction with such rows says so, and stops it.
    Drifted(CollectionId, String),
}

/// A relation as the stream described it last, and the collections it feeds.
#[derive(Debug, Clone)]
struct Known {
    relation: Relation,
    feeds: Vec<Feed>,
    /// Its rows say which collections there are to be.
    registers: bool,
}

/// The transaction that is being received.
struct Open {
    commit: CommitLsn,
    xid: u32,
    /// It changed what is registered.
    registers: bool,
    /// It is in the log already; the source sends it again.
    replayed: bool,
    ordinal: u32,
    started: bool,
    pending: Vec<Change>,
    pending_bytes: usize,
    /// Collections that were stopped in it.
    drifted: Vec<CollectionId>,
    /// When its first message came, where traces are sent.
    began: Option<SystemTime>,
}

impl Open {
    fn add(&mut self, collection: CollectionId, op: Op) {
        self.ordinal += 1;
        self.pending_bytes += size(&op);
        self.pending.push(Change { collection, ordinal: self.ordinal, op });
    }

    /// Stops a collection, once.
    fn drift(&mut self, collection: CollectionId, reason: &str) {
        if !self.drifted.contains(&collection) {
            self.drifted.push(collection);
            self.add(collection, Op::Drift { reason: reason.to_owned() });
        }
    }
}

/// Turns the stream of one connection into log records.
pub struct Assembler {
    collections: Vec<CollectionDef>,
    types: HashMap<u32, (String, String)>,
    relations: HashMap<u32, Known>,
    open: Option<Open>,
    /// The last transaction that changed what is registered.
    registered: Option<u32>,
    /// Where this connection started: the source sends earlier transactions again.
    start: Lsn,
    /// Everything up to here is in the log or on its way there.
    reached: Lsn,
    commit_time: i64,
}

impl Assembler {
    /// For a connection that streams from `durable`.
    pub fn new(collections: &[CollectionDef], durable: Lsn) -> Assembler {
        Assembler {
            collections: collections.to_vec(),
            types: HashMap::new(),
            relations: HashMap::new(),
            open: None,
            registered: None,
            start: durable,
            reached: durable,
            commit_time: 0,
        }
    }

    /// From the next transaction on these are the collections. Not inside a transaction.
    pub fn define(&mut self, collections: &[CollectionDef]) {
        self.collections = collections.to_vec();
        for known in self.relations.values_mut() {
            known.feeds = feeds(&self.collections, &known.relation, &self.types);
        }
    }

    /// Is a transaction half received? Then a keepalive's position says nothing.
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// The number of the last transaction that changed what is registered, once.
    pub fn take_registered(&mut self) -> Option<u32> {
        self.registered.take()
    }

    /// Notes that everything up to `position` was received; false when that is not new.
    pub fn moves_to(&mut self, position: Lsn) -> bool {
        let new = position > self.reached;
        self.reached = self.reached.max(position);
        new
    }

    /// Takes a message; `emit` gets the log records that follow from it.
    pub fn push<E: From<AssembleError>>(
        &mut self,
        message: Message<'_>,
        emit: &mut dyn FnMut(LogRecord) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        match message {
            Message::Begin { final_lsn, commit_time, xid } => Ok(self.begin(final_lsn, commit_time, xid)?),
            Message::Commit { end, .. } => self.commit(end, emit),
            Message::Type { oid, schema, name, .. } => {
                self.types.insert(oid, (schema.to_owned(), name.to_owned()));
                Ok(())
            }
            Message::Relation { relation, .. } => {
                self.describe(relation);
                self.emit_full_chunk(emit)
            }
            Message::Insert { relation, new, .. } => self.change(relation, emit, &|mapping| {
                let row = image(relation, mapping, &new, None)?;
                Ok(Op::Upsert { old_key: None, row })
            }),
            Message::Update { relation, old, new, .. } => self.change(relation, emit, &|mapping| {
                let row = image(relation, mapping, &new, old.as_ref())?;
                let old_key = old.as_ref().map(|old| key(relation, mapping, tuple(old), None)).transpose()?;
                Ok(Op::Upsert { old_key: old_key.filter(|old| *old != row.key), row })
            }),
            Message::Delete { relation, old, .. } => self
                .change(relation, emit, &|mapping| Ok(Op::Delete { key: key(relation, mapping, tuple(&old), None)? })),
            Message::Truncate { relations, .. } => {
                relations.into_iter().try_for_each(|relation| self.change(relation, emit, &|_| Ok(Op::Truncate)))
            }
            Message::Origin { .. } | Message::Message { .. } => Ok(()),
            // Newer servers may send an abort to clients that never asked for streaming; it concerns nothing we have.
            Message::StreamAbort { .. } => Ok(()),
            _ => Err(AssembleError::OutOfPlace("a streamed or prepared transaction").into()),
        }
    }

    fn begin(&mut self, commit: CommitLsn, commit_time: i64, xid: u32) -> Result<()> {
        if self.open.is_some() {
            return Err(AssembleError::OutOfPlace("BEGIN inside a transaction"));
        }
        self.commit_time = commit_time;
        let replayed = commit.is_covered_by(self.start);
        self.open = Some(Open {
            commit,
            xid,
            registers: false,
            replayed,
            ordinal: 0,
            started: false,
            pending: Vec::new(),
            pending_bytes: 0,
            drifted: Vec::new(),
            began: traces::moment(),
        });
        Ok(())
    }

    fn commit<E: From<AssembleError>>(
        &mut self,
        end: Lsn,
        emit: &mut dyn FnMut(LogRecord) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.emit_chunk(emit)?;
        let open = self.open.take().ok_or(AssembleError::OutOfPlace("COMMIT without BEGIN"))?;
        if open.replayed {
            return Ok(());
        }
        if open.registers {
            self.registered = Some(open.xid);
        }
        self.reached = self.reached.max(end);
        // Transactions that touch nothing of ours are progress and no more.
        crate::failpoint!("assemble.before_commit");
        emit(if open.started { LogRecord::Commit { end } } else { LogRecord::Progress { upto: end } })?;
        crate::failpoint!("assemble.commit_emitted");
        if open.started {
            traces::transaction(Stage::Decode, open.commit.0, open.began, open.ordinal as usize);
        }
        Ok(())
    }

    /// Learns how a relation's rows look from now on.
    fn describe(&mut self, relation: Relation) {
        let feeds = feeds(&self.collections, &relation, &self.types);
        if let Some(open) = self.open.as_mut().filter(|open| !open.replayed) {
            for feed in &feeds {
                if let Feed::Drifted(collection, reason) = feed {
                    open.drift(*collection, reason);
                }
            }
        }
        let registers = (relation.schema.as_str(), relation.name.as_str()) == registration::TABLE;
        self.relations.insert(relation.oid, Known { relation, feeds, registers });
    }

    fn change<E: From<AssembleError>>(
        &mut self,
        relation: u32,
        emit: &mut dyn FnMut(LogRecord) -> std::result::Result<(), E>,
        op: &dyn Fn(&Mapping) -> Result<Op>,
    ) -> std::result::Result<(), E> {
        let open = self.open.as_mut().ok_or(AssembleError::OutOfPlace("a change outside a transaction"))?;
        if open.replayed {
            return Ok(());
        }
        let known = self.relations.get(&relation).ok_or(AssembleError::UnknownRelation(relation))?;
        open.registers |= known.registers;
        for feed in &known.feeds {
            match feed {
                Feed::Drifted(collection, reason) => open.drift(*collection, reason),
                Feed::Rows(mapping) => match op(mapping) {
                    // Nothing of that collection can be followed any more; the others can.
                    Err(AssembleError::Key { reason, .. }) => {
                        open.drift(mapping.collection, &format!("a row's key cannot be read: {reason}"));
                    }
                    made => open.add(mapping.collection, made?),
                },
            }
        }
        self.emit_full_chunk(emit)
    }

    fn emit_full_chunk<E>(
        &mut self,
        emit: &mut dyn FnMut(LogRecord) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let full = self
            .open
            .as_ref()
            .is_some_and(|open| open.pending.len() >= CHUNK_CHANGES || open.pending_bytes >= CHUNK_BYTES);
        if full { self.emit_chunk(emit) } else { Ok(()) }
    }

    fn emit_chunk<E>(
        &mut self,
        emit: &mut dyn FnMut(LogRecord) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let Some(open) = self.open.as_mut().filter(|open| !open.pending.is_empty()) else { return Ok(()) };
        if !std::mem::replace(&mut open.started, true) {
            emit(LogRecord::Begin(TransactionHead { commit: open.commit, commit_time: self.commit_time }))?;
            crate::failpoint!("assemble.begun");
        }
        open.pending_bytes = 0;
        crate::failpoint!("assemble.before_chunk");
        emit(LogRecord::Changes(std::mem::take(&mut open.pending)))?;
        crate::failpoint!("assemble.chunk_emitted");
        Ok(())
    }
}

fn size(op: &Op) -> usize {
    match op {
        Op::Upsert { row, .. } => 64 + row.vectors.iter().chain(&row.filters).map(cell_size).sum::<usize>(),
        _ => 64,
    }
}

fn cell_size(cell: &Cell) -> usize {
    match cell {
        Cell::Value(crate::model::Value::Vector(vector)) => vector.len() * 4,
        Cell::Value(crate::model::Value::Sparse(vector)) => vector.indices().len() * 8,
        Cell::Value(crate::model::Value::Text(text)) => text.len(),
        _ => 8,
    }
}

/// What a relation's rows mean to the collections of that table.
fn feeds(collections: &[CollectionDef], relation: &Relation, types: &HashMap<u32, (String, String)>) -> Vec<Feed> {
    let of_table = collections.iter().filter(|def| def.oid == relation.oid);
    let feed = |def: &CollectionDef| match map(def, relation, types) {
        Ok(mapping) => Feed::Rows(mapping),
        Err(reason) => Feed::Drifted(def.id, reason),
    };
    of_table.map(feed).collect()
}

fn map(
    def: &CollectionDef,
    relation: &Relation,
    types: &HashMap<u32, (String, String)>,
) -> std::result::Result<Mapping, String> {
    let find = |name: &str, expected: ColumnType| {
        let at = relation.columns.iter().position(|column| column.name == name);
        let at = at.ok_or_else(|| format!("column {name} is gone"))?;
        let oid = relation.columns[at].type_oid;
        let named = || types.get(&oid).and_then(|(schema, name)| ColumnType::from_catalog(schema, name));
        match ColumnType::from_builtin_oid(oid).or_else(named) {
            Some(found) if found == expected => Ok((at, found)),
            Some(found) => Err(format!("column {name} is now {found}, it was {expected}")),
            None => Err(format!("column {name} is now of another type (OID {oid}), it was {expected}")),
        }
    };
    let key: Vec<_> =
        def.key.iter().map(|column| find(&column.name, column.kind)).collect::<std::result::Result<_, _>>()?;
    if let Some((at, _)) = key.iter().find(|(at, _)| !relation.columns[*at].is_key) {
        return Err(format!("column {} is no longer part of the replica identity", relation.columns[*at].name));
    }
    let vectors = def.vectors.iter().map(|column| {
        let place = find(&column.name, column.kind)?;
        let typmod = relation.columns[place.0].typmod;
        match (column.kind, column.dimensions, usize::try_from(typmod)) {
            (kind, Some(ours), Ok(theirs)) if kind.has_dimensions() && ours != theirs => {
                Err(format!("column {} now has {theirs} dimensions, it had {ours}", column.name))
            }
            _ => Ok(place),
        }
    });
    Ok(Mapping {
        collection: def.id,
        columns: relation.columns.len(),
        vectors: vectors.collect::<std::result::Result<_, _>>()?,
        filters: def
            .filters
            .iter()
            .map(|column| find(&column.name, column.kind))
            .collect::<std::result::Result<_, _>>()?,
        key,
    })
}

fn tuple<'t, 'a>(old: &'t OldTuple<'a>) -> &'t Tuple<'a> {
    match old {
        OldTuple::Key(tuple) | OldTuple::Full(tuple) => tuple,
    }
}

fn decode(cell: &TupleCell<'_>, kind: ColumnType) -> Cell {
    match cell {
        TupleCell::Null => Cell::Null,
        TupleCell::Unchanged => Cell::Unchanged,
        TupleCell::Text(bytes) => pgtype::decode_text(kind, bytes),
        TupleCell::Binary(bytes) => pgtype::decode_binary(kind, bytes),
    }
}

fn check_count(relation: u32, mapping: &Mapping, tuple: &Tuple<'_>) -> Result<()> {
    match tuple.len() == mapping.columns {
        true => Ok(()),
        false => Err(AssembleError::ColumnCount { relation, found: tuple.len(), expected: mapping.columns }),
    }
}

/// The key in a row. A long key that was not touched is only in the old row.
fn key(relation: u32, mapping: &Mapping, tuple: &Tuple<'_>, old: Option<&Tuple<'_>>) -> Result<RowKey> {
    check_count(relation, mapping, tuple)?;
    let bad = |reason: String| AssembleError::Key { relation, reason };
    let mut values = Vec::with_capacity(mapping.key.len());
    for &(at, kind) in &mapping.key {
        let source = match (&tuple[at], old) {
            (TupleCell::Unchanged, Some(old)) if old.len() == mapping.columns => &old[at],
            (cell, _) => cell,
        };
        match decode(source, kind) {
            Cell::Value(value) => values.push(value),
            other => return Err(bad(format!("{other:?}"))),
        }
    }
    RowKey::encode(&values).ok_or_else(|| bad("not a key type".into()))
}

fn image(relation: u32, mapping: &Mapping, new: &Tuple<'_>, old: Option<&OldTuple<'_>>) -> Result<RowImage> {
    check_count(relation, mapping, new)?;
    // With REPLICA IDENTITY FULL the old row has what the new one leaves out.
    let full = match old {
        Some(OldTuple::Full(old)) if old.len() == mapping.columns => Some(old),
        _ => None,
    };
    let cell = |&(at, kind): &(usize, ColumnType)| match (&new[at], full) {
        (TupleCell::Unchanged, Some(old)) => decode(&old[at], kind),
        (cell, _) => decode(cell, kind),
    };
    Ok(RowImage {
        key: key(relation, mapping, new, old.map(tuple))?,
        vectors: mapping.vectors.iter().map(cell).collect(),
        filters: mapping.filters.iter().map(cell).collect(),
    })
}
