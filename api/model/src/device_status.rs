//! Nova's device states: what each deed makes of a device, and of its PF or VFs.
//!
//! ```text
//!   available ──Claim──▶ claimed ──Allocate──▶ allocated        Free: back to available
//!       │ ▲
//!       ▼ │  a relative (the PF of a VF, a VF of a PF) is claimed: unclaimable; is allocated: unavailable
//! ```
//! A PF and its VFs are never both promised: the PF's memory and its VFs' are one. VFs of one PF do not exclude
//! each other. Sources: `nova/objects/pci_device.py`, and `PciDevTracker`.

use crate::device::DeviceStatus;
use crate::string_enum;

string_enum! {
    /// What happens to a device, or to a relative of it.
    DeviceEvent {
        /// It is promised to a server.
        Claim = "claim",
        /// It is in its server.
        Allocate = "allocate",
        /// Its server has it no longer.
        Free = "free",
        /// It is gone from the host, or from what may be given away.
        Remove = "remove",
        /// Its row is put aside.
        Delete = "delete",
        /// A relative is promised, and none is in a server.
        RelativeClaimed = "relative-claimed",
        /// A relative is in a server.
        RelativeAllocated = "relative-allocated",
        /// No relative is promised or in a server.
        RelativesFree = "relatives-free",
    }
}

/// A deed that a device's state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device that is {status} does not take `{deed}`")]
pub struct InvalidTransition {
    /// What the device is.
    pub status: DeviceStatus,
    /// What was to happen.
    pub deed: DeviceEvent,
}

impl DeviceStatus {
    /// What a deed makes of a device of this status. The whole table is `tests/data/device_status.json`.
    ///
    /// # Errors
    /// [`InvalidTransition`]; then the deed must not be done, nor the others of its request.
    pub fn on(self, deed: DeviceEvent) -> Result<Self, InvalidTransition> {
        match (self, deed) {
            (Self::Available, DeviceEvent::Claim) => Ok(Self::Claimed),
            (Self::Available | Self::Claimed, DeviceEvent::Allocate) => Ok(Self::Allocated),
            (Self::Claimed | Self::Allocated, DeviceEvent::Free) => Ok(Self::Available),
            (Self::Available | Self::Unclaimable | Self::Unavailable, DeviceEvent::Remove) => {
                Ok(Self::Removed)
            }
            (Self::Removed, DeviceEvent::Delete) => Ok(Self::Deleted),

            (Self::Available | Self::Unclaimable | Self::Unavailable, DeviceEvent::RelativeClaimed) => {
                Ok(Self::Unclaimable)
            }
            (Self::Available | Self::Unclaimable | Self::Unavailable, DeviceEvent::RelativeAllocated) => {
                Ok(Self::Unavailable)
            }
            (Self::Available | Self::Unclaimable | Self::Unavailable, DeviceEvent::RelativesFree) => {
                Ok(Self::Available)
            }
            // What is promised itself has no relative that is, so that theirs are free is no news.
            (Self::Claimed | Self::Allocated | Self::Removed | Self::Deleted, DeviceEvent::RelativesFree) => {
                Ok(self)
            }

            (status, deed) => Err(InvalidTransition { status, deed }),
        }
    }

    /// Whether a server has it, or was promised it.
    pub fn is_held(self) -> bool {
        matches!(self, Self::Claimed | Self::Allocated)
    }
}

impl DeviceEvent {
    /// What a device is told of all its relatives.
    pub fn of_relatives(relatives: impl IntoIterator<Item = DeviceStatus>) -> Self {
        relatives.into_iter().fold(Self::RelativesFree, Self::and)
    }

    /// What a device that was told this of some relatives is told of one more: the strongest counts.
    pub fn and(self, relative: DeviceStatus) -> Self {
        match (self, relative) {
            (Self::RelativeAllocated, _) | (_, DeviceStatus::Allocated) => Self::RelativeAllocated,
            (_, DeviceStatus::Claimed) => Self::RelativeClaimed,
            (told, _) => told,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_deed_makes_of_every_status_what_the_table_says() {
        type Table = BTreeMap<String, BTreeMap<String, Option<String>>>;
        let table: Table = serde_json::from_str(include_str!("../tests/data/device_status.json")).unwrap();
        assert_eq!(table.len(), DeviceStatus::ALL.len());
        for (status, deeds) in table {
            assert_eq!(deeds.len(), DeviceEvent::ALL.len(), "{status}");
            for (deed, becomes) in deeds {
                let got = status.parse::<DeviceStatus>().unwrap().on(deed.parse().unwrap());
                assert_eq!(got.ok().map(DeviceStatus::as_str), becomes.as_deref(), "{status} {deed}");
            }
        }
    }

    #[test]
    fn of_several_relatives_the_one_that_is_furthest_counts() {
        use DeviceStatus::{Allocated, Available, Claimed, Unclaimable};
        for (relatives, told) in [
            (vec![], DeviceEvent::RelativesFree),
            (vec![Available, Unclaimable], DeviceEvent::RelativesFree),
            (vec![Available, Claimed], DeviceEvent::RelativeClaimed),
            (vec![Allocated, Claimed], DeviceEvent::RelativeAllocated),
            (vec![Claimed, Allocated, Available], DeviceEvent::RelativeAllocated),
        ] {
            assert_eq!(DeviceEvent::of_relatives(relatives.clone()), told, "{relatives:?}");
        }
    }
}
