//! A wrapper around a host's hypervisor, which counts its calls and measures how long they take.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hotslot_driver::device::HostDevice;
use hotslot_driver::hook::{Hooks, When};
use hotslot_driver::hypervisor::{
    DetachScope, DomainInfo, DomainView, Error, Event, HostInfo, Hypervisor, OverdueCall, Scope,
};
use hotslot_driver::mdev::{Mdev, MdevType};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vf::VfSettings;
use hotslot_driver::vgpu::{VgpuChange, VgpuVf};
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::metrics::call;

/// A hypervisor whose calls are counted.
pub(crate) struct Measured(pub(crate) Arc<dyn Hypervisor>);

#[async_trait]
impl Hypervisor for Measured {
    async fn host(&self) -> Result<HostInfo, Error> {
        call("host", self.0.host()).await
    }

    async fn node_sockets(&self) -> Result<Option<BTreeMap<u32, u32>>, Error> {
        call("node_sockets", self.0.node_sockets()).await
    }

    async fn devices(&self) -> Result<Vec<HostDevice>, Error> {
        call("devices", self.0.devices()).await
    }

    async fn device(&self, address: PciAddress) -> Result<HostDevice, Error> {
        call("device", self.0.device(address)).await
    }

    async fn node_detach(&self, address: PciAddress) -> Result<(), Error> {
        call("node_detach", self.0.node_detach(address)).await
    }

    async fn node_reattach(&self, address: PciAddress) -> Result<(), Error> {
        call("node_reattach", self.0.node_reattach(address)).await
    }

    async fn node_reset(&self, address: PciAddress) -> Result<(), Error> {
        call("node_reset", self.0.node_reset(address)).await
    }

    async fn vf_settings(&self, vf: PciAddress) -> Result<VfSettings, Error> {
        call("vf_settings", self.0.vf_settings(vf)).await
    }

    async fn set_vf_settings(&self, vf: PciAddress, wanted: &VfSettings) -> Result<(), Error> {
        call("set_vf_settings", self.0.set_vf_settings(vf, wanted)).await
    }

    async fn vgpu_vfs(&self, only: Option<PciAddress>) -> Result<Vec<VgpuVf>, Error> {
        call("vgpu_vfs", self.0.vgpu_vfs(only)).await
    }

    async fn may_set_vgpu_types(&self) -> Result<(), Error> {
        call("may_set_vgpu_types", self.0.may_set_vgpu_types()).await
    }

    async fn set_vgpu_type(&self, change: &VgpuChange) -> Result<(), Error> {
        call("set_vgpu_type", self.0.set_vgpu_type(change)).await
    }

    async fn set_vf_count(&self, pf: PciAddress, from: u32, to: u32) -> Result<(), Error> {
        call("set_vf_count", self.0.set_vf_count(pf, from, to)).await
    }

    fn hooks(&self) -> Result<Hooks, Error> {
        self.0.hooks()
    }

    async fn run_hook(&self, address: PciAddress, when: When, limit: Duration) -> Result<(), Error> {
        call("run_hook", self.0.run_hook(address, when, limit)).await
    }

    async fn mdev_types(&self, parent: PciAddress) -> Result<Vec<MdevType>, Error> {
        call("mdev_types", self.0.mdev_types(parent)).await
    }

    async fn mdevs(&self) -> Result<Vec<Mdev>, Error> {
        call("mdevs", self.0.mdevs()).await
    }

    async fn create_mdev(&self, parent: PciAddress, mdev_type: &str, uuid: Uuid) -> Result<Mdev, Error> {
        call("create_mdev", self.0.create_mdev(parent, mdev_type, uuid)).await
    }

    async fn destroy_mdev(&self, mdev: Uuid) -> Result<(), Error> {
        call("destroy_mdev", self.0.destroy_mdev(mdev)).await
    }

    async fn domains(&self) -> Result<Vec<DomainInfo>, Error> {
        call("domains", self.0.domains()).await
    }

    async fn domain(&self, domain: Uuid) -> Result<DomainView, Error> {
        call("domain", self.0.domain(domain)).await
    }

    async fn attach(&self, domain: Uuid, xml: &str, scope: Scope) -> Result<(), Error> {
        call("attach", self.0.attach(domain, xml, scope)).await
    }

    async fn detach(&self, domain: Uuid, alias: &str, scope: DetachScope) -> Result<(), Error> {
        call("detach", self.0.detach(domain, alias, scope)).await
    }

    async fn set_owner(&self, domain: Uuid, project: Option<&str>) -> Result<(), Error> {
        call("set_owner", self.0.set_owner(domain, project)).await
    }

    async fn agent(&self, domain: Uuid, command: &str, timeout: Duration) -> Result<String, Error> {
        call("agent", self.0.agent(domain, command, timeout)).await
    }

    async fn monitor(&self, domain: Uuid, command: &str) -> Result<String, Error> {
        call("monitor", self.0.monitor(domain, command)).await
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.0.events()
    }

    fn connection(&self) -> Result<(), String> {
        self.0.connection()
    }

    fn overdue(&self) -> Vec<OverdueCall> {
        self.0.overdue()
    }

    fn sysroot(&self) -> Option<&Path> {
        self.0.sysroot()
    }

    fn is_remote(&self) -> bool {
        self.0.is_remote()
    }
}
