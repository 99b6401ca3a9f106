//! Rows at one distance of which there are too many to hold: as nodes only, given in the order of their keys.

use crate::model::{Candidate, RowKey};
use std::collections::BTreeMap;

/// Rows drawn at once, at first and at most: each draw looks at all that are tied.
const CHUNK: usize = 1_000;
const MAX_CHUNK: usize = 65_536;

/// All rows at a distance that were not given yet.
pub struct Tie {
    /// Their distance.
    pub distance: f64,
    nodes: Vec<u32>,
    /// Those up to here were drawn.
    last: Option<RowKey>,
    chunk: usize,
}

impl Tie {
    /// These nodes.
    pub fn new(distance: f64, nodes: Vec<u32>) -> Tie {
        Tie { distance, nodes, last: None, chunk: CHUNK }
    }

    /// The next ones that are wanted, by key, at least `want` of them where there are as many; and whether there are more.
    pub fn draw(
        &mut self,
        want: usize,
        candidate: impl Fn(u32) -> Option<Candidate>,
        is_wanted: impl Fn(&RowKey) -> bool,
    ) -> (Vec<Candidate>, bool) {
        let want = want.max(self.chunk);
        self.chunk = (self.chunk * 2).min(MAX_CHUNK);
        let (mut least, mut passing) = (BTreeMap::new(), 0);
        for candidate in self.nodes.iter().filter_map(|&node| candidate(node)) {
            let drawn = self.last.as_ref().is_some_and(|last| candidate.key <= *last);
            if drawn || !is_wanted(&candidate.key) {
                continue;
            }
            passing += 1;
            let greatest = least.last_key_value().map(|(key, _)| key);
            if least.len() < want || greatest.is_some_and(|greatest| candidate.key < *greatest) {
                least.insert(candidate.key.clone(), candidate);
            }
            if least.len() > want {
                least.pop_last();
            }
        }
        self.last = least.last_key_value().map(|(key, _)| key.clone()).or(self.last.take());
        let more = passing > least.len();
        (least.into_values().collect(), more)
    }
}
