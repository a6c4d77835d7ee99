//! `hotslot sim`: sends a command to a simulated host that a running service serves.

use std::path::PathBuf;

use clap::Args;
use hotslot_driver::sim::control;
use hotslot_model::json;

use crate::exit::{Exit, Failure};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Sim {
    /// The directory of the simulated host.
    directory: PathBuf,
    /// The command, such as `reboot g1`.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    line: Vec<String>,
}

/// The text in `--help`.
pub(crate) const HELP: &str = "\
Commands:
  start|shutdown|destroy|crash|reboot|pause|resume|save|restore|migrate GUEST
  guest GUEST unplug=normal|refuse|ignore        how the guest answers a request to release a device
  plug GUEST DEVICE live|config|both             as `virsh attach-device` does
  unplug GUEST DEVICE live|config                as `virsh detach-device` does
  agent GUEST connected|gone
  device add|remove NAME                         the host gets or loses a device
  device driver NAME [DRIVER]                    binds another driver, or none
  vfs PF NUMBER                                  sets the number of VFs of a PF
  restart                                        the host: its guests stop, its VFs are gone
  disconnect|reconnect                           the connection to libvirtd

Examples:
  hotslot sim /tmp/node1 reboot g1
  hotslot sim /tmp/node1 guest g1 unplug=ignore
  hotslot sim /tmp/node1 device remove pci_0000_04_10_0
  hotslot sim /tmp/node1 disconnect";

impl Sim {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let shown = self.directory.display();
        let unreachable = |error| {
            let message =
                format!("no service serves the simulated host {shown}: {error}; is `hotslot serve` running?");
            Failure::new(Exit::Unreachable, message)
        };
        let answer = control(&self.directory, &self.line.join(" ")).map_err(unreachable)?;
        match answer.strip_prefix("error: ") {
            Some(reason) => anyhow::bail!("{}", json::plain(reason)),
            None => output::print(&format!("{answer}\n"))?,
        }
        Ok(Exit::Done)
    }
}
