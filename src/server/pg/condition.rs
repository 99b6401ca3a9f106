//! Expressions of a statement -> constants, distances, and conditions in the filter language.

use crate::model::{ColumnType, Embedding, pgtype, quote_ident};
use crate::server::pg::types::{self, Param};
use crate::server::problem::{self, Problem};
use serde_json::Value as Json;
use sqlparser::ast::{
    BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName,
    UnaryOperator, Value as Literal,
};

/// Deepest nesting that is followed; the parser refuses less.
const MAX_DEPTH: usize = 200;

/// A constant as far as it is known.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// This text, or NULL.
    Text(Option<String>),
    /// A vector.
    Vector(Vec<f32>),
    /// A parameter without a value: the statement is only described or explained.
    Unknown,
}

/// Why a form of SQL is not taken.
pub fn unsupported(what: impl std::fmt::Display) -> Problem {
    Problem::new(problem::UNSUPPORTED, format!("{what} is not supported")).hint(
        "one table with conditions, ORDER BY, LIMIT; join and aggregate on the other side, around a sub-select with LIMIT \
         or OFFSET 0. docs/sql.md lists the forms",
    )
}

/// A name as Postgres folds it.
pub fn folded(ident: &sqlparser::ast::Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// The pieces of a name.
pub fn pieces(name: &ObjectName) -> Vec<String> {
    name.0.iter().map(|part| part.as_ident().map_or_else(|| part.to_string(), folded)).collect()
}

/// The values of a statement's parameters: none where it is only described.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a>(pub Option<&'a [Param]>);

impl<'a> Params<'a> {
    fn get(&self, placeholder: &str) -> Result<Option<&'a Param>, Problem> {
        let Some(params) = self.0 else { return Ok(None) };
        let at = placeholder.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok()).filter(|at| *at > 0);
        let found = at.and_then(|at| params.get(at - 1));
        found.map(Some).ok_or_else(|| {
            let detail = format!("there is no parameter {placeholder}; {} were sent", params.len());
            Problem::new(problem::BAD_PARAMETER, detail)
        })
    }

    /// The constant that an expression is.
    pub fn constant(&self, expr: &Expr) -> Result<Known, Problem> {
        match expr {
            Expr::Value(value) => self.literal(&value.value),
            Expr::Nested(inner) => self.constant(inner),
            Expr::Cast { expr, .. } => self.constant(expr),
            Expr::TypedString(typed) => self.literal(&typed.value.value),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match self.constant(expr)? {
                Known::Text(Some(digits)) if digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
                    Ok(Known::Text(Some(format!("-{digits}"))))
                }
                _ => Err(unsupported(format!("the expression {}", short(expr)))),
            },
            Expr::UnaryOp { op: UnaryOperator::Plus, expr } => self.constant(expr),
            // What a planner that does not know a parameter asks for: (SELECT null::text)
            Expr::Subquery(query) if is_null_of_a_type(query) => Ok(Known::Unknown),
            Expr::Array(array) => {
                let mut items = Vec::with_capacity(array.elem.len());
                for element in &array.elem {
                    match self.constant(element)? {
                        Known::Text(Some(text)) => items.push(text),
                        Known::Unknown => return Ok(Known::Unknown),
                        _ => return Err(unsupported("an array with NULLs or arrays in it")),
                    }
                }
                Ok(Known::Text(Some(format!("{{{}}}", items.join(",")))))
            }
            _ => Err(unsupported(format!("the expression {} where a constant should be", short(expr)))),
        }
    }

    fn literal(&self, literal: &Literal) -> Result<Known, Problem> {
        Ok(match literal {
            Literal::Null => Known::Text(None),
            Literal::Boolean(v) => Known::Text(Some(v.to_string())),
            Literal::Number(digits, _) => Known::Text(Some(digits.clone())),
            Literal::SingleQuotedString(text)
            | Literal::EscapedStringLiteral(text)
            | Literal::UnicodeStringLiteral(text)
            | Literal::NationalStringLiteral(text) => Known::Text(Some(text.clone())),
            Literal::DollarQuotedString(text) => Known::Text(Some(text.value.clone())),
            Literal::Placeholder(name) => match self.get(name)? {
                None => Known::Unknown,
                Some(param) => match param.vector() {
                    Some(vector) => Known::Vector(vector),
                    None => Known::Text(param.text()?),
                },
            },
            other => return Err(unsupported(format!("the literal {}", clipped(&other.to_string())))),
        })
    }

    /// The constant as a whole number.
    pub fn number(&self, expr: &Expr, what: &str) -> Result<Option<u64>, Problem> {
        match self.constant(expr)? {
            Known::Text(Some(text)) => text.trim().parse().map(Some).map_err(|_| {
                Problem::new(problem::LIMIT, format!("{what} is {}; a whole number is needed", clipped(&text)))
            }),
            _ => Ok(None),
        }
    }
}

/// Does this query give one NULL of some type and nothing else?
fn is_null_of_a_type(query: &sqlparser::ast::Query) -> bool {
    let text = query.to_string().to_ascii_lowercase();
    text.strip_prefix("select null").is_some_and(|rest| rest.starts_with("::") && !rest.contains([' ', '(']))
        || text.starts_with("select cast(null as ")
        || text.strip_prefix("select null::").is_some_and(|rest| !rest.contains(" from "))
}

/// An expression in an error.
pub fn short(expr: &Expr) -> String {
    clipped(&expr.to_string())
}

fn clipped(text: &str) -> String {
    if text.chars().count() > 60 { text.chars().take(60).chain("...".chars()).collect() } else { text.to_owned() }
}

/// A constant as a vector, in whatever form: `[1,2]`, `{1,2}`, bits for a column of bits, `{1:2}/3` for a sparse one.
pub fn vector(known: Known, kind: ColumnType) -> Result<Option<Embedding>, Problem> {
    let text = match known {
        Known::Vector(vector) => return Ok(Some(vector.into())),
        Known::Text(Some(text)) => text,
        Known::Text(None) | Known::Unknown => return Ok(None),
    };
    let form = match text.trim_start().as_bytes().first() {
        _ if kind.is_bits() || kind == ColumnType::Sparsevec => kind,
        Some(b'{') => ColumnType::Float4Array,
        _ => ColumnType::Vector,
    };
    let wrong = |reason: String| {
        let hint = match kind {
            ColumnType::Sparsevec => "write '{1:0.5,3:2}/5': indices from 1, values, dimensions",
            _ => "write '[1,2,3]', '{1,2,3}' or ARRAY[1,2,3]",
        };
        Problem::new(problem::MALFORMED, format!("the query is no vector{reason}")).hint(hint)
    };
    let value = pgtype::parse_literal(form, &text).map_err(|reason| wrong(format!(": {reason}")))?;
    Embedding::try_from(value).map(Some).map_err(|_| wrong(String::new()))
}

/// A distance between a column and a constant, as pgvector writes it.
#[derive(Debug, Clone)]
pub struct Distance<'e> {
    /// The column's name.
    pub column: String,
    /// The operator it is.
    pub operator: &'static str,
    /// The other side.
    pub query: &'e Expr,
}

impl Distance<'_> {
    /// Is it the same distance? Drivers send the same vector once for each place where it stands; as long as it is not
    /// known it may be.
    pub fn is_same(&self, other: &Distance<'_>, params: Params<'_>) -> bool {
        let same_query = || match (params.constant(self.query), params.constant(other.query)) {
            (Ok(Known::Unknown), Ok(_)) | (Ok(_), Ok(Known::Unknown)) => true,
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        };
        let same = self.column == other.column && self.operator == other.operator;
        same && (self.query == other.query || same_query())
    }
}

/// pgvector's operators and the functions that are the same.
const DISTANCES: [(&str, &str); 6] = [
    ("<->", "l2_distance"),
    ("<=>", "cosine_distance"),
    ("<#>", "negative_inner_product"),
    ("<+>", "l1_distance"),
    ("<~>", "hamming_distance"),
    ("<%>", "jaccard_distance"),
];

/// The distance that an expression is, if it is one. `is_vector`: is there such a vector column?
pub fn distance<'e>(expr: &'e Expr, is_vector: &dyn Fn(&str) -> bool) -> Option<Distance<'e>> {
    let (operator, left, right) = match expr {
        Expr::Nested(inner) => return distance(inner, is_vector),
        Expr::BinaryOp { left, op, right } => (operator(op)?, &**left, &**right),
        Expr::Function(function) => {
            let name = pieces(&function.name).pop()?;
            let (operator, _) = DISTANCES.iter().find(|(_, other)| *other == name)?;
            let [left, right] = arguments(function)?[..] else { return None };
            (*operator, left, right)
        }
        _ => return None,
    };
    let named = |side: &Expr| column_name(side).filter(|name| is_vector(name));
    let (column, query) = named(left).map(|name| (name, right)).or_else(|| Some((named(right)?, left)))?;
    Some(Distance { column, operator, query })
}

fn operator(op: &BinaryOperator) -> Option<&'static str> {
    let text = match op {
        BinaryOperator::PGCustomBinaryOperator(pieces) => pieces.last()?.clone(),
        BinaryOperator::Spaceship => "<=>".to_owned(),
        other => other.to_string(),
    };
    DISTANCES.iter().map(|(operator, _)| *operator).find(|operator| *operator == text)
}

/// The plain arguments of a function; none where it has others.
pub fn arguments(function: &Function) -> Option<Vec<&Expr>> {
    match &function.args {
        FunctionArguments::None => Some(Vec::new()),
        FunctionArguments::Subquery(_) => None,
        FunctionArguments::List(list) => list
            .args
            .iter()
            .map(|arg| match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
                _ => None,
            })
            .collect(),
    }
}

/// The column that an expression names, without its table; a cast to a vector's own type changes nothing.
pub fn column_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) => Some(folded(ident)),
        Expr::CompoundIdentifier(idents) => idents.last().map(folded),
        Expr::Nested(inner) => column_name(inner),
        Expr::Cast { expr, data_type: DataType::Custom(..), .. } => column_name(expr),
        _ => None,
    }
}

/// The conditions that all have to hold.
pub fn conjuncts(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            let mut all = conjuncts(left);
            all.extend(conjuncts(right));
            all
        }
        Expr::Nested(inner) => conjuncts(inner),
        other => vec![other],
    }
}

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
                    self.constant(item, out)?;
                }
                out.text.push(')');
                Ok(())
            }
            Expr::Between { expr, negated, low, high } => {
                self.expr(expr, out, depth + 1)?;
                out.text.push_str(if *negated { " NOT BETWEEN " } else { " BETWEEN " });
                self.constant(low, out)?;
                out.text.push_str(" AND ");
                self.constant(high, out)
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
        out.text.push('(');
        self.expr(left, out, depth + 1)?;
        out.text.push_str(&format!(" {text} "));
        self.expr(right, out, depth + 1)?;
        out.text.push(')');
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
