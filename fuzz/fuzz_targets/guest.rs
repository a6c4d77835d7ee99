//! What a guest's agent and QEMU's monitor answer, one answer after the other, separated by lines of `%%`.

#![no_main]

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hotslot_driver::device::HostDevice;
use hotslot_driver::guest;
use hotslot_driver::hook::{Hooks, When};
use hotslot_driver::hypervisor::{
    DetachScope, DomainInfo, DomainView, Error, ErrorKind, Event, HostInfo, Hypervisor, OverdueCall, Scope,
};
use hotslot_driver::mdev::{Mdev, MdevType};
use hotslot_driver::pci::{PciAddress, PciId};
use hotslot_driver::topology::Route;
use hotslot_driver::vf::VfSettings;
use hotslot_driver::vgpu::{VgpuChange, VgpuVf};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::broadcast;
use uuid::Uuid;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
});

/// Answers with the prepared texts, then fails.
struct Told(Mutex<VecDeque<String>>);

impl Told {
    fn new(text: &str) -> Self {
        Self(Mutex::new(text.split("\n%%\n").map(str::to_owned).collect()))
    }

    fn next(&self) -> Result<String, Error> {
        let next = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        next.ok_or_else(|| Error::new(ErrorKind::AgentAway, "ask", "no more answers are prepared"))
    }
}

fn unknown<T>() -> Result<T, Error> {
    Err(Error::new(ErrorKind::Unsupported, "ask", "nobody asks for it here"))
}

#[async_trait]
impl Hypervisor for Told {
    async fn agent(&self, _: Uuid, _: &str, _: Duration) -> Result<String, Error> {
        self.next()
    }
    async fn monitor(&self, _: Uuid, _: &str) -> Result<String, Error> {
        self.next()
    }
    async fn host(&self) -> Result<HostInfo, Error> {
        unknown()
    }
    async fn node_sockets(&self) -> Result<Option<BTreeMap<u32, u32>>, Error> {
        unknown()
    }
    async fn devices(&self) -> Result<Vec<HostDevice>, Error> {
        unknown()
    }
    async fn device(&self, _: PciAddress) -> Result<HostDevice, Error> {
        unknown()
    }
    async fn node_detach(&self, _: PciAddress) -> Result<(), Error> {
        unknown()
    }
    async fn node_reattach(&self, _: PciAddress) -> Result<(), Error> {
        unknown()
    }
    async fn node_reset(&self, _: PciAddress) -> Result<(), Error> {
        unknown()
    }
    async fn vf_settings(&self, _: PciAddress) -> Result<VfSettings, Error> {
        unknown()
    }
    async fn set_vf_settings(&self, _: PciAddress, _: &VfSettings) -> Result<(), Error> {
        unknown()
    }
    async fn vgpu_vfs(&self, _: Option<PciAddress>) -> Result<Vec<VgpuVf>, Error> {
        unknown()
    }
    async fn may_set_vgpu_types(&self) -> Result<(), Error> {
        unknown()
    }
    async fn set_vgpu_type(&self, _: &VgpuChange) -> Result<(), Error> {
        unknown()
    }
    async fn set_vf_count(&self, _: PciAddress, _: u32, _: u32) -> Result<(), Error> {
        unknown()
    }
    fn hooks(&self) -> Result<Hooks, Error> {
        unknown()
    }
    async fn run_hook(&self, _: PciAddress, _: When, _: Duration) -> Result<(), Error> {
        unknown()
    }
    async fn mdev_types(&self, _: PciAddress) -> Result<Vec<MdevType>, Error> {
        unknown()
    }
    async fn mdevs(&self) -> Result<Vec<Mdev>, Error> {
        unknown()
    }
    async fn create_mdev(&self, _: PciAddress, _: &str, _: Uuid) -> Result<Mdev, Error> {
        unknown()
    }
    async fn destroy_mdev(&self, _: Uuid) -> Result<(), Error> {
        unknown()
    }
    async fn domains(&self) -> Result<Vec<DomainInfo>, Error> {
        unknown()
    }
    async fn domain(&self, _: Uuid) -> Result<DomainView, Error> {
        unknown()
    }
    async fn attach(&self, _: Uuid, _: &str, _: Scope) -> Result<(), Error> {
        unknown()
    }
    async fn detach(&self, _: Uuid, _: &str, _: DetachScope) -> Result<(), Error> {
        unknown()
    }
    async fn set_owner(&self, _: Uuid, _: Option<&str>) -> Result<(), Error> {
        unknown()
    }
    fn events(&self) -> broadcast::Receiver<Event> {
        broadcast::channel(1).1
    }
    fn connection(&self) -> Result<(), String> {
        Ok(())
    }
    fn overdue(&self) -> Vec<OverdueCall> {
        Vec::new()
    }
    fn sysroot(&self) -> Option<&Path> {
        None
    }
    fn is_remote(&self) -> bool {
        false
    }
}

fuzz_target!(|text: &str| {
    let (domain, place) = (Uuid::nil(), PciAddress::MIN.on_bus(1));
    let ids = (PciId::new(0x8086), PciId::new(0x10ca));
    let route = Route { root: 0, bridges: vec![PciAddress::MIN] };
    RUNTIME.block_on(async {
        if let Ok(Some(at)) = guest::ask_agent(&Told::new(text), domain, &route, place, Some(ids)).await {
            assert_eq!(at, place.on_bus(at.bus()));
        }
        let command = ["/bin/true".to_owned()];
        if let Err(error) = guest::run(&Told::new(text), domain, &command, Duration::from_secs(1)).await {
            assert!(error.message.len() < 2000, "{error}");
        }
        let _ = guest::ask_monitor(&Told::new(text), domain, "ua-e1000e").await;
    });
});
