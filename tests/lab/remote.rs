//! Several hosts, one of them another machine that is reached over TLS and ssh. When its connection breaks, only that
//! host is affected.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hotslot_driver::sim::generate::{Size, guest_uuid};
use hotslot_tests::lab::{Lab, PATIENCE, environment, id, program, sh};
use hotslot_tests::link::{Link, State};
use hotslot_tests::{Hotslot, path};
use serde_json::{Value, json};

use crate::failures::INTERFACES;

/// The port of this machine that leads to the VM's libvirtd over TLS.
const TLS: u16 = 19775;

/// Creates a certificate authority, and with it the keys of a server and a client.
const KEYS: &str = r#"
set -e
cd "$0"
key() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
        -keyout "$1key.pem" -out "$1cert.pem" "${@:2}" 2>&1
}
key ca -subj /CN=lab
for name in server client; do
    key $name -CA cacert.pem -CAkey cakey.pem -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 \
        -addext basicConstraints=critical,CA:FALSE
done
# Whoever is reached there is the lab: its keys are not to be remembered.
printf '#!/bin/sh\nexec ssh -F /dev/null -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "$@"\n' >ssh
chmod +x ssh
"#;

/// Makes the VM's libvirtd listen for TLS connections.
const LISTEN: &str = "
mkdir -p /etc/pki/CA /etc/pki/libvirt/private
cp /run/keys/cacert.pem /etc/pki/CA
cp /run/keys/servercert.pem /etc/pki/libvirt
cp /run/keys/serverkey.pem /etc/pki/libvirt/private
systemctl stop libvirtd libvirtd-tls.socket
systemctl start libvirtd-tls.socket
systemctl start libvirtd";

fn config(far: &str, near: &Path) -> String {
    let near = near.display();
    format!(
        r#"
[pci]
device_spec = ['{{"vendor_id": "8086", "product_id": "10ca"}}']
alias = ['{{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}}']
[libvirt]
keepalive_interval = 3
keepalive_count = 3
call_timeout = 8
attach_timeout = 30
[[hypervisor]]
name = "far"
uri = "{far}"
[[hypervisor]]
name = "near"
uri = "sim://{near}"
[[hypervisor]]
name = "here"
uri = "qemu:///system"
"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_host_does_not_affect_the_two_others() {
    let dir = tempfile::tempdir().unwrap();
    let keys = &dir.path().join("keys");
    std::fs::create_dir(keys).unwrap();
    let made = Command::new("bash").args(["-c", KEYS]).arg(keys).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let near = dir.path().join("near");
    Size { pfs: 1, vfs: 2, guests: 1, ports: 2 }.write(&near).unwrap();

    let ssh_port = environment("HOTSLOT_LAB_SSH_PORT").parse().unwrap();
    let (tls, ssh) = (Link::to(TLS).await, Link::to(ssh_port).await);
    let by_tls = format!("qemu+tls://127.0.0.1:{}/system?pkipath={}", tls.port(), keys.display());
    let by_ssh = ssh_uri(ssh.port(), keys);
    let mut lab = Lab::idle();
    lab.put(keys, "/run/");
    lab.forward(TLS, "16514");
    lab.sh(LISTEN);
    let mut service = Hotslot::of(&program(), &config(&by_tls, &near), PATIENCE);
    lab.api = service.clone();
    lab.ready().await;
    breaks(&lab, "TLS", &tls).await;

    service.kill();
    service.reconfigure(&by_tls, &by_ssh);
    service.start_again().await;
    lab.api = service.clone();
    breaks(&lab, "ssh", &ssh).await;
    lab.sh("systemctl stop libvirtd-tls.socket");
}

/// Returns the URI of the VM's libvirt over ssh, with the program `ssh` in a directory.
fn ssh_uri(port: u16, programs: &Path) -> String {
    format!(
        "qemu+ssh://root@127.0.0.1:{port}/system?keyfile={}&command={}/ssh&no_verify=1&no_tty=1",
        environment("HOTSLOT_LAB_SSH_KEY"),
        programs.display()
    )
}

/// An entry that matches everything does not offer devices that the remote host may need, because its guards cannot be
/// read.
#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn disks_and_nics_of_a_remote_host_are_offered_only_by_address() {
    let mut lab = Lab::idle();
    let before = lab.sh(INTERFACES);
    let programs = tempfile::tempdir().unwrap();
    let made = Command::new("bash").args(["-c", KEYS]).arg(programs.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let far = ssh_uri(environment("HOTSLOT_LAB_SSH_PORT").parse().unwrap(), programs.path());
    let config = |specs: &str| {
        format!(
            r#"
[pci]
device_spec = [{specs}]
alias = [
  '{{"name": "disk", "vendor_id": "1af4", "product_id": "1042"}}',
  '{{"name": "management", "vendor_id": "1af4", "product_id": "1000"}}',
  '{{"name": "nvme", "vendor_id": "1b36", "product_id": "0010", "device_type": "type-PCI"}}',
  '{{"name": "card", "vendor_id": "8086", "product_id": "10d3"}}',
  '{{"name": "vf", "vendor_id": "8086", "product_id": "10ca"}}',
]
[[hypervisor]]
name = "far"
uri = "{far}"
"#
        )
    };
    let service = Hotslot::of(&program(), &config(r#"'{"address": "*"}'"#), PATIENCE);
    lab.api = service.clone();
    lab.ready().await;
    for alias in ["disk", "management", "nvme", "card"] {
        let refused = lab.attach(id("q35"), &format!("{alias}:1")).await.expect(409);
        assert!(refused.message().contains("name its address in a device_spec"), "{}", refused.message());
    }
    let card = sh("lab-devices e1000e");
    let explained =
        lab.get(&format!("/v2.1/os-hypervisors/1/pci_devices/{card}")).await.expect(200).body["pci_device"]
            .clone();
    assert_eq!(explained["guards"][0]["kind"], "unseen", "{explained:#}");
    assert_eq!(lab.sh(INTERFACES), before, "a host driver was bounced");
    // VFs are not guarded on a remote host.
    let vf = lab.attach_one("q35", "vf").await;
    lab.detach(&vf).await.expect(200);
    lab.expect_nothing_left().await;
    drop(service);

    let service = Hotslot::of(
        &program(),
        &config(&format!(r#"'{{"address": "{card}"}}', '{{"address": "*"}}'"#)),
        PATIENCE,
    );
    lab.api = service.clone();
    lab.ready().await;
    let attached = lab.attach_one("q35", "card").await;
    assert_eq!(
        (attached["address"].as_str(), lab.driver(&attached["address"])),
        (Some(&*card), "vfio-pci".into())
    );
    lab.detach(&attached).await.expect(200);
    lab.until("its host driver is back", async || lab.driver(&attached["address"]) == "e1000e").await;
    lab.attach(id("q35"), "disk:1").await.expect(409);
    lab.expect_nothing_left().await;
}

/// Returns the hosts whose servers are listed.
async fn listed(lab: &Lab) -> Vec<String> {
    let servers = lab.get("/v2.1/servers/detail").await.expect(200).body["servers"].clone();
    let host = |server: &Value| server["host"].as_str().unwrap().to_owned();
    let mut hosts: Vec<_> = servers.as_array().unwrap().iter().map(host).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

/// Attaches and detaches on the remote host while its connection freezes and breaks.
async fn breaks(lab: &Lab, way: &str, link: &Link) {
    assert_eq!(listed(lab).await, ["far", "here", "near"]);
    for state in [State::Frozen, State::Cut] {
        let begun = Instant::now();
        let vf = match lab.attachments(id("q35")).await.into_iter().next() {
            Some(vf) => vf,
            None => lab.attach_one("q35", "vf").await,
        };
        println!("{way}: attached on the far host after {:?}", begun.elapsed());
        assert_eq!((&vf["host"], lab.driver(&vf["address"]).as_str()), (&"far".into(), "vfio-pci"));
        // Guards need the host's sysfs, so they cannot be evaluated for a remote host.
        let function = format!("/v2/t/os-hypervisors/1/pci_devices/{}", vf["address"].as_str().unwrap());
        let guards = lab.get(&function).await.expect(200).body["pci_device"]["guards"].clone();
        assert_eq!(guards, json!(null));

        link.set(state);
        let (api, far) = (lab.api.clone(), path(&vf));
        let far = tokio::spawn(async move { api.delete(&far).await });
        // The other two hosts are not affected.
        let mut longest = Duration::ZERO;
        for _ in 0..5 {
            let begun = Instant::now();
            let answer = lab.attach(&guest_uuid(0).to_string(), "vf:1").await.expect(200);
            lab.delete(&path(&answer.body["pci_devices"][0])).await.expect(200);
            longest = longest.max(begun.elapsed());
        }
        println!("{way}, {state:?}: attach and detach on the near host took {longest:?} at most");
        assert!(longest < Duration::from_secs(2));
        let answer = far.await.unwrap().expect(503);
        println!("{way}, {state:?}: {}", answer.message());
        let status = lab.get(&path(&vf)).await.expect(200).body["pciAttachment"]["status"].clone();
        lab.until("the outage is noticed", async || {
            let hosts = lab.get("/readyz").await.body["hypervisors"].clone();
            (&hosts["near"], &hosts["here"]) == (&"ok".into(), &"ok".into()) && hosts["far"] != "ok"
        })
        .await;
        let begun = Instant::now();
        assert_eq!(listed(lab).await, ["here", "near"]);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert!(lab.attach(id("q35"), "vf:1").await.expect(503).retry_after.is_some());

        link.set(State::Up);
        println!("{way}, {state:?}: agreement after {:?}", lab.agreed("q35").await);
        // A detach on record has completed, and a refused attach has changed nothing.
        let rows = lab.attachments(id("q35")).await;
        assert_eq!(rows.len(), usize::from(status == "attached"), "{status}: {rows:#?}");
    }
    for vf in lab.attachments(id("q35")).await {
        lab.detach(&vf).await.expect(200);
    }
    lab.expect_nothing_left().await;
}
