//! What can go wrong with the records.

use std::fmt::Display;

use hotslot_model::assignment::Holder;
use hotslot_model::id::AcceleratorId;

/// Why a change of the records was not made, or a row was not read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// A row that cannot become a value of ours.
    #[error("table {table}, row {row}: column {column}: {reason}")]
    Row {
        /// The table.
        table: &'static str,
        /// The row's id.
        row: String,
        /// The column.
        column: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A row was changed by someone else between reading and writing.
    #[error("the record was changed by someone else meanwhile; try again")]
    Stale,
    /// Other processes have gone on with what this one was doing.
    #[error(
        "this process was away from the database for so long, or stood still, that another one has gone on with what it \
         was doing: look what became of it before you ask again"
    )]
    TakenOver,
    /// No such accelerator.
    #[error("accelerator {0} not found; GET /accelerators lists those there are")]
    NoAccelerator(String),
    /// Something else that is named is not there.
    #[error("{0} not found")]
    NotFound(String),
    /// What is asked for was there, and is no longer kept.
    #[error("{0}")]
    Gone(String),
    /// What is asked for cannot be: what is wrong, and what would be right.
    #[error("{0}")]
    Invalid(String),
    /// The change does not go with what is on record: what does not fit, and what to do.
    #[error("{0}")]
    Conflict(String),
    /// Our own fault.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// A failure of the file system at a file of the database.
    pub fn io(error: std::io::Error) -> Self {
        Self::Database(sqlx::Error::Io(error))
    }

    /// There is no such holder.
    pub fn no_holder(holder: Holder) -> Self {
        match holder {
            Holder::Accelerator(id) => not_found(id),
            Holder::AcceleratorRequest(id) => Self::NotFound(format!("accelerator request {id}")),
        }
    }
}

/// There is no such accelerator.
pub fn not_found(id: impl Display) -> Error {
    Error::NoAccelerator(id.to_string())
}

/// The spec of an accelerator is not the one that a request goes with.
pub fn changed(id: AcceleratorId, generation: i64) -> Error {
    Error::Conflict(format!(
        "the spec of accelerator {id} was changed meanwhile: its ETag is \"{generation}\" now; read it, and ask again"
    ))
}
