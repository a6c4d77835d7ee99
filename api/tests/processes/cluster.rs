//! The simulated host, the database and the services that the tests use.

use std::future::IntoFuture as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use hotslot_api::http;
use hotslot_driver::hypervisor::Hypervisor;
use hotslot_driver::sim::Sim;
use hotslot_model::assignment::Attachment;
use hotslot_model::device::DeviceStatus;
use hotslot_model::id::{AttachmentId, ServerId};
use hotslot_model::identity::Peer;
use hotslot_model::rules::AliasRequest;
use hotslot_service::assignment::{AttachRequest, DetachRequest};
use hotslot_service::config::Config;
use hotslot_service::error::Error;
use hotslot_service::service::Service;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use crate::postgres;

/// How long the tests wait for something. It takes a few seconds at most, and longer on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Five devices, each alone in its IOMMU group, with one alias for all.
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

/// The shared simulated host and the database.
pub(crate) struct Cluster {
    pub(crate) sim: Arc<Sim>,
    config: String,
    pub(crate) database: String,
    _dir: tempfile::TempDir,
}

impl Cluster {
    pub(crate) async fn new() -> Self {
        Self::with("", postgres::database().await)
    }

    /// Creates a scene with additional configuration and with a given database.
    pub(crate) fn with(more: &str, database: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/hosts/small"), dir.path());
        let sim = Sim::open(dir.path()).unwrap();
        let config = format!("{CONFIG}url = \"{database}\"\n{more}");
        Self { sim, config, database, _dir: dir }
    }

    pub(crate) async fn process(&self) -> Process {
        let config = Config::parse(&self.config).unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sim = Arc::clone(&self.sim);
        let open = move |_: &_, _: &_| Ok(Arc::clone(&sim) as Arc<dyn Hypervisor>);
        let service = runtime.spawn(Service::start_on(config, open)).await.unwrap().unwrap();
        let process = Process { runtime: Some(runtime), service };
        process
            .run(async |service: Arc<Service>| service.hosts.iter().next().unwrap().ready().await.unwrap())
            .await;
        process
    }

    /// Returns the servers that are running and have free ports.
    pub(crate) async fn servers(&self) -> Vec<ServerId> {
        let mut domains = self.sim.domains().await.unwrap();
        domains.retain(|domain| ["q35", "i440fx"].contains(&domain.name.as_str()));
        domains.into_iter().map(|domain| ServerId(domain.uuid)).collect()
    }

    /// Returns the number of hotslot's devices in the running guests.
    pub(crate) async fn plugged(&self) -> usize {
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
pub(crate) struct Process {
    pub(crate) runtime: Option<Runtime>,
    pub(crate) service: Arc<Service>,
}

impl Process {
    /// Runs a future in the runtime of the process.
    pub(crate) async fn run<T, F>(&self, work: impl FnOnce(Arc<Service>) -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let runtime = self.runtime.as_ref().expect("it has died");
        runtime.spawn(work(Arc::clone(&self.service))).await.unwrap()
    }

    pub(crate) async fn attach(&self, server: ServerId, count: usize) -> Result<Vec<Attachment>, Error> {
        let request = request(server, "any", count);
        let attached = self.run(|service| async move { service.assignments.attach(request).await }).await?;
        Ok(attached.into_iter().map(|(attachment, _)| attachment).collect())
    }

    pub(crate) async fn detach(&self, server: ServerId, id: AttachmentId) -> Result<(), Error> {
        self.run(move |service| async move {
            match service.assignments.begin_detach(server, id, DetachRequest::default()).await? {
                Some(work) => work.await.unwrap(),
                None => Ok(()),
            }
        })
        .await
    }

    /// Serves the API, and returns its URL.
    pub(crate) async fn serve(&self) -> String {
        self.run(|service| async move {
            let owner = Peer::Unix { uid: nix::unistd::geteuid().as_raw(), gid: 0, pid: None };
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/v2/t", listener.local_addr().unwrap());
            tokio::spawn(axum::serve(listener, http::router(service).layer(Extension(owner))).into_future());
            url
        })
        .await
    }

    pub(crate) async fn attachments(&self) -> Vec<Attachment> {
        self.run(|service| async move { service.records.attachments().await.unwrap() }).await
    }

    pub(crate) fn statuses(&self) -> Vec<DeviceStatus> {
        self.service.records.devices().iter().map(|device| device.status).collect()
    }

    /// Waits until no device is allocated, in the memory of the process too.
    pub(crate) async fn all_free(&self) {
        until("all are free", async || self.statuses() == [DeviceStatus::Available; 5]).await;
        assert_eq!(self.attachments().await, []);
    }

    /// Ends the process at once.
    pub(crate) fn die(mut self) {
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

pub(crate) fn request(server: ServerId, alias: &str, count: usize) -> AttachRequest {
    AttachRequest {
        server,
        aliases: vec![AliasRequest { name: alias.into(), count }],
        own: Vec::new(),
        persistent: true,
        whole_group: false,
        numa_policy: None,
        network: None,
        vgpu_type: None,
        key: None,
        owner: None,
        holder: None,
    }
}

/// Waits until a condition holds, and returns how long that took.
pub(crate) async fn until(what: &str, so: impl AsyncFn() -> bool) -> Duration {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < PATIENCE, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

pub(crate) fn client() -> reqwest::Client {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Sends an attach with an idempotency key, and returns its status and body.
pub(crate) async fn attach_once(url: String, server: ServerId, key: &'static str) -> (u16, Value) {
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "any:2" } });
    let post = client().post(format!("{url}/servers/{server}/os-pci_attachments"));
    let answer = post.header("idempotency-key", key).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}
