//! `ruvector doctor`: the source's fitness, each finding with what to paste.

use crate::config::Config;
use crate::source::connect::Dsn;
use crate::source::preflight::{self, Depth, Finding, Severity, Subject};
use crate::storage::ownership;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// The source; the configuration's when absent.
    dsn: Option<String>,
    /// Configuration file.
    #[arg(long, short, env = "RUVECTOR_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Checks and prints.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.as_deref())?;
    let dsn = match &args.dsn {
        Some(dsn) => Dsn::parse(dsn)?,
        None => config.dsn()?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let source = &config.source;
    // Later copies have slots with numbers; the data directory, if it is here, says which one is ours now.
    let followed = ownership::slot_followed(&config.storage.dir).ok().flatten().filter(|_| args.dsn.is_none());
    let known = match args.dsn {
        None => Some(ownership::slots(&config.storage.dir).unwrap_or_default()),
        Some(_) => None,
    };
    let subject = Subject {
        dsn: &dsn,
        base: &source.slot,
        known: known.as_deref(),
        slot: followed.as_deref().unwrap_or(&source.slot),
        publication: &source.publication,
        create: source.create_publication,
        collections: &config.collections,
        roles: &config.search.recheck_roles,
    };
    let findings = runtime.block_on(preflight::run(&subject, Depth::All));
    if args.json {
        say!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        findings.iter().for_each(print);
    }
    Ok(ExitCode::from(preflight::exit_code(&findings)))
}

fn print(finding: &Finding) {
    let mark = match finding.severity {
        Severity::Ok => "ok     ",
        Severity::Warning => "warning",
        Severity::Error => "ERROR  ",
    };
    say!("{mark} {} {}: {}", finding.code, finding.check, finding.observed);
    if let Some(fix) = &finding.fix {
        say!("            fix: {fix}");
    }
}
