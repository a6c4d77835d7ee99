//! The host profile (`[[profile]]`): how many VFs a PF is to have, which vGPU type they are to have, and to which driver
//! a function is to be bound.
//!
//! An entry selects functions by the words of a `device_spec`, and of all functions of the host, assignable or not. The
//! first entry that names a function decides.

use std::fmt;

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::text;
use hotslot_driver::vgpu::{MAX_TYPE, VgpuChange};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::parse::SpecError;
use super::spec::DeviceSpec;
use crate::device::Functions;

/// The largest number of VFs that a PF can have (PCI Express Base Specification, `TotalVFs` has 16 bits).
pub const MAX_VFS: u32 = 0xffff;

/// The largest length of the name of a driver, in bytes.
const MAX_DRIVER: usize = 64;

/// One `[[profile]]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    /// The name of the host. Without it, the entry is for every host.
    pub host: Option<String>,
    /// The vendor id of the functions in hexadecimal digits; `*` is any.
    pub vendor_id: Option<String>,
    /// The product id of the functions in hexadecimal digits; `*` is any.
    pub product_id: Option<String>,
    /// The address of the functions, such as 0000:3b:00.0, whose fields may be `*`.
    pub address: Option<String>,
    /// The network interface of the function, instead of `address`.
    pub devname: Option<String>,
    /// The number of VFs of each of these PFs, 0 to 65535.
    pub vfs: Option<u32>,
    /// The id of the vGPU type of each VF, such as nvidia-1155.
    pub vgpu_type: Option<String>,
    /// The driver of each VF; without `vfs` and `vgpu_type`, of the functions themselves.
    pub driver: Option<String>,
}

impl Profile {
    /// Reads which functions the entry selects.
    ///
    /// # Errors
    /// [`SpecError`] when an id or the address cannot be read, or nothing is selected.
    fn spec(&self) -> Result<DeviceSpec, SpecError> {
        let keys = [
            ("vendor_id", &self.vendor_id),
            ("product_id", &self.product_id),
            ("address", &self.address),
            ("devname", &self.devname),
        ];
        let given = keys.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?.into())));
        DeviceSpec::parse(&Value::Object(given.collect::<Map<_, _>>()).to_string(), false)
    }

    /// Whether the entry is about the VFs of PFs, and not about the functions themselves.
    pub fn is_of_vfs(&self) -> bool {
        self.vfs.is_some() || self.vgpu_type.is_some()
    }

    /// Returns what is wrong with the entry, each with the key.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut bad = |key: &str, reason: String| problems.push((key.to_owned(), reason));
        if [&self.vendor_id, &self.product_id, &self.address, &self.devname].iter().all(|key| key.is_none()) {
            let reason = "the entry names no functions; add vendor_id, product_id, address or devname; every function is \
                          address = '*'";
            bad("address", reason.into());
        } else if let Err(error) = self.spec() {
            bad(error.key.as_deref().unwrap_or("address"), error.reason);
        }
        if !self.is_of_vfs() && self.driver.is_none() {
            bad("vfs", "the entry says nothing about its functions; add vfs, vgpu_type or driver".into());
        }
        if let Some(vfs) = self.vfs.filter(|vfs| *vfs > MAX_VFS) {
            bad("vfs", format!("{vfs} is more than the {MAX_VFS} VFs that a PF can have"));
        }
        if let Some(of) = &self.vgpu_type {
            if self.vfs == Some(0) {
                bad(
                    "vgpu_type",
                    "without VFs there is nothing of this type; remove vgpu_type, or vfs = 0".into(),
                );
            }
            let is_id = of.split_once('-').is_some_and(|(vendor, number)| {
                !vendor.is_empty() && !number.is_empty() && of.bytes().all(|byte| byte.is_ascii_graphic())
            });
            if !is_id || of.len() > MAX_TYPE {
                bad(
                    "vgpu_type",
                    format!("`{}` is not the id of a type; write nvidia-1155", text::escape(of)),
                );
            }
        }
        if let Some(driver) = &self.driver {
            let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            if driver.is_empty() || driver.len() > MAX_DRIVER || !driver.bytes().all(is_of_name) {
                let reason = format!(
                    "`{}` is not the name of a driver; write one of those in /sys/bus/pci/drivers, such as vfio-pci",
                    text::escape(driver)
                );
                bad("driver", reason);
            }
        }
        problems
    }
}

/// An entry, with its place in the configuration.
#[derive(Debug, Clone)]
pub struct ProfileEntry {
    /// The place among all entries, from 0.
    pub index: usize,
    /// The keys of the entry.
    pub profile: Profile,
    spec: DeviceSpec,
}

impl ProfileEntry {
    /// The place for messages: `[[profile]][0]`.
    pub fn place(&self) -> String {
        format!("[[profile]][{}]", self.index)
    }

    /// Whether the entry is about a function.
    fn names(&self, function: &HostDevice) -> bool {
        if function.bridge || !self.spec.matches(function, None) {
            return false;
        }
        match function.role {
            Role::Physical { .. } => true,
            // A PF that is named one by one is shown also when it is none now.
            Role::Plain => !self.profile.is_of_vfs() || self.spec.names_address(function.address),
            // The full address of a PF in a device_spec means its VFs too; here it means the PF.
            Role::Virtual { parent } => !self.profile.is_of_vfs() && !self.spec.names_address(parent),
        }
    }
}

/// The entries for one host, in the order in which they count.
#[derive(Debug, Clone, Default)]
pub struct Profiles(Vec<ProfileEntry>);

impl Profiles {
    /// Returns the entries for the host with this name. An entry that cannot be read is left out; the check of the
    /// configuration refuses it.
    pub fn of_host(all: &[Profile], host: &str) -> Self {
        let of_host = |profile: &&Profile| profile.host.as_deref().is_none_or(|name| name == host);
        let entry = |(index, profile): (usize, &Profile)| {
            Some(ProfileEntry { index, spec: profile.spec().ok()?, profile: profile.clone() })
        };
        let of_host = all.iter().enumerate().filter(|(_, profile)| of_host(profile));
        Self(of_host.filter_map(entry).collect())
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any entry has a vGPU type.
    pub fn have_types(&self) -> bool {
        self.0.iter().any(|entry| entry.profile.vgpu_type.is_some())
    }

    /// The entries.
    pub fn iter(&self) -> std::slice::Iter<'_, ProfileEntry> {
        self.0.iter()
    }

    /// Returns the functions that any entry is about, in order of address, each with the first entry that names it.
    pub fn functions<'f>(
        &self,
        functions: &'f Functions,
    ) -> impl Iterator<Item = (&ProfileEntry, &'f HostDevice)> {
        let named =
            |function: &'f HostDevice| Some((self.0.iter().find(|entry| entry.names(function))?, function));
        functions.values().filter_map(named)
    }
}

/// A change of a host by which it becomes what its profile says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProfileChange {
    /// Another number of VFs of a PF. Unless it has none, all of them vanish first.
    Vfs {
        /// The PF.
        pf: PciAddress,
        /// The number that it has.
        from: u32,
        /// The number that it is to have.
        to: u32,
    },
    /// Another vGPU type of a VF.
    VgpuType(VgpuChange),
    /// Another driver of a function: `vfio-pci` in the place of a host driver, or the host driver in the place of it.
    Driver {
        /// The function.
        address: PciAddress,
        /// The driver that it is bound to; `None` when it is bound to none.
        from: Option<String>,
        /// The driver that it is to be bound to.
        to: String,
    },
}

impl ProfileChange {
    /// Whether it only makes what is absent: nothing vanishes and nothing is replaced.
    pub fn makes_what_is_absent(&self) -> bool {
        match self {
            Self::Vfs { from, .. } => *from == 0,
            Self::VgpuType(change) => change.from.is_none(),
            // Most functions are bound to a driver as soon as they are there, and what has none may be meant to have none.
            Self::Driver { .. } => false,
        }
    }

    /// The function that is changed.
    pub fn address(&self) -> PciAddress {
        match self {
            Self::Vfs { pf, .. } => *pf,
            Self::VgpuType(change) => change.address,
            Self::Driver { address, .. } => *address,
        }
    }
}

/// Describes what the change does.
impl fmt::Display for ProfileChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let are =
            |number: u32| format!("{} {}", number_of_vfs(number), if number == 1 { "is" } else { "are" });
        match self {
            Self::Vfs { from: 0, to, .. } => write!(f, "{} made", are(*to)),
            Self::Vfs { from, to: 0, .. } => write!(f, "{} removed, unless one is in use", are(*from)),
            Self::Vfs { from, to, .. } => {
                write!(f, "{} removed, unless one is in use, and {} made", are(*from), are(*to))
            }
            Self::VgpuType(VgpuChange { from, to, .. }) => {
                let to = to.as_deref().unwrap_or("no type");
                match from {
                    None => write!(f, "it gets the vGPU type {to}"),
                    Some(from) => write!(f, "its vGPU type {from} becomes {to}, unless it is in use"),
                }
            }
            Self::Driver { from: None, to, .. } => {
                write!(f, "it is bound to the driver {to}, unless it is in use")
            }
            Self::Driver { from: Some(from), to, .. } => {
                write!(f, "its driver {from} is replaced by {to}, unless it is in use")
            }
        }
    }
}

/// Returns a number of VFs in words.
pub fn number_of_vfs(number: u32) -> String {
    if number == 1 { "1 VF".to_owned() } else { format!("{number} VFs") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(toml: &str) -> Profile {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn an_entry_that_cannot_be_used_is_refused_with_what_is_right() {
        for (entry, key, says) in [
            ("vfs = 2", "address", "add vendor_id, product_id, address or devname"),
            ("address = '0000:04:00.0'", "vfs", "add vfs, vgpu_type or driver"),
            ("address = '0000:04:00.9'\nvfs = 2", "address", "`9` is above 7"),
            ("vendor_id = 'intel'\nvfs = 2", "vendor_id", "neither hexadecimal nor *"),
            ("devname = ' '\nvfs = 2", "devname", "is not an interface name"),
            ("devname = 'eth0'\naddress = '*'\nvfs = 2", "devname", "cannot be combined with address"),
            ("address = '*'\nvfs = 65536", "vfs", "more than the 65535"),
            ("address = '*'\nvfs = 0\nvgpu_type = 'nvidia-1'", "vgpu_type", "remove vgpu_type"),
            ("address = '*'\nvgpu_type = 'L40S 24Q'", "vgpu_type", "write nvidia-1155"),
            ("address = '*'\ndriver = '../vfio-pci'", "driver", "/sys/bus/pci/drivers"),
            ("address = '*'\ndriver = ''", "driver", "/sys/bus/pci/drivers"),
        ] {
            let problems = of(entry).problems();
            let found = problems.iter().any(|(at, reason)| at == key && reason.contains(says));
            assert!(found, "{entry}: {problems:?}");
        }
        let right = "host = 'n'\nvendor_id = '8086'\nvfs = 4\nvgpu_type = 'nvidia-1155'\ndriver = 'igbvf'";
        assert_eq!(of(right).problems(), []);
    }

    #[test]
    fn changes_say_what_they_do() {
        let pf = "0000:04:00.0".parse().unwrap();
        let vfs = |from, to| ProfileChange::Vfs { pf, from, to }.to_string();
        assert_eq!(vfs(0, 2), "2 VFs are made");
        assert_eq!(vfs(0, 1), "1 VF is made");
        assert_eq!(vfs(4, 0), "4 VFs are removed, unless one is in use");
        assert_eq!(vfs(4, 2), "4 VFs are removed, unless one is in use, and 2 VFs are made");
    }
}
