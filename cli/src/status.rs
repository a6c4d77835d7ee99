//! `hotslot status`: the state of the service on one screen, with an exit code for monitoring.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use crate::client::permitted;
use crate::exit::Exit;
use crate::output;
use crate::remedy::by_commands;
use crate::table::aligned;
use crate::value::at;
use crate::{Cli, columns, host, lookup};

/// The text in `--help`.
pub(crate) const HELP: &str = "\
The exit code is 0 when all is well; 1 when the service is not ready, a host is unreachable, a call to a hypervisor is stuck, \
a guest keeps a device whose detach was requested, the records differ from the guests or the hosts (drift), or a webhook did \
not accept events; and 5 when the service does not answer. With -q nothing is printed, so that a script can use the exit code \
alone.";

/// A line of the screen.
struct Line {
    what: String,
    state: String,
    /// Whether somebody has to do something about it.
    bad: bool,
}

impl Line {
    fn of(what: impl Into<String>, state: impl Into<String>, bad: bool) -> Self {
        Self { what: what.into(), state: state.into(), bad }
    }
}

/// Prints the state of the service.
pub(crate) async fn run(cli: &Cli) -> anyhow::Result<Exit> {
    let ready = cli.client.probe("readyz").await?;
    let service = cli.client.item(&["service"], "service").await?;
    let hosts = cli.client.items(&["os-hypervisors", "detail"], "hypervisors").await?;
    let attachments = permitted(cli.client.items(&["os-pci_attachments"], "pciAttachment").await)?;
    let drift = cli.client.get(&["drift"]).await?;
    let webhooks = cli.client.get(&["webhooks"]).await?["webhooks"].take();
    let mut lines = vec![
        Line::of(
            "service",
            format!("hotslot {}, {}", at(&service, "/version"), at(&ready, "/status")),
            ready["status"] != "ready",
        ),
        Line::of("database", at(&ready, "/database"), ready["database"] != "ok"),
    ];
    lines.extend(hosts.iter().flat_map(of_host));
    match &attachments {
        Some(attachments) => lines.extend(of_attachments(attachments, &lookup::server_names(cli).await?)),
        None => lines.push(Line::of("attachments", "you may not see them", false)),
    }
    lines.extend(of_drift(&drift, attachments.as_deref().unwrap_or_default()));
    lines.extend(webhooks.as_array().into_iter().flatten().map(of_webhook));
    let waiting: Vec<_> = service["needs_restart"].as_array().into_iter().flatten().collect();
    if !waiting.is_empty() {
        let waiting: Vec<_> = waiting.into_iter().map(|key| at(key, "")).collect();
        let state = format!("changed, in force after a restart of the service: {}", waiting.join(", "));
        lines.push(Line::of("configuration", state, false));
    }
    let warnings = ready["warnings"].as_array().into_iter().flatten();
    lines.extend(warnings.map(|warning| Line::of("warning", at(warning, ""), false)));
    let bad = lines.iter().any(|line| line.bad);
    if cli.output.is_data() {
        let lines =
            lines.iter().map(|line| json!({ "what": line.what, "state": line.state, "bad": line.bad }));
        output::data(cli.output, &lines.collect())?;
    } else if !cli.output.is_names() {
        let mark = |line: &Line| if line.bad { "!" } else { " " }.to_owned();
        let rows = lines.iter().map(|line| vec![mark(line), line.what.clone(), line.state.clone()]);
        output::print_table(&aligned(&rows.collect::<Vec<_>>()))?;
    }
    Ok(if bad { Exit::Failed } else { Exit::Done })
}

/// The lines of a host: its connection, and its stuck calls.
fn of_host(host: &Value) -> Vec<Line> {
    let name = format!("host {}", at(host, "/hypervisor_hostname"));
    let up = host["state"] == "up";
    let state = match host["mode"].as_str() {
        _ if !up => format!("unreachable: {}", at(host, "/state_reason")),
        Some("open") | None => "connected".to_owned(),
        Some(_) => format!("connected, {}", host::mode_of(host)),
    };
    let stuck = host["stuck_calls"].as_array().into_iter().flatten();
    let stuck = stuck.map(|call| {
        Line::of(
            name.clone(),
            format!("stuck for {} s: {}", at(call, "/seconds"), at(call, "/operation")),
            true,
        )
    });
    let stuck: Vec<_> = stuck.collect();
    std::iter::once(Line::of(name, state, !up)).chain(stuck).collect()
}

/// A line with how many attachments are in each state, and one for each that its guest keeps.
fn of_attachments(rows: &[Value], names: &HashMap<String, String>) -> Vec<Line> {
    let mut counts = BTreeMap::<String, u32>::new();
    for row in rows {
        *counts.entry(at(row, "/status")).or_default() += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
    let kept = rows.iter().filter(|row| is_kept(row)).map(|row| {
        let parts = [columns::called(names, &at(row, "/serverId")), at(row, "/alias"), at(row, "/address")];
        let parts: Vec<_> = parts.into_iter().filter(|part| part != "-").collect();
        Line::of(parts.join(" "), format!("detaching: {}", by_commands(&at(row, "/status_reason"))), true)
    });
    std::iter::once(Line::of("attachments", counts, false)).chain(kept).collect()
}

/// Whether a guest keeps a device whose detach was requested.
fn is_kept(attachment: &Value) -> bool {
    attachment["status"] == "detaching" && !attachment["status_reason"].is_null()
}

/// A line when the records, the guests and the hosts disagree. What guests keep has lines of its own.
fn of_drift(answer: &Value, attachments: &[Value]) -> Option<Line> {
    let of_kept = |finding: &&Value| {
        let mut kept = attachments.iter().filter(|one| is_kept(one));
        kept.any(|one| one["attachment_id"] == finding["attachment_id"])
    };
    let found = answer["drift"].as_array().into_iter().flatten().filter(|finding| !of_kept(finding)).count();
    let differences = if found == 1 { "1 difference" } else { &format!("{found} differences") };
    (found > 0).then(|| Line::of("drift", format!("{differences}; `hotslot drift` shows what to do"), true))
}

fn of_webhook(webhook: &Value) -> Line {
    let dead = webhook["dead_letter_count"].as_i64().unwrap_or_default();
    let advice =
        if dead > 0 { "; the page Webhooks (`hotslot ui`) says why, and sends them again" } else { "" };
    let state = format!("{} events behind, {dead} dead letters{advice}", at(webhook, "/behind"));
    Line::of(format!("webhook {}", at(webhook, "/name")), state, dead > 0)
}
