//! The command line: what a person or a script types.

/// Prints a line. That nobody reads any more, as behind `| head`, is no error; that it cannot be written is the end.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::written(std::io::Write::write_fmt(
            &mut std::io::stdout(),
            format_args!("{}\n", format_args!($($text)*)),
        ))
    };
}

pub mod bench_ann;
pub mod bench_apply;
mod bench_changes;
pub mod bench_filter;
mod bench_http;
pub mod bench_restart;
mod bench_sql;
mod bench_tiers;
pub mod client;
mod demo;
mod detach;
mod doctor;
mod init;
mod key;
mod npy;
mod operate;
pub mod private_postgres;
mod serve;
mod shadow;
mod snapshot;
mod sqlpack;

use crate::source::SourceError;
use clap::{Parser, Subcommand};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

/// Vector search beside an unmodified PostgreSQL, fed by one logical replication slot.
#[derive(Parser)]
#[command(name = "ruvector", version, propagate_version = true, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// Where the configuration is.
#[derive(clap::Args, Clone)]
struct ConfigFile {
    /// Configuration file; what it leaves out has the defaults shown by `ruvector config default`.
    #[arg(long, short, env = "RUVECTOR_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Show it all on a private PostgreSQL with real texts, each line with the figure it proves. Exit code 1 on any FAIL.
    Demo(demo::Args),
    /// Follow the source and answer searches, until stopped.
    Serve(ConfigFile),
    /// Show what a running service is doing. Exit code 1 when it is not ready.
    Status(operate::Status),
    /// Search a collection of a running service.
    Search(Box<operate::Search>),
    /// Compare a running service's collections with their tables, row by row. Exit code 1 when they differ.
    Verify(operate::Verify),
    /// Copy a running service's collections again, one by one. What there is answers until the new copy is whole.
    Rebuild(operate::Rebuild),
    /// Merge the segments of a running service's collections, and drop what is dead in them.
    Compact(operate::Compact),
    /// Ask pgvector in the source and a running service the same, and compare answers and times. Exit code 1 when the service
    /// finds too little.
    Shadow(shadow::Args),
    /// Have a running service write what answers into a directory, from which `restore` brings it back.
    Snapshot(snapshot::Snapshot),
    /// Put a snapshot into the empty data directory of a service that is stopped.
    Restore(snapshot::Restore),
    /// Check the source before anything is done to it. Exit code 1 with warnings, 2 with errors.
    Doctor(doctor::Args),
    /// Print the SQL that prepares a source (role, grants, publication); run it with --run.
    Init(init::Args),
    /// Take back what the service made on the source: slots, and the publication. Prints the SQL; runs it with --yes.
    Detach(detach::Args),
    /// What makes the service's searches part of the source's own SQL: foreign tables and functions.
    #[command(subcommand)]
    Sqlpack(sqlpack::Command),
    /// Keys for HTTP.
    #[command(subcommand)]
    Key(key::Command),
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Measure.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print the default configuration, which documents every setting.
    Default,
    /// Check a configuration file and the environment without touching the source.
    Check(ConfigFile),
}

#[derive(Subcommand)]
enum Bench {
    /// The HNSW graph on .npy files: build, memory, recall and speed.
    Ann(bench_ann::Args),
    /// Searches with a filter on .npy files: recall and speed at every selectivity.
    Filter(bench_filter::Args),
    /// A restart of a filled index: time until it answers, memory, recall and speed.
    Restart(bench_restart::Args),
    /// Recall of an index whose rows were replaced.
    Churn(bench_changes::ChurnArgs),
    /// Searches while rows stream in, beside searches alone.
    Mixed(bench_changes::MixedArgs),
    /// An index that goes through all tiers: memory, recall and speed in each.
    Tiers(bench_tiers::Args),
    /// The way from a COMMIT to the index, on a private PostgreSQL, beside pg_recvlogical.
    Apply(bench_apply::Args),
    /// Top-k over HTTP with each kind of recheck, beside the bare round trip to the heap, on a private PostgreSQL.
    Http(bench_http::Args),
    /// Top-k over SQL: the endpoint, postgres_fdw with a join, and pgvector on the same private PostgreSQL.
    Sql(bench_sql::Args),
}

/// Runs what the arguments say.
pub fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ruvector: {error:#}");
            if let Some(SourceError::Unavailable(_)) = error.downcast_ref() {
                eprintln!("hint: `ruvector doctor DSN` tries name, network, TLS and password one by one");
            }
            ExitCode::from(2)
        }
    }
}

/// What came of a line of output.
fn written(result: std::io::Result<()>) {
    if let Err(error) = result
        && error.kind() != ErrorKind::BrokenPipe
    {
        eprintln!("ruvector: standard output takes no more: {error}; make room, or send it elsewhere");
        std::process::exit(2);
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(file) => done(serve::run(file.config.as_deref())),
        Command::Status(args) => operate::status(&args),
        Command::Search(args) => done(operate::search(&args)),
        Command::Verify(args) => operate::verify(&args),
        Command::Shadow(args) => shadow::run(&args),
        Command::Rebuild(args) => done(operate::rebuild(&args)),
        Command::Compact(args) => done(operate::compact(&args)),
        Command::Snapshot(args) => done(snapshot::snapshot(&args)),
        Command::Restore(args) => done(snapshot::restore(&args)),
        Command::Doctor(args) => doctor::run(&args),
        Command::Detach(args) => detach::run(&args),
        Command::Init(args) => done(init::run(&args)),
        Command::Sqlpack(command) => done(sqlpack::run(&command)),
        Command::Key(command) => {
            key::run(&command);
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Default) => {
            say!("{}", crate::config::DEFAULTS.trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Check(file)) => done(serve::check(file.config.as_deref())),
        Command::Bench(Bench::Ann(args)) => done(bench_ann::run(&args)),
        Command::Bench(Bench::Filter(args)) => done(bench_filter::run(&args)),
        Command::Bench(Bench::Restart(args)) => done(bench_restart::run(&args)),
        Command::Bench(Bench::Churn(args)) => done(bench_changes::churn(&args)),
        Command::Bench(Bench::Mixed(args)) => done(bench_changes::mixed(&args)),
        Command::Bench(Bench::Tiers(args)) => done(bench_tiers::run(&args)),
        Command::Bench(Bench::Apply(args)) => done(bench_apply::run(&args)),
        Command::Bench(Bench::Http(args)) => done(bench_http::run(&args)),
        Command::Bench(Bench::Sql(args)) => done(bench_sql::run(&args)),
    }
}
