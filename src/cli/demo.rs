//! `ruvector demo`: the whole service on a private PostgreSQL, told as a story whose every line prints the figure it proves.

mod data;
mod report;
pub(super) mod service;
pub(super) mod source;

use crate::cli::client::Client;
use crate::cli::private_postgres::{PrivatePostgres, Settings};
use crate::model::Lsn;
use anyhow::{Context, Result, anyhow, bail, ensure};
use data::{DOCUMENTS, Data};
use indicatif::{ProgressBar, ProgressStyle};
use report::{Report, Verdict, number};
use serde_json::{Value as Json, json};
use service::Service;
use source::{Embedding, Source};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of `demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Keep everything running afterwards and print lines to try, until Ctrl-C.
    #[arg(long)]
    stay: bool,
    /// Documents to load.
    #[arg(long, default_value_t = DOCUMENTS, value_parser = documents)]
    docs: usize,
    /// Print one JSON object per step, and one for the whole.
    #[arg(long)]
    json: bool,
}

fn documents(text: &str) -> Result<usize, String> {
    let range = 200..=DOCUMENTS;
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("a number from {} to {DOCUMENTS}", range.start()))
}

/// Steps of the story.
const STEPS: usize = 8;
/// Longest wait for the index to come to a position.
const CATCH_UP: Duration = Duration::from_secs(60);
/// The query whose vector the document of steps 3 and 5 has: one that no document has.
const HELD_OUT: usize = 14;
/// In step 7 the service is killed when so many bytes of committed WAL are not applied: more than two pages, which a
/// vacuum beside the writer might have written.
const BEHIND: u64 = 3 * 8192;
/// What a copy made by step 7 has for an id is this and more.
const COPIES: i64 = 1_000_000;

const COLLECTIONS: &str = r#"[[collections]]
table = "public.docs"
name = "docs"
filter_columns = ["section", "name", "views"]

[[collections.vectors]]
column = "embedding"
metric = "cosine"
"#;

/// Runs the story. Exit code 1 when a step fails.
///
/// Ctrl-C needs no care here: what runs beside us, we hold by pipes, and ends and is removed with us, however we end.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut report = Report::new(args.json);
    let data = Data::load(args.docs)?;
    // `doctor` warns of a slot that may keep WAL without limit, and of a limit that lasts for less than four hours at the
    // average rate, which in a cluster of seconds is the rate of a burst.
    let postgres = PrivatePostgres::start(Settings::default().with("max_slot_wal_keep_size", "1TB"))?;
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let dsn = postgres.dsn();
    let source = Source::connect(runtime.handle(), &dsn)?;
    let vector_type = source.vector_type(data.vectors.columns);
    source.load(&data, &vector_type)?;
    report.say(&format!(
        "A private PostgreSQL on port {}: {} Debian package descriptions, embeddings in a {vector_type} column of {} dimensions.",
        postgres.port(),
        number(data.documents.len() as u64),
        data.vectors.columns
    ));
    let started = Instant::now();
    let service = Service::start(&dsn, COLLECTIONS)?;
    report.say(&format!("ruvector serve beside it: {}", service.url));
    let mut story = Story { data, source, service, vector_type, dsn, runtime: runtime.handle().clone() };
    let told = story.tell(&mut report, started);
    if let Err(error) = &told {
        eprintln!("ruvector: {error:#}\n\nThe service's log ends with\n{}", story.service.log_tail());
        eprintln!("\nPostgreSQL's log ends with\n{}", postgres.log_tail(10));
    }
    let pass = report.finish(STEPS);
    if args.stay && told.is_ok() {
        story.leave_tidy()?;
        report.say(&story.lines_to_try(&postgres));
        runtime.block_on(until_told_to_stop())?;
        report.say("\nstopping, removing everything");
    }
    Ok(ExitCode::from(u8::from(!pass)))
}

async fn until_told_to_stop() -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// What the steps work with.
struct Story {
    data: Data,
    source: Source,
    service: Service,
    vector_type: String,
    dsn: String,
    runtime: Handle,
}

impl Story {
    fn tell(&mut self, report: &mut Report, started: Instant) -> Result<()> {
        report.step("Copy", |report| self.copy(report, started))?;
        report.step("Search", |report| self.search(report))?;
        report.step("INSERT", |report| self.insert(report))?;
        report.step("10,000 UPDATEs", |_| self.update_payload())?;
        report.step("DELETE", |report| self.delete(report))?;
        report.step("Filter", |report| self.filter(report))?;
        report.step("kill -9", |report| self.kill(report))?;
        report.step("Doctor", |report| self.doctor(report))
    }

    /// 1: the initial copy, from the start of the process until searches are answered from all rows.
    fn copy(&self, report: &Report, started: Instant) -> Result<Verdict> {
        let rows = self.data.documents.len() as u64;
        let bar = if report.wants_bars() { ProgressBar::new(3 * rows) } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::with_template("   {bar:20} {msg}, ready in {eta}")?);
        self.service.wait_ready(CATCH_UP, |client| show_copy(client, &bar, rows))?;
        bar.finish_and_clear();
        let seconds = started.elapsed().as_secs_f64();
        let collection = self.service.collection()?;
        let (indexed, linked) = (count(&collection["rows"]), count(&collection["vectors"][0]["linked"]));
        let rate = rows as f64 / seconds;
        Ok(Verdict {
            pass: indexed == rows && linked == rows,
            figure: format!(
                "{} of {} rows copied, {} linked into the graph, in {seconds:.2} s: {} rows/s",
                number(indexed),
                number(rows),
                number(linked),
                number(rate as u64)
            ),
            details: json!({ "rows": rows, "indexed": indexed, "linked": linked, "seconds": seconds, "rows_per_s": rate }),
        })
    }

    /// 2: all queries against the exact answers.
    fn search(&self, report: &Report) -> Result<Verdict> {
        let (mut found, mut wanted, mut compared) = (0, 0, 0);
        let (mut times, mut plans) = (Vec::new(), BTreeSet::new());
        for query in &self.data.queries {
            let number = query.id as usize;
            let body = json!({ "query": { "vector": self.query(number) }, "limit": 10, "columns": ["name"] });
            let (answer, ms) = timed(|| self.service.search(&body))?;
            times.push(ms);
            plans.insert(plan(&answer));
            compared += count(&answer["stats"]["visited"]);
            let truth = self.data.truth(number);
            wanted += truth.len();
            found += ids(&answer).iter().filter(|id| truth.contains(id)).count();
            if [HELD_OUT, 7, 20].contains(&number) {
                report.say(&format!("   \"{}\"  ({ms:.1} ms)", query.text));
                hits(&answer).take(3).for_each(|hit| report.say(&shown(hit)));
            }
        }
        let recall = found as f64 / wanted as f64;
        times.sort_by(f64::total_cmp);
        let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
        let compared = compared / times.len() as u64;
        report.say(&format!(
            "   plan {}: {compared} of {} vectors compared on average, each row found rechecked in PostgreSQL",
            either(&plans),
            number(self.data.documents.len() as u64)
        ));
        Ok(Verdict {
            pass: recall >= 0.95,
            figure: format!(
                "recall@10 {recall:.3} over {} queries (at least 0.95); {median:.1} ms median, {slowest:.1} ms slowest",
                times.len()
            ),
            details: json!({ "recall_at_10": recall, "queries": times.len(), "median_ms": median, "slowest_ms": slowest,
                             "plans": plans, "compared": compared }),
        })
    }

    /// 3: a search that names the commit's position sees the commit.
    fn insert(&self, report: &Report) -> Result<Verdict> {
        let id = self.new_id();
        let vector = self.query(HELD_OUT);
        let name = "made-up-json-library";
        let sql = "INSERT INTO docs (id, name, section, body, embedding) VALUES ($1, $2, 'libdevel', $3, $4)";
        self.source.write(sql, &[&id, &name, &"JSON, made up a moment ago", &Embedding(vector)])?;
        let committed = Instant::now();
        let position = self.source.position()?;
        let answer = self.service.search(&json!({
            "query": { "vector": vector }, "limit": 3, "columns": ["name"],
            "consistency": { "at_least": position, "timeout_ms": CATCH_UP.as_millis() as u64 },
        }))?;
        let ms = millis(committed);
        report.say(&format!(
            "   INSERT ... COMMIT; pg_current_wal_lsn() = {position}; search with at_least = {position}"
        ));
        hits(&answer).for_each(|hit| report.say(&shown(hit)));
        let rank = ids(&answer).iter().position(|&found| found == id).map(|rank| rank + 1);
        let place = rank.map_or("not found".to_owned(), |rank| format!("found at rank {rank}"));
        Ok(Verdict {
            pass: rank == Some(1),
            figure: format!("{place}, {ms:.1} ms from COMMIT to the answer"),
            details: json!({ "rank": rank, "commit_to_answer_ms": ms, "at_least": position }),
        })
    }

    /// 4: the graph is not touched by what does not concern it.
    fn update_payload(&self) -> Result<Verdict> {
        let before = self.service.collection()?;
        let started = Instant::now();
        // 10,000 statements in 100 transactions, round and round over the documents.
        self.source.run(&format!(
            "DO $$ BEGIN FOR i IN 0..9999 LOOP \
               UPDATE docs SET views = views + 1 WHERE id = i % {}; IF i % 100 = 99 THEN COMMIT; END IF; \
             END LOOP; END $$",
            self.data.documents.len()
        ))?;
        let written = Instant::now();
        self.wait_applied()?;
        let (sql_ms, applied_ms) = ((written - started).as_secs_f64() * 1000.0, millis(written));
        let after = self.service.collection()?;
        let writes = count(&after["graph_writes"]) - count(&before["graph_writes"]);
        let nodes = count(&after["vectors"][0]["nodes"]) - count(&before["vectors"][0]["nodes"]);
        // No graph writes for lack of updates would prove nothing: the last row updated must be found by its new value.
        let last = 9_999 % self.data.documents.len();
        let views = 1 + 9_999 / self.data.documents.len();
        let arrived = self.service.search(&json!({
            "query": { "vector": self.query(0) }, "limit": 1, "recheck": "none",
            "filter": "views = $1 AND name = $2", "params": [views, self.data.documents[last].name],
        }))?;
        let arrived = ids(&arrived) == [last as i64];
        let seen = if arrived { "the new values are in the index" } else { "yet the new values are NOT in the index" };
        Ok(Verdict {
            pass: writes == 0 && nodes == 0 && arrived,
            figure: format!(
                "{writes} graph writes; {seen} {applied_ms:.0} ms after the last COMMIT (the UPDATEs took {sql_ms:.0} ms)"
            ),
            details: json!({ "updates": 10_000, "graph_writes": writes, "new_nodes": nodes, "arrived": arrived,
                             "sql_ms": sql_ms, "applied_after_ms": applied_ms }),
        })
    }

    /// 5: the recheck hides a deleted row that the index still has; the stream then removes it.
    fn delete(&self, report: &Report) -> Result<Verdict> {
        let id = self.new_id();
        let query = json!({ "query": { "vector": self.query(HELD_OUT) }, "limit": 3, "columns": ["name"] });
        let unchecked = with(&query, json!({ "recheck": "none" }));
        ensure!(ids(&self.service.search(&query)?).first() == Some(&id), "the document of step 3 is no longer first");
        // So that the index is behind for long enough to be asked: every other vector is written anew in one transaction,
        // twice as long, which cosine does not see.
        let rewritten = self.source.write(&self.rewrite("id < $1"), &[&id])?;
        self.source.write("DELETE FROM docs WHERE id = $1", &[&id])?;
        let committed = Instant::now();
        let position = self.source.position()?;
        let next = self.service.search(&query)?;
        let answered_ms = millis(committed);
        let index_alone = self.service.search(&unchecked)?;
        let at = applied(&next)?;
        let (hidden, dropped) = (!ids(&next).contains(&id), count(&next["recheck"]["dropped"]));
        report.say(&format!(
            "   after one COMMIT with {} new vectors, DELETE ... COMMIT at {position}; the very next search, {answered_ms:.1} ms later:",
            number(rewritten)
        ));
        hits(&next).for_each(|hit| report.say(&shown(hit)));
        let behind = position.bytes_since(at);
        let who = if dropped > 0 {
            format!("the index was at {at}, {} KB behind, and the recheck dropped the row", number(behind / 1024))
        } else if behind > 0 {
            format!("the index was at {at}, {behind} bytes behind, and had the DELETE already")
        } else {
            "the stream had been faster than the search".to_owned()
        };
        report.say(&format!("   {who}"));
        let ghost = ids(&index_alone).contains(&id);
        let had = if ghost { "still had it" } else { "no longer had it" };
        report
            .say(&format!("   asked without recheck a moment later, the index {had} (at {})", applied(&index_alone)?));
        let fresh = json!({ "at_least": position, "timeout_ms": CATCH_UP.as_millis() as u64 });
        let later = self.service.search(&with(&unchecked, json!({ "consistency": fresh })))?;
        let (gone, gone_ms) = (!ids(&later).contains(&id), millis(committed));
        let by = if dropped > 0 { "by the recheck" } else { "by the stream" };
        let at_once = if hidden { format!("gone {by} in {answered_ms:.1} ms") } else { "STILL SHOWN".to_owned() };
        let in_index = if gone { "gone from the index too" } else { "STILL IN THE INDEX" };
        Ok(Verdict {
            pass: hidden && gone && hits(&next).count() == 3,
            figure: format!("{at_once}, {in_index} after {gone_ms:.0} ms"),
            details: json!({ "hidden_at_once": hidden, "answered_ms": answered_ms, "dropped_by_recheck": dropped,
                             "deleted_at": position, "index_at": at, "index_still_had_it": ghost,
                             "gone_from_index": gone, "gone_ms": gone_ms }),
        })
    }

    /// 6: a filter gives a full page of the nearest rows that pass, however few pass.
    fn filter(&self, report: &Report) -> Result<Verdict> {
        let sections = ["libs", self.data.rare_section()];
        let (mut pass, mut figures, mut details) = (true, Vec::new(), Vec::new());
        for section in sections {
            let rows = self.source.section(section)?;
            let rows: Vec<(i64, &[f32])> = rows.iter().map(|(id, vector)| (*id, &vector[..])).collect();
            let limit = rows.len().min(10);
            let (mut full, mut passing, mut found) = (0, 0, 0);
            let (mut times, mut plans) = (Vec::new(), BTreeSet::new());
            for query in 0..self.data.queries.len() {
                let (answer, ms) = timed(|| {
                    self.service.search(&json!({
                        "query": { "vector": self.query(query) }, "limit": limit, "columns": ["section"],
                        "filter": "section = $1", "params": [section],
                    }))
                })?;
                times.push(ms);
                let got = ids(&answer);
                full += usize::from(got.len() == limit);
                passing += usize::from(hits(&answer).all(|hit| hit["columns"]["section"] == section));
                let truth = data::nearest(self.query(query), &rows, limit);
                found += got.iter().filter(|id| truth.contains(id)).count();
                plans.insert(plan(&answer));
            }
            times.sort_by(f64::total_cmp);
            let queries = self.data.queries.len();
            let recall = found as f64 / (queries * limit) as f64;
            let median = times[queries / 2];
            report.say(&format!(
                "   section = '{section}' ({} of {} rows): full {limit} for {full} of {queries} queries, all rows pass in {passing}, \
                 recall {recall:.3}, plan {}, {median:.1} ms median",
                rows.len(),
                number(self.source.count()? as u64),
                either(&plans)
            ));
            pass &= full == queries && passing == queries && recall >= 0.95;
            figures.push(format!("'{section}' {full}/{queries} full, recall {recall:.3}"));
            details.push(
                json!({ "section": section, "rows": rows.len(), "limit": limit, "queries": queries, "full": full,
                                 "all_pass": passing, "recall": recall, "median_ms": median, "plans": plans }),
            );
        }
        Ok(Verdict { pass, figure: figures.join("; "), details: json!({ "filters": details }) })
    }

    /// 7: killed while it applies what a writer goes on writing, it comes back to exactly what the table holds.
    fn kill(&mut self, report: &Report) -> Result<Verdict> {
        let slot = self.slot()?;
        let (stop, committed) = (AtomicBool::new(false), AtomicU64::new(0));
        let writer = Source::connect(&self.runtime, &self.dsn)?;
        let sql = WriterSql { rewrite: self.rewrite("id % 50 = $1"), copies: self.data.documents.len() as i64 };
        let (killed, restarted, written) = std::thread::scope(|scope| {
            let writing = scope.spawn(|| write_until(&stop, &committed, &writer, &sql));
            let mut story = || {
                let killed = self.kill_while_behind(&committed)?;
                let restarted = Instant::now();
                self.service.start_again()?;
                self.service.wait_ready(CATCH_UP, |_| {})?;
                Ok::<_, anyhow::Error>((killed, restarted))
            };
            let result = story();
            // Whatever came of it: a scope ends when its threads do.
            stop.store(true, Ordering::Relaxed);
            let ready = result.map(|(killed, restarted)| (killed, (restarted, millis(restarted))));
            let written = writing.join().map_err(|_| anyhow!("the writer panicked"))??;
            ready.map(|(killed, restarted)| (killed, restarted, written))
        })?;
        let (restarted, ready_ms) = restarted;
        self.wait_applied()?;
        let caught_up_ms = millis(restarted);
        let (report_of, verify_ms) =
            timed(|| self.service.client.post("/v1/admin/collections/docs/verify", &json!({})))?;
        let same_checksum = report_of["source_checksum"] == report_of["index_checksum"];
        let same_rows = report_of["source_rows"] == report_of["index_rows"];
        let mismatches = count(&report_of["mismatch_count"]);
        let went_on = self.slot()? == slot;
        report.say(&format!(
            "   a writer commits INSERTs, UPDATEs and DELETEs of vectors all the while: {} rows in {} transactions",
            number(written.rows),
            written.transactions
        ));
        report.say(&format!(
            "   killed with the index at {}, while commits up to {} were made: {} KB behind",
            killed.applied,
            killed.source,
            number(killed.source.bytes_since(killed.applied) / 1024)
        ));
        let how = if went_on { "went on from its own checkpoint" } else { "COPIED EVERYTHING AGAIN" };
        report.say(&format!("   {how}; ready {ready_ms:.0} ms after the start, caught up with the writer's last COMMIT after {caught_up_ms:.0} ms"));
        let word = |same| if same { "equal" } else { "DIFFERENT" };
        let checksum = report_of["index_checksum"].as_str().unwrap_or_default();
        Ok(Verdict {
            pass: same_checksum && same_rows && mismatches == 0 && went_on,
            figure: format!(
                "ready after {ready_ms:.0} ms; {} rows, checksum {} to the table's ({}), {mismatches} rows differ",
                number(count(&report_of["index_rows"])),
                word(same_checksum),
                checksum.get(..12).unwrap_or(checksum)
            ),
            details: json!({
                "applied_at_kill": killed.applied, "committed_at_kill": killed.source, "rows_written": written.rows,
                "transactions": written.transactions, "ready_ms": ready_ms, "caught_up_ms": caught_up_ms,
                "went_on_from_checkpoint": went_on, "verify_ms": verify_ms, "verify": report_of,
            }),
        })
    }

    /// Lets the writer write for a second, then kills the service at a moment when it has commits left to apply.
    fn kill_while_behind(&mut self, committed: &AtomicU64) -> Result<Killed> {
        let started = Instant::now();
        let mut before = None;
        while started.elapsed() < CATCH_UP {
            // The end of the WAL would prove little: it moves with what is not committed, which nobody applies.
            let source = Lsn(committed.load(Ordering::Relaxed));
            let status = self.service.client.get("/v1/status")?;
            let applied = position(&status["positions"]["applied"])?;
            // A service that never moves is not in the middle of applying.
            let moved = *before.get_or_insert(applied) < applied;
            if started.elapsed() > Duration::from_secs(1) && moved && source.bytes_since(applied) >= BEHIND {
                self.service.kill()?;
                return Ok(Killed { applied, source });
            }
        }
        bail!("in {CATCH_UP:?} no moment was found at which the service was behind the writer's commits")
    }

    /// 8: what `ruvector doctor` thinks of this source.
    fn doctor(&self, report: &Report) -> Result<Verdict> {
        let output = service::command(&self.service.config())?.arg("doctor").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().filter(|line| !line.starts_with("ok")).for_each(|line| report.say(&format!("   {line}")));
        let code = output.status.code();
        let checks = text.lines().filter(|line| !line.starts_with(' ')).count();
        Ok(Verdict {
            pass: code == Some(0),
            figure: format!(
                "exit code {} after {checks} checks (0: nothing found, 1: warnings, 2: errors)",
                code.map_or("none".to_owned(), |code| code.to_string())
            ),
            details: json!({ "exit_code": code, "checks": checks }),
        })
    }

    fn query(&self, number: usize) -> &[f32] {
        self.data.query_vectors.row(number)
    }

    /// Id of the document of steps 3 and 5.
    fn new_id(&self) -> i64 {
        self.data.documents.len() as i64
    }

    /// An UPDATE that doubles the vectors of some rows: others, yet the same to cosine.
    fn rewrite(&self, condition: &str) -> String {
        format!(
            "UPDATE docs SET embedding = (SELECT array_agg((2 * x)::real ORDER BY place) \
               FROM unnest(embedding::real[]) WITH ORDINALITY AS element (x, place))::{} WHERE {condition}",
            self.vector_type
        )
    }

    /// Waits until the index has everything that is committed now.
    fn wait_applied(&self) -> Result<()> {
        let fresh = json!({ "at_least": self.source.position()?, "timeout_ms": CATCH_UP.as_millis() as u64 });
        let body = json!({ "query": { "vector": self.query(0) }, "limit": 1, "recheck": "none", "consistency": fresh });
        self.service.search(&body).map(drop)
    }

    /// The slot: one with another name belongs to another copy.
    fn slot(&self) -> Result<Json> {
        Ok(self.service.client.get("/v1/status")?["slot"].take())
    }

    /// Only the documents are left.
    fn leave_tidy(&self) -> Result<()> {
        self.source.run(&format!("DELETE FROM docs WHERE id >= {COPIES}"))?;
        self.wait_applied()
    }

    fn lines_to_try(&self, postgres: &PrivatePostgres) -> String {
        let psql = postgres.bin_dir().join("psql");
        let (psql, dsn, url) = (psql.display(), &self.dsn, &self.service.url);
        let search = format!("curl -s {url}/v1/collections/docs/search");
        let sample = self.data.documents.iter().find(|document| document.section == "libs");
        let id = sample.map_or(0, |document| document.id);
        let name = sample.map_or("", |document| &document.name);
        let near = id + 1;
        format!(
            "\nEverything goes on running until Ctrl-C. To try in another terminal:\n\n\
             # what is like {name}?\n\
             {search} -d '{{\"query\": {{\"id\": {id}}}, \"limit\": 5}}'\n\
             # with columns and a filter\n\
             {search} -d '{{\"query\": {{\"id\": {id}}}, \"limit\": 5, \"columns\": [\"name\", \"section\", \"views\"], \
             \"filter\": \"section = $1 AND views > 1\", \"params\": [\"libdevel\"]}}'\n\
             # write something, and search as of that commit\n\
             {psql} {dsn} -c \"UPDATE docs SET section = 'mine' WHERE id = {near}\"\n\
             LSN=$({psql} {dsn} -Atc 'SELECT pg_current_wal_lsn()')\n\
             {search} -d '{{\"query\": {{\"id\": {id}}}, \"columns\": [\"name\", \"section\"], \"filter\": \"section = $1\", \
             \"params\": [\"mine\"], \"consistency\": {{\"at_least\": \"'$LSN'\"}}}}'\n\
             # look around\n\
             {psql} {dsn}\n\
             # what it is doing, and its figures\n\
             {ours} status --url {url}\n\
             {ours} verify --url {url}\n\
             curl -s {url}/v1/status\n\
             curl -s {url}/metrics\n",
            ours = std::env::current_exe().map_or("ruvector".to_owned(), |path| path.display().to_string()),
        )
    }
}

/// Where both were when the service was killed.
struct Killed {
    applied: Lsn,
    source: Lsn,
}

/// What the writer of step 7 did.
#[derive(Default)]
struct Written {
    transactions: u64,
    rows: u64,
}

struct WriterSql {
    /// Doubles the vectors of one row in fifty.
    rewrite: String,
    /// A copy's id is the document's and a multiple of this.
    copies: i64,
}

/// Transactions of mixed writes, one after the other: some documents copied, some vectors changed, older copies deleted.
///
/// `committed` is where the WAL ended after the last one.
fn write_until(stop: &AtomicBool, committed: &AtomicU64, source: &Source, sql: &WriterSql) -> Result<Written> {
    let mut written = Written::default();
    while !stop.load(Ordering::Relaxed) {
        let round = written.transactions as i64;
        let (fiftieth, first) = (round % 50, COPIES + round * sql.copies);
        source.run("BEGIN")?;
        written.rows += source.write(
            "INSERT INTO docs SELECT id + $2, name || ' (copy)', section, body, 0, embedding \
               FROM docs WHERE id < $3 AND id % 50 = $1",
            &[&fiftieth, &first, &sql.copies],
        )?;
        written.rows += source.write(&sql.rewrite, &[&fiftieth])?;
        let old = first - 10 * sql.copies;
        written.rows +=
            source.write("DELETE FROM docs WHERE id >= $1 AND id < $2", &[&COPIES.max(old), &(old + sql.copies)])?;
        source.run("COMMIT")?;
        committed.store(source.position()?.0, Ordering::Relaxed);
        written.transactions += 1;
    }
    Ok(written)
}

/// The copy's progress as the service tells it.
fn show_copy(client: &Client, bar: &ProgressBar, rows: u64) {
    let Ok(all) = client.get("/v1/collections") else { return };
    let copy = &all["collections"][0]["copy"];
    let Some(read) = copy["share_read"].as_f64() else { return };
    let (loaded, linked) = (count(&copy["rows_loaded"]), count(&copy["rows_linked"]));
    bar.set_position((read * rows as f64) as u64 + loaded + linked);
    bar.set_message(format!("{:.0} % read, {} loaded, {} linked", read * 100.0, number(loaded), number(linked)));
}

fn timed<T>(ask: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let started = Instant::now();
    let answer = ask()?;
    Ok((answer, millis(started)))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn count(json: &Json) -> u64 {
    json.as_u64().unwrap_or(0)
}

fn hits(answer: &Json) -> impl Iterator<Item = &Json> {
    answer["hits"].as_array().into_iter().flatten()
}

fn ids(answer: &Json) -> Vec<i64> {
    hits(answer).filter_map(|hit| hit["id"].as_i64()).collect()
}

fn shown(hit: &Json) -> String {
    let distance = hit["distance"].as_f64().unwrap_or(f64::NAN);
    format!("      {distance:.3}  {}", hit["columns"]["name"].as_str().unwrap_or("?"))
}

fn position(json: &Json) -> Result<Lsn> {
    Ok(json.as_str().context("the service tells no position")?.parse()?)
}

fn plan(answer: &Json) -> String {
    answer["stats"]["plan"].as_str().unwrap_or("?").to_owned()
}

fn either(plans: &BTreeSet<String>) -> String {
    plans.iter().map(String::as_str).collect::<Vec<_>>().join(" or ")
}

fn applied(answer: &Json) -> Result<Lsn> {
    position(&answer["applied_lsn"])
}

/// The same request with more fields.
fn with(body: &Json, more: Json) -> Json {
    let fields = [body, &more].into_iter().filter_map(Json::as_object).flatten();
    Json::Object(fields.map(|(name, value)| (name.clone(), value.clone())).collect())
}
