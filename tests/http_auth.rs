//! Who may do what over HTTP: every route with every kind of credential, filters that nobody escapes, keys that change
//! while the service runs. Against the real binary.

mod support;

use aws_lc_rs::{hmac, signature};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ruvector::cli::client::{Client, Target};
use ruvector::server::http::access::Scope;
use ruvector::server::http::keys::{Hash, generate};
use ruvector::server::http::routes::ROUTES;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use support::{Database, Service, Stopped, ids, wait_until};

const COLLECTIONS: &str = "[[collections]]
table = \"public.docs\"
name = \"docs\"
filter_columns = [\"tenant\", \"section\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
[[collections]]
table = \"public.other\"
name = \"other\"
filter_columns = [\"section\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
";

/// Rows of the table; those with odd numbers are tenant 1's, every tenth is nobody's.
const ROWS: i64 = 60;

fn database() -> Database {
    let database = Database::shared();
    database.sql.run(&format!(
        "CREATE TABLE docs (id bigint PRIMARY KEY, tenant int, section text, body text, embedding real[]);
         INSERT INTO docs SELECT i, CASE WHEN i % 10 = 0 THEN NULL WHEN i % 2 = 1 THEN 1 ELSE 2 END, 's' || i % 3,
           'body ' || i, CASE WHEN i <= 50 THEN vec(i, 4) END FROM generate_series(1, {ROWS}) i;
         CREATE TABLE other (id bigint PRIMARY KEY, section text, embedding real[]);
         INSERT INTO other SELECT i, 's', vec(i, 4) FROM generate_series(1, 5) i"
    ));
    database
}

fn own() -> BTreeSet<i64> {
    (1..=ROWS).filter(|id| id % 2 == 1).collect()
}

/// Keys by name, and somebody else's key pair for tokens.
struct Credentials {
    keys: BTreeMap<&'static str, String>,
    issuer: rcgen::KeyPair,
    sections: String,
}

impl Credentials {
    fn new() -> Credentials {
        let issuer = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let mut keys = BTreeMap::new();
        let mut sections = String::new();
        for (name, settings) in [
            ("read", "scopes = ['read']"),
            ("admin", "scopes = ['admin']"),
            ("metrics", "scopes = ['metrics']"),
            ("all", "scopes = ['read', 'admin', 'metrics']"),
            ("docs", "scopes = ['read', 'admin']\ncollections = ['docs', 'nowhere']"),
            ("tenant", "scopes = ['read']\nfilter = 'tenant = 1'"),
            ("misfit", "scopes = ['read']\nfilter = 'body = 1'"),
            ("expired", "scopes = ['read', 'admin', 'metrics']\nexpires = '2020-01-01T00:00:00Z'"),
            ("rated", "scopes = ['read']\nrequests_per_second = 0.01"),
        ] {
            let key = generate();
            sections += &format!("[http.keys.{name}]\nhash = ['{}']\n{settings}\n", Hash::of(&key));
            keys.insert(name, key);
        }
        sections += &format!(
            "[http.jwt]\nissuer = 'https://issuer'\naudience = 'ruvector'\n[[http.jwt.keys]]\nkid = 'k'\n\
             ed25519_public_key = '''\n{}'''\n",
            issuer.public_key_pem()
        );
        Credentials { keys, issuer, sections }
    }

    fn key(&self, name: &str) -> String {
        format!("authorization: Bearer {}\r\n", self.keys[name])
    }

    /// A token with these claims over good ones; null takes one away.
    fn token(&self, header: Json, change: Json) -> String {
        let exp = jiff::Timestamp::now().as_second() + 600;
        let mut claims = json!({ "iss": "https://issuer", "aud": "ruvector", "exp": exp, "sub": "anna" });
        for (name, value) in change.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        claims.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
        let message = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let signature = match header["alg"].as_str() {
            Some("none") => Vec::new(),
            Some("HS256") => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, self.issuer.public_key_pem().as_bytes());
                hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
            }
            _ => {
                let key = signature::Ed25519KeyPair::from_pkcs8(&self.issuer.serialize_der()).expect("a key");
                key.sign(message.as_bytes()).as_ref().to_vec()
            }
        };
        format!("{message}.{}", BASE64.encode(signature))
    }

    fn bearer(&self, change: Json) -> String {
        format!("authorization: Bearer {}\r\n", self.token(json!({ "alg": "EdDSA", "kid": "k" }), change))
    }

    fn forged(&self, header: Json) -> String {
        format!("authorization: Bearer {}\r\n", self.token(header, json!({ "scope": "read admin metrics" })))
    }

    fn service(&self, database: &Database) -> Service {
        let mut service = Service::configured(database, "", &format!("{COLLECTIONS}{}", self.sections));
        service.set_environment("RUVECTOR__LOG__LEVEL", Some("trace".into()));
        service.start();
        service.wait_ready();
        service
    }

    /// Not one of them is in this text.
    fn check_untold(&self, text: &str, what: &str) {
        for (name, key) in &self.keys {
            assert!(!text.contains(&key[..20]), "{what} tells the key {name}");
        }
        // What every token begins with: {"alg":
        assert!(!text.contains("eyJ"), "{what} tells a token");
    }
}

struct Answer {
    status: u16,
    head: String,
    text: String,
}

impl Answer {
    fn json(&self) -> Json {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}\n{}", self.head, self.text))
    }

    fn header(&self, name: &str) -> Option<String> {
        let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned());
        self.head.lines().find_map(value)
    }
}

fn ask(service: &Service, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    use std::io::{Read, Write};
    let address = service.url().strip_prefix("http://").expect("plain HTTP");
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(support::DEADLINE)).expect("a time-out");
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a whole head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_owned(), text: text.to_owned() }
}

fn post(service: &Service, headers: &str, path: &str, body: &Json) -> Answer {
    ask(service, "POST", path, headers, &body.to_string())
}

/// What is sent to each route; what changes most comes last.
fn requests() -> Vec<(&'static str, &'static str, Json)> {
    let vector = json!({ "query": { "vector": [0, 0, 0, 0] } });
    vec![
        ("/v1/collections", "GET", Json::Null),
        ("/v1/collections/{name}", "GET", Json::Null),
        ("/v1/collections/{name}/dead_letters", "GET", Json::Null),
        ("/v1/collections/{name}/search", "POST", vector),
        ("/v1/collections/{name}/scroll", "POST", json!({})),
        ("/v1/collections/{name}/count", "POST", json!({})),
        ("/v1/collections/{name}/facet", "POST", json!({ "column": "section" })),
        ("/v1/collections/{name}/rows/{key}", "GET", Json::Null),
        ("/v1/collections/{name}/recall", "POST", json!({ "sample": 5, "limit": 3 })),
        ("/v1/lsn", "GET", Json::Null),
        ("/v1/status", "GET", Json::Null),
        ("/metrics", "GET", Json::Null),
        ("/errors/{code}", "GET", Json::Null),
        ("/", "GET", Json::Null),
        ("/dashboard", "GET", Json::Null),
        ("/livez", "GET", Json::Null),
        ("/readyz", "GET", Json::Null),
        ("/version", "GET", Json::Null),
        ("/openapi.json", "GET", Json::Null),
        ("/docs", "GET", Json::Null),
        ("/v1/admin/collections/{name}/verify", "POST", json!({})),
        ("/v1/admin/collections/{name}/promote", "POST", json!({ "id": 1 })),
        ("/v1/admin/collections/{name}/compact", "POST", json!({})),
        ("/v1/admin/snapshots", "POST", json!({ "to": "{dir}" })),
        ("/v1/admin/collections/{name}/rebuild", "POST", json!({})),
    ]
}

/// Somebody: what they send, and what they get of routes for reading, of `/v1/admin/` and of figures, then of another
/// collection. 0 is a good answer.
struct Row(&'static str, String, [u16; 3], u16);

fn everybody(with: &Credentials) -> Vec<Row> {
    let all = "read admin metrics";
    let mut rows = vec![
        Row("read", with.key("read"), [0, 403, 403], 0),
        Row("admin", with.key("admin"), [403, 0, 403], 0),
        Row("metrics", with.key("metrics"), [403, 403, 0], 0),
        Row("all", with.key("all"), [0, 0, 0], 0),
        Row("api-key", format!("api-key: {}\r\n", with.keys["all"]), [0, 0, 0], 0),
        Row("one collection", with.key("docs"), [0, 0, 403], 404),
        Row("one tenant", with.key("tenant"), [0, 403, 403], 403),
        Row("token to read", with.bearer(json!({ "scope": "openid read" })), [0, 403, 403], 0),
        Row("token to do all", with.bearer(json!({ "scope": all })), [0, 0, 0], 0),
        Row("token without scope", with.bearer(json!({})), [403, 403, 403], 0),
        Row("token of a collection", with.bearer(json!({ "scope": all, "collections": ["docs"] })), [0, 0, 403], 404),
        Row("token of no collection", with.bearer(json!({ "scope": all, "collections": [] })), [404, 404, 403], 404),
        Row("token of a tenant", with.bearer(json!({ "scope": all, "filter": "tenant = 1" })), [0, 403, 403], 403),
    ];
    let named = |alg: &str| json!({ "alg": alg, "kid": "k" });
    let stranger = Credentials::new();
    let key = &with.keys["all"];
    for (who, headers) in [
        ("nobody", String::new()),
        ("a key that is none", format!("authorization: Bearer {}\r\n", generate())),
        ("part of a key", format!("authorization: Bearer {}\r\n", &key[..key.len() - 1])),
        ("more than a key", format!("authorization: Bearer {key}A\r\n")),
        ("the hash of a key", format!("authorization: Bearer {}\r\n", Hash::of(key))),
        ("no key", "authorization: Bearer \r\n".into()),
        ("another scheme", format!("authorization: Basic {key}\r\n")),
        ("two keys", format!("{}api-key: {key}\r\n", with.key("all"))),
        ("an expired key", with.key("expired")),
        ("an expired token", with.bearer(json!({ "scope": all, "exp": 1_600_000_000 }))),
        ("a token for ever", with.bearer(json!({ "scope": all, "exp": null }))),
        ("a token not valid yet", with.bearer(json!({ "scope": all, "nbf": 4_000_000_000_u64 }))),
        ("a token for others", with.bearer(json!({ "scope": all, "aud": "else" }))),
        ("a token of others", with.bearer(json!({ "scope": all, "iss": "https://else" }))),
        ("a token with another filter", with.bearer(json!({ "scope": all, "filter": ["tenant = 1"] }))),
        ("no algorithm", with.forged(named("none"))),
        ("the public key as a secret", with.forged(named("HS256"))),
        ("another key's name", with.forged(json!({ "alg": "EdDSA", "kid": "l" }))),
        ("another algorithm's name", with.forged(named("RS256"))),
        ("a stranger's token", stranger.forged(named("EdDSA"))),
        ("a stranger's key", stranger.key("all")),
    ] {
        rows.push(Row(who, headers, [401, 401, 401], 401));
    }
    rows
}

fn check_refusal(what: &str, answer: &Answer) {
    let json = answer.json();
    let (code, challenge) = match answer.status {
        401 => (["RV1501", "RV1502"], true),
        403 => (["RV1503", "RV1503"], true),
        404 => (["RV1101", "RV1101"], false),
        status => panic!("{what}: {status}"),
    };
    assert!(code.contains(&json["code"].as_str().expect("a code")), "{what}: {json:#}");
    let said = answer.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer realm=\"ruvector\""));
    assert_eq!(said, challenge, "{what}: {}", answer.head);
    assert_eq!(json["instance"].as_str(), answer.header("x-request-id").as_deref(), "{what}");
}

#[test]
fn every_route_answers_those_it_is_for_and_nobody_else() {
    let (database, with) = (database(), Credentials::new());
    let service = with.service(&database);
    let requests = requests();
    let paths = |paths: Vec<&'static str>| paths.into_iter().collect::<BTreeSet<_>>();
    let tested = paths(requests.iter().map(|(path, ..)| *path).collect());
    assert_eq!(tested, paths(ROUTES.iter().map(|route| route.path).collect()), "every route is in this test");
    let rows = everybody(&with);
    let snapshots = tempfile::tempdir().expect("a directory");
    let mut asked = 0;
    for (path, method, body) in &requests {
        let route = ROUTES.iter().find(|route| route.path == *path).expect("compared above");
        let body = if body.is_null() { String::new() } else { body.to_string() };
        for Row(who, headers, of_scope, elsewhere) in &rows {
            for collection in ["docs", "other"] {
                let wanted = match route.need {
                    None => 0,
                    Some(scope) => {
                        let of_scope = of_scope[Scope::ALL.iter().position(|one| *one == scope).expect("one of them")];
                        let is_held_back = who.contains("collection");
                        let one_of_all = of_scope == 404 && !path.contains("{name}");
                        let confined = who.ends_with("tenant") && !route.confined && of_scope == 0;
                        match (collection, path.contains("{name}")) {
                            // Of all collections.
                            _ if *path == "/v1/admin/snapshots" && matches!(of_scope, 0 | 404) && is_held_back => 403,
                            _ if one_of_all => 0,
                            _ if confined => 403,
                            ("other", true) if of_scope == 0 => *elsewhere,
                            _ => of_scope,
                        }
                    }
                };
                let confined_list = who.ends_with("tenant") && collection == "other";
                if confined_list && path.ends_with("{name}") {
                    // What it is made of may be seen; a filter that does not fit shows no row.
                    continue;
                }
                let path = path.replace("{name}", collection).replace("{code}", "RV1001").replace("{key}", "1");
                let dir = snapshots.path().join(asked.to_string());
                let body = body.replace("{dir}", dir.to_str().expect("text"));
                let answer = ask(&service, method, &path, headers, &body);
                let what = format!("{who}: {method} {path}");
                let good = matches!(answer.status, 200 | 202);
                if wanted == 0 {
                    assert!(good, "{what}: {}\n{}", answer.status, answer.text);
                } else {
                    assert_eq!(answer.status, wanted, "{what}: {}", answer.text);
                    if !answer.text.contains("RV1506") {
                        check_refusal(&what, &answer);
                    }
                }
                with.check_untold(&format!("{}{}", answer.head, answer.text), &what);
                asked += 1;
            }
        }
    }
    assert!(asked > 900, "{asked}");
    // What is no route is none for anybody, and a method that is none is refused behind the rest.
    assert_eq!(ask(&service, "GET", "/v1/else", "", "").status, 404);
    assert_eq!(ask(&service, "GET", "/v1/admin", "", "").status, 404);
    assert_eq!(ask(&service, "DELETE", "/v1/collections/docs", "", "").status, 401);
    assert_eq!(ask(&service, "DELETE", "/v1/collections/docs", &with.key("read"), "").status, 405);
    assert_eq!(ask(&service, "HEAD", "/v1/status", "", "").status, 401);
    with.check_untold(&service.log(), "the log");
    assert!(service.logged("an HTTP client was refused") > 100, "it is a log of all of this");
}

#[test]
fn what_is_hidden_looks_like_what_is_not_there() {
    let (database, with) = (database(), Credentials::new());
    let service = with.service(&database);
    let key = with.key("docs");
    let told = |name: &str| {
        let answer = ask(&service, "GET", &format!("/v1/collections/{name}"), &key, "");
        let mut json = answer.json();
        json.as_object_mut().expect("an object").remove("instance");
        (answer.status, json.to_string().replace(name, "NAME"))
    };
    let hidden = told("other");
    assert_eq!(hidden.0, 404);
    // One that is allowed and is not there, one that is neither, one with an escaped name.
    assert_eq!([told("nowhere"), told("neither"), told("%6Fther")].map(|one| one.0), [404; 3]);
    assert_eq!((told("nowhere"), told("neither")), (hidden.clone(), hidden.clone()));
    assert!(!hidden.1.contains("docs"), "no name is told: {}", hidden.1);
    let listed = ask(&service, "GET", "/v1/collections", &key, "").json();
    let names: Vec<_> = listed["collections"].as_array().expect("a list").iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["docs"]);
    let ready = ask(&service, "GET", "/readyz", "", "").json();
    assert_eq!(ready, json!({ "ready": true }));
}

/// Filters by which somebody may try to see more. Those that are no filter are refused.
const ATTEMPTS: [&str; 22] = [
    "tenant = 2",
    "tenant = 1 OR tenant = 2",
    "NOT tenant = 1",
    "NOT (tenant = 1)",
    "NOT NOT (tenant = 1 OR tenant <> 1)",
    "tenant IS NULL",
    "tenant IS NULL OR tenant IS NOT NULL",
    "tenant IN (1, 2)",
    "tenant NOT IN (1)",
    "tenant >= 0",
    "tenant BETWEEN 0 AND 9",
    "section = 's0' OR tenant = 2",
    "section = 's0' OR section <> 's0'",
    "tenant <> 1 OR section IS NOT NULL",
    "tenant = 1) OR (tenant = 2",
    "tenant = 1); SELECT (1",
    "tenant = 2 -- ",
    "tenant = 2 /* ",
    "true",
    "1 = 1",
    "section = '' OR 1=1 --'",
    "section = $1 OR tenant = 2",
];

#[test]
fn a_forced_filter_is_not_escaped() {
    let (database, with) = (database(), Credentials::new());
    let service = with.service(&database);
    let keys = [with.key("tenant"), with.bearer(json!({ "scope": "read", "filter": "tenant = 1" }))];
    let (own, all) = (own(), with.key("all"));
    let vector = json!({ "vector": [0.5, 0.5, 0.5, 0.5] });
    let numbers = |ids: &[Json]| ids.iter().map(|id| id.as_i64().expect("a number")).collect::<BTreeSet<_>>();
    let of_page = |json: &Json| {
        let rows = json["rows"]
            .as_array()
            .unwrap_or_else(|| panic!("no rows: {json:#}"))
            .iter()
            .map(|row| row["id"].clone())
            .collect::<Vec<_>>();
        numbers(&rows)
    };
    let (search, scroll, count) =
        ("/v1/collections/docs/search", "/v1/collections/docs/scroll", "/v1/collections/docs/count");
    let mut understood = 0;
    for key in &keys {
        for attempt in [None].into_iter().chain(ATTEMPTS.map(Some)) {
            for recheck in ["none", "exists", "exact"] {
                let mut page = json!({ "limit": 1000, "recheck": recheck, "columns": ["tenant"] });
                let mut same = json!({ "limit": 1000, "recheck": recheck, "filter": "tenant = 1" });
                if let Some(filter) = attempt {
                    page["filter"] = json!(filter);
                    same["filter"] = json!(format!("(tenant = 1) AND ({filter}\n)"));
                    if filter.contains("$1") {
                        (page["params"], same["params"]) = (json!(["s1"]), json!(["s1"]));
                    }
                }
                let what = format!("{attempt:?}, {recheck}");
                let rows = post(&service, key, scroll, &page);
                let mut wanted = page.clone();
                wanted["query"] = vector.clone();
                let hits = post(&service, key, search, &wanted);
                if rows.status == 400 {
                    assert_eq!(hits.status, 400, "{what}");
                    continue;
                }
                understood += 1;
                let found = of_page(&rows.json());
                assert!(found.is_subset(&own), "{what}: {found:?}");
                assert!(rows.json()["rows"].as_array().expect("rows").iter().all(|row| row["columns"]["tenant"] == 1));
                assert_eq!(found, of_page(&post(&service, &all, scroll, &same).json()), "{what}: as if asked for");
                let near = numbers(&ids(&hits.json()));
                assert!(
                    near.is_subset(&own)
                        && hits.json()["hits"]
                            .as_array()
                            .expect("hits")
                            .iter()
                            .all(|hit| hit["columns"]["tenant"] == 1),
                    "{what}"
                );
                let with_vector = found.iter().copied().filter(|id| *id <= 50).collect();
                assert_eq!(near, with_vector, "{what}");
                let counted = ["filter", "params"]
                    .into_iter()
                    .filter_map(|name| Some((name.to_owned(), page.get(name)?.clone())));
                let counted = post(&service, key, count, &Json::Object(counted.collect()));
                assert_eq!(counted.json()["count"], found.len(), "{what}");
                let mut shapes = vec![
                    json!({ "max_distance": 1e9 }),
                    json!({ "mmr": {} }),
                    json!({ "group_by": "tenant", "group_size": 50 }),
                ];
                shapes.push(json!({ "search": { "exact": true } }));
                for shape in &mut shapes {
                    shape["query"] = vector.clone();
                    shape["limit"] = json!(100);
                    if let Some(filter) = attempt {
                        shape["filter"] = json!(filter);
                        shape["params"] = page.get("params").cloned().unwrap_or(json!([]));
                    }
                }
                let batch = post(&service, key, search, &json!({ "searches": shapes }));
                assert_eq!(batch.status, 200, "{what}: {}", batch.text);
                for (answer, shape) in batch.json()["answers"].as_array().expect("answers").iter().zip(&shapes) {
                    let groups = answer["groups"].as_array().cloned().unwrap_or_default();
                    assert!(groups.iter().all(|group| group["value"] == 1), "{what}: {shape}: {groups:?}");
                    let near: BTreeSet<_> =
                        groups.iter().flat_map(|group| numbers(&ids(group))).chain(numbers(&ids(answer))).collect();
                    assert!(near.is_subset(&own), "{what}: {shape}: {near:?}");
                    assert!(answer["stats"]["reason"] == "" && answer["stats"]["visited"] == 0, "{what}: {answer}");
                }
            }
        }
    }
    assert!(understood > 2 * 3 * 10, "most of them are filters: {understood}");
    confined_beyond_filters(&service, &with);
    rows_that_change_hands(&database, &service, &with);
}

/// The index does not know yet that a row is somebody else's now. What is shown of it is not what that one wrote.
fn rows_that_change_hands(database: &Database, service: &Service, with: &Credentials) {
    let (key, all) = (with.key("tenant"), with.key("all"));
    let stopped = Stopped::new(database);
    database.sql.run("UPDATE docs SET tenant = 2, body = 'hidden' WHERE id = 1");
    let mut seen = 0;
    for recheck in ["none", "exists", "exact"] {
        for columns in [json!(["id", "tenant"]), json!(["body"])] {
            let mut body = json!({ "limit": 100, "recheck": recheck, "columns": columns });
            let scrolled = post(service, &key, "/v1/collections/docs/scroll", &body).text;
            let everything = post(service, &all, "/v1/collections/docs/scroll", &body).text;
            body["query"] = json!({ "vector": [0.5, 0.5, 0.5, 0.5] });
            let found = post(service, &key, "/v1/collections/docs/search", &body).text;
            let names: Vec<_> = columns.as_array().into_iter().flatten().filter_map(Json::as_str).collect();
            let row = format!("/v1/collections/docs/rows/1?columns={}&recheck={recheck}", names.join(","));
            let row = ask(service, "GET", &row, &key, "").text;
            for text in [&scrolled, &found, &row] {
                assert!(!text.contains("hidden") && !text.contains(r#""tenant":2"#), "{body}: {text}");
            }
            seen += usize::from(everything.contains("hidden"));
        }
    }
    assert_eq!(seen, 2, "whoever may see all rows was shown it: by `exists` and by `exact`");
    drop(stopped);
    let count = || post(service, &key, "/v1/collections/docs/count", &json!({})).json()["count"].clone();
    wait_until("the index knows", || count() == own().len() - 1);
    let by_row = post(service, &key, "/v1/collections/docs/search", &json!({ "query": { "id": 1 } }));
    assert_eq!(by_row.status, 404, "{}", by_row.text);
}

/// What shows something of rows without a filter: rows to search by, explanations, figures.
fn confined_beyond_filters(service: &Service, with: &Credentials) {
    let (key, search) = (with.key("tenant"), "/v1/collections/docs/search");
    let told = |query: Json| {
        let answer = post(service, &key, search, &json!({ "query": query }));
        (answer.status, answer.json()["code"].clone(), answer.json()["detail"].to_string())
    };
    assert_eq!(told(json!({ "id": 1 })).0, 200);
    assert_eq!(told(json!({ "recommend": { "positive": [1, 3], "negative": [5] } })).0, 200);
    for row in [2, 10, 4711] {
        let mut queries = vec![json!({ "id": row })];
        queries.push(json!({ "recommend": { "positive": [1, row] } }));
        queries.push(json!({ "recommend": { "positive": [1], "negative": [row] } }));
        for query in queries {
            let (status, code, detail) = told(query.clone());
            assert_eq!(
                (status, code, detail.replace(&row.to_string(), "N")),
                (404, json!("RV1011"), told(json!({ "id": 9999 })).2.replace("9999", "N")),
                "{query}"
            );
        }
    }
    // A facet counts its own rows, and a row of others is not there, however it is looked at.
    let facet = post(service, &key, "/v1/collections/docs/facet", &json!({ "column": "tenant" })).json();
    assert_eq!(
        (&facet["facets"], &facet["total"]),
        (&json!([{ "value": 1, "count": own().len() }]), &json!(own().len()))
    );
    let row = |row: i64, rest: &str| ask(service, "GET", &format!("/v1/collections/docs/rows/{row}{rest}"), &key, "");
    for rest in ["", "?recheck=none", "?recheck=exact", "?columns=body&recheck=exists", "?columns=body&recheck=exact"] {
        assert_eq!(row(1, rest).status, 200, "{rest}: {}", row(1, rest).text);
        for other in [2, 10, 4711] {
            let answer = row(other, rest);
            assert_eq!(
                (answer.status, &answer.json()["code"]),
                (404, &json!("RV1011")),
                "{other}{rest}: {}",
                answer.text
            );
        }
    }
    // Pages of a search belong together though nobody sent the filter.
    let (mut body, mut found) =
        (json!({ "query": { "vector": [0.5, 0.5, 0.5, 0.5] }, "limit": 7, "search": { "exact": true } }), Vec::new());
    loop {
        let page = post(service, &key, search, &body);
        assert_eq!(page.status, 200, "{}", page.text);
        found.extend(ids(&page.json()).iter().map(|id| id.as_i64().expect("a number")));
        match &page.json()["next"] {
            Json::Null => break,
            next => body["after"] = next.clone(),
        }
    }
    let with_vectors: BTreeSet<_> = own().into_iter().filter(|id| *id <= 50).collect();
    assert_eq!((found.len(), found.into_iter().collect::<BTreeSet<_>>()), (with_vectors.len(), with_vectors));
    let explained = post(service, &key, search, &json!({ "query": { "id": 1 }, "explain": true }));
    assert_eq!((explained.status, &explained.json()["code"]), (403, &json!("RV1503")));
    let shown = ask(service, "GET", "/v1/collections/docs", &key, "").json();
    let listed = ask(service, "GET", "/v1/collections", &key, "").json();
    let docs =
        listed["collections"].as_array().expect("a list").iter().find(|one| one["name"] == "docs").expect("docs");
    let schemas = ask(service, "GET", "/openapi.json", "", "").json()["components"]["schemas"].take();
    for shown in [&shown, docs] {
        assert!(shown["name"] == "docs" && shown["vectors"][0]["name"] == "embedding", "{shown}");
        for hidden in ["rows", "dead_letters", "graph_writes"] {
            assert!(shown.get(hidden).is_none() && shown["vectors"][0].get("nodes").is_none(), "{shown}");
        }
        let told = |json: &Json| json.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(told(shown), told(&schemas["CollectionInPart"]["properties"]), "as the document says, and no more");
        assert_eq!(told(&shown["vectors"][0]), told(&schemas["VectorInPart"]["properties"]));
    }
    let facets = post(service, &key, "/v1/collections/docs/facet", &json!({ "column": "tenant" })).json();
    assert_eq!((&facets["distinct"], &facets["facets"]), (&json!(1), &json!([{ "value": 1, "count": own().len() }])));
    for (row, status) in [(1, 200), (2, 404), (10, 404)] {
        let path = format!("/v1/collections/docs/rows/{row}?columns=body");
        assert_eq!(ask(service, "GET", &path, &key, "").status, status, "{path}");
    }
    // A filter that does not fit lets nothing through, and does not become none.
    for path in ["search", "scroll", "count", "facet"] {
        let body = match path {
            "search" => json!({ "query": { "id": 1 } }),
            "facet" => json!({ "column": "section" }),
            _ => json!({}),
        };
        let answer = post(service, &with.key("misfit"), &format!("/v1/collections/docs/{path}"), &body);
        assert_eq!((answer.status, &answer.json()["code"]), (403, &json!("RV1506")), "{path}");
    }
    let pages = (1..).scan(Some(json!({ "limit": 7 })), |body, _| {
        let page = post(service, &key, "/v1/collections/docs/scroll", body.as_ref()?).json();
        *body = (!page["next"].is_null()).then(|| json!({ "limit": 7, "after": page["next"] }));
        Some(page)
    });
    let rows: Vec<_> = pages.flat_map(|page| page["rows"].as_array().cloned().unwrap_or_default()).collect();
    assert_eq!(rows.iter().map(|row| row["id"].as_i64().expect("a number")).collect::<BTreeSet<_>>(), own());
}

#[test]
fn keys_change_while_it_runs_and_requests_are_named_and_counted() {
    let (database, with) = (database(), Credentials::new());
    let service = &mut with.service(&database);
    let list = |service: &Service, headers: &str| ask(service, "GET", "/v1/collections", headers, "");
    // A rate: what is left is told, and how long to wait.
    let first = list(service, &with.key("rated"));
    assert_eq!((first.status, first.header("ratelimit-remaining").as_deref()), (200, Some("0")), "{}", first.head);
    let second = list(service, &with.key("rated"));
    assert_eq!((second.status, &second.json()["code"]), (429, &json!("RV1504")));
    let wait: u64 = second.header("retry-after").expect("told").parse().expect("seconds");
    assert!((50..=100).contains(&wait) && second.header("ratelimit-limit").as_deref() == Some("1"), "{}", second.head);
    assert_eq!(list(service, &with.key("read")).status, 200, "others are not held up");
    // Names of requests.
    let named = list(service, "x-request-id: from-the-client\r\n");
    assert_eq!(named.header("x-request-id").as_deref(), Some("from-the-client"));
    assert_eq!(named.json()["instance"], "from-the-client");
    assert!(service.logged("from-the-client") > 0);
    let renamed = list(service, "x-request-id: a b\tc\r\n");
    assert_eq!(renamed.header("x-request-id").map(|name| name.len()), Some(32), "{}", renamed.head);
    // A second hash, then the first one goes.
    let (old, new) = (with.keys["read"].clone(), generate());
    let bearer = |key: &str| format!("authorization: Bearer {key}\r\n");
    let file = service.config_file();
    let text = std::fs::read_to_string(&file).expect("its file");
    let hash = Hash::of(&old).to_string();
    std::fs::write(&file, text.replace(&format!("'{hash}'"), &format!("'{hash}', '{}'", Hash::of(&new))))
        .expect("written");
    assert_eq!(list(service, &bearer(&new)).status, 401);
    service.hang_up();
    wait_until("the new key is known", || list(service, &bearer(&new)).status == 200);
    assert_eq!(list(service, &bearer(&old)).status, 200, "both are good");
    std::fs::write(&file, text.replace(&hash, &Hash::of(&new).to_string())).expect("written");
    service.hang_up();
    wait_until("the old key is gone", || list(service, &bearer(&old)).status == 401);
    assert_eq!(list(service, &bearer(&new)).status, 200);
    // Without any keys it does not open.
    std::fs::write(&file, text.split("[http.keys").next().expect("a part")).expect("written");
    service.hang_up();
    wait_until("it says so", || service.logged("those before still hold") > 0);
    assert_eq!((list(service, "").status, list(service, &bearer(&new)).status), (401, 200));
    // A file that is none leaves them as well.
    std::fs::write(&file, format!("{text}[http.keys.broken]\nhash = ['{new}']\nscopes = ['read']\n")).expect("written");
    service.hang_up();
    wait_until("it says so", || service.logged("the configuration is not taken over") > 0);
    assert_eq!(list(service, &bearer(&new)).status, 200);
    let status = ask(service, "GET", "/v1/status", &with.key("metrics"), "").text;
    for text in [&service.log(), &status] {
        with.check_untold(text, "the log or the status");
        assert!(!text.contains(&new) && !text.contains(&Hash::of(&new).to_string()) && !text.contains(&hash));
    }
}

#[test]
fn it_starts_securely_or_not_at_all_and_the_command_line_comes_in() {
    let (database, with) = (database(), Credentials::new());
    let mut service = Service::configured(&database, "", COLLECTIONS);
    service.set_environment("RUVECTOR__HTTP__LISTEN", Some("0.0.0.0:0".into()));
    let why = service.refusal();
    assert!(why.contains("no authentication") && why.contains("ruvector key new"), "{why}");
    service.set_environment("RUVECTOR__HTTP__INSECURE", Some("true".into()));
    service.start();
    assert!(service.logged("http.insecure: ") == 1, "it warns:\n{}", service.log_tail());
    service.terminate();
    service.set_environment("RUVECTOR__HTTP__INSECURE", None);
    service.configure(&database.dsn, "", &format!("{COLLECTIONS}{}", with.sections));
    let why = service.refusal();
    assert!(why.contains("unencrypted") && why.contains("http.tls_cert"), "{why}");
    let dir = service.data_dir().with_file_name("tls");
    std::fs::create_dir(&dir).expect("a folder");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (dir.join("c.pem"), dir.join("k.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    service.set_environment("RUVECTOR__HTTP__TLS_CERT", Some(cert.display().to_string()));
    service.set_environment("RUVECTOR__HTTP__TLS_KEY", Some(key.display().to_string()));
    service.set_environment("RUVECTOR__HTTP__ADMIN_LISTEN", Some("127.0.0.1:0".into()));
    service.set_environment("RUVECTOR__HTTP__REQUEST_TIMEOUT_S", Some("3".into()));
    service.start();
    let port = |url: &str| url.rsplit_once(':').expect("a port").1.to_owned();
    let (url, admin) = (service.url().to_owned(), service.admin_url().to_owned());
    assert!(url.starts_with("https://0.0.0.0:") && admin.starts_with("https://127.0.0.1:"), "{url} {admin}");
    let target = |url: &str, key: Option<&str>, ca: bool| Target {
        url: format!("https://localhost:{}", port(url)),
        key: key.map(|name| with.keys[name].clone()),
        ca: Some(cert.clone()).filter(|_| ca),
        cert: None,
        cert_key: None,
    };
    let client = |url: &str, key: Option<&str>| Client::of(&target(url, key, true)).expect("a client");
    wait_until("it is ready", || client(&url, None).get("/readyz").is_ok_and(|ready| ready["ready"] == true));
    assert!(format!("{:#}", client(&url, None).get("/v1/collections").expect_err("nobody")).contains("RV1501"));
    client(&url, Some("read")).get("/v1/collections").expect("it may");
    let stranger = Client::of(&target(&url, Some("read"), false)).expect("a client");
    assert!(stranger.get("/v1/collections").is_err(), "the system does not know the certificate");
    let never = json!({ "query": { "id": 1 }, "consistency": { "at_least": "FFFFFFFF/0", "timeout_ms": 60_000 } });
    let late = client(&url, Some("read")).post("/v1/collections/docs/search", &never).expect_err("given up");
    assert!(format!("{late:#}").contains("RV1505"), "{late:#}");
    let compact = "/v1/admin/collections/docs/compact";
    let elsewhere = client(&url, Some("all")).post(compact, &json!({})).expect_err("not here");
    assert!(format!("{elsewhere:#}").contains("RV1102"), "{elsewhere:#}");
    client(&admin, Some("all")).post(compact, &json!({})).expect("here");
    client(&admin, Some("read")).get("/v1/collections").expect("this too");
    let run = |arguments: &[&str], name: &str| {
        let target = target(&admin, Some(name), true);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ruvector"));
        command.args(arguments).env("RUVECTOR_URL", target.url).env("RUVECTOR_CA", &cert);
        let output = command.env("RUVECTOR_KEY", target.key.expect("a key")).output().expect("it runs");
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    for arguments in [&["search", "docs", "--id", "1"][..], &["verify", "docs"], &["status"], &["compact", "docs"]] {
        let (success, said) = run(arguments, "all");
        assert!(success, "{arguments:?}: {said}");
    }
    let (success, said) = run(&["verify", "docs"], "read");
    assert!(!success && said.contains("RV1503"), "{said}");
    with.check_untold(&said, "the command line");
    let (_, help) = run(&["search", "--help"], "all");
    with.check_untold(&help, "the help");
    // A new key works as it is printed.
    let (success, printed) = run(&["key", "new", "--name", "later"], "all");
    let (made, lines) = printed.split_once("\n\n").expect("the key, and the lines");
    assert!(success && lines.contains("[http.keys.later]") && !lines.contains(made), "{printed}");
    let text = std::fs::read_to_string(service.config_file()).expect("its file");
    std::fs::write(service.config_file(), format!("{text}{lines}")).expect("written");
    service.hang_up();
    let target = Target { key: Some(made.to_owned()), ..target(&url, None, true) };
    let later = Client::of(&target).expect("a client");
    wait_until("the printed key is good", || later.get("/v1/collections").is_ok());
    // Certificates of clients: asked for before anything else, and keys beside them.
    service.terminate();
    service.set_environment("RUVECTOR__HTTP__CLIENT_CA", Some(cert.display().to_string()));
    service.start();
    let bare = Target { url: format!("https://localhost:{}", port(service.url())), ..target };
    let shown = Target { cert: Some(cert.clone()), cert_key: Some(key.clone()), ..bare.clone() };
    let keyless = Target { key: None, ..shown.clone() };
    let get = |target: &Target, path: &str| Client::of(target).expect("a client").get(path);
    wait_until("it is ready", || get(&keyless, "/readyz").is_ok_and(|ready| ready["ready"] == true));
    get(&shown, "/v1/collections").expect("it has both");
    assert!(get(&bare, "/readyz").is_err(), "without a certificate");
    assert!(format!("{:#}", get(&keyless, "/v1/collections").expect_err("without a key")).contains("RV1501"));
}

#[test]
fn what_another_sites_page_has_a_browser_send_is_refused() {
    let database = database();
    let service = Service::ready(&database, COLLECTIONS);
    let rebuild = "/v1/admin/collections/docs/rebuild";
    let before = service.collection("docs")["copied_at"].clone();
    for headers in ["origin: http://evil.example\r\n", "origin: null\r\n", "sec-fetch-site: cross-site\r\n"] {
        let answer = ask(&service, "POST", rebuild, headers, "");
        assert_eq!((answer.status, answer.json()["code"].as_str()), (403, Some("RV1507")), "{headers}");
    }
    assert_eq!(service.collection("docs")["copied_at"], before);
    // A name of somebody's that leads here: even what answers anybody else does not answer.
    for (path, host) in
        [("/v1/collections", "evil.example"), ("/", "evil.example:8480"), ("/livez", "ruvector.internal")]
    {
        use std::io::{Read, Write};
        let address = service.url().strip_prefix("http://").expect("plain HTTP");
        let mut stream = std::net::TcpStream::connect(address).expect("it listens");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("RV1507"), "{host}: {answer}");
    }
    // Programs, and its own page.
    for headers in ["", "sec-fetch-site: same-origin\r\norigin: http://127.0.0.1\r\n", "origin: http://127.0.0.1\r\n"] {
        assert_eq!(ask(&service, "POST", rebuild, headers, "").status, 202, "{headers}");
    }
}

#[test]
fn a_reload_says_what_it_took_and_what_waits_for_a_start() {
    let database = database();
    let mut service = Service::ready(&database, COLLECTIONS);
    let results = |service: &Service| {
        ["taken", "partly", "refused"]
            .map(|result| service.metric(&format!("ruvector_config_reloads_total{{result=\"{result}\"}}")))
    };
    assert_eq!(results(&service), [0.0; 3], "they are there from the start");
    let again = |service: &mut Service, sections: &str, wanted: [f64; 3]| {
        service.configure(&database.dsn, "", &format!("{COLLECTIONS}{sections}"));
        service.hang_up();
        service.wait_for("it is read", |service| results(service) == wanted);
    };
    again(&mut service, "[log]\nlevel = \"debug\"\n", [1.0, 0.0, 0.0]);
    assert_eq!(service.logged("hold from the next start on"), 0);
    service.wait_for("logs are of the new level", |service| {
        ask(service, "POST", "/v1/collections/docs/count", "origin: null\r\n", "{}");
        service.logged(" DEBUG ") > 0
    });
    again(&mut service, "[search]\ndefault_ef = 77\n[doctor]\ninterval_s = 5\n", [1.0, 1.0, 0.0]);
    let line = |service: &Service| {
        service.log().lines().find(|line| line.contains("hold from the next start on")).map(str::to_owned)
    };
    let told = line(&service).expect("a warning");
    assert!(told.contains("doctor.interval_s, search.default_ef") && !told.contains("log.level"), "{told}");
    again(&mut service, "[log]\nlevel = \"loud\"\n", [1.0, 1.0, 1.0]);
    assert!(service.log().contains("is no level"), "{}", service.log_tail());
    again(&mut service, "", [2.0, 1.0, 1.0]);
    service.terminate();
}
