//! Why a caller may not do something.

/// A caller may not do what was requested. The text says what is required.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

impl Refusal {
    /// Makes a refusal for want of a right. The text says what is required and what the caller has.
    pub fn lacking(reason: &str) -> Self {
        Self(format!("{reason}; ask an administrator for it, or see with GET caller who you are"))
    }

    /// Makes a refusal with this text.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
