//! The command line: what a person or a script types.

pub mod bench_ann;
mod npy;
pub mod private_postgres;
