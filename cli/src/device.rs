//! `hotslot device`: the PCI functions of the hosts, and which of them may be given away.

use std::collections::HashMap;
use std::str::FromStr;

use clap::{Args, Subcommand};
use hotslot_driver::pci::PciAddress;
use serde_json::Value;
use uuid::Uuid;

use crate::exit::{Exit, Failure};
use crate::output::{self, Column, Format, at, column};
use crate::{Cli, host, server};

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// The devices that may be given to guests; with --all every PCI function.
    List(List),
    /// One PCI function, with all that is known of it.
    Show {
        /// Its address (0000:3b:00.1 or 3b:00.1), its node device name (pci_0000_3b_00_1), or its os-pci id or
        /// UUID.
        device: DeviceName,
        /// The host it is on; needed when several hosts have such an address.
        #[arg(long)]
        host: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those of this host.
    #[arg(long)]
    host: Option<String>,
    /// Every PCI function, with its driver and its IOMMU group.
    #[arg(long)]
    all: bool,
    /// More columns.
    #[arg(short, long)]
    long: bool,
}

/// How a person names a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeviceName {
    Address(PciAddress),
    /// The id of its record in `os-pci`.
    Id(u64),
    /// The UUID of its record in `os-pci`.
    Uuid(Uuid),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        if let Ok(uuid) = Uuid::try_parse(text) {
            return Ok(Self::Uuid(uuid));
        }
        let address = if text.starts_with("pci_") { PciAddress::from_node_name(text) } else { text.parse() };
        address.map(Self::Address).map_err(|error| error.to_string())
    }
}

impl DeviceName {
    fn names(&self, device: &Value) -> bool {
        match self {
            Self::Address(address) => device["address"] == address.to_string(),
            Self::Id(id) => device["id"] == *id,
            Self::Uuid(uuid) => device["uuid"] == uuid.to_string(),
        }
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Id(id) => id.fmt(f),
            Self::Uuid(uuid) => uuid.fmt(f),
        }
    }
}

impl DeviceCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::List(list) => list.run(cli).await,
            Self::Show { device, host } => show(cli, &device, host.as_deref()).await,
        }
    }
}

impl List {
    async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let hosts = hosts(cli, self.host.as_deref()).await?;
        let (devices, away) =
            if self.all { functions(cli, &hosts).await? } else { (records(cli, &hosts).await?, Vec::new()) };
        let wants_names =
            cli.format == Format::Table && devices.iter().any(|device| !device["instance_uuid"].is_null());
        let names = if wants_names { server::names(cli).await? } else { HashMap::new() };
        output::list(cli.format, "devices", &devices, &self.columns(&names))?;
        for failure in &away {
            eprintln!("hotslot: {failure}");
        }
        Ok(if away.is_empty() { Exit::Done } else { Exit::Away })
    }

    fn columns<'a>(&self, names: &'a HashMap<String, String>) -> Vec<Column<'a>> {
        let mut columns = vec![
            column("HOST", "/host"),
            column("ADDRESS", "/address"),
            Column("VENDOR:PRODUCT", Box::new(ids)),
            column("TYPE", "/dev_type"),
        ];
        if self.all {
            columns.extend([column("DRIVER", "/driver"), column("GROUP", "/iommu_group/number")]);
        }
        columns.push(column("STATUS", "/status"));
        columns
            .push(Column("SERVER", Box::new(|device| server::called(names, &at(device, "/instance_uuid")))));
        if self.long {
            columns.extend([
                column("ID", "/id"),
                column("DEV_ID", "/dev_id"),
                column("NUMA", "/numa_node"),
                column("PF", "/parent_addr"),
            ]);
        }
        if self.long && self.all {
            columns.extend([
                column("NET", "/net"),
                column("BLOCK", "/block"),
                column("CLASS", "/class_name"),
            ]);
        }
        if self.all {
            columns.push(Column("NAME", Box::new(name)));
        }
        columns
    }
}

/// The one host of that name, or all.
async fn hosts(cli: &Cli, host: Option<&str>) -> Result<Vec<Value>, Failure> {
    match host {
        Some(host) => Ok(vec![cli.client.item(&["os-hypervisors", host], "hypervisor").await?]),
        None => cli.client.items(&["os-hypervisors"], "hypervisors").await,
    }
}

/// The devices of these hosts that may be given away.
async fn records(cli: &Cli, hosts: &[Value]) -> Result<Vec<Value>, Failure> {
    let mut devices = cli.client.items(&["os-pci", "detail"], "pci_devices").await?;
    devices.retain(|device| hosts.iter().any(|host| host["hypervisor_hostname"] == device["host"]));
    Ok(devices)
}

/// Every PCI function of these hosts, and what is to be said of hosts that are away.
async fn functions(cli: &Cli, hosts: &[Value]) -> Result<(Vec<Value>, Vec<Failure>), Failure> {
    let (mut devices, mut away) = (Vec::new(), Vec::new());
    for host in hosts {
        match cli.client.items(&["os-hypervisors", &at(host, "/id"), "pci_devices"], "pci_devices").await {
            Ok(found) => devices.extend(found),
            Err(failure) if failure.exit() == Exit::Away && host["state"] == "down" => away.push(failure),
            Err(failure) => return Err(failure),
        }
    }
    Ok((devices, away))
}

async fn show(cli: &Cli, name: &DeviceName, host: Option<&str>) -> anyhow::Result<Exit> {
    let hosts = hosts(cli, host).await?;
    let (functions, _) = functions(cli, &hosts).await?;
    let mut found: Vec<_> = functions.into_iter().filter(|device| name.names(device)).collect();
    // The record says more, and it stays when the host is away or the device is gone.
    for record in records(cli, &hosts).await?.into_iter().filter(|record| name.names(record)) {
        let same = |function: &&mut Value| {
            function["address"] == record["address"] && function["host"] == record["host"]
        };
        match found.iter_mut().find(same) {
            Some(function) => {
                if let (Value::Object(function), Value::Object(record)) = (function, record) {
                    function.extend(record);
                }
            }
            None => found.push(record),
        }
    }
    match &found[..] {
        [device] => {
            output::show(cli.format, device, &lines())?;
            Ok(Exit::Done)
        }
        [] => {
            let away = host::away(&hosts);
            Err(if away.is_empty() {
                Failure::new(Exit::NotFound, format!("no device {name}; `hotslot device list --all`"))
            } else {
                Failure::new(Exit::Away, format!("no device {name} can be seen; away: {}", away.join(", ")))
            }
            .into())
        }
        several => Err(ambiguous(name, several).into()),
    }
}

/// Several hosts have a device of this name.
pub(crate) fn ambiguous(name: &DeviceName, found: &[Value]) -> Failure {
    let hosts: Vec<_> = found.iter().map(|device| at(device, "/host")).collect();
    let message = format!("several hosts have a device {name}; give one by --host: {}", hosts.join(", "));
    Failure::new(Exit::Usage, message)
}

fn lines() -> Vec<Column<'static>> {
    vec![
        column("Address", "/address"),
        column("Host", "/host"),
        column("Node device", "/dev_id"),
        Column("Vendor:product", Box::new(ids)),
        Column("Name", Box::new(name)),
        column("Class", "/class_name"),
        column("Type", "/dev_type"),
        column("PF", "/parent_addr"),
        column("VFs", "/vfs"),
        column("VFs at most", "/max_vfs"),
        column("Driver", "/driver"),
        column("IOMMU group", "/iommu_group/number"),
        column("Group members", "/iommu_group/members"),
        column("NUMA node", "/numa_node"),
        column("PCI Express", "/express"),
        Column("Link", Box::new(link)),
        column("Network", "/net"),
        column("Block", "/block"),
        column("Serial", "/serial"),
        column("os-pci id", "/id"),
        column("Status", "/status"),
        column("Server", "/instance_uuid"),
    ]
}

/// `8086:10ca`, as `lspci -n` prints it.
pub(crate) fn ids(device: &Value) -> String {
    format!("{}:{}", at(device, "/vendor_id"), at(device, "/product_id"))
}

/// What the vendor and the device are called, as libvirt's id table has it.
pub(crate) fn name(device: &Value) -> String {
    let names = ["/vendor_name", "/product_name"].map(|pointer| at(device, pointer));
    let known: Vec<_> = names.iter().map(String::as_str).filter(|name| *name != "-").collect();
    if known.is_empty() { "-".into() } else { known.join(" ") }
}

fn link(device: &Value) -> String {
    let link = &device["link"];
    if link.is_null() {
        return "-".into();
    }
    let [speed, width, max_speed, max_width] =
        ["/speed", "/width", "/max_speed", "/max_width"].map(|pointer| at(link, pointer));
    format!("{speed} GT/s x{width} (of {max_speed} GT/s x{max_width})")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_device_is_named_as_lspci_libvirt_or_os_pci_name_it() {
        const UUID: &str = "20000000-0000-4000-8000-000000000001";
        let device = json!({ "address": "0000:3b:00.1", "id": 7, "uuid": UUID });
        for name in ["0000:3b:00.1", "3b:00.1", "0000:3B:00.1", "pci_0000_3b_00_1", "7", UUID] {
            assert!(name.parse::<DeviceName>().unwrap().names(&device), "{name}");
        }
        for other in ["0000:3b:00.0", "pci_0000_3b_01_1", "8"] {
            assert!(!other.parse::<DeviceName>().unwrap().names(&device), "{other}");
        }
        for bad in ["", "eth0", "pci_0000_3b_00", "0000:3b:00.8", "-1"] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_function_without_a_record_has_no_id() {
        assert!(!DeviceName::Id(0).names(&json!({ "address": "0000:3b:00.1", "id": null })));
    }

    #[test]
    fn links_and_names_are_put_together() {
        let device = json!({
            "vendor_name": "Intel", "product_name": null,
            "link": { "speed": "2.5", "width": 1, "max_speed": "16", "max_width": 4 },
        });
        assert_eq!(name(&device), "Intel");
        assert_eq!(link(&device), "2.5 GT/s x1 (of 16 GT/s x4)");
        assert_eq!((name(&json!({})), link(&json!({}))), ("-".into(), "-".into()));
    }
}
