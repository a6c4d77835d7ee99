//! Checks whether devices can be plugged, before any host driver is unbound. libvirt unbinds the host driver before it
//! makes some of these checks, so that a failed attach interrupts the host's use of the device.
//!
//! ```text
//! the domain      server-state
//! each device     guard, not-attached-already, assignable, driver, iommu, group-viable, not-in-use, not-open,
//!                 vfs, reset, bar-window
//! all together    free-port, memlock
//! ```
//! For use on the host itself the checks are guard, assignable, driver, not-in-use and reset; for VFIO also iommu,
//! group-viable, vfs and mdevs; and not-open when a driver is bound.
//!
//! The verdict lists the result of every check. The first check that fails gives the refusal.

mod room;
mod verdict;

use std::collections::HashMap;

pub use self::room::add_ports;
use self::room::{bar_window, free_port, memlock};
use self::verdict::Finding;
pub use self::verdict::{Bar, Check, CheckResult, Facts, Guarded, Policy, Refusal, Verdict};
use crate::device::{HostDevice, Role};
use crate::domain::DomainXml;
use crate::host_driver::HostDriver;
use crate::hypervisor::{DomainState, DomainView, Error, ErrorKind, Hypervisor};
use crate::local::InUse;
use crate::pci::PciAddress;
use crate::topology::Topology;
use crate::vfio::OnVfio;

/// Checks whether all `devices` together can be plugged into a domain.
///
/// # Errors
/// The error of the hypervisor when it cannot be read. A check that fails is no error but part of the verdict.
pub async fn preflight(
    hypervisor: &dyn Hypervisor,
    view: &DomainView,
    devices: &[Facts],
    policy: Policy,
) -> Result<Verdict, Error> {
    let mut verdict = Verdict::new();
    let operation = format!("attach to domain {}", view.info.name);
    verdict.add(&operation, "server-state", None, server_state(view));
    // libvirt adds any device to a definition, and the next start fails. For a shut-off domain look up the devices in
    // use here; for a live attach libvirt checks that itself.
    let holders = match view.live {
        Some(_) => None,
        None => Some(holders(hypervisor).await?),
    };
    let together: Vec<PciAddress> = devices.iter().map(|facts| facts.device.address).collect();
    let mut left = view.live.as_ref().map(|live| Topology::of(live).free_ports());
    for facts in devices {
        let device = &facts.device;
        let with_it = if policy.whole_groups { &together[..] } else { &[] };
        let port = left.as_mut().and_then(|left| left.take(device.express));
        let found = [
            ("guard", guard(facts)),
            ("not-attached-already", not_attached_already(view, device)),
            ("assignable", assignable(device)),
            ("driver", driver(facts)),
            ("iommu", iommu(device)),
            ("group-viable", group_viable(hypervisor, device, with_it).await?),
            ("not-in-use", not_in_use(device, holders.as_ref())),
            ("not-open", not_open(facts)),
            ("vfs", vfs(hypervisor, device, holders.as_ref()).await?),
            ("reset", reset(facts, policy.require_reset)),
            ("bar-window", bar_window(view.live.as_ref(), facts, port)),
        ];
        for (name, finding) in found {
            verdict.add(&operation, name, Some(device.address), finding);
        }
    }
    if let Some(document) = view.live.as_ref().or(view.persistent.as_ref()) {
        verdict.add(&operation, "free-port", None, free_port(view, document, devices));
        verdict.add(&operation, "memlock", None, memlock(document));
    }
    Ok(verdict)
}

/// Checks whether a device can be used on the host itself, bound to the driver `wanted`. Only the `require_reset`
/// of the policy is used.
///
/// # Errors
/// The error of the hypervisor when it cannot be read. A check that fails is no error but part of the verdict.
pub async fn preflight_on_host(
    hypervisor: &dyn Hypervisor,
    facts: &Facts,
    wanted: HostDriver,
    policy: Policy,
) -> Result<Verdict, Error> {
    let device = &facts.device;
    let mut verdict = Verdict::new();
    let holders = Some(holders(hypervisor).await?);
    let mut found = vec![
        ("guard", guard(facts)),
        ("assignable", assignable(device)),
        ("driver", host_driver(facts, wanted)),
        ("not-in-use", not_in_use(device, holders.as_ref())),
    ];
    if !wanted.has(device) {
        found.push(("not-open", not_open(facts)));
    }
    if wanted == HostDriver::Vfio {
        found.push(("iommu", iommu(device)));
        found.push(("group-viable", group_viable(hypervisor, device, &[]).await?));
        found.push(("vfs", vfs(hypervisor, device, holders.as_ref()).await?));
        found.push(("mdevs", mdevs(hypervisor, device).await?));
    }
    found.push(("reset", reset(facts, policy.require_reset)));
    for (name, finding) in found {
        verdict.add(&format!("bind {}", device.address), name, Some(device.address), finding);
    }
    Ok(verdict)
}

fn server_state(view: &DomainView) -> Finding {
    if view.live.is_none() && view.persistent.is_none() {
        return Finding::fail(
            ErrorKind::NotRunning,
            "the domain has neither a live nor a persistent document",
        );
    }
    match view.info.state {
        DomainState::Running | DomainState::Blocked => Finding::pass("the domain is running"),
        DomainState::Paused => {
            Finding::pass("the domain is paused: its guest sees the device when it is resumed")
        }
        DomainState::ShutOff => {
            Finding::pass("the domain is shut off: its guest sees the device when it starts")
        }
        state @ (DomainState::ShuttingDown
        | DomainState::Crashed
        | DomainState::Suspended
        | DomainState::Unknown) => Finding::fail(ErrorKind::NotRunning, format!("the domain is {state:?}"))
            .cure("attach when it is running, paused or shut off"),
    }
}

fn guard(facts: &Facts) -> Finding {
    let address = facts.device.address;
    match &facts.guard {
        None => Finding::pass(format!("the host has no known need for {address}")),
        Some(Guarded { reason, overridden: true }) => {
            Finding::pass(format!("the host needs {address}: {reason}; overridden by [pci] unguarded"))
        }
        Some(Guarded { reason, overridden: false }) => {
            Finding::fail(ErrorKind::NotAssignable, format!("the host needs {address}: {reason}"))
                .cure("take another device; [pci] unguarded in the configuration overrides its guards")
        }
    }
}

fn not_attached_already(view: &DomainView, device: &HostDevice) -> Finding {
    let address = device.address;
    let has = |document: &Option<DomainXml>| {
        document.as_ref().is_some_and(|d| d.hostdevs.iter().any(|hostdev| hostdev.source == address))
    };
    let fail = |message| Finding::fail(ErrorKind::AlreadyDefined, message);
    match (has(&view.live), has(&view.persistent)) {
        (false, false) => Finding::pass(format!("the domain does not have {address}")),
        (true, _) => fail(format!("the running domain already has {address}, attached by someone else"))
            .cure("detach it there first"),
        (false, true) => {
            fail(format!("the domain's definition already has {address}, added by someone else"))
                .cure("remove it there first (virsh detach-device --config)")
        }
    }
}

fn assignable(device: &HostDevice) -> Finding {
    let address = device.address;
    if device.bridge {
        let message = format!("{address} is a PCI bridge or port; only endpoints can be assigned");
        return Finding::fail(ErrorKind::NotAssignable, message);
    }
    Finding::pass(format!("{address} is an endpoint"))
}

/// Checks the driver of a device. libvirt does not rebind an unmanaged one, and refuses it unless it is on VFIO. A managed
/// one must not be taken from the manager of virtual GPUs. Never advises to unbind a function that the host needs, even when
/// its guard is overridden.
fn driver(facts: &Facts) -> Finding {
    let address = facts.device.address;
    let driver = facts.device.driver.as_deref();
    let bound = driver.map_or_else(|| "bound to no driver".to_owned(), |driver| format!("bound to {driver}"));
    if facts.managed {
        let may_be_vgpu = matches!(facts.device.role, Role::Virtual { .. });
        return match facts.device.why_not_managed() {
            Some(why) => Finding::fail(ErrorKind::NotAssignable, why),
            None if may_be_vgpu && facts.device.vfio() == OnVfio::Unknown => Finding::unknown(format!(
                "{address} is {bound}, and whether that driver makes a virtual GPU of it can only be read on its own host; \
                 libvirt binds vfio-pci in its place"
            ))
            .cure("if it is a virtual GPU, give its device_spec \"managed\": \"false\" first"),
            None => Finding::pass(format!("{address} is {bound}; libvirt binds it to VFIO")),
        };
    }
    match facts.device.vfio() {
        OnVfio::Yes => Finding::pass(format!("{address} is {bound}, as its \"managed\": \"false\" requires")),
        OnVfio::Unknown => Finding::unknown(format!(
            "{address} is {bound}, and whether that is a VFIO driver can only be read on its own host; libvirt refuses \
             the function when it is not"
        )),
        OnVfio::No => Finding::fail(
            ErrorKind::NotAssignable,
            format!("{address} is {bound}, and its device_spec has \"managed\": \"false\""),
        )
        .cure(match &facts.guard {
            None => facts.device.how_to_bind(),
            Some(Guarded { reason, .. }) => format!("take another device, for the host needs it ({reason})"),
        }),
    }
}

/// Checks that a function can get the driver `wanted`. libvirt must be allowed to rebind it when that is necessary, and
/// a function without any driver has no host driver to return to.
fn host_driver(facts: &Facts, wanted: HostDriver) -> Finding {
    let device = &facts.device;
    let address = device.address;
    match (wanted, device.driver.as_deref()) {
        (HostDriver::Native, None) => {
            Finding::fail(ErrorKind::NotAssignable, format!("{address} is bound to no driver"))
                .cure("load its driver on the host, or request the driver vfio-pci")
        }
        (HostDriver::Native, Some(driver)) if !HostDriver::Native.has(device) && !facts.managed => {
            let message =
                format!("{address} is bound to {driver}, and its device_spec has \"managed\": \"false\"");
            Finding::fail(ErrorKind::NotAssignable, message).cure(format!(
                "rebind its host driver first (virsh nodedev-reattach {})",
                device.address.node_name()
            ))
        }
        (HostDriver::Native, Some(driver)) => Finding::pass(format!("{address} is bound to {driver}")),
        (HostDriver::Vfio, _) => driver(facts),
    }
}

fn iommu(device: &HostDevice) -> Finding {
    let address = device.address;
    match &device.iommu_group {
        Some(group) => Finding::pass(format!("{address} is in IOMMU group {}", group.number)),
        None => Finding::fail(ErrorKind::NoPassthrough, format!("{address} is in no IOMMU group"))
            .cure("enable the IOMMU in firmware and kernel (intel_iommu=on), see `hotslot doctor`"),
    }
}

/// Checks whether QEMU can open the device's IOMMU group: no other member, except those in `with_it`, is bound to
/// a host driver.
async fn group_viable(
    hypervisor: &dyn Hypervisor,
    device: &HostDevice,
    with_it: &[PciAddress],
) -> Result<Finding, Error> {
    let Some(group) = &device.iommu_group else {
        return Ok(Finding::unknown(format!("{} is in no IOMMU group", device.address)));
    };
    let others = group.members.iter().filter(|member| **member != device.address);
    let mut unknown = None;
    for member in others.filter(|member| !with_it.contains(member)) {
        let sibling = match hypervisor.device(*member).await {
            Ok(sibling) => sibling,
            Err(error) if error.kind == ErrorKind::NoDevice => continue,
            Err(error) => return Err(error),
        };
        if let Some(driver) = sibling.driver.as_deref().filter(|_| sibling.blocks_its_group()) {
            let message = format!(
                "IOMMU group {} of {} is not viable: its member {member} is bound to the host driver \
                 {driver}",
                group.number, device.address
            );
            return Ok(Finding::fail(ErrorKind::GroupNotViable, message)
                .cure(format!("unbind it first (virsh nodedev-detach {})", sibling.address.node_name())));
        }
        if let Some(driver) =
            sibling.driver.as_deref().filter(|_| sibling.vfio() == OnVfio::Unknown && !sibling.bridge)
        {
            unknown = Some(format!(
                "member {member} of IOMMU group {} is bound to {driver}, and whether that is a VFIO driver can only be \
                 read on its own host",
                group.number
            ));
        }
    }
    if let Some(unknown) = unknown {
        return Ok(Finding::unknown(unknown));
    }
    Ok(Finding::pass(format!("no other member of IOMMU group {} is bound to a host driver", group.number)))
}

/// Returns the host devices of all running domains, with the domains' names.
async fn holders(hypervisor: &dyn Hypervisor) -> Result<HashMap<PciAddress, String>, Error> {
    let mut holders = HashMap::new();
    for info in hypervisor.domains().await?.into_iter().filter(|info| info.state.is_active()) {
        let live = match hypervisor.domain(info.uuid).await {
            Ok(view) => view.live,
            Err(error) if error.kind == ErrorKind::NoDomain => None,
            Err(error) => return Err(error),
        };
        let held = live.into_iter().flat_map(|live| live.hostdevs);
        holders.extend(held.map(|held| (held.source, info.name.clone())));
    }
    Ok(holders)
}

/// Checks that no running domain has the device or another member of its IOMMU group, because only one domain can have
/// devices of a group.
fn not_in_use(device: &HostDevice, holders: Option<&HashMap<PciAddress, String>>) -> Finding {
    let Some(holders) = holders else {
        return Finding::unknown("libvirt checks this itself, before it unbinds the host driver");
    };
    let group = device.iommu_group.iter().flat_map(|group| &group.members);
    match std::iter::once(&device.address).chain(group).find_map(|member| holders.get_key_value(member)) {
        None => Finding::pass(format!(
            "no running domain has {} or another member of its IOMMU group",
            device.address
        )),
        Some((held, domain)) => {
            let which = if *held == device.address { "" } else { " (in the same IOMMU group)" };
            Finding::fail(ErrorKind::InUse, format!("{held}{which} is in use by domain {domain}"))
                .cure("detach it there first")
        }
    }
}

/// Checks that no process of the host has a device node of the function open: the process would lose the device, and the
/// kernel may wait for it without end when the host driver is unbound.
fn not_open(facts: &Facts) -> Finding {
    let address = facts.device.address;
    let Some(open) = &facts.open_nodes else {
        return Finding::unknown(format!(
            "whether a process has a device node of {address} open can only be read on its own host"
        ));
    };
    if let Some(InUse { message, cure }) = open.in_use() {
        if let Some(drain) = facts.drain.as_ref().filter(|_| facts.managed) {
            return Finding::pass(format!(
                "{address} is in use on the host: {message}; {drain} runs before its driver is unbound, and nobody may have \
                 it open after that"
            ));
        }
        return Finding::fail(ErrorKind::InUse, format!("{address} is in use on the host: {message}"))
            .cure(cure);
    }
    match &open.hidden {
        _ if open.nodes.is_empty() => Finding::pass(format!("{address} has no device node")),
        None => Finding::pass(format!("no process has {} open", open.names(", "))),
        Some(why) => Finding::unknown(format!(
            "whether a process has {} open is not known: {why}; `fuser -v {}` shows it to root",
            open.names(", "),
            open.names(" ")
        )),
    }
}

/// Checks that no VF of a PF is assigned: unbinding the PF's host driver removes all its VFs, also those that someone
/// else assigned to a guest.
async fn vfs(
    hypervisor: &dyn Hypervisor,
    device: &HostDevice,
    holders: Option<&HashMap<PciAddress, String>>,
) -> Result<Finding, Error> {
    let address = device.address;
    let Role::Physical { vfs, .. } = &device.role else {
        return Ok(Finding::pass(format!("{address} is no PF and has no VFs")));
    };
    for vf in vfs {
        let found = match hypervisor.device(*vf).await {
            Ok(found) => found,
            Err(error) if error.kind == ErrorKind::NoDevice => continue,
            Err(error) => return Err(error),
        };
        let held = holders.and_then(|holders| holders.get(vf)).map(|domain| format!("in domain {domain}"));
        let driver = found.driver.as_deref().filter(|_| found.is_on_vfio());
        if let Some(how) = held.or_else(|| driver.map(|driver| format!("bound to {driver}"))) {
            let message = format!("VF {vf} of {address} is {how}, and taking the PF would remove it");
            let cure = match found.vfio_manager() {
                Some(_) => "detach it where it is used, and remove the VFs of the function first".to_owned(),
                None => format!(
                    "detach it there first, and rebind its host driver (virsh nodedev-reattach {})",
                    found.address.node_name()
                ),
            };
            return Ok(Finding::fail(ErrorKind::InUse, message).cure(cure));
        }
    }
    Ok(Finding::pass(format!("none of the {} VF(s) of {address} is assigned", vfs.len())))
}

/// Checks that no mediated device is on the function: unbinding its host driver would remove it, also from a guest.
async fn mdevs(hypervisor: &dyn Hypervisor, device: &HostDevice) -> Result<Finding, Error> {
    let address = device.address;
    let mdevs = hypervisor.mdevs().await?;
    Ok(match mdevs.iter().find(|mdev| mdev.parent == Some(address)) {
        None => Finding::pass(format!("{address} has no mediated device")),
        Some(mdev) => {
            let message = format!(
                "{address} has mediated device {}, and unbinding its host driver would remove it",
                mdev.uuid
            );
            Finding::fail(ErrorKind::InUse, message)
                .cure(format!("remove it first (virsh nodedev-destroy {})", mdev.name))
        }
    })
}

fn reset(facts: &Facts, required: bool) -> Finding {
    let address = facts.device.address;
    match facts.reset.as_deref() {
        None => Finding::unknown(format!("the reset methods of {address} can only be read on its own host")),
        Some([]) => {
            let message =
                format!("{address} has no reset method: a guest may see the data of the previous guest");
            if required {
                Finding::fail(ErrorKind::NotAssignable, message)
                    .cure("take another device, or allow devices that cannot be reset in the configuration")
            } else {
                Finding::pass(message)
            }
        }
        Some(methods) => Finding::pass(format!("{address} is reset by {}", methods.join(", "))),
    }
}

#[cfg(test)]
mod tests;
