//! The state as it was at one commit, written into a file of its own while the service goes on.

use super::{COLLECTIONS, DEAD, META, State, database, rows_table};
use crate::storage::files::{self, Mode};
use crate::storage::{IoContext, Result};
use redb::{
    Key, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError, Value, WriteTransaction,
};
use std::path::Path;

/// One commit of a state. Holding it keeps the pages of that commit in the state's file, nothing else.
pub struct FrozenState(ReadTransaction);

impl State {
    /// The newest commit. It is durable when the last one was.
    pub fn freeze(&self) -> Result<FrozenState> {
        Ok(FrozenState(self.database.begin_read()?))
    }
}

impl FrozenState {
    /// Writes all of it into a new file, durably: what [`State::open`] opens.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        let file = files::open(path, Mode::Fresh)?;
        let (database, _) = database(file.clone())?;
        let mut into = database.begin_write()?;
        into.set_quick_repair(true);
        self.copy(&into, META)?;
        self.copy(&into, DEAD)?;
        for collection in self.copy(&into, COLLECTIONS)? {
            let name = rows_table(crate::model::CollectionId(collection));
            self.copy(&into, TableDefinition::<&[u8], &[u8]>::new(&name))?;
        }
        into.commit()?;
        drop(database);
        file.sync().context("sync", path)
    }

    /// Copies one table, unless there is none. Its keys, where they are numbers.
    fn copy<K: Key + Numbered + 'static, V: Value + 'static>(
        &self,
        into: &WriteTransaction,
        table: TableDefinition<'_, K, V>,
    ) -> Result<Vec<u32>> {
        let from = match self.0.open_table(table) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            from => from?,
        };
        let (mut into, mut numbers) = (into.open_table(table)?, Vec::new());
        for entry in from.iter()? {
            let (key, value) = entry?;
            numbers.extend(K::number(&key.value()));
            into.insert(key.value(), value.value())?;
        }
        Ok(numbers)
    }
}

/// Keys that may be numbers.
trait Numbered: Key {
    fn number(_key: &Self::SelfType<'_>) -> Option<u32> {
        None
    }
}

impl Numbered for u32 {
    fn number(key: &u32) -> Option<u32> {
        Some(*key)
    }
}

impl Numbered for &str {}
impl Numbered for &[u8] {}
impl Numbered for (u32, &[u8]) {}
