//! A query -> where its rows come from and what is done with them. Values in, values out: nothing is searched here.

use crate::model::{CollectionDef, Consistency, Filter, Recheck, SearchRequest, Value, Viewer};
use crate::query::Pinned;
use crate::server::pg::condition::{self, Distance, Known, Params, column_name, conjuncts, short, unsupported};
use crate::server::pg::inputs::{echo, first_distance, missing};
use crate::server::pg::select::{List, Output, Parts, parts, random_share};
use crate::server::pg::settings::Settings;
use crate::server::pg::tables::{Column, Input, Role, Table};
use crate::server::pg::types::Form;
use crate::server::pg::written::Writer;
use crate::server::pg::{User, functions};
use crate::server::problem::Problem;
use sqlparser::ast::{BinaryOperator, Expr, Query};
use std::collections::BTreeMap;

/// Where rows come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The nearest rows, a number of them.
    Nearest(Box<SearchRequest>),
    /// Rows nearest first, as many as are asked for.
    Open(Box<SearchRequest>),
    /// All rows of a collection that pass.
    Every(Scan),
    /// The rows of a fixed table.
    Fixed,
    /// One row, of constants.
    One,
    /// An input is NULL: no row is equal to that.
    Nothing,
    /// A value is not known: the statement is only described or explained.
    Unknown,
    /// It cannot be run, only explained.
    Impossible(Problem),
}

/// Rows that are not searched for.
#[derive(Debug, Clone)]
pub struct Scan {
    /// The collection.
    pub collection: String,
    /// Place of the vector column whose rows they are.
    pub column: usize,
    /// What they have to pass.
    pub filter: Option<Filter>,
    /// How new the answer has to be.
    pub consistency: Consistency,
    /// How sure, where somebody's eyes decide; else they are given as indexed.
    pub recheck: Recheck,
    /// With whose eyes they are checked.
    pub viewer: Option<Viewer>,
}

impl Scan {
    /// All rows of a collection, as they are now.
    pub fn of(def: &CollectionDef) -> Scan {
        Scan {
            collection: def.name.clone(),
            column: 0,
            filter: None,
            consistency: Consistency::default(),
            recheck: Recheck::None,
            viewer: None,
        }
    }
}

/// What a statement does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The table; none for constants.
    pub table: Option<Table>,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Columns of the answer.
    pub outputs: Vec<Output>,
    /// Where rows come from.
    pub source: Source,
    /// The share of all rows that is drawn; none: all of them.
    pub sample: Option<f64>,
    /// What rows have to pass that the source does not see to.
    pub residual: Option<Filter>,
    /// What they are sorted by here: place, descending, NULLs first. Empty where they come in order, or need none.
    pub order: Vec<(usize, bool, bool)>,
    /// Rows left out at the start.
    pub offset: u64,
    /// Rows at most.
    pub limit: Option<u64>,
    /// The inputs as they were given.
    pub inputs: BTreeMap<Input, Option<Value>>,
}

impl Plan {
    /// With whose eyes its rows are checked, where not with our own.
    pub fn viewer(&self) -> Option<&Viewer> {
        match &self.source {
            Source::Nearest(request) | Source::Open(request) => request.viewer.as_ref(),
            Source::Every(scan) => scan.viewer.as_ref(),
            _ => None,
        }
    }
}

/// What a plan depends on beside the query.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The collections; none while no data is loaded.
    pub view: Option<&'a Pinned>,
    /// Who asks.
    pub user: &'a User,
    /// The session's settings.
    pub settings: &'a Settings,
    /// Values of parameters.
    pub params: Params<'a>,
    /// Must all statements of the transaction see the same? Then the source is not asked.
    pub repeatable: bool,
}

impl Context<'_> {
    /// How sure answers are where nobody says it.
    pub(super) fn usual_recheck(&self) -> Recheck {
        if self.repeatable { Recheck::None } else { Recheck::Exists }
    }
}

/// The plan of a query.
pub fn plan(query: &Query, context: Context<'_>) -> Result<Plan, Problem> {
    let parts = parts(query)?;
    let Some(name) = &parts.table else {
        let outputs = functions::outputs(parts.projection, context)?;
        let source = constant_source(parts.condition, context.params)?;
        return Planner::new(context, None, &parts).finish(outputs, source, None, Vec::new());
    };
    let table = Table::find(name, context.view, context.user)?;
    let columns = table.columns();
    Planner { columns, ..Planner::new(context, Some(table), &parts) }.run()
}

/// One row, unless the condition says no.
fn constant_source(condition: Option<&Expr>, params: Params<'_>) -> Result<Source, Problem> {
    let Some(condition) = condition else { return Ok(Source::One) };
    match params.constant(condition)? {
        Known::Text(Some(text)) if text == "true" => Ok(Source::One),
        Known::Text(Some(text)) if text == "false" => Ok(Source::Nothing),
        Known::Text(None) => Ok(Source::Nothing),
        Known::Unknown => Ok(Source::Unknown),
        _ => Err(unsupported("WHERE without a table")),
    }
}

pub(super) struct Planner<'a, 'q> {
    pub(super) columns: Vec<Column>,
    pub(super) table: Option<Table>,
    pub(super) context: Context<'a>,
    pub(super) parts: &'a Parts<'q>,
    pub(super) inputs: BTreeMap<Input, (Known, &'q Expr)>,
    /// Are all rows made one?
    pub(super) aggregate: bool,
    /// The share of all rows that is drawn.
    pub(super) sample: Option<f64>,
}

impl<'a, 'q> Planner<'a, 'q> {
    fn new(context: Context<'a>, table: Option<Table>, parts: &'a Parts<'q>) -> Planner<'a, 'q> {
        Planner {
            columns: Vec::new(),
            table,
            context,
            parts,
            inputs: BTreeMap::new(),
            aggregate: false,
            sample: parts.sample,
        }
    }

    fn run(mut self) -> Result<Plan, Problem> {
        let columns = self.columns.clone();
        let distance = self.find_distance();
        let params = self.context.params;
        let vectors = columns.clone();
        let is_vector = move |name: &str| vectors.iter().any(|c| c.name == name && matches!(c.role, Role::Vector(_)));
        let is_distance = |expr: &Expr| {
            let found = condition::distance(expr, &is_vector);
            found.zip(distance.as_ref()).is_some_and(|(a, b)| a.is_same(b, params))
        };
        let list = List { columns: &columns, is_distance: &is_distance };
        let outputs = list.outputs(self.parts.projection)?;
        self.aggregate = outputs.iter().any(Output::is_aggregate);
        let order = self.order(&list, &outputs)?;
        let distance_column = list.distance().map(|at| columns[at].name.clone()).unwrap_or_default();
        let is_lsn = |name: &str| columns.iter().any(|column| column.name == name && column.form == Form::Lsn);
        let params = self.context.params;
        let writer = Writer { params, is_distance: &is_distance, distance_column: &distance_column, is_lsn: &is_lsn };
        let mut conditions = Vec::new();
        for conjunct in self.parts.condition.map(conjuncts).unwrap_or_default() {
            if let Some(share) = random_share(conjunct) {
                self.sample = Some(self.sample.unwrap_or(1.0) * share.clamp(0.0, 1.0));
            } else if !self.take_input(conjunct)? {
                let written = writer.write(conjunct)?;
                written.columns.iter().try_for_each(|name| list.place(name).map(drop))?;
                conditions.push(written);
            }
        }
        let nulls = self.inputs.values().any(|(known, _)| *known == Known::Text(None));
        let unknown = self.inputs.values().any(|(known, _)| *known == Known::Unknown)
            || conditions.iter().any(|condition| condition.unknown);
        let distance = distance.clone();
        let (source, residual, native) = match &self.table {
            _ if nulls => (Source::Nothing, None, true),
            Some(Table::Search | Table::Stream) => {
                let source =
                    if unknown { Source::Unknown } else { self.function_source(&order, conditions.is_empty())? };
                // Those are in an order of their own.
                let diverse = matches!(&source, Source::Nearest(request) if request.shape.mmr.is_some());
                (source, self.residual(&conditions)?, !diverse)
            }
            Some(Table::Collection(_)) if distance.is_none() && !self.inputs.contains_key(&Input::Query) => {
                match self.needs_query(&outputs, &order, &conditions) {
                    true => (Source::Impossible(missing("_query")), None, false),
                    false => self.scan(conditions)?,
                }
            }
            Some(Table::Collection(_)) => self.collection_source(distance, conditions, &order)?,
            _ => (Source::Fixed, self.residual(&conditions)?, false),
        };
        if self.sample.is_some() && !matches!(source, Source::Every(_) | Source::Unknown | Source::Impossible(_)) {
            return Err(unsupported("a random sample of anything but the rows of a collection"));
        }
        let native = native && self.starts_with_distance(&order) && order.len() == 1;
        let order = if native { Vec::new() } else { order };
        self.finish(outputs, source, residual, order)
    }

    fn finish(
        self,
        outputs: Vec<Output>,
        source: Source,
        residual: Option<Filter>,
        order: Vec<(usize, bool, bool)>,
    ) -> Result<Plan, Problem> {
        let number = |expr: Option<&Expr>, what| expr.map(|expr| self.context.params.number(expr, what)).transpose();
        let offset = number(self.parts.offset, "OFFSET")?.flatten().unwrap_or(0);
        let limit = number(self.parts.limit, "LIMIT")?.flatten();
        let shown = |(input, (known, _)): (&Input, &(Known, &Expr))| (*input, echo(*input, known));
        let inputs = self.inputs.iter().map(shown).collect();
        let Planner { table, columns, sample, .. } = self;
        Ok(Plan { table, columns, outputs, source, sample, residual, order, offset, limit, inputs })
    }

    /// The first distance between a vector column and something in the statement.
    fn find_distance(&self) -> Option<Distance<'q>> {
        let Some(Table::Collection(_)) = &self.table else { return None };
        let is_vector = |name: &str| {
            self.columns.iter().any(|column| column.name == name && matches!(column.role, Role::Vector(_)))
        };
        let projected = self.parts.projection.iter().filter_map(|item| match item {
            sqlparser::ast::SelectItem::UnnamedExpr(expr) | sqlparser::ast::SelectItem::ExprWithAlias { expr, .. } => {
                Some(expr)
            }
            _ => None,
        });
        let ordered = self.parts.order.iter().map(|(expr, ..)| *expr);
        let exprs = ordered.chain(self.parts.condition).chain(projected);
        exprs.filter_map(|expr| first_distance(expr, &is_vector)).next()
    }

    fn order(&self, list: &List<'_>, outputs: &[Output]) -> Result<Vec<(usize, bool, bool)>, Problem> {
        let found = |expr: &Expr| -> Result<usize, Problem> {
            if (list.is_distance)(expr) {
                return list.distance().ok_or_else(|| unsupported("a distance here"));
            }
            let of_output = |output: &Output| match output.what {
                crate::server::pg::select::What::Column(at) => Ok(at),
                _ => Err(unsupported(format!("ORDER BY {}", short(expr)))),
            };
            if let Expr::Value(value) = expr
                && let Ok(number) = value.value.to_string().parse::<usize>()
            {
                let output = number.checked_sub(1).and_then(|at| outputs.get(at));
                return of_output(output.ok_or_else(|| unsupported(format!("ORDER BY {number}")))?);
            }
            let name = column_name(expr).ok_or_else(|| unsupported(format!("ORDER BY {}", short(expr))))?;
            match outputs.iter().find(|output| output.name == name) {
                Some(output) => of_output(output),
                None => list.place(&name),
            }
        };
        let place = |expr: &Expr| {
            let at = found(expr)?;
            match self.columns[at].role {
                Role::Vector(_) | Role::Input(Input::Query) => {
                    Err(unsupported(format!("ORDER BY {}, a vector,", short(expr))))
                }
                _ => Ok(at),
            }
        };
        self.parts.order.iter().map(|(expr, descending, first)| Ok((place(expr)?, *descending, *first))).collect()
    }

    pub(super) fn starts_with_distance(&self, order: &[(usize, bool, bool)]) -> bool {
        matches!(order.first(), Some((at, false, false)) if self.columns[*at].role == Role::Distance)
    }

    /// Is it `input = constant`? Then it is taken.
    fn take_input(&mut self, expr: &'q Expr) -> Result<bool, Problem> {
        let input = |side: &Expr| {
            let name = column_name(side)?;
            match self.columns.iter().find(|column| column.name == name)?.role {
                Role::Input(input) => Some(input),
                _ => None,
            }
        };
        let Expr::BinaryOp { left, op, right } = expr else { return Ok(false) };
        let equal = match op {
            BinaryOperator::Eq => true,
            BinaryOperator::PGCustomBinaryOperator(pieces) => pieces.last().is_some_and(|piece| piece == "="),
            _ => false,
        };
        let found = input(left).map(|input| (input, &**right)).or_else(|| Some((input(right)?, &**left)));
        let Some((input, constant)) = found.filter(|_| equal) else { return Ok(false) };
        let known = self.context.params.constant(constant)?;
        match self.inputs.insert(input, (known, constant)) {
            None => Ok(true),
            Some(_) => Err(unsupported("an input that is given twice")),
        }
    }

    pub(super) fn text(&self, input: Input) -> Option<String> {
        match self.inputs.get(&input) {
            Some((Known::Text(text), _)) => text.clone(),
            _ => None,
        }
    }
}

/// How new the answer has to be.
pub fn consistency(source: &Source) -> Option<&Consistency> {
    match source {
        Source::Nearest(request) | Source::Open(request) => Some(&request.consistency),
        Source::Every(scan) => Some(&scan.consistency),
        _ => None,
    }
}
