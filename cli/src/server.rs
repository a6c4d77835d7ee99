//! `hotslot server`: lists and shows the guests, with the devices that are attached to them, sets whose they are, and
//! prepares them for devices that will be attached later.

use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::ArgValueCompleter;
use hotslot_driver::text;
use serde_json::{Value, json};

use crate::argument::number;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::remedy::by_commands;
use crate::size::Size;
use crate::table::{column, id, message};
use crate::value::at;
use crate::{Cli, columns, complete, lookup};

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
        #[arg(long, required_unless_present = "no_project", conflicts_with = "no_project",
            value_parser = NonEmptyStringValueParser::new())]
        project: Option<String>,
        /// The server belongs to no project.
        #[arg(long)]
        no_project: bool,
    },
    /// Add free PCI ports to a server, which its guest has after it was shut off and started again.
    ///
    /// Each PCI Express device needs a port of its own, and a running guest cannot get new ones. What is added to the
    /// definition is printed first.
    Prepare {
        /// The UUID or the name of the server.
        #[arg(add = ArgValueCompleter::new(complete::servers))]
        server: String,
        /// The number of ports to add.
        #[arg(long, allow_negative_numbers = true, value_parser = number::<u8>(1..=30))]
        ports: u8,
        /// The 64-bit memory that each new port shall have room for, such as 64G.
        #[arg(long)]
        bar: Option<Size>,
        /// Print what would be added, and add nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

impl ServerCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::List { host } => list(cli, host.as_deref()).await,
            Self::Show { server } => show(cli, &server).await,
            Self::Set { server, project, no_project: _ } => set(cli, &server, project).await,
            Self::Prepare { server, ports, bar, dry_run } => prepare(cli, &server, ports, bar, dry_run).await,
        }
    }
}

async fn list(cli: &Cli, host: Option<&str>) -> anyhow::Result<Exit> {
    let hosts = match host {
        Some(host) => vec![lookup::host(cli, host).await?],
        // Members of a project may not list hosts. They see their servers, of those hosts that are reachable.
        None => lookup::hosts_if_permitted(cli).await?,
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
    let unreachable = lookup::unreachable_hosts(&hosts);
    let noun = if unreachable.is_empty() { "servers" } else { "servers on the hosts that can be reached" };
    output::list(cli.output, noun, &servers, &columns)?;
    for host in &unreachable {
        output::complain(&format!("the list lacks the servers of this host: {host}"));
    }
    Ok(if unreachable.is_empty() { Exit::Done } else { Exit::Unreachable })
}

async fn set(cli: &Cli, server: &str, project: Option<String>) -> anyhow::Result<Exit> {
    let id = lookup::server(cli, server).await?;
    let body = json!({ "pci_owner": { "project_id": project } });
    let owner = cli.client.put(&["servers", &id, "pci_owner"], &body).await?["pci_owner"].take();
    let lines =
        [column("ID", "/server_id").name(), column("Project", "/project_id"), message("Problem", "/problem")];
    output::show(cli.output, &owner, &lines)?;
    Ok(Exit::Done)
}

async fn prepare(
    cli: &Cli,
    server: &str,
    ports: u8,
    bar: Option<Size>,
    dry_run: bool,
) -> anyhow::Result<Exit> {
    let id = lookup::server(cli, server).await?;
    let path = ["servers", &id, "pci_ports"];
    let body = |dry_run: bool| json!({ "pci_ports": { "count": ports, "dry_run": dry_run } });
    let mut answer = cli.client.post(&path, &body(true)).await?["pci_ports"].take();
    if let Some(reason) = answer["refused"].as_str().filter(|_| !dry_run) {
        return Err(Failure::new(Exit::Refused, by_commands(reason)).into());
    }
    // The advice is to add the ports without it, so they can be added.
    if let Some(bar) = bar {
        return Err(Failure::new(Exit::Refused, no_window(server, bar)).into());
    }
    if !cli.output.is_data() && !cli.output.is_names() {
        let lines = answer["diff"].as_array().into_iter().flatten().filter_map(Value::as_str);
        output::print(&lines.map(|line| text::escape(line).into_owned() + "\n").collect::<String>())?;
    }
    if !dry_run {
        answer = cli.client.post(&path, &body(false)).await?["pci_ports"].take();
    }
    let waits = dry_run || answer["needs_restart"] == true;
    let lines = [
        column("ID", "/server_id").name(),
        column("Free ports before", "/free_before"),
        column(if waits { "Free ports at its next start" } else { "Free ports now" }, "/free"),
    ];
    output::show(cli.output, &answer, &lines)?;
    if answer["needs_restart"] == true && !dry_run {
        output::complain(
            "the guest has the new ports after it was shut off and started again; a reboot from inside is not enough",
        );
    }
    if let Some(reason) = answer["refused"].as_str() {
        output::complain(&by_commands(reason));
        return Ok(Exit::Refused);
    }
    Ok(Exit::Done)
}

/// Why a port gets no memory window, and how to give it one.
fn no_window(server: &str, bar: Size) -> String {
    format!(
        "libvirt has no setting for the 64-bit memory of a port, so hotslot cannot set it. Leave out --bar to add the \
         ports. Then run `virsh edit {}`, and for each new port give the device pci.INDEX (INDEX is that of its \
         <controller>) the property pref64-reserve={} in <qemu:override>",
        text::escape(server),
        bar.0
    )
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
