//! Searches on their way to an answer.

pub mod filter;
