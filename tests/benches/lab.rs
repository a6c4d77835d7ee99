//! Attach and detach by REST compared with libvirt's own calls for the same VF, alternating, in the lab. The program copies
//! itself into the VM and measures there, so that no network outside of the VM affects the times.
//!
//! The floor is libvirt's call over a connection that is held open, as hotslot holds one: virDomainAttachDeviceFlags, and
//! virDomainDetachDeviceFlags until the device is gone from the live domain.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hotslot_driver::pci::PciAddress;
use hotslot_tests::lab::{Lab, id};
use hotslot_tests::measure::quantile;
use hotslot_tests::{Api, path};
use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys::{VIR_DOMAIN_AFFECT_CONFIG, VIR_DOMAIN_AFFECT_LIVE};

const ROUNDS: usize = 30;

/// Prints the median and the quartiles, and returns the median in milliseconds.
fn report(what: &str, times: &mut [Duration]) -> f64 {
    let [low, median, high] = [0.25, 0.5, 0.75].map(|part| quantile(times, part));
    println!("{what:28} median {median:8.0} ms   (quartiles {low:.0} and {high:.0}, {} times)", times.len());
    median
}

/// Returns how long a call takes.
fn timed<T>(call: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    call();
    start.elapsed()
}

/// Calls libvirt until the device is gone from the live domain.
fn detach(domain: &Domain, xml: &str, flags: u32) {
    domain.detach_device_flags(xml, flags).expect("virDomainDetachDeviceFlags");
    while domain.xml_desc(0).expect("virDomainGetXMLDesc").contains("<hostdev ") {
        std::thread::sleep(Duration::from_millis(1));
    }
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

/// Waits until the guest has, or no longer has, a driver on a VF, and the host's driver is as before, so that each
/// measurement starts at rest.
fn settle(in_guest: bool) {
    let wanted = if in_guest { "0" } else { "1" };
    let line = format!(
        "until guest lspci q35 | grep -q 'igbvf$'; [ $? = {wanted} ]; do sleep 0.2; done; \
         until [ {in_guest} = true ] || [ $(ls /sys/bus/pci/drivers/igbvf | grep -c :) = 2 ]; do sleep 0.2; done; sleep 0.5"
    );
    assert!(Command::new("sh").arg("-c").arg(&line).status().expect("a shell").success(), "{line}");
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
    let flags = VIR_DOMAIN_AFFECT_LIVE | VIR_DOMAIN_AFFECT_CONFIG;
    let connection = Connect::open(Some("qemu:///system")).expect("libvirtd");
    let domain = connection.lookup_domain_by_name("q35").expect("the guest");
    let (mut own_attach, mut own_detach) = (Vec::new(), Vec::new());
    let (mut rest_attach, mut rest_detach) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        own_attach
            .push(timed(|| domain.attach_device_flags(&xml, flags).expect("virDomainAttachDeviceFlags")));
        settle(true);
        own_detach.push(timed(|| detach(&domain, &xml, flags)));
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
    let floor = report("floor: libvirt's attach", &mut own_attach);
    println!("   ratio {:.2}", report("REST attach", &mut rest_attach) / floor);
    let floor = report("floor: libvirt's detach", &mut own_detach);
    println!("   ratio {:.2}", report("REST detach", &mut rest_detach) / floor);
    print_parts(api.get("/metrics").await.expect(200).body.as_str().expect("a text"));
}

/// Prints where the service spent its time since its start: the mean duration of each step and of each call to libvirt.
fn print_parts(metrics: &str) {
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    for family in ["hotslot_step_duration_seconds", "hotslot_hypervisor_call_duration_seconds"] {
        for line in metrics.lines().filter(|line| line.starts_with(&format!("{family}_sum"))) {
            let count = line.replacen("_sum", "_count", 1);
            let name = count.rsplit_once(' ').map_or("", |(name, _)| name);
            let count = metrics.lines().find(|line| line.starts_with(&format!("{name} "))).and_then(value);
            if let (Some(sum), Some(count)) = (value(line), count) {
                println!(
                    "{count:6.0} times, mean {:8.1} ms  {}",
                    1000.0 * sum / count,
                    name.replacen("_count", "", 1)
                );
            }
        }
    }
}
