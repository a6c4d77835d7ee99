//! Attach: the checks of libvirt in libvirt's order, and the changes.
//!
//! ```text
//! document → running? → definition: device already there? alias unique? free port?
//!          → guest: alias unique? → host device: present? endpoint? in use? group in use?
//!          → (host driver unbound) → free port? → group viable?      a failure here rebinds the host driver
//!          → mediated device: free port? present? in use?
//! ```

use std::sync::Arc;

use uuid::Uuid;

use crate::device::Role;
use crate::hypervisor::{Event, Scope};
use crate::pci::PciAddress;

use super::device::{Device, VFIO};
use super::document::{Document, ROOT_PORT};
use super::host::Host;
use super::plug::{self, NewController, Plug, Source};
use super::refusal::{self, Refusal};

impl Host {
    /// Attaches the device that `xml` describes.
    pub(super) fn attach(&mut self, uuid: Uuid, xml: &str, scope: Scope) -> Result<(), Refusal> {
        let (to_live, to_config) = match scope {
            Scope::Live => (true, false),
            Scope::Config => (false, true),
            Scope::LiveAndConfig => (true, true),
        };
        if let Some(controller) = plug::pci_controller(xml)? {
            return self.attach_controller(uuid, &controller, to_live, to_config);
        }
        let domain = self.domain(uuid)?;
        let plug = Plug::parse(xml)?;
        let live = domain.live.as_ref().filter(|_| to_live);
        if to_live && live.is_none() {
            return Err(refusal::not_running());
        }
        let persistent = domain.persistent.as_ref().filter(|_| to_config);
        if to_config && persistent.is_none() {
            return Err(refusal::transient());
        }
        let persistent = persistent.map(|document| self.definition_with(document, &plug)).transpose()?;
        let live = match live {
            None => None,
            Some(document) => {
                check_alias(document, &plug)?;
                let alias = plug.alias.clone().unwrap_or_else(|| Plug::own_alias(document.parsed()));
                let document = match plug.source {
                    Source::Function(source) => {
                        self.check_free(uuid, source, plug.managed, plug.interface)?;
                        match self.guest_with(document, &plug, &alias, source) {
                            Ok(document) => document,
                            Err(refused) => {
                                self.bounce(source);
                                return Err(refused);
                            }
                        }
                    }
                    Source::Mdev(mdev) => {
                        let guest = document.place(plug.guest, true, true)?;
                        self.check_mdev(mdev)?;
                        document.with(&plug, Some(&alias), guest)?
                    }
                };
                Some((document, alias))
            }
        };
        if let Some((live, alias)) = live {
            match plug.source {
                Source::Function(source) => self.hold(uuid, source),
                Source::Mdev(mdev) => self.hold_mdev(uuid, mdev),
            }
            self.domain_mut(uuid)?.live = Some(live);
            if !self.lose_event {
                self.emit(Event::DeviceAdded { domain: uuid, alias });
            }
        }
        if persistent.is_some() {
            self.domain_mut(uuid)?.persistent = persistent;
        }
        self.save(uuid);
        Ok(())
    }

    /// Adds a PCI controller to a definition. libvirt does not plug PCI controllers into a running guest.
    fn attach_controller(
        &mut self,
        uuid: Uuid,
        controller: &NewController,
        to_live: bool,
        to_config: bool,
    ) -> Result<(), Refusal> {
        let domain = self.domain(uuid)?;
        if to_live {
            return Err(refusal::no_hotplug_of_controllers());
        }
        let Some(document) = domain.persistent.as_ref().filter(|_| to_config) else {
            return Err(refusal::transient());
        };
        if controller.model != ROOT_PORT {
            return Err(refusal::only_root_ports());
        }
        if let Some(index) = controller.index.filter(|index| document.has_controller(*index)) {
            return Err(refusal::controller_exists(index));
        }
        let wider = document.with_root_port()?;
        self.domain_mut(uuid)?.persistent = Some(wider);
        self.save(uuid);
        Ok(())
    }

    /// Attaches a function as `virsh attach-device` does.
    pub(super) fn plug(
        &mut self,
        uuid: Uuid,
        source: PciAddress,
        scope: Scope,
        alias: Option<&str>,
    ) -> Result<(), Refusal> {
        self.attach(uuid, &Plug::by_hand(source, alias), scope)
    }

    /// Returns the definition with the device added. Like libvirt it accepts a device that does not exist or that
    /// another domain has.
    fn definition_with(&self, document: &Document, plug: &Plug) -> Result<Document, Refusal> {
        if document.sources().any(|(held, _)| held == plug.source) {
            return Err(refusal::already_defined());
        }
        check_alias(document, plug)?;
        let express = self.is_express(plug.source);
        match document.place(plug.guest, express, false) {
            Ok(guest) => document.with(plug, None, guest),
            Err(full) if plug.guest.is_none() && express => {
                let wider = document.with_root_port().map_err(|_| full)?;
                wider.with(plug, None, wider.place(None, express, false)?)
            }
            Err(refused) => Err(refused),
        }
    }

    /// Returns the running guest's document with the device added. libvirt makes these checks after it has unbound the
    /// host driver.
    fn guest_with(
        &self,
        document: &Document,
        plug: &Plug,
        alias: &str,
        source: PciAddress,
    ) -> Result<Document, Refusal> {
        let guest = document.place(plug.guest, self.is_express(plug.source), true)?;
        self.check_viable(&[source])?;
        document.with(plug, Some(alias), guest)
    }

    /// Makes the checks that libvirt makes before it unbinds the host driver.
    pub(super) fn check_free(
        &self,
        domain: Uuid,
        address: PciAddress,
        managed: bool,
        interface: bool,
    ) -> Result<(), Refusal> {
        let device = self.devices.get(address).ok_or_else(|| refusal::no_such_function(address))?;
        if device.info.bridge {
            return Err(refusal::not_an_endpoint());
        }
        if device.info.iommu_group.is_none() {
            return Err(refusal::no_passthrough());
        }
        if interface && !matches!(device.info.role, Role::Virtual { .. }) {
            return Err(refusal::not_a_virtual_function());
        }
        if let Some(holder) = device.holder {
            return Err(refusal::in_use(address, self.name_of(holder)));
        }
        if !managed && !device.is_on_vfio_when_free() {
            return Err(refusal::unmanaged(address));
        }
        if self.is_vgpu_without_type(address) {
            return Err(refusal::no_vgpu_type(
                address,
                device.info.iommu_group.as_ref().map_or(0, |of| of.number),
            ));
        }
        // libvirt's behaviour for a PF whose VFs are in guests was not measured. The simulation reports the VF as in
        // use.
        let mut siblings = self.devices.siblings(&device.info);
        let held_sibling = siblings.find_map(|sibling| {
            let holder = sibling.holder.filter(|holder| *holder != domain)?;
            Some((sibling.info.address, self.name_of(holder)))
        });
        match self.held_part(device).or(held_sibling) {
            Some((held, holder)) => Err(refusal::in_use(held, holder)),
            None => Ok(()),
        }
    }

    /// Binds a function to vfio-pci until its host driver is rebound.
    pub(super) fn node_detach(&mut self, address: PciAddress) -> Result<(), Refusal> {
        self.check_free_of_guests(address)?;
        self.lose_vfs(address);
        self.set_free_driver_of(address, |_| Some(VFIO.into()));
        Ok(())
    }

    /// Rebinds the host driver of a function. If its guest has just stopped, the host driver is back at once.
    pub(super) fn node_reattach(&mut self, address: PciAddress) -> Result<(), Refusal> {
        self.check_free_of_guests(address)?;
        self.set_free_driver_of(address, |device| device.native().cloned());
        Ok(())
    }

    /// Resets a function. libvirt leaves the reset of a function on VFIO to the kernel.
    pub(super) fn node_reset(&self, address: PciAddress) -> Result<(), Refusal> {
        let device = self.devices.get(address).ok_or_else(|| refusal::no_node_device(address))?;
        if device.info.bridge {
            Err(refusal::reset_of_a_bridge(address))
        } else if device.holder.is_some() {
            Err(refusal::reset_in_use(address))
        } else if !device.info.is_on_vfio() && self.config.no_reset.contains(&address) {
            Err(refusal::no_reset(address))
        } else {
            Ok(())
        }
    }

    fn check_free_of_guests(&self, address: PciAddress) -> Result<(), Refusal> {
        let device = self.devices.get(address).ok_or_else(|| refusal::no_node_device(address))?;
        let own = device.holder.map(|holder| (address, self.name_of(holder)));
        match own.or_else(|| self.held_part(device)) {
            Some((held, holder)) => Err(refusal::in_use(held, holder)),
            None => Ok(()),
        }
    }

    fn set_free_driver_of(&mut self, address: PciAddress, driver: impl FnOnce(&Device) -> Option<Arc<str>>) {
        if let Some(device) = self.devices.get_mut(address) {
            device.releasing = false;
            device.set_free_driver(driver(device));
        }
        self.save_device(address);
        self.refresh(address);
    }

    /// Checks whether QEMU can open the IOMMU groups of the functions in `given`, which one guest is to get.
    pub(super) fn check_viable(&self, given: &[PciAddress]) -> Result<(), Refusal> {
        for device in given.iter().filter_map(|address| self.devices.get(*address)) {
            let blocks = |address: PciAddress| !given.contains(&address);
            let mut siblings =
                self.devices.siblings(&device.info).filter(|sibling| blocks(sibling.info.address));
            if siblings.any(|sibling| sibling.info.blocks_its_group()) {
                let group = device.info.iommu_group.as_ref().map_or(0, |group| group.number);
                return Err(refusal::not_viable(device.info.address, group));
            }
        }
        Ok(())
    }

    /// Assigns a function to a domain. The VFs of a PF vanish, because its host driver is unbound.
    pub(super) fn hold(&mut self, domain: Uuid, address: PciAddress) {
        let Some(device) = self.devices.get_mut(address) else { return };
        device.holder = Some(domain);
        device.releasing = false;
        self.lose_vfs(address);
        self.refresh(address);
    }

    /// Removes the VFs of a PF whose host driver is being unbound.
    fn lose_vfs(&mut self, address: PciAddress) {
        let device = self.devices.get(address).filter(|device| device.is_on_host_driver_when_free());
        for vf in device.map(|device| self.devices.virtual_functions(&device.info)).unwrap_or_default() {
            self.vanish(vf);
        }
    }

    /// Whether a device needs a PCI Express port. A function that does not exist counts as PCI Express, and so does
    /// every mediated device.
    pub(super) fn is_express(&self, source: Source) -> bool {
        match source {
            Source::Function(address) => self.devices.get(address).is_none_or(|device| device.info.express),
            Source::Mdev(_) => true,
        }
    }
}

fn check_alias(document: &Document, plug: &Plug) -> Result<(), Refusal> {
    match plug.alias.as_deref().filter(|alias| document.has_alias(alias)) {
        Some(alias) => Err(refusal::duplicate_alias(alias)),
        None => Ok(()),
    }
}
