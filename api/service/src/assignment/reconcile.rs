//! Reconciliation: what libvirt has is the truth about guests; the records are brought in line with it.
//!
//! The same code runs at start, after a reconnect, on every event that concerns a guest, and every few minutes.
//!
//! Two tasks do it for each host. One follows it, and only reads the host and writes records: it waits for no call that
//! changes something, nor for a lock that is held over one, so that what happens on the host is seen at once. The
//! other gives functions back to their drivers, and waits for both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use hotslot_driver::hypervisor::{Event, Lifecycle};
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Assignment, Trigger};
use hotslot_model::id::ServerId;
use hotslot_store::actor::{self, system};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until, timeout};

use super::assignments::Assignments;
use crate::error::Error;
use crate::host::{Host, Recheck};
use crate::task;

/// Events come in bursts; they are gathered this long before they are followed.
const GATHER: Duration = Duration::from_millis(50);

/// How long after a comparison that failed it is tried again: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How many servers are compared at a time.
const AT_ONCE: usize = 4;

/// How long the comparison of one server may keep what has happened elsewhere waiting. It goes on by itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a full comparison waits for each server: longer than any call may take.
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Work that failed and is done again later: of a server, or with none that on the host's mediated devices.
#[derive(Default)]
struct Later {
    due: BTreeMap<Option<ServerId>, Instant>,
    /// When it was due the last time, and the pause before that.
    last: BTreeMap<Option<ServerId>, (Instant, Duration)>,
}

impl Later {
    /// Puts something off, unless it is put off already: by twice the last pause when it was done not long ago.
    fn put_off(&mut self, what: Option<ServerId>) {
        let now = Instant::now();
        self.last.retain(|_, (due, _)| now.saturating_duration_since(*due) < RETRY.1);
        let pause = self.last.get(&what).map_or(RETRY.0, |(_, pause)| (*pause * 2).min(RETRY.1));
        self.due.entry(what).or_insert_with(|| {
            self.last.insert(what, (now + pause, pause));
            now + pause
        });
    }

    /// When the next is due.
    fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Adds what is due.
    fn add_to(&mut self, todo: &mut Pending) {
        let now = Instant::now();
        self.due.retain(|what, due| {
            if *due > now {
                return true;
            }
            match what {
                Some(server) => todo.server(*server, Trigger::Round),
                None => todo.mdevs = true,
            }
            false
        });
    }
}

/// What a burst of events asks for.
#[derive(Default)]
struct Pending {
    everything: bool,
    functions: BTreeSet<PciAddress>,
    interfaces: bool,
    mdevs: bool,
    came_back: BTreeSet<PciAddress>,
    servers: BTreeMap<ServerId, Trigger>,
    /// Servers whose guests were started or rebooted.
    restarted: BTreeSet<ServerId>,
    /// Servers whose agents have just connected, as after a boot.
    agents: BTreeSet<ServerId>,
    /// Whether events may have been missed, of reboots too.
    missed: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        !self.everything
            && !self.interfaces
            && !self.mdevs
            && self.came_back.is_empty()
            && self.functions.is_empty()
            && self.servers.is_empty()
            && self.restarted.is_empty()
    }

    fn server(&mut self, server: ServerId, occasion: Trigger) {
        let known = self.servers.entry(server).or_insert(occasion);
        *known = occasion.max(*known);
    }

    /// A call is back that may have changed a function, or what is made of it.
    fn call_came_back(&mut self, host: &Host, address: PciAddress) {
        self.functions.insert(address);
        self.came_back.insert(address);
        self.mdevs = true;
        host.give_back();
    }

    fn note(&mut self, host: &Host, heard: Result<Event, RecvError>) {
        match heard {
            Ok(Event::Connected) | Err(RecvError::Lagged(_)) => {
                (self.everything, self.missed) = (true, true);
            }
            Err(RecvError::Closed) => {}
            Ok(Event::Disconnected { reason }) => {
                host.set_synced(false);
                tracing::warn!(host = %host.name, reason, "the hypervisor of host {} is away", host.name);
            }
            Ok(Event::Lifecycle { domain, change }) => {
                if matches!(change, Lifecycle::Started | Lifecycle::Rebooted) {
                    self.restarted.insert(ServerId(domain));
                }
                self.server(ServerId(domain), Trigger::Arrival);
            }
            Ok(Event::DeviceAdded { domain, .. }) => self.server(ServerId(domain), Trigger::Arrival),
            Ok(Event::DeviceRemoved { domain, .. } | Event::DeviceRemovalFailed { domain, .. }) => {
                self.server(ServerId(domain), Trigger::Event)
            }
            // What a guest was asked while it booted it may have lost, and a call that is back is open to the end.
            Ok(Event::CameBack { domain }) => self.server(ServerId(domain), Trigger::Round),
            Ok(Event::Agent { domain, connected: true }) => {
                self.agents.insert(ServerId(domain));
                self.server(ServerId(domain), Trigger::Round);
            }
            Ok(Event::NodeCallCameBack { address }) => self.call_came_back(host, address),
            Ok(Event::Agent { connected: false, .. }) => {}
            // Disks on a function come and go with its driver; interfaces may have been named in a device_spec.
            Ok(Event::NodeDevice { name, .. }) => match PciAddress::from_node_name(&name) {
                Ok(address) => drop(self.functions.insert(address)),
                Err(_) => {
                    self.interfaces |= name.starts_with("net_");
                    // An event names a vDPA device, not the function whose type changes with it.
                    self.everything |= name.starts_with("vdpa_");
                    self.mdevs |= name.starts_with("mdev_");
                }
            },
        }
    }
}

/// Follows a host for as long as the service runs.
pub(crate) async fn follow(service: Arc<Assignments>, host: Arc<Host>) {
    let mut events = host.hypervisor.events();
    let Some(mut again) = host.asked_again.lock().await.take() else { return };
    let interval = service.config.reconcile.interval.0;
    let mut todo = Pending { everything: true, missed: true, ..Pending::default() };
    let mut later = Later::default();
    let mut retry = RETRY.0;
    let mut next_round = Instant::now() + interval;
    loop {
        let away = host.hypervisor.connection().is_err();
        if todo.everything {
            next_round = Instant::now() + interval;
        }
        // A host that is away brings a full comparison with it when it is back.
        todo = if away {
            Pending { restarted: todo.restarted, ..Pending::default() }
        } else {
            let work = service.carry_out(&host, std::mem::take(&mut todo));
            actor::as_process(service.store.new_worker(), work).await
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
            until = later.next().map_or(until, |due| until.min(due));
            tokio::select! {
                () = sleep_until(until) => break,
                heard = events.recv() => {
                    if matches!(heard, Err(RecvError::Closed)) {
                        return;
                    }
                    todo.note(&host, heard);
                }
                Some(again) = again.recv() => match again {
                    Recheck::Everything => todo.everything = true,
                    Recheck::Server(server) => todo.server(server, Trigger::Event),
                    // Whatever it was that failed is not at once over.
                    Recheck::Open(server) => {
                        later.put_off(Some(server));
                        continue;
                    }
                    Recheck::Mdevs => {
                        later.put_off(None);
                        continue;
                    }
                    Recheck::Settled(server) => {
                        later.last.remove(&Some(server));
                        continue;
                    }
                    Recheck::Function(address) => drop(todo.functions.insert(address)),
                    Recheck::CameBack(address) => todo.call_came_back(&host, address),
                },
            }
            // Events come in bursts: this one is followed when it has been gathered.
            until = until.min(Instant::now() + GATHER);
        }
        later.add_to(&mut todo);
        todo.everything |= Instant::now() >= next_round;
    }
}

/// Gives functions back to their host drivers, and settles what the host itself was to hold, whenever that is asked for:
/// once for however often it was asked meanwhile. What could not be done is tried again.
pub(crate) async fn give_back(service: Arc<Assignments>, host: Arc<Host>) {
    let (mut retry, mut is_left) = (RETRY.0, false);
    loop {
        let asked = host.asked_to_give_back();
        if is_left {
            // Until then, unless it is asked for before.
            let _ = timeout(retry, asked).await;
            retry = (retry * 2).min(RETRY.1);
        } else {
            asked.await;
            retry = RETRY.0;
        }
        // Before a comparison it is not known what guests have; one that is complete asks for it.
        if !host.is_synced() {
            is_left = false;
            continue;
        }
        // It belongs to the process that this one is now: what it begins, another that takes over ends.
        let work = async {
            (
                actor::scope(system::COMPARISON, service.give_back(&host)).await,
                actor::scope(system::COMPARISON, service.settle_bindings(&host)).await,
            )
        };
        let (given, settled) = actor::as_process(service.store.new_worker(), work).await;
        is_left = given.is_err() || settled.is_err();
        if let Err(error) = given {
            failed(&host, "giving functions back to their host drivers", &error);
        }
        if let Err(error) = settled {
            failed(&host, "settling what the host itself was to hold", &error);
        }
    }
}

/// Tells of work on a host that is tried again.
fn failed(host: &Host, what: &str, error: &Error) {
    if matches!(error, Error::HostAway { .. }) {
        tracing::debug!(host = %host.name, %error, "{what} was cut short");
    } else {
        tracing::error!(host = %host.name, %error, "{what} failed; it is tried again");
    }
}

impl Assignments {
    /// Compares what is asked for, and answers what could not be compared.
    async fn carry_out(self: &Arc<Self>, host: &Arc<Host>, mut todo: Pending) -> Pending {
        let mut left = Pending::default();
        let failed = |what: &str, error: Error| failed(host, what, &error);
        // An event names an interface, not the function that it is on.
        let all = todo.everything || todo.interfaces && self.catalog.inventory().names_interfaces();
        let looked = if all { None } else { Some(std::mem::take(&mut todo.functions)) };
        if looked.as_ref().is_none_or(|addresses| !addresses.is_empty())
            && let Err(error) =
                actor::scope(system::DISCOVERY, self.catalog.discover(host, looked.clone())).await
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
        if !todo.everything && !todo.came_back.is_empty() {
            match self.servers_with(host, &todo.came_back).await {
                Ok(servers) => servers.into_iter().for_each(|server| todo.server(server, Trigger::Round)),
                Err(error) => {
                    failed("looking for what a call that came back has changed", error);
                    left.came_back = std::mem::take(&mut todo.came_back);
                }
            }
        }
        let servers = if todo.everything {
            match self.servers_of(host).await {
                Ok(servers) => servers.into_iter().map(|server| (server, Trigger::Round)).collect(),
                Err(error) => {
                    failed("listing the host's servers", error);
                    let (restarted, missed) = (todo.restarted, todo.missed);
                    return Pending { everything: true, restarted, missed, ..left };
                }
            }
        } else {
            todo.servers
        };
        let why = if todo.everything { system::COMPARISON } else { system::EVENT };
        for server in todo.restarted {
            if let Err(error) = actor::scope(why, self.guest_restarted(host, server)).await {
                failed(&format!("recording the restart of server {server}"), error);
                left.restarted.insert(server);
            }
        }
        // One guest that cannot be read holds nobody else up.
        let patience = if todo.everything { A_DAY } else { PATIENCE };
        let compared = servers.into_iter().map(|(server, occasion)| {
            let again = todo.missed || todo.agents.contains(&server);
            let (service, host) = (Arc::clone(self), Arc::clone(host));
            let work = actor::scope(why, async move {
                service.reconcile(&host, server, occasion).await?;
                if again {
                    service.verify_again(&host, server).await?;
                }
                Ok(())
            });
            async move { (server, occasion, again, self.compare_within(work, patience).await) }
        });
        let mut compared = stream::iter(compared).buffer_unordered(AT_ONCE);
        while let Some((server, occasion, again, outcome)) = compared.next().await {
            match outcome {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    failed(&format!("comparing server {server}"), error);
                    left.server(server, occasion);
                    if again {
                        left.agents.insert(server);
                    }
                }
                None => {
                    tracing::debug!(host = %host.name, server.id = %server, "the comparison of server {server} takes long");
                }
            }
        }
        drop(compared);
        if (todo.everything || todo.mdevs)
            && let Err(error) = actor::scope(why, self.take_strays_away(host)).await
        {
            failed("looking for mediated devices whose records have ended", error);
            left.mdevs = true;
        }
        if todo.everything && !left.everything {
            host.set_synced(true);
        }
        if todo.everything {
            host.give_back();
        }
        left
    }

    /// Does a comparison in a task of its own, and waits for it so long. None when it goes on.
    async fn compare_within(
        &self,
        work: impl Future<Output = Result<(), Error>> + Send + 'static,
        patience: Duration,
    ) -> Option<Result<(), Error>> {
        let task = actor::spawn_as_current(work);
        timeout(patience, task::join(task)).await.ok()
    }

    /// The servers that a host has, and those that it has records of or that were seen to have devices.
    pub(super) async fn servers_of(&self, host: &Host) -> Result<BTreeSet<ServerId>, Error> {
        let domains = host.hypervisor.domains().await.map_err(host.error("list the host's domains"))?;
        let mut servers: BTreeSet<_> = domains.into_iter().map(|info| ServerId(info.uuid)).collect();
        servers.extend(host.holders());
        let rows = self.store.assignments().await?;
        servers
            .extend(rows.iter().filter(|row| row.hypervisor() == host.row.id).filter_map(Assignment::server));
        Ok(servers)
    }

    /// Brings a server's attachments and mediated devices in line with its domain's documents, as far as the occasion
    /// goes.
    pub(crate) async fn reconcile(
        self: &Arc<Self>,
        host: &Arc<Host>,
        server: ServerId,
        occasion: Trigger,
    ) -> Result<(), Error> {
        let (findings, elsewhere) = self.compare(host, server).await?;
        // The guests that are asked take their time.
        drop(self.put_right(host, findings, occasion).await?);
        // It may have taken its devices along.
        if let Some(other) = elsewhere {
            other.look_again(server);
        }
        self.make_mdevs_again(host, server).await?;
        let mut rows = self.store.assignments_of(server).await?;
        rows.retain(|row| row.hypervisor() == host.row.id);
        let busy = self.in_flight.of(rows.iter().map(Assignment::id)).await?;
        for row in rows.iter().filter(|row| !busy.contains(&row.id())) {
            self.verify_soon(host, row);
        }
        tracing::debug!(host = %host.name, server.id = %server, "compared server {server}");
        Ok(())
    }
}
