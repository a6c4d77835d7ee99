//! `caller`: shows the identity that the service has found for a caller. This is an extension of hotslot.

use std::collections::BTreeSet;

use axum::Json;
use hotslot_model::identity::{Caller, Scope, Via};
use serde::Serialize;
use utoipa::ToSchema;

/// The answer of `GET caller`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CallerAnswer {
    /// The caller of this request.
    caller: Identity,
}

/// The identity and the rights that the service has found for a caller.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Caller)]
struct Identity {
    /// Keystone's id of the user, the number of a local user, or the name of a token; null when every client of the port
    /// is admitted.
    user_id: Option<String>,
    /// The name of the user.
    user_name: Option<String>,
    /// The roles of the caller, in lower case and sorted.
    roles: BTreeSet<String>,
    /// The id of the project in which the roles apply; null in every other scope.
    project_id: Option<String>,
    /// The scope of the roles: `project`, `system` for everything, `domain` in which they have no meaning here, or `none`.
    scope: &'static str,
    /// What has identified the caller: `socket` is the kernel at a unix socket, `token` a token of hotslot's own, `keystone`
    /// a token of Keystone, `headers` a proxy, and `insecure` nothing.
    identified_by: &'static str,
}

/// Shows the identity and the rights that the service has found for the caller. This is an extension of hotslot.
#[utoipa::path(get, path = "/caller", tag = "Service",
    responses((status = 200, description = "The caller of this request.", body = CallerAnswer)))]
pub(super) async fn show_caller(caller: Caller) -> Json<CallerAnswer> {
    let scope = match caller.scope {
        Scope::Project => "project",
        Scope::System => "system",
        Scope::Domain => "domain",
        Scope::Unscoped => "none",
    };
    let identified_by = match caller.via {
        Via::Socket { .. } => "socket",
        Via::Token(_) => "token",
        Via::Keystone => "keystone",
        Via::Headers => "headers",
        Via::Insecure(_) => "insecure",
    };
    let (user_id, user_name) = caller.user.map(|user| (user.id, user.name)).unzip();
    Json(CallerAnswer {
        caller: Identity {
            user_id,
            user_name,
            roles: caller.roles,
            project_id: caller.project,
            scope,
            identified_by,
        },
    })
}
