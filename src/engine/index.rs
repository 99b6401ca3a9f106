//! The writing side of one vector column's index. Owned by the applier.

use crate::engine::rows::{NewRow, Rows};
use crate::engine::segment::Segment;
use crate::engine::sparse::SparseColumn;
use crate::engine::tiers::{Clock, Keeping, Touches};
use crate::engine::view::IndexView;
use crate::model::{CollectionId, ColumnType, SparseVector, Value, VectorColumn};
use crate::storage::files;
use crate::storage::originals::{Element, Originals};
use crate::storage::state::{IndexRecord, SealedRecord};
use crate::storage::{Result, StorageError};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Removes the files of collections that are forgotten: a crash may have come between the two.
pub fn remove_strangers(epoch: &Path, known: &HashSet<CollectionId>) -> Result<()> {
    let dir = epoch.join("vectors");
    files::create_dir(&dir)?;
    for name in files::list(&dir)? {
        let number = name.split_once('-').and_then(|(number, _)| number.parse().ok());
        if number.is_some_and(|number| !known.contains(&CollectionId(number))) {
            files::remove(&dir.join(name))?;
        }
    }
    Ok(())
}

/// One vector column's index, as the applier changes it.
pub struct IndexWriter {
    collection: CollectionId,
    number: usize,
    dir: PathBuf,
    /// The column, with its dimensions once known.
    pub column: VectorColumn,
    record: IndexRecord,
    originals: Option<Originals>,
    /// What reads them for searches, while they are being written.
    reader: Option<Arc<Originals>>,
    /// Of a sparse column, in place of originals and segments.
    sparse: SparseColumn,
    rows: Rows,
    sealed: Vec<Arc<Segment>>,
    growing: Option<Arc<Segment>>,
    segment_rows: usize,
    ids: Arc<AtomicU64>,
    gone: Arc<AtomicBool>,
    touches: Arc<Touches>,
    /// Files no longer named by the record; they go once that is durable.
    retired: Vec<PathBuf>,
}

impl IndexWriter {
    /// Opens the index of a vector column as the state knows it. Rows are attached afterwards.
    pub fn open(
        epoch: &Path,
        collection: CollectionId,
        number: usize,
        column: VectorColumn,
        record: IndexRecord,
        segment_rows: usize,
        clock: &Clock,
    ) -> Result<IndexWriter> {
        let touches = Touches::new(clock.clone());
        touches.load(&touches_path(epoch, collection, number));
        let ids = Arc::new(AtomicU64::new(record.next_segment));
        let mut index = IndexWriter {
            collection,
            number,
            dir: epoch.join("vectors"),
            column,
            record,
            originals: None,
            reader: None,
            sparse: SparseColumn::default(),
            rows: Rows::default(),
            sealed: Vec::new(),
            growing: None,
            segment_rows,
            ids,
            gone: Arc::default(),
            touches: Arc::new(touches),
            retired: Vec::new(),
        };
        files::create_dir(&index.dir)?;
        if let Some(dimensions) = index.column.dimensions {
            index.load(dimensions)?;
        }
        Ok(index)
    }

    fn load(&mut self, dimensions: usize) -> Result<()> {
        if self.is_sparse() {
            self.rows.grow(self.record.nodes as usize);
            return self.sparse.open(&self.sparse_file(), dimensions, self.record.nodes);
        }
        let originals = Originals::open(&self.originals_file(), dimensions, self.element(), self.record.nodes)?;
        let reader = self.open_reader(dimensions)?;
        for sealed in std::mem::take(&mut self.record.sealed) {
            let path = self.dir.join(&sealed.file);
            let keeping = match sealed.tier {
                Some((tier, since)) => Keeping { tier: Some(tier), since, encoding: self.column.encoding },
                None => Keeping::plain(self.column.encoding),
            };
            let how = (dimensions, keeping);
            match Segment::open(&path, sealed.id, &self.column, how, &reader, self.record.nodes) {
                Ok(segment) => {
                    self.sealed.push(Arc::new(segment));
                    self.record.sealed.push(sealed);
                }
                // Written by a version before: its nodes are linked again, which needs nobody but us.
                Err(StorageError::Format { found, expected, .. }) if found < expected => {
                    tracing::info!(file = sealed.file, found, expected, "linking a segment of an older format again");
                    self.retired.push(path);
                }
                Err(error) => return Err(error),
            }
        }
        self.rows.grow(self.record.nodes as usize);
        // What no sealed segment covers is linked again in the background; until then it is scanned.
        let first =
            self.sealed.iter().filter_map(|segment| Some(segment.node(segment.graph.len().checked_sub(1)?) + 1));
        let first = first.max().unwrap_or(0).max(self.record.first);
        let (mut scratch, mut vector) = (Vec::new(), vec![0.0; dimensions]);
        self.originals = Some(originals);
        for node in first..self.record.nodes {
            let originals = self.originals.as_ref().expect("set above");
            originals.read_into(node, &mut scratch, &mut vector)?;
            self.growing_segment(dimensions, node).graph.push(&vector);
        }
        Ok(())
    }

    /// Opens what reads the originals for searches.
    fn open_reader(&mut self, dimensions: usize) -> Result<Arc<Originals>> {
        let reader = Originals::open_mapped(&self.originals_file(), dimensions, self.element())?;
        Ok(self.reader.insert(Arc::new(reader)).clone())
    }

    fn element(&self) -> Element {
        Element::of(self.column.kind)
    }

    fn is_sparse(&self) -> bool {
        self.column.kind == ColumnType::Sparsevec
    }

    fn sparse_file(&self) -> PathBuf {
        self.dir.join(format!("{}-{}.sparse", self.collection.0, self.number))
    }

    fn originals_file(&self) -> PathBuf {
        self.dir.join(format!("{}-{}.f32", self.collection.0, self.number))
    }

    /// Where the file of a sealed segment lies.
    pub fn segment_path(&self, id: u64) -> PathBuf {
        self.dir.join(Segment::file_name(self.collection.0, self.number, id))
    }

    /// How many nodes the next segment takes.
    pub fn set_segment_rows(&mut self, rows: usize) {
        self.segment_rows = rows;
    }

    fn growing_segment(&mut self, dimensions: usize, node: u32) -> &Arc<Segment> {
        if self.growing.as_ref().is_none_or(|growing| growing.is_full()) {
            self.sealed.extend(self.growing.take());
            let id = self.ids.fetch_add(1, Ordering::Relaxed);
            let segment = Segment::growing(id, &self.column, dimensions, node, self.segment_rows);
            self.growing = Some(Arc::new(segment));
        }
        self.growing.as_ref().expect("made above")
    }

    /// Stores a vector as a new node and returns its number. The value was not refused.
    pub fn add(&mut self, value: &Value, row: NewRow<'_>) -> Result<u32> {
        let node = match value {
            Value::Vector(vector) => self.add_dense(vector)?,
            Value::Sparse(vector) => self.add_sparse(vector)?,
            _ => unreachable!("any other value is refused"),
        };
        self.rows.push(row);
        self.record.nodes = node + 1;
        debug_assert_eq!(self.rows.len(), node as usize + 1);
        Ok(node)
    }

    fn add_sparse(&mut self, vector: &SparseVector) -> Result<u32> {
        if !self.sparse.is_open() {
            self.column.dimensions = Some(vector.dimensions());
            self.sparse.open(&self.sparse_file(), vector.dimensions(), 0)?;
        }
        self.sparse.add(vector)
    }

    fn add_dense(&mut self, vector: &[f32]) -> Result<u32> {
        let dimensions = vector.len();
        if self.originals.is_none() {
            self.column.dimensions = Some(dimensions);
            self.originals = Some(Originals::open(&self.originals_file(), dimensions, self.element(), 0)?);
            self.open_reader(dimensions)?;
        }
        let node = self.originals.as_mut().expect("opened above").push(vector)?;
        self.growing_segment(dimensions, node).graph.push(vector);
        Ok(node)
    }

    /// Does the node hold exactly this vector?
    pub fn holds(&self, node: u32, value: &Value) -> Result<bool> {
        match (value, &self.originals) {
            (Value::Vector(vector), Some(originals)) => originals.equals(node, vector),
            (Value::Sparse(vector), _) => Ok(self.sparse.holds(node, vector)),
            _ => Ok(false),
        }
    }

    /// The node now belongs to this version of its row.
    pub fn attach(&mut self, node: u32, row: NewRow<'_>) {
        self.rows.set(node, row);
    }

    /// The node's vector is no row's any more.
    pub fn detach(&mut self, node: u32) {
        self.rows.clear(node);
        let rows = &self.rows;
        self.sparse.forget(node, |node| rows.get(node).is_some());
    }

    /// No node belongs to a row any more.
    pub fn detach_all(&mut self) {
        self.rows.clear_all();
        self.sparse.retain(|_| false);
        self.record.first = self.record.nodes;
        self.retired.extend(self.record.sealed.drain(..).map(|sealed| self.dir.join(sealed.file)));
        self.sealed.clear();
        self.growing = None;
    }

    /// Does the record name this segment's file?
    fn is_named(&self, id: u64) -> bool {
        self.record.sealed.iter().any(|sealed| sealed.id == id)
    }

    /// A full or finished segment has its file, and answers from there.
    pub fn sealed(&mut self, sealed: Arc<Segment>) {
        let id = sealed.id;
        self.growing.take_if(|growing| growing.id == id).into_iter().for_each(|growing| self.sealed.push(growing));
        let Some(place) = self.sealed.iter_mut().find(|segment| segment.id == id) else {
            // Of rows that are gone.
            return self.retired.push(self.segment_path(id));
        };
        let Keeping { tier, since, .. } = sealed.keeping();
        *place = sealed;
        if !self.is_named(id) {
            let file = Segment::file_name(self.collection.0, self.number, id);
            self.record.sealed.push(SealedRecord { id, file, tier: tier.map(|tier| (tier, since)) });
        }
    }

    /// The segments whose files no record names yet, in the order of their nodes.
    pub fn unsealed(&self) -> Vec<Arc<Segment>> {
        let all = self.sealed.iter().chain(&self.growing).filter(|segment| !segment.graph.is_empty());
        let mut unsealed: Vec<_> = all.filter(|segment| !self.is_named(segment.id)).cloned().collect();
        unsealed.sort_by_key(|segment| segment.node(0));
        unsealed
    }

    /// Puts live nodes that no segment holds into one that is linked in the background. There are none unless something
    /// went wrong; a row that is counted and cannot be found would be the worst of answers.
    pub fn cover_holes(&mut self) -> Result<()> {
        if self.is_sparse() {
            // All vectors of the file were read; those that no row has need no memory.
            let rows = &self.rows;
            self.sparse.retain(|node| rows.get(node).is_some());
            return Ok(());
        }
        let mut held = vec![false; self.rows.len()];
        for segment in self.sealed.iter().chain(&self.growing) {
            for node in (0..segment.graph.len()).map(|slot| segment.node(slot) as usize) {
                held.get_mut(node).into_iter().for_each(|held| *held = true);
            }
        }
        let missing: Vec<u32> = self.rows.iter().map(|(node, _)| node).filter(|node| !held[*node as usize]).collect();
        let (Some(originals), Some(dimensions), false) = (&self.originals, self.column.dimensions, missing.is_empty())
        else {
            return Ok(());
        };
        tracing::warn!(count = missing.len(), column = self.column.name, "nodes were in no segment; linking them");
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (mut scratch, mut vector) = (Vec::new(), vec![0.0; dimensions]);
        let read = |node: u32| {
            originals.read_into(node, &mut scratch, &mut vector)?;
            Ok(vector.clone())
        };
        let segment = Segment::of_nodes(id, &self.column, dimensions, missing, read)?;
        self.sealed.push(Arc::new(segment));
        Ok(())
    }

    /// `new` ones, which have their files, take the place of the segments `old`. False when one of them is gone meanwhile.
    pub fn replace(&mut self, old: &[u64], new: Vec<Arc<Segment>>) -> bool {
        if !old.iter().all(|id| self.is_named(*id)) {
            let paths: Vec<_> = new.iter().map(|segment| self.segment_path(segment.id)).collect();
            self.retired.extend(paths);
            return false;
        }
        self.sealed.retain(|segment| !old.contains(&segment.id));
        let gone = self.record.sealed.extract_if(.., |sealed| old.contains(&sealed.id));
        self.retired.extend(gone.map(|sealed| self.dir.join(sealed.file)));
        for segment in new {
            self.sealed.push(segment.clone());
            self.sealed(segment);
        }
        crate::failpoint!("index.replaced");
        true
    }

    /// Names of the files of sealed segments, which never change.
    pub fn sealed_files(&self) -> impl Iterator<Item = &str> {
        self.record.sealed.iter().map(|sealed| sealed.file.as_str())
    }

    /// Files that are only written on, or replaced whole; those of them that are there.
    pub fn growing_files(&self) -> [PathBuf; 3] {
        let epoch = self.dir.parent().unwrap_or(&self.dir);
        [self.originals_file(), self.sparse_file(), touches_path(epoch, self.collection, self.number)]
    }

    /// What is to be stored of the index.
    pub fn record(&self) -> IndexRecord {
        IndexRecord { next_segment: self.ids.load(Ordering::Relaxed), ..self.record.clone() }
    }

    /// Removes the files that the durable record no longer names.
    pub fn remove_retired(&mut self) {
        for path in self.retired.drain(..) {
            if let Err(error) = files::remove(&path) {
                tracing::warn!(%error, "cannot remove a retired segment");
            }
            crate::failpoint!("index.retired_removed");
        }
    }

    /// Makes the originals durable; must come before the transaction that counts them.
    pub fn sync(&mut self) -> Result<()> {
        self.sparse.sync()?;
        self.originals.as_mut().map_or(Ok(()), Originals::sync)
    }

    /// Hands the originals to the operating system, so that readers of the next view find them.
    pub fn flush(&mut self) -> Result<()> {
        self.sparse.flush()?;
        self.originals.as_mut().map_or(Ok(()), Originals::flush)
    }

    /// Removes files of this column that no record names: left by a crash or by a merge. What the durable one still names
    /// goes later.
    pub fn remove_orphans(&self) -> Result<()> {
        let prefix = format!("{}-{}-", self.collection.0, self.number);
        for name in files::list(&self.dir)? {
            let path = self.dir.join(&name);
            let named = self.record.sealed.iter().any(|sealed| sealed.file == name) || self.retired.contains(&path);
            if name.starts_with(&prefix) && !named {
                files::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes all files of this column. Readers that have them open go on; who still writes some is told first.
    pub fn remove_files(&self) {
        self.gone.store(true, Ordering::Release);
        let ours = format!("{}-{}", self.collection.0, self.number);
        for name in files::list(&self.dir).unwrap_or_default() {
            let is_ours = name.strip_prefix(&ours).is_some_and(|rest| rest.starts_with(['-', '.']));
            if is_ours && let Err(error) = files::remove(&self.dir.join(name)) {
                tracing::warn!(%error, "cannot remove a file of a collection that is gone");
            }
        }
    }

    /// What queries see from now on.
    pub fn view(&self) -> IndexView {
        IndexView {
            column: self.column.clone(),
            rows: self.rows.clone(),
            segments: self.sealed.iter().chain(&self.growing).cloned().collect(),
            live: self.rows.live(),
            ids: self.ids.clone(),
            originals: self.reader.clone(),
            sparse: self.sparse.view(),
            gone: self.gone.clone(),
            touches: self.touches.clone(),
        }
    }
}

/// Where it is kept when searches gave the nodes of a vector column.
pub fn touches_path(epoch: &Path, collection: CollectionId, number: usize) -> PathBuf {
    epoch.join("vectors").join(format!("{}-{number}.touched", collection.0))
}
