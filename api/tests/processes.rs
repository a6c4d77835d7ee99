//! Several services over one PostgreSQL and one host. Each has a runtime of its own, and dies with it: what it was
//! doing ends wherever it is, and its connections break.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[expect(unreachable_pub, reason = "the black-box tests use it too")]
#[path = "../../tests/src/postgres.rs"]
mod postgres;

use std::collections::HashSet;
use std::future::IntoFuture as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hotslot_api::http;
use hotslot_driver::hypervisor::{ErrorKind, Hypervisor};
use hotslot_driver::sim::Sim;
use hotslot_model::assignment::Attachment;
use hotslot_model::assignment::State;
use hotslot_model::device::DeviceStatus;
use hotslot_model::event::EventFilter;
use hotslot_model::id::{AttachmentId, EventId, ServerId};
use hotslot_model::rules::{AliasRequest, RuleKind};
use hotslot_service::assignment::AttachRequest;
use hotslot_service::assignment::DetachRequest;
use hotslot_service::config::Config;
use hotslot_service::error::Error;
use hotslot_service::inventory::Change;
use hotslot_service::service::Service;
use hotslot_store::Store;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// Within which what a dead process left is settled.
const SECONDS: Duration = Duration::from_secs(5);

/// Five devices, each alone in its IOMMU group, and one name for all.
const CONFIG: &str = r#"
[pci]
device_spec = ['{"address": "0000:04:10.*"}', '{"address": "0000:05:00.0"}', '{"address": "0000:07:00.0"}',
               '{"address": "0000:08:00.0"}']
alias = ['{"name": "any", "vendor_id": "8086", "product_id": "10ca"}',
         '{"name": "any", "vendor_id": "8086", "product_id": "10d3"}',
         '{"name": "any", "vendor_id": "1b36", "product_id": "0010"}']
[attach]
verify = "off"
[[hypervisor]]
name = "node1"
uri = "sim:///shared"
[database]
"#;

/// A simulated host that is shared, and the database.
struct Scene {
    sim: Arc<Sim>,
    config: String,
    database: String,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        Self::with("", postgres::database().await)
    }

    /// With more in the configuration, and a database.
    fn with(more: &str, database: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/hosts/small"), dir.path());
        let sim = Sim::open(dir.path()).unwrap();
        let config = format!("{CONFIG}url = \"{database}\"\n{more}");
        Self { sim, config, database, _dir: dir }
    }

    async fn process(&self) -> Process {
        let config = Config::parse(&self.config).unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sim = Arc::clone(&self.sim);
        let open = move |_: &_, _: &_| Ok(Arc::clone(&sim) as Arc<dyn Hypervisor>);
        let service = runtime.spawn(Service::start_on(config, open)).await.unwrap().unwrap();
        let process = Process { runtime: Some(runtime), service };
        process.run(async |service: Arc<Service>| service.hosts[0].ready().await.unwrap()).await;
        process
    }

    /// The servers that run and have free ports.
    async fn servers(&self) -> Vec<ServerId> {
        let mut domains = self.sim.domains().await.unwrap();
        domains.retain(|domain| ["q35", "i440fx"].contains(&domain.name.as_str()));
        domains.into_iter().map(|domain| ServerId(domain.uuid)).collect()
    }

    /// How many devices the running guests have of us.
    async fn plugged(&self) -> usize {
        let mut count = 0;
        for server in self.servers().await {
            let live = self.sim.domain(server.0).await.unwrap().live.unwrap();
            let ours = |alias: &String| alias.starts_with("ua-");
            count += live.hostdevs.iter().filter(|device| device.alias.as_ref().is_some_and(ours)).count();
        }
        count
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A service in a runtime of its own.
struct Process {
    runtime: Option<Runtime>,
    service: Arc<Service>,
}

impl Process {
    /// Does something in its runtime.
    async fn run<T, F>(&self, work: impl FnOnce(Arc<Service>) -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let runtime = self.runtime.as_ref().expect("it has died");
        runtime.spawn(work(Arc::clone(&self.service))).await.unwrap()
    }

    async fn attach(&self, server: ServerId, count: usize) -> Result<Vec<Attachment>, Error> {
        let request = request(server, "any", count);
        let attached = self.run(|service| async move { service.attach(request).await }).await?;
        Ok(attached.into_iter().map(|(attachment, _)| attachment).collect())
    }

    async fn detach(&self, server: ServerId, id: AttachmentId) -> Result<(), Error> {
        self.run(move |service| async move {
            match service.begin_detach(server, id, DetachRequest::default()).await? {
                Some(work) => work.await.unwrap(),
                None => Ok(()),
            }
        })
        .await
    }

    /// Serves its API, and answers where.
    async fn serve(&self) -> String {
        self.run(|service| async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/v2/t", listener.local_addr().unwrap());
            tokio::spawn(axum::serve(listener, http::router(service)).into_future());
            url
        })
        .await
    }

    async fn attachments(&self) -> Vec<Attachment> {
        self.run(|service| async move { service.store.attachments().await.unwrap() }).await
    }

    fn statuses(&self) -> Vec<DeviceStatus> {
        self.service.store.devices().iter().map(|device| device.status).collect()
    }

    /// Waits until nothing is promised, in its memory too.
    async fn all_free(&self) {
        until("all are free", async || self.statuses() == [DeviceStatus::Available; 5]).await;
        assert_eq!(self.attachments().await, []);
    }

    /// Ends at once.
    fn die(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn request(server: ServerId, alias: &str, count: usize) -> AttachRequest {
    AttachRequest {
        server,
        aliases: vec![AliasRequest { name: alias.into(), count }],
        own: Vec::new(),
        persistent: true,
        whole_group: false,
        numa_policy: None,
        network: None,
        key: None,
        holder: None,
    }
}

/// Waits until something is so, and answers how long it took.
async fn until(what: &str, so: impl AsyncFn() -> bool) -> Duration {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < 2 * SECONDS, "it never came: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_does_the_others_know() {
    let scene = Scene::new().await;
    let (one, other) = (scene.process().await, scene.process().await);
    let server = scene.servers().await[0];
    let attached = one.attach(server, 1).await.unwrap().remove(0);
    assert_eq!(other.attachments().await.len(), 1);
    until("it is known", async || other.statuses().contains(&DeviceStatus::Allocated)).await;
    other.detach(server, attached.id).await.unwrap();
    one.all_free().await;

    let text = r#"{"name": "new", "vendor_id": "8086", "product_id": "10d3"}"#.to_owned();
    let add = Change::Add { kind: RuleKind::Alias, text };
    let id = one.run(|service| async move { service.change_rules(add, false).await }).await.unwrap();
    until("the rule is in force", async || other.service.inventory().alias("new").is_some()).await;
    let remove = Change::Remove { kind: RuleKind::Alias, id };
    other.run(|service| async move { service.change_rules(remove, false).await }).await.unwrap();
    until("the rule is not", async || one.service.inventory().alias("new").is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_on_one_host_give_no_device_twice() {
    const TURNS: usize = 20;
    let scene = Scene::new().await;
    let servers = scene.servers().await;
    let mut processes = Vec::new();
    for _ in 0..4 {
        processes.push(Arc::new(scene.process().await));
    }
    let given: Arc<Mutex<HashSet<_>>> = Arc::default();
    let mut clients = Vec::new();
    for client in 0..8 {
        let (processes, servers, given) = (processes.clone(), servers.clone(), Arc::clone(&given));
        clients.push(tokio::spawn(async move {
            let (mut attached, mut refusals) = (0, HashSet::new());
            for turn in 0..TURNS {
                // By one process, and detached by the next.
                let (by, next) = (&processes[(client + turn) % 4], &processes[(client + turn + 1) % 4]);
                let server = servers[(client * 7 + turn) % servers.len()];
                let rows = match by.attach(server, 1 + turn % 2).await {
                    Ok(rows) => rows,
                    Err(refusal @ (Error::TooFewFree { .. } | Error::Conflict(_))) => {
                        refusals.insert(refusal.to_string());
                        continue;
                    }
                    // The guest was read before another client's detach was done.
                    Err(Error::Hypervisor { source, .. }) if source.kind == ErrorKind::AlreadyDefined => {
                        continue;
                    }
                    Err(error) => panic!("{error}"),
                };
                for row in &rows {
                    assert!(given.lock().unwrap().insert(row.device), "{row:?} was given twice");
                }
                for row in &rows {
                    assert!(given.lock().unwrap().remove(&row.device));
                    next.detach(server, row.id).await.unwrap();
                }
                attached += 1;
            }
            (attached, refusals)
        }));
    }
    let start = Instant::now();
    let (mut attached, mut refusals) = (0, HashSet::new());
    for client in clients {
        let (some, refused) = client.await.unwrap();
        attached += some;
        refusals.extend(refused);
    }
    println!("{attached} of {} attaches in {:?}", 8 * TURNS, start.elapsed());
    assert!(attached > 2 * TURNS, "{attached}: {refusals:?}");
    for process in &processes {
        process.all_free().await;
    }
    assert_eq!(scene.plugged().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_of_a_process_that_dies_is_taken_back_by_another_within_seconds() {
    let scene = Scene::new().await;
    let server = scene.servers().await[0];
    let (one, other) = (scene.process().await, scene.process().await);
    scene.sim.control("latency attach 300").unwrap();
    let service = Arc::clone(&one.service);
    one.runtime.as_ref().unwrap().spawn(async move { service.attach(request(server, "any", 3)).await });
    until("the second is being plugged", async || scene.plugged().await == 1).await;
    // The other one sees what happens there, and leaves it to who does it.
    let left = other.attachments().await;
    assert!(left.iter().all(|row| row.state == State::Attaching) && left.len() == 3, "{left:?}");
    one.die();
    let took = until("nothing is left", async || other.attachments().await.is_empty()).await;
    println!("3 attaching rows of a dead process were settled after {took:?}");
    assert!(took < SECONDS, "{took:?}");
    other.all_free().await;
    until("nothing is plugged", async || scene.plugged().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_goes_on_when_its_locks_are_lost_for_a_moment() {
    let scene = Scene::new().await;
    let server = scene.servers().await[0];
    let (one, other) = (scene.process().await, scene.process().await);
    scene.sim.control("latency attach 1000").unwrap();
    let service = Arc::clone(&one.service);
    let attach = one.runtime.as_ref().unwrap();
    let attach = attach.spawn(async move { service.attach(request(server, "any", 3)).await });
    let mut database = PgConnection::connect(&scene.database).await.unwrap();
    until("the second is being plugged", async || scene.plugged().await == 1).await;
    // The connection that has the locks breaks while the other one hears of what is plugged.
    let broken = sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND
             ((classid::bigint << 32) | objid::bigint) =
             hashtextextended('attachment ' || (SELECT MIN(id) FROM attachments WHERE state = 'attaching'), 0)",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    assert_eq!(broken.len(), 1);
    let attached = attach.await.unwrap().unwrap();
    assert!(attached.iter().all(|(row, _)| row.state == State::Attached) && attached.len() == 3);
    assert_eq!(other.attachments().await.len(), 3);
    scene.sim.control("latency attach 1").unwrap();
    for (row, _) in attached {
        other.detach(server, row.id).await.unwrap();
    }
    one.all_free().await;
    assert_eq!(scene.plugged().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detach_of_a_process_that_dies_is_done_by_another_within_seconds() {
    let scene = Scene::new().await;
    let server = scene.servers().await[0];
    let (one, other) = (scene.process().await, scene.process().await);
    let row = one.attach(server, 1).await.unwrap().remove(0);
    // The guest has not been asked when it dies, and nothing will happen by itself.
    scene.sim.control("latency detach 600000").unwrap();
    let service = Arc::clone(&one.service);
    one.runtime
        .as_ref()
        .unwrap()
        .spawn(async move { service.begin_detach(server, row.id, DetachRequest::default()).await });
    until("it is to go", async || other.attachments().await[0].state == State::Detaching).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(other.attachments().await[0].state, State::Detaching, "it is left to who does it");
    one.die();
    scene.sim.control("latency detach 1").unwrap();
    let took = until("it is gone", async || other.attachments().await.is_empty()).await;
    println!("a detaching row of a dead process was settled after {took:?}");
    assert!(took < SECONDS, "{took:?}");
    other.all_free().await;
    assert_eq!(scene.plugged().await, 0);
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Sends an attach with a key, and answers its status and body.
async fn attach_once(url: String, server: ServerId, key: &'static str) -> (u16, Value) {
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "any:2" } });
    let post = client().post(format!("{url}/servers/{server}/os-pci_attachments"));
    let answer = post.header("idempotency-key", key).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_the_events_at_one_process_hears_what_another_does() {
    let scene = Scene::new().await;
    let (one, other) = (scene.process().await, scene.process().await);
    let server = scene.servers().await[0];
    let url = format!("{}/events?follow&last=0&kind=attachment.state", other.serve().await);
    let mut followed = client().get(url).send().await.unwrap();
    let row = one.attach(server, 1).await.unwrap().remove(0);
    let done = Instant::now();
    let mut heard = String::new();
    while !heard.contains(r#""to":"attached""#) {
        let chunk = tokio::time::timeout(SECONDS, followed.chunk()).await.expect("it is not heard");
        heard += std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap();
    }
    println!("heard {:?} after it was done", done.elapsed());
    assert!(heard.contains(r#""to":"attaching""#) && heard.contains(&row.id.to_string()), "{heard}");
    assert!(done.elapsed() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_at_two_processes_is_done_once_and_answered_alike() {
    let scene = Scene::new().await;
    let server = scene.servers().await[0];
    let (one, other) = (scene.process().await, scene.process().await);
    let urls = [one.serve().await, other.serve().await];
    scene.sim.control("latency attach 100").unwrap();
    let tries: Vec<_> = (0..6).map(|n| tokio::spawn(attach_once(urls[n % 2].clone(), server, "a"))).collect();
    let mut answers = Vec::new();
    for attempt in tries {
        answers.push(attempt.await.unwrap());
    }
    assert_eq!(answers[0].0, 200, "{}", answers[0].1);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
    assert_eq!((other.attachments().await.len(), scene.plugged().await), (2, 2));

    // The process that is at it dies: another one does it, once.
    scene.sim.control("latency attach 400").unwrap();
    let lost = tokio::spawn(attach_once(urls[0].clone(), server, "b"));
    until("the first is plugged", async || scene.plugged().await == 3).await;
    let again = tokio::spawn(attach_once(urls[1].clone(), server, "b"));
    one.die();
    assert!(lost.await.is_err());
    let (status, body) = again.await.unwrap();
    // It is taken back first, which takes the guest's time.
    let answer = if status == 409 {
        assert!(body.to_string().contains("was cut off"), "{body}");
        until("it is gone", async || other.attachments().await.len() == 2).await;
        attach_once(urls[1].clone(), server, "b").await
    } else {
        (status, body)
    };
    assert_eq!(answer.0, 200, "{}", answer.1);
    assert_eq!(attach_once(urls[1].clone(), server, "b").await, answer);
    until("both are there, once", async || {
        (other.attachments().await.len(), scene.plugged().await) == (4, 4)
    })
    .await;
}

/// Takes what webhooks tell; answers its URL.
async fn receiver(heard: Arc<Mutex<Vec<i64>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let hear = async move |axum::Json(event): axum::Json<Value>| {
        heard.lock().unwrap().push(event["id"].as_i64().unwrap());
    };
    let router = axum::Router::new().route("/", axum::routing::post(hear));
    tokio::spawn(axum::serve(listener, router).into_future());
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_tells_a_webhook_and_another_goes_on_when_it_dies() {
    let heard = Arc::<Mutex<Vec<i64>>>::default();
    let url = receiver(Arc::clone(&heard)).await;
    let webhook = format!("[[webhook]]\nname = \"w\"\nurl = \"{url}\"\nsecret = \"0123456789abcdef\"\n");
    let scene = Scene::with(&webhook, postgres::database().await);
    let server = scene.servers().await[0];
    let (one, other) = (scene.process().await, scene.process().await);
    let tells = |process: &Process| process.service.webhooks[0].progress().told.is_some();
    until("one of them tells", async || tells(&one) || tells(&other)).await;
    for _ in 0..3 {
        for process in [&one, &other] {
            let row = process.attach(server, 1).await.unwrap().remove(0);
            process.detach(server, row.id).await.unwrap();
        }
    }
    let ids = async |process: &Process| {
        let all = async |service: Arc<Service>| {
            let all = service.store.events(EventId(0), &EventFilter::default(), 10_000).await.unwrap();
            all.iter().map(|event| event.id.0).collect::<Vec<_>>()
        };
        process.run(all).await
    };
    let complete = async |process: &Process| {
        let all = ids(process).await;
        heard.lock().unwrap().last() == all.last()
    };
    until("all is told", async || complete(&one).await).await;
    // Also by the process that does not tell it: each once, in order.
    let all = ids(&one).await;
    let told = heard.lock().unwrap().clone();
    assert_eq!(told, all[all.len() - told.len()..]);
    assert!(tells(&one) != tells(&other), "one of them");

    let (dies, lives) = if tells(&one) { (one, other) } else { (other, one) };
    dies.die();
    let died = Instant::now();
    lives.attach(server, 1).await.unwrap();
    until("another goes on", async || complete(&lives).await).await;
    println!("told {:?} after the process died that told", died.elapsed());
    let first = told[0];
    let told: HashSet<_> = heard.lock().unwrap().iter().copied().collect();
    assert!(ids(&lives).await.into_iter().filter(|id| *id >= first).all(|id| told.contains(&id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_restarts_in_the_middle_and_nothing_is_done_twice() {
    let mut database = postgres::Server::start();
    let scene = Scene::with("", database.database().await);
    let server = scene.servers().await[0];
    let (one, other) = (scene.process().await, scene.process().await);
    let (first, urls) =
        (one.attach(server, 1).await.unwrap().remove(0), [one.serve().await, other.serve().await]);
    scene.sim.control("latency attach 500").unwrap();
    let attach = tokio::spawn(attach_once(urls[0].clone(), server, "a"));
    until("the first is plugged", async || scene.plugged().await == 2).await;
    database.tell("stop");
    let (status, body) = attach_once(urls[1].clone(), server, "b").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.to_string().contains("PostgreSQL"), "{body}");
    let list = client().get(format!("{}/os-pci_attachments", urls[1])).send().await.unwrap();
    // What says that one has to look before one asks again does not say when to ask again.
    assert_eq!((list.status().as_u16(), list.headers().contains_key("retry-after")), (503, false));
    database.tell("start");
    let back = Instant::now();
    let (status, body) = attach.await.unwrap();
    assert!([200, 503].contains(&status), "{status}: {body}");
    // Whatever was answered: as many rows as devices, in both memories, and nothing in transition.
    let settled = async || {
        let rows = other.attachments().await;
        let allocated = |process: &Process| {
            process.statuses().iter().filter(|status| **status == DeviceStatus::Allocated).count()
        };
        rows.iter().all(|row| row.state == State::Attached)
            && [allocated(&one), allocated(&other), scene.plugged().await] == [rows.len(); 3]
    };
    until("everything agrees", settled).await;
    println!("everything agreed {:?} after PostgreSQL was back", back.elapsed());
    let rows = other.attachments().await;
    assert!(rows.iter().any(|row| row.id == first.id) && [1, 3].contains(&rows.len()), "{rows:#?}");
    // The same key again: what it has made, or now.
    let (status, body) = attach_once(urls[1].clone(), server, "a").await;
    assert_eq!(status, 200, "{body}");
    until("everything agrees", settled).await;
    let rows = one.attachments().await;
    assert_eq!(rows.len(), 3);
    scene.sim.control("latency attach 1").unwrap();
    for (process, row) in [&one, &other].into_iter().cycle().zip(rows) {
        process.detach(server, row.id).await.unwrap();
    }
    other.all_free().await;
}

/// A way to a PostgreSQL on which the answer to a commit gets lost, with its connection, when that is asked for.
struct Lossy {
    url: String,
    /// How many commits are answered before that; none: all.
    commits: Arc<Mutex<Option<usize>>>,
    /// Breaks all connections on this side alone: PostgreSQL does not know.
    broken: watch::Sender<()>,
    _dir: tempfile::TempDir,
}

impl Lossy {
    fn to(url: &str) -> Self {
        const SOCKET: &str = ".s.PGSQL.5432";
        let (server, directory) = url.split_once("host=").unwrap();
        let far = Path::new(directory).join(SOCKET);
        let dir = tempfile::tempdir().unwrap();
        let near = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let commits: Arc<Mutex<Option<usize>>> = Arc::default();
        let (counted, (broken, breaks)) = (Arc::clone(&commits), watch::channel(()));
        tokio::spawn(async move {
            while let Ok((client, _)) = near.accept().await {
                let server = UnixStream::connect(&far).await.unwrap();
                tokio::spawn(carry(client, server, Arc::clone(&counted), breaks.clone()));
            }
        });
        Self { url: format!("{server}host={}", dir.path().display()), commits, broken, _dir: dir }
    }
}

async fn carry(
    mut client: UnixStream,
    mut server: UnixStream,
    commits: Arc<Mutex<Option<usize>>>,
    mut breaks: watch::Receiver<()>,
) {
    let (mut asked, mut answered) = ([0; 1 << 14], [0; 1 << 14]);
    breaks.mark_unchanged();
    loop {
        tokio::select! {
            _ = breaks.changed() => {
                drop(client);
                return tokio::time::sleep(Duration::from_secs(60)).await;
            }
            length = client.read(&mut asked) => {
                let Ok(length @ 1..) = length else { return };
                let asked = &asked[..length];
                let loses = asked.windows(7).any(|text| text == b"COMMIT\0") && {
                    let mut commits = commits.lock().unwrap();
                    let last = *commits == Some(0);
                    *commits = commits.and_then(|left| left.checked_sub(1));
                    last
                };
                if server.write_all(asked).await.is_err() {
                    return;
                }
                if loses {
                    // It is done, and nobody is told.
                    let _ = server.read(&mut answered).await;
                    return;
                }
            }
            length = server.read(&mut answered) => {
                let Ok(length @ 1..) = length else { return };
                if client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_known_and_settled_all_the_same() {
    let lossy = Lossy::to(&postgres::database().await);
    let scene = Scene::with("", lossy.url.clone());
    let one = scene.process().await;
    let server = scene.servers().await[0];
    for commits in 0..3 {
        *lossy.commits.lock().unwrap() = Some(commits);
        let attached = one.attach(server, 1).await;
        let lost = lossy.commits.lock().unwrap().is_none();
        println!("commit {commits} lost: {lost}; attached: {}", attached.is_ok());
        assert!(lost || attached.is_ok(), "{attached:?}");
        let agrees = async || {
            let rows = one.attachments().await;
            let count = |wanted| one.statuses().into_iter().filter(|status| *status == wanted).count();
            let [held, free] = [DeviceStatus::Allocated, DeviceStatus::Available].map(count);
            rows.iter().all(|row| row.state == State::Attached)
                && [held, 5 - free, scene.plugged().await] == [rows.len(); 3]
        };
        let took = until("everything agrees", agrees).await;
        assert!(took < SECONDS, "{took:?}");
        *lossy.commits.lock().unwrap() = None;
        for row in one.attachments().await {
            one.detach(server, row.id).await.unwrap();
        }
        one.all_free().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_whose_session_lingers_at_postgresql_are_this_processs_own() {
    let database = postgres::database().await;
    let lossy = Lossy::to(&database);
    let one = Store::open(&lossy.url, None).await.unwrap();
    let other = Store::open(&database, None).await.unwrap();
    let held = one.locks().lock("a".into()).await.unwrap();
    let worker = one.worker();
    for _ in 0..3 {
        lossy.broken.send_replace(());
        let has = async || one.locks().has(&held).await;
        until("it is had again", async || has().await.is_ok()).await;
        assert!(has().await.unwrap(), "nobody else has had it");
        assert!(other.locks().try_lock("a".into()).await.unwrap().is_none());
    }
    assert_eq!(one.worker(), worker, "it is the process that it was");
    drop(held);
    drop(other.locks().lock("a".into()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_whose_process_is_taken_for_dead_stops_before_its_next_call() {
    let scene = Scene::new().await;
    let server = scene.servers().await[0];
    let (one, other) = (scene.process().await, scene.process().await);
    scene.sim.control("latency attach 700").unwrap();
    let service = Arc::clone(&one.service);
    let attach = one.runtime.as_ref().unwrap();
    let attach = attach.spawn(async move {
        let worker = service.store.worker();
        service.as_process(worker, service.attach(request(server, "any", 3))).await
    });
    until("the second is being plugged", async || scene.plugged().await == 1).await;
    let mut database = PgConnection::connect(&scene.database).await.unwrap();
    let worker = one.service.store.worker().unwrap();
    sqlx::query("DELETE FROM processes WHERE id = $1").bind(&*worker).execute(&mut database).await.unwrap();
    let refused = attach.await.unwrap().unwrap_err();
    assert!(matches!(refused, Error::TakenOver), "{refused}");
    // The third was not plugged, and what was is taken back by whoever sees it first.
    scene.sim.control("latency attach 1").unwrap();
    until("nothing is plugged", async || scene.plugged().await == 0).await;
    for process in [&one, &other] {
        process.all_free().await;
    }
    until("it is on record again", async || one.service.store.worker().as_ref() != Some(&worker)).await;
    let row = one.attach(server, 1).await.unwrap().remove(0);
    other.detach(server, row.id).await.unwrap();
}
