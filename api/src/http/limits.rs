//! Limits on the size of a request. A request above a limit is refused before it is processed.
//!
//! hyper itself refuses more than 100 headers, headers of more than about 400 KiB and paths of more than 64 KiB, with
//! the same status and no body. The number of devices is limited where `a1:2,b1:1` is parsed, and the number of items
//! of a page by [`Page`](super::body::Page).

use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hotslot_service::config::Config;

use super::error::Fault;

/// The maximum size of a body, in bytes.
pub(super) const BODY: usize = 64 * 1024;

/// The maximum nesting of objects and lists in a body. serde_json parses at most 128 levels, and a response adds some
/// levels around the parts of a body that it returns.
pub(super) const NESTING: usize = 100;

/// The maximum length of the path with its query, in bytes before percent-decoding.
const URI: usize = 8 * 1024;

/// The maximum number of headers.
const HEADERS: usize = 64;

/// The maximum size of all header names and values together, in bytes.
const HEADER_BYTES: usize = 16 * 1024;

/// Refuses a request that is too large, whose body arrives too slowly, or whose body is not JSON. The handlers get a
/// complete body.
pub(super) async fn enforce(State(config): State<Arc<Config>>, request: Request, next: Next) -> Response {
    if let Some(fault) = excess(&request) {
        return fault.into_response();
    }
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    if let Err(fault) = expect_json(request.headers()) {
        return fault.into_response();
    }
    match received(&config, request).await {
        Ok(request) => next.run(request).await,
        Err(response) => *response,
    }
}

/// As [`enforce`], for forms of the page. The page's own handlers check the media type.
pub(super) async fn enforce_form(
    State(config): State<Arc<Config>>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(fault) = excess(&request) {
        return fault.into_response();
    }
    match received(&config, request).await {
        Ok(request) => next.run(request).await,
        Err(response) => *response,
    }
}

/// Returns a request with its whole body, or the response to one whose body does not arrive in time.
async fn received(config: &Config, request: Request) -> Result<Request, Box<Response>> {
    let limit = config.api.body_timeout.0;
    let (parts, body) = request.into_parts();
    let body = Bytes::from_request(Request::from_parts(parts.clone(), body), &());
    match tokio::time::timeout(limit, body).await {
        Ok(Ok(body)) => Ok(Request::from_parts(parts, Body::from(body))),
        Ok(Err(rejection)) => Err(Box::new(unreadable(&rejection).into_response())),
        Err(_) => {
            let seconds = limit.as_secs_f64();
            let message = format!("the body did not arrive within {seconds} seconds; send it faster");
            let mut response = Fault::new(StatusCode::REQUEST_TIMEOUT, message).into_response();
            // On an open connection, the rest of the body would be parsed as the next request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            Err(Box::new(response))
        }
    }
}

/// Refuses a body without the media type `application/json`. Web pages can send forms to any origin, but not JSON.
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

/// Returns the answer to a request whose path or headers are too large.
pub(super) fn excess(request: &Request) -> Option<Fault> {
    let (uri, headers) = (request.uri(), request.headers());
    let refuse = |status, has: String| Some(Fault::new(status, has));
    let length = uri.path_and_query().map_or(0, |text| text.as_str().len());
    if length > URI {
        let has = format!("path and query have {length} bytes; send at most {URI}");
        return refuse(StatusCode::URI_TOO_LONG, has);
    }
    if headers.len() > HEADERS {
        let has = format!("the request has {} headers; send at most {HEADERS}", headers.len());
        return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, has);
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > HEADER_BYTES {
        let has = format!("the headers of the request have {bytes} bytes; send at most {HEADER_BYTES}");
        return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, has);
    }
    None
}

/// Returns the nesting depth of objects and lists in a JSON text.
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

/// Returns the fault for a body that could not be received.
pub(super) fn unreadable(rejection: &BytesRejection) -> Fault {
    let message = match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            format!("the body is too large; send at most {BODY} bytes")
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
        fn brackets_in_strings_do_not_count_as_nesting(key in "[\\[\\]{}\"\\\\a]{0,8}", levels in 0_usize..20, list: bool) {
            let wrap = |value| if list { Value::from(vec![value]) } else { Value::from_iter([(key.clone(), value)]) };
            let value = (0..levels).fold(Value::from(key.clone()), |value, _| wrap(value));
            prop_assert_eq!(nesting(value.to_string().as_bytes()), depth(&value));
        }
    }
}
