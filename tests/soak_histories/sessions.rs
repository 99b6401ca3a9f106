//! Several sessions of one client whose transactions interleave: each owns the ids that leave its number as a remainder,
//! so that nobody waits for anybody, and what every statement does is known before it runs.

use super::model::{Embedding, GROUP, GROUPS, IDS, Key, Pending, Row, Rows, TABLES, Table};
use super::support::soak::Random;
use super::support::{Database, Sql};
use ruvector::model::Lsn;
use std::collections::{BTreeMap, BTreeSet};

/// Sessions.
const SESSIONS: usize = 3;

/// What the product does not always do right: nothing that is known.
pub const NOT_YET: &[Operation] = &[];

/// More settings of the section `source`: how often the service compares by itself.
pub const SOURCE: &str = "reconcile_s = 1";

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Insert,
    Payload,
    Vector,
    Delete,
    KeyChange,
    KeySwap,
    DeleteInsert,
    Upsert,
    Copy,
    ManyRows,
    ToNull,
    Group,
    Savepoint,
    RollbackTo,
    Release,
    Message,
    PartitionMove,
    Truncate,
    TruncateMany,
    AddColumn,
    AddVolatileColumn,
    DropColumn,
    RenameColumn,
    RenameTable,
    VacuumFull,
    IdentityFull,
    IdentityDefault,
    ColumnType,
    DetachAttach,
}

use Operation::*;

/// How often, in a thousand or so.
const WEIGHTS: &[(Operation, u64)] = &[
    (Insert, 160),
    (Payload, 140),
    (Vector, 90),
    (Delete, 60),
    (KeyChange, 50),
    (KeySwap, 25),
    (DeleteInsert, 40),
    (Upsert, 80),
    (Copy, 8),
    (ManyRows, 20),
    (ToNull, 25),
    (Group, 120),
    (Savepoint, 60),
    (RollbackTo, 35),
    (Release, 10),
    (Message, 20),
    (PartitionMove, 40),
    (Truncate, 4),
    (TruncateMany, 3),
    (AddColumn, 4),
    (AddVolatileColumn, 3),
    (DropColumn, 4),
    (RenameColumn, 4),
    (RenameTable, 4),
    (VacuumFull, 3),
    (IdentityFull, 4),
    (IdentityDefault, 5),
    (ColumnType, 3),
    (DetachAttach, 3),
];

struct Session {
    sql: Sql,
    open: Option<Pending>,
}

/// Who writes, and what was written.
pub struct Sessions {
    sessions: Vec<Session>,
    prepared: Vec<(String, Pending)>,
    /// What the source contains.
    pub committed: Rows,
    pub transactions: u64,
    pub operations: u64,
    /// How many of each kind.
    pub kinds: BTreeMap<String, u64>,
    /// Since the last comparison something was done that has no event: the index learns of it later.
    pub silent: bool,
    tokens: Vec<Token>,
    stamp: i64,
    random: Random,
}

/// A group of the ledger has this stamp from this position on.
#[derive(Debug, Clone, Copy)]
pub struct Token {
    pub group: i64,
    pub stamp: i64,
    pub lsn: Lsn,
}

fn sub(id: i64) -> String {
    format!("k'é{}", id % 7)
}

/// The condition for one row.
fn at(table: Table, id: i64) -> String {
    match table {
        Table::Small => format!("id = {id} AND sub = '{}'", sub(id).replace('\'', "''")),
        _ => format!("id = {id}"),
    }
}

/// The assignment of another key.
fn key_to(table: Table, id: i64) -> String {
    match table {
        Table::Small => format!("id = {id}, sub = '{}'", sub(id).replace('\'', "''")),
        _ => format!("id = {id}"),
    }
}

fn columns(table: Table) -> &'static str {
    if table == Table::Small { "sub, id, tag, price, body, embedding" } else { "id, tag, price, body, embedding" }
}

fn values(table: Table, id: i64, row: &Row) -> String {
    let sub = if table == Table::Small { format!("'{}', ", sub(id).replace('\'', "''")) } else { String::new() };
    format!("({sub}{id}, {}, {}, 'body', {})", row.tag, row.price, row.embedding.sql())
}

fn insert(table: Table, id: i64, row: &Row) -> String {
    format!("INSERT INTO {} ({}) VALUES {}", table.name(), columns(table), values(table, id, row))
}

impl Sessions {
    /// Makes the tables with their first rows.
    pub fn new(database: &Database, random: Random) -> Sessions {
        database.sql.run(
            "CREATE TABLE wide (id bigint PRIMARY KEY, tag bigint, price int, body text, note text, embedding real[])
               WITH (toast_tuple_target = 128);
             ALTER TABLE wide ALTER embedding SET STORAGE EXTERNAL;
             CREATE TABLE small (id bigint, sub text, tag bigint, price int, body text, note text, embedding real[],
                                 PRIMARY KEY (sub, id));
             CREATE TABLE parts (id bigint PRIMARY KEY, tag bigint, price int, body text, note text, embedding real[])
               PARTITION BY RANGE (id);
             CREATE TABLE parts_0 PARTITION OF parts FOR VALUES FROM (0) TO (100);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (100) TO (200);
             CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (200) TO (300);
             CREATE TABLE ledger (id bigint PRIMARY KEY, tag bigint, price int, body text, note text, embedding real[])",
        );
        let session = |_| Session { sql: database.connect(), open: None };
        let mut sessions = Sessions {
            sessions: (0..SESSIONS).map(session).collect(),
            prepared: Vec::new(),
            committed: Rows::new(),
            transactions: 0,
            operations: 0,
            kinds: BTreeMap::new(),
            silent: false,
            tokens: Vec::new(),
            stamp: 0,
            random,
        };
        let mut first = Pending::default();
        for id in 0..120 {
            for table in [Table::Wide, Table::Small, Table::Parts] {
                let row = sessions.row(table);
                database.sql.run(&insert(table, id * 2, &row));
                first.put((table, id * 2), row);
            }
        }
        for group in 0..GROUPS {
            for at in 0..GROUP as i64 {
                let row = sessions.ledger_row(group, 0);
                database.sql.run(&insert(Table::Ledger, group * 10 + at, &row));
                first.put((Table::Ledger, group * 10 + at), row);
            }
        }
        first.apply(&mut sessions.committed);
        sessions
    }

    fn row(&mut self, table: Table) -> Row {
        let (tag, price) = (self.random.below(1000) as i64, self.random.below(50) as i64);
        Row { tag, price, embedding: Embedding::any(&mut self.random, table) }
    }

    fn ledger_row(&mut self, group: i64, stamp: i64) -> Row {
        Row { tag: stamp, price: group, embedding: Embedding::vector(&mut self.random, Table::Ledger) }
    }

    fn locked(&self) -> BTreeSet<Key> {
        self.prepared.iter().flat_map(|(_, pending)| pending.touched.iter().copied()).collect()
    }

    /// One operation of one session, and perhaps the end of its transaction. What was committed of the ledger.
    pub fn step(&mut self) -> Vec<Token> {
        let exclusive =
            self.sessions.iter().position(|session| session.open.as_ref().is_some_and(|open| open.exclusive));
        let number = exclusive.unwrap_or_else(|| self.random.below(SESSIONS as u64) as usize);
        if exclusive.is_none() && !self.prepared.is_empty() && self.random.below(12) == 0 {
            self.end_prepared();
            return std::mem::take(&mut self.tokens);
        }
        if self.sessions[number].open.is_none() {
            self.sessions[number].sql.run("BEGIN");
            self.sessions[number].open = Some(Pending::default());
        }
        let operation = self.choose();
        self.operations += 1;
        *self.kinds.entry(format!("{operation:?}")).or_default() += 1;
        self.operate(number, operation);
        let open = self.sessions[number].open.as_mut();
        let ends = open.is_some_and(|open| {
            open.statements += 1;
            open.exclusive && open.statements > 1 || self.random.below(4) == 0
        });
        if ends {
            self.end(number);
        }
        std::mem::take(&mut self.tokens)
    }

    fn choose(&mut self) -> Operation {
        loop {
            let mut at = self.random.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
            for (operation, weight) in WEIGHTS {
                if at < *weight {
                    if NOT_YET.contains(operation) {
                        break;
                    }
                    return *operation;
                }
                at -= weight;
            }
        }
    }

    /// Everybody else ends: this one may lock tables.
    fn alone(&mut self, number: usize) {
        for other in 0..SESSIONS {
            if other != number && self.sessions[other].open.is_some() {
                self.end(other);
            }
        }
        while !self.prepared.is_empty() {
            self.end_prepared();
        }
    }

    /// Ids of a table that this session may change: there, or not.
    fn ids(&self, number: usize, table: Table, there: bool) -> Vec<i64> {
        let locked = self.locked();
        let open = self.sessions[number].open.as_ref().expect("in a transaction");
        let present: BTreeSet<_> = open.ids(&self.committed, table).into_iter().collect();
        (0..IDS as i64)
            .filter(|id| *id as usize % SESSIONS == number && present.contains(id) == there)
            .filter(|id| !locked.contains(&(table, *id)))
            .collect()
    }

    fn run(&mut self, number: usize, sql: &str, put: Vec<(Key, Row)>, remove: Vec<Key>) {
        self.sessions[number].sql.run(sql);
        let open = self.sessions[number].open.as_mut().expect("in a transaction");
        // Removed first: a key may be left and taken in one statement.
        remove.into_iter().for_each(|key| open.remove(key));
        put.into_iter().for_each(|(key, row)| open.put(key, row));
    }

    fn get(&self, number: usize, key: Key) -> Row {
        let open = self.sessions[number].open.as_ref().expect("in a transaction");
        open.get(&self.committed, key).expect("chosen among those that are there").clone()
    }

    fn operate(&mut self, number: usize, operation: Operation) {
        let table = TABLES[self.random.below(3) as usize];
        let name = table.name();
        let old = self.ids(number, table, true);
        let new = self.ids(number, table, false);
        let old = (!old.is_empty()).then(|| *self.random.pick(&old));
        let fresh = (!new.is_empty()).then(|| *self.random.pick(&new));
        match (operation, old, fresh) {
            (Insert, _, Some(id)) => {
                let row = self.row(table);
                self.run(number, &insert(table, id, &row), vec![((table, id), row)], vec![]);
            }
            (Payload, Some(id), _) => {
                let mut row = self.get(number, (table, id));
                (row.tag, row.price) = (self.random.below(1000) as i64, self.random.below(50) as i64);
                let sql = format!("UPDATE {name} SET tag = {}, price = {} WHERE {}", row.tag, row.price, at(table, id));
                self.run(number, &sql, vec![((table, id), row)], vec![]);
            }
            (Vector | ToNull, Some(id), _) => {
                let mut row = self.get(number, (table, id));
                row.embedding = match operation {
                    ToNull => Embedding::Null,
                    _ => Embedding::any(&mut self.random, table),
                };
                let sql = format!("UPDATE {name} SET embedding = {} WHERE {}", row.embedding.sql(), at(table, id));
                self.run(number, &sql, vec![((table, id), row)], vec![]);
            }
            (Delete, Some(id), _) => {
                self.run(number, &format!("DELETE FROM {name} WHERE {}", at(table, id)), vec![], vec![(table, id)]);
            }
            (KeyChange, Some(id), Some(to)) => {
                let row = self.get(number, (table, id));
                let sql = format!("UPDATE {name} SET {} WHERE {}", key_to(table, to), at(table, id));
                self.run(number, &sql, vec![((table, to), row)], vec![(table, id)]);
            }
            (KeySwap, Some(id), Some(free)) => {
                let others: Vec<_> = self.ids(number, table, true).into_iter().filter(|other| *other != id).collect();
                if others.is_empty() {
                    return;
                }
                let other = *self.random.pick(&others);
                let (one, two) = (self.get(number, (table, id)), self.get(number, (table, other)));
                let step =
                    |from: i64, to: i64| format!("UPDATE {name} SET {} WHERE {};", key_to(table, to), at(table, from));
                let sql = step(id, free) + &step(other, id) + &step(free, other);
                self.run(number, &sql, vec![((table, id), two), ((table, other), one)], vec![(table, free)]);
            }
            (DeleteInsert, Some(id), _) => {
                let row = self.row(table);
                let sql = format!("DELETE FROM {name} WHERE {}; {}", at(table, id), insert(table, id, &row));
                self.run(number, &sql, vec![((table, id), row)], vec![]);
            }
            (Upsert, old, fresh) => {
                let Some(id) = (if self.random.below(2) == 0 { old.or(fresh) } else { fresh.or(old) }) else { return };
                let row = self.row(table);
                let target = if table == Table::Small { "sub, id" } else { "id" };
                let sql = format!(
                    "{} ON CONFLICT ({target}) DO UPDATE SET tag = excluded.tag, price = excluded.price, embedding = excluded.embedding",
                    insert(table, id, &row)
                );
                self.run(number, &sql, vec![((table, id), row)], vec![]);
            }
            (Copy | ManyRows, _, Some(_)) => {
                let many = new.into_iter().take(40);
                let rows: Vec<_> = many.map(|id| ((table, id), self.row(table))).collect();
                if operation == Copy {
                    let line = |((table, id), row): &(Key, Row)| {
                        let sub = if *table == Table::Small { format!("{}\t", sub(*id)) } else { String::new() };
                        let embedding = row.embedding.text().unwrap_or_else(|| "\\N".into());
                        format!("{sub}{id}\t{}\t{}\tcopied\t{embedding}\n", row.tag, row.price)
                    };
                    let data: String = rows.iter().map(line).collect();
                    self.sessions[number].sql.copy_in(&format!("COPY {name} ({}) FROM STDIN", columns(table)), data);
                    self.run(number, "", rows, vec![]);
                } else {
                    let all: Vec<_> = rows.iter().map(|((table, id), row)| values(*table, *id, row)).collect();
                    let sql = format!("INSERT INTO {name} ({}) VALUES {}", columns(table), all.join(", "));
                    self.run(number, &sql, rows, vec![]);
                }
            }
            (PartitionMove, ..) => self.partition_move(number),
            (Group, ..) => self.group(number),
            (Savepoint, ..) => {
                let open = self.sessions[number].open.as_mut().expect("in a transaction");
                open.savepoints.push(open.changes.clone());
                let name = format!("SAVEPOINT s{}", open.savepoints.len());
                self.run(number, &name, vec![], vec![]);
            }
            (RollbackTo | Release, ..) => {
                let open = self.sessions[number].open.as_mut().expect("in a transaction");
                if open.savepoints.is_empty() || open.exclusive {
                    return;
                }
                let to = self.random.below(open.savepoints.len() as u64) as usize;
                let name = format!("s{}", to + 1);
                if operation == Release {
                    open.savepoints.truncate(to);
                    self.run(number, &format!("RELEASE SAVEPOINT {name}"), vec![], vec![]);
                } else {
                    open.changes = open.savepoints[to].clone();
                    open.savepoints.truncate(to + 1);
                    self.run(number, &format!("ROLLBACK TO SAVEPOINT {name}"), vec![], vec![]);
                }
            }
            (Message, ..) => {
                let transactional = self.random.below(2) == 0;
                let sql = format!("SELECT pg_logical_emit_message({transactional}, 'somebody', 'else''s')");
                self.run(number, &sql, vec![], vec![]);
            }
            (
                Insert | Payload | Vector | ToNull | Delete | KeyChange | KeySwap | DeleteInsert | Copy | ManyRows,
                ..,
            ) => {}
            (locking, ..) => {
                self.alone(number);
                self.lock_and(number, locking, table);
            }
        }
    }

    fn partition_move(&mut self, number: usize) {
        let table = Table::Parts;
        let old = self.ids(number, table, true);
        let new: BTreeSet<_> = self.ids(number, table, false).into_iter().collect();
        // The same remainder of three, in another partition.
        let moves: Vec<_> = old
            .iter()
            .flat_map(|id| [id - 102, id + 102, id - 201, id + 201].map(|to| (*id, to)))
            .filter(|(_, to)| new.contains(to))
            .collect();
        if moves.is_empty() {
            return;
        }
        let (id, to) = *self.random.pick(&moves);
        let mut row = self.get(number, (table, id));
        row.tag = self.random.below(1000) as i64;
        let sql = format!("UPDATE parts SET id = {to}, tag = {} WHERE id = {id}", row.tag);
        self.run(number, &sql, vec![((table, to), row)], vec![(table, id)]);
    }

    /// All rows of one group get one new stamp, in one of several ways.
    fn group(&mut self, number: usize) {
        let (table, locked) = (Table::Ledger, self.locked());
        let group = self.random.below(GROUPS as u64 / 3) as i64 * 3 + number as i64;
        let all = group * 10..group * 10 + 10;
        if all.clone().any(|id| locked.contains(&(table, id))) {
            return;
        }
        let open = self.sessions[number].open.as_ref().expect("in a transaction");
        let ids: Vec<i64> = all.filter(|id| open.get(&self.committed, (table, *id)).is_some()).collect();
        assert_eq!(ids.len(), GROUP, "the model's own groups are whole");
        self.stamp += 1;
        let stamp = self.stamp;
        let mut rows: Vec<(i64, Row)> = ids.iter().map(|id| (*id, self.get(number, (table, *id)))).collect();
        rows.iter_mut().for_each(|(_, row)| row.tag = stamp);
        let mut removed = Vec::new();
        let sql = match self.random.below(4) {
            0 => format!("UPDATE ledger SET tag = {stamp} WHERE price = {group}"),
            1 => {
                let vectors: Vec<_> = ids.iter().map(|_| Embedding::vector(&mut self.random, table)).collect();
                let mut sql = String::new();
                for ((id, row), vector) in rows.iter_mut().zip(vectors) {
                    row.embedding = vector;
                    sql += &format!(
                        "UPDATE ledger SET tag = {stamp}, embedding = {} WHERE id = {id};",
                        row.embedding.sql()
                    );
                }
                sql
            }
            2 => {
                let inserts: Vec<_> = rows.iter().map(|(id, row)| values(table, *id, row)).collect();
                format!(
                    "DELETE FROM ledger WHERE price = {group}; INSERT INTO ledger ({}) VALUES {}",
                    columns(table),
                    inserts.join(", ")
                )
            }
            _ => {
                let by = if ids[0] % 10 < 5 { 5 } else { -5 };
                removed = ids.iter().map(|id| (table, *id)).collect();
                rows.iter_mut().for_each(|(id, _)| *id += by);
                format!("UPDATE ledger SET id = id + {by}, tag = {stamp} WHERE price = {group}")
            }
        };
        self.run(number, &sql, rows.into_iter().map(|(id, row)| ((table, id), row)).collect(), removed);
    }

    /// What takes a lock that nobody else can be beside.
    fn lock_and(&mut self, number: usize, operation: Operation, table: Table) {
        let name = table.name();
        let mut put = Vec::new();
        let mut remove = Vec::new();
        let sql = match operation {
            Truncate | TruncateMany => {
                let tables = match operation {
                    Truncate if self.random.below(2) == 0 => vec![Table::Ledger],
                    Truncate => vec![table],
                    _ => vec![Table::Small, Table::Parts, Table::Ledger],
                };
                let open = self.sessions[number].open.as_ref().expect("in a transaction");
                remove = tables
                    .iter()
                    .flat_map(|table| open.ids(&self.committed, *table).into_iter().map(|id| (*table, id)))
                    .collect();
                let names: Vec<_> = tables.iter().map(|table| table.name()).collect();
                let mut sql = format!("TRUNCATE {};", names.join(", "));
                if tables.contains(&Table::Ledger) {
                    self.stamp += 1;
                    for group in 0..GROUPS {
                        for at in 0..GROUP as i64 {
                            let row = self.ledger_row(group, self.stamp);
                            sql += &format!("{};", insert(Table::Ledger, group * 10 + at, &row));
                            put.push(((Table::Ledger, group * 10 + at), row));
                        }
                    }
                }
                sql
            }
            AddColumn => format!("ALTER TABLE {name} ADD COLUMN IF NOT EXISTS extra int"),
            AddVolatileColumn => {
                format!("ALTER TABLE {name} ADD COLUMN IF NOT EXISTS extra float8 DEFAULT random()")
            }
            DropColumn => format!("ALTER TABLE {name} DROP COLUMN IF EXISTS extra"),
            RenameColumn => {
                let renamed = format!(
                    "SELECT count(*) FROM pg_attribute WHERE attrelid = '{name}'::regclass AND attname = 'remark' AND NOT attisdropped"
                );
                let renamed = self.sessions[number].sql.one(&renamed) == "1";
                let (from, to) = if renamed { ("remark", "note") } else { ("note", "remark") };
                format!("ALTER TABLE {name} RENAME {from} TO {to}")
            }
            RenameTable => {
                let new = self.ids(number, table, false);
                let mut sql = format!("ALTER TABLE {name} RENAME TO renamed;");
                if let Some(&id) = new.first() {
                    let row = self.row(table);
                    sql += &format!("{};", insert(table, id, &row).replace(name, "renamed"));
                    put.push(((table, id), row));
                }
                sql + &format!("ALTER TABLE renamed RENAME TO {name}")
            }
            IdentityFull => format!("ALTER TABLE {name} REPLICA IDENTITY FULL"),
            IdentityDefault => format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT"),
            ColumnType => {
                self.silent = true;
                let kind = format!(
                    "SELECT atttypid::regtype FROM pg_attribute WHERE attrelid = '{name}'::regclass AND attname = 'price'"
                );
                let kind = self.sessions[number].sql.one(&kind);
                format!("ALTER TABLE {name} ALTER price TYPE {}", if kind == "integer" { "bigint" } else { "integer" })
            }
            DetachAttach => {
                // Rows that come and go with their partition.
                let lost = 210 + number as i64;
                self.silent = true;
                remove = vec![(Table::Parts, lost)];
                format!(
                    "ALTER TABLE parts DETACH PARTITION parts_2; DELETE FROM parts_2 WHERE id = {lost};
                     ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (200) TO (300)"
                )
            }
            VacuumFull => {
                // Not inside a transaction: this one ends first.
                let pending = self.sessions[number].open.take().expect("in a transaction");
                self.sessions[number].sql.run("COMMIT");
                self.committed(number, pending);
                self.sessions[number].sql.run(&format!("VACUUM FULL {name}"));
                return;
            }
            other => unreachable!("{other:?} locks nothing"),
        };
        self.run(number, &sql, put, remove);
        self.sessions[number].open.as_mut().expect("in a transaction").exclusive = true;
    }

    /// The transaction of a session ends in one of several ways.
    fn end(&mut self, number: usize) {
        let pending = self.sessions[number].open.take().expect("in a transaction");
        let how = self.random.below(20);
        if how < 2 {
            self.sessions[number].sql.run("ROLLBACK");
            return;
        }
        if how < 5 && !pending.exclusive && self.prepared.len() < 3 {
            let name = format!("p{}_{}", std::process::id(), self.random.next());
            self.sessions[number].sql.run(&format!("PREPARE TRANSACTION '{name}'"));
            self.prepared.push((name, pending));
            return;
        }
        self.sessions[number].sql.run("COMMIT");
        self.committed(number, pending);
    }

    fn end_prepared(&mut self) {
        let at = self.random.below(self.prepared.len() as u64) as usize;
        let idle = self.sessions.iter().position(|session| session.open.is_none());
        // Not inside a transaction.
        let Some(number) = idle else { return };
        let (name, pending) = self.prepared.swap_remove(at);
        if self.random.below(4) == 0 {
            self.sessions[number].sql.run(&format!("ROLLBACK PREPARED '{name}'"));
            return;
        }
        self.sessions[number].sql.run(&format!("COMMIT PREPARED '{name}'"));
        self.committed(number, pending);
    }

    fn committed(&mut self, number: usize, pending: Pending) {
        self.transactions += 1;
        let lsn = self.sessions[number].sql.lsn();
        let ledger = pending.changes.range((Table::Ledger, i64::MIN)..=(Table::Ledger, i64::MAX));
        let row = |row: &Option<Row>| row.as_ref().map(|row| Token { group: row.price, stamp: row.tag, lsn });
        self.tokens.extend(ledger.filter_map(|(_, change)| row(change)));
        pending.apply(&mut self.committed);
    }

    /// Every transaction ends.
    pub fn rest(&mut self) -> Vec<Token> {
        for number in 0..SESSIONS {
            if self.sessions[number].open.is_some() {
                self.end(number);
            }
        }
        while !self.prepared.is_empty() {
            self.end_prepared();
        }
        std::mem::take(&mut self.tokens)
    }
}
