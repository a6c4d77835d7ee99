//! A domain's document: libvirt's own text, and what hotslot reads of it. A change edits the text and reads
//! it again, so that the two never part.

use crate::domain::{ControllerModel, DomainXml};
use crate::hypervisor::ErrorKind;
use crate::pci::PciAddress;
use crate::topology::Topology;
use crate::xml::{self, XmlError};

use super::element::{self, Edit, Element};
use super::plug::{Plug, Source};
use super::refusal::{self, Refusal};

/// One document, live or persistent.
#[derive(Debug, Clone)]
pub(super) struct Document {
    text: String,
    parsed: DomainXml,
}

/// What libvirt prints after the host devices.
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
/// What libvirt prints before the interfaces, and the interfaces.
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

    /// The running domain's number; none in a definition.
    pub(super) fn id(&self) -> Option<u32> {
        self.tree().ok()?.attribute("id")?.parse().ok()
    }

    /// What the host devices are of the host, each with its alias.
    pub(super) fn sources(&self) -> impl Iterator<Item = (Source, Option<&str>)> {
        let functions = self.parsed.hostdevs.iter();
        let functions = functions.map(|held| (Source::Function(held.source), held.alias.as_deref()));
        let mdevs = self.parsed.mdevs.iter();
        functions.chain(mdevs.map(|held| (Source::Mdev(held.uuid), held.alias.as_deref())))
    }

    /// What the host device with this alias is of the host.
    pub(super) fn source(&self, alias: &str) -> Option<Source> {
        self.sources().find(|(_, named)| *named == Some(alias)).map(|(source, _)| source)
    }

    /// Whether any device has this alias.
    pub(super) fn has_alias(&self, alias: &str) -> bool {
        let named = |device: &Element| {
            device.child("alias").and_then(|element| element.attribute("name")) == Some(alias)
        };
        self.tree().is_ok_and(|tree| tree.children_of("devices").iter().any(named))
    }

    /// The guest address that libvirt gives to a device, or the one that the user chose when it will do.
    /// A running guest takes devices at its free hot-plug ports only.
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

    /// The document with one more device, printed as libvirt does.
    pub(super) fn with(&self, plug: &Plug, live: Option<&str>, guest: PciAddress) -> Result<Self, Refusal> {
        let printed = plug.print(live, guest);
        let follows = |child: &Element| {
            let name = child.name.as_str();
            if plug.interface { UP_TO_INTERFACES.contains(&name) } else { !AFTER_HOSTDEVS.contains(&name) }
        };
        self.insert(&printed, follows)
    }

    /// The definition with one more empty root port, as libvirt makes one when a definition has no room.
    /// libvirt packs ports into the functions of a slot; here each takes a slot of its own.
    pub(super) fn with_root_port(&self) -> Result<Self, Refusal> {
        let controllers = &self.parsed.controllers;
        let q35 = controllers.iter().any(|controller| controller.model == ControllerModel::PcieRoot);
        let index =
            controllers.iter().map(|controller| controller.index).max().unwrap_or_default().checked_add(1);
        let taken = |slot: u8| self.parsed.occupied.iter().any(|used| (used.bus(), used.slot()) == (0, slot));
        let slot = (1..0x1f).find(|slot| !taken(*slot));
        let (true, Some(index), Some(slot)) = (q35, index, slot) else { return Err(refusal::no_free_port()) };
        let port = format!(
            "    <controller type='pci' index='{index}' model='pcie-root-port'>\n      \
               <model name='pcie-root-port'/>\n      \
               <target chassis='{index}' port='{:#x}'/>\n      \
               <address type='pci' domain='0x0000' bus='0x00' slot='{slot:#04x}' function='0x0'/>\n    \
             </controller>\n",
            u16::from(slot) << 3
        );
        self.insert(&port, |child| {
            child.name == "controller" || child.name == "disk" || child.name == "emulator"
        })
    }

    /// Inserts an element's lines after the last of `<devices>`' children that it follows.
    fn insert(&self, lines: &str, follows: impl Fn(&Element) -> bool) -> Result<Self, Refusal> {
        let tree = self.tree()?;
        let devices = tree.child("devices").filter(|devices| !devices.is_one_tag());
        let devices = devices.ok_or_else(|| refusal::document("<devices> is missing or empty"))?;
        let before = devices.children.iter().rev().find(|child| follows(child));
        let at = before.map_or(devices.tag_end, |child| child.span.end);
        let lines = format!("\n{}", lines.trim_end_matches('\n'));
        self.edited(vec![(at..at, lines)])
    }

    /// The document without the device of this alias.
    pub(super) fn without(&self, alias: &str) -> Result<Self, Refusal> {
        let named = |child: &Element| {
            child.child("alias").and_then(|element| element.attribute("name")) == Some(alias)
        };
        self.without_first(named, || refusal::no_alias(alias))
    }

    /// The document without the host device of this function.
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
        let tree = self.tree()?;
        let device = tree.children_of("devices").iter().find(|child| is(child)).ok_or_else(none)?;
        self.edited(vec![device.removed_from(&self.text)])
    }

    /// The running guest's document that libvirt makes of a definition: numbered, with aliases and with
    /// every host device at an address. `express` says which kind of port a host function needs.
    pub(super) fn started(&self, id: u32, express: impl Fn(Source) -> bool) -> Result<Self, Refusal> {
        let tree = self.tree()?;
        let mut edits = vec![tree.set("id", Some(&id.to_string()))];
        let mut plugs = Vec::new();
        for device in tree.children_of("devices") {
            if is_hostdev(device) {
                plugs.push(Plug::read(device)?);
                edits.push(device.removed_from(&self.text));
            } else if let Some(alias) = own_alias(device).filter(|_| device.child("alias").is_none()) {
                edits.push(with_alias(&self.text, device, &alias));
            }
        }
        let mut live = self.edited(edits)?.with_agent(false)?;
        for plug in &plugs {
            let address = match plug.guest {
                Some(given) => given,
                None => live.place(None, express(plug.source), false)?,
            };
            live = live.with(plug, Some(&Plug::own_alias(&live.parsed)), address)?;
        }
        Ok(live)
    }

    /// The document of the same guest in another run.
    pub(super) fn renumbered(&self, id: u32) -> Result<Self, Refusal> {
        let id = self.tree()?.set("id", Some(&id.to_string()));
        self.edited(vec![id])
    }

    /// The document under another name.
    pub(super) fn renamed(&self, name: &str) -> Result<Self, Refusal> {
        let tree = self.tree()?;
        let element = tree.child("name").ok_or_else(|| refusal::document("<name> is missing"))?;
        let name = Element { text: name.to_owned(), ..Element::made("name", &[], Vec::new()) }.print(0);
        self.edited(vec![(element.span.clone(), name.trim().to_owned())])
    }

    /// The definition that a running guest's document stands for: without what only a run has.
    pub(super) fn stopped(&self) -> Result<Self, Refusal> {
        let tree = self.tree()?;
        let mut edits = vec![tree.set("id", None)];
        let run_only = |element: &&Element| {
            element.name == "resource"
                || (element.name == "seclabel" && element.attribute("type") == Some("dynamic"))
        };
        edits.extend(tree.children.iter().filter(run_only).map(|element| element.removed_from(&self.text)));
        for device in tree.children_of("devices") {
            let own = |child: &&Element| match child.name.as_str() {
                "alias" => !child.attribute("name").is_some_and(|name| name.starts_with("ua-")),
                "driver" => is_hostdev(device),
                _ => false,
            };
            edits.extend(device.children.iter().filter(own).map(|element| element.removed_from(&self.text)));
            if let Some(target) = agent_target(device) {
                edits.push(target.set("state", None));
            }
        }
        self.edited(edits)
    }

    /// The document with the guest agent's channel connected or not; the same when it has none.
    pub(super) fn with_agent(&self, connected: bool) -> Result<Self, Refusal> {
        let tree = self.tree()?;
        let state = if connected { "connected" } else { "disconnected" };
        let targets = tree.children_of("devices").iter().filter_map(agent_target);
        self.edited(targets.map(|target| target.set("state", Some(state))).collect())
    }

    /// Whether the guest has a channel for its agent.
    pub(super) fn has_agent_channel(&self) -> bool {
        let has =
            |tree: &Element| tree.children_of("devices").iter().any(|device| agent_target(device).is_some());
        self.tree().is_ok_and(|tree| has(&tree))
    }

    fn tree(&self) -> Result<Element, Refusal> {
        Element::parse(&self.text).map_err(refusal::document)
    }

    fn edited(&self, edits: Vec<Edit>) -> Result<Self, Refusal> {
        Self::read(element::replace(&self.text, edits))
            .map_err(|error| Refusal::new(ErrorKind::Document, error))
    }
}

fn is_hostdev(device: &Element) -> bool {
    matches!(
        (device.name.as_str(), device.attribute("type")),
        ("hostdev", Some("pci" | "mdev")) | ("interface", Some("hostdev"))
    )
}

/// QEMU's device id of a PCI controller.
fn own_alias(device: &Element) -> Option<String> {
    if device.name != "controller" || device.attribute("type") != Some("pci") {
        return None;
    }
    let index = device.attribute("index")?;
    let root = if device.attribute("model") == Some("pcie-root") { "pcie" } else { "pci" };
    Some(format!("{root}.{index}"))
}

/// The edit that gives a controller its alias, which libvirt prints before the address.
fn with_alias(text: &str, device: &Element, alias: &str) -> Edit {
    let alias = format!("\n      <alias name='{alias}'/>");
    if device.is_one_tag() {
        let slash = text.get(..device.span.end).unwrap_or_default().trim_end_matches("/>").len();
        return (slash..device.span.end, format!(">{alias}\n    </{}>", device.name));
    }
    let before = device.children.iter().take_while(|child| child.name != "address").last();
    let at = before.map_or(device.tag_end, |child| child.span.end);
    (at..at, alias)
}

/// The `<target>` of the guest agent's channel.
fn agent_target(device: &Element) -> Option<&Element> {
    let target = device.child("target").filter(|_| device.name == "channel")?;
    (target.attribute("name") == Some("org.qemu.guest_agent.0")).then_some(target)
}
