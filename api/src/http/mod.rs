//! The routes: one file per resource. Only [`error`] maps errors to status codes.
//!
//! `/v2/{tenant_id}/…`, `/v2.1/…`, `/v2.1/{project_id}/…` and `/v3/…` serve the same resources. What a caller may see
//! and change follows from the caller alone (`policy.rs`). A path that names another project than the caller's is refused,
//! as by Nova.

mod accelerators;
mod attachments;
mod audit;
mod body;
mod certificate;
mod connection;
mod connections;
mod cyborg;
mod drift;
pub mod error;
pub(crate) mod events;
mod explain;
mod flavors;
mod health;
mod hypervisors;
mod idempotency;
mod identity;
mod limits;
mod metrics;
mod origin;
mod pci;
mod pci_config;
mod pci_owner;
mod permit;
mod policy;
mod quotas;
mod requests;
mod servers;
mod service;
mod state;
mod tls;
mod topology;
mod versions;
mod webhooks;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
pub use connections::{Listener, serve};
use hotslot_service::audit::Audit;
use hotslot_service::error::Error;
use hotslot_service::lifecycle::Lifecycle;
use hotslot_service::metrics::{REQUESTS, Timer, answered};
use hotslot_service::records::Records;
use hotslot_service::service::Service;
pub use policy::routes_of;
pub use tls::Tls;

use hotslot_store::actor;
use tracing::Instrument as _;
use uuid::Uuid;

use self::error::Fault;
use self::state::App;

/// The API version of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// v2 of the wiki page "Nova/pci hotplug": DELETE waits for the detach and returns 200.
    V2,
    /// Nova's v2.1: DELETE behaves as in v3.
    V21,
    /// v3 of the wiki page "Nova/pci hotplug": DELETE returns 202 at once.
    V3,
}

/// Returns all routes, with their middleware.
pub fn router(service: Arc<Service>) -> Router {
    let app = App(service);
    let operators = Router::new()
        .merge(unversioned())
        .nest("/v2/{tenant_id}", resources(Version::V2))
        .nest("/v2.1/{project_id}", resources(Version::V21))
        .nest("/v2.1", resources(Version::V21))
        .nest("/v3", resources(Version::V3));
    Router::new()
        .route("/", get(versions::all))
        .route("/v2", get(versions::v2))
        .route("/v2/", get(versions::v2))
        .route("/v2.1", get(versions::v21))
        .route("/v2.1/", get(versions::v21))
        .route("/v3", get(versions::v3))
        .route("/v3/", get(versions::v3))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::show))
        .merge(operators)
        .merge(accelerators::routes())
        .nest("/v1", accelerators::routes())
        .merge(cyborg::routes())
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::no_method)
        .layer(middleware::from_fn_with_state(app.clone(), idempotency::answer_once))
        .layer(middleware::from_fn_with_state(app.clone(), limits::enforce))
        .layer(DefaultBodyLimit::max(limits::BODY))
        .layer(middleware::from_fn_with_state(app.clone(), policy::admit))
        .layer(middleware::from_fn_with_state(app.clone(), origin::refuse_other_origins))
        .layer(middleware::from_fn(cyborg::microversion))
        .layer(middleware::from_fn_with_state(app.clone(), with_request_id))
        .with_state(app)
}

/// Resources that Nova does not have. They are served with and without a version prefix.
fn unversioned() -> Router<App> {
    Router::new()
        .route("/drift", get(drift::list).post(drift::repair))
        .route("/events", get(events::list))
        .route("/service", get(service::show))
        .route("/service/reload", post(service::reload))
        .route("/service/log-level", get(service::log_level).put(service::set_log_level))
        .route("/webhooks", get(webhooks::list))
        .route("/webhooks/{name}/redeliver", post(webhooks::redeliver))
}

fn resources(version: Version) -> Router<App> {
    unversioned()
        .route("/servers", get(servers::list))
        .route("/servers/detail", get(servers::detail))
        .route("/servers/{server_id}", get(servers::show))
        .route("/servers/{server_id}/pci_topology", get(topology::show))
        .route("/servers/{server_id}/pci_owner", get(pci_owner::show).put(pci_owner::update))
        .route("/servers/{server_id}/os-pci_attachments", post(attachments::create).get(attachments::list))
        .route(
            "/servers/{server_id}/os-pci_attachments/{attachment_id}",
            get(attachments::show).delete(attachments::delete),
        )
        .route("/os-pci_attachments", get(attachments::list_all))
        .route("/os-pci", get(pci::list))
        .route("/os-pci/detail", get(pci::detail))
        .route("/os-pci/{device_id}", get(pci::show))
        .route("/os-pci/{device_id}/action", post(pci::act))
        .route("/os-hypervisors", get(hypervisors::list))
        .route("/os-hypervisors/detail", get(hypervisors::detail))
        .route("/os-hypervisors/{hypervisor_id}", get(hypervisors::show))
        .route("/os-hypervisors/{hypervisor_id}/search", get(hypervisors::search))
        .route("/os-hypervisors/{hypervisor_id}/uptime", get(hypervisors::uptime))
        .route("/os-hypervisors/{hypervisor_id}/pci_devices", get(hypervisors::functions))
        .route("/os-hypervisors/{hypervisor_id}/pci_devices/{address}", get(explain::device))
        .route("/os-hypervisors/{hypervisor_id}/pci_candidates", get(explain::candidates))
        .route("/os-hypervisors/{hypervisor_id}/drift", get(drift::of_host).post(drift::repair_host))
        .route("/os-aggregates", get(hypervisors::aggregates))
        .route("/os-pci-config", get(pci_config::names))
        .route("/os-pci-config/group", get(pci_config::groups))
        .route("/os-pci-config/{kind}", get(pci_config::list).post(pci_config::create))
        .route(
            "/os-pci-config/{kind}/{entry_id}",
            get(pci_config::show).put(pci_config::replace).delete(pci_config::delete),
        )
        .route("/os-quota-sets/{quota_id}", get(quotas::show).put(quotas::update).delete(quotas::delete))
        .route("/os-quota-sets/{quota_id}/detail", get(quotas::detail))
        .route("/os-quota-sets/{quota_id}/defaults", get(quotas::defaults))
        .route("/flavors", get(flavors::list))
        .route("/flavors/detail", get(flavors::detail))
        .route("/flavors/{flavor_id}", get(flavors::show))
        .route("/flavors/{flavor_id}/os-extra_specs", get(flavors::extra_specs))
        .route("/flavors/{flavor_id}/os-extra_specs/{key}", get(flavors::extra_spec))
        .method_not_allowed_fallback(error::no_method)
        .layer(Extension(version))
}

/// Gives every request an id and a tracing span, and adds the headers that Nova's clients read. A request that may
/// change something runs in a task of its own, so that it completes even when its client disconnects.
async fn with_request_id(
    State(lifecycle): State<Arc<Lifecycle>>,
    State(records): State<Arc<Records>>,
    State(audit): State<Arc<Audit>>,
    request: Request,
    next: Next,
) -> Response {
    let timer = Timer::begin(&REQUESTS);
    let id = format!("req-{}", Uuid::new_v4().hyphenated());
    let span = tracing::info_span!("request", id, method = %request.method(), path = request.uri().path());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let unidentified = Arc::new(audit::unidentified(&id, &request));
    let work = actor::scope_as(Arc::clone(&unidentified), next.run(request).instrument(span.clone()));
    let work = actor::as_process(records.new_worker(), work);
    let mut response = if method.is_safe() {
        work.await
    } else {
        let under_way = lifecycle.begin_request().await;
        let done = tokio::spawn(async move {
            let _under_way = under_way;
            work.await
        });
        let lost = |error| Error::Internal(format!("the request ended without an answer: {error}"));
        done.await.map_err(lost).map_err(Fault::from).unwrap_or_else(Fault::into_response)
    };
    answered(method.as_str(), response.status().as_u16(), timer);
    span.in_scope(|| audit::record(&audit, (&method, &path), unidentified, &response));
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(HeaderName::from_static("x-openstack-request-id"), id.clone());
        headers.insert(HeaderName::from_static("x-compute-request-id"), id);
    }
    for (name, value) in [("cache-control", "no-store"), ("x-content-type-options", "nosniff")] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    for (name, value) in [
        ("openstack-api-version", "compute 2.1"),
        ("x-openstack-nova-api-version", "2.1"),
        ("vary", "OpenStack-API-Version, X-OpenStack-Nova-API-Version"),
    ] {
        // Cyborg's routes set their own values.
        headers.entry(HeaderName::from_static(name)).or_insert(HeaderValue::from_static(value));
    }
    response
}
