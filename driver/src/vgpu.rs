//! Virtual GPUs that a vendor's VFIO driver makes of VFs, without mediated devices: a VF is a virtual GPU while it has a
//! type, and cannot be opened without one.
//!
//! ```text
//! VF without a type ──set_vgpu_type──▶ of a type ──hotplug::plug──▶ in a guest
//!         ▲                            │ ▲
//!         └────────set_vgpu_type───────┘ └──────hotplug::unplug─────────┘
//! ```
//! The types are lost when the VFs are created anew, as after a restart of the host. `data/vgpu-vendors.toml` has the
//! files of the vendors.

use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::pci::PciAddress;

/// The largest length of the id or the name of a type, in bytes.
pub const MAX_TYPE: usize = 128;

/// A type of virtual GPUs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VgpuType {
    /// The id: the vendor and the vendor's number (`nvidia-1155`).
    pub id: String,
    /// The vendor's name (`NVIDIA L40S-24Q`).
    pub name: String,
}

impl VgpuType {
    /// A type of which only the id is known.
    pub fn from_id(id: &str) -> Self {
        Self { id: id.to_owned(), name: id.to_owned() }
    }

    /// Whether a text names this type: its id, its name, or the vendor's number alone.
    pub fn is_named(&self, text: &str) -> bool {
        let number = self.id.rsplit_once('-').map(|(_, number)| number);
        self.id == text || self.name == text || number == Some(text)
    }
}

/// Checks a text that is to name a type.
///
/// # Errors
/// Why no type can have this name.
pub fn check_name(text: &str) -> Result<(), String> {
    let is_printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if text.is_empty() || text.len() > MAX_TYPE || !is_printable {
        return Err(format!(
            "write the id or the name of a vGPU type: 1 to {MAX_TYPE} printable characters of ASCII"
        ));
    }
    Ok(())
}

impl fmt::Display for VgpuType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name == self.id { f.write_str(&self.id) } else { write!(f, "{} ({})", self.id, self.name) }
    }
}

/// A VF of which its driver makes a virtual GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VgpuVf {
    /// The address.
    pub address: PciAddress,
    /// The PF, by which the VFs share what the card has; `None` when sysfs does not tell it.
    pub parent: Option<PciAddress>,
    /// The id of the type that it has; `None` when it has none.
    pub current: Option<String>,
    /// The types that it can be given now. Giving a VF of the same PF a type may reduce them.
    pub creatable: Vec<VgpuType>,
}

/// A change of the type of a VF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VgpuChange {
    /// The VF.
    pub address: PciAddress,
    /// The id of the type that it must have before; `None` when it must have none.
    pub from: Option<String>,
    /// The id of the type that it gets; `None` for none.
    pub to: Option<String>,
}

impl VgpuChange {
    /// The change in words.
    pub fn operation(&self) -> String {
        match &self.to {
            Some(to) => format!("give {} the vGPU type {to}", self.address),
            None => format!("take the vGPU type from {}", self.address),
        }
    }

    /// Checks that the VF has the type that it must have before, and can be given the new one. Returns false when it has
    /// the new one already.
    ///
    /// # Errors
    /// Why it cannot be changed.
    pub(crate) fn check(&self, vf: &VgpuVf) -> Result<bool, String> {
        if vf.current == self.to {
            return Ok(false);
        }
        if vf.current != self.from {
            return Err(match &vf.current {
                Some(other) => format!("it has the type {other}, which somebody else has set"),
                None => "somebody else has taken its type away".to_owned(),
            });
        }
        match &self.to {
            Some(to) if !vf.creatable.iter().any(|of| of.id == *to) => Err(format!(
                "it cannot be of the type {to} now; it can be: {}",
                ids(vf.creatable.iter().map(|of| of.id.as_str()))
            )),
            Some(_) | None => Ok(true),
        }
    }
}

/// Returns the ids of types for a message.
pub fn ids<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    let ids: Vec<_> = ids.collect();
    if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
}

/// The files of a vendor. `data/vgpu-vendors.toml` explains the keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vendor {
    pub(crate) prefix: String,
    pub(crate) current: String,
    pub(crate) none: String,
    pub(crate) creatable: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    vendor: Vec<Vendor>,
}

const TABLE: &str = include_str!("../data/vgpu-vendors.toml");
/// A test shows that the embedded file can be read, so that the default is never used.
static VENDORS: LazyLock<Table> = LazyLock::new(|| toml::from_str(TABLE).unwrap_or_default());

/// The known vendors.
pub(crate) fn vendors() -> &'static [Vendor] {
    &VENDORS.vendor
}

impl Vendor {
    /// The id of a type with the vendor's number.
    fn id(&self, number: &str) -> String {
        format!("{}-{number}", self.prefix)
    }

    /// Reads the file of the type that a VF has.
    pub(crate) fn read_current(&self, text: &str) -> Option<String> {
        let number = text.trim();
        (!number.is_empty() && number != self.none).then(|| self.id(number))
    }

    /// Reads the file of the types that a VF can have.
    pub(crate) fn read_creatable(&self, text: &str) -> Vec<VgpuType> {
        let read = |line: &str| {
            let (number, name) = line.split_once(':')?;
            let (number, name) = (number.trim(), name.trim());
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            let fits = is_number && number != self.none && number.len().max(name.len()) <= MAX_TYPE;
            fits.then(|| VgpuType { id: self.id(number), name: name.to_owned() })
        };
        text.lines().filter_map(read).collect()
    }

    /// What is written for a type; `None` when the id is not of this vendor.
    pub(crate) fn number<'a>(&'a self, id: Option<&'a str>) -> Option<&'a str> {
        let Some(id) = id else { return Some(&self.none) };
        let number = id.strip_prefix(&self.prefix)?.strip_prefix('-')?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        (is_number && number != self.none).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nvidia() -> &'static Vendor {
        &vendors()[0]
    }

    #[test]
    fn the_files_of_a_vf_are_read() {
        let text = "ID    : vGPU Name\n1155  : NVIDIA L40S-24Q\n 1156: NVIDIA L40S-48Q \n0 : none\nx : y\n\n";
        let types = nvidia().read_creatable(text);
        let shown: Vec<_> = types.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["nvidia-1155 (NVIDIA L40S-24Q)", "nvidia-1156 (NVIDIA L40S-48Q)"]);
        for name in ["1155", "nvidia-1155", "NVIDIA L40S-24Q"] {
            assert!(types[0].is_named(name) && !types[1].is_named(name), "{name}");
        }
        assert!(nvidia().read_creatable("ID    : vGPU Name\n").is_empty());
        for (text, id) in [("0\n", None), ("", None), ("1155\n", Some("nvidia-1155"))] {
            assert_eq!(nvidia().read_current(text).as_deref(), id, "{text:?}");
        }
    }

    #[test]
    fn only_ids_of_the_vendor_are_written() {
        assert_eq!(nvidia().number(None), Some("0"));
        assert_eq!(nvidia().number(Some("nvidia-1155")), Some("1155"));
        for id in ["1155", "nvidia-", "nvidia-0", "nvidia-1155\n2", "nvidia--1", "amd-3", "nvidia-../x", ""] {
            assert_eq!(nvidia().number(Some(id)), None, "{id}");
        }
    }

    #[test]
    fn a_change_is_of_what_it_expects() {
        let of = |id: &str| VgpuType { id: id.into(), name: id.into() };
        let vf = |current: Option<&str>| VgpuVf {
            address: "0000:41:00.4".parse().unwrap(),
            parent: None,
            current: current.map(str::to_owned),
            creatable: if current.is_none() { vec![of("nvidia-1"), of("nvidia-2")] } else { Vec::new() },
        };
        let change = |from: Option<&str>, to: Option<&str>| VgpuChange {
            address: "0000:41:00.4".parse().unwrap(),
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
        };
        let (one, two) = (Some("nvidia-1"), Some("nvidia-2"));
        assert_eq!(change(None, one).check(&vf(None)), Ok(true));
        assert_eq!(change(one, None).check(&vf(one)), Ok(true));
        assert_eq!(change(None, one).check(&vf(one)), Ok(false), "it is done already");
        assert_eq!(change(one, None).check(&vf(None)), Ok(false), "it is done already");
        for (change, now, says) in [
            (change(None, one), two, "the type nvidia-2, which somebody else has set"),
            (change(one, None), two, "the type nvidia-2, which somebody else has set"),
            (change(one, two), None, "somebody else has taken its type away"),
            (change(None, Some("nvidia-3")), None, "it can be: nvidia-1, nvidia-2"),
            (change(one, two), one, "it can be: none"),
        ] {
            let refused = change.check(&vf(now)).unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
    }
}
