//! The host profile: what it says against what a host has.

use hotslot_driver::binding::HostDriver;
use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vgpu::{VgpuChange, VgpuVf, ids};

use super::finding::{Action, Finding, Kind, Source};
use crate::device::Functions;
use crate::rules::{ProfileChange, ProfileEntry, Profiles, number_of_vfs};

/// The input of the comparison of a host with its profile.
pub struct ProfileComparison<'a> {
    /// The entries for the host.
    pub profiles: &'a Profiles,
    /// All PCI functions of the host.
    pub functions: &'a Functions,
    /// The VFs that are virtual GPUs; `None` when they were not or cannot be read, so that types are not compared.
    pub vgpus: Option<&'a [VgpuVf]>,
    /// Whether a server or the host itself has a function, so that its driver and its type are not compared.
    pub is_used: &'a dyn Fn(PciAddress) -> bool,
    /// Whether the host is another machine, so that its files cannot be changed.
    pub is_remote: bool,
}

impl ProfileComparison<'_> {
    /// Returns all differences, the numbers of VFs first.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<_> = self
            .profiles
            .functions(self.functions)
            .flat_map(|(entry, function)| self.of(entry, function))
            .collect();
        findings.sort_by_key(|finding| finding.kind != Kind::ProfileVfs);
        findings
    }

    /// Returns the differences between a function and the entry that names it.
    pub fn of(&self, entry: &ProfileEntry, function: &HostDevice) -> Vec<Finding> {
        // A type or a driver of VFs that are made anew says nothing.
        if let Some(finding) = self.vf_count(entry, function) {
            return vec![finding];
        }
        if !entry.profile.is_of_vfs() {
            return self.driver(entry, function).into_iter().collect();
        }
        let Role::Physical { vfs, .. } = &function.role else { return Vec::new() };
        let mut findings = Vec::new();
        for vf in vfs.iter().copied().filter(|vf| !(self.is_used)(*vf)) {
            findings.extend(self.vgpu_type(entry, vf));
            findings.extend(self.functions.get(&vf).and_then(|vf| self.driver(entry, vf)));
        }
        findings
    }

    fn vf_count(&self, entry: &ProfileEntry, pf: &HostDevice) -> Option<Finding> {
        let (wanted, address) = (entry.profile.vfs?, pf.address);
        let Role::Physical { max_vfs, vfs } = &pf.role else {
            let advice =
                "nothing: enable SR-IOV in the firmware of the machine and of the card, or correct the entry";
            let action = Action::Manual(advice.to_owned());
            let says = [number_of_vfs(wanted), "it is no PF".to_owned()];
            return Some(finding(Kind::ProfileVfs, entry, address, says, action));
        };
        let now = u32::try_from(vfs.len()).unwrap_or(u32::MAX);
        if now == wanted {
            return None;
        }
        let action = if wanted > *max_vfs {
            let place = entry.place();
            Action::Manual(format!("nothing: it supports at most {max_vfs} VFs; write that into {place}"))
        } else if self.is_remote {
            let first = if now > 0 { "end the use of its VFs, and " } else { "" };
            let reset = if now > 0 && wanted > 0 { "0, and then " } else { "" };
            Action::Manual(format!(
                "nothing, for the host is another machine: {first}write {reset}{wanted} into \
                 /sys/bus/pci/devices/{address}/sriov_numvfs there as root"
            ))
        } else {
            Action::Profile(ProfileChange::Vfs { pf: address, from: now, to: wanted })
        };
        let says = [number_of_vfs(wanted), format!("it has {}", number_of_vfs(now))];
        Some(finding(Kind::ProfileVfs, entry, address, says, action))
    }

    fn vgpu_type(&self, entry: &ProfileEntry, vf: PciAddress) -> Option<Finding> {
        let (wanted, vgpus) = (entry.profile.vgpu_type.as_ref()?, self.vgpus?);
        let found = vgpus.iter().find(|found| found.address == vf);
        let current = found.and_then(|found| found.current.clone());
        if current.as_ref() == Some(wanted) {
            return None;
        }
        let is = match (found, &current) {
            (None, _) => "its driver makes no virtual GPU of it".to_owned(),
            (Some(_), Some(other)) => format!("it has the type {other}"),
            (Some(_), None) => "it has no type".to_owned(),
        };
        let action = match found {
            None => Action::Manual("nothing: load the vGPU driver of the host".to_owned()),
            Some(found) if current.is_none() && !found.creatable.iter().any(|of| of.id == *wanted) => {
                let creatable = ids(found.creatable.iter().map(|of| of.id.as_str()));
                Action::Manual(format!("nothing, for it cannot be of this type now; it can be: {creatable}"))
            }
            Some(_) => {
                let change = VgpuChange { address: vf, from: current, to: Some(wanted.clone()) };
                Action::Profile(ProfileChange::VgpuType(change))
            }
        };
        Some(finding(Kind::ProfileVgpuType, entry, vf, [format!("the vGPU type {wanted}"), is], action))
    }

    fn driver(&self, entry: &ProfileEntry, function: &HostDevice) -> Option<Finding> {
        let (wanted, address) = (entry.profile.driver.as_ref()?, function.address);
        let bound = function.driver.as_deref();
        if bound == Some(wanted) || (self.is_used)(address) {
            return None;
        }
        let unbind = match bound {
            Some(_) => format!("echo {address} >/sys/bus/pci/devices/{address}/driver/unbind; "),
            None => String::new(),
        };
        // libvirt binds vfio-pci, and gives a function that is bound to it back to its host driver.
        let vfio = HostDriver::Vfio.to_string();
        let is_of_libvirt = if *wanted == vfio { !function.is_on_vfio() } else { bound == Some(&vfio) };
        // The VFs of a PF vanish with its driver.
        let has_vfs = matches!(&function.role, Role::Physical { vfs, .. } if !vfs.is_empty());
        let action = if is_of_libvirt && !has_vfs && !self.is_remote {
            let (from, to) = (bound.map(str::to_owned), wanted.clone());
            Action::Profile(ProfileChange::Driver { address, from, to })
        } else {
            Action::Manual(format!(
                "nothing, for the host may use it: as root, echo {wanted} >/sys/bus/pci/devices/{address}/driver_override; \
                 {unbind}echo {address} >/sys/bus/pci/drivers_probe"
            ))
        };
        let is = match &function.driver {
            Some(driver) => format!("it is bound to {driver}"),
            None => "it is bound to no driver".to_owned(),
        };
        Some(finding(Kind::ProfileDriver, entry, address, [format!("the driver {wanted}"), is], action))
    }
}

/// Makes a finding of what the profile says and what the host has.
fn finding(
    kind: Kind,
    entry: &ProfileEntry,
    address: PciAddress,
    [wanted, is]: [String; 2],
    action: Action,
) -> Finding {
    let observations = vec![(Source::Profile, format!("{wanted} ({})", entry.place())), (Source::Host, is)];
    Finding { kind, server: None, attachment: None, address: Some(address), observations, action }
}
