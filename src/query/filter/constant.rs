//! Constants of a filter, and the value each becomes beside a column: the one Postgres would compare with.

use crate::model::{ColumnType, FilterColumn, Value, pgtype};
use serde_json::Value as Json;

use super::FilterError;

/// A constant as written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Constant {
    /// What it says.
    pub(super) raw: Raw,
    /// The type it was given, if any.
    pub(super) cast: Option<Cast>,
    /// From a parameter: a number then has the column's type, as Postgres infers it.
    pub(super) is_param: bool,
    /// Where it stands.
    pub(super) position: usize,
}

/// What a constant says before it has a type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    /// NULL
    Null,
    /// TRUE, FALSE
    Bool(bool),
    /// Digits with a sign.
    Number(String),
    /// A string.
    Text(String),
    /// A parameter that is an array: elements of a list.
    Array(Vec<Json>),
}

/// A type a constant can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cast {
    /// One that columns can have.
    Column(ColumnType),
    /// `numeric`, which holds any number exactly.
    Numeric,
}

impl Constant {
    pub(super) fn new(raw: Raw, position: usize) -> Constant {
        Constant { raw, cast: None, is_param: false, position }
    }

    /// The parameter with this JSON.
    pub(super) fn param(json: &Json, position: usize) -> Result<Constant, FilterError> {
        let raw = match json {
            Json::Null => Raw::Null,
            Json::Bool(v) => Raw::Bool(*v),
            Json::Number(v) => Raw::Number(v.to_string()),
            Json::String(v) => Raw::Text(v.clone()),
            Json::Array(items) => Raw::Array(items.clone()),
            Json::Object(_) => {
                return Err(FilterError::new("a parameter is an object")
                    .hint("send text, a number, true, false, null, or a list of those")
                    .at(position));
            }
        };
        Ok(Constant { raw, cast: None, is_param: true, position })
    }

    /// The constant with this type. A string that was called text before may be given its real type.
    pub(super) fn cast(self, to: Cast) -> Result<Constant, FilterError> {
        match self.cast {
            None | Some(Cast::Column(ColumnType::Text | ColumnType::Varchar)) => {
                Ok(Constant { cast: Some(to), ..self })
            }
            Some(_) => Err(FilterError::new("a constant is cast twice").at(self.position)),
        }
    }

    /// The elements of an array parameter, each with the array's type.
    pub(super) fn elements(&self) -> Option<Result<Vec<Constant>, FilterError>> {
        let Raw::Array(items) = &self.raw else { return None };
        let element = |json| Ok(Constant { cast: self.cast, ..Constant::param(json, self.position)? });
        Some(items.iter().map(element).collect())
    }

    /// Is it NULL, if that can be said without a column?
    pub(super) fn is_null(&self) -> bool {
        self.raw == Raw::Null
    }

    /// The value to compare the column with; `None` is NULL.
    pub(super) fn resolve(&self, column: &FilterColumn) -> Result<Option<Value>, FilterError> {
        let value = match self.cast {
            None => self.untyped(column.kind),
            Some(Cast::Numeric) => self
                .numeric()
                .map(|raw| Constant { raw, ..self.clone() })
                .and_then(|number| if number.is_null() { Ok(None) } else { number.untyped(column.kind) }),
            Some(Cast::Column(kind)) => self.typed(kind).and_then(|value| convert(kind, value, column.kind)),
        };
        value.map_err(|reason| {
            let message =
                format!("the constant for column \"{}\" ({}) does not fit: {reason}", column.name, column.kind);
            FilterError::new(message).hint(format!("write a constant of type {}", column.kind)).at(self.position)
        })
    }

    fn untyped(&self, kind: ColumnType) -> Result<Option<Value>, String> {
        match &self.raw {
            Raw::Null => Ok(None),
            Raw::Number(digits) if kind == ColumnType::Float4 && self.is_param => parse(kind, digits),
            Raw::Number(digits) => number(digits, kind).map(Some),
            Raw::Bool(v) if kind == ColumnType::Bool => Ok(Some(Value::Bool(*v))),
            Raw::Bool(_) => Err("it is a boolean".into()),
            Raw::Text(text) => parse(kind, text),
            Raw::Array(_) => Err("it is an array; write column = ANY($n)".into()),
        }
    }

    /// The value of the type the constant was given.
    fn typed(&self, kind: ColumnType) -> Result<Option<Value>, String> {
        match &self.raw {
            Raw::Number(digits) if matches!(kind, ColumnType::Float4 | ColumnType::Float8) || is_integer(kind) => {
                parse(kind, digits)
            }
            Raw::Number(_) => Err(format!("a number cannot be cast to {kind} here")),
            _ => self.untyped(kind),
        }
    }

    fn numeric(&self) -> Result<Raw, String> {
        match &self.raw {
            Raw::Text(text) => {
                let digits = text.trim();
                Decimal::parse(digits).ok_or("not a number")?;
                Ok(Raw::Number(digits.to_owned()))
            }
            Raw::Null | Raw::Number(_) => Ok(self.raw.clone()),
            Raw::Bool(_) | Raw::Array(_) => Err("not a number".into()),
        }
    }
}

/// The elements of an IN list, given the types Postgres gives them beside a `real` column. It brings a list of two or
/// more, with the column, to one type: to `real`, unless one is said to be `double precision`. (A single number is
/// compared as `double precision`, which is why `= 0.1` finds nothing and `IN (0.1, 0.2)` does.)
pub(super) fn unify_list(constants: Vec<Constant>, column: &FilterColumn) -> Result<Vec<Constant>, FilterError> {
    if column.kind != ColumnType::Float4 || constants.len() < 2 {
        return Ok(constants);
    }
    let double = constants.iter().any(|constant| constant.cast == Some(Cast::Column(ColumnType::Float8)));
    let common = if double { ColumnType::Float8 } else { ColumnType::Float4 };
    let unify = |constant: Constant| {
        // What does not fit by itself is not to fit by this.
        constant.resolve(column)?;
        let keeps = constant.cast == Some(Cast::Column(ColumnType::Float4));
        Ok(if keeps { constant } else { Constant { cast: Some(Cast::Column(common)), ..constant } })
    };
    constants.into_iter().map(unify).collect()
}

fn parse(kind: ColumnType, text: &str) -> Result<Option<Value>, String> {
    pgtype::parse_literal(kind, text).map(Some)
}

fn is_integer(kind: ColumnType) -> bool {
    matches!(kind, ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8)
}

fn is_float(kind: ColumnType) -> bool {
    matches!(kind, ColumnType::Float4 | ColumnType::Float8)
}

fn is_text(kind: ColumnType) -> bool {
    matches!(kind, ColumnType::Text | ColumnType::Varchar)
}

/// A value of one type beside a column of another, where Postgres compares the two without regard to settings and
/// without loss: a float beside integers would make it round the integers.
fn convert(from: ColumnType, value: Option<Value>, to: ColumnType) -> Result<Option<Value>, String> {
    let Some(value) = value else { return Ok(None) };
    let same = from == to || (is_text(from) && is_text(to)) || (is_float(from) && is_float(to));
    match (value, to) {
        (value, _) if same => Ok(Some(value)),
        (Value::Int(v), _) if is_integer(to) => Ok(Some(Value::Int(v))),
        (Value::Int(v), _) if is_float(to) => Ok(Some(Value::Float(v as f64))),
        (Value::Date(v), ColumnType::Timestamp) => {
            pgtype::midnight(v).map(|v| Some(Value::Timestamp(v))).ok_or_else(|| "date out of range".into())
        }
        _ => Err(format!("it is of type {from}")),
    }
}

/// A number without a type: `numeric` in Postgres, which integers are compared with exactly, and floats as
/// `double precision`.
fn number(digits: &str, kind: ColumnType) -> Result<Value, String> {
    if is_float(kind) {
        return pgtype::parse_literal(ColumnType::Float8, digits);
    }
    if !is_integer(kind) {
        return Err("it is a number".into());
    }
    let decimal = Decimal::parse(digits).ok_or("not a number")?;
    decimal.beside_integers().ok_or_else(|| "it has more digits than can be compared exactly".into())
}

/// A decimal number: `0.digits` times ten to the power of `point`, digits without zeros at either end.
struct Decimal {
    negative: bool,
    digits: String,
    point: i64,
}

impl Decimal {
    fn parse(text: &str) -> Option<Decimal> {
        let negative = text.starts_with('-');
        let text = text.strip_prefix(['-', '+']).unwrap_or(text);
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, parse_exponent(exponent)?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let leading = digits.len() - digits.trim_start_matches('0').len();
        let point = exponent.saturating_add(whole.len() as i64 - leading as i64);
        Some(Decimal { negative, digits: digits.trim_matches('0').to_owned(), point })
    }

    /// A value that every integer compares with as it compares with this number. Between two integers, or beyond them
    /// all, any float between or beyond will do.
    fn beside_integers(&self) -> Option<Value> {
        let sign = if self.negative { -1.0 } else { 1.0 };
        if self.digits.is_empty() {
            return Some(Value::Int(0));
        }
        if self.point > 19 {
            return Some(Value::Float(sign * 1e19));
        }
        let places = usize::try_from(self.point).unwrap_or(0);
        let (whole, is_whole) = match self.digits.split_at_checked(places) {
            Some((whole, rest)) => (whole.to_owned(), rest.is_empty() && self.point >= 0),
            None => (format!("{:0<places$}", self.digits), true),
        };
        let signed = format!("{}{whole}", if self.negative { "-" } else { "" });
        match (signed.trim_end_matches('-').is_empty(), signed.parse::<i64>()) {
            (true, _) => self.between(0, sign),
            (false, Err(_)) => Some(Value::Float(sign * 1e19)),
            (false, Ok(v)) if is_whole => Some(Value::Int(v)),
            (false, Ok(v)) => self.between(v, sign),
        }
    }

    /// Between an integer and the next one away from zero: the nearest float if that is still between, else the middle.
    fn between(&self, whole: i64, sign: f64) -> Option<Value> {
        const EXACT: u64 = 1 << 52;
        if whole.unsigned_abs() >= EXACT {
            // No float lies between; but beyond the last integer there are some.
            return (whole == i64::MAX || whole == i64::MIN).then_some(Value::Float(sign * 1e19));
        }
        let text = format!("{}0.{}e{}", if self.negative { "-" } else { "" }, self.digits, self.point);
        let nearest = text.parse::<f64>().ok().filter(|v| v.fract() != 0.0);
        Some(Value::Float(nearest.unwrap_or(whole as f64 + sign * 0.5)))
    }
}

/// Far beyond any number's range, exponents differ in nothing.
fn parse_exponent(text: &str) -> Option<i64> {
    const FAR: i64 = 1_000_000_000;
    let negative = text.starts_with('-');
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let size = digits.parse::<i64>().unwrap_or(FAR).min(FAR);
    Some(if negative { -size } else { size })
}
