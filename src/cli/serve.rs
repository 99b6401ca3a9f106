//! `ruvector serve` and `ruvector config check`.

use crate::config::Config;
use crate::{node, telemetry};
use anyhow::Context;
use std::io::Write;
use std::path::Path;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Serves until SIGINT or SIGTERM.
pub fn run(file: Option<&Path>) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let options = node::Options::try_from(&config)?;
    telemetry::init_logs(&config.log.level, config.log.format).map_err(anyhow::Error::msg)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        stop_on_signals(stop.clone())?;
        let listening = |address| {
            // On standard output: scripts wait for this line.
            println!("listening on http://{address}");
            let _ = std::io::stdout().flush();
        };
        Ok(node::run(options, stop, listening).await?)
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
    Ok(())
}
