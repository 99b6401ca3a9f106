//! The document of the routes, and the codes of errors, as pages for people: one file each, nothing is fetched or run.

use crate::server::problem::{ALL, Kind};
use aws_lc_rs::digest;
use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json};
use std::fmt::Write;
use std::sync::LazyLock;

const STYLE: &str = include_str!("docs.css");

/// The style of the page, and nothing else.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// A page as an answer.
pub fn response(page: Bytes) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, page).into_response()
}

/// What an error means.
pub fn error(kind: &Kind) -> String {
    let again = match kind.retryable {
        true => "The same request may work later: wait as long as <code>Retry-After</code> says.",
        false => "The same request will not work later: something has to change.",
    };
    let body = format!(
        "<main><h1>{code}: {title}</h1><table><tr><th>HTTP status<td>{status}<tr><th>SQLSTATE over SQL<td><code>{sqlstate}</code></table>\
         <p>{again}</p><p>What to do: {hint}.</p><p>The answer itself says under <code>detail</code> what is wrong, and under <code>hint</code> what to do. \
         <a href=\"/docs\">All routes and codes</a></p></main>",
        code = kind.code,
        title = escaped(kind.title),
        status = kind.status,
        sqlstate = kind.sqlstate,
        hint = escaped(kind.hint),
    );
    page(kind.code, &body)
}

/// All routes, schemas and errors.
pub fn docs(document: &Json) -> String {
    let (mut links, mut routes) = (String::new(), String::new());
    for (path, operations) in fields(&document["paths"]) {
        for (method, operation) in fields(operations) {
            let id = text(&operation["operationId"]);
            let _ = write!(links, "<li><a href=\"#{id}\"><b>{method}</b> {}</a>", escaped(path));
            routes.push_str(&route(path, method, operation));
        }
    }
    let schemas: String =
        fields(&document["components"]["schemas"]).map(|(name, schema)| described(name, schema)).collect();
    let codes: String = ALL.iter().fold(String::new(), |mut rows, kind| {
        let (code, retryable) = (kind.code, if kind.retryable { "yes" } else { "" });
        let title = escaped(kind.title);
        let _ =
            write!(rows, "<tr><td><a href=\"/errors/{code}\">{code}</a><td>{}<td>{title}<td>{retryable}", kind.status);
        rows
    });
    let body = format!(
        "<nav><h1>ruvector {version}</h1><ul>{links}</ul><p><a href=\"#schemas\">Schemas</a> <a href=\"#errors\">Errors</a> \
         <a href=\"/openapi.json\">OpenAPI</a></p></nav><main>{routes}<h2 id=\"schemas\">Schemas</h2>{schemas}\
         <h2 id=\"errors\">Errors</h2><table><tr><th>Code<th>Status<th>What<th>May work later{codes}</table></main>",
        version = text(&document["info"]["version"]),
    );
    page("ruvector: routes", &body)
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{}</title><style>{STYLE}</style>{body}</html>",
        escaped(title)
    )
}

fn route(path: &str, method: &str, operation: &Json) -> String {
    let mut html = format!(
        "<section id=\"{}\"><h2><b>{method}</b> {}</h2><p>{} <small>scope: {}</small></p>",
        text(&operation["operationId"]),
        escaped(path),
        escaped(text(&operation["summary"])),
        text(&operation["tags"][0]),
    );
    if let Some(body) = operation.pointer("/requestBody/content/application~1json") {
        let _ = write!(
            html,
            "<h3>Request: {}</h3><pre>curl -s http://127.0.0.1:8480{} -d '{}'</pre>",
            kind_of(&body["schema"]),
            escaped(path),
            escaped(&body["example"].to_string().replace('\'', "'\\''"))
        );
    }
    let asked = operation["parameters"].as_array().into_iter().flatten().filter(|one| one["in"] == "query");
    let asked = asked.fold(String::new(), |mut rows, one| {
        let (name, about) = (escaped(text(&one["name"])), with_codes(text(&one["description"])));
        let _ = write!(rows, "<tr><th>{name}<td>{}<td>{about}", kind_of(&one["schema"]));
        rows
    });
    if !asked.is_empty() {
        let _ = write!(html, "<h3>Behind the question mark</h3><table>{asked}</table>");
    }
    html.push_str("<h3>Answers</h3><table>");
    for (status, response) in fields(&operation["responses"]) {
        let forms: Vec<_> =
            fields(&response["content"]).map(|(media, content)| form(media, &content["schema"])).collect();
        let what = with_codes(text(&response["description"]));
        let _ = write!(html, "<tr><th>{status}<td>{}<td>{what}", forms.join("<br>"));
    }
    html + "</table></section>"
}

fn form(media: &str, schema: &Json) -> String {
    match schema.get("allOf").and_then(|all| all.get(0)) {
        Some(problem) => kind_of(problem),
        None if schema.get("$ref").is_some() => kind_of(schema),
        None => escaped(media),
    }
}

/// Markdown's code marks, and codes of errors as links.
fn with_codes(description: &str) -> String {
    let mut html = String::new();
    for (at, part) in escaped(description).split('`').enumerate() {
        let _ = match part {
            part if at % 2 == 0 => write!(html, "{part}"),
            code if code.starts_with("RV") => write!(html, "<a href=\"/errors/{code}\">{code}</a>"),
            code => write!(html, "<code>{code}</code>"),
        };
    }
    html
}

/// A schema with its fields.
fn described(name: &str, schema: &Json) -> String {
    let about = with_codes(text(&schema["description"]));
    let mut html = format!("<section id=\"schema-{name}\"><h3>{name}</h3><p>{about}</p>");
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    let mut rows = String::new();
    for (field, of) in fields(&schema["properties"]) {
        let must = if required.contains(&field.as_str()) { "" } else { " <small>optional</small>" };
        let about = with_codes(text(&of["description"]));
        let _ = write!(rows, "<tr><th>{}{must}<td>{}<td>{about}", escaped(field), kind_of(of));
    }
    if !rows.is_empty() {
        let _ = write!(html, "<table>{rows}</table>");
    }
    for choice in ["oneOf", "anyOf"].iter().filter_map(|key| schema[*key].as_array()).flatten() {
        let about = with_codes(text(&choice["description"]));
        let _ = write!(html, "<p>or {} {about}</p>", kind_of(choice));
    }
    html + "</section>"
}

/// What a value of this schema is, in a few words.
fn kind_of(schema: &Json) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|place| place.rsplit('/').next()) {
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    if let Some(value) = schema.get("const") {
        return format!("<code>{}</code>", escaped(&value.to_string()));
    }
    if let Some(values) = schema["enum"].as_array() {
        return values
            .iter()
            .map(|value| format!("<code>{}</code>", escaped(&value.to_string())))
            .collect::<Vec<_>>()
            .join(" ");
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[key].as_array() {
            return choices.iter().map(kind_of).collect::<Vec<_>>().join(" or ");
        }
    }
    let names = match &schema["type"] {
        Json::String(name) => vec![name.as_str()],
        Json::Array(names) => names.iter().filter_map(Json::as_str).collect(),
        _ => vec!["any value"],
    };
    let named = |name: &&str| match (*name, schema.get("items"), schema.get("properties")) {
        ("array", Some(items), _) => format!("list of {}", kind_of(items)),
        ("object", _, Some(of)) => {
            let within: Vec<_> = fields(of).map(|(field, of)| format!("{}: {}", escaped(field), kind_of(of))).collect();
            format!("{{{}}}", within.join(", "))
        }
        (name, _, _) => name.to_owned(),
    };
    names.iter().map(named).collect::<Vec<_>>().join(" or ")
}

fn fields(json: &Json) -> impl Iterator<Item = (&String, &Json)> {
    json.as_object().into_iter().flat_map(Map::iter)
}

fn text(json: &Json) -> &str {
    json.as_str().unwrap_or_default()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::http::routes;

    #[test]
    fn the_page_has_every_route_schema_and_code_and_fetches_and_runs_nothing() {
        let document = routes::document();
        let page = docs(&document);
        for route in routes::ROUTES.iter() {
            assert!(page.contains(&format!("<b>{}</b> {}</h2>", route.method, route.path)), "{}", route.path);
        }
        assert!(page.contains("<tr><th>max_staleness_ms<td>integer<td>"), "of a query string");
        for (name, _) in fields(&document["components"]["schemas"]) {
            assert!(page.contains(&format!("id=\"schema-{name}\"")), "{name}");
        }
        assert!(ALL.iter().all(|kind| page.contains(&format!("href=\"/errors/{}\"", kind.code))));
        for foreign in
            ["<script", " src=", "javascript:", "@import", "url(", " onclick", " onload", " onerror", " style="]
        {
            assert!(!page.contains(foreign), "{foreign}");
        }
        // Links lead somewhere.
        for (at, start) in page.match_indices("href=\"#") {
            let id = page[at + start.len()..].split('"').next().expect("a closing quote");
            assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
        }
    }

    #[test]
    fn an_error_is_explained() {
        let page = error(crate::server::problem::OVERLOADED);
        assert!(
            page.contains("RV1301: Too many requests at once")
                && page.contains("may work later")
                && page.contains("53300")
        );
    }
}
