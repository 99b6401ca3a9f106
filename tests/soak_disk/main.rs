//! The storage and the engine on a disk that fails in every way: after each fault and a new start, everything is as it
//! was after some whole transaction, none that was confirmed is missing, or the damage is told.

#[path = "../model/compare.rs"]
#[allow(dead_code, reason = "another suite asks for merges")]
mod compare;
#[allow(dead_code, reason = "used by another suite too")]
mod disk;
#[path = "../epoch/mod.rs"]
mod epoch;
#[path = "../model/random.rs"]
mod random;
#[path = "../support/soak.rs"]
#[allow(dead_code, reason = "another suite's numbers")]
mod soak;
#[path = "../model/stream.rs"]
mod stream;
#[path = "../model/twin.rs"]
mod twin;

use compare::{Recall, compare_answers, compare_rows, compare_view};
use disk::{Disk, End, FAULTS, Fault, Image};
use epoch::{Epoch, Failure};
use random::Random;
use ruvector::engine::Options;
use ruvector::model::{CollectionDef, CommitLsn, LogRecord, Lsn, RowImage, TransactionHead};
use ruvector::replication::start::{Checkpoint, Decision, SlotFacts, SourceFacts, decide};
use ruvector::storage::changelog::ChangeLog;
use ruvector::storage::data_dir::{Current, DataDir, EpochId, Pending};
use ruvector::storage::files::{self, Mounted};
use ruvector::storage::{self, StorageError};
use std::collections::BTreeMap;
use std::time::Duration;
use stream::{COPIED_AT, Stream};
use twin::{Step, Twin};

const ROUNDS: u64 = 24;
/// Flips that each find the same disk, in a round of flips.
const SWEEP: usize = 10;
/// The slot of every epoch here.
const SLOT: &str = "ruvector";

/// What came of the faults.
#[derive(Default)]
struct Tally {
    /// Faults that happened, by kind; flips by the kind of the file.
    happened: BTreeMap<String, u64>,
    /// A fault was met by an error that the service tells and ends with.
    failures_told: u64,
    /// After a new start everything was as after some whole transaction, and nothing confirmed was missing.
    prefix_ok: u64,
    /// The new start found damage: everything is copied again.
    damage_reported: u64,
    /// The epoch was not whole yet: it is made again.
    made_again: u64,
    flips: u64,
    flips_detected: u64,
    panics: u64,
    rounds_done: u64,
}

/// A data directory on a disk of ours. The lock alone is a real file.
struct Place {
    root: tempfile::TempDir,
    disk: Disk,
    _mounted: Mounted,
}

impl Place {
    fn new(image: Image, random: &mut Random) -> Place {
        let root = tempfile::tempdir().expect("a folder");
        let disk = Disk::new(root.path(), image, random.next());
        let mounted = files::mount(root.path(), disk.handle());
        Place { root, disk, _mounted: mounted }
    }
}

fn options(random: &mut Random) -> Options {
    Options {
        segment_rows: random.between(16, 64) as usize,
        build_threads: 1,
        seal_rows_on_stop: *random.pick(&[1, 50, 1_000]),
        ..Options::default()
    }
}

type Copied = Vec<(CollectionDef, Vec<RowImage>)>;

/// As the supervisor makes an epoch.
fn make(data: &DataDir, copied: Copied, random: &mut Random) -> Result<Epoch, Failure> {
    let id = EpochId(1);
    data.set_pending(Some(&Pending { epoch: id, slot: SLOT.into(), old_slot: None }))?;
    let dir = data.prepare_epoch(id)?;
    let epoch = Epoch::try_create(&dir, copied, COPIED_AT, options(random))?;
    data.make_current(id, SLOT)?;
    data.set_pending(None)?;
    data.remove_other_epochs(id)?;
    Ok(epoch)
}

/// As the supervisor opens what there is.
fn open(data: &DataDir, random: &mut Random) -> Result<Option<Epoch>, Failure> {
    if let Some(pending) = data.pending()? {
        assert_eq!((pending.epoch, &*pending.slot), (EpochId(1), SLOT), "what is pending is what was written");
    }
    let Some(current) = data.current()? else { return Ok(None) };
    assert_eq!(current, Current { epoch: EpochId(1), slot: SLOT.into() }, "what is current is what was written");
    Epoch::try_open(&data.epoch_dir(current.epoch), options(random)).map(Some)
}

/// One disk through several faults and new starts.
struct Trial<'t> {
    fault: Fault,
    random: Random,
    stream: Stream,
    base: Twin,
    /// All that the source has sent so far, and how much of it is in the log.
    steps: Vec<Step>,
    sent: usize,
    /// What the source was told to be durable.
    confirmed: Lsn,
    /// A bit was flipped and not found yet; or what the disk forgot may still be missed.
    tainted: bool,
    tally: &'t mut Tally,
}

impl Trial<'_> {
    fn twin_at(&self, position: Lsn) -> Twin {
        let mut twin = self.base.clone();
        for step in self.steps.iter().take_while(|step| step.end <= position) {
            twin.apply(step);
        }
        assert_eq!(twin.position, position, "the end of a transaction");
        twin
    }

    fn after(&mut self) -> u64 {
        let magnitude = self.random.below(10);
        self.random.below(1 << magnitude)
    }

    fn round(mut self, copied: Copied) {
        let mut place = Place::new(Image::default(), &mut self.random);
        if self.random.once_in(6) {
            let after = self.after();
            place.disk.arm(self.fault, after);
        }
        let data = DataDir::open(place.root.path());
        let mut epoch = match data.map_err(Failure::from).and_then(|data| make(&data, copied, &mut self.random)) {
            Ok(epoch) => Some(epoch),
            Err(failure) => {
                self.told(&place, failure);
                None
            }
        };
        for _ in 0..self.random.between(1, 3) {
            if let Some(epoch) = &mut epoch {
                // Flips at rest are many: see `sweep`.
                let at_work = self.fault != Fault::Flip || self.random.once_in(3);
                if at_work && place.disk.happened().is_none() {
                    let after = self.after();
                    place.disk.arm(self.fault, after);
                }
                self.drive(epoch, &place);
            }
            let image = self.end(epoch.take(), &place);
            if self.fault == Fault::Flip && !self.tainted {
                self.sweep(&image);
            }
            let before = place;
            place = Place::new(image, &mut self.random);
            drop(before);
            match self.start(&place) {
                Some(next) => epoch = Some(next),
                None => return,
            }
        }
        // Nothing goes wrong any more, and the source sends what is left.
        let mut epoch = epoch.expect("started last");
        self.drive(&mut epoch, &place);
        self.check(&epoch);
    }

    /// An error that ends the service. A disk that fails is not damage: copying again would not help.
    fn told(&mut self, place: &Place, failure: Failure) {
        self.tally.failures_told += 1;
        let happened = place.disk.happened();
        match failure {
            Failure::Engine(why) => {
                self.tally.panics += u64::from(why.contains("panicked"));
                assert!(!why.contains("panicked"), "{why}");
                assert!(happened.is_some() || self.tainted, "the engine failed by itself: {why}");
            }
            Failure::Storage(error) => {
                assert!(happened.is_some() || self.tainted, "failed by itself: {error}");
                let flipped = self.tainted || self.fault == Fault::Flip;
                assert!(!error.is_damage() || flipped, "{:?} was taken for damage: {error}", self.fault);
            }
        }
    }

    /// Transactions come in until something fails or it was enough.
    fn drive(&mut self, epoch: &mut Epoch, place: &Place) {
        let mut log = epoch.log.take().expect("given back");
        log.set_roll_bytes(self.random.between(2_000, 60_000));
        let steps = self.random.between(20, 220);
        for _ in 0..steps {
            if self.sent == self.steps.len() {
                self.steps.push(self.stream.next_step());
            }
            let step = &self.steps[self.sent];
            self.sent += 1;
            let mut done = step.records.iter().try_for_each(|record| log.append(record));
            if done.is_ok() && self.random.once_in(6) {
                done = log.sync();
            }
            self.confirmed = self.confirmed.max(log.durable());
            if let Err(error) = done {
                self.told(place, error.into());
                break;
            }
            if self.random.once_in(30) {
                std::thread::sleep(Duration::from_millis(self.random.below(20)));
            }
            if epoch.failure().is_some() {
                break;
            }
            if self.random.once_in(25) {
                let view = epoch.engine.view();
                let shown = compare_view(&view, &self.twin_at(view.applied), &mut self.random, &mut Recall::default());
                if let Err(error) = shown {
                    self.told(place, error.into());
                    break;
                }
            }
        }
        if self.random.once_in(4) {
            // Long enough for a merge and a checkpoint by the clock.
            std::thread::sleep(Duration::from_millis(*self.random.pick(&[100, 600, 1_100])));
        }
        if let Some(why) = epoch.failure() {
            self.told(place, Failure::Engine(why));
        }
        // Whatever has failed: what can be read goes on answering.
        let view = epoch.engine.view();
        let shown = compare_view(&view, &self.twin_at(view.applied), &mut self.random, &mut Recall::default());
        if let Err(error) = shown {
            self.told(place, error.into());
        }
        // After an error in vain; what a stubborn caller is told to be durable counts all the same.
        if place.disk.happened().is_some() || self.random.once_in(2) {
            let _ = log.sync();
            self.confirmed = self.confirmed.max(log.durable());
        }
        epoch.log = Some(log);
    }

    /// The process ends in one of several ways; what the next one finds.
    fn end(&mut self, epoch: Option<Epoch>, place: &Place) -> Image {
        let end = if self.random.once_in(2) || self.fault == Fault::Power { End::PowerLoss } else { End::Restart };
        let killed = self.random.once_in(2).then(|| place.disk.after(end));
        if let Some(epoch) = epoch {
            epoch.engine.stop();
        }
        let image = killed.unwrap_or_else(|| place.disk.after(end));
        if let Some(what) = place.disk.disarm() {
            *self.tally.happened.entry(self.fault_name(&what)).or_default() += 1;
            self.tainted |= matches!(self.fault, Fault::Flip | Fault::Sync);
            self.tally.flips += u64::from(self.fault == Fault::Flip);
        } else if self.fault == Fault::Power {
            *self.tally.happened.entry("Power".into()).or_default() += 1;
        }
        image
    }

    /// Many single flips at rest, each followed by a start of its own.
    fn sweep(&mut self, image: &Image) {
        let sent = self.sent;
        for _ in 0..SWEEP {
            let place = Place::new(image.clone(), &mut self.random);
            let pending = Pending { epoch: EpochId(1), slot: SLOT.into(), old_slot: None };
            let data = DataDir::open(place.root.path()).expect("a healthy disk");
            data.set_pending(Some(&pending)).expect("a healthy disk");
            drop(data);
            let file = place.disk.flip().expect("there are files");
            *self.tally.happened.entry(self.fault_name(&file)).or_default() += 1;
            self.tally.flips += 1;
            self.tainted = true;
            drop(self.start(&place));
        }
        (self.sent, self.tainted) = (sent, false);
    }

    fn fault_name(&self, what: &str) -> String {
        if self.fault == Fault::Flip { format!("Flip in {what}") } else { what.to_owned() }
    }

    /// A new start on a healthy disk; `None` when everything is copied again.
    fn start(&mut self, place: &Place) -> Option<Epoch> {
        let data = DataDir::open(place.root.path()).expect("a healthy disk");
        let opened = open(&data, &mut self.random);
        let epoch = match opened {
            Ok(Some(epoch)) => epoch,
            Ok(None) => {
                assert_eq!(self.confirmed, Lsn::ZERO, "an epoch that was current is gone");
                self.tally.made_again += 1;
                return None;
            }
            Err(failure) => return self.damage(failure),
        };
        let durable = epoch.durable();
        let source = SourceFacts {
            system_id: "7".into(),
            timeline: 1,
            forked_at: None,
            current: self.steps.last().map_or(COPIED_AT, |step| step.end).max(durable),
            slot: Some(SlotFacts { name: SLOT.into(), usable: true, confirmed: self.confirmed }),
        };
        let ours = Checkpoint { system_id: "7".into(), timeline: 1, durable };
        match decide(Some(&ours), &source) {
            Decision::Stream { from } => assert_eq!(from, durable),
            // A flip cut the log short. Nothing else may lose what was confirmed.
            Decision::Resync { reason, .. } if self.fault == Fault::Flip => {
                return self.damage(Failure::Engine(reason));
            }
            other => panic!("decided {other:?}"),
        }
        assert!(durable >= self.confirmed, "{durable} is less than what was confirmed, {}", self.confirmed);
        // As soon as it follows again the service confirms what it found, and the source sends what is not in the log.
        self.confirmed = self.confirmed.max(durable);
        self.sent = self.steps.iter().take_while(|step| step.end <= durable).count();
        let applied = epoch.try_wait_until("the log is applied", |epoch| epoch.engine.view().applied >= durable);
        if let Err(failure) = applied {
            return self.damage(failure);
        }
        self.check(&epoch).then_some(epoch)
    }

    /// Everything there is to compare, right or told to be damaged.
    fn check(&mut self, epoch: &Epoch) -> bool {
        let durable = epoch.durable();
        if let Err(failure) = epoch.try_wait_until("all is applied", |epoch| epoch.engine.view().applied >= durable) {
            self.damage(failure);
            return false;
        }
        let view = epoch.engine.view();
        let twin = self.twin_at(view.applied);
        let mut recall = Recall::default();
        let read: storage::Result<()> = compare_view(&view, &twin, &mut self.random, &mut recall)
            .and_then(|()| compare_rows(epoch, &twin))
            .and_then(|()| compare_answers(epoch, &twin, &mut self.random));
        if let Err(error) = read {
            self.damage(error.into());
            return false;
        }
        self.tally.prefix_ok += 1;
        true
    }

    /// Damage is told, and only where there was some.
    fn damage(&mut self, failure: Failure) -> Option<Epoch> {
        let why = match &failure {
            Failure::Engine(why) => why.clone(),
            Failure::Storage(error) => {
                let known = matches!(error, StorageError::Damaged { .. } | StorageError::Format { .. });
                assert!(known || error.is_damage(), "not told as damage: {error}");
                error.to_string()
            }
        };
        assert!(!why.contains("panicked"), "{why}");
        assert!(self.tainted, "damage after {:?}: {why}", self.fault);
        self.tally.damage_reported += 1;
        self.tally.flips_detected += u64::from(self.fault == Fault::Flip);
        None
    }
}

#[test]
fn a_disk_that_fails_leaves_whole_transactions_or_a_told_damage() {
    // Codes for small segments too, so that searches read vectors from the disk.
    // SAFETY: nothing reads the environment by other means than Rust's.
    unsafe { std::env::set_var("RUVECTOR_TEST_TRAIN_ROWS", "16") };
    let mut soak = soak::Soak::new("disk", ROUNDS);
    let mut tally = Tally::default();
    while let Some(seed) = soak.next_round() {
        let fault = FAULTS[(seed % FAULTS.len() as u64) as usize];
        soak.run(seed, &format!("{fault:?}"), || {
            let (stream, copied) = Stream::new(seed);
            let trial = Trial {
                fault,
                random: Random::new(seed ^ 0xd15c),
                base: stream.head.clone(),
                stream,
                steps: Vec::new(),
                sent: 0,
                confirmed: Lsn::ZERO,
                tainted: false,
                tally: &mut tally,
            };
            trial.round(copied);
            tally.rounds_done += 1;
        });
    }
    let wrong = soak.round() - tally.rounds_done;
    soak.fact("faults", serde_json::to_value(&tally.happened).expect("plain data"));
    for (name, count) in [
        ("prefix_ok", tally.prefix_ok),
        ("damage_reported", tally.damage_reported),
        ("failures_told", tally.failures_told),
        ("made_again", tally.made_again),
        ("flips", tally.flips),
        ("flips_detected", tally.flips_detected),
        ("panics", tally.panics),
        ("wrong", wrong),
    ] {
        soak.fact(name, count);
    }
    soak.finish();
}

/// One transaction, ending at `end`.
fn transaction(end: u64) -> [LogRecord; 2] {
    let head = TransactionHead { commit: CommitLsn(end - 1), commit_time: 0 };
    [LogRecord::Begin(head), LogRecord::Commit { end: Lsn(end) }]
}

/// A log whose second sync, or the sync of the directory after it, fails; opened by the next process, which is told to be
/// durable what it finds, and lost power; what is found then.
fn log_after_a_failed_sync(seed: u64, syncs_before: u64, roll_bytes: u64) -> (Lsn, Lsn) {
    let mut random = Random::new(seed);
    let first = Place::new(Image::default(), &mut random);
    let dir = |place: &Place| place.root.path().join("log");
    let mut log = ChangeLog::create(&dir(&first), Lsn(1)).expect("a healthy disk");
    first.disk.sync_all();
    log.set_roll_bytes(roll_bytes);
    transaction(10).iter().for_each(|record| log.append(record).expect("append"));
    first.disk.arm(Fault::Sync, syncs_before);
    assert!(log.sync().is_err());
    assert!(log.append(&transaction(20)[0]).is_err() && log.sync().is_err(), "a log that failed takes nothing more");
    let second = Place::new(first.disk.after(End::Restart), &mut random);
    let mut log = ChangeLog::open(&dir(&second)).expect("a healthy disk");
    transaction(30).iter().for_each(|record| log.append(record).expect("append"));
    log.sync().expect("a healthy disk");
    let durable = log.durable();
    let third = Place::new(second.disk.after(End::PowerLoss), &mut random);
    (durable, ChangeLog::open(&dir(&third)).expect("a healthy disk").durable())
}

#[test]
fn what_a_log_finds_after_a_failed_sync_is_written_again() {
    for seed in 0..60 {
        let (durable, found) = log_after_a_failed_sync(seed, 0, 1 << 20);
        assert_eq!(found, durable, "seed {seed}");
    }
}

#[test]
fn a_new_log_file_whose_name_was_not_synced_is_synced_by_the_next_process() {
    for seed in 0..60 {
        // The log's data, the new file, and then its directory.
        let (durable, found) = log_after_a_failed_sync(seed, 2, 33);
        assert_eq!(found, durable, "seed {seed}");
    }
}
