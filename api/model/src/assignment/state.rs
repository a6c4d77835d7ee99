//! The states of an assignment, and how each observation changes them. Every pair of state and observation is in
//! `api/model/tests/data/attachment_state.json`.
//!
//! ```text
//!              Present               DetachRequested           Removed, Absent, DomainStopped, DomainGone
//!  attaching ──────────▶ attached ────────────────▶ detaching ─────▶ detached
//!    │  │                  │ ▲                        ▲  │
//!    │  │ GivenUp          │ └───── DetachRefused ─────┼──┘  (unless it is forced; GivenUp forces it)
//!    │  └──────────────────┼──────────────────────────┘
//!    │ AttachRefused,      │ Removed, Absent, DomainStopped, DomainGone
//!    │ Removed, Absent, …  └────────▶ detached
//!    ▼
//!  failed
//! ```
//! [`Observation::StillThere`], [`Observation::HostAway`] and [`Observation::Verified`] change the reason or the address,
//! not the state.
//!
//! Handlers, events and reconciliation all settle through [`State::on`]. `detached` and `failed` are final.

use hotslot_driver::pci::PciAddress;
use serde::Deserialize;

use crate::device::{Device, DeviceStatus};
use crate::device_status::DeviceEvent;
use crate::id::RequestId;
use crate::string_enum;

string_enum! {
    /// The state of an assignment.
    State {
        /// The device is reserved. libvirt may have been requested to attach it.
        Attaching = "attaching",
        /// The device is in the domain, or bound for the host.
        Attached = "attached",
        /// The device is to be released. The guest may have received an unplug request, and may still have the device.
        Detaching = "detaching",
        /// The device is gone from the domain, or bound to its former host driver.
        Detached = "detached",
        /// The device was never attached.
        Failed = "failed",
    }
}

/// An observation of an assignment, or a decision about it.
///
/// It can be read from JSON, so that the data files of tests can name each observation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Observation {
    /// The device is there: a document of the domain has it, or it is bound for the host.
    Present {
        /// The address in the guest, computed from the document.
        inner: Option<PciAddress>,
        /// Whether the running domain does not have it, so that it comes with the next start.
        only_in_definition: bool,
        /// Whether the guest is still in the run in which a verified address was seen, as far as that is known.
        #[serde(default = "yes")]
        same_run: bool,
    },
    /// The guest's agent, or QEMU's monitor, showed the device at this address.
    Verified {
        /// The address in the guest.
        address: PciAddress,
        /// The run of the guest (libvirt's domain id).
        #[serde(default)]
        run: Option<u32>,
    },
    /// The guest was started or rebooted, so its firmware has numbered the buses again.
    Restarted,
    /// A detach was requested.
    DetachRequested,
    /// Its attach, or another attach of the same request, failed. Whatever is there must be taken back.
    GivenUp {
        /// The reason, for people.
        reason: String,
    },
    /// The guest refused to release it.
    DetachRefused {
        /// The reason, for people.
        reason: String,
    },
    /// The device has not gone yet, or could not be requested.
    StillThere {
        /// The reason, for people.
        reason: String,
    },
    /// libvirt refused to attach it, or was not requested to.
    AttachRefused {
        /// The reason, for people.
        reason: String,
    },
    /// It was released: no document of the domain has it, or it has its former host driver.
    Removed {
        /// The reason for that state, for people.
        reason: Option<String>,
    },
    /// The domain runs, and none of its documents has the device.
    Absent,
    /// The domain is shut off, and its definition does not have the device.
    DomainStopped,
    /// There is no such domain on the host.
    DomainGone,
    /// The host is unreachable, or the outcome of a call is not known.
    HostAway {
        /// The reason, for people.
        reason: String,
    },
}

/// Begins the reason of an attached mediated device that no domain has any more, and that could not be removed from the
/// host yet. The reason is removed when a domain has the device again.
pub const NOT_IN_SERVER: &str = "no server has it any more, and it is not removed from the host yet: ";
const ONLY_IN_DEFINITION: &str = "only in the domain's definition: the running guest does not have it, and gets it with \
                                  the next start if the host has it then";
const CUT_OFF: &str = "the attach was interrupted before the device was plugged";
const LEFT_OPEN: &str = "the attach was interrupted, and the domain does not have the device; whether its guest had it \
                         meanwhile is not known";
const TAKEN: &str = "removed from the domain outside of hotslot";
const POWER: &str = "the server was shut off, and its definition has no such device";
const NO_SERVER: &str = "the server is gone";

/// The facts of a row, besides its state, that decide what an observation changes.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The address in the guest.
    pub inner: Option<InnerAddress>,
    /// The reason for the state, for people.
    pub reason: Option<&'a str>,
    /// Whether the device has to go even if its guest refuses.
    pub forced: bool,
    /// Whether libvirt was requested to attach it, or may have been.
    pub plug_requested: bool,
}

impl State {
    /// Whether the state is final.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Detached | Self::Failed)
    }

    /// Returns the status of a device whose assignment has this state.
    pub fn device_status(self) -> DeviceStatus {
        match self {
            Self::Attaching => DeviceStatus::Claimed,
            Self::Attached | Self::Detaching => DeviceStatus::Allocated,
            Self::Detached | Self::Failed => DeviceStatus::Available,
        }
    }

    /// Returns the event for a device whose assignment, made by `request`, has come to this state; `None` when the device
    /// keeps its status.
    pub fn device_event(self, device: &Device, request: RequestId) -> Option<DeviceEvent> {
        match self.device_status() {
            wanted if wanted == device.status => None,
            // An assignment that has ended must not free a device that another request has reserved.
            DeviceStatus::Available => (device.request == Some(request)).then_some(DeviceEvent::Free),
            DeviceStatus::Allocated => Some(DeviceEvent::Allocate),
            // No observation leads to `attaching`: the reservation makes the row and claims the device.
            DeviceStatus::Claimed
            | DeviceStatus::Removed
            | DeviceStatus::Deleted
            | DeviceStatus::Unclaimable
            | DeviceStatus::Unavailable => None,
        }
    }

    /// Returns the state of all mediated devices of one parent together. `open` are the states of those that have not
    /// ended. The parent is claimed while all of them are attaching, allocated while one may be in a guest, and free after
    /// the last one has ended.
    pub fn together(open: &[Self]) -> Self {
        if open.is_empty() {
            Self::Detached
        } else if open.iter().all(|state| *state == Self::Attaching) {
            Self::Attaching
        } else {
            Self::Attached
        }
    }

    /// Returns what an observation makes of a row in this state; `None` when nothing changes.
    pub fn on(self, record: Record<'_>, observation: &Observation) -> Option<Settled> {
        let Record { inner, reason, forced, .. } = record;
        let (state, next_reason, next_inner) = self.next(record, observation)?;
        // An attach that was given up is never completed, even if the guest refuses to release the device.
        let given_up = self == Self::Attaching && matches!(observation, Observation::GivenUp { .. });
        let next_forced = forced || given_up;
        let differs = (state, next_reason, next_inner, next_forced) != (self, reason, inner, forced);
        differs.then(|| Settled {
            state,
            reason: next_reason.map(str::to_owned),
            inner: next_inner,
            forced: next_forced,
        })
    }

    /// The transition table: the state, its reason and the address in the guest after an observation. `None` when the
    /// observation does not apply to this state.
    fn next<'a>(
        self,
        record: Record<'a>,
        observation: &'a Observation,
    ) -> Option<(Self, Option<&'a str>, Option<InnerAddress>)> {
        let Record { inner, reason, forced, plug_requested } = record;
        match (self, observation) {
            (Self::Detached | Self::Failed, _) => None,

            (Self::Attaching, Observation::Present { inner: seen, only_in_definition, same_run }) => {
                let note = only_in_definition.then_some(ONLY_IN_DEFINITION);
                Some((Self::Attached, note, merge(inner, *seen, *same_run)))
            }
            (Self::Attached, Observation::Present { inner: seen, only_in_definition, same_run }) => {
                // Keep the reason of a refused detach until the next request.
                let is_over =
                    |reason: &str| reason == ONLY_IN_DEFINITION || reason.starts_with(NOT_IN_SERVER);
                let earlier = reason.filter(|reason| !is_over(reason));
                let note = if *only_in_definition { Some(ONLY_IN_DEFINITION) } else { earlier };
                Some((Self::Attached, note, merge(inner, *seen, *same_run)))
            }
            // The device is still there, and its reason is recorded already.
            (Self::Detaching, Observation::Present { inner: seen, same_run, .. }) => {
                Some((Self::Detaching, reason, merge(inner, *seen, *same_run)))
            }

            (Self::Attached | Self::Detaching, Observation::Verified { address, run }) => {
                let inner = InnerAddress { address: *address, source: InnerSource::Verified, run: *run };
                Some((self, reason, Some(inner)))
            }
            // An address that was verified before the restart counts as computed until the guest shows it again.
            (Self::Attached | Self::Detaching, Observation::Restarted) => {
                Some((self, reason, inner.map(|inner| InnerAddress::computed(inner.address))))
            }
            (Self::Attaching, Observation::Verified { .. } | Observation::Restarted) => None,

            // The reason for which it must go is recorded already.
            (Self::Detaching, Observation::DetachRequested) if forced => None,
            (Self::Attached | Self::Detaching, Observation::DetachRequested) => {
                Some((Self::Detaching, None, inner))
            }
            // A detach cannot be requested while the attach is running.
            (Self::Attaching, Observation::DetachRequested) => None,

            (Self::Attaching, Observation::GivenUp { reason }) => {
                Some((Self::Detaching, Some(reason), inner))
            }
            (Self::Attached | Self::Detaching, Observation::GivenUp { .. }) => None,

            (Self::Detaching, Observation::DetachRefused { reason }) => {
                let state = if forced { Self::Detaching } else { Self::Attached };
                Some((state, Some(reason), inner))
            }
            (Self::Attaching | Self::Attached, Observation::DetachRefused { .. }) => None,

            (Self::Attaching | Self::Attached | Self::Detaching, Observation::StillThere { reason }) => {
                Some((self, Some(reason), inner))
            }

            // The attach has ended, so it was not refused.
            (Self::Attaching, Observation::AttachRefused { reason }) => {
                Some((Self::Failed, Some(reason), None))
            }
            (Self::Attached | Self::Detaching, Observation::AttachRefused { .. }) => None,

            (Self::Attaching, Observation::Removed { reason }) => {
                Some((Self::Failed, reason.as_deref(), None))
            }
            (Self::Attached | Self::Detaching, Observation::Removed { reason }) => {
                Some((Self::Detached, reason.as_deref(), None))
            }

            (Self::Attaching, Observation::Absent | Observation::DomainStopped) => {
                let reason = if plug_requested { LEFT_OPEN } else { CUT_OFF };
                Some((Self::Failed, Some(reason), None))
            }
            (Self::Attached, Observation::Absent) => Some((Self::Detached, Some(TAKEN), None)),
            (Self::Attached, Observation::DomainStopped) => Some((Self::Detached, Some(POWER), None)),
            // This is what was requested.
            (Self::Detaching, Observation::Absent | Observation::DomainStopped) => {
                Some((Self::Detached, None, None))
            }

            (Self::Attaching, Observation::DomainGone) => Some((Self::Failed, Some(NO_SERVER), None)),
            (Self::Attached | Self::Detaching, Observation::DomainGone) => {
                Some((Self::Detached, Some(NO_SERVER), None))
            }

            (Self::Attaching | Self::Detaching, Observation::HostAway { reason }) => {
                Some((self, Some(reason), inner))
            }
            // The guest keeps the device while the host is unreachable.
            (Self::Attached, Observation::HostAway { .. }) => None,
        }
    }
}

/// Returns the address to record when an address was computed. A computed address does not replace one that the guest has
/// shown in the same run.
fn merge(known: Option<InnerAddress>, seen: Option<PciAddress>, same_run: bool) -> Option<InnerAddress> {
    let shown = known.filter(|known| known.source == InnerSource::Verified && same_run);
    shown.or_else(|| seen.map(InnerAddress::computed))
}

string_enum! {
    /// How the address in the guest was obtained.
    InnerSource {
        /// Computed from the domain's topology, with the bus numbering of the guest's firmware.
        Computed = "computed",
        /// Confirmed by the guest's agent or by QEMU's monitor.
        Verified = "verified",
    }
}

/// The address of a device in the guest, and how it was obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InnerAddress {
    /// The address, as the guest's `lspci` shows it.
    pub address: PciAddress,
    /// How it was obtained.
    pub source: InnerSource,
    /// The run of the guest in which it was verified, if that is known.
    pub run: Option<u32>,
}

impl InnerAddress {
    /// Returns an address that was computed from the domain's topology.
    pub fn computed(address: PciAddress) -> Self {
        Self { address, source: InnerSource::Computed, run: None }
    }
}

/// The row after an observation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The new state.
    pub state: State,
    /// The reason for the state, for people.
    pub reason: Option<String>,
    /// The address in the guest.
    pub inner: Option<InnerAddress>,
    /// Whether the device has to go even if its guest refuses.
    pub forced: bool,
}

const fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::device::{DevType, DeviceFacts};
    use crate::id::{DeviceId, HypervisorId};
    use crate::texts::Texts;

    /// A row of `attachment_state.json`.
    #[derive(Debug, Clone, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Row {
        /// The row before the observation.
        is: Kept,
        seen: Observation,
        /// The row after it; null when nothing changes.
        becomes: Option<Kept>,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Kept {
        state: String,
        reason: Option<String>,
        inner: Option<(PciAddress, String)>,
        /// Whether the device has to go even if its guest refuses.
        #[serde(default)]
        forced: bool,
        /// Whether libvirt was requested to attach it. It is not part of the result.
        #[serde(default)]
        plug_requested: bool,
    }

    impl Kept {
        fn of(settled: Settled, plug_requested: bool) -> Self {
            let inner = settled.inner.map(|inner| (inner.address, inner.source.to_string()));
            Self {
                state: settled.state.to_string(),
                reason: settled.reason,
                inner,
                forced: settled.forced,
                plug_requested,
            }
        }

        fn on(&self, seen: &Observation) -> Option<Self> {
            let state: State = self.state.parse().unwrap();
            let inner = self.inner.as_ref().map(|(address, source)| InnerAddress {
                address: *address,
                source: source.parse().unwrap(),
                run: None,
            });
            let (reason, forced, plug_requested) = (self.reason.as_deref(), self.forced, self.plug_requested);
            let record = Record { inner, reason, forced, plug_requested };
            state.on(record, seen).map(|settled| Self::of(settled, plug_requested))
        }
    }

    fn table() -> Vec<Row> {
        serde_json::from_str(include_str!("../../tests/data/attachment_state.json")).unwrap()
    }

    /// Returns the name of an observation in the table.
    fn name(seen: &Observation) -> String {
        let debug = format!("{seen:?}");
        let camel = debug.split([' ', '{']).next().unwrap();
        let mut name = String::new();
        for letter in camel.chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.extend(letter.to_lowercase());
        }
        name
    }

    /// Returns the names of all observations. serde lists them in the error for an unknown one.
    fn names() -> BTreeSet<String> {
        let error = serde_json::from_str::<Observation>(r#""none of them""#).unwrap_err().to_string();
        error.split('`').skip(3).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_transition_table_is_complete_and_so() {
        let mut missing: BTreeSet<(String, String)> = State::ALL
            .iter()
            .flat_map(|state| names().into_iter().map(|name| (state.to_string(), name)))
            .collect();
        assert!(missing.len() >= 60, "{missing:?}");
        for row in table() {
            let after = row.is.on(&row.seen);
            assert_eq!(after, row.becomes, "{:?} on {:?}", row.is, row.seen);
            if let Some(after) = after {
                assert_eq!(after.on(&row.seen), None, "the second time: {:?} on {:?}", row.is, row.seen);
            }
            missing.remove(&(row.is.state, name(&row.seen)));
        }
        assert_eq!(missing, BTreeSet::new(), "no row of the table has these");
    }

    #[test]
    fn a_device_is_promised_until_its_attachment_has_ended() {
        for state in State::ALL {
            assert_eq!(state.device_status().is_held(), !state.is_final(), "{state}");
        }
    }

    #[test]
    fn a_device_follows_its_assignment_unless_another_request_has_it() {
        let (request, another) = (RequestId(Uuid::from_u128(1)), RequestId(Uuid::from_u128(2)));
        let event = |state: State, status: DeviceStatus| {
            let device = Device { status, request: Some(request), ..device() };
            [request, another].map(|request| state.device_event(&device, request))
        };
        let (allocate, free) = (Some(DeviceEvent::Allocate), Some(DeviceEvent::Free));
        for (state, status, events) in [
            (State::Attaching, DeviceStatus::Claimed, [None, None]),
            (State::Attached, DeviceStatus::Claimed, [allocate, allocate]),
            (State::Attached, DeviceStatus::Allocated, [None, None]),
            (State::Detaching, DeviceStatus::Allocated, [None, None]),
            (State::Detached, DeviceStatus::Allocated, [free, None]),
            (State::Failed, DeviceStatus::Claimed, [free, None]),
            (State::Failed, DeviceStatus::Available, [None, None]),
        ] {
            assert_eq!(event(state, status), events, "{state} {status}");
        }
    }

    #[test]
    fn a_parent_is_allocated_while_one_of_its_mediated_devices_may_be_in_a_guest() {
        for (open, together) in [
            (&[][..], State::Detached),
            (&[State::Attaching, State::Attaching], State::Attaching),
            (&[State::Attaching, State::Attached], State::Attached),
            (&[State::Detaching], State::Attached),
        ] {
            assert_eq!(State::together(open), together, "{open:?}");
        }
    }

    fn device() -> Device {
        let facts = DeviceFacts {
            address: "0000:05:00.0".parse().unwrap(),
            vendor_id: "8086".parse().unwrap(),
            product_id: "10c9".parse().unwrap(),
            dev_type: DevType::Pci,
            numa_node: None,
            parent_addr: None,
            extra_info: Texts::default(),
        };
        Device::new(DeviceId(1), Uuid::nil(), HypervisorId(1), facts, 0)
    }

    proptest! {
        /// For any observations in any order: a final state stays, only a requested or failed assignment is `detaching`,
        /// only one that never was attached fails, and an observation that is repeated changes nothing.
        #[test]
        fn any_sequence_keeps_the_rules(
            sequence in prop::collection::vec(prop::sample::select(table()), 0..40)
        ) {
            let mut now = Kept {
                state: State::Attaching.to_string(),
                reason: None,
                inner: None,
                forced: false,
                plug_requested: false,
            };
            let (mut detach_requested, mut was_attached, mut given_up) = (false, false, false);
            for Row { seen, .. } in sequence {
                if let Some(next) = now.on(&seen) {
                    let (before, after): (State, State) =
                        (now.state.parse().unwrap(), next.state.parse().unwrap());
                    prop_assert!(!before.is_final());
                    detach_requested |= matches!(seen, Observation::DetachRequested | Observation::GivenUp { .. });
                    prop_assert!(after != State::Detaching || detach_requested);
                    prop_assert!(after != State::Attaching || before == State::Attaching);
                    prop_assert!(after != State::Failed || !was_attached);
                    prop_assert!(!after.is_final() || next.inner.is_none());
                    given_up |= matches!(seen, Observation::GivenUp { .. });
                    prop_assert!(!given_up || next.forced && after != State::Attached);
                    let verified = |kept: &Kept| {
                        kept.inner.as_ref().is_some_and(|(_, source)| source == "verified")
                    };
                    let anew = seen == Observation::Restarted
                        || matches!(seen, Observation::Present { same_run: false, .. });
                    let kept = !verified(&now) || verified(&next) || after.is_final() || anew;
                    prop_assert!(kept, "a verified address was lost");
                    was_attached |= after == State::Attached;
                    now = next;
                }
                prop_assert_eq!(now.on(&seen), None);
            }
        }
    }
}
