//! The rows of a plan, made when they are asked for: where they come from, what they have to pass, order, limit.

use crate::consistency::blocking;
use crate::model::{Answer, Cell, CollectionDef, Filter, Hit, Lsn, RowKey, SearchRequest, Value, pgtype};
use crate::query::{Look, OpenSearch, Pinned, QueryError};
use crate::server::pg::plan::{Plan, Source};
use crate::server::pg::select::{Output, What};
use crate::server::pg::tables::{AboutAnswer, Column, Role, Table};
use crate::server::pg::{Service, User, fixed};
use crate::server::problem::{self, Problem};
use crate::source::SourceError;
use crate::storage::state::CollectionState;
use serde_json::{Map, Value as Json};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// A row of an answer.
pub type Row = Vec<Option<Value>>;

/// Rows taken from the index at once where something is filtered or sorted behind it.
const CHUNK: usize = 256;
/// The same, at most.
const MOST_PULLED: usize = 4096;
/// Rows that one statement may hold.
const MOST_HELD: usize = 1_000_000;

/// Where rows come from, opened.
enum Feed {
    Hits(VecDeque<Hit>, About),
    Open(OpenSearch),
    Every(Option<u32>),
    Rows(VecDeque<Row>),
    Dry,
}

/// What all rows of one answer say of it.
#[derive(Default)]
struct About {
    complete: bool,
    applied: Lsn,
    staleness_ms: Option<f64>,
    stale: Option<String>,
    plan: &'static str,
}

/// The rows of one statement.
pub struct Rows {
    service: Arc<Service>,
    view: Option<Pinned>,
    user: Arc<User>,
    plan: Plan,
    /// Of the collection that is searched, and its vector column.
    def: Option<(Arc<CollectionDef>, usize)>,
    feed: Option<Feed>,
    /// Columns of the table that are looked at.
    needed: Vec<bool>,
    /// Rows of the table that passed and were not given yet.
    ahead: VecDeque<Row>,
    skip: u64,
    left: Option<u64>,
    /// Where a share of the rows is drawn.
    random: RandomState,
    /// Rows of a scan that a viewer was asked about last.
    asked: usize,
}

impl Rows {
    /// The rows of a plan on a view. Nothing is searched before they are asked for.
    pub fn new(service: Arc<Service>, view: Option<Pinned>, user: Arc<User>, plan: Plan) -> Rows {
        let (skip, left, needed) = (plan.offset, plan.limit, needed(&plan));
        let (ahead, random, asked) = (VecDeque::new(), RandomState::new(), CHUNK / 2);
        Rows { service, view, user, plan, def: None, feed: None, needed, ahead, skip, left, random, asked }
    }

    /// At most `want` further rows; fewer only when there are no more.
    pub async fn next(&mut self, want: usize) -> Result<Vec<Row>, Problem> {
        let aggregate = self.plan.outputs.iter().any(|output| output.is_aggregate());
        let first = self.feed.is_none();
        if first {
            self.feed = Some(self.open().await?);
        }
        if first && aggregate {
            let row = self.aggregate().await?;
            return Ok(if self.left == Some(0) || self.skip > 0 { Vec::new() } else { vec![row] });
        }
        if first && !self.plan.order.is_empty() {
            while self.pull(MOST_PULLED).await? {
                self.check_held()?;
            }
            self.sort();
        }
        let want = self.left.map_or(want, |left| want.min(usize::try_from(left).unwrap_or(usize::MAX)));
        while self.ahead.len() < usize::try_from(self.skip).unwrap_or(usize::MAX).saturating_add(want) {
            let missing = want.saturating_sub(self.ahead.len());
            if !self.pull(missing).await? {
                break;
            }
            self.drop_skipped();
            self.check_held()?;
        }
        self.drop_skipped();
        let rows: Vec<_> = self.ahead.drain(..want.min(self.ahead.len())).collect();
        self.left = self.left.map(|left| left - rows.len() as u64);
        Ok(rows.iter().map(|row| self.shown(row)).collect())
    }

    fn drop_skipped(&mut self) {
        let skip = usize::try_from(self.skip).unwrap_or(usize::MAX).min(self.ahead.len());
        self.ahead.drain(..skip);
        self.skip -= skip as u64;
    }

    async fn open(&mut self) -> Result<Feed, Problem> {
        let view = || self.view.clone().ok_or_else(|| Problem::from(crate::consistency::frontier::NoView::NotLoaded));
        Ok(match &self.plan.source {
            Source::Nothing | Source::Unknown => Feed::Dry,
            Source::Impossible(problem) => return Err(problem.clone()),
            Source::One => Feed::Rows(VecDeque::from([Vec::new()])),
            Source::Fixed => {
                let rows = match &self.plan.table {
                    Some(Table::Collections) => fixed::collections(self.view.as_ref(), &self.user),
                    Some(Table::Indexes) => fixed::indexes(self.view.as_ref(), &self.user),
                    Some(Table::Tiers) => blocking(|| fixed::tiers(self.view.as_ref(), &self.user)),
                    Some(Table::Visibility) => fixed::visibility(&self.service.frontier, &self.user),
                    Some(Table::Registrations) => {
                        fixed::registrations(&self.service.frontier, self.view.as_ref(), &self.user)
                    }
                    _ => vec![fixed::status(&self.service.frontier)],
                };
                Feed::Rows(rows.into())
            }
            Source::Nearest(request) => {
                let view = view()?;
                let request = &self.with_columns(request)?;
                let answer = self.service.search_on(&view, request).await?;
                self.def = Some(searched(&view, &request.collection, request.using.as_deref())?);
                let about = About::of(&answer);
                Feed::Hits(answer.hits.into(), about)
            }
            Source::Open(request) => {
                let (view, request) = (view()?, self.with_columns(request)?);
                self.def = Some(searched(&view, &request.collection, request.using.as_deref())?);
                Feed::Open(self.service.open(view, request))
            }
            Source::Every(scan) => {
                let view = view()?;
                view.check(&scan.collection, &scan.consistency)?;
                self.check_vectors()?;
                self.def = Some((view.definition(&scan.collection)?, scan.column));
                Feed::Every(Some(0))
            }
        })
    }

    /// As it is asked: to a viewer columns are shown as the source shows them to it, and not as indexed.
    fn with_columns(&self, request: &SearchRequest) -> Result<SearchRequest, Problem> {
        self.check_vectors()?;
        let of_table = matches!(self.plan.table, Some(Table::Collection(_))) && request.viewer.is_some();
        let columns = if of_table { self.needed_columns() } else { request.columns.clone() };
        Ok(SearchRequest { columns, ..request.clone() })
    }

    /// Filter columns that are looked at.
    fn needed_columns(&self) -> Vec<String> {
        let columns = self.plan.columns.iter().zip(&self.needed);
        let needed = columns.filter(|(column, needed)| **needed && matches!(column.role, Role::Filter(_)));
        needed.map(|(column, _)| column.name.clone()).collect()
    }

    /// Vectors are those of the index, of which no role can be asked.
    fn check_vectors(&self) -> Result<(), Problem> {
        let is_vector = |column: &&Column| matches!(column.role, Role::Vector(_));
        let columns = self.plan.columns.iter().zip(&self.needed).filter(|(_, needed)| **needed);
        match columns.map(|(column, _)| column).find(is_vector) {
            Some(column) if self.plan.viewer().is_some() => {
                let detail = format!("column {:?} is not shown with the eyes of a role", column.name);
                Err(Problem::new(problem::NOT_ALLOWED, detail)
                    .hint("name other columns, and join the table for its vectors"))
            }
            _ => Ok(()),
        }
    }

    /// Those of the rows of a scan that are shown.
    async fn seen(&self, hits: Vec<Hit>) -> Result<Vec<Hit>, Problem> {
        let (Source::Every(scan), Some(view)) = (&self.plan.source, &self.view) else { return Ok(hits) };
        let Some(viewer) = &scan.viewer else { return Ok(hits) };
        let columns = &self.needed_columns();
        let (collection, filter, recheck) = (&scan.collection, scan.filter.as_ref(), scan.recheck);
        Ok(self.service.seen(view, Look { collection, filter, columns, recheck, viewer }, hits).await?)
    }

    /// Takes more rows from the source; false when there are none.
    async fn pull(&mut self, missing: usize) -> Result<bool, Problem> {
        let least = if self.plan.residual.is_some() || self.skip > 0 { CHUNK } else { 1 };
        let want = missing.clamp(least, MOST_PULLED);
        let (mut about, mut end) = (None, false);
        let hits = match self.feed.get_or_insert(Feed::Dry) {
            Feed::Dry => return Ok(false),
            Feed::Rows(rows) => {
                let rows = std::mem::take(rows);
                self.feed = Some(Feed::Dry);
                let pass = |row: &Row| self.plan.residual.as_ref().is_none_or(|filter| passes(filter, row));
                self.ahead.extend(rows.into_iter().filter(pass));
                return Ok(true);
            }
            Feed::Hits(hits, of_answer) => {
                let page: Vec<_> = hits.drain(..want.min(hits.len())).collect();
                end = hits.is_empty();
                about = Some(std::mem::take(of_answer));
                page
            }
            Feed::Open(open) => {
                let page = open.next(want).await.map_err(Problem::from)?;
                end = page.len() < want;
                page
            }
            Feed::Every(from) => match (*from, &self.plan.source, &self.view) {
                (Some(place), Source::Every(scan), Some(view)) => {
                    // Nothing else here waits: this is where a cancellation or the end of its time stops a scan.
                    tokio::task::yield_now().await;
                    // Of a share little is left of what is read, and so it may be of what a viewer sees.
                    let want = match &scan.viewer {
                        _ if self.plan.sample.is_some() => MOST_PULLED,
                        Some(_) => {
                            self.asked = (self.asked * 2).min(MOST_PULLED);
                            self.asked
                        }
                        None => want,
                    };
                    let (mut page, next) =
                        view.every(&scan.collection, scan.column, scan.filter.as_ref(), place, want)?;
                    *from = next;
                    if let Some(share) = self.plan.sample {
                        let drawn = |hit: &Hit| (self.random.hash_one(hit.node) as f64) < share * u64::MAX as f64;
                        page.retain(drawn);
                    }
                    page
                }
                _ => return Ok(false),
            },
        };
        let hits = self.seen(hits).await?;
        let rows = self.rows(hits, about.as_ref())?;
        self.ahead.extend(rows);
        match (&mut self.feed, about) {
            (Some(Feed::Hits(_, of_answer)), Some(about)) if !end => *of_answer = about,
            _ if end => self.feed = Some(Feed::Dry),
            _ => {}
        }
        Ok(true)
    }

    fn check_held(&self) -> Result<(), Problem> {
        if self.ahead.len() <= MOST_HELD {
            return Ok(());
        }
        let detail = format!("more than {MOST_HELD} rows would have to be held here");
        let hint = "order by the distance with a LIMIT, add conditions, or fetch fewer rows at once";
        Err(Problem::new(problem::TOO_MANY_ROWS, detail).hint(hint))
    }

    /// The rows of the table that these hits are, as far as they pass.
    fn rows(&self, hits: Vec<Hit>, about: Option<&About>) -> Result<Vec<Row>, QueryError> {
        let (Some(view), Some((def, searched))) = (&self.view, &self.def) else { return Ok(Vec::new()) };
        let wants_vector = |at: usize| {
            let is = |column: &Column| column.role == Role::Vector(at);
            self.plan.columns.iter().zip(&self.needed).any(|(column, needed)| *needed && is(column))
        };
        let mut vectors = match wants_vector(*searched) {
            false => Vec::new(),
            true => {
                let nodes: Vec<_> = hits.iter().map(|hit| hit.node).collect();
                view.vectors(&def.name, *searched, &nodes)?.into_iter().map(Some).collect()
            }
        };
        let by_source = self.plan.viewer().is_some();
        let mut rows = Vec::with_capacity(hits.len());
        for (number, hit) in hits.iter().enumerate() {
            let key = hit.key.decode().unwrap_or_default();
            let shown = if by_source { shown_columns(hit) } else { Map::new() };
            let mut row = Vec::with_capacity(self.plan.columns.len());
            for (column, needed) in self.plan.columns.iter().zip(&self.needed) {
                row.push(match column.role {
                    _ if !needed => None,
                    Role::Input(input) => self.plan.inputs.get(&input).cloned().flatten(),
                    Role::KeyText => Some(Value::Text(key_text(def, &hit.key, &key).into())),
                    Role::Key(at) => key.get(at).cloned(),
                    Role::Filter(_) if by_source => as_shown(&shown, column)?,
                    Role::Filter(at) => view.cell(&def.name, *searched, hit.node, at),
                    Role::Vector(at) if at == *searched => {
                        vectors.get_mut(number).and_then(Option::take).map(Value::from)
                    }
                    Role::Vector(at) => view.vector_of(&def.name, at, &hit.key)?.map(Value::from),
                    Role::Distance => Some(Value::Float(hit.distance)),
                    Role::Shown => hit.columns.as_ref().map(|json| Value::Text(json.get().into())),
                    Role::Answer(what) => about.and_then(|about| about.value(what)),
                    Role::Fixed(_) => None,
                });
            }
            if self.plan.residual.as_ref().is_none_or(|filter| passes(filter, &row)) {
                rows.push(row);
            }
        }
        Ok(rows)
    }

    fn shown(&self, row: &Row) -> Row {
        let value = |what: &What| match what {
            What::Column(at) => row.get(*at).cloned().flatten(),
            What::Linear { at, factor, sum } => match row.get(*at) {
                Some(Some(Value::Float(distance))) => Some(Value::Float(factor * distance + sum)),
                _ => None,
            },
            What::Constant(value) => value.clone(),
            What::Count | What::CountOf(_) | What::Extreme(..) => None,
        };
        self.plan.outputs.iter().map(|output| value(&output.what)).collect()
    }

    /// The one row that all rows make together.
    async fn aggregate(&mut self) -> Result<Row, Problem> {
        if let (Source::Every(scan), None, None, Some(view)) =
            (&self.plan.source, &self.plan.residual, self.plan.sample, &self.view)
            && scan.viewer.is_none()
            && self.plan.outputs.iter().all(|output| output.what == What::Count)
        {
            let (_, passing) = view.count(&scan.collection, scan.column, scan.filter.as_ref())?;
            self.feed = Some(Feed::Dry);
            return Ok(vec![Some(Value::Int(passing as i64)); self.plan.outputs.len()]);
        }
        let mut sums: Row = self.plan.outputs.iter().map(|output| output.none()).collect();
        while self.pull(MOST_PULLED).await? {
            for row in self.ahead.drain(..) {
                for (sum, output) in sums.iter_mut().zip(&self.plan.outputs) {
                    output.add(sum, &row);
                }
            }
        }
        Ok(sums)
    }

    fn sort(&mut self) {
        let order = std::mem::take(&mut self.plan.order);
        let rows = self.ahead.make_contiguous();
        let compare = |a: &Row, b: &Row| {
            let by = |(at, descending, nulls_first): &(usize, bool, bool)| match (&a[*at], &b[*at]) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) if *nulls_first => Ordering::Less,
                (Some(_), None) if *nulls_first => Ordering::Greater,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(a), Some(b)) => {
                    let order = a.compare(b).unwrap_or(Ordering::Equal);
                    if *descending { order.reverse() } else { order }
                }
            };
            order.iter().map(by).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        };
        blocking(|| rows.sort_by(compare));
    }
}

impl About {
    fn of(answer: &Answer) -> About {
        About {
            complete: answer.complete,
            applied: answer.applied_lsn,
            staleness_ms: answer.staleness.map(|age| age.as_secs_f64() * 1000.0),
            stale: answer.stale.clone(),
            plan: answer.stats.plan,
        }
    }

    fn value(&self, what: AboutAnswer) -> Option<Value> {
        let text = |text: &str| Value::Text(text.into());
        match what {
            AboutAnswer::Complete => Some(Value::Bool(self.complete)),
            AboutAnswer::AppliedLsn => fixed::lsn(self.applied),
            AboutAnswer::StalenessMs => self.staleness_ms.map(Value::Float),
            AboutAnswer::Stale => self.stale.as_deref().map(text),
            AboutAnswer::Plan => Some(text(self.plan)),
        }
    }
}

fn searched(view: &Pinned, collection: &str, using: Option<&str>) -> Result<(Arc<CollectionDef>, usize), QueryError> {
    let def = view.definition(collection)?;
    let column = def.vector(using).map_or(0, |(column, _)| column);
    Ok((def, column))
}

/// The columns of a row as the source shows them.
fn shown_columns(hit: &Hit) -> Map<String, Json> {
    hit.columns.as_ref().and_then(|json| serde_json::from_str(json.get()).ok()).unwrap_or_default()
}

/// The value of one of them.
fn as_shown(shown: &Map<String, Json>, column: &Column) -> Result<Option<Value>, QueryError> {
    let unread = |reason| {
        let problem = format!("the source shows a value of {:?} that is not understood: {reason}", column.name);
        SourceError::refused(problem, "rebuild the collection if the column's type was changed")
    };
    let json = shown.get(&column.name).unwrap_or(&Json::Null);
    Ok(pgtype::from_json(column.kind, json).map_err(unread)?)
}

fn passes(filter: &Filter, row: &Row) -> bool {
    let cells: Vec<_> = row.iter().map(|value| value.clone().map_or(Cell::Null, Cell::Value)).collect();
    filter.passes(&cells)
}

/// A key of one column as that, of several as a JSON object.
fn key_text(def: &CollectionDef, key: &RowKey, values: &[Value]) -> String {
    match (&def.key[..], values) {
        ([column], [value]) => pgtype::to_text_as(column.kind, value),
        (columns, values) if columns.len() == values.len() => {
            let json = |(column, value): (&crate::model::KeyColumn, &Value)| {
                (column.name.clone(), pgtype::to_json_as(column.kind, value))
            };
            let fields = columns.iter().zip(values).map(json);
            serde_json::Value::Object(fields.collect()).to_string()
        }
        _ => key.to_string(),
    }
}

/// Columns of the table that the plan looks at.
fn needed(plan: &Plan) -> Vec<bool> {
    let mut needed = vec![false; plan.columns.len()];
    let mut mark = |at: usize| needed.iter_mut().skip(at).take(1).for_each(|needed| *needed = true);
    plan.outputs.iter().filter_map(Output::column).for_each(&mut mark);
    plan.order.iter().for_each(|(at, ..)| mark(*at));
    plan.residual.iter().for_each(|filter| columns_of(filter, &mut mark));
    needed
}

fn columns_of(filter: &Filter, mark: &mut impl FnMut(usize)) {
    match filter {
        Filter::And(parts) | Filter::Or(parts) => parts.iter().for_each(|part| columns_of(part, mark)),
        Filter::Not(part) => columns_of(part, mark),
        Filter::Compare { column, .. } | Filter::In { column, .. } | Filter::IsNull { column } => mark(*column),
    }
}

/// A collection's state as a word.
pub fn state(state: &CollectionState) -> String {
    match state {
        CollectionState::Live => "live".into(),
        CollectionState::Copying => "copying".into(),
        CollectionState::Paused { reason } => format!("paused: {reason}"),
    }
}
