//! Reads the columns of a row, with errors that name the table, the row and the column.

use std::str::FromStr;

use crate::error::Error;
use crate::sql;

/// Makes the error for a column with a value that cannot be read.
pub(crate) fn bad_column(
    table: &'static str,
    row: impl ToString,
    column: &'static str,
) -> impl FnOnce(&dyn std::fmt::Display) -> Error {
    let row = row.to_string();
    move |reason| Error::Row { table, row, column, reason: reason.to_string() }
}

/// Reads the columns of one row, with errors that name the table, the row and the column.
pub(crate) struct RowReader<'a> {
    pub(crate) table: &'static str,
    pub(crate) id: String,
    pub(crate) row: &'a sql::Row,
}

impl RowReader<'_> {
    pub(crate) fn get<'r, T>(&'r self, column: &'static str) -> Result<T, Error>
    where
        T: sql::Column<'r>,
    {
        self.row.try_get(column).map_err(|error| bad_column(self.table, &self.id, column)(&error))
    }

    pub(crate) fn parse<T>(&self, column: &'static str) -> Result<T, Error>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let text: String = self.get(column)?;
        text.parse().map_err(|error: T::Err| bad_column(self.table, &self.id, column)(&error))
    }

    pub(crate) fn parse_opt<T>(&self, column: &'static str) -> Result<Option<T>, Error>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let text: Option<String> = self.get(column)?;
        text.map(|text| text.parse())
            .transpose()
            .map_err(|error: T::Err| bad_column(self.table, &self.id, column)(&error))
    }
}
