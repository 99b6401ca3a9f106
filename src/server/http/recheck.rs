//! The `recheck` of a request: how sure, and with whose eyes.

use crate::model::{Recheck, Viewer};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// `"exists"`, `"role:NAME"`, or an object of `mode`, `as_role` and `settings`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Asked {
    /// How sure.
    pub level: Recheck,
    /// With whose eyes, where not with our own.
    pub viewer: Option<Viewer>,
}

/// How sure, and with whose eyes.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RecheckWithRole")]
struct Fields {
    /// `exists` when left out.
    #[serde(default)]
    mode: Recheck,
    /// A role of the source, one of those that the service's configuration lists: its row security and grants decide.
    #[serde(default)]
    as_role: Option<String>,
    /// Settings that hold meanwhile, for policies that read them.
    #[serde(default)]
    settings: BTreeMap<String, String>,
}

/// How sure rows are to be visible in the source.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Forms {
    Word(Recheck),
    /// `role:NAME`: as `exists`, with the eyes of this role.
    Role(#[schemars(regex(pattern = "^role:."))] String),
    Object(Fields),
}

impl JsonSchema for Asked {
    fn schema_name() -> Cow<'static, str> {
        "RecheckAsked".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Forms::json_schema(generator)
    }
}

impl Asked {
    fn new(fields: Fields) -> Result<Asked, &'static str> {
        let Fields { mode: level, as_role, settings } = fields;
        match as_role {
            None if !settings.is_empty() => Err("recheck.settings without recheck.as_role"),
            Some(_) if level == Recheck::None => Err("recheck.as_role with the mode none: nobody is asked"),
            Some(role) if role.is_empty() || role.contains('\0') => Err("recheck.as_role is no name of a role"),
            _ if settings.values().any(|value| value.contains('\0')) => Err("recheck.settings has a zero byte"),
            as_role => Ok(Asked { level, viewer: as_role.map(|role| Viewer { role, settings }) }),
        }
    }
}

impl<'de> Deserialize<'de> for Asked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Asked, D::Error> {
        deserializer.deserialize_any(Either)
    }
}

struct Either;

impl<'de> Visitor<'de> for Either {
    type Value = Asked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("none, exists, exact, role:NAME or an object of mode, as_role and settings")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Asked, E> {
        let fields = match text.strip_prefix("role:") {
            Some(role) => Fields { mode: Recheck::Exists, as_role: Some(role.into()), settings: BTreeMap::new() },
            None => Fields {
                mode: Recheck::deserialize(StrDeserializer::new(text))?,
                as_role: None,
                settings: BTreeMap::new(),
            },
        };
        Asked::new(fields).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Asked, A::Error> {
        let fields = Fields::deserialize(MapAccessDeserializer::new(map))?;
        Asked::new(fields).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let read = |json: &str| serde_json::from_str::<Asked>(json).map_err(|error| error.to_string());
        let as_role =
            |level, role: &str| Asked { level, viewer: Some(Viewer { role: role.into(), settings: BTreeMap::new() }) };
        assert_eq!(read(r#""exact""#), Ok(Asked { level: Recheck::Exact, viewer: None }));
        assert_eq!(read(r#""role:a b""#), Ok(as_role(Recheck::Exists, "a b")));
        assert_eq!(read(r#"{"as_role":"x"}"#), Ok(as_role(Recheck::Exists, "x")));
        assert_eq!(read(r#"{"as_role":"x","mode":"exact"}"#), Ok(as_role(Recheck::Exact, "x")));
        assert_eq!(read(r#"{"mode":"none"}"#), Ok(Asked { level: Recheck::None, viewer: None }));
        let settings = read(r#"{"as_role":"x","settings":{"app.tenant":"7"}}"#).expect("valid").viewer.expect("one");
        assert_eq!(settings.settings["app.tenant"], "7");
        for (json, reason) in [
            (r#""maybe""#, "unknown variant"),
            (r#""role:""#, "no name"),
            (r#"{"as_role":"x","mode":"none"}"#, "nobody is asked"),
            (r#"{"settings":{"a.b":"1"}}"#, "without recheck.as_role"),
            (r#"{"as_role":"x","settings":{"a.b":7}}"#, "invalid type"),
            (r#"{"role":"x"}"#, "unknown field"),
            ("5", "expected none, exists"),
        ] {
            let error = read(json).expect_err(json);
            assert!(error.contains(reason), "{json}: {error}");
        }
    }
}
