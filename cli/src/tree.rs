//! Formats a tree like the `tree` command.

use std::collections::{HashMap, HashSet};

use hotslot_driver::text::escape;

/// A line of a tree.
#[derive(Debug)]
pub(crate) struct Line {
    /// The key by which other lines refer to this line.
    pub(crate) key: String,
    /// The key of the parent line. A line without a parent, or with an unknown one, is below the title of the tree.
    pub(crate) parent: Option<String>,
    pub(crate) text: String,
}

/// Formats a title and the lines below it, each in one line. Lines with the same parent keep their order.
pub(crate) fn tree(title: &str, lines: &[Line]) -> String {
    let keys: HashSet<_> = lines.iter().map(|line| line.key.as_str()).collect();
    let mut below: HashMap<Option<&str>, Vec<&Line>> = HashMap::new();
    for line in lines {
        let parent = line.parent.as_deref().filter(|parent| keys.contains(parent));
        below.entry(parent).or_default().push(line);
    }
    let mut text = format!("{}\n", escape(title));
    grow(&mut text, "", None, &mut below);
    text
}

/// The recursion ends even if lines refer to each other in a circle, because the lines below a key are removed from the
/// map.
fn grow<'a>(
    text: &mut String,
    indent: &str,
    key: Option<&'a str>,
    below: &mut HashMap<Option<&'a str>, Vec<&'a Line>>,
) {
    let mut lines = below.remove(&key).unwrap_or_default().into_iter().peekable();
    while let Some(line) = lines.next() {
        let (branch, space) =
            if lines.peek().is_some() { ("├── ", "│   ") } else { ("└── ", "    ") };
        *text += &format!("{indent}{branch}{}\n", escape(&line.text));
        grow(text, &format!("{indent}{space}"), Some(&line.key), below);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &str, parent: Option<&str>) -> Line {
        Line { key: key.into(), parent: parent.map(str::to_owned), text: format!("line {key}") }
    }

    #[test]
    fn lines_are_below_their_parents_in_the_given_order() {
        let lines = [
            line("a", None),
            line("a2", Some("a")),
            line("b", Some("not there")),
            line("a1", Some("a")),
            line("a2x", Some("a2")),
        ];
        let expected = "\
host
├── line a
│   ├── line a2
│   │   └── line a2x
│   └── line a1
└── line b
";
        assert_eq!(tree("host", &lines), expected);
        assert_eq!(tree("host", &[]), "host\n");
    }

    #[test]
    fn a_text_cannot_look_like_several_lines() {
        let forged = Line { key: "a".into(), parent: None, text: "a\n└── b\u{1b}[2J".into() };
        assert_eq!(tree("t\nu", &[forged]), "t\\nu\n└── a\\n└── b\\u{1b}[2J\n");
    }

    #[test]
    fn lines_that_refer_to_each_other_in_a_circle_end() {
        let lines = [line("a", None), line("a", Some("a")), line("b", Some("c")), line("c", Some("b"))];
        assert_eq!(tree("t", &lines), "t\n└── line a\n    └── line a\n");
    }
}
