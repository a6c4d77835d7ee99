//! Why a caller may not do something.

/// A caller may not do what was requested. The text says what is required.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

impl Refusal {
    /// Makes a refusal with this text.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
