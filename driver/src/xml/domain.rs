//! Reads libvirt's domain document into a [`DomainXml`].

use std::collections::HashMap;

use super::XmlError;
use super::numa;
use super::ownership::{self, NOVA};
use super::read::{self, Fault, child, children, required, required_attribute, required_number};
use super::tree::Element;
use crate::domain::{ControllerModel, DomainXml, Hostdev, MdevHostdev, PciController};
use crate::net::VlanTag;
use crate::pci::PciAddress;

/// The namespace of `<qemu:override>`.
const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";
/// The name of the guest agent's channel.
const AGENT: &str = "org.qemu.guest_agent.0";

/// Reads one domain document, live or persistent.
///
/// # Errors
/// [`XmlError`] with the element that could not be read. Unknown elements are ignored.
pub fn parse(xml: &str) -> Result<DomainXml, XmlError> {
    let document = read::document(xml, "domain", "domain")?;
    let root = &document.root;
    let name = read::required_text(root, "name").map_err(|fault| document.error("domain", fault))?;
    domain(root, &name).map_err(|fault| document.error(format!("domain {name}"), fault))
}

fn domain(root: &Element<'_>, name: &str) -> Result<DomainXml, Fault> {
    let os_type = required(required(root, "os")?, "type")?;
    let devices = required(root, "devices")?;
    let reserves = reserves(root)?;
    Ok(DomainXml {
        uuid: read::value(required(root, "uuid")?)?,
        name: name.to_owned(),
        arch: required_attribute(os_type, "arch")?,
        machine: os_type.attribute("machine").unwrap_or_default().to_owned(),
        created: nova(root, "creationTime").and_then(read::text),
        ownership: ownership::read(root),
        controllers: children(devices, "controller")
            .filter(|controller| controller.attribute("type") == Some("pci"))
            .map(|node| controller(node, &reserves))
            .collect::<Result<_, _>>()?,
        hostdevs: hostdevs(devices)?,
        mdevs: children(devices, "hostdev")
            .filter(|device| device.attribute("type") == Some("mdev"))
            .map(mdev)
            .collect::<Result<_, _>>()?,
        vdpas: devices
            .children
            .iter()
            .filter(|device| matches!(device.attribute("type"), Some("vdpa" | "vhostvdpa")))
            .filter_map(|device| child(device, "source")?.attribute("dev").map(str::to_owned))
            .collect(),
        occupied: devices
            .children
            .iter()
            .filter_map(|device| guest_address(device).transpose())
            .collect::<Result<_, _>>()?,
        agent_connected: children(devices, "channel").filter_map(|channel| child(channel, "target")).any(
            |target| {
                target.attribute("name") == Some(AGENT) && target.attribute("state") == Some("connected")
            },
        ),
        user_network: user_network(root, devices),
        renumbers_buses: required(root, "os").is_ok_and(|os| {
            child(os, "cmdline").and_then(read::text).is_some_and(|line| renumbers_buses(&line))
        }),
        numa_nodes: numa::nodes_of_cells(root)?,
        memory: child(root, "memory").map_or(Ok(0), read::bytes)?,
        hard_limit: child(root, "memtune")
            .and_then(|memtune| child(memtune, "hard_limit"))
            .map(read::bytes)
            .transpose()?,
    })
}

/// Returns a device's PCI address in the guest, or `None` when it has none or an empty one that libvirt has not filled
/// in yet (`<address type='pci'/>`).
fn guest_address(device: &Element<'_>) -> Result<Option<PciAddress>, Fault> {
    let Some(node) = child(device, "address").filter(|node| node.attribute("type") == Some("pci")) else {
        return Ok(None);
    };
    let address = read::pci_address(node)?;
    let empty = address.domain() == 0 && address.bus() == 0 && address.slot() == 0;
    Ok((!empty).then_some(address))
}

fn alias(device: &Element<'_>) -> Option<String> {
    child(device, "alias")?.attribute("name").map(str::to_owned)
}

/// Whether a kernel command line makes Linux renumber the PCI buses.
fn renumbers_buses(command_line: &str) -> bool {
    let words = command_line.split_whitespace().map(|word| word.trim_matches('"'));
    let options = words.filter_map(|word| word.strip_prefix("pci=")).flat_map(|options| options.split(','));
    options.into_iter().any(|option| option == "assign-busses")
}

/// Finds an element of Nova's metadata by its name and namespace; the prefix does not matter.
fn nova<'a, 'input>(root: &'a Element<'input>, name: &str) -> Option<&'a Element<'input>> {
    let nova = |node: &Element<'_>| node.namespace().is_some_and(|uri| uri.starts_with(NOVA));
    child(root, "metadata")?.descendants().find(|node| node.local_name() == name && nova(node))
}

/// The resources that firmware has to reserve behind a port.
#[derive(Default, Clone, Copy)]
struct Reserve {
    buses: Option<u8>,
    mem: Option<u64>,
    pref64: Option<u64>,
}

/// Returns what `<qemu:override>` reserves behind each device, by the device's alias.
fn reserves<'a>(root: &'a Element<'_>) -> Result<HashMap<&'a str, Reserve>, Fault> {
    let named = |name: &'static str| {
        move |node: &&Element<'_>| node.namespace() == Some(QEMU) && node.local_name() == name
    };
    let mut reserves: HashMap<&str, Reserve> = HashMap::new();
    for device in root.children.iter().filter(named("override")).flat_map(|node| &node.children) {
        let Some(alias) = device.attribute("alias") else { continue };
        let reserve = reserves.entry(alias).or_default();
        let properties = device.children.iter().filter(named("frontend")).flat_map(|node| &node.children);
        for property in properties {
            match property.attribute("name") {
                Some("bus-reserve") => reserve.buses = Some(required_number(property, "value")?),
                Some("mem-reserve") => reserve.mem = Some(required_attribute(property, "value")?),
                Some("pref64-reserve") => reserve.pref64 = Some(required_attribute(property, "value")?),
                Some(_) | None => {}
            }
        }
    }
    Ok(reserves)
}

fn controller(node: &Element<'_>, reserves: &HashMap<&str, Reserve>) -> Result<PciController, Fault> {
    let index = required_number(node, "index")?;
    let target = child(node, "target");
    let mem_reserve = target.filter(|target| target.attribute("memReserve").is_some());
    let mem_reserve =
        mem_reserve.map(|target| required_attribute::<u64>(target, "memReserve")).transpose()?;
    let alias = alias(node);
    // A persistent document has no aliases, but an override names the one that libvirt will assign.
    let reserve = match &alias {
        Some(alias) => reserves.get(alias.as_str()),
        None => reserves.get(format!("pci.{index}").as_str()),
    };
    let reserve = reserve.copied().unwrap_or_default();
    Ok(PciController {
        index,
        model: model(node)?,
        address: guest_address(node)?,
        bus_nr: target.map_or(Ok(None), |target| read::number(target, "busNr"))?,
        hotplug: target.and_then(|target| target.attribute("hotplug")) != Some("off"),
        bus_reserve: reserve.buses,
        // QEMU gets an override last.
        mem_reserve: reserve.mem.or(mem_reserve.map(|kib| kib.saturating_mul(1 << 10))),
        pref64_reserve: reserve.pref64,
        alias,
    })
}

fn model(controller: &Element<'_>) -> Result<ControllerModel, Fault> {
    let name: String = required_attribute(controller, "model")?;
    Ok(match name.as_str() {
        "pci-root" => ControllerModel::PciRoot,
        "pcie-root" => ControllerModel::PcieRoot,
        "pci-bridge" => ControllerModel::PciBridge,
        "dmi-to-pci-bridge" => ControllerModel::DmiToPciBridge,
        "pcie-to-pci-bridge" => ControllerModel::PcieToPciBridge,
        "pcie-root-port" => ControllerModel::RootPort,
        "pcie-switch-upstream-port" => ControllerModel::SwitchUpstream,
        "pcie-switch-downstream-port" => ControllerModel::SwitchDownstream,
        "pci-expander-bus" => ControllerModel::PciExpander,
        "pcie-expander-bus" => ControllerModel::PcieExpander,
        // The effect of an unknown model on the bus numbers is unknown, so no guest address could be computed.
        unknown => {
            return Err(Fault::at(controller, format_args!("unknown PCI controller model '{unknown}'")));
        }
    })
}

/// Returns the VLAN of an interface, or `None` for a trunk, for several tags, and for the tags 0 and 4095.
fn vlan(vlan: &Element<'_>) -> Option<VlanTag> {
    let mut tags = children(vlan, "tag");
    let tag = tags.next().filter(|_| vlan.attribute("trunk") != Some("yes"))?;
    let tag = tag.attribute("id")?.parse().ok().and_then(|id| VlanTag::new(id).ok());
    tag.filter(|_| tags.next().is_none())
}

fn user_network(root: &Element<'_>, devices: &Element<'_>) -> bool {
    let passt = |interface| {
        child(interface, "backend").and_then(|backend| backend.attribute("type")) == Some("passt")
    };
    let arguments = child(root, "commandline").into_iter().flat_map(|line| children(line, "arg"));
    children(devices, "interface")
        .any(|interface| interface.attribute("type") == Some("user") || passt(interface))
        || arguments
            .filter_map(|argument| argument.attribute("value"))
            .any(|value| matches!(value.split_once(',').map_or(value, |(kind, _)| kind), "user" | "passt"))
}

fn hostdevs(devices: &Element<'_>) -> Result<Vec<Hostdev>, Fault> {
    let mut hostdevs = Vec::new();
    for device in &devices.children {
        let interface = match (device.local_name(), device.attribute("type")) {
            ("hostdev", Some("pci")) => false,
            ("interface", Some("hostdev")) => true,
            _ => continue,
        };
        hostdevs.push(Hostdev {
            source: read::pci_address(required(required(device, "source")?, "address")?)?,
            guest: guest_address(device)?,
            alias: alias(device),
            managed: device.attribute("managed") == Some("yes"),
            interface,
            mac: child(device, "mac").and_then(|mac| mac.attribute("address")?.parse().ok()),
            vlan: child(device, "vlan").and_then(vlan),
        });
    }
    Ok(hostdevs)
}

fn mdev(device: &Element<'_>) -> Result<MdevHostdev, Fault> {
    Ok(MdevHostdev {
        uuid: required_attribute(required(required(device, "source")?, "address")?, "uuid")?,
        guest: guest_address(device)?,
        alias: alias(device),
    })
}
