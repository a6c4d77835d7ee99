//! One set of statements for SQLite and PostgreSQL. A statement is a static text with `$n`, its values are BIGINT or
//! TEXT, and so are the columns of its rows. Statements for one database only are written with sqlx directly.

use std::io;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::sqlite::{SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{Decode, Postgres, Row as _, Sqlite, Type};

use crate::error::Error;
use crate::metrics::Call;

/// The time limit for one statement on PostgreSQL. It is twice the time for which a process that hangs in a transaction
/// can block others ([`STALLED`](crate::pool::STALLED)).
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for an answer of PostgreSQL, at most for [`PATIENCE`].
async fn soon<T>(answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
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
#[derive(Debug)]
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

/// The connection on which a statement runs.
pub(super) enum Executor<'a> {
    Pool(&'a Pool),
    Transaction(&'a mut Transaction),
}

impl Executor<'_> {
    /// Reborrows the executor for another statement.
    pub(super) fn again(&mut self) -> Executor<'_> {
        match self {
            Self::Pool(pool) => Executor::Pool(pool),
            Self::Transaction(tx) => Executor::Transaction(tx),
        }
    }
}

impl<'a> From<&'a Pool> for Executor<'a> {
    fn from(pool: &'a Pool) -> Self {
        Self::Pool(pool)
    }
}

impl<'a> From<&'a mut Transaction> for Executor<'a> {
    fn from(transaction: &'a mut Transaction) -> Self {
        Self::Transaction(transaction)
    }
}

impl Query {
    /// Adds the next value: `$1`, `$2`, …
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    fn sqlite(self) -> sqlx::query::Query<'static, Sqlite, SqliteArguments> {
        self.values.into_iter().fold(sqlx::query(self.text), |query, value| match value {
            Value::Number(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
        })
    }

    fn postgres(self) -> sqlx::query::Query<'static, Postgres, PgArguments> {
        self.values.into_iter().fold(sqlx::query(self.text), |query, value| match value {
            Value::Number(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
        })
    }

    /// Runs the statement and returns the number of rows written.
    pub(super) async fn execute(self, on: impl Into<Executor<'_>>) -> sqlx::Result<u64> {
        Call::begin("write").ended(self.execute_uncounted(on.into()).await)
    }

    async fn execute_uncounted(self, on: Executor<'_>) -> sqlx::Result<u64> {
        Ok(match on {
            Executor::Pool(Pool::Sqlite(pool)) => self.sqlite().execute(pool).await?.rows_affected(),
            Executor::Pool(Pool::Postgres(pool)) => {
                soon(self.postgres().execute(pool)).await?.rows_affected()
            }
            Executor::Transaction(Transaction::Sqlite(tx)) => {
                self.sqlite().execute(&mut **tx).await?.rows_affected()
            }
            Executor::Transaction(Transaction::Postgres(tx)) => {
                soon(self.postgres().execute(&mut **tx)).await?.rows_affected()
            }
        })
    }

    /// Runs the statement and returns all rows, each converted by `read`.
    pub(super) async fn all<T>(
        self,
        on: impl Into<Executor<'_>>,
        read: impl FnMut(&Row) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        self.fetch_all(on).await?.iter().map(read).collect()
    }

    /// Runs the statement and returns the first row, converted by `read`, if there is one.
    pub(super) async fn one<T>(
        self,
        on: impl Into<Executor<'_>>,
        read: impl FnMut(&Row) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.fetch_optional(on).await?.as_ref().map(read).transpose()
    }

    /// Runs the statement and returns all rows.
    pub(super) async fn fetch_all(self, on: impl Into<Executor<'_>>) -> sqlx::Result<Vec<Row>> {
        Call::begin("read").ended(self.fetch_all_uncounted(on.into()).await)
    }

    async fn fetch_all_uncounted(self, on: Executor<'_>) -> sqlx::Result<Vec<Row>> {
        let sqlite = |rows: Vec<SqliteRow>| rows.into_iter().map(Row::Sqlite).collect();
        let postgres = |rows: Vec<PgRow>| rows.into_iter().map(Row::Postgres).collect();
        Ok(match on {
            Executor::Pool(Pool::Sqlite(pool)) => sqlite(self.sqlite().fetch_all(pool).await?),
            Executor::Pool(Pool::Postgres(pool)) => postgres(soon(self.postgres().fetch_all(pool)).await?),
            Executor::Transaction(Transaction::Sqlite(tx)) => {
                sqlite(self.sqlite().fetch_all(&mut **tx).await?)
            }
            Executor::Transaction(Transaction::Postgres(tx)) => {
                postgres(soon(self.postgres().fetch_all(&mut **tx)).await?)
            }
        })
    }

    /// Runs the statement and returns the first row, if there is one.
    pub(super) async fn fetch_optional(self, on: impl Into<Executor<'_>>) -> sqlx::Result<Option<Row>> {
        Ok(self.fetch_all(on).await?.into_iter().next())
    }

    /// Runs the statement and returns the first row. It is an error when there is none.
    pub(super) async fn fetch_one(self, on: impl Into<Executor<'_>>) -> sqlx::Result<Row> {
        self.fetch_optional(on).await?.ok_or(sqlx::Error::RowNotFound)
    }
}

/// A pool of connections.
#[derive(Debug, Clone)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Pool {
    /// Begins a transaction that excludes all other writers until it ends.
    pub(super) async fn begin_to_write(&self) -> sqlx::Result<Transaction> {
        Call::begin("begin").ended(self.begin_uncounted().await)
    }

    async fn begin_uncounted(&self) -> sqlx::Result<Transaction> {
        // The future of a pool may open a connection, and has 12 KiB.
        Ok(match self {
            Self::Sqlite(pool) => Transaction::Sqlite(Box::pin(pool.begin_with("BEGIN IMMEDIATE")).await?),
            Self::Postgres(pool) => {
                let mut tx = soon(Box::pin(pool.begin())).await?;
                // Allows one writer as SQLite does; readers do not wait. The lock is a statement of its own, so that
                // giving up while it waits only rolls back an empty transaction.
                soon(sqlx::query("LOCK TABLE commits IN EXCLUSIVE MODE").execute(&mut *tx)).await?;
                Transaction::Postgres(tx)
            }
        })
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// A transaction. Dropping it rolls it back.
#[derive(Debug)]
pub(super) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Transaction {
    pub(super) async fn commit(self) -> sqlx::Result<()> {
        let call = Call::begin("commit");
        call.ended(match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => soon(tx.commit()).await,
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
