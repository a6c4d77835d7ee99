//! Why a caller is not identified.

/// A caller cannot be identified, or may not connect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// The request does not show who calls.
    #[error("{0}")]
    Unknown(String),
    /// The caller is known, but has no right at all.
    #[error("{0}")]
    Refused(String),
    /// Callers cannot be identified at present.
    #[error("{0}")]
    Away(String),
}
