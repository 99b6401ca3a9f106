//! `ruvector snapshot` and `ruvector restore`.

use crate::cli::ConfigFile;
use crate::cli::client::{Client, Target};
use crate::config::Config;
use crate::storage::data_dir::DataDir;
use crate::storage::snapshot::{self, SnapshotError};
use anyhow::{Context, anyhow};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `snapshot`.
#[derive(clap::Args)]
pub struct Snapshot {
    #[command(flatten)]
    target: Target,
    /// Directory on the service's machine that is to be made, or is empty.
    #[arg(long)]
    to: PathBuf,
    /// Keep the slot at the snapshot's position for so many seconds, so that a restore until then copies nothing. The source
    /// keeps the WAL since; the service's budget for that holds.
    #[arg(long, default_value_t = 0)]
    retain: u64,
}

/// Arguments of `restore`.
#[derive(clap::Args)]
pub struct Restore {
    #[command(flatten)]
    file: ConfigFile,
    /// The snapshot's directory.
    #[arg(long)]
    from: PathBuf,
}

/// Has a running service make a snapshot.
pub fn snapshot(args: &Snapshot) -> anyhow::Result<()> {
    let to = std::path::absolute(&args.to).with_context(|| format!("{}", args.to.display()))?;
    let client = Client::of(&args.target)?;
    let made = client.post_for_long("/v1/admin/snapshots", &json!({ "to": to, "retain_s": args.retain }))?;
    let mb = |what: &str| made[what].as_u64().unwrap_or(0) / 1_000_000;
    say!(
        "{}: {} files, {} MB, {} MB of them shared with the data directory, as of {}, slot {}",
        to.display(),
        made["files"],
        mb("bytes"),
        mb("linked_bytes"),
        made["lsn"].as_str().unwrap_or("?"),
        made["slot"].as_str().unwrap_or("?")
    );
    if args.retain > 0 {
        say!(
            "the slot stays there for {} s: until then a restore copies nothing, and the source keeps the WAL",
            args.retain
        );
    }
    Ok(())
}

/// Puts a snapshot into the configured data directory, which must be empty.
pub fn restore(args: &Restore) -> anyhow::Result<()> {
    let config = Config::load(args.file.config.as_deref())?;
    // What is wrong with the snapshot is told before a directory is made for it.
    snapshot::manifest(&args.from).map_err(explained)?;
    let data = DataDir::open(&config.storage.dir)?;
    let manifest = snapshot::restore(&args.from, &data, &config.source.slot).map_err(explained)?;
    say!(
        "{}: restored {} as of {}, made by version {}",
        data.root().display(),
        manifest.collections.join(", "),
        manifest.lsn,
        manifest.version
    );
    say!(
        "start the service: if slot {} has confirmed nothing beyond that position it goes on from there; else everything is \
         copied again, and this answers meanwhile, marked stale",
        manifest.identity.slot
    );
    Ok(())
}

fn explained(error: SnapshotError) -> anyhow::Error {
    let hint = match &error {
        SnapshotError::Place(..) => "move what is there away, or name another storage.dir",
        SnapshotError::Damaged(..) => {
            "take another snapshot, or start with an empty data directory: everything is copied"
        }
        SnapshotError::Foreign(..) => "take a directory that `ruvector snapshot` made of this service",
        SnapshotError::Storage(_) => return anyhow!("{error}"),
    };
    anyhow!("{error}\nhint: {hint}")
}
