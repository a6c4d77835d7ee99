//! `hotslot attachment`: what is plugged into which guest.

use std::collections::HashMap;

use clap::Subcommand;
use serde_json::Value;

use crate::exit::{Exit, Failure};
use crate::output::{self, Column, Format, at, column, message};
use crate::{Cli, columns, lookup};

#[derive(Debug, Subcommand)]
pub(crate) enum AttachmentCommand {
    /// The devices that are plugged into guests, or on their way in or out.
    List {
        /// Only those of this guest: its UUID or its name.
        server: Option<String>,
        /// Those that have ended, the last one first, in place of those that have not.
        #[arg(long)]
        ended: bool,
        /// More columns.
        #[arg(short, long)]
        long: bool,
    },
    /// One attachment, with all that is known of it.
    Show {
        /// Its id, or as much of the beginning as tells it from the others.
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

/// All attachments of all servers.
pub(crate) async fn all(cli: &Cli) -> Result<Vec<Value>, Failure> {
    cli.client.items(&["os-pci_attachments"], "pciAttachment").await
}

/// The latest of those that have ended, of all servers.
pub(crate) async fn ended(cli: &Cli) -> Result<Vec<Value>, Failure> {
    cli.client.query(&["os-pci_attachments"], "ended=true", "pciAttachment").await
}

/// The attachment whose id begins so.
pub(crate) fn find<'a>(attachments: &'a [Value], prefix: &str) -> Result<&'a Value, Failure> {
    let begins =
        |attachment: &&Value| at(attachment, "/attachment_id").starts_with(&prefix.to_ascii_lowercase());
    let found: Vec<_> = attachments.iter().filter(begins).collect();
    match found[..] {
        [one] => Ok(one),
        [] => {
            let message = format!("no PCI attachment {prefix}; `hotslot attachment list`");
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

/// What a VF of a NIC is in the guest.
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
    fn the_beginning_of_an_id_is_enough_when_it_is_the_only_one() {
        let attachments = ["a1b2", "a1c3", "ff00"].map(|id| json!({ "attachment_id": id }));
        assert_eq!(find(&attachments, "F").unwrap()["attachment_id"], "ff00");
        assert_eq!(find(&attachments, "a1c").unwrap()["attachment_id"], "a1c3");
        let several = find(&attachments, "a1").unwrap_err();
        assert_eq!(several.exit(), Exit::Usage);
        assert!(several.to_string().contains("a1b2") && several.to_string().contains("a1c3"), "{several}");
        assert_eq!(find(&attachments, "0").unwrap_err().exit(), Exit::NotFound);
    }

    #[test]
    fn an_inner_address_says_how_it_is_known() {
        let attachment = json!({ "inner_address": "0000:02:00.0", "inner_address_source": "verified" });
        assert_eq!(columns::inner_address(&attachment), "0000:02:00.0 (verified)");
        assert_eq!(
            columns::inner_address(&json!({ "inner_address": null, "inner_address_source": null })),
            "-"
        );
    }
}
