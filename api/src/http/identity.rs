//! Finds out who calls, from the connection and the headers of a request.
//!
//! With `[api] identity = "headers"`, a proxy in front of hotslot validates tokens and describes the caller in the
//! headers of keystonemiddleware. Otherwise a token decides, where the request has one, and then the connection.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use hotslot_driver::text::visible;
use hotslot_model::identity::{Caller, Peer, Refusal, SERVICE, Scope, User, Via};
use hotslot_service::config::IdentityFrom;
use hotslot_service::identity::{Shown, Unidentified};

use super::certificate::ClientCertificate;
use super::error::Fault;
use super::state::{App, IdentityParts};

/// The caller on whose behalf the page sends a request in this process. No client can send this, because it is no
/// header.
#[derive(Debug, Clone)]
pub(super) struct OnBehalf(pub(super) Caller);

/// The header with the secret of the proxy.
const PROXY_SECRET: &str = "x-hotslot-proxy-secret";

impl From<Unidentified> for Fault {
    fn from(error: Unidentified) -> Self {
        let status = match error {
            Unidentified::Unknown(_) => StatusCode::UNAUTHORIZED,
            Unidentified::Refused(_) => StatusCode::FORBIDDEN,
            Unidentified::Away(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::new(StatusCode::FORBIDDEN, refusal.to_string())
    }
}

/// Returns the caller of a request.
///
/// # Errors
/// 401 when the request does not show who calls, or shows it ambiguously; 403 for a local user without any right; 503
/// when callers cannot be identified at present.
pub(super) async fn caller(identity: &IdentityParts, request: &Parts) -> Result<Caller, Fault> {
    let (headers, peer) = (&request.headers, request.extensions.get::<Peer>().copied());
    match identity.config.api.identity {
        IdentityFrom::Headers => {
            let certified = request.extensions.get::<Arc<ClientCertificate>>().is_some();
            let secret = text(headers, PROXY_SECRET)?.map(str::as_bytes);
            if identity.callers.trust_headers(peer, certified, secret) {
                return by_headers(headers);
            }
            let message = "the request does not come from the proxy that identifies callers; send it to the proxy, \
                           which sends X-Hotslot-Proxy-Secret";
            Err(Fault::new(StatusCode::UNAUTHORIZED, message))
        }
        IdentityFrom::None => match token(headers)?.filter(|_| identity.callers.take_tokens()) {
            Some(token) => {
                let path = request.uri.path();
                let shown = Shown {
                    token,
                    service_token: text(headers, "x-service-token")?,
                    service: if path.starts_with("/accelerator/") { "accelerator" } else { "compute" },
                    method: request.method.as_str(),
                    path,
                };
                Ok(identity.callers.by_token(&shown).await?)
            }
            None => Ok(identity.callers.by_peer(peer).await?),
        },
    }
}

/// Whether a request has a token, valid or not.
pub(super) fn shows_token(headers: &HeaderMap) -> bool {
    headers.contains_key(header::AUTHORIZATION) || headers.contains_key("x-auth-token")
}

/// Whether Keystone has to be asked about the token of a request.
pub(super) fn asks_keystone(identity: &IdentityParts, headers: &HeaderMap) -> bool {
    token(headers).ok().flatten().is_some_and(|token| identity.callers.asks_keystone(token))
}

/// Returns the token of a request: that of `Authorization: Bearer`, or that of `X-Auth-Token`.
fn token(headers: &HeaderMap) -> Result<Option<&str>, Fault> {
    let bearer = text(headers, header::AUTHORIZATION.as_str())?.and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    Ok(bearer.or(text(headers, "x-auth-token")?))
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
        let message = format!("the header {name} occurs twice or is not valid UTF-8; send it once");
        Fault::new(StatusCode::UNAUTHORIZED, message)
    };
    let value = value.ok_or_else(wrong)?.trim();
    Ok((!value.is_empty()).then_some(value))
}

/// Reads the caller from the headers that the proxy sets.
fn by_headers(headers: &HeaderMap) -> Result<Caller, Fault> {
    let confirmed =
        |name: &str| Ok::<_, Fault>(text(headers, name)?.is_none_or(|status| status == "Confirmed"));
    let unknown = || {
        let message = "the request is not authenticated; send it through the proxy that validates tokens and \
                       sets X-User-Id";
        Fault::new(StatusCode::UNAUTHORIZED, message)
    };
    let id = text(headers, "x-user-id")?.ok_or_else(unknown)?;
    if !confirmed("x-identity-status")? {
        return Err(unknown());
    }
    let roles = |name: &str| {
        let list = text(headers, name)?.unwrap_or_default().split(',');
        let names = list.map(|role| role.trim().to_ascii_lowercase()).filter(|role| !role.is_empty());
        Ok::<BTreeSet<String>, Fault>(names.collect())
    };
    let (own, of_service) = (roles("x-roles")?, roles("x-service-roles")?);
    let confirmed_service = of_service.contains(SERVICE) && confirmed("x-service-identity-status")?;
    let (project, domain) = (text(headers, "x-project-id")?, text(headers, "x-domain-id")?);
    let scope = match (project, text(headers, "openstack-system-scope")?) {
        // A proxy sends one of the two. A scope that a client has added to its project gives no right.
        (Some(_), _) => Scope::Project,
        (None, Some("all")) => Scope::System,
        (None, Some(_)) => Scope::Unscoped,
        (None, None) if domain.is_some() => Scope::Domain,
        (None, None) => Scope::Unscoped,
    };
    for id in [Some(id), project].into_iter().flatten() {
        visible(id).map_err(|reason| Fault::new(StatusCode::UNAUTHORIZED, format!("the id {reason}")))?;
    }
    let name = text(headers, "x-user-name")?.unwrap_or(id).to_owned();
    Ok(Caller {
        user: Some(User { id: id.to_owned(), name }),
        service: own.contains(SERVICE) || confirmed_service,
        roles: own,
        project: project.filter(|_| scope == Scope::Project).map(str::to_owned),
        scope,
        via: Via::Headers,
    })
}

impl FromRequestParts<App> for Caller {
    type Rejection = Fault;

    /// Returns the caller that `policy.rs` has put into the request.
    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Fault> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Fault::new(StatusCode::UNAUTHORIZED, "the request does not show who calls"))
    }
}
