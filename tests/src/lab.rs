//! The lab of `vagrant/`, with a service of the test's own in its VM, reached over a forwarded port of loopback.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::{Answer, Api, path};

/// The guests of the lab, by the name of their definition.
const GUESTS: [(&str, &str); 6] = [
    ("q35", "10000000-0000-4000-8000-000000000001"),
    ("q35b", "10000000-0000-4000-8000-000000000002"),
    ("switch", "10000000-0000-4000-8000-000000000003"),
    ("pxb", "10000000-0000-4000-8000-000000000004"),
    ("i440fx", "10000000-0000-4000-8000-000000000005"),
    ("full", "10000000-0000-4000-8000-000000000006"),
];

const PORT: u16 = 19774;

/// How long anything may take that ought to happen by itself: a VM within a VM, in software on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The service's configuration in the lab.
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
attempts = 3
timeout = 10
[[hypervisor]]
name = "lab"
uri = "qemu:///system"
"#;

/// The lab with a fresh service in it.
pub struct Lab {
    /// The service in it.
    pub api: Api,
}

impl std::ops::Deref for Lab {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
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
    /// Puts the lab into the state that tests start from, and a service with an empty database into it.
    pub async fn fresh() -> Self {
        Self::with(CONFIG).await
    }

    /// [`fresh`](Self::fresh), with another configuration.
    pub async fn with(config: &str) -> Self {
        let lab = Self { api: Api::at(format!("http://127.0.0.1:{PORT}")).patient(PATIENCE) };
        lab.stop();
        lab.sh("lab-reset");
        let config = config.replace('\'', r"'\''");
        lab.sh(&format!("rm -rf /var/lib/hotslot; printf '%s' '{config}' >/etc/hotslot.toml"));
        let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/hotslot");
        let mut put = script("put");
        put.arg(binary).arg("/usr/local/bin/hotslot");
        run(put);
        let mut forward = script("forward");
        forward.args([PORT.to_string(), "9774".into()]);
        run(forward);
        lab.serve().await;
        lab
    }

    /// Runs a line in the VM and returns what it printed.
    pub fn sh(&self, line: &str) -> String {
        sh(line)
    }

    /// Starts the service in the VM.
    pub async fn serve(&self) {
        self.sh(
            "setsid nohup hotslot serve --config /etc/hotslot.toml >>/var/log/hotslot.log 2>&1 </dev/null &",
        );
        self.until("the service answers", async || {
            self.try_get("/readyz").await.is_some_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// Kills it, as `kill -9` does; and stops the one that `make demo` left.
    pub fn stop(&self) {
        self.sh("systemctl stop hotslot 2>/dev/null; while pkill -9 -x hotslot; do sleep 0.1; done");
    }

    /// Attaches one device of an alias.
    pub async fn attach_one(&self, guest: &str, alias: &str) -> Value {
        self.attach(id(guest), &format!("{alias}:1")).await.expect(200).body["pci_devices"][0].clone()
    }

    /// Detaches, by v2: waits until it is gone.
    pub async fn detach(&self, attachment: &Value) -> Answer {
        self.delete(&path(attachment)).await
    }

    /// What the guest itself shows: address, vendor:device and driver, a line each.
    pub fn lspci(&self, guest: &str) -> Vec<String> {
        self.sh(&format!("guest lspci {guest}")).lines().map(str::to_owned).collect()
    }

    /// The host's driver of a device.
    pub fn driver(&self, address: &Value) -> String {
        let address = address.as_str().expect("an address");
        self.sh(&format!(
            "basename $(readlink /sys/bus/pci/devices/{address}/driver) 2>/dev/null || echo none"
        ))
    }

    /// Fails the test unless hotslot left nothing: no record, no binding, no alias in any document.
    pub async fn expect_nothing_left(&self) {
        self.expect_clean().await;
        let aliases = "for d in $(virsh -q list --all --name); do virsh dumpxml $d; virsh dumpxml --inactive $d; \
                       done | grep -c \"alias name='ua-\" || true";
        assert_eq!(self.sh(aliases), "0", "an alias is left in a domain's document");
    }

    /// Waits until something is so in the VM.
    pub async fn until_sh(&self, what: &str, line: &str, wanted: &str) {
        self.until(what, async || self.sh(line) == wanted).await;
    }
}

/// Runs a line in the VM and returns what it printed: what a service's configuration depends on is asked before.
pub fn sh(line: &str) -> String {
    let mut command = script("ssh");
    command.arg(line);
    String::from_utf8(run(command).stdout).expect("text").trim_end().to_owned()
}

/// A guest's UUID.
pub fn id(guest: &str) -> &'static str {
    GUESTS.iter().find(|(name, _)| *name == guest).expect("a guest of the lab").1
}
