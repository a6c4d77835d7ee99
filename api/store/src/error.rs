//! The errors of the store.

use std::fmt::Display;

use hotslot_model::assignment::Holder;
use hotslot_model::host_mode::HostMode;
use hotslot_model::id::AcceleratorId;
use hotslot_model::quota::Exceeded;

/// The error of a read or a change of the records.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// A row has a value that cannot be read.
    #[error("table {table}, row {row}: column {column}: {reason}")]
    Row {
        /// The table.
        table: &'static str,
        /// The id of the row.
        row: String,
        /// The column.
        column: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Another process or request changed a row between reading and writing.
    #[error("the record was changed by another request meanwhile; try again")]
    Stale,
    /// Other processes have removed this process from the record and taken over its work.
    #[error(
        "this process had no connection to the database for too long, and another process has taken over its work; \
         check the result before you repeat the request"
    )]
    TakenOver,
    /// The accelerator does not exist.
    #[error("accelerator {0} not found; GET /accelerators lists all accelerators")]
    NoAccelerator(String),
    /// Another record does not exist.
    #[error("{0} not found")]
    NotFound(String),
    /// The requested record existed, but was deleted.
    #[error("{0}")]
    Gone(String),
    /// The request is invalid. The message says what is wrong and what to do.
    #[error("{0}")]
    Invalid(String),
    /// The change conflicts with the records. The message says what conflicts and what to do.
    #[error("{0}")]
    Conflict(String),
    /// The name or id of a new record is in use. The message says what has it.
    #[error("{0}")]
    AlreadyExists(String),
    /// The host admits no such change now.
    #[error("{reason}")]
    Restricted {
        /// The mode of the host.
        mode: HostMode,
        /// The person who decided it, and the remedy.
        reason: String,
    },
    /// The change would exceed a quota of a project.
    #[error(transparent)]
    OverQuota(#[from] Box<Exceeded>),
    /// An internal error of hotslot.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// Makes the error for an I/O error on a file of the database.
    pub fn io(error: std::io::Error) -> Self {
        Self::Database(sqlx::Error::Io(error))
    }

    /// Makes the error for a holder that does not exist.
    pub fn no_holder(holder: Holder) -> Self {
        match holder {
            Holder::Accelerator(id) => not_found(id),
            Holder::AcceleratorRequest(id) => Self::NotFound(format!("accelerator request {id}")),
        }
    }
}

/// Makes the error for an accelerator that does not exist.
pub fn not_found(id: impl Display) -> Error {
    Error::NoAccelerator(id.to_string())
}

/// Makes the error for a request whose `If-Match` does not match the spec of the accelerator.
pub fn changed(id: AcceleratorId, generation: i64) -> Error {
    Error::Conflict(format!(
        "the spec of accelerator {id} was changed meanwhile: its ETag is now \"{generation}\"; read it and repeat the \
         request"
    ))
}
