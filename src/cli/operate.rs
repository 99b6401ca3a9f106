//! `ruvector status`, `search`, `verify` and `rebuild`: talking to a running service.

use crate::cli::client::{Client, Target, segment};
use anyhow::{Context, anyhow, bail};
use serde_json::{Value as Json, json};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two looks at a rebuild.
const REBUILD_LOOK: Duration = Duration::from_millis(200);

/// Arguments of `status`.
#[derive(clap::Args)]
pub struct Status {
    #[command(flatten)]
    target: Target,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `search`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("by").required(true).args(["vector", "id"]))]
pub struct Search {
    #[command(flatten)]
    target: Target,
    /// The collection.
    collection: String,
    /// The query vector as a JSON array, or `-` to read it from standard input.
    #[arg(long, allow_hyphen_values = true)]
    vector: Option<String>,
    /// Search by the vector of the row with this key: a JSON value, or an object for a key of several columns.
    #[arg(long)]
    id: Option<String>,
    /// Vector column; the first one when absent.
    #[arg(long)]
    using: Option<String>,
    /// Rows wanted: 10, or with --max-distance all there are.
    #[arg(long, short = 'n')]
    limit: Option<usize>,
    /// All rows at this distance or nearer.
    #[arg(long, allow_hyphen_values = true)]
    max_distance: Option<f64>,
    /// The nearest groups of rows that share this column's value.
    #[arg(long)]
    group_by: Option<String>,
    /// Rows of each group.
    #[arg(long, requires = "group_by")]
    group_size: Option<usize>,
    /// Rows that differ among themselves: 1 is nearness alone, 0 difference alone.
    #[arg(long)]
    mmr: Option<f64>,
    /// Only rows that pass, in SQL: `section = 'net' AND price < $1`.
    #[arg(long)]
    filter: Option<String>,
    /// A value for `$1`, `$2`, ... as JSON; text that is no JSON is taken as a string.
    #[arg(long = "param", requires = "filter")]
    params: Vec<String>,
    /// Columns to show, comma separated.
    #[arg(long, value_delimiter = ',')]
    columns: Vec<String>,
    /// How sure: none, exists or exact.
    #[arg(long, default_value = "exists")]
    recheck: String,
    /// Search width.
    #[arg(long)]
    ef: Option<usize>,
    /// Compare with every row.
    #[arg(long)]
    exact: bool,
    /// Only answer when everything up to this LSN is applied.
    #[arg(long)]
    at_least: Option<String>,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `verify`.
#[derive(clap::Args)]
pub struct Verify {
    #[command(flatten)]
    target: Target,
    /// The collections; all of them when none is named.
    collections: Vec<String>,
    /// Print one JSON object per collection and line.
    #[arg(long)]
    json: bool,
}

/// Arguments of `rebuild`.
#[derive(clap::Args)]
pub struct Rebuild {
    #[command(flatten)]
    target: Target,
    /// The collections.
    #[arg(conflicts_with = "all")]
    collections: Vec<String>,
    /// All of them, one after the other.
    #[arg(long)]
    all: bool,
    /// Give up waiting when nothing has moved for so many seconds. The service goes on trying.
    #[arg(long, default_value_t = 60)]
    patience: u64,
}

/// Arguments of `compact`.
#[derive(clap::Args)]
pub struct Compact {
    #[command(flatten)]
    target: Target,
    /// The collections; all of them when none is named.
    collections: Vec<String>,
}

/// Shows what the service is doing; exit code 1 when it is not ready.
pub fn status(args: &Status) -> anyhow::Result<ExitCode> {
    let client = Client::of(&args.target)?;
    let status = client.get("/v1/status")?;
    if !status["positions"].is_object() {
        bail!("what answers at {} is no ruvector; say where it is with --url", args.target.url);
    }
    let code = if status["not_ready"].is_null() { ExitCode::SUCCESS } else { ExitCode::from(1) };
    if args.json {
        say!("{status}");
        return Ok(code);
    }
    let text = |json: &Json| json.as_str().map_or_else(|| json.to_string(), str::to_owned);
    let slot = status["slot"].as_str().unwrap_or("none yet");
    say!("source       {}  slot {slot}", text(&status["source"]));
    say!("replication  {}", describe(&status["replication"]));
    if let Some(reason) = status["not_ready"].as_str() {
        say!("not ready    {reason}");
    }
    let positions = &status["positions"];
    for name in ["source", "received", "durable", "confirmed", "applied"] {
        // A position that nobody has told us of is no position.
        let position = positions[name].as_str().filter(|lsn| *lsn != "0/0");
        say!("{name:<12} {}", position.unwrap_or("unknown"));
    }
    match positions["staleness_ms"].as_f64() {
        Some(ms) => say!("staleness    at most {ms:.0} ms"),
        None => say!("staleness    unknown"),
    }
    source_slots(&status);
    if let Some(trouble) = status["copy_trouble"].as_str() {
        say!("copy         does not go on: {trouble}");
    }
    for collection in client.get("/v1/collections")?["collections"].as_array().into_iter().flatten() {
        say!(
            "collection   {}: {}, {} rows, {} dead letters{}",
            text(&collection["name"]),
            text(&collection["state"]),
            collection["rows"],
            collection["dead_letters"],
            copy_progress(collection).unwrap_or_default()
        );
        if let Some(reason) = collection["reason"].as_str() {
            say!("  does not follow its table: {reason}");
        }
        for vector in collection["vectors"].as_array().into_iter().flatten() {
            say!(
                "  {} {} {}: {} vectors, {} of {} nodes linked, {} segments, {} MB",
                text(&vector["name"]),
                text(&vector["metric"]),
                vector["dimensions"],
                vector["vectors"],
                vector["linked"],
                vector["nodes"],
                vector["segments"],
                vector["memory_bytes"].as_u64().unwrap_or(0) / 1_000_000
            );
        }
    }
    registrations(&status["registrations"]);
    Ok(code)
}

/// What became of what is registered by SQL.
fn registrations(found: &Json) {
    if let Some(trouble) = found["trouble"].as_str() {
        say!("registered   cannot be read: {trouble}");
    }
    for row in found["rows"].as_array().into_iter().flatten() {
        let name = row["name"].as_str().unwrap_or("?");
        match row["reason"].as_str() {
            Some(reason) => say!("registered   {name}: not taken, {reason}"),
            None => say!("registered   {name}: taken"),
        }
    }
}

/// What our slots keep on the source, and what the doctor found.
fn source_slots(status: &Json) {
    let protection = &status["protection"];
    let mib = |bytes: &Json| bytes.as_f64().map_or("unknown".into(), |bytes| format!("{:.1} MiB", bytes / 1_048_576.0));
    for slot in protection["slots"].as_array().into_iter().flatten() {
        let wal_status = slot["wal_status"].as_str().unwrap_or("unknown");
        let name = slot["name"].as_str().unwrap_or("?");
        say!("slot         {name}: keeps {} of WAL, {wal_status}", mib(&slot["retained_wal_bytes"]));
    }
    if !protection["budget_left_bytes"].is_null() {
        let spent_in = protection["budget_spent_in_s"].as_f64();
        let spent_in = spent_in.map(|seconds| format!(", spent in {} at this rate", span(seconds))).unwrap_or_default();
        let (left, all) = (mib(&protection["budget_left_bytes"]), mib(&protection["budget_bytes"]));
        say!("WAL budget   {left} left of {all}{spent_in}");
    }
    for key in ["warning", "given_up_reason"] {
        protection[key].as_str().into_iter().for_each(|what| say!("protection   {what}"));
    }
    for finding in status["doctor"]["findings"].as_array().into_iter().flatten() {
        let field = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        say!("doctor       {} {} {}: {}", field("severity"), field("code"), field("check"), field("observed"));
    }
}

/// A time for people.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 600.0 => format!("{s:.0} s"),
        s if s < 6.0 * 3600.0 => format!("{:.0} min", s / 60.0),
        s if s < 2.0 * 86_400.0 => format!("{:.0} h", s / 3600.0),
        s if s < 730.0 * 86_400.0 => format!("{:.0} days", s / 86_400.0),
        _ => "years".into(),
    }
}

fn describe(phase: &Json) -> String {
    let name = phase["phase"].as_str().unwrap_or("unknown");
    match phase["error"].as_str().or(phase["reason"].as_str()) {
        Some(why) => format!("{name}: {why}"),
        None => name.to_owned(),
    }
}

fn copy_progress(collection: &Json) -> Option<String> {
    let copy = collection.get("copy")?;
    let share = copy["share_read"].as_f64()? * 100.0;
    let eta = copy["eta_s"].as_f64().map(|seconds| format!(", {seconds:.0} s left to read")).unwrap_or_default();
    Some(format!(", {share:.0} % read{eta}, {} rows loaded, {} linked", copy["rows_loaded"], copy["rows_linked"]))
}

fn body(args: &Search) -> anyhow::Result<Json> {
    for (name, value) in [("--max-distance", args.max_distance), ("--mmr", args.mmr)] {
        // JSON has no other numbers.
        if let Some(value) = value.filter(|value| !value.is_finite()) {
            bail!("{name} is {value}; it must be a finite number");
        }
    }
    let mut query = match (&args.vector, &args.id) {
        (Some(vector), _) => {
            let text = if vector == "-" { std::io::read_to_string(std::io::stdin())? } else { vector.clone() };
            let vector: Json =
                serde_json::from_str(&text).context("--vector is no JSON; write numbers in brackets: [0.1,0.2]")?;
            json!({ "vector": vector })
        }
        (None, Some(id)) => json!({ "id": json_or_text(id) }),
        (None, None) => bail!("one of --vector and --id is needed"),
    };
    if let Some(using) = &args.using {
        query["using"] = json!(using);
    }
    let mut body = json!({
        "query": query,
        "columns": args.columns,
        "recheck": args.recheck,
        "search": { "exact": args.exact },
    });
    let mut put = |name: &str, value: Option<Json>| {
        if let Some(value) = value {
            body[name] = value;
        }
    };
    put("limit", args.limit.map(Json::from));
    put("max_distance", args.max_distance.map(Json::from));
    put("group_by", args.group_by.as_deref().map(Json::from));
    put("group_size", args.group_size.map(Json::from));
    put("mmr", args.mmr.map(|lambda| json!({ "lambda": lambda })));
    if let Some(ef) = args.ef {
        body["search"]["ef"] = json!(ef);
    }
    if let Some(filter) = &args.filter {
        body["filter"] = json!(filter);
        body["params"] = args.params.iter().map(|param| json_or_text(param)).collect();
    }
    if let Some(lsn) = &args.at_least {
        body["consistency"] = json!({ "at_least": lsn });
    }
    Ok(body)
}

fn json_or_text(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|_| Json::String(text.to_owned()))
}

fn say_hits(of: &Json) {
    for hit in of["hits"].as_array().into_iter().flatten() {
        let distance = hit["distance"].as_f64().map_or("undefined".into(), |distance| format!("{distance:.4}"));
        let columns = hit.get("columns").map(Json::to_string).unwrap_or_default();
        say!("{distance:>9}  {}  {columns}", hit["id"]);
    }
}

/// Searches and prints.
pub fn search(args: &Search) -> anyhow::Result<()> {
    let client = Client::of(&args.target)?;
    let answer = client.post(&format!("/v1/collections/{}/search", segment(&args.collection)), &body(args)?)?;
    if args.json {
        say!("{answer}");
        return Ok(());
    }
    say_hits(&answer);
    for group in answer["groups"].as_array().into_iter().flatten() {
        say!("{}", group["value"]);
        say_hits(group);
    }
    let complete = match (answer["complete"] == true, answer["stale"].as_str()) {
        (true, _) => "complete".to_owned(),
        (false, Some(stale)) => format!("MAY BE SHORT: {stale}"),
        (false, None) => format!("MAY BE SHORT: ended by {}", answer["stats"]["ended"].as_str().unwrap_or("a limit")),
    };
    let stats = &answer["stats"];
    say!(
        "-- {complete}; as of {}; {} us, plan {} ({})",
        answer["applied_lsn"].as_str().unwrap_or("?"),
        stats["took_us"],
        stats["plan"].as_str().unwrap_or("?"),
        stats["reason"].as_str().unwrap_or("?")
    );
    Ok(())
}

fn names(client: &Client, asked: &[String]) -> anyhow::Result<Vec<String>> {
    if !asked.is_empty() {
        return Ok(asked.to_vec());
    }
    let all = client.get("/v1/collections")?;
    let all = all["collections"].as_array().ok_or_else(|| anyhow!("the service lists no collections"))?;
    Ok(all.iter().filter_map(|collection| collection["name"].as_str().map(str::to_owned)).collect())
}

/// Has collections copied again and waits until the new copies answer.
pub fn rebuild(args: &Rebuild) -> anyhow::Result<()> {
    if args.collections.is_empty() && !args.all {
        bail!("name the collections, or say --all");
    }
    let client = Client::of(&args.target)?;
    for name in names(&client, &args.collections)? {
        let path = format!("/v1/collections/{}", segment(&name));
        let before = client.get(&path)?["copied_at"].clone();
        client.post(&format!("/v1/admin/collections/{}/rebuild", segment(&name)), &json!({}))?;
        let rows = copied(&client, (&name, &path), &before, Duration::from_secs(args.patience))?;
        say!("{name}: copied again, {rows} rows");
    }
    Ok(())
}

/// Has segments merged, and waits until they are.
pub fn compact(args: &Compact) -> anyhow::Result<()> {
    let client = Client::of(&args.target)?;
    let sum = |shown: &Json, what: &str| -> u64 {
        shown["vectors"].as_array().into_iter().flatten().filter_map(|vector| vector[what].as_u64()).sum()
    };
    for name in names(&client, &args.collections)? {
        let path = format!("/v1/collections/{}", segment(&name));
        let before = client.get(&path)?;
        client.post(&format!("/v1/admin/collections/{}/compact", segment(&name)), &json!({}))?;
        let mut after = client.get(&path)?;
        while after["compacting"] == true {
            std::thread::sleep(REBUILD_LOOK);
            after = client.get(&path)?;
        }
        let dead = |shown: &Json| sum(shown, "nodes").saturating_sub(sum(shown, "vectors"));
        let (segments, dead) = ([&before, &after].map(|shown| sum(shown, "segments")), [&before, &after].map(dead));
        say!("{name}: {} segments of {}, {} dead vectors of {}", segments[1], segments[0], dead[1], dead[0]);
    }
    Ok(())
}

/// Waits until a new copy answers, and says how far it is and what is in its way. Its rows.
fn copied(client: &Client, (name, path): (&str, &str), before: &Json, patience: Duration) -> anyhow::Result<Json> {
    let (mut said, mut moved) = ((String::new(), None), Instant::now());
    loop {
        std::thread::sleep(REBUILD_LOOK);
        let now = client.get(path)?;
        if now["copied_at"] != *before {
            return Ok(now["rows"].clone());
        }
        let progress = copy_progress(&now).unwrap_or_else(|| ", waiting".into());
        let trouble = now["trouble"].as_str().map(str::to_owned);
        if progress != said.0 {
            moved = Instant::now();
        }
        let now = (progress, trouble);
        if now != said {
            let trouble = now.1.as_deref().map(|why| format!("; does not go on: {why}")).unwrap_or_default();
            say!("{name}{}{trouble}", now.0);
            said = now;
        }
        if moved.elapsed() > patience {
            let why = said.1.unwrap_or_else(|| "`ruvector status` shows what the service does".into());
            bail!(
                "{name}: nothing has moved for {} s: {why}. What was there goes on answering, and the service goes on trying \
                 until it is stopped",
                patience.as_secs()
            );
        }
    }
}

/// Verifies and prints; exit code 1 when anything differs.
pub fn verify(args: &Verify) -> anyhow::Result<ExitCode> {
    let client = Client::of(&args.target)?;
    let mut clean = true;
    for name in names(&client, &args.collections)? {
        let report = client.post(&format!("/v1/admin/collections/{}/verify", segment(&name)), &json!({}))?;
        let same = report["mismatch_count"] == 0 && report["source_checksum"] == report["index_checksum"];
        clean &= same;
        if args.json {
            say!("{report}");
            continue;
        }
        let verdict = if same { "same" } else { "DIFFERENT" };
        say!(
            "{name}: {verdict}; {} rows in the source, {} here, as of {}",
            report["source_rows"],
            report["index_rows"],
            report["at"].as_str().unwrap_or("?")
        );
        say!("  source {}\n  here   {}", report["source_checksum"], report["index_checksum"]);
        for mismatch in report["mismatches"].as_array().into_iter().flatten() {
            say!("  {}: {}", mismatch["kind"].as_str().unwrap_or("?"), mismatch["key"].as_str().unwrap_or("?"));
        }
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
