//! What is shown while a guest is waited for: a spinner with the time gone by, where someone watches.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use crate::exit::{Exit, Failure};

const FRAMES: [char; 4] = ['|', '/', '-', '\\'];
const FRAME: Duration = Duration::from_millis(120);
/// Back to the start of the line, and nothing on it.
const ERASE: &str = "\r\x1b[K";

/// Waits for `work`, saying `what` on stderr when that is a terminal. Ctrl-C ends the waiting; the service goes
/// on.
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
                let message = "interrupted; the service goes on with it: `hotslot attachment list`";
                break Err(Failure::new(Exit::Interrupted, message));
            }
            _ = ticks.tick(), if watched => {
                let frame = frames.next().unwrap_or(&' ');
                eprint!("{ERASE}{frame} {what}  {} s", begun.elapsed().as_secs());
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
    async fn what_was_waited_for_is_handed_on() {
        assert_eq!(waiting("adding", async { 1 + 1 }).await.unwrap(), 2);
    }
}
