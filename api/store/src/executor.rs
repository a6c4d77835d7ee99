//! Where a statement runs: on a connection of a pool, or in a transaction.

use sqlx::postgres::PgRow;

use crate::error::Error;
use crate::metrics::Call;
use crate::sql::{Query, Row, soon};
use crate::writer::{Pool, Transaction};

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
    /// Runs the statement and returns the number of rows written.
    pub(super) async fn execute(self, on: impl Into<Executor<'_>>) -> sqlx::Result<u64> {
        Call::begin("write").ended(self.execute_uncounted(on.into()).await)
    }

    async fn execute_uncounted(self, on: Executor<'_>) -> sqlx::Result<u64> {
        Ok(match on {
            Executor::Pool(Pool::Sqlite(pool)) => pool.run(self).await?.0,
            Executor::Pool(Pool::Postgres(pool)) => {
                soon(self.postgres()?.execute(pool)).await?.rows_affected()
            }
            Executor::Transaction(tx) => tx.run(self).await?.0,
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
        let postgres = |rows: Vec<PgRow>| rows.into_iter().map(Row::Postgres).collect();
        Ok(match on {
            Executor::Pool(Pool::Sqlite(pool)) => pool.run(self).await?.1,
            Executor::Pool(Pool::Postgres(pool)) => postgres(soon(self.postgres()?.fetch_all(pool)).await?),
            Executor::Transaction(tx) => tx.run(self).await?.1,
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
