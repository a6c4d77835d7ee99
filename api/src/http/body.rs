//! Bodies, paths and links: what the resources share.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use super::error::Fault;
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
    serde_json::from_slice(&body)
        .map_err(|error| Fault::new(StatusCode::BAD_REQUEST, format!("bad body: {error}; send {example}")))
}

/// Parses an id of a path: what is no id names nothing.
pub(super) fn id<T: std::str::FromStr>(text: &str, noun: &str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::NotFound(format!("{noun} {}", text.chars().take(80).collect::<String>())))
}

/// The `http://host` that the client used.
pub(super) fn base(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    format!("http://{host}")
}

/// ISO 8601 in UTC, as Nova writes times.
pub(super) fn time(millis: Millis) -> String {
    jiff::Timestamp::from_millisecond(millis - millis.rem_euclid(1000))
        .map_or_else(|_| millis.to_string(), |time| time.to_string())
}
