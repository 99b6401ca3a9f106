//! The command line: what a person or a script types.

pub mod private_postgres;
