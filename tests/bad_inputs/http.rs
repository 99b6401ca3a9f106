//! Bad inputs over HTTP: a case is sent as it stands in the table, over a socket of its own.

use crate::support::Service;
use crate::table::{Case, Names, bytes, written_out};
use serde_json::{Value as Json, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// Status, head in lower case, and body.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

/// The answer to these bytes, none where the connection is closed without one. With `ends` the client sends no more.
pub fn raw(service: &Service, request: &[u8], ends: bool) -> Option<Answer> {
    let address = service.url().strip_prefix("http://").expect("plain HTTP");
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
    // Where the answer comes before the whole request is read, writing the rest may fail.
    let _ = stream.write_all(request);
    if ends {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("no end of the answer to {:?}: {:?}", text(request), text(&answer))
        }
        _ if answer.is_empty() => return None,
        _ => {}
    }
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no whole head: {:?}", text(&answer)));
    let head = text(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Some(Answer { status, head, body: answer[end + 4..].to_vec() })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned()
}

pub fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// What a case sends: whole requests in lines that begin with `|`; else a line `METHOD /path`, where it is not that of
/// the table's last `@`, lines of the head that begin with `>`, and a body.
fn bytes_of(case: &Case, names: &Names) -> Vec<u8> {
    let line = |line: &str| written_out(line, names);
    let lines: Vec<_> = case.input.iter().filter(|line| *line != ".").collect();
    let raw_bytes = |lines: &[&String]| -> Vec<u8> {
        lines.iter().flat_map(|one| bytes(&line(one.strip_prefix("| ").unwrap_or(one)))).collect()
    };
    let is_first =
        |one: &str| one.split_once(" /").is_some_and(|(method, _)| method.bytes().all(|b| b.is_ascii_uppercase()));
    let (first, rest) = match &lines[..] {
        [first, rest @ ..] if is_first(first) => (line(first), rest),
        [first, ..] if first.starts_with("| ") && case.under.is_empty() => return raw_bytes(&lines),
        rest => (line(&case.under), rest),
    };
    let (method, path) = first.split_once(' ').unwrap_or_else(|| panic!("{}: no route", case.place));
    let headers =
        rest.iter().filter_map(|one| one.strip_prefix("> ")).map(|one| line(one) + "\r\n").collect::<String>();
    let body: Vec<_> = rest.iter().filter(|one| !one.starts_with("> ")).copied().collect();
    match body.iter().any(|one| one.starts_with("| ")) {
        true => request(method, path, &headers, &raw_bytes(&body)),
        false => {
            let body = body.iter().map(|one| line(one)).collect::<Vec<_>>().join("\n");
            request(method, path, &headers, body.as_bytes())
        }
    }
}

/// Sends a case and checks its answer: status, code, the form of a problem, a hint, words.
pub fn check(service: &Service, case: &Case, names: &Names) -> Result<(), String> {
    let ends = case.input.iter().any(|line| line == ".");
    let answer = raw(service, &bytes_of(case, names), ends);
    let expected = &case.expected;
    let Some(Answer { status, head, body }) = answer else {
        return if expected.outcome == "closed" { Ok(()) } else { Err("closed without an answer".to_owned()) };
    };
    let text = text(&body);
    let told = format!("{head}\n{text}");
    if status.to_string() != expected.outcome {
        return Err(told);
    }
    let Some(code) = &expected.code else { return Ok(()) };
    let json: Json = serde_json::from_slice(&body).map_err(|_| told.clone())?;
    let said = |field: &str| json[field].as_str().is_some_and(|text| !text.is_empty());
    let well = head.contains("content-type: application/problem+json")
        && (&json["code"], &json["status"]) == (&json!(code), &json!(status))
        && json["type"] == format!("/errors/{code}")
        && ["detail", "hint", "title"].into_iter().all(said);
    let whole = json.to_string();
    let has = |word: &String| text.contains(word.as_str()) || whole.contains(word.as_str());
    match well && expected.words.iter().map(|word| written_out(word, names)).all(|word| has(&word)) {
        true => Ok(()),
        false => Err(told),
    }
}
