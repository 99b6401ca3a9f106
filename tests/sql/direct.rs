//! Straight to the endpoint: psql, tokio-postgres in binary, pgvector's statements, and everything that is refused.

use crate::support::{Database, Sql, Stopped, wait_within};
use crate::world::{RUNTIME, World, firsts, refusal, world};
use std::process::Command;
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{NoTls, SimpleQueryMessage};

const QUERY: &str = "ARRAY[0.3, 0.1, 0.7, 0.5]::real[]";
const TEXT: &str = "[0.3,0.1,0.7,0.5]";

#[test]
fn pgvectors_statements_work_as_they_stand() {
    let world = world();
    let sql = world.direct();
    let nearest = |condition: &str, k| world.nearest(QUERY, condition, k);
    for (query, expected) in [
        (format!("SELECT id FROM docs ORDER BY embedding <-> '{TEXT}' LIMIT 5"), nearest("true", 5)),
        (
            format!("SELECT d.id FROM ruvector.docs AS d ORDER BY d.embedding <-> '{TEXT}'::vector LIMIT 5"),
            nearest("true", 5),
        ),
        (format!("SELECT id FROM collections.docs ORDER BY '{TEXT}' <-> embedding LIMIT 5"), nearest("true", 5)),
        (format!("SELECT id FROM docs ORDER BY l2_distance(embedding, '{TEXT}') LIMIT 5"), nearest("true", 5)),
        (
            format!(
                "SELECT id FROM docs WHERE section = 's1' ORDER BY embedding OPERATOR(public.<->) '{TEXT}' LIMIT 5"
            ),
            nearest("section = 's1'", 5),
        ),
        (
            format!("SELECT id FROM docs WHERE id <> 17 AND id > 1000 ORDER BY embedding <-> '{TEXT}' LIMIT 5"),
            nearest("id > 1000 AND id <> 17", 5),
        ),
        (
            format!("SELECT id FROM docs ORDER BY embedding <-> '{TEXT}' LIMIT 5 OFFSET 3"),
            nearest("true", 8)[3..].to_vec(),
        ),
        (
            format!("SELECT id, embedding <-> '{TEXT}' AS d FROM docs WHERE embedding <-> '{TEXT}' < 0.3 ORDER BY d"),
            nearest(&format!("far(embedding, {QUERY}) < 0.3"), 100_000),
        ),
        (
            "SELECT id FROM docs WHERE id IN (9, 3, 5) ORDER BY id DESC".to_owned(),
            vec!["9".into(), "5".into(), "3".into()],
        ),
    ] {
        assert_eq!(firsts(&sql, &query), expected, "{query}");
    }
    let within = format!("SELECT count(*) FROM docs WHERE (embedding <-> '{TEXT}') < 0.3");
    let counted = world.nearest(QUERY, &format!("far(embedding, {QUERY}) < 0.3"), 100_000).len();
    assert_eq!(sql.one(&within), counted.to_string());
    assert_eq!(sql.one("SELECT max(views) FROM docs WHERE views < 50"), "49");
    let row =
        sql.rows(&format!("SELECT 1 - (embedding <-> '{TEXT}') AS similarity, embedding FROM docs LIMIT 1")).remove(0);
    assert!(row[1].as_deref().is_some_and(|vector| vector.starts_with('{')), "{row:?}");
    for drawn in ["TABLESAMPLE BERNOULLI (20)", "TABLESAMPLE SYSTEM (20)", "WHERE random() < 0.2"] {
        let count: i64 = sql.one(&format!("SELECT count(*) FROM docs {drawn}")).parse().expect("a number");
        // A fifth of 3,000, give or take nine deviations.
        assert!((400..800).contains(&count), "{drawn}: {count}");
    }
    // The whole table, and the columns that `*` shows.
    let all = sql.rows("SELECT * FROM docs WHERE id = 8");
    assert_eq!((all.len(), all[0].len(), all[0][1].as_deref()), (1, 4, Some("s3")));
}

#[test]
fn a_driver_gets_types_and_binary_rows() {
    let world = world();
    let client = world.driver();
    let expected = world.nearest(QUERY, "views < 50 AND section IN ('s1', 's2')", 6);
    let nearest = world.nearest(QUERY, "true", 3);
    RUNTIME.block_on(async {
        let statement = client
            .prepare("SELECT id, section, views, embedding, embedding <-> $1 AS d FROM docs WHERE views < $2 AND section = ANY($3) ORDER BY embedding <-> $1 LIMIT $4")
            .await
            .expect("understood");
        assert_eq!(statement.params(), [Type::TEXT, Type::INT4, Type::TEXT_ARRAY, Type::INT8]);
        let types: Vec<_> = statement.columns().iter().map(|column| column.type_().clone()).collect();
        assert_eq!(types, [Type::INT8, Type::TEXT, Type::INT4, Type::FLOAT4_ARRAY, Type::FLOAT8]);
        let sections = vec!["s1", "s2"];
        let rows = client.query(&statement, &[&TEXT, &50i32, &sections, &6i64]).await.expect("rows");
        let ids: Vec<_> = rows.iter().map(|row| row.get::<_, i64>(0).to_string()).collect();
        assert_eq!(ids, expected);
        for row in &rows {
            let vector: Vec<f32> = row.get(3);
            let far: f64 = vector
                .iter()
                .zip([0.3, 0.1, 0.7, 0.5])
                .map(|(a, b)| (f64::from(*a) - f64::from(b as f32)).powi(2))
                .sum::<f64>()
                .sqrt();
            assert!((far - row.get::<_, f64>(4)).abs() < 1e-5 && row.get::<_, i32>(2) < 50, "{row:?}");
        }
        // Drivers that number each place by itself send the vector twice.
        let twice = "SELECT id, embedding <-> $1 AS d FROM docs ORDER BY embedding <-> $2 LIMIT 3";
        let rows = client.query(twice, &[&TEXT, &TEXT]).await.expect("the same distance");
        let ids: Vec<_> = rows.iter().map(|row| row.get::<_, i64>(0).to_string()).collect();
        assert_eq!(ids, nearest);
        let other = client.query(twice, &[&TEXT, &"[1,1,1,1]"]).await.expect_err("two distances");
        assert_eq!(other.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED));
        let vector = vec![0.3f32, 0.1, 0.7, 0.5];
        let search = "SELECT key, distance, complete FROM search WHERE collection = $1 AND query = $2 AND k = $3";
        let rows = client.query(search, &[&"docs", &vector, &3i32]).await.expect("rows");
        let keys: Vec<_> = rows.iter().map(|row| row.get::<_, String>(0)).collect();
        assert_eq!(keys, nearest);
        assert!(rows.iter().all(|row| row.get::<_, bool>(2)));
        let none = client.query(search, &[&"docs", &vector, &None::<i32>]).await.expect("no rows");
        assert!(none.is_empty(), "nothing is equal to NULL");
    });
}

#[test]
fn portals_give_rows_in_parts() {
    let world = world();
    let mut client = world.driver();
    let expected = world.nearest(QUERY, "true", 12);
    RUNTIME.block_on(async {
        let transaction = client.transaction().await.expect("BEGIN");
        let portal = transaction.bind("SELECT id FROM docs ORDER BY embedding <-> $1", &[&TEXT]).await.expect("bound");
        let mut ids = Vec::new();
        for _ in 0..3 {
            let rows = transaction.query_portal(&portal, 4).await.expect("rows");
            ids.extend(rows.iter().map(|row| row.get::<_, i64>(0).to_string()));
        }
        assert_eq!(ids, expected);
        transaction.commit().await.expect("COMMIT");
    });
}

#[test]
fn cursors_are_fetched_moved_and_closed() {
    let world = world();
    let sql = world.direct();
    let expected = world.nearest(QUERY, "true", 9);
    sql.run(&format!("BEGIN; DECLARE \"My c\" CURSOR FOR SELECT id FROM docs ORDER BY embedding <-> '{TEXT}'"));
    assert_eq!(firsts(&sql, "FETCH 4 FROM \"My c\""), expected[..4]);
    sql.run("MOVE 2 IN \"My c\"");
    assert_eq!(firsts(&sql, "FETCH FORWARD 3 FROM \"My c\""), expected[6..9]);
    sql.run("MOVE BACKWARD ALL IN \"My c\"");
    assert_eq!(firsts(&sql, "FETCH NEXT FROM \"My c\""), expected[..1]);
    sql.run("SAVEPOINT a; DECLARE d CURSOR FOR SELECT id FROM docs LIMIT 2; ROLLBACK TO a");
    assert_eq!(firsts(&sql, "FETCH 1 FROM \"My c\""), expected[1..2], "one of before the savepoint lives on");
    assert_eq!(refusal(&sql, "FETCH 1 FROM d").0, "34000", "one of after it does not");
    assert_eq!(refusal(&sql, "SELECT 1").0, "25P02");
    sql.run("ROLLBACK");
    assert_eq!(refusal(&sql, "FETCH 1 FROM \"My c\"").0, "34000");
    assert_eq!(refusal(&sql, "DECLARE c CURSOR FOR SELECT id FROM docs").0, "25P01");
    assert_eq!(refusal(&sql, "BEGIN; DECLARE c CURSOR FOR SELECT 1; DECLARE c CURSOR FOR SELECT 1").0, "42P03");
    sql.run("ROLLBACK");
    let all = sql.rows("BEGIN; DECLARE c CURSOR FOR SELECT id FROM docs WHERE id < 4; FETCH ALL FROM c; COMMIT");
    assert_eq!(all.len(), 3);
    let all = format!(
        "BEGIN; DECLARE c CURSOR FOR SELECT id FROM docs ORDER BY embedding <-> '{TEXT}'; FETCH ALL FROM c; COMMIT"
    );
    let mut found: Vec<i64> = firsts(&sql, &all).iter().map(|id| id.parse().expect("a number")).collect();
    found.sort_unstable();
    assert_eq!(found, (1..=crate::world::ROWS).collect::<Vec<_>>(), "a stream that is drained has every row once");
}

#[test]
fn psql_works() {
    let world = world();
    let psql = |arguments: &[&str]| {
        let address = world.address("app", "secret");
        let output =
            Command::new("psql").args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", &address]).args(arguments).output();
        let output = output.expect("psql");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    };
    let query = format!("SELECT id FROM docs ORDER BY embedding <-> '{TEXT}' LIMIT 3");
    assert_eq!(psql(&["-c", &query]), world.nearest(QUERY, "true", 3).join("\n"));
    assert!(psql(&["-c", "\\dt"]).contains("collections|docs|table"));
    assert_eq!(psql(&["-c", &query, "-v", "FETCH_COUNT=2"]).lines().count(), 3);
    assert!(psql(&["-c", "SELECT version()"]).starts_with("PostgreSQL 16.6 (ruvector"));
    assert_eq!(psql(&["-c", "SHOW server_version_num", "-c", "SELECT current_user"]), "160006\napp");
    let explain = psql(&["-c", &format!("EXPLAIN {query}")]);
    assert!(explain.starts_with("Vector Search  (cost=") && explain.contains("rows=3 "), "{explain}");
    assert_eq!(psql(&["-c", "SELECT distance_metric FROM collection_list WHERE name = 'notes'"]), "cosine");
    assert_eq!(psql(&["-c", "SELECT count(*) FROM status WHERE applied_lsn IS NOT NULL"]), "1");
}

#[test]
fn what_is_not_taken_is_refused_with_a_hint() {
    let world = world();
    let sql = world.direct();
    let near = format!("ORDER BY embedding <-> '{TEXT}' LIMIT 1");
    for query in [
        "SELECT d.id FROM docs d JOIN notes n ON n.name = d.section".to_owned(),
        "SELECT section, count(*) FROM docs GROUP BY section".to_owned(),
        "SELECT DISTINCT section FROM docs".to_owned(),
        "SELECT id FROM docs UNION SELECT id FROM docs".to_owned(),
        "WITH x AS (SELECT id FROM docs) SELECT * FROM x".to_owned(),
        "SELECT id FROM (SELECT id FROM docs) x".to_owned(),
        "SELECT upper(section) FROM docs".to_owned(),
        "SELECT id FROM docs WHERE views % 2 = 0".to_owned(),
        format!("SELECT id FROM docs {}", near.replace("<->", "<=>")),
        format!("SELECT id FROM docs TABLESAMPLE BERNOULLI (20) {near}"),
        "SELECT id FROM docs TABLESAMPLE SYSTEM (20) REPEATABLE (1)".to_owned(),
        "INSERT INTO docs VALUES (1)".to_owned(),
        "COPY docs TO STDOUT".to_owned(),
        "EXPLAIN ANALYZE SELECT id FROM docs".to_owned(),
        "LISTEN x".to_owned(),
        "SET ROLE other".to_owned(),
    ] {
        let (code, message, hint) = refusal(&sql, &query);
        assert!(code == "0A000" && !hint.is_empty(), "{query}: {code} {message} {hint}");
    }
    for (query, expected) in [
        ("SELECT id FROM nowhere", "42P01"),
        ("SELECT nothing FROM docs", "42703"),
        ("SELECT id FROM docs WHERE nothing = 1", "42703"),
        ("SELEC 1", "42601"),
        ("SELECT id FROM docs ORDER BY embedding <-> '[1,2]' LIMIT 1", "22000"),
        ("SELECT id FROM docs ORDER BY embedding <-> 'x' LIMIT 1", "22023"),
        ("SELECT key FROM search WHERE collection = 'docs' AND query = '{1,1,1,1}' AND k = 0", "22023"),
        ("SELECT id FROM docs WHERE section < 's'", "42601"),
        ("RELEASE SAVEPOINT a", "25P01"),
        ("SHOW nothing.of_this_name", "22023"),
        ("SET client_encoding = 'LATIN1'", "22023"),
        (
            "SELECT key FROM search WHERE collection = 'docs' AND query = '{1,1,1,1}' AND k = 1 AND options = '{\"what\": 1}'",
            "22023",
        ),
    ] {
        let (code, message, _) = refusal(&sql, query);
        assert_eq!(code, expected, "{query}: {message}");
    }
    // Whatever it was, the session goes on.
    assert_eq!(sql.one("SELECT 1"), "1");
}

#[test]
fn only_who_knows_the_password_comes_in_and_sees_what_is_his() {
    let world = world();
    let refused = |address: &str| {
        let error = Sql::try_connect(address).err().expect("it is refused");
        error.code().cloned().unwrap_or_else(|| panic!("{error:?}"))
    };
    assert_eq!(refused(&world.address("app", "wrong")), SqlState::INVALID_PASSWORD);
    assert_eq!(refused(&world.address("nobody", "secret")), SqlState::INVALID_PASSWORD);
    let limited = Sql::connect(&world.address("limited", "less"));
    assert_eq!(firsts(&limited, "SELECT version FROM status").len(), 1);
    assert_eq!(firsts(&limited, "SELECT name FROM collection_list"), ["notes"]);
    for query in [
        "SELECT id FROM docs".to_owned(),
        "SELECT id FROM collections.docs LIMIT 1".to_owned(),
        "SELECT key FROM search WHERE collection = 'docs' AND query = '{1,1,1,1}' AND k = 1".to_owned(),
        "SELECT key FROM stream WHERE collection = 'docs' AND query = '{1,1,1,1}'".to_owned(),
    ] {
        let (code, _, hint) = refusal(&limited, &query);
        assert!(code == "42P01" && hint.contains("notes") && !hint.contains("docs"), "{query}: {code} {hint}");
    }
    let nowhere = "SELECT key FROM search WHERE collection = 'nowhere' AND query = '{1,1,1,1}' AND k = 1";
    let (_, message, hint) = refusal(&limited, nowhere);
    assert!(!message.contains("docs") && !hint.contains("docs"), "{message} {hint}");
    assert_eq!(limited.rows("SELECT name FROM notes ORDER BY embedding <=> '[1,2,3]' LIMIT 4").len(), 4);
}

#[test]
fn settings_hold_for_the_session_or_the_transaction() {
    let world = world();
    let sql = world.direct();
    sql.run("SET hnsw.ef_search = 40; BEGIN; SET LOCAL ruvector.recheck = 'none'; ROLLBACK");
    assert_eq!(sql.one("SHOW hnsw.ef_search"), "40");
    assert_eq!(refusal(&sql, "SHOW ruvector.recheck").0, "22023");
    assert_eq!(sql.one("SELECT set_config('ruvector.recheck', 'exact', false)"), "exact");
    assert_eq!(sql.one("SELECT current_setting('ruvector.recheck')"), "exact");
    let query = format!("SELECT id FROM docs ORDER BY embedding <-> '{TEXT}' LIMIT 5");
    assert_eq!(firsts(&sql, &query), world.nearest(QUERY, "true", 5));
    sql.run("BEGIN; SET LOCAL hnsw.ef_search = 70; COMMIT");
    assert_eq!(sql.one("SHOW hnsw.ef_search"), "40", "local settings end with the transaction");
    sql.run("DISCARD ALL");
    assert_eq!(refusal(&sql, "SHOW ruvector.recheck").0, "22023");
}

#[test]
fn a_statement_is_cancelled_or_times_out() {
    let world = world();
    let waiting = "SELECT key FROM search WHERE collection = 'docs' AND query = '{1,1,1,1}' AND k = 1
                   AND options = '{\"consistency\": {\"at_least\": \"FFFF/0\", \"timeout_ms\": 60000}}'";
    let client = world.driver();
    RUNTIME.block_on(async {
        let token = client.cancel_token();
        let (answer, ()) = tokio::join!(client.simple_query(waiting), async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            token.cancel_query(NoTls).await.expect("it is taken");
        });
        assert_eq!(answer.err().and_then(|error| error.code().cloned()), Some(SqlState::QUERY_CANCELED));
        client.simple_query("SET statement_timeout = '300ms'").await.expect("a setting");
        let late = client.simple_query(waiting).await.err().and_then(|error| error.code().cloned());
        assert_eq!(late, Some(SqlState::QUERY_CANCELED));
        let rows = client.simple_query("SELECT 1").await.expect("the session lives");
        assert!(rows.iter().any(|row| matches!(row, SimpleQueryMessage::Row(_))));
    });
}

#[test]
fn there_are_only_so_many_sessions() {
    let world = World::new(crate::support::Database::shared());
    let before = world.sessions() as usize;
    let sessions: Vec<_> = (before..30).map(|_| world.direct()).collect();
    let error = Sql::try_connect(&world.address("app", "secret")).err().expect("it is refused");
    assert_eq!(error.code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{error:?}");
    drop(sessions);
    wait_within(Duration::from_secs(20), "there is room again", || {
        Sql::try_connect(&world.address("app", "secret")).is_ok()
    });
}

const SEARCH: &str = "SELECT key FROM search WHERE collection = 'docs' AND query = '{0.3,0.1,0.7,0.5}' AND k = 3";

#[test]
fn columns_that_are_not_replicated_are_not_shown() {
    let world = world();
    let sql = world.direct();
    for table in [SEARCH.to_owned(), SEARCH.replace("search", "stream").replace(" AND k = 3", "")] {
        let (code, _, hint) = refusal(&sql, &format!("{table} AND options = '{{\"columns\": [\"body\"]}}'"));
        assert!(code == "42501" && hint.contains("join"), "{table}: {code} {hint}");
    }
    let shown = SEARCH.replace("key", "columns") + " AND options = '{\"columns\": [\"id\", \"views\"]}'";
    assert!(sql.rows(&shown).iter().all(|row| row[0].as_deref().is_some_and(|json| json.contains("views"))));
}

#[test]
fn options_of_a_collections_table_hold_or_are_refused() {
    let world = world();
    let sql = world.direct();
    let options = |json: &str| format!("_options = '{json}'");
    let filter = options("{\"filter\": \"section = $1\", \"params\": [\"s2\"]}");
    let nearest = format!("SELECT id FROM docs WHERE views < 50 AND {filter} ORDER BY embedding <-> '{TEXT}' LIMIT 5");
    assert_eq!(firsts(&sql, &nearest), world.nearest(QUERY, "section = 's2' AND views < 50", 5));
    let counted = sql.one(&format!("SELECT count(*) FROM docs WHERE views < 50 AND {filter}"));
    assert_eq!(counted, world.nearest(QUERY, "section = 's2' AND views < 50", 100_000).len().to_string());
    for json in [
        "{\"group_by\": \"section\"}",
        "{\"mmr\": {}}",
        "{\"query\": {\"id\": 3}}",
        "{\"query\": {\"recommend\": {\"positive\": [3]}}}",
    ] {
        let options = options(json);
        for query in [
            format!("SELECT id FROM docs WHERE {options} ORDER BY embedding <-> '{TEXT}' LIMIT 5"),
            format!("SELECT id FROM docs WHERE {options}"),
        ] {
            assert_eq!(refusal(&sql, &query).0, "0A000", "{query}");
        }
    }
}

#[test]
fn scans_and_counts_wait_for_the_position_asked_for() {
    let world = world();
    let sql = world.direct();
    let never = "{\"consistency\": {\"at_least\": \"FFFF/0\", \"timeout_ms\": 300}}";
    for what in ["id", "count(*)", "max(views)"] {
        let (code, message, _) = refusal(&sql, &format!("SELECT {what} FROM docs WHERE _options = '{never}'"));
        assert_eq!(code, "57014", "{what}: {message}");
    }
    sql.run("SET ruvector.min_lsn = 'FFFF/0'; SET statement_timeout = 700");
    assert_eq!(refusal(&sql, "SELECT count(*) FROM docs").0, "57014");
}

#[test]
fn positions_are_written_as_such_in_every_condition() {
    let sql = world().direct();
    for (condition, rows) in [
        ("applied_lsn > '0/1'", 1),
        ("applied_lsn IN ('0/1', '0/2')", 0),
        ("applied_lsn NOT IN ('0/1', '0/2')", 1),
        ("applied_lsn BETWEEN '0/1' AND 'FFFFF/0'", 1),
        ("applied_lsn NOT BETWEEN '0/1' AND 'FFFFF/0'", 0),
        ("applied_lsn = ANY ('{0/1,0/2}')", 0),
        ("applied_lsn <> ALL ('{0/1,0/2}')", 1),
        ("applied_lsn = ANY (ARRAY['0/1'])", 0),
    ] {
        assert_eq!(sql.rows(&format!("SELECT 1 FROM status WHERE {condition}")).len(), rows, "{condition}");
    }
    for condition in ["applied_lsn IN ('x')", "applied_lsn BETWEEN '1' AND '2'", "applied_lsn = ANY ('{x}')"] {
        assert_eq!(refusal(&sql, &format!("SELECT 1 FROM status WHERE {condition}")).0, "22P03", "{condition}");
    }
}

#[test]
fn bounds_of_freshness_hold_and_none_switches_off_another() {
    let world = World::new(Database::shared());
    let sql = world.direct();
    let searches = |options: &str| {
        [
            format!("SELECT id FROM docs WHERE _options = '{options}' ORDER BY embedding <-> '{TEXT}' LIMIT 5"),
            format!("SELECT id FROM docs WHERE _options = '{options}'"),
            format!("SELECT count(*) FROM docs WHERE _options = '{options}'"),
            format!(
                "SELECT key FROM search WHERE collection = 'docs' AND query = '{{0.3,0.1,0.7,0.5}}' AND k = 5 AND options = '{options}'"
            ),
        ]
    };
    let young = r#"{"consistency": {"max_staleness_ms": 300, "timeout_ms": 20000}}"#;
    searches(young).iter().for_each(|search| assert!(!sql.rows(search).is_empty(), "{search}"));
    for search in searches(r#"{"consistency": {"max_staleness_ms": 0}}"#) {
        assert_eq!(refusal(&sql, &search).0, "22023", "{search}");
    }
    // The session's position holds beside whatever else is said, unless that is a higher one.
    sql.run("SET ruvector.min_lsn = 'FFFF/0'");
    for options in [
        r#"{"consistency": {"timeout_ms": 200}}"#,
        r#"{"consistency": {"at_least": "0/1", "timeout_ms": 200}}"#,
        r#"{"consistency": {"at_least": null, "timeout_ms": 200}}"#,
    ] {
        for search in searches(options) {
            let (code, message, _) = refusal(&sql, &search);
            assert!(code == "57014" && message.contains("FFFF/0"), "{search}: {message}");
        }
    }
    sql.run("SET ruvector.min_lsn = '0/1'");
    for search in searches(r#"{"consistency": {"at_least": "FFFF/1", "timeout_ms": 200}}"#) {
        assert!(refusal(&sql, &search).1.contains("FFFF/1"), "{search}");
    }
    sql.run("RESET ruvector.min_lsn");
    // A transaction that keeps its state does not give it to somebody who wants a younger one.
    let kept = world.direct();
    kept.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert!(!kept.rows("SELECT id FROM docs LIMIT 1").is_empty());
    // And the age of that is told as it is.
    let age = || -> f64 {
        let query =
            "SELECT staleness_ms FROM search WHERE collection = 'docs' AND query = '{0.3,0.1,0.7,0.5}' AND k = 1";
        kept.one(query).parse().expect("a number")
    };
    let before = age();
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(age() >= before + 1_400.0, "{before}");
    let stopped = Stopped::new(&world.database);
    world.database.sql.run("DELETE FROM docs WHERE id = 1");
    let old = r#"{"consistency": {"max_staleness_ms": 20, "timeout_ms": 500}}"#;
    std::thread::sleep(Duration::from_millis(200));
    for search in searches(old) {
        assert_eq!(refusal(&sql, &search).0, "57014", "{search}");
    }
    assert_eq!(refusal(&kept, &searches(old)[0]).0, "57014");
    drop(stopped);
}

#[test]
fn an_aggregate_is_one_row_however_it_is_fetched() {
    let world = world();
    let sql = world.direct();
    sql.run("BEGIN; DECLARE c CURSOR FOR SELECT count(*) FROM docs");
    assert_eq!(firsts(&sql, "FETCH 1 FROM c"), [crate::world::ROWS.to_string()]);
    assert!(sql.rows("FETCH 1 FROM c").is_empty(), "there is no second row");
    sql.run("ROLLBACK");
    let all = format!("SELECT count(*) FROM docs WHERE _query = '{TEXT}' LIMIT 1");
    assert_eq!(sql.one(&all), crate::world::ROWS.to_string(), "LIMIT is of the one row, not of those counted");
    assert!(sql.rows("SELECT 1 WHERE false").is_empty());
    assert_eq!(sql.one("SELECT 1 WHERE true"), "1");
}

#[test]
fn a_lost_query_is_an_error_and_no_scan() {
    let world = world();
    let sql = world.direct();
    for query in [
        "SELECT id FROM docs ORDER BY _distance LIMIT 5",
        "SELECT id FROM docs WHERE _distance < 0.5",
        "SELECT id, _query FROM docs",
        "SELECT _distance FROM docs LIMIT 5",
    ] {
        let (code, message, hint) = refusal(&sql, query);
        assert!(code == "HV000" && message.contains("_query") && hint.contains("SELECT"), "{query}: {message}");
    }
    let (code, message, _) = refusal(&sql, "SELECT id FROM docs ORDER BY embedding");
    assert_eq!(code, "0A000", "{message}");
    assert!(sql.rows("EXPLAIN SELECT id FROM docs ORDER BY _distance")[0][0].as_deref().is_some());
}

#[test]
fn diverse_rows_are_sorted_where_that_is_asked_for() {
    let world = world();
    let sql = world.direct();
    let diverse = SEARCH.replace("k = 3", "k = 30").replace("key", "distance")
        + " AND options = '{\"mmr\": {\"lambda\": 0.1}, \"recheck\": \"none\"}'";
    let distances =
        |query: &str| -> Vec<f64> { firsts(&sql, query).iter().map(|text| text.parse().expect("a number")).collect() };
    assert!(!distances(&diverse).is_sorted(), "an order of its own");
    let sorted = distances(&format!("{diverse} ORDER BY distance"));
    assert!(sorted.len() == 30 && sorted.is_sorted(), "{sorted:?}");
}

#[test]
fn the_examples_of_the_documentation_work() {
    let world = world();
    let text = std::fs::read_to_string(format!("{}/docs/sql.md", env!("CARGO_MANIFEST_DIR"))).expect("docs/sql.md");
    let examples: Vec<_> = text.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 10, "{}", examples.len());
    let (source, direct) = (world.source(), world.direct());
    for example in examples {
        let on = if example.starts_with("-- on the endpoint") { &direct } else { &source };
        assert!(!on.rows(example).is_empty(), "{example}");
    }
}
