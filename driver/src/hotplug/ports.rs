//! Root ports for the next start of a guest. libvirt adds ports only while a definition is made or changed, and a guest has
//! them from its next start on.

use uuid::Uuid;

use crate::domain::{ControllerModel, DomainXml};
use crate::hypervisor::{Error, Hypervisor, Scope};

/// A root port as libvirt documents it for definitions ("PCI topology and hotplug"): libvirt chooses its index, its
/// address and the rest.
pub const ROOT_PORT: &str = "<controller type='pci' model='pcie-root-port'/>";

/// Whether a guest has a PCI Express root bus, on which root ports can be. The slots of a conventional root bus are
/// hot-pluggable themselves.
pub fn has_express_root(document: &DomainXml) -> bool {
    document.controllers.iter().any(|controller| controller.model == ControllerModel::PcieRoot)
}

/// Adds root ports to the definition of a domain, one after another.
///
/// # Errors
/// The first error of the hypervisor, and the number of ports that were added before it.
pub async fn add_root_ports(hypervisor: &dyn Hypervisor, domain: Uuid, count: u8) -> Result<(), (u8, Error)> {
    for added in 0..count {
        hypervisor.attach(domain, ROOT_PORT, Scope::Config).await.map_err(|error| (added, error))?;
    }
    Ok(())
}
