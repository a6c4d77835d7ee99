//! The caller of a request, and what the caller may do.
//!
//! With `[api] identity = "headers"`, a proxy in front of hotslot validates tokens and describes the caller in the
//! headers of keystonemiddleware. Otherwise every caller who can connect is the administrator. hotslot itself never
//! reads tokens.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hotslot_service::config::Config;
use hotslot_service::config::IdentityFrom;
use hotslot_service::cyborg::AccessScope;
use hotslot_service::error::Error;
use serde_json::json;

use super::error::Fault;
use super::state::App;

/// Keystone's default roles. Each role implies the roles before it.
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

/// The caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// The user's id; `None` without `[api] identity`.
    user: Option<String>,
    /// The highest of the user's roles; `None` when the user has none of Keystone's default roles.
    role: Option<Role>,
    /// Whether the caller is a service such as Nova, on its own behalf or on the user's.
    service: bool,
    /// The id of the project; `None` without `[api] identity`.
    pub(super) project: Option<String>,
}

/// Returns the value of a header; `None` when the header is missing or empty.
///
/// # Errors
/// 401 when the header occurs twice or is not UTF-8, because the identity would be ambiguous.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Fault> {
    let mut values = headers.get_all(name).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => std::str::from_utf8(value.as_bytes()).ok(),
        (Some(_), Some(_)) => None,
    };
    let wrong = || {
        let message =
            format!("the header {name} occurs twice or is not valid UTF-8; the proxy must set it once");
        Fault::new(StatusCode::UNAUTHORIZED, message)
    };
    let value = value.ok_or_else(wrong)?.trim();
    Ok((!value.is_empty()).then_some(value))
}

impl Identity {
    /// Reads the identity from the headers that the proxy sets.
    fn of(headers: &HeaderMap) -> Result<Self, Fault> {
        let confirmed =
            |name: &str| Ok::<_, Fault>(text(headers, name)?.is_none_or(|status| status == "Confirmed"));
        let unknown = || {
            let message = "the request is not authenticated; send it through the proxy that validates tokens and \
                           sets X-User-Id";
            Fault::new(StatusCode::UNAUTHORIZED, message)
        };
        let user = text(headers, "x-user-id")?.ok_or_else(unknown)?;
        if !confirmed("x-identity-status")? {
            return Err(unknown());
        }
        // The policies apply to project-scoped tokens. Roles in a domain or in the whole system have no meaning here.
        let (project, system) = (text(headers, "x-project-id")?, text(headers, "openstack-system-scope")?);
        let Some(project) = project.filter(|_| system.is_none()) else {
            let message = "the token is scoped to a domain, to the system or to nothing; use a token that is scoped \
                           to a project";
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

    /// The identity of every caller without `[api] identity`.
    fn administrator() -> Self {
        Self { user: None, role: Some(Role::Admin), service: false, project: None }
    }

    /// Returns the identity of a request.
    ///
    /// # Errors
    /// With `[api] identity = "headers"`: 401 when the headers name no user, 403 when they name no project.
    pub(super) fn from_headers(headers: &HeaderMap, from: IdentityFrom) -> Result<Self, Fault> {
        match from {
            IdentityFrom::None => Ok(Self::administrator()),
            IdentityFrom::Headers => Self::of(headers),
        }
    }

    /// Whether the caller is the administrator.
    pub(super) fn is_admin(&self) -> bool {
        self.role == Some(Role::Admin)
    }

    /// Requires a role.
    ///
    /// # Errors
    /// 403 when the caller has a lower role.
    pub(super) fn needs(&self, least: Role) -> Result<(), Fault> {
        if self.role >= Some(least) {
            return Ok(());
        }
        let has = self.role.map_or("none", Role::as_str);
        let message = format!("this requires the role {} in a project, and yours is {has}", least.as_str());
        Err(Fault::new(StatusCode::FORBIDDEN, message))
    }

    /// Requires a service or a role.
    ///
    /// # Errors
    /// 403 when the caller is not a service and has a lower role.
    pub(super) fn needs_service_or(&self, least: Role) -> Result<(), Fault> {
        if self.service { Ok(()) } else { self.needs(least) }
    }

    /// Requires a service or the administrator.
    ///
    /// # Errors
    /// 403 for every other caller.
    pub(super) fn needs_service(&self) -> Result<(), Fault> {
        if self.service || self.is_admin() {
            return Ok(());
        }
        Err(Error::NeedsService.into())
    }

    /// Whether the caller may see the resources of a project.
    pub(super) fn sees(&self, project: Option<&str>) -> bool {
        self.reach().project.is_none_or(|own| Some(own.as_str()) == project)
    }

    /// The accelerator requests that the caller may see and change.
    pub(super) fn reach(&self) -> AccessScope {
        let admin = self.is_admin();
        AccessScope { project: self.project.clone().filter(|_| !admin), service: admin || self.service }
    }

    /// Returns a string that identifies the caller and the caller's rights; empty without `[api] identity`.
    pub(super) fn caller(&self) -> String {
        let role = self.role.map(Role::as_str);
        self.user
            .as_ref()
            .map_or_else(String::new, |user| json!([user, self.project, role, self.service]).to_string())
    }
}

impl FromRequestParts<App> for Identity {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Fault> {
        Self::from_headers(&parts.headers, app.0.config.api.identity)
    }
}

/// Admits services and the administrator only. The routes behind it do not check projects.
pub(super) async fn require_operator(
    State(config): State<Arc<Config>>,
    request: Request,
    next: Next,
) -> Response {
    let identity = Identity::from_headers(request.headers(), config.api.identity);
    match identity.and_then(|identity| identity.needs_service()) {
        Ok(()) => next.run(request).await,
        Err(fault) => fault.into_response(),
    }
}
