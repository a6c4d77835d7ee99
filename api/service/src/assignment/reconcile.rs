//! Reconciliation: compares the records with libvirt, which is the truth about guests, and corrects the records.
//!
//! The same code runs at start, after a reconnect, on every event that concerns a guest, and at the configured
//! interval.
//!
//! Each host has two tasks. `follow` only reads the host and writes records. It never waits for a call that changes the
//! host, nor for a lock that is held during such a call, so that it sees events at once; the one exception is the profile,
//! whose changes are made before the first comparison and waited for during a limited time. `rebind_in_background` rebinds
//! functions to their host drivers; it may wait for both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use hotslot_driver::hypervisor::{Event, Lifecycle, NodeChange};
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Assignment, Trigger};
use hotslot_model::id::ServerId;
use hotslot_store::actor::{self, system};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until, timeout};

use super::assignments::Assignments;
use super::drift::unresolved;
use crate::error::Error;
use crate::host::{Host, Recheck};
use crate::task;

/// How long the events of a burst are gathered before they are processed.
const GATHER: Duration = Duration::from_millis(50);

/// The first and the longest pause before a failed comparison is repeated. The pause doubles each time.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How many servers are compared concurrently.
const AT_ONCE: usize = 4;

/// How long the comparison of one server may delay further events. After that it continues in the background.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the first comparison waits until what the profile says was made.
const PROFILE_PATIENCE: Duration = Duration::from_secs(20);

/// How long a full comparison waits for each server: longer than the time limit of any call.
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Work to repeat later. The key is a server to compare, or `None` for the host's mediated devices.
#[derive(Default)]
struct Later {
    due: BTreeMap<Option<ServerId>, Instant>,
    /// The last time at which it was due, and the pause before that.
    last: BTreeMap<Option<ServerId>, (Instant, Duration)>,
}

impl Later {
    /// Schedules work unless it is scheduled already. If it was due recently, the pause is twice the last one.
    fn put_off(&mut self, what: Option<ServerId>) {
        let now = Instant::now();
        self.last.retain(|_, (due, _)| now.saturating_duration_since(*due) < RETRY.1);
        let pause = self.last.get(&what).map_or(RETRY.0, |(_, pause)| (*pause * 2).min(RETRY.1));
        self.due.entry(what).or_insert_with(|| {
            self.last.insert(what, (now + pause, pause));
            now + pause
        });
    }

    /// Returns the earliest time at which any work is due.
    fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Moves the work that is due to `todo`.
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

/// The work that a burst of events calls for.
#[derive(Default)]
struct Pending {
    everything: bool,
    functions: BTreeSet<PciAddress>,
    interfaces: bool,
    /// Whether NVMe disks came or went.
    disks: bool,
    /// Whether devices of guests may have failed.
    health: bool,
    mdevs: bool,
    came_back: BTreeSet<PciAddress>,
    servers: BTreeMap<ServerId, Trigger>,
    /// Servers whose guests were started or rebooted.
    restarted: BTreeSet<ServerId>,
    /// Servers whose agents have just connected, as after a boot.
    agents: BTreeSet<ServerId>,
    /// Whether events may have been missed, including reboots of guests.
    missed: bool,
    /// Whether the host is followed anew, after a start of the service or of the host.
    anew: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        !self.everything
            && !self.interfaces
            && !self.disks
            && !self.health
            && !self.mdevs
            && self.came_back.is_empty()
            && self.functions.is_empty()
            && self.servers.is_empty()
            && self.restarted.is_empty()
    }

    fn server(&mut self, server: ServerId, trigger: Trigger) {
        let known = self.servers.entry(server).or_insert(trigger);
        *known = trigger.max(*known);
    }

    /// Notes the return of an overdue call that may have changed a function or its mediated devices.
    fn call_came_back(&mut self, host: &Host, address: PciAddress) {
        self.functions.insert(address);
        self.came_back.insert(address);
        self.mdevs = true;
        host.queue_rebind();
    }

    /// Notes a requested check. Returns whether it is to be done now, and not later.
    fn recheck(&mut self, host: &Host, later: &mut Later, recheck: Recheck) -> bool {
        match recheck {
            Recheck::Everything => self.everything = true,
            Recheck::Server(server) => self.server(server, Trigger::Event),
            Recheck::Function(address) => drop(self.functions.insert(address)),
            Recheck::CameBack(address) => self.call_came_back(host, address),
            // Wait before the repetition: the cause of the failure is unlikely to be over at once.
            Recheck::Open(server) => {
                later.put_off(Some(server));
                return false;
            }
            Recheck::Mdevs => {
                later.put_off(None);
                return false;
            }
            Recheck::Settled(server) => {
                later.last.remove(&Some(server));
                return false;
            }
        }
        true
    }

    fn note(&mut self, host: &Host, event: Result<Event, RecvError>) {
        match event {
            Ok(Event::Connected) => (self.everything, self.missed, self.anew) = (true, true, true),
            Err(RecvError::Lagged(_)) => (self.everything, self.missed) = (true, true),
            Err(RecvError::Closed) => {}
            Ok(Event::Disconnected { reason }) => {
                host.set_synced(false);
                tracing::warn!(host = %host.name, reason, "the hypervisor of host {} is unreachable", host.name);
            }
            Ok(Event::Lifecycle { domain, change }) => {
                if matches!(change, Lifecycle::Started | Lifecycle::Rebooted) {
                    self.restarted.insert(ServerId(domain));
                }
                // QEMU stops a guest when the kernel tells it that a device of the guest has failed.
                self.health |=
                    matches!(change, Lifecycle::Suspended | Lifecycle::Stopped | Lifecycle::Crashed);
                self.server(ServerId(domain), Trigger::Arrival);
            }
            Ok(Event::DeviceAdded { domain, .. }) => self.server(ServerId(domain), Trigger::Arrival),
            Ok(Event::DeviceRemoved { domain, .. } | Event::DeviceRemovalFailed { domain, .. }) => {
                self.server(ServerId(domain), Trigger::Event)
            }
            // Read the server: an overdue call returned, so its outcome can be found out now. `Round` also repeats
            // unplug requests, because a guest loses those that it got while it booted.
            Ok(Event::CallReturned { domain }) => self.server(ServerId(domain), Trigger::Round),
            Ok(Event::Agent { domain, connected: true }) => {
                self.agents.insert(ServerId(domain));
                self.server(ServerId(domain), Trigger::Round);
            }
            Ok(Event::NodeCallReturned { address }) => self.call_came_back(host, address),
            Ok(Event::Agent { connected: false, .. }) => {}
            // The disks of a function come and go with its driver; a device_spec may name a network interface.
            Ok(Event::NodeDevice { name, change }) => match PciAddress::from_node_name(&name) {
                Ok(address) => {
                    self.functions.insert(address);
                    // A VF that is created again lacks the settings and the vGPU type that its attachment has on record.
                    if change == NodeChange::Created {
                        host.queue_rebind();
                    }
                }
                Err(_) => {
                    self.interfaces |= name.starts_with("net_");
                    // An NVMe controller has the serial number of its disk, which tells a replaced disk from the old one.
                    self.disks |= name.starts_with("block_nvme");
                    // The event names the vDPA device, not the function whose dev_type changes with it.
                    self.everything |= name.starts_with("vdpa_");
                    self.mdevs |= name.starts_with("mdev_");
                }
            },
        }
    }
}

/// Compares a host with the records, on its events and at intervals, for as long as the service runs.
pub(crate) async fn follow(service: Arc<Assignments>, host: Arc<Host>) {
    let mut events = host.hypervisor.events();
    let Some(mut rechecks) = host.rechecks.lock().await.take() else { return };
    let interval = || service.config.get().reconcile.interval.0;
    let mut todo = Pending { everything: true, missed: true, anew: true, ..Pending::default() };
    let mut later = Later::default();
    let mut retry = RETRY.0;
    let mut next_round = Instant::now() + interval();
    loop {
        let unreachable = host.hypervisor.connection().is_err();
        if todo.everything {
            next_round = Instant::now() + interval();
        }
        // An unreachable host is compared in full when its connection is back, so only restarts are kept.
        todo = if unreachable {
            Pending { restarted: todo.restarted, ..Pending::default() }
        } else {
            if std::mem::take(&mut todo.anew) {
                make_profile(&service, &host).await;
            }
            let work = service.run(&host, std::mem::take(&mut todo));
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
            let noted = tokio::select! {
                () = sleep_until(until) => break,
                Some(recheck) = rechecks.recv() => todo.recheck(&host, &mut later, recheck),
                event = events.recv() => match event {
                    Err(RecvError::Closed) => return,
                    event => {
                        todo.note(&host, event);
                        true
                    }
                },
            };
            if noted {
                // Gather the rest of the burst before processing it.
                until = until.min(Instant::now() + GATHER);
            }
        }
        later.add_to(&mut todo);
        todo.everything |= Instant::now() >= next_round;
    }
}

/// Makes what the profile of a host says and the host lacks, before the records are compared with the host. If it takes
/// long, it goes on in the background.
async fn make_profile(service: &Arc<Assignments>, host: &Arc<Host>) {
    let (own, of) = (Arc::clone(service), Arc::clone(host));
    let work = async {
        let making = actor::spawn_as_current(async move { own.make_profile(&of).await });
        timeout(PROFILE_PATIENCE, making).await.is_ok()
    };
    let work = actor::scope(system::PROFILE, work);
    if !actor::as_process(service.store.new_worker(), work).await {
        tracing::warn!(host = %host.name, "making what [[profile]] says takes long, and goes on in the background");
    }
}

/// Rebinds functions to their host drivers, releases unfinished bindings and starts scrubs whenever that is requested.
/// Requests that arrive meanwhile are served together. Work that fails is repeated.
pub(crate) async fn rebind_in_background(service: Arc<Assignments>, host: Arc<Host>) {
    let (mut retry, mut is_left) = (RETRY.0, false);
    loop {
        let asked = host.rebind_queued();
        if is_left {
            // Wait for the pause to end, or for an earlier request.
            let _ = timeout(retry, asked).await;
            retry = (retry * 2).min(RETRY.1);
        } else {
            asked.await;
            retry = RETRY.0;
        }
        // Before the first full comparison the devices of the guests are unknown. The end of that comparison requests
        // this work again.
        if !host.is_synced() {
            is_left = false;
            continue;
        }
        // Work under the current process id, so that a process which takes over finishes what this one began.
        let work = async {
            let done = (
                actor::scope(system::COMPARISON, service.rebind_host_drivers(&host)).await,
                actor::scope(system::COMPARISON, service.settle_bindings(&host)).await,
            );
            service.scrub_what_waits(&host);
            done
        };
        let (given, settled) = actor::as_process(service.store.new_worker(), work).await;
        is_left = given.is_err() || settled.is_err();
        if let Err(error) = given {
            failed(&host, "rebinding functions to their host drivers", &error);
        }
        if let Err(error) = settled {
            failed(&host, "releasing unfinished bindings", &error);
        }
    }
}

/// Logs a failure of work that will be repeated.
fn failed(host: &Host, what: &str, error: &Error) {
    if matches!(error, Error::HostAway { .. }) {
        tracing::debug!(host = %host.name, %error, "{what} stopped: the host is unreachable");
    } else {
        tracing::error!(host = %host.name, %error, "{what} failed; it will be tried again");
    }
}

impl Assignments {
    /// Does the work of `todo` and returns the part of it that failed.
    async fn run(self: &Arc<Self>, host: &Arc<Host>, mut todo: Pending) -> Pending {
        let mut left = Pending::default();
        self.read_host(host, &mut todo, &mut left).await;
        if todo.everything {
            match self.servers_of(host).await {
                Ok(servers) => {
                    host.keep_unresolved(&servers);
                    todo.servers = servers.into_iter().map(|server| (server, Trigger::Round)).collect();
                }
                Err(error) => {
                    failed(host, "listing the host's servers", &error);
                    let (restarted, missed) = (todo.restarted, todo.missed);
                    return Pending { everything: true, restarted, missed, ..left };
                }
            }
        } else if !todo.came_back.is_empty() {
            match self.servers_with(host, &todo.came_back).await {
                Ok(servers) => servers.into_iter().for_each(|server| todo.server(server, Trigger::Round)),
                Err(error) => {
                    failed(host, "finding the servers that an overdue call may have changed", &error);
                    left.came_back = std::mem::take(&mut todo.came_back);
                }
            }
        }
        let why = if todo.everything { system::COMPARISON } else { system::EVENT };
        for server in std::mem::take(&mut todo.restarted) {
            if let Err(error) = actor::scope(why, self.guest_restarted(host, server)).await {
                failed(host, &format!("recording the restart of server {server}"), &error);
                left.restarted.insert(server);
            }
        }
        self.compare_servers(host, &mut todo, &mut left, why).await;
        if (todo.everything || todo.mdevs)
            && let Err(error) = actor::scope(why, self.take_strays_away(host)).await
        {
            failed(host, "removing mediated devices whose records have ended", &error);
            left.mdevs = true;
        }
        if (todo.everything || todo.health)
            && let Err(error) = actor::scope(why, self.watch_health(host)).await
        {
            failed(host, "reading the error counters of devices in use", &error);
            left.health = true;
        }
        if todo.everything && !left.everything {
            host.set_synced(true);
        }
        if todo.everything {
            host.queue_rebind();
        }
        left
    }

    /// Reads the functions and mediated devices of a host that `todo` names.
    async fn read_host(&self, host: &Host, todo: &mut Pending, left: &mut Pending) {
        // The event names a network interface or a disk, not its function, so all functions have to be read.
        let all =
            todo.everything || todo.disks || todo.interfaces && self.catalog.inventory().names_interfaces();
        let functions = if all { None } else { Some(std::mem::take(&mut todo.functions)) };
        if functions.as_ref().is_none_or(|addresses| !addresses.is_empty())
            && let Err(error) =
                actor::scope(system::DISCOVERY, self.catalog.discover(host, functions.clone())).await
        {
            failed(host, "reading the host's devices", &error);
            left.everything = todo.everything;
            (left.interfaces, left.disks) = (todo.interfaces, todo.disks);
            left.functions = functions.unwrap_or_default();
        }
        if todo.everything || todo.mdevs {
            let missing = match host.read_mdevs().await {
                Ok(_) => self.servers_without_mdevs(host).await,
                Err(error) => Err(error),
            };
            match missing {
                Ok(servers) => servers.into_iter().for_each(|server| todo.server(server, Trigger::Event)),
                Err(error) => {
                    failed(host, "reading the host's mediated devices", &error);
                    left.mdevs = true;
                }
            }
        }
    }

    /// Compares the servers of `todo` with their records, several at a time.
    async fn compare_servers(
        self: &Arc<Self>,
        host: &Arc<Host>,
        todo: &mut Pending,
        left: &mut Pending,
        why: &'static str,
    ) {
        // A guest that cannot be read does not delay the others.
        let patience = if todo.everything { A_DAY } else { PATIENCE };
        let servers = std::mem::take(&mut todo.servers).into_iter();
        let verify = |server: &ServerId| todo.missed || todo.agents.contains(server);
        let servers: Vec<_> = servers.map(|(server, trigger)| (server, trigger, verify(&server))).collect();
        let compared = servers.into_iter().map(|(server, trigger, verify)| {
            let (service, host) = (Arc::clone(self), Arc::clone(host));
            let work = Box::pin(actor::scope(why, async move {
                service.reconcile(&host, server, trigger).await?;
                if verify {
                    service.verify_again(&host, server).await?;
                }
                Ok(())
            }));
            async move { (server, trigger, verify, self.compare_within(work, patience).await) }
        });
        let mut compared = stream::iter(compared).buffer_unordered(AT_ONCE);
        while let Some((server, trigger, verify, outcome)) = compared.next().await {
            match outcome {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    failed(host, &format!("comparing server {server}"), &error);
                    left.server(server, trigger);
                    if verify {
                        left.agents.insert(server);
                    }
                }
                None => {
                    tracing::debug!(
                        host = %host.name, server.id = %server,
                        "the comparison of server {server} continues in the background"
                    );
                }
            }
        }
    }

    /// Runs a comparison in a task of its own. Returns `None` when it takes longer than `patience`; it continues then.
    async fn compare_within(
        &self,
        work: impl Future<Output = Result<(), Error>> + Send + 'static,
        patience: Duration,
    ) -> Option<Result<(), Error>> {
        let task = actor::spawn_as_current(work);
        timeout(patience, task::join(task)).await.ok()
    }

    /// Returns the servers to compare on a host: its domains, the servers with open assignments on it, and the servers
    /// that were last seen with devices.
    pub(super) async fn servers_of(&self, host: &Host) -> Result<BTreeSet<ServerId>, Error> {
        let domains = host.hypervisor.domains().await.map_err(host.error("list the host's domains"))?;
        let mut servers: BTreeSet<_> = domains.into_iter().map(|info| ServerId(info.uuid)).collect();
        servers.extend(host.holders());
        let rows = self.store.assignments().await?;
        servers
            .extend(rows.iter().filter(|row| row.hypervisor() == host.row.id).filter_map(Assignment::server));
        Ok(servers)
    }

    /// Compares a server's attachments and mediated devices with its domain's documents, and takes the actions that
    /// `trigger` permits.
    pub(crate) async fn reconcile(
        self: &Arc<Self>,
        host: &Arc<Host>,
        server: ServerId,
        trigger: Trigger,
    ) -> Result<(), Error> {
        let (findings, elsewhere) = self.compare(host, server).await?;
        host.set_unresolved(server, unresolved(&findings).collect());
        // Do not wait for the tasks that ask guests: a guest may take long to answer.
        drop(self.apply(host, findings, trigger).await?);
        // A server that moved to another host may have its devices there.
        if let Some(other) = elsewhere {
            other.queue_server_check(server);
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
