//! What a command waits for, shown on stderr: a line that moves on a terminal, and a line every ten seconds elsewhere.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use hotslot_driver::text::escape;
use hotslot_model::under_way::{step, unplug_request};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::table::progress_width;
use crate::value::seconds_between;

/// The time between two movements of the line on a terminal.
const FRAME: Duration = Duration::from_millis(120);
/// The time between two requests for the progress.
const POLL: Duration = Duration::from_secs(1);
/// The time between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(10);

/// The room on a line for what is beside its text: the sign that moves, and the time.
const BESIDE: usize = 10;

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

/// The attachments of a server whose progress is shown.
pub(crate) struct Watched {
    pub(crate) client: Client,
    /// The id of the server.
    pub(crate) server: String,
    /// What is under way: `attach` or `detach`.
    pub(crate) operation: &'static str,
}

/// Does the same as [`waiting`], and also shows the step of the operation on the server of `watched`, with its limit.
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
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
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

/// Reads the progress of the attachments of a server again and again, and shows it. It never ends.
async fn ask(watched: Option<Watched>, what: &str, bar: &ProgressBar) -> Infallible {
    let Some(Watched { client, server, operation }) = watched else { return std::future::pending().await };
    let path = ["servers", &server, "os-pci_attachments"];
    let terminal = progress_width();
    loop {
        tokio::time::sleep(POLL).await;
        let Ok(attachments) = client.items(&path, "pciAttachment").await else { continue };
        let mut under_way = attachments.iter().filter(|one| one["operation"]["name"] == operation);
        if let Some(stage) = under_way.find_map(stage) {
            // On a terminal the line is cut at its end, so the limit goes before the name.
            let whole = format!("{what}: {stage}");
            let fits = terminal.is_none_or(|width| whole.chars().count() + BESIDE <= width);
            bar.set_message(escape(if fits { &whole } else { &stage }).into_owned());
        }
    }
}

/// Returns in words what the service is doing for an attachment, and how long it may take.
pub(crate) fn stage(attachment: &Value) -> Option<String> {
    if let Some(asked) = unplug_request(&attachment["progress"]) {
        return Some(asked);
    }
    let operation = &attachment["operation"];
    let step = step(operation["step"].as_str()?);
    let limit = seconds_between(&operation["step_began_at"], &operation["ends_by"]);
    Some(limit.map_or_else(|| step.to_owned(), |limit| format!("{step}, up to {limit} s")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_step_of_an_attach_is_told_with_its_limit() {
        let attachment = |step: &str, ends_by: Value| {
            json!({ "operation": { "name": "attach", "step": step, "step_began_at": "2026-11-21T12:00:00Z",
                                   "ends_by": ends_by } })
        };
        let plug = attachment("plug", "2026-11-21T12:02:00Z".into());
        assert_eq!(stage(&plug).unwrap(), "libvirt is plugging the device, up to 120 s");
        assert_eq!(stage(&attachment("settle", Value::Null)).unwrap(), "recording the result");
        assert_eq!(stage(&json!({ "attachment_id": "a" })), None);
    }

    #[tokio::test]
    async fn the_result_of_the_work_is_returned() {
        assert_eq!(waiting(Output::TABLE, "adding", async { 1 + 1 }).await.unwrap(), 2);
    }
}
