//! Drivers as their users have them, and psql's commands. Drivers come from pip, npm and apt (`scripts/lib/clients.sh`); where these
//! cannot be had the test says so and is left out.

use crate::support::{cache_dir, pgvector};
use crate::world::{firsts, refusal, world};
use std::path::{Path, PathBuf};
use std::process::Command;

const QUERY: &str = "ARRAY[0.3, 0.1, 0.7, 0.5]::real[]";

/// Where the drivers of this language are; none: they cannot be installed here.
fn drivers(language: &str) -> Option<PathBuf> {
    let folder = cache_dir("clients");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lib/clients.sh");
    let output = Command::new("bash").arg(script).arg(&folder).arg(language).output().expect("bash starts");
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Some(folder.join(language)),
        Some(3) => {
            println!("SKIPPED: the drivers of {language} cannot be installed here: {said}");
            None
        }
        _ => panic!("{script}: {said}"),
    }
}

fn check(mut command: Command) {
    let world = world();
    let keys = world.nearest(QUERY, "true", 5).join(",");
    command.arg(world.address("app", "secret")).arg(keys);
    let output = command.output().expect("it starts");
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{failed}");
    println!("{said}");
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql/clients").join(name)
}

#[test]
fn drivers_of_python_work() {
    let Some(folder) = drivers("python") else { return };
    let mut command = Command::new(folder.join("bin/python"));
    command.arg(script("check.py"));
    check(command);
}

#[test]
fn drivers_of_node_work() {
    let Some(folder) = drivers("node") else { return };
    let mut command = Command::new("node");
    command.env("NODE_PATH", folder.join("node_modules")).arg(script("check.js"));
    check(command);
}

#[test]
fn the_driver_of_java_works() {
    let Some(folder) = drivers("java") else { return };
    let mut command = Command::new("java");
    command.arg("-cp").arg(folder.join("postgresql.jar")).arg(script("Check.java"));
    check(command);
}

/// The installed psql, and the one that came with pgvector.
fn psqls() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("psql")];
    found.extend(pgvector().map(|bin| bin.join("psql")).filter(|psql| psql.exists()));
    found
}

#[test]
fn psqls_commands_are_answered() {
    let world = world();
    for psql in psqls() {
        let run = |command: &str| {
            let mut psql = Command::new(&psql);
            psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", &world.address("app", "secret"), "-c", command]);
            let output = psql.output().expect("psql starts");
            let failed = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !failed.contains("ERROR"), "{psql:?} {command}: {failed}");
            String::from_utf8(output.stdout).expect("text")
        };
        for (command, expected) in [
            ("\\d", "collections|docs|table|ruvector"),
            ("\\d docs", "embedding|real[]|"),
            ("\\d collections.docs", "section|text|"),
            ("\\d status", "applied_lsn|pg_lsn|"),
            ("\\d no*", "name|text|"),
            ("\\dt", "collections|docs|table|ruvector"),
            ("\\dt doc*", "collections|docs|table|ruvector"),
            ("\\dt collections.*", "collections|notes|table|ruvector"),
            ("\\dt+ docs", "collections|docs|table|ruvector|"),
            ("\\l", "ruvector|ruvector|UTF8|"),
            ("\\dn", "collections|ruvector"),
            ("\\du", "app|"),
            ("\\df", ""),
            ("\\di", ""),
            ("\\dv", ""),
            ("\\ds", ""),
            ("\\dx", ""),
            ("\\dT", ""),
            ("\\det", ""),
            ("\\dp docs", "collections|docs|table|"),
            ("\\conninfo", "app"),
            ("\\d+ docs", "views|integer|"),
        ] {
            let found = run(command);
            assert!(found.contains(expected), "{psql:?} {command}: {found}");
            assert_eq!(found.trim().is_empty(), expected.is_empty(), "{psql:?} {command}: {found}");
        }
    }
}

#[test]
fn the_catalog_answers_queries() {
    let world = world();
    let sql = world.direct();
    for (query, expected) in [
        // What psql completes names with.
        (
            "SELECT c.relname, NULL::pg_catalog.text FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'S', 'v', 'm', 'f', 'p')
               AND (c.relname) LIKE 'do%' AND pg_catalog.pg_table_is_visible(c.oid)
               AND c.relnamespace <> (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'pg_catalog')
             UNION ALL
             SELECT NULL::pg_catalog.text, n.nspname FROM pg_catalog.pg_namespace n
              WHERE n.nspname LIKE 'do%' AND n.nspname NOT LIKE E'pg\\\\_%' LIMIT 1000",
            "docs",
        ),
        (
            "SELECT attname FROM pg_catalog.pg_attribute a, pg_catalog.pg_class c
              WHERE c.oid = a.attrelid AND a.attnum > 0 AND NOT a.attisdropped AND substring(attname, 1, 2) = 'se'
                AND pg_catalog.quote_ident(relname) = 'docs'",
            "section",
        ),
        ("SELECT typname FROM pg_type WHERE oid = 'real[]'::regtype", "_float4"),
        ("SELECT string_agg(t.typname, ',' ORDER BY t.typname) FROM pg_type t WHERE t.oid = ANY ('{20,23}'::oid[])", "int4,int8"),
        (
            "SELECT count(*) FROM pg_class c LEFT JOIN pg_index i ON i.indrelid = c.oid
              WHERE i.indexrelid IS NULL AND c.relname ~ '^(docs|notes)$'",
            "2",
        ),
        ("SELECT n.nspname, count(*) FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid GROUP BY 1 ORDER BY 2 LIMIT 1", "collections"),
        (
            "SELECT column_name FROM information_schema.columns
              WHERE table_schema = 'collections' AND table_name = 'docs' AND data_type = 'ARRAY'",
            "embedding",
        ),
        ("SELECT table_name FROM information_schema.tables WHERE table_schema = 'collections' ORDER BY 1 DESC LIMIT 1", "notes"),
        ("WITH x AS (SELECT relname AS n FROM pg_class) SELECT n FROM x WHERE n IN (SELECT tablename FROM pg_tables) AND n > 'm' ORDER BY n", "notes"),
        ("SELECT CASE relkind WHEN 'r' THEN 'table' ELSE 'other' END FROM pg_class WHERE oid = 'collections.docs'::regclass", "table"),
    ] {
        assert_eq!(firsts(&sql, query).first().map(String::as_str), Some(expected), "{query}");
    }
    assert!(sql.rows("SELECT conname FROM pg_constraint").is_empty());
    for (query, code) in [
        ("SELECT x FROM pg_class", "42703"),
        ("SELECT 1 FROM pg_nothing", "42P01"),
        ("SELECT 1 FROM pg_class JOIN docs ON true", "42P01"),
        ("SELECT pg_nothing() FROM pg_class", "0A000"),
        ("SELECT 1 FROM pg_class WHERE relname ~ '(?=x)'", "0A000"),
        ("WITH RECURSIVE x AS (SELECT 1) SELECT * FROM x, pg_class", "0A000"),
        ("SELECT count(*) FROM pg_type a, pg_type b, pg_type c, pg_type d, pg_type e", "54001"),
        ("SELECT 'x'::regclass FROM pg_class", "42P01"),
    ] {
        let (found, message, _) = refusal(&sql, query);
        assert_eq!(found, code, "{query}: {message}");
    }
    // Nobody sees what is not his.
    let limited = crate::support::Sql::connect(&world.address("limited", "less"));
    assert_eq!(firsts(&limited, "SELECT relname FROM pg_class WHERE relnamespace = 16385"), ["notes"]);
}

#[test]
fn positions_are_compared_as_such() {
    let world = world();
    for sql in [world.direct(), {
        let sql = world.source();
        sql.run("SET search_path = ruvector; CREATE TEMP VIEW status AS SELECT * FROM ruvector.service_status");
        sql
    }] {
        assert_eq!(sql.one("SELECT count(*) FROM status WHERE applied_lsn > '0/10'"), "1");
        assert!(sql.rows("SELECT version FROM status WHERE applied_lsn >= 'FFFFFFF/0'").is_empty());
    }
    let sql = world.direct();
    let lsn = sql.one("SELECT applied_lsn FROM status");
    assert!(lsn.contains('/') && sql.one("SELECT ruvector_last_applied_lsn()").contains('/'), "{lsn}");
    assert_eq!(refusal(&sql, "SELECT version FROM status WHERE applied_lsn > 'soon'").0, "22P03");
}
