//! The same story beside every supported major of PostgreSQL: copy, stream, crash, lost slots, with `verify` after each
//! step. Servers that are not installed come from npm (`scripts/lib/postgres_majors.sh`). `RUVECTOR_TEST_MAJORS=15,17`
//! names those to run; one that was not left out and cannot be had is a failure.

mod support;

use ruvector::cli::private_postgres::{PrivatePostgres, Settings, Stop};
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use support::majors::{binaries, is_wanted};
use support::{DOCS, Database, Service, Sql, ids, near, wait_until};

/// Beside [`DOCS`]: a partitioned table and one that is emptied.
const OTHERS: &str = "[[collections]]
table = \"public.parts\"
name = \"parts\"
[[collections.vectors]]
column = \"embedding\"
metric = \"cosine\"
m = 8
ef_construction = 40
[[collections]]
table = \"public.notes\"
name = \"notes\"
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
m = 4
ef_construction = 20
";

#[test]
fn the_whole_story_on_postgresql_14() {
    story(14);
}

#[test]
fn the_whole_story_on_postgresql_15() {
    story(15);
}

#[test]
fn the_whole_story_on_postgresql_16() {
    story(16);
}

#[test]
fn the_whole_story_on_postgresql_17() {
    story(17);
}

#[test]
fn the_whole_story_on_postgresql_18() {
    story(18);
}

/// A standby of this primary, which keeps its slots in step.
fn standby_of(primary: &mut PrivatePostgres, database: &str, bin_dir: PathBuf) -> PrivatePostgres {
    let mut standby = support::cluster(Settings { bin_dir: Some(bin_dir), ..Settings::default() });
    standby.stop(Stop::Fast).expect("it stops");
    primary.stop(Stop::Fast).expect("it stops");
    let (from, to) = (primary.data_dir(), standby.data_dir());
    let copy = format!("rm -rf {1} && cp -a {0} {1} && touch {1}/standby.signal", from.display(), to.display());
    assert!(Command::new("sh").args(["-c", &copy]).status().expect("sh runs").success());
    primary.start_again().expect("it starts again");
    let sockets = standby.root_dir().to_string_lossy().into_owned();
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname={database}", primary.port());
    for (name, value) in [
        ("unix_socket_directories", sockets.as_str()),
        ("primary_conninfo", &conninfo),
        ("primary_slot_name", "standby"),
        ("sync_replication_slots", "on"),
        ("hot_standby_feedback", "on"),
        ("synchronized_standby_slots", ""),
    ] {
        standby.set(name, value).expect("writable");
    }
    standby.start_again().expect("the standby starts");
    standby
}

#[test]
fn a_slot_kept_in_step_on_a_standby_of_17_survives_its_promotion_without_a_copy() {
    if !is_wanted(17) {
        println!("PostgreSQL 17 is not in RUVECTOR_TEST_MAJORS");
        return;
    }
    let bin_dir = binaries(17);
    let settings = Settings { bin_dir: Some(bin_dir.clone()), ..Settings::default() };
    let mut primary = support::cluster(settings);
    let mut database = Database::of(&primary);
    database.docs(50);
    database.sql.run("SELECT pg_create_physical_replication_slot('standby', true)");
    let standby = standby_of(&mut primary, &database.name, bin_dir);
    // Nothing is sent to us that the standby does not have.
    primary.set("synchronized_standby_slots", "standby").and_then(|()| primary.reload()).expect("it runs");
    database.sql = database.connect();
    let hosts = format!(
        "postgresql://postgres@127.0.0.1:{},127.0.0.1:{}/{}?target_session_attrs=read-write&connect_timeout=2",
        primary.port(),
        standby.port(),
        database.name
    );
    let mut service = Service::configured(&database, "", "");
    service.configure(&hosts, "", DOCS);
    service.start();
    service.wait_ready();
    let slot = service.slot.clone();
    let there = Sql::connect(&standby.dsn_of(&database.name));
    let synced = format!(
        "SELECT synced AND failover AND NOT temporary AND invalidation_reason IS NULL FROM pg_replication_slots WHERE slot_name = '{slot}'"
    );
    wait_until("the standby has the slot", || {
        // It waits for the source to move on; an idle one does not.
        database.sql.run("UPDATE docs SET section = 'x' WHERE id = 1; SELECT pg_log_standby_snapshot()");
        std::thread::sleep(Duration::from_millis(200));
        there.try_text(&synced).as_deref() == Some("t")
    });
    database.sql.run("DELETE FROM docs WHERE id = 2; INSERT INTO docs VALUES (100, 's', 'b', vec(100, 4))");
    service.catch_up(&database.sql);
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_ruvector"));
    let doctor = doctor.args(["doctor", "--config"]).arg(service.config_file()).output().expect("it runs");
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let d14 = said.lines().find(|line| line.contains(" D14 ")).unwrap_or_default();
    assert!(d14.starts_with("ok") && d14.contains("kept in step"), "{said}");
    primary.stop(Stop::Killed).expect("it stops");
    assert_eq!(there.one("SELECT pg_promote(true)"), "t");
    database.sql = Sql::connect(&standby.dsn_of(&database.name));
    database.sql.run("DELETE FROM docs WHERE id = 3; INSERT INTO docs VALUES (101, 's', 'b', vec(101, 4))");
    service.catch_up(&database.sql);
    service.wait_ready();
    assert_eq!(service.verify_clean("docs"), 50);
    assert_eq!(service.status()["slot"], slot.as_str());
    assert_eq!(
        (service.logged("the copy is whole"), service.logged("copying everything again")),
        (1, 0),
        "{}",
        service.log()
    );
}

struct Story {
    major: u32,
    // Dropped first: it streams from what follows.
    service: Service,
    database: Database,
    postgres: PrivatePostgres,
}

fn story(major: u32) {
    if !is_wanted(major) {
        println!("PostgreSQL {major} is not in RUVECTOR_TEST_MAJORS");
        return;
    }
    let bin_dir = binaries(major);
    let started = Instant::now();
    // A large transaction is spilled by the server early, and what a slot holds back is lost early.
    let settings = Settings { bin_dir: Some(bin_dir), ..Settings::default() };
    let postgres = support::cluster(settings.with("logical_decoding_work_mem", "64kB"));
    let database = Database::of(&postgres);
    assert_eq!(database.sql.one("SELECT current_setting('server_version_num')::int / 10000"), major.to_string());
    database.long_docs(60);
    database.sql.run(
        "CREATE TABLE parts (id bigint PRIMARY KEY, embedding real[]) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (100);
         CREATE TABLE high PARTITION OF parts FOR VALUES FROM (100) TO (200);
         INSERT INTO parts SELECT i, vec(i, 8) FROM generate_series(0, 199) i;
         CREATE TABLE notes (id bigint PRIMARY KEY, embedding real[]);
         INSERT INTO notes SELECT i, vec(i, 4) FROM generate_series(1, 300) i",
    );
    let service = Service::ready(&database, &format!("{DOCS}{OTHERS}"));
    let mut story = Story { major, service, database, postgres };
    story.compare([60, 200, 300]);
    story.single_rows();
    story.transactions();
    story.partitions();
    story.a_large_transaction();
    story.crashes();
    story.a_dropped_slot();
    story.a_slot_without_its_wal();
    if major >= 18 {
        story.an_idle_slot_that_was_invalidated();
        story.a_slot_that_somebody_gave_two_phases();
    }
    assert_eq!(story.service.logged(" ERROR "), 0, "{}", story.service.log());
    story.service.terminate();
    println!("PostgreSQL {major}: {:.1} s", started.elapsed().as_secs_f64());
}

impl Story {
    fn run(&self, sql: &str) {
        self.database.sql.run(sql);
    }

    /// Everything arrived, and in every collection exactly that.
    fn compare(&mut self, rows: [u64; 3]) {
        self.service.catch_up(&self.database.sql);
        let found = ["docs", "parts", "notes"].map(|name| self.service.verify_clean(name));
        assert_eq!(found, rows, "PostgreSQL {}", self.major);
    }

    fn single_rows(&mut self) {
        let before = self.service.graph_writes("docs");
        // Long values that are not touched are not sent, also where the key moves.
        self.run("UPDATE docs SET section = 'new' WHERE id <= 30; UPDATE docs SET id = 100 WHERE id = 2");
        self.compare([60, 200, 300]);
        assert_eq!(self.service.graph_writes("docs"), before, "untouched vectors cost no graph work");
        assert_eq!(ids(&self.service.search("docs", &near(2, 384, 1))), [100]);
        self.run(
            "INSERT INTO docs VALUES (200, 's', 'b', vec(200, 384)); UPDATE docs SET embedding = vec(201, 384) WHERE id = 3;
             UPDATE docs SET embedding = NULL WHERE id = 4; UPDATE docs SET embedding = '{1,NaN}' WHERE id = 5;
             DELETE FROM docs WHERE id = 6; INSERT INTO docs VALUES (7, 's', 'b', vec(300, 384)) ON CONFLICT (id)
               DO UPDATE SET embedding = excluded.embedding;
             ALTER TABLE docs REPLICA IDENTITY FULL; UPDATE docs SET section = 'full', id = 101 WHERE id = 8;
             ALTER TABLE docs REPLICA IDENTITY DEFAULT; UPDATE docs SET section = 'default', id = 102 WHERE id = 9",
        );
        self.compare([60, 200, 300]);
        assert_eq!(ids(&self.service.search("docs", &near(300, 384, 1))), [7]);
        assert_eq!(ids(&self.service.search("docs", &near(8, 384, 1))), [101]);
        assert_eq!(self.service.dead_letters("docs").len(), 1);
    }

    fn transactions(&mut self) {
        self.run(
            "BEGIN; INSERT INTO notes VALUES (400, vec(400, 4)); SAVEPOINT a; DELETE FROM notes WHERE id <= 100; SAVEPOINT b;
             INSERT INTO notes SELECT i, vec(i, 4) FROM generate_series(1000, 3000) i; ROLLBACK TO a;
             INSERT INTO notes VALUES (401, vec(401, 4)); COMMIT;
             BEGIN; DELETE FROM notes; ROLLBACK",
        );
        self.compare([60, 200, 302]);
        self.run("BEGIN; INSERT INTO notes VALUES (402, vec(402, 4)); PREPARE TRANSACTION 'p'");
        self.run("BEGIN; DELETE FROM notes WHERE id > 200; PREPARE TRANSACTION 'q'");
        self.service.catch_up(&self.database.sql);
        assert_eq!(self.service.collection("notes")["rows"], 302);
        self.run("COMMIT PREPARED 'p'");
        self.run("ROLLBACK PREPARED 'q'");
        self.compare([60, 200, 303]);
        self.run("BEGIN; TRUNCATE notes, docs; INSERT INTO notes VALUES (1, vec(1, 4)); COMMIT");
        self.compare([0, 200, 1]);
        self.run("INSERT INTO docs SELECT i, 's', 'b', vec(i, 384) FROM generate_series(1, 40) i");
        self.compare([40, 200, 1]);
    }

    fn partitions(&mut self) {
        self.run(
            "UPDATE parts SET id = id + 100 WHERE id < 0; DELETE FROM parts WHERE id = 150; UPDATE parts SET id = 150 WHERE id = 5;
             INSERT INTO parts VALUES (5, vec(500, 8)); UPDATE low SET embedding = vec(id + 1000, 8) WHERE id = 7",
        );
        self.compare([40, 200, 1]);
        assert_eq!(ids(&self.service.search("parts", &near(5, 8, 1))), [150]);
    }

    fn a_large_transaction(&mut self) {
        self.run("INSERT INTO notes SELECT i, vec(i, 4) FROM generate_series(10, 6009) i");
        self.compare([40, 200, 6001]);
    }

    fn crashes(&mut self) {
        for (at, how) in [Stop::Killed, Stop::Immediate, Stop::Fast].into_iter().enumerate() {
            self.run(&format!("INSERT INTO docs VALUES ({}, 's', 'b', vec(1, 384))", 500 + at));
            self.postgres.restart(how).expect("it starts again");
            self.database.sql = self.database.connect();
            self.run(&format!("DELETE FROM docs WHERE id = {}", 1 + at));
            self.compare([40, 200, 6001]);
        }
        assert_eq!(self.service.logged("the copy is whole"), 1, "{}", self.service.log());
    }

    fn slot(&self) -> String {
        self.service.status()["slot"].as_str().expect("a slot").to_owned()
    }

    /// What the slot before could not tell comes by a new copy on a new slot, and the old one is gone.
    fn copied_again(&mut self, old: &str, rows: [u64; 3]) {
        self.service.wait_for("a new copy answers", |service| {
            service.is_ready() && service.status()["slot"].as_str().is_some_and(|slot| slot != old)
        });
        self.compare(rows);
        let slots = "SELECT string_agg(slot_name, ',') FROM pg_replication_slots";
        let new = self.slot();
        wait_until("only the new slot is there", || self.database.sql.text(slots).as_deref() == Some(&new));
    }

    fn a_dropped_slot(&mut self) {
        let old = self.slot();
        let drop = format!(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = '{old}' AND active;
             SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{old}'"
        );
        let gone = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{old}'");
        wait_until("the slot is dropped", || {
            let _ = self.database.sql.try_run(&drop);
            self.database.sql.one(&gone) == "0"
        });
        self.run("DELETE FROM docs WHERE id BETWEEN 10 AND 19");
        self.copied_again(&old, [30, 200, 6001]);
    }

    fn a_slot_without_its_wal(&mut self) {
        let old = self.slot();
        self.service.terminate();
        self.postgres.set("max_slot_wal_keep_size", "16MB").expect("the file is there");
        self.postgres.reload().expect("it runs");
        self.run("DELETE FROM docs WHERE id BETWEEN 20 AND 29");
        for _ in 0..4 {
            self.run("SELECT pg_logical_emit_message(false, 'filler', 'x'); SELECT pg_switch_wal()");
        }
        let status = format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{old}'");
        wait_until("the slot's WAL is gone", || {
            self.run("CHECKPOINT");
            self.database.sql.one(&status) == "lost"
        });
        self.service.start();
        // The words differ from major to major; what the catalog says does not.
        let indexed = json!({ "query": { "vector": [0, 0, 0, 0] }, "limit": 1, "recheck": "none" });
        self.service.wait_for("what is there answers", |service| service.try_search("notes", &indexed).is_ok());
        self.copied_again(&old, [20, 200, 6001]);
        self.postgres.set("max_slot_wal_keep_size", "-1").expect("the file is there");
        self.postgres.reload().expect("it runs");
    }

    /// What it sends at PREPARE TRANSACTION nobody here could keep: it is left for one of our own.
    fn a_slot_that_somebody_gave_two_phases(&mut self) {
        let old = self.slot();
        self.service.terminate();
        let alter = format!("ALTER_REPLICATION_SLOT {old} (TWO_PHASE true)");
        let dsn = format!("{}?replication=database", self.database.dsn);
        let psql = Command::new("psql").args(["-X", "-d", &dsn, "-c", &alter]).output().expect("psql runs");
        assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
        self.run("DELETE FROM docs WHERE id = 500; BEGIN; DELETE FROM docs WHERE id = 501; PREPARE TRANSACTION 'two'");
        let before = self.service.logged("making a replication slot");
        self.service.start();
        // A new slot waits for open transactions; prepared ones are among them.
        self.service.wait_for("another slot is made", |service| service.logged("making a replication slot") > before);
        self.run("COMMIT PREPARED 'two'");
        self.copied_again(&old, [8, 200, 6001]);
    }

    fn an_idle_slot_that_was_invalidated(&mut self) {
        let old = self.slot();
        self.service.terminate();
        self.postgres.set("idle_replication_slot_timeout", "1s").expect("the file is there");
        self.postgres.reload().expect("it runs");
        self.run("DELETE FROM docs WHERE id BETWEEN 30 AND 39");
        let reason = format!("SELECT invalidation_reason FROM pg_replication_slots WHERE slot_name = '{old}'");
        wait_until("the slot is invalidated", || {
            std::thread::sleep(Duration::from_millis(200));
            self.run("CHECKPOINT");
            self.database.sql.text(&reason).as_deref() == Some("idle_timeout")
        });
        self.postgres.set("idle_replication_slot_timeout", "0").expect("the file is there");
        self.postgres.reload().expect("it runs");
        self.service.start();
        self.copied_again(&old, [10, 200, 6001]);
    }
}
