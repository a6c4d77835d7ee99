//! Reading a document: elements by name, values from attributes and texts, and faults that name the element.

use std::fmt::Display;
use std::str::FromStr;

use super::XmlError;
use super::tree::{self, Element};
use crate::pci::PciAddress;

/// What is wrong with an element of a document; [`Document::error`] says which document and element that is.
#[derive(Debug)]
pub(super) struct Fault {
    place: usize,
    reason: String,
}

impl Fault {
    pub(super) fn at(node: &Element<'_>, reason: impl Display) -> Self {
        Self { place: node.place(), reason: reason.to_string() }
    }
}

/// A document that was read.
pub(super) struct Document<'a> {
    xml: &'a str,
    /// The one element that it is.
    pub(super) root: Element<'a>,
}

impl Document<'_> {
    /// A fault, with the element and its line. `document` names the document for people.
    pub(super) fn error(&self, document: impl Into<String>, fault: Fault) -> XmlError {
        let path = self.root.path_to(fault.place);
        // Below the root the path begins without it: `devices/hostdev/source/address`.
        let below = if path.len() > 1 { path.get(1..).unwrap_or_default() } else { &path };
        let reason = format!("{} (line {})", fault.reason, tree::line(self.xml, fault.place));
        XmlError { document: document.into(), element: below.join("/"), reason }
    }
}

/// The document that `xml` is, whose root element must be `root`. `kind` names the document for people.
pub(super) fn document<'a>(xml: &'a str, kind: &str, root: &str) -> Result<Document<'a>, XmlError> {
    let refuse = |reason: String| XmlError { document: kind.into(), element: root.into(), reason };
    let found = Element::parse(xml).map_err(|error| refuse(format!("not well-formed XML: {error}")))?;
    if found.is(root) {
        Ok(Document { xml, root: found })
    } else {
        Err(refuse(format!("the document's root is <{}>", found.local_name())))
    }
}

/// The children of this name, in document order. Elements of other namespaces are others.
pub(super) fn children<'a, 'input>(
    node: &'a Element<'input>,
    name: &'static str,
) -> impl Iterator<Item = &'a Element<'input>> {
    node.children.iter().filter(move |child| child.is(name))
}

/// The first child of this name.
pub(super) fn child<'a, 'input>(node: &'a Element<'input>, name: &str) -> Option<&'a Element<'input>> {
    node.child(name)
}

/// The first child of this name, which must be there.
pub(super) fn required<'a, 'input>(
    node: &'a Element<'input>,
    name: &'static str,
) -> Result<&'a Element<'input>, Fault> {
    child(node, name).ok_or_else(|| Fault::at(node, format_args!("it has no <{name}>")))
}

/// The text of an element without the blanks around it; none when there is nothing else.
pub(super) fn text(node: &Element<'_>) -> Option<String> {
    Some(node.text()).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// The text of the first child of this name.
pub(super) fn child_text(node: &Element<'_>, name: &'static str) -> Option<String> {
    child(node, name).and_then(text)
}

/// The text of the first child of this name, which must be there and have one.
pub(super) fn required_text(node: &Element<'_>, name: &'static str) -> Result<String, Fault> {
    let child = required(node, name)?;
    text(child).ok_or_else(|| Fault::at(child, "it is empty"))
}

/// A value of this type in the text of an element.
pub(super) fn value<T: FromStr<Err: Display>>(node: &Element<'_>) -> Result<T, Fault> {
    let text = node.text();
    text.parse().map_err(|error| Fault::at(node, format_args!("`{text}`: {error}")))
}

/// A value of this type in an attribute, which must be there.
pub(super) fn required_attribute<T: FromStr<Err: Display>>(
    node: &Element<'_>,
    name: &'static str,
) -> Result<T, Fault> {
    let text = node.attribute(name).ok_or_else(|| missing(node, name))?;
    text.parse().map_err(|error| Fault::at(node, format_args!("{name}='{text}': {error}")))
}

/// A number as libvirt writes it: decimal, or hexadecimal after `0x`.
pub(super) fn parse_number(text: &str) -> Result<u32, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// A number in an attribute; none when it is not there.
pub(super) fn number<T: TryFrom<u32, Error: Display>>(
    node: &Element<'_>,
    name: &'static str,
) -> Result<Option<T>, Fault> {
    let Some(text) = node.attribute(name) else { return Ok(None) };
    let refuse = |reason: &dyn Display| Fault::at(node, format_args!("{name}='{text}': {reason}"));
    let number = parse_number(text).map_err(|error| refuse(&error))?;
    T::try_from(number).map(Some).map_err(|error| refuse(&error))
}

/// A number in an attribute, which must be there.
pub(super) fn required_number<T: TryFrom<u32, Error: Display>>(
    node: &Element<'_>,
    name: &'static str,
) -> Result<T, Fault> {
    number(node, name)?.ok_or_else(|| missing(node, name))
}

fn missing(node: &Element<'_>, attribute: &str) -> Fault {
    Fault::at(node, format_args!("it has no attribute {attribute}"))
}

/// The bytes that libvirt's scaled number in the text of an element stands for (`virScaleInteger`): in KiB
/// where no unit is given, in powers of 1000 where the unit ends in a bare `B`.
pub(super) fn bytes(node: &Element<'_>) -> Result<u64, Fault> {
    let number: u64 = value(node)?;
    let unit = node.attribute("unit").unwrap_or("KiB");
    let scale = scale(&unit.to_ascii_lowercase()).ok_or_else(|| {
        let units = "a unit is b, or one of K M G T P E alone, with iB (1024) or with B (1000)";
        Fault::at(node, format_args!("unit='{unit}': {units}"))
    })?;
    number
        .checked_mul(scale)
        .ok_or_else(|| Fault::at(node, format_args!("{number} {unit} are more bytes than 64 bits can count")))
}

fn scale(unit: &str) -> Option<u64> {
    if matches!(unit, "" | "b" | "byte" | "bytes") {
        return Some(if unit.is_empty() { 1024 } else { 1 });
    }
    let base: u64 = match unit.get(1..)? {
        "" | "ib" => 1024,
        "b" => 1000,
        _ => return None,
    };
    let power = "kmgtpe".find(unit.get(..1)?)?;
    base.checked_pow(u32::try_from(power).ok()? + 1)
}

/// The address in the attributes of an `<address domain= bus= slot= function=>`; what is missing is 0.
pub(super) fn pci_address(node: &Element<'_>) -> Result<PciAddress, Fault> {
    let number = |name| number(node, name).map(Option::unwrap_or_default);
    let [domain, bus, slot, function] =
        [number("domain")?, number("bus")?, number("slot")?, number("function")?];
    PciAddress::new(domain, bus, slot, function).map_err(|error| Fault::at(node, error))
}
