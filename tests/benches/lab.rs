//! Attach and detach by REST compared with `virsh attach-device` and `detach-device` of the same VF, alternating, in
//! the lab. The program copies itself into the VM and measures there, so that no network outside of the VM affects the
//! times.
//!
//! The floor is virsh as people run it, one process per command. The start-up time of virsh alone is shown as well.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hotslot_driver::pci::PciAddress;
use hotslot_tests::lab::{Lab, id};
use hotslot_tests::{Api, path};

const ROUNDS: usize = 9;

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn report(what: &str, times: &mut [Duration]) -> f64 {
    let median = median(times);
    let (first, last) = (times[0].as_secs_f64() * 1e3, times[times.len() - 1].as_secs_f64() * 1e3);
    println!("{what:28} median {median:8.0} ms   ({first:.0} to {last:.0}, {} times)", times.len());
    median
}

#[tokio::main]
async fn main() {
    if std::env::args().any(|argument| argument == "--in-vm") {
        return measure().await;
    }
    let lab = Lab::fresh().await;
    let own = std::env::current_exe().expect("this program");
    let mut put = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../vagrant/put"));
    assert!(put.arg(own).arg("/usr/local/bin/bench-lab").status().expect("vagrant/put").success());
    println!("{}", lab.sh("bench-lab --in-vm"));
}

fn timed(command: &str) -> Duration {
    let start = Instant::now();
    let status = Command::new("sh").arg("-c").arg(command).status().expect("a shell");
    assert!(status.success(), "{command}");
    start.elapsed()
}

/// Waits until the guest has, or no longer has, a driver on a VF, and the host's driver is as before, so that each
/// measurement starts at rest.
fn settle(in_guest: bool) {
    let wanted = if in_guest { "0" } else { "1" };
    let line = format!(
        "until guest lspci q35 | grep -q 'igbvf$'; [ $? = {wanted} ]; do sleep 0.2; done; \
         until [ {in_guest} = true ] || [ $(ls /sys/bus/pci/drivers/igbvf | grep -c :) = 2 ]; do sleep 0.2; done; sleep 0.5"
    );
    timed(&line);
}

async fn measure() {
    let api = Api::at("unix:/run/hotslot/api.sock".into());
    let vf = Command::new("lab-devices").arg("igb-vf0").output().expect("lab-devices").stdout;
    let vf: PciAddress = String::from_utf8_lossy(&vf).trim().parse().expect("an address");
    let xml = format!(
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='{:#x}' bus='{:#x}' \
         slot='{:#x}' function='{:#x}'/></source></hostdev>",
        vf.domain(),
        vf.bus(),
        vf.slot(),
        vf.function()
    );
    std::fs::write("/tmp/bench-vf.xml", xml).expect("write the document");
    let (mut virsh_attach, mut virsh_detach, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rest_attach, mut rest_detach) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        empty.push(timed("virsh -q version >/dev/null"));
        virsh_attach.push(timed("virsh -q attach-device q35 /tmp/bench-vf.xml --live --config"));
        settle(true);
        virsh_detach.push(timed("virsh -q detach-device q35 /tmp/bench-vf.xml --live --config"));
        settle(false);
        let start = Instant::now();
        let answer = api.attach(id("q35"), "vf:1").await.expect(200);
        rest_attach.push(start.elapsed());
        let attachment = &answer.body["pci_devices"][0];
        assert_eq!(attachment["address"], vf.to_string());
        settle(true);
        let start = Instant::now();
        api.delete(&path(attachment)).await.expect(200);
        rest_detach.push(start.elapsed());
        settle(false);
    }
    report("virsh, start-up alone", &mut empty);
    let floor = report("virsh attach-device", &mut virsh_attach);
    println!("   ratio {:.2}", report("REST attach", &mut rest_attach) / floor);
    let floor = report("virsh detach-device", &mut virsh_detach);
    println!("   ratio {:.2}", report("REST detach", &mut rest_detach) / floor);
}
