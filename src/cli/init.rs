//! `ruvector init`: the SQL that prepares a source for the configured tables; printed first, run when asked to.

use crate::config::Config;
use crate::source::SourceError;
use crate::source::catalog;
use crate::source::connect::Dsn;
use crate::source::setup::{Password, Setup, statements};
use anyhow::{Context, anyhow, bail};
use std::path::PathBuf;

/// Arguments of `init`.
#[derive(clap::Args)]
pub struct Args {
    /// The source, as somebody who may create roles and publications.
    dsn: String,
    /// Configuration file; its collections are prepared for.
    #[arg(long, short, env = "RUVECTOR_CONFIG")]
    config: Option<PathBuf>,
    /// Tables to prepare for besides the configured ones, as schema.table.
    #[arg(long = "table")]
    tables: Vec<String>,
    /// Role the service will use.
    #[arg(long, default_value = "ruvector")]
    role: String,
    /// Environment variable that holds the role's password; without it the role gets none.
    #[arg(long, value_name = "VARIABLE")]
    password_env: Option<String>,
    /// Run the SQL, in one transaction, instead of only printing it.
    #[arg(long)]
    run: bool,
}

/// The variable of psql that stands for the password in what is printed.
const VARIABLE: &str = "ruvector_password";

/// Prints, and runs when asked to.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref())?;
    let split = |name: &str| match name.split_once('.') {
        Some((schema, table)) => (schema.to_owned(), table.to_owned()),
        None => ("public".to_owned(), name.to_owned()),
    };
    let named = config.collections.iter().map(|spec| &spec.table).chain(&args.tables);
    let mut tables: Vec<_> = named.map(|name| split(name)).collect();
    tables.sort();
    tables.dedup();
    // Those of a service with an SQL endpoint may be registered later.
    if tables.is_empty() && config.sql.address()?.is_none() {
        bail!("no tables: name them with --table, or give a configuration with [[collections]] or with sql.listen");
    }
    let password = args
        .password_env
        .as_ref()
        .map(|name| std::env::var(name).with_context(|| format!("${name} has no password; export it first")));
    let password = password.transpose()?;
    let dsn = Dsn::parse(&args.dsn)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let client = dsn.connect().await?;
        let row_security = row_security(&client, &tables).await?;
        let rds = client.query_opt("SELECT FROM pg_roles WHERE rolname = 'rds_replication'", &[]).await?.is_some();
        let publication = &config.source.publication;
        let literal = password.as_deref().map(Password::Literal);
        let setup = Setup { role: &args.role, password: literal, publication, tables: &tables, row_security, rds };
        let shown = Setup { password: literal.map(|_| Password::Variable(VARIABLE)), ..setup.clone() };
        if let Some(name) = &args.password_env {
            say!("-- in psql, set the password first: \\set {VARIABLE} `printenv {name}`");
        }
        statements(&shown).iter().for_each(|statement| say!("{statement};"));
        if !args.run {
            say!("-- nothing was run; add --run to run it in one transaction");
            return Ok(());
        }
        let sql = format!("BEGIN; SET LOCAL lock_timeout = '10s'; {}; COMMIT", statements(&setup).join("; "));
        client.batch_execute(&sql).await.map_err(|error| match SourceError::from(error) {
            SourceError::Sql { code, message } if code == "42501" => anyhow!(
                "{message} (SQLSTATE {code}); nothing was changed. The role in this DSN runs the SQL: connect as a superuser, or \
                 as one that may create roles (CREATEROLE, REPLICATION), owns the tables and may CREATE in the database"
            ),
            other => other.into(),
        })?;
        say!("-- done; now set source.create_publication = false and connect as {}", args.role);
        Ok(())
    })
}

/// Does any of the tables have row security? A missing table or identity is an error here, before anything is granted.
async fn row_security(client: &tokio_postgres::Client, tables: &[(String, String)]) -> anyhow::Result<bool> {
    let mut any = false;
    for (schema, name) in tables {
        let Some(table) = catalog::table(client, schema, name).await? else {
            bail!("there is no table {schema}.{name} in this database; names are taken literally, as schema.table")
        };
        if table.replica_identity == 'n' || table.columns.iter().all(|column| column.key_place.is_none()) {
            bail!(
                "{schema}.{name} has no usable replica identity: publishing it would make its UPDATEs and DELETEs fail. Add a primary key first"
            );
        }
        let row = client.query_one("SELECT relrowsecurity FROM pg_class WHERE oid = $1", &[&table.oid]).await?;
        any |= row.get::<_, bool>(0);
    }
    Ok(any)
}
