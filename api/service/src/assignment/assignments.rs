//! The part of the service that assigns devices to servers and to their hosts, and releases them.

use std::sync::Arc;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::DetachLimits;
use hotslot_driver::xml::hostdev::{HostdevSpec, InterfaceSpec, Templates};
use hotslot_model::assignment::Attachment;
use hotslot_model::device::Device;
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::ServerId;
use hotslot_store::Store;

use super::choosing::Choosing;
use crate::config::Config;
use crate::current::Current;
use crate::error::Error;
use crate::host::Host;
use crate::hosts::Hosts;
use crate::idempotency::Idempotency;
use crate::inventory::Catalog;
use crate::locks::{InFlight, KeyedGuard, KeyedMutex};

/// Assigns devices to servers and to their hosts, and releases them.
pub struct Assignments {
    pub(crate) config: Arc<Current<Config>>,
    pub(crate) store: Store,
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) idempotency: Arc<Idempotency>,
    /// The templates of the hostdev documents.
    pub(crate) templates: Templates,
    /// The assignments that somebody works on; reconciliation leaves them alone.
    pub(crate) in_flight: Arc<InFlight>,
    /// The assignments whose address is being verified.
    pub(crate) verifying: Arc<InFlight>,
    /// Serializes attaches to one server.
    pub(crate) turns: Arc<KeyedMutex>,
    /// The devices that attaches are about to claim.
    pub(crate) choosing: Arc<Choosing>,
}

impl Assignments {
    /// Waits for the turn of a request at a server, and then checks that its host may still be changed: it may have been
    /// frozen meanwhile.
    ///
    /// # Errors
    /// [`Error::Restricted`]; errors of the database.
    pub(crate) async fn turn_at(
        &self,
        host: &Host,
        server: ServerId,
        change: HostChange,
    ) -> Result<KeyedGuard, Error> {
        let turn = self.turns.of(format!("server {server}")).await?;
        self.hosts.expect_open(host, change).await?;
        Ok(turn)
    }

    /// Returns the configured limits of unplugging a device.
    pub fn detach_limits(&self) -> DetachLimits {
        let config = self.config.get();
        DetachLimits { attempts: config.detach.attempts, timeout: config.detach.timeout.0, total: None }
    }
}

/// Returns the hostdev document of an attachment.
pub(crate) fn hostdev_spec(attachment: &Attachment, device: &Device) -> HostdevSpec {
    HostdevSpec {
        source: device.facts.address,
        alias: UserAlias(attachment.id.0),
        managed: attachment.managed,
        rom_bar: None,
        guest: None,
        interface: attachment
            .network
            .as_ref()
            .map(|network| InterfaceSpec { mac: network.mac, vlan: network.vlan }),
    }
}
