//! The cost of many hosts: 50 simulated hosts of 1,000 devices each, at start, when idle, and when one of them hangs.
//!
//! The floor of the start is the time for one such host in a service of its own, times the number of hosts.

use std::path::Path;
use std::time::{Duration, Instant};

use hotslot_driver::sim::{control, generate};
use hotslot_tests::measure::{
    HEAP_IS_SMALL, cpu, hosts_alone, opens_hosts_alone, report, resident, switches,
};
use hotslot_tests::{Hotslot, binary};

const HOSTS: usize = 50;
const SIZE: generate::Size = generate::Size { pfs: 10, vfs: 99, guests: 2, ports: 8 };
const CONFIG: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}']
"#;
const IDLE: Duration = Duration::from_secs(10);

/// Writes a host whose guests have UUIDs of their own.
fn write(number: usize, dir: &Path) {
    SIZE.write(dir).expect("a host");
    for guest in 0..SIZE.guests {
        let file = dir.join(format!("domains/g{guest}.xml"));
        let text = std::fs::read_to_string(&file).expect("a guest");
        let own = format!("00000000-0000-4000-8000-{:012}", number * 100 + guest as usize);
        let text = text.replace(&generate::guest_uuid(guest).to_string(), &own);
        std::fs::write(file, text).expect("a guest");
    }
}

#[tokio::main]
async fn main() {
    assert!(binary().display().to_string().contains("release"), "measure the release build: cargo bench");
    if opens_hosts_alone() {
        return;
    }
    let floor = Hotslot::many(1, CONFIG, write).await.ready_in();
    let service = Hotslot::many(HOSTS, CONFIG, write).await;
    let ready = service.ready_in();
    println!("{HOSTS} hosts of {} devices", SIZE.pfs * (SIZE.vfs + 1));
    println!("floor: one host, to ready                    {:8.0} ms", floor.as_secs_f64() * 1e3);
    println!(
        "all hosts, to ready                          {:8.0} ms   over {HOSTS} floors {:.2}",
        ready.as_secs_f64() * 1e3,
        ready.as_secs_f64() / floor.as_secs_f64() / HOSTS as f64
    );
    let of = |number: usize| service.host_dir().with_file_name(format!("host{number}"));
    let alone = hosts_alone(&(0..HOSTS).map(of).collect::<Vec<_>>());
    tokio::time::sleep(HEAP_IS_SMALL).await;
    println!(
        "resident                                     {:8.1} MiB, of which the simulated hosts {alone}",
        resident(service.pid())
    );

    let used = || cpu(service.pid()).values().sum::<Duration>();
    let (before, wakes) = (used(), switches(service.pid()));
    tokio::time::sleep(IDLE).await;
    println!(
        "processor time in {IDLE:?} of idling           {:8.1} ms",
        (used() - before).as_secs_f64() * 1e3
    );
    println!("context switches in {IDLE:?} of idling         {:8}", switches(service.pid()) - wakes);

    let first = "00000000-0000-4000-8000-000000000100";
    let show = async || {
        let mut shown = Vec::new();
        for _ in 0..200 {
            let start = Instant::now();
            service.get(&format!("/v2.1/servers/{first}")).await.expect(200);
            shown.push(start.elapsed());
        }
        shown
    };
    let quiet = report("a server of one host, all well", &mut show().await);
    let hung = of(0);
    for call in ["domain", "domains", "devices", "device"] {
        control(&hung, &format!("fault {call} hang times=999")).expect("the host's control socket");
    }
    let beside = report("a server of one host, another one hung", &mut show().await);
    println!("   over all well {:.2}", beside / quiet);
}
