//! Helpers that read a document: elements by name, values from attributes and texts, and errors that name the element.

use std::fmt::Display;
use std::str::FromStr;

use super::XmlError;
use super::tree::{self, Element};
use crate::pci::PciAddress;

/// An error in an element of a document. [`Document::error`] adds the document's name and the element's path.
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

/// A parsed document.
pub(super) struct Document<'a> {
    xml: &'a str,
    /// The root element.
    pub(super) root: Element<'a>,
}

impl Document<'_> {
    /// Turns a fault into an error with the element's path and line. `document` names the document for people.
    pub(super) fn error(&self, document: impl Into<String>, fault: Fault) -> XmlError {
        let path = self.root.path_to(fault.place);
        // Below the root the path begins without it: `devices/hostdev/source/address`.
        let below = if path.len() > 1 { path.get(1..).unwrap_or_default() } else { &path };
        let reason = format!("{} (line {})", fault.reason, tree::line(self.xml, fault.place));
        XmlError { document: document.into(), element: below.join("/"), reason }
    }
}

/// Parses a document whose root element must be `root`. `kind` names the document for people.
pub(super) fn document<'a>(xml: &'a str, kind: &str, root: &str) -> Result<Document<'a>, XmlError> {
    let refuse = |reason: String| XmlError { document: kind.into(), element: root.into(), reason };
    let found = Element::parse(xml).map_err(|error| refuse(format!("not well-formed XML: {error}")))?;
    if found.is(root) {
        Ok(Document { xml, root: found })
    } else {
        Err(refuse(format!("unexpected root element <{}>", found.local_name())))
    }
}

/// Returns the children of this name that are in no namespace, in document order.
pub(super) fn children<'a, 'input>(
    node: &'a Element<'input>,
    name: &'static str,
) -> impl Iterator<Item = &'a Element<'input>> {
    node.children.iter().filter(move |child| child.is(name))
}

/// Returns the first child of this name.
pub(super) fn child<'a, 'input>(node: &'a Element<'input>, name: &str) -> Option<&'a Element<'input>> {
    node.child(name)
}

/// Returns the first child of this name, or an error when there is none.
pub(super) fn required<'a, 'input>(
    node: &'a Element<'input>,
    name: &'static str,
) -> Result<&'a Element<'input>, Fault> {
    child(node, name).ok_or_else(|| Fault::at(node, format_args!("missing element <{name}>")))
}

/// Returns the text of an element without surrounding white space, or `None` when it is empty.
pub(super) fn text(node: &Element<'_>) -> Option<String> {
    Some(node.text()).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Returns the text of the first child of this name.
pub(super) fn child_text(node: &Element<'_>, name: &'static str) -> Option<String> {
    child(node, name).and_then(text)
}

/// Returns the text of the first child of this name, or an error when there is none or it is empty.
pub(super) fn required_text(node: &Element<'_>, name: &'static str) -> Result<String, Fault> {
    let child = required(node, name)?;
    text(child).ok_or_else(|| Fault::at(child, "the element is empty"))
}

/// Returns the message of a parser in plain words, where it is one of the standard library.
fn why(error: &dyn Display) -> String {
    match error.to_string().as_str() {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "it is not a number".to_owned()
        }
        "number too large to fit in target type" | "out of range integral type conversion attempted" => {
            "the number is too large".to_owned()
        }
        other => other.to_owned(),
    }
}

/// Parses the text of an element.
pub(super) fn value<T: FromStr<Err: Display>>(node: &Element<'_>) -> Result<T, Fault> {
    let text = node.text();
    text.parse().map_err(|error| Fault::at(node, format_args!("`{text}`: {}", why(&error))))
}

/// Parses an attribute, or returns an error when it is missing.
pub(super) fn required_attribute<T: FromStr<Err: Display>>(
    node: &Element<'_>,
    name: &'static str,
) -> Result<T, Fault> {
    let text = node.attribute(name).ok_or_else(|| missing(node, name))?;
    text.parse().map_err(|error| Fault::at(node, format_args!("{name}='{text}': {}", why(&error))))
}

/// Parses a number as libvirt writes it: decimal, or hexadecimal after `0x`.
pub(super) fn parse_number(text: &str) -> Result<u32, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// Parses a number in an attribute; `None` when the attribute is missing.
pub(super) fn number<T: TryFrom<u32, Error: Display>>(
    node: &Element<'_>,
    name: &'static str,
) -> Result<Option<T>, Fault> {
    let Some(text) = node.attribute(name) else { return Ok(None) };
    let refuse = |reason: &dyn Display| Fault::at(node, format_args!("{name}='{text}': {}", why(reason)));
    let number = parse_number(text).map_err(|error| refuse(&error))?;
    T::try_from(number).map(Some).map_err(|error| refuse(&error))
}

/// Parses a number in an attribute, or returns an error when it is missing.
pub(super) fn required_number<T: TryFrom<u32, Error: Display>>(
    node: &Element<'_>,
    name: &'static str,
) -> Result<T, Fault> {
    number(node, name)?.ok_or_else(|| missing(node, name))
}

fn missing(node: &Element<'_>, attribute: &str) -> Fault {
    Fault::at(node, format_args!("missing attribute {attribute}"))
}

/// Reads libvirt's scaled number (`virScaleInteger`) from the text of an element, in bytes. The unit defaults to KiB; a
/// unit such as `KB` is a power of 1000, and `K` or `KiB` is a power of 1024.
pub(super) fn bytes(node: &Element<'_>) -> Result<u64, Fault> {
    let number: u64 = value(node)?;
    let unit = node.attribute("unit").unwrap_or("KiB");
    let scale = scale(&unit.to_ascii_lowercase()).ok_or_else(|| {
        let units = "expected b, or one of K M G T P E, optionally with iB (1024) or B (1000)";
        Fault::at(node, format_args!("unit='{unit}': {units}"))
    })?;
    number.checked_mul(scale).ok_or_else(|| {
        Fault::at(node, format_args!("{number} {unit} is out of range: expected less than 2^64 bytes"))
    })
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

/// Reads the attributes of an `<address domain= bus= slot= function=>`. A missing attribute is 0.
pub(super) fn pci_address(node: &Element<'_>) -> Result<PciAddress, Fault> {
    let number = |name| number(node, name).map(Option::unwrap_or_default);
    let [domain, bus, slot, function] =
        [number("domain")?, number("bus")?, number("slot")?, number("function")?];
    PciAddress::new(domain, bus, slot, function).map_err(|error| Fault::at(node, error))
}
