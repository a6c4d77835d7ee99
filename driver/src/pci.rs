//! PCI addresses (BDF), vendor and product ids, and class codes.
//!
//! The types check their values when they are parsed, and cannot contain a value that PCI does not allow.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address of a PCI function: domain, bus, slot (the PCI specification's "device") and function.
///
/// It prints as `dddd:bb:ss.f` in lower-case hexadecimal, like `lspci -D`, and is ordered by domain, bus, slot and
/// function. Linux also has 32-bit domains (VMD). libvirt cannot assign such devices, so they are out of range here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u16,
    bus: u8,
    slot: u8,
    function: u8,
}

/// The reason why a text or numbers are not a PCI address, id or class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PciParseError {
    /// The text does not have the form of the value.
    #[error("`{text}` is not {what}; expected a form such as `{example}`")]
    Form {
        /// The text.
        text: String,
        /// The name of the value, with its article.
        what: &'static str,
        /// A valid value.
        example: &'static str,
    },
    /// A field is larger than PCI allows.
    #[error("PCI {field} {value:#x} is out of range 0 to {max:#x}")]
    Range {
        /// The name of the field: domain, bus, slot, function or class.
        field: &'static str,
        /// The value.
        value: u32,
        /// The largest value that is allowed.
        max: u32,
    },
}

impl PciAddress {
    /// The smallest address, `0000:00:00.0`.
    pub const MIN: Self = Self { domain: 0, bus: 0, slot: 0, function: 0 };

    /// Makes an address from its numbers.
    ///
    /// # Errors
    /// [`PciParseError::Range`] when domain > 0xffff, bus > 0xff, slot > 0x1f or function > 7.
    pub fn new(domain: u32, bus: u32, slot: u32, function: u32) -> Result<Self, PciParseError> {
        let within = |field, value, max| {
            if value <= max { Ok(value) } else { Err(PciParseError::Range { field, value, max }) }
        };
        Ok(Self {
            domain: within("domain", domain, 0xffff)? as u16,
            bus: within("bus", bus, 0xff)? as u8,
            slot: within("slot", slot, 0x1f)? as u8,
            function: within("function", function, 7)? as u8,
        })
    }

    /// The PCI domain (segment group), 0 to 0xffff.
    pub fn domain(self) -> u16 {
        self.domain
    }

    /// The bus, 0 to 0xff.
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// The slot (device number), 0 to 0x1f.
    pub fn slot(self) -> u8 {
        self.slot
    }

    /// The function, 0 to 7.
    pub fn function(self) -> u8 {
        self.function
    }

    /// Returns the address with the same domain, slot and function on another bus.
    pub fn on_bus(self, bus: u8) -> Self {
        Self { bus, ..self }
    }

    /// Returns the address of function 0 of the same slot.
    pub fn function_zero(self) -> Self {
        Self { function: 0, ..self }
    }

    /// Returns libvirt's node device name: `pci_0000_3b_00_1`.
    pub fn node_name(self) -> String {
        format!("pci_{:04x}_{:02x}_{:02x}_{:x}", self.domain, self.bus, self.slot, self.function)
    }

    /// Parses a node device name such as `pci_0000_3b_00_1`.
    ///
    /// # Errors
    /// [`PciParseError::Form`] when the name does not have that form, and [`PciParseError::Range`] when a field is out
    /// of range.
    pub fn from_node_name(name: &str) -> Result<Self, PciParseError> {
        let form = || PciParseError::Form {
            text: name.to_owned(),
            what: "a PCI node device name",
            example: "pci_0000_3b_00_1",
        };
        let fields: Vec<&str> = name.strip_prefix("pci_").ok_or_else(form)?.split('_').collect();
        let [domain, bus, slot, function] = fields[..] else { return Err(form()) };
        let hex = |digits: &str| hex_field(digits, 8).ok_or_else(form);
        Self::new(hex(domain)?, hex(bus)?, hex(slot)?, hex(function)?)
    }
}

/// Parses a field of one to `longest` hexadecimal digits, without a sign or `0x`.
fn hex_field(digits: &str, longest: usize) -> Option<u32> {
    let plain =
        !digits.is_empty() && digits.len() <= longest && digits.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

impl FromStr for PciAddress {
    type Err = PciParseError;

    /// Parses `dddd:bb:ss.f`, or `bb:ss.f` for domain 0 as `lspci` prints it without `-D`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || PciParseError::Form {
            text: text.to_owned(),
            what: "a PCI address (domain:bus:slot.function)",
            example: "0000:3b:00.1",
        };
        let (rest, function) = text.rsplit_once('.').ok_or_else(form)?;
        let fields: Vec<&str> = rest.split(':').collect();
        let (domain, bus, slot) = match fields[..] {
            [domain, bus, slot] => (domain, bus, slot),
            [bus, slot] => ("0", bus, slot),
            _ => return Err(form()),
        };
        let hex = |digits: &str| hex_field(digits, 8).ok_or_else(form);
        Self::new(hex(domain)?, hex(bus)?, hex(slot)?, hex(function)?)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, slot, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{slot:02x}.{function:x}")
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A vendor or product id: 16 bits, printed as four lower-case hexadecimal digits (`8086`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciId(u16);

impl PciId {
    /// Makes an id from its number.
    pub const fn new(id: u16) -> Self {
        Self(id)
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl FromStr for PciId {
    type Err = PciParseError;

    /// Parses one to four hexadecimal digits, with or without `0x`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex_field(text.strip_prefix("0x").unwrap_or(text), 4).map(|id| Self(id as u16)).ok_or_else(|| {
            PciParseError::Form { text: text.to_owned(), what: "a PCI vendor or product id", example: "8086" }
        })
    }
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl fmt::Debug for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A class code: base class, subclass and programming interface, 24 bits, printed as `0x020000`
/// (PCI Code and ID Assignment Specification).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciClass(u32);

impl PciClass {
    /// Makes a class from its 24 bits.
    ///
    /// # Errors
    /// [`PciParseError::Range`] above 0xffffff.
    pub fn new(class: u32) -> Result<Self, PciParseError> {
        if class <= 0xff_ffff {
            Ok(Self(class))
        } else {
            Err(PciParseError::Range { field: "class", value: class, max: 0xff_ffff })
        }
    }

    /// The base class: 0x02 network controller, 0x06 bridge, …
    pub fn base(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The subclass within the base class.
    pub fn sub(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Whether it is an NVM Express controller (base class 0x01, subclass 0x08).
    pub fn is_nvme(self) -> bool {
        self.0 >> 8 == 0x0108
    }

    /// Whether it is a storage controller (base class 0x01).
    pub fn is_storage(self) -> bool {
        self.base() == 0x01
    }

    /// Whether it is a network controller (base class 0x02).
    pub fn is_network(self) -> bool {
        self.base() == 0x02
    }

    /// Whether it is a display controller (base class 0x03), as most GPUs are.
    pub fn is_display(self) -> bool {
        self.base() == 0x03
    }

    /// Whether it is a processing accelerator (base class 0x12).
    pub fn is_accelerator(self) -> bool {
        self.base() == 0x12
    }

    /// Whether the function is a bridge (base class 0x06). Bridges cannot be assigned to guests.
    pub fn is_bridge(self) -> bool {
        self.base() == 0x06
    }

    /// Returns all texts that [`description`](Self::description) can return.
    pub fn descriptions() -> BTreeSet<&'static str> {
        (0..=u16::MAX).map(|class| Self(u32::from(class) << 8).description()).collect()
    }

    /// Returns a name of the class for people.
    pub fn description(self) -> &'static str {
        match (self.base(), self.sub()) {
            (0x01, 0x08) => "NVMe controller",
            (0x01, _) => "storage controller",
            (0x02, 0x07) => "InfiniBand controller",
            (0x02, _) => "network controller",
            (0x03, _) => "display controller",
            (0x04, _) => "multimedia device",
            (0x05, _) => "memory controller",
            (0x06, _) => "bridge",
            (0x07, _) => "communication controller",
            (0x08, _) => "system peripheral",
            (0x0c, 0x03) => "USB controller",
            (0x0c, _) => "serial bus controller",
            (0x0d, _) => "wireless controller",
            (0x10, _) => "encryption controller",
            (0x12, _) => "processing accelerator",
            _ => "unclassified device",
        }
    }
}

impl FromStr for PciClass {
    type Err = PciParseError;

    /// Parses one to six hexadecimal digits, with or without `0x`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex_field(text.strip_prefix("0x").unwrap_or(text), 6).map(Self).ok_or_else(|| PciParseError::Form {
            text: text.to_owned(),
            what: "a PCI class code",
            example: "0x020000",
        })
    }
}

impl fmt::Display for PciClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#08x}", self.0)
    }
}

impl fmt::Debug for PciClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Implements serde with the types' text form, so that deserializing also checks the value.
macro_rules! serde_as_text {
    ($($ty:ty),*) => {$(
        impl Serialize for $ty {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(PciAddress, PciId, PciClass);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_prints_in_the_forms_of_lspci_and_libvirt() {
        let address: PciAddress = "0000:3B:00.1".parse().unwrap();
        assert_eq!(address.to_string(), "0000:3b:00.1");
        assert_eq!(address.node_name(), "pci_0000_3b_00_1");
        assert_eq!("3b:00.1".parse(), Ok(address));
    }

    #[test]
    fn a_field_out_of_range_is_named() {
        for (text, field) in [
            ("10000:00:00.0", "domain"),
            ("0000:100:00.0", "bus"),
            ("0000:00:20.0", "slot"),
            ("0000:00:00.8", "function"),
        ] {
            let error = text.parse::<PciAddress>().unwrap_err().to_string();
            assert!(error.contains(field), "{text}: {error}");
        }
        for text in
            ["", "0000:00:00", "00.0", "0000:00:00.", "a:b:c:d.0", "0000:+1:00.0", " 00:00.0", "0x0:0:0.0"]
        {
            assert!(matches!(text.parse::<PciAddress>(), Err(PciParseError::Form { .. })), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_address_round_trips(domain in 0u32..=0xffff, bus in 0u32..=0xff, slot in 0u32..=0x1f, function in 0u32..=7) {
            let address = PciAddress::new(domain, bus, slot, function).unwrap();
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            prop_assert_eq!(PciAddress::from_node_name(&address.node_name()), Ok(address));
            prop_assert_eq!(serde_json::from_str::<PciAddress>(&serde_json::to_string(&address).unwrap()).unwrap(), address);
        }

        #[test]
        fn addresses_have_the_order_of_their_texts(a in any::<(u16, u8, u8, u8)>(), b in any::<(u16, u8, u8, u8)>()) {
            let make = |(d, b, s, f): (u16, u8, u8, u8)| PciAddress::new(d.into(), b.into(), (s & 0x1f).into(), (f & 7).into()).unwrap();
            let (a, b) = (make(a), make(b));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn no_text_makes_a_parser_panic_and_a_parsed_address_prints_back(text in "\\PC*") {
            if let Ok(address) = text.parse::<PciAddress>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
            let _ = PciAddress::from_node_name(&text);
            let _ = text.parse::<PciId>();
            let _ = text.parse::<PciClass>();
        }

        #[test]
        fn ids_and_classes_round_trip(id in any::<u16>(), class in 0u32..=0xff_ffff) {
            let (id, class) = (PciId::new(id), PciClass::new(class).unwrap());
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(id.to_string().len(), 4);
            prop_assert_eq!(class.to_string().parse(), Ok(class));
        }

        #[test]
        fn numbers_out_of_range_are_refused(domain in 0x1_0000u32.., bus in 0x100u32.., slot in 0x20u32.., function in 8u32..) {
            prop_assert!(PciAddress::new(domain, 0, 0, 0).is_err());
            prop_assert!(PciAddress::new(0, bus, 0, 0).is_err());
            prop_assert!(PciAddress::new(0, 0, slot, 0).is_err());
            prop_assert!(PciAddress::new(0, 0, 0, function).is_err());
        }
    }
}
