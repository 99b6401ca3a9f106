//! `verify` of the real service while somebody else's transaction is open on the source.

use ruvector::cli::client::Client;
use ruvector::cli::private_postgres::{PrivatePostgres, Settings};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(folder: &std::path::Path, dsn: &str) -> (Service, Client) {
    let config = folder.join("ruvector.toml");
    let data = folder.join("data");
    let text = format!(
        "[source]\ndsn = {dsn:?}\n[storage]\ndir = {:?}\n[http]\nlisten = \"127.0.0.1:0\"\n[[collections]]\n\
         table = \"public.docs\"\nname = \"docs\"\n[[collections.vectors]]\ncolumn = \"embedding\"\nmetric = \"l2\"\n",
        data.display().to_string()
    );
    std::fs::write(&config, text).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ruvector"));
    command.arg("serve").arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut service = Service(command.spawn().expect("it starts"));
    let mut line = String::new();
    BufReader::new(service.0.stdout.take().expect("piped")).read_line(&mut line).expect("it says where it listens");
    let client = Client::new(line.trim().strip_prefix("listening on ").expect("it listens"));
    (service, client)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The WAL writer flushes whole pages of what is not committed yet: the flushed end is then in the middle of a record,
/// which the walsender does not pass until something commits.
#[test]
fn verify_does_not_wait_for_a_record_that_is_flushed_in_part() {
    let postgres = PrivatePostgres::start(Settings::default()).expect("PostgreSQL starts");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let connect = || {
        let dsn = postgres.dsn();
        let connecting = tokio_postgres::connect(&dsn, tokio_postgres::NoTls);
        let (client, connection) = runtime.block_on(connecting).expect("it connects");
        runtime.spawn(connection);
        client
    };
    let (other, asking) = (connect(), connect());
    let run = |sql: &str| runtime.block_on(other.batch_execute(sql)).expect("valid SQL");
    run("CREATE TABLE other (t text); CREATE TABLE docs (id int PRIMARY KEY, embedding real[]);
         INSERT INTO docs SELECT i, ARRAY[i, 1] FROM generate_series(1, 100) i");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (_service, client) = serve(folder.path(), &postgres.dsn());
    wait_until("ready", || client.get("/readyz").is_ok_and(|answer| answer["ready"] == true));

    run("BEGIN");
    let torn = "SELECT pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()
                   AND (pg_current_wal_flush_lsn() - '0/0')::bigint % 8192 = 0";
    wait_until("a record flushed in part", || {
        run("INSERT INTO other SELECT repeat('x', 1500) FROM generate_series(1, 7)");
        std::thread::sleep(Duration::from_millis(300));
        runtime.block_on(asking.query_one(torn, &[])).expect("valid SQL").get(0)
    });
    let started = Instant::now();
    let report = client.post("/v1/admin/collections/docs/verify", &json!({})).expect("it verifies");
    let took = started.elapsed();
    assert_eq!((&report["source_rows"], &report["mismatch_count"]), (&Value::from(100), &Value::from(0)));
    assert!(took < Duration::from_secs(4), "verify took {took:?}");
}
