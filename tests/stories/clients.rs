//! The stock clients, in the versions of `tests/clients/requirements.txt`, against the service on a simulated host.

use std::path::{Path, PathBuf};
use std::process::Command;

use hotslot_tests::keystone::python;
use hotslot_tests::{Hotslot, host, without_mdevs};

const PCI: &str = "[pci]\ndevice_spec = ['{\"address\": \"*:*:*.*\"}']\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs one of the scripts in `tests/clients` with the Python environment of the clients.
pub(super) async fn run(service: &Hotslot, script: &str, more: &[&str]) {
    let mut command = Command::new(python());
    command.arg(root().join("tests/clients").join(script)).arg(service.url()).args(more);
    // The script runs in a thread of its own, so that it does not block the runtime of the test.
    let ran = tokio::task::spawn_blocking(move || command.output()).await.expect("a thread");
    let ran = ran.expect("run the script");
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{script}:\n{out}{err}");
}

#[tokio::test]
async fn the_command_lines_of_openstack_and_cyborg() {
    let service = Hotslot::bare(&host("accelerators"), PCI, without_mdevs).await;
    let list = root().join("tests/data/client-commands.json");
    run(&service, "commands.py", &[list.to_str().expect("a path")]).await;
    service.expect_clean().await;
}

/// Runs Cyborg's own API tests. `data/tempest.json` lists the tests that are expected to fail, with the reason.
#[tokio::test]
async fn the_api_tests_of_cyborgs_tempest_plugin() {
    let mut service = Hotslot::bare(&host("accelerators"), PCI, without_mdevs).await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    tempest(&service, "cyborg_tempest_plugin").await;
}

/// Runs the API tests of a Tempest plugin against a service with `[api] identity = "headers"`.
pub(super) async fn tempest(service: &Hotslot, package: &str) {
    let list = root().join("tests/data/tempest.json");
    run(service, "tempest_api.py", &[package, list.to_str().expect("a path")]).await;
}

#[tokio::test]
async fn openstacksdk() {
    let service = Hotslot::bare(&host("accelerators"), PCI, without_mdevs).await;
    run(&service, "sdk.py", &[]).await;
    service.expect_clean().await;
}
