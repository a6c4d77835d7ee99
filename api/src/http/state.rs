//! The state of the router: the service. A handler takes only the parts of it that it uses: one part
//! (`State<Arc<Catalog>>`), or one of the sets below that several handlers share (`State<DeviceParts>`).

use std::sync::Arc;

use axum::extract::FromRef;
use hotslot_model::identity::Policy;
use hotslot_service::accelerator::Accelerators;
use hotslot_service::assignment::Assignments;
use hotslot_service::audit::Audit;
use hotslot_service::config::Config;
use hotslot_service::cyborg::Cyborg;
use hotslot_service::feed::Feed;
use hotslot_service::hosts::Hosts;
use hotslot_service::idempotency::Idempotency;
use hotslot_service::identity::Callers;
use hotslot_service::inventory::Catalog;
use hotslot_service::lifecycle::Lifecycle;
use hotslot_service::monitor::Monitor;
use hotslot_service::quota::Quotas;
use hotslot_service::rate::Rates;
use hotslot_service::records::Records;
use hotslot_service::service::Service;
use hotslot_service::settings::Settings;
use hotslot_service::webhook::Webhooks;

/// The service, as the router has it.
#[derive(Clone)]
pub(super) struct App(pub(super) Arc<Service>);

/// Lets handlers take a part of the service.
macro_rules! parts {
    ($($field:ident: $Part:ty),* $(,)?) => {
        $(impl FromRef<App> for Arc<$Part> {
            fn from_ref(app: &App) -> Self {
                Arc::clone(&app.0.$field)
            }
        })*
    };
}

parts! {
    callers: Callers,
    rates: Rates,
    records: Records,
    hosts: Hosts,
    catalog: Catalog,
    assignments: Assignments,
    accelerators: Accelerators,
    cyborg: Cyborg,
    quotas: Quotas,
    idempotency: Idempotency,
    webhooks: Webhooks,
    feed: Feed,
    audit: Audit,
    lifecycle: Lifecycle,
    monitor: Monitor,
    settings: Settings,
}

/// Lets handlers take what is in force when they begin.
macro_rules! in_force {
    ($($field:ident: $Value:ty),* $(,)?) => {
        $(impl FromRef<App> for Arc<$Value> {
            fn from_ref(app: &App) -> Self {
                app.0.$field.get()
            }
        })*
    };
}

in_force! {
    config: Config,
    policy: Policy,
}

/// The parts that know the devices of the hosts.
pub(super) struct DeviceParts {
    pub(super) hosts: Arc<Hosts>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) records: Arc<Records>,
    pub(super) config: Arc<Config>,
}

impl FromRef<App> for DeviceParts {
    fn from_ref(app: &App) -> Self {
        Self {
            hosts: Arc::from_ref(app),
            catalog: Arc::from_ref(app),
            records: Arc::from_ref(app),
            config: Arc::from_ref(app),
        }
    }
}

/// The parts that attach devices.
pub(super) struct AttachParts {
    pub(super) assignments: Arc<Assignments>,
    pub(super) hosts: Arc<Hosts>,
    pub(super) config: Arc<Config>,
}

impl FromRef<App> for AttachParts {
    fn from_ref(app: &App) -> Self {
        Self { assignments: Arc::from_ref(app), hosts: Arc::from_ref(app), config: Arc::from_ref(app) }
    }
}

/// The parts that answer requests for accelerators.
pub(super) struct AcceleratorParts {
    pub(super) accelerators: Arc<Accelerators>,
    pub(super) hosts: Arc<Hosts>,
    pub(super) records: Arc<Records>,
}

impl FromRef<App> for AcceleratorParts {
    fn from_ref(app: &App) -> Self {
        Self { accelerators: Arc::from_ref(app), hosts: Arc::from_ref(app), records: Arc::from_ref(app) }
    }
}

/// The parts that decide who calls, and what a caller may do.
pub(super) struct IdentityParts {
    pub(super) callers: Arc<Callers>,
    pub(super) rates: Arc<Rates>,
    pub(super) policy: Arc<Policy>,
    pub(super) config: Arc<Config>,
}

impl FromRef<App> for IdentityParts {
    fn from_ref(app: &App) -> Self {
        Self {
            callers: Arc::from_ref(app),
            rates: Arc::from_ref(app),
            policy: Arc::from_ref(app),
            config: Arc::from_ref(app),
        }
    }
}
