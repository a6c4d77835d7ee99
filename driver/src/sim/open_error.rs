//! The errors of opening a simulated host.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::xml::XmlError;

/// The reason why a directory cannot be opened as a simulated host.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or folder cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// A document cannot be parsed.
    #[error("{path}: {error}")]
    Document {
        /// The file.
        path: PathBuf,
        /// The document, the element and the reason.
        error: XmlError,
    },
    /// A file of another kind cannot be parsed, or a file contradicts the others.
    #[error("{path}: {reason}")]
    Text {
        /// The file.
        path: PathBuf,
        /// The reason, with the place in the file.
        reason: String,
    },
    /// Another process keeps the lock.
    #[error(transparent)]
    Locked(#[from] Locked),
    /// The caller is not in a tokio runtime.
    #[error("a simulated host needs a tokio runtime; open it inside one")]
    NoRuntime,
}

impl OpenError {
    pub(super) fn text(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Text { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// How long to wait for the lock. Other processes normally hold it for milliseconds.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Another process keeps the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "another process has held the lock of this simulated host for {} s: it was stopped; find it with `fuser -v DIR/lock`, \
     and continue it (kill -CONT) or end it",
    LOCK_WAIT.as_secs()
)]
pub struct Locked;
