//! Which devices a request gets, and whether they could be plugged: before anything is claimed or touched, and on
//! its own as a dry run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::hotplug::{self, Check, CheckResult, Policy};
use hotslot_driver::hypervisor::{DomainView, ErrorKind, Scope};
use hotslot_driver::net::MacAddress;
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::Network;
use hotslot_model::device::Device;
use hotslot_model::id::DeviceId;
use hotslot_model::rules;
use hotslot_model::rules::{CandidateSet, Inventory, NumaPolicy, Wanted};

use super::assignments::Assignments;
use super::request::{self, AttachRequest, NetworkRequest};
use crate::error::Error;
use crate::host::Host;
use crate::inventory::{Availability, HostDrivers};

/// The devices of a request, each with the alias by which it was asked for.
type Selection = Vec<(String, Arc<Device>)>;

/// A device of a request.
#[derive(Debug)]
pub(super) struct Chosen {
    /// The alias by which it was asked for.
    pub(super) alias: String,
    /// Its row.
    pub(super) device: Arc<Device>,
    /// As the host has it.
    pub(super) found: HostDevice,
}

/// What a look at devices has shown.
#[derive(Default)]
struct Look {
    /// The devices, but for one that is not what the table says.
    chosen: Vec<Chosen>,
    checks: Vec<Check>,
    /// Why they cannot be given.
    refused: Option<Refused>,
}

enum Refused {
    /// There are not enough that would do.
    TooFew(Error),
    /// One of them will not do; another one may.
    One(DeviceId, Error),
    /// The guest has no use for them, whichever they are.
    Together(Error),
}

/// What an attach would do.
#[derive(Debug)]
pub struct DryRun {
    /// The devices that it would take; none when there are too few.
    pub devices: Vec<(String, Arc<Device>)>,
    /// Every check, in the order in which they were made.
    pub checks: Vec<Check>,
}

impl DryRun {
    /// Whether nothing speaks against it.
    pub fn would_attach(&self) -> bool {
        self.checks.iter().all(|check| check.result != CheckResult::Fail)
    }
}

/// Devices that were found not to do, and why the first of them does not.
#[derive(Default)]
pub(super) struct Exclusions {
    excluded: HashMap<DeviceId, String>,
    refusal: Option<Error>,
}

impl Exclusions {
    pub(super) fn exclude(&mut self, device: DeviceId, error: Error) {
        self.excluded.insert(device, error.to_string());
        self.refusal.get_or_insert(error);
    }
}

/// What is known of host and guest when devices are chosen.
pub(super) struct Snapshot {
    /// The rules of this moment: they may be changed while a request is served.
    inventory: Arc<Inventory>,
    offer: Availability,
    guest_nodes: BTreeSet<u32>,
    sockets: Option<BTreeMap<u32, u32>>,
}

impl Assignments {
    /// Looks at the host and the guest of a request.
    pub(super) async fn sight(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
    ) -> Result<Snapshot, Error> {
        let inventory = known(self.catalog.inventory(), request)?;
        let by_socket = |part: &rules::AliasRequest| {
            let own = || request.alias(&inventory, &part.name).map(|alias| alias.numa_policy);
            request.numa_policy.or_else(own) == Some(NumaPolicy::Socket)
        };
        let sockets = if request.aliases.iter().any(by_socket) {
            host.hypervisor.node_sockets().await.map_err(host.error("read the host's NUMA topology"))?
        } else {
            None
        };
        let document = view.live.as_ref().or(view.persistent.as_ref());
        let guest_nodes = document.map(|document| document.numa_nodes.clone()).unwrap_or_default();
        Ok(Snapshot { inventory, offer: self.catalog.offer(host).await?, guest_nodes, sockets })
    }

    /// Chooses free devices that could be plugged, as far as it can be seen; those that do not do are left out.
    ///
    /// # Errors
    /// Why there are none, and what the host answers.
    pub(super) async fn select(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        choice: &mut Exclusions,
    ) -> Result<Vec<Chosen>, Error> {
        self.store.refresh().await?;
        let sight = self.sight(host, view, request).await?;
        let (look, _) = self.look_twice(host, view, request, sight, choice).await?;
        match look.refused {
            None => Ok(look.chosen),
            Some(Refused::TooFew(error) | Refused::One(_, error) | Refused::Together(error)) => Err(error),
        }
    }

    /// Looks, and before it refuses for what others have given away or for the host drivers of an IOMMU group, looks
    /// how that is now: nothing tells of definitions that others change, nor of drivers that come and go. Answers what
    /// was known at last, too.
    async fn look_twice(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        sight: Snapshot,
        choice: &mut Exclusions,
    ) -> Result<(Look, Snapshot), Error> {
        let look = self.look(host, view, request, &sight, choice).await?;
        let Some(Refused::TooFew(short)) = &look.refused else { return Ok((look, sight)) };
        let busy =
            if let Error::TooFewFree { shortage, .. } = short { shortage.busy() } else { &BTreeSet::new() };
        if !busy.is_empty() {
            self.catalog.discover(host, Some(busy.clone())).await?;
        }
        let holders: BTreeSet<_> = sight.offer.foreign.values().map(|foreign| foreign.server).collect();
        for server in holders {
            host.set_held(server, host.server(server).await?.as_ref());
        }
        let same_drivers = busy.is_empty() || *host.functions() == *sight.offer.functions;
        if same_drivers && host.foreign() == sight.offer.foreign {
            return Ok((look, sight));
        }
        let sight = self.sight(host, view, request).await?;
        Ok((self.look(host, view, request, &sight, choice).await?, sight))
    }

    /// Chooses devices and looks whether they could be plugged, until some are found that could, or too few are
    /// left.
    async fn look(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        sight: &Snapshot,
        choice: &mut Exclusions,
    ) -> Result<Look, Error> {
        let mut look = Look::default();
        loop {
            let devices = self.store.devices_of(host.row.id);
            // What drives siblings is seen afresh, when the device is read.
            let drivers = HostDrivers::DoNotBlock;
            let mut withheld = sight.offer.withheld(&devices, Some(request.server), drivers);
            withheld.extend(choice.excluded.clone());
            // What the guest has no port for comes last: the preflight then says so.
            let mut fitting = withheld.clone();
            fitting.extend(super::portless(view, &sight.offer, &devices));
            let busy = &sight.offer.busy;
            let chosen = self.choose(host, request, sight, &devices, (&fitting, busy));
            let chosen = chosen.or_else(|_| self.choose(host, request, sight, &devices, (&withheld, busy)));
            let selection = match chosen {
                Ok(selection) => selection,
                Err(short) => {
                    // Enough were free, and they did not do: that is the answer, unless more is to be said.
                    let error = match (&short, choice.refusal.take()) {
                        (Error::TooFewFree { shortage, .. }, Some(refusal))
                            if shortage.withheld() <= choice.excluded.len() =>
                        {
                            refusal
                        }
                        _ => short,
                    };
                    look.refused = Some(Refused::TooFew(error));
                    return Ok(look);
                }
            };
            look = self.judge(host, view, request, sight, selection).await?;
            match look.refused.take() {
                Some(Refused::One(device, error)) => choice.exclude(device, error),
                refused => return Ok(Look { refused, ..look }),
            }
        }
    }

    /// Reads devices afresh, and looks whether they could be plugged.
    async fn judge(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        sight: &Snapshot,
        selection: Selection,
    ) -> Result<Look, Error> {
        let context = || format!("nothing was attached to server {}", request.server);
        let mut look = Look::default();
        let mut facts = Vec::new();
        for (alias, device) in selection {
            let address = Some(device.facts.address);
            let asked_for = request.alias(&sight.inventory, &alias);
            let asked_for = asked_for.is_some_and(|alias| alias.matches(&device.facts));
            let spec = if asked_for {
                format!("a device_spec lists it, and alias `{alias}` asks for such a device")
            } else {
                "a device_spec lists it, and it comes with its IOMMU group".to_owned()
            };
            look.checks.push(Check { device: address, ..check("device-spec", CheckResult::Pass, spec) });
            let state = format!("it is {}", device.status);
            look.checks.push(Check { device: address, ..check("state", CheckResult::Pass, state) });
            match read(host, request, &device).await? {
                Ok(found) => {
                    facts.push(sight.offer.facts(found.clone(), &device));
                    look.chosen.push(Chosen { alias, device, found });
                }
                Err(error) => {
                    let gone = check("present", CheckResult::Fail, error.to_string());
                    look.checks.push(Check { device: address, ..gone });
                    look.refused = Some(Refused::One(device.id, error));
                    return Ok(look);
                }
            }
        }
        // What goes together is taken from its host drivers together.
        let policy = Policy { require_reset: self.config.attach.require_reset, whole_groups: true };
        let verdict = hotplug::preflight(host.hypervisor.as_ref(), view, &facts, policy).await;
        let verdict = verdict.map_err(host.error(context()))?;
        look.refused = verdict.refusal().map(|refusal| {
            // The table is behind: nothing tells of drivers that come and go.
            if let (ErrorKind::GroupNotViable, Some(address)) = (refusal.error.kind, refusal.device) {
                host.look_at(address);
            }
            let error = host.error(context())(refusal.error.clone());
            match look.chosen.iter().find(|chosen| Some(chosen.device.facts.address) == refusal.device) {
                Some(chosen) => Refused::One(chosen.device.id, error),
                None => Refused::Together(error),
            }
        });
        look.checks.extend(verdict.checks);
        Ok(look)
    }

    /// What an attach would do, with every check: nothing is claimed, and no driver is touched.
    ///
    /// # Errors
    /// As [`Service::attach`](Service::attach), but for what the checks say.
    pub async fn dry_run(&self, request: &AttachRequest) -> Result<DryRun, Error> {
        self.known_aliases(request)?;
        let (host, _) = self.hosts.find(request.server).await?;
        host.ready().await?;
        let view = host.server(request.server).await?.ok_or(Error::NoServer(request.server))?;
        let sight = self.sight(&host, &view, request).await?;
        let mut checks = vec![match request::scope(&view, request.persistent) {
            Ok(scope) => check("scope", CheckResult::Pass, into(scope).to_owned()),
            Err(error) => check("scope", CheckResult::Fail, error.to_string()),
        }];
        if let Some(mac) = request.network.as_ref().and_then(|network| network.mac) {
            checks.push(match self.mac_is_free(request).await {
                Ok(()) => check("mac-address", CheckResult::Pass, format!("no attachment has {mac}")),
                Err(Error::Conflict(taken)) => check("mac-address", CheckResult::Fail, taken),
                Err(error) => return Err(error),
            });
        }
        let (mut look, sight) =
            self.look_twice(&host, &view, request, sight, &mut Exclusions::default()).await?;
        checks.push(match &look.refused {
            Some(Refused::TooFew(short)) => check("choice", CheckResult::Fail, short.to_string()),
            Some(Refused::One(..) | Refused::Together(_)) | None => {
                let names: Vec<_> =
                    look.chosen.iter().map(|chosen| chosen.device.facts.address.to_string()).collect();
                check("choice", CheckResult::Pass, format!("{} would be taken", names.join(", ")))
            }
        });
        if look.checks.is_empty() {
            // Those that are withheld are looked at all the same: the checks then say why, one by one.
            let devices = self.store.devices_of(host.row.id);
            let all = (&HashMap::new(), &BTreeMap::new());
            if let Ok(selection) = self.choose(&host, request, &sight, &devices, all) {
                look.checks = self.judge(&host, &view, request, &sight, selection).await?.checks;
            }
            // The preflight does not know who holds a member: to unbind one that is held does not help.
            let rows = devices.iter().map(|device| (device.facts.address, &**device)).collect();
            for check in &mut look.checks {
                let failed = check.name == "group-viable" && check.result == CheckResult::Fail;
                let hindrance = check.device.filter(|_| failed).and_then(|address| {
                    let (server, drivers) = (Some(request.server), HostDrivers::DoNotBlock);
                    sight.offer.group_hindrance(address, &rows, server, drivers)
                });
                if let Some(reason) = hindrance {
                    (check.message, check.cure) = (reason, None);
                }
            }
            // What helps against busy members of an IOMMU group depends on the whole request.
            if let Some(Refused::TooFew(Error::TooFewFree { shortage, advice, .. })) = &look.refused
                && !shortage.busy().is_empty()
            {
                let viable = look.checks.iter_mut().filter(|check| check.name == "group-viable");
                for check in viable.filter(|check| check.cure.is_some()) {
                    check.cure = Some(advice.clone());
                }
            }
        }
        if !sight.offer.knows_guards() {
            for check in look.checks.iter_mut().filter(|check| check.name == "guard") {
                check.result = CheckResult::Unknown;
                check.message =
                    "what the host lives on cannot be seen from here: it is another machine".into();
            }
        }
        let enough = !matches!(look.refused, Some(Refused::TooFew(_)));
        checks.extend(look.checks);
        let devices = look.chosen.into_iter().filter(|_| enough);
        Ok(DryRun { devices: devices.map(|chosen| (chosen.alias, chosen.device)).collect(), checks })
    }

    /// # Errors
    /// [`Error::UnknownAlias`].
    pub(super) fn known_aliases(&self, request: &AttachRequest) -> Result<(), Error> {
        known(self.catalog.inventory(), request).map(drop)
    }

    fn choose(
        &self,
        host: &Host,
        request: &AttachRequest,
        sight: &Snapshot,
        devices: &[Arc<Device>],
        (withheld, busy): (&HashMap<DeviceId, String>, &BTreeMap<PciAddress, String>),
    ) -> Result<Selection, Error> {
        let mut tags = BTreeMap::new();
        if let Some(network) = &request.network {
            tags.extend(network.physical_network.clone().map(|name| ("physical_network".to_owned(), name)));
            tags.extend(network.trusted.map(|trusted| ("trusted".to_owned(), trusted.to_string())));
        }
        let wanted = request.aliases.iter().map(|part| {
            let alias = request.alias(&sight.inventory, &part.name);
            let alias = alias.ok_or_else(|| Error::Internal(format!("alias {} is lost", part.name)))?;
            Ok(Wanted {
                alias,
                count: part.count,
                numa_policy: request.numa_policy,
                whole_group: request.whole_group,
                vf: request.network.is_some(),
                tags: &tags,
            })
        });
        let wanted = wanted.collect::<Result<Vec<_>, Error>>()?;
        let scene = CandidateSet {
            devices,
            withheld,
            guest_nodes: &sight.guest_nodes,
            sockets: sight.sockets.as_ref(),
            groups: &sight.offer.groups,
            busy,
        };
        let chosen = rules::choose(&wanted, &scene).map_err(|shortage| {
            let advice = if sight.inventory.is_empty() {
                "[pci] device_spec is empty, so nothing is assignable".to_owned()
            } else {
                shortage.advice()
            };
            Error::TooFewFree { shortage, host: host.name.clone(), advice }
        })?;
        let parts = request.aliases.iter().zip(chosen);
        let named = parts.flat_map(|(part, devices)| {
            devices.into_iter().map(|device| (part.name.clone(), Arc::clone(device)))
        });
        Ok(named.collect())
    }
}

impl NetworkRequest {
    /// What goes on record: with a MAC address, a made-up one under Neutron's prefix where none was asked for.
    pub(super) fn settled(&self) -> Network {
        Network {
            mac: self.mac.unwrap_or_else(MacAddress::random),
            vlan: self.vlan,
            physical_network: self.physical_network.clone(),
            trusted: self.trusted,
        }
    }
}

/// Reads a device afresh. The inner error says in what it is not what the table says.
async fn read(
    host: &Host,
    request: &AttachRequest,
    device: &Device,
) -> Result<Result<HostDevice, Error>, Error> {
    let context = || format!("nothing was attached to server {}", request.server);
    let address = device.facts.address;
    let found = match host.hypervisor.device(address).await {
        Ok(found) => found,
        Err(error) if error.kind == ErrorKind::NoDevice => {
            host.look_at(address);
            return Ok(Err(host.error(context())(error)));
        }
        Err(error) => return Err(host.error(context())(error)),
    };
    if !rules::is_still(&device.facts, &found) {
        // The table is behind: it is another device now.
        host.look_at(address);
        return Ok(Err(Error::Conflict(format!("{address} has changed on the host; try again"))));
    }
    let network = found.class.is_none_or(|class| class.is_network());
    if request.network.is_some() && !(network && matches!(found.role, Role::Virtual { .. })) {
        return Ok(Err(Error::Conflict(format!(
            "{address} is no VF of a NIC; mac_address, vlan, physical_network and trusted are for those"
        ))));
    }
    Ok(Ok(found))
}

/// The rules, which know all aliases of a request.
fn known(inventory: Arc<Inventory>, request: &AttachRequest) -> Result<Arc<Inventory>, Error> {
    for wanted in &request.aliases {
        if request.alias(&inventory, &wanted.name).is_none() {
            let known: Vec<_> = inventory.alias_names().collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Error::UnknownAlias { name: wanted.name.clone(), known });
        }
    }
    Ok(inventory)
}

fn into(scope: Scope) -> &'static str {
    match scope {
        Scope::Live => "it goes into the running guest, and not into its definition",
        Scope::Config => "it goes into the definition, and into the guest when it starts",
        Scope::LiveAndConfig => "it goes into the running guest and into its definition",
    }
}

fn check(name: &'static str, result: CheckResult, message: String) -> Check {
    Check { name, device: None, result, message, cure: None }
}
