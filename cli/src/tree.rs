//! Formats a tree like the `tree` command.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use hotslot_driver::text::escape;
use termtree::Tree;

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
    Tree::new(escape(title)).with_leaves(grow(None, &mut below)).to_string()
}

/// Returns the trees of the lines below a key. The recursion ends even if lines refer to each other in a circle, because the
/// lines below a key are removed from the map.
fn grow<'a>(
    key: Option<&'a str>,
    below: &mut HashMap<Option<&'a str>, Vec<&'a Line>>,
) -> Vec<Tree<Cow<'a, str>>> {
    let lines = below.remove(&key).unwrap_or_default();
    let grown = lines.into_iter().map(|line| {
        let leaves = grow(Some(&line.key), below);
        Tree::new(escape(&line.text)).with_leaves(leaves)
    });
    grown.collect()
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
