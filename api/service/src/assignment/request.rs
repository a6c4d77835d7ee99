//! The requests to attach devices to a server and to detach them.

use std::collections::BTreeMap;
use std::time::Duration;

use hotslot_driver::hypervisor::{DomainView, Scope};
use hotslot_driver::net::{MacAddress, VlanTag};
use hotslot_driver::vf::VfSettings;
use hotslot_model::assignment::{Holder, Network};
use hotslot_model::id::ServerId;
use hotslot_model::idempotency::IdempotencyKey;
use hotslot_model::rules::{Alias, AliasRequest, Inventory, NumaPolicy};
use tokio::time::Instant;

use crate::error::Error;

/// The network settings that a request has for VFs of NICs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkRequest {
    /// The MAC address; `None` for a generated one.
    pub mac: Option<MacAddress>,
    /// The VLAN tag that the NIC adds to the frames of the VF.
    pub vlan: Option<VlanTag>,
    /// The `physical_network` that the VF's `device_spec` must have.
    pub physical_network: Option<String>,
    /// The `trusted` tag that the VF's `device_spec` must have, and whether its PF trusts it.
    pub trusted: Option<bool>,
    /// The other settings that libvirt has no word for; `trust` is `None`.
    pub vf: VfSettings,
}

/// A request to attach devices.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The server.
    pub server: ServerId,
    /// The requested devices: names of aliases, each with a count.
    pub aliases: Vec<AliasRequest>,
    /// Aliases that the request itself defines. They take precedence over configured aliases of the same name.
    pub own: Vec<Alias>,
    /// Whether the devices are also added to the persistent definition.
    pub persistent: bool,
    /// Whether whole IOMMU groups are requested.
    pub whole_group: bool,
    /// The NUMA policy that replaces those of the aliases.
    pub numa_policy: Option<NumaPolicy>,
    /// The network settings of VFs of NICs; `None` attaches plain PCI functions.
    pub network: Option<NetworkRequest>,
    /// The type of virtual GPU that the VFs are to be of: its id, its name or the vendor's number; `None` takes devices as
    /// they are, or as their aliases say.
    pub vgpu_type: Option<String>,
    /// The idempotency key, by which a repetition of the request is recognized.
    pub key: Option<IdempotencyKey>,
    /// The accelerator or accelerator request that the devices are for; `None` for a plain attachment.
    pub holder: Option<Holder>,
    /// The project that must own the server when its turn comes; `None` when the caller may use every server.
    pub owner: Option<String>,
}

impl AttachRequest {
    /// Checks that the server still belongs to the project for which the caller was admitted.
    ///
    /// # Errors
    /// [`Error::NoServer`] when it does not.
    pub(super) fn expect_owner(&self, view: &DomainView) -> Result<(), Error> {
        match &self.owner {
            Some(owner) if view.ownership().project() != Some(owner) => Err(Error::NoServer(self.server)),
            Some(_) | None => Ok(()),
        }
    }

    /// Finds an alias by its name, first among the request's own.
    pub(super) fn alias<'a>(&'a self, inventory: &'a Inventory, name: &str) -> Option<&'a Alias> {
        self.own.iter().find(|alias| alias.name == name).or_else(|| inventory.alias(name))
    }

    /// Returns the type of virtual GPU that the devices of a part are to be of.
    pub(super) fn vgpu_type<'a>(&'a self, inventory: &'a Inventory, name: &str) -> Option<&'a str> {
        let of_alias = || self.alias(inventory, name)?.vgpu_type.as_deref();
        self.vgpu_type.as_deref().or_else(of_alias)
    }

    /// Checks that the aliases exist.
    ///
    /// # Errors
    /// [`Error::UnknownAlias`].
    pub(super) fn expect_aliases(&self, inventory: &Inventory) -> Result<(), Error> {
        let mut names = self.aliases.iter().map(|part| &part.name);
        names.try_for_each(|name| {
            self.alias(inventory, name).map(drop).ok_or_else(|| unknown_alias(inventory, name))
        })
    }

    /// Returns the tags that the network settings require of each device.
    pub(super) fn tags(&self) -> BTreeMap<String, String> {
        let mut tags = BTreeMap::new();
        if let Some(network) = &self.network {
            tags.extend(network.physical_network.clone().map(|name| ("physical_network".to_owned(), name)));
            tags.extend(network.trusted.map(|trusted| ("trusted".to_owned(), trusted.to_string())));
        }
        tags
    }
}

impl NetworkRequest {
    /// All settings that libvirt has no word for.
    pub fn vf_settings(&self) -> VfSettings {
        VfSettings { trust: self.trusted, ..self.vf }
    }

    /// Returns the network settings to record. Without a requested MAC address, a random one is generated with
    /// Neutron's prefix.
    pub(super) fn settled(&self) -> Network {
        Network {
            mac: self.mac.unwrap_or_else(MacAddress::random),
            vlan: self.vlan,
            physical_network: self.physical_network.clone(),
            trusted: self.trusted,
            vf: self.vf,
        }
    }
}

/// Returns the error for a name that no alias has.
pub(super) fn unknown_alias(inventory: &Inventory, name: &str) -> Error {
    let known: Vec<_> = inventory.alias_names().collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Error::UnknownAlias { name: name.to_owned(), known }
}

/// Determines which of a domain's documents an attach changes, from the state of the domain and `persistent`.
///
/// # Errors
/// [`Error::Busy`] for a shut-off server when the attach is not persistent; [`Error::NoServer`] when the domain has
/// no document.
pub(crate) fn scope(view: &DomainView, persistent: bool) -> Result<Scope, Error> {
    match (view.live.is_some(), view.persistent.is_some(), persistent) {
        (true, true, true) => Ok(Scope::LiveAndConfig),
        // A transient domain has no definition to go into.
        (true, false, _) | (true, true, false) => Ok(Scope::Live),
        (false, true, true) => Ok(Scope::Config),
        (false, _, false) => Err(Error::Busy(format!(
            "server {} is shut off, so devices can only be added to its definition; omit \"persistent\" or set it to \
             true",
            view.info.uuid
        ))),
        (false, false, true) => Err(Error::NoServer(ServerId(view.info.uuid))),
    }
}

/// A request to detach a device.
#[derive(Debug, Clone, Copy, Default)]
pub struct DetachRequest {
    /// How long to wait for the guest to release the device; `None` for the configured time.
    pub timeout: Option<Duration>,
    /// Whether policies are ignored, and the device stays out of the definition even when the guest keeps it.
    pub force: bool,
    /// The accelerator or accelerator request that requests the detach. It must be the holder of the assignment.
    pub holder: Option<Holder>,
}

/// One attempt to release an assignment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// When to stop waiting for the guest; `None` for the configured time.
    pub(crate) until: Option<Instant>,
    /// Whether this is the first attempt, so that no earlier unplug request can be pending in the guest.
    pub(crate) first: bool,
}
