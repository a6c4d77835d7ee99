//! Bodies, paths, queries, pages and links, as all resources use them.

use std::collections::HashSet;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequestParts, OriginalUri};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use hotslot_model::json;
use hotslot_model::time::Millis;
use hotslot_service::error::Error;
use hotslot_web::UNRESERVED;
use percent_encoding::{PercentEncode, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::error::{Fault, no_route};
use super::limits;

/// Checks the media type and the nesting of a JSON body, and returns its bytes.
fn received(headers: &HeaderMap, body: Result<Bytes, BytesRejection>, example: &str) -> Result<Bytes, Fault> {
    let body = body.map_err(|rejection| limits::unreadable(&rejection))?;
    // `limits::enforce` accepts an empty body without a Content-Type. Parsing then reports what the body lacks.
    if headers.contains_key(header::CONTENT_TYPE) {
        limits::expect_json(headers)?;
    }
    let levels = limits::nesting(&body);
    if levels > limits::NESTING {
        let most = limits::NESTING;
        let reason = format_args!("it is nested {levels} levels deep; at most {most} are allowed");
        return Err(bad(&reason, example));
    }
    Ok(body)
}

fn bad(reason: &dyn std::fmt::Display, example: &str) -> Fault {
    Fault::new(StatusCode::BAD_REQUEST, format!("bad body: {reason}; send {example}"))
}

fn parsed(body: &Bytes, example: &str) -> Result<Value, Fault> {
    if body.trim_ascii().is_empty() {
        return Err(bad(&"it is empty", example));
    }
    let value = json::parse(body)
        .map_err(|error| bad(&format_args!("it is not valid JSON: {}", json::reason(&error)), example))?;
    if has_nul(&value) {
        return Err(bad(&"a string contains the character U+0000", example));
    }
    Ok(value)
}

/// Parses any JSON body. `example` is a correct body, which error messages quote.
pub(super) fn value(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    example: &str,
) -> Result<Value, Fault> {
    parsed(&received(headers, body, example)?, example)
}

/// Returns the members of a JSON object. `example` is a correct body, which error messages quote.
pub(super) fn object(value: Value, example: &str) -> Result<Map<String, Value>, Fault> {
    let kind = match value {
        Value::Object(members) => return Ok(members),
        Value::Array(_) => "a list",
        Value::String(_) => "a string",
        Value::Number(_) => "a number",
        Value::Bool(_) => "a boolean",
        Value::Null => "null",
    };
    Err(bad(&format_args!("expected an object, found {kind}"), example))
}

/// Whether any string in the value contains U+0000, which PostgreSQL cannot store.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Parses a JSON body that is an object. `example` is a correct body, which error messages quote.
pub(super) fn read<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    example: &str,
) -> Result<T, Fault> {
    let value = value(headers, body, example)?;
    // serde accepts a list in place of a struct, so lists are refused here.
    let outer = object(value, example)?;
    if let Some((key, _)) = outer.iter().find(|(_, inner)| inner.is_array()) {
        return Err(bad(&format_args!("{key} must not be a list"), example));
    }
    json::read(Value::Object(outer)).map_err(|reason| bad(&reason, example))
}

/// The parameters of a path. A path whose parameters cannot be parsed is answered with 404.
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

/// A query string, parsed into `T`. One that cannot be parsed is answered with 400.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|rejection| {
                let reason = rejection.body_text();
                let reason = reason.strip_prefix("Failed to deserialize query string: ").unwrap_or(&reason);
                let reason = json::plain(reason).replace("the key", "the query key");
                Fault::new(StatusCode::BAD_REQUEST, format!("bad query: {reason}"))
            })
    }
}

/// The key-value pairs of a query string. A query with a repeated key is answered with 400.
pub(super) struct Pairs(pub(super) Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Pairs {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let Query(pairs) = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await?;
        let mut keys = HashSet::new();
        match pairs.iter().find(|(key, _)| !keys.insert(key.as_str())) {
            Some((key, _)) => {
                Err(Error::Invalid(format!("query key {key} is given twice; give it once")).into())
            }
            None => Ok(Self(pairs)),
        }
    }
}

/// Parses the value of a query key that is true or false.
pub(super) fn boolean(key: &str, word: &str) -> Result<bool, Error> {
    word.parse().map_err(|_| Error::Invalid(format!("invalid {key} {word}: expected true or false")))
}

/// A link to an item, or to the next page of a list.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct Link {
    /// What the link leads to: `self` with the version prefix of the request, `bookmark` without one, or `next` for the
    /// next page.
    pub(super) rel: &'static str,
    /// The URL, which begins with the scheme and host of the request.
    pub(super) href: String,
}

/// The keys by which a list is paged.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `Page` reads the keys")]
pub(super) struct PageParams {
    /// The number of items of a page. 0 and numbers above 1000 mean 1000.
    #[param(example = 100)]
    limit: Option<u64>,
    /// The id of the last item of the previous page, as the link `next` has it.
    marker: Option<String>,
}

/// The maximum and default number of items of a page, as the default of Nova's `[api] max_limit`.
const MAX_LIMIT: usize = 1000;

/// The requested page of a list.
#[derive(Debug)]
pub(super) struct Page {
    /// The number of items, at most [`MAX_LIMIT`].
    pub(super) limit: usize,
    /// The id of the last item of the previous page.
    pub(super) marker: Option<String>,
    /// The query key of the marker.
    key: &'static str,
}

impl Page {
    /// Parses `limit` and `marker`, and returns the remaining pairs of the query.
    pub(super) fn read(pairs: Pairs) -> Result<(Self, Vec<(String, String)>), Error> {
        Self::after("marker", pairs)
    }

    /// Like [`read`](Self::read), with another query key for the marker.
    pub(super) fn after(
        marker: &'static str,
        Pairs(pairs): Pairs,
    ) -> Result<(Self, Vec<(String, String)>), Error> {
        let mut page = Self { limit: MAX_LIMIT, marker: None, key: marker };
        let mut rest = Vec::new();
        for (key, value) in pairs {
            match key.as_str() {
                "limit" => {
                    let limit = value.parse::<i64>().ok().and_then(|limit| usize::try_from(limit).ok());
                    let limit = limit.ok_or_else(|| {
                        Error::Invalid(format!(
                            "invalid limit {value}: expected a number from 0 up; a page has at most {MAX_LIMIT} \
                             items, and 0 requests that many"
                        ))
                    })?;
                    // Like Nova, 0 requests the largest page.
                    page.limit = if limit == 0 { MAX_LIMIT } else { limit.min(MAX_LIMIT) };
                }
                key if key == marker => page.marker = Some(value),
                _ => rest.push((key, value)),
            }
        }
        Ok((page, rest))
    }

    /// Like [`read`](Self::read), but refuses all other query keys.
    pub(super) fn alone(pairs: Pairs) -> Result<Self, Error> {
        let (page, rest) = Self::read(pairs)?;
        match rest.first() {
            Some((key, _)) => {
                Err(Error::Invalid(format!("unknown query key {key}; known: limit, {}", page.key)))
            }
            None => Ok(page),
        }
    }

    /// Removes the items up to and including the marker.
    ///
    /// # Errors
    /// [`Error::Invalid`] when no item matches the marker.
    pub(super) fn skip<T>(&self, items: &mut Vec<T>, is: impl Fn(&T, &str) -> bool) -> Result<(), Error> {
        let Some(marker) = &self.marker else { return Ok(()) };
        let last = items.iter().position(|item| is(item, marker)).ok_or_else(|| {
            Error::Invalid(format!("invalid {} {marker}: no item of the list has this id", self.key))
        })?;
        items.drain(..=last);
        Ok(())
    }

    /// Truncates a list to the page, and returns the link to the next page when items were cut off.
    pub(super) fn cut<T>(
        &self,
        mut items: Vec<T>,
        OriginalUri(uri): &OriginalUri,
        headers: &HeaderMap,
        marker: impl Fn(&T) -> String,
    ) -> (Vec<T>, Option<Vec<Link>>) {
        let more = items.len() > self.limit;
        items.truncate(self.limit);
        let Some(last) = items.last().filter(|_| more) else { return (items, None) };
        let ours = |pair: &str| ["limit", self.key].contains(&pair.split('=').next().unwrap_or_default());
        let kept = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty() && !ours(pair));
        let query: String = kept.map(|pair| format!("{pair}&")).collect();
        let (base, marker) = (base(headers), marker(last));
        let marker = escaped(&marker);
        let href = format!("{base}{}?{query}limit={}&{}={marker}", uri.path(), self.limit, self.key);
        (items, Some(vec![Link { rel: "next", href }]))
    }
}

/// Parses an id of a path; `None` for an id in another notation than hotslot writes.
pub(super) fn id<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    text.parse::<T>().ok().filter(|id| id.to_string().eq_ignore_ascii_case(text))
}

/// The error of an id of a path that nothing has. The list of the route `list` has those that there are.
pub(super) fn not_listed(noun: &str, id: &str, list: &'static str) -> Error {
    Error::NotListed { what: format!("{noun} {}", id.chars().take(255).collect::<String>()), list }
}

/// The header that names the scheme of the client's URL: of a proxy in front that uses TLS, or of hotslot's own TLS.
pub(super) const SCHEME: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Returns `http://` or `https://` and the host of the request's `Host` header; `localhost` when there is none. Links
/// in responses begin with it.
pub(super) fn base(headers: &HeaderMap) -> String {
    let scheme = if headers.get(SCHEME).is_some_and(|scheme| scheme == "https") { "https" } else { "http" };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    host.map_or_else(|| format!("{scheme}://localhost"), |host| format!("{scheme}://{host}"))
}

/// Formats a time as Nova does: ISO 8601 in UTC, with whole seconds.
pub(super) fn time(millis: Millis) -> String {
    jiff::Timestamp::from_millisecond(millis - millis.rem_euclid(1000))
        .map_or_else(|_| millis.to_string(), |time| time.to_string())
}

/// Returns Nova's `self` and `bookmark` links to an item of a collection. The `self` link keeps the version prefix of
/// the request's path.
pub(super) fn links(
    headers: &HeaderMap,
    OriginalUri(uri): &OriginalUri,
    collection: &str,
    id: &str,
) -> Vec<Link> {
    let (base, collection, id) = (base(headers), format!("/{collection}"), escaped(id));
    let prefix = uri.path().split_once(&collection).map_or("", |(prefix, _)| prefix);
    vec![
        Link { rel: "self", href: format!("{base}{prefix}{collection}/{id}") },
        Link { rel: "bookmark", href: format!("{base}{collection}/{id}") },
    ]
}

/// Percent-encodes a string for use in a path or a query.
fn escaped(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, UNRESERVED)
}
