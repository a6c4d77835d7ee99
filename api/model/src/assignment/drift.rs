//! Drift: the places where the records, a domain's two documents and the host's devices disagree, and what is to be done
//! about each.
//!
//! ```text
//! comparison   one server: its records against the domain's documents
//! devices      the host's devices: the records against what the host has
//! profile      the host's profile: what the configuration says against what the host has
//! finding      one disagreement: what each source says of it, and the action
//! ```
//! Reconciliation and `GET /drift` use the same findings. An event leads to the actions that are safe at any time, the
//! round every few minutes also requests pending unplugs once more, and a repair does the rest. The service's `repair`
//! carries the actions out.

mod comparison;
mod devices;
mod finding;
mod profile;

pub use comparison::{Comparison, aliases};
pub use devices::{of_binding, of_devices, of_mdev, of_stray_mdev, of_unfinished_binding};
pub use finding::{Action, Finding, Kind, Source, Trigger, is_gone};
pub use profile::ProfileComparison;
