//! Change log -> indexes -> candidates; synchronous.

pub mod arena;
pub mod distance;
pub mod hnsw;
