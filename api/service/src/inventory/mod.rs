//! The assignable devices of each host: discovery keeps the device table current, the API changes the rules, and
//! guards, IOMMU groups and foreign domains make devices unavailable.

mod availability;
mod catalog;
mod change;
mod discover;

pub(crate) use availability::open_nodes;
pub use availability::{Availability, DevicesByAddress, HostDrivers};
pub use catalog::Catalog;
pub(crate) use change::read_rules;
pub use change::{Change, Preview, PreviewedFunction};
