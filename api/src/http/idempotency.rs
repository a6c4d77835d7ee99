//! `Idempotency-Key` on POST: a request with the same key, path and body is executed once, and repetitions get the same
//! response.

use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hotslot_model::idempotency::{Answer, IdempotencyKey};
use hotslot_model::identity::Caller;
use hotslot_service::error::Error;
use hotslot_service::idempotency::Idempotency;

use super::error::Fault;
use super::limits::unreadable;

const HEADER: &str = "idempotency-key";

pub(super) async fn answer_once(
    State(idempotency): State<Arc<Idempotency>>,
    request: Request,
    next: Next,
) -> Response {
    if request.method() != Method::POST || !request.headers().contains_key(HEADER) {
        return next.run(request).await;
    }
    // A stored response is returned only to the same caller with the same rights.
    let caller = request.extensions().get::<Caller>();
    let (caller, project) = (caller.map(Caller::key), caller.and_then(|caller| caller.project.clone()));
    let caller = caller.unwrap_or_default();
    let (key, request) = match named(request, &caller, project.as_deref()).await {
        Ok(named) => named,
        Err(fault) => return fault.into_response(),
    };
    answer(&idempotency, key, request, next).await.unwrap_or_else(Fault::into_response)
}

/// Reads the key and the body of a request, and returns the key and the request with its body.
async fn named(
    request: Request,
    caller: &str,
    project: Option<&str>,
) -> Result<(IdempotencyKey, Request), Fault> {
    let (mut parts, body) = request.into_parts();
    let body = Bytes::from_request(Request::from_parts(parts.clone(), body), &()).await;
    let body = body.map_err(|rejection| unreadable(&rejection))?;
    let mut keys = parts.headers.get_all(HEADER).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(Error::Invalid("Idempotency-Key is given twice; give it once".into()).into());
    };
    let key = IdempotencyKey::new(key.as_bytes(), parts.uri.path(), &body).map_err(Error::Invalid)?;
    let key = key.of(caller, project);
    parts.extensions.insert(key.clone());
    Ok((key, Request::from_parts(parts, Body::from(body))))
}

async fn answer(
    idempotency: &Idempotency,
    key: IdempotencyKey,
    request: Request,
    next: Next,
) -> Result<Response, Fault> {
    // A repetition that arrives while the first request is running waits for its response.
    let _turn = idempotency.turn(&key).await?;
    let _promise = if let Some(kept) = idempotency.kept(&key).await? {
        if kept.fingerprint != key.fingerprint {
            return Err(Fault::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!(
                    "Idempotency-Key {} was used with another body before; send the same body, or a new key",
                    key.key
                ),
            ));
        }
        if let Some(Answer { status, body, location }) = kept.answer {
            let status = StatusCode::from_u16(status).map_err(|error| Error::Internal(error.to_string()))?;
            tracing::debug!(key = key.key, "returned the stored response");
            if body.is_empty() {
                return Ok(
                    (status, location.map(|location| [(header::LOCATION, location)]), ()).into_response()
                );
            }
            return Ok((status, [(header::CONTENT_TYPE, "application/json")], body).into_response());
        }
        None
    } else {
        idempotency.may_keep(&key).await?
    };
    let response = next.run(request).await;
    if !response.status().is_success() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.map_err(|error| Error::Internal(error.to_string()))?;
    let location = parts.headers.get(header::LOCATION).and_then(|place| place.to_str().ok());
    let answer = Answer {
        status: parts.status.as_u16(),
        body: String::from_utf8_lossy(&body).into_owned(),
        location: location.map(str::to_owned),
    };
    if let Err(error) = idempotency.keep(&key, &answer).await {
        // The request itself succeeded.
        tracing::error!(key = key.key, %error, "the response cannot be stored");
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}
