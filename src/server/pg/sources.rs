//! What a plan's rows come from: inputs, options, settings and conditions -> a request to search, or a scan.

use crate::consistency::frontier::NoView;
use crate::model::{
    CollectionDef, ColumnType, Comparison, Filter, FilterColumn, Lsn, MAX_LIMIT, Recheck, SearchBy, Shape, Value,
};
use crate::query::filter;
use crate::server::http::recheck::Asked;
use crate::server::http::{search as body, vector};
use crate::server::pg::condition::{self, Distance, Known, unsupported};
use crate::server::pg::inputs::{
    all_of, check_metric, check_open, check_scan, check_shown, equalities, filter_and_consistency, missing,
};
use crate::server::pg::plan::{Context, Planner, Scan, Source};
use crate::server::pg::select::Output;
use crate::server::pg::tables::{Column, Input, Role, Table};
use crate::server::pg::viewer;
use crate::server::pg::written::Written;
use crate::server::problem::{self, Problem};
use serde_json::{Map, Value as Json, json};
use sqlparser::ast::Expr;

/// Rows that are probably wanted of a search without an end.
const USUAL: usize = 100;

impl<'q> Planner<'_, 'q> {
    /// `plain`: nothing is filtered behind the search, so LIMIT can stand for k.
    pub(super) fn function_source(&self, order: &[(usize, bool, bool)], plain: bool) -> Result<Source, Problem> {
        let Some(collection) = self.text(Input::Collection) else {
            return Ok(Source::Impossible(missing("collection")));
        };
        let view = self.context.view.ok_or_else(|| Problem::from(NoView::NotLoaded))?;
        let def = view.definition(&collection).ok().filter(|_| self.context.user.may_see(&collection));
        // One answer, whether it is hidden or is not there.
        let def = def.ok_or_else(|| self.hidden(&collection))?;
        let mut options = self.options()?;
        self.apply_settings(&mut options)?;
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
    fn apply_settings(&self, options: &mut Map<String, Json>) -> Result<(), Problem> {
        let Context { settings, user, .. } = self.context;
        let recheck = viewer::asked(options.remove("recheck"), settings, user, self.context.usual_recheck())?;
        options.insert("recheck".into(), viewer::written(recheck));
        let settings = self.context.settings;
        let search =
            [("ef", settings.ef().map(|ef| json!(ef))), ("exactness", settings.exactness().map(|how| json!(how)))];
        for (name, value) in search.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            if let Some(search) = options.entry("search").or_insert_with(|| json!({})).as_object_mut() {
                search.entry(name).or_insert(value);
            }
        }
        if let Some(lsn) = self.context.settings.min_lsn() {
            reach(options, lsn);
        }
        Ok(())
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
    pub(super) fn residual(&self, conditions: &[Written]) -> Result<Option<Filter>, Problem> {
        let of = |column: &Column| FilterColumn { name: column.name.clone(), kind: column.kind };
        let columns: Vec<_> = self.columns.iter().map(of).collect();
        let each = conditions.iter().map(|condition| filter::parse(&condition.text, &condition.params, &columns));
        Ok(all_of(each.collect::<Result<Vec<_>, _>>().map_err(in_statement)?))
    }

    /// Does the statement show or use what only a search has?
    pub(super) fn needs_query(
        &self,
        outputs: &[Output],
        order: &[(usize, bool, bool)],
        conditions: &[Written],
    ) -> bool {
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
    pub(super) fn scan(&self, conditions: Vec<Written>) -> Result<(Source, Option<Filter>, bool), Problem> {
        let Some(Table::Collection(def)) = &self.table else { return Err(unsupported("this table")) };
        let (filter, residual, unknown) = self.filters(def, conditions)?;
        let mut options = self.options()?;
        self.apply_settings(&mut options)?;
        check_scan(&options)?;
        let (of_options, consistency) = filter_and_consistency(def, &mut options)?;
        let filter = all_of(filter.into_iter().chain(of_options).collect());
        let Context { settings, user, .. } = self.context;
        let Asked { level, viewer } = viewer::asked(options.remove("recheck"), settings, user, Recheck::None)?;
        let source = Source::Every(Scan { filter, consistency, recheck: level, viewer, ..Scan::of(def) });
        Ok((if unknown { Source::Unknown } else { source }, residual, false))
    }

    pub(super) fn collection_source(
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
        self.apply_settings(&mut options)?;
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

/// Of the position of the session and one in the options the higher one is waited for.
fn reach(options: &mut Map<String, Json>, lsn: Lsn) {
    let consistency = options.entry("consistency").or_insert(Json::Null);
    if consistency.is_null() {
        *consistency = json!({});
    }
    // What is none is refused when it is read.
    let Some(consistency) = consistency.as_object_mut() else { return };
    let said = consistency.entry("at_least").or_insert(Json::Null);
    if said.is_null() || said.as_str().and_then(|text| text.parse::<Lsn>().ok()).is_some_and(|said| said < lsn) {
        *said = json!(lsn.to_string());
    }
}

/// Positions in a filter are not those in the statement.
fn in_statement(error: filter::FilterError) -> Problem {
    Problem { position: None, ..Problem::from(error) }
}
