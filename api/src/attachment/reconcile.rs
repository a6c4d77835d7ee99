//! Reconciliation: what libvirt has is the truth about guests; the records are brought in line with it.
//!
//! The same code runs at start, after a reconnect, on every event that concerns a guest, and every few minutes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::{Presence, Unplugged};
use hotslot_driver::hypervisor::{DomainView, Event};
use hotslot_driver::pci::PciAddress;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};

use super::{Observation, State};
use crate::error::Error;
use crate::host::{Again, Host};
use crate::id::{AttachmentId, RequestId, ServerId};
use crate::service::Service;
use crate::store::Attachment;

/// Events come in bursts; they are gathered this long before they are followed.
const GATHER: Duration = Duration::from_millis(50);

/// How long after a comparison that failed it is tried again: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What a burst of events asks for.
#[derive(Default)]
struct Todo {
    everything: bool,
    functions: BTreeSet<PciAddress>,
    interfaces: bool,
    groups: bool,
    servers: BTreeSet<ServerId>,
}

impl Todo {
    fn is_empty(&self) -> bool {
        !self.everything
            && !self.interfaces
            && !self.groups
            && self.functions.is_empty()
            && self.servers.is_empty()
    }

    fn note(&mut self, host: &Host, heard: Result<Event, RecvError>) {
        match heard {
            Ok(Event::Connected) | Err(RecvError::Lagged(_)) => self.everything = true,
            Err(RecvError::Closed) => {}
            Ok(Event::Disconnected { reason }) => {
                host.set_synced(false);
                tracing::warn!(host = %host.name, reason, "the hypervisor of host {} is away", host.name);
            }
            Ok(
                Event::Lifecycle { domain, .. }
                | Event::DeviceAdded { domain, .. }
                | Event::DeviceRemoved { domain, .. }
                | Event::DeviceRemovalFailed { domain, .. }
                | Event::Agent { domain, connected: true },
            ) => {
                self.servers.insert(ServerId(domain));
            }
            Ok(Event::Agent { connected: false, .. }) => {}
            // Disks on a function come and go with its driver; interfaces may have been named in a device_spec.
            Ok(Event::NodeDevice { name, .. }) => match PciAddress::from_node_name(&name) {
                Ok(address) => drop(self.functions.insert(address)),
                Err(_) => self.interfaces |= name.starts_with("net_"),
            },
        }
    }
}

/// Follows a host for as long as the service runs.
pub(crate) async fn follow(service: Arc<Service>, host: Arc<Host>) {
    let mut events = host.hypervisor.events();
    let Some(mut again) = host.asked_again.lock().await.take() else { return };
    let interval = service.config.reconcile.interval.0;
    let mut todo = Todo { everything: true, ..Todo::default() };
    let mut retry = RETRY.0;
    let mut next_round = Instant::now() + interval;
    loop {
        let away = host.hypervisor.connection().is_err();
        if todo.everything {
            next_round = Instant::now() + interval;
        }
        // A host that is away brings a full comparison with it when it is back.
        todo = if away { Todo::default() } else { service.carry_out(&host, std::mem::take(&mut todo)).await };
        let wake = if todo.is_empty() {
            retry = RETRY.0;
            next_round
        } else {
            let wake = Instant::now() + retry;
            retry = (retry * 2).min(RETRY.1);
            wake.min(next_round)
        };
        let mut until = wake;
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                heard = events.recv() => {
                    if matches!(heard, Err(RecvError::Closed)) {
                        return;
                    }
                    todo.note(&host, heard);
                }
                Some(again) = again.recv() => match again {
                    Again::Everything => todo.everything = true,
                    Again::Server(server) => drop(todo.servers.insert(server)),
                    Again::Function(address) => drop(todo.functions.insert(address)),
                    Again::Groups => todo.groups = true,
                },
            }
            // Events come in bursts: this one is followed when it has been gathered.
            until = until.min(Instant::now() + GATHER);
        }
        todo.everything |= Instant::now() >= next_round;
    }
}

impl Service {
    /// Compares what is asked for, and answers what could not be compared.
    async fn carry_out(self: &Arc<Self>, host: &Arc<Host>, todo: Todo) -> Todo {
        let mut left = Todo::default();
        let failed = |what: &str, error: Error| {
            if matches!(error, Error::HostAway { .. }) {
                tracing::debug!(host = %host.name, %error, "{what} was cut short");
            } else {
                tracing::error!(host = %host.name, %error, "{what} failed; it is tried again");
            }
        };
        // An event names an interface, not the function that it is on.
        let all = todo.everything || todo.interfaces && self.inventory().names_interfaces();
        let looked = if all { None } else { Some(todo.functions) };
        if looked.as_ref().is_none_or(|addresses| !addresses.is_empty())
            && let Err(error) = self.discover(host, looked.clone()).await
        {
            failed("reading the host's devices", error);
            left.everything = todo.everything;
            left.interfaces = todo.interfaces;
            left.functions = looked.unwrap_or_default();
        }
        let servers = if todo.everything {
            match self.servers_of(host).await {
                Ok(servers) => servers,
                Err(error) => {
                    failed("listing the host's servers", error);
                    return Todo { everything: true, ..left };
                }
            }
        } else {
            todo.servers
        };
        for server in servers {
            if let Err(error) = self.reconcile(host, server, todo.everything).await {
                // One guest that cannot be read holds nobody else up.
                failed(&format!("comparing server {server}"), error);
                left.servers.insert(server);
            }
        }
        if (todo.everything || todo.groups)
            && let Err(error) = self.give_back(host).await
        {
            failed("giving functions back to their host drivers", error);
            left.groups = true;
        }
        if todo.everything && !left.everything {
            host.set_synced(true);
        }
        left
    }

    /// The servers that a host has, and those that it has records of.
    async fn servers_of(&self, host: &Host) -> Result<BTreeSet<ServerId>, Error> {
        let domains = host.hypervisor.domains().await.map_err(host.error("list the host's domains"))?;
        let mut servers: BTreeSet<_> = domains.into_iter().map(|info| ServerId(info.uuid)).collect();
        let rows = self.store.attachments().await?;
        servers.extend(rows.iter().filter(|row| row.hypervisor == host.row.id).map(|row| row.server));
        Ok(servers)
    }

    /// Brings a server's attachments in line with its domain's documents. In a full `round`, guests that have not
    /// let go are asked again.
    async fn reconcile(
        self: &Arc<Self>,
        host: &Arc<Host>,
        server: ServerId,
        round: bool,
    ) -> Result<(), Error> {
        // Which rows nobody works on is looked up before the documents are read: of an attach that ends in between
        // they would say that it is not there.
        self.store.refresh().await?;
        let mut rows = self.store.attachments_of(server).await?;
        let mut busy = self.in_flight.of(rows.iter().map(|row| row.id)).await?;
        // A process whose locks went with a connection has them again soon; its attach is not cut off.
        busy.extend(self.store.attaching_elsewhere(server).await?);
        rows.retain(|row| row.hypervisor == host.row.id && !busy.contains(&row.id));
        let view = host.server(server).await?;
        if let Some(view) = &view {
            self.take_back_strays(host, view).await?;
        }
        self.settle_all(&observe(&rows, view.as_ref())).await?;
        for row in rows {
            let Some(row) = self.store.attachment(row.id).await? else { continue };
            self.verify_soon(host, &row);
            // Nobody works on it: ask the guest, for it may never have been asked.
            if row.state == State::Detaching
                && round
                && let Some(guard) = self.in_flight.try_enter(row.id).await?
            {
                let (service, host) = (Arc::clone(self), Arc::clone(host));
                tokio::spawn(async move {
                    if let Err(error) = service.detach_now(&host, row.id, guard).await {
                        tracing::info!(attachment.id = %row.id, %error, "a detach goes on");
                    }
                });
            }
        }
        Ok(())
    }

    /// Unplugs what an attach left behind that was given up before libvirt was done with it: a device with our
    /// alias whose attachment has ended. Its caller was told that it failed, and it may be promised to another.
    async fn take_back_strays(self: &Arc<Self>, host: &Arc<Host>, view: &DomainView) -> Result<(), Error> {
        for id in ours(view) {
            let row = self.store.attachment(id).await?;
            let Some(row) = row.filter(|row| row.state.is_final() && row.server.0 == view.info.uuid) else {
                continue;
            };
            let Some(guard) = self.in_flight.try_enter(id).await? else { continue };
            // It may have been unplugged, and its attachment have ended, since the documents were read.
            if !host.server(row.server).await?.is_some_and(|view| ours(&view).contains(&id)) {
                continue;
            }
            let (service, host) = (Arc::clone(self), Arc::clone(host));
            tracing::warn!(attachment.id = %id, server.id = %row.server, "taking back what a failed attach left");
            tokio::spawn(async move {
                let _guard = guard;
                match service.unplug(&host, &row, false).await {
                    Ok((_, Ok(Unplugged::Gone))) => {}
                    other => tracing::error!(attachment.id = %id, ?other, "it is still there"),
                }
            });
        }
        Ok(())
    }
}

/// The attachments whose devices are in a domain's documents.
fn ours(view: &DomainView) -> BTreeSet<AttachmentId> {
    let documents = [&view.live, &view.persistent].into_iter().flatten();
    documents
        .flat_map(|document| &document.hostdevs)
        .filter_map(|hostdev| UserAlias::parse(hostdev.alias.as_deref()?))
        .map(|alias| AttachmentId(alias.0))
        .collect()
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
                if row.state == State::Attaching && cut_off.contains(&row.request) {
                    let reason = "taken back, for an attach of the same request was cut off".to_owned();
                    seen.push((row.id, Observation::GivenUp { reason }));
                } else {
                    let only_in_definition = running && !presence.live;
                    seen.push((row.id, Observation::Present { inner, only_in_definition }));
                }
            }
        }
    }
    seen
}
