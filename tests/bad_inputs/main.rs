//! Bad inputs, each with what must come of it: tables that people read and extend (`README.md` in this folder), and what
//! no table can say. Against the real binary and a real PostgreSQL, which both live on after all of them.

#[path = "../support/mod.rs"]
mod support;

mod command;
mod http;
mod sparse;
mod table;
mod wire;
mod world;

use http::{Answer, raw, request};
use std::io::Write;
use std::net::TcpStream;
use table::{Case, Names};
use world::world;

/// Every table, and which of its cases count: those whose answer has a code of ours and a hint, or an exit code and words.
const TABLES: [&str; 8] =
    ["searches.txt", "rows.txt", "admin.txt", "heads.txt", "sparse.txt", "cli.txt", "config.txt", "sql.txt"];

/// Checks all cases of a table, and tells of all that are not as it says.
fn all(name: &str, names: &Names, check: impl Fn(&Case, &Names) -> Result<(), String>) {
    let cases = table::read(name);
    let wrong = cases.iter().filter_map(|case| {
        let Case { place, what, expected, .. } = case;
        let told = check(case, names).err()?;
        Some(format!(
            "{place}: {what}: not {} {}, but\n{told}",
            expected.outcome,
            expected.code.as_deref().unwrap_or("")
        ))
    });
    let wrong: Vec<_> = wrong.collect();
    println!("{} cases in {name}", cases.len());
    assert!(wrong.is_empty(), "{} of {} are not as {name} says:\n\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
}

#[test]
fn searches() {
    let world = world();
    all("searches.txt", &world.names, |case, names| http::check(&world.open, case, names));
    world.alive();
}

#[test]
fn rows_counts_and_positions() {
    let world = world();
    all("rows.txt", &world.names, |case, names| http::check(&world.open, case, names));
    world.alive();
}

#[test]
fn routes_and_what_administrators_ask() {
    let world = world();
    all("admin.txt", &world.names, |case, names| http::check(&world.open, case, names));
    world.alive();
}

#[test]
fn heads_bytes_and_credentials() {
    let world = world();
    let burnt = request("GET", "/v1/collections", &format!("api-key: {}\r\n", world.names["rated"]), b"");
    assert_eq!(raw(&world.keyed, &burnt, false).map(|answer| answer.status), Some(200), "the one that it may make");
    all("heads.txt", &world.names, |case, names| http::check(&world.keyed, case, names));
    world.alive();
}

#[test]
fn the_command_line() {
    let world = world();
    all("cli.txt", &world.names, command::check);
    world.alive();
}

#[test]
fn configurations() {
    let world = world();
    all("config.txt", &world.names, command::check_config);
}

/// Digits stay the digits they are, and lists come with commas.
#[test]
fn variables_are_read_as_their_settings_take_them() {
    let names = world().names.clone();
    let text = format!("{}\n{}", names["SOURCE"], names["DOCS"]);
    let well = command::config_check(
        &text,
        &[
            ("RUVECTOR__SOURCE__SLOT", "007"),
            ("RUVECTOR__SOURCE__PUBLICATION", "1e5"),
            ("RUVECTOR__SOURCE__COPY_CONNECTIONS", "3"),
            ("RUVECTOR__HTTP__INSECURE", "on"),
            ("RUVECTOR__SEARCH__RECHECK_ROLES", "a, b"),
        ],
    );
    let said = String::from_utf8_lossy(&well.stdout);
    assert!(well.status.success(), "{}", String::from_utf8_lossy(&well.stderr));
    assert!(said.contains("slot \"007\" and publication \"1e5\""), "{said}");
    let bad = command::config_check(&text, &[("RUVECTOR__SEARCH__RECHECK_ROLES", "a, none")]);
    assert!(String::from_utf8_lossy(&bad.stderr).contains("\"none\" is no role"), "each is one of them");
}

#[test]
fn statements() {
    let world = world();
    all("sql.txt", &world.names, wire::check);
    world.alive();
}

/// The documents say how many there are.
#[test]
fn there_are_three_hundred_and_more() {
    let mut counted = 0;
    for name in TABLES {
        let cases = table::read(name);
        let told = cases.iter().filter(|case| case.expected.code.is_some() || !case.expected.words.is_empty()).count();
        println!("{name}: {} cases, {told} with a code or an exit code, and what to do", cases.len());
        counted += told;
    }
    println!("{counted} bad inputs");
    assert!(counted >= 300, "{counted}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/troubleshooting.md");
    let text = std::fs::read_to_string(path).expect("docs/troubleshooting.md");
    assert!(
        text.contains(&format!("{counted} bad inputs")),
        "docs/troubleshooting.md has another number than {counted}"
    );
}

/// Every route is asked something bad, or nothing bad can be asked of it.
#[test]
fn every_route_has_a_case() {
    let cases: Vec<_> = TABLES.into_iter().flat_map(table::read).collect();
    let lines: Vec<_> = cases.iter().flat_map(|case| case.input.iter().chain([&case.under])).collect();
    for route in ruvector::server::http::routes::ROUTES.iter() {
        let (method, parts) = (route.method.to_uppercase(), route.path.split('/').collect::<Vec<_>>());
        let is_its = |line: &&String| {
            let path = line.split_once(" /").map(|(_, path)| path.split(['?', ' ']).next().unwrap_or_default());
            path.is_some_and(|path| {
                let found: Vec<_> = path.split('/').collect();
                let same = |(part, found): (&&str, &&str)| part.starts_with('{') || part == found;
                found.len() + 1 == parts.len() && parts[1..].iter().zip(&found).all(same)
            })
        };
        assert!(lines.iter().any(is_its), "{method} {} has no bad input", route.path);
    }
}

#[test]
fn what_no_table_can_say() {
    let world = world();
    let service = &world.open;
    let search = "/v1/collections/docs/search";
    // Long and legal, or told to be too long: anything but a crash.
    let ands = format!(r#"{{"query":{{"vector":[1,2,3,4]}},"filter":"{}price=1"}}"#, "price=1 AND ".repeat(1500));
    let Answer { status, .. } = raw(service, &request("POST", search, "", ands.as_bytes()), false).expect("an answer");
    assert!(matches!(status, 200 | 400 | 413), "{status}");
    // Half a request and then nothing.
    let address = service.url().trim_start_matches("http://");
    drop(TcpStream::connect(address).map(|mut one| one.write_all(b"POST /v1/coll")));
    // Two requests in one go: the first, which is bad, does not keep the second from its answer.
    let first = format!("POST {search} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 2\r\n\r\n{{}}");
    let both = [first.as_bytes(), &request("GET", "/livez", "", b"")].concat();
    let Answer { status, body, .. } = raw(service, &both, false).expect("answers");
    let body = String::from_utf8_lossy(&body);
    assert!(status == 400 && body.contains("RV1001") && body.contains("HTTP/1.1 200 OK"), "{status} {body}");
    world.alive();
}
