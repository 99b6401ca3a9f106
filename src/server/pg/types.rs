//! Values on the wire: types by OID, parameters in text and binary, columns of answers.

use crate::model::{Cell, ColumnType, Lsn, Value, pgtype};
use crate::server::problem::{self, Problem};
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value as Json;

/// `text`
pub const TEXT: u32 = 25;
/// `pg_lsn`
const LSN: u32 = 3220;
/// `bigint[]`, `text[]` and their like -> the type of their elements.
const ARRAYS: [(u32, u32); 16] = [
    (1003, 19),
    (1028, 26),
    (1000, 16),
    (1005, 21),
    (1007, 23),
    (1016, 20),
    (1021, 700),
    (1022, 701),
    (1009, 25),
    (1015, 1043),
    (1014, 1042),
    (2951, 2950),
    (1182, 1082),
    (1115, 1114),
    (1185, 1184),
    (1231, 1700),
];

/// OID and size of the type as which a column of this kind is shown. pgvector's types have no fixed OID: they are text,
/// which is also the form in which its drivers without a codec send and read them.
pub fn shown(kind: ColumnType) -> (u32, i16) {
    match kind {
        ColumnType::Bool => (16, 1),
        ColumnType::Int2 => (21, 2),
        ColumnType::Int4 => (23, 4),
        ColumnType::Int8 => (20, 8),
        ColumnType::Float4 => (700, 4),
        ColumnType::Float8 => (701, 8),
        ColumnType::Text | ColumnType::Vector | ColumnType::Halfvec | ColumnType::Sparsevec => (TEXT, -1),
        ColumnType::Varchar => (1043, -1),
        ColumnType::Uuid => (2950, 16),
        ColumnType::Date => (1082, 4),
        ColumnType::Timestamp => (1114, 8),
        ColumnType::Timestamptz => (1184, 8),
        ColumnType::Float4Array => (1021, -1),
        ColumnType::Float8Array => (1022, -1),
        ColumnType::Bit => (1560, -1),
        ColumnType::Varbit => (1562, -1),
        ColumnType::Jsonb => (3802, -1),
    }
}

/// The kind of a type by its SQL name, as casts have it; arrays by their brackets.
pub fn by_name(name: &str) -> Option<u32> {
    let name = name.trim().to_ascii_lowercase();
    let name = name.strip_prefix("pg_catalog.").unwrap_or(&name);
    if let Some(element) = name.strip_suffix("[]") {
        return array_of(by_name(element)?);
    }
    // Whatever stands in parentheses says how long, not what.
    let plain = name.split('(').next().unwrap_or(name).trim();
    Some(match plain {
        "bool" | "boolean" => 16,
        "int2" | "smallint" => 21,
        "int4" | "int" | "integer" => 23,
        "int8" | "bigint" => 20,
        "float4" | "real" => 700,
        "float8" | "double precision" | "float" => 701,
        "numeric" | "decimal" => 1700,
        "text" => TEXT,
        "varchar" | "character varying" => 1043,
        "uuid" => 2950,
        "date" => 1082,
        "timestamp" | "timestamp without time zone" => 1114,
        "timestamptz" | "timestamp with time zone" => 1184,
        "jsonb" => 3802,
        "json" => 114,
        "regclass" => 2205,
        "oid" => 26,
        "name" => 19,
        "pg_lsn" => LSN,
        "\"char\"" => 18,
        _ if ["vector", "halfvec", "sparsevec"].iter().any(|vector| plain.ends_with(vector)) => TEXT,
        _ => return None,
    })
}

/// Is it a type of arrays?
pub fn is_array(oid: u32) -> bool {
    ARRAYS.iter().any(|(array, _)| *array == oid)
}

/// The type of arrays of this type.
pub fn array_of(element: u32) -> Option<u32> {
    ARRAYS.iter().find(|(_, of)| *of == element).map(|(array, _)| *array)
}

/// As what a column is shown, where that is not what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// Its own type.
    #[default]
    Own,
    /// `pg_lsn`; a number here.
    Lsn,
    /// `oid`; a number here.
    Oid,
    /// `"char"`, a byte.
    Char,
    /// `name`
    Name,
    /// `oid[]`; the literal here.
    Oids,
    /// `text[]`; the literal here.
    Texts,
}

impl Form {
    /// OID and size of the type as which a column of this kind is shown.
    pub fn shown(self, kind: ColumnType) -> (u32, i16) {
        match self {
            Form::Own => shown(kind),
            Form::Lsn => (LSN, 8),
            Form::Oid => (26, 4),
            Form::Char => (18, 1),
            Form::Name => (19, 64),
            Form::Oids => (1028, -1),
            Form::Texts => (1009, -1),
        }
    }
}

/// Writes a value as a column of this kind, shown in this form, has it.
pub fn put(kind: ColumnType, form: Form, value: &Value, format: i16, out: &mut BytesMut) {
    match (form, value) {
        (Form::Lsn, Value::Int(lsn)) if format == 0 => out.put_slice(Lsn(*lsn as u64).to_string().as_bytes()),
        (Form::Oid, Value::Int(oid)) if format != 0 => out.put_u32(*oid as u32),
        (Form::Oids | Form::Texts, Value::Text(literal)) if format != 0 => put_items(form, literal, out),
        _ => put_own(kind, value, format, out),
    }
}

/// An array of one dimension out of its literal.
fn put_items(form: Form, literal: &str, out: &mut BytesMut) {
    let items = items(literal).unwrap_or_default();
    out.put_i32(i32::from(!items.is_empty()));
    out.put_i32(i32::from(items.contains(&Json::Null)));
    out.put_u32(if form == Form::Oids { 26 } else { TEXT });
    if items.is_empty() {
        return;
    }
    out.put_i32(items.len() as i32);
    out.put_i32(1);
    for item in &items {
        match item.as_str() {
            None => out.put_i32(-1),
            Some(text) if form == Form::Oids => {
                out.put_i32(4);
                out.put_u32(text.parse().unwrap_or(0));
            }
            Some(text) => {
                out.put_i32(text.len() as i32);
                out.put_slice(text.as_bytes());
            }
        }
    }
}

fn put_own(kind: ColumnType, value: &Value, format: i16, out: &mut BytesMut) {
    if format == 0 {
        out.put_slice(pgtype::to_text_as(kind, value).as_bytes());
        return;
    }
    match (kind, value) {
        (ColumnType::Int2, Value::Int(v)) => out.put_i16(*v as i16),
        (ColumnType::Int4, Value::Int(v)) => out.put_i32(*v as i32),
        (_, Value::Int(v)) => out.put_i64(*v),
        (_, Value::Bool(v)) => out.put_u8(u8::from(*v)),
        (ColumnType::Float4, Value::Float(v)) => out.put_f32(*v as f32),
        (_, Value::Float(v)) => out.put_f64(*v),
        (_, Value::Uuid(v)) => out.put_slice(v),
        (_, Value::Date(v)) => out.put_i32(*v),
        (_, Value::Timestamp(v)) => out.put_i64(*v),
        (ColumnType::Float4Array, Value::Vector(v)) => {
            put_array(out, 700, v, |out, item| {
                out.put_i32(4);
                out.put_f32(item);
            });
        }
        (ColumnType::Float8Array, Value::Vector(v)) => {
            put_array(out, 701, v, |out, item| {
                out.put_i32(8);
                out.put_f64(item.into());
            });
        }
        (ColumnType::Bit | ColumnType::Varbit, Value::Vector(v)) => {
            out.put_i32(v.len() as i32);
            let byte = |bits: &[f32]| {
                bits.iter().enumerate().fold(0, |byte, (at, bit)| byte | u8::from(*bit != 0.0) << (7 - at))
            };
            v.chunks(8).for_each(|bits| out.put_u8(byte(bits)));
        }
        (kind, value) => {
            if kind == ColumnType::Jsonb {
                out.put_u8(1);
            }
            out.put_slice(pgtype::to_text_as(kind, value).as_bytes());
        }
    }
}

fn put_array(out: &mut BytesMut, element: u32, items: &[f32], put: impl Fn(&mut BytesMut, f32)) {
    out.put_i32(1);
    out.put_i32(0);
    out.put_u32(element);
    out.put_i32(items.len() as i32);
    out.put_i32(1);
    items.iter().for_each(|item| put(out, *item));
}

/// A parameter as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    /// Its type; 0 where nobody knows.
    pub oid: u32,
    /// 0 is text, 1 binary.
    pub format: i16,
    /// `None` is NULL.
    pub bytes: Option<Bytes>,
}

impl Param {
    /// As a constant of a filter.
    pub fn json(&self) -> Result<Json, Problem> {
        let Some(bytes) = &self.bytes else { return Ok(Json::Null) };
        if self.format == 0 {
            return Ok(Json::String(text(bytes)?));
        }
        scalar(self.oid, bytes)
    }

    /// The elements of an array.
    pub fn items(&self) -> Result<Option<Vec<Json>>, Problem> {
        let Some(bytes) = &self.bytes else { return Ok(None) };
        if self.format == 0 { items(&text(bytes)?).map(Some) } else { binary_items(bytes).map(Some) }
    }

    /// As text in the form of its type; vectors in one of their forms, JSON as it stands.
    pub fn text(&self) -> Result<Option<String>, Problem> {
        let Some(bytes) = &self.bytes else { return Ok(None) };
        if self.format == 0 {
            return text(bytes).map(Some);
        }
        match (self.oid, &bytes[..]) {
            (3802, [1, json @ ..]) => return text(json).map(Some),
            (114, json) => return text(json).map(Some),
            (LSN, lsn) => {
                let lsn = lsn.try_into().map(u64::from_be_bytes).map_err(|_| bad("a parameter is no binary pg_lsn"))?;
                return Ok(Some(Lsn(lsn).to_string()));
            }
            (26, [a, b, c, d]) => return Ok(Some(u32::from_be_bytes([*a, *b, *c, *d]).to_string())),
            _ => {}
        }
        let kind = kind(self.oid)?;
        match pgtype::decode_binary(kind, bytes) {
            Cell::Value(value) => Ok(Some(pgtype::to_text_as(kind, &value))),
            _ => Err(bad(format!("a parameter is no binary {kind}"))),
        }
    }

    /// A vector of numbers, where it is one in binary: without the way through text.
    pub fn vector(&self) -> Option<Vec<f32>> {
        let bytes = self.bytes.as_ref().filter(|_| self.format == 1)?;
        let kind = ColumnType::from_builtin_oid(self.oid)
            .filter(|kind| matches!(kind, ColumnType::Float4Array | ColumnType::Float8Array))?;
        match pgtype::decode_binary(kind, bytes) {
            Cell::Value(Value::Vector(vector)) => Some(vector.into()),
            _ => None,
        }
    }
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(problem::BAD_PARAMETER, detail)
        .hint("send it as text, or in the binary form of the type named in Parse")
}

fn kind(oid: u32) -> Result<ColumnType, Problem> {
    match oid {
        // unknown, name, bpchar
        0 | 705 | 19 | 1042 => Ok(ColumnType::Text),
        oid => ColumnType::from_builtin_oid(oid)
            .ok_or_else(|| bad(format!("a binary parameter of the type with OID {oid} is not understood"))),
    }
}

fn text(bytes: &[u8]) -> Result<String, Problem> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(bad("a parameter is not UTF-8")),
    }
}

fn scalar(oid: u32, bytes: &[u8]) -> Result<Json, Problem> {
    if let (26, [a, b, c, d]) = (oid, bytes) {
        return Ok(Json::from(u32::from_be_bytes([*a, *b, *c, *d])));
    }
    let kind = kind(oid)?;
    match pgtype::decode_binary(kind, bytes) {
        Cell::Value(value) => Ok(pgtype::to_json_as(kind, &value)),
        _ => Err(bad(format!("a parameter is no binary {kind}"))),
    }
}

/// The elements of an array as `array_send` writes it.
fn binary_items(bytes: &[u8]) -> Result<Vec<Json>, Problem> {
    let wrong = || bad("a parameter is no array of one dimension");
    let word = |at: usize| {
        let word = bytes.get(at..at + 4).ok_or_else(wrong)?;
        Ok::<_, Problem>(i32::from_be_bytes(word.try_into().expect("four bytes")))
    };
    match word(0)? {
        0 => return Ok(Vec::new()),
        1 => {}
        _ => return Err(wrong()),
    }
    let (oid, count, mut at) = (word(8)? as u32, word(12)?, 20);
    let mut items = Vec::new();
    for _ in 0..count {
        let length = word(at)?;
        at += 4;
        items.push(match usize::try_from(length) {
            Err(_) => Json::Null,
            Ok(length) => scalar(oid, bytes.get(at..at.saturating_add(length)).ok_or_else(wrong)?)?,
        });
        at += usize::try_from(length).unwrap_or(0);
    }
    if at == bytes.len() { Ok(items) } else { Err(wrong()) }
}

/// The elements of an array literal, `{1,"a \"b\"",NULL}`, as texts.
pub fn items(literal: &str) -> Result<Vec<Json>, Problem> {
    let wrong = || bad("an array literal of one dimension has the form {a,b,c}");
    let inner = literal.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or_else(wrong)?;
    let (mut items, mut chars) = (Vec::new(), inner.chars().peekable());
    if inner.trim().is_empty() {
        return Ok(items);
    }
    loop {
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        let (mut item, quoted) = (String::new(), chars.next_if_eq(&'"').is_some());
        loop {
            match chars.peek() {
                None if quoted => return Err(wrong()),
                None => break,
                Some('"') if quoted => {
                    chars.next();
                    break;
                }
                Some(',') if !quoted => break,
                Some('{' | '}' | '"') if !quoted => return Err(wrong()),
                Some('\\') => {
                    chars.next();
                    item.push(chars.next().ok_or_else(wrong)?);
                }
                Some(c) => {
                    item.push(*c);
                    chars.next();
                }
            }
        }
        items.push(match quoted {
            true => Json::String(item),
            false if item.trim().eq_ignore_ascii_case("null") => Json::Null,
            false => Json::String(item.trim().to_owned()),
        });
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        match chars.next() {
            None => return Ok(items),
            Some(',') => {}
            Some(_) => return Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_in_binary_is_read_back() {
        for (kind, value) in [
            (ColumnType::Bool, Value::Bool(true)),
            (ColumnType::Int2, Value::Int(-2)),
            (ColumnType::Int4, Value::Int(7)),
            (ColumnType::Int8, Value::Int(i64::MIN)),
            (ColumnType::Float4, Value::Float(0.5)),
            (ColumnType::Float8, Value::Float(0.1)),
            (ColumnType::Text, Value::Text("ä".into())),
            (ColumnType::Uuid, Value::Uuid([7; 16])),
            (ColumnType::Date, Value::Date(8000)),
            (ColumnType::Timestamptz, Value::Timestamp(1_000_000)),
            (ColumnType::Float4Array, Value::Vector([1.0, 0.5].into())),
            (ColumnType::Float8Array, Value::Vector([1.0, 0.5].into())),
            (ColumnType::Bit, Value::Vector([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0].into())),
            (ColumnType::Jsonb, Value::Vector([1.0, 2.0].into())),
        ] {
            let mut out = BytesMut::new();
            put(kind, Form::Own, &value, 1, &mut out);
            assert_eq!(pgtype::decode_binary(kind, &out), Cell::Value(value), "{kind}");
        }
    }

    #[test]
    fn forms_have_bytes_of_their_own() {
        let bytes = |kind, form, value: Value, format| {
            let mut out = BytesMut::new();
            put(kind, form, &value, format, &mut out);
            out.to_vec()
        };
        assert_eq!(bytes(ColumnType::Int8, Form::Lsn, Value::Int(0x1_0000_00AB), 0), b"1/AB");
        assert_eq!(bytes(ColumnType::Int8, Form::Lsn, Value::Int(7), 1), [0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(bytes(ColumnType::Int8, Form::Oid, Value::Int(7), 1), [0, 0, 0, 7]);
        let texts = bytes(ColumnType::Text, Form::Texts, Value::Text("{a,NULL,\"b c\"}".into()), 1);
        let read = binary_items(&texts).map_err(|problem| problem.detail);
        assert_eq!(read, Ok(vec![json!("a"), Json::Null, json!("b c")]));
        let lsn = Param { oid: LSN, format: 1, bytes: Some(Bytes::from_static(&[0, 0, 0, 1, 0, 0, 0, 0xAB])) };
        assert_eq!(lsn.text().map_err(|problem| problem.detail), Ok(Some("1/AB".to_owned())));
    }

    #[test]
    fn array_literals_are_postgres() {
        let read = |literal| items(literal).map_err(|problem| problem.detail);
        assert_eq!(read("{}"), Ok(vec![]));
        assert_eq!(
            read(r#"{1, "a,\"b" ,NULL,"NULL"}"#),
            Ok(vec![json!("1"), json!("a,\"b"), Json::Null, json!("NULL")])
        );
        for wrong in ["1,2", "{{1}}", "{\"a}", "{a\"b}", "{\"a\"b}", "{a\\"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn broken_binary_arrays_are_refused() {
        let mut whole = BytesMut::new();
        put(ColumnType::Float8Array, Form::Own, &Value::Vector([1.0, 2.0].into()), 1, &mut whole);
        assert_eq!(binary_items(&whole).map_err(|problem| problem.detail), Ok(vec![json!(1.0), json!(2.0)]));
        for end in 1..whole.len() {
            assert!(binary_items(&whole[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn types_are_known_by_their_names() {
        for (name, oid) in [("real[]", 1021), ("BIGINT", 20), ("public.vector(3)", 25), ("character varying(9)", 1043)]
        {
            assert_eq!(by_name(name), Some(oid), "{name}");
        }
        assert_eq!(by_name("box"), None);
    }
}
