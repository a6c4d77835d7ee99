//! The cost of the inventory on simulated hosts of 100 to 10,000 devices: choosing a device, reading an unchanged host,
//! listing devices, and memory.
//!
//! The floors are measured in the same run: an empty request to the same service, the same query and encoding written
//! by hand, and reading the host without the comparison.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::hypervisor::Hypervisor as _;
use hotslot_driver::pci::PciAddress;
use hotslot_driver::sim::{Sim, generate};
use hotslot_driver::xml::nodedev;
use hotslot_model::device::{Device, DeviceStatus};
use hotslot_model::id::{DeviceId, HypervisorId};
use hotslot_model::rules::{CandidateSet, Inventory, Wanted, choose};
use hotslot_service::config::Config;
use hotslot_tests::measure::{HEAP_IS_SMALL, cpu, hosts_alone, opens_hosts_alone, report, resident};
use hotslot_tests::{Hotslot, attachments, binary};
use serde::Serialize;
use serde_json::json;
use sqlx::{Connection as _, Row as _, SqliteConnection};

const ROUNDS: usize = 200;
/// The number of scans of an unchanged host: one per second, the shortest interval.
const SCANS: u64 = 10;
const PAGE: i64 = 1000;

const CONFIG: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}']
[reconcile]
interval = 1
"#;

/// Runs some work several times, and returns the times.
fn timed<T>(rounds: usize, mut work: impl FnMut() -> T) -> Vec<Duration> {
    let once = |_| {
        let start = Instant::now();
        std::hint::black_box(work());
        start.elapsed()
    };
    (0..rounds).map(once).collect()
}

#[tokio::main]
async fn main() {
    assert!(binary().display().to_string().contains("release"), "measure the release build: cargo bench");
    if opens_hosts_alone() {
        return;
    }
    let mut costs = Vec::new();
    for (pfs, vfs) in [(1, 99), (10, 99), (32, 128), (100, 99)] {
        costs.push(measure(generate::Size { pfs, vfs, guests: 1, ports: 8 }).await);
    }
    println!("\nmicroseconds a device {:>10} {:>10} {:>10}", "choose", "scan", "list");
    for Costs { devices, choose, scan, list } in costs {
        println!("{devices:>21} {choose:10.2} {scan:10.2} {list:10.2}");
    }
}

/// Microseconds per device.
struct Costs {
    devices: usize,
    choose: f64,
    scan: f64,
    list: f64,
}

async fn measure(size: generate::Size) -> Costs {
    let dir = tempfile::tempdir().expect("a directory");
    size.write(dir.path()).expect("a host");
    let devices = (size.pfs * (size.vfs + 1)) as usize;
    println!("\n{devices} devices, {} of them VFs", size.pfs * size.vfs);
    let each = |milliseconds: f64, devices: usize| milliseconds * 1e3 / devices as f64;
    let read_alone = reading(dir.path()).await;
    let choose = choosing(dir.path()).await;

    let service = Hotslot::bare(dir.path(), CONFIG, |_| ()).await;
    let scan = scanning(&service, read_alone).await;
    let (mut dry_runs, mut empty) = (Vec::new(), Vec::new());
    let url = attachments(&generate::guest_uuid(0).to_string());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        service.get("/healthz").await.expect(200);
        empty.push(start.elapsed());
        let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1", "dry_run": true } });
        let start = Instant::now();
        let answer = service.post(&url, body).await.expect(200);
        dry_runs.push(start.elapsed());
        assert_eq!(answer.body["dry_run"]["would_attach"], true, "{:#}", answer.body);
    }
    let floor = report("floor: empty request", &mut empty);
    report("choose 1 VF, as a dry run by REST", &mut dry_runs);
    let list = listing(&service, floor).await;
    let alone = hosts_alone(&[dir.path().to_owned()]);
    tokio::time::sleep(HEAP_IS_SMALL).await;
    println!(
        "resident                                     {:.1} MiB, of which the simulated host {alone}",
        resident(service.pid())
    );
    Costs {
        devices,
        choose: each(choose, devices),
        scan: each(scan, devices),
        list: each(list, devices.min(PAGE as usize)),
    }
}

/// Measures the hypervisor's part of a scan: a copy of the devices on a simulated host, parsing documents on a real
/// one. Returns the former.
async fn reading(dir: &Path) -> f64 {
    let sim = Sim::open(dir).expect("a host");
    let mut copies = Vec::new();
    for _ in 0..SCANS {
        let start = Instant::now();
        sim.devices().await.expect("its devices");
        copies.push(start.elapsed());
    }
    let files = std::fs::read_dir(dir.join("devices")).expect("documents");
    let documents: Vec<_> =
        files.map(|file| std::fs::read_to_string(file.expect("a file").path()).expect("a text")).collect();
    let parse = || documents.iter().map(|text| nodedev::parse(text).expect("a device")).collect::<Vec<_>>();
    report("a real host's documents, parsed", &mut timed(SCANS as usize, parse));
    report("floor: the simulated host's devices, read", &mut copies)
}

/// Chooses one VF among all devices, in process.
async fn choosing(dir: &Path) -> f64 {
    let config = Config::parse(CONFIG).expect("a configuration");
    let inventory = Inventory::new(&config.pci).expect("an inventory");
    let functions = Sim::open(dir).expect("a host").devices().await.expect("its devices");
    let functions: HashMap<PciAddress, HostDevice> =
        functions.into_iter().map(|device| (device.address, device)).collect();
    let mut devices: Vec<Arc<Device>> =
        functions.values().filter_map(|function| row(&inventory, &functions, function)).collect();
    devices.sort_by_key(|device| device.facts.address);
    let groups = functions.iter().filter_map(|(at, device)| Some((*at, device.iommu_group.as_ref()?.number)));
    let groups = groups.collect();
    let candidate_set = CandidateSet {
        devices: &devices,
        unavailable: &HashMap::new(),
        guest_nodes: &BTreeSet::new(),
        sockets: None,
        groups: &groups,
        busy: &BTreeMap::new(),
    };
    let wanted = [Wanted {
        alias: inventory.alias("vf").expect("the alias"),
        count: 1,
        numa_policy: None,
        whole_group: false,
        vf: false,
        tags: &BTreeMap::new(),
        vgpu: None,
    }];
    let choice = choose(&wanted, &candidate_set).expect("a VF");
    assert_eq!(choice[0].len(), 1);
    report("choose 1 VF, in process", &mut timed(ROUNDS, || choose(&wanted, &candidate_set)))
}

fn row(
    inventory: &Inventory,
    functions: &HashMap<PciAddress, HostDevice>,
    function: &HostDevice,
) -> Option<Arc<Device>> {
    let parent = match function.role {
        Role::Virtual { parent } => functions.get(&parent),
        Role::Plain | Role::Physical { .. } => None,
    };
    let address = function.address;
    Some(Arc::new(Device {
        id: DeviceId(
            i64::from(address.bus()) << 16 | i64::from(address.slot()) << 8 | i64::from(address.function()),
        ),
        uuid: generate::guest_uuid(0),
        hypervisor: HypervisorId(1),
        facts: inventory.facts(function, parent)?,
        status: DeviceStatus::Available,
        request: None,
        owner: None,
        created_at: 0,
        updated_at: None,
        gone_at: None,
        used_at: None,
        scrub: false,
        quarantine: None,
    }))
}

/// Lets the service read its unchanged host repeatedly. Returns the processor time of one round without the floor, in
/// milliseconds.
async fn scanning(service: &Hotslot, floor: f64) -> f64 {
    let mut db = database(service).await;
    // The number changes when another connection commits.
    let version = async |db: &mut SqliteConnection| -> i64 {
        sqlx::query_scalar("PRAGMA data_version").fetch_one(db).await.expect("a number")
    };
    let scans = || service.log().matches("scanned").count() as u64;
    let begin = scans();
    service.until("a round ends", async || scans() > begin).await;
    let (first, version_before, cpu_before) = (scans(), version(&mut db).await, cpu(service.pid()));
    tokio::time::sleep(Duration::from_secs(SCANS)).await;
    // A thread that ended in the meantime used little time.
    let used = cpu(service.pid())
        .into_iter()
        .map(|(thread, now)| now - cpu_before.get(&thread).copied().unwrap_or_default());
    let (used, scans) = (used.sum::<Duration>(), scans() - first);
    let round = used.as_secs_f64() * 1e3 / scans as f64;
    let written = version(&mut db).await - version_before;
    println!(
        "unchanged, processor time of a round          {round:8.2} ms, without the floor {:.2} ms ({scans} times)",
        round - floor
    );
    println!("unchanged, transactions that wrote            {written}");
    round - floor
}

/// Reads all pages of `os-pci/detail`, and compares the time with the same query and encoding written by hand.
async fn listing(service: &Hotslot, empty: f64) -> f64 {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let mut db = database(service).await;
    let (mut ours, mut by_hand) = (Vec::new(), Vec::new());
    let mut marker = 0;
    for _ in 0..ROUNDS {
        let query = if marker == 0 { String::new() } else { format!("&marker={marker}") };
        let url = format!("{}/v2.1/os-pci/detail?limit={PAGE}{query}", service.url());
        let start = Instant::now();
        let body = client.get(url).send().await.expect("an answer").bytes().await.expect("a body");
        ours.push(start.elapsed());
        let start = Instant::now();
        let (page, last) = page_by_hand(&mut db, marker).await;
        by_hand.push(start.elapsed());
        // Both must list the same devices; their other keys may differ.
        let ids = |body: &[u8]| body.windows(5).filter(|part| part == b"\"id\":").count();
        assert_eq!(ids(&body), ids(&page));
        let full = ids(&page) as i64 == PAGE;
        marker = if full { last } else { 0 };
        assert!(body.len() > page.len() / 2, "{} bytes, {} by hand", body.len(), page.len());
    }
    let floor = report("floor: query and encoding by hand", &mut by_hand);
    let listed = report("GET os-pci/detail, a page of 1,000", &mut ours);
    println!(
        "   over query and encoding {:.2}, with an empty request {:.2}",
        listed / floor,
        listed / (floor + empty)
    );
    listed - empty
}

/// A device as `os-pci/detail` shows it.
#[derive(Serialize)]
struct Shown {
    id: i64,
    address: String,
    compute_node_id: i64,
    product_id: String,
    vendor_id: String,
    status: String,
    dev_id: String,
    dev_type: String,
    label: String,
    extra_info: BTreeMap<String, String>,
    instance_uuid: Option<String>,
    server_uuid: Option<String>,
    created_at: String,
    updated_at: Option<String>,
    deleted: bool,
    deleted_at: Option<String>,
    uuid: String,
    numa_node: Option<i64>,
    parent_addr: Option<String>,
    request_id: Option<String>,
    host: String,
}

/// Returns an encoded page, and the id of its last device.
async fn page_by_hand(db: &mut SqliteConnection, after: i64) -> (Vec<u8>, i64) {
    let rows = sqlx::query(
        "SELECT *, strftime('%Y-%m-%dT%H:%M:%S', created_at / 1000, 'unixepoch') AS created, \
         strftime('%Y-%m-%dT%H:%M:%S', updated_at / 1000, 'unixepoch') AS updated \
         FROM pci_devices WHERE deleted = 0 AND id > $1 ORDER BY id LIMIT $2",
    )
    .bind(after)
    .bind(PAGE)
    .fetch_all(db)
    .await
    .expect("rows");
    let shown = |row: &sqlx::sqlite::SqliteRow| Shown {
        id: row.get("id"),
        address: row.get("address"),
        compute_node_id: row.get("compute_node_id"),
        product_id: row.get("product_id"),
        vendor_id: row.get("vendor_id"),
        status: row.get("status"),
        dev_id: row.get("dev_id"),
        dev_type: row.get("dev_type"),
        label: row.get("label"),
        extra_info: serde_json::from_str(row.get("extra_info")).expect("a map"),
        instance_uuid: row.get("instance_uuid"),
        server_uuid: row.get("instance_uuid"),
        created_at: row.get("created"),
        updated_at: row.get("updated"),
        deleted: false,
        deleted_at: None,
        uuid: row.get("uuid"),
        numa_node: row.get("numa_node"),
        parent_addr: row.get("parent_addr"),
        request_id: row.get("request_id"),
        host: "node1".to_owned(),
    };
    let page: Vec<Shown> = rows.iter().map(shown).collect();
    let last = page.last().map_or(0, |device| device.id);
    (serde_json::to_vec(&page).expect("JSON"), last)
}

async fn database(service: &Hotslot) -> SqliteConnection {
    let url = format!("sqlite://{}?mode=ro", service.database().display());
    SqliteConnection::connect(&url).await.expect("the database")
}
