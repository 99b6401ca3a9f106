//! Postgres' binary and text forms of the column types this service takes: total decoders, canonical writers, JSON.

mod array;
mod bits;
mod datetime;
mod json;
mod sparse;
#[cfg(test)]
mod tests;

use crate::model::value::{Cell, ColumnType, Value};
use half::f16;
use std::fmt::{Debug, Write};

pub use datetime::midnight;
pub use json::{from_json, to_json, to_json_as};

/// What a decoder says about bytes that are no value of the type. Reasons never quote the bytes: they end up in logs.
type Parsed = Result<Value, String>;

/// The value in these bytes, as a type's send function writes it (PostgreSQL's and pgvector's `*send`
/// functions). Any bytes give a value or [`Cell::Invalid`].
pub fn decode_binary(kind: ColumnType, bytes: &[u8]) -> Cell {
    into_cell(binary(kind, bytes))
}

/// The value in this text, as a type's output function writes it in the ISO date style. Spellings that only the input
/// function knows (`yes`, `{uuid}`) are read as well. Any bytes give a value or [`Cell::Invalid`].
pub fn decode_text(kind: ColumnType, bytes: &[u8]) -> Cell {
    let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned());
    into_cell(text.and_then(|text| parse_literal(kind, text)))
}

/// The value of a constant written as text. A `timestamp with time zone` without a zone is in UTC.
pub fn parse_literal(kind: ColumnType, text: &str) -> Result<Value, String> {
    let trimmed = text.trim_matches(|c: char| c.is_ascii_whitespace());
    match kind {
        ColumnType::Bool => parse_bool(trimmed),
        ColumnType::Int2 => parse_int::<i16>(kind, trimmed),
        ColumnType::Int4 => parse_int::<i32>(kind, trimmed),
        ColumnType::Int8 => parse_int::<i64>(kind, trimmed),
        ColumnType::Float4 => parse_f32(trimmed).map(|v| Value::Float(f64::from(v))),
        ColumnType::Float8 => parse_f64(trimmed).map(Value::Float),
        ColumnType::Text | ColumnType::Varchar => plain_text(text),
        ColumnType::Uuid => parse_uuid(trimmed).map(Value::Uuid).ok_or_else(|| "not a UUID".to_owned()),
        ColumnType::Date => datetime::parse_date(trimmed),
        ColumnType::Timestamp => datetime::parse_timestamp(trimmed, false),
        ColumnType::Timestamptz => datetime::parse_timestamp(trimmed, true),
        ColumnType::Vector => array::parse_vector(trimmed, parse_f32),
        ColumnType::Float4Array => array::parse_array(trimmed, parse_f32),
        ColumnType::Float8Array => {
            array::parse_array(trimmed, |text| narrow(parse_f64(text)?).ok_or_else(|| "out of range for real".into()))
        }
        ColumnType::Halfvec => array::parse_vector(trimmed, |text| to_half(parse_f32(text)?)),
        ColumnType::Sparsevec => sparse::parse(trimmed),
        ColumnType::Bit | ColumnType::Varbit => bits::parse(trimmed),
        ColumnType::Jsonb => array::parse_vector(trimmed, parse_f32).map_err(|reason| format!("{reason} (jsonb)")),
    }
}

/// Text that Postgres' input function reads back to the same value, whatever the session's settings. Timestamps end in
/// `+00`, which `timestamp without time zone` ignores; vectors are in pgvector's form.
pub fn to_text(value: &Value) -> String {
    match value {
        Value::Bool(v) => if *v { "t" } else { "f" }.to_owned(),
        Value::Int(v) => v.to_string(),
        Value::Float(v) => float_text(*v, v.is_finite()),
        Value::Text(v) => v.to_string(),
        Value::Uuid(v) => uuid_text(v),
        Value::Date(v) => datetime::date_text(*v),
        Value::Timestamp(v) => datetime::timestamp_text(*v, true),
        Value::Vector(v) => vector_text(v, '[', ']'),
        Value::Sparse(v) => sparse::text(v),
    }
}

/// As [`to_text`], but as a column of this type is shown: no zone without one, `real` as short as it is, arrays in
/// braces, bits as digits.
pub fn to_text_as(kind: ColumnType, value: &Value) -> String {
    match (kind, value) {
        (ColumnType::Float4, Value::Float(v)) => float_text(*v as f32, v.is_finite()),
        (ColumnType::Timestamp, Value::Timestamp(v)) => datetime::timestamp_text(*v, false),
        (ColumnType::Float4Array | ColumnType::Float8Array, Value::Vector(v)) => vector_text(v, '{', '}'),
        (ColumnType::Bit | ColumnType::Varbit, Value::Vector(v)) => bits::text(v),
        _ => to_text(value),
    }
}

fn into_cell(parsed: Parsed) -> Cell {
    match parsed {
        Ok(value) => Cell::Value(value),
        Err(reason) => Cell::Invalid(reason.into()),
    }
}

fn binary(kind: ColumnType, bytes: &[u8]) -> Parsed {
    Ok(match kind {
        ColumnType::Bool => Value::Bool(fixed::<1>(bytes)? != [0]),
        ColumnType::Int2 => Value::Int(i16::from_be_bytes(fixed(bytes)?).into()),
        ColumnType::Int4 => Value::Int(i32::from_be_bytes(fixed(bytes)?).into()),
        ColumnType::Int8 => Value::Int(i64::from_be_bytes(fixed(bytes)?)),
        ColumnType::Float4 => Value::Float(f32::from_be_bytes(fixed(bytes)?).into()),
        ColumnType::Float8 => Value::Float(f64::from_be_bytes(fixed(bytes)?)),
        ColumnType::Text | ColumnType::Varchar => {
            plain_text(std::str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?)?
        }
        ColumnType::Uuid => Value::Uuid(fixed(bytes)?),
        ColumnType::Date => datetime::checked_date(i32::from_be_bytes(fixed(bytes)?).into(), true)?,
        ColumnType::Timestamp | ColumnType::Timestamptz => {
            datetime::checked_timestamp(i64::from_be_bytes(fixed(bytes)?).into(), true)?
        }
        ColumnType::Vector => array::binary_vector(bytes, f32::from_be_bytes)?,
        ColumnType::Halfvec => array::binary_vector(bytes, |item| f16::from_be_bytes(item).to_f32())?,
        ColumnType::Sparsevec => sparse::binary(bytes)?,
        ColumnType::Bit | ColumnType::Varbit => bits::binary(bytes)?,
        ColumnType::Jsonb => match bytes.split_first() {
            Some((1, text)) => parse_literal(kind, std::str::from_utf8(text).map_err(|_| "not UTF-8".to_owned())?)?,
            _ => return Err("jsonb in an unknown format".into()),
        },
        ColumnType::Float4Array => array::binary_array(bytes, array::FLOAT4, |item| Some(f32::from_be_bytes(item)))?,
        ColumnType::Float8Array => array::binary_array(bytes, array::FLOAT8, |item| narrow(f64::from_be_bytes(item)))?,
    })
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], String> {
    bytes.try_into().map_err(|_| format!("{} bytes instead of {N}", bytes.len()))
}

/// Postgres has no text with a zero byte, and a constant with one could not be sent to it.
fn plain_text(text: &str) -> Parsed {
    if text.bytes().any(|byte| byte == 0) { Err("text with a zero byte".into()) } else { Ok(Value::Text(text.into())) }
}

/// Any unambiguous beginning of the words, as `boolin` has it.
fn parse_bool(text: &str) -> Parsed {
    let text = text.to_ascii_lowercase();
    let begins = |word: &str, least: usize| text.len() >= least && word.starts_with(&text);
    if text == "1" || begins("true", 1) || begins("yes", 1) || text == "on" {
        Ok(Value::Bool(true))
    } else if text == "0" || begins("false", 1) || begins("no", 1) || begins("off", 2) {
        Ok(Value::Bool(false))
    } else {
        Err("not a boolean".into())
    }
}

fn parse_int<T: std::str::FromStr<Err = std::num::ParseIntError> + Into<i64>>(kind: ColumnType, text: &str) -> Parsed {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    match text.parse::<T>() {
        Ok(v) => Ok(Value::Int(v.into())),
        Err(error) if matches!(error.kind(), PosOverflow | NegOverflow) => Err(format!("out of range for {kind}")),
        Err(_) => Err(format!("not a number of type {kind}")),
    }
}

fn parse_f64(text: &str) -> Result<f64, String> {
    let v: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if v.is_infinite() && !spells_infinity(text) { Err("out of range for double precision".into()) } else { Ok(v) }
}

/// Not by way of f64: rounding twice can end one step beside the nearest f32.
fn parse_f32(text: &str) -> Result<f32, String> {
    let v: f32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if v.is_infinite() && !spells_infinity(text) { Err("out of range for real".into()) } else { Ok(v) }
}

fn spells_infinity(text: &str) -> bool {
    text.bytes().any(|byte| byte.eq_ignore_ascii_case(&b'i'))
}

/// To the nearest f32, which is how vectors are stored. What does not fit must not turn into an infinity unseen.
fn narrow(v: f64) -> Option<f32> {
    let narrowed = v as f32;
    (v.is_infinite() || !narrowed.is_infinite()).then_some(narrowed)
}

/// To the nearest half, as pgvector's `halfvec_in` does: by way of `real`.
fn to_half(v: f32) -> Result<f32, String> {
    let rounded = f16::from_f32(v).to_f32();
    if rounded.is_infinite() && v.is_finite() { Err("out of range for halfvec".into()) } else { Ok(rounded) }
}

/// Rounds the elements of a vector as a value of this type has them. An error is the place, from 0, of one that does not
/// fit.
pub fn round_to(kind: ColumnType, vector: &mut [f32]) -> Result<(), usize> {
    if kind == ColumnType::Halfvec {
        for (at, element) in vector.iter_mut().enumerate() {
            *element = to_half(*element).map_err(|_| at)?;
        }
    }
    Ok(())
}

/// Upper or lower case, braces around it, a hyphen after any two bytes: what `uuid_in` takes.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let inner = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}')?,
        None => text,
    };
    let mut rest = inner.as_bytes();
    let mut uuid = [0; 16];
    for (i, byte) in uuid.iter_mut().enumerate() {
        let (&[high, low], tail) = rest.split_first_chunk::<2>()?;
        *byte = hex_digit(high)? << 4 | hex_digit(low)?;
        rest = match tail.split_first() {
            Some((b'-', tail)) if i % 2 == 1 && i < 15 => tail,
            _ => tail,
        };
    }
    rest.is_empty().then_some(uuid)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in uuid.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn vector_text(items: &[f32], open: char, close: char) -> String {
    let mut text = String::with_capacity(2 + items.len() * 10);
    text.push(open);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        push_float(&mut text, *item, item.is_finite());
    }
    text.push(close);
    text
}

fn float_text<F: Debug>(v: F, finite: bool) -> String {
    let mut text = String::new();
    push_float(&mut text, v, finite);
    text
}

/// The shortest digits that read back as the same float; Rust's `{:?}` finds them and changes to exponents in time.
fn push_float<F: Debug>(text: &mut String, v: F, finite: bool) {
    let start = text.len();
    let _ = write!(text, "{v:?}");
    if finite && text.ends_with(".0") {
        text.truncate(text.len() - 2);
    } else if !finite && text[start..].ends_with("inf") {
        text.truncate(text.len() - 3);
        text.push_str("Infinity");
    }
}
