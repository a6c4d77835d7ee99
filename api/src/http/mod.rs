//! The routes: one file per resource. Only [`error`] maps errors to status codes.
//!
//! `/v2/{tenant_id}/…`, `/v2.1/…`, `/v2.1/{project_id}/…` and `/v3/…` serve the same resources. What a caller may see
//! and change follows from the caller alone (`policy.rs`). A path that names another project than the caller's is refused,
//! as by Nova.

mod accelerators;
mod attachments;
mod audit;
mod body;
mod caller;
mod certificate;
mod connection;
mod connections;
mod cyborg;
pub mod description;
mod docs_page;
mod drift;
mod ends;
pub mod error;
pub(crate) mod events;
mod explain;
mod flavors;
mod health;
mod host_function;
mod host_mode;
mod hypervisors;
mod idempotency;
mod identity;
mod limits;
mod metrics;
mod microversion;
mod origin;
mod own_page;
mod pci;
mod pci_config;
mod pci_owner;
mod pci_ports;
mod permit;
mod policy;
mod profile;
mod query;
mod quotas;
mod requests;
mod schema;
mod servers;
mod service;
mod standing;
mod state;
mod tls;
mod topology;
mod trace;
mod ui;
mod versions;
mod webhooks;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Router};
pub use connections::{Listener, serve};
use hotslot_model::identity::Actor;
use hotslot_service::audit::Audit;
use hotslot_service::error::Error;
use hotslot_service::lifecycle::Lifecycle;
use hotslot_service::metrics::{REQUESTS, Timer, answered};
use hotslot_service::records::Records;
use hotslot_service::service::Service;
pub use own_page::OwnPage;
pub use policy::routes_of;
pub use tls::Tls;

use hotslot_store::actor;
use tracing::Instrument as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
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
    let routes = described()
        .merge(unversioned())
        .nest("/v2/{tenant_id}", resources(Version::V2))
        .nest("/v2.1/{project_id}", resources(Version::V21))
        .nest("/v3", resources(Version::V3))
        .merge(aliases())
        .merge(cyborg::aliases());
    let (routes, _) = routes.split_for_parts();
    let routes = routes
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::no_method)
        .layer(middleware::from_fn_with_state(app.clone(), idempotency::answer_once))
        .layer(middleware::from_fn_with_state(app.clone(), limits::enforce))
        .layer(DefaultBodyLimit::max(limits::BODY))
        .layer(middleware::from_fn(query::refuse_unknown))
        .layer(middleware::from_fn(microversion::refuse_unsupported))
        .layer(middleware::from_fn_with_state(app.clone(), policy::admit))
        .layer(middleware::from_fn_with_state(app.clone(), origin::refuse_other_origins))
        .layer(middleware::from_fn(cyborg::microversion))
        .layer(middleware::from_fn_with_state(app.clone(), with_request_id))
        .with_state(app.clone());
    let pages = ui::pages(&app, routes.clone());
    routes.merge(pages.layer(middleware::from_fn_with_state(app, with_request_id)))
}

/// Returns the routes under the prefixes that the description has.
fn described() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(description::show))
        .routes(routes!(docs_page::page_of_description))
        .routes(routes!(versions::all))
        .routes(routes!(versions::v2))
        .routes(routes!(versions::v21))
        .routes(routes!(versions::v3))
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(metrics::show))
        .nest("/v2.1", resources(Version::V21))
        .merge(accelerators::routes())
        .nest("/v1", accelerators::routes())
        .merge(cyborg::routes())
}

/// Returns the routes of other names of paths.
fn aliases() -> OpenApiRouter<App> {
    let aliases = OpenApiRouter::default()
        .route("/v2/", get(versions::v2))
        .route("/v2.1/", get(versions::v21))
        .route("/v3/", get(versions::v3));
    aliases.merge(accelerators::aliases()).nest("/v1", accelerators::aliases())
}

/// Resources that Nova does not have. They are served with and without a version prefix.
fn unversioned() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(drift::list, drift::repair))
        .routes(routes!(events::list))
        .routes(routes!(caller::show_caller))
        .routes(routes!(service::show))
        .routes(routes!(service::reload))
        .routes(routes!(service::log_level, service::set_log_level))
        .routes(routes!(webhooks::list))
        .routes(routes!(webhooks::redeliver))
}

fn resources(version: Version) -> OpenApiRouter<App> {
    let routes = unversioned()
        .routes(routes!(servers::list))
        .routes(routes!(servers::detail))
        .routes(routes!(servers::show))
        .routes(routes!(topology::show))
        .routes(routes!(pci_owner::show, pci_owner::update))
        .routes(routes!(pci_ports::add))
        .routes(routes!(attachments::create, attachments::list))
        .routes(routes!(attachments::show, attachments::delete))
        .routes(routes!(attachments::list_all))
        .routes(routes!(pci::list))
        .routes(routes!(pci::detail))
        .routes(routes!(pci::show))
        .routes(routes!(pci::act))
        .routes(routes!(pci::scrub))
        .routes(routes!(hypervisors::list))
        .routes(routes!(hypervisors::detail))
        .routes(routes!(hypervisors::show))
        .routes(routes!(hypervisors::search))
        .routes(routes!(hypervisors::uptime))
        .routes(routes!(host_mode::set))
        .routes(routes!(profile::show))
        .routes(routes!(host_function::list))
        .routes(routes!(explain::device))
        .routes(routes!(explain::candidates))
        .routes(routes!(drift::of_host, drift::repair_host))
        .routes(routes!(hypervisors::aggregates))
        .routes(routes!(pci_config::names))
        .routes(routes!(pci_config::groups))
        .routes(routes!(pci_config::list, pci_config::create))
        .routes(routes!(pci_config::show, pci_config::replace, pci_config::delete))
        .routes(routes!(quotas::show, quotas::update, quotas::delete))
        .routes(routes!(quotas::detail))
        .routes(routes!(quotas::defaults))
        .routes(routes!(flavors::list))
        .routes(routes!(flavors::detail))
        .routes(routes!(flavors::show))
        .routes(routes!(flavors::extra_specs))
        .routes(routes!(flavors::extra_spec));
    with_no_method(routes).layer(Extension(version))
}

/// Answers requests with another method than a route has.
fn with_no_method(routes: OpenApiRouter<App>) -> OpenApiRouter<App> {
    let (routes, api) = routes.split_for_parts();
    let mut routes = OpenApiRouter::from(routes.method_not_allowed_fallback(error::no_method));
    *routes.get_openapi_mut() = api;
    routes
}

/// The id of a request. Requests that the page sends to the routes have that of the browser's request.
#[derive(Clone)]
struct RequestId(String);

/// Gives every request an id and a tracing span, and adds the headers that Nova's clients read. A request that may
/// change something runs in a task of its own, so that it completes even when its client disconnects.
async fn with_request_id(
    State(lifecycle): State<Arc<Lifecycle>>,
    State(records): State<Arc<Records>>,
    State(audit): State<Arc<Audit>>,
    mut request: Request,
    next: Next,
) -> Response {
    let timer = Timer::begin(&REQUESTS);
    let of_page = request.extensions_mut().remove::<RequestId>();
    // The request of the page itself runs in a task, and is waited for at the end of the service. One that the page sends
    // must not wait for that end.
    let is_of_page = of_page.is_some();
    let RequestId(id) = of_page.unwrap_or_else(|| RequestId(format!("req-{}", Uuid::new_v4().hyphenated())));
    request.extensions_mut().insert(RequestId(id.clone()));
    let span = tracing::info_span!("request", id, method = %request.method(), path = request.uri().path());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let name = || {
        let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        format!("{method} {route}")
    };
    let traced = trace::begin(method.is_safe(), name, request.headers());
    let unidentified = audit::unidentified(&id, &request);
    let unidentified = Arc::new(Actor { traceparent: traced.parent(), ..unidentified });
    let work = traced.work(next.run(request).instrument(span.clone()));
    let work = actor::scope_as(Arc::clone(&unidentified), work);
    let work = actor::as_process(records.new_worker(), work);
    let mut response = if method.is_safe() || is_of_page {
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
    // The request of the browser is counted, and not those that the page sends for it in this process.
    if !is_of_page {
        answered(method.as_str(), response.status().as_u16(), timer);
    }
    traced.answered(response.status().as_u16());
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
        // Cyborg's routes set their own values, and have no such header of Nova's.
        if !(name == "x-openstack-nova-api-version" && path.starts_with("/accelerator/")) {
            headers.entry(HeaderName::from_static(name)).or_insert(HeaderValue::from_static(value));
        }
    }
    response
}
