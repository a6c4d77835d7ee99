//! What a server was promised under an alias of ours: a device as a whole, or a mediated device.

use super::State;
use super::state::Record;
use crate::assignment::{Attachment, InnerAddress, Mdev};
use crate::id::{AttachmentId, DeviceId, HypervisorId, RequestId, ServerId};

/// The record that an alias of ours names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Promise {
    /// Of a device as a whole.
    Attachment(Attachment),
    /// Of a mediated device.
    Mdev(Mdev),
}

/// What both kinds of rows have.
macro_rules! of_both {
    ($self:expr, $row:ident => $what:expr) => {
        match $self {
            Promise::Attachment($row) => $what,
            Promise::Mdev($row) => $what,
        }
    };
}

impl Promise {
    /// The id in its alias.
    pub fn id(&self) -> AttachmentId {
        of_both!(self, row => row.id)
    }

    /// The request that it came with.
    pub fn request(&self) -> RequestId {
        of_both!(self, row => row.request)
    }

    /// The host.
    pub fn hypervisor(&self) -> HypervisorId {
        of_both!(self, row => row.hypervisor)
    }

    /// The server.
    pub fn server(&self) -> ServerId {
        of_both!(self, row => row.server)
    }

    /// The device; of a mediated device its parent.
    pub fn device(&self) -> DeviceId {
        match self {
            Self::Attachment(row) => row.device,
            Self::Mdev(row) => row.parent,
        }
    }

    /// Whether it goes into the persistent definition.
    pub fn persistent(&self) -> bool {
        of_both!(self, row => row.persistent)
    }

    /// Where it is on its way.
    pub fn state(&self) -> State {
        of_both!(self, row => row.state)
    }

    /// The reason for that state, for people.
    pub fn reason(&self) -> Option<&str> {
        of_both!(self, row => row.reason.as_deref())
    }

    /// What an observation is judged by.
    pub fn record(&self) -> Record<'_> {
        of_both!(self, row => row.record())
    }

    /// Where the guest sees it.
    pub fn inner(&self) -> Option<InnerAddress> {
        of_both!(self, row => row.inner)
    }

    /// The same, as if it had been made for another server: one whose documents have it.
    #[must_use]
    pub fn in_server(mut self, host: HypervisorId, id: ServerId) -> Self {
        of_both!(&mut self, row => (row.hypervisor, row.server) = (host, id));
        self
    }
}
