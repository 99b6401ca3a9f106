//! Through postgres_fdw: the pack's tables and functions as callers use them.

use crate::support::wait_until;
use crate::world::{ROWS, World, firsts, refusal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const QUERY: &str = "ARRAY[0.3, 0.1, 0.7, 0.5]::real[]";

/// What holds beside every major, in tests of their own beside the installed one and one after the other beside the others
/// (`majors.rs`): on a world that stays as it is, and on one that is changed.
macro_rules! checks {
    ($($same:ident)+; $($changed:ident)+) => {
        pub const CHECKS: &[(&str, fn(&World))] = &[$((stringify!($same), $same)),+];
        pub const CHANGES: &[(&str, fn(&mut World))] = &[$((stringify!($changed), $changed)),+];
        mod installed {
            use crate::support::Database;
            use crate::world::{World, world};
            $(#[test] fn $same() { super::$same(&world()); })+
            $(#[test] fn $changed() { super::$changed(&mut World::new(Database::shared())); })+
        }
    };
}

checks! {
    searches_find_what_a_full_scan_finds_in_every_form
    a_lateral_join_searches_once_for_each_row
    filters_are_applied_in_the_index
    exactly_k_rows_survive_row_security_and_heap_filters
    a_lazy_cursor_does_only_what_is_asked_for
    savepoints_and_errors_leave_the_session_usable
    cancelling_ends_the_statement_and_nothing_else
    a_missing_input_says_what_to_write
    arguments_hold_beside_options
    import_and_analyze_are_answered
    text_keys_join_whatever_the_collation
    an_error_in_the_middle_of_a_cursor_spoils_nothing
    analyze_draws_a_sample;
    a_repeatable_read_transaction_sees_one_state_while_rows_come_and_go
    a_lost_connection_is_made_again
    the_pack_goes_in_again_and_comes_out
}

fn searches_find_what_a_full_scan_finds_in_every_form(world: &World) {
    let sql = world.source();
    let expected = world.nearest(QUERY, "true", 10);
    let constants = "SELECT id FROM ruvector_search('docs', ARRAY[0.3, 0.1, 0.7, 0.5])";
    assert_eq!(firsts(&sql, constants), expected, "constants");
    let bare = "SELECT key FROM search_table WHERE collection = 'docs' AND query = '{0.3,0.1,0.7,0.5}' AND k = 10";
    assert_eq!(firsts(&sql, bare), expected, "the bare table");
    for mode in ["force_custom_plan", "force_generic_plan"] {
        sql.run(&format!("SET plan_cache_mode = {mode}"));
        sql.run("PREPARE p(double precision[], int) AS SELECT id FROM ruvector_search('docs', $1, $2)");
        for _ in 0..3 {
            assert_eq!(firsts(&sql, "EXECUTE p('{0.3,0.1,0.7,0.5}', 10)"), expected, "{mode}");
        }
        sql.run("DEALLOCATE p");
    }
    sql.run(
        "CREATE TEMP TABLE found (n serial, id text);
         DO $$ DECLARE q real[] := ARRAY[0.3, 0.1, 0.7, 0.5]; how_many int := 10; r record; BEGIN
           FOR r IN SELECT s.id FROM ruvector_search('docs', q, how_many) s LOOP
             INSERT INTO found (id) VALUES (r.id);
           END LOOP; END $$",
    );
    assert_eq!(firsts(&sql, "SELECT id FROM found ORDER BY n"), expected, "PL/pgSQL");
    let batch = "SELECT id FROM ruvector_search_batch('docs', ARRAY[[1, 1, 1, 1], [0.3, 0.1, 0.7, 0.5]], 10)
                 WHERE query_idx = 2";
    assert_eq!(firsts(&sql, batch), expected, "a batch");
}

fn a_lateral_join_searches_once_for_each_row(world: &World) {
    let sql = world.source();
    let query = "SELECT q.id || ':' || string_agg(s.id, ',' ORDER BY s.distance)
                   FROM (SELECT * FROM docs WHERE id IN (5, 77, 901)) q
                  CROSS JOIN LATERAL ruvector_search('docs', q.embedding::double precision[], 4) s
                  GROUP BY q.id ORDER BY q.id";
    let expected: Vec<_> = [5, 77, 901]
        .map(|id| {
            let nearest = world.nearest(&format!("(SELECT embedding FROM docs WHERE id = {id})"), "true", 4);
            format!("{id}:{}", nearest.join(","))
        })
        .into();
    assert_eq!(firsts(&sql, query), expected);
}

fn filters_are_applied_in_the_index(world: &World) {
    let sql = world.source();
    let expected = world.nearest(QUERY, "section = 's2' AND views < 30", 10);
    let condition = format!("SELECT id FROM docs_nearest({QUERY}, 'section = ''s2'' AND views < 30') LIMIT 10");
    assert_eq!(firsts(&sql, &condition), expected);
    let equal = world.nearest(QUERY, "section IS NULL AND views IN (7, 28)", 10);
    let object = format!(
        "SELECT id FROM ruvector_search('docs', {QUERY}, 10, filter => '{{\"section\": null, \"views\": [7, 28]}}')"
    );
    assert_eq!(firsts(&sql, &object), equal);
    // The typed table: its columns' conditions are sent by themselves.
    let typed = "SELECT id FROM ruvector.docs WHERE _query = '{0.3,0.1,0.7,0.5}' AND section = 's2' AND views < 30
                  ORDER BY _distance LIMIT 10";
    assert_eq!(firsts(&sql, typed), expected);
    for (condition, plain) in [
        ("section = ANY ('{s1,s3}')", "section IN ('s1', 's3')"),
        ("section <> ALL ('{s1,s3}')", "section NOT IN ('s1', 's3')"),
        ("section IS DISTINCT FROM 's1'", "section IS DISTINCT FROM 's1'"),
        ("NOT (views BETWEEN 10 AND 90) OR section IS NULL", "NOT (views BETWEEN 10 AND 90) OR section IS NULL"),
        ("views % 2 = 0", "views % 2 = 0"),
    ] {
        let count = |table: &str, condition: &str| {
            let text = if condition.contains('%') {
                // Arithmetic stays in the source, around a sub-select that keeps the rest apart.
                format!("SELECT count(*) FROM (SELECT * FROM {table} OFFSET 0) t WHERE {condition}")
            } else {
                format!("SELECT count(*) FROM {table} WHERE {condition}")
            };
            sql.one(&text)
        };
        assert_eq!(count("ruvector.docs", condition), count("public.docs", plain), "{condition}");
    }
}

fn exactly_k_rows_survive_row_security_and_heap_filters(world: &World) {
    for (role, policy) in [("alice", "section = 's1'"), ("bob", "id % 100 = 3")] {
        let sql = world.source_as(&world.role(role));
        let searched = format!("SELECT (s.\"row\").id FROM docs_search({QUERY}, 10) s");
        assert_eq!(firsts(&sql, &searched), world.nearest(QUERY, policy, 10), "{role}");
        let joined = format!(
            "SELECT d.id FROM docs_nearest({QUERY}) s JOIN public.docs d USING (id)
              WHERE d.body LIKE '%3' ORDER BY s.distance LIMIT 7"
        );
        let policy = format!("{policy} AND body LIKE '%3'");
        assert_eq!(firsts(&sql, &joined), world.nearest(QUERY, &policy, 7), "{role}, with a filter on the heap");
    }
    // As many as there are where there are fewer.
    let sql = world.source_as(&world.role("bob"));
    let all = firsts(&sql, &format!("SELECT (s.\"row\").id FROM docs_search({QUERY}, 1000) s"));
    assert_eq!(all.len() as i64, ROWS / 100);
}

fn a_lazy_cursor_does_only_what_is_asked_for(world: &World) {
    let sql = world.source();
    sql.run(&format!("BEGIN; DECLARE c CURSOR FOR SELECT id FROM docs_nearest({QUERY})"));
    assert_eq!(firsts(&sql, "FETCH 3 FROM c"), world.nearest(QUERY, "true", 3));
    // Closed early, and the connection goes on.
    sql.run("CLOSE c");
    assert_eq!(firsts(&sql, &format!("SELECT id FROM docs_nearest({QUERY}) LIMIT 2")), world.nearest(QUERY, "true", 2));
    sql.run("COMMIT");
    // Two at once, in turns.
    sql.run(&format!(
        "BEGIN; DECLARE a CURSOR FOR SELECT id FROM docs_nearest({QUERY}); DECLARE b CURSOR FOR
         SELECT id FROM docs_nearest({QUERY}, 'section = ''s1''')"
    ));
    let (mut all, mut some) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        all.extend(firsts(&sql, "FETCH 60 FROM a"));
        some.extend(firsts(&sql, "FETCH 60 FROM b"));
    }
    sql.run("COMMIT");
    // A walk's order is about right; what it gives is neither more nor twice.
    let near = |found: &[String], expected: &[String]| expected.iter().filter(|id| found.contains(id)).count();
    assert!(near(&all, &world.nearest(QUERY, "true", 180)) >= 170, "{all:?}");
    assert!(near(&some, &world.nearest(QUERY, "section = 's1'", 180)) >= 170, "{some:?}");
}

fn savepoints_and_errors_leave_the_session_usable(world: &World) {
    let sql = world.source();
    let search = format!("SELECT count(*) FROM ruvector_search('docs', {QUERY}, 5)");
    sql.run(&format!(
        "CREATE TEMP TABLE seen (what text);
         BEGIN;
         INSERT INTO seen SELECT 'first ' || count(*) FROM ruvector_search('docs', {QUERY}, 5);
         DO $$ BEGIN
           PERFORM * FROM ruvector.ruvector_search('nothing of this name', {QUERY}, 5);
           RAISE 'it must fail';
         EXCEPTION WHEN undefined_table THEN INSERT INTO seen VALUES ('no such collection'); END $$;
         INSERT INTO seen SELECT 'again ' || count(*) FROM ruvector_search('docs', {QUERY}, 5);
         SAVEPOINT a;
         SELECT * FROM ruvector_search('docs', {QUERY}, 5);
         SAVEPOINT b;
         SELECT * FROM docs_nearest({QUERY}) LIMIT 5"
    ));
    let (code, message, _) = refusal(&sql, "SELECT * FROM ruvector_search('docs', ARRAY[1, 2], 5)");
    assert_eq!((code.as_str(), message.contains("2 dimensions")), ("22000", true), "{message}");
    sql.run("ROLLBACK TO SAVEPOINT a");
    assert_eq!(sql.one(&search), "5");
    sql.run("RELEASE SAVEPOINT a; COMMIT");
    assert_eq!(firsts(&sql, "SELECT what FROM seen"), ["first 5", "no such collection", "again 5"]);
    // An error in the middle of a cursor, then the next transaction.
    sql.run(&format!("BEGIN; DECLARE c CURSOR FOR SELECT id, 10 / (id - id) FROM docs_nearest({QUERY})"));
    assert_eq!(refusal(&sql, "FETCH 1 FROM c").0, "22012");
    sql.run("ROLLBACK");
    assert_eq!(sql.one(&search), "5");
}

fn cancelling_ends_the_statement_and_nothing_else(world: &World) {
    let sql = world.source();
    let search = format!("SELECT count(*) FROM ruvector_search('docs', {QUERY}, 5)");
    assert_eq!(sql.one(&search), "5");
    let waiting = format!(
        "SELECT count(*) FROM ruvector_search('docs', {QUERY}, 5,
           options => '{{\"consistency\": {{\"at_least\": \"FFFF/0\", \"timeout_ms\": 60000}}}}')"
    );
    let started = Instant::now();
    let (code, ..) = refusal(&sql, &format!("SET statement_timeout = '700ms'; {waiting}"));
    assert_eq!(code, "57014");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    sql.run("SET statement_timeout = 0");
    assert_eq!(sql.one(&search), "5");
    // In a subtransaction.
    sql.run("BEGIN; SAVEPOINT a; SET LOCAL statement_timeout = '700ms'");
    assert_eq!(refusal(&sql, &waiting).0, "57014");
    sql.run("ROLLBACK TO a");
    assert_eq!(sql.one(&search), "5");
    sql.run("COMMIT");
}

fn a_missing_input_says_what_to_write(world: &World) {
    let sql = world.source();
    for (query, missing) in [
        ("SELECT * FROM search_table WHERE query = '{1,1,1,1}' AND k = 3", "collection"),
        ("SELECT * FROM search_table WHERE collection = 'docs' AND k = 3", "query"),
        ("SELECT * FROM search_table WHERE collection = 'docs' AND query = '{1,1,1,1}'", "`k`"),
        ("SELECT * FROM stream_table WHERE collection = 'docs'", "query"),
    ] {
        let (code, message, hint) = refusal(&sql, query);
        assert!(code == "HV000" && message.contains(missing) && hint.contains("SELECT"), "{query}: {message} {hint}");
    }
    assert!(sql.rows("SELECT * FROM search_table WHERE collection = (SELECT NULL::text) AND k = 1").is_empty());
    let inputs = "SELECT collection, k, options, query FROM search_table WHERE collection = 'docs' AND k = 1
                   AND query = '{0.5,1,2,3}' AND options = '{\"recheck\": \"none\"}'";
    let row: Vec<_> = sql.rows(inputs).remove(0).into_iter().flatten().collect();
    assert_eq!(row, ["docs", "1", "{\"recheck\": \"none\"}", "{0.5,1,2,3}"], "inputs are shown as they were given");
}

fn arguments_hold_beside_options(world: &World) {
    let sql = world.source();
    let merged = |options: &str, arguments: &str| {
        sql.one(&format!("SELECT search_options('{options}', 'none', {arguments})::text"))
    };
    assert_eq!(
        merged("{\"search\": {\"ef\": 50}, \"limit\": 3}", "NULL, 'exact', NULL"),
        "{\"limit\": 3, \"search\": {\"ef\": 50, \"exact\": true}, \"recheck\": \"none\"}"
    );
    assert_eq!(
        merged("{\"consistency\": {\"timeout_ms\": 9}}", "NULL, NULL, '0/10'"),
        "{\"recheck\": \"none\", \"consistency\": {\"at_least\": \"0/10\", \"timeout_ms\": 9}}"
    );
    let late = "options => '{\"consistency\": {\"timeout_ms\": 200}}', min_lsn => 'FFFF/0'";
    for (arguments, code) in [
        ("exactness => 'exactly'", "22023"),
        ("filter => '{\"section\": \"s1\"}', condition => 'views < 5'", "22023"),
        ("options => '{\"columns\": [\"body\"]}'", "42501"),
        (late, "57014"),
    ] {
        let search = format!("SELECT id FROM ruvector_search('docs', {QUERY}, 5, {arguments})");
        assert_eq!(refusal(&sql, &search).0, code, "{arguments}");
    }
}

fn a_repeatable_read_transaction_sees_one_state_while_rows_come_and_go(world: &mut World) {
    let sql = world.source();
    let (search, count) =
        (format!("SELECT id FROM docs_nearest({QUERY}) LIMIT 5"), "SELECT count(*) FROM ruvector.docs");
    sql.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    let (before, rows) = (firsts(&sql, &search), sql.one(count));
    let direct = world.direct();
    direct.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    let nearest = "SELECT id FROM docs ORDER BY embedding <-> '[0.3,0.1,0.7,0.5]' LIMIT 5";
    assert_eq!(firsts(&direct, nearest), before);
    world.database.sql.run(&format!(
        "DELETE FROM docs WHERE id IN ({}); INSERT INTO docs VALUES (100001, 's1', 1, 'x', {QUERY})",
        before[..2].join(", ")
    ));
    world.service.catch_up(&world.database.sql);
    let (stop, writing) = (AtomicBool::new(false), world.database.connect());
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                writing.run(&format!(
                    "UPDATE docs SET embedding = vec(id * 31 + {rounds}, 4) WHERE id % 40 = {0} AND id < 100000;
                     DELETE FROM docs WHERE id = 200 + {rounds};
                     INSERT INTO docs VALUES (200000 + {rounds}, 's2', 1, 'x', {QUERY})",
                    rounds % 40
                ));
            }
            rounds
        });
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(600) {
            assert_eq!((firsts(&sql, &search), sql.one(count)), (before.clone(), rows.clone()));
            assert_eq!(firsts(&direct, nearest), before);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("it writes")
    });
    assert!(written > 2, "{written} rounds");
    world.service.catch_up(&world.database.sql);
    assert_eq!((firsts(&sql, &search), sql.one(count)), (before.clone(), rows.clone()));
    sql.run("COMMIT");
    direct.run("COMMIT");
    world.database.sql.run("DELETE FROM docs WHERE id > 200000");
    world.service.catch_up(&world.database.sql);
    let after = world.nearest(QUERY, "true", 5);
    assert_eq!(after[0], "100001");
    assert_eq!(firsts(&sql, &search), after);
    assert_eq!(firsts(&direct, nearest), after);
    // A row that the source does not show is not in an answer that is rechecked, nor in one that is joined.
    let lsn = sql.one("SELECT pg_current_wal_lsn()");
    let own = format!("SELECT id FROM ruvector_search('docs', {QUERY}, 1, min_lsn => '{lsn}')");
    assert_eq!(sql.one(&own), "100001", "one's own writes");
    let unseen = format!("SELECT id FROM ruvector_search('docs', {QUERY}, 1, min_lsn => 'FFFF/0')");
    assert_eq!(refusal(&sql, &unseen).0, "57014", "a position that does not come");
}

fn import_and_analyze_are_answered(world: &World) {
    let sql = world.source();
    sql.run(
        "CREATE SCHEMA IF NOT EXISTS imported;
         IMPORT FOREIGN SCHEMA ruvector FROM SERVER ruvector INTO imported;
         ANALYZE imported.search; ANALYZE imported.docs; ANALYZE ruvector.docs; ANALYZE ruvector.search_table",
    );
    let columns = "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
                     FROM pg_attribute WHERE attrelid = 'imported.docs'::regclass AND attnum > 0";
    assert_eq!(
        sql.one(columns),
        "id bigint, section text, views integer, embedding real[], _distance double precision, _query real[], \
         _filter text, _options jsonb"
    );
    let rows = "SELECT reltuples FROM pg_class WHERE oid = 'imported.docs'::regclass";
    assert_eq!(sql.one(rows), ROWS.to_string());
    sql.run(
        "CREATE SCHEMA just; IMPORT FOREIGN SCHEMA collections LIMIT TO (notes) FROM SERVER ruvector INTO just;
         CREATE SCHEMA others; IMPORT FOREIGN SCHEMA collections EXCEPT (notes) FROM SERVER ruvector INTO others",
    );
    let tables = "SELECT string_agg(relnamespace::regnamespace || '.' || relname, ' ' ORDER BY 1) FROM pg_class
                   WHERE relnamespace::regnamespace::text IN ('just', 'others') AND relkind = 'f'";
    let found = sql.one(tables);
    assert!(found.contains("just.notes") && found.contains("others.docs") && !found.contains("just.docs"), "{found}");
    sql.run("SET client_min_messages = error; DROP SCHEMA imported, just, others CASCADE");
}

fn text_keys_join_whatever_the_collation(world: &World) {
    let sql = world.source();
    let joined = "SELECT n.name FROM notes_nearest(ARRAY[0.3, 0.1, 0.7]) s JOIN public.notes n USING (name)
                   ORDER BY s.distance LIMIT 40";
    let mut found = firsts(&sql, joined);
    assert_eq!(found.len(), 40);
    found.sort();
    let mut all = firsts(&sql, "SELECT name FROM public.notes");
    all.sort();
    assert_eq!(found, all);
    // Sorted by the service, by code point, and joined by merging: nothing is lost.
    sql.run("SET enable_nestloop = off; SET enable_hashjoin = off");
    let merged = "SELECT count(*) FROM ruvector.notes f JOIN public.notes n ON n.name = f.name";
    assert_eq!(sql.one(merged), "40");
}

fn the_pack_goes_in_again_and_comes_out(world: &mut World) {
    let output = world.pack("install", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(world.pack("print", &[]).stdout).expect("text");
    assert!(printed.contains("docs_nearest") && !printed.contains("secret"), "{printed}");
    let sql = world.source();
    let granted = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'ruvector'::regnamespace AND
                   has_function_privilege('pg_monitor', oid, 'EXECUTE')";
    assert_eq!(sql.one(granted), "0", "nothing is granted to everybody");
    let superuser = format!("SELECT rolsuper FROM pg_roles WHERE rolname = '{}'", world.owner);
    assert_eq!(sql.one(&superuser), "f");
    assert!(world.pack("uninstall", &["--yes"]).status.success());
    assert_eq!(sql.text("SELECT 1 FROM pg_namespace WHERE nspname = 'ruvector'"), None);
    assert_eq!(sql.text("SELECT 1 FROM pg_foreign_server"), None);
}

fn a_lost_connection_is_made_again(world: &mut World) {
    let sql = world.source();
    let search = format!("SELECT count(*) FROM ruvector_search('docs', {QUERY}, 5)");
    assert_eq!(sql.one(&search), "5");
    sql.run(&format!("BEGIN; DECLARE c CURSOR FOR SELECT id FROM docs_nearest({QUERY}); FETCH 150 FROM c"));
    world.service.terminate();
    assert_eq!(refusal(&sql, "FETCH 150 FROM c").0, "08006", "lost in the middle of a cursor");
    sql.run("ROLLBACK");
    // On the same port, as a service has it.
    let text = std::fs::read_to_string(world.service.config_file()).expect("a file");
    let address = world.service.sql_address().to_owned();
    let text = text.replace("[sql]\nlisten = \"127.0.0.1:0\"", &format!("[sql]\nlisten = \"{address}\""));
    std::fs::write(world.service.config_file(), text).expect("a file");
    assert_eq!(refusal(&sql, &search).0, "08001");
    world.service.start();
    world.service.wait_ready();
    wait_until("it answers again", || sql.try_text(&search).as_deref() == Some("5"));
}

fn an_error_in_the_middle_of_a_cursor_spoils_nothing(world: &World) {
    let sql = world.source();
    // The rows come in batches of 100: the error is of the second, while the cursor of the service is open.
    let cursor = format!(
        "DECLARE c CURSOR FOR SELECT 1 / (150 - s.n) FROM (SELECT row_number() OVER () AS n FROM docs_nearest({QUERY})) s"
    );
    sql.run(&format!("BEGIN; SAVEPOINT a; {cursor}"));
    assert_eq!(sql.rows("FETCH 120 FROM c").len(), 120);
    assert_eq!(refusal(&sql, "FETCH 120 FROM c").0, "22012");
    sql.run("ROLLBACK TO SAVEPOINT a");
    assert_eq!(firsts(&sql, &format!("SELECT id FROM docs_nearest({QUERY}) LIMIT 4")), world.nearest(QUERY, "true", 4));
    // In PL/pgSQL, where the loop's cursor is closed by the exception.
    sql.run(&format!(
        "COMMIT; CREATE TEMP TABLE told (n int);
         DO $$ DECLARE r record; seen int := 0; BEGIN
           BEGIN
             FOR r IN SELECT id FROM docs_nearest({QUERY}) LOOP
               seen := seen + 1;
               IF seen = 130 THEN RAISE division_by_zero; END IF;
             END LOOP;
           EXCEPTION WHEN division_by_zero THEN NULL; END;
           INSERT INTO told SELECT seen UNION ALL SELECT count(*) FROM ruvector_search('docs', {QUERY}, 5);
         END $$"
    ));
    assert_eq!(firsts(&sql, "SELECT n FROM told ORDER BY n"), ["5", "130"]);
}

fn analyze_draws_a_sample(world: &World) {
    let sql = world.source();
    let version: u32 = sql.one("SELECT current_setting('server_version_num')::int / 10000").parse().expect("a number");
    sql.run(
        "SET default_statistics_target = 1; CREATE SCHEMA sampled;
         IMPORT FOREIGN SCHEMA collections LIMIT TO (docs) FROM SERVER ruvector INTO sampled",
    );
    // Before 16 everything is read, and there is no such option.
    let methods: &[&str] = if version < 16 { &[""] } else { &["off", "auto", "random", "system", "bernoulli"] };
    for (at, method) in methods.iter().enumerate() {
        if !method.is_empty() {
            let verb = if at == 0 { "ADD" } else { "SET" };
            sql.run(&format!("ALTER FOREIGN TABLE sampled.docs OPTIONS ({verb} analyze_sampling '{method}')"));
        }
        sql.run("ANALYZE sampled.docs");
        let rows = sql.one("SELECT reltuples FROM pg_class WHERE oid = 'sampled.docs'::regclass");
        assert_eq!(rows, ROWS.to_string(), "{method}");
        let nulls = "SELECT null_frac FROM pg_stats WHERE schemaname = 'sampled' AND attname = 'section'";
        let nulls: f64 = sql.one(nulls).parse().expect("a number");
        assert!((0.08..0.35).contains(&nulls), "{method}: {nulls}, and a fifth of the rows have none");
    }
    sql.run("SET client_min_messages = error; DROP SCHEMA sampled CASCADE");
}
