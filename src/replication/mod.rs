//! The source's changes on their way in: what the bytes of the slot and of the initial copy say.

pub mod copy_rows;
pub mod frame;
pub mod pgoutput;
