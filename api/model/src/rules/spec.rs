//! `device_spec`: which devices of a host are assignable (Nova's `[pci] device_spec`).
//!
//! An entry selects devices by ids, by address or by network interface, and gives them tags.

use std::collections::BTreeMap;

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::{PciAddress, PciId};
use regex::bytes::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::parse::{SpecError, TAGS, json, object, tag, text};
use super::{host_facts, keys};
use crate::device::Functions;

/// One `device_spec` entry.
#[derive(Debug, Clone)]
pub struct DeviceSpec {
    vendor_id: Option<PciId>,
    product_id: Option<PciId>,
    place: Place,
    tags: BTreeMap<String, String>,
}

/// How an entry selects devices by their place on the host.
#[derive(Debug, Clone)]
enum Place {
    Address(AddressSpec),
    /// The function that has this network interface.
    Interface(String),
}

/// The keys that select devices. All other keys are tags.
const IDENTITY: &[&str] = &["vendor_id", "product_id", "address", "devname"];

impl DeviceSpec {
    /// Reads one entry, a JSON object. `report_in_placement` is the configuration key of that name.
    ///
    /// # Errors
    /// Returns a [`SpecError`] that names the key when the entry is not valid.
    pub fn parse(text: &str, report_in_placement: bool) -> Result<Self, SpecError> {
        let value = json(text)?;
        let spec = Self::entry(&value)?;
        if IDENTITY.iter().all(|key| value[*key].is_null()) {
            let known = IDENTITY.join(", ");
            return Err(SpecError::whole(format!(
                "it has none of {known}, so it would list every device; add one, or the address * if every device is \
                 meant"
            )));
        }
        if report_in_placement && matches!(spec.place, Place::Interface(_)) {
            return Err(SpecError::key(
                "devname",
                "cannot be used with report_in_placement; write the address",
            ));
        }
        if !report_in_placement && spec.is("one_time_use") {
            let reason = "requires report_in_placement = true, as in Nova";
            return Err(SpecError::key("one_time_use", reason));
        }
        Ok(spec)
    }

    /// Reads entries that select devices and have no tags: an object or a list of objects.
    pub(super) fn parse_identity(value: &Value) -> Vec<Result<Self, SpecError>> {
        let untagged = |spec: Self| match spec.tags.keys().next() {
            None => Ok(spec),
            Some(tag) => {
                let known = IDENTITY.join(", ");
                Err(SpecError::key(tag, format!("a tag does not identify devices; use {known}")))
            }
        };
        Self::entries(value).into_iter().map(|entry| entry.and_then(untagged)).collect()
    }

    fn entries(value: &Value) -> Vec<Result<Self, SpecError>> {
        let Some(entries) = value.as_array() else { return vec![Self::entry(value)] };
        let numbered = |(index, entry)| {
            Self::entry(entry).map_err(|error| SpecError { entry: Some(index + 1), ..error })
        };
        entries.iter().enumerate().map(numbered).collect()
    }

    fn entry(value: &Value) -> Result<Self, SpecError> {
        let entry = object(value)?;
        let devname = optional(entry, "devname");
        let place = match devname {
            Some(_) if optional(entry, "address").is_some() => {
                return Err(SpecError::key("devname", "cannot be combined with address; remove one of them"));
            }
            Some(name) => match name.as_str().map(str::trim) {
                Some(name) if !name.is_empty() => Place::Interface(name.to_owned()),
                Some(_) | None => {
                    let reason = format!("`{name}` is not an interface name; write \"devname\": \"eth0\"");
                    return Err(SpecError::key("devname", reason));
                }
            },
            None => Place::Address(AddressSpec::parse(optional(entry, "address"))?),
        };
        let mut tags = BTreeMap::new();
        for (key, value) in entry.iter().filter(|(key, _)| !IDENTITY.contains(&key.as_str())) {
            // Any other key is a tag, and an entry that selects nothing names every device. So a misspelt key could
            // make all devices assignable.
            if !TAGS.contains(&key.as_str())
                && let Some(meant) = IDENTITY
                    .iter()
                    .chain(TAGS)
                    .find(|known| strsim::osa_distance(&key.to_lowercase(), known) <= 1)
            {
                return Err(SpecError::whole(format!("unknown key `{key}`; did you mean `{meant}`?")));
            }
            if matches!(key.as_str(), "vgpu_type" | "mdev_type") {
                return Err(SpecError::key(
                    key,
                    "is requested by an alias or by the request, or given to VFs by a [[profile]]; write it there",
                ));
            }
            if keys::is_own(key) {
                return Err(SpecError::key(
                    key,
                    "is a reserved key of devices, pools or aliases; choose another name for the tag",
                ));
            }
            tags.insert(key.clone(), tag(key, value)?);
        }
        Ok(Self { vendor_id: id(entry, "vendor_id")?, product_id: id(entry, "product_id")?, place, tags })
    }

    /// Whether the entry selects devices by their network interface.
    pub(super) fn names_interface(&self) -> bool {
        matches!(self.place, Place::Interface(_))
    }

    /// Whether the entry selects exactly this address, without a pattern.
    pub(super) fn names_address(&self, address: PciAddress) -> bool {
        matches!(&self.place, Place::Address(spec) if spec.exact == Some(address))
    }

    /// Returns the tags that the entry gives its devices.
    pub fn tags(&self) -> &BTreeMap<String, String> {
        &self.tags
    }

    /// Whether a tag is `true`.
    pub(super) fn is(&self, tag: &str) -> bool {
        self.tags.get(tag).is_some_and(|value| value == "true")
    }

    /// Whether the entry names this device. An entry with the full address or the interface of a PF names its VFs too.
    /// `parent` is the PF of the device if the device is a VF.
    pub fn matches(&self, device: &HostDevice, parent: Option<&HostDevice>) -> bool {
        self.mismatch(device, parent).is_none()
    }

    /// Returns the first reason why the entry does not name this device, or `None` when it names it.
    pub fn mismatch(&self, device: &HostDevice, parent: Option<&HostDevice>) -> Option<String> {
        self.other_ids(device)
            .or_else(|| self.elsewhere(device, parent))
            .or_else(|| self.unsuited(device, parent))
    }

    fn other_ids(&self, device: &HostDevice) -> Option<String> {
        let id = |key: &str, wanted: Option<PciId>, has: PciId| {
            wanted.filter(|wanted| *wanted != has).map(|wanted| format!("its {key} is {has}, not {wanted}"))
        };
        id("vendor_id", self.vendor_id, device.vendor_id)
            .or_else(|| id("product_id", self.product_id, device.product_id))
    }

    fn elsewhere(&self, device: &HostDevice, parent: Option<&HostDevice>) -> Option<String> {
        match &self.place {
            Place::Address(address) => {
                let of_vf = match device.role {
                    Role::Virtual { parent } => address.exact == Some(parent),
                    Role::Plain | Role::Physical { .. } => false,
                };
                (!address.matches(device.address) && !of_vf)
                    .then(|| format!("its address {} does not match", device.address))
            }
            Place::Interface(name) => {
                let has =
                    device.has_interface(name) || parent.is_some_and(|parent| parent.has_interface(name));
                (!has).then(|| format!("it has no interface named {name}"))
            }
        }
    }

    /// Returns the interface name of a `remote_managed` entry when the host has no interface of that name. Returns
    /// `None` for a host that has not been read yet.
    pub(super) fn absent(&self, functions: &Functions) -> Option<&str> {
        let Place::Interface(name) = &self.place else { return None };
        let has = |device: &HostDevice| device.has_interface(name);
        (self.is("remote_managed") && !functions.is_empty() && !functions.values().any(has)).then_some(name)
    }

    /// Returns the reason why a `remote_managed` entry is wrong on a host that has this function. Such an entry is only
    /// for VFs; it is wrong when it names a PF by address, by interface or by ids.
    pub(super) fn conflict(&self, device: &HostDevice, functions: &Functions) -> Option<SpecError> {
        let Role::Physical { vfs, .. } = &device.role else { return None };
        let names_one_device = match &self.place {
            Place::Address(address) => address.exact.is_some(),
            Place::Interface(_) => true,
        };
        if self.elsewhere(device, None).is_some() {
            return None;
        }
        let pf = device.address;
        let reason = if self.other_ids(device).is_none() && (names_one_device || self.product_id.is_some()) {
            format!("it is only for VFs, but the entry names the PF {pf}; add the product_id of the VFs")
        } else if names_one_device
            && !vfs.is_empty()
            && vfs.iter().filter_map(|vf| functions.get(vf)).all(|vf| self.other_ids(vf).is_some())
        {
            format!("it names the VFs of {pf}, but none of them has these ids; write the ids of the VFs")
        } else {
            return None;
        };
        Some(SpecError::key("remote_managed", reason))
    }

    /// Returns the reason when a tag of the entry does not apply to this device.
    fn unsuited(&self, device: &HostDevice, parent: Option<&HostDevice>) -> Option<String> {
        if self.is("remote_managed") {
            // The other side of the card programs the port; it finds the card by its serial number.
            let serial =
                host_facts::card_serial_number(device, parent).is_some_and(|serial| !serial.is_empty());
            if matches!(device.role, Role::Physical { .. }) {
                return Some("it is a PF, but remote_managed does not apply to PFs".into());
            } else if !serial {
                return Some("it has no serial number in its VPD, which remote_managed requires".into());
            }
        }
        (self.is("one_time_use") && matches!(device.role, Role::Virtual { .. }))
            .then(|| "it is a VF, but one_time_use does not apply to VFs".into())
    }
}

/// Returns a member of an object unless it is null.
fn optional<'a>(entry: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    entry.get(key).filter(|value| !value.is_null())
}

/// Reads a vendor or product id. `*` means any and returns `None`.
fn id(entry: &Map<String, Value>, key: &str) -> Result<Option<PciId>, SpecError> {
    let id = text(entry, key)?.map(|digits| hex(digits, 0xffff)).transpose();
    let id = id.map_err(|reason| SpecError::key(key, format!("{reason}; write four digits such as 8086")))?;
    Ok(id.flatten().map(|id| PciId::new(id as u16)))
}

/// Reads a number in Nova's form: hexadecimal, with or without `0x`, with spaces around it allowed. `*` returns `None`.
fn hex(text: &str, max: u32) -> Result<Option<u32>, String> {
    let text = text.trim();
    if text == "*" {
        return Ok(None);
    }
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("`{text}` is neither hexadecimal nor *"));
    }
    match u32::from_str_radix(digits, 16) {
        Ok(value) if value <= max => Ok(Some(value)),
        Ok(_) | Err(_) => Err(format!("`{text}` is above {max:x}")),
    }
}

/// The addresses that an entry selects.
#[derive(Debug, Clone)]
struct AddressSpec {
    /// Patterns for domain, bus, slot and function, in this order.
    fields: [Field; 4],
    /// The address when every field has a fixed value. The address of a PF also selects its VFs.
    exact: Option<PciAddress>,
}

#[derive(Debug, Clone)]
enum Field {
    Any,
    Is(u32),
    Like(Regex),
}

/// The largest size of a compiled pattern in bytes, and of its lazy DFA. `0[0-3]` needs a few hundred bytes.
const REGEX: usize = 16 * 1024;

/// The fields of an address and their largest values, in order.
const FIELDS: [(&str, u32); 4] = [("domain", 0xffff), ("bus", 0xff), ("slot", 0x1f), ("function", 7)];

impl AddressSpec {
    fn parse(value: Option<&Value>) -> Result<Self, SpecError> {
        match value {
            None => Self::glob(""),
            Some(Value::String(text)) => Self::glob(text),
            Some(Value::Object(fields)) => Self::regex(fields),
            Some(other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_))) => {
                let reason = format!(
                    "`{other}` is neither a string such as \"0000:3b:00.1\" nor an object of regular expressions"
                );
                Err(SpecError::key("address", reason))
            }
        }
    }

    /// Reads `[[[[domain]:]bus]:][slot][.[function]]`. A field that is `*` or left out matches any value.
    fn glob(text: &str) -> Result<Self, SpecError> {
        let text = text.trim();
        let bad = |reason: String| SpecError::key("address", reason);
        let (rest, function) = text.split_once('.').unwrap_or((text, ""));
        let mut texts: Vec<&str> = rest.split(':').collect();
        if texts.len() > 3 {
            return Err(bad(format!("`{text}` has too many fields; write domain:bus:slot.function")));
        }
        while texts.len() < 3 {
            texts.insert(0, "");
        }
        texts.push(function);
        let mut fields = [const { Field::Any }; 4];
        for ((field, digits), (name, max)) in fields.iter_mut().zip(texts).zip(FIELDS) {
            let digits = Some(digits.trim()).filter(|digits| !digits.is_empty()).unwrap_or("*");
            let value = hex(digits, max).map_err(|reason| bad(format!("{name} of `{text}`: {reason}")))?;
            if let Some(value) = value {
                *field = Field::Is(value);
            }
        }
        let exact = match fields {
            [Field::Is(domain), Field::Is(bus), Field::Is(slot), Field::Is(function)] => {
                PciAddress::new(domain, bus, slot, function).ok()
            }
            _ => None,
        };
        Ok(Self { fields, exact })
    }

    /// Reads `{"domain": …, "bus": …, "slot": …, "function": …}`, each a regular expression.
    fn regex(patterns: &Map<String, Value>) -> Result<Self, SpecError> {
        let bad = |reason: String| SpecError::key("address", reason);
        let known = FIELDS.map(|(name, _)| name);
        if let Some(key) = patterns.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(bad(format!("unknown field `{key}`; known: {}", known.join(", "))));
        }
        let mut fields = [const { Field::Any }; 4];
        for (field, name) in fields.iter_mut().zip(known) {
            let Some(value) = patterns.get(name) else { continue };
            let Some(pattern) = value.as_str() else {
                return Err(bad(format!(
                    "{name} `{value}` is not a regular expression; write \"{name}\": \"0[0-3]\""
                )));
            };
            let regex =
                RegexBuilder::new(pattern).unicode(false).size_limit(REGEX).dfa_size_limit(REGEX).build();
            *field = Field::Like(regex.map_err(|error| {
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                bad(format!("{name} `{pattern}` is not a supported regular expression: {reason}"))
            })?);
        }
        // As in Nova, four fields of plain digits are one exact address in this form too.
        let digits = known.map(|name| patterns.get(name).and_then(Value::as_str).unwrap_or_default());
        let [domain, bus, slot, function] = digits;
        let written = format!("{domain}:{bus}:{slot}.{function}");
        let exact = written.parse().ok().filter(|address: &PciAddress| address.to_string() == written);
        Ok(Self { fields, exact })
    }

    fn matches(&self, address: PciAddress) -> bool {
        let (domain, bus, slot, function) =
            (address.domain(), address.bus(), address.slot(), address.function());
        let values = [u32::from(domain), bus.into(), slot.into(), function.into()];
        self.fields.iter().zip(values).zip([4, 2, 2, 1]).all(|((field, value), width)| match field {
            Field::Any => true,
            Field::Is(wanted) => *wanted == value,
            // Like Python's re.match: a match must begin at the start of the text, and may end before its end.
            Field::Like(regex) => {
                regex.find(format!("{value:0width$x}").as_bytes()).is_some_and(|found| found.start() == 0)
            }
        })
    }
}
