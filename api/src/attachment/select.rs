//! Which devices a request gets, and whether they could be plugged: before anything is claimed or touched, and on
//! its own as a dry run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hotslot_driver::device::Role;
use hotslot_driver::hotplug::{self, Check, CheckResult, Facts, Policy, Verdict};
use hotslot_driver::hypervisor::{DomainView, ErrorKind};
use hotslot_driver::net::{MacAddress, VlanTag};

use super::attach::AttachRequest;
use crate::error::Error;
use crate::host::Host;
use crate::id::DeviceId;
use crate::inventory::{self, Inventory, NumaPolicy, Offer, Scene, Wanted};
use crate::service::Service;
use crate::store::{Device, Network};

/// What a VF of a NIC is to be in the guest, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkRequest {
    /// Its MAC address; none makes one up.
    pub mac: Option<MacAddress>,
    /// The VLAN that the NIC puts its frames into.
    pub vlan: Option<VlanTag>,
    /// The `physical_network` that its `device_spec` has to say.
    pub physical_network: Option<String>,
    /// Whether its `device_spec` has to say that it may be trusted.
    pub trusted: Option<bool>,
}

/// The devices of a request, each with the alias by which it was asked for.
pub(super) type Selection = Vec<(String, Arc<Device>)>;

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

/// Devices that were found not to do, and why the last of them does not.
#[derive(Default)]
pub(super) struct Choice {
    excluded: HashMap<DeviceId, String>,
    refusal: Option<Error>,
}

impl Choice {
    pub(super) fn exclude(&mut self, device: DeviceId, error: Error) {
        self.excluded.insert(device, error.to_string());
        self.refusal = Some(error);
    }
}

/// What is known of host and guest when devices are chosen.
pub(super) struct Sight {
    /// The rules of this moment: they may be changed while a request is served.
    inventory: Arc<Inventory>,
    offer: Offer,
    guest_nodes: BTreeSet<u32>,
    sockets: Option<BTreeMap<u32, u32>>,
}

impl Service {
    /// Looks at the host and the guest of a request.
    pub(super) async fn sight(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
    ) -> Result<Sight, Error> {
        let inventory = known(self.inventory(), request)?;
        let by_socket = |part: &inventory::AliasRequest| {
            let own = || inventory.alias(&part.name).map(|alias| alias.numa_policy);
            request.numa_policy.or_else(own) == Some(NumaPolicy::Socket)
        };
        let sockets = if request.aliases.iter().any(by_socket) {
            host.hypervisor.node_sockets().await.map_err(host.error("read the host's NUMA topology"))?
        } else {
            None
        };
        let document = view.live.as_ref().or(view.persistent.as_ref());
        let guest_nodes = document.map(|document| document.numa_nodes.clone()).unwrap_or_default();
        Ok(Sight { inventory, offer: self.offer(host).await?, guest_nodes, sockets })
    }

    /// Chooses free devices that could be plugged, as far as it can be seen; those that do not do are left out.
    pub(super) async fn select(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        choice: &mut Choice,
    ) -> Result<Selection, Error> {
        let sight = self.sight(host, view, request).await?;
        let context = || format!("nothing was attached to server {}", view.info.uuid);
        loop {
            let devices = self.store.devices_of(host.row.id);
            let mut withheld = sight.offer.withheld(&devices, Some(request.server), request.whole_group);
            withheld.extend(choice.excluded.clone());
            // Enough were free, and one of them did not do: that is the answer.
            let chosen = self
                .choose(host, request, &sight, &devices, &withheld)
                .map_err(|short| choice.refusal.take().unwrap_or(short))?;
            let facts = match self.read(host, &sight.offer, request, &chosen).await? {
                Ok(facts) => facts,
                Err((device, error)) => {
                    choice.exclude(device, error);
                    continue;
                }
            };
            let verdict = self.verdict(host, view, request, &facts).await?;
            let Some(refusal) = verdict.refusal() else { return Ok(chosen) };
            let error = host.error(context())(refusal.error.clone());
            match chosen.iter().find(|(_, device)| Some(device.facts.address) == refusal.device) {
                Some((_, device)) => choice.exclude(device.id, error),
                None => return Err(error),
            }
        }
    }

    /// What an attach would do, with every check: nothing is claimed, and no driver is touched.
    ///
    /// # Errors
    /// As [`Service::attach`](Service::attach), but for what the checks say.
    pub async fn dry_run(&self, request: &AttachRequest) -> Result<DryRun, Error> {
        self.known_aliases(request)?;
        let (host, _) = self.find(request.server).await?;
        host.ready().await?;
        let view = host.server(request.server).await?.ok_or(Error::NoServer(request.server))?;
        let sight = self.sight(&host, &view, request).await?;
        let devices = self.store.devices_of(host.row.id);
        let withheld = sight.offer.withheld(&devices, Some(request.server), request.whole_group);
        let mut checks = Vec::new();
        let chosen = match self.choose(&host, request, &sight, &devices, &withheld) {
            Ok(chosen) => {
                let names: Vec<_> =
                    chosen.iter().map(|(_, device)| device.facts.address.to_string()).collect();
                checks.push(check(
                    "choice",
                    CheckResult::Pass,
                    format!("{} would be taken", names.join(", ")),
                ));
                chosen
            }
            Err(short) => {
                checks.push(check("choice", CheckResult::Fail, short.to_string()));
                // Those that are withheld are looked at all the same: the checks then say why, one by one.
                self.choose(&host, request, &sight, &devices, &HashMap::new()).unwrap_or_default()
            }
        };
        for (alias, device) in &chosen {
            let address = Some(device.facts.address);
            let spec = format!("a device_spec lists it, and alias `{alias}` asks for such a device");
            let state = format!("it is {}", device.status);
            checks.push(Check { device: address, ..check("device-spec", CheckResult::Pass, spec) });
            checks.push(Check { device: address, ..check("state", CheckResult::Pass, state) });
        }
        match self.read(&host, &sight.offer, request, &chosen).await? {
            Ok(facts) => {
                let verdict = self.verdict(&host, &view, request, &facts).await?;
                checks.extend(verdict.checks);
                if !sight.offer.knows_guards() {
                    for check in checks.iter_mut().filter(|check| check.name == "guard") {
                        check.result = CheckResult::Unknown;
                        check.message =
                            "what the host lives on cannot be seen from here: it is another machine".into();
                    }
                }
            }
            Err((_, error)) => checks.push(check("present", CheckResult::Fail, error.to_string())),
        }
        let enough = checks.first().is_some_and(|choice| choice.result == CheckResult::Pass);
        Ok(DryRun { devices: if enough { chosen } else { Vec::new() }, checks })
    }

    /// # Errors
    /// [`Error::UnknownAlias`].
    pub(super) fn known_aliases(&self, request: &AttachRequest) -> Result<(), Error> {
        known(self.inventory(), request).map(drop)
    }

    fn choose(
        &self,
        host: &Host,
        request: &AttachRequest,
        sight: &Sight,
        devices: &[Arc<Device>],
        withheld: &HashMap<DeviceId, String>,
    ) -> Result<Selection, Error> {
        let mut tags = BTreeMap::new();
        if let Some(network) = &request.network {
            tags.extend(network.physical_network.clone().map(|name| ("physical_network".to_owned(), name)));
            tags.extend(network.trusted.map(|trusted| ("trusted".to_owned(), trusted.to_string())));
        }
        let wanted = request.aliases.iter().map(|part| {
            let alias = sight.inventory.alias(&part.name);
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
        let scene = Scene {
            devices,
            withheld,
            guest_nodes: &sight.guest_nodes,
            sockets: sight.sockets.as_ref(),
            groups: &sight.offer.groups,
        };
        let chosen = inventory::choose(&wanted, &scene).map_err(|shortage| {
            let advice = if sight.inventory.is_empty() {
                "[pci] device_spec is empty, so nothing is assignable"
            } else {
                "detach one, or look at GET os-pci/detail"
            };
            Error::TooFewFree { shortage, host: host.name.clone(), advice }
        })?;
        let parts = request.aliases.iter().zip(chosen);
        let named = parts.flat_map(|(part, devices)| {
            devices.into_iter().map(|device| (part.name.clone(), Arc::clone(device)))
        });
        Ok(named.collect())
    }

    /// Reads the chosen devices afresh. The inner error is of one that is not what the table says.
    async fn read(
        &self,
        host: &Host,
        offer: &Offer,
        request: &AttachRequest,
        chosen: &Selection,
    ) -> Result<Result<Vec<Facts>, (DeviceId, Error)>, Error> {
        let context = || format!("nothing was attached to server {}", request.server);
        let mut facts = Vec::new();
        for (_, device) in chosen {
            let address = device.facts.address;
            match host.hypervisor.device(address).await {
                // The table is behind: it is another device now.
                Ok(found) if !inventory::is_still(&device.facts, &found) => {
                    let error = Error::Conflict(format!("{address} has changed on the host; try again"));
                    return Ok(Err((device.id, error)));
                }
                Ok(found) => {
                    let network = found.class.is_none_or(|class| class.is_network());
                    if request.network.is_some() && !(network && matches!(found.role, Role::Virtual { .. })) {
                        let error = Error::Conflict(format!(
                            "{address} is no VF of a NIC; mac_address, vlan, physical_network and trusted are for those"
                        ));
                        return Ok(Err((device.id, error)));
                    }
                    facts.push(offer.facts(found));
                }
                Err(error) if error.kind == ErrorKind::NoDevice => {
                    return Ok(Err((device.id, host.error(context())(error))));
                }
                Err(error) => return Err(host.error(context())(error)),
            }
        }
        Ok(Ok(facts))
    }

    async fn verdict(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        facts: &[Facts],
    ) -> Result<Verdict, Error> {
        let policy =
            Policy { require_reset: self.config.attach.require_reset, whole_groups: request.whole_group };
        let verdict = hotplug::preflight(host.hypervisor.as_ref(), view, facts, policy).await;
        verdict.map_err(host.error(format!("nothing was attached to server {}", view.info.uuid)))
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

/// The rules, which know all aliases of a request.
fn known(inventory: Arc<Inventory>, request: &AttachRequest) -> Result<Arc<Inventory>, Error> {
    for wanted in &request.aliases {
        if inventory.alias(&wanted.name).is_none() {
            let known: Vec<_> = inventory.alias_names().collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Error::UnknownAlias { name: wanted.name.clone(), known });
        }
    }
    Ok(inventory)
}

fn check(name: &'static str, result: CheckResult, message: String) -> Check {
    Check { name, device: None, result, message, cure: None }
}
