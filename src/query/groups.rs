//! Grouped search: the nearest groups of rows that share a value, each with its nearest rows.
//!
//! First the usual search is followed as far as groups usually take. What it has not found by then may not exist, or lie
//! far behind the rows of groups that are full already. So the rest is a scan, of the rows that can still matter only:
//! it is exact, and when it is dry there are no more groups and no more rows of those that were found.

use crate::consistency::paging::{Leg, nearest_first};
use crate::consistency::recheck::Checking;
use crate::model::{Candidate, Ended, Filter, Hit, Recheck, RecheckReport, RowKey, Value};
use crate::query::rows::Outcome;
use crate::query::stream::{Bound, Pages, Stream};
use crate::storage::Result;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Candidates of the usual search for each row wanted.
const PER_ROW: usize = 10;
/// And at least so many.
const LEAST: usize = 2_000;
/// Candidates taken at a time, at first and at most.
const CHUNK: usize = 64;
const MAX_CHUNK: usize = 8_192;
/// Groups, and candidates of each, that are kept in case others turn out to be invisible.
const SPARE: usize = 32;

/// What groups are made of. The second implementation is the tests'.
pub trait Grouping: Send {
    /// Its searches.
    type Pages: Pages;

    /// The value that decides; `None` is NULL.
    fn value(&self, candidate: &Candidate) -> Option<Value>;

    /// A scan of the rows that pass this as well, on request in the exact order.
    fn scan(&self, condition: Filter, exact: bool) -> Self::Pages;
}

/// A value as a key. Values of one column can all be compared.
#[derive(Debug, Clone)]
pub(super) struct Same(pub(super) Option<Value>);

impl Ord for Same {
    fn cmp(&self, other: &Same) -> Ordering {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => a.compare(b).unwrap_or(Ordering::Equal),
            (a, b) => a.is_some().cmp(&b.is_some()),
        }
    }
}

impl PartialOrd for Same {
    fn partial_cmp(&self, other: &Same) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Same {
    fn eq(&self, other: &Same) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Same {}

/// One group so far.
struct Forming {
    value: Option<Value>,
    hits: Vec<Hit>,
    /// Not asked about yet.
    waiting: VecDeque<Candidate>,
    /// Some candidates were not kept.
    cut: bool,
}

impl Forming {
    /// Does it, or can it, have a row?
    fn is_alive(&self) -> bool {
        !self.hits.is_empty() || !self.waiting.is_empty()
    }
}

/// How many groups of how many rows.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Groups.
    pub groups: usize,
    /// Rows of each.
    pub size: usize,
    /// Rows farther than this belong to no group.
    pub max_distance: Option<f64>,
    /// The filter column that decides.
    pub column: usize,
}

/// A grouped search that is being filled.
pub struct Groups<'v, G: Grouping> {
    grouping: G,
    stream: Stream<'v, G::Pages>,
    except: &'v [RowKey],
    checking: Checking<'v>,
    wanted: Wanted,
    /// In the order in which they were met.
    forming: Vec<Forming>,
    places: BTreeMap<Same, usize>,
    /// Groups were met that were not kept.
    cut: bool,
    /// Group of each candidate of the last page.
    asked: HashMap<RowKey, usize>,
    /// Candidates that were met in the usual search; `None` while there was no other.
    met: HashSet<RowKey>,
    scanning: bool,
    chunk: usize,
    earlier: (usize, usize),
    pages: usize,
    report: RecheckReport,
    ended: Option<Ended>,
}

/// One group of the outcome.
pub struct Formed {
    /// `None` is NULL.
    pub value: Option<Value>,
    /// Nearest first.
    pub hits: Vec<Hit>,
}

impl<'v, G: Grouping> Groups<'v, G> {
    /// A search for groups. `scanning` when the stream is a scan already, so in exact order.
    pub fn new(
        grouping: G,
        stream: Stream<'v, G::Pages>,
        scanning: bool,
        except: &'v [RowKey],
        checking: Checking<'v>,
        wanted: Wanted,
    ) -> Groups<'v, G> {
        Groups {
            grouping,
            stream,
            except,
            checking,
            wanted,
            forming: Vec::new(),
            places: BTreeMap::new(),
            cut: false,
            asked: HashMap::new(),
            met: HashSet::new(),
            scanning,
            chunk: CHUNK.max(wanted.groups * wanted.size).min(MAX_CHUNK),
            earlier: (0, 0),
            pages: 0,
            report: RecheckReport { mode: checking.level, ..RecheckReport::default() },
            ended: None,
        }
    }

    /// The groups that the answer has if no candidate is invisible.
    fn chosen(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.forming.len()).filter(|&place| self.forming[place].is_alive()).take(self.wanted.groups)
    }

    /// Would the answer be full if all candidates were visible?
    fn is_enough(&self) -> bool {
        let full = |place: &usize| {
            let group = &self.forming[*place];
            group.hits.len() + group.waiting.len() >= self.wanted.size
        };
        self.chosen().filter(full).count() == self.wanted.groups
    }

    /// The candidates that the answer needs.
    fn page(&mut self) -> Vec<Candidate> {
        let mut page = Vec::new();
        self.asked.clear();
        for place in self.chosen().collect::<Vec<_>>() {
            let group = &mut self.forming[place];
            let missing = match self.wanted.size - group.hits.len() {
                0 => continue,
                missing if self.pages == 0 => missing,
                // Some were invisible, so that others may be as well.
                missing => missing.max(SPARE),
            };
            for candidate in group.waiting.drain(..missing.min(group.waiting.len())) {
                self.asked.insert(candidate.key.clone(), place);
                page.push(candidate);
            }
        }
        page
    }

    /// Takes more candidates; false when there are none.
    fn pull(&mut self) -> Result<bool> {
        let candidates = self.stream.next(self.chunk)?;
        self.chunk = (self.chunk * 2).min(MAX_CHUNK);
        let any = !candidates.is_empty();
        let mut alive = self.forming.iter().filter(|group| group.is_alive()).count();
        for candidate in candidates {
            if self.scanning && self.met.contains(&candidate.key) {
                continue;
            }
            let value = Same(self.grouping.value(&candidate));
            let place = match self.places.get(&value) {
                Some(&place) => place,
                None if alive >= self.wanted.groups + SPARE => {
                    self.cut = true;
                    continue;
                }
                None => {
                    alive += 1;
                    self.places.insert(value.clone(), self.forming.len());
                    let group = Forming { value: value.0, hits: Vec::new(), waiting: VecDeque::new(), cut: false };
                    self.forming.push(group);
                    self.forming.len() - 1
                }
            };
            let group = &mut self.forming[place];
            if group.hits.len() >= self.wanted.size {
                continue;
            }
            if group.waiting.len() >= self.wanted.size + SPARE {
                group.cut = true;
                continue;
            }
            if !self.scanning {
                self.met.insert(candidate.key.clone());
            }
            group.waiting.push_back(candidate);
        }
        Ok(any)
    }

    /// Has the usual search gone as far as it should?
    fn is_far_enough(&self) -> bool {
        let enough = LEAST.max(PER_ROW * self.wanted.groups * self.wanted.size);
        !self.scanning && self.stream.taken() >= enough
    }

    /// From here on the rows that can still matter are scanned.
    fn scan_the_rest(&mut self) {
        let full = |group: &&Forming| group.hits.len() >= self.wanted.size;
        let shown = self.forming.iter().filter(|group| !group.hits.is_empty());
        let condition = if shown.clone().count() >= self.wanted.groups {
            let values = shown.take(self.wanted.groups).filter(|group| !full(group)).map(|group| group.value.clone());
            one_of(self.wanted.column, values)
        } else {
            let values = self.forming.iter().filter(full).map(|group| group.value.clone());
            none_of(self.wanted.column, values)
        };
        self.earlier = (self.stream.taken(), self.stream.visited());
        let bound = self.stream.bound().map(|bound| Bound { margin: None, ..bound });
        self.stream = Stream::new(self.grouping.scan(condition, bound.is_some()), self.except, bound);
        self.scanning = true;
        self.chunk = CHUNK.max(self.wanted.groups * self.wanted.size).min(MAX_CHUNK);
        // The scan meets them again.
        self.cut = false;
        self.forming.iter_mut().for_each(|group| group.cut = false);
    }

    /// With nothing left to ask about.
    fn end(&mut self) -> Result<Ended> {
        let shown = self.chosen().count();
        let lost = self.chosen().any(|place| {
            let group = &self.forming[place];
            group.hits.len() < self.wanted.size && group.cut
        });
        Ok(if self.is_enough() {
            Ended::Limit
        } else if lost || (shown < self.wanted.groups && self.cut) {
            Ended::Budget
        } else {
            self.stream.ended()?.unwrap_or(Ended::Budget)
        })
    }

    /// What came of it.
    pub fn finish(self) -> Outcome<Formed> {
        let mut hits: Vec<_> = self.forming.into_iter().filter(|group| !group.hits.is_empty()).collect();
        hits.iter_mut().for_each(|group| group.hits.sort_by(nearest_first));
        // Those that were met first, and of them the nearest first.
        hits.truncate(self.wanted.groups);
        hits.sort_by(|a, b| nearest_first(&a.hits[0], &b.hits[0]));
        Outcome {
            doubtful: false,
            cut: false,
            hits: hits.into_iter().map(|Forming { value, hits, .. }| Formed { value, hits }).collect(),
            ended: self.ended.unwrap_or(Ended::Budget),
            report: self.report,
            pages: self.pages,
            next: None,
            taken: self.earlier.0 + self.stream.taken(),
            visited: self.earlier.1 + self.stream.visited(),
            given_up: self.stream.given_up(),
        }
    }
}

impl<G: Grouping> Leg for Groups<'_, G> {
    fn next_page(&mut self) -> Result<Vec<Candidate>> {
        while self.ended.is_none() {
            let may_pull = !self.is_enough() && !self.is_far_enough();
            if may_pull && self.pull()? {
                continue;
            }
            let page = self.page();
            if !page.is_empty() {
                return Ok(page);
            }
            if !self.is_enough() && self.is_far_enough() && self.stream.ended()?.is_none() {
                self.scan_the_rest();
            } else {
                self.ended = Some(self.end()?);
            }
        }
        Ok(Vec::new())
    }

    fn checking(&self) -> Checking<'_> {
        self.checking
    }

    fn take(&mut self, visible: Vec<Hit>) {
        self.pages += 1;
        if self.checking.level != Recheck::None {
            self.report.checked += self.asked.len();
            self.report.dropped += self.asked.len() - visible.len();
            self.report.refilled += if self.pages == 1 { 0 } else { visible.len().min(self.report.dropped) };
        }
        for hit in visible {
            let within = self.wanted.max_distance.is_none_or(|max| hit.distance <= max);
            if let Some(&place) = self.asked.get(&hit.key).filter(|_| within) {
                let hits = &mut self.forming[place].hits;
                if hits.len() < self.wanted.size {
                    hits.push(hit);
                }
            }
        }
    }

    fn give_up(&mut self) -> Result<()> {
        if self.ended.is_none() {
            let waits = self.chosen().any(|place| !self.forming[place].waiting.is_empty());
            let full = self.chosen().filter(|&place| self.forming[place].hits.len() >= self.wanted.size).count();
            self.ended = Some(match full == self.wanted.groups {
                true => Ended::Limit,
                false if waits => Ended::Budget,
                false => self.end()?,
            });
        }
        Ok(())
    }
}

/// Rows of these groups.
fn one_of(column: usize, values: impl Iterator<Item = Option<Value>>) -> Filter {
    let (nulls, values): (Vec<_>, Vec<_>) = values.partition(Option::is_none);
    let listed = Filter::In { column, values };
    match nulls.is_empty() {
        true => listed,
        false => Filter::Or(vec![Filter::IsNull { column }, listed]),
    }
}

/// Rows of all other groups. A NULL is in no list, and not outside of one either.
fn none_of(column: usize, values: impl Iterator<Item = Option<Value>>) -> Filter {
    let (nulls, values): (Vec<_>, Vec<_>) = values.partition(Option::is_none);
    let not_listed = Filter::Not(Box::new(Filter::In { column, values }));
    let is_null = Filter::IsNull { column };
    match nulls.is_empty() {
        true => Filter::Or(vec![is_null, not_listed]),
        false => Filter::And(vec![Filter::Not(Box::new(is_null)), not_listed]),
    }
}

#[cfg(test)]
mod tests;
