//! The pages of a large host: how long each takes, and how large it is.
//!
//! The floor is measured in the same run: the route whose answer the page is made of.

use std::time::Instant;

use hotslot_driver::sim::generate;
use hotslot_tests::measure::report;
use hotslot_tests::{Hotslot, binary};

const ROUNDS: usize = 50;

const CONFIG: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}']
"#;

#[tokio::main]
async fn main() {
    assert!(binary().display().to_string().contains("release"), "measure the release build: cargo bench");
    for (pfs, vfs) in [(1, 63), (8, 127), (32, 127)] {
        let dir = tempfile::tempdir().expect("a directory");
        generate::Size { pfs, vfs, guests: 16, ports: 8 }.write(dir.path()).expect("a host");
        let service = Hotslot::bare(dir.path(), CONFIG, |_| ()).await;
        println!("\n{} functions of {pfs} PFs", pfs * (vfs + 1));
        let functions = "/v2.1/os-hypervisors/node1/pci_devices";
        let floor = measure(&service, "floor: the list of the functions, as JSON", functions).await;
        let server = format!("/ui/server?id={}", generate::guest_uuid(0));
        for (what, path) in [
            ("the page of the host", "/ui/host?host=node1"),
            ("the functions that a filter finds", "/ui/host?host=node1&q=10ca"),
            ("the page of the hosts", "/ui/hosts"),
            ("the page of a server", server.as_str()),
        ] {
            let took = measure(&service, what, path).await;
            println!("   over the floor {:.2}", took / floor);
        }
    }
}

/// Reads an address several times, and prints the times and the size. Returns the median in milliseconds.
async fn measure(service: &Hotslot, what: &str, path: &str) -> f64 {
    let (mut times, mut size) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let answer = service.get(path).await.expect(200);
        times.push(start.elapsed());
        size = answer.body.as_str().map_or_else(|| answer.body.to_string().len(), str::len);
    }
    println!("{what}: {:.0} KiB", size as f64 / 1024.0);
    report("", &mut times)
}
