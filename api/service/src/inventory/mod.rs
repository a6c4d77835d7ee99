//! The assignable devices of each host: discovery keeps the device table current, the API changes the rules, and
//! guards, IOMMU groups and foreign domains make devices unavailable.

mod catalog;
mod change;
mod discover;
mod offer;

pub use catalog::Catalog;
pub use change::Change;
pub(crate) use change::read_rules;
pub use offer::{Availability, HostDrivers};
