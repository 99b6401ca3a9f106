//! Many sessions at once, through postgres_fdw and directly: all are answered, nobody starves, and nothing is left of them.

use crate::support::{Database, Sql, cluster, wait_within};
use crate::world::{World, firsts};
use ruvector::cli::private_postgres::Settings;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SESSIONS: usize = 100;
const ROUNDS: usize = 6;
const QUERY: &str = "ARRAY[0.3, 0.1, 0.7, 0.5]::real[]";
const TEXT: &str = "[0.3,0.1,0.7,0.5]";

/// A search, and a cursor that is closed early, in one of several ways.
fn through_postgres(sql: &Sql, session: usize, expected: &[String]) {
    let joined = format!(
        "SELECT d.id FROM docs_nearest({QUERY}) s JOIN public.docs d USING (id) ORDER BY s.distance LIMIT {}",
        expected.len()
    );
    for round in 0..ROUNDS {
        assert_eq!(firsts(sql, &joined), expected);
        sql.run(&format!("BEGIN; DECLARE c CURSOR FOR SELECT id FROM docs_nearest({QUERY})"));
        assert_eq!(firsts(sql, "FETCH 5 FROM c"), expected[..5]);
        sql.run(match (session + round) % 3 {
            0 => "CLOSE c; COMMIT",
            1 => "ROLLBACK",
            _ => "COMMIT",
        });
    }
}

fn directly(sql: &Sql, session: usize, expected: &[String]) {
    let nearest = format!("SELECT id FROM docs ORDER BY embedding <-> '{TEXT}'");
    for round in 0..ROUNDS {
        assert_eq!(firsts(sql, &format!("{nearest} LIMIT {}", expected.len())), expected);
        sql.run(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; DECLARE c CURSOR FOR {nearest}"));
        assert_eq!(firsts(sql, "FETCH 5 FROM c"), expected[..5]);
        sql.run(match (session + round) % 3 {
            0 => "CLOSE c; COMMIT",
            1 => "ROLLBACK",
            _ => "SAVEPOINT a; DECLARE d CURSOR FOR SELECT id FROM docs; FETCH 1 FROM d; ROLLBACK TO a; COMMIT",
        });
    }
}

#[test]
fn a_hundred_sessions_of_each_kind_are_answered_and_leave_nothing() {
    let postgres = cluster(Settings::default().with("max_connections", "150"));
    let world = World::with_connections(Database::of(&postgres), 2 * SESSIONS + 10);
    let expected = world.nearest(QUERY, "true", 10);
    let other = world.direct();
    let nearest = format!("SELECT id FROM docs ORDER BY embedding <-> '{TEXT}' LIMIT 10");
    assert_eq!(firsts(&other, &nearest), expected);
    let opened: Vec<_> = (0..SESSIONS).map(|_| (world.source(), world.direct())).collect();
    let done = AtomicBool::new(false);
    let mut waits = Vec::new();
    let took = std::thread::scope(|scope| {
        let mut sessions = Vec::new();
        let started = Instant::now();
        for (session, (source, sql)) in opened.into_iter().enumerate() {
            let expected = &expected;
            sessions.push(scope.spawn(move || through_postgres(&source, session, expected)));
            sessions.push(scope.spawn(move || {
                directly(&sql, session, expected);
                // Every third goes away in the middle of a cursor, without a word.
                if session % 3 == 0 {
                    sql.run("BEGIN; DECLARE c CURSOR FOR SELECT id FROM docs");
                    assert_eq!(sql.rows("FETCH 3 FROM c").len(), 3);
                }
            }));
        }
        let watched = scope.spawn(|| {
            let mut waits = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let asked = Instant::now();
                assert_eq!(firsts(&other, &nearest), expected);
                waits.push(asked.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            waits
        });
        sessions.into_iter().for_each(|session| session.join().expect("a session came to its end"));
        let took = started.elapsed();
        done.store(true, Ordering::Relaxed);
        waits = watched.join().expect("the other session was answered");
        took
    });
    waits.sort_unstable();
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!(
        "{} sessions: {took:.2?}; beside them {} searches, p50 {median:.2?}, longest {longest:.2?}",
        2 * SESSIONS,
        waits.len()
    );
    // Who asks beside 200 others waits for its turn, not for their end.
    assert!(
        median < (took / 4).max(Duration::from_secs(1)) && longest < took * 3 / 4,
        "{median:?}, {longest:?} of {took:?}"
    );
    drop(other);
    wait_within(Duration::from_secs(20), "nothing is left", || {
        world.sessions() == 0.0 && world.service.metric("ruvector_held_views") == 0.0
    });
    assert_eq!(firsts(&world.direct(), &nearest), expected);
}
