//! The inputs of tables that are functions, and the distance that a statement is about.

use crate::model::{CollectionDef, ColumnType, Consistency, Filter, Value, VectorColumn, pgtype};
use crate::query::filter::Written;
use crate::server::http::search as body;
use crate::server::pg::condition::{self, Distance, Known, unsupported};
use crate::server::pg::tables::Input;
use crate::server::problem::{self, Problem};
use serde_json::{Map, Value as Json};
use sqlparser::ast::Expr;

/// `{"a": 1, "b": [2, 3], "c": null}` as SQL.
pub fn equalities(text: &str) -> Result<(String, Vec<Json>), Problem> {
    let hint = "a filter is a condition in SQL, or an object of equalities: {\"section\": \"net\"}";
    let object: Map<String, Json> = serde_json::from_str(text)
        .map_err(|error| Problem::new(problem::FILTER, format!("the filter is no JSON object: {error}")).hint(hint))?;
    let mut params = Vec::new();
    let mut conditions = Vec::new();
    for (name, value) in object {
        let column = crate::model::quote_ident(&name);
        conditions.push(match &value {
            Json::Null => format!("{column} IS NULL"),
            Json::Object(_) => {
                return Err(Problem::new(problem::FILTER, format!("the value of {name:?} is an object")).hint(hint));
            }
            Json::Array(_) => {
                params.push(value);
                format!("{column} = ANY(${})", params.len())
            }
            _ => {
                params.push(value);
                format!("{column} = ${}", params.len())
            }
        });
    }
    Ok((conditions.join(" AND "), params))
}

/// What is said where an input was lost on its way.
pub fn missing(input: &str) -> Problem {
    Problem::new(problem::MISSING_INPUT, format!("`{input}` is not given")).hint(format!(
        "write {input} = (SELECT value): a scalar sub-select is always sent, a cast or a function call beside = is not; in \
         a join put the search into a LATERAL sub-select with LIMIT or OFFSET 0"
    ))
}

/// An input as a column shows it.
pub fn echo(input: Input, known: &Known) -> Option<Value> {
    match (input, known) {
        (_, Known::Vector(vector)) => Some(Value::Vector(vector.clone().into())),
        (Input::Query, Known::Text(Some(text))) => {
            let form = if text.trim_start().starts_with('{') { ColumnType::Float4Array } else { ColumnType::Vector };
            let vector = pgtype::parse_literal(form, text);
            Some(vector.unwrap_or_else(|_| Value::Text(text.as_str().into())))
        }
        (Input::K, Known::Text(Some(text))) => text.trim().parse().ok().map(Value::Int),
        (_, Known::Text(Some(text))) => Some(Value::Text(text.as_str().into())),
        _ => None,
    }
}

/// All of these filters.
pub fn all_of(mut filters: Vec<Filter>) -> Option<Filter> {
    match filters.len() {
        0 | 1 => filters.pop(),
        _ => Some(Filter::And(filters)),
    }
}

/// Columns may be shown that are replicated. Others would be read from the source's tables with the service's rights,
/// past row security and the grants of whoever asks.
pub fn check_shown(def: &CollectionDef, columns: &[String]) -> Result<(), Problem> {
    let replicated = |name: &String| {
        def.key.iter().any(|key| key.name == *name) || def.filters.iter().any(|filter| filter.name == *name)
    };
    let Some(name) = columns.iter().find(|name| !replicated(name)) else { return Ok(()) };
    let detail = format!("column {name:?} of {:?} is not shown over SQL", def.name);
    let hint = "`columns` may name key and filter columns; join the table itself for the others";
    Err(Problem::new(problem::NOT_ALLOWED, detail).hint(hint))
}

/// Refuses what a search of a collection's own table cannot mean.
pub fn check_open(options: &Map<String, Json>) -> Result<(), Problem> {
    let refused = ["group_by", "group_size", "mmr", "columns", "limit", "explain"];
    if let Some(name) = refused.into_iter().find(|name| options.contains_key(*name)) {
        return Err(unsupported(format!("`{name}` in the options of a collection's table")));
    }
    let query = options.get("query").and_then(Json::as_object).into_iter().flat_map(Map::keys);
    match query.into_iter().find(|name| *name != "using") {
        Some(name) => Err(unsupported(format!("`query.{name}` in the options of a collection's table"))),
        None => Ok(()),
    }
}

/// Refuses what nothing but a search can mean.
pub fn check_scan(options: &Map<String, Json>) -> Result<(), Problem> {
    let taken = ["filter", "params", "consistency", "recheck", "search"];
    match options.keys().find(|name| !taken.contains(&name.as_str())) {
        Some(name) => Err(unsupported(format!("`{name}` in the options of a scan"))),
        None => Ok(()),
    }
}

/// What options say that holds for a scan, too.
pub fn filter_and_consistency(
    def: &CollectionDef,
    options: &mut Map<String, Json>,
) -> Result<(Option<Filter>, Consistency), Problem> {
    let malformed = |error: serde_json::Error| Problem::new(problem::MALFORMED, format!("options: {error}"));
    let mut take = |name| options.remove(name).unwrap_or(Json::Null);
    let filter: Option<Written> = serde_json::from_value(take("filter")).map_err(malformed)?;
    let params: Option<Vec<Json>> = serde_json::from_value(take("params")).map_err(malformed)?;
    let freshness: Option<body::Freshness> = serde_json::from_value(take("consistency")).map_err(malformed)?;
    let filter = body::parse_filter(def, filter.as_ref(), &params.unwrap_or_default())?;
    Ok((filter, body::freshness(freshness)?))
}

/// The first distance anywhere in an expression.
pub fn first_distance<'e>(expr: &'e Expr, is_vector: &dyn Fn(&str) -> bool) -> Option<Distance<'e>> {
    if let Some(found) = condition::distance(expr, is_vector) {
        return Some(found);
    }
    match expr {
        Expr::BinaryOp { left, right, .. } => {
            first_distance(left, is_vector).or_else(|| first_distance(right, is_vector))
        }
        Expr::Nested(inner) | Expr::UnaryOp { expr: inner, .. } => first_distance(inner, is_vector),
        Expr::Between { expr, .. } => first_distance(expr, is_vector),
        Expr::Function(function) => {
            condition::arguments(function)?.into_iter().find_map(|argument| first_distance(argument, is_vector))
        }
        _ => None,
    }
}

/// Only the metric that a column is indexed by can be searched by.
pub fn check_metric(distance: &Distance<'_>, column: &VectorColumn) -> Result<(), Problem> {
    let operator = column.metric.operator();
    if operator == Some(distance.operator) {
        return Ok(());
    }
    let detail = format!("column \"{}\" is indexed by {}, not by {}", column.name, column.metric, distance.operator);
    let hint = match operator {
        None => "give the query as _query = '{...}' and ORDER BY _distance".to_owned(),
        Some(operator) => format!("order by {operator}, or configure a collection with another metric"),
    };
    Err(Problem::new(problem::UNSUPPORTED, detail).hint(hint))
}
