//! Values everyone talks about: no I/O, locks or async.

mod metric;

pub use metric::Metric;
