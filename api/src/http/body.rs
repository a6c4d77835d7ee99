//! Bodies, paths and links: what the resources share.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequestParts, OriginalUri};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use super::error::{Fault, no_route};
use crate::error::Error;
use crate::store::Millis;

/// Reads a JSON body. `example` is what would be right.
pub(super) fn read<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    example: &str,
) -> Result<T, Fault> {
    let body = body.map_err(|rejection| {
        Fault::new(rejection.status(), format!("the body cannot be read: {}", rejection.body_text()))
    })?;
    let kind =
        headers.get(header::CONTENT_TYPE).map_or("application/json", |kind| kind.to_str().unwrap_or(""));
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = format!("the body is `{kind}`; send application/json");
        return Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let bad = |reason: &dyn std::fmt::Display| {
        Fault::new(StatusCode::BAD_REQUEST, format!("bad body: {reason}; send {example}"))
    };
    // serde would take a list for a struct; every body here is an object in an object.
    let value: serde_json::Value = serde_json::from_slice(&body).map_err(|error| bad(&error))?;
    let objects = value.as_object().is_some_and(|outer| outer.values().all(|inner| !inner.is_array()));
    if !objects {
        return Err(bad(&"a list stands where an object belongs"));
    }
    serde_json::from_slice(&body).map_err(|error| bad(&error))
}

/// The parts of a path. What cannot be read of one names nothing.
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(path)) => Ok(Self(path)),
            Err(_) => Err(no_route(OriginalUri::from_request_parts(parts, state).await)),
        }
    }
}

/// The parts of a query string.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|rejection| Fault::new(StatusCode::BAD_REQUEST, rejection.body_text()))
    }
}

/// Parses an id of a path: what does not look as we write it names nothing.
pub(super) fn id<T: std::str::FromStr + ToString>(text: &str, noun: &str) -> Result<T, Error> {
    let parsed = text.parse::<T>().ok().filter(|id| id.to_string().eq_ignore_ascii_case(text));
    parsed.ok_or_else(|| Error::NotFound(format!("{noun} {}", text.chars().take(80).collect::<String>())))
}

/// The `http://host` that the client used.
pub(super) fn base(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    host.map_or_else(|| "http://localhost".to_owned(), |host| format!("http://{host}"))
}

/// ISO 8601 in UTC, as Nova writes times.
pub(super) fn time(millis: Millis) -> String {
    jiff::Timestamp::from_millisecond(millis - millis.rem_euclid(1000))
        .map_or_else(|_| millis.to_string(), |time| time.to_string())
}
