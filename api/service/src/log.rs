//! The levels of the log, which can be changed while the service runs. Like the log, they belong to the process.

use std::sync::{Mutex, OnceLock, PoisonError};

use crate::config::Levels;

/// Puts levels in force.
type Apply = Box<dyn Fn(&Levels) -> Result<(), String> + Send + Sync>;

struct Log {
    now: Mutex<Levels>,
    apply: Apply,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Says which levels are in force, and how others are put in force. Only the first call has an effect.
pub fn install(now: Levels, apply: impl Fn(&Levels) -> Result<(), String> + Send + Sync + 'static) {
    let _ = LOG.set(Log { now: Mutex::new(now), apply: Box::new(apply) });
}

/// The levels in force; `None` when the program has no log that can be changed.
pub fn levels() -> Option<Levels> {
    LOG.get().map(|log| log.now.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Puts levels in force, and logs that.
///
/// # Errors
/// When the program has no log that can be changed.
pub fn set_levels(levels: &Levels) -> Result<(), String> {
    let log = LOG.get().ok_or("the log of this program has fixed levels")?;
    let mut now = log.now.lock().unwrap_or_else(PoisonError::into_inner);
    if *now == *levels {
        return Ok(());
    }
    tracing::info!(from = %now, to = %levels, "the levels of the log change");
    (log.apply)(levels)?;
    *now = levels.clone();
    Ok(())
}
