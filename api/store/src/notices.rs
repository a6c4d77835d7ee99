//! Writes to the log what a scan or another change of devices found.

use hotslot_model::scan::Notice;

/// Logs a notice: as an error when an administrator has to act.
pub(crate) fn log(notice: &Notice) {
    match notice {
        Notice::Moved { from, to } => {
            tracing::warn!(pci.address = %to, %from, "the device that was at {from} is at {to} now");
        }
        Notice::Unclear { address } => tracing::warn!(
            pci.address = %address,
            "the device that was at {address} is gone, and new devices of the same kind appeared; it cannot be \
             determined whether it is one of them"
        ),
        Notice::Occupied { address, owner: owner @ Some(_) } => tracing::error!(
            pci.address = %address, ?owner,
            "another device is now at the address {address} of a device in use; detach that device first"
        ),
        Notice::Occupied { address, owner: None } => tracing::error!(
            pci.address = %address,
            "another device is now at the address {address} of a device that waits to be cleaned; clean that device first"
        ),
        Notice::MovedInUse { from, to, owner } => tracing::error!(
            pci.address = %to, ?owner,
            "the device is in the definition of its server under its old address {from}: detach and attach it again \
             before the server starts"
        ),
        Notice::BothInUse { address, conflict } => tracing::error!(
            pci.address = %address, %conflict, "a PF and a VF of it are both in use; detach one of them"
        ),
    }
}
