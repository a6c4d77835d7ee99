//! Escapes text from guests, hosts and callers, so that it is safe in a terminal, a log line or an event.

use std::borrow::Cow;

use serde_json::Value;

/// Whether a character is invisible or controls a terminal or the order of a text: control characters (C0, DEL, C1),
/// line and paragraph separators, and Unicode's format characters, which have no width or change the direction of the
/// text.
pub fn is_unsafe(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}') || is_format(letter)
}

/// Whether a character has the general category Cf (Unicode 16.0, `extracted/DerivedGeneralCategory.txt`). Unassigned
/// characters in blocks that are only for such characters (U+2065, the tags) are included.
fn is_format(letter: char) -> bool {
    matches!(
        letter,
        '\u{ad}'
            | '\u{600}'..='\u{605}'
            | '\u{61c}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// Checks that every character of a caller's text, such as a name, is visible.
///
/// # Errors
/// A message for people with the escaped text and the first invisible character.
pub fn visible(text: &str) -> Result<(), String> {
    text.chars().find(|letter| is_unsafe(*letter)).map_or(Ok(()), |letter| {
        let (shown, code) = (escape(text), u32::from(letter));
        Err(format!(
            "`{shown}` contains a control character or an invisible character (U+{code:04X}); remove it"
        ))
    })
}

/// Replaces the characters for which [`is_unsafe`] is true by Rust's escapes: `\n`, `\u{1b}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    escape_but(text, &[])
}

/// As [`escape`], but leaves the characters in `left` unchanged.
pub fn escape_but<'a>(text: &'a str, left: &[char]) -> Cow<'a, str> {
    let escaped = |letter: char| is_unsafe(letter) && !left.contains(&letter);
    if !text.contains(escaped) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if escaped(letter) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown.into()
}

/// Escapes every text in a JSON value, keys too, as [`escape`] does.
pub fn escape_json(value: &Value) -> Value {
    match value {
        Value::String(text) => escape(text).into(),
        Value::Array(items) => items.iter().map(escape_json).collect(),
        Value::Object(members) => {
            let escaped = |(key, value): (&String, &Value)| (escape(key).into_owned(), escape_json(value));
            members.iter().map(escaped).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_and_format_characters_are_escaped() {
        for (text, shown) in [
            ("büro-1 \u{1f680}", "büro-1 \u{1f680}"),
            ("a\u{1b}[2J", "a\\u{1b}[2J"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{9b}1A\u{7f}", "\\u{9b}1A\\u{7f}"),
            ("\u{202e}txt.exe\u{2066}", "\\u{202e}txt.exe\\u{2066}"),
            ("a\u{200b}b\u{feff}\u{ad}\u{e0041}\u{2028}", "a\\u{200b}b\\u{feff}\\u{ad}\\u{e0041}\\u{2028}"),
        ] {
            assert_eq!(escape(text), shown);
        }
        assert_eq!(escape_but("a\nb\u{7}", &['\n']), "a\nb\\u{7}");
    }

    #[test]
    fn every_text_in_a_json_value_is_escaped() {
        let value = serde_json::json!({ "a\n": ["\u{202e}", 1, null], "b": { "c": "x\u{9b}" } });
        let shown = serde_json::json!({ "a\\n": ["\\u{202e}", 1, null], "b": { "c": "x\\u{9b}" } });
        assert_eq!(escape_json(&value), shown);
    }

    #[test]
    fn a_name_with_an_invisible_character_is_refused_with_that_character() {
        for seen in ["büro-1 \u{1f680}", "", "a b", "日本"] {
            assert_eq!(visible(seen), Ok(()));
        }
        for (text, code) in
            [("a\u{200d}", "U+200D"), ("\u{2069}a", "U+2069"), ("\n", "U+000A"), ("\u{e007f}", "U+E007F")]
        {
            let message = visible(text).unwrap_err();
            assert!(message.contains(code) && !message.contains(is_unsafe), "{message}");
        }
    }

    proptest! {
        #[test]
        fn an_escaped_text_is_safe_and_escaping_it_again_changes_nothing(text in any::<String>()) {
            let shown = escape(&text);
            prop_assert!(!shown.contains(is_unsafe));
            prop_assert_eq!(escape(&shown), shown.as_ref());
        }
    }
}
