//! `ruvector doctor`: the source's fitness, each finding with what to paste.

use crate::config::Config;
use crate::source::connect::Dsn;
use crate::source::preflight::{self, Finding, Severity};
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
    let findings = runtime.block_on(preflight::run(
        &dsn,
        &source.slot,
        &source.publication,
        source.create_publication,
        &config.collections,
    ));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
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
    println!("{mark} {} {}: {}", finding.code, finding.check, finding.observed);
    if let Some(fix) = &finding.fix {
        println!("            fix: {fix}");
    }
}
