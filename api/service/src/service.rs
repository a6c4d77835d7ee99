//! The service as one value: its parts, each of which does one kind of work.
//!
//! ```text
//! hosts ← catalog ← assignments ← accelerators ← cyborg      a part uses those before it
//! ```

use std::sync::Arc;

use hotslot_model::identity::Policy;
use hotslot_model::rules::Profiles;
use hotslot_store::Store;

use crate::accelerator::Accelerators;
use crate::assignment::Assignments;
use crate::audit::Audit;
use crate::config::Config;
use crate::current::Current;
use crate::cyborg::Cyborg;
use crate::feed::Feed;
use crate::hosts::Hosts;
use crate::idempotency::Idempotency;
use crate::identity::Callers;
use crate::inventory::Catalog;
use crate::lifecycle::Lifecycle;
use crate::monitor::Monitor;
use crate::quota::Quotas;
use crate::rate::Rates;
use crate::records::Records;
use crate::settings::Settings;
use crate::webhook::Webhooks;

/// The running service.
pub struct Service {
    /// The configuration.
    pub config: Arc<Current<Config>>,
    /// Who calls.
    pub callers: Arc<Callers>,
    /// How often each caller may send a request.
    pub rates: Arc<Rates>,
    /// Who may do what.
    pub policy: Arc<Current<Policy>>,
    /// How the configuration and the policy are read again.
    pub settings: Arc<Settings>,
    /// The database; only the parts change it.
    pub(crate) store: Store,
    /// The records, to be read.
    pub records: Arc<Records>,
    /// The hosts.
    pub hosts: Arc<Hosts>,
    /// Which devices are assignable, and by which names.
    pub catalog: Arc<Catalog>,
    /// Devices in servers, and in the use of their hosts.
    pub assignments: Arc<Assignments>,
    /// Accelerators.
    pub accelerators: Arc<Accelerators>,
    /// Cyborg's nouns.
    pub cyborg: Arc<Cyborg>,
    /// How much of each resource a project may use.
    pub quotas: Arc<Quotas>,
    /// Answers that are kept for requests that are sent again.
    pub idempotency: Arc<Idempotency>,
    /// The configured webhooks, to which events are posted.
    pub webhooks: Arc<Webhooks>,
    /// The events for the clients that follow them.
    pub feed: Arc<Feed>,
    /// The refused requests that are to be recorded.
    pub audit: Arc<Audit>,
    /// The metrics for Prometheus.
    pub monitor: Arc<Monitor>,
    /// The end of the service.
    pub lifecycle: Arc<Lifecycle>,
}

impl Service {
    /// Waits until what the profiles say was made or failed, at the hosts that are this machine and have a profile.
    pub async fn profiled(&self) {
        let config = self.config.get();
        for host in self.hosts.iter().filter(|host| !host.hypervisor.is_remote()) {
            if !Profiles::of_host(&config.profile, &host.name).is_empty() {
                host.profiled().await;
            }
        }
    }

    /// Records the refusals that are not recorded yet, and closes the database.
    pub async fn close(&self) {
        self.audit.record_all().await;
        self.store.close().await;
    }
}
