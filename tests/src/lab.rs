//! The lab of `vagrant/`, with a service in its VM that each test configures and starts. It runs under the unit of
//! `packaging/`, as user `hotslot`, and is reached over a port of this machine's loopback that is forwarded to its socket.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{Answer, Api, attachments, path};

/// The guests of the lab, by name.
const GUESTS: [(&str, &str); 6] = [
    ("q35", "10000000-0000-4000-8000-000000000001"),
    ("q35b", "10000000-0000-4000-8000-000000000002"),
    ("switch", "10000000-0000-4000-8000-000000000003"),
    ("pxb", "10000000-0000-4000-8000-000000000004"),
    ("i440fx", "10000000-0000-4000-8000-000000000005"),
    ("full", "10000000-0000-4000-8000-000000000006"),
];

/// The port of this machine that is forwarded to the service in the VM. Each flavour of the lab has its own.
fn port() -> u16 {
    if std::env::var_os("HOTSLOT_LAB_FLAVOUR").is_some_and(|flavour| flavour == "next") {
        19775
    } else {
        19774
    }
}

/// The time limit for effects in the lab: the guests are VMs in a VM, emulated on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The configuration of the service in the lab.
pub const CONFIG: &str = r#"
[pci]
device_spec = [
  '{"vendor_id": "8086", "product_id": "10ca"}',
  '{"vendor_id": "8086", "product_id": "10c9"}',
  '{"vendor_id": "8086", "product_id": "10d3"}',
  '{"vendor_id": "8086", "product_id": "100e"}',
  '{"vendor_id": "1b36", "product_id": "0010"}',
  '{"vendor_id": "1234", "product_id": "11e8"}',
]
alias = [
  '{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}',
  '{"name": "e1000e", "vendor_id": "8086", "product_id": "10d3"}',
  '{"name": "nvme", "vendor_id": "1b36", "product_id": "0010", "device_type": "type-PCI"}',
  '{"name": "edu", "vendor_id": "1234", "product_id": "11e8"}',
]
[detach]
attempts = 8
timeout = 12
[[hypervisor]]
name = "lab"
uri = "qemu:///system"
"#;

/// The lab with a new service in it.
pub struct Lab {
    /// The API of the service.
    pub api: Api,
}

impl std::ops::Deref for Lab {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

/// A script that waits in the database for an attachment in the state of its first argument, and then runs its second
/// argument.
const ONCE: &str = r#"
import sqlite3, subprocess, sys, time
db = sqlite3.connect("file:/var/lib/hotslot/hotslot.db?mode=ro", uri=True, timeout=10)
open("/run/watching", "w").close()
while not db.execute("SELECT 1 FROM attachments WHERE state = ?", sys.argv[1:2]).fetchone():
    time.sleep(0.005)
subprocess.run(sys.argv[2], shell=True, check=True)
open("/run/hit", "w").close()
"#;

/// A task that sends requests to the API continuously.
pub struct Watch {
    end: oneshot::Sender<()>,
    task: JoinHandle<Duration>,
}

impl Watch {
    /// Ends the task, and returns the longest response time. The test fails when a request was not answered.
    pub async fn longest(self) -> Duration {
        let _ = self.end.send(()); // gone: the task says why
        self.task.await.expect("every answer")
    }
}

/// The program that runs in the lab: the file that the environment variable `BINARY` names, relative to the top of the
/// repository, or the release.
pub fn program() -> PathBuf {
    let binary = std::env::var_os("BINARY").unwrap_or_else(|| "target/release/hotslot".into());
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(binary)
}

/// Returns a value of the file in which `vagrant/up` describes how to reach the VM.
pub fn environment(key: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vagrant/.lab/env");
    let text = std::fs::read_to_string(file).expect("the lab is up");
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.expect("a key of the file").to_owned()
}

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../vagrant").join(name))
}

fn run(mut command: Command) -> Output {
    let output = command.output().expect("run a script of the lab");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

impl Lab {
    /// Resets the lab, and starts a service with an empty database in it.
    pub async fn fresh() -> Self {
        Self::with(CONFIG).await
    }

    /// Like [`fresh`](Self::fresh), with another configuration.
    pub async fn with(config: &str) -> Self {
        let lab = Self::idle();
        let config = config.replace('\'', r"'\''");
        lab.sh(&format!(
            "cd /etc/hotslot; rm -rf /var/lib/hotslot; printf '%s' '{config}' >hotslot.toml; \
             chmod 600 hotslot.toml; chown hotslot: hotslot.toml"
        ));
        lab.put(&program(), "/usr/bin/hotslot");
        lab.forward(port(), "/run/hotslot/api.sock");
        lab.serve().await;
        lab
    }

    /// Resets the lab without starting a service in it.
    pub fn idle() -> Self {
        run(script("reset"));
        Self { api: Api::at(format!("http://127.0.0.1:{}", port())).patient(PATIENCE) }
    }

    /// Copies a file or a directory into the VM.
    pub fn put(&self, from: &Path, to: &str) {
        let mut put = script("put");
        put.arg(from).arg(to);
        run(put);
    }

    /// Forwards a port of this machine's loopback to a port of the VM's loopback, or to a unix socket in the VM.
    pub fn forward(&self, here: u16, there: &str) {
        let mut forward = script("forward");
        forward.args([&here.to_string(), there]);
        run(forward);
    }

    /// Sends a command to the monitor of the VM's own QEMU, and returns its answer.
    pub fn monitor(&self, command: &str) -> String {
        let mut monitor = script("monitor");
        monitor.arg(command);
        String::from_utf8_lossy(&run(monitor).stdout).into_owned()
    }

    /// Runs a shell command in the VM, and returns its output.
    pub fn sh(&self, line: &str) -> String {
        sh(line)
    }

    /// Starts the service in the VM.
    pub async fn serve(&self) {
        self.sh("systemctl start hotslot || { journalctl -u hotslot --no-pager | tail -30 >&2; exit 1; }");
        self.until("the service answers", async || {
            self.try_get("/readyz").await.is_some_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// Kills the service as `kill -9` does. systemd would start it again after some seconds, so the test forbids that.
    pub fn stop(&self) {
        self.sh(
            "systemctl kill -s KILL hotslot; systemctl stop hotslot; systemctl reset-failed hotslot || true",
        );
    }

    /// Reboots the VM, and waits until its libvirtd answers again. The service is not started.
    pub async fn reboot(&self) {
        const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.sh(BOOT);
        self.sh("setsid sh -c 'sleep 1; systemctl reboot' >/dev/null 2>&1 </dev/null & true");
        // The connection to the VM that has ended is noticed after a minute, and a boot takes another.
        let patient = self.api.patient(3 * PATIENCE);
        patient.until("the VM has rebooted", async || try_sh(BOOT).is_some_and(|now| now != before)).await;
        patient.until("libvirtd answers", async || try_sh("virsh -q uri").is_some()).await;
        self.forward(port(), "/run/hotslot/api.sock");
    }

    /// Attaches one device by alias.
    pub async fn attach_one(&self, guest: &str, alias: &str) -> Value {
        self.attach(id(guest), &format!("{alias}:1")).await.expect(200).body["pci_devices"][0].clone()
    }

    /// Attaches a device by an alias of one device and further keys of the request.
    pub async fn attach_with(&self, guest: &str, alias: &str, keys: Value) -> Answer {
        let mut body = json!({ "pci_passthrough:alias": format!("{alias}:1") });
        body.as_object_mut().expect("an object").extend(keys.as_object().expect("an object").clone());
        self.post(&attachments(id(guest)), json!({ "pciAttachment": body })).await
    }

    /// Detaches all devices of a guest.
    pub async fn detach_all(&self, guest: &str) {
        for row in self.attachments(id(guest)).await {
            self.detach(&row).await.expect(200);
        }
    }

    /// Puts another device, or another disk, in the place of the NVMe device of the lab. `commands` are those of the
    /// monitor of the VM's own QEMU that make it, and `driver` is the driver that the host's kernel gives it. Returns its
    /// address.
    pub async fn replace_nvme(&self, commands: &[Value], driver: &str) -> String {
        let address = self.sh("lab-devices nvme");
        self.monitor(r#"{"execute": "device_del", "arguments": {"id": "nvme0"}}"#);
        let there = format!("test -e /sys/bus/pci/devices/{address} && echo yes || echo no");
        self.until_sh("the old device is gone", &there, "no").await;
        for command in commands {
            self.monitor(&command.to_string());
        }
        let wanted = json!(address);
        self.until("the driver of the new device is bound", async || self.driver(&wanted) == driver).await;
        address
    }

    /// Detaches a device by v2, which waits until it is gone.
    pub async fn detach(&self, attachment: &Value) -> Answer {
        self.delete(&path(attachment)).await
    }

    /// Returns the functions that the guest sees: address, vendor:device and driver, one per line.
    pub fn lspci(&self, guest: &str) -> Vec<String> {
        self.sh(&format!("guest lspci {guest}")).lines().map(str::to_owned).collect()
    }

    /// Returns the host driver of a device.
    pub fn driver(&self, address: &Value) -> String {
        let address = address.as_str().expect("an address");
        self.sh(&format!(
            "basename $(readlink /sys/bus/pci/devices/{address}/driver) 2>/dev/null || echo none"
        ))
    }

    /// Fails the test unless hotslot left nothing behind: no record, no binding, and no alias in any document.
    pub async fn expect_nothing_left(&self) {
        self.expect_clean().await;
        let aliases = "for d in $(virsh -q list --all --name); do virsh dumpxml $d; virsh dumpxml --inactive $d; \
                       done | grep -c \"alias name='ua-\" || true";
        assert_eq!(self.sh(aliases), "0", "a domain document still has an alias");
    }

    /// Runs a shell command in the VM as soon as an attachment reaches a state. Returns when the watcher is running;
    /// [`hit`](Self::hit) waits for the command.
    pub async fn once(&self, state: &str, line: &str) {
        self.sh(&format!("rm -f /run/watching /run/hit; cat >/tmp/once.py <<'END'\n{ONCE}\nEND"));
        let line = line.replace('\'', r"'\''");
        self.sh(&format!(
            "setsid timeout 300 python3 /tmp/once.py {state} '{line}' >/tmp/once.log 2>&1 </dev/null & true"
        ));
        self.until_sh("the watcher is running", "ls /run/watching 2>/dev/null || true", "/run/watching")
            .await;
    }

    /// Waits until the command of [`once`](Self::once) has been run; fails the test when the state is not reached in time.
    pub async fn hit(&self) {
        self.until_sh("the attachment reached the state", "ls /run/hit 2>/dev/null || true", "/run/hit")
            .await;
    }

    /// Sends requests that the service answers from memory, until the watch is ended.
    pub fn watch(&self) -> Watch {
        let api = self.api.clone();
        let (end, mut ended) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while ended.try_recv().is_err() {
                for path in ["/healthz", "/v2/t/os-pci_attachments", "/v2/t/os-pci/detail"] {
                    let start = Instant::now();
                    api.get(path).await.expect(200);
                    longest = longest.max(start.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            longest
        });
        Watch { end, task }
    }

    /// Waits until the records of a guest, its documents and the host's drivers agree and nothing is in transition.
    /// Returns how long that took.
    pub async fn agreed(&self, guest: &str) -> Duration {
        let start = Instant::now();
        self.until("records, documents and drivers agree", async || self.agrees(id(guest)).await).await;
        start.elapsed()
    }

    async fn agrees(&self, server: &str) -> bool {
        if self.get("/readyz").await.status != 200
            || self.get("/v2/t/drift").await.expect(200).body["drift"] != json!([])
        {
            return false;
        }
        let rows = self.attachments(server).await;
        if rows.iter().any(|row| row["status"] != "attached") {
            return false;
        }
        let list = |prefix: &str, key: &str| {
            let mut all: Vec<_> =
                rows.iter().map(|row| format!("{prefix}{}", row[key].as_str().expect("a text"))).collect();
            all.sort();
            all.join("\n")
        };
        let aliases = list("ua-", "attachment_id");
        // A guest that is off has only one document.
        let [live, definition] = ["", "--inactive"]
            .map(|which| format!("virsh dumpxml {server} {which} | grep -o 'ua-[-0-9a-f]*' | sort"));
        let bound = if self.sh(&format!("virsh -q domstate {server}")) == "shut off" {
            String::new()
        } else {
            list("", "address")
        };
        let vfio = "ls -d /sys/bus/pci/drivers/vfio-pci/*:* 2>/dev/null | xargs -r -n 1 basename | sort";
        [(live, &aliases), (definition, &aliases), (vfio.to_owned(), &bound)]
            .iter()
            .all(|(line, wanted)| self.sh(&format!("{line} || true")) == **wanted)
    }

    /// Waits until a command in the VM prints a text.
    pub async fn until_sh(&self, what: &str, line: &str, wanted: &str) {
        self.until(what, async || self.sh(line) == wanted).await;
    }
}

/// Runs a shell command in the VM and returns its output, for values that the configuration of a service needs.
pub fn sh(line: &str) -> String {
    let mut command = script("ssh");
    command.arg(line);
    String::from_utf8(run(command).stdout).expect("text").trim_end().to_owned()
}

/// Runs a shell command in the VM; `None` when it fails or the VM does not answer.
fn try_sh(line: &str) -> Option<String> {
    let output = script("ssh").arg(line).output().expect("run a script of the lab");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Returns the UUID of a guest.
pub fn id(guest: &str) -> &'static str {
    GUESTS.iter().find(|(name, _)| *name == guest).expect("a guest of the lab").1
}
