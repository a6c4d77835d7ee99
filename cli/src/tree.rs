//! Formats a tree like the `tree` command.

use std::collections::{HashMap, HashSet};

use hotslot_driver::text::escape;
use termtree::Tree;

/// What is between two facts of a line.
pub(crate) const FACTS: &str = "  ";

/// A line of a tree.
#[derive(Debug)]
pub(crate) struct Line {
    /// The key by which other lines refer to this line.
    pub(crate) key: String,
    /// The key of the parent line. A line without a parent, or with an unknown one, is below the title of the tree.
    pub(crate) parent: Option<String>,
    pub(crate) text: String,
}

/// By how many characters a line is further to the right than the line above it, and its continuation than itself.
const STEP: usize = 4;

/// Formats a title and the lines below it. Lines with the same parent keep their order. A line that is longer than `width`
/// is continued in the next one.
pub(crate) fn tree(title: &str, lines: &[Line], width: Option<usize>) -> String {
    let keys: HashSet<_> = lines.iter().map(|line| line.key.as_str()).collect();
    let mut below: HashMap<Option<&str>, Vec<&Line>> = HashMap::new();
    for line in lines {
        let parent = line.parent.as_deref().filter(|parent| keys.contains(parent));
        below.entry(parent).or_default().push(line);
    }
    let title = wrapped(&escape(title), width);
    Tree::new(title).with_leaves(grow(None, &mut below, width)).to_string()
}

/// Returns the trees of the lines below a key. The recursion ends even if lines refer to each other in a circle, because the
/// lines below a key are removed from the map.
fn grow<'a>(
    key: Option<&'a str>,
    below: &mut HashMap<Option<&'a str>, Vec<&'a Line>>,
    width: Option<usize>,
) -> Vec<Tree<String>> {
    let lines = below.remove(&key).unwrap_or_default();
    let room = width.map(|width| width.saturating_sub(STEP));
    let grown = lines.into_iter().map(|line| {
        let leaves = grow(Some(&line.key), below, room);
        Tree::new(wrapped(&escape(&line.text), room)).with_leaves(leaves).with_multiline(true)
    });
    grown.collect()
}

/// Breaks a text into lines, between its facts or, where one does not fit, between words. A word is never split.
fn wrapped(text: &str, width: Option<usize>) -> String {
    let Some(width) = width.filter(|width| text.chars().count() > *width) else { return text.to_owned() };
    let (mut lines, mut room) = (vec![String::new()], width);
    let mut add = |word: &str, gap: &str| {
        let length = word.chars().count();
        let last = lines.last_mut().filter(|last| last.is_empty() || gap.len() + length <= room);
        match last {
            Some(last) => {
                let gap = if last.is_empty() { "" } else { gap };
                *last += &format!("{gap}{word}");
                room = room.saturating_sub(gap.len() + length);
            }
            None => {
                lines.push(word.to_owned());
                room = width.saturating_sub(STEP + length);
            }
        }
    };
    for fact in text.split(FACTS) {
        if fact.chars().count() + STEP <= width {
            add(fact, FACTS);
        } else {
            fact.split(' ')
                .enumerate()
                .for_each(|(index, word)| add(word, if index == 0 { FACTS } else { " " }));
        }
    }
    lines.join(&format!("\n{:STEP$}", ""))
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
        assert_eq!(tree("host", &lines, None), expected);
        assert_eq!(tree("host", &lines, Some(20)), expected);
        assert_eq!(tree("host", &[], None), "host\n");
    }

    #[test]
    fn a_long_line_is_continued_between_its_facts() {
        let text = "0000:3b:00.0  8086:1889  Intel Corporation Ethernet Adaptive Virtual Function  VF";
        let (outer, inner) = (
            Line { key: "a".into(), parent: None, text: "0000:00:1c.0  bridge".into() },
            Line { key: "b".into(), parent: Some("a".into()), text: text.into() },
        );
        let expected = "\
node1  running
└── 0000:00:1c.0  bridge
    └── 0000:3b:00.0  8086:1889  Intel
            Corporation Ethernet
            Adaptive Virtual Function
            VF
";
        let shown = tree("node1  running", &[outer, inner], Some(40));
        assert_eq!(shown, expected);
        assert!(tree("node1  a long title", &[], Some(12)) == "node1  a\n    long\n    title\n");
    }

    #[test]
    fn a_text_cannot_look_like_several_lines() {
        let forged = Line { key: "a".into(), parent: None, text: "a\n└── b\u{1b}[2J".into() };
        assert_eq!(tree("t\nu", &[forged], None), "t\\nu\n└── a\\n└── b\\u{1b}[2J\n");
    }

    #[test]
    fn lines_that_refer_to_each_other_in_a_circle_end() {
        let lines = [line("a", None), line("a", Some("a")), line("b", Some("c")), line("c", Some("b"))];
        assert_eq!(tree("t", &lines, None), "t\n└── line a\n    └── line a\n");
    }
}
