//! `alias`: the name by which a kind of device is asked for (Nova's `[pci] alias`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::iter::once_with;

use hotslot_driver::pci::{PciAddress, PciId};
use serde_json::{Map, Value};

use super::numa::NumaPolicy;
use super::parse::{NULL, SpecError, json, object, strict_bool, tag, text};
use super::placement;
use super::request::NAME;
use crate::device::{DevType, DeviceFacts};

/// A name with its alternatives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The name, 1 to 256 characters.
    pub name: String,
    /// Any of these will do. They agree in `device_type`.
    pub specs: Vec<AliasSpec>,
    /// How near to the guest's memory the devices have to be.
    pub numa_policy: NumaPolicy,
}

/// One kind of device: all of it must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasSpec {
    /// The addresses that are meant; none for any. No configured alias says it.
    pub among: Option<BTreeSet<PciAddress>>,
    /// Vendor id. None only with `pci_in_placement`, where a resource class can stand for the ids.
    pub vendor_id: Option<PciId>,
    /// Product id; none as in `vendor_id`.
    pub product_id: Option<PciId>,
    /// The device type; none takes any but a PF and vDPA.
    pub device_type: Option<DevType>,
    /// Whether the devices are to be marked as live migratable, or as not; none does not ask.
    pub live_migratable: Option<bool>,
    /// Placement's class of the devices. None without `pci_in_placement`, where Nova does not look at it.
    pub resource_class: Option<String>,
    /// The traits that the devices must have. Empty without `pci_in_placement`.
    pub traits: BTreeSet<String>,
    /// Tags and outside facts that the devices must have; none is null or absent.
    pub extra_info: BTreeMap<String, Option<String>>,
}

const KNOWN: &[&str] = &[
    "name",
    "vendor_id",
    "product_id",
    "device_type",
    "numa_policy",
    "resource_class",
    "traits",
    "live_migratable",
    "capability_type",
];

/// The tag of devices that no alias gets.
const REMOTE_MANAGED: &str = "remote_managed";

/// What an alias may speak of depends on the rest of `[pci]`.
#[derive(Debug, Clone, Default)]
pub struct AliasGrammar {
    /// The keys that tags of `device_spec` and `[[pci.extra_info]]` define.
    pub extra_info: BTreeSet<String>,
    /// `pci_in_placement` of the configuration.
    pub pci_in_placement: bool,
}

impl Alias {
    /// Reads one configured value: a JSON object.
    ///
    /// # Errors
    /// [`SpecError`] naming the key.
    pub fn parse(entry: &str, grammar: &AliasGrammar) -> Result<Self, SpecError> {
        let value = json(entry)?;
        let entry = object(&value)?;
        let name = text(entry, "name")?.ok_or_else(|| SpecError::key("name", "is missing"))?.trim();
        if !(1..=NAME).contains(&name.chars().count()) || name.contains([':', ',']) {
            let reason = format!("`{name}` is not a name of 1 to {NAME} characters without `:` and `,`");
            return Err(SpecError::key("name", reason));
        }
        let device_type = match text(entry, "device_type")? {
            None => None,
            Some(word) => match word.parse() {
                Ok(kind @ (DevType::Pci | DevType::Pf | DevType::Vf)) => Some(kind),
                Ok(DevType::Vdpa) => {
                    let reason = "`vdpa` is no type that an alias may ask for, as in Nova: only network ports do; \
                                  write type-VF, and VFs that carry no vDPA device are given";
                    return Err(SpecError::key("device_type", reason));
                }
                Err(_) => {
                    let reason = format!("`{word}` is none of type-PCI, type-PF, type-VF");
                    return Err(SpecError::key("device_type", reason));
                }
            },
        };
        let numa_policy = text(entry, "numa_policy")?
            .map_or(Ok(NumaPolicy::Legacy), str::parse)
            .map_err(|reason: String| SpecError::key("numa_policy", reason))?;
        match text(entry, "capability_type")? {
            None | Some("pci") => {}
            Some(other) => {
                return Err(SpecError::key("capability_type", format!("`{other}` is not \"pci\"")));
            }
        }
        text(entry, "live_migratable")?;
        let live_migratable =
            entry.get("live_migratable").map(|word| strict_bool("live_migratable", word)).transpose()?;
        let resource_class = entry.get("resource_class").map(|class| tag("resource_class", class));
        let resource_class = resource_class.transpose()?.filter(|_| grammar.pci_in_placement);
        let mut traits = text(entry, "traits")?.map(placement::traits).unwrap_or_default();
        if !grammar.pci_in_placement {
            traits.clear();
        }
        let (vendor_id, product_id) = (id(entry, "vendor_id")?, id(entry, "product_id")?);
        if resource_class.is_none() {
            for (key, id) in [("vendor_id", vendor_id), ("product_id", product_id)] {
                if id.is_none() {
                    let or = if grammar.pci_in_placement { ", or a resource_class" } else { "" };
                    return Err(SpecError::key(key, format!("is missing; an alias names both ids{or}")));
                }
            }
        }
        let extra_info = extra_info(entry, grammar)?;
        let spec = AliasSpec {
            among: None,
            vendor_id,
            product_id,
            device_type,
            live_migratable,
            resource_class,
            traits,
            extra_info,
        };
        Ok(Self { name: name.to_owned(), specs: vec![spec], numa_policy })
    }

    /// A kind that is only said by addresses: any of these, PFs too.
    pub fn among(name: String, addresses: &BTreeSet<PciAddress>, numa_policy: NumaPolicy) -> Self {
        let of_type = |device_type| AliasSpec {
            among: Some(addresses.clone()),
            vendor_id: None,
            product_id: None,
            device_type,
            live_migratable: None,
            resource_class: None,
            traits: BTreeSet::new(),
            extra_info: BTreeMap::new(),
        };
        Self { name, specs: vec![of_type(None), of_type(Some(DevType::Pf))], numa_policy }
    }

    /// What it is called where people read of it: one that is only said by addresses has the name of who asks.
    pub(super) fn asker(&self) -> String {
        if self.is_configured() { format!("alias `{}`", self.name) } else { self.name.clone() }
    }

    /// Whether it is one of the configured aliases, and not a kind that is only said by addresses.
    pub(super) fn is_configured(&self) -> bool {
        self.specs.iter().all(|spec| spec.among.is_none())
    }

    /// Adds another entry of the same name. They must agree in `device_type` and `numa_policy`.
    pub(super) fn add_alternative(&mut self, other: Self, grammar: &AliasGrammar) -> Result<(), SpecError> {
        let differ = |key| {
            let reason = format!("entries of alias `{}` differ in it; they must agree", self.name);
            Err(SpecError::key(key, reason))
        };
        if grammar.pci_in_placement {
            let reason = format!(
                "a second entry of `{}`, and pci_in_placement takes one for each name; \
                 give the devices one resource_class in device_spec and ask for that",
                self.name
            );
            return Err(SpecError::key("name", reason));
        }
        if self.numa_policy != other.numa_policy {
            return differ("numa_policy");
        }
        if other.specs.iter().any(|new| self.specs.iter().any(|old| old.device_type != new.device_type)) {
            return differ("device_type");
        }
        self.specs.extend(other.specs);
        Ok(())
    }

    /// Whether a device is of this kind.
    pub fn matches(&self, device: &DeviceFacts) -> bool {
        !is_remote_managed(device) && self.specs.iter().any(|spec| spec.differences(device).next().is_none())
    }

    /// In what a device is not of this kind: each key in which the alternative differs that comes nearest. Empty
    /// when it is of this kind.
    pub fn mismatch(&self, device: &DeviceFacts) -> Vec<String> {
        self.distance(device).1
    }

    /// The same, and how far the device is from this kind. A device of the same product is nearer than any other, then
    /// one that differs in fewer keys.
    pub(super) fn distance(&self, device: &DeviceFacts) -> ((bool, usize), Vec<String>) {
        let alternatives = self.specs.iter().map(|spec| {
            let keys: Vec<_> = spec.differences(device).collect();
            ((spec.is_other_product(device), keys.len()), keys)
        });
        let (far, keys) = alternatives.min_by_key(|(far, _)| *far).unwrap_or_default();
        if is_remote_managed(device) {
            return (
                far,
                vec!["it is remote_managed, and only a network port can ask for such devices".into()],
            );
        }
        (far, keys)
    }
}

/// Such a device is wired by the network service, which asks for it by port.
fn is_remote_managed(device: &DeviceFacts) -> bool {
    device.extra_info.get(REMOTE_MANAGED).is_some_and(|value| value == "true")
}

impl AliasSpec {
    fn is_other_product(&self, device: &DeviceFacts) -> bool {
        self.vendor_id.is_some_and(|id| id != device.vendor_id)
            || self.product_id.is_some_and(|id| id != device.product_id)
    }

    /// Each key in which a device is another one, as in "its rack is r1, not r9"; found one by one, for most
    /// devices differ in the first.
    fn differences<'a>(&'a self, device: &'a DeviceFacts) -> impl Iterator<Item = String> + 'a {
        let id = |key, wanted: Option<PciId>, has: PciId| {
            wanted.filter(|wanted| *wanted != has).map(|wanted| is_not(key, has, wanted))
        };
        let kind = || match self.device_type {
            _ if device.dev_type == DevType::Vdpa => {
                Some("it is vdpa, which no alias may ask for".to_owned())
            }
            Some(kind) => (kind != device.dev_type).then(|| is_not("device_type", device.dev_type, kind)),
            None if matches!(device.dev_type, DevType::Pci | DevType::Vf) => None,
            None => Some(format!("it is {}, which an alias asks for by its device_type", device.dev_type)),
        };
        let migratable = || {
            let wanted = self.live_migratable?.to_string();
            tag_differs(device, "live_migratable", Some(&wanted))
        };
        let class = || {
            let (wanted, has) = (self.resource_class.as_ref()?, placement::class_of(device));
            (*wanted != has).then(|| is_not("resource_class", has, wanted))
        };
        let traits = || {
            let has = if self.traits.is_empty() { BTreeSet::new() } else { placement::traits_of(device) };
            let missing: Vec<_> = self.traits.difference(&has).map(String::as_str).collect();
            (!missing.is_empty()).then(|| format!("its traits lack {}", missing.join(", ")))
        };
        let elsewhere = || {
            let among = self.among.as_ref()?;
            (!among.contains(&device.address)).then(|| format!("{} is not meant", device.address))
        };
        let tags = self.extra_info.iter();
        once_with(elsewhere)
            .chain(once_with(move || id("vendor_id", self.vendor_id, device.vendor_id)))
            .chain(once_with(move || id("product_id", self.product_id, device.product_id)))
            .chain(once_with(kind))
            .chain(once_with(migratable))
            .chain(tags.map(|(key, wanted)| tag_differs(device, key, wanted.as_deref())))
            .chain(once_with(class))
            .chain(once_with(traits))
            .flatten()
    }
}

/// In what a tag of a device is not what was asked for; none is null or absent.
pub(super) fn tag_differs(device: &DeviceFacts, key: &str, wanted: Option<&str>) -> Option<String> {
    match (device.extra_info.get(key), wanted) {
        (None | Some(NULL), None) => None,
        (Some(has), Some(wanted)) if has.to_lowercase() == wanted.to_lowercase() => None,
        (Some(has), Some(wanted)) => Some(is_not(key, has, wanted)),
        (Some(has), None) => Some(format!("its {key} is {has}, and none is asked for")),
        (None, Some(wanted)) => Some(format!("it has no {key}, and {wanted} is asked for")),
    }
}

fn is_not(key: &str, has: impl Display, wanted: impl Display) -> String {
    format!("its {key} is {has}, not {wanted}")
}

/// An id of exactly four digits.
fn id(entry: &Map<String, Value>, key: &str) -> Result<Option<PciId>, SpecError> {
    let Some(id) = text(entry, key)? else { return Ok(None) };
    let four = id.len() == 4 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    id.parse()
        .ok()
        .filter(|_| four)
        .map(Some)
        .ok_or_else(|| SpecError::key(key, format!("`{id}` is not four hexadecimal digits such as 8086")))
}

/// The keys that are not an alias' own: the devices' tags and outside facts.
fn extra_info(
    entry: &Map<String, Value>,
    grammar: &AliasGrammar,
) -> Result<BTreeMap<String, Option<String>>, SpecError> {
    let mut asked = BTreeMap::new();
    for (key, value) in entry.iter().filter(|(key, _)| !KNOWN.contains(&key.as_str())) {
        if key == REMOTE_MANAGED {
            return Err(SpecError::key(key, "only a network port can ask for such devices; leave it out"));
        }
        if !grammar.extra_info.contains(key) {
            let defined = grammar.extra_info.iter().map(String::as_str);
            let askable = defined.filter(|key| !KNOWN.contains(key) && *key != REMOTE_MANAGED);
            let known = KNOWN.iter().copied().chain(askable).collect::<Vec<_>>().join(", ");
            let reason = format!(
                "unknown key `{key}`, which no tag of device_spec and no [[pci.extra_info]] defines; known: {known}"
            );
            return Err(SpecError::whole(reason));
        }
        let wanted = if value.is_null() { None } else { Some(tag(key, value)?) };
        asked.insert(key.clone(), wanted);
    }
    Ok(asked)
}
