//! A soak test. Several clients attach, detach and list while guests are stopped, paused and crash, functions are
//! removed and added, libvirtd becomes unreachable, calls fail and hang, and the service is terminated and killed. Then
//! the disturbances end, and the responses of the service are compared with the actual state.
//!
//! ```text
//! cargo build -p hotslot && cargo run -p hotslot-tests --bin soak -- --seconds 600 --seed 7 [--postgres]
//! ```
//! The records are in SQLite, or with `--postgres` in a PostgreSQL of the test's own, which is also restarted and
//! frozen. The seed determines the requests, the faults, their order and the pauses; their interleaving depends on the
//! machine. Exit code: 0 when the state was consistent, 1 when it was not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hotslot_driver::sim::control;
use hotslot_tests::oracle::{Oracle, PCI};
use hotslot_tests::postgres::Server;
use hotslot_tests::{Api, Hotslot, I440FX, Q35, SWITCH, attachments, host};
use reqwest::Method;
use serde_json::{Value, json};

const CLIENTS: u64 = 4;
/// The time within which everything must agree in the end.
const PATIENCE: Duration = Duration::from_secs(60);

const CONFIG: &str = "[reconcile]\ninterval = 5\n";

const SERVERS: [&str; 3] = [Q35, I440FX, SWITCH];
const GUESTS: [&str; 3] = ["q35", "i440fx", "switch"];
const VFS: [&str; 2] = ["0000:04:10.0", "0000:04:10.2"];

/// Random numbers from a seed: SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below n.
    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len() as u64) as usize]
    }
}

/// What a client knows of an attachment.
struct Promise {
    server: String,
    address: String,
    persistent: bool,
    /// When the attach was requested.
    asked: Instant,
}

#[derive(Default)]
struct Records {
    promises: HashMap<String, Promise>,
    /// The attachments that a client has asked to detach, possibly before the response to the attach was read.
    unwanted: HashSet<String>,
    /// The attachments that a client was answered are gone.
    gone: HashSet<String>,
    /// Times at which attachments may have ended without a request: when a guest was last stopped, or a function was
    /// removed from the host.
    ended: HashMap<String, Instant>,
    /// The number of requests by kind and outcome.
    outcomes: BTreeMap<String, u64>,
    wrong: Vec<String>,
}

type Shared<T> = Arc<Mutex<T>>;

fn with<T, R>(shared: &Shared<T>, work: impl FnOnce(&mut T) -> R) -> R {
    work(&mut shared.lock().expect("no client panicked"))
}

/// Sends a request and counts its outcome; `None` when there was no response.
async fn ask(
    api: &Shared<Api>,
    records: &Shared<Records>,
    what: &str,
    request: (Method, &str, Option<Value>),
) -> Option<hotslot_tests::Answer> {
    let api = with(api, |api| api.clone());
    let (method, path, body) = request;
    let sent = api.try_send(method, path, body.map(|body| ("application/json", body.to_string())));
    // Once, on a machine with no processor time left, a request to a service that was killed did not end.
    let answer = tokio::time::timeout(PATIENCE, sent).await.ok().flatten();
    with(records, |records| {
        let status = answer.as_ref().map_or("no answer".to_owned(), |answer| answer.status.to_string());
        *records.outcomes.entry(format!("{what} {status}")).or_default() += 1;
        if let Some(answer) = &answer
            && !matches!(answer.status, 200 | 202 | 400 | 404 | 409 | 502 | 503)
        {
            records.wrong.push(format!("{what}: {} {}", answer.status, answer.message()));
        }
    });
    answer
}

/// A client that attaches, detaches and lists until the end of the soak.
async fn client(mut dice: Dice, api: Shared<Api>, records: Shared<Records>, end: Instant) {
    while Instant::now() < end {
        let server = dice.one_of(&SERVERS);
        let answered = match dice.below(10) {
            0..4 => attach(&mut dice, server, &api, &records).await,
            4..8 => detach(&mut dice, server, &api, &records).await,
            8 => {
                let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1", "dry_run": true } });
                let path = attachments(server);
                ask(&api, &records, "dry run", (Method::POST, &path, Some(body))).await.is_some()
            }
            _ => ask(&api, &records, "list", (Method::GET, "/v2/t/os-pci/detail", None)).await.is_some(),
        };
        let pause = if answered { dice.below(60) } else { 50 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn attach(dice: &mut Dice, server: &str, api: &Shared<Api>, records: &Shared<Records>) -> bool {
    let persistent = dice.below(3) > 0;
    let mut body = match dice.below(5) {
        0 => json!({ "pci_passthrough:alias": "pair:1", "whole_group": true }),
        1 => json!({ "pci_passthrough:alias": "vf:1", "vlan": 42 }),
        2 => json!({ "pci_passthrough:alias": "vf:1,e1000e:1" }),
        3 => json!({ "pci_passthrough:alias": "vf:2" }),
        _ => json!({ "pci_passthrough:alias": "vf:1" }),
    };
    body["persistent"] = persistent.into();
    let (asked, path) = (Instant::now(), attachments(server));
    let body = json!({ "pciAttachment": body });
    let Some(answer) = ask(api, records, "attach", (Method::POST, &path, Some(body))).await else {
        return false;
    };
    with(records, |records| {
        for device in answer.body["pci_devices"].as_array().into_iter().flatten() {
            let text = |key: &str| device[key].as_str().unwrap_or_default().to_owned();
            let persistent = device["persistent"] == true;
            let (server, address) = (text("serverId"), text("address"));
            let promise = Promise { server, address, persistent, asked };
            records.promises.insert(text("attachment_id"), promise);
        }
    });
    true
}

async fn detach(dice: &mut Dice, server: &str, api: &Shared<Api>, records: &Shared<Records>) -> bool {
    let Some(listed) = ask(api, records, "list", (Method::GET, &attachments(server), None)).await else {
        return false;
    };
    let rows = listed.body["pciAttachment"].as_array().cloned().unwrap_or_default();
    if rows.is_empty() {
        return true;
    }
    let row = &rows[dice.below(rows.len() as u64) as usize];
    let id = row["attachment_id"].as_str().unwrap_or_default();
    let path = hotslot_tests::path(row);
    let path = if dice.below(2) == 0 { path } else { path.replace("/v2/t/", "/v3/") };
    with(records, |records| records.unwanted.insert(id.to_owned()));
    let Some(answer) = ask(api, records, "detach", (Method::DELETE, &path, None)).await else { return false };
    if answer.status == 200 {
        with(records, |records| records.gone.insert(id.to_owned()));
    }
    true
}

/// Sends random commands to the simulated host. Commands that do not fit the current state are refused, which is fine.
fn disturb(dice: &mut Dice, service: &Hotslot, records: &Shared<Records>) {
    let guest = dice.below(3) as usize;
    let (name, server) = (GUESTS[guest], SERVERS[guest]);
    let (nth, ms) = (1 + dice.below(6), 20 + dice.below(300));
    let at = dice.one_of(&["before", "after"]);
    let vf = dice.one_of(&VFS);
    let stops =
        [format!("destroy {name}"), format!("shutdown {name}"), format!("fault any crash nth={nth} at={at}")];
    let lines = match dice.below(16) {
        0..3 => vec![stops[dice.below(3) as usize].clone(), format!("start {name}")],
        3 | 4 => vec![format!("start {name}")],
        5 => vec![format!("reboot {name}")],
        6 => vec![format!("pause {name}")],
        7 | 8 => GUESTS.map(|name| format!("resume {name}")).to_vec(),
        9 => vec![format!("device remove {vf}")],
        10 => VFS.map(|vf| format!("device add {vf}")).to_vec(),
        11 => vec![format!("fault any fail nth={nth}"), format!("fault attach fail nth={nth} at=between")],
        12 => vec![format!("fault any fail nth={nth} at=after kind=timed-out")],
        13 => vec![format!("fault any away nth={nth} at={at} ms={ms}")],
        14 => vec![format!("fault any hang nth={nth} ms={ms}"), format!("latency attach {}", ms / 3)],
        _ => {
            let unplug = dice.one_of(&["normal", "normal", "refuse", "ignore", "slow 200"]);
            vec![format!("guest {name} unplug={unplug}"), format!("fault detach lose-event nth={nth}")]
        }
    };
    for line in lines {
        let answer = control(&service.host_dir(), &line);
        with(records, |records| {
            *records.outcomes.entry(line.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
            let now = Instant::now();
            let mut ends = |what: &str, at: Instant| {
                let last = records.ended.entry(what.to_owned()).or_insert(at);
                *last = at.max(*last);
            };
            if line.starts_with("fault any crash") {
                // The crash can hit any guest at any later time.
                SERVERS.iter().for_each(|server| ends(server, now + Duration::from_secs(3600)));
            } else if line.starts_with("destroy") || line.starts_with("shutdown") {
                ends(server, now);
            } else if line.starts_with("device remove") && answer.is_ok() {
                ends(vf, now);
            }
        });
    }
}

/// Ends the service by SIGTERM or SIGKILL, and starts it again.
async fn restart(dice: &mut Dice, service: &mut Hotslot, api: &Shared<Api>, records: &Shared<Records>) {
    let signal = dice.one_of(&["TERM", "KILL"]);
    let sent = Command::new("kill").args([&format!("-{signal}"), &service.pid().to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "kill");
    let asked = Instant::now();
    if !service.ended(Duration::from_secs(20)).await {
        with(records, |records| records.wrong.push(format!("it did not end on SIG{signal}")));
        service.kill();
    }
    let took = asked.elapsed();
    service.start_again().await;
    with(api, |api| api.clone_from(service));
    with(records, |records| {
        *records.outcomes.entry(format!("SIG{signal}")).or_default() += 1;
        if signal == "TERM" && took > Duration::from_secs(13) {
            records.wrong.push(format!("it took {took:?} to end on SIGTERM"));
        }
    });
}

/// Restarts the database, or freezes it for a moment.
async fn interrupt(dice: &mut Dice, database: &mut Server, records: &Shared<Records>) {
    let (away, back) = if dice.below(2) == 0 { ("stop", "start") } else { ("freeze", "thaw") };
    database.tell(away);
    tokio::time::sleep(Duration::from_millis(dice.below(2000))).await;
    database.tell(back);
    with(records, |records| *records.outcomes.entry(format!("database {away}")).or_default() += 1);
}

/// Ends all disturbances, and waits until everything agrees.
async fn calm(service: &Hotslot, oracle: &Oracle) -> Result<(), String> {
    let mut lines = vec!["fault clear".to_owned(), "reconnect".into(), "latency attach 0".into()];
    for guest in GUESTS {
        let line = ["resume GUEST", "guest GUEST unplug=normal unplug_ms=0", "start GUEST", "reboot GUEST"];
        lines.extend(line.map(|line| line.replace("GUEST", guest)));
    }
    lines.extend(VFS.map(|vf| format!("device add {vf}")));
    for line in lines {
        // The command is refused when the state is already reached.
        let _ = control(&service.host_dir(), &line);
    }
    oracle.settled(service, PATIENCE).await
}

/// Returns the inconsistencies between the responses and the state.
async fn broken(service: &Hotslot, records: &Records) -> Vec<String> {
    let all = service.get("/v2/t/os-pci_attachments").await;
    let rows = all.body["pciAttachment"].as_array().cloned().unwrap_or_default();
    let mut broken = Vec::new();
    for (id, promise) in &records.promises {
        let there = rows.iter().any(|row| row["attachment_id"] == **id);
        let after = |what: &str| records.ended.get(what).is_some_and(|ended| *ended >= promise.asked);
        let excused = after(&promise.address) || (!promise.persistent && after(&promise.server));
        if records.gone.contains(id) && there {
            broken.push(format!("{id} of {} was reported as gone, and is there", promise.address));
        }
        if !records.unwanted.contains(id) && !there && !excused {
            let Promise { address, server, .. } = promise;
            broken.push(format!("{id}, {address} in {server}, was promised and is not there"));
        }
    }
    broken
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1)?.parse::<u64>().ok()
    };
    let seconds = number("--seconds").unwrap_or(60);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = number("--seed").unwrap_or_else(now);
    let on_postgres = arguments.iter().any(|argument| argument == "--postgres");
    println!("soak: {seconds} s, seed {seed}, on {}", if on_postgres { "PostgreSQL" } else { "SQLite" });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let wrong = runtime.expect("a runtime").block_on(soak(Duration::from_secs(seconds), seed, on_postgres));
    wrong.iter().for_each(|wrong| println!("WRONG: {wrong}"));
    ExitCode::from(u8::from(!wrong.is_empty()))
}

async fn soak(length: Duration, seed: u64, on_postgres: bool) -> Vec<String> {
    let mut service = Hotslot::bare(&host("small"), &format!("{CONFIG}{PCI}"), |_| ()).await;
    let mut database = on_postgres.then(Server::start);
    if let Some(database) = &database {
        service = service.moved_to(&database.database().await).await;
    }
    let oracle = Oracle::of(&service).await;
    let (api, records) = (Arc::new(Mutex::new(Api::clone(&service))), Shared::<Records>::default());
    let mut dice = Dice(seed);
    let end = Instant::now() + length;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(client(Dice(dice.roll()), Arc::clone(&api), Arc::clone(&records), end)))
        .collect();
    let mut log = String::new();
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20 + dice.below(200))).await;
        if let Some(database) = &mut database
            && dice.below(40) == 0
        {
            interrupt(&mut dice, database, &records).await;
        } else if dice.below(5) == 0 {
            restart(&mut dice, &mut service, &api, &records).await;
        } else {
            disturb(&mut dice, &service, &records);
        }
        // The log of a long soak is long; its last part shows the cause of a panic.
        log = service.take_log();
        let causes = log.lines().filter(|line| line.contains("a request failed")).map(str::to_owned);
        with(&records, |records| records.wrong.extend(causes));
        if log.contains("panicked") {
            break;
        }
    }
    for client in clients {
        client.await.expect("a client");
    }
    let calmed = Instant::now();
    let settled = calm(&service, &oracle).await;
    let took = calmed.elapsed();
    let records = std::mem::take(&mut *records.lock().expect("no client panicked"));
    let mut wrong = records.wrong.clone();
    wrong.extend(settled.err().map(|found| format!("after {PATIENCE:?}: {found}")));
    wrong.extend(broken(&service, &records).await);
    wrong.extend(log.contains("panicked").then(|| format!("the service panicked:\n{log}")));
    for (what, count) in &records.outcomes {
        println!("{count:7} {what}");
    }
    let promises = records.promises.len();
    println!("{promises} promises, {} broken; everything agreed {took:?} after the last fault", wrong.len());
    wrong
}
