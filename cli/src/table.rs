//! Tables for people: columns of JSON items, as wide as the terminal.
//!
//! A table on a terminal is wrapped to its width, and its states have colours unless `NO_COLOR` is set. A table in a
//! pipe is neither wrapped nor coloured.

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table, Width, presets};
use hotslot_driver::text;
use serde_json::Value;

use crate::remedy::by_commands;
use crate::value::at;

/// The spaces between two columns.
const GAP: u16 = 3;
/// The minimum width of a column whose text is wrapped, in characters: that of a PCI address.
const NARROW: u16 = 12;
/// Words of up to this many characters are not split, so that they can be copied: a UUID has 36.
const WORD: u16 = 40;
/// The minimum number of characters of a short id, as in `git log --oneline`.
const SHORT: usize = 8;

/// What a column has to do with the name of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Plain,
    /// The cells are what commands take as the name of the item.
    Name,
    /// The same, and the cells are UUIDs, of which narrow tables show only a beginning that no other row has.
    Id,
}

/// A column: its title, and the function that returns its cell for an item.
pub(crate) struct Column<'a> {
    title: &'static str,
    cell: Box<dyn Fn(&Value) -> String + 'a>,
    role: Role,
    /// Whether only wide tables have the column.
    only_wide: bool,
    /// Whether long cells are wrapped on a narrow terminal.
    wrapped: bool,
}

impl<'a> Column<'a> {
    pub(crate) fn new(title: &'static str, cell: impl Fn(&Value) -> String + 'a) -> Self {
        Self { title, cell: Box::new(cell), role: Role::Plain, only_wide: false, wrapped: false }
    }

    /// The cells of the column are the names of the items, for `-o name`.
    pub(crate) fn name(self) -> Self {
        Self { role: Role::Name, ..self }
    }

    /// Only wide tables have the column.
    pub(crate) fn wide(self) -> Self {
        Self { only_wide: true, ..self }
    }

    /// Long cells are wrapped on a narrow terminal.
    pub(crate) fn wrapped(self) -> Self {
        Self { wrapped: true, ..self }
    }

    pub(crate) fn title(&self) -> &'static str {
        self.title
    }

    pub(crate) fn cell(&self, item: &Value) -> String {
        (self.cell)(item)
    }
}

/// A column that shows the value at a JSON pointer.
pub(crate) fn column(title: &'static str, pointer: &'static str) -> Column<'static> {
    Column::new(title, move |item| at(item, pointer))
}

/// A column of UUIDs by which commands know the items: a unique beginning of each, or the whole UUIDs in a wide table.
pub(crate) fn id(title: &'static str, pointer: &'static str) -> Column<'static> {
    Column { role: Role::Id, ..column(title, pointer) }
}

/// A column that shows a message of the service, with commands in place of REST routes.
pub(crate) fn message(title: &'static str, pointer: &'static str) -> Column<'static> {
    Column::new(title, move |item| by_commands(&at(item, pointer))).wrapped()
}

/// Returns the names of items as commands take them: the cells of the first column of names.
pub(crate) fn names(items: &[Value], columns: &[Column<'_>]) -> Option<Vec<String>> {
    let column = columns.iter().find(|column| column.role != Role::Plain)?;
    Some(items.iter().map(|item| column.cell(item)).collect())
}

/// Formats items, one in each row, below the titles of the columns. A column that only wide tables have is left out
/// unless `wide`.
pub(crate) fn table(items: &[Value], columns: &[Column<'_>], wide: bool, headers: bool) -> String {
    let shown: Vec<_> = columns.iter().filter(|column| wide || !column.only_wide).collect();
    let cells: Vec<Vec<String>> = shown
        .iter()
        .map(|column| {
            let cells: Vec<_> = items.iter().map(|item| column.cell(item)).collect();
            if column.role == Role::Id && !wide { shortened(&cells) } else { cells }
        })
        .collect();
    let mut table = plain();
    if headers {
        table.set_header(shown.iter().map(|column| Cell::new(column.title).add_attribute(Attribute::Bold)));
    }
    for row in 0..items.len() {
        table.add_row(cells.iter().zip(&shown).map(|(cells, column)| colored(column, &cells[row])));
    }
    finished(table, &shown.iter().map(|column| column.wrapped).collect::<Vec<_>>())
}

/// Formats rows without titles. Their last cells are wrapped on a narrow terminal.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let mut table = plain();
    for row in rows {
        table.add_row(row.iter().map(|cell| Cell::new(text::escape(cell))));
    }
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    finished(table, &(1..=columns).map(|column| column == columns).collect::<Vec<_>>())
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// Wraps a text between words, to `width` characters with `indent` spaces before each line.
pub(crate) fn indented(text: &str, indent: u16, width: usize) -> String {
    let mut table = plain();
    table.set_width(u16::try_from(width).unwrap_or(u16::MAX)).add_row([Cell::new(text::escape(text))]);
    for column in table.column_iter_mut() {
        column.set_padding((indent, 0));
    }
    table.trim_fmt() + "\n"
}

/// The width of the terminal, in characters; `None` where the output is no terminal.
pub(crate) fn terminal_width() -> Option<usize> {
    Table::new().width().map(usize::from)
}

/// Formats the table. The columns that are not `wrapped` have the width of their cells, unless the table would be wider
/// than the terminal: then the widest of them are wrapped too.
fn finished(mut table: Table, wrapped: &[bool]) -> String {
    let widths = table.column_max_content_widths();
    let words = longest_words(&table, widths.len());
    let mut wrapped = wrapped.to_vec();
    if let Some(room) = table.width() {
        let mut widest: Vec<_> = (0..widths.len()).collect();
        widest.sort_by_key(|column| std::cmp::Reverse(widths[*column]));
        for column in widest {
            let narrow = |column: usize| {
                if wrapped[column] { words[column].min(widths[column]) } else { widths[column] }
            };
            let needed: u16 = (0..widths.len()).map(|column| narrow(column).saturating_add(GAP)).sum();
            if needed <= room {
                break;
            }
            wrapped[column] = true;
        }
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP)).set_constraint(if wrapped[index] && widths[index] > words[index] {
            ColumnConstraint::LowerBoundary(Width::Fixed(words[index] + GAP))
        } else {
            ColumnConstraint::ContentWidth
        });
    }
    let text = table.trim_fmt();
    if text.is_empty() { text } else { text + "\n" }
}

/// Returns the width of the longest word of each column that is not to be split, at least [`NARROW`].
fn longest_words(table: &Table, columns: usize) -> Vec<u16> {
    let mut longest = vec![NARROW; columns];
    for row in table.header().into_iter().chain(table.row_iter()) {
        for (longest, cell) in longest.iter_mut().zip(row.cell_iter()) {
            let words = cell.content();
            let widths =
                words.split_whitespace().map(|word| u16::try_from(word.chars().count()).unwrap_or(WORD));
            *longest = widths.map(|width| width.min(WORD)).fold(*longest, u16::max);
        }
    }
    longest
}

/// A cell whose colour tells a good state from one that passes and from one that needs attention.
fn colored(column: &Column<'_>, cell: &str) -> Cell {
    let shown = Cell::new(text::escape(cell));
    if !matches!(column.title, "STATUS" | "STATE" | "RESULT") {
        return shown;
    }
    match cell {
        "attached" | "available" | "up" | "ACTIVE" | "pass" => shown.fg(Color::Green),
        "attaching" | "detaching" | "claimed" | "unknown" => shown.fg(Color::Yellow),
        "failed" | "error" | "ERROR" | "down" | "fail" | "unavailable" => shown.fg(Color::Red),
        _ => shown,
    }
}

/// Returns a beginning of each id that no other id of the list has, all of the same length.
fn shortened(ids: &[String]) -> Vec<String> {
    let mut sorted: Vec<_> = ids.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let common = |pair: &[&str]| pair[0].bytes().zip(pair[1].bytes()).take_while(|(a, b)| a == b).count();
    let longest = sorted.windows(2).map(common).max().unwrap_or(0);
    ids.iter().map(|id| id.get(..SHORT.max(longest + 1)).unwrap_or(id).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_and_no_line_ends_in_spaces() {
        let rows = [["büro-1", "up", ""], ["b", "down", "y"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows), "büro-1   up\nb        down   y\n");
        assert_eq!(aligned(&[]), "");
    }

    #[test]
    fn a_narrow_terminal_splits_texts_between_words_and_no_id() {
        let id = "2acaba4e-bd6c-470d-aa89-0123456789ab";
        let mut table = plain();
        table.set_width(60);
        table.add_row([id, "0000:3b:00.1", "the guest has not released it, so it stays where it is"]);
        let text = finished(table, &[false, false, true]);
        assert!(text.starts_with(&format!("{id}   0000:3b:00.1   the guest")), "{text}");
        assert!(text.lines().count() > 2, "{text}");
    }

    #[test]
    fn control_characters_in_cells_are_escaped() {
        let text = aligned(&[vec!["a\u{1b}[2J".into(), "b\nc\t".into()], vec!["büro".into(), "x".into()]]);
        assert_eq!(text, "a\\u{1b}[2J   b\\nc\\t\nbüro         x\n");
    }

    #[test]
    fn a_short_id_is_as_long_as_it_has_to_be() {
        let ids = ["3f0c7c2e-6f0e", "91c00000-0000"].map(str::to_owned);
        assert_eq!(shortened(&ids), ["3f0c7c2e", "91c00000"]);
        let ids = ["3f0c7c2e-6f0e", "3f0c7c2e-6f1e", "3f0c7c2e-6f0e", "-"].map(str::to_owned);
        assert_eq!(shortened(&ids), ["3f0c7c2e-6f0", "3f0c7c2e-6f1", "3f0c7c2e-6f0", "-"]);
    }

    #[test]
    fn a_table_is_not_wider_than_the_terminal() {
        let cells = ["3f0c7c2e", "gpu", "0000:17:00.0", "0000:01:00.0 (computed)", "attached"];
        let reason = "the guest refused to release the device; detach again when the guest can release it";
        let mut shown = plain();
        shown.set_width(80).add_row(cells.into_iter().chain([reason]));
        let text = finished(shown, &[false, false, false, false, false, true]);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(text.starts_with("3f0c7c2e   gpu   0000:17:00.0   "), "{text}");
        let mut shown = plain();
        shown.set_width(100).add_row(cells.into_iter().chain(["-"]));
        let text = finished(shown, &[false, false, false, false, false, true]);
        assert_eq!(text, format!("{}   -\n", cells.join("   ")));
    }

    #[test]
    fn a_wide_table_has_whole_ids_and_more_columns() {
        let items = [json!({ "id": "3f0c7c2e-6f0e", "name": "a", "host": "node1" })];
        let columns = [id("ID", "/id"), column("NAME", "/name"), column("HOST", "/host").wide()];
        assert_eq!(table(&items, &columns, false, true), "ID         NAME\n3f0c7c2e   a\n");
        assert_eq!(table(&items, &columns, true, false), "3f0c7c2e-6f0e   a   node1\n");
        assert_eq!(names(&items, &columns), Some(vec!["3f0c7c2e-6f0e".to_owned()]));
        assert_eq!(names(&items, &columns[1..]), None);
    }
}
