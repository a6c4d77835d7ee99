//! `hotslot server`: lists and shows the guests, with the devices that are attached to them, and sets whose they are.

use clap::Subcommand;
use clap_complete::ArgValueCompleter;
use serde_json::{Value, json};

use crate::exit::Exit;
use crate::output;
use crate::table::{column, id, message};
use crate::value::at;
use crate::{Cli, columns, complete, host, lookup};

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// List the servers of all hosts.
    List {
        /// Only the servers of this host.
        #[arg(long, add = ArgValueCompleter::new(complete::hosts))]
        host: Option<String>,
    },
    /// Show one server, and the devices that are attached to it.
    Show {
        /// The UUID or the name of the server.
        #[arg(add = ArgValueCompleter::new(complete::servers))]
        server: String,
    },
    /// Set the project whose members may attach devices to a server. Only for servers that Nova did not create.
    ///
    /// The project is kept in the metadata of the server's domain. Without a project, only administrators and services may
    /// use the server.
    Set {
        /// The UUID or the name of the server.
        #[arg(add = ArgValueCompleter::new(complete::servers))]
        server: String,
        /// The id of the project.
        #[arg(long, required_unless_present = "no_project", conflicts_with = "no_project")]
        project: Option<String>,
        /// The server belongs to no project.
        #[arg(long)]
        no_project: bool,
    },
}

impl ServerCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::List { host } => list(cli, host.as_deref()).await,
            Self::Show { server } => show(cli, &server).await,
            Self::Set { server, project, no_project: _ } => set(cli, &server, project).await,
        }
    }
}

async fn list(cli: &Cli, host: Option<&str>) -> anyhow::Result<Exit> {
    let hosts = match host {
        Some(host) => vec![cli.client.item(&["os-hypervisors", host], "hypervisor").await?],
        // Members of a project may not list hosts. They see their servers, of those hosts that are reachable.
        None => host::all_if_permitted(cli).await?,
    };
    let name = host.map(|_| at(&hosts[0], "/hypervisor_hostname"));
    let mut servers = cli.client.items(&["servers"], "servers").await?;
    servers.retain(|server| name.as_ref().is_none_or(|name| server["host"] == *name));
    let columns = [
        column("NAME", "/name"),
        column("STATUS", "/status"),
        column("HOST", "/host"),
        id("ID", "/id"),
        column("PROJECT", "/tenant_id").wide(),
    ];
    output::list(cli.output, "servers", &servers, &columns)?;
    let unreachable = host::unreachable(&hosts);
    for host in &unreachable {
        output::complain(&format!("the list lacks the servers of host {host}, which is unreachable"));
    }
    Ok(if unreachable.is_empty() { Exit::Done } else { Exit::Unreachable })
}

async fn set(cli: &Cli, server: &str, project: Option<String>) -> anyhow::Result<Exit> {
    let id = lookup::server(cli, server).await?;
    let body = json!({ "pci_owner": { "project_id": project } });
    let owner = cli.client.put(&["servers", &id, "pci_owner"], &body).await?["pci_owner"].take();
    let lines =
        [column("ID", "/server_id"), column("Project", "/project_id"), message("Problem", "/problem")];
    output::show(cli.output, &owner, &lines)?;
    Ok(Exit::Done)
}

async fn show(cli: &Cli, server: &str) -> anyhow::Result<Exit> {
    let id = lookup::server(cli, server).await?;
    let mut server = cli.client.item(&["servers", &id], "server").await?;
    let attachments = cli.client.items(&["servers", &id, "os-pci_attachments"], "pciAttachment").await?;
    let lines = [
        column("Name", "/name"),
        column("ID", "/id").name(),
        column("Status", "/status"),
        column("Host", "/host"),
        column("Project", "/tenant_id"),
        column("Created", "/created"),
    ];
    if cli.output.is_data() {
        server["pciAttachment"] = Value::Array(attachments);
        output::data(cli.output, &server)?;
    } else {
        output::show(cli.output, &server, &lines)?;
        if cli.output.is_names() {
            return Ok(Exit::Done);
        }
        if !attachments.is_empty() {
            output::print("\n")?;
        }
        output::list(cli.output, "PCI attachments", &attachments, &columns::attachments())?;
    }
    Ok(Exit::Done)
}
