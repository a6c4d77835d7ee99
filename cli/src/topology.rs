//! `hotslot topology`: prints the PCI tree of a host, or of a guest with the addresses that the guest sees.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use clap::Args;
use clap_complete::ArgValueCompleter;
use hotslot_driver::pci::PciAddress;
use serde_json::Value;

use crate::client::permitted;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::table::terminal_width;
use crate::tree::{FACTS, Line, tree};
use crate::value::at;
use crate::{Cli, columns, complete, device, lookup};

/// The examples in `--help`.
pub(crate) const HELP: &str = "\
Examples:
  hotslot topology node1
  hotslot topology vm1
  hotslot topology --server node1";

#[derive(Debug, Args)]
pub(crate) struct Topology {
    /// The name or id of a host, or the name or UUID of a server; the beginning of an id is enough. A host has precedence
    /// over a server of the same name, and a whole name or id over the beginning of another one.
    #[arg(add = ArgValueCompleter::new(complete::trees))]
    name: String,
    /// NAME is the name or id of a host.
    #[arg(long, conflicts_with = "server")]
    host: bool,
    /// NAME is the name or UUID of a server.
    #[arg(long)]
    server: bool,
}

impl Topology {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let name = self.name.as_str();
        if self.host {
            let host = lookup::host(cli, name).await?;
            return of_host(cli, &host).await;
        }
        if self.server {
            return of_server(cli, &lookup::server(cli, name).await?).await;
        }
        // A caller who may not list hosts means a server.
        let hosts = lookup::hosts_if_permitted(cli).await?;
        let called = |host: &&Value| ["/id", "/hypervisor_hostname"].iter().any(|key| at(host, key) == name);
        let Some(host) = hosts.iter().find(called) else {
            let failure = match lookup::server(cli, name).await {
                Ok(id) => return of_server(cli, &id).await,
                Err(failure) => failure,
            };
            if let Ok(host) = lookup::HOSTS.find(&hosts, name) {
                return of_host(cli, host).await;
            }
            let message = format!("host {name} not found, and {failure}");
            return Err(Failure::new(failure.exit(), message).into());
        };
        let servers = permitted(cli.client.items(&["servers"], "servers").await)?.unwrap_or_default();
        if servers.iter().any(|server| server["name"] == name) {
            output::complain(&format!(
                "this is the host {name}; a server has the same name, see `hotslot topology --server {name}`"
            ));
        }
        of_host(cli, host).await
    }
}

async fn of_host(cli: &Cli, host: &Value) -> anyhow::Result<Exit> {
    let path = ["os-hypervisors", &at(host, "/id"), "pci_devices"];
    let functions = cli.client.items(&path, "pci_devices").await?;
    if cli.output.is_data() {
        output::data(cli.output, &functions.into())?;
    } else if cli.output.is_names() {
        output::names(functions.iter().map(|function| at(function, "/address")))?;
    } else {
        let names = lookup::server_names(cli).await?;
        output::print(&host_tree(&at(host, "/hypervisor_hostname"), &functions, &names))?;
    }
    Ok(Exit::Done)
}

/// Formats the tree of a host: each function is below its bridge, and each VF below its PF.
fn host_tree(name: &str, functions: &[Value], names: &HashMap<String, String>) -> String {
    let mut functions: Vec<_> =
        functions.iter().map(|function| (at(function, "/address"), function)).collect();
    functions.sort_by(|a, b| a.0.cmp(&b.0));
    let lines: Vec<_> = functions
        .into_iter()
        .map(|(address, function)| {
            let bridge = || Some(PciAddress::from_node_name(function["parent"].as_str()?).ok()?.to_string());
            let parent = function["parent_addr"].as_str().map(str::to_owned).or_else(bridge);
            Line { key: address, parent, text: host_line(function, names) }
        })
        .collect();
    tree(name, &lines, terminal_width())
}

fn host_line(function: &Value, names: &HashMap<String, String>) -> String {
    let named = |word: &str, pointer: &str| match at(function, pointer) {
        nothing if nothing == "-" => nothing,
        value => format!("{word} {value}"),
    };
    let vfs = function["vfs"].as_array().map_or(0, Vec::len);
    let sriov = match function["dev_type"].as_str() {
        Some("type-PF") => format!("PF with {vfs} of {} VFs", at(function, "/max_vfs")),
        Some("type-VF") => "VF".into(),
        Some(_) | None => "-".into(),
    };
    let owner = match function["instance_uuid"].as_str() {
        Some(id) => format!("{} to {}", at(function, "/status"), columns::called(names, id)),
        None => at(function, "/status"),
    };
    facts(&[
        at(function, "/address"),
        columns::ids(function),
        device::name(function),
        sriov,
        named("driver", "/driver"),
        named("group", "/iommu_group/number"),
        at(function, "/net"),
        at(function, "/block"),
        owner,
    ])
}

/// Joins the facts that are known.
fn facts(facts: &[String]) -> String {
    let known: Vec<_> = facts.iter().map(String::as_str).filter(|fact| *fact != "-").collect();
    known.join(FACTS)
}

async fn of_server(cli: &Cli, id: &str) -> anyhow::Result<Exit> {
    let topology = cli.client.item(&["servers", id, "pci_topology"], "pci_topology").await?;
    if cli.output.is_data() {
        output::data(cli.output, &topology)?;
    } else if cli.output.is_names() {
        let devices = topology["devices"].as_array().into_iter().flatten();
        output::names(devices.map(|device| at(device, "/inner_address")))?;
    } else {
        output::print(&server_tree(&topology))?;
    }
    Ok(Exit::Done)
}

/// Formats the tree of a guest: each function is below its controller, with the address that the guest sees.
fn server_tree(topology: &Value) -> String {
    let list = |pointer: &str| topology.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let free = free_slots(list("/free_ports/express").chain(list("/free_ports/conventional")));
    let controllers = list("/controllers").map(|controller| {
        let index = controller["index"].as_u64().unwrap_or_default();
        let text = controller_line(controller, free.get(&index).copied().unwrap_or_default());
        (at(controller, "/address"), Line { key: bus(index), parent: parent(controller), text })
    });
    let devices = list("/devices").map(|device| {
        let address = at(device, "/address");
        (address.clone(), Line { key: address, parent: parent(device), text: device_line(device) })
    });
    let mut lines: Vec<_> = controllers.chain(devices).collect();
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    let lines: Vec<_> = lines.into_iter().map(|(_, line)| line).collect();
    let off = if topology["running"] == true { "-" } else { "as it will start" };
    let title = facts(&[
        at(topology, "/name"),
        at(topology, "/status"),
        format!("on {}", at(topology, "/host")),
        at(topology, "/machine"),
        off.into(),
    ]);
    tree(&title, &lines, terminal_width())
}

/// Returns the number of free slots of each controller, by the index of the controller.
fn free_slots<'a>(free: impl Iterator<Item = &'a Value>) -> BTreeMap<u64, usize> {
    // Without PCI Express the two lists are the same, so duplicates are removed.
    let addresses: BTreeSet<_> = free.filter_map(address).collect();
    let mut slots = BTreeMap::new();
    for address in addresses {
        *slots.entry(address.bus().into()).or_default() += 1;
    }
    slots
}

/// The address of a function in the libvirt document. Its bus number is the index of its controller.
fn address(function: &Value) -> Option<PciAddress> {
    function["address"].as_str()?.parse().ok()
}

fn parent(function: &Value) -> Option<String> {
    address(function).map(|address| bus(address.bus().into()))
}

fn bus(index: u64) -> String {
    format!("bus {index}")
}

fn controller_line(controller: &Value, free: usize) -> String {
    let bus = controller["inner_bus"].as_u64().map_or_else(|| "-".into(), |bus| format!("bus {bus:02x}"));
    let room = match (free, controller["hotplug"].as_bool()) {
        (0, Some(false)) => "hot-plug is off".into(),
        (0, _) => "-".into(),
        (1, _) => "free".into(),
        (slots, _) => format!("{slots} slots free"),
    };
    let is_root = controller["address"].is_null();
    let address = if is_root { "-".into() } else { inner_address(controller) };
    facts(&[address, at(controller, "/model"), at(controller, "/alias"), bus, room])
}

fn device_line(device: &Value) -> String {
    const FOREIGN: &str = "not attached by hotslot";
    let (host, mediated) = (&device["host_device"], &device["mediated_device"]);
    if mediated.is_object() {
        let of_type = match (at(mediated, "/mdev_type"), at(mediated, "/address")) {
            (kind, address) if address == "-" => kind,
            (kind, address) => format!("{kind} of {address}"),
        };
        let foreign = if mediated["attachment_id"].is_null() { FOREIGN } else { "-" };
        let uuid = format!("mediated device {}", at(mediated, "/mdev_uuid"));
        return facts(&[inner_address(device), uuid, of_type, foreign.into()]);
    }
    if host.is_null() {
        return facts(&[inner_address(device), "emulated".into()]);
    }
    let attachment = match at(host, "/attachment_id") {
        nothing if nothing == "-" => FOREIGN.into(),
        id => format!("attachment {id}"),
    };
    let ids = columns::ids(host);
    let ids = if ids == "-:-" { "-".into() } else { ids };
    facts(&[
        inner_address(device),
        format!("host {}", at(host, "/address")),
        ids,
        device::name(host),
        attachment,
    ])
}

fn inner_address(function: &Value) -> String {
    match at(function, "/inner_address") {
        unknown if unknown == "-" => format!("unknown (libvirt's {})", at(function, "/address")),
        address if function["inner_address_source"] == "verified" => format!("{address} (verified)"),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_vf_is_below_its_pf_and_a_function_below_its_bridge() {
        let functions = [
            json!({ "address": "0000:04:10.0", "parent": "pci_0000_00_10_0", "parent_addr": "0000:04:00.0",
                "vendor_id": "8086", "product_id": "10ca", "dev_type": "type-VF", "driver": "vfio-pci",
                "iommu_group": { "number": 22 }, "status": "allocated", "instance_uuid": "u1" }),
            json!({ "address": "0000:04:00.0", "parent": "pci_0000_00_10_0", "parent_addr": null,
                "vendor_id": "8086", "product_id": "10c9", "product_name": "82576", "dev_type": "type-PF",
                "max_vfs": 7, "vfs": ["0000:04:10.0"], "driver": "igb", "net": ["eth5"], "block": [] }),
            json!({ "address": "0000:00:10.0", "parent": "computer",
                "vendor_id": "1b36", "product_id": "000c", "dev_type": "type-PCI", "driver": "pcieport" }),
            json!({ "address": "0000:00:1d.0", "vendor_id": "8086", "product_id": "2934" }),
        ];
        let names = HashMap::from([("u1".to_owned(), "vm1".to_owned())]);
        let expected = "\
node1
├── 0000:00:10.0  1b36:000c  driver pcieport
│   └── 0000:04:00.0  8086:10c9  82576  PF with 1 of 7 VFs  driver igb  eth5
│       └── 0000:04:10.0  8086:10ca  VF  driver vfio-pci  group 22  allocated to vm1
└── 0000:00:1d.0  8086:2934
";
        assert_eq!(host_tree("node1", &functions, &names), expected);
    }

    #[test]
    fn the_ports_of_a_guest_are_shown_with_their_devices_or_as_free() {
        let root = json!({ "index": 0, "model": "pcie-root", "alias": "pcie.0", "address": null,
            "inner_address": null, "inner_bus": 0, "hotplug": true });
        let port = |index: u8, model: &str, hotplug: bool| {
            json!({ "index": index, "model": model, "alias": format!("pci.{index}"),
                "address": format!("0000:00:01.{index}"), "inner_address": format!("0000:00:01.{index}"),
                "inner_bus": index + 1, "hotplug": hotplug })
        };
        let at = |address: &str| json!({ "address": address, "inner_address": null });
        let topology = json!({
            "name": "vm1", "status": "ACTIVE", "host": "node1", "machine": "pc-q35-10.0", "running": true,
            "controllers": [port(3, "pcie-root-port", false), port(1, "pcie-root-port", true), root,
                port(2, "pcie-root-port", true), port(4, "pcie-to-pci-bridge", true)],
            "devices": [
                { "address": "0000:01:00.0", "inner_address": "0000:02:00.0",
                    "inner_address_source": "verified", "host_device": {
                    "address": "0000:04:10.0", "vendor_id": "8086", "product_id": "10ca",
                    "attachment_id": "a1" } },
                { "address": "0000:03:00.0", "inner_address": "0000:04:00.0", "host_device": null,
                    "mediated_device": { "mdev_uuid": "m1", "mdev_type": "nvidia-232", "address": "0000:41:00.0",
                        "attachment_id": null } },
                { "address": "0000:00:1f.2", "inner_address": null, "host_device": null, "mediated_device": null },
            ],
            "free_ports": { "express": [at("0000:02:00.0")],
                "conventional": [at("0000:04:01.0"), at("0000:04:02.0"), at("0000:02:00.0")] },
        });
        let expected = "\
vm1  ACTIVE  on node1  pc-q35-10.0
└── pcie-root  pcie.0  bus 00
    ├── 0000:00:01.1  pcie-root-port  pci.1  bus 02
    │   └── 0000:02:00.0 (verified)  host 0000:04:10.0  8086:10ca  attachment a1
    ├── 0000:00:01.2  pcie-root-port  pci.2  bus 03  free
    ├── 0000:00:01.3  pcie-root-port  pci.3  bus 04  hot-plug is off
    │   └── 0000:04:00.0  mediated device m1  nvidia-232 of 0000:41:00.0  not attached by hotslot
    ├── 0000:00:01.4  pcie-to-pci-bridge  pci.4  bus 05  2 slots free
    └── unknown (libvirt's 0000:00:1f.2)  emulated
";
        assert_eq!(server_tree(&topology), expected);
    }
}
