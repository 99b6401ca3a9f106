//! Collections come, go, change and heal one by one while the stream goes on, beside a real PostgreSQL: the others follow
//! theirs, the slot stays, and what answered before answers until the new copy is whole.

mod support;

use serde_json::json;
use std::process::Command;
use support::{DOCS, Database, Service, Sql, ids, near, wait_until};

/// Looked at often, so that the tests need not wait.
const OFTEN: &str = "reconcile_s = 1\n";

fn over(table: &str) -> String {
    DOCS.replace("public.docs", &format!("public.{table}")).replace("name = \"docs\"", &format!("name = \"{table}\""))
}

/// `docs` and a table `other` like it, followed.
fn both(database: &Database, rows: usize) -> Service {
    database.docs(rows);
    database.sql.run("CREATE TABLE other (LIKE docs INCLUDING ALL); INSERT INTO other SELECT * FROM docs LIMIT 10");
    let mut service = Service::configured(database, OFTEN, &format!("{DOCS}{}", over("other")));
    service.start();
    service.wait_ready();
    service
}

fn slot(service: &Service) -> String {
    service.status()["slot"].as_str().expect("a slot").to_owned()
}

/// Waits until a collection was copied anew, all is well, and nothing of the copy is left.
fn wait_copied(service: &mut Service, sql: &Sql, name: &str, before: &serde_json::Value) {
    service.wait_for("a new copy answers", |service| {
        let now = service.collection(name);
        now["copied_at"] != *before && now["state"] == "live" && now.get("copy").is_none()
    });
    service.catch_up(sql);
    service.verify_clean(name);
    let left = |service: &Service| {
        let epochs = std::fs::read_dir(service.data_dir()).expect("the data directory").flatten();
        let epochs = epochs.filter(|entry| entry.path().is_dir());
        let inside = epochs.flat_map(|epoch| std::fs::read_dir(epoch.path()).expect("an epoch").flatten());
        inside.filter(|entry| entry.file_name().to_string_lossy().starts_with("copy-")).count()
    };
    service.wait_for("the copy log is gone", |service| left(service) == 0);
    let temporary = "SELECT count(*) FROM pg_replication_slots WHERE temporary AND database = current_database()";
    wait_until("temporary slots are gone", || sql.one(temporary) == "0");
}

#[test]
fn a_table_that_changes_its_types_is_copied_again_alone() {
    for change in [
        "ALTER TABLE docs ALTER embedding TYPE double precision[]",
        "ALTER TABLE docs ALTER section TYPE integer USING length(section)",
        "ALTER TABLE docs ALTER id TYPE integer",
        "ALTER TABLE docs DROP COLUMN section; ALTER TABLE docs ADD COLUMN section int DEFAULT 7",
        "ALTER PUBLICATION \"$\" SET TABLE other; UPDATE docs SET section = 'missed'; ALTER PUBLICATION \"$\" ADD TABLE docs",
    ] {
        let database = Database::shared();
        let change = change.replace('$', &database.name);
        let mut service = both(&database, 500);
        let (slot_before, other) = (slot(&service), service.collection("other")["copied_at"].clone());
        let docs = service.collection("docs")["copied_at"].clone();
        database.sql.run(&format!("{change}; INSERT INTO other VALUES (600, 's', 'b', vec(600, 4))"));
        database.sql.run("UPDATE docs SET body = 'x' WHERE id < 5; DELETE FROM docs WHERE id = 7");
        wait_copied(&mut service, &database.sql, "docs", &docs);
        assert_eq!(service.verify_clean("other"), 11, "{change}");
        assert_eq!((slot(&service), &service.collection("other")["copied_at"]), (slot_before, &other), "{change}");
        database.sql.run("INSERT INTO docs (id, body, embedding) VALUES (900, 'b', vec(900, 4))");
        service.catch_up(&database.sql);
        assert_eq!(ids(&service.search("docs", &near(900, 4, 1))), [900], "{change}");
        service.terminate();
    }
}

#[test]
fn a_column_that_comes_back_heals_its_collection() {
    let database = Database::shared();
    let mut service = both(&database, 50);
    let docs = service.collection("docs")["copied_at"].clone();
    database.sql.run("ALTER TABLE docs RENAME embedding TO gone; UPDATE docs SET body = 'x' WHERE id = 1");
    service.wait_for("it is paused", |service| service.collection("docs")["state"] == "paused");
    assert_eq!(service.search("docs", &near(3, 4, 1))["complete"], false);
    let command = Command::new(env!("CARGO_BIN_EXE_ruvector"))
        .args(["search", "docs", "--vector", "[1,2,3,4]", "--url", service.url()])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&command.stdout).into_owned();
    assert!(said.contains("MAY BE SHORT: the collection is paused: "), "{said}");
    database.sql.run("DELETE FROM docs WHERE id = 3; ALTER TABLE docs RENAME gone TO embedding");
    wait_copied(&mut service, &database.sql, "docs", &docs);
    assert_eq!(service.search("docs", &near(3, 4, 50))["hits"].as_array().map(Vec::len), Some(49));
    service.terminate();
}

#[test]
fn a_table_dropped_and_made_again_is_copied_again() {
    let database = Database::shared();
    let mut service = both(&database, 50);
    let docs = service.collection("docs")["copied_at"].clone();
    database.sql.run("DROP TABLE docs");
    service.wait_for("it is paused", |service| service.collection("docs")["state"] == "paused");
    assert!(service.is_ready(), "the other answers");
    assert_eq!(service.verify_clean("other"), 10);
    database.docs(70);
    wait_copied(&mut service, &database.sql, "docs", &docs);
    assert_eq!(service.verify_clean("docs"), 70);
    service.terminate();
}

#[test]
fn a_collection_that_cannot_be_copied_is_told_of_everywhere_until_it_can() {
    let database = Database::shared();
    database.docs(20);
    let name = database.name.clone();
    database.sql.run(&format!(
        "CREATE TABLE other (LIKE docs INCLUDING ALL); INSERT INTO other SELECT * FROM docs LIMIT 10;
         CREATE PUBLICATION \"{name}\" FOR TABLE docs WITH (publish_via_partition_root = true)"
    ));
    let source = format!("{OFTEN}create_publication = false\n");
    let mut service = Service::configured(&database, &source, DOCS);
    service.start();
    service.wait_ready();
    let hang_up = |service: &mut Service, sections: &str| {
        service.configure(&database.dsn, &source, sections);
        service.hang_up();
    };
    let finds = |service: &Service, code: &str| {
        let doctor = service.status()["doctor"].clone();
        doctor["findings"].as_array().is_some_and(|all| all.iter().any(|one| one["code"] == code))
    };
    let state = |service: &Service, name: &str| {
        let status = service.status();
        let found = status["collections"].as_array().expect("a list").iter().find(|one| one["name"] == name).cloned();
        found.map(|found| found["state"].clone()).unwrap_or_default()
    };
    service.wait_for("the doctor was there", |service| finds(service, "D13"));
    let no_table = DOCS.replace("public.docs", "public.no_table").replace("\"docs\"", "\"typo\"");
    hang_up(&mut service, &format!("{DOCS}{}{no_table}", over("other")));
    for (collection, reason) in [
        ("other", format!("ALTER PUBLICATION \"{name}\" ADD TABLE ONLY \"public\".\"other\";")),
        ("typo", "\"public\".\"no_table\" does not exist".to_owned()),
    ] {
        service.wait_for("it is refused", |service| state(service, collection)["state"] == "refused");
        assert!(state(&service, collection)["reason"].as_str().is_some_and(|why| why.contains(&reason)), "{reason}");
        let error = format!("{:#}", service.try_search(collection, &near(1, 4, 1)).expect_err("refused"));
        assert!(error.starts_with("RV1207") && error.contains(&reason), "{error}");
        assert_eq!(
            service
                .logged(&format!("cannot be copied; looking at its table again and again collection=\"{collection}\"")),
            1
        );
        let metrics = service.client().text("/metrics").expect("metrics");
        assert!(
            metrics.contains(&format!("ruvector_collection_follows{{collection=\"{collection}\"}} 0")),
            "{metrics}"
        );
    }
    assert!(service.is_ready());
    let ready = service.client().get("/readyz").expect("ready");
    assert!(ready["not_following"]["other"].is_string() && ready["not_following"]["typo"].is_string(), "{ready}");
    service.wait_for("the doctor finds both", |service| finds(service, "D07") && finds(service, "D09"));
    // The typo is corrected, and the publication has the table.
    database.sql.run(&format!("ALTER PUBLICATION \"{name}\" ADD TABLE other"));
    hang_up(&mut service, &format!("{DOCS}{}", over("other")));
    service.wait_for("the doctor finds nothing of it", |service| !finds(service, "D07") && !finds(service, "D09"));
    service.wait_for("it is live", |service| state(service, "other")["state"] == "live");
    assert_eq!(service.verify_clean("other"), 10);
    let metrics = service.client().text("/metrics").expect("metrics");
    assert!(metrics.contains("ruvector_collection_follows{collection=\"other\"} 1"), "{metrics}");
    assert!(metrics.contains("ruvector_collection_follows{collection=\"typo\"} NaN"), "{metrics}");
    // What would only pause a collection that follows is not taken over, and what needs a start is named.
    let unfit = DOCS.replace("\"l2\"", "\"hamming\"");
    hang_up(&mut service, &format!("[search]\nwait_ms = 5\n{unfit}{}", over("other")));
    service.wait_for("it is not taken over", |service| service.logged("collections are not taken over") == 1);
    assert_eq!(
        service.logged("they hold from the next start on settings=\"search.wait_ms\""),
        1,
        "{}",
        service.log_tail()
    );
    hang_up(&mut service, DOCS);
    service.wait_for("it is forgotten", |service| state(service, "other").is_null());
    assert_eq!(service.logged("it stays in the publication table=\"public.other\""), 1, "{}", service.log_tail());
    assert_eq!((state(&service, "docs")["state"].as_str(), service.verify_clean("docs")), (Some("live"), 20));
    service.terminate();
}

#[test]
fn collections_come_and_go_on_sighup() {
    let database = Database::shared();
    let mut service = both(&database, 300);
    let (slot_before, docs) = (slot(&service), service.collection("docs")["copied_at"].clone());
    database.sql.run("CREATE TABLE third (LIKE docs INCLUDING ALL); INSERT INTO third SELECT * FROM docs");
    let hang_up = |service: &mut Service, sections: &str| {
        service.configure(&database.dsn, OFTEN, sections);
        service.hang_up();
    };
    hang_up(&mut service, &format!("{DOCS}{}", over("third")));
    service.wait_for("the third is live", |service| {
        service.client().get("/v1/collections/third").is_ok_and(|third| third["state"] == "live")
    });
    service.wait_for("the other is forgotten", |service| service.client().get("/v1/collections/other").is_err());
    database.sql.run("UPDATE third SET section = 'new' WHERE id < 100; DELETE FROM third WHERE id = 200");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("third"), 299);
    // Nonsense is not taken over.
    hang_up(&mut service, "[[collections]]\ntable = 5\n");
    service.wait_for("it is refused", |service| service.logged("the configuration is not taken over") == 1);
    assert_eq!(service.verify_clean("third"), 299);
    hang_up(&mut service, &format!("{DOCS}{}", over("other")));
    service.wait_for("the other is back", |service| {
        service.client().get("/v1/collections/other").is_ok_and(|other| other["state"] == "live")
    });
    assert_eq!((slot(&service), &service.collection("docs")["copied_at"]), (slot_before, &docs));
    service.terminate();
}

/// The columns of a filter are known by their places, and those may be other ones before the answer.
#[test]
fn a_filter_read_before_its_columns_changed_is_not_answered_by_others() {
    let database = Database::shared();
    database.docs(300);
    let with = |columns: &str| DOCS.replace("[\"section\"]", columns);
    let mut service = Service::configured(&database, OFTEN, &with("[\"section\", \"body\"]"));
    service.start();
    service.wait_ready();
    let before = service.collection("docs")["copied_at"].clone();
    let ahead = database.sql.one("SELECT pg_current_wal_lsn() + 30000000");
    let consistency = json!({"at_least": ahead, "timeout_ms": 60_000});
    let count = json!({"filter": "section = 's1'", "consistency": consistency});
    let mut search = near(1, 4, 300);
    search.as_object_mut().expect("an object").extend(count.as_object().expect("an object").clone());
    let asked = [("search", search), ("count", count)].map(|(what, body)| {
        let client = service.client();
        std::thread::spawn(move || client.post(&format!("/v1/collections/docs/{what}"), &body))
    });
    // Both have been read by then, and wait for their position.
    std::thread::sleep(std::time::Duration::from_secs(1));
    service.configure(&database.dsn, OFTEN, &with("[\"body\", \"section\"]"));
    service.hang_up();
    wait_copied(&mut service, &database.sql, "docs", &before);
    assert!(asked.iter().all(|request| !request.is_finished()), "the position was reached too early");
    database.sql.run("SELECT pg_logical_emit_message(false, 'far', repeat('x', 1000000)) FROM generate_series(1, 32)");
    for request in asked {
        let answer = request.join().expect("an answer or an error");
        let error = answer.expect_err("the columns are others now").to_string();
        assert!(error.contains("RV1201"), "{error}");
    }
    service.terminate();
}

#[test]
fn a_rebuild_leaves_no_search_without_an_answer() {
    let database = Database::shared();
    let mut service = both(&database, 3000);
    let before = service.collection("docs")["copied_at"].clone();
    let url = service.url().to_owned();
    let rebuild = std::thread::spawn(move || {
        let ruvector = env!("CARGO_BIN_EXE_ruvector");
        Command::new(ruvector).args(["rebuild", "docs", "--url", &url]).output().expect("it runs")
    });
    let mut searches = 0;
    while !rebuild.is_finished() {
        database.sql.run(&format!("INSERT INTO docs VALUES ({}, 's', 'b', vec({0}, 4))", 5000 + searches));
        service.catch_up(&database.sql);
        let answer = service.search("docs", &near(5000 + searches, 4, 1));
        assert_eq!((ids(&answer), &answer["complete"]), (vec![json!(5000 + searches)], &json!(true)), "{answer}");
        searches += 1;
    }
    assert!(searches > 0, "it was too quick to be watched");
    let output = rebuild.join().expect("the command ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("docs: copied again"), "{said}");
    wait_copied(&mut service, &database.sql, "docs", &before);
    assert_eq!(service.verify_clean("docs"), 3000 + searches as u64);
    service.terminate();
}

const PARTS: &str = "
    CREATE TABLE docs (id int, section text, body text, embedding real[], PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE low PARTITION OF docs FOR VALUES FROM (0) TO (100);
    CREATE TABLE high PARTITION OF docs FOR VALUES FROM (100) TO (200);
    INSERT INTO docs SELECT i, 's', 'b', vec(i, 384) FROM generate_series(0, 199) i;
    CREATE TABLE more (LIKE docs INCLUDING ALL);
    ALTER TABLE more ALTER embedding SET STORAGE EXTERNAL, ALTER body SET STORAGE PLAIN;
    INSERT INTO more SELECT i, 's', repeat('m', 2000), vec(i, 384) FROM generate_series(200, 299) i";

#[test]
fn partitions_that_come_go_or_are_emptied_are_noticed_although_nothing_is_streamed() {
    let database = Database::shared();
    database.sql.run(PARTS);
    let mut service = Service::configured(&database, OFTEN, DOCS);
    service.start();
    service.wait_ready();
    let copied = service.collection("docs")["copied_at"].clone();
    for (change, rows) in [
        ("ALTER TABLE docs ATTACH PARTITION more FOR VALUES FROM (200) TO (300)", 300),
        ("ALTER TABLE docs DETACH PARTITION low", 200),
        ("TRUNCATE high", 100),
        ("ALTER TABLE docs ATTACH PARTITION low FOR VALUES FROM (0) TO (100)", 200),
        (
            "ALTER TABLE docs DETACH PARTITION low; DELETE FROM low WHERE id < 10; ALTER TABLE docs ATTACH PARTITION low FOR VALUES FROM (0) TO (100)",
            190,
        ),
        ("DROP TABLE more", 90),
    ] {
        database.sql.run(change);
        service.wait_for(change, |service| {
            let report = service.verify("docs");
            report["source_rows"] == rows && report["index_rows"] == rows && report["mismatch_count"] == 0
        });
        assert_eq!(service.collection("docs")["dead_letters"], 0, "{change}");
    }
    assert_eq!(service.collection("docs")["copied_at"], copied, "nothing was copied again");
    service.terminate();
}

#[test]
fn values_that_change_without_an_event_are_found_and_read_again() {
    for change in [
        "ALTER TABLE docs ALTER section TYPE text USING upper(section)",
        "ALTER TABLE docs DROP COLUMN section; ALTER TABLE docs ADD COLUMN section text DEFAULT 'x'",
    ] {
        let database = Database::shared();
        let mut service = both(&database, 50);
        let copied = service.collection("docs")["copied_at"].clone();
        database.sql.run(change);
        service.wait_for(change, |service| service.verify("docs")["mismatch_count"] == 0);
        assert_eq!(service.collection("docs")["copied_at"], copied, "{change}");
        service.terminate();
    }
}

#[test]
fn an_update_of_a_row_that_never_came_is_completed_from_the_source() {
    let database = Database::shared();
    database.sql.run(PARTS);
    // Never looked at by itself: only the updates tell.
    let mut service = Service::configured(&database, "reconcile_s = 3600\n", DOCS);
    service.start();
    service.wait_ready();
    database.sql.run("ALTER TABLE docs ATTACH PARTITION more FOR VALUES FROM (200) TO (300)");
    database.sql.run("UPDATE docs SET section = 'touched' WHERE id BETWEEN 210 AND 219");
    service.catch_up(&database.sql);
    service.wait_for("the vectors are there", |service| {
        let found = service.collection("docs");
        found["rows"] == 210 && found["dead_letters"] == 0
    });
    let answer = service.search("docs", &near(215, 384, 1));
    assert_eq!(ids(&answer), [215]);
    assert!(service.logged("read rows again that were missing here") > 0);
    service.terminate();
}

#[test]
fn a_copy_that_is_killed_goes_on_where_it_was() {
    let database = Database::shared();
    // Wide rows: several ranges.
    database.sql.run(
        "CREATE TABLE docs (id int PRIMARY KEY, section text, body text, embedding real[]);
         ALTER TABLE docs ALTER body SET STORAGE PLAIN;
         INSERT INTO docs SELECT i, 's', repeat('x', 7000), vec(i, 16) FROM generate_series(1, 9000) i",
    );
    let mut service = Service::configured(&database, &format!("{OFTEN}copy_connections = 1\n"), DOCS);
    service.start();
    let pages = |service: &Service| {
        let shown = service.client().get("/v1/collections/docs").ok()?;
        shown["copy"]["share_read"].as_f64()
    };
    service.wait_for("some ranges are read", |service| pages(service).is_some_and(|share| share > 0.2));
    service.kill();
    database.sql.run("DELETE FROM docs WHERE id % 10 = 0");
    database
        .sql
        .run("UPDATE docs SET section = 'later' WHERE id % 10 = 1; UPDATE docs SET id = id + 100000 WHERE id % 10 = 2");
    database.sql.run("INSERT INTO docs SELECT i, 's', 'y', vec(i, 16) FROM generate_series(20001, 20500) i");
    let slots = database.sql.one("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()");
    service.start();
    service.wait_ready();
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 8100 + 500);
    assert_eq!(service.collection("docs")["dead_letters"], 0);
    assert_eq!(service.logged("going on with the copy"), 1, "{}", service.log());
    assert_eq!(slots, "1", "the same slot");
    assert_eq!(service.logged("a new epoch begins"), 1, "{}", service.log());
    service.terminate();
}

#[test]
fn a_copy_whose_connection_breaks_goes_on_where_it_was() {
    let database = Database::shared();
    let mut service = both(&database, 10);
    database.sql.run(
        "TRUNCATE docs; ALTER TABLE docs ALTER body SET STORAGE PLAIN;
         INSERT INTO docs SELECT i, 's', repeat('x', 7000), vec(i, 4) FROM generate_series(1, 9000) i",
    );
    service.catch_up(&database.sql);
    let before = service.collection("docs")["copied_at"].clone();
    service.client().post("/v1/admin/collections/docs/rebuild", &json!({})).expect("accepted");
    service.wait_for("some of it is read", |service| {
        service.collection("docs")["copy"]["rows_read"].as_u64().is_some_and(|rows| rows > 1000)
    });
    database.sql.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY%'",
    );
    database.sql.run("UPDATE docs SET section = 'later' WHERE id % 7 = 0; DELETE FROM docs WHERE id % 7 = 1");
    wait_copied(&mut service, &database.sql, "docs", &before);
    assert_eq!(service.logged("the copy was interrupted; it goes on with what is left"), 1, "{}", service.log());
    service.terminate();
}

#[test]
fn a_table_rewritten_while_it_is_copied_is_copied_from_the_start() {
    let database = Database::shared();
    database.sql.run(
        "CREATE TABLE docs (id int PRIMARY KEY, section text, body text, embedding real[]);
         ALTER TABLE docs ALTER body SET STORAGE PLAIN;
         INSERT INTO docs SELECT i, 's', repeat('x', 7000), vec(i, 4) FROM generate_series(1, 9000) i",
    );
    let mut service = Service::configured(&database, &format!("{OFTEN}copy_connections = 1\n"), DOCS);
    service.start();
    service.wait_for("some of it is read", |service| {
        let shown = service.client().get("/v1/collections/docs").ok();
        shown.is_some_and(|shown| shown["copy"]["share_read"].as_f64().is_some_and(|share| share > 0.2))
    });
    service.kill();
    database.sql.run("DELETE FROM docs WHERE id <= 3000");
    database.sql.run("VACUUM FULL docs");
    service.start();
    service.wait_ready();
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 6000);
    service.terminate();
}
