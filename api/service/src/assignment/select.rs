//! Chooses devices for an attach request and checks whether they could be plugged. This happens before any device is
//! claimed or any driver is unbound.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::hotplug::{self, Check, CheckResult, Policy};
use hotslot_driver::hypervisor::{DomainView, ErrorKind};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vf::KEYS;
use hotslot_model::assignment::{AssignmentKind, Vgpu};
use hotslot_model::device::{DevType, Device};
use hotslot_model::id::DeviceId;
use hotslot_model::rules;
use hotslot_model::rules::{
    Alias, CandidateSet, Inventory, NumaPolicy, Surroundings, Unavailable, VgpuChoice, Wanted,
};

use super::assignments::Assignments;
use super::choosing::Choice;
use super::ports;
use super::request::{AttachRequest, NetworkRequest};
use super::vgpu_choice::{VgpuChoices, check_of, to_be};
use crate::error::Error;
use crate::host::Host;
use crate::inventory::{Availability, HostDrivers};
use crate::metrics;

/// The devices chosen for a request, each with the alias that requested it.
type Selection = Vec<(String, Arc<Device>)>;

/// A device that was chosen for a request.
#[derive(Debug)]
pub(super) struct Chosen {
    /// The alias that requested it.
    pub(super) alias: String,
    /// The device's record.
    pub(super) device: Arc<Device>,
    /// The function as it was just read from the host.
    pub(super) found: HostDevice,
    /// The type of virtual GPU that it is to be of.
    pub(super) vgpu: Option<Vgpu>,
}

/// The outcome of choosing devices and checking them.
#[derive(Default)]
pub(super) struct Evaluation {
    /// The devices. A device that differs from its record is left out.
    pub(super) chosen: Vec<Chosen>,
    /// The checks of the devices.
    pub(super) checks: Vec<Check>,
    /// Why the devices cannot be attached; `None` when they can.
    pub(super) refused: Option<Refused>,
    /// Keeps other attaches from choosing the same devices.
    choice: Option<Choice>,
}

/// Why devices cannot be attached.
pub(super) enum Refused {
    /// Too few suitable devices are free.
    TooFew(Error),
    /// One device cannot be attached; another device may be.
    One(DeviceId, Error),
    /// The refusal does not concern one device: the guest cannot get any devices of this request.
    Together(Error),
}

/// Devices that an attach does not choose again after they failed a check or were in use, and the first of these
/// errors.
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

/// The state of host and guest from which devices are chosen.
pub(super) struct Snapshot {
    /// The rules as they are now; they may change while the request is served.
    inventory: Arc<Inventory>,
    pub(super) availability: Availability,
    guest_nodes: BTreeSet<u32>,
    sockets: Option<BTreeMap<u32, u32>>,
    /// Which VFs can be of the types of virtual GPUs that are asked for.
    vgpus: VgpuChoices,
}

impl Snapshot {
    /// Returns which VFs can be of the type of virtual GPU that a part of a request asks for, if it does.
    fn vgpu(&self, request: &AttachRequest, alias: &str) -> Option<&VgpuChoice> {
        self.vgpus.of(request.vgpu_type(&self.inventory, alias)?)
    }
}

impl Assignments {
    /// Reads the state of the host and the guest of a request.
    ///
    /// # Errors
    /// [`Error::UnknownAlias`]; the hypervisor's error when the NUMA topology cannot be read; errors of the database.
    pub(super) async fn snapshot(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
    ) -> Result<Snapshot, Error> {
        let inventory = self.catalog.inventory();
        request.expect_aliases(&inventory)?;
        self.expect_addresses(host, request)?;
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
        let types = request.aliases.iter().filter_map(|part| request.vgpu_type(&inventory, &part.name));
        let mut vgpus = self.vgpu_choices(host, &types.collect()).await?;
        vgpus.expect_same_types(request, &inventory)?;
        let availability = self.catalog.availability(host).await?;
        Ok(Snapshot { inventory, availability, guest_nodes, sockets, vgpus })
    }

    /// Chooses free devices that pass every check. Devices that fail a check are added to `choice` and not chosen
    /// again.
    ///
    /// # Errors
    /// The reason when there are too few such devices; errors of the hypervisor and of the database.
    ///
    /// The second value is to be kept until the devices are claimed.
    pub(super) async fn select(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        choice: &mut Exclusions,
    ) -> Result<(Vec<Chosen>, Option<Choice>), Error> {
        let choosing = async {
            self.store.refresh().await?;
            let snapshot = self.snapshot(host, view, request).await?;
            let (evaluation, _) = self.evaluate_twice(host, view, request, snapshot, choice).await?;
            match evaluation.refused {
                None => Ok((evaluation.chosen, evaluation.choice)),
                Some(Refused::TooFew(error) | Refused::One(_, error) | Refused::Together(error)) => {
                    Err(error)
                }
            }
        };
        metrics::step(AssignmentKind::Attachment, "choose", choosing).await
    }

    /// Chooses devices with [`evaluate`](Self::evaluate). When too few are free, it reads foreign domains and the host drivers
    /// of busy IOMMU groups again and, if they changed, chooses once more: libvirt sends no event when another program
    /// edits a definition or when a driver is bound or unbound. It also returns the state that the last choice was
    /// based on.
    pub(super) async fn evaluate_twice(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        snapshot: Snapshot,
        choice: &mut Exclusions,
    ) -> Result<(Evaluation, Snapshot), Error> {
        let evaluation = self.evaluate(host, view, request, &snapshot, choice).await?;
        let Some(Refused::TooFew(short)) = &evaluation.refused else { return Ok((evaluation, snapshot)) };
        let busy =
            if let Error::TooFewFree { shortage, .. } = short { shortage.busy() } else { &BTreeSet::new() };
        if !busy.is_empty() {
            self.catalog.discover(host, Some(busy.clone())).await?;
        }
        let holders: BTreeSet<_> =
            snapshot.availability.foreign.values().map(|foreign| foreign.server).collect();
        for server in holders {
            host.set_held(server, host.server(server).await?.as_ref());
        }
        let same_drivers = busy.is_empty() || *host.functions() == *snapshot.availability.functions;
        if same_drivers && host.foreign() == snapshot.availability.foreign {
            return Ok((evaluation, snapshot));
        }
        let snapshot = self.snapshot(host, view, request).await?;
        Ok((self.evaluate(host, view, request, &snapshot, choice).await?, snapshot))
    }

    /// Chooses devices and checks them, until all chosen devices pass or too few are left.
    async fn evaluate(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        snapshot: &Snapshot,
        choice: &mut Exclusions,
    ) -> Result<Evaluation, Error> {
        let mut evaluation = Evaluation::default();
        if let Some(refused) = self.vgpu_refusal(request, &snapshot.vgpus) {
            return Ok(refused);
        }
        loop {
            // The devices of the last round may be chosen again.
            evaluation.choice = None;
            let (chosen, kept) = match self.choose_among_free(host, view, request, snapshot, choice)? {
                Some((selection, kept)) => (Ok(selection), Some(kept)),
                None => (self.choose_among_all(host, view, request, snapshot, choice), None),
            };
            let selection = match chosen {
                Ok(selection) => selection,
                Err(short) => {
                    // If there are too few only because devices failed their checks, return the first failed check.
                    let error = match (&short, choice.refusal.take()) {
                        (Error::TooFewFree { shortage, .. }, Some(refusal))
                            if shortage.unavailable() <= choice.excluded.len() =>
                        {
                            refusal
                        }
                        _ => short,
                    };
                    evaluation.refused = Some(Refused::TooFew(error));
                    return Ok(evaluation);
                }
            };
            evaluation = self.preflight(host, view, request, snapshot, selection).await?;
            evaluation.choice = kept;
            match evaluation.refused.take() {
                Some(Refused::One(device, error)) => choice.exclude(device, error),
                refused => return Ok(Evaluation { refused, ..evaluation }),
            }
        }
    }

    /// Chooses among the free devices that the request prefers and that no other attach has just chosen; `None` when
    /// all devices of the host have to be looked at.
    fn choose_among_free(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        snapshot: &Snapshot,
        choice: &Exclusions,
    ) -> Result<Option<(Selection, Choice)>, Error> {
        let tags = request.tags();
        let wanted = wanted(request, snapshot, &tags)?;
        let availability = &snapshot.availability;
        let no_port = ports::no_port(view, availability);
        let choose = |chosen: &HashSet<DeviceId>| {
            self.store.with_devices_of(host.row.id, |devices| {
                let at = |address| devices.at(address).map(AsRef::as_ref);
                let is_unavailable = |device: &Device| {
                    let (server, drivers) = (Some(request.server), HostDrivers::DoNotBlock);
                    if choice.excluded.contains_key(&device.id)
                        || chosen.contains(&device.id)
                        || no_port(device).is_some()
                        || availability.has_relative_in_use(device, &at)
                        || availability.why_unavailable(device, &at, server, drivers).is_some()
                    {
                        Unavailable::Yes
                    } else if availability.needs_others(device.facts.address) {
                        Unavailable::DependsOnOthers
                    } else {
                        Unavailable::No
                    }
                };
                let (guest_nodes, sockets) = (&snapshot.guest_nodes, snapshot.sockets.as_ref());
                devices.free()?.choose(&wanted, &Surroundings { guest_nodes, sockets, is_unavailable })
            })
        };
        let ids = |parts: &Vec<Vec<Arc<Device>>>| parts.iter().flatten().map(|device| device.id).collect();
        let chosen = self.choosing.choose(choose, ids);
        Ok(chosen.map(|(parts, choice)| (named(request, parts), choice)))
    }

    /// Chooses among all devices of the host.
    fn choose_among_all(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        snapshot: &Snapshot,
        choice: &Exclusions,
    ) -> Result<Selection, Error> {
        let devices = self.store.devices_of(host.row.id);
        // The preflight reads the drivers of the other functions of the IOMMU group, so the last scan does not count.
        let drivers = HostDrivers::DoNotBlock;
        let mut unavailable = snapshot.availability.unavailable(&devices, Some(request.server), drivers);
        unavailable.extend(choice.excluded.clone());
        // Choose a device for which the guest has no free port only when there is no other; the preflight then reports
        // the missing port.
        let mut fitting = unavailable.clone();
        fitting.extend(ports::portless(view, &snapshot.availability, &devices));
        let busy = &snapshot.availability.functions.groups().busy;
        let chosen = self.choose(host, request, snapshot, &devices, (&fitting, busy));
        chosen.or_else(|_| self.choose(host, request, snapshot, &devices, (&unavailable, busy)))
    }

    /// Returns the checks of the devices that a request would get if all matching devices were available. `refused` is
    /// why it gets none.
    pub(super) async fn checks_of_unavailable(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        snapshot: &Snapshot,
        refused: Option<&Refused>,
    ) -> Result<Vec<Check>, Error> {
        let devices = self.store.devices_of(host.row.id);
        let all = (&HashMap::new(), &BTreeMap::new());
        let Ok(selection) = self.choose(host, request, snapshot, &devices, all) else {
            return Ok(Vec::new());
        };
        let mut checks = self.preflight(host, view, request, snapshot, selection).await?.checks;
        // The preflight does not know the holders of the group's members. Where one is held, say so, because unbinding
        // it would not help.
        let rows: HashMap<_, _> = devices.iter().map(|device| (device.facts.address, &**device)).collect();
        let at = |address| rows.get(&address).copied();
        let is_group = |check: &&mut Check| check.name == "group-viable" && check.result == CheckResult::Fail;
        for check in checks.iter_mut().filter(is_group) {
            let (server, drivers) = (Some(request.server), HostDrivers::DoNotBlock);
            let blocked = check.device.and_then(|address| {
                snapshot.availability.why_group_is_blocked(address, &at, server, drivers)
            });
            if let Some(reason) = blocked {
                (check.message, check.cure) = (reason, None);
            }
        }
        let of_driver = |check: &&mut Check| check.name == "driver" && check.result == CheckResult::Fail;
        for check in checks.iter_mut().filter(of_driver) {
            let kept = check.device.and_then(|address| snapshot.availability.why_keep_driver(address));
            check.cure = kept.or_else(|| check.cure.take());
        }
        // The advice about busy members of an IOMMU group depends on the whole request.
        if let Some(Refused::TooFew(Error::TooFewFree { shortage, advice, .. })) = refused
            && !shortage.busy().is_empty()
        {
            let viable = checks.iter_mut().filter(|check| check.name == "group-viable");
            for check in viable.filter(|check| check.cure.is_some()) {
                check.cure = Some(advice.clone());
            }
        }
        Ok(checks)
    }

    /// Reads the selected devices from the host and checks whether they can be plugged.
    async fn preflight(
        &self,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        snapshot: &Snapshot,
        selection: Selection,
    ) -> Result<Evaluation, Error> {
        let context = || format!("nothing was attached to server {}", request.server);
        let mut evaluation = Evaluation::default();
        let mut facts = Vec::new();
        for (alias, device) in selection {
            let address = Some(device.facts.address);
            let requested = request.alias(&snapshot.inventory, &alias);
            let requested = requested.is_some_and(|alias| alias.matches(&device.facts));
            let spec = if requested {
                format!("a device_spec lists it, and alias `{alias}` matches it")
            } else {
                "a device_spec lists it, and it is needed to complete its IOMMU group".to_owned()
            };
            evaluation
                .checks
                .push(Check { device: address, ..check("device-spec", CheckResult::Pass, spec) });
            let state = format!("it is {}", device.status);
            evaluation.checks.push(Check { device: address, ..check("state", CheckResult::Pass, state) });
            let choice = snapshot.vgpu(request, &alias);
            let is_next = evaluation.chosen.iter().any(|other: &Chosen| {
                let of_other = snapshot.vgpu(request, &other.alias);
                other.device.facts.parent_addr == device.facts.parent_addr
                    && of_other.is_some_and(|of| of.sets(other.device.facts.address))
            });
            let of_type = choice.map(|choice| check_of(choice, device.facts.address, is_next));
            evaluation.checks.extend(of_type);
            let vgpu = choice.and_then(|choice| to_be(choice, device.facts.address));
            match read(host, request, &device).await? {
                Ok(found) => {
                    let checks = &mut evaluation.checks;
                    let refused = self.preflight_vf(host, request, &device, checks).await?;
                    let refused = match (refused, choice) {
                        (None, None) => self.vgpu_as_it_is(host, request, (&device, &found), checks).await?,
                        (refused, _) => refused,
                    };
                    if let Some(refused) = refused {
                        evaluation.refused = Some(refused);
                        return Ok(evaluation);
                    }
                    facts.push(snapshot.availability.facts(found.clone(), &device));
                    evaluation.chosen.push(Chosen { alias, device, found, vgpu });
                }
                Err(error) => {
                    let gone = check("present", CheckResult::Fail, error.to_string());
                    evaluation.checks.push(Check { device: address, ..gone });
                    evaluation.refused = Some(Refused::One(device.id, error));
                    return Ok(evaluation);
                }
            }
        }
        snapshot.availability.add_open_nodes(&mut facts).await?;
        // Devices of one IOMMU group that are attached together are unbound from their host drivers together.
        let policy = Policy { require_reset: self.config.get().attach.require_reset, whole_groups: true };
        let verdict = hotplug::preflight(host.hypervisor.as_ref(), view, &facts, policy).await;
        let verdict = verdict.map_err(host.error(context()))?;
        evaluation.refused = verdict.refusal().map(|refusal| {
            // The device table is outdated, because no event reports that a driver was bound or unbound.
            if let (ErrorKind::GroupNotViable, Some(address)) = (refusal.error.kind, refusal.device) {
                host.queue_device_scan(address);
            }
            let error = host.error(context())(refusal.error.clone());
            match evaluation.chosen.iter().find(|chosen| Some(chosen.device.facts.address) == refusal.device)
            {
                Some(chosen) => Refused::One(chosen.device.id, error),
                None => Refused::Together(error),
            }
        });
        evaluation.checks.extend(verdict.checks);
        Ok(evaluation)
    }

    /// Checks whether the requested settings of a VF can be changed, and puts back those that it has from an attachment
    /// that has ended. Adds the check, and returns why the VF cannot be attached.
    async fn preflight_vf(
        &self,
        host: &Host,
        request: &AttachRequest,
        device: &Device,
        checks: &mut Vec<Check>,
    ) -> Result<Option<Refused>, Error> {
        if device.facts.dev_type != DevType::Vf {
            return Ok(None);
        }
        let address = device.facts.address;
        match self.put_back_vf_settings(host, Some(address)).await {
            Err(error @ Error::Hypervisor { .. }) => return Ok(Some(Refused::One(device.id, error))),
            put_back => put_back?,
        }
        let wanted = request.network.as_ref().map(NetworkRequest::vf_settings).unwrap_or_default();
        if wanted.is_empty() {
            return Ok(None);
        }
        let (check, error) = self.check_vf_settings(host, address, &wanted).await;
        checks.push(check);
        Ok(error.map(|error| {
            let nothing = format!("nothing was attached to server {}", request.server);
            // Where settings cannot be changed at all, no other VF would do.
            if error.kind == ErrorKind::Unsupported {
                return Refused::Together(Error::Conflict(format!("{nothing}: {}", error.message)));
            }
            Refused::One(device.id, host.error(nothing)(error))
        }))
    }

    /// Checks that all aliases of a request exist.
    ///
    /// # Errors
    /// [`Error::UnknownAlias`].
    pub(super) fn known_aliases(&self, request: &AttachRequest) -> Result<(), Error> {
        request.expect_aliases(&self.catalog.inventory())
    }

    /// Checks that the host has a device at each address that the request names. A device that is not free, or that is
    /// gone, is explained by the choice.
    ///
    /// # Errors
    /// [`Error::Invalid`], with what is at the address instead.
    fn expect_addresses(&self, host: &Host, request: &AttachRequest) -> Result<(), Error> {
        let functions = host.functions();
        for address in request.own.iter().filter_map(Alias::address) {
            if self.store.with_devices_of(host.row.id, |devices| devices.at(address).is_some()) {
                continue;
            }
            let name = &host.name;
            return Err(Error::Invalid(match functions.get(&address) {
                None => format!(
                    "addresses: host {name} has no PCI function {address}; GET os-hypervisors/{name}/pci_devices lists \
                     those that it has"
                ),
                Some(function) if function.bridge => format!(
                    "addresses: {address} of host {name} is a PCI bridge, which cannot be assigned; name a device that \
                     GET os-pci lists"
                ),
                Some(_) => format!(
                    "addresses: no device_spec lists {address} of host {name}, so it cannot be assigned; name a device \
                     that GET os-pci lists, or add a device_spec that lists this one"
                ),
            }));
        }
        Ok(())
    }

    fn choose(
        &self,
        host: &Host,
        request: &AttachRequest,
        snapshot: &Snapshot,
        devices: &[Arc<Device>],
        (unavailable, busy): (&HashMap<DeviceId, String>, &BTreeMap<PciAddress, String>),
    ) -> Result<Selection, Error> {
        let tags = request.tags();
        let wanted = wanted(request, snapshot, &tags)?;
        let candidate_set = CandidateSet {
            devices,
            unavailable,
            guest_nodes: &snapshot.guest_nodes,
            sockets: snapshot.sockets.as_ref(),
            groups: &snapshot.availability.functions.groups().number,
            busy,
        };
        let chosen = rules::choose(&wanted, &candidate_set).map_err(|shortage| {
            let advice = if snapshot.inventory.is_empty() {
                "[pci] device_spec is empty, so nothing is assignable".to_owned()
            } else {
                shortage.advice()
            };
            Error::TooFewFree { shortage, host: host.name.clone(), advice }
        })?;
        let chosen = chosen.into_iter().map(|part| part.into_iter().cloned().collect());
        Ok(named(request, chosen.collect()))
    }
}

/// Returns the parts of a request, for the choice.
fn wanted<'a>(
    request: &'a AttachRequest,
    snapshot: &'a Snapshot,
    tags: &'a BTreeMap<String, String>,
) -> Result<Vec<Wanted<'a>>, Error> {
    let wanted = request.aliases.iter().map(|part| {
        let alias = request.alias(&snapshot.inventory, &part.name);
        let alias = alias.ok_or_else(|| Error::Internal(format!("alias {} is lost", part.name)))?;
        Ok(Wanted {
            alias,
            count: part.count,
            numa_policy: request.numa_policy,
            whole_group: request.whole_group,
            vf: request.network.is_some(),
            tags,
            vgpu: snapshot.vgpu(request, &part.name),
        })
    });
    wanted.collect()
}

/// Returns the devices of all parts of a request, each with the alias that requested it.
fn named(request: &AttachRequest, parts: Vec<Vec<Arc<Device>>>) -> Selection {
    let parts = request.aliases.iter().zip(parts);
    parts.flat_map(|(part, devices)| devices.into_iter().map(|device| (part.name.clone(), device))).collect()
}

/// Reads a device from the host. The inner error says why this device cannot be attached: it is gone, it changed, or it
/// is not a VF of a NIC although the request has network settings.
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
            host.queue_device_scan(address);
            return Ok(Err(host.error(context())(error)));
        }
        Err(error) => return Err(host.error(context())(error)),
    };
    if !rules::is_still(&device.facts, &found) {
        // The device table is outdated: another device has this address now.
        host.queue_device_scan(address);
        return Ok(Err(Error::Conflict(format!("{address} has changed on the host; try again"))));
    }
    let network = found.class.is_none_or(|class| class.is_network());
    if request.network.is_some() && !(network && matches!(found.role, Role::Virtual { .. })) {
        return Ok(Err(Error::Conflict(format!(
            "{address} is not a VF of a NIC, and the request has settings of such VFs ({KEYS}); leave them out, or ask for a \
             VF of a NIC"
        ))));
    }
    Ok(Ok(found))
}

/// Returns a check that concerns no single device and has no cure.
pub(super) fn check(name: &'static str, result: CheckResult, message: String) -> Check {
    Check { name, device: None, result, message, cure: None }
}
