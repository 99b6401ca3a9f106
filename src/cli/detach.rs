//! `ruvector detach`: takes back what the service made on the source. Printed first, run when asked to.

use crate::config::Config;
use crate::model::{quote_ident, quote_literal};
use crate::source::connect::Dsn;
use crate::source::slots::{self, Measured};
use crate::source::{SourceError, catalog, publication};
use crate::storage::data_dir::DataDir;
use crate::storage::ownership;
use crate::storage::state::State;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio_postgres::Client;

/// Arguments of `detach`.
#[derive(clap::Args)]
pub struct Args {
    /// Configuration file: it names the source, the slot, the publication and the data directory.
    #[arg(long, short, env = "RUVECTOR_CONFIG")]
    config: Option<PathBuf>,
    /// Drop the publication too, if ruvector made it.
    #[arg(long)]
    publication: bool,
    /// Drop slots too that have our names but that the data directory does not know.
    #[arg(long)]
    all: bool,
    /// Remove the data directory too. A service that is started again copies everything anew in any case.
    #[arg(long)]
    data: bool,
    /// Run it.
    #[arg(long)]
    yes: bool,
}

/// A sender that a crash left behind is gone after so long.
const FREE: Duration = Duration::from_secs(5);

/// What there is of ours on the source.
struct Found {
    proven: Vec<Measured>,
    by_name: Vec<Measured>,
    publication: Option<bool>,
}

impl Found {
    async fn look(client: &Client, config: &Config, known: &[String]) -> Result<Found, SourceError> {
        let database = catalog::database(client).await?;
        let mut proven = slots::measure(client, known).await?;
        proven.retain(|slot| slot.plugin.as_deref() == Some("pgoutput") && slot.database.as_ref() == Some(&database));
        let mut by_name = slots::called(client, &config.source.slot).await?;
        by_name.retain(|slot| proven.iter().all(|known| known.name != slot.name));
        let publication = publication::is_ours(client, &config.source.publication).await?;
        Ok(Found { proven, by_name, publication })
    }
}

/// Prints, and runs when asked to. Exit code 1 when something is left that was to go.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.as_deref())?;
    let dir = &config.storage.dir;
    // The lock is ours until the end: no service starts meanwhile.
    let lock = match dir.exists() {
        true => Some(DataDir::open(dir).context("a service still runs here; stop it first")?),
        false => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let clean = runtime.block_on(detach(args, &config, dir))?;
    if args.data && lock.is_some() {
        match (args.yes, clean) {
            (false, _) => say!("-- and the files in {} would be removed", dir.display()),
            (true, false) => say!("-- the files in {} stay: they say which slots are ours", dir.display()),
            (true, true) => {
                ownership::remove_data(dir)?;
                say!("-- the files in {} are removed", dir.display());
            }
        }
    }
    if !args.yes {
        say!("-- nothing was run; add --yes to run it");
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// True when nothing is left that was to go.
async fn detach(args: &Args, config: &Config, dir: &Path) -> anyhow::Result<bool> {
    let dsn = config.dsn()?;
    let known = ownership::slots(dir)?;
    same_cluster(&dsn, dir, !known.is_empty()).await?;
    let client = dsn.connect().await?;
    let found = Found::look(&client, config, &known).await?;
    let mut doomed: Vec<&Measured> = found.proven.iter().collect();
    for slot in &found.by_name {
        if args.all {
            doomed.push(slot);
        } else {
            say!(
                "-- slot {} has a name of ours, but {} does not know it: --all drops it too",
                slot.name,
                dir.display()
            );
        }
    }
    for slot in &doomed {
        say!("SELECT pg_drop_replication_slot({});", quote_literal(&slot.name));
    }
    let name = &config.source.publication;
    let drop_publication = match (args.publication, found.publication) {
        (_, None) => None,
        (true, Some(true)) => Some(format!("DROP PUBLICATION {};", quote_ident(name))),
        (true, Some(false)) => {
            say!("-- publication {} was not made by ruvector and stays: DROP PUBLICATION {0};", quote_ident(name));
            None
        }
        (false, Some(_)) => {
            say!("-- publication {} stays; --publication drops it if ruvector made it", quote_ident(name));
            None
        }
    };
    drop_publication.iter().for_each(|sql| say!("{sql}"));
    if doomed.is_empty() && drop_publication.is_none() {
        say!("-- nothing to drop on {dsn}");
    }
    // Nothing is proven to be ours, and something looks like it: a slot of a lost data directory keeps WAL for ever.
    let left = doomed.is_empty() && !found.by_name.is_empty();
    if left {
        say!("-- NOT DONE: slots with names of ours stay, and keep WAL; --all drops them");
    }
    if !args.yes {
        return Ok(true);
    }
    let mut clean = !left;
    let instance = if dir.exists() { Some(ownership::instance(dir)?) } else { None };
    for slot in doomed {
        let holder = slots::freed(&client, &slot.name, instance.as_deref(), FREE).await?;
        let gone = slots::drop_idle(&client, &slot.name).await?;
        match holder.filter(|_| !gone) {
            Some(holder) => say!("-- slot {} is in use by {holder}", slot.name),
            None if gone => ownership::forget_slot(dir, &slot.name)?,
            None => say!("-- slot {} could not be dropped", slot.name),
        }
        clean &= gone;
    }
    if let Some(sql) = drop_publication {
        client.batch_execute(&sql).await.map_err(SourceError::from)?;
    }
    if clean {
        say!("-- done");
    }
    Ok(clean)
}

/// A slot of the same name in another cluster is somebody else's.
async fn same_cluster(dsn: &Dsn, dir: &Path, has_slots: bool) -> anyhow::Result<()> {
    let current = ownership::current_epoch(dir)?;
    let Some(epoch) = current.filter(|_| has_slots) else { return Ok(()) };
    let ours = State::open(&epoch.join("state.redb")).and_then(|state| state.identity());
    let ours = match ours {
        Ok(identity) => identity.system_id,
        Err(error) => {
            say!("-- cannot tell which cluster the data is of, taking it to be this one: {error}");
            return Ok(());
        }
    };
    let rows = dsn.connect_replication().await?.query("IDENTIFY_SYSTEM").await?;
    let theirs = rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default();
    if theirs != ours {
        bail!(
            "{dsn} is another cluster than the data in {} is of: system identifier {theirs}, not {ours}",
            dir.display()
        );
    }
    Ok(())
}
