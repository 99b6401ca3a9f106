//! Somebody else's application: two tables, and random transactions on them for as long as a test wants.

use super::soak::Random;
use super::{Database, Sql};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The collection over the second table.
pub const NOTES: &str = "[[collections]]
table = \"public.notes\"
name = \"notes\"
[[collections.vectors]]
column = \"embedding\"
metric = \"cosine\"
m = 8
ef_construction = 40
";

/// Both tables, and so many rows in each.
pub fn tables(database: &Database, docs: usize, notes: usize) {
    database.long_docs(docs);
    database.sql.run(&format!(
        "CREATE TABLE notes (a int, b text, body text, embedding real[], PRIMARY KEY (b, a));
         INSERT INTO notes SELECT i, 'n', 'body', vec(i, 8) FROM generate_series(1, {notes}) i"
    ));
}

/// Writes random transactions until it is dropped.
pub struct Writer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    /// Held during each transaction.
    turn: Arc<Mutex<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts writing; the seed gives the same transactions again.
    pub fn start(database: &Database, seed: u64) -> Writer {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let turn = Arc::new(Mutex::new(()));
        let (sql, ended, counted, turns) = (database.connect(), stop.clone(), count.clone(), turn.clone());
        let thread = std::thread::spawn(move || {
            let mut random = Random(seed);
            while !ended.load(Ordering::Relaxed) {
                let turn = turns.lock().unwrap_or_else(PoisonError::into_inner);
                transaction(&sql, &mut random);
                drop(turn);
                counted.fetch_add(1, Ordering::Relaxed);
                // Paced, not timed: the index must also get its share of two cores.
                std::thread::sleep(Duration::from_millis(random.below(8)));
            }
        });
        Writer { stop, count, turn, thread: Some(thread) }
    }

    /// Transactions so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Between two transactions: the next one waits until this is dropped.
    pub fn pause(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends after the transaction under way; a panic of it is ours.
    pub fn stop(mut self) {
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
    sql.run_beside_others(&text);
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
