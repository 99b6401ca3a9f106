//! Traces: the real binary beside a real PostgreSQL sends them to a collector in this test, which reads them as collectors do.

mod support;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value as Json, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use support::{DOCS, Database, Service, near, wait_until};

/// Takes what is posted to `/v1/traces`.
struct Collector {
    address: String,
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

impl Collector {
    fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let spans = Arc::new(Mutex::new(Vec::new()));
        let taken = spans.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let taken = taken.clone();
                std::thread::spawn(move || while take(&stream, &taken).is_some() {});
            }
        });
        Collector { address, spans }
    }

    /// All that came so far: service and span.
    fn spans(&self) -> Vec<(String, Span)> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those of a trace, by name, once they are there.
    fn of_trace(&self, trace: &str, names: &[&str]) -> Vec<Span> {
        let id = hex(trace);
        let found = || -> Vec<Span> {
            let spans = self.spans().into_iter().map(|(_, span)| span).filter(|span| span.trace_id == id);
            spans.collect()
        };
        let has = |name: &&str| found().iter().any(|span| span.name == *name);
        wait_until(&format!("{names:?} of {trace}"), || names.iter().all(&has));
        found()
    }
}

/// One request of a connection; `None` at its end.
fn take(stream: &TcpStream, taken: &Mutex<Vec<(String, Span)>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    assert!(line.starts_with("POST /v1/traces "), "{line}");
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
        let head = line.trim().to_ascii_lowercase();
        match head.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().expect("a length"),
            Some(("content-type", value)) => assert_eq!(value, "application/x-protobuf"),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request = ExportTraceServiceRequest::decode(&body[..]).expect("what OTLP says");
    let mut all = taken.lock().unwrap_or_else(PoisonError::into_inner);
    for resource in request.resource_spans {
        let service = format!("{:?}", resource.resource);
        all.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| (service.clone(), span)));
    }
    drop(all);
    let mut stream = stream;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n").ok()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hexadecimal")).collect()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn telemetry(endpoint: &str, ratio: f64) -> String {
    format!("[telemetry]\notlp_endpoint = \"{endpoint}\"\nsampling_ratio = {ratio}\n")
}

fn search(service: &Service, body: &Json, traceparent: &str) -> Json {
    let path = format!("{}/v1/collections/docs/search", service.url());
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut answer = agent.post(path).header("traceparent", traceparent).send(body.to_string()).expect("an answer");
    serde_json::from_str(&answer.body_mut().read_to_string().expect("text")).expect("JSON")
}

#[test]
fn a_search_with_its_recheck_is_in_the_trace_that_the_client_named() {
    let (database, collector) = (Database::shared(), Collector::start());
    database.docs(50);
    // Of what nobody traces nothing is sent.
    let mut service = Service::ready(&database, &format!("{DOCS}{}", telemetry(&collector.address, 0.0)));
    service.catch_up(&database.sql);
    let parent = format!("00-{TRACE}-{PARENT}-01");
    assert_eq!(support::ids(&search(&service, &near(7, 4, 1), &parent)), [7]);
    let spans = collector.of_trace(TRACE, &["request", "search", "recheck"]);
    let of = |name: &str| spans.iter().find(|span| span.name == name).expect("there");
    let (request, search_span, recheck) = (of("request"), of("search"), of("recheck"));
    assert_eq!(request.parent_span_id, hex(PARENT));
    assert_eq!(search_span.parent_span_id, request.span_id);
    assert_eq!(recheck.parent_span_id, search_span.span_id);
    for span in [search_span, recheck] {
        assert!(span.start_time_unix_nano >= request.start_time_unix_nano, "{span:?}");
        assert!(
            span.end_time_unix_nano <= request.end_time_unix_nano
                && span.start_time_unix_nano < span.end_time_unix_nano
        );
    }
    assert_eq!(spans.len(), 3, "one span of each: {spans:#?}");
    let attributes = format!("{:?}", request.attributes);
    assert!(attributes.contains("/v1/collections/{name}/search") && attributes.contains("200"), "{attributes}");
    let all = collector.spans();
    assert!(all.iter().all(|(service, _)| service.contains("ruvector") && service.contains(&database.name)));
    assert!(all.iter().all(|(_, span)| span.trace_id == hex(TRACE)), "others were sampled: {all:#?}");
    // A problem names its trace, as do the lines of the log.
    let problem = search(&service, &json!({ "query": { "vector": [1] } }), &parent);
    assert_eq!((&problem["code"], &problem["trace_id"]), (&json!("RV1003"), &json!(TRACE)));
    let mut late = near(7, 4, 1);
    late["consistency"] = json!({ "at_least": "FFFFFFFF/0", "timeout_ms": 1 });
    assert_eq!(search(&service, &late, &parent)["code"], "RV1203");
    service.wait_for("it is logged", |service| {
        let log = service.log();
        log.lines().any(|line| {
            line.contains("request failed") && line.contains(&format!("trace_id=\"{TRACE}\""))
                || line.contains(&format!("trace_id={TRACE}"))
        })
    });
    service.terminate();
}

#[test]
fn a_transaction_is_decoded_and_applied_in_one_trace() {
    let (database, collector) = (Database::shared(), Collector::start());
    database.docs(10);
    let mut service = Service::ready(&database, &format!("{DOCS}{}", telemetry(&collector.address, 1.0)));
    service.catch_up(&database.sql);
    database.sql.run("UPDATE docs SET section = 'x' WHERE id <= 7");
    service.catch_up(&database.sql);
    let of = |name: &str| -> Option<Span> {
        let seven = |span: &Span| format!("{:?}", span.attributes).contains("IntValue(7)");
        collector.spans().into_iter().map(|(_, span)| span).find(|span| span.name == name && seven(span))
    };
    wait_until("both came", || of("decode").is_some() && of("apply").is_some());
    let (decode, apply) = (of("decode").expect("there"), of("apply").expect("there"));
    assert_eq!((&decode.trace_id, &apply.parent_span_id), (&apply.trace_id, &decode.span_id));
    assert!(decode.parent_span_id.is_empty() && decode.start_time_unix_nano <= apply.end_time_unix_nano);
    // Without a traceparent the trace is one of ours, and an error tells which.
    let problem = search(&service, &json!({ "query": { "vector": [1] } }), "none");
    let trace = problem["trace_id"].as_str().expect("a name").to_owned();
    collector.of_trace(&trace, &["request"]);
    service.terminate();
    assert!(service.logged("WARN") == 0, "{}", service.log());
}

#[test]
fn a_collector_that_is_away_costs_no_search_anything() {
    let database = Database::shared();
    database.docs(50);
    // Takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    let mut service = Service::ready(&database, &format!("{DOCS}{}", telemetry(&endpoint, 1.0)));
    service.catch_up(&database.sql);
    let before = service.memory("VmRSS");
    let (started, mut longest) = (Instant::now(), Duration::ZERO);
    // More spans than may wait.
    for seed in 0..3000 {
        let one = Instant::now();
        service.search("docs", &near(1 + seed % 7, 4, 1));
        longest = longest.max(one.elapsed());
    }
    println!("3000 searches in {:?}, the longest {longest:?}", started.elapsed());
    assert!(longest < Duration::from_secs(4), "one waited for the collector: {longest:?}");
    let grown = service.memory("VmRSS").saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    service.wait_for("it says so", |service| service.logged("the collector takes no traces") == 1);
    // A stop waits for it, but not for long.
    let stopping = Instant::now();
    service.terminate();
    assert!(stopping.elapsed() < Duration::from_secs(30), "{:?}", stopping.elapsed());
}
