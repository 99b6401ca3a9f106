//! Functions that are asked of the catalog.

use crate::server::pg::catalog::lookup::Lookup;
use crate::server::pg::catalog::relations::{type_named, type_shown};
use crate::server::pg::catalog::value::{Datum, Kind};
use crate::server::pg::condition::unsupported;
use crate::server::pg::settings::SERVER_VERSION;
use crate::server::pg::tables::{COLLECTIONS, SCHEMA};
use crate::server::problem::Problem;

/// Functions that are written without parentheses.
pub fn is_word(name: &str) -> bool {
    let words = ["current_user", "session_user", "user", "current_role", "current_catalog", "current_schema"];
    words.contains(&name.to_lowercase().as_str())
}

/// What a function gives.
pub fn call(lookup: &Lookup<'_>, name: &str, arguments: &[Datum]) -> Result<Datum, Problem> {
    let first = arguments.first().unwrap_or(&Datum::Null);
    let second = arguments.get(1).unwrap_or(&Datum::Null);
    let text = |text: Option<String>| text.map_or(Datum::Null, Datum::Text);
    let given = first.text();
    Ok(match name {
        "pg_get_userbyid" => Datum::from("ruvector"),
        "format_type" => first.int().map_or(Datum::Null, |oid| Datum::Text(type_shown(oid))),
        "pg_encoding_to_char" => Datum::from("UTF8"),
        // Everything that exists is in sight, and everybody may read what he sees and change nothing.
        "pg_table_is_visible" | "pg_type_is_visible" | "pg_function_is_visible" | "pg_collation_is_visible" => {
            Datum::Bool(true)
        }
        "has_table_privilege"
        | "has_schema_privilege"
        | "has_database_privilege"
        | "has_column_privilege"
        | "has_any_column_privilege"
        | "pg_has_role" => {
            let right = arguments.last().and_then(Datum::text).unwrap_or_default().to_lowercase();
            Datum::Bool(["select", "usage", "connect", "member"].contains(&right.as_str()))
        }
        "pg_is_other_temp_schema" | "pg_is_in_recovery" | "pg_relation_is_publishable" => Datum::Bool(false),
        "pg_my_temp_schema"
        | "pg_table_size"
        | "pg_relation_size"
        | "pg_total_relation_size"
        | "pg_indexes_size"
        | "pg_database_size" => Datum::Int(0),
        "pg_size_pretty" => first.int().map_or(Datum::Null, |bytes| Datum::Text(format!("{bytes} bytes"))),
        // Nothing has any of these.
        "pg_get_expr"
        | "pg_get_viewdef"
        | "pg_get_indexdef"
        | "pg_get_constraintdef"
        | "pg_get_partkeydef"
        | "pg_get_ruledef"
        | "pg_get_triggerdef"
        | "pg_get_serial_sequence"
        | "obj_description"
        | "col_description"
        | "shobj_description"
        | "pg_tablespace_location"
        | "pg_get_statisticsobjdef_columns" => Datum::Null,
        "version" => Datum::Text(format!("PostgreSQL {SERVER_VERSION}, a vector search endpoint beside PostgreSQL")),
        "current_schema" => Datum::from(SCHEMA),
        "current_schemas" => Datum::List(vec![SCHEMA.into(), COLLECTIONS.into()]),
        "current_database" | "current_catalog" => Datum::from("ruvector"),
        "current_user" | "session_user" | "user" | "current_role" => Datum::from(lookup.world.user.name.as_str()),
        "to_regtype" => given.and_then(|name| type_named(&name)).map_or(Datum::Null, Datum::Int),
        "to_regclass" => {
            let found = given.and_then(|name| lookup.relation(&super::name_pieces(&name)));
            found.map_or(Datum::Null, |found| Datum::Int(found.oid))
        }
        "nullif" => {
            if first.compare(second).is_some_and(std::cmp::Ordering::is_eq) {
                Datum::Null
            } else {
                first.clone()
            }
        }
        "array_to_string" => match (first.items(), second.text()) {
            (Some(items), Some(between)) => {
                lookup.check_made(items.len() * between.len())?;
                Datum::Text(items.iter().filter_map(Datum::text).collect::<Vec<_>>().join(&between))
            }
            _ => Datum::Null,
        },
        "array_length" | "array_upper" | "cardinality" => {
            let count = first.items().map(|items| items.len() as i64);
            count.filter(|count| *count > 0 || name == "cardinality").map_or(Datum::Null, Datum::Int)
        }
        "length" | "char_length" => given.map_or(Datum::Null, |text| Datum::Int(text.chars().count() as i64)),
        "lower" => text(given.map(|text| text.to_lowercase())),
        "upper" => text(given.map(|text| text.to_uppercase())),
        "quote_ident" => text(given.map(|name| quoted(&name))),
        "concat" => Datum::Text(arguments.iter().filter_map(Datum::text).collect()),
        "replace" => match (given, second.text(), arguments.get(2).and_then(Datum::text)) {
            (Some(text), Some(from), Some(to)) if !from.is_empty() => {
                lookup.check_made(text.matches(&from).count() * to.len())?;
                Datum::Text(text.replace(&from, &to))
            }
            (Some(text), ..) => Datum::Text(text),
            _ => Datum::Null,
        },
        "substr" | "substring" => match (given, second.int()) {
            (Some(text), Some(from)) => {
                let end = arguments.get(2).and_then(Datum::int).map_or(i64::MAX, |count| from.saturating_add(count));
                let within = |at: usize| (from..end).contains(&(at as i64 + 1));
                Datum::Text(text.chars().enumerate().filter(|(at, _)| within(*at)).map(|(_, c)| c).collect())
            }
            _ => Datum::Null,
        },
        _ => return Err(unsupported(format!("the function {name} in a query over the catalog"))),
    })
}

/// The type of what a function gives.
pub fn kind(name: &str) -> Kind {
    match name {
        "count"
        | "sum"
        | "row_number"
        | "pg_table_size"
        | "pg_relation_size"
        | "pg_total_relation_size"
        | "pg_database_size" => Kind::Int8,
        "length" | "char_length" | "array_length" | "array_upper" | "cardinality" => Kind::Int4,
        "to_regtype" | "to_regclass" | "pg_my_temp_schema" => Kind::Oid,
        "current_schemas" => Kind::Texts,
        "current_schema" | "current_database" | "pg_get_userbyid" | "pg_encoding_to_char" => Kind::Name,
        name if name.starts_with("has_") || name.ends_with("_is_visible") || name.starts_with("pg_is_") => Kind::Bool,
        "pg_has_role" | "pg_relation_is_publishable" | "bool_and" | "bool_or" => Kind::Bool,
        _ => Kind::Text,
    }
}

fn quoted(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain && name.starts_with(|c: char| !c.is_ascii_digit()) {
        name.to_owned()
    } else {
        crate::model::quote_ident(name)
    }
}
