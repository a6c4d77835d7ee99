//! Has refused requests recorded, and logs every request that may change something.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use hotslot_model::identity::{Actor, Peer, global_request_id};
use hotslot_service::audit::{Audit, Fields, RefusedRequest};
use hotslot_web::Problem;

use super::error::Fault;

/// Who sent a request, and the rule of its route. `policy.rs` puts this into the response.
#[derive(Debug, Clone)]
pub(super) struct Identified {
    pub(super) actor: Arc<Actor>,
    /// `None` where there is no such route.
    pub(super) rule: Option<&'static str>,
}

/// A response of the page. What the page has done, a route has done and recorded, so the page does not record it again.
#[derive(Debug, Clone, Copy)]
pub(super) struct DoneByRoutes;

/// Returns the actor of a request whose caller has not been identified yet.
pub(super) fn unidentified(id: &str, request: &Request) -> Actor {
    let peer = request.extensions().get::<Peer>().copied();
    Actor::of_request(id, sent_id(request.headers()), peer)
}

/// Returns the global request id that the caller sent; `None` when there is none, or one that OpenStack would ignore.
fn sent_id(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all("x-openstack-request-id").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    global_request_id(value.to_str().ok()?).map(str::to_owned)
}

/// Whether a status says that the caller may not do what was requested.
fn is_refusal(status: StatusCode) -> bool {
    [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::MISDIRECTED_REQUEST,
        StatusCode::TOO_MANY_REQUESTS,
    ]
    .contains(&status)
}

/// Records a request by its response: a refusal as an event, any other request that may change something in the log.
/// The changes themselves are events of the records that they change.
pub(super) fn record(audit: &Audit, sent: (&Method, &str), unidentified: Arc<Actor>, response: &Response) {
    let ((method, path), status) = (sent, response.status());
    let identified = response.extensions().get::<Identified>();
    let actor = identified.map_or(unidentified, |identified| Arc::clone(&identified.actor));
    // What a page tells of a refusal by a route was recorded when the route refused it.
    if response.extensions().get::<Problem>().is_some_and(|problem| problem.is_recorded) {
        return;
    }
    if is_refusal(status) {
        let fault = response.extensions().get::<Fault>();
        audit.refused(
            actor,
            RefusedRequest {
                method: method.to_string(),
                path: path.to_owned(),
                status: status.as_u16(),
                rule: identified.and_then(|identified| identified.rule),
                reason: fault.map_or_else(|| status.to_string(), |fault| fault.message.clone()),
            },
        );
    } else if !method.is_safe()
        && identified.is_some()
        && response.extensions().get::<DoneByRoutes>().is_none()
    {
        let fields = Fields::of(&actor);
        let location = response.headers().get(header::LOCATION).and_then(|place| place.to_str().ok());
        tracing::info!(
            target: "hotslot::audit",
            status = status.as_u16(), user = fields.user, project = fields.project, roles = fields.roles,
            via = fields.via, global_request_id = fields.global_request, location,
            "answered {method} {path}"
        );
    }
}
