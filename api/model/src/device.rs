//! Devices: PCI functions of hosts, as rows of the table `pci_devices`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::{PciAddress, PciId};
use uuid::Uuid;

use crate::id::{DeviceId, HypervisorId, RequestId, ServerId};
use crate::string_enum;
use crate::texts::Texts;
use crate::time::Millis;

string_enum! {
    /// Nova's device types.
    DevType {
        /// Neither PF nor VF.
        Pci = "type-PCI",
        /// A physical function, with or without VFs enabled.
        Pf = "type-PF",
        /// A virtual function.
        Vf = "type-VF",
        /// A virtual function with a vDPA device on it.
        Vdpa = "vdpa",
    }
}

string_enum! {
    /// Nova's device states.
    DeviceStatus {
        /// Free.
        Available = "available",
        /// Promised to a server.
        Claimed = "claimed",
        /// In use by a server.
        Allocated = "allocated",
        /// Gone from the host.
        Removed = "removed",
        /// Soft-deleted.
        Deleted = "deleted",
        /// A relative (PF or VF) is claimed.
        Unclaimable = "unclaimable",
        /// A relative (PF or VF) is allocated.
        Unavailable = "unavailable",
    }
}

/// A row of `pci_devices` that is not deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The row's id.
    pub id: DeviceId,
    /// The row's UUID.
    pub uuid: Uuid,
    /// Which host has it.
    pub hypervisor: HypervisorId,
    /// What the host says of it.
    pub facts: DeviceFacts,
    /// Whether it is free.
    pub status: DeviceStatus,
    /// The request that holds it.
    pub request: Option<RequestId>,
    /// Who holds it.
    pub owner: Option<Owner>,
    /// When it was first seen.
    pub created_at: Millis,
    /// When the row last changed.
    pub updated_at: Option<Millis>,
    /// Since when it is gone from the host, or from what may be given away, while a server has it.
    pub gone_at: Option<Millis>,
    /// Since when it waits to be cleaned, after a server had it that was the only one to have it.
    pub used_at: Option<Millis>,
}

/// Who holds a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A server.
    Server(ServerId),
    /// The host that it is in.
    Host,
}

/// How the host stands in the column of the servers.
const HOST: &str = "host";

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(server) => write!(f, "server {server}"),
            Self::Host => f.write_str("its host"),
        }
    }
}

impl Owner {
    /// How it stands in the column `instance_uuid`.
    pub fn column(self) -> String {
        match self {
            Self::Server(server) => server.to_string(),
            Self::Host => HOST.to_owned(),
        }
    }
}

impl FromStr for Owner {
    type Err = uuid::Error;

    /// Reads what the column says.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == HOST { Ok(Self::Host) } else { text.parse().map(Self::Server) }
    }
}

impl Device {
    /// The server that holds it.
    pub fn server(&self) -> Option<ServerId> {
        match self.owner {
            Some(Owner::Server(server)) => Some(server),
            Some(Owner::Host) | None => None,
        }
    }

    /// A device that was seen for the first time.
    pub fn new(
        id: DeviceId,
        uuid: Uuid,
        hypervisor: HypervisorId,
        facts: DeviceFacts,
        created_at: Millis,
    ) -> Self {
        Self {
            id,
            uuid,
            hypervisor,
            facts,
            status: DeviceStatus::Available,
            request: None,
            owner: None,
            created_at,
            updated_at: None,
            gone_at: None,
            used_at: None,
        }
    }
}

/// What the host says of a device: all that a scan may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Where the host has it.
    pub address: PciAddress,
    /// Vendor id.
    pub vendor_id: PciId,
    /// Product id.
    pub product_id: PciId,
    /// Its type to Nova.
    pub dev_type: DevType,
    /// The NUMA node, where it is known.
    pub numa_node: Option<u32>,
    /// The PF of a VF.
    pub parent_addr: Option<PciAddress>,
    /// Everything else, a map of strings to strings.
    pub extra_info: Texts,
}

impl DeviceFacts {
    /// libvirt's name of it, `pci_0000_04_10_0`.
    pub fn dev_id(&self) -> String {
        self.address.node_name()
    }

    /// Nova's label, `label_8086_1520`.
    pub fn label(&self) -> String {
        format!("label_{}_{}", self.vendor_id, self.product_id)
    }
}

pub(crate) const ONE_TIME_USE: &str = "one_time_use";

/// Whether the device is given once, until someone has cleaned it.
pub fn is_for_one_use(facts: &DeviceFacts) -> bool {
    facts.extra_info.get(ONE_TIME_USE).is_some_and(|once| once == "true")
}

const MANAGED: &str = "managed";

/// Whether libvirt is to bind the device's drivers: yes, unless its `device_spec` says `"managed": "false"`.
pub fn is_managed(facts: &DeviceFacts) -> bool {
    facts.extra_info.get(MANAGED).is_none_or(|managed| managed != "false")
}

/// The address of the card that a function is on.
pub fn card_of(facts: &DeviceFacts) -> PciAddress {
    facts.parent_addr.unwrap_or(facts.address)
}

/// The PCI functions of a host.
pub type Functions = BTreeMap<PciAddress, HostDevice>;

/// The PF of a VF.
pub fn parent<'a>(functions: &'a Functions, device: &HostDevice) -> Option<&'a HostDevice> {
    match device.role {
        Role::Virtual { parent } => functions.get(&parent),
        Role::Plain | Role::Physical { .. } => None,
    }
}
