//! The heap of the service: memory that a large host needed for a moment goes back to the kernel.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// The number of arenas that threads allocate from. By default glibc makes up to eight for each core, and memory that is
/// freed in one of them is not used by another.
const ARENAS: i32 = 2;

/// Free memory at the top of an arena is returned to the kernel from this size on, in bytes. This is glibc's first value;
/// setting it keeps glibc from raising it after a large block was freed.
const TRIM: i32 = 128 * 1024;

/// Sets the parameters of glibc's allocator (mallopt(3)). Call it before other threads start.
#[allow(unsafe_code)]
pub(crate) fn keep_small() {
    // SAFETY: mallopt only stores the two numbers, and no other thread runs yet.
    let set =
        unsafe { [libc::mallopt(libc::M_ARENA_MAX, ARENAS), libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM)] };
    if set.contains(&0) {
        tracing::debug!("the parameters of the heap could not be set");
    }
}

/// When free memory is returned to the kernel for the first time: many hosts have been read then.
const FIRST: Duration = Duration::from_secs(10);

/// How often free memory is returned afterwards.
const EVERY: Duration = Duration::from_secs(60);

/// Returns free memory inside the arenas to the kernel now and then (malloc_trim(3)), which glibc does not do by itself.
/// It does not end.
#[allow(unsafe_code)]
pub(crate) async fn give_back() {
    let mut ticks = interval_at(Instant::now() + FIRST, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // SAFETY: malloc_trim has no requirements, and takes the locks of the arenas as other threads do.
        let done = tokio::task::spawn_blocking(|| unsafe { libc::malloc_trim(0) }).await;
        if done.is_err() {
            return;
        }
    }
}
