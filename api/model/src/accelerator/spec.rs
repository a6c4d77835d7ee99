//! `acc_specs`: what an accelerator is to be.

use std::collections::BTreeSet;
use std::fmt::Display;

use hotslot_driver::device::HostDevice;
use hotslot_driver::device_type::{self, DeviceType};
use hotslot_driver::pci::PciId;
use hotslot_driver::text;
use serde_json::{Map, Value, json};

use crate::device::DeviceFacts;
use crate::rules::NumaPolicy;

/// The device type of an accelerator that may be any.
pub(super) const UNKNOWN: &str = "UNKNOWN";

/// The most devices that one accelerator is made of, as of one request for devices.
pub const MAX_NUM: u64 = 256;

/// A spec as it was put, and what is understood of it.
///
/// `remote`, `num`, `device_type` and `acc_capability` are the seed's. `acc_type`, `vendor_id`, `product_id`,
/// `numa_node` and `numa_policy` choose too, and `mdev_type` asks for parts of such devices; whatever else stands there
/// is kept and answered.
#[derive(Debug, Clone, PartialEq)]
pub struct AccSpec {
    put: Map<String, Value>,
    /// Whether it may be reached over a network: 0 or 1, and whatever else was put.
    pub remotable: i64,
    /// How many devices make it up; 0 makes up none, and no request takes more than 256.
    pub num: u64,
    /// A word such as GPU, or UNKNOWN.
    pub device_type: String,
    /// The use that it is for, such as Crypto; may be empty.
    pub acc_type: String,
    /// What it can do: JSON of any depth.
    pub capability: Map<String, Value>,
    /// Whose devices.
    pub vendor_id: Option<PciId>,
    /// Which of them.
    pub product_id: Option<PciId>,
    /// The host's NUMA node that they are on.
    pub numa_node: Option<u32>,
    /// How near to the guest's memory they are to be; none is as near as may be.
    pub numa_policy: Option<NumaPolicy>,
    /// The driver's id of the type of mediated devices (vGPUs) that are made of them; none asks for whole devices.
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
    /// Reads the value of `acc_specs` of a request. What is left out is as in a new accelerator.
    ///
    /// # Errors
    /// What is wrong, and what would be right, for people.
    pub fn read(value: &Value) -> Result<Self, String> {
        if let Some(number) = inexact(value) {
            return Err(format!(
                "acc_specs: {number} is too large a number to be kept as it is; write it as a text"
            ));
        }
        let spec = Self::kept(value)?;
        for (key, word) in [("device_type", &spec.device_type), ("acc_type", &spec.acc_type)] {
            text::visible(word).map_err(|reason| format!("acc_specs: {key}: {reason}"))?;
        }
        if spec.num > MAX_NUM {
            return Err(format!(
                "acc_specs: num is {}; write a number of devices from 0 to {MAX_NUM}",
                spec.num
            ));
        }
        // An empty word was taken for any type once, and what was put then still is.
        if !spec.device_type.eq_ignore_ascii_case(UNKNOWN) {
            let known = spec.device_type.parse::<DeviceType>();
            known.map_err(|unknown| {
                format!("acc_specs: device_type: {unknown}, and {UNKNOWN} for a device of any type")
            })?;
        }
        Ok(spec)
    }

    /// Reads one that was put before, also by rules that were not as strict.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn kept(value: &Value) -> Result<Self, String> {
        let put = value.as_object().ok_or("acc_specs is no object")?;
        let mut spec = Self { put: put.clone(), ..Self::default() };
        let wrong = |key: &str, value: &Value, right: &str| {
            let value: String = value.to_string().chars().take(80).collect();
            Err(format!("acc_specs: {key} is `{value}`; {right}"))
        };
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
                "mdev_type" => match value.as_str().filter(|id| is_mdev_type(id)) {
                    Some(id) => spec.mdev_type = Some(id.to_owned()),
                    None => return wrong(key, value, MDEV_TYPE),
                },
                _ => {}
            }
        }
        Ok(spec)
    }

    /// [`num`](Self::num), as far as it can be counted.
    pub fn count(&self) -> usize {
        usize::try_from(self.num).unwrap_or(usize::MAX)
    }

    /// What was put, and the seed's four keys in any case.
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

    /// What is kept of it.
    pub fn stored(&self) -> String {
        Value::Object(self.put.clone()).to_string()
    }

    /// In what a device is not what is asked for, and how near it comes: how much was looked at before, and more than
    /// that for the product that is asked for; none when it is what is asked for.
    /// `answered` are the keys that any device's `extra_info` has: a capability that no device speaks of is the
    /// caller's own note.
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
        let asked = self.capability.iter().filter(|(key, _)| answered.contains(key.as_str()));
        asked.zip(passed + 1..).find_map(|((key, wanted), passed)| {
            let wanted = match wanted {
                Value::String(text) => text.clone(),
                Value::Bool(_) | Value::Number(_) => wanted.to_string(),
                // What has parts is no text that a device could answer.
                Value::Null | Value::Array(_) | Value::Object(_) => return None,
            };
            match facts.extra_info.get(key) {
                Some(has) if has.to_lowercase() == wanted.to_lowercase() => None,
                Some(has) => other(passed, key, &has, &wanted),
                None => Some((near(passed), format!("it says nothing of {key}, and {wanted} is asked for"))),
            }
        })
    }
}

/// How much nearer a device of the product that is asked for is than others: there are fewer things to look at.
const SAME_PRODUCT: usize = 1 << 32;

/// How a type of mediated devices is written.
const MDEV_TYPE: &str = "write a type's id such as \"nvidia-231\", as GET os-hypervisors/{id}/pci_devices/{address} \
                         lists them";

/// Whether a text may be the id of a type: it is the name of a directory in sysfs.
fn is_mdev_type(id: &str) -> bool {
    (1..=255).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// A number in a JSON value that is not kept as it was written: an integer that only a float can hold.
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

/// From here on (2^53) a float has no place for every integer.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Whether a device type is what a word asks for.
fn of_type(is: DeviceType, word: &str) -> bool {
    match word.parse() {
        // QuickAssist is what people have for it.
        Ok(DeviceType::Crypto) => matches!(is, DeviceType::Crypto | DeviceType::Qat),
        Ok(wanted) => is == wanted,
        Err(_) => is_any(word),
    }
}

/// Whether a word asks for devices of any type.
fn is_any(word: &str) -> bool {
    word.trim().is_empty() || word.eq_ignore_ascii_case(UNKNOWN)
}
