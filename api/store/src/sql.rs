//! One set of statements for SQLite and PostgreSQL. A statement is a static text with `$n`, its values are BIGINT or
//! TEXT, and so are the columns of its rows. Statements for one database only are written with sqlx directly.

use std::io;
use std::time::Duration;

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, Decode, Postgres, Row as _, Sqlite, Type};

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

/// A statement with its values.
#[must_use]
#[derive(Debug)]
pub(super) struct Query {
    text: &'static str,
    values: Vec<Value>,
}

/// Makes a statement that works on both databases.
pub(super) fn query(text: &'static str) -> Query {
    Query { text, values: Vec::new() }
}

impl Query {
    /// Adds the next value: `$1`, `$2`, …
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Appends the statement to others of SQLite, which have `?` for the next value.
    pub(super) fn append(self, text: &mut String, values: &mut SqliteArguments) -> Result<(), BoxDynError> {
        let mut parts = self.text.split('$');
        text.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let digits = part.len() - part.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
            let (number, rest) = part.split_at(digits);
            let value = number.parse::<usize>()?.checked_sub(1).and_then(|index| self.values.get(index));
            match value.cloned().ok_or("a statement lacks a value")? {
                Value::Number(value) => values.add(value)?,
                Value::Text(value) => values.add(value)?,
            }
            text.push('?');
            text.push_str(rest);
        }
        Ok(())
    }

    pub(super) fn postgres(self) -> sqlx::query::Query<'static, Postgres, PgArguments> {
        self.values.into_iter().fold(sqlx::query(self.text), |query, value| match value {
            Value::Number(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
        })
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
