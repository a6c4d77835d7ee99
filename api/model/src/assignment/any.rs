//! An assignment of any kind, and what all kinds have in common.

use hotslot_driver::pci::PciAddress;

use super::State;
use super::holder::Holder;
use super::state::{InnerAddress, Record, Settled};
use crate::assignment::{Attachment, Binding, Mdev};
use crate::device::Owner;
use crate::id::{AttachmentId, DeviceId, HypervisorId, RequestId, ServerId};
use crate::time::Millis;

/// The kind of an assignment: each kind has a table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AssignmentKind {
    /// A whole function for a server.
    Attachment,
    /// A whole function for the host's own use.
    Binding,
    /// A mediated device for a server.
    Mdev,
}

impl AssignmentKind {
    /// The English noun of the kind, for messages.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Attachment => "attachment",
            Self::Binding => "binding",
            Self::Mdev => "mediated device",
        }
    }
}

/// Names one assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssignmentKey {
    /// The kind, which says in which table the row is.
    pub kind: AssignmentKind,
    /// The id, which is unique over all kinds.
    pub id: AttachmentId,
}

impl std::fmt::Display for AssignmentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.noun(), self.id)
    }
}

/// The row of an assignment of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assignment {
    /// A whole function for a server.
    Attachment(Attachment),
    /// A whole function for the host's own use.
    Binding(Binding),
    /// A mediated device for a server; its function serves others as well.
    Mdev(Mdev),
}

/// Evaluates an expression on the row of any kind.
macro_rules! of_any {
    ($self:expr, $row:ident => $what:expr) => {
        match $self {
            Assignment::Attachment($row) => $what,
            Assignment::Binding($row) => $what,
            Assignment::Mdev($row) => $what,
        }
    };
}

impl Assignment {
    /// The kind.
    pub fn kind(&self) -> AssignmentKind {
        match self {
            Self::Attachment(_) => AssignmentKind::Attachment,
            Self::Binding(_) => AssignmentKind::Binding,
            Self::Mdev(_) => AssignmentKind::Mdev,
        }
    }

    /// The name of this assignment.
    pub fn key(&self) -> AssignmentKey {
        AssignmentKey { kind: self.kind(), id: self.id() }
    }

    /// The id. In a server's domain, the device has the alias `ua-<id>`.
    pub fn id(&self) -> AttachmentId {
        of_any!(self, row => row.id)
    }

    /// The project against whose quota it counts.
    pub fn project(&self) -> Option<&str> {
        match self {
            Self::Attachment(row) => row.project.as_deref(),
            Self::Binding(_) => None,
            Self::Mdev(row) => row.project.as_deref(),
        }
    }

    /// The request that made it; several assignments may come from one request.
    pub fn request(&self) -> RequestId {
        of_any!(self, row => row.request)
    }

    /// The host of the device.
    pub fn hypervisor(&self) -> HypervisorId {
        of_any!(self, row => row.hypervisor)
    }

    /// The server that has the device; `None` when the host itself has it.
    pub fn server(&self) -> Option<ServerId> {
        match self {
            Self::Attachment(row) => Some(row.server),
            Self::Binding(_) => None,
            Self::Mdev(row) => Some(row.server),
        }
    }

    /// The server or host that has the device, for messages.
    pub fn owner(&self) -> Owner {
        self.server().map_or(Owner::Host, Owner::Server)
    }

    /// The function; for a mediated device, its parent.
    pub fn device(&self) -> DeviceId {
        match self {
            Self::Attachment(row) => row.device,
            Self::Binding(row) => row.device,
            Self::Mdev(row) => row.parent,
        }
    }

    /// The accelerator or accelerator request that it was made for; `None` when it was requested by itself.
    pub fn holder(&self) -> Option<Holder> {
        match self {
            Self::Attachment(row) => row.holder,
            Self::Binding(row) => Some(row.holder),
            Self::Mdev(row) => Some(row.holder),
        }
    }

    /// Whether the device is in the domain's persistent definition as well as in the running guest.
    pub fn persistent(&self) -> bool {
        match self {
            Self::Attachment(row) => row.persistent,
            Self::Binding(_) => false,
            Self::Mdev(row) => row.persistent,
        }
    }

    /// Whether the device has to go even if its guest refuses.
    pub fn forced(&self) -> bool {
        of_any!(self, row => row.forced)
    }

    /// Whether it ended although nobody had requested that: its domain was seen without the device, or was gone.
    pub fn unrequested(&self) -> bool {
        match self {
            Self::Attachment(row) => row.unrequested,
            Self::Binding(_) => false,
            Self::Mdev(row) => row.unrequested,
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        of_any!(self, row => row.state)
    }

    /// The reason for the state, for people.
    pub fn reason(&self) -> Option<&str> {
        of_any!(self, row => row.reason.as_deref())
    }

    /// Returns the facts of the row, besides its state, that the state machine uses.
    pub fn record(&self) -> Record<'_> {
        let (reason, forced) = (self.reason(), self.forced());
        match self {
            Self::Attachment(row) => {
                Record { inner: row.inner, reason, forced, plug_requested: row.plug_requested }
            }
            Self::Binding(_) | Self::Mdev(_) => {
                Record { inner: self.inner(), reason, forced, plug_requested: true }
            }
        }
    }

    /// The address at which the guest sees the device.
    pub fn inner(&self) -> Option<InnerAddress> {
        match self {
            Self::Attachment(row) => row.inner,
            Self::Binding(_) => None,
            Self::Mdev(row) => row.inner,
        }
    }

    /// Whether its attach failed and its device still has to be taken back.
    pub fn is_given_up(&self) -> bool {
        let attached_at = of_any!(self, row => row.attached_at);
        self.state() == State::Detaching && attached_at.is_none()
    }

    /// Changes the row to `next`, the outcome of an observation, at the time `now`. `unrequested` is as in
    /// [`Assignment::unrequested`].
    pub fn settle(&mut self, next: Settled, unrequested: bool, now: Millis) {
        let Settled { state, reason, inner, forced } = next;
        let is_attached = (state == State::Attached).then_some(now);
        of_any!(self, row => {
            (row.state, row.reason, row.forced) = (state, reason, forced);
            row.attached_at = row.attached_at.or(is_attached);
        });
        match self {
            Self::Attachment(row) => {
                (row.inner, row.unrequested) = (inner, unrequested);
                (row.updated_at, row.ended_at) = (Some(now), state.is_final().then_some(now));
            }
            Self::Binding(_) => {}
            Self::Mdev(row) => (row.inner, row.unrequested) = (inner, unrequested),
        }
    }

    /// The same row as if it had been made for another server, whose documents have the device.
    #[must_use]
    pub fn in_server(mut self, host: HypervisorId, id: ServerId) -> Self {
        match &mut self {
            Self::Attachment(row) => (row.hypervisor, row.server) = (host, id),
            Self::Binding(row) => row.hypervisor = host,
            Self::Mdev(row) => (row.hypervisor, row.server) = (host, id),
        }
        self
    }
}

/// An assignment before and after an observation.
#[derive(Debug)]
pub struct Change {
    /// The state before.
    pub was: State,
    /// The row as it is now.
    pub row: Assignment,
    /// The address of its device on the host.
    pub address: Option<PciAddress>,
}
