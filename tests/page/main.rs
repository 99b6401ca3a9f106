//! The page at `/`, in a real browser, over the real binary and a real PostgreSQL: what it shows, what it does when the
//! source or the service goes away, and that nothing a row says is ever taken for markup.
//!
//! `RUVECTOR_SCREENSHOTS=docs/img cargo test --test page` writes the pictures of the documentation anew.

mod browser;
#[path = "../support/mod.rs"]
mod support;

use browser::{Browser, ENTER};
use ruvector::cli::private_postgres::{PrivatePostgres, Settings, Stop};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Database, Service, cache_dir, cluster};

/// Real texts with real embeddings that are loaded.
const ROWS: usize = 1500;
const MARKUP: &str = "<img src=x onerror=\"window.hacked = 1\">";

const COLLECTIONS: &str = "[[collections]]
table = \"public.packages\"
name = \"packages\"
filter_columns = [\"name\", \"section\", \"views\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"cosine\"
[[collections]]
table = \"public.notes\"
name = \"notes\"
filter_columns = [\"title\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
";

/// The texts of examples/data with their vectors as array literals.
fn texts() -> Vec<(Json, String)> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let lines = std::fs::read_to_string(data.join("docs.jsonl")).expect("examples/data/docs.jsonl");
    let matrix = std::fs::read(data.join("docs.f16.npy")).expect("examples/data/docs.f16.npy");
    // Behind a head of 128 bytes: 4,000 x 384 half floats.
    let values: Vec<f32> =
        matrix[128..].chunks_exact(2).map(|two| half::f16::from_le_bytes([two[0], two[1]]).to_f32()).collect();
    let vectors = values.chunks_exact(384).map(|vector| {
        let numbers: Vec<_> = vector.iter().map(f32::to_string).collect();
        format!("{{{}}}", numbers.join(","))
    });
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).zip(vectors).take(ROWS).collect()
}

fn prepare(database: &Database) {
    database.sql.run(
        "CREATE TABLE packages (id bigint PRIMARY KEY, name text, section text, views int, body text, embedding real[]);
         CREATE TABLE notes (id text PRIMARY KEY, title text, embedding real[]);
         INSERT INTO notes SELECT 'n' || i, 'note ' || i, vec(i, 4) FROM generate_series(1, 40) i;
         INSERT INTO notes VALUES ('short', 'three of four', '{1,2,3}'), ('nan', 'not a number', '{1,NaN,3,4}'),
           ('<b>bold</b>', 'markup in a key', '{1}')",
    );
    let line = |(text, vector): &(Json, String)| {
        let field = |name: &str| text[name].as_str().unwrap_or_default().replace(['\\', '\t', '\n'], " ");
        let (id, views) = (&text["id"], text["id"].as_u64().unwrap_or(0) * 7919 % 1000);
        format!("{id}\t{}\t{}\t{views}\t{}\t{vector}\n", field("name"), field("section"), field("text"))
    };
    let lines: String = texts().iter().map(line).collect();
    database.sql.copy_in("COPY packages FROM STDIN", lines);
    database.sql.execute("UPDATE packages SET body = $1 WHERE id = 3", &[&MARKUP]);
    database.sql.run("ANALYZE packages");
}

/// Keeps a picture in the target folder, and a small one where the documentation wants it.
fn keep(browser: &Browser, name: &str, width: u32, scheme: &str) {
    let picture = browser.picture(width, scheme);
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 10_000, "{name}: {} bytes", picture.len());
    let folder = cache_dir("page");
    std::fs::create_dir_all(&folder).expect("a folder for pictures");
    let whole = folder.join(format!("{name}.png"));
    std::fs::write(&whole, picture).expect("writable");
    let Some(wanted) = std::env::var_os("RUVECTOR_SCREENSHOTS") else { return };
    let small = PathBuf::from(wanted).join(format!("{name}.png"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lib/small_png.py");
    let status = Command::new("python3").arg(script).args([&whole, &small]).status().expect("python3 starts");
    let size = small.metadata().expect("written").len();
    assert!(status.success() && size < 200_000, "{name}: {size} bytes");
}

/// Nothing wrong was said on the console.
fn quiet(browser: &Browser) {
    let log = browser.log();
    let severe = |line: &&Json| line["level"] == "SEVERE" || line["level"] == "WARNING";
    let wrong: Vec<_> = log.as_array().expect("a list").iter().filter(severe).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Searches by what the form holds now, and waits for so many rows.
fn search(browser: &Browser, rows: usize) {
    browser.click("#form button.primary");
    browser.wait_text("#r-facts", |text| text.contains(&format!("rows\n{rows}\n")));
}

fn cells(browser: &Browser, column: usize) -> Vec<String> {
    let script = format!(
        "return [...document.querySelectorAll('#r-table tbody tr')].map((row) => row.children[{column}].textContent)"
    );
    let list = browser.run(&script);
    list.as_array().expect("a list").iter().map(|text| text.as_str().expect("text").to_owned()).collect()
}

#[test]
fn the_page_tells_what_the_service_knows() {
    let Some(browser) = Browser::start() else { return };
    let mut postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    prepare(&database);
    let mut service = Service::ready(&database, COLLECTIONS);
    service.wait_for("dead letters", |service| service.status()["collections"][0]["dead_letters"] == 3);
    browser.emulate(1280, 900, "light");
    browser.open(&format!("{}/", service.url()));
    browser.wait_text("#state", |text| text == "ready");

    shows_the_state(&browser, &mut service, &database);
    searches(&browser, &service);
    markup_is_text(&browser);
    stands_still(&browser);
    keyboard_and_readers(&browser);
    quiet(&browser);
    stays_here(&browser, &service);
    pictures(&browser, &service, &database);
    bad_requests_are_told(&browser);
    a_key_is_asked_for(&browser);

    postgres.stop(Stop::Immediate).expect("it stops");
    let banner = browser.wait_text("#banner", |text| text.starts_with("The source is away."));
    assert!(banner.contains("Answers are up to"), "{banner}");
    assert_eq!(browser.text("#state"), "disconnected");
    browser.wait_text("#ready", |text| text.contains("Replication is retrying"));
    keep(&browser, "away", 1280, "light");
    postgres.start_again().expect("it starts");
    browser.wait_text("#state", |text| text == "ready");
    browser.wait_text("#banner", str::is_empty);

    service.terminate();
    let banner = browser.wait_text("#banner", |text| text.starts_with("Disconnected."));
    assert!(banner.contains("What is shown is of"), "{banner}");
    begins_with_nothing(&browser, &mut postgres, &database);
}

/// Without data, and without a source to have it from; then it comes, while somebody looks.
fn begins_with_nothing(browser: &Browser, postgres: &mut PrivatePostgres, database: &Database) {
    let mut service = Service::configured(database, "", COLLECTIONS);
    service.slot += "_2";
    // And one that wants a key.
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"rvk_page");
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("[http.keys.page]\nhash = [\"sha256:{hash}\"]\nscopes = [\"read\", \"metrics\"]\n");
    service.configure(&database.dsn, "", &(COLLECTIONS.to_owned() + &key));
    postgres.stop(Stop::Fast).expect("it stops");
    service.start();
    browser.open(service.url());
    browser.wait_text("#key-why", |text| text.contains("wants a key"));
    assert_eq!(browser.text("#state"), "key needed");
    browser.write("#key-input", "rvk_page");
    browser.press("#key-input", ENTER);
    // What was refused is told on the console.
    browser.log();
    browser.wait_text("#banner", |text| text.starts_with("The source is away."));
    assert_eq!(browser.text("#c-empty"), "No collection yet.");
    assert!(browser.text("#ready").contains("no data is loaded yet"), "{}", browser.text("#ready"));
    quiet(browser);
    postgres.start_again().expect("it starts");
    browser.wait_text("#state", |text| text == "ready");
    browser.wait_text("#collections", |text| text.contains("1,500"));
    browser.wait_text("#w-empty", |text| text.starts_with("Ready"));
    quiet(browser);
}

fn shows_the_state(browser: &Browser, service: &mut Service, database: &Database) {
    service.catch_up(&database.sql);
    let applied = service.status()["positions"]["applied"].as_str().expect("a position").to_owned();
    browser.wait_text("#p-applied .lsn", |text| text == applied);
    for stage in ["source", "received", "durable", "applied", "confirmed"] {
        let text = browser.wait_text(&format!("#p-{stage} .lsn"), |text| text.contains('/'));
        assert!(text.len() > 3, "{stage} {text}");
    }
    browser.wait_text("#collections", |text| text.contains("packages") && text.contains("1,500"));
    let collections = browser.text("#collections");
    assert!(collections.contains("notes") && collections.contains("43"), "{collections}");
    assert!(collections.contains("public.notes") && collections.matches("live").count() == 2, "{collections}");
    browser.wait_text("#collections", |text| text.contains("of about 1,500 in the source"));
    browser.wait_text("#pipe-tiles", |text| text.contains("reserved") && text.contains("of a budget of 10.0 GiB"));
    let letters = browser.wait_text("#letters", |text| text.contains("short") && text.contains("nan"));
    assert!(letters.contains("<b>bold</b>"), "{letters}");
    assert_eq!(browser.run("return document.querySelectorAll('#letters b').length"), 0);
    let findings = service.status()["doctor"]["findings"].as_array().expect("a list").clone();
    browser.wait_text("#d-sum", |text| text.contains(" well; asked "));
    let shown = browser.text("#doctor");
    for finding in findings {
        let code = finding["code"].as_str().expect("a code");
        assert!(shown.contains(code), "{code} is not in {shown}");
    }
}

fn searches(browser: &Browser, service: &Service) {
    browser.run("document.querySelector('#f-collection').value = 'packages'; document.querySelector('#f-collection').onchange()");
    browser.write("#f-id", "4");
    search(browser, 10);
    let body = serde_json::json!({ "query": { "id": 4 }, "limit": 10 });
    let expected: Vec<_> = support::ids(&service.search("packages", &body)).iter().map(Json::to_string).collect();
    assert_eq!(cells(browser, 1), expected);
    let facts = browser.text("#r-facts");
    for word in ["plan\n", "as of\n0/", "recheck\nexists: 10 asked", "complete\nyes", "segments\n", "candidates\n"] {
        assert!(facts.contains(word), "{word:?} is not in {facts}");
    }
    let times = browser.text("#r-legend");
    assert!(times.contains("total") && times.contains("recheck"), "{times}");
    // A key that is clicked is what is searched for next.
    let first = expected[0].clone();
    browser.click("#r-table tbody tr:first-child button");
    browser.wait_text("#r-facts", |text| text.contains("rows\n10\n"));
    assert_eq!(browser.run("return document.querySelector('#f-id').value"), first.as_str());

    browser.run("document.querySelector('input[value=\"filter\"]').click()");
    browser.write("#f-filter", "section = 'libs' AND views < 500");
    browser.write("#f-limit", "7");
    search(browser, 7);
    assert_eq!(cells(browser, 3), ["libs"; 7]);

    browser.run("document.querySelector('input[value=\"vector\"]').click()");
    let zeros = vec!["0.1"; 384].join(",");
    browser.run(&format!("document.querySelector('#f-vector').value = '[{zeros}]'"));
    browser.write("#f-filter", "views >= 0");
    search(browser, 7);
    browser.write("#f-limit", "10");
    browser.write("#f-filter", "");
    browser.run("document.querySelector('input[value=\"id\"]').click()");
}

fn markup_is_text(browser: &Browser) {
    browser.run("document.querySelector('input[value=\"filter\"]').click()");
    let columns = browser.run("return document.querySelector('#f-columns').value");
    browser.write("#f-filter", "views = 757");
    browser.write("#f-columns", "body");
    browser.click("#form button.primary");
    browser.wait_text("#r-table", |text| text.contains("onerror"));
    assert_eq!(cells(browser, 2)[0], MARKUP);
    assert_eq!(
        browser.run("return [document.querySelectorAll('main img').length, typeof window.hacked]").to_string(),
        r#"[0,"undefined"]"#
    );
    quiet(browser);
    // Even a script of ours could not put markup in: the policy has the browser refuse it.
    let refused = browser.run("try { document.querySelector('#r-note').innerHTML = '<b>x</b>'; return 'taken' } catch (error) { return error.name }");
    assert_eq!(refused, "TypeError");
    // The browser told of that on the console, as it should.
    assert!(browser.log().to_string().contains("TrustedHTML"), "the refusal is told");
    browser.write("#f-filter", "");
    browser.write("#f-columns", columns.as_str().expect("text"));
    browser.run("document.querySelector('input[value=\"id\"]').click()");
}

/// What is refreshed does not move what is read. What was clicked before may still move something, and a figure that is new may
/// take another line: so once in three times nothing moves during three refreshes.
fn stands_still(browser: &Browser) {
    browser.run(
        "window.shifts = 0;
         new PerformanceObserver((list) => { for (const one of list.getEntries()) window.shifts += one.value;
           window.shifted = list.getEntries().flatMap((one) => one.sources.map((two) => two.node?.parentElement?.outerHTML.slice(0, 200))); })
           .observe({ type: 'layout-shift' });",
    );
    let rounds =
        "return performance.getEntriesByType('resource').filter((one) => one.name.endsWith('/v1/status')).length";
    let shifts: Vec<f64> = (0..3)
        .map(|_| {
            browser.run("window.shifts = 0");
            let before = browser.run(rounds).as_u64().expect("a count");
            support::wait_until("three refreshes", || browser.run(rounds).as_u64().expect("a count") >= before + 3);
            browser.run("return window.shifts").as_f64().expect("a number")
        })
        .collect();
    let still = shifts.iter().any(|shift| *shift < 0.001);
    assert!(still, "{shifts:?}: {:#}", browser.run("return window.shifted"));
}

fn keyboard_and_readers(browser: &Browser) {
    browser.write("#f-id", "5");
    browser.press("#f-id", ENTER);
    browser.wait_text("#r-facts", |text| text.contains("rows\n10\n"));
    let unnamed = browser.run(
        "return [...document.querySelectorAll('input, select, button, [role=\"region\"], section')]
           .filter((one) => !one.labels?.length && !one.textContent.trim() && !one.ariaLabel && !one.getAttribute('aria-labelledby'))
           .map((one) => one.outerHTML)",
    );
    assert_eq!(unnamed, serde_json::json!([]), "nobody who cannot see knows what these are");
    let heads = browser.run("return [...document.querySelectorAll('th')].every((one) => one.scope)");
    assert_eq!(heads, true);
}

fn stays_here(browser: &Browser, service: &Service) {
    let asked =
        browser.run("return performance.getEntries().map((one) => one.name).filter((name) => name.includes('//'))");
    let asked = asked.as_array().expect("a list");
    assert!(asked.len() > 5, "{asked:?}");
    for one in asked {
        assert!(one.as_str().is_some_and(|one| one.starts_with(service.url())), "{one} is elsewhere");
    }
}

fn pictures(browser: &Browser, service: &Service, database: &Database) {
    // Something to see in the figures: a reader's traffic for some refreshes.
    let started = std::time::Instant::now();
    for at in 0.. {
        let body = serde_json::json!({ "query": { "id": at % ROWS }, "limit": 10 });
        service.search("packages", &body);
        if at % 40 == 0 {
            database.sql.run("UPDATE notes SET title = title || '.' WHERE embedding IS NOT NULL");
        }
        std::thread::sleep(std::time::Duration::from_millis(15));
        if started.elapsed().as_secs() >= if std::env::var_os("RUVECTOR_SCREENSHOTS").is_some() { 70 } else { 5 } {
            break;
        }
    }
    browser.write("#f-id", "4");
    browser.write("#f-limit", "8");
    search(browser, 8);
    for (name, width, scheme) in [("light", 1280, "light"), ("dark", 1280, "dark"), ("narrow", 420, "light")] {
        keep(browser, name, width, scheme);
    }
    let dark = "return getComputedStyle(document.body).backgroundColor";
    browser.emulate(1280, 900, "light");
    let light = browser.run(dark);
    browser.emulate(1280, 900, "dark");
    assert_ne!(browser.run(dark), light);
    browser.emulate(420, 900, "light");
    assert_eq!(
        browser.run("return document.documentElement.scrollWidth <= innerWidth"),
        true,
        "it is wider than a phone"
    );
    browser.emulate(1280, 900, "light");
}

fn bad_requests_are_told(browser: &Browser) {
    browser.write("#f-filter", "colour = 'red'");
    browser.click("#form button.primary");
    let note = browser.wait_text("#r-note", |text| text.starts_with("RV1007"));
    assert!(note.contains("colour"), "{note}");
    browser.write("#f-filter", "");
    browser.write("#f-id", "no such key");
    browser.click("#form button.primary");
    browser.wait_text("#r-note", |text| text.starts_with("RV1009"));
}

/// A service that wants a key answers 401 without one; here the browser's own `fetch` is put before it.
fn a_key_is_asked_for(browser: &Browser) {
    browser.run(
        "const ask = window.fetch.bind(window);
         window.keys = [];
         window.fetch = (path, init) => {
           window.keys.push(init.headers.authorization);
           const problem = { code: 'RV1501', title: 'A key is needed', detail: 'no key was given' };
           return init.headers.authorization === 'Bearer rvk_right' ? ask(path, init)
             : Promise.resolve(new Response(JSON.stringify(problem), { status: 401 }));
         };",
    );
    browser.wait_text("#key-why", |text| text.contains("wants a key"));
    assert_eq!(browser.text("#state"), "key needed");
    browser.write("#key-input", "rvk_right");
    browser.press("#key-input", ENTER);
    browser.wait_text("#state", |text| text == "ready");
    browser.wait_text("#banner", str::is_empty);
    let kept = browser.run("return [sessionStorage.getItem('ruvector-key'), localStorage.length, document.cookie]");
    assert_eq!(kept, serde_json::json!(["rvk_right", 0, ""]));
    assert_eq!(browser.run("return document.querySelector('#key-input').value"), "");
    assert_eq!(browser.run("return location.href.includes('rvk')"), false);
    browser.click("#key");
    browser.click("#key-forget");
    assert_eq!(browser.run("return sessionStorage.getItem('ruvector-key')"), Json::Null);
    // Back to the browser's own.
    browser.open(browser.run("return location.href").as_str().expect("an address"));
    browser.wait_text("#state", |text| text == "ready");
}
