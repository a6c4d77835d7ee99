//! `hotslot server`: lists and shows the guests, with the devices that are attached to them.

use clap::Subcommand;
use serde_json::Value;

use crate::exit::Exit;
use crate::output::{self, Format, at, column};
use crate::{Cli, columns, host, lookup};

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// List the guests of all hosts.
    List {
        /// Only the guests of this host.
        #[arg(long)]
        host: Option<String>,
    },
    /// Show one guest, and the devices that are attached to it.
    Show {
        /// The UUID or the name of the guest.
        server: String,
    },
}

impl ServerCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::List { host } => list(cli, host.as_deref()).await,
            Self::Show { server } => show(cli, &server).await,
        }
    }
}

async fn list(cli: &Cli, host: Option<&str>) -> anyhow::Result<Exit> {
    let hosts = match host {
        Some(host) => vec![cli.client.item(&["os-hypervisors", host], "hypervisor").await?],
        None => cli.client.items(&["os-hypervisors"], "hypervisors").await?,
    };
    let name = host.map(|_| at(&hosts[0], "/hypervisor_hostname"));
    let mut servers = cli.client.items(&["servers"], "servers").await?;
    servers.retain(|server| name.as_ref().is_none_or(|name| server["host"] == *name));
    let columns =
        [column("ID", "/id"), column("NAME", "/name"), column("STATUS", "/status"), column("HOST", "/host")];
    output::list(cli.format, "servers", &servers, &columns)?;
    let unreachable = host::unreachable(&hosts);
    for host in &unreachable {
        output::complain(&format!("the list lacks the servers of host {host}, which is unreachable"));
    }
    Ok(if unreachable.is_empty() { Exit::Done } else { Exit::Unreachable })
}

async fn show(cli: &Cli, server: &str) -> anyhow::Result<Exit> {
    let id = lookup::server(cli, server).await?;
    let mut server = cli.client.item(&["servers", &id], "server").await?;
    let attachments = cli.client.items(&["servers", &id, "os-pci_attachments"], "pciAttachment").await?;
    let lines = [
        column("ID", "/id"),
        column("Name", "/name"),
        column("Status", "/status"),
        column("Host", "/host"),
        column("Created", "/created"),
    ];
    if cli.format == Format::Json {
        server["pciAttachment"] = Value::Array(attachments);
        output::json(&server)?;
    } else {
        output::show(cli.format, &server, &lines)?;
        if !attachments.is_empty() {
            output::print("\n")?;
        }
        output::list(cli.format, "PCI attachments", &attachments, &columns::attachments())?;
    }
    Ok(Exit::Done)
}
