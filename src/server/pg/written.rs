//! Conditions of a statement -> the filter language.

use crate::model::{Lsn, quote_ident};
use crate::server::pg::condition::{Known, Params, clipped, column_name, unsupported};
use crate::server::pg::types;
use crate::server::problem::{self, Problem};
use serde_json::Value as Json;
use sqlparser::ast::{BinaryOperator, Expr, UnaryOperator, Value as Literal};

/// Deepest nesting that is followed; the parser refuses less.
const MAX_DEPTH: usize = 200;

/// A condition written in the filter language, with the parameters it uses and the columns it names.
#[derive(Debug, Default)]
pub struct Written {
    /// Its text.
    pub text: String,
    /// `$1` and so on.
    pub params: Vec<Json>,
    /// Columns by name.
    pub columns: Vec<String>,
    /// Something in it is not known yet.
    pub unknown: bool,
}

/// Writes conditions. Distances become the column `distance_column`.
pub struct Writer<'a> {
    /// Values.
    pub params: Params<'a>,
    /// Is it a distance that the statement orders by?
    pub is_distance: &'a dyn Fn(&Expr) -> bool,
    /// The column's name.
    pub distance_column: &'a str,
    /// Is it a column of positions, which are numbers here?
    pub is_lsn: &'a dyn Fn(&str) -> bool,
}

impl Writer<'_> {
    /// One condition.
    pub fn write(&self, expr: &Expr) -> Result<Written, Problem> {
        let mut out = Written::default();
        self.expr(expr, &mut out, 0)?;
        Ok(out)
    }

    fn expr(&self, expr: &Expr, out: &mut Written, depth: usize) -> Result<(), Problem> {
        if depth > MAX_DEPTH {
            return Err(unsupported("so deep a condition"));
        }
        if (self.is_distance)(expr) {
            return self.column(self.distance_column.to_owned(), out);
        }
        let mut suffix = |inner: &Expr, text: &str| {
            out.text.push('(');
            self.expr(inner, out, depth + 1)?;
            out.text.push_str(text);
            out.text.push(')');
            Ok(())
        };
        match expr {
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) => {
                self.column(column_name(expr).unwrap_or_default(), out)
            }
            Expr::Nested(inner) => suffix(inner, ""),
            Expr::IsNull(inner) => suffix(inner, " IS NULL"),
            Expr::IsNotNull(inner) => suffix(inner, " IS NOT NULL"),
            Expr::IsTrue(inner) => suffix(inner, " IS TRUE"),
            Expr::IsNotTrue(inner) => suffix(inner, " IS NOT TRUE"),
            Expr::IsFalse(inner) => suffix(inner, " IS FALSE"),
            Expr::IsNotFalse(inner) => suffix(inner, " IS NOT FALSE"),
            Expr::IsUnknown(inner) => suffix(inner, " IS UNKNOWN"),
            Expr::IsNotUnknown(inner) => suffix(inner, " IS NOT UNKNOWN"),
            Expr::IsDistinctFrom(left, right) => self.distinct(left, right, true, out, depth),
            Expr::IsNotDistinctFrom(left, right) => self.distinct(left, right, false, out, depth),
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => {
                out.text.push_str("(NOT ");
                self.expr(expr, out, depth + 1)?;
                out.text.push(')');
                Ok(())
            }
            Expr::BinaryOp { left, op, right } => self.binary(left, op, right, out, depth),
            Expr::AnyOp { left, compare_op, right, .. } => self.quantified(left, compare_op, "ANY", right, out, depth),
            Expr::AllOp { left, compare_op, right } => self.quantified(left, compare_op, "ALL", right, out, depth),
            Expr::InList { expr, list, negated } => {
                self.expr(expr, out, depth + 1)?;
                out.text.push_str(if *negated { " NOT IN (" } else { " IN (" });
                for (at, item) in list.iter().enumerate() {
                    if at > 0 {
                        out.text.push_str(", ");
                    }
                    self.compared(expr, item, out)?;
                }
                out.text.push(')');
                Ok(())
            }
            Expr::Between { expr, negated, low, high } => {
                self.expr(expr, out, depth + 1)?;
                out.text.push_str(if *negated { " NOT BETWEEN " } else { " BETWEEN " });
                self.compared(expr, low, out)?;
                out.text.push_str(" AND ");
                self.compared(expr, high, out)
            }
            other => self.constant(other, out),
        }
    }

    fn column(&self, name: String, out: &mut Written) -> Result<(), Problem> {
        out.text.push_str(&quote_ident(&name));
        out.columns.push(name);
        Ok(())
    }

    fn binary(
        &self,
        left: &Expr,
        op: &BinaryOperator,
        right: &Expr,
        out: &mut Written,
        depth: usize,
    ) -> Result<(), Problem> {
        use BinaryOperator::{And, Eq, Gt, GtEq, Lt, LtEq, NotEq, Or};
        let text = match op {
            Eq | NotEq | Lt | LtEq | Gt | GtEq | And | Or => op.to_string(),
            // OPERATOR(pg_catalog.=)
            BinaryOperator::PGCustomBinaryOperator(pieces) => match pieces.last().map(String::as_str) {
                Some(op @ ("=" | "<>" | "<" | "<=" | ">" | ">=")) => op.to_owned(),
                _ => return Err(unsupported(format!("the operator {op} in a condition"))),
            },
            _ => return Err(unsupported(format!("the operator {op} in a condition"))),
        };
        let lsn = self.is_lsn(left) || self.is_lsn(right);
        let side = |side: &Expr, out: &mut Written| match lsn && column_name(side).is_none() {
            true => self.lsn(side, out),
            false => self.expr(side, out, depth + 1),
        };
        out.text.push('(');
        side(left, out)?;
        out.text.push_str(&format!(" {text} "));
        side(right, out)?;
        out.text.push(')');
        Ok(())
    }

    fn is_lsn(&self, expr: &Expr) -> bool {
        column_name(expr).is_some_and(|name| (self.is_lsn)(&name))
    }

    /// A constant that a column is compared with.
    fn compared(&self, with: &Expr, constant: &Expr, out: &mut Written) -> Result<(), Problem> {
        if self.is_lsn(with) { self.lsn(constant, out) } else { self.constant(constant, out) }
    }

    /// A position as the number that it is.
    fn lsn(&self, expr: &Expr, out: &mut Written) -> Result<(), Problem> {
        let known = self.params.constant(expr)?;
        out.unknown |= known == Known::Unknown;
        let Known::Text(Some(text)) = known else {
            out.text.push_str("NULL");
            return Ok(());
        };
        out.text.push_str(&position(&text)?.to_string());
        Ok(())
    }

    /// What the filter language says with IS NULL.
    fn distinct(
        &self,
        left: &Expr,
        right: &Expr,
        distinct: bool,
        out: &mut Written,
        depth: usize,
    ) -> Result<(), Problem> {
        let (column, constant) = if column_name(left).is_some() { (left, right) } else { (right, left) };
        let name = column_name(column).ok_or_else(|| unsupported("IS DISTINCT FROM without a column"))?;
        if self.params.constant(constant)? == Known::Text(None) {
            self.column(name, out)?;
            out.text.push_str(if distinct { " IS NOT NULL" } else { " IS NULL" });
            return Ok(());
        }
        out.text.push_str(if distinct { "((" } else { "(NOT ((" });
        self.binary(column, &BinaryOperator::Eq, constant, out, depth)?;
        out.text.push_str(") IS NOT TRUE");
        out.text.push_str(if distinct { ")" } else { "))" });
        Ok(())
    }

    fn quantified(
        &self,
        left: &Expr,
        op: &BinaryOperator,
        word: &str,
        right: &Expr,
        out: &mut Written,
        depth: usize,
    ) -> Result<(), Problem> {
        self.expr(left, out, depth + 1)?;
        out.text.push_str(&format!(" {op} {word} ("));
        let inner = bare(right);
        let items = match inner {
            Expr::Value(value) => match &value.value {
                Literal::Placeholder(name) => match self.params.get(name)? {
                    Some(param) => param.items()?,
                    None => {
                        out.unknown = true;
                        None
                    }
                },
                _ => self.literal_items(inner)?,
            },
            _ => self.literal_items(inner)?,
        };
        let position = |item: &Json| match item.as_str() {
            Some(text) => position(text).map(Json::from),
            None => Ok(item.clone()),
        };
        let items = match items {
            Some(items) if self.is_lsn(left) => Some(items.iter().map(position).collect::<Result<_, _>>()?),
            items => items,
        };
        // `= ANY (NULL)` is unknown, and so is a comparison with a list of one NULL.
        out.params.push(Json::Array(items.unwrap_or_else(|| vec![Json::Null])));
        out.text.push_str(&format!("${})", out.params.len()));
        Ok(())
    }

    fn literal_items(&self, expr: &Expr) -> Result<Option<Vec<Json>>, Problem> {
        match self.params.constant(expr)? {
            Known::Text(Some(text)) => types::items(&text).map(Some),
            Known::Text(None) | Known::Unknown => Ok(None),
            Known::Vector(_) => Err(unsupported("a comparison with a vector")),
        }
    }

    /// A constant, with its cast where that is one of the filter language.
    fn constant(&self, expr: &Expr, out: &mut Written) -> Result<(), Problem> {
        if let Expr::Value(value) = bare(expr)
            && let Literal::Placeholder(name) = &value.value
        {
            match self.params.get(name)? {
                Some(param) => out.params.push(param.json()?),
                None => {
                    out.unknown = true;
                    out.params.push(Json::Null);
                }
            }
            out.text.push_str(&format!("${}", out.params.len()));
        } else {
            match self.params.constant(expr)? {
                Known::Unknown => {
                    out.unknown = true;
                    out.text.push_str("NULL");
                    return Ok(());
                }
                Known::Vector(_) => return Err(unsupported("a comparison with a vector")),
                Known::Text(None) => out.text.push_str("NULL"),
                Known::Text(Some(text)) => match bare(expr) {
                    Expr::Value(value) if matches!(value.value, Literal::Number(..) | Literal::Boolean(_)) => {
                        out.text.push_str(&text);
                    }
                    Expr::UnaryOp { .. } => out.text.push_str(&text),
                    _ => out.text.push_str(&crate::model::quote_literal(&text)),
                },
            }
        }
        if let Some(cast) = cast_name(expr) {
            out.text.push_str(&format!("::{cast}"));
        }
        Ok(())
    }
}

/// A written position as the number that it is.
fn position(text: &str) -> Result<i64, Problem> {
    let lsn: Lsn = text.parse().map_err(|_| {
        Problem::new(problem::BAD_PARAMETER, format!("invalid input for type pg_lsn: {:?}", clipped(text)))
            .hint("write it as pg_current_wal_lsn() gives it: '16/B374D848'")
    })?;
    Ok(lsn.0 as i64)
}

/// Without casts and parentheses.
fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Cast { expr, .. } | Expr::Nested(expr) => bare(expr),
        other => other,
    }
}

/// The outermost cast.
fn cast_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Nested(inner) => cast_name(inner),
        Expr::Cast { data_type, .. } => Some(data_type.to_string().to_lowercase()),
        _ => None,
    }
}
