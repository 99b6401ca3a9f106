//! Random histories on a real PostgreSQL: interleaved transactions of several sessions against a model in the test, with
//! readers who at every moment look for half a transaction, for an answer older than its token, for a position that goes
//! back. `RUVECTOR_SOAK_OPERATIONS` is the length of a round.

mod model;
mod sessions;
#[path = "../support/mod.rs"]
mod support;

use model::{Embedding, GROUP, GROUPS, Rows, TABLES, Table};
use ruvector::cli::client::Client;
use ruvector::model::Lsn;
use serde_json::{Value as Json, json};
use sessions::{Sessions, Token};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use support::soak::{Random, Soak};
use support::{Database, Service, Sql};

/// Rows of each table that are searched for by their own vectors at a quiet point inside a round; all of them at its end.
const SAMPLE: u64 = 15;

#[test]
fn no_history_diverges_shows_half_a_transaction_or_answers_older_than_its_token() {
    let operations = std::env::var("RUVECTOR_SOAK_OPERATIONS").ok().filter(|text| !text.is_empty());
    let long = std::env::var("RUVECTOR_SOAK_ROUNDS").is_ok() || std::env::var("RUVECTOR_SOAK_MINUTES").is_ok();
    let operations = operations.map_or(if long { 5000 } else { 600 }, |text| text.parse().expect("a number"));
    let mut soak = Soak::new("histories", 2);
    let mut sums = [0; 6];
    let mut kinds = BTreeMap::new();
    while let Some(seed) = soak.next_round() {
        soak.run(seed, &format!("RUVECTOR_SOAK_OPERATIONS={operations}"), || {
            let counts = round(seed, operations, &mut kinds);
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        });
    }
    let names = ["operations", "transactions", "quiet_points", "restarts", "groups_read", "tokens_redeemed"];
    for (name, sum) in names.into_iter().zip(sums) {
        soak.fact(name, sum);
    }
    soak.fact("kinds", json!(kinds));
    soak.finish();
}

fn collections() -> String {
    let mut text = String::new();
    for table in TABLES {
        let name = table.name();
        text += &format!(
            "[[collections]]\ntable = \"public.{name}\"\nname = \"{name}\"\nfilter_columns = [\"tag\", \"price\"]\n\
             [[collections.vectors]]\ncolumn = \"embedding\"\nmetric = \"l2\"\nm = 8\nef_construction = 40\ndimensions = {}\n",
            table.dimensions()
        );
    }
    text
}

fn round(seed: u64, operations: u64, kinds: &mut BTreeMap<String, u64>) -> [u64; 6] {
    let mut random = Random(seed);
    let database = Database::shared();
    let mut sessions = Sessions::new(&database, Random(random.next()));
    let mut service = Service::configured(&database, sessions::SOURCE, &collections());
    let restarts = random.below(2) == 0;
    let watch = Watch::start(random.next());
    service.start();
    let (mut restarted, mut quiet) = (0, 0);
    if random.below(2) == 0 {
        // The copy takes its time, and so do transactions that are open when the slot is made.
        for _ in 0..random.below(60) {
            sessions.step();
        }
        sessions.rest();
    }
    service.wait_ready();
    watch.process(Some(&service));
    while sessions.operations < operations {
        let tokens = sessions.step();
        watch.add(tokens);
        if random.below(operations / 3) == 0 {
            quiet += 1;
            watch.add(sessions.rest());
            compare(&mut sessions, &database.sql, &mut service, &mut random, Some(SAMPLE));
        }
        if restarts && random.below(operations / 3) == 0 {
            restarted += 1;
            watch.process(None);
            if random.below(2) == 0 {
                service.kill()
            } else {
                service.terminate()
            }
            for _ in 0..random.below(30) {
                sessions.step();
            }
            service.start();
            watch.process(Some(&service));
        }
        watch.check();
    }
    watch.add(sessions.rest());
    compare(&mut sessions, &database.sql, &mut service, &mut random, None);
    let (groups, tokens) = watch.end();
    assert_eq!(service.logged("the copy is whole"), 1, "{}", service.log_tail());
    service.terminate();
    for (kind, count) in &sessions.kinds {
        *kinds.entry(kind.clone()).or_default() += count;
    }
    [sessions.operations, sessions.transactions, quiet + 1, restarted, groups, tokens]
}

/// Model, source and index are the same.
fn compare(sessions: &mut Sessions, sql: &Sql, service: &mut Service, random: &mut Random, sample: Option<u64>) {
    service.wait_ready();
    service.catch_up(sql);
    if std::mem::take(&mut sessions.silent) {
        let clean = |name: &str, service: &Service| {
            let client = service.client();
            let path = format!("/v1/admin/collections/{name}/verify");
            let live = client.get(&format!("/v1/collections/{name}")).is_ok_and(|found| found["state"] == "live");
            live && client.post(&path, &json!({})).is_ok_and(|report| report["mismatch_count"] == 0)
        };
        let clean = |service: &Service| TABLES.iter().all(|table| clean(table.name(), service));
        service.wait_for("it finds by itself what had no event", clean);
    }
    let model: &Rows = &sessions.committed;
    for table in TABLES {
        let name = table.name();
        let ours: Vec<_> = model.range((table, i64::MIN)..=(table, i64::MAX)).collect();
        let theirs = sql.rows(&format!("SELECT id, tag, price, embedding FROM {name} ORDER BY id"));
        assert_eq!(theirs.len(), ours.len(), "{name}: the model is of the source");
        for (found, ((_, id), row)) in theirs.iter().zip(&ours) {
            let text = |at: usize| found[at].as_deref();
            let numbers =
                [Some(*id), Some(row.tag), Some(row.price)].map(|number| number.map(|number| number.to_string()));
            assert_eq!(found[..3], numbers, "{name}");
            let same = match (&row.embedding, text(3)) {
                (Embedding::Vector(vector), Some(text)) => {
                    let elements = text.trim_matches(['{', '}']).split(',').map(str::parse::<f32>);
                    elements.collect::<Result<Vec<_>, _>>().is_ok_and(|found| found == *vector)
                }
                (other, text) => other.text().as_deref() == text,
            };
            assert!(same, "{name} {id}: {:?} in the model, {:?} in the source", row.embedding, text(3));
        }
        assert_eq!(service.verify_clean(name), ours.len() as u64, "{name}");
        let bad = ours.iter().filter(|(_, row)| matches!(row.embedding, Embedding::Bad(_))).count();
        assert_eq!(service.collection(name)["dead_letters"], bad, "{name}");
        for ((_, id), row) in ours {
            let Embedding::Vector(vector) = &row.embedding else { continue };
            if sample.is_none_or(|sample| random.below(model.len() as u64) < sample * TABLES.len() as u64) {
                find(service, table, *id, row, vector);
            }
        }
    }
}

/// The nearest to a row's own vector is this row.
fn find(service: &Service, table: Table, id: i64, row: &model::Row, vector: &[f32]) {
    let mut body = json!({ "query": { "vector": vector }, "limit": 1, "recheck": "none", "columns": ["tag", "price"] });
    let mut answer = service.search(table.name(), &body);
    if id_of(&answer["hits"][0]) != Some(id) {
        // A walk may miss; comparing with every row must not.
        body["search"] = json!({ "exact": true });
        answer = service.search(table.name(), &body);
    }
    let hit = &answer["hits"][0];
    let expected = json!({ "tag": row.tag, "price": row.price });
    assert_eq!((id_of(hit), &hit["columns"]), (Some(id), &expected), "{}: {answer:#}", table.name());
    assert_eq!(hit["distance"], 0.0, "{}: {answer:#}", table.name());
}

fn id_of(hit: &Json) -> Option<i64> {
    hit["id"].as_i64().or_else(|| hit["id"]["id"].as_i64())
}

#[derive(Default)]
struct Seen {
    /// Where the process that runs now is.
    url: Mutex<Option<(u64, String)>>,
    tokens: Mutex<Vec<Token>>,
    stop: AtomicBool,
    groups: AtomicU64,
    redeemed: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two readers who never rest.
struct Watch {
    seen: Arc<Seen>,
    processes: AtomicU64,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    fn start(seed: u64) -> Watch {
        let seen = Arc::new(Seen::default());
        let threads = [false, true].map(|by_token| {
            let (seen, mut random) = (seen.clone(), Random(seed + u64::from(by_token)));
            std::thread::spawn(move || look(&seen, &mut random, by_token))
        });
        Watch { seen, processes: AtomicU64::new(0), threads: threads.into() }
    }

    fn process(&self, service: Option<&Service>) {
        let number = self.processes.fetch_add(1, Ordering::Relaxed);
        *lock(&self.seen.url) = service.map(|service| (number, service.url().to_owned()));
    }

    fn add(&self, tokens: Vec<Token>) {
        let mut all = lock(&self.seen.tokens);
        all.extend(tokens);
        let old = all.len().saturating_sub(32);
        all.drain(..old);
    }

    fn check(&self) {
        let wrong = lock(&self.seen.wrong);
        assert!(wrong.is_empty(), "{} wrong answers: {}", wrong.len(), wrong[..wrong.len().min(3)].join("\n"));
    }

    fn end(mut self) -> (u64, u64) {
        self.join();
        self.check();
        (self.seen.groups.load(Ordering::Relaxed), self.seen.redeemed.load(Ordering::Relaxed))
    }

    fn join(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.join();
    }
}

fn look(seen: &Seen, random: &mut Random, by_token: bool) {
    let mut before: Option<(u64, Client, Lsn)> = None;
    while !seen.stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(2 + random.below(4)));
        let Some((number, url)) = lock(&seen.url).clone() else { continue };
        if before.as_ref().is_none_or(|(process, ..)| *process != number) {
            before = Some((number, Client::new(&url), Lsn::ZERO));
        }
        let Some((_, client, applied)) = &mut before else { continue };
        let token = match by_token {
            true => match lock(&seen.tokens).last() {
                Some(token) => Some(*token),
                None => continue,
            },
            false => None,
        };
        let group = token.map_or_else(|| random.below(GROUPS as u64) as i64, |token| token.group);
        let mut body = json!({
            "query": { "vector": [0, 0, 0, 0] }, "limit": 50, "recheck": "none", "columns": ["tag"],
            "filter": format!("price = {group}"), "search": { "exact": true }
        });
        if let Some(token) = token {
            body["consistency"] = json!({ "at_least": token.lsn.to_string(), "timeout_ms": 300 });
        }
        let Ok(answer) = client.post("/v1/collections/ledger/search", &body) else { continue };
        let wrong = |what: &str| lock(&seen.wrong).push(format!("{what}: {token:?} {answer}"));
        let hits = answer["hits"].as_array().map_or(&[][..], Vec::as_slice);
        let tags: Vec<_> = hits.iter().map(|hit| hit["columns"]["tag"].as_i64()).collect();
        seen.groups.fetch_add(1, Ordering::Relaxed);
        if tags.len() != GROUP || tags.iter().any(|tag| *tag != tags[0]) {
            wrong("part of a transaction is seen");
        }
        if let Some(token) = token {
            seen.redeemed.fetch_add(1, Ordering::Relaxed);
            if tags.first().copied().flatten() < Some(token.stamp) {
                wrong("older than its token");
            }
        }
        match answer["applied_lsn"].as_str().and_then(|lsn| lsn.parse::<Lsn>().ok()) {
            Some(lsn) if lsn >= *applied => *applied = lsn,
            _ => wrong("the position went back"),
        }
    }
}
