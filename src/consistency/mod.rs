//! As of when, and visible to whom: positions to wait for, the recheck against the source, verification.

pub mod frontier;
pub mod paging;
pub mod recheck;
pub mod verify;
