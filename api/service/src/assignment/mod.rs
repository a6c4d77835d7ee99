//! Assignments: a device in a server, or in the use of its host, from the request until it is gone.
//!
//! ```text
//! attach      functions for a server: reserve → plug each → settle all; a failure undoes them all
//! mdev        mediated devices for a server: reserve → make each → plug each → settle all
//! host_use    functions for the host itself: reserve → bind each → settle all
//! release     a detach that is requested: settle `detaching` → release
//! engine      settle, release and undo, for all three kinds
//! reconcile   compares records and host at start, on events, after a reconnect, every few minutes
//! repair      does what `hotslot_model::assignment::drift` found to be done
//! mdev_repair mediated devices that are to go from the host, or are missing there
//! verify      the guest's own view of the address → settle
//! request     what is requested
//! retry       an attach that is sent again with its Idempotency-Key
//! ports       which devices the guest has no port for
//! select      which functions, and whether they could be plugged: also on its own, as a dry run
//! select_mdev, select_host   the same for mediated devices, and for the host's own use
//! policy      what a running guest is asked for, and what is done in it before
//! group       whole IOMMU groups: taken from their host drivers together, and returned to them
//! overdue     what calls that have not returned may still change
//! ```

mod assignments;
pub(crate) mod attach;
mod engine;
mod group;
mod host_use;
mod mdev;
mod mdev_repair;
mod overdue;
mod policy;
mod ports;
pub mod reconcile;
mod release;
mod repair;
pub(crate) mod request;
mod retry;
mod select;
mod select_host;
mod select_mdev;
mod verify;

pub use assignments::Assignments;
pub(crate) use host_use::HostUseRequest;
pub(crate) use mdev::MdevRequest;
pub use ports::portless;
pub(crate) use release::Work;
pub use request::{AttachRequest, DetachRequest, NetworkRequest};
pub use select::DryRun;
