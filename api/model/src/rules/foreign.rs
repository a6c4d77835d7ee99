//! Foreign devices: host devices in domains that were not attached by hotslot, but for example by virsh or Nova. They
//! are listed, never changed, and unavailable to requests.

use std::collections::BTreeMap;

use hotslot_driver::domain::{DomainXml, Hostdev, UserAlias};
use hotslot_driver::hypervisor::DomainView;
use hotslot_driver::pci::PciAddress;

use crate::id::ServerId;

/// A domain that has a device which hotslot did not attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The UUID of the domain.
    pub server: ServerId,
    /// The name of the domain.
    pub domain: String,
    /// Whether the running guest has the device.
    pub live: bool,
    /// Whether the persistent definition has the device.
    pub persistent: bool,
}

impl Foreign {
    /// Returns the host devices of a domain that have no hotslot alias.
    pub fn of(view: &DomainView) -> BTreeMap<PciAddress, Self> {
        Self::found(view, |document| {
            let hostdevs = document.hostdevs.iter().filter(|hostdev| is_foreign(hostdev));
            hostdevs.map(|hostdev| hostdev.source).collect()
        })
    }

    /// Returns the character devices of the vDPA devices that a domain uses. All are foreign, because hotslot does not
    /// attach vDPA devices.
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

    /// Returns where the domain has the device, as text.
    pub fn place(&self) -> &'static str {
        match (self.live, self.persistent) {
            (true, true) => "running, and in its definition",
            (true, false) => "running, not in its definition",
            (false, _) => "in its definition",
        }
    }

    /// Returns the reason why a function in this domain is unavailable, and what the administrator can do.
    pub fn reason(&self, address: PciAddress) -> String {
        format!(
            "{address} is in domain {} ({}), and hotslot did not attach it; detach it there (virsh detach-device), \
             or remove it from device_spec",
            self.domain,
            self.place()
        )
    }
}

/// The owner, as shown in lists.
impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "foreign: domain {}", self.domain)
    }
}

fn is_foreign(hostdev: &Hostdev) -> bool {
    hostdev.alias.as_deref().and_then(UserAlias::parse).is_none()
}
