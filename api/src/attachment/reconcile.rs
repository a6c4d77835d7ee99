//! Reconciliation: what libvirt has is the truth about guests; the records are brought in line with it.
//!
//! The same code runs at start, after a reconnect, on every event that concerns a guest, and every few minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::{Presence, Unplugged};
use hotslot_driver::hypervisor::{DomainView, Event};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{Observation, State};
use crate::error::Error;
use crate::host::Host;
use crate::id::{AttachmentId, RequestId, ServerId};
use crate::service::Service;
use crate::store::Attachment;

/// Events come in bursts; they are gathered this long before they are followed.
const GATHER: Duration = Duration::from_millis(50);

/// What a burst of events asks for.
#[derive(Default)]
struct Todo {
    everything: bool,
    devices: bool,
    servers: BTreeSet<Uuid>,
}

impl Todo {
    fn note(&mut self, heard: Result<Event, RecvError>) {
        match heard {
            Ok(Event::Connected) | Err(RecvError::Lagged(_)) => self.everything = true,
            Ok(Event::Disconnected { .. }) | Err(RecvError::Closed) => {}
            Ok(
                Event::Lifecycle { domain, .. }
                | Event::DeviceAdded { domain, .. }
                | Event::DeviceRemoved { domain, .. }
                | Event::DeviceRemovalFailed { domain, .. }
                | Event::Agent { domain, connected: true },
            ) => {
                self.servers.insert(domain);
            }
            Ok(Event::Agent { connected: false, .. }) => {}
            // Interfaces and disks on a function come and go with its driver; only functions are recorded.
            Ok(Event::NodeDevice { name, .. }) => self.devices |= name.starts_with("pci_"),
        }
    }
}

/// Follows a host for as long as the service runs.
pub(crate) async fn follow(service: Arc<Service>, host: Arc<Host>) {
    let mut events = host.hypervisor.events();
    let mut todo = Todo { everything: host.hypervisor.connection().is_ok(), ..Todo::default() };
    let interval = service.config.reconcile.interval.0;
    let mut next_round = Instant::now() + interval;
    loop {
        if todo.everything {
            next_round = Instant::now() + interval;
        }
        service.carry_out(&host, std::mem::take(&mut todo)).await;
        match timeout_at(next_round, events.recv()).await {
            Err(_) => todo.everything = host.hypervisor.connection().is_ok(),
            Ok(Err(RecvError::Closed)) => return,
            Ok(heard) => {
                if let Ok(Event::Disconnected { reason }) = &heard {
                    host.set_synced(false);
                    tracing::warn!(host = %host.name, reason, "the hypervisor of host {} is away", host.name);
                }
                todo.note(heard);
                let until = Instant::now() + GATHER;
                while let Ok(heard) = timeout_at(until, events.recv()).await {
                    if matches!(heard, Err(RecvError::Closed)) {
                        return;
                    }
                    if matches!(heard, Ok(Event::Disconnected { .. })) {
                        host.set_synced(false);
                    }
                    todo.note(heard);
                }
            }
        }
        if Instant::now() >= next_round {
            next_round = Instant::now() + interval;
        }
    }
}

impl Service {
    async fn carry_out(self: &Arc<Self>, host: &Arc<Host>, todo: Todo) {
        let done = async {
            if todo.everything {
                self.scan(host).await?;
                self.reconcile(host, None).await?;
                host.set_synced(true);
                return Ok(());
            }
            if todo.devices {
                self.scan(host).await?;
            }
            for server in todo.servers {
                self.reconcile(host, Some(ServerId(server))).await?;
            }
            Ok::<_, Error>(())
        };
        match done.await {
            Ok(()) => {}
            // The reconnect brings a full comparison with it.
            Err(Error::HostAway { reason, .. }) => {
                tracing::debug!(host = %host.name, reason, "the comparison was cut short");
            }
            Err(error) => {
                tracing::error!(host = %host.name, %error, "cannot bring records and host together")
            }
        }
    }

    /// Brings the device table in line with a host.
    async fn scan(&self, host: &Host) -> Result<(), Error> {
        let devices = host.hypervisor.devices().await.map_err(host.error("list the host's devices"))?;
        let facts: Vec<_> = devices.iter().filter_map(|device| self.inventory.facts(device)).collect();
        let outcome = self.store.scan(host.row.id, &facts).await?;
        tracing::debug!(host = %host.name, ?outcome, functions = devices.len(), "scanned");
        if outcome.gone_in_use > 0 {
            tracing::warn!(host = %host.name, count = outcome.gone_in_use, "devices in use are gone from host or device_spec");
        }
        Ok(())
    }

    /// Brings the attachments of a host, or of one of its servers, in line with the domains' documents.
    async fn reconcile(self: &Arc<Self>, host: &Arc<Host>, only: Option<ServerId>) -> Result<(), Error> {
        let rows = match only {
            Some(server) => self.store.attachments_of(server).await?,
            None => self.store.attachments().await?,
        };
        let mut by_server = BTreeMap::<ServerId, Vec<Attachment>>::new();
        for row in rows {
            if row.hypervisor == host.row.id && !self.in_flight.contains(row.id) {
                by_server.entry(row.server).or_default().push(row);
            }
        }
        self.take_back_strays(host, only).await?;
        for (server, rows) in by_server {
            let view = host.server(server).await?;
            let seen = observe(&rows, view.as_ref());
            self.settle_all(&seen).await?;
            for row in rows {
                let Some(row) = self.store.attachment(row.id).await? else { continue };
                self.verify_soon(host, &row);
                if row.state == State::Detaching && only.is_none() {
                    // Nobody in this process waits for it: ask the guest again, for it may never have been asked.
                    let (service, host) = (Arc::clone(self), Arc::clone(host));
                    tokio::spawn(async move {
                        if let Err(error) = service.detach_now(&host, row.id).await {
                            tracing::info!(attachment.id = %row.id, %error, "a detach goes on");
                        }
                    });
                }
            }
        }
        Ok(())
    }
}

impl Service {
    /// Unplugs what an attach left behind that was given up before libvirt was done with it: a device with our
    /// alias whose attachment has ended. Its caller was told that it failed, and it may be promised to another.
    async fn take_back_strays(
        self: &Arc<Self>,
        host: &Arc<Host>,
        only: Option<ServerId>,
    ) -> Result<(), Error> {
        let servers = match only {
            Some(server) => vec![server.0],
            None => {
                let domains =
                    host.hypervisor.domains().await.map_err(host.error("list the host's domains"))?;
                domains.into_iter().map(|info| info.uuid).collect()
            }
        };
        for server in servers {
            let Some(view) = host.server(ServerId(server)).await? else { continue };
            let documents = [&view.live, &view.persistent].into_iter().flatten();
            let ours: BTreeSet<AttachmentId> = documents
                .flat_map(|document| &document.hostdevs)
                .filter_map(|hostdev| UserAlias::parse(hostdev.alias.as_deref()?))
                .map(|alias| AttachmentId(alias.0))
                .collect();
            for id in ours {
                let Some(row) = self.store.attachment(id).await?.filter(|row| row.state.is_final()) else {
                    continue;
                };
                let Some(busy) = self.in_flight.try_enter(id) else { continue };
                let (service, host) = (Arc::clone(self), Arc::clone(host));
                tracing::warn!(attachment.id = %id, server.id = %row.server, "taking back what a failed attach left");
                tokio::spawn(async move {
                    let _busy = busy;
                    match service.unplug(&host, &row).await {
                        Ok((_, Ok(Unplugged::Gone))) => {}
                        other => tracing::error!(attachment.id = %id, ?other, "it is still there"),
                    }
                });
            }
        }
        Ok(())
    }
}

/// What a domain's documents say of its attachments.
fn observe(rows: &[Attachment], view: Option<&DomainView>) -> Vec<(AttachmentId, Observation)> {
    let presence = |row: &Attachment| view.map(|view| Presence::of(view, UserAlias(row.id.0)));
    // All devices of a request or none: one that was cut off in the middle is taken back.
    let cut_off: BTreeSet<RequestId> = rows
        .iter()
        .filter(|row| row.state == State::Attaching && presence(row).is_none_or(Presence::is_absent))
        .map(|row| row.request)
        .collect();
    let mut seen = Vec::new();
    for row in rows {
        match presence(row) {
            None => {
                let reason = "the server is gone".to_owned();
                seen.push((row.id, Observation::Gone { reason: Some(reason) }));
            }
            Some(presence) if presence.is_absent() => {
                let reason = match row.state {
                    State::Attaching => {
                        Some("the attach was cut off before the device was plugged".to_owned())
                    }
                    State::Attached => {
                        Some("removed from the domain outside of hotslot, or with its power".to_owned())
                    }
                    State::Detaching | State::Detached | State::Failed => None,
                };
                seen.push((row.id, Observation::Gone { reason }));
            }
            Some(presence) => {
                let inner = presence.inner_address;
                let running = view.is_some_and(|view| view.live.is_some());
                let note = (running && !presence.live)
                    .then(|| "only in the domain's definition: it comes with the next start".to_owned());
                seen.push((row.id, Observation::Present { inner, note }));
                if row.state == State::Attaching && cut_off.contains(&row.request) {
                    seen.push((row.id, Observation::AskedToDetach));
                }
            }
        }
    }
    seen
}
