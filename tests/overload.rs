//! More than the service can take, of every kind, under a limit of memory: it refuses in the order that it promises, goes on
//! answering probes and administrators, and is itself again within five seconds.

mod support;

use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Database, Service, wait_within};

const ROWS: usize = 3000;
/// What it may take beside what it has when it is ready.
const MEMORY: u64 = 256 << 20;
/// What the system lets it ask for beside that: reserved memory that is never touched counts here (stacks, the allocator's arenas).
const RESERVED: u64 = 1 << 30;
/// Until it must be itself again.
const RECOVERY: Duration = Duration::from_secs(5);

const SETTINGS: [(&str, &str); 8] = [
    ("RUVECTOR__HTTP__MAX_CONCURRENT", "2"),
    ("RUVECTOR__HTTP__MAX_WAITING", "8"),
    ("RUVECTOR__HTTP__MAX_QUEUE_MS", "1000"),
    ("RUVECTOR__HTTP__MAX_CONNECTIONS", "3000"),
    ("RUVECTOR__HTTP__MAX_BUFFERED_MB", "16"),
    ("RUVECTOR__HTTP__HEAD_TIMEOUT_S", "20"),
    ("RUVECTOR__HTTP__WRITE_TIMEOUT_S", "2"),
    ("RUVECTOR__HTTP__BODY_TIMEOUT_S", "2"),
];

const COLLECTION: &str = "[[collections]]
table = \"public.docs\"
name = \"docs\"
filter_columns = [\"section\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
";

const SEARCH: &str = r#"{"query": {"id": 7}, "limit": 10, "search": {"exact": true}}"#;
const COUNT: &str = r#"{"filter": "section = 's1'"}"#;
/// Three megabytes.
const LARGE: &str = r#"{"limit": 3000, "columns": ["body"]}"#;

fn limit(process: u32, what: &str) {
    let output = Command::new("prlimit").args(["--pid", &process.to_string(), what]).output().expect("prlimit");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn request(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn of_docs(what: &str) -> String {
    format!("/v1/collections/docs/{what}")
}

/// A connection that may be read for ten seconds.
fn connect(at: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// Status, head and body of the next answer.
fn answer(stream: &mut TcpStream) -> std::io::Result<(u16, String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("a head is text").to_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut body = vec![0; field("content-length:").map_or(0, |length| length.parse().expect("a number"))];
    stream.read_exact(&mut body)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Ok((status, head, body))
}

fn ask(stream: &mut TcpStream, path: &str, body: &str) -> std::io::Result<(u16, String, Vec<u8>)> {
    stream.write_all(request(path, body).as_bytes())?;
    answer(stream)
}

fn code(body: &[u8]) -> String {
    let json: Json = serde_json::from_slice(body).unwrap_or_default();
    json["code"].as_str().unwrap_or_default().to_owned()
}

fn service() -> (Database, Service, SocketAddr) {
    let database = Database::shared();
    database.sql.run(&format!(
        "CREATE TABLE docs (id bigint PRIMARY KEY, section text, body text, embedding real[]);
         INSERT INTO docs SELECT i, 's' || i % 3, repeat(md5(i::text), 32), vec(i, 32) FROM generate_series(1, {ROWS}) i"
    ));
    let mut service = Service::configured(&database, "", COLLECTION);
    for (name, value) in SETTINGS {
        service.set_environment(name, Some(value.to_owned()));
    }
    service.start();
    service.wait_ready();
    let at = service.url().strip_prefix("http://").expect("plain HTTP").parse().expect("an address");
    (database, service, at)
}

/// It answers again, soon.
fn recovers(service: &Service, at: SocketAddr, after: &str) {
    let began = Instant::now();
    wait_within(RECOVERY, after, || {
        let Ok(mut stream) = connect(at) else { return false };
        let fine = |what: &str, body: &str, stream: &mut TcpStream| {
            ask(stream, &of_docs(what), body).is_ok_and(|(status, ..)| status == 200)
        };
        fine("search", SEARCH, &mut stream) && fine("count", COUNT, &mut stream) && fine("scroll", LARGE, &mut stream)
    });
    assert_eq!(service.metric("ruvector_http_waiting_requests"), 0.0);
    println!("{after}: itself again after {:?}", began.elapsed());
}

#[test]
fn it_survives_what_it_cannot_do_and_is_soon_itself_again() {
    let (_database, mut service, at) = service();
    limit(std::process::id(), "--nofile=19000:");
    limit(service.process(), "--nofile=19000:");
    let (data, resident) = (service.memory("VmData"), service.memory("VmRSS"));
    limit(service.process(), &format!("--data={}", data + RESERVED));

    ten_times_as_many_as_it_can_do(at);
    recovers(&service, at, "overload");
    those_who_do_not_read(at);
    recovers(&service, at, "slow readers");
    thousands_who_say_nothing(at);
    recovers(&service, at, "idle connections");
    bodies_that_are_too_large_or_do_not_come(at);
    recovers(&service, at, "large bodies");

    assert!(!service.has_ended() && service.is_ready(), "{}", service.log_tail());
    let peak = service.memory("VmHWM");
    println!("resident: {} MiB when ready, {} MiB at the peak", resident >> 20, peak >> 20);
    assert!(peak < resident + MEMORY);
}

/// Asked and refused, by kind.
#[derive(Default)]
struct Tally(BTreeMap<&'static str, (u32, u32)>);

impl Tally {
    fn share(&self, kind: &str) -> f64 {
        let (asked, refused) = self.0[kind];
        f64::from(refused) / f64::from(asked)
    }
}

fn ten_times_as_many_as_it_can_do(at: SocketAddr) {
    let batch = format!("{{\"searches\": [{}]}}", [SEARCH; 8].join(","));
    let kinds =
        [("batch", "search", batch.as_str(), 40), ("search", "search", SEARCH, 40), ("cheap", "count", COUNT, 20)];
    let (tally, over) = (Mutex::new(Tally::default()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for (kind, what, body, clients) in kinds {
            for _ in 0..clients {
                scope.spawn(|| {
                    let mut stream = connect(at).expect("a connection");
                    while !over.load(Ordering::Relaxed) {
                        let (status, head, body) = ask(&mut stream, &of_docs(what), body).expect("an answer");
                        let refused = status == 503;
                        assert!(
                            status == 200 || refused && code(&body) == "RV1301" && head.contains("retry-after: "),
                            "{head}"
                        );
                        let tally = &mut *tally.lock().expect("nobody failed");
                        let (all, of_them) = tally.0.entry(kind).or_default();
                        (*all, *of_them) = (*all + 1, *of_them + u32::from(refused));
                    }
                });
            }
        }
        // Whoever looks after the service is answered meanwhile, on new connections too.
        let began = Instant::now();
        let mut seen = 0;
        while began.elapsed() < Duration::from_secs(5) {
            let mut stream = connect(at).expect("a connection");
            for path in ["/livez", "/readyz", "/v1/status", "/metrics", "/v1/collections"] {
                write!(stream, "GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").expect("it reads");
                assert_eq!(answer(&mut stream).expect("an answer").0, 200, "{path}");
            }
            let promoted = ask(&mut stream, "/v1/admin/collections/docs/promote", "{\"id\": 1}").expect("an answer");
            assert_eq!(promoted.0, 202);
            seen += 1;
        }
        over.store(true, Ordering::Relaxed);
        assert!(seen > 0);
    });
    let tally = tally.into_inner().expect("nobody failed");
    println!("asked and refused: {:?}", tally.0);
    let (batch, search, cheap) = (tally.share("batch"), tally.share("search"), tally.share("cheap"));
    assert!(batch > search && search > cheap && cheap < 1.0, "{batch} {search} {cheap}");
}

fn those_who_do_not_read(at: SocketAddr) {
    let mut statuses = BTreeMap::<u16, u32>::new();
    let mut kept = Vec::new();
    for _ in 0..60 {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        // Or the system would take the answer for them.
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        socket.connect(&at.into()).expect("a connection");
        let mut stream = TcpStream::from(socket);
        stream.write_all(request(&of_docs("scroll"), LARGE).as_bytes()).expect("it reads");
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).expect("the beginning of an answer");
        let status = std::str::from_utf8(&begin[9..]).ok().and_then(|status| status.parse().ok()).expect("a status");
        *statuses.entry(status).or_default() += 1;
        kept.push(stream);
    }
    println!("statuses of answers that are not read: {statuses:?}");
    assert!(statuses[&200] > 0 && statuses[&503] > 0 && statuses.len() == 2);
    // They are still there: it is the service that ends them.
    std::thread::sleep(Duration::from_secs(3));
    let mut stream = connect(at).expect("a connection");
    assert_eq!(ask(&mut stream, &of_docs("scroll"), LARGE).expect("an answer").0, 200, "what they held is given back");
}

fn thousands_who_say_nothing(at: SocketAddr) {
    let mut before = connect(at).expect("a connection");
    assert_eq!(ask(&mut before, &of_docs("count"), COUNT).expect("an answer").0, 200);
    let idle: Vec<_> = (0..2500).map(|_| connect(at).expect("a connection")).collect();
    let mut among = connect(at).expect("a connection");
    assert_eq!(ask(&mut among, &of_docs("search"), SEARCH).expect("an answer").0, 200);
    // Beyond the limit nobody gets in, and whoever is in goes on.
    let beyond: Vec<_> = (0..1000).filter_map(|_| connect(at).ok()).collect();
    let refused = beyond.iter().rev().take(200).filter(|stream| {
        let mut stream: &TcpStream = stream;
        let mut byte = [0];
        let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
        // Told so, or closed.
        !stream.read(&mut byte).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    });
    let refused = refused.count();
    println!("{refused} of the last 200 connections refused");
    assert!(refused > 150, "{refused}");
    for stream in [&mut before, &mut among] {
        assert_eq!(ask(stream, &of_docs("search"), SEARCH).expect("an answer").0, 200);
    }
    drop((idle, beyond));
}

fn bodies_that_are_too_large_or_do_not_come(at: SocketAddr) {
    const HUGE: usize = 64 << 20;
    let head = |length: String| format!("POST {} HTTP/1.1\r\nhost: 127.0.0.1\r\n{length}\r\n\r\n", of_docs("search"));
    for _ in 0..50 {
        // Not one byte of it is sent.
        let mut stream = connect(at).expect("a connection");
        stream.write_all(head(format!("content-length: {HUGE}")).as_bytes()).expect("it reads");
        let (status, _, body) = answer(&mut stream).expect("an answer");
        assert_eq!((status, code(&body).as_str()), (413, "RV1104"));
    }
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let mut stream = connect(at).expect("a connection");
                stream.write_all(head("transfer-encoding: chunked".into()).as_bytes()).expect("it reads");
                let chunk = [format!("{:x}\r\n", 1 << 16).into_bytes(), vec![b' '; 1 << 16], b"\r\n".to_vec()].concat();
                let sent = (0..HUGE >> 16).take_while(|_| stream.write_all(&chunk).is_ok()).count() << 16;
                assert!(sent < HUGE / 2, "{sent} bytes were taken");
            });
        }
    });
    let slow: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = connect(at).expect("a connection");
            stream.write_all(head("content-length: 1000".into()).as_bytes()).expect("it reads");
            stream
        })
        .collect();
    for mut stream in slow {
        let (status, _, body) = answer(&mut stream).expect("an answer");
        assert_eq!((status, code(&body).as_str()), (408, "RV1105"));
    }
}
