//! `alias`: the name by which requests name a kind of device (Nova's `[pci] alias`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::iter::once_with;

use hotslot_driver::pci::{PciAddress, PciId};
use hotslot_driver::vgpu;
use serde_json::{Map, Value};

use super::numa::NumaPolicy;
use super::parse::{NULL, SpecError, json, object, strict_bool, tag, text};
use super::placement;
use super::request::NAME;
use crate::device::{DevType, DeviceFacts};

/// One alias: a name and the kinds of device that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The name, 1 to 256 characters.
    pub name: String,
    /// The alternatives: a device matches the alias when it matches any of them. All have the same `device_type`.
    pub specs: Vec<AliasSpec>,
    /// The NUMA policy for the devices.
    pub numa_policy: NumaPolicy,
    /// The type of virtual GPU that the VFs are to be of: its id, its name or the vendor's number. `None` takes devices as
    /// they are, or as the request says.
    pub vgpu_type: Option<String>,
}

/// One kind of device. A device matches when it meets every condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasSpec {
    /// The allowed addresses, or `None` for any address. It is always `None` in a configured alias.
    pub among: Option<BTreeSet<PciAddress>>,
    /// The vendor id. In a configured alias it is `None` only with `pci_in_placement`, where a resource class can
    /// replace the ids.
    pub vendor_id: Option<PciId>,
    /// The product id. It is `None` under the same condition as `vendor_id`.
    pub product_id: Option<PciId>,
    /// The device type. `None` allows every type but `type-PF` and `vdpa`.
    pub device_type: Option<DevType>,
    /// The value that the tag `live_migratable` of the devices must have, or `None` for any.
    pub live_migratable: Option<bool>,
    /// The Placement resource class of the devices. It is `None` without `pci_in_placement`, because Nova ignores the
    /// key then.
    pub resource_class: Option<String>,
    /// The traits that the devices must have. Empty without `pci_in_placement`.
    pub traits: BTreeSet<String>,
    /// The tags and `[[pci.extra_info]]` values that the devices must have. `None` means null or absent.
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
    "vgpu_type",
    "mdev_type",
];

/// The tag of devices that no alias matches.
const REMOTE_MANAGED: &str = "remote_managed";

/// The parts of `[pci]` that decide which keys an alias may have.
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
    /// Returns a [`SpecError`] that names the key when the value is not a valid alias.
    pub fn parse(entry: &str, grammar: &AliasGrammar) -> Result<Self, SpecError> {
        let value = json(entry)?;
        let entry = object(&value)?;
        let name = text(entry, "name")?.ok_or_else(|| SpecError::key("name", "is missing"))?.trim();
        if !(1..=NAME).contains(&name.chars().count()) || name.contains([':', ',']) {
            let reason = format!("`{name}` is not a name of 1 to {NAME} characters without `:` and `,`");
            return Err(SpecError::key("name", reason));
        }
        let device_type = device_type(entry)?;
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
                    return Err(SpecError::key(key, format!("is missing; an alias needs both ids{or}")));
                }
            }
        }
        let vgpu_type = vgpu_type(entry, device_type)?;
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
        Ok(Self { name: name.to_owned(), specs: vec![spec], numa_policy, vgpu_type })
    }

    /// Makes an alias that matches devices only by their addresses, PFs included.
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
        let specs = vec![of_type(None), of_type(Some(DevType::Pf))];
        Self { name, specs, numa_policy, vgpu_type: None }
    }

    /// Returns the name for messages. An alias that is made from addresses has the name of its requester, such as an
    /// accelerator.
    pub(super) fn requester(&self) -> String {
        if self.is_configured() { format!("alias `{}`", self.name) } else { self.name.clone() }
    }

    /// Whether the caller has named what this stands for in the request: a configured alias, or one device by its address.
    /// Otherwise it is made for an accelerator or an accelerator request, whose attach has no options.
    pub(super) fn is_named_by_caller(&self) -> bool {
        self.is_configured() || self.address().is_some()
    }

    /// Returns the address of the only device that this stands for, when it has the address as its name.
    pub fn address(&self) -> Option<PciAddress> {
        let address = self.name.parse().ok()?;
        let only = |spec: &AliasSpec| spec.among.as_ref().is_some_and(|among| among.iter().eq([&address]));
        self.specs.iter().all(only).then_some(address)
    }

    /// Whether this is a configured alias, and not one that is made from addresses.
    pub(super) fn is_configured(&self) -> bool {
        self.specs.iter().all(|spec| spec.among.is_none())
    }

    /// Adds the alternatives of another entry of the same name.
    ///
    /// # Errors
    /// Returns a [`SpecError`] when the entries differ in `device_type`, `numa_policy` or `vgpu_type`, or when
    /// `pci_in_placement` is set, which allows one entry for each name.
    pub(super) fn add_alternative(&mut self, other: Self, grammar: &AliasGrammar) -> Result<(), SpecError> {
        let differ = |key| {
            let reason = format!("must be the same in all entries of alias `{}`", self.name);
            Err(SpecError::key(key, reason))
        };
        if grammar.pci_in_placement {
            let reason = format!(
                "`{}` has two entries, but pci_in_placement allows one for each name; give the devices one \
                 resource_class in device_spec and name it in the alias",
                self.name
            );
            return Err(SpecError::key("name", reason));
        }
        if self.numa_policy != other.numa_policy {
            return differ("numa_policy");
        }
        if self.vgpu_type != other.vgpu_type {
            return differ("vgpu_type");
        }
        if other.specs.iter().any(|new| self.specs.iter().any(|old| old.device_type != new.device_type)) {
            return differ("device_type");
        }
        self.specs.extend(other.specs);
        Ok(())
    }

    /// Whether a device matches this alias.
    pub fn matches(&self, device: &DeviceFacts) -> bool {
        !is_remote_managed(device) && self.specs.iter().any(|spec| spec.differences(device).next().is_none())
    }

    /// Returns the differences between a device and the closest alternative, one text for each key. Empty when the
    /// device matches.
    pub fn mismatch(&self, device: &DeviceFacts) -> Vec<String> {
        self.distance(device).1
    }

    /// Returns the differences, and the distance for comparing devices: a device of the same product is closer than any
    /// other, then one that differs in fewer keys.
    pub(super) fn distance(&self, device: &DeviceFacts) -> ((bool, usize), Vec<String>) {
        let alternatives = self.specs.iter().map(|spec| {
            let keys: Vec<_> = spec.differences(device).collect();
            ((spec.is_other_product(device), keys.len()), keys)
        });
        let (far, keys) = alternatives.min_by_key(|(far, _)| *far).unwrap_or_default();
        if is_remote_managed(device) {
            return (
                far,
                vec!["it is remote_managed, and only network ports can request such devices".into()],
            );
        }
        (far, keys)
    }
}

/// Whether the tag `remote_managed` is true. Nova assigns such a device only for a network port, which Neutron sets up.
fn is_remote_managed(device: &DeviceFacts) -> bool {
    device.extra_info.get(REMOTE_MANAGED).is_some_and(|value| value == "true")
}

impl AliasSpec {
    fn is_other_product(&self, device: &DeviceFacts) -> bool {
        self.vendor_id.is_some_and(|id| id != device.vendor_id)
            || self.product_id.is_some_and(|id| id != device.product_id)
    }

    /// Returns a text for each key in which a device differs, as in "its rack is r1, not r9". The iterator is lazy,
    /// because most devices differ in the first key.
    fn differences<'a>(&'a self, device: &'a DeviceFacts) -> impl Iterator<Item = String> + 'a {
        let id = |key, wanted: Option<PciId>, has: PciId| {
            wanted.filter(|wanted| *wanted != has).map(|wanted| is_not(key, has, wanted))
        };
        let kind = || match self.device_type {
            // A device that is named by its address is unavailable, with the reason that tells how to make it available.
            _ if device.dev_type == DevType::Vdpa => {
                self.among.is_none().then(|| "it is vdpa, which no alias may request".to_owned())
            }
            Some(kind) => (kind != device.dev_type).then(|| is_not("device_type", device.dev_type, kind)),
            None if matches!(device.dev_type, DevType::Pci | DevType::Vf) => None,
            None => Some(format!("it is {}, which an alias must request by device_type", device.dev_type)),
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
            (!among.contains(&device.address)).then(|| "it is not one of the requested addresses".to_owned())
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

/// Returns a text when a tag of a device differs from the wanted value. `None` as the wanted value means null or
/// absent.
pub(super) fn tag_differs(device: &DeviceFacts, key: &str, wanted: Option<&str>) -> Option<String> {
    match (device.extra_info.get(key), wanted) {
        (None | Some(NULL), None) => None,
        (Some(has), Some(wanted)) if has.to_lowercase() == wanted.to_lowercase() => None,
        (Some(has), Some(wanted)) => Some(is_not(key, has, wanted)),
        (Some(has), None) => Some(format!("its {key} is {has}, but none is requested")),
        (None, Some(wanted)) => Some(format!("it has no {key}, but {wanted} is requested")),
    }
}

fn is_not(key: &str, has: impl Display, wanted: impl Display) -> String {
    format!("its {key} is {has}, not {wanted}")
}

fn device_type(entry: &Map<String, Value>) -> Result<Option<DevType>, SpecError> {
    let Some(word) = text(entry, "device_type")? else { return Ok(None) };
    match word.parse() {
        Ok(device_type @ (DevType::Pci | DevType::Pf | DevType::Vf)) => Ok(Some(device_type)),
        Ok(DevType::Vdpa) => Err(SpecError::key(
            "device_type",
            "`vdpa` is not allowed in an alias, as in Nova: only network ports request vDPA devices; write type-VF \
             for VFs that carry no vDPA device",
        )),
        Err(_) => {
            Err(SpecError::key("device_type", format!("`{word}` is none of type-PCI, type-PF, type-VF")))
        }
    }
}

/// Reads the type of virtual GPU. Both keys mean the same, as in a request.
fn vgpu_type(entry: &Map<String, Value>, device_type: Option<DevType>) -> Result<Option<String>, SpecError> {
    let (key, of) = match (text(entry, "vgpu_type")?, text(entry, "mdev_type")?) {
        (None, None) => return Ok(None),
        (Some(of), None) => ("vgpu_type", of),
        (None, Some(of)) => ("mdev_type", of),
        (Some(_), Some(_)) => {
            return Err(SpecError::key("mdev_type", "means the same as vgpu_type; remove one of the two"));
        }
    };
    vgpu::check_name(of).map_err(|reason| SpecError::key(key, reason))?;
    if let Some(kind) = device_type.filter(|kind| *kind != DevType::Vf) {
        let reason = format!("only VFs have vGPU types, and the device_type is {kind}; write type-VF");
        return Err(SpecError::key(key, reason));
    }
    Ok(Some(of.to_owned()))
}

/// Reads an id of exactly four hexadecimal digits.
fn id(entry: &Map<String, Value>, key: &str) -> Result<Option<PciId>, SpecError> {
    let Some(id) = text(entry, key)? else { return Ok(None) };
    let four = id.len() == 4 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    id.parse()
        .ok()
        .filter(|_| four)
        .map(Some)
        .ok_or_else(|| SpecError::key(key, format!("`{id}` is not four hexadecimal digits such as 8086")))
}

/// Reads the keys that are not defined for aliases themselves: tags of `device_spec` and keys of `[[pci.extra_info]]`.
fn extra_info(
    entry: &Map<String, Value>,
    grammar: &AliasGrammar,
) -> Result<BTreeMap<String, Option<String>>, SpecError> {
    let mut required = BTreeMap::new();
    for (key, value) in entry.iter().filter(|(key, _)| !KNOWN.contains(&key.as_str())) {
        if key == REMOTE_MANAGED {
            return Err(SpecError::key(key, "only network ports can request such devices; remove the key"));
        }
        if !grammar.extra_info.contains(key) {
            let defined = grammar.extra_info.iter().map(String::as_str);
            let requestable = defined.filter(|key| !KNOWN.contains(key) && *key != REMOTE_MANAGED);
            let known = KNOWN.iter().copied().chain(requestable).collect::<Vec<_>>().join(", ");
            let reason = format!(
                "unknown key `{key}`, which no tag of device_spec and no [[pci.extra_info]] defines; known: {known}"
            );
            return Err(SpecError::whole(reason));
        }
        let wanted = if value.is_null() { None } else { Some(tag(key, value)?) };
        required.insert(key.clone(), wanted);
    }
    Ok(required)
}
