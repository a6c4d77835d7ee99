//! Devices: PCI functions of hosts, as rows of the table `pci_devices`.

use std::fmt;
use std::str::FromStr;

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::hook::{Hooks, When};
use hotslot_driver::pci::{PciAddress, PciClass, PciId};
use uuid::Uuid;

pub use crate::functions::{Functions, IommuGroups};
use crate::id::{DeviceId, HypervisorId, RequestId, ServerId};
use crate::string_enum;
use crate::texts::Texts;
use crate::time::Millis;

string_enum! {
    /// Nova's types of devices.
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
    /// Nova's statuses of devices.
    DeviceStatus {
        /// Free.
        Available = "available",
        /// Reserved for an assignment.
        Claimed = "claimed",
        /// In use by an assignment.
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
    /// The id of the row.
    pub id: DeviceId,
    /// The UUID of the row.
    pub uuid: Uuid,
    /// The host of the device.
    pub hypervisor: HypervisorId,
    /// The facts from the host.
    pub facts: DeviceFacts,
    /// The status.
    pub status: DeviceStatus,
    /// The request that holds it.
    pub request: Option<RequestId>,
    /// The server or host that holds the device.
    pub owner: Option<Owner>,
    /// When the device was first seen.
    pub created_at: Millis,
    /// When the row last changed.
    pub updated_at: Option<Millis>,
    /// The time since which a device in use has been gone from the host or not assignable.
    pub gone_at: Option<Millis>,
    /// The time since which a device that was used waits: for its scrub, or until somebody has looked at it, as one with
    /// `one_time_use` and one in quarantine.
    pub used_at: Option<Millis>,
    /// Whether it waits for its scrub, which hotslot runs; then `used_at` is set. One in quarantine is scrubbed when it is
    /// released from it.
    pub scrub: bool,
    /// Why it was found not to work, or was not scrubbed, after a use; then `used_at` is set, whether it is for one use or
    /// not.
    pub quarantine: Option<String>,
}

/// What becomes of a device after a use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterUse {
    /// It is offered again.
    Offered,
    /// It waits for its scrub.
    Scrub,
    /// It is in quarantine for this reason.
    Quarantine(String),
}

/// The holder of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A server.
    Server(ServerId),
    /// The host of the device itself.
    Host,
}

/// The value of the column `instance_uuid` for a device that its host holds.
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
    /// Returns the value for the column `instance_uuid`.
    pub fn column(self) -> String {
        match self {
            Self::Server(server) => server.to_string(),
            Self::Host => HOST.to_owned(),
        }
    }
}

impl FromStr for Owner {
    type Err = uuid::Error;

    /// Reads the value of the column `instance_uuid`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == HOST { Ok(Self::Host) } else { text.parse().map(Self::Server) }
    }
}

impl Device {
    /// Returns the server that holds the device, if a server does.
    pub fn server(&self) -> Option<ServerId> {
        match self.owner {
            Some(Owner::Server(server)) => Some(server),
            Some(Owner::Host) | None => None,
        }
    }

    /// Whether this row is still the device that was chosen: it has the same facts, and it is neither gone nor waits to
    /// be cleaned.
    pub fn is_as_chosen(&self, chosen: &Self) -> bool {
        self.facts == chosen.facts && self.used_at.is_none() && self.gone_at.is_none()
    }

    /// Takes the device from its owner. `used` says what is to become of it when it may have been used; `None` says that it
    /// was not. A used device for one use waits to be cleaned in any case.
    pub fn release(&mut self, used: Option<AfterUse>, now: Millis) {
        (self.owner, self.request) = (None, None);
        self.scrub = used == Some(AfterUse::Scrub);
        if self.quarantine.is_some() {
            return;
        }
        let waits = |used: &AfterUse| *used != AfterUse::Offered || is_for_one_use(&self.facts);
        self.used_at = used.as_ref().is_some_and(waits).then_some(now);
        if let Some(AfterUse::Quarantine(reason)) = used {
            self.quarantine = Some(reason);
        }
    }

    /// Whether it waits for its scrub, and for no person.
    pub fn waits_for_scrub(&self) -> bool {
        self.scrub && self.quarantine.is_none()
    }

    /// Whether its scrub can run now: it waits for it, nobody has it, and the host has it.
    pub fn can_be_scrubbed(&self) -> bool {
        self.waits_for_scrub() && self.owner.is_none() && self.gone_at.is_none()
    }

    /// Records that the device was scrubbed. One for one use, or in quarantine, still waits for an administrator.
    pub fn scrubbed(&mut self) {
        self.scrub = false;
        if self.quarantine.is_none() && !is_for_one_use(&self.facts) {
            self.used_at = None;
        }
    }

    /// Records that an administrator has looked at the device. One that was in quarantine before its scrub waits for that
    /// now; any other is assignable again.
    pub fn cleaned(&mut self) {
        if self.quarantine.take().is_none() || !self.scrub {
            (self.scrub, self.used_at) = (false, None);
        }
    }

    /// Makes the row of a device that is seen for the first time.
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
            scrub: false,
            quarantine: None,
        }
    }
}

/// The facts of a device from its host. A scan can change all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The address.
    pub address: PciAddress,
    /// Vendor id.
    pub vendor_id: PciId,
    /// Product id.
    pub product_id: PciId,
    /// Nova's type of the device.
    pub dev_type: DevType,
    /// The NUMA node, or `None` when it is not known.
    pub numa_node: Option<u32>,
    /// The address of the PF, for a VF.
    pub parent_addr: Option<PciAddress>,
    /// All other properties.
    pub extra_info: Texts,
}

impl DeviceFacts {
    /// Returns libvirt's node device name, such as `pci_0000_04_10_0`.
    pub fn dev_id(&self) -> String {
        self.address.node_name()
    }

    /// Returns Nova's label, such as `label_8086_1520`.
    pub fn label(&self) -> String {
        format!("label_{}_{}", self.vendor_id, self.product_id)
    }
}

pub(crate) const ONE_TIME_USE: &str = "one_time_use";

/// Whether the device has the tag `one_time_use`, so that after each use an administrator has to clean it.
pub fn is_for_one_use(facts: &DeviceFacts) -> bool {
    facts.extra_info.get(ONE_TIME_USE).is_some_and(|once| once == "true")
}

/// The key of `device_spec` that says whether a device is scrubbed after each use.
pub const SCRUB: &str = "scrub";

/// Whether the `device_spec` of the device says that it is scrubbed after each use, or that it is not; `None` when it says
/// nothing.
pub fn wants_scrub(facts: &DeviceFacts) -> Option<bool> {
    facts.extra_info.get(SCRUB).map(|scrub| scrub == "true")
}

/// Whether a device is scrubbed after each use: as its `device_spec` says ([`wants_scrub`]), or else when it is storage or
/// its class has a hook for that. When the hooks cannot be read, it may have one.
pub fn is_scrubbed(wants: Option<bool>, class: Option<PciClass>, hooks: Option<&Hooks>) -> bool {
    wants.unwrap_or_else(|| {
        class.is_some_and(PciClass::is_storage)
            || hooks.is_none_or(|hooks| hooks.step(When::Scrub, class).is_some())
    })
}

const MANAGED: &str = "managed";

/// Whether libvirt binds the drivers of the device. True unless its `device_spec` has `"managed": "false"`.
pub fn is_managed(facts: &DeviceFacts) -> bool {
    facts.extra_info.get(MANAGED).is_none_or(|managed| managed != "false")
}

/// Returns the address that stands for the card of a function: that of its PF, or its own.
pub fn card_of(facts: &DeviceFacts) -> PciAddress {
    facts.parent_addr.unwrap_or(facts.address)
}

/// Returns the PF of a VF. Returns `None` for a function that is not a VF.
pub fn parent<'a>(functions: &'a Functions, device: &HostDevice) -> Option<&'a HostDevice> {
    match device.role {
        Role::Virtual { parent } => functions.get(&parent),
        Role::Plain | Role::Physical { .. } => None,
    }
}
