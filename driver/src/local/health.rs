//! Whether a function works as before: its configuration space, the PCI Express link that it is on, and the errors that the
//! kernel has counted (AER).

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::reset::reset_methods;
use super::root::{Root, functions};
use crate::pci::{PciAddress, PciClass};

/// The PCI Express link of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortLink {
    /// The number of lanes.
    pub width: u32,
    /// The speed in MT/s: 16000 for 16.0 GT/s.
    pub speed: u32,
}

/// What is known about a function before a use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Condition {
    /// The link of the function, or of its PF; `None` when it is not known.
    pub link: Option<PortLink>,
    /// The fatal errors of the function that the kernel has counted (Linux,
    /// Documentation/ABI/testing/sysfs-bus-pci-devices-aer); `None` when it counts none for this function.
    pub fatal_errors: Option<u32>,
    /// The fatal errors that the root port above the function has received, of any function below it (the same document);
    /// `None` when the host shows no such port, or its kernel counts none for it.
    pub port_errors: Option<u32>,
    /// Whether the host has a way to reset the function; `None` when that is not known.
    pub had_reset: Option<bool>,
    /// The class of the function; `None` when it is not known.
    pub class: Option<PciClass>,
}

/// Returns what the files of the host tell about a function now; its class is not looked up. `port` is the function itself,
/// or its PF.
pub fn condition(sysroot: Option<&Path>, address: PciAddress, port: PciAddress) -> Condition {
    let root = sysroot.map(Root::new);
    let fatal_errors = root.as_ref().and_then(|root| fatal_errors(root, address));
    let port_errors = root.as_ref().and_then(|root| Some(port_errors(root, address)?.1));
    let had_reset = reset_methods(sysroot, address).map(|methods| !methods.is_empty());
    Condition { link: link(sysroot, port), fatal_errors, port_errors, had_reset, class: None }
}

fn fatal_errors(root: &Root, address: PciAddress) -> Option<u32> {
    let counters = root.read(format!("sys/bus/pci/devices/{address}/aer_dev_fatal")).ok()?;
    let total = counters.lines().find_map(|line| line.strip_prefix("TOTAL_ERR_FATAL "))?;
    total.trim().parse().ok()
}

/// Returns the root port above a function, and how many fatal errors it has received. Linux counts only there when a device
/// reports a fatal error: its link may be broken, so that Linux does not ask the device which error it was.
fn port_errors(root: &Root, address: PciAddress) -> Option<(PciAddress, u32)> {
    let path = root.resolve(format!("sys/bus/pci/devices/{address}"))?;
    let total = |port| root.word(format!("sys/bus/pci/devices/{port}/aer_rootport_total_err_fatal"));
    functions(&path).find_map(|port| Some((port, total(port)?.parse().ok()?)))
}

/// Returns the link of a function as it is now. Returns `None` when it is unknown: the host is remote, the function has
/// no PCI Express link, or it is a VF, whose PF has the link.
fn link(sysroot: Option<&Path>, address: PciAddress) -> Option<PortLink> {
    let root = Root::new(sysroot?);
    let width = width(&root, address).filter(|width| *width > 0)?;
    Some(PortLink { width, speed: speed(&root, address)? })
}

/// The number of lanes of the link of a port as it is now; 0 when the link is down.
fn width(root: &Root, port: PciAddress) -> Option<u32> {
    root.word(format!("sys/bus/pci/devices/{port}/current_link_width"))?.parse().ok()
}

/// The speed of the link of a port as it is now, in MT/s.
fn speed(root: &Root, port: PciAddress) -> Option<u32> {
    // `16.0 GT/s PCIe`, or `Unknown`.
    let text = root.word(format!("sys/bus/pci/devices/{port}/current_link_speed"))?;
    let (whole, tenths) = text.split_once(" GT/s")?.0.split_once('.')?;
    let tenths = tenths.parse::<u32>().ok().filter(|tenths| *tenths < 10)?;
    whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(tenths * 100)
}

/// Returns that the kernel has counted fatal errors of a function, or at the root port above it, since a use began; `None`
/// when it has not, or that is not known.
pub fn new_fatal_errors(sysroot: &Path, address: PciAddress, before: Condition) -> Option<String> {
    let root = Root::new(sysroot);
    let more = |now: u32, before: Option<u32>| now.checked_sub(before?).filter(|more| *more > 0);
    let counted = "the kernel has counted fatal PCI Express errors";
    if let Some(more) = fatal_errors(&root, address).and_then(|now| more(now, before.fatal_errors)) {
        return Some(format!("{counted} of {address} while it was used (AER): {more}"));
    }
    let (port, now) = port_errors(&root, address)?;
    let more = more(now, before.port_errors)?;
    Some(format!(
        "{counted} at {port}, the root port above {address}, while {address} was used (AER): {more}"
    ))
}

/// Returns why a function that was just used must not be used again; `None` when nothing is known against it.
///
/// `before` is what was known before the use; its link is that of `port`: the function itself, or its PF. With `slows_down` a lower speed
/// does not count, as of GPUs, which lower it to save power.
pub fn why_unhealthy(
    sysroot: &Path,
    address: PciAddress,
    (port, before): (PciAddress, Condition),
    slows_down: bool,
) -> Option<String> {
    let root = Root::new(sysroot);
    let mut header = [0; 64];
    let config = File::open(root.at(format!("sys/bus/pci/devices/{address}/config")));
    if config.is_ok_and(|mut file| file.read_exact(&mut header).is_ok())
        && header.iter().all(|byte| *byte == 0xff)
    {
        return Some(format!("{address} does not answer: every byte of its configuration space is 0xff"));
    }
    if let Some(reason) = new_fatal_errors(sysroot, address, before) {
        return Some(reason);
    }
    let has_no_reset = || reset_methods(Some(sysroot), address).is_some_and(|methods| methods.is_empty());
    if before.had_reset == Some(true) && has_no_reset() {
        return Some(format!(
            "the host cannot reset {address} any more (its reset_method is empty), and could before it was used"
        ));
    }
    let before = before.link?;
    let width = width(&root, port)?;
    if width == 0 {
        return Some(format!("the PCI Express link of {port} is down"));
    }
    if width < before.width {
        return Some(format!(
            "the PCI Express link of {port} has {width} lanes, and had {} before it was used",
            before.width
        ));
    }
    let speed = speed(&root, port)?;
    let gigatransfers = |speed: u32| f64::from(speed) / 1000.0;
    (speed < before.speed && !slows_down).then(|| {
        format!(
            "the PCI Express link of {port} runs at {} GT/s, and ran at {} GT/s before it was used",
            gigatransfers(speed),
            gigatransfers(before.speed)
        )
    })
}
