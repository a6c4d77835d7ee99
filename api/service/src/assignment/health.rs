//! Health: after each use a function is read again, and one that does not work as before is quarantined. So is one that
//! fails while a guest has it.

use std::path::PathBuf;
use std::time::Duration;

use hotslot_driver::local::{self, Condition};
use hotslot_model::assignment::{Assignment, State};

use super::assignments::Assignments;
use crate::error::Error;
use crate::host::Host;

/// How long to wait before each time that a function is read. A link that was just reset may still be training.
const PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_millis(1000)];

impl Assignments {
    /// Reads the function of an assignment that has ended, and quarantines it when it does not work as before. On a host
    /// whose files cannot be read nothing is known.
    ///
    /// # Errors
    /// [`Error::Internal`] when reading it panicked; errors of the database.
    pub(super) async fn check_health(&self, row: &Assignment) -> Result<(), Error> {
        let before = match row {
            Assignment::Attachment(row) => row.before,
            Assignment::Binding(_) => Condition::default(),
            Assignment::Mdev(_) => return Ok(()),
        };
        let Some(host) = self.hosts.host(row.hypervisor()) else { return Ok(()) };
        let device = self.store.device(row.device()).filter(|device| device.quarantine.is_none());
        let (Some(root), Some(device)) = (host.hypervisor.sysroot(), device) else { return Ok(()) };
        let address = device.facts.address;
        let port = (device.facts.parent_addr.unwrap_or(address), before);
        let class = host.functions().get(&address).and_then(|function| function.class);
        let slows_down = class.is_none_or(|class| class.is_display() || class.is_accelerator());
        let mut found = None;
        for pause in PAUSES {
            tokio::time::sleep(pause).await;
            let root = PathBuf::from(root);
            let reading = move || local::why_unhealthy(&root, address, port, slows_down);
            let read = tokio::task::spawn_blocking(reading).await;
            found = read.map_err(|error| Error::Internal(format!("reading {address} failed: {error}")))?;
            if found.is_none() {
                return Ok(());
            }
        }
        let Some(reason) = found else { return Ok(()) };
        tracing::warn!(host = %host.name, pci.address = %address, "{address} is quarantined: {reason}");
        Ok(self.store.quarantine(device.id, &reason).await?)
    }

    /// Quarantines the devices in guests of which the kernel has counted fatal errors since they were attached. The guest
    /// keeps such a device until it is detached, and nobody gets it after that.
    ///
    /// # Errors
    /// [`Error::Internal`] when reading the counters panicked; errors of the database.
    pub(super) async fn watch_health(&self, host: &Host) -> Result<(), Error> {
        let Some(root) = host.hypervisor.sysroot().map(PathBuf::from) else { return Ok(()) };
        let rows = self.store.attachments().await?.into_iter();
        let here = rows.filter(|row| row.hypervisor == host.row.id && row.state == State::Attached);
        let counted = here.filter(|row| row.before.fatal_errors.or(row.before.port_errors).is_some());
        let watched = counted.filter_map(|row| {
            let device = self.store.device(row.device).filter(|device| device.quarantine.is_none())?;
            Some((device.id, device.facts.address, row))
        });
        let watched: Vec<_> = watched.collect();
        if watched.is_empty() {
            return Ok(());
        }
        let reading = tokio::task::spawn_blocking(move || {
            let failed = watched.into_iter().filter_map(|(id, address, row)| {
                Some((id, address, row.id, local::new_fatal_errors(&root, address, row.before)?))
            });
            failed.collect::<Vec<_>>()
        });
        let failed = reading.await;
        for (id, address, attachment, reason) in
            failed.map_err(|error| Error::Internal(format!("reading the error counters failed: {error}")))?
        {
            tracing::error!(
                host = %host.name, pci.address = %address, attachment.id = %attachment,
                "{address} is quarantined while a guest has it: {reason}"
            );
            self.store.quarantine(id, &reason).await?;
        }
        Ok(())
    }
}
