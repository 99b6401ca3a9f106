//! `ruvector shadow` beside a real pgvector: what it measures of both sides, and what it says where there is nothing to compare.

mod support;

use ruvector::cli::private_postgres::Settings;
use serde_json::Value as Json;
use std::process::{Command, Output};
use support::{Database, Service, cluster, pgvector};

const COLLECTIONS: &str = "[[collections]]
table = \"public.docs\"
name = \"docs\"
filter_columns = [\"cat\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"cosine\"
[[collections.vectors]]
column = \"plain\"
metric = \"l2\"
[[collections]]
table = \"public.pairs\"
name = \"pairs\"
[[collections.vectors]]
column = \"bits\"
metric = \"hamming\"
[[collections.vectors]]
column = \"half\"
metric = \"ip\"
";

fn shadow(service: &Service, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ruvector"))
        .args(["shadow", "--url", service.url(), "--config"])
        .arg(service.config_file())
        .args(arguments)
        .output()
        .expect("it runs")
}

fn report(output: &Output) -> Json {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn both_sides_are_measured_against_the_exact_answer() {
    let Some(bin_dir) = pgvector() else { return };
    let postgres = cluster(Settings { bin_dir: Some(bin_dir), ..Settings::default() });
    let database = Database::of(&postgres);
    // Random directions of 32 dimensions are hard to search: an index that hardly looks finds little.
    database.sql.run(
        "CREATE EXTENSION vector; SELECT setseed(0.5);
         CREATE TABLE docs (id bigint PRIMARY KEY, cat int, embedding vector(32), plain real[]);
         INSERT INTO docs SELECT i, i % 100, e::vector, e FROM (SELECT i, (SELECT array_agg(random()::real - 0.5) FROM generate_series(1, 32)
           WHERE i > 0) e FROM generate_series(1, 4000) i) made;
         CREATE INDEX docs_embedding ON docs USING hnsw (embedding vector_cosine_ops) WITH (m = 4, ef_construction = 8);
         CREATE TABLE pairs (a int, b text, bits bit(24), half halfvec(4), PRIMARY KEY (a, b));
         INSERT INTO pairs SELECT i % 7, i || ' é''s, }', (i * 7919 % 16777216)::bit(24),
           array_to_halfvec(vec(i, 4), 4, true) FROM generate_series(1, 500) i;
         ANALYZE",
    );
    let service = Service::ready(&database, COLLECTIONS);
    let poor = [
        "docs",
        "--queries",
        "40",
        "--set",
        "hnsw.ef_search=10",
        "--set",
        "enable_seqscan=off",
        "--ef",
        "200",
        "--json",
    ];
    let output = shadow(&service, &poor);
    let poor = report(&output);
    assert_eq!(output.status.code(), Some(0), "{poor}");
    let number = |json: &Json| json.as_f64().unwrap_or_else(|| panic!("no number: {poor}"));
    let (theirs, ours) = (number(&poor["source"]["recall"]), number(&poor["ruvector"]["recall"]));
    assert!(theirs < 0.8 && ours > 0.95, "{poor}");
    assert!(number(&poor["ruvector"]["overlap"]) > theirs - 0.05, "{poor}");
    assert!(poor["source"]["plan"].as_str().is_some_and(|plan| plan.contains("docs_embedding")), "{poor}");
    assert!(number(&poor["source"]["p50_ms"]) > 0.0 && number(&poor["ruvector"]["p99_ms"]) > 0.0, "{poor}");
    // Too little of ours is told by the exit code; here by asking for more than there can be of the others' rows.
    let strict = shadow(
        &service,
        &[
            "docs",
            "--queries",
            "20",
            "--set",
            "enable_seqscan=off",
            "--no-exact",
            "--least",
            "1",
            "--json",
            "--set",
            "hnsw.ef_search=10",
        ],
    );
    let overlap = report(&strict);
    assert_eq!(strict.status.code(), Some(1), "{overlap}");
    assert!(overlap["source"].get("recall").is_none(), "{overlap}");
    // What an index filters afterwards is short; the service is not.
    let filtered = report(&shadow(
        &service,
        &[
            "docs",
            "--queries",
            "20",
            "--filter",
            "cat = 3",
            "--json",
            "--set",
            "enable_seqscan=off",
            "--set",
            "enable_bitmapscan=off",
        ],
    ));
    assert_eq!(
        (&filtered["ruvector"]["short"], &filtered["ruvector"]["recall"]),
        (&0.into(), &1.0.into()),
        "{filtered}"
    );
    // Other types, arrays that pgvector only casts, and a key of two columns.
    for arguments in [vec!["docs", "--using", "plain"], vec!["pairs"], vec!["pairs", "--using", "half", "--limit", "3"]]
    {
        let exact = shadow(&service, &[&arguments[..], &["--queries", "10", "--json", "--ef", "200"]].concat());
        let found = report(&exact);
        assert_eq!(found["source"]["recall"], 1.0, "{arguments:?} {found}");
        assert!(found["ruvector"]["recall"].as_f64().is_some_and(|recall| recall > 0.99), "{arguments:?} {found}");
        assert_eq!(found["ruvector"]["short"], 0, "{arguments:?} {found}");
    }
    let table = shadow(&service, &["docs", "--queries", "5"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("docs.embedding, cosine: 5 questions") && table.contains("overlap@10"), "{table}");
    for (arguments, says) in [
        (vec!["nothing"], "RV1101"),
        (vec!["docs", "--using", "nothing"], "no vector column of that name"),
        (vec!["docs", "--filter", "nothing = 1"], "nothing"),
        (vec!["docs", "--filter", "1 = 1) OR (1 = 1; DROP TABLE docs"], "the source does not take the question"),
        (vec!["docs", "--set", "hnsw.ef_search=none"], "--set hnsw.ef_search=none"),
        (vec!["docs", "--least", "95"], "from 0 to 1"),
    ] {
        let refused = shadow(&service, &arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && said.contains(says), "{arguments:?}: {said}");
    }
}

#[test]
fn without_pgvector_there_is_nothing_to_compare_with() {
    let database = Database::shared();
    database.docs(5);
    let service = Service::ready(&database, support::DOCS);
    let refused = shadow(&service, &["docs"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("pgvector is not installed"), "{said}");
}
