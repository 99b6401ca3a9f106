//! Faults of the source and of the way to it, one a round, while somebody writes: the service heals by itself or refuses
//! loudly, never answers wrongly without saying so in between, leaves no slot behind, and equals its tables in the end.
//! `RUVECTOR_FAULT=name` has every round do the same one.

mod proxy;
#[path = "../support/mod.rs"]
mod support;
mod world;

use proxy::{Mode, Proxy};
use ruvector::cli::private_postgres::{PrivatePostgres, Settings, Stop};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Instant;
use support::soak::Soak;
use support::{DOCS, Sql, cluster, wait_until};
use world::{BEACON, Kind, World, change_password, tell_password};

/// Does the fault, mends it, and returns when it was mended.
type Fault = fn(&mut World) -> Instant;

const FAULTS: &[(&str, Kind, Fault)] = &[
    ("walsender_killed", Kind::Usual, walsender_killed),
    ("backends_killed", Kind::Usual, backends_killed),
    ("immediate_shutdown", Kind::Usual, |world| shutdown(world, Stop::Immediate)),
    ("fast_shutdown", Kind::Usual, |world| shutdown(world, Stop::Fast)),
    ("standby_promoted", Kind::Usual, standby_promoted),
    ("slot_dropped", Kind::Usual, slot_dropped),
    ("slot_lost", Kind::Usual, slot_lost),
    ("restored", Kind::Usual, restored),
    ("another_cluster", Kind::Usual, another_cluster),
    ("privileges_revoked", Kind::Role, privileges_revoked),
    ("publication_recreated", Kind::Usual, publication_recreated),
    ("password_changed", Kind::Role, password_changed),
    ("network_paused", Kind::Usual, network_paused),
    ("network_half_open", Kind::Usual, network_half_open),
    ("network_cut", Kind::Usual, network_cut),
    ("network_flaky", Kind::Usual, network_flaky),
];

/// Rounds among all tests: some of the faults, others every time.
const SHORT: u64 = 8;

#[test]
fn every_fault_of_the_source_heals_or_is_refused_loudly() {
    let mut soak = Soak::new("faults", SHORT);
    let only = std::env::var("RUVECTOR_FAULT").ok().filter(|name| !name.is_empty());
    let mut heals: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let (mut answers, mut flagged, mut refused, mut transactions) = (0, 0, 0, 0);
    let mut first = None;
    while let Some(seed) = soak.next_round() {
        // From round to round the next one, so that a long run has each equally often.
        let first = *first.get_or_insert(seed % FAULTS.len() as u64);
        let number = ((first + soak.round() - 1) % FAULTS.len() as u64) as usize;
        let chosen = only.as_ref().map(|name| FAULTS.iter().find(|fault| fault.0 == name).expect("a fault's name"));
        let &(name, kind, fault) = chosen.unwrap_or(&FAULTS[number]);
        soak.run(seed, &format!("RUVECTOR_FAULT={name}"), || {
            let mut world = World::new(kind, seed);
            let mended = fault(&mut world);
            let took = world.heals(mended);
            let shared = world.judge();
            println!("{name}: healed in {} ms", took.as_millis());
            heals.entry(name).or_default().push(took.as_millis() as u64);
            answers += shared.answers.load(Ordering::Relaxed);
            flagged += shared.flagged.load(Ordering::Relaxed);
            refused += shared.refused.load(Ordering::Relaxed);
            transactions += shared.transactions.load(Ordering::Relaxed);
        });
    }
    let heals: BTreeMap<_, _> = heals
        .into_iter()
        .map(|(name, mut times)| {
            times.sort_unstable();
            let (runs, median, most) = (times.len(), times[times.len() / 2], times[times.len() - 1]);
            (name, json!({ "healed": runs, "p50_ms": median, "max_ms": most }))
        })
        .collect();
    soak.fact("faults", json!(heals));
    soak.fact("transactions", transactions);
    soak.fact("answers", answers);
    soak.fact("answers_marked_stale_or_of_unknown_age", flagged);
    soak.fact("searches_refused", refused);
    soak.finish();
}

/// Ends sessions of the source; there must be some each time, or the fault does not happen.
fn end_sessions(sql: &Sql, which: &str) {
    let ended = format!("SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {which}");
    wait_until(which, || sql.one(&ended) != "0");
}

fn walsender_killed(world: &mut World) -> Instant {
    for _ in 0..1 + world.random.below(3) {
        end_sessions(&world.database.sql, "pid IN (SELECT active_pid FROM pg_replication_slots)");
        world.pause(0, 200);
    }
    Instant::now()
}

/// Every session of the service that speaks SQL: the guard's, the watch's, the recheck's.
fn backends_killed(world: &mut World) -> Instant {
    for _ in 0..1 + world.random.below(3) {
        end_sessions(&world.database.sql, "application_name LIKE 'ruvector %' AND backend_type = 'client backend'");
        world.pause(0, 200);
    }
    Instant::now()
}

fn shutdown(world: &mut World, how: Stop) -> Instant {
    world.postgres.stop(how).expect("it stops");
    world.pause(0, 1500);
    world.postgres.start_again().expect("it starts again");
    world.connect_again();
    Instant::now()
}

fn sh(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh runs");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A copy of a cluster that is stopped for it, into another place that must not exist.
fn cold_copy(postgres: &mut PrivatePostgres, to: &Path) {
    postgres.stop(Stop::Fast).expect("it stops");
    sh(&format!("cp -a {} {}", postgres.data_dir().display(), to.display()));
    postgres.start_again().expect("it starts again");
}

/// Writes so much that the server begins new files of WAL.
fn switch_wal(sql: &Sql, times: usize) {
    for _ in 0..times {
        sql.run("SELECT pg_logical_emit_message(false, 'filler', 'x'); SELECT pg_switch_wal()");
    }
}

fn standby_promoted(world: &mut World) -> Instant {
    world.stop_service();
    let mut standby = cluster(Settings::default());
    standby.stop(Stop::Fast).expect("it stops");
    let data = standby.data_dir();
    sh(&format!("rm -rf {}", data.display()));
    cold_copy(&mut world.postgres, &data);
    world.connect_again();
    std::fs::write(data.join("standby.signal"), "").expect("writable");
    let primary = format!("host=127.0.0.1 port={} user=postgres", world.postgres.port());
    let sockets = standby.root_dir().to_string_lossy().into_owned();
    standby.set("primary_conninfo", &primary).expect("writable");
    standby.set("unix_socket_directories", &sockets).expect("writable");
    standby.start_again().expect("the standby starts");
    let other = Proxy::start(standby.port(), world.random.next());
    let (here, there, name) = (world.proxy.port(), other.port(), &world.database.name);
    let hosts = format!(
        "postgresql://postgres@127.0.0.1:{here},127.0.0.1:{there}/{name}?target_session_attrs=read-write&connect_timeout=2"
    );
    world.service.configure(&hosts, "silence_limit_s = 2\n", &format!("{DOCS}{BEACON}"));
    world.start_service();
    world.service.wait_ready();
    world.pause(200, 800);

    world.between_histories();
    world.postgres.stop(if world.random.below(2) == 0 { Stop::Killed } else { Stop::Immediate }).expect("it stops");
    world.pause(0, 500);
    let promoted = standby.dsn_of(&world.database.name);
    assert_eq!(Sql::connect(&promoted).one("SELECT pg_promote(true)"), "t");
    world.new_history(&promoted);
    // The old primary stays away; what was the standby is the source from now on.
    let gone = std::mem::replace(&mut world.postgres, standby);
    let proxy = std::mem::replace(&mut world.proxy, other);
    world.keep((gone, proxy));
    Instant::now()
}

fn slot_dropped(world: &mut World) -> Instant {
    let slot = world.slot();
    if world.random.below(2) == 0 {
        world.stop_service();
        world.drop_slot(&slot);
        world.start_service();
    } else {
        world.drop_slot(&slot);
    }
    let mended = Instant::now();
    world.service.wait_for("another slot", |service| service.status()["slot"] != json!(slot));
    mended
}

fn slot_lost(world: &mut World) -> Instant {
    let slot = world.slot();
    let stopped = world.random.below(2) == 0;
    if stopped {
        world.stop_service();
    } else {
        world.proxy.set(Mode::Paused);
    }
    world.postgres.set("max_slot_wal_keep_size", "16MB").expect("writable");
    world.postgres.reload().expect("it runs");
    let status = format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{slot}'");
    wait_until("the slot's WAL is gone", || {
        switch_wal(&world.database.sql, 2);
        world.database.sql.run("CHECKPOINT");
        world.database.sql.one(&status) == "lost"
    });
    world.postgres.set("max_slot_wal_keep_size", "-1").expect("writable");
    world.postgres.reload().expect("it runs");
    if stopped {
        world.start_service();
    } else {
        world.proxy.set(Mode::Pass);
    }
    let mended = Instant::now();
    world.service.wait_for("another slot", |service| service.status()["slot"] != json!(slot));
    mended
}

/// An earlier copy of the data directory is put back: the same cluster, but its end lies before our position.
fn restored(world: &mut World) -> Instant {
    let (data, copy) = (world.postgres.data_dir(), world.postgres.root_dir().join("copy"));
    cold_copy(&mut world.postgres, &copy);
    world.connect_again();
    world.pause(800, 1500);
    // Enough for the restored one to stay behind us until we look; see docs/hard-cases.md for when it does not.
    switch_wal(&world.database.sql, 2);
    world.database.sql.run("UPDATE beacon SET stamp = stamp");
    world.service.catch_up(&world.database.sql);
    let before = world.database.sql.lsn();
    world.between_histories();
    world.postgres.stop(Stop::Immediate).expect("it stops");
    sh(&format!("rm -rf {0} && mv {1} {0}", data.display(), copy.display()));
    world.postgres.start_again().expect("it starts again");
    let dsn = world.database.dsn.clone();
    world.new_history(&dsn);
    assert!(world.database.sql.lsn() < before, "it is put back");
    Instant::now()
}

/// The name leads to a cluster of the same look: refused, and what is there goes on answering, marked.
fn another_cluster(world: &mut World) -> Instant {
    let foreign = cluster(Settings { own_identity: true, ..Settings::default() });
    let name = &world.database.name;
    Sql::connect(&foreign.dsn()).run(&format!("CREATE DATABASE {name}"));
    let sql = Sql::connect(&foreign.dsn_of(name));
    sql.run(
        "CREATE TABLE docs (id bigint PRIMARY KEY, section text, body text, embedding real[]);
         CREATE TABLE beacon (id int PRIMARY KEY, stamp bigint, embedding real[])",
    );
    world.proxy.lead_to(foreign.port());
    world.service.wait_for("it refuses", |service| service.logged("another cluster answers") > 0);
    world.pause(0, 500);
    let body = json!({ "query": { "vector": [1, 2, 3, 4] }, "limit": 1, "recheck": "none" });
    let answer = world.service.search("beacon", &body);
    assert!(answer["stale"].is_string() && answer["complete"] == false, "{answer:#}");
    assert!(!world.service.is_ready());
    assert_eq!(sql.one("SELECT count(*) FROM pg_publication"), "0");
    assert_eq!(sql.one("SELECT count(*) FROM pg_replication_slots"), "0");
    world.proxy.lead_to(world.postgres.port());
    Instant::now()
}

fn end_connections_of_the_role(sql: &Sql) {
    end_sessions(sql, "usename = 'follower'");
}

fn privileges_revoked(world: &mut World) -> Instant {
    let (revoke, grant) = *world.random.pick(&[
        ("ALTER ROLE follower NOREPLICATION", "ALTER ROLE follower REPLICATION"),
        ("REVOKE SELECT ON docs FROM follower", "GRANT SELECT ON docs TO follower"),
        ("ALTER ROLE follower NOLOGIN", "ALTER ROLE follower LOGIN"),
    ]);
    world.database.sql.run(revoke);
    if world.random.below(2) == 0 {
        // It is there at the first look after a restart, and nothing is refused that has data.
        world.stop_service();
        world.start_service();
    } else {
        end_connections_of_the_role(&world.database.sql);
    }
    world.pause(300, 1500);
    world.database.sql.run(grant);
    Instant::now()
}

fn publication_recreated(world: &mut World) -> Instant {
    let (name, slot) = (world.database.name.clone(), world.slot());
    world.database.sql.run(&format!("DROP PUBLICATION {name}"));
    // Changes of this time can never be decoded.
    world.database.sql.run("UPDATE beacon SET stamp = stamp");
    world.pause(0, 500);
    // The service may have made it again itself by now.
    let create = format!("CREATE PUBLICATION {name} FOR TABLE docs, beacon WITH (publish_via_partition_root = true)");
    let _ = world.database.sql.try_run(&create);
    let mended = Instant::now();
    world.service.wait_for("another slot", |service| service.status()["slot"] != json!(slot));
    mended
}

fn password_changed(world: &mut World) -> Instant {
    change_password(&world.database.sql, "second");
    end_connections_of_the_role(&world.database.sql);
    world.wait_for_trouble();
    world.pause(0, 1000);
    tell_password(&world.service, "second");
    Instant::now()
}

/// The network does this for some time. Something must have met it.
fn network(world: &mut World, mode: Mode, least: u64, most: u64) {
    let before = world.proxy.harmed();
    world.proxy.set(mode);
    world.pause(least, most);
    wait_until("the network harms something", || world.proxy.harmed() > before);
}

fn network_paused(world: &mut World) -> Instant {
    network(world, Mode::Paused, 500, 6000);
    world.proxy.set(Mode::Pass);
    Instant::now()
}

fn network_half_open(world: &mut World) -> Instant {
    network(world, Mode::HalfOpen, 500, 5000);
    world.proxy.set(Mode::Pass);
    Instant::now()
}

fn network_cut(world: &mut World) -> Instant {
    network(world, Mode::Cut, 100, 3000);
    world.proxy.set(Mode::Pass);
    Instant::now()
}

fn network_flaky(world: &mut World) -> Instant {
    for mode in [Mode::Slow(30), Mode::Truncating, Mode::Flaky] {
        network(world, mode, 500, 1500);
    }
    world.proxy.set(Mode::Pass);
    Instant::now()
}
