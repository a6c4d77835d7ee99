//! One set of statements for SQLite and PostgreSQL. A statement is a static text with `$n`, its values are BIGINT or
//! TEXT, and so are the columns of its rows. Statements for one database only are written with sqlx directly.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Decode, Postgres, Row as _, Sqlite, Type};

/// The time limit for one statement on PostgreSQL. It is twice the time for which a process that hangs in a transaction
/// can block others ([`STALLED`](crate::pool::STALLED)).
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for an answer of PostgreSQL, at most for [`PATIENCE`].
pub(super) async fn soon<T>(answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    within(PATIENCE, answer).await
}

/// Waits for an answer of PostgreSQL, at most for `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    let late = |_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()));
    tokio::time::timeout(limit, answer).await.unwrap_or_else(late)
}

/// A value of a statement.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Number(Option<i64>),
    Text(Option<String>),
}

macro_rules! value {
    ($($from:ty, $value:ident => $to:expr;)*) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Self {
                $to
            }
        })*
    };
}
value! {
    i64, value => Self::Number(Some(value));
    Option<i64>, value => Self::Number(value);
    String, value => Self::Text(Some(value));
    &str, value => Self::Text(Some(value.to_owned()));
    &String, value => Self::Text(Some(value.clone()));
    Option<String>, value => Self::Text(value);
    Option<&str>, value => Self::Text(value.map(str::to_owned));
    &Option<String>, value => Self::Text(value.clone());
}

/// How many rows one statement may insert. A long transaction sends so many at once.
pub(super) const ROWS: usize = 64;

/// Statements that insert at most so many rows are kept prepared, as those of [`ROWS`] are: they come again.
const FEW: usize = 4;

/// A statement with its values. An `INSERT` of one row, which ends with `VALUES (…)`, may get more rows.
#[must_use]
#[derive(Debug)]
pub(super) struct Query {
    text: &'static str,
    values: Vec<Value>,
    /// The values of the further rows.
    more: Vec<Vec<Value>>,
}

/// Makes a statement that works on both databases.
pub(super) fn query(text: &'static str) -> Query {
    Query { text, values: Vec::new(), more: Vec::new() }
}

impl Query {
    /// Adds the next value: `$1`, `$2`, …
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Takes the row of another statement, when both insert one into the same columns. One statement for many rows costs far
    /// less than one for each. Otherwise gives the other one back.
    pub(super) fn with_row_of(&mut self, other: Self) -> Option<Self> {
        let is_same = self.text == other.text && self.text.starts_with("INSERT");
        if !is_same || self.rows() == ROWS || !other.more.is_empty() {
            return Some(other);
        }
        self.more.push(other.values);
        None
    }

    /// How many rows the statement inserts, or 1 for another statement.
    pub(super) fn rows(&self) -> usize {
        1 + self.more.len()
    }

    /// Whether the statement should be kept prepared.
    pub(super) fn comes_again(&self) -> bool {
        self.rows() <= FEW || self.rows() == ROWS
    }

    /// Appends the statement to others. `place` writes the place of the next value, and takes the value.
    fn write(
        &self,
        text: &mut String,
        mut place: impl FnMut(&mut String, &Value) -> Result<(), BoxDynError>,
    ) -> Result<(), BoxDynError> {
        let (head, row) = self.text.split_at(if self.more.is_empty() {
            0
        } else {
            self.text.find("VALUES (").ok_or("a statement for several rows has no VALUES")? + "VALUES ".len()
        });
        text.push_str(head);
        for (index, values) in std::iter::once(&self.values).chain(&self.more).enumerate() {
            text.push_str(if index == 0 { "" } else { ", " });
            let mut parts = row.split('$');
            text.push_str(parts.next().unwrap_or_default());
            for part in parts {
                let digits = part.len() - part.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
                let (number, rest) = part.split_at(digits);
                let value = number.parse::<usize>()?.checked_sub(1).and_then(|index| values.get(index));
                place(text, value.ok_or("a statement lacks a value")?)?;
                text.push_str(rest);
            }
        }
        Ok(())
    }

    /// Appends the statement to others of SQLite, which have `?` for the next value.
    pub(super) fn append(&self, text: &mut String, all: &mut SqliteArguments) -> Result<(), BoxDynError> {
        self.write(text, |text, value| {
            text.push('?');
            match value.clone() {
                Value::Number(value) => all.add(value),
                Value::Text(value) => all.add(value),
            }
        })
    }

    /// The statement for PostgreSQL.
    ///
    /// # Errors
    /// Returns the error of a statement that lacks a value.
    pub(super) fn postgres(self) -> sqlx::Result<sqlx::query::Query<'static, Postgres, PgArguments>> {
        let add = |all: &mut PgArguments, value: Value| match value {
            Value::Number(value) => all.add(value),
            Value::Text(value) => all.add(value),
        };
        let mut all = PgArguments::default();
        if self.more.is_empty() {
            for value in self.values {
                add(&mut all, value).map_err(sqlx::Error::Encode)?;
            }
            return Ok(sqlx::query_with(self.text, all));
        }
        let (mut text, mut count, keep) = (String::new(), 0, self.comes_again());
        self.write(&mut text, |text, value| {
            count += 1;
            write!(text, "${count}")?;
            add(&mut all, value.clone())
        })
        .map_err(sqlx::Error::Encode)?;
        Ok(sqlx::query_with(AssertSqlSafe(text), all).persistent(keep))
    }
}

/// A type that both databases can have as the value of a column.
pub(super) trait Column<'r>:
    Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>
{
}

impl<'r, T> Column<'r> for T where T: Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>
{}

/// A row of a result.
#[derive(Debug)]
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    pub(super) fn try_get<'r, T: Column<'r>>(&'r self, column: &str) -> sqlx::Result<T> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }
}
