//! A table. On a phone each row is a card, whose cells have the names of their columns.

use maud::{Markup, html};

/// A row of a table: its class, which may be empty, and its cells, the first of which names it.
pub(crate) struct Row(pub(crate) &'static str, pub(crate) Vec<Markup>);

impl<const N: usize> From<[Markup; N]> for Row {
    fn from(cells: [Markup; N]) -> Self {
        Self("", cells.into())
    }
}

/// The name of a column with what can be done about a row. It is read out, and not shown.
pub(crate) const ACTIONS: &str = "Actions";

/// Returns a table with these columns, without those in which no row has anything.
pub(crate) fn table<R: Into<Row>>(columns: &[&str], rows: impl IntoIterator<Item = R>) -> Markup {
    let rows: Vec<Row> = rows.into_iter().map(Into::into).collect();
    let is_used = |number: usize| rows.iter().any(|Row(_, cells)| !cells[number].0.is_empty());
    let used: Vec<_> = columns.iter().enumerate().filter(|(number, _)| is_used(*number)).collect();
    html! {
        table {
            thead { tr { @for (_, column) in &used {
                th { @if **column == ACTIONS { span.unseen { (column) } } @else { (column) } }
            } } }
            tbody { @for Row(class, cells) in &rows {
                tr class=[Some(class).filter(|class| !class.is_empty())] {
                    @for (number, column) in &used {
                        @if *number == 0 { th scope="row" { (cells[*number]) } }
                        @else { td data-column=[Some(column).filter(|column| ***column != ACTIONS)] { (cells[*number]) } }
                    }
                }
            } }
        }
    }
}
