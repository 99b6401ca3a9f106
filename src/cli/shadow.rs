//! `ruvector shadow`: the same questions to pgvector in the source and to a running service, before anybody relies on it.

use crate::cli::client::{Client, Target, segment};
use crate::config::Config;
use crate::model::{Metric, quote_ident, quote_literal};
use anyhow::{Context, anyhow, bail};
use serde_json::{Value as Json, json};
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio_postgres::types::ToSql;

/// Arguments of `shadow`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Configuration file: it names the source.
    #[arg(long, short, env = "RUVECTOR_CONFIG")]
    config: Option<PathBuf>,
    /// The collection.
    collection: String,
    /// Vector column; the first one when absent.
    #[arg(long)]
    using: Option<String>,
    /// Questions: the vectors of so many rows, drawn by chance.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    queries: u32,
    /// Rows wanted of each.
    #[arg(long, short = 'n', default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Only rows that pass, in the SQL that both understand.
    #[arg(long)]
    filter: Option<String>,
    /// Search width of the service; its own choice when absent.
    #[arg(long)]
    ef: Option<usize>,
    /// How sure the service is to be of a row: none, exists or exact.
    #[arg(long, default_value = "exists")]
    recheck: String,
    /// A setting of the source's session, as your application has it: `hnsw.ef_search=100`.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// Do not ask the source for the exact answers, which reads the whole table for each question.
    #[arg(long)]
    no_exact: bool,
    /// Exit code 1 when less than this share of the exact answers (of the source's answers, with --no-exact) is found.
    #[arg(long, default_value_t = 0.95)]
    least: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Questions before those that count.
const WARM: usize = 5;
/// Distances that differ by less are one: the source computes some in single precision.
const SAME: f64 = 1e-5;

/// A row of an answer: the text of its key and its distance.
type Row = (Vec<String>, f64);

/// What is asked, and of which table.
struct Question {
    /// `schema.table`, quoted.
    table: String,
    /// Key columns.
    key: Vec<String>,
    column: String,
    metric: String,
    /// The vector column as pgvector's type, the operator, and that type.
    sides: (String, String, String),
}

impl Question {
    /// Of the collection as the service shows it, in the source it is from.
    async fn of(client: &tokio_postgres::Client, shown: &Json, using: Option<&str>) -> anyhow::Result<Question> {
        let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
        let vectors = shown["vectors"].as_array().map(Vec::as_slice).unwrap_or_default();
        let vector = vectors.iter().find(|vector| using.is_none_or(|name| vector["name"] == name));
        let vector = vector.ok_or_else(|| anyhow!("the collection has no vector column of that name"))?;
        let (column, metric) = (text(&vector["name"]), text(&vector["metric"]));
        let known = Metric::ALL.into_iter().find(|known| known.name() == metric);
        let Some(operator) = known.and_then(Metric::operator) else {
            bail!("pgvector has no operator for {metric}, so there is nothing to compare with");
        };
        let sql = "SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace \
                   WHERE e.extname = 'vector'";
        let Some(pgvector) = client.query_opt(sql, &[]).await? else {
            bail!(
                "pgvector is not installed in the source, so there is nothing to compare with; `ruvector verify` compares rows"
            );
        };
        let pgvector = quote_ident(&pgvector.try_get::<_, String>(0)?);
        // From now on the server knows its settings, and refuses values that they do not take.
        client.batch_execute(&format!("SELECT '[0]'::{pgvector}.vector")).await?;
        let sql = "SELECT n.nspname, c.relname, t.typname FROM pg_catalog.pg_class c \
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = $2 \
                   JOIN pg_catalog.pg_type t ON t.oid = a.atttypid WHERE n.nspname || '.' || c.relname = $1";
        let found = client.query_opt(sql, &[&text(&shown["table"]), &column]).await?;
        let found = found.ok_or_else(|| anyhow!("{} is not in this source", text(&shown["table"])))?;
        let (schema, table, kind): (String, String, String) = (found.try_get(0)?, found.try_get(1)?, found.try_get(2)?);
        let own = ["vector", "halfvec", "sparsevec"].contains(&kind.as_str());
        let kind = match kind.as_str() {
            // `bit` alone is one bit.
            "bit" | "varbit" => "varbit".to_owned(),
            own_kind if own => format!("{pgvector}.{own_kind}"),
            // Arrays, which pgvector casts.
            _ => format!("{pgvector}.vector"),
        };
        let quoted = quote_ident(&column);
        let left = if own || kind.ends_with("bit") { quoted } else { format!("{quoted}::{kind}") };
        let key = shown["key"].as_array().into_iter().flatten().map(|column| text(&column["name"])).collect();
        let table = format!("{}.{}", quote_ident(&schema), quote_ident(&table));
        Ok(Question { table, key, column, metric, sides: (left, format!("OPERATOR({pgvector}.{operator})"), kind) })
    }

    /// Vectors of rows drawn by chance, as text. From a large table by whole pages, so that it is not read as a whole.
    async fn draw(&self, client: &tokio_postgres::Client, count: u32) -> anyhow::Result<Vec<String>> {
        let pages = "SELECT greatest(reltuples, 0)::float8 FROM pg_catalog.pg_class WHERE oid = $1::text::regclass";
        let rows: f64 = client.query_one(pages, &[&self.table]).await?.try_get(0)?;
        let share = f64::from(count) * 20.0 / rows.max(1.0) * 100.0;
        let column = &self.sides.0;
        let drawn = |sample: String| {
            format!(
                "SELECT {column}::text FROM {}{sample} WHERE {column} IS NOT NULL ORDER BY random() LIMIT {count}",
                self.table
            )
        };
        let mut found = Vec::new();
        if share < 50.0 {
            // Partitioned tables have no pages of their own, but take this too.
            found = client.query(&drawn(format!(" TABLESAMPLE SYSTEM ({share})")), &[]).await?;
        }
        if found.len() < count as usize {
            found = client.query(&drawn(String::new()), &[]).await?;
        }
        found.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// The statement an application of pgvector would send.
    fn sql(&self, filter: Option<&str>, limit: u32) -> String {
        let (left, operator, kind) = &self.sides;
        let key: Vec<_> = self.key.iter().map(|name| format!("{}::text", quote_ident(name))).collect();
        let distance = format!("{left} {operator} $1::text::{kind}");
        let filter = filter.map(|filter| format!(" WHERE ({filter})")).unwrap_or_default();
        let key = key.join(", ");
        format!(
            "SELECT ARRAY[{key}], ({distance})::float8 FROM {}{filter} ORDER BY {distance} LIMIT {limit}",
            self.table
        )
    }

    /// The same for the service.
    fn body(&self, args: &Args, vector: &str) -> anyhow::Result<Json> {
        let mut body = json!({ "query": { "vector": literal(vector)?, "using": self.column }, "limit": args.limit });
        body["recheck"] = json!(args.recheck);
        if let Some(filter) = &args.filter {
            body["filter"] = json!(filter);
        }
        if let Some(ef) = args.ef {
            body["search"] = json!({ "ef": ef });
        }
        Ok(body)
    }

    fn rows(&self, answer: &Json) -> Vec<Row> {
        let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let key = |row: &Json| match &row["id"] {
            Json::Object(columns) => {
                self.key.iter().map(|name| columns.get(name).map(text).unwrap_or_default()).collect()
            }
            one => vec![text(one)],
        };
        let rows = answer["hits"].as_array().into_iter().flatten();
        rows.map(|row| (key(row), row["distance"].as_f64().unwrap_or(f64::NAN))).collect()
    }
}

/// pgvector's text of a vector as the service takes it: a list, or for bits and sparse vectors the text itself.
fn literal(vector: &str) -> anyhow::Result<Json> {
    match vector.starts_with('[') {
        true => serde_json::from_str(vector).with_context(|| format!("not a vector: {vector}")),
        false => Ok(json!(vector)),
    }
}

/// What one side did.
#[derive(Default)]
struct Side {
    times: Vec<Duration>,
    found: usize,
    /// Questions with fewer rows than the other knows.
    short: usize,
}

impl Side {
    /// Counts the rows that are among the best, by key or, of the best there are at all, by distance: ties may be any of them.
    fn count(&mut self, rows: &[Row], best: &[Row], ties: bool) {
        let keys: HashSet<_> = best.iter().map(|(key, _)| key).collect();
        let last = best.last().map_or(f64::NAN, |(_, distance)| *distance);
        let tie = |distance: f64| ties && distance <= last + SAME * last.abs().max(SAME);
        let hit = |(key, distance): &&Row| keys.contains(key) || tie(*distance);
        self.found += rows.iter().filter(hit).count().min(best.len());
        self.short += usize::from(rows.len() < best.len());
    }

    fn json(&mut self, wanted: usize, what: &str) -> Json {
        self.times.sort_unstable();
        let at = |share: f64| {
            let at = ((self.times.len() as f64 * share) as usize).min(self.times.len().saturating_sub(1));
            self.times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
        };
        let mut json = json!({ "p50_ms": at(0.5), "p99_ms": at(0.99), "short": self.short });
        json[what] = json!(self.found as f64 / wanted.max(1) as f64);
        json
    }
}

/// Asks both, and says how their answers differ. Exit code 1 when the service finds too little.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if !(0.0..=1.0).contains(&args.least) {
        bail!("--least is a share, from 0 to 1");
    }
    let config = Config::load(args.config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let report = runtime.block_on(shadow(args, &config))?;
    if args.json {
        say!("{report}");
    } else {
        print(&report);
    }
    let share = report["ruvector"][if args.no_exact { "overlap" } else { "recall" }].as_f64().unwrap_or(0.0);
    Ok(ExitCode::from(u8::from(share < args.least)))
}

async fn shadow(args: &Args, config: &Config) -> anyhow::Result<Json> {
    let service = Client::of(&args.target)?;
    let path = format!("/v1/collections/{}", segment(&args.collection));
    let shown = service.get(&path)?;
    let source = config.dsn()?.connect().await?;
    source.batch_execute("SET default_transaction_read_only = on; SET timezone = 'UTC'; SET datestyle = 'ISO'").await?;
    let question = Question::of(&source, &shown, args.using.as_deref()).await?;
    for setting in &args.settings {
        let (name, value) = setting.split_once('=').ok_or_else(|| anyhow!("--set takes NAME=VALUE, not {setting}"))?;
        let sql = "SELECT pg_catalog.set_config($1, $2, false)";
        source.execute(sql, &[&name, &value]).await.with_context(|| format!("--set {setting}"))?;
    }
    let vectors = question.draw(&source, args.queries).await?;
    if vectors.is_empty() {
        bail!("{} has no vectors in {}", question.table, question.column);
    }
    let sql = question.sql(args.filter.as_deref(), args.limit);
    let statement = source.prepare(&sql).await.context("the source does not take the question")?;
    let plan = plan(&source, &sql, &vectors[0]).await?;
    let path = format!("{path}/search");
    let (mut theirs, mut ours, mut both, mut wanted) = (Side::default(), Side::default(), Side::default(), [0, 0]);
    for (number, vector) in (0..WARM)
        .map(|number| (None, &vectors[number % vectors.len()]))
        .chain(vectors.iter().map(|vector| (Some(()), vector)))
    {
        let parameters: [&(dyn ToSql + Sync); 1] = [vector];
        let started = Instant::now();
        let answer = source.query(&statement, &parameters).await?;
        let source_time = started.elapsed();
        let body = question.body(args, vector)?;
        let started = Instant::now();
        let found = service.post(&path, &body)?;
        let service_time = started.elapsed();
        if number.is_none() {
            continue;
        }
        let answer = answer.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        let answer: Vec<Row> = answer.collect::<anyhow::Result<_>>()?;
        let found = question.rows(&found);
        theirs.times.push(source_time);
        ours.times.push(service_time);
        both.count(&found, &answer, false);
        wanted[0] += answer.len();
        if !args.no_exact {
            let best = exact(&source, &sql, vector).await?;
            theirs.count(&answer, &best, true);
            ours.count(&found, &best, true);
            wanted[1] += best.len();
        }
    }
    let (mut source, mut ruvector) = (theirs.json(wanted[1], "recall"), ours.json(wanted[1], "recall"));
    if args.no_exact {
        for side in [&mut source, &mut ruvector] {
            side.as_object_mut().map(|side| side.remove("recall"));
        }
        ruvector["short"] = json!(both.short);
    }
    ruvector["overlap"] = json!(both.found as f64 / wanted[0].max(1) as f64);
    source["plan"] = json!(plan);
    Ok(json!({
        "collection": args.collection, "column": question.column, "metric": question.metric, "queries": vectors.len(),
        "limit": args.limit, "source": source, "ruvector": ruvector,
    }))
}

/// The scan that the source chose.
async fn plan(client: &tokio_postgres::Client, sql: &str, vector: &str) -> anyhow::Result<String> {
    let sql = format!("EXPLAIN (COSTS OFF) {}", sql.replace("$1", &quote_literal(vector)));
    let lines = client.query(&sql, &[]).await.context("EXPLAIN of the question")?;
    let lines = lines.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>()?;
    let scan = lines.iter().find(|line| line.contains("Scan")).cloned().unwrap_or_else(|| lines.join(" "));
    Ok(scan.trim_start_matches([' ', '-', '>']).to_owned())
}

/// The true answer: with no index, in a transaction of its own.
async fn exact(client: &tokio_postgres::Client, sql: &str, vector: &str) -> anyhow::Result<Vec<Row>> {
    client.batch_execute("BEGIN; SET LOCAL enable_seqscan = on; SET LOCAL enable_sort = on; SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off").await?;
    let rows = client.query(sql, &[&vector]).await?;
    client.batch_execute("COMMIT").await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

fn print(report: &Json) {
    let number = |json: &Json, digits: usize| json.as_f64().map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
    let (limit, column, metric) = (&report["limit"], text(&report["column"]), text(&report["metric"]));
    say!("{}.{column}, {metric}: {} questions, the {limit} nearest", text(&report["collection"]), report["queries"]);
    say!("{:<10} {:>10} {:>10} {:>10} {:>6}", "", format!("recall@{limit}"), "p50 ms", "p99 ms", "short");
    for name in ["source", "ruvector"] {
        let side = &report[name];
        say!(
            "{name:<10} {:>10} {:>10} {:>10} {:>6}  {}",
            number(&side["recall"], 3),
            number(&side["p50_ms"], 2),
            number(&side["p99_ms"], 2),
            side["short"],
            text(&side["plan"])
        );
    }
    say!("overlap@{limit} with the source's own answers: {}", number(&report["ruvector"]["overlap"], 3));
}
