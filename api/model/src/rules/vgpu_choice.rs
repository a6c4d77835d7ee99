//! Which VFs of a host can be of a type of virtual GPU that a request asks for.

use std::collections::{BTreeMap, HashMap};

use hotslot_driver::pci::PciAddress;
use hotslot_driver::vgpu::{VgpuType, VgpuVf, ids};

/// Which VFs of a host can be of a type.
#[derive(Debug, Clone)]
pub struct VgpuChoice {
    /// The type, as the request names it.
    pub wanted: String,
    /// For each VF that is a virtual GPU: the type that it would be of, and whether it is already; or why it cannot be.
    pub vfs: HashMap<PciAddress, Result<(VgpuType, bool), String>>,
    /// Why no VF of the host can be given a type.
    pub refused: Option<String>,
}

impl VgpuChoice {
    /// Compares the VFs of a host with a type. `kept` are those that keep their types for now, each with the reason.
    pub fn new(wanted: &str, found: &[VgpuVf], kept: &BTreeMap<PciAddress, String>) -> Self {
        let known = found.iter().flat_map(|vf| &vf.creatable);
        let known: BTreeMap<_, _> = known.map(|of| (of.id.as_str(), of)).collect();
        let vf = |vf: &VgpuVf| match (kept.get(&vf.address), &vf.current) {
            (Some(reason), _) => Err(reason.clone()),
            (None, Some(id)) => match known.get(id.as_str()) {
                Some(of) if of.is_named(wanted) => Ok(((*of).clone(), true)),
                // When no VF can be of this type any more, its name is not known.
                None if VgpuType::from_id(id).is_named(wanted) => Ok((VgpuType::from_id(id), true)),
                Some(_) | None => {
                    Err(format!("{} has the vGPU type {id}, which somebody else has set", vf.address))
                }
            },
            (None, None) => match vf.creatable.iter().find(|of| of.is_named(wanted)) {
                Some(of) => Ok((of.clone(), false)),
                None => Err(format!(
                    "{} cannot be of the vGPU type {wanted} now; it can be: {}",
                    vf.address,
                    ids(vf.creatable.iter().map(|of| of.id.as_str()))
                )),
            },
        };
        let vfs = found.iter().map(|found| (found.address, vf(found))).collect();
        Self { wanted: wanted.to_owned(), vfs, refused: None }
    }

    /// Makes the choice of a host on which no VF can be given the type.
    pub fn refused(wanted: &str, reason: String) -> Self {
        Self { wanted: wanted.to_owned(), vfs: HashMap::new(), refused: Some(reason) }
    }

    /// Whether a VF is to be given the type, because it has none yet.
    pub fn sets(&self, address: PciAddress) -> bool {
        matches!(self.vfs.get(&address), Some(Ok((_, false))))
    }

    /// Whether any VF is to be given the type.
    pub fn sets_any(&self) -> bool {
        self.vfs.keys().any(|address| self.sets(*address))
    }

    /// Returns why a device cannot be of the type; `None` when it can.
    pub fn why_not(&self, address: PciAddress) -> Option<String> {
        if let Some(reason) = &self.refused {
            return Some(reason.clone());
        }
        match self.vfs.get(&address) {
            Some(Ok(_)) => None,
            Some(Err(reason)) => Some(reason.clone()),
            None => Some(format!("{address} has no vGPU types, and vgpu_type {} is requested", self.wanted)),
        }
    }

    /// Returns the type that a device is to be of; `None` when it cannot be of it.
    pub fn of(&self, address: PciAddress) -> Option<&VgpuType> {
        Some(&self.vfs.get(&address)?.as_ref().ok()?.0)
    }
}

/// Whether two names are of the same type of virtual GPU, as the VFs of a host tell; `None` when they do not tell, because no
/// VF can be given a type of either name.
pub fn same_vgpu_type(one: &str, other: &str, found: &[VgpuVf]) -> Option<bool> {
    let has_both = |of: &VgpuType| of.is_named(one) && of.is_named(other);
    let mut known = found.iter().flat_map(|vf| &vf.creatable);
    let mut current = found.iter().filter_map(|vf| vf.current.as_deref()).map(VgpuType::from_id);
    if one == other || known.clone().any(has_both) || current.any(|of| has_both(&of)) {
        return Some(true);
    }
    known.any(|of| of.is_named(one) || of.is_named(other)).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vf_can_be_of_the_type_or_has_a_reason() {
        let of = |id: &str, name: &str| VgpuType { id: id.into(), name: name.into() };
        let at = |function: &str| format!("0000:41:00.{function}").parse().unwrap();
        let vf = |function: &str, current: Option<&str>, creatable: &[VgpuType]| VgpuVf {
            address: at(function),
            parent: None,
            current: current.map(str::to_owned),
            creatable: creatable.to_vec(),
        };
        let (small, large) = (of("nvidia-1", "Small"), of("nvidia-2", "Large"));
        let found = [
            vf("1", None, &[small.clone(), large.clone()]),
            vf("2", None, &[small]),
            vf("3", Some("nvidia-2"), &[]),
            vf("4", Some("nvidia-1"), &[]),
            vf("5", Some("nvidia-9"), &[]),
            vf("6", Some("nvidia-2"), &[]),
        ];
        let kept = BTreeMap::from([(at("6"), "it still has the type".to_owned())]);
        for wanted in ["nvidia-2", "2", "Large"] {
            let choice = VgpuChoice::new(wanted, &found, &kept);
            assert_eq!(choice.vfs[&at("1")], Ok((large.clone(), false)), "{wanted}");
            assert_eq!(choice.vfs[&at("3")], Ok((large.clone(), true)), "{wanted}");
            assert!(
                choice.sets(at("1"))
                    && !choice.sets(at("3"))
                    && choice.why_not(at("1")).is_none()
                    && choice.of(at("3")).is_some()
            );
            for (function, says) in [
                ("2", "it can be: nvidia-1"),
                ("4", "the vGPU type nvidia-1, which somebody else has set"),
                ("5", "the vGPU type nvidia-9, which somebody else has set"),
                ("6", "it still has the type"),
                ("7", "has no vGPU types"),
            ] {
                let reason = choice.why_not(at(function)).unwrap();
                assert!(reason.contains(says) && choice.of(at(function)).is_none(), "{reason}");
            }
        }
        for (one, other, same) in [
            ("nvidia-1", "1", Some(true)),
            ("Small", "nvidia-1", Some(true)),
            ("nvidia-9", "9", Some(true)),
            ("nvidia-7", "nvidia-7", Some(true)),
            ("nvidia-1", "Large", Some(false)),
            ("7", "nvidia-2", Some(false)),
            // One of them may be the name of the other.
            ("nvidia-9", "Huge", None),
            ("nvidia-7", "Huge", None),
        ] {
            assert_eq!(same_vgpu_type(one, other, &found), same, "{one}, {other}");
            assert_eq!(same_vgpu_type(other, one, &found), same, "{other}, {one}");
        }
        // Its name is not known, because no VF can be of it any more.
        let choice = VgpuChoice::new("9", &found, &kept);
        assert_eq!(choice.vfs[&at("5")], Ok((VgpuType::from_id("nvidia-9"), true)));
        assert!(!choice.sets_any());
        let choice = VgpuChoice::refused("9", "the host is another machine".to_owned());
        assert_eq!(choice.why_not(at("5")).as_deref(), Some("the host is another machine"));
    }
}
