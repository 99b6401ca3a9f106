//! Crashes at every named place: the real binary dies by kill -9 where `src/failpoint.rs` says, beside a real PostgreSQL
//! that is written to all the time; after the restart nothing is lost, doubled, copied again or left behind.
//!
//! `RUVECTOR_CRASH_POINT=name@hits@Way` has every round at that place.

mod support;

use ruvector::failpoint::POINTS;
use ruvector::model::Lsn;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use support::soak::{Random, Soak};
use support::writer::{NOTES, Writer, tables};
use support::{DOCS, Database, Service, near, wait_until};

/// How a place is come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Without data: a first copy.
    Fresh,
    /// The slot is gone: a second copy beside the first.
    Again,
    /// The slot is ahead of us: the same, with a slot that is still there.
    Ahead,
    /// A table was out of the publication, and written to meanwhile.
    Unpublished,
    /// A collection is copied again while the stream goes on.
    Rebuild,
    /// A collection is configured no more.
    Fewer,
    /// A start.
    Start,
    /// The stream.
    Follow,
    /// Connections that break again and again.
    Reconnect,
    /// A stop that was asked for.
    Stop,
    /// A snapshot is made while the stream goes on.
    Snapshot,
}
use Way::{Again, Ahead, Fewer, Follow, Fresh, Rebuild, Reconnect, Snapshot, Start, Stop, Unpublished};

/// The ways to each place, and how often it is come to at most until the process dies.
const WAYS: &[(&str, &[(Way, u64)])] = &[
    ("transport.slot_made", &[(Fresh, 1), (Again, 1), (Ahead, 1)]),
    ("transport.stream_started", &[(Start, 1), (Fresh, 1), (Again, 1), (Reconnect, 3)]),
    ("transport.before_leave", &[(Stop, 1)]),
    ("stream.before_status", &[(Follow, 20), (Fresh, 3)]),
    ("stream.status_sent", &[(Follow, 20), (Fresh, 3)]),
    ("stream.batch_received", &[(Follow, 100), (Fresh, 5)]),
    ("stream.batch_queued", &[(Follow, 100), (Fresh, 5)]),
    ("follow.before_cut", &[(Start, 1), (Reconnect, 3)]),
    ("follow.cut", &[(Start, 1), (Reconnect, 3)]),
    ("follow.message_decoded", &[(Follow, 500)]),
    ("follow.frame_taken", &[(Follow, 500)]),
    ("assemble.begun", &[(Follow, 60)]),
    ("assemble.before_chunk", &[(Follow, 60)]),
    ("assemble.chunk_emitted", &[(Follow, 60)]),
    ("assemble.before_commit", &[(Follow, 60), (Again, 5)]),
    ("assemble.commit_emitted", &[(Follow, 60), (Again, 5)]),
    ("changelog.appended", &[(Follow, 300), (Fresh, 5)]),
    ("changelog.before_write", &[(Follow, 60), (Fresh, 3)]),
    ("changelog.written", &[(Follow, 60), (Fresh, 3)]),
    ("changelog.before_sync", &[(Follow, 60), (Fresh, 3)]),
    ("changelog.synced", &[(Follow, 60), (Fresh, 3)]),
    ("changelog.shown", &[(Follow, 60), (Fresh, 3)]),
    ("changelog.before_roll", &[(Follow, 3)]),
    ("changelog.rolled", &[(Follow, 3)]),
    ("changelog.before_cut", &[(Start, 1), (Reconnect, 3)]),
    ("changelog.cut", &[(Start, 1), (Reconnect, 3)]),
    ("changelog.scanned", &[(Start, 1)]),
    ("changelog.tail_cut", &[(Start, 1)]),
    ("changelog.before_remove", &[(Follow, 3)]),
    ("changelog.one_removed", &[(Follow, 3)]),
    ("atomic.written", &[(Fresh, 4), (Again, 4), (Follow, 2)]),
    ("atomic.renamed", &[(Fresh, 4), (Again, 4), (Follow, 2)]),
    ("data_dir.locked", &[(Start, 1), (Fresh, 1)]),
    ("data_dir.emptied", &[(Fresh, 1), (Again, 1)]),
    ("data_dir.epoch_made", &[(Fresh, 1), (Again, 1)]),
    ("data_dir.before_pending", &[(Fresh, 2), (Again, 2), (Ahead, 2)]),
    ("data_dir.pending_changed", &[(Fresh, 2), (Again, 2), (Ahead, 2)]),
    ("data_dir.before_current", &[(Fresh, 1), (Again, 1), (Ahead, 1)]),
    ("data_dir.current_written", &[(Fresh, 1), (Again, 1), (Ahead, 1)]),
    ("data_dir.epoch_removed", &[(Again, 1), (Ahead, 1)]),
    ("originals.created", &[(Fresh, 2), (Again, 2)]),
    ("originals.before_write", &[(Follow, 20), (Fresh, 3)]),
    ("originals.written", &[(Follow, 20), (Fresh, 3)]),
    ("originals.before_sync", &[(Follow, 4), (Fresh, 2)]),
    ("originals.synced", &[(Follow, 4), (Fresh, 2)]),
    ("state.created", &[(Fresh, 1), (Again, 1)]),
    ("state.opened", &[(Start, 1)]),
    ("state.before_commit", &[(Follow, 40), (Fresh, 2)]),
    ("state.committed", &[(Follow, 40), (Fresh, 2)]),
    ("state.before_durable_commit", &[(Follow, 4), (Fresh, 4), (Again, 4)]),
    ("state.durably_committed", &[(Follow, 4), (Fresh, 4), (Again, 4)]),
    ("copy.session_open", &[(Fresh, 2), (Again, 2)]),
    ("publication.changed", &[(Unpublished, 1)]),
    ("copy.begun", &[(Fresh, 2), (Again, 2), (Rebuild, 2)]),
    ("copy.range_begun", &[(Fresh, 2), (Again, 2)]),
    ("copy.batch_appended", &[(Fresh, 3), (Again, 3)]),
    ("copy.range_done", &[(Fresh, 2), (Again, 2)]),
    ("copy.before_end", &[(Fresh, 1), (Again, 1)]),
    ("copy.ended", &[(Fresh, 1), (Again, 1)]),
    ("engine.started", &[(Start, 1), (Fresh, 1), (Again, 2)]),
    ("apply.batch_begun", &[(Follow, 40)]),
    ("apply.change_applied", &[(Follow, 400)]),
    ("apply.before_commit", &[(Follow, 40)]),
    ("apply.committed", &[(Follow, 40)]),
    ("apply.published", &[(Follow, 40)]),
    ("apply.checkpoint_begun", &[(Follow, 4), (Fresh, 2)]),
    ("apply.checkpoint_originals", &[(Follow, 4), (Fresh, 2)]),
    ("apply.checkpoint_committed", &[(Follow, 4), (Fresh, 2)]),
    ("apply.checkpoint_done", &[(Follow, 4), (Fresh, 2)]),
    ("apply.collection_added", &[(Rebuild, 2)]),
    ("apply.collection_removed", &[(Fewer, 1)]),
    ("apply.arrived", &[(Fresh, 2), (Again, 2), (Rebuild, 2)]),
    ("incoming.loaded", &[(Fresh, 2), (Again, 2), (Rebuild, 2)]),
    ("incoming.linked", &[(Fresh, 2), (Again, 2), (Rebuild, 2)]),
    ("incoming.sealed", &[(Fresh, 2), (Again, 2), (Rebuild, 2)]),
    ("incoming.caught_up", &[(Rebuild, 2)]),
    ("apply.copy_live", &[(Fresh, 2), (Again, 2)]),
    ("apply.segment_sealed", &[(Fresh, 2), (Stop, 1)]),
    ("apply.stop_sealed", &[(Stop, 1)]),
    ("collection.moved", &[(Follow, 10)]),
    ("collection.truncated", &[(Follow, 1)]),
    ("index.replaced", &[(Follow, 1)]),
    ("index.retired_removed", &[(Follow, 2)]),
    ("segment.before_save", &[(Fresh, 2), (Follow, 2), (Stop, 1)]),
    ("link.sealed", &[(Follow, 2)]),
    ("merge.built", &[(Follow, 2)]),
    ("merge.saved", &[(Follow, 2)]),
    ("epoch.registered", &[(Fresh, 1), (Again, 1)]),
    ("epoch.defined", &[(Rebuild, 2)]),
    ("epoch.log_made", &[(Fresh, 1), (Again, 1)]),
    ("node.copy_decided", &[(Fresh, 1), (Again, 1), (Ahead, 1)]),
    ("node.copy_started", &[(Fresh, 1), (Again, 1), (Ahead, 1)]),
    ("node.old_stopped", &[(Fresh, 1), (Again, 1), (Ahead, 1)]),
    ("node.promoted", &[(Fresh, 1), (Again, 1), (Ahead, 1)]),
    ("node.slot_dropped", &[(Ahead, 1)]),
    ("node.before_close", &[(Stop, 1)]),
    ("node.closed", &[(Stop, 1)]),
    ("snapshot.begun", &[(Snapshot, 2)]),
    ("snapshot.frozen", &[(Snapshot, 2)]),
    ("snapshot.copied", &[(Snapshot, 2)]),
    ("snapshot.manifest_written", &[(Snapshot, 2)]),
    ("snapshot.named", &[(Snapshot, 2)]),
];

/// Longest wait for the process to come to the place.
const REACH_LIMIT: Duration = Duration::from_secs(20);
const TABLES: [(&str, usize); 2] = [("docs", 384), ("notes", 8)];

/// What one round does.
#[derive(Debug, Clone, Copy)]
struct Plan {
    point: &'static str,
    hits: u64,
    way: Way,
}

impl Plan {
    fn text(&self) -> String {
        format!("RUVECTOR_CRASH_POINT={}@{}@{:?}", self.point, self.hits, self.way)
    }

    /// The one asked for by the environment, if one is.
    fn given() -> Option<Plan> {
        let text = std::env::var("RUVECTOR_CRASH_POINT").ok()?;
        let mut parts = text.split('@');
        let name = parts.next()?;
        let (point, ways) = WAYS.iter().find(|(point, _)| *point == name).unwrap_or_else(|| panic!("no place {name}"));
        let hits = parts.next().map_or(1, |hits| hits.parse().expect("a number"));
        let way = parts.next().map_or(ways[0].0, |way| {
            let all = [Fresh, Again, Ahead, Unpublished, Rebuild, Fewer, Start, Follow, Reconnect, Stop, Snapshot];
            all.into_iter().find(|one| format!("{one:?}") == way).unwrap_or_else(|| panic!("no way {way}"))
        });
        Some(Plan { point, hits, way })
    }

    fn random(point: usize, random: &mut Random) -> Plan {
        let (point, ways) = WAYS[point];
        let (way, most) = *random.pick(ways);
        Plan { point, hits: 1 + random.below(most), way }
    }
}

/// What the rounds share: one database, its writer, one service.
struct Rig {
    writer: Writer,
    service: Service,
    database: Database,
    /// The last round ended well: its data is there and whole.
    whole: bool,
    killed: BTreeMap<&'static str, u64>,
    not_reached: BTreeSet<&'static str>,
    kills: u64,
    again: u64,
    losses: u64,
}

impl Rig {
    fn new(seed: u64) -> Rig {
        let database = Database::shared();
        tables(&database, 1200, 400);
        let mut service = Service::configured(&database, "", "");
        service.set_environment("RUVECTOR_TEST_ROLL_BYTES", Some((64 << 10).to_string()));
        let writer = Writer::start(&database, seed);
        let (killed, not_reached) = (BTreeMap::new(), BTreeSet::new());
        Rig { writer, service, database, whole: false, killed, not_reached, kills: 0, again: 0, losses: 0 }
    }

    fn arm(&mut self, point: Option<(&str, u64)>) {
        let text = point.map(|(point, hits)| format!("{point}@{hits}"));
        self.service.set_environment("RUVECTOR_FAILPOINT", text);
    }

    fn configure(&self, way: Way) {
        // A stop gives files to large growing segments; everything else needs many small ones.
        let rows = if way == Stop { 65_536 } else { 256 };
        let notes = if way == Fewer { "" } else { NOTES };
        let sections = format!("segment_rows = {rows}\n{DOCS}{notes}");
        self.service.configure(&self.database.dsn, "", &sections);
    }

    /// Nothing of it runs, nothing of it is there.
    fn wipe(&mut self) {
        if !self.service.has_ended() {
            self.service.kill();
        }
        let _ = std::fs::remove_dir_all(self.service.data_dir());
        self.drop_slots();
    }

    fn drop_slots(&self) {
        let name = &self.database.name;
        let slots = format!("FROM pg_replication_slots WHERE database = '{name}'");
        wait_until("the slots are dropped", || {
            let dropped = self.database.sql.try_run(&format!("SELECT pg_drop_replication_slot(slot_name) {slots}"));
            dropped.is_ok() && self.database.sql.one(&format!("SELECT count(*) {slots}")) == "0"
        });
    }

    /// The tables keep their size, whatever the writer did to them.
    fn groom(&self, round: u64) {
        let sql = &self.database.sql;
        sql.run_beside_others(
            "INSERT INTO docs SELECT i, 's', repeat('x', 700), vec(i, 384)
               FROM generate_series(1, 1200) i WHERE (SELECT count(*) FROM docs) < 800 ON CONFLICT DO NOTHING;
             INSERT INTO notes SELECT i, 'n', 'body', vec(i, 8)
               FROM generate_series(1, 800) i WHERE (SELECT count(*) FROM notes) < 600 ON CONFLICT DO NOTHING;
             DELETE FROM notes WHERE (SELECT count(*) FROM notes) > 8000 AND hashtext(b || a) % 2 = 0",
        );
        if round.is_multiple_of(10) {
            sql.run("VACUUM docs");
            sql.run("VACUUM notes");
        }
    }

    fn round(&mut self, plan: Plan, number: u64, random: &mut Random) {
        let Plan { point, hits, way } = plan;
        assert!(self.writer.is_alive(), "the writer ended");
        self.groom(number);
        if way == Fresh || !std::mem::take(&mut self.whole) {
            self.wipe();
        }
        if way != Fresh && self.service.has_ended() {
            self.arm(None);
            self.configure(way);
            self.service.start();
            self.service.wait_ready();
        }
        if !self.service.has_ended() {
            if random.below(3) == 0 { self.service.terminate() } else { self.service.kill() }
        }
        match way {
            Again => self.drop_slots(),
            Ahead => {
                let name = &self.database.name;
                let advance = format!(
                    "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn())
                       FROM pg_replication_slots WHERE database = '{name}' AND NOT active"
                );
                self.database.sql.run_beside_others("UPDATE docs SET section = section || 'a' WHERE id < 5");
                wait_until("the slot is advanced", || self.database.sql.text(&advance).is_some());
            }
            Unpublished => {
                let (table, publication) = (random.pick(&TABLES).0, &self.service.slot);
                self.database.sql.run_beside_others(&format!(
                    "ALTER PUBLICATION {publication} DROP TABLE {table};
                     UPDATE {table} SET body = body || '!', embedding = embedding WHERE hashtext(body) % 2 = 0;
                     DELETE FROM {table} WHERE ctid IN (SELECT ctid FROM {table} LIMIT 10)"
                ));
            }
            _ => {}
        }
        let from = self.service.log().len();
        self.configure(way);
        self.arm(Some((point, hits)));
        self.service.start_mortal();
        self.provoke(point, way, random);
        self.take_note(point, from);
        self.arm(None);
        if way == Fewer {
            self.configure(Follow);
        }
        if random.below(4) == 0 {
            self.crash_again(random);
        }
        // Who moves a slot ahead makes the source forget what is not durable anywhere.
        if way == Ahead {
            self.service.start()
        } else {
            self.service.start_checking_confirmed(&self.database)
        }
        self.service.wait_ready();
        if way == Fewer {
            // It is noticed that there is one more again, and that one is copied.
            self.service.wait_for("both answer", |service| {
                TABLES.iter().all(|(table, _)| {
                    service
                        .client()
                        .get(&format!("/v1/collections/{table}"))
                        .is_ok_and(|found| found["state"] == "live")
                })
            });
        }
        self.check(way, from);
        self.whole = true;
    }

    /// Waits until the process is dead, and does what brings it to the place.
    fn provoke(&mut self, point: &str, way: Way, random: &mut Random) {
        let started = Instant::now();
        let mut asked = false;
        while started.elapsed() < REACH_LIMIT && !self.service.has_ended() {
            std::thread::sleep(Duration::from_millis(if way == Follow { 60 } else { 20 }));
            match way {
                Follow => self.database.sql.run_beside_others(&large_transaction(point, random)),
                Rebuild if self.service.try_ready() => {
                    self.database.sql.run_beside_others(&large_transaction(point, random));
                    let path = format!("/v1/admin/collections/{}/rebuild", random.pick(&TABLES).0);
                    // It may die meanwhile.
                    let _ = self.service.client().post(&path, &serde_json::json!({}));
                }
                Snapshot if self.service.try_ready() => {
                    self.database.sql.run_beside_others(&large_transaction(point, random));
                    let to = self.service.data_dir().with_file_name(format!("snapshot-{}", random.below(1 << 40)));
                    // It may die meanwhile.
                    let _ = self.service.client().post("/v1/admin/snapshots", &json!({ "to": to }));
                }
                Reconnect => {
                    std::thread::sleep(Duration::from_millis(random.below(150)));
                    let name = &self.database.name;
                    self.database.sql.run_beside_others(&format!(
                        "INSERT INTO notes SELECT i, 'big', '', vec(i, 8) FROM generate_series(1, 1500) i
                           ON CONFLICT (b, a) DO UPDATE SET body = notes.body || '-';
                         SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
                          WHERE database = '{name}' AND active"
                    ));
                }
                Stop if !asked && self.service.try_ready() => {
                    self.database.sql.run_beside_others(
                        "INSERT INTO notes SELECT i, 'big', '', vec(i, 8) FROM generate_series(1, 1500) i
                           ON CONFLICT (b, a) DO UPDATE SET embedding = vec(notes.a + hashtext(notes.body), 8),
                           body = notes.body || '-'",
                    );
                    // Only what is linked by then gets its file. It may die meanwhile: merged segments are saved at any time.
                    let _paused = self.writer.pause();
                    let waited = Instant::now();
                    while !self.all_is_linked() && waited.elapsed() < Duration::from_secs(10) {
                        if self.service.has_ended() {
                            return;
                        }
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    self.service.ask_to_stop();
                    asked = true;
                }
                _ => {}
            }
        }
    }

    /// Everything committed is applied and linked; false of one that does not answer.
    fn all_is_linked(&self) -> bool {
        let end: Lsn = self.database.sql.one("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN");
        self.database.sql.run("SELECT pg_logical_emit_message(true, 'test', '')");
        let get = |path: &str| self.service.client().get(path).ok();
        let applied = || get("/v1/status")?["positions"]["applied"].as_str()?.parse::<Lsn>().ok();
        let started = Instant::now();
        while applied().is_none_or(|applied| applied < end) {
            if started.elapsed() > Duration::from_secs(5) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let vectors = get("/v1/collections/notes").and_then(|notes| notes["vectors"].as_array().cloned());
        vectors.is_some_and(|indexes| indexes.iter().all(|index| index["linked"] == index["nodes"]))
    }

    fn take_note(&mut self, point: &'static str, from: usize) {
        let died = self.service.has_ended();
        if self.service.log()[from..].contains(&format!("failpoint {point} kills")) {
            *self.killed.entry(point).or_default() += 1;
            self.kills += 1;
        } else {
            let clean = self.service.log()[from..].contains("stopping");
            assert!(!died || clean, "it ended by itself:\n{}", self.service.log_tail());
            println!("not reached: {point}");
            self.not_reached.insert(point);
            if !died {
                self.service.kill();
            }
        }
    }

    /// The restart dies too, somewhere.
    fn crash_again(&mut self, random: &mut Random) {
        let starts: Vec<_> = WAYS.iter().filter(|(_, ways)| ways.iter().any(|(way, _)| *way == Start)).collect();
        let point = random.pick(&starts).0;
        self.arm(Some((point, 1)));
        self.service.start_mortal();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(2) && !self.service.has_ended() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !self.service.has_ended() {
            self.service.kill();
        }
        self.again += 1;
        self.arm(None);
    }

    /// Nothing is lost, doubled, unfindable, copied again without need or left behind.
    fn check(&mut self, way: Way, from: usize) {
        let paused = self.writer.pause();
        self.service.catch_up(&self.database.sql);
        if way == Unpublished {
            // Nothing in the stream tells what was missed: it is compared.
            self.service.wait_for("what was missed is read again", |service| {
                TABLES.iter().all(|(table, _)| service.verify(table)["mismatch_count"] == 0)
            });
        }
        let mut wrong = Vec::new();
        for (table, dimensions) in TABLES {
            let report = self.service.verify(table);
            if report["mismatch_count"] != 0 || report["source_checksum"] != report["index_checksum"] {
                wrong.push(format!("{table}: {report}"));
            }
            let good = format!("SELECT count(*) FROM {table} WHERE array_length(embedding, 1) = {dimensions}");
            let good: usize = self.database.sql.one(&good).parse().expect("a count");
            let answer = self.service.search(table, &near(7, dimensions, 10_000));
            let found = support::ids(&answer).iter().map(ToString::to_string).collect::<BTreeSet<_>>().len();
            if found != good.min(10_000) {
                wrong.push(format!("{table}: searches find {found} of {good} rows"));
            }
        }
        drop(paused);
        if !wrong.is_empty() {
            self.losses += 1;
            panic!("{}\n{}", wrong.join("\n"), self.service.log()[from..].to_owned());
        }
        let sql = format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{}'", self.database.name);
        wait_until("one slot is left", || self.database.sql.one(&sql) == "1");
        wait_until("one epoch is left", || self.left().len() == 1);
        let log = &self.service.log()[from..];
        let copied = ["the copy is whole", "copying everything again"].iter().any(|text| log.contains(text));
        assert!(!copied || matches!(way, Fresh | Again | Ahead), "it copied without need:\n{log}");
        for bad in [" ERROR ", "damaged", "were in no segment", "panicked"] {
            assert!(!log.contains(bad), "{bad:?} is in the log:\n{log}");
        }
    }

    /// Epochs and unfinished business in the data directory.
    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.service.data_dir()).expect("it has data");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("plain"));
        names.filter(|name| name.starts_with("epoch-") || name == "PENDING").collect()
    }
}

/// One that brings the engine to its rarer places.
fn large_transaction(point: &str, random: &mut Random) -> String {
    let (at, seed) = (random.below(1000), random.below(1 << 40));
    let truncates = ["collection.truncated", "index.retired_removed"].contains(&point);
    match random.below(6) {
        0 => format!("UPDATE docs SET embedding = vec(id + {seed}, 384) WHERE id BETWEEN {at} AND {at} + 60"),
        1 => format!(
            "INSERT INTO notes SELECT i, 'big', '', vec(i, 8) FROM generate_series({at}, {at} + 1200) i
               ON CONFLICT (b, a) DO UPDATE SET body = notes.body || '-'"
        ),
        2 => format!("UPDATE notes SET embedding = vec(a + {seed}, 8) WHERE a BETWEEN {at} AND {at} + 500"),
        3 => format!("UPDATE notes SET b = '{seed}' || b WHERE a BETWEEN {at} AND {at} + 20 AND length(b) < 100"),
        4 => format!(
            "BEGIN; UPDATE docs SET section = 'rolled' WHERE id > {at}; SAVEPOINT s; UPDATE docs SET section = 'back';
             ROLLBACK TO s; UPDATE docs SET body = repeat('q', 702) WHERE id BETWEEN {at} AND {at} + 100; COMMIT"
        ),
        _ if truncates => format!(
            "BEGIN; INSERT INTO docs VALUES (-1, 't', 't', NULL) ON CONFLICT DO NOTHING; TRUNCATE docs;
             INSERT INTO docs SELECT i, 't', repeat('t', 700), vec(i + {seed}, 384) FROM generate_series(1, 300) i; COMMIT"
        ),
        _ => "SELECT 1".into(),
    }
}

/// The places in a random order.
fn shuffled(random: &mut Random) -> Vec<usize> {
    let mut order: Vec<_> = (0..WAYS.len()).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, random.below(at as u64 + 1) as usize);
    }
    order
}

#[test]
fn every_place_has_a_way_to_it() {
    let (named, known): (Vec<_>, BTreeSet<_>) = (WAYS.iter().map(|(name, _)| *name).collect(), POINTS.into());
    assert_eq!(named.iter().copied().collect::<BTreeSet<_>>(), known);
    assert_eq!(named.len(), POINTS.len(), "none stands twice");
    assert!(WAYS.iter().all(|(_, ways)| !ways.is_empty() && ways.iter().all(|(_, most)| *most > 0)));
}

#[test]
fn killed_at_any_place_it_loses_and_doubles_nothing() {
    let mut soak = Soak::new("crash", 8);
    let mut rig: Option<Rig> = None;
    let mut order = Vec::new();
    while let Some(seed) = soak.next_round() {
        let mut random = Random(seed);
        let rig = rig.get_or_insert_with(|| Rig::new(seed));
        if order.is_empty() {
            order = shuffled(&mut random);
        }
        let next = order.pop().expect("filled above");
        let plan = Plan::given().unwrap_or_else(|| Plan::random(next, &mut random));
        let (number, started) = (soak.round(), Instant::now());
        soak.run(seed, &plan.text(), || rig.round(plan, number, &mut random));
        println!("round {number}: {} in {:.1} s", plan.text(), started.elapsed().as_secs_f64());
    }
    if let Some(mut rig) = rig {
        let never: Vec<_> = rig.not_reached.iter().filter(|point| !rig.killed.contains_key(**point)).collect();
        soak.fact("points", POINTS.len());
        soak.fact("points_killed_at", rig.killed.len());
        soak.fact("killed", rig.kills);
        soak.fact("killed_at_restart", rig.again);
        soak.fact("not_reached", json!(never));
        soak.fact("losses", rig.losses);
        soak.fact("transactions", rig.writer.count());
        if !rig.service.has_ended() {
            rig.service.kill();
        }
    }
    soak.finish();
}
