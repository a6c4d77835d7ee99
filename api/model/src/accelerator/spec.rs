//! `acc_specs`: the requirements for the devices of an accelerator.

use std::collections::BTreeSet;
use std::fmt::Display;

use hotslot_driver::device::HostDevice;
use hotslot_driver::device_type::{self, DeviceType};
use hotslot_driver::pci::PciId;
use hotslot_driver::text;
use serde_json::{Map, Value, json};

use crate::device::DeviceFacts;
use crate::rules::NumaPolicy;

/// The device type of an accelerator that accepts any type.
pub(super) const UNKNOWN: &str = "UNKNOWN";

/// The largest number of devices of one accelerator, which is that of one request for devices.
pub const MAX_NUM: u64 = 256;

/// The largest length of a spec as JSON text, in bytes.
pub const MAX_BYTES: usize = 4096;

/// A spec as the client sent it, and its parsed values.
///
/// The keys `remote`, `num`, `device_type` and `acc_capability` are always shown. `acc_type`, `vendor_id`,
/// `product_id`, `numa_node` and `numa_policy` restrict the choice of devices too. `mdev_type`, or `vgpu_type`, which means
/// the same, requests mediated devices instead of whole devices, or VFs that are virtual GPUs of the type. Other keys are
/// stored and returned, and have no effect; one that is nearly the name of a key with an effect is refused.
#[derive(Debug, Clone, PartialEq)]
pub struct AccSpec {
    put: Map<String, Value>,
    /// Whether the accelerator may be used over a network: 0 or 1. Other integers are stored as they are.
    pub remotable: i64,
    /// The number of devices, 0 to 256. Older records may have more.
    pub num: u64,
    /// The device type such as GPU, or UNKNOWN: any accelerator card, or any device when other keys name one.
    pub device_type: String,
    /// The intended use such as Crypto, or empty.
    pub acc_type: String,
    /// The required capabilities: JSON of any depth.
    pub capability: Map<String, Value>,
    /// The vendor id, or `None` for any.
    pub vendor_id: Option<PciId>,
    /// The product id, or `None` for any.
    pub product_id: Option<PciId>,
    /// The NUMA node of the host, or `None` for any.
    pub numa_node: Option<u32>,
    /// The NUMA policy, or `None` for [`NumaPolicy::Preferred`].
    pub numa_policy: Option<NumaPolicy>,
    /// The type of mediated devices, or of VFs that are virtual GPUs, by its id, its name or the vendor's number; `None` for
    /// whole devices.
    pub mdev_type: Option<String>,
}

impl Default for AccSpec {
    fn default() -> Self {
        Self {
            put: Map::new(),
            remotable: 0,
            num: 1,
            device_type: UNKNOWN.to_owned(),
            acc_type: String::new(),
            capability: Map::new(),
            vendor_id: None,
            product_id: None,
            numa_node: None,
            numa_policy: None,
            mdev_type: None,
        }
    }
}

impl AccSpec {
    /// Reads the value of `acc_specs` of a request. Missing keys have the values of a new accelerator.
    ///
    /// # Errors
    /// Returns a message that says what is wrong and what to write instead.
    pub fn read(value: &Value) -> Result<Self, String> {
        if let Some(number) = inexact(value) {
            return Err(format!(
                "acc_specs: {number} is too large to be stored exactly; write it as a string"
            ));
        }
        let spec = Self::from_stored(value)?;
        match (spec.put.get(MDEV_TYPE), spec.put.get(VGPU_TYPE)) {
            (Some(_), Some(_)) => {
                return Err(format!(
                    "acc_specs: {VGPU_TYPE} means the same as {MDEV_TYPE}; remove one of the two"
                ));
            }
            (None, Some(of)) if spec.mdev_type.is_none() => return Err(wrong(VGPU_TYPE, of, RIGHT_TYPE)),
            _ => {}
        }
        if let Some(reason) = spec.put.keys().find_map(|key| mistaken(key)) {
            return Err(format!("acc_specs: {reason}"));
        }
        for (key, word) in [("device_type", &spec.device_type), ("acc_type", &spec.acc_type)] {
            text::visible(word).map_err(|reason| format!("acc_specs: {key}: {reason}"))?;
        }
        if spec.num > MAX_NUM {
            return Err(format!(
                "acc_specs: num is {}; write a number of devices from 0 to {MAX_NUM}",
                spec.num
            ));
        }
        // Earlier versions accepted an empty type as any type, and such records are still valid (see `from_stored`).
        if !spec.device_type.eq_ignore_ascii_case(UNKNOWN) {
            let known = spec.device_type.parse::<DeviceType>();
            known.map_err(|unknown| {
                format!("acc_specs: device_type: {unknown}; write {UNKNOWN} for any FPGA, QAT, CRYPTO or AICHIP device")
            })?;
        }
        Ok(spec)
    }

    /// Reads a recorded spec, which may have been accepted by less strict rules.
    ///
    /// # Errors
    /// Returns a message as [`read`](Self::read) does.
    pub fn from_stored(value: &Value) -> Result<Self, String> {
        let put = value.as_object().ok_or("acc_specs is not an object")?;
        let mut spec = Self { put: put.clone(), ..Self::default() };
        let wrong = |key, value, right| Err(wrong(key, value, right));
        for (key, value) in put {
            match key.as_str() {
                "remote" => match value.as_i64() {
                    Some(remote) => spec.remotable = remote,
                    None => return wrong(key, value, "write an integer such as 0 or 1"),
                },
                "num" => match value.as_u64() {
                    Some(num) => spec.num = num,
                    None => return wrong(key, value, "write a number of devices from 0 up"),
                },
                "device_type" => match value.as_str().filter(|word| word.chars().count() <= 255) {
                    Some(word) => spec.device_type = word.to_owned(),
                    None => return wrong(key, value, "write a word such as \"GPU\""),
                },
                "acc_type" => match value.as_str().filter(|word| word.chars().count() <= 255) {
                    Some(word) => spec.acc_type = word.to_owned(),
                    None => return wrong(key, value, "write a word such as \"Crypto\""),
                },
                "acc_capability" => match value.as_object() {
                    Some(capability) => spec.capability = capability.clone(),
                    None => return wrong(key, value, "write an object such as {\"ipsec\": {\"aes\": 1}}"),
                },
                "vendor_id" | "product_id" => {
                    let id = value.as_str().and_then(|id| id.parse::<PciId>().ok());
                    if id.is_none() {
                        return wrong(key, value, "write four hexadecimal digits such as \"8086\"");
                    }
                    *(if key == "vendor_id" { &mut spec.vendor_id } else { &mut spec.product_id }) = id;
                }
                "numa_node" => match value.as_u64().and_then(|node| u32::try_from(node).ok()) {
                    Some(node) => spec.numa_node = Some(node),
                    None => return wrong(key, value, "write the number of a NUMA node of the host"),
                },
                "numa_policy" => match value.as_str().map(str::parse) {
                    Some(Ok(policy)) => spec.numa_policy = Some(policy),
                    Some(Err(reason)) => return Err(format!("acc_specs: numa_policy: {reason}")),
                    None => return wrong(key, value, "write required, preferred, legacy or socket"),
                },
                MDEV_TYPE => match type_of(value) {
                    of @ Some(_) => spec.mdev_type = of,
                    None => return wrong(key, value, RIGHT_TYPE),
                },
                // Earlier versions accepted any value, which had no effect.
                VGPU_TYPE if !put.contains_key(MDEV_TYPE) => spec.mdev_type = type_of(value),
                _ => {}
            }
        }
        Ok(spec)
    }

    /// Returns [`num`](Self::num), at most `usize::MAX`.
    pub fn count(&self) -> usize {
        usize::try_from(self.num).unwrap_or(usize::MAX)
    }

    /// Returns the spec as the client sent it, with the four keys that are always shown.
    pub fn shown(&self) -> Value {
        let mut shown = self.put.clone();
        for (key, value) in [
            ("remote", json!(self.remotable)),
            ("num", json!(self.num)),
            ("device_type", json!(self.device_type)),
            ("acc_capability", json!(self.capability)),
        ] {
            shown.insert(key.to_owned(), value);
        }
        Value::Object(shown)
    }

    /// Returns the keys that the client sent and that have no effect.
    pub fn ignored_keys(&self) -> Vec<&str> {
        self.put.keys().map(String::as_str).filter(|key| !KEYS.contains(key)).collect()
    }

    /// Whether the spec says which devices an attach takes. `answered` is that of [`mismatch`](Self::mismatch).
    pub fn names_devices(&self, answered: &BTreeSet<&str>) -> bool {
        !is_any(&self.device_type)
            || self.vendor_id.is_some()
            || self.product_id.is_some()
            || self.mdev_type.is_some()
            || self.capability.keys().any(|key| answered.contains(key.as_str()))
    }

    /// Describes in words which devices an attach takes.
    pub fn takes(&self) -> String {
        let known: BTreeSet<_> = self.capability.keys().map(String::as_str).collect();
        let assignable =
            if self.names_devices(&known) { "assignable" } else { "FPGA, QAT, CRYPTO or AICHIP" };
        let noun = match (&self.mdev_type, self.num) {
            (_, 0) => {
                return format!("no device, because num is 0; put a num of 1 to {MAX_NUM} to attach it");
            }
            (Some(of), 1) => format!("a mediated device of type {of}"),
            (Some(of), num) => format!("{num} mediated devices of type {of}"),
            (None, 1) => format!("any {assignable} device"),
            (None, num) => format!("any {num} {assignable} devices"),
        };
        let kind =
            if is_any(&self.device_type) { String::new() } else { format!(" of type {}", self.device_type) };
        let ids = [("vendor_id", self.vendor_id), ("product_id", self.product_id)];
        let ids = ids.into_iter().filter_map(|(key, id)| Some(format!("{key} {}", id?)));
        let node = self.numa_node.map(|node| format!("NUMA node {node}"));
        let known = |key: &String| format!("the capability {key}, if extra_info of the devices has that key");
        let conditions: Vec<_> = ids.chain(node).chain(self.capability.keys().map(known)).collect();
        let conditions =
            if conditions.is_empty() { String::new() } else { format!(" with {}", conditions.join(", ")) };
        noun + &kind + &conditions
    }

    /// Returns the text to record.
    pub fn stored(&self) -> Value {
        Value::Object(self.put.clone())
    }

    /// Returns the first difference between a device and the spec, or `None` when the device matches. The number says
    /// how close the device comes: the number of checks that it passed, plus a bonus for the requested product.
    /// `answered` has the keys that occur in the `extra_info` of any device. A capability that is not among them is
    /// ignored as a note of the caller.
    pub fn mismatch(
        &self,
        device: &HostDevice,
        facts: &DeviceFacts,
        answered: &BTreeSet<&str>,
    ) -> Option<(usize, String)> {
        let same_product = self.product_id == Some(facts.product_id)
            && self.vendor_id.is_none_or(|wanted| wanted == facts.vendor_id);
        let near = |passed: usize| passed + if same_product { SAME_PRODUCT } else { 0 };
        let other = |passed: usize, key: &str, has: &dyn Display, wanted: &dyn Display| {
            Some((near(passed), format!("its {key} is {has}, not {wanted}")))
        };
        let is = device_type::device_type(device);
        if !of_type(is, &self.device_type) {
            return other(0, "device_type", &is, &self.device_type);
        }
        let mut passed = 1;
        for (key, wanted, has) in [
            ("vendor_id", self.vendor_id, facts.vendor_id),
            ("product_id", self.product_id, facts.product_id),
        ] {
            if let Some(wanted) = wanted.filter(|wanted| *wanted != has) {
                return other(passed, key, &has, &wanted);
            }
            passed += 1;
        }
        if let Some(node) = self.numa_node.filter(|node| facts.numa_node != Some(*node)) {
            let has = facts.numa_node.map_or_else(|| "not known".to_owned(), |node| node.to_string());
            return other(passed, "NUMA node", &has, &node);
        }
        let required = self.capability.iter().filter(|(key, _)| answered.contains(key.as_str()));
        required.zip(passed + 1..).find_map(|((key, wanted), passed)| {
            let wanted = match wanted {
                Value::String(text) => text.clone(),
                Value::Bool(_) | Value::Number(_) => wanted.to_string(),
                // The values of `extra_info` are strings, so null, lists and objects are not compared.
                Value::Null | Value::Array(_) | Value::Object(_) => return None,
            };
            match facts.extra_info.get(key) {
                Some(has) if has.to_lowercase() == wanted.to_lowercase() => None,
                Some(has) => other(passed, key, &has, &wanted),
                None => Some((near(passed), format!("it has no {key}, but {wanted} is requested"))),
            }
        })
    }
}

/// The keys of a spec that have a meaning.
const KEYS: [&str; 11] = [
    "remote",
    "num",
    "device_type",
    "acc_type",
    "acc_capability",
    "vendor_id",
    "product_id",
    "numa_node",
    "numa_policy",
    MDEV_TYPE,
    VGPU_TYPE,
];

/// Words that people write for a key.
const OTHER_WORDS: [(&str, &str); 8] = [
    ("count", "num"),
    ("type", "device_type"),
    ("vendor", "vendor_id"),
    ("product", "product_id"),
    ("numa", "numa_node"),
    ("node", "numa_node"),
    ("mdev", MDEV_TYPE),
    ("vgpu", VGPU_TYPE),
];

/// Returns what is wrong with a key that was probably meant to be another one. A misspelt requirement would otherwise
/// be kept without an effect, and the accelerator would take any device.
fn mistaken(key: &str) -> Option<String> {
    if key == "acc_specs" {
        return Some(
            "the spec has a key `acc_specs` itself; write the keys of the inner object here".to_owned(),
        );
    }
    if KEYS.contains(&key) {
        return None;
    }
    let lower = key.to_lowercase();
    let other_word = OTHER_WORDS.iter().find(|(word, _)| lower == *word).map(|(_, meant)| meant);
    let meant = other_word.or_else(|| {
        KEYS.iter().find(|known| {
            let most = if known.len() < 8 { 1 } else { 2 };
            strsim::osa_distance(&lower, known) <= most
        })
    })?;
    let shown: String = key.chars().take(80).collect();
    Some(format!("unknown key `{shown}`; did you mean `{meant}`?"))
}

/// The bonus for a device of the requested product. It is larger than any number of checks.
const SAME_PRODUCT: usize = 1 << 32;

/// The keys of the type of mediated devices, or of VFs that are virtual GPUs. Both mean the same, as in an attachment.
const MDEV_TYPE: &str = "mdev_type";
const VGPU_TYPE: &str = "vgpu_type";

/// The advice for an invalid type.
const RIGHT_TYPE: &str = "write a type's id such as \"nvidia-231\", as GET os-hypervisors/{id}/pci_devices/{address} \
                          lists them";

/// Returns the type that a value names: its id, which is the name of a directory in sysfs, its name, or the vendor's number.
/// `None` when it can be none of them.
fn type_of(value: &Value) -> Option<String> {
    let of = value.as_str()?;
    let is_right = |byte| matches!(byte, b' '..=b'~') && byte != b'/';
    ((1..=255).contains(&of.len()) && of.bytes().all(is_right)).then(|| of.to_owned())
}

/// Returns the message for a wrong value of a key.
fn wrong(key: &str, value: &Value, right: &str) -> String {
    let value: String = value.to_string().chars().take(80).collect();
    format!("acc_specs: {key} is `{value}`; {right}")
}

/// Returns a number in a JSON value that cannot be stored exactly: an integer that only a float can represent.
fn inexact(value: &Value) -> Option<&serde_json::Number> {
    match value {
        Value::Number(number) => {
            number.as_f64().filter(|float| number.is_f64() && float.abs() >= EXACT).map(|_| number)
        }
        Value::Array(items) => items.iter().find_map(inexact),
        Value::Object(members) => members.values().find_map(inexact),
        Value::Null | Value::Bool(_) | Value::String(_) => None,
    }
}

/// 2^53. From here on a float cannot represent every integer.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Whether a function is an accelerator and nothing else, so that hosts do not have it for themselves.
pub fn is_accelerator(device: &HostDevice) -> bool {
    match device_type::device_type(device) {
        DeviceType::Fpga | DeviceType::Qat | DeviceType::Crypto | DeviceType::AiChip => true,
        DeviceType::Gpu | DeviceType::Nic | DeviceType::Nvme | DeviceType::Pci => false,
    }
}

/// Whether a device type matches the type in a spec.
fn of_type(is: DeviceType, word: &str) -> bool {
    match word.parse() {
        // QuickAssist devices are crypto accelerators too.
        Ok(DeviceType::Crypto) => matches!(is, DeviceType::Crypto | DeviceType::Qat),
        Ok(wanted) => is == wanted,
        Err(_) => is_any(word),
    }
}

/// Whether the type in a spec means any type.
fn is_any(word: &str) -> bool {
    word.trim().is_empty() || word.eq_ignore_ascii_case(UNKNOWN)
}
