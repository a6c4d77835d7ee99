//! The clock by which rows are dated.

use std::time::{SystemTime, UNIX_EPOCH};

use hotslot_model::time::Millis;

/// The time now.
pub fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}
