//! Collections registered by SQL, beside a real PostgreSQL: a row that is committed takes effect through the slot, one that
//! cannot be taken says why, and what was taken is known after any end.

mod support;

use ruvector::cli::private_postgres::Settings;
use serde_json::json;
use std::process::{Command, Output};
use std::time::Duration;
use support::{DOCS, Database, Service, Sql, ids, near, wait_until};

const LISTEN: &str = "[sql]\nlisten = \"127.0.0.1:0\"\n[sql.users.app]\npassword = \"secret\"\n";

/// Only the stream tells.
const SELDOM: &str = "reconcile_s = 3600\n";

/// A service that follows `docs`, with the pack installed, and a table `pages` like it.
fn world(database: &Database, source: &str) -> Service {
    database.docs(30);
    database.sql.run(
        "CREATE TABLE pages (LIKE docs INCLUDING ALL); INSERT INTO pages SELECT * FROM docs LIMIT 10;
         CREATE TABLE more (LIKE docs INCLUDING ALL); CREATE EXTENSION postgres_fdw",
    );
    let mut service = Service::configured(database, source, &format!("{LISTEN}{DOCS}"));
    service.start();
    service.wait_ready();
    installed(&service, &database.dsn, "install");
    service
}

fn pack(service: &Service, dsn: &str, what: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ruvector"));
    command.arg("sqlpack").args(what).args(["--dsn", dsn, "--config"]).arg(service.config_file());
    if what[0] != "uninstall" {
        let port = service.sql_address().rsplit(':').next().expect("a port").to_owned();
        command.args(["--host", "127.0.0.1", "--port", &port]);
    }
    command.output().expect("it runs")
}

fn installed(service: &Service, dsn: &str, how: &str) -> String {
    let output = pack(service, dsn, &[how]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const REGISTER: &str =
    "SELECT ruvector.ruvector_register_collection('pages', 'public', 'pages', 'embedding', 4, 'l2', ARRAY['section'])";

/// What `ruvector_registrations` says of one, as `state: reason`.
fn outcome(sql: &Sql, name: &str) -> String {
    let query = "SELECT concat_ws(': ', state, reason) FROM ruvector.ruvector_registrations() WHERE name =";
    sql.text(&format!("{query} '{name}'")).unwrap_or_default()
}

fn names(service: &Service) -> Vec<String> {
    let status = service.status();
    let listed = status["collections"].as_array().cloned().unwrap_or_default();
    listed.iter().filter_map(|one| one["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn what_is_registered_is_searchable_and_what_is_unregistered_is_gone() {
    let database = Database::shared();
    let mut service = world(&database, SELDOM);
    let sql = &database.sql;
    // Nothing of what is rolled back, and all of what is committed, in one transaction with rows.
    sql.run(&format!("BEGIN; {REGISTER}; ROLLBACK"));
    service.catch_up(sql);
    assert_eq!(names(&service), ["docs"]);
    assert_eq!(service.status()["registrations"], json!(null));
    sql.run(&format!(
        "BEGIN; INSERT INTO pages (id, section, embedding) VALUES (900, 'new', vec(900, 4)); {REGISTER}; COMMIT"
    ));
    service.wait_for("it answers", |service| outcome_is(service, sql, "pages", "live"));
    service.catch_up(sql);
    assert_eq!(ids(&service.search("pages", &near(900, 4, 1))), [900]);
    assert_eq!(service.verify_clean("pages"), 11);
    sql.run("INSERT INTO pages (id, section, embedding) VALUES (901, 'new', vec(901, 4))");
    service.catch_up(sql);
    let filtered = json!({ "query": { "vector": support::vec_of(901, 4) }, "limit": 5, "filter": "section = 'new'" });
    assert_eq!(ids(&service.search("pages", &filtered)), [901, 900]);
    let found = sql.rows("SELECT id FROM ruvector.ruvector_search('pages', vec(901, 4), 2) ORDER BY distance");
    assert_eq!(found[0][0].as_deref(), Some("901"));
    // A new definition is a new copy; the other collection never noticed.
    let (docs, pages) =
        (service.collection("docs")["copied_at"].clone(), service.collection("pages")["copied_at"].clone());
    assert_eq!(sql.one("SELECT ruvector.ruvector_set_compression('pages', 'hot', 'f16')"), "t");
    service.wait_for("it is copied again", |service| service.collection("pages")["copied_at"] != pages);
    service.wait_for("it answers", |service| outcome_is(service, sql, "pages", "live"));
    assert_eq!(service.collection("pages")["vectors"][0]["encoding"], "f16");
    let pages = service.collection("pages")["copied_at"].clone();
    assert_eq!(sql.one("SELECT ruvector.ruvector_set_tiers('pages', 1, 2, 3)"), "t");
    service.wait_for("it is taken", |service| outcome_is(service, sql, "pages", "live"));
    assert_eq!(service.collection("pages")["copied_at"], pages, "tiers need no copy");
    assert_eq!(sql.one("SELECT ruvector.ruvector_unregister_collection('pages')"), "t");
    service.wait_for("it is gone", |service| names(service) == ["docs"]);
    assert!(service.try_search("pages", &near(1, 4, 1)).is_err());
    assert_eq!(sql.one("SELECT ruvector.ruvector_unregister_collection('pages')"), "f");
    assert_eq!(service.collection("docs")["copied_at"], docs);
    service.verify_clean("docs");
    service.terminate();
}

#[test]
fn row_security_that_hides_rows_is_refused_before_anything_is_copied() {
    let database = Database::shared();
    let (sql, role) = (&database.sql, format!("service_{}", database.name));
    database.docs(30);
    sql.run(&format!(
        "CREATE TABLE pages (LIKE docs INCLUDING ALL); INSERT INTO pages SELECT * FROM docs; CREATE EXTENSION postgres_fdw;
         CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'; GRANT SELECT ON docs, pages TO {role};
         GRANT CREATE ON DATABASE {0} TO {role}; CREATE PUBLICATION {0} FOR TABLE docs, pages;
         ALTER TABLE pages ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON pages USING (id < 5)",
        database.name
    ));
    let mut service = Service::configured(&database, "", "");
    let rest = database.dsn.split_once('@').map(|(_, rest)| rest.to_owned()).expect("a host");
    service.configure(&format!("postgresql://{role}:x@{rest}"), "reconcile_s = 1\n", &format!("{LISTEN}{DOCS}"));
    service.start();
    service.wait_ready();
    installed(&service, &database.dsn, "install");
    sql.run(REGISTER);
    service.wait_for("it is refused", |_| outcome(sql, "pages").starts_with("refused: row security hides rows"));
    assert!(service.try_search("pages", &near(1, 4, 1)).is_err(), "nothing of it is answered");
    assert_eq!(ids(&service.search("docs", &near(1, 4, 1))), [1]);
    sql.run("ALTER TABLE pages DISABLE ROW LEVEL SECURITY");
    service.wait_for("it is copied whole", |service| outcome_is(service, sql, "pages", "live"));
    assert_eq!(ids(&service.search("pages", &near(1, 4, 100))).len(), 30);
    // The table of registrations itself: what is registered stays, and why no more is taken is told.
    sql.run(
        "ALTER TABLE ruvector.registrations ENABLE ROW LEVEL SECURITY;
         CREATE POLICY nobody ON ruvector.registrations USING (false)",
    );
    service.wait_for("it is told", |service| service.status().to_string().contains("row level security hides rows"));
    sql.run("INSERT INTO pages (id, section, embedding) VALUES (900, 'new', vec(900, 4))");
    service.catch_up(sql);
    assert_eq!(ids(&service.search("pages", &near(900, 4, 1))), [900]);
    service.terminate();
}

#[test]
fn a_service_without_collections_that_may_make_no_publication_says_which_is_missing() {
    let database = Database::shared();
    let (sql, name) = (&database.sql, &database.name);
    database.docs(20);
    let mut service = Service::configured(&database, "create_publication = false\nreconcile_s = 1\n", LISTEN);
    let refusal = service.refusal();
    let remedy = format!("CREATE PUBLICATION \"{name}\" WITH (publish_via_partition_root = true);");
    assert!(refusal.contains(&remedy), "{refusal}");
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{name}'");
    assert_eq!(sql.one(&slots), "0", "no slot without a publication");
    sql.run(&remedy);
    service.start();
    service.wait_for("it follows the source", |service| service.status()["replication"]["phase"] == "streaming");
    sql.run("INSERT INTO docs (id, embedding) VALUES (900, vec(900, 4))");
    service.catch_up(sql);
    assert_eq!(service.logged("copying everything again"), 0, "{}", service.log());
    assert_eq!(sql.one(&slots), "1");
    service.terminate();
}

#[test]
fn a_service_without_collections_takes_those_that_are_registered() {
    let database = Database::shared();
    let sql = &database.sql;
    database.docs(20);
    sql.run("CREATE TABLE pages (LIKE docs INCLUDING ALL); INSERT INTO pages SELECT * FROM docs; CREATE EXTENSION postgres_fdw");
    let mut service = Service::configured(&database, "reconcile_s = 1\n", LISTEN);
    service.start();
    service.wait_for("it follows the source", |service| service.status()["replication"]["phase"] == "streaming");
    installed(&service, &database.dsn, "install");
    sql.run(REGISTER);
    service.wait_for("it answers", |service| outcome_is(service, sql, "pages", "live"));
    service.wait_ready();
    sql.run("INSERT INTO pages (id, section, embedding) VALUES (900, 'new', vec(900, 4))");
    service.catch_up(sql);
    assert_eq!(ids(&service.search("pages", &near(900, 4, 1))), [900]);
    assert_eq!(service.verify_clean("pages"), 21);
    // And after a kill nothing needs the file.
    service.kill();
    service.start();
    service.wait_ready();
    assert_eq!(ids(&service.search("pages", &near(900, 4, 1))), [900]);
    sql.run("SELECT ruvector.ruvector_unregister_collection('pages')");
    service.wait_for("it is gone", |service| names(service).is_empty());
    sql.run(REGISTER);
    service.wait_for("it is back", |service| names(service) == ["pages"]);
    service.catch_up(sql);
    service.wait_for("it answers", |service| service.try_search("pages", &near(900, 4, 1)).is_ok());
    assert_eq!(service.verify_clean("pages"), 21);
    service.terminate();
}

fn outcome_is(_: &Service, sql: &Sql, name: &str, expected: &str) -> bool {
    outcome(sql, name) == expected
}

#[test]
fn what_cannot_be_taken_says_why_and_harms_nothing() {
    let database = Database::shared();
    let mut service = world(&database, SELDOM);
    let sql = &database.sql;
    sql.run(REGISTER);
    service.wait_for("it answers", |service| outcome_is(service, sql, "pages", "live"));
    // Said at once.
    for (statement, code) in [
        ("SELECT ruvector.ruvector_register_collection('x', 'public', 'nowhere', 'e')", "42P01"),
        ("SELECT ruvector.ruvector_register_collection('x', 'public', 'more', 'nothing')", "42703"),
        ("SELECT ruvector.ruvector_register_collection('x', 'public', 'more', 'embedding', 4, 'far')", "22023"),
        ("SELECT ruvector.ruvector_register_collection('x', 'public', 'more', 'embedding', 0)", "22023"),
        ("SELECT ruvector.ruvector_register_collection('pages', 'public', 'more', 'embedding')", "23505"),
        ("SELECT ruvector.ruvector_register_collection('x', 'public', 'pages', 'embedding')", "23505"),
        ("SELECT ruvector.ruvector_set_tiers('nobody')", "42704"),
        ("SELECT ruvector.ruvector_set_tiers('pages', 3, 2, 1)", "22023"),
        ("SELECT ruvector.ruvector_set_compression('pages', 'hot', 'pq64')", "22023"),
    ] {
        let error = sql.try_run(statement).expect_err(statement);
        assert_eq!(error.code().map(|code| code.code()), Some(code), "{statement}: {error:?}");
    }
    // Said when the service has looked.
    sql.run(
        "CREATE TABLE keyless (embedding real[]);
         INSERT INTO ruvector.registrations (name, spec) VALUES
           ('docs', '{\"table\": \"public.more\", \"vectors\": [{\"column\": \"embedding\"}]}'),
           ('other', '{\"table\": \"public.docs\", \"vectors\": [{\"column\": \"embedding\"}]}'),
           ('typo', '{\"table\": \"public.typo\", \"vector\": []}'),
           ('gone', '{\"table\": \"public.gone\", \"vectors\": [{\"column\": \"e\"}]}'),
           ('keyless', '{\"table\": \"public.keyless\", \"vectors\": [{\"column\": \"embedding\"}]}');
         INSERT INTO ruvector.registrations (name, service, spec) VALUES ('elsewhere', 'another', '{}')",
    );
    for (name, reason) in [
        ("docs", "the configuration file has a collection of this name"),
        ("other", "the configuration file has its table"),
        ("typo", "unknown field `vector`"),
        ("gone", "\"public\".\"gone\" does not exist"),
        ("keyless", "primary key"),
    ] {
        service.wait_for(name, |_| outcome(sql, name).starts_with("refused: "));
        assert!(outcome(sql, name).contains(reason), "{name}: {}", outcome(sql, name));
    }
    assert_eq!(outcome(sql, "elsewhere"), "waiting", "for another service");
    assert_eq!(outcome(sql, "pages"), "live");
    let shown = service.status()["registrations"].clone();
    let of =
        |name: &str| shown["rows"].as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name).cloned());
    assert_eq!(of("typo").map(|row| row["taken"].clone()), Some(json!(false)), "{shown}");
    assert_eq!(of("pages").map(|row| row["taken"].clone()), Some(json!(true)), "{shown}");
    // What goes wrong with one that answers leaves it as it was.
    let pages = service.collection("pages")["copied_at"].clone();
    sql.run("UPDATE ruvector.registrations SET tuning = '{\"encodings\": 7}' WHERE name = 'pages'");
    service.wait_for("it is refused", |_| outcome(sql, "pages").contains("it goes on as it was"));
    assert_eq!(ids(&service.search("pages", &near(3, 4, 1))), [3]);
    sql.run("UPDATE ruvector.registrations SET tuning = '{}' WHERE name = 'pages'");
    service.wait_for("it is taken", |service| outcome_is(service, sql, "pages", "live"));
    assert_eq!(service.collection("pages")["copied_at"], pages);
    // The file takes it over, and gives it back.
    let file = DOCS.replace("public.docs", "public.pages").replace("name = \"docs\"", "name = \"pages\"");
    service.configure(&database.dsn, SELDOM, &format!("{LISTEN}{DOCS}{file}"));
    service.hang_up();
    service.wait_for("the file holds", |_| outcome(sql, "pages").contains("refused: the configuration file"));
    service.wait_for("it answers", |service| service.collection("pages")["state"] == "live");
    service.configure(&database.dsn, SELDOM, &format!("{LISTEN}{DOCS}"));
    service.hang_up();
    service.wait_for("the row holds", |service| outcome_is(service, sql, "pages", "live"));
    assert_eq!(ids(&service.search("pages", &near(3, 4, 1))), [3]);
    service.terminate();
}

#[test]
fn what_is_registered_is_known_after_any_end_and_before_the_source_answers() {
    let database = Database::shared();
    let mut service = world(&database, SELDOM);
    let sql = &database.sql;
    // It ends at some moment after the commit, again and again.
    for (round, pause) in [0, 20, 60, 150, 400].into_iter().enumerate() {
        if round > 0 {
            sql.run("SELECT ruvector.ruvector_unregister_collection('pages')");
            service.wait_for("it is gone", |service| names(service) == ["docs"]);
        }
        sql.run(REGISTER);
        std::thread::sleep(std::time::Duration::from_millis(pause));
        service.kill();
        service.start();
        service.wait_ready();
        service.wait_for("it answers", |service| outcome_now(service, "pages"));
        assert_eq!(service.verify_clean("pages"), 10, "{pause}");
    }
    // Without the source.
    service.kill();
    service.configure("postgresql://postgres@127.0.0.1:1/nowhere", SELDOM, &format!("{LISTEN}{DOCS}"));
    service.start();
    let mut unchecked = near(3, 4, 1);
    unchecked["recheck"] = json!("none");
    service.wait_for("it answers", |service| service.try_search("pages", &unchecked).is_ok());
    service.kill();
    // While nobody looked it went and another came.
    sql.run("SELECT ruvector.ruvector_unregister_collection('pages')");
    sql.run("INSERT INTO more SELECT * FROM docs LIMIT 5");
    sql.run("SELECT ruvector.ruvector_register_collection('more', 'public', 'more', 'embedding')");
    service.configure(&database.dsn, SELDOM, &format!("{LISTEN}{DOCS}"));
    service.start();
    service.wait_ready();
    service.wait_for("the other answers", |service| names(service) == ["docs", "more"] && outcome_now(service, "more"));
    // A new slot, a new copy of everything.
    service.terminate();
    let slot = sql.one("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()");
    database.drop_slot(&slot);
    service.start();
    service.wait_ready();
    service
        .wait_for("all is copied again", |service| outcome_now(service, "more") && service.status()["stale"].is_null());
    assert_eq!(service.verify_clean("more"), 5);
    service.terminate();
}

fn outcome_now(service: &Service, name: &str) -> bool {
    let shown = service.client().get(&format!("/v1/collections/{name}"));
    shown.is_ok_and(|shown| shown["state"] == "live" && shown.get("copy").is_none())
}

#[test]
fn a_pack_that_goes_leaves_what_answers_and_its_table_is_the_truth_again_when_it_is_back() {
    let database = Database::shared();
    let mut service = world(&database, "reconcile_s = 1\n");
    let sql = &database.sql;
    sql.run(REGISTER);
    service.wait_for("it answers", |service| outcome_is(service, sql, "pages", "live"));
    assert!(installed(&service, &database.dsn, "upgrade").contains("2 collections"));
    assert_eq!(outcome(sql, "pages"), "live", "an upgrade keeps it");
    let found = sql.rows("SELECT id FROM ruvector.pages_nearest(vec(3, 4)) ORDER BY distance LIMIT 1");
    assert_eq!(found[0][0].as_deref(), Some("3"));
    sql.run("SELECT ruvector.ruvector_unregister_collection('pages')");
    service.wait_for("it is gone", |service| names(service) == ["docs"]);
    installed(&service, &database.dsn, "upgrade");
    assert_eq!(sql.text("SELECT to_regclass('ruvector.pages')"), None);
    assert_eq!(sql.one("SELECT count(*) FROM pg_proc WHERE proname LIKE 'pages%'"), "0");
    assert_eq!(sql.one("SELECT count(*) FROM pg_proc WHERE proname LIKE 'docs%'"), "2");
    sql.run(REGISTER);
    service.wait_for("it answers", |service| outcome_is(service, sql, "pages", "live"));
    let output = pack(&service, &database.dsn, &["uninstall", "--yes"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(sql.one("SELECT count(*) FROM pg_namespace WHERE nspname = 'ruvector'"), "0");
    service.wait_for("it is noticed", |service| {
        service.status()["registrations"]["trouble"].as_str().is_some_and(|why| why.contains("is gone"))
    });
    sql.run("INSERT INTO pages (id, embedding) VALUES (77, vec(77, 4))");
    service.catch_up(sql);
    assert_eq!(ids(&service.search("pages", &near(77, 4, 1))), [77]);
    assert!(!pack(&service, &database.dsn, &["upgrade"]).status.success(), "nothing to upgrade");
    installed(&service, &database.dsn, "install");
    service.wait_for("nothing is registered", |service| names(service) == ["docs"]);
    service.terminate();
}

#[test]
fn an_owner_and_a_service_that_own_nothing_of_each_other() {
    let database = Database::shared();
    let name = &database.name;
    database.docs(30);
    database.sql.run(&format!(
        "CREATE ROLE owner_{name} LOGIN; CREATE ROLE reader_{name} LOGIN REPLICATION; GRANT ALL ON DATABASE {name} TO owner_{name};
         CREATE EXTENSION postgres_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO owner_{name};
         ALTER TABLE docs OWNER TO owner_{name}; GRANT ALL ON SCHEMA public TO owner_{name};
         SET SESSION AUTHORIZATION owner_{name};
         CREATE TABLE pages (LIKE docs INCLUDING ALL); INSERT INTO pages SELECT * FROM docs LIMIT 10;
         CREATE PUBLICATION \"{name}\" FOR TABLE docs, pages WITH (publish_via_partition_root = true);
         GRANT SELECT ON docs, pages TO reader_{name}; RESET SESSION AUTHORIZATION"
    ));
    let as_role = |role: &str| database.dsn.replace("postgres@", &format!("{role}_{name}@"));
    let source = format!("{SELDOM}create_publication = false\n");
    let mut service = Service::configured(&database, &source, &format!("{LISTEN}{DOCS}"));
    service.configure(&as_role("reader"), &source, &format!("{LISTEN}{DOCS}"));
    service.start();
    service.wait_ready();
    let said = installed(&service, &as_role("owner"), "install");
    assert!(!said.contains("ALTER PUBLICATION") && !said.contains("GRANT"), "{said}");
    database.sql.run(&format!("SET SESSION AUTHORIZATION owner_{name}; {REGISTER}; RESET SESSION AUTHORIZATION"));
    service.wait_for("it answers", |service| outcome_now(service, "pages"));
    service.catch_up(&database.sql);
    assert_eq!(service.status()["registrations"]["trouble"], json!(null));
    // Not published and not readable: both are said, with what helps.
    database.sql.run(&format!("REVOKE SELECT ON ruvector.registrations FROM reader_{name}"));
    service.hang_up();
    let trouble =
        |service: &Service| service.status()["registrations"]["trouble"].as_str().unwrap_or_default().to_owned();
    let grant = format!("GRANT SELECT ON \"ruvector\".\"registrations\" TO \"reader_{name}\"");
    service.wait_for("it is said", |service| trouble(service).contains(&grant));
    assert!(service.try_search("pages", &near(1, 4, 1)).is_ok());
    database.sql.run(&format!(
        "GRANT SELECT ON ruvector.registrations TO reader_{name}; ALTER PUBLICATION \"{name}\" DROP TABLE ruvector.registrations"
    ));
    service.hang_up();
    service
        .wait_for("it is said", |service| trouble(service).contains("ADD TABLE ONLY \"ruvector\".\"registrations\""));
    // Noticed all the same.
    database.sql.run("SELECT ruvector.ruvector_unregister_collection('pages')");
    wait_until("it is gone", || names(&service) == ["docs"]);
    service.terminate();
}

#[test]
fn what_is_streamed_before_others_see_it_is_not_missed() {
    // A commit that waits for a standby is in the stream, and no other session sees it.
    let postgres = support::cluster(Settings::default().with("synchronous_commit", "local"));
    let database = Database::of(&postgres);
    let mut service = world(&database, SELDOM);
    postgres.set("synchronous_standby_names", "absent").expect("the file is there");
    database.sql.run("SELECT pg_reload_conf()");
    wait_until("it holds commits back", || database.sql.one("SHOW synchronous_standby_names") == "absent");
    let received = service.position("received");
    let session = database.connect();
    let waiting = std::thread::spawn(move || session.try_run(&format!("SET synchronous_commit = on; {REGISTER}")));
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%register%'";
    wait_until("it waits", || database.sql.one(waits) == "1");
    let end = database.sql.lsn();
    service.wait_for("it was streamed", |service| service.position("applied") >= end);
    assert!(end > received);
    // Longer than between two looks.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(database.sql.one("SELECT count(*) FROM ruvector.registrations"), "0");
    assert_eq!(names(&service), ["docs"]);
    database.sql.run(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%register%'",
    );
    waiting.join().expect("no panic").expect("committed here");
    service.wait_for("it answers", |service| outcome_now(service, "pages"));
    service.terminate();
}

#[test]
fn a_row_is_for_one_service_or_for_each() {
    let database = Database::shared();
    let mut first = world(&database, SELDOM);
    let mut second = Service::configured(&database, SELDOM, DOCS);
    let slot = format!("{}_b", database.name);
    second.set_environment("RUVECTOR__SOURCE__SLOT", Some(slot.clone()));
    second.start();
    second.wait_ready();
    let sql = &database.sql;
    sql.run(&format!("{}, p_service => '{slot}')", REGISTER.trim_end_matches(')')));
    second.wait_for("it answers", |second| outcome_now(second, "pages"));
    sql.run("SELECT ruvector.ruvector_register_collection('more', 'public', 'more', 'embedding')");
    second.wait_for("it answers", |second| outcome_now(second, "more"));
    first.wait_for("it answers", |first| outcome_now(first, "more"));
    assert_eq!(
        (names(&first), names(&second)),
        (vec!["docs".into(), "more".into()], vec!["docs".into(), "more".into(), "pages".into()])
    );
    // One of its own in place of the other.
    sql.run(&format!("SELECT ruvector.ruvector_register_collection('more', 'public', 'more', 'embedding', NULL, 'l1', p_service => '{slot}')"));
    second.wait_for("it is its own", |second| second.collection("more")["vectors"][0]["metric"] == "l1");
    first.catch_up(sql);
    assert_eq!(first.collection("more")["vectors"][0]["metric"], "l2");
    assert_eq!(sql.one(&format!("SELECT ruvector.ruvector_unregister_collection('more', '{slot}')")), "t");
    second.wait_for("it is that of all again", |second| second.collection("more")["vectors"][0]["metric"] == "l2");
    second.terminate();
    first.terminate();
    database.drop_slot(&slot);
}
