//! The network interface of a PF, and the number that a VF has on it.

use std::path::Path;

use super::root::Root;
use crate::pci::PciAddress;

/// Where the settings of a VF are: on the network interface of its PF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VfPort {
    /// The kernel's index of the interface.
    pub interface: u32,
    /// The number of the VF on the PF, from 0.
    pub number: u32,
}

/// Finds the port of a VF.
///
/// # Errors
/// Why there is none, for people.
pub fn vf_port(sysroot: &Path, vf: PciAddress) -> Result<VfPort, String> {
    let root = Root::new(sysroot);
    let pf = root.resolve(format!("sys/bus/pci/devices/{vf}/physfn"));
    let pf = pf.ok_or_else(|| format!("{vf} is no VF, or sysfs does not show it"))?;
    let is_it = |link: &String| {
        let at = root.resolve(pf.join(link));
        at.is_some_and(|at| at.file_name().is_some_and(|name| *name == *vf.to_string()))
    };
    let links = root.list(&pf);
    let number = links.iter().filter(|name| name.starts_with("virtfn")).find(|name| is_it(name));
    let number = number.and_then(|name| name.strip_prefix("virtfn")?.parse().ok());
    let number = number.ok_or_else(|| format!("the PF of {vf} does not list it"))?;
    let interface = root
        .list(pf.join("net"))
        .first()
        .and_then(|name| root.word(pf.join("net").join(name).join("ifindex"))?.parse().ok());
    let interface = interface.ok_or_else(|| {
        format!("the PF of {vf} has no network interface, which has the settings; bind its host driver")
    })?;
    Ok(VfPort { interface, number })
}
