//! Quiescing: runs the command that prepares a running guest for the removal of a device.

use hotslot_driver::guest;
use hotslot_model::hot_unplug::HotUnplug;
use tokio::time::Instant;

use super::assignments::Assignments;
use super::policy::{GuestDevice, is_live};
use crate::host::Host;
use crate::metrics;

/// The placeholder in a command for the PCI address that the device has in the guest.
const ADDRESS: &str = "{address}";

/// The guest could not be prepared for the removal of a device.
pub(crate) struct NotQuiesced {
    /// The reason, for people.
    pub(crate) reason: String,
    /// Whether the policy requires the preparation, so that the guest must not be asked to release the device.
    pub(crate) demanded: bool,
}

impl Assignments {
    /// Runs the configured command that prepares a running guest for the removal of a device. Does nothing when no
    /// command is configured and the policy requires none.
    ///
    /// # Errors
    /// [`NotQuiesced`] with the reason when the guest could not be prepared.
    pub(crate) async fn quiesce(
        &self,
        host: &Host,
        plugged: GuestDevice,
        until: Option<Instant>,
    ) -> Result<(), NotQuiesced> {
        let Some(device) = self.store.device(plugged.device) else { return Ok(()) };
        let policy = self.policy(host, &device);
        let command = policy.class.as_ref().map_or(&[][..], |class| &class.quiesce);
        let demanded = policy.hot_unplug == HotUnplug::Quiesce && !plugged.forced;
        // If the host does not answer now, the detach call fails as well, so its error is ignored here.
        if command.is_empty() && !demanded || !is_live(host, plugged).await.unwrap_or(false) {
            return Ok(());
        }
        let not_quiesced =
            |reason: String| NotQuiesced { reason: format!("not quiesced: {reason}"), demanded };
        if command.is_empty() {
            let reason = format!(
                "{} requires it, but no [[detach.class]] has a quiesce command for its class",
                policy.place
            );
            return Err(not_quiesced(reason));
        }
        let inner = plugged.inner.map(|inner| inner.address.to_string());
        if inner.is_none() && command.iter().any(|word| word.contains(ADDRESS)) {
            return Err(not_quiesced("the address of the device in the guest is not known".into()));
        }
        let inner = inner.unwrap_or_default();
        let command: Vec<_> = command.iter().map(|word| word.replace(ADDRESS, &inner)).collect();
        let timeout = self.config.get().detach.timeout.0;
        let limit =
            until.map_or(timeout, |until| timeout.min(until.saturating_duration_since(Instant::now())));
        let run = guest::run(host.hypervisor.as_ref(), plugged.server.0, &command, limit);
        let run = metrics::step(plugged.kind, "quiesce", run).await;
        run.map_err(|error| not_quiesced(error.to_string()))
    }
}
