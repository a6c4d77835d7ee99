//! `hotslot detach`: detaches devices, and waits until their guests have released them.

use clap::Args;
use clap_complete::ArgValueCompleter;
use serde_json::{Value, json};

use crate::argument::time_limit;
use crate::client::query_string;
use crate::device_name::DeviceName;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::value::at;
use crate::wait::{Watched, watching};
use crate::{Cli, attachment, complete, lookup, trace};

/// The examples in `--help`.
pub(crate) const HELP: &str = "\
Examples:
  hotslot detach 3f2a
  hotslot detach 3f2a 91c0 --no-wait
  hotslot detach vm1 vf --timeout 30s
  hotslot detach vm1 0000:3b:10.0
  hotslot detach vm1 --all";

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// The id of an attachment, or an unambiguous beginning of it. Or a server, followed by its attachments: their aliases,
    /// their addresses on the host or in the guest, or their ids.
    #[arg(value_name = "ATTACHMENT|SERVER", add = ArgValueCompleter::new(complete::detachable))]
    first: String,
    /// The attachments of that server, or more attachments.
    #[arg(value_name = "ALIAS|ADDRESS|ATTACHMENT", add = ArgValueCompleter::new(complete::detachable_too))]
    more: Vec<String>,
    /// Detach all devices of the server.
    #[arg(long)]
    all: bool,
    /// Only send the unplug requests; do not wait until the guests have released the devices.
    #[arg(long)]
    no_wait: bool,
    /// The time limit for unplug requests and waiting: 30s, 500ms, 2m. By default [detach] of the configuration
    /// applies.
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    timeout: Option<String>,
    /// Send the unplug request even if a policy forbids it, and keep the device out of the server's definition even if
    /// the guest refuses. A running guest still keeps the device until it releases it.
    #[arg(long)]
    force: bool,
    /// Also print how long each step and each call of libvirt took. This is for administrators.
    #[arg(long, conflicts_with = "no_wait")]
    trace: bool,
}

impl Detach {
    /// Detaches as many of the devices as possible. Returns the highest of their exit codes.
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let wanted = self.wanted(cli).await?;
        let what = match &wanted[..] {
            [(id, _)] => format!("detaching {}", id.get(..8).unwrap_or(id)),
            several => format!("detaching {} devices", several.len()),
        };
        let first = wanted.iter().find_map(|(_, found)| found.as_ref().ok());
        let watched = first.map(|attachment| Watched {
            client: cli.client.clone(),
            server: at(attachment, "/serverId"),
            operation: "detach",
        });
        let query = self.query()?;
        let work = detach(cli, wanted, &query, !self.no_wait);
        let outcomes = watching(cli.output, &what, watched, work).await?;
        let done = if self.no_wait { "detaching" } else { "detached" };
        if cli.output.is_data() {
            output::data(cli.output, &outcomes.iter().map(|outcome| outcome.json(done)).collect())?;
        }
        if outcomes.is_empty() && !cli.output.is_data() {
            output::note(cli.output, &format!("{} has no PCI attachments", self.first));
        }
        for Outcome { id, result } in &outcomes {
            match result {
                Ok(_) if cli.output.is_names() => output::print(&format!("{id}\n"))?,
                Ok((address, trace)) if !cli.output.is_data() => {
                    output::print(&format!("{done} {id} ({address})\n"))?;
                    trace::print_if(cli.output, trace)?;
                }
                Ok(_) => {}
                Err(failure) => output::complain(&failure.to_string()),
            }
        }
        let exits =
            outcomes.iter().map(|outcome| outcome.result.as_ref().map_or_else(Failure::exit, |_| Exit::Done));
        Ok(exits.max().unwrap_or(Exit::Done))
    }

    /// Finds the attachments that are to be detached, each once.
    async fn wanted(&self, cli: &Cli) -> Result<Vec<(String, Result<Value, Failure>)>, Failure> {
        let all = attachment::all(cli).await?;
        let is_id = |name: &String| {
            attachment::find(&all, name).map_err(|failure| failure.exit()) != Err(Exit::NotFound)
        };
        let mut wanted: Vec<(String, Result<Value, Failure>)> = Vec::new();
        let mut add = |name: &str, found: Result<Value, Failure>| {
            let id = found.as_ref().map_or_else(|_| name.to_owned(), |found| at(found, "/attachment_id"));
            if wanted.iter().all(|(other, _)| *other != id) {
                wanted.push((id, found));
            }
        };
        match (&self.first, &self.more[..]) {
            (server, []) if self.all => {
                for attachment in of_server(cli, &all, server).await? {
                    add("", Ok(attachment));
                }
            }
            _ if self.all => {
                return Err(Failure::new(
                    Exit::Usage,
                    "--all is for one server: `hotslot detach SERVER --all`",
                ));
            }
            (server, devices) if !devices.is_empty() && !is_id(server) => {
                // An attachment that has ended is no longer among those of the server, but its detach succeeds.
                let ended = attachment::one(cli, &all, server).await;
                if let Ok(ended) = ended {
                    add(server, Ok(ended));
                    for name in devices {
                        add(name, attachment::one(cli, &all, name).await);
                    }
                } else {
                    let own = of_server(cli, &all, server).await?;
                    for name in devices {
                        add(name, named(&own, server, name));
                    }
                }
            }
            (first, more) => {
                for name in std::iter::once(first).chain(more) {
                    // A detach of an attachment that has ended succeeds, so that a client which missed the response can
                    // repeat it.
                    let found = attachment::one(cli, &all, name).await;
                    if matches!(&found, Err(failure) if failure.exit() == Exit::NotFound)
                        && let Ok(server) = lookup::server(cli, name).await
                        && cli.client.item(&["servers", &server], "server").await.is_ok()
                    {
                        let message = format!(
                            "{name} is a server; name its devices too (`hotslot attachment list {name}` lists them), or \
                             add --all"
                        );
                        return Err(Failure::new(Exit::Usage, message));
                    }
                    add(name, found);
                }
            }
        }
        Ok(wanted)
    }

    fn query(&self) -> anyhow::Result<String> {
        let query = query(self.timeout.clone(), self.force)?;
        let trace = self.trace.then_some(trace::QUERY);
        let given = [Some(query.as_str()).filter(|query| !query.is_empty()), trace];
        Ok(given.into_iter().flatten().collect::<Vec<_>>().join("&"))
    }
}

/// Returns the attachments of a server that have not ended.
async fn of_server(cli: &Cli, all: &[Value], server: &str) -> Result<Vec<Value>, Failure> {
    let id = lookup::server(cli, server).await?;
    Ok(all.iter().filter(|attachment| attachment["serverId"] == id).cloned().collect())
}

/// Finds the one attachment of a server with this alias, address on the host, address in the guest, or beginning of its
/// id.
fn named(own: &[Value], server: &str, name: &str) -> Result<Value, Failure> {
    let address = match name.parse() {
        Ok(DeviceName::Address(address)) => Some(address.to_string()),
        Ok(_) | Err(_) => None,
    };
    let is = |attachment: &&Value| match &address {
        Some(address) => attachment["address"] == **address || attachment["inner_address"] == **address,
        None => attachment["alias"] == name,
    };
    let mut found: Vec<_> = own.iter().filter(is).collect();
    if let Some(address) = &address
        && found.len() > 1
    {
        // Where an address of the host is also one in the guest, the one that `attach` takes has precedence.
        found.retain(|attachment| attachment["address"] == **address);
    }
    match found[..] {
        [one] => Ok(one.clone()),
        [] => attachment::find(own, name).cloned().map_err(|failure| {
            let message = format!(
                "{server} has no attachment `{name}`; `hotslot attachment list {server}` lists those it has"
            );
            Failure::new(failure.exit(), message)
        }),
        _ => {
            let lines: String = found
                .iter()
                .map(|it| format!("\n  {}  {}", address_of(it), at(it, "/attachment_id")))
                .collect();
            let message = format!(
                "{server} has several devices of alias {name}; name one by its address or id:{lines}"
            );
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

/// The address by which the caller can name an attachment: that on the host or, where the caller may not see it, that in the
/// guest.
fn address_of(attachment: &Value) -> String {
    match at(attachment, "/address") {
        hidden if hidden == "-" => at(attachment, "/inner_address"),
        address => address,
    }
}

/// Returns the query of a DELETE with the options of a detach that were given.
pub(crate) fn query(timeout: Option<String>, force: bool) -> anyhow::Result<String> {
    let timeout = timeout.map(|timeout| ("timeout", timeout));
    let force = force.then(|| ("force", "true".to_owned()));
    query_string(&timeout.into_iter().chain(force).collect::<Vec<_>>())
}

/// The result for one attachment: the address of the device and the trace, or the failure.
struct Outcome {
    id: String,
    result: Result<(String, Value), Failure>,
}

impl Outcome {
    fn json(&self, done: &str) -> Value {
        match &self.result {
            Ok((_, trace)) => {
                let mut outcome = json!({ "attachment_id": self.id, "status": done, "error": null });
                if !trace.is_null() {
                    outcome["trace"] = trace.clone();
                }
                outcome
            }
            Err(failure) => {
                json!({ "attachment_id": self.id, "status": "failed", "error": failure.to_string() })
            }
        }
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
                        let trace =
                            |mut body: Value| body.get_mut("trace").map(Value::take).unwrap_or_default();
                        gone.map(|body| (address_of(&attachment), trace(body))).map_err(with_id)
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

    #[test]
    fn a_device_of_a_server_is_named_by_its_alias_an_address_or_its_id() {
        let own = [
            json!({ "attachment_id": "a1b2c3", "alias": "vf", "address": "0000:3b:10.0", "inner_address": "0000:05:00.0" }),
            json!({ "attachment_id": "c3d4", "alias": "gpu", "address": "0000:05:00.0", "inner_address": null }),
            json!({ "attachment_id": "e5f6", "alias": "gpu", "address": "0000:06:00.0", "inner_address": null }),
        ];
        let found = |name: &str| named(&own, "web1", name).map(|it| at(&it, "/attachment_id"));
        for (name, id) in [
            ("vf", "a1b2c3"),
            ("3b:10.0", "a1b2c3"),
            ("0000:05:00.0", "c3d4"),
            ("06:00.0", "e5f6"),
            ("a1b2", "a1b2c3"),
        ] {
            assert_eq!(found(name).unwrap(), id, "{name}");
        }
        let several = found("gpu").unwrap_err();
        assert_eq!(several.exit(), Exit::Usage);
        assert!(several.to_string().contains("0000:06:00.0  e5f6"), "{several}");
        assert_eq!(found("nope").unwrap_err().exit(), Exit::NotFound);
        // A member does not see the addresses of the host.
        let own = ["0000:05:00.0", "0000:06:00.0"].map(
            |inner| json!({ "attachment_id": "a1b2", "alias": "vf", "address": null, "inner_address": inner }),
        );
        let several = named(&own, "web1", "vf").unwrap_err();
        assert!(several.to_string().ends_with(":\n  0000:05:00.0  a1b2\n  0000:06:00.0  a1b2"), "{several}");
    }

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
            ("3f2a --trace", "trace=1"),
            ("3f2a --trace --timeout 30s", "timeout=30s&trace=1"),
        ] {
            let line = Line::try_parse_from(format!("detach {line}").split(' ')).unwrap();
            assert_eq!(line.detach.query().unwrap(), query);
        }
    }
}
