//! Large hosts: the cost of a call does not depend on objects that it does not change.

use hotslot_driver::hypervisor::DetachScope;
use hotslot_driver::sim::generate::{self, Size};

use super::*;

#[tokio::test]
async fn a_large_host_opens_and_an_attach_writes_one_file() {
    let dir = tempfile::tempdir().unwrap();
    Size { pfs: 16, vfs: 64, guests: 8, ports: 64 }.write(dir.path()).unwrap();
    let host = Host::open(dir);
    let devices = host.sim.devices().await.unwrap();
    assert_eq!(devices.len(), 16 * 65);
    for (number, device) in
        devices.iter().filter(|device| device.product_id.to_string() == "10ca").enumerate().take(64)
    {
        let guest = generate::guest_uuid(number as u32 % 8);
        let alias = format!("ua-{number}");
        host.attach(guest, &device.address.to_string(), &alias, Scope::LiveAndConfig).await.unwrap();
        host.sim.detach(guest, &alias, DetachScope::Config).await.unwrap();
    }
    assert_eq!(fs::read_dir(host.file("state/domains")).unwrap().count(), 8);
    assert_eq!(fs::read_dir(host.file("state/devices")).unwrap().count(), 0);
    assert_eq!(host.live(generate::guest_uuid(3)).await.unwrap().hostdevs.len(), 8);
}
