//! Black-box tests of hotslot: the real binary, served on a free port of loopback, with a database and a copy of a
//! simulated host of its own. The tests use HTTP and the command line.

mod api;
pub mod browser;
pub mod description;
pub mod keystone;
pub mod lab;
pub mod link;
pub mod measure;
pub mod oracle;
pub mod postgres;
pub mod prefix;
pub mod recorded;
mod service;

use std::path::{Path, PathBuf};

use serde_json::Value;

pub use api::{Answer, Api};
pub use service::Hotslot;

/// The guest `q35` of the simulated host `small`: it is running and has free root ports.
pub const Q35: &str = "10000000-0000-4000-8000-000000000001";
/// The guest `switch`: it is shut off.
pub const SWITCH: &str = "10000000-0000-4000-8000-000000000003";
/// The guest `i440fx`: it is running.
pub const I440FX: &str = "10000000-0000-4000-8000-000000000005";
/// The guest `full`: it is running without a free hot-plug port.
pub const FULL: &str = "10000000-0000-4000-8000-000000000006";

/// Returns the binary that `cargo build` made in the directory of the tests.
pub fn binary() -> PathBuf {
    let tests = std::env::current_exe().expect("the path of the tests");
    // Test programs are one directory below the binary, and other programs next to it.
    let beside = tests.ancestors().skip(1).take(2).map(|directory| directory.join("hotslot"));
    let binary = beside.filter(|binary| binary.exists()).last().unwrap_or_else(|| "hotslot".into());
    assert!(binary.exists(), "{} is missing: run `cargo build -p hotslot` first", binary.display());
    binary
}

/// Returns the directory of a simulated host in the test data.
pub fn host(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/hosts").join(name)
}

/// Removes the mediated device from a copy of the simulated host `accelerators`, so that its GPU can be assigned as a
/// whole.
pub fn without_mdevs(host: &Path) {
    let mdev = "devices/mdev_b4a1f2c0_0a3b_4b0e_9d0c_3f1d2f7c5a11_0000_41_00_0.xml";
    std::fs::remove_file(host.join(mdev)).expect("the file of a mediated device");
}

/// Returns the path of a server's attachments under v2.
pub fn attachments(server: &str) -> String {
    format!("/v2/t/servers/{server}/os-pci_attachments")
}

/// Returns the path of an attachment under v2.
pub fn path(attachment: &Value) -> String {
    let text = |key: &str| attachment[key].as_str().expect("a text").to_owned();
    format!("{}/{}", attachments(&text("serverId")), text("attachment_id"))
}
