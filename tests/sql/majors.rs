//! The real postgres_fdw of every supported major: the checks of `foreign.rs` one after the other, on a world of its own.

use crate::foreign::{CHANGES, CHECKS};
use crate::support::majors::{binaries, is_wanted};
use crate::support::{Database, cluster};
use crate::world::World;
use ruvector::cli::private_postgres::Settings;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// All checks beside this major; what fails is told by name, and the others are done all the same.
fn every_check(major: u32) {
    if !is_wanted(major) {
        println!("PostgreSQL {major} is not in RUVECTOR_TEST_MAJORS");
        return;
    }
    let started = Instant::now();
    let postgres = cluster(Settings { bin_dir: Some(binaries(major)), ..Settings::default() });
    let mut world = World::new(Database::of(&postgres));
    let version = world.database.sql.one("SELECT current_setting('server_version_num')::int / 10000");
    assert_eq!(version, major.to_string());
    println!("PostgreSQL {major}, a world: {:.2} s", started.elapsed().as_secs_f64());
    let mut failed = Vec::new();
    let mut note = |name: &'static str, check: &mut dyn FnMut()| {
        let began = Instant::now();
        if catch_unwind(AssertUnwindSafe(check)).is_err() {
            failed.push(name);
        }
        println!("PostgreSQL {major}, {name}: {:.2} s", began.elapsed().as_secs_f64());
    };
    CHECKS.iter().for_each(|(name, check)| note(name, &mut || check(&world)));
    CHANGES.iter().for_each(|(name, check)| note(name, &mut || check(&mut world)));
    println!("PostgreSQL {major}: {:.1} s", started.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "PostgreSQL {major}: {failed:?}");
}

#[test]
fn every_check_holds_beside_postgresql_14() {
    every_check(14);
}

#[test]
fn every_check_holds_beside_postgresql_16() {
    every_check(16);
}

#[test]
fn every_check_holds_beside_postgresql_17() {
    every_check(17);
}

#[test]
fn every_check_holds_beside_postgresql_18() {
    every_check(18);
}

#[test]
fn every_check_holds_beside_postgresql_15() {
    every_check(15);
}
