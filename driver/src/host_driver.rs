//! How a host itself is to have a function.

use std::fmt;
use std::str::FromStr;

use crate::device::HostDevice;

/// The driver that a function is to have while the host itself uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostDriver {
    /// `native`: its host driver.
    Native,
    /// `vfio-pci`: for programs that drive it themselves (DPDK, SPDK).
    Vfio,
}

impl fmt::Display for HostDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Vfio => "vfio-pci",
        })
    }
}

impl FromStr for HostDriver {
    type Err = UnknownHostDriver;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = |of: &Self| of.to_string() == text;
        [Self::Native, Self::Vfio].into_iter().find(named).ok_or_else(|| UnknownHostDriver(text.to_owned()))
    }
}

impl HostDriver {
    /// Whether a function is bound as this asks for.
    pub fn has(self, device: &HostDevice) -> bool {
        match self {
            Self::Native => device.driver.is_some() && !device.is_on_vfio(),
            Self::Vfio => device.is_on_vfio(),
        }
    }
}

/// A text that names no driver to be bound to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no driver that a device can be attached to a host with; there are native and vfio-pci")]
pub struct UnknownHostDriver(String);
