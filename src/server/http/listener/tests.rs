//! Tests of the listener over real sockets: time-outs, limits, the end, TLS.

use super::*;
use axum::routing::{get, post};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::path::Path;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const LIMITS: Limits = Limits {
    max_connections: 2,
    first: Duration::from_millis(400),
    head: Duration::from_millis(400),
    write: Duration::from_millis(400),
    rate: 1,
};
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";

struct Running {
    at: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn running(limits: Limits, tls: Option<Arc<Files>>) -> Running {
    let large = "x".repeat(64 << 20);
    let slow = async || tokio::time::sleep(Duration::from_millis(300)).await;
    let router = Router::new()
        .route("/", get(async || "ok"))
        .route("/slow", get(slow))
        .route("/slower", get(async || tokio::time::sleep(Duration::from_secs(3)).await))
        .route("/large", get(async move || large))
        .route("/echo", post(async |body: String| body));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (at, stop) = (listener.local_addr().expect("an address"), CancellationToken::new());
    let task = tokio::spawn(serve(listener, router, tls, limits, stop.clone()));
    Running { at, stop, task }
}

async fn connect(at: SocketAddr) -> TcpStream {
    TcpStream::connect(at).await.expect("it listens")
}

/// What comes until the connection ends.
async fn all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("it ends");
    String::from_utf8_lossy(&answer).into_owned()
}

/// One answer of a connection that stays open.
async fn one(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    stream.write_all(GET).await.expect("sent");
    let mut answer = vec![0; 4096];
    let bytes = stream.read(&mut answer).await.expect("an answer");
    String::from_utf8_lossy(&answer[..bytes]).into_owned()
}

#[tokio::test]
async fn who_sends_no_whole_head_or_idles_is_closed() {
    let server = running(LIMITS, None).await;
    for beginning in [&b""[..], b"GET / HTTP/1.1\r\nhost: ", GET] {
        let mut stream = connect(server.at).await;
        stream.write_all(beginning).await.expect("sent");
        let began = Instant::now();
        all(&mut stream).await;
        assert!(began.elapsed() >= Duration::from_millis(300), "{beginning:?} after {:?}", began.elapsed());
    }
    let mut stream = connect(server.at).await;
    stream.write_all(&vec![b'x'; MOST_HEAD + 1]).await.expect("sent");
    assert!(!all(&mut stream).await.contains("200 OK"), "a head without an end");
}

#[tokio::test]
async fn a_connection_that_never_asks_is_closed_soon_and_one_that_did_may_idle() {
    let server = running(Limits { head: Duration::from_secs(20), ..LIMITS }, None).await;
    let mut idle = connect(server.at).await;
    assert!(one(&mut idle).await.contains("200 OK"));
    for beginning in [&b""[..], b"GET / HTTP/1.1\r\nhost: "] {
        let mut stream = connect(server.at).await;
        stream.write_all(beginning).await.expect("sent");
        let began = Instant::now();
        all(&mut stream).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{beginning:?} after {:?}", began.elapsed());
    }
    assert!(one(&mut idle).await.contains("200 OK"), "after {:?}", LIMITS.first);
}

#[tokio::test]
async fn idle_connections_keep_nobody_out() {
    let patient = Limits { first: Duration::from_secs(60), head: Duration::from_secs(60), ..LIMITS };
    let server = running(patient, None).await;
    // Somebody who asked and will again, and a flood of those who do not.
    let mut first = connect(server.at).await;
    assert!(one(&mut first).await.contains("200 OK"));
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(connect(server.at).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(one(&mut first).await.contains("200 OK"), "it was not disturbed");
    }
    let began = Instant::now();
    assert!(one(&mut connect(server.at).await).await.contains("200 OK"), "a probe gets in");
    assert!(began.elapsed() < Duration::from_secs(5), "at once");
    assert!(all(&mut silent.remove(0)).await.is_empty(), "closed for it");
}

#[tokio::test]
async fn where_all_are_at_work_a_further_connection_is_refused_at_once_and_places_come_back() {
    let server = running(Limits { head: Duration::from_secs(20), ..LIMITS }, None).await;
    let (mut first, mut second) = (connect(server.at).await, connect(server.at).await);
    for busy in [&mut first, &mut second] {
        busy.write_all(b"GET /slower HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut third = connect(server.at).await;
    third.write_all(GET).await.expect("sent");
    let refused = all(&mut third).await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("RV1301"), "{refused}");
    let mut answer = [0; 4096];
    let bytes = first.read(&mut answer).await.expect("an answer");
    assert!(String::from_utf8_lossy(&answer[..bytes]).contains("200 OK"), "it was not disturbed");
    while !one(&mut connect(server.at).await).await.contains("200 OK") {}
}

#[tokio::test]
async fn an_answer_that_is_taken_in_drops_is_given_up() {
    let server = running(Limits { rate: 64 << 20, ..LIMITS }, None).await;
    let mut slow = connect(server.at).await;
    slow.write_all(b"GET /large HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.expect("sent");
    // More than a piece in its time, and less than the rate.
    let (mut taken, mut part) = (0, vec![0; PIECE]);
    while let Ok(bytes) = slow.read(&mut part).await {
        if bytes == 0 {
            break;
        }
        taken += bytes;
        tokio::time::sleep(Duration::from_millis(if taken > 8 << 20 { 0 } else { 10 })).await;
    }
    assert!(taken < 64 << 20, "all of it came: {taken}");
}

#[tokio::test]
async fn who_does_not_take_an_answer_is_closed_and_who_takes_it_is_not() {
    let server = running(LIMITS, None).await;
    let ask = b"GET /large HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let mut slow = connect(server.at).await;
    slow.write_all(ask).await.expect("sent");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let cut = all(&mut slow).await.len();
    assert!(cut < 64 << 20, "the rest was given up, not kept for it: {cut}");
    let mut prompt = connect(server.at).await;
    prompt.write_all(ask).await.expect("sent");
    assert!(all(&mut prompt).await.len() > 64 << 20);
}

#[tokio::test]
async fn a_stop_closes_idle_connections_and_finishes_requests() {
    let server = running(Limits { head: Duration::from_secs(60), ..LIMITS }, None).await;
    let (mut idle, mut busy) = (connect(server.at).await, connect(server.at).await);
    assert!(one(&mut idle).await.contains("200 OK"));
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.stop.cancel();
    let (idle, busy) = tokio::join!(all(&mut idle), all(&mut busy));
    assert!(idle.is_empty() && busy.contains("200 OK"), "{busy}");
    timeout(Duration::from_secs(10), server.task).await.expect("it ends").expect("well");
    assert!(TcpStream::connect(server.at).await.is_err());
}

/// A certificate authority in a folder, with what it signed.
struct Signed {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Signed {
    fn new() -> Signed {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).expect("a file");
        let signed = Signed { dir, issuer };
        signed.sign("server");
        signed.sign("client");
        signed
    }

    fn sign(&self, name: &str) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).expect("a file");
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("a file");
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn files(&self, client_ca: bool) -> Arc<Files> {
        let client_ca = client_ca.then(|| self.path("ca.pem"));
        let paths =
            crate::server::tls::Paths { certificate: self.path("server.pem"), key: self.path("server.key"), client_ca };
        Arc::new(Files::new(paths, b"http/1.1").expect("good files"))
    }

    /// A client that trusts `ca`, and shows a certificate if it has one.
    async fn client(&self, at: SocketAddr, shows: Option<&Signed>) -> Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(pem(&self.path("ca.pem"))).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("versions").with_root_certificates(roots);
        let config = match shows {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let key = PrivateKeyDer::from_pem_file(own.path("client.key")).expect("a key");
                builder.with_client_auth_cert(vec![pem(&own.path("client.pem"))], key).expect("a certificate")
            }
        };
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, connect(at).await).await
    }
}

fn pem(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("a certificate")
}

#[tokio::test]
async fn encrypted_it_answers_nothing_in_the_clear_and_stuck_handshakes_hold_up_nobody() {
    let signed = Signed::new();
    let server = running(Limits { max_connections: 8, ..LIMITS }, Some(signed.files(false))).await;
    let mut stuck = connect(server.at).await;
    stuck.write_all(b"\x16\x03\x01").await.expect("sent");
    let mut stream = signed.client(server.at, None).await.expect("it is trusted");
    assert!(one(&mut stream).await.contains("200 OK"), "beside the stuck one");
    let mut plain = connect(server.at).await;
    plain.write_all(GET).await.expect("sent");
    assert!(!all(&mut plain).await.contains("HTTP/1.1"), "not in the clear");
    assert!(Signed::new().client(server.at, None).await.is_err(), "a stranger's certificate");
    let began = Instant::now();
    all(&mut stuck).await;
    assert!(began.elapsed() < Duration::from_secs(5), "it is given up");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_the_next_connection() {
    let signed = Signed::new();
    let files = signed.files(false);
    let server = running(LIMITS, Some(files.clone())).await;
    let shown = async || {
        let stream = signed.client(server.at, None).await.expect("it is trusted");
        stream.get_ref().1.peer_certificates().expect("a chain")[0].clone().into_owned()
    };
    let first = shown().await;
    assert_eq!(first, shown().await);
    signed.sign("server");
    files.reload();
    let second = shown().await;
    assert_ne!(first, second);
    assert_eq!(second, pem(&signed.path("server.pem")));
    std::fs::write(signed.path("server.key"), "broken").expect("a file");
    files.reload();
    assert_eq!(second, shown().await, "the last good one");
}

#[tokio::test]
async fn where_clients_need_certificates_others_get_no_answer() {
    let signed = Signed::new();
    let server = running(Limits { max_connections: 8, ..LIMITS }, Some(signed.files(true))).await;
    let mut known = signed.client(server.at, Some(&signed)).await.expect("it is trusted");
    assert!(one(&mut known).await.contains("200 OK"));
    for stranger in [None, Some(&Signed::new())] {
        // In TLS 1.3 the client learns of its refusal when it reads.
        let Ok(mut stream) = signed.client(server.at, stranger).await else { continue };
        let _ = stream.write_all(GET).await;
        assert_eq!(all(&mut stream).await, "");
    }
}
