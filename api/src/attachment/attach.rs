//! Attach: all devices of a request, or none.

use std::collections::HashSet;
use std::sync::Arc;

use hotslot_driver::device::HostDevice;
use hotslot_driver::hotplug::{self, Presence, Unplugged};
use hotslot_driver::hypervisor::{self, DomainView, Scope};
use uuid::Uuid;

use super::Observation;
use crate::busy;
use crate::error::Error;
use crate::host::Host;
use crate::id::{AttachmentId, RequestId, ServerId};
use crate::inventory::{self, AliasRequest};
use crate::service::{Service, hostdev_spec};
use crate::store::{Attachment, Device, NewAttachment};

/// How often a request that lost a race for a device chooses again.
const RACES: usize = 16;

/// A request for devices.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The server.
    pub server: ServerId,
    /// What it is to get.
    pub aliases: Vec<AliasRequest>,
    /// Whether the devices go into the persistent definition too.
    pub persistent: bool,
}

/// One attachment that is to be plugged, with its device.
struct Step {
    attachment: Attachment,
    device: Device,
}

impl Service {
    /// Attaches what a request asks for, and answers its attachments in the order asked.
    ///
    /// The work goes on when the caller goes away.
    ///
    /// # Errors
    /// Nothing was attached, or the error says what is left and in which state.
    pub async fn attach(
        self: &Arc<Self>,
        request: AttachRequest,
    ) -> Result<Vec<(Attachment, Device)>, Error> {
        let service = Arc::clone(self);
        tokio::spawn(async move { service.attach_now(request).await })
            .await
            .map_err(|error| Error::Internal(format!("the attach ended without an answer: {error}")))?
    }

    async fn attach_now(self: Arc<Self>, request: AttachRequest) -> Result<Vec<(Attachment, Device)>, Error> {
        for wanted in &request.aliases {
            if self.inventory.alias(&wanted.name).is_none() {
                let known: Vec<_> = self.inventory.alias_names().collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Error::UnknownAlias { name: wanted.name.clone(), known });
            }
        }
        let (host, view) = self.find(request.server).await?;
        host.ready().await?;
        let scope = scope(&view, request.persistent)?;
        // What goes into no definition is not said to be in one.
        let request = AttachRequest { persistent: scope != Scope::Live, ..request };
        let (steps, _in_flight) = self.reserve(&host, &view, &request).await?;
        self.plug_all(&host, &view, scope, steps).await
    }

    /// Chooses devices, looks whether they could be plugged, and claims them, all or none.
    async fn reserve(
        self: &Arc<Self>,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
    ) -> Result<(Vec<Step>, busy::Guard), Error> {
        for _ in 0..RACES {
            let devices: Vec<Device> = self
                .store
                .devices()
                .await?
                .into_iter()
                .filter(|device| device.hypervisor == host.row.id)
                .collect();
            let mut taken = HashSet::new();
            let mut chosen = Vec::new();
            for wanted in &request.aliases {
                let alias =
                    self.inventory.alias(&wanted.name).ok_or_else(|| Error::Internal("alias".into()))?;
                let picked = inventory::choose(alias, wanted.count, &devices, &taken).map_err(|free| {
                    Error::TooFewFree {
                        alias: wanted.name.clone(),
                        wanted: wanted.count,
                        free,
                        host: host.name.clone(),
                        advice: if self.inventory.is_empty() {
                            "[pci] device_spec is empty, so nothing is assignable"
                        } else {
                            "detach one, or look at GET os-pci/detail"
                        },
                    }
                })?;
                taken.extend(picked.iter().map(|device| device.id));
                chosen.extend(picked.into_iter().map(|device| (wanted.name.clone(), device.clone())));
            }
            self.preflight(host, view, chosen.iter().map(|(_, device)| device)).await?;
            let wanted: Vec<NewAttachment> = chosen
                .iter()
                .map(|(alias, device)| NewAttachment {
                    id: AttachmentId(Uuid::new_v4()),
                    device: device.id,
                    alias: alias.clone(),
                    managed: inventory::is_managed(&device.facts),
                })
                .collect();
            // In flight before it can be seen, so that reconciliation never takes it for a left-over.
            let in_flight = self.in_flight.enter(wanted.iter().map(|new| new.id));
            let id = RequestId(Uuid::new_v4());
            if self.store.reserve(host.row.id, request.server, id, request.persistent, &wanted).await? {
                let mut steps = Vec::new();
                for (new, (_, device)) in wanted.iter().zip(chosen) {
                    let attachment = self.store.attachment(new.id).await?;
                    let attachment =
                        attachment.ok_or_else(|| Error::Internal(format!("{} is lost", new.id)))?;
                    steps.push(Step { attachment, device });
                }
                return Ok((steps, in_flight));
            }
        }
        Err(Error::Conflict("other requests took the devices first; try again".into()))
    }

    async fn preflight(
        &self,
        host: &Host,
        view: &DomainView,
        devices: impl Iterator<Item = &Device>,
    ) -> Result<(), Error> {
        let context = || format!("nothing was attached to server {}", view.info.uuid);
        let mut seen: Vec<HostDevice> = Vec::new();
        for device in devices {
            let found = host.hypervisor.device(device.facts.address).await;
            seen.push(found.map_err(host.error(context()))?);
        }
        hotplug::preflight(host.hypervisor.as_ref(), view, &seen).await.map_err(host.error(context()))
    }

    async fn plug_all(
        self: &Arc<Self>,
        host: &Arc<Host>,
        view: &DomainView,
        scope: Scope,
        steps: Vec<Step>,
    ) -> Result<Vec<(Attachment, Device)>, Error> {
        let mut present: Vec<Presence> = Vec::new();
        for step in &steps {
            let spec = hostdev_spec(&step.attachment, &step.device);
            let plugged =
                hotplug::plug(host.hypervisor.as_ref(), &self.templates, view.info.uuid, &spec, scope).await;
            match plugged {
                Ok(presence) => present.push(presence),
                Err(error) => return Err(self.undo(host, &steps, present.len(), error).await),
            }
        }
        let seen: Vec<_> = steps
            .iter()
            .zip(&present)
            .map(|(step, presence)| {
                let inner = presence.inner_address;
                (step.attachment.id, Observation::Present { inner, note: None })
            })
            .collect();
        self.settle_all(&seen).await?;
        let mut answer = Vec::new();
        for step in steps {
            let id = step.attachment.id;
            let attachment = self.store.attachment(id).await?.unwrap_or(step.attachment);
            tracing::info!(
                server.id = %attachment.server, attachment.id = %id, pci.address = %step.device.facts.address,
                "attached {} to server {}", step.device.facts.address, attachment.server
            );
            self.verify_soon(host, &attachment);
            answer.push((attachment, step.device));
        }
        Ok(answer)
    }

    /// Takes back what was plugged before the `failed`th step failed, and says what became of everything.
    async fn undo(
        self: &Arc<Self>,
        host: &Host,
        steps: &[Step],
        failed: usize,
        error: hypervisor::Error,
    ) -> Error {
        let Some(culprit) = steps.get(failed) else { return Error::Internal("undo of no step".into()) };
        let address = culprit.device.facts.address;
        let mut left = Vec::new();
        let mut seen: Vec<(AttachmentId, Observation)> = Vec::new();
        // Refused is not unknown: after a lost connection or a time-out, libvirt is asked again first.
        if error.kind.leaves_it_open() {
            let reason = format!("it is not known yet whether the attach took effect: {error}");
            left.push(format!(
                "attachment {} of {address} stays attaching until the host answers",
                culprit.attachment.id
            ));
            seen.push((culprit.attachment.id, Observation::StillThere { reason }));
        } else {
            seen.push((culprit.attachment.id, Observation::Gone { reason: Some(error.to_string()) }));
        }
        for step in &steps[failed + 1..] {
            let reason = format!("not tried, for {address} of the same request failed");
            seen.push((step.attachment.id, Observation::Gone { reason: Some(reason) }));
        }
        for step in &steps[..failed] {
            let id = step.attachment.id;
            let because = format!("taken back, for {address} of the same request failed");
            seen.push((id, Observation::Present { inner: None, note: None }));
            seen.push((id, Observation::AskedToDetach));
            let spec = hostdev_spec(&step.attachment, &step.device);
            let server = step.attachment.server.0;
            let unplugged = hotplug::unplug(
                host.hypervisor.as_ref(),
                &self.templates,
                server,
                &spec,
                self.detach_limits(),
            );
            let outcome = match unplugged.await {
                Ok(Unplugged::Gone) => Observation::Gone { reason: Some(because) },
                Ok(Unplugged::Refused { reason } | Unplugged::Pending { reason }) => {
                    Observation::StillThere { reason: format!("{because}: {reason}") }
                }
                Err(error) => Observation::StillThere { reason: format!("{because}: {error}") },
            };
            if let Observation::StillThere { reason } = &outcome {
                left.push(format!(
                    "attachment {id} of {} stays detaching, {reason}",
                    step.device.facts.address
                ));
            }
            seen.push((id, outcome));
        }
        for one in &seen {
            if let Err(error) = self.settle_all(std::slice::from_ref(one)).await {
                tracing::error!(attachment.id = %one.0, %error, "cannot record what became of an attachment");
                left.push(format!("attachment {} could not be recorded", one.0));
            }
        }
        tracing::warn!(pci.address = %address, %error, "attach failed");
        let nth = if steps.len() > 1 {
            format!(" (device {} of {})", failed + 1, steps.len())
        } else {
            String::new()
        };
        let rest = if left.is_empty() { "nothing is left of it".to_owned() } else { left.join("; ") };
        host.error(format!("attaching {address}{nth} failed, {rest}"))(error)
    }
}

/// Where an attach to a server in this state takes effect.
fn scope(view: &DomainView, persistent: bool) -> Result<Scope, Error> {
    match (view.live.is_some(), view.persistent.is_some(), persistent) {
        (true, true, true) => Ok(Scope::LiveAndConfig),
        // A transient domain has no definition to go into.
        (true, false, _) | (true, true, false) => Ok(Scope::Live),
        (false, true, true) => Ok(Scope::Config),
        (false, _, false) => Err(Error::Conflict(format!(
            "server {} is shut off: a device can only go into its definition; leave \"persistent\" out or true",
            view.info.uuid
        ))),
        (false, false, true) => Err(Error::NoServer(ServerId(view.info.uuid))),
    }
}
