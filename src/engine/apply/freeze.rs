//! What a snapshot is made of, gathered between two batches: a commit of the state, second names of the files that never
//! change, and handles of those that are only written on behind what counts. Applying stands still for a checkpoint.

use super::Applier;
use crate::engine::collection::CollectionWriter;
use crate::storage::changelog;
use crate::storage::snapshot::{Frozen, Making, Piece};
use crate::storage::{Result, files};

/// What came of it; `None` while a collection is being copied: what is not whole is in nobody's snapshot.
pub type Gathered = Option<Result<Frozen>>;

impl Applier {
    /// An error of the outer result is the engine's, one of the inner concerns the snapshot only.
    pub(super) fn freeze(&mut self, making: &Making) -> Result<Gathered> {
        if !self.incoming.is_empty() {
            return Ok(None);
        }
        self.checkpoint()?;
        Ok(Some(self.gather(making)))
    }

    fn gather(&self, making: &Making) -> Result<Frozen> {
        let durable = self.reader.tail().durable();
        let epoch = &self.shared.epoch;
        let mut pieces = Vec::new();
        for (number, path) in changelog::files_from(&self.log_dir, self.needed_from())? {
            let Some(name) = path.file_name().map(|name| format!("log/{}", name.to_string_lossy())) else { continue };
            match number.cmp(&durable.position.file) {
                std::cmp::Ordering::Less => pieces.push(Piece::sealed(epoch, name, making)?),
                std::cmp::Ordering::Equal => {
                    pieces.push(Piece::growing(epoch, name, Some(durable.position.offset))?);
                }
                // Made since: nothing in it counts yet.
                std::cmp::Ordering::Greater => {}
            }
        }
        for index in self.collections.iter().flat_map(|collection| &collection.indexes) {
            for file in index.sealed_files() {
                pieces.push(Piece::sealed(epoch, format!("vectors/{file}"), making)?);
            }
            for path in index.growing_files().into_iter().filter(|path| files::exists(path)) {
                let Some(name) = path.file_name().map(|name| name.to_string_lossy()) else { continue };
                pieces.push(Piece::growing(epoch, format!("vectors/{name}"), None)?);
            }
        }
        Ok(Frozen {
            state: self.state.freeze()?,
            identity: self.state.identity()?,
            lsn: durable.lsn,
            applied: self.applied.lsn,
            collections: self.collections.iter().map(CollectionWriter::name).map(str::to_owned).collect(),
            pieces,
        })
    }
}
