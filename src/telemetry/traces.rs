//! Traces, sent to a collector by OTLP over HTTP. Spans are of requests, searches and rechecks, and of each transaction as it is
//! decoded and applied; none is of a row. They wait for the collector in a queue of bounded length, and what does not fit is lost:
//! nothing else ever waits.

use bytes::Bytes;
use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator, RandomIdGenerator, Sampler, SdkTracer, SdkTracerProvider,
};
use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Spans that wait for the collector; further ones are lost.
const QUEUE: usize = 2048;
/// Spans sent at once.
const BATCH: usize = 512;
/// Longest wait of a span before it is sent.
const DELAY: Duration = Duration::from_secs(1);
/// How long the collector may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a stop waits for the last spans.
const LAST: Duration = Duration::from_secs(2);

/// Where traces go.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The collector's address; without a path `/v1/traces` is meant.
    pub endpoint: String,
    /// The share of traces that is kept, 0 to 1, where who asks does not say.
    pub ratio: f64,
    /// Name of the slot: who this is, among several.
    pub instance: String,
}

/// What sends; dropped at the end, which gives the last spans a moment.
pub struct Sending(SdkTracerProvider);

impl Drop for Sending {
    fn drop(&mut self) {
        let _ = self.0.shutdown_with_timeout(LAST);
    }
}

/// Of transactions, which have no span that lives from one stage to the next.
struct Transactions {
    tracer: SdkTracer,
    ratio: f64,
    instance: String,
}

static TRANSACTIONS: OnceLock<Transactions> = OnceLock::new();

/// Begins to send. The tracer is for the spans of requests.
pub fn start(options: &Options) -> Result<(SdkTracer, Sending), String> {
    let client = Http::new();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(address(&options.endpoint)?)
        .with_timeout(PATIENCE)
        .build()
        .map_err(|error| format!("telemetry.otlp_endpoint: {error}"))?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(DELAY)
        .build();
    let resource = Resource::builder_empty()
        .with_service_name("ruvector")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", options.instance.clone()))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(options.ratio))))
        .with_id_generator(Ids::default())
        .with_resource(resource)
        .build();
    let tracer = provider.tracer("ruvector");
    let (ratio, instance) = (options.ratio, options.instance.clone());
    let _ = TRANSACTIONS.set(Transactions { tracer: tracer.clone(), ratio, instance });
    Ok((tracer, Sending(provider)))
}

/// The address that spans are sent to.
fn address(endpoint: &str) -> Result<String, String> {
    let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    match rest.map(|rest| rest.split_once('/').unwrap_or((rest, ""))) {
        None | Some(("", _)) => Err(format!("telemetry.otlp_endpoint {endpoint:?} is no address: http://host:4318")),
        Some((authority, "")) => {
            let scheme = if endpoint.starts_with("https") { "https" } else { "http" };
            Ok(format!("{scheme}://{authority}/v1/traces"))
        }
        Some(_) => Ok(endpoint.to_owned()),
    }
}

/// Is this no place to send to?
pub fn check(endpoint: &str) -> Result<(), String> {
    address(endpoint).map(drop)
}

/// What a header `traceparent` says (W3C Trace Context): whose trace a request belongs to.
pub fn parent(header: &str) -> Option<SpanContext> {
    let mut parts = header.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let whole = hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    if !whole || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let parent = SpanContext::new(trace, span, flags, true, TraceState::default());
    parent.is_valid().then_some(parent)
}

/// Makes a span part of the trace that it was asked in, if any; the name of the trace that it belongs to, where it has one.
pub fn join(span: &tracing::Span, parent: Option<&SpanContext>) -> Option<String> {
    if TRANSACTIONS.get().is_some() {
        if let Some(parent) = parent {
            let _ = span.set_parent(Context::new().with_remote_span_context(parent.clone()));
        }
        let context = span.context();
        let own = context.span().span_context().clone();
        if own.is_valid() {
            return Some(own.trace_id().to_string());
        }
    }
    parent.map(|parent| parent.trace_id().to_string())
}

/// What a request was and came to.
pub fn tell(span: &tracing::Span, (method, route): (String, String), status: u16) {
    if TRANSACTIONS.get().is_some() {
        span.set_attribute("http.request.method", method);
        span.set_attribute("http.route", route);
        span.set_attribute("http.response.status_code", i64::from(status));
        if status >= 500 {
            span.set_status(Status::error(""));
        }
    }
}

/// Now, where it is worth knowing.
pub fn moment() -> Option<SystemTime> {
    TRANSACTIONS.get().map(|_| SystemTime::now())
}

/// What was done with a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From its first message to its end in the change log.
    Decode,
    /// Put into rows and indexes.
    Apply,
}

/// A stage of a transaction is over that began at this [`moment`]. `commit`: its commit record's position, by which the stages
/// find each other, also when a restart is between them.
pub fn transaction(stage: Stage, commit: u64, began: Option<SystemTime>, changes: usize) {
    let (Some(all), Some(began)) = (TRANSACTIONS.get(), began) else { return };
    let (trace, root) = names(&all.instance, commit);
    if !is_sampled(trace, all.ratio) {
        return;
    }
    let attributes =
        [KeyValue::new("ruvector.commit", commit as i64), KeyValue::new("ruvector.changes", changes as i64)];
    let named = |name| SpanBuilder::from_name(name).with_start_time(began).with_attributes(attributes);
    match stage {
        Stage::Decode => {
            GIVEN.set(Some((trace, root)));
            drop(named("decode").with_kind(SpanKind::Consumer).start_with_context(&all.tracer, &Context::new()));
            GIVEN.set(None);
        }
        Stage::Apply => {
            let decoded = SpanContext::new(trace, root, TraceFlags::SAMPLED, true, TraceState::default());
            let context = Context::new().with_remote_span_context(decoded);
            drop(named("apply").start_with_context(&all.tracer, &context));
        }
    }
}

/// What the trace of a transaction and its first span are called.
fn names(instance: &str, commit: u64) -> (TraceId, SpanId) {
    let seed = xxhash_rust::xxh3::xxh3_64(instance.as_bytes());
    let commit = commit.to_le_bytes();
    let trace = xxhash_rust::xxh3::xxh3_128_with_seed(&commit, seed);
    (TraceId::from(trace.max(1)), SpanId::from(xxhash_rust::xxh3::xxh3_64_with_seed(&commit, !seed).max(1)))
}

/// As the SDK's own sampler decides: by the last 63 bits of the name.
fn is_sampled(trace: TraceId, ratio: f64) -> bool {
    let bytes = trace.to_bytes();
    let low =
        u64::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14], bytes[15]]);
    ratio >= 1.0 || (low >> 1) < (ratio.max(0.0) * (1u64 << 63) as f64) as u64
}

thread_local! {
    /// What the next span of this thread is called, where that is known.
    static GIVEN: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Names by chance, but for those that are given.
#[derive(Debug, Default)]
struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        GIVEN.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        GIVEN.get().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}

/// The command line's client again; it is called on the thread that sends, where it may wait.
struct Http {
    agent: ureq::Agent,
    fails: AtomicBool,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    fn new() -> Http {
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::from(roots()))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .build();
        let settings = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .max_redirects(0)
            .tls_config(tls);
        Http { agent: settings.build().new_agent(), fails: AtomicBool::new(false) }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let mut post = self.agent.post(parts.uri.to_string());
        for (name, value) in &parts.headers {
            post = post.header(name, value);
        }
        let mut answer = post.send(&body[..])?;
        let text = answer.body_mut().with_config().limit(64 << 10).read_to_vec().unwrap_or_default();
        Ok(Response::builder().status(answer.status()).body(Bytes::from(text))?)
    }

    /// Says once that spans are lost, and once that they are not any more.
    fn note(&self, sent: &Result<Response<Bytes>, HttpError>) {
        let error = match sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        if self.fails.swap(error.is_some(), Ordering::Relaxed) != error.is_some() {
            match error {
                Some(error) => tracing::warn!(error, "the collector takes no traces; they are lost until it does"),
                None => tracing::info!("the collector takes traces again"),
            }
        }
    }
}

fn roots() -> Vec<ureq::tls::Certificate<'static>> {
    let system = rustls_native_certs::load_native_certs().certs;
    system.iter().map(|one| ureq::tls::Certificate::from_der(one).to_owned()).collect()
}

type Sent<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl opentelemetry_http::HttpClient for Http {
    fn send_bytes<'life0, 'async_trait>(&'life0 self, request: Request<Bytes>) -> Sent<'async_trait>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let sent = self.send(request);
            self.note(&sent);
            sent
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = parent(good).expect("valid");
        assert_eq!(read.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(read.is_sampled() && read.is_remote());
        assert!(!parent(&good.replace("-01", "-00")).expect("valid").is_sampled());
        assert!(parent(&good.replace("00-0af", "01-0af")).is_some(), "a later version");
        assert!(parent(&format!("{}-more", good.replace("00-0af", "01-0af"))).is_some(), "with more in it");
        for bad in [
            "",
            "00",
            &good[1..],
            &good.to_uppercase(),
            &good.replace("00-0af", "ff-0af"),
            &format!("{good}-more"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert!(parent(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn spans_go_to_the_usual_path_unless_another_is_named() {
        assert_eq!(address("http://c:4318").as_deref(), Ok("http://c:4318/v1/traces"));
        assert_eq!(address("https://c/").as_deref(), Ok("https://c/v1/traces"));
        assert_eq!(address("http://c:1/otlp/traces").as_deref(), Ok("http://c:1/otlp/traces"));
        for bad in ["c:4318", "grpc://c", "http://", "http:///x"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn transactions_have_names_of_their_own_and_are_sampled_evenly() {
        let sampled = |ratio| (0..10_000).filter(|commit| is_sampled(names("s", *commit).0, ratio)).count();
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 10_000));
        assert!((2_300..2_700).contains(&sampled(0.25)), "{}", sampled(0.25));
        let all: std::collections::HashSet<_> = (0..1000).map(|commit| names("s", commit)).collect();
        assert!(all.len() == 1000 && names("s", 7) == names("s", 7) && names("s", 7) != names("t", 7));
    }
}
