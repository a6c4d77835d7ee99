//! Tables for people: columns of JSON items, as wide as the terminal.
//!
//! A row that is wider than the terminal has its texts in lines of their own below it, so that the terminal splits neither an
//! id nor an address. States have colours unless `NO_COLOR` is set. A table in a pipe has one line for each item and no colours.

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table, Width, presets};
use hotslot_driver::text;
use serde_json::Value;

use crate::remedy::by_commands;
use crate::value::at;

/// The spaces between two columns.
const GAP: u16 = 3;
/// The minimum width of the last column of [`aligned`], in characters.
const NARROW: usize = 12;
/// The minimum width of a text that is wrapped beside the other columns, in characters. With less room it is below its row.
const BESIDE: usize = 30;
/// The spaces before what is below a row.
const INDENT: u16 = 4;
/// Words of up to this many characters are not split, so that they can be copied: a UUID has 36.
const WORD: usize = 40;
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
    /// Whether the cells may be wrapped, or be below their rows, on a narrow terminal before those of other columns.
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

    /// On a narrow terminal the cells are wrapped, or are below their rows, before those of other columns.
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
    table_in(terminal_width(), items, columns, wide, headers)
}

/// Does the same as [`table`] for a terminal with `room` characters in a line.
fn table_in(
    room: Option<usize>,
    items: &[Value],
    columns: &[Column<'_>],
    wide: bool,
    headers: bool,
) -> String {
    let shown: Vec<_> = columns.iter().filter(|column| wide || !column.only_wide).collect();
    let cells: Vec<Vec<String>> = shown
        .iter()
        .map(|column| {
            let cells = items.iter().map(|item| text::escape(&column.cell(item)).into_owned());
            let cells: Vec<_> = cells.collect();
            if column.role == Role::Id && !wide { shortened(&cells) } else { cells }
        })
        .collect();
    let layout = Layout::of(room, &shown, &cells, headers);
    let beside = || shown.iter().zip(&cells).zip(&layout.below).filter(|(_, below)| !**below);
    let mut table = plain(room);
    if headers {
        let title = |column: &Column<'_>| Cell::new(column.title).add_attribute(Attribute::Bold);
        table.set_header(beside().map(|((column, _), _)| title(column)));
    }
    for row in 0..items.len() {
        table.add_row(beside().map(|((column, cells), _)| colored(column, &cells[row])));
    }
    let text = finished(table, layout.wrapped);
    let (Some(room), true) = (room, layout.below.contains(&true)) else { return text };
    // Each row has one line, because what does not fit beside the others is below.
    let mut lines = text.lines();
    let mut text: String =
        lines.by_ref().take(usize::from(headers)).map(|line| format!("{line}\n")).collect();
    for row in 0..items.len() {
        let line = lines.next().unwrap_or_default();
        let below = shown.iter().zip(&cells).zip(&layout.below).filter(|(_, below)| **below);
        let below = below.map(|((column, cells), _)| (column.title, cells[row].as_str()));
        text += &format!("{line}\n{}", paragraph(below.filter(|(_, cell)| *cell != "-"), room));
    }
    text
}

/// Where the columns of a table are.
struct Layout {
    /// Whether each column is below the rows.
    below: Vec<bool>,
    /// The column that is wrapped beside the others, and its width.
    wrapped: Option<(usize, usize)>,
}

impl Layout {
    /// Finds room for the columns: it wraps the only text where enough room is left for it, or else puts the texts below their
    /// rows, the last one first, and then the other columns in the same way, but for the first one.
    fn of(room: Option<usize>, columns: &[&Column<'_>], cells: &[Vec<String>], headers: bool) -> Self {
        let title = |column: &Column<'_>| if headers { width(column.title) } else { 0 };
        let widths: Vec<_> = columns
            .iter()
            .zip(cells)
            .map(|(column, cells)| cells.iter().map(|cell| width(cell)).fold(title(column), usize::max))
            .collect();
        let mut below = vec![false; columns.len()];
        let needed = |below: &[bool]| {
            let beside = widths.iter().zip(below).filter(|(_, below)| !**below);
            let beside = beside.fold(0, |sum, (width, _)| sum + width + usize::from(GAP));
            beside.saturating_sub(GAP.into())
        };
        let fits = |below: &[bool]| room.is_none_or(|room| needed(below) <= room);
        let wrapped = |index: &usize| columns[*index].wrapped;
        let texts: Vec<_> = (1..columns.len()).rev().filter(wrapped).collect();
        if let (false, [text], Some(room)) = (fits(&below), &texts[..], room) {
            let left = room.saturating_sub(needed(&below) - widths[*text]);
            let longest = cells[*text].iter().map(|cell| longest_word(cell)).fold(0, usize::max);
            if left >= BESIDE.max(longest) {
                return Self { below, wrapped: Some((*text, left)) };
            }
        }
        for index in texts.into_iter().chain((1..columns.len()).rev().filter(|index| !wrapped(index))) {
            if fits(&below) {
                break;
            }
            below[index] = true;
        }
        Self { below, wrapped: None }
    }
}

/// Formats what is below a row: the cells with their titles, as many in a line as it has room for.
fn paragraph<'a>(cells: impl Iterator<Item = (&'static str, &'a str)>, room: usize) -> String {
    let inner = room.saturating_sub(INDENT.into());
    let mut lines: Vec<String> = Vec::new();
    for (title, cell) in cells {
        let part = format!("{title}: {cell}");
        match lines.last_mut() {
            Some(line) if width(line) + usize::from(GAP) + width(&part) <= inner => {
                *line += &format!("   {part}");
            }
            Some(_) | None => lines.push(part),
        }
    }
    lines.iter().map(|line| indented(line, INDENT, room)).collect()
}

/// Formats rows without titles. Their last cells are wrapped on a narrow terminal.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    aligned_in(terminal_width(), rows)
}

/// Does the same as [`aligned`] for a terminal with `room` characters in a line.
fn aligned_in(room: Option<usize>, rows: &[Vec<String>]) -> String {
    let mut table = plain(room);
    let rows: Vec<Vec<_>> =
        rows.iter().map(|row| row.iter().map(|cell| text::escape(cell).into_owned()).collect()).collect();
    for row in &rows {
        table.add_row(row.iter().map(Cell::new));
    }
    let last = rows.iter().map(Vec::len).max().unwrap_or(0).saturating_sub(1);
    let widest = |column: usize, of: fn(&str) -> usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| of(cell)).fold(0, usize::max)
    };
    let before: usize = (0..last).map(|column| widest(column, width) + usize::from(GAP)).sum();
    let wrapped = room.filter(|room| before + widest(last, width) > *room).map(|room| {
        (last, room.saturating_sub(before).max(NARROW).max(widest(last, longest_word).min(WORD)))
    });
    finished(table, wrapped)
}

fn plain(room: Option<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).style_text_only();
    if !is_coloured() {
        table.force_no_tty();
    }
    if let Some(room) = room {
        table.set_width(u16::try_from(room).unwrap_or(u16::MAX));
    }
    table
}

/// Whether terminals are sent colours and other styles: not with the variable `NO_COLOR`, or a `TERM` that has none.
pub(crate) fn is_coloured() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Wraps a text between words, to `width` characters with `indent` spaces before each line.
pub(crate) fn indented(text: &str, indent: u16, width: usize) -> String {
    let mut table = plain(Some(width));
    table.add_row([Cell::new(text::escape(text))]);
    for column in table.column_iter_mut() {
        column.set_padding((indent, 0));
    }
    table.trim_fmt() + "\n"
}

/// The width of the terminal, in characters; `None` where the output is no terminal, or one without a width.
pub(crate) fn terminal_width() -> Option<usize> {
    Table::new().width().map(usize::from).filter(|width| *width >= NARROW)
}

/// The width of the terminal that shows the progress.
pub(crate) fn progress_width() -> Option<usize> {
    let mut table = Table::new();
    table.use_stderr();
    table.width().map(usize::from)
}

/// Formats the table. The columns have the width of their cells, but for the one that is `wrapped` to its width.
fn finished(mut table: Table, wrapped: Option<(usize, usize)>) -> String {
    let last = table.column_count().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        let gap = if index == last { 0 } else { GAP };
        column.set_padding((0, gap)).set_constraint(match wrapped {
            Some((column, width)) if column == index => ColumnConstraint::Absolute(Width::Fixed(
                u16::try_from(width + usize::from(gap)).unwrap_or(u16::MAX),
            )),
            Some(_) | None => ColumnConstraint::ContentWidth,
        });
    }
    let text = table.trim_fmt();
    if text.is_empty() { text } else { text + "\n" }
}

/// The number of columns of a terminal that a text needs: one for each character, as almost all have.
fn width(text: &str) -> usize {
    text.chars().count()
}

/// The width of the longest word of a text.
fn longest_word(text: &str) -> usize {
    text.split_whitespace().map(width).max().unwrap_or(0)
}

/// A cell whose colour tells a good state from one that passes and from one that needs attention.
fn colored(column: &Column<'_>, cell: &str) -> Cell {
    let shown = Cell::new(cell);
    if !matches!(column.title, "STATUS" | "STATE" | "RESULT") {
        return shown;
    }
    match cell {
        "attached" | "available" | "up" | "ACTIVE" | "pass" => shown.fg(Color::Green),
        "attaching" | "detaching" | "claimed" | "unknown" => shown.fg(Color::Yellow),
        "failed" | "error" | "ERROR" | "unreachable" | "fail" | "unavailable" => shown.fg(Color::Red),
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
        let rows = [[id, "0000:3b:00.1", "the guest has not released it, so it stays where it is"]];
        let text = aligned_in(Some(80), &rows.map(|row| row.map(str::to_owned).to_vec()));
        assert!(text.starts_with(&format!("{id}   0000:3b:00.1   the guest")), "{text}");
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.len() <= 80), "{text}");
        let rows = [["Entry:", id]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            aligned_in(Some(20), &rows),
            format!("Entry:   {id}\n"),
            "an id is longer than the terminal"
        );
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
    fn texts_are_below_their_rows_where_the_terminal_is_narrow() {
        let reason = "the guest refused to release the device; detach again when the guest can release it";
        let item = |reason: &str| {
            json!({ "id": "3f0c7c2e", "name": "gpu", "address": "0000:17:00.0", "inner": "0000:01:00.0 (computed)",
                    "status": "attached", "reason": reason })
        };
        let columns = [
            id("ID", "/id"),
            column("NAME", "/name"),
            column("ADDRESS", "/address"),
            column("INNER ADDRESS", "/inner").wrapped(),
            column("STATUS", "/status"),
            column("REASON", "/reason").wrapped(),
        ];
        let shown = |room, items: &[Value]| table_in(Some(room), items, &columns, false, true);
        assert_eq!(
            shown(80, &[item(reason), item("-")]),
            "\
ID         NAME   ADDRESS        INNER ADDRESS             STATUS
3f0c7c2e   gpu    0000:17:00.0   0000:01:00.0 (computed)   attached
    REASON: the guest refused to release the device; detach again when the guest
    can release it
3f0c7c2e   gpu    0000:17:00.0   0000:01:00.0 (computed)   attached
"
        );
        assert_eq!(
            shown(50, &[item("busy")]),
            "\
ID         NAME   ADDRESS        STATUS
3f0c7c2e   gpu    0000:17:00.0   attached
    INNER ADDRESS: 0000:01:00.0 (computed)
    REASON: busy
"
        );
        let tiny = shown(26, &[item("busy")]);
        assert!(
            tiny.lines().all(|line| line.len() <= 26) && tiny.contains("ADDRESS: 0000:17:00.0"),
            "{tiny}"
        );
        assert_eq!(shown(80, &[item("-")]).lines().count(), 2);
        let entry =
            json!({ "id": "3f0c7c2e", "entry": r#"{"vendor_id": "8086", "address": "0000:3b:00.1"}"# });
        let columns = [id("ID", "/id"), column("ENTRY", "/entry").wrapped()];
        assert_eq!(
            table_in(Some(50), &[entry], &columns, false, false),
            "3f0c7c2e   {\"vendor_id\": \"8086\", \"address\":\n           \"0000:3b:00.1\"}\n"
        );
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
