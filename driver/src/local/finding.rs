//! Guards that were found: why a device must stay with its host.

use std::collections::BTreeSet;
use std::fmt;

use crate::pci::PciAddress;

/// One reason why a device must not be given away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The device.
    pub device: PciAddress,
    /// What kind of reason it is.
    pub kind: GuardKind,
    /// What the host has on it, for people: `/ on dm-0 on nvme0n1p3`.
    pub reason: String,
}

/// What kind of reason keeps a device with the host. In order: the most telling first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuardKind {
    /// The root file system is on it.
    RootFilesystem,
    /// A file system is on it that the host boots from: `/boot`, `/efi` or one below.
    BootFilesystem,
    /// The host swaps to it.
    Swap,
    /// Another mounted file system is on it.
    Mounted,
    /// An array, a volume or a map (md, device mapper, bcache) has a disk on it open.
    InUse,
    /// A network interface on it has an address that is not link-local.
    NetworkAddress,
    /// A route goes by a network interface on it.
    NetworkRoute,
    /// A network interface on it is below one that is in use: a bridge, a bond, a team, a VLAN with an
    /// address.
    NetworkMaster,
    /// It is the display that the firmware booted on.
    Console,
    /// It is a bridge or a port, which cannot be given away.
    Bridge,
    /// The host may live on it: something of what the host uses cannot be followed to its device.
    Unknown,
    /// It is of a class that hosts live on, and bound to a host driver; the host is another machine, so what it uses
    /// cannot be seen.
    Unseen,
    /// A virtual function of it is guarded, and would end with it.
    VirtualFunction,
    /// A device in its IOMMU group is guarded.
    GroupSibling,
}

impl GuardKind {
    /// The kind in one word: `root-filesystem`.
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

/// What was found in one part of the host.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) guards: Vec<Guard>,
    /// The functions that have something of that part on them.
    pub(super) carriers: BTreeSet<PciAddress>,
    /// Why some of it cannot be told; it may be on any carrier.
    pub(super) untold: Option<String>,
}

impl Findings {
    pub(super) fn guard(&mut self, guard: Guard) {
        if !self.guards.contains(&guard) {
            self.guards.push(guard);
        }
    }

    /// The first reason is enough: people mend one after the other.
    pub(super) fn cannot_tell(&mut self, why: String) {
        self.untold.get_or_insert(why);
    }
}
