//! Small parts that several pages share. Every text of a host, a guest or a caller passes through maud, which escapes
//! it.

use std::fmt::Write as _;

use hotslot_model::texts::is_unsafe;
use maud::{Markup, html};
use serde_json::Value;

use crate::api::part;
use crate::context::Context;

/// Escapes the invisible characters of a document, which could change the order of the words around them, but for line
/// breaks. What a form sends back and an address are left as they are.
pub(crate) fn visible(document: String) -> String {
    let is_hidden = |letter: char| letter != '\n' && is_unsafe(letter);
    if !document.contains(is_hidden) {
        return document;
    }
    let mut shown = String::with_capacity(document.len() + 64);
    for (at, letter) in document.char_indices() {
        if is_hidden(letter) && !is_value(&document[..at]) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Whether what follows a part of a document is in an attribute `value` or `href`. Texts have neither `<` nor `"`, because
/// maud escapes them.
fn is_value(before: &str) -> bool {
    let Some(tag) = before.rfind(['<', '>']).map(|at| &before[at..]).filter(|tag| tag.starts_with('<'))
    else {
        return false;
    };
    tag.rfind('"').is_some_and(|at| tag[..at].ends_with(" value=") || tag[..at].ends_with(" href="))
}

/// Returns a value as JSON without invisible characters: they are written as JSON's escapes.
pub(crate) fn visible_json(value: &Value) -> String {
    let mut written = String::new();
    for letter in value.to_string().chars() {
        if is_unsafe(letter) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                let _ = write!(written, "\\u{unit:04x}");
            }
        } else {
            written.push(letter);
        }
    }
    written
}

/// Returns the text of a value; empty for null.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Returns the items of a list; none for any other value.
pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Returns a number or text in words; a dash for null.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// The word for a function that the host needs.
const NEEDED: &str = "needed by the host";

/// Returns the word and the colour of the status of a device, as `os-pci` has it.
pub(crate) fn device_status(function: &Value) -> (&'static str, &'static str) {
    if function["bridge"] == true {
        return ("bridge", "none");
    }
    if function["foreign"].is_object() {
        return ("in use by others", "foreign");
    }
    match text(&function["status"]) {
        "" => ("not listed", "none"),
        "available" if function["guard"].is_string() => (NEEDED, "held"),
        "available" => ("free", "free"),
        "claimed" => ("in transition", "busy"),
        "allocated" => ("in use", "used"),
        "unclaimable" | "unavailable" => ("not available", "held"),
        "removed" | "deleted" => ("gone", "gone"),
        _ => ("other", "held"),
    }
}

/// Returns the reason why the host needs a function, with a mark where its status is not that.
pub(crate) fn guard(function: &Value) -> Markup {
    html! {
        @if let Some(guard) = function["guard"].as_str().filter(|_| function["bridge"] != true) {
            span.guard {
                @if device_status(function).0 != NEEDED { (badge(NEEDED, "held")) " " }
                span.reason { (guard) }
            }
        }
    }
}

/// Returns a word with a dot of its colour.
pub(crate) fn badge(word: &str, colour: &str) -> Markup {
    html! { span class={ "badge " (colour) } { (word) } }
}

/// Returns the status of an attachment as a badge.
pub(crate) fn attachment_badge(status: &str) -> Markup {
    let colour = match status {
        "attached" => "used",
        "attaching" | "detaching" => "busy",
        "failed" => "bad",
        _ => "none",
    };
    badge(status, colour)
}

/// Returns the status of a server as a badge.
pub(crate) fn server_badge(status: &str) -> Markup {
    let (word, colour) = match status {
        "ACTIVE" => ("running", "free"),
        "PAUSED" => ("paused", "busy"),
        "SUSPENDED" => ("suspended", "busy"),
        "SHUTOFF" => ("shut off", "none"),
        _ => ("unknown", "held"),
    };
    badge(word, colour)
}

/// Returns the name of a function: its product, or its class and ids.
pub(crate) fn function_name(function: &Value) -> String {
    let ids = format!("{}:{}", text(&function["vendor_id"]), text(&function["product_id"]));
    match (function["product_name"].as_str(), function["class_name"].as_str()) {
        (Some(product), _) => product.to_owned(),
        (None, Some(class)) => format!("{class} {ids}"),
        (None, None) => ids,
    }
}

/// Returns the link of PCI Express in words, and whether it is slower or narrower than it could be.
pub(crate) fn link_words(link: &Value) -> Option<(String, bool)> {
    let (speed, width) = (link["speed"].as_str()?, link["width"].as_u64()?);
    let (most_speed, most_width) = (link["max_speed"].as_str(), link["max_width"].as_u64());
    let below = most_speed.is_some_and(|most| most != speed) || most_width.is_some_and(|most| most != width);
    Some((format!("{speed} GT/s ×{width}"), below && width > 0))
}

/// Returns the address of the page of a function.
pub(crate) fn function_page(host: &str, address: &str) -> String {
    format!("function?host={}&address={}", part(host), part(address))
}

/// Returns the address of the page of a server.
pub(crate) fn server_page(id: &str) -> String {
    format!("server?id={}", part(id))
}

/// Returns the name of a server, as a link when the caller may see its page.
pub(crate) fn server_link(context: &Context, id: &str, name: &Markup) -> Markup {
    html! { @if context.may("hotslot:server:topology") { a href=(server_page(id)) { (name) } } @else { (name) } }
}

/// Returns a time of the API as a person reads it: without the letter between date and time, in UTC.
pub(crate) fn time(value: &Value) -> Markup {
    let full = text(value);
    let short = full.replacen('T', " ", 1);
    let short = short.split('.').next().unwrap_or_default().trim_end_matches('Z');
    html! { time datetime=(full) title={ (full) } { (short) } }
}

/// Returns a size in bytes in a unit that fits.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut number, mut unit) = (bytes, 0);
    while number >= 1024 && number % 1024 == 0 && unit + 1 < units.len() {
        (number, unit) = (number / 1024, unit + 1);
    }
    format!("{number} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_changes_the_order_of_a_text_is_escaped_where_it_is_read() {
        let name = "a\u{202e}gpj\u{9b}\n";
        let page = html! { title { (name) } input value=(name) title=(name); p { "=\" value=" (name) } }
            .into_string();
        let shown = "a\\u{202e}gpj\\u{9b}\n";
        let expected = format!(
            "<title>{shown}</title><input value=\"{name}\" title=\"{shown}\"><p>=&quot; value={shown}</p>"
        );
        assert_eq!(visible(page), expected);
        let plain = "<p>ä – 中</p>".to_owned();
        assert_eq!(visible(plain.clone()), plain);
    }

    #[test]
    fn the_json_of_a_form_is_the_same_value() {
        let value = json!({ "name": "a\u{202e}\u{e0001}b" });
        let written = visible_json(&value);
        assert!(written.is_ascii(), "{written}");
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), value);
    }
}
