//! `hotslot capture`: a host's documents, written as they are, for bug reports and simulated hosts.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use hotslot_driver::libvirt::{Libvirt, Options};

use crate::exit::{Exit, Failure};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// The libvirt to read.
    uri: String,
    /// Where to write; made when it is not there, and empty when it is.
    directory: PathBuf,
}

impl Capture {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let libvirt = Libvirt::connect(&self.uri, Options::default());
        let away = |reason| Failure::new(Exit::Away, format!("{} cannot be reached: {reason}", self.uri));
        libvirt.tried().await.map_err(away)?;
        let documents = libvirt.documents().await?;
        documents.write(&self.directory).context("the capture was not written")?;
        let (devices, domains) = (documents.devices.len(), documents.domains.len());
        let shown = self.directory.display();
        output::print(&format!("captured {devices} node devices and {domains} domains into {shown}\n"))?;
        Ok(Exit::Done)
    }
}
