//! Whatever a client sends, the service answers or hangs up, and goes on serving the others. Encryption and time-outs.

use crate::support::soak::Random;
use crate::support::{Database, Service, Sql, wait_within};
use crate::world::{World, refusal, world};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

/// Statements to break.
const STATEMENTS: [&str; 12] = [
    "SELECT id, section, embedding <-> '[0.3,0.1,0.7,0.5]' FROM docs WHERE section = 's1' ORDER BY embedding <-> '[0.3,0.1,0.7,0.5]' LIMIT 3 OFFSET 1",
    "SELECT key, distance FROM ruvector.search WHERE ((collection = 'docs')) AND ((query = '{1,2,3,4}'::real[])) AND ((k = 10::integer))",
    "SELECT key FROM stream WHERE collection = 'docs' AND query = '{1,2,3,4}' AND filter = '{\"section\": [\"s1\"]}' ORDER BY distance LIMIT 4",
    "SELECT count(*), min(views), max(views) FROM docs WHERE views = ANY ('{1,2,NULL}'::integer[]) OR NOT (id BETWEEN 1 AND 9)",
    "BEGIN; DECLARE c CURSOR FOR SELECT id FROM docs; FETCH 3 FROM c; MOVE BACKWARD ALL IN c; CLOSE c; COMMIT",
    "SAVEPOINT a; ROLLBACK TO SAVEPOINT a; RELEASE SAVEPOINT a",
    "EXPLAIN SELECT key FROM search WHERE ((query = ((SELECT null::text)::text))) AND ((k = ((SELECT null::integer)::integer)))",
    "SELECT 1 - (embedding <-> '[1,2,3,4]') AS s, (embedding <-> '[1,2,3,4]') * -1 FROM docs WHERE (embedding <-> '[1,2,3,4]') < 0.5",
    "SET ruvector.recheck = 'none'; SHOW ALL; RESET ALL; DISCARD ALL; DEALLOCATE ALL",
    "SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid) FROM pg_class c WHERE n.nspname = 'ruvector' AND c.relname IN ('docs')",
    "SELECT set_config('a.b', 'c', false), current_setting('a.b', true), version(), $1::int",
    "SELECT name FROM notes WHERE name IS DISTINCT FROM E'it''s \\\\ x' ORDER BY name DESC NULLS LAST",
];

fn broken(random: &mut Random, text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => {
                let end = (at + random.below(12) as usize).min(bytes.len());
                bytes.drain(at..end);
            }
            2 => {
                let donor = random.pick(&STATEMENTS).as_bytes();
                let from = random.below(donor.len() as u64) as usize;
                let end = (from + random.below(30) as usize).min(donor.len());
                bytes.splice(at..at, donor[from..end].iter().copied());
            }
            3 => bytes.insert(at, *random.pick(b"()'\"$;-,.:<>=0[]{}\\x")),
            _ => bytes.insert(at, random.next() as u8),
        }
    }
    bytes
}

/// What a query over the catalog may take is bounded whatever it makes: rows, values, patterns, named queries that double.
#[test]
fn a_query_over_the_catalog_that_takes_too_much_is_refused() {
    let world = world();
    let sql = world.direct();
    let named: Vec<_> = (1..40).map(|at| format!("t{at} AS (SELECT x || x AS x FROM t{})", at - 1)).collect();
    let doubled = format!("WITH t0 AS (SELECT 'xxxxxxxx' AS x FROM pg_am), {} SELECT x FROM t39", named.join(", "));
    let long = "a".repeat(30_000);
    let numbers = vec!["row_number() OVER ()"; 2_000].join(", ");
    let same = vec!["oid"; 300_000].join(", ");
    let started = Instant::now();
    for statement in [
        doubled.as_str(),
        &format!("SELECT {numbers} FROM pg_type a, pg_type b, pg_attribute c"),
        &format!("SELECT a.oid FROM pg_type a JOIN pg_type b USING ({same})"),
        "SELECT *, *, *, *, * FROM pg_type a, pg_type b, pg_type c",
        &format!("SELECT count(*) FROM pg_type a, pg_type b WHERE '{long}' ~ '^a*b'"),
        &format!("SELECT count(*) FROM pg_type WHERE '{long}' LIKE '%a%a%a%b'"),
        &format!("SELECT replace('{0}', 'a', '{0}') FROM pg_am", "a".repeat(20_000)),
        "SELECT a.oid FROM pg_type a, pg_type b EXCEPT SELECT a.oid + b.oid FROM pg_type a, pg_type b, pg_type c",
    ] {
        assert_eq!(refusal(&sql, statement).0, "54001", "{}", &statement[..60.min(statement.len())]);
    }
    assert!(started.elapsed() < Duration::from_secs(60), "it took {:?}", started.elapsed());
    assert_eq!(sql.one("SELECT typname FROM pg_type WHERE oid = 16"), "bool");
}

#[test]
fn a_query_over_the_catalog_ends_with_its_time() {
    let world = world();
    let sql = world.direct();
    let long =
        "SELECT 1 FROM (SELECT 1 FROM pg_catalog.pg_namespace LIMIT 1) x JOIN generate_series(1, 199999) a ON true
                  JOIN generate_series(1, 1000) b ON a = -b";
    assert_eq!(refusal(&sql, long).0, "54001");
    sql.run("SET statement_timeout = 20");
    assert_eq!(refusal(&sql, long).0, "57014");
}

#[test]
fn what_a_query_over_the_catalog_cannot_mean_is_refused() {
    let world = world();
    let sql = world.direct();
    for query in [
        "SELECT * FROM pg_catalog.pg_namespace a JOIN pg_catalog.pg_namespace b USING (oid)",
        "SELECT row_number(1) OVER () FROM pg_catalog.pg_namespace",
        "SELECT row_number() FILTER (WHERE true) OVER () FROM pg_catalog.pg_namespace",
        "SELECT row_number() OVER (ORDER BY oid DESC) FROM pg_catalog.pg_namespace",
    ] {
        assert_eq!(refusal(&sql, query).0, "0A000", "{query}");
    }
    let one = "FROM pg_catalog.pg_namespace WHERE nspname = 'pg_catalog'";
    let rows = format!("(SELECT 'b' AS x {one} UNION ALL SELECT NULL {one} UNION ALL SELECT 'a' {one}) t");
    let numbered = |order: &str| {
        let query = format!("SELECT coalesce(x, '-'), row_number() OVER (ORDER BY {order}) FROM {rows}");
        let mut rows = sql.rows(&query);
        rows.sort_by_key(|row| row[1].clone());
        rows.into_iter().map(|mut row| row.remove(0).expect("a text")).collect::<Vec<_>>()
    };
    assert_eq!(numbered("x"), ["a", "b", "-"], "NULL is last, as in PostgreSQL");
    assert_eq!(numbered("x NULLS FIRST"), ["-", "a", "b"]);
}

#[test]
fn broken_statements_are_answered_and_the_session_lives() {
    let world = world();
    let mut random = Random(std::env::var("RUVECTOR_SOAK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20));
    let (started, mut answered, mut refused) = (Instant::now(), 0, 0);
    let mut sql = world.direct();
    while started.elapsed() < Duration::from_secs(6) {
        let statement = *random.pick(&STATEMENTS);
        let bytes = broken(&mut random, statement);
        let Ok(text) = String::from_utf8(bytes) else { continue };
        match sql.try_run(&format!("SET statement_timeout = 5000; {text}")) {
            Ok(()) => answered += 1,
            Err(error) if error.code().is_some_and(|code| code.code() != "XX000") => refused += 1,
            // The driver refuses a zero byte itself.
            Err(_) if text.contains('\0') => {}
            Err(error) => panic!("{text:?}: {error:?}\n{}", world.service.log_tail()),
        }
        let _ = sql.try_run("ROLLBACK");
        if random.below(50) == 0 {
            sql = world.direct();
        }
    }
    println!("{answered} answered, {refused} refused");
    assert!(answered > 20 && refused > 20, "{answered} answered, {refused} refused");
    assert_eq!(world.direct().one("SELECT 1"), "1");
    assert_eq!(world.service.logged("panicked"), 0, "{}", world.service.log_tail());
}

#[test]
fn broken_messages_end_the_connection_at_most() {
    let world = world();
    let mut random = Random(7);
    let started = Instant::now();
    let greeting = b"\0\0\0\x20\0\x03\0\0user\0app\0database\0ruv\0\0";
    let mut sent = 0;
    while started.elapsed() < Duration::from_secs(4) {
        let mut bytes = greeting.to_vec();
        bytes.extend(b"p\0\0\0\x0cSCRAM-SHA-256\0");
        for _ in 0..random.below(6) {
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(3) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.extend((0..random.below(40)).map(|_| random.next() as u8).collect::<Vec<_>>()),
            }
        }
        let mut socket = TcpStream::connect(world.service.sql_address()).expect("it listens");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        // It ends: by itself, or because we did.
        let ended = socket.read_to_end(&mut answer);
        assert!(!matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "{bytes:?} hangs");
        sent += 1;
    }
    assert!(sent > 50, "{sent}");
    assert_eq!(world.direct().one("SELECT 1"), "1");
    assert_eq!(world.service.logged("panicked"), 0, "{}", world.service.log_tail());
}

/// A small service with these lines in its `[sql]` section.
fn service(database: &Database, lines: &str) -> Service {
    database.docs(50);
    let sections = format!(
        "[sql]\nlisten = \"127.0.0.1:0\"\n{lines}\n[sql.users.app]\npassword = \"secret\"\n{}",
        crate::support::DOCS
    );
    Service::ready(database, &sections)
}

#[test]
fn connections_are_encrypted_where_that_is_configured() {
    let database = Database::shared();
    let dir = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    let service = service(&database, &format!("tls_cert = {cert:?}\ntls_key = {key:?}\nrequire_tls = true"));
    let port = service.sql_address().rsplit(':').next().expect("a port").to_owned();
    let psql = |mode: &str| {
        let address = format!(
            "host=localhost hostaddr=127.0.0.1 port={port} user=app password=secret dbname=ruvector sslmode={mode} sslrootcert={}",
            cert.display()
        );
        let query = "SELECT id FROM docs ORDER BY embedding <-> '[1,1,1,1]' LIMIT 3";
        let output = Command::new("psql").args(["-X", "-A", "-t", "-c", query, &address]).output().expect("psql");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).lines().count(), output.stderr)
    };
    for mode in ["require", "verify-ca", "verify-full", "prefer"] {
        let (well, rows, error) = psql(mode);
        assert!(well && rows == 3, "{mode}: {}", String::from_utf8_lossy(&error));
    }
    let (well, _, error) = psql("disable");
    assert!(!well && String::from_utf8_lossy(&error).contains("encrypted"), "{}", String::from_utf8_lossy(&error));
}

#[test]
fn who_says_nothing_for_too_long_is_let_go() {
    let database = Database::shared();
    let service = service(&database, "idle_in_transaction_timeout_s = 1\nstatement_timeout_ms = 400");
    let sql = Sql::connect(&format!("postgresql://app:secret@{}/ruvector", service.sql_address()));
    let waiting = "SELECT key FROM search WHERE collection = 'docs' AND query = '{1,1,1,1}' AND k = 1
                   AND options = '{\"consistency\": {\"at_least\": \"FFFF/0\", \"timeout_ms\": 60000}}'";
    assert_eq!(refusal(&sql, waiting).0, "57014", "the service's own limit");
    // Outside of a transaction there is no limit.
    std::thread::sleep(Duration::from_millis(1500));
    sql.run("BEGIN");
    std::thread::sleep(Duration::from_secs(2));
    assert!(sql.try_run("SELECT 1").is_err(), "the session is gone");
    assert_eq!(service.metric("ruvector_sql_sessions"), 0.0);
}

#[test]
fn a_long_chain_is_refused_and_a_shorter_one_has_room_on_the_stack() {
    let world = world();
    let sql = world.direct();
    let wheres = |first: &str, link: &str, count: usize| {
        format!("SELECT id FROM docs WHERE {first}{} LIMIT 1", link.repeat(count))
    };
    for (first, link) in [
        ("id = 1", " OR id=1"),
        ("id = 1", " AND id=1"),
        ("id = 1", "::int"),
        ("", "NOT "),
        ("id = ", "- "),
        ("id = ", "("),
        ("id = 1", "-1"),
    ] {
        assert_eq!(refusal(&sql, &wheres(first, link, 100_000)).0, "54001", "{link}");
        // Whatever is said to these: the service lives.
        for count in [150, 300, 480, 950] {
            for what in ["", "EXPLAIN "] {
                let _ = sql.try_run(&format!("{what}{}", wheres(first, link, count)));
            }
        }
    }
    for count in [150, 480, 950] {
        for link in ["-1", "::int", " + (embedding <-> '[1,1,1,1]')"] {
            let _ = sql.try_run(&format!("SELECT 1{}", link.repeat(count)));
            let _ = sql.try_run(&format!("SELECT 1{} FROM docs LIMIT 1", link.repeat(count)));
            let _ = sql.try_run(&format!("SELECT id FROM docs ORDER BY 1{} LIMIT 1{}", link.repeat(count), link));
        }
    }
    let prepared = world.driver();
    let chain = format!("SELECT id FROM docs WHERE id = $1{}", " OR id = $1".repeat(600));
    let _ = crate::world::RUNTIME.block_on(prepared.prepare(&chain));
    assert_eq!(world.direct().one("SELECT 1"), "1");
}

/// A session in our own hands: a driver lets itself in, and lets go without a word.
fn raw_session(address: &str) -> TcpStream {
    let socket = TcpStream::connect(address).expect("it listens");
    let ours = socket.try_clone().expect("a second handle");
    socket.set_nonblocking(true).expect("for the driver");
    crate::world::RUNTIME.block_on(async {
        let stream = tokio::net::TcpStream::from_std(socket).expect("a socket");
        let mut config = tokio_postgres::Config::new();
        config.user("app").password("secret").dbname("ruvector");
        let (client, connection) = config.connect_raw(stream, tokio_postgres::NoTls).await.expect("a session");
        drop(connection);
        drop(client);
    });
    ours.set_nonblocking(false).expect("for us");
    ours
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

#[test]
fn who_stops_reading_or_leaves_a_portal_open_is_let_go() {
    let database = Database::shared();
    let service = service(&database, "idle_in_transaction_timeout_s = 1");
    let sessions = |service: &Service| service.metric("ruvector_sql_sessions");
    // More than the buffers of both sides hold, in one answer.
    let mut socket = raw_session(service.sql_address());
    assert_eq!(sessions(&service), 1.0);
    let statement = format!("SELECT id{} FROM docs;", ", embedding".repeat(600));
    socket.write_all(&message(b'Q', format!("{}\0", statement.repeat(40)).as_bytes())).expect("it is read");
    wait_within(Duration::from_secs(30), "who takes nothing is gone", || sessions(&service) == 0.0);
    // A portal that gave one row, without Sync.
    let mut socket = raw_session(service.sql_address());
    let open = [
        message(b'P', b"\0SELECT id FROM docs\0\0\0"),
        message(b'B', b"\0\0\0\0\0\0\0\0"),
        message(b'E', b"\0\0\0\0\x01"),
        message(b'H', b""),
    ];
    socket.write_all(&open.concat()).expect("it is read");
    let mut answer = [0; 64];
    let read = socket.read(&mut answer).expect("an answer");
    assert!(answer[..read].starts_with(b"1\0\0\0\x04"), "{answer:?}");
    wait_within(Duration::from_secs(30), "who holds a portal is gone", || sessions(&service) == 0.0);
}

#[test]
fn a_stop_ends_sessions_with_a_reason() {
    let mut world = World::new(Database::shared());
    let sql = world.direct();
    assert_eq!(sql.one("SELECT 1"), "1");
    world.service.terminate();
    assert!(sql.try_run("SELECT 1").is_err());
}
