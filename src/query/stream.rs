//! The candidates of one search, nearest first: without the rows it was asked by, and with `max_distance` none beyond it.

use crate::engine::candidates::Candidates;
use crate::model::{Candidate, Ended, Place, RowKey, nearer};
use crate::storage::Result;
use std::collections::VecDeque;

/// Where candidates come from; the second implementation is the tests'.
pub trait Pages: Send {
    /// At most `want` further ones, nearest first; fewer only when there are no more.
    fn next_page(&mut self, want: usize) -> Result<Vec<Candidate>>;

    /// Distances computed so far.
    fn visited(&self) -> usize;

    /// Distances of walks that were given up for a scan, if they were.
    fn given_up(&self) -> Option<usize> {
        None
    }
}

impl Pages for Candidates<'_> {
    fn next_page(&mut self, want: usize) -> Result<Vec<Candidate>> {
        Candidates::next_page(self, want)
    }

    fn visited(&self) -> usize {
        Candidates::visited(self)
    }

    fn given_up(&self) -> Option<usize> {
        Candidates::given_up(self)
    }
}

/// How far to look.
///
/// Of a scan the first candidate beyond `max` proves that there are no more within it. A walk gives its candidates only
/// about in order, so it goes on until `margin` of them in a row, a whole search width, were beyond. By then every one
/// of the nearest R + `margin` rows it met has been followed, R being the rows within: one that is still missing is one
/// that a search for the nearest R + `margin` would miss as well. That is rare, and no proof.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// Largest distance that is within.
    pub max: f64,
    /// Candidates beyond it before a walk ends; of a scan, whose order is exact, `None`.
    pub margin: Option<usize>,
}

/// Candidates taken from the index at first where nobody knows how many are within the bound, and at most.
const CHUNK: usize = 64;
const MAX_CHUNK: usize = 4096;
/// Rows at one distance that are brought into the order of their keys.
const MAX_TIES: usize = 1_000;
/// Rows before a place that are taken at once, and that a walk is made wider for: a cursor is the caller's, whatever it says.
pub const MAX_SKIPPED: usize = 100_000;

/// An open search.
pub struct Stream<'v, P> {
    pages: P,
    except: &'v [RowKey],
    bound: Option<Bound>,
    after: Option<&'v Place>,
    /// Taken from the index and not given yet.
    ahead: VecDeque<Candidate>,
    beyond: usize,
    chunk: usize,
    end: Option<Ended>,
    taken: usize,
    /// At the distance of the place.
    tied: usize,
}

impl<'v, P: Pages> Stream<'v, P> {
    /// The candidates of `pages` except those rows, and none beyond the bound.
    pub fn new(pages: P, except: &'v [RowKey], bound: Option<Bound>) -> Stream<'v, P> {
        let chunk = bound.and_then(|bound| bound.margin).unwrap_or(0).max(CHUNK);
        Stream {
            pages,
            except,
            bound,
            after: None,
            ahead: VecDeque::new(),
            beyond: 0,
            chunk,
            end: None,
            taken: 0,
            tied: 0,
        }
    }

    /// The same, before its first page, without what comes before this place.
    pub fn behind(self, after: Option<&'v Place>) -> Stream<'v, P> {
        Stream { after, ..self }
    }

    /// At most `want` further ones, ties by key; fewer only when the stream has ended.
    pub fn next(&mut self, want: usize) -> Result<Vec<Candidate>> {
        if want == 0 {
            return Ok(Vec::new());
        }
        while self.end.is_none() && !self.is_settled(want) {
            let missing = (want + 1).saturating_sub(self.ahead.len());
            self.pull(if missing == 0 { self.chunk } else { missing })?;
        }
        self.ahead.make_contiguous().sort_by(|a, b| nearer((a.distance, &a.key), (b.distance, &b.key)));
        Ok(self.ahead.drain(..want.min(self.ahead.len())).collect())
    }

    /// Is it known which candidates come next, in which order? The one behind them is farther.
    fn is_settled(&self, want: usize) -> bool {
        let (Some(last), Some(behind)) = (self.ahead.get(want - 1), self.ahead.get(want)) else { return false };
        let tied = last.distance == behind.distance || (last.distance.is_nan() && behind.distance.is_nan());
        !tied || self.ahead.len() > want + MAX_TIES
    }

    /// Is it known that there are no more?
    pub fn is_exhausted(&self) -> bool {
        self.end.is_some() && self.ahead.is_empty()
    }

    /// Why there are no more, if so. May look for one.
    pub fn ended(&mut self) -> Result<Option<Ended>> {
        while self.ahead.is_empty() && self.end.is_none() {
            self.pull(1)?;
        }
        Ok(self.end.filter(|_| self.ahead.is_empty()))
    }

    fn pull(&mut self, missing: usize) -> Result<()> {
        // Those before the place come again, and nothing is wanted of them.
        let before = self.after.filter(|_| self.taken == 0).map_or(0, |after| after.given.min(MAX_SKIPPED));
        let want = if self.bound.is_some() { self.chunk } else { missing + self.except.len() + before };
        self.chunk = (self.chunk * 2).min(MAX_CHUNK);
        let page = self.pages.next_page(want)?;
        self.taken += page.len();
        if page.len() < want {
            self.end = Some(Ended::Dry);
        }
        for candidate in page {
            // Not `>`: an undefined distance is within nothing.
            if self.bound.is_some_and(|bound| candidate.distance > bound.max || candidate.distance.is_nan()) {
                self.beyond += 1;
            } else {
                self.beyond = 0;
                let distance = candidate.distance;
                let same = |place: &Place| place.distance == distance || place.distance.is_nan() && distance.is_nan();
                self.tied += usize::from(self.after.is_some_and(same));
                let wanted = self.after.is_none_or(|after| after.is_before(candidate.distance, &candidate.key));
                if wanted && !self.except.contains(&candidate.key) {
                    self.ahead.push_back(candidate);
                }
            }
        }
        let at = |bound: Bound| match bound.margin {
            None => (1, Ended::Dry),
            Some(margin) => (margin, Ended::Margin),
        };
        if let Some((margin, end)) = self.bound.map(at)
            && self.beyond >= margin
        {
            self.end.get_or_insert(end);
        }
        Ok(())
    }

    /// May rows at the distance of the place be missing? Of more than are brought into the order of their keys, the page before
    /// did not know them all.
    pub fn is_doubtful(&self) -> bool {
        self.tied > MAX_TIES
    }

    /// How far it looks.
    pub fn bound(&self) -> Option<Bound> {
        self.bound
    }

    /// Candidates taken from the index so far.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Distances computed so far.
    pub fn visited(&self) -> usize {
        self.pages.visited()
    }

    /// Distances of walks that were given up for a scan, if they were.
    pub fn given_up(&self) -> Option<usize> {
        self.pages.given_up()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::model::{Value, Version};

    /// A script of candidates: the key is the number, the distance stands beside it.
    pub struct Script(pub std::vec::IntoIter<(i64, f64)>);

    impl Script {
        pub fn new(rows: impl IntoIterator<Item = (i64, f64)>) -> Script {
            Script(rows.into_iter().collect::<Vec<_>>().into_iter())
        }
    }

    impl Pages for Script {
        fn next_page(&mut self, want: usize) -> Result<Vec<Candidate>> {
            let candidate =
                |(n, distance)| Candidate { key: key(n), distance, version: Version::default(), node: n as u32 };
            Ok(self.0.by_ref().take(want).map(candidate).collect())
        }

        fn visited(&self) -> usize {
            0
        }
    }

    pub fn key(n: i64) -> RowKey {
        RowKey::encode(&[Value::Int(n)]).expect("an integer can be a key")
    }

    pub fn number(key: &RowKey) -> i64 {
        match key.decode().as_deref() {
            Some([Value::Int(n)]) => *n,
            other => panic!("{other:?}"),
        }
    }

    fn numbers(page: Result<Vec<Candidate>>) -> Vec<i64> {
        page.expect("a page").iter().map(|candidate| number(&candidate.key)).collect()
    }

    #[test]
    fn a_walk_is_followed_until_a_whole_margin_is_beyond_the_bound() {
        // Out of order by less than the margin: 100 rows beyond, then one within, then only rows beyond.
        let rows = (0..50).map(|n| (n, 0.1)).chain((50..150).map(|n| (n, 2.0))).chain([(150, 0.5)]);
        let rows: Vec<_> = rows.chain((151..10_000).map(|n| (n, 3.0))).collect();
        let bound = |margin| Some(Bound { max: 1.0, margin });
        let mut stream = Stream::new(Script::new(rows.clone()), &[], bound(Some(101)));
        assert_eq!(numbers(stream.next(1_000)), (0..50).chain([150]).collect::<Vec<_>>());
        assert_eq!(stream.ended().expect("an end"), Some(Ended::Margin));
        assert!(stream.taken() < 1_000, "{}", stream.taken());
        // In exact order one is a proof.
        let mut sorted = rows;
        sorted.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut stream = Stream::new(Script::new(sorted), &[], bound(None));
        assert_eq!(numbers(stream.next(1_000)).len(), 51);
        assert_eq!(stream.ended().expect("an end"), Some(Ended::Dry));
    }

    #[test]
    fn undefined_distances_are_within_nothing() {
        let rows = [(1, 0.5), (2, f64::NAN)];
        let mut stream = Stream::new(Script::new(rows), &[], Some(Bound { max: f64::INFINITY, margin: Some(100) }));
        assert_eq!(numbers(stream.next(9)), [1]);
        assert_eq!(stream.ended().expect("an end"), Some(Ended::Dry));
        let mut stream = Stream::new(Script::new(rows), &[], None);
        assert_eq!(numbers(stream.next(9)), [1, 2], "without a bound they are rows like others");
    }

    #[test]
    fn examples_are_left_out_and_replaced() {
        let except = [key(0), key(2)];
        let mut stream = Stream::new(Script::new((0..100).map(|n| (n, n as f64))), &except, None);
        assert_eq!(numbers(stream.next(3)), [1, 3, 4]);
        assert_eq!(numbers(stream.next(2)), [5, 6]);
        assert_eq!(stream.ended().expect("none"), None, "which loses none");
        assert_eq!(numbers(stream.next(1)), [7]);
    }

    #[test]
    fn a_page_behind_more_ties_than_are_put_in_order_is_doubtful() {
        for (ties, doubtful) in [(900, false), (5_000, true)] {
            // Keys that descend: the rest of the tie belongs before what was given.
            let rows: Vec<_> = (0..ties).map(|n| (ties - n, 1.0)).chain([(9_999, 2.0)]).collect();
            let first = numbers(Stream::new(Script::new(rows.clone()), &[], None).next(10));
            let place = Place { distance: 1.0, key: key(first[9]), given: 10, copy: 0 };
            let mut stream = Stream::new(Script::new(rows), &[], None).behind(Some(&place));
            stream.next(10).expect("a page");
            assert_eq!(stream.is_doubtful(), doubtful, "{ties}");
        }
    }

    #[test]
    fn ties_come_by_key_whatever_their_order_here() {
        // Distances 0, 0, 0, 1, 1, 1, ... with keys that descend.
        let rows: Vec<_> = (0..99).map(|n| (98 - n, (n / 3) as f64)).collect();
        let expected: Vec<_> = (0..33).flat_map(|distance| (0..3).map(move |tie| 96 - 3 * distance + tie)).collect();
        for page in [1, 2, 4, 10, 98] {
            let mut stream = Stream::new(Script::new(rows.clone()), &[], None);
            let mut found = Vec::new();
            while found.len() < expected.len() {
                found.extend(numbers(stream.next(page)));
            }
            assert_eq!(found, expected, "by {page}");
            assert!(numbers(stream.next(1)).is_empty() && stream.is_exhausted());
        }
        let many = (0..5_000).map(|n| (5_000 - n, 0.0));
        let mut stream = Stream::new(Script::new(many), &[], None);
        assert_eq!(numbers(stream.next(10)).len(), 10);
        assert!(stream.taken() < 3_000, "{}", stream.taken());
    }

    #[test]
    fn behind_a_place_comes_what_is_farther_or_has_a_greater_key() {
        let rows: Vec<_> = (0..99).map(|n| (98 - n, (n / 3) as f64)).chain([(99, f64::NAN), (100, f64::NAN)]).collect();
        let all = numbers(Stream::new(Script::new(rows.clone()), &[], None).next(200));
        for at in 0..all.len() {
            let distance = rows.iter().find(|row| row.0 == all[at]).expect("in it").1;
            for given in [0, at + 1, usize::MAX] {
                let after = Place { distance, key: key(all[at]), given, copy: 0 };
                let mut stream = Stream::new(Script::new(rows.clone()), &[], None).behind(Some(&after));
                assert_eq!(numbers(stream.next(200)), all[at + 1..], "behind {at}, {given} given");
            }
        }
    }
}
