//! Who calls, and what they may do.
//!
//! With `[api] identity = "headers"` a proxy in front has looked at their tokens and says who they are, in the headers
//! of keystonemiddleware; without, whoever reaches the socket is the administrator. Nobody here reads a token.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::error::Fault;
use crate::config::IdentityFrom;
use crate::service::Service;

/// Keystone's roles. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Reader,
    Member,
    Manager,
    Admin,
}

impl Role {
    const ALL: [Self; 4] = [Self::Reader, Self::Member, Self::Manager, Self::Admin];

    fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Member => "member",
            Self::Manager => "manager",
            Self::Admin => "admin",
        }
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// The highest of their roles; none: they have none of Keystone's.
    role: Option<Role>,
    /// Whether a service calls, for itself or for the user: Nova, Cyborg's own.
    service: bool,
    /// Their project; none for who was not asked.
    pub(super) project: Option<String>,
}

impl Identity {
    /// Whom a proxy says it is.
    fn of(headers: &HeaderMap) -> Result<Self, Fault> {
        let text = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
            (!value.is_empty()).then_some(value)
        };
        let confirmed = |name: &str| text(name).is_none_or(|status| status == "Confirmed");
        if text("x-user-id").is_none() || !confirmed("x-identity-status") {
            return Err(Fault::new(
                StatusCode::UNAUTHORIZED,
                "the request says nothing of who sends it; come through the proxy that looks at tokens and sets \
                 X-User-Id",
            ));
        }
        let roles = |name: &str| -> BTreeSet<String> {
            let list = text(name).unwrap_or_default().split(',');
            list.map(|role| role.trim().to_ascii_lowercase()).collect()
        };
        let (mut own, of_service) = (roles("x-roles"), roles("x-service-roles"));
        // Cyborg's policies are for tokens of projects: the roles of a system's count for nothing.
        if text("openstack-system-scope").is_some() {
            own.clear();
        }
        Ok(Self {
            role: Role::ALL.into_iter().rfind(|role| own.contains(role.as_str())),
            service: own.contains("service")
                || (of_service.contains("service") && confirmed("x-service-identity-status")),
            project: text("x-project-id").map(str::to_owned),
        })
    }

    fn nobody_asked() -> Self {
        Self { role: Some(Role::Admin), service: false, project: None }
    }

    fn from_headers(headers: &HeaderMap, from: IdentityFrom) -> Result<Self, Fault> {
        match from {
            IdentityFrom::None => Ok(Self::nobody_asked()),
            IdentityFrom::Headers => Self::of(headers),
        }
    }

    /// # Errors
    /// 403 for who has a lower role.
    pub(super) fn needs(&self, least: Role) -> Result<(), Fault> {
        if self.role >= Some(least) {
            return Ok(());
        }
        let has = self.role.map_or("none of Keystone's", Role::as_str);
        let message = format!("this requires the role {} in a project, and yours is {has}", least.as_str());
        Err(Fault::new(StatusCode::FORBIDDEN, message))
    }

    /// # Errors
    /// 403 for who is neither a service nor of that role.
    pub(super) fn needs_service_or(&self, least: Role) -> Result<(), Fault> {
        if self.service { Ok(()) } else { self.needs(least) }
    }

    /// # Errors
    /// 403 for who is neither a service nor the administrator.
    pub(super) fn needs_service(&self) -> Result<(), Fault> {
        if self.service || self.role == Some(Role::Admin) {
            return Ok(());
        }
        let message = "this requires a service token: an X-Service-Token whose roles have service, as Nova sends it; \
                       or the role admin";
        Err(Fault::new(StatusCode::FORBIDDEN, message))
    }

    /// Whether they may know of what belongs to a project.
    pub(super) fn sees(&self, project: Option<&str>) -> bool {
        self.role == Some(Role::Admin) || (self.project.is_some() && self.project.as_deref() == project)
    }
}

/// A name of who calls, the same for each request of theirs; empty for who was not asked, or says nothing.
pub(super) fn caller(headers: &HeaderMap, from: IdentityFrom) -> String {
    match from {
        IdentityFrom::None => String::new(),
        IdentityFrom::Headers => {
            let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
            [text("x-user-id"), text("x-project-id")].into_iter().flatten().collect::<Vec<_>>().join(" in ")
        }
    }
}

impl FromRequestParts<Arc<Service>> for Identity {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self, Fault> {
        Self::from_headers(&parts.headers, service.config.api.identity)
    }
}

/// For what knows of no projects: services and the administrator.
pub(super) async fn operators(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let identity = Identity::from_headers(request.headers(), service.config.api.identity);
    match identity.and_then(|identity| identity.needs_service()) {
        Ok(()) => next.run(request).await,
        Err(fault) => fault.into_response(),
    }
}
