//! `docs`: the description of the API as a page to read. The service makes it from the description, and it needs nothing
//! else: no script, no style sheet, and nothing from another place.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use super::description::{document, operations, words};

/// What a browser may load for the page: nothing.
const CSP: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Replaces the characters that have a meaning in HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Returns a text of the description as HTML: paragraphs at empty lines, and code in backquotes.
fn prose(text: &Value) -> String {
    let mut html = String::new();
    for paragraph in text.as_str().unwrap_or_default().split("\n\n") {
        let mut parts = paragraph.split('`');
        let _ = write!(html, "<p>{}", marked(&escaped(parts.next().unwrap_or_default())));
        while let (Some(code), Some(plain)) = (parts.next(), parts.next()) {
            let _ = write!(html, "<code>{}</code>{}", escaped(code), marked(&escaped(plain)));
        }
        html += "</p>\n";
    }
    html
}

/// Makes text between `**` strong.
fn marked(text: &str) -> String {
    let mut parts = text.split("**");
    let mut html = parts.next().unwrap_or_default().to_owned();
    while let (Some(strong), Some(plain)) = (parts.next(), parts.next()) {
        let _ = write!(html, "<strong>{strong}</strong>{plain}");
    }
    html
}

fn text(value: &Value) -> String {
    escaped(value.as_str().unwrap_or_default())
}

/// Returns the type of a schema in a few words, with links to the schemas that have a name.
fn kind(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = escaped(reference.rsplit('/').next().unwrap_or_default());
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        if let Some(parts) = schema[key].as_array() {
            let joint = if key == "allOf" { " and " } else { " or " };
            return parts.iter().map(kind).collect::<Vec<_>>().join(joint);
        }
    }
    if let Some(alternatives) = schema["enum"].as_array() {
        return alternatives
            .iter()
            .map(|word| format!("<code>{}</code>", escaped(&word.to_string())))
            .collect::<Vec<_>>()
            .join(", ");
    }
    let types: Vec<_> = match schema["type"].as_array() {
        Some(types) => types.iter().filter_map(Value::as_str).collect(),
        None => schema["type"].as_str().into_iter().collect(),
    };
    let name = |one: &str| match one {
        "array" => format!("list of {}", kind(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("object of {}", kind(&schema["additionalProperties"]))
        }
        other => match schema["format"].as_str() {
            Some(format) if other != "null" => format!("{other} ({})", escaped(format)),
            Some(_) | None => other.to_owned(),
        },
    };
    if types.is_empty() {
        "any value".to_owned()
    } else {
        types.into_iter().map(name).collect::<Vec<_>>().join(" or ")
    }
}

/// Returns the table of an object's keys, and of those of the parts that it is made of.
fn keys(schema: &Value) -> String {
    let parts = ["allOf", "oneOf", "anyOf"].iter().filter_map(|key| schema[key].as_array()).flatten();
    let properties = parts.chain([schema]).filter_map(|part| part["properties"].as_object()).flatten();
    let rows = properties.map(|(key, of)| {
        format!("<tr><td><code>{}</code><td>{}<td>{}\n", escaped(key), kind(of), prose(words(of)))
    });
    let rows: String = rows.collect();
    if rows.is_empty() {
        String::new()
    } else {
        format!("<table>\n<tr><th>key<th>type<th>meaning\n{rows}</table>\n")
    }
}

fn operation(document: &Value, (method, path, operation): (&str, &str, &Value)) -> String {
    let id = text(&operation["operationId"]);
    let mut html = format!(
        "<h3 id=\"{id}\"><code>{} {}</code></h3>\n{}{}",
        method.to_uppercase(),
        escaped(path),
        prose(&operation["summary"]),
        prose(&operation["description"]),
    );
    if let Some(rule) = operation["x-hotslot-rule"].as_str() {
        let _ = writeln!(html, "<p>Rule: <code>{}</code></p>", escaped(rule));
    }
    let parameters = operation["parameters"].as_array().into_iter().flatten().map(|one| {
        let (name, place) = (text(&one["name"]), text(&one["in"]));
        format!(
            "<tr><td><code>{name}</code><td>{place}<td>{}<td>{}\n",
            kind(&one["schema"]),
            prose(&one["description"])
        )
    });
    let parameters: String = parameters.collect();
    if !parameters.is_empty() {
        let _ = writeln!(html, "<table>\n<tr><th>parameter<th>in<th>type<th>meaning\n{parameters}</table>");
    }
    let body = &operation["requestBody"]["content"]["application/json"];
    if body.is_object() {
        let _ = writeln!(html, "<p>Body: {}</p>", kind(&body["schema"]));
        if let Some(example) = body.get("example") {
            let _ = writeln!(html, "<pre>{}</pre>", escaped(&format!("{example:#}")));
        }
    }
    html += "<table>\n<tr><th>status<th>body<th>meaning\n";
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let shared = response["$ref"].as_str().and_then(|name| document.pointer(name.strip_prefix('#')?));
        let response = shared.unwrap_or(response);
        let body = response["content"].as_object().into_iter().flatten().next();
        let body = body.map_or_else(String::new, |(_, body)| kind(&body["schema"]));
        let _ = writeln!(html, "<tr><td>{status}<td>{body}<td>{}", prose(&response["description"]));
    }
    html + "</table>\n"
}

fn page() -> String {
    let document = document();
    let mut tags = Vec::<&str>::new();
    for (_, _, operation) in operations(&document) {
        let tag = operation["tags"][0].as_str().unwrap_or_default();
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags.sort_unstable();
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>hotslot: the API</title>\n<h1>The API of \
         hotslot {}</h1>\n{}<p><a href=\"/openapi.json\">The description in OpenAPI 3.1</a></p>\n",
        text(&document["info"]["version"]),
        prose(&document["info"]["description"]),
    );
    let mut sections = String::new();
    html += "<ul>\n";
    for tag in tags {
        let _ = writeln!(html, "<li>{}\n<ul>", escaped(tag));
        let _ = writeln!(sections, "<h2>{}</h2>", escaped(tag));
        for one in operations(&document).filter(|(_, _, operation)| operation["tags"][0] == tag) {
            let (method, path, of) = one;
            let _ = writeln!(
                html,
                "<li><a href=\"#{}\"><code>{} {}</code></a> {}",
                text(&of["operationId"]),
                method.to_uppercase(),
                escaped(path),
                text(&of["summary"]),
            );
            sections += &operation(&document, one);
        }
        html += "</ul>\n";
    }
    html += "</ul>\n";
    html += &sections;
    html += "<h2>Schemas</h2>\n";
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        let name = escaped(name);
        let _ = writeln!(
            html,
            "<h3 id=\"schema-{name}\">{name}</h3>\n{}<p>{}</p>\n{}",
            prose(&schema["description"]),
            kind(schema),
            keys(schema),
        );
    }
    html + "</html>\n"
}

/// The page.
static PAGE: LazyLock<String> = LazyLock::new(page);

/// Shows the description as a page to read.
#[utoipa::path(get, path = "/docs", tag = "Description", operation_id = "show_page",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
pub(super) async fn page_of_description() -> Response {
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, CSP)];
    (headers, PAGE.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_operation_and_loads_nothing() {
        let page = page();
        let document = document();
        for (_, _, operation) in operations(&document) {
            let id = operation["operationId"].as_str().unwrap();
            assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
        }
        for word in ["<script", "src=", "<link", "<style", "http-equiv", "javascript:"] {
            assert!(!page.contains(word), "{word}");
        }
        let ids: Vec<_> = page.split("id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        for anchor in page.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(ids.contains(&anchor), "{anchor}");
        }
    }

    #[test]
    fn text_is_never_markup() {
        assert_eq!(
            prose(&"a `<b>` **c** & d\n\ne".into()),
            "<p>a <code>&lt;b&gt;</code> <strong>c</strong> &amp; d</p>\n<p>e</p>\n"
        );
    }
}
