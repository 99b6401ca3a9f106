//! Requests that are wrong, each with the answer it must get: over real HTTP, against the real binary. None may be
//! answered with a server error, and the service lives on after all of them.

mod support;

use serde_json::{Value as Json, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use support::{Database, Service, ids, near};

const COLLECTIONS: &str = "[http]
max_body_bytes = 20000
[[collections]]
table = \"public.docs\"
name = \"docs\"
filter_columns = [\"section\", \"price\", \"day\", \"flag\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
[[collections]]
table = \"public.pairs\"
[[collections.vectors]]
column = \"embedding\"
[[collections]]
table = \"public.named\"
[[collections.vectors]]
column = \"embedding\"
[[collections]]
table = \"public.small\"
[[collections.vectors]]
column = \"embedding\"
";

fn service() -> (Database, Service) {
    let database = Database::shared();
    database.sql.run(
        "CREATE TABLE docs (id bigint PRIMARY KEY, section text, price float8, day date, flag bool, body text, embedding real[]);
         INSERT INTO docs SELECT i, 's', i, '2024-01-01', true, 'b', vec(i, 4) FROM generate_series(1, 50) i;
         INSERT INTO docs VALUES (100, 's', 1, NULL, NULL, 'b', NULL), (101, 's', 1, NULL, NULL, 'b', '{1,2}');
         CREATE TABLE pairs (a int, b text, embedding real[], PRIMARY KEY (a, b));
         INSERT INTO pairs VALUES (1, 'x', '{1,2}');
         CREATE TABLE named (id uuid PRIMARY KEY, embedding real[]);
         INSERT INTO named VALUES ('00000000-0000-0000-0000-000000000001', '{1,2}');
         CREATE TABLE small (id smallint PRIMARY KEY, embedding real[]);
         INSERT INTO small VALUES (1, '{1,2}')",
    );
    // The section of this file would be a second one of that name.
    let service = Service::configured(&database, "", "");
    let file = service.data_dir().with_file_name("ruvector.toml");
    let text = std::fs::read_to_string(&file).expect("just written");
    let text = text.replace("[http]\n", "").replace("listen = \"127.0.0.1:0\"\n", "");
    let sections = COLLECTIONS.replace("[http]\n", "[http]\nlisten = \"127.0.0.1:0\"\n");
    std::fs::write(&file, text + &sections).expect("writable");
    let mut service = service;
    service.start();
    service.wait_ready();
    (database, service)
}

/// Status, headers and body of one raw request.
fn raw(service: &Service, request: &[u8]) -> (u16, String, Vec<u8>) {
    let address = service.url().strip_prefix("http://").expect("plain HTTP");
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
    // Where the answer comes before the whole request is read, writing the rest may fail.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer to {:?}", String::from_utf8_lossy(request)));
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head, answer[end + 4..].to_vec())
}

fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// Checks one answer: the status and code of our table, problem+json, a hint where one is promised.
fn check(service: &Service, what: &str, request: &[u8], status: u16, code: &str, hint: bool) {
    let (found, head, body) = raw(service, request);
    let text = String::from_utf8_lossy(&body);
    assert_eq!(found, status, "{what}: {head}\n{text}");
    assert!(head.contains("content-type: application/problem+json"), "{what}: {head}\n{text}");
    let json: Json = serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{what}: {error}: {text}"));
    assert_eq!((&json["code"], &json["status"]), (&json!(code), &json!(status)), "{what}: {json:#}");
    assert_eq!(json["type"], format!("/errors/{code}"), "{what}");
    assert!(json["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{what}: {json:#}");
    assert!(!hint || json["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{what} has no hint: {json:#}");
}

const V: &str = r#""query":{"vector":[1,2,3,4]}"#;

#[test]
fn what_is_wrong_with_a_search_is_told() {
    let (_database, service) = service();
    let many = format!(r#"{{{V},"columns":[{}"body"]}}"#, "\"body\",".repeat(1600));
    let long = format!(r#"{{"query":{{"vector":[{}1]}}}}"#, "1,".repeat(5000));
    let deep = format!(r#"{{"query":{{"id":{}{}}}}}"#, "[".repeat(5000), "]".repeat(5000));
    let nested = format!(r#"{{{V},"filter":"{}price=1{}"}}"#, "(".repeat(3000), ")".repeat(3000));
    let nots = format!(r#"{{{V},"filter":"{}flag"}}"#, "NOT ".repeat(3000));
    let ands = format!(r#"{{{V},"filter":"{}price=1"}}"#, "price=1 AND ".repeat(1500));
    let json_nots = |levels: usize| format!("{}{{}}{}", "{\"$not\":".repeat(levels), "}".repeat(levels));
    let levels = format!(r#"{{{V},"filter":{}}}"#, json_nots(101));
    let thousands = format!(r#"{{{V},"filter":{}}}"#, json_nots(1500));
    let examples = format!(r#"{{"query":{{"recommend":{{"positive":[{}1]}}}}}}"#, "1,".repeat(256));
    let batch = format!(r#"{{"searches":[{}{{{V}}}]}}"#, format!("{{{V}}},").repeat(256));
    let rows = format!(r#"{{"searches":[{}{{{V}}}]}}"#, format!(r#"{{{V},"limit":9999}},"#).repeat(11));
    // What, body, status, code, hint promised.
    let mut cases: Vec<(&str, String, u16, &str, bool)> = Vec::new();
    let mut case = |what: &'static str, body: &str, status: u16, code: &'static str, hint: bool| {
        cases.push((what, body.replace("$V", V), status, code, hint));
    };
    case("empty body", "", 400, "RV1001", true);
    case("no object", "[]", 400, "RV1001", true);
    case("null", "null", 400, "RV1001", true);
    case("cut short", r#"{"query":{"vector":[1,2"#, 400, "RV1001", true);
    case("two objects", r#"{$V}{$V}"#, 400, "RV1001", true);
    case("no query", "{}", 400, "RV1001", true);
    case("empty query", r#"{"query":{}}"#, 400, "RV1001", true);
    case("query is null", r#"{"query":null}"#, 400, "RV1001", true);
    case("query is a list", r#"{"query":[1,2,3,4]}"#, 400, "RV1001", true);
    case("vector and id", r#"{"query":{"vector":[1,2,3,4],"id":1}}"#, 400, "RV1001", true);
    case("id is null", r#"{"query":{"id":null}}"#, 400, "RV1001", true);
    case("the same field twice", r#"{$V,$V}"#, 400, "RV1001", true);
    case("unknown field", r#"{$V,"k":3}"#, 400, "RV1002", true);
    case("unknown field of query", r#"{"query":{"vector":[1,2,3,4],"k":3}}"#, 400, "RV1002", true);
    case("unknown field of search", r#"{$V,"search":{"probes":3}}"#, 400, "RV1002", true);
    case("unknown field of consistency", r#"{$V,"consistency":{"after":"0/1"}}"#, 400, "RV1002", true);
    case("unknown recheck", r#"{$V,"recheck":"maybe"}"#, 400, "RV1001", true);
    case("three dimensions", r#"{"query":{"vector":[1,2,3]}}"#, 400, "RV1003", true);
    case("no dimensions", r#"{"query":{"vector":[]}}"#, 400, "RV1003", true);
    case("5001 dimensions", &long, 400, "RV1003", true);
    case("text in the vector", r#"{"query":{"vector":[1,2,3,"4"]}}"#, 400, "RV1001", true);
    case("null in the vector", r#"{"query":{"vector":[1,2,3,null]}}"#, 400, "RV1001", true);
    case("a matrix", r#"{"query":{"vector":[[1,2],[3,4]]}}"#, 400, "RV1001", true);
    case("NaN", r#"{"query":{"vector":[1,2,3,NaN]}}"#, 400, "RV1001", true);
    case("1e39", r#"{"query":{"vector":[1,2,3,1e39]}}"#, 400, "RV1004", false);
    case("-1e308", r#"{"query":{"vector":[1,2,3,-1e308]}}"#, 400, "RV1004", false);
    case("1e400", r#"{"query":{"vector":[1,2,3,1e400]}}"#, 400, "RV1001", true);
    case("limit 0", r#"{$V,"limit":0}"#, 400, "RV1005", false);
    case("limit 10001", r#"{$V,"limit":10001}"#, 400, "RV1005", false);
    case("the largest limit", r#"{$V,"limit":18446744073709551615}"#, 400, "RV1005", false);
    case("a larger limit", r#"{$V,"limit":18446744073709551616}"#, 400, "RV1001", true);
    case("limit -1", r#"{$V,"limit":-1}"#, 400, "RV1001", true);
    case("limit 1.5", r#"{$V,"limit":1.5}"#, 400, "RV1001", true);
    case("limit as text", r#"{$V,"limit":"10"}"#, 400, "RV1001", true);
    case("limit null", r#"{$V,"limit":null}"#, 400, "RV1001", true);
    case("ef 0", r#"{$V,"search":{"ef":0}}"#, 400, "RV1006", false);
    case("ef 100001", r#"{$V,"search":{"ef":100001}}"#, 400, "RV1006", false);
    case("the largest ef", r#"{$V,"search":{"ef":18446744073709551615}}"#, 400, "RV1006", false);
    case("exact is no boolean", r#"{$V,"search":{"exact":1}}"#, 400, "RV1001", true);
    case("empty filter", r#"{$V,"filter":""}"#, 400, "RV1007", false);
    case("half a filter", r#"{$V,"filter":"price >"}"#, 400, "RV1007", false);
    case("a statement", r#"{$V,"filter":"1=1; DROP TABLE docs"}"#, 400, "RV1007", false);
    case("a subquery", r#"{$V,"filter":"price = (SELECT 1)"}"#, 400, "RV1007", false);
    case("a function", r#"{$V,"filter":"price = pg_sleep(9)"}"#, 400, "RV1007", false);
    case("unknown filter column", r#"{$V,"filter":"colour = 'red'"}"#, 400, "RV1007", true);
    case("a column that is not replicated", r#"{$V,"filter":"body = 'b'"}"#, 400, "RV1007", true);
    case("wrong type", r#"{$V,"filter":"price = 'many'"}"#, 400, "RV1007", false);
    case("no date", r#"{$V,"filter":"day = '2024-02-30'"}"#, 400, "RV1007", false);
    case("a parameter that is missing", r#"{$V,"filter":"price = $1"}"#, 400, "RV1007", false);
    case("parameter 0", r#"{$V,"filter":"price = $0","params":[1]}"#, 400, "RV1007", false);
    case("a parameter that is an object", r#"{$V,"filter":"price = $1","params":[{}]}"#, 400, "RV1007", false);
    case("params without filter", r#"{$V,"params":[1]}"#, 400, "RV1001", false);
    case("params that are no list", r#"{$V,"filter":"price=$1","params":1}"#, 400, "RV1001", true);
    case("3000 parentheses", &nested, 400, "RV1007", false);
    case("3000 NOTs", &nots, 400, "RV1007", false);
    case("a zero byte in the filter", r#"{$V,"filter":"section = 'a\u0000b'"}"#, 400, "RV1007", false);
    case("a filter that is a number", r#"{$V,"filter":5}"#, 400, "RV1001", true);
    case("a filter that is a list", r#"{$V,"filter":[{"price":1}]}"#, 400, "RV1001", true);
    case("a JSON filter's field twice", r#"{$V,"filter":{"price":1,"price":2}}"#, 400, "RV1001", true);
    case("a JSON filter with params", r#"{$V,"filter":{"price":1},"params":[1]}"#, 400, "RV1007", true);
    case("a JSON filter's unknown column", r#"{$V,"filter":{"colour":"red"}}"#, 400, "RV1007", true);
    case("a JSON filter's unknown operator", r#"{$V,"filter":{"price":{"$regex":"x"}}}"#, 400, "RV1007", true);
    case("a JSON filter's wrong type", r#"{$V,"filter":{"$or":[{"price":{"$lt":"many"}}]}}"#, 400, "RV1007", false);
    case("a JSON filter of 101 levels", &levels, 400, "RV1007", false);
    case("a JSON filter of 3000 levels", &thousands, 400, "RV1001", true);
    case("a recheck that is a number", r#"{$V,"recheck":5}"#, 400, "RV1001", true);
    case("a recheck as nobody", r#"{$V,"recheck":"role:"}"#, 400, "RV1001", true);
    case("a recheck as a role that is not listed", r#"{$V,"recheck":"role:postgres"}"#, 403, "RV1026", true);
    case("a role and no recheck", r#"{$V,"recheck":{"as_role":"x","mode":"none"}}"#, 400, "RV1001", true);
    case("settings without a role", r#"{$V,"recheck":{"settings":{"a.b":"1"}}}"#, 400, "RV1001", true);
    case("a setting that is a number", r#"{$V,"recheck":{"as_role":"x","settings":{"a.b":1}}}"#, 400, "RV1001", true);
    case("unknown field of recheck", r#"{$V,"recheck":{"role":"x"}}"#, 400, "RV1002", true);
    case("a cursor that is none", r#"{$V,"after":"x"}"#, 400, "RV1027", true);
    case("a cursor that is a number", r#"{$V,"after":1}"#, 400, "RV1001", true);
    case("a cursor beside searches", r#"{"after":"x","searches":[{$V}]}"#, 400, "RV1001", true);
    case("unknown column", r#"{$V,"columns":["colour"]}"#, 400, "RV1008", true);
    case("unknown column, not rechecked", r#"{$V,"columns":["body"],"recheck":"none"}"#, 400, "RV1008", true);
    case("an expression for a column", r#"{$V,"columns":["id, (SELECT 1)"]}"#, 400, "RV1008", true);
    case("a quote in a column", r#"{$V,"columns":["a\"b"]}"#, 400, "RV1008", true);
    case("an empty column", r#"{$V,"columns":[""]}"#, 400, "RV1008", true);
    case("a zero byte in a column", r#"{$V,"columns":["a\u0000b"]}"#, 400, "RV1008", true);
    case("half a surrogate in a column", r#"{$V,"columns":["\ud800"]}"#, 400, "RV1001", true);
    case("1601 columns", &many, 400, "RV1001", true);
    case("columns that are no list", r#"{$V,"columns":"id"}"#, 400, "RV1001", true);
    case("unknown vector column", r#"{"query":{"vector":[1,2,3,4],"using":"other"}}"#, 400, "RV1008", true);
    case("using is no vector column", r#"{"query":{"vector":[1,2,3,4],"using":"body"}}"#, 400, "RV1008", true);
    case("id as text that is no number", r#"{"query":{"id":"one"}}"#, 400, "RV1009", true);
    case("id with a fraction", r#"{"query":{"id":1.5}}"#, 400, "RV1009", true);
    case("id too large", r#"{"query":{"id":9223372036854775808}}"#, 400, "RV1009", true);
    case("id is a list", r#"{"query":{"id":[1]}}"#, 400, "RV1009", true);
    case("id is a boolean", r#"{"query":{"id":true}}"#, 400, "RV1009", true);
    case("id names another column", r#"{"query":{"id":{"key":1}}}"#, 400, "RV1009", true);
    case("id names one column more", r#"{"query":{"id":{"id":1,"b":2}}}"#, 400, "RV1009", true);
    case("a row that is not there", r#"{"query":{"id":999}}"#, 404, "RV1011", false);
    case("a row without a vector", r#"{"query":{"id":100}}"#, 422, "RV1012", true);
    case("a row with a bad vector", r#"{"query":{"id":101}}"#, 422, "RV1012", true);
    case("no LSN", r#"{$V,"consistency":{"at_least":"now"}}"#, 400, "RV1010", false);
    case("half an LSN", r#"{$V,"consistency":{"at_least":"16/"}}"#, 400, "RV1010", false);
    case("a long LSN", r#"{$V,"consistency":{"at_least":"123456789/0"}}"#, 400, "RV1010", false);
    case("an LSN that is a number", r#"{$V,"consistency":{"at_least":16}}"#, 400, "RV1001", true);
    case("a wait of an hour", r#"{$V,"consistency":{"timeout_ms":3600000}}"#, 400, "RV1001", false);
    case("a negative wait", r#"{$V,"consistency":{"timeout_ms":-1}}"#, 400, "RV1001", true);
    case("null for a distance", r#"{$V,"max_distance":null}"#, 400, "RV1001", true);
    case("a distance as text", r#"{$V,"max_distance":"0.5"}"#, 400, "RV1001", true);
    case("a distance of 1e400", r#"{$V,"max_distance":1e400}"#, 400, "RV1001", true);
    case("no such column to group by", r#"{$V,"group_by":"colour"}"#, 400, "RV1008", true);
    case("a column to group by that is not replicated", r#"{$V,"group_by":"body"}"#, 400, "RV1008", true);
    case("group_size without group_by", r#"{$V,"group_size":2}"#, 400, "RV1001", true);
    case("groups of none", r#"{$V,"group_by":"section","group_size":0}"#, 400, "RV1022", true);
    case("groups of 101", r#"{$V,"group_by":"section","group_size":101}"#, 400, "RV1022", true);
    case("too many rows in groups", r#"{$V,"group_by":"section","group_size":100,"limit":101}"#, 400, "RV1022", true);
    case("groups of diverse rows", r#"{$V,"group_by":"section","mmr":{}}"#, 400, "RV1022", true);
    case("lambda 1.1", r#"{$V,"mmr":{"lambda":1.1}}"#, 400, "RV1023", true);
    case("lambda -0.1", r#"{$V,"mmr":{"lambda":-0.1}}"#, 400, "RV1023", true);
    case("fewer candidates than rows", r#"{$V,"limit":20,"mmr":{"candidates":19}}"#, 400, "RV1023", true);
    case("1001 candidates", r#"{$V,"mmr":{"candidates":1001}}"#, 400, "RV1023", true);
    case("more diverse rows than can be weighed", r#"{$V,"limit":1001,"mmr":{}}"#, 400, "RV1023", true);
    case("unknown field of mmr", r#"{$V,"mmr":{"k":1}}"#, 400, "RV1002", true);
    case("mmr is null", r#"{$V,"mmr":null}"#, 400, "RV1001", true);
    case("explain is no boolean", r#"{$V,"explain":1}"#, 400, "RV1001", true);
    case(
        "examples beside a vector",
        r#"{"query":{"vector":[1,2,3,4],"recommend":{"positive":[1]}}}"#,
        400,
        "RV1001",
        true,
    );
    case("no positive list", r#"{"query":{"recommend":{"negative":[1]}}}"#, 400, "RV1001", true);
    case("no positive example", r#"{"query":{"recommend":{"positive":[]}}}"#, 400, "RV1021", true);
    case("257 examples", &examples, 400, "RV1021", true);
    case("an example of three dimensions", r#"{"query":{"recommend":{"positive":[1,[1,2,3]]}}}"#, 400, "RV1003", true);
    case("an example that is no key", r#"{"query":{"recommend":{"positive":["one"]}}}"#, 400, "RV1009", true);
    case("an example with text in it", r#"{"query":{"recommend":{"positive":[[1,2,3,"4"]]}}}"#, 400, "RV1001", true);
    case("an example of 1e39", r#"{"query":{"recommend":{"positive":[[1,2,3,1e39]]}}}"#, 400, "RV1004", false);
    case("an example that is not there", r#"{"query":{"recommend":{"positive":[1,999]}}}"#, 404, "RV1011", false);
    case(
        "an example without a vector",
        r#"{"query":{"recommend":{"positive":[1],"negative":[100]}}}"#,
        422,
        "RV1012",
        true,
    );
    case("no searches", r#"{"searches":[]}"#, 400, "RV1024", true);
    case("257 searches", &batch, 400, "RV1024", true);
    case("searches for too many rows", &rows, 400, "RV1024", true);
    case("searches are null", r#"{"searches":null}"#, 400, "RV1001", true);
    case("searches that are no list", r#"{"searches":{$V}}"#, 400, "RV1001", true);
    case("a query beside searches", r#"{$V,"searches":[{$V}]}"#, 400, "RV1001", true);
    case("a limit beside searches", r#"{"limit":3,"searches":[{$V}]}"#, 400, "RV1001", true);
    case("searches within searches", r#"{"searches":[{"searches":[{$V}]}]}"#, 400, "RV1001", true);
    case("consistency within searches", r#"{"searches":[{$V,"consistency":{}}]}"#, 400, "RV1001", true);
    case("one bad search of two", r#"{"searches":[{$V},{"query":{"vector":[1]}}]}"#, 400, "RV1003", true);
    case("one bad filter of two", r#"{"searches":[{$V},{$V,"filter":"colour = 1"}]}"#, 400, "RV1007", true);
    case("an unknown field in a search of two", r#"{"searches":[{$V},{$V,"k":1}]}"#, 400, "RV1002", true);
    case("deep JSON", &deep, 400, "RV1001", true);
    println!("{} bodies", cases.len());
    for (what, body, status, code, hint) in &cases {
        let request = request("POST", "/v1/collections/docs/search", body.as_bytes());
        check(&service, what, &request, *status, code, *hint);
    }
    // Long and legal, or told to be too long: anything but a crash.
    let (status, _, body) = raw(&service, &request("POST", "/v1/collections/docs/search", ands.as_bytes()));
    assert!(matches!(status, 200 | 400 | 413), "{status} {}", String::from_utf8_lossy(&body));
    alive(&service);
}

#[test]
fn what_is_wrong_with_a_list_or_a_count_is_told() {
    let (_database, service) = service();
    let cases: &[(&str, &str, &str, u16, &str, bool)] = &[
        ("scroll", "an empty body", "", 400, "RV1001", true),
        ("scroll", "an unknown field", r#"{"offset":3}"#, 400, "RV1002", true),
        ("scroll", "a limit of 0", r#"{"limit":0}"#, 400, "RV1005", false),
        ("scroll", "a limit of 10001", r#"{"limit":10001}"#, 400, "RV1005", false),
        ("scroll", "no key to go on from", r#"{"after":"one"}"#, 400, "RV1009", true),
        ("scroll", "half a filter", r#"{"filter":"price >"}"#, 400, "RV1007", false),
        ("scroll", "an unknown column", r#"{"columns":["colour"]}"#, 400, "RV1008", true),
        ("scroll", "an unknown column, not rechecked", r#"{"columns":["body"],"recheck":"none"}"#, 400, "RV1008", true),
        ("scroll", "params without filter", r#"{"params":[1]}"#, 400, "RV1001", false),
        ("scroll", "no LSN", r#"{"consistency":{"at_least":"now"}}"#, 400, "RV1010", false),
        ("count", "an empty body", "", 400, "RV1001", true),
        ("count", "an unknown field", r#"{"limit":3}"#, 400, "RV1002", true),
        ("count", "a column that is not replicated", r#"{"filter":"body = 'b'"}"#, 400, "RV1007", true),
        ("count", "a wait of an hour", r#"{"consistency":{"timeout_ms":3600000}}"#, 400, "RV1001", false),
    ];
    for (route, what, body, status, code, hint) in cases {
        let path = format!("/v1/collections/docs/{route}");
        check(&service, what, &request("POST", &path, body.as_bytes()), *status, code, *hint);
        let other = format!("/v1/collections/other/{route}");
        check(&service, what, &request("POST", &other, body.as_bytes()), 404, "RV1101", true);
    }
    alive(&service);
}

#[test]
fn keys_of_each_type_are_checked() {
    let (_database, service) = service();
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("public.pairs", "a value for two columns", "1", 400, "RV1009"),
        ("public.pairs", "one column of two", r#"{"a":1}"#, 400, "RV1009"),
        ("public.pairs", "a null column", r#"{"a":1,"b":null}"#, 400, "RV1009"),
        ("public.pairs", "three columns of two", r#"{"a":1,"b":"x","c":1}"#, 400, "RV1009"),
        ("public.pairs", "a number for text", r#"{"a":1,"b":2}"#, 400, "RV1009"),
        ("public.pairs", "out of range for integer", r#"{"a":2147483648,"b":"x"}"#, 400, "RV1009"),
        ("public.pairs", "a zero byte", r#"{"a":1,"b":"\u0000"}"#, 400, "RV1009"),
        ("public.pairs", "not there", r#"{"a":1,"b":"y"}"#, 404, "RV1011"),
        ("public.named", "no UUID", r#""here""#, 400, "RV1009"),
        ("public.named", "half a UUID", r#""00000000-0000""#, 400, "RV1009"),
        ("public.named", "a number for a UUID", "1", 400, "RV1009"),
        ("public.named", "not there", r#""00000000-0000-0000-0000-000000000002""#, 404, "RV1011"),
        ("public.small", "out of range for smallint", "32768", 400, "RV1009"),
        ("public.small", "an object of text", r#"{"id":"x"}"#, 400, "RV1009"),
        ("public.small", "not there", "-32768", 404, "RV1011"),
    ];
    for (collection, what, id, status, code) in cases {
        let body = format!(r#"{{"query":{{"id":{id}}}}}"#);
        let path = format!("/v1/collections/{collection}/search");
        check(&service, what, &request("POST", &path, body.as_bytes()), *status, code, code == &"RV1009");
    }
    alive(&service);
}

#[test]
fn routes_methods_and_bodies_are_checked() {
    let (_database, service) = service();
    let search = "/v1/collections/docs/search";
    let body = format!("{{{V}}}");
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("unknown collection", "POST", "/v1/collections/other/search", 404, "RV1101"),
        ("unknown collection, shown", "GET", "/v1/collections/other", 404, "RV1101"),
        ("unknown collection, letters", "GET", "/v1/collections/other/dead_letters", 404, "RV1101"),
        ("unknown collection, verified", "POST", "/v1/admin/collections/other/verify", 404, "RV1101"),
        ("a name of the table only", "POST", "/v1/collections/pairs/search", 404, "RV1101"),
        ("a name with a zero byte", "POST", "/v1/collections/%00/search", 404, "RV1101"),
        ("a name that is no UTF-8", "POST", "/v1/collections/%ff%fe/search", 400, "RV1001"),
        ("a name that is no UTF-8, shown", "GET", "/v1/collections/%ff", 400, "RV1001"),
        ("a very long name", "GET", &format!("/v1/collections/{}", "x".repeat(5000)), 404, "RV1101"),
        ("unknown route", "GET", "/v2/collections", 404, "RV1102"),
        ("a POST of the page", "POST", "/", 405, "RV1103"),
        ("a slash too many", "POST", "/v1/collections/docs/search/", 404, "RV1102"),
        ("dots", "GET", "/v1/collections/../../etc/passwd", 404, "RV1102"),
        ("unknown error", "GET", "/errors/RV9999", 404, "RV1102"),
        ("GET of a search", "GET", search, 405, "RV1103"),
        ("PUT of a search", "PUT", search, 405, "RV1103"),
        ("DELETE of a collection", "DELETE", "/v1/collections/docs", 405, "RV1103"),
        ("POST of the list", "POST", "/v1/collections", 405, "RV1103"),
        ("an invented method", "BREW", search, 405, "RV1103"),
    ];
    for (what, method, path, status, code) in cases {
        check(&service, what, &request(method, path, body.as_bytes()), *status, code, false);
    }
    let bad = |what: &str, body: &[u8], status, code| {
        check(&service, what, &request("POST", search, body), status, code, true)
    };
    bad("no UTF-8", b"{\"query\":{\"vector\":[1,2,3,4]},\"filter\":\"section = '\xff'\"}", 400, "RV1001");
    bad("bytes", &[0, 159, 146, 150], 400, "RV1001");
    bad("UTF-16", &body.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(), 400, "RV1001");
    bad("a byte order mark", &[b"\xef\xbb\xbf", body.as_bytes()].concat(), 400, "RV1001");
    bad("a body too large", &vec![b' '; 20_001], 413, "RV1104");
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", 20_001, " ".repeat(20_001));
    let chunked = format!(
        "POST {search} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{chunk}"
    );
    check(&service, "a body too large, in a chunk", chunked.as_bytes(), 413, "RV1104", true);
    // What the HTTP library refuses by itself.
    for broken in ["nonsense\r\n\r\n", "POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", "GET /\u{0} HTTP/1.1\r\n\r\n"] {
        let (status, head, _) = raw(&service, broken.as_bytes());
        assert_eq!(status, 400, "{broken:?}: {head}");
    }
    // Half a request and then nothing.
    drop(
        TcpStream::connect(service.url().trim_start_matches("http://")).map(|mut one| one.write_all(b"POST /v1/coll")),
    );
    alive(&service);
}

/// It answers, and nothing above was a fault of its own.
fn alive(service: &Service) {
    assert_eq!(ids(&service.search("docs", &near(7, 4, 1))), [7]);
    assert_eq!(service.logged(" ERROR "), 0, "{}", service.log_tail());
    assert_eq!(service.logged("request failed"), 0, "{}", service.log_tail());
    assert_eq!(service.logged("panicked"), 0, "{}", service.log_tail());
}
