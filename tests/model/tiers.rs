//! Rows that move between tiers by their use, and none that is lost, doubled or compared wrongly on the way.

use crate::compare::{candidates, nearest, service};
use crate::epoch::Epoch;
use crate::random::Random;
use crate::stream::{COPIED_AT, Stream};
use ruvector::engine::Options;
use ruvector::engine::candidates::Method;
use ruvector::engine::segment::Segment;
use ruvector::engine::tiers::{Clock, report};
use ruvector::engine::view::IndexView;
use ruvector::model::{CollectionDef, Exactness, Metric, RowKey, SearchBy, SearchRequest, Shape, TierPolicy, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Quick ones, for every collection of the stream.
pub fn policies(random: &mut Random) -> BTreeMap<String, TierPolicy> {
    let names = Stream::new(1).1.into_iter().map(|(def, _)| def.name);
    let policy = |_: &str| TierPolicy {
        least_rows: random.between(1, 30) as usize,
        residence_h: *random.pick(&[0.0, 30.0]),
        promote_hits: random.between(1, 3) as u8,
        check_s: 1,
        ..TierPolicy::default()
    };
    let mut policy = policy;
    names.map(|name| (name.clone(), policy(&name))).collect()
}

/// Has a segment a tier?
pub fn is_tiered(index: &IndexView) -> bool {
    index.segments.iter().any(|segment| segment.keeping().tier.is_some())
}

/// Have all sealed segments a tier, or none?
pub fn are_tiered(index: &IndexView, wanted: bool) -> bool {
    let alive = |segment: &Segment| (0..segment.graph.len()).any(|slot| index.row(segment.node(slot)).is_some());
    let sealed = index.segments.iter().filter(|segment| segment.is_saved() && alive(segment));
    sealed.into_iter().all(|segment| segment.keeping().tier.is_some() == wanted)
}

const ROWS: i64 = 2_000;
const DAY: u32 = 24 * 60;

/// Looked at when asked only.
fn policy(residence_h: f64) -> TierPolicy {
    TierPolicy { least_rows: 50, residence_h, check_s: 3_600, ..TierPolicy::default() }
}

struct Tiered {
    epoch: Epoch,
    def: CollectionDef,
}

impl Tiered {
    fn index(&self) -> Arc<IndexView> {
        self.epoch.engine.view().collections[&self.def.name].indexes[0].clone()
    }

    /// Waits until so many rows are in each tier, and every row is found once.
    fn wait(&self, wanted: &[(&str, u64)]) {
        let tiers = |index: &IndexView| -> Vec<_> { report(index).iter().map(|one| (one.tier, one.vectors)).collect() };
        let mut last = Vec::new();
        let started = std::time::Instant::now();
        while last != wanted {
            assert!(started.elapsed().as_secs() < 240, "not in time: tiers are {last:?}, not {wanted:?}");
            assert_eq!(self.epoch.failure(), None);
            self.epoch.engine.look_at_tiers();
            std::thread::sleep(std::time::Duration::from_millis(5));
            last = tiers(&self.index());
        }
        let index = self.index();
        for method in [Method::Exact, Method::Scan, Method::Walk { ef: 100 }] {
            let found = candidates(&index, &[0.1; 64], None, method, 10_000).expect("rows can be read");
            let keys: BTreeSet<_> = found.iter().map(|(key, _)| key).collect();
            assert_eq!((found.len(), keys.len()), (ROWS as usize, ROWS as usize), "{method:?} {wanted:?}");
            assert!(method != Method::Exact || found.is_sorted_by(|a, b| a.1 <= b.1));
        }
    }

    /// Lets this happen while no look moves anything: rows used before and after one would part.
    fn at_rest<T>(&self, happening: impl FnOnce() -> T) -> T {
        let set = |residence_h| {
            self.epoch.engine.set_tiers(BTreeMap::from([(self.def.name.clone(), policy(residence_h))]));
        };
        set(1e6);
        // A look that has begun ends as it began.
        std::thread::sleep(std::time::Duration::from_secs(1));
        let happened = happening();
        set(0.0);
        happened
    }

    fn search(&self, key: i64, exactness: Exactness) -> Vec<(RowKey, f64)> {
        // As `fill` makes them.
        let mut random = Random::new(1);
        (0..key).for_each(|_| drop(random.vector(64)));
        let by = SearchBy::Vector(random.vector(64).into());
        let request = nearest(&self.def, &self.def.vectors[0].name, by);
        let shape = Shape { exactness, ..Shape::default() };
        // These have no neighbourhoods: only a wide walk finds the one row.
        let request = SearchRequest { limit: 1, ef: Some(1_000), columns: Vec::new(), shape, ..request };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let answer = runtime.block_on(service(&self.epoch).search(&request)).expect("an answer");
        assert_eq!(answer.stats.exactness, exactness);
        answer.hits.into_iter().map(|hit| (hit.key, hit.distance)).collect()
    }
}

#[test]
fn rows_move_between_tiers_by_their_use() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut def = Stream::new(1).1[1].0.clone();
    (def.vectors[0].metric, def.vectors[0].ef_construction) = (Metric::L2, 40);
    let policies = BTreeMap::from([(def.name.clone(), policy(0.0))]);
    let clock = Clock::default();
    let options = Options {
        segment_rows: ROWS as usize,
        build_threads: 1,
        seal_rows_on_stop: 1,
        tiers: policies.clone(),
        clock: clock.clone(),
    };
    let mut epoch = Epoch::create(dir.path(), vec![(def.clone(), Vec::new())], COPIED_AT, options.clone());
    crate::fill(&mut epoch, &def, ROWS);
    let mut tiered = Tiered { epoch, def };
    tiered.wait(&[("hot", 2_000)]);
    assert!(tiered.index().segments.iter().all(|segment| segment.graph.holds_rows()), "hot rows are in memory");

    // Three hundred rows are in use a day later.
    tiered.at_rest(|| {
        clock.advance(DAY + 60);
        for key in 0..300 {
            for exactness in [Exactness::Fast, Exactness::Balanced, Exactness::Exact] {
                let found = tiered.search(key, exactness);
                assert_eq!(found[0].0, RowKey::encode(&[Value::Int(key)]).expect("a key"), "{exactness:?}: {found:?}");
                assert!(
                    found[0].1 < 0.5 && (exactness == Exactness::Fast || found[0].1 == 0.0),
                    "{exactness:?}: {found:?}"
                );
            }
        }
    });
    tiered.wait(&[("hot", 300), ("warm", 1_700)]);
    let hot = tiered.index().segments.iter().filter(|segment| segment.graph.holds_rows()).count();
    assert_eq!(hot, 1, "the others are read from disk");

    // What nobody uses for a week is cool, and one segment when somebody asks for it.
    clock.advance(8 * DAY);
    tiered.wait(&[("cool", 2_000)]);
    assert_eq!(tiered.index().segments.len(), 2);
    let id = tiered.def.id;
    tiered.epoch.engine.compact(&tiered.epoch.engine.view().collections[&tiered.def.name]);
    tiered.epoch.wait_until("one segment", |epoch| !epoch.engine.is_compacting(id));
    assert_eq!(tiered.index().segments.len(), 1);

    // Some are wanted again.
    let view = tiered.epoch.engine.view();
    tiered.at_rest(|| {
        for key in 0..250 {
            let key = RowKey::encode(&[Value::Int(key)]).expect("a key");
            assert!(tiered.epoch.engine.promote(&view.collections[&tiered.def.name], &key).expect("readable"));
        }
    });
    tiered.wait(&[("hot", 250), ("cool", 1_750)]);
    let ages = |tiered: &Tiered| -> Vec<_> {
        report(&tiered.index()).iter().map(|one| one.mean_age_h.map(|hours| hours as u64)).collect()
    };
    // Seventeen hundred are a day and an hour older than the others.
    assert_eq!(ages(&tiered), [Some(0), Some(216)]);

    // Through a restart rows keep their place and their age.
    tiered.epoch.engine.stop();
    let def = tiered.def.clone();
    drop(tiered);
    clock.advance(23 * DAY);
    let again = Options { clock: clock.clone(), ..options.clone() };
    tiered = Tiered { epoch: Epoch::open(dir.path(), again), def };
    tiered.wait(&[("cool", 250), ("cold", 1_750)]);
    assert_eq!(ages(&tiered), [Some(23 * 24), Some(23 * 24 + 216)]);

    // And without tiers all are kept alike again.
    tiered.epoch.engine.set_tiers(BTreeMap::new());
    tiered.wait(&[("none", 2_000)]);
    assert_eq!(tiered.search(7, Exactness::Balanced)[0].1, 0.0);
}
