//! The clock for the times in rows.

use std::time::{SystemTime, UNIX_EPOCH};

use hotslot_model::time::Millis;

/// Returns the current time.
pub fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}
