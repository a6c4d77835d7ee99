//! A progress indicator with the elapsed time, shown while a command waits and stderr is a terminal.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use hotslot_driver::text::escape;

use crate::exit::{Exit, Failure};

const FRAMES: [char; 4] = ['|', '/', '-', '\\'];
const FRAME: Duration = Duration::from_millis(120);
/// Returns to the start of the line and erases it.
const ERASE: &str = "\r\x1b[K";

/// Waits for `work`, and shows `what` on stderr when that is a terminal.
///
/// # Errors
/// [`Exit::Interrupted`] after Ctrl-C. The service continues with the request.
pub(crate) async fn waiting<T>(what: &str, work: impl Future<Output = T>) -> Result<T, Failure> {
    let watched = std::io::stderr().is_terminal();
    let begun = Instant::now();
    let mut frames = FRAMES.iter().cycle();
    let mut ticks = tokio::time::interval(FRAME);
    let mut work = std::pin::pin!(work);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let outcome = loop {
        tokio::select! {
            done = &mut work => break Ok(done),
            _ = &mut interrupt => {
                let message = "interrupted; the service continues with the request, see `hotslot attachment list`";
                break Err(Failure::new(Exit::Interrupted, message));
            }
            _ = ticks.tick(), if watched => {
                let frame = frames.next().unwrap_or(&' ');
                eprint!("{ERASE}{frame} {}  {} s", escape(what), begun.elapsed().as_secs());
            }
        }
    };
    if watched {
        eprint!("{ERASE}");
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_result_of_the_work_is_returned() {
        assert_eq!(waiting("adding", async { 1 + 1 }).await.unwrap(), 2);
    }
}
