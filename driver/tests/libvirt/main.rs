//! Tests of the libvirt adapter with libvirt's own test driver: in this process, and in a libvirtd that the tests
//! freeze, kill and restart. They need libvirt 11 and `libvirtd` (Debian: `libvirt-daemon`).

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on")]

mod daemon;
mod outage;
mod test_driver;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hotslot_driver::hypervisor::Event;
use hotslot_driver::libvirt::{Libvirt, Options};
use tokio::sync::broadcast::Receiver;
use tokio::time::timeout;
use uuid::Uuid;

/// The domain of [`host_file`].
const G1: Uuid = Uuid::from_u128(0x10000000_0000_4000_8000_000000000001);

/// A time limit that is longer than every step here, including keepalive.
const PATIENCE: Duration = Duration::from_secs(20);

/// Options with a short wait before reconnecting.
fn options() -> Options {
    Options { reconnect_first: Duration::from_millis(20), ..Options::default() }
}

/// Writes a host for the test driver into `dir`: the captured node devices, a function with a mediated device,
/// and one running domain.
fn host_file(dir: &Path) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let captured = std::fs::read_dir(data.join("libvirt-9.0/nodedev")).unwrap();
    let mut devices: Vec<_> = captured.map(|entry| entry.unwrap().path()).collect();
    devices.extend(["gpu.xml", "mdev.xml"].map(|file| data.join("mdev/nodedev").join(file)));
    devices.sort();
    let devices: String = devices.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let domain = format!(
        "<domain type='test'>
          <name>g1</name><uuid>{G1}</uuid><memory>65536</memory>
          <os><type arch='x86_64'>hvm</type></os>
          <devices/>
        </domain>"
    );
    let file = dir.join("host.xml");
    // A function in a 32-bit PCI domain, which libvirt cannot assign. It must not prevent the listing of the others.
    let vmd = "<device><name>pci_10000_e0_00_0</name><capability type='pci'><domain>65536</domain><bus>224</bus>
        <slot>0</slot><function>0</function><product id='0x0a54'/><vendor id='0x8086'/></capability></device>";
    std::fs::write(&file, format!("<node>{domain}{devices}{vmd}</node>")).unwrap();
    file
}

/// Opens a connection and waits until it is up.
async fn connected(uri: String, options: Options) -> Arc<Libvirt> {
    let libvirt = Libvirt::connect(&uri, options);
    assert_eq!(timeout(PATIENCE, libvirt.tried()).await, Ok(Ok(())), "{uri}");
    libvirt
}

/// Waits for an event.
async fn expect(events: &mut Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
    let mut received = Vec::new();
    let found = timeout(PATIENCE, async {
        loop {
            let event = events.recv().await.unwrap();
            if wanted(&event) {
                return event;
            }
            received.push(event);
        }
    });
    match found.await {
        Ok(event) => event,
        Err(_) => panic!("no such event within {PATIENCE:?}; other events: {received:?}"),
    }
}
