//! One large transaction: memory stays within a budget beside what the index itself needs, and readers see all of it or
//! nothing. RUVECTOR_TEST_BIG_ROWS=5000000 is the long form.

mod support;

use ruvector::cli::private_postgres::Settings;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Database, Service, cluster};

/// What may be needed beside the index: the queue and the spool (8 MiB each, below), buffers. The short form's transaction
/// is larger than that.
const BUDGET: u64 = 40 << 20;
/// The long form also fills the state's cache, and a view of the rows' places is copied while the old one is in use.
const LONG_BUDGET: u64 = 128 << 20;
const LONG: u64 = 1_000_000;
/// What the index needs for a row beside its vector and its links: key, version, filter columns, places in pages.
const ROW_BYTES: u64 = 120;
/// For any number of rows, on a machine that does ten other things.
const LIMIT: Duration = Duration::from_secs(3_600);

const ITEMS: &str = "[[collections]]
table = \"items\"
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
m = 8
ef_construction = 32
";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

fn rows(service: &Service) -> u64 {
    service.collection("items")["rows"].as_u64().expect("a count")
}

/// A transaction of so many rows, as it comes with these settings of the source.
fn one_large_transaction(source: &str, settings: Settings) {
    let rows_wanted = number("RUVECTOR_TEST_BIG_ROWS", 60_000);
    let dimensions = number("RUVECTOR_TEST_BIG_DIMENSIONS", 256);
    let cluster = cluster(settings.with("max_wal_size", "8GB"));
    let database = Database::of(&cluster);
    database
        .sql
        .run("CREATE TABLE items (id bigint PRIMARY KEY, embedding real[]); INSERT INTO items VALUES (0, NULL)");
    let source = format!("queue_mib = 8\nspool_mib = 8\n{source}");
    // There is no row to learn them from.
    let sections = format!("{ITEMS}dimensions = {dimensions}\n");
    let mut service = Service::configured(&database, &source, &sections);
    service.start();
    service.wait_ready();
    let before = service.memory("VmRSS");
    let (started, done) = (Instant::now(), AtomicBool::new(false));
    let insert = format!(
        "INSERT INTO items SELECT i, ARRAY[i, i * 7 % 1000]::real[] || array_fill(0.5::real, ARRAY[{} - 2])
           FROM generate_series(1, {rows_wanted}) i",
        dimensions
    );
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = Vec::new();
            while !done.load(Ordering::Relaxed) {
                seen.push(rows(&service));
                seen.dedup();
                std::thread::sleep(Duration::from_millis(1));
            }
            seen
        });
        database.sql.run(&insert);
        let end = database.sql.lsn();
        println!("committed after {:?}", started.elapsed());
        while service.position("applied") < end {
            assert!(started.elapsed() < LIMIT, "not within {LIMIT:?}:\n{}", service.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
        done.store(true, Ordering::Relaxed);
        seen = reader.join().expect("the reader");
    });
    let (peak, after) = (service.memory("VmHWM"), service.memory("VmRSS"));
    let index = service.metric("ruvector_index_bytes") as u64 + rows_wanted * ROW_BYTES;
    let beside = (peak - before).saturating_sub(index);
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{rows_wanted} rows of {dimensions} dimensions, {source:?}: searchable after {:?}; MiB: {} before, {} at most, {} \
         after, {} of it the index, {} beside it",
        started.elapsed(),
        mib(before),
        mib(peak),
        mib(after),
        mib(index),
        mib(beside)
    );
    assert!(seen.iter().all(|rows| [1, rows_wanted + 1].contains(rows)), "a part was seen: {seen:?}");
    assert_eq!(rows(&service), rows_wanted + 1);
    let budget = if rows_wanted < LONG { BUDGET } else { LONG_BUDGET };
    assert!(beside <= budget, "{beside} bytes beside the index, at most {budget}");
}

#[test]
fn a_large_transaction_is_seen_whole_and_takes_no_more_memory_than_the_budget() {
    one_large_transaction("", Settings::default());
}

#[test]
fn a_large_transaction_that_was_streamed_is_seen_whole_and_takes_no_more_memory_than_the_budget() {
    one_large_transaction("streaming = \"on\"", Settings::default().with("logical_decoding_work_mem", "1MB"));
}
