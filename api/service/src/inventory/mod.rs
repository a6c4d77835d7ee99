//! What of each host may be given away: the device table follows the host, the rules are changed, and what guards,
//! IOMMU groups and other domains hold back is known.

mod catalog;
mod change;
mod discover;
mod offer;

pub use catalog::Catalog;
pub use change::Change;
pub(crate) use change::read_rules;
pub use offer::{Availability, HostDrivers};
