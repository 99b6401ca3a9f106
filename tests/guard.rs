//! What the service does to somebody else's primary: how much WAL its slot may keep, who may use the slot, what is taken
//! back when it goes. The real binary beside a real PostgreSQL.

mod support;

use ruvector::cli::private_postgres::{Settings, Stop};
use ruvector::storage::ownership;
use serde_json::Value as Json;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use support::{DOCS, Database, Service, Sql, cluster, ids, near, wait_until, wait_within};

const MIB: i64 = 1 << 20;

/// About so many MiB of WAL in a table that nobody follows.
fn write_wal(sql: &Sql, mib: usize) {
    sql.run("CREATE TABLE IF NOT EXISTS noise (x text)");
    for _ in 0..mib {
        sql.run("INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 950)");
    }
}

fn slots(sql: &Sql) -> Vec<String> {
    let names = sql.text("SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots");
    names.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn retained(sql: &Sql, slot: &str) -> i64 {
    let sql_text = format!(
        "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), restart_lsn)::int8 FROM pg_replication_slots WHERE slot_name = '{slot}'"
    );
    sql.one(&sql_text).parse().expect("a number")
}

fn protection(service: &Service) -> Json {
    service.status()["protection"].clone()
}

fn phase(service: &Service) -> (String, String) {
    let phase = &service.status()["replication"];
    let text = |name: &str| phase[name].as_str().unwrap_or_default().to_owned();
    (text("phase"), text("reason"))
}

fn ruvector(arguments: &[&str], config: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ruvector"));
    command.args(arguments).arg("--config").arg(config).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// The budget.

/// What the slot costs and what is left is shown while the first copy is under way, and the slot keeps nothing for it.
#[test]
fn the_budget_and_the_servers_limit_are_shown_during_the_copy_and_a_near_limit_is_warned_of() {
    let postgres = cluster(Settings::default().with("max_slot_wal_keep_size", "48MB"));
    let database = Database::of(&postgres);
    database.sql.run(
        "CREATE TABLE docs (id int PRIMARY KEY, section text, body text, embedding real[]);
         ALTER TABLE docs ALTER body SET STORAGE PLAIN;
         INSERT INTO docs SELECT i, 's', repeat('x', 7000), vec(i, 4) FROM generate_series(1, 9000) i",
    );
    let mut service = Service::configured(&database, "copy_connections = 1\n", DOCS);
    service.start();
    let copying = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY %docs%' AND pid <> pg_backend_pid()";
    service.wait_for("it copies", |_| database.sql.text(copying).is_some());
    let pid = database.sql.one(copying);
    let signal = |name: &str| {
        let sent = Command::new("sh").args(["-c", &format!("kill -s {name} {pid}")]).status();
        assert!(sent.expect("sh runs").success(), "{name}");
    };
    signal("STOP");
    service.wait_for("what the slot costs is shown", |service| {
        let shown = protection(service);
        shown["budget_left_bytes"].is_u64() && shown["slots"][0]["safe_wal_bytes"].is_i64()
    });
    let ruvector = Command::new(env!("CARGO_BIN_EXE_ruvector")).args(["status", "--url", service.url()]).output();
    let said = text(&ruvector.expect("it runs").stdout);
    assert!(
        said.contains("WAL budget   ") && said.contains("MiB left of 10240.0 MiB") && said.contains("% read"),
        "{said}"
    );
    signal("CONT");
    service.wait_ready();
    // A transaction that stays open keeps the slot where it is, until the server has had enough.
    database.sql.run("CREATE TABLE pinned (x int)");
    let pin = database.connect();
    pin.run("BEGIN; INSERT INTO pinned VALUES (1)");
    let mut written = 0;
    service.wait_for("the limit is near", |service| {
        if written < 60 {
            write_wal(&database.sql, 4);
            written += 4;
        }
        std::thread::sleep(Duration::from_millis(800));
        protection(service)["warning"].as_str().is_some_and(|why| why.contains("before the server gives slot"))
    });
    assert!(service.logged("the server may give our slot up soon") > 0, "{}", service.log_tail());
}

#[test]
fn a_spent_budget_drops_the_slot_and_the_service_heals_when_its_cause_is_gone() {
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(300);
    let mut service = Service::configured(&database, "max_retained_wal_mib = 12", DOCS);
    service.start();
    service.wait_ready();
    let slot = service.slot.clone();
    database.sql.run("CREATE TABLE pinned (x int)");
    let pin = database.connect();
    pin.run("BEGIN; INSERT INTO pinned VALUES (1)");
    write_wal(&database.sql, 8);
    service.wait_for("the warning at half", |service| protection(service)["warning"].is_string());
    assert_eq!(service.logged("half of the budget is spent"), 1, "{}", service.log_tail());
    assert_eq!(slots(&database.sql), [slot.as_str()]);
    write_wal(&database.sql, 10);
    service.wait_for("the slot is dropped", |_| slots(&database.sql).is_empty());
    service.wait_for("the stream has ended", |service| phase(service).0 == "waiting");
    let (_, reason) = phase(&service);
    assert!(reason.contains("protect the source") && reason.contains("a transaction of PID"), "{reason}");
    database.sql.run("INSERT INTO docs VALUES (5000, 's', 'b', vec(5000, 4))");
    // Reads go on, marked stale.
    assert_eq!(ids(&service.search("docs", &near(7, 4, 1))), [7]);
    assert!(!service.is_ready());
    assert!(protection(&service)["warning"].is_null(), "the slot is gone: {}", protection(&service));
    assert_eq!(service.status()["stale"], reason.as_str());
    let metrics = service.client().text("/metrics").expect("metrics");
    assert!(metrics.contains("ruvector_source_slot_given_up_total{budget=\"bytes\"} 1"), "{metrics}");
    assert!(metrics.contains("ruvector_source_slot_status{status=\"missing\"} 1"), "{metrics}");
    pin.run("COMMIT");
    service.wait_ready();
    service.wait_for("a new slot", |_| slots(&database.sql) == [format!("{slot}_2")]);
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 301);
    assert_eq!(service.logged("dropping our replication slot"), 1, "{}", service.log_tail());
    assert!(retained(&database.sql, &format!("{slot}_2")) < 12 * MIB);
    assert!(protection(&service)["given_up_reason"].is_null());
}

#[test]
fn a_slot_that_confirms_nothing_for_too_long_is_dropped_although_it_is_streamed_from() {
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(50);
    let mut service =
        Service::configured(&database, "max_retained_s = 6\nmax_retained_wal_mib = 0\nheartbeat_s = 1", DOCS);
    service.start();
    service.wait_ready();
    // A sender that is held still: it neither sends nor takes what we confirm, and no order reaches it.
    let pid = database.sql.one("SELECT active_pid FROM pg_replication_slots");
    let signal = |name: &str| {
        let sent = Command::new("sh").args(["-c", &format!("kill -s {name} {pid}")]).status();
        assert!(sent.expect("sh runs").success(), "{name}");
    };
    signal("STOP");
    write_wal(&database.sql, 2);
    service.wait_for("it gives the slot up", |service| protection(service)["given_up"] == 1);
    assert_eq!(ids(&service.search("docs", &near(7, 4, 1))), [7]);
    signal("CONT");
    service.wait_for("the slot is dropped", |_| slots(&database.sql).is_empty());
    service.wait_for("the stream has ended", |service| phase(service).0 == "waiting");
    let (_, reason) = phase(&service);
    // It did what it could before.
    assert!(protection(&service)["heartbeat"]["written"].as_u64() > Some(0), "{}", protection(&service));
    assert!(reason.contains("confirmed nothing") && reason.contains("this service is behind"), "{reason}");
}

#[test]
fn a_slot_lost_to_the_wal_limit_while_the_service_is_down_means_copying_again() {
    let settings = Settings::default().with("max_slot_wal_keep_size", "16MB").with("min_wal_size", "32MB");
    let postgres = cluster(settings.with("max_wal_size", "48MB"));
    let database = Database::of(&postgres);
    database.docs(200);
    let mut service = Service::ready(&database, DOCS);
    let slot = service.slot.clone();
    service.terminate();
    database.sql.run("INSERT INTO docs VALUES (5000, 's', 'b', vec(5000, 4)); DELETE FROM docs WHERE id = 3");
    wait_until("the slot is lost", || {
        write_wal(&database.sql, 20);
        database.sql.run("SELECT pg_switch_wal(); CHECKPOINT");
        database.sql.one("SELECT wal_status FROM pg_replication_slots") == "lost"
    });
    service.start();
    service.wait_ready();
    service.wait_for("the lost slot is gone", |_| slots(&database.sql) == [format!("{slot}_2")]);
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 200);
    let metrics = service.client().text("/metrics").expect("metrics");
    assert!(metrics.contains("ruvector_replication_resyncs_total{reason=\"slot_lost\"} 1"), "{metrics}");
    service.wait_for("the new slot is measured", |service| {
        let metrics = service.client().text("/metrics").expect("metrics");
        metrics.contains("ruvector_source_slot_status{status=\"reserved\"} 1")
    });
}

#[test]
fn an_idle_database_keeps_no_wal_of_the_others() {
    let postgres = cluster(Settings::default());
    let (database, other) = (Database::of(&postgres), Database::of(&postgres));
    database.docs(20);
    let service = Service::ready(&database, DOCS);
    for _ in 0..2 {
        write_wal(&other.sql, 20);
        assert!(retained(&database.sql, &service.slot) > 16 * MIB);
        // The server writes what lets a slot forget WAL every 15 s.
        wait_within(Duration::from_secs(45), "less than a segment is kept", || {
            retained(&database.sql, &service.slot) < 16 * MIB
        });
    }
    assert_eq!(protection(&service)["heartbeat"]["written"], 0, "keepalives suffice");
    assert!(service.is_ready());
}

// One holder.

fn copy_dir(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success());
}

#[test]
fn a_second_service_on_the_slot_waits_answering_and_takes_over_when_the_first_is_gone() {
    let database = Database::shared();
    database.docs(200);
    let mut first = Service::ready(&database, DOCS);
    first.terminate();
    let mut second = Service::configured(&database, "", DOCS);
    copy_dir(&first.data_dir(), &second.data_dir());
    first.start();
    first.wait_ready();
    second.start();
    second.wait_for("it waits", |second| phase(second).0 == "waiting");
    let (_, reason) = phase(&second);
    assert!(reason.contains("waiting for the slot: held by PID") && reason.contains("(ruvector "), "{reason}");
    database.sql.run("INSERT INTO docs VALUES (5000, 's', 'b', vec(5000, 4)); DELETE FROM docs WHERE id = 9");
    first.catch_up(&database.sql);
    assert_eq!(first.verify_clean("docs"), 200);
    assert_eq!(ids(&second.search("docs", &near(7, 4, 1))), [7]);
    assert!(!second.is_ready() && second.status()["stale"] == phase(&second).1.as_str());
    let before = first.status()["uptime_s"].as_u64();
    assert_eq!(first.logged("trying again"), 0, "nobody took anything from the first: {}", first.log_tail());
    first.kill();
    second.wait_ready();
    second.catch_up(&database.sql);
    assert_eq!(second.verify_clean("docs"), 200);
    // The other way round.
    first.start();
    first.wait_for("now the first waits", |first| phase(first).0 == "waiting");
    assert!(second.is_ready() && before.is_some());
    second.terminate();
    first.wait_ready();
    first.catch_up(&database.sql);
    assert_eq!(first.verify_clean("docs"), 200);
    // The second one's slot waits for it, and somebody has to know: the first cannot prove that it is its own.
    let left = format!("{}_2", database.name);
    assert!(slots(&database.sql).contains(&left));
    let doctor = ruvector(&["doctor"], &first.config_file());
    assert!(text(&doctor.stdout).contains(&format!("pg_drop_replication_slot('{left}')")), "{}", text(&doctor.stdout));
    second.start();
    second.wait_for("the second waits again", |second| phase(second).0 == "waiting");
}

#[test]
fn two_services_that_start_at_once_make_one_slot() {
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(100);
    let mut services = [0, 1].map(|_| Service::configured(&database, "", DOCS));
    std::thread::scope(|scope| services.iter_mut().for_each(|service| drop(scope.spawn(|| service.start()))));
    wait_until("one is ready", || services.iter().any(Service::is_ready));
    services.sort_by_key(|service| !service.is_ready());
    let [first, second] = &mut services;
    assert_eq!(slots(&database.sql), [first.slot.as_str()]);
    second.wait_for("the other waits", |second| phase(second).0 == "waiting");
    assert_eq!(first.verify_clean("docs"), 100);
    first.kill();
    // It has no data that belongs to the slot: that is for a person to decide.
    let why = second.gives_up();
    assert!(why.contains("a slot with our name exists"), "{why}");
}

#[test]
fn slots_survive_a_failover_where_the_version_can() {
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(10);
    let can = database.sql.one("SELECT current_setting('server_version_num')::int >= 170000") == "t";
    let flag = "SELECT COALESCE(to_jsonb(s) ->> 'failover', 'none') FROM pg_replication_slots s";
    let mut service = Service::configured(&database, "failover = \"off\"", DOCS);
    service.start();
    service.wait_ready();
    assert_eq!(database.sql.one(flag), if can { "false" } else { "none" });
    service.terminate();
    service.configure(&database.dsn, "", DOCS);
    service.start();
    service.wait_ready();
    assert_eq!(database.sql.one(flag), if can { "true" } else { "none" });
    assert_eq!(service.logged("in step from now on"), usize::from(can), "{}", service.log_tail());
    service.terminate();
    database.drop_slot(&database.name);
    service.start();
    service.wait_ready();
    assert_eq!(database.sql.one(flag), if can { "true" } else { "none" });
    service.wait_for("it is measured", |service| protection(service)["slots"][0].is_object());
    // Our own sender is no standby, in whatever state the doctor meets it.
    assert_eq!(service.logged("code=\"D14\""), 0, "{}", service.log_tail());
    let shown = protection(&service)["slots"][0]["failover"].clone();
    assert!(shown.is_null() || can, "{shown}");
}

#[test]
fn a_slot_of_the_same_name_in_another_cluster_is_never_touched() {
    let (postgres, mut settings) = (cluster(Settings::default()), Settings::default());
    settings.own_identity = true;
    let elsewhere = cluster(settings);
    let database = Database::of(&postgres);
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    service.terminate();
    let there = Sql::connect(&elsewhere.dsn());
    for name in [service.slot.clone(), format!("{}_5", service.slot)] {
        there.run(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"));
    }
    let all = format!("[\"{0}\", \"{0}_5\"]", service.slot);
    std::fs::write(service.data_dir().join("SLOTS"), all).expect("written");
    write_wal(&there, 4);
    service.configure(&elsewhere.dsn(), "max_retained_wal_mib = 1", DOCS);
    let why = service.refusal();
    assert!(why.contains("another cluster answers"), "{why}");
    assert_eq!(slots(&there).len(), 2);
}

/// Passes connections on and keeps the server's end open when a client goes: to the server nothing has happened.
fn half_open_proxy(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            let (mut from_client, mut to_client) = (client.try_clone().expect("a socket"), client);
            let (mut from_server, mut to_server) = (server.try_clone().expect("a socket"), server);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut to_server);
                // The client is gone; the server is not told.
                std::thread::sleep(Duration::from_secs(300));
                drop(to_server);
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 8192];
                while let Ok(length) = from_server.read(&mut buffer)
                    && length > 0
                {
                    let _ = to_client.write_all(&buffer[..length]);
                }
            });
        }
    });
    address
}

#[test]
fn a_killed_service_has_its_slot_back_at_once_though_its_old_connections_look_alive() {
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(100);
    let mut service = Service::configured(&database, "", DOCS);
    let proxy = half_open_proxy(postgres.port());
    service.configure(&database.dsn.replace(&postgres.port().to_string(), &proxy.to_string()), "", DOCS);
    service.start();
    service.wait_ready();
    let sender = "SELECT active_pid FROM pg_replication_slots";
    let before = database.sql.one(sender);
    service.kill();
    database.sql.run("INSERT INTO docs VALUES (5000, 's', 'b', vec(5000, 4))");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(database.sql.one(sender), before, "the server does not know");
    let started = Instant::now();
    service.start();
    service.wait_ready();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "wal_sender_timeout is 60 s, it took {took:?}");
    println!("ready again after {took:?}");
    assert_ne!(database.sql.one(sender), before);
    assert_eq!(slots(&database.sql), [service.slot.clone()], "nothing was copied again");
    assert_eq!(service.logged("the copy is whole"), 1);
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 101);
}

#[test]
fn somebody_elses_session_on_the_slot_is_waited_for_and_never_ended() {
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(50);
    let mut service = Service::ready(&database, DOCS);
    let slot = service.slot.clone();
    service.terminate();
    let mut stranger = Command::new(postgres.bin_dir().join("pg_recvlogical"))
        .args(["-d", &database.dsn, "--slot", &slot, "--start", "-f", "/dev/null", "-o", "proto_version=1"])
        .args(["-o", &format!("publication_names={slot}")])
        .spawn()
        .expect("pg_recvlogical runs");
    let sender = "SELECT active_pid FROM pg_replication_slots WHERE active";
    wait_until("it streams", || database.sql.text(sender).is_some());
    let theirs = database.sql.one(sender);
    service.start();
    service.wait_for("it waits", |service| phase(service).0 == "waiting");
    let (_, reason) = phase(&service);
    assert!(reason.contains(&format!("held by PID {theirs} (pg_recvlogical)")), "{reason}");
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(database.sql.one(sender), theirs);
    assert_eq!(ids(&service.search("docs", &near(7, 4, 1))), [7]);
    stranger.kill().and_then(|()| stranger.wait()).expect("it is ours to end");
    service.wait_ready();
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 50);
}

#[test]
fn slots_of_ours_that_were_left_are_reaped_and_those_of_others_are_named() {
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    let slot = service.slot.clone();
    service.terminate();
    for name in ["7", "8"] {
        database.sql.run(&format!("SELECT pg_create_logical_replication_slot('{slot}_{name}', 'pgoutput')"));
    }
    // What a copy leaves whose slot could not be dropped then.
    ownership::remember_slot(&service.data_dir(), &format!("{slot}_7")).expect("written");
    service.start();
    service.wait_ready();
    assert_eq!(slots(&database.sql), [slot.clone(), format!("{slot}_8")]);
    service.wait_for("the doctor names it", |service| {
        let findings = service.status()["doctor"]["findings"].clone();
        let findings = findings.as_array().cloned().unwrap_or_default();
        findings
            .iter()
            .any(|one| one["code"] == "D24" && one["fix"].as_str().unwrap_or("").contains(&format!("{slot}_8")))
    });
    let doctor = ruvector(&["doctor"], &service.config_file());
    assert!(
        text(&doctor.stdout).contains(&format!("pg_drop_replication_slot('{slot}_8')")),
        "{}",
        text(&doctor.stdout)
    );
}

// The doctor.

#[test]
fn the_doctors_findings_are_in_status_and_metrics_and_only_changes_are_logged() {
    let mut postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(10);
    let mut service = Service::configured(&database, "", &format!("[doctor]\ninterval_s = 1\n{DOCS}"));
    service.start();
    service.wait_ready();
    let finds = |service: &Service, code: &str| {
        let doctor = service.status()["doctor"].clone();
        doctor["findings"].as_array().is_some_and(|all| all.iter().any(|one| one["code"] == code))
    };
    service.wait_for("no limit for kept WAL is found", |service| finds(service, "D13"));
    let metrics = service.client().text("/metrics").expect("metrics");
    assert!(metrics.contains("ruvector_doctor_findings{code=\"D13\",severity=\"warning\"} 1"), "{metrics}");
    postgres.set("max_slot_wal_keep_size", "10GB").and_then(|()| postgres.reload()).expect("it runs");
    service.wait_for("it is not found any more", |service| !finds(service, "D13"));
    let metrics = service.client().text("/metrics").expect("metrics");
    assert!(metrics.contains("ruvector_doctor_findings{code=\"D13\",severity=\"warning\"} 0"), "{metrics}");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(
        (service.logged("the doctor found code=\"D13\""), service.logged("no longer finds code=\"D13\"")),
        (1, 1)
    );
}

/// Passes on what is SQL, and refuses replication as poolers do.
fn pooler(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut startup = [0; 4096];
            let length = client.read(&mut startup).unwrap_or(0);
            let startup = &startup[..length];
            if startup.windows(11).any(|word| word == b"replication") {
                let fields = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: replication\0\0";
                let mut answer = vec![b'E'];
                answer.extend((fields.len() as u32 + 4).to_be_bytes());
                answer.extend(fields);
                let _ = client.write_all(&answer);
                continue;
            }
            let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            let _ = server.write_all(startup);
            let (mut back, mut client_too) =
                (server.try_clone().expect("a socket"), client.try_clone().expect("a socket"));
            std::thread::spawn(move || std::io::copy(&mut client, &mut server));
            std::thread::spawn(move || std::io::copy(&mut back, &mut client_too));
        }
    });
    address
}

#[test]
fn the_doctor_tells_a_pooler_from_a_server() {
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(10);
    let service = Service::configured(&database, "", DOCS);
    let d05 = |dsn: &str| {
        service.configure(dsn, "", DOCS);
        let output = text(&ruvector(&["doctor"], &service.config_file()).stdout);
        let lines: Vec<_> = output.lines().skip_while(|line| !line.contains(" D05 ")).take(2).collect();
        lines.join("\n")
    };
    let direct = d05(&database.dsn);
    assert!(direct.starts_with("ok") && direct.contains("also for replication"), "{direct}");
    let through = database.dsn.replace(&postgres.port().to_string(), &pooler(postgres.port()).to_string());
    let pooled = d05(&format!("{through}?sslmode=disable"));
    assert!(pooled.starts_with("ERROR") && pooled.contains("SQL works, replication does not"), "{pooled}");
    assert!(pooled.contains("a pooler or proxy is probably in between"), "{pooled}");
}

// Leaving.

#[test]
fn detach_takes_back_what_is_ours_and_nothing_else() {
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    let slot = service.slot.clone();
    database.sql.run(&format!(
        "SELECT pg_create_logical_replication_slot('{slot}_9', 'pgoutput'), pg_create_logical_replication_slot('theirs', 'pgoutput');
         CREATE PUBLICATION theirs FOR TABLE docs"
    ));
    let config = service.config_file();
    let running = ruvector(&["detach", "--yes"], &config);
    assert_eq!(running.status.code(), Some(2));
    assert!(text(&running.stderr).contains("stop it first"), "{}", text(&running.stderr));
    service.terminate();
    let shown = ruvector(&["detach", "--publication", "--data"], &config);
    let said = text(&shown.stdout);
    let sql = format!("SELECT pg_drop_replication_slot('{slot}');");
    assert!(shown.status.success() && said.contains(&sql) && said.contains("DROP PUBLICATION"), "{said}");
    assert!(said.contains("nothing was run") && said.contains(&format!("{slot}_9 has a name of ours")), "{said}");
    assert_eq!(slots(&database.sql).len(), 3);
    let done = ruvector(&["detach", "--publication", "--data", "--yes"], &config);
    assert!(done.status.success(), "{}{}", text(&done.stdout), text(&done.stderr));
    assert_eq!(slots(&database.sql), [format!("{slot}_9"), "theirs".into()]);
    assert_eq!(database.sql.one("SELECT string_agg(pubname, ' ') FROM pg_publication"), "theirs");
    assert!(!service.data_dir().exists());
    for _ in 0..2 {
        let again = ruvector(&["detach", "--publication", "--data", "--all", "--yes"], &config);
        assert!(again.status.success(), "{}{}", text(&again.stdout), text(&again.stderr));
    }
    assert_eq!(slots(&database.sql), ["theirs"]);
    // And it can come back.
    service.start();
    service.wait_ready();
    assert_eq!(service.verify_clean("docs"), 10);
    service.terminate();
    database.sql.run(&format!("DROP PUBLICATION \"{slot}\"; CREATE PUBLICATION \"{slot}\" FOR TABLE docs"));
    let theirs = ruvector(&["detach", "--publication", "--yes"], &config);
    assert!(text(&theirs.stdout).contains("was not made by ruvector and stays"), "{}", text(&theirs.stdout));
    assert_eq!(database.sql.one("SELECT count(*) FROM pg_publication"), "2");
}

#[test]
fn a_lost_data_directory_is_told_by_the_doctor_and_by_detach() {
    let postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    let slot = service.slot.clone();
    service.terminate();
    let config = service.config_file();
    let d25 = |said: &str| said.lines().find(|line| line.contains(" D25 ")).unwrap_or_default().to_owned();
    let known = ruvector(&["doctor"], &config);
    assert!(d25(&text(&known.stdout)).starts_with("ok"), "{}", text(&known.stdout));
    assert_eq!(known.status.code(), Some(1), "no limit for kept WAL is a warning: {}", text(&known.stdout));
    std::fs::remove_dir_all(service.data_dir()).expect("removed");
    let lost = ruvector(&["doctor"], &config);
    let said = text(&lost.stdout);
    assert!(d25(&said).starts_with("ERROR") && d25(&said).contains("does not know it"), "{said}");
    assert!(said.contains(&format!("SELECT pg_drop_replication_slot('{slot}');")), "{said}");
    assert_eq!(lost.status.code(), Some(2));
    let left = ruvector(&["detach", "--yes"], &config);
    let said = text(&left.stdout);
    assert!(said.contains("NOT DONE") && said.contains("--all") && !said.contains("-- done"), "{said}");
    assert_eq!((left.status.code(), slots(&database.sql)), (Some(1), vec![slot.clone()]));
    let gone = ruvector(&["detach", "--all", "--yes"], &config);
    assert!(gone.status.success() && slots(&database.sql).is_empty(), "{}", text(&gone.stdout));
    // All is well only where nothing is left to say.
    database.sql.run("ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'");
    database.sql.run("SELECT pg_reload_conf(); ANALYZE docs");
    let well = ruvector(&["doctor", "--json"], &config);
    let findings: Json = serde_json::from_slice(&well.stdout).expect("JSON");
    let bad: Vec<_> = findings.as_array().expect("a list").iter().filter(|one| one["severity"] != "ok").collect();
    assert!(bad.is_empty() && well.status.code() == Some(0), "{bad:?}");
}

/// What a finding of this code says, and what to do.
fn finding(findings: &Json, code: &str) -> (String, String) {
    let found = findings.as_array().expect("a list").iter().find(|one| one["code"] == code && one["severity"] != "ok");
    let field = |name: &str| found.and_then(|found| found[name].as_str()).unwrap_or_default().to_owned();
    (field("severity"), format!("{} {}", field("observed"), field("fix")))
}

#[test]
fn the_doctor_finds_what_is_wrong_with_tables_rights_and_publication() {
    let database = Database::shared();
    let name = database.name.clone();
    database.docs(10);
    database.sql.run(&format!(
        "CREATE ROLE \"{name}\" LOGIN REPLICATION; CREATE PUBLICATION \"{name}\" FOR TABLE docs
           WITH (publish_via_partition_root = true)"
    ));
    let (dsn, sections) = (database.dsn.replace("postgres@", &format!("{name}@")), DOCS.to_owned());
    let service = Service::configured(&database, "", &sections);
    let ask = |sections: &str| -> Json {
        service.configure(&dsn, "create_publication = false\n", sections);
        serde_json::from_slice(&ruvector(&["doctor", "--json"], &service.config_file()).stdout).expect("JSON")
    };
    let grant = format!("GRANT SELECT ON \"public\".\"docs\" TO \"{name}\";");
    let no_right = ask(DOCS);
    assert_eq!(finding(&no_right, "D10"), ("error".into(), format!("our role may not read it {grant}")));
    assert!(finding(&no_right, "D07").1.ends_with(&grant), "{no_right:#}");
    assert_eq!(database.sql.try_run(&grant).map_err(|error| error.to_string()), Ok(()), "it can be pasted");
    let never = ask(DOCS);
    assert!(never.to_string().contains("not analysed yet") && finding(&never, "D10").0.is_empty(), "{never:#}");
    database.sql.run("ALTER TABLE docs ENABLE ROW LEVEL SECURITY");
    let (severity, said) = finding(&ask(DOCS), "D11");
    assert_eq!(
        (severity.as_str(), said.ends_with(&format!("ALTER ROLE \"{name}\" BYPASSRLS;"))),
        ("error", true),
        "{said}"
    );
    database.sql.run("ALTER TABLE docs DISABLE ROW LEVEL SECURITY; ALTER TABLE docs REPLICA IDENTITY FULL");
    assert_eq!(finding(&ask(DOCS), "D08").0, "warning");
    database.sql.run("ALTER TABLE docs REPLICA IDENTITY DEFAULT");
    assert!(finding(&ask(&DOCS.replace("\"embedding\"", "\"body\"")), "D07").1.contains("column \"body\""));
    database.sql.run(&format!("ALTER PUBLICATION \"{name}\" DROP TABLE docs"));
    let (severity, said) = finding(&ask(DOCS), "D09");
    assert_eq!((severity.as_str(), said.contains("ADD TABLE ONLY \"public\".\"docs\"")), ("error", true), "{said}");
    // A name with an IPv4 address is well.
    service.configure(&dsn.replace("127.0.0.1", "localhost"), "", DOCS);
    let by_name = text(&ruvector(&["doctor"], &service.config_file()).stdout);
    assert!(by_name.lines().any(|line| line.starts_with("ok") && line.contains(" D23 ")), "{by_name}");
    // Each says what it is, not where pg_hba.conf is.
    let server = dsn.rsplit_once('/').expect("a database").0;
    service.configure(&format!("{server}/nowhere"), "", DOCS);
    let nowhere = ruvector(&["doctor"], &service.config_file());
    let said = text(&nowhere.stdout);
    assert!(said.contains("correct the database in source.dsn") && !said.contains("listen_addresses"), "{said}");
    assert_eq!(nowhere.status.code(), Some(2));
    database.sql.run(&format!("DROP OWNED BY \"{name}\"; DROP ROLE \"{name}\""));
}

#[test]
fn a_rebuild_that_cannot_go_on_says_why_and_the_doctor_looks_again_when_the_source_is_back() {
    let mut postgres = cluster(Settings::default().with("max_replication_slots", "1"));
    let database = Database::of(&postgres);
    database.docs(10);
    let mut service = Service::configured(&database, "", &format!("[doctor]\ninterval_s = 3600\n{DOCS}"));
    service.start();
    service.wait_ready();
    let finds = |service: &Service, code: &str| {
        let doctor = service.status()["doctor"].clone();
        doctor["findings"].as_array().is_some_and(|all| all.iter().any(|one| one["code"] == code))
    };
    service.wait_for("there is no slot for a copy", |service| finds(service, "D03") && finds(service, "D13"));
    let before = service.collection("docs")["copied_at"].clone();
    let rebuild = |service: &Service| {
        let ruvector = env!("CARGO_BIN_EXE_ruvector");
        let arguments = ["rebuild", "docs", "--patience", "3", "--url", service.url()];
        let output = Command::new(ruvector).args(arguments).output().expect("it runs");
        (output.status.code(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    let (code, said) = rebuild(&service);
    assert!(code == Some(2) && said.contains("53400") && said.contains("nothing has moved for 3 s"), "{said}");
    assert!(service.is_ready(), "what was there answers");
    postgres.stop(Stop::Fast).expect("it stops");
    let (code, said) = rebuild(&service);
    assert!(code == Some(2) && said.contains("not reachable"), "{said}");
    service.wait_for("what is known of the source ages", |service| {
        let age = |name: &str| service.metric(name);
        age("ruvector_replication_heard_age_seconds") > 3.0 && age("ruvector_source_slot_measured_age_seconds") > 3.0
    });
    postgres.set("max_slot_wal_keep_size", "10GB").expect("written");
    postgres.set("max_replication_slots", "4").expect("written");
    postgres.start_again().expect("it starts");
    service.wait_for("the doctor was there again", |service| !finds(service, "D03") && !finds(service, "D13"));
    // What was asked for meanwhile is done now.
    service.wait_for("a new copy answers", |service| service.collection("docs")["copied_at"] != before);
    service.wait_ready();
    service.catch_up(&database.connect());
    let docs = service.collection("docs");
    assert!(docs.get("trouble").is_none() && docs.get("copy").is_none(), "{docs}");
    assert_eq!(service.verify_clean("docs"), 10);
    // Asked for twice, once while the first waited: one copy.
    assert_eq!(service.logged("a rebuild was asked for"), 1, "{}", service.log_tail());
}

#[test]
fn detach_refuses_another_cluster() {
    let (postgres, mut settings) = (cluster(Settings::default()), Settings::default());
    settings.own_identity = true;
    let elsewhere = cluster(settings);
    let database = Database::of(&postgres);
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    service.terminate();
    let there = Sql::connect(&elsewhere.dsn());
    there.run(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", service.slot));
    service.configure(&elsewhere.dsn(), "", DOCS);
    let refused = ruvector(&["detach", "--yes"], &service.config_file());
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("another cluster"), "{}", text(&refused.stderr));
    assert_eq!(slots(&there), [service.slot.clone()]);
}

// What a container's health check asks.

#[test]
fn status_says_by_its_exit_code_whether_it_is_ready_and_bears_a_closed_pipe() {
    let database = Database::shared();
    database.docs(10);
    let mut service = Service::ready(&database, DOCS);
    let status = |service: &Service, pipe: &str| {
        let command = format!("{} status --url {} {pipe}", env!("CARGO_BIN_EXE_ruvector"), service.url());
        Command::new("sh").args(["-c", &command]).output().expect("sh runs")
    };
    assert_eq!(status(&service, "").status.code(), Some(0));
    let cut = status(&service, "| true; sleep 0.2");
    assert!(!text(&cut.stderr).contains("panicked"), "{}", text(&cut.stderr));
    database.sql.run("ALTER TABLE docs DROP COLUMN embedding; UPDATE docs SET body = 'x' WHERE id = 1");
    service.wait_for("it is not ready", |service| !service.is_ready());
    let paused = status(&service, "");
    assert_eq!(paused.status.code(), Some(1), "{}", text(&paused.stdout));
    assert!(text(&paused.stdout).contains("not ready"), "{}", text(&paused.stdout));
}
