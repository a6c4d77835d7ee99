//! `hotslot capture`: writes the libvirt XML documents of a host unchanged, for bug reports and simulated hosts.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use hotslot_driver::libvirt::{Libvirt, Options};

use crate::exit::{Exit, Failure};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// The libvirt URI of the host.
    uri: String,
    /// The directory to write to. It is created if it does not exist; otherwise it must be empty.
    directory: PathBuf,
}

impl Capture {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let libvirt = Libvirt::connect(&self.uri, Options::default());
        let unreachable =
            |reason| Failure::new(Exit::Unreachable, format!("cannot connect to {}: {reason}", self.uri));
        libvirt.tried().await.map_err(unreachable)?;
        let documents = libvirt.documents().await?;
        documents.write(&self.directory).context("the capture was not written")?;
        let (devices, domains) = (documents.devices.len(), documents.domains.len());
        let shown = self.directory.display();
        output::print(&format!("captured {devices} node devices and {domains} domains into {shown}\n"))?;
        Ok(Exit::Done)
    }
}
