//! Queries over the tables of the catalog: joins, conditions, unions, sub-selects, groups. Small tables, read whole.

use crate::server::pg::catalog::relations::World;
use crate::server::pg::catalog::value::{Datum, Kind, Rows};
use crate::server::pg::condition::{Params, folded, pieces, unsupported};
use crate::server::pg::session::Limits;
use crate::server::problem::{self, Problem};
use sqlparser::ast::{
    Distinct, Expr, GroupByExpr, JoinConstraint, JoinOperator, LimitClause, OrderByKind, OrderBySort, Query, Select,
    SelectItem, SetExpr, SetOperator, SetQuantifier,
};
use std::cell::Cell;
use std::cmp::Ordering;
use std::rc::Rc;

/// A row of every source, by its number; none where an outer join found none.
pub(super) type At = Vec<Option<usize>>;

/// Most values that one statement may look at: about a second.
const MAX_STEPS: u64 = 5_000_000;
/// A cancellation, and the end of its time, are looked for once in so many.
const LOOK_UP: u64 = 10_000;
/// Bytes that are made in the time of a step.
const BYTES_A_STEP: usize = 8;
/// Most bytes of one value.
const MAX_VALUE: usize = 64 << 10;
/// Most bytes that are compared with a pattern, and of a pattern: names are far shorter.
const MAX_MATCHED: usize = 4 << 10;
/// Most rows of tables that are joined.
const MAX_ROWS: usize = 200_000;

/// A table in FROM.
#[derive(Debug, Clone)]
pub struct Source {
    pub(super) alias: String,
    pub(super) rows: Rc<Rows>,
}

/// One row of each table in FROM, and what is around a sub-select.
pub struct Scope<'s> {
    pub(super) sources: &'s [Source],
    /// The row of each; none: an outer join has none.
    pub(super) at: &'s [Option<usize>],
    pub(super) around: Option<&'s Scope<'s>>,
}

/// The named queries of WITH.
type Named = Vec<(String, Rc<Rows>)>;

/// One statement's work.
pub struct Lookup<'a> {
    pub(super) world: World<'a>,
    pub(super) params: Params<'a>,
    steps: Cell<u64>,
    /// What ends it before it is done.
    limits: Option<&'a Limits>,
    pub(super) named: std::cell::RefCell<Named>,
}

impl<'a> Lookup<'a> {
    /// Over what exists for somebody.
    pub fn new(world: World<'a>, params: Params<'a>) -> Lookup<'a> {
        Lookup { world, params, steps: Cell::new(0), limits: None, named: Default::default() }
    }

    /// Until it is cancelled, or its time is over.
    pub fn within(self, limits: Option<&'a Limits>) -> Lookup<'a> {
        Lookup { limits, ..self }
    }

    pub(super) fn step(&self) -> Result<(), Problem> {
        self.spend(1)
    }

    /// What has been done, in the time that looking at a value takes.
    pub(super) fn spend(&self, steps: usize) -> Result<(), Problem> {
        let before = self.steps.replace(self.steps.get().saturating_add(steps as u64));
        if before / LOOK_UP != self.steps.get() / LOOK_UP
            && let Some(problem) = self.limits.and_then(Limits::ended)
        {
            return Err(problem);
        }
        if self.steps.get() < MAX_STEPS { Ok(()) } else { Err(Lookup::too_much()) }
    }

    /// A value that was made: none is large, and all together take little memory.
    pub(super) fn weigh(&self, value: &Datum) -> Result<(), Problem> {
        let bytes = value.bytes();
        self.check_made(bytes)?;
        self.spend(bytes / BYTES_A_STEP)
    }

    pub(super) fn check_made(&self, bytes: usize) -> Result<(), Problem> {
        if bytes <= MAX_VALUE { Ok(()) } else { Err(Lookup::too_much()) }
    }

    /// A comparison of a text with a pattern, which may go through the one for each piece of the other.
    pub(super) fn spend_on_pattern(&self, text: &str, pattern: &str) -> Result<(), Problem> {
        if text.len().max(pattern.len()) > MAX_MATCHED {
            return Err(Lookup::too_much());
        }
        self.spend(text.len() * (text.len() + pattern.len()) / 64 + 1)
    }

    pub(super) fn check_kept(&self, rows: usize) -> Result<(), Problem> {
        if rows < MAX_ROWS { Ok(()) } else { Err(Lookup::too_much()) }
    }

    fn too_much() -> Problem {
        Problem::new(problem::TOO_COMPLEX, "a question to the catalog that takes too long")
            .hint("ask for fewer tables at once, or use collection_list")
    }

    /// The answer to a query; `around`: the row that a sub-select stands in.
    pub fn query(&self, query: &Query, around: Option<&Scope<'_>>) -> Result<Rows, Problem> {
        let names = self.named.borrow().len();
        if let Some(with) = &query.with {
            if with.recursive {
                return Err(unsupported("WITH RECURSIVE"));
            }
            for one in &with.cte_tables {
                let mut rows = self.query(&one.query, around)?;
                rename(&mut rows, one.alias.columns.iter().map(|column| folded(&column.name)));
                self.named.borrow_mut().push((folded(&one.alias.name), Rc::new(rows)));
            }
        }
        let done = self.body(query, around);
        self.named.borrow_mut().truncate(names);
        done
    }

    fn body(&self, query: &Query, around: Option<&Scope<'_>>) -> Result<Rows, Problem> {
        let order: Vec<_> = match query.order_by.as_ref().map(|order| &order.kind) {
            None => Vec::new(),
            Some(OrderByKind::Expressions(list)) => list
                .iter()
                .map(|one| {
                    let descending = matches!(one.options.sort, Some(OrderBySort::Desc));
                    (&one.expr, descending, one.options.nulls_first.unwrap_or(descending))
                })
                .collect(),
            Some(OrderByKind::All(_)) => return Err(unsupported("ORDER BY ALL")),
        };
        let mut rows = match &*query.body {
            SetExpr::Select(select) => self.select(select, &order, around)?,
            other => {
                let mut rows = self.set(other, around)?;
                let mut keyed = Vec::with_capacity(rows.rows.len());
                for row in std::mem::take(&mut rows.rows) {
                    let key = order.iter().map(|(expr, ..)| match place(expr, &rows.columns) {
                        Some(at) => Ok(row[at].clone()),
                        None => Err(unsupported(format!("ORDER BY {expr} behind UNION"))),
                    });
                    keyed.push((key.collect::<Result<Vec<_>, _>>()?, row));
                }
                sort(&mut keyed, &order);
                rows.rows = keyed.into_iter().map(|(_, row)| row).collect();
                rows
            }
        };
        let number = |expr: Option<&Expr>| match expr {
            None => Ok(None),
            Some(expr) => self.expr(expr, around).map(|value| value.int().and_then(|v| usize::try_from(v).ok())),
        };
        if let Some(clause) = &query.limit_clause {
            let LimitClause::LimitOffset { limit, offset, .. } = clause else {
                return Err(unsupported("LIMIT with a comma"));
            };
            let offset = number(offset.as_ref().map(|offset| &offset.value))?.unwrap_or(0);
            rows.rows.drain(..offset.min(rows.rows.len()));
            rows.rows.truncate(number(limit.as_ref())?.unwrap_or(usize::MAX));
        }
        Ok(rows)
    }

    fn set(&self, body: &SetExpr, around: Option<&Scope<'_>>) -> Result<Rows, Problem> {
        match body {
            SetExpr::Select(select) => self.select(select, &[], around),
            SetExpr::Query(query) => self.query(query, around),
            SetExpr::Values(values) => {
                let row = |row: &sqlparser::ast::Parens<Vec<Expr>>| {
                    row.content.iter().map(|expr| self.expr(expr, around)).collect::<Result<Vec<_>, _>>()
                };
                let rows = values.rows.iter().map(row).collect::<Result<Vec<_>, _>>()?;
                let width = rows.first().map_or(0, Vec::len);
                if rows.iter().any(|row| row.len() != width) {
                    return Err(Problem::new(problem::SYNTAX, "VALUES lists must all be the same length"));
                }
                let columns = (1..=width).map(|at| (format!("column{at}"), Kind::Text)).collect();
                Ok(Rows { columns, rows, any: false })
            }
            SetExpr::SetOperation { left, op, set_quantifier, right } => {
                let (mut left, right) = (self.set(left, around)?, self.set(right, around)?);
                if left.columns.len() != right.columns.len() {
                    let detail = "each side of UNION must have the same number of columns";
                    return Err(Problem::new(problem::SYNTAX, detail));
                }
                if !matches!(op, SetOperator::Union) {
                    self.spend(left.rows.len() * right.rows.len())?;
                }
                match op {
                    SetOperator::Union => left.rows.extend(right.rows),
                    SetOperator::Except => left.rows.retain(|row| !right.rows.contains(row)),
                    SetOperator::Intersect => left.rows.retain(|row| right.rows.contains(row)),
                    _ => return Err(unsupported(op)),
                }
                if !matches!(set_quantifier, SetQuantifier::All) {
                    self.distinct(&mut left.rows)?;
                }
                Ok(left)
            }
            _ => Err(unsupported("this form of query over the catalog")),
        }
    }

    fn distinct(&self, rows: &mut Vec<Vec<Datum>>) -> Result<(), Problem> {
        let mut kept: Vec<Vec<Datum>> = Vec::new();
        for row in std::mem::take(rows) {
            for _ in 0..=kept.len() {
                self.step()?;
            }
            if !kept.contains(&row) {
                kept.push(row);
            }
        }
        *rows = kept;
        Ok(())
    }

    fn select(
        &self,
        select: &Select,
        order: &[(&Expr, bool, bool)],
        around: Option<&Scope<'_>>,
    ) -> Result<Rows, Problem> {
        if has_using(select) && select.projection.iter().any(is_wildcard) {
            return Err(unsupported("* beside JOIN ... USING, whose columns are one,"));
        }
        let (sources, combined) = self.from(&select.from, around)?;
        let mut passed = Vec::new();
        for at in combined {
            let scope = Scope { sources: &sources, at: &at, around };
            let holds = match &select.selection {
                Some(condition) => self.expr(condition, Some(&scope))?.truth() == Some(true),
                None => true,
            };
            if holds {
                passed.push(at);
            }
        }
        let GroupByExpr::Expressions(grouping, _) = &select.group_by else { return Err(unsupported("GROUP BY ALL")) };
        let columns = self.columns(&select.projection, &sources)?;
        let aggregates = select.projection.iter().any(|item| match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => self.is_aggregate(expr),
            _ => false,
        });
        let single = grouping.is_empty() && !aggregates && select.having.is_none();
        let numbers = if single { self.numbers(&select.projection, &sources, &passed, around)? } else { Vec::new() };
        let groups = match (grouping.is_empty(), aggregates || select.having.is_some()) {
            (true, false) => passed.into_iter().map(|at| vec![at]).collect(),
            (true, true) => vec![passed],
            (false, _) => self.groups(grouping, &select.projection, &columns, &sources, passed, around)?,
        };
        let mut keyed = Vec::new();
        for (nth, group) in groups.iter().enumerate() {
            let none = vec![None; sources.len()];
            let scope = Scope { sources: &sources, at: group.first().unwrap_or(&none), around };
            let members: Vec<_> = group.iter().map(|at| Scope { sources: &sources, at, around }).collect();
            if let Some(having) = &select.having
                && self.in_group(having, &scope, &members)?.truth() != Some(true)
            {
                continue;
            }
            let mut row = Vec::with_capacity(columns.len());
            for (column, item) in select.projection.iter().enumerate() {
                if let Some(Some(numbers)) = numbers.get(column) {
                    row.push(Datum::Int(numbers[nth]));
                    continue;
                }
                match item {
                    SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                        row.push(self.in_group(expr, &scope, &members)?);
                    }
                    SelectItem::Wildcard(_) => row.extend(scope.all(None)),
                    SelectItem::QualifiedWildcard(kind, _) => row.extend(scope.all(Some(&wildcard(kind)))),
                    SelectItem::ExprWithAliases { .. } => return Err(unsupported("several names for one column")),
                }
            }
            row.iter().try_for_each(|value| self.spend(1 + value.bytes() / BYTES_A_STEP))?;
            let mut key = Vec::with_capacity(order.len());
            for (expr, ..) in order {
                key.push(match place(expr, &columns) {
                    Some(at) => row[at].clone(),
                    None => self.in_group(expr, &scope, &members)?,
                });
            }
            keyed.push((key, row));
        }
        sort(&mut keyed, order);
        let mut rows: Vec<_> = keyed.into_iter().map(|(_, row)| row).collect();
        match &select.distinct {
            None | Some(Distinct::All) => {}
            Some(Distinct::Distinct) => self.distinct(&mut rows)?,
            Some(Distinct::On(_)) => return Err(unsupported("DISTINCT ON")),
        }
        Ok(Rows { columns, rows, any: false })
    }

    /// Rows that have the same values in these expressions.
    fn groups(
        &self,
        grouping: &[Expr],
        projection: &[SelectItem],
        columns: &[(String, Kind)],
        sources: &[Source],
        passed: Vec<At>,
        around: Option<&Scope<'_>>,
    ) -> Result<Vec<Vec<At>>, Problem> {
        let mut groups: Vec<(Vec<Datum>, Vec<At>)> = Vec::new();
        for at in passed {
            let scope = Scope { sources, at: &at, around };
            let mut key = Vec::with_capacity(grouping.len());
            for expr in grouping {
                // A number, or the name that an expression of the list was given.
                let listed = match (place(expr, columns), expr) {
                    (Some(at), Expr::Value(_)) => projection.get(at),
                    (Some(at), Expr::Identifier(_)) => {
                        projection.get(at).filter(|item| matches!(item, SelectItem::ExprWithAlias { .. }))
                    }
                    _ => None,
                };
                key.push(match listed {
                    Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) => {
                        self.expr(expr, Some(&scope))?
                    }
                    _ => self.expr(expr, Some(&scope))?,
                });
            }
            self.spend(groups.len() + 1)?;
            match groups.iter_mut().find(|(other, _)| *other == key) {
                Some((_, members)) => members.push(at),
                None => groups.push((key, vec![at])),
            }
        }
        Ok(groups.into_iter().map(|(_, members)| members).collect())
    }

    fn columns(&self, projection: &[SelectItem], sources: &[Source]) -> Result<Vec<(String, Kind)>, Problem> {
        let mut columns = Vec::new();
        for item in projection {
            match item {
                SelectItem::UnnamedExpr(expr) => columns.push((name_of(expr), self.kind(expr, sources))),
                SelectItem::ExprWithAlias { expr, alias } => columns.push((folded(alias), self.kind(expr, sources))),
                SelectItem::Wildcard(_) => {
                    columns.extend(sources.iter().flat_map(|source| source.rows.columns.clone()))
                }
                SelectItem::QualifiedWildcard(kind, _) => {
                    let wanted = wildcard(kind);
                    let of = sources.iter().filter(|source| source.alias == wanted);
                    columns.extend(of.flat_map(|source| source.rows.columns.clone()));
                }
                SelectItem::ExprWithAliases { .. } => return Err(unsupported("several names for one column")),
            }
        }
        Ok(columns)
    }
}

impl Scope<'_> {
    /// The value of a column.
    pub(super) fn column(&self, table: Option<&str>, name: &str) -> Option<Datum> {
        for (source, at) in self.sources.iter().zip(self.at) {
            if table.is_some_and(|table| table != source.alias) {
                continue;
            }
            if let Some(column) = source.rows.columns.iter().position(|(other, _)| other == name) {
                return Some(at.map_or(Datum::Null, |row| source.rows.rows[row][column].clone()));
            }
            if source.rows.any && (table.is_some() || self.sources.len() == 1) {
                return Some(Datum::Null);
            }
        }
        // A table whose columns are not written down has any name that no other has.
        if table.is_none() && self.sources.iter().any(|source| source.rows.any) {
            return Some(Datum::Null);
        }
        self.around.and_then(|around| around.column(table, name))
    }

    fn all(&self, table: Option<&str>) -> Vec<Datum> {
        let mut row = Vec::new();
        for (source, at) in self.sources.iter().zip(self.at) {
            if table.is_none_or(|table| table == source.alias) {
                match at {
                    Some(at) => row.extend(source.rows.rows[*at].iter().cloned()),
                    None => row.extend(source.rows.columns.iter().map(|_| Datum::Null)),
                }
            }
        }
        row
    }
}

impl Source {
    /// The type of a column, if it has one of this name.
    pub(super) fn kind(&self, table: Option<&str>, name: &str) -> Option<Kind> {
        let mine = table.is_none_or(|table| table == self.alias);
        self.rows.columns.iter().find(|(other, _)| mine && other == name).map(|(_, kind)| *kind)
    }
}

fn wildcard(kind: &sqlparser::ast::SelectItemQualifiedWildcardKind) -> String {
    kind.to_string().trim_end_matches(".*").trim_matches('"').to_owned()
}

/// Gives the first columns other names.
pub(super) fn rename(rows: &mut Rows, names: impl Iterator<Item = String>) {
    rows.columns.iter_mut().zip(names).for_each(|(column, name)| column.0 = name);
}

/// The place in the list that an ORDER BY names, by number or by name.
fn place(expr: &Expr, columns: &[(String, Kind)]) -> Option<usize> {
    match expr {
        Expr::Value(value) => {
            let number: usize = value.value.to_string().parse().ok()?;
            number.checked_sub(1).filter(|at| *at < columns.len())
        }
        Expr::Identifier(ident) => columns.iter().position(|(name, _)| *name == folded(ident)),
        _ => None,
    }
}

/// Does a join name the columns that are the same?
fn has_using(select: &Select) -> bool {
    let mut joins = select.from.iter().flat_map(|from| &from.joins);
    joins.any(|join| {
        let (JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::Left(constraint)
        | JoinOperator::LeftOuter(constraint)) = &join.join_operator
        else {
            return false;
        };
        matches!(constraint, JoinConstraint::Using(_))
    })
}

fn is_wildcard(item: &SelectItem) -> bool {
    matches!(item, SelectItem::Wildcard(_))
}

/// How two values are sorted.
pub(super) fn in_order(a: &Datum, b: &Datum, descending: bool, nulls_first: bool) -> Ordering {
    match (a, b) {
        (Datum::Null, Datum::Null) => Ordering::Equal,
        (Datum::Null, _) => {
            if nulls_first {
                Ordering::Less
            } else {
                Ordering::Greater
            }
        }
        (_, Datum::Null) => {
            if nulls_first {
                Ordering::Greater
            } else {
                Ordering::Less
            }
        }
        (a, b) => {
            if descending {
                a.sorted(b).reverse()
            } else {
                a.sorted(b)
            }
        }
    }
}

fn sort(keyed: &mut [(Vec<Datum>, Vec<Datum>)], order: &[(&Expr, bool, bool)]) {
    keyed.sort_by(|(a, _), (b, _)| {
        let mut each = a.iter().zip(b).zip(order).map(|((a, b), (_, down, first))| in_order(a, b, *down, *first));
        each.find(|found| found.is_ne()).unwrap_or(Ordering::Equal)
    });
}

/// The name that Postgres gives a column without one.
fn name_of(expr: &Expr) -> String {
    match expr {
        Expr::Identifier(ident) => folded(ident),
        Expr::CompoundIdentifier(idents) => idents.last().map(folded).unwrap_or_default(),
        Expr::Nested(inner) | Expr::Cast { expr: inner, .. } | Expr::Collate { expr: inner, .. } => name_of(inner),
        Expr::Function(function) => pieces(&function.name).pop().unwrap_or_default(),
        Expr::Case { .. } => "case".to_owned(),
        Expr::Exists { .. } => "exists".to_owned(),
        Expr::Array(_) => "array".to_owned(),
        Expr::Subquery(query) => match &*query.body {
            SetExpr::Select(select) => match select.projection.first() {
                Some(SelectItem::UnnamedExpr(expr)) => name_of(expr),
                Some(SelectItem::ExprWithAlias { alias, .. }) => folded(alias),
                _ => "?column?".to_owned(),
            },
            _ => "?column?".to_owned(),
        },
        _ => "?column?".to_owned(),
    }
}
