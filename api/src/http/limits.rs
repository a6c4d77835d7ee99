//! How much one request may bring. What is more is refused before anything is done with it.
//!
//! What hyper cannot hold at all (more than 100 headers or some 400 KiB of them, a path of 64 KiB) it refuses itself,
//! with the same status and no body. How many devices one request may ask for is `a1:2,b1:1`'s to say, how long a
//! page is the page's.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

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

/// Refuses what is too long.
pub(super) async fn keep(request: Request, next: Next) -> Response {
    match excess(&request) {
        Some(fault) => fault.into_response(),
        None => next.run(request).await,
    }
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
