//! The one form of query that is taken: columns of one table, conditions, order, limit. Everything else is refused here.

use crate::model::{ColumnType, Value};
use crate::server::pg::condition::{arguments, column_name, folded, pieces, short, unsupported};
use crate::server::pg::tables::{Column, Role};
use crate::server::pg::types::Form;
use crate::server::problem::{self, Problem};
use sqlparser::ast::{
    BinaryOperator, Expr, Function, GroupByExpr, LimitClause, OrderByKind, OrderBySort, Query, Select, SelectItem,
    SetExpr, TableFactor, TableSampleKind, TableSampleMethod, UnaryOperator, Value as Literal,
};
use std::cmp::Ordering;

/// A query, in parts.
pub struct Parts<'q> {
    /// What is shown.
    pub projection: &'q [SelectItem],
    /// The table; none for constants.
    pub table: Option<Vec<String>>,
    /// The share of its rows that is wanted, where TABLESAMPLE says one.
    pub sample: Option<f64>,
    /// WHERE
    pub condition: Option<&'q Expr>,
    /// ORDER BY: what, descending, NULLs first.
    pub order: Vec<(&'q Expr, bool, bool)>,
    /// LIMIT
    pub limit: Option<&'q Expr>,
    /// OFFSET
    pub offset: Option<&'q Expr>,
}

/// Takes a query apart. Row locks are accepted: there is nothing to lock.
pub fn parts(query: &Query) -> Result<Parts<'_>, Problem> {
    let refuse = |there: bool, what: &str| if there { Err(unsupported(what)) } else { Ok(()) };
    refuse(query.with.is_some(), "WITH")?;
    refuse(query.fetch.is_some(), "FETCH FIRST")?;
    let SetExpr::Select(select) = &*query.body else { return Err(unsupported("UNION, VALUES or a nested query")) };
    let Select { distinct, into, having, group_by, named_window, qualify, prewhere, lateral_views, top, .. } =
        &**select;
    refuse(distinct.is_some(), "DISTINCT")?;
    refuse(into.is_some(), "INTO")?;
    refuse(having.is_some(), "HAVING")?;
    refuse(!matches!(group_by, GroupByExpr::Expressions(list, _) if list.is_empty()), "GROUP BY")?;
    let other = qualify.is_some() || prewhere.is_some() || top.is_some();
    refuse(!named_window.is_empty() || !lateral_views.is_empty() || other, "this form of SELECT")?;
    let order = match query.order_by.as_ref().map(|order| &order.kind) {
        None => Vec::new(),
        Some(OrderByKind::Expressions(list)) => list
            .iter()
            .map(|one| {
                let descending = match &one.options.sort {
                    None | Some(OrderBySort::Asc) => false,
                    Some(OrderBySort::Desc) => true,
                    Some(OrderBySort::Using(_)) => return Err(unsupported("ORDER BY USING")),
                };
                Ok((&one.expr, descending, one.options.nulls_first.unwrap_or(descending)))
            })
            .collect::<Result<_, _>>()?,
        Some(OrderByKind::All(_)) => return Err(unsupported("ORDER BY ALL")),
    };
    let (limit, offset) = match &query.limit_clause {
        None => (None, None),
        Some(LimitClause::LimitOffset { limit, offset, .. }) => {
            (limit.as_ref(), offset.as_ref().map(|offset| &offset.value))
        }
        Some(LimitClause::OffsetCommaLimit { .. }) => return Err(unsupported("LIMIT with a comma")),
    };
    let (table, sample) = table(select)?;
    let (projection, condition) = (&select.projection[..], select.selection.as_ref());
    Ok(Parts { projection, table, sample, condition, order, limit, offset })
}

fn table(select: &Select) -> Result<(Option<Vec<String>>, Option<f64>), Problem> {
    match &select.from[..] {
        [] => Ok((None, None)),
        [one] if one.joins.is_empty() => match &one.relation {
            TableFactor::Table { name, args: None, sample, .. } => {
                Ok((Some(pieces(name)), sample.as_ref().map(share).transpose()?))
            }
            TableFactor::Table { .. } => Err(unsupported("a function in FROM")),
            _ => Err(unsupported("a sub-select or another form in FROM")),
        },
        _ => Err(unsupported("a join")),
    }
}

/// `TABLESAMPLE BERNOULLI (12.5)` or SYSTEM, which is no faster here: each row is drawn for itself.
fn share(sample: &TableSampleKind) -> Result<f64, Problem> {
    let (TableSampleKind::BeforeTableAlias(sample) | TableSampleKind::AfterTableAlias(sample)) = sample;
    let method = matches!(sample.name, Some(TableSampleMethod::Bernoulli | TableSampleMethod::System));
    if !method || sample.seed.is_some() || sample.bucket.is_some() || sample.offset.is_some() {
        return Err(unsupported("TABLESAMPLE by anything but BERNOULLI and SYSTEM, or REPEATABLE,"));
    }
    let percent = sample.quantity.as_ref().filter(|quantity| quantity.unit.is_none());
    let percent =
        percent.and_then(|quantity| number(&quantity.value)).filter(|percent| (0.0..=100.0).contains(percent));
    percent.map(|percent| percent / 100.0).ok_or_else(|| {
        Problem::new(problem::BAD_PARAMETER, "sample percentage must be between 0 and 100")
            .hint("write TABLESAMPLE BERNOULLI (25)")
    })
}

/// The share of rows that `random() < share` lets through, which postgres_fdw writes for `analyze_sampling 'random'`.
pub fn random_share(condition: &Expr) -> Option<f64> {
    match condition {
        Expr::Nested(inner) => random_share(inner),
        Expr::BinaryOp { left, op: BinaryOperator::Lt, right } => match &**left {
            Expr::Function(function) if pieces(&function.name).pop()? == "random" => number(right),
            _ => None,
        },
        _ => None,
    }
}

/// What a column of the answer is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A column of the table.
    Column(usize),
    /// `factor` x the distance in this column + `sum`.
    Linear { at: usize, factor: f64, sum: f64 },
    /// A constant; `None` is NULL.
    Constant(Option<Value>),
    /// Rows.
    Count,
    /// Rows where this column is not NULL.
    CountOf(usize),
    /// The smallest, or with `true` the largest.
    Extreme(usize, bool),
}

/// A column of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ColumnType,
    /// As what it is shown.
    pub form: Form,
    /// What it is made of.
    pub what: What,
}

impl Output {
    /// A constant.
    pub fn constant(name: &str, kind: ColumnType, value: Option<Value>) -> Output {
        Output { name: name.to_owned(), kind, form: Form::Own, what: What::Constant(value) }
    }

    /// The place of the column that it shows or is made of.
    pub fn column(&self) -> Option<usize> {
        match self.what {
            What::Column(at) | What::Linear { at, .. } | What::CountOf(at) | What::Extreme(at, _) => Some(at),
            What::Constant(_) | What::Count => None,
        }
    }

    /// An aggregate of no rows.
    pub fn none(&self) -> Option<Value> {
        matches!(self.what, What::Count | What::CountOf(_)).then_some(Value::Int(0))
    }

    /// Adds a row of the table to an aggregate.
    pub fn add(&self, sum: &mut Option<Value>, row: &[Option<Value>]) {
        let counts = match &self.what {
            What::Count => true,
            What::CountOf(at) => row.get(*at).is_some_and(Option::is_some),
            What::Extreme(at, largest) => {
                let Some(Some(value)) = row.get(*at) else { return };
                let wanted = if *largest { Ordering::Greater } else { Ordering::Less };
                if sum.as_ref().is_none_or(|sum| value.compare(sum) == Some(wanted)) {
                    *sum = Some(value.clone());
                }
                return;
            }
            _ => false,
        };
        if let Some(Value::Int(sum)) = sum {
            *sum += i64::from(counts);
        }
    }

    /// Is it made of all rows together?
    pub fn is_aggregate(&self) -> bool {
        matches!(self.what, What::Count | What::CountOf(_) | What::Extreme(..))
    }
}

/// Reads select lists over a table's columns.
pub struct List<'a> {
    /// The columns.
    pub columns: &'a [Column],
    /// Is it the distance of the statement?
    pub is_distance: &'a dyn Fn(&Expr) -> bool,
}

impl List<'_> {
    /// The place of a column.
    pub fn place(&self, name: &str) -> Result<usize, Problem> {
        self.columns.iter().position(|column| column.name == name).ok_or_else(|| {
            let known: Vec<_> = self.columns.iter().map(|column| column.name.as_str()).collect();
            Problem::new(problem::UNKNOWN_COLUMN, format!("column \"{name}\" does not exist"))
                .hint(format!("there are {}", known.join(", ")))
        })
    }

    /// The place of the distance.
    pub fn distance(&self) -> Option<usize> {
        self.columns.iter().position(|column| column.role == Role::Distance)
    }

    /// The columns of the answer.
    pub fn outputs(&self, projection: &[SelectItem]) -> Result<Vec<Output>, Problem> {
        let mut outputs = Vec::new();
        for item in projection {
            match item {
                SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => {
                    let shown = self.columns.iter().enumerate().filter(|(_, column)| !column.hidden);
                    outputs.extend(shown.map(|(at, column)| self.of_column(at, &column.name)));
                }
                SelectItem::UnnamedExpr(expr) => outputs.push(self.output(expr, None)?),
                SelectItem::ExprWithAlias { expr, alias } => outputs.push(self.output(expr, Some(folded(alias)))?),
                SelectItem::ExprWithAliases { .. } => return Err(unsupported("several names for one column")),
            }
        }
        let aggregates = outputs.iter().filter(|output| output.is_aggregate()).count();
        if aggregates > 0 && aggregates < outputs.len() {
            return Err(unsupported("a column beside an aggregate"));
        }
        Ok(outputs)
    }

    fn of_column(&self, at: usize, name: &str) -> Output {
        let Column { kind, form, .. } = self.columns[at];
        Output { name: name.to_owned(), kind, form, what: What::Column(at) }
    }

    fn output(&self, expr: &Expr, alias: Option<String>) -> Result<Output, Problem> {
        let named = |name: &str| alias.clone().unwrap_or_else(|| name.to_owned());
        if let Some((factor, sum)) = self.linear(expr)
            && let Some(at) = self.distance()
        {
            let what = if (factor, sum) == (1.0, 0.0) { What::Column(at) } else { What::Linear { at, factor, sum } };
            return Ok(Output { what, ..Output::constant(&named("?column?"), ColumnType::Float8, None) });
        }
        match expr {
            Expr::Nested(inner) => self.output(inner, alias),
            // Postgres has one for each row; an index has none, and who locks rows wants to see one.
            Expr::Identifier(ident) if folded(ident) == "ctid" => {
                Ok(Output::constant(&named("ctid"), ColumnType::Text, Some(Value::Text("(0,0)".into()))))
            }
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) => {
                let name = column_name(expr).unwrap_or_default();
                Ok(self.of_column(self.place(&name)?, &named(&name)))
            }
            Expr::Value(value) => literal(&value.value, &named("?column?")).ok_or_else(|| refused(expr)),
            Expr::Cast { expr: inner, .. } if literal_null(inner) => {
                Ok(Output::constant(&named("?column?"), ColumnType::Text, None))
            }
            Expr::Function(function) => self.aggregate(function, alias).ok_or_else(|| refused(expr))?,
            _ => Err(refused(expr)),
        }
    }

    fn aggregate(&self, function: &Function, alias: Option<String>) -> Option<Result<Output, Problem>> {
        let name = pieces(&function.name).pop()?;
        if function.filter.is_some() || function.over.is_some() || !function.within_group.is_empty() {
            return None;
        }
        let shown = alias.unwrap_or_else(|| name.clone());
        let output = |what, kind| Some(Ok(Output { what, ..Output::constant(&shown, kind, None) }));
        if name == "count" && function.args.to_string() == "(*)" {
            return output(What::Count, ColumnType::Int8);
        }
        if function.args.to_string().to_lowercase().starts_with("(distinct") {
            return None;
        }
        let [argument] = arguments(function)?[..] else { return None };
        let at = match (self.is_distance)(argument) {
            true => self.distance()?,
            false => match self.place(&column_name(argument)?) {
                Ok(at) => at,
                Err(problem) => return Some(Err(problem)),
            },
        };
        let kind = self.columns[at].kind;
        match name.as_str() {
            "count" => output(What::CountOf(at), ColumnType::Int8),
            "min" | "max" if kind.is_ordered() => {
                Some(Ok(Output { name: shown, what: What::Extreme(at, name == "max"), ..self.of_column(at, "") }))
            }
            _ => None,
        }
    }

    /// The expression as `factor x distance + sum`: `1 - (a <=> b)` is a similarity, `(a <#> b) * -1` an inner product.
    fn linear(&self, expr: &Expr) -> Option<(f64, f64)> {
        if (self.is_distance)(expr) {
            return Some((1.0, 0.0));
        }
        match expr {
            Expr::Nested(inner) => self.linear(inner),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => self.linear(expr).map(|(factor, sum)| (-factor, -sum)),
            Expr::BinaryOp { left, op, right } => {
                let (a, b) = (self.linear(left), self.linear(right));
                let (c, d) = (number(left), number(right));
                match (op, a, b, c, d) {
                    (BinaryOperator::Minus, None, Some((factor, sum)), Some(c), _) => Some((-factor, c - sum)),
                    (BinaryOperator::Minus, Some((factor, sum)), None, _, Some(d)) => Some((factor, sum - d)),
                    (BinaryOperator::Plus, None, Some((factor, sum)), Some(k), _)
                    | (BinaryOperator::Plus, Some((factor, sum)), None, _, Some(k)) => Some((factor, sum + k)),
                    (BinaryOperator::Multiply, None, Some((factor, sum)), Some(k), _)
                    | (BinaryOperator::Multiply, Some((factor, sum)), None, _, Some(k)) => Some((factor * k, sum * k)),
                    (BinaryOperator::Divide, Some((factor, sum)), None, _, Some(d)) => Some((factor / d, sum / d)),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

fn refused(expr: &Expr) -> Problem {
    unsupported(format!("the expression {} in a select list", short(expr)))
}

fn number(expr: &Expr) -> Option<f64> {
    match expr {
        Expr::Nested(inner) => number(inner),
        Expr::Value(value) => match &value.value {
            Literal::Number(digits, _) => digits.parse().ok(),
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => number(expr).map(|number| -number),
        _ => None,
    }
}

fn literal_null(expr: &Expr) -> bool {
    matches!(expr, Expr::Value(value) if value.value == Literal::Null)
}

/// A literal as a column of an answer.
pub fn literal(literal: &Literal, name: &str) -> Option<Output> {
    let constant = |kind, value| Some(Output::constant(name, kind, value));
    match literal {
        Literal::Null => constant(ColumnType::Text, None),
        Literal::Boolean(v) => constant(ColumnType::Bool, Some(Value::Bool(*v))),
        Literal::SingleQuotedString(text) => constant(ColumnType::Text, Some(Value::Text(text.as_str().into()))),
        Literal::Number(digits, _) => match (digits.parse::<i32>(), digits.parse::<i64>(), digits.parse::<f64>()) {
            (Ok(v), ..) => constant(ColumnType::Int4, Some(Value::Int(v.into()))),
            (_, Ok(v), _) => constant(ColumnType::Int8, Some(Value::Int(v))),
            (_, _, Ok(v)) => constant(ColumnType::Float8, Some(Value::Float(v))),
            _ => None,
        },
        _ => None,
    }
}
