//! Which rule each route has, and its enforcement before a handler runs.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use axum::extract::{FromRequestParts as _, MatchedPath, OriginalUri, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hotslot_model::identity::{Caller, Peer, Target};
use hotslot_service::config::IdentityFrom;
use hotslot_service::rate::TooMany;
use hotslot_store::actor;
use serde_json::Value;

use super::audit::Identified;
use super::error::{Fault, no_method, not_found};
use super::identity::{OnBehalf, asks_keystone, caller, shows_token};
use super::limits;
use super::permit::Permit;
use super::state::IdentityParts;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody, also without identity.
    Open,
    /// Everybody, and callers who are identified get details.
    Details,
    /// Every caller who is identified.
    Known,
    /// Every caller whom the rule admits. The resources of the route belong to no project.
    Rule(&'static str),
    /// Every caller whom the rule admits for some project. The handler checks the project of what it reads.
    InHandler(&'static str),
}

use Access::{Details, InHandler, Known, Open, Rule};

/// Every route, as `METHOD PATH` without the prefixes of versions, and who may use it. `data/routes.json` of the tests
/// lists the same routes.
#[rustfmt::skip]
const ROUTES: &[(&str, Access)] = &[
    ("GET /", Open),
    ("GET /v2", Open),
    ("GET /v2/", Open),
    ("GET /v2.1", Open),
    ("GET /v2.1/", Open),
    ("GET /v3", Open),
    ("GET /v3/", Open),
    ("GET /openapi.json", Open),
    ("GET /docs", Open),
    ("GET /healthz", Open),
    ("GET /readyz", Details),
    ("GET /metrics", Rule("hotslot:metrics:show")),
    ("GET /caller", Known),
    ("GET /accelerator/", Open),
    ("GET /accelerator/v2/", Open),
    ("GET /servers", InHandler("os_compute_api:servers:index")),
    ("GET /servers/detail", InHandler("os_compute_api:servers:detail")),
    ("GET /servers/{server_id}", InHandler("os_compute_api:servers:show")),
    ("GET /servers/{server_id}/pci_topology", InHandler("hotslot:server:topology")),
    ("GET /servers/{server_id}/pci_owner", Rule("hotslot:server:show_owner")),
    ("PUT /servers/{server_id}/pci_owner", Rule("hotslot:server:set_owner")),
    ("POST /servers/{server_id}/pci_ports", Rule("hotslot:server:add_ports")),
    ("GET /servers/{server_id}/os-pci_attachments", InHandler("hotslot:attachment:list")),
    ("POST /servers/{server_id}/os-pci_attachments", InHandler("hotslot:attachment:create")),
    ("GET /servers/{server_id}/os-pci_attachments/{attachment_id}", InHandler("hotslot:attachment:show")),
    ("DELETE /servers/{server_id}/os-pci_attachments/{attachment_id}", InHandler("hotslot:attachment:delete")),
    ("GET /os-pci_attachments", InHandler("hotslot:attachment:list_all")),
    ("GET /os-pci", Rule("os_compute_api:os-pci:index")),
    ("GET /os-pci/detail", Rule("os_compute_api:os-pci:detail")),
    ("GET /os-pci/{device_id}", Rule("os_compute_api:os-pci:show")),
    ("POST /os-pci/{device_id}/action", Rule("hotslot:device:clean")),
    ("POST /os-pci/{device_id}/scrub", Rule("hotslot:device:clean")),
    ("GET /os-hypervisors", Rule("os_compute_api:os-hypervisors:list")),
    ("GET /os-hypervisors/detail", Rule("os_compute_api:os-hypervisors:list-detail")),
    ("GET /os-hypervisors/{hypervisor_id}", Rule("os_compute_api:os-hypervisors:show")),
    ("GET /os-hypervisors/{hypervisor_id}/search", Rule("os_compute_api:os-hypervisors:search")),
    ("GET /os-hypervisors/{hypervisor_id}/uptime", Rule("os_compute_api:os-hypervisors:uptime")),
    ("PUT /os-hypervisors/{hypervisor_id}/mode", Rule("hotslot:host:set_mode")),
    ("GET /os-hypervisors/{hypervisor_id}/profile", Rule("hotslot:host:profile")),
    ("GET /os-hypervisors/{hypervisor_id}/pci_devices", Rule("hotslot:host:devices")),
    ("GET /os-hypervisors/{hypervisor_id}/pci_devices/{address}", Rule("hotslot:host:devices")),
    ("GET /os-hypervisors/{hypervisor_id}/pci_candidates", Rule("hotslot:host:candidates")),
    ("GET /os-hypervisors/{hypervisor_id}/drift", Rule("hotslot:drift:list")),
    ("POST /os-hypervisors/{hypervisor_id}/drift", Rule("hotslot:drift:repair")),
    ("GET /os-aggregates", Rule("os_compute_api:os-aggregates:index")),
    ("GET /os-pci-config", Rule("hotslot:rule:list")),
    ("GET /os-pci-config/group", Rule("hotslot:rule:list")),
    ("GET /os-pci-config/{kind}", Rule("hotslot:rule:list")),
    ("POST /os-pci-config/{kind}", Rule("hotslot:rule:create")),
    ("GET /os-pci-config/{kind}/{entry_id}", Rule("hotslot:rule:show")),
    ("PUT /os-pci-config/{kind}/{entry_id}", Rule("hotslot:rule:update")),
    ("DELETE /os-pci-config/{kind}/{entry_id}", Rule("hotslot:rule:delete")),
    ("GET /os-quota-sets/{quota_id}", InHandler("os_compute_api:os-quota-sets:show")),
    ("PUT /os-quota-sets/{quota_id}", Rule("os_compute_api:os-quota-sets:update")),
    ("DELETE /os-quota-sets/{quota_id}", Rule("os_compute_api:os-quota-sets:delete")),
    ("GET /os-quota-sets/{quota_id}/detail", InHandler("os_compute_api:os-quota-sets:detail")),
    ("GET /os-quota-sets/{quota_id}/defaults", Rule("os_compute_api:os-quota-sets:defaults")),
    ("GET /flavors", Rule("hotslot:flavor:list")),
    ("GET /flavors/detail", Rule("hotslot:flavor:list")),
    ("GET /flavors/{flavor_id}", Rule("hotslot:flavor:show")),
    ("GET /flavors/{flavor_id}/os-extra_specs", Rule("os_compute_api:os-flavor-extra-specs:index")),
    ("GET /flavors/{flavor_id}/os-extra_specs/{key}", Rule("os_compute_api:os-flavor-extra-specs:show")),
    ("GET /drift", Rule("hotslot:drift:list")),
    ("POST /drift", Rule("hotslot:drift:repair")),
    ("GET /events", Rule("hotslot:event:list")),
    ("GET /service", Rule("hotslot:service:show")),
    ("POST /service/reload", Rule("hotslot:service:reload")),
    ("GET /service/log-level", Rule("hotslot:log_level:show")),
    ("PUT /service/log-level", Rule("hotslot:log_level:update")),
    ("GET /webhooks", Rule("hotslot:webhook:list")),
    ("POST /webhooks/{name}/redeliver", Rule("hotslot:webhook:redeliver")),
    ("GET /accelerators", InHandler("hotslot:accelerator:list")),
    ("POST /accelerators", InHandler("hotslot:accelerator:create")),
    ("GET /accelerators/{accelerator_id}", InHandler("hotslot:accelerator:show")),
    ("POST /accelerators/{accelerator_id}", InHandler("hotslot:accelerator:create")),
    ("PUT /accelerators/{accelerator_id}", InHandler("hotslot:accelerator:update")),
    ("DELETE /accelerators/{accelerator_id}", InHandler("hotslot:accelerator:delete")),
    ("PUT /accelerators/{accelerator_id}/acc_spec", InHandler("hotslot:accelerator:update")),
    ("PUT /accelerators/{accelerator_id}/acc_specs", InHandler("hotslot:accelerator:update")),
    ("GET /accelerator", InHandler("hotslot:accelerator:list")),
    ("POST /accelerator", InHandler("hotslot:accelerator:create")),
    ("GET /accelerator/{accelerator_id}", InHandler("hotslot:accelerator:show")),
    ("POST /accelerator/{accelerator_id}", InHandler("hotslot:accelerator:create")),
    ("PUT /accelerator/{accelerator_id}", InHandler("hotslot:accelerator:update")),
    ("DELETE /accelerator/{accelerator_id}", InHandler("hotslot:accelerator:delete")),
    ("PUT /accelerator/{accelerator_id}/acc_spec", InHandler("hotslot:accelerator:update")),
    ("PUT /accelerator/{accelerator_id}/acc_specs", InHandler("hotslot:accelerator:update")),
    ("GET /device_profiles", Rule("cyborg:device_profile:get_all")),
    ("POST /device_profiles", Rule("cyborg:device_profile:create")),
    ("DELETE /device_profiles", Rule("cyborg:device_profile:delete")),
    ("GET /device_profiles/", Rule("cyborg:device_profile:get_all")),
    ("POST /device_profiles/", Rule("cyborg:device_profile:create")),
    ("DELETE /device_profiles/", Rule("cyborg:device_profile:delete")),
    ("GET /device_profiles/{id}", Rule("cyborg:device_profile:get_one")),
    ("DELETE /device_profiles/{id}", Rule("cyborg:device_profile:delete")),
    ("GET /accelerator_requests", InHandler("cyborg:arq:get_all")),
    ("POST /accelerator_requests", InHandler("cyborg:arq:create")),
    ("PATCH /accelerator_requests", InHandler("cyborg:arq:update")),
    ("DELETE /accelerator_requests", InHandler("cyborg:arq:delete")),
    ("GET /accelerator_requests/", InHandler("cyborg:arq:get_all")),
    ("POST /accelerator_requests/", InHandler("cyborg:arq:create")),
    ("PATCH /accelerator_requests/", InHandler("cyborg:arq:update")),
    ("DELETE /accelerator_requests/", InHandler("cyborg:arq:delete")),
    ("GET /accelerator_requests/{id}", InHandler("cyborg:arq:get_one")),
    ("PATCH /accelerator_requests/{id}", InHandler("cyborg:arq:update")),
    ("DELETE /accelerator_requests/{id}", InHandler("cyborg:arq:delete")),
    ("GET /devices", Rule("cyborg:device:get_all")),
    ("GET /devices/{id}", Rule("cyborg:device:get_one")),
    ("POST /devices/{id}/disable", Rule("cyborg:device:disable")),
    ("POST /devices/{id}/enable", Rule("cyborg:device:enable")),
    ("GET /deployables", Rule("cyborg:deployable:get_all")),
    ("GET /deployables/{id}", Rule("cyborg:deployable:get_one")),
    ("PATCH /deployables/{id}/program", Rule("cyborg:deployable:program")),
    ("PATCH /deployables/{id}/program/{same}", Rule("cyborg:deployable:program")),
    ("GET /attributes", Rule("cyborg:attribute:get_all")),
    ("POST /attributes", Rule("cyborg:attribute:create")),
    ("GET /attributes/{id}", Rule("cyborg:attribute:get_one")),
    ("DELETE /attributes/{id}", Rule("cyborg:attribute:delete")),
    ("GET /ui", Open),
    ("GET /ui/", Open),
    ("GET /ui/page.css", Open),
    ("GET /ui/page.js", Open),
    ("GET /ui/icon.svg", Open),
    ("GET /ui/sign-in", Open),
    ("POST /ui/sign-in", Open),
    ("POST /ui/sign-out", Known),
    ("GET /ui/{*page}", Known),
    ("GET /ui/home", Known),
    ("GET /ui/account", Known),
    ("GET /ui/hosts", Rule("os_compute_api:os-hypervisors:list-detail")),
    ("GET /ui/host", Rule("hotslot:host:devices")),
    ("GET /ui/function", Rule("hotslot:host:devices")),
    ("GET /ui/servers", InHandler("os_compute_api:servers:detail")),
    ("GET /ui/server", InHandler("hotslot:server:topology")),
    ("GET /ui/attach", InHandler("hotslot:attachment:create")),
    ("POST /ui/attach", InHandler("hotslot:attachment:create")),
    ("GET /ui/detach", InHandler("hotslot:attachment:delete")),
    ("POST /ui/detach", InHandler("hotslot:attachment:delete")),
    ("GET /ui/accelerators", InHandler("hotslot:accelerator:list")),
    ("GET /ui/accelerator", InHandler("hotslot:accelerator:show")),
    ("GET /ui/accelerator-new", InHandler("hotslot:accelerator:create")),
    ("POST /ui/accelerator-new", InHandler("hotslot:accelerator:create")),
    ("GET /ui/accelerator-spec", InHandler("hotslot:accelerator:update")),
    ("POST /ui/accelerator-spec", InHandler("hotslot:accelerator:update")),
    ("GET /ui/accelerator-attach", InHandler("hotslot:accelerator:update")),
    ("POST /ui/accelerator-attach", InHandler("hotslot:accelerator:update")),
    ("GET /ui/accelerator-detach", InHandler("hotslot:accelerator:delete")),
    ("POST /ui/accelerator-detach", InHandler("hotslot:accelerator:delete")),
    ("GET /ui/accelerator-request", InHandler("cyborg:arq:get_one")),
    ("POST /ui/accelerator-request", InHandler("cyborg:arq:delete")),
    ("GET /ui/device-profile", Rule("cyborg:device_profile:create")),
    ("POST /ui/device-profile", Rule("cyborg:device_profile:create")),
    ("GET /ui/device-profile-delete", Rule("cyborg:device_profile:delete")),
    ("POST /ui/device-profile-delete", Rule("cyborg:device_profile:delete")),
    ("GET /ui/rules", Rule("hotslot:rule:list")),
    ("GET /ui/rule", Rule("hotslot:rule:list")),
    ("POST /ui/rule", Rule("hotslot:rule:create")),
    ("GET /ui/quotas", InHandler("os_compute_api:os-quota-sets:detail")),
    ("POST /ui/quotas", Rule("os_compute_api:os-quota-sets:update")),
    ("GET /ui/webhooks", Rule("hotslot:webhook:list")),
    ("POST /ui/webhooks", Rule("hotslot:webhook:redeliver")),
    ("GET /ui/drift", Rule("hotslot:drift:list")),
    ("POST /ui/drift", Rule("hotslot:drift:repair")),
    ("GET /ui/events", Rule("hotslot:event:list")),
    ("GET /ui/live", Rule("hotslot:event:list")),
];

/// The prefixes under which the same routes are served.
const PREFIXES: [&str; 8] =
    ["", "/v2/{tenant_id}", "/v2.1/{project_id}", "/v2.1", "/v3", "/v1", "/accelerator/v2", "/accelerator"];

/// The routes by path and method.
static TABLE: LazyLock<HashMap<&'static str, HashMap<&'static str, Access>>> = LazyLock::new(|| {
    let mut table: HashMap<_, HashMap<_, _>> = HashMap::new();
    for (route, access) in ROUTES {
        if let Some((method, path)) = route.split_once(' ') {
            table.entry(path).or_default().insert(method, *access);
        }
    }
    table
});

/// Returns the path of a route without the prefix of a version, and its methods, by the path that the router has for it.
fn entry(path: &str) -> Option<(&'static str, &'static HashMap<&'static str, Access>)> {
    let path = if path == "/accelerator/v2" { "/accelerator/v2/" } else { path };
    let found = PREFIXES.iter().find_map(|prefix| TABLE.get_key_value(path.strip_prefix(prefix)?));
    found.map(|(path, methods)| (*path, methods))
}

/// Returns the methods of a route, by the path that the router has for it.
fn methods(path: &str) -> Option<&'static HashMap<&'static str, Access>> {
    entry(path).map(|(_, methods)| methods)
}

/// Returns who may use a route, by its method and the path that the router has for it.
pub(super) fn access(method: &str, path: &str) -> Option<Access> {
    methods(path)?.get(method.to_uppercase().as_str()).copied()
}

/// Returns a route as `METHOD PATH` without the prefix of a version.
pub(super) fn named(method: &str, path: &str) -> Option<String> {
    entry(path).map(|(path, _)| format!("{} {path}", method.to_uppercase()))
}

/// Returns every route, as `METHOD PATH` without the prefixes of versions.
#[cfg(test)]
pub(super) fn routes() -> impl Iterator<Item = &'static str> {
    ROUTES.iter().map(|(route, _)| *route)
}

/// Returns the routes that need a rule, as `METHOD PATH` without the prefixes of versions.
pub fn routes_of(rule: &str) -> impl Iterator<Item = &'static str> {
    let needs = move |access: &Access| match access {
        Open | Details | Known => false,
        Rule(name) | InHandler(name) => *name == rule,
    };
    ROUTES.iter().filter(move |(_, access)| needs(access)).map(|(route, _)| *route)
}

/// Finds out who calls, puts the caller into the request, and checks the rule of the route. What no rule speaks of
/// is refused.
pub(super) async fn admit(State(identity): State<IdentityParts>, request: Request, next: Next) -> Response {
    let Some(matched) = request.extensions().get::<MatchedPath>().cloned() else {
        // Nothing of the body is read.
        if let Some(fault) = limits::excess(&request) {
            return fault.into_response();
        }
        return not_found(OriginalUri(request.uri().clone())).await.into_response();
    };
    let uri = OriginalUri(request.uri().clone());
    let Some(methods) = methods(matched.as_str()) else {
        return not_found(uri).await.into_response();
    };
    // The router answers HEAD like GET.
    let method = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
    let access = methods.get(method.as_str()).copied();
    if access == Some(Open) {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let named = project_of_path(&mut parts).await;
    // A probe that shows nothing is answered like any other open request.
    let caller = if let Some(OnBehalf(caller)) = parts.extensions.get() {
        // The request of the page was counted.
        Ok(caller.clone())
    } else if access == Some(Details) && !shows_token(&parts.headers) {
        caller(&identity, &parts).await
    } else {
        match identified(&identity, &parts).await {
            Ok(caller) => caller,
            Err(refused) => return *refused,
        }
    };
    let mut request = Request::from_parts(parts, body);
    let Some(access) = access else {
        // The router says for an administrator what is wrong with the request. Nobody else reaches it.
        if caller.as_ref().is_ok_and(Caller::is_admin) {
            return next.run(request).await;
        }
        let mut response = no_method(request.method().clone(), uri).await.into_response();
        if let Ok(caller) = caller {
            let actor = Arc::new(actor::current().by(&caller));
            response.extensions_mut().insert(Identified { actor, rule: None });
        }
        return response;
    };
    let (rule, target) = match access {
        Open | Details => {
            if let Ok(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            return next.run(request).await;
        }
        Known => (None, Target::Unknown),
        Rule(rule) => (Some(rule), Target::Of(None)),
        InHandler(rule) => (Some(rule), Target::Unknown),
    };
    match caller {
        Ok(caller) => under_rule(&identity, caller, (rule, target), named.as_deref(), request, next).await,
        Err(fault) => refusal(&identity, fault),
    }
}

/// Runs the handler of a request, if the rule admits the caller; without a rule, every caller is admitted. `named` is the project that the path names.
async fn under_rule(
    identity: &IdentityParts,
    caller: Caller,
    (rule, target): (Option<&'static str>, Target<'_>),
    named: Option<&str>,
    mut request: Request,
    next: Next,
) -> Response {
    let actor = Arc::new(actor::current().by(&caller));
    let sees_hosts = caller.sees_host_details();
    let allowed = || rule.map_or(Ok(()), |rule| identity.policy.require(&caller, rule, target));
    let admitted = expect_own_project(&caller, named).and_then(|()| allowed().map_err(Fault::from));
    // A request whose client has gone away counts until it has ended. The request of a page counts for those that it sends.
    let is_of_page = request.extensions().get::<OnBehalf>().is_some();
    let under_way = if is_of_page { Ok(None) } else { identity.rates.begin(&caller).await };
    let mut response = match under_way.map(|under_way| admitted.map(|()| under_way)) {
        Err(too_many) => refused_for_now(&too_many),
        Ok(Ok(_under_way)) => {
            if let Some(rule) = rule {
                let permit = Permit::new(caller.clone(), Arc::clone(&identity.policy), rule);
                request.extensions_mut().insert(permit);
            }
            request.extensions_mut().insert(caller);
            let response = actor::scope_as(Arc::clone(&actor), next.run(request)).await;
            if sees_hosts { response } else { without_hosts(response) }
        }
        Ok(Err(fault)) => {
            let mut response = refusal(identity, fault);
            // A page that says so has the caller's navigation.
            response.extensions_mut().insert(caller);
            response
        }
    };
    response.extensions_mut().insert(Identified { actor, rule });
    response
}

/// Returns the project that a path names, as in `/v2/{tenant_id}/…`; `-` names none, for clients that do not know theirs.
async fn project_of_path(parts: &mut Parts) -> Option<String> {
    let named = RawPathParams::from_request_parts(parts, &()).await.ok()?;
    let project = named.iter().find(|(name, _)| matches!(*name, "tenant_id" | "project_id"));
    project.map(|(_, project)| project.to_owned()).filter(|project| project != "-")
}

/// Refuses a path that names another project than that of the caller's role, with Nova's status
/// (`nova/api/openstack/wsgi.py`). Administrators and services may name any, because they may use every server.
fn expect_own_project(caller: &Caller, named: Option<&str>) -> Result<(), Fault> {
    match (&caller.project, named) {
        (Some(own), Some(named)) if own != named && !caller.is_service_or_admin() => {
            let shown: String = named.chars().take(80).collect();
            let message = format!(
                "the path names project {shown}, and your role is in project {own}; name that one, or use a path \
                 without a project, such as /v2.1/servers"
            );
            Err(Fault::new(StatusCode::BAD_REQUEST, message))
        }
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}

/// Replaces the message of an error that may name hosts, addresses or other projects.
fn without_hosts(response: Response) -> Response {
    match response.extensions().get::<Fault>().and_then(Fault::without_hosts) {
        Some(fault) => fault.into_response(),
        None => response,
    }
}

/// Finds out who calls, and counts the request.
///
/// # Errors
/// A response of 429 when the caller has sent too many requests, or somebody at this connection has failed too often to
/// show who calls. Whoever shows a valid token of
/// hotslot's own, or one of which Keystone's answer is known, is not refused for the failures of others at the same
/// address. The failures behind a proxy are the proxy's to limit.
pub(super) async fn identified(
    identity: &IdentityParts,
    request: &Parts,
) -> Result<Result<Caller, Fault>, Box<Response>> {
    let behind_proxy = identity.config.api.identity == IdentityFrom::Headers;
    let peer = request.extensions.get::<Peer>().copied().filter(|_| !behind_proxy);
    let may_try = async || match peer {
        Some(peer) => identity.rates.may_try(peer).await.map_err(|many| Box::new(refused_for_now(&many))),
        None => Ok(()),
    };
    let asks_keystone = asks_keystone(identity, &request.headers);
    if asks_keystone {
        may_try().await?;
    }
    let caller = caller(identity, request).await;
    match (&caller, peer) {
        (Ok(caller), _) => {
            if let Err(too_many) = identity.rates.count(caller).await {
                let mut refused = refused_for_now(&too_many);
                let actor = Arc::new(actor::current().by(caller));
                refused.extensions_mut().insert(Identified { actor, rule: None });
                return Err(Box::new(refused));
            }
        }
        // The caller is not at fault when Keystone is away.
        (Err(fault), Some(peer)) if fault.status != StatusCode::SERVICE_UNAVAILABLE => {
            if !asks_keystone {
                may_try().await?;
            }
            identity.rates.count_failure(peer).await;
        }
        (Err(_), _) => {}
    }
    Ok(caller)
}

/// Obtains a token of Keystone's for somebody who signs in with a password. The passwords that somebody at a connection may
/// try are limited like the tokens.
///
/// # Errors
/// 401 when Keystone does not accept the password, 429 after too many failures, and 503 when Keystone is away.
pub(super) async fn token_for(
    identity: &IdentityParts,
    peer: Option<Peer>,
    login: &Value,
) -> Result<HeaderValue, Fault> {
    if identity.config.api.identity == IdentityFrom::Headers {
        let message = "a proxy says who calls, so nobody signs in here; open the page through the proxy";
        return Err(Fault::new(StatusCode::UNAUTHORIZED, message));
    }
    if let Some(peer) = peer {
        let many = |many: TooMany| Fault::new(StatusCode::TOO_MANY_REQUESTS, many.to_string());
        identity.rates.may_try(peer).await.map_err(many)?;
        // It counts before Keystone has answered, because many at the same time would all be tried otherwise.
        identity.rates.count_failure(peer).await;
    }
    Ok(identity.callers.sign_in(login).await?)
}

fn refused_for_now(too_many: &TooMany) -> Response {
    let mut response = Fault::new(StatusCode::TOO_MANY_REQUESTS, too_many.to_string()).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, too_many.seconds().into());
    response
}

/// Returns the response to a caller who is not admitted. A 401 says where Keystone is.
fn refusal(identity: &IdentityParts, fault: Fault) -> Response {
    let unknown = fault.status == StatusCode::UNAUTHORIZED;
    let mut response = fault.into_response();
    if let Some(keystone) = identity.callers.keystone().filter(|_| unknown)
        && let Ok(challenge) = HeaderValue::from_str(&format!("Keystone uri=\"{}\"", keystone.public_url()))
    {
        if identity.config.identity.tokens.is_some() {
            response.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
        } else {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hotslot_model::identity::policy::RULES;

    use super::*;
    use crate::http::attachments::BY_ADDRESS;
    use crate::http::trace;

    #[test]
    fn every_route_has_a_rule_and_every_rule_a_route() {
        let routes: BTreeSet<_> = ROUTES.iter().map(|(route, _)| (*route).to_owned()).collect();
        assert_eq!(routes.len(), ROUTES.len(), "no route is listed twice");
        let listed: Vec<Value> =
            serde_json::from_str(include_str!("../../../tests/data/routes.json")).unwrap();
        let listed: BTreeSet<_> =
            listed.iter().map(|row| row["route"].as_str().unwrap().to_owned()).collect();
        assert_eq!(routes, listed);
        let mut used: BTreeSet<_> = ROUTES
            .iter()
            .filter_map(|(_, access)| match access {
                Open | Details | Known => None,
                Rule(rule) | InHandler(rule) => Some(*rule),
            })
            .collect();
        // The handlers require these beside the rule of their route.
        used.extend([BY_ADDRESS, trace::RULE]);
        let named: BTreeSet<_> =
            RULES.iter().map(|rule| rule.name).filter(|name| name.contains(':')).collect();
        assert_eq!(used, named);
    }

    #[test]
    fn paths_are_found_under_every_prefix_and_no_other() {
        for (path, method) in [
            ("/", "GET"),
            ("/v2.1/{project_id}/servers", "GET"),
            ("/v2/{tenant_id}/servers/{server_id}", "GET"),
            ("/v3/events", "GET"),
            ("/v1/accelerator/{accelerator_id}", "PUT"),
            ("/accelerator/{accelerator_id}", "PUT"),
            ("/accelerator/v2", "GET"),
            ("/accelerator/v2/devices/{id}", "GET"),
            ("/accelerator/attributes", "POST"),
        ] {
            assert!(methods(path).is_some_and(|methods| methods.contains_key(method)), "{path}");
        }
        for path in ["", "/v4/servers", "/v2.1/nothing", "/v2.1/servers/", "servers"] {
            assert!(methods(path).is_none(), "{path}");
        }
    }
}
