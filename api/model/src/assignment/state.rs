//! An attachment's states, and what each observation makes of it. Every pair is in `api/model/tests/data/attachment_state.json`.
//!
//! ```text
//!              Present               AskedToDetach             Removed, Absent, DomainStopped, DomainGone
//!  attaching ──────────▶ attached ────────────────▶ detaching ─────▶ detached
//!    │  │                  │ ▲                        ▲  │
//!    │  │ GivenUp          │ └───── DetachRefused ─────┼──┘  not of one that is forced; a given-up one is
//!    │  └──────────────────┼──────────────────────────┘
//!    │ AttachRefused,      │ Removed, Absent, DomainStopped, DomainGone
//!    │ Removed, Absent, …  └────────▶ detached
//!    ▼
//!  failed
//! ```
//! [`Observation::StillThere`], [`Observation::HostAway`] and [`Observation::Verified`] change what is said of a state,
//! not the state.
//!
//! Handlers, events and reconciliation all settle through [`State::on`]. `detached` and `failed` are final.

use hotslot_driver::pci::PciAddress;
use serde::Deserialize;

use crate::device::DeviceStatus;
use crate::string_enum;

string_enum! {
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
///
/// It can be read from JSON, so that data files of tests can name each one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Observation {
    /// It was added, or is there: a document of the domain has it; with the address worked out from that document.
    Present {
        /// Where the guest sees it, or will when it starts.
        inner: Option<PciAddress>,
        /// Whether the domain runs without it, so that it comes with the next start only.
        only_in_definition: bool,
        /// Whether the guest is in the run in which a verified address was seen, as far as that is known.
        #[serde(default = "yes")]
        same_run: bool,
    },
    /// The guest, or QEMU, was seen to have it there.
    Verified {
        /// Where.
        address: PciAddress,
        /// In which run of the guest.
        #[serde(default)]
        run: Option<u32>,
    },
    /// The guest was started or rebooted: its firmware numbers the buses anew.
    Restarted,
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
    /// libvirt refused to plug it, or nobody asked it to.
    AttachRefused {
        /// Why.
        reason: String,
    },
    /// It was taken out, and no document of the domain has it.
    Removed {
        /// The reason for that state, for people.
        reason: Option<String>,
    },
    /// The domain runs, and no document of it has it.
    Absent,
    /// The domain is shut off, and its definition has none.
    DomainStopped,
    /// There is no such domain on the host.
    DomainGone,
    /// The host could not be asked, or its answer is not known.
    HostAway {
        /// Why.
        reason: String,
    },
}

const ONLY_IN_DEFINITION: &str = "only in the domain's definition: it comes with the next start";
const CUT_OFF: &str = "the attach was cut off before the device was plugged";
const LEFT_OPEN: &str = "the attach was cut off, and the domain does not have the device; whether its guest had it \
                         meanwhile is not known";
const TAKEN: &str = "removed from the domain outside of hotslot";
const POWER: &str = "the server was shut off, and its definition has no such device";
const NO_SERVER: &str = "the server is gone";

/// What the record has of an attachment beside its state.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Where the guest sees it.
    pub inner: Option<InnerAddress>,
    /// What there is to say about its state.
    pub reason: Option<&'a str>,
    /// Whether it is to go whatever its guest says.
    pub forced: bool,
    /// Whether libvirt was asked to plug it, or may have been.
    pub asked: bool,
}

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

    /// What an observation makes of an attachment of which the record says this; none when it changes nothing.
    pub fn on(self, record: Record<'_>, observation: &Observation) -> Option<Settled> {
        let Record { inner, reason, forced, asked } = record;
        // An attach that was given up is never completed: its device goes whatever its guest says.
        let forced_then =
            forced || self == Self::Attaching && matches!(observation, Observation::GivenUp { .. });
        let settled = |state, reason: Option<String>, inner| {
            Some(Settled { state, reason, inner, forced: forced_then })
        };
        let next = match (self, observation) {
            (Self::Detached | Self::Failed, _) => None,

            (Self::Attaching, Observation::Present { inner: seen, only_in_definition, same_run }) => {
                let note = only_in_definition.then(|| ONLY_IN_DEFINITION.to_owned());
                settled(Self::Attached, note, merge(inner, *seen, *same_run))
            }
            (Self::Attached, Observation::Present { inner: seen, only_in_definition, same_run }) => {
                // A refused detach is worth knowing until something else is asked.
                let said = reason.filter(|said| *said != ONLY_IN_DEFINITION);
                let note = if *only_in_definition { Some(ONLY_IN_DEFINITION) } else { said };
                settled(Self::Attached, note.map(str::to_owned), merge(inner, *seen, *same_run))
            }
            // It is there still; why it is has been said.
            (Self::Detaching, Observation::Present { inner: seen, same_run, .. }) => {
                settled(Self::Detaching, reason.map(str::to_owned), merge(inner, *seen, *same_run))
            }

            (Self::Attached | Self::Detaching, Observation::Verified { address, run }) => {
                let inner = InnerAddress { address: *address, source: InnerSource::Verified, run: *run };
                settled(self, reason.map(str::to_owned), Some(inner))
            }
            // What the guest showed before is a guess now, until it shows it again.
            (Self::Attached | Self::Detaching, Observation::Restarted) => {
                let guess = inner.map(|inner| InnerAddress::computed(inner.address));
                settled(self, reason.map(str::to_owned), guess)
            }
            (Self::Attaching, Observation::Verified { .. } | Observation::Restarted) => None,

            // Why it has to go has been said.
            (Self::Detaching, Observation::AskedToDetach) if forced => None,
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
                let state = if forced { Self::Detaching } else { Self::Attached };
                settled(state, Some(reason.clone()), inner)
            }
            (Self::Attaching | Self::Attached, Observation::DetachRefused { .. }) => None,

            (Self::Attaching | Self::Attached | Self::Detaching, Observation::StillThere { reason }) => {
                settled(self, Some(reason.clone()), inner)
            }

            // Whose attach is over was not refused.
            (Self::Attaching, Observation::AttachRefused { reason }) => {
                settled(Self::Failed, Some(reason.clone()), None)
            }
            (Self::Attached | Self::Detaching, Observation::AttachRefused { .. }) => None,

            (Self::Attaching, Observation::Removed { reason }) => settled(Self::Failed, reason.clone(), None),
            (Self::Attached | Self::Detaching, Observation::Removed { reason }) => {
                settled(Self::Detached, reason.clone(), None)
            }

            (Self::Attaching, Observation::Absent | Observation::DomainStopped) => {
                let reason = if asked { LEFT_OPEN } else { CUT_OFF };
                settled(Self::Failed, Some(reason.to_owned()), None)
            }
            (Self::Attached, Observation::Absent) => settled(Self::Detached, Some(TAKEN.to_owned()), None),
            (Self::Attached, Observation::DomainStopped) => {
                settled(Self::Detached, Some(POWER.to_owned()), None)
            }
            // As it was asked for.
            (Self::Detaching, Observation::Absent | Observation::DomainStopped) => {
                settled(Self::Detached, None, None)
            }

            (Self::Attaching, Observation::DomainGone) => {
                settled(Self::Failed, Some(NO_SERVER.to_owned()), None)
            }
            (Self::Attached | Self::Detaching, Observation::DomainGone) => {
                settled(Self::Detached, Some(NO_SERVER.to_owned()), None)
            }

            (Self::Attaching | Self::Detaching, Observation::HostAway { reason }) => {
                settled(self, Some(reason.clone()), inner)
            }
            // Its guest goes on with it.
            (Self::Attached, Observation::HostAway { .. }) => None,
        };
        next.filter(|next| {
            (next.state, next.reason.as_deref(), next.inner, next.forced) != (self, reason, inner, forced)
        })
    }
}

/// What a computed address makes of the one that is known: it does not take the place of one that the guest has shown
/// in this run.
fn merge(known: Option<InnerAddress>, seen: Option<PciAddress>, same_run: bool) -> Option<InnerAddress> {
    let shown = known.filter(|known| known.source == InnerSource::Verified && same_run);
    shown.or_else(|| seen.map(InnerAddress::computed))
}

string_enum! {
    /// How an inner address was obtained.
    InnerSource {
        /// Worked out from the domain's topology by the numbering that firmware does.
        Computed = "computed",
        /// The guest's agent or QEMU confirmed it.
        Verified = "verified",
    }
}

/// Where the guest sees a device, and how that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InnerAddress {
    /// The address that the guest's `lspci` shows.
    pub address: PciAddress,
    /// How it was obtained.
    pub source: InnerSource,
    /// The run of the guest in which it was verified, as far as that is known.
    pub run: Option<u32>,
}

impl InnerAddress {
    /// One that was worked out from the domain's topology.
    pub fn computed(address: PciAddress) -> Self {
        Self { address, source: InnerSource::Computed, run: None }
    }
}

/// What an observation makes of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The new state.
    pub state: State,
    /// What there is to say about it.
    pub reason: Option<String>,
    /// Where the guest sees it.
    pub inner: Option<InnerAddress>,
    /// Whether it is to go whatever its guest says.
    pub forced: bool,
}

const fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    /// A row of `attachment_state.json`.
    #[derive(Debug, Clone, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Row {
        /// What the record has.
        is: Kept,
        seen: Observation,
        /// What it has then; null where nothing changes.
        becomes: Option<Kept>,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Kept {
        state: String,
        reason: Option<String>,
        inner: Option<(PciAddress, String)>,
        /// Whether it is to go whatever its guest says.
        #[serde(default)]
        forced: bool,
        /// Whether libvirt was asked to plug it; of no meaning in what an observation makes of it.
        #[serde(default)]
        asked: bool,
    }

    impl Kept {
        fn of(settled: Settled, asked: bool) -> Self {
            let inner = settled.inner.map(|inner| (inner.address, inner.source.to_string()));
            Self {
                state: settled.state.to_string(),
                reason: settled.reason,
                inner,
                forced: settled.forced,
                asked,
            }
        }

        fn on(&self, seen: &Observation) -> Option<Self> {
            let state: State = self.state.parse().unwrap();
            let inner = self.inner.as_ref().map(|(address, source)| InnerAddress {
                address: *address,
                source: source.parse().unwrap(),
                run: None,
            });
            let (reason, forced, asked) = (self.reason.as_deref(), self.forced, self.asked);
            let record = Record { inner, reason, forced, asked };
            state.on(record, seen).map(|settled| Self::of(settled, asked))
        }
    }

    fn table() -> Vec<Row> {
        serde_json::from_str(include_str!("../../tests/data/attachment_state.json")).unwrap()
    }

    /// The name of an observation, as the table has it.
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

    /// The names of all observations that there are, which serde says when it is given another.
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

    proptest! {
        /// Whatever is seen in whatever order: what has ended stays ended, only what was asked to go is
        /// detaching, only what never was attached fails, and the same observation twice changes nothing the
        /// second time.
        #[test]
        fn any_sequence_keeps_the_rules(
            sequence in prop::collection::vec(prop::sample::select(table()), 0..40)
        ) {
            let mut now = Kept {
                state: State::Attaching.to_string(),
                reason: None,
                inner: None,
                forced: false,
                asked: false,
            };
            let (mut asked, mut was_attached, mut given_up) = (false, false, false);
            for Row { seen, .. } in sequence {
                if let Some(next) = now.on(&seen) {
                    let (before, after): (State, State) =
                        (now.state.parse().unwrap(), next.state.parse().unwrap());
                    prop_assert!(!before.is_final());
                    asked |= matches!(seen, Observation::AskedToDetach | Observation::GivenUp { .. });
                    prop_assert!(after != State::Detaching || asked);
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
