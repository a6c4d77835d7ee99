//! The errors of the service.
//!
//! `http/error.rs` of the routes maps each variant to an HTTP status.

use hotslot_driver::hypervisor;
use hotslot_model::host_mode::HostMode;
use hotslot_model::id::{AttachmentId, ServerId};
use hotslot_model::quota::Exceeded;
use hotslot_model::rules::Shortage;

/// A request failed or was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong. The text says what is wrong and what would be right.
    #[error("{0}")]
    Invalid(String),
    /// No alias has the requested name.
    #[error("no PCI alias is called `{name}`; configured: {known}")]
    UnknownAlias {
        /// The requested name.
        name: String,
        /// The names of the configured aliases, for people.
        known: String,
    },
    /// Fewer devices are free than were requested.
    #[error("host {host}: {shortage}; {advice}")]
    TooFewFree {
        /// The part of the request that cannot be met, and the devices that there are.
        shortage: Box<Shortage>,
        /// The name of the host.
        host: String,
        /// What to do.
        advice: String,
    },
    /// The request requires a service token or the role admin.
    #[error(
        "this requires a service token: an X-Service-Token whose roles have service, as Nova sends it; or the role admin"
    )]
    NeedsService,
    /// The request requires the role admin, because the host itself has the device.
    #[error("this requires the role admin in a project: the host itself has the device")]
    NeedsAdmin,
    /// The request would exceed a quota of a project.
    #[error(transparent)]
    OverQuota(Box<Exceeded>),
    /// The accelerator is in a server of another project.
    #[error(
        "this requires the role admin in a project: the accelerator is in a server of another project, and members \
         may detach only from servers of their own project"
    )]
    NotTheirs,
    /// No host has the server.
    #[error("server {0} not found; GET servers lists all servers")]
    NoServer(ServerId),
    /// The server has no such attachment.
    #[error("PCI attachment {0} of that server not found; GET os-pci_attachments lists all attachments")]
    NoAttachment(AttachmentId),
    /// There is no such accelerator.
    #[error("accelerator {0} not found; GET /accelerators lists all accelerators")]
    NoAccelerator(String),
    /// Something else that the request names does not exist.
    #[error("{0} not found")]
    NotFound(String),
    /// Something else that the request names does not exist, and a list has those that do.
    #[error("{what} not found; GET {list} lists all")]
    NotListed {
        /// The name of the thing that does not exist.
        what: String,
        /// The route of the list.
        list: &'static str,
    },
    /// The requested data existed, but is no longer kept.
    #[error("{0}")]
    Gone(String),
    /// The request conflicts with the current state.
    #[error("{0}")]
    Conflict(String),
    /// The request conflicts with the current state of what it names. The text names nothing else, so that every caller
    /// may read it.
    #[error("{0}")]
    Busy(String),
    /// The host admits no such change now.
    #[error("{reason}")]
    Restricted {
        /// The mode of the host.
        mode: HostMode,
        /// The person or file that decided it, and the remedy.
        reason: String,
    },
    /// The name or id of what the request creates is in use.
    #[error("{0}")]
    AlreadyExists(String),
    /// A row changed between reading and writing.
    #[error("another request changed the record meanwhile; try again")]
    Stale,
    /// Another process has taken over the work of this one.
    #[error(
        "this process had no contact with the database for so long that another process took over its work; check the \
         outcome before you send the request again"
    )]
    TakenOver,
    /// The hypervisor of a host is unreachable.
    #[error("the hypervisor of host {host} is unreachable: {reason}; try again later")]
    HostAway {
        /// The name of the host.
        host: String,
        /// The reason, as far as it is known.
        reason: String,
    },
    /// The queue of a host is full.
    #[error(
        "host {host} has {limit} attaches and detaches that run or wait, which is the limit; try again later"
    )]
    Full {
        /// The name of the host.
        host: String,
        /// The value of `[api] queue`.
        limit: u32,
    },
    /// A call to the hypervisor failed.
    #[error("{context}: {error}")]
    Hypervisor {
        /// The operation that failed, and what is left of it.
        context: String,
        /// The error of the hypervisor. It is part of the text, and therefore no source of this error.
        error: hypervisor::Error,
    },
    /// The records could not be read or changed.
    #[error(transparent)]
    Store(hotslot_store::Error),
    /// An error in hotslot itself.
    #[error("{0}")]
    Internal(String),
}

impl From<hotslot_store::Error> for Error {
    fn from(error: hotslot_store::Error) -> Self {
        use hotslot_store::Error as Of;
        match error {
            Of::Database(_) | Of::Row { .. } => Self::Store(error),
            Of::Stale => Self::Stale,
            Of::TakenOver => Self::TakenOver,
            Of::NoAccelerator(id) => Self::NoAccelerator(id),
            Of::NotFound(what) => Self::NotFound(what),
            Of::Gone(reason) => Self::Gone(reason),
            Of::Invalid(reason) => Self::Invalid(reason),
            Of::Conflict(reason) => Self::Conflict(reason),
            Of::AlreadyExists(reason) => Self::AlreadyExists(reason),
            Of::OverQuota(exceeded) => Self::OverQuota(exceeded),
            Of::Restricted { mode, reason } => Self::Restricted { mode, reason },
            Of::Internal(reason) => Self::Internal(reason),
        }
    }
}
