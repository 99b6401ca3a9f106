//! As of when, and visible to whom: positions to wait for, the recheck against the source, verification.

pub mod frontier;
pub mod paging;
pub mod recheck;
mod trips;
pub mod verify;

/// Long work on a thread that answers many: the runtime moves the others away.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
