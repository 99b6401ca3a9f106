//! The `ruvector` binary: everything is in the library.

use clap::{Parser, Subcommand};
use ruvector::cli::bench_ann;

#[derive(Parser)]
#[command(name = "ruvector", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    /// The HNSW graph on .npy files: build, memory, recall and speed.
    Ann(bench_ann::Args),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Bench(Bench::Ann(args)) => bench_ann::run(&args),
    }
}
