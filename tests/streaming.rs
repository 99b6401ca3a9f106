//! Large and prepared transactions against a real server, with protocol 1 and with protocol 2's streaming.

mod support;

use ruvector::cli::private_postgres::{PrivatePostgres, Settings};
use std::sync::LazyLock;
use support::{DOCS, Database, Service, Sql, cluster, wait_until};

/// Streams everything beyond the smallest memory a server can be given.
static CLUSTER: LazyLock<PrivatePostgres> = LazyLock::new(|| {
    let settings =
        Settings::default().with("logical_decoding_work_mem", "64kB").with("max_prepared_transactions", "10");
    cluster(settings)
});

const STREAMED: &str = "streaming = \"on\"\nspool_mib = 1";

fn database() -> Database {
    let database = Database::of(&CLUSTER);
    database.docs(10);
    database
}

fn service(database: &Database, source: &str) -> Service {
    let mut service = Service::configured(database, source, DOCS);
    service.start();
    service.wait_ready();
    service
}

/// Rows of about 300 bytes of WAL each.
fn insert(sql: &Sql, from: i64, to: i64) {
    sql.run(&format!(
        "INSERT INTO docs SELECT i, 's' || i % 3, repeat('x', 200), vec(i, 4) FROM generate_series({from}, {to}) i"
    ));
}

/// Bytes of open streamed transactions.
fn spooled(service: &Service) -> f64 {
    service.metric("ruvector_replication_spool_bytes")
}

fn wait_spooled(service: &mut Service) {
    service.wait_for("something is spooled", |service| spooled(service) > 0.0);
}

fn rows(service: &Service) -> u64 {
    service.collection("docs")["rows"].as_u64().expect("a count")
}

/// A transaction that takes back parts of itself, by savepoints of every kind, in the middle of what is streamed.
fn part_by_part(sql: &Sql) {
    sql.run("BEGIN");
    insert(sql, 1_001, 2_000);
    sql.run("SAVEPOINT a");
    insert(sql, 2_001, 3_000);
    sql.run("UPDATE docs SET section = 'wrong', embedding = vec(-id, 4) WHERE id <= 1500");
    sql.run("SAVEPOINT b; DELETE FROM docs WHERE id <= 5");
    insert(sql, 3_001, 4_000);
    sql.run("RELEASE b");
    sql.run("ROLLBACK TO a");
    insert(sql, 4_001, 5_000);
    sql.run("SAVEPOINT c; UPDATE docs SET section = 'right' WHERE id <= 1200");
    sql.run("SAVEPOINT d; DELETE FROM docs WHERE id BETWEEN 1101 AND 1200; RELEASE d; RELEASE c");
    sql.run("UPDATE docs SET id = id + 100000 WHERE id BETWEEN 4001 AND 4100");
}

#[test]
fn streamed_transactions_keep_what_their_subtransactions_kept() {
    let database = database();
    let mut service = service(&database, STREAMED);
    let (long, other) = (database.connect(), database.connect());
    part_by_part(&long);
    wait_spooled(&mut service);
    // Others commit meanwhile, small ones and one that is streamed too, and are seen before the long one ends.
    insert(&database.sql, 10_001, 10_010);
    other.run("BEGIN");
    insert(&other, 20_001, 23_000);
    other.run("ROLLBACK");
    other.run("BEGIN");
    insert(&other, 30_001, 32_000);
    other.run("COMMIT");
    service.catch_up(&database.sql);
    assert_eq!(rows(&service), 10 + 10 + 2_000);
    service.verify_clean("docs");
    long.run("COMMIT");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 10 + 10 + 2_000 + 1_000 + 1_000 - 100);
    assert_eq!(spooled(&service), 0.0);
}

#[test]
fn a_long_transaction_that_is_rolled_back_leaves_nothing() {
    let database = database();
    let mut service = service(&database, STREAMED);
    let long = database.connect();
    part_by_part(&long);
    wait_spooled(&mut service);
    long.run("ROLLBACK");
    insert(&database.sql, 10_001, 10_010);
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 20);
    service.wait_for("nothing is spooled", |service| spooled(service) == 0.0);
}

#[test]
fn a_column_dropped_in_a_subtransaction_that_is_rolled_back_pauses_nothing() {
    let database = database();
    let mut service = service(&database, STREAMED);
    let long = database.connect();
    long.run("BEGIN");
    insert(&long, 1_001, 2_000);
    long.run("SAVEPOINT a; ALTER TABLE docs DROP COLUMN embedding");
    long.run("INSERT INTO docs SELECT i, 's', repeat('x', 200) FROM generate_series(2001, 4000) i");
    wait_spooled(&mut service);
    long.run("ROLLBACK TO a; COMMIT");
    insert(&database.sql, 5_001, 5_010);
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 1_020);
    assert_eq!(service.collection("docs")["state"], "live");
}

#[test]
fn a_connection_cut_and_a_service_killed_in_the_middle_of_a_streamed_transaction_lose_and_double_nothing() {
    let database = database();
    let mut service = service(&database, STREAMED);
    let long = database.connect();
    let begun = database.sql.lsn();
    part_by_part(&long);
    wait_spooled(&mut service);
    insert(&database.sql, 10_001, 10_010);
    service.catch_up(&database.sql);
    // Confirmed past the beginning of a transaction that is still open: that must not lose it.
    let slot = service.slot.clone();
    wait_until("confirmed", || database.sql.confirmed(&slot).is_some_and(|confirmed| confirmed > begun));
    let cut = format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let reconnects = service.logged("streaming");
    database.sql.run(&cut);
    service.wait_for("streaming again", |service| service.logged("streaming") > reconnects);
    insert(&long, 40_001, 41_000);
    wait_spooled(&mut service);
    service.kill();
    service.start();
    service.wait_ready();
    insert(&long, 50_001, 51_000);
    wait_spooled(&mut service);
    long.run("COMMIT");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 10 + 10 + 1_000 + 1_000 - 100 + 2_000);
    // What it has applied does not come a second time.
    let writes = service.graph_writes("docs");
    database.sql.run(&cut);
    insert(&database.sql, 60_001, 60_010);
    service.catch_up(&database.sql);
    assert_eq!(service.graph_writes("docs"), writes + 10);
}

fn prepared_transactions(source: &str) {
    let database = database();
    let mut service = service(&database, source);
    let prefix = &database.name;
    let prepare = |name: &str, from: i64, to: i64| {
        let sql = database.connect();
        sql.run("BEGIN");
        insert(&sql, from, to);
        sql.run("UPDATE docs SET section = 'prepared' WHERE id <= 3");
        sql.run(&format!("PREPARE TRANSACTION '{prefix}-{name}'"));
    };
    let end = |how: &str, name: &str| database.sql.run(&format!("{how} PREPARED '{prefix}-{name}'"));
    // Small ones and ones large enough to be streamed; their locks on the first rows keep them one after the other.
    for (number, count) in [5, 2_000].into_iter().enumerate() {
        let from = 1_000 + 10_000 * number as i64;
        let before = rows(&service);
        prepare("kept", from, from + count - 1);
        insert(&database.sql, from + 5_000, from + 5_000);
        service.catch_up(&database.sql);
        assert_eq!(rows(&service), before + 1, "nothing of it is seen before its commit");
        // It outlives our connection and the server's memory of it.
        service.terminate();
        service.start();
        service.wait_ready();
        end("COMMIT", "kept");
        service.catch_up(&database.sql);
        assert_eq!(rows(&service), before + 1 + count as u64);
        prepare("gone", from + 6_000, from + 6_000 + count);
        insert(&database.sql, from + 9_000, from + 9_000);
        end("ROLLBACK", "gone");
        service.catch_up(&database.sql);
        assert_eq!(service.verify_clean("docs"), before + 2 + count as u64);
    }
}

#[test]
fn prepared_transactions_come_when_they_are_committed() {
    prepared_transactions("");
}

#[test]
fn prepared_transactions_that_were_streamed_come_when_they_are_committed() {
    prepared_transactions(STREAMED);
}
