//! Reconciliation: what libvirt has is the truth about guests; the records are brought in line with it.
//!
//! The same code runs at start, after a reconnect, on every event that concerns a guest, and every few minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hotslot_driver::hypervisor::Event;
use hotslot_driver::pci::PciAddress;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};

use super::drift::Occasion;
use crate::error::Error;
use crate::host::{Again, Host};
use crate::id::ServerId;
use crate::service::Service;
use crate::who::{self, itself};

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
    mdevs: bool,
    groups: bool,
    servers: BTreeMap<ServerId, Occasion>,
}

impl Todo {
    fn is_empty(&self) -> bool {
        !self.everything
            && !self.interfaces
            && !self.mdevs
            && !self.groups
            && self.functions.is_empty()
            && self.servers.is_empty()
    }

    fn server(&mut self, server: ServerId, occasion: Occasion) {
        let known = self.servers.entry(server).or_insert(occasion);
        *known = occasion.max(*known);
    }

    fn note(&mut self, host: &Host, heard: Result<Event, RecvError>) {
        match heard {
            Ok(Event::Connected) | Err(RecvError::Lagged(_)) => self.everything = true,
            Err(RecvError::Closed) => {}
            Ok(Event::Disconnected { reason }) => {
                host.set_synced(false);
                tracing::warn!(host = %host.name, reason, "the hypervisor of host {} is away", host.name);
            }
            Ok(Event::Lifecycle { domain, .. } | Event::DeviceAdded { domain, .. }) => {
                self.server(ServerId(domain), Occasion::Arrival);
            }
            Ok(Event::DeviceRemoved { domain, .. } | Event::DeviceRemovalFailed { domain, .. }) => {
                self.server(ServerId(domain), Occasion::Event)
            }
            // What a guest was asked while it booted it may have lost, and a call that is back is open to the end.
            Ok(Event::CameBack { domain } | Event::Agent { domain, connected: true }) => {
                self.server(ServerId(domain), Occasion::Round);
            }
            Ok(Event::Agent { connected: false, .. }) => {}
            // Disks on a function come and go with its driver; interfaces may have been named in a device_spec.
            Ok(Event::NodeDevice { name, .. }) => match PciAddress::from_node_name(&name) {
                Ok(address) => drop(self.functions.insert(address)),
                Err(_) => {
                    self.interfaces |= name.starts_with("net_");
                    self.mdevs |= name.starts_with("mdev_");
                }
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
        todo = if away {
            Todo::default()
        } else {
            let work = service.carry_out(&host, std::mem::take(&mut todo));
            who::as_process(service.store.new_worker(), work).await
        };
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
                    Again::Server(server) => todo.server(server, Occasion::Event),
                    // Whatever it was that failed is not at once over.
                    Again::Open(server) => {
                        todo.server(server, Occasion::Round);
                        until = until.min(Instant::now() + RETRY.0);
                        continue;
                    }
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
            && let Err(error) = who::by(itself::DISCOVERY, self.discover(host, looked.clone())).await
        {
            failed("reading the host's devices", error);
            left.everything = todo.everything;
            left.interfaces = todo.interfaces;
            left.functions = looked.unwrap_or_default();
        }
        if (todo.everything || todo.mdevs)
            && let Err(error) = host.look_at_mdevs().await
        {
            failed("reading the host's mediated devices", error);
            left.mdevs = true;
        }
        let servers = if todo.everything {
            match self.servers_of(host).await {
                Ok(servers) => servers.into_iter().map(|server| (server, Occasion::Round)).collect(),
                Err(error) => {
                    failed("listing the host's servers", error);
                    return Todo { everything: true, ..left };
                }
            }
        } else {
            todo.servers
        };
        let why = if todo.everything { itself::COMPARISON } else { itself::EVENT };
        for (server, occasion) in servers {
            let compared = async {
                self.reconcile(host, server, occasion).await?;
                self.settle_mdevs(host, server, occasion >= Occasion::Round).await
            };
            if let Err(error) = who::by(why, compared).await {
                // One guest that cannot be read holds nobody else up.
                failed(&format!("comparing server {server}"), error);
                left.server(server, occasion);
            }
        }
        if (todo.everything || todo.groups)
            && let Err(error) = who::by(itself::COMPARISON, self.give_back(host)).await
        {
            failed("giving functions back to their host drivers", error);
            left.groups = true;
        }
        if (todo.everything || todo.groups)
            && let Err(error) = who::by(itself::COMPARISON, self.settle_bindings(host)).await
        {
            failed("settling what the host itself was to hold", error);
            left.groups = true;
        }
        if todo.everything && !left.everything {
            host.set_synced(true);
        }
        left
    }

    /// The servers that a host has, and those that it has records of or that were seen to have devices.
    pub(super) async fn servers_of(&self, host: &Host) -> Result<BTreeSet<ServerId>, Error> {
        let domains = host.hypervisor.domains().await.map_err(host.error("list the host's domains"))?;
        let mut servers: BTreeSet<_> = domains.into_iter().map(|info| ServerId(info.uuid)).collect();
        let rows = self.store.attachments().await?;
        servers.extend(host.holders());
        servers.extend(rows.iter().filter(|row| row.hypervisor == host.row.id).map(|row| row.server));
        let mdevs = self.store.mdevs().await?;
        servers.extend(mdevs.iter().filter(|row| row.hypervisor == host.row.id).map(|row| row.server));
        Ok(servers)
    }

    /// Brings a server's attachments in line with its domain's documents, as far as the occasion goes.
    pub(crate) async fn reconcile(
        self: &Arc<Self>,
        host: &Arc<Host>,
        server: ServerId,
        occasion: Occasion,
    ) -> Result<(), Error> {
        let findings = self.compare(host, server).await?;
        // The guests that are asked take their time.
        drop(self.put_right(host, findings, occasion).await?);
        let mut rows = self.store.attachments_of(server).await?;
        rows.retain(|row| row.hypervisor == host.row.id);
        let busy = self.in_flight.of(rows.iter().map(|row| row.id)).await?;
        for row in rows.iter().filter(|row| !busy.contains(&row.id)) {
            self.verify_soon(host, row);
        }
        tracing::debug!(host = %host.name, server.id = %server, "compared server {server}");
        Ok(())
    }
}
