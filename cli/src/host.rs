//! `hotslot host`: lists the configured hosts and their profiles, and says what may be changed on them.

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use serde_json::{Value, json};

use crate::exit::Exit;
use crate::output;
use crate::remedy::by_commands;
use crate::table::{Column, column, message};
use crate::value::at;
use crate::{Cli, columns, complete, lookup};

#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// List the configured hosts, and whether their hypervisors are reachable.
    List,
    /// Show one host, with its pools of assignable devices and the calls to its hypervisor that have not returned.
    Show {
        /// The name or id of the host, or an unambiguous beginning of the id.
        #[arg(add = ArgValueCompleter::new(complete::hosts))]
        host: String,
    },
    /// Show what the configuration says of the VFs and drivers of a host, and what the host has.
    ///
    /// `hotslot drift --repair` changes what differs.
    Profile {
        /// The name or id of the host, or an unambiguous beginning of the id. Without it, all hosts.
        #[arg(add = ArgValueCompleter::new(complete::hosts))]
        host: Option<String>,
    },
    /// Refuse every change on a host until it is thawed. What has begun is completed.
    ///
    /// Guests and their devices stay as they are, and what happens on the host is followed and shown.
    Freeze(Freeze),
    /// Attach nothing new on a host until it is thawed. What is attached can be detached.
    Drain(Freeze),
    /// Permit changes on a frozen or draining host again.
    Thaw {
        /// The name or id of the host, or an unambiguous beginning of the id.
        #[arg(add = ArgValueCompleter::new(complete::hosts))]
        host: String,
    },
}

/// The arguments of `hotslot host freeze` and `hotslot host drain`.
#[derive(Debug, Args)]
pub(crate) struct Freeze {
    /// The name or id of the host, or an unambiguous beginning of the id.
    #[arg(add = ArgValueCompleter::new(complete::hosts))]
    host: String,
    /// The reason, which is shown to callers who are refused.
    #[arg(long)]
    reason: Option<String>,
}

/// Sets what may be changed on a host, and shows it.
async fn set_mode(cli: &Cli, host: &str, mode: &str, reason: Option<String>) -> anyhow::Result<Exit> {
    let host = lookup::host_name(cli, host).await?;
    let body = json!({ "hypervisor_mode": { "mode": mode, "reason": reason } });
    cli.client.put(&["os-hypervisors", &host, "mode"], &body).await?;
    let host = cli.client.item(&["os-hypervisors", &host], "hypervisor").await?;
    output::show(
        cli.output,
        &host,
        &[column("Name", "/hypervisor_hostname").name(), Column::new("Mode", mode_of)],
    )?;
    Ok(Exit::Done)
}

/// Shows the functions that the profile of a host, or of each host, is about.
async fn show_profile(cli: &Cli, host: Option<&str>) -> anyhow::Result<()> {
    let hosts = match host {
        Some(host) => vec![lookup::host_name(cli, host).await?],
        None => {
            let hosts = cli.client.items(&["os-hypervisors"], "hypervisors").await?;
            hosts.iter().map(|host| at(host, "/hypervisor_hostname")).collect()
        }
    };
    let mut functions = Vec::new();
    for host in hosts {
        let entries = cli.client.items(&["os-hypervisors", &host, "profile"], "profile").await?;
        functions.extend(entries.iter().flat_map(|entry| profiled(&host, entry)));
    }
    let columns = [
        column("HOST", "/hypervisor_hostname"),
        column("ADDRESS", "/address").name(),
        column("ENTRY", "/place"),
        Column::new("PROFILE", wanted),
        Column::new("HOST HAS", has),
        Column::new("DIFFERS", differs).wrapped(),
    ];
    output::list(cli.output, "functions in the profile", &functions, &columns)
}

/// Returns the functions of an entry of a profile, each with what the entry says; one without an address when the host has
/// no such function.
fn profiled(host: &str, entry: &Value) -> Vec<Value> {
    let of_entry = |function: &Value| {
        let mut function = function.clone();
        function["hypervisor_hostname"] = host.into();
        function["place"] = entry["place"].clone();
        function["profile"] = json!({
            "vfs": entry["vfs"], "vgpu_type": entry["vgpu_type"], "driver": entry["driver"],
        });
        function
    };
    match entry["functions"].as_array().map(Vec::as_slice) {
        None | Some([]) => vec![of_entry(&json!({ "address": null, "vfs": [], "differences": [] }))],
        Some(functions) => functions.iter().map(of_entry).collect(),
    }
}

/// What an entry of a profile says of a function.
fn wanted(function: &Value) -> String {
    let profile = &function["profile"];
    let said = [
        profile["vfs"].as_u64().map(|number| format!("{number} {}", if number == 1 { "VF" } else { "VFs" })),
        profile["vgpu_type"].as_str().map(str::to_owned),
        profile["driver"].as_str().map(str::to_owned),
    ];
    said.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What the host has.
fn has(function: &Value) -> String {
    match (function["address"].as_str(), function["max_vfs"].as_u64()) {
        (None, _) => "no such function".into(),
        (Some(_), None) => at(function, "/driver"),
        (Some(_), Some(most)) => {
            format!("{} of {most} VFs", function["vfs"].as_array().map_or(0, Vec::len))
        }
    }
}

fn differs(function: &Value) -> String {
    let differences = function["differences"].as_array().into_iter().flatten();
    let said = |one: &Value| {
        let of =
            if one["address"] == function["address"] { String::new() } else { at(one, "/address") + ": " };
        format!("{of}{}: {}", at(one, "/host"), by_commands(&at(one, "/action")))
    };
    let all: Vec<_> = differences.map(said).collect();
    if all.is_empty() { "-".into() } else { all.join("; ") }
}

/// What may be changed on a host, and who decided that.
pub(crate) fn mode_of(host: &Value) -> String {
    let (mode, restriction) = (at(host, "/mode"), &host["restriction"]);
    if restriction["by"].is_null() {
        return mode;
    }
    let reason = if restriction["reason"].is_null() { String::new() } else { at(restriction, "/reason") };
    let colon = if reason.is_empty() { "" } else { ": " };
    format!("{mode} by {} since {}{colon}{reason}", at(restriction, "/by"), at(restriction, "/since"))
}

impl HostCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::List => {
                let hosts = cli.client.items(&["os-hypervisors", "detail"], "hypervisors").await?;
                let columns = [
                    column("NAME", "/hypervisor_hostname").name(),
                    Column::new("STATE", state),
                    column("MODE", "/mode"),
                    Column::new("HYPERVISOR", hypervisor),
                    Column::new("LIBVIRT", libvirt),
                    column("URI", "/uri").wrapped(),
                    column("ID", "/id").wide(),
                    message("REASON", "/state_reason"),
                ];
                output::list(cli.output, "hosts", &hosts, &columns)?;
            }
            Self::Show { host } => {
                let host = lookup::host(cli, &host).await?;
                let lines = [
                    column("Name", "/hypervisor_hostname").name(),
                    column("ID", "/id"),
                    Column::new("State", state),
                    message("Reason", "/state_reason"),
                    Column::new("Mode", mode_of),
                    Column::new("Hypervisor", hypervisor),
                    Column::new("libvirt", libvirt),
                    column("URI", "/uri"),
                    Column::new("Free devices", free),
                    Column::new("Stuck calls", stuck),
                ];
                output::show(cli.output, &host, &lines)?;
            }
            Self::Profile { host } => show_profile(cli, host.as_deref()).await?,
            Self::Freeze(Freeze { host, reason }) => return set_mode(cli, &host, "frozen", reason).await,
            Self::Drain(Freeze { host, reason }) => return set_mode(cli, &host, "draining", reason).await,
            Self::Thaw { host } => return set_mode(cli, &host, "open", None).await,
        }
        Ok(Exit::Done)
    }
}

/// Whether the hypervisor of a host is reachable.
pub(crate) fn state(host: &Value) -> String {
    match at(host, "/state") {
        down if down == "down" => "unreachable".into(),
        state => state,
    }
}

/// The number of free devices of each pool, by their ids.
fn free(host: &Value) -> String {
    let pools = host["pci_stats"].as_array().into_iter().flatten();
    let pool = |pool: &Value| {
        let node = pool["numa_node"].as_u64().map(|node| format!(" (NUMA node {node})")).unwrap_or_default();
        format!("{} {}{node}", at(pool, "/count"), columns::ids(pool))
    };
    let pools: Vec<_> = pools.map(pool).collect();
    if pools.is_empty() { "-".into() } else { pools.join(", ") }
}

fn stuck(host: &Value) -> String {
    let calls = host["stuck_calls"].as_array().into_iter().flatten();
    let calls: Vec<_> =
        calls.map(|call| format!("{} for {} s", at(call, "/operation"), at(call, "/seconds"))).collect();
    if calls.is_empty() { "none".into() } else { calls.join(", ") }
}

/// The version of libvirt of a host.
pub(crate) fn libvirt(host: &Value) -> String {
    version(&host["libvirt_version"]).unwrap_or("-".into())
}

/// The name and the version of the hypervisor of a host.
pub(crate) fn hypervisor(host: &Value) -> String {
    let kind = at(host, "/hypervisor_type");
    let named = match version(&host["hypervisor_version"]) {
        Some(version) => format!("{kind} {version}"),
        None => kind,
    };
    if host["simulated"] == true { format!("{named} (simulated)") } else { named }
}

fn version(number: &Value) -> Option<String> {
    number.as_u64().map(dotted)
}

/// Formats a version number of libvirt (major × 1,000,000 + minor × 1,000 + release) as `major.minor.release`.
pub(crate) fn dotted(version: u64) -> String {
    format!("{}.{}.{}", version / 1_000_000, version / 1_000 % 1_000, version % 1_000)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_simulated_host_is_marked() {
        let host = json!({ "hypervisor_type": "QEMU", "hypervisor_version": 10_000_002, "simulated": false });
        assert_eq!(hypervisor(&host), "QEMU 10.0.2");
        let host = json!({ "hypervisor_type": "QEMU", "hypervisor_version": 10_000_002, "simulated": true });
        assert_eq!(hypervisor(&host), "QEMU 10.0.2 (simulated)");
        assert_eq!(hypervisor(&json!({ "hypervisor_type": null })), "-");
    }

    #[test]
    fn the_mode_names_who_set_it_and_why() {
        let by = |by, reason| json!({ "by": by, "reason": reason, "since": "2026-11-29T06:00:00Z" });
        for (restriction, expected) in [
            (Value::Null, "frozen"),
            (by(None, None), "frozen"),
            (
                by(Some("user eve\u{1b} (u1)"), None),
                "frozen by user eve\\u{1b} (u1) since 2026-11-29T06:00:00Z",
            ),
            (by(Some("user a (u1)"), Some("x")), "frozen by user a (u1) since 2026-11-29T06:00:00Z: x"),
        ] {
            assert_eq!(mode_of(&json!({ "mode": "frozen", "restriction": restriction })), expected);
        }
    }
}
