//! Snapshots beside a real PostgreSQL: what is restored is what was there, goes on where the slot still is, is copied again
//! where it moved on, and nothing passes for a snapshot that is not a whole one.

mod support;

use ruvector::model::Lsn;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::writer::{NOTES, Writer, tables};
use support::{DOCS, Database, Service, ids, near};
use tempfile::TempDir;

/// Many sealed files and many files of the log.
fn service(database: &Database, sections: &str) -> Service {
    let mut service = Service::configured(database, "", &format!("segment_rows = 64\n{sections}"));
    service.set_environment("RUVECTOR_TEST_ROLL_BYTES", Some((16 << 10).to_string()));
    service
}

fn place(service: &Service) -> (TempDir, PathBuf) {
    let above = service.config_file().parent().expect("a directory").to_owned();
    // On the same file system, so that files can have second names.
    let dir = tempfile::tempdir_in(above).expect("a directory");
    let to = dir.path().join("snapshot");
    (dir, to)
}

fn ruvector(arguments: &[&str], service: &Service, failpoint: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ruvector"));
    command.args(arguments).env("RUVECTOR_URL", service.url());
    if let Some(name) = failpoint {
        command.env("RUVECTOR_FAILPOINT", name);
    }
    command.output().expect("it runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn restore(service: &Service, from: &Path) -> Output {
    let config = service.config_file();
    let paths = [from, &config].map(|path| path.to_str().expect("text"));
    ruvector(&["restore", "--from", paths[0], "--config", paths[1]], service, None)
}

fn restored(service: &Service, from: &Path) {
    let output = restore(service, from);
    assert!(output.status.success(), "{}", text(&output));
}

fn refused(service: &Service, from: &Path, why: &[&str]) {
    let output = restore(service, from);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    why.iter().for_each(|why| assert!(text(&output).contains(why), "{why}: {}", text(&output)));
}

fn manifest(snapshot: &Path) -> Json {
    let text = std::fs::read_to_string(snapshot.join("MANIFEST")).expect("a manifest");
    serde_json::from_str(text.lines().nth(1).expect("two lines")).expect("JSON")
}

fn lsn(json: &Json) -> Lsn {
    json.as_str().and_then(|lsn| lsn.parse().ok()).expect("an LSN")
}

fn wipe(service: &Service) {
    std::fs::remove_dir_all(service.data_dir()).expect("its own directory");
}

#[test]
fn a_snapshot_whose_slot_was_kept_goes_on_without_a_copy() {
    let database = Database::shared();
    tables(&database, 600, 300);
    let mut service = service(&database, &format!("{DOCS}{NOTES}"));
    service.start();
    service.wait_ready();
    let writer = Writer::start(&database, 7);
    let (_dir, to) = place(&service);
    // Several while all is written to: the last one counts.
    for round in 0..3 {
        let _ = std::fs::remove_dir_all(&to);
        std::thread::sleep(std::time::Duration::from_millis(300 * round));
        let path = to.to_str().expect("text");
        let output = ruvector(&["snapshot", "--to", path, "--retain", "600"], &service, None);
        assert!(output.status.success(), "{}\n{}", text(&output), service.log_tail());
    }
    let made = manifest(&to);
    let names = |ending: &str, linked: bool| {
        let files = made["files"].as_array().expect("files").iter();
        files
            .filter(|file| {
                file["name"].as_str().is_some_and(|name| name.ends_with(ending)) && (file["linked"] == true) == linked
            })
            .count()
    };
    assert!(names(".graph", true) > 0, "sealed segments are shared: {made:#}");
    assert!(names(".f32", false) >= 2 && names(".log", false) >= 1 && names("state.redb", false) == 1, "{made:#}");
    // It goes on, and the source keeps what came since the snapshot, also across a restart.
    service.catch_up(&database.sql);
    let position = lsn(&made["lsn"]);
    let slot = service.slot.clone();
    let confirmed = || database.sql.confirmed(&slot).expect("a slot");
    support::wait_until("all up to the snapshot is confirmed", || confirmed() == position);
    assert!(service.position("durable") > position);
    service.kill();
    service.start();
    service.wait_ready();
    service.catch_up(&database.sql);
    assert!(confirmed() <= position, "{} beyond {position}", confirmed());
    service.kill();
    wipe(&service);
    database.sql.run_beside_others("INSERT INTO docs SELECT 90001, 'late', '', vec(90001, 384)");
    writer.stop();
    restored(&service, &to);
    let copies = service.logged("the copy is whole");
    service.start();
    service.wait_ready();
    service.catch_up(&database.sql);
    for name in ["docs", "notes"] {
        service.verify_clean(name);
    }
    assert_eq!(ids(&service.search("docs", &near(90001, 384, 1))), [90001]);
    assert_eq!(service.logged("the copy is whole"), copies, "{}", service.log());
    // What is restored keeps nothing of the source any more.
    let end: Lsn = database.sql.one("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN");
    database.sql.run("SELECT pg_logical_emit_message(true, 'test', '')");
    service.wait_for("it is confirmed", |_| confirmed() >= end);
    service.terminate();
}

#[test]
fn a_snapshot_whose_slot_moved_on_answers_stale_and_is_copied_again() {
    let database = Database::shared();
    database.docs(300);
    let mut service = service(&database, DOCS);
    service.start();
    service.wait_ready();
    let (_dir, to) = place(&service);
    let made = service.client().post("/v1/admin/snapshots", &json!({ "to": to })).expect("made");
    assert_eq!((&made["collections"], &made["slot"]), (&json!(["docs"]), &json!(service.slot)));
    database.sql.run("DELETE FROM docs WHERE id = 5; INSERT INTO docs VALUES (900, 'late', '', vec(900, 4))");
    service.catch_up(&database.sql);
    let slot = service.slot.clone();
    support::wait_until("it is confirmed", || database.sql.confirmed(&slot).expect("a slot") > lsn(&made["lsn"]));
    service.kill();
    wipe(&service);
    restored(&service, &to);
    let copies = service.logged("the copy is whole");
    service.start();
    // At once, from what was restored; and it says so until it is the source's again.
    service.wait_for("it answers", |service| service.try_search("docs", &near(1, 4, 3)).is_ok());
    let answer =
        service.search("docs", &json!({ "query": { "vector": [0, 0, 0, 0] }, "limit": 1000, "recheck": "none" }));
    let copied = service.logged("the copy is whole") > copies;
    assert!(!answer["stale"].is_null() || copied, "{answer}");
    service.wait_ready();
    service.catch_up(&database.sql);
    assert_eq!(service.logged("the copy is whole"), copies + 1, "{}", service.log());
    assert!(service.log().contains("ahead of our position"), "{}", service.log());
    assert_eq!(service.verify_clean("docs"), 300);
    assert_eq!(
        database
            .sql
            .one("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%' || current_database() || '%'"),
        "1"
    );
    service.terminate();
}

#[test]
fn what_is_damaged_or_of_others_is_not_restored() {
    let database = Database::shared();
    database.docs(300);
    let mut service = service(&database, DOCS);
    service.start();
    service.wait_ready();
    let (dir, to) = place(&service);
    let post = |service: &Service, to: &Path| service.client().post("/v1/admin/snapshots", &json!({ "to": to }));
    post(&service, &to).expect("made");
    for (bad, why) in
        [(to.clone(), "not empty"), (service.data_dir().join("s"), "data directory"), ("s".into(), "absolute")]
    {
        let error = post(&service, &bad).expect_err("refused").to_string();
        assert!(error.contains("RV1211") && error.contains(why), "{error}");
    }
    // It looks before it makes anything, and removes only what it made itself.
    let inside = service.data_dir().join("PENDING").join("s");
    post(&service, &inside).expect_err("refused");
    assert!(!service.data_dir().join("PENDING").exists());
    let somebodys = to.with_extension("again.making");
    std::fs::create_dir_all(&somebodys).expect("made");
    std::fs::write(somebodys.join("file"), "").expect("written");
    let error = post(&service, &to.with_extension("again")).expect_err("refused").to_string();
    assert!(error.contains("RV1211") && error.contains("remove it") && somebodys.join("file").exists(), "{error}");
    refused(&service, &to, &["in use by another process"]);
    service.terminate();
    refused(&service, &to, &["is not empty"]);
    wipe(&service);
    refused(&service, dir.path(), &["no whole snapshot"]);
    let files: Vec<String> = manifest(&to)["files"]
        .as_array()
        .expect("files")
        .iter()
        .map(|file| file["name"].as_str().expect("a name").to_owned())
        .chain(["MANIFEST".to_owned()])
        .collect();
    assert!(files.len() >= 5, "{files:?}");
    for name in &files {
        let path = to.join(name);
        let good = std::fs::read(&path).expect("bytes");
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        // A file that is shared would be damaged in both places: it gets a content of its own.
        let put = |bytes: &[u8]| {
            std::fs::remove_file(&path).expect("removed");
            std::fs::write(&path, bytes).expect("written");
        };
        for bad in [&flipped[..], &good[..good.len() - 1]] {
            put(bad);
            refused(&service, &to, &[name.as_str()]);
        }
        std::fs::remove_file(&path).expect("removed");
        refused(&service, &to, &[name.as_str()]);
        std::fs::write(&path, good).expect("written");
        let left = std::fs::read_dir(service.data_dir())
            .map_or(0, |names| names.flatten().filter(|one| one.file_name() != "LOCK").count());
        assert_eq!(left, 0, "{name}");
    }
    let newer = std::fs::read_to_string(to.join("MANIFEST")).expect("text").replacen("\"format\":1", "\"format\":2", 1);
    let json = newer.lines().nth(1).expect("two lines");
    let newer = format!("ruvector 2 {:08x}\n{json}\n", crc32fast::hash(json.as_bytes()));
    let good = std::fs::read(to.join("MANIFEST")).expect("bytes");
    std::fs::write(to.join("MANIFEST"), newer).expect("written");
    refused(&service, &to, &["format 2"]);
    std::fs::write(to.join("MANIFEST"), good).expect("written");
    let config = std::fs::read_to_string(service.config_file()).expect("text");
    let other = config.replacen(&format!("slot = \"{}\"", service.slot), "slot = \"another\"", 1);
    std::fs::write(service.config_file(), other).expect("written");
    refused(&service, &to, &["another service's"]);
    std::fs::write(service.config_file(), config).expect("written");
    restored(&service, &to);
    service.start();
    service.wait_ready();
    assert_eq!(service.verify_clean("docs"), 300);
    service.terminate();
}

#[test]
fn a_kill_in_the_middle_leaves_nothing_that_passes_for_a_snapshot() {
    let database = Database::shared();
    database.docs(300);
    let mut service = service(&database, DOCS);
    let (_dir, to) = place(&service);
    let making = to.with_extension("making");
    for (point, whole) in [
        ("snapshot.begun", false),
        ("snapshot.frozen", false),
        ("snapshot.copied", false),
        ("snapshot.manifest_written", false),
        ("snapshot.named", true),
    ] {
        service.set_environment("RUVECTOR_FAILPOINT", Some(point.to_owned()));
        service.start();
        service.wait_ready();
        let asked = service.client().post("/v1/admin/snapshots", &json!({ "to": to, "retain_s": 60 }));
        assert!(asked.is_err(), "{point}");
        support::wait_until("it is dead", || service.has_ended());
        assert_eq!(to.exists(), whole, "{point}");
        assert_eq!(making.exists(), !whole, "{point}");
        if point != "snapshot.manifest_written" {
            refused(&service, if whole { &making } else { &to }, &["no whole snapshot"]);
        }
        assert_eq!(making.join("MANIFEST").exists(), point == "snapshot.manifest_written");
    }
    // What is left of an attempt is not in the way of the next one.
    service.set_environment("RUVECTOR_FAILPOINT", None);
    std::fs::remove_dir_all(&to).expect("removed");
    std::fs::create_dir_all(making.join("epoch")).expect("made");
    std::fs::write(making.join("MAKING"), "").expect("written");
    service.start();
    service.wait_ready();
    service.client().post("/v1/admin/snapshots", &json!({ "to": to })).expect("made");
    assert!(!making.exists());
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 300);
    service.kill();
    wipe(&service);
    // Nor does a restore that was killed leave what answers.
    let config = service.config_file();
    let paths = [to.as_path(), &config].map(|path| path.to_str().expect("text"));
    let arguments = ["restore", "--from", paths[0], "--config", paths[1]];
    let output = ruvector(&arguments, &service, Some("data_dir.before_current"));
    assert!(!output.status.success(), "{}", text(&output));
    assert!(!service.data_dir().join("CURRENT").exists());
    assert!(service.refusal().contains("we have no data that belongs to it"), "{}", service.log_tail());
    wipe(&service);
    // The next restore takes the place of one that was killed.
    assert!(!ruvector(&arguments, &service, Some("data_dir.before_current")).status.success());
    restored(&service, &to);
    service.start();
    service.wait_ready();
    assert_eq!(service.verify_clean("docs"), 300);
    service.terminate();
}
