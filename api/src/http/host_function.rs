//! A PCI function of a host, assignable or not. An extension of hotslot.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::{PciAddress, PciClass, PciId};
use hotslot_model::device::{Device, DeviceStatus};
use hotslot_model::id::{DeviceId, ServerId};
use hotslot_model::rules::Foreign;
use hotslot_service::host::Host;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::Path;
use super::error::Fault;
use super::hypervisors::HypervisorPath;
use super::schema;
use super::state::DeviceParts;

/// A PCI function of a host.
#[derive(Serialize, ToSchema)]
pub(super) struct HostFunction {
    /// The name of the host.
    host: String,
    /// The address.
    #[schema(value_type = schema::PciAddress)]
    address: PciAddress,
    /// libvirt's name of the function, such as `pci_0000_3b_00_1`.
    dev_id: String,
    /// libvirt's name of the bridge that it is behind; `computer` on the root bus.
    parent: Option<String>,
    /// The vendor id.
    #[schema(value_type = schema::PciId)]
    vendor_id: PciId,
    /// The product id.
    #[schema(value_type = schema::PciId)]
    product_id: PciId,
    /// The name of the vendor, by libvirt's table.
    vendor_name: Option<String>,
    /// The name of the product, by libvirt's table.
    product_name: Option<String>,
    /// The class code; null when libvirt, before 5.3, does not tell it.
    #[schema(value_type = Option<schema::PciClassCode>)]
    class: Option<PciClass>,
    /// The class in words.
    class_name: Option<&'static str>,
    /// `type-PCI`, `type-PF`, `type-VF` or `vdpa`, as in Nova.
    #[schema(value_type = schema::PciDeviceType)]
    dev_type: &'static str,
    /// The address of the PF of a VF.
    #[schema(value_type = Option<schema::PciAddress>)]
    parent_addr: Option<PciAddress>,
    /// The maximum number of VFs of a PF.
    max_vfs: Option<u32>,
    /// The VFs that a PF has.
    #[schema(value_type = Option<Vec<schema::PciAddress>>)]
    vfs: Option<Vec<PciAddress>>,
    /// The driver that is bound; null for none.
    driver: Option<String>,
    /// Whether it is a bridge or a port, which is never assignable.
    bridge: bool,
    /// Whether it has a PCI Express capability. A function without one needs a conventional PCI slot.
    express: bool,
    /// The PCI Express link; null when libvirt does not tell it.
    link: Option<ExpressLink>,
    /// The IOMMU group; null without an IOMMU.
    iommu_group: Option<Group>,
    /// The NUMA node; null when the platform does not tell it.
    numa_node: Option<u32>,
    /// The serial number of the card.
    serial: Option<String>,
    /// The names of the network interfaces on it.
    net: Vec<String>,
    /// The character devices of the vDPA devices on it.
    vdpa: Vec<String>,
    /// The names of the block devices on it.
    block: Vec<String>,
    /// The number of the device in `os-pci`; null when no `device_spec` lists it.
    #[schema(value_type = Option<i64>)]
    id: Option<DeviceId>,
    /// Whether the device is free; null when no `device_spec` lists it.
    #[schema(value_type = Option<schema::PciDeviceStatus>)]
    status: Option<DeviceStatus>,
    /// The server to which hotslot assigned it.
    #[schema(value_type = Option<Uuid>)]
    instance_uuid: Option<ServerId>,
    /// Who has it, in words.
    owner: Option<String>,
    /// The domain into which somebody else put it.
    foreign: Option<ForeignUse>,
    /// Why the host needs it: the kind of the guard and the reason. Null when the host does not need it, when that cannot
    /// be read, when the configuration says that its guards do not count, and among candidates.
    guard: Option<String>,
}

/// A PCI Express link.
#[derive(Serialize, ToSchema)]
struct ExpressLink {
    /// The current speed in GT/s, as libvirt writes it (`2.5`, `16`).
    speed: Option<String>,
    /// The current width in lanes.
    width: Option<u32>,
    /// The maximum speed in GT/s.
    max_speed: Option<String>,
    /// The maximum width in lanes.
    max_width: Option<u32>,
}

/// The smallest set of functions that the IOMMU can isolate.
#[derive(Serialize, ToSchema)]
#[schema(as = IommuGroup)]
struct Group {
    /// The kernel's number of the group, which may change at a reboot.
    number: u32,
    /// All members, including the function itself.
    #[schema(value_type = Vec<schema::PciAddress>)]
    members: Vec<PciAddress>,
}

/// The domain into which somebody other than hotslot put a function.
#[derive(Serialize, ToSchema)]
struct ForeignUse {
    /// The name of the domain.
    domain: String,
    /// The UUID of the domain.
    #[schema(value_type = Uuid)]
    uuid: ServerId,
    /// Whether the running guest has it.
    live: bool,
    /// Whether the definition has it.
    persistent: bool,
}

/// The functions of a host.
#[derive(Serialize, ToSchema)]
pub(super) struct HostFunctionList {
    /// The functions, by address.
    pci_devices: Vec<HostFunction>,
}

/// Lists every PCI function of a host, assignable or not. An extension of hotslot.
#[utoipa::path(get, path = "/os-hypervisors/{hypervisor_id}/pci_devices", tag = "Hypervisors",
    params(HypervisorPath), operation_id = "list_functions",
    responses((status = 200, description = "The functions.", body = HostFunctionList)))]
pub(super) async fn list(
    State(DeviceParts { hosts, catalog, records, .. }): State<DeviceParts>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<HostFunctionList>, Fault> {
    let host = path.host(&hosts)?;
    let availability = catalog.availability(host).await?;
    let functions = host.hypervisor.devices().await.map_err(host.error("list the host's devices"))?;
    let rows = records.devices_of(host.row.id).into_iter();
    let rows: BTreeMap<_, _> = rows.map(|row| (row.facts.address, row)).collect();
    let describe = |function: &HostDevice| {
        let address = function.address;
        let foreign = availability.foreign.get(&address);
        describe(host, function, rows.get(&address), foreign, availability.guard(address))
    };
    Ok(Json(HostFunctionList { pci_devices: functions.iter().map(describe).collect() }))
}

/// Returns a human-readable owner of a device: the server or host to which hotslot assigned it, or the domain into
/// which somebody else put it.
pub(super) fn owner(row: Option<&Device>, foreign: Option<&Foreign>) -> Option<String> {
    let owner = row.and_then(|row| row.owner).map(|owner| owner.to_string());
    owner.or_else(|| foreign.map(Foreign::to_string))
}

pub(super) fn describe(
    host: &Host,
    device: &HostDevice,
    row: Option<&Arc<Device>>,
    foreign: Option<&Foreign>,
    guard: Option<String>,
) -> HostFunction {
    let (dev_type, parent_addr, max_vfs, vfs) = match &device.role {
        Role::Plain => ("type-PCI", None, None, None),
        Role::Physical { max_vfs, vfs } => ("type-PF", None, Some(*max_vfs), Some(vfs.clone())),
        Role::Virtual { parent } if !device.vdpa.is_empty() => ("vdpa", Some(*parent), None, None),
        Role::Virtual { parent } => ("type-VF", Some(*parent), None, None),
    };
    let text = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
    HostFunction {
        host: host.name.clone(),
        address: device.address,
        dev_id: device.address.node_name(),
        parent: text(&device.parent),
        vendor_id: device.vendor_id,
        product_id: device.product_id,
        vendor_name: text(&device.vendor_name),
        product_name: text(&device.product_name),
        class: device.class,
        class_name: device.class.map(|class| class.description()),
        dev_type,
        parent_addr,
        max_vfs,
        vfs,
        driver: device.driver_name(),
        bridge: device.bridge,
        express: device.express,
        link: device.link.as_ref().map(|link| ExpressLink {
            speed: link.speed.clone(),
            width: link.width,
            max_speed: link.max_speed.clone(),
            max_width: link.max_width,
        }),
        iommu_group: device
            .iommu_group
            .as_ref()
            .map(|group| Group { number: group.number, members: group.members.clone() }),
        numa_node: device.numa_node,
        serial: device.serial.clone(),
        net: device.net.iter().map(|interface| interface.name.clone()).collect(),
        vdpa: device.vdpa.clone(),
        block: device.block.clone(),
        id: row.map(|row| row.id),
        status: row.map(|row| row.status),
        instance_uuid: row.and_then(|row| row.server()),
        owner: owner(row.map(Arc::as_ref), foreign),
        foreign: foreign.map(|foreign| ForeignUse {
            domain: foreign.domain.clone(),
            uuid: foreign.server,
            live: foreign.live,
            persistent: foreign.persistent,
        }),
        guard,
    }
}
