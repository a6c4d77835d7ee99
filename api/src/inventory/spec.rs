//! `device_spec`: which of a host's devices may be given away (Nova's `[pci] device_spec`).

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::{PciAddress, PciId};
use serde_json::{Map, Value};

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    vendor_id: Option<PciId>,
    product_id: Option<PciId>,
    address: AddressGlob,
    /// Whether libvirt is to bind the drivers; none where the entry does not say.
    pub managed: Option<bool>,
}

/// Why an entry is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not JSON, or not of the form that it should have.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// A key that is not known, or not yet.
    #[error("unknown key `{key}`; known: {known}")]
    Key {
        /// The key.
        key: String,
        /// The known ones.
        known: &'static str,
    },
    /// A value that does not do.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

const KNOWN: &str = "vendor_id, product_id, address, managed";

impl DeviceSpec {
    /// Reads one configured value: a JSON object, or a list of them.
    ///
    /// # Errors
    /// [`SpecError`] naming the key.
    pub fn parse(text: &str) -> Result<Vec<Self>, SpecError> {
        let value: Value = serde_json::from_str(text).map_err(|error| SpecError::Json(error.to_string()))?;
        match value {
            Value::Array(entries) => entries.iter().map(Self::entry).collect(),
            entry @ (Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Object(_)) => Ok(vec![Self::entry(&entry)?]),
        }
    }

    fn entry(value: &Value) -> Result<Self, SpecError> {
        let entry = value.as_object().ok_or_else(|| SpecError::Json(format!("`{value}`")))?;
        if let Some(key) = entry
            .keys()
            .find(|key| !["vendor_id", "product_id", "address", "managed"].contains(&key.as_str()))
        {
            return Err(SpecError::Key { key: key.clone(), known: KNOWN });
        }
        Ok(Self {
            vendor_id: id(entry, "vendor_id")?,
            product_id: id(entry, "product_id")?,
            address: AddressGlob::parse(text(entry, "address")?.unwrap_or_default())?,
            managed: text(entry, "managed")?.map(|word| strict_bool("managed", word)).transpose()?,
        })
    }

    /// Whether the entry names this device. An entry with a PF's full address names its VFs too.
    pub fn matches(&self, device: &HostDevice) -> bool {
        self.vendor_id.is_none_or(|id| id == device.vendor_id)
            && self.product_id.is_none_or(|id| id == device.product_id)
            && (self.address.matches(device.address)
                || match &device.role {
                    Role::Virtual { parent } => self.address.is_exactly(*parent),
                    Role::Plain | Role::Physical { .. } => false,
                })
    }
}

/// A member that must be a text.
pub(super) fn text<'a>(
    entry: &'a Map<String, Value>,
    key: &'static str,
) -> Result<Option<&'a str>, SpecError> {
    match entry.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => {
            Err(SpecError::Value { key, reason: format!("`{other}` is no string; write \"{key}\": \"…\"") })
        }
    }
}

/// A vendor or product id: hex with or without 0x, or `*` for any.
fn id(entry: &Map<String, Value>, key: &'static str) -> Result<Option<PciId>, SpecError> {
    match text(entry, key)?.map(str::trim) {
        None | Some("*") => Ok(None),
        Some(id) => id.parse().map(Some).map_err(|error: hotslot_driver::pci::PciParseError| {
            SpecError::Value { key, reason: error.to_string() }
        }),
    }
}

/// Nova's strict boolean words.
fn strict_bool(key: &'static str, word: &str) -> Result<bool, SpecError> {
    match word.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Ok(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Ok(false),
        _ => Err(SpecError::Value { key, reason: format!("`{word}` is neither \"true\" nor \"false\"") }),
    }
}

/// `[[[[domain]:]bus]:][slot][.[function]]` with `*` for any field; a field that is left out is any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct AddressGlob {
    domain: Option<u32>,
    bus: Option<u32>,
    slot: Option<u32>,
    function: Option<u32>,
}

impl AddressGlob {
    fn parse(text: &str) -> Result<Self, SpecError> {
        let bad = |reason: String| SpecError::Value { key: "address", reason };
        let text = text.trim();
        if text.is_empty() || text == "*" {
            return Ok(Self::default());
        }
        let (rest, function) = text.split_once('.').unwrap_or((text, "*"));
        let mut fields: Vec<&str> = rest.split(':').collect();
        if fields.len() > 3 {
            return Err(bad(format!("`{text}` has too many fields; write domain:bus:slot.function")));
        }
        while fields.len() < 3 {
            fields.insert(0, "*");
        }
        let field = |name: &str, digits: &str, max: u32| match digits.trim() {
            "" | "*" => Ok(None),
            digits => match u32::from_str_radix(digits, 16) {
                Ok(value) if value <= max && !digits.starts_with('+') => Ok(Some(value)),
                Ok(_) => Err(bad(format!("{name} `{digits}` of `{text}` is above {max:x}"))),
                Err(_) => Err(bad(format!("{name} `{digits}` of `{text}` is neither hexadecimal nor *"))),
            },
        };
        Ok(Self {
            domain: field("domain", fields[0], 0xffff)?,
            bus: field("bus", fields[1], 0xff)?,
            slot: field("slot", fields[2], 0x1f)?,
            function: field("function", function, 7)?,
        })
    }

    fn matches(&self, address: PciAddress) -> bool {
        let is = |field: Option<u32>, value: u32| field.is_none_or(|wanted| wanted == value);
        is(self.domain, address.domain().into())
            && is(self.bus, address.bus().into())
            && is(self.slot, address.slot().into())
            && is(self.function, address.function().into())
    }

    fn is_exactly(&self, address: PciAddress) -> bool {
        let Self { domain: Some(_), bus: Some(_), slot: Some(_), function: Some(_) } = self else {
            return false;
        };
        self.matches(address)
    }
}
