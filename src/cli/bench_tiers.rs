//! `bench tiers`: memory, recall and speed of every tier, as one index goes through all of them.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use serde_json::{Value as Json, json};

use crate::cli::bench_ann::round;
use crate::cli::bench_restart::{IndexArgs, collection, fill, is_filled, open, point, questions, wait};
use crate::engine::tiers::{self, Clock};
use crate::engine::{Engine, Options};
use crate::model::{Exactness, Tier, TierPolicy};

/// Arguments of `bench tiers`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    index: IndexArgs,
    /// Measure every exactness, not only `balanced`.
    #[arg(long)]
    every_exactness: bool,
}

/// Fills the directory unless it is, then lets time pass and measures what comes of it.
pub fn run(args: &Args) -> Result<()> {
    let index = &args.index;
    let (queries, truth) = questions(index)?;
    if !is_filled(index) {
        fill(index)?;
    }
    let (clock, policy) = (Clock::default(), TierPolicy { residence_h: 0.0, ..TierPolicy::default() });
    let options = Options {
        build_threads: index.graph.threads,
        tiers: BTreeMap::from([("base".to_owned(), policy.clone())]),
        clock: clock.clone(),
        ..Options::default()
    };
    let engine = open(&index.dir, options)?;
    if !index.json {
        say!(
            "{:>6} {:>9} {:>7} {:>9} {:>8} {:>9} {:>6} {:>8} {:>9} {:>9}",
            "tier",
            "codes",
            "ratio",
            "index MB",
            "moved s",
            "exactness",
            "ef",
            "recall",
            "QPS/CPU",
            "p50 us"
        );
    }
    let hours = [0.0, policy.warm_after_h, policy.cool_after_h, policy.cold_after_h];
    for (tier, pair) in Tier::ALL.into_iter().zip([0.0].iter().chain(&hours).zip(&hours)) {
        // An hour more than it takes.
        clock.advance(((pair.1 - pair.0) * 60.0) as u32 + u32::from(tier != Tier::Hot));
        let seconds = moved(&engine, tier)?;
        let view = engine.view();
        let found = collection(&view)?;
        let reported = tiers::report(&found.indexes[0]);
        for how in [Exactness::Fast, Exactness::Balanced, Exactness::Exact] {
            if how != Exactness::Balanced && !args.every_exactness {
                continue;
            }
            for &ef in &index.ef {
                let mut line = point(index, found, (&queries, &truth), ef, how)?;
                line["what"] = "tier".into();
                line["tier"] = tier.name().into();
                line["encodings"] = json!(reported[0].encodings);
                line["compression_ratio"] = round(reported[0].compression_ratio, 2).into();
                line["memory_bytes"] = reported[0].memory_bytes.into();
                line["moved_s"] = round(seconds, 1).into();
                line["exactness"] = json!(how);
                report(index, &line);
            }
        }
    }
    engine.stop();
    Ok(())
}

/// Waits until every row is in a tier, and for how long.
fn moved(engine: &Engine, tier: Tier) -> Result<f64> {
    let started = Instant::now();
    engine.look_at_tiers();
    wait(engine, |view| {
        let segments = collection(view).map(|found| found.indexes[0].segments.clone()).unwrap_or_default();
        segments.iter().all(|segment| segment.graph.is_empty() || segment.keeping().tier == Some(tier))
    })?;
    Ok(started.elapsed().as_secs_f64())
}

fn report(args: &IndexArgs, line: &Json) {
    if args.json {
        say!("{line}");
        return;
    }
    let number = |key: &str| line[key].as_f64().unwrap_or(0.0);
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    say!(
        "{:>6} {:>9} {:>7.1} {:>9.1} {:>8.1} {:>9} {:>6} {:>8.4} {:>9} {:>9.1}",
        text("tier"),
        line["encodings"][0].as_str().unwrap_or_default(),
        number("compression_ratio"),
        number("memory_bytes") / 1e6,
        number("moved_s"),
        text("exactness"),
        number("ef"),
        number("recall"),
        number("qps_cpu"),
        number("p50_us"),
    );
}
