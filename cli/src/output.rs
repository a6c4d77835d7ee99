//! What a command prints: tables for people, the API's JSON for programs.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::ValueEnum;
use hotslot_driver::text;
use serde_json::Value;

use crate::remedy::by_commands;

/// For whom to print: tables for people, or the API's own JSON (a list or an object) for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

/// A column: its title, and what it shows of an item.
pub(crate) struct Column<'a>(pub(crate) &'static str, pub(crate) Box<dyn Fn(&Value) -> String + 'a>);

/// A column that shows what an item has at a JSON pointer.
pub(crate) fn column(title: &'static str, pointer: &'static str) -> Column<'static> {
    Column(title, Box::new(move |item| at(item, pointer)))
}

/// A column that shows a message of the service, with commands in place of REST routes.
pub(crate) fn message(title: &'static str, pointer: &'static str) -> Column<'static> {
    Column(title, Box::new(move |item| by_commands(&at(item, pointer))))
}

/// What an item has at a JSON pointer, for people: `-` where there is nothing.
pub(crate) fn at(item: &Value, pointer: &str) -> String {
    fn shown(value: &Value) -> String {
        match value {
            Value::Null => String::new(),
            Value::String(said) => text::escape(said).into_owned(),
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

/// Prints items, one a line. None at all is said on stderr: `no devices`.
pub(crate) fn list(
    format: Format,
    noun: &str,
    items: &[Value],
    columns: &[Column<'_>],
) -> anyhow::Result<()> {
    if format == Format::Json {
        return json(&items.into());
    }
    if items.is_empty() {
        eprintln!("no {noun}");
        return Ok(());
    }
    print(&table(items, columns))
}

/// Items, one a line, below the titles of the columns.
pub(crate) fn table(items: &[Value], columns: &[Column<'_>]) -> String {
    let titles = columns.iter().map(|column| column.0.to_owned()).collect();
    let rows = items.iter().map(|item| columns.iter().map(|column| (column.1)(item)).collect());
    aligned(&std::iter::once(titles).chain(rows).collect::<Vec<_>>())
}

/// Prints one item, a line for each thing there is to say of it.
pub(crate) fn show(format: Format, item: &Value, lines: &[Column<'_>]) -> anyhow::Result<()> {
    if format == Format::Json {
        return json(item);
    }
    let rows: Vec<_> = lines.iter().map(|line| vec![format!("{}:", line.0), (line.1)(item)]).collect();
    print(&aligned(&rows))
}

/// Prints JSON.
pub(crate) fn json(value: &Value) -> anyhow::Result<()> {
    print(&(json_text(&serde_json::to_string_pretty(value)?) + "\n"))
}

/// JSON whose texts a terminal can show: serde_json writes out the control characters of ASCII, and this the others, as
/// JSON has them.
pub(crate) fn json_text(json: &str) -> Cow<'_, str> {
    let escaped = |letter: char| letter != '\n' && text::is_unsafe(letter);
    if !json.contains(escaped) {
        return json.into();
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for letter in json.chars() {
        // All of them are in the Basic Multilingual Plane.
        if escaped(letter) {
            let _ = write!(shown, "\\u{:04x}", u32::from(letter));
        } else {
            shown.push(letter);
        }
    }
    shown.into()
}

/// Says on stderr what went wrong. Of a text of several lines, those after the first are set in, so that nobody takes them
/// for lines of ours.
pub(crate) fn complain(what: &str) {
    eprintln!("hotslot: {}", text::escape_but(what, &['\n']).replace('\n', "\n  "));
}

/// Prints text. Whoever stops reading (`| head`) has read enough.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    print_on(text).map(drop)
}

/// [`print()`], as long as someone reads: answers whether it is so.
pub(crate) fn print_on(what: &str) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    let what = text::escape_but(what, &['\n', '\t']);
    match stdout.write_all(what.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Rows with their cells one below the other, three spaces apart.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<_>> =
        rows.iter().map(|row| row.iter().map(|cell| text::escape(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut lines = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}   ");
        }
        lines += line.trim_end();
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_stand_one_below_the_other_and_no_line_ends_in_spaces() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text =
            aligned(&[row(["NAME", "STATE", "X"]), row(["büro-1", "up", ""]), row(["b", "down", "y"])]);
        assert_eq!(text, "NAME     STATE   X\nbüro-1   up\nb        down    y\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        let text = aligned(&[vec!["a\u{1b}[2J".into(), "b\nc\t".into()], vec!["büro".into(), "x".into()]]);
        assert_eq!(text, "a\\u{1b}[2J   b\\nc\\t\nbüro         x\n");
    }

    #[test]
    fn json_stays_json_and_shows_nothing_that_a_terminal_obeys() {
        let value = json!({ "a": "x\u{9b}2J\u{202e}\u{7f}\u{1b}" });
        let text = serde_json::to_string(&value).unwrap();
        let shown = json_text(&text);
        assert_eq!(shown, r#"{"a":"x\u009b2J\u202e\u007f\u001b"}"#);
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), value);
    }

    #[test]
    fn values_are_shown_for_people() {
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
