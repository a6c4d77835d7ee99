//! Time, as the records have it. The clock is read by the store, not here.

/// Milliseconds since 1970-01-01 UTC.
pub type Millis = i64;
