//! The `ruvector` binary: everything is in the library.

fn main() {}
