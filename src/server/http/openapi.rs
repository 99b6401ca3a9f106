//! The table of routes as OpenAPI 3.1. Schemas are those of the types that requests are read into and answers written from.

use crate::server::http::access::Scope;
use crate::server::http::routes::{Gives, Route};
use crate::server::problem::Kind;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

/// The status of those who do not say who they are.
const UNAUTHORIZED: u16 = 401;

/// An OpenAPI document.
pub type Document = Json;

/// Makes the document of these routes.
pub fn document(routes: &[Route]) -> Document {
    let settings = || {
        SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
    };
    let mut taken = settings().for_deserialize().into_generator();
    let mut given = settings().for_serialize().into_generator();
    let mut paths: BTreeMap<&str, Map<String, Json>> = BTreeMap::new();
    for route in routes {
        let operation = operation(route, &mut taken, &mut given);
        paths.entry(route.path).or_default().insert(route.method.to_owned(), operation);
    }
    let mut schemas = taken.take_definitions(true);
    for (name, schema) in given.take_definitions(true) {
        schemas.entry(name).or_insert(schema);
    }
    schemas.insert("Problem".into(), problem());
    let mut schemas = Json::Object(schemas);
    without_null_defaults(&mut schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ruvector",
            "summary": "Vector search beside an unmodified PostgreSQL",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": schemas, "securitySchemes": {
            "bearer": { "type": "http", "scheme": "bearer", "description": "A key, or a token of an issuer that is trusted." },
            "key": { "type": "apiKey", "in": "header", "name": "api-key", "description": "A key." },
        } },
    })
}

/// What a field is when it is left out is not what it may be set to, where null is no value of it.
fn without_null_defaults(schema: &mut Json) {
    match schema {
        Json::Object(fields) => {
            fields.retain(|name, value| name != "default" || !value.is_null());
            fields.values_mut().for_each(without_null_defaults);
        }
        Json::Array(values) => values.iter_mut().for_each(without_null_defaults),
        _ => {}
    }
}

fn operation(route: &Route, taken: &mut SchemaGenerator, given: &mut SchemaGenerator) -> Json {
    let mut responses = BTreeMap::new();
    for gives in &route.gives {
        let status = gives.status.to_string();
        let response = responses.entry(status).or_insert_with(|| json!({ "description": "", "content": {} }));
        describe(response, gives, given);
    }
    for (status, kinds) in by_status(&route.problems) {
        let response = responses.entry(status.to_string()).or_insert_with(|| json!({ "content": {} }));
        let titles: Vec<_> = kinds.iter().map(|kind| format!("`{}` {}", kind.code, kind.title)).collect();
        response["description"] = titles.join("; ").into();
        response["content"]["application/problem+json"] = json!({ "schema": one_of(&kinds) });
        if kinds.iter().any(|kind| kind.retryable) {
            response["headers"] =
                json!({ "Retry-After": { "schema": { "type": "integer" }, "description": "Seconds." } });
        }
        if status == UNAUTHORIZED {
            response["headers"] =
                json!({ "WWW-Authenticate": { "schema": { "type": "string" }, "description": "RFC 6750." } });
        }
    }
    let mut operation = json!({
        "operationId": name(route),
        "summary": route.summary,
        "tags": [route.need.map_or("open", Scope::name)],
        "parameters": parameters(route, taken),
        "responses": responses,
        "security": security(route.need),
    });
    if let Some(takes) = &route.takes {
        let example: Json = serde_json::from_str(takes.example).unwrap_or_default();
        let content = json!({ "schema": (takes.schema)(taken), "example": example });
        operation["requestBody"] = json!({ "required": true, "content": { "application/json": content } });
    }
    operation
}

fn describe(response: &mut Json, gives: &Gives, given: &mut SchemaGenerator) {
    let schema = match gives.schema {
        Some(schema) => schema(given),
        None if gives.media == "application/json" => schemars::json_schema!({ "type": "object" }),
        None => schemars::json_schema!({ "type": "string" }),
    };
    if response["description"] == "" {
        response["description"] = if gives.what.is_empty() { "the answer" } else { gives.what }.into();
    }
    response["content"][gives.media] = json!({ "schema": schema });
}

/// `search`, `admin_verify`, `collections`: the parts of the path that do not vary.
fn name(route: &Route) -> String {
    let fixed: Vec<_> = route.path.split('/').filter(|part| !part.is_empty() && !part.starts_with('{')).collect();
    let one = route.path.ends_with('}').then_some("one");
    let words: Vec<_> = std::iter::once(route.method).chain(fixed).chain(one).collect();
    words.join("_").replace('.', "_")
}

/// Either credential will do, with this right; none where nobody is asked who they are.
fn security(need: Option<Scope>) -> Json {
    match need.map(Scope::name) {
        Some(scope) => json!([{ "bearer": [scope] }, { "key": [scope] }, {}]),
        None => json!([]),
    }
}

fn parameters(route: &Route, taken: &mut SchemaGenerator) -> Vec<Json> {
    let names = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let schema = json!({ "type": "string", "minLength": 1 });
    let in_path = names.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": schema }));
    let asked = route.asks.map(|asks| Json::from(asks(taken)));
    let fields = asked.as_ref().and_then(|schema| schema["properties"].as_object());
    in_path.chain(fields.into_iter().flatten().map(|(name, field)| in_query(name, field.clone()))).collect()
}

/// A field of a query string, which can be left out but not be null.
fn in_query(name: &str, mut field: Json) -> Json {
    let description = field["description"].take();
    if let Json::Object(fields) = &mut field {
        fields.retain(|name, _| name != "description" && name != "default");
    }
    let kind = field["type"].as_array().and_then(|kinds| kinds.iter().find(|kind| *kind != "null")).cloned();
    if let Some(kind) = kind {
        field["type"] = kind;
    }
    json!({ "name": name, "in": "query", "description": description, "schema": field })
}

fn by_status(problems: &[&'static Kind]) -> BTreeMap<u16, Vec<&'static Kind>> {
    let mut found: BTreeMap<u16, Vec<&'static Kind>> = BTreeMap::new();
    for kind in problems {
        let of_status = found.entry(kind.status).or_default();
        if !of_status.contains(kind) {
            of_status.push(kind);
        }
    }
    found
}

fn one_of(kinds: &[&'static Kind]) -> Json {
    let codes: Vec<_> = kinds.iter().map(|kind| kind.code).collect();
    json!({ "allOf": [{ "$ref": "#/components/schemas/Problem" }, { "properties": { "code": { "enum": codes } } }] })
}

fn problem() -> Json {
    json!({
        "description": "What went wrong (RFC 9457).",
        "type": "object",
        "required": ["type", "title", "status", "code", "detail", "hint", "retryable"],
        "properties": {
            "type": { "type": "string", "description": "Where the code is explained." },
            "title": { "type": "string", "description": "What it is." },
            "status": { "type": "integer", "description": "HTTP status." },
            "code": { "type": "string", "pattern": "^RV[0-9]{4}$", "description": "Stable code." },
            "detail": { "type": "string", "description": "What is wrong with this request." },
            "hint": { "type": "string", "description": "What to do." },
            "instance": { "type": "string", "description": "The name of the request, as in the header `x-request-id` and in the log." },
            "trace_id": { "type": "string", "description": "The trace of the request, where the client named one in `traceparent` or traces are sent." },
            "retryable": { "type": "boolean", "description": "May the same request work later?" },
            "position": { "type": "integer", "description": "Where in a filter in SQL, from 1." },
            "path": { "type": "string", "description": "Where in a filter in JSON." },
            "applied_lsn": { "$ref": "#/components/schemas/Lsn", "description": "Position of the index, where that matters." },
        },
    })
}

#[cfg(test)]
mod tests {
    use crate::server::http::routes;
    use serde_json::Value as Json;
    use std::collections::BTreeSet;

    fn references<'a>(json: &'a Json, found: &mut BTreeSet<&'a str>) {
        match json {
            Json::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Json::as_str));
                fields.values().for_each(|value| references(value, found));
            }
            Json::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn what_is_referred_to_is_there_and_each_name_means_one_thing() {
        let document = routes::document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let place = reference.strip_prefix('#').expect("a place in the document");
            assert!(document.pointer(place).is_some(), "{reference}");
        }
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        for name in schemas.keys() {
            assert!(!name.ends_with(|last: char| last.is_ascii_digit()), "two types are called {name}");
        }
        let names: Vec<_> = routes::ROUTES.iter().map(super::name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    }

    #[test]
    fn requests_and_answers_share_names_of_equal_schemas_only() {
        let settings = super::SchemaSettings::draft2020_12;
        let mut generators =
            [settings().for_deserialize().into_generator(), settings().for_serialize().into_generator()];
        for route in routes::ROUTES.iter() {
            if let Some(takes) = &route.takes {
                (takes.schema)(&mut generators[0]);
            }
            if let Some(asks) = route.asks {
                asks(&mut generators[0]);
            }
            for schema in route.gives.iter().filter_map(|gives| gives.schema) {
                schema(&mut generators[1]);
            }
        }
        let [taken, given] = generators.map(|mut generator| generator.take_definitions(true));
        let shared: Vec<_> = taken.iter().filter(|(name, _)| given.contains_key(*name)).collect();
        assert!(!shared.is_empty());
        for (name, schema) in shared {
            assert_eq!(*schema, given[name], "{name}");
        }
    }

    #[test]
    fn examples_are_read() {
        for route in routes::ROUTES.iter() {
            let Some(takes) = &route.takes else { continue };
            let example: Json = serde_json::from_str(takes.example).expect(takes.example);
            assert!(example.is_object(), "{}", takes.example);
        }
    }
}
