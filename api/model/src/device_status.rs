//! Nova's device states: how events change the status of a device, and of its PF or VFs.
//!
//! ```text
//!   available ──Claim──▶ claimed ──Allocate──▶ allocated        Free: back to available
//!       │ ▲
//!       ▼ │  a relative (the PF of a VF, a VF of a PF) is claimed: unclaimable; is allocated: unavailable
//! ```
//! A PF and its VFs are never both in use. VFs of one PF do not exclude each other. Sources:
//! `nova/objects/pci_device.py`, and `PciDevTracker`.

use crate::device::{Device, DeviceStatus};
use crate::string_enum;

string_enum! {
    /// An event that changes the status of a device. A relative is the PF of a VF, or a VF of a PF.
    DeviceEvent {
        /// The device is reserved for an assignment.
        Claim = "claim",
        /// The assignment has the device.
        Allocate = "allocate",
        /// The assignment has ended.
        Free = "free",
        /// The device is gone from the host, or no longer assignable.
        Remove = "remove",
        /// The row of the device is marked as deleted.
        Delete = "delete",
        /// A relative is claimed, and none is allocated.
        RelativeClaimed = "relative-claimed",
        /// A relative is allocated.
        RelativeAllocated = "relative-allocated",
        /// No relative is claimed or allocated.
        RelativesFree = "relatives-free",
    }
}

/// The error for an event that the status of a device does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device that is {status} does not allow the event `{event}`")]
pub struct InvalidTransition {
    /// The status of the device.
    pub status: DeviceStatus,
    /// The event.
    pub event: DeviceEvent,
}

impl DeviceStatus {
    /// Returns the status of a device after an event. The whole table is `tests/data/device_status.json`.
    ///
    /// # Errors
    /// Returns [`InvalidTransition`] when the status does not allow the event. The caller must then abandon the whole
    /// change.
    pub fn on(self, event: DeviceEvent) -> Result<Self, InvalidTransition> {
        match (self, event) {
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
            // No relative of a claimed or allocated device is in use, so this event changes nothing.
            (Self::Claimed | Self::Allocated | Self::Removed | Self::Deleted, DeviceEvent::RelativesFree) => {
                Ok(self)
            }

            (status, event) => Err(InvalidTransition { status, event }),
        }
    }

    /// Whether the device is claimed or allocated.
    pub fn is_held(self) -> bool {
        matches!(self, Self::Claimed | Self::Allocated)
    }
}

impl Device {
    /// Marks the row as deleted, unless the device is claimed or allocated.
    pub fn delete(&mut self) {
        let removed = self.status.on(DeviceEvent::Remove);
        if let Ok(deleted) = removed.and_then(|removed| removed.on(DeviceEvent::Delete)) {
            self.status = deleted;
        }
    }
}

impl DeviceEvent {
    /// Returns the event for a device whose relatives have these statuses.
    pub fn of_relatives(relatives: impl IntoIterator<Item = DeviceStatus>) -> Self {
        relatives.into_iter().fold(Self::RelativesFree, Self::and)
    }

    /// Returns the event when one more relative is taken into account: allocated counts before claimed, claimed before
    /// free.
    pub fn and(self, relative: DeviceStatus) -> Self {
        match (self, relative) {
            (Self::RelativeAllocated, _) | (_, DeviceStatus::Allocated) => Self::RelativeAllocated,
            (_, DeviceStatus::Claimed) => Self::RelativeClaimed,
            (event, _) => event,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_event_changes_every_status_as_in_the_table() {
        type Table = BTreeMap<String, BTreeMap<String, Option<String>>>;
        let table: Table = serde_json::from_str(include_str!("../tests/data/device_status.json")).unwrap();
        assert_eq!(table.len(), DeviceStatus::ALL.len());
        for (status, events) in table {
            assert_eq!(events.len(), DeviceEvent::ALL.len(), "{status}");
            for (event, becomes) in events {
                let got = status.parse::<DeviceStatus>().unwrap().on(event.parse().unwrap());
                assert_eq!(got.ok().map(DeviceStatus::as_str), becomes.as_deref(), "{status} {event}");
            }
        }
    }

    #[test]
    fn an_allocated_relative_counts_before_a_claimed_one() {
        use DeviceStatus::{Allocated, Available, Claimed, Unclaimable};
        for (relatives, event) in [
            (vec![], DeviceEvent::RelativesFree),
            (vec![Available, Unclaimable], DeviceEvent::RelativesFree),
            (vec![Available, Claimed], DeviceEvent::RelativeClaimed),
            (vec![Allocated, Claimed], DeviceEvent::RelativeAllocated),
            (vec![Claimed, Allocated, Available], DeviceEvent::RelativeAllocated),
        ] {
            assert_eq!(DeviceEvent::of_relatives(relatives.clone()), event, "{relatives:?}");
        }
    }
}
