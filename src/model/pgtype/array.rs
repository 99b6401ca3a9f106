//! Embeddings of numbers on the wire: pgvector's `vector` and `halfvec`, `real[]`, `double precision[]` and arrays in
//! JSON, in both forms.

use crate::model::value::MAX_DIMENSIONS;
use crate::model::value::Value;

use super::Parsed;

/// OID of `real`.
pub(super) const FLOAT4: u32 = 700;
/// OID of `double precision`.
pub(super) const FLOAT8: u32 = 701;

/// The smallest form of one element in a text is `0,`; this bounds what a text can make us allocate.
fn capacity_for(text: &str) -> usize {
    (text.len() / 2 + 1).min(MAX_DIMENSIONS)
}

fn checked_len(items: usize) -> Result<usize, String> {
    if items == 0 {
        Err("empty array".into())
    } else if items > MAX_DIMENSIONS {
        Err(format!("{items} elements; at most {MAX_DIMENSIONS}"))
    } else {
        Ok(items)
    }
}

/// pgvector's `vector_send` and `halfvec_send`: u16 dimension, u16 zero, elements of `N` bytes, all big-endian.
pub(super) fn binary_vector<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> Parsed {
    let Some((&[d0, d1, u0, u1], items)) = bytes.split_first_chunk::<4>() else {
        return Err("a vector without its header".into());
    };
    let count = checked_len(u16::from_be_bytes([d0, d1]).into())?;
    if (u0, u1) != (0, 0) {
        return Err("a vector in an unknown format".into());
    }
    if items.len() != count * N {
        return Err(format!("{} bytes for {count} dimensions", items.len()));
    }
    let (items, _) = items.as_chunks::<N>();
    Ok(Value::Vector(items.iter().map(|item| decode(*item)).collect()))
}

/// `array_send`: i32 dimensions, i32 has-nulls, u32 element type, per dimension i32 length and i32 lower bound, then
/// per element i32 length (-1 is NULL) and its bytes.
pub(super) fn binary_array<const N: usize>(
    bytes: &[u8],
    element: u32,
    decode: impl Fn([u8; N]) -> Option<f32>,
) -> Parsed {
    let (dimensions, rest) = take_i32(bytes)?;
    let (_has_nulls, rest) = take_i32(rest)?;
    let (oid, rest) = take_i32(rest)?;
    if oid as u32 != element {
        return Err(format!("elements of type {}", oid as u32));
    }
    match dimensions {
        0 => return Err("empty array".into()),
        1 => {}
        _ => return Err(format!("an array of {dimensions} dimensions")),
    }
    let (count, rest) = take_i32(rest)?;
    let (_lower_bound, mut rest) = take_i32(rest)?;
    let count = checked_len(usize::try_from(count).map_err(|_| "a negative length")?)?;
    if let Some(items) = regular_items(rest, count, &decode) {
        return Ok(Value::Vector(items));
    }
    let mut items = Vec::with_capacity(count);
    for i in 1..=count {
        let (length, tail) = take_i32(rest)?;
        if length == -1 {
            return Err(format!("element {i} is NULL"));
        }
        if length != N as i32 {
            return Err(format!("element {i} has {length} bytes instead of {N}"));
        }
        let (item, tail) = tail.split_first_chunk::<N>().ok_or("an array that is cut short")?;
        items.push(decode(*item).ok_or_else(|| format!("element {i} is out of range for real"))?);
        rest = tail;
    }
    if rest.is_empty() { Ok(Value::Vector(items.into())) } else { Err("bytes after the array".into()) }
}

/// The normal case, without a word to say per element: every one is there and has its length.
fn regular_items<const N: usize>(
    bytes: &[u8],
    count: usize,
    decode: &impl Fn([u8; N]) -> Option<f32>,
) -> Option<Box<[f32]>> {
    if bytes.len() != count * (4 + N) {
        return None;
    }
    let length = (N as i32).to_be_bytes();
    let mut items = Vec::with_capacity(count);
    for item in bytes.chunks_exact(4 + N) {
        let (head, tail) = item.split_first_chunk::<4>()?;
        if *head != length {
            return None;
        }
        items.push(decode(*tail.first_chunk::<N>()?)?);
    }
    Some(items.into())
}

fn take_i32(bytes: &[u8]) -> Result<(i32, &[u8]), String> {
    let (head, tail) = bytes.split_first_chunk::<4>().ok_or("an array that is cut short")?;
    Ok((i32::from_be_bytes(*head), tail))
}

/// `[1,2,3]`: pgvector's form and that of numbers in JSON, where anything else than numbers is no number here either.
pub(super) fn parse_vector(text: &str, item: impl Fn(&str) -> Result<f32, String>) -> Parsed {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).ok_or("not a vector")?;
    parse_items(inner, item)
}

/// `{1,2,3}`, with bounds in front where they are not the usual ones: `[0:2]={1,2,3}`.
pub(super) fn parse_array(text: &str, item: impl Fn(&str) -> Result<f32, String>) -> Parsed {
    let body = if text.starts_with('[') { text.split_once('=').ok_or("not an array")?.1.trim() } else { text };
    let inner = body.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or("not an array")?;
    if inner.contains('{') {
        return Err("an array of more than one dimension".into());
    }
    parse_items(inner, |text| {
        let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        if bare.is_none() && text.eq_ignore_ascii_case("null") {
            return Err("NULL".into());
        }
        item(bare.unwrap_or(text))
    })
}

fn parse_items(inner: &str, parse: impl Fn(&str) -> Result<f32, String>) -> Parsed {
    if inner.trim().is_empty() {
        return Err("empty array".into());
    }
    let mut items = Vec::with_capacity(capacity_for(inner));
    for text in inner.split(',') {
        if items.len() == MAX_DIMENSIONS {
            return Err(format!("{} elements; at most {MAX_DIMENSIONS}", inner.split(',').count()));
        }
        items.push(parse(text.trim()).map_err(|reason| format!("element {} is {reason}", items.len() + 1))?);
    }
    Ok(Value::Vector(items.into()))
}
