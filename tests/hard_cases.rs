//! Hard cases of logical replication that no other test owns: beside PostgreSQL, with the real binary. The whole table,
//! with the test of each, is docs/hard-cases.md.

mod support;

use ruvector::cli::private_postgres::Settings;
use serde_json::json;
use std::time::Duration;
use support::{DOCS, Database, Service, Sql, cluster, ids, near, wait_until};

// Row images.

#[test]
fn a_partition_root_with_another_identity_than_its_leaf_loses_no_vector() {
    for (root, leaf) in [("FULL", "DEFAULT"), ("DEFAULT", "FULL"), ("FULL", "FULL")] {
        let database = Database::shared();
        database.sql.run(&format!(
            "CREATE TABLE docs (id bigint PRIMARY KEY, section text, embedding real[]) PARTITION BY RANGE (id);
             CREATE TABLE leaf PARTITION OF docs FOR VALUES FROM (0) TO (100) WITH (toast_tuple_target = 128);
             ALTER TABLE leaf ALTER embedding SET STORAGE EXTERNAL;
             ALTER TABLE docs REPLICA IDENTITY {root}; ALTER TABLE leaf REPLICA IDENTITY {leaf};
             INSERT INTO docs SELECT i, 's', vec(i, 384) FROM generate_series(1, 20) i"
        ));
        let mut service = Service::ready(&database, DOCS);
        database.sql.run("UPDATE docs SET section = 't' WHERE id <= 10; UPDATE docs SET id = 50 WHERE id = 3");
        service.catch_up(&database.sql);
        assert_eq!(service.verify_clean("docs"), 20, "root {root}, leaf {leaf}");
        assert_eq!(ids(&service.search("docs", &near(3, 384, 1))), [50], "root {root}, leaf {leaf}");
    }
}

/// A partition that is not attached, beside one that is; their vectors are out of line.
fn with_a_partition_aside(database: &Database) {
    database.sql.run(
        "CREATE TABLE docs (id bigint PRIMARY KEY, section text, embedding real[]) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF docs FOR VALUES FROM (0) TO (100);
         INSERT INTO docs SELECT i, 's', vec(i, 600) FROM generate_series(1, 20) i;
         CREATE TABLE more (LIKE docs INCLUDING ALL);
         ALTER TABLE more ALTER embedding SET STORAGE EXTERNAL;
         INSERT INTO more SELECT i, 's', vec(i, 600) FROM generate_series(200, 209) i",
    );
}

const ATTACH: &str = "ALTER TABLE docs ATTACH PARTITION more FOR VALUES FROM (200) TO (300)";
/// Tables are looked at when streaming begins and not again: a comparison would find what is to be found otherwise.
const ONCE: &str = "reconcile_s = 3600";

/// Updates that leave the vectors out, of rows that never came.
fn update_aside(database: &Database) {
    let update = "UPDATE docs SET section = 'touched' WHERE id >= 200";
    database.sql.run(&format!("BEGIN; {ATTACH}; {update}; ALTER TABLE docs DETACH PARTITION more; COMMIT"));
}

#[test]
fn a_row_to_be_read_again_is_not_forgotten_by_a_crash() {
    let database = Database::shared();
    with_a_partition_aside(&database);
    let mut service = Service::configured(&database, ONCE, DOCS);
    service.start();
    service.wait_ready();
    // As long as they are in no partition nobody can read them by their keys.
    update_aside(&database);
    let end = database.sql.lsn();
    service.catch_up(&database.sql);
    wait_until("it is confirmed", || database.sql.confirmed(&database.name) >= Some(end));
    let are_awaited = |service: &Service| {
        let found = service.collection("docs");
        assert_eq!(service.logged("read rows again that were missing here"), 0, "{}", service.log_tail());
        found["rows"] == 30 && found["dead_letters"] == 10
    };
    assert!(are_awaited(&service), "{:#}", service.collection("docs"));
    // The first time they may be known from the log, the second time only from the state.
    service.kill();
    service.start_checking_confirmed(&database);
    service.catch_up(&database.sql);
    assert!(are_awaited(&service), "{:#}", service.collection("docs"));
    service.terminate();
    service.start_checking_confirmed(&database);
    service.catch_up(&database.sql);
    assert!(are_awaited(&service), "{:#}", service.collection("docs"));
    service.kill();
    // Its tables were looked at when it has said that this one cannot be copied; it does not look again.
    let absent = DOCS.replace("public.docs", "public.absent").replace("name = \"docs\"", "name = \"absent\"");
    service.configure(&database.dsn, ONCE, &format!("{DOCS}{absent}"));
    service.start_checking_confirmed(&database);
    service.wait_for("tables are looked at", |service| service.logged("a collection cannot be copied") > 0);
    database.sql.run(ATTACH);
    service.wait_for("the rows are whole", |service| service.collection("docs")["dead_letters"] == 0);
    assert_eq!(service.verify_clean("docs"), 30);
    assert_eq!(ids(&service.search("docs", &near(205, 600, 1))), [205]);
    assert_eq!(service.logged("comparing with the source"), 0, "{}", service.log_tail());
}

#[test]
fn with_replica_identity_full_the_old_row_brings_the_vector_of_a_row_that_never_came() {
    let database = Database::shared();
    with_a_partition_aside(&database);
    database.sql.run("ALTER TABLE docs REPLICA IDENTITY FULL; ALTER TABLE more REPLICA IDENTITY FULL");
    let mut service = Service::configured(&database, ONCE, DOCS);
    service.start();
    service.wait_ready();
    update_aside(&database);
    service.catch_up(&database.sql);
    let found = service.collection("docs");
    assert_eq!((&found["rows"], &found["dead_letters"]), (&json!(30), &json!(0)), "{found:#}");
    database.sql.run(ATTACH);
    assert_eq!(service.verify_clean("docs"), 30);
}

#[test]
fn text_settings_of_the_database_change_no_value() {
    let database = Database::shared();
    let name = &database.name;
    database.sql.run(&format!(
        "CREATE TABLE docs (id bigint PRIMARY KEY, section text, at timestamptz, day date, price float8, embedding real[]);
         INSERT INTO docs SELECT i, 's', '2024-02-03 04:05:06.789+00'::timestamptz + i * interval '1 day', '2024-02-03'::date + i,
                                 i / 3.0::float8, ARRAY[i / 3.0, 0.123456789, 1e-20, 1e20]::real[] FROM generate_series(1, 20) i;
         ALTER DATABASE {name} SET extra_float_digits = -6; ALTER DATABASE {name} SET DateStyle = 'German, DMY';
         ALTER DATABASE {name} SET TimeZone = 'Asia/Kathmandu'; ALTER DATABASE {name} SET IntervalStyle = 'sql_standard';
         ALTER DATABASE {name} SET bytea_output = 'escape'"
    ));
    let sections = DOCS.replace("[\"section\"]", "[\"section\", \"at\", \"day\", \"price\"]");
    let mut service = Service::ready(&database, &sections);
    let writer = database.connect();
    assert_eq!(writer.one("SHOW extra_float_digits"), "-6");
    writer.run(
        "INSERT INTO docs SELECT i + 100, section, at, day, price, embedding FROM docs d, LATERAL (SELECT d.id AS i) s;
         UPDATE docs SET section = 't' WHERE id % 2 = 0",
    );
    service.catch_up(&writer);
    assert_eq!(service.verify_clean("docs"), 40);
    // Copied and streamed are the same to the last bit.
    let body = json!({
        "query": { "id": 7 }, "limit": 1, "recheck": "none", "columns": ["at", "day", "price"],
        "search": { "exact": true }
    });
    let answer = service.search("docs", &body);
    assert_eq!((&answer["hits"][0]["id"], &answer["hits"][0]["distance"]), (&json!(107), &json!(0.0)), "{answer:#}");
    let price = answer["hits"][0]["columns"]["price"].as_f64().expect("a number");
    assert_eq!(price, 7.0 / 3.0);
}

#[test]
fn columns_without_a_binary_form_do_not_matter() {
    let database = Database::shared();
    database.sql.run(
        "CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE DOMAIN short AS text CHECK (length(VALUE) < 9);
         CREATE TABLE docs (id bigint PRIMARY KEY, rights aclitem, mood mood, short short, section text, embedding real[]);
         INSERT INTO docs SELECT i, 'postgres=r/postgres', 'good', 'x', 's', vec(i, 4) FROM generate_series(1, 10) i",
    );
    let mut service = Service::ready(&database, DOCS);
    database.sql.run(
        "INSERT INTO docs SELECT i, 'postgres=r/postgres', 'bad', 'y', 's', vec(i, 4) FROM generate_series(11, 20) i;
         UPDATE docs SET mood = 'bad', section = 't'",
    );
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 20);
}

#[test]
fn what_cannot_be_keyed_or_filtered_by_is_refused_with_its_type() {
    for (table, filters, said) in [
        ("id timestamptz PRIMARY KEY, section text", "section", "key column \"id\""),
        ("id jsonb PRIMARY KEY, section text", "section", "key column \"id\""),
        ("id int PRIMARY KEY, section jsonb", "section", "filter column \"section\""),
        ("id int PRIMARY KEY, section mood", "section", "filter column \"section\""),
        ("id int PRIMARY KEY, section int GENERATED ALWAYS AS (id * 2) STORED", "section", "is generated"),
        ("id int, section text, PRIMARY KEY (id) DEFERRABLE", "section", "no usable replica identity"),
    ] {
        let database = Database::shared();
        database.sql.run(&format!("CREATE TYPE mood AS ENUM ('good'); CREATE TABLE docs ({table}, embedding real[])"));
        let mut service = Service::configured(&database, "", &DOCS.replace("\"section\"", &format!("\"{filters}\"")));
        let why = service.refusal();
        assert!(why.contains(said), "{table}: {why}");
        assert_eq!(database.sql.one("SELECT count(*) FROM pg_publication"), "0", "{table}");
        assert_eq!(database.sql.text(&slots_of(&database)), None, "{table}");
    }
    let database = Database::shared();
    database.docs(3);
    database.sql.run("ALTER TABLE docs REPLICA IDENTITY NOTHING");
    let mut service = Service::configured(&database, "", DOCS);
    let why = service.refusal();
    assert!(why.contains("no usable replica identity"), "{why}");
}

fn slots_of(database: &Database) -> String {
    format!("SELECT string_agg(slot_name, ',') FROM pg_replication_slots WHERE database = '{}'", database.name)
}

// Transactions and messages.

#[test]
fn interleaved_transactions_arrive_whole_in_the_order_of_their_commits() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    let [a, b, c] = [(); 3].map(|()| database.connect());
    a.run("BEGIN; INSERT INTO docs VALUES (20, 'a', 'b', vec(20, 4))");
    b.run("BEGIN; INSERT INTO docs VALUES (30, 'b', 'b', vec(30, 4)); UPDATE docs SET embedding = vec(31, 4) WHERE id = 1");
    c.run("BEGIN; DELETE FROM docs WHERE id = 2; INSERT INTO docs VALUES (40, 'c', 'b', vec(40, 4)); COMMIT");
    service.catch_up(&database.sql);
    // From here on what comes lies before what was applied.
    b.run("INSERT INTO docs VALUES (32, 'b', 'b', vec(32, 4)); COMMIT");
    service.catch_up(&database.sql);
    a.run("UPDATE docs SET embedding = vec(21, 4) WHERE id = 1; INSERT INTO docs VALUES (2, 'a', 'b', vec(22, 4)); COMMIT");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 14);
    for (seed, id) in [(20, 20), (30, 30), (21, 1), (22, 2)] {
        assert_eq!(ids(&service.search("docs", &near(seed, 4, 1))), [id]);
    }
}

#[test]
fn messages_of_others_change_nothing() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    database.sql.run(
        "BEGIN; SELECT pg_logical_emit_message(false, 'x', 'outside'); INSERT INTO docs VALUES (20, 's', 'b', vec(20, 4));
         SELECT pg_logical_emit_message(true, 'x', 'inside'); ROLLBACK;
         BEGIN; INSERT INTO docs VALUES (21, 's', 'b', vec(21, 4)); SELECT pg_logical_emit_message(false, 'x', 'outside');
         SELECT pg_logical_emit_message(true, 'x', 'inside'); INSERT INTO docs VALUES (22, 's', 'b', vec(22, 4)); COMMIT;
         SELECT pg_logical_emit_message(true, 'ruvector', ''), pg_logical_emit_message(false, '', repeat('long', 100000))",
    );
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 12);
}

#[test]
fn changes_that_came_from_another_node_arrive() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    let origin = format!("origin_{}", database.name);
    database.sql.run(&format!(
        "SELECT pg_replication_origin_create('{origin}'); SELECT pg_replication_origin_session_setup('{origin}')"
    ));
    database.sql.run("INSERT INTO docs VALUES (20, 's', 'b', vec(20, 4)); UPDATE docs SET section = 'o' WHERE id < 4");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 11);
    database
        .sql
        .run(&format!("SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('{origin}')"));
}

#[test]
fn upserts_of_old_and_new_rows_arrive() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    database.sql.run(
        "INSERT INTO docs SELECT i, 'up', 'b', vec(i + 500, 4) FROM generate_series(6, 15) i
           ON CONFLICT (id) DO UPDATE SET section = excluded.section, embedding = excluded.embedding;
         INSERT INTO docs VALUES (1, 'not', 'b', vec(900, 4)), (30, 'new', 'b', vec(30, 4)) ON CONFLICT DO NOTHING;
         MERGE INTO docs USING (SELECT generate_series(29, 31) AS id) n ON n.id = docs.id
           WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (n.id, 'merged', 'b', vec(n.id, 4))",
    );
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 17);
    assert_eq!(ids(&service.search("docs", &near(507, 4, 1))), [7]);
}

#[test]
fn truncate_cascade_empties_what_hangs_on_it() {
    let database = Database::shared();
    database.docs(10);
    database.sql.run(
        "CREATE TABLE parts (id bigint PRIMARY KEY, section text, doc bigint REFERENCES docs, embedding real[]);
         INSERT INTO parts SELECT i, 's', i, vec(i, 4) FROM generate_series(1, 10) i",
    );
    let parts = DOCS.replace("public.docs", "public.parts").replace("name = \"docs\"", "name = \"parts\"");
    let mut service = Service::ready(&database, &format!("{DOCS}{parts}"));
    database.sql.run("TRUNCATE docs RESTART IDENTITY CASCADE; INSERT INTO docs VALUES (1, 's', 'b', vec(1, 4))");
    service.catch_up(&database.sql);
    assert_eq!((service.verify_clean("docs"), service.verify_clean("parts")), (1, 0));
}

// Slots.

#[test]
fn an_old_transaction_delays_the_slot_and_leaves_none_behind() {
    // Of its own: the old transaction would hold up the slots of every other test.
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(10);
    let old = database.connect();
    old.run("CREATE TABLE other (id int); BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'forgotten'");
    let mut service = Service::configured(&database, "slot_lock_timeout_s = 1", DOCS);
    service.start();
    service.wait_for("it was refused a slot", |service| service.logged("55P03") >= 2);
    assert!(!service.is_ready());
    // In the pause between two attempts there is no slot, and never more than the one that is being made.
    wait_until("no slot is left", || database.sql.one("SELECT count(*) FROM pg_replication_slots") == "0");
    old.run("ROLLBACK PREPARED 'forgotten'");
    service.wait_ready();
    assert_eq!(service.verify_clean("docs"), 10);
    assert_eq!(database.sql.one("SELECT count(*) FROM pg_replication_slots"), "1");
}

#[test]
fn timeouts_that_the_database_gives_its_sessions_end_nothing_of_ours() {
    let database = Database::shared();
    database.docs(3_000);
    let name = &database.name;
    // The exported snapshot, the copy and the comparison are transactions with pauses; rows are waited for.
    database.sql.run(&format!(
        "ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '1ms';
         ALTER DATABASE {name} SET idle_session_timeout = '1s'; ALTER DATABASE {name} SET statement_timeout = '1s'"
    ));
    let mut service = Service::ready(&database, DOCS);
    assert_eq!(service.logged("copy was interrupted") + service.logged("copy ended"), 0, "{}", service.log_tail());
    assert_eq!(ids(&service.search("docs", &near(7, 4, 1))), [7]);
    database.sql.run("BEGIN; LOCK TABLE docs IN ACCESS EXCLUSIVE MODE");
    std::thread::scope(|scope| {
        let verified = scope.spawn(|| service.verify_clean("docs"));
        let waiting = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'docs'::regclass AND NOT granted";
        wait_until("it waits for the table", || database.sql.one(waiting) == "t");
        std::thread::sleep(Duration::from_millis(1_500));
        database.sql.run("COMMIT");
        assert_eq!(verified.join().expect("verified"), 3_000);
    });
    database.sql.run("DELETE FROM docs WHERE id = 7");
    service.catch_up(&database.sql);
    assert_ne!(ids(&service.search("docs", &near(7, 4, 1))), [7]);
    assert_eq!(service.verify_clean("docs"), 2_999);
}

#[test]
fn a_slot_made_again_under_our_name_means_copying_again() {
    let database = Database::shared();
    database.docs(50);
    let mut service = Service::ready(&database, DOCS);
    let old = service.slot.clone();
    service.terminate();
    database.drop_slot(&old);
    database.sql.run("DELETE FROM docs WHERE id <= 5");
    // Somebody means well: the slot is there, and what was before it is not.
    database.sql.run(&format!("SELECT pg_create_logical_replication_slot('{old}', 'pgoutput')"));
    service.start();
    service.wait_for("a new copy answers", |service| service.is_ready() && service.status()["slot"] != json!(old));
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 45);
    let slot = service.status()["slot"].as_str().expect("a slot").to_owned();
    wait_until("only the new slot is there", || database.sql.text(&slots_of(&database)).as_ref() == Some(&slot));
}

#[test]
fn a_server_without_a_free_connection_is_asked_again() {
    let database = Database::shared();
    database.docs(10);
    let (name, role) = (&database.name, format!("limited_{}", database.name));
    database.sql.run(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON docs TO {role};
         CREATE PUBLICATION {name} FOR TABLE docs WITH (publish_via_partition_root = true)"
    ));
    let mut service = Service::configured(&database, "", DOCS);
    let dsn = database.dsn.replace("postgres@", &format!("{role}@"));
    service.configure(&dsn, "create_publication = false", DOCS);
    service.start();
    service.wait_ready();
    database.sql.run(&format!(
        "ALTER ROLE {role} CONNECTION LIMIT 0; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
    ));
    service.wait_for("it is refused a connection", |service| service.logged("53300") > 0);
    database.sql.run(&format!("ALTER ROLE {role} CONNECTION LIMIT -1; DELETE FROM docs WHERE id = 1"));
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 9);
}

// Schema and publication.

#[test]
fn columns_and_names_change_between_rows_of_one_transaction() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    database.sql.run(
        "BEGIN; INSERT INTO docs VALUES (20, 's', 'b', vec(20, 4)); ALTER TABLE docs ADD COLUMN extra int DEFAULT 7;
         INSERT INTO docs VALUES (21, 's', 'b', vec(21, 4), 1); ALTER TABLE docs DROP COLUMN body;
         INSERT INTO docs VALUES (22, 's', vec(22, 4), 2); ALTER TABLE docs RENAME extra TO more;
         UPDATE docs SET more = 3 WHERE id = 20; ALTER TABLE docs RENAME TO papers;
         INSERT INTO papers VALUES (23, 's', vec(23, 4), 4); CREATE SCHEMA elsewhere; ALTER TABLE papers SET SCHEMA elsewhere;
         INSERT INTO elsewhere.papers VALUES (24, 's', vec(24, 4), 4); ALTER TABLE elsewhere.papers SET SCHEMA public;
         ALTER TABLE papers RENAME TO docs; COMMIT",
    );
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 15);
    assert_eq!(ids(&service.search("docs", &near(24, 4, 1))), [24]);
}

#[test]
fn rewrites_of_the_table_that_change_no_value_of_ours_change_nothing() {
    let database = Database::shared();
    database.docs(30);
    let mut service = Service::ready(&database, DOCS);
    let before = service.graph_writes("docs");
    database.sql.run("ALTER TABLE docs ADD COLUMN chance float8 DEFAULT random()");
    database.sql.run("VACUUM FULL docs");
    database.sql.run("CLUSTER docs USING docs_pkey");
    database.sql.run("ALTER TABLE docs ALTER body TYPE varchar(99)");
    database.sql.run("UPDATE docs SET section = 'after' WHERE id = 3; DELETE FROM docs WHERE id = 4");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 29);
    assert_eq!(service.graph_writes("docs"), before);
}

#[test]
fn a_publication_that_hides_rows_columns_or_operations_is_refused_with_the_sql() {
    for (published, said) in [
        ("FOR TABLE docs WHERE (id > 5)", "row filter"),
        ("FOR TABLE docs (id, section)", "leaves out \"embedding\""),
        ("FOR TABLE docs WITH (publish = 'insert, update, delete')", "does not publish truncate"),
        ("FOR TABLE docs WITH (publish = 'insert')", "does not publish update"),
    ] {
        let database = Database::shared();
        database.docs(10);
        let name = &database.name;
        database.sql.run(&format!("CREATE PUBLICATION {name} {published}"));
        let mut service = Service::configured(&database, "", DOCS);
        let why = service.refusal();
        assert!(why.contains(said) && why.contains("ALTER PUBLICATION"), "{published}: {why}");
        assert_eq!(database.sql.text(&slots_of(&database)), None);
    }
}

#[test]
fn a_publication_that_sends_partitions_under_their_own_names_is_refused_with_the_sql() {
    let database = Database::shared();
    with_a_partition_aside(&database);
    database.sql.run(&format!("CREATE PUBLICATION {} FOR TABLE docs", database.name));
    let mut service = Service::configured(&database, "", DOCS);
    let why = service.refusal();
    let sql = format!("ALTER PUBLICATION \"{}\" SET (publish_via_partition_root = true);", database.name);
    assert!(why.contains(&sql), "{why}");
    assert_eq!(database.sql.text(&slots_of(&database)), None);
    database.sql.run(&sql);
    service.start();
    service.wait_ready();
    assert_eq!(service.verify_clean("docs"), 20);
}

#[test]
fn nothing_but_a_publication_and_a_slot_is_made_in_the_source() {
    let database = Database::shared();
    database.docs(10);
    let catalogs =
        ["class", "proc", "type", "trigger", "event_trigger", "rewrite", "extension", "namespace", "language"];
    let counts = catalogs.map(|name| format!("(SELECT count(*) FROM pg_{name})")).join(", ");
    let objects = || database.sql.one(&format!("SELECT concat_ws(' ', {counts})"));
    let before = objects();
    let mut service = Service::ready(&database, DOCS);
    database.sql.run("ALTER TABLE docs ADD COLUMN more int; UPDATE docs SET section = 't'");
    service.catch_up(&database.sql);
    service.verify_clean("docs");
    assert_eq!(objects(), before, "{catalogs:?}");
    assert_eq!(database.sql.one("SELECT string_agg(pubname, ' ') FROM pg_publication"), database.name);
    assert_eq!(database.sql.one(&slots_of(&database)), database.name);
}

#[test]
fn children_of_a_table_that_is_inherited_from_are_not_the_table() {
    let database = Database::shared();
    database.docs(10);
    database.sql.run(
        "CREATE TABLE child (more int, PRIMARY KEY (id)) INHERITS (docs);
         INSERT INTO child SELECT i, 'c', 'b', vec(i, 4), 1 FROM generate_series(100, 110) i",
    );
    let mut service = Service::ready(&database, DOCS);
    database.sql.run(
        "INSERT INTO child SELECT i, 'c', 'b', vec(i, 4), 1 FROM generate_series(200, 210) i;
         UPDATE docs SET section = 'both'; DELETE FROM docs WHERE id IN (1, 100)",
    );
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 9);
    let rechecked = service.search("docs", &near(105, 4, 50));
    assert_eq!(ids(&rechecked).len(), 9, "{rechecked:#}");
}

#[test]
fn an_unlogged_table_is_refused() {
    let database = Database::shared();
    database.sql.run("CREATE UNLOGGED TABLE docs (id int PRIMARY KEY, section text, body text, embedding real[])");
    let mut service = Service::configured(&database, "", DOCS);
    let why = service.refusal();
    assert!(why.contains("unlogged"), "{why}");
    database.sql.run("ALTER TABLE docs SET LOGGED");
    service.start();
    service.wait_ready();
    assert!(
        database.sql.try_run("ALTER TABLE docs SET UNLOGGED").is_err(),
        "PostgreSQL itself protects what is published"
    );
}

#[test]
fn a_primary_key_that_is_dropped_pauses_the_collection_with_the_reason() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    database.sql.run("ALTER TABLE docs DROP CONSTRAINT docs_pkey; INSERT INTO docs VALUES (20, 's', 'b', vec(20, 4))");
    service.catch_up(&database.sql);
    assert_eq!(service.collection("docs")["state"], "paused");
    let answer = service.search("docs", &near(1, 4, 1));
    assert!(answer["stale"].as_str().is_some_and(|why| why.contains("replica identity")), "{answer:#}");
}

#[test]
fn a_confirmed_position_moves_on_while_a_long_transaction_holds_the_wal() {
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    let old: Sql = database.connect();
    old.run("CREATE TABLE other (id int); BEGIN; INSERT INTO other VALUES (1)");
    for n in 0..5 {
        database.sql.run(&format!("INSERT INTO docs VALUES ({}, 's', 'b', vec(1, 4)); CHECKPOINT", 50 + n));
    }
    service.catch_up(&database.sql);
    let end = database.sql.lsn();
    database.sql.run("SELECT pg_logical_emit_message(true, 'test', '')");
    support::wait_within(Duration::from_secs(10), "it is confirmed", || {
        database.sql.confirmed(&database.name) >= Some(end)
    });
    let kept = "SELECT restart_lsn < confirmed_flush_lsn FROM pg_replication_slots";
    assert_eq!(database.sql.one(kept), "t", "the open transaction's WAL is kept by the server, not by us");
    old.run("COMMIT");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 15);
}
