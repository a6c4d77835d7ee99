//! One disagreement, and what is to be done about it.

use hotslot_driver::pci::PciAddress;

use crate::assignment::{Adoption, Assignment, AssignmentKind, Observation};
use crate::id::{AttachmentId, DeviceId, ServerId};
use crate::string_enum;

string_enum! {
    /// What disagrees.
    Kind {
        /// No document of the domain has an attachment, or there is no such domain.
        Absent = "absent",
        /// An attachment is in transition, and nobody works on it.
        Unfinished = "unfinished",
        /// The record says something else of an attachment than the documents.
        Outdated = "outdated",
        /// The running guest lacks a device that its definition has.
        NotLive = "not-live",
        /// The definition lacks a device that is to survive a power cycle.
        NotDefined = "not-defined",
        /// The definition has a device that was for this run only.
        Defined = "defined",
        /// A domain has the device of an attachment that has ended, or a domain or the host a mediated device whose
        /// record has ended.
        Stray = "stray",
        /// A domain has a device under our alias, and there is no record of it, or one that has ended although nobody
        /// asked for the device to go.
        Unrecorded = "unrecorded",
        /// Two things that cannot both be so.
        Conflict = "conflict",
        /// A device on record is in a domain, and hotslot did not put it there.
        Foreign = "foreign",
        /// The host lacks a device that a server has, or the host itself.
        DeviceGone = "device-gone",
        /// A device is promised to a server, and no attachment says why.
        Unattached = "unattached",
        /// A device that nobody has any more is not with its host driver again.
        NoHostDriver = "no-host-driver",
        /// A device that the host itself has is not bound as its accelerator says.
        OtherDriver = "other-driver",
        /// A domain cannot be read.
        Unread = "unread",
    }
}

string_enum! {
    /// Who says something.
    Source {
        /// hotslot's records.
        Record = "record",
        /// The running guest's document.
        Live = "live",
        /// The domain's definition.
        Definition = "definition",
        /// The host.
        Host = "host",
    }
}

/// When something is done, the earliest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trigger {
    /// As soon as it is seen.
    Event,
    /// When a device came into a guest, or a guest's life went on.
    Arrival,
    /// With the next full comparison.
    Round,
    /// When somebody asks for it.
    Repair,
}

/// What would be done about a disagreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The record follows; a mediated device that no document has is removed from the host first.
    Settle(Box<Assignment>, Observation),
    /// A mediated device whose record has ended is taken away from the host.
    TakeAway(Box<Assignment>),
    /// The attachment gets a record.
    Adopt(Box<Adoption>),
    /// The guest is asked again to let the device go.
    AskAgain(Box<Assignment>),
    /// The device is taken out of the domain.
    TakeOut {
        /// The record, as if it were of the server that has the device.
        row: Box<Assignment>,
        /// Whether that is safe at any time: what a failed attach left, and its caller was told so.
        left_over: bool,
    },
    /// The device is plugged into the running guest.
    Plug(Box<Assignment>),
    /// The device is put into the definition.
    Define(Box<Assignment>),
    /// The device is taken out of the definition.
    Undefine(Box<Assignment>),
    /// The device goes back to its host driver.
    GiveBack(AttachmentId),
    /// The promise is forgotten.
    Free(DeviceId),
    /// Nothing, for hotslot cannot know what is right: what a person can do.
    Manual(String),
}

impl Action {
    /// When it is done; none when it is a person's.
    pub fn occasion(&self) -> Option<Trigger> {
        match self {
            Self::Settle(..) | Self::TakeAway(_) | Self::Adopt(_) | Self::GiveBack(_) => Some(Trigger::Event),
            // Not at every event: a guest that refuses is heard of, too.
            Self::TakeOut { left_over: true, .. } => Some(Trigger::Arrival),
            Self::AskAgain(_) => Some(Trigger::Round),
            Self::Plug(_)
            | Self::Define(_)
            | Self::Undefine(_)
            | Self::Free(_)
            | Self::TakeOut { left_over: false, .. } => Some(Trigger::Repair),
            Self::Manual(_) => None,
        }
    }
}

/// For people.
impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Settle(row, seen) if is_gone(seen) && row.kind() == AssignmentKind::Mdev => {
                "the mediated device is taken away from the host, and recorded as ended"
            }
            Self::Settle(_, seen) if is_gone(seen) => {
                "the attachment is recorded as ended, and its device as free"
            }
            Self::Settle(_, Observation::GivenUp { .. }) => "the attach is undone",
            Self::Settle(..) => "the record follows the documents",
            Self::TakeAway(_) => "the mediated device is taken away from the host",
            Self::Adopt(_) => "the attachment is put on record",
            Self::AskAgain(_) => "the guest is asked again to let it go",
            Self::TakeOut { .. } => "it is taken out of the domain",
            Self::Plug(_) => "it is plugged into the running guest",
            Self::Define(_) => "it is put into the definition",
            Self::Undefine(_) => "it is taken out of the definition",
            Self::GiveBack(_) => "it is given back to its host driver",
            Self::Free(_) => "the device is recorded as free",
            Self::Manual(what) => what,
        })
    }
}

/// Whether the device is in no document any more.
pub fn is_gone(seen: &Observation) -> bool {
    match seen {
        Observation::Removed { .. }
        | Observation::Absent
        | Observation::DomainStopped
        | Observation::DomainGone => true,
        Observation::Present { .. }
        | Observation::Verified { .. }
        | Observation::Restarted
        | Observation::AskedToDetach
        | Observation::GivenUp { .. }
        | Observation::DetachRefused { .. }
        | Observation::StillThere { .. }
        | Observation::AttachRefused { .. }
        | Observation::HostAway { .. } => false,
    }
}

/// One disagreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What disagrees.
    pub kind: Kind,
    /// The server that it is about, and its name where there is a domain.
    pub server: Option<(ServerId, Option<String>)>,
    /// The attachment that it is about.
    pub attachment: Option<AttachmentId>,
    /// Where the host has the device.
    pub address: Option<PciAddress>,
    /// What is said by whom.
    pub said: Vec<(Source, String)>,
    /// What would be done.
    pub action: Action,
}

impl Finding {
    /// Whether two findings are of the same thing, whatever is said of it now.
    pub fn is_of(&self, other: &Self) -> bool {
        let thing = |finding: &Self| {
            let server = finding.server.as_ref().map(|(id, _)| *id);
            (finding.kind, server, finding.attachment, finding.address)
        };
        thing(self) == thing(other)
    }
}

/// The state on record and its reason, for people.
pub(super) fn record(row: &Assignment) -> String {
    let what = match row {
        Assignment::Attachment(_) | Assignment::Binding(_) => None,
        Assignment::Mdev(row) => Some(format!("mediated device {} of type {}", row.id, row.mdev_type)),
    };
    let said: Vec<_> = what.as_deref().into_iter().chain(row.reason()).collect();
    match said.is_empty() {
        true => row.state().to_string(),
        false => format!("{}: {}", row.state(), said.join("; ")),
    }
}
