//! Root ports for the next start of a guest. libvirt adds ports only while a definition is made or changed, and a guest has
//! them from its next start on.

use uuid::Uuid;

use crate::domain::{ControllerModel, DomainXml};
use crate::hypervisor::{Error, Hypervisor, Scope};

/// The maximum number of ports that are added at once: the slots of a root bus.
pub const MOST_PORTS: u8 = 30;

/// The slots of a root bus that can have a root port. Slot 0 has the host bridge, and slot 0x1f the south bridge.
const SLOTS: std::ops::Range<u8> = 1..0x1f;

/// Returns how many root ports can be added at once. Each is counted with a slot of its own, although libvirt may put eight
/// into one.
pub(super) fn room_for_ports(definition: &DomainXml) -> u8 {
    let is_taken = |slot: &u8| definition.occupied.iter().any(|at| (at.bus(), at.slot()) == (0, *slot));
    let slots = SLOTS.filter(|slot| !is_taken(slot)).count();
    MOST_PORTS.min(u8::MAX - last_index(definition)).min(u8::try_from(slots).unwrap_or(MOST_PORTS))
}

fn last_index(definition: &DomainXml) -> u8 {
    definition.controllers.iter().map(|controller| controller.index).max().unwrap_or_default()
}

/// Returns the elements of `count` root ports after the controllers of a definition; fewer when there are no more indexes,
/// of which the highest is 255. libvirt chooses the address. It also chooses the rest when a whole domain is defined, but
/// refuses a port without a model, a chassis and a port number that is added to a definition; the chassis is the index, as
/// libvirt chooses it.
pub fn root_ports(definition: &DomainXml, count: u8) -> Vec<String> {
    let indexes = (last_index(definition)..u8::MAX).map(|before| before + 1).take(count.into());
    let port = |index: u8| {
        format!(
            "<controller type='pci' index='{index}' model='pcie-root-port'><model name='pcie-root-port'/><target \
             chassis='{index}' port='{index:#x}'/></controller>"
        )
    };
    indexes.map(port).collect()
}

/// Whether a guest has a PCI Express root bus, on which root ports can be. The slots of a conventional root bus are
/// hot-pluggable themselves.
pub fn has_express_root(document: &DomainXml) -> bool {
    document.controllers.iter().any(|controller| controller.model == ControllerModel::PcieRoot)
}

/// Adds [root ports](root_ports) to the definition of a domain, one after another.
///
/// # Errors
/// The first error of the hypervisor, and the number of ports that were added before it.
pub async fn add_root_ports(
    hypervisor: &dyn Hypervisor,
    domain: Uuid,
    ports: &[String],
) -> Result<(), (usize, Error)> {
    for (added, port) in ports.iter().enumerate() {
        hypervisor.attach(domain, port, Scope::Config).await.map_err(|error| (added, error))?;
    }
    Ok(())
}
