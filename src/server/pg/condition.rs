//! Expressions of a statement -> constants, distances, and conditions in the filter language.

use crate::model::{ColumnType, Embedding, pgtype};
use crate::server::pg::types::{self, Param};
use crate::server::problem::{self, Problem};
use serde_json::Value as Json;
use sqlparser::ast::{
    BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName,
    UnaryOperator, Value as Literal,
};

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
    pub(super) fn get(&self, placeholder: &str) -> Result<Option<&'a Param>, Problem> {
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
            // Where a statement is only described, any sub-select is such a value.
            Expr::Subquery(query) if self.0.is_none() || is_null_of_a_type(query) => Ok(Known::Unknown),
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

    /// What a parameter is: its text, and the items of it that came as an array in binary.
    pub fn parameter(&self, literal: &Literal) -> Result<(Known, Option<Vec<Json>>), Problem> {
        let Literal::Placeholder(name) = literal else { return Ok((self.literal(literal)?, None)) };
        match self.get(name)? {
            None => Ok((Known::Unknown, None)),
            Some(param) if param.format == 1 && types::is_array(param.oid) => Ok((Known::Text(None), param.items()?)),
            Some(param) => Ok((Known::Text(param.text()?), None)),
        }
    }

    /// The constant as a whole number.
    pub fn number(&self, expr: &Expr, what: &str) -> Result<Option<u64>, Problem> {
        match self.constant(expr)? {
            Known::Text(Some(text)) => text.trim().parse().map(Some).map_err(|_| {
                let detail = format!("{what} is {}; a whole number is needed", clipped(&text));
                Problem::new(problem::LIMIT, detail).hint("write a number from 0 on, or leave it out for all rows")
            }),
            _ => Ok(None),
        }
    }
}

/// Does this query give one NULL of some type and nothing else?
pub fn is_null_of_a_type(query: &sqlparser::ast::Query) -> bool {
    let text = query.to_string().to_ascii_lowercase();
    text.strip_prefix("select null").is_some_and(|rest| rest.starts_with("::") && !rest.contains([' ', '(']))
        || text.starts_with("select cast(null as ")
        || text.strip_prefix("select null::").is_some_and(|rest| !rest.contains(" from "))
}

/// An expression in an error.
pub fn short(expr: &Expr) -> String {
    clipped(&expr.to_string())
}

/// A text in an error.
pub fn clipped(text: &str) -> String {
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
