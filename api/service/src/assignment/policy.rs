//! Detach policies of devices and device classes: whether a running guest may be requested to release a device.

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::Presence;
use hotslot_model::assignment::{Assignment, AssignmentKind, InnerAddress};
use hotslot_model::device::Device;
use hotslot_model::hot_unplug::{HOT_UNPLUG, HotUnplug};
use hotslot_model::id::{AttachmentId, DeviceId, ServerId};

use super::assignments::Assignments;
use crate::config::DetachClass;
use crate::error::Error;
use crate::host::Host;

/// The detach policy of a device.
pub(super) struct Policy {
    pub(super) hot_unplug: HotUnplug,
    /// Where `hot_unplug` is configured, for messages.
    pub(super) place: String,
    pub(super) class: Option<DetachClass>,
}

/// A device in a guest that is to be detached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestDevice {
    /// The kind of the assignment.
    pub(crate) kind: AssignmentKind,
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
        Some(Self { kind: row.kind(), id, server, device, inner, forced })
    }
}

impl Assignments {
    /// Returns the policy of a device: its own `hot_unplug` tag, else that of its class, else the default of
    /// `[detach]`.
    pub(super) fn policy(&self, host: &Host, device: &Device) -> Policy {
        let config = self.config.get();
        let detach = &config.detach;
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
        Policy { hot_unplug, place, class: class.cloned() }
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
}

/// Returns whether the guest runs and has the device.
pub(super) async fn is_live(host: &Host, plugged: GuestDevice) -> Result<bool, Error> {
    let view = host.server(plugged.server).await?;
    Ok(view.is_some_and(|view| Presence::of(&view, UserAlias(plugged.id.0)).live))
}
