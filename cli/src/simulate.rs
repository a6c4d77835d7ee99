//! `hotslot serve --simulate`: serves a made-up host, to try hotslot without root, hardware or libvirt. Everything that it
//! needs is in a directory of its own, which is removed at the end.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use hotslot_driver::sim::demo;
use hotslot_service::identity::tokens::TokenFile;

use crate::{output, serve};

/// The port, when nobody else uses it.
const PORT: u16 = 9774;

/// What is assignable of the made-up host, and by which names.
const PCI: &str = r#"
device_spec = [
  '{"vendor_id": "10de"}',
  '{"vendor_id": "8086", "product_id": "1889", "physical_network": "fabric", "trusted": "true"}',
  '{"vendor_id": "8086", "product_id": "1572"}',
  '{"vendor_id": "8086", "product_id": "1521"}',
  '{"vendor_id": "144d"}',
  '{"vendor_id": "8086", "product_id": "37c9"}',
]
alias = [
  '{"name": "gpu", "vendor_id": "10de", "product_id": "1eb8"}',
  '{"name": "nic", "vendor_id": "8086", "product_id": "1889", "device_type": "type-VF"}',
  '{"name": "x710", "vendor_id": "8086", "product_id": "1572"}',
  '{"name": "nvme", "vendor_id": "144d", "product_id": "a80a"}',
  '{"name": "qat", "vendor_id": "8086", "product_id": "37c9", "device_type": "type-VF"}',
]
"#;

/// Serves the made-up host until SIGTERM or SIGINT.
pub(crate) fn run() -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("hotslot-").tempdir()?;
    let (host, tokens) = (dir.path().join("host"), dir.path().join("tokens"));
    demo::write(&host)?;
    let token = TokenFile::open(&tokens)?.create("demo", BTreeSet::from(["admin".to_owned()]), None, None)?;
    let port = free_port()?;
    let config = dir.path().join("hotslot.toml");
    std::fs::write(&config, configuration(dir.path(), port))?;
    let text = words(&host, port, &token);
    // The link is printed when somebody can follow it.
    std::thread::spawn(move || {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = output::print(&text);
    });
    serve::run(Some(&config))
}

/// Returns the usual port, or another one when that is in use.
fn free_port() -> std::io::Result<u16> {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.local_addr();
    Ok(listen(PORT).or_else(|_| listen(0))?.port())
}

fn configuration(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "[api]\nlisten = \"127.0.0.1:{port}\"\n[identity]\ntokens = \"{dir}/tokens\"\n[database]\n\
         url = \"sqlite://{dir}/hotslot.db\"\n[log]\nlevels = \"warn\"\n[detach]\ntimeout = 5.0\n[pci]{PCI}\
         [[hypervisor]]\nname = \"demo\"\nuri = \"sim://{dir}/host\"\n"
    )
}

fn words(host: &Path, port: u16, token: &str) -> String {
    let (host, url) = (host.display(), format!("http://127.0.0.1:{port}"));
    format!(
        "hotslot serves a made-up host. Nothing of this machine is used or changed.\n\n  \
         {url}/ui/sign-in#token={token}\n\n\
         Open this link, and:\n  \
         1. Hosts, then demo: the PCI tree. Click an address to see why a function is offered or not.\n  \
         2. Servers, then web1, then Attach devices: choose nic, check, attach.\n  \
         3. Detach it again, or have the guest refuse first:\n     hotslot sim {host} guest web1 unplug=refuse\n  \
         4. Drift: take a device away behind hotslot's back, and repair it.\n  \
         5. Events: who did what.\n\n\
         The command line, in another terminal:\n  \
         export HOTSLOT_URL={url}\n  \
         export HOTSLOT_TOKEN={token}\n  \
         hotslot host list\n\n\
         Press Ctrl-C to end; the made-up host is removed then.\n"
    )
}
