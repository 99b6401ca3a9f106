//! Values of the catalog, their types, and tables of them.

use crate::model::{ColumnType, Value};
use crate::server::pg::select::Output;
use crate::server::pg::types::{self, Form};
use std::cmp::Ordering;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Datum {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Datum>),
}

impl Datum {
    /// Bytes beside those that every value takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Datum::Text(text) => text.len(),
            Datum::List(items) => items.iter().map(|item| size_of::<Datum>() + item.bytes()).sum(),
            _ => 0,
        }
    }
}

impl From<&str> for Datum {
    fn from(text: &str) -> Datum {
        Datum::Text(text.to_owned())
    }
}

impl From<String> for Datum {
    fn from(text: String) -> Datum {
        Datum::Text(text)
    }
}

impl From<bool> for Datum {
    fn from(value: bool) -> Datum {
        Datum::Bool(value)
    }
}

impl Datum {
    /// An item of an array.
    pub fn from_json(json: serde_json::Value) -> Datum {
        match json {
            serde_json::Value::Bool(v) => Datum::Bool(v),
            serde_json::Value::Number(v) => v.as_i64().map_or(Datum::Null, Datum::Int),
            serde_json::Value::String(text) => Datum::Text(text),
            _ => Datum::Null,
        }
    }

    /// As Postgres writes it; none for NULL.
    pub fn text(&self) -> Option<String> {
        Some(match self {
            Datum::Null => return None,
            Datum::Bool(v) => if *v { "t" } else { "f" }.to_owned(),
            Datum::Int(v) => v.to_string(),
            Datum::Float(v) => v.to_string(),
            Datum::Text(text) => text.clone(),
            Datum::List(items) => {
                let item = |item: &Datum| match item.text() {
                    None => "NULL".to_owned(),
                    Some(text) if text.is_empty() || text.contains([',', '"', '\\', '{', '}', ' ']) => {
                        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
                    }
                    Some(text) => text,
                };
                format!("{{{}}}", items.iter().map(item).collect::<Vec<_>>().join(","))
            }
        })
    }

    /// Is it true? Neither for NULL.
    pub fn truth(&self) -> Option<bool> {
        match self {
            Datum::Bool(v) => Some(*v),
            Datum::Text(text) => match text.as_str() {
                "t" | "true" => Some(true),
                "f" | "false" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    /// As a whole number.
    pub fn int(&self) -> Option<i64> {
        match self {
            Datum::Int(v) => Some(*v),
            Datum::Text(text) => text.trim().parse().ok(),
            Datum::Float(v) => Some(*v as i64),
            Datum::Bool(_) | Datum::Null | Datum::List(_) => None,
        }
    }

    /// Its items, also out of the text of an array; none for NULL and whatever is no array.
    pub fn items(&self) -> Option<Vec<Datum>> {
        match self {
            Datum::List(items) => Some(items.clone()),
            Datum::Text(text) => types::items(text).ok().map(|items| items.into_iter().map(Datum::from_json).collect()),
            _ => None,
        }
    }

    /// An order of all values that are not NULL.
    pub fn sorted(&self, other: &Datum) -> Ordering {
        match (self, other) {
            (Datum::Int(a), Datum::Int(b)) => a.cmp(b),
            (Datum::Float(a), Datum::Float(b)) => a.total_cmp(b),
            (Datum::Bool(a), Datum::Bool(b)) => a.cmp(b),
            _ => self.text().cmp(&other.text()),
        }
    }

    /// How they compare; none where one is NULL or they have nothing to do with each other. A text beside a number is that
    /// number: literals have no types.
    pub fn compare(&self, other: &Datum) -> Option<Ordering> {
        match (self, other) {
            (Datum::Null, _) | (_, Datum::Null) => None,
            (Datum::Int(a), Datum::Int(b)) => Some(a.cmp(b)),
            (Datum::Text(a), Datum::Text(b)) => Some(a.cmp(b)),
            (Datum::Bool(_), _) | (_, Datum::Bool(_)) => Some(self.truth()?.cmp(&other.truth()?)),
            (Datum::List(a), b) | (b, Datum::List(a)) => (*a == b.items()?).then_some(Ordering::Equal),
            (Datum::Int(_), Datum::Text(_)) | (Datum::Text(_), Datum::Int(_)) => Some(self.int()?.cmp(&other.int()?)),
            _ => {
                let float = |value: &Datum| match value {
                    Datum::Int(v) => Some(*v as f64),
                    Datum::Float(v) => Some(*v),
                    Datum::Text(text) => text.trim().parse().ok(),
                    _ => None,
                };
                float(self)?.partial_cmp(&float(other)?)
            }
        }
    }
}

/// The type of a column of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Name,
    Char,
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Oid,
    Texts,
    Oids,
}

impl Kind {
    /// The type with this OID; text for others.
    pub fn of_oid(oid: u32) -> Kind {
        match oid {
            16 => Kind::Bool,
            18 => Kind::Char,
            19 => Kind::Name,
            20 => Kind::Int8,
            21 => Kind::Int2,
            23 => Kind::Int4,
            26 => Kind::Oid,
            700 => Kind::Float4,
            1009 | 1003 => Kind::Texts,
            1028 => Kind::Oids,
            _ => Kind::Text,
        }
    }

    /// A column of an answer.
    pub fn output(self, name: &str) -> Output {
        let (kind, form) = match self {
            Kind::Text => (ColumnType::Text, Form::Own),
            Kind::Name => (ColumnType::Text, Form::Name),
            Kind::Char => (ColumnType::Text, Form::Char),
            Kind::Bool => (ColumnType::Bool, Form::Own),
            Kind::Int2 => (ColumnType::Int2, Form::Own),
            Kind::Int4 => (ColumnType::Int4, Form::Own),
            Kind::Int8 => (ColumnType::Int8, Form::Own),
            Kind::Float4 => (ColumnType::Float4, Form::Own),
            Kind::Oid => (ColumnType::Int8, Form::Oid),
            Kind::Texts => (ColumnType::Text, Form::Texts),
            Kind::Oids => (ColumnType::Text, Form::Oids),
        };
        Output { form, ..Output::constant(name, kind, None) }
    }

    /// A value as a column of this type has it.
    pub fn value(self, datum: &Datum) -> Option<Value> {
        match self {
            Kind::Bool => datum.truth().map(Value::Bool),
            Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Oid => datum.int().map(Value::Int),
            Kind::Float4 => match datum {
                Datum::Float(v) => Some(Value::Float(*v)),
                other => other.int().map(|v| Value::Float(v as f64)),
            },
            _ => datum.text().map(|text| Value::Text(text.into())),
        }
    }
}

/// A table of values.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// Names and types.
    pub columns: Vec<(String, Kind)>,
    /// Values, as many in each row as there are columns.
    pub rows: Vec<Vec<Datum>>,
    /// It has no rows, and every column that is asked for.
    pub any: bool,
}

impl Rows {
    /// A table that has no rows and whose columns are not written down.
    pub fn empty() -> Rows {
        Rows { any: true, ..Rows::default() }
    }

    /// A table by its columns: `name:type`, with `=value` what stands where a row says nothing, with `?` NULL. Types: `t`ext,
    /// `n`ame, `c`har, `b`ool, `s`mall, `i`nt, `f`loat, `o`id, `T`exts, `O`ids. A tilde is a blank.
    pub fn new(spec: &str, given: Vec<Vec<(&str, Datum)>>) -> Rows {
        let (mut columns, mut usual) = (Vec::new(), Vec::new());
        for word in spec.split_ascii_whitespace() {
            let (name, rest) = word.split_once(':').unwrap_or((word, "t"));
            let kind = match rest.chars().next() {
                Some('n') => Kind::Name,
                Some('c') => Kind::Char,
                Some('b') => Kind::Bool,
                Some('s') => Kind::Int2,
                Some('i') => Kind::Int4,
                Some('f') => Kind::Float4,
                Some('o') => Kind::Oid,
                Some('T') => Kind::Texts,
                Some('O') => Kind::Oids,
                _ => Kind::Text,
            };
            usual.push(match (rest.split_once('='), kind) {
                (None, _) => Datum::Null,
                (Some((_, value)), Kind::Bool) => Datum::Bool(value == "t"),
                (Some((_, value)), Kind::Text | Kind::Name | Kind::Char) => Datum::Text(value.replace('~', " ")),
                (Some((_, value)), _) => value.parse().map_or(Datum::Null, Datum::Int),
            });
            columns.push((name.to_owned(), kind));
        }
        let row = |given: Vec<(&str, Datum)>| {
            let mut row = usual.clone();
            for (name, value) in given {
                if let Some(at) = columns.iter().position(|(other, _)| other == name) {
                    row[at] = value;
                }
            }
            row
        };
        let rows = given.into_iter().map(row).collect();
        Rows { columns, rows, any: false }
    }
}
