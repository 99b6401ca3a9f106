//! `ruvector sqlpack`: the SQL that makes the service's searches part of the source's own SQL; printed, or run.

use crate::config::Config;
use crate::model::{CollectionDef, CollectionId, quote_ident};
use crate::node;
use crate::source::connect::Dsn;
use crate::source::registrations::Found;
use crate::source::sqlpack::{Pack, uninstall};
use crate::source::{SourceError, catalog, registrations};
use anyhow::{Context, bail};
use clap::Subcommand;
use std::path::PathBuf;

/// What to do with it.
#[derive(Subcommand)]
pub enum Command {
    /// Print the SQL, without the password.
    Print(Args),
    /// Run it on the source, in one transaction. It can be run again, also after the configuration has changed.
    Install(Args),
    /// The same where it is installed already; what is registered stays.
    Upgrade(Args),
    /// Print the SQL that takes it back; run it with --yes.
    Uninstall(Uninstall),
}

/// Arguments of `print`, `install` and `upgrade`.
#[derive(clap::Args)]
pub struct Args {
    /// Configuration file of the service.
    #[arg(long, short, env = "RUVECTOR_CONFIG")]
    config: Option<PathBuf>,
    /// The source, as the role that will own the pack; as the service connects when absent.
    #[arg(long)]
    dsn: Option<String>,
    /// Where the service listens for SQL, as the source sees it; the host of sql.listen when absent.
    #[arg(long)]
    host: Option<String>,
    /// Its port; that of sql.listen when absent.
    #[arg(long)]
    port: Option<u16>,
    /// How the source connects to it.
    #[arg(long, default_value = "prefer")]
    sslmode: String,
    /// One of [sql.users]; the only one when absent.
    #[arg(long)]
    user: Option<String>,
    /// Environment variable with the password, where the configuration has only a verifier.
    #[arg(long, value_name = "VARIABLE")]
    password_env: Option<String>,
    /// Roles that may search; more can be granted later.
    #[arg(long = "grant", value_name = "ROLE")]
    grantees: Vec<String>,
}

/// Arguments of `uninstall`.
#[derive(clap::Args)]
pub struct Uninstall {
    /// Configuration file of the service.
    #[arg(long, short, env = "RUVECTOR_CONFIG")]
    config: Option<PathBuf>,
    /// The source, as the role that owns the pack; as the service connects when absent.
    #[arg(long)]
    dsn: Option<String>,
    /// Run it.
    #[arg(long)]
    yes: bool,
}

/// Does it.
pub fn run(command: &Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    match command {
        Command::Print(args) => runtime.block_on(install(args, Run::No)),
        Command::Install(args) => runtime.block_on(install(args, Run::Yes)),
        Command::Upgrade(args) => runtime.block_on(install(args, Run::WhereInstalled)),
        Command::Uninstall(args) => {
            say!("{}", uninstall().trim_end());
            if !args.yes {
                say!("-- nothing was run; add --yes to run it");
                return Ok(());
            }
            runtime.block_on(async {
                let client = connect(args.config.as_deref(), args.dsn.as_deref()).await?;
                client.batch_execute(&uninstall()).await.map_err(SourceError::from)?;
                Ok(())
            })
        }
    }
}

async fn connect(config: Option<&std::path::Path>, dsn: Option<&str>) -> anyhow::Result<tokio_postgres::Client> {
    let dsn = match dsn {
        Some(dsn) => Dsn::parse(dsn)?,
        None => Config::load(config)?.dsn()?,
    };
    Ok(dsn.connect().await?)
}

/// Is it run?
#[derive(PartialEq)]
enum Run {
    No,
    Yes,
    WhereInstalled,
}

/// The collections of the file and those registered, as the service takes them: each as the source has it, or why not.
async fn collections(client: &tokio_postgres::Client, config: &Config) -> anyhow::Result<Vec<CollectionDef>> {
    let mut specs = config.collections.clone();
    let registered = match registrations::read(client).await? {
        Found::Rows { rows, .. } => node::registered(&config.collections, &rows, &config.source.slot),
        Found::Nothing | Found::Hidden(_) => Vec::new(),
    };
    let configured = specs.len();
    specs.extend(registered);
    let mut found = Vec::new();
    for (number, spec) in specs.iter().enumerate() {
        match catalog::resolve(client, CollectionId(number as u32), spec).await {
            Ok((def, _)) => found.push(def),
            // The service refuses it as well, and the others are there.
            Err(error @ SourceError::Refused { .. }) if number >= configured => {
                eprintln!("left out: registered collection {}: {error}", spec.name());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

async fn install(args: &Args, run: Run) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref())?;
    let listen = config.sql.address()?.context(
        "sql.listen is not set, so there is nothing to connect to: set it, and [sql.users.NAME], in the file of --config",
    )?;
    let user = match (&args.user, config.sql.users.len()) {
        (Some(user), _) => user.clone(),
        (None, 1) => config.sql.users.keys().next().cloned().unwrap_or_default(),
        (None, _) => bail!("there are several [sql.users], or none: say which with --user"),
    };
    let password = match &args.password_env {
        Some(name) => std::env::var(name).with_context(|| format!("${name} has no password; export it first"))?,
        None => {
            let found = config.sql.users.get(&user).with_context(|| {
                let known: Vec<_> = config.sql.users.keys().map(String::as_str).collect();
                format!("there is no [sql.users.{user}] in the configuration; there are: {}", known.join(", "))
            })?;
            found.secret(&user)?
        }
    };
    if password.starts_with("SCRAM-SHA-256$") {
        bail!("the configuration has only a verifier of {user:?}: give the password with --password-env");
    }
    let client = connect(args.config.as_deref(), args.dsn.as_deref()).await?;
    if run == Run::WhereInstalled {
        let there = "SELECT FROM pg_foreign_server WHERE srvname = 'ruvector'";
        let there = client.query_opt(there, &[]).await.map_err(SourceError::from)?;
        there.context("the SQL pack is not installed here: use `ruvector sqlpack install`")?;
    }
    let collections = collections(&client, &config).await?;
    let dsn = config.dsn()?;
    let schema = "SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'";
    let schema = client.query_opt(schema, &[]).await.map_err(SourceError::from)?;
    let schema: Option<String> = schema.map(|row| row.get(0));
    let host = args.host.clone().unwrap_or_else(|| listen.ip().to_string());
    let pack = Pack {
        host: &host,
        port: args.port.unwrap_or_else(|| listen.port()),
        sslmode: &args.sslmode,
        user: &user,
        vector_schema: schema.as_deref(),
        publication: &config.source.publication,
        service_user: dsn.user(),
        grantees: &args.grantees,
    };
    let sql = pack.install(&collections);
    if run == Run::No {
        say!("{}", sql.trim_end());
        say!("-- nothing was run; `ruvector sqlpack install` runs it with the password of {user:?}");
        return Ok(());
    }
    // Apart from the statements: what fails is written to the server's log, with its text.
    let secret = "SELECT set_config('ruvector.password', $1, false)";
    client.execute(secret, &[&password]).await.map_err(SourceError::from)?;
    client.batch_execute(&sql).await.map_err(SourceError::from)?;
    say!("done: schema ruvector, server ruvector at {host}:{}, {} collections", pack.port, collections.len());
    tell_what_is_missing(&client, &pack).await
}

/// What whoever runs it may not do is left, and somebody else has to: said here, because warnings are not shown.
async fn tell_what_is_missing(client: &tokio_postgres::Client, pack: &Pack<'_>) -> anyhow::Result<()> {
    let sql = "SELECT (SELECT string_agg(wanted, ', ' ORDER BY wanted)
                         FROM unnest(ARRAY['ruvector_admin', 'ruvector_operator', 'ruvector_user']) wanted
                        WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted)),
                      coalesce((SELECT has_table_privilege(oid, 'ruvector.registrations', 'SELECT')
                                   AND has_schema_privilege(oid, 'ruvector', 'USAGE') FROM pg_roles WHERE rolname = $1), false),
                      NOT EXISTS (SELECT FROM pg_publication p WHERE p.pubname = $2 AND NOT p.puballtables
                         AND NOT EXISTS (SELECT FROM pg_publication_tables t WHERE t.pubname = p.pubname
                                            AND t.schemaname = 'ruvector' AND t.tablename = 'registrations'))";
    let row = client.query_one(sql, &[&pack.service_user, &pack.publication]).await.map_err(SourceError::from)?;
    if let Some(roles) = row.get::<_, Option<&str>>(0) {
        say!(
            "no roles {roles}: whoever installs has no CREATEROLE. Somebody who has: CREATE ROLE ...; then `ruvector sqlpack upgrade`"
        );
    }
    let (user, publication) = (quote_ident(pack.service_user), quote_ident(pack.publication));
    if !row.get::<_, bool>(1) {
        say!(
            "the service does not see what is registered: GRANT USAGE ON SCHEMA ruvector TO {user}; GRANT SELECT ON ruvector.registrations TO {user};"
        );
    }
    if !row.get::<_, bool>(2) {
        say!(
            "the service notices what is registered by looking only, until the publication's owner, owning the table as well, does: ALTER PUBLICATION {publication} ADD TABLE ONLY ruvector.registrations;"
        );
    }
    Ok(())
}
