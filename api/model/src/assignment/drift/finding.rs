//! One disagreement, and what is to be done about it.

use hotslot_driver::pci::PciAddress;

use crate::assignment::{Adoption, Assignment, AssignmentKind, Observation};
use crate::id::{AttachmentId, DeviceId, ServerId};
use crate::rules::ProfileChange;
use crate::string_enum;

string_enum! {
    /// The kind of a disagreement.
    Kind {
        /// No document of the domain has the device of an assignment, or the domain does not exist.
        Absent = "absent",
        /// An assignment is in transition, and nobody works on it.
        Unfinished = "unfinished",
        /// The record of an assignment differs from the documents.
        Outdated = "outdated",
        /// The running guest lacks a device that its definition has.
        NotLive = "not-live",
        /// The definition lacks a device that must survive a power cycle.
        NotDefined = "not-defined",
        /// The definition has a device that was requested for this run only.
        Defined = "defined",
        /// A domain has the device of an assignment that has ended, or the host has a mediated device whose record has
        /// ended.
        Stray = "stray",
        /// A domain has a device under an alias of ours, and there is no record of it, or its record ended although
        /// nobody had requested that.
        Unrecorded = "unrecorded",
        /// Two facts that contradict each other.
        Conflict = "conflict",
        /// A device on record is in a domain, and hotslot did not put it there.
        Foreign = "foreign",
        /// The host lacks a device that a server has, or that the host itself uses.
        DeviceGone = "device-gone",
        /// A device is allocated to a server, and no attachment is open for it.
        Unattached = "unattached",
        /// A device that nobody holds any more is not bound to its host driver.
        NoHostDriver = "no-host-driver",
        /// A device for the host's own use is not bound to the driver that was requested.
        OtherDriver = "other-driver",
        /// A VF has the vGPU type of an attachment that has ended, or another one than its attachment has, or none.
        VgpuType = "vgpu-type",
        /// A VF has settings of an attachment that has ended, or lacks the settings of its attachment.
        VfSettings = "vf-settings",
        /// A domain cannot be read.
        Unread = "unread",
        /// A PF has another number of VFs than the profile of its host says.
        ProfileVfs = "profile-vfs",
        /// A VF has another vGPU type than the profile of its host says.
        ProfileVgpuType = "profile-vgpu-type",
        /// A function is bound to another driver than the profile of its host says.
        ProfileDriver = "profile-driver",
    }
}

string_enum! {
    /// The source of a statement in a finding.
    Source {
        /// The records of hotslot.
        Record = "record",
        /// The running guest's document.
        Live = "live",
        /// The domain's definition.
        Definition = "definition",
        /// The host.
        Host = "host",
        /// The profile of the host in the configuration.
        Profile = "profile",
    }
}

/// The occasion on which an action is carried out, the earliest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trigger {
    /// As soon as the disagreement is found.
    Event,
    /// When a device was added to a domain, or the domain was started, stopped, moved or rebooted.
    Arrival,
    /// With the next full comparison.
    Round,
    /// When somebody requests a repair.
    Repair,
}

/// The action that resolves a disagreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The record is changed. A mediated device that no document has is removed from the host first.
    Settle(Box<Assignment>, Observation),
    /// A mediated device whose record has ended is removed from the host.
    Destroy(Box<Assignment>),
    /// The device gets a record.
    Adopt(Box<Adoption>),
    /// The guest receives another unplug request.
    RetryUnplug(Box<Assignment>),
    /// The device is taken out of the domain.
    TakeOut {
        /// The record, as if it were of the server that has the device.
        row: Box<Assignment>,
        /// Whether this was requested before, so that it is carried out without a repair.
        requested: bool,
    },
    /// The device is plugged into the running guest.
    Plug(Box<Assignment>),
    /// The device is put into the definition.
    Define(Box<Assignment>),
    /// The device is taken out of the definition.
    Undefine(Box<Assignment>),
    /// The device is bound to its host driver again.
    Rebind(AttachmentId),
    /// The VF gets its vGPU type again, or loses it because the attachment has ended.
    SetVgpuType(AttachmentId),
    /// The VF gets the settings of its attachment again, or those from before it because the attachment has ended.
    SetVfSettings(AttachmentId),
    /// The device becomes available.
    Free(DeviceId),
    /// The host is changed to what its profile says.
    Profile(ProfileChange),
    /// hotslot does nothing, because it cannot know what is right. The text says what a person can do.
    Manual(String),
}

impl Action {
    /// Returns the occasion on which the action is carried out; `None` for an action of a person.
    pub fn trigger(&self) -> Option<Trigger> {
        match self {
            Self::Settle(..)
            | Self::Destroy(_)
            | Self::Adopt(_)
            | Self::Rebind(_)
            | Self::SetVgpuType(_)
            | Self::SetVfSettings(_) => Some(Trigger::Event),
            // Not at every event: the refusal of a guest is an event as well.
            Self::TakeOut { requested: true, .. } => Some(Trigger::Arrival),
            Self::RetryUnplug(_) => Some(Trigger::Round),
            Self::Plug(_)
            | Self::Define(_)
            | Self::Undefine(_)
            | Self::Free(_)
            | Self::Profile(_)
            | Self::TakeOut { requested: false, .. } => Some(Trigger::Repair),
            Self::Manual(_) => None,
        }
    }
}

/// Describes the action for people.
impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Settle(row, seen) if is_gone(seen) && row.kind() == AssignmentKind::Mdev => {
                "the mediated device is taken away from the host, and recorded as ended"
            }
            Self::Settle(_, seen) if is_gone(seen) => {
                "the attachment is recorded as ended, and its device as free"
            }
            Self::Settle(_, Observation::GivenUp { .. }) => "the attach is undone",
            Self::Settle(..) => "the record follows the documents",
            Self::Destroy(_) => "the mediated device is taken away from the host",
            Self::Adopt(_) => "the attachment is put on record",
            Self::RetryUnplug(_) => "the guest is requested again to release it",
            Self::TakeOut { .. } => "it is taken out of the domain",
            Self::Plug(_) => "it is plugged into the running guest",
            Self::Define(_) => "it is put into the definition",
            Self::Undefine(_) => "it is taken out of the definition",
            Self::Rebind(_) => "it is given back to its host driver",
            Self::SetVgpuType(_) => "its vGPU type is set as the records say",
            Self::SetVfSettings(_) => "its settings are set as the records say",
            Self::Free(_) => "the device is recorded as free",
            Self::Profile(change) => return change.fmt(f),
            Self::Manual(what) => what,
        };
        f.write_str(text)
    }
}

/// Whether an observation says that no document has the device any more.
pub fn is_gone(seen: &Observation) -> bool {
    match seen {
        Observation::Removed { .. }
        | Observation::Absent
        | Observation::DomainStopped
        | Observation::DomainGone => true,
        Observation::Present { .. }
        | Observation::Verified { .. }
        | Observation::Restarted
        | Observation::DetachRequested
        | Observation::GivenUp { .. }
        | Observation::DetachRefused { .. }
        | Observation::StillThere { .. }
        | Observation::AttachRefused { .. }
        | Observation::HostAway { .. } => false,
    }
}

/// A disagreement between two sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The kind.
    pub kind: Kind,
    /// The server that it concerns, with the name of its domain if the domain exists.
    pub server: Option<(ServerId, Option<String>)>,
    /// The assignment that it concerns.
    pub attachment: Option<AttachmentId>,
    /// The address of the device on the host.
    pub address: Option<PciAddress>,
    /// The statements of the sources that disagree.
    pub observations: Vec<(Source, String)>,
    /// The action that resolves it.
    pub action: Action,
}

impl Finding {
    /// Whether two findings concern the same disagreement, even if the sources say something else now.
    pub fn is_of(&self, other: &Self) -> bool {
        let thing = |finding: &Self| {
            let server = finding.server.as_ref().map(|(id, _)| *id);
            (finding.kind, server, finding.attachment, finding.address)
        };
        thing(self) == thing(other)
    }
}

/// Returns the state on record and its reason, for people.
pub(super) fn record(row: &Assignment) -> String {
    let what = match row {
        Assignment::Attachment(_) | Assignment::Binding(_) => None,
        Assignment::Mdev(row) => Some(format!("mediated device {} of type {}", row.id, row.mdev_type)),
    };
    let observed: Vec<_> = what.as_deref().into_iter().chain(row.reason()).collect();
    match observed.is_empty() {
        true => row.state().to_string(),
        false => format!("{}: {}", row.state(), observed.join("; ")),
    }
}
