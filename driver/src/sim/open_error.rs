//! Why a directory is no simulated host.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::xml::XmlError;

/// Why a directory is no simulated host.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or folder cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A document cannot be understood.
    #[error("{path}: {error}")]
    Document {
        /// The file.
        path: PathBuf,
        /// Document, element and reason.
        error: XmlError,
    },
    /// A file of another kind cannot be understood, or does not fit to the others.
    #[error("{path}: {reason}")]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// Another process does not let anybody else look.
    #[error(transparent)]
    Locked(#[from] Locked),
    /// There is no tokio runtime to live in.
    #[error("a simulated host needs a tokio runtime")]
    NoRuntime,
}

impl OpenError {
    pub(super) fn text(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Text { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// How long another process is waited for that looks or changes something, which takes milliseconds.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Another process keeps the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "another process has held the lock of this simulated host for {} s: it was stopped in the middle; let it go on (kill \
     -CONT) or end it (`fuser -v DIR/lock` says which it is)",
    LOCK_WAIT.as_secs()
)]
pub struct Locked;
