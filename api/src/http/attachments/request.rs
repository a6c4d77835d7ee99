//! The request to attach devices to a server.

use std::collections::BTreeSet;

use hotslot_driver::net::VlanTag;
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vf::{MAX_TX_RATE, VfSettings};
use hotslot_driver::vgpu;
use hotslot_model::id::ServerId;
use hotslot_model::idempotency::IdempotencyKey;
use hotslot_model::rules;
use hotslot_model::rules::{Alias, AliasRequest, AliasRequests, MAX_DEVICES, NumaPolicy};
use hotslot_service::assignment::{AttachRequest, NetworkRequest};
use hotslot_service::config::Flavor;
use hotslot_service::error::Error;
use hotslot_service::flavor;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::http::schema;

pub(super) const EXAMPLE: &str = r#"{"pciAttachment": {"pci_passthrough:alias": "a1:1"}}"#;

/// The maximum length of the name of a physical network, in characters.
const PHYSICAL_NETWORK: usize = 255;

/// A request to attach devices to a server.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewPciAttachments)]
pub(in crate::http) struct CreateBody {
    /// What is to be attached.
    #[serde(rename = "pciAttachment")]
    pub(super) attachment: CreateAttachment,
    /// Whether to report only what an attach would do. It is accepted here and in `pciAttachment`.
    #[serde(default)]
    pub(super) dry_run: bool,
}

/// What is to be attached. Either `pci_passthrough:alias` or `flavor` is given.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewPciAttachment)]
pub(in crate::http) struct CreateAttachment {
    /// Which devices: names of aliases with the number of devices of each, such as `a1:2,b1:1`.
    #[serde(rename = "pci_passthrough:alias")]
    #[schema(value_type = Option<schema::AliasRequests>)]
    alias: Option<String>,
    /// The id or name of a flavor whose extra specs name the aliases; an alternative to `alias`.
    flavor: Option<String>,
    /// The addresses of devices on the host of the server, at most 256, in addition to `alias` or instead of it. The
    /// devices must be assignable. It needs the right `hotslot:attachment:create_by_address`.
    #[serde(default)]
    #[schema(value_type = Vec<schema::PciAddress>, max_items = 256)]
    pub(super) addresses: Vec<String>,
    /// Whether the device is also added to the persistent definition, so that it survives a power cycle.
    #[serde(default = "yes")]
    persistent: bool,
    /// Whether to report only what an attach would do.
    #[serde(default)]
    pub(super) dry_run: bool,
    /// Whether each part of the request takes whole IOMMU groups.
    #[serde(default)]
    whole_group: bool,
    /// Overrides the NUMA policies of the aliases.
    #[schema(value_type = Option<schema::NumaPolicyName>)]
    numa_policy: Option<String>,
    /// The type of virtual GPU that the VFs are to be of, for VFs whose driver makes virtual GPUs of them: its id
    /// (`nvidia-1155`), its name or the vendor's number, at most 128 characters. `GET
    /// os-hypervisors/{id}/pci_devices/{address}` lists them. It is set before the VF is plugged and taken away after it was
    /// detached. `mdev_type` is the same key.
    #[serde(alias = "mdev_type")]
    #[schema(min_length = 1, max_length = 128, pattern = "^[ -~]+$")]
    vgpu_type: Option<String>,
    /// The MAC address of a VF of a NIC. This key and the following ones apply to such a VF, which is then attached as
    /// `<interface type='hostdev'>`. Only administrators and services may give it.
    #[schema(value_type = Option<schema::MacAddress>)]
    mac_address: Option<String>,
    /// The VLAN of the VF, 1 to 4094. Only administrators and services may give it.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 4094)]
    vlan: Option<i64>,
    /// The physical network that the VF must have, at most 255 characters.
    #[schema(max_length = 255)]
    physical_network: Option<String>,
    /// Whether the guest may change what the VF filters. The `device_spec` of the VF must have the same value, and the PF
    /// is told so before the VF is plugged. Only administrators and services may set it to true.
    trusted: Option<bool>,
    /// Whether the NIC drops frames of the VF whose source address is not that of the VF. This key and the following ones
    /// are set before the VF is plugged and put back after it was detached. Only administrators and services may give
    /// them.
    spoof_check: Option<bool>,
    /// The link that the guest sees: `auto` for that of the NIC, `enable` for always up, `disable` for always down.
    #[schema(value_type = Option<schema::VfLinkState>)]
    link_state: Option<String>,
    /// The bandwidth that is guaranteed to the VF, in Mbit/s; 0 is none.
    #[schema(value_type = Option<u32>, minimum = 0, maximum = 1000000)]
    min_tx_rate: Option<i64>,
    /// The bandwidth that the VF cannot exceed, in Mbit/s; 0 is no limit.
    #[schema(value_type = Option<u32>, minimum = 0, maximum = 1000000)]
    max_tx_rate: Option<i64>,
}

impl CreateAttachment {
    /// Returns the settings of VFs that libvirt has no word for, without `trusted`.
    fn vf_settings(&self) -> Result<VfSettings, Error> {
        let link_state = self.link_state.as_deref().map(str::parse).transpose();
        let rate = |key, rate: Option<i64>| {
            let Some(rate) = rate else { return Ok(None) };
            let admitted = u32::try_from(rate).ok().filter(|rate| *rate <= MAX_TX_RATE);
            let wrong = || bad(key, &format_args!("invalid rate {rate}: expected 0 to {MAX_TX_RATE} Mbit/s"));
            admitted.map(Some).ok_or_else(wrong)
        };
        let min = rate("min_tx_rate", self.min_tx_rate)?;
        let max = rate("max_tx_rate", self.max_tx_rate)?;
        if let (Some(min), Some(max)) = (min, max)
            && max != 0
            && min > max
        {
            let reason = format!(
                "{min} is more than max_tx_rate, {max}; lower it, or set max_tx_rate to 0, which is no limit"
            );
            return Err(bad("min_tx_rate", &reason));
        }
        Ok(VfSettings {
            trust: None,
            spoof_check: self.spoof_check,
            link_state: link_state.map_err(|error| bad("link_state", &error))?,
            min_tx_rate: min,
            max_tx_rate: max,
        })
    }

    pub(super) fn request(
        self,
        flavors: &[Flavor],
        server: ServerId,
        key: Option<IdempotencyKey>,
    ) -> Result<AttachRequest, Error> {
        let vf = self.vf_settings()?;
        let (by_address, own) = by_address(&self.addresses)?;
        let (alias, own_policy) = match (self.alias, self.flavor) {
            (Some(alias), None) => (Some(alias), None),
            (None, Some(name)) => {
                let flavor = flavor::called(flavors, &name).ok_or_else(|| {
                    bad("flavor", &format!("there is no flavor `{name}`; GET flavors lists them"))
                })?;
                let alias = flavor.extra_specs.get(flavor::PCI_ALIAS).ok_or_else(|| {
                    bad("flavor", &format!("`{name}` has no extra spec {}", flavor::PCI_ALIAS))
                })?;
                (Some(alias.clone()), flavor.extra_specs.get(flavor::NUMA_POLICY).cloned())
            }
            (None, None) if !own.is_empty() => (None, None),
            (None, None) | (Some(_), Some(_)) => {
                return Err(Error::Invalid(format!(
                    "bad body: give either pci_passthrough:alias or flavor, or addresses; send {EXAMPLE}"
                )));
            }
        };
        let parsed = alias.map(|alias| alias.parse()).transpose();
        let parsed: Option<AliasRequests> = parsed.map_err(|error| bad("pci_passthrough:alias", &error))?;
        let mut aliases = parsed.map(|parsed| parsed.0).unwrap_or_default();
        aliases.extend(by_address);
        let mac = self.mac_address.as_deref().map(str::parse).transpose();
        let network = NetworkRequest {
            mac: mac.map_err(|error| bad("mac_address", &error))?,
            vlan: self.vlan.map(vlan).transpose().map_err(|error| bad("vlan", &error))?,
            physical_network: self.physical_network,
            trusted: self.trusted,
            vf,
        };
        if network.physical_network.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(rules::NULL)) {
            return Err(bad("physical_network", &"`null` is not a valid name; omit the key"));
        }
        if network.physical_network.as_ref().is_some_and(|name| name.chars().count() > PHYSICAL_NETWORK) {
            return Err(bad(
                "physical_network",
                &format_args!("a name has at most {PHYSICAL_NETWORK} characters"),
            ));
        }
        let count: usize = aliases.iter().map(|part| part.count).sum();
        if count > MAX_DEVICES {
            return Err(bad("addresses", &format!("a request has at most {MAX_DEVICES} devices")));
        }
        if network.mac.is_some() && count != 1 {
            return Err(bad(
                "mac_address",
                &format!(
                    "it applies to one device, and {count} are requested; omit mac_address, or request one device at a time"
                ),
            ));
        }
        if let Some(of) = &self.vgpu_type {
            vgpu::check_name(of).map_err(|error| bad("vgpu_type", &error))?;
        }
        let numa_policy = self.numa_policy.or(own_policy).as_deref().map(str::parse).transpose();
        Ok(AttachRequest {
            server,
            aliases,
            own,
            persistent: self.persistent,
            whole_group: self.whole_group,
            numa_policy: numa_policy.map_err(|error: String| bad("numa_policy", &error))?,
            network: (network != NetworkRequest::default()).then_some(network),
            vgpu_type: self.vgpu_type,
            key,
            holder: None,
            owner: None,
        })
    }
}

fn vlan(tag: i64) -> Result<VlanTag, String> {
    let tag = u32::try_from(tag).map_err(|_| format!("invalid VLAN tag {tag}: expected 1 to 4094"))?;
    VlanTag::new(tag).map_err(|error| error.to_string())
}

fn bad(key: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Invalid(format!("{key}: {error}"))
}

/// Makes an alias of its own for each address, because an alias is what an attach chooses devices by.
fn by_address(addresses: &[String]) -> Result<(Vec<AliasRequest>, Vec<Alias>), Error> {
    let bad = |reason: &dyn std::fmt::Display| Error::Invalid(format!("addresses: {reason}"));
    let mut seen = BTreeSet::new();
    let (mut requests, mut aliases) = (Vec::new(), Vec::new());
    for text in addresses {
        let address: PciAddress = text.parse().map_err(|error| bad(&error))?;
        let name = address.to_string();
        if name != *text {
            return Err(bad(&format_args!("write {name} instead of `{text}`")));
        }
        // A device that is named twice is attached once.
        if !seen.insert(address) {
            continue;
        }
        requests.push(AliasRequest { name: name.clone(), count: 1 });
        aliases.push(Alias::among(name, &BTreeSet::from([address]), NumaPolicy::Preferred));
    }
    Ok((requests, aliases))
}

fn yes() -> bool {
    true
}
