//! The types of virtual GPUs that a request asks for, each with the VFs of the host that can be of it.

use std::collections::BTreeMap;

use hotslot_driver::hotplug::{Check, CheckResult};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vgpu::VgpuVf;
use hotslot_model::assignment::{Vgpu, VgpuOwner};
use hotslot_model::rules::{Inventory, VgpuChoice, same_vgpu_type};

use super::request::AttachRequest;
use crate::error::Error;

/// The name of the check of a dry run.
pub(super) const CHECK: &str = "vgpu-type";

/// The choice of each type that is asked for, by the name that the request or the alias gives it.
#[derive(Default)]
pub(super) struct VgpuChoices {
    choices: BTreeMap<String, VgpuChoice>,
    /// The VFs of the host that are virtual GPUs, as they were found.
    found: Vec<VgpuVf>,
}

impl VgpuChoices {
    pub(super) fn new(choices: impl IntoIterator<Item = VgpuChoice>, found: Vec<VgpuVf>) -> Self {
        let choices = choices.into_iter().map(|choice| (choice.wanted.clone(), choice)).collect();
        Self { choices, found }
    }

    /// Returns the choice of a type.
    pub(super) fn of(&self, wanted: &str) -> Option<&VgpuChoice> {
        self.choices.get(wanted)
    }

    /// Whether a VF is to be given a type, because it has none yet.
    pub(super) fn set(&self) -> bool {
        self.choices.values().any(VgpuChoice::sets_any)
    }

    /// Returns why no VF of the host can be given a type that is asked for.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.choices.values().find_map(|choice| choice.refused.as_deref())
    }

    /// Checks that no alias of a request is of another type than the request, whatever names they give it. While the host
    /// does not tell, no VF can be given the type.
    ///
    /// # Errors
    /// [`Error::Invalid`] when one is.
    pub(super) fn expect_same_types(
        &mut self,
        request: &AttachRequest,
        inventory: &Inventory,
    ) -> Result<(), Error> {
        let Some(wanted) = request.vgpu_type.as_ref().filter(|_| self.refusal().is_none()) else {
            return Ok(());
        };
        for name in request.aliases.iter().map(|part| &part.name) {
            let of = request.alias(inventory, name).and_then(|alias| alias.vgpu_type.as_ref());
            let Some(of) = of.filter(|of| *of != wanted) else { continue };
            match same_vgpu_type(of, wanted, &self.found) {
                Some(true) => {}
                Some(false) => {
                    return Err(Error::Invalid(format!(
                        "vgpu_type: alias `{name}` is of the vGPU type {of}, and {wanted} is requested; leave vgpu_type out, \
                         or ask for an alias without a type"
                    )));
                }
                None => {
                    let reason = format!(
                        "alias `{name}` is of the vGPU type {of}, and {wanted} is requested; no VF of the host can be of \
                         either now, so that it is not known whether both are the same; leave vgpu_type out"
                    );
                    self.choices.insert(wanted.clone(), VgpuChoice::refused(wanted, reason));
                }
            }
        }
        Ok(())
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
