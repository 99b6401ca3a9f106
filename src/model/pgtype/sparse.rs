//! pgvector's `sparsevec` in both forms, and in JSON.

use crate::model::sparse::{MAX_NONZERO, SparseVector};
use crate::model::value::Value;
use serde_json::{Map, Value as Json};
use std::fmt::Write;

use super::{Parsed, narrow, parse_f32, push_float};

/// `sparsevec_send`: i32 dimensions, i32 number of elements, i32 zero, i32 indices from 0 ascending, f32 values.
pub(super) fn binary(bytes: &[u8]) -> Parsed {
    let (words, rest) = bytes.as_chunks::<4>();
    let ([dimensions, count, unused, elements @ ..], []) = (words, rest) else {
        return Err("a sparsevec without its header".into());
    };
    let number = |word: &[u8; 4]| usize::try_from(i32::from_be_bytes(*word)).map_err(|_| "a negative number");
    let (dimensions, count) = (number(dimensions)?, number(count)?);
    if *unused != [0; 4] {
        return Err("a sparsevec in an unknown format".into());
    }
    if elements.len() != 2 * count {
        return Err(format!("{} bytes for {count} elements", 4 * elements.len()));
    }
    let (indices, values) = elements.split_at(count);
    let pair = |(index, value): (&[u8; 4], &[u8; 4])| Ok((number(index)? as u32, f32::from_be_bytes(*value)));
    let elements = indices.iter().zip(values).map(pair).collect::<Result<_, String>>()?;
    SparseVector::new(dimensions, elements).map(Value::from)
}

/// `{1:0.5,3:2}/5`: indices from 1.
pub(super) fn parse(text: &str) -> Parsed {
    let (elements, dimensions) = text.rsplit_once('/').ok_or("not a sparsevec")?;
    let dimensions = dimensions.trim().parse().map_err(|_| "not a number of dimensions")?;
    let inner = elements.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or("not a sparsevec")?;
    let element = |text: &str| {
        let (index, value) = text.split_once(':').ok_or("not a sparsevec")?;
        let index: u32 = index.trim().parse().map_err(|_| "not an index")?;
        let index = index.checked_sub(1).ok_or("index 0: they count from 1")?;
        Ok((index, parse_f32(value.trim()).map_err(|reason| format!("element {} is {reason}", index + 1))?))
    };
    let elements = if inner.trim().is_empty() { Ok(Vec::new()) } else { inner.split(',').map(element).collect() };
    SparseVector::new(dimensions, elements.map_err(|reason: String| reason)?).map(Value::from)
}

/// What [`parse`] reads.
pub(super) fn text(vector: &SparseVector) -> String {
    let mut text = String::from("{");
    for (at, (index, value)) in vector.iter().enumerate() {
        let _ = write!(text, "{}{}:", if at > 0 { "," } else { "" }, index + 1);
        push_float(&mut text, value, value.is_finite());
    }
    let _ = write!(text, "}}/{}", vector.dimensions());
    text
}

/// `{"indices": [0, 2], "values": [0.5, 2], "dim": 5}`: indices from 0, as pgvector's clients have them.
pub(super) fn from_fields(fields: &Map<String, Json>) -> Parsed {
    let list = |name: &str| match fields.get(name).and_then(Json::as_array) {
        Some(list) if list.len() <= MAX_NONZERO => Ok(list),
        Some(list) => Err(format!("{} {name}; at most {MAX_NONZERO}", list.len())),
        None => Err(format!("no array `{name}`")),
    };
    let (indices, values) = (list("indices")?, list("values")?);
    let dimensions = fields.get("dim").and_then(Json::as_u64).ok_or("no number `dim`")?;
    if let Some(name) = fields.keys().find(|name| !["indices", "values", "dim"].contains(&name.as_str())) {
        return Err(format!("`{name}` is no field of it"));
    }
    if indices.len() != values.len() {
        return Err(format!("{} indices for {} values", indices.len(), values.len()));
    }
    let element = |(index, value): (&Json, &Json)| {
        let index =
            index.as_u64().and_then(|index| u32::try_from(index).ok()).ok_or("an index is no number from 0 on")?;
        let value = value.as_f64().and_then(narrow).ok_or("a value is no number that fits real")?;
        Ok::<_, String>((index, value))
    };
    let elements = indices.iter().zip(values).map(element).collect::<Result<_, _>>()?;
    SparseVector::new(usize::try_from(dimensions).unwrap_or(usize::MAX), elements).map(Value::from)
}
