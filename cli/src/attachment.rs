//! `hotslot attachment`: lists and shows the attachments of devices to guests.

use std::collections::HashMap;

use clap::Subcommand;
use serde_json::Value;

use crate::exit::{Exit, Failure};
use crate::output::{self, Column, Format, at, column, message};
use crate::{Cli, columns, lookup};

#[derive(Debug, Subcommand)]
pub(crate) enum AttachmentCommand {
    /// List the devices that are attached to guests, or are being attached or detached.
    List {
        /// Only the attachments of this guest: its UUID or its name.
        server: Option<String>,
        /// List the attachments that have ended, the latest first, instead of the current ones.
        #[arg(long)]
        ended: bool,
        /// Show more columns.
        #[arg(short, long)]
        long: bool,
    },
    /// Show all properties of one attachment.
    Show {
        /// The id of the attachment, or an unambiguous beginning of it.
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
/// [`Exit::NotFound`] when there is none, [`Exit::Usage`] when there are several.
pub(crate) fn find<'a>(attachments: &'a [Value], prefix: &str) -> Result<&'a Value, Failure> {
    let begins =
        |attachment: &&Value| at(attachment, "/attachment_id").starts_with(&prefix.to_ascii_lowercase());
    let found: Vec<_> = attachments.iter().filter(begins).collect();
    match found[..] {
        [one] => Ok(one),
        [] => {
            let message = format!("no PCI attachment {prefix}; `hotslot attachment list` lists them");
            Err(Failure::new(Exit::NotFound, message))
        }
        _ => {
            let ids: Vec<_> =
                found.iter().map(|attachment| format!("\n  {}", at(attachment, "/attachment_id"))).collect();
            let message = format!("several PCI attachments begin with `{prefix}`:{}", ids.concat());
            Err(Failure::new(Exit::Usage, message))
        }
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
    let people = cli.format == Format::Table && !attachments.is_empty();
    let names = if people { lookup::server_names(cli).await? } else { HashMap::new() };
    let called = |attachment: &Value| lookup::called(&names, &at(attachment, "/serverId"));
    let mut columns = columns::attachments();
    columns.splice(1..1, [Column("SERVER", Box::new(called)), column("HOST", "/host")]);
    if ended {
        columns.push(column("ENDED", "/ended_at"));
    }
    if long {
        columns.extend([
            column("MAC", "/mac_address"),
            column("VLAN", "/vlan"),
            column("NETWORK", "/physical_network"),
            column("TRUSTED", "/trusted"),
            column("WHOLE GROUP", "/whole_group"),
        ]);
    }
    output::list(cli.format, "PCI attachments", &attachments, &columns)?;
    Ok(Exit::Done)
}

async fn show(cli: &Cli, prefix: &str) -> anyhow::Result<Exit> {
    let attachments = all(cli).await?;
    let attachment = find(&attachments, prefix)?;
    let mut lines = vec![
        column("ID", "/attachment_id"),
        column("Server", "/serverId"),
        column("Host", "/host"),
        column("Alias", "/alias"),
        column("Node device", "/dev_id"),
        Column("Vendor:product", Box::new(columns::ids)),
        column("Address", "/address"),
        Column("Inner address", Box::new(columns::inner_address)),
        column("Status", "/status"),
        message("Reason", "/status_reason"),
        column("Persistent", "/persistent"),
        column("Forced", "/forced"),
        column("Whole group", "/whole_group"),
        column("Created", "/created_at"),
        column("Attached", "/attached_at"),
        column("Updated", "/updated_at"),
    ];
    if !attachment["mac_address"].is_null() {
        lines.extend(network());
    }
    output::show(cli.format, attachment, &lines)?;
    Ok(Exit::Done)
}

/// The properties of a VF of a NIC.
fn network() -> [Column<'static>; 4] {
    [
        column("MAC address", "/mac_address"),
        column("VLAN", "/vlan"),
        column("Network", "/physical_network"),
        column("Trusted", "/trusted"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unambiguous_beginning_of_an_id_finds_the_attachment() {
        let attachments = ["a1b2", "a1c3", "ff00"].map(|id| json!({ "attachment_id": id }));
        assert_eq!(find(&attachments, "F").unwrap()["attachment_id"], "ff00");
        assert_eq!(find(&attachments, "a1c").unwrap()["attachment_id"], "a1c3");
        let several = find(&attachments, "a1").unwrap_err();
        assert_eq!(several.exit(), Exit::Usage);
        assert!(several.to_string().contains("a1b2") && several.to_string().contains("a1c3"), "{several}");
        assert_eq!(find(&attachments, "0").unwrap_err().exit(), Exit::NotFound);
    }

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
