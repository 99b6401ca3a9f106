//! The `ruvector` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ruvector::cli::main()
}
