//! What can go wrong with a request, in the service's own words.
//!
//! Which HTTP status a variant gets is said in one place, `http/error.rs` of the routes.

use hotslot_driver::hypervisor;
use hotslot_model::id::{AttachmentId, ServerId};
use hotslot_model::rules::Shortage;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong: what, and what would be right.
    #[error("{0}")]
    Invalid(String),
    /// No alias of that name.
    #[error("no PCI alias is called `{name}`; configured: {known}")]
    UnknownAlias {
        /// The name that was asked for.
        name: String,
        /// The names there are, for people.
        known: String,
    },
    /// Fewer devices are free than were asked for.
    #[error("host {host}: {shortage}; {advice}")]
    TooFewFree {
        /// Which part of the request, and what there is.
        shortage: Box<Shortage>,
        /// On which host.
        host: String,
        /// What to do.
        advice: String,
    },
    /// Not theirs to do.
    #[error(
        "this requires a service token: an X-Service-Token whose roles have service, as Nova sends it; or the role admin"
    )]
    NeedsService,
    /// What the host itself has is not theirs.
    #[error("this requires the role admin in a project: the host itself has the device")]
    NeedsAdmin,
    /// A server of another project has it.
    #[error(
        "this requires the role admin in a project: the accelerator is in a server that is not your project's, and \
         members detach from their project's servers only"
    )]
    NotTheirs,
    /// No such server on any host.
    #[error("server {0} not found; GET servers lists those there are")]
    NoServer(ServerId),
    /// No such attachment of that server.
    #[error("PCI attachment {0} of that server not found; GET os-pci_attachments lists those there are")]
    NoAttachment(AttachmentId),
    /// No such accelerator.
    #[error("accelerator {0} not found; GET /accelerators lists those there are")]
    NoAccelerator(String),
    /// Something else that is named in the path is not there.
    #[error("{0} not found")]
    NotFound(String),
    /// What is asked for was there, and is no longer kept.
    #[error("{0}")]
    Gone(String),
    /// The request does not go with the state that things are in.
    #[error("{0}")]
    Conflict(String),
    /// A row was changed by someone else between reading and writing.
    #[error("the record was changed by someone else meanwhile; try again")]
    Stale,
    /// Other processes have gone on with what this one was doing.
    #[error(
        "this process was away from the database for so long, or stood still, that another one has gone on with what it \
         was doing: look what became of it before you ask again"
    )]
    TakenOver,
    /// A host's hypervisor cannot be reached.
    #[error("the hypervisor of host {host} is away: {reason}; try again later")]
    HostAway {
        /// The host's name.
        host: String,
        /// Why, as far as it is known.
        reason: String,
    },
    /// A host has as much to do as may wait for it.
    #[error("host {host} has {limit} attaches and detaches under way or waiting already; try again later")]
    Full {
        /// The host's name.
        host: String,
        /// `[api] queue`.
        limit: u32,
    },
    /// A call to the hypervisor failed.
    #[error("{context}: {source}")]
    Hypervisor {
        /// What was being done, with what became of it.
        context: String,
        /// The failure.
        source: hypervisor::Error,
    },
    /// The records could not be read or changed.
    #[error(transparent)]
    Store(hotslot_store::Error),
    /// Our own fault.
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
            Of::Internal(reason) => Self::Internal(reason),
        }
    }
}
