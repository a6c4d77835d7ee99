//! Looks whether devices could be plugged, before any host driver is touched: libvirt unbinds the host driver
//! first and finds out later, and a failed attach takes the host's device down.
//!
//! ```text
//! the domain      server-state
//! each device     guard, not-attached-already, assignable, driver, iommu, group-viable, not-in-use, vfs,
//!                 reset, bar-window
//! all together    free-port, memlock
//! ```
//! For use on the host itself: guard, assignable, driver, not-in-use, reset; on VFIO iommu, group-viable, vfs,
//! mdevs.
//!
//! Every check is made and listed; the first that fails is the refusal.

use std::collections::HashMap;

use crate::device::{HostDevice, Role};
use crate::domain::{ControllerModel, DomainXml};
use crate::host_driver::HostDriver;
use crate::hypervisor::{DomainState, DomainView, Error, ErrorKind, Hypervisor};
use crate::pci::PciAddress;
use crate::topology::Topology;

/// Bytes of non-prefetchable memory that SeaBIOS and OVMF keep behind each hot-plug port.
const PORT_WINDOW: u64 = 2 << 20;
/// The PCI memory below 4 GiB of a q35 guest is smaller than this (QEMU: from 0xc000_0000 to 0xfec0_0000),
/// and a bridge forwards non-prefetchable memory only there.
const MEMORY_HOLE: u64 = 1 << 30;
/// Bytes beside the guest's memory for which libvirt raises the limit of locked memory: the devices' own.
const LOCK_MARGIN: u64 = 1 << 30;

/// What is known of one device that is to be plugged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The function, as the hypervisor has it now.
    pub device: HostDevice,
    /// What the host has on it; none when nothing holds it.
    pub guard: Option<Guarded>,
    /// Whether libvirt is to bind the drivers.
    pub managed: bool,
    /// How it can be reset, in the kernel's words (`flr`, `bus`, `pm`); none when that is not known.
    pub reset: Option<Vec<String>>,
    /// Its memory BARs; none when they are not known.
    pub bars: Option<Vec<Bar>>,
}

impl From<HostDevice> for Facts {
    /// A device of which only the hypervisor has told.
    fn from(device: HostDevice) -> Self {
        Self { device, guard: None, managed: true, reset: None, bars: None }
    }
}

/// What the host has on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// Why the host cannot do without it, for people.
    pub reason: String,
    /// Whether the operator gives it away all the same.
    pub overridden: bool,
}

/// One memory BAR of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Its size in bytes, a power of two.
    pub size: u64,
    /// Whether it is 64-bit and prefetchable: only such memory may lie above 4 GiB behind a port.
    pub prefetchable64: bool,
}

/// What the operator and the request decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// A device without any reset method is refused.
    pub require_reset: bool,
    /// Devices of one IOMMU group that are asked for together do not block each other: the caller takes them
    /// from their host drivers first, by [`free_group`](super::free_group).
    pub whole_groups: bool,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckResult {
    /// Nothing speaks against it.
    Pass,
    /// It cannot be plugged.
    Fail,
    /// It cannot be told; the message says why.
    Unknown,
}

/// One check of a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at: one of the words at the head of this module.
    pub name: &'static str,
    /// The device that it is about; none when it is the domain, or all devices together.
    pub device: Option<PciAddress>,
    /// What was found.
    pub result: CheckResult,
    /// The finding, for people.
    pub message: String,
    /// What would help, where something would.
    pub cure: Option<String>,
}

/// Every check, in the order in which they were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The checks.
    pub checks: Vec<Check>,
    refusal: Option<Refusal>,
}

impl Verdict {
    /// The first check that failed, as an error; none when the devices may be plugged.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }
}

/// Why something cannot be plugged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The device that cannot be given, where another one could be; none when it is the domain.
    pub device: Option<PciAddress>,
    /// The error that libvirt would give, with what to do about it in the text.
    pub error: Error,
}

/// What a check found: the message, and for what failed its kind and cure.
struct Finding {
    result: CheckResult,
    kind: ErrorKind,
    message: String,
    cure: Option<String>,
}

impl Finding {
    fn pass(message: impl Into<String>) -> Self {
        let result = CheckResult::Pass;
        Self { result, kind: ErrorKind::Refused, message: message.into(), cure: None }
    }

    fn unknown(message: impl Into<String>) -> Self {
        Self { result: CheckResult::Unknown, ..Self::pass(message) }
    }

    fn fail(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { result: CheckResult::Fail, kind, ..Self::pass(message) }
    }

    fn cure(self, cure: impl Into<String>) -> Self {
        Self { cure: Some(cure.into()), ..self }
    }
}

impl Verdict {
    fn add(&mut self, operation: &str, name: &'static str, device: Option<PciAddress>, found: Finding) {
        let Finding { result, kind, message, cure } = found;
        if result == CheckResult::Fail && self.refusal.is_none() {
            let text = cure.iter().fold(message.clone(), |text, cure| text + "; " + cure);
            self.refusal = Some(Refusal { device, error: Error::new(kind, operation, text) });
        }
        self.checks.push(Check { name, device, result, message, cure });
    }
}

/// Looks whether `devices` could be plugged into a domain, all of them together.
///
/// # Errors
/// When the hypervisor cannot be asked.
pub async fn preflight(
    hypervisor: &dyn Hypervisor,
    view: &DomainView,
    devices: &[Facts],
    policy: Policy,
) -> Result<Verdict, Error> {
    let mut verdict = Verdict { checks: Vec::new(), refusal: None };
    let operation = format!("attach to domain {}", view.info.name);
    verdict.add(&operation, "server-state", None, server_state(view));
    // libvirt takes anything into a definition and fails at start: what a live attach finds out by itself is
    // looked up here.
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
            ("vfs", vfs(hypervisor, device, holders.as_ref()).await?),
            ("reset", reset(facts, policy.require_reset)),
            ("bar-window", bar_window(view.live.as_ref(), facts, port)),
        ];
        for (name, finding) in found {
            verdict.add(&operation, name, Some(device.address), finding);
        }
    }
    if let Some(document) = view.live.as_ref().or(view.persistent.as_ref()) {
        verdict.add(&operation, "free-port", None, free_port(document, view.live.is_some(), devices));
        verdict.add(&operation, "memlock", None, memlock(document));
    }
    Ok(verdict)
}

/// Looks whether a device could be used on the host itself, bound to `wanted`. Of the policy only
/// `require_reset` counts.
///
/// # Errors
/// When the hypervisor cannot be asked.
pub async fn preflight_on_host(
    hypervisor: &dyn Hypervisor,
    facts: &Facts,
    wanted: HostDriver,
    policy: Policy,
) -> Result<Verdict, Error> {
    let device = &facts.device;
    let mut verdict = Verdict { checks: Vec::new(), refusal: None };
    let holders = Some(holders(hypervisor).await?);
    let mut found = vec![
        ("guard", guard(facts)),
        ("assignable", assignable(device)),
        ("driver", host_driver(facts, wanted)),
        ("not-in-use", not_in_use(device, holders.as_ref())),
    ];
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
        return Finding::fail(ErrorKind::NotRunning, "the domain has no document to attach to");
    }
    match view.info.state {
        DomainState::Running | DomainState::Blocked => Finding::pass("the domain runs"),
        DomainState::Paused => {
            Finding::pass("the domain is paused: its guest finds the device when it is resumed")
        }
        DomainState::ShutOff => {
            Finding::pass("the domain is shut off: its guest finds the device when it starts")
        }
        state @ (DomainState::ShuttingDown
        | DomainState::Crashed
        | DomainState::Suspended
        | DomainState::Unknown) => Finding::fail(ErrorKind::NotRunning, format!("the domain is {state:?}"))
            .cure("attach when it runs, is paused or is shut off"),
    }
}

fn guard(facts: &Facts) -> Finding {
    let address = facts.device.address;
    match &facts.guard {
        None => Finding::pass(format!("nothing is known for which the host needs {address}")),
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
        (true, _) => fail(format!("{address} is in the running domain already, attached by someone else"))
            .cure("detach it there first"),
        (false, true) => {
            fail(format!("{address} is in the domain's definition already, put there by someone else"))
                .cure("remove it there first (virsh detach-device --config)")
        }
    }
}

fn assignable(device: &HostDevice) -> Finding {
    let address = device.address;
    if device.bridge {
        let message = format!("{address} is a bridge or port; only endpoints can be assigned");
        return Finding::fail(ErrorKind::NotAssignable, message);
    }
    Finding::pass(format!("{address} is an endpoint"))
}

/// libvirt leaves the driver of an unmanaged device alone, and refuses one that is not on VFIO.
fn driver(facts: &Facts) -> Finding {
    let address = facts.device.address;
    let driver = facts.device.driver.as_deref();
    let bound = driver.map_or_else(|| "bound to no driver".to_owned(), |driver| format!("bound to {driver}"));
    if facts.managed {
        return Finding::pass(format!("{address} is {bound}; libvirt binds it to VFIO"));
    }
    if facts.device.is_on_vfio() {
        return Finding::pass(format!("{address} is {bound}, as its \"managed\": \"false\" asks for"));
    }
    Finding::fail(
        ErrorKind::NotAssignable,
        format!("{address} is {bound}, and its device_spec says that libvirt does not bind it"),
    )
    .cure(format!("bind it to vfio-pci first (virsh nodedev-detach {})", facts.device.name))
}

/// What would have to be bound is libvirt's to bind, and a host driver is not conjured up.
fn host_driver(facts: &Facts, wanted: HostDriver) -> Finding {
    let device = &facts.device;
    let address = device.address;
    match (wanted, device.driver.as_deref()) {
        (HostDriver::Native, None) => {
            Finding::fail(ErrorKind::NotAssignable, format!("{address} is bound to no driver"))
                .cure("load its driver on the host, or ask for the driver vfio-pci")
        }
        (HostDriver::Native, Some(driver)) if device.is_on_vfio() && !facts.managed => {
            let message = format!(
                "{address} is bound to {driver}, and its device_spec says that libvirt does not bind it"
            );
            Finding::fail(ErrorKind::NotAssignable, message)
                .cure(format!("give it to its host driver first (virsh nodedev-reattach {})", device.name))
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
            .cure("switch the IOMMU on in firmware and kernel (intel_iommu=on), see `hotslot doctor`"),
    }
}

/// Whether QEMU could open the device's group: no member but those of `with_it` does its own DMA.
async fn group_viable(
    hypervisor: &dyn Hypervisor,
    device: &HostDevice,
    with_it: &[PciAddress],
) -> Result<Finding, Error> {
    let Some(group) = &device.iommu_group else {
        return Ok(Finding::unknown(format!("{} is in no IOMMU group", device.address)));
    };
    let others = group.members.iter().filter(|member| **member != device.address);
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
                .cure(format!("unbind it first (virsh nodedev-detach {})", sibling.name)));
        }
    }
    Ok(Finding::pass(format!("no other member of IOMMU group {} is bound to a host driver", group.number)))
}

/// The devices that running domains have, with the domains' names.
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

/// A group is one domain's: a sibling in use keeps the device from starting, too.
fn not_in_use(device: &HostDevice, holders: Option<&HashMap<PciAddress, String>>) -> Finding {
    let Some(holders) = holders else {
        return Finding::unknown("libvirt looks for itself, before it touches the host driver");
    };
    let group = device.iommu_group.iter().flat_map(|group| &group.members);
    match std::iter::once(&device.address).chain(group).find_map(|member| holders.get_key_value(member)) {
        None => Finding::pass(format!("no running domain has {} or a sibling of it", device.address)),
        Some((held, domain)) => {
            let which = if *held == device.address { "" } else { " (of the same IOMMU group)" };
            Finding::fail(ErrorKind::InUse, format!("{held}{which} is in use by domain {domain}"))
                .cure("detach it there first")
        }
    }
}

/// The VFs of a PF end with it, also those that someone else has given to a guest.
async fn vfs(
    hypervisor: &dyn Hypervisor,
    device: &HostDevice,
    holders: Option<&HashMap<PciAddress, String>>,
) -> Result<Finding, Error> {
    let address = device.address;
    let Role::Physical { vfs, .. } = &device.role else {
        return Ok(Finding::pass(format!("{address} is no PF: no VF ends with it")));
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
            let message = format!("VF {vf} of {address} is {how}, and would end with its PF");
            return Ok(Finding::fail(ErrorKind::InUse, message).cure(format!(
                "detach it there first, and give it back to its host driver (virsh nodedev-reattach {})",
                found.name
            )));
        }
    }
    Ok(Finding::pass(format!("none of the {} VF(s) of {address} is given away", vfs.len())))
}

/// Mediated devices end with the driver that made them, also in guests.
async fn mdevs(hypervisor: &dyn Hypervisor, device: &HostDevice) -> Result<Finding, Error> {
    let address = device.address;
    let mdevs = hypervisor.mdevs().await?;
    Ok(match mdevs.iter().find(|mdev| mdev.parent == Some(address)) {
        None => Finding::pass(format!("no mediated device is made of {address}")),
        Some(mdev) => {
            let message =
                format!("mediated device {} is made of {address}, and would end with its driver", mdev.uuid);
            Finding::fail(ErrorKind::InUse, message)
                .cure(format!("take it away first (virsh nodedev-destroy {})", mdev.name))
        }
    })
}

fn reset(facts: &Facts, required: bool) -> Finding {
    let address = facts.device.address;
    match facts.reset.as_deref() {
        None => Finding::unknown(format!("how {address} is reset is only known on its own host")),
        Some([]) => {
            let message =
                format!("{address} has no reset method: a guest may find what another one left in it");
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

/// Whether the device's memory has room behind its `port`. The windows are set when the guest boots; what
/// goes beyond them has room only if the guest's kernel can widen them.
fn bar_window(live: Option<&DomainXml>, facts: &Facts, port: Option<PciAddress>) -> Finding {
    let address = facts.device.address;
    let Some(bars) = &facts.bars else {
        return Finding::unknown(format!("the BARs of {address} are only known on its own host"));
    };
    let Some(live) = live else {
        return Finding::pass("the guest's firmware makes room when it starts");
    };
    let size = |prefetchable| -> u64 {
        let bars = bars.iter().filter(|bar| bar.prefetchable64 == prefetchable);
        bars.fold(0, |sum, bar| sum.saturating_add(bar.size))
    };
    let (memory, prefetchable) = (size(false), size(true));
    let port = port.and_then(|port| live.controllers.iter().find(|port_of| port_of.index == port.bus()));
    let Some(port) = port.filter(|port| is_port(port.model)) else {
        return Finding::unknown(format!(
            "{address} needs {}; what its bus in the guest has left is not known",
            in_units(memory.saturating_add(prefetchable))
        ));
    };
    let window = port.mem_reserve.unwrap_or(PORT_WINDOW);
    let room = format!(
        "{address} needs {} of memory and {} of 64-bit prefetchable memory, port {} keeps {} and {}",
        in_units(memory),
        in_units(prefetchable),
        port.index,
        in_units(window),
        port.pref64_reserve.map_or_else(|| "what its firmware chooses".to_owned(), in_units),
    );
    let fits = memory <= window
        && (prefetchable <= port.pref64_reserve.unwrap_or(0)
            || memory.saturating_add(prefetchable) <= window);
    let cure = format!(
        "give the port mem-reserve and pref64-reserve by <qemu:override> (device pci.{}) and power-cycle the \
         guest",
        port.index
    );
    if fits {
        Finding::pass(room)
    } else if bars.iter().any(|bar| !bar.prefetchable64 && bar.size >= MEMORY_HOLE) {
        Finding::fail(ErrorKind::NoFreePort, format!("{room}: more than a guest has below 4 GiB"))
            .cure("take another device; this one cannot be behind a port")
    } else {
        Finding::unknown(format!("{room}: the guest sees it if its kernel widens the window")).cure(cure)
    }
}

fn is_port(model: ControllerModel) -> bool {
    matches!(model, ControllerModel::RootPort | ControllerModel::SwitchDownstream)
}

/// Bytes for people, in the largest binary unit that leaves nothing over.
fn in_units(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

/// Whether there is room for all devices together.
fn free_port(document: &DomainXml, live: bool, devices: &[Facts]) -> Finding {
    let free = Topology::of(document).free_ports();
    let mut left = free.clone();
    let pcie = document.controllers.iter().any(|controller| controller.model == ControllerModel::PcieRoot);
    let (express, conventional) = (free.count_for(true), free.count_for(false));
    let room = if pcie {
        format!("room for {express} PCI Express and {conventional} conventional device(s)")
    } else {
        format!("room for {express} PCI device(s)")
    };
    let mut wanted = devices.iter().map(|facts| &facts.device);
    let Some(device) = wanted.find(|device| left.take(device.express).is_none()) else {
        return Finding::pass(room);
    };
    if !live {
        return Finding::unknown(format!("{room}: libvirt adds a port to the definition where it can"));
    }
    let (kind, cure) = match (device.express, pcie) {
        (true, true) => ("PCI Express", "pcie-root-port controllers"),
        (false, true) => ("conventional PCI", "a pcie-to-pci-bridge controller"),
        (_, false) => ("PCI", "a pci-bridge controller"),
    };
    let wanted = devices.iter().filter(|other| !pcie || other.device.express == device.express).count();
    let room = free.count_for(device.express);
    let message = format!("no free hot-plug port: {wanted} {kind} device(s) wanted, room for {room}");
    Finding::fail(ErrorKind::NoFreePort, message)
        .cure(format!("detach something, or add {cure} to the domain's definition and power-cycle the guest"))
}

/// VFIO locks all of the guest's memory. libvirt raises QEMU's limit by itself, but to `<hard_limit>` where
/// there is one.
fn memlock(document: &DomainXml) -> Finding {
    let memory = document.memory;
    let Some(limit) = document.hard_limit else {
        return Finding::pass("libvirt raises the limit of locked memory by itself");
    };
    let (limits, need) = (in_units(limit), memory.saturating_add(LOCK_MARGIN));
    if limit >= need && memory != 0 {
        return Finding::pass(format!(
            "<hard_limit> of {limits} leaves room for {} of memory",
            in_units(memory)
        ));
    }
    let message = format!(
        "VFIO locks the guest's {} of memory and what its devices have, and <hard_limit> is {limits}",
        in_units(memory)
    );
    let found = if limit < memory {
        Finding::fail(ErrorKind::NoPassthrough, message)
    } else {
        Finding::unknown(message)
    };
    found.cure(format!("raise it to {} (virsh memtune --hard-limit), or remove it", in_units(need)))
}

#[cfg(test)]
mod tests;
