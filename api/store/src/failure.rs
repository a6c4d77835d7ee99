//! One failure of the database, as the error of each of the callers whom it concerns.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io;

use sqlx::error::{DatabaseError, ErrorKind};

/// An error that the database has returned, without the constraint that it may name.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Copied {
    message: String,
    code: Option<String>,
}

impl DatabaseError for Copied {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.code.as_deref().map(Cow::Borrowed)
    }

    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

/// Returns an error for another caller, with the same code, so that it gets the same advice.
pub(super) fn again(error: &sqlx::Error) -> sqlx::Error {
    if let Some(error) = error.as_database_error() {
        let code = error.code().map(Cow::into_owned);
        return sqlx::Error::Database(Box::new(Copied { message: error.to_string(), code }));
    }
    if matches!(error, sqlx::Error::PoolTimedOut) {
        return sqlx::Error::PoolTimedOut;
    }
    if matches!(error, sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed) {
        return sqlx::Error::WorkerCrashed;
    }
    sqlx::Error::Io(io::Error::other(error.to_string()))
}
