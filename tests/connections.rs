//! Connections to a real PostgreSQL: encryption, certificates, passwords, hosts; and the WAL transport on top of them.
//! Whatever is tried is tried twice, for SQL and for replication: both must end the same way.

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use ruvector::cli::private_postgres::{PrivatePostgres, Settings};
use ruvector::model::Lsn;
use ruvector::replication::ReplicationError;
use ruvector::replication::frame::Frame;
use ruvector::replication::progress::Progress;
use ruvector::replication::stream::{self, Intake, WalSource};
use ruvector::replication::transport::{PgWalSource, SlotKind};
use ruvector::source::SourceError;
use ruvector::source::connect::Dsn;
use ruvector::source::policy::Policy;
use ruvector::storage::changelog::ChangeLog;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

const HBA: &str = "
local     all  postgres   trust
host      all  postgres   all  trust
local     all  socket     trust
hostssl   all  certified  all  scram-sha-256 clientcert=verify-full
hostssl   all  tlsonly    all  scram-sha-256
hostnossl all  plainonly  all  scram-sha-256
host      all  digest     all  md5
host      all  clear      all  password
host      all  scram      all  scram-sha-256
host      all  mortal     all  scram-sha-256
";

const ROLES: &str = "
SET password_encryption = 'scram-sha-256';
CREATE ROLE socket LOGIN REPLICATION;
CREATE ROLE certified LOGIN REPLICATION PASSWORD 'secret';
CREATE ROLE tlsonly LOGIN REPLICATION PASSWORD 'secret';
CREATE ROLE plainonly LOGIN REPLICATION PASSWORD 'secret';
CREATE ROLE scram LOGIN REPLICATION PASSWORD 'secret';
CREATE ROLE mortal LOGIN PASSWORD 'secret';
CREATE ROLE clear LOGIN REPLICATION PASSWORD 'secret';
SET password_encryption = 'md5';
CREATE ROLE digest LOGIN REPLICATION PASSWORD 'secret';
RESET password_encryption;
";

/// A server with our pg_hba.conf and roles, and a folder for our files.
struct Source {
    postgres: PrivatePostgres,
    admin: Client,
    files: tempfile::TempDir,
}

impl Source {
    async fn start(settings: Settings) -> Source {
        let settings = settings.with("listen_addresses", "127.0.0.1, ::1");
        let postgres = PrivatePostgres::start(settings).expect("a private server");
        let (admin, connection) = tokio_postgres::connect(&postgres.dsn(), NoTls).await.expect("connect");
        tokio::spawn(connection);
        admin.batch_execute(ROLES).await.expect("roles");
        let mut source = Source { postgres, admin, files: tempfile::tempdir().expect("a directory") };
        std::fs::write(source.postgres.data_dir().join("pg_hba.conf"), HBA).expect("pg_hba.conf");
        source.reload().await;
        source
    }

    /// With TLS, certificates of `ca`.
    async fn start_tls(ca: &Authority) -> Source {
        let mut source = Source::start(Settings::default()).await;
        let (certificate, key) = ca.issue("db.test", &["db.test"]);
        source.use_certificate(&certificate, &key, &ca.pem).await;
        source
    }

    /// The main process has read its files when a new backend says so.
    async fn reload(&mut self) {
        const LOADED: &str = "SELECT pg_conf_load_time()::text";
        let loaded = |row: tokio_postgres::Row| row.get::<_, String>(0);
        let before = loaded(self.new_backend().await.query_one(LOADED, &[]).await.expect("before"));
        self.postgres.reload().expect("reload");
        let deadline = Instant::now() + Duration::from_secs(10);
        while loaded(self.new_backend().await.query_one(LOADED, &[]).await.expect("after")) == before {
            assert!(Instant::now() < deadline, "the server did not read its files again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn new_backend(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.postgres.dsn(), NoTls).await.expect("connect");
        tokio::spawn(connection);
        client
    }

    async fn use_certificate(&mut self, certificate: &str, key: &str, client_authority: &str) {
        for (name, text) in [("server.crt", certificate), ("server.key", key), ("clients.crt", client_authority)] {
            let path = self.postgres.data_dir().join(name);
            std::fs::write(&path, text).expect("write");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
            // The server runs in its own account where the tests are root.
            let owner = std::fs::metadata(self.postgres.data_dir()).expect("the data directory");
            std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).expect("chown");
        }
        for (name, value) in [
            ("ssl", "on"),
            ("ssl_cert_file", "server.crt"),
            ("ssl_key_file", "server.key"),
            ("ssl_ca_file", "clients.crt"),
        ] {
            self.postgres.set(name, value).expect("a setting");
        }
        self.reload().await;
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.files.path().join(name);
        std::fs::write(&path, text).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        path
    }

    /// Of the certificate's name, at the server's address.
    fn dsn(&self, user: &str, more: &str) -> String {
        let port = self.postgres.port();
        format!("host=db.test hostaddr=127.0.0.1 port={port} dbname=postgres user={user} {more}")
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and its key, in PEM.
    fn issue(&self, common_name: &str, names: &[&str]) -> (String, String) {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names");
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names.push(SanType::IpAddress("::1".parse().expect("an address")));
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem())
    }
}

const ENCRYPTED: &str = "SELECT ssl::text FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()";

/// How both kinds of connection end: encrypted or not, or the error.
async fn outcome(dsn: &Dsn) -> Result<bool, SourceError> {
    let wal = match dsn.connect_replication().await {
        Ok(mut session) => Ok(session.query(ENCRYPTED).await.expect("a row")[0][0].as_deref() == Some("true")),
        Err(error) => Err(error),
    };
    let sql = match dsn.connect().await {
        Ok(client) => Ok(client.query_one(ENCRYPTED, &[]).await.expect("a row").get::<_, String>(0) == "true"),
        Err(error) => Err(error),
    };
    match (&sql, &wal) {
        (Ok(sql), Ok(wal)) => assert_eq!(sql, wal),
        (Err(sql), Err(wal)) => {
            assert_eq!((sql.is_transient(), sql.sqlstate()), (wal.is_transient(), wal.sqlstate()), "{sql} and {wal}")
        }
        (sql, wal) => panic!("SQL {sql:?}, but replication {wal:?}"),
    }
    sql
}

async fn try_dsn(text: &str) -> Result<bool, SourceError> {
    outcome(&Dsn::parse(text).expect(text)).await
}

const TLS: Result<bool, &str> = Ok(true);
const PLAIN: Result<bool, &str> = Ok(false);

async fn check(text: &str, expected: Result<bool, &str>) {
    match (try_dsn(text).await, expected) {
        (Ok(secure), Ok(expected)) => assert_eq!(secure, expected, "{text}"),
        (Err(error), Err(expected)) => {
            let shown = error.to_string();
            assert!(!error.is_transient() && shown.contains(expected), "{text}: {shown:?}, not {expected:?}");
            assert!(!shown.contains("secret"), "{text}: {shown}");
        }
        (got, expected) => panic!("{text}: {got:?}, not {expected:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sslmode_with_and_without_tls_at_the_server() {
    let (ca, stranger) = (Authority::new("ours"), Authority::new("theirs"));
    let mut source = Source::start_tls(&ca).await;
    let right = format!("sslrootcert={}", source.file("ca.pem", &ca.pem).display());
    let wrong = format!("sslrootcert={}", source.file("other.pem", &stranger.pem).display());
    let other_host =
        |more: String| source.dsn("scram", &format!("password=secret {more}")).replace("db.test", "other.test");
    let scram = |more: String| source.dsn("scram", &format!("password=secret {more}"));
    let role = |user: &str, more: &str| source.dsn(user, &format!("password=secret {more}"));
    for (text, expected) in [
        (scram("sslmode=disable".into()), PLAIN),
        (scram("sslmode=allow".into()), PLAIN),
        (scram("".into()), TLS),
        (scram("sslmode=prefer".into()), TLS),
        (scram(format!("sslmode=prefer {wrong}")), TLS),
        (scram("sslmode=require".into()), TLS),
        (other_host("sslmode=require".into()), TLS),
        (scram(format!("sslmode=require {right}")), TLS),
        (scram(format!("sslmode=require {wrong}")), Err("sslrootcert must hold")),
        (scram(format!("sslmode=verify-ca {right}")), TLS),
        (scram(format!("sslmode=verify-ca {wrong}")), Err("sslrootcert must hold")),
        (other_host(format!("sslmode=verify-ca {right}")), TLS),
        (scram(format!("sslmode=verify-full {right}")), TLS),
        (scram(format!("sslmode=verify-full {wrong}")), Err("sslrootcert must hold")),
        (other_host(format!("sslmode=verify-full {right}")), Err("subjectAltName")),
        (scram("sslmode=verify-full sslrootcert=system".into()), Err("sslrootcert")),
        (scram("sslmode=verify-full sslrootcert=/no/such/file".into()), Err("/no/such/file")),
        // What pg_hba.conf lets in decides between the ways of the weak modes.
        (role("tlsonly", "sslmode=allow"), TLS),
        (role("plainonly", "sslmode=prefer"), PLAIN),
        (role("plainonly", "sslmode=require"), Err("28000")),
        (role("tlsonly", "sslmode=disable"), Err("28000")),
    ] {
        check(&text, expected).await;
    }
    let port = source.postgres.port();
    let uri = format!("postgresql://scram:secret@[::1]:{port}/postgres?sslmode=verify-full&{right}");
    check(&uri, TLS).await;

    source.postgres.set("ssl", "off").expect("a setting");
    source.reload().await;
    for mode in ["disable", "allow", "prefer"] {
        check(&source.dsn("scram", &format!("password=secret sslmode={mode}")), PLAIN).await;
    }
    for mode in ["require".into(), format!("verify-ca {right}"), format!("verify-full {right}")] {
        check(&source.dsn("scram", &format!("password=secret sslmode={mode}")), Err("does not do TLS")).await;
    }
    check(&source.dsn("scram", "password=secret channel_binding=require"), Err("does not do TLS")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates() {
    let (ca, stranger) = (Authority::new("ours"), Authority::new("theirs"));
    let source = Source::start_tls(&ca).await;
    let identity = |name: &str, (certificate, key): (String, String)| {
        let certificate = source.file(&format!("{name}.crt"), &certificate);
        let key = source.file(&format!("{name}.key"), &key);
        format!("sslcert={} sslkey={}", certificate.display(), key.display())
    };
    let dsn = |more: &str| source.dsn("certified", &format!("password=secret sslmode=require {more}"));
    check(&dsn(&identity("right", ca.issue("certified", &[]))), TLS).await;
    check(&dsn(&identity("another", ca.issue("somebody", &[]))), Err("28P01")).await;
    check(&dsn(""), Err("28000")).await;
    check(&dsn(&identity("stranger", stranger.issue("certified", &[]))), Err("does not accept our certificate")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_and_channel_binding() {
    let ca = Authority::new("ours");
    let mut source = Source::start_tls(&ca).await;
    for (user, more, expected) in [
        ("scram", "password=secret sslmode=disable", PLAIN),
        ("scram", "password=secret sslmode=require", TLS),
        ("scram", "password=secret channel_binding=require", TLS),
        ("scram", "password=secret channel_binding=disable", TLS),
        ("digest", "password=secret sslmode=disable", PLAIN),
        ("digest", "password=secret", TLS),
        ("digest", "password=secret channel_binding=require", Err("channel_binding=require")),
        ("clear", "password=secret", TLS),
        ("clear", "password=secret channel_binding=require", Err("channel_binding=require")),
        ("postgres", "channel_binding=require", Err("channel_binding=require")),
        ("scram", "password=wrong", Err("28P01")),
        ("digest", "password=wrong", Err("28P01")),
        ("clear", "password=wrong", Err("28P01")),
        ("scram", "", Err("28P01")),
        ("nobody", "password=secret", Err("28000")),
        ("scram", "password=secret dbname=nowhere", Err("3D000")),
    ] {
        check(&source.dsn(user, more), expected).await;
    }
    // A certificate that is its own authority, with every kind of signature.
    for algorithm in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_RSA_SHA512, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let mut params = CertificateParams::new(vec!["db.test".to_owned()]).expect("a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        source.use_certificate(&pem, &key.serialize_pem(), &ca.pem).await;
        let root = source.file("self.pem", &pem);
        let dsn = |binding: &str| {
            let more =
                format!("password=secret sslmode=verify-full sslrootcert={} channel_binding={binding}", root.display());
            source.dsn("scram", &more)
        };
        check(&dsn("prefer"), TLS).await;
        check(&dsn("require"), TLS).await;
    }
}

/// Of version 1, which cannot be verified, of Ed25519, for which channel binding is not defined, and of RSA-PSS, where the
/// hash stands in parameters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_certificates_are_enough_where_none_is_verified() {
    let ca = Authority::new("ours");
    let mut source = Source::start_tls(&ca).await;
    let openssl = |arguments: &str| {
        let mut command = std::process::Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(source.files.path());
        command.output().is_ok_and(|output| output.status.success())
    };
    let made = openssl("genrsa -out old.key 2048")
        && openssl("req -new -key old.key -subj /CN=db.test -out old.csr")
        && openssl("x509 -req -in old.csr -signkey old.key -days 30 -out old.crt")
        && openssl("genpkey -algorithm ed25519 -out ed.key")
        && openssl("req -x509 -new -key ed.key -subj /CN=db.test -days 30 -out ed.crt")
        && openssl("req -x509 -new -key old.key -sha384 -sigopt rsa_padding_mode:pss -subj /CN=db.test -out pss.crt");
    if !made {
        println!("skipped: no openssl command");
        return;
    }
    let read = |name: &str| std::fs::read_to_string(source.files.path().join(name)).expect("a file");
    let (old, ed) = ((read("old.crt"), read("old.key")), (read("ed.crt"), read("ed.key")));
    let pss = read("pss.crt");
    let dsn = |source: &Source, more: &str| source.dsn("scram", &format!("password=secret sslmode=require {more}"));
    source.use_certificate(&ed.0, &ed.1, &ca.pem).await;
    check(&dsn(&source, ""), TLS).await;
    check(&dsn(&source, "channel_binding=require"), Err("channel_binding=require")).await;
    source.use_certificate(&pss, &old.1, &ca.pem).await;
    check(&dsn(&source, "channel_binding=require"), TLS).await;
    source.use_certificate(&old.0, &old.1, &ca.pem).await;
    check(&dsn(&source, "channel_binding=require"), TLS).await;
    source.postgres.set("ssl_max_protocol_version", "TLSv1.2").expect("a setting");
    source.reload().await;
    check(&dsn(&source, "channel_binding=require"), TLS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_file_is_read_for_every_connection() {
    let source = Source::start(Settings::default()).await;
    let path = source.file("pass", "# a comment\n*:*:*:somebody:else\ndb.test:*:postgres:scram:wrong\n");
    let dsn = Dsn::parse(&source.dsn("scram", &format!("passfile={}", path.display()))).expect("valid");
    assert_eq!(outcome(&dsn).await.expect_err("the wrong one").sqlstate(), Some("28P01"));
    source.file("pass", "db.test:*:postgres:scram:secret\n");
    assert!(!outcome(&dsn).await.expect("the right one"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let error = outcome(&dsn).await.expect_err("open to all").to_string();
    assert!(error.contains("chmod 600"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_command_is_run_for_every_connection() {
    let source = Source::start(Settings::default()).await;
    let token = source.file("token", "secret\n");
    let calls = source.file("calls", "");
    let command = format!("echo >> {}; cat {}", calls.display(), token.display());
    let called = || std::fs::read(&calls).expect("a file").len();
    let dsn = Dsn::parse(&source.dsn("scram", "")).and_then(|dsn| dsn.with_password_command(&command)).expect("valid");
    let pool = dsn.pool(2, Duration::from_secs(10));
    let first = pool.get().await.expect("a connection");
    assert!(!outcome(&dsn).await.expect("both kinds"));
    assert_eq!(called(), 3);

    source.admin.batch_execute("ALTER ROLE scram PASSWORD 'rotated'").await.expect("rotate");
    assert_eq!(outcome(&dsn).await.expect_err("the old token").sqlstate(), Some("28P01"));
    source.file("token", "rotated\n");
    assert!(!outcome(&dsn).await.expect("both kinds again"));
    let second = pool.get().await.expect("another connection");
    // What is open stays open.
    for client in [&first, &second] {
        client.query_one("SELECT 1", &[]).await.expect("a row");
    }
    assert_eq!(called(), 8);

    let failing = Dsn::parse(&source.dsn("scram", "")).and_then(|dsn| dsn.with_password_command("exit 1"));
    let failing = failing.expect("valid");
    assert!(outcome(&failing).await.expect_err("no token").is_transient());
    let error = failing.pool(1, Duration::from_secs(10)).get().await.map(drop).expect_err("no token");
    assert!(SourceError::from(error).to_string().contains("source.password_command"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_command_that_is_slower_than_the_pool_waits_is_not_begun_anew() {
    let source = Source::start(Settings::default()).await;
    let calls = source.file("calls", "");
    let command = format!("echo >> {}; sleep 1; echo secret", calls.display());
    let dsn = Dsn::parse(&source.dsn("scram", "")).and_then(|dsn| dsn.with_password_command(&command)).expect("valid");
    let pool = dsn.pool(1, Duration::from_millis(300));
    let error = SourceError::from(pool.get().await.map(drop).expect_err("too early"));
    assert!(error.is_transient(), "{error}");
    wait_until("the connection is there", || async { pool.get().await.is_ok() }).await;
    pool.get().await.expect("the same").query_one("SELECT 1", &[]).await.expect("a row");
    assert_eq!(std::fs::read(&calls).expect("a file").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_every_kind() {
    let source = Source::start(Settings::default()).await;
    let port = source.postgres.port();
    let directory = source.postgres.root_dir().display().to_string();
    // One that nobody listens on, and one that never answers.
    let dead = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port();
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a port");
    let deaf_port = deaf.local_addr().expect("its address").port();
    let encoded = directory.replace('/', "%2F");
    for text in [
        format!("postgresql://scram:secret@[::1]:{port}/postgres"),
        format!("postgresql://scram:secret@localhost:{port}/postgres"),
        format!("host=::1 port={port} dbname=postgres user=scram password=secret"),
        format!("postgresql://socket@{encoded}:{port}/postgres"),
        format!("host={directory} port={port} dbname=postgres user=socket sslmode=require"),
        format!("postgresql://scram:secret@127.0.0.1:{dead},[::1]:{port}/postgres"),
        format!("postgresql://scram:secret@127.0.0.1:{deaf_port},127.0.0.1:{port}/postgres?connect_timeout=1"),
        format!("postgresql://scram:secret@no-such-host.invalid:{port},127.0.0.1:{port}/postgres?connect_timeout=5"),
    ] {
        check(&text, PLAIN).await;
    }
    let both = format!("postgresql://scram:secret@127.0.0.1:{dead},127.0.0.1:{deaf_port}/d?connect_timeout=1");
    let error = try_dsn(&both).await.expect_err("neither answers");
    assert!(error.is_transient(), "{error}");
    assert!(
        error.to_string().contains(&dead.to_string()) && error.to_string().contains(&deaf_port.to_string()),
        "{error}"
    );

    let uri = |more: &str| format!("postgresql://scram:secret@127.0.0.1:{port}/postgres?{more}");
    let read_only = "options=-c%20default_transaction_read_only%3Don";
    check(&uri("target_session_attrs=read-write"), PLAIN).await;
    check(&uri("target_session_attrs=primary"), PLAIN).await;
    check(&uri("target_session_attrs=prefer-standby"), PLAIN).await;
    check(&uri(&format!("target_session_attrs=read-only&{read_only}")), PLAIN).await;
    for more in ["target_session_attrs=standby".into(), format!("target_session_attrs=read-write&{read_only}")] {
        assert!(try_dsn(&uri(&more)).await.expect_err(&more).is_transient(), "{more}");
    }
    // An answer that is no PostgreSQL's.
    let web = TcpListener::bind("127.0.0.1:0").expect("a port");
    let web_port = web.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for connection in web.incoming().flatten() {
            use std::io::Write;
            let _ = (&connection).write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let error =
        try_dsn(&format!("postgresql://u@127.0.0.1:{web_port}/d?sslmode=disable")).await.expect_err("a web server");
    assert!(error.is_transient(), "{error}");
}

const TABLE: &str = "CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE PUBLICATION p FOR TABLE docs";

/// A slot `s` from here on.
async fn make_slot(source: &Source, dsn: &Dsn) -> Lsn {
    source.admin.batch_execute(TABLE).await.expect("a table");
    let mut wal = PgWalSource::connect(dsn).await.expect("a connection");
    let facts = wal.identify().await.expect("facts");
    assert_eq!(facts.timeline, 1);
    assert!(facts.current > Lsn(0) && !facts.system_id.is_empty());
    let version =
        source.admin.query_one("SELECT current_setting('server_version_num')::int", &[]).await.expect("a row");
    let kept = SlotKind::Kept { failover: true };
    let slot = wal.create_slot("s", kept, version.get(0), Duration::from_secs(10)).await.expect("a slot");
    assert!(!slot.snapshot.is_empty());
    slot.consistent_point
}

fn inserted(frame: &Frame) -> bool {
    matches!(frame, Frame::XLogData { payload, .. } if payload.first() == Some(&b'I'))
}

async fn replicating(admin: &Client) -> Vec<(i32, String, Option<String>)> {
    let sql = "SELECT pid, application_name, flush_lsn::text FROM pg_stat_replication";
    let rows = admin.query(sql, &[]).await.expect("rows");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

async fn wait_until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_stream_over_tls_and_status_arrives() {
    let ca = Authority::new("ours");
    let source = Source::start_tls(&ca).await;
    let root = source.file("ca.pem", &ca.pem);
    let more = format!("password=secret sslmode=verify-full sslrootcert={} application_name=watcher", root.display());
    let dsn = Dsn::parse(&source.dsn("scram", &more)).expect("valid");
    let from = make_slot(&source, &dsn).await;
    let mut wal = PgWalSource::connect(&dsn).await.expect("a connection");
    wal.start("s", "p", from).await.expect("a stream");
    // Rows of all sizes, from a few bytes to more than any buffer.
    let sql = "INSERT INTO docs SELECT i, repeat('x', (i * i) % 3000) FROM generate_series(1, 5000) i;
               INSERT INTO docs VALUES (0, repeat('y', 3000000))";
    source.admin.batch_execute(sql).await.expect("rows");
    let (mut rows, mut bytes, mut dropped) = (0, 0, 0);
    let mut end = Lsn(0);
    while rows < 5001 {
        // Dropped futures lose nothing.
        let Ok(frame) = tokio::time::timeout(Duration::from_micros(50), wal.next_frame()).await else {
            dropped += 1;
            continue;
        };
        let frame = frame.expect("a frame");
        rows += usize::from(inserted(&frame));
        if let Frame::XLogData { payload, wal_end, .. } = frame {
            bytes += payload.len();
            end = end.max(wal_end);
        }
    }
    assert!(dropped > 0 && bytes > 3_000_000 + 5000 * 1000, "{dropped} dropped, {bytes} bytes");

    wal.send_status(end, end, true).await.expect("sent");
    wait_until("the server knows our position", || async {
        matches!(&replicating(&source.admin).await[..], [(_, name, Some(flushed))]
            if name == "watcher" && flushed.parse() == Ok(end))
    })
    .await;
    let leaving = Instant::now();
    wal.close().await;
    wait_until("the slot is free", || async {
        let row =
            source.admin.query_one("SELECT NOT active FROM pg_replication_slots WHERE slot_name = 's'", &[]).await;
        row.expect("the slot").get(0)
    })
    .await;
    assert!(leaving.elapsed() < Duration::from_secs(2), "{:?}", leaving.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_flows_while_intake_is_shut() {
    let source = Source::start(Settings::default().with("wal_sender_timeout", "1500ms")).await;
    let dsn = Dsn::parse(&source.dsn("scram", "password=secret")).expect("valid");
    let from = make_slot(&source, &dsn).await;
    let mut wal = PgWalSource::connect(&dsn).await.expect("a connection");
    wal.start("s", "p", from).await.expect("a stream");
    let log = ChangeLog::create(&source.files.path().join("log"), from).expect("a log");
    let (sender, mut receiver) = stream::queue();
    let intake = Intake {
        status_interval: Duration::from_millis(100),
        silence_limit: Duration::from_secs(30),
        queue_bytes: 64 * 1024,
        spool_bytes: 1 << 20,
    };
    let (progress, stop) = (Progress::default(), CancellationToken::new());
    let drain = async {
        let sql = "INSERT INTO docs SELECT i, repeat('x', 1000) FROM generate_series(1, 50000) i";
        source.admin.batch_execute(sql).await.expect("rows");
        wait_until("it streams", || async { !replicating(&source.admin).await.is_empty() }).await;
        let before = replicating(&source.admin).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(replicating(&source.admin).await[0].0, before[0].0, "the server gave us up");
        let mut rows = 0;
        while rows < 50_000 {
            let frames = receiver.recv().await.expect("frames").frames;
            rows += frames.iter().filter(|frame| inserted(frame)).count();
        }
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(stream::receive(wal, intake, sender, log.tail(), &progress, &stop), drain);
    assert!(matches!(ended, Err(ReplicationError::Stopped)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_the_stream_carry_their_sqlstate() {
    let source = Source::start(Settings::default()).await;
    let dsn = Dsn::parse(&source.dsn("scram", "password=secret")).expect("valid");
    let from = make_slot(&source, &dsn).await;
    let started = |slot: &'static str, publication: &'static str| {
        let dsn = dsn.clone();
        async move {
            let mut wal = PgWalSource::connect(&dsn).await.expect("a connection");
            wal.start(slot, publication, from).await.map(|()| wal)
        }
    };
    let missing = started("nothing", "p").await.map(drop).expect_err("no slot");
    assert_eq!((missing.sqlstate(), missing.policy()), (Some("42704"), Policy::AskAgain));
    let holder = started("s", "p").await.expect("a stream");
    let busy = started("s", "p").await.map(drop).expect_err("in use");
    assert_eq!((busy.sqlstate(), busy.policy()), (Some("55006"), Policy::Retry));
    holder.close().await;

    // What is said in the middle of the stream.
    let mut wal = started("s", "no 'such\" publication").await.expect("a stream: it is looked up later");
    source.admin.batch_execute("INSERT INTO docs VALUES (1, 'x')").await.expect("a row");
    let error = loop {
        match wal.next_frame().await {
            Ok(frame) => assert!(matches!(frame, Frame::Keepalive { .. }), "{frame:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!((error.sqlstate(), error.policy()), (Some("42704"), Policy::AskAgain), "{error}");

    // A sender tells its error before it lets go of the slot.
    let active = "SELECT active FROM pg_replication_slots WHERE slot_name = 's'";
    while source.admin.query_one(active, &[]).await.expect("the slot").get::<_, bool>(0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut wal = started("s", "p").await.expect("a stream");
    source.admin.batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication").await.expect("killed");
    let error = loop {
        if let Err(error) = wal.next_frame().await {
            break error;
        }
    };
    assert_eq!((error.sqlstate(), error.policy()), (Some("57P01"), Policy::Retry), "{error}");

    let mortal = Dsn::parse(&source.dsn("mortal", "password=secret")).expect("valid");
    let error = PgWalSource::connect(&mortal).await.map(drop).expect_err("may not replicate");
    assert_eq!(error.sqlstate(), Some("42501"), "{error}");
    assert!(!error.is_transient() && error.to_string().contains("REPLICATION"), "{error}");
}
