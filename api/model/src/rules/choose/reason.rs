//! Why a device or an IOMMU group is not offered to a request.

use std::sync::Arc;

use hotslot_driver::pci::PciAddress;

use super::candidates::Wanted;
use crate::device::Device;

/// Why a unit is not offered.
pub(super) enum Reason<'a> {
    /// Not what the alias asks for.
    Kind,
    /// Not what the request asks for besides.
    Besides(String),
    InUse,
    /// Its row says that a relative is held.
    Hidden,
    /// Its row says that the host does not have it any more.
    Gone,
    PfHeld(PciAddress),
    VfHeld(PciAddress),
    Withheld(&'a str),
    Numa(String),
    NoGroup,
    /// A member of its group is no device of the table.
    Stranger(PciAddress),
    /// A member of its group cannot be given.
    Member(&'a Arc<Device>, Box<Self>),
    /// Its group has a PF and a VF of it.
    Family(PciAddress),
}

/// Reasons that are counted together, in the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Category {
    Besides,
    InUse,
    Relative,
    Withheld,
    Busy,
    Numa,
    Group,
    Gone,
}

impl Category {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Besides => "ruled out by what the request asks for besides",
            Self::InUse => "in use",
            Self::Relative => "kept back by a PF or VF in use",
            Self::Withheld => "withheld",
            Self::Busy => "kept back by a host driver in their IOMMU group",
            Self::Numa => "ruled out by NUMA",
            Self::Group => "ruled out by the IOMMU group",
            Self::Gone => "gone from the host",
        }
    }

    /// What helps; none where nothing is known to. `other_way`: whether asking without `whole_group` would.
    pub(super) fn advice(self, other_way: bool) -> Option<&'static str> {
        match self {
            Self::Besides => Some("ask for what a device_spec says of them"),
            Self::InUse | Self::Relative => Some("detach one"),
            Self::Withheld => Some("see to what withholds them (`hotslot explain DEVICE`)"),
            Self::Numa => Some("ask with another numa_policy"),
            Self::Group => other_way.then_some("ask without whole_group"),
            Self::Gone => Some("look where the host has them now"),
            // That depends on the group: see `Siblings`.
            Self::Busy => None,
        }
    }
}

impl Reason<'_> {
    /// None for what was not asked for.
    pub(super) fn category(&self) -> Option<Category> {
        match self {
            Self::Kind => None,
            Self::Besides(_) => Some(Category::Besides),
            Self::InUse => Some(Category::InUse),
            Self::Hidden | Self::PfHeld(_) | Self::VfHeld(_) => Some(Category::Relative),
            Self::Withheld(_) => Some(Category::Withheld),
            Self::Numa(_) => Some(Category::Numa),
            Self::Member(_, reason) => reason.category(),
            Self::NoGroup | Self::Stranger(_) | Self::Family(_) => Some(Category::Group),
            Self::Gone => Some(Category::Gone),
        }
    }

    /// The reason as it is told of a device.
    pub(super) fn of(&self, device: &Device, wanted: &Wanted<'_>) -> String {
        match self {
            // A group has members of other kinds, too.
            Self::Kind => match &wanted.alias.mismatch(&device.facts)[..] {
                [] => "the alias does not ask for it".to_owned(),
                keys => format!("the alias does not ask for it: {}", keys.join("; ")),
            },
            // Not for whom: a refusal is read by others than the owner.
            Self::InUse | Self::Hidden | Self::Gone => format!("it is {}", device.status),
            Self::PfHeld(pf) => format!("its PF {pf} is in use"),
            Self::VfHeld(vf) => format!("its VF {vf} is in use"),
            Self::Withheld(reason) => (*reason).to_owned(),
            Self::Besides(reason) | Self::Numa(reason) => reason.clone(),
            Self::NoGroup => "its IOMMU group is not known".to_owned(),
            Self::Stranger(member) => {
                format!("{member} of its IOMMU group cannot be given: no device_spec lists it")
            }
            Self::Member(member, reason) => {
                format!(
                    "{} of its IOMMU group cannot be given: {}",
                    member.facts.address,
                    reason.of(member, wanted)
                )
            }
            Self::Family(pf) => format!("its IOMMU group has PF {pf} and a VF of it; only one can be given"),
        }
    }
}
