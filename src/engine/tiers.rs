//! Which rows belong in which tier: when searches gave them last, and what is to be moved. Pure but for the stamps.

use crate::engine::segment::Segment;
use crate::engine::view::IndexView;
use crate::model::{Encoding, Tier, TierPolicy};
use crate::storage::{Result, files};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A segment moves as one when so much of it belongs in one other tier.
const AS_ONE: f64 = 0.9;
/// Less than this share of a segment is not worth linking it again.
const WORTH_MOVING: f64 = 0.1;
/// A search touches at most so many of its rows: who reads everything is no user of every row.
pub const TOUCHED: usize = 100;

/// Minutes since 2020, by the system's clock and what tests add to it.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<AtomicU32>);

impl Clock {
    /// The time now.
    pub fn now(&self) -> u32 {
        const BEGIN: Duration = Duration::from_secs(1_577_836_800);
        let since = SystemTime::now().duration_since(UNIX_EPOCH + BEGIN).unwrap_or_default();
        (since.as_secs() / 60) as u32 + self.0.load(Ordering::Relaxed)
    }

    /// Lets time pass.
    pub fn advance(&self, minutes: u32) {
        self.0.fetch_add(minutes, Ordering::Relaxed);
    }
}

/// When searches last gave each node, and how often lately: minutes and a count in one word, 0 while nobody knows.
#[derive(Default)]
pub struct Touches {
    /// Empty while there are no tiers.
    stamps: RwLock<Vec<AtomicU32>>,
    clock: Clock,
    /// There is a file.
    kept: AtomicBool,
}

const COUNT_BITS: u32 = 8;
const MOST: u32 = (1 << COUNT_BITS) - 1;
const MINUTES_A_DAY: u32 = 24 * 60;

/// Minutes since the stamp, and the count as it is by now: halved for each whole day since the last search that gave it.
fn read(stamp: u32, now: u32) -> (u32, u32) {
    let age = now.saturating_sub(stamp >> COUNT_BITS);
    (age, (stamp & MOST).checked_shr(age / MINUTES_A_DAY).unwrap_or(0))
}

impl Touches {
    /// Nothing known yet.
    pub fn new(clock: Clock) -> Touches {
        Touches { clock, ..Touches::default() }
    }

    /// A search gave these nodes, nearest first.
    pub fn touch(&self, nodes: impl Iterator<Item = u32>) {
        self.add(nodes.take(TOUCHED), 1);
    }

    /// Counts a node as given often enough for any policy.
    /// False while its use is not followed.
    pub fn promote(&self, node: u32) -> bool {
        self.add(std::iter::once(node), MOST) > 0
    }

    /// How many of them are followed.
    fn add(&self, nodes: impl Iterator<Item = u32>, times: u32) -> usize {
        let stamps = self.stamps.read();
        if stamps.is_empty() {
            return 0;
        }
        let (now, mut followed) = (self.clock.now(), 0);
        for stamp in nodes.filter_map(|node| stamps.get(node as usize)) {
            followed += 1;
            // Two at once count as one: nobody decides by that.
            let (_, count) = read(stamp.load(Ordering::Relaxed), now);
            stamp.store(now << COUNT_BITS | (count + times).min(MOST), Ordering::Relaxed);
        }
        followed
    }

    /// From now on the first `nodes` are followed; the age of those not known begins now. Returns the time.
    fn cover(&self, nodes: usize) -> u32 {
        let (now, mut stamps) = (self.clock.now(), self.stamps.write());
        if stamps.len() < nodes {
            stamps.resize_with(nodes, AtomicU32::default);
        }
        for stamp in stamps.iter_mut() {
            let stamp = stamp.get_mut();
            if *stamp == 0 {
                *stamp = now << COUNT_BITS;
            }
        }
        now
    }

    /// Follows no node any more.
    fn clear(&self) {
        *self.stamps.write() = Vec::new();
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.stamps.read().capacity() * size_of::<AtomicU32>()
    }

    /// Keeps what is known for the next start. Losing it makes rows younger than they are, nothing else.
    pub fn save(&self, path: &Path) -> Result<()> {
        let stamps = self.stamps.read();
        if stamps.is_empty() {
            return if self.kept.swap(false, Ordering::Relaxed) { files::remove(path) } else { Ok(()) };
        }
        self.kept.store(true, Ordering::Relaxed);
        let mut bytes: Vec<u8> = stamps.iter().flat_map(|stamp| stamp.load(Ordering::Relaxed).to_le_bytes()).collect();
        drop(stamps);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        files::write_atomically(path, &bytes)
    }

    /// Takes up what was kept, if it can be read.
    pub fn load(&self, path: &Path) {
        let Ok(Some(bytes)) = files::read_if_there(path) else { return };
        self.kept.store(true, Ordering::Relaxed);
        let Some((body, crc)) = bytes.split_last_chunk::<4>() else { return };
        if crc32fast::hash(body).to_le_bytes() != *crc {
            tracing::warn!(path = %path.display(), "when rows were used last cannot be read; their age begins now");
            return;
        }
        let (words, _) = body.as_chunks::<4>();
        *self.stamps.write() = words.iter().map(|word| AtomicU32::new(u32::from_le_bytes(*word))).collect();
    }
}

/// What is to be done with a segment.
pub enum Move {
    /// All of it is kept differently; `None` is as without tiers.
    AsOne(Arc<Segment>, Option<Tier>),
    /// Its nodes part, ascending.
    Parted(Arc<Segment>, BTreeMap<Tier, Vec<u32>>),
}

/// The next thing to do, if anything, at the time `now`.
pub fn plan(index: &IndexView, policy: Option<&TierPolicy>) -> Option<Move> {
    let known = |segment: &&Arc<Segment>| segment.last_node().is_none_or(|node| (node as usize) < index.rows.len());
    let mut segments = index.segments.iter().filter(|segment| segment.is_saved()).filter(known);
    // Where nothing but floats serves, there is nothing to move to.
    let codes = |policy: &&TierPolicy| {
        let encoding = |tier| policy.encoding(tier, index.column.encoding).for_metric(index.column.metric);
        Tier::ALL[1..].iter().any(|tier| encoding(*tier) != Encoding::F32)
    };
    let Some(policy) = policy.filter(codes) else {
        index.touches.clear();
        return segments.find(|segment| segment.keeping().tier.is_some()).map(|one| Move::AsOne(one.clone(), None));
    };
    let now = index.touches.cover(index.rows.len());
    segments.find_map(|segment| {
        let keeping = segment.keeping();
        let rests = keeping.tier.is_some() && f64::from(now.saturating_sub(keeping.since)) < policy.residence_h * 60.0;
        if rests { None } else { one(index, segment, policy, now) }
    })
}

fn one(index: &IndexView, segment: &Arc<Segment>, policy: &TierPolicy, now: u32) -> Option<Move> {
    let current = segment.keeping().tier;
    let mut parts: BTreeMap<Tier, Vec<u32>> = BTreeMap::new();
    let stamps = index.touches.stamps.read();
    let mut alive = 0;
    for node in (0..segment.graph.len()).map(|slot| segment.node(slot)).filter(|&node| index.row(node).is_some()) {
        alive += 1;
        let (age, hits) = read(stamps.get(node as usize)?.load(Ordering::Relaxed), now);
        parts.entry(target(policy, current, age, hits)).or_default().push(node);
    }
    drop(stamps);
    let moving: usize = parts.iter().filter(|(tier, _)| Some(**tier) != current).map(|(_, nodes)| nodes.len()).sum();
    let (most, nodes) = parts.iter().max_by_key(|(_, nodes)| nodes.len())?;
    if moving > 0 && Some(*most) != current && nodes.len() as f64 >= AS_ONE * f64::from(alive) {
        return Some(Move::AsOne(segment.clone(), Some(*most)));
    }
    let worth = moving >= policy.least_rows && moving as f64 >= WORTH_MOVING * f64::from(alive);
    worth.then(|| Move::Parted(segment.clone(), parts))
}

/// Where a row belongs: colder by its age, hot again by what it is used for, else where it is.
fn target(policy: &TierPolicy, current: Option<Tier>, age: u32, hits: u32) -> Tier {
    let aged = policy.by_age(age);
    match current {
        None => aged,
        Some(current) if aged > current => aged,
        // One that would be cold again at the next look stays.
        Some(_) if hits >= u32::from(policy.promote_hits) && aged == Tier::Hot => Tier::Hot,
        Some(current) => current,
    }
}

/// What a tier of an index holds.
#[derive(Debug, Clone, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct TierReport {
    /// `hot`, `warm`, `cool`, `cold`; `growing` for rows of no sealed segment, `none` where there are no tiers.
    pub tier: &'static str,
    /// Vectors, dead ones included.
    pub vectors: u64,
    /// Of codes, links and full vectors in memory.
    pub memory_bytes: usize,
    /// Full vectors of the same rows in floats, divided by what is in memory of them without links.
    pub compression_ratio: f64,
    /// What walks compare, by segment.
    pub encodings: Vec<&'static str>,
    /// Mean of the hours since searches gave the rows, or since they came; absent while that is not followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_age_h: Option<f64>,
}

/// Where rows may be, hottest first: the tiers, and what has none.
const PLACES: [&str; 6] = ["growing", "hot", "warm", "cool", "cold", "none"];

fn place(segment: &Segment) -> usize {
    match segment.keeping().tier {
        _ if !segment.is_saved() => 0,
        Some(tier) => 1 + tier as usize,
        None => 5,
    }
}

/// Vectors, dead ones included, and bytes in memory by place, hottest first, empty ones included.
pub fn sizes(index: &IndexView) -> [(&'static str, u64, usize); PLACES.len()] {
    let mut sizes = PLACES.map(|name| (name, 0, 0));
    for segment in &index.segments {
        let (_, vectors, bytes) = &mut sizes[place(segment)];
        *vectors += u64::from(segment.graph.len());
        *bytes += segment.graph.memory_bytes();
    }
    sizes
}

/// Every tier that has rows, hottest first.
pub fn report(index: &IndexView) -> Vec<TierReport> {
    let mut groups: BTreeMap<usize, Vec<&Segment>> = BTreeMap::new();
    for segment in index.segments.iter().filter(|segment| !segment.graph.is_empty()) {
        groups.entry(place(segment)).or_default().push(segment);
    }
    let now = index.touches.clock.now();
    // A segment at a time: searches that end meanwhile write their stamps in between.
    let ages = |segment: &Segment| -> (u64, u64) {
        let stamps = index.touches.stamps.read();
        let of = |slot| stamps.get(segment.node(slot) as usize).map(|stamp| stamp.load(Ordering::Relaxed));
        let known = (0..segment.graph.len()).filter_map(of).filter(|stamp| *stamp != 0);
        known.fold((0, 0), |(sum, count), stamp| (sum + u64::from(read(stamp, now).0), count + 1))
    };
    let shown = |(place, segments): (usize, Vec<&Segment>)| {
        let ages = segments.iter().map(|segment| ages(segment));
        let (minutes, known) = ages.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        let vectors: u64 = segments.iter().map(|segment| u64::from(segment.graph.len())).sum();
        let rows: usize = segments.iter().map(|segment| segment.graph.row_bytes()).sum();
        let raw: usize = segments.iter().map(|segment| segment.graph.len() as usize * segment.graph.dim() * 4).sum();
        let mut encodings: Vec<_> = segments.iter().map(|segment| segment.graph.encoding().name()).collect();
        encodings.sort_unstable();
        encodings.dedup();
        TierReport {
            tier: PLACES[place],
            vectors,
            memory_bytes: segments.iter().map(|segment| segment.graph.memory_bytes()).sum(),
            compression_ratio: raw as f64 / rows.max(1) as f64,
            encodings,
            mean_age_h: (known > 0).then(|| minutes as f64 / known as f64 / 60.0),
        }
    };
    groups.into_iter().map(shown).collect()
}

/// How a sealed segment keeps its rows in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// Its tier, where there are tiers.
    pub tier: Option<Tier>,
    /// Since when, in minutes of [`Clock`].
    pub since: u32,
    /// What walks compare.
    pub encoding: Encoding,
}

impl Keeping {
    /// As without tiers.
    pub fn plain(encoding: Encoding) -> Keeping {
        Keeping { tier: None, since: 0, encoding }
    }

    /// Full vectors, too?
    pub fn holds_rows(&self) -> bool {
        self.tier == Some(Tier::Hot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_halve_every_day_and_stop_at_the_most() {
        let clock = Clock::default();
        let touches = Touches::new(clock.clone());
        touches.touch([0].into_iter());
        assert_eq!(touches.memory_bytes(), 0, "nothing is followed without tiers");
        touches.cover(3);
        let seen = |node: usize| read(touches.stamps.read()[node].load(Ordering::Relaxed), clock.now());
        (0..9).for_each(|_| touches.touch([1, 7].into_iter()));
        assert_eq!((seen(0), seen(1)), ((0, 0), (0, 9)));
        clock.advance(MINUTES_A_DAY);
        assert_eq!(seen(1), (MINUTES_A_DAY, 4));
        touches.touch([1].into_iter());
        assert_eq!(seen(1), (0, 5));
        clock.advance(1000 * MINUTES_A_DAY);
        assert_eq!(seen(1), (1000 * MINUTES_A_DAY, 0));
        assert!(touches.promote(2) && !touches.promote(3), "the last one is not followed");
        (0..300).for_each(|_| touches.touch([2].into_iter()));
        assert_eq!(seen(2), (0, MOST));
        touches.touch(0..1_000_000);
        touches.clear();
        assert_eq!(touches.memory_bytes(), 0);
    }

    #[test]
    fn a_reader_of_everything_touches_the_nearest_only() {
        let touches = Touches::new(Clock::default());
        touches.cover(1_000);
        touches.touch(0..1_000);
        let counted = touches.stamps.read().iter().filter(|stamp| stamp.load(Ordering::Relaxed) & MOST > 0).count();
        assert_eq!(counted, TOUCHED);
    }

    #[test]
    fn stamps_are_kept_and_a_damaged_file_is_as_none() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("0-0.touched");
        let clock = Clock::default();
        let touches = Touches::new(clock.clone());
        touches.save(&path).expect("nothing to keep");
        assert!(!path.exists());
        touches.cover(4);
        touches.promote(2);
        touches.save(&path).expect("kept");
        let load = || {
            let touches = Touches::new(clock.clone());
            touches.load(&path);
            let stamps: Vec<u32> = touches.stamps.read().iter().map(|stamp| stamp.load(Ordering::Relaxed)).collect();
            stamps
        };
        assert_eq!(load().len(), 4);
        assert_eq!(read(load()[2], clock.now()), (0, MOST));
        let mut bytes = std::fs::read(&path).expect("bytes");
        bytes[3] ^= 1;
        std::fs::write(&path, &bytes).expect("write");
        assert!(load().is_empty());
        std::fs::write(&path, [1, 2]).expect("write");
        assert!(load().is_empty());
        touches.clear();
        touches.save(&path).expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn rows_get_colder_by_age_and_hot_by_use() {
        let policy = TierPolicy::default();
        let hours = |hours: u32| hours * 60;
        for (age, tier) in [(0, Tier::Hot), (23, Tier::Hot), (24, Tier::Warm), (168, Tier::Cool), (720, Tier::Cold)] {
            assert_eq!(policy.by_age(hours(age)), tier);
            assert_eq!(target(&policy, None, hours(age), 0), tier);
            assert_eq!(target(&policy, Some(Tier::Hot), hours(age), 9), tier);
        }
        let cold = Some(Tier::Cold);
        assert_eq!(target(&policy, cold, 0, 2), Tier::Cold, "one who looked");
        assert_eq!(target(&policy, cold, 0, 3), Tier::Hot);
        assert_eq!(target(&policy, cold, hours(24), 3), Tier::Cold, "it would be warm again at the next look");
        assert!(TierPolicy { cool_after_h: 1.0, ..policy.clone() }.refuse().is_some());
        assert!(TierPolicy { check_s: 0, ..policy.clone() }.refuse().is_some());
        assert!(policy.refuse().is_none());
    }
}
