//! The rows of the tables `attachments`, `bindings` and `mdevs`, and what is to become one.

use std::sync::Arc;

use hotslot_driver::binding::HostDriver;
use hotslot_driver::net::{MacAddress, VlanTag};
use hotslot_driver::pci::PciAddress;

use super::holder::Holder;
use super::state::{InnerAddress, State};
use crate::device::Device;
use crate::id::{AttachmentId, DeviceId, HypervisorId, RequestId, ServerId};
use crate::idempotency::IdempotencyKey;
use crate::time::Millis;

/// The network settings of a VF that its guest gets as `<interface type='hostdev'>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its MAC address.
    pub mac: MacAddress,
    /// The VLAN that the NIC puts its frames into.
    pub vlan: Option<VlanTag>,
    /// The network that it was asked for on.
    pub physical_network: Option<String>,
    /// Whether it was asked for as one that may be trusted.
    pub trusted: Option<bool>,
}

/// A row of `attachments`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Its id; `ua-<id>` is the device's alias in the domain.
    pub id: AttachmentId,
    /// The request that it came with.
    pub request: RequestId,
    /// The host.
    pub hypervisor: HypervisorId,
    /// The server.
    pub server: ServerId,
    /// The device.
    pub device: DeviceId,
    /// The alias by which it was asked for; empty when that is not known.
    pub alias: String,
    /// Whether it goes into the persistent definition.
    pub persistent: bool,
    /// Whether libvirt binds the drivers.
    pub managed: bool,
    /// The network settings of a VF of a NIC; `None` for a plain PCI function.
    pub network: Option<Network>,
    /// Whether it was taken together with others of its IOMMU group.
    pub whole_group: bool,
    /// Whether it is to go whatever its guest says: it does not come back into the definition.
    pub forced: bool,
    /// Whether libvirt was asked to plug it, or may have been.
    pub asked: bool,
    /// Whether it ended without having been asked to go.
    pub unasked: bool,
    /// Where it is on its way.
    pub state: State,
    /// The reason for that state, for people.
    pub reason: Option<String>,
    /// On whose behalf it was made; none: it was asked for by itself.
    pub holder: Option<Holder>,
    /// Where the guest sees it.
    pub inner: Option<InnerAddress>,
    /// When it was asked for.
    pub created_at: Millis,
    /// When the row last changed.
    pub updated_at: Option<Millis>,
    /// When it was first attached.
    pub attached_at: Option<Millis>,
    /// When it ended.
    pub ended_at: Option<Millis>,
}

/// An attachment that is to be reserved.
#[derive(Debug, Clone)]
pub struct NewAttachment {
    /// Its id.
    pub id: AttachmentId,
    /// The device it wants, as it was chosen.
    pub device: Arc<Device>,
    /// The alias by which it was asked for.
    pub alias: String,
    /// Whether libvirt binds the drivers.
    pub managed: bool,
    /// What a network VF is to be in the guest; none gives a plain PCI function.
    pub network: Option<Network>,
    /// Whether it is taken together with others of its IOMMU group.
    pub whole_group: bool,
    /// Whether it is taken from a host driver, which is to have it back.
    pub taken: bool,
    /// The other members of its IOMMU group.
    pub siblings: Vec<PciAddress>,
}

/// Who is to have the attachments that are to be reserved.
#[derive(Debug, Clone, Copy)]
pub struct Reservation<'a> {
    /// The host.
    pub hypervisor: HypervisorId,
    /// The server.
    pub server: ServerId,
    /// The request that they come with.
    pub request: RequestId,
    /// Whether they go into the persistent definition.
    pub persistent: bool,
    /// By what the next try of the request is known.
    pub key: Option<&'a IdempotencyKey>,
    /// On whose behalf they are made.
    pub holder: Option<Holder>,
}

/// A row of `bindings`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Its id.
    pub id: AttachmentId,
    /// The request that it came with.
    pub request: RequestId,
    /// The host.
    pub hypervisor: HypervisorId,
    /// The device.
    pub device: DeviceId,
    /// On whose behalf it is held.
    pub holder: Holder,
    /// How the host is to have it.
    pub driver: HostDriver,
    /// The driver that it had before, and is to have again; none: none.
    pub previous: Option<String>,
    /// Whether it has to be released because its attach failed.
    pub forced: bool,
    /// Where it is on its way.
    pub state: State,
    /// The reason for that state, for people.
    pub reason: Option<String>,
    /// When it was asked for.
    pub created_at: Millis,
    /// When it was first attached.
    pub attached_at: Option<Millis>,
}

/// A binding that is to be reserved.
#[derive(Debug, Clone)]
pub struct NewBinding {
    /// Its id.
    pub id: AttachmentId,
    /// The device it wants, as it was chosen.
    pub device: Arc<Device>,
    /// The driver that it has.
    pub previous: Option<String>,
    /// The other members of its IOMMU group: none of them may be in a server.
    pub siblings: Vec<PciAddress>,
}

/// A row of `mdevs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mdev {
    /// Its id: its UUID on the host, and `ua-<id>` is its alias in the domain.
    pub id: AttachmentId,
    /// The request that it came with.
    pub request: RequestId,
    /// The host.
    pub hypervisor: HypervisorId,
    /// The function whose driver makes it.
    pub parent: DeviceId,
    /// The server.
    pub server: ServerId,
    /// The driver's id of its type.
    pub mdev_type: String,
    /// On whose behalf it was made.
    pub holder: Holder,
    /// Whether it goes into the persistent definition.
    pub persistent: bool,
    /// Whether it is to go whatever its guest says: it does not come back into the definition.
    pub forced: bool,
    /// Where it is on its way.
    pub state: State,
    /// The reason for that state, for people.
    pub reason: Option<String>,
    /// Where the guest sees it.
    pub inner: Option<InnerAddress>,
    /// Whether it ended although nobody had requested that.
    pub unasked: bool,
    /// When it was asked for.
    pub created_at: Millis,
    /// When it was first attached.
    pub attached_at: Option<Millis>,
}

/// Who is to have the mediated devices that are to be reserved.
#[derive(Debug, Clone, Copy)]
pub struct MdevReservation {
    /// The host.
    pub hypervisor: HypervisorId,
    /// The server.
    pub server: ServerId,
    /// The request that they come with.
    pub request: RequestId,
    /// On whose behalf they are made.
    pub holder: Holder,
    /// Whether they go into the persistent definition.
    pub persistent: bool,
}

/// A device that a domain's documents have under an alias of ours although no record is open for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// The id in the alias.
    pub id: AttachmentId,
    /// The host.
    pub hypervisor: HypervisorId,
    /// The server that has it.
    pub server: ServerId,
    /// The address of the function on the host; for a mediated device, of its parent.
    pub address: PciAddress,
    /// Whether the definition has it.
    pub persistent: bool,
    /// The address in the guest, computed from the document.
    pub inner: Option<PciAddress>,
    /// The kind, and what the documents say of that.
    pub what: Adopted,
}

/// The kind of device that is adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adopted {
    /// A whole function.
    Function {
        /// Whether libvirt binds the drivers.
        managed: bool,
        /// The network settings of a VF that is an interface in the guest.
        network: Option<Network>,
    },
    /// A mediated device that ended although nobody had requested that.
    Mdev {
        /// The driver's id of its type.
        mdev_type: String,
    },
}
