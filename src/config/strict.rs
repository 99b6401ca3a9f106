//! Values as they are written -> the configuration. Nothing is rounded, no number is taken for text; only variables of the
//! environment, which are all text, are read as what their setting takes. A mistake comes with its place, and without the
//! value, which may be a secret.

use crate::model::nearest;
use config::{Value, ValueKind};
use serde::de::{self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use std::fmt::{self, Display};

/// What `config` calls the origin of variables.
const ENVIRONMENT: &str = "the environment";

/// What is wrong, and where.
#[derive(Debug)]
pub struct Mistake {
    path: String,
    what: String,
    /// Is it a variable of the environment?
    pub of_environment: bool,
}

impl Mistake {
    fn new(path: &str, what: String) -> Mistake {
        Mistake { path: path.to_owned(), what, of_environment: false }
    }

    fn under(mut self, part: &str) -> Mistake {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{part}{dot}{}", self.path);
        self
    }
}

impl Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colon = if self.path.is_empty() { "" } else { ": " };
        write!(f, "{}{colon}{}", self.path, self.what)
    }
}

impl std::error::Error for Mistake {}

impl de::Error for Mistake {
    fn custom<T: Display>(text: T) -> Mistake {
        Mistake::new("", text.to_string())
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn Expected) -> Mistake {
        Mistake::new("", format!("it is {}, and takes {}", kind(&found), wanted(expected)))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn Expected) -> Mistake {
        de::Error::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Mistake {
        let meant = match nearest(field, expected.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", expected.join(", ")),
        };
        Mistake::new(field, format!("there is no such setting here; {meant} `ruvector config default` shows them all"))
    }

    fn missing_field(field: &'static str) -> Mistake {
        Mistake::new(field, "it is missing; `ruvector config default` has an example".to_owned())
    }
}

/// Of a value, without it.
fn kind(found: &de::Unexpected<'_>) -> &'static str {
    use de::Unexpected::*;
    match found {
        Bool(_) => "true or false",
        Signed(value) if *value < 0 => "a negative number",
        Unsigned(_) | Signed(_) => "a whole number",
        Float(_) => "a number with a fraction",
        Str(_) | Char(_) => "text",
        Seq => "a list",
        Map => "a section",
        _ => "of another kind",
    }
}

/// What Rust calls it -> what people do.
fn wanted(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u8" => "a whole number from 0 to 255".to_owned(),
        "u16" | "u32" | "u64" | "usize" => "a whole number from 0 on".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "path string" => "text in quotes".to_owned(),
        "a sequence" | "a set" => "a list, [...]".to_owned(),
        "a map" => "a section".to_owned(),
        _ if text.starts_with("struct ") => "a section with settings of its own".to_owned(),
        _ => text,
    }
}

/// A value that is read as it is written.
pub struct Strict(pub Value);

impl Strict {
    /// The text of a variable.
    fn variable(&self) -> Option<&str> {
        match (&self.0.kind, self.0.origin()) {
            (ValueKind::String(text), Some(ENVIRONMENT)) => Some(text.trim()),
            _ => None,
        }
    }

    /// With the value's origin in the error.
    fn read<T>(self, read: impl FnOnce(Strict) -> Result<T, Mistake>) -> Result<T, Mistake> {
        let of_environment = self.0.origin() == Some(ENVIRONMENT);
        read(self).map_err(|error| Mistake { of_environment: error.of_environment || of_environment, ..error })
    }
}

macro_rules! from_text {
    ($($method:ident => $visit:ident,)+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
            match self.variable().and_then(|text| text.parse().ok()) {
                Some(value) => visitor.$visit(value),
                None => self.deserialize_any(visitor),
            }
        }
    )+};
}

impl<'de> Deserializer<'de> for Strict {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.0.kind {
            ValueKind::Nil => visitor.visit_unit(),
            ValueKind::Boolean(value) => visitor.visit_bool(value),
            ValueKind::I64(value) => visitor.visit_i64(value),
            ValueKind::I128(value) => visitor.visit_i128(value),
            ValueKind::U64(value) => visitor.visit_u64(value),
            ValueKind::U128(value) => visitor.visit_u128(value),
            ValueKind::Float(value) => visitor.visit_f64(value),
            ValueKind::String(value) => visitor.visit_string(value),
            ValueKind::Array(values) => visitor.visit_seq(Items { values: values.into_iter(), at: 0 }),
            ValueKind::Table(fields) => visitor.visit_map(Fields { fields: fields.into_iter(), now: None }),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.variable().map(str::to_lowercase).as_deref() {
            Some("true" | "1" | "on" | "yes") => visitor.visit_bool(true),
            Some("false" | "0" | "off" | "no") => visitor.visit_bool(false),
            _ => self.deserialize_any(visitor),
        }
    }

    from_text! {
        deserialize_i64 => visit_i64,
        deserialize_u8 => visit_u64,
        deserialize_u16 => visit_u64,
        deserialize_u32 => visit_u64,
        deserialize_u64 => visit_u64,
        deserialize_f64 => visit_f64,
    }

    /// A variable has commas between its elements.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        let origin = ENVIRONMENT.to_owned();
        let Some(text) = self.variable() else { return self.deserialize_any(visitor) };
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let values: Vec<_> = parts.map(|part| Value::new(Some(&origin), part)).collect();
        visitor.visit_seq(Items { values: values.into_iter(), at: 0 })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.0.kind {
            ValueKind::Nil => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u128 f32 char str string bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct map
        struct enum identifier ignored_any
    }
}

struct Items {
    values: std::vec::IntoIter<Value>,
    at: usize,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mistake> {
        let Some(value) = self.values.next() else { return Ok(None) };
        let place = format!("[{}]", self.at);
        self.at += 1;
        Strict(value).read(|value| seed.deserialize(value)).map(Some).map_err(|error| error.under(&place))
    }
}

struct Fields {
    fields: <config::Map<String, Value> as IntoIterator>::IntoIter,
    now: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Fields {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mistake> {
        let Some((name, value)) = self.fields.next() else { return Ok(None) };
        let of_environment = value.origin() == Some(ENVIRONMENT);
        self.now = Some((name.clone(), value));
        let key = seed.deserialize(name.into_deserializer()).map(Some);
        key.map_err(|error: Mistake| Mistake { of_environment, ..error })
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Mistake> {
        let (name, value) = self.now.take().expect("serde asks for the key first");
        Strict(value).read(|value| seed.deserialize(value)).map_err(|error| error.under(&name))
    }
}
