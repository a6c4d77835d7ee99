//! Guards: the reasons why the host needs a device.

use std::collections::BTreeSet;
use std::fmt;

use crate::pci::PciAddress;

/// A reason why a device must not be assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The device.
    pub device: PciAddress,
    /// The kind of reason.
    pub kind: GuardKind,
    /// The host's use of the device, for people: `/ on dm-0 on nvme0n1p3`.
    pub reason: String,
}

/// The kinds of reasons why the host needs a device, the most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuardKind {
    /// The root file system is on it.
    RootFilesystem,
    /// A boot file system is on it: `/boot`, `/efi` or one below.
    BootFilesystem,
    /// The host swaps to it.
    Swap,
    /// Another mounted file system is on it.
    Mounted,
    /// An array, a volume or a map (md, device mapper, bcache) has a disk on it open.
    InUse,
    /// A network interface on it has an address that is not link-local.
    NetworkAddress,
    /// A route uses a network interface on it.
    NetworkRoute,
    /// A network interface on it is below one that is in use: a bridge, a bond, a team, a VLAN with an
    /// address.
    NetworkMaster,
    /// It is the display that the firmware booted on.
    Console,
    /// It is a bridge or a port, which cannot be assigned.
    Bridge,
    /// The host may need it: a use by the host could not be followed to its devices.
    Unknown,
    /// It is a storage, network or display device that is bound to a host driver on a remote host. Guards need the
    /// host's sysfs; they cannot be evaluated for a remote host.
    Unseen,
    /// One of its virtual functions is guarded; assigning the PF would remove it.
    VirtualFunction,
    /// A device in its IOMMU group is guarded.
    GroupSibling,
}

impl GuardKind {
    /// The name of the kind: `root-filesystem`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RootFilesystem => "root-filesystem",
            Self::BootFilesystem => "boot-filesystem",
            Self::Swap => "swap",
            Self::Mounted => "mounted",
            Self::InUse => "in-use",
            Self::NetworkAddress => "network-address",
            Self::NetworkRoute => "network-route",
            Self::NetworkMaster => "network-master",
            Self::Console => "console",
            Self::Bridge => "bridge",
            Self::Unknown => "unknown",
            Self::Unseen => "unseen",
            Self::VirtualFunction => "virtual-function",
            Self::GroupSibling => "group-sibling",
        }
    }
}

impl fmt::Display for GuardKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The findings about the host's storage or about its network.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) guards: Vec<Guard>,
    /// The functions with a block device or a network interface.
    pub(super) carriers: BTreeSet<PciAddress>,
    /// The reason why some use is unknown. That use may be on any of the carriers.
    pub(super) unknown: Option<String>,
}

impl Findings {
    pub(super) fn guard(&mut self, guard: Guard) {
        if !self.guards.contains(&guard) {
            self.guards.push(guard);
        }
    }

    /// Records that some use is unknown. Only the first reason is kept.
    pub(super) fn mark_unknown(&mut self, why: String) {
        self.unknown.get_or_insert(why);
    }
}
