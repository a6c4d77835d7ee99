//! `device_spec`: which of a host's devices may be given away (Nova's `[pci] device_spec`).
//!
//! An entry says which devices it names by ids, address and interface, and what is to be said of them by tags.

use std::collections::BTreeMap;
use std::fmt;

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::{PciAddress, PciId};
use regex::bytes::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::{extra_info, placement};
use crate::attachment::{HOT_UNPLUG, HotUnplug};
use crate::host::Functions;

/// One entry.
#[derive(Debug, Clone)]
pub struct DeviceSpec {
    vendor_id: Option<PciId>,
    product_id: Option<PciId>,
    place: Place,
    tags: BTreeMap<String, String>,
}

/// Where on the host an entry's devices are.
#[derive(Debug, Clone)]
enum Place {
    Address(AddressSpec),
    /// The function that has this network interface.
    Interface(String),
}

/// Why an entry is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SpecError {
    /// Which entry of a list, from 1; none where the value is no list.
    pub entry: Option<usize>,
    /// The key; none where the entry as a whole does not do.
    pub key: Option<String>,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(entry) = self.entry {
            write!(f, "entry {entry} of its list: ")?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl SpecError {
    pub(super) fn whole(reason: impl Into<String>) -> Self {
        Self { entry: None, key: None, reason: reason.into() }
    }

    pub(super) fn key(key: &str, reason: impl Into<String>) -> Self {
        Self { entry: None, key: Some(key.to_owned()), reason: reason.into() }
    }
}

/// The keys that say which devices are meant.
const IDENTITY: &[&str] = &["vendor_id", "product_id", "address", "devname"];

/// The tags that have a meaning of their own. Any other is kept for aliases to ask for.
pub(super) const TAGS: &[&str] = &[
    "physical_network",
    "trusted",
    "remote_managed",
    "managed",
    "live_migratable",
    "one_time_use",
    HOT_UNPLUG,
    "resource_class",
    "traits",
];

impl DeviceSpec {
    /// Reads one entry, a JSON object. `report_in_placement` as in the configuration.
    ///
    /// # Errors
    /// [`SpecError`] naming the key.
    pub fn parse(text: &str, report_in_placement: bool) -> Result<Self, SpecError> {
        let spec = Self::entry(&json(text)?)?;
        if report_in_placement && matches!(spec.place, Place::Interface(_)) {
            return Err(SpecError::key("devname", "not with report_in_placement; write the address"));
        }
        if !report_in_placement && spec.is("one_time_use") {
            let reason = "only with report_in_placement = true, as in Nova";
            return Err(SpecError::key("one_time_use", reason));
        }
        Ok(spec)
    }

    /// Reads entries that only say which devices are meant: an object or a list of them.
    pub(super) fn parse_identity(value: &Value) -> Vec<Result<Self, SpecError>> {
        let untagged = |spec: Self| match spec.tags.keys().next() {
            None => Ok(spec),
            Some(tag) => {
                let known = IDENTITY.join(", ");
                Err(SpecError::key(
                    tag,
                    format!("a tag says nothing of which devices are meant; write {known}"),
                ))
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
                return Err(SpecError::key("devname", "not together with address; leave one of them out"));
            }
            Some(name) => match name.as_str().map(str::trim) {
                Some(name) if !name.is_empty() => Place::Interface(name.to_owned()),
                Some(_) | None => {
                    let reason = format!("`{name}` is no interface's name; write \"devname\": \"eth0\"");
                    return Err(SpecError::key("devname", reason));
                }
            },
            None => Place::Address(AddressSpec::parse(optional(entry, "address"))?),
        };
        let mut tags = BTreeMap::new();
        for (key, value) in entry.iter().filter(|(key, _)| !IDENTITY.contains(&key.as_str())) {
            // Any key is a tag, and an entry without identity names every device: a slip would give them all away.
            if !TAGS.contains(&key.as_str())
                && let Some(meant) = IDENTITY
                    .iter()
                    .chain(TAGS)
                    .find(|known| strsim::osa_distance(&key.to_lowercase(), known) <= 1)
            {
                return Err(SpecError::whole(format!("unknown key `{key}`; did you mean `{meant}`?")));
            }
            if extra_info::is_own(key) {
                return Err(SpecError::key(
                    key,
                    "no tag may have this name, which devices, pools or aliases have for something else",
                ));
            }
            tags.insert(key.clone(), tag(key, value)?);
        }
        Ok(Self { vendor_id: id(entry, "vendor_id")?, product_id: id(entry, "product_id")?, place, tags })
    }

    /// Whether it names its devices by their interface.
    pub(super) fn names_interface(&self) -> bool {
        matches!(self.place, Place::Interface(_))
    }

    /// Whether it names this one address, without a pattern.
    pub(super) fn names_address(&self, address: PciAddress) -> bool {
        matches!(&self.place, Place::Address(spec) if spec.exact == Some(address))
    }

    /// What the entry says of its devices, beside which they are.
    pub fn tags(&self) -> &BTreeMap<String, String> {
        &self.tags
    }

    /// Whether a tag is `true`.
    pub(super) fn is(&self, tag: &str) -> bool {
        self.tags.get(tag).is_some_and(|value| value == "true")
    }

    /// Whether the entry names this device. An entry with a PF's full address or interface names its VFs too.
    /// `parent` is the PF of a VF.
    pub fn matches(&self, device: &HostDevice, parent: Option<&HostDevice>) -> bool {
        self.mismatch(device, parent).is_none()
    }

    /// The first thing in which the entry does not name this device; none when it names it.
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
                    .then(|| format!("its address {} is another", device.address))
            }
            Place::Interface(name) => {
                let has =
                    device.has_interface(name) || parent.is_some_and(|parent| parent.has_interface(name));
                (!has).then(|| format!("no interface of it is called {name}"))
            }
        }
    }

    /// The interface by which an entry that is `remote_managed` names its devices, where the host has none of this
    /// name. Of a host that was not read yet it cannot be told.
    pub(super) fn absent(&self, functions: &Functions) -> Option<&str> {
        let Place::Interface(name) = &self.place else { return None };
        let has = |device: &HostDevice| device.has_interface(name);
        (self.is("remote_managed") && !functions.is_empty() && !functions.values().any(has)).then_some(name)
    }

    /// Why an entry that is `remote_managed` is wrong on a host that has this function: that is for VFs, and it names
    /// a PF, by its address or interface, or by ids that are a PF's.
    pub(super) fn conflict(&self, device: &HostDevice, functions: &Functions) -> Option<SpecError> {
        let Role::Physical { vfs, .. } = &device.role else { return None };
        let one = match &self.place {
            Place::Address(address) => address.exact.is_some(),
            Place::Interface(_) => true,
        };
        if self.elsewhere(device, None).is_some() {
            return None;
        }
        let pf = device.address;
        let reason = if self.other_ids(device).is_none() && (one || self.product_id.is_some()) {
            format!("it is for VFs, but the entry names {pf}, which is a PF; add the VFs' product_id")
        } else if one
            && !vfs.is_empty()
            && vfs.iter().filter_map(|vf| functions.get(vf)).all(|vf| self.other_ids(vf).is_some())
        {
            format!("it names the VFs of {pf}, but none of them has these ids; write the VFs' own")
        } else {
            return None;
        };
        Some(SpecError::key("remote_managed", reason))
    }

    /// Why the tags cannot be said of this device.
    fn unsuited(&self, device: &HostDevice, parent: Option<&HostDevice>) -> Option<String> {
        if self.is("remote_managed") {
            // Its port is programmed from the other side, which finds the card by its serial number.
            let serial =
                extra_info::card_serial_number(device, parent).is_some_and(|serial| !serial.is_empty());
            if matches!(device.role, Role::Physical { .. }) {
                return Some("it is a PF, which remote_managed is not for".into());
            } else if !serial {
                return Some("it shows no serial number (VPD), which remote_managed needs".into());
            }
        }
        (self.is("one_time_use") && matches!(device.role, Role::Virtual { .. }))
            .then(|| "it is a VF, which one_time_use is not for".into())
    }
}

/// The text of an entry as JSON.
pub(super) fn json(text: &str) -> Result<Value, SpecError> {
    let value = serde_json::from_str(text)
        .map_err(|error| SpecError::whole(format!("not a JSON object: {error}")))?;
    visible(&value)?;
    Ok(value)
}

/// Checks that all texts of an entry can be seen, its keys too.
fn visible(value: &Value) -> Result<(), SpecError> {
    match value {
        Value::String(text) => hotslot_driver::text::visible(text).map_err(SpecError::whole),
        Value::Array(items) => items.iter().try_for_each(visible),
        Value::Object(members) => members.iter().try_for_each(|(key, value)| {
            hotslot_driver::text::visible(key).map_err(SpecError::whole)?;
            visible(value)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// An entry as a JSON object.
pub(super) fn object(value: &Value) -> Result<&Map<String, Value>, SpecError> {
    value.as_object().ok_or_else(|| SpecError::whole(format!("not a JSON object: `{value}`")))
}

/// A member that is not null.
fn optional<'a>(entry: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    entry.get(key).filter(|value| !value.is_null())
}

/// A member that must be a text.
pub(super) fn text<'a>(entry: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, SpecError> {
    entry.get(key).map(|value| string(key, value)).transpose()
}

fn string<'a>(key: &str, value: &'a Value) -> Result<&'a str, SpecError> {
    value
        .as_str()
        .ok_or_else(|| SpecError::key(key, format!("`{value}` is no string; write \"{key}\": \"…\"")))
}

/// The text that a tag's value is kept as. Absent is not `null`: a network that is tunnelled says null.
pub(super) fn tag(key: &str, value: &Value) -> Result<String, SpecError> {
    match (key, value) {
        ("physical_network", Value::Null) => Ok(NULL.to_owned()),
        ("physical_network", Value::String(name)) if name.eq_ignore_ascii_case(NULL) => Err(SpecError::key(
            key,
            "a network of that name cannot be told from null, which stands without quotes",
        )),
        ("managed" | "live_migratable" | "one_time_use", value) => Ok(strict_bool(key, value)?.to_string()),
        (HOT_UNPLUG, value) => {
            let policy = string(key, value)?.parse::<HotUnplug>();
            Ok(policy.map_err(|error| SpecError::key(key, error))?.to_string())
        }
        // Nova takes what is no word for true as false.
        ("remote_managed", value) => Ok(strict_bool(key, value).unwrap_or(false).to_string()),
        ("trusted", Value::Bool(trusted)) => Ok(trusted.to_string()),
        ("resource_class", value) => match string(key, value)? {
            blank if blank.trim().is_empty() => {
                Err(SpecError::key(key, "is blank; name a class such as CUSTOM_GPU, or leave the key out"))
            }
            name => Ok(placement::resource_class(name)),
        },
        ("traits", value) => {
            Ok(placement::traits(string(key, value)?).into_iter().collect::<Vec<_>>().join(","))
        }
        (_, value) => string(key, value).map(str::to_owned),
    }
}

/// How `"physical_network": null` is kept in a map of strings.
pub const NULL: &str = "null";

/// Nova's strict boolean words, or JSON's own.
pub(super) fn strict_bool(key: &str, value: &Value) -> Result<bool, SpecError> {
    let word = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match word.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Ok(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Ok(false),
        _ => Err(SpecError::key(key, format!("`{word}` is neither \"true\" nor \"false\""))),
    }
}

/// A vendor or product id, or `*` for any.
fn id(entry: &Map<String, Value>, key: &str) -> Result<Option<PciId>, SpecError> {
    let id = text(entry, key)?.map(|digits| hex(digits, 0xffff)).transpose();
    let id = id.map_err(|reason| SpecError::key(key, format!("{reason}; write four digits such as 8086")))?;
    Ok(id.flatten().map(|id| PciId::new(id as u16)))
}

/// A number as Nova writes it: hexadecimal with or without 0x, spaces around it; none is `*`.
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

/// The addresses that an entry names.
#[derive(Debug, Clone)]
struct AddressSpec {
    /// Domain, bus, slot, function.
    fields: [Field; 4],
    /// The one address that it names when no field is left open. A PF's covers its VFs.
    exact: Option<PciAddress>,
}

#[derive(Debug, Clone)]
enum Field {
    Any,
    Is(u32),
    Like(Regex),
}

/// How many bytes a compiled pattern may have, and the automaton that is made of it: `0[0-3]` has some hundred.
const REGEX: usize = 16 * 1024;

/// The fields with their largest values, in order.
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

    /// `[[[[domain]:]bus]:][slot][.[function]]` with `*` for any field; a field that is left out is any.
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

    /// `{"domain": …, "bus": …, "slot": …, "function": …}`, each a regular expression.
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
                    "{name} `{value}` is no regular expression; write \"{name}\": \"0[0-3]\""
                )));
            };
            let regex =
                RegexBuilder::new(pattern).unicode(false).size_limit(REGEX).dfa_size_limit(REGEX).build();
            *field = Field::Like(regex.map_err(|error| {
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                bad(format!("{name} `{pattern}` is no regular expression that is known here: {reason}"))
            })?);
        }
        // Nova takes four fields of plain digits for one address here too.
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
            // Python's re.match: the leftmost match has to begin where the text does, and may end before it does.
            Field::Like(regex) => {
                regex.find(format!("{value:0width$x}").as_bytes()).is_some_and(|found| found.start() == 0)
            }
        })
    }
}
