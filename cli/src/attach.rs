//! `hotslot attach`: attaches devices to a guest, all of them or none. With `--dry-run` it only reports whether it
//! could.

use std::str::FromStr;

use clap::Args;
use clap::builder::PossibleValuesParser;
use clap_complete::ArgValueCompleter;
use hotslot_driver::net::{MacAddress, VlanTag};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vf::MAX_TX_RATE;
use hotslot_model::rules::NumaPolicy;
use serde_json::{Value, json};

use crate::argument::{self, number};
use crate::device_name::DeviceName;
use crate::exit::{Exit, Failure};
use crate::output::{self, Output};
use crate::remedy::by_options_of_attach;
use crate::table::{Column, aligned, column, message};
use crate::value::at;
use crate::wait::{Watched, watching};
use crate::{Cli, columns, complete, lookup, trace};

/// The examples in `--help`.
pub(crate) const HELP: &str = "\
Examples:
  hotslot attach vm1 a1
  hotslot attach vm1 a1 b1:2 --dry-run
  hotslot attach vm1 0000:05:00.0
  hotslot attach vm1 --flavor gzm
  hotslot attach vm1 vf --mac 52:54:00:12:34:56 --vlan 100 --physical-network net1";

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The server: its UUID or its name.
    #[arg(add = ArgValueCompleter::new(complete::servers))]
    server: String,
    /// The devices: configured aliases, each with the number of devices (default 1), or addresses of devices on the host of the server, as
    /// `hotslot device list` prints them.
    #[arg(required_unless_present = "flavor", conflicts_with = "flavor", value_name = "ALIAS[:N]|ADDRESS", add = ArgValueCompleter::new(complete::attachable))]
    devices: Vec<Wanted>,
    /// A flavor whose extra specs name the aliases, instead of `ALIAS[:N]`; `hotslot flavor list` lists them.
    #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(complete::flavors))]
    flavor: Option<String>,
    /// Attach to the running guest only. The device is gone after a power cycle.
    #[arg(long)]
    live_only: bool,
    /// Only report which devices would be attached and the result of each check. Nothing is changed.
    #[arg(long)]
    dry_run: bool,
    /// Also print how long each step and each call of libvirt took. This is for administrators.
    #[arg(long)]
    trace: bool,
    /// Attach each device with all others of its IOMMU group. A request for all members of a group that are bound to
    /// host drivers does not need this option.
    #[arg(long)]
    whole_group: bool,
    /// The NUMA policy of the request, instead of the policies of the aliases.
    #[arg(long, value_name = "POLICY",
          value_parser = PossibleValuesParser::new(NumaPolicy::ALL.iter().map(|it| it.as_str())))]
    numa_policy: Option<String>,
    /// For a VF of which its driver makes a virtual GPU: the type that it is to be of, by its id, its name or the vendor's
    /// number. `hotslot device show` lists them.
    #[arg(long, value_name = "TYPE")]
    vgpu_type: Option<String>,
    /// For a VF of a NIC: its MAC address. By default an address is generated.
    #[arg(long, value_name = "ADDRESS")]
    mac: Option<MacAddress>,
    /// For a VF of a NIC: the VLAN tag of its frames, 1 to 4094.
    #[arg(long, value_name = "TAG", allow_negative_numbers = true, value_parser = vlan)]
    vlan: Option<VlanTag>,
    /// For a VF of a NIC: require this physical_network in its device_spec.
    #[arg(long, value_name = "NETWORK")]
    physical_network: Option<String>,
    /// For a VF of a NIC: require trusted = "true" in its device_spec, and let the guest change what the VF filters.
    #[arg(long)]
    trusted: bool,
    /// For a VF of a NIC: whether frames with another source address than that of the VF are dropped.
    #[arg(long, value_name = "ON|OFF", value_parser = on_or_off)]
    spoof_check: Option<bool>,
    /// For a VF of a NIC: the link that the guest sees.
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(["auto", "enable", "disable"]))]
    link_state: Option<String>,
    /// For a VF of a NIC: the bandwidth that is guaranteed to it, in Mbit/s; 0 is none.
    #[arg(long, value_name = "MBIT", allow_negative_numbers = true, value_parser = number::<u32>(0..=MAX_TX_RATE.into()))]
    min_rate: Option<u32>,
    /// For a VF of a NIC: the bandwidth that it cannot exceed, in Mbit/s; 0 is no limit.
    #[arg(long, value_name = "MBIT", allow_negative_numbers = true, value_parser = number::<u32>(0..=MAX_TX_RATE.into()))]
    max_rate: Option<u32>,
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("`{text}` is neither on nor off")),
    }
}

fn vlan(text: &str) -> Result<VlanTag, String> {
    let tag =
        text.parse().map_err(|_| format!("invalid VLAN tag `{text}`: expected a number from 1 to 4094"))?;
    VlanTag::new(tag).map_err(|error| error.to_string())
}

/// What is to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// An alias and a number of devices, as `a1:2`.
    Alias(String),
    /// The device at an address of the host.
    Device(PciAddress),
}

impl FromStr for Wanted {
    type Err = String;

    /// Parses `a1` (one device), `a1:2`, or an address. The service checks the name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(DeviceName::Address(address)) = text.parse() {
            return Ok(Self::Device(address));
        }
        let (name, count) = argument::alias(text).unwrap_or_else(|| {
            Err("expected an alias, an alias and a number of devices, or an address: a1, a1:2 or 0000:3b:00.1"
                .into())
        })?;
        Ok(Self::Alias(format!("{name}:{count}")))
    }
}

impl Attach {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let id = lookup::server(cli, &self.server).await?;
        let path = ["servers", &id, "os-pci_attachments"];
        let what = match &self.flavor {
            Some(flavor) => format!("attaching flavor {flavor} to {}", self.server),
            None => format!("attaching {} to {}", self.wanted(), self.server),
        };
        let query = if self.trace { trace::QUERY } else { "" };
        let body = self.body();
        let work = cli.client.post_with(&path, query, &body);
        let watched = Watched { client: cli.client.clone(), server: id.clone(), operation: "attach" };
        let answer = watching(cli.output, &what, Some(watched), work).await?;
        let answer = answer.map_err(|failure| {
            let message = by_options_of_attach(&failure.to_string());
            Failure::new(failure.exit(), self.with_typed_server(&message, &id))
        })?;
        if self.trace && cli.output.is_data() {
            output::data(cli.output, &answer)?;
            return Ok(if answer["dry_run"]["would_attach"] == false { Exit::Refused } else { Exit::Done });
        }
        if self.dry_run {
            let exit = dry_run(cli.output, &answer["dry_run"])?;
            return trace::print_if(cli.output, &answer["trace"]).map(|()| exit);
        }
        let attached = answer["pci_devices"].as_array().map_or(&[][..], Vec::as_slice);
        output::list(cli.output, "devices were attached", attached, &columns::attachments())?;
        trace::print_if(cli.output, &answer["trace"])?;
        Ok(Exit::Done)
    }

    /// Puts the name of the server that was typed into the commands of a message, instead of its id.
    fn with_typed_server(&self, message: &str, id: &str) -> String {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        if !self.server.chars().all(plain) {
            return message.to_owned();
        }
        message.replace(
            &format!("`hotslot server prepare {id} "),
            &format!("`hotslot server prepare {} ", self.server),
        )
    }

    /// The devices as people name them: `a1:1,0000:3b:00.1`.
    fn wanted(&self) -> String {
        self.aliases().into_iter().chain(self.addresses()).collect::<Vec<_>>().join(",")
    }

    /// The aliases in the format of the API, each as `a1:1`.
    fn aliases(&self) -> Vec<String> {
        let alias = |wanted: &Wanted| match wanted {
            Wanted::Alias(alias) => Some(alias.clone()),
            Wanted::Device(_) => None,
        };
        self.devices.iter().filter_map(alias).collect()
    }

    fn addresses(&self) -> Vec<String> {
        let address = |wanted: &Wanted| match wanted {
            Wanted::Alias(_) => None,
            Wanted::Device(address) => Some(address.to_string()),
        };
        self.devices.iter().filter_map(address).collect()
    }

    /// The body of the request. Options that are not given are null.
    fn body(&self) -> Value {
        let aliases = self.aliases();
        json!({ "pciAttachment": {
            "pci_passthrough:alias": (!aliases.is_empty()).then(|| aliases.join(",")),
            "addresses": self.addresses(),
            "flavor": self.flavor,
            "persistent": !self.live_only,
            "dry_run": self.dry_run,
            "whole_group": self.whole_group,
            "numa_policy": self.numa_policy,
            "vgpu_type": self.vgpu_type,
            "mac_address": self.mac.map(|mac| mac.to_string()),
            "vlan": self.vlan.map(VlanTag::get),
            "physical_network": self.physical_network,
            "trusted": self.trusted.then_some(true),
            "spoof_check": self.spoof_check,
            "link_state": self.link_state,
            "min_tx_rate": self.min_rate,
            "max_tx_rate": self.max_rate,
        } })
    }
}

/// Prints a dry run.
pub(crate) fn dry_run(output: Output, run: &Value) -> anyhow::Result<Exit> {
    if output.is_data() {
        output::data(output, run)?;
    } else if output.is_names() {
        let devices = run["pci_devices"].as_array().into_iter().flatten();
        output::names(devices.map(|device| at(device, "/address")))?;
    } else {
        output::print_table(&verdict(output, run))?;
    }
    Ok(if run["would_attach"] == true { Exit::Done } else { Exit::Refused })
}

/// Formats a dry run: the devices, the result of each check, and the remedies for failed checks.
fn verdict(output: Output, run: &Value) -> String {
    let list = |key: &str| run[key].as_array().map_or(&[][..], Vec::as_slice);
    let (devices, checks) = (list("pci_devices"), list("checks"));
    let mut text = match (run["would_attach"] == true, devices) {
        (true, _) => "these devices would be attached:\n",
        (false, []) => "nothing would be attached\n",
        (false, _) => "nothing would be attached; these devices were checked:\n",
    }
    .to_owned();
    if !devices.is_empty() {
        let columns = [
            column("ALIAS", "/alias"),
            Column::new("VENDOR:PRODUCT", columns::ids),
            column("ADDRESS", "/address"),
        ];
        text += &output.table(devices, &columns);
    }
    let columns = [
        column("CHECK", "/check"),
        column("DEVICE", "/device"),
        column("RESULT", "/result"),
        message("MESSAGE", "/message"),
    ];
    text += &format!("\n{}", output.table(checks, &columns));
    let mut cures: Vec<Vec<String>> = Vec::new();
    for check in checks {
        let Some(cure) = check["cure"].as_str() else { continue };
        let row = vec![format!("{}:", at(check, "/check")), by_options_of_attach(cure)];
        // Several devices may have the same remedy.
        if !cures.contains(&row) {
            cures.push(row);
        }
    }
    if !cures.is_empty() {
        text += &format!("\nwhat to do:\n{}", aligned(&cures));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::client::answering;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        attach: Attach,
    }

    fn read(line: &str) -> Result<Attach, clap::Error> {
        Line::try_parse_from(format!("attach {line}").split(' ')).map(|line| line.attach)
    }

    #[test]
    fn the_body_contains_the_given_options_and_null_for_the_others() {
        let nothing = json!({
            "pci_passthrough:alias": null, "addresses": [], "flavor": null, "persistent": true, "dry_run": false,
            "whole_group": false, "numa_policy": null, "vgpu_type": null, "mac_address": null, "vlan": null,
            "physical_network": null, "trusted": null, "spoof_check": null, "link_state": null, "min_tx_rate": null,
            "max_tx_rate": null,
        });
        for (line, expected) in [
            ("vm1 a1 b1:2", json!({ "pci_passthrough:alias": "a1:1,b1:2" })),
            (
                "vm1 05:00.0 a1 pci_0000_3b_10_0",
                json!({ "pci_passthrough:alias": "a1:1", "addresses": ["0000:05:00.0", "0000:3b:10.0"] }),
            ),
            (
                "vm1 --flavor gzm --live-only --dry-run",
                json!({ "flavor": "gzm", "persistent": false, "dry_run": true }),
            ),
            (
                "vm1 a1 --whole-group --numa-policy required",
                json!({ "pci_passthrough:alias": "a1:1", "whole_group": true, "numa_policy": "required" }),
            ),
            (
                "vm1 vf --mac 52:54:00:AB:00:01 --vlan 7 --physical-network net1 --trusted",
                json!({ "pci_passthrough:alias": "vf:1", "mac_address": "52:54:00:ab:00:01", "vlan": 7,
                        "physical_network": "net1", "trusted": true }),
            ),
            (
                "vm1 gpu --vgpu-type nvidia-1155",
                json!({ "pci_passthrough:alias": "gpu:1", "vgpu_type": "nvidia-1155" }),
            ),
            (
                "vm1 vf --spoof-check off --link-state enable --min-rate 10 --max-rate 100",
                json!({ "pci_passthrough:alias": "vf:1", "spoof_check": false, "link_state": "enable",
                        "min_tx_rate": 10, "max_tx_rate": 100 }),
            ),
        ] {
            let mut body = nothing.clone();
            body.as_object_mut().unwrap().extend(expected.as_object().unwrap().clone());
            assert_eq!(read(line).unwrap().body(), json!({ "pciAttachment": body }), "{line}");
        }
        for bad in [
            "vm1",
            "vm1 a1 --flavor gzm",
            "vm1 a1 --numa-policy near",
            "vm1 a1 --mac 01:00:5e:00:00:01",
            "vm1 a1 --vlan 0",
            "vm1 a1 --vlan 4095",
            "vm1 a1 --vlan x",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    fn run(would_attach: bool) -> Value {
        let result = if would_attach { "pass" } else { "fail" };
        let guard = |device: &str| {
            json!({ "check": "guard", "device": device, "result": result, "message": "the root disk",
                    "cure": (!would_attach).then_some("name it in [pci] unguarded") })
        };
        let port =
            json!({ "check": "free-port", "device": null, "result": "unknown", "message": "it is off" });
        let device = json!({ "dev_id": "pci_0000_07_00_0", "address": "0000:07:00.0", "vendor_id": "1b36",
                             "product_id": "0010", "alias": "nvme" });
        json!({
            "would_attach": would_attach, "pci_devices": if would_attach { json!([device]) } else { json!([]) },
            "checks": [guard("0000:07:00.0"), guard("0000:08:00.0"), port],
        })
    }

    #[test]
    fn a_dry_run_shows_the_devices_the_checks_and_the_remedies() {
        let yes = "\
these devices would be attached:
ALIAS   VENDOR:PRODUCT   ADDRESS
nvme    1b36:0010        0000:07:00.0

CHECK       DEVICE         RESULT    MESSAGE
guard       0000:07:00.0   pass      the root disk
guard       0000:08:00.0   pass      the root disk
free-port   -              unknown   it is off
";
        assert_eq!(verdict(Output::TABLE, &run(true)), yes);
        let no = verdict(Output::TABLE, &run(false));
        assert!(no.starts_with("nothing would be attached\n\nCHECK "), "{no}");
        assert!(no.ends_with("\n\nwhat to do:\nguard:   name it in [pci] unguarded\n"), "{no}");
    }

    #[tokio::test]
    async fn the_exit_code_of_a_dry_run_is_the_one_of_the_attach() {
        const SERVER: &str = "10000000-0000-4000-8000-000000000001";
        for (would_attach, exit) in [(true, Exit::Done), (false, Exit::Refused)] {
            for output in [Output::TABLE, Output::JSON] {
                let answers = vec![(
                    "servers/10000000-0000-4000-8000-000000000001/os-pci_attachments",
                    200,
                    json!({ "dry_run": run(would_attach) }),
                )];
                let attach = read(&format!("{SERVER} nvme --dry-run")).unwrap();
                let (outcome, _) =
                    answering(answers, async |client| attach.run(&Cli { client, output }).await).await;
                assert_eq!(outcome.unwrap(), exit);
            }
        }
    }

    #[test]
    fn an_alias_without_a_number_is_one_device() {
        let read = |text: &str| text.parse::<Wanted>();
        for (text, alias) in [("a1", "a1:1"), ("a1:2", "a1:2"), ("12", "12:1")] {
            assert_eq!(read(text).unwrap(), Wanted::Alias(alias.into()));
        }
        for bad in ["", ":1", "a1:", "a1:0", "a1:x", "a1:-1", "a1,b1", "a1:1,b1:1", "a1:257"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
