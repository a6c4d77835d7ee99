//! `servers/{id}/pci_topology`: the PCI tree of a guest, with its free hot-plug ports. An extension of hotslot.
//!
//! `address` is the address in libvirt's XML, whose bus is the index of the function's controller. `inner_address` is
//! the address that the guest sees. `inner_address_source` is `verified` when the guest or QEMU reported the address,
//! and `computed` when it follows from the bus numbers that firmware assigns. Both are null when the address is not
//! known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hotslot_driver::domain::{ControllerModel, DomainXml, Hostdev, PciController, UserAlias};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::topology::Topology;
use hotslot_model::assignment::InnerSource;
use hotslot_model::device::Functions;
use hotslot_service::error::Error;
use hotslot_service::hosts::Hosts;
use hotslot_service::records::Records;
use serde_json::{Value, json};

use super::body::Path;
use super::error::Fault;
use super::permit::Permit;
use super::servers::{self, ServerPath};

/// Shows the topology of the running guest, or of its persistent definition while the guest is shut off.
pub(super) async fn show(
    State(hosts): State<Arc<Hosts>>,
    State(records): State<Arc<Records>>,
    permit: Permit,
    Path(path): Path<ServerPath>,
) -> Result<Json<Value>, Fault> {
    let server = path.id()?;
    let (host, view) = permit.server(&hosts, server).await?;
    let running = view.live.is_some();
    let document = view.live.or(view.persistent).ok_or(Error::NoServer(server))?;
    let attachments = records.attachments_of(server).await?;
    let verified = attachments.iter().filter(|row| row.hypervisor == host.row.id).filter_map(|row| {
        let hostdev = document.hostdev(UserAlias(row.id.0))?;
        let inner = row.inner.filter(|inner| running && inner.source == InnerSource::Verified)?;
        Some((hostdev.guest?, inner.address))
    });
    let mut tree = describe(&document, &host.functions(), &verified.collect());
    for (key, value) in [
        ("server_id", json!(view.info.uuid)),
        ("name", json!(view.info.name)),
        ("host", json!(permit.sees_hosts().then_some(&host.name))),
        ("status", json!(servers::status(view.info.state))),
        ("running", json!(running)),
    ] {
        tree[key] = value;
    }
    if !permit.sees_hosts() {
        let devices = tree["devices"].as_array_mut().into_iter().flatten();
        let held = devices.map(|device| &mut device["host_device"]).filter(|held| held.is_object());
        held.for_each(|held| held["address"] = Value::Null);
    }
    Ok(Json(json!({ "pci_topology": tree })))
}

/// The guest addresses that the guest or QEMU reported, by libvirt's addresses.
type Verified = BTreeMap<PciAddress, PciAddress>;

fn describe(document: &DomainXml, functions: &Functions, verified: &Verified) -> Value {
    let topology = Topology::of(document);
    let both = |address: PciAddress| {
        let (inner, source) = match (verified.get(&address), topology.guest_address(address)) {
            (Some(seen), _) => (Some(*seen), Some(InnerSource::Verified)),
            (None, Some(computed)) => (Some(computed), Some(InnerSource::Computed)),
            (None, None) => (None, None),
        };
        json!({ "address": address, "inner_address": inner, "inner_address_source": source })
    };
    let list = |addresses: Vec<PciAddress>| addresses.into_iter().map(both).collect::<Vec<_>>();
    // When two controllers have one index, which libvirt does not write, the first one counts, as in `Topology`.
    let mut indexes = BTreeSet::new();
    let controllers: Vec<_> =
        document.controllers.iter().filter(|controller| indexes.insert(controller.index)).collect();
    let ports: BTreeSet<_> = controllers.iter().filter_map(|controller| controller.address).collect();
    let addresses: BTreeSet<_> =
        document.occupied.iter().filter(|address| !ports.contains(address)).collect();
    let devices = addresses.into_iter().map(|address| {
        let mut device = both(*address);
        let hostdev = document.hostdevs.iter().find(|hostdev| hostdev.guest == Some(*address));
        device["host_device"] = json!(hostdev.map(|hostdev| host_device(hostdev, functions)));
        device
    });
    let devices: Vec<_> = devices.collect();
    let free = topology.free_ports();
    json!({
        "machine": document.machine,
        "controllers": controllers.iter().map(|one| controller(one, &topology, verified)).collect::<Vec<_>>(),
        "devices": devices,
        "free_ports": { "express": list(free.express), "conventional": list(free.conventional) },
    })
}

fn controller(controller: &PciController, topology: &Topology, verified: &Verified) -> Value {
    // The verified address of a device gives the number of its bus.
    let seen = verified.iter().find(|(address, _)| address.bus() == controller.index).map(|(_, seen)| *seen);
    let first = PciAddress::new(0, controller.index.into(), 0, 0).ok();
    let bus = seen.or_else(|| topology.guest_address(first?)).map(PciAddress::bus);
    json!({
        "index": controller.index,
        "model": model(controller.model),
        "alias": controller.alias,
        "address": controller.address,
        "inner_address": controller.address.and_then(|address| topology.guest_address(address)),
        "inner_bus": bus,
        "hotplug": controller.hotplug,
    })
}

fn host_device(hostdev: &Hostdev, functions: &Functions) -> Value {
    let function = functions.get(&hostdev.source);
    json!({
        "address": hostdev.source,
        "vendor_id": function.map(|function| function.vendor_id),
        "product_id": function.map(|function| function.product_id),
        "vendor_name": function.and_then(|function| function.vendor_name.as_deref()),
        "product_name": function.and_then(|function| function.product_name.as_deref()),
        "attachment_id": hostdev.alias.as_deref().and_then(UserAlias::parse).map(|alias| alias.0),
    })
}

/// Returns libvirt's name of a controller model.
fn model(model: ControllerModel) -> &'static str {
    match model {
        ControllerModel::PciRoot => "pci-root",
        ControllerModel::PcieRoot => "pcie-root",
        ControllerModel::PciBridge => "pci-bridge",
        ControllerModel::DmiToPciBridge => "dmi-to-pci-bridge",
        ControllerModel::PcieToPciBridge => "pcie-to-pci-bridge",
        ControllerModel::RootPort => "pcie-root-port",
        ControllerModel::SwitchUpstream => "pcie-switch-upstream-port",
        ControllerModel::SwitchDownstream => "pcie-switch-downstream-port",
        ControllerModel::PciExpander => "pci-expander-bus",
        ControllerModel::PcieExpander => "pcie-expander-bus",
    }
}

#[cfg(test)]
mod tests {
    use hotslot_driver::xml::domain;

    use super::*;

    fn describe(devices: &str) -> Value {
        let document = format!(
            "<domain type='kvm'><name>g</name><uuid>10000000-0000-4000-8000-000000000001</uuid>\
             <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os><devices>\
             <controller type='pci' index='0' model='pcie-root'/>{devices}</devices></domain>"
        );
        super::describe(&domain::parse(&document).unwrap(), &Functions::new(), &Verified::new())
    }

    fn port(index: u8, slot: u8, function: u8) -> String {
        format!(
            "<controller type='pci' index='{index}' model='pcie-root-port'>\
             <address type='pci' bus='0x00' slot='{slot:#x}' function='{function}'/></controller>"
        )
    }

    #[test]
    fn firmware_numbers_buses_by_the_slot_of_their_port() {
        let tree = describe(&(port(1, 3, 0) + &port(2, 2, 0)));
        assert_eq!(tree["controllers"][1]["inner_bus"], 2);
        assert_eq!(tree["controllers"][2]["inner_bus"], 1);
        let first = json!({ "address": "0000:01:00.0", "inner_address": "0000:02:00.0",
            "inner_address_source": "computed" });
        assert_eq!(tree["free_ports"]["express"][0], first);
        assert_eq!(tree["free_ports"]["conventional"], json!([]));
    }

    #[test]
    fn a_function_that_the_guest_does_not_see_has_no_inner_address() {
        let tree = describe(&port(1, 3, 1));
        let port = &tree["controllers"][1];
        assert_eq!((&port["address"], &port["inner_address"]), (&json!("0000:00:03.1"), &Value::Null));
        assert_eq!(port["inner_bus"], Value::Null);
    }

    #[test]
    fn the_first_of_two_controllers_with_one_index_counts() {
        let tree = describe(&(port(1, 3, 0) + &port(1, 4, 0)));
        let addresses: Vec<_> =
            tree["controllers"].as_array().unwrap().iter().map(|one| &one["address"]).collect();
        assert_eq!(addresses, [&Value::Null, &json!("0000:00:03.0")]);
    }

    #[test]
    fn a_host_device_names_its_attachment() {
        let hostdev = |slot: u8, alias: &str| {
            format!(
                "<hostdev mode='subsystem' type='pci' managed='yes'><source>\
                 <address domain='0x0000' bus='0x04' slot='{slot:#x}' function='0x0'/></source>\
                 <alias name='{alias}'/><address type='pci' bus='0x00' slot='{slot:#x}' function='0x0'/></hostdev>"
            )
        };
        const ID: &str = "30000000-0000-4000-8000-000000000001";
        let tree = describe(&(hostdev(5, &format!("ua-{ID}")) + &hostdev(6, "hostdev0")));
        let host = |index: usize| &tree["devices"][index]["host_device"];
        assert_eq!((&host(0)["address"], &host(0)["attachment_id"]), (&json!("0000:04:05.0"), &json!(ID)));
        assert_eq!((&host(1)["address"], &host(1)["attachment_id"]), (&json!("0000:04:06.0"), &Value::Null));
    }
}
