//! A function given to the host itself: which driver it is bound to meanwhile, and how it comes back.
//!
//! ```text
//! bind      preflight → libvirt binds it (or it is bound already) → read back     │ undo: the driver it had
//! release   reset, where no host driver is bound → the driver it had → read back
//! ```
//! The caller puts the driver down that the function had ([`Facts::device`]) before it calls [`bind`], for
//! that is what [`release`] gives it back to. What is answered is what the node device says afterwards.
//! Other members of the IOMMU group are looked at, and never touched.

use crate::device::HostDevice;
pub use crate::host_driver::{HostDriver, UnknownHostDriver};
use crate::hotplug::{self, Facts, Policy};
use crate::hypervisor::{Error, ErrorKind, Hypervisor};
use crate::pci::PciAddress;

/// A function that is bound as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The driver that it had before; none when it was unbound.
    pub before: Option<String>,
    /// The driver that it has now.
    pub driver: String,
}

/// A function that the host no longer uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The driver that it has now; none when it is unbound.
    pub driver: Option<String>,
    /// Whether that is the one that it had before.
    pub as_before: bool,
    /// Whether it was reset.
    pub reset: Reset,
}

/// What became of the reset between two owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reset {
    /// libvirt was asked and did what there was to do. Of a function on VFIO that is nothing, for the kernel
    /// resets it whenever it is opened and closed, nor of one with a function level reset.
    Done,
    /// A host driver is bound, and a reset would take the device from under it: it was not asked for.
    Driven,
    /// There is no way to reset it. It goes back to its driver all the same, and may keep what its last
    /// owner left in it.
    Unavailable {
        /// The hypervisor's words.
        reason: String,
    },
}

/// Binds a function for use on the host itself: [`HostDriver::Vfio`] takes it from its host driver,
/// [`HostDriver::Native`] looks that it has one, and gives it back to it where it rests on VFIO.
///
/// # Errors
/// The first check of [`preflight_on_host`](hotplug::preflight_on_host) that failed, or what the hypervisor
/// refused; then the function has the driver that it had, or the text says that it has not.
/// [`ErrorKind::Away`] and [`ErrorKind::TimedOut`] leave it open until the device is read again.
pub async fn bind(
    hypervisor: &dyn Hypervisor,
    facts: &Facts,
    wanted: HostDriver,
    policy: Policy,
) -> Result<Bound, Error> {
    let verdict = hotplug::preflight_on_host(hypervisor, facts, wanted, policy).await?;
    if let Some(refusal) = verdict.refusal() {
        return Err(refusal.error.clone());
    }
    let (address, before) = (facts.device.address, facts.device.driver.clone());
    if !wanted.has(&facts.device) {
        let asked = match wanted {
            HostDriver::Native => hypervisor.node_reattach(address).await,
            HostDriver::Vfio => hypervisor.node_detach(address).await,
        };
        if let Err(error) = asked {
            return Err(undo(hypervisor, address, before.as_deref(), error).await);
        }
    }
    let device = look(hypervisor, address).await?;
    match device.driver.clone().filter(|_| wanted.has(&device)) {
        Some(driver) => Ok(Bound { before, driver }),
        None => {
            let message = format!(
                "it is {} afterwards; look at the host's kernel log for why no driver took it",
                bound_to(device.driver.as_deref())
            );
            let error =
                Error::new(ErrorKind::Refused, format!("bind {address} to its {wanted} driver"), message);
            Err(undo(hypervisor, address, before.as_deref(), error).await)
        }
    }
}

/// Gives a function back that was bound: resets it, where no host driver is bound to it, and gives it back to
/// the driver that it had `before`. One that had none gets what the host's kernel chooses, often none again.
/// A program that still has it open holds the kernel up, and so the call until its limit.
///
/// # Errors
/// What the hypervisor refused: [`ErrorKind::InUse`] while a domain has it.
/// [`ErrorKind::Away`] and [`ErrorKind::TimedOut`] leave it open until the device is read again.
pub async fn release(
    hypervisor: &dyn Hypervisor,
    address: PciAddress,
    before: Option<&str>,
) -> Result<Released, Error> {
    let device = hypervisor.device(address).await?;
    let reset = if HostDriver::Native.has(&device) {
        Reset::Driven
    } else {
        match hypervisor.node_reset(address).await {
            Ok(()) => Reset::Done,
            Err(error) if error.kind == ErrorKind::InUse || error.kind.leaves_it_open() => return Err(error),
            Err(error) => Reset::Unavailable { reason: error.message },
        }
    };
    give_back(hypervisor, &device, before).await?;
    let driver = look(hypervisor, address).await?.driver;
    Ok(Released { as_before: driver.as_deref() == before, driver, reset })
}

/// The function as it is after a change: unread, nothing is known of it.
async fn look(hypervisor: &dyn Hypervisor, address: PciAddress) -> Result<HostDevice, Error> {
    hypervisor.device(address).await.map_err(|error| {
        let kind = if error.kind == ErrorKind::NoDevice { error.kind } else { ErrorKind::TimedOut };
        Error { kind, ..error }
    })
}

async fn give_back(
    hypervisor: &dyn Hypervisor,
    device: &HostDevice,
    before: Option<&str>,
) -> Result<(), Error> {
    if device.driver.as_deref() == before {
        return Ok(());
    }
    let had = HostDevice { driver: before.map(str::to_owned), ..device.clone() };
    if had.is_on_vfio() {
        hypervisor.node_detach(device.address).await
    } else {
        hypervisor.node_reattach(device.address).await
    }
}

/// After a refusal: libvirt may have unbound the function before it failed. The error, with what could not be
/// undone in its text.
async fn undo(
    hypervisor: &dyn Hypervisor,
    address: PciAddress,
    before: Option<&str>,
    mut error: Error,
) -> Error {
    if error.kind.leaves_it_open() {
        return error;
    }
    let undone = async {
        let device = hypervisor.device(address).await?;
        give_back(hypervisor, &device, before).await?;
        hypervisor.device(address).await
    };
    match undone.await {
        Ok(device) if device.driver.as_deref() == before => {}
        Ok(device) => {
            let (had, has) = (bound_to(before), bound_to(device.driver.as_deref()));
            error.message = format!("{}; {address} was {had} and is now {has}", error.message);
        }
        Err(lost) => error.message = format!("{}; and undoing it failed: {lost}", error.message),
    }
    error
}

fn bound_to(driver: Option<&str>) -> String {
    driver.map_or_else(|| "bound to no driver".to_owned(), |driver| format!("bound to {driver}"))
}
