//! One source with two collections, its owner, roles with row security, a service, and the SQL pack.

use crate::support::{Database, Service, Sql};
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

/// Rows of the collection `docs`.
pub const ROWS: i64 = 3_000;

const CONFIG: &str = "[sql]
listen = \"127.0.0.1:0\"
max_connections = 30
[sql.users.app]
password = \"secret\"
[sql.users.limited]
password = \"less\"
collections = [\"notes\"]
[[collections]]
table = \"public.docs\"
name = \"docs\"
filter_columns = [\"section\", \"views\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"l2\"
[[collections]]
table = \"public.notes\"
name = \"notes\"
filter_columns = [\"tag\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"cosine\"
";

pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
});

pub struct World {
    pub service: Service,
    pub database: Database,
    /// Its tables' and the pack's owner.
    pub owner: String,
}

/// One for all tests that run at the same time and change nothing.
pub fn world() -> Arc<World> {
    static WORLD: Mutex<Weak<World>> = Mutex::new(Weak::new());
    let mut shared = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let world = Arc::new(World::new(Database::shared()));
        *shared = Arc::downgrade(&world);
        world
    })
}

impl World {
    pub fn new(database: Database) -> World {
        World::with_connections(database, 30)
    }

    /// With room for so many sessions at the endpoint.
    pub fn with_connections(database: Database, most: usize) -> World {
        let name = &database.name;
        let owner = format!("owner_{name}");
        database.sql.run(&format!(
            "CREATE ROLE {owner} LOGIN; CREATE ROLE alice_{name} LOGIN; CREATE ROLE bob_{name} LOGIN;
             CREATE ROLE carol_{name} LOGIN;
             GRANT ALL ON DATABASE {name} TO {owner}; GRANT ALL ON SCHEMA public TO {owner};
             CREATE EXTENSION postgres_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {owner};
             CREATE FUNCTION far(a real[], b real[]) RETURNS double precision LANGUAGE sql IMMUTABLE AS
               $$ SELECT sqrt(sum((x::float8 - y::float8) ^ 2)) FROM unnest(a, b) u(x, y) $$;
             SET SESSION AUTHORIZATION {owner};
             CREATE TABLE docs (id bigint PRIMARY KEY, section text, views integer, body text, embedding real[]);
             INSERT INTO docs SELECT i, nullif('s' || i % 5, 's4'), i * 7 % 100, 'body ' || i, vec(i, 4)
               FROM generate_series(1, {ROWS}) i;
             CREATE TABLE notes (name text PRIMARY KEY, tag text, embedding real[]);
             INSERT INTO notes SELECT 'note ' || i || CASE WHEN i % 2 = 0 THEN 'ä' ELSE 'Z' END, 't' || i % 2, vec(i, 3)
               FROM generate_series(1, 40) i;
             ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
             CREATE POLICY alice ON docs FOR SELECT TO alice_{name} USING (section = 's1');
             CREATE POLICY bob ON docs FOR SELECT TO bob_{name} USING (id % 100 = 3);
             CREATE POLICY carol ON docs FOR SELECT TO carol_{name} USING (views = current_setting('app.views', true)::int);
             GRANT SELECT ON docs, notes TO alice_{name}, bob_{name};
             GRANT SELECT (id, views, embedding) ON docs TO carol_{name};
             RESET SESSION AUTHORIZATION"
        ));
        // So many wait longer for a connection of the recheck than a request should that is alone.
        let patience = if most > 30 { "recheck_timeout_ms = 60000\n" } else { "" };
        let config = CONFIG.replace("max_connections = 30", &format!("max_connections = {most}"));
        let config = format!(
            "[search]\n{patience}recheck_roles = [\"alice_{name}\", \"bob_{name}\", \"carol_{name}\"]
             recheck_settings = [\"app.views\"]\n{config}
             [sql.users.alice]\npassword = \"alice\"\nrecheck_role = \"alice_{name}\"
             [sql.users.carol]\npassword = \"carol\"\nrecheck_role = \"carol_{name}\"
             recheck_settings = {{ \"app.views\" = \"7\" }}\n"
        );
        let mut service = Service::ready(&database, &config);
        service.catch_up(&database.sql);
        service.wait_for("all is linked", |service| service.collection("docs")["vectors"][0]["linked"] == ROWS);
        let world = World { service, database, owner };
        let output = world.pack("install", &["--grant", &world.role("alice"), "--grant", &world.role("bob")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        world
    }

    /// `ruvector sqlpack ...` as the owner.
    pub fn pack(&self, what: &str, arguments: &[&str]) -> Output {
        pack(&self.service, &self.database.dsn.replace("postgres@", &format!("{}@", self.owner)), what, arguments)
    }

    pub fn role(&self, name: &str) -> String {
        format!("{name}_{}", self.database.name)
    }

    /// A connection to the source as the owner, with the pack's functions in sight.
    pub fn source(&self) -> Sql {
        self.source_as(&self.owner)
    }

    pub fn source_as(&self, role: &str) -> Sql {
        let sql = self.database.connect();
        sql.run(&format!("SET SESSION AUTHORIZATION {role}; SET search_path = public, ruvector"));
        sql
    }

    pub fn address(&self, user: &str, password: &str) -> String {
        format!("postgresql://{user}:{password}@{}/ruvector", self.service.sql_address())
    }

    /// A connection to the endpoint itself.
    pub fn direct(&self) -> Sql {
        Sql::connect(&self.address("app", "secret"))
    }

    /// The same with the driver in sight.
    pub fn driver(&self) -> Client {
        RUNTIME.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&self.address("app", "secret"), NoTls).await.expect("a session");
            tokio::spawn(connection);
            client
        })
    }

    /// The nearest by a full scan of the source: a condition on `docs d`.
    pub fn nearest(&self, query: &str, condition: &str, k: usize) -> Vec<String> {
        let sql =
            format!("SELECT d.id FROM docs d WHERE {condition} ORDER BY far(d.embedding, {query}), d.id LIMIT {k}");
        firsts(&self.database.connect(), &sql)
    }

    /// Sessions of the endpoint.
    pub fn sessions(&self) -> f64 {
        self.service.metric("ruvector_sql_sessions")
    }
}

/// `ruvector sqlpack ...` beside a service.
pub fn pack(service: &Service, dsn: &str, what: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ruvector"));
    command.args(["sqlpack", what, "--dsn", dsn, "--config"]).arg(service.config_file());
    if what != "uninstall" {
        let port = service.sql_address().rsplit(':').next().expect("a port").to_owned();
        command.args(["--host", "127.0.0.1", "--port", &port, "--user", "app"]);
    }
    command.args(arguments).output().expect("it runs")
}

/// The first column.
pub fn firsts(sql: &Sql, query: &str) -> Vec<String> {
    sql.rows(query).into_iter().map(|mut row| row.remove(0).expect("not NULL")).collect()
}

/// SQLSTATE, message and hint of what must fail.
pub fn refusal(sql: &Sql, statement: &str) -> (String, String, String) {
    let error = sql.try_run(statement).expect_err(statement);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{statement}: {error:?}"));
    (error.code().code().to_owned(), error.message().to_owned(), error.hint().unwrap_or_default().to_owned())
}
