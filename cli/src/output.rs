//! The output of the commands: tables for people, and the JSON of the API for programs.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::ValueEnum;
use hotslot_driver::text;
use serde_json::Value;

use crate::remedy::by_commands;

/// The output format: tables for people, or the JSON of the API (a list or an object) for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

/// A column: its title, and the function that returns its cell for an item.
pub(crate) struct Column<'a>(pub(crate) &'static str, pub(crate) Box<dyn Fn(&Value) -> String + 'a>);

/// A column that shows the value at a JSON pointer.
pub(crate) fn column(title: &'static str, pointer: &'static str) -> Column<'static> {
    Column(title, Box::new(move |item| at(item, pointer)))
}

/// A column that shows a message of the service, with commands in place of REST routes.
pub(crate) fn message(title: &'static str, pointer: &'static str) -> Column<'static> {
    Column(title, Box::new(move |item| by_commands(&at(item, pointer))))
}

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

/// Prints items, one in each line. When there are none, the table format prints `no <noun>` on stderr.
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

/// Formats items, one in each line, below the titles of the columns.
pub(crate) fn table(items: &[Value], columns: &[Column<'_>]) -> String {
    let titles = columns.iter().map(|column| column.0.to_owned()).collect();
    let rows = items.iter().map(|item| columns.iter().map(|column| (column.1)(item)).collect());
    aligned(&std::iter::once(titles).chain(rows).collect::<Vec<_>>())
}

/// Prints one item, one property in each line.
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

/// Escapes the unsafe characters in a JSON text, such as control characters beyond ASCII, in the JSON syntax
/// (`\u009b`). serde_json itself escapes only the ASCII control characters.
pub(crate) fn json_text(json: &str) -> Cow<'_, str> {
    let escaped = |letter: char| letter != '\n' && text::is_unsafe(letter);
    if !json.contains(escaped) {
        return json.into();
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for letter in json.chars() {
        // All unsafe characters are in the Basic Multilingual Plane, so one escape sequence is enough.
        if escaped(letter) {
            let _ = write!(shown, "\\u{:04x}", u32::from(letter));
        } else {
            shown.push(letter);
        }
    }
    shown.into()
}

/// Prints an error on stderr. The lines after the first are indented, so that a message with line breaks cannot look
/// like several messages of hotslot.
pub(crate) fn complain(what: &str) {
    eprintln!("hotslot: {}", text::escape_but(what, &['\n']).replace('\n', "\n  "));
}

/// Prints text on stdout. A closed pipe (`| head`) is not an error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    print_on(text).map(drop)
}

/// Prints text on stdout, like [`print()`]. Returns whether the reader of a pipe is still there.
pub(crate) fn print_on(what: &str) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    let what = text::escape_but(what, &['\n', '\t']);
    match stdout.write_all(what.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Formats rows with aligned columns, three spaces apart.
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
    fn columns_are_aligned_and_no_line_ends_in_spaces() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text =
            aligned(&[row(["NAME", "STATE", "X"]), row(["büro-1", "up", ""]), row(["b", "down", "y"])]);
        assert_eq!(text, "NAME     STATE   X\nbüro-1   up\nb        down    y\n");
    }

    #[test]
    fn control_characters_in_cells_are_escaped() {
        let text = aligned(&[vec!["a\u{1b}[2J".into(), "b\nc\t".into()], vec!["büro".into(), "x".into()]]);
        assert_eq!(text, "a\\u{1b}[2J   b\\nc\\t\nbüro         x\n");
    }

    #[test]
    fn unsafe_characters_in_json_are_escaped_and_the_json_stays_valid() {
        let value = json!({ "a": "x\u{9b}2J\u{202e}\u{7f}\u{1b}" });
        let text = serde_json::to_string(&value).unwrap();
        let shown = json_text(&text);
        assert_eq!(shown, r#"{"a":"x\u009b2J\u202e\u007f\u001b"}"#);
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), value);
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
