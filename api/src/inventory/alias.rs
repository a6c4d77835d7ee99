//! `alias`: the name by which a kind of device is asked for (Nova's `[pci] alias`).

use hotslot_driver::pci::PciId;
use serde_json::Value;

use super::numa::NumaPolicy;
use super::spec::{SpecError, text};
use crate::store::{DevType, DeviceFacts};

/// A name with its alternatives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The name, 1 to 256 characters.
    pub name: String,
    /// Any of these will do.
    pub specs: Vec<AliasSpec>,
    /// How near to the guest's memory its devices are to be.
    pub numa_policy: NumaPolicy,
}

/// One kind of device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasSpec {
    /// Vendor id.
    pub vendor_id: PciId,
    /// Product id.
    pub product_id: PciId,
    /// The device type; none takes any but a PF.
    pub device_type: Option<DevType>,
}

const KNOWN: &str = "name, vendor_id, product_id, device_type, capability_type";

impl Alias {
    /// Reads one configured value: a JSON object.
    ///
    /// # Errors
    /// [`SpecError`] naming the key.
    pub fn parse(entry: &str) -> Result<Self, SpecError> {
        let value: Value = serde_json::from_str(entry).map_err(|error| SpecError::Json(error.to_string()))?;
        let entry = value.as_object().ok_or_else(|| SpecError::Json(format!("`{value}`")))?;
        if let Some(key) = entry.keys().find(|key| !KNOWN.split(", ").any(|known| known == key.as_str())) {
            return Err(SpecError::Key { key: key.clone(), known: KNOWN });
        }
        let bad = |key, reason: String| SpecError::Value { key, reason };
        let name = text(entry, "name")?.ok_or_else(|| bad("name", "is missing".into()))?.trim();
        if !(1..=256).contains(&name.chars().count()) || name.contains([':', ',']) {
            return Err(bad(
                "name",
                format!("`{name}` is not a name of 1 to 256 characters without `:` and `,`"),
            ));
        }
        let id = |key: &'static str| -> Result<PciId, SpecError> {
            let id =
                text(entry, key)?.ok_or_else(|| bad(key, "is missing; an alias names both ids".into()))?;
            match id.parse() {
                Ok(parsed) if id.len() == 4 => Ok(parsed),
                Ok(_) | Err(_) => {
                    Err(bad(key, format!("`{id}` is not four hexadecimal digits such as 8086")))
                }
            }
        };
        let device_type = match text(entry, "device_type")? {
            None => None,
            Some(word) => match word.parse() {
                Ok(kind @ (DevType::Pci | DevType::Pf | DevType::Vf)) => Some(kind),
                Ok(DevType::Vdpa) | Err(_) => {
                    return Err(bad(
                        "device_type",
                        format!("`{word}` is none of type-PCI, type-PF, type-VF"),
                    ));
                }
            },
        };
        match text(entry, "capability_type")? {
            None | Some("pci") => {}
            Some(other) => return Err(bad("capability_type", format!("`{other}` is not \"pci\""))),
        }
        let spec = AliasSpec { vendor_id: id("vendor_id")?, product_id: id("product_id")?, device_type };
        Ok(Self { name: name.to_owned(), specs: vec![spec], numa_policy: NumaPolicy::default() })
    }

    /// Adds another entry of the same name. They must agree in `device_type`.
    pub(super) fn add_alternative(&mut self, other: Self) -> Result<(), SpecError> {
        let agree =
            other.specs.iter().all(|new| self.specs.iter().all(|old| old.device_type == new.device_type));
        if !agree {
            let reason = format!("entries of alias `{}` differ in it; they must agree", self.name);
            return Err(SpecError::Value { key: "device_type", reason });
        }
        self.specs.extend(other.specs);
        Ok(())
    }

    /// Whether a device is of this kind.
    pub fn matches(&self, device: &DeviceFacts) -> bool {
        self.specs.iter().any(|spec| {
            spec.vendor_id == device.vendor_id
                && spec.product_id == device.product_id
                && match spec.device_type {
                    Some(kind) => kind == device.dev_type,
                    None => matches!(device.dev_type, DevType::Pci | DevType::Vf),
                }
        })
    }
}
