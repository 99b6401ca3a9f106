//! A query -> where its rows come from and what is done with them. Values in, values out: nothing is searched here.

use crate::consistency::frontier::NoView;
use crate::model::{
    CollectionDef, ColumnType, Comparison, Consistency, Filter, FilterColumn, MAX_LIMIT, Recheck, SearchBy,
    SearchRequest, Shape, Value,
};
use crate::query::{Pinned, filter};
use crate::server::http::{search as body, vector};
use crate::server::pg::condition::{
    self, Distance, Known, Params, Writer, Written, column_name, conjuncts, short, unsupported,
};
use crate::server::pg::inputs::{
    all_of, check_metric, check_open, check_scan, check_shown, echo, equalities, filter_and_consistency,
    first_distance, missing,
};
use crate::server::pg::select::{List, Output, Parts, parts, random_share};
use crate::server::pg::settings::Settings;
use crate::server::pg::tables::{Column, Input, Role, Table};
use crate::server::pg::{User, functions};
use crate::server::problem::{self, Problem};
use serde_json::{Map, Value as Json, json};
use sqlparser::ast::{BinaryOperator, Expr, Query};
use std::collections::BTreeMap;

/// Rows that are probably wanted of a search without an end.
const USUAL: usize = 100;

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
}

impl Scan {
    /// All rows of a collection, as they are now.
    pub fn of(def: &CollectionDef) -> Scan {
        Scan { collection: def.name.clone(), column: 0, filter: None, consistency: Consistency::default() }
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
    fn recheck(&self) -> Recheck {
        self.settings.recheck().unwrap_or(if self.repeatable { Recheck::None } else { Recheck::Exists })
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

struct Planner<'a, 'q> {
    columns: Vec<Column>,
    table: Option<Table>,
    context: Context<'a>,
    parts: &'a Parts<'q>,
    inputs: BTreeMap<Input, (Known, &'q Expr)>,
    /// Are all rows made one?
    aggregate: bool,
    /// The share of all rows that is drawn.
    sample: Option<f64>,
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
        let writer =
            Writer { params: self.context.params, is_distance: &is_distance, distance_column: &distance_column };
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

    fn starts_with_distance(&self, order: &[(usize, bool, bool)]) -> bool {
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

    fn text(&self, input: Input) -> Option<String> {
        match self.inputs.get(&input) {
            Some((Known::Text(text), _)) => text.clone(),
            _ => None,
        }
    }

    /// `plain`: nothing is filtered behind the search, so LIMIT can stand for k.
    fn function_source(&self, order: &[(usize, bool, bool)], plain: bool) -> Result<Source, Problem> {
        let Some(collection) = self.text(Input::Collection) else {
            return Ok(Source::Impossible(missing("collection")));
        };
        let view = self.context.view.ok_or_else(|| Problem::from(NoView::NotLoaded))?;
        let def = view.definition(&collection).ok().filter(|_| self.context.user.may_see(&collection));
        // One answer, whether it is hidden or is not there.
        let def = def.ok_or_else(|| self.hidden(&collection))?;
        let mut options = self.options()?;
        self.apply_settings(&mut options);
        let query = options.entry("query").or_insert_with(|| json!({}));
        let using = query.get("using").and_then(Json::as_str).map(str::to_owned);
        let by_other = query.get("id").is_some() || query.get("recommend").is_some();
        let kind = def.vector(using.as_deref()).map_or(ColumnType::Float4Array, |(_, column)| column.kind);
        let given = match self.inputs.get(&Input::Query) {
            Some((known, _)) => condition::vector(known.clone(), kind)?,
            None => None,
        };
        if given.is_none() && !by_other {
            return Ok(Source::Impossible(missing("query")));
        }
        self.add_filter(&mut options)?;
        let stream = matches!(self.table, Some(Table::Stream));
        if let Some(k) = self.text(Input::K) {
            let k: u64 = k.trim().parse().map_err(|_| Problem::new(problem::LIMIT, format!("k is {k:?}")))?;
            options.insert("limit".into(), json!(k));
        } else if stream {
            options.insert("limit".into(), json!(self.wanted(order).unwrap_or(USUAL)));
        } else if !options.contains_key("limit") {
            let Some(limit) = self.wanted(order).filter(|_| plain) else {
                return Ok(Source::Impossible(missing("k")));
            };
            options.insert("limit".into(), json!(limit));
        }
        let request = body::parse_beside(&def, &Json::Object(options), given)?;
        check_shown(&def, &request.columns)?;
        if request.shape.group.is_some() || stream && request.shape.mmr.is_some() {
            return Err(unsupported("`group_by` over SQL, and `mmr` in a stream,"));
        }
        Ok(if stream { Source::Open(Box::new(request)) } else { Source::Nearest(Box::new(request)) })
    }

    fn hidden(&self, collection: &str) -> Problem {
        let name = [crate::server::pg::tables::COLLECTIONS.to_owned(), collection.to_owned()];
        let found = Table::find(&name, self.context.view, self.context.user);
        found.err().unwrap_or_else(|| unsupported("this collection"))
    }

    /// How many rows the statement can need, if LIMIT says so and the rows come in its order.
    fn wanted(&self, order: &[(usize, bool, bool)]) -> Option<usize> {
        let number = |expr: Option<&Expr>| expr.and_then(|expr| self.context.params.number(expr, "LIMIT").ok()?);
        if self.aggregate {
            return None;
        }
        let limit = number(self.parts.limit)?.saturating_add(number(self.parts.offset).unwrap_or(0));
        let in_order = order.is_empty() || order.len() == 1 && self.starts_with_distance(order);
        usize::try_from(limit).ok().filter(|limit| in_order && (1..=MAX_LIMIT).contains(limit))
    }

    fn options(&self) -> Result<Map<String, Json>, Problem> {
        let Some(text) = self.text(Input::Options) else { return Ok(Map::new()) };
        let hint = "options are the body of a search over HTTP: {\"search\": {\"ef\": 200}, \"recheck\": \"exists\"}";
        match serde_json::from_str(&text) {
            Ok(Json::Object(options)) => Ok(options),
            Ok(_) => Err(Problem::new(problem::MALFORMED, "options are no JSON object").hint(hint)),
            Err(error) => Err(Problem::new(problem::MALFORMED, format!("options: {error}")).hint(hint)),
        }
    }

    /// What the session says, where the statement does not.
    fn apply_settings(&self, options: &mut Map<String, Json>) {
        let recheck = self.context.recheck();
        options.entry("recheck").or_insert_with(|| serde_json::to_value(recheck).unwrap_or_default());
        let settings = self.context.settings;
        let search =
            [("ef", settings.ef().map(|ef| json!(ef))), ("exactness", settings.exactness().map(|how| json!(how)))];
        for (name, value) in search.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            if let Some(search) = options.entry("search").or_insert_with(|| json!({})).as_object_mut() {
                search.entry(name).or_insert(value);
            }
        }
        if let Some(lsn) = self.context.settings.min_lsn() {
            options.entry("consistency").or_insert_with(|| json!({ "at_least": lsn.to_string() }));
        }
    }

    /// The filter: SQL, or an object of equalities.
    fn add_filter(&self, options: &mut Map<String, Json>) -> Result<(), Problem> {
        let Some(text) = self.text(Input::Filter).filter(|text| !text.trim().is_empty()) else { return Ok(()) };
        let (sql, params) = if text.trim_start().starts_with('{') { equalities(&text)? } else { (text, Vec::new()) };
        if sql.is_empty() {
            return Ok(());
        }
        if options.contains_key("filter") {
            return Err(Problem::new(problem::MALFORMED, "there is a filter in `options` and one beside it"));
        }
        options.insert("filter".into(), json!(sql));
        if !params.is_empty() {
            options.insert("params".into(), json!(params));
        }
        Ok(())
    }

    /// Conditions that rows have to pass here.
    fn residual(&self, conditions: &[Written]) -> Result<Option<Filter>, Problem> {
        let of = |column: &Column| FilterColumn { name: column.name.clone(), kind: column.kind };
        let columns: Vec<_> = self.columns.iter().map(of).collect();
        let each = conditions.iter().map(|condition| filter::parse(&condition.text, &condition.params, &columns));
        Ok(all_of(each.collect::<Result<Vec<_>, _>>().map_err(in_statement)?))
    }

    /// Does the statement show or use what only a search has?
    fn needs_query(&self, outputs: &[Output], order: &[(usize, bool, bool)], conditions: &[Written]) -> bool {
        let of_search = |column: &Column| matches!(column.role, Role::Distance | Role::Input(Input::Query));
        let shown = outputs.iter().filter_map(Output::column).chain(order.iter().map(|(at, ..)| *at));
        let mut named = conditions.iter().flat_map(|condition| &condition.columns);
        shown.into_iter().any(|at| of_search(&self.columns[at]))
            || named.any(|name| self.columns.iter().any(|column| column.name == *name && of_search(column)))
    }

    /// What the index sees to, what rows have to pass behind it, and whether something in either is not known.
    fn filters(
        &self,
        def: &CollectionDef,
        conditions: Vec<Written>,
    ) -> Result<(Option<Filter>, Option<Filter>, bool), Problem> {
        let is_filter = |name: &String| {
            self.columns.iter().any(|column| column.name == *name && matches!(column.role, Role::Filter(_)))
        };
        let (inner, outer): (Vec<_>, Vec<_>) =
            conditions.into_iter().partition(|written| written.columns.iter().all(is_filter));
        let unknown = inner.iter().chain(&outer).any(|written| written.unknown);
        let residual = self.residual(&outer)?;
        let mut filters = Vec::new();
        for written in &inner {
            filters.push(filter::parse(&written.text, &written.params, &def.filters).map_err(in_statement)?);
        }
        if let Some(sql) = self.text(Input::Filter).filter(|sql| !sql.trim().is_empty()) {
            let (sql, params) = if sql.trim_start().starts_with('{') { equalities(&sql)? } else { (sql, Vec::new()) };
            if !sql.is_empty() {
                filters.push(filter::parse(&sql, &params, &def.filters)?);
            }
        }
        Ok((all_of(filters), residual, unknown))
    }

    /// Rows in no order.
    fn scan(&self, conditions: Vec<Written>) -> Result<(Source, Option<Filter>, bool), Problem> {
        let Some(Table::Collection(def)) = &self.table else { return Err(unsupported("this table")) };
        let (filter, residual, unknown) = self.filters(def, conditions)?;
        let mut options = self.options()?;
        self.apply_settings(&mut options);
        check_scan(&options)?;
        let (of_options, consistency) = filter_and_consistency(def, &mut options)?;
        let filter = all_of(filter.into_iter().chain(of_options).collect());
        let source = Source::Every(Scan { filter, consistency, ..Scan::of(def) });
        Ok((if unknown { Source::Unknown } else { source }, residual, false))
    }

    fn collection_source(
        &self,
        distance: Option<Distance<'q>>,
        conditions: Vec<Written>,
        order: &[(usize, bool, bool)],
    ) -> Result<(Source, Option<Filter>, bool), Problem> {
        let Some(Table::Collection(def)) = &self.table else { return Err(unsupported("this table")) };
        let (filter, residual, unknown) = self.filters(def, conditions)?;
        let (name, known) = match (&distance, self.inputs.get(&Input::Query)) {
            (Some(distance), _) => (distance.column.clone(), self.context.params.constant(distance.query)?),
            (None, Some((known, _))) => (def.vectors[0].name.clone(), known.clone()),
            (None, None) => return Ok((Source::Impossible(missing("_query")), None, false)),
        };
        let mut options = self.options()?;
        check_open(&options)?;
        let using = options.get("query").and_then(|query| query.get("using")).and_then(Json::as_str);
        let name = if distance.is_some() { name } else { using.map_or(name, str::to_owned) };
        let Some((_, column)) = def.vector(Some(&name)) else {
            return Err(Problem::new(problem::UNKNOWN_COLUMN, format!("there is no vector column {name:?}")));
        };
        if let Some(distance) = &distance {
            check_metric(distance, column)?;
        }
        if known == Known::Unknown || unknown {
            return Ok((Source::Unknown, residual, true));
        }
        let Some(vector) = condition::vector(known, column.kind)? else {
            return Ok((Source::Nothing, residual, true));
        };
        let vector = vector::checked(def, Some(&name), vector)?;
        self.apply_settings(&mut options);
        options.insert("query".into(), json!({ "using": name }));
        let wanted = self.wanted(order).filter(|_| residual.is_none());
        options.insert("limit".into(), json!(wanted.unwrap_or(USUAL)));
        let mut request = body::parse_beside(def, &Json::Object(options), Some(vector.clone()))?;
        request.by = SearchBy::Vector(vector);
        request.filter = all_of(filter.into_iter().chain(request.filter.take()).collect());
        let max_distance = residual.as_ref().and_then(|residual| self.upper_bound(residual));
        request.shape = Shape { max_distance: request.shape.max_distance.or(max_distance), ..Shape::default() };
        let plain = wanted.is_some() && self.starts_with_distance(order);
        let source = if plain { Source::Nearest(Box::new(request)) } else { Source::Open(Box::new(request)) };
        Ok((source, residual, true))
    }

    /// The distance that all rows which pass are below, if the condition says one.
    fn upper_bound(&self, residual: &Filter) -> Option<f64> {
        match residual {
            Filter::And(parts) => parts.iter().filter_map(|part| self.upper_bound(part)).reduce(f64::min),
            Filter::Compare { column, op: Comparison::Lt | Comparison::Le, value: Some(Value::Float(max)) }
                if self.columns[*column].role == Role::Distance && max.is_finite() =>
            {
                Some(*max)
            }
            _ => None,
        }
    }
}

/// Positions in a filter are not those in the statement.
fn in_statement(error: filter::FilterError) -> Problem {
    Problem { position: None, ..Problem::from(error) }
}

/// How new the answer has to be.
pub fn consistency(source: &Source) -> Option<&Consistency> {
    match source {
        Source::Nearest(request) | Source::Open(request) => Some(&request.consistency),
        Source::Every(scan) => Some(&scan.consistency),
        _ => None,
    }
}
