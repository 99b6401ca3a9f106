//! Rows as a role of the source sees them: by the session's setting, by the statement's options, and of a user who is tied
//! to one, over a session of its own and through postgres_fdw.

use crate::support::{Database, Sql, Stopped};
use crate::world::{World, firsts, refusal, world};

const QUERY: &str = "ARRAY[0.3, 0.1, 0.7, 0.5]::real[]";
const NEAREST: &str = "ORDER BY embedding <-> '[0.3,0.1,0.7,0.5]'";

/// A connection to the endpoint as a user who is tied to the role of that name.
fn tied(world: &World, user: &str) -> Sql {
    Sql::connect(&world.address(user, user))
}

fn numbers(sql: &Sql, query: &str) -> Vec<i64> {
    firsts(sql, query).iter().map(|text| text.parse().expect("a number")).collect()
}

/// What the source has, as text.
fn truth(world: &World, query: &str) -> Vec<Vec<Option<String>>> {
    world.database.connect().rows(query)
}

#[test]
fn a_session_sees_what_its_role_sees_in_every_kind_of_statement() {
    let world = world();
    let sql = world.direct();
    let (alice, bob) = (world.role("alice"), world.role("bob"));
    sql.run(&format!("SET ruvector.recheck_role = '{alice}'"));
    for begin in ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"] {
        sql.run(begin);
        let nearest = firsts(&sql, &format!("SELECT id FROM docs {NEAREST} LIMIT 10"));
        assert_eq!(nearest, world.nearest(QUERY, "section = 's1'", 10), "{begin}");
        let key = "SELECT key FROM search WHERE collection = 'docs' AND query = '{0.3,0.1,0.7,0.5}' AND k = 10";
        assert_eq!(firsts(&sql, key), nearest, "{begin}");
        let stream = "SELECT key FROM stream WHERE collection = 'docs' AND query = '{0.3,0.1,0.7,0.5}'";
        assert_eq!(firsts(&sql, stream)[..10], nearest, "{begin}");
        assert_eq!(firsts(&sql, stream).len(), 600);
        // Neither by saying nothing of a role nor by asking nobody is it left.
        let unchecked = format!("SELECT id FROM docs WHERE _options = '{{\"recheck\": \"none\"}}' {NEAREST} LIMIT 10");
        assert_eq!(firsts(&sql, &unchecked), nearest, "{begin}");
        // Rows in no order, pages of which it sees few or none.
        assert_eq!(sql.one("SELECT count(*) FROM docs"), "600", "{begin}");
        assert_eq!(sql.one("SELECT count(*) FROM docs WHERE section = 's2'"), "0", "{begin}");
        let expected =
            truth(&world, "SELECT id, section, views FROM docs WHERE section = 's1' AND views < 50 ORDER BY id");
        assert_eq!(sql.rows("SELECT id, section, views FROM docs WHERE views < 50 ORDER BY id"), expected, "{begin}");
        let expected = truth(&world, "SELECT min(views), max(id) FROM docs WHERE section = 's1'");
        assert_eq!(sql.rows("SELECT min(views), max(id) FROM docs"), expected, "{begin}");
        sql.run(&format!("DECLARE c CURSOR FOR SELECT id, views FROM docs {NEAREST}"));
        let fetched: Vec<_> = [5, 700, 5].iter().flat_map(|n| sql.rows(&format!("FETCH {n} FROM c"))).collect();
        assert_eq!(fetched.len(), 600, "{begin}");
        sql.run("COMMIT");
    }
    // One statement as somebody else.
    let other = format!("_options = '{{\"recheck\": \"role:{bob}\"}}'");
    assert_eq!(sql.one(&format!("SELECT count(*) FROM docs WHERE {other}")), "30");
    let nearest = numbers(&sql, &format!("SELECT id FROM docs WHERE {other} {NEAREST} LIMIT 40"));
    assert!(nearest.len() == 30 && nearest.iter().all(|id| id % 100 == 3), "{nearest:?}");
    // By a setting.
    let carol = world.role("carol");
    sql.run(&format!(
        "SET ruvector.recheck_role = '{carol}'; SET ruvector.recheck_settings = '{{\"app.views\": \"14\"}}'"
    ));
    let expected = truth(&world, "SELECT id, views FROM docs WHERE views = 14 ORDER BY id");
    assert_eq!(sql.rows("SELECT id, views FROM docs ORDER BY id"), expected);
    assert_eq!(refusal(&sql, "SELECT section FROM docs").0, "38000", "its grants decide about columns");
    sql.run("RESET ruvector.recheck_role");
    assert_eq!(refusal(&sql, "SELECT id FROM docs").0, "22023", "settings of nobody");
    sql.run("RESET ruvector.recheck_settings");
    assert_eq!(sql.one("SELECT count(*) FROM docs"), "3000");
}

#[test]
fn what_cannot_be_done_as_a_role_is_refused() {
    let world = world();
    let sql = world.direct();
    let statements = |options: &str| {
        let searched = "collection = 'docs' AND query = '{0.3,0.1,0.7,0.5}'";
        [
            format!("SELECT id FROM docs WHERE _options = '{options}'"),
            format!("SELECT count(*) FROM docs WHERE _options = '{options}'"),
            format!("SELECT id FROM docs WHERE _options = '{options}' {NEAREST} LIMIT 5"),
            format!("SELECT id FROM docs WHERE _options = '{options}' {NEAREST}"),
            format!("SELECT key FROM search WHERE {searched} AND k = 3 AND options = '{options}'"),
            format!("SELECT key FROM stream WHERE {searched} AND options = '{options}'"),
        ]
    };
    let alice = world.role("alice");
    for (recheck, code) in [
        (r#""role:postgres""#.to_owned(), "42501"),
        (format!(r#"{{"as_role": "{alice}", "settings": {{"app.other": "1"}}}}"#), "42501"),
        (format!(r#"{{"as_role": "{alice}", "mode": "none"}}"#), "22023"),
        (r#"{"settings": {"app.views": "1"}}"#.to_owned(), "22023"),
        (r#""sometimes""#.to_owned(), "22023"),
        ("5".to_owned(), "22023"),
    ] {
        for statement in statements(&format!("{{\"recheck\": {recheck}}}")) {
            assert_eq!(refusal(&sql, &statement).0, code, "{statement}");
        }
    }
    sql.run("SET ruvector.recheck_role = 'postgres'");
    for statement in statements("{}") {
        assert_eq!(refusal(&sql, &statement).0, "42501", "{statement}");
    }
    sql.run(&format!("SET ruvector.recheck_role = '{alice}'"));
    for statement in
        ["SELECT embedding FROM docs".to_owned(), format!("SELECT id, embedding FROM docs {NEAREST} LIMIT 1")]
    {
        assert_eq!(refusal(&sql, &statement).0, "42501", "{statement}");
    }
    // Which rows pass a filter is not told by its cost.
    let explain =
        |section: &str| sql.rows(&format!("EXPLAIN SELECT id FROM docs WHERE section = '{section}' {NEAREST}"));
    assert_eq!(explain("s2"), explain("none"));
}

#[test]
fn who_is_tied_to_a_role_does_not_leave_it() {
    let world = world();
    let (alice, bob) = (tied(&world, "alice"), world.role("bob"));
    for level in ["none", "exists", "exact"] {
        alice.run(&format!("SET ruvector.recheck = '{level}'"));
        assert_eq!(alice.one("SELECT count(*) FROM docs"), "600", "{level}");
        let nearest = firsts(&alice, &format!("SELECT id FROM docs {NEAREST} LIMIT 10"));
        assert_eq!(nearest, world.nearest(QUERY, "section = 's1'", 10), "{level}");
    }
    assert_eq!(
        alice.one(&format!(
            "SELECT count(*) FROM docs WHERE _options = '{{\"recheck\": \"role:{}\"}}'",
            world.role("alice")
        )),
        "600"
    );
    let by_statement = format!("SELECT id FROM docs WHERE _options = '{{\"recheck\": \"role:{bob}\"}}'");
    assert_eq!(refusal(&alice, &by_statement).0, "42501");
    alice.run(&format!("SET ruvector.recheck_role = '{bob}'"));
    for statement in ["SELECT id FROM docs".to_owned(), format!("SELECT id FROM docs {NEAREST} LIMIT 5")] {
        assert_eq!(refusal(&alice, &statement).0, "42501", "{statement}");
    }
    alice.run("RESET ALL");
    // Nor is it told how many rows there are that it does not see, or which pass a filter.
    let explain = |condition: &str| alice.rows(&format!("EXPLAIN SELECT id FROM docs WHERE {condition}"));
    assert_eq!(explain("section = 's2'"), explain("section = 'none'"));
    let classes = "SELECT reltuples FROM pg_catalog.pg_class WHERE relname = 'docs'";
    assert_eq!(firsts(&alice, classes), ["-1"]);
    assert_eq!(firsts(&world.direct(), classes), ["3000"]);
    assert!(alice.rows("SELECT collection FROM visibility_list").is_empty());
    assert!(alice.rows("SELECT collection FROM tier_list").is_empty());
    // A setting that is given with the role holds, whatever else is said.
    let carol = tied(&world, "carol");
    let expected = truth(&world, "SELECT id, views FROM docs WHERE views = 7 ORDER BY id");
    assert_eq!(carol.rows("SELECT id, views FROM docs ORDER BY id"), expected);
    for statement in ["SELECT section FROM docs", "SELECT id FROM docs WHERE section = 's1'"] {
        assert_eq!(refusal(&carol, statement).0, "38000", "{statement}: it may not read the column");
    }
    carol.run("SET ruvector.recheck_settings = '{\"app.views\": \"8\"}'");
    assert_eq!(refusal(&carol, "SELECT id FROM docs").0, "42501");
}

#[test]
fn a_row_that_changed_hands_is_shown_as_the_role_sees_it_now() {
    let world = World::new(Database::shared());
    let alice = tied(&world, "alice");
    let stopped = Stopped::new(&world.database);
    world
        .database
        .sql
        .run("UPDATE docs SET section = 's1', views = 999 WHERE id = 2; UPDATE docs SET section = 's3' WHERE id = 1");
    assert_eq!(
        alice.rows("SELECT section, views FROM docs WHERE id = 2"),
        [[Some("s1".to_owned()), Some("999".to_owned())]]
    );
    assert!(alice.rows("SELECT views FROM docs WHERE id = 1").is_empty());
    assert!(!firsts(&alice, &format!("SELECT id FROM docs {NEAREST}")).contains(&"1".to_owned()));
    drop(stopped);
}

#[test]
fn through_postgres_fdw_each_mapping_has_the_role_of_its_user() {
    let world = World::new(Database::shared());
    let (owner, alice, bob) = (&world.owner, world.role("alice"), world.role("bob"));
    world
        .database
        .sql
        .run(&format!("CREATE USER MAPPING FOR {alice} SERVER ruvector OPTIONS (user 'alice', password 'alice')"));
    let sql = world.source_as(&alice);
    assert_eq!(sql.one("SELECT count(*) FROM ruvector.docs"), "600");
    assert_eq!(sql.one("SELECT count(*) FROM ruvector.docs WHERE section = 's2'"), "0");
    let nearest = world.nearest(QUERY, "section = 's1'", 10);
    let found = format!("SELECT s.id FROM docs_nearest({QUERY}) s ORDER BY s.distance LIMIT 10");
    assert_eq!(firsts(&sql, &found), nearest);
    let found = format!("SELECT s.id FROM ruvector_search('docs', {QUERY}, 10) s ORDER BY s.distance");
    assert_eq!(firsts(&sql, &found), nearest);
    let leaving =
        format!("SELECT s.id FROM docs_nearest({QUERY}, options => '{{\"recheck\": \"role:{bob}\"}}') s LIMIT 1");
    assert_eq!(refusal(&sql, &leaving).0, "42501");
    // Others have the mapping that they had.
    assert_eq!(world.source().one("SELECT count(*) FROM ruvector.docs"), "3000");
    // By the options of a foreign server.
    let (host, port) = world
        .service
        .sql_address()
        .rsplit_once(':')
        .map(|(host, port)| (host.to_owned(), port.to_owned()))
        .expect("an address");
    world.database.sql.run(&format!(
        "SET SESSION AUTHORIZATION {owner};
         CREATE SERVER by_role FOREIGN DATA WRAPPER postgres_fdw
           OPTIONS (host '{host}', port '{port}', dbname 'ruvector', options '-c ruvector.recheck_role={bob}');
         CREATE USER MAPPING FOR {owner} SERVER by_role OPTIONS (user 'app', password 'secret');
         CREATE FOREIGN TABLE seen (id bigint, section text, views integer) SERVER by_role
           OPTIONS (schema_name 'collections', table_name 'docs');
         RESET SESSION AUTHORIZATION"
    ));
    let sql = world.source();
    assert_eq!(sql.one("SELECT count(*) FROM seen"), "30");
    let expected = truth(&world, "SELECT id, section, views FROM docs WHERE id % 100 = 3 ORDER BY id");
    assert_eq!(sql.rows("SELECT id, section, views FROM seen ORDER BY id"), expected);
    let joined = "SELECT count(*) FROM seen s JOIN docs d USING (id) WHERE d.body = 'body ' || s.id";
    assert_eq!(sql.one(joined), "30");
}
