//! Why a directory is no simulated host.

use std::io;
use std::path::{Path, PathBuf};

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
    /// There is no tokio runtime to live in.
    #[error("a simulated host needs a tokio runtime")]
    NoRuntime,
}

impl OpenError {
    pub(super) fn text(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Text { path: path.to_owned(), reason: reason.to_string() }
    }
}
