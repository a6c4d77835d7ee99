//! What is asked for: devices for a server, and that one is taken out again.

use std::time::Duration;

use hotslot_driver::hypervisor::{DomainView, Scope};
use hotslot_driver::net::{MacAddress, VlanTag};
use hotslot_model::assignment::Holder;
use hotslot_model::id::ServerId;
use hotslot_model::idempotency::IdempotencyKey;
use hotslot_model::rules::{Alias, AliasRequest, Inventory, NumaPolicy};
use tokio::time::Instant;

use crate::error::Error;

/// What a VF of a NIC is to be in the guest, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkRequest {
    /// Its MAC address; none makes one up.
    pub mac: Option<MacAddress>,
    /// The VLAN that the NIC puts its frames into.
    pub vlan: Option<VlanTag>,
    /// The `physical_network` that its `device_spec` has to say.
    pub physical_network: Option<String>,
    /// Whether its `device_spec` has to say that it may be trusted.
    pub trusted: Option<bool>,
}

/// A request for devices.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The server.
    pub server: ServerId,
    /// What it is to get.
    pub aliases: Vec<AliasRequest>,
    /// Aliases that the request itself defines: they come before configured ones of the same name.
    pub own: Vec<Alias>,
    /// Whether the devices go into the persistent definition too.
    pub persistent: bool,
    /// Whether each part asks for whole IOMMU groups.
    pub whole_group: bool,
    /// In place of the aliases' own policies.
    pub numa_policy: Option<NumaPolicy>,
    /// What a network VF is to be in the guest; none gives plain PCI functions.
    pub network: Option<NetworkRequest>,
    /// By what its next try is known.
    pub key: Option<IdempotencyKey>,
    /// On whose behalf it is made; none: on its own.
    pub holder: Option<Holder>,
}

impl AttachRequest {
    /// The alias of a name.
    pub(super) fn alias<'a>(&'a self, inventory: &'a Inventory, name: &str) -> Option<&'a Alias> {
        self.own.iter().find(|alias| alias.name == name).or_else(|| inventory.alias(name))
    }
}

/// Where an attach to a server in this state takes effect.
pub(crate) fn scope(view: &DomainView, persistent: bool) -> Result<Scope, Error> {
    match (view.live.is_some(), view.persistent.is_some(), persistent) {
        (true, true, true) => Ok(Scope::LiveAndConfig),
        // A transient domain has no definition to go into.
        (true, false, _) | (true, true, false) => Ok(Scope::Live),
        (false, true, true) => Ok(Scope::Config),
        (false, _, false) => Err(Error::Conflict(format!(
            "server {} is shut off: a device can only go into its definition; leave \"persistent\" out or true",
            view.info.uuid
        ))),
        (false, false, true) => Err(Error::NoServer(ServerId(view.info.uuid))),
    }
}

/// How an attachment is to be made to go.
#[derive(Debug, Clone, Copy, Default)]
pub struct DetachRequest {
    /// How long its guest is asked, and its answer waited for; none: as configured.
    pub timeout: Option<Duration>,
    /// Whether no policy counts, and the device stays out of the definition whatever the guest says.
    pub force: bool,
    /// On whose behalf it is asked for: an attachment goes where it came from.
    pub holder: Option<Holder>,
}

/// An ask of a guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    /// Until when; none: as configured.
    pub(crate) until: Option<Instant>,
    /// Whether it is the first for this detach: no earlier one can be under way in the guest.
    pub(crate) first: bool,
}
