//! The document of the routes, judged by others: openapi-spec-validator says that it is OpenAPI 3.1, schemathesis asks the service
//! what the document allows and more, and holds every answer against it. Both come from PyPI (`scripts/lib/clients.sh`); where they
//! cannot be had the test says so and leaves them out.

mod support;

use ruvector::server::http::routes::ROUTES;
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Database, Service, cache_dir};

/// How long the service is asked, seconds.
const ASKED: &str = "30";

const COLLECTIONS: &str = "[[collections]]
table = \"public.docs\"
name = \"docs\"
filter_columns = [\"section\", \"views\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
[[collections]]
table = \"public.pairs\"
name = \"pairs\"
[[collections.vectors]]
column = \"bits\"
metric = \"hamming\"
";

/// Where the judges are; none: they cannot be installed here.
fn judges() -> Option<PathBuf> {
    let folder = cache_dir("clients");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lib/clients.sh");
    let output = Command::new("bash").arg(script).arg(&folder).arg("openapi").output().expect("bash starts");
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Some(folder.join("openapi/bin/python")),
        Some(3) => {
            println!("SKIPPED: the judges cannot be installed here: {said}");
            None
        }
        _ => panic!("{script}: {said}"),
    }
}

fn service() -> (Database, Service) {
    let database = Database::shared();
    database.sql.run(
        "CREATE TABLE docs (id bigint PRIMARY KEY, section text, views int, body text, embedding real[]);
         INSERT INTO docs SELECT i, 's' || i % 3, i, 'b', vec(i, 3) FROM generate_series(1, 200) i;
         INSERT INTO docs VALUES (900, 's', 1, 'b', NULL), (901, 's', 1, 'b', '{1}'), (902, 's', 1, 'b', '{0,0,0}');
         CREATE TABLE pairs (a int, b text, bits bit(4), PRIMARY KEY (a, b));
         INSERT INTO pairs SELECT i, 'x', i::bit(4) FROM generate_series(1, 20) i",
    );
    let mut service = Service::configured(&database, "", COLLECTIONS);
    // Those who ask to wait for what does not come must not use up the time.
    service.set_environment("RUVECTOR__HTTP__REQUEST_TIMEOUT_S", Some("5".into()));
    // Snapshots are asked for at any path that comes to mind.
    let snapshots = service.data_dir().with_file_name("snapshots");
    service.set_environment("RUVECTOR__STORAGE__SNAPSHOT_DIR", Some(snapshots.display().to_string()));
    service.start();
    service.wait_ready();
    (database, service)
}

/// Status and code of the answer to a request without a body.
fn asked(service: &Service, method: &str, path: &str) -> (u16, Json) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let url = format!("{}{path}", service.url());
    let answer = if method == "post" { agent.post(&url).send_empty() } else { agent.get(&url).call() };
    let mut answer = answer.expect("an answer");
    let text = answer.body_mut().read_to_string().expect("text");
    (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Json::Null))
}

fn run(mut command: Command) {
    let output = command.output().expect("it starts");
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{failed}");
    println!("{said}");
}

#[test]
fn the_document_is_valid_is_of_the_routes_there_are_and_answers_are_as_it_says() {
    let (_database, service) = service();
    let document = service.client().get("/openapi.json").expect("the document");
    every_route_is_there(&service, &document);
    let Some(python) = judges() else { return };
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("openapi.json");
    std::fs::write(&file, document.to_string()).expect("writable");
    let mut validator = Command::new(&python);
    validator.args(["-m", "openapi_spec_validator", "--schema", "3.1"]).arg(&file);
    run(validator);
    answers_conform(&python, &service, document, folder.path());
}

fn every_route_is_there(service: &Service, document: &Json) {
    let paths = document["paths"].as_object().expect("paths");
    for (path, operations) in paths {
        for method in operations.as_object().expect("operations").keys() {
            let real = path.replace("{name}", "docs").replace("{code}", "RV1001").replace("{key}", "7");
            let (status, answer) = asked(service, method, &real);
            assert_ne!(status, 405, "{method} {path}");
            assert_ne!(answer["code"], "RV1102", "{method} {path}");
            let other = if method == "post" { "get" } else { "post" };
            assert!(operations.get(other).is_some() || asked(service, other, &real).0 == 405, "{other} {path}");
        }
    }
    let described: BTreeSet<_> = paths.keys().map(String::as_str).collect();
    assert_eq!(described, ROUTES.iter().map(|route| route.path).collect(), "of which alone the router is made");
}

/// Requests that are answered well: what is made up seldom is.
fn of_every_kind() -> Vec<(&'static str, Json)> {
    let by_id = json!({ "id": 7 });
    let mut all: Vec<_> = [
        json!({ "query": by_id }),
        json!({ "query": by_id, "explain": true, "columns": ["body", "id"], "recheck": "exact", "search": { "exact": true } }),
        json!({ "query": { "vector": [0, 0, 0] }, "filter": "views < $1 AND section IN ('s1', 's2')", "params": [100] }),
        json!({ "query": { "id": 902, "using": "embedding" }, "max_distance": 0.5, "recheck": "none" }),
        json!({ "query": by_id, "group_by": "section", "group_size": 2, "limit": 3, "explain": true }),
        json!({ "query": by_id, "filter": { "views": { "$lt": 100 } }, "recheck": { "mode": "exact" } }),
        json!({ "query": by_id, "mmr": { "lambda": 0.3 }, "search": { "ef": 20, "exactness": "fast" } }),
        json!({ "query": { "recommend": { "positive": [1, [1, 2, 3]], "negative": [2] } } }),
        json!({ "searches": [{ "query": by_id }, { "query": by_id, "group_by": "views" }], "consistency": { "at_least": "0/1" } }),
    ]
    .map(|body| ("search", body))
    .into();
    all.push(("scroll", json!({ "filter": "views > 3", "limit": 5, "columns": ["section"], "after": 10 })));
    all.push(("scroll", json!({ "limit": 10_000, "recheck": "exact" })));
    all.push(("count", json!({})));
    all.push(("count", json!({ "filter": { "$or": [{ "views": { "$gt": 3 } }, { "section": null }] } })));
    all.push(("facet", json!({ "column": "section" })));
    all.push(("facet", json!({ "column": "views", "limit": 3, "filter": { "section": { "$in": ["s1"] } } })));
    all.push(("recall", json!({ "sample": 20, "limit": 5 })));
    all.push((
        "recall",
        json!({ "queries": [[1, 2, 3]], "filter": "views > $1", "params": [3], "search": { "ef": 20 } }),
    ));
    all.push(("count", json!({ "filter": "views > $1", "params": [3], "consistency": { "timeout_ms": 5 } })));
    all
}

/// A 503 is no failure here: whoever wants an answer that is not older than now gets one. Its code must be one the document names.
const SETTINGS: &str = "[checks]\nnot_a_server_error.expected-statuses = ['2xx', '3xx', '4xx', 503]\n";

/// Collections are asked for by names that are there and one that is not; all else is made up. `rebuild` is left out: the others
/// would find little but copies under way.
fn answers_conform(python: &Path, service: &Service, mut document: Json, folder: &Path) {
    let names = json!({ "type": "string", "enum": ["docs", "pairs", "no such"] });
    for (path, operations) in document["paths"].as_object_mut().expect("paths") {
        for operation in operations.as_object_mut().expect("operations").values_mut() {
            if operation["parameters"][0]["name"] == "name" {
                operation["parameters"][0]["schema"] = names.clone();
                operation["parameters"][0]["example"] = "docs".into();
            }
            if operation["parameters"][1]["name"] == "key" {
                operation["parameters"][1]["example"] = "7".into();
            }
            let what = path.strip_prefix("/v1/collections/{name}/").unwrap_or_default();
            let bodies = of_every_kind().into_iter().filter(|(of, _)| *of == what).map(|(_, body)| body);
            let examples: serde_json::Map<_, _> = bodies
                .inspect(|body| {
                    let path = format!("/v1/collections/docs/{what}");
                    service.client().post(&path, body).unwrap_or_else(|error| panic!("{body}: {error}"));
                })
                .enumerate()
                .map(|(number, body)| (number.to_string(), json!({ "value": body })))
                .collect();
            if !examples.is_empty() {
                let content = &mut operation["requestBody"]["content"]["application/json"];
                content["examples"] = examples.into();
                content.as_object_mut().expect("content").remove("example");
            }
        }
    }
    let file = folder.join("asked.json");
    std::fs::write(&file, document.to_string()).expect("writable");
    std::fs::write(folder.join("schemathesis.toml"), SETTINGS).expect("writable");
    let mut schemathesis = Command::new(python);
    schemathesis
        .args(["-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"])
        .arg(&file)
        .args(["--url", service.url(), "--phases", "examples,coverage,fuzzing", "--max-time", ASKED])
        .args([
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        ])
        .args(["--exclude-path-regex", "/rebuild$", "--request-timeout", "20", "--continue-on-failure"])
        .current_dir(folder);
    run(schemathesis);
    assert!(service.is_ready(), "{}", service.log_tail());
}
