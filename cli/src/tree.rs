//! A tree as `tree` prints it.

use std::collections::{HashMap, HashSet};

/// A line of a tree.
#[derive(Debug)]
pub(crate) struct Line {
    /// What other lines name it by.
    pub(crate) key: String,
    /// The line that it stands under; a line that there is not, or none, is the tree's title.
    pub(crate) parent: Option<String>,
    pub(crate) text: String,
}

/// A title, and the lines below it, those of one parent in the order given.
pub(crate) fn tree(title: &str, lines: &[Line]) -> String {
    let keys: HashSet<_> = lines.iter().map(|line| line.key.as_str()).collect();
    let mut below: HashMap<Option<&str>, Vec<&Line>> = HashMap::new();
    for line in lines {
        let parent = line.parent.as_deref().filter(|parent| keys.contains(parent));
        below.entry(parent).or_default().push(line);
    }
    let mut text = format!("{title}\n");
    grow(&mut text, "", None, &mut below);
    text
}

/// It ends whatever the lines say: those below a key are taken once.
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
        *text += &format!("{indent}{branch}{}\n", line.text);
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
    fn lines_stand_under_their_parents_in_the_order_given() {
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
    fn lines_under_themselves_do_not_go_on_for_ever() {
        let lines = [line("a", None), line("a", Some("a")), line("b", Some("c")), line("c", Some("b"))];
        assert_eq!(tree("t", &lines), "t\n└── line a\n    └── line a\n");
    }
}
