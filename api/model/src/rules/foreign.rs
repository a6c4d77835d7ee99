//! Foreign devices: host devices that others than hotslot put into domains (virsh, Nova). They are shown and left
//! alone, and not offered to anyone.

use std::collections::BTreeMap;

use hotslot_driver::domain::{DomainXml, Hostdev, UserAlias};
use hotslot_driver::hypervisor::DomainView;
use hotslot_driver::pci::PciAddress;

use crate::id::ServerId;

/// A domain that has a device which hotslot did not give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The domain.
    pub server: ServerId,
    /// Its name.
    pub domain: String,
    /// Whether the running guest has it.
    pub live: bool,
    /// Whether the definition has it.
    pub persistent: bool,
}

impl Foreign {
    /// What a domain has that does not carry an alias of ours.
    pub fn of(view: &DomainView) -> BTreeMap<PciAddress, Self> {
        Self::found(view, |document| {
            let hostdevs = document.hostdevs.iter().filter(|hostdev| is_foreign(hostdev));
            hostdevs.map(|hostdev| hostdev.source).collect()
        })
    }

    /// The character devices of vDPA devices that a domain uses: hotslot gives none.
    pub fn vdpas(view: &DomainView) -> BTreeMap<String, Self> {
        Self::found(view, |document| document.vdpas.clone())
    }

    fn found<K: Ord>(view: &DomainView, of: impl Fn(&DomainXml) -> Vec<K>) -> BTreeMap<K, Self> {
        let mut found = BTreeMap::new();
        for (document, live) in [(&view.live, true), (&view.persistent, false)] {
            for key in document.iter().flat_map(&of) {
                let foreign = found.entry(key).or_insert_with(|| Self {
                    server: ServerId(view.info.uuid),
                    domain: view.info.name.clone(),
                    live: false,
                    persistent: false,
                });
                if live {
                    foreign.live = true;
                } else {
                    foreign.persistent = true;
                }
            }
        }
        found
    }

    /// Where the domain has it, for people.
    pub fn place(&self) -> &'static str {
        match (self.live, self.persistent) {
            (true, true) => "running, and in its definition",
            (true, false) => "running, not in its definition",
            (false, _) => "in its definition",
        }
    }

    /// Why a function of this domain's is not offered, and what would help.
    pub fn reason(&self, address: PciAddress) -> String {
        format!(
            "{address} is in domain {} ({}), and hotslot did not put it there; take it out of there (virsh \
             detach-device), or leave it out of device_spec",
            self.domain,
            self.place()
        )
    }
}

/// The owner, as lists show it.
impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "foreign: domain {}", self.domain)
    }
}

fn is_foreign(hostdev: &Hostdev) -> bool {
    hostdev.alias.as_deref().and_then(UserAlias::parse).is_none()
}
