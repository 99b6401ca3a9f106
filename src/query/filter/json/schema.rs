//! What filters look like, for the document of HTTP's routes.

use super::Written;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value as Json;
use std::borrow::Cow;
use std::collections::BTreeMap;

impl JsonSchema for Written {
    fn schema_name() -> Cow<'static, str> {
        "Filter".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Forms::json_schema(generator)
    }
}

/// Which rows pass.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Forms {
    /// SQL on the collection's filter columns, with `$1`, `$2` for `params`.
    Sql(String),
    /// The same as JSON. It has its constants in it and takes no `params`.
    Json(Conditions),
}

/// All of its fields hold. A field is a filter column with the value that it has, or with what its value is compared with.
#[derive(JsonSchema)]
#[schemars(rename = "FilterObject")]
#[expect(dead_code, reason = "only its schema is used")]
struct Conditions {
    /// All of these hold.
    #[schemars(rename = "$and", with = "Vec<Conditions>", default)]
    and: Option<Vec<Conditions>>,
    /// One of these holds.
    #[schemars(rename = "$or", with = "Vec<Conditions>", default)]
    or: Option<Vec<Conditions>>,
    /// This does not hold.
    #[schemars(rename = "$not", with = "Conditions", default)]
    not: Option<Box<Conditions>>,
    #[schemars(flatten)]
    columns: BTreeMap<String, Compared>,
}

/// What a column is compared with.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum Compared {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    Operators(Box<Operators>),
}

/// All of these hold of the column's value.
#[derive(JsonSchema)]
#[schemars(rename = "FilterOperators", deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Operators {
    #[schemars(rename = "$eq", default)]
    eq: Json,
    #[schemars(rename = "$ne", default)]
    ne: Json,
    #[schemars(rename = "$lt", default)]
    lt: Json,
    #[schemars(rename = "$lte", default)]
    lte: Json,
    #[schemars(rename = "$gt", default)]
    gt: Json,
    #[schemars(rename = "$gte", default)]
    gte: Json,
    /// It is one of these.
    #[schemars(rename = "$in", with = "Vec<Json>", default)]
    one_of: Option<Vec<Json>>,
    /// It is none of these.
    #[schemars(rename = "$nin", with = "Vec<Json>", default)]
    none_of: Option<Vec<Json>>,
    /// It is not NULL, or it is.
    #[schemars(rename = "$exists", with = "bool", default)]
    exists: Option<bool>,
    /// These do not hold.
    #[schemars(rename = "$not", with = "Operators", default)]
    not: Option<Box<Operators>>,
}
