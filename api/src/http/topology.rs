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
use hotslot_driver::domain::{
    ControllerModel, DomainXml, Hostdev, MdevHostdev, PciController, UnplugBy, UserAlias,
};
use hotslot_driver::mdev::Mdev;
use hotslot_driver::pci::{PciAddress, PciId};
use hotslot_driver::topology::Topology;
use hotslot_model::assignment::{InnerAddress, InnerSource};
use hotslot_model::device::Functions;
use hotslot_service::error::Error;
use hotslot_service::hosts::Hosts;
use hotslot_service::records::Records;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::body::Path;
use super::error::Fault;
use super::permit::Permit;
use super::schema;
use super::servers::{self, ServerPath};

/// The PCI tree of a guest.
#[derive(Serialize, ToSchema)]
pub(super) struct TopologyAnswer {
    /// The tree.
    pci_topology: PciTopology,
}

/// The PCI tree of the running guest, or of its definition while the guest is shut off.
#[derive(Serialize, ToSchema)]
pub(super) struct PciTopology {
    /// The server.
    server_id: Uuid,
    /// The name of the domain.
    name: String,
    /// The name of the host; null for callers who may not see hosts.
    host: Option<String>,
    /// Nova's status of the server.
    status: &'static str,
    /// Whether the tree is that of the running guest.
    running: bool,
    /// The tree itself.
    #[serde(flatten)]
    tree: Tree,
}

/// The controllers, devices and free ports of a guest.
#[derive(Serialize, ToSchema)]
#[schema(as = PciTree)]
struct Tree {
    /// The machine type, such as `pc-q35-10.0`.
    machine: String,
    /// The PCI controllers, in the order of the domain's document.
    controllers: Vec<Controller>,
    /// The devices in the slots of the controllers, by address.
    devices: Vec<GuestDevice>,
    /// Where a device can be hot-plugged.
    free_ports: FreePorts,
}

/// A PCI controller of a guest: a root, a bridge or a port.
#[derive(Serialize, ToSchema)]
#[schema(as = PciController)]
struct Controller {
    /// The index in the domain's document, which is the bus of addresses behind it.
    index: u8,
    /// libvirt's name of the model, such as `pcie-root-port`.
    model: &'static str,
    /// The alias in the domain's document.
    alias: Option<String>,
    /// The address in the domain's document; null for a root.
    #[schema(value_type = Option<schema::PciAddress>)]
    address: Option<PciAddress>,
    /// The address that the guest sees; null when it is not known.
    #[schema(value_type = Option<schema::PciAddress>)]
    inner_address: Option<PciAddress>,
    /// The number of its bus that the guest sees; null when it is not known.
    inner_bus: Option<u8>,
    /// Whether devices can be hot-plugged behind it.
    hotplug: bool,
    /// The bytes of non-prefetchable memory that firmware reserves behind a port for a device that is plugged later; null
    /// for other controllers.
    memory_window: Option<u64>,
    /// The bytes of 64-bit prefetchable memory that firmware reserves behind it, as the document says; null when the
    /// firmware chooses.
    prefetchable_window: Option<u64>,
    /// How the guest is asked to release a device behind it: `acpi`, or `native` for the attention button of PCI Express,
    /// after which a guest waits for five seconds. Null when that is not known.
    unplug_by: Option<&'static str>,
}

/// A place of a guest: the address in the domain's document, and the one that the guest sees.
#[derive(Serialize, ToSchema)]
#[schema(as = GuestAddress)]
struct Place {
    /// The address in the domain's document, whose bus is the index of the controller.
    #[schema(value_type = schema::PciAddress)]
    address: PciAddress,
    /// The address that the guest sees; null when it is not known.
    #[schema(value_type = Option<schema::PciAddress>)]
    inner_address: Option<PciAddress>,
    /// Where `inner_address` comes from; null when it is not known.
    #[schema(value_type = Option<schema::InnerAddressSource>)]
    inner_address_source: Option<InnerSource>,
}

/// A device of a guest.
#[derive(Serialize, ToSchema)]
struct GuestDevice {
    /// Where the device is.
    #[serde(flatten)]
    place: Place,
    /// The device of the host that is passed through; null for an emulated or a mediated device.
    host_device: Option<PassedThrough>,
    /// The mediated device; null for every other device.
    mediated_device: Option<Mediated>,
}

/// A device of a host that a guest has.
#[derive(Serialize, ToSchema)]
#[schema(as = HostDeviceOfGuest)]
struct PassedThrough {
    /// The address on the host; null for callers who may not see hosts.
    #[schema(value_type = Option<schema::PciAddress>)]
    address: Option<PciAddress>,
    /// The vendor id; null when the host was not read.
    #[schema(value_type = Option<schema::PciId>)]
    vendor_id: Option<PciId>,
    /// The product id; null when the host was not read.
    #[schema(value_type = Option<schema::PciId>)]
    product_id: Option<PciId>,
    /// The name of the vendor.
    vendor_name: Option<String>,
    /// The name of the product.
    product_name: Option<String>,
    /// The attachment; null when somebody else put the device there.
    attachment_id: Option<Uuid>,
}

/// A mediated device that a guest has.
#[derive(Serialize, ToSchema)]
#[schema(as = MediatedDeviceOfGuest)]
struct Mediated {
    /// The UUID.
    mdev_uuid: Uuid,
    /// The id of its type; null when the host does not have it.
    mdev_type: Option<String>,
    /// The address of the function that provides it; null when the host does not have it, and for callers who may not see
    /// hosts.
    #[schema(value_type = Option<schema::PciAddress>)]
    address: Option<PciAddress>,
    /// Its record, whose id is the UUID; null when somebody else put the device there.
    attachment_id: Option<Uuid>,
}

/// Where a device can be hot-plugged.
#[derive(Serialize, ToSchema)]
struct FreePorts {
    /// Free ports for PCI Express devices.
    express: Vec<Place>,
    /// Free slots for conventional PCI devices.
    conventional: Vec<Place>,
}

/// Shows the PCI tree of a guest, with its free hot-plug ports. An extension of hotslot.
#[utoipa::path(get, path = "/servers/{server_id}/pci_topology", tag = "Servers", params(ServerPath),
    operation_id = "show_topology",
    responses((status = 200, description = "The tree.", body = TopologyAnswer)))]
pub(super) async fn show(
    State(hosts): State<Arc<Hosts>>,
    State(records): State<Arc<Records>>,
    permit: Permit,
    Path(path): Path<ServerPath>,
) -> Result<Json<TopologyAnswer>, Fault> {
    let server = path.id()?;
    let (host, view) = permit.server(&hosts, server).await?;
    let running = view.live.is_some();
    let document = view.live.or(view.persistent).ok_or(Error::NoServer(server))?;
    let attachments = records.attachments_of(server).await?;
    let mut mdevs = records.mdevs().await?;
    mdevs.retain(|row| row.server == server && row.hypervisor == host.row.id);
    let seen = |guest: Option<PciAddress>, inner: Option<InnerAddress>| {
        let inner = inner.filter(|inner| running && inner.source == InnerSource::Verified)?;
        Some((guest?, inner.address))
    };
    let whole = attachments
        .iter()
        .filter(|row| row.hypervisor == host.row.id)
        .filter_map(|row| seen(document.hostdev(UserAlias(row.id.0))?.guest, row.inner));
    let mediated = mdevs.iter().filter_map(|row| seen(document.mdev(UserAlias(row.id.0))?.guest, row.inner));
    let verified = whole.chain(mediated).collect();
    let mut tree = describe(&document, &host.functions(), &host.mdevs(), &verified);
    if !permit.sees_hosts() {
        for device in &mut tree.devices {
            let host = device.host_device.as_mut().map(|device| &mut device.address);
            let parent = device.mediated_device.as_mut().map(|device| &mut device.address);
            host.into_iter().chain(parent).for_each(|address| *address = None);
        }
    }
    let pci_topology = PciTopology {
        server_id: view.info.uuid,
        name: view.info.name,
        host: permit.sees_hosts().then(|| host.name.clone()),
        status: servers::status(view.info.state),
        running,
        tree,
    };
    Ok(Json(TopologyAnswer { pci_topology }))
}

/// The guest addresses that the guest or QEMU reported, by libvirt's addresses.
type Verified = BTreeMap<PciAddress, PciAddress>;

fn describe(document: &DomainXml, functions: &Functions, made: &[Mdev], verified: &Verified) -> Tree {
    let topology = Topology::of(document);
    let place = |address: PciAddress| {
        let (inner_address, inner_address_source) =
            match (verified.get(&address), topology.guest_address(address)) {
                (Some(seen), _) => (Some(*seen), Some(InnerSource::Verified)),
                (None, Some(computed)) => (Some(computed), Some(InnerSource::Computed)),
                (None, None) => (None, None),
            };
        Place { address, inner_address, inner_address_source }
    };
    let list = |addresses: Vec<PciAddress>| addresses.into_iter().map(place).collect::<Vec<_>>();
    // When two controllers have one index, which libvirt does not write, the first one counts, as in `Topology`.
    let mut indexes = BTreeSet::new();
    let controllers: Vec<_> =
        document.controllers.iter().filter(|controller| indexes.insert(controller.index)).collect();
    let ports: BTreeSet<_> = controllers.iter().filter_map(|controller| controller.address).collect();
    let addresses: BTreeSet<_> =
        document.occupied.iter().filter(|address| !ports.contains(address)).collect();
    let devices = addresses.into_iter().map(|address| {
        let hostdev = document.hostdevs.iter().find(|hostdev| hostdev.guest == Some(*address));
        let mdev = document.mdevs.iter().find(|mdev| mdev.guest == Some(*address));
        GuestDevice {
            place: place(*address),
            host_device: hostdev.map(|hostdev| host_device(hostdev, functions)),
            mediated_device: mdev.map(|mdev| mediated_device(mdev, made)),
        }
    });
    let devices: Vec<_> = devices.collect();
    let free = topology.free_ports();
    Tree {
        machine: document.machine.clone(),
        controllers: controllers.iter().map(|one| controller(one, document, &topology, verified)).collect(),
        devices,
        free_ports: FreePorts { express: list(free.express), conventional: list(free.conventional) },
    }
}

fn controller(
    controller: &PciController,
    document: &DomainXml,
    topology: &Topology,
    verified: &Verified,
) -> Controller {
    // The verified address of a device gives the number of its bus.
    let seen = verified.iter().find(|(address, _)| address.bus() == controller.index).map(|(_, seen)| *seen);
    let first = PciAddress::new(0, controller.index.into(), 0, 0).ok();
    let bus = seen.or_else(|| topology.guest_address(first?)).map(PciAddress::bus);
    Controller {
        index: controller.index,
        model: model(controller.model),
        alias: controller.alias.clone(),
        address: controller.address,
        inner_address: controller.address.and_then(|address| topology.guest_address(address)),
        inner_bus: bus,
        hotplug: controller.hotplug,
        memory_window: controller.memory_window(),
        prefetchable_window: controller.pref64_reserve,
        unplug_by: first.and_then(|first| document.unplug_by(first)).map(|by| match by {
            UnplugBy::Acpi => "acpi",
            UnplugBy::Native => "native",
        }),
    }
}

fn host_device(hostdev: &Hostdev, functions: &Functions) -> PassedThrough {
    let function = functions.get(&hostdev.source);
    let name = |name: Option<&str>| name.map(str::to_owned);
    PassedThrough {
        address: Some(hostdev.source),
        vendor_id: function.map(|function| function.vendor_id),
        product_id: function.map(|function| function.product_id),
        vendor_name: name(function.and_then(|function| function.vendor_name.as_deref())),
        product_name: name(function.and_then(|function| function.product_name.as_deref())),
        attachment_id: recorded(hostdev.alias.as_deref()),
    }
}

fn mediated_device(hostdev: &MdevHostdev, made: &[Mdev]) -> Mediated {
    let mdev = made.iter().find(|mdev| mdev.uuid == hostdev.uuid);
    Mediated {
        mdev_uuid: hostdev.uuid,
        mdev_type: mdev.map(|mdev| mdev.mdev_type.clone()),
        address: mdev.and_then(|mdev| mdev.parent),
        attachment_id: recorded(hostdev.alias.as_deref()),
    }
}

/// Returns the id of the record of a device with this alias; `None` for an alias that is not one of ours.
fn recorded(alias: Option<&str>) -> Option<Uuid> {
    alias.and_then(UserAlias::parse).map(|alias| alias.0)
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
    use serde_json::{Value, json};

    use super::*;

    fn describe(devices: &str) -> Value {
        let document = format!(
            "<domain type='kvm'><name>g</name><uuid>10000000-0000-4000-8000-000000000001</uuid>\
             <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os><devices>\
             <controller type='pci' index='0' model='pcie-root'/>{devices}</devices></domain>"
        );
        let tree =
            super::describe(&domain::parse(&document).unwrap(), &Functions::new(), &[], &Verified::new());
        serde_json::to_value(tree).unwrap()
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
    fn a_port_shows_its_windows_and_how_its_device_is_unplugged() {
        let tree = describe(&port(1, 3, 0));
        let port = |tree: &Value| {
            let port = &tree["controllers"][1];
            (port["memory_window"].clone(), port["prefetchable_window"].clone(), port["unplug_by"].clone())
        };
        assert_eq!(port(&tree), (json!(2 << 20), Value::Null, json!("acpi")));
        let root = &tree["controllers"][0];
        assert_eq!((&root["memory_window"], &root["unplug_by"]), (&Value::Null, &json!("acpi")));
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
