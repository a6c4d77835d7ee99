//! The rows of the tables `attachments`, `bindings` and `mdevs`, and the data to reserve them.

use std::sync::Arc;

use hotslot_driver::binding::HostDriver;
use hotslot_driver::local::Condition;
use hotslot_driver::net::{MacAddress, VlanTag};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vf::VfSettings;

use super::holder::Holder;
use super::state::{InnerAddress, State};
use crate::device::Device;
use crate::id::{AttachmentId, DeviceId, HypervisorId, RequestId, ServerId};
use crate::idempotency::IdempotencyKey;
use crate::string_enum;
use crate::time::Millis;

/// The network settings of a VF that its guest gets as `<interface type='hostdev'>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The MAC address.
    pub mac: MacAddress,
    /// The VLAN tag that the NIC adds to its frames.
    pub vlan: Option<VlanTag>,
    /// The `physical_network` that was requested.
    pub physical_network: Option<String>,
    /// Whether a trusted VF was requested.
    pub trusted: Option<bool>,
    /// The other settings that were requested; `trust` is `None`.
    pub vf: VfSettings,
}

impl Network {
    /// All requested settings that libvirt has no word for.
    pub fn vf_settings(&self) -> VfSettings {
        VfSettings { trust: self.trusted, ..self.vf }
    }
}

string_enum! {
    /// Who has set the type of a VF that is a virtual GPU.
    VgpuOwner {
        /// The VF had it before the attachment.
        Others = "others",
        /// hotslot sets it, or has set it.
        Ours = "ours",
        /// hotslot had set it, and the VF does not have it any more since the attachment has ended.
        Taken = "taken",
    }
}

/// The type of virtual GPU that the VF of an attachment has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vgpu {
    /// The id of the type.
    pub id: String,
    /// Who has set it.
    pub owner: VgpuOwner,
}

impl Vgpu {
    /// Whether hotslot has set it, or is about to.
    pub fn is_ours(&self) -> bool {
        self.owner == VgpuOwner::Ours
    }
}

/// A row of `attachments`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The id. The device has the alias `ua-<id>` in the domain.
    pub id: AttachmentId,
    /// The request that made it.
    pub request: RequestId,
    /// The host.
    pub hypervisor: HypervisorId,
    /// The server.
    pub server: ServerId,
    /// The device.
    pub device: DeviceId,
    /// The alias of the request; empty when it is not known.
    pub alias: String,
    /// Whether it is in the domain's persistent definition as well.
    pub persistent: bool,
    /// Whether libvirt binds the drivers.
    pub managed: bool,
    /// The network settings of a VF of a NIC; `None` for a plain PCI function.
    pub network: Option<Network>,
    /// The type of a VF that is a virtual GPU; `None` when none was requested.
    pub vgpu: Option<Vgpu>,
    /// The link and the counted errors of the function, as they were before the attachment.
    pub before: Condition,
    /// Whether it was taken from its host driver together with other members of its IOMMU group.
    pub whole_group: bool,
    /// Whether it has to go even if its guest refuses. Then it does not come back into the definition.
    pub forced: bool,
    /// Whether libvirt was requested to attach it, or may have been.
    pub plug_requested: bool,
    /// Whether it ended although nobody had requested that.
    pub unrequested: bool,
    /// The state.
    pub state: State,
    /// The reason for the state, for people.
    pub reason: Option<String>,
    /// The accelerator or accelerator request that it was made for; `None` when it was requested by itself.
    pub holder: Option<Holder>,
    /// The project that owned the server at the time of the request, against whose quota it counts.
    pub project: Option<String>,
    /// The address in the guest.
    pub inner: Option<InnerAddress>,
    /// The time of the request.
    pub created_at: Millis,
    /// The time of the last change.
    pub updated_at: Option<Millis>,
    /// The time at which it was first attached.
    pub attached_at: Option<Millis>,
    /// The time at which it ended.
    pub ended_at: Option<Millis>,
}

/// An attachment to reserve.
#[derive(Debug, Clone)]
pub struct NewAttachment {
    /// The id.
    pub id: AttachmentId,
    /// The device, as it was when it was chosen.
    pub device: Arc<Device>,
    /// The alias of the request.
    pub alias: String,
    /// Whether libvirt binds the drivers.
    pub managed: bool,
    /// The network settings of a VF of a NIC; `None` attaches it as a plain PCI function.
    pub network: Option<Network>,
    /// The type of a VF that is a virtual GPU; `None` when none was requested.
    pub vgpu: Option<Vgpu>,
    /// The link and the counted errors of the function now.
    pub before: Condition,
    /// Whether it is taken from its host driver together with other members of its IOMMU group.
    pub whole_group: bool,
    /// Whether it is bound to a host driver now, to which it must be bound again afterwards.
    pub to_rebind: bool,
    /// The other members of its IOMMU group.
    pub siblings: Vec<PciAddress>,
}

impl NewAttachment {
    /// Makes the row of the reserved attachment. `plug_requested` says whether libvirt is requested to plug the device
    /// right after the reservation.
    pub fn reserved(&self, by: Reservation<'_>, plug_requested: bool, now: Millis) -> Attachment {
        Attachment {
            id: self.id,
            request: by.request,
            hypervisor: by.hypervisor,
            server: by.server,
            device: self.device.id,
            alias: self.alias.clone(),
            persistent: by.persistent,
            managed: self.managed,
            network: self.network.clone(),
            vgpu: self.vgpu.clone(),
            before: self.before,
            whole_group: self.whole_group,
            forced: false,
            plug_requested,
            unrequested: false,
            state: State::Attaching,
            reason: None,
            holder: by.holder,
            project: by.project.map(str::to_owned),
            inner: None,
            created_at: now,
            updated_at: None,
            attached_at: None,
            ended_at: None,
        }
    }
}

/// The data that all attachments of one reservation share.
#[derive(Debug, Clone, Copy)]
pub struct Reservation<'a> {
    /// The host.
    pub hypervisor: HypervisorId,
    /// The server.
    pub server: ServerId,
    /// The request that makes them.
    pub request: RequestId,
    /// Whether they go into the domain's persistent definition as well.
    pub persistent: bool,
    /// The `Idempotency-Key` by which a repeated request is recognised.
    pub key: Option<&'a IdempotencyKey>,
    /// The accelerator or accelerator request that gets them.
    pub holder: Option<Holder>,
    /// The project that owns the server, against whose quota they count.
    pub project: Option<&'a str>,
}

/// A row of `bindings`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The id.
    pub id: AttachmentId,
    /// The request that made it.
    pub request: RequestId,
    /// The host.
    pub hypervisor: HypervisorId,
    /// The device.
    pub device: DeviceId,
    /// The accelerator that it was made for.
    pub holder: Holder,
    /// The driver that it is bound to for the host's use.
    pub driver: HostDriver,
    /// The driver that it had before and gets back; `None` when it had none.
    pub previous: Option<String>,
    /// Whether it has to be released because its attach failed.
    pub forced: bool,
    /// The state.
    pub state: State,
    /// The reason for the state, for people.
    pub reason: Option<String>,
    /// The time of the request.
    pub created_at: Millis,
    /// The time at which it was first attached.
    pub attached_at: Option<Millis>,
}

/// A binding to reserve.
#[derive(Debug, Clone)]
pub struct NewBinding {
    /// The id.
    pub id: AttachmentId,
    /// The device, as it was when it was chosen.
    pub device: Arc<Device>,
    /// The driver that it has now.
    pub previous: Option<String>,
    /// The other members of its IOMMU group. None of them may be in a server.
    pub siblings: Vec<PciAddress>,
}

/// A row of `mdevs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mdev {
    /// The id. It is also the UUID of the mediated device on the host, and its alias in the domain is `ua-<id>`.
    pub id: AttachmentId,
    /// The request that made it.
    pub request: RequestId,
    /// The host.
    pub hypervisor: HypervisorId,
    /// The parent: the function whose driver makes it.
    pub parent: DeviceId,
    /// The server.
    pub server: ServerId,
    /// The driver's id of its type.
    pub mdev_type: String,
    /// The accelerator or accelerator request that it was made for.
    pub holder: Holder,
    /// The project that owned the server at the time of the request, against whose quota it counts.
    pub project: Option<String>,
    /// Whether it is in the domain's persistent definition as well.
    pub persistent: bool,
    /// Whether it has to go even if its guest refuses. Then it does not come back into the definition.
    pub forced: bool,
    /// The state.
    pub state: State,
    /// The reason for the state, for people.
    pub reason: Option<String>,
    /// The address in the guest.
    pub inner: Option<InnerAddress>,
    /// Whether it ended although nobody had requested that.
    pub unrequested: bool,
    /// The time of the request.
    pub created_at: Millis,
    /// The time at which it was first attached.
    pub attached_at: Option<Millis>,
}

/// The data that all mediated devices of one reservation share.
#[derive(Debug, Clone, Copy)]
pub struct MdevReservation<'a> {
    /// The host.
    pub hypervisor: HypervisorId,
    /// The server.
    pub server: ServerId,
    /// The request that makes them.
    pub request: RequestId,
    /// The accelerator or accelerator request that gets them.
    pub holder: Holder,
    /// Whether they go into the domain's persistent definition as well.
    pub persistent: bool,
    /// The project that owns the server, against whose quota they count.
    pub project: Option<&'a str>,
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
