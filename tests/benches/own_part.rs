//! The cost of hotslot itself, on a simulated host without latencies: the latency of attach and detach, the time to
//! start, and memory and activity when idle.
//!
//! The simulated host's own work (XML documents and its state file) takes processor time in the same process. It is measured
//! there and taken off each time.
//!
//! The floor of an attach is measured in the same run: an empty request to the same service, and two transactions that
//! are as durable as its own (reserve and settle), written by hand.

use std::time::{Duration, Instant};

use hotslot_driver::sim::generate;
use hotslot_tests::measure::{durable_transactions, report, resident, simulated, switches};
use hotslot_tests::{Hotslot, Q35, binary, host, path};

const ROUNDS: usize = 300;

const CONFIG: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}']
"#;

#[tokio::main]
async fn main() {
    assert!(binary().display().to_string().contains("release"), "measure the release build: cargo bench");
    let mut durable = durable_transactions(ROUNDS).await;
    let durable = report("floor: one durable transaction", &mut durable);
    let small = Hotslot::on("small").await;
    one_by_one(&small, Q35, durable).await;
    drop(small);
    let mut first = None;
    for (pfs, vfs) in [(1, 63), (4, 127), (32, 127), (100, 99)] {
        let dir = tempfile::tempdir().expect("a directory");
        generate::Size { pfs, vfs, guests: 1, ports: 8 }.write(dir.path()).expect("a host");
        println!("\non a host of {} functions", pfs * (vfs + 1));
        let service = Hotslot::bare(dir.path(), CONFIG, |_| ()).await;
        let times = one_by_one(&service, &generate::guest_uuid(0).to_string(), durable).await;
        let first = *first.get_or_insert(times);
        println!(
            "attach and detach over those of 64 functions      {:.2} {:.2}",
            times.attach / first.attach,
            times.detach / first.detach
        );
    }

    let mut started = Vec::new();
    for _ in 0..10 {
        started.push(start_once().await);
    }
    report("start, empty host, to listening", &mut started);
    idle().await;
}

/// The medians of a host, in milliseconds.
#[derive(Clone, Copy)]
struct Times {
    attach: f64,
    detach: f64,
}

/// Attaches and detaches one VF many times. `durable` is the time of one durable transaction in milliseconds.
async fn one_by_one(service: &Hotslot, server: &str, durable: f64) -> Times {
    let (mut attach, mut detach, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    let mut whole = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        service.get("/healthz").await.expect(200);
        empty.push(start.elapsed());
        let before = simulated(std::slice::from_ref(service));
        let start = Instant::now();
        let answer = service.attach(server, "vf:1").await.expect(200);
        whole.0.push(start.elapsed());
        let path = path(&answer.body["pci_devices"][0]);
        let between = simulated(std::slice::from_ref(service));
        attach.push(whole.0[whole.0.len() - 1].saturating_sub(between - before));
        let start = Instant::now();
        service.delete(&path).await.expect(200);
        whole.1.push(start.elapsed());
        let after = simulated(std::slice::from_ref(service));
        detach.push(whole.1[whole.1.len() - 1].saturating_sub(after - between));
    }
    let floor = report("floor: empty request", &mut empty) + 2.0 * durable;
    report("attach by REST, with the simulated host", &mut whole.0);
    report("detach by REST, with the simulated host", &mut whole.1);
    let times = Times {
        attach: report("attach, own part", &mut attach),
        detach: report("detach, own part", &mut detach),
    };
    println!(
        "over their floor (request + 2 transactions)       {:.2} {:.2}",
        times.attach / floor,
        times.detach / floor
    );
    times
}

/// Measures the time from the start of the process until it listens, on a host with neither devices nor guests.
async fn start_once() -> Duration {
    let empty = tempfile::tempdir().expect("a directory");
    for folder in ["devices", "domains"] {
        std::fs::create_dir(empty.path().join(folder)).expect("a folder");
    }
    let service = Hotslot::with(empty.path(), "").await;
    service.started_in()
}

async fn idle() {
    let service = Hotslot::with(&host("small"), "").await;
    println!("resident, idle on the host `small`           {:.1} MiB", resident(service.pid()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = switches(service.pid());
    tokio::time::sleep(Duration::from_secs(10)).await;
    println!("context switches in 10 s of idling           {}", switches(service.pid()) - before);
}
