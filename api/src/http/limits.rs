//! How much one request may bring. What is more is refused before anything is done with it.
//!
//! What hyper cannot hold at all (more than 100 headers or some 400 KiB of them, a path of 64 KiB) it refuses itself,
//! with the same status and no body. How many devices one request may ask for is `a1:2,b1:1`'s to say, how long a
//! page is the page's.

use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hotslot_service::service::Service;

use super::error::Fault;

/// The largest body, in bytes.
pub(super) const BODY: usize = 64 * 1024;

/// How deep objects and lists may stand in each other in a body. serde_json reads 128 levels; what is kept of a body is
/// answered in some more.
pub(super) const NESTING: usize = 100;

/// The longest path with its query, in bytes as they are sent.
const URI: usize = 8 * 1024;

/// The most headers.
const HEADERS: usize = 64;

/// The most bytes of all names and values of headers together.
const HEADER_BYTES: usize = 16 * 1024;

/// Refuses what is too long, takes too long, or is no JSON. What comes after has the whole body.
pub(super) async fn enforce(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    if let Some(fault) = excess(&request) {
        return fault.into_response();
    }
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    if let Err(fault) = expect_json(request.headers()) {
        return fault.into_response();
    }
    let limit = service.config.api.body_timeout.0;
    let (parts, body) = request.into_parts();
    let body = Bytes::from_request(Request::from_parts(parts.clone(), body), &());
    match tokio::time::timeout(limit, body).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Ok(Err(rejection)) => unreadable(&rejection).into_response(),
        Err(_) => {
            let seconds = limit.as_secs_f64();
            let message = format!("the body did not come within {seconds} seconds; send it faster");
            let mut response = Fault::new(StatusCode::REQUEST_TIMEOUT, message).into_response();
            // What is left of the body would be taken for the next request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

/// Refuses a body that does not say that it is JSON: forms, which web pages send to anybody, do not.
pub(super) fn expect_json(headers: &HeaderMap) -> Result<(), Fault> {
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or("?"));
    let essence = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let has = kind.map_or("has no Content-Type".to_owned(), |kind| format!("is `{kind}`"));
    let message = format!("the body {has}; send it with Content-Type: application/json");
    Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}

fn excess(request: &Request) -> Option<Fault> {
    let (uri, headers) = (request.uri(), request.headers());
    let refuse = |status, has: String| Some(Fault::new(status, has));
    let length = uri.path_and_query().map_or(0, |text| text.as_str().len());
    if length > URI {
        let has = format!("path and query have {length} bytes; send {URI} at most");
        return refuse(StatusCode::URI_TOO_LONG, has);
    }
    if headers.len() > HEADERS {
        let has = format!("the request has {} headers; send {HEADERS} at most", headers.len());
        return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, has);
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > HEADER_BYTES {
        let has = format!("the request's headers have {bytes} bytes; send {HEADER_BYTES} at most");
        return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, has);
    }
    None
}

/// How deep objects and lists stand in each other in a JSON text.
pub(super) fn nesting(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Says why a body could not be received.
pub(super) fn unreadable(rejection: &BytesRejection) -> Fault {
    let message = match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            format!("the body is too large; send {} bytes at most", BODY)
        }
        _ => format!("the body cannot be read: {}", rejection.body_text()),
    };
    Fault::new(rejection.status(), message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        }
    }

    proptest! {
        #[test]
        fn brackets_in_texts_are_no_nesting(key in "[\\[\\]{}\"\\\\a]{0,8}", levels in 0_usize..20, list: bool) {
            let wrap = |value| if list { Value::from(vec![value]) } else { Value::from_iter([(key.clone(), value)]) };
            let value = (0..levels).fold(Value::from(key.clone()), |value, _| wrap(value));
            prop_assert_eq!(nesting(value.to_string().as_bytes()), depth(&value));
        }
    }
}
