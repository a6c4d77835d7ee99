//! Every step of attach and detach fails, is lost, or is the last one before the service is killed. In the end nothing
//! is lost, nothing is assigned twice, nothing is in transition, and the domain documents agree.
//!
//! The steps are discovered, not listed: a fault hits the first call to the host, or the first page that is written to
//! the database, then the second, and so on, until the request completes without it. `data/steps.json` lists the
//! requests and the faults. The quick tests run a part of them, and of that every third step. `make long-tests`, which
//! sets `HOTSLOT_LONG_WALK`, runs all steps of all of them, on SQLite and on PostgreSQL.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hotslot_driver::sim::control;
use hotslot_tests::oracle::{NVME, Oracle, PCI, VGPU};
use hotslot_tests::{Answer, Hotslot, Q35, SWITCH, attachments, host, path, postgres};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

/// How long the test waits until everything agrees again. It takes less than a second unless the machine is busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it waits before it does what an administrator would do.
const LOOK: Duration = Duration::from_secs(1);
/// How long the service may still work on a request after its response.
const AFTERWARDS: Duration = Duration::from_millis(120);
/// The number of services that run in parallel.
const AT_ONCE: usize = 8;
/// The number of committed pages after which a walk starts with a new service: SQLite restarts the write-ahead log
/// after 1,000 pages, which must not happen within a step.
const PAGES_OF_A_WALK: u64 = 800;
/// The quick tests run one of this many steps.
const SAMPLE: usize = 3;
/// The environment variable that makes the test run every step of every fault in every scenario.
const LONG: &str = "HOTSLOT_LONG_WALK";
/// The text that the simulated host logs when a fault strikes.
const STRUCK: &str = "a fault applies to ";

const CONFIG: &str = "[attach]\nverify = \"off\"\n";

#[derive(Deserialize)]
struct Steps {
    scenarios: Vec<Scenario>,
    faults: Vec<Fault>,
}

#[derive(Deserialize)]
struct Scenario {
    name: String,
    /// The simulated host: `small`, `vgpu`, or `nvme`, which is `small` with an NVMe controller to give away.
    #[serde(default = "small")]
    host: String,
    server: String,
    devices: usize,
    body: Value,
}

fn small() -> String {
    "small".into()
}

#[derive(Deserialize)]
struct Fault {
    name: String,
    #[serde(flatten)]
    what: What,
    /// The scenarios of the quick tests.
    quick: Vec<String>,
    /// The scenarios of the quick tests that also run on PostgreSQL.
    #[serde(default)]
    quick_on_postgresql: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Database {
    Sqlite,
    Postgresql,
}

impl Fault {
    /// Whether the fault applies to a database.
    fn befalls(&self, database: Database) -> bool {
        database == Database::Sqlite || matches!(self.what, What::Line(_))
    }

    fn quick(&self, database: Database) -> &[String] {
        match database {
            Database::Sqlite => &self.quick,
            Database::Postgresql => &self.quick_on_postgresql,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    /// A command for the simulated host, which hits its nth call.
    Line(String),
    /// The file of the database cannot grow beyond the nth written page.
    Page(Beyond),
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Beyond {
    /// The write fails.
    Fails,
    /// The kernel kills the service during the write.
    Kills,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum DeviceEvent {
    Attach,
    Detach,
}

/// A service, and the scenario and fault that run on it.
struct Walk<'a> {
    service: Hotslot,
    oracle: Oracle,
    scenario: &'a Scenario,
    fault: &'a Fault,
    database: Database,
    /// The first step that is hit, and the distance to the next one.
    first: usize,
    every: usize,
    /// The length of the log when the last fault was set.
    mark: usize,
}

#[test]
fn a_fault_at_any_step_loses_nothing() {
    let steps = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/steps.json");
    let steps: Steps = serde_json::from_str(&std::fs::read_to_string(steps).unwrap()).unwrap();
    let Steps { scenarios, faults } = &steps;
    let long = std::env::var_os(LONG).is_some();
    let walks = [Database::Postgresql, Database::Sqlite].into_iter().flat_map(|database| {
        let faults = faults.iter().filter(move |fault| fault.befalls(database));
        faults.flat_map(move |fault| scenarios.iter().map(move |scenario| (scenario, fault, database)))
    });
    let known = |name: &String| scenarios.iter().any(|scenario| scenario.name == *name);
    assert!(
        faults.iter().flat_map(|fault| fault.quick.iter().chain(&fault.quick_on_postgresql)).all(known),
        "data/steps.json: quick names no scenario"
    );
    let walks =
        walks.filter(|(scenario, fault, database)| long || fault.quick(*database).contains(&scenario.name));
    let (walks, struck, wrong) = (Mutex::new(walks.enumerate()), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let walk_some = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        while let Some((index, (scenario, fault, database))) = { walks.lock().unwrap().next() } {
            // The walks start at different steps.
            let (first, every) = if long { (1, 1) } else { (1 + index % SAMPLE, SAMPLE) };
            runtime.block_on(async {
                let mut walk = Walk::new(scenario, fault, database, first, every).await;
                for deed in [DeviceEvent::Attach, DeviceEvent::Detach] {
                    let (steps, failures) = walk.walk(deed).await;
                    struck.fetch_add(steps, Ordering::Relaxed);
                    wrong.lock().unwrap().extend(failures);
                }
            });
        }
    };
    std::thread::scope(|threads| (0..AT_ONCE).for_each(|_| drop(threads.spawn(walk_some))));
    let (struck, wrong) = (struck.into_inner(), wrong.into_inner().unwrap());
    println!("{struck} steps went wrong, {} were not mended", wrong.len());
    assert!(wrong.is_empty(), "{} of {struck}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(struck > if long { 300 } else { 100 }, "only {struck} steps were found");
}

#[tokio::test]
async fn a_kill_at_any_step_of_a_bind_leaves_all_or_none_bound() {
    let scenario = Scenario {
        name: "bind".into(),
        host: small(),
        server: "q35".into(),
        devices: 3,
        body: json!({ "driver": "vfio-pci" }),
    };
    let lines = ["fault any kill nth={nth} at=before", "fault any kill nth={nth} at=after"];
    let calls = lines.map(|line| (What::Line(line.to_owned()), 5));
    let (mut struck, mut wrong) = (0, Vec::new());
    for (what, stride) in [(What::Page(Beyond::Kills), 3)].into_iter().chain(calls) {
        let stride = if std::env::var_os(LONG).is_some() { 1 } else { stride };
        let fault = Fault { name: "killed".into(), what, quick: Vec::new(), quick_on_postgresql: Vec::new() };
        let mut walk = Walk::new(&scenario, &fault, Database::Sqlite, 1, stride).await;
        let mut path = walk.accelerator().await;
        for deed in [DeviceEvent::Attach, DeviceEvent::Detach] {
            for nth in (walk.first..).step_by(walk.every) {
                if wal::committed(&walk.service.database()) > PAGES_OF_A_WALK {
                    walk = walk.anew().await;
                    path = walk.accelerator().await;
                }
                match walk.bind_step(&path, deed, nth).await {
                    Ok(true) => struck += 1,
                    Ok(false) => break,
                    Err(reason) => {
                        let line = match &fault.what {
                            What::Line(line) => line,
                            What::Page(_) => "page",
                        };
                        wrong.push(format!("{deed:?}: {nth}: {line}: {reason}"));
                        walk = walk.anew().await;
                        path = walk.accelerator().await;
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {struck}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(struck > 20, "only {struck} steps were found");
}

#[tokio::test]
async fn a_stale_domain_read_does_not_end_a_new_attachment() {
    let service = Hotslot::on("small").await;
    // The service reads the domain, and the result arrives late.
    service.sim("fault domain hang domain=q35 at=after ms=600");
    service.sim("pause q35");
    service.sim("resume q35");
    service.until("the domain is read", async || service.log().contains(STRUCK)).await;
    let attached = service.attach(Q35, "vf:1").await.expect(200);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let there = service.attachments(Q35).await;
    assert_eq!(there.len(), 1);
    assert_eq!(there[0]["attachment_id"], attached.body["pci_devices"][0]["attachment_id"]);
    assert_eq!(service.plugged().len(), 2);
}

impl<'a> Walk<'a> {
    async fn new(
        scenario: &'a Scenario,
        fault: &'a Fault,
        database: Database,
        first: usize,
        every: usize,
    ) -> Self {
        let (folder, pci) = match scenario.host.as_str() {
            "vgpu" => ("vgpu", VGPU),
            "nvme" => ("small", NVME),
            _ => ("small", PCI),
        };
        let mut service = Hotslot::bare(&host(folder), &format!("{CONFIG}{pci}"), |_| ()).await;
        if database == Database::Postgresql {
            service = service.moved_to(&postgres::database().await).await;
        }
        if matches!(fault.what, What::Page(Beyond::Fails)) {
            service.kill();
            service.start_again_after("trap '' XFSZ").await;
        }
        let oracle = Oracle::of(&service).await;
        Self { service, oracle, scenario, fault, database, first, every, mark: 0 }
    }

    /// Returns the same walk with a new service.
    async fn anew(&self) -> Self {
        Self::new(self.scenario, self.fault, self.database, self.first, self.every).await
    }

    /// Hits the steps of an attach or detach, all or a sample. Returns the number of hits and the inconsistencies
    /// afterwards.
    async fn walk(&mut self, deed: DeviceEvent) -> (usize, Vec<String>) {
        let (mut struck, mut wrong) = (0, Vec::new());
        for nth in (self.first..).step_by(self.every) {
            if wal::committed(&self.service.database()) > PAGES_OF_A_WALK {
                *self = self.anew().await;
            }
            match self.step(deed, nth).await {
                Ok(true) => struck += 1,
                Ok(false) => return (struck, wrong),
                Err(reason) => {
                    struck += 1;
                    let (scenario, fault) = (&self.scenario.name, &self.fault.name);
                    let log = self.service.log_from(self.mark);
                    let call =
                        log.split(STRUCK).nth(1).and_then(|rest| rest.lines().next()).unwrap_or_default();
                    let database = self.database;
                    wrong.push(format!(
                        "{database:?}: {scenario}: {deed:?}: {nth}: {fault}: {reason} ({call})"
                    ));
                    // The next step needs a clean service.
                    *self = self.anew().await;
                }
            }
        }
        unreachable!("a request of endless steps")
    }

    /// Runs one attach or detach in which the nth step is hit. Returns false when it has fewer steps.
    async fn step(&mut self, deed: DeviceEvent, nth: usize) -> Result<bool, String> {
        match deed {
            DeviceEvent::Attach => self.attach_step(nth).await,
            DeviceEvent::Detach => self.detach_step(nth).await,
        }
    }

    async fn attach_step(&mut self, nth: usize) -> Result<bool, String> {
        let (all, none) = (self.scenario.devices, 0);
        self.set(nth);
        let answer = self.attach().await;
        let struck = self.recover().await;
        let there = match answer {
            Some(_) if struck && self.crashes() => self.settled("the guest is gone", &[none, all]).await?,
            Some(answer) if answer.status == 200 => self.settled("attached", &[all]).await?,
            Some(answer) if !struck => {
                return Err(format!("undisturbed: {} {}", answer.status, answer.message()));
            }
            // The device may be plugged although this could not be recorded; the response says so.
            Some(_) if matches!(self.fault.what, What::Page(_)) => {
                self.settled("not recorded", &[none, all]).await?
            }
            // A client that received a failure must not get the device later.
            Some(_) => self.settled("answered with a failure", &[none]).await?,
            None => self.settled("without an answer", &[none, all]).await?,
        };
        if there == none {
            ok("repeated", self.attach().await)?;
            self.settled("repeated", &[all]).await?;
        }
        for row in self.service.attachments(self.server()).await {
            ok("taken back", self.detach(&row).await)?;
        }
        self.settled("taken back", &[none]).await?;
        Ok(struck)
    }

    async fn detach_step(&mut self, nth: usize) -> Result<bool, String> {
        let (all, none) = (self.scenario.devices, 0);
        let attached = ok("at first", self.attach().await)?;
        let devices = attached.body["pci_devices"].as_array().ok_or(format!("{attached:?}"))?;
        self.settled("at first", &[all]).await?;
        tokio::time::sleep(AFTERWARDS).await;
        self.set(nth);
        let mut gone = 0;
        for device in devices {
            gone += usize::from(self.detach(device).await.is_some_and(|answer| answer.status == 200));
        }
        let struck = self.recover().await;
        let left = self.settled("afterwards", &Vec::from_iter(0..=all)).await?;
        if left + gone > all {
            return Err(format!("{gone} were reported as gone, and {left} of {all} are there"));
        }
        // Whatever happened to the first request, the second one has the same outcome.
        for device in devices {
            ok("repeated", self.detach(device).await)?;
        }
        self.settled("repeated", &[none]).await?;
        Ok(struck)
    }

    /// Creates an accelerator of several devices, and returns its path.
    async fn accelerator(&self) -> String {
        let spec = json!({ "vendor_id": "8086", "num": self.scenario.devices });
        self.service.accelerator("several", spec).await
    }

    /// Runs a bind for the host, or its release, in which the nth step is hit. Returns false when it has fewer steps.
    /// In the end, all devices are bound or none.
    async fn bind_step(&mut self, path: &str, deed: DeviceEvent, nth: usize) -> Result<bool, String> {
        let body = Some(("application/json", self.scenario.body.to_string()));
        let answer = match deed {
            DeviceEvent::Attach => {
                self.set(nth);
                self.service.try_send(Method::PUT, path, body).await
            }
            DeviceEvent::Detach => {
                ok("at first", self.service.try_send(Method::PUT, path, body).await)?;
                self.set(nth);
                self.service.try_send(Method::DELETE, path, None).await
            }
        };
        let struck = self.recover().await;
        if let (Some(answer), false) = (&answer, struck)
            && !(200..300).contains(&answer.status)
        {
            return Err(format!("undisturbed: {} {}", answer.status, answer.message()));
        }
        let is_bound = self.bound_or_free(path).await?;
        if let (DeviceEvent::Detach, Some(answer), true) = (deed, &answer, is_bound) {
            return Err(format!("answered {}, and it is bound", answer.status));
        }
        if is_bound {
            let released = self.service.delete(path).await;
            if released.status != 204 {
                return Err(format!("released: {} {}", released.status, released.message()));
            }
        }
        self.settled("released", &[0]).await?;
        Ok(struck)
    }

    /// Waits until an accelerator is bound to the host with all its devices, or holds none.
    async fn bound_or_free(&self, path: &str) -> Result<bool, String> {
        let begun = Instant::now();
        loop {
            let now = self.service.get(path).await.expect(200).body;
            let holds = now["devices"].as_array().map_or(0, Vec::len);
            match now["status"].as_str() {
                Some("available") => return Ok(false),
                Some("attached") if holds == self.scenario.devices => return Ok(true),
                Some("error") => return Err(format!("holds {holds}: {}", now["status_reason"])),
                _ if begun.elapsed() > PATIENCE => return Err(format!("it stays {now}")),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn server(&self) -> &'static str {
        match self.scenario.server.as_str() {
            "q35" => Q35,
            "switch" => SWITCH,
            other => panic!("data/steps.json: no server {other}"),
        }
    }

    async fn attach(&self) -> Option<Answer> {
        let body = json!({ "pciAttachment": self.scenario.body }).to_string();
        let body = Some(("application/json", body));
        self.service.try_send(Method::POST, &attachments(self.server()), body).await
    }

    async fn detach(&self, device: &Value) -> Option<Answer> {
        self.service.try_send(Method::DELETE, &path(device), None).await
    }

    fn set(&mut self, nth: usize) {
        self.mark = self.service.log_length();
        match &self.fault.what {
            What::Line(line) => self.service.sim(&line.replace("{nth}", &nth.to_string())),
            What::Page(_) => {
                let pages = wal::committed(&self.service.database()) + nth as u64;
                // In the middle of the page.
                self.service.limit_files(Some(wal::HEADER + pages * wal::FRAME - wal::FRAME / 2));
            }
        }
    }

    fn crashes(&self) -> bool {
        matches!(&self.fault.what, What::Line(line) if line.contains(" crash "))
    }

    fn kills(&self) -> bool {
        match &self.fault.what {
            What::Line(line) => line.contains(" kill "),
            What::Page(beyond) => *beyond == Beyond::Kills,
        }
    }

    fn struck(&mut self) -> bool {
        let log = self.service.log_from(self.mark);
        match self.fault.what {
            What::Line(_) => log.contains(STRUCK) || self.service.has_ended(),
            What::Page(Beyond::Fails) => log.contains("disk I/O error"),
            What::Page(Beyond::Kills) => self.service.has_ended(),
        }
    }

    /// Whether the fault struck, possibly after the response. Restarts the service if the fault killed it.
    async fn recover(&mut self) -> bool {
        let answered = Instant::now();
        while !self.struck() && answered.elapsed() < AFTERWARDS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        match self.fault.what {
            // The service may be killed at this moment.
            What::Line(_) => drop(control(&self.service.host_dir(), "fault clear")),
            What::Page(_) => self.service.limit_files(None),
        }
        // A service that was being killed when the fault was cleared does not answer any more.
        let dying = self.kills() && self.service.try_get("/healthz").await.is_none();
        let struck = dying || self.struck();
        if struck && self.kills() {
            assert!(self.service.ended(PATIENCE).await, "the service was not killed");
            self.service.start_again().await;
        } else if struck && self.crashes() {
            let _ = control(&self.service.host_dir(), "start q35");
        }
        struck
    }

    /// Has the devices scrubbed whose scrub was refused, as an administrator does.
    async fn scrub_again(&self) {
        let devices = self.service.try_get("/v2/t/os-pci/detail").await;
        let devices = devices.map(|answer| answer.body["pci_devices"].clone()).unwrap_or_default();
        for device in
            devices.as_array().into_iter().flatten().filter(|device| device["quarantine"].is_string())
        {
            let scrub = format!("/v2/t/os-pci/{}/scrub", device["id"]);
            self.service.try_send(Method::POST, &scrub, None).await;
        }
    }

    /// Waits until everything agrees, and returns the number of attachments, which must be one of `expected`.
    async fn settled(&self, when: &str, expected: &[usize]) -> Result<usize, String> {
        let begun = Instant::now();
        while let Err(found) = self.oracle.settled(&self.service, LOOK).await {
            if begun.elapsed() > PATIENCE {
                return Err(format!("{when}: {found}"));
            }
            self.scrub_again().await;
        }
        let there = self.service.attachments(self.server()).await.len();
        if expected.contains(&there) {
            Ok(there)
        } else {
            Err(format!("{when}: {there} attachments, not {expected:?}"))
        }
    }
}

/// The write-ahead log of an SQLite database, read as far as its format gives the position of the next page.
pub(crate) mod wal {
    use std::path::Path;

    pub const HEADER: u64 = 32;
    /// The size of a page with its header.
    pub const FRAME: u64 = 24 + 4096;

    /// Returns the number of pages that were committed since the log was last restarted.
    pub fn committed(database: &Path) -> u64 {
        commits(database).last().map_or(0, |index| *index as u64 + 1)
    }

    /// Returns the number of transactions that were committed since the log was last restarted.
    pub fn transactions(database: &Path) -> u64 {
        commits(database).len() as u64
    }

    /// Returns the index of the last page of each committed transaction.
    fn commits(database: &Path) -> Vec<usize> {
        let file = format!("{}-wal", database.display());
        let bytes = std::fs::read(file).unwrap_or_default();
        let salt = bytes.get(16..24).unwrap_or_default();
        let frames = bytes.get(HEADER as usize..).unwrap_or_default().chunks_exact(FRAME as usize);
        let ours = frames.take_while(|frame| &frame[8..16] == salt);
        // The header of a transaction's last page gives the size of the database in pages.
        ours.enumerate().filter(|(_, frame)| frame[4..8] != [0; 4]).map(|(index, _)| index).collect()
    }
}

/// Returns an error unless the response is 200.
fn ok(when: &str, answer: Option<Answer>) -> Result<Answer, String> {
    match answer {
        Some(answer) if answer.status == 200 => Ok(answer),
        Some(answer) => Err(format!("{when}: {} {}", answer.status, answer.message())),
        None => Err(format!("{when}: no answer")),
    }
}
