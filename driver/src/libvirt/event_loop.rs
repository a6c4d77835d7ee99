//! libvirt's event loop: one for the process, on a thread of its own.
//!
//! Events, keepalive and the noticing of a broken connection all happen in it. It must run before the first
//! connection is opened. It sleeps until a socket or a timer of libvirt's wakes it.

use std::sync::OnceLock;
use std::time::Duration;

use tracing::error;

/// Starts the loop, once; later calls answer what the first one did.
pub(super) fn start() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            virt::error::clear_error_callback(); // libvirt prints every error to stderr by itself
            virt::event::event_register_default_impl().map_err(|error| error.to_string())?;
            let thread = std::thread::Builder::new().name("libvirt-events".into());
            thread.spawn(run).map_err(|error| format!("no thread for libvirt's event loop: {error}"))?;
            Ok(())
        })
        .clone()
}

fn run() {
    loop {
        if let Err(error) = virt::event::event_run_default_impl() {
            error!("libvirt's event loop: {error}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}
