//! `hotslot attach`: plugs devices into a guest, all or none.

use std::str::FromStr;

use clap::Args;
use serde_json::json;

use crate::exit::Exit;
use crate::wait::waiting;
use crate::{Cli, attachment, output, server};

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The guest: its UUID or its name.
    server: String,
    /// Which devices: configured aliases, each with how many of it.
    #[arg(required = true, value_name = "ALIAS[:N]")]
    aliases: Vec<AliasCount>,
    /// Plug into the running guest only: after a power cycle the device is not there.
    #[arg(long)]
    live_only: bool,
}

/// An alias, and how many devices of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AliasCount(String);

impl FromStr for AliasCount {
    type Err = String;

    /// Reads `a1` (one device) and `a1:2`. What names and counts there are is the service's to say.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        let counts = count.parse::<u16>().is_ok_and(|count| count > 0);
        if name.is_empty() || name.contains(',') || !counts {
            return Err("write an alias, or an alias with how many: a1 or a1:2".into());
        }
        Ok(Self(format!("{name}:{count}")))
    }
}

impl Attach {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let id = server::find(cli, &self.server).await?;
        let wanted: Vec<_> = self.aliases.iter().map(|alias| alias.0.as_str()).collect();
        let wanted = wanted.join(",");
        let body = json!({ "pciAttachment": {
            "pci_passthrough:alias": wanted,
            "persistent": !self.live_only,
        } });
        let path = ["servers", &id, "os-pci_attachments"];
        let what = format!("attaching {wanted} to {}", self.server);
        let answer = waiting(&what, cli.client.post(&path, &body)).await??;
        let attached = answer["pci_devices"].as_array().map_or(&[][..], Vec::as_slice);
        output::list(cli.format, "devices were attached", attached, &attachment::columns())?;
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_alone_is_one_device() {
        let read = |text: &str| text.parse::<AliasCount>().map(|alias| alias.0);
        assert_eq!(read("a1").unwrap(), "a1:1");
        assert_eq!(read("a1:2").unwrap(), "a1:2");
        for bad in ["", ":1", "a1:", "a1:0", "a1:x", "a1:-1", "a1,b1", "a1:1,b1:1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
