//! libvirt's event loop: one per process, on its own thread.
//!
//! The loop delivers events, answers keepalive and notices a broken connection. It must run before the first connection
//! is opened. It sleeps until one of libvirt's sockets or timers wakes it.

use std::sync::OnceLock;
use std::time::Duration;

use tracing::error;

/// Starts the loop once. Later calls return the result of the first one.
pub(super) fn start() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            virt::error::clear_error_callback(); // otherwise libvirt prints every error to stderr
            virt::event::event_register_default_impl().map_err(|error| error.to_string())?;
            let thread = std::thread::Builder::new().name("libvirt-events".into());
            thread
                .spawn(run)
                .map_err(|error| format!("cannot start the thread of libvirt's event loop: {error}"))?;
            Ok(())
        })
        .clone()
}

fn run() {
    loop {
        if let Err(error) = virt::event::event_run_default_impl() {
            error!("libvirt's event loop failed: {error}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}
