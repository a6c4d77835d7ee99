//! `hotslot drift`: reports where the records, the guests and the hosts disagree, and repairs it with `--repair`.

use clap::Args;
use clap_complete::ArgValueCompleter;
use serde_json::{Value, json};

use crate::exit::Exit;
use crate::output;
use crate::remedy::by_commands;
use crate::table::{Column, column, id, message};
use crate::value::at;
use crate::wait::waiting;
use crate::{Cli, complete, lookup};

#[derive(Debug, Args)]
pub(crate) struct Drift {
    /// Only this host.
    #[arg(long, add = ArgValueCompleter::new(complete::hosts))]
    host: Option<String>,
    /// Repair what can be repaired, and wait until that is finished.
    #[arg(long)]
    repair: bool,
}

/// The exit codes and examples in `--help`.
pub(crate) const HELP: &str = "\
The exit code is 0 when there is no disagreement or all were repaired, and 1 when one is left.

Examples:
  hotslot drift
  hotslot drift --repair --host node1";

impl Drift {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let host = match &self.host {
            Some(host) => Some(lookup::host_name(cli, host).await?),
            None => None,
        };
        let path = match &host {
            Some(host) => vec!["os-hypervisors", host, "drift"],
            None => vec!["drift"],
        };
        let answer = if self.repair {
            waiting(cli.output, "repairing", cli.client.post(&path, &json!({}))).await??
        } else {
            cli.client.get(&path).await?
        };
        let list = |key: &str| answer[key].as_array().map(Vec::as_slice).unwrap_or_default();
        let (found, unreachable) = (list("drift"), list("hosts_away"));
        if found.is_empty() && !cli.output.is_data() {
            let hosts = if unreachable.is_empty() { "" } else { " on the hosts that can be reached" };
            output::note(cli.output, &format!("nothing disagrees{hosts}"));
        } else {
            output::list(cli.output, "disagreements", found, &self.columns())?;
        }
        for host in unreachable {
            output::complain(&by_commands(&at(host, "/reason")));
        }
        let open = found.iter().any(|finding| finding["repaired"] != true);
        Ok(match (unreachable.is_empty(), open) {
            (false, _) => Exit::Unreachable,
            (true, true) => Exit::Failed,
            (true, false) => Exit::Done,
        })
    }

    fn columns(&self) -> Vec<Column<'static>> {
        let mut columns = vec![
            column("HOST", "/host"),
            column("KIND", "/kind"),
            Column::new("SERVER", server),
            column("ADDRESS", "/address"),
            id("ATTACHMENT", "/attachment_id"),
            Column::new("STATES", states).wrapped(),
        ];
        if self.repair {
            columns.push(Column::new("REPAIRED", repaired).wrapped());
        } else {
            columns.push(message("REPAIR", "/action"));
            columns.push(column("WHEN", "/done"));
        }
        columns
    }
}

/// The name of the server, or its UUID when the domain is not known.
fn server(finding: &Value) -> String {
    match at(finding, "/server_name") {
        name if name == "-" => at(finding, "/server_id"),
        name => name,
    }
}

/// What each source says about the finding: the record, the host, and the documents of the domain.
fn states(finding: &Value) -> String {
    let states = finding["said"].as_object().into_iter().flatten();
    states
        .map(|(source, text)| format!("{source}: {}", by_commands(&at(text, ""))))
        .collect::<Vec<_>>()
        .join("; ")
}

fn repaired(finding: &Value) -> String {
    if finding["repaired"] == true {
        "yes".into()
    } else {
        format!("no: {}", by_commands(&at(finding, "/left")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::answering;
    use crate::output::Output;

    #[tokio::test]
    async fn the_exit_code_tells_whether_a_disagreement_is_left() {
        let finding = |repaired: Value| json!({ "kind": "stray", "host": "node1", "repaired": repaired });
        let away = json!([{ "host": "node2", "reason": "the hypervisor of host node2 is away" }]);
        for (drift, away, repair, exit) in [
            (json!([]), json!([]), false, Exit::Done),
            (json!([finding(Value::Null)]), json!([]), false, Exit::Failed),
            (json!([finding(true.into())]), json!([]), true, Exit::Done),
            (json!([finding(true.into()), finding(false.into())]), json!([]), true, Exit::Failed),
            (json!([]), away, false, Exit::Unreachable),
        ] {
            let answer = json!({ "drift": drift, "hosts_away": away });
            let (outcome, _) = answering(vec![("drift", 200, answer)], async |client| {
                Drift { host: None, repair }.run(&Cli { client, output: Output::JSON }).await
            })
            .await;
            assert_eq!(outcome.unwrap(), exit);
        }
    }

    #[test]
    fn a_finding_is_formatted_in_one_line() {
        let finding = json!({
            "server_name": null, "server_id": "10000000-0000-4000-8000-000000000001",
            "said": { "live": "has it", "record": "detached" }, "repaired": false, "left": "the guest is paused",
        });
        assert_eq!(server(&finding), "10000000-0000-4000-8000-000000000001");
        assert_eq!(states(&finding), "live: has it; record: detached");
        assert_eq!(repaired(&finding), "no: the guest is paused");
    }
}
