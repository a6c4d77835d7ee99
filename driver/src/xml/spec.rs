//! What a document of a device is to say.

use uuid::Uuid;

use crate::domain::UserAlias;
use crate::net::{MacAddress, VlanTag};
use crate::pci::PciAddress;

/// What one attach puts into the domain's document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostdevSpec {
    /// The host's function.
    pub source: PciAddress,
    /// The alias that names it in the domain.
    pub alias: UserAlias,
    /// Whether libvirt binds vfio-pci and the host driver by itself.
    pub managed: bool,
    /// `<rom bar=…/>`: none leaves it to libvirt.
    pub rom_bar: Option<bool>,
    /// The guest address to use, in libvirt's numbering; none lets libvirt choose.
    pub guest: Option<PciAddress>,
    /// A network VF that is to be given as an interface.
    pub interface: Option<InterfaceSpec>,
}

/// What `<interface type='hostdev'>` says beyond a `<hostdev>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// The MAC address that the VF gets.
    pub mac: MacAddress,
    /// The VLAN that the VF is in.
    pub vlan: Option<VlanTag>,
}

/// What one attach of a mediated device puts into the domain's document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdevSpec {
    /// The device's UUID on the host.
    pub source: Uuid,
    /// The alias that names it in the domain.
    pub alias: UserAlias,
    /// The guest address to use, in libvirt's numbering; none lets libvirt choose.
    pub guest: Option<PciAddress>,
}
