//! Bodies, paths and links: what the resources share.

use std::collections::HashSet;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequestParts, OriginalUri};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use hotslot_model::time::Millis;
use hotslot_service::error::Error;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::{Fault, no_route};
use super::limits;

/// The body of a request, which is to be JSON.
fn json(headers: &HeaderMap, body: Result<Bytes, BytesRejection>, example: &str) -> Result<Bytes, Fault> {
    let body = body.map_err(|rejection| limits::unreadable(&rejection))?;
    // An empty body needs no Content-Type; what it lacks is said of the body.
    if headers.contains_key(header::CONTENT_TYPE) {
        limits::expect_json(headers)?;
    }
    let levels = limits::nesting(&body);
    if levels > limits::NESTING {
        let most = limits::NESTING;
        let reason = format_args!("it has {levels} levels of objects and lists, and {most} are allowed");
        return Err(bad(&reason, example));
    }
    Ok(body)
}

fn bad(reason: &dyn std::fmt::Display, example: &str) -> Fault {
    Fault::new(StatusCode::BAD_REQUEST, format!("bad body: {reason}; send {example}"))
}

fn parsed(body: &Bytes, example: &str) -> Result<Value, Fault> {
    let value = serde_json::from_slice(body).map_err(|error| bad(&error, example))?;
    if has_nul(&value) {
        return Err(bad(&"a text has the character U+0000", example));
    }
    Ok(value)
}

/// Reads any JSON body. `example` is what would be right.
pub(super) fn value(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    example: &str,
) -> Result<Value, Fault> {
    parsed(&json(headers, body, example)?, example)
}

/// The members of what is to be an object. `example` is what would be right.
pub(super) fn object(value: Value, example: &str) -> Result<Map<String, Value>, Fault> {
    let kind = match value {
        Value::Object(members) => return Ok(members),
        Value::Array(_) => "a list",
        Value::String(_) => "a text",
        Value::Number(_) => "a number",
        Value::Bool(_) => "true or false",
        Value::Null => "null",
    };
    Err(bad(&format_args!("{kind} stands where an object belongs"), example))
}

/// Whether a text has the one character that PostgreSQL cannot keep.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Reads a JSON body that is an object. `example` is what would be right.
pub(super) fn read<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    example: &str,
) -> Result<T, Fault> {
    let body = json(headers, body, example)?;
    let value = parsed(&body, example)?;
    // serde would take a list for a struct; every body here is an object in an object.
    let outer = object(value, example)?;
    if let Some((key, _)) = outer.iter().find(|(_, inner)| inner.is_array()) {
        return Err(bad(&format_args!("{key} is a list"), example));
    }
    serde_json::from_slice(&body).map_err(|error| bad(&error, example))
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

/// The pairs of a query string, each key at most once.
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

/// The largest page, and the one that is given when none is asked for (Nova's `[api] max_limit`).
const MAX_LIMIT: usize = 1000;

/// Which part of a list is asked for.
#[derive(Debug)]
pub(super) struct Page {
    /// How many items, at most [`MAX_LIMIT`].
    pub(super) limit: usize,
    /// The last item of the page before.
    pub(super) marker: Option<String>,
    /// The key of the query that names it.
    key: &'static str,
}

impl Page {
    /// Takes `limit` and `marker` out of a query.
    pub(super) fn read(pairs: Pairs) -> Result<(Self, Vec<(String, String)>), Error> {
        Self::after("marker", pairs)
    }

    /// [`read`](Self::read), where the query names the last item of the page before by another key.
    pub(super) fn after(
        marker: &'static str,
        Pairs(pairs): Pairs,
    ) -> Result<(Self, Vec<(String, String)>), Error> {
        let mut page = Self { limit: MAX_LIMIT, marker: None, key: marker };
        let mut rest = Vec::new();
        for (key, value) in pairs {
            match key.as_str() {
                "limit" => {
                    let limit: usize = value.parse().map_err(|_| {
                        Error::Invalid(format!(
                            "limit {value} is no number from 0 up; a page has at most {MAX_LIMIT} items, and 0 asks \
                             for as many"
                        ))
                    })?;
                    // As Nova: none is as many as there may be.
                    page.limit = if limit == 0 { MAX_LIMIT } else { limit.min(MAX_LIMIT) };
                }
                key if key == marker => page.marker = Some(value),
                _ => rest.push((key, value)),
            }
        }
        Ok((page, rest))
    }

    /// [`read`](Self::read), where the query may say nothing else.
    pub(super) fn alone(pairs: Pairs) -> Result<Self, Error> {
        let (page, rest) = Self::read(pairs)?;
        match rest.first() {
            Some((key, _)) => {
                Err(Error::Invalid(format!("unknown query key {key}; known: limit, {}", page.key)))
            }
            None => Ok(page),
        }
    }

    /// Leaves out of a list what came on the pages before. An error when nothing in it is the marker.
    pub(super) fn skip<T>(&self, items: &mut Vec<T>, is: impl Fn(&T, &str) -> bool) -> Result<(), Error> {
        let Some(marker) = &self.marker else { return Ok(()) };
        let last = items.iter().position(|item| is(item, marker)).ok_or_else(|| {
            Error::Invalid(format!("{} {marker} is the id of nothing in the list without it", self.key))
        })?;
        items.drain(..=last);
        Ok(())
    }

    /// Cuts a list that has one item more than the page, if there are more; the links then lead on.
    pub(super) fn cut<T>(
        &self,
        mut items: Vec<T>,
        OriginalUri(uri): &OriginalUri,
        headers: &HeaderMap,
        marker: impl Fn(&T) -> String,
    ) -> (Vec<T>, Option<serde_json::Value>) {
        let more = items.len() > self.limit;
        items.truncate(self.limit);
        let Some(last) = items.last().filter(|_| more) else { return (items, None) };
        let ours = |pair: &str| ["limit", self.key].contains(&pair.split('=').next().unwrap_or_default());
        let kept = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty() && !ours(pair));
        let query: String = kept.map(|pair| format!("{pair}&")).collect();
        let (base, marker) = (base(headers), escaped(&marker(last)));
        let href = format!("{base}{}?{query}limit={}&{}={marker}", uri.path(), self.limit, self.key);
        (items, Some(serde_json::json!([{ "rel": "next", "href": href }])))
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

/// Nova's links to an item of a collection, below the path that the client used.
pub(super) fn links(
    headers: &HeaderMap,
    OriginalUri(uri): &OriginalUri,
    collection: &str,
    id: &str,
) -> serde_json::Value {
    let (base, collection, id) = (base(headers), format!("/{collection}"), escaped(id));
    let prefix = uri.path().split_once(&collection).map_or("", |(prefix, _)| prefix);
    serde_json::json!([
        { "rel": "self", "href": format!("{base}{prefix}{collection}/{id}") },
        { "rel": "bookmark", "href": format!("{base}{collection}/{id}") },
    ])
}

/// A text as a part of a path or a query.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(escape).collect()
}
