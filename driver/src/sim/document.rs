//! A domain's document: libvirt's text, and the values that hotslot reads from it. A change edits the elements of the
//! text, which is then written and parsed again, so that text and values always match.

use crate::domain::{ControllerModel, DomainXml};
use crate::hypervisor::ErrorKind;
use crate::ownership::NAMESPACE;
use crate::pci::PciAddress;
use crate::topology::Topology;
use crate::xml::ownership;
use crate::xml::tree::Element;
use crate::xml::{self, XmlError};

use super::plug::{self, Plug, Source};
use super::refusal::{self, Refusal};

/// One document, live or persistent.
#[derive(Debug, Clone)]
pub(super) struct Document {
    text: String,
    parsed: DomainXml,
}

/// The elements that libvirt prints after the host devices.
const AFTER_HOSTDEVS: [&str; 13] = [
    "redirdev",
    "redirfilter",
    "hub",
    "watchdog",
    "memballoon",
    "rng",
    "nvram",
    "panic",
    "shmem",
    "memory",
    "iommu",
    "vsock",
    "crypto",
];
/// The model of a port for one PCI Express device.
pub(super) const ROOT_PORT: &str = "pcie-root-port";
/// The elements that libvirt prints before the interfaces, and the interfaces themselves.
const UP_TO_INTERFACES: [&str; 6] = ["emulator", "disk", "controller", "lease", "filesystem", "interface"];

impl Document {
    pub(super) fn read(text: String) -> Result<Self, XmlError> {
        let parsed = xml::domain::parse(&text)?;
        Ok(Self { text, parsed })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn parsed(&self) -> &DomainXml {
        &self.parsed
    }

    /// The id of the running domain; `None` in a definition.
    pub(super) fn id(&self) -> Option<u32> {
        self.tree().ok()?.attribute("id")?.parse().ok()
    }

    /// The sources of all host devices, with their aliases.
    pub(super) fn sources(&self) -> impl Iterator<Item = (Source, Option<&str>)> {
        let functions = self.parsed.hostdevs.iter();
        let functions = functions.map(|held| (Source::Function(held.source), held.alias.as_deref()));
        let mdevs = self.parsed.mdevs.iter();
        functions.chain(mdevs.map(|held| (Source::Mdev(held.uuid), held.alias.as_deref())))
    }

    /// The source of the host device with this alias.
    pub(super) fn source(&self, alias: &str) -> Option<Source> {
        self.sources().find(|(_, named)| *named == Some(alias)).map(|(source, _)| source)
    }

    /// Whether any device has this alias.
    pub(super) fn has_alias(&self, alias: &str) -> bool {
        let named = |device: &Element| {
            device.child("alias").and_then(|element| element.attribute("name")) == Some(alias)
        };
        self.tree().is_ok_and(|tree| devices(&tree).iter().any(named))
    }

    /// Returns the guest address that libvirt assigns to a device, or the address `wanted` by the user if it is valid.
    /// In a running guest only free hot-plug ports are possible.
    pub(super) fn place(
        &self,
        wanted: Option<PciAddress>,
        express: bool,
        live: bool,
    ) -> Result<PciAddress, Refusal> {
        let free = Topology::of(&self.parsed).free_ports();
        let Some(wanted) = wanted else {
            let free = if express { &free.express } else { &free.conventional };
            return free.first().copied().ok_or_else(refusal::no_free_port);
        };
        if wanted.function() != 0 {
            return Err(refusal::function_not_zero());
        }
        if wanted.domain() != 0 {
            let text = format_args!("Invalid PCI address {wanted}. Only PCI domain 0 is available");
            return Err(refusal::guest_address(text));
        }
        let buses = self.parsed.controllers.iter().map(|controller| controller.index);
        if !buses.clone().any(|bus| bus == wanted.bus()) {
            let last = buses.max().unwrap_or_default();
            let text =
                format_args!("Invalid PCI address {wanted}. Only PCI buses up to {last} are available");
            return Err(refusal::guest_address(text));
        }
        if self.parsed.occupied.contains(&wanted) {
            let text = format_args!("Attempted double use of PCI Address {wanted}");
            return Err(refusal::guest_address(text));
        }
        if live && !free.express.contains(&wanted) && !free.conventional.contains(&wanted) {
            let text = format_args!(
                "The device at PCI address {wanted} requires hotplug capability, but the PCI controller with index='{}' doesn't support hotplug",
                wanted.bus()
            );
            return Err(refusal::guest_address(text));
        }
        Ok(wanted)
    }

    /// Returns the document with a device added, in libvirt's form.
    pub(super) fn with(&self, plug: &Plug, live: Option<&str>, guest: PciAddress) -> Result<Self, Refusal> {
        let follows = |child: &Element| {
            let is = |name: &&str| child.is(name);
            if plug.interface { UP_TO_INTERFACES.iter().any(is) } else { !AFTER_HOSTDEVS.iter().any(is) }
        };
        self.insert(plug.element(live, guest), follows)
    }

    pub(super) fn has_controller(&self, index: u8) -> bool {
        self.parsed.controllers.iter().any(|controller| controller.index == index)
    }

    /// Returns the definition with one more empty root port, which libvirt adds when a definition has no free port.
    /// libvirt puts several ports into the functions of one slot; here each port has its own slot.
    pub(super) fn with_root_port(&self) -> Result<Self, Refusal> {
        let controllers = &self.parsed.controllers;
        let q35 = controllers.iter().any(|controller| controller.model == ControllerModel::PcieRoot);
        let index =
            controllers.iter().map(|controller| controller.index).max().unwrap_or_default().checked_add(1);
        let taken = |slot: u8| self.parsed.occupied.iter().any(|used| (used.bus(), used.slot()) == (0, slot));
        let slot = (1..0x1f).find(|slot| !taken(*slot));
        let (true, Some(index), Some(slot)) = (q35, index, slot) else { return Err(refusal::no_free_port()) };
        let (index, port) = (index.to_string(), format!("{:#x}", u16::from(slot) << 3));
        let address = PciAddress::new(0, 0, slot.into(), 0).map_err(refusal::document)?;
        let port = Element::new("controller", &[("type", "pci"), ("index", &index), ("model", ROOT_PORT)])
            .with([
                Element::new("model", &[("name", ROOT_PORT)]),
                Element::new("target", &[("chassis", &index), ("port", &port)]),
                plug::address_element(address, true),
            ]);
        self.insert(port, |child| child.is("controller") || child.is("disk") || child.is("emulator"))
    }

    /// Inserts an element into `<devices>`, after the last child for which `follows` returns true.
    fn insert(&self, element: Element, follows: impl Fn(&Element) -> bool) -> Result<Self, Refusal> {
        let mut tree = self.tree()?;
        let devices = devices_mut(&mut tree)?;
        let at = devices.iter().rposition(follows).map_or(0, |last| last + 1);
        devices.insert(at, element);
        Self::written(&tree)
    }

    /// Returns the document without the device of this alias.
    pub(super) fn without(&self, alias: &str) -> Result<Self, Refusal> {
        let named = |child: &Element| {
            child.child("alias").and_then(|element| element.attribute("name")) == Some(alias)
        };
        self.without_first(named, || refusal::no_alias(alias))
    }

    /// Returns the document without the host device of this function.
    pub(super) fn without_source(&self, source: PciAddress) -> Result<Self, Refusal> {
        let of_it = |child: &Element| {
            is_hostdev(child) && Plug::read(child).is_ok_and(|plug| plug.source == Source::Function(source))
        };
        self.without_first(of_it, || refusal::no_hostdev(source))
    }

    fn without_first(
        &self,
        is: impl Fn(&Element) -> bool,
        none: impl FnOnce() -> Refusal,
    ) -> Result<Self, Refusal> {
        let mut tree = self.tree()?;
        let devices = devices_mut(&mut tree)?;
        let at = devices.iter().position(is).ok_or_else(none)?;
        devices.remove(at);
        Self::written(&tree)
    }

    /// Returns the live document that libvirt makes from a definition: with an id, with aliases and with a guest
    /// address for every host device. `express` returns whether a device needs a PCI Express port.
    pub(super) fn started(&self, id: u32, express: impl Fn(Source) -> bool) -> Result<Self, Refusal> {
        let mut tree = self.tree()?;
        tree.set("id", Some(&id.to_string()));
        let devices = devices_mut(&mut tree)?;
        let plugs = devices.extract_if(.., |device| is_hostdev(device));
        let plugs = plugs.map(|device| Plug::read(&device)).collect::<Result<Vec<_>, _>>()?;
        for device in devices {
            if let Some(alias) = own_alias(device).filter(|_| device.child("alias").is_none()) {
                // libvirt prints the alias before the address.
                let at = device.children.iter().position(|child| child.is("address"));
                let at = at.unwrap_or(device.children.len());
                device.children.insert(at, Element::new("alias", &[("name", &alias)]));
            }
        }
        let mut live = Self::written(&tree)?.with_agent(false)?;
        for plug in &plugs {
            let address = match plug.guest {
                Some(given) => given,
                None => live.place(None, express(plug.source), false)?,
            };
            live = live.with(plug, Some(&Plug::own_alias(&live.parsed)), address)?;
        }
        Ok(live)
    }

    /// Returns the live document with another domain id.
    pub(super) fn renumbered(&self, id: u32) -> Result<Self, Refusal> {
        let mut tree = self.tree()?;
        tree.set("id", Some(&id.to_string()));
        Self::written(&tree)
    }

    /// Returns the document with another domain name.
    pub(super) fn renamed(&self, name: &str) -> Result<Self, Refusal> {
        let mut tree = self.tree()?;
        tree.child_mut("name").ok_or_else(|| refusal::document("<name> is missing"))?.set_text(name);
        Self::written(&tree)
    }

    /// Returns the document with hotslot's own metadata for this project, or without that metadata. Other metadata stays.
    pub(super) fn with_owner(&self, project: Option<&str>) -> Result<Self, Refusal> {
        let mut tree = self.tree()?;
        if tree.child("metadata").is_none() {
            // libvirt writes the metadata after these elements.
            let before = |child: &Element| {
                ["name", "uuid", "genid", "title", "description"].iter().any(|name| child.is(name))
            };
            let at = tree.children.iter().rposition(before).map_or(0, |last| last + 1);
            tree.children.insert(at, Element::new("metadata", &[]));
        }
        if let Some(metadata) = tree.child_mut("metadata") {
            metadata.children.retain(|child| !ownership::is_own(child));
            let namespace = ("xmlns:hotslot", NAMESPACE);
            metadata.children.extend(
                project.map(|project| Element::new("hotslot:owner", &[namespace, ("project", project)])),
            );
        }
        tree.children.retain(|child| !child.is("metadata") || !child.children.is_empty());
        Self::written(&tree)
    }

    /// Returns the definition that corresponds to a live document, without the parts that only a running domain has.
    pub(super) fn stopped(&self) -> Result<Self, Refusal> {
        let mut tree = self.tree()?;
        tree.set("id", None);
        tree.children.retain(|element| {
            let label = element.is("seclabel") && element.attribute("type") == Some("dynamic");
            !element.is("resource") && !label
        });
        for device in devices_mut(&mut tree)? {
            let hostdev = is_hostdev(device);
            device.children.retain(|child| {
                let users = child.attribute("name").is_some_and(|name| name.starts_with("ua-"));
                !(child.is("alias") && !users || child.is("driver") && hostdev)
            });
            if let Some(target) = agent_target(device) {
                target.set("state", None);
            }
        }
        Self::written(&tree)
    }

    /// Returns the document with this state of the guest agent's channel. A document without such a channel is
    /// unchanged.
    pub(super) fn with_agent(&self, connected: bool) -> Result<Self, Refusal> {
        let mut tree = self.tree()?;
        let state = if connected { "connected" } else { "disconnected" };
        let targets = devices_mut(&mut tree)?.iter_mut().filter_map(agent_target);
        targets.for_each(|target| target.set("state", Some(state)));
        Self::written(&tree)
    }

    /// Whether the guest has a channel for its agent.
    pub(super) fn has_agent_channel(&self) -> bool {
        let has =
            |devices: &mut Vec<Element>| devices.iter_mut().any(|device| agent_target(device).is_some());
        self.tree().is_ok_and(|mut tree| devices_mut(&mut tree).is_ok_and(has))
    }

    fn tree(&self) -> Result<Element<'_>, Refusal> {
        Element::parse(&self.text).map_err(refusal::document)
    }

    fn written(tree: &Element) -> Result<Self, Refusal> {
        Self::read(tree.write()).map_err(|error| Refusal::new(ErrorKind::Document, error))
    }
}

/// The children of `<devices>`.
fn devices<'a, 'text>(tree: &'a Element<'text>) -> &'a [Element<'text>] {
    tree.child("devices").map(|devices| devices.children.as_slice()).unwrap_or_default()
}

/// As [`devices`], mutable.
fn devices_mut<'a, 'text>(tree: &'a mut Element<'text>) -> Result<&'a mut Vec<Element<'text>>, Refusal> {
    let devices = tree.child_mut("devices").ok_or_else(|| refusal::document("<devices> is missing"))?;
    Ok(&mut devices.children)
}

fn is_hostdev(device: &Element) -> bool {
    matches!(
        (device.local_name(), device.attribute("type")),
        ("hostdev", Some("pci" | "mdev")) | ("interface", Some("hostdev"))
    )
}

/// QEMU's device id of a PCI controller.
fn own_alias(device: &Element) -> Option<String> {
    if !device.is("controller") || device.attribute("type") != Some("pci") {
        return None;
    }
    let index = device.attribute("index")?;
    let root = if device.attribute("model") == Some("pcie-root") { "pcie" } else { "pci" };
    Some(format!("{root}.{index}"))
}

/// The `<target>` of the guest agent's channel.
fn agent_target<'a, 'text>(device: &'a mut Element<'text>) -> Option<&'a mut Element<'text>> {
    let agents = |target: &&mut Element| target.attribute("name") == Some("org.qemu.guest_agent.0");
    if device.is("channel") { device.child_mut("target").filter(agents) } else { None }
}
