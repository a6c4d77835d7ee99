//! Values of JSON documents as text for people.

use hotslot_driver::text;
use jiff::Timestamp;
use serde_json::Value;

/// Returns the value at a JSON pointer as text for people, or `-` when there is none or it is empty.
pub(crate) fn at(item: &Value, pointer: &str) -> String {
    fn shown(value: &Value) -> String {
        match value {
            Value::Null => String::new(),
            Value::String(string) => text::escape(string).into_owned(),
            Value::Bool(true) => "yes".into(),
            Value::Bool(false) => "no".into(),
            Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(","),
            Value::Number(_) | Value::Object(_) => value.to_string(),
        }
    }
    match item.pointer(pointer).map(shown) {
        Some(text) if !text.is_empty() => text,
        Some(_) | None => "-".into(),
    }
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
