//! A place in the order of an answer: nearest first, ties by key.

use crate::model::key::RowKey;
use std::cmp::Ordering;

/// Behind which row the next page of a search begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Distance of that row by its indexed vector; NaN when undefined.
    pub distance: f64,
    /// Its key.
    pub key: RowKey,
    /// Rows of the pages so far.
    pub given: usize,
    /// Which copy of the collection it is a place in.
    pub copy: u64,
    /// Rows at this distance may have been left out before it.
    pub doubtful: bool,
}

impl Place {
    /// Does a row come behind it?
    pub fn is_before(&self, distance: f64, key: &RowKey) -> bool {
        nearer((self.distance, &self.key), (distance, key)).is_lt()
    }
}

/// By distance, undefined last; ties by key.
pub fn nearer(a: (f64, &RowKey), b: (f64, &RowKey)) -> Ordering {
    let by_distance = a.0.partial_cmp(&b.0);
    by_distance.unwrap_or_else(|| a.0.is_nan().cmp(&b.0.is_nan())).then_with(|| a.1.cmp(b.1))
}
