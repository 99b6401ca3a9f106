//! `ruvector serve` and `ruvector config check`.

use crate::config::Config;
use crate::model::CollectionSpec;
use crate::{node, telemetry};
use anyhow::Context;
use std::io::Write;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Serves until SIGINT or SIGTERM.
pub fn run(file: Option<&Path>) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let options = node::Options::try_from(&config)?;
    telemetry::init_logs(&config.log.level, config.log.format).map_err(anyhow::Error::msg)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().thread_stack_size(crate::server::pg::statement::STACK);
    let runtime = runtime.build().context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        stop_on_signals(stop.clone())?;
        let specs = reload_on_hangup(file.map(Path::to_owned), config, options.collections.clone())?;
        let listening = |at: node::Listening| {
            if let Some(address) = at.sql {
                println!("SQL on postgresql://{address}");
            }
            // On standard output: scripts wait for this line.
            println!("listening on {}://{}", if at.encrypted { "https" } else { "http" }, at.http);
            let _ = std::io::stdout().flush();
        };
        Ok(node::run(options, specs, stop, listening).await?)
    })
}

fn stop_on_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
        // A second signal does not wait.
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(())
}

/// SIGHUP reads the configuration's collections again; everything else in it needs a new start.
fn reload_on_hangup(
    file: Option<PathBuf>,
    started: Config,
    specs: Vec<CollectionSpec>,
) -> anyhow::Result<watch::Receiver<Vec<CollectionSpec>>> {
    let (changed, now) = watch::channel(specs);
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let loaded = Config::load(file.as_deref());
            match loaded.and_then(|config| Ok((node::Options::try_from(&config)?, config))) {
                Ok((options, config)) => {
                    let settings = config.changed_since(&started);
                    if !settings.is_empty() {
                        let settings = settings.join(", ");
                        tracing::warn!(
                            settings,
                            "these settings changed since the start; they hold from the next start on"
                        );
                    }
                    tracing::info!(
                        collections = options.collections.len(),
                        "the configuration's collections were read again"
                    );
                    changed.send_replace(options.collections);
                }
                Err(error) => tracing::error!(%error, "the configuration is not taken over"),
            }
        }
    });
    Ok(now)
}

/// Says what would be served, or what is wrong.
pub fn check(file: Option<&Path>) -> anyhow::Result<()> {
    let options = node::Options::try_from(&Config::load(file)?)?;
    println!("ok: follows {} by slot {:?} and publication {:?}", options.dsn, options.slot, options.publication);
    for spec in &options.collections {
        let vectors: Vec<_> =
            spec.vectors.iter().map(|vector| format!("{} ({})", vector.column, vector.metric)).collect();
        println!("ok: collection {} = table {}, vectors {}", spec.name(), spec.table, vectors.join(", "));
    }
    println!("ok: data in {}, HTTP on {}", options.data_dir.display(), options.listen);
    if let Some(sql) = &options.sql {
        let users: Vec<_> = sql.users.iter().map(|user| user.name.as_str()).collect();
        println!("ok: SQL on {}, users {}", sql.listen, users.join(", "));
    }
    Ok(())
}
