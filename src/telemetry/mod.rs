//! Logs and metrics: set-up and names.

pub mod names;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::OnceLock;
use tracing_subscriber::EnvFilter;

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Sends logs to standard error. `level` is a tracing filter such as `info` or `ruvector=debug`.
pub fn init_logs(level: &str, format: LogFormat) -> Result<(), String> {
    // A bare word that is no level would be taken for the name of a module, and nothing would be logged at all.
    let bare = level.chars().all(|c| c.is_ascii_alphanumeric());
    if bare && level.parse::<tracing::Level>().is_err() && !level.eq_ignore_ascii_case("off") {
        return Err(format!("log.level {level:?} is no level: error, warn, info, debug, trace or a filter"));
    }
    let filter = EnvFilter::try_new(level).map_err(|error| format!("log level `{level}`: {error}"))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match format {
        LogFormat::Text => logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => logs.json().try_init(),
    };
    set.map_err(|error| error.to_string())
}

/// Installs the metrics registry once for the process; later calls return the same.
pub fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let seconds =
            [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
        let counts = [10.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 100_000.0, 1_000_000.0];
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &seconds)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_nodes".into()), &counts))
            .expect("buckets are not empty")
            .install_recorder()
            .expect("no other recorder is installed");
        describe();
        handle
    })
}

fn describe() {
    for (name, kind, text) in names::ALL {
        match kind {
            names::Kind::Counter => metrics::describe_counter!(*name, text.trim()),
            names::Kind::Gauge => metrics::describe_gauge!(*name, text.trim()),
            names::Kind::Histogram => metrics::describe_histogram!(*name, text.trim()),
        }
    }
}
