//! What searches can be asked beside the nearest rows, against a real PostgreSQL: filters in JSON, rechecks with the eyes of
//! another role, rechecks that share a round trip.

mod support;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{DOCS, Database, Service, Stopped, ids, near, vec_of, wait_until};

fn post(service: &Service, what: &str, body: &Json) -> Json {
    let answer = service.client().post(&format!("/v1/collections/docs/{what}"), body);
    answer.unwrap_or_else(|error| panic!("{what} {body}: {error:#}\n{}", service.log_tail()))
}

/// The problem that a request ends with, as text.
fn refused(service: &Service, what: &str, body: &Json) -> String {
    match service.client().post(&format!("/v1/collections/docs/{what}"), body) {
        Ok(answer) => panic!("{what} {body} should be refused: {answer}"),
        Err(error) => format!("{error:#}"),
    }
}

fn numbers(answer: &Json) -> Vec<i64> {
    ids(answer).iter().map(|id| id.as_i64().expect("a number")).collect()
}

#[test]
fn a_filter_in_json_selects_what_postgres_selects() {
    let database = Database::shared();
    database.sql.run(
        "CREATE TABLE docs (id bigint PRIMARY KEY, lang text, price float8, day date, flag bool, small real, embedding real[]);
         INSERT INTO docs SELECT i, CASE i % 4 WHEN 0 THEN NULL WHEN 1 THEN 'en' WHEN 2 THEN 'de' ELSE 'fr' END,
           NULLIF(i % 11, 7) * 2.5, date '2024-01-01' + i % 9, i % 3 = 0, i * 0.1, vec(i, 4) FROM generate_series(1, 200) i",
    );
    let collection = "[[collections]]
table = \"public.docs\"
name = \"docs\"
filter_columns = [\"lang\", \"price\", \"day\", \"flag\", \"small\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
";
    let mut service = Service::ready(&database, collection);
    service.catch_up(&database.sql);
    let cases = [
        (json!({}), "true"),
        (json!({"lang": "en", "price": {"$lt": 20}}), "lang = 'en' AND price < 20"),
        (json!({"lang": {"$in": ["en", "de"]}, "flag": true}), "lang IN ('en', 'de') AND flag"),
        (json!({"lang": {"$nin": ["en", "de"]}}), "lang NOT IN ('en', 'de')"),
        (json!({"lang": {"$ne": "en"}}), "lang <> 'en'"),
        (json!({"lang": null}), "lang IS NULL"),
        (json!({"price": {"$exists": true, "$gte": 5, "$lte": 10}}), "price BETWEEN 5 AND 10"),
        (json!({"$or": [{"lang": "fr"}, {"day": {"$gt": "2024-01-05"}}]}), "lang = 'fr' OR day > '2024-01-05'"),
        (json!({"$not": {"lang": "fr", "flag": true}}), "NOT (lang = 'fr' AND flag)"),
        (json!({"small": {"$in": [0.1, 0.7]}}), "small IN (0.1::real, 0.7::real)"),
    ];
    for (filter, sql) in cases {
        let expected = database.sql.one(&format!("SELECT count(*) FROM docs WHERE {sql}"));
        let counted = post(&service, "count", &json!({"filter": filter}));
        assert_eq!(counted["count"].to_string(), expected, "{filter}");
        let rows = database.sql.rows(&format!("SELECT id FROM docs WHERE {sql}"));
        let rows: BTreeSet<i64> =
            rows.iter().map(|row| row[0].as_deref().expect("an id").parse().expect("a number")).collect();
        for level in ["none", "exists", "exact"] {
            let mut body = near(1, 4, 200);
            (body["filter"], body["recheck"]) = (filter.clone(), json!(level));
            let found: BTreeSet<_> = numbers(&service.search("docs", &body)).into_iter().collect();
            assert_eq!(found, rows, "{filter} {level}");
        }
        let scrolled = post(&service, "scroll", &json!({"filter": filter, "limit": 200}));
        assert_eq!(scrolled["rows"].as_array().map(Vec::len), Some(rows.len()), "{filter}");
    }
    let error = refused(&service, "count", &json!({"filter": {"$or": [{"price": {"$lt": "x"}}]}}));
    assert!(error.contains("filter.$or[0].price.$lt"), "{error}");
}

const TENANTS: &str = "[search]
recheck_roles = [\"tenant_a\", \"tenant_b\", \"by_setting\", \"nobody\", \"not ours\", \"missing\"]
recheck_settings = [\"app.tenant\"]
";

/// Tenants with row security of their own, and one whose rows a setting decides.
fn tenants(database: &Database) {
    database.docs(300);
    database.sql.run(
        "DO $$ DECLARE r text; BEGIN
           FOREACH r IN ARRAY ARRAY['tenant_a', 'tenant_b', 'by_setting', 'nobody', 'not ours'] LOOP
             IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN EXECUTE format('CREATE ROLE %I', r); END IF;
           END LOOP; END $$;
         ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
         GRANT SELECT ON docs TO tenant_a, tenant_b, by_setting;
         CREATE POLICY a ON docs TO tenant_a USING (id % 2 = 0);
         CREATE POLICY b ON docs TO tenant_b USING (id % 10 = 1);
         CREATE POLICY s ON docs TO by_setting USING (section = current_setting('app.tenant', true));",
    );
}

#[test]
fn rechecked_as_a_role_its_row_security_decides_and_the_answer_is_full() {
    let database = Database::shared();
    tenants(&database);
    let mut service = Service::ready(&database, &format!("{TENANTS}{DOCS}"));
    service.catch_up(&database.sql);
    let ranked = numbers(&service.search("docs", &near(7, 4, 300)));
    let first = |limit: usize, sees: &dyn Fn(i64) -> bool| {
        ranked.iter().copied().filter(|id| sees(*id)).take(limit).collect::<Vec<_>>()
    };
    let a = |id: i64| id % 2 == 0;
    let b = |id: i64| id % 10 == 1;
    let ask = |limit: usize, recheck: Json| {
        let mut body = near(7, 4, limit);
        body["recheck"] = recheck;
        service.search("docs", &body)
    };
    for limit in [1, 10, 25] {
        for mode in ["exists", "exact"] {
            let found = ask(limit, json!({"as_role": "tenant_a", "mode": mode}));
            assert_eq!(numbers(&found), first(limit, &a), "{mode}");
            let found = ask(limit, json!({"as_role": "tenant_b", "mode": mode}));
            assert_eq!(numbers(&found), first(limit, &b), "{mode}");
            assert_eq!((found["complete"].clone(), found["recheck"]["mode"].clone()), (json!(true), json!(mode)));
        }
        // The same connections see everything again.
        assert_eq!(numbers(&ask(limit, json!("exists"))), first(limit, &|_| true));
    }
    assert_eq!(numbers(&ask(10, json!("role:tenant_a"))), first(10, &a));
    assert_eq!(numbers(&ask(40, json!("role:tenant_b"))), first(40, &b), "there are 30");
    // By a setting, which holds for one request only.
    for (tenant, rest) in [("s0", 0), ("s2", 2), ("s1", 1)] {
        let found = ask(10, json!({"as_role": "by_setting", "settings": {"app.tenant": tenant}}));
        assert_eq!(numbers(&found), first(10, &|id| id % 3 == rest), "{tenant}");
    }
    assert_eq!(numbers(&ask(10, json!("role:by_setting"))), Vec::<i64>::new(), "it did not stay");
    let hostile = ask(10, json!({"as_role": "by_setting", "settings": {"app.tenant": "s0' OR true --"}}));
    assert_eq!(numbers(&hostile), Vec::<i64>::new());
    // Other kinds of search, and a batch of several roles.
    let vector = vec_of(7, 4);
    let groups = json!({"query": {"vector": vector}, "group_by": "section", "group_size": 4, "limit": 3, "recheck": "role:tenant_a"});
    let groups = service.search("docs", &groups);
    let groups = groups["groups"].as_array().expect("groups");
    assert_eq!(groups.len(), 3);
    assert!(
        groups.iter().all(|group| numbers(group).len() == 4 && numbers(group).iter().all(|id| a(*id))),
        "{groups:?}"
    );
    let each = ["exists", "role:tenant_a", "role:tenant_b"]
        .map(|recheck| json!({"query": {"vector": vector}, "recheck": recheck}));
    let batch = service.search("docs", &json!({"searches": each}));
    let found: Vec<_> = batch["answers"].as_array().expect("answers").iter().map(numbers).collect();
    assert_eq!(found, [first(10, &|_| true), first(10, &a), first(10, &b)]);
    let rows = post(&service, "scroll", &json!({"recheck": "role:tenant_b", "limit": 12, "columns": ["body"]}));
    let rows: Vec<_> =
        rows["rows"].as_array().expect("rows").iter().map(|row| row["id"].as_i64().expect("an id")).collect();
    assert_eq!(rows, (0..12).map(|n| n * 10 + 1).collect::<Vec<_>>());
    // A row that the role does not see is none to search by, whether it is there or not.
    let by = |id: i64| json!({"query": {"id": id}, "recheck": "role:tenant_a"});
    assert!(service.search("docs", &by(8))["hits"].as_array().is_some_and(|hits| hits.len() == 10));
    let there = refused(&service, "search", &by(9));
    let not_there = refused(&service, "search", &by(9_999));
    assert!(there.contains("RV1011"), "{there}");
    assert_eq!(there.replace("9", ""), not_there.replace("9", ""));
    let liked = json!({"query": {"recommend": {"positive": [8, 9]}}, "recheck": "role:tenant_a"});
    assert!(refused(&service, "search", &liked).contains("RV1011"));
}

#[test]
fn a_role_that_cannot_be_used_is_a_clear_error() {
    let database = Database::shared();
    tenants(&database);
    // A service whose role is a member of some of them only.
    let role = format!("service_{}", database.name);
    database.sql.run(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION BYPASSRLS PASSWORD 'x'; GRANT tenant_a, nobody TO {role};
         GRANT SELECT ON docs TO {role}; GRANT CREATE ON DATABASE {} TO {role}; CREATE PUBLICATION {} FOR TABLE docs",
        database.name, database.name
    ));
    let mut service = Service::configured(&database, "", "");
    let dsn =
        database.dsn.replace("postgresql://", "").split_once('@').map(|(_, rest)| rest.to_owned()).expect("a host");
    service.configure(&format!("postgresql://{role}:x@{dsn}"), "", &format!("{TENANTS}{DOCS}"));
    service.start();
    service.wait_ready();
    service.catch_up(&database.sql);
    let ask = |recheck: Json| json!({"query": {"vector": vec_of(7, 4)}, "recheck": recheck});
    assert_eq!(numbers(&service.search("docs", &ask(json!("role:tenant_a")))).len(), 10);
    for (recheck, code, reason) in [
        (json!("role:postgres"), "RV1026", "not one that may be asked for"),
        (json!("role:none"), "RV1026", "not one that may be asked for"),
        (json!({"as_role": "tenant_a", "settings": {"role": "postgres"}}), "RV1026", "setting"),
        (json!({"as_role": "tenant_a", "settings": {"app.other": "1"}}), "RV1026", "setting"),
        (json!("role:missing"), "RV1206", "there is no role \"missing\""),
        (json!("role:not ours"), "RV1206", "may not become role \"not ours\""),
        (json!("role:nobody"), "RV1206", "role \"nobody\" may not read"),
    ] {
        for what in ["search", "scroll"] {
            let mut body = ask(recheck.clone());
            if what == "scroll" {
                body = json!({"recheck": recheck});
            }
            let error = refused(&service, what, &body);
            assert!(error.contains(code) && error.contains(reason), "{recheck}: {error}");
        }
        // What failed leaves nothing behind.
        assert_eq!(numbers(&service.search("docs", &ask(json!("exists")))).len(), 10, "{recheck}");
    }
    wait_until("the doctor says so", || {
        let findings = service.status()["doctor"].to_string();
        ["there is no such role", "our role may not become it", "it may not read"]
            .iter()
            .all(|text| findings.contains(text))
    });
}

#[test]
fn searches_that_wait_for_the_source_share_its_answers() {
    let database = Database::shared();
    database.docs(400);
    let one = "[search]\nrecheck_connections = 1\nrecheck_timeout_ms = 20000\n";
    let mut service = Service::ready(&database, &format!("{one}{DOCS}"));
    service.catch_up(&database.sql);
    let trips = |service: &Service| service.metric("ruvector_search_recheck_seconds_count");
    let joined = |service: &Service| service.metric("ruvector_search_recheck_joined_total");
    let body = |seed: i64| {
        let mut body = near(seed, 4, 10);
        body["columns"] = json!(["body"]);
        body
    };
    service.search("docs", &body(1));
    let bodies: Vec<_> = (1..=32).map(body).collect();
    let (before, joined_before) = (trips(&service), joined(&service));
    // The first one waits for the lock; the others for its connection.
    let other = database.connect();
    other.run("BEGIN; LOCK TABLE docs IN ACCESS EXCLUSIVE MODE");
    let answers: Vec<Json> = std::thread::scope(|scope| {
        let searching: Vec<_> = bodies.iter().map(|body| scope.spawn(|| service.search("docs", body))).collect();
        std::thread::sleep(Duration::from_millis(700));
        other.run("COMMIT");
        searching.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    let (trips_made, joined) = (trips(&service) - before, joined(&service) - joined_before);
    println!("32 searches at once: {trips_made} round trips, {joined} went along with another");
    assert!(trips_made <= 8.0, "{trips_made} round trips");
    assert!(trips_made + joined >= 32.0, "{trips_made} round trips, {joined} joined");
    for (seed, answer) in (1..=32).zip(&answers) {
        assert_eq!((numbers(answer)[0], numbers(answer).len()), (seed, 10));
        for hit in answer["hits"].as_array().expect("hits") {
            assert_eq!(hit["columns"]["body"], format!("body {}", hit["id"]));
        }
        assert!(answer["recheck"]["took_us"].as_u64().is_some_and(|us| us > 0), "{answer}");
    }
    let most = answers.iter().filter_map(|answer| answer["recheck"]["batched"].as_u64()).max();
    assert!(most.is_some_and(|most| most > 8), "{most:?}");
    let alone = service.search("docs", &body(3));
    assert_eq!(alone["recheck"]["batched"], 1);
}

#[test]
fn who_shares_a_round_trip_sees_what_was_committed_before_the_question() {
    let database = Database::shared();
    database.docs(400);
    let one = "[search]\nrecheck_connections = 1\nrecheck_timeout_ms = 20000\n";
    let mut service = Service::ready(&database, &format!("{one}{DOCS}"));
    service.catch_up(&database.sql);
    let stop = AtomicBool::new(false);
    let others: Vec<_> = (200..208).map(|seed| near(seed, 4, 5)).collect();
    let batched = std::thread::scope(|scope| {
        for body in &others {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    service.search("docs", body);
                }
            });
        }
        let mut batched = 0;
        for id in 1..=60 {
            database.sql.run(&format!("DELETE FROM docs WHERE id = {id}"));
            let answer = service.search("docs", &near(id, 4, 5));
            let found = numbers(&answer);
            if found.iter().any(|found| *found <= id) || found.len() != 5 {
                stop.store(true, Ordering::Relaxed);
                panic!("{id}: {answer:#}");
            }
            batched += u64::from(answer["recheck"]["batched"].as_u64().is_some_and(|batched| batched > 1));
        }
        stop.store(true, Ordering::Relaxed);
        batched
    });
    println!("{batched} of 60 answers came by a shared round trip");
    assert!(batched > 0);
}

const FIVE: &str = "[[collections]]
table = \"public.docs\"
name = \"docs\"
filter_columns = [\"section\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
[[collections]]
table = \"public.pairs\"
name = \"pairs\"
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
";

/// Documents, many of which have the same vector as others.
fn with_twins(database: &Database) -> Service {
    database.sql.run(
        "CREATE TABLE docs (id bigint PRIMARY KEY, section text, body text, embedding real[]);
         INSERT INTO docs SELECT i, NULLIF('s' || i % 5, 's4'), 'body ' || i, vec(i % 120, 4) FROM generate_series(1, 600) i;
         INSERT INTO docs VALUES (1001, 's0', 'no vector', NULL);
         CREATE TABLE pairs (a int, b text, embedding real[], PRIMARY KEY (a, b));
         INSERT INTO pairs VALUES (1, 'x/y z', '{1,2}')",
    );
    let mut service = Service::ready(database, FIVE);
    service.catch_up(&database.sql);
    service
}

/// All pages of a request, put together.
fn pages(service: &Service, body: &Json) -> Vec<Json> {
    let (mut body, mut hits) = (body.clone(), Vec::new());
    for _ in 0..1_000 {
        let answer = service.search("docs", &body);
        hits.extend(answer["hits"].as_array().expect("hits").iter().cloned());
        if answer["next"].is_null() {
            return hits;
        }
        body["after"] = answer["next"].clone();
    }
    panic!("{body} has no end");
}

#[test]
fn pages_of_an_exact_search_are_one_long_answer() {
    let database = Database::shared();
    let service = with_twins(&database);
    for seed in [3, 50] {
        for (filter, recheck) in [(json!({}), "none"), (json!({"section": "s1"}), "exists"), (json!({}), "exact")] {
            let mut long = near(seed, 4, 1_000);
            long["search"] = json!({"exact": true});
            (long["filter"], long["recheck"]) = (filter.clone(), json!(recheck));
            let whole = service.search("docs", &long);
            assert!(whole["next"].is_null(), "all of them are there");
            let whole = whole["hits"].as_array().expect("hits").clone();
            assert_eq!(whole.len(), if filter == json!({}) { 600 } else { 120 });
            for limit in [7, 64, 120] {
                long["limit"] = json!(limit);
                assert_eq!(pages(&service, &long), whole, "{filter} {recheck} by {limit}");
                assert_eq!(service.search("docs", &long)["hits"].as_array().expect("hits")[..], whole[..limit]);
            }
            // Within a distance.
            let middle = whole[60]["distance"].as_f64().expect("a distance") + 1e-4;
            let within = whole.iter().filter(|hit| hit["distance"].as_f64().is_some_and(|distance| distance <= middle));
            let within: Vec<_> = within.cloned().collect();
            long["max_distance"] = json!(middle);
            assert_eq!(pages(&service, &long), within, "{filter} {recheck} within {middle}");
        }
    }
    // By a row, which is on no page; and by the usual search, which gives no row twice.
    let exact = json!({"query": {"id": 17}, "limit": 50, "search": {"exact": true}});
    let found = pages(&service, &exact);
    assert!(found.len() == 599 && found.iter().all(|hit| hit["id"] != 17));
    let usual = pages(&service, &near(9, 4, 40));
    let keys: BTreeSet<_> = usual.iter().map(|hit| hit["id"].to_string()).collect();
    assert_eq!((usual.len(), keys.len()), (600, 600));
}

#[test]
fn pages_behind_thousands_of_ties_are_one_long_answer() {
    let database = Database::shared();
    // Keys in no order of their places here, all at one point but for a few.
    database.sql.run(
        "CREATE TABLE docs (id bigint PRIMARY KEY, section text, body text, embedding real[]);
         INSERT INTO docs SELECT i, 's' || i % 3, '', CASE WHEN i % 1000 = 0 THEN vec(i, 4) ELSE '{1,2,3,4}' END
           FROM generate_series(1, 5000) i ORDER BY md5(i::text)",
    );
    let mut service = Service::ready(&database, DOCS);
    service.catch_up(&database.sql);
    for recheck in ["none", "exists"] {
        let body =
            json!({"query": {"vector": [0, 0, 0, 0]}, "limit": 700, "search": {"exact": true}, "recheck": recheck});
        let found = pages(&service, &body);
        let ids: BTreeSet<_> = found.iter().map(|hit| hit["id"].as_i64().expect("an id")).collect();
        assert_eq!((found.len(), ids.len()), (5_000, 5_000), "{recheck}");
        let order = |hit: &Json| (hit["distance"].as_f64().expect("a distance"), hit["id"].as_i64().expect("an id"));
        assert!(found.is_sorted_by(|a, b| order(a) <= order(b)), "ties come by key");
    }
    let fast = json!({"query": {"vector": [0, 0, 0, 0]}, "search": {"exactness": "fast"}});
    assert!(service.search("docs", &fast).get("next").is_none(), "distances of codes are no places");
    let mut after = near(1, 4, 5);
    after["search"] = json!({"exact": true});
    let next = service.search("docs", &after)["next"].clone();
    (after["after"], after["search"]) = (next, json!({"exactness": "fast"}));
    assert!(refused(&service, "search", &after).contains("RV1027"));
}

#[test]
fn a_batch_is_bounded_by_what_its_cursors_and_widths_cost() {
    let database = Database::shared();
    let service = with_twins(&database);
    let one = |ef: usize| json!({"query": {"vector": [1, 2, 3, 4]}, "limit": 1, "search": {"ef": ef}});
    let batch = |many: usize, ef: usize| json!({"searches": vec![one(ef); many]});
    assert!(refused(&service, "search", &batch(256, 100_000)).contains("RV1024"));
    assert_eq!(service.search("docs", &batch(100, 1_000))["answers"].as_array().map(Vec::len), Some(100));
    // A cursor that says more was given than ever was: anybody can write one.
    let next = service.search("docs", &one(100))["next"].as_str().expect("more").to_owned();
    let mut bytes = URL_SAFE_NO_PAD.decode(next).expect("base64");
    bytes[18..26].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut far = one(100);
    far["after"] = json!(URL_SAFE_NO_PAD.encode(bytes));
    assert!(service.search("docs", &far)["hits"].is_array(), "one alone is answered");
    assert!(refused(&service, "search", &json!({"searches": vec![far; 20]})).contains("RV1024"));
    // Whoever asks for what is not there is not told what is.
    let error = service.client().get("/v1/collections/nope").map(|found| panic!("{found}")).unwrap_err();
    assert!(format!("{error:#}").contains("RV1101") && !format!("{error:#}").contains("docs"), "{error:#}");
}

#[test]
fn pages_go_on_over_rows_that_are_not_visible() {
    let database = Database::shared();
    tenants(&database);
    let mut service = Service::ready(&database, &format!("{TENANTS}{DOCS}"));
    service.catch_up(&database.sql);
    let mut body = near(7, 4, 300);
    let ranked = numbers(&service.search("docs", &body));
    let seen: Vec<_> = ranked.into_iter().filter(|id| id % 10 == 1).collect();
    (body["recheck"], body["limit"]) = (json!("role:tenant_b"), json!(4));
    let found: Vec<_> = pages(&service, &body).iter().map(|hit| hit["id"].as_i64().expect("an id")).collect();
    assert_eq!(found, seen);
}

#[test]
fn an_answer_as_a_role_tells_nothing_of_rows_that_it_does_not_see() {
    let database = Database::shared();
    tenants(&database);
    let mut service = Service::ready(&database, &format!("{TENANTS}{DOCS}"));
    service.catch_up(&database.sql);
    let role = "role:tenant_b";
    let ids = |answer: &Json| -> Vec<i64> {
        answer["rows"].as_array().expect("rows").iter().map(|row| row["id"].as_i64().expect("an id")).collect()
    };
    // It sees 1, 11, ... 291. Behind the last of them are nine others.
    for (after, limit, last, next) in [
        (None, 29, Some(281), json!(281)),
        (None, 30, Some(291), Json::Null),
        (None, 31, Some(291), Json::Null),
        (Some(280), 1, Some(281), json!(281)),
        (Some(281), 1, Some(291), Json::Null),
        (Some(291), 1, None, Json::Null),
    ] {
        let mut body = json!({"recheck": role, "limit": limit});
        if let Some(after) = after {
            body["after"] = json!(after);
        }
        let page = post(&service, "scroll", &body);
        let rows = ids(&page);
        assert_eq!((rows.last().copied(), &page["next"], &page["complete"]), (last, &next, &json!(true)), "{body}");
        let told = (&page["recheck"]["checked"], &page["recheck"]["dropped"]);
        assert_eq!(told, (&json!(rows.len()), &json!(0)), "{body}");
    }
    let ranked = service.search("docs", &near(7, 4, 300));
    let seen: Vec<_> = ranked["hits"]
        .as_array()
        .expect("hits")
        .iter()
        .filter(|hit| hit["id"].as_i64().is_some_and(|id| id % 10 == 1))
        .collect();
    let mut body = near(7, 4, 1);
    body["recheck"] = json!(role);
    for mode in ["exists", "exact"] {
        body["recheck"] = json!({"as_role": "tenant_b", "mode": mode});
        for limit in [29, 30, 31] {
            body["limit"] = json!(limit);
            let answer = service.search("docs", &body);
            assert_eq!(answer["next"].is_null(), limit >= 30, "{mode} {limit}");
            let (recheck, stats) = (&answer["recheck"], &answer["stats"]);
            assert_eq!(
                (&recheck["checked"], &recheck["dropped"], &recheck["refilled"]),
                (&json!(limit.min(30)), &json!(0), &json!(0))
            );
            assert_eq!((&recheck["batched"], &recheck["took_us"]), (&json!(0), &json!(0)));
            assert_eq!((&stats["reason"], &stats["visited"], &stats["plan"]), (&json!(""), &json!(0), &json!("")));
        }
    }
    // Within a distance there are rows of others behind the second one that it sees, and the answer is whole all the same.
    let apart = |at: usize| seen[at]["distance"].as_f64().expect("a distance");
    (body["limit"], body["search"]) = (json!(2), json!({"exact": true}));
    body["max_distance"] = json!((apart(1) + apart(2)) / 2.0);
    let whole = service.search("docs", &body);
    assert_eq!((numbers(&whole).len(), &whole["complete"], &whole["stats"]["ended"]), (2, &json!(true), &json!("dry")));
    body["limit"] = json!(1);
    assert_eq!(service.search("docs", &body)["complete"], json!(false));
    body["explain"] = json!(true);
    assert!(refused(&service, "search", &body).contains("RV1026"));
    // Neither time: the source is asked about a row that is not here like about one that is hidden.
    let trips = |id: i64| {
        let before = service.metric("ruvector_search_recheck_seconds_count");
        let path = format!("/v1/collections/docs/rows/{id}?recheck={role}");
        let error = service.client().get(&path).map(|row| panic!("{row}")).unwrap_err();
        assert!(format!("{error:#}").contains("RV1011"), "{error:#}");
        service.metric("ruvector_search_recheck_seconds_count") - before
    };
    assert_eq!((trips(2), trips(9_999)), (1.0, 1.0));
    // What it may not read at all is the same error, whether the index has such rows or none.
    database.sql.run("REVOKE SELECT ON docs FROM tenant_b; GRANT SELECT (id) ON docs TO tenant_b");
    for filter in ["section <> 'nobody has this'", "section = 'nobody has this'"] {
        let of = |mode: &str| json!({"as_role": "tenant_b", "mode": mode});
        let mut body = near(7, 4, 3);
        (body["filter"], body["recheck"]) = (json!(filter), of("exact"));
        assert!(refused(&service, "search", &body).contains("RV1206"), "{filter}");
        let body = json!({"filter": filter, "recheck": of("exact"), "limit": 3});
        assert!(refused(&service, "scroll", &body).contains("RV1206"), "{filter}");
    }
}

#[test]
fn a_cursor_belongs_to_its_request_and_its_copy() {
    let database = Database::shared();
    let mut service = with_twins(&database);
    let body = near(3, 4, 5);
    let next = service.search("docs", &body)["next"].as_str().expect("more").to_owned();
    let with = |change: &dyn Fn(&mut Json)| {
        let mut body = body.clone();
        body["after"] = json!(next);
        change(&mut body);
        body
    };
    assert_eq!(numbers(&service.search("docs", &with(&|_| ()))).len(), 5);
    // What does not decide which rows come may differ.
    let other =
        with(&|body| (body["limit"], body["columns"], body["explain"]) = (json!(9), json!(["body"]), json!(true)));
    assert_eq!(numbers(&service.search("docs", &other)).len(), 9);
    for change in [
        &|body: &mut Json| body["query"] = json!({"vector": vec_of(4, 4)}) as Json,
        &|body: &mut Json| body["query"] = json!({"id": 3}),
        &|body: &mut Json| body["filter"] = json!({"section": "s1"}),
        &|body: &mut Json| body["max_distance"] = json!(1.0),
        &|body: &mut Json| body["recheck"] = json!("none"),
        &|body: &mut Json| body["search"] = json!({"exact": true}),
        &|body: &mut Json| body["group_by"] = json!("section"),
        &|body: &mut Json| body["mmr"] = json!({}),
        &|body: &mut Json| body["after"] = json!(""),
        &|body: &mut Json| body["after"] = json!("AQ"),
        &|body: &mut Json| body["after"] = json!("!"),
        &|body: &mut Json| body["after"] = json!(format!("{next}A")),
    ] as [&dyn Fn(&mut Json); 12]
    {
        let error = refused(&service, "search", &with(change));
        assert!(error.contains("RV1027"), "{}: {error}", with(change));
    }
    // In a batch, too; and for a long answer that has no pages there is none.
    let batch = service.search("docs", &json!({"searches": [with(&|_| ()), body]}));
    assert_eq!(numbers(&batch["answers"][0]).len(), 5);
    assert_eq!(batch["answers"][1]["next"], json!(next));
    let groups = service.search("docs", &json!({"query": {"id": 3}, "group_by": "section", "limit": 2}));
    assert!(groups["next"].is_null());
    // Copied again it is another one.
    service.client().post("/v1/admin/collections/docs/rebuild", &json!({})).expect("a copy");
    service.wait_for("the copy answers", |service| {
        service.try_search("docs", &with(&|_| ())).is_err_and(|error| format!("{error:#}").contains("RV1027"))
    });
}

#[test]
fn facets_are_what_postgres_counts() {
    let database = Database::shared();
    let service = with_twins(&database);
    for (filter, condition) in [
        (json!({}), "true"),
        (json!({"section": {"$ne": "s1"}}), "section <> 's1'"),
        (json!({"section": null}), "section IS NULL"),
    ] {
        let rows = database.sql.rows(&format!(
            "SELECT section, count(*) FROM docs WHERE {condition} GROUP BY section ORDER BY count(*) DESC, section COLLATE \"C\" NULLS FIRST"
        ));
        let number = |text: &Option<String>| json!(text.as_deref().and_then(|text| text.parse::<u64>().ok()));
        let expected: Vec<_> = rows.iter().map(|row| json!({"value": row[0], "count": number(&row[1])})).collect();
        let total: u64 = expected.iter().filter_map(|row| row["count"].as_u64()).sum();
        let answer = post(&service, "facet", &json!({"column": "section", "filter": filter}));
        assert_eq!(answer["facets"], json!(expected), "{filter}");
        assert_eq!(
            (&answer["distinct"], &answer["total"], &answer["complete"]),
            (&json!(expected.len()), &json!(total), &json!(true))
        );
        let first = post(&service, "facet", &json!({"column": "section", "filter": filter, "limit": 1}));
        assert_eq!(first["facets"], json!(expected[..1]));
        assert_eq!(first["distinct"], answer["distinct"]);
    }
}

#[test]
fn one_row_as_indexed_and_as_the_source_shows_it() {
    let database = Database::shared();
    let mut service = with_twins(&database);
    let get = |service: &Service, path: &str| service.client().get(&format!("/v1/collections/{path}"));
    let row = get(&service, "docs/rows/7").expect("a row");
    assert_eq!((&row["id"], &row["columns"], &row["complete"]), (&json!(7), &json!({"section": "s2"}), &json!(true)));
    assert_eq!((&row["recheck"]["mode"], &row["recheck"]["checked"]), (&json!("exists"), &json!(1)));
    let row = get(&service, "docs/rows/7?columns=body,id").expect("a row");
    assert_eq!(row["columns"], json!({"body": "body 7", "id": 7}));
    let row = get(&service, "docs/rows/1001?recheck=none&columns=section").expect("a row without a vector");
    assert_eq!((&row["columns"], &row["recheck"]["checked"]), (&json!({"section": "s0"}), &json!(0)));
    let row = get(&service, "pairs/rows/%7B%22a%22:1,%22b%22:%22x%2Fy%20z%22%7D").expect("a key of two columns");
    assert_eq!(row["id"], json!({"a": 1, "b": "x/y z"}));
    database.sql.run("UPDATE docs SET section = 'new' WHERE id = 8");
    let lsn = database.sql.lsn();
    let row = get(&service, &format!("docs/rows/8?recheck=none&at_least={lsn}&timeout_ms=20000")).expect("a row");
    assert_eq!(row["columns"], json!({"section": "new"}));
    // Not visible any more, whether that was streamed or not.
    database.sql.run("DELETE FROM docs WHERE id = 9");
    for (path, code) in [
        ("docs/rows/9", "RV1011"),
        ("docs/rows/5000", "RV1011"),
        ("docs/rows/x", "RV1009"),
        ("docs/rows/99999999999999999999", "RV1009"),
        ("pairs/rows/1", "RV1009"),
        ("pairs/rows/%7B%22a%22:1%7D", "RV1009"),
        ("nope/rows/1", "RV1101"),
        ("docs/rows/7?columns=nope", "RV1008"),
        ("docs/rows/7?columns=body&recheck=none", "RV1008"),
        ("docs/rows/7?recheck=maybe", "RV1001"),
        ("docs/rows/7?recheck=role:x", "RV1026"),
        ("docs/rows/7?depth=1", "RV1001"),
        ("docs/rows/7?timeout_ms=x", "RV1001"),
        ("docs/rows/7?at_least=x", "RV1010"),
        ("docs/rows/7?at_least=F0000000/0&timeout_ms=50", "RV1203"),
    ] {
        let error = get(&service, path).map(|row| panic!("{path}: {row}")).unwrap_err();
        assert!(format!("{error:#}").contains(code), "{path}: {error:#}");
    }
    service.catch_up(&database.sql);
}

#[test]
fn recall_is_measured_and_told() {
    let database = Database::shared();
    let service = with_twins(&database);
    let report = post(&service, "recall", &json!({"sample": 25, "limit": 5}));
    assert_eq!((&report["queries"], &report["limit"], &report["rows"]), (&json!(25), &json!(5), &json!(600)));
    let recall = report["recall"].as_f64().expect("a share");
    let worst = report["worst"].as_f64().expect("a share");
    assert!((0.9..=1.0).contains(&recall) && worst <= recall, "{report}");
    assert_eq!(service.metric("ruvector_recall_estimate"), recall);
    let report =
        post(&service, "recall", &json!({"queries": [vec_of(1, 4), vec_of(2, 4)], "filter": {"section": "s1"}}));
    assert_eq!((&report["queries"], &report["rows"], &report["recall"]), (&json!(2), &json!(120), &json!(1.0)));
    let all = post(&service, "recall", &json!({"sample": 1000, "filter": {"section": "s1"}, "limit": 2}));
    assert_eq!(all["queries"], 120, "there are no more");
    for (body, code) in [
        (json!({"sample": 0}), "RV1029"),
        (json!({"sample": 1001}), "RV1029"),
        (json!({"limit": 0}), "RV1029"),
        (json!({"filter": {"section": "nobody"}}), "RV1029"),
        (json!({"queries": [[1, 2]]}), "RV1003"),
        (json!({"using": "nope"}), "RV1008"),
        (json!({"search": {"exact": true}}), "RV1002"),
    ] {
        let error = refused(&service, "recall", &body);
        assert!(error.contains(code), "{body}: {error}");
    }
}

#[test]
fn a_position_can_be_waited_for() {
    let database = Database::shared();
    let service = with_twins(&database);
    let now = service.client().get("/v1/lsn").expect("positions");
    assert!(now["applied_lsn"].is_string() && now["positions"]["source"].is_string(), "{now}");
    database.sql.run("DELETE FROM docs WHERE id = 1");
    let lsn = database.sql.lsn();
    let reached = service.client().get(&format!("/v1/lsn?at_least={lsn}&timeout_ms=20000")).expect("reached");
    let applied: ruvector::model::Lsn =
        reached["applied_lsn"].as_str().and_then(|text| text.parse().ok()).expect("an LSN");
    assert!(applied >= lsn, "{reached}");
    for (path, code) in [
        ("/v1/lsn?at_least=F0000000/0&timeout_ms=50", "RV1203"),
        ("/v1/lsn?at_least=x", "RV1010"),
        ("/v1/lsn?timeout_ms=-1", "RV1001"),
        ("/v1/lsn?timeout_ms=60001", "RV1001"),
        ("/v1/lsn?nope=1", "RV1001"),
    ] {
        let error = service.client().get(path).map(|answer| panic!("{path}: {answer}")).unwrap_err();
        assert!(format!("{error:#}").contains(code), "{path}: {error:#}");
    }
}

#[test]
fn an_answer_is_no_older_than_asked_for_or_an_error() {
    let database = Database::shared();
    database.docs(300);
    let mut service = Service::configured(&database, "", DOCS);
    service.set_environment("RUVECTOR__HTTP__MAX_CONCURRENT", Some("1".into()));
    service.start();
    service.wait_ready();
    let with = |max: u64, timeout: u64| {
        let mut body = near(3, 4, 5);
        body["consistency"] = json!({"max_staleness_ms": max, "timeout_ms": timeout});
        body
    };
    // Much less than what passes between two looks at an idle source, and met all the same, time and again.
    for _ in 0..20 {
        let fresh = service.search("docs", &with(300, 20_000));
        assert!(fresh["staleness_ms"].as_f64().is_some_and(|age| age < 1_000.0), "{fresh}");
    }
    for what in ["count", "scroll"] {
        post(&service, what, &json!({"consistency": {"max_staleness_ms": 300, "timeout_ms": 20000}}));
    }
    let error = refused(&service, "search", &with(0, 100));
    assert!(error.contains("RV1001") && error.contains("at least 1"), "{error}");
    // What is not applied makes everything older (a sender that is stopped looks like one that waits, so it is proven
    // to be as old as two looks are apart at least), and who waits for news takes nobody's only turn.
    let stopped = Stopped::new(&database);
    database.sql.run("DELETE FROM docs WHERE id = 1");
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..8).map(|_| scope.spawn(|| refused(&service, "search", &with(20, 3_000)))).collect();
        let mut plain = near(3, 4, 5);
        plain["recheck"] = json!("none");
        while !waiting.iter().all(|one| one.is_finished()) {
            assert_eq!(numbers(&service.search("docs", &plain)).len(), 5);
        }
        for one in waiting {
            let error = one.join().expect("an answer");
            assert!(error.contains("RV1208"), "{error}");
        }
    });
    drop(stopped);
    service.search("docs", &with(300, 20_000));
}

#[test]
fn a_setting_that_is_not_given_is_the_same_on_every_connection() {
    let database = Database::shared();
    tenants(&database);
    database.sql.run("CREATE POLICY t ON docs TO by_setting USING (current_setting('app.tenant', true) IS NULL)");
    let mut service = Service::ready(&database, &format!("{TENANTS}recheck_connections = 1\n{DOCS}"));
    service.catch_up(&database.sql);
    let seen = |settings: Json| {
        let mut body = near(7, 4, 300);
        body["recheck"] = json!({"as_role": "by_setting", "settings": settings});
        numbers(&service.search("docs", &body)).len()
    };
    let (fresh, given, after) = (seen(json!({})), seen(json!({"app.tenant": "s1"})), seen(json!({})));
    assert_eq!((fresh, given), (0, 100), "without a value it is empty, not absent");
    assert_eq!(after, fresh, "an earlier question left nothing behind");
}
