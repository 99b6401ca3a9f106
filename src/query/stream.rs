//! The candidates of one search, nearest first: without the rows it was asked by, and with `max_distance` none beyond it.

use crate::engine::candidates::Candidates;
use crate::model::{Candidate, Ended, Place, RowKey, nearer};
use crate::query::ties::Tie;
use crate::storage::Result;
use std::collections::VecDeque;

/// Where candidates come from; the second implementation is the tests'.
pub trait Pages: Send {
    /// At most `want` further ones, nearest first; fewer only when there are no more.
    fn next_page(&mut self, want: usize) -> Result<Vec<Candidate>>;

    /// Distances computed so far.
    fn visited(&self) -> usize;

    /// All further ones at this distance, by node, in no order. `None` where that is not known without looking at all: of
    /// a walk.
    fn tied(&mut self, distance: f64) -> Result<Option<Vec<u32>>>;

    /// One of those; `None` where it has no row.
    fn candidate(&self, node: u32, distance: f64) -> Option<Candidate>;

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

    fn tied(&mut self, distance: f64) -> Result<Option<Vec<u32>>> {
        Candidates::tied(self, distance)
    }

    fn candidate(&self, node: u32, distance: f64) -> Option<Candidate> {
        Candidates::candidate(self, node, distance)
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
/// Rows at one distance that are held to be brought into the order of their keys. Of more a scan is asked for all there are,
/// and a walk goes on, which may leave some out.
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
    /// Too many at one distance to be ahead, and behind all that is.
    tie: Option<Tie>,
    /// Taken already, and behind the tie.
    behind_tie: Vec<Candidate>,
    /// All rows at this distance are ahead, or were given.
    whole: Option<f64>,
    /// Rows at this distance were given before all of them were known.
    cut: Option<f64>,
}

/// Is it one distance?
fn same(a: f64, b: f64) -> bool {
    a == b || a.is_nan() && b.is_nan()
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
            tie: None,
            behind_tie: Vec::new(),
            whole: None,
            cut: None,
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
        loop {
            if self.tie.is_some() && self.ahead.len() < want {
                self.draw(want - self.ahead.len());
            } else if self.tie.is_some() || self.end.is_some() || self.is_settled(want) {
                break;
            } else if self.ahead.len() > want + MAX_TIES {
                let distance = self.ahead[want - 1].distance;
                if !self.gather(distance)? {
                    self.cut = Some(distance);
                    break;
                }
            } else {
                let missing = (want + 1).saturating_sub(self.ahead.len());
                self.pull(if missing == 0 { self.chunk } else { missing })?;
            }
        }
        self.ahead.make_contiguous().sort_by(|a, b| nearer((a.distance, &a.key), (b.distance, &b.key)));
        Ok(self.ahead.drain(..want.min(self.ahead.len())).collect())
    }

    /// Is it known which candidates come next, in which order? There is a farther one behind them and all that are as far as
    /// the last of them.
    fn is_settled(&self, want: usize) -> bool {
        let (Some(last), Some(behind)) = (self.ahead.get(want - 1), self.ahead.back()) else { return false };
        let whole = self.whole.is_some_and(|distance| same(distance, last.distance));
        self.ahead.len() > want && (whole || !same(last.distance, behind.distance))
    }

    /// Makes a tie of all there are at a distance, if that is known.
    fn gather(&mut self, distance: f64) -> Result<bool> {
        let Some(mut nodes) = self.pages.tied(distance)? else { return Ok(false) };
        self.taken += nodes.len();
        for candidate in std::mem::take(&mut self.ahead) {
            if same(candidate.distance, distance) {
                nodes.push(candidate.node);
            } else if candidate.distance < distance || distance.is_nan() {
                self.ahead.push_back(candidate);
            } else {
                self.behind_tie.push(candidate);
            }
        }
        self.tie = Some(Tie::new(distance, nodes));
        Ok(true)
    }

    /// Takes candidates of the tie, with which what is behind it may come into sight.
    fn draw(&mut self, want: usize) {
        let Some(tie) = &mut self.tie else { return };
        let (distance, pages, except, after) = (tie.distance, &self.pages, self.except, self.after);
        let is_wanted =
            |key: &RowKey| after.is_none_or(|after| after.is_before(distance, key)) && !except.contains(key);
        let (drawn, more) = tie.draw(want, |node| pages.candidate(node, distance), is_wanted);
        self.ahead.extend(drawn);
        if !more {
            (self.tie, self.whole) = (None, Some(distance));
            self.ahead.extend(self.behind_tie.drain(..));
        }
    }

    /// Is it known that there are no more?
    pub fn is_exhausted(&self) -> bool {
        self.end.is_some() && self.ahead.is_empty() && self.tie.is_none()
    }

    /// Why there are no more, if so. May look for one.
    pub fn ended(&mut self) -> Result<Option<Ended>> {
        while self.ahead.is_empty() && (self.tie.is_some() || self.end.is_none()) {
            match self.tie {
                Some(_) => self.draw(1),
                None => self.pull(1)?,
            }
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

    /// May rows that belong before this one never have been on a page? Of its distance there were more than a walk was
    /// followed for.
    pub fn is_doubtful(&self, distance: f64) -> bool {
        let before = self.after.filter(|after| after.doubtful).map(|after| after.distance);
        self.cut.into_iter().chain(before).any(|doubtful| same(doubtful, distance))
    }

    /// Is it a page behind such a place?
    pub fn begins_in_doubt(&self) -> bool {
        self.after.is_some_and(|after| after.doubtful)
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
    pub struct Script {
        rows: std::iter::Peekable<std::vec::IntoIter<(i64, f64)>>,
        walks: bool,
    }

    impl Script {
        /// As of a scan.
        pub fn new(rows: impl IntoIterator<Item = (i64, f64)>) -> Script {
            Script { rows: rows.into_iter().collect::<Vec<_>>().into_iter().peekable(), walks: false }
        }

        /// As of a walk.
        pub fn walk(rows: impl IntoIterator<Item = (i64, f64)>) -> Script {
            Script { walks: true, ..Script::new(rows) }
        }
    }

    impl Pages for Script {
        fn next_page(&mut self, want: usize) -> Result<Vec<Candidate>> {
            let candidate =
                |(n, distance)| Candidate { key: key(n), distance, version: Version::default(), node: n as u32 };
            Ok(self.rows.by_ref().take(want).map(candidate).collect())
        }

        fn tied(&mut self, distance: f64) -> Result<Option<Vec<u32>>> {
            if self.walks {
                return Ok(None);
            }
            let next = || self.rows.next_if(|row| same(row.1, distance));
            Ok(Some(std::iter::from_fn(next).map(|row| row.0 as u32).collect()))
        }

        fn candidate(&self, node: u32, distance: f64) -> Option<Candidate> {
            Some(Candidate { key: key(node.into()), distance, version: Version::default(), node })
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
    fn a_walk_that_cuts_a_tie_says_so_and_a_scan_cuts_none() {
        for (ties, walks, cut) in [(900, true, false), (5_000, true, true), (5_000, false, false)] {
            // Keys that descend: the rest of the tie belongs before what was given.
            let rows: Vec<_> = (0..ties).map(|n| (ties - n, 1.0)).chain([(9_999, 2.0)]).collect();
            let script = || Script { walks, ..Script::new(rows.clone()) };
            let mut stream = Stream::new(script(), &[], None);
            let first = numbers(stream.next(10));
            assert_eq!((stream.is_doubtful(1.0), stream.is_doubtful(2.0)), (cut, false), "{ties}");
            let place = Place { distance: 1.0, key: key(first[9]), given: 10, copy: 0, doubtful: cut };
            let mut stream = Stream::new(script(), &[], None).behind(Some(&place));
            stream.next(10).expect("a page");
            assert_eq!((stream.begins_in_doubt(), stream.is_doubtful(1.0)), (cut, cut), "{ties}");
        }
    }

    #[test]
    fn pages_behind_any_number_of_ties_lose_nothing() {
        // 12,000 rows at one distance, 3,000 at none, in no order of their keys; some rows before, between and behind.
        let shuffled = |from: i64, many: i64| (0..many).map(move |n| from + n * 7_919 % many);
        let near = shuffled(20_000, 40).map(|n| (n, (n / 10) as f64 / 1e6));
        let tied = shuffled(0, 12_000).map(|n| (n, 1.0));
        let undefined = shuffled(40_000, 3_000).map(|n| (n, f64::NAN));
        let rows = near.chain(tied).chain([(30_001, 2.0), (30_000, 2.0)]).chain(undefined);
        let mut rows: Vec<(i64, f64)> = rows.collect();
        rows[..40].sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut expected = rows.clone();
        expected.sort_by(|a, b| nearer((a.1, &key(a.0)), (b.1, &key(b.0))));
        let expected: Vec<_> = expected.into_iter().map(|row| row.0).collect();
        let except = [key(77), key(11_999), key(40_001)];
        let left: Vec<_> = expected.iter().copied().filter(|n| ![77, 11_999, 40_001].contains(n)).collect();
        // One stream, and one page after the other.
        let mut stream = Stream::new(Script::new(rows.clone()), &except, None);
        let mut found = Vec::new();
        for page in [1, 39, 5, 2_000].into_iter().chain(std::iter::repeat(777)) {
            let page = numbers(stream.next(page));
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        assert!(found == left && stream.is_exhausted());
        let (mut found, mut place): (Vec<_>, Option<Place>) = (Vec::new(), None);
        loop {
            let mut stream = Stream::new(Script::new(rows.clone()), &[], None).behind(place.as_ref());
            let page = stream.next(1_003).expect("a page");
            found.extend(page.iter().map(|candidate| number(&candidate.key)));
            let Some(last) = page.last() else { break };
            assert!(!stream.is_doubtful(last.distance));
            place = Some(Place {
                distance: last.distance,
                key: last.key.clone(),
                given: found.len(),
                copy: 0,
                doubtful: false,
            });
        }
        assert!(found == expected, "{} of {}", found.len(), expected.len());
        // The last one of a tie, and of a tie of which nothing is wanted.
        let only: Vec<_> = shuffled(0, 5_000).map(|n| (n, 1.0)).collect();
        for (at, left) in [(4_998, 1), (4_999, 0)] {
            let place = Place { distance: 1.0, key: key(at), given: 0, copy: 0, doubtful: false };
            let mut stream = Stream::new(Script::new(only.clone()), &[], None).behind(Some(&place));
            assert_eq!(numbers(stream.next(10)).len(), left);
            assert_eq!(stream.ended().expect("no file is read"), Some(Ended::Dry));
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
        let mut stream = Stream::new(Script::walk(many), &[], None);
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
                let after = Place { distance, key: key(all[at]), given, copy: 0, doubtful: false };
                let mut stream = Stream::new(Script::new(rows.clone()), &[], None).behind(Some(&after));
                assert_eq!(numbers(stream.next(200)), all[at + 1..], "behind {at}, {given} given");
            }
        }
    }
}
