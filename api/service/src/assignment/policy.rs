//! What a running guest has to let go of, and what is to be done in it before: the policies of classes and devices.

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

/// What stands in a command for the address at which the guest sees the device.
const ADDRESS: &str = "{address}";

/// What is to be done about a device before its guest is asked.
struct Policy<'a> {
    hot_unplug: HotUnplug,
    /// What says so.
    place: String,
    class: Option<&'a DetachClass>,
}

/// What a guest has, and is to let go of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestDevice {
    /// Its alias in the domain.
    pub(crate) id: AttachmentId,
    /// The server.
    pub(crate) server: ServerId,
    /// The device, or that of which it is a part.
    pub(crate) device: DeviceId,
    /// Where the guest sees it.
    pub(crate) inner: Option<InnerAddress>,
    /// Whether it is to go whatever its guest says.
    pub(crate) forced: bool,
}

impl GuestDevice {
    /// The device of an assignment to a server; `None` for the host's own use.
    pub(crate) fn of(row: &Assignment) -> Option<Self> {
        let server = row.server()?;
        let (id, device, inner, forced) = (row.id(), row.device(), row.inner(), row.forced());
        Some(Self { id, server, device, inner, forced })
    }
}

impl Assignments {
    /// The device's own tag goes before its class, and that before what holds for all.
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

    /// Refuses a detach that would ask a running guest for a device that it is not to be asked for.
    pub(crate) async fn may_be_asked(&self, host: &Host, plugged: GuestDevice) -> Result<(), Error> {
        let Some(device) = self.store.device(plugged.device) else { return Ok(()) };
        let policy = self.policy(host, &device);
        if policy.hot_unplug != HotUnplug::Refuse || !is_live(host, plugged).await? {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "{} is not taken from a running guest (hot_unplug = refuse in {}); shut server {} off and detach it then, \
             or ask all the same with force",
            device.facts.address, policy.place, plugged.server
        )))
    }

    /// Has the guest prepare for the loss of a device, where a command is configured for that. What kept it from
    /// it, and whether the guest may then not be asked.
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
        // A host that cannot say so now will not when it is asked to detach either.
        if command.is_empty() && !demanded || !is_live(host, plugged).await.unwrap_or(false) {
            return Ok(());
        }
        let not_quiesced =
            |reason: String| NotQuiesced { reason: format!("not quiesced: {reason}"), demanded };
        if command.is_empty() {
            let reason = format!(
                "{} wants it, but no [[detach.class]] has a quiesce command for its class",
                policy.place
            );
            return Err(not_quiesced(reason));
        }
        let inner = plugged.inner.map(|inner| inner.address.to_string());
        if inner.is_none() && command.iter().any(|word| word.contains(ADDRESS)) {
            return Err(not_quiesced("where the guest sees the device is not known".into()));
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

/// Why a guest has not prepared for the loss of a device.
pub(crate) struct NotQuiesced {
    /// For people.
    pub(crate) reason: String,
    /// Whether it is therefore not asked.
    pub(crate) demanded: bool,
}

/// Whether the guest runs, and has the device.
async fn is_live(host: &Host, plugged: GuestDevice) -> Result<bool, Error> {
    let view = host.server(plugged.server).await?;
    Ok(view.is_some_and(|view| Presence::of(&view, UserAlias(plugged.id.0)).live))
}
