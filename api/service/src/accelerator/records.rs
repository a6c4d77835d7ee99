//! The records of accelerators, and what each of them holds.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::join_all;
use hotslot_driver::pci::PciAddress;
use hotslot_model::accelerator::{AccSpec, Accelerator, View, disambiguated, discovered};
use hotslot_model::assignment::{Assignment, Holder};
use hotslot_model::device::Device;
use hotslot_model::id::{AcceleratorId, HypervisorId};
use hotslot_store::error::{changed, not_found};
use uuid::Uuid;

use super::accelerators::Accelerators;
use crate::error::Error;

impl Accelerators {
    /// Creates an accelerator, which belongs to `project`. No device has to be free.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] when its name or id is in use, or a discovered accelerator has that name; errors of the
    /// database.
    pub async fn create_accelerator(
        &self,
        name: &str,
        id: Option<AcceleratorId>,
        project: Option<&str>,
    ) -> Result<View, Error> {
        let id = id.unwrap_or_else(|| AcceleratorId(Uuid::new_v4()));
        if self.config.get().accelerators.discovered {
            let devices = self.discoverable();
            let shows = |device: &&Arc<Device>| {
                let shown = self.discovered_name(device);
                device.uuid != id.0 && (shown == name || disambiguated(&shown, device) == name)
            };
            if let Some(device) = devices.iter().find(shows)
                && self.store.accelerator(AcceleratorId(device.uuid)).await?.is_none()
            {
                return Err(Error::AlreadyExists(format!(
                    "the discovered accelerator {} is called `{name}`; choose another name, or use its uuid",
                    device.uuid
                )));
            }
        }
        let row = self.store.create_accelerator(name, id, project).await?;
        tracing::info!(accelerator.id = %id, "created accelerator `{name}`");
        self.view(row).await
    }

    /// Returns the accelerators of a project by their records.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn accelerators_of(&self, project: &str) -> Result<Vec<View>, Error> {
        let held = self.store.held_by_accelerators_of(project).await?;
        self.views(self.store.accelerators_of(project).await?, held).await
    }

    /// Returns all accelerators by their records; with `[accelerators] discovered`, also all assignable devices.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn accelerators(&self) -> Result<Vec<View>, Error> {
        let held = self.store.assignments().await?;
        let mut views = self.views(self.store.accelerators().await?, held).await?;
        if self.config.get().accelerators.discovered {
            let names: HashSet<_> = views.iter().map(|view| view.row.name.clone()).collect();
            let on_record: HashSet<_> = views.iter().map(|view| view.row.id.0).collect();
            for device in self.discoverable().iter().filter(|device| !on_record.contains(&device.uuid)) {
                let name = self.discovered_name(device);
                let in_use = names.contains(&name);
                views.push(discovered(device, name, in_use));
            }
        }
        Ok(views)
    }

    async fn views(&self, rows: Vec<Accelerator>, held: Vec<Assignment>) -> Result<Vec<View>, Error> {
        let mut by_holder = HashMap::<_, Vec<_>>::new();
        for row in held {
            by_holder.entry(row.holder()).or_default().push(row);
        }
        let mut views = Vec::new();
        for row in rows {
            let held = by_holder.remove(&Some(Holder::Accelerator(row.id))).unwrap_or_default();
            views.push(self.seen(row, held).await?);
        }
        Ok(views)
    }

    /// Returns one accelerator by its records.
    ///
    /// # Errors
    /// [`Error::NoAccelerator`]; errors of the database.
    pub async fn accelerator(&self, id: AcceleratorId) -> Result<View, Error> {
        if let Some(row) = self.store.accelerator(id).await? {
            return self.view(row).await;
        }
        let device = self.discoverable().into_iter().find(|device| device.uuid == id.0);
        let device =
            device.filter(|_| self.config.get().accelerators.discovered).ok_or_else(|| not_found(id))?;
        let name = self.discovered_name(&device);
        let in_use = self.store.has_accelerator_called(&name).await?;
        Ok(discovered(&device, name, in_use))
    }

    /// Replaces the spec of an accelerator. With `generations`, the current spec must be of one of these generations.
    ///
    /// # Errors
    /// [`Error::NoAccelerator`]; [`Error::Conflict`] when the generation is another; errors of the database.
    pub async fn put_acc_spec(
        &self,
        id: AcceleratorId,
        spec: &AccSpec,
        generations: Option<&[i64]>,
    ) -> Result<View, Error> {
        let was = self.on_record(id).await?;
        expect_generation(&was, generations)?;
        let row = self.store.put_acc_spec(id, spec, generations.map(|_| was.row.generation)).await?;
        self.view(row).await
    }

    /// Removes the record of an accelerator that holds no devices.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it has no record; [`Error::Conflict`] when it holds devices; errors of the database.
    pub async fn purge_accelerator(&self, id: AcceleratorId) -> Result<(), Error> {
        if self.store.purge_accelerator(id).await? {
            return Ok(());
        }
        Err(Error::NotFound(format!("accelerator {id} on record")))
    }

    /// Returns an accelerator that has a record. A discovered one gets its record now.
    pub(super) async fn on_record(&self, id: AcceleratorId) -> Result<View, Error> {
        let view = self.accelerator(id).await?;
        if view.row.created_at == 0 {
            return match self.store.create_accelerator(&view.row.name, id, None).await {
                Ok(row) => self.view(row).await,
                // Another request created it meanwhile, or its name is in use.
                Err(error) => match self.store.accelerator(id).await? {
                    Some(row) => self.view(row).await,
                    None => Err(error.into()),
                },
            };
        }
        Ok(view)
    }

    async fn view(&self, row: Accelerator) -> Result<View, Error> {
        let holder = Holder::Accelerator(row.id);
        let held = self.store.held_by(holder).await?;
        self.seen(row, held).await
    }

    async fn seen(&self, row: Accelerator, assignments: Vec<Assignment>) -> Result<View, Error> {
        let mut held = Vec::new();
        for by in assignments {
            let device = self.device_held(&by).await?;
            held.push(hotslot_model::accelerator::Held { by, device, found: None });
        }
        let pinned = match row.pinned {
            Some(id) => self.store.known_device(id).await?,
            None => None,
        };
        let requested = match held.first() {
            Some(first) => self.store.rows_of_request(first.by.request()).await?,
            None => 0,
        };
        let reachable = pinned.as_ref().is_none_or(|device| self.hosts.host(device.hypervisor).is_some());
        Ok(View { row, held, requested, pinned, reachable })
    }

    /// Reads the held devices from their hosts, because no event reports that a driver was bound or unbound. The hosts
    /// are read concurrently, and the devices of a host that does not answer in time stay unknown.
    pub async fn read_functions(&self, views: &mut [View]) {
        let mut places = BTreeMap::<HypervisorId, BTreeSet<PciAddress>>::new();
        for held in views.iter().flat_map(|view| &view.held) {
            places.entry(held.device.hypervisor).or_default().insert(held.device.facts.address);
        }
        let of_host = async |(id, addresses): (HypervisorId, BTreeSet<PciAddress>)| {
            let mut found = Vec::new();
            if let Some(host) = self.hosts.host(id) {
                let read = async {
                    for address in addresses {
                        let device = host.hypervisor.device(address).await;
                        found.extend(device.ok().map(|device| ((id, address), device)));
                    }
                    Ok(())
                };
                // After a time-out, use what was read until then.
                drop(host.soon(read).await);
            }
            found
        };
        let found = join_all(places.into_iter().map(of_host)).await;
        let found: HashMap<_, _> = found.into_iter().flatten().collect();
        for held in views.iter_mut().flat_map(|view| &mut view.held) {
            held.found = found.get(&(held.device.hypervisor, held.device.facts.address)).cloned();
        }
    }

    /// Returns the devices that can be discovered accelerators: those on configured hosts.
    fn discoverable(&self) -> Vec<Arc<Device>> {
        let mut devices = self.store.devices();
        devices.retain(|device| self.hosts.host(device.hypervisor).is_some());
        devices
    }

    pub(crate) async fn device_held(&self, by: &Assignment) -> Result<Arc<Device>, Error> {
        let id = by.device();
        let lost = || Error::Internal(format!("the record of device {}, which is in use, is lost", id.0));
        self.store.known_device(id).await?.ok_or_else(lost)
    }

    fn discovered_name(&self, device: &Device) -> String {
        let host = self.hosts.host(device.hypervisor).map_or("", |host| host.name.as_str());
        format!("{host}_{}", device.facts.address)
    }
}

/// Checks that the spec of an accelerator is of one of the expected generations; `None` accepts any.
///
/// # Errors
/// [`Error::Conflict`] when it is of another generation.
pub(super) fn expect_generation(view: &View, generations: Option<&[i64]>) -> Result<(), Error> {
    match generations {
        Some(expected) if !expected.contains(&view.row.generation) => {
            Err(changed(view.row.id, view.row.generation).into())
        }
        Some(_) | None => Ok(()),
    }
}
