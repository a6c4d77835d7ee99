//! A host device element (`<hostdev type='pci'>`, `<interface type='hostdev'>` or `<hostdev type='mdev'>`): read from
//! the XML of an attach, and written as libvirt prints it.

use uuid::Uuid;

use crate::domain::DomainXml;
use crate::hypervisor::ErrorKind;
use crate::pci::PciAddress;
use crate::xml::tree::Element;

use super::refusal::{self, Refusal};

/// The host's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A PCI function.
    Function(PciAddress),
    /// A mediated device.
    Mdev(Uuid),
}

/// The contents of such an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plug {
    pub(super) source: Source,
    pub(super) managed: bool,
    pub(super) interface: bool,
    /// The user's alias. As in libvirt, an alias without `ua-` or with characters that libvirt does not allow is
    /// dropped.
    pub(super) alias: Option<String>,
    pub(super) guest: Option<PciAddress>,
    /// The elements that are printed unchanged (mac, vlan, boot, rom), each as a document.
    kept: Vec<String>,
}

/// A PCI controller that is added to a definition.
pub(super) struct NewController {
    pub(super) model: String,
    pub(super) index: Option<u8>,
}

/// Returns the PCI controller that the XML of an attach describes; `None` when it describes something else. As with libvirt,
/// a root port has a model, a chassis and a port number.
pub(super) fn pci_controller(xml: &str) -> Result<Option<NewController>, Refusal> {
    let element = Element::parse(xml)
        .map_err(|reason| Refusal::new(ErrorKind::Document, format_args!("(device_definition): {reason}")))?;
    let of_pci = element.local_name() == "controller" && element.attribute("type") == Some("pci");
    if !of_pci {
        return Ok(None);
    }
    let of_child = |name: &str, attribute: &str| element.child(name)?.attribute(attribute);
    let model = element.attribute("model").unwrap_or_default().to_owned();
    let index = element.attribute("index").and_then(|index| index.parse().ok());
    let name = of_child("model", "name");
    if model != "pcie-root-port" {
        return Ok(Some(NewController { model, index }));
    }
    for (option, value) in [
        ("modelName", name),
        ("chassis", of_child("target", "chassis")),
        ("port", of_child("target", "port")),
    ] {
        if value.is_none() {
            return Err(refusal::controller_lacks(option, index, &model, name));
        }
    }
    Ok(Some(NewController { model, index }))
}

/// The children in the order in which libvirt prints them.
const ORDER: [&str; 8] = ["mac", "driver", "source", "vlan", "boot", "alias", "rom", "address"];

impl Plug {
    /// Reads the XML of an attach, and refuses it where libvirt does.
    pub(super) fn parse(xml: &str) -> Result<Self, Refusal> {
        let element = Element::parse(xml).map_err(|reason| {
            Refusal::new(ErrorKind::Document, format_args!("(device_definition): {reason}"))
        })?;
        Self::read(&element)
    }

    /// Makes the XML of an attach with `virsh`.
    pub(super) fn by_hand(source: PciAddress, alias: Option<&str>) -> String {
        let attributes = [("mode", "subsystem"), ("type", "pci"), ("managed", "yes")];
        let source = Element::new("source", &[]).with([address_element(source, false)]);
        let alias = alias.map(|alias| Element::new("alias", &[("name", alias)]));
        Element::new("hostdev", &attributes).with([source].into_iter().chain(alias)).write()
    }

    /// Reads one element.
    pub(super) fn read(element: &Element) -> Result<Self, Refusal> {
        let kind = element.attribute("type");
        let interface = match (element.local_name(), kind) {
            ("hostdev", Some("pci" | "mdev")) => false,
            ("hostdev", None) => return Err(refusal::document("missing source address type")),
            ("interface", Some("hostdev")) => true,
            ("interface" | "hostdev" | "disk" | "controller" | "rng" | "memory" | "filesystem", _) => {
                let text = "the simulated host attaches PCI host devices and mediated devices only";
                return Err(Refusal::new(ErrorKind::Unsupported, text));
            }
            (name, _) => return Err(refusal::document(format_args!("unknown device type '{name}'"))),
        };
        if !interface && element.attribute("mode").is_some_and(|mode| mode != "subsystem") {
            return Err(invalid_value(element, "mode"));
        }
        let managed = match element.attribute("managed") {
            Some("yes") => true,
            Some("no") | None => false,
            Some(_) => return Err(invalid_value(element, "managed")),
        };
        let missing = |name| refusal::document(format_args!("Missing <{name}> element in hostdev device"));
        let source = element.child("source").ok_or_else(|| missing("source"))?;
        let source = source.child("address").ok_or_else(|| missing("address"))?;
        let source = match kind {
            Some("mdev") => Source::Mdev(mdev(element, source)?),
            _ => Source::Function(function(source)?.ok_or_else(|| missing("address"))?),
        };
        let guest = match element.child("address") {
            Some(given) => address(given)?,
            None => None,
        };
        let kept = |child: &&Element| matches!(child.local_name(), "mac" | "vlan" | "boot" | "rom");
        let kept: Vec<&Element> = element.children.iter().filter(kept).collect();
        kept.iter().try_for_each(|child| check(child))?;
        let alias = element.child("alias").and_then(|alias| alias.attribute("name"));
        let mut plug = Self {
            source,
            managed,
            interface,
            alias: alias.filter(is_user_alias).map(str::to_owned),
            guest,
            kept: kept.iter().map(|child| child.write()).collect(),
        };
        if interface && !kept.iter().any(|child| child.is("mac")) {
            let Source::Function(source) = source else { return Err(missing("address")) };
            plug.kept.push(Element::new("mac", &[("address", &made_mac(source))]).write());
        }
        Ok(plug)
    }

    /// Returns the element as libvirt prints it in `<devices>`. In a live document it has libvirt's own alias if the
    /// user gave none; in a definition it only has the user's alias.
    pub(super) fn element(&self, live: Option<&str>, guest: PciAddress) -> Element<'_> {
        let alias = self.alias.as_deref().or(live);
        let managed = if self.managed { "yes" } else { "no" };
        let (attributes, source) = match self.source {
            Source::Function(source) => {
                let attributes = vec![("mode", "subsystem"), ("type", "pci"), ("managed", managed)];
                (attributes, address_element(source, self.interface))
            }
            Source::Mdev(uuid) => {
                let more = [("managed", managed), ("model", "vfio-pci"), ("display", "off")];
                let attributes = [("mode", "subsystem"), ("type", "mdev")].into_iter().chain(more).collect();
                (attributes, Element::new("address", &[("uuid", &uuid.to_string())]))
            }
        };
        let element = if self.interface {
            Element::new("interface", &[("type", "hostdev"), ("managed", managed)])
        } else {
            Element::new("hostdev", &attributes)
        };
        let is_function = matches!(self.source, Source::Function(_));
        let kept =
            |name| self.kept.iter().filter_map(|xml| Element::parse(xml).ok()).find(|child| child.is(name));
        let child = |name| match name {
            "driver" => live.filter(|_| is_function).map(|_| Element::new("driver", &[("name", "vfio")])),
            "source" => Some(Element::new("source", &[]).with([source.clone()])),
            "alias" => alias.map(|alias| Element::new("alias", &[("name", alias)])),
            "address" => Some(address_element(guest, true)),
            name => kept(name),
        };
        element.with(ORDER.into_iter().filter_map(child))
    }

    /// Returns libvirt's own alias for the next device of a running guest: `hostdev` and the next number.
    pub(super) fn own_alias(live: &DomainXml) -> String {
        let functions = live.hostdevs.iter().map(|held| held.alias.as_deref());
        let mdevs = live.mdevs.iter().map(|held| held.alias.as_deref());
        let numbers =
            functions.chain(mdevs).filter_map(|alias| alias?.strip_prefix("hostdev")?.parse::<u32>().ok());
        format!("hostdev{}", numbers.max().map_or(0, |last| last + 1))
    }
}

/// Whether libvirt keeps an alias: it begins with `ua-` and only has these characters.
fn is_user_alias(alias: &&str) -> bool {
    alias.starts_with("ua-") && alias.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// Makes a MAC address for an interface without one, with libvirt's prefix. It is always the same for a function.
fn made_mac(source: PciAddress) -> String {
    let function = source.slot() << 3 | source.function();
    format!("52:54:00:{:02x}:{:02x}:{function:02x}", source.domain() & 0xff, source.bus())
}

/// Makes an `<address>`, with or without its type.
pub(super) fn address_element(address: PciAddress, typed: bool) -> Element<'static> {
    let [domain, bus, slot, function] = [
        format!("{:#06x}", address.domain()),
        format!("{:#04x}", address.bus()),
        format!("{:#04x}", address.slot()),
        format!("{:#x}", address.function()),
    ];
    let all =
        [("type", "pci"), ("domain", &*domain), ("bus", &*bus), ("slot", &*slot), ("function", &*function)];
    Element::new("address", if typed { &all } else { &all[1..] })
}

/// Reads the function that an address names; `None` for `<address type='pci'/>`.
fn function(source: &Element) -> Result<Option<PciAddress>, Refusal> {
    match address(source)? {
        Some(source) if (source.domain(), source.bus(), source.slot()) == (0, 0, 0) => {
            let text = format_args!(
                "Invalid PCI address {source}, at least one of domain, bus, or slot must be > 0"
            );
            Err(refusal::document(text))
        }
        source => Ok(source),
    }
}

/// Reads the mediated device that an address names.
fn mdev(element: &Element, source: &Element) -> Result<Uuid, Refusal> {
    match element.attribute("model") {
        Some("vfio-pci") => {}
        Some("vfio-ap" | "vfio-ccw") => {
            let text = "the simulated host attaches mediated devices of model vfio-pci only";
            return Err(Refusal::new(ErrorKind::Unsupported, text));
        }
        Some(_) => return Err(invalid_value(element, "model")),
        None => {
            let text = "Missing 'model' attribute in mediated device's <hostdev> element";
            return Err(refusal::document(text));
        }
    }
    source.attribute("uuid").and_then(|uuid| Uuid::try_parse(uuid).ok()).ok_or_else(|| {
        let uuid = source.attribute("uuid").unwrap_or_default();
        refusal::document(format_args!("Cannot parse uuid attribute '{uuid}'"))
    })
}

/// Reads a PCI address; `None` for `<address type='pci'/>`, which lets libvirt choose.
fn address(element: &Element) -> Result<Option<PciAddress>, Refusal> {
    if element.attribute("type").is_some_and(|kind| kind != "pci") {
        return Err(invalid_value(element, "type"));
    }
    if ["domain", "bus", "slot", "function"].iter().all(|name| element.attribute(name).is_none()) {
        return Ok(None);
    }
    let number = |name: &str| {
        let text = element.attribute(name).unwrap_or("0");
        match text.strip_prefix("0x") {
            Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => {
                u32::from_str_radix(hex, 16).ok()
            }
            Some(_) => None,
            None => text.parse().ok(),
        }
        .ok_or_else(|| invalid_value(element, name))
    };
    PciAddress::new(number("domain")?, number("bus")?, number("slot")?, number("function")?)
        .map(Some)
        .map_err(|error| refusal::document(format_args!("Invalid PCI address: {error}")))
}

fn check(kept: &Element) -> Result<(), Refusal> {
    let value = |name| kept.attribute(name).unwrap_or_default();
    match kept.local_name() {
        "rom" if !matches!(value("bar"), "" | "on" | "off") => Err(invalid_value(kept, "bar")),
        "boot" if value("order").parse::<u32>().is_err() => Err(invalid_value(kept, "order")),
        "mac" => {
            let bytes: Vec<Option<u8>> =
                value("address").split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
            let text = value("address");
            if bytes.len() != 6 || bytes.contains(&None) {
                Err(refusal::document(format_args!("unable to parse mac address '{text}'")))
            } else if bytes.first().copied().flatten().is_some_and(|first| first & 1 == 1) {
                let text = format_args!("expected unicast mac address, found multicast '{text}'");
                Err(refusal::document(text))
            } else {
                Ok(())
            }
        }
        "vlan" => kept.children.iter().filter(|tag| tag.is("tag")).try_for_each(|tag| {
            match tag.attribute("id").map(str::parse::<u32>) {
                Some(Ok(0..=4095)) => Ok(()),
                Some(Ok(id)) => {
                    Err(refusal::document(format_args!("vlan tag id {id} too large (maximum 4095)")))
                }
                Some(Err(_)) | None => Err(invalid_value(tag, "id")),
            }
        }),
        _ => Ok(()),
    }
}

fn invalid_value(element: &Element, attribute: &str) -> Refusal {
    let value = element.attribute(attribute).unwrap_or_default();
    let text = format_args!(
        "Invalid value for attribute '{attribute}' in element '{}': '{value}'.",
        element.local_name()
    );
    refusal::document(text)
}
