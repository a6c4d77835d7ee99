//! `hotslot attachment`: lists and shows the attachments of devices to guests.

use std::collections::HashMap;

use clap::Subcommand;
use clap_complete::ArgValueCompleter;
use serde_json::Value;

use crate::exit::{Exit, Failure};
use crate::lookup::Noun;
use crate::output;
use crate::table::{Column, column, message};
use crate::value::at;
use crate::{Cli, columns, complete, lookup};

#[derive(Debug, Subcommand)]
pub(crate) enum AttachmentCommand {
    /// List the devices that are attached to servers, or are being attached or detached.
    List {
        /// Only the attachments of this server: its UUID or its name.
        #[arg(add = ArgValueCompleter::new(complete::servers))]
        server: Option<String>,
        /// List the attachments that have ended, the latest first, instead of the current ones.
        #[arg(long)]
        ended: bool,
        /// Show more columns.
        #[arg(short, long)]
        long: bool,
    },
    /// Show all properties of one attachment, whether it has ended or not.
    Show {
        /// The id of the attachment, or an unambiguous beginning of it.
        #[arg(add = ArgValueCompleter::new(complete::attachment_ids))]
        attachment: String,
    },
}

impl AttachmentCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::List { server, ended, long } => list(cli, server.as_deref(), ended, long).await,
            Self::Show { attachment } => show(cli, &attachment).await,
        }
    }
}

/// Gets the current attachments of all servers.
pub(crate) async fn all(cli: &Cli) -> Result<Vec<Value>, Failure> {
    cli.client.items(&["os-pci_attachments"], "pciAttachment").await
}

/// Gets the latest ended attachments of all servers.
pub(crate) async fn ended(cli: &Cli) -> Result<Vec<Value>, Failure> {
    cli.client.query(&["os-pci_attachments"], "ended=true", "pciAttachment").await
}

/// Finds the one attachment whose id begins with `prefix`.
///
/// # Errors
/// As [`Noun::find`].
pub(crate) fn find<'a>(attachments: &'a [Value], prefix: &str) -> Result<&'a Value, Failure> {
    const ATTACHMENTS: Noun =
        Noun { noun: "PCI attachment", id: "/attachment_id", name: None, list: "`hotslot attachment list`" };
    ATTACHMENTS.find(attachments, prefix)
}

/// Finds the one attachment whose id begins with `prefix`: a current one of `all`, or else one that has ended.
///
/// # Errors
/// As [`Noun::find`].
pub(crate) async fn one(cli: &Cli, all: &[Value], prefix: &str) -> Result<Value, Failure> {
    match find(all, prefix) {
        Err(failure) if failure.exit() == Exit::NotFound => find(&ended(cli).await?, prefix).cloned(),
        found => found.cloned(),
    }
}

async fn list(cli: &Cli, server: Option<&str>, ended: bool, long: bool) -> anyhow::Result<Exit> {
    let attachments = match server {
        Some(server) => {
            let id = lookup::server(cli, server).await?;
            let query = if ended { "ended=true" } else { "" };
            cli.client.query(&["servers", &id, "os-pci_attachments"], query, "pciAttachment").await?
        }
        None if ended => self::ended(cli).await?,
        None => all(cli).await?,
    };
    let people = !cli.output.is_data() && !attachments.is_empty();
    let names = if people { lookup::server_names(cli).await? } else { HashMap::new() };
    let called = |attachment: &Value| columns::called(&names, &at(attachment, "/serverId"));
    let mut columns = columns::attachments();
    columns.splice(1..1, [Column::new("SERVER", called), column("HOST", "/host")]);
    if ended {
        columns.push(column("ENDED", "/ended_at"));
    }
    columns.extend([
        column("MAC", "/mac_address").wide(),
        column("VLAN", "/vlan").wide(),
        column("NETWORK", "/physical_network").wide(),
        column("TRUSTED", "/trusted").wide(),
        column("WHOLE GROUP", "/whole_group").wide(),
    ]);
    output::list(cli.output.long(long), "PCI attachments", &attachments, &columns)?;
    Ok(Exit::Done)
}

async fn show(cli: &Cli, prefix: &str) -> anyhow::Result<Exit> {
    let attachment = &one(cli, &all(cli).await?, prefix).await?;
    let mut lines = vec![
        column("ID", "/attachment_id").name(),
        column("Server", "/serverId"),
        column("Host", "/host"),
        column("Alias", "/alias"),
        column("Node device", "/dev_id"),
        Column::new("Vendor:product", columns::ids),
        column("Address", "/address"),
        Column::new("Inner address", columns::inner_address),
        column("Status", "/status"),
        message("Reason", "/status_reason"),
        column("Persistent", "/persistent"),
        column("Forced", "/forced"),
        column("Whole group", "/whole_group"),
        column("Created", "/created_at"),
        column("Attached", "/attached_at"),
        column("Updated", "/updated_at"),
    ];
    if !attachment["quarantine"].is_null() {
        lines.push(message("Quarantine", "/quarantine"));
    }
    if !attachment["ended_at"].is_null() {
        lines.push(column("Ended", "/ended_at"));
    }
    if !attachment["vgpu_type"].is_null() {
        lines.push(column("vGPU type", "/vgpu_type"));
    }
    if !attachment["mac_address"].is_null() {
        lines.extend(network());
    }
    output::show(cli.output, attachment, &lines)?;
    Ok(Exit::Done)
}

/// The properties of a VF of a NIC.
fn network() -> [Column<'static>; 8] {
    [
        column("MAC address", "/mac_address"),
        column("VLAN", "/vlan"),
        column("Network", "/physical_network"),
        column("Trusted", "/trusted"),
        column("Spoof check", "/spoof_check"),
        column("Link state", "/link_state"),
        column("Minimum rate", "/min_tx_rate"),
        column("Maximum rate", "/max_tx_rate"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_inner_address_is_shown_with_its_source() {
        let attachment = json!({ "inner_address": "0000:02:00.0", "inner_address_source": "verified" });
        assert_eq!(columns::inner_address(&attachment), "0000:02:00.0 (verified)");
        assert_eq!(
            columns::inner_address(&json!({ "inner_address": null, "inner_address_source": null })),
            "-"
        );
    }
}
