//! What a command waits for, shown on stderr: a line that moves on a terminal, and a line every ten seconds elsewhere.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use hotslot_driver::text::escape;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// The time between two movements of the line on a terminal.
const FRAME: Duration = Duration::from_millis(120);
/// The time between two requests for the progress.
const POLL: Duration = Duration::from_secs(1);
/// The time between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(10);

/// Waits for `work`, and shows `what` on stderr with the time since it began.
///
/// # Errors
/// [`Exit::Interrupted`] after Ctrl-C. The service continues with the request.
pub(crate) async fn waiting<T>(
    output: Output,
    what: &str,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    watching(output, what, None, work).await
}

/// The attachment whose progress is shown: the segments of its path.
pub(crate) struct Watched {
    pub(crate) client: Client,
    pub(crate) path: [String; 4],
}

/// Does the same as [`waiting`], and also shows how often the guest was asked to release the device of `watched`.
///
/// # Errors
/// As [`waiting`].
pub(crate) async fn watching<T>(
    output: Output,
    what: &str,
    watched: Option<Watched>,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    // indicatif draws only on a terminal.
    let bar = if output.is_quiet() { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(escape(what).into_owned());
    bar.enable_steady_tick(FRAME);
    let begun = Instant::now();
    let mut lines = tokio::time::interval_at(tokio::time::Instant::now() + LINE, LINE);
    let mut work = std::pin::pin!(work);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut asked = std::pin::pin!(ask(watched, what, &bar));
    let outcome = loop {
        tokio::select! {
            done = &mut work => break Ok(done),
            never = &mut asked => match never {},
            _ = &mut interrupt => {
                let message = "interrupted; the service continues with the request, see `hotslot attachment list`";
                break Err(Failure::new(Exit::Interrupted, message));
            }
            _ = lines.tick(), if bar.is_hidden() && !output.is_quiet() => {
                eprintln!("{}: {} s", bar.message(), begun.elapsed().as_secs());
            }
        }
    };
    bar.finish_and_clear();
    outcome
}

/// Reads the progress of an attachment again and again, and shows it. It never ends.
async fn ask(watched: Option<Watched>, what: &str, bar: &ProgressBar) -> Infallible {
    let Some(Watched { client, path }) = watched else { return std::future::pending().await };
    let path = path.each_ref().map(String::as_str);
    loop {
        tokio::time::sleep(POLL).await;
        let Ok(attachment) = client.item(&path, "pciAttachment").await else { continue };
        if let Some(told) = told(&attachment["progress"]) {
            bar.set_message(escape(&format!("{what}: {told}")).into_owned());
        }
    }
}

/// Returns the progress of a detach in words.
fn told(progress: &Value) -> Option<String> {
    let (attempt, attempts) = (progress["attempt"].as_u64()?, progress["attempts"].as_u64()?);
    let seconds = progress["seconds"].as_f64()?;
    // A detach with a time limit of its own repeats the requests until that time is over.
    let of = if attempt > attempts { String::new() } else { format!(" of {attempts}") };
    Some(format!("asked the guest, attempt {attempt}{of}, up to {seconds} s each"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_progress_of_a_detach_is_told_with_its_limit() {
        let progress = |attempt: u32| json!({ "attempt": attempt, "attempts": 8, "seconds": 20.0 });
        assert_eq!(told(&progress(2)).unwrap(), "asked the guest, attempt 2 of 8, up to 20 s each");
        assert_eq!(told(&progress(9)).unwrap(), "asked the guest, attempt 9, up to 20 s each");
        assert_eq!(told(&Value::Null), None);
    }

    #[tokio::test]
    async fn the_result_of_the_work_is_returned() {
        assert_eq!(waiting(Output::TABLE, "adding", async { 1 + 1 }).await.unwrap(), 2);
    }
}
