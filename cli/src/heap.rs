//! The heap of the service: memory that a large host needed for a moment goes back to the kernel.

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
