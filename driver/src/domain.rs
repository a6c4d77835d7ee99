//! A guest, as libvirt's domain document describes it: its PCI controllers, the occupied PCI addresses and its host
//! devices.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::net::{MacAddress, VlanTag};
use crate::ownership::Ownership;
use crate::pci::PciAddress;

/// The parts of a domain document, live or persistent, that hotslot reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainXml {
    /// The domain's UUID.
    pub uuid: Uuid,
    /// The domain's name.
    pub name: String,
    /// The architecture, `x86_64`.
    pub arch: String,
    /// QEMU's machine type, `pc-q35-10.0`.
    pub machine: String,
    /// The time at which OpenStack Nova created the server (`<nova:creationTime>`), as Nova wrote it.
    pub created: Option<String>,
    /// Whose the guest is, as `<metadata>` says.
    pub ownership: Ownership,
    /// The PCI controllers, in document order.
    pub controllers: Vec<PciController>,
    /// The PCI host devices: `<hostdev type='pci'>` and `<interface type='hostdev'>`, in document order.
    pub hostdevs: Vec<Hostdev>,
    /// The mediated devices: `<hostdev type='mdev'>`, in document order.
    pub mdevs: Vec<MdevHostdev>,
    /// The character devices of the host's vDPA devices that the guest uses (`<interface type='vdpa'>`, `<disk
    /// type='vhostvdpa'>`), in document order.
    pub vdpas: Vec<String>,
    /// All occupied PCI addresses of the guest in libvirt's numbering (the bus is a controller's index), including
    /// those of controllers and host devices.
    pub occupied: Vec<PciAddress>,
    /// Whether the guest agent's channel is connected. Only a live document contains this.
    pub agent_connected: bool,
    /// Whether the guest is on QEMU's user networking or on passt (`<interface type='user'>`, `<backend type='passt'>`, or
    /// `-netdev user` in QEMU's own arguments). Such a guest can reach the TCP ports of the host's loopback.
    pub user_network: bool,
    /// Whether the kernel command line makes Linux renumber the PCI buses (`pci=assign-busses` in `<os><cmdline>`;
    /// Linux, `Documentation/admin-guide/kernel-parameters.txt`), so that the firmware's bus numbers are not those of
    /// the guest.
    pub renumbers_buses: bool,
    /// The host's NUMA nodes to which the guest's own NUMA cells (`<cpu><numa>`) are pinned. Empty when the guest has
    /// no cells, even if its memory is pinned, and when the cells are not pinned.
    pub numa_nodes: BTreeSet<u32>,
    /// The guest's memory in bytes, including hot-plugged modules; 0 when the document does not contain it.
    pub memory: u64,
    /// The limit in bytes of the memory that the QEMU process may use and lock (`<memtune><hard_limit>`).
    pub hard_limit: Option<u64>,
}

/// A PCI controller of a guest: a root, a bridge, a port or an expander.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciController {
    /// libvirt's index, which is the `bus` of the devices on the controller.
    pub index: u8,
    /// The model.
    pub model: ControllerModel,
    /// The address in libvirt's numbering; `None` for the root buses.
    pub address: Option<PciAddress>,
    /// QEMU's device id (`pci.3`).
    pub alias: Option<String>,
    /// The `busNr` of an expander.
    pub bus_nr: Option<u8>,
    /// Whether it supports hot-plug (false with `<target hotplug='off'/>`).
    pub hotplug: bool,
    /// The number of bus numbers that firmware reserves behind it (`bus-reserve` in `qemu:override`). `Some(0)` differs
    /// from `None`, which leaves the number to the firmware.
    pub bus_reserve: Option<u8>,
    /// Bytes of non-prefetchable memory that firmware reserves behind it (`memReserve` of `<target>`, or `mem-reserve` in
    /// `qemu:override`).
    pub mem_reserve: Option<u64>,
    /// Bytes of 64-bit prefetchable memory that firmware reserves behind it (`pref64-reserve` in `qemu:override`).
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

/// Bytes of non-prefetchable memory that SeaBIOS and OVMF reserve behind each hot-plug port.
const PORT_WINDOW: u64 = 2 << 20;

impl PciController {
    /// Whether exactly one device fits behind it: a root port, or a downstream port of a switch.
    pub fn is_port(&self) -> bool {
        matches!(self.model, ControllerModel::RootPort | ControllerModel::SwitchDownstream)
    }

    /// The bytes of non-prefetchable memory that firmware reserves behind a hot-plug port: as the document says, or as much
    /// as firmware takes by itself. `None` for other controllers, whose memory depends on what is behind them.
    pub fn memory_window(&self) -> Option<u64> {
        (self.is_port() && self.hotplug).then(|| self.mem_reserve.unwrap_or(PORT_WINDOW))
    }
}

/// How QEMU asks a guest to release a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnplugBy {
    /// By an ACPI event. The guest begins at once.
    Acpi,
    /// By the attention button of the port, as PCI Express specifies. The guest waits five seconds for somebody who presses
    /// the button again, and then switches the slot off, which takes a second.
    Native,
}

/// A PCI host device in a domain document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostdev {
    /// The address on the host.
    pub source: PciAddress,
    /// The guest address in libvirt's numbering (the bus is a controller's index).
    pub guest: Option<PciAddress>,
    /// The alias: `ua-…` when a user chose it, `hostdev0` when libvirt did.
    pub alias: Option<String>,
    /// Whether libvirt binds the drivers itself.
    pub managed: bool,
    /// Whether it is an `<interface type='hostdev'>`.
    pub interface: bool,
    /// The MAC address of an interface.
    pub mac: Option<MacAddress>,
    /// The VLAN of an interface; `None` for a trunk of several VLANs.
    pub vlan: Option<VlanTag>,
}

/// A mediated device in a domain document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdevHostdev {
    /// The UUID on the host.
    pub uuid: Uuid,
    /// The guest address in libvirt's numbering; `None` when it is not a PCI device in the guest.
    pub guest: Option<PciAddress>,
    /// The alias: `ua-…` when a user chose it, `hostdev0` when libvirt did.
    pub alias: Option<String>,
}

/// The alias of an attachment's device in a domain. libvirt keeps aliases that begin with `ua-`, in the live document
/// and in the persistent one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserAlias(pub Uuid);

impl UserAlias {
    /// Parses an alias; `None` when it is not one of hotslot's.
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
    /// Returns the mediated device with this alias.
    pub fn mdev(&self, alias: UserAlias) -> Option<&MdevHostdev> {
        let alias = alias.to_string();
        self.mdevs.iter().find(|mdev| mdev.alias.as_deref() == Some(alias.as_str()))
    }

    /// Returns how the guest is asked to release the device at `address` (libvirt's numbering). `None` when the document
    /// does not tell it: on other machines than the PC, and behind an expander.
    ///
    /// QEMU uses ACPI on i440fx, and on q35 since the machine version 6.1 (`hw/core/machine.c`: `pc_compat_6_0` switches
    /// `acpi-pci-hotplug-with-bridge-support` off).
    pub fn unplug_by(&self, address: PciAddress) -> Option<UnplugBy> {
        let controller = |bus| self.controllers.iter().find(|controller| controller.index == bus);
        let behind = controller(address.bus())?;
        let mut root = behind;
        // Each controller is behind one with another index; more steps than controllers are a circle.
        for _ in 0..self.controllers.len() {
            root = root.address.and_then(|address| controller(address.bus())).unwrap_or(root);
        }
        match root.model {
            ControllerModel::PciRoot => Some(UnplugBy::Acpi),
            ControllerModel::PcieRoot => match self.q35_version()? {
                version if version >= (6, 1) => Some(UnplugBy::Acpi),
                _ => behind.is_port().then_some(UnplugBy::Native),
            },
            ControllerModel::PciBridge
            | ControllerModel::DmiToPciBridge
            | ControllerModel::PcieToPciBridge
            | ControllerModel::RootPort
            | ControllerModel::SwitchUpstream
            | ControllerModel::SwitchDownstream
            | ControllerModel::PciExpander
            | ControllerModel::PcieExpander => None,
        }
    }

    /// The version of QEMU's machine type q35; `None` for other machines, and for versions of a distribution.
    fn q35_version(&self) -> Option<(u32, u32)> {
        let (major, minor) = self.machine.strip_prefix("pc-q35-")?.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }

    /// Returns the PCI host device with this alias.
    pub fn hostdev(&self, alias: UserAlias) -> Option<&Hostdev> {
        let alias = alias.to_string();
        self.hostdevs.iter().find(|hostdev| hostdev.alias.as_deref() == Some(alias.as_str()))
    }
}
