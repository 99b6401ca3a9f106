//! The real binary beside a real PostgreSQL: what must arrive arrives once, what must not stop the service does not, and
//! what must be refused is refused with the SQL that mends it.

mod support;

use ruvector::cli::private_postgres::{Settings, Stop};
use serde_json::json;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{DOCS, Database, Service, Sql, cluster, ids, near, wait_until, wait_within};

/// The same collection over another table.
fn over(table: &str) -> String {
    DOCS.replace("public.docs", &format!("public.{table}")).replace("name = \"docs\"", &format!("name = \"{table}\""))
}

fn search_error(service: &Service, collection: &str, body: &serde_json::Value) -> String {
    format!("{:#}", service.try_search(collection, body).expect_err("a problem"))
}

// Copy and stream.

#[test]
fn rows_written_during_the_copy_arrive_exactly_once() {
    let database = Database::shared();
    database.docs(20_000);
    let mut service = Service::configured(&database, "", DOCS);
    let writer = database.connect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (new, old, moved) = (100_000 + n, n * 7 % 20_000, n * 11 % 20_000);
                writer.run(&format!(
                    "INSERT INTO docs VALUES ({new}, 'new', 'b', vec({new}, 4));
                     UPDATE docs SET embedding = vec({new}, 4) WHERE id = {old};
                     UPDATE docs SET id = -id WHERE id = {moved};
                     DELETE FROM docs WHERE id = {old} + 1;"
                ));
            }
        });
        service.start();
        service.wait_ready();
        stop.store(true, Ordering::Relaxed);
    });
    service.catch_up(&database.sql);
    let rows = service.verify_clean("docs");
    assert_eq!(rows.to_string(), database.sql.one("SELECT count(*) FROM docs"));
}

#[test]
fn copy_of_many_rows_in_one_transaction_arrives() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    // Multi-insert WAL records: many rows that share one LSN.
    database.sql.run("COPY docs FROM PROGRAM 'seq 100 6099 | sed \"s/.*/&\tmany\tbody\t{&,0,0,1}/\"'");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 6010);
    let answer = service.search("docs", &json!({ "query": { "vector": [5000, 0, 0, 1] }, "limit": 1 }));
    assert_eq!(ids(&answer), [5000]);
}

#[test]
fn an_untouched_toasted_vector_stays_and_costs_no_graph_work() {
    let database = Database::shared();
    database.long_docs(50);
    let mut service = Service::ready(&database, DOCS);
    let before = service.graph_writes("docs");
    database.sql.run("UPDATE docs SET section = 'changed'");
    database.sql.run("UPDATE docs SET body = repeat('q', 700) WHERE id <= 25");
    service.catch_up(&database.sql);
    assert_eq!(service.graph_writes("docs"), before);
    service.verify_clean("docs");
    let filtered =
        json!({ "query": { "vector": support::vec_of(7, 384) }, "limit": 1, "filter": "section = 'changed'" });
    assert_eq!(ids(&service.search("docs", &filtered)), [7]);
}

#[test]
fn an_inline_vector_sent_again_unchanged_costs_no_graph_work() {
    let database = Database::shared();
    database.docs(200);
    let mut service = Service::ready(&database, DOCS);
    let before = service.graph_writes("docs");
    for round in 0..5 {
        database.sql.run(&format!("UPDATE docs SET section = 'r{round}'"));
    }
    service.catch_up(&database.sql);
    assert_eq!(service.graph_writes("docs"), before);
    database.sql.run("UPDATE docs SET embedding = vec(1000, 4) WHERE id = 1");
    service.catch_up(&database.sql);
    assert_eq!(service.graph_writes("docs"), before + 1);
    service.verify_clean("docs");
}

#[test]
fn a_changed_key_moves_the_row() {
    let database = Database::shared();
    database.docs(20);
    let mut service = Service::ready(&database, DOCS);
    database
        .sql
        .run("UPDATE docs SET id = 100 WHERE id = 2; UPDATE docs SET id = 200, embedding = vec(900, 4) WHERE id = 3");
    // A chain through a key that was just left.
    database.sql.run("BEGIN; UPDATE docs SET id = 2 WHERE id = 4; UPDATE docs SET id = 4 WHERE id = 5; COMMIT");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 20);
    assert_eq!(ids(&service.search("docs", &near(2, 4, 1))), [100]);
    assert_eq!(ids(&service.search("docs", &near(900, 4, 1))), [200]);
    assert_eq!(ids(&service.search("docs", &near(4, 4, 1))), [2]);
}

#[test]
fn a_changed_key_takes_an_untouched_toasted_vector_along() {
    let database = Database::shared();
    database.long_docs(20);
    let mut service = Service::ready(&database, DOCS);
    let before = service.graph_writes("docs");
    database.sql.run("UPDATE docs SET id = 100 WHERE id = 2");
    service.catch_up(&database.sql);
    assert_eq!(service.graph_writes("docs"), before);
    let found = ids(&service.search("docs", &near(2, 384, 20)));
    assert_eq!(found[0], 100);
    assert!(!found.contains(&json!(2)));
    service.verify_clean("docs");
}

#[test]
fn replica_identity_full_loses_no_toasted_vector() {
    let database = Database::shared();
    database.long_docs(20);
    database.sql.run("ALTER TABLE docs REPLICA IDENTITY FULL");
    let mut service = Service::ready(&database, DOCS);
    let before = service.graph_writes("docs");
    database
        .sql
        .run("UPDATE docs SET section = 'x'; UPDATE docs SET id = 100 WHERE id = 2; DELETE FROM docs WHERE id = 3");
    service.catch_up(&database.sql);
    assert_eq!(service.graph_writes("docs"), before);
    assert_eq!(service.verify_clean("docs"), 19);
    assert_eq!(ids(&service.search("docs", &near(2, 384, 1))), [100]);
}

#[test]
fn replica_identity_using_an_index_keys_by_it() {
    let database = Database::shared();
    database.docs(20);
    database.sql.run(
        "ALTER TABLE docs ADD code text; UPDATE docs SET code = 'c' || id; ALTER TABLE docs ALTER code SET NOT NULL;
         CREATE UNIQUE INDEX by_code ON docs (code, id); ALTER TABLE docs REPLICA IDENTITY USING INDEX by_code",
    );
    let mut service = Service::ready(&database, DOCS);
    database
        .sql
        .run("UPDATE docs SET code = 'moved' WHERE id = 2; DELETE FROM docs WHERE id = 3; UPDATE docs SET body = 'x'");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 19);
    assert_eq!(ids(&service.search("docs", &near(2, 4, 1))), [json!({ "code": "moved", "id": 2 })]);
}

#[test]
fn truncate_empties_every_collection_it_names() {
    let database = Database::shared();
    database.docs(30);
    database.sql.run("CREATE TABLE other (LIKE docs INCLUDING ALL); INSERT INTO other SELECT * FROM docs");
    let mut service = Service::ready(&database, &format!("{DOCS}{}", over("other")));
    database.sql.run(
        "BEGIN; INSERT INTO docs VALUES (99, 's', 'b', vec(99, 4)); TRUNCATE docs, other;
                      INSERT INTO docs VALUES (1, 's', 'b', vec(1, 4)); COMMIT",
    );
    service.catch_up(&database.sql);
    assert_eq!((service.verify_clean("docs"), service.verify_clean("other")), (1, 0));
    assert_eq!(ids(&service.search("docs", &near(9, 4, 10))), [1]);
}

#[test]
fn a_vector_can_become_null_and_come_back() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    database.sql.run("UPDATE docs SET embedding = NULL WHERE id = 4");
    service.catch_up(&database.sql);
    assert!(!ids(&service.search("docs", &near(4, 4, 10))).contains(&json!(4)));
    assert_eq!(service.verify_clean("docs"), 10);
    assert_eq!(service.dead_letters("docs"), []);
    let by_row = search_error(&service, "docs", &json!({ "query": { "id": 4 } }));
    assert!(by_row.starts_with("RV1012"), "{by_row}");
    database.sql.run("UPDATE docs SET embedding = vec(4, 4) WHERE id = 4");
    service.catch_up(&database.sql);
    assert_eq!(ids(&service.search("docs", &near(4, 4, 1))), [4]);
}

#[test]
fn several_operations_on_one_key_leave_their_net_effect() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    database.sql.run(
        "BEGIN;
         INSERT INTO docs VALUES (50, 's', 'b', vec(50, 4)); UPDATE docs SET body = 'x' WHERE id = 50;
         UPDATE docs SET embedding = vec(51, 4) WHERE id = 50; DELETE FROM docs WHERE id = 50;
         DELETE FROM docs WHERE id = 1; INSERT INTO docs VALUES (1, 'again', 'b', vec(60, 4));
         UPDATE docs SET id = 70 WHERE id = 2; UPDATE docs SET id = 2 WHERE id = 70;
         UPDATE docs SET id = 71 WHERE id = 3; DELETE FROM docs WHERE id = 71;
         COMMIT",
    );
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 9);
    assert_eq!(ids(&service.search("docs", &near(60, 4, 1))), [1]);
    assert_eq!(ids(&service.search("docs", &near(2, 4, 1))), [2]);
}

#[test]
fn what_is_rolled_back_never_arrives() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    database.sql.run(
        "BEGIN; INSERT INTO docs VALUES (20, 's', 'b', vec(20, 4)); SAVEPOINT a;
         INSERT INTO docs VALUES (21, 's', 'b', vec(21, 4)); DELETE FROM docs WHERE id = 1; SAVEPOINT b;
         INSERT INTO docs VALUES (22, 's', 'b', vec(22, 4)); ROLLBACK TO a;
         INSERT INTO docs VALUES (23, 's', 'b', vec(23, 4)); COMMIT;
         BEGIN; DELETE FROM docs; ROLLBACK",
    );
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 12);
}

#[test]
fn a_prepared_transaction_arrives_when_it_is_committed() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    database.sql.run("BEGIN; INSERT INTO docs VALUES (20, 's', 'b', vec(20, 4)); PREPARE TRANSACTION 'p'");
    database.sql.run("INSERT INTO docs VALUES (21, 's', 'b', vec(21, 4))");
    service.catch_up(&database.sql);
    assert_eq!(service.collection("docs")["rows"], 11);
    database.sql.run("COMMIT PREPARED 'p'");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 12);
}

// Rows that cannot be indexed.

/// What a vector column of `real[]` can hold that is no vector, and what is said of it.
const BAD: &[(&str, &str)] = &[
    ("ARRAY[1, 2, 'NaN', 4]::real[]", "element 3 is NaN"),
    ("ARRAY[1, 'Infinity', 3, 4]::real[]", "element 2 is inf"),
    ("ARRAY[1, NULL, 3, 4]::real[]", "NULL"),
    ("ARRAY[1, 2, 3]::real[]", "3 dimensions instead of 4"),
    ("ARRAY[[1, 2], [3, 4]]::real[]", "dimension"),
    ("ARRAY[]::real[]", "empty array"),
];

fn check_letters(service: &Service, first: usize) {
    let letters = service.dead_letters("docs");
    assert_eq!(letters.len(), BAD.len(), "{letters:?}");
    for (at, (value, reason)) in BAD.iter().enumerate() {
        let key = (first + at).to_string();
        let found = letters.iter().find(|(found, _)| *found == key);
        let (_, said) = found.unwrap_or_else(|| panic!("{value} has no letter: {letters:?}"));
        assert!(said.contains(reason), "{value}: {said}");
    }
    assert_eq!(service.collection("docs")["dead_letters"], BAD.len());
    assert_eq!(service.status()["collections"][0]["dead_letters"], BAD.len());
    let metrics = service.client().text("/metrics").expect("metrics");
    assert!(metrics.contains(&format!("ruvector_dead_letters{{collection=\"docs\"}} {}", BAD.len())), "{metrics}");
}

fn insert_bad(sql: &Sql, first: usize) {
    for (at, (value, _)) in BAD.iter().enumerate() {
        sql.run(&format!("INSERT INTO docs VALUES ({}, 's', 'b', {value})", first + at));
    }
}

#[test]
fn rows_that_cannot_be_indexed_become_dead_letters_until_they_are_mended() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    insert_bad(&database.sql, 20);
    // After them everything goes on, and a payload update does not hide why.
    database.sql.run("INSERT INTO docs VALUES (90, 's', 'b', vec(90, 4)); UPDATE docs SET body = 'x' WHERE id = 20");
    service.catch_up(&database.sql);
    assert_eq!(ids(&service.search("docs", &near(90, 4, 1))), [90]);
    assert_eq!(service.verify_clean("docs"), 17);
    check_letters(&service, 20);

    service.kill();
    service.start();
    service.wait_ready();
    check_letters(&service, 20);

    database.sql.run(
        "UPDATE docs SET embedding = vec(id, 4) WHERE id IN (20, 21); DELETE FROM docs WHERE id IN (22, 23);
                      UPDATE docs SET embedding = NULL WHERE id = 24; UPDATE docs SET id = 125 WHERE id = 25",
    );
    service.catch_up(&database.sql);
    let left: Vec<_> = service.dead_letters("docs").into_iter().map(|(key, _)| key).collect();
    assert_eq!(left, ["125"]);
    assert_eq!(ids(&service.search("docs", &near(20, 4, 1))), [20]);
    assert_eq!(service.verify_clean("docs"), 15);
    database.sql.run("TRUNCATE docs");
    service.catch_up(&database.sql);
    assert_eq!(service.dead_letters("docs"), []);
}

#[test]
fn rows_that_cannot_be_indexed_are_told_of_by_the_copy_too() {
    let database = Database::shared();
    database.docs(10);
    insert_bad(&database.sql, 20);
    let service = Service::ready(&database, DOCS);
    check_letters(&service, 20);
    assert_eq!(service.verify_clean("docs"), 16);
}

#[test]
fn a_first_row_that_is_no_vector_does_not_decide_the_dimensions() {
    let database = Database::shared();
    database.docs(0);
    insert_bad(&database.sql, 1);
    database.sql.run("DELETE FROM docs WHERE id NOT IN (5, 6); INSERT INTO docs SELECT i, 's', 'b', vec(i, 3) FROM generate_series(10, 20) i");
    let service = Service::ready(&database, DOCS);
    assert_eq!(service.collection("docs")["vectors"][0]["dimensions"], 3);
    assert_eq!(service.dead_letters("docs").len(), 2);
}

#[test]
fn a_row_of_another_length_found_first_after_a_restart_copies_nothing_again() {
    let database = Database::shared();
    database.docs(0);
    database
        .sql
        .run("INSERT INTO docs VALUES (1, 's', 'b', vec(1, 4)), (2, 's', 'b', vec(2, 7)), (3, 's', 'b', vec(3, 4))");
    let mut service = Service::ready(&database, DOCS);
    database.sql.run("DELETE FROM docs WHERE id = 1");
    service.catch_up(&database.sql);
    service.terminate();
    service.start();
    service.wait_ready();
    assert_eq!(service.logged("the copy is whole"), 1, "{}", service.log());
    assert_eq!(service.dead_letters("docs").len(), 1);
}

#[test]
fn double_precision_arrays_are_vectors_too() {
    let database = Database::shared();
    database.sql.run(
        "CREATE TABLE docs (id int PRIMARY KEY, section text, embedding double precision[]);
         INSERT INTO docs SELECT i, 's', vec(i, 4)::float8[] FROM generate_series(1, 20) i",
    );
    let mut service = Service::ready(&database, DOCS);
    database.sql.run("INSERT INTO docs VALUES (30, 's', vec(30, 4)::float8[]), (31, 's', '{1e300,0,0,0}'), (32, 's', '{0.1,1e-320,0,0}')");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 23);
    assert_eq!(ids(&service.search("docs", &near(30, 4, 1))), [30]);
    let letters = service.dead_letters("docs");
    assert_eq!((letters.len(), &letters[0].0[..]), (1, "31"));
}

// Keys.

#[test]
fn keys_of_every_type_are_the_same_by_copy_and_by_stream() {
    let database = Database::shared();
    database.sql.run(
        "CREATE TABLE docs (a smallint, b integer, c bigint, d text, e varchar(3000), f uuid, section text, embedding real[],
                            PRIMARY KEY (d, a, f, b, e, c))",
    );
    let rows = |first: i64| {
        let texts = [
            "''",
            "'it''s \"quoted\" \\ back'",
            "'é ü 漢字 \u{1F600}'",
            "repeat('long é', 280)",
            "E'tab\\tnew\\nline'",
            "' '",
        ];
        let ends = [
            (i64::from(i16::MIN), i64::from(i32::MIN), i64::MIN),
            (i64::from(i16::MAX), i64::from(i32::MAX), i64::MAX),
            (0, -1, 0),
        ];
        let mut out = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            for (number, (a, b, c)) in ends.iter().enumerate() {
                let seed = first + (at * 3 + number) as i64;
                // Random letters do not compress: the long ones really are 2 kB.
                let e = format!(
                    "(SELECT string_agg(md5(({seed} * 100 + i)::text), '''') FROM generate_series(1, {}) i)",
                    if at == 0 { 20 } else { 1 }
                );
                out.push(format!(
                    "({a}, {b}, '{c}'::bigint, {text} || '{first}', {e}, md5('{seed}')::uuid, 's', vec({seed}, 4))"
                ));
            }
        }
        format!("INSERT INTO docs VALUES {}", out.join(", "))
    };
    database.sql.run(&rows(1));
    let mut service = Service::ready(&database, DOCS);
    database.sql.run(&rows(1000));
    // Streamed changes must find copied rows and the other way round.
    database.sql.run(
        "UPDATE docs SET section = 'copied' WHERE d LIKE '%1'; UPDATE docs SET e = e || 'x' WHERE a = 0;
                      DELETE FROM docs WHERE a = 32767 AND d LIKE '%''%'",
    );
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs").to_string(), database.sql.one("SELECT count(*) FROM docs"));
    let answer = service
        .search("docs", &json!({ "query": { "vector": support::vec_of(1, 4) }, "limit": 100, "columns": ["d"] }));
    assert_eq!(answer["hits"].as_array().map(Vec::len), Some(34), "{answer:#}");
    assert_eq!(answer["recheck"]["dropped"], 0);
    for hit in answer["hits"].as_array().into_iter().flatten() {
        let by_row = service.search("docs", &json!({ "query": { "id": hit["id"] }, "limit": 1 }));
        assert_eq!(by_row["hits"].as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn each_key_type_alone_finds_its_rows_again() {
    for (kind, make) in [
        ("smallint", "(i - 5)::smallint"),
        ("integer", "i - 5"),
        ("bigint", "i - 5"),
        ("text", "'k''\"' || i"),
        ("varchar(20)", "'k' || i"),
        ("uuid", "md5(i::text)::uuid"),
    ] {
        let database = Database::shared();
        database.sql.run(&format!(
            "CREATE TABLE docs (id {kind} PRIMARY KEY, section text, embedding real[]);
             INSERT INTO docs SELECT {make}, 's', vec(i, 4) FROM generate_series(1, 10) i"
        ));
        let mut service = Service::ready(&database, DOCS);
        database.sql.run(&format!("INSERT INTO docs SELECT {make}, 's', vec(i, 4) FROM generate_series(11, 20) i; UPDATE docs SET section = 't'"));
        service.catch_up(&database.sql);
        assert_eq!(service.verify_clean("docs"), 20, "{kind}");
        let answer = service.search("docs", &near(3, 4, 20));
        assert_eq!((ids(&answer).len(), &answer["recheck"]["dropped"]), (20, &json!(0)), "{kind}");
    }
}

// pgvector.

#[test]
fn pgvectors_own_type_is_copied_and_streamed() {
    let Some(bin_dir) = support::pgvector() else { return };
    let postgres = cluster(Settings { bin_dir: Some(bin_dir), own_identity: true, ..Settings::default() });
    let database = Database::of(&postgres);
    database.sql.run(
        "CREATE EXTENSION vector;
         CREATE TABLE docs (id bigint PRIMARY KEY, section text, embedding vector(4));
         CREATE TABLE mixed (id bigint PRIMARY KEY, section text, embedding vector);
         CREATE TABLE long (id bigint PRIMARY KEY, section text, embedding vector(768));
         INSERT INTO docs SELECT i, 's', vec(i, 4)::vector FROM generate_series(1, 50) i;
         INSERT INTO mixed SELECT i, 's', vec(i, 3)::vector FROM generate_series(1, 10) i;
         INSERT INTO long SELECT i, 's', vec(i, 768)::vector FROM generate_series(1, 10) i",
    );
    let mut service = Service::ready(&database, &format!("{DOCS}{}{}", over("mixed"), over("long")));
    let before = service.graph_writes("long");
    database.sql.run(
        "INSERT INTO docs SELECT i, 't', vec(i, 4)::vector FROM generate_series(51, 60) i;
         UPDATE docs SET embedding = vec(500, 4)::vector WHERE id = 5; UPDATE long SET section = 'x', id = id + 100;
         INSERT INTO mixed VALUES (20, 's', '[1,2]'), (21, 's', '[1,2,3]'), (22, 's', NULL)",
    );
    service.catch_up(&database.sql);
    let rows = ["docs", "mixed", "long"].map(|name| service.verify_clean(name));
    assert_eq!(rows, [60, 13, 10]);
    assert_eq!(service.graph_writes("long"), before, "untouched vectors were out of line");
    assert_eq!(service.dead_letters("mixed").len(), 1);
    let query = json!({ "query": { "vector": support::vec_of(500, 4) }, "limit": 60, "recheck": "exact" });
    let found = ids(&service.search("docs", &query));
    // pgvector is the judge of the order.
    let by_pgvector = "SELECT string_agg(id::text, ',' ORDER BY embedding <-> vec(500, 4)::vector, id) FROM docs";
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.join(","), database.sql.one(by_pgvector));
}

#[test]
fn an_extension_dropped_and_made_again_gives_its_type_another_number_and_the_collection_heals() {
    let Some(bin_dir) = support::pgvector() else { return };
    let postgres = cluster(Settings { bin_dir: Some(bin_dir), own_identity: true, ..Settings::default() });
    let database = Database::of(&postgres);
    database.sql.run(
        "CREATE EXTENSION vector; CREATE TABLE docs (id bigint PRIMARY KEY, section text, embedding vector(4));
         INSERT INTO docs SELECT i, 's', vec(i, 4)::vector FROM generate_series(1, 50) i;
         CREATE TABLE other (id bigint PRIMARY KEY, section text, embedding real[])",
    );
    let mut service = Service::configured(&database, "reconcile_s = 1", &format!("{DOCS}{}", over("other")));
    service.start();
    service.wait_ready();
    let number = "SELECT 'vector'::regtype::oid";
    let before = database.sql.one(number);
    database.sql.run("DROP EXTENSION vector CASCADE; UPDATE docs SET section = 't'");
    service.wait_for("it is paused", |service| service.collection("docs")["state"] == "paused");
    database.sql.run(
        "CREATE EXTENSION vector; ALTER TABLE docs ADD COLUMN embedding vector(4);
         UPDATE docs SET embedding = vec(id + 100, 4)::vector; INSERT INTO other VALUES (1, 's', '{1,2,3,4}')",
    );
    assert_ne!(database.sql.one(number), before);
    service.wait_for("it follows again", |service| service.collection("docs")["state"] == "live");
    service.catch_up(&database.sql);
    database.sql.run("UPDATE docs SET embedding = vec(7, 4)::vector WHERE id = 9");
    service.catch_up(&database.sql);
    assert_eq!((service.verify_clean("docs"), service.verify_clean("other")), (50, 1));
    assert_eq!(ids(&service.search("docs", &near(7, 4, 1))), [9]);
}

// Feedback.

#[test]
fn another_databases_wal_is_not_retained() {
    let database = Database::shared();
    database.docs(10);
    let other = Database::shared();
    let _service = Service::ready(&database, DOCS);
    other.sql.run("CREATE TABLE noise AS SELECT i, repeat('n', 500) FROM generate_series(1, 10000) i");
    let end = other.sql.lsn();
    wait_within(Duration::from_secs(10), "the end is confirmed", || {
        database.sql.confirmed(&database.name) >= Some(end)
    });
}

#[test]
fn an_unpublished_tables_wal_is_not_retained() {
    let database = Database::shared();
    database.docs(10);
    let _service = Service::ready(&database, DOCS);
    database.sql.run("CREATE TABLE noise AS SELECT i, repeat('n', 500) FROM generate_series(1, 10000) i");
    let end = database.sql.lsn();
    wait_within(Duration::from_secs(10), "the end is confirmed", || {
        database.sql.confirmed(&database.name) >= Some(end)
    });
}

// The source goes away, or is another one.

#[test]
fn a_crash_of_the_server_heals_by_itself() {
    let mut postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(50);
    let mut service = Service::ready(&database, DOCS);
    let written = service.graph_writes("docs");
    for (round, how) in [Stop::Immediate, Stop::Killed, Stop::Fast].into_iter().enumerate() {
        Sql::connect(&database.dsn).run(&format!("INSERT INTO docs VALUES ({}, 's', 'b', vec(7, 4))", 100 + round));
        postgres.stop(how).expect("it stops");
        service.wait_for("it notices", |service| service.status()["replication"]["phase"] == "retrying");
        // What is indexed still answers where nobody asks for more.
        let indexed = json!({ "query": { "vector": [0, 0, 0, 0] }, "limit": 1, "recheck": "none" });
        assert_eq!(ids(&service.search("docs", &indexed)).len(), 1);
        let rechecked = search_error(&service, "docs", &near(1, 4, 1));
        assert!(rechecked.starts_with("RV1204"), "{rechecked}");
        postgres.start_again().expect("it starts again");
        let sql = Sql::connect(&database.dsn);
        sql.run(&format!("UPDATE docs SET embedding = vec({round}, 4) WHERE id = 1"));
        service.catch_up(&sql);
        assert_eq!(service.verify_clean("docs"), 51 + round as u64);
        // What was confirmed and comes again costs nothing a second time.
        assert_eq!(service.graph_writes("docs"), written + 2 * (round as u64 + 1));
    }
    assert_eq!(service.logged("the copy is whole"), 1, "{}", service.log());
}

#[test]
fn a_terminated_walsender_heals_by_itself() {
    let database = Database::shared();
    database.docs(50);
    let mut service = Service::ready(&database, DOCS);
    for round in 0..3 {
        database.sql.run(&format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}';
             INSERT INTO docs VALUES ({}, 's', 'b', vec(1, 4))",
            database.name,
            100 + round
        ));
        service.catch_up(&database.sql);
    }
    assert_eq!(service.verify_clean("docs"), 53);
    assert_eq!(service.logged("the copy is whole"), 1);
}

#[test]
fn a_slot_dropped_while_the_service_is_down_means_a_new_copy_on_a_new_slot() {
    let database = Database::shared();
    database.docs(3000);
    let mut service = Service::ready(&database, DOCS);
    let old = service.slot.clone();
    service.terminate();
    database.drop_slot(&old);
    database.sql.run("DELETE FROM docs WHERE id = 1; INSERT INTO docs VALUES (5000, 's', 'b', vec(5000, 4))");
    service.start();
    // What is there answers at once, and says that it is old.
    let mut stale = false;
    let indexed = json!({ "query": { "vector": [0, 0, 0, 0] }, "limit": 1, "recheck": "none" });
    service.wait_for("the data is opened", |service| service.try_search("docs", &indexed).is_ok());
    service.wait_for("the new copy answers", |service| {
        let answer = service.search("docs", &indexed);
        if answer["stale"].is_string() {
            assert_eq!(answer["complete"], false);
            stale = true;
        }
        service.is_ready()
    });
    assert!(stale, "nothing answered while it was copied");
    let new = service.status()["slot"].as_str().expect("a slot").to_owned();
    assert_ne!(new, old);
    let slots =
        format!("SELECT string_agg(slot_name, ',') FROM pg_replication_slots WHERE database = '{}'", database.name);
    wait_until("only the new slot is there", || database.sql.text(&slots).as_deref() == Some(&new));
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 3000);
    // And it is kept like the first one.
    service.terminate();
    service.start();
    service.wait_ready();
    assert_eq!((service.logged("the copy is whole"), service.logged(" ERROR ")), (2, 0), "{}", service.log());
}

#[test]
fn a_slot_dropped_while_the_service_runs_means_a_new_copy_too() {
    let database = Database::shared();
    database.docs(500);
    let mut service = Service::ready(&database, DOCS);
    let old = service.slot.clone();
    let kill = format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{old}'");
    let gone = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{old}'");
    wait_until("the slot is dropped", || {
        database.sql.run(&kill);
        let _ = database.sql.try_run(&format!("SELECT pg_drop_replication_slot('{old}')"));
        database.sql.one(&gone) == "0"
    });
    database.sql.run("DELETE FROM docs WHERE id <= 100");
    // Who waits for that deletion gets it from the new copy: the old one never has it.
    let mut query = json!({ "query": { "vector": support::vec_of(1, 4) }, "limit": 1, "recheck": "none" });
    query["consistency"] = json!({ "at_least": database.sql.lsn().to_string(), "timeout_ms": 30_000 });
    let asked = std::time::Instant::now();
    database.sql.run("SELECT pg_logical_emit_message(true, 'test', '')");
    let url = service.url().to_owned();
    let verifying = std::thread::spawn(move || {
        let client = ruvector::cli::client::Client::new(&url);
        client.post("/v1/admin/collections/docs/verify", &json!({}))
    });
    let answer = service.search("docs", &query);
    assert!(ids(&answer)[0].as_i64() > Some(100), "{answer}");
    let report = verifying.join().expect("no panic").expect("a report");
    assert_eq!((&report["mismatch_count"], &report["index_rows"]), (&json!(0), &json!(400)));
    assert!(asked.elapsed() < Duration::from_secs(25), "{:?}", asked.elapsed());
    service.wait_for("a new slot", |service| service.is_ready() && service.status()["slot"] != json!(old));
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 400);
}

#[test]
fn a_slot_dropped_during_the_copy_means_copying_again() {
    let database = Database::shared();
    database.docs(20_000);
    let mut service = Service::configured(&database, "", DOCS);
    service.start();
    let slot = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}' AND active", database.name);
    service.wait_for("it streams beside the copy", |service| {
        service.logged("streaming") > 0 && database.sql.text(&slot).is_some()
    });
    let kill = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{0}'",
        database.name
    );
    let gone = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    wait_until("the slot is dropped", || {
        database.sql.run(&kill);
        let _ = database.sql.try_run(&format!("SELECT pg_drop_replication_slot('{}')", database.name));
        database.sql.one(&gone) == "0"
    });
    database.sql.run("DELETE FROM docs WHERE id <= 100");
    service.wait_ready();
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 19_900);
}

#[test]
fn damaged_data_is_copied_again_and_leaves_no_slot_behind() {
    let database = Database::shared();
    database.docs(100);
    let mut service = Service::ready(&database, DOCS);
    for round in 0..3 {
        service.terminate();
        let epoch = std::fs::read_dir(service.data_dir())
            .expect("readable")
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with("epoch-"))
            .expect("an epoch");
        std::fs::write(epoch.path().join("state.redb"), "nonsense").expect("writable");
        service.start();
        service.wait_ready();
        let slots =
            format!("SELECT string_agg(slot_name, ',') FROM pg_replication_slots WHERE database = '{}'", database.name);
        let slot = service.status()["slot"].as_str().expect("a slot").to_owned();
        wait_within(Duration::from_secs(5), &format!("round {round}: only {slot} is left"), || {
            database.sql.text(&slots) == Some(slot.clone())
        });
        assert_eq!(service.verify_clean("docs"), 100);
    }
}

#[test]
fn another_clusters_dsn_is_refused_and_nothing_is_made_there() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    service.terminate();
    let foreign = cluster(Settings { own_identity: true, ..Settings::default() });
    let sql = Sql::connect(&foreign.dsn());
    sql.run("CREATE TABLE docs (id bigint PRIMARY KEY, section text, body text, embedding real[])");
    service.configure(&foreign.dsn(), "", DOCS);
    let why = service.refusal();
    assert!(why.contains("another cluster answers: system identifier"), "{why}");
    assert!(why.contains("empty data directory"), "{why}");
    assert_eq!(sql.one("SELECT count(*) FROM pg_publication"), "0");
    assert_eq!(sql.one("SELECT count(*) FROM pg_replication_slots"), "0");
    // Back at the right one it goes on.
    service.configure(&database.dsn, "", DOCS);
    service.start();
    service.wait_ready();
    assert_eq!(service.logged("the copy is whole"), 1);
}

#[test]
fn another_clusters_slot_without_our_data_is_refused_with_the_fix() {
    let database = Database::shared();
    database.docs(10);
    database.sql.run(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", database.name));
    let mut service = Service::configured(&database, "", DOCS);
    let why = service.refusal();
    let fix = format!("SELECT pg_drop_replication_slot('{}')", database.name);
    assert!(why.contains(&fix), "{why}");
    database.sql.run(&fix);
    service.start();
    service.wait_ready();
}

// Tables that cannot be served.

#[test]
fn a_table_without_a_key_is_refused_with_the_sql() {
    let database = Database::shared();
    database.sql.run("CREATE TABLE docs (id bigint NOT NULL, section text, embedding real[])");
    let mut service = Service::configured(&database, "", DOCS);
    let why = service.refusal();
    assert!(why.contains("ALTER TABLE \"public\".\"docs\" REPLICA IDENTITY USING INDEX"), "{why}");
    database.sql.run("CREATE UNIQUE INDEX docs_id ON docs (id); ALTER TABLE docs REPLICA IDENTITY USING INDEX docs_id");
    service.start();
    service.wait_ready();
}

#[test]
fn row_security_without_bypassrls_is_refused_with_the_sql() {
    let database = Database::shared();
    database.docs(10);
    let role = format!("reader_{}", database.name);
    database.sql.run(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON docs TO {role};
         ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON docs USING (id < 5);
         CREATE PUBLICATION {} FOR TABLE docs WITH (publish_via_partition_root = true)",
        database.name
    ));
    let mut service = Service::configured(&database, "", DOCS);
    let dsn = database.dsn.replace("postgres@", &format!("{role}@"));
    service.configure(&dsn, "create_publication = false", DOCS);
    let why = service.refusal();
    assert!(why.contains("row security") && why.contains("BYPASSRLS"), "{why}");
    database.sql.run(&format!("ALTER ROLE {role} BYPASSRLS"));
    service.start();
    service.wait_ready();
    assert_eq!(service.verify_clean("docs"), 10);
}

#[test]
fn a_publication_of_the_dba_with_a_table_missing_is_refused_with_the_sql() {
    let database = Database::shared();
    database.docs(10);
    database.sql.run("CREATE TABLE other (LIKE docs INCLUDING ALL)");
    let mut service = Service::configured(&database, "create_publication = false", DOCS);
    let why = service.refusal();
    let name = &database.name;
    let create = format!(
        "CREATE PUBLICATION \"{name}\" FOR TABLE ONLY \"public\".\"docs\" WITH (publish_via_partition_root = true);"
    );
    assert!(why.contains(&create), "{why}");
    database.sql.run(&create);
    service.configure(&database.dsn, "create_publication = false", &format!("{DOCS}{}", over("other")));
    let why = service.refusal();
    let add = format!("ALTER PUBLICATION \"{name}\" ADD TABLE ONLY \"public\".\"other\";");
    assert!(why.contains(&add), "{why}");
    database.sql.run(&add);
    service.start();
    service.wait_ready();
    assert_eq!(database.sql.one("SELECT count(*) FROM pg_publication_tables"), "2");
}

// The table changes under us.

#[test]
fn a_table_that_no_longer_fits_pauses_its_collection_and_no_other() {
    for (change, reason) in [
        ("ALTER TABLE docs DROP COLUMN embedding", "column embedding is gone"),
        ("ALTER TABLE docs DROP COLUMN section", "column section is gone"),
        ("ALTER TABLE docs ALTER embedding TYPE text USING 'x'", "it was real[]"),
        ("ALTER TABLE docs RENAME embedding TO vector", "column embedding is gone"),
    ] {
        let database = Database::shared();
        database.docs(10);
        database.sql.run("CREATE TABLE other (LIKE docs INCLUDING ALL); INSERT INTO other SELECT * FROM docs");
        let mut service = Service::ready(&database, &format!("{DOCS}{}", over("other")));
        database.sql.run(&format!(
            "{change}; UPDATE docs SET body = 'x' WHERE id = 1; INSERT INTO other VALUES (50, 's', 'b', vec(50, 4))"
        ));
        service.catch_up(&database.sql);
        let old = service.search("docs", &near(1, 4, 1));
        assert!(old["complete"] == false && old["stale"].as_str().is_some_and(|why| why.contains(reason)), "{old}");
        let mut fresh = near(1, 4, 1);
        fresh["consistency"] = serde_json::json!({ "at_least": database.sql.lsn().to_string() });
        let said = search_error(&service, "docs", &fresh);
        assert!(said.starts_with("RV1202") && said.contains(reason), "{change}: {said}");
        assert_eq!(service.collection("docs")["state"], "paused", "{change}");
        // It is as old as it is, however fresh the others are, and it takes them away from nobody.
        assert!(old["staleness_ms"].is_null() && service.collection("docs")["staleness_ms"].is_null(), "{old}");
        assert!(service.is_ready());
        let ready = service.client().get("/readyz").expect("ready");
        assert!(ready["not_following"]["docs"].as_str().is_some_and(|why| why.contains(reason)), "{ready}");
        assert_eq!(ids(&service.search("other", &near(50, 4, 1))), [50], "{change}");
        // Columns that nobody asked for may come and go.
        database.sql.run("ALTER TABLE other DROP COLUMN body, ADD COLUMN more int DEFAULT 5; INSERT INTO other VALUES (51, 's', vec(51, 4), 1)");
        service.catch_up(&database.sql);
        assert_eq!(service.verify_clean("other"), 12, "{change}");
    }
}

#[test]
fn a_paused_collection_does_not_keep_the_others_from_following_after_a_reconnect() {
    let database = Database::shared();
    database.docs(10);
    database.sql.run("CREATE TABLE other (LIKE docs INCLUDING ALL); INSERT INTO other SELECT * FROM docs");
    let mut service = Service::ready(&database, &format!("{DOCS}{}", over("other")));
    database.sql.run("ALTER TABLE docs DROP COLUMN embedding; UPDATE docs SET body = 'x' WHERE id = 1");
    service.catch_up(&database.sql);
    assert_eq!(service.collection("docs")["state"], "paused");
    for how in ["walsender", "restart"] {
        match how {
            "walsender" => database.sql.run(&format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}'",
                database.name
            )),
            _ => {
                service.terminate();
                service.start();
            }
        }
        database.sql.run("DELETE FROM other WHERE id = 50; INSERT INTO other VALUES (50, 's', 'b', vec(50, 4))");
        service.catch_up(&database.sql);
        assert_eq!(service.verify_clean("other"), 11, "{how}");
        assert_eq!(service.collection("docs")["state"], "paused", "{how}");
    }
}

// What a search sees.

/// The sender of a slot, held still: what is committed meanwhile is not streamed. Goes on when this is dropped.
struct Held(String);

impl Held {
    fn hold(database: &Database) -> Held {
        let sql = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
        let held = Held(database.sql.one(&sql));
        held.signal("STOP");
        held
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.0);
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("sh runs").success(), "{kill}");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.signal("CONT");
    }
}

#[test]
fn the_recheck_hides_a_deleted_row_and_fills_up_to_k() {
    let database = Database::shared();
    database.docs(100);
    let mut service = Service::ready(&database, DOCS);
    let all = ids(&service.search("docs", &near(1, 4, 10)));
    let held = Held::hold(&database);
    database.sql.run(&format!("DELETE FROM docs WHERE id IN ({}, {})", all[0], all[3]));
    let answer = service.search("docs", &near(1, 4, 10));
    let found = ids(&answer);
    assert_eq!((found.len(), &answer["complete"]), (10, &json!(true)));
    assert!(!found.contains(&all[0]) && !found.contains(&all[3]));
    assert_eq!(found[..2], all[1..3]);
    assert_eq!((&answer["recheck"]["dropped"], &answer["recheck"]["refilled"]), (&json!(2), &json!(2)), "{answer:#}");
    drop(held);
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 98);
}

#[test]
fn a_row_that_is_streamed_before_it_is_visible_is_left_out_and_stays() {
    let mut postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(20);
    let service = Service::ready(&database, DOCS);
    postgres.set("synchronous_standby_names", "absent").expect("the file is there");
    postgres.reload().expect("it runs");
    wait_until("it holds commits back", || database.sql.one("SHOW synchronous_standby_names") == "absent");
    let writer = database.connect();
    std::thread::scope(|scope| {
        let insert = scope.spawn(|| writer.run("INSERT INTO docs VALUES (99, 's', 'b', vec(99, 4))"));
        let indexed = json!({ "query": { "vector": support::vec_of(99, 4) }, "limit": 3, "recheck": "none" });
        wait_until("the stream brought it", || ids(&service.search("docs", &indexed))[0] == 99);
        let answer = service.search("docs", &near(99, 4, 3));
        assert_eq!(answer["recheck"]["dropped"], 1, "{answer:#}");
        assert_eq!(ids(&answer).len(), 3);
        assert!(!ids(&answer).contains(&json!(99)));
        assert_eq!(database.sql.one("SELECT count(*) FROM docs"), "20", "nobody else sees it either");
        assert_eq!(ids(&service.search("docs", &indexed))[0], 99, "it stays in the index");
        postgres.set("synchronous_standby_names", "").expect("the file is there");
        postgres.reload().expect("it runs");
        insert.join().expect("the commit ends");
    });
    assert_eq!(ids(&service.search("docs", &near(99, 4, 3)))[0], 99);
    assert_eq!(service.verify_clean("docs"), 21);
}

#[test]
fn a_search_waits_for_the_position_it_asks_for() {
    let database = Database::shared();
    database.docs(20);
    let mut service = Service::ready(&database, DOCS);
    for n in 100..120 {
        database.sql.run(&format!("INSERT INTO docs VALUES ({n}, 's', 'b', vec({n}, 4))"));
        let mut body = near(n, 4, 1);
        body["consistency"] = json!({ "at_least": database.sql.lsn().to_string() });
        body["recheck"] = json!("none");
        assert_eq!(ids(&service.search("docs", &body)), [n]);
    }
    let held = Held::hold(&database);
    database.sql.run("INSERT INTO docs VALUES (200, 's', 'b', vec(200, 4))");
    let mut body = near(200, 4, 1);
    body["consistency"] = json!({ "at_least": database.sql.lsn().to_string(), "timeout_ms": 100 });
    let said = search_error(&service, "docs", &body);
    assert!(said.starts_with("RV1203") && said.contains("hint:"), "{said}");
    body["consistency"]["timeout_ms"] = json!(30_000);
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| ids(&service.search("docs", &body)));
        drop(held);
        assert_eq!(answer.join().expect("an answer"), [200]);
    });
    service.catch_up(&database.sql);
}

#[test]
fn an_exact_recheck_uses_the_rows_current_vector_and_columns() {
    let database = Database::shared();
    database.docs(20);
    let mut service = Service::ready(&database, DOCS);
    let body = json!({
        "query": { "vector": support::vec_of(5, 4) }, "limit": 20, "recheck": "exact", "columns": ["section"],
        "filter": "section <> 'hidden'"
    });
    let held = Held::hold(&database);
    database.sql.run(
        "UPDATE docs SET embedding = vec(500, 4), section = 'new' WHERE id = 5;
                      UPDATE docs SET section = 'hidden' WHERE id = 6; UPDATE docs SET embedding = NULL WHERE id = 7",
    );
    for applied in [false, true] {
        let answer = service.search("docs", &body);
        let hits = answer["hits"].as_array().expect("hits");
        assert_eq!((hits.len(), hits.iter().any(|hit| hit["id"] == 6 || hit["id"] == 7)), (18, false), "{applied}");
        let hit = hits.iter().find(|hit| hit["id"] == 5).expect("still there");
        assert_eq!(hit["columns"]["section"], "new");
        let exact = "SELECT sqrt(sum((a - b) ^ 2)) FROM unnest(vec(5, 4), vec(500, 4)) AS u (a, b)";
        let exact: f64 = database.sql.one(exact).parse().expect("a number");
        let ours = hit["distance"].as_f64().expect("a distance");
        assert!((ours - exact).abs() < 1e-5, "{ours} is not {exact}, {applied}");
        if !applied {
            held.signal("CONT");
            service.catch_up(&database.sql);
        }
    }
}

#[test]
fn partitions_are_one_collection() {
    let database = Database::shared();
    database.sql.run(
        "CREATE TABLE docs (id bigint, section text, embedding real[], PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF docs FOR VALUES FROM (0) TO (100);
         CREATE TABLE high PARTITION OF docs FOR VALUES FROM (100) TO (200);
         INSERT INTO docs SELECT i, 's', vec(i, 4) FROM generate_series(0, 199) i",
    );
    let mut service = Service::ready(&database, DOCS);
    database.sql.run(
        "UPDATE docs SET id = 150 + 0 * id WHERE id = 150; DELETE FROM docs WHERE id = 160;
                      UPDATE docs SET id = 160 WHERE id = 5; INSERT INTO docs VALUES (5, 't', vec(5, 4))",
    );
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 200);
}

#[test]
fn while_the_publication_is_missing_answers_stay_stale_and_one_copy_is_counted() {
    let database = Database::shared();
    database.docs(100);
    let name = database.name.clone();
    let create = format!("CREATE PUBLICATION \"{name}\" FOR TABLE docs WITH (publish_via_partition_root = true)");
    database.sql.run(&create);
    let mut service = Service::configured(&database, "create_publication = false", DOCS);
    service.start();
    service.wait_ready();
    database.sql.run(&format!("DROP PUBLICATION \"{name}\"; UPDATE docs SET section = 'lost' WHERE id = 1"));
    service.wait_for("it is stale", |service| service.status()["stale"].is_string());
    let indexed = json!({ "query": { "vector": [0, 0, 0, 0] }, "limit": 1, "recheck": "none" });
    // It connects again and again, and the server takes the order each time.
    let stays_stale = |service: &mut Service, connections: usize| {
        let before = service.logged("trying again");
        service.wait_for("some connections", |service| {
            let answer = service.search("docs", &indexed);
            assert!(answer["stale"].is_string() && answer["complete"] == false, "{answer}\n{}", service.log_tail());
            assert!(!service.is_ready());
            service.logged("trying again") >= before + connections
        });
    };
    stays_stale(&mut service, 4);
    service.terminate();
    service.start();
    service.wait_for("it answers", |service| service.try_search("docs", &indexed).is_ok());
    stays_stale(&mut service, 4);
    assert_eq!(service.metric("ruvector_replication_resyncs_total"), 0.0, "no copy could begin");
    database.sql.run(&create);
    service.wait_ready();
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 100);
    assert_eq!(service.metric("ruvector_replication_resyncs_total"), 1.0);
}

/// Stops the service, changes the publication around a change of the table, and expects a whole new copy.
fn a_gap_in_the_publication(around: impl Fn(&str) -> (String, String)) {
    let database = Database::shared();
    database.docs(300);
    let mut service = Service::ready(&database, DOCS);
    let old = service.slot.clone();
    let (before, after) = around(&old);
    service.terminate();
    database.sql.run(&before);
    database.sql.run("DELETE FROM docs WHERE id = 1; INSERT INTO docs VALUES (5000, 's', 'b', vec(5000, 4))");
    database.sql.run(&after);
    service.start();
    service.wait_for("a new copy answers", |service| {
        service.is_ready() && service.status()["slot"].as_str().is_some_and(|slot| slot != old)
    });
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 300);
    service.terminate();
}

#[test]
fn a_publication_dropped_and_made_again_with_changes_between_means_copying_again() {
    a_gap_in_the_publication(|name| {
        (format!("DROP PUBLICATION \"{name}\""), format!("CREATE PUBLICATION \"{name}\" FOR TABLE docs"))
    });
}

#[test]
fn what_a_table_missed_while_it_was_out_of_the_publication_is_found_and_read_again() {
    let database = Database::shared();
    database.docs(300);
    database.sql.run("CREATE TABLE other (id int PRIMARY KEY)");
    let mut service = Service::ready(&database, DOCS);
    let slot = service.status()["slot"].clone();
    for back in ["", "ALTER PUBLICATION \"$\" ADD TABLE docs"] {
        service.terminate();
        let sql = format!(
            "ALTER PUBLICATION \"$\" SET TABLE other;
             DELETE FROM docs WHERE id = 1; INSERT INTO docs VALUES (1, 's', 'b', vec(5000, 4));
             DELETE FROM docs WHERE id = 2; INSERT INTO docs VALUES ((SELECT max(id) + 1 FROM docs), 's', 'b', vec(5000, 4));
             {back}"
        );
        database.sql.run(&sql.replace('$', &database.name));
        service.start();
        service.wait_for("the rows are read again", |service| {
            service.is_ready() && service.verify("docs")["mismatch_count"] == 0
        });
        assert_eq!(service.status()["slot"], slot, "on the same slot");
    }
    service.terminate();
}

/// A ready service on 300 rows, stopped; then its table was out of the publication while a row went and another came.
fn with_a_gap() -> (Database, Service) {
    let database = Database::shared();
    database.docs(300);
    let mut service = Service::ready(&database, DOCS);
    service.terminate();
    let name = &service.slot;
    database.sql.run(&format!("ALTER PUBLICATION \"{name}\" DROP TABLE docs"));
    database.sql.run("DELETE FROM docs WHERE id = 1; INSERT INTO docs VALUES (5000, 's', 'b', vec(5000, 4))");
    (database, service)
}

fn read_again(database: &Database, service: &mut Service) {
    service.wait_for("the rows are read again", |service| {
        service.is_ready() && service.verify("docs")["mismatch_count"] == 0
    });
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 300);
    assert_eq!(service.status()["slot"], service.slot.as_str());
    service.terminate();
}

#[test]
fn a_gap_in_the_publication_is_not_forgotten_by_a_crash() {
    let (database, mut service) = with_a_gap();
    service.set_environment("RUVECTOR_FAILPOINT", Some("publication.changed@1".into()));
    service.start_mortal();
    wait_until("it is dead", || service.has_ended());
    service.set_environment("RUVECTOR_FAILPOINT", None);
    service.start_checking_confirmed(&database);
    read_again(&database, &mut service);
}

#[test]
fn what_a_table_missed_is_found_when_it_is_put_back_into_the_publication_by_hand() {
    let (database, mut service) = with_a_gap();
    service.configure(&database.dsn, "create_publication = false", DOCS);
    service.start();
    service.wait_for("it asks for the table", |service| service.logged("ADD TABLE") > 0);
    database.sql.run(&format!("ALTER PUBLICATION \"{}\" ADD TABLE docs", service.slot));
    read_again(&database, &mut service);
}

#[test]
fn a_deferrable_primary_key_is_refused_before_it_makes_updates_fail() {
    let database = Database::shared();
    database.sql.run("CREATE TABLE docs (id int PRIMARY KEY DEFERRABLE, section text, body text, embedding real[])");
    database.sql.run("INSERT INTO docs VALUES (1, 's', 'b', '{1,2,3,4}')");
    let mut service = Service::configured(&database, "", DOCS);
    let refusal = service.refusal();
    assert!(refusal.contains("no usable replica identity"), "{refusal}");
    database.sql.run("UPDATE docs SET body = 'c'");
}
