//! The reasons why a device or an IOMMU group is not offered to a request.

use std::sync::Arc;

use hotslot_driver::pci::PciAddress;

use super::candidates::Wanted;
use crate::device::Device;

/// The reason why a unit is not offered.
pub(super) enum Reason<'a> {
    /// It does not match the alias.
    Kind,
    /// It does not meet a further condition of the request, such as a tag or "VFs only".
    Besides(String),
    /// The request is for a VF, which it is not.
    NotVf(String),
    /// It is claimed or allocated.
    InUse,
    /// Its row says that its PF or a VF of it is in use.
    Hidden,
    /// Its row says that the host no longer has it.
    Gone,
    /// Its PF is in use. The row does not say so yet.
    PfHeld(PciAddress),
    /// A VF of it is in use. The row does not say so yet.
    VfHeld(PciAddress),
    /// It is in [`CandidateSet::unavailable`](super::CandidateSet::unavailable), for this reason.
    Unavailable(&'a str),
    /// It cannot be of the type of virtual GPU that is asked for.
    Vgpu(String),
    /// The NUMA policy rules it out.
    Numa(String),
    /// The request is for whole IOMMU groups, and the group of this device is not known.
    NoGroup,
    /// No `device_spec` lists a member of its IOMMU group.
    Stranger(PciAddress),
    /// A member of its IOMMU group is not offered, for the given reason.
    Member(&'a Arc<Device>, Box<Self>),
    /// Its IOMMU group has both a PF and a VF of that PF.
    Family(PciAddress),
}

/// The advice to a request with settings of VFs when the devices are others.
pub(super) const NOT_VF: &str = "leave the settings of VFs out, or ask for an alias whose devices are VFs";

/// Reasons that a message counts together. The order is the order in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Category {
    Besides,
    NotVf,
    InUse,
    Relative,
    Unavailable,
    Vgpu,
    Busy,
    Numa,
    Group,
    Gone,
}

impl Category {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Besides => "excluded by other conditions of the request",
            Self::NotVf => "not VFs",
            Self::InUse => "in use",
            Self::Relative => "blocked by a PF or VF in use",
            Self::Unavailable => "unavailable",
            Self::Vgpu => "not to be had of the vGPU type",
            Self::Busy => "blocked by a host driver in their IOMMU group",
            Self::Numa => "excluded by the NUMA policy",
            Self::Group => "excluded by their IOMMU group",
            Self::Gone => "gone from the host",
        }
    }

    /// Returns what the caller can do, if anything. `other_way` says whether the request would succeed without
    /// `whole_group`, `missing` is the number of devices that the request lacks, and `example` is the first device of the
    /// category.
    pub(super) fn advice(self, other_way: bool, missing: usize, example: PciAddress) -> Option<String> {
        let advice = match self {
            Self::InUse if missing > 1 => {
                return Some(format!("detach {missing} of those in use (GET os-pci_attachments lists them)"));
            }
            Self::Unavailable => {
                return Some(format!("end the use of {example} on the host, or ask for another device"));
            }
            Self::Besides => "ask for values that a device_spec gives them",
            Self::NotVf => NOT_VF,
            Self::InUse | Self::Relative => "detach one (GET os-pci_attachments lists them)",
            Self::Vgpu => "ask for another vGPU type",
            Self::Numa => "ask with another numa_policy",
            Self::Group if other_way => "ask without whole_group",
            Self::Gone => "check whether the host still has them",
            // The advice depends on the group; see `Siblings`.
            Self::Group | Self::Busy => return None,
        };
        Some(advice.to_owned())
    }
}

impl Reason<'_> {
    /// Returns the category, or `None` for a device that does not match the alias.
    pub(super) fn category(&self) -> Option<Category> {
        match self {
            Self::Kind => None,
            Self::Besides(_) => Some(Category::Besides),
            Self::NotVf(_) => Some(Category::NotVf),
            Self::InUse => Some(Category::InUse),
            Self::Hidden | Self::PfHeld(_) | Self::VfHeld(_) => Some(Category::Relative),
            Self::Unavailable(_) => Some(Category::Unavailable),
            Self::Vgpu(_) => Some(Category::Vgpu),
            Self::Numa(_) => Some(Category::Numa),
            Self::Member(_, reason) => reason.category(),
            Self::NoGroup | Self::Stranger(_) | Self::Family(_) => Some(Category::Group),
            Self::Gone => Some(Category::Gone),
        }
    }

    /// Returns the address of the device that has the reason: `device`, or a member of its IOMMU group.
    pub(super) fn subject(&self, device: &Device) -> PciAddress {
        if let Self::Member(member, reason) = self { reason.subject(member) } else { device.facts.address }
    }

    /// Returns the reason as a clause about `device`.
    pub(super) fn of(&self, device: &Device, wanted: &Wanted<'_>) -> String {
        match self {
            // A group may also have members that the alias does not match.
            Self::Kind => match &wanted.alias.mismatch(&device.facts)[..] {
                [] => "the alias does not ask for it".to_owned(),
                keys => format!("the alias does not ask for it: {}", keys.join("; ")),
            },
            // The text does not name the server that uses the device: callers who may not know it read this text.
            Self::InUse | Self::Hidden | Self::Gone => format!("it is {}", device.status),
            Self::PfHeld(pf) => format!("its PF {pf} is in use"),
            Self::VfHeld(vf) => format!("its VF {vf} is in use"),
            Self::Unavailable(reason) => (*reason).to_owned(),
            Self::Besides(reason) | Self::NotVf(reason) | Self::Vgpu(reason) | Self::Numa(reason) => {
                reason.clone()
            }
            Self::NoGroup => "its IOMMU group is not known".to_owned(),
            Self::Stranger(member) => {
                format!("{member} of its IOMMU group is not assignable: no device_spec lists it")
            }
            Self::Member(member, reason) => {
                format!(
                    "{} of its IOMMU group is not available: {}",
                    member.facts.address,
                    reason.of(member, wanted)
                )
            }
            Self::Family(pf) => {
                format!("its IOMMU group has PF {pf} and a VF of it; only one of them can be attached")
            }
        }
    }
}
