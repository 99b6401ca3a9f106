//! Bodies in JSON -> what a route takes. What does not fit is a problem that names the field and those there are.

use crate::model::nearest;
use crate::server::http::search::too_large;
use crate::server::problem::{self, Problem};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use std::fmt;
use std::marker::PhantomData;

/// A body of these fields.
pub(super) fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>, fields: &str) -> Result<T, Problem> {
    read(&body.map_err(too_large)?, fields)
}

/// The same of its bytes.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8], fields: &str) -> Result<T, Problem> {
    let read = serde_json::from_slice::<Object<T>>(bytes);
    read.map(|Object(body)| body).map_err(|error| malformed(&error, bytes, fields))
}

/// Something with fields that have names. Serde would take a list of their values as well, in the order of the code.
pub(super) struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData)).map(Object)
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// For fields that are objects.
pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(inner)| inner)
}

/// For fields that are objects, or are not there; null counts as not there.
pub(super) fn maybe<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(inner)| inner))
}

/// For fields that are objects where they are there at all.
pub(super) fn there<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    object(deserializer).map(Some)
}

/// For lists of objects.
pub(super) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    let list = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(Some(list.into_iter().map(|Object(inner)| inner).collect()))
}

/// What is wrong with these bytes. Serde words an unknown field in its message alone; its class is "data" like every other
/// wrong value.
pub(super) fn malformed(error: &serde_json::Error, bytes: &[u8], fields: &str) -> Problem {
    let text = error.to_string();
    let fields = format!("the fields are {fields}");
    if text.starts_with("unknown field") {
        let mut words = text.split('`').skip(1).step_by(2);
        let meant = words.next().and_then(|unknown| nearest(unknown, words));
        let meant = meant.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
        return Problem::new(problem::UNKNOWN_FIELD, text.clone()).hint(meant + &fields);
    }
    let of_a_value = ["invalid ", "unknown variant"].iter().any(|start| text.starts_with(start));
    let place = match error.classify() == Category::Data && of_a_value {
        true => place(bytes, error.line(), error.column()),
        false => String::new(),
    };
    let colon = if place.is_empty() { "" } else { ": " };
    Problem::new(problem::MALFORMED, format!("{place}{colon}{}", for_people(&text))).hint(fields)
}

/// What Rust calls the type that is expected -> what people do.
fn for_people(text: &str) -> String {
    let Some((found, (wanted, at))) =
        text.rsplit_once(", expected ").and_then(|(found, rest)| Some((found, rest.rsplit_once(" at line ")?)))
    else {
        return text.to_owned();
    };
    let wanted = match wanted {
        "u8" | "u32" | "u64" | "usize" => "a whole number from 0 on",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a boolean" => "true or false",
        _ if wanted.starts_with("struct ") => "an object",
        _ => wanted,
    };
    format!("{found}, expected {wanted} at line {at}")
}

/// Which value it is that ends at this line and column, or, where it is a list or an object, begins behind: `searches[1].limit`.
fn place(bytes: &[u8], line: usize, column: usize) -> String {
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let start = std::iter::once(0).chain(starts).nth(line.saturating_sub(1)).unwrap_or(0);
    let end = (start + column.saturating_sub(1)).min(bytes.len().saturating_sub(1));
    let (mut path, mut at) = (Vec::<Step>::new(), 0);
    while at <= end && at < bytes.len() && column > 0 {
        match bytes[at] {
            b'{' => path.push(Step::Field(None)),
            b'[' => path.push(Step::Item(0)),
            b'}' | b']' if at < end => drop(path.pop()),
            b',' => match path.last_mut() {
                Some(Step::Field(name)) => *name = None,
                Some(Step::Item(number)) => *number += 1,
                None => {}
            },
            b'"' => {
                let length = string(&bytes[at + 1..]);
                let text = &bytes[at + 1..(at + 1 + length).min(bytes.len())];
                at += length + 1;
                if let (true, Some(Step::Field(name @ None))) = (at < end, path.last_mut()) {
                    *name = Some(String::from_utf8_lossy(text).into_owned());
                }
            }
            _ => {}
        }
        at += 1;
    }
    path.iter().fold(String::new(), |path, step| match step {
        Step::Field(Some(name)) if path.is_empty() => name.clone(),
        Step::Field(Some(name)) => format!("{path}.{name}"),
        Step::Item(number) => format!("{path}[{number}]"),
        Step::Field(None) => path,
    })
}

/// A step into a value: the field that is read, and the item.
enum Step {
    Field(Option<String>),
    Item(usize),
}

/// Bytes before the quote that ends a string.
fn string(bytes: &[u8]) -> usize {
    let mut at = 0;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(default)]
        #[expect(dead_code, reason = "only whether it can be read matters")]
        limit: usize,
        #[serde(default, deserialize_with = "list")]
        #[expect(dead_code, reason = "only whether it can be read matters")]
        searches: Option<Vec<Body>>,
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (json, expected) in [
            (r#"{"limit":"10"}"#, "limit: invalid type: string \"10\", expected a whole number from 0 on"),
            (r#"{"limit":-1}"#, "limit: invalid value: integer `-1`, expected a whole number"),
            (r#"{"limit": 1.5 }"#, "limit: invalid type: floating point"),
            (
                "{\n \"searches\": [{}, {\"limit\" : [1]}]}",
                "searches[1].limit: invalid type: sequence, expected a whole",
            ),
            (r#"{"searches":[{"limit":1},[2]]}"#, "searches[1]: invalid type: sequence, expected an object"),
            (r#"{"a\"b":1}"#, "unknown field"),
            ("[1]", "invalid type: sequence, expected an object"),
            ("null", "invalid type: null, expected an object"),
            (r#"{"limit":"#, "EOF while parsing"),
            ("", "EOF while parsing"),
            (r#"{"limit":1,"limit":2}"#, "duplicate field `limit`"),
        ] {
            let problem = read::<Body>(json.as_bytes(), "limit, searches").expect_err(json);
            assert!(problem.detail.starts_with(expected), "{json}: {}", problem.detail);
        }
        assert!(read::<Body>(br#"{"searches":[{"limit":3}]}"#, "").is_ok());
        let misspelt = read::<Body>(br#"{"limits":3}"#, "limit").expect_err("misspelt");
        assert_eq!(misspelt.hint.as_deref(), Some("did you mean `limit`? the fields are limit"));
    }
}
