//! Sockets: parses into the model, calls `query`, renders. No logic.

pub mod http;
pub mod pg;
pub mod problem;
pub mod tls;
