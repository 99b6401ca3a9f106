//! Named places where tests let the process die, and sizes they may shrink. Nothing of it is in a release build.
//!
//! `RUVECTOR_FAILPOINT=name@n` kills the process with SIGKILL when it comes to the place for the n-th time.

/// Every place. `tests/soak_crash.rs` says how each is reached.
pub const POINTS: [&str; 102] = [
    // The stream.
    "transport.slot_made",
    "transport.stream_started",
    "transport.before_leave",
    "stream.before_status",
    "stream.status_sent",
    "stream.batch_received",
    "stream.batch_queued",
    "follow.before_cut",
    "follow.cut",
    "follow.message_decoded",
    "follow.frame_taken",
    "assemble.begun",
    "assemble.before_chunk",
    "assemble.chunk_emitted",
    "assemble.before_commit",
    "assemble.commit_emitted",
    // The logs.
    "changelog.appended",
    "changelog.before_write",
    "changelog.written",
    "changelog.before_sync",
    "changelog.synced",
    "changelog.shown",
    "changelog.before_roll",
    "changelog.rolled",
    "changelog.before_cut",
    "changelog.cut",
    "changelog.scanned",
    "changelog.tail_cut",
    "changelog.before_remove",
    "changelog.one_removed",
    // The data directory and other small files.
    "atomic.written",
    "atomic.renamed",
    "data_dir.locked",
    "data_dir.emptied",
    "data_dir.epoch_made",
    "data_dir.before_pending",
    "data_dir.pending_changed",
    "data_dir.before_current",
    "data_dir.current_written",
    "data_dir.epoch_removed",
    // Originals and state.
    "originals.created",
    "originals.before_write",
    "originals.written",
    "originals.before_sync",
    "originals.synced",
    "state.created",
    "state.opened",
    "state.before_commit",
    "state.committed",
    "state.before_durable_commit",
    "state.durably_committed",
    // The copy.
    "publication.changed",
    "copy.session_open",
    "copy.begun",
    "copy.range_begun",
    "copy.batch_appended",
    "copy.range_done",
    "copy.before_end",
    "copy.ended",
    // The engine.
    "engine.started",
    "apply.batch_begun",
    "apply.change_applied",
    "apply.before_commit",
    "apply.committed",
    "apply.published",
    "apply.checkpoint_begun",
    "apply.checkpoint_originals",
    "apply.checkpoint_committed",
    "apply.checkpoint_done",
    "apply.collection_added",
    "apply.collection_removed",
    "apply.arrived",
    "apply.copy_live",
    "incoming.loaded",
    "incoming.linked",
    "incoming.sealed",
    "incoming.caught_up",
    "apply.segment_sealed",
    "apply.stop_sealed",
    "collection.moved",
    "collection.truncated",
    "index.replaced",
    "index.retired_removed",
    "segment.before_save",
    "link.sealed",
    "merge.built",
    "merge.saved",
    // The epochs.
    "epoch.registered",
    "epoch.defined",
    "epoch.log_made",
    "node.copy_decided",
    "node.copy_started",
    "node.old_stopped",
    "node.promoted",
    "node.slot_dropped",
    "node.before_close",
    "node.closed",
    // A snapshot.
    "snapshot.begun",
    "snapshot.frozen",
    "snapshot.copied",
    "snapshot.manifest_written",
    "snapshot.named",
];

/// The number of a place; asked while compiling, so that an unknown name does not compile.
pub const fn number(name: &str) -> usize {
    let mut at = 0;
    while at < POINTS.len() {
        if equal(POINTS[at].as_bytes(), name.as_bytes()) {
            return at;
        }
        at += 1;
    }
    panic!("the name is not in failpoint::POINTS")
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// Marks a place: `crate::failpoint!("changelog.synced")`.
macro_rules! failpoint {
    ($name:literal) => {
        $crate::failpoint::reach(const { $crate::failpoint::number($name) })
    };
}
pub(crate) use failpoint;

/// The process comes to a place.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn reach(_point: usize) {}

/// A size that a test may set by the environment variable `RUVECTOR_TEST_{name}`.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn size(_name: &str, usual: u64) -> u64 {
    usual
}

#[cfg(debug_assertions)]
pub(crate) use armed::{reach, size};

#[cfg(debug_assertions)]
mod armed {
    use super::POINTS;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    /// Nobody has looked at the environment yet.
    const UNKNOWN: usize = usize::MAX;
    /// No place kills.
    const NONE: usize = usize::MAX - 1;

    /// The place that kills.
    static ARMED: AtomicUsize = AtomicUsize::new(UNKNOWN);
    /// How often it was come to.
    static HITS: AtomicU64 = AtomicU64::new(0);

    /// The process comes to a place.
    #[inline]
    pub(crate) fn reach(point: usize) {
        let armed = ARMED.load(Ordering::Relaxed);
        if armed != NONE && (armed == point || armed == UNKNOWN) {
            count(point);
        }
    }

    #[cold]
    fn count(point: usize) {
        static SET: OnceLock<Option<(usize, u64)>> = OnceLock::new();
        let set = *SET.get_or_init(|| std::env::var("RUVECTOR_FAILPOINT").ok().map(|text| parse(&text)));
        ARMED.store(set.map_or(NONE, |(point, _)| point), Ordering::Relaxed);
        let Some((_, deadly)) = set.filter(|(armed, _)| *armed == point) else { return };
        if HITS.fetch_add(1, Ordering::Relaxed) + 1 == deadly {
            die(point);
        }
    }

    fn parse(text: &str) -> (usize, u64) {
        let (name, hits) = text.split_once('@').unwrap_or((text, "1"));
        match (POINTS.iter().position(|point| *point == name), hits.parse()) {
            (Some(point), Ok(hits)) => (point, hits),
            _ => {
                eprintln!("RUVECTOR_FAILPOINT={text}: no such place");
                std::process::exit(2);
            }
        }
    }

    fn die(point: usize) -> ! {
        // One write: it is the last one.
        eprintln!("failpoint {} kills", POINTS[point]);
        // SAFETY: both calls take and give plain numbers.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        loop {
            std::thread::park();
        }
    }

    /// A size that a test may set by the environment variable `RUVECTOR_TEST_{name}`.
    pub(crate) fn size(name: &str, usual: u64) -> u64 {
        std::env::var(format!("RUVECTOR_TEST_{name}")).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    fn sources(dir: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).expect("src can be read").map(|entry| entry.expect("an entry").path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn every_place_of_the_table_is_in_the_code() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let text: String =
            sources(&src).iter().map(|path| std::fs::read_to_string(path).expect("src can be read")).collect();
        let unused = POINTS.iter().filter(|name| !text.contains(&format!("failpoint!(\"{name}\")")));
        assert_eq!(unused.collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    #[test]
    fn no_name_stands_twice() {
        for (at, name) in POINTS.iter().enumerate() {
            assert_eq!(number(name), at, "{name}");
        }
    }
}
