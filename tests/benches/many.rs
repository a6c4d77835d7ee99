//! Attach and detach on many servers at once: pairs a second, and where the processor time goes.
//!
//! The floor is what four durable transactions of a pair (reserve and settle, begin and settle) allow on this disk.

use std::time::{Duration, Instant};

use hotslot_driver::sim::generate;
use hotslot_tests::measure::{cpu, durable_transactions, quantile, simulated};
use hotslot_tests::{Hotslot, binary, path, postgres};

const SERVERS: u32 = 16;
const SIZE: generate::Size = generate::Size { pfs: 4, vfs: 63, guests: SERVERS, ports: 8 };
const TIME: Duration = Duration::from_secs(10);
const CONFIG: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}']
"#;

#[tokio::main]
async fn main() {
    assert!(binary().display().to_string().contains("release"), "measure the release build: cargo bench");
    let mut floor = durable_transactions(1000).await;
    let transaction = floor.iter().sum::<Duration>().as_secs_f64() / floor.len() as f64;
    let allowed = 0.25 / transaction;
    println!(
        "floor: one durable transaction, p50 {:.3} ms, mean {:.3} ms: {allowed:.0} pairs a second",
        quantile(&mut floor, 0.5),
        transaction * 1e3
    );
    let dir = tempfile::tempdir().expect("a directory");
    SIZE.write(dir.path()).expect("a host");
    let service = Hotslot::bare(dir.path(), CONFIG, |_| ()).await;
    for clients in [1, SERVERS] {
        let rate = pairs(std::slice::from_ref(&service), clients).await;
        println!("   of what the transactions alone allow: {:.2}", rate / allowed);
    }
    drop(service);
    let service = Hotslot::bare(dir.path(), CONFIG, |_| ()).await.moved_to(&postgres::database().await).await;
    let mut processes = vec![service];
    println!("PostgreSQL, whose commits do not wait for the disk");
    pairs(&processes, SERVERS).await;
    for _ in 0..3 {
        let next = processes[0].beside().await;
        processes.push(next);
    }
    pairs(&processes, SERVERS).await;
}

/// Attaches and detaches a VF of each of some servers, over and over. Prints and returns the pairs a second.
async fn pairs(processes: &[Hotslot], servers: u32) -> f64 {
    let before = (used(processes), simulated(processes).as_secs_f64());
    let start = Instant::now();
    let work = (0..servers).map(|number| {
        let api = (*processes[number as usize % processes.len()]).clone();
        let server = generate::guest_uuid(number).to_string();
        tokio::spawn(async move {
            let mut times = (Vec::new(), Vec::new());
            while start.elapsed() < TIME {
                let begun = Instant::now();
                let answer = api.attach(&server, "vf:1").await.expect(200);
                times.0.push(begun.elapsed());
                let path = path(&answer.body["pci_devices"][0]);
                let begun = Instant::now();
                api.delete(&path).await.expect(200);
                times.1.push(begun.elapsed());
            }
            times
        })
    });
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for work in work.collect::<Vec<_>>() {
        let (attached, detached) = work.await.expect("its times");
        attach.extend(attached);
        detach.extend(detached);
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate = attach.len() as f64 / seconds;
    let all = (used(processes) - before.0) / attach.len() as f64;
    let simulated = (simulated(processes).as_secs_f64() - before.1) / attach.len() as f64;
    println!(
        "{servers} servers, {} processes: {rate:.0} pairs/s   attach p50 {:.2} p99 {:.2} ms   detach p50 {:.2} p99 {:.2} ms",
        processes.len(),
        quantile(&mut attach, 0.5),
        quantile(&mut attach, 0.99),
        quantile(&mut detach, 0.5),
        quantile(&mut detach, 0.99),
    );
    println!(
        "   processor time a pair: {:.2} ms, of which the simulated host {:.2} ms and hotslot {:.2} ms",
        all * 1e3,
        simulated * 1e3,
        (all - simulated) * 1e3
    );
    rate
}

/// The processor time of the processes in seconds.
fn used(processes: &[Hotslot]) -> f64 {
    processes.iter().map(|service| cpu(service.pid()).values().sum::<Duration>().as_secs_f64()).sum()
}
