//! The time type of the records. Only the store reads the clock.

/// Milliseconds since 1970-01-01 UTC.
pub type Millis = i64;
