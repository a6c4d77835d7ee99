//! A guest, as libvirt's domain document describes it: its PCI controllers, what is plugged into them,
//! and its host devices.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::net::{MacAddress, VlanTag};
use crate::pci::PciAddress;

/// What hotslot reads of one domain document, live or persistent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainXml {
    /// The domain's UUID.
    pub uuid: Uuid,
    /// The domain's name.
    pub name: String,
    /// Architecture, `x86_64`.
    pub arch: String,
    /// QEMU's machine type, `pc-q35-10.0`.
    pub machine: String,
    /// When OpenStack Nova made it (`<nova:creationTime>`), as written there.
    pub created: Option<String>,
    /// The PCI controllers, in document order.
    pub controllers: Vec<PciController>,
    /// The PCI host devices: `<hostdev type='pci'>` and `<interface type='hostdev'>`, in document order.
    pub hostdevs: Vec<Hostdev>,
    /// The mediated devices: `<hostdev type='mdev'>`, in document order.
    pub mdevs: Vec<MdevHostdev>,
    /// The character devices of the host's vDPA devices that it uses (`<interface type='vdpa'>`, `<disk
    /// type='vhostvdpa'>`), in document order.
    pub vdpas: Vec<String>,
    /// Every PCI address in use in the guest, as libvirt numbers buses (controller index), controllers and
    /// host devices included.
    pub occupied: Vec<PciAddress>,
    /// Whether the guest agent's channel is connected. Only a live document says so.
    pub agent_connected: bool,
    /// The host's NUMA nodes that the guest's own NUMA cells are on; empty when it has no cells
    /// (`<cpu><numa>`), wherever its memory is pinned, or when the document does not say where they are.
    pub numa_nodes: BTreeSet<u32>,
    /// The guest's memory in bytes, hot-plugged modules included; 0 when the document does not say.
    pub memory: u64,
    /// The most memory in bytes that its QEMU process may use and lock (`<memtune><hard_limit>`).
    pub hard_limit: Option<u64>,
}

/// A PCI controller of a guest: a root, a bridge, a port or an expander.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciController {
    /// libvirt's index: the `bus` of the devices on it.
    pub index: u8,
    /// What it is.
    pub model: ControllerModel,
    /// Where it sits, in libvirt's numbering; none for the roots.
    pub address: Option<PciAddress>,
    /// QEMU's device id (`pci.3`).
    pub alias: Option<String>,
    /// `busNr` of an expander.
    pub bus_nr: Option<u8>,
    /// Whether devices may be plugged into it while the guest runs (`<target hotplug='off'/>` says no).
    pub hotplug: bool,
    /// Bus numbers that firmware keeps behind it (`bus-reserve` through `qemu:override`); 0 is not none.
    pub bus_reserve: Option<u8>,
    /// Bytes of non-prefetchable memory that firmware keeps behind it (`mem-reserve`, likewise).
    pub mem_reserve: Option<u64>,
    /// Bytes of 64-bit prefetchable memory that firmware keeps behind it (`pref64-reserve`, likewise).
    pub pref64_reserve: Option<u64>,
}

/// The `model` of a PCI controller (libvirt, "Controllers").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControllerModel {
    /// `pci-root`: the i440fx host bridge.
    PciRoot,
    /// `pcie-root`: the q35 and virt host bridge.
    PcieRoot,
    /// `pci-bridge`.
    PciBridge,
    /// `dmi-to-pci-bridge`.
    DmiToPciBridge,
    /// `pcie-to-pci-bridge`.
    PcieToPciBridge,
    /// `pcie-root-port`.
    RootPort,
    /// `pcie-switch-upstream-port`.
    SwitchUpstream,
    /// `pcie-switch-downstream-port`.
    SwitchDownstream,
    /// `pci-expander-bus`.
    PciExpander,
    /// `pcie-expander-bus`.
    PcieExpander,
}

/// A PCI device of the host that a domain document gives to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostdev {
    /// Where the host has it.
    pub source: PciAddress,
    /// Where the guest has it, in libvirt's numbering (the bus is a controller's index).
    pub guest: Option<PciAddress>,
    /// The device's alias: `ua-…` when a user chose it, `hostdev0` when libvirt did.
    pub alias: Option<String>,
    /// Whether libvirt binds the drivers itself.
    pub managed: bool,
    /// Whether it is an `<interface type='hostdev'>`.
    pub interface: bool,
    /// The MAC address that an interface gets.
    pub mac: Option<MacAddress>,
    /// The VLAN that an interface is in; none for a trunk of several.
    pub vlan: Option<VlanTag>,
}

/// A mediated device of the host that a domain document gives to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdevHostdev {
    /// Its UUID on the host.
    pub uuid: Uuid,
    /// Where the guest has it, in libvirt's numbering; none where it is no PCI device.
    pub guest: Option<PciAddress>,
    /// The device's alias: `ua-…` when a user chose it, `hostdev0` when libvirt did.
    pub alias: Option<String>,
}

/// The alias that names one attachment in a domain: libvirt keeps what begins with `ua-`, in the live
/// document and in the persistent one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserAlias(pub Uuid);

impl UserAlias {
    /// The attachment that an alias names; none when it is not one of ours.
    pub fn parse(alias: &str) -> Option<Self> {
        alias.strip_prefix("ua-").and_then(|id| Uuid::try_parse(id).ok()).map(Self)
    }
}

impl std::fmt::Display for UserAlias {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ua-{}", self.0.hyphenated())
    }
}

impl DomainXml {
    /// The mediated device with this alias.
    pub fn mdev(&self, alias: UserAlias) -> Option<&MdevHostdev> {
        let alias = alias.to_string();
        self.mdevs.iter().find(|mdev| mdev.alias.as_deref() == Some(alias.as_str()))
    }

    /// The host device with this alias.
    pub fn hostdev(&self, alias: UserAlias) -> Option<&Hostdev> {
        let alias = alias.to_string();
        self.hostdevs.iter().find(|hostdev| hostdev.alias.as_deref() == Some(alias.as_str()))
    }
}
