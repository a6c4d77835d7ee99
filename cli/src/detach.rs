//! `hotslot detach`: detaches devices, and waits until their guests have released them.

use clap::Args;
use serde_json::{Value, json};

use crate::client::query_string;
use crate::exit::{Exit, Failure};
use crate::output::{self, Format, at};
use crate::wait::waiting;
use crate::{Cli, attachment};

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// The ids of the attachments, or unambiguous beginnings of them.
    #[arg(required = true, value_name = "ATTACHMENT")]
    attachments: Vec<String>,
    /// Only send the unplug requests; do not wait until the guests have released the devices.
    #[arg(long)]
    no_wait: bool,
    /// The time limit for unplug requests and waiting: 30s, 500ms, 2m. By default [detach] of the configuration
    /// applies.
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
    /// Send the unplug request even if a policy forbids it, and keep the device out of the domain's definition even if
    /// the guest refuses. A running guest still keeps the device until it releases it.
    #[arg(long)]
    force: bool,
}

impl Detach {
    /// Detaches as many of the devices as possible. Returns the highest of their exit codes.
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let (all, mut ended) = (attachment::all(cli).await?, None);
        let mut wanted: Vec<(String, Result<Value, Failure>)> = Vec::new();
        for prefix in &self.attachments {
            let mut found = attachment::find(&all, prefix).cloned();
            // A detach of an attachment that has ended succeeds, so that a client which missed the response can repeat
            // it.
            if found.as_ref().is_err_and(|failure| failure.exit() == Exit::NotFound) {
                if ended.is_none() {
                    ended = Some(attachment::ended(cli).await?);
                }
                found = attachment::find(ended.as_deref().unwrap_or_default(), prefix).cloned();
            }
            let id = found.as_ref().map_or_else(|_| prefix.clone(), |found| at(found, "/attachment_id"));
            if wanted.iter().all(|(other, _)| *other != id) {
                wanted.push((id, found));
            }
        }
        let what = match &wanted[..] {
            [(id, _)] => format!("detaching {id}"),
            several => format!("detaching {} devices", several.len()),
        };
        let outcomes = waiting(&what, detach(cli, wanted, &self.query()?, !self.no_wait)).await?;
        let done = if self.no_wait { "detaching" } else { "detached" };
        if cli.format == Format::Json {
            output::json(&outcomes.iter().map(|outcome| outcome.json(done)).collect())?;
        }
        for Outcome { id, result } in &outcomes {
            match result {
                Ok(address) if cli.format == Format::Table => {
                    output::print(&format!("{done} {id} ({address})\n"))?;
                }
                Ok(_) => {}
                Err(failure) => output::complain(&failure.to_string()),
            }
        }
        let exits =
            outcomes.iter().map(|outcome| outcome.result.as_ref().map_or_else(Failure::exit, |_| Exit::Done));
        Ok(exits.max().unwrap_or(Exit::Done))
    }

    fn query(&self) -> anyhow::Result<String> {
        query(self.timeout.clone(), self.force)
    }
}

/// Returns the query of a DELETE with the options of a detach that were given.
pub(crate) fn query(timeout: Option<String>, force: bool) -> anyhow::Result<String> {
    let timeout = timeout.map(|timeout| ("timeout", timeout));
    let force = force.then(|| ("force", "true".to_owned()));
    query_string(&timeout.into_iter().chain(force).collect::<Vec<_>>())
}

/// The result for one attachment: the address of the device, or the failure.
struct Outcome {
    id: String,
    result: Result<String, Failure>,
}

impl Outcome {
    fn json(&self, done: &str) -> Value {
        let (status, error) = match &self.result {
            Ok(_) => (done, None),
            Err(failure) => ("failed", Some(failure.to_string())),
        };
        json!({ "attachment_id": self.id, "status": status, "error": error })
    }
}

/// Detaches all attachments concurrently, because each guest needs its own time. Returns the outcomes in the order of
/// the arguments.
async fn detach(
    cli: &Cli,
    wanted: Vec<(String, Result<Value, Failure>)>,
    query: &str,
    wait: bool,
) -> Vec<Outcome> {
    let tasks: Vec<_> = wanted
        .into_iter()
        .map(|(id, found)| {
            let (client, query) = (cli.client.clone(), query.to_owned());
            tokio::spawn(async move {
                let result = match found {
                    Ok(attachment) => {
                        let path = ["servers", &at(&attachment, "/serverId"), "os-pci_attachments", &id];
                        let with_id =
                            |failure: Failure| Failure::new(failure.exit(), format!("{id}: {failure}"));
                        let gone = client.delete(&path, &query, wait).await;
                        gone.map(|()| at(&attachment, "/address")).map_err(with_id)
                    }
                    Err(failure) => Err(failure),
                };
                Outcome { id, result }
            })
        })
        .collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.extend(task.await);
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        detach: Detach,
    }

    #[test]
    fn the_query_contains_the_given_options() {
        for (line, query) in [
            ("3f2a", ""),
            ("3f2a --timeout 30s", "timeout=30s"),
            ("3f2a 91c0 --force", "force=true"),
            ("3f2a --force --timeout 2m --no-wait", "timeout=2m&force=true"),
        ] {
            let line = Line::try_parse_from(format!("detach {line}").split(' ')).unwrap();
            assert_eq!(line.detach.query().unwrap(), query);
        }
    }
}
