//! Black-box tests of hotslot: the real binary, served on a free port of loopback with a database and a copy of
//! a simulated host of its own, spoken to by HTTP.

pub mod lab;
pub mod link;
pub mod measure;
pub mod oracle;
pub mod postgres;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, SqliteConnection};

/// The guest `q35` of the simulated host `small`: it runs, with free root ports.
pub const Q35: &str = "10000000-0000-4000-8000-000000000001";
/// The guest `switch`: it is shut off.
pub const SWITCH: &str = "10000000-0000-4000-8000-000000000003";
/// The guest `i440fx`: it runs.
pub const I440FX: &str = "10000000-0000-4000-8000-000000000005";
/// The guest `full`: it runs, with no free hot-plug port.
pub const FULL: &str = "10000000-0000-4000-8000-000000000006";

/// How long anything may take on a simulated host that ought to happen by itself.
const PATIENCE: Duration = Duration::from_secs(20);

const PCI: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086"}', '{"vendor_id": "1234"}', '{"vendor_id": "1b36", "product_id": "0010"}']
alias = [
  '{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}',
  '{"name": "pf", "vendor_id": "8086", "product_id": "10c9", "device_type": "type-PF"}',
  '{"name": "e1000e", "vendor_id": "8086", "product_id": "10d3"}',
  '{"name": "e1000", "vendor_id": "8086", "product_id": "100e"}',
  '{"name": "edu", "vendor_id": "1234", "product_id": "11e8"}',
  '{"name": "nic", "vendor_id": "8086", "product_id": "10ca"}',
  '{"name": "nic", "vendor_id": "8086", "product_id": "10d3"}',
]
"#;

const HOST: &str = r#"
[detach]
attempts = 2
timeout = 0.4
[[hypervisor]]
name = "node1"
"#;

/// A service, as its callers see it.
#[derive(Debug, Clone)]
pub struct Api {
    url: String,
    client: reqwest::Client,
    patience: Duration,
}

/// A service on a simulated host, with a database of its own.
pub struct Hotslot {
    dir: tempfile::TempDir,
    binary: PathBuf,
    child: Child,
    api: Api,
    log: Arc<Mutex<String>>,
    started_in: Duration,
    ready_in: Duration,
}

impl std::ops::Deref for Hotslot {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

/// What the service answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body; null when it is empty.
    pub body: Value,
    /// `Retry-After`.
    pub retry_after: Option<String>,
    /// `Location`.
    pub location: Option<String>,
    /// `ETag`.
    pub etag: Option<String>,
    /// All headers.
    pub headers: reqwest::header::HeaderMap,
}

impl Answer {
    /// The message of a fault.
    pub fn message(&self) -> &str {
        self.body.as_object().and_then(|fault| fault.values().next()?["message"].as_str()).unwrap_or_default()
    }

    /// What Cyborg's form of a fault says: a JSON document as a string.
    pub fn fault_string(&self) -> String {
        let text = self.body["error_message"].as_str().expect("an error_message");
        let fault: Value = serde_json::from_str(text).expect("JSON in the error_message");
        fault["faultstring"].as_str().expect("a faultstring").to_owned()
    }

    /// Fails the test unless the status is the one expected.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:#}", self.body);
        self
    }
}

/// The binary that `cargo build` made beside the tests.
pub fn binary() -> PathBuf {
    let tests = std::env::current_exe().expect("the path of the tests");
    // Tests lie one directory below it, programs beside it.
    let beside = tests.ancestors().skip(1).take(2).map(|directory| directory.join("hotslot"));
    let binary = beside.filter(|binary| binary.exists()).last().unwrap_or_else(|| "hotslot".into());
    assert!(binary.exists(), "{} is missing: run `cargo build -p hotslot` first", binary.display());
    binary
}

/// A simulated host among the test data.
pub fn host(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/hosts").join(name)
}

/// Takes away what somebody has made of the GPU of a copy of the simulated host `accelerators`: it is whole then.
pub fn without_mdevs(host: &Path) {
    let mdev = "devices/mdev_b4a1f2c0_0a3b_4b0e_9d0c_3f1d2f7c5a11_0000_41_00_0.xml";
    std::fs::remove_file(host.join(mdev)).expect("the file of a mediated device");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("make a directory");
    for entry in std::fs::read_dir(from).expect("read test data").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy a file");
        }
    }
}

impl Hotslot {
    /// Serves a copy of the simulated host of that name, and waits until it is ready.
    pub async fn on(name: &str) -> Self {
        Self::with(&host(name), "").await
    }

    /// Serves a copy of a simulated host, with something before the usual configuration.
    pub async fn with(host: &Path, config: &str) -> Self {
        Self::serving(host, &format!("{config}\n{PCI}"), |_| ()).await
    }

    /// Serves a copy of a simulated host that something is done to before, with its own `[pci]`.
    pub async fn bare(host: &Path, pci: &str, change: impl FnOnce(&Path)) -> Self {
        Self::serving(host, pci, change).await
    }

    /// Serves many simulated hosts, `host0` and so on, that `make` writes into directories of their names.
    pub async fn many(hosts: usize, config: &str, make: impl Fn(usize, &Path)) -> Self {
        let mut all = String::new();
        let dir = tempfile::tempdir().expect("a directory");
        for number in 0..hosts {
            let host = dir.path().join(format!("host{number}"));
            make(number, &host);
            all += &format!("[[hypervisor]]\nname = \"host{number}\"\nuri = \"sim://{}\"\n", host.display());
        }
        Self::begin(dir, &format!("{config}\n{all}")).await
    }

    async fn serving(host: &Path, config: &str, change: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        copy(host, &dir.path().join("host"));
        change(&dir.path().join("host"));
        let config = format!("{config}\n{HOST}uri = \"sim://{}/host\"\n", dir.path().display());
        Self::begin(dir, &config).await
    }

    async fn begin(dir: tempfile::TempDir, config: &str) -> Self {
        let start = Instant::now();
        let mut service = Self::launch(binary(), dir, config);
        service.ready().await;
        service.ready_in = start.elapsed();
        service
    }

    /// Serves whatever hosts a configuration names, with a binary and a patience of the caller's; does not wait until
    /// it is ready.
    pub fn of(binary: &Path, config: &str, patience: Duration) -> Self {
        let mut service = Self::launch(binary.to_owned(), tempfile::tempdir().expect("a directory"), config);
        service.api = service.api.patient(patience);
        service
    }

    fn launch(binary: PathBuf, dir: tempfile::TempDir, config: &str) -> Self {
        let config = format!(
            "{config}\n[api]\nlisten = \"127.0.0.1:0\"\n[database]\nurl = \"sqlite://{}/hotslot.db\"\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("hotslot.toml"), config).expect("write the configuration");
        let log = Arc::default();
        let start = Instant::now();
        let (child, url) = serve(Command::new(&binary), dir.path(), &log);
        let started_in = start.elapsed();
        Self { dir, binary, child, api: Api::at(url), log, started_in, ready_in: started_in }
    }

    /// The same, on another database, which is empty.
    pub async fn moved_to(mut self, url: &str) -> Self {
        self.kill();
        self.reconfigure(&format!("sqlite://{}", self.database().display()), url);
        self.start_again().await;
        self
    }

    /// Another process with the same configuration: on the same hosts, and the same database, which is not a file.
    pub async fn beside(&self) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::copy(self.dir.path().join("hotslot.toml"), dir.path().join("hotslot.toml"))
            .expect("copy a file");
        let (binary, log, start) = (self.binary.clone(), Arc::default(), Instant::now());
        let (child, url) = serve(Command::new(&binary), dir.path(), &log);
        let started_in = start.elapsed();
        let mut service =
            Self { dir, binary, child, api: Api::at(url), log, started_in, ready_in: started_in };
        service.ready().await;
        service.ready_in = start.elapsed();
        service
    }

    /// Sends its process a signal: `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.pid().to_string()]).status();
        assert!(sent.expect("kill").success(), "{signal}");
    }

    /// How long it took from the start of its process until it listened.
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// How long it took until its records agreed with all hosts.
    pub fn ready_in(&self) -> Duration {
        self.ready_in
    }

    /// The service's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file of the database.
    pub fn database(&self) -> PathBuf {
        self.dir.path().join("hotslot.db")
    }

    /// Writes into the database by itself, as no request would.
    pub async fn in_the_database(&self, line: &'static str) {
        let url = format!("sqlite://{}", self.database().display());
        let mut db = SqliteConnection::connect(&url).await.expect("the database");
        db.execute(line).await.expect("a statement");
    }

    /// The directory of the simulated host.
    pub fn host_dir(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    /// What the service wrote to its log.
    pub fn log(&self) -> String {
        self.log_from(0)
    }

    /// What it wrote after so many bytes.
    pub fn log_from(&self, start: usize) -> String {
        self.log.lock().expect("the log")[start..].to_owned()
    }

    /// What it wrote since this was last asked for, which is then forgotten.
    pub fn take_log(&self) -> String {
        std::mem::take(&mut self.log.lock().expect("the log"))
    }

    /// The bytes that it wrote.
    pub fn log_length(&self) -> usize {
        self.log.lock().expect("the log").len()
    }

    /// Makes something happen on the simulated host.
    pub fn sim(&self, line: &str) {
        let answer = hotslot_driver::sim::control(&self.host_dir(), line).expect("the host's control socket");
        assert_eq!(answer, "ok", "{line}");
    }

    /// Kills the service as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill the service");
        self.child.wait().expect("wait for the service");
    }

    /// Changes a text of its configuration file, which it reads when it is started again.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let file = self.dir.path().join("hotslot.toml");
        let config = std::fs::read_to_string(&file).expect("the configuration");
        assert!(config.contains(from), "{from}");
        std::fs::write(file, config.replace(from, to)).expect("write the configuration");
    }

    /// Lets no file that it writes become longer than so many bytes, or as long as the system lets it.
    pub fn limit_files(&mut self, bytes: Option<u64>) {
        let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        if self.has_ended() {
            return;
        }
        let limited = Command::new("prlimit")
            .args(["--pid", &self.pid().to_string(), &format!("--fsize={limit}:unlimited")])
            .status()
            .expect("prlimit");
        assert!(limited.success() || self.has_ended(), "prlimit: {limited}");
    }

    /// The exit code with which it ended by itself.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().expect("the state of the service").and_then(|status| status.code())
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the state of the service").is_some()
    }

    /// Whether it ended by itself; waits for that at most so long.
    pub async fn ended(&mut self, patience: Duration) -> bool {
        let start = Instant::now();
        loop {
            if self.has_ended() {
                return true;
            }
            if start.elapsed() >= patience {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Starts it again on what it left behind, and waits until it is ready.
    pub async fn start_again(&mut self) {
        self.start_by(Command::new(&self.binary)).await;
    }

    /// Starts it again from a shell, after something that the shell does before.
    pub async fn start_again_after(&mut self, shell: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{shell}; exec \"$0\" \"$@\"")]).arg(&self.binary);
        self.start_by(command).await;
    }

    async fn start_by(&mut self, command: Command) {
        let (child, url) = serve(command, self.dir.path(), &self.log);
        (self.child, self.api) = (child, Api::at(url).patient(self.api.patience));
        self.ready().await;
    }

    /// The user aliases in the documents that the simulated host keeps, live and persistent.
    pub fn plugged(&self) -> Vec<String> {
        let documents = self.documents();
        documents.split("ua-").skip(1).filter_map(|rest| rest.get(..36)).map(str::to_owned).collect()
    }

    /// The documents that the simulated host keeps, live and persistent, one after the other.
    pub fn documents(&self) -> String {
        let state = self.host_dir().join("state");
        let mut text = String::new();
        let mut folders = vec![state];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    text.push_str(&std::fs::read_to_string(entry.path()).unwrap_or_default());
                }
            }
        }
        text
    }

    /// Fails the test unless nothing is promised, nothing is plugged, and every host driver is back.
    pub async fn expect_clean(&self) {
        self.api.expect_clean().await;
        assert_eq!(self.plugged(), Vec::<String>::new());
    }
}

impl Api {
    /// The service at a URL, or at a socket: `unix:/path`.
    pub fn at(url: String) -> Self {
        // A test that blocks its thread for a while does not see that the service has closed an idle connection, and a
        // request on such a connection has no answer: idle connections are not used again after some seconds.
        let builder = reqwest::Client::builder().no_proxy().pool_idle_timeout(Duration::from_secs(3));
        let (builder, url) = match url.strip_prefix("unix:") {
            Some(path) => (builder.unix_socket(path), "http://localhost".to_owned()),
            None => (builder, url),
        };
        Self { url, client: builder.build().expect("a client"), patience: PATIENCE }
    }

    /// With another limit for what ought to happen by itself.
    pub fn patient(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        self.until("the service is ready", async || self.get("/readyz").await.status == 200).await;
    }

    /// Waits until something is so, and fails the test when it does not come to be.
    pub async fn until(&self, what: &str, so: impl AsyncFn() -> bool) {
        let start = Instant::now();
        while !so().await {
            assert!(start.elapsed() < self.patience, "it never came: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a request.
    pub async fn send(&self, method: Method, path: &str, body: Option<(&str, String)>) -> Answer {
        self.sent(method, path, body).await.expect("an answer")
    }

    /// Sends a request; none when nobody answers.
    pub async fn try_send(&self, method: Method, path: &str, body: Option<(&str, String)>) -> Option<Answer> {
        self.sent(method, path, body).await.ok()
    }

    async fn sent(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, String)>,
    ) -> Result<Answer, reqwest::Error> {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some((kind, body)) = body {
            request = request.header("content-type", kind).body(body);
        }
        self.answer(path, request).await
    }

    /// Sends a request with headers. A body is JSON when they do not say what it is.
    pub async fn send_with(
        &self,
        method: Method,
        path: &str,
        headers: impl IntoIterator<Item = (String, String)>,
        body: Option<String>,
    ) -> Answer {
        let request = self.client.request(method, format!("{}{path}", self.url));
        let headers: Vec<_> = headers.into_iter().collect();
        let typed = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        let json =
            (body.is_some() && !typed).then(|| ("content-type".to_owned(), "application/json".to_owned()));
        let headers = headers.into_iter().chain(json);
        let request = body.into_iter().fold(request, |request, body| request.body(body));
        let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        self.answer(path, request).await.expect("an answer")
    }

    async fn answer(&self, path: &str, request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
        let response = request.send().await?;
        let status = response.status().as_u16();
        let header =
            |name: &str| response.headers().get(name).map(|value| value.to_str().expect("a text").to_owned());
        let (retry_after, location, etag) = (header("retry-after"), header("location"), header("etag"));
        let headers = response.headers().clone();
        let text = response.text().await?;
        let body = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
        };
        Ok(Answer { status, body, retry_after, location, etag, headers })
    }

    /// GET; none when nobody answers.
    pub async fn try_get(&self, path: &str) -> Option<Answer> {
        self.try_send(Method::GET, path, None).await
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    /// POST with a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(("application/json", body.to_string()))).await
    }

    /// POST with a JSON body and an idempotency key.
    pub async fn post_once(&self, path: &str, key: &str, body: &str) -> Answer {
        let request = self.client.post(format!("{}{path}", self.url)).header("idempotency-key", key);
        let request = request.header("content-type", "application/json").body(body.to_owned());
        self.answer(path, request).await.expect("an answer")
    }

    /// PUT with a JSON body.
    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, Some(("application/json", body.to_string()))).await
    }

    /// PUT with a JSON body, over what has this tag.
    pub async fn put_if(&self, path: &str, tag: &str, body: Value) -> Answer {
        let request = self.client.put(format!("{}{path}", self.url)).header("if-match", tag);
        let request = request.header("content-type", "application/json").body(body.to_string());
        self.answer(path, request).await.expect("an answer")
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None).await
    }

    /// Asks for devices by alias.
    pub async fn attach(&self, server: &str, aliases: &str) -> Answer {
        self.post(&attachments(server), json!({ "pciAttachment": { "pci_passthrough:alias": aliases } }))
            .await
    }

    /// The server's attachments.
    pub async fn attachments(&self, server: &str) -> Vec<Value> {
        let answer = self.get(&attachments(server)).await.expect(200);
        answer.body["pciAttachment"].as_array().expect("a list").clone()
    }

    /// The status of each device of the table, by address.
    pub async fn device(&self, address: &str) -> Value {
        let devices = self.get("/v2/t/os-pci/detail").await.expect(200);
        let devices = devices.body["pci_devices"].as_array().expect("a list").clone();
        devices.into_iter().find(|device| device["address"] == address).unwrap_or(Value::Null)
    }

    /// Every PCI function of the first host, by address.
    pub async fn functions(&self) -> serde_json::Map<String, Value> {
        let functions = self.get("/v2/t/os-hypervisors/1/pci_devices").await.expect(200);
        let functions = functions.body["pci_devices"].as_array().expect("a list").clone();
        let address = |function: &Value| function["address"].as_str().expect("a text").to_owned();
        functions.into_iter().map(|function| (address(&function), function)).collect()
    }

    /// Fails the test unless nothing is promised and every host driver is back.
    pub async fn expect_clean(&self) {
        let all = self.get("/v2/t/os-pci_attachments").await.expect(200);
        assert_eq!(all.body["pciAttachment"], json!([]));
        let devices = self.get("/v2/t/os-pci/detail").await.expect(200);
        for device in devices.body["pci_devices"].as_array().expect("a list") {
            assert_eq!(device["status"], "available", "{device}");
            assert_eq!(device["instance_uuid"], Value::Null, "{device}");
        }
        for function in self.functions().await.values() {
            assert_ne!(function["driver"], "vfio-pci", "{function}");
        }
    }
}

/// The path of a server's attachments under v2.
pub fn attachments(server: &str) -> String {
    format!("/v2/t/servers/{server}/os-pci_attachments")
}

/// The path of an attachment, as the API shows it, under v2.
pub fn path(attachment: &Value) -> String {
    let text = |key: &str| attachment[key].as_str().expect("a text").to_owned();
    format!("{}/{}", attachments(&text("serverId")), text("attachment_id"))
}

fn serve(mut command: Command, dir: &Path, log: &Arc<Mutex<String>>) -> (Child, String) {
    let mut child = command
        .args(["serve", "--config"])
        .arg(dir.join("hotslot.toml"))
        .env(
            "HOTSLOT_LOG",
            "hotslot=debug,hotslot_api=debug,hotslot_service=debug,hotslot_store=debug,hotslot_driver=debug",
        )
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the service");
    let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
    let mut url = None;
    while url.is_none() {
        let Some(line) = lines.next() else { panic!("it ended:\n{}", log.lock().expect("the log")) };
        let line = line.expect("a line");
        url = line.split_once("listening on ").map(|(_, url)| url.trim().to_owned());
        log.lock().expect("the log").push_str(&format!("{line}\n"));
    }
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            log.lock().expect("the log").push_str(&format!("{line}\n"));
        }
    });
    (child, url.expect("a URL"))
}

impl Drop for Hotslot {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("the service's log:\n{log}");
        } else {
            assert!(!log.contains("panicked"), "the service panicked:\n{log}");
        }
    }
}
