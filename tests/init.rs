//! What prepares a source, `ruvector init` and `migrations/0001_source.sql`: a service with the role it makes follows.

mod support;

use ruvector::cli::private_postgres::Settings;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use support::{DOCS, Database, Service, cluster};

fn init(dsn: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ruvector"));
    let command =
        command.args(["init", dsn, "--table", "public.docs"]).args(arguments).env("RV_PASSWORD", "it's secret");
    command.env_remove("RUVECTOR_CONFIG").output().expect("it runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What somebody pastes into psql.
fn paste(dsn: &str, text: &str) -> Output {
    let mut psql = Command::new("psql")
        .args(["-X", "-d", dsn])
        .env("RV_PASSWORD", "it's secret")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql is there");
    psql.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    psql.wait_with_output().expect("it ends")
}

/// A service that connects as this role and may make nothing itself.
fn follows(database: &Database, role: &str, publication: &str) {
    let mut service = Service::configured(database, "", DOCS);
    service.slot = publication.to_owned();
    let dsn = database.dsn.replace("postgres@", &format!("{role}:it%27s%20secret@"));
    service.configure(&dsn, "create_publication = false\n", DOCS);
    service.start();
    service.wait_ready();
    database.sql.run("UPDATE docs SET section = 'x' WHERE id = 1");
    service.catch_up(&database.sql);
    assert_eq!(service.verify_clean("docs"), 10, "{role}");
    service.terminate();
    database.drop_slot(publication);
}

#[test]
fn a_source_is_prepared_by_init_by_what_it_prints_and_by_the_migration() {
    let mut postgres = cluster(Settings::default());
    let database = Database::of(&postgres);
    database.docs(10);
    let rules = postgres.data_dir().join("pg_hba.conf");
    let text = std::fs::read_to_string(&rules).expect("readable");
    std::fs::write(&rules, format!("host all rv1,rv2,rv3 127.0.0.1/32 scram-sha-256\n{text}")).expect("writable");
    postgres.reload().expect("it runs");
    let password = "SELECT COALESCE(rolpassword, 'none') FROM pg_authid WHERE rolname = ";

    // Printed, and pasted: first by somebody who does not set the password, who then has none set.
    let printed = init(&database.dsn, &["--role", "rv1", "--password-env", "RV_PASSWORD"]);
    let sql = said(&printed);
    assert!(printed.status.success() && !sql.contains("secret") && !sql.contains("'...'"), "{sql}");
    assert_eq!(database.sql.one("SELECT count(*) FROM pg_roles WHERE rolname = 'rv1'"), "0", "nothing was run");
    let careless = paste(&database.dsn, &sql);
    assert!(said(&careless).contains("syntax error"), "{}", said(&careless));
    assert_eq!(database.sql.one(&format!("{password}'rv1'")), "none");
    let hint = sql.lines().find_map(|line| line.split_once("set the password first: ")).expect("it says how").1;
    let careful = paste(&database.dsn, &format!("{hint}\n{sql}"));
    assert!(!said(&careful).contains("ERROR"), "{}", said(&careful));
    assert!(database.sql.one(&format!("{password}'rv1'")).starts_with("SCRAM-SHA-256"));
    follows(&database, "rv1", "ruvector");

    // Run by itself, twice.
    for _ in 0..2 {
        let run = init(&database.dsn, &["--role", "rv2", "--password-env", "RV_PASSWORD", "--run"]);
        assert!(run.status.success() && said(&run).contains("-- done"), "{}", said(&run));
    }
    follows(&database, "rv2", "ruvector");
    let rights = "SELECT rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = 'rv2'";
    assert_eq!(database.sql.one(rights), "f", "nothing more than needed");

    // By whom may not: that role is named, not the one to be made.
    database.sql.run("CREATE ROLE nobody LOGIN; GRANT SELECT ON docs TO nobody");
    let refused = init(&database.dsn.replace("postgres@", "nobody@"), &["--role", "rv9", "--run"]);
    let text = said(&refused);
    assert!(
        refused.status.code() == Some(2) && text.contains("The role in this DSN") && text.contains("CREATEROLE"),
        "{text}"
    );
    database.sql.run("CREATE TABLE keyless (x int)");
    let refused = init(&database.dsn, &["--table", "public.keyless", "--run"]);
    assert!(refused.status.code() == Some(2) && said(&refused).contains("replica identity"), "{}", said(&refused));

    // The migration, twice, and refused for a table without a key.
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/0001_source.sql");
    let migrate = |tables: &str| {
        let tables = format!("tables={tables}");
        let variables = ["role=rv3", "password=it's secret", "publication=migrated", tables.as_str()];
        let mut psql = Command::new("psql");
        psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-d", &database.dsn, "-f"]).arg(&file);
        for variable in variables {
            psql.args(["-v", variable]);
        }
        psql.output().expect("psql is there")
    };
    let refused = migrate("public.docs, public.keyless");
    assert!(
        !refused.status.success() && said(&refused).contains("no primary key or replica identity"),
        "{}",
        said(&refused)
    );
    assert_eq!(database.sql.one("SELECT count(*) FROM pg_roles WHERE rolname = 'rv3'"), "0");
    for _ in 0..2 {
        let done = migrate("public.docs");
        assert!(done.status.success(), "{}", said(&done));
    }
    follows(&database, "rv3", "migrated");
}
