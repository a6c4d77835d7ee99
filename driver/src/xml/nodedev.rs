//! Reads libvirt's node device documents into [`HostDevice`]s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::XmlError;
use super::mdev;
use super::read::{self, Fault, child, child_text, children, required, required_attribute, required_number};
use super::tree::Element;
use crate::device::{HostDevice, Interface, IommuGroup, Link, Role, Shared};
use crate::mdev::Mdev;
use crate::pci::{PciAddress, PciClass};

/// The node device that a document describes, as far as hotslot reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeDevice {
    /// A PCI function. Its `net`, `vdpa` and `block` are empty, because those are separate node devices; see
    /// [`attach_children`].
    Pci(Box<HostDevice>),
    /// A network interface.
    Net {
        /// The PCI function that it is on; `None` for a virtual interface.
        function: Option<PciAddress>,
        /// The interface.
        interface: Interface,
    },
    /// A vDPA device.
    Vdpa {
        /// The PCI function that it is on; `None` for a simulated vDPA device.
        function: Option<PciAddress>,
        /// The character device, `/dev/vhost-vdpa-0`; empty when it has none.
        path: String,
    },
    /// A block device.
    Block {
        /// The PCI function that it is on; one of them for a disk with several paths, `None` for a virtual device.
        function: Option<PciAddress>,
        /// The path on the host, `/dev/nvme0n1`.
        path: String,
        /// The serial number from udev.
        serial: Option<String>,
    },
    /// A mediated device.
    Mdev(Mdev),
    /// Anything else. PCI functions in 32-bit domains (VMD), and functions that share an IOMMU group with one, are also
    /// in here, because libvirt cannot assign them.
    Other,
}

/// Reads one node device document.
///
/// # Errors
/// [`XmlError`] with the element that could not be read. Unknown elements are ignored.
pub fn parse(xml: &str) -> Result<NodeDevice, XmlError> {
    let document = read::document(xml, "node device", "device")?;
    let device = &document.root;
    let name = read::required_text(device, "name").map_err(|fault| document.error("node device", fault))?;
    node_device(device, &name).map_err(|fault| document.error(format!("node device {name}"), fault))
}

fn node_device(device: &Element<'_>, name: &str) -> Result<NodeDevice, Fault> {
    for capability in children(device, "capability") {
        match capability.attribute("type") {
            Some("pci") if has_32_bit_domain(capability) => return Ok(NodeDevice::Other),
            Some("pci") => return Ok(NodeDevice::Pci(Box::new(function(device, capability)?))),
            Some("mdev") => return Ok(NodeDevice::Mdev(mdev::device(device, name, capability)?)),
            Some("net") => {
                let interface = Interface {
                    name: read::required_text(capability, "interface")?,
                    mac: child_text(capability, "address").and_then(|mac| mac.parse().ok()),
                    features: children(capability, "feature")
                        .filter_map(|feature| feature.attribute("name").map(str::to_owned))
                        .collect(),
                };
                return Ok(NodeDevice::Net { function: owner(device), interface });
            }
            Some("vdpa") => {
                let path = child_text(capability, "chardev").unwrap_or_default();
                return Ok(NodeDevice::Vdpa { function: owner(device), path });
            }
            Some("storage") => {
                let path = read::required_text(capability, "block")?;
                let serial = child_text(capability, "serial");
                return Ok(NodeDevice::Block { function: owner(device), path, serial });
            }
            Some(_) | None => {}
        }
    }
    Ok(NodeDevice::Other)
}

/// Whether the capability contains a PCI address whose domain does not fit into 16 bits. libvirt cannot assign such
/// devices.
fn has_32_bit_domain(pci: &Element<'_>) -> bool {
    let domain = |node: &Element<'_>| match node.local_name() {
        "domain" => read::text(node).and_then(|text| read::parse_number(&text).ok()),
        "address" => node.attribute("domain").and_then(|text| read::parse_number(text).ok()),
        _ => None,
    };
    pci.descendants().filter_map(domain).any(|domain| domain > 0xffff)
}

/// Returns the PCI function that a child device is on: the last one in its sysfs path, however many virtio, SCSI or USB
/// devices are in between. The sysfs path of an NVMe multipath namespace is virtual, but its link in
/// `/dev/disk/by-path` names a function. Without a path it is the parent.
fn owner(device: &Element<'_>) -> Option<PciAddress> {
    let Some(path) = child_text(device, "path") else {
        return PciAddress::from_node_name(&child_text(device, "parent")?).ok();
    };
    let by_sysfs = path.rsplit('/').find_map(|part| part.parse().ok());
    by_sysfs.or_else(|| {
        children(device, "devnode")
            .filter_map(read::text)
            .find_map(|link| link.strip_prefix("/dev/disk/by-path/pci-")?.split('-').next()?.parse().ok())
    })
}

fn function(device: &Element<'_>, pci: &Element<'_>) -> Result<HostDevice, Fault> {
    let class: Option<PciClass> = child(pci, "class").map(read::value).transpose()?;
    let express = child(pci, "pci-express");
    Ok(HostDevice {
        address: own_address(pci)?,
        vendor_id: required_attribute(required(pci, "vendor")?, "id")?,
        product_id: required_attribute(required(pci, "product")?, "id")?,
        vendor_name: child_text(pci, "vendor").map(Arc::from),
        product_name: child_text(pci, "product").map(Arc::from),
        class,
        role: role(pci)?,
        iommu_group: child(pci, "iommuGroup").map(iommu_group).transpose()?,
        numa_node: child(pci, "numa").map(|numa| required_number(numa, "node")).transpose()?,
        driver: child(device, "driver").and_then(|driver| child_text(driver, "name")).map(Arc::from),
        vfio_dev: None,
        parent: child_text(device, "parent").map(Arc::from),
        bridge: capability(pci, "pci-bridge").is_some() || class.is_some_and(PciClass::is_bridge),
        express: express.is_some(),
        link: express.map(link).transpose()?.flatten().map(Arc::new),
        serial: serial(pci),
        net: Vec::new(),
        vdpa: Vec::new(),
        block: Vec::new(),
    })
}

/// Reads the address from `<domain>`, `<bus>`, `<slot>` and `<function>`.
fn own_address(pci: &Element<'_>) -> Result<PciAddress, Fault> {
    let number = |name| read::value(required(pci, name)?);
    let [domain, bus, slot, function] =
        [number("domain")?, number("bus")?, number("slot")?, number("function")?];
    PciAddress::new(domain, bus, slot, function).map_err(|error| Fault::at(pci, error))
}

fn capability<'a, 'input>(pci: &'a Element<'input>, kind: &str) -> Option<&'a Element<'input>> {
    children(pci, "capability").find(|capability| capability.attribute("type") == Some(kind))
}

fn addresses(node: &Element<'_>) -> Result<Vec<PciAddress>, Fault> {
    let mut addresses: Vec<_> = children(node, "address").map(read::pci_address).collect::<Result<_, _>>()?;
    addresses.sort();
    Ok(addresses)
}

fn role(pci: &Element<'_>) -> Result<Role, Fault> {
    // A `phys_function` without an address does not identify the PF. Nova does not regard such a function as a VF
    // either.
    if let Some(physical) = capability(pci, "phys_function").and_then(|physical| child(physical, "address")) {
        return Ok(Role::Virtual { parent: read::pci_address(physical)? });
    }
    let Some(virtuals) = capability(pci, "virt_functions") else { return Ok(Role::Plain) };
    let vfs = addresses(virtuals)?;
    let max_vfs = read::number(virtuals, "maxCount")?.unwrap_or(vfs.len() as u32);
    Ok(Role::Physical { max_vfs, vfs })
}

fn iommu_group(group: &Element<'_>) -> Result<IommuGroup, Fault> {
    Ok(IommuGroup { number: required_number(group, "number")?, members: addresses(group)? })
}

/// Reads the link; `None` for a device without one (an endpoint integrated into the root complex).
fn link(express: &Element<'_>) -> Result<Option<Link>, Fault> {
    let side = |validity| children(express, "link").find(|link| link.attribute("validity") == Some(validity));
    let width = |side: Option<&Element<'_>>| side.map_or(Ok(None), |link| read::number(link, "width"));
    let speed = |side: Option<&Element<'_>>| side?.attribute("speed").map(str::to_owned);
    let (cap, sta) = (side("cap"), side("sta"));
    Ok((cap.is_some() || sta.is_some()).then_some(Link {
        max_speed: speed(cap),
        max_width: width(cap)?,
        speed: speed(sta),
        width: width(sta)?,
    }))
}

fn serial(pci: &Element<'_>) -> Option<String> {
    children(capability(pci, "vpd")?, "fields").find_map(|fields| child_text(fields, "serial_number"))
}

/// Adds the network interfaces, vDPA and block devices in `nodes` to the functions in `nodes` that they are on, and
/// returns these functions in order of address.
pub fn attach_children(nodes: Vec<NodeDevice>) -> Vec<HostDevice> {
    let mut devices = BTreeMap::new();
    let mut net: Vec<(PciAddress, Interface)> = Vec::new();
    let mut vdpa: Vec<(PciAddress, String)> = Vec::new();
    let mut shared = Shared::default();
    let mut lists: BTreeSet<Arc<[String]>> = BTreeSet::new();
    let mut block: Vec<(PciAddress, String)> = Vec::new();
    let mut serials: Vec<(PciAddress, Option<String>)> = Vec::new();
    for node in nodes {
        match node {
            NodeDevice::Pci(mut device) => {
                shared.share(&mut device);
                devices.insert(device.address, *device);
            }
            NodeDevice::Net { function: Some(function), mut interface } => {
                match lists.get(&interface.features) {
                    Some(list) => interface.features = Arc::clone(list),
                    None => drop(lists.insert(Arc::clone(&interface.features))),
                }
                net.push((function, interface));
            }
            NodeDevice::Vdpa { function: Some(function), path } => vdpa.push((function, path)),
            NodeDevice::Block { function: Some(function), path, serial } => {
                serials.push((function, serial));
                let name = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned());
                block.push((function, name.unwrap_or(path)));
            }
            NodeDevice::Net { function: None, .. }
            | NodeDevice::Vdpa { function: None, .. }
            | NodeDevice::Block { function: None, .. }
            | NodeDevice::Mdev(_)
            | NodeDevice::Other => {}
        }
    }
    net.sort_by(|(one, of_one), (other, of_other)| (one, &of_one.name).cmp(&(other, &of_other.name)));
    vdpa.sort();
    block.sort();
    serials.sort();
    for (function, serial) in serials {
        if let Some(device) = devices.get_mut(&function) {
            device.learn_serial(serial);
        }
    }
    for (function, interface) in net {
        if let Some(device) = devices.get_mut(&function) {
            device.net.push(interface);
        }
    }
    for (function, path) in vdpa {
        if let Some(device) = devices.get_mut(&function) {
            device.vdpa.push(path);
        }
    }
    for (function, name) in block {
        if let Some(device) = devices.get_mut(&function) {
            device.block.push(name);
        }
    }
    devices.into_values().collect()
}
