//! The state of the router: the service. A handler takes the parts of it that it uses (`State<Arc<Catalog>>`), and the
//! whole service only where an answer is put together from most of them.

use std::sync::Arc;

use axum::extract::FromRef;
use hotslot_service::accelerator::Accelerators;
use hotslot_service::assignment::Assignments;
use hotslot_service::config::Config;
use hotslot_service::cyborg::Cyborg;
use hotslot_service::hosts::Hosts;
use hotslot_service::idempotency::Idempotency;
use hotslot_service::inventory::Catalog;
use hotslot_service::lifecycle::Lifecycle;
use hotslot_service::records::Records;
use hotslot_service::service::Service;

/// The service, as the router has it.
#[derive(Clone)]
pub(super) struct App(pub(super) Arc<Service>);

impl FromRef<App> for Arc<Service> {
    fn from_ref(app: &App) -> Self {
        Arc::clone(&app.0)
    }
}

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
    config: Config,
    records: Records,
    hosts: Hosts,
    catalog: Catalog,
    assignments: Assignments,
    accelerators: Accelerators,
    cyborg: Cyborg,
    idempotency: Idempotency,
    lifecycle: Lifecycle,
}
