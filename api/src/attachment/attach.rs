//! Attach: all devices of a request, or none.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use hotslot_driver::device::HostDevice;
use hotslot_driver::hotplug::{self, Facts, Policy, Presence, Unplugged};
use hotslot_driver::hypervisor::{self, DomainView, ErrorKind, Scope};
use uuid::Uuid;

use super::Observation;
use crate::busy;
use crate::error::Error;
use crate::host::Host;
use crate::id::{AttachmentId, DeviceId, RequestId, ServerId};
use crate::inventory::{self, AliasRequest, Scene, Wanted};
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
    device: Arc<Device>,
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
    ) -> Result<Vec<(Attachment, Arc<Device>)>, Error> {
        let service = Arc::clone(self);
        tokio::spawn(async move { service.attach_now(request).await })
            .await
            .map_err(|error| Error::Internal(format!("the attach ended without an answer: {error}")))?
    }

    async fn attach_now(
        self: Arc<Self>,
        request: AttachRequest,
    ) -> Result<Vec<(Attachment, Arc<Device>)>, Error> {
        let inventory = self.inventory();
        for wanted in &request.aliases {
            if inventory.alias(&wanted.name).is_none() {
                let known: Vec<_> = inventory.alias_names().collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Error::UnknownAlias { name: wanted.name.clone(), known });
            }
        }
        let (host, _) = self.find(request.server).await?;
        host.ready().await?;
        // On one server in turn: two requests must not count on the same free port.
        let _turn = self.turns.of(request.server).await;
        let view = host.server(request.server).await?.ok_or(Error::NoServer(request.server))?;
        let scope = scope(&view, request.persistent)?;
        // What goes into no definition is not said to be in one.
        let request = AttachRequest { persistent: scope != Scope::Live, ..request };
        let mut choice = Choice::default();
        loop {
            let (steps, in_flight) = self.reserve(&host, &view, &request, &mut choice).await?;
            let plugged = self.plug_all(&host, &view, scope, steps).await;
            drop(in_flight);
            host.look_again(request.server);
            match plugged {
                Ok(answer) => return Ok(answer),
                // Someone else has the device, which only libvirt knew: another one may do.
                Err(Failure { device, in_use: true, error }) => choice.exclude(device, error),
                Err(failure) => return Err(failure.error),
            }
        }
    }

    /// Chooses devices, looks whether they could be plugged, and claims them, all or none.
    async fn reserve(
        self: &Arc<Self>,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        choice: &mut Choice,
    ) -> Result<(Vec<Step>, busy::Guard), Error> {
        let mut races = 0;
        while races < RACES {
            let chosen = self.choose(host, request, choice).await?;
            if !self.preflight(host, view, chosen.iter().map(|(_, device)| device), choice).await? {
                continue;
            }
            races += 1;
            let wanted: Vec<NewAttachment> = chosen
                .iter()
                .map(|(alias, device)| NewAttachment {
                    id: AttachmentId(Uuid::new_v4()),
                    device: device.id,
                    alias: alias.clone(),
                    managed: inventory::is_managed(&device.facts),
                    network: None,
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

    /// Chooses free devices for each part of a request, those that were found not to do left out.
    async fn choose(
        &self,
        host: &Host,
        request: &AttachRequest,
        choice: &mut Choice,
    ) -> Result<Vec<(String, Arc<Device>)>, Error> {
        let devices = self.store.devices_of(host.row.id);
        let inventory = self.inventory();
        let wanted = request.aliases.iter().map(|part| {
            let alias = inventory.alias(&part.name);
            let alias = alias.ok_or_else(|| Error::Internal(format!("alias {} is lost", part.name)))?;
            Ok(Wanted { alias, count: part.count, numa_policy: None, whole_group: false })
        });
        let wanted = wanted.collect::<Result<Vec<_>, Error>>()?;
        let scene = Scene {
            devices: &devices,
            withheld: &choice.excluded,
            guest_nodes: &BTreeSet::new(),
            sockets: None,
            groups: &HashMap::new(),
        };
        let chosen = match inventory::choose(&wanted, &scene) {
            Ok(chosen) => chosen,
            // Enough were free, and one of them did not do: that is the answer.
            Err(shortage) => {
                let advice = if inventory.is_empty() {
                    "[pci] device_spec is empty, so nothing is assignable"
                } else {
                    "detach one, or look at GET os-pci/detail"
                };
                let short = Error::TooFewFree { shortage, host: host.name.clone(), advice };
                return Err(choice.refusal.take().unwrap_or(short));
            }
        };
        let parts = request.aliases.iter().zip(chosen);
        Ok(parts
            .flat_map(|(part, devices)| {
                devices.into_iter().map(|device| (part.name.clone(), Arc::clone(device)))
            })
            .collect())
    }

    /// Whether these devices may be plugged; false when one of them does not do and was left out.
    async fn preflight(
        &self,
        host: &Host,
        view: &DomainView,
        devices: impl Iterator<Item = &Arc<Device>>,
        choice: &mut Choice,
    ) -> Result<bool, Error> {
        let context = || format!("nothing was attached to server {}", view.info.uuid);
        let mut seen: Vec<(DeviceId, HostDevice)> = Vec::new();
        for device in devices {
            match host.hypervisor.device(device.facts.address).await {
                // The table is behind: it is another device now.
                Ok(found) if !inventory::is_still(&device.facts, &found) => {
                    let reason = format!("{} has changed on the host; try again", device.facts.address);
                    choice.exclude(device.id, Error::Conflict(reason));
                    return Ok(false);
                }
                Ok(found) => seen.push((device.id, found)),
                Err(error) if error.kind == ErrorKind::NoDevice => {
                    choice.exclude(device.id, host.error(context())(error));
                    return Ok(false);
                }
                Err(error) => return Err(host.error(context())(error)),
            }
        }
        let (ids, facts): (Vec<_>, Vec<Facts>) =
            seen.into_iter().map(|(id, function)| (id, Facts::from(function))).unzip();
        let verdict = hotplug::preflight(host.hypervisor.as_ref(), view, &facts, Policy::default()).await;
        let verdict = verdict.map_err(host.error(context()))?;
        let Some(refusal) = verdict.refusal() else { return Ok(true) };
        let culprit = facts.iter().position(|facts| Some(facts.device.address) == refusal.device);
        let error = host.error(context())(refusal.error.clone());
        match culprit.and_then(|index| ids.get(index)) {
            Some(id) => {
                choice.exclude(*id, error);
                Ok(false)
            }
            None => Err(error),
        }
    }

    async fn plug_all(
        self: &Arc<Self>,
        host: &Arc<Host>,
        view: &DomainView,
        scope: Scope,
        steps: Vec<Step>,
    ) -> Result<Vec<(Attachment, Arc<Device>)>, Failure> {
        let mut present: Vec<Presence> = Vec::new();
        for step in &steps {
            let spec = hostdev_spec(&step.attachment, &step.device);
            let (hypervisor, limits) = (host.hypervisor.as_ref(), self.detach_limits());
            match hotplug::plug(hypervisor, &self.templates, view.info.uuid, &spec, scope, limits).await {
                Ok(presence) => present.push(presence),
                Err(error) => return Err(self.undo(host, &steps, present.len(), error).await),
            }
        }
        let seen: Vec<_> = steps
            .iter()
            .zip(&present)
            .map(|(step, presence)| {
                let inner = presence.inner_address;
                (step.attachment.id, Observation::Present { inner, only_in_definition: false })
            })
            .collect();
        let Some(first) = steps.first().map(|step| step.device.id) else {
            return Err(Failure::of(DeviceId(0), Error::Internal("an attach of nothing".into())));
        };
        self.settle_all(&seen).await.map_err(|error| Failure::of(first, error))?;
        let mut answer = Vec::new();
        for step in steps {
            let id = step.attachment.id;
            let attachment = self.store.attachment(id).await.map_err(|error| Failure::of(first, error))?;
            let attachment = attachment.unwrap_or(step.attachment);
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
    ) -> Failure {
        let Some(culprit) = steps.get(failed) else {
            return Failure::of(DeviceId(0), Error::Internal("undo of no step".into()));
        };
        let address = culprit.device.facts.address;
        let because = format!("taken back, for attaching {address} of the same request failed");
        tracing::warn!(pci.address = %address, %error, "attach failed");
        // What is to become of all is on record before the first is touched.
        let mut intents: Vec<(AttachmentId, Observation)> = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let intent = match index.cmp(&failed) {
                Ordering::Less => Observation::GivenUp { reason: because.clone() },
                // Refused is not unknown: after a lost connection or a time-out it may be there.
                Ordering::Equal if error.kind.leaves_it_open() => {
                    Observation::GivenUp { reason: error.to_string() }
                }
                Ordering::Equal => Observation::Gone { reason: Some(error.to_string()) },
                Ordering::Greater => Observation::Gone { reason: Some(format!("not tried: {because}")) },
            };
            intents.push((step.attachment.id, intent));
        }
        if let Err(error) = self.settle_all(&intents).await {
            return Failure::of(culprit.device.id, error);
        }
        let mut left = Vec::new();
        for step in &steps[..failed] {
            let id = step.attachment.id;
            let outcome = match self.unplug(host, &step.attachment, false).await {
                Ok((_, Ok(Unplugged::Gone))) => Observation::Gone { reason: Some(because.clone()) },
                Ok((_, Ok(Unplugged::Refused { reason } | Unplugged::Pending { reason }))) => {
                    Observation::StillThere { reason: format!("{because}: {reason}") }
                }
                Ok((_, Err(error))) => Observation::StillThere { reason: format!("{because}: {error}") },
                Err(error) => Observation::StillThere { reason: format!("{because}: {error}") },
            };
            if let Observation::StillThere { reason } = &outcome {
                left.push(format!(
                    "attachment {id} of {} stays detaching: {reason}",
                    step.device.facts.address
                ));
            }
            if let Err(error) = self.settle(id, &outcome).await {
                tracing::error!(attachment.id = %id, %error, "cannot record what became of an attachment");
            }
        }
        if error.kind.leaves_it_open() {
            let id = culprit.attachment.id;
            left.push(format!("attachment {id} of {address} is taken back when the host answers"));
        }
        let nth = if steps.len() > 1 {
            format!(" (device {} of {})", failed + 1, steps.len())
        } else {
            String::new()
        };
        let rest = if left.is_empty() { "nothing is left of it".to_owned() } else { left.join("; ") };
        let in_use = error.kind == ErrorKind::InUse && left.is_empty();
        let error = host.error(format!("attaching {address}{nth} failed, {rest}"))(error);
        Failure { device: culprit.device.id, in_use, error }
    }
}

/// An attach that was undone.
struct Failure {
    /// The device that failed.
    device: DeviceId,
    /// Whether someone else has it, and nothing is left of the attach.
    in_use: bool,
    error: Error,
}

impl Failure {
    fn of(device: DeviceId, error: Error) -> Self {
        Self { device, in_use: false, error }
    }
}

/// Devices that were found not to do, and why the last of them does not.
#[derive(Default)]
struct Choice {
    excluded: HashMap<DeviceId, String>,
    refusal: Option<Error>,
}

impl Choice {
    fn exclude(&mut self, device: DeviceId, error: Error) {
        self.excluded.insert(device, error.to_string());
        self.refusal = Some(error);
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
