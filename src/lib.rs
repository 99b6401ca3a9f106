//! ruvector: vector search beside an unmodified PostgreSQL.

pub mod cli;
pub mod config;
pub mod consistency;
pub mod engine;
pub mod failpoint;
pub mod model;
pub mod node;
pub mod query;
pub mod replication;
pub mod server;
pub mod source;
pub mod storage;
pub mod telemetry;

pub(crate) use failpoint::failpoint;
