//! Work behind the applier's back: linking new nodes, sealing full segments, merging small or worn ones, moving rows
//! between tiers. Works on published views only and hands results to the applier.

use crate::engine::segment::Segment;
use crate::engine::tiers::{self, Keeping, Move};
use crate::engine::view::{CollectionView, IndexView, View};
use crate::engine::{Shared, index};
use crate::model::{CollectionId, Tier, TierPolicy};
use crate::storage::changelog::LogTail;
use crate::storage::state::CollectionState;
use crate::storage::{Result, StorageError};
use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, atomic::Ordering};
use std::time::{Duration, Instant};

/// Nodes linked before looking around again.
const LINK_CHUNK: usize = 64;
const IDLE: Duration = Duration::from_millis(5);
const MERGE_EVERY: Duration = Duration::from_millis(500);
/// More sealed segments than this are merged: every search walks each of them.
const MAX_SEGMENTS: usize = 8;
/// A segment with more dead nodes than this share is built anew.
const MAX_DEAD: f64 = 0.3;

/// Something finished for the applier to take in.
pub enum Done {
    /// A segment has its file.
    Sealed {
        /// Whose.
        collection: CollectionId,
        /// Which vector column.
        index: usize,
        /// The segment, as it was read from there.
        segment: Arc<Segment>,
    },
    /// Segments, which have their files, replace others.
    Replaced {
        /// Whose.
        collection: CollectionId,
        /// Which vector column.
        index: usize,
        /// The segments they replace.
        old: Vec<u64>,
        /// The new ones.
        new: Vec<Arc<Segment>>,
    },
}

impl Done {
    /// Whose work it was.
    pub fn collection(&self) -> CollectionId {
        match self {
            Done::Sealed { collection, .. } | Done::Replaced { collection, .. } => *collection,
        }
    }
}

fn indexes(view: &View) -> impl Iterator<Item = (CollectionId, usize, &IndexView)> {
    view.collections.values().flat_map(|collection| {
        let id = collection.def.id;
        collection.indexes.iter().enumerate().map(move |(number, index)| (id, number, &**index))
    })
}

fn segment_path(epoch: &Path, collection: CollectionId, index: usize, id: u64) -> PathBuf {
    epoch.join("vectors").join(Segment::file_name(collection.0, index, id))
}

/// Gives a linked segment its file, and reads it back as it is to answer from there. `None` when its collection's files
/// are being removed meanwhile.
pub fn seal(
    epoch: &Path,
    collection: CollectionId,
    number: usize,
    index: &IndexView,
    segment: &Arc<Segment>,
) -> Result<Option<Arc<Segment>>> {
    let path = segment_path(epoch, collection, number, segment.id);
    let reopened = || segment.reopened(&path, &index.column, index.originals.as_ref(), segment.keeping());
    let sealed = segment.save(&path).and_then(|()| reopened());
    match sealed {
        Err(error) if index.gone.load(Ordering::Acquire) => {
            tracing::info!(collection = collection.0, %error, "a segment was not sealed: its collection is gone");
            Ok(None)
        }
        sealed => sealed.map(Some),
    }
}

/// Bytes of vectors that searches may have to scan because linking waits: a few hundredths of a second.
const SCANNED_WHILE_BEHIND: usize = 256 << 20;

/// Bytes of vectors that no graph links yet.
fn unlinked<'a>(segments: impl Iterator<Item = &'a Arc<Segment>>) -> usize {
    segments.map(|segment| segment.graph.tail().len() * segment.graph.dim() * size_of::<f32>()).sum()
}

/// May linking wait? A row is found without being linked, so while the source has much more, the processors are left to
/// what brings it here, as long as the scan of what is not linked stays short.
fn may_wait(log: &LogTail, view: &View) -> bool {
    log.is_behind() && unlinked(indexes(view).flat_map(|(_, _, index)| &index.segments)) < SCANNED_WHILE_BEHIND
}

/// Links new nodes and seals full segments until told to stop.
pub fn link(shared: &Shared, epoch: &Path, log: &LogTail, done: &Sender<Done>) -> Result<()> {
    while !shared.stopping() {
        let view = shared.view();
        if may_wait(log, &view) {
            std::thread::sleep(IDLE);
            continue;
        }
        let mut linked = 0;
        for (collection, number, index) in indexes(&view) {
            // While a collection is copied, the applier links it with all threads at the end.
            if shared.is_copying(&view, collection) {
                continue;
            }
            for segment in &index.segments {
                linked += segment.graph.link_next(LINK_CHUNK);
                let is_done = segment.is_full() && segment.is_linked() && !segment.is_saved();
                if is_done
                    && is_published(index, segment)
                    && let Some(segment) = seal(epoch, collection, number, index, segment)?
                {
                    crate::failpoint!("link.sealed");
                    let _ = done.send(Done::Sealed { collection, index: number, segment });
                }
            }
        }
        if linked == 0 {
            std::thread::sleep(IDLE);
        }
    }
    Ok(())
}

/// Are all of its nodes in this view? Those of a transaction that is still being applied are not, and their rows may not be
/// in the file of originals yet.
fn is_published(index: &IndexView, segment: &Segment) -> bool {
    segment.last_node().is_none_or(|node| (node as usize) < index.rows.len())
}

/// One vector column's index, and where its segments go.
struct Work<'w> {
    shared: &'w Shared,
    epoch: &'w Path,
    collection: CollectionId,
    number: usize,
    index: &'w IndexView,
    policy: Option<&'w TierPolicy>,
}

impl Work<'_> {
    fn next_id(&self) -> u64 {
        self.index.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// How a new segment keeps its rows.
    fn keeping(&self, tier: Option<Tier>) -> Keeping {
        let usual = self.index.column.encoding;
        let encoding = self.policy.zip(tier).map_or(usual, |(policy, tier)| policy.encoding(tier, usual));
        Keeping { tier, since: self.shared.options.clock.now(), encoding }
    }

    /// A segment of what is alive of others and wanted, with its file. `None` when there is nothing, or no use for it.
    fn build(&self, old: &[&Segment], wanted: &dyn Fn(u32) -> bool, keeping: Keeping) -> Result<Option<Arc<Segment>>> {
        let Some(dimensions) = self.index.column.dimensions else { return Ok(None) };
        let alive = |node| self.index.row(node).is_some() && wanted(node);
        let merged = Segment::merged(self.next_id(), &self.index.column, (dimensions, keeping), old, &alive, 1)?;
        crate::failpoint!("merge.built");
        self.seal(merged)
    }

    fn seal(&self, segment: Segment) -> Result<Option<Arc<Segment>>> {
        // The epoch may be discarded, and its directory another's soon.
        if self.shared.stopping() {
            return Ok(None);
        }
        let sealed = seal(self.epoch, self.collection, self.number, self.index, &Arc::new(segment))?;
        crate::failpoint!("merge.saved");
        Ok(sealed)
    }

    /// Merges what is worth it, or else moves what belongs in another tier. `None` when there is nothing to do.
    fn step(&self, compact: Option<u64>, look: bool) -> Result<Option<Done>> {
        let chosen = compact.map_or_else(|| choose(self.index), |below| compaction(self.index, below));
        if let Some(chosen) = chosen {
            let (old, tier) = (chosen.iter().map(|segment| &**segment).collect::<Vec<_>>(), chosen[0].keeping().tier);
            let Some(merged) = self.build(&old, &|_| true, self.keeping(tier))? else { return Ok(None) };
            let (old, collection) = (chosen.iter().map(|segment| segment.id).collect::<Vec<_>>(), self.collection.0);
            tracing::info!(collection, ?old, new = merged.id, rows = merged.graph.len(), "merged segments");
            return Ok(Some(self.replaced(old, vec![merged])));
        }
        if !look {
            return Ok(None);
        }
        tiers::plan(self.index, self.policy).map_or(Ok(None), |next| self.carry_out(next))
    }

    fn carry_out(&self, next: Move) -> Result<Option<Done>> {
        let (old, new) = match next {
            Move::AsOne(segment, tier) => {
                let (Some(originals), Some(dimensions)) = (&self.index.originals, self.index.column.dimensions) else {
                    return Ok(None);
                };
                let path = segment_path(self.epoch, self.collection, self.number, segment.id);
                let known = segment.last_node().map_or(0, |last| last + 1);
                let how = (dimensions, self.keeping(tier));
                let kept = match Segment::to_keep(&path, self.next_id(), &self.index.column, how, originals, known) {
                    // Replaced, truncated or removed after the view that names it.
                    Err(StorageError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
                    kept => kept?,
                };
                (segment, self.seal(kept)?.into_iter().collect::<Vec<_>>())
            }
            Move::Parted(segment, parts) => {
                let mut new = Vec::new();
                for (tier, nodes) in parts {
                    let wanted = |node| nodes.binary_search(&node).is_ok();
                    let Some(part) = self.build(&[&segment], &wanted, self.keeping(Some(tier)))? else {
                        return Ok(None);
                    };
                    new.push(part);
                }
                (segment, new)
            }
        };
        if new.is_empty() {
            return Ok(None);
        }
        let shown = |segment: &Arc<Segment>| {
            let tier = segment.keeping().tier.map_or("none", Tier::name);
            format!("{} {tier} {}", segment.graph.len(), segment.graph.encoding().name())
        };
        let moved = new.iter().map(shown).collect::<Vec<_>>().join(", ");
        tracing::info!(collection = self.collection.0, old = old.id, moved, "moved rows between tiers");
        Ok(Some(self.replaced(vec![old.id], new)))
    }

    fn replaced(&self, old: Vec<u64>, new: Vec<Arc<Segment>>) -> Done {
        Done::Replaced { collection: self.collection, index: self.number, old, new }
    }
}

/// When each collection's tiers were looked at.
type Looked = HashMap<CollectionId, Instant>;

/// Merges segments and moves rows between tiers until told to stop.
pub fn merge(shared: &Shared, epoch: &Path, done: &Sender<Done>) -> Result<()> {
    let mut looked = Looked::new();
    while !shared.sleep_unless_stopping(MERGE_EVERY) {
        if shared.look.swap(false, Ordering::AcqRel) {
            looked.clear();
        }
        let (view, policies) = (shared.view(), shared.tiers.load_full());
        for name in view.collections.keys() {
            if shared.stopping() {
                return Ok(());
            }
            // Work on the one before may have taken hours.
            let newest = shared.view();
            let Some(found) = newest.collections.get(name).filter(|found| may_change(&newest, name, found)) else {
                continue;
            };
            let (collection, policy) = (found.def.id, policies.get(name));
            let every = policy.map_or(MERGE_EVERY, |policy| Duration::from_secs(policy.check_s));
            let look = looked.get(&collection).is_none_or(|at| at.elapsed() >= every);
            let compact = shared.compact.lock().get(&collection).cloned();
            let mut any = false;
            for (number, index) in found.indexes.iter().enumerate() {
                let below = compact.as_ref().map(|below| below.get(number).copied().unwrap_or(0));
                let work = Work { shared, epoch, collection, number, index, policy };
                if let Some(one) = work.step(below, look)? {
                    any = true;
                    let _ = done.send(one);
                }
            }
            if any {
                continue;
            }
            // What was asked for meanwhile is another request.
            if compact.is_some() && shared.compact.lock().get(&collection) == compact.as_ref() {
                shared.compact.lock().remove(&collection);
            }
            // Looked at again and again until nothing is to be moved.
            if look && !shared.stopping() {
                looked.insert(collection, Instant::now());
                keep_touches(epoch, collection, &found.indexes);
            }
        }
        // Look again only at a view that has taken the results in.
        shared.wait_for_another(&view);
    }
    Ok(())
}

/// May segments be replaced? Not of what is on its way in: it is linked by itself, or has failed and is nobody's.
fn may_change(view: &View, name: &str, found: &CollectionView) -> bool {
    let arriving = view.incoming.get(name).is_some_and(|arriving| arriving.def.id == found.def.id);
    found.state != CollectionState::Copying && !arriving
}

/// Writes down when searches gave nodes. Losing that costs nothing but age.
pub fn keep_touches(epoch: &Path, collection: CollectionId, indexes: &[Arc<IndexView>]) {
    for (number, view) in indexes.iter().enumerate() {
        let kept = view.touches.save(&index::touches_path(epoch, collection, number));
        if let Err(error) = kept
            && !view.gone.load(Ordering::Acquire)
        {
            tracing::warn!(%error, "when rows were used last is not kept");
        }
    }
}

/// Floats that a compaction may take into memory for the time it takes.
const MOST_AT_ONCE: usize = 4 << 30;

/// The sealed segments of a tier that are not one yet, or have dead rows: those made before the request, and no more than
/// fit in memory.
fn compaction(index: &IndexView, below: u64) -> Option<Vec<Arc<Segment>>> {
    let mut groups = by_tier(index);
    for group in &mut groups {
        let mut bytes = 0;
        group.retain(|(alive, segment)| {
            bytes += alive * segment.graph.dim() * size_of::<f32>();
            segment.id < below && bytes <= MOST_AT_ONCE
        });
    }
    let dead = |(alive, segment): &(usize, &Arc<Segment>)| *alive < segment.graph.len() as usize;
    let group = groups.iter().find(|group| group.len() > 1 || group.iter().any(dead))?;
    Some(group.iter().map(|(_, segment)| (*segment).clone()).collect())
}

/// The segments that may be replaced, by tier, each with what is alive in it, the smallest first.
fn by_tier(index: &IndexView) -> Vec<Vec<(usize, &Arc<Segment>)>> {
    let alive =
        |segment: &Segment| (0..segment.graph.len()).filter(|&slot| index.row(segment.node(slot)).is_some()).count();
    // What the view does not know is not dead.
    let mut groups: BTreeMap<Option<Tier>, Vec<_>> = BTreeMap::new();
    for segment in index.segments.iter().filter(|segment| segment.is_saved() && is_published(index, segment)) {
        groups.entry(segment.keeping().tier).or_default().push((alive(segment), segment));
    }
    groups.values_mut().for_each(|group| group.sort_by_key(|(alive, _)| *alive));
    groups.into_values().collect()
}

/// The segments worth merging now, all of one tier: one that is worn out, or the smallest ones when there are too many.
fn choose(index: &IndexView) -> Option<Vec<Arc<Segment>>> {
    let groups = by_tier(index);
    let worn = |(alive, segment): &&(usize, &Arc<Segment>)| {
        (*alive as f64) < f64::from(segment.graph.len()) * (1.0 - MAX_DEAD)
    };
    if let Some((_, segment)) = groups.iter().flatten().find(worn) {
        return Some(vec![(*segment).clone()]);
    }
    let count: usize = groups.iter().map(Vec::len).sum();
    let surplus = count.checked_sub(MAX_SEGMENTS).filter(|surplus| *surplus > 0)?;
    let group = groups.iter().filter(|group| group.len() > 1).min_by_key(|group| group[0].0 + group[1].0)?;
    Some(group.iter().take(surplus + 1).map(|(_, segment)| (*segment).clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::rows::{NewRow, Rows};
    use crate::model::{ColumnType, Metric, RowKey, VectorColumn, Version};
    use std::sync::atomic::AtomicU64;

    #[test]
    fn a_segment_that_is_newer_than_the_view_is_neither_sealed_nor_merged() {
        let column = VectorColumn {
            name: "e".into(),
            kind: ColumnType::Vector,
            metric: Metric::L2,
            dimensions: Some(2),
            m: 4,
            ef_construction: 8,
            encoding: Default::default(),
            index: Default::default(),
            lists: None,
        };
        let segment = Segment::growing(1, &column, 2, 0, 4);
        for n in 0..4u8 {
            segment.graph.push(&[n.into(), 0.0]);
        }
        segment.graph.link_next(4);
        let dir = tempfile::tempdir().expect("dir");
        segment.save(&dir.path().join("s")).expect("save");
        let segments = vec![Arc::new(segment)];
        let key = RowKey::from_bytes(&[]);
        let chosen = |alive: &[bool]| {
            let mut rows = Rows::default();
            rows.grow(alive.len());
            for node in (0..alive.len()).filter(|node| alive[*node]) {
                rows.set(node as u32, NewRow { key: &key, version: Version::default(), filters: &[] });
            }
            let live = rows.live();
            let (column, segments, ids) = (column.clone(), segments.clone(), Arc::new(AtomicU64::new(2)));
            let (originals, sparse, gone, touches) = (None, Default::default(), Arc::default(), Arc::default());
            let index = IndexView { column, rows, segments, live, ids, originals, sparse, gone, touches };
            // Nor is it sealed: its rows would be read back from a file that does not have them yet.
            assert_eq!(is_published(&index, &index.segments[0]), alive.len() == 4);
            choose(&index).is_some()
        };
        assert!(!chosen(&[true]), "three rows are not published yet");
        assert!(!chosen(&[true, true, true]), "one row is not published yet");
        assert!(!chosen(&[true; 4]), "nothing is worn");
        assert!(chosen(&[true, false, false, true]), "half is dead");
    }

    #[test]
    fn linking_waits_while_the_source_has_much_more_and_goes_on_when_it_has_not() {
        let column = VectorColumn {
            name: "e".into(),
            kind: ColumnType::Vector,
            metric: Metric::L2,
            dimensions: Some(2),
            m: 4,
            ef_construction: 8,
            encoding: Default::default(),
            index: Default::default(),
            lists: None,
        };
        let segment = Arc::new(Segment::growing(1, &column, 2, 0, 100));
        for n in 0..50u8 {
            segment.graph.push(&[n.into(), 0.0]);
        }
        segment.graph.link_next(20);
        assert_eq!(unlinked([segment.clone()].iter()), 30 * 2 * size_of::<f32>());
        let log = LogTail::default();
        assert!(!may_wait(&log, &View::default()));
        log.set_behind(true);
        assert!(may_wait(&log, &View::default()));
    }
}
