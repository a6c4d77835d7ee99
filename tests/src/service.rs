//! A service in a process of its own, with its database, its log and its simulated host.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use sqlx::{Connection as _, Executor as _, SqliteConnection};

use crate::{Api, binary, host};

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

/// A running service on a simulated host, with a database of its own.
pub struct Hotslot {
    dir: tempfile::TempDir,
    binary: PathBuf,
    child: Child,
    api: Api,
    tls: Option<ClientConfig>,
    /// The length of the part of the log that was taken, in bytes.
    log_taken: AtomicUsize,
    started_in: Duration,
    ready_in: Duration,
}

impl std::ops::Deref for Hotslot {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
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
    /// Serves a copy of the named simulated host, and waits until the service is ready.
    pub async fn on(name: &str) -> Self {
        Self::with(&host(name), "").await
    }

    /// Serves a copy of a simulated host, with additional configuration before the usual one.
    pub async fn with(host: &Path, config: &str) -> Self {
        Self::serving(host, &format!("{config}\n{PCI}"), |_| ()).await
    }

    /// Serves a copy of a simulated host that `change` has modified, with its own `[pci]`.
    pub async fn bare(host: &Path, pci: &str, change: impl FnOnce(&Path)) -> Self {
        Self::serving(host, pci, change).await
    }

    /// Serves several simulated hosts, `host0` and so on, which `make` writes into directories of these names.
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

    /// Serves the hosts of a configuration, with a given binary and time limit. Does not wait until the service is
    /// ready.
    pub fn of(binary: &Path, config: &str, patience: Duration) -> Self {
        let mut service = Self::launch(binary.to_owned(), tempfile::tempdir().expect("a directory"), config);
        service.api = service.api.patient(patience);
        service
    }

    fn launch(binary: PathBuf, dir: tempfile::TempDir, config: &str) -> Self {
        // Tests send requests as fast as they can. Every client is the administrator, unless the configuration has another
        // way to identify callers.
        let insecure = !config.contains("[identity.keystone]");
        let config = format!(
            "{config}\n[api]\nrate = 0\nlisten = \"127.0.0.1:0\"\ninsecure_tcp = {insecure}\n[database]\nurl = \"sqlite://{}/hotslot.db\"\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("hotslot.toml"), config).expect("write the configuration");
        let start = Instant::now();
        let (child, url) = serve(Command::new(&binary), dir.path());
        let (started_in, log_taken) = (start.elapsed(), AtomicUsize::new(0));
        Self { dir, binary, child, api: Api::at(url), tls: None, log_taken, started_in, ready_in: started_in }
    }

    /// Restarts the service on another, empty database.
    pub async fn moved_to(mut self, url: &str) -> Self {
        self.kill();
        self.reconfigure(&format!("sqlite://{}", self.database().display()), url);
        self.start_again().await;
        self
    }

    /// Starts another process with the same configuration: the same hosts and the same database, which must not be a
    /// file.
    pub async fn beside(&self) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::copy(self.dir.path().join("hotslot.toml"), dir.path().join("hotslot.toml"))
            .expect("copy a file");
        let (binary, start) = (self.binary.clone(), Instant::now());
        let (child, url) = serve(Command::new(&binary), dir.path());
        let (started_in, log_taken) = (start.elapsed(), AtomicUsize::new(0));
        let mut service = Self {
            dir,
            binary,
            child,
            api: Api::at(url),
            tls: None,
            log_taken,
            started_in,
            ready_in: started_in,
        };
        service.ready().await;
        service.ready_in = start.elapsed();
        service
    }

    /// Sends a signal to the process: `STOP`, `CONT` or `TERM`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.pid().to_string()]).status();
        assert!(sent.expect("kill").success(), "{signal}");
    }

    /// How long the process took to listen.
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// How long it took until the records agreed with all hosts.
    pub fn ready_in(&self) -> Duration {
        self.ready_in
    }

    /// The process id of the service.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file of the database.
    pub fn database(&self) -> PathBuf {
        self.dir.path().join("hotslot.db")
    }

    /// Executes a statement on the SQLite database directly.
    pub async fn in_the_database(&self, line: &'static str) {
        let url = format!("sqlite://{}", self.database().display());
        let mut db = SqliteConnection::connect(&url).await.expect("the database");
        db.execute(line).await.expect("a statement");
    }

    /// The directory of the simulated host.
    pub fn host_dir(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    /// Returns the vGPU types of the VFs of the simulated host, by address.
    pub fn vgpu_types(&self) -> BTreeMap<String, String> {
        let files = std::fs::read_dir(self.host_dir().join("vgpu")).into_iter().flatten().flatten();
        let of = |path: PathBuf| {
            let vf = path.file_name()?.to_str()?.strip_suffix(".type")?.to_owned();
            Some((vf, std::fs::read_to_string(path).ok()?))
        };
        files.filter_map(|file| of(file.path())).collect()
    }

    /// Returns the log of the service. Everything that the service logged before it answered is in it.
    pub fn log(&self) -> String {
        self.log_from(0)
    }

    /// Returns the log from a byte offset on.
    pub fn log_from(&self, start: usize) -> String {
        let log = log_in(self.dir.path());
        log[self.log_taken.load(Ordering::Relaxed) + start..].to_owned()
    }

    /// Returns the log. The next call does not return this part again.
    pub fn take_log(&self) -> String {
        let log = self.log();
        self.log_taken.fetch_add(log.len(), Ordering::Relaxed);
        log
    }

    /// The length of the log in bytes.
    pub fn log_length(&self) -> usize {
        self.log().len()
    }

    /// Sends a command to the simulated host, for example an event or a fault.
    pub fn sim(&self, line: &str) {
        let answer = hotslot_driver::sim::control(&self.host_dir(), line).expect("the host's control socket");
        assert_eq!(answer, "ok", "{line}");
    }

    /// Kills the service as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill the service");
        self.child.wait().expect("wait for the service");
    }

    /// Replaces a text in the configuration file, which is read at the next start.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let file = self.dir.path().join("hotslot.toml");
        let config = std::fs::read_to_string(&file).expect("the configuration");
        assert!(config.contains(from), "{from}");
        std::fs::write(file, config.replace(from, to)).expect("write the configuration");
    }

    /// Limits the size of the files that the process writes; `None` removes the limit.
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

    /// Returns the exit code of a process that has exited.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().expect("the state of the service").and_then(|status| status.code())
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the state of the service").is_some()
    }

    /// Waits until the process has ended, for at most `patience`, and returns whether it has.
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

    /// Connects with these settings of TLS from the next start on.
    pub fn connect_with(&mut self, tls: ClientConfig) {
        self.tls = Some(tls);
    }

    /// Starts the service again with the same data, and waits until it is ready.
    pub async fn start_again(&mut self) {
        self.start_by(Command::new(&self.binary)).await;
    }

    /// Starts the service again with the same data, and does not wait until it is ready.
    pub fn start_again_unready(&mut self) {
        self.launch_again(Command::new(&self.binary));
    }

    /// Starts the service again from a shell that runs a command first.
    pub async fn start_again_after(&mut self, shell: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{shell}; exec \"$0\" \"$@\"")]).arg(&self.binary);
        self.start_by(command).await;
    }

    async fn start_by(&mut self, command: Command) {
        self.launch_again(command);
        self.ready().await;
    }

    fn launch_again(&mut self, command: Command) {
        let (child, url) = serve(command, self.dir.path());
        let api = Api::with_tls(url, self.tls.clone());
        (self.child, self.api) = (child, api.patient(self.api.patience));
    }

    /// Returns the user aliases in the documents of the simulated host, live and persistent.
    pub fn plugged(&self) -> Vec<String> {
        let documents = self.documents();
        documents.split("ua-").skip(1).filter_map(|rest| rest.get(..36)).map(str::to_owned).collect()
    }

    /// Returns the documents of the simulated host, live and persistent, concatenated.
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

    /// Fails the test unless nothing is allocated or plugged, and every host driver is bound again.
    pub async fn expect_clean(&self) {
        self.api.expect_clean().await;
        assert_eq!(self.plugged(), Vec::<String>::new());
    }
}

/// The log of the service is a file: a test that has an answer sees each line that the service wrote before it.
fn log_in(dir: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(dir.join("hotslot.log")).expect("the log")).into_owned()
}

fn serve(mut command: Command, dir: &Path) -> (Child, String) {
    let log = File::options().append(true).create(true).open(dir.join("hotslot.log")).expect("the log");
    let start = log.metadata().expect("the log").len() as usize;
    let mut child = command
        .args(["serve", "--config"])
        .arg(dir.join("hotslot.toml"))
        .env(
            "HOTSLOT_LOG",
            "hotslot=debug,hotslot_api=debug,hotslot_service=debug,hotslot_store=debug,hotslot_driver=debug",
        )
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("start the service");
    loop {
        let ended = child.try_wait().expect("the state of the service").is_some();
        let log = log_in(dir);
        let url = log[start..].lines().find_map(|line| line.split_once("listening on "));
        // A line of JSON goes on after the message.
        if let Some((_, url)) = url.filter(|_| log.ends_with('\n')) {
            return (child, url.split('"').next().unwrap_or(url).trim().to_owned());
        }
        assert!(!ended, "it ended:\n{log}");
        std::thread::sleep(Duration::from_millis(2));
    }
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
