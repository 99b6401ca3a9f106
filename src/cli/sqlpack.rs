//! `ruvector sqlpack`: the SQL that makes the service's searches part of the source's own SQL; printed, or run.

use crate::config::Config;
use crate::model::CollectionId;
use crate::source::connect::Dsn;
use crate::source::sqlpack::{Pack, uninstall};
use crate::source::{SourceError, catalog};
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
    /// Print the SQL that takes it back; run it with --yes.
    Uninstall(Uninstall),
}

/// Arguments of `print` and `install`.
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
        Command::Print(args) => runtime.block_on(install(args, false)),
        Command::Install(args) => runtime.block_on(install(args, true)),
        Command::Uninstall(args) => {
            print!("{}", uninstall());
            if !args.yes {
                println!("-- nothing was run; add --yes to run it");
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

async fn install(args: &Args, run: bool) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref())?;
    let listen = config.sql.address()?.context("sql.listen is not set: there is nothing to connect to")?;
    let user = match (&args.user, config.sql.users.len()) {
        (Some(user), _) => user.clone(),
        (None, 1) => config.sql.users.keys().next().cloned().unwrap_or_default(),
        (None, _) => bail!("there are several [sql.users]: say which with --user"),
    };
    let password = match &args.password_env {
        Some(name) => std::env::var(name).with_context(|| format!("${name}"))?,
        None => {
            let found = config.sql.users.get(&user).with_context(|| format!("there is no [sql.users.{user}]"))?;
            found.secret(&user)?
        }
    };
    if password.starts_with("SCRAM-SHA-256$") {
        bail!("the configuration has only a verifier of {user:?}: give the password with --password-env");
    }
    let client = connect(args.config.as_deref(), args.dsn.as_deref()).await?;
    let mut collections = Vec::new();
    for (number, spec) in config.collections.iter().enumerate() {
        let (def, _) = catalog::resolve(&client, CollectionId(number as u32), spec).await?;
        collections.push(def);
    }
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
        grantees: &args.grantees,
    };
    let sql = pack.install(&collections);
    if !run {
        print!("{sql}");
        println!("-- nothing was run; `ruvector sqlpack install` runs it with the password of {user:?}");
        return Ok(());
    }
    // Apart from the statements: what fails is written to the server's log, with its text.
    let secret = "SELECT set_config('ruvector.password', $1, false)";
    client.execute(secret, &[&password]).await.map_err(SourceError::from)?;
    client.batch_execute(&sql).await.map_err(SourceError::from)?;
    println!("done: schema ruvector, server ruvector at {host}:{}, {} collections", pack.port, collections.len());
    Ok(())
}
