//! Which devices of a host an alias would take, and why it would not take the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hotslot_driver::device::HostDevice;
use hotslot_driver::hypervisor::DomainView;
use hotslot_model::device::Device;
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::{DeviceId, ServerId};
use hotslot_model::rules::{self, CandidateSet, Foreign, Wanted};

use super::assignments::Assignments;
use super::ports;
use super::request::unknown_alias;
use crate::error::Error;
use crate::host::Host;
use crate::inventory::{Availability, HostDrivers};

/// The attach that the candidates are listed for. Nothing is attached.
#[derive(Debug)]
pub struct CandidatesRequest<'a> {
    /// The name of the alias.
    pub alias: &'a str,
    /// The number of devices that the attach would request, from 1.
    pub count: usize,
    /// Whether the attach would take whole IOMMU groups.
    pub whole_group: bool,
    /// The server that would get the devices: its NUMA nodes and its free hot-plug ports are then respected.
    pub server: Option<ServerId>,
}

/// The devices of a host, as an alias would take them.
#[derive(Debug)]
pub struct Candidates {
    /// The devices that some `device_spec` lists: first those that the alias would take, in that order, each with its
    /// place in the order, from 0; then the others, each with the reason why the alias would not take it.
    pub devices: Vec<(Arc<Device>, Result<usize, String>)>,
    /// The other functions of the host, each with the domain into which somebody else put it. PCI bridges are left
    /// out.
    pub unlisted: Vec<(HostDevice, Option<Foreign>)>,
}

impl Assignments {
    /// Lists the devices of a host in the order in which an alias would take them.
    ///
    /// # Errors
    /// [`Error::UnknownAlias`]; [`Error::NoServer`] when the host does not have the server; errors of the hypervisor
    /// and of the database.
    pub async fn candidates(
        &self,
        host: &Host,
        request: &CandidatesRequest<'_>,
    ) -> Result<Candidates, Error> {
        let rules = self.catalog.inventory();
        let alias = rules.alias(request.alias).ok_or_else(|| unknown_alias(&rules, request.alias))?;
        let view = match request.server {
            Some(server) => Some(host.server(server).await?.ok_or(Error::NoServer(server))?),
            None => None,
        };
        let sockets = host.hypervisor.node_sockets().await;
        let sockets = sockets.map_err(host.error("read the host's NUMA topology"))?;
        let functions = self.catalog.read_now(host, None).await?;
        let availability = self.catalog.availability_of(host, functions).await?;
        let devices = self.store.devices_of(host.row.id);
        let mut unavailable = unavailable(&availability, &devices, request, view.as_ref());
        let types = alias.vgpu_type.as_deref().into_iter().collect();
        let vgpus = self.vgpu_choices_as_they_are(host, &types).await?;
        if types.is_empty() {
            let without_type = self.vfs_without_type(host).await?;
            for device in &devices {
                if let Some(reason) = without_type.get(&device.facts.address) {
                    unavailable.entry(device.id).or_insert_with(|| reason.clone());
                }
            }
        }
        if let Some(reason) = self.hosts.refusal(host, HostChange::Attach).await? {
            for device in &devices {
                unavailable.entry(device.id).or_insert_with(|| reason.clone());
            }
        }
        let document = view.and_then(|view| view.live.or(view.persistent));
        let candidate_set = CandidateSet {
            devices: &devices,
            unavailable: &unavailable,
            guest_nodes: &document.map(|document| document.numa_nodes).unwrap_or_default(),
            sockets: sockets.as_ref(),
            groups: &availability.functions.groups().number,
            busy: &availability.functions.groups().busy,
        };
        let wanted = Wanted {
            alias,
            count: request.count,
            numa_policy: None,
            whole_group: request.whole_group,
            vf: false,
            tags: &BTreeMap::new(),
            vgpu: alias.vgpu_type.as_deref().and_then(|of| vgpus.of(of)),
        };
        let explained = rules::explain(&wanted, &candidate_set).into_iter();
        Ok(Candidates {
            devices: explained.map(|(device, verdict)| (Arc::clone(device), verdict)).collect(),
            unlisted: unlisted(&availability, &devices),
        })
    }
}

/// Returns the devices that the attach could not get, whatever the alias, each with the reason.
fn unavailable(
    availability: &Availability,
    devices: &[Arc<Device>],
    request: &CandidatesRequest<'_>,
    view: Option<&DomainView>,
) -> HashMap<DeviceId, String> {
    // Whether a host driver blocks a device depends on the other requested devices, so `rules::explain` decides that.
    let mut unavailable = availability.unavailable(devices, request.server, HostDrivers::DoNotBlock);
    if !request.whole_group {
        for device in devices {
            if let Some(reason) = availability.unbound(device) {
                unavailable.entry(device.id).or_insert(reason);
            }
        }
    }
    if let Some(view) = view {
        unavailable.extend(ports::portless(view, availability, devices));
    }
    unavailable
}

/// Returns the functions that no `device_spec` lists, in the order of their addresses.
fn unlisted(availability: &Availability, devices: &[Arc<Device>]) -> Vec<(HostDevice, Option<Foreign>)> {
    let listed: BTreeSet<_> = devices.iter().map(|device| device.facts.address).collect();
    let others = availability.functions.values().filter(|it| !it.bridge && !listed.contains(&it.address));
    others.map(|it| (it.clone(), availability.foreign.get(&it.address).cloned())).collect()
}
