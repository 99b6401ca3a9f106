//! Logs, metrics and traces: set-up and names.

pub mod names;
pub mod traces;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::OnceLock;
use traces::Sending;
use tracing::Metadata;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Sends logs to standard error, and traces where that is wanted: for as long as what this gives is kept. `level` is a tracing
/// filter such as `info` or `ruvector=debug`.
pub fn init(level: &str, format: LogFormat, traced: Option<&traces::Options>) -> Result<Option<Sending>, String> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let (spans, sending) = match traced.map(traces::start).transpose()? {
        None => (None, None),
        Some((tracer, sending)) => {
            let ours = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target().starts_with("ruvector");
            let ours = filter_fn(ours).with_max_level_hint(LevelFilter::DEBUG);
            let spans = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
            (Some(spans.with_filter(ours)), Some(sending))
        }
    };
    let registry = tracing_subscriber::registry().with(spans);
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let set = match format {
        LogFormat::Text => {
            let coloured = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry.with(logs.with_ansi(coloured).with_filter(filter)).try_init()
        }
        LogFormat::Json => registry.with(logs.json().with_filter(filter)).try_init(),
    };
    set.map_err(|error| error.to_string())?;
    let _ = SET_FILTER.set(Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())));
    Ok(sending)
}

type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// From now on logs are of this level, once [`init`] was called.
pub fn set_level(level: &str) -> Result<(), String> {
    let filter = filter(level)?;
    SET_FILTER.get().map_or(Ok(()), |set| set(filter))
}

/// What is logged: a tracing filter such as `info` or `ruvector=debug`.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    // A bare word that is no level would be taken for the name of a module, and nothing would be logged at all.
    let bare = level.chars().all(|c| c.is_ascii_alphanumeric());
    if bare && level.parse::<tracing::Level>().is_err() && !level.eq_ignore_ascii_case("off") {
        return Err(format!("log.level {level:?} is no level: error, warn, info, debug, trace or a filter"));
    }
    EnvFilter::try_new(level).map_err(|error| {
        format!("log.level {level:?}: {error}; write a level, or a filter such as info,ruvector=debug")
    })
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
