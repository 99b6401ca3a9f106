//! Postgres' binary and text forms of the column types this service takes.

use crate::model::value::Value;

/// The value in Postgres' text form.
pub fn to_text(value: &Value) -> String {
    format!("{value:?}")
}
