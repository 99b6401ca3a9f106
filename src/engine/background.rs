//! Work behind the applier's back: linking new nodes, sealing full segments, merging small or worn ones. Works on
//! published views only and hands results to the applier.

use crate::engine::Shared;
use crate::engine::segment::Segment;
use crate::engine::view::{IndexView, View};
use crate::model::CollectionId;
use crate::storage::Result;
use crate::storage::changelog::LogTail;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, atomic::Ordering};
use std::time::Duration;

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
    /// One segment, which has its file, replaces others.
    Merged {
        /// Whose.
        collection: CollectionId,
        /// Which vector column.
        index: usize,
        /// The segments it replaces.
        old: Vec<u64>,
        /// The new one.
        segment: Arc<Segment>,
    },
}

impl Done {
    /// Whose work it was.
    pub fn collection(&self) -> CollectionId {
        match self {
            Done::Sealed { collection, .. } | Done::Merged { collection, .. } => *collection,
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
    let sealed = segment.save(&path).and_then(|()| segment.reopened(&path, &index.column, index.originals.as_ref()));
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
                if is_done && let Some(segment) = seal(epoch, collection, number, index, segment)? {
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

/// Merges segments until told to stop.
pub fn merge(shared: &Shared, epoch: &Path, done: &Sender<Done>) -> Result<()> {
    while !shared.sleep_unless_stopping(MERGE_EVERY) {
        let view = shared.view();
        for (collection, number, index) in indexes(&view) {
            let Some(chosen) = choose(index) else { continue };
            let (Some(dimensions), false) = (index.column.dimensions, shared.is_copying(&view, collection)) else {
                continue;
            };
            let old: Vec<&Segment> = chosen.iter().map(|segment| &**segment).collect();
            let id = index.ids.fetch_add(1, Ordering::Relaxed);
            let alive = |node| index.row(node).is_some();
            let merged = Arc::new(Segment::merged(id, &index.column, dimensions, &old, &alive, 1)?);
            crate::failpoint!("merge.built");
            // The epoch may be discarded, and its directory another's soon.
            if shared.stopping() {
                return Ok(());
            }
            let Some(merged) = seal(epoch, collection, number, index, &merged)? else { continue };
            crate::failpoint!("merge.saved");
            let old = chosen.iter().map(|segment| segment.id).collect();
            tracing::info!(collection = collection.0, ?old, new = id, rows = merged.graph.len(), "merged segments");
            let _ = done.send(Done::Merged { collection, index: number, old, segment: merged });
        }
        // Look again only at a view that has taken the results in.
        shared.wait_for_another(&view);
    }
    Ok(())
}

/// The segments worth merging now: one that is worn out, or the smallest ones when there are too many.
fn choose(index: &IndexView) -> Option<Vec<Arc<Segment>>> {
    let alive =
        |segment: &Segment| (0..segment.graph.len()).filter(|&slot| index.row(segment.node(slot)).is_some()).count();
    // A segment may have been filled and saved since the view was published: what the view does not know is not dead.
    let known = |segment: &Segment| segment.last_node().is_none_or(|node| (node as usize) < index.rows.len());
    let saved = index.segments.iter().filter(|segment| segment.is_saved() && known(segment));
    let mut counted: Vec<_> = saved.map(|segment| (alive(segment), segment)).collect();
    let worn = |(alive, segment): &&(usize, &Arc<Segment>)| {
        (*alive as f64) < f64::from(segment.graph.len()) * (1.0 - MAX_DEAD)
    };
    if let Some((_, segment)) = counted.iter().find(worn) {
        return Some(vec![(*segment).clone()]);
    }
    let surplus = counted.len().checked_sub(MAX_SEGMENTS).filter(|surplus| *surplus > 0)?;
    counted.sort_unstable_by_key(|(alive, _)| *alive);
    Some(counted.into_iter().take(surplus + 1).map(|(_, segment)| segment.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::rows::{NewRow, Rows};
    use crate::model::{ColumnType, Metric, RowKey, VectorColumn, Version};
    use std::sync::atomic::AtomicU64;

    #[test]
    fn a_segment_that_is_newer_than_the_view_is_not_merged() {
        let column = VectorColumn {
            name: "e".into(),
            kind: ColumnType::Vector,
            metric: Metric::L2,
            dimensions: Some(2),
            m: 4,
            ef_construction: 8,
            encoding: Default::default(),
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
            choose(&IndexView {
                column,
                rows,
                segments,
                live,
                ids,
                originals: None,
                sparse: Default::default(),
                gone: Arc::default(),
            })
            .is_some()
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
