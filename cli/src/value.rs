//! Values of JSON documents as text for people.

use std::io::{self, Write};

use hotslot_driver::text;
use jiff::Timestamp;
use serde::Serialize as _;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

/// Returns the value at a JSON pointer as text for people, or `-` when there is none or it is empty.
pub(crate) fn at(item: &Value, pointer: &str) -> String {
    fn shown(value: &Value) -> String {
        match value {
            Value::Null => String::new(),
            Value::String(string) => text::escape(string).into_owned(),
            Value::Bool(true) => "yes".into(),
            Value::Bool(false) => "no".into(),
            Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(","),
            Value::Number(_) => value.to_string(),
            Value::Object(_) => text::escape(&json_line(value)).into_owned(),
        }
    }
    match item.pointer(pointer).map(shown) {
        Some(text) if !text.is_empty() => text,
        Some(_) | None => "-".into(),
    }
}

/// Formats a JSON value in one line that is wrapped between its keys and values: `{"vendor_id": "8086", "product_id": "10ca"}`.
pub(crate) fn json_line(value: &Value) -> String {
    /// serde_json's compact form, with spaces.
    struct Spaced;
    impl Formatter for Spaced {
        fn begin_array_value<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { to.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { to.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
            to.write_all(b": ")
        }
    }
    let mut text = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut text, Spaced));
    written.ok().and_then(|()| String::from_utf8(text).ok()).unwrap_or_else(|| value.to_string())
}

/// Returns the time at a JSON pointer in UTC, as all tables write times: in whole seconds.
pub(crate) fn time(item: &Value, pointer: &str) -> String {
    match at(item, pointer) {
        time if time.ends_with('Z') => match time.split_once('.') {
            Some((seconds, _)) => format!("{seconds}Z"),
            None => time,
        },
        other => other,
    }
}

/// Returns the whole seconds from one time of the service to another; `None` when one is missing.
pub(crate) fn seconds_between(from: &Value, to: &Value) -> Option<i64> {
    let [from, to] = [from, to].map(|time| time.as_str()?.parse::<Timestamp>().ok());
    Some(to?.as_second() - from?.as_second())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_in_whole_seconds() {
        let item = json!({ "a": "2026-11-21T12:00:00.123Z", "b": "2026-11-21T12:00:00Z", "c": null });
        for (pointer, shown) in [("/a", "2026-11-21T12:00:00Z"), ("/b", "2026-11-21T12:00:00Z"), ("/c", "-")]
        {
            assert_eq!(time(&item, pointer), shown);
        }
    }

    #[test]
    fn json_in_one_line_has_spaces_at_which_it_is_wrapped() {
        let value = json!({ "a": [1, "x, y"], "b": {} });
        assert_eq!(json_line(&value), r#"{"a": [1, "x, y"], "b": {}}"#);
    }

    #[test]
    fn values_are_formatted_for_people() {
        let item = json!({
            "name": "a", "none": null, "list": ["x", 1], "empty": [], "yes": true,
            "group": { "number": 22 }, "text": "", "forged": "a\nb\u{1b}[2J",
        });
        assert_eq!(at(&item, "/forged"), r"a\nb\u{1b}[2J");
        let shown = ["/name", "/list", "/yes", "/group/number"].map(|pointer| at(&item, pointer));
        assert_eq!(shown, ["a", "x,1", "yes", "22"]);
        for nothing in ["/none", "/empty", "/text", "/not/there"] {
            assert_eq!(at(&item, nothing), "-", "{nothing}");
        }
    }
}
