//! Text that others wrote (guests, hosts, callers), made safe to show in a terminal, a log line or an event.

use std::borrow::Cow;

/// Whether a character does something to a terminal or to the order of a text instead of being shown: control
/// characters (C0, DEL, C1), line and paragraph separators, and the marks, embeddings, overrides and isolates of the
/// Unicode Bidirectional Algorithm (UAX #9).
pub fn is_unsafe(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with such characters written as Rust writes them: `\n`, `\u{1b}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    escape_but(text, &[])
}

/// [`escape`], but for some characters, which are left as they are.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        for (text, shown) in [
            ("büro-1 \u{1f680}", "büro-1 \u{1f680}"),
            ("a\u{1b}[2J", "a\\u{1b}[2J"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{9b}1A\u{7f}", "\\u{9b}1A\\u{7f}"),
            ("\u{202e}txt.exe\u{2066}", "\\u{202e}txt.exe\\u{2066}"),
        ] {
            assert_eq!(escape(text), shown);
        }
        assert_eq!(escape_but("a\nb\u{7}", &['\n']), "a\nb\\u{7}");
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_left_and_twice_is_once(text in any::<String>()) {
            let shown = escape(&text);
            prop_assert!(!shown.contains(is_unsafe));
            prop_assert_eq!(escape(&shown), shown.as_ref());
        }
    }
}
