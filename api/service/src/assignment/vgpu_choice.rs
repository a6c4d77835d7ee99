//! The types of virtual GPUs that a request asks for, each with the VFs of the host that can be of it.

use std::collections::BTreeMap;

use hotslot_driver::hotplug::{Check, CheckResult};
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Vgpu, VgpuOwner};
use hotslot_model::rules::VgpuChoice;

/// The name of the check of a dry run.
pub(super) const CHECK: &str = "vgpu-type";

/// The choice of each type that is asked for, by the name that the request or the alias gives it.
#[derive(Default)]
pub(super) struct VgpuChoices(BTreeMap<String, VgpuChoice>);

impl VgpuChoices {
    pub(super) fn new(choices: impl IntoIterator<Item = VgpuChoice>) -> Self {
        Self(choices.into_iter().map(|choice| (choice.wanted.clone(), choice)).collect())
    }

    /// Returns the choice of a type.
    pub(super) fn of(&self, wanted: &str) -> Option<&VgpuChoice> {
        self.0.get(wanted)
    }

    /// Whether a VF is to be given a type, because it has none yet.
    pub(super) fn set(&self) -> bool {
        self.0.values().any(VgpuChoice::sets_any)
    }

    /// Returns why no VF of the host can be given a type that is asked for.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.0.values().find_map(|choice| choice.refused.as_deref())
    }
}

/// Returns the type that a device is to be of, as the record of its attachment begins.
pub(super) fn to_be(choice: &VgpuChoice, address: PciAddress) -> Option<Vgpu> {
    Some(Vgpu { id: choice.of(address)?.id.clone(), owner: VgpuOwner::Others })
}

/// The check of a device, for a dry run. `is_next` is whether another VF of its card gets a type by the same request.
pub(super) fn check_of(choice: &VgpuChoice, address: PciAddress, is_next: bool) -> Check {
    let (result, message) = match choice.vfs.get(&address) {
        Some(Ok((of, true))) => (CheckResult::Pass, format!("{address} is of the type {of}")),
        Some(Ok((of, false))) if is_next => (
            CheckResult::Unknown,
            format!(
                "{address} gets the type {of} if enough is left of the card after another VF has got its type, which the \
                 driver tells only then"
            ),
        ),
        Some(Ok((of, false))) => {
            (CheckResult::Pass, format!("{address} gets the type {of} before it is plugged"))
        }
        Some(Err(_)) | None => (CheckResult::Fail, choice.why_not(address).unwrap_or_default()),
    };
    Check { name: CHECK, device: Some(address), result, message, cure: None }
}
