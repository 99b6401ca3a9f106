//! Values in JSON: what callers send as constants and what answers show.

use crate::model::value::{ColumnType, Value};
use serde_json::{Number, Value as Json, json};

use super::{narrow, parse_literal, sparse, to_half, to_text, to_text_as};

/// The value for an answer. Floats that JSON does not have, dates, timestamps and UUIDs are strings in Postgres' form.
pub fn to_json(value: &Value) -> Json {
    match value {
        Value::Bool(v) => Json::Bool(*v),
        Value::Int(v) => Json::from(*v),
        Value::Float(v) => float_json(*v, || to_text(value)),
        Value::Vector(v) => v.iter().map(|item| real_json(*item)).collect(),
        Value::Sparse(v) => json!({
            "indices": v.indices(),
            "values": v.values().iter().map(|item| real_json(*item)).collect::<Vec<_>>(),
            "dim": v.dimensions(),
        }),
        Value::Text(_) | Value::Uuid(_) | Value::Date(_) | Value::Timestamp(_) => Json::String(to_text(value)),
    }
}

/// As [`to_json`], but as a column of this type is shown: no zone without one, `real` as short as it is, bits as digits.
pub fn to_json_as(kind: ColumnType, value: &Value) -> Json {
    match (kind, value) {
        (ColumnType::Float4, Value::Float(v)) => real_json(*v as f32),
        (ColumnType::Timestamp, Value::Timestamp(_)) => Json::String(to_text_as(kind, value)),
        (ColumnType::Bit | ColumnType::Varbit, Value::Vector(_)) => Json::String(to_text_as(kind, value)),
        _ => to_json(value),
    }
}

/// The value of this type that the JSON stands for; `None` for null. Strings are read as Postgres reads a literal of
/// the type, so numbers may be sent as strings. An error names the type.
pub fn from_json(kind: ColumnType, json: &Json) -> Result<Option<Value>, String> {
    let found = match json {
        Json::Null => return Ok(None),
        Json::String(text) => parse_literal(kind, text),
        Json::Bool(v) if kind == ColumnType::Bool => Ok(Value::Bool(*v)),
        Json::Number(number) => from_number(kind, number),
        Json::Array(items) if kind.is_vector() && !kind.is_bits() && kind != ColumnType::Sparsevec => {
            from_items(kind, items)
        }
        Json::Object(fields) if kind == ColumnType::Sparsevec => sparse::from_fields(fields),
        _ => Err(format!("found {}", name_of(json))),
    };
    found.map(Some).map_err(|reason| format!("expected {}: {reason}", expectation(kind)))
}

fn from_number(kind: ColumnType, number: &Number) -> Result<Value, String> {
    match kind {
        ColumnType::Int2 => from_integer(kind, number, i16::MIN.into(), i16::MAX.into()),
        ColumnType::Int4 => from_integer(kind, number, i32::MIN.into(), i32::MAX.into()),
        ColumnType::Int8 => from_integer(kind, number, i64::MIN, i64::MAX),
        ColumnType::Float8 => number.as_f64().map(Value::Float).ok_or_else(|| "out of range".into()),
        // From the digits, as Postgres reads them.
        ColumnType::Float4 => parse_literal(kind, &number.to_string()),
        _ => Err("found a number".into()),
    }
}

fn from_integer(kind: ColumnType, number: &Number, least: i64, most: i64) -> Result<Value, String> {
    let integral = || number.as_f64().filter(|v| v.fract() == 0.0 && v.abs() < 9_007_199_254_740_992.0);
    let v = match number.as_i64() {
        Some(v) => v,
        None if number.is_u64() => return Err(format!("out of range for {kind}")),
        None => integral().ok_or("not an integer")? as i64,
    };
    if (least..=most).contains(&v) { Ok(Value::Int(v)) } else { Err(format!("out of range for {kind}")) }
}

fn from_items(kind: ColumnType, items: &[Json]) -> Result<Value, String> {
    let item = |json: &Json| {
        let number = json.as_f64().ok_or("not an array of numbers")?;
        let number = narrow(number).ok_or_else(|| "an element is out of range for real".to_owned())?;
        if kind == ColumnType::Halfvec { to_half(number) } else { Ok(number) }
    };
    Ok(Value::Vector(items.iter().map(item).collect::<Result<_, String>>()?))
}

fn float_json(v: f64, otherwise: impl Fn() -> String) -> Json {
    Number::from_f64(v).map_or_else(|| Json::String(otherwise()), Json::Number)
}

/// By way of its shortest digits: 0.1 as an f64 would show as 0.10000000149011612.
fn real_json(v: f32) -> Json {
    let text = to_text_as(ColumnType::Float4, &Value::Float(v.into()));
    match text.parse::<f64>() {
        Ok(shortest) => float_json(shortest, || text.clone()),
        Err(_) => Json::String(text),
    }
}

fn expectation(kind: ColumnType) -> String {
    match kind {
        ColumnType::Date => "a date as a string in the form YYYY-MM-DD".into(),
        ColumnType::Timestamp => "a timestamp as a string in the form YYYY-MM-DD HH:MM:SS".into(),
        ColumnType::Timestamptz => "a timestamp as a string in the form YYYY-MM-DD HH:MM:SS+00".into(),
        ColumnType::Text | ColumnType::Varchar => "a string".into(),
        ColumnType::Bit | ColumnType::Varbit => r#"a string of the digits 0 and 1"#.into(),
        ColumnType::Sparsevec => r#"{"indices": [0, 2], "values": [0.5, 3], "dim": 5}"#.into(),
        kind if kind.is_vector() => "an array of numbers".into(),
        _ => format!("a value of type {kind}"),
    }
}

fn name_of(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}
