//! Crashes: the real binary is killed with -9 again and again beside a real PostgreSQL that is written to all the time.
//! After every start it catches up, equals its tables, and the source has forgotten nothing that we had not made durable.

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use support::soak::Random;
use support::writer::{NOTES, Writer, tables};
use support::{DOCS, Database, Service, wait_until};

fn seed() -> u64 {
    let given = std::env::var("RUVECTOR_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let seed = given.unwrap_or_else(now);
    println!("RUVECTOR_TEST_SEED={seed}");
    seed
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
        service.start_checking_confirmed(&database);
        if random.below(5) == 0 {
            // Right after the start once more.
            std::thread::sleep(Duration::from_millis(random.below(120)));
            service.kill();
            restarts += 1;
            service.start_checking_confirmed(&database);
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
    let transactions = writer.count();
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
        service.start_checking_confirmed(&database);
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
