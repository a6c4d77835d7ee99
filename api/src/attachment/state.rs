//! What an attachment is on its way to, and what each observation makes of it.
//!
//! ```text
//!              Present               AskedToDetach             Gone
//!  attaching ──────────▶ attached ────────────────▶ detaching ─────▶ detached
//!    │  │                  │ ▲                        ▲  │
//!    │  │ GivenUp          │ └───── DetachRefused ─────┼──┘
//!    │  └──────────────────┼──────────────────────────┘
//!    │ Gone                │ Gone
//!    ▼                     └────────▶ detached
//!  failed
//! ```
//! [`Observation::StillThere`] and [`Observation::Verified`] change what is said of a state, not the state.
//!
//! Handlers, events and reconciliation all settle through [`State::on`]. `detached` and `failed` are final.

use hotslot_driver::pci::PciAddress;

use crate::store::{DeviceStatus, InnerAddress, InnerSource, Settled, words};

words! {
    /// An attachment's state.
    State {
        /// The device is promised; libvirt may have been asked.
        Attaching = "attaching",
        /// The device is in the domain.
        Attached = "attached",
        /// It is to go; the guest may have been asked, the device may be there still.
        Detaching = "detaching",
        /// It is gone.
        Detached = "detached",
        /// It never came.
        Failed = "failed",
    }
}

/// What was seen or decided about an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// A document of the domain has it; with the address worked out from that document.
    Present {
        /// Where the guest sees it, or will when it starts.
        inner: Option<PciAddress>,
        /// Whether the domain runs without it, so that it comes with the next start only.
        only_in_definition: bool,
    },
    /// The guest, or QEMU, was seen to have it there.
    Verified {
        /// Where.
        address: PciAddress,
    },
    /// Someone asked for it to go.
    AskedToDetach,
    /// Its attach, or another of its request, failed: whatever of it is there must go.
    GivenUp {
        /// Why.
        reason: String,
    },
    /// The guest refused to let it go.
    DetachRefused {
        /// Why.
        reason: String,
    },
    /// It could not be told, or is not done yet.
    StillThere {
        /// Why.
        reason: String,
    },
    /// No document of the domain has it, or there is no such domain.
    Gone {
        /// How that came.
        reason: Option<String>,
    },
}

const ONLY_IN_DEFINITION: &str = "only in the domain's definition: it comes with the next start";

impl State {
    /// Whether nothing more can happen to it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Detached | Self::Failed)
    }

    /// The status of the device under an attachment of this state.
    pub fn device_status(self) -> DeviceStatus {
        match self {
            Self::Attaching => DeviceStatus::Claimed,
            Self::Attached | Self::Detaching => DeviceStatus::Allocated,
            Self::Detached | Self::Failed => DeviceStatus::Available,
        }
    }

    /// What an observation makes of an attachment; none when it changes nothing. `inner` and `reason` are what
    /// the record has.
    pub fn on(
        self,
        inner: Option<InnerAddress>,
        reason: Option<&str>,
        observation: &Observation,
    ) -> Option<Settled> {
        let settled = |state, reason: Option<String>, inner| Some(Settled { state, reason, inner });
        let next = match (self, observation) {
            (Self::Detached | Self::Failed, _) => None,

            (Self::Attaching, Observation::Present { inner: seen, only_in_definition }) => {
                let note = only_in_definition.then(|| ONLY_IN_DEFINITION.to_owned());
                settled(Self::Attached, note, merge(inner, *seen))
            }
            (Self::Attached, Observation::Present { inner: seen, only_in_definition }) => {
                // A refused detach is worth knowing until something else is asked.
                let said = reason.filter(|said| *said != ONLY_IN_DEFINITION);
                let note = if *only_in_definition { Some(ONLY_IN_DEFINITION) } else { said };
                settled(Self::Attached, note.map(str::to_owned), merge(inner, *seen))
            }
            // It is there still; why it is has been said.
            (Self::Detaching, Observation::Present { inner: seen, .. }) => {
                settled(Self::Detaching, reason.map(str::to_owned), merge(inner, *seen))
            }

            (Self::Attached | Self::Detaching, Observation::Verified { address }) => {
                let inner = InnerAddress { address: *address, source: InnerSource::Verified };
                settled(self, reason.map(str::to_owned), Some(inner))
            }
            (Self::Attaching, Observation::Verified { .. }) => None,

            (Self::Attached | Self::Detaching, Observation::AskedToDetach) => {
                settled(Self::Detaching, None, inner)
            }
            // Nobody may ask that while the attach is out.
            (Self::Attaching, Observation::AskedToDetach) => None,

            (Self::Attaching, Observation::GivenUp { reason }) => {
                settled(Self::Detaching, Some(reason.clone()), inner)
            }
            (Self::Attached | Self::Detaching, Observation::GivenUp { .. }) => None,

            (Self::Detaching, Observation::DetachRefused { reason }) => {
                settled(Self::Attached, Some(reason.clone()), inner)
            }
            (Self::Attaching | Self::Attached, Observation::DetachRefused { .. }) => None,

            (Self::Attaching | Self::Attached | Self::Detaching, Observation::StillThere { reason }) => {
                settled(self, Some(reason.clone()), inner)
            }

            (Self::Attaching, Observation::Gone { reason }) => settled(Self::Failed, reason.clone(), None),
            (Self::Attached | Self::Detaching, Observation::Gone { reason }) => {
                settled(Self::Detached, reason.clone(), None)
            }
        };
        next.filter(|next| (next.state, next.reason.as_deref(), next.inner) != (self, reason, inner))
    }
}

/// A computed address does not take the place of a verified one that says the same.
fn merge(known: Option<InnerAddress>, seen: Option<PciAddress>) -> Option<InnerAddress> {
    match (known, seen) {
        (Some(known), Some(seen)) if known.address == seen => Some(known),
        (_, Some(address)) => Some(InnerAddress { address, source: InnerSource::Computed }),
        (_, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> PciAddress {
        "0000:06:00.0".parse().unwrap()
    }

    fn observations() -> Vec<(&'static str, Observation)> {
        vec![
            ("present", Observation::Present { inner: Some(address()), only_in_definition: false }),
            ("verified", Observation::Verified { address: address() }),
            ("ask", Observation::AskedToDetach),
            ("given-up", Observation::GivenUp { reason: "lost".into() }),
            ("refused", Observation::DetachRefused { reason: "no".into() }),
            ("still", Observation::StillThere { reason: "paused".into() }),
            ("gone", Observation::Gone { reason: None }),
        ]
    }

    /// The whole table: state, observation → state; `-` where nothing changes.
    #[test]
    fn the_transition_table() {
        let table = "
            attaching present attached     attached present attached     detaching present detaching
            attaching verified -           attached verified attached    detaching verified detaching
            attaching ask -                attached ask detaching        detaching ask -
            attaching given-up detaching   attached given-up -           detaching given-up -
            attaching refused -            attached refused -            detaching refused attached
            attaching still attaching      attached still attached       detaching still detaching
            attaching gone failed          attached gone detached        detaching gone detached
            detached present -  detached verified -  detached ask -  detached refused -  detached still -
            detached gone -     failed present -     failed verified -  failed ask -     failed refused -
            failed still -      failed gone -          detached given-up -    failed given-up -";
        let words: Vec<&str> = table.split_whitespace().collect();
        assert_eq!(words.len(), 3 * State::ALL.len() * observations().len(), "every pair once");
        for row in words.chunks(3) {
            let state: State = row[0].parse().unwrap();
            let (_, observation) = observations().into_iter().find(|(name, _)| *name == row[1]).unwrap();
            let next = state.on(None, None, &observation).map_or("-", |settled| settled.state.as_str());
            assert_eq!(next, row[2], "{} on {}", row[0], row[1]);
        }
    }

    #[test]
    fn a_verified_address_stays_verified_until_it_changes() {
        let verified = Some(InnerAddress { address: address(), source: InnerSource::Verified });
        let same = Observation::Present { inner: Some(address()), only_in_definition: false };
        assert_eq!(State::Attached.on(verified, None, &same), None);
        let other: PciAddress = "0000:07:00.0".parse().unwrap();
        let moved = Observation::Present { inner: Some(other), only_in_definition: false };
        let settled = State::Attached.on(verified, None, &moved).unwrap();
        assert_eq!(settled.inner, Some(InnerAddress { address: other, source: InnerSource::Computed }));
    }

    proptest! {
        /// Whatever is seen in whatever order: what has ended stays ended, only what was asked to go is
        /// detaching, and the same observation twice changes nothing the second time.
        #[test]
        fn any_sequence_keeps_the_rules(sequence in prop::collection::vec(0usize..7, 0..40)) {
            let (mut state, mut inner, mut reason) = (State::Attaching, None, None::<String>);
            let mut asked = false;
            for index in sequence {
                let (name, observation) = observations().swap_remove(index);
                let ended = state.is_final();
                if let Some(next) = state.on(inner, reason.as_deref(), &observation) {
                    prop_assert!(!ended);
                    asked |= name == "ask" || name == "given-up";
                    prop_assert!(next.state != State::Detaching || asked);
                    (state, inner, reason) = (next.state, next.inner, next.reason);
                }
                prop_assert_eq!(state.on(inner, reason.as_deref(), &observation), None);
            }
        }
    }
}
