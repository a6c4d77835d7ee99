//! The drivers for a function that the host itself uses.

use std::fmt;
use std::str::FromStr;

use crate::device::HostDevice;

/// The driver that is bound to a function while the host itself uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostDriver {
    /// `native`: the function's host driver.
    Native,
    /// `vfio-pci`: for programs with their own driver (DPDK, SPDK).
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
    /// Whether a function is bound to a driver of this kind.
    pub fn has(self, device: &HostDevice) -> bool {
        match self {
            Self::Native => {
                device.driver.is_some() && (!device.is_on_vfio() || device.vfio_manager().is_some())
            }
            Self::Vfio => device.is_on_vfio(),
        }
    }
}

/// A text that is not the name of a [`HostDriver`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid driver `{0}`: expected native or vfio-pci")]
pub struct UnknownHostDriver(String);
