//! The specs from which device documents are rendered.

use uuid::Uuid;

use crate::domain::UserAlias;
use crate::net::{MacAddress, VlanTag};
use crate::pci::PciAddress;

/// The spec of a `<hostdev>` or an `<interface type='hostdev'>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostdevSpec {
    /// The function on the host.
    pub source: PciAddress,
    /// The alias that names it in the domain.
    pub alias: UserAlias,
    /// Whether libvirt binds vfio-pci and the host driver itself.
    pub managed: bool,
    /// `<rom bar=…/>`; `None` leaves it to libvirt.
    pub rom_bar: Option<bool>,
    /// The guest address in libvirt's numbering; `None` lets libvirt choose one.
    pub guest: Option<PciAddress>,
    /// Settings of a network VF that is attached as an interface; `None` renders a `<hostdev>`.
    pub interface: Option<InterfaceSpec>,
}

/// The settings of an `<interface type='hostdev'>` in addition to those of a `<hostdev>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// The MAC address that the VF gets.
    pub mac: MacAddress,
    /// The VLAN that the VF is in.
    pub vlan: Option<VlanTag>,
}

/// The spec of a mediated device's `<hostdev>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdevSpec {
    /// The device's UUID on the host.
    pub source: Uuid,
    /// The alias that names it in the domain.
    pub alias: UserAlias,
    /// The guest address in libvirt's numbering; `None` lets libvirt choose one.
    pub guest: Option<PciAddress>,
}
