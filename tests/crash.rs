//! Crashes: the real binary is killed with -9 again and again beside a real PostgreSQL that is written to all the time.
//! After every start it catches up, equals its tables, and the source has forgotten nothing that we had not made durable.

mod support;

use ruvector::model::Lsn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use support::{DOCS, Database, Service, Sql, wait_until};

/// Random numbers that a seed gives again (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

const NOTES: &str = "[[collections]]
table = \"public.notes\"
name = \"notes\"
[[collections.vectors]]
column = \"embedding\"
metric = \"cosine\"
m = 8
ef_construction = 40
";

fn tables(database: &Database, docs: usize, notes: usize) {
    database.long_docs(docs);
    database.sql.run(&format!(
        "CREATE TABLE notes (a int, b text, body text, embedding real[], PRIMARY KEY (b, a));
         INSERT INTO notes SELECT i, 'n', 'body', vec(i, 8) FROM generate_series(1, {notes}) i"
    ));
}

/// Writes random transactions until it is dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    /// Transactions committed.
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(database: &Database, seed: u64) -> Writer {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (sql, ended, counted) = (database.connect(), stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            let mut random = Random(seed);
            while !ended.load(Ordering::Relaxed) {
                transaction(&sql, &mut random);
                counted.fetch_add(1, Ordering::Relaxed);
                // Paced, not timed: the index must also get its share of two cores.
                std::thread::sleep(Duration::from_millis(random.below(8)));
            }
        });
        Writer { stop, count, thread: Some(thread) }
    }

    fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

/// One transaction of one to four operations; every seventh is rolled back, in whole or from a savepoint on.
fn transaction(sql: &Sql, random: &mut Random) {
    let mut text = String::from("BEGIN;");
    let rolled_back = random.below(14);
    for number in 0..1 + random.below(4) {
        if rolled_back == 1 && number == 1 {
            text.push_str("SAVEPOINT s;");
        }
        text.push_str(&operation(random));
    }
    text.push_str(match rolled_back {
        0 => "ROLLBACK;",
        1 if text.contains("SAVEPOINT") => "ROLLBACK TO s; COMMIT;",
        _ => "COMMIT;",
    });
    sql.run(&text);
}

fn operation(random: &mut Random) -> String {
    let (id, other, seed) = (random.below(1500), random.below(1500), random.below(1 << 40));
    let docs = |what: &str| what.replace("$id", &id.to_string()).replace("$other", &other.to_string());
    // Rarely, or there would never be much to lose.
    let rare = random.below(10) == 0;
    match random.below(400) {
        0 if rare => "TRUNCATE docs;".into(),
        1 if rare => "TRUNCATE docs, notes;".into(),
        2 => "INSERT INTO notes SELECT i, 'many', 'body', vec(i, 8) FROM generate_series(1, 5000) i
              ON CONFLICT (b, a) DO UPDATE SET body = notes.body || '+';"
            .into(),
        3 if rare => "DELETE FROM notes WHERE b = 'many';".into(),
        0..=100 => docs(
            "INSERT INTO docs VALUES ($id, 's', repeat('y', 700), vec($seed, 384))
                         ON CONFLICT (id) DO UPDATE SET embedding = excluded.embedding;",
        )
        .replace("$seed", &seed.to_string()),
        101..=180 => docs("UPDATE docs SET section = section || 'x' WHERE id = $id;"),
        181..=210 => docs("UPDATE docs SET body = repeat('z', 701) WHERE id BETWEEN $id AND $id + 20;"),
        211..=240 => {
            docs("DELETE FROM docs WHERE id = $other AND id <> $id; UPDATE docs SET id = $other WHERE id = $id;")
        }
        241..=270 => docs("DELETE FROM docs WHERE id = $id;"),
        271..=280 => docs("UPDATE docs SET embedding = NULL WHERE id = $id;"),
        281..=290 => docs("UPDATE docs SET embedding = ARRAY[1, 2, 'NaN']::real[] WHERE id = $id;"),
        291..=300 => docs(
            "DELETE FROM docs WHERE id = $id;
             INSERT INTO docs VALUES ($id, 'again', repeat('w', 700), vec($id, 384));",
        ),
        301..=340 => docs("UPDATE notes SET body = body || '.' WHERE a = $id;"),
        341..=360 => docs("UPDATE notes SET embedding = vec($other, 8) WHERE a = $id;"),
        361..=380 => docs("INSERT INTO notes VALUES ($id, 'é''\"', '', vec($id, 8)) ON CONFLICT DO NOTHING;"),
        _ => docs("UPDATE notes SET b = '$seed' || b WHERE a = $id AND length(b) < 100;")
            .replace("$seed", &seed.to_string()),
    }
}

fn seed() -> u64 {
    let given = std::env::var("RUVECTOR_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let seed = given.unwrap_or_else(now);
    println!("RUVECTOR_TEST_SEED={seed}");
    seed
}

/// What the start's log line says to be durable, if there was data to open.
fn opened_at(log: &str) -> Option<Lsn> {
    let line = log.lines().rev().find(|line| line.contains("opened the data directory"))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("at=")).map(|lsn| lsn.parse().expect("an LSN"))
}

/// While nobody holds the slot, what the source may forget must be durable here.
fn check_confirmed(database: &Database, service: &mut Service) {
    let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", service.slot);
    wait_until("the dead one's sender is gone", || database.sql.text(&active).is_none_or(|active| active == "f"));
    let confirmed = database.sql.confirmed(&service.slot);
    let before = service.log().len();
    service.start();
    let opened = opened_at(&service.log()[before..]);
    if let (Some(confirmed), Some(durable)) = (confirmed, opened) {
        assert!(confirmed <= durable, "the source forgot up to {confirmed}, durable here is {durable}");
    }
}

#[test]
fn killed_at_any_moment_it_loses_and_doubles_nothing() {
    let rounds: u64 = std::env::var("RUVECTOR_TEST_ROUNDS").map_or(50, |rounds| rounds.parse().expect("a number"));
    let seed = seed();
    let mut random = Random(seed);
    let database = Database::shared();
    tables(&database, 1500, 400);
    let writer = Writer::start(&database, seed + 1);
    let sections = format!("{DOCS}{NOTES}");
    let mut service = Service::configured(&database, "", &sections);
    // A fifth of the rounds begin without data, and most of those end before the copy does.
    let fresh = rounds / 5;
    let (mut in_copy, mut restarts) = (0, 0);
    for round in 0..rounds {
        if round > 0 && round < fresh {
            service.kill();
            std::fs::remove_dir_all(service.data_dir()).expect("its own directory");
            let drop = format!("SELECT pg_drop_replication_slot('{}')", service.slot);
            wait_until("the slot is free", || database.sql.try_run(&drop).is_ok());
        }
        if round < fresh {
            service.start();
        }
        let longest = if round < fresh { 400 } else { 900 };
        std::thread::sleep(Duration::from_millis(random.below(longest)));
        let copied = service.is_ready();
        in_copy += u64::from(!copied && round < fresh);
        let copies = service.logged("the copy is whole");
        service.kill();
        restarts += 1;
        check_confirmed(&database, &mut service);
        if random.below(5) == 0 {
            // Right after the start once more.
            std::thread::sleep(Duration::from_millis(random.below(120)));
            service.kill();
            restarts += 1;
            check_confirmed(&database, &mut service);
        }
        service.wait_ready();
        service.catch_up(&database.sql);
        for name in ["docs", "notes"] {
            service.verify_clean(name);
        }
        if copied {
            assert_eq!(service.logged("the copy is whole"), copies, "round {round} copied again:\n{}", service.log());
        }
    }
    let transactions = writer.count.load(Ordering::Relaxed);
    writer.stop();
    service.catch_up(&database.sql);
    let rows: u64 = ["docs", "notes"].map(|name| service.verify_clean(name)).iter().sum();
    println!(
        "{rounds} rounds, {restarts} kills, {in_copy} in a copy, {transactions} transactions, {rows} rows at the end"
    );
    assert!(in_copy > 0 || fresh < 5, "no kill came in the middle of a copy");
    service.terminate();
}

#[test]
fn a_graceful_stop_is_resumed_without_copying() {
    let database = Database::shared();
    tables(&database, 200, 1500);
    let writer = Writer::start(&database, seed());
    let mut service = Service::ready(&database, &format!("{DOCS}{NOTES}"));
    for stop in 1..=3 {
        let slot = service.status()["slot"].clone();
        service.terminate();
        check_confirmed(&database, &mut service);
        service.wait_ready();
        service.catch_up(&database.sql);
        assert_eq!(service.status()["slot"], slot);
        assert_eq!(service.logged("going on from our checkpoint"), stop, "{}", service.log());
        for name in ["docs", "notes"] {
            service.verify_clean(name);
        }
    }
    writer.stop();
    assert_eq!(service.logged("the copy is whole"), 1, "{}", service.log());
    assert_eq!(service.logged(" ERROR "), 0, "{}", service.log());
    assert_eq!(service.logged(" WARN "), 0, "{}", service.log());
    service.terminate();
}
