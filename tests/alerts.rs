//! The alert rules under config/ speak of metrics that exist.

use ruvector::telemetry::names;

#[test]
fn every_alert_names_a_metric_of_ours() {
    let rules = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/alerts.yml")).expect("rules");
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let used: Vec<_> = words.filter(|word| word.starts_with("ruvector_")).collect();
    assert!(used.len() >= 8, "{used:?}");
    for name in used {
        assert!(names::ALL.iter().any(|(metric, ..)| *metric == name), "{name} is no metric of ours");
    }
}
