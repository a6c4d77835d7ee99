//! The routes of the API, called in this process on behalf of the caller of a page. A page knows nothing else of the
//! service: what a caller may see and do is decided by the routes, and every change is recorded by them.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tower::ServiceExt as _;
use uuid::Uuid;

use crate::problem::Problem;
use crate::remedy::by_pages;

/// What stays as it is in a part of a path or query: the unreserved characters of RFC 3986.
pub const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Makes a text safe as one part of a path or query.
pub(crate) fn part(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

/// Makes the id or name of one thing safe as a part of a path.
///
/// # Errors
/// 404 for what no id is: an empty text, and the names of lists that stand in the same place of a path.
pub(crate) fn id_part(id: &str) -> Result<String, Problem> {
    if ["", ".", "..", "detail"].contains(&id) {
        return Err(Problem::new(
            404,
            "the address of this page names nothing; go back and choose from a list",
        ));
    }
    Ok(part(id))
}

/// Makes a UUID safe as a part of a path.
///
/// # Errors
/// 404 for another text.
pub(crate) fn uuid_part(id: &str) -> Result<String, Problem> {
    let id: Option<Uuid> = id.parse().ok();
    let nothing =
        || Problem::new(404, "the address of this page names nothing; go back and choose from a list");
    id.map(|id| id.to_string()).ok_or_else(nothing)
}

/// The routes, with what identifies the caller: headers and extensions that each request gets.
#[derive(Clone)]
pub struct Api {
    routes: Arc<Router>,
    headers: HeaderMap,
    extensions: Extensions,
}

impl Api {
    /// Calls these routes with these headers and extensions.
    pub fn new(routes: Arc<Router>, headers: HeaderMap, extensions: Extensions) -> Self {
        Self { routes, headers, extensions }
    }

    /// Adds a header to each request.
    pub(crate) fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Has the requests refused when what they name has another `ETag`; an empty one admits all.
    pub(crate) fn unless_changed(self, tag: &str) -> Self {
        match HeaderValue::from_str(tag) {
            Ok(tag) if !tag.is_empty() => self.with(header::IF_MATCH, tag),
            Ok(_) | Err(_) => self,
        }
    }

    /// Returns the response to a request, whatever its status.
    pub(crate) async fn respond(&self, method: Method, path: &str, body: Option<&Value>) -> Response {
        let content = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let mut request = Request::new(content);
        let Ok(uri) = path.parse() else {
            return crate::problem::Problem::new(400, "the address of this page is not valid").bare();
        };
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        (*request.headers_mut(), *request.extensions_mut()) = (self.headers.clone(), self.extensions.clone());
        if body.is_some() {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        match Router::clone(&self.routes).oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// Sends a request, and returns the body of a successful response; null for an empty one.
    ///
    /// # Errors
    /// The status and message of any other response.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Problem> {
        self.send_tagged(method, path, body).await.map(|(value, _)| value)
    }

    /// Sends a request, and returns the body and the `ETag` of a successful response, which is empty without one.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn send_tagged(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(Value, String), Problem> {
        let response = self.respond(method, path, body).await;
        let status = response.status();
        let tag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default();
        let tag = tag.to_owned();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default();
        let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.is_success() { Ok((value, tag)) } else { Err(problem(status, &value)) }
    }

    /// Returns the body of a GET.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Problem> {
        self.send(Method::GET, path, None).await
    }

    /// Returns the items of all pages of a list, at most `most`, and whether there are more.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn list(
        &self,
        path: &str,
        key: &str,
        most: usize,
    ) -> Result<(Vec<Value>, bool), Problem> {
        let mut items = Vec::new();
        let mut next = Some(path.to_owned());
        while let Some(path) = next.take() {
            let mut page = self.get(&path).await?;
            if let Value::Array(found) = page[key].take() {
                items.extend(found);
            }
            let links = page[format!("{key}_links")].as_array().into_iter().flatten();
            let link = links.filter(|link| link["rel"] == "next").find_map(|link| link["href"].as_str());
            // A link has the address of the service, which this process does not need.
            next = link.and_then(|link| {
                let at = link.find("://").map_or(0, |at| at + 3);
                Some(link[at + link[at..].find('/')?..].to_owned())
            });
            if items.len() > most {
                items.truncate(most);
                return Ok((items, true));
            }
        }
        Ok((items, false))
    }
}

/// Reads an error in Nova's or Cyborg's form.
fn problem(status: StatusCode, body: &Value) -> Problem {
    let nova =
        body.as_object().and_then(|body| body.values().next()).and_then(|fault| fault["message"].as_str());
    // Cyborg's form is JSON in a string.
    let cyborg = || {
        let fault: Value = serde_json::from_str(body["error_message"].as_str()?).ok()?;
        fault["faultstring"].as_str().map(str::to_owned)
    };
    let message = nova.map(str::to_owned).or_else(cyborg);
    let message = message.map_or_else(|| status.to_string(), |message| by_pages(&message));
    let problem = Problem::new(status.as_u16(), message);
    Problem { is_recorded: true, ..problem }
}
