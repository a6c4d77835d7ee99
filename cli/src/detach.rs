//! `hotslot detach`: unplugs devices, and waits until their guests let go.

use clap::Args;
use serde_json::{Value, json};

use crate::client::query_string;
use crate::exit::{Exit, Failure};
use crate::output::{self, Format, at};
use crate::wait::waiting;
use crate::{Cli, attachment};

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// Which: ids of attachments, or as much of their beginnings as tells them from the others.
    #[arg(required = true, value_name = "ATTACHMENT")]
    attachments: Vec<String>,
    /// Ask for it, and do not wait until the guests let go.
    #[arg(long)]
    no_wait: bool,
    /// How long the guests are asked and waited for: 30s, 500ms, 2m; without, as the service is configured.
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
    /// Ask in spite of a policy against it, and leave the device out of the definition whatever the guest says. A guest
    /// that runs keeps the device all the same until it lets go.
    #[arg(long)]
    force: bool,
}

impl Detach {
    /// Detaches all that it can; the worst outcome is that of the command.
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let (all, mut ended) = (attachment::all(cli).await?, None);
        let mut asked: Vec<(String, Result<Value, Failure>)> = Vec::new();
        for prefix in &self.attachments {
            let mut found = attachment::find(&all, prefix).cloned();
            // What has gone is asked for again by whoever did not hear of it: the outcome is the same.
            if found.as_ref().is_err_and(|failure| failure.exit() == Exit::NotFound) {
                if ended.is_none() {
                    ended = Some(attachment::ended(cli).await?);
                }
                found = attachment::find(ended.as_deref().unwrap_or_default(), prefix).cloned();
            }
            let id = found.as_ref().map_or_else(|_| prefix.clone(), |found| at(found, "/attachment_id"));
            if asked.iter().all(|(other, _)| *other != id) {
                asked.push((id, found));
            }
        }
        let what = match &asked[..] {
            [(id, _)] => format!("detaching {id}"),
            several => format!("detaching {} devices", several.len()),
        };
        let outcomes = waiting(&what, detach(cli, asked, &self.query()?, !self.no_wait)).await?;
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
        let timeout = self.timeout.clone().map(|timeout| ("timeout", timeout));
        let force = self.force.then(|| ("force", "true".to_owned()));
        query_string(&timeout.into_iter().chain(force).collect::<Vec<_>>())
    }
}

/// What became of one attachment: the device's address, or why it is there still.
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

/// Detaches all at once, since each guest takes its time, and answers in the order asked.
async fn detach(
    cli: &Cli,
    asked: Vec<(String, Result<Value, Failure>)>,
    query: &str,
    wait: bool,
) -> Vec<Outcome> {
    let tasks: Vec<_> = asked
        .into_iter()
        .map(|(id, found)| {
            let (client, query) = (cli.client.clone(), query.to_owned());
            tokio::spawn(async move {
                let result = match found {
                    Ok(attachment) => {
                        let path = ["servers", &at(&attachment, "/serverId"), "os-pci_attachments", &id];
                        let told =
                            |failure: Failure| Failure::new(failure.exit(), format!("{id}: {failure}"));
                        let gone = client.delete(&path, &query, wait).await;
                        gone.map(|()| at(&attachment, "/address")).map_err(told)
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
    fn what_is_asked_for_stands_in_the_query() {
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
