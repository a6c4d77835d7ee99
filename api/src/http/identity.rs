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
use hotslot_service::config::IdentityFrom;
use hotslot_service::cyborg::AccessScope;
use hotslot_service::error::Error;
use hotslot_service::service::Service;
use serde_json::json;

use super::error::Fault;

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
    /// The user; none for who was not asked.
    user: Option<String>,
    /// The highest of their roles; none: they have none of Keystone's.
    role: Option<Role>,
    /// Whether a service calls, for itself or for the user: Nova, Cyborg's own.
    service: bool,
    /// Their project; none for who was not asked.
    pub(super) project: Option<String>,
}

/// What a header says; none when it is not there, or empty.
///
/// # Errors
/// 401 when it is there twice, or is no text: which one is meant is not for us to say.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Fault> {
    let mut values = headers.get_all(name).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => std::str::from_utf8(value.as_bytes()).ok(),
        (Some(_), Some(_)) => None,
    };
    let wrong = || {
        let message =
            format!("the header {name} is there twice, or is no text; the proxy in front sets it once");
        Fault::new(StatusCode::UNAUTHORIZED, message)
    };
    let value = value.ok_or_else(wrong)?.trim();
    Ok((!value.is_empty()).then_some(value))
}

impl Identity {
    /// Whom a proxy says it is.
    fn of(headers: &HeaderMap) -> Result<Self, Fault> {
        let confirmed =
            |name: &str| Ok::<_, Fault>(text(headers, name)?.is_none_or(|status| status == "Confirmed"));
        let unknown = || {
            let message = "the request says nothing of who sends it; come through the proxy that looks at tokens and \
                           sets X-User-Id";
            Fault::new(StatusCode::UNAUTHORIZED, message)
        };
        let user = text(headers, "x-user-id")?.ok_or_else(unknown)?;
        if !confirmed("x-identity-status")? {
            return Err(unknown());
        }
        // Policies are for tokens of projects: what somebody may do in a domain, or the whole system, says nothing here.
        let (project, system) = (text(headers, "x-project-id")?, text(headers, "openstack-system-scope")?);
        let Some(project) = project.filter(|_| system.is_none()) else {
            let message = "the request is of no project, but of a domain, the system, or nothing at all; ask with the \
                           token of a project";
            return Err(Fault::new(StatusCode::FORBIDDEN, message));
        };
        let roles = |name: &str| {
            let list = text(headers, name)?.unwrap_or_default().split(',');
            Ok::<BTreeSet<String>, Fault>(list.map(|role| role.trim().to_ascii_lowercase()).collect())
        };
        let (own, of_service) = (roles("x-roles")?, roles("x-service-roles")?);
        Ok(Self {
            user: Some(user.to_owned()),
            role: Role::ALL.into_iter().rfind(|role| own.contains(role.as_str())),
            service: own.contains("service")
                || (of_service.contains("service") && confirmed("x-service-identity-status")?),
            project: Some(project.to_owned()),
        })
    }

    fn nobody_asked() -> Self {
        Self { user: None, role: Some(Role::Admin), service: false, project: None }
    }

    /// Who sends a request.
    ///
    /// # Errors
    /// 401 for who does not say it, 403 for who is of no project.
    pub(super) fn from_headers(headers: &HeaderMap, from: IdentityFrom) -> Result<Self, Fault> {
        match from {
            IdentityFrom::None => Ok(Self::nobody_asked()),
            IdentityFrom::Headers => Self::of(headers),
        }
    }

    /// Whether the administrator calls.
    pub(super) fn is_admin(&self) -> bool {
        self.role == Some(Role::Admin)
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
        if self.service || self.is_admin() {
            return Ok(());
        }
        Err(Error::NeedsService.into())
    }

    /// Whether they may know of what belongs to a project.
    pub(super) fn sees(&self, project: Option<&str>) -> bool {
        self.reach().project.is_none_or(|own| Some(own.as_str()) == project)
    }

    /// What they may do with accelerator requests.
    pub(super) fn reach(&self) -> AccessScope {
        let admin = self.is_admin();
        AccessScope { project: self.project.clone().filter(|_| !admin), service: admin || self.service }
    }

    /// A name of who calls and what they may do, of no one else; empty for who was not asked.
    pub(super) fn caller(&self) -> String {
        let role = self.role.map(Role::as_str);
        self.user
            .as_ref()
            .map_or_else(String::new, |user| json!([user, self.project, role, self.service]).to_string())
    }
}

impl FromRequestParts<Arc<Service>> for Identity {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self, Fault> {
        Self::from_headers(&parts.headers, service.config.api.identity)
    }
}

/// For what knows of no projects: services and the administrator.
pub(super) async fn require_operator(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Response {
    let identity = Identity::from_headers(request.headers(), service.config.api.identity);
    match identity.and_then(|identity| identity.needs_service()) {
        Ok(()) => next.run(request).await,
        Err(fault) => fault.into_response(),
    }
}
