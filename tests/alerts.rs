//! The alert rules under config/ and the metrics' document are about metrics that exist, and that are there from the start.

mod support;

use ruvector::telemetry::names::{self, Kind};
use std::path::Path;
use support::{DOCS, Database, Service};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("readable")
}

fn kind(name: &str) -> Option<Kind> {
    names::ALL.iter().find(|(metric, ..)| *metric == name).map(|(_, kind, _)| *kind)
}

/// The metrics within calls of these functions.
fn within<'r>(rules: &'r str, functions: &[&str]) -> Vec<&'r str> {
    let calls = functions.iter().flat_map(|function| rules.match_indices(function));
    let names = calls.filter_map(|(at, function)| {
        let rest = rules[at + function.len()..].strip_prefix('(')?;
        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()
    });
    names.collect()
}

#[test]
fn every_alert_names_a_metric_of_ours() {
    let rules = read("config/alerts.yml");
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let used: Vec<_> = words.filter(|word| word.starts_with("ruvector_")).collect();
    assert!(used.len() >= 8, "{used:?}");
    for name in used {
        assert!(kind(name).is_some(), "{name} is no metric of ours");
    }
    let grows = within(&rules, &["increase", "rate", "irate"]);
    assert!(grows.len() >= 5, "{grows:?}");
    for name in grows {
        assert_eq!(kind(name), Some(Kind::Counter), "{name}: what goes down again has no increase");
    }
    for name in within(&rules, &["delta", "deriv"]) {
        assert_eq!(kind(name), Some(Kind::Gauge), "{name}");
    }
}

#[test]
fn what_alerts_watch_for_growth_is_there_at_zero_from_the_start() {
    let database = Database::shared();
    database.docs(5);
    let service = Service::ready(&database, DOCS);
    let metrics = service.client().text("/metrics").expect("metrics");
    let rules = read("config/alerts.yml");
    for name in within(&rules, &["increase", "rate"]) {
        let series: Vec<_> = metrics
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")))
            .collect();
        assert!(!series.is_empty(), "{name} begins when it counts first: its increase to 1 is not seen\n{metrics}");
        assert!(series.iter().all(|line| line.ends_with(" 0")), "{series:?}");
    }
    for line in [
        "ruvector_replication_resyncs_total{reason=\"slot_lost\"} 0",
        "ruvector_replication_reconnects_total{reason=\"unavailable\"} 0",
        "ruvector_source_slot_given_up_total{budget=\"bytes\"} 0",
        "ruvector_source_slot_given_up_total{budget=\"time\"} 0",
        "ruvector_verify_mismatches_total 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
}

#[test]
fn the_document_of_metrics_is_the_table_of_their_names() {
    let mut text = String::from(
        "# Metrics\n\nWhat `GET /metrics` shows, from `src/telemetry/names.rs`; `RUVECTOR_WRITE_DOCS=1 cargo test --test alerts` \
         writes this file anew.\nRules for alerts: [config/alerts.yml](../config/alerts.yml).\n\n| metric | kind | meaning |\n|---|---|---|\n",
    );
    for (name, kind, meaning) in names::ALL {
        let kind = format!("{kind:?}").to_lowercase();
        let meaning = meaning.split_whitespace().collect::<Vec<_>>().join(" ");
        text.push_str(&format!("| `{name}` | {kind} | {meaning} |\n"));
    }
    if std::env::var_os("RUVECTOR_WRITE_DOCS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        std::fs::write(path, &text).expect("writable");
    }
    assert_eq!(read("docs/metrics.md"), text, "RUVECTOR_WRITE_DOCS=1 cargo test --test alerts writes it");
}
