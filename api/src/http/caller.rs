//! `caller`: who the service takes a caller for. An extension of hotslot.

use std::collections::BTreeSet;

use axum::Json;
use hotslot_model::identity::{Caller, Scope, Via};
use serde::Serialize;
use utoipa::ToSchema;

/// The answer of `GET caller`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CallerAnswer {
    /// Who calls.
    caller: Identity,
}

/// Who the service takes a caller for, and with which rights.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Caller)]
struct Identity {
    /// Keystone's id of the user, the number of a local user, or the name of a token; null when every client of the port
    /// is admitted.
    user_id: Option<String>,
    /// The name of the user.
    user_name: Option<String>,
    /// All roles, in lower case, sorted.
    roles: BTreeSet<String>,
    /// The id of the project in which the roles apply; null in every other scope.
    project_id: Option<String>,
    /// Where the roles apply: `project`, `system` (everything), `domain` (they have no meaning here) or `none`.
    scope: &'static str,
    /// How the caller was identified: `socket` (by the kernel, at a unix socket), `token` (one of hotslot's own),
    /// `keystone`, `headers` (those of a proxy) or `insecure` (not at all).
    identified_by: &'static str,
}

/// Shows who the service takes the caller for. An extension of hotslot.
#[utoipa::path(get, path = "/caller", tag = "Service",
    responses((status = 200, description = "Who calls.", body = CallerAnswer)))]
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
