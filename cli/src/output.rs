//! The output of the commands: tables for people, and the JSON of the API for programs.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use hotslot_driver::text;
use serde_json::Value;

use crate::table::{self, Column, aligned};

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// A table, with the columns that most people need.
    #[default]
    Table,
    /// A table with all columns and whole ids.
    Wide,
    /// The JSON of the API.
    Json,
    /// The same as YAML.
    Yaml,
    /// Only the names or ids by which commands know the items, one in each line.
    Name,
}

// A doc comment here would replace the help text of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct Output {
    /// The form of the output: tables for people, the JSON or YAML of the API for programs, or only names.
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value_t)]
    format: Format,
    /// Leave out the titles of tables.
    #[arg(long, global = true)]
    no_headers: bool,
    /// Print only names or ids, like `-o name`, and no progress.
    #[arg(short, long, global = true, conflicts_with = "format")]
    quiet: bool,
}

impl Output {
    #[cfg(test)]
    pub(crate) const JSON: Self = Self::of(Format::Json);
    #[cfg(test)]
    pub(crate) const TABLE: Self = Self::of(Format::Table);

    #[cfg(test)]
    const fn of(format: Format) -> Self {
        Self { format, no_headers: false, quiet: false }
    }

    /// The form of the output.
    pub(crate) fn format(self) -> Format {
        if self.quiet { Format::Name } else { self.format }
    }

    /// Whether the output is for programs: the whole JSON of the API, as JSON or YAML.
    pub(crate) fn is_data(self) -> bool {
        matches!(self.format(), Format::Json | Format::Yaml)
    }

    /// Whether only names are printed.
    pub(crate) fn is_names(self) -> bool {
        self.format() == Format::Name
    }

    /// Whether progress and notes are left out.
    pub(crate) fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Whether tables begin with titles.
    pub(crate) fn has_headers(self) -> bool {
        !self.no_headers
    }

    /// The same output, with wide tables if `long`.
    pub(crate) fn long(self, long: bool) -> Self {
        if long && self.format() == Format::Table { Self { format: Format::Wide, ..self } } else { self }
    }

    /// Formats items, one in each row of a table.
    pub(crate) fn table(self, items: &[Value], columns: &[Column<'_>]) -> String {
        table::table(items, columns, self.format() == Format::Wide, self.has_headers())
    }
}

/// Prints items, one in each row. When there are none, a table is replaced by `no <noun>` on stderr.
pub(crate) fn list(
    output: Output,
    noun: &str,
    items: &[Value],
    columns: &[Column<'_>],
) -> anyhow::Result<()> {
    if output.is_data() {
        return data(output, &items.into());
    }
    if output.is_names()
        && let Some(found) = table::names(items, columns)
    {
        return names(found);
    }
    if items.is_empty() {
        note(output, &format!("no {noun}"));
        return Ok(());
    }
    print_table(&output.table(items, columns))
}

/// Prints one item, one property in each line.
pub(crate) fn show(output: Output, item: &Value, lines: &[Column<'_>]) -> anyhow::Result<()> {
    if output.is_data() {
        return data(output, item);
    }
    if output.is_names()
        && let Some(found) = table::names(std::slice::from_ref(item), lines)
    {
        return names(found);
    }
    let rows: Vec<_> = lines.iter().map(|line| vec![format!("{}:", line.title()), line.cell(item)]).collect();
    print_table(&aligned(&rows))
}

/// Prints names, one in each line.
pub(crate) fn names(names: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
    print(&names.into_iter().map(|name| name + "\n").collect::<String>())
}

/// Prints what was done with the item that commands know by `name`.
pub(crate) fn done(output: Output, what: &str, name: &str, item: &Value) -> anyhow::Result<()> {
    if output.is_data() {
        return data(output, item);
    }
    print(&if output.is_names() { format!("{name}\n") } else { format!("{what} {name}\n") })
}

/// Prints a note for people on stderr.
pub(crate) fn note(output: Output, what: &str) {
    if !output.is_quiet() && !output.is_names() {
        eprintln!("{what}");
    }
}

/// Prints a value for programs, as JSON or YAML.
pub(crate) fn data(output: Output, value: &Value) -> anyhow::Result<()> {
    if output.format() == Format::Yaml { print(&yaml(value)?) } else { json(value) }
}

/// Prints JSON.
pub(crate) fn json(value: &Value) -> anyhow::Result<()> {
    print(&(json_text(&serde_json::to_string_pretty(value)?) + "\n"))
}

/// Formats a value as a YAML document in which characters that are unsafe on a terminal are escaped.
pub(crate) fn yaml(value: &Value) -> anyhow::Result<String> {
    let yaml = serde_saphyr::to_string(value)?;
    if !yaml.contains(|letter: char| letter != '\n' && text::is_unsafe(letter)) {
        return Ok(yaml);
    }
    // Only JSON has an escape sequence for these characters wherever they are, and it is YAML too.
    Ok(json_text(&serde_json::to_string_pretty(value)?).into_owned() + "\n")
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

/// Prints a table on stdout. Its cells are escaped already; on a terminal it has the escape sequences of colours.
pub(crate) fn print_table(table: &str) -> anyhow::Result<()> {
    write(table).map(drop)
}

/// Prints text on stdout, like [`print()`]. Returns whether the reader of a pipe is still there.
pub(crate) fn print_on(what: &str) -> anyhow::Result<bool> {
    write(&text::escape_but(what, &['\n', '\t']))
}

fn write(text: &str) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write the output"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unsafe_characters_in_json_are_escaped_and_the_json_stays_valid() {
        let value = json!({ "a": "x\u{9b}2J\u{202e}\u{7f}\u{1b}" });
        let text = serde_json::to_string(&value).unwrap();
        let shown = json_text(&text);
        assert_eq!(shown, r#"{"a":"x\u009b2J\u202e\u007f\u001b"}"#);
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), value);
    }
}
