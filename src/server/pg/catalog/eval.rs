//! Expressions of queries over the catalog.

use crate::server::pg::catalog::calls;
use crate::server::pg::catalog::lookup::{Lookup, Scope, Source};
use crate::server::pg::catalog::pattern::{like, regex};
use crate::server::pg::catalog::relations::{type_named, type_shown};
use crate::server::pg::catalog::value::{Datum, Kind};
use crate::server::pg::condition::{Known, arguments, folded, pieces, short, unsupported};
use crate::server::pg::types;
use crate::server::problem::{self, Problem};
use sqlparser::ast::{
    AccessExpr, BinaryOperator, CaseWhen, Expr, Function, FunctionArguments, Query, Subscript, UnaryOperator,
    Value as Literal,
};
use std::cmp::Ordering;

impl Lookup<'_> {
    /// The value of an expression; `scope`: the row that it is about.
    pub(super) fn expr(&self, expr: &Expr, scope: Option<&Scope<'_>>) -> Result<Datum, Problem> {
        self.step()?;
        let value = self.value(expr, scope)?;
        self.weigh(&value)?;
        Ok(value)
    }

    fn value(&self, expr: &Expr, scope: Option<&Scope<'_>>) -> Result<Datum, Problem> {
        let truth = |inner: &Expr| self.expr(inner, scope).map(|value| value.truth());
        let of = |value: Option<bool>| value.map_or(Datum::Null, Datum::Bool);
        Ok(match expr {
            Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => self.expr(inner, scope)?,
            Expr::Identifier(ident) if ident.quote_style.is_none() && calls::is_word(&ident.value) => {
                match scope.and_then(|scope| scope.column(None, &folded(ident))) {
                    Some(value) => value,
                    None => calls::call(self, &ident.value.to_lowercase(), &[])?,
                }
            }
            Expr::Identifier(ident) => column(scope, None, &folded(ident))?,
            Expr::CompoundIdentifier(idents) => {
                let names: Vec<_> = idents.iter().map(folded).collect();
                let (name, table) = names.split_last().map_or(("", None), |(name, rest)| (name, rest.last()));
                column(scope, table.map(String::as_str), name)?
            }
            Expr::Value(value) => self.literal(&value.value)?,
            Expr::TypedString(typed) => self.literal(&typed.value.value)?,
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => of(truth(expr)?.map(|value| !value)),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match self.expr(expr, scope)? {
                Datum::Int(v) => v.checked_neg().map_or(Datum::Null, Datum::Int),
                Datum::Float(v) => Datum::Float(-v),
                other => other,
            },
            Expr::UnaryOp { op: UnaryOperator::Plus, expr } => self.expr(expr, scope)?,
            Expr::BinaryOp { left, op, right } => self.binary(left, op, right, scope)?,
            Expr::IsNull(inner) => Datum::Bool(self.expr(inner, scope)? == Datum::Null),
            Expr::IsNotNull(inner) => Datum::Bool(self.expr(inner, scope)? != Datum::Null),
            Expr::IsTrue(inner) => Datum::Bool(truth(inner)? == Some(true)),
            Expr::IsNotTrue(inner) => Datum::Bool(truth(inner)? != Some(true)),
            Expr::IsFalse(inner) => Datum::Bool(truth(inner)? == Some(false)),
            Expr::IsNotFalse(inner) => Datum::Bool(truth(inner)? != Some(false)),
            Expr::IsDistinctFrom(left, right) => Datum::Bool(!self.is_same(left, right, scope)?),
            Expr::IsNotDistinctFrom(left, right) => Datum::Bool(self.is_same(left, right, scope)?),
            Expr::InList { expr, list, negated } => {
                let value = self.expr(expr, scope)?;
                let list = list.iter().map(|item| self.expr(item, scope)).collect::<Result<Vec<_>, _>>()?;
                of(any(&value, Ordering::is_eq, &list).map(|found| found != *negated))
            }
            Expr::InSubquery { expr, subquery, negated } => {
                let (value, list) = (self.expr(expr, scope)?, self.list(subquery, scope)?);
                of(any(&value, Ordering::is_eq, &list).map(|found| found != *negated))
            }
            Expr::Exists { subquery, negated } => Datum::Bool(self.query(subquery, scope)?.rows.is_empty() == *negated),
            Expr::Subquery(query) => {
                let rows = self.query(query, scope)?.rows;
                if rows.len() > 1 {
                    let detail = "more than one row returned by a subquery used as an expression";
                    return Err(Problem::new(problem::SYNTAX, detail));
                }
                rows.into_iter().next().and_then(|row| row.into_iter().next()).unwrap_or(Datum::Null)
            }
            Expr::Between { expr, negated, low, high } => {
                let value = self.expr(expr, scope)?;
                let low = value.compare(&self.expr(low, scope)?).map(Ordering::is_ge);
                let high = value.compare(&self.expr(high, scope)?).map(Ordering::is_le);
                of(and(low, high).map(|within| within != *negated))
            }
            Expr::Like { negated, any: false, expr, pattern, .. } => {
                self.like(expr, pattern, *negated, false, scope)?
            }
            Expr::ILike { negated, any: false, expr, pattern, .. } => {
                self.like(expr, pattern, *negated, true, scope)?
            }
            Expr::AnyOp { left, compare_op, right, .. } => {
                let (value, list) = (self.expr(left, scope)?, self.array(right, scope)?);
                let Some(list) = list else { return Ok(Datum::Null) };
                of(any(&value, holds(compare_op)?, &list))
            }
            Expr::AllOp { left, compare_op, right } => {
                let (value, list) = (self.expr(left, scope)?, self.array(right, scope)?);
                let (Some(list), holds) = (list, holds(compare_op)?) else { return Ok(Datum::Null) };
                of(any(&value, |ordering| !holds(ordering), &list).map(|found| !found))
            }
            Expr::Array(array) => {
                let items = array.elem.iter().map(|item| self.expr(item, scope));
                Datum::List(items.collect::<Result<_, _>>()?)
            }
            Expr::Case { operand, conditions, else_result, .. } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref(), scope)?
            }
            Expr::Cast { expr, data_type, .. } => self.cast(self.expr(expr, scope)?, &data_type.to_string())?,
            Expr::Function(function) => self.function(function, scope)?,
            Expr::Substring { expr, substring_from, substring_for, .. } => {
                let mut arguments = vec![self.expr(expr, scope)?];
                arguments.push(match substring_from {
                    Some(from) => self.expr(from, scope)?,
                    None => Datum::Int(1),
                });
                if let Some(count) = substring_for {
                    arguments.push(self.expr(count, scope)?);
                }
                calls::call(self, "substr", &arguments)?
            }
            Expr::CompoundFieldAccess { root, access_chain } => {
                let [AccessExpr::Subscript(Subscript::Index { index })] = &access_chain[..] else {
                    return Err(unsupported(format!("the expression {}", short(expr))));
                };
                let (items, index) = (self.expr(root, scope)?.items(), self.expr(index, scope)?.int());
                let at = index.and_then(|index| usize::try_from(index - 1).ok());
                items.zip(at).and_then(|(items, at)| items.get(at).cloned()).unwrap_or(Datum::Null)
            }
            other => return Err(unsupported(format!("the expression {} in a query over the catalog", short(other)))),
        })
    }

    fn literal(&self, literal: &Literal) -> Result<Datum, Problem> {
        Ok(match literal {
            Literal::Null => Datum::Null,
            Literal::Boolean(v) => Datum::Bool(*v),
            Literal::Number(digits, _) => match (digits.parse(), digits.parse()) {
                (Ok(v), _) => Datum::Int(v),
                (_, Ok(v)) => Datum::Float(v),
                _ => return Err(unsupported(format!("the number {digits}"))),
            },
            Literal::Placeholder(_) => {
                let (Known::Text(text), items) = self.params.parameter(literal)? else { return Ok(Datum::Null) };
                match items {
                    Some(items) => Datum::List(items.into_iter().map(Datum::from_json).collect()),
                    None => text.map_or(Datum::Null, Datum::Text),
                }
            }
            other => match self.params.constant(&Expr::value(other.clone()))? {
                Known::Text(text) => text.map_or(Datum::Null, Datum::Text),
                _ => Datum::Null,
            },
        })
    }

    fn list(&self, query: &Query, scope: Option<&Scope<'_>>) -> Result<Vec<Datum>, Problem> {
        let rows = self.query(query, scope)?.rows;
        Ok(rows.into_iter().filter_map(|row| row.into_iter().next()).collect())
    }

    fn array(&self, expr: &Expr, scope: Option<&Scope<'_>>) -> Result<Option<Vec<Datum>>, Problem> {
        match expr {
            Expr::Subquery(query) => self.list(query, scope).map(Some),
            Expr::Nested(inner) => self.array(inner, scope),
            other => Ok(self.expr(other, scope)?.items()),
        }
    }

    fn is_same(&self, left: &Expr, right: &Expr, scope: Option<&Scope<'_>>) -> Result<bool, Problem> {
        let (left, right) = (self.expr(left, scope)?, self.expr(right, scope)?);
        Ok(left == right || left.compare(&right) == Some(Ordering::Equal))
    }

    fn like(
        &self,
        expr: &Expr,
        pattern: &Expr,
        negated: bool,
        fold: bool,
        scope: Option<&Scope<'_>>,
    ) -> Result<Datum, Problem> {
        let (text, pattern) = (self.expr(expr, scope)?.text(), self.expr(pattern, scope)?.text());
        let both = text.zip(pattern);
        both.as_ref().map_or(Ok(()), |(text, pattern)| self.spend_on_pattern(text, pattern))?;
        let found = both.map(|(text, pattern)| like(&text, &pattern, fold) != negated);
        Ok(found.map_or(Datum::Null, Datum::Bool))
    }

    fn binary(
        &self,
        left: &Expr,
        op: &BinaryOperator,
        right: &Expr,
        scope: Option<&Scope<'_>>,
    ) -> Result<Datum, Problem> {
        let truth = |value: Option<bool>| value.map_or(Datum::Null, Datum::Bool);
        // The other side of what is decided is not looked at.
        if let BinaryOperator::And | BinaryOperator::Or = op {
            let decided = *op == BinaryOperator::Or;
            let left = self.expr(left, scope)?.truth();
            if left == Some(decided) {
                return Ok(Datum::Bool(decided));
            }
            let right = self.expr(right, scope)?.truth();
            let found = if right == Some(decided) { right } else { left.and(right) };
            return Ok(truth(found));
        }
        let (a, b) = (self.expr(left, scope)?, self.expr(right, scope)?);
        let text = operator(op);
        let matches = |fold, negated| match (a.text(), b.text()) {
            (Some(text), Some(pattern)) => {
                self.spend_on_pattern(&text, &pattern)?;
                match regex(&text, &pattern, fold) {
                    Some(found) => Ok(Datum::Bool(found != negated)),
                    None => Err(unsupported(format!("the regular expression {pattern:?}"))),
                }
            }
            _ => Ok(Datum::Null),
        };
        let number = |whole: fn(i64, i64) -> Option<i64>| match (a.int(), b.int()) {
            (Some(a), Some(b)) => whole(a, b).map_or(Datum::Null, Datum::Int),
            _ => Datum::Null,
        };
        Ok(match text.as_str() {
            "~" => matches(false, false)?,
            "!~" => matches(false, true)?,
            "~*" => matches(true, false)?,
            "!~*" => matches(true, true)?,
            "~~" | "!~~" | "~~*" | "!~~*" => {
                let (fold, negated) = (text.ends_with('*'), text.starts_with('!'));
                let both = a.text().zip(b.text());
                both.as_ref().map_or(Ok(()), |(text, pattern)| self.spend_on_pattern(text, pattern))?;
                let found = both.map(|(text, pattern)| like(&text, &pattern, fold) != negated);
                truth(found)
            }
            "||" => match (&a, &b) {
                (Datum::List(items), other) | (other, Datum::List(items)) => {
                    let first = matches!(a, Datum::List(_));
                    let more = match other {
                        Datum::List(more) => more.clone(),
                        Datum::Null => Vec::new(),
                        one => vec![one.clone()],
                    };
                    let (mut all, behind) = if first { (items.clone(), more) } else { (more, items.clone()) };
                    all.extend(behind);
                    Datum::List(all)
                }
                _ => a.text().zip(b.text()).map_or(Datum::Null, |(a, b)| Datum::Text(a + &b)),
            },
            "+" => number(i64::checked_add),
            "-" => number(i64::checked_sub),
            "*" => number(i64::checked_mul),
            "/" => number(i64::checked_div),
            "%" => number(i64::checked_rem),
            "&" => number(|a, b| Some(a & b)),
            _ => truth(a.compare(&b).map(holds(op)?)),
        })
    }

    fn case(
        &self,
        operand: Option<&Expr>,
        conditions: &[CaseWhen],
        otherwise: Option<&Expr>,
        scope: Option<&Scope<'_>>,
    ) -> Result<Datum, Problem> {
        let operand = operand.map(|operand| self.expr(operand, scope)).transpose()?;
        for CaseWhen { condition, result } in conditions {
            let value = self.expr(condition, scope)?;
            let taken = match &operand {
                Some(operand) => operand.compare(&value) == Some(Ordering::Equal),
                None => value.truth() == Some(true),
            };
            if taken {
                return self.expr(result, scope);
            }
        }
        otherwise.map_or(Ok(Datum::Null), |otherwise| self.expr(otherwise, scope))
    }

    /// A name becomes a number where it is a name of something, and a number a name.
    fn cast(&self, value: Datum, to: &str) -> Result<Datum, Problem> {
        let to = to.to_ascii_lowercase();
        let to = to.strip_prefix("pg_catalog.").unwrap_or(&to);
        let number = value.int();
        Ok(match (to, &value) {
            (_, Datum::Null) => Datum::Null,
            ("regclass", Datum::Text(name)) if number.is_none() => {
                let pieces = super::name_pieces(name);
                let oid = self.relation(&pieces).map(|relation| Datum::Int(relation.oid));
                oid.ok_or_else(|| {
                    Problem::new(problem::UNKNOWN_COLLECTION, format!("relation \"{name}\" does not exist"))
                })?
            }
            ("regclass", _) => {
                let found = self.world.relations().into_iter().find(|relation| Some(relation.oid) == number);
                found.map_or(value, |found| Datum::Text(found.name))
            }
            ("regtype", Datum::Text(name)) if number.is_none() => type_named(name)
                .map(Datum::Int)
                .ok_or_else(|| Problem::new(problem::UNKNOWN_COLUMN, format!("type \"{name}\" does not exist")))?,
            ("regtype", _) => number.map_or(Datum::Null, |oid| Datum::Text(type_shown(oid))),
            ("regproc", Datum::Text(name)) => Datum::Text(name.trim_start_matches("pg_catalog.").to_owned()),
            ("regnamespace" | "regrole" | "regproc", _) => value,
            ("text" | "varchar" | "character varying" | "name", _) => value.text().map_or(Datum::Null, Datum::Text),
            ("bool" | "boolean", _) => value.truth().map_or(Datum::Null, Datum::Bool),
            (array, Datum::Text(_)) if array.ends_with("[]") => value.items().map_or(Datum::Null, Datum::List),
            ("oid" | "int4" | "int" | "integer" | "int8" | "bigint" | "int2" | "smallint", Datum::Text(text)) => {
                let wrong = || Problem::new(problem::BAD_PARAMETER, format!("invalid input for type {to}: {text:?}"));
                Datum::Int(number.ok_or_else(wrong)?)
            }
            _ => value,
        })
    }

    /// A table by its name.
    pub(super) fn relation(&self, pieces: &[String]) -> Option<super::relations::Relation> {
        let (name, schema) = pieces.split_last()?;
        let schema = schema.last();
        let mine = |relation: &super::relations::Relation| {
            relation.name == *name && schema.is_none_or(|schema| schema == relation.schema)
        };
        self.world.relations().into_iter().find(mine)
    }

    fn function(&self, function: &Function, scope: Option<&Scope<'_>>) -> Result<Datum, Problem> {
        let name = pieces(&function.name).pop().unwrap_or_default();
        if let (FunctionArguments::Subquery(query), "array") = (&function.args, name.as_str()) {
            return self.list(query, scope).map(Datum::List);
        }
        let refused = || unsupported(format!("the function {name} in a query over the catalog"));
        if function.over.is_some() {
            return Err(refused());
        }
        let arguments = arguments(function).ok_or_else(refused)?;
        // What is not needed is not looked at.
        if name == "coalesce" {
            for argument in arguments {
                let value = self.expr(argument, scope)?;
                if value != Datum::Null {
                    return Ok(value);
                }
            }
            return Ok(Datum::Null);
        }
        let values = arguments.iter().map(|argument| self.expr(argument, scope)).collect::<Result<Vec<_>, _>>()?;
        calls::call(self, &name, &values)
    }

    /// The value of an expression over a group of rows; aggregates are over all of them, anything else over the first.
    pub(super) fn in_group(&self, expr: &Expr, scope: &Scope<'_>, group: &[Scope<'_>]) -> Result<Datum, Problem> {
        match expr {
            Expr::Function(function) if self.is_aggregate(expr) => self.aggregate(function, group),
            Expr::Nested(inner) if self.is_aggregate(inner) => self.in_group(inner, scope, group),
            Expr::Cast { expr: inner, data_type, .. } if self.is_aggregate(inner) => {
                self.cast(self.in_group(inner, scope, group)?, &data_type.to_string())
            }
            _ if self.is_aggregate(expr) => {
                Err(unsupported(format!("the expression {} around an aggregate", short(expr))))
            }
            _ => self.expr(expr, Some(scope)),
        }
    }

    /// Is there an aggregate in it?
    pub(super) fn is_aggregate(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Function(function) => {
                let name = pieces(&function.name).pop().unwrap_or_default();
                let own = ["count", "min", "max", "string_agg", "array_agg", "bool_and", "bool_or", "sum"];
                // array(SELECT ...) is none.
                let plain = !matches!(function.args, FunctionArguments::Subquery(_));
                plain && own.contains(&name.as_str())
                    || arguments(function).into_iter().flatten().any(|argument| self.is_aggregate(argument))
            }
            Expr::Nested(inner) | Expr::Cast { expr: inner, .. } | Expr::UnaryOp { expr: inner, .. } => {
                self.is_aggregate(inner)
            }
            Expr::BinaryOp { left, right, .. } => self.is_aggregate(left) || self.is_aggregate(right),
            _ => false,
        }
    }

    fn aggregate(&self, function: &Function, group: &[Scope<'_>]) -> Result<Datum, Problem> {
        let name = pieces(&function.name).pop().unwrap_or_default();
        let refused = || unsupported(format!("this form of {name} over the catalog"));
        if function.filter.is_some() || function.over.is_some() || !function.within_group.is_empty() {
            return Err(refused());
        }
        if name == "count" && function.args.to_string() == "(*)" {
            return Ok(Datum::Int(group.len() as i64));
        }
        let arguments = arguments(function).ok_or_else(refused)?;
        let first = arguments.first().ok_or_else(refused)?;
        let mut values = group.iter().map(|scope| self.expr(first, Some(scope))).collect::<Result<Vec<_>, _>>()?;
        if name != "array_agg" {
            values.retain(|value| *value != Datum::Null);
        }
        if function.args.to_string().to_lowercase().contains(" order by ") {
            values.sort_by(Datum::sorted);
        }
        Ok(match name.as_str() {
            "count" => Datum::Int(values.len() as i64),
            "min" => values.into_iter().min_by(Datum::sorted).unwrap_or(Datum::Null),
            "max" => values.into_iter().max_by(Datum::sorted).unwrap_or(Datum::Null),
            "sum" if values.is_empty() => Datum::Null,
            "sum" => Datum::Int(values.iter().filter_map(Datum::int).fold(0, i64::saturating_add)),
            "bool_and" if !values.is_empty() => Datum::Bool(values.iter().all(|value| value.truth() == Some(true))),
            "bool_or" if !values.is_empty() => Datum::Bool(values.iter().any(|value| value.truth() == Some(true))),
            "array_agg" if !values.is_empty() => Datum::List(values),
            "string_agg" if !values.is_empty() => {
                let between = match (arguments.get(1), group.first()) {
                    (Some(between), Some(scope)) => self.expr(between, Some(scope))?.text().unwrap_or_default(),
                    _ => String::new(),
                };
                self.check_made(values.len() * between.len() + values.iter().map(Datum::bytes).sum::<usize>())?;
                Datum::Text(values.iter().filter_map(Datum::text).collect::<Vec<_>>().join(&between))
            }
            _ => Datum::Null,
        })
    }

    /// The type of an expression, as far as somebody may want to know it.
    pub(super) fn kind(&self, expr: &Expr, sources: &[Source]) -> Kind {
        let of_column = |table: Option<&str>, name: &str| sources.iter().find_map(|source| source.kind(table, name));
        match expr {
            Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => self.kind(inner, sources),
            Expr::Identifier(ident) => of_column(None, &folded(ident)).unwrap_or(Kind::Text),
            Expr::CompoundIdentifier(idents) => {
                let names: Vec<_> = idents.iter().map(folded).collect();
                let (name, table) = names.split_last().map_or(("", None), |(name, rest)| (name, rest.last()));
                of_column(table.map(String::as_str), name).unwrap_or(Kind::Text)
            }
            Expr::Value(value) => match &value.value {
                Literal::Boolean(_) => Kind::Bool,
                Literal::Number(digits, _) if digits.parse::<i32>().is_ok() => Kind::Int4,
                _ => Kind::Text,
            },
            Expr::Cast { data_type, .. } => {
                let name = data_type.to_string().to_ascii_lowercase();
                let reg = name.trim_start_matches("pg_catalog.").starts_with("reg");
                if reg { Kind::Text } else { types::by_name(&name).map_or(Kind::Text, Kind::of_oid) }
            }
            Expr::BinaryOp { op, left, .. } => match operator(op).as_str() {
                "||" => Kind::Text,
                "+" | "-" | "*" | "/" | "%" | "&" => self.kind(left, sources),
                _ => Kind::Bool,
            },
            Expr::UnaryOp { op: UnaryOperator::Not, .. } => Kind::Bool,
            Expr::UnaryOp { expr, .. } => self.kind(expr, sources),
            Expr::Function(function) => {
                let name = pieces(&function.name).pop().unwrap_or_default();
                let argument = arguments(function).and_then(|arguments| arguments.first().copied());
                match name.as_str() {
                    "coalesce" | "nullif" | "min" | "max" => {
                        argument.map_or(Kind::Text, |first| self.kind(first, sources))
                    }
                    "array" | "array_agg" => Kind::Texts,
                    name => calls::kind(name),
                }
            }
            Expr::Case { conditions, .. } => {
                conditions.first().map_or(Kind::Text, |first| self.kind(&first.result, sources))
            }
            Expr::Subquery(query) => match self.query(query, None) {
                Ok(rows) => rows.columns.first().map_or(Kind::Text, |(_, kind)| *kind),
                Err(_) => Kind::Text,
            },
            Expr::Array(_) => Kind::Texts,
            Expr::Substring { .. } => Kind::Text,
            _ => Kind::Bool,
        }
    }
}

fn column(scope: Option<&Scope<'_>>, table: Option<&str>, name: &str) -> Result<Datum, Problem> {
    scope.and_then(|scope| scope.column(table, name)).ok_or_else(|| {
        let name = table.map_or_else(|| name.to_owned(), |table| format!("{table}.{name}"));
        Problem::new(problem::UNKNOWN_COLUMN, format!("column {name} does not exist in the catalog"))
    })
}

fn operator(op: &BinaryOperator) -> String {
    match op {
        BinaryOperator::PGCustomBinaryOperator(pieces) => pieces.last().cloned().unwrap_or_default(),
        other => other.to_string(),
    }
}

/// What a comparison means.
fn holds(op: &BinaryOperator) -> Result<fn(Ordering) -> bool, Problem> {
    Ok(match operator(op).as_str() {
        "=" => Ordering::is_eq,
        "<>" | "!=" => Ordering::is_ne,
        "<" => Ordering::is_lt,
        "<=" => Ordering::is_le,
        ">" => Ordering::is_gt,
        ">=" => Ordering::is_ge,
        other => return Err(unsupported(format!("the operator {other} in a query over the catalog"))),
    })
}

/// Does it hold for one of them? Unknown where only a NULL could say so.
fn any(value: &Datum, holds: impl Fn(Ordering) -> bool, list: &[Datum]) -> Option<bool> {
    let mut unknown = false;
    for item in list {
        match (value, item) {
            (Datum::Null, _) | (_, Datum::Null) => unknown = true,
            _ if value.compare(item).is_some_and(&holds) => return Some(true),
            _ => {}
        }
    }
    (!unknown).then_some(false)
}

fn and(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}
