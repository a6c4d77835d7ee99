//! Command lines with mistakes: `data/usage.json`.

use serde::Deserialize;

use super::hotslot;

/// A command line with a mistake, and what is said about it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mistake {
    line: String,
    says: String,
    /// The usage line, where the message has one.
    #[serde(default)]
    usage: Option<String>,
}

/// Texts of the parsers of Rust and of serde.
const RAW: [&str; 6] = [
    "invalid digit",
    "invalid type",
    "invalid value:",
    "unknown variant",
    "unknown field",
    "did not match any",
];

#[test]
fn a_mistake_in_a_command_line_is_said_in_plain_words_with_the_usage() {
    let mistakes: Vec<Mistake> = serde_json::from_str(include_str!("../../data/usage.json")).unwrap();
    for Mistake { line, says, usage } in mistakes {
        let said = hotslot("http://127.0.0.1:1", &line).expect(2);
        assert!(said.err.contains(&says) && said.out.is_empty(), "{line}: {said:?}");
        assert!(RAW.iter().all(|raw| !said.err.contains(raw)), "{line}: {said:?}");
        let shown = said.err.lines().find(|line| line.starts_with("Usage: "));
        match usage {
            // The variable HOTSLOT_URL is set, and no part of the command line.
            Some(usage) => assert!(shown.is_some_and(|shown| shown.starts_with(&usage)), "{line}: {said:?}"),
            None => assert_eq!(shown, None, "{line}: {said:?}"),
        }
    }
}
