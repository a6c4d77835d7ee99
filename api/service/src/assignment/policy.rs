//! Detach policies of devices and device classes: whether a running guest may be asked to release a device, and which
//! command prepares the guest for it.

use hotslot_driver::domain::UserAlias;
use hotslot_driver::guest;
use hotslot_driver::hotplug::Presence;
use hotslot_model::assignment::{Assignment, InnerAddress};
use hotslot_model::device::Device;
use hotslot_model::hot_unplug::{HOT_UNPLUG, HotUnplug};
use hotslot_model::id::{AttachmentId, DeviceId, ServerId};
use tokio::time::Instant;

use super::assignments::Assignments;
use crate::config::DetachClass;
use crate::error::Error;
use crate::host::Host;

/// The placeholder in a command for the PCI address that the device has in the guest.
const ADDRESS: &str = "{address}";

/// The detach policy of a device.
struct Policy<'a> {
    hot_unplug: HotUnplug,
    /// Where `hot_unplug` is configured, for messages.
    place: String,
    class: Option<&'a DetachClass>,
}

/// A device in a guest that is to be detached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestDevice {
    /// The id of the assignment, from which the alias in the domain is made.
    pub(crate) id: AttachmentId,
    /// The server.
    pub(crate) server: ServerId,
    /// The device; for a mediated device, its parent.
    pub(crate) device: DeviceId,
    /// The PCI address in the guest, if it is known.
    pub(crate) inner: Option<InnerAddress>,
    /// Whether the detach is forced.
    pub(crate) forced: bool,
}

impl GuestDevice {
    /// Returns the device of an assignment to a server; `None` for a binding.
    pub(crate) fn of(row: &Assignment) -> Option<Self> {
        let server = row.server()?;
        let (id, device, inner, forced) = (row.id(), row.device(), row.inner(), row.forced());
        Some(Self { id, server, device, inner, forced })
    }
}

impl Assignments {
    /// Returns the policy of a device: its own `hot_unplug` tag, else that of its class, else the default of
    /// `[detach]`.
    fn policy(&self, host: &Host, device: &Device) -> Policy<'_> {
        let detach = &self.config.detach;
        let functions = host.functions();
        let class = functions.get(&device.facts.address).and_then(|function| function.class);
        let class =
            class.and_then(|class| detach.class.iter().find(|entry| entry.class == class.description()));
        let tag = device.facts.extra_info.get(HOT_UNPLUG).and_then(|tag| tag.parse().ok());
        let of_class =
            class.and_then(|class| Some((class.hot_unplug?, format!("[[detach.class]] {}", class.class))));
        let (hot_unplug, place) = tag
            .map(|tag| (tag, "its device_spec".to_owned()))
            .or(of_class)
            .unwrap_or_else(|| (detach.hot_unplug, "[detach]".to_owned()));
        Policy { hot_unplug, place, class }
    }

    /// Checks that the policy permits to detach a device from its guest while that is running.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the policy is `refuse` and the running guest has the device; errors of the hypervisor.
    pub(crate) async fn check_detach_policy(&self, host: &Host, plugged: GuestDevice) -> Result<(), Error> {
        let Some(device) = self.store.device(plugged.device) else { return Ok(()) };
        let policy = self.policy(host, &device);
        if policy.hot_unplug != HotUnplug::Refuse || !is_live(host, plugged).await? {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "{} must not be detached from a running guest (hot_unplug = refuse in {}); shut server {} off and detach it \
             then, or detach with force",
            device.facts.address, policy.place, plugged.server
        )))
    }

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
        let command = policy.class.map_or(&[][..], |class| &class.quiesce);
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
        let timeout = self.config.detach.timeout.0;
        let limit =
            until.map_or(timeout, |until| timeout.min(until.saturating_duration_since(Instant::now())));
        let run = guest::run(host.hypervisor.as_ref(), plugged.server.0, &command, limit).await;
        run.map_err(|error| not_quiesced(error.to_string()))
    }
}

/// The guest could not be prepared for the removal of a device.
pub(crate) struct NotQuiesced {
    /// The reason, for people.
    pub(crate) reason: String,
    /// Whether the policy requires the preparation, so that the guest must not be asked to release the device.
    pub(crate) demanded: bool,
}

/// Returns whether the guest runs and has the device.
async fn is_live(host: &Host, plugged: GuestDevice) -> Result<bool, Error> {
    let view = host.server(plugged.server).await?;
    Ok(view.is_some_and(|view| Presence::of(&view, UserAlias(plugged.id.0)).live))
}
