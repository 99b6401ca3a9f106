//! Filters written as JSON objects, as document databases have them, read into the same tree as those in SQL.

mod schema;

use crate::model::{Comparison, Filter, FilterColumn};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value as Json};
use std::fmt;

use super::constant::Constant;
use super::parser::{check_operator, shortened, too_many, unknown_column};
use super::truth::{never, not};
use super::{FilterError, MAX_DEPTH, MAX_NODES};

type Parsed<T> = Result<T, FilterError>;

/// What can stand at the place of a column.
const JOINS: &str = "$and, $or, $not";
/// What can stand beside a column.
const OPERATORS: &str = "$eq, $ne, $lt, $lte, $gt, $gte, $in, $nin, $exists, $not";

/// Reads one filter.
pub(super) struct Reader<'a> {
    columns: &'a [FilterColumn],
    nodes: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(columns: &'a [FilterColumn]) -> Reader<'a> {
        Reader { columns, nodes: 0 }
    }

    /// All fields of an object hold; of one without fields nothing has to.
    pub(super) fn object(&mut self, fields: &Map<String, Json>, depth: usize) -> Parsed<Filter> {
        let parts = fields.iter().map(|(name, json)| {
            let part = match name.strip_prefix('$') {
                Some(_) => self.join(name, json, depth),
                None => self.column(name, json, depth),
            };
            part.map_err(|error| error.under(name))
        });
        Ok(all(parts.collect::<Parsed<_>>()?))
    }

    fn join(&mut self, name: &str, json: &Json, depth: usize) -> Parsed<Filter> {
        match name {
            "$and" => self.each(json, depth).map(all),
            "$or" => self.each(json, depth).map(Filter::Or),
            "$not" => self.nested(json, depth).map(not),
            _ => Err(unknown_operator(name, JOINS)),
        }
    }

    fn each(&mut self, json: &Json, depth: usize) -> Parsed<Vec<Filter>> {
        let Json::Array(items) = json else { return Err(wrong("a list of filters", json)) };
        let part = |(at, item)| self.nested(item, depth).map_err(|error| error.under(&format!("[{at}]")));
        items.iter().enumerate().map(part).collect()
    }

    fn nested(&mut self, json: &Json, depth: usize) -> Parsed<Filter> {
        enter(depth)?;
        self.count(1)?;
        match json {
            Json::Object(fields) => self.object(fields, depth + 1),
            _ => Err(wrong("a filter", json)),
        }
    }

    fn column(&mut self, name: &str, json: &Json, depth: usize) -> Parsed<Filter> {
        let Some(column) = self.columns.iter().position(|column| column.name == name) else {
            return Err(unknown_column(name, true, self.columns));
        };
        match json {
            Json::Object(operators) => self.operators(column, operators, depth),
            Json::Array(_) => Err(wrong("a constant", json).hint("one of several values is {\"$in\": [...]}")),
            constant => self.compare(column, Comparison::Eq, constant),
        }
    }

    fn operators(&mut self, column: usize, operators: &Map<String, Json>, depth: usize) -> Parsed<Filter> {
        if operators.is_empty() {
            return Err(FilterError::new("there is nothing to compare with").hint(format!("write one of {OPERATORS}")));
        }
        let parts = operators
            .iter()
            .map(|(name, json)| self.operator(column, name, json, depth).map_err(|error| error.under(name)));
        Ok(all(parts.collect::<Parsed<_>>()?))
    }

    fn operator(&mut self, column: usize, name: &str, json: &Json, depth: usize) -> Parsed<Filter> {
        let op = match name {
            "$eq" => Comparison::Eq,
            "$ne" => Comparison::Ne,
            "$lt" => Comparison::Lt,
            "$lte" => Comparison::Le,
            "$gt" => Comparison::Gt,
            "$gte" => Comparison::Ge,
            "$in" => return self.list(column, json),
            "$nin" => return self.list(column, json).map(not),
            "$exists" => return self.exists(column, json),
            "$not" => {
                enter(depth)?;
                self.count(1)?;
                let Json::Object(operators) = json else { return Err(wrong("an object of operators", json)) };
                return self.operators(column, operators, depth + 1).map(not);
            }
            _ => return Err(unknown_operator(name, OPERATORS)),
        };
        self.compare(column, op, json)
    }

    fn compare(&mut self, column: usize, op: Comparison, json: &Json) -> Parsed<Filter> {
        self.count(1)?;
        match (op, json) {
            (Comparison::Eq, Json::Null) => return Ok(Filter::IsNull { column }),
            (Comparison::Ne, Json::Null) => return Ok(not(Filter::IsNull { column })),
            (_, Json::Null) => return Err(wrong("a constant", json).hint("nothing is less or greater than null")),
            _ => check_operator(&self.columns[column], op)?,
        }
        Ok(Filter::Compare { column, op, value: self.constant(column, json)? })
    }

    fn constant(&self, column: usize, json: &Json) -> Parsed<Option<crate::model::Value>> {
        match json {
            Json::Array(_) | Json::Object(_) => Err(wrong("a constant", json)),
            _ => Constant::param(json, 0)?.resolve(&self.columns[column]),
        }
    }

    fn list(&mut self, column: usize, json: &Json) -> Parsed<Filter> {
        let Json::Array(items) = json else { return Err(wrong("a list of constants", json)) };
        self.count(1 + items.len())?;
        check_operator(&self.columns[column], Comparison::Eq)?;
        if items.is_empty() {
            return Ok(never());
        }
        let value = |(at, item): (usize, &Json)| {
            let value = match item {
                Json::Null => Err(wrong("a constant", item).hint("write {\"$or\": [{...}, {\"column\": null}]}")),
                item => self.constant(column, item),
            };
            value.map_err(|error| error.under(&format!("[{at}]")))
        };
        let values = items.iter().enumerate().map(value).collect::<Parsed<_>>()?;
        Ok(Filter::In { column, values })
    }

    fn exists(&mut self, column: usize, json: &Json) -> Parsed<Filter> {
        self.count(1)?;
        match json {
            Json::Bool(true) => Ok(not(Filter::IsNull { column })),
            Json::Bool(false) => Ok(Filter::IsNull { column }),
            _ => Err(wrong("true or false", json)),
        }
    }

    fn count(&mut self, nodes: usize) -> Parsed<()> {
        self.nodes += nodes;
        if self.nodes <= MAX_NODES { Ok(()) } else { Err(too_many()) }
    }
}

/// One part needs no list around it.
fn all(mut parts: Vec<Filter>) -> Filter {
    match parts.len() {
        1 => parts.remove(0),
        _ => Filter::And(parts),
    }
}

fn enter(depth: usize) -> Parsed<()> {
    if depth < MAX_DEPTH {
        return Ok(());
    }
    let error = FilterError::new(format!("the filter is nested more than {MAX_DEPTH} deep"));
    Err(error.hint("write {\"column\": {\"$in\": [...]}} for a chain of $or"))
}

fn wrong(wanted: &str, found: &Json) -> FilterError {
    let found = match found {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    };
    FilterError::new(format!("found {found} where {wanted} should be"))
}

fn unknown_operator(name: &str, known: &str) -> FilterError {
    let error = FilterError::new(format!("{} is no operator here", shortened(name)));
    error.hint(format!("there are {known}; a filter in SQL can name columns that begin with $"))
}

/// A filter as a request has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Written {
    /// A WHERE condition.
    Sql(String),
    /// An object, none of whose fields came twice.
    Json(Map<String, Json>),
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Written, D::Error> {
        let unexpected = |json: &Json| de::Error::custom(wrong("a filter, SQL in a string or an object,", json));
        match deserializer.deserialize_any(Unique)? {
            Json::String(sql) => Ok(Written::Sql(sql)),
            Json::Object(fields) => Ok(Written::Json(fields)),
            other => Err(unexpected(&other)),
        }
    }
}

/// Reads JSON in which no field comes twice: of two conditions on a column none may be lost.
struct Unique;

impl<'de> de::DeserializeSeed<'de> for Unique {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(Unique)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Unique)? {
            list.push(item);
        }
        Ok(Json::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Unique)?;
            if fields.contains_key(&name) {
                let message = format!("the filter has the field {:?} twice", shortened(&name));
                return Err(de::Error::custom(message));
            }
            fields.insert(name, value);
        }
        Ok(Json::Object(fields))
    }
}

#[cfg(test)]
mod tests;
