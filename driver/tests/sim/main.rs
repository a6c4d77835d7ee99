//! Tests of the simulated host through the `Hypervisor` trait: the rules of libvirt that it follows.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod attach;
mod binding;
mod control;
mod detach;
mod faults;
mod group;
mod kill;
mod mdev;
mod network;
mod owner;
mod power;
mod preflight;
mod properties;
mod scale;
mod state;
mod unplug;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hotslot_driver::domain::{DomainXml, Hostdev, UserAlias};
use hotslot_driver::hypervisor::{Error, ErrorKind, Event, Hypervisor, Scope};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::sim::Sim;
use hotslot_driver::xml::hostdev::HostdevSpec;
use tempfile::TempDir;
use tokio::sync::broadcast;
use uuid::Uuid;

const Q35: Uuid = guest(1);
const SWITCH: Uuid = guest(3);
const I440FX: Uuid = guest(5);
const FULL: Uuid = guest(6);

const PF: &str = "0000:04:00.0";
const VF0: &str = "0000:04:10.0";
const VF1: &str = "0000:04:10.2";
const E1000E: &str = "0000:05:00.0";
const PAIR0: &str = "0000:06:00.0";
const PAIR1: &str = "0000:06:00.1";
const NVME: &str = "0000:07:00.0";
const NVME_SRIOV: &str = "0000:08:00.0";
const EDU: &str = "0000:00:1d.0";
const BRIDGED_EDU: &str = "0000:0a:01.0";
const ROOT_PORT: &str = "0000:00:10.0";

const fn guest(number: u128) -> Uuid {
    Uuid::from_u128(0x10000000_0000_4000_8000_000000000000 + number)
}

/// An open copy of `tests/data/hosts/small`.
struct Host {
    dir: TempDir,
    sim: Arc<Sim>,
    events: broadcast::Receiver<Event>,
}

impl Host {
    fn small() -> Self {
        Self::with("")
    }

    /// Opens it with this `host.toml`.
    fn with(config: &str) -> Self {
        let dir = small();
        fs::write(dir.path().join("host.toml"), config).unwrap();
        Self::open(dir)
    }

    fn open(dir: TempDir) -> Self {
        let sim = Sim::open(dir.path()).unwrap();
        Self { events: sim.events(), sim, dir }
    }

    /// Closes the host and opens its directory again, as after a restart.
    fn reopened(self) -> Self {
        let Self { dir, sim, events } = self;
        drop((sim, events));
        Self::open(dir)
    }

    fn control(&self, line: &str) {
        self.sim.control(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }

    async fn attach(&self, guest: Uuid, device: &str, alias: &str, scope: Scope) -> Result<(), Error> {
        self.sim.attach(guest, &hostdev(device, alias), scope).await
    }

    async fn live(&self, guest: Uuid) -> Option<DomainXml> {
        self.sim.domain(guest).await.unwrap().live
    }

    async fn definition(&self, guest: Uuid) -> Option<DomainXml> {
        self.sim.domain(guest).await.unwrap().persistent
    }

    async fn driver(&self, device: &str) -> Option<String> {
        self.sim.device(address(device)).await.unwrap().driver_name()
    }

    /// Returns all events since the last call.
    fn received(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    /// Returns the next event that is not about a node device.
    async fn next(&mut self) -> Event {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(60), self.events.recv());
            let next = next.await.expect("no event within a minute").unwrap();
            if !matches!(next, Event::NodeDevice { .. }) {
                return next;
            }
        }
    }

    fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn small() -> TempDir {
    copy_of("small")
}

/// Copies one of `tests/data/hosts` without its `host.toml`.
fn copy_of(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let host = data("../tests/data/hosts").join(name);
    for folder in ["devices", "domains"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
        for file in fs::read_dir(host.join(folder)).unwrap() {
            let file = file.unwrap().path();
            fs::copy(&file, dir.path().join(folder).join(file.file_name().unwrap())).unwrap();
        }
    }
    dir
}

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn source(device: &str) -> String {
    let at = address(device);
    let (domain, bus, slot, function) = (at.domain(), at.bus(), at.slot(), at.function());
    format!("<source><address domain='{domain}' bus='{bus}' slot='{slot}' function='{function}'/></source>")
}

fn hostdev(device: &str, alias: &str) -> String {
    hostdev_with(device, &format!("<alias name='{alias}'/>"))
}

fn hostdev_with(device: &str, more: &str) -> String {
    format!("<hostdev mode='subsystem' type='pci' managed='yes'>{}{more}</hostdev>", source(device))
}

fn at(guest: &str) -> String {
    let at = address(guest);
    let (bus, slot, function) = (at.bus(), at.slot(), at.function());
    format!("<address type='pci' domain='0' bus='{bus}' slot='{slot}' function='{function}'/>")
}

/// Returns the spec of a managed function without optional settings.
fn spec(device: &str, id: u128) -> HostdevSpec {
    HostdevSpec {
        source: address(device),
        alias: UserAlias(Uuid::from_u128(id)),
        managed: true,
        rom_bar: None,
        guest: None,
        interface: None,
    }
}

fn find<'a>(document: &'a DomainXml, alias: &str) -> Option<&'a Hostdev> {
    document.hostdevs.iter().find(|held| held.alias.as_deref() == Some(alias))
}

/// Returns the kind and the message of an error.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> (ErrorKind, String) {
    let error = result.unwrap_err();
    (error.kind, error.message)
}

fn removed(domain: Uuid, alias: &str) -> Event {
    Event::DeviceRemoved { domain, alias: alias.into() }
}
