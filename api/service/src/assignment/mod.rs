//! Assignments: devices in a server or in the host's own use, from the request until they are released.
//!
//! ```text
//! attach      functions for a server: reserve → plug each → settle all; a failure undoes them all
//! mdev        mediated devices for a server: reserve → create each → plug each → settle all
//! host_use    functions for the host itself: reserve → bind each → settle all
//! release     a requested detach: settle `detaching` → release
//! engine      settle, release and undo, for all three kinds
//! reconcile   compares records and host at start, on events, after a reconnect, at the configured interval
//! drift       compares the host and its servers with the records, and finds the disagreements
//! repair      acts on the disagreements
//! mdev_repair removes stray mediated devices from the host, and creates missing ones again
//! profile     makes what the profile of a host says, and compares the host with it
//! verify      reads the address from the guest's own view → settle
//! request     the requests for attach and detach
//! retry       an attach that is sent again with its Idempotency-Key
//! prepare     root ports for the next start of a server
//! ports       devices for which the guest has no free port
//! candidates  lists the devices that an alias would take, and why it would not take the others
//! choosing    the devices that attaches have chosen and are about to claim
//! select      chooses functions and checks whether they could be plugged; on its own, the dry run
//! select_mdev, select_host   the same for mediated devices and for the host's own use
//! owner       the project that owns a server
//! policy      which devices a running guest may be requested to release
//! drain       prepares the host for taking a function from its driver
//! scrub       erases what the last owner of a device left
//! health      quarantines a device that does not work during or after a use
//! quiesce     prepares a running guest for the removal of a device
//! group       unbinds whole IOMMU groups from their host drivers, and rebinds them
//! vgpu        the types of VFs that are virtual GPUs; vgpu_choice: those that a request asks for
//! overdue     the assignments that calls which have not returned may still change
//! ```

mod assignments;
pub(crate) mod attach;
mod candidates;
mod choosing;
mod drain;
mod drift;
mod dry_run;
mod engine;
mod group;
mod health;
mod host_use;
mod mdev;
mod mdev_repair;
mod overdue;
mod owner;
mod policy;
mod ports;
mod prepare;
mod profile;
mod quiesce;
pub mod reconcile;
mod release;
mod repair;
pub(crate) mod request;
mod retry;
mod scrub;
mod select;
mod select_host;
mod select_mdev;
mod verify;
mod vf_settings;
mod vgpu;
mod vgpu_choice;

pub use assignments::Assignments;
pub use candidates::{Candidates, CandidatesRequest};
pub use dry_run::DryRun;
pub(crate) use host_use::HostUseRequest;
pub(crate) use mdev::MdevRequest;
pub use prepare::Prepared;
pub use profile::Profiled;
pub(crate) use release::Work;
pub use request::{AttachRequest, DetachRequest, NetworkRequest};
