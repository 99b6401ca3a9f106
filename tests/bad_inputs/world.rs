//! What bad inputs meet: one source, a service that is open, one that asks for keys, and something that is no service.

use crate::support::{Database, Service, ids, near};
use crate::table::Names;
use ruvector::server::http::keys::{Hash, generate};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tempfile::TempDir;

/// Open: everything that a request can ask for is configured, with small bounds.
const OPEN: &str = r#"max_body_bytes = 20000
body_timeout_s = 1
head_timeout_s = 5
[search]
recheck_roles = ["viewer_$NAME", "stranger_$NAME"]
recheck_settings = ["app.tenant"]
[sql]
listen = "127.0.0.1:0"
[sql.users.app]
password = "secret"
[sql.users.limited]
password = "less"
collections = ["small"]
[[collections]]
table = "public.docs"
name = "docs"
filter_columns = ["section", "price", "day", "flag", "many"]
[[collections.vectors]]
column = "embedding"
metric = "l2"
[[collections.vectors]]
column = "bits"
metric = "hamming"
[[collections.vectors]]
column = "ball"
metric = "poincare"
[[collections]]
table = "public.pairs"
[[collections.vectors]]
column = "embedding"
[[collections]]
table = "public.named"
[[collections.vectors]]
column = "embedding"
[[collections]]
table = "public.small"
name = "small"
[[collections.vectors]]
column = "embedding"
[[collections]]
table = "public.gone"
name = "gone"
[[collections.vectors]]
column = "embedding"
"#;

/// What is configured later: its table is not there.
const MISSING: &str = r#"[[collections]]
table = "public.missing"
name = "missing"
[[collections.vectors]]
column = "embedding"
"#;

/// The service that asks who one is.
const KEYED: &str = r#"[http.jwt]
issuer = "https://issuer"
audience = "ruvector"
[[http.jwt.keys]]
kid = "k"
ed25519_public_key = '''
$PEM'''
[[collections]]
table = "public.docs"
name = "docs"
filter_columns = ["section"]
[[collections.vectors]]
column = "embedding"
metric = "l2"
[[collections]]
table = "public.small"
name = "small"
[[collections.vectors]]
column = "embedding"
"#;

/// The keys of [`KEYED`], and what each may.
const KEYS: [(&str, &str); 8] = [
    ("read", "scopes = ['read']"),
    ("admin", "scopes = ['admin']"),
    ("metrics", "scopes = ['metrics']"),
    ("docs", "scopes = ['read', 'admin']\ncollections = ['docs']"),
    ("tenant", "scopes = ['read']\nfilter = \"section = 's'\""),
    ("misfit", "scopes = ['read']\nfilter = 'body = 1'"),
    ("expired", "scopes = ['read', 'admin', 'metrics']\nexpires = '2020-01-01T00:00:00Z'"),
    ("rated", "scopes = ['read']\nrequests_per_second = 0.001"),
];

pub struct World {
    pub open: Service,
    pub keyed: Service,
    pub names: Names,
    _database: Database,
    _other: Database,
    _dir: TempDir,
}

/// One for all tests that run at the same time.
pub fn world() -> Arc<World> {
    static WORLD: Mutex<Weak<World>> = Mutex::new(Weak::new());
    let mut shared = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let world = Arc::new(World::new());
        *shared = Arc::downgrade(&world);
        world
    })
}

fn tables(database: &Database) {
    let name = &database.name;
    database.sql.run(&format!(
        "CREATE TABLE docs (id bigint PRIMARY KEY, section text, price float8, day date, flag bool, many int, body text,
           embedding real[], bits bit(8), ball real[]);
         INSERT INTO docs SELECT i, 's', i, '2024-01-01', true, i, 'b', vec(i, 4), i::bit(8), '{{0.1, 0.2}}'
           FROM generate_series(1, 50) i;
         INSERT INTO docs VALUES (100, 's', 1, NULL, NULL, 1, 'b', NULL), (101, 's', 1, NULL, NULL, 1, 'b', '{{1,2}}');
         INSERT INTO docs (id, section, many) SELECT i, 't', i FROM generate_series(1000, 102000) i;
         CREATE TABLE pairs (a int, b text, embedding real[], PRIMARY KEY (a, b));
         INSERT INTO pairs VALUES (1, 'x', '{{1,2}}');
         CREATE TABLE named (id uuid PRIMARY KEY, embedding real[]);
         INSERT INTO named VALUES ('00000000-0000-0000-0000-000000000001', '{{1,2}}');
         CREATE TABLE small (id smallint PRIMARY KEY, embedding real[]);
         INSERT INTO small VALUES (1, '{{1,2}}');
         CREATE TABLE gone (id int PRIMARY KEY, embedding real[]);
         INSERT INTO gone VALUES (1, '{{1,2}}');
         CREATE ROLE viewer_{name}; CREATE ROLE stranger_{name}; GRANT SELECT ON docs TO viewer_{name}"
    ));
}

/// The file, with these lines at the end of its section `http`.
fn configured(database: &Database, sections: &str) -> Service {
    let service = Service::configured(database, "", "");
    let text = std::fs::read_to_string(service.config_file()).expect("just written");
    let (http, rest) = text.split_once("listen = \"127.0.0.1:0\"\n").expect("where it listens");
    let text = format!("{rest}{http}listen = \"127.0.0.1:0\"\n{sections}");
    std::fs::write(service.config_file(), text).expect("writable");
    service
}

/// Answers everybody with a page.
fn something_else() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>");
        }
    });
    url
}

/// Host and port of `postgresql://user@host:port/database`.
fn host_of(dsn: &str) -> String {
    let rest = dsn.split_once('@').expect("a user").1;
    rest.split('/').next().expect("a host").to_owned()
}

/// A port that nobody listens on.
fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

impl World {
    fn new() -> World {
        let (database, other) = (Database::shared(), Database::shared());
        tables(&database);
        tables(&other);
        let mut open = configured(&database, &OPEN.replace("$NAME", &database.name));
        let mut names = Names::new();
        let mut keyed = configured(&other, &sections(&mut names));
        for service in [&mut open, &mut keyed] {
            service.start();
        }
        open.wait_ready();
        lose(&mut open, &database);
        let key = names["read"].clone();
        let docs = |service: &Service| {
            ureq::get(format!("{}/v1/collections/docs", service.url())).header("api-key", &key).call()
        };
        keyed.wait_for("a copy", |service| docs(service).is_ok());
        let dir = tempfile::tempdir().expect("a folder");
        files(&dir);
        let (path, user) = (|path: std::path::PathBuf| path.display().to_string(), &database.name);
        names.extend([
            ("URL", open.url().to_owned()),
            ("KEYED", keyed.url().to_owned()),
            ("ELSE", something_else()),
            ("CLOSED", closed()),
            ("DSN", database.dsn.clone()),
            ("DSNHOST", host_of(&database.dsn)),
            ("SOURCE", "[source]\ndsn = \"postgresql://u@h/d\"".to_owned()),
            ("DOCS", "[[collections]]\ntable = \"docs\"\n[[collections.vectors]]\ncolumn = \"e\"".to_owned()),
            ("HASH", Hash::of("rvk_x").to_string()),
            ("SQL", open.sql_address().to_owned()),
            ("CONFIG", path(open.config_file())),
            ("KEYEDCONFIG", path(keyed.config_file())),
            ("DIR", path(dir.path().to_owned())),
            ("V", r#""query":{"vector":[1,2,3,4]}"#.to_owned()),
            ("VIEWER", format!("viewer_{user}")),
            ("STRANGER", format!("stranger_{user}")),
        ]);
        let first = open.search("docs", &near(7, 4, 3));
        names.insert("CURSOR", first["next"].as_str().expect("there are more").to_owned());
        let own = open.search("docs", &json!({"query": {"vector": [1, 2, 3, 4]}, "limit": 3}));
        names.insert("NEXT", own["next"].as_str().expect("there are more").to_owned());
        World { open, keyed, names, _database: database, _other: other, _dir: dir }
    }

    /// Both answer, and nothing before was a fault of theirs.
    pub fn alive(&self) {
        assert_eq!(ids(&self.open.search("docs", &near(7, 4, 1))), [7]);
        for service in [&self.open, &self.keyed] {
            // One collection is paused on purpose.
            let errors =
                service.logged(" ERROR ") - service.logged("ERROR ruvector::engine::apply: the collection is paused");
            assert_eq!((errors, service.logged("panicked")), (0, 0), "{}", service.log_tail());
        }
    }
}

/// The table of one collection goes, and another one is configured that has none.
fn lose(open: &mut Service, database: &Database) {
    database.sql.run("DROP TABLE gone");
    let text = std::fs::read_to_string(open.config_file()).expect("just written");
    std::fs::write(open.config_file(), text + MISSING).expect("writable");
    open.hang_up();
    let shown = |service: &Service, name: &str| service.client().get(&format!("/v1/collections/{name}"));
    open.wait_for("a collection without a table", |service| {
        shown(service, "missing").is_err_and(|error| format!("{error:#}").contains("RV1207"))
    });
    open.wait_for("a collection whose table is gone", |service| {
        shown(service, "gone").is_ok_and(|gone| gone["state"] == "paused")
    });
}

/// Of the service that asks for keys; the keys come to stand among the names.
fn sections(names: &mut Names) -> String {
    let issuer = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let mut sections = "max_body_bytes = 20000\nbody_timeout_s = 1\nhead_timeout_s = 5\n".to_owned();
    for (name, settings) in KEYS {
        let key = generate();
        sections += &format!("[http.keys.{name}]\nhash = ['{}']\n{settings}\n", Hash::of(&key));
        names.insert(name, key);
    }
    sections + &KEYED.replace("$PEM", &issuer.public_key_pem())
}

/// Files that are not what they should be.
fn files(dir: &TempDir) {
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("writable");
    write("latin1.toml", b"[source]\nslot = \"\xfc\"\n");
    write("text.npy", b"1 2 3\n");
    write("short.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4'");
    write("empty.pem", b"");
    write("words.pem", b"-----BEGIN CERTIFICATE-----\nwords\n-----END CERTIFICATE-----\n");
    write("words.key", b"no key\n");
    write("empty", b"");
}
