//! Device types of PCI functions, by which accelerators are requested.
//!
//! `data/device-types.toml` is the table, by ids and by class codes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer};

use crate::device::HostDevice;
use crate::pci::PciId;

/// The use of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceType {
    /// A graphics processor or another display controller.
    Gpu,
    /// A field-programmable gate array.
    Fpga,
    /// A network interface.
    Nic,
    /// An NVM Express controller.
    Nvme,
    /// Intel QuickAssist Technology: encryption and compression.
    Qat,
    /// Another encryption controller.
    Crypto,
    /// A machine-learning processor.
    AiChip,
    /// Anything else.
    Pci,
}

/// A text that is not the name of a device type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid device type `{0}`: expected GPU, FPGA, NIC, NVMe, QAT, CRYPTO, AICHIP or PCI")]
pub struct UnknownDeviceType(String);

impl DeviceType {
    /// Every type.
    pub const ALL: [Self; 8] =
        [Self::Gpu, Self::Fpga, Self::Nic, Self::Nvme, Self::Qat, Self::Crypto, Self::AiChip, Self::Pci];

    /// The name of the type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gpu => "GPU",
            Self::Fpga => "FPGA",
            Self::Nic => "NIC",
            Self::Nvme => "NVMe",
            Self::Qat => "QAT",
            Self::Crypto => "CRYPTO",
            Self::AiChip => "AICHIP",
            Self::Pci => "PCI",
        }
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for DeviceType {
    type Err = UnknownDeviceType;

    /// Reads the name in upper or lower case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = |of: &Self| of.as_str().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(named).ok_or_else(|| UnknownDeviceType(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for DeviceType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Returns the device type of a function, by its ids and its class. A bridge is always [`DeviceType::Pci`].
pub fn device_type(device: &HostDevice) -> DeviceType {
    rules_for(device).next().filter(|_| !device.bridge).map_or(DeviceType::Pci, |rule| rule.device_type)
}

/// A function's names for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names<'a> {
    /// The vendor's name.
    pub vendor: Option<&'a str>,
    /// The product's name.
    pub product: Option<&'a str>,
}

/// Returns a function's names: those that the host reports (libvirt reads them from its pci.ids), or else those of the
/// table.
pub fn names(device: &HostDevice) -> Names<'_> {
    let of_it = |rule: &&'static Rule| rule.vendor == Some(device.vendor_id);
    let mut of_vendor = RULES.iter().filter(of_it).filter_map(|rule| rule.vendor_name.as_deref());
    let product = device.product_id.to_string();
    // The search begins at the end: `*` sorts before the digits, so that a whole id is found before a pattern.
    let of_product = |rule: &'static Rule| {
        rule.products.iter().flatten().rev().find(|(pattern, _)| fits(pattern, &product))
    };
    Names {
        vendor: device.vendor_name.as_deref().or_else(|| of_vendor.next()),
        product: device
            .product_name
            .as_deref()
            .or_else(|| rules_for(device).find_map(of_product).map(|(_, name)| name.as_str())),
    }
}

/// The table, in the file's order. A test shows that the embedded file can be read, so that the default is never used.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| read(TABLE).unwrap_or_default());
const TABLE: &str = include_str!("../data/device-types.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    rule: Vec<Rule>,
}

/// One rule. The file explains the keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(rename = "type")]
    device_type: DeviceType,
    vendor: Option<PciId>,
    vendor_name: Option<String>,
    products: Option<BTreeMap<String, String>>,
    classes: Option<Vec<String>>,
}

fn read(table: &str) -> Result<Vec<Rule>, toml::de::Error> {
    toml::from_str(table).map(|Table { rule }| rule)
}

/// Returns the rules that match a function, in order.
fn rules_for(device: &HostDevice) -> impl Iterator<Item = &'static Rule> {
    let vendor = device.vendor_id;
    let product = device.product_id.to_string();
    let class = device.class.map(|class| class.to_string());
    RULES.iter().filter(move |rule| {
        let digits = class.as_deref().and_then(|class| class.strip_prefix("0x"));
        rule.vendor.is_none_or(|of| of == vendor)
            && rule.products.as_ref().is_none_or(|of| of.keys().any(|pattern| fits(pattern, &product)))
            && rule.classes.as_ref().is_none_or(|of| {
                digits.is_some_and(|digits| of.iter().any(|class| digits.starts_with(class.as_str())))
            })
    })
}

/// Whether an id matches a pattern: four digits, or fewer digits and a `*`.
fn fits(pattern: &str, id: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == id, |start| id.starts_with(start))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::xml::nodedev::{self, NodeDevice};

    fn device(vendor: &str, product: &str, class: Option<&str>, more: &str) -> HostDevice {
        let class = class.map(|class| format!("<class>0x{class}</class>")).unwrap_or_default();
        let xml = format!(
            "<device><name>pci_0000_03_00_0</name><capability type='pci'>{class}
               <domain>0</domain><bus>3</bus><slot>0</slot><function>0</function>
               <product id='0x{product}'/><vendor id='0x{vendor}'/>{more}</capability></device>"
        );
        let NodeDevice::Pci(device) = nodedev::parse(&xml).unwrap() else { panic!("{xml}") };
        *device
    }

    #[test]
    fn every_row_of_the_test_data() {
        let rows: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../tests/data/device-types.json")).unwrap();
        let mut wrong = Vec::new();
        for row in &rows {
            let text = |key: &str| row[key].as_str().unwrap();
            let more = row["more"].as_str().unwrap_or_default();
            let device = device(text("vendor"), text("product"), row["class"].as_str(), more);
            let (found, names) = (device_type(&device).to_string(), names(&device));
            let (vendor, product) = (row["vendor_name"].as_str(), row["product_name"].as_str());
            if (found.as_str(), names.vendor, names.product) != (text("type"), vendor, product) {
                wrong.push(format!("{found} {names:?} instead of {row}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(rows.len() >= 30);
    }

    /// A pattern that can match nothing and a rule that matches everything are mistakes in the table.
    #[test]
    fn the_table_is_valid_and_each_rule_can_match() {
        let rules = read(TABLE).unwrap();
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        for rule in &rules {
            assert!(rule.vendor.is_some() || rule.classes.is_some(), "it matches everything: {rule:?}");
            assert_eq!(rule.vendor.is_some(), rule.vendor_name.is_some(), "{rule:?}");
            for (pattern, name) in rule.products.iter().flatten() {
                let digits = pattern.strip_suffix('*').unwrap_or(pattern);
                let longest = if digits == pattern { 4..=4 } else { 0..=3 };
                assert!(hex(digits) && longest.contains(&digits.len()) && !name.is_empty(), "{pattern}");
            }
            for class in rule.classes.iter().flatten() {
                assert!(hex(class) && matches!(class.len(), 2 | 4 | 6), "{class}");
            }
        }
    }

    #[test]
    fn the_hosts_names_have_priority_over_those_of_the_table() {
        let mut qat = device("8086", "37c8", Some("0b4000"), "");
        qat.product_name = Some("C62x of the host".into());
        assert_eq!(
            names(&qat),
            Names { vendor: Some("Intel Corporation"), product: Some("C62x of the host") }
        );
    }

    proptest! {
        #[test]
        fn every_name_is_read_in_any_case(at in 0..DeviceType::ALL.len(), upper in any::<bool>()) {
            let of = DeviceType::ALL[at];
            let word = if upper { of.to_string().to_uppercase() } else { of.to_string().to_lowercase() };
            prop_assert_eq!(word.parse(), Ok(of));
        }

        #[test]
        fn an_unknown_name_is_refused_and_quoted(text in "\\PC*") {
            if let Err(error) = text.parse::<DeviceType>() {
                prop_assert!(error.to_string().contains(&text));
            } else {
                prop_assert!(DeviceType::ALL.iter().any(|of| of.as_str().eq_ignore_ascii_case(&text)));
            }
        }

        #[test]
        fn any_function_has_a_type_and_a_bridge_is_pci(vendor in any::<u16>(), product in any::<u16>(), class in 0u32..=0xff_ffff) {
            let ids = (format!("{vendor:04x}"), format!("{product:04x}"));
            let any = device(&ids.0, &ids.1, Some(&format!("{class:06x}")), "");
            if class >> 16 == 6 {
                prop_assert_eq!(device_type(&any), DeviceType::Pci);
            }
            let unclassed = device(&ids.0, &ids.1, None, "");
            if !RULES.iter().any(|rule| rule.vendor == Some(any.vendor_id)) {
                prop_assert_eq!(device_type(&unclassed), DeviceType::Pci);
            }
        }
    }
}
