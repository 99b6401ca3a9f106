//! `ruvector serve` and `ruvector config check`.

use crate::config::Config;
use crate::model::CollectionSpec;
use crate::server::http::Options as Http;
use crate::telemetry::names;
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
    // Until all has ended: the last spans are sent then.
    let _sending = telemetry::init(&config.log.level, config.log.format, config.traces().as_ref());
    let _sending = _sending.map_err(anyhow::Error::msg)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().thread_stack_size(crate::server::pg::statement::STACK);
    if let Some(why) = config.http.exposed()? {
        tracing::warn!("http.insecure: {why}");
    }
    let runtime = runtime.build().context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        stop_on_signals(stop.clone())?;
        let specs = reload_on_hangup(file.map(Path::to_owned), config, &options)?;
        let listening = |at: node::Listening| {
            if let Some(address) = at.sql {
                say!("SQL on postgresql://{address}");
            }
            // On standard output: scripts wait for this line.
            let scheme = if at.encrypted { "https" } else { "http" };
            if let Some(address) = at.admin {
                say!("admin on {scheme}://{address}");
            }
            say!("listening on {scheme}://{}", at.http);
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

/// SIGHUP reads the configuration again, and the certificate. What of it holds at once is `config::LIVE`.
fn reload_on_hangup(
    file: Option<PathBuf>,
    started: Config,
    running: &node::Options,
) -> anyhow::Result<watch::Receiver<Vec<CollectionSpec>>> {
    let (changed, now) = watch::channel(running.collections.clone());
    let http = running.http.clone();
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let result = match reload(file.as_deref(), &started, &http, &changed) {
                Ok(left) if left.is_empty() => "taken",
                Ok(left) => {
                    let settings = left.join(", ");
                    tracing::warn!(
                        settings,
                        "these settings changed since the start; they hold from the next start on"
                    );
                    "partly"
                }
                Err(error) => {
                    tracing::error!(%error, "the configuration is not taken over");
                    "refused"
                }
            };
            metrics::counter!(names::CONFIG_RELOADS, "result" => result).increment(1);
        }
    });
    Ok(now)
}

/// Takes over what can be; the settings that changed and cannot. An error takes nothing over.
fn reload(
    file: Option<&Path>,
    started: &Config,
    http: &Http,
    collections: &watch::Sender<Vec<CollectionSpec>>,
) -> anyhow::Result<Vec<String>> {
    let config = Config::load(file)?;
    let options = node::Options::try_from(&config)?;
    let mut left = config.changed_since(started);
    telemetry::set_level(&config.log.level).map_err(anyhow::Error::msg)?;
    match http.access.replace(&options.http.access) {
        Ok(()) => tracing::info!(access = ?http.access, "who may come in over HTTP was read again"),
        Err(error) => {
            tracing::error!("{error}");
            left.push("http.keys".into());
        }
    }
    http.tls.iter().for_each(|tls| tls.reload());
    tracing::info!(collections = options.collections.len(), "the configuration's collections were read again");
    collections.send_replace(options.collections);
    Ok(left)
}

/// Says what would be served, or what is wrong.
pub fn check(file: Option<&Path>) -> anyhow::Result<()> {
    let options = node::Options::try_from(&Config::load(file)?)?;
    say!("ok: follows {} by slot {:?} and publication {:?}", options.dsn, options.slot, options.publication);
    for spec in &options.collections {
        let vectors: Vec<_> =
            spec.vectors.iter().map(|vector| format!("{} ({})", vector.column, vector.metric)).collect();
        say!("ok: collection {} = table {}, vectors {}", spec.name(), spec.table, vectors.join(", "));
    }
    let encrypted = if options.http.tls.is_some() { "encrypted" } else { "not encrypted" };
    let access =
        if options.http.access.are_needed() { format!("{:?}", options.http.access) } else { "open to all".into() };
    say!("ok: data in {}, HTTP on {}, {encrypted}, {access}", options.data_dir.display(), options.listen);
    if let Some(admin) = options.admin_listen {
        say!("ok: /v1/admin on {admin} only");
    }
    if let Some(sql) = &options.sql {
        let users: Vec<_> = sql.users.iter().map(|user| user.name.as_str()).collect();
        say!("ok: SQL on {}, users {}", sql.listen, users.join(", "));
    }
    Ok(())
}
