//! Maps every error to a status code and a body in Nova's fault form. No other file chooses status codes for errors of
//! the service.
//!
//! The client sees the message of the error. The causes of internal errors go to the log only.

use std::convert::Infallible;

use axum::Json;
use axum::extract::OriginalUri;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hotslot_driver::hypervisor::ErrorKind;
use hotslot_driver::text;
use hotslot_model::host_mode::HostMode;
use hotslot_service::error::Error;
use serde_json::json;

/// `Retry-After` of a 503, in seconds.
const RETRY_AFTER: &str = "5";

/// A status code and its message.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) status: StatusCode,
    pub(super) message: String,
    /// Whether a client may repeat the request without checking the current state first. The response then has a
    /// `Retry-After`.
    again: bool,
    /// The message for callers who may not see hosts; `None` when `message` is for everybody.
    discreet: Option<String>,
}

impl Fault {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let again = status == StatusCode::SERVICE_UNAVAILABLE;
        // A terminal shows the text of a caller or a host that is in it.
        let message = text::escape_but(&message.into(), &['\n']).into_owned();
        Self { status, message, again, discreet: None }
    }

    /// Returns the fault for a caller who may not see hosts; `None` when it is the same. The log gets the message that is
    /// left out.
    pub(super) fn without_hosts(&self) -> Option<Self> {
        let message = self.discreet.clone()?;
        tracing::info!(status = self.status.as_u16(), "answered without this reason: {}", self.message);
        Some(Self { message, discreet: None, ..self.clone() })
    }
}

impl From<hotslot_store::Error> for Fault {
    fn from(error: hotslot_store::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::TooFewFree { shortage, .. } if shortage.is_unavailable() => StatusCode::CONFLICT,
            Error::Invalid(_) | Error::UnknownAlias { .. } | Error::TooFewFree { .. } => {
                StatusCode::BAD_REQUEST
            }
            Error::NoServer(_)
            | Error::NoAttachment(_)
            | Error::NoAccelerator(_)
            | Error::NotFound(_)
            | Error::NotListed { .. } => StatusCode::NOT_FOUND,
            Error::Gone(_) => StatusCode::GONE,
            Error::NeedsService | Error::NeedsAdmin | Error::NotTheirs | Error::OverQuota(_) => {
                StatusCode::FORBIDDEN
            }
            Error::Conflict(_)
            | Error::Busy(_)
            | Error::Restricted { .. }
            | Error::AlreadyExists(_)
            | Error::Stale => StatusCode::CONFLICT,
            Error::HostAway { .. } | Error::Full { .. } | Error::TakenOver => StatusCode::SERVICE_UNAVAILABLE,
            Error::Hypervisor { error, .. } => of_kind(error.kind),
            Error::Store(source) if let Some(advice) = source.advice() => {
                tracing::error!(error = ?source, "the database cannot be used: {source}");
                let message = format!(
                    "the database cannot be used: {advice}. hotslot completes or undoes interrupted work once the \
                     database works again: check the current state before you repeat the request"
                );
                let fault = Self::new(StatusCode::SERVICE_UNAVAILABLE, message);
                return Self { again: false, discreet: discreet(&error), ..fault };
            }
            Error::Store(_) | Error::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status != StatusCode::INTERNAL_SERVER_ERROR {
            let fault = Self::new(status, error.to_string());
            let again = fault.again && !matches!(error, Error::TakenOver);
            return Self { again, discreet: discreet(&error), ..fault };
        }
        tracing::error!(error = ?error, "a request failed: {error}");
        let message = "Unexpected API error: the log of the service has the cause under the \
                       x-openstack-request-id of this response.";
        Self::new(status, message)
    }
}

/// Returns what a caller who may not see hosts is told of an error; `None` when that is the message of the error. Every
/// text that may come from a host, another server or another project is left out.
fn discreet(error: &Error) -> Option<String> {
    let text = match error {
        Error::Invalid(_)
        | Error::UnknownAlias { .. }
        | Error::NeedsService
        | Error::NeedsAdmin
        | Error::NotTheirs
        | Error::OverQuota(_)
        | Error::NoServer(_)
        | Error::NoAttachment(_)
        | Error::NoAccelerator(_)
        | Error::NotFound(_)
        | Error::NotListed { .. }
        | Error::Gone(_)
        | Error::Busy(_)
        | Error::AlreadyExists(_)
        | Error::Stale
        | Error::TakenOver
        | Error::Internal(_) => return None,
        Error::TooFewFree { shortage, .. } => {
            let advice = shortage.advice_without_host();
            return Some(format!("too few devices of this kind are free for the server; {advice}"));
        }
        Error::Conflict(_) => {
            "the request conflicts with the state of the server, or of a device; look at the server's attachments, and \
             try again when nothing is attaching or detaching. An administrator finds the reason in the log of the \
             service, under the x-openstack-request-id of this response"
        }
        Error::Restricted { mode, .. } => match mode {
            HostMode::Draining => {
                "the host is being drained: nothing new is attached there, and what is attached can be detached; try again \
                 when an administrator has opened it again"
            }
            HostMode::Frozen => {
                "the host is frozen: nothing is changed there until an administrator opens it again; try again then"
            }
            HostMode::Open | HostMode::ReadOnly => {
                "the host is read-only: nothing is changed there; ask an administrator"
            }
        },
        Error::HostAway { .. } => "a hypervisor is unreachable; try again later",
        Error::Full { .. } => "too many attaches and detaches run or wait; try again later",
        Error::Hypervisor { error, .. } => discreet_kind(error.kind),
        Error::Store(_) => {
            "the database cannot be used at present. hotslot completes or undoes interrupted work once it works again: \
             check the current state before you repeat the request"
        }
    };
    Some(text.to_owned())
}

fn discreet_kind(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NoFreePort => {
            "the server has no free PCI slot for the device; detach something, or have its definition extended"
        }
        ErrorKind::NotRunning => "the server is not running",
        ErrorKind::UnplugPending => "the guest has not answered an earlier request to release the device yet",
        ErrorKind::UnplugRefused => "the guest refused to release the device; stop using it there first",
        ErrorKind::AgentAway => "the guest agent does not answer",
        ErrorKind::NoDomain => "the server does not exist any more",
        ErrorKind::Away | ErrorKind::TimedOut => {
            "the hypervisor did not answer in time; look at the server's attachments before you repeat the request"
        }
        ErrorKind::NoDevice
        | ErrorKind::DeviceMissing
        | ErrorKind::InUse
        | ErrorKind::GroupNotViable
        | ErrorKind::BadGuestAddress
        | ErrorKind::NotAssignable
        | ErrorKind::AlreadyDefined
        | ErrorKind::NoPassthrough
        | ErrorKind::Unsupported
        | ErrorKind::Document
        | ErrorKind::Refused => {
            "the hypervisor refused the request. An administrator finds the reason in the log of the service, under the \
             x-openstack-request-id of this response"
        }
    }
}

fn of_kind(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Away | ErrorKind::TimedOut => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::NoDomain => StatusCode::NOT_FOUND,
        ErrorKind::NoDevice
        | ErrorKind::DeviceMissing
        | ErrorKind::InUse
        | ErrorKind::GroupNotViable
        | ErrorKind::NoFreePort
        | ErrorKind::BadGuestAddress
        | ErrorKind::NotAssignable
        | ErrorKind::NotRunning
        | ErrorKind::AlreadyDefined
        | ErrorKind::NoPassthrough
        | ErrorKind::UnplugPending
        | ErrorKind::UnplugRefused
        | ErrorKind::AgentAway => StatusCode::CONFLICT,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        // The hypervisor failed; neither the caller nor hotslot is at fault.
        ErrorKind::Document | ErrorKind::Refused => StatusCode::BAD_GATEWAY,
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let name = match self.status.as_u16() {
            400 => "badRequest",
            401 => "unauthorized",
            403 => "forbidden",
            404 => "itemNotFound",
            405 => "badMethod",
            408 => "requestTimeout",
            409 => "conflictingRequest",
            410 => "gone",
            413 | 414 | 429 | 431 => "overLimit",
            415 => "badMediaType",
            421 => "misdirectedRequest",
            422 => "unprocessableEntity",
            501 => "notImplemented",
            503 => "serviceUnavailable",
            _ => "computeFault",
        };
        let body = json!({ name: { "code": self.status.as_u16(), "message": self.message } });
        let mut response = (self.status, Json(body)).into_response();
        if self.again {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // `cyborg::microversion` takes the fault from here to write it in Cyborg's form.
        response.extensions_mut().insert(self);
        response
    }
}

/// The 404 of a path without a route.
pub(super) fn no_route(uri: Result<OriginalUri, Infallible>) -> Fault {
    let Ok(OriginalUri(uri)) = uri;
    Fault::new(StatusCode::NOT_FOUND, format!("no such path: {}; GET / lists the versions", uri.path()))
}

pub(super) async fn not_found(uri: OriginalUri) -> Fault {
    no_route(Ok(uri))
}

pub(super) async fn no_method(method: Method, OriginalUri(uri): OriginalUri) -> Fault {
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not support the method {method}", uri.path()))
}
