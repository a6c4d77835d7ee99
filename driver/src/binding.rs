//! Binding of a function for the host's own use: the driver that it gets, and its release.
//!
//! ```text
//! bind      preflight → libvirt binds it (unless it is bound already) → read back     │ undo: rebind the former driver
//! release   reset, if no host driver is bound → rebind the former driver → read back
//! ```
//! The caller records the function's driver ([`Facts::device`]) before it calls [`bind`], and passes it to [`release`],
//! which rebinds that driver. The results contain the driver that the node device has afterwards. Other members of the
//! IOMMU group are checked, but never changed.

use std::sync::Arc;

use crate::device::HostDevice;
pub use crate::host_driver::{HostDriver, UnknownHostDriver};
use crate::hotplug::{self, Facts, Policy};
use crate::hypervisor::{Error, ErrorKind, Hypervisor};
use crate::pci::PciAddress;

/// The result of [`bind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The former driver; `None` when the function was unbound.
    pub before: Option<String>,
    /// The driver that is bound now.
    pub driver: String,
}

/// The result of [`release`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The driver that is bound now; `None` when the function is unbound.
    pub driver: Option<String>,
    /// Whether that is the former driver.
    pub as_before: bool,
    /// Whether the function was reset.
    pub reset: Reset,
}

/// The result of the reset between two owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reset {
    /// libvirt's reset call succeeded. It does nothing for a function on VFIO, which the kernel resets whenever it is
    /// opened and closed, and for a function with a function level reset.
    Done,
    /// A host driver is bound. The reset was not requested, because it would disturb that driver.
    Driven,
    /// The function cannot be reset. Its driver is rebound nevertheless, and the function may still contain data of its
    /// last owner.
    Unavailable {
        /// The hypervisor's message.
        reason: String,
    },
}

/// Binds a function for use on the host itself. [`HostDriver::Vfio`] unbinds the host driver and binds VFIO.
/// [`HostDriver::Native`] requires a host driver, and rebinds it when the function is on VFIO.
///
/// # Errors
/// The refusal of [`preflight_on_host`](hotplug::preflight_on_host), or the error of the hypervisor. Then the function
/// has its former driver, or the message says that it does not. After [`ErrorKind::Away`] and [`ErrorKind::TimedOut`]
/// the driver is unknown until the device is read again.
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
    let address = facts.device.address;
    let before = facts.device.driver_name();
    if !wanted.has(&facts.device) {
        let changed = match wanted {
            HostDriver::Native => hypervisor.node_reattach(address).await,
            HostDriver::Vfio => hypervisor.node_detach(address).await,
        };
        if let Err(error) = changed {
            return Err(undo(hypervisor, address, before.as_deref(), error).await);
        }
    }
    let device = read_back(hypervisor, address).await?;
    match device.driver.as_deref().filter(|_| wanted.has(&device)) {
        Some(driver) => Ok(Bound { before, driver: driver.to_owned() }),
        None => {
            let message = format!(
                "afterwards the function is {}; the host's kernel log may say why the driver was not bound",
                bound_to(device.driver.as_deref())
            );
            let error =
                Error::new(ErrorKind::Refused, format!("bind {address} to its {wanted} driver"), message);
            Err(undo(hypervisor, address, before.as_deref(), error).await)
        }
    }
}

/// Releases a function that was bound: resets it unless a host driver is bound, and rebinds the driver `before`. A
/// function that had no driver gets the one that the host's kernel chooses, which is often none. While a program still
/// has the function open, the kernel waits for it, and the call waits until its time limit.
///
/// # Errors
/// The error of the hypervisor, such as [`ErrorKind::InUse`] while a domain has the function. After [`ErrorKind::Away`]
/// and [`ErrorKind::TimedOut`] the driver is unknown until the device is read again.
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
    rebind_host_driver(hypervisor, &device, before).await?;
    let driver = read_back(hypervisor, address).await?.driver_name();
    Ok(Released { as_before: driver.as_deref() == before, driver, reset })
}

/// Reads a function after a change. When that fails, the outcome of the change is unknown, so that the error becomes
/// [`ErrorKind::TimedOut`].
async fn read_back(hypervisor: &dyn Hypervisor, address: PciAddress) -> Result<HostDevice, Error> {
    hypervisor.device(address).await.map_err(|error| {
        let kind = if error.kind == ErrorKind::NoDevice { error.kind } else { ErrorKind::TimedOut };
        Error { kind, ..error }
    })
}

async fn rebind_host_driver(
    hypervisor: &dyn Hypervisor,
    device: &HostDevice,
    before: Option<&str>,
) -> Result<(), Error> {
    if device.driver.as_deref() == before {
        return Ok(());
    }
    let had = HostDevice { driver: before.map(Arc::from), vfio_dev: None, ..device.clone() };
    if had.is_on_vfio() && had.vfio_manager().is_none() {
        hypervisor.node_detach(device.address).await
    } else {
        hypervisor.node_reattach(device.address).await
    }
}

/// Rebinds the former driver after an error, because libvirt may have unbound it before it failed. Returns the error,
/// whose message says what could not be undone.
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
        rebind_host_driver(hypervisor, &device, before).await?;
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
