//! Compares a rendered document with its spec.

use super::read::{self, Fault};
use super::spec::{HostdevSpec, MdevSpec};
use super::tree::Element;
use crate::pci::PciAddress;

/// The elements that determine which device is plugged, where, and under which alias. A document may only contain those
/// that its spec requires. A template may freely add other elements (`<driver>`, `<boot>`, …).
const DECIDING: [&str; 9] =
    ["hostdev", "interface", "source", "address", "alias", "mac", "vlan", "tag", "rom"];

/// Checks that a document matches `spec` and plugs nothing else.
pub(super) fn check(xml: &str, spec: &HostdevSpec) -> Result<(), String> {
    let name = if spec.interface.is_some() { "interface" } else { "hostdev" };
    check_by(xml, name, |root| compare(root, spec))
}

/// Checks the document of a mediated device in the same way.
pub(super) fn check_mdev(xml: &str, spec: &MdevSpec) -> Result<(), String> {
    check_by(xml, "hostdev", |root| compare_mdev(root, spec))
}

fn check_by(
    xml: &str,
    name: &str,
    compare: impl FnOnce(&Element<'_>) -> Result<(), Fault>,
) -> Result<(), String> {
    let document = read::document(xml, "rendered document", name)
        .map_err(|error| format!("<{}>: {}", error.element, error.reason))?;
    compare(&document.root).map_err(|fault| {
        let error = document.error("rendered document", fault);
        format!("<{}>: {}", error.element, error.reason)
    })
}

fn compare_mdev(root: &Element<'_>, spec: &MdevSpec) -> Result<(), Fault> {
    let mut seen = Seen(vec![root]);
    same(root, "type", "mdev")?;
    same(root, "mode", "subsystem")?;
    same(root, "model", "vfio-pci")?;
    let source = seen.child(root, "source")?;
    same(seen.child(source, "address")?, "uuid", &spec.source.to_string())?;
    same(seen.child(root, "alias")?, "name", &spec.alias.to_string())?;
    seen.guest(root, spec.guest)?;
    seen.everything_deciding_in(root)
}

fn compare(root: &Element<'_>, spec: &HostdevSpec) -> Result<(), Fault> {
    let mut seen = Seen(vec![root]);
    same(root, "managed", if spec.managed { "yes" } else { "no" })?;
    let source = seen.child(root, "source")?;
    let source = seen.child(source, "address")?;
    match &spec.interface {
        Some(interface) => {
            same(root, "type", "hostdev")?;
            same(source, "type", "pci")?;
            same(seen.child(root, "mac")?, "address", &interface.mac.to_string())?;
            if let Some(vlan) = interface.vlan {
                let tags = seen.child(root, "vlan")?;
                same(seen.child(tags, "tag")?, "id", &vlan.get().to_string())?;
            }
        }
        None => {
            same(root, "type", "pci")?;
            same(root, "mode", "subsystem")?;
        }
    }
    same_address(source, spec.source)?;
    same(seen.child(root, "alias")?, "name", &spec.alias.to_string())?;
    if let Some(bar) = spec.rom_bar {
        same(seen.child(root, "rom")?, "bar", if bar { "on" } else { "off" })?;
    }
    seen.guest(root, spec.guest)?;
    seen.everything_deciding_in(root)
}

/// The elements that the spec requires and the document has.
struct Seen<'a, 'input>(Vec<&'a Element<'input>>);

impl<'a, 'input> Seen<'a, 'input> {
    fn child(&mut self, node: &'a Element<'input>, name: &'static str) -> Result<&'a Element<'input>, Fault> {
        let child = read::required(node, name)?;
        self.0.push(child);
        Ok(child)
    }

    fn guest(&mut self, root: &'a Element<'input>, guest: Option<PciAddress>) -> Result<(), Fault> {
        let Some(guest) = guest else { return Ok(()) };
        let address = self.child(root, "address")?;
        same(address, "type", "pci")?;
        same_address(address, guest)
    }

    fn everything_deciding_in(&self, root: &'a Element<'input>) -> Result<(), Fault> {
        let seen = |node: &Element<'_>| self.0.iter().any(|seen| std::ptr::eq(*seen, node));
        let extra = |node: &&Element<'_>| DECIDING.contains(&node.local_name()) && !seen(node);
        match root.descendants().find(extra) {
            Some(extra) => Err(Fault::at(extra, "unexpected element")),
            None => Ok(()),
        }
    }
}

fn same(node: &Element<'_>, attribute: &'static str, expected: &str) -> Result<(), Fault> {
    let found = node.attribute(attribute).unwrap_or_default();
    if found == expected {
        Ok(())
    } else {
        Err(Fault::at(node, format_args!("{attribute}='{found}' but expected '{expected}'")))
    }
}

fn same_address(node: &Element<'_>, expected: PciAddress) -> Result<(), Fault> {
    let found = read::pci_address(node)?;
    if found == expected {
        Ok(())
    } else {
        Err(Fault::at(node, format_args!("{found} but expected {expected}")))
    }
}
